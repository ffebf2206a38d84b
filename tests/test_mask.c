/* test_mask.c - what masks mean: pairs, tiles of bits and boxes against formulas written another way. How
 * they are made is test_mask_make.c, their text test_mask_text.c. */
#include "tests/mask_help.h"

#include <criterion/parameterized.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of random domains, at most: most are small, some have more than one tile. */
enum { SMALL = 64, LARGE = 300 };

static hra_domain domain_of(int heads, int64_t tokens, int64_t a, int64_t b, int64_t c)
{
    hra_domain d = HRA_DOMAIN_INIT;

    d.heads = heads;
    d.tokens = tokens;
    d.grid[0] = a;
    d.grid[1] = b;
    d.grid[2] = c;
    return d;
}

static uint64_t random_state;

/* 0 .. below - 1 */
static int64_t draw(int64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int64_t)((random_state >> 33) % (uint64_t)below);
}

/* ---- How random_blocks draws ------------------------------------------------------------------- */

/* One step of splitmix64 from state x. */
static uint64_t scramble(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* Set listed[J] of the blocks that random_blocks(...,n,seed) gives to query block row, of `blocks`, which
 * fit 32 bits. */
static void draw_row(unsigned char *listed, int64_t row, int64_t blocks, int64_t n, uint64_t seed)
{
    const int64_t others = blocks - 1;

    listed[row] = 1;
    for (int64_t d = n < others ? others - n : 0; d < others; d++) {
        const uint64_t step = (uint64_t)(d - (n < others ? others - n : 0));
        const uint64_t x = scramble(scramble(scramble(seed) + (uint64_t)row) + step), below = (uint64_t)d + 1;
        /* The high half of x times below, in two parts. */
        const int64_t t = (int64_t)(((x >> 32) * below + ((x & UINT32_MAX) * below >> 32)) >> 32);
        const int64_t block = t < row ? t : t + 1, last = d < row ? d : d + 1;

        listed[listed[block] ? last : block] = 1;
    }
}

/* ---- Random masks: a text and, by plain formulas, all its answers ------------------------------ */

struct expression {
    char text[1 << 15];
    size_t length;
    hra_domain domain; /* of 1 to LARGE tokens */
    int64_t grid[3];   /* the domain's, 1 beyond its axes */
    int axes;
    hra_order
        *order[HRA_MASK_ORDERS]; /* that slots() may name; the first is the one that the parser is given */
    const int64_t *index; /* [tokens] what masks read for a token: its slot in a slots(); NULL: itself */
};

/* What may not stand at a place of the text: | or & without parentheses, a mixture, what reads coordinates or
 * slots of its own. */
enum { NO_OR = 1, NO_AND = 2, NO_MIXTURE = 4, NO_COORDINATES = 8, WITHIN = NO_MIXTURE | NO_COORDINATES };

/* A mask without masks inside: its numbers as they stand in the text, lists where it has them. */
struct leaf {
    const struct expression *e;
    int64_t n[6];
    int head;                           /* that asks */
    int64_t document[LARGE];            /* docs: by index */
    unsigned char listed[LARGE][LARGE]; /* lists of blocks: by query and key block */
};

/* The numbers of dilated, as text has them. */
enum { SEGMENT, RATE, OFFSET, MODE };
static const char *const modes[] = {"keys", "both", "residue"};

/* Append a piece of text, white space of any kind around it now and then. */
static void put(struct expression *e, const char *piece)
{
    static const char *const spaces[] = {"", "", "", " ", "\n", "\t ", "  "};

    e->length +=
        (size_t)snprintf(e->text + e->length, sizeof(e->text) - e->length, "%s%s", spaces[draw(7)], piece);
    cr_assert(e->length < sizeof(e->text));
}

static void put_number(struct expression *e, const char *before, int64_t n)
{
    char piece[24];

    put(e, before);
    snprintf(piece, sizeof(piece), "%" PRId64, n);
    put(e, piece);
}

static int64_t at(const struct leaf *l, int64_t token)
{
    return l->e->index == NULL ? token : l->e->index[token];
}

/* Blocks between those of two tokens. */
static int64_t apart(const struct leaf *l, int64_t i, int64_t j)
{
    return llabs(at(l, i) / l->n[0] - at(l, j) / l->n[0]);
}

static int64_t coordinate(const struct expression *e, int64_t token, int axis)
{
    for (int a = 2; a > axis; a--)
        token /= e->grid[a];
    return token % e->grid[axis];
}

/* The formulas: does query i attend to key j? */

static int in_full(const struct leaf *l, int64_t i, int64_t j)
{
    (void)l, (void)i, (void)j;
    return 1;
}

static int in_causal(const struct leaf *l, int64_t i, int64_t j)
{
    (void)l;
    return j <= i;
}

static int in_window(const struct leaf *l, int64_t i, int64_t j)
{
    return at(l, i) - at(l, j) <= l->n[0] && at(l, j) - at(l, i) <= l->n[1];
}

static int in_docs(const struct leaf *l, int64_t i, int64_t j)
{
    return l->document[at(l, i)] == l->document[at(l, j)];
}

static int in_dilated(const struct leaf *l, int64_t i, int64_t j)
{
    const int64_t segment = l->n[SEGMENT], rate = l->n[RATE];
    const int64_t x = at(l, i) % segment, y = at(l, j) % segment;
    const int64_t offset = l->n[OFFSET] < 0 ? l->head % rate : l->n[OFFSET];

    if (at(l, i) - x != at(l, j) - y)
        return 0;
    if (l->n[MODE] == HRA_DILATED_RESIDUE)
        return (x - y) % rate == 0;
    return y % rate == offset && (l->n[MODE] == HRA_DILATED_KEYS || x % rate == offset);
}

static int in_global(const struct leaf *l, int64_t i, int64_t j)
{
    return at(l, i) < l->n[0] || at(l, j) < l->n[0];
}

static int in_list(const struct leaf *l, int64_t i, int64_t j)
{
    return l->listed[at(l, i) / l->n[0]][at(l, j) / l->n[0]];
}

static int in_local_blocks(const struct leaf *l, int64_t i, int64_t j)
{
    return apart(l, i, j) <= l->n[1];
}

static int in_strided_blocks(const struct leaf *l, int64_t i, int64_t j)
{
    return apart(l, i, j) <= l->n[2] || apart(l, i, j) % l->n[1] == 0;
}

static int in_global_blocks(const struct leaf *l, int64_t i, int64_t j)
{
    return apart(l, i, j) <= l->n[2] || at(l, i) / l->n[0] < l->n[1] || at(l, j) / l->n[0] < l->n[1];
}

static int in_hierarchical_blocks(const struct leaf *l, int64_t i, int64_t j)
{
    const int64_t size = l->n[0], width = l->n[1];

    for (int64_t level = 0; level <= l->n[2]; level++) {
        const int64_t step = INT64_C(1) << level;
        if (at(l, j) / size % step == 0 && (apart(l, i, j) + step - 1) / step <= width)
            return 1;
    }
    return 0;
}

static int in_grid(const struct leaf *l, int64_t i, int64_t j)
{
    for (int a = 0; a < l->e->axes; a++)
        if (llabs(coordinate(l->e, i, a) - coordinate(l->e, j, a)) > l->n[a])
            return 0;
    return 1;
}

static int in_neighbourhood(const struct leaf *l, int64_t i, int64_t j)
{
    for (int a = 0; a < l->e->axes; a++) {
        const int64_t length = l->e->grid[a], n = l->n[a] < length ? l->n[a] : length, stride = l->n[3 + a];
        const int64_t y = coordinate(l->e, j, a);
        int64_t middle = coordinate(l->e, i, a);

        middle -= middle % stride; /* the group's first query */
        for (int64_t steps = stride / 2; steps > 0 && middle + 1 < length; steps--)
            middle++;
        int64_t begin = middle - n / 2; /* shifted, step by step, until the window fits */
        while (begin + n > length)
            begin--;
        while (begin < 0)
            begin++;
        if (y < begin || y >= begin + n)
            return 0;
    }
    return 1;
}

/* What makes the texts: word and numbers are drawn, lists filled. */

/* A number by the letter that stands for it in the table of masks below. Most may be as large as can be. */
static int64_t number_of(const struct expression *e, char letter)
{
    if (letter != 'l' && draw(20) == 0)
        return INT64_MAX;
    switch (letter) {
    case 'b': /* tokens of a block */
        return draw(draw(2) == 0 ? 5 : e->domain.tokens + 2) + 1;
    case 't': /* tokens, stride */
        return draw(draw(2) == 0 ? 4 : e->domain.tokens + 2) + 1;
    case 'l': /* levels */
        return draw(4) == 0 ? 62 : draw(5) + 1;
    case 's': /* seed */
        return draw(INT64_C(1) << 31) << 31 | draw(INT64_C(1) << 31);
    default: /* blocks */
        return draw(4);
    }
}

static void draw_numbers(struct expression *e, struct leaf *l, const char *letters)
{
    for (int n = 0; letters[n] != '\0'; n++) {
        l->n[n] = number_of(e, letters[n]);
        put_number(e, n == 0 ? "(" : ",", l->n[n]);
    }
    put(e, ")");
}

static void draw_window(struct expression *e, struct leaf *l)
{
    for (int s = 0; s < 2; s++) {
        l->n[s] = draw(4) == 0    ? INT64_MAX
                  : draw(12) == 0 ? INT64_MIN
                                  : draw(3 * e->domain.tokens / 2 + 2) - e->domain.tokens / 2;
        if (l->n[s] == INT64_MAX && draw(2) == 0)
            put(e, s == 0 ? "(-" : ",-");
        else
            put_number(e, s == 0 ? "(" : ",", l->n[s]);
    }
    put(e, ")");
}

static void draw_docs(struct expression *e, struct leaf *l)
{
    for (int64_t i = 0, begin = 0; i < e->domain.tokens; i++) {
        l->document[i] = begin;
        if (i + 1 == e->domain.tokens || draw(5) == 0) {
            put_number(e, begin == 0 ? "(" : ",", i + 1 - begin);
            begin = i + 1;
        }
    }
    put(e, ")");
}

static void draw_dilated(struct expression *e, struct leaf *l)
{
    const int64_t parts = draw(3) + 2; /* numbers and words that are written */

    l->n[SEGMENT] = number_of(e, 'b');
    l->n[RATE] = number_of(e, 't');
    l->n[MODE] = parts < 4 ? HRA_DILATED_KEYS : draw(3);
    l->n[OFFSET] = parts < 3 || l->n[MODE] == HRA_DILATED_RESIDUE ? 0
                   : draw(2) == 0                                 ? HRA_OFFSET_HEAD
                                                                  : draw(l->n[RATE]);
    put_number(e, "(", l->n[SEGMENT]);
    put_number(e, ",", l->n[RATE]);
    if (parts > 2 && l->n[OFFSET] == HRA_OFFSET_HEAD) {
        put(e, ",");
        put(e, "head");
    } else if (parts > 2) {
        put_number(e, ",", l->n[OFFSET]);
    }
    if (parts > 3) {
        put(e, ",");
        put(e, modes[l->n[MODE]]);
    }
    put(e, ")");
}

static void draw_blocks(struct expression *e, struct leaf *l)
{
    const int64_t size = number_of(e, 'b'), blocks = (e->domain.tokens - 1) / size + 1;

    l->n[0] = size;
    put_number(e, "(", size);
    for (int64_t line = draw(blocks < 20 ? 2 * blocks + 1 : 40); line > 0; line--) {
        const int64_t q = draw(blocks);

        put_number(e, ";", q);
        for (int64_t n = draw(blocks < 20 ? blocks : 20) + 1, first = n; n > 0; n--) {
            const int64_t k = draw(blocks);
            put_number(e, n == first ? ":" : " ", k);
            l->listed[q][k] = 1;
        }
    }
    put(e, ")");
}

static void draw_random_blocks(struct expression *e, struct leaf *l)
{
    draw_numbers(e, l, "bws");
    const int64_t blocks = (e->domain.tokens - 1) / l->n[0] + 1;
    for (int64_t q = 0; q < blocks; q++)
        draw_row(l->listed[q], q, blocks, l->n[1], (uint64_t)l->n[2]);
}

static void draw_grid(struct expression *e, struct leaf *l)
{
    for (int a = 0; a < e->axes; a++) {
        l->n[a] = draw(20) == 0 ? INT64_MAX : draw(e->grid[a] + 2);
        put_number(e, a == 0 ? "(" : ",", l->n[a]);
    }
    put(e, ")");
}

static void draw_neighbourhood(struct expression *e, struct leaf *l)
{
    const int strides = draw(2) == 0;

    for (int a = 0; a < e->axes; a++) {
        l->n[a] = draw(20) == 0 ? INT64_MAX : draw(e->grid[a] + 2) + 1;
        l->n[3 + a] = 1;
        put_number(e, a == 0 ? "(" : ",", l->n[a]);
    }
    for (int a = 0; a < e->axes && strides; a++) {
        l->n[3 + a] = draw(8) == 0 ? l->n[a] : draw(l->n[a] < 4 ? l->n[a] : 4) + 1;
        put_number(e, a == 0 ? ";" : ",", l->n[3 + a]);
    }
    put(e, ")");
}

/* Every mask without masks inside. Those with letters have that many numbers; the last two read the grid. */
static const struct {
    const char *word, *letters;
    void (*draw)(struct expression *e, struct leaf *l);
    int (*allows)(const struct leaf *l, int64_t i, int64_t j);
} leaves[] = {
    {"full", NULL, NULL, in_full},
    {"causal", NULL, NULL, in_causal},
    {"window", NULL, draw_window, in_window},
    {"docs", NULL, draw_docs, in_docs},
    {"dilated", NULL, draw_dilated, in_dilated},
    {"dilated", NULL, draw_dilated, in_dilated},
    {"global", "t", NULL, in_global},
    {"blocks", NULL, draw_blocks, in_list},
    {"local_blocks", "bw", NULL, in_local_blocks},
    {"strided_blocks", "btw", NULL, in_strided_blocks},
    {"global_blocks", "bww", NULL, in_global_blocks},
    {"random_blocks", NULL, draw_random_blocks, in_list},
    {"hierarchical_blocks", "bwl", NULL, in_hierarchical_blocks},
    {"grid", NULL, draw_grid, in_grid},
    {"neighbourhood", NULL, draw_neighbourhood, in_neighbourhood},
};
enum { LEAVES = sizeof(leaves) / sizeof(leaves[0]), ON_GRID = 2 };

/* All answers: how often each query attends to each key, [batch][heads][tokens][tokens]. */

static size_t square(const struct expression *e)
{
    return (size_t)(e->domain.tokens * e->domain.tokens);
}

static unsigned char *new_counts(const struct expression *e)
{
    return malloc((size_t)e->domain.batch * (size_t)e->domain.heads * square(e));
}

static unsigned char *counts_of(const struct expression *e, unsigned char *counts, int batch, int head)
{
    return counts + (size_t)(batch * e->domain.heads + head) * square(e);
}

static void answer_leaf(struct expression *e, unsigned char *out, struct leaf *l,
                        int (*allows)(const struct leaf *, int64_t, int64_t))
{
    for (l->head = 0; l->head < e->domain.heads; l->head++) {
        unsigned char *to = counts_of(e, out, 0, l->head);

        for (int64_t i = 0; i < e->domain.tokens; i++)
            for (int64_t j = 0; j < e->domain.tokens; j++)
                *to++ = (unsigned char)allows(l, i, j);
    }
    for (int b = 1; b < e->domain.batch; b++)
        memcpy(counts_of(e, out, b, 0), out, (size_t)e->domain.heads * square(e));
}

static void make_leaf(struct expression *e, unsigned char *out, int64_t kind)
{
    struct leaf *l = calloc(1, sizeof(*l));

    l->e = e;
    put(e, leaves[kind].word);
    if (leaves[kind].letters != NULL)
        draw_numbers(e, l, leaves[kind].letters);
    else if (leaves[kind].draw != NULL)
        leaves[kind].draw(e, l);
    answer_leaf(e, out, l, leaves[kind].allows);
    free(l);
}

static void make(struct expression *e, unsigned char *out, int depth, unsigned without);

/* & or |; of & one part may be a mixture. */
static void make_combination(struct expression *e, unsigned char *out, int depth, unsigned without,
                             int is_and)
{
    const size_t size = (size_t)(e->domain.batch * e->domain.heads) * square(e);
    const int closed = (without & (is_and ? NO_AND : NO_OR)) || draw(4) == 0;
    const int64_t parts = draw(3) + 2, mixture = is_and ? draw(parts) : -1;
    unsigned char *part = new_counts(e);

    put(e, closed ? "(" : "");
    memset(out, is_and, size);
    for (int64_t n = 0; n < parts; n++) {
        put(e, n == 0 ? "" : is_and ? "&" : "|");
        make(e, part, depth - 1,
             (without & WITHIN) | (n == mixture ? 0 : NO_MIXTURE) | NO_OR | (is_and ? NO_AND : 0));
        for (size_t x = 0; x < size; x++)
            out[x] = is_and ? out[x] * part[x] : out[x] | part[x];
    }
    put(e, closed ? ")" : "");
    free(part);
}

static void make_not(struct expression *e, unsigned char *out, int depth, unsigned without)
{
    put(e, "!");
    make(e, out, depth - 1, (without & WITHIN) | NO_MIXTURE | NO_OR | NO_AND);
    for (size_t x = 0; x < (size_t)(e->domain.batch * e->domain.heads) * square(e); x++)
        out[x] = !out[x];
}

/* heads() or batches(). */
static void make_choice(struct expression *e, unsigned char *out, int depth, unsigned without, int by_head)
{
    const int all = by_head ? e->domain.heads : e->domain.batch;
    unsigned char *part = new_counts(e);

    put(e, by_head ? "heads" : "batches");
    for (int first = 0, last; first < all; first = last + 1) {
        last = first + (int)draw(all - first);
        put_number(e, first == 0 ? "(" : ";", first);
        if (last > first || draw(2) == 0)
            put_number(e, "-", last);
        put(e, ":");
        make(e, part, depth - 1, without & WITHIN);
        for (int b = 0; b < e->domain.batch; b++)
            for (int h = 0; h < e->domain.heads; h++)
                if ((by_head ? h : b) >= first && (by_head ? h : b) <= last)
                    memcpy(counts_of(e, out, b, h), counts_of(e, part, b, h), square(e));
    }
    put(e, ")");
    free(part);
}

static void make_slots(struct expression *e, unsigned char *out, int depth, unsigned without)
{
    const int64_t n = draw(HRA_MASK_ORDERS);

    put(e, "slots");
    put(e, "(");
    if (n > 0 || (strcmp(e->order[0]->name, "permutation") != 0 && draw(2) == 0)) {
        put(e, e->order[n]->name);
        put(e, ";");
    }
    e->index = hra_order_token_to_slot(e->order[n]);
    make(e, out, depth - 1, (without & NO_MIXTURE) | NO_COORDINATES);
    e->index = NULL;
    put(e, ")");
}

/* mix(), or longnet(), which has only dilated masks inside. */
static void make_mixture(struct expression *e, unsigned char *out, int depth, unsigned without, int longnet)
{
    const size_t size = (size_t)(e->domain.batch * e->domain.heads) * square(e);
    unsigned char *part = new_counts(e);

    memset(out, 0, size);
    put(e, longnet ? "longnet" : "mix");
    for (int64_t parts = draw(4) + 1, n = 0; n < parts; n++) {
        struct leaf l = {.e = e,
                         .n = {number_of(e, 'b'), number_of(e, 't'), HRA_OFFSET_HEAD, HRA_DILATED_BOTH}};

        if (longnet) {
            put_number(e, n == 0 ? "(" : ",", l.n[SEGMENT]);
            put_number(e, ":", l.n[RATE]);
            answer_leaf(e, part, &l, in_dilated);
        } else {
            put(e, n == 0 ? "(" : ";");
            make(e, part, depth - 1, (without & WITHIN) | NO_MIXTURE);
        }
        for (size_t x = 0; x < size; x++)
            out[x] += part[x];
    }
    put(e, ")");
    free(part);
}

/* Any mask, at most `depth` masks inside one another. */
static void make(struct expression *e, unsigned char *out, int depth, unsigned without)
{
    const int64_t kind = depth == 0 ? 0 : draw(10);

    if (kind == 1 || kind == 2)
        make_combination(e, out, depth, without, kind == 1);
    else if (kind == 3)
        make_not(e, out, depth, without);
    else if (kind == 4 || kind == 5)
        make_choice(e, out, depth, without, kind == 4);
    else if (kind == 6 && !(without & NO_COORDINATES))
        make_slots(e, out, depth, without);
    else if (kind >= 7 && kind <= 8 && !(without & NO_MIXTURE))
        make_mixture(e, out, depth, without, kind == 7);
    else
        make_leaf(e, out, draw(LEAVES - (e->axes == 0 || without & NO_COORDINATES ? ON_GRID : 0)));
}

static hra_order *random_permutation(const hra_domain *d)
{
    int64_t token[LARGE];
    hra_order *o = NULL;

    for (int64_t s = 0; s < d->tokens; s++) {
        const int64_t other = draw(s + 1);
        token[s] = token[other];
        token[other] = s;
    }
    cr_assert(eq(int, hra_order_permutation(&o, d, token), HRA_OK));
    return o;
}

/* Orders of all kinds for a domain; the first is a permutation every second time. */
static void draw_orders(struct expression *e)
{
    static const char *const names[] = {"identity", "hilbert", "morton", "snake"};
    const int64_t begin = draw(6), most = e->axes == 3 ? 5 : 11; /* sides of a box that fits a tile */
    char boxes[40] = "boxes:", residues[48];
    int used = (int)strlen(boxes);

    for (int a = 0; a < (e->axes == 3 ? 3 : 2); a++) {
        const int64_t side = e->axes == 0 ? (e->domain.tokens > 1) + 1 : e->grid[a];
        used += snprintf(boxes + used, sizeof(boxes) - (size_t)used, "%s%d", a == 0 ? "" : "x",
                         (int)draw(side < most ? side : most) + 1);
    }
    snprintf(residues, sizeof(residues), "residues:%d:%d:%s", (int)draw(e->domain.tokens) + 1,
             (int)draw(9) + 1, names[draw(4)]);
    for (int n = 0; n < HRA_MASK_ORDERS; n++) {
        const int64_t name = (begin + n) % 6;
        e->order[n] = n == 0 && draw(2) == 0 ? random_permutation(&e->domain)
                                             : order_of(&e->domain, name == 5   ? residues
                                                                    : name == 4 ? boxes
                                                                                : names[name]);
    }
}

/* A domain, every second one with a grid, and orders for it. */
static struct expression *new_expression(int large)
{
    struct expression *e = calloc(1, sizeof(*e));
    const int sides[2][2] = {{8, 4}, {17, 6}}; /* of 2 and of 3 axes, at most */

    e->axes = (int)draw(4) < 2 ? 0 : (int)draw(2) + 2;
    e->grid[0] = e->grid[1] = e->grid[2] = 1;
    e->domain = domain_of((int)draw(large ? 2 : 4) + 1, draw(large ? LARGE : SMALL) + 1, 0, 0, 0);
    e->domain.batch = large ? 1 : (int)draw(3) + 1;
    for (int a = 0; a < e->axes; a++) {
        e->grid[a] = draw(sides[large][e->axes - 2]) + 1;
        e->domain.grid[a] = e->grid[a];
    }
    if (e->axes > 0)
        e->domain.tokens = e->grid[0] * e->grid[1] * e->grid[2];
    draw_orders(e);
    return e;
}

static void free_expression(struct expression *e)
{
    for (int n = 0; n < HRA_MASK_ORDERS; n++)
        hra_order_destroy(e->order[n]);
    free(e);
}

/* ---- Masks against their formulas -------------------------------------------------------------- */

static void expect_counts(const hra_mask *m, const struct expression *e, unsigned char *counts)
{
    for (int b = 0; b < e->domain.batch; b++)
        for (int h = 0; h < e->domain.heads; h++) {
            const unsigned char *expected = counts_of(e, counts, b, h);

            for (int64_t i = 0; i < e->domain.tokens; i++)
                for (int64_t j = 0; j < e->domain.tokens; j++, expected++)
                    cr_assert(hra_mask_count(m, b, h, i, j) == *expected,
                              "%s: sequence %d head %d query %d key %d: %d, should be %d", e->text, b, h,
                              (int)i, (int)j, hra_mask_count(m, b, h, i, j), *expected);
        }
}

/* Some slots of an order. */
struct run {
    const hra_order *order;
    int64_t slot0, count;
};

static struct run random_run(const hra_order *order, int64_t most)
{
    const int64_t tokens = order->tokens, count = draw(tokens < most ? tokens : most) + 1;
    return (struct run){order, draw(tokens - count + 1), count};
}

static struct hra_box box_of(const hra_mask *m, const struct run *r)
{
    return hra_box_of(m, r->order, r->slot0, r->count);
}

static int count_of(const struct hra_question *ask, const struct run *q, const struct run *k, int64_t r,
                    int64_t c)
{
    return hra_mask_count(ask->mask, ask->batch, ask->head, q->order->slot_to_token[q->slot0 + r],
                          k->order->slot_to_token[k->slot0 + c]);
}

/* Boxes that hold the runs and perhaps more: each pair attends in all branches that answer ALL and in none
 * that answers NONE. */
static void expect_answers(struct hra_question *ask, const struct run *q, const struct run *k,
                           const struct hra_box *q_box, const struct hra_box *k_box)
{
    const int branches = hra_mask_branches(ask->mask, ask->batch, ask->head);
    int answers[3] = {0};

    for (ask->branch = 0; ask->branch < branches; ask->branch++)
        answers[hra_mask_classify(ask, q_box, k_box)]++;
    if (answers[HRA_SOME] == branches)
        return;
    for (int64_t r = 0; r < q->count; r++)
        for (int64_t c = 0; c < k->count; c++) {
            const int count = count_of(ask, q, k, r, c);
            cr_assert(count >= answers[HRA_ALL] && count <= branches - answers[HRA_NONE],
                      "%s: head %d queries %d+%d keys %d+%d: %d all, %d none, but %d", print(ask->mask),
                      ask->head, (int)q->slot0, (int)q->count, (int)k->slot0, (int)k->count, answers[HRA_ALL],
                      answers[HRA_NONE], count);
        }
}

/* Bits of every branch add up to the counts; the answers for the boxes fit the bits. Runs of at most a
 * tile. */
static void expect_tile(struct hra_question *ask, const struct run *q, const struct run *k)
{
    static uint64_t bits[HRA_TILE][HRA_TILE / 64];
    static unsigned char sum[HRA_TILE][HRA_TILE];
    const struct hra_box q_box = box_of(ask->mask, q), k_box = box_of(ask->mask, k);
    struct hra_points *queries = aligned_alloc(64, (hra_points_bytes(ask->mask) + 63) / 64 * 64);
    struct hra_points *keys = aligned_alloc(64, (hra_points_bytes(ask->mask) + 63) / 64 * 64);

    memset(sum, 0, sizeof(sum));
    hra_points_fill(queries, ask->mask, q->order, q->slot0, (int)q->count);
    hra_points_fill(keys, ask->mask, k->order, k->slot0, (int)k->count);
    for (ask->branch = 0; ask->branch < hra_mask_branches(ask->mask, ask->batch, ask->head); ask->branch++) {
        const enum hra_answer answer = hra_mask_classify(ask, &q_box, &k_box);
        int live = 0;

        memset(bits, 0xa5, sizeof(bits));
        hra_mask_bits(ask, queries, keys, bits);
        for (int r = 0; r < HRA_TILE; r++)
            for (int c = 0; c < HRA_TILE; c++) {
                const int bit = (int)(bits[r][c / 64] >> c % 64 & 1);

                live += bit;
                sum[r][c] = (unsigned char)(sum[r][c] + bit);
            }
        cr_assert(answer == HRA_NONE  ? live == 0
                  : answer == HRA_ALL ? live == (int)(q->count * k->count)
                                      : q->count * k->count > 1,
                  "%s: head %d branch %d queries %d+%d keys %d+%d: answer %d, %d live", print(ask->mask),
                  ask->head, ask->branch, (int)q->slot0, (int)q->count, (int)k->slot0, (int)k->count, answer,
                  live);
    }
    for (int r = 0; r < HRA_TILE; r++)
        for (int c = 0; c < HRA_TILE; c++) {
            const int expected = r < q->count && c < k->count ? count_of(ask, q, k, r, c) : 0;
            cr_assert(sum[r][c] == expected,
                      "%s: head %d queries %d+%d keys %d+%d: %d at %d %d, should be %d", print(ask->mask),
                      ask->head, (int)q->slot0, (int)q->count, (int)k->slot0, (int)k->count, sum[r][c], r, c,
                      expected);
        }
    free(queries);
    free(keys);
}

/* Tiles, large boxes and boxes around two others, in the orders of the mask and in one that it cannot
 * name. */
static void expect_boxes(const hra_mask *m, const struct expression *e)
{
    hra_order *other = random_permutation(&e->domain);

    for (int repeat = 0; repeat < 12; repeat++) {
        struct hra_question ask = {m, (int)draw(e->domain.batch), (int)draw(e->domain.heads), 0};
        const int64_t which = draw(HRA_MASK_ORDERS + 1);
        const hra_order *order = which < HRA_MASK_ORDERS ? e->order[which] : other;
        const int64_t most = repeat < 2 ? 1 : repeat % 2 == 0 ? HRA_TILE : 20;
        const struct run q = random_run(order, most), k = random_run(order, most);
        const struct run wide = random_run(order, LARGE), second = random_run(order, LARGE);
        const struct hra_box wide_box = box_of(m, &wide), second_box = box_of(m, &second),
                             k_box = box_of(m, &k);
        struct hra_box joined;

        hra_box_join(&joined, m, &wide_box, &second_box);
        expect_tile(&ask, &q, &k);
        expect_answers(&ask, &wide, &second, &wide_box, &second_box);
        expect_answers(&ask, &wide, &k, &joined, &k_box);
        expect_answers(&ask, &k, &second, &k_box, &joined);
    }
    hra_order_destroy(other);
}

/* Equal keys mean equal answers, and a mask that says that it is the same for all sequences or heads is. */
static void expect_keys(const hra_mask *m, const struct expression *e, unsigned char *counts)
{
    const int heads = e->domain.heads, patterns = e->domain.batch * heads;

    for (int x = 0; x < patterns; x++)
        for (int y = 0; y < x; y++) {
            const int same = hra_mask_key(m, x / heads, x % heads) == hra_mask_key(m, y / heads, y % heads);

            cr_assert(same || (x / heads != y / heads && hra_mask_by_batch(m)) ||
                          (x % heads != y % heads && hra_mask_by_head(m)),
                      "%s: patterns %d and %d", e->text, x, y);
            cr_assert(same == 0 ||
                          memcmp(counts_of(e, counts, 0, x), counts_of(e, counts, 0, y), square(e)) == 0,
                      "%s: patterns %d and %d", e->text, x, y);
        }
}

/* What is printed parses back to the same mask. */
static void expect_text(const hra_mask *m, const struct expression *e, unsigned char *counts)
{
    char *text = print(m);
    hra_mask *again = parse(&e->domain, e->order[0], text);
    char *text_again = print(again);

    cr_assert(eq(str, text_again, text));
    expect_counts(again, e, counts);
    for (int b = 0; b < e->domain.batch; b++)
        for (int h = 0; h < e->domain.heads; h++)
            cr_assert(hra_mask_key(m, b, h) == hra_mask_key(again, b, h), "%s: head %d", text, h);
    cr_assert(hra_mask_hash(m) == hra_mask_hash(again), "%s", text);
    free(text);
    free(text_again);
    hra_mask_destroy(again);
}

static void expect_nothing_outside(const hra_mask *m, const hra_domain *d)
{
    const int64_t far[] = {-1, d->tokens, INT64_MIN, INT64_MAX};

    for (int n = 0; n < 4; n++) {
        cr_assert(hra_mask_count(m, 0, 0, far[n], 0) == 0 && hra_mask_count(m, 0, 0, 0, far[n]) == 0);
        cr_assert(hra_mask_allows(m, 0, 0, far[n], far[n]) == 0);
    }
    cr_assert(hra_mask_count(m, -1, 0, 0, 0) == 0 && hra_mask_count(m, d->batch, 0, 0, 0) == 0);
    cr_assert(hra_mask_count(m, 0, -1, 0, 0) == 0 && hra_mask_count(m, 0, d->heads, 0, 0) == 0);
    cr_assert(hra_mask_count(m, 0, INT64_C(1) << 32, 0, 0) == 0 &&
              hra_mask_count(m, INT64_C(1) << 32, 0, 0, 0) == 0);
}

/* Each leaf 15 times by itself, then masks of masks. */
Test(mask, random_masks_answer_as_their_formulas, .timeout = 300)
{
    for (int seed = 0; seed < 40 * LEAVES; seed++) {
        random_state = (uint64_t)seed * 977 + 5;
        struct expression *e = new_expression(seed % 8 == 7);
        unsigned char *counts = new_counts(e);
        if (seed < 15 * LEAVES)
            make_leaf(e, counts, e->axes > 0 ? seed % LEAVES : seed % (LEAVES - ON_GRID));
        else
            make(e, counts, 3, 0);

        hra_mask *m = parse(&e->domain, e->order[0], e->text);
        expect_counts(m, e, counts);
        expect_boxes(m, e);
        expect_keys(m, e, counts);
        expect_text(m, e, counts);
        expect_nothing_outside(m, &e->domain);
        hra_mask_destroy(m);
        free(counts);
        free_expression(e);
    }
}

/* What is true of the pairs of two runs. */
static enum hra_answer truth(const hra_mask *m, const struct run *q, const struct run *k)
{
    const struct hra_question ask = {m, 0, 0, 0};
    int any = 0, all = 1;

    for (int64_t r = 0; r < q->count; r++)
        for (int64_t c = 0; c < k->count; c++) {
            const int allowed = count_of(&ask, q, k, r, c) > 0;
            any |= allowed;
            all &= allowed;
        }
    return all ? HRA_ALL : any ? HRA_SOME : HRA_NONE;
}

/* A conservative answer must still be a useful one: these masks are told exactly where a box is all of a
 * run of the coordinate that they read, or all of a rectangle. */
struct exact {
    char order[16], text[100];
};

ParameterizedTestParameters(mask, boxes_are_told_exactly_where_they_can_be)
{
    static struct exact rows[] = {
        {"identity", "full"},
        {"identity", "causal"},
        {"identity", "window(3,2)"},
        {"identity", "window(-2,9)"},
        {"identity", "window(-,4)"},
        {"identity", "!window(3,2)"},
        {"identity", "docs(5,11,1,17,6)"},
        {"identity", "global(7)"},
        {"identity", "local_blocks(3,1)"},
        {"identity", "local_blocks(7,0)"},
        {"identity", "global_blocks(3,2,1)"},
        {"identity", "strided_blocks(3,4,0)"},
        {"identity", "dilated(40,4,1)"},
        {"identity", "dilated(40,4,1,both)"},
        {"identity", "dilated(40,4,0,residue)"},
        {"identity", "blocks(4; 0:0 1 2; 1:1; 2:0 1 2 3; 3: 9 8; 9:0 1 2 3 4 5 6 7 8 9)"},
        {"identity", "random_blocks(4,3,1)"},
        {"hilbert", "slots(hilbert; window(3,2))"},
        {"hilbert", "slots(hilbert; docs(5,11,1,17,6))"},
        {"hilbert", "slots(hilbert; dilated(40,4))"},
        {"boxes:2x3", "slots(boxes:2x3; local_blocks(6,1))"},
        {"grid", "grid(1,2)"},
        {"grid", "neighbourhood(3,4)"},
        {"grid", "neighbourhood(1,9)"},
        {"grid", "neighbourhood(3,4; 2,3)"},
    };
    return cr_make_param_array(struct exact, rows, sizeof(rows) / sizeof(rows[0]));
}

/* All tokens of a random rectangle of 5 x 8, as slots of an order that puts them first; the caller's. */
static hra_order *random_rectangle(const hra_domain *d, int64_t *count)
{
    const int64_t high[2] = {draw(5), draw(8)}, low[2] = {draw(high[0] + 1), draw(high[1] + 1)};
    int64_t token[40], inside = 0, outside = 40;
    hra_order *o = NULL;

    for (int64_t t = 0; t < 40; t++)
        token[t / 8 >= low[0] && t / 8 <= high[0] && t % 8 >= low[1] && t % 8 <= high[1] ? inside++
                                                                                         : --outside] = t;
    cr_assert(eq(int, hra_order_permutation(&o, d, token), HRA_OK));
    *count = inside;
    return o;
}

ParameterizedTest(struct exact *e, mask, boxes_are_told_exactly_where_they_can_be)
{
    const hra_domain d = domain_of(1, 0, 5, 8, 0);
    const int on_grid = strcmp(e->order, "grid") == 0;
    hra_order *line = order_of(&d, on_grid ? "identity" : e->order);
    hra_mask *m = parse(&d, NULL, e->text);
    const struct hra_question ask = {m, 0, 0, 0};

    for (int repeat = 0; repeat < 400; repeat++) {
        struct run q = random_run(line, 40), k = random_run(line, 40);
        hra_order *rectangle[2] = {NULL, NULL};

        if (on_grid) {
            rectangle[0] = random_rectangle(&d, &q.count);
            rectangle[1] = random_rectangle(&d, &k.count);
            q = (struct run){rectangle[0], 0, q.count};
            k = (struct run){rectangle[1], 0, k.count};
        }
        const struct hra_box q_box = box_of(m, &q), k_box = box_of(m, &k);
        cr_assert(hra_mask_classify(&ask, &q_box, &k_box) == truth(m, &q, &k), "%s: queries %d+%d keys %d+%d",
                  e->text, (int)q.slot0, (int)q.count, (int)k.slot0, (int)k.count);
        hra_order_destroy(rectangle[0]);
        hra_order_destroy(rectangle[1]);
    }
    hra_mask_destroy(m);
    hra_order_destroy(line);
}

/* The same of runs of an order by residues, whose boxes have every r-th token. */
struct stepping {
    char base[12], order[32], text[48];
    int64_t segment; /* of the order */
};

ParameterizedTestParameters(mask, boxes_of_every_rth_token_are_told_exactly)
{
    static struct stepping rows[] = {
        {"identity", "residues:20:4", "dilated(20,4,1)", 20},
        {"identity", "residues:20:4", "dilated(20,4,1,both)", 20},
        {"identity", "residues:20:4", "dilated(20,4,0,residue)", 20},
        {"identity", "residues:15:4", "dilated(15,4,2,both)", 15}, /* segments begin at other residues */
        {"identity", "residues:15:4", "dilated(15,4,0,residue)", 15},
        {"identity", "residues:40:8", "dilated(40,4,3,both)", 40}, /* of every 8th token every 4th is one */
        {"identity", "residues:40:8", "dilated(40,4,0,residue)", 40},
        {"identity", "residues:40:2", "dilated(40,4,3)", 40}, /* of every 2nd every 4th is or is not */
        {"hilbert", "residues:20:4:hilbert", "slots(hilbert; dilated(20,4,2,both))", 20},
    };
    return cr_make_param_array(struct stepping, rows, sizeof(rows) / sizeof(rows[0]));
}

/* Do the slots of the base go up by one step along a run, in one segment? */
static int is_even(const hra_order *base, const struct run *r, int64_t segment)
{
    int64_t slot[40];

    for (int64_t n = 0; n < r->count; n++)
        slot[n] = base->token_to_slot[r->order->slot_to_token[r->slot0 + n]];
    for (int64_t n = 1; n < r->count; n++)
        if (slot[n] < slot[n - 1] || slot[n] - slot[n - 1] != slot[1] - slot[0] ||
            slot[n] / segment != slot[0] / segment)
            return 0;
    return 1;
}

ParameterizedTest(struct stepping *e, mask, boxes_of_every_rth_token_are_told_exactly)
{
    const hra_domain d = domain_of(1, 0, 5, 8, 0);
    hra_order *base = order_of(&d, e->base), *order = order_of(&d, e->order);
    hra_mask *m = parse(&d, NULL, e->text);
    const struct hra_question ask = {m, 0, 0, 0};
    int answers[3] = {0};

    for (int repeat = 0; repeat < 2000; repeat++) {
        const struct run q = random_run(order, 10), k = random_run(order, 10);
        const struct hra_box q_box = box_of(m, &q), k_box = box_of(m, &k);
        const enum hra_answer answer = hra_mask_classify(&ask, &q_box, &k_box);

        if (!is_even(base, &q, e->segment) || !is_even(base, &k, e->segment))
            continue;
        cr_assert(answer == truth(m, &q, &k), "%s: queries %d+%d keys %d+%d: %d", e->text, (int)q.slot0,
                  (int)q.count, (int)k.slot0, (int)k.count, (int)answer);
        answers[answer] += q.count > 1 && k.count > 1;
    }
    cr_expect(answers[HRA_NONE] > 0 && answers[HRA_ALL] + answers[HRA_SOME] > 0);
    hra_mask_destroy(m);
    hra_order_destroy(base);
    hra_order_destroy(order);
}

static struct hra_box tokens_between(int64_t low, int64_t high)
{
    return (struct hra_box){
        .low = {[HRA_TOKEN] = low}, .high = {[HRA_TOKEN] = high}, .step = {[HRA_TOKEN] = 1}};
}

Test(mask, many_blocks_are_asked_cheaply_and_rightly)
{
    const hra_domain d = domain_of(1, 1000, 0, 0, 0);
    const int64_t row[] = {700, 0, 999}, key[] = {3, 999, 0};
    const struct {
        struct hra_box q, k;
        enum hra_answer answer;
    } rows[] = {
        {tokens_between(0, 999), tokens_between(0, 999), HRA_SOME},
        {tokens_between(1, 699), tokens_between(0, 999), HRA_NONE},
        {tokens_between(600, 700), tokens_between(0, 2), HRA_NONE},
        {tokens_between(600, 700), tokens_between(3, 3), HRA_SOME},
        {tokens_between(700, 700), tokens_between(3, 3), HRA_ALL},
    };
    hra_mask *m = NULL;

    cr_assert(eq(int, hra_mask_blocks(&m, &d, 1, row, key, 3), HRA_OK));
    const struct hra_question ask = {m, 0, 0, 0};
    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++)
        cr_expect(eq(int, hra_mask_classify(&ask, &rows[n].q, &rows[n].k), rows[n].answer), "row %zu", n);
    hra_mask_destroy(m);
}

/* ---- Numbers as large as they can be -------------------------------------------------------------- */

struct pair {
    char text[100];
    int64_t query, key;
    int count;
};

#define END (INT64_MAX - 1) /* the last token */

/* One head of INT64_MAX tokens. */
ParameterizedTestParameters(mask, huge_numbers)
{
    static struct pair rows[] = {
        {"window(-5,9223372036854775807)", END, END, 0},
        {"window(-5,9223372036854775807)", 3, END, 1},
        {"window(9223372036854775807,-9223372036854775808)", 0, 0, 0},
        {"window(-9223372036854775808,-)", END, END, 0},
        {"window(-9223372036854775808,-)", 0, END, 0},
        {"window(-,-)", END, 0, 1},
        {"window(-,-)", 0, END, 1},
        {"causal", END, END, 1},
        {"docs(9223372036854775806,1)", END, 0, 0},
        {"docs(9223372036854775806,1)", END, END, 1},
        {"dilated(9223372036854775807,9223372036854775807)", END, 0, 1},
        {"dilated(9223372036854775807,9223372036854775807,9223372036854775806)", 0, END, 1},
        {"dilated(9223372036854775807,9223372036854775807,9223372036854775806)", 0, END - 1, 0},
        {"dilated(9223372036854775806,2,1,both)", END, END, 0},
        {"dilated(9223372036854775806,2,0,both)", END, END, 1},
        {"dilated(9223372036854775807,9223372036854775806,0,residue)", END, 0, 1},
        {"dilated(9223372036854775807,9223372036854775806,0,residue)", END, 1, 0},
        {"global(9223372036854775807)", END, END, 1},
        {"global(9223372036854775806)", END, END, 0},
        {"blocks(9223372036854775807; 0:0)", 0, END, 1},
        {"local_blocks(1,9223372036854775807)", 0, END, 1},
        {"local_blocks(1,9223372036854775805)", END, 0, 0},
        {"strided_blocks(1,9223372036854775807,0)", END, 0, 0},
        {"strided_blocks(1,9223372036854775806,0)", END, 0, 1},
        {"strided_blocks(1,9223372036854775806,0)", 0, END, 1},
        {"global_blocks(1,9223372036854775807,0)", END, END - 1, 1},
        {"global_blocks(2,4611686018427387902,0)", END, END - 1, 0},
        {"hierarchical_blocks(1,1,62)", END, INT64_C(1) << 62, 1},
        {"hierarchical_blocks(1,9223372036854775807,62)", END, 5, 1},
        {"hierarchical_blocks(1,4611686018427387904,1)", END, 5, 0},
        {"hierarchical_blocks(1,4611686018427387904,1)", END, 4, 1},
        {"random_blocks(9223372036854775807,9223372036854775807,0)", 0, END, 1},
        {"mix(causal; causal; full)", END, END - 5, 3},
        {"!causal", END, END, 0},
    };
    return cr_make_param_array(struct pair, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct pair *p, mask, huge_numbers)
{
    const hra_domain d = domain_of(1, INT64_MAX, 0, 0, 0);
    hra_mask *m = parse(&d, NULL, p->text);
    const struct hra_box q = tokens_between(p->query, p->query), k = tokens_between(p->key, p->key),
                         all = tokens_between(0, END);
    int live = 0;

    cr_expect(eq(int, hra_mask_count(m, 0, 0, p->query, p->key), p->count), "%s", p->text);
    for (int b = 0; b < hra_mask_branches(m, 0, 0); b++) {
        const struct hra_question ask = {m, 0, 0, b};
        const enum hra_answer one = hra_mask_classify(&ask, &q, &k), row = hra_mask_classify(&ask, &q, &all),
                              column = hra_mask_classify(&ask, &all, &k),
                              every = hra_mask_classify(&ask, &all, &all);
        cr_expect(one != HRA_SOME, "%s", p->text);
        const int agree = (row == HRA_SOME || row == one) && (column == HRA_SOME || column == one) &&
                          (every == HRA_SOME || every == one);

        cr_expect(agree, "%s: %d %d %d %d", p->text, one, row, column, every);
        live += one == HRA_ALL;
    }
    cr_expect(eq(int, live, p->count), "%s", p->text);
    hra_mask_destroy(m);
}

/* Coordinates are cut from 32-bit and from 64-bit numbers. */
Test(mask, huge_grids)
{
    const int64_t side = INT64_C(1) << 30;
    const hra_domain d = domain_of(1, 0, side, side, 7);
    const int64_t query = (5 * side + 9) * 7 + 3, key[] = {(6 * side + 0) * 7 + 3, (6 * side + 0) * 7 + 4,
                                                           (4 * side + side - 1) * 7 + 3, (7 * side) * 7 + 3};
    const char *const texts[] = {"grid(1,9223372036854775807,0)", "neighbourhood(3,9223372036854775807,1)",
                                 "neighbourhood(3,1073741824,1; 1,1073741824,1)"};

    for (size_t t = 0; t < sizeof(texts) / sizeof(texts[0]); t++) {
        hra_mask *m = parse(&d, NULL, texts[t]);

        for (int n = 0; n < 4; n++)
            cr_expect(eq(int, hra_mask_count(m, 0, 0, query, key[n]), n % 2 == 0), "%s: key %d", texts[t], n);
        hra_mask_destroy(m);
    }
}

/* Tiles of masks whose numbers are far beyond the tokens. */
Test(mask, tiles_of_huge_numbers)
{
    const hra_domain d = domain_of(1, 0, 15, 20, 0);
    static const char *const texts[] = {
        "window(9223372036854775807,-9223372036854775808)",
        "window(-299,9223372036854775807)",
        "dilated(9223372036854775807,9223372036854775807,299)",
        "dilated(301,9223372036854775807,0,residue)",
        "global(9223372036854775807)",
        "local_blocks(9223372036854775807,9223372036854775807)",
        "strided_blocks(7,9223372036854775807,9223372036854775807)",
        "strided_blocks(7,9223372036854775807,0)",
        "global_blocks(7,9223372036854775807,9223372036854775807)",
        "hierarchical_blocks(1,9223372036854775807,62)",
        "hierarchical_blocks(1,1,62)",
        "random_blocks(3,9223372036854775807,18446744073709551615)",
        "grid(9223372036854775807,0)",
        "neighbourhood(9223372036854775807,1; 9223372036854775807,1)",
    };
    hra_order *order = order_of(&d, "hilbert");

    random_state = 7;
    for (size_t t = 0; t < sizeof(texts) / sizeof(texts[0]); t++) {
        hra_mask *m = parse(&d, NULL, texts[t]);
        struct hra_question ask = {m, 0, 0, 0};

        for (int repeat = 0; repeat < 10; repeat++) {
            const struct run q = random_run(order, HRA_TILE), k = random_run(order, HRA_TILE);
            expect_tile(&ask, &q, &k);
        }
        hra_mask_destroy(m);
    }
    hra_order_destroy(order);
}

/* ---- The pictures of docs/masks.md ---------------------------------------------------------------- */

struct picture {
    int64_t grid[3]; /* all 0: 8 tokens */
    char text[64], rows[100];
};

ParameterizedTestParameters(mask, pictures)
{
    static struct picture rows[] = {
        {{0, 0, 0},
         "causal",
         "#.......\n##......\n###.....\n####....\n#####...\n######..\n#######.\n########\n"},
        {{0, 0, 0},
         "window(2,1)",
         "##......\n###.....\n####....\n.####...\n..####..\n...####.\n....####\n.....###\n"},
        {{0, 0, 0},
         "window(-1,3)",
         ".###....\n..###...\n...###..\n....###.\n.....###\n......##\n.......#\n........\n"},
        {{2, 4, 0},
         "grid(0,1)",
         "##......\n###.....\n.###....\n..##....\n....##..\n....###.\n.....###\n......##\n"},
        {{2, 4, 0},
         "neighbourhood(1,3)",
         "###.....\n###.....\n.###....\n.###....\n....###.\n....###.\n.....###\n.....###\n"},
        {{2, 4, 0},
         "neighbourhood(2,2)",
         "##..##..\n##..##..\n.##..##.\n..##..##\n##..##..\n##..##..\n.##..##.\n..##..##\n"},
        {{1, 8, 0},
         "neighbourhood(1,4; 1,3)",
         "####....\n####....\n####....\n..####..\n..####..\n..####..\n....####\n....####\n"},
        {{0, 0, 0},
         "docs(3,1,4)",
         "###.....\n###.....\n###.....\n...#....\n....####\n....####\n....####\n....####\n"},
        {{0, 0, 0},
         "dilated(5,2)",
         "#.#.#...\n#.#.#...\n#.#.#...\n#.#.#...\n#.#.#...\n.....#.#\n.....#.#\n.....#.#\n"},
        {{0, 0, 0},
         "dilated(5,2,1,both)",
         "........\n.#.#....\n........\n.#.#....\n........\n........\n......#.\n........\n"},
        {{0, 0, 0},
         "dilated(5,2,0,residue)",
         "#.#.#...\n.#.#....\n#.#.#...\n.#.#....\n#.#.#...\n.....#.#\n......#.\n.....#.#\n"},
        {{0, 0, 0},
         "global(2)",
         "########\n########\n##......\n##......\n##......\n##......\n##......\n##......\n"},
        {{0, 0, 0},
         "blocks(3; 0:0; 1:0 1; 2:2 0)",
         "###.....\n###.....\n###.....\n######..\n######..\n######..\n###...##\n###...##\n"},
        {{0, 0, 0},
         "local_blocks(2,1)",
         "####....\n####....\n######..\n######..\n..######\n..######\n....####\n....####\n"},
        {{0, 0, 0},
         "strided_blocks(1,3,1)",
         "##.#..#.\n###.#..#\n.###.#..\n#.###.#.\n.#.###.#\n..#.###.\n#..#.###\n.#..#.##\n"},
        {{0, 0, 0},
         "global_blocks(2,1,0)",
         "########\n########\n####....\n####....\n##..##..\n##..##..\n##....##\n##....##\n"},
        {{0, 0, 0},
         "random_blocks(1,2,7)",
         "##..#...\n.#...##.\n..##..#.\n...#.#.#\n#.#.#...\n...###..\n.##...#.\n...##..#\n"},
        {{0, 0, 0},
         "hierarchical_blocks(1,1,2)",
         "###.#...\n###.#...\n#####...\n#.###...\n#.#####.\n....###.\n....####\n....#.##\n"},
        {{2, 4, 0},
         "slots(snake; window(1,1))",
         "##......\n###.....\n.###....\n..##...#\n....##..\n....###.\n.....###\n...#..##\n"},
        {{0, 0, 0},
         "causal & window(2,0) | blocks(1; 7:0)",
         "#.......\n##......\n###.....\n.###....\n..###...\n...###..\n....###.\n#....###\n"},
        {{0, 0, 0},
         "causal & !window(2,0)",
         "........\n........\n........\n#.......\n##......\n###.....\n####....\n#####...\n"},
        {{0, 0, 0},
         "mix(causal; docs(4,4))",
         "2111....\n2211....\n2221....\n2222....\n11112111\n11112211\n11112221\n11112222\n"},
        {{0, 0, 0},
         "longnet(2:1, 4:2, 8:4)",
         "311.1...\n11......\n1.21....\n..11....\n1...311.\n....11..\n....1.21\n......11\n"},
    };
    return cr_make_param_array(struct picture, rows, sizeof(rows) / sizeof(rows[0]));
}

/* Pairs that attend are # in masks, and the count in mixtures. */
ParameterizedTest(struct picture *p, mask, pictures)
{
    const hra_domain d = domain_of(1, 8, p->grid[0], p->grid[1], p->grid[2]);
    hra_mask *m = parse(&d, NULL, p->text);
    const char *const signs = hra_mask_branches(m, 0, 0) > 1 ? ".1234" : ".#";
    char drawn[100];
    int used = 0;

    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 8; j++)
            drawn[used++] = signs[hra_mask_count(m, 0, 0, i, j)];
        drawn[used++] = '\n';
    }
    drawn[used] = '\0';
    cr_expect(strcmp(drawn, p->rows) == 0, "%s:\n%s\nnot\n%s", p->text, drawn, p->rows);
    hra_mask_destroy(m);
}

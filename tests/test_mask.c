/* test_mask.c - masks against formulas written another way; their text; wrong use. */
#include "src/mask.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 64, HEADS = 5 }; /* at most, in random domains */

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

static hra_mask *parse(const hra_domain *d, const char *text)
{
    hra_mask *m = NULL;

    cr_assert(eq(int, hra_mask_parse(&m, d, text), HRA_OK), "%s: %s", text, hra_last_error());
    return m;
}

static char *print(const hra_mask *m)
{
    const size_t bytes = hra_mask_print(m, NULL, 0);
    char *text = malloc(bytes + 1);

    cr_assert(hra_mask_print(m, text, bytes + 1) == bytes && strlen(text) == bytes);
    return text;
}

/* ---- Random masks: a text and, by plain formulas, all its answers ------------------------------ */

static uint64_t random_state;

/* 0 .. below - 1 */
static int64_t draw(int64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int64_t)((random_state >> 33) % (uint64_t)below);
}

struct expression {
    char text[1 << 15];
    size_t length;
    int64_t grid[3], tokens; /* grid: 1 beyond its axes */
    int heads, axes;
};

struct answers {
    unsigned char allows[HEADS][TOKENS][TOKENS];
};

/* Append a piece of text, white space of any kind around it now and then. */
static void put(struct expression *e, const char *piece)
{
    static const char *const spaces[] = {"", "", "", " ", "\n", "\t ", "  "};

    e->length +=
        (size_t)snprintf(e->text + e->length, sizeof(e->text) - e->length, "%s%s", spaces[draw(7)], piece);
    cr_assert(e->length < sizeof(e->text));
}

static void put_number(struct expression *e, int64_t n)
{
    char piece[24];

    snprintf(piece, sizeof(piece), "%" PRId64, n);
    put(e, piece);
}

static int64_t coordinate(const struct expression *e, int64_t token, int axis)
{
    for (int a = 2; a > axis; a--)
        token /= e->grid[a];
    return token % e->grid[axis];
}

static void make_window(struct expression *e, struct answers *out)
{
    int64_t side[2];

    put(e, "window");
    for (int s = 0; s < 2; s++) {
        put(e, s == 0 ? "(" : ",");
        side[s] = draw(4) == 0 ? 1000 : draw(3 * e->tokens / 2 + 2) - e->tokens / 2;
        if (side[s] == 1000)
            put(e, "-");
        else
            put_number(e, side[s]);
    }
    put(e, ")");
    for (int64_t i = 0; i < e->tokens; i++)
        for (int64_t j = 0; j < e->tokens; j++)
            out->allows[0][i][j] = i - j <= side[0] && j - i <= side[1];
}

static void make_on_grid(struct expression *e, struct answers *out, int neighbourhood)
{
    int64_t n[3] = {0, 0, 0};

    put(e, neighbourhood ? "neighbourhood" : "grid");
    for (int a = 0; a < e->axes; a++) {
        put(e, a == 0 ? "(" : ",");
        n[a] = draw(e->grid[a] + 2) + neighbourhood;
        put_number(e, n[a]);
    }
    put(e, ")");
    for (int64_t i = 0; i < e->tokens; i++)
        for (int64_t j = 0; j < e->tokens; j++) {
            out->allows[0][i][j] = 1;
            for (int a = 0; a < e->axes; a++) {
                const int64_t x = coordinate(e, i, a), y = coordinate(e, j, a), length = e->grid[a];
                int64_t begin = x - n[a] / 2; /* shifted, step by step, until the window fits */

                if (!neighbourhood) {
                    out->allows[0][i][j] &= llabs(x - y) <= n[a];
                    continue;
                }
                if (n[a] > length) {
                    n[a] = length;
                    begin = x - n[a] / 2;
                }
                while (begin + n[a] > length)
                    begin--;
                while (begin < 0)
                    begin++;
                out->allows[0][i][j] &= y >= begin && y < begin + n[a];
            }
        }
}

static void make_docs(struct expression *e, struct answers *out)
{
    int document[TOKENS], count = 0;

    for (int64_t i = 0; i < e->tokens; i++)
        document[i] = i == 0 ? 0 : document[i - 1] + (draw(5) == 0);
    put(e, "docs");
    for (int64_t i = 0, begin = 0; i < e->tokens; i++)
        if (i + 1 == e->tokens || document[i + 1] != document[i]) {
            put(e, count++ == 0 ? "(" : ",");
            put_number(e, i + 1 - begin);
            begin = i + 1;
        }
    put(e, ")");
    for (int64_t i = 0; i < e->tokens; i++)
        for (int64_t j = 0; j < e->tokens; j++)
            out->allows[0][i][j] = document[i] == document[j];
}

static void make_blocks(struct expression *e, struct answers *out)
{
    const int64_t size = 1 + draw(e->tokens + 3), blocks = (e->tokens + size - 1) / size;
    unsigned char listed[TOKENS][TOKENS] = {{0}};

    put(e, "blocks");
    put(e, "(");
    put_number(e, size);
    for (int64_t line = draw(2 * blocks + 1); line > 0; line--) {
        const int64_t q = draw(blocks);

        put(e, ";");
        put_number(e, q);
        put(e, ":");
        for (int64_t n = draw(blocks) + 1; n > 0; n--) {
            const int64_t k = draw(blocks);
            put_number(e, k);
            put(e, " ");
            listed[q][k] = 1;
        }
    }
    put(e, ")");
    for (int64_t i = 0; i < e->tokens; i++)
        for (int64_t j = 0; j < e->tokens; j++)
            out->allows[0][i][j] = listed[i / size][j / size];
}

/* A mask without masks inside, the same for all heads. */
static void make_leaf(struct expression *e, struct answers *out, int64_t kind)
{
    memset(out, 0, sizeof(*out));
    if (kind == 0) {
        put(e, "full");
        memset(out, 1, sizeof(*out));
    } else if (kind == 1) {
        put(e, "causal");
        for (int64_t i = 0; i < e->tokens; i++)
            memset(out->allows[0][i], 1, (size_t)i + 1);
    } else if (kind == 2) {
        make_window(e, out);
    } else if (kind == 3) {
        make_docs(e, out);
    } else if (kind == 4) {
        make_blocks(e, out);
    } else {
        make_on_grid(e, out, kind == 6);
    }
    for (int h = 1; h < e->heads; h++)
        memcpy(out->allows[h], out->allows[0], sizeof(out->allows[0]));
}

/* Any mask, at most `depth` masks inside one another. bare: no & or | without parentheses around: 2 neither,
 * 1 not |, 0 both. */
static void make(struct expression *e, struct answers *out, int depth, int bare)
{
    const int64_t kind = depth == 0 ? 0 : draw(4);
    struct answers *part = malloc(sizeof(*part));

    if (kind == 0) {
        make_leaf(e, out, draw(e->axes > 0 ? 7 : 5));
    } else if (kind == 3) {
        put(e, "heads");
        for (int first = 0, last; first < e->heads; first = last + 1) {
            last = first + (int)draw(e->heads - first);
            put(e, first == 0 ? "(" : ";");
            put_number(e, first);
            if (last > first || draw(2) == 0) {
                put(e, "-");
                put_number(e, last);
            }
            put(e, ":");
            make(e, part, depth - 1, 0);
            for (int h = first; h <= last; h++)
                memcpy(out->allows[h], part->allows[h], sizeof(out->allows[h]));
        }
        put(e, ")");
    } else {
        const int is_and = kind == 1, closed = bare == 2 || (bare == 1 && !is_and) || draw(4) == 0;

        put(e, closed ? "(" : "");
        memset(out, is_and, sizeof(*out));
        for (int64_t n = draw(3) + 2; n > 0; n--) {
            make(e, part, depth - 1, is_and ? 2 : 1);
            for (size_t x = 0; x < sizeof(*out); x++) {
                unsigned char *to = &out->allows[0][0][0] + x, from = (&part->allows[0][0][0])[x];
                *to = is_and ? *to & from : *to | from;
            }
            if (n > 1)
                put(e, is_and ? "&" : "|");
        }
        put(e, closed ? ")" : "");
    }
    free(part);
}

/* A domain of 1 to TOKENS tokens, every second one with a grid. */
static hra_domain random_domain(struct expression *e)
{
    e->heads = (int)draw(HEADS) + 1;
    e->axes = (int)draw(4) < 2 ? 0 : (int)draw(2) + 2;
    e->grid[0] = e->grid[1] = e->grid[2] = 1;
    e->length = 0;
    e->tokens = e->axes == 0 ? draw(TOKENS) + 1 : 1;
    for (int a = 0; a < e->axes; a++) {
        e->grid[a] = draw(e->axes == 2 ? 8 : 4) + 1;
        e->tokens *= e->grid[a];
    }
    hra_domain d = domain_of(e->heads, e->tokens, e->axes > 0 ? e->grid[0] : 0, e->axes > 0 ? e->grid[1] : 0,
                             e->axes > 2 ? e->grid[2] : 0);
    d.batch = (int)draw(3) + 1;
    return d;
}

static void expect_answers(const hra_mask *m, const struct expression *e, const struct answers *a)
{
    for (int h = 0; h < e->heads; h++)
        for (int64_t i = 0; i < e->tokens; i++)
            for (int64_t j = 0; j < e->tokens; j++)
                cr_assert(hra_mask_count(m, 0, h, i, j) == a->allows[h][i][j],
                          "%s: head %d query %d key %d should be %d", e->text, h, (int)i, (int)j,
                          a->allows[h][i][j]);
}

static void expect_rows(const hra_mask *m, const struct expression *e, const struct answers *a)
{
    for (int repeat = 0; repeat < 20; repeat++) {
        const int count = (int)draw(HRA_TILE + 1), h = (int)draw(e->heads);
        const int64_t query = draw(e->tokens);
        int64_t key[HRA_TILE];
        uint64_t bits[HRA_TILE / 64];

        memset(bits, 0xff, sizeof(bits));
        for (int n = 0; n < count; n++)
            key[n] = draw(e->tokens);
        hra_mask_row(m, h, query, key, count, bits);
        for (int n = 0; n < HRA_TILE; n++) {
            const int bit = (int)(bits[n / 64] >> n % 64 & 1);
            const int expected = n < count && a->allows[h][query][key[n]];
            cr_assert(bit == expected, "%s: head %d query %d place %d", e->text, h, (int)query, n);
        }
    }
}

static struct hra_box random_box(const struct hra_space *s, int64_t tokens)
{
    struct hra_box box = hra_box_of(s, draw(tokens));

    for (int64_t more = draw(4); more > 0; more--) {
        const struct hra_box one = hra_box_of(s, draw(tokens));
        box = hra_box_join(&box, &one);
    }
    return box;
}

static int inside(const struct hra_space *s, const struct hra_box *box, int64_t token)
{
    const struct hra_box one = hra_box_of(s, token);

    for (int a = 0; a < s->axes; a++)
        if (one.low[a] < box->low[a] || one.low[a] > box->high[a])
            return 0;
    return token >= box->first && token <= box->last;
}

/* What is true of the pairs in the boxes. */
static enum hra_answer truth(const struct hra_space *s, const struct answers *a, int h,
                             const struct hra_box *q, const struct hra_box *k)
{
    int any = 0, all = 1;

    for (int64_t i = 0; i < s->tokens; i++)
        for (int64_t j = 0; j < s->tokens; j++)
            if (inside(s, q, i) && inside(s, k, j)) {
                any |= a->allows[h][i][j];
                all &= a->allows[h][i][j];
            }
    return all ? HRA_ALL : any ? HRA_SOME : HRA_NONE;
}

static void expect_boxes(const hra_mask *m, const struct expression *e, const struct answers *a)
{
    const struct hra_space *s = hra_mask_space(m);

    for (int repeat = 0; repeat < 40; repeat++) {
        const struct hra_box q = random_box(s, e->tokens), k = random_box(s, e->tokens);
        const int h = (int)draw(e->heads), single = q.first == q.last && k.first == k.last;
        const enum hra_answer said = hra_mask_classify(m, h, &q, &k);

        cr_assert(said == HRA_SOME ? !single : said == truth(s, a, h, &q, &k),
                  "%s: head %d queries %d-%d keys %d-%d said %d", e->text, h, (int)q.first, (int)q.last,
                  (int)k.first, (int)k.last, said);
    }
}

static void expect_text(const hra_mask *m, const hra_domain *d, const struct expression *e,
                        const struct answers *a)
{
    char *text = print(m);
    hra_mask *again = parse(d, text);
    char *text_again = print(again);

    cr_assert(eq(str, text_again, text));
    expect_answers(again, e, a);
    for (int h = 0; h < e->heads; h++) {
        cr_assert(hra_mask_key(m, h) == hra_mask_key(again, h));
        for (int g = 0; g < h; g++)
            if (hra_mask_key(m, h) == hra_mask_key(m, g))
                cr_assert(memcmp(a->allows[h], a->allows[g], sizeof(a->allows[0])) == 0, "%s: heads %d %d",
                          text, h, g);
    }
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
    cr_assert(hra_mask_count(m, d->batch - 1, d->heads - 1, 0, 0) ==
              hra_mask_count(m, 0, d->heads - 1, 0, 0));
    cr_assert(hra_mask_count(m, 0, INT64_C(1) << 32, 0, 0) == 0);
}

Test(mask, random_masks_answer_as_their_formulas, .timeout = 120)
{
    struct expression *e = malloc(sizeof(*e));
    struct answers *a = malloc(sizeof(*a));

    for (int seed = 0; seed < 300; seed++) {
        random_state = (uint64_t)seed * 977 + 5;
        const hra_domain d = random_domain(e);
        if (seed < 100)
            make_leaf(e, a, seed % (e->axes > 0 ? 7 : 5));
        else
            make(e, a, 3, 0);

        hra_mask *m = parse(&d, e->text);
        expect_answers(m, e, a);
        expect_rows(m, e, a);
        expect_boxes(m, e, a);
        expect_text(m, &d, e, a);
        expect_nothing_outside(m, &d);
        hra_mask_destroy(m);
    }
    free(e);
    free(a);
}

/* A conservative answer must still be a useful one: on full boxes these masks are told exactly. */
Test(mask, boxes_are_told_exactly_where_they_can_be, .timeout = 120)
{
    static const char *const texts[] = {"full",
                                        "causal",
                                        "window(3,2)",
                                        "window(-2,9)",
                                        "window(-,4)",
                                        "grid(1,2)",
                                        "neighbourhood(3,4)",
                                        "neighbourhood(1,9)",
                                        "docs(5,11,1,17,6)",
                                        "blocks(4; 0:0 1 2; 1:1; 2:0 1 2 3; 3: 9 8; 9:0 1 2 3 4 5 6 7 8 9)"};
    const hra_domain d = domain_of(1, 0, 5, 8, 0);
    const int64_t tokens = 40;
    struct answers *a = calloc(1, sizeof(*a));

    for (size_t n = 0; n < sizeof(texts) / sizeof(texts[0]); n++) {
        const int on_grid = strncmp(texts[n], "grid", 4) == 0 || strncmp(texts[n], "neigh", 5) == 0;
        hra_mask *m = parse(&d, texts[n]);
        const struct hra_space *s = hra_mask_space(m);

        for (int64_t i = 0; i < tokens; i++)
            for (int64_t j = 0; j < tokens; j++)
                a->allows[0][i][j] = (unsigned char)hra_mask_count(m, 0, 0, i, j);
        for (int repeat = 0; repeat < 400; repeat++) {
            struct hra_box q = random_box(s, tokens), k = random_box(s, tokens);

            if (on_grid) { /* all the tokens of a rectangle */
                q.first = k.first = 0;
                q.last = k.last = tokens - 1;
            } else { /* all the tokens of a range */
                q.low[0] = q.low[1] = k.low[0] = k.low[1] = 0;
                q.high[0] = q.high[1] = k.high[0] = k.high[1] = 9;
            }
            cr_assert(hra_mask_classify(m, 0, &q, &k) == truth(s, a, 0, &q, &k),
                      "%s: queries %d-%d keys %d-%d", texts[n], (int)q.first, (int)q.last, (int)k.first,
                      (int)k.last);
        }
        hra_mask_destroy(m);
    }
    free(a);
}

Test(mask, many_blocks_are_asked_cheaply_and_rightly)
{
    const hra_domain d = domain_of(1, 1000, 0, 0, 0);
    const int64_t row[] = {700, 0, 999}, key[] = {3, 999, 0};
    hra_mask *m = NULL;

    cr_assert(eq(int, hra_mask_blocks(&m, &d, 1, row, key, 3), HRA_OK));
    const struct hra_box all = {0, 999, {0}, {0}}, empty = {1, 699, {0}, {0}}, few = {600, 700, {0}, {0}};
    const struct hra_box to_2 = {0, 2, {0}, {0}}, three = {3, 3, {0}, {0}}, at_700 = {700, 700, {0}, {0}};
    cr_expect(hra_mask_classify(m, 0, &all, &all) == HRA_SOME);
    cr_expect(hra_mask_classify(m, 0, &empty, &all) == HRA_NONE);
    cr_expect(hra_mask_classify(m, 0, &few, &to_2) == HRA_NONE);
    cr_expect(hra_mask_classify(m, 0, &few, &three) == HRA_SOME);
    cr_expect(hra_mask_classify(m, 0, &at_700, &three) == HRA_ALL);
    hra_mask_destroy(m);
}

/* Coordinates are cut from 32-bit and from 64-bit numbers. */
Test(mask, huge_grids_and_windows)
{
    const int64_t side = INT64_C(1) << 30;
    const hra_domain d = domain_of(1, 0, side, side, 7);
    hra_mask *m = parse(&d, "grid(1,9223372036854775807,0)");
    const int64_t query = (5 * side + 9) * 7 + 3, key[] = {(6 * side + 0) * 7 + 3, (6 * side + 0) * 7 + 4,
                                                           (4 * side + side - 1) * 7 + 3, (7 * side) * 7 + 3};
    uint64_t bits[HRA_TILE / 64];

    hra_mask_row(m, 0, query, key, 4, bits);
    cr_expect(eq(u64, bits[0], 5));
    hra_mask_destroy(m);

    const hra_domain line = domain_of(1, INT64_MAX, 0, 0, 0);
    const int64_t end = INT64_MAX - 1;
    const struct {
        const char *text;
        int64_t query, key;
        int allows;
    } rows[] = {
        {"window(-5,9223372036854775807)", end, end, 0},
        {"window(-5,9223372036854775807)", 3, end, 1},
        {"window(9223372036854775807,-9223372036854775808)", 0, 0, 0},
        {"window(-9223372036854775808,-)", end, end, 0},
        {"window(-9223372036854775808,-)", 0, end, 0},
        {"window(-,-)", end, 0, 1},
        {"window(-,-)", 0, end, 1},
        {"causal", end, end, 1},
        {"docs(9223372036854775806,1)", end, 0, 0},
        {"docs(9223372036854775806,1)", end, end, 1},
        {"blocks(9223372036854775807; 0:0)", 0, end, 1},
    };
    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++) {
        m = parse(&line, rows[n].text);
        cr_expect(eq(int, hra_mask_count(m, 0, 0, rows[n].query, rows[n].key), rows[n].allows), "%s",
                  rows[n].text);
        hra_mask_destroy(m);
    }
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
        {{0, 0, 0},
         "docs(3,1,4)",
         "###.....\n###.....\n###.....\n...#....\n....####\n....####\n....####\n....####\n"},
        {{0, 0, 0},
         "blocks(3; 0:0; 1:0 1; 2:2 0)",
         "###.....\n###.....\n###.....\n######..\n######..\n######..\n###...##\n###...##\n"},
        {{0, 0, 0},
         "causal & window(2,0) | blocks(1; 7:0)",
         "#.......\n##......\n###.....\n.###....\n..###...\n...###..\n....###.\n#....###\n"},
    };
    return cr_make_param_array(struct picture, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct picture *p, mask, pictures)
{
    const hra_domain d = domain_of(1, 8, p->grid[0], p->grid[1], p->grid[2]);
    hra_mask *m = parse(&d, p->text);
    char drawn[100];
    int used = 0;

    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 8; j++)
            drawn[used++] = hra_mask_allows(m, 0, 0, i, j) ? '#' : '.';
        drawn[used++] = '\n';
    }
    drawn[used] = '\0';
    cr_expect(strcmp(drawn, p->rows) == 0, "%s:\n%s\nnot\n%s", p->text, drawn, p->rows);
    hra_mask_destroy(m);
}

/* ---- Text ------------------------------------------------------------------------------------------- */

struct rewritten {
    char text[120], printed[120];
};

ParameterizedTestParameters(mask, prints_canonical_text)
{
    static struct rewritten rows[] = {
        {" full\n", "full"},
        {"window( 4095 , 0 )", "window(4095,0)"},
        {"window(-,-1)", "window(-,-1)"},
        {"window(9223372036854775807,-9223372036854775808)", "window(-,-9223372036854775808)"},
        {"window(0007,0)", "window(7,0)"},
        {"neighbourhood(3,99)", "neighbourhood(3,4)"},
        {"grid(3,99)", "grid(3,99)"},
        {"docs(1,2 , 13)", "docs(1,2,13)"},
        {"blocks(4;2:3 1 1;0:0;2:0)", "blocks(4; 0:0; 2:0 1 3)"},
        {"blocks(16)", "blocks(16)"},
        {"causal&full|full", "causal & full | full"},
        {"causal&(full|full)", "causal & (full | full)"},
        {"(causal&full)|full", "causal & full | full"},
        {"(((causal)))", "causal"},
        {"full|(full|(causal|full))", "full | full | causal | full"},
        {"(full&causal)&(full&full)", "full & causal & full & full"},
        {"heads(4-7:causal;0-3:full|causal)", "heads(0-3: full | causal; 4-7: causal)"},
        {"heads(7:causal;0-0:full;1-6:window(1,0))", "heads(0: full; 1-6: window(1,0); 7: causal)"},
        {"heads(0-7:full)&causal", "heads(0-7: full) & causal"},
        {"heads(0-7:heads(0-3:full;4-7:causal))", "heads(0-7: heads(0-3: full; 4-7: causal))"},
    };
    return cr_make_param_array(struct rewritten, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct rewritten *r, mask, prints_canonical_text)
{
    const hra_domain d = domain_of(8, 0, 4, 4, 0);
    hra_mask *m = parse(&d, r->text);
    char *text = print(m);

    cr_expect(eq(str, text, r->printed));
    free(text);
    hra_mask_destroy(m);
}

Test(mask, print_cuts_to_fit)
{
    const hra_domain d = domain_of(1, 16, 0, 0, 0);
    hra_mask *m = parse(&d, "window(12,3)");
    char out[20];

    for (size_t bytes = 0; bytes <= 14; bytes++) {
        memset(out, '~', sizeof(out));
        cr_expect(eq(sz, hra_mask_print(m, out, bytes), 12));
        if (bytes > 0)
            cr_expect(strncmp(out, "window(12,3)", bytes - 1) == 0 &&
                      strlen(out) == (bytes > 12 ? 12 : bytes - 1));
        cr_expect(out[bytes > 13 ? 13 : bytes] == '~', "%zu bytes", bytes);
    }
    cr_expect(eq(sz, hra_mask_print(m, NULL, 0), 12));
    cr_expect(eq(sz, hra_mask_print(NULL, out, 4), 0));
    cr_expect(eq(int, out[0], 0));
    hra_mask_destroy(m);
}

Test(mask, and_binds_tighter_than_or)
{
    const hra_domain d = domain_of(1, 4, 0, 0, 0);
    hra_mask *a = parse(&d, "full | full & blocks(4)"), *b = parse(&d, "(full | full) & blocks(4)");

    cr_expect(hra_mask_allows(a, 0, 0, 1, 2) && !hra_mask_allows(b, 0, 0, 1, 2));
    hra_mask_destroy(a);
    hra_mask_destroy(b);
}

Test(mask, keys_tell_patterns_apart)
{
    const hra_domain d = domain_of(6, 16, 0, 0, 0);
    hra_mask *m =
        parse(&d, "causal & heads(0-1: full; 2: window(4,0); 3-5: heads(0-4: full; 5: window(5,0)))");

    cr_expect(hra_mask_key(m, 0) == hra_mask_key(m, 1) && hra_mask_key(m, 0) == hra_mask_key(m, 4));
    cr_expect(hra_mask_key(m, 0) != hra_mask_key(m, 2) && hra_mask_key(m, 2) != hra_mask_key(m, 5));
    cr_expect(hra_mask_key(m, 0) != hra_mask_key(m, 5));
    hra_mask_destroy(m);
}

/* ---- Wrong texts ------------------------------------------------------------------------------------ */

struct wrong {
    char text[80], says[120];
};

/* Domain: 8 heads, 16 tokens on a 4 x 4 grid. */
ParameterizedTestParameters(mask, refuses_text)
{
    static struct wrong rows[] = {
        {"", "character 1: expected a mask: full, causal"},
        {"   ", "character 4: expected a mask"},
        {"casual", "character 1: expected a mask: full, causal, window, grid, neighbourhood, docs, blocks, "
                   "heads or '('"},
        {"casual", "heads or '(', found 'casual'"},
        {"Full", "found 'Full'"},
        {"full2", "character 1: expected a mask"},
        {"full full", "character 6: expected '&', '|' or the end of the text after a mask, found 'full'"},
        {"full)", "character 5: expected '&', '|' or the end of the text after a mask, found ')'"},
        {"full &", "character 7: expected a mask"},
        {"| full", "character 1: expected a mask"},
        {"full && full", "character 7: expected a mask"},
        {"(full",
         "character 6: expected '&', '|' or ')' after a mask in parentheses, found the end of the text"},
        {"()", "character 2: expected a mask"},
        {"full & \x01", "or '(', found the byte 0x01"},
        {"window", "character 7: expected '(' after window, found the end of the text"},
        {"window()", "character 8: expected a number of tokens or '-', found ')'"},
        {"window(3)", "character 9: expected ',' after the left side of the window, found ')'"},
        {"window(3 4)", "character 10: expected ',' after the left side of the window, found '4'"},
        {"window(3,x)", "character 10: expected a number of tokens or '-', found 'x'"},
        {"window(3,0x)", "character 11: expected ')' after the right side of the window, found 'x'"},
        {"window(3,+1)", "character 10: expected a number of tokens or '-', found '+'"},
        {"window(- 5,1)", "character 10: expected ',' after the left side of the window, found '5'"},
        {"window(--5,1)", "character 9: expected ',' after the left side"},
        {"window(9223372036854775808,0)", "character 8: the number is too large for 64 bits"},
        {"window(0,-9223372036854775809)", "character 10: the number is too large for 64 bits"},
        {"window(0,99999999999999999999999)", "character 10: the number is too large for 64 bits"},
        {"grid(1)",
         "character 7: expected ',' after radius 1 of 2, the axes of the domain's grid, found ')'"},
        {"grid(1,2,3)",
         "character 9: expected ')' after radius 2 of 2, the axes of the domain's grid, found ','"},
        {"grid(-1,2)", "character 6: expected a radius, found '-'"},
        {"neighbourhood(0,2)", "character 15: expected an extent from 1 to 9223372036854775807, found 0"},
        {"neighbourhood(2,2", "character 18: expected ')' after extent 2 of 2"},
        {"docs()", "character 6: expected the length of a document, found ')'"},
        {"docs(4,0,12)", "character 8: expected the length of a document from 1 to 16, found 0"},
        {"docs(17)", "character 6: expected the length of a document from 1 to 16, found 17"},
        {"full & docs(4,4)", "character 8: docs mask: the 2 lengths add up to 8, the domain has 16 tokens"},
        {"docs(10,10)", "character 1: docs mask: the first 2 lengths add up to more than the 16 tokens"},
        {"docs(4;12)", "character 7: expected ',' or ')' after the length of a document, found ';'"},
        {"docs(16,)", "character 9: expected the length of a document"},
        {"blocks()", "character 8: expected the tokens of a block, found ')'"},
        {"blocks(0; 0:0)", "character 8: expected the tokens of a block from 1 to"},
        {"blocks(4, 0:0)", "character 9: expected ';' or ')' after the tokens of a block, found ','"},
        {"blocks(4; 4:0)", "character 11: expected a query block from 0 to 3, found 4"},
        {"blocks(4; 0:0 1 7)", "character 17: expected a key block from 0 to 3, found 7"},
        {"blocks(4; 0 0)", "character 13: expected ':' after the query block, found '0'"},
        {"blocks(4; 0:)", "character 13: expected a key block, found ')'"},
        {"blocks(4; 0:0;)", "character 15: expected a query block, found ')'"},
        {"blocks(4; 0:0, 1)", "character 14: expected a key block, ';' or ')' after a key block, found ','"},
        {"heads(0-7 full)", "character 11: expected ':' after the heads, found 'full'"},
        {"heads(0: full)", "character 1: heads mask: head 1 of 8 is in no range"},
        {"heads(0-7: full; 3: full)", "character 1: heads mask: head 3 is in two ranges, 0 to 7 and 3 to 3"},
        {"heads(0-3: full; 5-7: full)", "head 4 of 8 is in no range"},
        {"heads(0-8: full)", "character 9: expected the last head of a range from 0 to 7, found 8"},
        {"heads(8: full)", "character 7: expected a head from 0 to 7, found 8"},
        {"heads(3-2: full)", "character 9: expected the last head of a range from 3 to 7, found 2"},
        {"heads(0,7: full)", "character 8: expected '-' or ':' after the head, found ','"},
        {"heads(0-7: full",
         "character 16: expected '&', '|', ';' or ')' after a mask in heads(), found the end"},
        {"heads(0-7: full;)", "character 17: expected a head, found ')'"},
        {"heads()", "character 7: expected a head, found ')'"},
    };
    return cr_make_param_array(struct wrong, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct wrong *w, mask, refuses_text)
{
    const hra_domain d = domain_of(8, 0, 4, 4, 0);
    hra_mask *m = NULL;

    cr_expect(eq(int, hra_mask_parse(&m, &d, w->text), HRA_ERR_ARG), "%s", w->text);
    cr_expect(strstr(hra_last_error(), w->says) != NULL, "%s: '%s' does not say '%s'", w->text,
              hra_last_error(), w->says);
    cr_expect(strncmp(hra_last_error(), "mask: character ", 16) == 0);
    cr_expect(m == NULL, "nothing is written on failure");
}

/* `begin` count times, a mask, `end` count times */
static char *nested(const char *begin, const char *end, int count)
{
    char *text = calloc((strlen(begin) + strlen(end)) * (size_t)count + 8, 1), *at = text;

    for (int n = 0; n < count; n++)
        at = stpcpy(at, begin);
    at = stpcpy(at, "full");
    for (int n = 0; n < count; n++)
        at = stpcpy(at, end);
    return text;
}

Test(mask, refuses_deep_nesting)
{
    static const char *const around[][2] = {{"(", ")"}, {"heads(0:", ")"}, {"(full|full&", ")"}};
    const hra_domain d = domain_of(1, 4, 0, 0, 0);
    hra_mask *m = NULL;

    for (int n = 0; n < 3; n++) {
        char *text = nested(around[n][0], around[n][1], 10000);
        cr_expect(eq(int, hra_mask_parse(&m, &d, text), HRA_ERR_ARG));
        cr_expect(strstr(hra_last_error(), "mask: character ") != NULL &&
                      strstr(hra_last_error(), "200 deep") != NULL,
                  "'%s'", hra_last_error());
        free(text);
        text = nested(around[n][0], "", 10000); /* never closed */
        cr_expect(eq(int, hra_mask_parse(&m, &d, text), HRA_ERR_ARG));
        free(text);
    }
    char *text = nested("(", ")", 201);
    cr_expect(eq(int, hra_mask_parse(&m, &d, text), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "character 201: ") != NULL, "'%s'", hra_last_error());
    free(text);
    text = nested("(", ")", 200);
    m = parse(&d, text);
    free(text);
    hra_mask_destroy(m);

    /* long is not deep */
    text = nested("full & causal | ", "", 20000);
    m = parse(&d, text);
    cr_expect(eq(int, hra_mask_allows(m, 0, 0, 0, 3), 1));
    hra_mask_destroy(m);
    free(text);
}

Test(mask, combinations_stop_at_a_depth_and_a_size)
{
    const hra_domain d = domain_of(1, 4, 0, 0, 0);
    hra_mask *m = parse(&d, "full"), *leaf = parse(&d, "causal"), *next = NULL;
    hra_status status = HRA_OK;
    int steps = 0;

    for (; status == HRA_OK && steps < 1000; steps++) {
        status = steps % 2 == 0 ? hra_mask_and(&next, leaf, m) : hra_mask_or(&next, leaf, m);
        if (status == HRA_OK) {
            hra_mask_destroy(m);
            m = next;
        }
    }
    cr_expect(eq(int, status, HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "nested more than 200 deep") != NULL, "'%s'", hra_last_error());
    cr_expect(eq(int, steps, 200));
    char *text = print(m); /* what combinations allow, the text does */
    hra_mask *again = parse(&d, text);
    free(text);
    hra_mask_destroy(again);
    hra_mask_destroy(m);

    m = hra_mask_keep(leaf);
    for (steps = 0, status = HRA_OK; status == HRA_OK && steps < 100; steps++) {
        status = hra_mask_and(&next, m, m);
        if (status == HRA_OK) {
            hra_mask_destroy(m);
            m = next;
        }
    }
    cr_expect(eq(int, status, HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "more than 1048576 parts") != NULL, "'%s'", hra_last_error());
    hra_mask_destroy(m);
    hra_mask_destroy(leaf);
}

/* ---- Masks without text ----------------------------------------------------------------------------- */

Test(mask, constructors_make_what_the_text_makes)
{
    const hra_domain d = domain_of(4, 0, 4, 4, 0);
    int64_t pair[] = {3, 3}, length[] = {5, 11}, row[] = {2, 0, 2}, key[] = {1, 0, 1};
    int first[] = {2, 0}, last[] = {3, 1};
    hra_mask *m[11];

    cr_assert(eq(int, hra_mask_full(&m[0], &d), HRA_OK));
    cr_assert(eq(int, hra_mask_causal(&m[1], &d), HRA_OK));
    cr_assert(eq(int, hra_mask_window(&m[2], &d, HRA_UNBOUNDED, -1), HRA_OK));
    cr_assert(eq(int, hra_mask_grid(&m[3], &d, pair), HRA_OK));
    cr_assert(eq(int, hra_mask_neighbourhood(&m[4], &d, pair), HRA_OK));
    cr_assert(eq(int, hra_mask_docs(&m[5], &d, length, 2), HRA_OK));
    cr_assert(eq(int, hra_mask_blocks(&m[6], &d, 5, row, key, 3), HRA_OK));
    cr_assert(eq(int, hra_mask_blocks(&m[7], &d, 5, NULL, NULL, 0), HRA_OK));
    cr_assert(eq(int, hra_mask_or(&m[8], m[1], m[2]), HRA_OK));
    cr_assert(eq(int, hra_mask_and(&m[9], m[5], m[8]), HRA_OK));
    const hra_mask *const choice[] = {m[9], m[0]};
    cr_assert(eq(int, hra_mask_heads(&m[10], first, last, choice, 2), HRA_OK));
    memset(pair, 0x55, sizeof(pair)); /* arrays are copied, parts are held */
    memset(length, 0x55, sizeof(length));
    memset(row, 0x55, sizeof(row));

    static const char *const texts[] = {"full",
                                        "causal",
                                        "window(-,-1)",
                                        "grid(3,3)",
                                        "neighbourhood(3,3)",
                                        "docs(5,11)",
                                        "blocks(5; 0:0; 2:1)",
                                        "blocks(5)",
                                        "causal | window(-,-1)",
                                        "docs(5,11) & (causal | window(-,-1))",
                                        "heads(0-1: full; 2-3: docs(5,11) & (causal | window(-,-1)))"};
    for (int n = 0; n < 11; n++) {
        if (n == 9)
            for (int part = 0; part < 9; part++)
                hra_mask_destroy(m[part]);
        char *text = print(m[n]);
        hra_mask *same = parse(&d, texts[n]);
        cr_expect(eq(str, text, (char *)texts[n]));
        for (int h = 0; h < 4; h++)
            for (int i = 0; i < 256; i++)
                cr_assert(hra_mask_count(m[n], 0, h, i / 16, i % 16) ==
                          hra_mask_count(same, 0, h, i / 16, i % 16));
        free(text);
        hra_mask_destroy(same);
    }
    hra_mask_destroy(m[9]);
    hra_mask_destroy(m[10]);
    hra_mask_destroy(NULL);
}

static void expect_error(hra_status status, const char *says)
{
    cr_expect(eq(int, status, HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), says) != NULL, "'%s' does not say '%s'", hra_last_error(), says);
}

Test(mask, constructors_refuse)
{
    const hra_domain d = domain_of(4, 16, 4, 4, 0), line = domain_of(4, 16, 0, 0, 0),
                     bad = domain_of(1, 0, 0, 0, 0);
    const int64_t minus[] = {1, -1}, zero[] = {0, 16}, ones[] = {1, 1}, four[] = {0, 4};
    const hra_domain others[] = {domain_of(3, 16, 4, 4, 0), line, domain_of(4, 16, 2, 8, 0),
                                 domain_of(4, 17, 0, 0, 0)};
    static const char *const differs[] = {"heads 4 and 3", "axes of the grid 2 and 0", "grid axis 0 4 and 2",
                                          "tokens 16 and 17"};
    hra_mask *m = NULL, *full = parse(&d, "full");

    expect_error(hra_mask_full(NULL, &d), "full mask: out is a NULL pointer");
    expect_error(hra_mask_causal(&m, NULL), "domain: NULL pointer");
    expect_error(hra_mask_window(&m, &bad, 1, 1), "tokens is 0");
    expect_error(hra_mask_parse(&m, &bad, "full"), "tokens is 0");
    expect_error(hra_mask_parse(&m, &d, NULL), "text is a NULL pointer");
    expect_error(hra_mask_parse(NULL, &d, "full"), "out is a NULL pointer");
    expect_error(hra_mask_parse(&m, &line, "full & grid(1,1)"),
                 "character 8: grid needs a domain with a grid");
    expect_error(hra_mask_grid(&m, &line, ones), "grid mask: the domain of 16 tokens has no grid");
    expect_error(hra_mask_grid(&m, &d, minus), "grid mask: the radius of axis 1 is -1, it must be 0 or more");
    expect_error(hra_mask_grid(&m, &d, NULL), "radius is a NULL pointer");
    expect_error(hra_mask_neighbourhood(&m, &d, zero), "the extent of axis 0 is 0, it must be 1 or more");
    expect_error(hra_mask_docs(&m, &d, zero, 2), "length 0 is 0");
    expect_error(hra_mask_docs(&m, &d, ones, 2), "the 2 lengths add up to 2, the domain has 16 tokens");
    expect_error(hra_mask_docs(&m, &d, ones, 0), "count is 0");
    expect_error(hra_mask_docs(&m, &d, NULL, 2), "length is a NULL pointer");
    expect_error(hra_mask_docs(&m, &d, (const int64_t[]){1, INT64_MAX}, 2),
                 "the first 2 lengths add up to more");
    expect_error(hra_mask_blocks(&m, &d, 0, ones, ones, 2), "blocks of 0 tokens");
    expect_error(hra_mask_blocks(&m, &d, 4, ones, four, 2),
                 "pair 1 is query block 1, key block 4, they must be 0 to 3");
    expect_error(hra_mask_blocks(&m, &d, 4, minus, ones, 2), "pair 1 is query block -1");
    expect_error(hra_mask_blocks(&m, &d, 4, ones, NULL, 2), "key_block is a NULL pointer");
    expect_error(hra_mask_blocks(&m, &d, 4, ones, ones, -1), "count is -1");
    expect_error(hra_mask_and(&m, full, NULL), "and mask: mask 1 is a NULL pointer");
    expect_error(hra_mask_or(NULL, full, full), "or mask: out is a NULL pointer");
    for (size_t n = 0; n < sizeof(others) / sizeof(others[0]); n++) {
        hra_mask *other = parse(&others[n], "full");
        expect_error(hra_mask_or(&m, full, other), differs[n]);
        hra_mask_destroy(other);
    }

    const hra_mask *const masks[] = {full, full};
    expect_error(hra_mask_heads(&m, (int[]){0, 3}, (int[]){1, 3}, masks, 2),
                 "heads mask: head 2 of 4 is in no range");
    expect_error(hra_mask_heads(&m, (int[]){0, 1}, (int[]){1, 3}, masks, 2),
                 "head 1 is in two ranges, 0 to 1 and 1 to 3");
    expect_error(hra_mask_heads(&m, (int[]){0, 2}, (int[]){1, 4}, masks, 2),
                 "range 1 is heads 2 to 4, the domain has heads 0 to 3");
    expect_error(hra_mask_heads(&m, (int[]){2, 0}, (int[]){1, 3}, masks, 2), "range 0 is heads 2 to 1");
    expect_error(hra_mask_heads(&m, (int[]){0}, (int[]){3}, masks, 0), "count is 0");
    expect_error(hra_mask_heads(&m, NULL, (int[]){3}, masks, 1), "first is a NULL pointer");
    expect_error(hra_mask_heads(&m, (int[]){0}, (int[]){3}, NULL, 1), "mask is a NULL pointer");
    cr_expect(m == NULL, "nothing is written on failure");
    cr_expect(eq(int, hra_mask_count(NULL, 0, 0, 0, 0), 0));
    hra_mask_destroy(full);
}

/* mask_text.c - masks from text and masks to text. docs/masks.md has the grammar.
 *
 * The reader is one function for each rule of the grammar, and a table of the words that name masks. A
 * character is named by its place in the text, counted from 1. */
#include "src/mask.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const char *text, *at; /* the whole, and the next character */
    const hra_domain *domain;
    const hra_order *order;            /* of a slots() that names none; NULL: there is none */
    struct hra_space space;            /* the domain's */
    int depth;                         /* masks inside masks around `at` */
    hra_order *named[HRA_MASK_ORDERS]; /* [names] orders there are already, a reference held on each */
    int names;
};

/* A number of a mask: `what` names it in messages. */
struct number {
    const char *what;
    int64_t low;
    uint64_t high;
};

/* A word that names a mask. */
struct word {
    const char *word;
    enum hra_mask_kind kind;
    /* Reads what follows the word and '('; `at` is where the word begins. */
    hra_status (*read)(struct reader *r, const struct word *word, const char *at, hra_mask **out);
    struct number number[3]; /* that stand in the parentheses, for masks that have nothing else there */
};

/* Masks read so far, of one combination or choice. */
struct parts {
    int count, room;
    hra_mask **mask;   /* [count], a reference held on each */
    int *first, *last; /* [count] ranges of heads or sequences */
};

static const char *const mode_name[] = {"keys", "both", "residue"};

static hra_status read_mask(struct reader *r, hra_mask **out);

/* ---- Characters and numbers ------------------------------------------------------------------ */

static int is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* Letters and digits of the word at `at`, which begins with a letter. */
static size_t measure(const char *at)
{
    size_t letters = 0;

    while (is_letter(at[letters]) || (letters > 0 && is_digit(at[letters])))
        letters++;
    return letters;
}

/* The next character that is no white space, which becomes the next one read. */
static char peek(struct reader *r)
{
    while (is_space(*r->at))
        r->at++;
    return *r->at;
}

/* Read c if it comes next; whether it did. */
static int take(struct reader *r, char c)
{
    if (peek(r) != c)
        return 0;
    r->at++;
    return 1;
}

/* Read `word` if it comes next; whether it did. */
static int take_word(struct reader *r, const char *word)
{
    peek(r);
    const size_t letters = measure(r->at);
    if (letters != strlen(word) || strncmp(r->at, word, letters) != 0)
        return 0;
    r->at += letters;
    return 1;
}

static size_t place(const struct reader *r, const char *at)
{
    return (size_t)(at - r->text) + 1;
}

/* Fail at the next character: `expected` says what should be there. */
static hra_status unexpected(struct reader *r, const char *expected)
{
    char found[48];
    const char c = peek(r);
    int letters = 0;

    while (is_letter(r->at[letters]) && letters < 32)
        letters++;
    if (c == '\0')
        snprintf(found, sizeof(found), "the end of the text");
    else if (letters > 0)
        snprintf(found, sizeof(found), "'%.*s'", letters, r->at);
    else if (c < ' ' || c > '~')
        snprintf(found, sizeof(found), "the byte 0x%02x", (unsigned)(unsigned char)c);
    else
        snprintf(found, sizeof(found), "'%c'", c);
    return HRA_FAIL(HRA_ERR_ARG, "mask: character %zu: expected %s, found %s", place(r, r->at), expected,
                    found);
}

/* Read one character. `where` says after what, such as "after the radius". */
static hra_status expect(struct reader *r, char c, const char *where)
{
    char expected[96];

    if (take(r, c))
        return HRA_OK;
    snprintf(expected, sizeof(expected), "'%c' %s", c, where);
    return unexpected(r, expected);
}

/* Read a whole number from low to high, a sign only where low < 0; above 2^63 - 1 its bits. `what` names
 * it, such as "a radius". */
static hra_status read_number(struct reader *r, int64_t low, uint64_t high, const char *what, int64_t *out)
{
    const int negative = peek(r) == '-' && low < 0 && is_digit(r->at[1]);
    const uint64_t limit = negative ? UINT64_C(1) << 63 : high > INT64_MAX ? UINT64_MAX : INT64_MAX;
    const char *begin = r->at, *digit = begin + negative;
    uint64_t size = 0;
    int overflow = 0;

    if (!is_digit(*digit))
        return unexpected(r, what);
    for (; is_digit(*digit); digit++)
        overflow |=
            __builtin_mul_overflow(size, 10, &size) || __builtin_add_overflow(size, *digit - '0', &size);
    if (overflow || size > limit)
        return HRA_FAIL(HRA_ERR_ARG, "mask: character %zu: the number is too large for 64 bits",
                        place(r, begin));
    const int64_t value = (int64_t)(negative ? 0 - size : size);
    if (negative ? value < low : size > high || (low > 0 && size < (uint64_t)low))
        return HRA_FAIL(HRA_ERR_ARG,
                        "mask: character %zu: expected %s from %" PRId64 " to %" PRIu64 ", found %s%" PRIu64,
                        place(r, begin), what, low, high, negative ? "-" : "", size);
    r->at = digit;
    *out = value;
    return HRA_OK;
}

/* Pass a status on. What only the maker of a mask sees, such as lengths that do not add up, it says without
 * knowing the text, so the place is put before its sentence here. */
static hra_status placed(const struct reader *r, const char *at, hra_status status)
{
    char said[512];

    if (status != HRA_ERR_ARG)
        return status;
    snprintf(said, sizeof(said), "%s", hra_last_error());
    return HRA_FAIL(status, "mask: character %zu: %s", place(r, at), said);
}

/* ---- Masks without masks inside; the word and '(' are read ------------------------------------ */

/* A side of a window: a number, or `-` for no limit. */
static hra_status read_side(struct reader *r, int64_t *out)
{
    if (peek(r) == '-' && !is_digit(r->at[1])) {
        r->at++;
        *out = HRA_UNBOUNDED;
        return HRA_OK;
    }
    return read_number(r, INT64_MIN, INT64_MAX, "a number of tokens or '-'", out);
}

static hra_status read_window(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    int64_t left, right;

    (void)word;
    HRA_TRY(read_side(r, &left));
    HRA_TRY(expect(r, ',', "after the left side of the window"));
    HRA_TRY(read_side(r, &right));
    HRA_TRY(expect(r, ')', "after the right side of the window"));
    return placed(r, at, hra_mask_window(out, r->domain, left, right));
}

/* One number for each axis of the domain's grid; high [axes], NULL: no limit. `where` becomes what to say
 * of the character after them. */
static hra_status read_axes(struct reader *r, const char *what, int64_t low, const int64_t *high,
                            int64_t number[3], char where[80])
{
    for (int a = 0; a < r->space.axes; a++) {
        HRA_TRY(read_number(r, low, high == NULL ? INT64_MAX : (uint64_t)high[a], what, &number[a]));
        snprintf(where, 80, "after %s %d of %d, the axes of the domain's grid", strchr(what, ' ') + 1, a + 1,
                 r->space.axes);
        if (a + 1 < r->space.axes)
            HRA_TRY(expect(r, ',', where));
    }
    return HRA_OK;
}

/* grid() and neighbourhood() */
static hra_status read_on_grid(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    const int radius = word->kind == HRA_MASK_GRID;
    int64_t extent[3], stride[3] = {1, 1, 1};
    char where[80];

    if (r->space.axes == 0)
        return HRA_FAIL(HRA_ERR_ARG,
                        "mask: character %zu: %s needs a domain with a grid, this one has only %" PRId64
                        " tokens",
                        place(r, at), word->word, r->space.tokens);
    HRA_TRY(read_axes(r, radius ? "a radius" : "an extent", radius ? 0 : 1, NULL, extent, where));
    if (!radius && take(r, ';'))
        HRA_TRY(read_axes(r, "a stride", 1, extent, stride, where));
    HRA_TRY(expect(r, ')', where));
    return placed(r, at,
                  radius ? hra_mask_grid(out, r->domain, extent)
                         : hra_mask_neighbourhood(out, r->domain, extent, stride));
}

/* Masks of nothing but numbers, which the table of words describes. */
static hra_status read_numbers(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    int64_t n[3] = {0, 0, 0};
    char after[64];

    for (int i = 0; i < 3 && word->number[i].what != NULL; i++) {
        const struct number *number = &word->number[i];
        const int more = i < 2 && number[1].what != NULL;

        HRA_TRY(read_number(r, number->low, number->high, number->what, &n[i]));
        snprintf(after, sizeof(after), "after %s", number->what);
        HRA_TRY(expect(r, more ? ',' : ')', after));
    }
    switch (word->kind) {
    case HRA_MASK_GLOBAL:
        return placed(r, at, hra_mask_global(out, r->domain, n[0]));
    case HRA_MASK_LOCAL_BLOCKS:
        return placed(r, at, hra_mask_local_blocks(out, r->domain, n[0], n[1]));
    case HRA_MASK_STRIDED_BLOCKS:
        return placed(r, at, hra_mask_strided_blocks(out, r->domain, n[0], n[1], n[2]));
    case HRA_MASK_GLOBAL_BLOCKS:
        return placed(r, at, hra_mask_global_blocks(out, r->domain, n[0], n[1], n[2]));
    case HRA_MASK_RANDOM_BLOCKS:
        return placed(r, at, hra_mask_random_blocks(out, r->domain, n[0], n[1], (uint64_t)n[2]));
    default:
        return placed(r, at, hra_mask_hierarchical_blocks(out, r->domain, n[0], n[1], (int)n[2]));
    }
}

/* The offset and the mode, where they are given. */
static hra_status read_dilated(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    const char *expected = "',' or ')' after the rate";
    int64_t segment, rate, offset = 0;
    int mode = HRA_DILATED_KEYS;

    (void)word;
    HRA_TRY(read_number(r, 1, INT64_MAX, "the tokens of a segment", &segment));
    HRA_TRY(expect(r, ',', "after the tokens of a segment"));
    HRA_TRY(read_number(r, 1, INT64_MAX, "the rate", &rate));
    if (take(r, ',')) {
        expected = "',' or ')' after the offset";
        if (take_word(r, "head"))
            offset = HRA_OFFSET_HEAD;
        else
            HRA_TRY(read_number(r, 0, (uint64_t)rate - 1, "an offset or 'head'", &offset));
        if (take(r, ',')) {
            expected = "')' after the mode";
            while (mode <= HRA_DILATED_RESIDUE && !take_word(r, mode_name[mode]))
                mode++;
            if (mode > HRA_DILATED_RESIDUE)
                return unexpected(r, "the mode keys, both or residue");
        }
    }
    if (!take(r, ')'))
        return unexpected(r, expected);
    return placed(r, at, hra_mask_dilated(out, r->domain, segment, rate, offset, (hra_dilation)mode));
}

/* Memory for as many numbers as can stand between here and the next ')'. */
static hra_status alloc_numbers(const struct reader *r, int64_t **out)
{
    void *memory;

    HRA_TRY(
        hra_alloc(&memory, (int64_t)(strcspn(r->at, ")") / 2 + 1), sizeof(int64_t), "the numbers of a mask"));
    *out = memory;
    return HRA_OK;
}

static hra_status read_lengths(struct reader *r, int64_t *length, int64_t *count)
{
    for (*count = 0;;) {
        HRA_TRY(read_number(r, 1, r->space.tokens, "the length of a document", &length[*count]));
        ++*count;
        if (take(r, ')'))
            return HRA_OK;
        if (!take(r, ','))
            return unexpected(r, "',' or ')' after the length of a document");
    }
}

static hra_status read_docs(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    int64_t *length, count;

    (void)word;
    HRA_TRY(alloc_numbers(r, &length));
    hra_status status = read_lengths(r, length, &count);
    if (status == HRA_OK)
        status = placed(r, at, hra_mask_docs(out, r->domain, length, count));
    free(length);
    return status;
}

static hra_status read_pairs(struct reader *r, int64_t *size, int64_t *query, int64_t *key, int64_t *count)
{
    *count = 0;
    HRA_TRY(read_number(r, 1, INT64_MAX, "the tokens of a block", size));
    const int64_t last = (r->space.tokens - 1) / *size;

    while (take(r, ';')) {
        int64_t row;

        HRA_TRY(read_number(r, 0, last, "a query block", &row));
        HRA_TRY(expect(r, ':', "after the query block"));
        do {
            HRA_TRY(read_number(r, 0, last, "a key block", &key[*count]));
            query[(*count)++] = row;
        } while (is_digit(peek(r)));
    }
    if (!take(r, ')'))
        return unexpected(r, *count == 0 ? "';' or ')' after the tokens of a block"
                                         : "a key block, ';' or ')' after a key block");
    return HRA_OK;
}

static hra_status read_blocks(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    int64_t *query, *key = NULL, size, count;

    (void)word;
    HRA_TRY(alloc_numbers(r, &query));
    hra_status status = alloc_numbers(r, &key);
    if (status == HRA_OK)
        status = read_pairs(r, &size, query, key, &count);
    if (status == HRA_OK)
        status = placed(r, at, hra_mask_blocks(out, r->domain, size, query, key, count));
    free(query);
    free(key);
    return status;
}

/* ---- Masks of masks -------------------------------------------------------------------------- */

static hra_status grow(void **array, int used, int room, size_t bytes)
{
    void *larger;

    HRA_TRY(hra_alloc(&larger, room, bytes, "the parts of a mask"));
    if (used > 0)
        memcpy(larger, *array, (size_t)used * bytes);
    free(*array);
    *array = larger;
    return HRA_OK;
}

/* Add a mask, whose reference the parts take over, also on failure. */
static hra_status push(struct parts *p, hra_mask *mask, int first, int last)
{
    hra_status status = HRA_OK;

    if (p->count == p->room) {
        const int room = p->room == 0 ? 4 : 2 * p->room;
        void *masks = p->mask, *firsts = p->first, *lasts = p->last;

        status = grow(&masks, p->count, room, sizeof(*p->mask));
        p->mask = masks;
        if (status == HRA_OK)
            status = grow(&firsts, p->count, room, sizeof(int));
        p->first = firsts;
        if (status == HRA_OK)
            status = grow(&lasts, p->count, room, sizeof(int));
        p->last = lasts;
        if (status != HRA_OK) {
            hra_mask_destroy(mask);
            return status;
        }
        p->room = room;
    }
    p->mask[p->count] = mask;
    p->first[p->count] = first;
    p->last[p->count++] = last;
    return HRA_OK;
}

static void drop(struct parts *p)
{
    for (int n = 0; n < p->count; n++)
        hra_mask_destroy(p->mask[n]);
    free(p->mask);
    free(p->first);
    free(p->last);
}

/* Step into a mask inside a mask, which begins at `at`. */
static hra_status enter(struct reader *r, const char *at)
{
    if (r->depth == HRA_MASK_DEPTH)
        return HRA_FAIL(HRA_ERR_ARG, "mask: character %zu: masks are nested more than %d deep", place(r, at),
                        HRA_MASK_DEPTH);
    r->depth++;
    return HRA_OK;
}

/* A range of heads or sequences, the `unit`s 0 .. all - 1, and ':'. */
static hra_status read_range(struct reader *r, const char *unit, int all, int64_t *first, int64_t *last)
{
    char what[48];

    snprintf(what, sizeof(what), "a %s", unit);
    HRA_TRY(read_number(r, 0, (uint64_t)all - 1, what, first));
    *last = *first;
    if (take(r, '-')) {
        snprintf(what, sizeof(what), "the last %s of a range", unit);
        HRA_TRY(read_number(r, *first, (uint64_t)all - 1, what, last));
    } else if (peek(r) != ':') {
        snprintf(what, sizeof(what), "'-' or ':' after the %s", unit);
        return unexpected(r, what);
    }
    snprintf(what, sizeof(what), "after the %ss", unit);
    return expect(r, ':', what);
}

/* The masks of heads(), batches() and mix(), up to ')'. */
static hra_status read_parts(struct reader *r, const struct word *word, struct parts *parts)
{
    const int by_head = word->kind == HRA_MASK_HEADS;
    int64_t first = 0, last = 0;
    char expected[64];
    hra_mask *m;

    do {
        if (word->kind != HRA_MASK_MIX)
            HRA_TRY(read_range(r, by_head ? "head" : "sequence", by_head ? r->space.heads : r->space.batch,
                               &first, &last));
        HRA_TRY(read_mask(r, &m));
        HRA_TRY(push(parts, m, (int)first, (int)last));
    } while (take(r, ';'));
    if (take(r, ')'))
        return HRA_OK;
    snprintf(expected, sizeof(expected), "'&', '|', ';' or ')' after a mask in %s()", word->word);
    return unexpected(r, expected);
}

/* heads(), batches() and mix() */
static hra_status read_choice(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    struct parts parts = {0};

    HRA_TRY(enter(r, at));
    hra_status status = read_parts(r, word, &parts);
    const hra_mask *const *mask = (const hra_mask *const *)parts.mask;
    if (status == HRA_OK && word->kind == HRA_MASK_MIX)
        status = placed(r, at, hra_mask_mix(out, mask, parts.count));
    else if (status == HRA_OK && word->kind == HRA_MASK_HEADS)
        status = placed(r, at, hra_mask_heads(out, parts.first, parts.last, mask, parts.count));
    else if (status == HRA_OK)
        status = placed(r, at, hra_mask_batches(out, parts.first, parts.last, mask, parts.count));
    drop(&parts);
    r->depth--;
    return status;
}

static hra_status read_branches(struct reader *r, struct parts *parts)
{
    int64_t segment, rate;
    hra_mask *m;

    do {
        HRA_TRY(read_number(r, 1, INT64_MAX, "the tokens of a segment", &segment));
        HRA_TRY(expect(r, ':', "after the tokens of a segment"));
        HRA_TRY(read_number(r, 1, INT64_MAX, "the rate", &rate));
        HRA_TRY(hra_mask_dilated(&m, r->domain, segment, rate, HRA_OFFSET_HEAD, HRA_DILATED_BOTH));
        HRA_TRY(push(parts, m, 0, 0));
    } while (take(r, ','));
    return take(r, ')') ? HRA_OK : unexpected(r, "',' or ')' after the rate");
}

static hra_status read_longnet(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    struct parts parts = {0};

    (void)word;
    hra_status status = read_branches(r, &parts);
    if (status == HRA_OK)
        status = placed(r, at, hra_mask_mix(out, (const hra_mask *const *)parts.mask, parts.count));
    drop(&parts);
    return status;
}

/* The order of that name [letters] on the domain, one of those that are there already or a new one. The
 * caller holds a reference on it. */
static hra_status find_order(struct reader *r, const char *at, size_t letters, hra_order **out)
{
    char name[128];

    if (letters >= sizeof(name))
        return HRA_FAIL(HRA_ERR_ARG, "mask: character %zu: no order has a name of %zu characters",
                        place(r, at), letters);
    memcpy(name, at, letters);
    name[letters] = '\0';
    for (int n = 0; n < r->names; n++)
        if (strcmp(r->named[n]->name, name) == 0) {
            *out = hra_order_keep(r->named[n]);
            return HRA_OK;
        }
    HRA_TRY(placed(r, at, hra_order_create(out, r->domain, name)));
    if (r->names < HRA_MASK_ORDERS)
        r->named[r->names++] = hra_order_keep(*out);
    return HRA_OK;
}

/* The order that a slots() at `at` reads: the one that is named and followed by ';', else the parser's.
 * The caller holds a reference on it. */
static hra_status read_order(struct reader *r, const char *at, hra_order **out)
{
    size_t letters = 0;

    peek(r);
    const char *name = r->at;
    while (is_letter(name[letters]) || is_digit(name[letters]) || name[letters] == ':')
        letters++;
    r->at += letters;
    if (letters > 0 && take(r, ';'))
        return find_order(r, name, letters, out);
    r->at = name;
    if (r->order == NULL)
        return HRA_FAIL(HRA_ERR_ARG,
                        "mask: character %zu: slots() names no order and the parser was given none",
                        place(r, at));
    *out = hra_order_keep(r->order);
    return HRA_OK;
}

static hra_status read_slots(struct reader *r, const struct word *word, const char *at, hra_mask **out)
{
    hra_mask *m = NULL;
    hra_order *order;

    (void)word;
    HRA_TRY(enter(r, at));
    HRA_TRY(read_order(r, at, &order));
    hra_status status = read_mask(r, &m);
    if (status == HRA_OK && !take(r, ')'))
        status = unexpected(r, "'&', '|' or ')' after a mask in slots()");
    if (status == HRA_OK)
        status = placed(r, at, hra_mask_slots(out, order, m));
    hra_mask_destroy(m);
    hra_order_destroy(order);
    r->depth--;
    return status;
}

static hra_status read_parenthesis(struct reader *r, const char *open, hra_mask **out)
{
    hra_mask *m;

    HRA_TRY(enter(r, open));
    HRA_TRY(read_mask(r, &m));
    r->depth--;
    if (!take(r, ')')) {
        hra_mask_destroy(m);
        return unexpected(r, "'&', '|' or ')' after a mask in parentheses");
    }
    *out = m;
    return HRA_OK;
}

/* ---- The grammar ------------------------------------------------------------------------------ */

#define BLOCK                                                                                                \
    {                                                                                                        \
        "the tokens of a block", 1, INT64_MAX                                                                \
    }
#define WIDTH                                                                                                \
    {                                                                                                        \
        "the width in blocks", 0, INT64_MAX                                                                  \
    }

static const struct word words[] = {
    {"full", HRA_MASK_FULL, NULL, {{0}}},
    {"causal", HRA_MASK_CAUSAL, NULL, {{0}}},
    {"window", HRA_MASK_WINDOW, read_window, {{0}}},
    {"grid", HRA_MASK_GRID, read_on_grid, {{0}}},
    {"neighbourhood", HRA_MASK_NEIGHBOURHOOD, read_on_grid, {{0}}},
    {"docs", HRA_MASK_DOCS, read_docs, {{0}}},
    {"dilated", HRA_MASK_DILATED, read_dilated, {{0}}},
    {"global", HRA_MASK_GLOBAL, read_numbers, {{"the number of global tokens", 1, INT64_MAX}}},
    {"blocks", HRA_MASK_BLOCKS, read_blocks, {{0}}},
    {"local_blocks", HRA_MASK_LOCAL_BLOCKS, read_numbers, {BLOCK, WIDTH}},
    {"strided_blocks",
     HRA_MASK_STRIDED_BLOCKS,
     read_numbers,
     {BLOCK, {"the stride in blocks", 1, INT64_MAX}, WIDTH}},
    {"global_blocks",
     HRA_MASK_GLOBAL_BLOCKS,
     read_numbers,
     {BLOCK, {"the number of global blocks", 0, INT64_MAX}, WIDTH}},
    {"random_blocks",
     HRA_MASK_RANDOM_BLOCKS,
     read_numbers,
     {BLOCK, {"the number of blocks to draw", 0, INT64_MAX}, {"the seed", 0, UINT64_MAX}}},
    {"hierarchical_blocks",
     HRA_MASK_HIERARCHICAL_BLOCKS,
     read_numbers,
     {BLOCK, WIDTH, {"the number of levels", 1, 62}}},
    {"slots", HRA_MASK_SLOTS, read_slots, {{0}}},
    {"heads", HRA_MASK_HEADS, read_choice, {{0}}},
    {"batches", HRA_MASK_BATCHES, read_choice, {{0}}},
    {"mix", HRA_MASK_MIX, read_choice, {{0}}},
    {"longnet", HRA_MASK_MIX, read_longnet, {{0}}},
};

enum { WORDS = sizeof(words) / sizeof(words[0]) };

/* Fail where a mask should begin. */
static hra_status miss(struct reader *r)
{
    char expected[384];
    int used = snprintf(expected, sizeof(expected), "a mask: ");

    for (int n = 0; n < WORDS; n++)
        used += snprintf(expected + used, sizeof(expected) - (size_t)used, "%s, ", words[n].word);
    snprintf(expected + used, sizeof(expected) - (size_t)used, "'!' or '('");
    return unexpected(r, expected);
}

/* A word with what belongs to it, or a mask in parentheses. */
static hra_status read_atom(struct reader *r, hra_mask **out)
{
    char after[40];
    int n = 0;

    if (peek(r) == '(') {
        const char *open = r->at++;
        return read_parenthesis(r, open, out);
    }
    const char *at = r->at;
    while (n < WORDS && !take_word(r, words[n].word))
        n++;
    if (n == WORDS)
        return miss(r);
    if (words[n].kind == HRA_MASK_FULL)
        return placed(r, at, hra_mask_full(out, r->domain));
    if (words[n].kind == HRA_MASK_CAUSAL)
        return placed(r, at, hra_mask_causal(out, r->domain));
    snprintf(after, sizeof(after), "after %s", words[n].word);
    HRA_TRY(expect(r, '(', after));
    return words[n].read(r, &words[n], at, out);
}

static hra_status read_unary(struct reader *r, hra_mask **out)
{
    hra_mask *m;

    if (!take(r, '!'))
        return read_atom(r, out);
    const char *sign = r->at - 1;
    HRA_TRY(enter(r, sign));
    HRA_TRY(read_unary(r, &m));
    r->depth--;
    hra_status status = placed(r, sign, hra_mask_not(out, m));
    hra_mask_destroy(m);
    return status;
}

/* Masks of the next tighter rule with the rule's sign between them: A & B & ..., or those with | between. */
static hra_status read_combination(struct reader *r, enum hra_mask_kind kind, hra_mask **out)
{
    struct parts parts = {0};
    const char sign = kind == HRA_MASK_AND ? '&' : '|';
    hra_status status;

    peek(r);
    const char *begin = r->at;
    do {
        hra_mask *m;

        status = kind == HRA_MASK_AND ? read_unary(r, &m) : read_combination(r, HRA_MASK_AND, &m);
        if (status == HRA_OK)
            status = push(&parts, m, 0, 0);
    } while (status == HRA_OK && take(r, sign));
    if (status == HRA_OK)
        status =
            placed(r, begin, hra_mask_combine(out, kind, (const hra_mask *const *)parts.mask, parts.count));
    drop(&parts);
    return status;
}

static hra_status read_mask(struct reader *r, hra_mask **out)
{
    return read_combination(r, HRA_MASK_OR, out);
}

hra_status hra_mask_parse(hra_mask **out, const hra_domain *domain, const hra_order *order, const char *text)
{
    struct reader r = {.text = text, .at = text, .domain = domain, .order = order};
    hra_mask *m = NULL;

    if (out == NULL || text == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "mask: %s is a NULL pointer", out == NULL ? "out" : "text");
    HRA_TRY(hra_space_read(&r.space, domain));
    /* A permutation has no name of its own. */
    if (order != NULL && hra_order_fits(order, &r.space) && strcmp(order->name, "permutation") != 0)
        r.named[r.names++] = hra_order_keep(order);
    hra_status status = read_mask(&r, &m);
    if (status == HRA_OK && peek(&r) != '\0')
        status = unexpected(&r, "'&', '|' or the end of the text after a mask");
    while (r.names > 0)
        hra_order_destroy(r.named[--r.names]);
    if (status != HRA_OK) {
        hra_mask_destroy(m);
        return status;
    }
    *out = m;
    return HRA_OK;
}

/* ---- To text ---------------------------------------------------------------------------------- */

/* Where the text goes: counted, and as much as fits written to out. */
struct sink {
    char *out; /* [room]; NULL: nowhere */
    size_t room, length;
};

/* Write one word or number with what stands around it. */
__attribute__((format(printf, 2, 3))) static void put(struct sink *s, const char *format, ...)
{
    char text[128];
    va_list args;

    va_start(args, format);
    const size_t bytes = (size_t)vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (s->length + 1 < s->room) {
        const size_t fits = s->room - 1 - s->length;
        memcpy(s->out + s->length, text, bytes < fits ? bytes : fits);
    }
    s->length += bytes;
}

static void put_numbers(struct sink *s, const char *before, const int64_t *number, int count)
{
    put(s, "%s", before);
    for (int n = 0; n < count; n++)
        put(s, n > 0 ? ",%" PRId64 : "%" PRId64, number[n]);
}

/* A side of a window. */
static void put_side(struct sink *s, int64_t side)
{
    if (side == HRA_UNBOUNDED)
        put(s, "-");
    else
        put(s, "%" PRId64, side);
}

static void put_neighbourhood(struct sink *s, const hra_mask *m)
{
    int strides = 0;

    put_numbers(s, "neighbourhood(", m->extent, m->space.axes);
    for (int a = 0; a < m->space.axes; a++)
        strides |= m->stride[a] > 1;
    if (strides)
        put_numbers(s, "; ", m->stride, m->space.axes);
    put(s, ")");
}

static void put_dilated(struct sink *s, const hra_mask *m)
{
    put(s, "dilated(%" PRId64 ",%" PRId64, m->segment, m->rate);
    if (m->offset == HRA_OFFSET_HEAD)
        put(s, ",head");
    else if (m->offset != 0 || m->mode != HRA_DILATED_KEYS)
        put(s, ",%" PRId64, m->offset);
    if (m->mode != HRA_DILATED_KEYS)
        put(s, ",%s", mode_name[m->mode]);
    put(s, ")");
}

static void put_blocks(struct sink *s, const hra_mask *m)
{
    put(s, "blocks(%" PRId64, m->block);
    for (int64_t b = 0; b < m->count; b++) {
        if (m->start[b] < m->start[b + 1])
            put(s, "; %" PRId64 ":", b);
        for (int64_t n = m->start[b]; n < m->start[b + 1]; n++)
            put(s, n > m->start[b] ? " %" PRId64 : "%" PRId64, m->key[n]);
    }
    put(s, ")");
}

static void put_mask(struct sink *s, const hra_mask *m, enum hra_mask_kind inside);

/* heads() and batches() */
static void put_ranges(struct sink *s, const hra_mask *m)
{
    put(s, m->kind == HRA_MASK_HEADS ? "heads(" : "batches(");
    for (int n = 0; n < m->children; n++) {
        put(s, n > 0 ? "; %d" : "%d", m->first[n]);
        if (m->last[n] > m->first[n])
            put(s, "-%d", m->last[n]);
        put(s, ": ");
        put_mask(s, m->child[m->child_of[m->first[n]]], m->kind);
    }
    put(s, ")");
}

/* The parts with a sign between them. */
static void put_parts(struct sink *s, const hra_mask *m, const char *before, const char *between,
                      const char *after)
{
    put(s, "%s", before);
    for (int n = 0; n < m->children; n++) {
        put(s, "%s", n > 0 ? between : "");
        put_mask(s, m->child[n], m->kind);
    }
    put(s, "%s", after);
}

/* `inside` is the kind of the mask around, which says whether parentheses are needed. */
static void put_mask(struct sink *s, const hra_mask *m, enum hra_mask_kind inside)
{
    const int parentheses = inside == HRA_MASK_NOT || (inside == HRA_MASK_AND && m->kind == HRA_MASK_OR);

    switch (m->kind) {
    case HRA_MASK_FULL:
        put(s, "full");
        break;
    case HRA_MASK_CAUSAL:
        put(s, "causal");
        break;
    case HRA_MASK_WINDOW:
        put(s, "window(");
        put_side(s, m->left);
        put(s, ",");
        put_side(s, m->right);
        put(s, ")");
        break;
    case HRA_MASK_GRID:
        put_numbers(s, "grid(", m->extent, m->space.axes);
        put(s, ")");
        break;
    case HRA_MASK_NEIGHBOURHOOD:
        put_neighbourhood(s, m);
        break;
    case HRA_MASK_DOCS:
        put(s, "docs");
        for (int64_t n = 0; n < m->count; n++)
            put(s, n == 0 ? "(%" PRId64 : ",%" PRId64, m->start[n + 1] - m->start[n]);
        put(s, ")");
        break;
    case HRA_MASK_DILATED:
        put_dilated(s, m);
        break;
    case HRA_MASK_GLOBAL:
        put(s, "global(%" PRId64 ")", m->global);
        break;
    case HRA_MASK_BLOCKS:
        put_blocks(s, m);
        break;
    case HRA_MASK_LOCAL_BLOCKS:
        put(s, "local_blocks(%" PRId64 ",%" PRId64 ")", m->block, m->width);
        break;
    case HRA_MASK_STRIDED_BLOCKS:
        put(s, "strided_blocks(%" PRId64 ",%" PRId64 ",%" PRId64 ")", m->block, m->step, m->width);
        break;
    case HRA_MASK_GLOBAL_BLOCKS:
        put(s, "global_blocks(%" PRId64 ",%" PRId64 ",%" PRId64 ")", m->block, m->global, m->width);
        break;
    case HRA_MASK_RANDOM_BLOCKS:
        put(s, "random_blocks(%" PRId64 ",%" PRId64 ",%" PRIu64 ")", m->block, m->drawn, m->seed);
        break;
    case HRA_MASK_HIERARCHICAL_BLOCKS:
        put(s, "hierarchical_blocks(%" PRId64 ",%" PRId64 ",%d)", m->block, m->width, m->levels);
        break;
    case HRA_MASK_SLOTS:
        put(s, "slots(");
        if (strcmp(m->order[0]->name, "permutation") != 0)
            put(s, "%s; ", m->order[0]->name);
        put_parts(s, m, "", "", ")");
        break;
    case HRA_MASK_NOT:
        put_parts(s, m, "!", "", "");
        break;
    case HRA_MASK_AND:
        put_parts(s, m, parentheses ? "(" : "", " & ", parentheses ? ")" : "");
        break;
    case HRA_MASK_OR:
        put_parts(s, m, parentheses ? "(" : "", " | ", parentheses ? ")" : "");
        break;
    case HRA_MASK_HEADS:
    case HRA_MASK_BATCHES:
        put_ranges(s, m);
        break;
    case HRA_MASK_MIX:
        put_parts(s, m, "mix(", "; ", ")");
        break;
    }
}

size_t hra_mask_print(const hra_mask *mask, char *out, size_t bytes)
{
    struct sink s = {out, out == NULL ? 0 : bytes, 0};

    if (mask != NULL)
        put_mask(&s, mask, mask->kind);
    if (s.room > 0)
        out[s.length < s.room ? s.length : s.room - 1] = '\0';
    return s.length;
}

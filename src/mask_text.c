/* mask_text.c - masks from text and masks to text. docs/masks.md has the grammar.
 *
 * The reader is one function for each rule of the grammar. A character is named by its place in the text,
 * counted from 1. */
#include "src/mask.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const char *text, *at; /* the whole, and the next character */
    const hra_domain *domain;
    struct hra_space space; /* the domain's */
    int depth;              /* parentheses open around `at` that hold masks */
};

/* Masks read so far, of one combination or of heads(). */
struct parts {
    int count, room;
    hra_mask **mask;   /* [count], a reference held on each */
    int *first, *last; /* [count] heads */
};

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

/* Read a whole number from low to high, a sign only where low < 0. `what` names it, such as "a radius". */
static hra_status read_number(struct reader *r, int64_t low, int64_t high, const char *what, int64_t *out)
{
    int64_t value = 0; /* kept negative, the side with one number more */
    const int negative = peek(r) == '-' && low < 0 && is_digit(r->at[1]);
    const char *begin = r->at;
    const char *digits = r->at + negative;
    if (!is_digit(*digits))
        return unexpected(r, what);
    while (is_digit(*digits)) {
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_sub_overflow(value, *digits - '0', &value))
            return HRA_FAIL(HRA_ERR_ARG, "mask: character %zu: the number is too large for 64 bits",
                            place(r, begin));
        digits++;
    }
    if (!negative && value == INT64_MIN)
        return HRA_FAIL(HRA_ERR_ARG, "mask: character %zu: the number is too large for 64 bits",
                        place(r, begin));
    value = negative ? value : -value;
    if (value < low || value > high)
        return HRA_FAIL(HRA_ERR_ARG,
                        "mask: character %zu: expected %s from %" PRId64 " to %" PRId64 ", found %" PRId64,
                        place(r, begin), what, low, high, value);
    r->at = digits;
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

static hra_status read_window(struct reader *r, const char *word, hra_mask **out)
{
    int64_t left, right;

    HRA_TRY(read_side(r, &left));
    HRA_TRY(expect(r, ',', "after the left side of the window"));
    HRA_TRY(read_side(r, &right));
    HRA_TRY(expect(r, ')', "after the right side of the window"));
    return placed(r, word, hra_mask_window(out, r->domain, left, right));
}

/* grid() and neighbourhood(): one number for each axis of the domain's grid. */
static hra_status read_on_grid(struct reader *r, const char *word, hra_mask **out, int is_grid)
{
    const char *name = is_grid ? "radius" : "extent";
    char where[80];
    int64_t extent[3];

    if (r->space.axes == 0)
        return HRA_FAIL(HRA_ERR_ARG,
                        "mask: character %zu: %s needs a domain with a grid, this one has only %" PRId64
                        " tokens",
                        place(r, word), is_grid ? "grid" : "neighbourhood", r->space.tokens);
    for (int a = 0; a < r->space.axes; a++) {
        HRA_TRY(read_number(r, is_grid ? 0 : 1, INT64_MAX, is_grid ? "a radius" : "an extent", &extent[a]));
        snprintf(where, sizeof(where), "after %s %d of %d, the axes of the domain's grid", name, a + 1,
                 r->space.axes);
        HRA_TRY(expect(r, a + 1 < r->space.axes ? ',' : ')', where));
    }
    return placed(r, word,
                  is_grid ? hra_mask_grid(out, r->domain, extent)
                          : hra_mask_neighbourhood(out, r->domain, extent));
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

static hra_status read_docs(struct reader *r, const char *word, hra_mask **out)
{
    int64_t *length, count;

    HRA_TRY(alloc_numbers(r, &length));
    hra_status status = read_lengths(r, length, &count);
    if (status == HRA_OK)
        status = placed(r, word, hra_mask_docs(out, r->domain, length, count));
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

static hra_status read_blocks(struct reader *r, const char *word, hra_mask **out)
{
    int64_t *query, *key = NULL, size, count;

    HRA_TRY(alloc_numbers(r, &query));
    hra_status status = alloc_numbers(r, &key);
    if (status == HRA_OK)
        status = read_pairs(r, &size, query, key, &count);
    if (status == HRA_OK)
        status = placed(r, word, hra_mask_blocks(out, r->domain, size, query, key, count));
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

/* Step into a parenthesis at `at` that holds masks. */
static hra_status enter(struct reader *r, const char *at)
{
    if (r->depth == HRA_MASK_DEPTH)
        return HRA_FAIL(HRA_ERR_ARG, "mask: character %zu: parentheses are nested more than %d deep",
                        place(r, at), HRA_MASK_DEPTH);
    r->depth++;
    return HRA_OK;
}

static hra_status read_ranges(struct reader *r, struct parts *parts)
{
    const int64_t heads = r->space.heads;

    for (;;) {
        int64_t first, last;
        hra_mask *m;

        HRA_TRY(read_number(r, 0, heads - 1, "a head", &first));
        last = first;
        if (take(r, '-')) {
            HRA_TRY(read_number(r, first, heads - 1, "the last head of a range", &last));
        } else if (peek(r) != ':') {
            return unexpected(r, "'-' or ':' after the head");
        }
        HRA_TRY(expect(r, ':', "after the heads"));
        HRA_TRY(read_mask(r, &m));
        HRA_TRY(push(parts, m, (int)first, (int)last));
        if (take(r, ')'))
            return HRA_OK;
        if (!take(r, ';'))
            return unexpected(r, "'&', '|', ';' or ')' after a mask in heads()");
    }
}

static hra_status read_heads(struct reader *r, const char *word, hra_mask **out)
{
    struct parts parts = {0};

    HRA_TRY(enter(r, word));
    hra_status status = read_ranges(r, &parts);
    if (status == HRA_OK)
        status = placed(
            r, word,
            hra_mask_heads(out, parts.first, parts.last, (const hra_mask *const *)parts.mask, parts.count));
    drop(&parts);
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

/* A word with what belongs to it, or a mask in parentheses. */
static hra_status read_atom(struct reader *r, hra_mask **out)
{
    static const struct {
        const char *word;
        enum hra_mask_kind kind;
    } words[] = {
        {"full", HRA_MASK_FULL},
        {"causal", HRA_MASK_CAUSAL},
        {"window", HRA_MASK_WINDOW},
        {"grid", HRA_MASK_GRID},
        {"neighbourhood", HRA_MASK_NEIGHBOURHOOD},
        {"docs", HRA_MASK_DOCS},
        {"blocks", HRA_MASK_BLOCKS},
        {"heads", HRA_MASK_HEADS},
    };
    size_t letters = 0, n = 0;
    char after[40];

    if (peek(r) == '(') {
        const char *open = r->at++;
        return read_parenthesis(r, open, out);
    }
    const char *word = r->at;
    while (is_letter(word[letters]) || (letters > 0 && is_digit(word[letters])))
        letters++;
    while (n < sizeof(words) / sizeof(words[0]) &&
           (strlen(words[n].word) != letters || strncmp(words[n].word, word, letters) != 0))
        n++;
    if (n == sizeof(words) / sizeof(words[0]))
        return unexpected(r, "a mask: full, causal, window, grid, neighbourhood, docs, blocks, heads or '('");
    r->at += letters;
    if (words[n].kind == HRA_MASK_FULL)
        return placed(r, word, hra_mask_full(out, r->domain));
    if (words[n].kind == HRA_MASK_CAUSAL)
        return placed(r, word, hra_mask_causal(out, r->domain));

    snprintf(after, sizeof(after), "after %s", words[n].word);
    HRA_TRY(expect(r, '(', after));
    switch (words[n].kind) {
    case HRA_MASK_WINDOW:
        return read_window(r, word, out);
    case HRA_MASK_DOCS:
        return read_docs(r, word, out);
    case HRA_MASK_BLOCKS:
        return read_blocks(r, word, out);
    case HRA_MASK_HEADS:
        return read_heads(r, word, out);
    default:
        return read_on_grid(r, word, out, words[n].kind == HRA_MASK_GRID);
    }
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

        status = kind == HRA_MASK_AND ? read_atom(r, &m) : read_combination(r, HRA_MASK_AND, &m);
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

hra_status hra_mask_parse(hra_mask **out, const hra_domain *domain, const char *text)
{
    struct reader r = {text, text, domain, {0}, 0};
    hra_mask *m;

    if (out == NULL || text == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "mask: %s is a NULL pointer", out == NULL ? "out" : "text");
    HRA_TRY(hra_space_read(&r.space, domain));
    HRA_TRY(read_mask(&r, &m));
    if (peek(&r) != '\0') {
        hra_mask_destroy(m);
        return unexpected(&r, "'&', '|' or the end of the text after a mask");
    }
    *out = m;
    return HRA_OK;
}

/* ---- To text ---------------------------------------------------------------------------------- */

/* Where the text goes: counted, hashed, and as much as fits written to out. */
struct sink {
    char *out; /* [room]; NULL: nowhere */
    size_t room, length;
    uint64_t hash;
    int head; /* write what holds for this head instead of heads(); -1: write heads() */
};

static void put(struct sink *s, const char *text)
{
    const size_t bytes = strlen(text);

    s->hash = hra_hash(s->hash, text, bytes);
    if (s->length + 1 < s->room) {
        const size_t fits = s->room - 1 - s->length;
        memcpy(s->out + s->length, text, bytes < fits ? bytes : fits);
    }
    s->length += bytes;
}

static void put_number(struct sink *s, const char *before, int64_t number)
{
    char text[24];

    put(s, before);
    snprintf(text, sizeof(text), "%" PRId64, number);
    put(s, text);
}

static void put_side(struct sink *s, int64_t side)
{
    if (side == HRA_UNBOUNDED)
        put(s, "-");
    else
        put_number(s, "", side);
}

/* `inside` is the kind of the mask around, which says whether parentheses are needed. */
static void put_mask(struct sink *s, const hra_mask *m, enum hra_mask_kind inside)
{
    const char *between = m->kind == HRA_MASK_OR ? " | " : " & ";

    if (m->kind == HRA_MASK_HEADS && s->head >= 0) {
        put_mask(s, m->child[m->child_of[s->head]], inside);
        return;
    }
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
    case HRA_MASK_NEIGHBOURHOOD:
        put(s, m->kind == HRA_MASK_GRID ? "grid" : "neighbourhood");
        for (int a = 0; a < m->space.axes; a++)
            put_number(s, a == 0 ? "(" : ",", m->extent[a]);
        put(s, ")");
        break;
    case HRA_MASK_DOCS:
        put(s, "docs");
        for (int64_t n = 0; n < m->count; n++)
            put_number(s, n == 0 ? "(" : ",", m->start[n + 1] - m->start[n]);
        put(s, ")");
        break;
    case HRA_MASK_BLOCKS:
        put_number(s, "blocks(", m->block);
        for (int64_t b = 0; b < m->count; b++) {
            if (m->start[b] < m->start[b + 1]) {
                put_number(s, "; ", b);
                put(s, ":");
            }
            for (int64_t n = m->start[b]; n < m->start[b + 1]; n++)
                put_number(s, n == m->start[b] ? "" : " ", m->key[n]);
        }
        put(s, ")");
        break;
    case HRA_MASK_AND:
    case HRA_MASK_OR: {
        const int parentheses = m->kind == HRA_MASK_OR && inside == HRA_MASK_AND;

        put(s, parentheses ? "(" : "");
        for (int n = 0; n < m->children; n++) {
            put(s, n > 0 ? between : "");
            put_mask(s, m->child[n], m->kind);
        }
        put(s, parentheses ? ")" : "");
        break;
    }
    case HRA_MASK_HEADS:
        for (int n = 0; n < m->children; n++) {
            put_number(s, n == 0 ? "heads(" : "; ", m->first[n]);
            if (m->last[n] > m->first[n])
                put_number(s, "-", m->last[n]);
            put(s, ": ");
            put_mask(s, m->child[m->child_of[m->first[n]]], HRA_MASK_HEADS);
        }
        put(s, ")");
        break;
    }
}

size_t hra_mask_print(const hra_mask *mask, char *out, size_t bytes)
{
    struct sink s = {out, out == NULL ? 0 : bytes, 0, HRA_HASH_BEGIN, -1};

    if (mask != NULL)
        put_mask(&s, mask, HRA_MASK_HEADS);
    if (s.room > 0)
        out[s.length < s.room ? s.length : s.room - 1] = '\0';
    return s.length;
}

uint64_t hra_mask_key(const hra_mask *mask, int head)
{
    struct sink s = {NULL, 0, 0, HRA_HASH_BEGIN, head};

    put_mask(&s, mask, HRA_MASK_HEADS);
    return s.hash;
}

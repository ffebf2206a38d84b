/* mask.c - what masks mean.
 *
 * Every mask but blocks and the combinations is a range of keys along each axis, an axis being the tokens
 * themselves or one of the grid's. reach() is the definition of all of those, one query coordinate at a
 * time; single pairs, rows of bits and boxes are answered from it. Both ends of the range grow with the
 * query, which is what makes boxes cheap: the ends for the box's first and last query bound all others. */
#include "src/mask.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Coordinates low .. high, both inclusive; none where low > high. */
struct range {
    int64_t low, high;
};

/* ---- The definitions ----------------------------------------------------------------------- */

static int64_t plus(int64_t a, int64_t b)
{
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? (b < 0 ? INT64_MIN : INT64_MAX) : sum;
}

static int64_t minus(int64_t a, int64_t b)
{
    int64_t difference;
    return __builtin_sub_overflow(a, b, &difference) ? (b < 0 ? INT64_MAX : INT64_MIN) : difference;
}

/* The last n with start[n] <= value; start [count] ascends, start[0] <= value. */
static int64_t find(const int64_t *start, int64_t count, int64_t value)
{
    int64_t low = 0, high = count - 1;

    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (start[middle] <= value)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Axes along which a mask ranges: the grid's, or 1 for the tokens; 0: it is none of that kind. */
static int axes_of(const hra_mask *m)
{
    switch (m->kind) {
    case HRA_MASK_FULL:
    case HRA_MASK_CAUSAL:
    case HRA_MASK_WINDOW:
    case HRA_MASK_DOCS:
        return 1;
    case HRA_MASK_GRID:
    case HRA_MASK_NEIGHBOURHOOD:
        return m->space.axes;
    case HRA_MASK_BLOCKS:
    case HRA_MASK_AND:
    case HRA_MASK_OR:
    case HRA_MASK_HEADS:
        break;
    }
    return 0;
}

/* The keys along `axis` to which a query at coordinate i attends: of a mask with axes, the whole
 * definition. */
static struct range reach(const hra_mask *m, int axis, int64_t i)
{
    struct range r = {0, INT64_MAX}; /* full */

    switch (m->kind) {
    case HRA_MASK_CAUSAL:
        r.high = i;
        break;
    case HRA_MASK_WINDOW:
        r.low = minus(i, m->left);
        r.high = plus(i, m->right);
        break;
    case HRA_MASK_GRID:
        r.low = minus(i, m->extent[axis]);
        r.high = plus(i, m->extent[axis]);
        break;
    case HRA_MASK_NEIGHBOURHOOD: {
        const int64_t n = m->extent[axis], latest = m->space.grid[axis] - n, middle = i - n / 2;
        r.low = middle < 0 ? 0 : middle > latest ? latest : middle;
        r.high = r.low + n - 1;
        break;
    }
    case HRA_MASK_DOCS: {
        const int64_t document = find(m->start, m->count, i);
        r.low = m->start[document];
        r.high = m->start[document + 1] - 1;
        break;
    }
    case HRA_MASK_FULL:
    case HRA_MASK_BLOCKS:
    case HRA_MASK_AND:
    case HRA_MASK_OR:
    case HRA_MASK_HEADS:
        break;
    }
    return r;
}

/* How many of the key blocks first .. last are listed for a query block: of `blocks`, the whole
 * definition. */
static int64_t listed(const hra_mask *m, int64_t query_block, int64_t first, int64_t last)
{
    const int64_t *key = m->key + m->start[query_block];
    const int64_t count = m->start[query_block + 1] - m->start[query_block];

    if (count == 0 || key[0] > last)
        return 0;
    const int64_t up_to_last = find(key, count, last) + 1;
    return up_to_last - (key[0] > first - 1 ? 0 : find(key, count, first - 1) + 1);
}

/* ---- Asking: boxes and single pairs ---------------------------------------------------------- */

/* Coordinates of a token along the axes of the grid. Most domains fit 32 bits, where a division takes a
 * third of the time that 64 bits take. */
static void coordinates(int64_t out[3], const struct hra_space *space, int64_t token)
{
    if (token <= UINT32_MAX && space->grid[1] <= UINT32_MAX && space->grid[2] <= UINT32_MAX) {
        uint32_t rest = (uint32_t)token;
        for (int a = space->axes - 1; a > 0; a--) {
            const uint32_t side = (uint32_t)space->grid[a], up = rest / side;
            out[a] = rest - up * side;
            rest = up;
        }
        out[0] = rest;
        return;
    }
    for (int a = space->axes - 1; a > 0; a--) {
        out[a] = token % space->grid[a];
        token /= space->grid[a];
    }
    out[0] = token;
}

struct hra_box hra_box_of(const struct hra_space *space, int64_t token)
{
    struct hra_box box = {token, token, {0, 0, 0}, {0, 0, 0}};

    if (space->axes > 0)
        coordinates(box.low, space, token);
    memcpy(box.high, box.low, sizeof(box.high));
    return box;
}

struct hra_box hra_box_join(const struct hra_box *a, const struct hra_box *b)
{
    struct hra_box box = *a;

    box.first = b->first < box.first ? b->first : box.first;
    box.last = b->last > box.last ? b->last : box.last;
    for (int axis = 0; axis < 3; axis++) {
        box.low[axis] = b->low[axis] < box.low[axis] ? b->low[axis] : box.low[axis];
        box.high[axis] = b->high[axis] > box.high[axis] ? b->high[axis] : box.high[axis];
    }
    return box;
}

static enum hra_answer classify_ranges(const hra_mask *m, int axes, const struct hra_box *q,
                                       const struct hra_box *k)
{
    const int on_grid = m->kind == HRA_MASK_GRID || m->kind == HRA_MASK_NEIGHBOURHOOD;
    enum hra_answer answer = HRA_ALL;

    for (int a = 0; a < axes; a++) {
        const struct range queries =
            on_grid ? (struct range){q->low[a], q->high[a]} : (struct range){q->first, q->last};
        const struct range keys =
            on_grid ? (struct range){k->low[a], k->high[a]} : (struct range){k->first, k->last};
        const struct range early = reach(m, a, queries.low), late = reach(m, a, queries.high);

        if (keys.high < early.low || keys.low > late.high)
            return HRA_NONE;
        if (keys.low < late.low || keys.high > early.high)
            answer = HRA_SOME;
    }
    return answer;
}

static enum hra_answer classify_blocks(const hra_mask *m, const struct hra_box *q, const struct hra_box *k)
{
    const int64_t first = q->first / m->block, last = q->last / m->block;
    const int64_t key_first = k->first / m->block, key_last = k->last / m->block;
    int any = 0, all = 1;

    if (m->start[first] == m->start[last + 1])
        return HRA_NONE;
    if (last - first >= HRA_TILE)
        return HRA_SOME; /* tiles have fewer; larger boxes are cut up anyway */
    for (int64_t row = first; row <= last; row++) {
        const int64_t found = listed(m, row, key_first, key_last);
        any |= found > 0;
        all &= found == key_last - key_first + 1;
        if (any && !all)
            return HRA_SOME;
    }
    return all ? HRA_ALL : HRA_NONE;
}

enum hra_answer hra_mask_classify(const hra_mask *mask, int head, const struct hra_box *q,
                                  const struct hra_box *k)
{
    enum hra_answer answer;

    switch (mask->kind) {
    case HRA_MASK_AND:
        answer = HRA_ALL;
        for (int n = 0; n < mask->children && answer != HRA_NONE; n++) {
            const enum hra_answer part = hra_mask_classify(mask->child[n], head, q, k);
            answer = part < answer ? part : answer;
        }
        return answer;
    case HRA_MASK_OR:
        answer = HRA_NONE;
        for (int n = 0; n < mask->children && answer != HRA_ALL; n++) {
            const enum hra_answer part = hra_mask_classify(mask->child[n], head, q, k);
            answer = part > answer ? part : answer;
        }
        return answer;
    case HRA_MASK_HEADS:
        return hra_mask_classify(mask->child[mask->child_of[head]], head, q, k);
    case HRA_MASK_BLOCKS:
        return classify_blocks(mask, q, k);
    case HRA_MASK_FULL:
    case HRA_MASK_CAUSAL:
    case HRA_MASK_WINDOW:
    case HRA_MASK_GRID:
    case HRA_MASK_NEIGHBOURHOOD:
    case HRA_MASK_DOCS:
        break;
    }
    return classify_ranges(mask, axes_of(mask), q, k);
}

int hra_mask_count(const hra_mask *mask, int64_t batch, int64_t head, int64_t query, int64_t key)
{
    if (mask == NULL || batch < 0 || batch >= mask->space.batch || head < 0 || head >= mask->space.heads ||
        query < 0 || query >= mask->space.tokens || key < 0 || key >= mask->space.tokens)
        return 0;
    /* The box of a single token is never answered with SOME. */
    const struct hra_box q = hra_box_of(&mask->space, query), k = hra_box_of(&mask->space, key);
    return hra_mask_classify(mask, (int)head, &q, &k) == HRA_ALL;
}

int hra_mask_allows(const hra_mask *mask, int64_t batch, int64_t head, int64_t query, int64_t key)
{
    return hra_mask_count(mask, batch, head, query, key) > 0;
}

/* ---- Asking: rows of bits -------------------------------------------------------------------- */

enum { WORDS = HRA_TILE / 64 };

/* The three below fill hit [count] with 0 and 1 rather than bits: on bytes the compiler can work on many
 * keys at once. */
static void hit_tokens(const hra_mask *m, int64_t query, const int64_t *key, int count, unsigned char *hit)
{
    const struct range r = reach(m, 0, query);

    for (int n = 0; n < count; n++)
        hit[n] = key[n] >= r.low && key[n] <= r.high;
}

static void hit_grid(const hra_mask *m, int64_t query, const int64_t *key, int count, unsigned char *hit)
{
    const int axes = m->space.axes;
    struct range r[3];
    int64_t at[3];

    coordinates(at, &m->space, query);
    for (int a = 0; a < axes; a++)
        r[a] = reach(m, a, at[a]);
    for (int n = 0; n < count; n++) {
        int inside = 1;

        coordinates(at, &m->space, key[n]);
        for (int a = 0; a < axes; a++)
            inside &= at[a] >= r[a].low && at[a] <= r[a].high;
        hit[n] = (unsigned char)inside;
    }
}

static void hit_blocks(const hra_mask *m, int64_t query, const int64_t *key, int count, unsigned char *hit)
{
    const int64_t query_block = query / m->block;
    int64_t asked = -1, answer = 0; /* neighbours mostly share their block */

    for (int n = 0; n < count; n++) {
        const int64_t block = key[n] / m->block;

        if (block != asked) {
            asked = block;
            answer = listed(m, query_block, block, block);
        }
        hit[n] = (unsigned char)answer;
    }
}

void hra_mask_row(const hra_mask *mask, int head, int64_t query, const int64_t *key, int count,
                  uint64_t bits[HRA_TILE / 64])
{
    unsigned char hit[HRA_TILE];
    uint64_t part[WORDS];

    switch (mask->kind) {
    case HRA_MASK_FULL:
    case HRA_MASK_CAUSAL:
    case HRA_MASK_WINDOW:
    case HRA_MASK_DOCS:
        hit_tokens(mask, query, key, count, hit);
        break;
    case HRA_MASK_GRID:
    case HRA_MASK_NEIGHBOURHOOD:
        hit_grid(mask, query, key, count, hit);
        break;
    case HRA_MASK_BLOCKS:
        hit_blocks(mask, query, key, count, hit);
        break;
    case HRA_MASK_AND:
    case HRA_MASK_OR:
        hra_mask_row(mask->child[0], head, query, key, count, bits);
        for (int n = 1; n < mask->children; n++) {
            hra_mask_row(mask->child[n], head, query, key, count, part);
            for (int w = 0; w < WORDS; w++)
                bits[w] = mask->kind == HRA_MASK_AND ? bits[w] & part[w] : bits[w] | part[w];
        }
        return;
    case HRA_MASK_HEADS:
        hra_mask_row(mask->child[mask->child_of[head]], head, query, key, count, bits);
        return;
    }
    memset(hit + count, 0, (size_t)(HRA_TILE - count));
    for (int w = 0; w < WORDS; w++) {
        uint64_t word = 0;

        for (int b = 0; b < 64; b++)
            word |= (uint64_t)hit[64 * w + b] << b;
        bits[w] = word;
    }
}

const struct hra_space *hra_mask_space(const hra_mask *mask)
{
    return &mask->space;
}

/* ---- Making: masks without children ---------------------------------------------------------- */

static hra_status create(hra_mask **out, const struct hra_space *space, enum hra_mask_kind kind)
{
    void *memory;

    HRA_TRY(hra_alloc(&memory, 1, sizeof(hra_mask), "a mask"));
    hra_mask *m = memory;
    m->references = 1;
    m->kind = kind;
    m->depth = 1;
    m->parts = 1;
    m->space = *space;
    *out = m;
    return HRA_OK;
}

/* Give a finished mask to the caller, or take down one that could not be finished. */
static hra_status finish(hra_mask **out, hra_mask *m, hra_status status)
{
    if (status == HRA_OK)
        *out = m;
    else
        hra_mask_destroy(m);
    return status;
}

static hra_status read_space(struct hra_space *space, hra_mask **out, const hra_domain *domain,
                             const char *name)
{
    if (out == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: out is a NULL pointer", name);
    return hra_space_read(space, domain);
}

hra_status hra_mask_full(hra_mask **out, const hra_domain *domain)
{
    struct hra_space space;

    HRA_TRY(read_space(&space, out, domain, "full"));
    return create(out, &space, HRA_MASK_FULL);
}

hra_status hra_mask_causal(hra_mask **out, const hra_domain *domain)
{
    struct hra_space space;

    HRA_TRY(read_space(&space, out, domain, "causal"));
    return create(out, &space, HRA_MASK_CAUSAL);
}

hra_status hra_mask_window(hra_mask **out, const hra_domain *domain, int64_t left, int64_t right)
{
    struct hra_space space;
    hra_mask *m;

    HRA_TRY(read_space(&space, out, domain, "window"));
    HRA_TRY(create(&m, &space, HRA_MASK_WINDOW));
    m->left = left;
    m->right = right;
    *out = m;
    return HRA_OK;
}

/* grid and neighbourhood: extent [axes], each `least` or more. */
static hra_status create_on_grid(hra_mask **out, const hra_domain *domain, const int64_t *extent,
                                 enum hra_mask_kind kind)
{
    const char *name = kind == HRA_MASK_GRID ? "grid" : "neighbourhood";
    const char *what = kind == HRA_MASK_GRID ? "radius" : "extent";
    const int64_t least = kind == HRA_MASK_GRID ? 0 : 1;
    struct hra_space space;
    hra_mask *m;

    HRA_TRY(read_space(&space, out, domain, name));
    if (extent == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: %s is a NULL pointer", name, what);
    if (space.axes == 0)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: the domain of %" PRId64 " tokens has no grid", name,
                        space.tokens);
    for (int a = 0; a < space.axes; a++)
        if (extent[a] < least)
            return HRA_FAIL(HRA_ERR_ARG,
                            "%s mask: the %s of axis %d is %" PRId64 ", it must be %" PRId64 " or more", name,
                            what, a, extent[a], least);
    HRA_TRY(create(&m, &space, kind));
    for (int a = 0; a < space.axes; a++)
        m->extent[a] =
            kind == HRA_MASK_NEIGHBOURHOOD && extent[a] > space.grid[a] ? space.grid[a] : extent[a];
    *out = m;
    return HRA_OK;
}

hra_status hra_mask_grid(hra_mask **out, const hra_domain *domain, const int64_t *radius)
{
    return create_on_grid(out, domain, radius, HRA_MASK_GRID);
}

hra_status hra_mask_neighbourhood(hra_mask **out, const hra_domain *domain, const int64_t *extent)
{
    return create_on_grid(out, domain, extent, HRA_MASK_NEIGHBOURHOOD);
}

static hra_status fill_docs(hra_mask *m, const int64_t *length, int64_t count)
{
    const int64_t tokens = m->space.tokens;
    int64_t end = 0;
    void *memory;

    for (int64_t n = 0; n < count; n++) {
        if (length[n] < 1)
            return HRA_FAIL(HRA_ERR_ARG, "docs mask: length %" PRId64 " is %" PRId64 ", it must be 1 or more",
                            n, length[n]);
        if (length[n] > tokens - end)
            return HRA_FAIL(HRA_ERR_ARG,
                            "docs mask: the first %" PRId64 " lengths add up to more than the %" PRId64
                            " tokens of the domain",
                            n + 1, tokens);
        end += length[n];
    }
    if (end != tokens)
        return HRA_FAIL(HRA_ERR_ARG,
                        "docs mask: the %" PRId64 " lengths add up to %" PRId64 ", the domain has %" PRId64
                        " tokens",
                        count, end, tokens);
    HRA_TRY(hra_alloc(&memory, count + 1, sizeof(int64_t), "the documents of a mask"));
    m->start = memory;
    m->count = count;
    for (int64_t n = 0; n < count; n++)
        m->start[n + 1] = m->start[n] + length[n];
    return HRA_OK;
}

hra_status hra_mask_docs(hra_mask **out, const hra_domain *domain, const int64_t *length, int64_t count)
{
    struct hra_space space;
    hra_mask *m;

    HRA_TRY(read_space(&space, out, domain, "docs"));
    if (length == NULL || count < 1)
        return HRA_FAIL(HRA_ERR_ARG,
                        length == NULL ? "docs mask: length is a NULL pointer, count is %" PRId64
                                       : "docs mask: count is %" PRId64 ", it must be 1 or more",
                        count);
    HRA_TRY(create(&m, &space, HRA_MASK_DOCS));
    return finish(out, m, fill_docs(m, length, count));
}

static int ascending(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static hra_status fill_blocks(hra_mask *m, const int64_t *query_block, const int64_t *key_block,
                              int64_t count)
{
    void *memory;

    m->count = (m->space.tokens - 1) / m->block + 1;
    for (int64_t n = 0; n < count; n++)
        if (query_block[n] < 0 || query_block[n] >= m->count || key_block[n] < 0 || key_block[n] >= m->count)
            return HRA_FAIL(HRA_ERR_ARG,
                            "blocks mask: pair %" PRId64 " is query block %" PRId64 ", key block %" PRId64
                            ", they must be 0 to %" PRId64 " (%" PRId64 " tokens in blocks of %" PRId64 ")",
                            n, query_block[n], key_block[n], m->count - 1, m->space.tokens, m->block);
    HRA_TRY(hra_alloc(&memory, m->count + 1, sizeof(int64_t), "the blocks of a mask"));
    m->start = memory;
    HRA_TRY(hra_alloc(&memory, count, sizeof(int64_t), "the blocks of a mask"));
    m->key = memory;

    /* Count into start[b + 1], sum, fill backwards from the ends, which leaves the beginnings. */
    for (int64_t n = 0; n < count; n++)
        m->start[query_block[n]]++;
    for (int64_t b = 0; b < m->count; b++)
        m->start[b + 1] += m->start[b];
    for (int64_t n = count - 1; n >= 0; n--)
        m->key[--m->start[query_block[n]]] = key_block[n];

    int64_t kept = 0;
    for (int64_t b = 0; b < m->count; b++) {
        const int64_t begin = m->start[b], end = m->start[b + 1];

        if (end > begin)
            qsort(m->key + begin, (size_t)(end - begin), sizeof(int64_t), ascending);
        m->start[b] = kept;
        for (int64_t n = begin; n < end; n++)
            if (n == begin || m->key[n] != m->key[kept - 1])
                m->key[kept++] = m->key[n];
    }
    m->start[m->count] = kept;
    return HRA_OK;
}

hra_status hra_mask_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                           const int64_t *query_block, const int64_t *key_block, int64_t count)
{
    struct hra_space space;
    hra_mask *m;

    HRA_TRY(read_space(&space, out, domain, "blocks"));
    if (block_tokens < 1)
        return HRA_FAIL(HRA_ERR_ARG, "blocks mask: blocks of %" PRId64 " tokens, it must be 1 or more",
                        block_tokens);
    if (count < 0)
        return HRA_FAIL(HRA_ERR_ARG, "blocks mask: count is %" PRId64 ", it must be 0 or more", count);
    if (count > 0 && (query_block == NULL || key_block == NULL))
        return HRA_FAIL(HRA_ERR_ARG, "blocks mask: %s is a NULL pointer, count is %" PRId64,
                        query_block == NULL ? "query_block" : "key_block", count);
    HRA_TRY(create(&m, &space, HRA_MASK_BLOCKS));
    m->block = block_tokens;
    return finish(out, m, fill_blocks(m, query_block, key_block, count));
}

/* ---- Making: masks of masks ------------------------------------------------------------------ */

/* All masks are there and made for the same domain. `name` names the combination. */
static hra_status check_alike(const hra_mask *const *mask, int count, const char *name)
{
    for (int n = 0; n < count; n++) {
        if (mask[n] == NULL)
            return HRA_FAIL(HRA_ERR_ARG, "%s mask: mask %d is a NULL pointer", name, n);
        const struct hra_space *a = &mask[0]->space, *b = &mask[n]->space;
        const int64_t values[][2] = {
            {a->batch, b->batch},     {a->heads, b->heads},     {a->tokens, b->tokens},  {a->axes, b->axes},
            {a->grid[0], b->grid[0]}, {a->grid[1], b->grid[1]}, {a->grid[2], b->grid[2]}};
        static const char *const words[] = {"batch",       "heads",       "tokens",     "axes of the grid",
                                            "grid axis 0", "grid axis 1", "grid axis 2"};

        for (size_t v = 0; v < sizeof(words) / sizeof(words[0]); v++)
            if (values[v][0] != values[v][1])
                return HRA_FAIL(HRA_ERR_ARG,
                                "%s mask: masks 0 and %d are made for different domains: %s %" PRId64
                                " and %" PRId64,
                                name, n, words[v], values[v][0], values[v][1]);
    }
    return HRA_OK;
}

/* Hold references on the masks; of those whose kind is ours, on their children instead. */
static hra_status adopt(hra_mask *m, const hra_mask *const *mask, int count, const char *name)
{
    int64_t children = 0;
    void *memory;

    for (int n = 0; n < count; n++) {
        const int same = mask[n]->kind == m->kind && m->kind != HRA_MASK_HEADS;

        children += same ? mask[n]->children : 1;
        m->parts += mask[n]->parts - same;
        if (mask[n]->depth + !same > m->depth)
            m->depth = mask[n]->depth + !same;
        if (m->parts > HRA_MASK_PARTS)
            return HRA_FAIL(HRA_ERR_ARG, "%s mask: it has more than %" PRId64 " parts", name, HRA_MASK_PARTS);
    }
    if (m->depth > HRA_MASK_DEPTH)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: masks are nested more than %d deep", name, HRA_MASK_DEPTH);
    HRA_TRY(hra_alloc(&memory, children, sizeof(*m->child), "the parts of a mask"));
    m->child = memory;
    for (int n = 0; n < count; n++) {
        if (mask[n]->kind != m->kind || m->kind == HRA_MASK_HEADS) {
            m->child[m->children++] = hra_mask_keep(mask[n]);
            continue;
        }
        for (int c = 0; c < mask[n]->children; c++)
            m->child[m->children++] = hra_mask_keep(mask[n]->child[c]);
    }
    return HRA_OK;
}

hra_status hra_mask_combine(hra_mask **out, enum hra_mask_kind kind, const hra_mask *const *mask, int count)
{
    const char *name = kind == HRA_MASK_AND ? "and" : "or";
    hra_mask *m;

    HRA_TRY(check_alike(mask, count, name));
    if (count == 1) {
        *out = hra_mask_keep(mask[0]);
        return HRA_OK;
    }
    HRA_TRY(create(&m, &mask[0]->space, kind));
    return finish(out, m, adopt(m, mask, count, name));
}

hra_status hra_mask_and(hra_mask **out, const hra_mask *a, const hra_mask *b)
{
    if (out == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "and mask: out is a NULL pointer");
    return hra_mask_combine(out, HRA_MASK_AND, (const hra_mask *const[2]){a, b}, 2);
}

hra_status hra_mask_or(hra_mask **out, const hra_mask *a, const hra_mask *b)
{
    if (out == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "or mask: out is a NULL pointer");
    return hra_mask_combine(out, HRA_MASK_OR, (const hra_mask *const[2]){a, b}, 2);
}

static hra_status fill_heads(hra_mask *m, const int *first, const int *last, const hra_mask *const *mask,
                             int count)
{
    const int heads = m->space.heads;
    void *memory;
    int ranges = 0;

    HRA_TRY(adopt(m, mask, count, "heads"));
    HRA_TRY(hra_alloc(&memory, heads, sizeof(int), "the heads of a mask"));
    m->child_of = memory;
    for (int h = 0; h < heads; h++)
        m->child_of[h] = -1;
    for (int n = 0; n < count; n++) {
        if (first[n] < 0 || last[n] < first[n] || last[n] >= heads)
            return HRA_FAIL(HRA_ERR_ARG,
                            "heads mask: range %d is heads %d to %d, the domain has heads 0 to %d", n,
                            first[n], last[n], heads - 1);
        for (int h = first[n]; h <= last[n]; h++) {
            if (m->child_of[h] >= 0)
                return HRA_FAIL(HRA_ERR_ARG, "heads mask: head %d is in two ranges, %d to %d and %d to %d", h,
                                first[m->child_of[h]], last[m->child_of[h]], first[n], last[n]);
            m->child_of[h] = n;
        }
    }
    for (int h = 0; h < heads; h++)
        if (m->child_of[h] < 0)
            return HRA_FAIL(HRA_ERR_ARG, "heads mask: head %d of %d is in no range", h, heads);

    HRA_TRY(hra_alloc(&memory, count, sizeof(int), "the heads of a mask"));
    m->first = memory;
    HRA_TRY(hra_alloc(&memory, count, sizeof(int), "the heads of a mask"));
    m->last = memory;
    /* The ranges cover every head once, so the heads in their order bring the ranges in theirs. */
    for (int h = 0; h < heads; h++) {
        if (h == 0 || m->child_of[h] != m->child_of[h - 1]) {
            m->first[ranges] = h;
            m->last[ranges++] = last[m->child_of[h]];
        }
    }
    return HRA_OK;
}

hra_status hra_mask_heads(hra_mask **out, const int *first, const int *last, const hra_mask *const *mask,
                          int count)
{
    hra_mask *m;

    if (out == NULL || first == NULL || last == NULL || mask == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "heads mask: %s is a NULL pointer",
                        out == NULL     ? "out"
                        : first == NULL ? "first"
                        : last == NULL  ? "last"
                                        : "mask");
    if (count < 1)
        return HRA_FAIL(HRA_ERR_ARG, "heads mask: count is %d, it must be 1 or more", count);
    HRA_TRY(check_alike(mask, count, "heads"));
    HRA_TRY(create(&m, &mask[0]->space, HRA_MASK_HEADS));
    return finish(out, m, fill_heads(m, first, last, mask, count));
}

hra_mask *hra_mask_keep(const hra_mask *mask)
{
    hra_mask *m = (hra_mask *)mask; /* constant for its users but for the count */

    __atomic_add_fetch(&m->references, 1, __ATOMIC_RELAXED);
    return m;
}

void hra_mask_destroy(hra_mask *mask)
{
    if (mask == NULL || __atomic_sub_fetch(&mask->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    for (int n = 0; n < mask->children; n++)
        hra_mask_destroy(mask->child[n]);
    free(mask->child);
    free(mask->first);
    free(mask->last);
    free(mask->child_of);
    free(mask->start);
    free(mask->key);
    free(mask);
}

/* mask.c - how masks are made, and what tells them apart.
 *
 * A mask is checked, filled and, when it is whole, given its key: a hash of its kind, its parameters and
 * the keys of its parts. Where heads() and batches() choose among parts the key is found when it is asked
 * for, from keys that are there already. */
#include "src/mask.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Keys ------------------------------------------------------------------------------------ */

/* The mask that holds for this (batch, head): what heads() and batches() choose. */
static const hra_mask *resolve(const hra_mask *m, int batch, int head)
{
    while (m->kind == HRA_MASK_HEADS || m->kind == HRA_MASK_BATCHES)
        m = m->child[m->child_of[m->kind == HRA_MASK_HEADS ? head : batch]];
    return m;
}

/* Go on with the keys of the parts. A part that turns out to be of the kind of & or | that it stands in
 * counts as its parts, as it does where masks are combined. */
static uint64_t add_parts(uint64_t hash, const hra_mask *m, int batch, int head)
{
    for (int n = 0; n < m->children; n++) {
        const hra_mask *part = resolve(m->child[n], batch, head);

        if (part->kind == m->kind && (m->kind == HRA_MASK_AND || m->kind == HRA_MASK_OR)) {
            hash = add_parts(hash, part, batch, head);
        } else {
            const uint64_t key = hra_mask_key(part, batch, head);
            hash = hra_hash_words(hash, &key, sizeof(key));
        }
    }
    return hash;
}

/* The key of a mask that is neither heads() nor batches(). */
static uint64_t derive(const hra_mask *m, int batch, int head)
{
    const int64_t offset = m->offset == HRA_OFFSET_HEAD ? head % m->rate : m->offset;
    /* What a kind has no use for is 0. */
    const int64_t number[] = {
        m->kind,      m->left,      m->right,   m->extent[0], m->extent[1], m->extent[2], m->stride[0],
        m->stride[1], m->stride[2], m->segment, m->rate,      offset,       m->mode,      m->global,
        m->width,     m->step,      m->levels,  m->drawn,     m->count,     m->block,     (int64_t)m->seed};
    uint64_t hash = hra_hash_words(HRA_HASH_BEGIN, number, sizeof(number));

    if (m->start != NULL)
        hash = hra_hash_words(hash, m->start, (size_t)(m->count + 1) * sizeof(int64_t));
    if (m->key != NULL)
        hash = hra_hash_words(hash, m->key, (size_t)m->start[m->count] * sizeof(int64_t));
    if (m->kind == HRA_MASK_SLOTS)
        hash = hra_hash_words(hash, &m->order[0]->hash, sizeof(uint64_t));
    return add_parts(hash, m, batch, head);
}

uint64_t hra_mask_key(const hra_mask *mask, int batch, int head)
{
    const hra_mask *m = resolve(mask, batch, head);

    return m->by_batch || m->by_head ? derive(m, batch, head) : m->hash;
}

uint64_t hra_mask_hash(const hra_mask *mask)
{
    const struct hra_space *space = &mask->space;
    const int batches = mask->by_batch ? space->batch : 1, heads = mask->by_head ? space->heads : 1;
    const int64_t shape[] = {space->grid[0], space->grid[1], space->grid[2], batches, heads};
    uint64_t hash = hra_hash_words(HRA_HASH_BEGIN, shape, sizeof(shape));

    for (int b = 0; b < batches; b++)
        for (int h = 0; h < heads; h++) {
            const uint64_t key = hra_mask_key(mask, b, h);
            hash = hra_hash_words(hash, &key, sizeof(key));
        }
    return hash;
}

int hra_mask_by_batch(const hra_mask *mask)
{
    return mask->by_batch;
}

int hra_mask_by_head(const hra_mask *mask)
{
    return mask->by_head;
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

/* Give a whole mask to the caller, or take down one that could not be finished. */
static hra_status finish(hra_mask **out, hra_mask *m, hra_status status)
{
    if (status != HRA_OK) {
        hra_mask_destroy(m);
        return status;
    }
    if (!m->by_batch && !m->by_head)
        m->hash = derive(m, 0, 0);
    *out = m;
    return HRA_OK;
}

/* What every maker of a mask `name` looks at first; out is the caller's. */
static hra_status read_space(struct hra_space *space, hra_mask **out, const hra_domain *domain,
                             const char *name)
{
    if (out == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: out is a NULL pointer", name);
    return hra_space_read(space, domain);
}

/* A number of the mask `name` is from low to high; HRA_UNBOUNDED: no limit. `what` names the number. */
static hra_status check(const char *name, const char *what, int64_t value, int64_t low, int64_t high)
{
    if (value < low && high == HRA_UNBOUNDED)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: %s is %" PRId64 ", it must be %" PRId64 " or more", name, what,
                        value, low);
    if (value < low || value > high)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: %s is %" PRId64 ", it must be %" PRId64 " to %" PRId64, name,
                        what, value, low, high);
    return HRA_OK;
}

hra_status hra_mask_full(hra_mask **out, const hra_domain *domain)
{
    struct hra_space space;
    hra_mask *m = NULL;

    HRA_TRY(read_space(&space, out, domain, "full"));
    HRA_TRY(create(&m, &space, HRA_MASK_FULL));
    return finish(out, m, HRA_OK);
}

hra_status hra_mask_causal(hra_mask **out, const hra_domain *domain)
{
    struct hra_space space;
    hra_mask *m = NULL;

    HRA_TRY(read_space(&space, out, domain, "causal"));
    HRA_TRY(create(&m, &space, HRA_MASK_CAUSAL));
    return finish(out, m, HRA_OK);
}

hra_status hra_mask_window(hra_mask **out, const hra_domain *domain, int64_t left, int64_t right)
{
    struct hra_space space;
    hra_mask *m = NULL;

    HRA_TRY(read_space(&space, out, domain, "window"));
    HRA_TRY(create(&m, &space, HRA_MASK_WINDOW));
    m->left = left;
    m->right = right;
    return finish(out, m, HRA_OK);
}

/* grid and neighbourhood, made but for their strides: extent [axes]. */
static hra_status create_on_grid(hra_mask **made, hra_mask **out, const hra_domain *domain,
                                 const int64_t *extent, enum hra_mask_kind kind)
{
    const char *name = kind == HRA_MASK_GRID ? "grid" : "neighbourhood";
    const char *what = kind == HRA_MASK_GRID ? "radius" : "extent";
    struct hra_space space;
    char axis[40];

    HRA_TRY(read_space(&space, out, domain, name));
    if (extent == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: %s is a NULL pointer", name, what);
    if (space.axes == 0)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: the domain of %" PRId64 " tokens has no grid", name,
                        space.tokens);
    for (int a = 0; a < space.axes; a++) {
        snprintf(axis, sizeof(axis), "the %s of axis %d", what, a);
        HRA_TRY(check(name, axis, extent[a], kind == HRA_MASK_GRID ? 0 : 1, HRA_UNBOUNDED));
    }
    HRA_TRY(create(made, &space, kind));
    (*made)->on_grid = 1;
    memcpy((*made)->extent, extent, (size_t)space.axes * sizeof(*extent));
    return HRA_OK;
}

hra_status hra_mask_grid(hra_mask **out, const hra_domain *domain, const int64_t *radius)
{
    hra_mask *m = NULL;

    HRA_TRY(create_on_grid(&m, out, domain, radius, HRA_MASK_GRID));
    return finish(out, m, HRA_OK);
}

hra_status hra_mask_neighbourhood(hra_mask **out, const hra_domain *domain, const int64_t *extent,
                                  const int64_t *stride)
{
    hra_status status = HRA_OK;
    char axis[40];
    hra_mask *m = NULL;

    HRA_TRY(create_on_grid(&m, out, domain, extent, HRA_MASK_NEIGHBOURHOOD));
    for (int a = 0; a < 3; a++)
        m->stride[a] = 1;
    for (int a = 0; a < m->space.axes && status == HRA_OK; a++) {
        snprintf(axis, sizeof(axis), "the stride of axis %d", a);
        if (stride != NULL)
            status = check("neighbourhood", axis, stride[a], 1, extent[a]);
        /* A window as long as its axis is the same for all queries, however they are grouped. */
        if (extent[a] >= m->space.grid[a])
            m->extent[a] = m->space.grid[a];
        else if (stride != NULL)
            m->stride[a] = stride[a];
    }
    return finish(out, m, status);
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
    hra_mask *m = NULL;

    HRA_TRY(read_space(&space, out, domain, "docs"));
    if (length == NULL || count < 1)
        return HRA_FAIL(HRA_ERR_ARG,
                        length == NULL ? "docs mask: length is a NULL pointer, count is %" PRId64
                                       : "docs mask: count is %" PRId64 ", it must be 1 or more",
                        count);
    HRA_TRY(create(&m, &space, HRA_MASK_DOCS));
    return finish(out, m, fill_docs(m, length, count));
}

hra_status hra_mask_dilated(hra_mask **out, const hra_domain *domain, int64_t segment, int64_t rate,
                            int64_t offset, hra_dilation mode)
{
    struct hra_space space;
    hra_mask *m = NULL;

    HRA_TRY(read_space(&space, out, domain, "dilated"));
    HRA_TRY(check("dilated", "segment", segment, 1, HRA_UNBOUNDED));
    HRA_TRY(check("dilated", "rate", rate, 1, HRA_UNBOUNDED));
    HRA_TRY(check("dilated", "mode", (int64_t)mode, HRA_DILATED_KEYS, HRA_DILATED_RESIDUE));
    if (offset != HRA_OFFSET_HEAD)
        HRA_TRY(check("dilated", "offset", offset, 0, rate - 1));
    if (mode == HRA_DILATED_RESIDUE && offset != 0)
        return HRA_FAIL(HRA_ERR_ARG,
                        offset < 0 ? "dilated mask: offset is the head, mode residue takes offset 0 only"
                                   : "dilated mask: offset is %" PRId64 ", mode residue takes offset 0 only",
                        offset);
    HRA_TRY(create(&m, &space, HRA_MASK_DILATED));
    m->segment = segment;
    m->rate = rate;
    m->offset = offset;
    m->mode = mode;
    m->by_head = offset == HRA_OFFSET_HEAD && rate > 1;
    return finish(out, m, HRA_OK);
}

hra_status hra_mask_global(hra_mask **out, const hra_domain *domain, int64_t count)
{
    struct hra_space space;
    hra_mask *m = NULL;

    HRA_TRY(read_space(&space, out, domain, "global"));
    HRA_TRY(check("global", "count", count, 1, HRA_UNBOUNDED));
    HRA_TRY(create(&m, &space, HRA_MASK_GLOBAL));
    m->global = count;
    return finish(out, m, HRA_OK);
}

/* ---- Making: masks of blocks ------------------------------------------------------------------ */

/* A mask of blocks of so many tokens, with their number. */
static hra_status create_blocks(hra_mask **made, hra_mask **out, const hra_domain *domain,
                                int64_t block_tokens, const char *name, enum hra_mask_kind kind)
{
    struct hra_space space;

    HRA_TRY(read_space(&space, out, domain, name));
    if (block_tokens < 1)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: blocks of %" PRId64 " tokens, it must be 1 or more", name,
                        block_tokens);
    HRA_TRY(create(made, &space, kind));
    (*made)->block = block_tokens;
    (*made)->count = (space.tokens - 1) / block_tokens + 1;
    return HRA_OK;
}

static int ascending(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Bring a list into ascending order, which it mostly has. */
static void sort(int64_t *list, int64_t count)
{
    for (int64_t n = 1; n < count; n++)
        if (list[n] < list[n - 1]) {
            qsort(list, (size_t)count, sizeof(*list), ascending);
            return;
        }
}

/* Memory for the lists of a mask of blocks, so many entries in all: first the entries, which are refused
 * before any memory is touched where they are absurdly many. */
static hra_status alloc_lists(hra_mask *m, int64_t entries)
{
    void *memory;

    HRA_TRY(hra_alloc(&memory, entries, sizeof(int64_t), "the blocks of a mask"));
    m->key = memory;
    HRA_TRY(hra_alloc(&memory, m->count < INT64_MAX ? m->count + 1 : m->count, sizeof(int64_t),
                      "the blocks of a mask"));
    m->start = memory;
    return HRA_OK;
}

static hra_status fill_blocks(hra_mask *m, const int64_t *query_block, const int64_t *key_block,
                              int64_t count)
{
    for (int64_t n = 0; n < count; n++)
        if (query_block[n] < 0 || query_block[n] >= m->count || key_block[n] < 0 || key_block[n] >= m->count)
            return HRA_FAIL(HRA_ERR_ARG,
                            "blocks mask: pair %" PRId64 " is query block %" PRId64 ", key block %" PRId64
                            ", they must be 0 to %" PRId64 " (%" PRId64 " tokens in blocks of %" PRId64 ")",
                            n, query_block[n], key_block[n], m->count - 1, m->space.tokens, m->block);
    HRA_TRY(alloc_lists(m, count));

    /* Count into start, sum up to the ends, fill backwards, which leaves the beginnings. */
    for (int64_t n = 0; n < count; n++)
        m->start[query_block[n]]++;
    for (int64_t b = 0; b < m->count; b++)
        m->start[b + 1] += m->start[b];
    for (int64_t n = count - 1; n >= 0; n--)
        m->key[--m->start[query_block[n]]] = key_block[n];

    int64_t kept = 0;
    for (int64_t b = 0; b < m->count; b++) {
        const int64_t begin = m->start[b], end = m->start[b + 1];

        sort(m->key + begin, end - begin);
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
    hra_mask *m = NULL;

    HRA_TRY(check("blocks", "count", count, 0, HRA_UNBOUNDED));
    if (count > 0 && (query_block == NULL || key_block == NULL))
        return HRA_FAIL(HRA_ERR_ARG, "blocks mask: %s is a NULL pointer, count is %" PRId64,
                        query_block == NULL ? "query_block" : "key_block", count);
    HRA_TRY(create_blocks(&m, out, domain, block_tokens, "blocks", HRA_MASK_BLOCKS));
    return finish(out, m, fill_blocks(m, query_block, key_block, count));
}

hra_status hra_mask_local_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                 int64_t width)
{
    hra_mask *m = NULL;

    HRA_TRY(check("local_blocks", "width", width, 0, HRA_UNBOUNDED));
    HRA_TRY(create_blocks(&m, out, domain, block_tokens, "local_blocks", HRA_MASK_LOCAL_BLOCKS));
    m->width = width;
    return finish(out, m, HRA_OK);
}

hra_status hra_mask_strided_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                   int64_t stride, int64_t width)
{
    hra_mask *m = NULL;

    HRA_TRY(check("strided_blocks", "stride", stride, 1, HRA_UNBOUNDED));
    HRA_TRY(check("strided_blocks", "width", width, 0, HRA_UNBOUNDED));
    HRA_TRY(create_blocks(&m, out, domain, block_tokens, "strided_blocks", HRA_MASK_STRIDED_BLOCKS));
    m->step = stride;
    m->width = width;
    return finish(out, m, HRA_OK);
}

hra_status hra_mask_global_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                  int64_t global, int64_t width)
{
    hra_mask *m = NULL;

    HRA_TRY(check("global_blocks", "global", global, 0, HRA_UNBOUNDED));
    HRA_TRY(check("global_blocks", "width", width, 0, HRA_UNBOUNDED));
    HRA_TRY(create_blocks(&m, out, domain, block_tokens, "global_blocks", HRA_MASK_GLOBAL_BLOCKS));
    m->global = global;
    m->width = width;
    return finish(out, m, HRA_OK);
}

hra_status hra_mask_hierarchical_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                        int64_t width, int levels)
{
    hra_mask *m = NULL;

    HRA_TRY(check("hierarchical_blocks", "width", width, 0, HRA_UNBOUNDED));
    HRA_TRY(check("hierarchical_blocks", "levels", levels, 1, 62));
    HRA_TRY(
        create_blocks(&m, out, domain, block_tokens, "hierarchical_blocks", HRA_MASK_HIERARCHICAL_BLOCKS));
    m->width = width;
    m->levels = levels;
    return finish(out, m, HRA_OK);
}

/* One step of splitmix64 (Steele, Lea, Flood 2014) from state x. */
static uint64_t scramble(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* Draw the lists of random_blocks. Of N blocks, query block I has I and k = min(drawn, N - 1) others, which
 * are numbered 0 .. N - 2 with I left out. For n = 0 .. k - 1 (Floyd's sampling without replacement):
 *     d = N - 1 - k + n
 *     t = floor(f(f(f(seed) + I) + n) (d + 1) / 2^64), with f = scramble
 *     take t, or d if t is taken already
 * Each draw depends on (seed, I, n) and what is taken. */
static hra_status draw(hra_mask *m)
{
    __extension__ typedef unsigned __int128 wide;
    const int64_t others = m->count - 1, k = m->drawn < others ? m->drawn : others;
    int64_t entries, *taken;
    void *memory;

    if (__builtin_mul_overflow(m->count, k + 1, &entries))
        entries = INT64_MAX; /* more than memory can hold */
    HRA_TRY(alloc_lists(m, entries));
    HRA_TRY(hra_alloc(&memory, m->count, sizeof(int64_t), "the blocks of a mask"));
    taken = memory; /* [count] 1 + the last query block that has it */
    for (int64_t i = 0; i < m->count; i++) {
        const uint64_t row = scramble(scramble(m->seed) + (uint64_t)i);
        int64_t *key = m->key + i * (k + 1);

        m->start[i + 1] = (i + 1) * (k + 1);
        key[0] = i;
        taken[i] = i + 1;
        for (int64_t n = 0; n < k; n++) {
            const int64_t d = others - k + n;
            const int64_t t = (int64_t)((wide)scramble(row + (uint64_t)n) * (uint64_t)(d + 1) >> 64);

            key[n + 1] = t < i ? t : t + 1;
            if (taken[key[n + 1]] == i + 1)
                key[n + 1] = d < i ? d : d + 1;
            taken[key[n + 1]] = i + 1;
        }
        if (k < m->count / 16) {
            sort(key, k + 1);
            continue;
        }
        for (int64_t b = 0; b < m->count; b++) /* a long list is there in order already */
            if (taken[b] == i + 1)
                *key++ = b;
    }
    free(taken);
    return HRA_OK;
}

hra_status hra_mask_random_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                  int64_t count, uint64_t seed)
{
    hra_mask *m = NULL;

    HRA_TRY(check("random_blocks", "count", count, 0, HRA_UNBOUNDED));
    HRA_TRY(create_blocks(&m, out, domain, block_tokens, "random_blocks", HRA_MASK_RANDOM_BLOCKS));
    m->drawn = count;
    m->seed = seed;
    return finish(out, m, draw(m));
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

/* What of a part is true of the whole; the orders that it reads are held. */
static hra_status inherit(hra_mask *m, const hra_mask *part, const char *name)
{
    m->by_batch |= part->by_batch;
    m->by_head |= part->by_head;
    m->mixture |= part->mixture;
    m->on_grid |= part->on_grid;
    for (int n = 0; n < part->orders; n++) {
        int known = 0;

        while (known < m->orders && m->order[known]->hash != part->order[n]->hash)
            known++;
        if (known == HRA_MASK_ORDERS)
            return HRA_FAIL(HRA_ERR_ARG, "%s mask: its slots() name more than %d different orders", name,
                            HRA_MASK_ORDERS);
        if (known == m->orders)
            m->order[m->orders++] = hra_order_keep(part->order[n]);
    }
    return HRA_OK;
}

/* Hold references on the masks; of those of the same kind of & or |, on their children instead. */
static hra_status adopt(hra_mask *m, const hra_mask *const *mask, int count, const char *name)
{
    const int flat = m->kind == HRA_MASK_AND || m->kind == HRA_MASK_OR;
    int64_t children = 0;
    void *memory;

    for (int n = 0; n < count; n++) {
        const int same = flat && mask[n]->kind == m->kind;

        children += same ? mask[n]->children : 1;
        m->parts += mask[n]->parts - same;
        if (mask[n]->depth + !same > m->depth)
            m->depth = mask[n]->depth + !same;
        if (m->parts > HRA_MASK_PARTS)
            return HRA_FAIL(HRA_ERR_ARG, "%s mask: it has more than %" PRId64 " parts", name, HRA_MASK_PARTS);
        HRA_TRY(inherit(m, mask[n], name));
    }
    if (m->depth > HRA_MASK_DEPTH)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: masks are nested more than %d deep", name, HRA_MASK_DEPTH);
    HRA_TRY(hra_alloc(&memory, children, sizeof(*m->child), "the parts of a mask"));
    m->child = memory;
    for (int n = 0; n < count; n++) {
        if (!flat || mask[n]->kind != m->kind) {
            m->child[m->children++] = hra_mask_keep(mask[n]);
            continue;
        }
        for (int c = 0; c < mask[n]->children; c++)
            m->child[m->children++] = hra_mask_keep(mask[n]->child[c]);
    }
    return HRA_OK;
}

/* A & of one mixture is the mixture of its branches &; nothing of the kind is true of |, and of more. */
static hra_status check_mixtures(enum hra_mask_kind kind, const hra_mask *const *mask, int count)
{
    int earlier = -1;

    for (int n = 0; n < count; n++) {
        if (!mask[n]->mixture)
            continue;
        if (kind == HRA_MASK_OR)
            return HRA_FAIL(HRA_ERR_ARG, "or mask: mask %d is a mixture, | takes none", n);
        if (kind == HRA_MASK_MIX)
            return HRA_FAIL(HRA_ERR_ARG, "mix mask: mask %d is a mixture itself", n);
        if (earlier >= 0)
            return HRA_FAIL(HRA_ERR_ARG, "and mask: masks %d and %d are both mixtures, & takes at most one",
                            earlier, n);
        earlier = n;
    }
    return HRA_OK;
}

hra_status hra_mask_combine(hra_mask **out, enum hra_mask_kind kind, const hra_mask *const *mask, int count)
{
    const char *name = kind == HRA_MASK_AND ? "and" : kind == HRA_MASK_OR ? "or" : "mix";
    hra_mask *m = NULL;

    HRA_TRY(check_alike(mask, count, name));
    if (count > 1 || kind == HRA_MASK_MIX)
        HRA_TRY(check_mixtures(kind, mask, count));
    if (count == 1) {
        *out = hra_mask_keep(mask[0]);
        return HRA_OK;
    }
    HRA_TRY(create(&m, &mask[0]->space, kind));
    m->mixture = kind == HRA_MASK_MIX;
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

hra_status hra_mask_mix(hra_mask **out, const hra_mask *const *mask, int count)
{
    if (out == NULL || mask == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "mix mask: %s is a NULL pointer", out == NULL ? "out" : "mask");
    HRA_TRY(check("mix", "count", count, 1, HRA_UNBOUNDED));
    return hra_mask_combine(out, HRA_MASK_MIX, mask, count);
}

hra_status hra_mask_not(hra_mask **out, const hra_mask *a)
{
    hra_mask *m = NULL;

    if (out == NULL || a == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "not mask: %s is a NULL pointer", out == NULL ? "out" : "the mask");
    if (a->mixture)
        return HRA_FAIL(HRA_ERR_ARG, "not mask: the mask is a mixture, ! takes none");
    if (a->kind == HRA_MASK_NOT) {
        *out = hra_mask_keep(a->child[0]);
        return HRA_OK;
    }
    HRA_TRY(create(&m, &a->space, HRA_MASK_NOT));
    return finish(out, m, adopt(m, &a, 1, "not"));
}

/* " on a grid of 8 x 8" or, without axes, " without a grid" */
static const char *describe(char out[96], const int64_t grid[3], int axes)
{
    int used = snprintf(out, 96, "%s", axes > 0 ? " on a grid of" : " without a grid");

    for (int a = 0; a < axes; a++)
        used += snprintf(out + used, (size_t)(96 - used), a > 0 ? " x %" PRId64 : " %" PRId64, grid[a]);
    return out;
}

hra_status hra_mask_slots(hra_mask **out, const hra_order *order, const hra_mask *mask)
{
    char text[2][96];
    hra_mask *m = NULL;

    if (out == NULL || order == NULL || mask == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "slots mask: %s is a NULL pointer",
                        out == NULL     ? "out"
                        : order == NULL ? "order"
                                        : "mask");
    if (mask->on_grid)
        return HRA_FAIL(HRA_ERR_ARG,
                        "slots mask: the mask has a grid() or neighbourhood() in it, which read the "
                        "coordinates of tokens, not slots");
    if (mask->orders > 0)
        return HRA_FAIL(HRA_ERR_ARG, "slots mask: the mask has a slots() in it already");
    if (!hra_order_fits(order, &mask->space))
        return HRA_FAIL(
            HRA_ERR_ARG,
            "slots mask: order %s is made for %" PRId64 " tokens%s, the mask for %" PRId64 " tokens%s",
            order->name, order->tokens, describe(text[0], order->grid, order->on_grid ? order->axes : 0),
            mask->space.tokens, describe(text[1], mask->space.grid, mask->space.axes));
    HRA_TRY(create(&m, &mask->space, HRA_MASK_SLOTS));
    m->order[m->orders++] = hra_order_keep(order);
    return finish(out, m, adopt(m, &mask, 1, "slots"));
}

/* Note which range holds which child: `unit`s 0 .. all - 1, heads or sequences. */
static hra_status fill_ranges(hra_mask *m, const int *first, const int *last, int count, const char *name,
                              const char *unit, int all)
{
    void *memory;
    int ranges = 0;

    HRA_TRY(hra_alloc(&memory, all, sizeof(int), "the ranges of a mask"));
    m->child_of = memory;
    for (int h = 0; h < all; h++)
        m->child_of[h] = -1;
    for (int n = 0; n < count; n++) {
        if (first[n] < 0 || last[n] < first[n] || last[n] >= all)
            return HRA_FAIL(HRA_ERR_ARG, "%s mask: range %d is %ss %d to %d, the domain has %ss 0 to %d",
                            name, n, unit, first[n], last[n], unit, all - 1);
        for (int h = first[n]; h <= last[n]; h++) {
            if (m->child_of[h] >= 0)
                return HRA_FAIL(HRA_ERR_ARG, "%s mask: %s %d is in two ranges, %d to %d and %d to %d", name,
                                unit, h, first[m->child_of[h]], last[m->child_of[h]], first[n], last[n]);
            m->child_of[h] = n;
        }
    }
    for (int h = 0; h < all; h++)
        if (m->child_of[h] < 0)
            return HRA_FAIL(HRA_ERR_ARG, "%s mask: %s %d of %d is in no range", name, unit, h, all);

    HRA_TRY(hra_alloc(&memory, count, sizeof(int), "the ranges of a mask"));
    m->first = memory;
    HRA_TRY(hra_alloc(&memory, count, sizeof(int), "the ranges of a mask"));
    m->last = memory;
    /* The ranges cover all once, so going through all in order meets the ranges in order. */
    for (int h = 0; h < all; h++) {
        if (h == 0 || m->child_of[h] != m->child_of[h - 1]) {
            m->first[ranges] = h;
            m->last[ranges++] = last[m->child_of[h]];
        }
    }
    return HRA_OK;
}

/* heads() and batches() */
static hra_status choose(hra_mask **out, const int *first, const int *last, const hra_mask *const *mask,
                         int count, enum hra_mask_kind kind)
{
    const int by_head = kind == HRA_MASK_HEADS;
    const char *name = by_head ? "heads" : "batches";
    hra_mask *m = NULL;

    if (out == NULL || first == NULL || last == NULL || mask == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s mask: %s is a NULL pointer", name,
                        out == NULL     ? "out"
                        : first == NULL ? "first"
                        : last == NULL  ? "last"
                                        : "mask");
    HRA_TRY(check(name, "count", count, 1, HRA_UNBOUNDED));
    HRA_TRY(check_alike(mask, count, name));
    HRA_TRY(create(&m, &mask[0]->space, kind));
    m->by_head = by_head;
    m->by_batch = !by_head;
    hra_status status = adopt(m, mask, count, name);
    if (status == HRA_OK)
        status = fill_ranges(m, first, last, count, name, by_head ? "head" : "sequence",
                             by_head ? m->space.heads : m->space.batch);
    return finish(out, m, status);
}

hra_status hra_mask_heads(hra_mask **out, const int *first, const int *last, const hra_mask *const *mask,
                          int count)
{
    return choose(out, first, last, mask, count, HRA_MASK_HEADS);
}

hra_status hra_mask_batches(hra_mask **out, const int *first, const int *last, const hra_mask *const *mask,
                            int count)
{
    return choose(out, first, last, mask, count, HRA_MASK_BATCHES);
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
    for (int n = 0; n < mask->orders; n++)
        hra_order_destroy(mask->order[n]);
    free(mask->child);
    free(mask->first);
    free(mask->last);
    free(mask->child_of);
    free(mask->start);
    free(mask->key);
    free(mask);
}

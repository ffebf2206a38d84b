/* lists.c - see lists.h.
 *
 * A query tile's list is that of its pattern, restricted to the chunks of a launch that have its K/V head, in
 * the order of the chunks and of key tiles within one. (batch, head) pairs with the same pattern and the same
 * chunks share it.
 *
 * Items are begun in the order in which they are written here, each by the multiprocessor that is free first.
 * Longest first leaves little idle at the end; but what runs at one time should read the same K and V, or
 * they are fetched from memory again and again. So K/V heads are taken in sections, whose K and V fit the L2
 * cache together, and within a section the longest items go first. Where the K and V of one head are more
 * than that, items of about the same length go by query tile, so that neighbours, which mostly have the same
 * keys, run at one time. */
#include "kernels/sm90/lists.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of K and V that the L2 cache of 50 MB keeps beside what passes through it. */
enum { SECTION_BYTES = 32 << 20 };

/* Items with costs of one bucket differ by 2 %; those of ROUGH of them by a quarter. 2^32 tiles are of bucket
 * 1240. */
enum { BUCKETS = 1248, ROUGH = 11 };
static const double bucket_ratio = 1.02;

/* What a tile costs, in tenths of a full one. */
enum { FULL_COST = 10, PARTIAL_COST = 11 };

/* The lists of one pattern for one set of chunks of a launch. */
struct view {
    int pattern;
    unsigned chunks;  /* bit c: chunk chunk0 + c of the run */
    int64_t *start;   /* [query tiles of the run + 1] entries */
    uint16_t *bucket; /* [query tiles of the run] */
    int before;       /* the view of the pattern that was made before, -1: none */
};

struct builder {
    const struct hra_kernel_plan *plan;
    const struct hra_shapes *shapes;
    struct hra_sm90_work *work;
    const struct hra_shape **shape; /* [launches] of its first chunk */
    struct view *view;              /* [views] */
    int views, capacity;
    int *view_of; /* [launches][batch][heads], -1: no chunk */
    int *newest;  /* [patterns] scratch: newest view of the launch, -1: none */
    int *first;   /* [batch][heads][queries] first and last launch with tiles, -1: none */
    int *last;
};

/* ---- Launches ---- */

static hra_status cut_launches(struct builder *b)
{
    const struct hra_shapes *s = b->shapes;
    struct hra_sm90_work *w = b->work;

    HRA_TRY(hra_alloc((void **)&w->launch, s->count, sizeof(*w->launch), "launches"));
    HRA_TRY(hra_alloc((void **)&b->shape, s->count, sizeof(*b->shape), "launches"));
    for (int i = 0, chunk = 0; i < s->count; i++, chunk++) {
        struct hra_sm90_launch *l = w->launches > 0 ? &w->launch[w->launches - 1] : NULL;
        if (l == NULL || s->shape[i].run != l->run || l->chunks == HRA_SM90_CHUNKS) {
            chunk = l != NULL && s->shape[i].run == l->run ? chunk : 0;
            l = &w->launch[w->launches];
            *l = (struct hra_sm90_launch){.run = s->shape[i].run, .chunk0 = chunk};
            b->shape[w->launches++] = &s->shape[i];
        }
        l->chunks++;
    }
    return HRA_OK;
}

/* The chunks of a launch that have a K/V head. */
static unsigned chunks_of(const struct builder *b, int launch, int head_kv)
{
    unsigned chunks = 0;

    for (int c = 0; c < b->work->launch[launch].chunks; c++)
        if (head_kv >= b->shape[launch][c].head0 && head_kv < b->shape[launch][c].head1)
            chunks |= 1u << c;
    return chunks;
}

/* ---- Lists ---- */

static hra_status add_entry(struct hra_sm90_work *w, uint32_t row, uint32_t tile)
{
    if (w->entries == w->capacity) {
        const int64_t capacity = w->capacity == 0 ? 1024 : 2 * w->capacity;
        struct hra_sm90_entry *larger = NULL;
        if (capacity > UINT32_MAX)
            return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: lists have more than %lld tiles",
                            (long long)w->entries);
        HRA_TRY(hra_alloc_unset((void **)&larger, capacity, sizeof(*larger), "lists"));
        if (w->entries > 0)
            memcpy(larger, w->entry, (size_t)w->entries * sizeof(*larger));
        free(w->entry);
        w->entry = larger;
        w->capacity = capacity;
    }
    w->entry[w->entries++] = (struct hra_sm90_entry){row, tile};
    return HRA_OK;
}

/* The first tile of a row of a list whose key tile is `key` or later. */
static int64_t find_key(const struct hra_tile_list *list, int query, int key)
{
    int64_t low = list->row_start[query], high = list->row_start[query + 1];

    while (low < high) {
        const int64_t mid = low + (high - low) / 2;
        if (list->key[mid] < key)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The tiles of a query tile that are in one chunk; *cost grows by what they cost. */
static hra_status add_chunk(const struct builder *b, const struct hra_tile_list *list, int query,
                            const struct hra_shape *chunk, unsigned number, int64_t *cost)
{
    const int64_t base = b->plan->key[chunk->key_tile0].row0;

    for (int64_t i = find_key(list, query, chunk->key_tile0);
         i < list->row_start[query + 1] && list->key[i] < chunk->key_tile1; i++) {
        const uint32_t bitmap = list->bitmap[i] == HRA_FULL ? 0 : (uint32_t)list->bitmap[i] + 1;
        *cost += bitmap == 0 ? FULL_COST : PARTIAL_COST;
        HRA_TRY(add_entry(b->work, (uint32_t)(b->plan->key[list->key[i]].row0 - base),
                          bitmap | number << HRA_SM90_CHUNK_BIT));
    }
    return HRA_OK;
}

static hra_status fill_view(const struct builder *b, int launch, struct view *v)
{
    const struct hra_shape *chunk = b->shape[launch];
    const int tiles = chunk->query1 - chunk->query0;

    HRA_TRY(hra_alloc((void **)&v->start, (int64_t)tiles + 1, sizeof(*v->start), "lists"));
    HRA_TRY(hra_alloc((void **)&v->bucket, tiles, sizeof(*v->bucket), "lists"));
    for (int t = 0; t < tiles; t++) {
        int64_t cost = 0;
        v->start[t] = b->work->entries;
        for (unsigned c = 0; c < HRA_SM90_CHUNKS; c++)
            if (v->chunks >> c & 1)
                HRA_TRY(add_chunk(b, &b->plan->list[v->pattern], chunk->query0 + t, &chunk[c], c, &cost));
        v->bucket[t] = (uint16_t)(cost == 0 ? 0 : log((double)cost) / log(bucket_ratio));
    }
    v->start[tiles] = b->work->entries;
    return HRA_OK;
}

/* The view of a pattern and a set of chunks in a launch; made where there is none yet. */
static hra_status find_view(int *out, struct builder *b, int launch, int pattern, unsigned chunks)
{
    for (int v = b->newest[pattern]; v >= 0; v = b->view[v].before)
        if (b->view[v].chunks == chunks) {
            *out = v;
            return HRA_OK;
        }
    if (b->views == b->capacity) {
        const int capacity = b->capacity == 0 ? 16 : 2 * b->capacity;
        struct view *larger = NULL;
        HRA_TRY(hra_alloc((void **)&larger, capacity, sizeof(*larger), "lists"));
        if (b->views > 0)
            memcpy(larger, b->view, (size_t)b->views * sizeof(*larger));
        free(b->view);
        b->view = larger;
        b->capacity = capacity;
    }
    *out = b->views++;
    b->view[*out] = (struct view){.pattern = pattern, .chunks = chunks, .before = b->newest[pattern]};
    b->newest[pattern] = *out;
    return fill_view(b, launch, &b->view[*out]);
}

/* Find which launches are the first and the last with tiles for the query tiles of a pair. */
static void note_ends(struct builder *b, int launch, int pair, const struct view *v)
{
    const struct hra_shape *shape = b->shape[launch];
    const int64_t place = (int64_t)pair * b->plan->queries + shape->query0;

    for (int t = 0; t < shape->query1 - shape->query0; t++) {
        if (v->start[t] == v->start[t + 1])
            continue;
        if (b->first[place + t] < 0)
            b->first[place + t] = launch;
        b->last[place + t] = launch;
    }
}

static hra_status make_lists(struct builder *b)
{
    const struct hra_kernel_plan *p = b->plan;
    const int pairs = p->batch * p->heads;

    for (int l = 0; l < b->work->launches; l++) {
        for (int n = 0; n < p->patterns; n++)
            b->newest[n] = -1;
        for (int i = 0; i < pairs; i++) {
            const unsigned chunks = chunks_of(b, l, i % p->heads / (p->heads / p->heads_kv));
            int *view = &b->view_of[(int64_t)l * pairs + i];
            *view = -1;
            if (chunks == 0)
                continue;
            HRA_TRY(find_view(view, b, l, p->pattern[i], chunks));
            note_ends(b, l, i, &b->view[*view]);
        }
    }
    return HRA_OK;
}

/* ---- Items ---- */

static struct hra_sm90_item make_item(const struct hra_kernel_plan *p, int pair, int query)
{
    return (struct hra_sm90_item){.row0 = (int32_t)p->query[query].row0,
                                  .rows = (int16_t)p->query[query].rows,
                                  .batch = pair / p->heads,
                                  .head = pair % p->heads,
                                  .head_kv = pair % p->heads / (p->heads / p->heads_kv),
                                  .state = (uint32_t)((int64_t)pair * p->queries + query)};
}

/* K/V heads group0 .. group1 - 1, counted through all batches, and how many buckets count as one. */
struct section {
    int group0, group1, coarse;
};

/* Count the items of a section by bucket into place[]; with `item`, write each at item[place[bucket]++]
 * too. */
static void visit_section(const struct builder *b, int launch, const struct section *s, int64_t *place,
                          struct hra_sm90_item *item)
{
    const struct hra_kernel_plan *p = b->plan;
    const struct hra_shape *shape = b->shape[launch];
    const int group = p->heads / p->heads_kv;

    for (int g = s->group0; g < s->group1; g++)
        for (int t = 0; t < shape->query1 - shape->query0; t++)
            for (int pair = g * group; pair < (g + 1) * group; pair++) {
                const int view = b->view_of[(int64_t)launch * p->batch * p->heads + pair];
                if (view < 0 || b->view[view].start[t] == b->view[view].start[t + 1])
                    continue;
                const struct view *v = &b->view[view];
                const int64_t at = place[v->bucket[t] / s->coarse]++;
                if (item == NULL)
                    continue;
                item[at] = make_item(p, pair, shape->query0 + t);
                item[at].entry0 = (uint32_t)v->start[t];
                item[at].entries = (uint32_t)(v->start[t + 1] - v->start[t]);
                item[at].flags = (int16_t)((b->first[item[at].state] == launch ? HRA_SM90_BEGINS : 0) |
                                           (b->last[item[at].state] == launch ? HRA_SM90_ENDS : 0));
            }
}

/* The longest bucket first. Returns the number of items. */
static int64_t write_section(const struct builder *b, int launch, const struct section *s,
                             struct hra_sm90_item *item)
{
    int64_t place[BUCKETS] = {0}, items = 0;

    visit_section(b, launch, s, place, NULL);
    for (int bucket = BUCKETS - 1; bucket >= 0; bucket--) {
        const int64_t count = place[bucket];
        place[bucket] = items;
        items += count;
    }
    visit_section(b, launch, s, place, item);
    return items;
}

/* Bytes of the K and V of one K/V head in a launch. */
static int64_t head_bytes(const struct builder *b, int launch)
{
    const struct hra_kernel_plan *p = b->plan;
    int64_t rows = 0;

    for (int c = 0; c < b->work->launch[launch].chunks; c++)
        for (int k = b->shape[launch][c].key_tile0; k < b->shape[launch][c].key_tile1; k++)
            rows += p->key[k].rows;
    return rows * (p->dim + p->dim_v) * (int64_t)hra_type_bytes(p->type);
}

/* Sections are equal, so that the last one is not too small to be spread well. */
static void write_launch(struct builder *b, int launch)
{
    struct hra_sm90_launch *l = &b->work->launch[launch];
    const int64_t groups = (int64_t)b->plan->batch * b->plan->heads_kv, bytes = head_bytes(b, launch);
    const int64_t most = bytes <= SECTION_BYTES / groups ? groups
                         : bytes <= SECTION_BYTES        ? SECTION_BYTES / bytes
                                                         : 1;
    const int64_t sections = (groups + most - 1) / most;

    l->item0 = b->work->items;
    for (int64_t i = 0; i < sections; i++) {
        const struct section s = {.group0 = (int)(i * groups / sections),
                                  .group1 = (int)((i + 1) * groups / sections),
                                  .coarse = bytes <= SECTION_BYTES ? 1 : ROUGH};
        b->work->items += write_section(b, launch, &s, b->work->item + b->work->items);
    }
    l->items = (int)(b->work->items - l->item0);
}

static hra_status make_items(struct builder *b)
{
    const struct hra_kernel_plan *p = b->plan;
    const int64_t places = (int64_t)p->batch * p->heads * p->queries;
    int64_t most = places; /* room for those without keys */

    for (int l = 0; l < b->work->launches; l++)
        most += (int64_t)p->batch * p->heads * (b->shape[l]->query1 - b->shape[l]->query0);
    HRA_TRY(hra_alloc_unset((void **)&b->work->item, most, sizeof(*b->work->item), "items"));
    for (int l = 0; l < b->work->launches; l++)
        write_launch(b, l);
    b->work->nothing0 = b->work->items;
    for (int64_t i = 0; i < places; i++)
        if (b->first[i] < 0)
            b->work->item[b->work->items++] = make_item(p, (int)(i / p->queries), (int)(i % p->queries));
    return HRA_OK;
}

/* ---- All of it ---- */

static hra_status build(struct builder *b)
{
    const struct hra_kernel_plan *p = b->plan;
    const int64_t pairs = (int64_t)p->batch * p->heads, places = pairs * p->queries;

    if (places > INT32_MAX)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "sm90: batch %d x heads %d x %d query tiles of this rank are more than 2^31",
                        p->batch, p->heads, p->queries);
    HRA_TRY(cut_launches(b));
    HRA_TRY(hra_alloc((void **)&b->view_of, b->work->launches * pairs, sizeof(*b->view_of), "lists"));
    HRA_TRY(hra_alloc((void **)&b->newest, p->patterns, sizeof(*b->newest), "lists"));
    HRA_TRY(hra_alloc_unset((void **)&b->first, places, sizeof(*b->first), "items"));
    HRA_TRY(hra_alloc_unset((void **)&b->last, places, sizeof(*b->last), "items"));
    for (int64_t i = 0; i < places; i++)
        b->first[i] = b->last[i] = -1;
    HRA_TRY(make_lists(b));
    return make_items(b);
}

hra_status hra_sm90_lay_out(struct hra_sm90_work *out, const struct hra_kernel_plan *plan,
                            const struct hra_shapes *shapes)
{
    struct builder b = {.plan = plan, .shapes = shapes, .work = out};

    memset(out, 0, sizeof(*out));
    const hra_status status = build(&b);
    for (int v = 0; v < b.views; v++) {
        free(b.view[v].start);
        free(b.view[v].bucket);
    }
    free(b.view);
    free(b.shape);
    free(b.view_of);
    free(b.newest);
    free(b.first);
    free(b.last);
    return status;
}

void hra_sm90_work_clear(struct hra_sm90_work *work)
{
    free(work->launch);
    free(work->item);
    free(work->entry);
    memset(work, 0, sizeof(*work));
}

void hra_sm90_pack_bits(void *out, const hra_bits *bits)
{
    struct hra_sm90_bits *packed = out;

    memset(packed, 0, sizeof(*packed));
    for (int t = 0; t < HRA_SM90_CONSUMERS; t++)
        for (int i = 0; i < 64; i++) {
            const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 32);
            const int column = 8 * (i % 32 / 2) + 2 * (t % 4) + i % 2;
            const uint64_t bit = (*bits)[row][column / 64] >> column % 64 & 1;
            packed->word[t][i / 32] |= (uint32_t)bit << i % 32;
        }
}

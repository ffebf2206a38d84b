/* lists.c - see lists.h.
 *
 * A query tile's list is that of its pattern, restricted to the chunks of a launch that have its K/V head, in
 * the order of the chunks and of key tiles within one. (batch, head) pairs with the same pattern and the same
 * chunks share it.
 *
 * With 64 channels a launch is by the kernel of three groups where that is expected to take less time. Three
 * query tiles then become two items, of the first and half of the second and of the rest, each with the list
 * of all key tiles that one of its two tiles has; those whose lists differ too much stay items of their own.
 *
 * Where many tiles are needed by halves only, of their 64 keys or of 64 queries, a pattern is packed: its items' lists
 * are of steps, in each of which either half of the queries has two halves of keys of its own or shared. A launch that has
 * patterns of both kinds becomes two. The order of a row's sum is then that of the halves within a chunk, and so depends
 * on where keys are cut into chunks.
 *
 * Items are begun in the order in which they are written here, each by the multiprocessor that is free first.
 * Longest first leaves little idle at the end; but what runs at one time should read the same K and V, or
 * they are fetched from memory again and again. So K/V heads are taken in sections, whose K and V fit the L2
 * cache together, and within a section the longest items go first. Where the K and V of one head are more
 * than that, items of about the same length go by query tile, so that neighbours, which mostly have the same
 * keys, run at one time. What that leaves idle in the end is mended by cutting a few items in two (cuts.c). */
#include "kernels/sm90/lists.h"

#include "kernels/sm90/cuts.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of K and V that the L2 cache of 50 MB keeps beside what passes through it. */
enum { SECTION_BYTES = 32 << 20 };

/* Items with costs of one bucket differ by 2 %; those of ROUGH of them by a quarter. 2^32 tiles are of bucket
 * 1240. */
enum { BUCKETS = 1248, ROUGH = 11 };
static const double bucket_ratio = 1.02;

/* What a tile costs, in tenths of a full one. Three groups take 1.35 of the time of two for it (measured), and 0.9 for
 * as many rows. */
enum { FULL_COST = 10, PARTIAL_COST = 11 };
static const double three_groups = 1.35;

/* The item of a query tile, if it has one: alone, or with what follows it. */
struct unit {
    int64_t entry0, entries; /* 0: none */
    double cost;
    int16_t tiles, half0; /* 1, or 2, which it has three halves of, from that half of the first on */
    uint16_t bucket;
};

/* The lists of one pattern for one set of chunks of a launch. */
struct view {
    int pattern;
    unsigned chunks;   /* bit c: chunk chunk0 + c of the run */
    struct unit *unit; /* [query tiles of the run] */
    int before;        /* the view of the pattern that was made before, -1: none */
};

/* What the items of a launch cost. */
struct costs {
    double all, longest;
};

/* What a bitmap has in its quarters, bit 2 g + h: rows of group g, columns of half h. */
struct quarters {
    uint8_t some, all;
};

/* Halves of key tiles of one chunk that a query tile needs: bits as in hra_sm90_packed, by group. */
struct half {
    uint32_t row, bits[2];
};

struct builder {
    const struct hra_kernel_plan *plan;
    struct quarters *quarter; /* [bitmaps] */
    uint8_t *packs;           /* [patterns] */
    struct half *half[3];     /* [2 most] scratch: of both groups, of group 0 alone, of group 1 alone */
    int halves[3];
    const struct hra_shapes *shapes;
    const struct hra_sm90_boxes *boxes; /* NULL: rows lie as in the plan */
    int processors;
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

    HRA_TRY(hra_alloc((void **)&w->launch, 2 * (int64_t)s->count, sizeof(*w->launch), "launches"));
    HRA_TRY(hra_alloc((void **)&b->shape, 2 * (int64_t)s->count, sizeof(*b->shape), "launches"));
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

/* Where half h of a key tile begins in its chunk, or in the grid. */
static uint32_t place_of(const struct builder *b, const struct hra_shape *chunk, int key, int h)
{
    if (b->boxes != NULL)
        return b->boxes->at[2 * key + h];
    return (uint32_t)(b->plan->key[key].row0 - b->plan->key[chunk->key_tile0].row0) +
           HRA_TILE / 2 * (uint32_t)h;
}

/* The same memory with room for more. */
static hra_status grow(void **memory, int64_t count, int64_t capacity, size_t bytes)
{
    void *larger = NULL;

    HRA_TRY(hra_alloc_unset(&larger, capacity, bytes, "lists"));
    if (count > 0)
        memcpy(larger, *memory, (size_t)count * bytes);
    free(*memory);
    *memory = larger;
    return HRA_OK;
}

static hra_status add_entry(struct hra_sm90_work *w, int joins, struct hra_sm90_entry entry, uint32_t second)
{
    if (w->entries == w->capacity) {
        const int64_t capacity = w->capacity == 0 ? 1024 : 2 * w->capacity;
        if (capacity > UINT32_MAX)
            return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: lists have more than %lld tiles",
                            (long long)w->entries);
        HRA_TRY(grow((void **)&w->entry, w->entries, capacity, sizeof(*w->entry)));
        if (joins)
            HRA_TRY(grow((void **)&w->second, w->entries, capacity, sizeof(*w->second)));
        w->capacity = capacity;
    }
    if (joins)
        w->second[w->entries] = second;
    w->entry[w->entries++] = entry;
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

/* The tiles of a row of a list in one chunk that are still to come. */
struct rest {
    const struct hra_tile_list *list;
    int64_t at, end;
};

static struct rest rest_of(const struct hra_tile_list *list, int query, const struct hra_shape *chunk)
{
    return (struct rest){list, find_key(list, query, chunk->key_tile0),
                         find_key(list, query, chunk->key_tile1)};
}

/* The next key tile, INT_MAX where there is none. */
static int next_key(const struct rest *r)
{
    return r->at < r->end ? r->list->key[r->at] : INT_MAX;
}

/* What it has in that key tile, as entries say it; past it if it has any. */
static uint32_t take_key(struct rest *r, int key)
{
    if (next_key(r) != key)
        return HRA_SM90_ABSENT;
    const int bitmap = r->list->bitmap[r->at++];
    return bitmap == HRA_FULL ? 0 : (uint32_t)bitmap + 1;
}

/* The key tiles of one chunk that a unit's query tiles have, written or only counted. */
static hra_status join_chunk(const struct builder *b, const struct view *v, struct unit *u, int query,
                             const struct hra_shape *chunk, unsigned number, int writes)
{
    const struct hra_tile_list *list = &b->plan->list[v->pattern];
    struct rest one = rest_of(list, query, chunk), two = {list, 0, 0};

    if (u->tiles == 2)
        two = rest_of(list, query + 1, chunk);
    for (int key; (key = next_key(next_key(&one) < next_key(&two) ? &one : &two)) != INT_MAX;) {
        const uint32_t first = take_key(&one, key), second = u->tiles == 2 ? take_key(&two, key) : 0;
        u->cost += first == 0 && second == 0 ? FULL_COST : PARTIAL_COST;
        u->entries++;
        if (writes)
            HRA_TRY(add_entry(
                b->work, b->plan->dim == 64,
                (struct hra_sm90_entry){place_of(b, chunk, key, 0), first | number << HRA_SM90_CHUNK_BIT},
                second));
    }
    return HRA_OK;
}

/* The unit that begins with a half of query tile t of the launch. */
static hra_status make_unit(const struct builder *b, int launch, const struct view *v, int t, int tiles,
                            int half0, int writes, struct unit *u)
{
    const struct hra_shape *chunk = b->shape[launch];

    *u = (struct unit){.entry0 = b->work->entries, .tiles = (int16_t)tiles, .half0 = (int16_t)half0};
    for (unsigned c = 0; c < HRA_SM90_CHUNKS; c++)
        if (v->chunks >> c & 1)
            HRA_TRY(join_chunk(b, v, u, chunk->query0 + t, &chunk[c], c, writes));
    u->bucket = (uint16_t)(u->entries == 0 ? 0 : log(u->cost) / log(bucket_ratio));
    return HRA_OK;
}

static void add_cost(struct costs *costs, double cost)
{
    costs->all += cost;
    costs->longest = cost > costs->longest ? cost : costs->longest;
}

/* What query tiles t to t + 2, whose units are counted, cost as two items, and whether they should be: only whole ones that all
 * have keys, and where their lists are alike. */
static hra_status weigh_joined(const struct builder *b, int launch, const struct view *v, int t,
                               double cost[2], int *joins)
{
    const struct hra_shape *shape = b->shape[launch];
    struct unit joined;
    double alone = 0;

    *joins = 0;
    if (t + 2 >= shape->query1 - shape->query0)
        return HRA_OK;
    for (int i = t; i < t + 3; i++) {
        if (b->plan->query[shape->query0 + i].rows < HRA_TILE || v->unit[i].entries == 0)
            return HRA_OK;
        alone += v->unit[i].cost;
    }
    for (int i = 0; i < 2; i++) {
        HRA_TRY(make_unit(b, launch, v, t + i, 2, i, 0, &joined));
        cost[i] = joined.cost;
    }
    *joins = cost[0] + cost[1] < alone;
    return HRA_OK;
}

/* What the items of a view cost with two groups and with three. Its units are counted for two; the first of three that would be
 * joined says that it has two tiles. */
static hra_status weigh_view(const struct builder *b, int launch, const struct view *v, struct costs costs[2])
{
    const int tiles = b->shape[launch]->query1 - b->shape[launch]->query0;

    for (int t = 0; t < tiles; t++) {
        HRA_TRY(make_unit(b, launch, v, t, 1, 0, 0, &v->unit[t]));
        add_cost(&costs[0], v->unit[t].cost);
    }
    for (int t = 0, joins; t < tiles; t += joins ? 3 : 1) {
        double cost[2];
        HRA_TRY(weigh_joined(b, launch, v, t, cost, &joins));
        if (!joins) {
            add_cost(&costs[1], three_groups * v->unit[t].cost);
            continue;
        }
        v->unit[t].tiles = 2;
        add_cost(&costs[1], three_groups * cost[0]);
        add_cost(&costs[1], three_groups * cost[1]);
    }
    return HRA_OK;
}

/* The units of a view with their entries; where weigh_view would join query tiles they are joined, if `joins`. */
static hra_status write_view(const struct builder *b, int launch, const struct view *v, int joins)
{
    const int tiles = b->shape[launch]->query1 - b->shape[launch]->query0;

    for (int t = 0, joined; t < tiles; t += joined ? 3 : 1) {
        joined = joins && v->unit[t].tiles == 2;
        for (int i = 0; i < 1 + joined; i++)
            HRA_TRY(make_unit(b, launch, v, t + i, 1 + joined, i, 1, &v->unit[t + i]));
        if (joined)
            v->unit[t + 2].entries = 0;
    }
    return HRA_OK;
}

/* ---- Packing ---- */

static hra_status find_quarters(struct builder *b)
{
    const struct hra_sm90_bits *bits = b->plan->packed[HRA_FORWARD];
    int64_t most = 0;

    HRA_TRY(hra_alloc((void **)&b->quarter, b->plan->bitmaps, sizeof(*b->quarter), "lists"));
    for (int i = 0; i < b->plan->bitmaps; i++) {
        b->quarter[i].all = 15;
        for (int t = 0; t < HRA_SM90_CONSUMERS; t++)
            for (int r = 0; r < 2; r++)
                for (int h = 0; h < 2; h++) {
                    const uint32_t word = bits[i].word[t][h] >> 16 * r & 0xffff;
                    const int quarter = 1 << (t / 128 * 2 + h);
                    b->quarter[i].some |= (uint8_t)(word != 0 ? quarter : 0);
                    b->quarter[i].all &= (uint8_t)(word == 0xffff ? 15 : ~quarter);
                }
    }
    for (int n = 0; n < b->plan->patterns; n++)
        for (int q = 0; q < b->plan->queries; q++) {
            const int64_t *start = b->plan->list[n].row_start;
            most = start[q + 1] - start[q] > most ? start[q + 1] - start[q] : most;
        }
    for (int i = 0; i < 3; i++)
        HRA_TRY(hra_alloc((void **)&b->half[i], 2 * most, sizeof(*b->half[i]), "lists"));
    return HRA_OK;
}

/* Sort the halves that a query tile needs of a chunk by who needs them; those that are full for both first. */
static void find_halves(struct builder *b, const struct hra_tile_list *list, int query,
                        const struct hra_shape *chunk)
{
    b->halves[0] = b->halves[1] = b->halves[2] = 0;
    for (int full = 1; full >= 0; full--)
        for (struct rest r = rest_of(list, query, chunk); r.at < r.end; r.at++)
            for (int h = 0; h < 2; h++) {
                const int bitmap = list->bitmap[r.at];
                struct half x = {place_of(b, chunk, list->key[r.at], h), {0, 0}};
                for (int g = 0; g < 2 && bitmap != HRA_FULL; g++) {
                    const int quarter = 1 << (2 * g + h);
                    x.bits[g] = b->quarter[bitmap].all & quarter ? 0
                                : b->quarter[bitmap].some & quarter
                                    ? (uint32_t)bitmap + 1 + (h ? HRA_SM90_RIGHT : 0)
                                    : HRA_SM90_NONE;
                }
                if ((x.bits[0] == 0 && x.bits[1] == 0) != full ||
                    (x.bits[0] == HRA_SM90_NONE && x.bits[1] == HRA_SM90_NONE))
                    continue;
                const int kind = x.bits[0] == HRA_SM90_NONE ? 2 : x.bits[1] == HRA_SM90_NONE ? 1 : 0;
                b->half[kind][b->halves[kind]++] = x;
            }
}

static int larger(int a, int b)
{
    return a > b ? a : b;
}

/* The steps of the halves that find_halves found. */
static int count_steps(const struct builder *b)
{
    return (b->halves[0] + larger(b->halves[1], b->halves[2]) + 1) / 2;
}

/* A step of the n-th unit and the next: a unit is a half that both groups need, or one of each group's own, of which one
 * may have none left. Group 0's own lie first, group 1's last, what they share between: so each has two behind one
 * another. Of a single half there are two copies, for nobody reads what has not come. */
static struct hra_sm90_packed make_step(const struct builder *b, int n)
{
    static const int kinds[3] = {1, 0, 2};
    struct hra_sm90_packed step = {.places = 0};
    const struct half *at[4] = {NULL};
    int users[4] = {0}, halves = 0;

    for (int k = 0; k < 3; k++)
        for (int i = n; i < n + 2; i++) {
            const int kind = kinds[k], place = kind == 0 ? i : i - b->halves[0];
            if (place < 0 || place >= b->halves[kind])
                continue;
            at[halves] = &b->half[kind][place];
            users[halves++] = kind == 0 ? 3 : kind;
        }
    if (halves == 1) {
        at[1] = at[0];
        users[1] = 0;
        halves = 2;
    }
    for (int i = 0; i < halves; i++)
        step.row[i] = at[i]->row;
    for (int g = 0; g < 2; g++)
        for (int i = 0; i < 2; i++) {
            const int half = g == 0 ? i : halves - 2 + i;
            step.bits[g][i] = users[half] >> g & 1 ? at[half]->bits[g] : HRA_SM90_NONE;
        }
    step.places = (uint32_t)halves;
    return step;
}

static hra_status add_step(struct hra_sm90_work *w, struct hra_sm90_packed step)
{
    if (w->steps == w->step_capacity) {
        const int64_t capacity = w->step_capacity == 0 ? 1024 : 2 * w->step_capacity;
        HRA_TRY(grow((void **)&w->step, w->steps, capacity, sizeof(*w->step)));
        w->step_capacity = capacity;
    }
    w->step[w->steps++] = step;
    return HRA_OK;
}

/* The steps of a query tile in one chunk. */
static hra_status pack_chunk(struct builder *b, const struct view *v, struct unit *u, int query,
                             const struct hra_shape *chunk, unsigned number)
{
    find_halves(b, &b->plan->list[v->pattern], query, chunk);
    const int steps = count_steps(b);
    u->entries += steps;
    u->cost += PARTIAL_COST * steps;
    for (int n = 0; n < steps; n++) {
        struct hra_sm90_packed step = make_step(b, 2 * n);
        step.places |= number << HRA_SM90_CHUNK_BIT;
        HRA_TRY(add_step(b->work, step));
    }
    return HRA_OK;
}

static hra_status pack_unit(struct builder *b, int launch, const struct view *v, int t, struct unit *u)
{
    const struct hra_shape *chunk = b->shape[launch];

    *u = (struct unit){.entry0 = b->work->steps, .tiles = 1};
    for (unsigned c = 0; c < HRA_SM90_CHUNKS; c++)
        if (v->chunks >> c & 1)
            HRA_TRY(pack_chunk(b, v, u, chunk->query0 + t, &chunk[c], c));
    u->bucket = (uint16_t)(u->entries == 0 ? 0 : log(u->cost) / log(bucket_ratio));
    return HRA_OK;
}

/* Which patterns are faster packed? There are fewer steps than tiles, but a step costs 1.06 of a tile (measured), and
 * with 64 channels packed lists forgo the third group. Of a tile's halves those count that exist, so that a ragged end
 * packs nothing. The answer must not depend on how keys are cut, nor on what shares a launch, so all keys are looked at.
 * Of rows by token whole tiles are copied where they are boxes; else halves are. */
static void choose_packing(struct builder *b)
{
    const struct hra_kernel_plan *p = b->plan;
    const struct hra_shape all = {.query1 = p->queries, .key_tile1 = p->keys};
    const int most = p->dim == 64 ? 85 : 93; /* steps for a hundred tiles */

    for (int n = 0; n < p->patterns; n++) {
        const struct hra_tile_list *list = &p->list[n];
        int64_t steps = 0, halves = 0;
        for (int q = 0; q < p->queries; q++) {
            find_halves(b, list, q, &all);
            steps += count_steps(b);
        }
        for (int64_t i = 0; i < list->row_start[p->queries]; i++)
            halves += 1 + (p->key[list->key[i]].rows > HRA_TILE / 2);
        b->packs[n] = steps > 0 && (200 * steps <= most * halves || (b->boxes != NULL && !b->boxes->whole));
    }
}

/* Where some patterns are packed and some are not, every launch becomes two. */
static void split_launches(struct builder *b)
{
    struct hra_sm90_work *w = b->work;
    int packed = 0;

    for (int n = 0; n < b->plan->patterns; n++)
        packed += b->packs[n];
    const int both = packed > 0 && packed < b->plan->patterns;
    for (int l = w->launches - 1; l >= 0; l--)
        for (int i = both; i >= 0; i--) {
            w->launch[l * (1 + both) + i] = w->launch[l];
            w->launch[l * (1 + both) + i].packed = both ? i : packed > 0;
            b->shape[l * (1 + both) + i] = b->shape[l];
        }
    w->launches *= 1 + both;
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
    struct view *const v = &b->view[b->views];
    *v = (struct view){.pattern = pattern, .chunks = chunks, .before = b->newest[pattern]};
    HRA_TRY(hra_alloc((void **)&v->unit, b->shape[launch]->query1 - b->shape[launch]->query0,
                      sizeof(*v->unit), "lists"));
    *out = b->newest[pattern] = b->views++;
    return HRA_OK;
}

/* Find which launches are the first and the last with tiles for the query tiles of a pair. */
static void note_ends(struct builder *b, int launch, int pair, const struct view *v)
{
    const struct hra_shape *shape = b->shape[launch];
    const int64_t place = (int64_t)pair * b->plan->queries + shape->query0;

    for (int t = 0; t < shape->query1 - shape->query0; t++)
        for (int i = t; v->unit[t].entries > 0 && i < t + v->unit[t].tiles; i++) {
            if (b->first[place + i] < 0)
                b->first[place + i] = launch;
            b->last[place + i] = launch;
        }
}

/* By how many groups is a launch computed? Its views are all there; view0 is the first. Items begin one after another, so
 * that of the longest about half is waited for at the end. */
static hra_status choose_groups(struct builder *b, int launch, int view0)
{
    const int pairs = b->plan->batch * b->plan->heads, *const view_of = b->view_of + (int64_t)launch * pairs;
    struct costs sum[2] = {{0, 0}, {0, 0}};
    double time[2];

    b->work->launch[launch].groups = 2;
    if (b->plan->dim != 64 || b->boxes != NULL)
        return HRA_OK;
    for (int v = view0; v < b->views; v++) {
        struct costs costs[2] = {{0, 0}, {0, 0}};
        int count = 0;
        HRA_TRY(weigh_view(b, launch, &b->view[v], costs));
        for (int i = 0; i < pairs; i++)
            count += view_of[i] == v;
        for (int n = 0; n < 2; n++) {
            sum[n].all += count * costs[n].all;
            sum[n].longest = costs[n].longest > sum[n].longest ? costs[n].longest : sum[n].longest;
        }
    }
    for (int n = 0; n < 2; n++)
        time[n] = sum[n].all / b->processors + sum[n].longest / 2;
    b->work->launch[launch].groups = time[1] < time[0] ? 3 : 2;
    return HRA_OK;
}

static hra_status make_lists(struct builder *b)
{
    const struct hra_kernel_plan *p = b->plan;
    const int pairs = p->batch * p->heads;

    for (int l = 0; l < b->work->launches; l++) {
        const int view0 = b->views;
        for (int n = 0; n < p->patterns; n++)
            b->newest[n] = -1;
        for (int i = 0; i < pairs; i++) {
            const unsigned chunks = chunks_of(b, l, i % p->heads / (p->heads / p->heads_kv));
            int *view = &b->view_of[(int64_t)l * pairs + i];
            *view = -1;
            if (chunks == 0 || b->packs[p->pattern[i]] != b->work->launch[l].packed)
                continue;
            HRA_TRY(find_view(view, b, l, p->pattern[i], chunks));
        }
        HRA_TRY(choose_groups(b, l, view0));
        if (b->work->launch[l].packed)
            b->work->launch[l].groups = 2;
        for (int v = view0; v < b->views && b->work->launch[l].packed; v++)
            for (int t = 0; t < b->shape[l]->query1 - b->shape[l]->query0; t++)
                HRA_TRY(pack_unit(b, l, &b->view[v], t, &b->view[v].unit[t]));
        for (int v = view0; v < b->views && !b->work->launch[l].packed; v++)
            HRA_TRY(write_view(b, l, &b->view[v], b->work->launch[l].groups == 3));
        for (int i = 0; i < pairs; i++)
            if (b->view_of[(int64_t)l * pairs + i] >= 0)
                note_ends(b, l, i, &b->view[b->view_of[(int64_t)l * pairs + i]]);
    }
    return HRA_OK;
}

/* ---- Items ---- */

static struct hra_sm90_item make_item(const struct builder *b, int pair, int query, int tiles)
{
    const struct hra_kernel_plan *const p = b->plan;
    struct hra_sm90_item item = {.batch = pair / p->heads,
                                 .head = pair % p->heads,
                                 .head_kv = pair % p->heads / (p->heads / p->heads_kv),
                                 .state = (uint32_t)((int64_t)pair * p->queries + query)};

    for (int i = 0; i < tiles; i++) {
        item.row0[i] = (int32_t)p->query[query + i].row0;
        item.rows[i] = (uint8_t)p->query[query + i].rows;
    }
    for (int h = 0; h < 2 && b->boxes != NULL; h++)
        item.at[h] = b->boxes->at[2 * (p->own_key0 + query) + h];
    if (tiles == 1) /* there is no state of it */
        item.flags[1] = HRA_SM90_BEGINS | HRA_SM90_ENDS;
    return item;
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
                const struct unit *u = view < 0 ? NULL : &b->view[view].unit[t];
                if (u == NULL || u->entries == 0)
                    continue;
                const int64_t at = place[u->bucket / s->coarse]++;
                if (item == NULL)
                    continue;
                item[at] = make_item(b, pair, shape->query0 + t, u->tiles);
                item[at].half0 = u->half0;
                item[at].entry0 = (uint32_t)u->entry0;
                item[at].entries = (uint32_t)u->entries;
                for (int i = 0; i < u->tiles; i++)
                    item[at].flags[i] =
                        (uint8_t)((b->first[item[at].state + i] == launch ? HRA_SM90_BEGINS : 0) |
                                  (b->last[item[at].state + i] == launch ? HRA_SM90_ENDS : 0));
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
static hra_status write_launch(struct builder *b, int launch)
{
    struct hra_sm90_launch *l = &b->work->launch[launch];
    const int64_t groups = (int64_t)b->plan->batch * b->plan->heads_kv, bytes = head_bytes(b, launch);
    const int64_t most = bytes <= SECTION_BYTES / groups ? groups
                         : bytes <= SECTION_BYTES        ? SECTION_BYTES / bytes
                                                         : 1;
    const int64_t sections = (groups + most - 1) / most;
    int cuts;

    l->item0 = b->work->items;
    for (int64_t i = 0; i < sections; i++) {
        const struct section s = {.group0 = (int)(i * groups / sections),
                                  .group1 = (int)((i + 1) * groups / sections),
                                  .coarse = bytes <= SECTION_BYTES ? 1 : ROUGH};
        b->work->items += write_section(b, launch, &s, b->work->item + b->work->items);
    }
    l->items = (int)(b->work->items - l->item0);
    HRA_TRY(hra_sm90_cut_items(b->work->item + l->item0, l->items, b->processors, &cuts));
    l->items += cuts;
    b->work->items += cuts;
    return HRA_OK;
}

static hra_status make_items(struct builder *b)
{
    const struct hra_kernel_plan *p = b->plan;
    const int64_t places = (int64_t)p->batch * p->heads * p->queries;
    int64_t most = places; /* room for those without keys */

    for (int l = 0; l < b->work->launches; l++)
        most += (int64_t)p->batch * p->heads * (b->shape[l]->query1 - b->shape[l]->query0) + HRA_SM90_CUTS;
    HRA_TRY(hra_alloc_unset((void **)&b->work->item, most, sizeof(*b->work->item), "items"));
    for (int l = 0; l < b->work->launches; l++)
        HRA_TRY(write_launch(b, l));
    b->work->nothing0 = b->work->items;
    for (int64_t i = 0; i < places; i++)
        if (b->first[i] < 0)
            b->work->item[b->work->items++] = make_item(b, (int)(i / p->queries), (int)(i % p->queries), 1);
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
    HRA_TRY(find_quarters(b));
    HRA_TRY(hra_alloc((void **)&b->packs, p->patterns, 1, "lists"));
    choose_packing(b);
    split_launches(b);
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
                            const struct hra_shapes *shapes, const struct hra_sm90_boxes *boxes,
                            int processors)
{
    struct builder b = {
        .plan = plan, .shapes = shapes, .boxes = boxes, .processors = processors, .work = out};

    memset(out, 0, sizeof(*out));
    const hra_status status = build(&b);
    for (int v = 0; v < b.views; v++)
        free(b.view[v].unit);
    for (int i = 0; i < 3; i++)
        free(b.half[i]);
    free(b.quarter);
    free(b.packs);
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
    free(work->second);
    free(work->step);
    memset(work, 0, sizeof(*work));
}

void hra_sm90_pack_bits(void *out, const hra_bits *bits)
{
    struct hra_sm90_bits *packed = out;

    memset(packed, 0, sizeof(*packed));
    for (int t = 0; t < HRA_SM90_CONSUMERS; t++)
        for (int i = 0; i < 64; i++) {
            const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i % 32 / 16);
            const int column = 8 * (i % 16 / 2) + 2 * (t % 4) + i % 2;
            const uint64_t bit = (*bits)[row][i / 32] >> column & 1;
            packed->word[t][i / 32] |= (uint32_t)bit << i % 32;
        }
}

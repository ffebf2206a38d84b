/* steps.c - see steps.h.
 *
 * dQ of a piece of query rows is a sum over key tiles, which blocks add to at any time; for the same bits every
 * time the order must be fixed, and for speed it must be the one in which they come anyway. So the launch is
 * played through here: items go, one by one, to the block that is free first, and every step gets the time at
 * which its block will be at it. Ranks follow these times. Two items that walk through their queries side by
 * side would come to each piece together, and one would wait for the other at each; so every item begins where
 * it meets fewest others, and goes round.
 *
 * It begins near the others of its head. Blocks that were anywhere in a long sequence would read Q and dO from
 * memory again each, and find dQ there, which takes 96 KB a step where a step has time for 50; blocks that walk
 * behind each other, a few pieces apart, do both in the L2 cache.
 *
 * K/V heads are taken in sections, whose Q, dO and dQ fit the L2 cache together. Within one, items go longest
 * first, as do those of one length by key tile, since neighbours have queries in common; those of one key tile are
 * of different heads, which share no piece. Some are cut in two, so that blocks end together (cuts.c). */
#include "kernels/sm90/steps.h"

#include "kernels/sm90/cuts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of Q, dO and dQ that the L2 cache of 50 MB keeps beside what passes through it. */
enum { SECTION_BYTES = 32 << 20 };

/* What things cost, in sixteenths of a full step. An item loads keys and sums, and writes sums. */
enum { STEP = 16, PARTIAL_STEP = 17, ITEM = 32 };

/* Items whose costs differ by less have one length. In the last section the longest go first, so that blocks end
 * together; in those before, it matters more that neighbours stay together. */
static const double length_ratio = 2, last_length_ratio = 1.02;

/* Where an item may begin: so many places at most are tried, at each so many of its steps, for others that come
 * to the piece up to NEAR steps earlier or later. All attempts together look at about EFFORT steps. What meeting
 * another costs is counted in pieces that lie between the place and where the others are. */
enum { PLACES = 64, LEAST_PLACES = 8, SAMPLES = 24, NEAR = 2, EFFORT = 1 << 27 };
static const int nearness[NEAR + 1] = {64, 32, 16};

/* Who is where and when is kept in a table without lists: what is forgotten makes nothing wrong. */
enum { TABLE_BITS = 20 };

/* An item while it has no block. */
struct draft {
    struct hra_sm90_key_item item;
    int section, bucket, group; /* group: K/V head, counted through batches */
    int tile;                   /* of the launch, counted through its chunks */
    int block;
};

/* A block and when it is free. */
struct idle {
    uint64_t time;
    int block;
};

struct builder {
    const struct hra_kernel_plan *plan;
    const struct hra_shapes *shapes;
    const struct hra_sm90_key_bits *bits;
    struct hra_sm90_steps *out;
    const struct hra_shape **shape; /* [turns] of its first chunk */
    int processors, parts;          /* parts: pieces of a query tile */
    uint8_t *empty;                 /* [bitmaps][2] is nothing live in this half of the queries? */
    struct draft *draft;            /* [drafts] of the launch */
    int64_t drafts;
    const struct draft **last;   /* [batch][heads_kv] the item of each K/V head that began last, or NULL */
    struct idle *idle;           /* [processors] heap, the first is free first */
    uint32_t *where;             /* [1 << TABLE_BITS] */
    uint32_t *time;              /* [steps of the launch] */
    uint32_t *order;             /* [steps of the launch] */
    uint32_t *added;             /* [pieces] */
    struct hra_sm90_step *round; /* [longest item] scratch */
    uint64_t left[HRA_SM90_KEY_CUTS]; /* when first parts end */
};

/* ---- Launches ---- */

static hra_status cut_turns(struct builder *b)
{
    const struct hra_shapes *s = b->shapes;
    struct hra_sm90_steps *w = b->out;

    HRA_TRY(hra_alloc((void **)&w->turn, s->count, sizeof(*w->turn), "launches"));
    HRA_TRY(hra_alloc((void **)&b->shape, s->count, sizeof(*b->shape), "launches"));
    for (int i = 0, chunk = 0; i < s->count; i++, chunk++) {
        const struct hra_sm90_turn *l = w->turns > 0 ? &w->turn[w->turns - 1] : NULL;
        if (l == NULL || s->shape[i].run != l->run || l->chunks == HRA_SM90_CHUNKS) {
            chunk = l != NULL && s->shape[i].run == l->run ? chunk : 0;
            w->turn[w->turns] = (struct hra_sm90_turn){.run = s->shape[i].run, .chunk0 = chunk};
            b->shape[w->turns++] = &s->shape[i];
        }
        w->turn[w->turns - 1].chunks++;
    }
    return HRA_OK;
}

/* ---- Steps ---- */

static hra_status add_step(struct hra_sm90_steps *w, struct hra_sm90_step step)
{
    if (w->steps == w->capacity) {
        const int64_t capacity = w->capacity == 0 ? 1024 : 2 * w->capacity;
        struct hra_sm90_step *larger = NULL;
        if (capacity > UINT32_MAX)
            return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: backward has more than %lld steps",
                            (long long)w->steps);
        HRA_TRY(hra_alloc_unset((void **)&larger, capacity, sizeof(*larger), "backward's lists"));
        if (w->steps > 0)
            memcpy(larger, w->step, (size_t)w->steps * sizeof(*larger));
        free(w->step);
        w->step = larger;
        w->capacity = capacity;
    }
    w->step[w->steps++] = step;
    return HRA_OK;
}

/* Find which halves of bitmaps are empty. */
static hra_status find_empty(struct builder *b)
{
    HRA_TRY(hra_alloc((void **)&b->empty, 2 * (int64_t)b->plan->bitmaps, 1, "backward's lists"));
    for (int64_t i = 0; i < 2 * (int64_t)b->plan->bitmaps; i++) {
        const uint32_t *word = b->bits[i / 2].word[i % 2];
        uint32_t any = 0;
        for (int t = 0; t < HRA_SM90_CONSUMERS; t++)
            any |= word[t];
        b->empty[i] = any == 0;
    }
    return HRA_OK;
}

/* The first tile of a column of a list whose query tile is `query` or later. */
static int64_t find_query(const struct hra_tile_list *list, int key, int query)
{
    int64_t low = list->column_start[key], high = list->column_start[key + 1];

    while (low < high) {
        const int64_t mid = low + (high - low) / 2;
        if (list->query[mid] < query)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The steps of a key tile with one query head, the `head`th of those that share its K/V head. */
static hra_status add_steps(struct builder *b, const struct hra_shape *shape, int pair, int head, int key)
{
    const struct hra_kernel_plan *p = b->plan;
    const struct hra_tile_list *list = &p->list[p->pattern[pair]];

    for (int64_t i = find_query(list, key, shape->query0);
         i < list->column_start[key + 1] && list->query[i] < shape->query1; i++)
        for (int part = 0; part < b->parts; part++) {
            const int bitmap = list->column_bitmap[i], query = list->query[i];
            if (bitmap != HRA_FULL && b->parts == 2 && b->empty[2 * bitmap + part])
                continue;
            const int64_t piece = ((int64_t)head * p->queries + query) * b->parts + part;
            HRA_TRY(add_step(b->out,
                             (struct hra_sm90_step){
                                 .row = (int32_t)(p->query[query].row0 + part * (HRA_TILE / b->parts)),
                                 .piece = (uint32_t)piece,
                                 .bits = bitmap == HRA_FULL ? 0 : 1 + (uint32_t)(bitmap * b->parts + part)}));
        }
    return HRA_OK;
}

/* ---- Drafts ---- */

static uint64_t cost_of(const struct hra_sm90_step *step)
{
    return step->bits == 0 ? STEP : PARTIAL_STEP;
}

/* How many K/V heads, of all batches, are in a section. */
static int64_t section_groups(const struct builder *b, const struct hra_shape *shape)
{
    const struct hra_kernel_plan *p = b->plan;
    const int64_t rows = (int64_t)(shape->query1 - shape->query0) * HRA_TILE;
    const int64_t bytes = rows * p->dim * 8 * (p->heads / p->heads_kv);
    const int64_t groups = (int64_t)p->batch * p->heads_kv;
    const int64_t most = bytes <= SECTION_BYTES / groups ? groups
                         : bytes <= SECTION_BYTES        ? SECTION_BYTES / bytes
                                                         : 1;
    const int64_t sections = (groups + most - 1) / most;

    return (groups + sections - 1) / sections;
}

/* The item of a key tile and a K/V head of the launch. */
static hra_status add_draft(struct builder *b, int launch, int chunk, int key, int group, int64_t in_section,
                            int last_section)
{
    const struct hra_kernel_plan *p = b->plan;
    const struct hra_shape *shape = &b->shape[launch][chunk];
    const int share = p->heads / p->heads_kv, pair0 = group * share;
    const int own = key >= p->own_key0 && key < p->own_key1, head_kv = group % p->heads_kv;
    const uint8_t *summed = own ? b->shapes->summed : NULL;
    struct draft *d = &b->draft[b->drafts++];
    uint64_t cost = ITEM;

    *d = (struct draft){
        .item = {.row0 = (int32_t)(p->key[key].row0 - p->key[shape->key_tile0].row0),
                 .rows = (int16_t)p->key[key].rows,
                 .chunk = (int16_t)chunk,
                 .batch = group / p->heads_kv,
                 .head_kv = head_kv,
                 .summed = summed != NULL && summed[(key - p->own_key0) * p->heads_kv + head_kv],
                 .piece0 = (uint32_t)((int64_t)pair0 * p->queries * b->parts),
                 .step0 = (uint32_t)b->out->steps},
        .section = (int)(group / in_section),
        .group = group,
        .tile = key - shape->key_tile0};
    for (int c = 0; c < chunk; c++)
        d->tile += b->shape[launch][c].key_tile1 - b->shape[launch][c].key_tile0;
    for (int head = 0; head < share; head++)
        HRA_TRY(add_steps(b, shape, pair0 + head, head, key));
    d->item.steps = (uint32_t)(b->out->steps - d->item.step0);
    for (uint32_t i = 0; i < d->item.steps; i++)
        cost += cost_of(&b->out->step[d->item.step0 + i]);
    const double ratio = d->section == last_section ? last_length_ratio : length_ratio;
    d->bucket = d->item.steps == 0 ? -1 : (int)(log((double)cost) / log(ratio));
    return HRA_OK;
}

/* Items without steps last, by chunk. */
static int compare_drafts(const void *x, const void *y)
{
    const struct draft *a = x, *b = y;

    if ((a->bucket < 0) != (b->bucket < 0))
        return (a->bucket < 0) - (b->bucket < 0);
    if (a->bucket < 0 && a->item.chunk != b->item.chunk)
        return a->item.chunk < b->item.chunk ? -1 : 1;
    if (a->section != b->section)
        return a->section < b->section ? -1 : 1;
    if (a->bucket != b->bucket)
        return a->bucket > b->bucket ? -1 : 1;
    if (a->tile != b->tile)
        return a->tile < b->tile ? -1 : 1;
    return a->group < b->group ? -1 : a->group > b->group;
}

static hra_status make_drafts(struct builder *b, int launch)
{
    const struct hra_kernel_plan *p = b->plan;
    const struct hra_sm90_turn *l = &b->out->turn[launch];
    const int64_t in_section = section_groups(b, b->shape[launch]);
    int64_t most = 0, head1 = 0;

    for (int c = 0; c < l->chunks; c++) {
        const struct hra_shape *s = &b->shape[launch][c];
        head1 = s->head1 > head1 ? s->head1 : head1;
        most += (int64_t)(s->key_tile1 - s->key_tile0) * (s->head1 - s->head0) * p->batch;
    }
    const int last_section = (int)(((int64_t)(p->batch - 1) * p->heads_kv + head1 - 1) / in_section);
    free(b->draft);
    b->draft = NULL;
    b->drafts = 0;
    HRA_TRY(
        hra_alloc_unset((void **)&b->draft, most + HRA_SM90_KEY_CUTS, sizeof(*b->draft), "backward's lists"));
    for (int c = 0; c < l->chunks; c++) {
        const struct hra_shape *s = &b->shape[launch][c];
        for (int group = 0; group < p->batch * p->heads_kv; group++)
            for (int key = s->key_tile0; key < s->key_tile1; key++)
                if (group % p->heads_kv >= s->head0 && group % p->heads_kv < s->head1)
                    HRA_TRY(add_draft(b, launch, c, key, group, in_section, last_section));
    }
    if (b->drafts > 0)
        qsort(b->draft, (size_t)b->drafts, sizeof(*b->draft), compare_drafts);
    return HRA_OK;
}

/* ---- Cuts ---- */

/* Cut some of the drafts that have steps, which come first: *items of them. */
static hra_status cut_drafts(struct builder *b, int64_t *items)
{
    const int count = (int)*items;
    struct hra_sm90_place *place = NULL;
    struct draft *before = NULL;
    uint32_t *length = NULL;
    int cuts = 0;

    if (*items > INT32_MAX)
        return HRA_OK;
    HRA_TRY(hra_alloc_unset((void **)&length, count, sizeof(*length), "backward's lists"));
    for (int i = 0; i < count; i++)
        length[i] = b->draft[i].item.steps;
    hra_status status = hra_sm90_cut(&place, &cuts, length, count, b->processors, HRA_SM90_KEY_CUTS);
    if (status == HRA_OK && place != NULL)
        status = hra_alloc_unset((void **)&before, count, sizeof(*before), "backward's lists");
    if (before != NULL) {
        memcpy(before, b->draft, (size_t)count * sizeof(*before));
        memmove(b->draft + count + cuts, b->draft + count, (size_t)(b->drafts - count) * sizeof(*before));
        for (int i = 0; i < count + cuts; i++) {
            struct hra_sm90_key_item *item = &b->draft[i].item;
            b->draft[i] = before[place[i].item];
            item->step0 += place[i].begin;
            item->steps = place[i].length;
            item->part = (uint32_t)place[i].part;
            item->cut = (uint32_t)place[i].cut;
        }
        *items += cuts;
        b->drafts += cuts;
    }
    free(before);
    free(place);
    free(length);
    return status;
}

/* ---- The play ---- */

/* The block that is free first takes `cost` more. */
static void sink(struct idle *heap, int count, uint64_t cost)
{
    struct idle x = heap[0];
    int at = 0;

    x.time += cost;
    for (;;) {
        int child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count &&
            (heap[child + 1].time < heap[child].time ||
             (heap[child + 1].time == heap[child].time && heap[child + 1].block < heap[child].block)))
            child++;
        if (x.time < heap[child].time || (x.time == heap[child].time && x.block < heap[child].block))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = x;
}

/* A piece at a time, a number that is hardly that of another one. */
static uint64_t mark(uint32_t piece, uint64_t time)
{
    uint64_t x = ((uint64_t)piece << 32 | (uint32_t)time) * UINT64_C(0x9e3779b97f4a7c15);
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    return x ^ x >> 32;
}

static int is_there(const struct builder *b, uint32_t piece, uint64_t time)
{
    const uint64_t x = mark(piece, time);
    return b->where[x & ((1 << TABLE_BITS) - 1)] == (uint32_t)(x >> 32);
}

/* The steps of an item that are looked at. */
static uint32_t samples_of(const struct hra_sm90_key_item *item)
{
    return item->steps < SAMPLES ? item->steps : SAMPLES;
}

/* How near others come to an item that begins with its step `first` at `time`. */
static int64_t crowding(const struct builder *b, const struct hra_sm90_key_item *item, uint32_t first,
                        uint64_t time)
{
    const uint32_t samples = samples_of(item);
    int64_t sum = 0;

    for (uint32_t n = 0; n < samples; n++) {
        const uint32_t i = (uint32_t)((uint64_t)item->steps * n / samples);
        const struct hra_sm90_step *s = &b->out->step[item->step0 + (first + i) % item->steps];
        for (int d = -NEAR; d <= NEAR; d++)
            sum += nearness[d < 0 ? -d : d] *
                   is_there(b, item->piece0 + s->piece, time + NEAR + i + (uint64_t)(int64_t)d);
    }
    return sum;
}

/* The piece that an item, which has its times, is at or comes to next at `time`; after its end, the last. */
static uint32_t piece_at(const struct builder *b, const struct hra_sm90_key_item *item, uint64_t time,
                         int64_t step0)
{
    const uint32_t *at = b->time + (item->step0 - step0);
    uint32_t low = 0, high = item->steps - 1;

    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (at[mid] < time)
            low = mid + 1;
        else
            high = mid;
    }
    return b->out->step[item->step0 + low].piece;
}

/* The first of steps, in the order of their pieces, that is at `piece` or behind; 0 where none is. */
static uint32_t find_piece(const struct hra_sm90_step *step, uint32_t steps, uint32_t piece)
{
    uint32_t low = 0, high = steps;

    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (step[mid].piece < piece)
            low = mid + 1;
        else
            high = mid;
    }
    return low % steps;
}

/* Pieces between two of a K/V head, the shorter way round. */
static int64_t distance(const struct builder *b, uint32_t x, uint32_t y)
{
    const struct hra_kernel_plan *p = b->plan;
    const int64_t all = (int64_t)(p->heads / p->heads_kv) * p->queries * b->parts;
    const int64_t way = x < y ? y - x : x - y;

    return way < all - way ? way : all - way;
}

/* How many places are tried for one item. */
static uint32_t places_of(const struct builder *b, const struct hra_sm90_key_item *item)
{
    const int64_t wanted = EFFORT / (SAMPLES * (2 * NEAR + 1) * b->drafts);
    const int64_t most = wanted < LEAST_PLACES ? LEAST_PLACES : wanted > PLACES ? PLACES : wanted;

    return item->steps < most ? item->steps : (uint32_t)most;
}

/* Let an item begin where it meets fewest others, near where the one of its head that began last is then. How
 * near does not matter where all pieces that it comes to stay in the L2 cache. */
static void turn_round(struct builder *b, const struct draft *d, uint64_t time, int64_t step0)
{
    const struct hra_sm90_key_item *item = &d->item;
    struct hra_sm90_step *step = b->out->step + item->step0;
    const uint32_t steps = item->steps, places = places_of(b, item);
    const uint32_t piece_bytes = (uint32_t)(hra_sm90_step_rows(b->plan->dim) * b->plan->dim * 8);
    const int64_t weight =
        step[steps - 1].piece - step[0].piece < SECTION_BYTES / piece_bytes ? 0 : samples_of(item);
    const struct draft *last = b->last[d->group];
    const uint32_t from = last == NULL ? 0 : find_piece(step, steps, piece_at(b, &last->item, time, step0));
    uint32_t best = from;
    int64_t least = INT64_MAX;

    for (uint32_t i = 0; i < places && least > 0; i++) { /* from, one further, one back, two further, ... */
        const uint32_t by = (i + 1) / 2, first = (from + (i % 2 == 1 ? by : steps - by)) % steps;
        int64_t sum = weight * distance(b, step[first].piece, step[from].piece);
        if (sum < least)
            sum += crowding(b, item, first, time / STEP);
        if (sum < least) {
            least = sum;
            best = first;
        }
    }
    memcpy(b->round, step, best * sizeof(*step));
    memmove(step, step + best, (steps - best) * sizeof(*step));
    memcpy(step + steps - best, b->round, best * sizeof(*step));
}

/* Give the items to blocks and their steps times, from step `step0` of all on. Returns the latest time. */
static uint64_t play(struct builder *b, int64_t items, int blocks, int64_t step0)
{
    uint64_t latest = 0;

    memset(b->where, 0, sizeof(*b->where) << TABLE_BITS);
    memset(b->last, 0, (size_t)(b->plan->batch * b->plan->heads_kv) * sizeof(*b->last));
    for (int i = 0; i < blocks; i++)
        b->idle[i] = (struct idle){0, i};
    for (int64_t n = 0; n < items; n++) {
        struct draft *d = &b->draft[n];
        const uint64_t began = b->idle[0].time;
        const uint64_t first = d->item.part == HRA_SM90_SECOND ? b->left[d->item.cut] : 0;
        uint64_t at = (first > began ? first : began) + ITEM / 2;

        d->block = b->idle[0].block;
        turn_round(b, d, at, step0);
        b->last[d->group] = d;
        for (uint32_t i = 0; i < d->item.steps; i++) {
            const struct hra_sm90_step *s = &b->out->step[d->item.step0 + i];
            const uint64_t x = mark(d->item.piece0 + s->piece, at / STEP + NEAR);
            b->where[x & ((1 << TABLE_BITS) - 1)] = (uint32_t)(x >> 32);
            b->time[d->item.step0 + i - step0] = (uint32_t)at;
            latest = at;
            at += cost_of(s);
        }
        if (d->item.part == HRA_SM90_FIRST)
            b->left[d->item.cut] = at + ITEM / 2;
        sink(b->idle, blocks, at + ITEM / 2 - began);
    }
    for (int64_t i = 0; i < b->out->steps - step0; i++)
        latest = b->time[i] > latest ? b->time[i] : latest;
    return latest;
}

/* Rank the steps of every piece by time, and by number where times are equal. */
static hra_status rank(struct builder *b, int64_t items, int64_t step0, uint64_t latest)
{
    struct hra_sm90_steps *w = b->out;
    const int64_t steps = w->steps - step0;
    uint32_t *start = NULL, *piece = NULL;

    HRA_TRY(hra_alloc((void **)&start, (int64_t)latest + 2, sizeof(*start), "backward's lists"));
    const hra_status status = hra_alloc_unset((void **)&piece, steps, sizeof(*piece), "backward's lists");
    if (status != HRA_OK) {
        free(start);
        return status;
    }
    for (int64_t n = 0; n < items; n++) {
        const struct hra_sm90_key_item *item = &b->draft[n].item;
        for (uint32_t i = 0; i < item->steps; i++)
            piece[item->step0 - step0 + i] = item->piece0 + w->step[item->step0 + i].piece;
    }
    for (int64_t i = 0; i < steps; i++)
        start[b->time[i] + 1]++;
    for (uint64_t t = 0; t <= latest; t++)
        start[t + 1] += start[t];
    for (int64_t i = 0; i < steps; i++)
        b->order[start[b->time[i]]++] = (uint32_t)i;
    memset(b->added, 0, (size_t)w->pieces * sizeof(*b->added));
    for (int64_t n = 0; n < steps; n++) {
        const uint32_t i = b->order[n], at = piece[i];
        w->step[step0 + i].rank = b->added[at]++ | (w->untouched[at] ? HRA_SM90_STORES : 0);
        w->untouched[at] = 0;
    }
    free(start);
    free(piece);
    return HRA_OK;
}

/* ---- Items by block ---- */

/* Append the items: those of each block in their order, then those without steps. */
static hra_status write_items(struct builder *b, int launch, int64_t items)
{
    struct hra_sm90_steps *w = b->out;
    struct hra_sm90_turn *l = &w->turn[launch];
    struct hra_sm90_key_item *all = NULL;
    uint32_t *begin = NULL;

    if (w->items + b->drafts > UINT32_MAX)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: backward has more than 2^32 key tiles");
    HRA_TRY(hra_alloc_unset((void **)&all, w->items + b->drafts, sizeof(*all), "backward's lists"));
    if (w->items > 0)
        memcpy(all, w->item, (size_t)w->items * sizeof(*all));
    free(w->item);
    w->item = all;
    HRA_TRY(hra_alloc((void **)&begin, w->begins + l->blocks + 1, sizeof(*begin), "backward's lists"));
    if (w->begins > 0)
        memcpy(begin, w->begin, (size_t)w->begins * sizeof(*begin));
    free(w->begin);
    w->begin = begin;

    l->begin0 = w->begins;
    begin += w->begins;
    w->begins += l->blocks + 1;
    for (int64_t n = 0; n < items; n++)
        begin[b->draft[n].block + 1]++;
    begin[0] = (uint32_t)w->items;
    for (int i = 0; i < l->blocks; i++)
        begin[i + 1] += begin[i];
    for (int64_t n = 0; n < items; n++)
        w->item[begin[b->draft[n].block]++] = b->draft[n].item;
    for (int i = l->blocks; i > 0; i--) /* each has moved to its end */
        begin[i] = begin[i - 1];
    begin[0] = (uint32_t)w->items;
    w->items += items;
    for (int c = 0; c <= l->chunks; c++) {
        l->nothing0[c] = w->items;
        for (; items < b->drafts && b->draft[items].item.chunk == c; items++)
            w->item[w->items++] = b->draft[items].item;
    }
    return HRA_OK;
}

/* ---- All of it ---- */

static hra_status grow(void **memory, int64_t count, size_t bytes)
{
    free(*memory);
    *memory = NULL;
    return hra_alloc_unset(memory, count, bytes, "backward's lists");
}

static hra_status make_launch(struct builder *b, int launch)
{
    struct hra_sm90_turn *l = &b->out->turn[launch];
    const int64_t step0 = b->out->steps;
    int64_t items = 0;
    uint32_t longest = 0;

    HRA_TRY(make_drafts(b, launch));
    for (; items < b->drafts && b->draft[items].item.steps > 0; items++)
        longest = b->draft[items].item.steps > longest ? b->draft[items].item.steps : longest;
    l->blocks = items < b->processors ? (int)items : b->processors;
    HRA_TRY(cut_drafts(b, &items));
    HRA_TRY(grow((void **)&b->round, longest, sizeof(*b->round)));
    HRA_TRY(grow((void **)&b->time, b->out->steps - step0, sizeof(*b->time)));
    HRA_TRY(grow((void **)&b->order, b->out->steps - step0, sizeof(*b->order)));
    HRA_TRY(rank(b, items, step0, play(b, items, l->blocks, step0)));
    return write_items(b, launch, items);
}

static hra_status build(struct builder *b)
{
    const struct hra_kernel_plan *p = b->plan;
    struct hra_sm90_steps *w = b->out;

    w->pieces = (int64_t)p->batch * p->heads * p->queries * b->parts;
    if (w->pieces > INT32_MAX)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "sm90: batch %d x heads %d x %d pieces of query rows of this rank are more than 2^31",
                        p->batch, p->heads, p->queries * b->parts);
    HRA_TRY(hra_alloc_unset((void **)&w->untouched, w->pieces, 1, "backward's lists"));
    memset(w->untouched, 1, (size_t)w->pieces);
    HRA_TRY(cut_turns(b));
    HRA_TRY(find_empty(b));
    HRA_TRY(
        hra_alloc((void **)&b->last, (int64_t)p->batch * p->heads_kv, sizeof(*b->last), "backward's lists"));
    HRA_TRY(hra_alloc_unset((void **)&b->idle, b->processors, sizeof(*b->idle), "backward's lists"));
    HRA_TRY(
        hra_alloc_unset((void **)&b->where, (int64_t)1 << TABLE_BITS, sizeof(*b->where), "backward's lists"));
    HRA_TRY(hra_alloc_unset((void **)&b->added, w->pieces, sizeof(*b->added), "backward's lists"));
    for (int l = 0; l < w->turns; l++)
        HRA_TRY(make_launch(b, l));
    return HRA_OK;
}

hra_status hra_sm90_lay_out_steps(struct hra_sm90_steps *out, const struct hra_kernel_plan *plan,
                                  const struct hra_shapes *shapes, int processors,
                                  const struct hra_sm90_key_bits *bits)
{
    struct builder b = {.plan = plan,
                        .shapes = shapes,
                        .bits = bits,
                        .out = out,
                        .processors = processors,
                        .parts = HRA_TILE / hra_sm90_step_rows(plan->dim)};

    memset(out, 0, sizeof(*out));
    const hra_status status = build(&b);
    free(b.shape);
    free(b.empty);
    free(b.draft);
    free(b.last);
    free(b.idle);
    free(b.where);
    free(b.time);
    free(b.order);
    free(b.added);
    free(b.round);
    return status;
}

void hra_sm90_steps_clear(struct hra_sm90_steps *steps)
{
    free(steps->turn);
    free(steps->item);
    free(steps->step);
    free(steps->begin);
    free(steps->untouched);
    memset(steps, 0, sizeof(*steps));
}

void hra_sm90_pack_key_bits(void *out, const hra_bits *bits)
{
    struct hra_sm90_key_bits *packed = out;

    memset(packed, 0, sizeof(*packed));
    for (int h = 0; h < HRA_TILE / 64; h++)
        for (int t = 0; t < HRA_SM90_CONSUMERS; t++)
            for (int i = 0; i < 32; i++) {
                const int key = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 16);
                const int query = 64 * h + 8 * (i % 16 / 2) + 2 * (t % 4) + i % 2;
                const uint64_t bit = (*bits)[query][key / 64] >> key % 64 & 1;
                packed->word[h][t] |= (uint32_t)bit << i;
            }
}

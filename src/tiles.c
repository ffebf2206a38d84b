/* tiles.c - the compiler from masks to tile lists. */
#include "src/tiles.h"

#include "src/tree.h"

#include <stdlib.h>
#include <string.h>

struct tree {
    struct hra_box *box; /* [2 count - 1] */
    const int *tile;     /* [count] which tile each leaf is */
    int count;
};

/* Query tiles that are kept ready, at most: those that meet one key tile meet the next ones too, in most orders. */
enum { READY = 512 };

struct compiler {
    const struct hra_layout *layout;
    const hra_order *order;
    const hra_mask *mask;
    struct hra_tiles *tiles;
    struct tree queries, keys;
    struct hra_question question;
    struct hra_tile_found *found; /* [count] of one pattern, in no order */
    int64_t count, capacity;
    int64_t *census; /* a census counts here, by query tile of the range, and keeps no tiles; else NULL */
    int uses;        /* how often the pattern counts there */
    int kept;        /* query tiles that are kept ready, the key tile behind them */
    int *kept_tile;  /* [kept] which query tile, -1: none */
    char *points;    /* [kept + 1][point_bytes] */
    size_t point_bytes;
};

/* ---- Trees of boxes ---- */

static hra_status make_tree(struct tree *t, const int *tile, int count, const struct compiler *c)
{
    t->tile = tile;
    t->count = count;
    HRA_TRY(hra_alloc_unset((void **)&t->box, count == 0 ? 0 : 2 * (int64_t)count - 1, sizeof(*t->box),
                            "boxes of tiles"));
    if (count > 0)
        hra_tree_fill(t->box, tile, (struct hra_node){0, 0, count}, c->mask, c->order, c->layout);
    return HRA_OK;
}

/* ---- The survey ---- */

/* Double an array of `capacity` elements, at least to `least`. */
static hra_status grow(void **array, int64_t *capacity, int64_t least, size_t bytes, const char *what)
{
    void *larger = NULL;
    const int64_t wanted = 2 * *capacity > least ? 2 * *capacity : least;

    HRA_TRY(hra_alloc_unset(&larger, wanted, bytes, what));
    if (*capacity > 0)
        memcpy(larger, *array, (size_t)*capacity * bytes);
    free(*array);
    *array = larger;
    *capacity = wanted;
    return HRA_OK;
}

/* Keep a tile; it is full if all of its pairs attend and all of its slots exist. */
static hra_status keep_tile(struct compiler *c, int query, int key, enum hra_answer answer)
{
    const struct hra_tile_rows *rows = c->layout->tile;
    const int full = answer == HRA_ALL && rows[query].rows == HRA_TILE && rows[key].rows == HRA_TILE;

    if (c->count == c->capacity)
        HRA_TRY(grow((void **)&c->found, &c->capacity, 1024, sizeof(*c->found), "tiles"));
    c->found[c->count++] = (struct hra_tile_found){.query = query - c->tiles->first_query,
                                                   .key = key,
                                                   .branch = c->question.branch,
                                                   .bitmap = full ? HRA_FULL : HRA_UNSEEN};
    return HRA_OK;
}

static hra_status descend(struct compiler *c, struct hra_node q, struct hra_node k)
{
    const enum hra_answer answer = hra_mask_classify(&c->question, &c->queries.box[q.at], &c->keys.box[k.at]);

    if (answer == HRA_NONE)
        return HRA_OK;
    if (c->census != NULL && (answer == HRA_ALL || (q.b - q.a == 1 && k.b - k.a == 1))) {
        for (int i = q.a; i < q.b; i++)
            c->census[c->queries.tile[i] - c->tiles->first_query] += (int64_t)c->uses * (k.b - k.a);
        return HRA_OK;
    }
    if (answer == HRA_ALL || (q.b - q.a == 1 && k.b - k.a == 1)) {
        for (int i = q.a; i < q.b; i++)
            for (int j = k.a; j < k.b; j++)
                HRA_TRY(keep_tile(c, c->queries.tile[i], c->keys.tile[j], answer));
        return HRA_OK;
    }
    if (q.b - q.a >= k.b - k.a) {
        HRA_TRY(descend(c, hra_left(q), k));
        return descend(c, hra_right(q), k);
    }
    HRA_TRY(descend(c, q, hra_left(k)));
    return descend(c, q, hra_right(k));
}

static void add_work(struct hra_tiles *t, int pattern, const struct hra_tile_found *found, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        t->row_work[found[i].query] += t->uses[pattern];
        t->column_work[found[i].key] += t->uses[pattern];
    }
}

/* Give what has the same pattern the same list. */
static hra_status find_patterns(struct hra_tiles *t, const hra_mask *mask)
{
    const int64_t all = (int64_t)t->batch * t->heads;
    const int batches = hra_mask_by_batch(mask) ? t->batch : 1;
    const int heads = hra_mask_by_head(mask) ? t->heads : 1;
    uint64_t *key = NULL;

    HRA_TRY(hra_alloc((void **)&t->pattern, all, sizeof(int), "patterns"));
    HRA_TRY(hra_alloc((void **)&t->uses, all, sizeof(int), "patterns"));
    HRA_TRY(hra_alloc((void **)&t->batch_of, all, sizeof(int), "patterns"));
    HRA_TRY(hra_alloc((void **)&t->head_of, all, sizeof(int), "patterns"));
    HRA_TRY(hra_alloc((void **)&key, (int64_t)batches * heads, sizeof(*key), "patterns"));
    for (int b = 0; b < t->batch; b++)
        for (int h = 0; h < t->heads; h++) {
            int *pattern = &t->pattern[b * t->heads + h];
            if (b < batches && h < heads) {
                const uint64_t wanted = hra_mask_key(mask, b, t->head0 + h);
                for (*pattern = 0; *pattern < t->patterns && key[*pattern] != wanted;)
                    ++*pattern;
                if (*pattern == t->patterns) {
                    t->batch_of[*pattern] = b;
                    t->head_of[*pattern] = t->head0 + h;
                    key[t->patterns++] = wanted;
                }
            } else {
                *pattern = t->pattern[b % batches * t->heads + h % heads];
            }
            t->uses[*pattern]++;
        }
    free(key);
    return HRA_OK;
}

/* Ask about one pattern in all its branches. */
static hra_status descend_branches(struct compiler *c, int pattern)
{
    const struct hra_tiles *t = c->tiles;
    const int branches = hra_mask_branches(c->mask, t->batch_of[pattern], t->head_of[pattern]);

    c->uses = t->uses[pattern];
    for (int branch = 0; branch < branches; branch++) {
        c->question = (struct hra_question){c->mask, t->batch_of[pattern], t->head_of[pattern], branch};
        HRA_TRY(descend(c, (struct hra_node){0, 0, t->queries}, (struct hra_node){0, 0, t->keys}));
    }
    return HRA_OK;
}

/* Patterns and trees; own [queries] is scratch that lives as long as the trees. */
static hra_status begin(struct compiler *c, int *own)
{
    struct hra_tiles *t = c->tiles;

    HRA_TRY(find_patterns(t, c->mask));
    for (int q = 0; q < t->queries; q++) /* tiles of one rank are in slot order already */
        own[q] = t->first_query + q;
    HRA_TRY(make_tree(&c->queries, own, t->queries, c));
    return make_tree(&c->keys, c->layout->by_slot, t->keys, c);
}

/* The tiles of every pattern into t->found. */
static hra_status survey(struct compiler *c, int *own)
{
    struct hra_tiles *t = c->tiles;

    HRA_TRY(begin(c, own));
    HRA_TRY(hra_alloc((void **)&t->found, t->patterns, sizeof(*t->found), "tiles"));
    HRA_TRY(hra_alloc((void **)&t->found_count, t->patterns, sizeof(*t->found_count), "tiles"));
    HRA_TRY(hra_alloc((void **)&t->row_work, t->queries, sizeof(*t->row_work), "tiles"));
    HRA_TRY(hra_alloc((void **)&t->column_work, t->keys, sizeof(*t->column_work), "tiles"));
    for (int p = 0; p < t->patterns && t->queries > 0; p++) {
        HRA_TRY(descend_branches(c, p));
        t->found[p] = c->found;
        t->found_count[p] = c->count;
        c->found = NULL;
        c->count = c->capacity = 0;
        add_work(t, p, t->found[p], t->found_count[p]);
    }
    return HRA_OK;
}

static hra_status count_rows(struct compiler *c, int *own)
{
    HRA_TRY(begin(c, own));
    memset(c->census, 0, (size_t)c->tiles->queries * sizeof(*c->census));
    for (int p = 0; p < c->tiles->patterns && c->tiles->queries > 0; p++)
        HRA_TRY(descend_branches(c, p));
    return HRA_OK;
}

/* A survey with `row_work` NULL, else a census into it. */
static hra_status explore(struct hra_tiles *t, int64_t *row_work, const struct hra_layout *layout,
                          const hra_order *order, const hra_mask *mask)
{
    struct compiler c = {.layout = layout, .order = order, .mask = mask, .tiles = t, .census = row_work};
    int *own = NULL;

    hra_status status = hra_alloc((void **)&own, t->queries, sizeof(*own), "tiles");
    if (status == HRA_OK)
        status = row_work == NULL ? survey(&c, own) : count_rows(&c, own);
    free(own);
    free(c.queries.box);
    free(c.keys.box);
    free(c.found);
    return status;
}

static struct hra_tiles empty(const struct hra_layout *layout, int rank, int query0, int query1, int batch,
                              int head0, int heads)
{
    return (struct hra_tiles){.rank = rank,
                              .first_query = query0,
                              .queries = query1 - query0,
                              .keys = layout->tiles,
                              .batch = batch,
                              .heads = heads,
                              .head0 = head0};
}

hra_status hra_tiles_survey(struct hra_tiles **out, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask, int rank, int query0, int query1, int batch, int head0,
                            int heads)
{
    struct hra_tiles *t = NULL;

    HRA_TRY(hra_alloc((void **)&t, 1, sizeof(*t), "tiles"));
    *t = empty(layout, rank, query0, query1, batch, head0, heads);
    hra_status status = explore(t, NULL, layout, order, mask);
    if (status != HRA_OK) {
        hra_tiles_destroy(t);
        return status;
    }
    *out = t;
    return HRA_OK;
}

/* Free what tiles hold, not the struct. */
static void clear(struct hra_tiles *t);

hra_status hra_tiles_census(int64_t *row_work, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask, int query0, int query1, int batch, int head0, int heads)
{
    struct hra_tiles t = empty(layout, 0, query0, query1, batch, head0, heads);
    hra_status status = explore(&t, row_work, layout, order, mask);

    clear(&t);
    return status;
}

/* ---- The dictionary ---- */

static hra_status rehash(struct hra_dictionary *d)
{
    const int slots = d->slots == 0 ? 64 : 2 * d->slots;
    int *slot = NULL;

    HRA_TRY(hra_alloc((void **)&slot, slots, sizeof(*slot), "bitmaps"));
    memset(slot, 0xff, (size_t)slots * sizeof(*slot));
    for (int id = 0; id < d->count; id++) {
        uint64_t at = d->hash[id];
        while (slot[at % (unsigned)slots] >= 0)
            at++;
        slot[at % (unsigned)slots] = id;
    }
    free(d->slot);
    d->slot = slot;
    d->slots = slots;
    return HRA_OK;
}

static hra_status make_room(struct hra_dictionary *d)
{
    int64_t capacity[3] = {d->capacity, d->capacity, d->capacity};

    HRA_TRY(grow((void **)&d->live, &capacity[0], 16, sizeof(*d->live), "bitmaps"));
    HRA_TRY(grow((void **)&d->hash, &capacity[1], 16, sizeof(*d->hash), "bitmaps"));
    HRA_TRY(grow((void **)&d->bits, &capacity[2], 16, sizeof(*d->bits), "bitmaps"));
    d->capacity = (int)capacity[2];
    return HRA_OK;
}

/* The id of `bits`; a new one if they are not there yet. */
static hra_status look_up(int *out, struct hra_dictionary *d, const hra_bits *bits)
{
    if (2 * d->count >= d->slots)
        HRA_TRY(rehash(d));
    const uint64_t hash = hra_hash_words(HRA_HASH_BEGIN, *bits, sizeof(*bits));
    uint64_t at = hash;
    for (;; at++) {
        const int id = d->slot[at % (unsigned)d->slots];
        if (id < 0)
            break;
        if (d->hash[id] == hash && memcmp(d->bits[id], *bits, sizeof(*bits)) == 0) {
            *out = id;
            return HRA_OK;
        }
    }
    if (d->count == d->capacity)
        HRA_TRY(make_room(d));
    memcpy(d->bits[d->count], *bits, sizeof(*bits));
    d->live[d->count] = 0;
    for (int r = 0; r < HRA_TILE; r++)
        for (int w = 0; w < HRA_TILE / 64; w++)
            d->live[d->count] += __builtin_popcountll((*bits)[r][w]);
    d->hash[d->count] = hash;
    d->slot[at % (unsigned)d->slots] = d->count;
    *out = d->count++;
    return HRA_OK;
}

/* ---- Looking into tiles ---- */

/* Make tile `tile` of the layout ready at place `at` of the points. */
static struct hra_points *ready(const struct compiler *c, int at, int tile)
{
    struct hra_points *points = (struct hra_points *)(void *)(c->points + (size_t)at * c->point_bytes);
    hra_points_fill(points, c->mask, c->order, c->layout->slot0[tile], c->layout->tile[tile].rows);
    return points;
}

/* The query tile, kept from earlier if it is still there. */
static struct hra_points *ready_query(struct compiler *c, int query)
{
    /* Neighbours across a border of the curve are powers of two apart, so the place is scattered. */
    const int at = (int)((uint64_t)((uint32_t)query * UINT32_C(2654435769)) * (uint64_t)c->kept >> 32);

    if (c->kept_tile[at] == query)
        return (struct hra_points *)(void *)(c->points + (size_t)at * c->point_bytes);
    c->kept_tile[at] = query;
    return ready(c, at, c->tiles->first_query + query);
}

/* In the place of a bitmap: no pair of the tile attends. */
enum { EMPTY = -3 };

/* Look at the pairs of one tile; *out receives its bitmap. */

static hra_status look_into(int *out, struct compiler *c, struct hra_points *q, struct hra_points *k)
{
    hra_bits bits;
    uint64_t any = 0, all = ~UINT64_C(0);

    hra_mask_bits(&c->question, q, k, bits);
    for (int r = 0; r < HRA_TILE; r++)
        for (int w = 0; w < HRA_TILE / 64; w++) {
            any |= bits[r][w];
            all &= bits[r][w];
        }
    *out = any == 0 ? EMPTY : HRA_FULL;
    if (any == 0 || all == ~UINT64_C(0))
        return HRA_OK;
    return look_up(out, &c->tiles->dictionary, (const hra_bits *)&bits);
}

/* Look into the unseen ones of found [*count], which go by key tile; drop those that are empty. */
static hra_status look(struct compiler *c, struct hra_tile_found *found, int64_t *count)
{
    struct hra_points *k = NULL;
    int64_t kept = 0;
    int key = -1;

    for (int64_t i = 0; i < *count; i++) {
        struct hra_tile_found tile = found[i];

        if (tile.bitmap == HRA_UNSEEN) {
            if (tile.key != key)
                k = ready(c, c->kept, key = tile.key);
            c->question.branch = tile.branch;
            HRA_TRY(look_into(&tile.bitmap, c, ready_query(c, tile.query), k));
        }
        if (tile.bitmap != EMPTY)
            found[kept++] = tile;
    }
    *count = kept;
    return HRA_OK;
}

/* ---- Lists ---- */

/* Stable counting sort by one of the tiles' numbers. start [buckets + 1] receives the bounds. */
static void sort_by(int64_t *start, int buckets, struct hra_tile_found *to, const struct hra_tile_found *from,
                    int64_t count, int by_key)
{
    memset(start, 0, (size_t)(buckets + 1) * sizeof(*start));
    for (int64_t i = 0; i < count; i++)
        start[(by_key ? from[i].key : from[i].query) + 1]++;
    for (int b = 0; b < buckets; b++)
        start[b + 1] += start[b];
    for (int64_t i = 0; i < count; i++)
        to[start[by_key ? from[i].key : from[i].query]++] = from[i];
    for (int b = buckets; b > 0; b--) /* each start has moved to its end */
        start[b] = start[b - 1];
    start[0] = 0;
}

/* Pairs of the tiles first .. last - 1 of a row, which are one tile in the branches of a mixture, each pair once. */
static int64_t count_union(const struct hra_tiles *t, const struct hra_tile_list *list, int64_t first,
                           int64_t last)
{
    hra_bits all = {{0}};
    int64_t live = 0;

    if (last - first == 1)
        return hra_tiles_live(t, list, first);
    for (int64_t i = first; i < last; i++) {
        if (list->bitmap[i] == HRA_FULL)
            return HRA_TILE * HRA_TILE;
        const hra_bits *bits = (const hra_bits *)&t->dictionary.bits[list->bitmap[i]];
        for (int r = 0; r < HRA_TILE; r++)
            for (int w = 0; w < HRA_TILE / 64; w++)
                all[r][w] |= (*bits)[r][w];
    }
    for (int r = 0; r < HRA_TILE; r++)
        for (int w = 0; w < HRA_TILE / 64; w++)
            live += __builtin_popcountll(all[r][w]);
    return live;
}

/* Add up what plans tell of a finished list. */
static void count_pairs(struct hra_tiles *t, int pattern, const struct hra_layout *l)
{
    const struct hra_tile_list *list = &t->list[pattern];
    int64_t live = 0, counted = 0, inside = 0, full = 0; /* in registers, not behind t */

    for (int q = 0; q < t->queries; q++) {
        const int64_t end = list->row_start[q + 1], rows = l->tile[t->first_query + q].rows;

        for (int64_t i = list->row_start[q], next; i < end; i = next) {
            for (next = i; next < end && list->key[next] == list->key[i]; next++) {
                counted += hra_tiles_live(t, list, next);
                inside += rows * l->tile[list->key[i]].rows;
                full += list->bitmap[next] == HRA_FULL;
            }
            live += count_union(t, list, i, next);
        }
    }
    t->pairs_live += t->uses[pattern] * live;
    t->pairs_counted += t->uses[pattern] * counted;
    t->pairs_in_tiles += t->uses[pattern] * inside;
    t->tiles_full += t->uses[pattern] * full;
    t->tiles_partial += t->uses[pattern] * (list->row_start[t->queries] - full);
}

/* Finish one pattern: look into what it found, in the order of key tiles, and make both forms of its list. sorted
 * [count] is scratch. */
static hra_status make_list(struct compiler *c, int pattern, struct hra_tile_found *sorted)
{
    struct hra_tiles *t = c->tiles;
    struct hra_tile_list *list = &t->list[pattern];
    struct hra_tile_found *found = t->found[pattern];
    int64_t n = t->found_count[pattern];

    HRA_TRY(hra_alloc((void **)&list->row_start, t->queries + 1, sizeof(*list->row_start), "tile list"));
    HRA_TRY(hra_alloc((void **)&list->column_start, t->keys + 1, sizeof(*list->column_start), "tile list"));
    sort_by(list->column_start, t->keys, sorted, found, n, 1);
    c->question = (struct hra_question){c->mask, t->batch_of[pattern], t->head_of[pattern], 0};
    HRA_TRY(look(c, sorted, &n));
    HRA_TRY(hra_alloc_unset((void **)&list->key, n, sizeof(int), "tile list"));
    HRA_TRY(hra_alloc_unset((void **)&list->bitmap, n, sizeof(int), "tile list"));
    HRA_TRY(hra_alloc_unset((void **)&list->query, n, sizeof(int), "tile list"));
    HRA_TRY(hra_alloc_unset((void **)&list->column_bitmap, n, sizeof(int), "tile list"));

    sort_by(list->row_start, t->queries, found, sorted, n, 0);
    for (int64_t i = 0; i < n; i++) {
        list->key[i] = found[i].key;
        list->bitmap[i] = found[i].bitmap;
    }
    sort_by(list->column_start, t->keys, sorted, found, n, 1);
    for (int64_t i = 0; i < n; i++) {
        list->query[i] = sorted[i].query;
        list->column_bitmap[i] = sorted[i].bitmap;
    }
    add_work(t, pattern, found, n);
    count_pairs(t, pattern, c->layout);
    t->bytes += (size_t)(t->queries + t->keys + 2) * sizeof(int64_t) + (size_t)n * 4 * sizeof(int);
    return HRA_OK;
}

static hra_status finish(struct compiler *c)
{
    struct hra_tiles *t = c->tiles;

    memset(t->row_work, 0, (size_t)t->queries * sizeof(*t->row_work));
    memset(t->column_work, 0, (size_t)t->keys * sizeof(*t->column_work));
    HRA_TRY(hra_alloc((void **)&t->list, t->patterns, sizeof(*t->list), "tile lists"));
    c->kept = t->queries < READY ? t->queries : READY;
    HRA_TRY(hra_alloc((void **)&c->kept_tile, c->kept, sizeof(*c->kept_tile), "tiles"));
    HRA_TRY(hra_alloc_unset((void **)&c->points, c->kept + 1, c->point_bytes, "tiles"));
    for (int at = 0; at < c->kept; at++)
        c->kept_tile[at] = -1;
    for (int p = 0; p < t->patterns; p++) {
        struct hra_tile_found *sorted = NULL;
        hra_status status =
            hra_alloc_unset((void **)&sorted, t->found_count[p], sizeof(*sorted), "tile list");

        if (status == HRA_OK)
            status = make_list(c, p, sorted);
        free(sorted);
        free(t->found[p]);
        t->found[p] = NULL;
        t->found_count[p] = 0;
        HRA_TRY(status);
    }
    t->bytes += (size_t)t->dictionary.count * sizeof(hra_bits);
    return HRA_OK;
}

hra_status hra_tiles_finish(struct hra_tiles *t, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask)
{
    struct compiler c = {
        .layout = layout, .order = order, .mask = mask, .tiles = t, .point_bytes = hra_points_bytes(mask)};
    hra_status status = finish(&c);

    free(c.kept_tile);
    free(c.points);
    return status;
}

hra_status hra_tiles_compile(struct hra_tiles **out, const struct hra_layout *layout, const hra_order *order,
                             const hra_mask *mask, int rank, int batch, int head0, int heads)
{
    struct hra_tiles *t = NULL;

    HRA_TRY(hra_tiles_survey(&t, layout, order, mask, rank, layout->rank_tile[rank],
                             layout->rank_tile[rank + 1], batch, head0, heads));
    hra_status status = hra_tiles_finish(t, layout, order, mask);
    if (status != HRA_OK) {
        hra_tiles_destroy(t);
        return status;
    }
    *out = t;
    return HRA_OK;
}

static void clear(struct hra_tiles *t)
{
    for (int p = 0; p < t->patterns; p++) {
        if (t->found != NULL)
            free(t->found[p]);
        if (t->list == NULL)
            continue;
        free(t->list[p].row_start);
        free(t->list[p].key);
        free(t->list[p].bitmap);
        free(t->list[p].column_start);
        free(t->list[p].query);
        free(t->list[p].column_bitmap);
    }
    free(t->found);
    free(t->found_count);
    free(t->list);
    free(t->pattern);
    free(t->uses);
    free(t->batch_of);
    free(t->head_of);
    free(t->row_work);
    free(t->column_work);
    free(t->dictionary.bits);
    free(t->dictionary.live);
    free(t->dictionary.hash);
    free(t->dictionary.slot);
}

void hra_tiles_destroy(struct hra_tiles *t)
{
    if (t == NULL)
        return;
    clear(t);
    free(t);
}

int64_t hra_tiles_live(const struct hra_tiles *t, const struct hra_tile_list *list, int64_t tile)
{
    const int bitmap = list->bitmap[tile];
    return bitmap == HRA_FULL ? HRA_TILE * HRA_TILE : t->dictionary.live[bitmap];
}

hra_status hra_dictionary_pack(void **out, const struct hra_dictionary *d,
                               const struct hra_bit_layout *layout)
{
    char *packed = NULL;

    if (layout->pack != NULL) {
        HRA_TRY(hra_alloc((void **)&packed, d->count, layout->bytes, "packed bitmaps"));
        for (int id = 0; id < d->count; id++)
            layout->pack(packed + (size_t)id * layout->bytes, (const hra_bits *)&d->bits[id]);
    }
    *out = packed;
    return HRA_OK;
}

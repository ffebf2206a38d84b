/* count.c - live tiles and pairs of one rank after another, counted and not listed.
 *
 * The same quadtree as in tiles.c, over the query tiles of a rank and the key tiles of all. The boxes of the keys are made
 * once for all ranks. Where the answer is *all*, the numbers come from sums over ranges of tiles. */
#include "src/count.h"

#include "src/tree.h"

#include <stdlib.h>
#include <string.h>

struct tree {
    struct hra_box *box; /* [2 count - 1] */
    const int *tile;     /* [count] */
    int64_t *rows;       /* [count + 1] rows of the tiles before the i-th */
    int *whole;          /* [count + 1] how many of them have HRA_TILE rows */
    int count, capacity;
};

/* Tiles that are kept ready on each side, at most. */
enum { READY = 512 };

/* Tiles whose points are ready; tile [READY] which, -1: none. */
struct shelf {
    int tile[READY];
    char *points; /* [READY][point_bytes] */
};

/* (batch, head) whose masks are the same. */
struct pattern {
    uint64_t key;
    int batch, head; /* one of them, head of the model */
    int uses;        /* how many there are */
};

struct hra_counter {
    const struct hra_layout *layout;
    const hra_order *order;
    const hra_mask *mask;
    int batch, head0, heads;
    size_t point_bytes;
    struct tree queries, keys;
    int *own;        /* [most query tiles of a rank] */
    int64_t *column; /* [keys + 1] in slot order: by how much a tile's work exceeds that of the one before */
    struct shelf shelf[2];   /* queries, keys */
    struct pattern *pattern; /* [patterns] */
    int patterns;
    struct hra_tiles *tiles;
    struct hra_question question;
    int uses, finished;
};

int hra_counter_takes(const hra_mask *mask)
{
    return !mask->mixture;
}

/* ---- Trees ---- */

static hra_status open_tree(struct tree *t, int capacity)
{
    t->capacity = capacity;
    HRA_TRY(hra_alloc_unset((void **)&t->box, capacity == 0 ? 0 : 2 * (int64_t)capacity - 1, sizeof(*t->box),
                            "boxes of tiles"));
    HRA_TRY(hra_alloc((void **)&t->rows, (int64_t)capacity + 1, sizeof(*t->rows), "boxes of tiles"));
    return hra_alloc((void **)&t->whole, (int64_t)capacity + 1, sizeof(*t->whole), "boxes of tiles");
}

static void fill_tree(struct tree *t, const int *tile, int count, const struct hra_counter *c)
{
    t->tile = tile;
    t->count = count;
    for (int i = 0; i < count; i++) {
        const int rows = c->layout->tile[tile[i]].rows;
        t->rows[i + 1] = t->rows[i] + rows;
        t->whole[i + 1] = t->whole[i] + (rows == HRA_TILE);
    }
    if (count > 0)
        hra_tree_fill(t->box, tile, (struct hra_node){0, 0, count}, c->mask, c->order, c->layout);
}

static void close_tree(struct tree *t)
{
    free(t->box);
    free(t->rows);
    free(t->whole);
}

/* ---- Counting ---- */

/* The points of a tile, those from earlier if they are still there. */
static struct hra_points *points_of(const struct hra_counter *c, struct shelf *s, int tile)
{
    /* Neighbours across a border of a curve are powers of two apart, so the place is scattered. */
    const int at = (int)((uint64_t)((uint32_t)tile * UINT32_C(2654435769)) * READY >> 32);
    struct hra_points *points = (struct hra_points *)(void *)(s->points + (size_t)at * c->point_bytes);

    if (s->tile[at] != tile)
        hra_points_fill(points, c->mask, c->order, c->layout->slot0[tile], c->layout->tile[tile].rows);
    s->tile[at] = tile;
    return points;
}

/* Add live tiles: in all rows q.a .. q.b - 1 and columns k.a .. k.b - 1. */
static void add_work(struct hra_counter *c, struct hra_node q, struct hra_node k)
{
    for (int i = q.a; i < q.b; i++)
        c->tiles->row_work[i] += (int64_t)c->uses * (k.b - k.a);
    c->column[k.a] += (int64_t)c->uses * (q.b - q.a);
    c->column[k.b] -= (int64_t)c->uses * (q.b - q.a);
}

/* Add the pairs of live tiles, so many of them full. */
static void add_pairs(struct hra_counter *c, int64_t tiles, int64_t full, int64_t inside, int64_t live)
{
    struct hra_tiles *t = c->tiles;

    t->tiles_full += c->uses * full;
    t->tiles_partial += c->uses * (tiles - full);
    t->pairs_in_tiles += c->uses * inside;
    t->pairs_live += c->uses * live;
    t->pairs_counted += c->uses * live;
}

/* Every pair of these tiles attends. A tile that is not HRA_TILE x HRA_TILE is partial all the same. */
static void count_all(struct hra_counter *c, struct hra_node q, struct hra_node k)
{
    const int64_t pairs =
        (c->queries.rows[q.b] - c->queries.rows[q.a]) * (c->keys.rows[k.b] - c->keys.rows[k.a]);
    const int64_t full =
        (int64_t)(c->queries.whole[q.b] - c->queries.whole[q.a]) * (c->keys.whole[k.b] - c->keys.whole[k.a]);

    add_work(c, q, k);
    if (c->finished)
        add_pairs(c, (int64_t)(q.b - q.a) * (k.b - k.a), full, pairs, pairs);
}

/* Look into one tile. */
static void count_one(struct hra_counter *c, struct hra_node q, struct hra_node k)
{
    const int query = c->queries.tile[q.a], key = c->keys.tile[k.a];
    hra_bits bits;
    int64_t live = 0;

    if (!c->finished) {
        add_work(c, q, k);
        return;
    }
    hra_mask_bits(&c->question, points_of(c, &c->shelf[0], query), points_of(c, &c->shelf[1], key), bits);
    for (int r = 0; r < HRA_TILE; r++)
        for (int w = 0; w < HRA_TILE / 64; w++)
            live += __builtin_popcountll(bits[r][w]);
    if (live == 0)
        return;
    add_work(c, q, k);
    add_pairs(c, 1, live == HRA_TILE * HRA_TILE,
              (int64_t)c->layout->tile[query].rows * c->layout->tile[key].rows, live);
}

static void descend(struct hra_counter *c, struct hra_node q, struct hra_node k)
{
    const enum hra_answer answer = hra_mask_classify(&c->question, &c->queries.box[q.at], &c->keys.box[k.at]);

    if (answer == HRA_NONE)
        return;
    if (answer == HRA_ALL) {
        count_all(c, q, k);
    } else if (q.b - q.a == 1 && k.b - k.a == 1) {
        count_one(c, q, k);
    } else if (q.b - q.a >= k.b - k.a) {
        descend(c, hra_left(q), k);
        descend(c, hra_right(q), k);
    } else {
        descend(c, q, hra_left(k));
        descend(c, q, hra_right(k));
    }
}

/* What is counted so far into the columns by tile. */
static void sum_columns(struct hra_counter *c)
{
    int64_t work = 0;

    for (int i = 0; i < c->keys.count; i++) {
        work += c->column[i];
        c->column[i] = 0;
        c->tiles->column_work[c->keys.tile[i]] = work;
    }
    c->column[c->keys.count] = 0;
}

static hra_status count(struct hra_counter *c, int rank)
{
    const struct hra_layout *l = c->layout;
    struct hra_tiles *t = c->tiles;

    *t = (struct hra_tiles){.rank = rank,
                            .first_query = l->rank_tile[rank],
                            .queries = l->rank_tile[rank + 1] - l->rank_tile[rank],
                            .keys = l->tiles,
                            .batch = c->batch,
                            .heads = c->heads,
                            .head0 = c->head0};
    HRA_TRY(hra_alloc((void **)&t->row_work, t->queries, sizeof(*t->row_work), "tiles"));
    HRA_TRY(hra_alloc((void **)&t->column_work, t->keys, sizeof(*t->column_work), "tiles"));
    for (int q = 0; q < t->queries; q++) /* tiles of one rank are in slot order already */
        c->own[q] = t->first_query + q;
    fill_tree(&c->queries, c->own, t->queries, c);
    for (int p = 0; p < c->patterns && t->queries > 0; p++) {
        c->question = (struct hra_question){c->mask, c->pattern[p].batch, c->pattern[p].head, 0};
        c->uses = c->pattern[p].uses;
        descend(c, (struct hra_node){0, 0, c->queries.count}, (struct hra_node){0, 0, c->keys.count});
    }
    sum_columns(c);
    return HRA_OK;
}

hra_status hra_counter_count(struct hra_tiles **out, struct hra_counter *c, int rank, int finished)
{
    HRA_TRY(hra_alloc((void **)&c->tiles, 1, sizeof(*c->tiles), "tiles"));
    c->finished = finished;
    const hra_status status = count(c, rank);
    if (status == HRA_OK)
        *out = c->tiles;
    else
        hra_tiles_destroy(c->tiles);
    c->tiles = NULL;
    return status;
}

static hra_status find_patterns(struct hra_counter *c)
{
    const int batches = hra_mask_by_batch(c->mask) ? c->batch : 1;
    const int heads = hra_mask_by_head(c->mask) ? c->heads : 1;
    const int same = c->batch / batches * (c->heads / heads);

    HRA_TRY(hra_alloc((void **)&c->pattern, (int64_t)batches * heads, sizeof(*c->pattern), "patterns"));
    for (int b = 0; b < batches; b++)
        for (int h = 0; h < heads; h++) {
            const uint64_t key = hra_mask_key(c->mask, b, c->head0 + h);
            int p = 0;
            while (p < c->patterns && c->pattern[p].key != key)
                p++;
            if (p == c->patterns)
                c->pattern[c->patterns++] = (struct pattern){key, b, c->head0 + h, 0};
            c->pattern[p].uses += same;
        }
    return HRA_OK;
}

static hra_status open(struct hra_counter *c)
{
    const struct hra_layout *l = c->layout;
    int most = 0;

    for (int r = 0; r < l->ranks; r++)
        most = l->rank_tile[r + 1] - l->rank_tile[r] > most ? l->rank_tile[r + 1] - l->rank_tile[r] : most;
    HRA_TRY(hra_alloc((void **)&c->own, most, sizeof(*c->own), "tiles"));
    HRA_TRY(hra_alloc((void **)&c->column, (int64_t)l->tiles + 1, sizeof(*c->column), "tiles"));
    for (int side = 0; side < 2; side++) {
        HRA_TRY(hra_alloc_unset((void **)&c->shelf[side].points, READY, c->point_bytes, "tiles"));
        memset(c->shelf[side].tile, 0xff, sizeof(c->shelf[side].tile));
    }
    HRA_TRY(find_patterns(c));
    HRA_TRY(open_tree(&c->queries, most));
    HRA_TRY(open_tree(&c->keys, l->tiles));
    fill_tree(&c->keys, l->by_slot, l->tiles, c);
    return HRA_OK;
}

hra_status hra_counter_open(struct hra_counter **out, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask, int batch, int head0, int heads)
{
    struct hra_counter *c = NULL;

    HRA_TRY(hra_alloc((void **)&c, 1, sizeof(*c), "tiles"));
    *c = (struct hra_counter){.layout = layout,
                              .order = order,
                              .mask = mask,
                              .batch = batch,
                              .head0 = head0,
                              .heads = heads,
                              .point_bytes = hra_points_bytes(mask)};
    const hra_status status = open(c);
    if (status != HRA_OK) {
        hra_counter_close(c);
        return status;
    }
    *out = c;
    return HRA_OK;
}

void hra_counter_close(struct hra_counter *c)
{
    if (c == NULL)
        return;
    close_tree(&c->queries);
    close_tree(&c->keys);
    free(c->shelf[0].points);
    free(c->shelf[1].points);
    free(c->own);
    free(c->column);
    free(c->pattern);
    free(c);
}

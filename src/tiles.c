/* tiles.c - the compiler from masks to tile lists. */
#include "src/tiles.h"

#include <stdlib.h>
#include <string.h>

/* A binary tree of boxes over tiles 0 .. count - 1 in slot order, in preorder: the node over [a, b) stands before
 * its left half [a, m), m = (a + b) / 2, and that before its right half; a subtree over n tiles has 2 n - 1
 * nodes. */
struct tree {
    struct hra_box *box; /* [2 count - 1] */
    const int *tile;     /* [count] which tile each leaf is */
    int count;
};

/* A subtree: node, and the leaves it covers. */
struct node {
    int at, a, b;
};

struct triple {
    int query, key, bitmap;
};

struct compiler {
    const struct hra_layout *layout;
    const hra_order *order;
    const hra_mask *mask;
    int head;        /* of the model: stands for its pattern */
    int first_query; /* first tile of the rank */
    struct tree queries, keys;
    struct triple *found; /* [count] in no order */
    int64_t count, capacity;
    struct hra_dictionary *dictionary;
};

static int middle(struct node n)
{
    return n.a + (n.b - n.a) / 2;
}

static struct node left(struct node n)
{
    return (struct node){n.at + 1, n.a, middle(n)};
}

static struct node right(struct node n)
{
    const int m = middle(n);
    return (struct node){n.at + 2 * (m - n.a), m, n.b};
}

static void fill_tree(struct tree *t, struct node n, const struct hra_layout *l, const hra_order *order,
                      const struct hra_space *space)
{
    if (n.b - n.a > 1) {
        fill_tree(t, left(n), l, order, space);
        fill_tree(t, right(n), l, order, space);
        t->box[n.at] = hra_box_join(&t->box[left(n).at], &t->box[right(n).at]);
        return;
    }
    const int tile = t->tile[n.a];
    const int64_t *token = order->slot_to_token + l->slot0[tile];
    struct hra_box box = hra_box_of(space, token[0]);
    for (int r = 1; r < l->tile[tile].rows; r++) {
        const struct hra_box one = hra_box_of(space, token[r]);
        box = hra_box_join(&box, &one);
    }
    t->box[n.at] = box;
}

static hra_status make_tree(struct tree *t, const int *tile, int count, const struct compiler *c)
{
    t->tile = tile;
    t->count = count;
    HRA_TRY(hra_alloc((void **)&t->box, count == 0 ? 0 : 2 * (int64_t)count - 1, sizeof(*t->box),
                      "boxes of tiles"));
    if (count > 0)
        fill_tree(t, (struct node){0, 0, count}, c->layout, c->order, hra_mask_space(c->mask));
    return HRA_OK;
}

/* Double an array of `capacity` elements, at least to `least`. */
static hra_status grow(void **array, int64_t *capacity, int64_t least, size_t bytes, const char *what)
{
    void *larger = NULL;
    const int64_t wanted = 2 * *capacity > least ? 2 * *capacity : least;

    HRA_TRY(hra_alloc(&larger, wanted, bytes, what));
    if (*capacity > 0)
        memcpy(larger, *array, (size_t)*capacity * bytes);
    free(*array);
    *array = larger;
    *capacity = wanted;
    return HRA_OK;
}

static hra_status rehash(struct hra_dictionary *d)
{
    const int slots = d->slots == 0 ? 64 : 2 * d->slots;
    int *slot = NULL;

    HRA_TRY(hra_alloc((void **)&slot, slots, sizeof(*slot), "bitmaps"));
    memset(slot, 0xff, (size_t)slots * sizeof(*slot));
    for (int id = 0; id < d->count; id++) {
        uint64_t at = hra_hash(HRA_HASH_BEGIN, d->bits[id], sizeof(d->bits[id]));
        while (slot[at % (unsigned)slots] >= 0)
            at++;
        slot[at % (unsigned)slots] = id;
    }
    free(d->slot);
    d->slot = slot;
    d->slots = slots;
    return HRA_OK;
}

/* The id of `bits`, which has `live` bits set; a new one if it is not there yet. */
static hra_status look_up(int *out, struct hra_dictionary *d, const hra_bits *bits, int live)
{
    if (2 * d->count >= d->slots)
        HRA_TRY(rehash(d));
    uint64_t at = hra_hash(HRA_HASH_BEGIN, *bits, sizeof(*bits));
    for (;; at++) {
        const int id = d->slot[at % (unsigned)d->slots];
        if (id < 0)
            break;
        if (memcmp(d->bits[id], *bits, sizeof(*bits)) == 0) {
            *out = id;
            return HRA_OK;
        }
    }
    if (d->count == d->capacity) {
        int64_t capacity = d->capacity, same = d->capacity;
        HRA_TRY(grow((void **)&d->live, &same, 16, sizeof(*d->live), "bitmaps"));
        HRA_TRY(grow((void **)&d->bits, &capacity, 16, sizeof(*d->bits), "bitmaps"));
        d->capacity = (int)capacity;
    }
    memcpy(d->bits[d->count], *bits, sizeof(*bits));
    d->live[d->count] = live;
    d->slot[at % (unsigned)d->slots] = d->count;
    *out = d->count++;
    return HRA_OK;
}

static hra_status keep_tile(struct compiler *c, int query, int key, int bitmap)
{
    if (c->count == c->capacity)
        HRA_TRY(grow((void **)&c->found, &c->capacity, 1024, sizeof(*c->found), "tiles"));
    c->found[c->count++] = (struct triple){query - c->first_query, key, bitmap};
    return HRA_OK;
}

/* Look at every pair of one tile. */
static hra_status compile_tile(struct compiler *c, int query, int key)
{
    const struct hra_layout *l = c->layout;
    const int64_t *q = c->order->slot_to_token + l->slot0[query],
                  *k = c->order->slot_to_token + l->slot0[key];
    hra_bits bits = {{0}};
    int live = 0, id;

    for (int r = 0; r < l->tile[query].rows; r++) {
        hra_mask_row(c->mask, c->head, q[r], k, l->tile[key].rows, bits[r]);
        for (int w = 0; w < HRA_TILE / 64; w++)
            live += __builtin_popcountll(bits[r][w]);
    }
    if (live == 0)
        return HRA_OK;
    if (live == HRA_TILE * HRA_TILE)
        return keep_tile(c, query, key, HRA_FULL);
    HRA_TRY(look_up(&id, c->dictionary, (const hra_bits *)&bits, live));
    return keep_tile(c, query, key, id);
}

static hra_status descend(struct compiler *c, struct node q, struct node k)
{
    const enum hra_answer answer =
        hra_mask_classify(c->mask, c->head, &c->queries.box[q.at], &c->keys.box[k.at]);

    if (answer == HRA_NONE)
        return HRA_OK;
    if (q.b - q.a == 1 && k.b - k.a == 1) {
        const int query = c->queries.tile[q.a], key = c->keys.tile[k.a];
        if (answer == HRA_ALL && c->layout->tile[query].rows == HRA_TILE &&
            c->layout->tile[key].rows == HRA_TILE)
            return keep_tile(c, query, key, HRA_FULL);
        return compile_tile(c, query, key);
    }
    if (q.b - q.a >= k.b - k.a) {
        HRA_TRY(descend(c, left(q), k));
        return descend(c, right(q), k);
    }
    HRA_TRY(descend(c, q, left(k)));
    return descend(c, q, right(k));
}

/* Stable counting sort of `count` triples by one of their numbers. start [buckets + 1] receives the bounds. */
static void sort_by(int64_t *start, int buckets, struct triple *to, const struct triple *from, int64_t count,
                    int by_key)
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

/* Turn what was found into both forms of a list. */
static hra_status make_list(struct hra_tile_list *list, struct compiler *c, int queries, int keys,
                            size_t *bytes)
{
    const int64_t n = c->count;
    struct triple *sorted = NULL;

    HRA_TRY(hra_alloc((void **)&list->row_start, queries + 1, sizeof(*list->row_start), "tile list"));
    HRA_TRY(hra_alloc((void **)&list->column_start, keys + 1, sizeof(*list->column_start), "tile list"));
    HRA_TRY(hra_alloc((void **)&list->key, n, sizeof(int), "tile list"));
    HRA_TRY(hra_alloc((void **)&list->bitmap, n, sizeof(int), "tile list"));
    HRA_TRY(hra_alloc((void **)&list->query, n, sizeof(int), "tile list"));
    HRA_TRY(hra_alloc((void **)&list->column_bitmap, n, sizeof(int), "tile list"));
    HRA_TRY(hra_alloc((void **)&sorted, n, sizeof(*sorted), "tile list"));

    sort_by(list->column_start, keys, sorted, c->found, n, 1);
    sort_by(list->row_start, queries, c->found, sorted, n, 0);
    for (int64_t i = 0; i < n; i++) {
        list->key[i] = c->found[i].key;
        list->bitmap[i] = c->found[i].bitmap;
    }
    sort_by(list->column_start, keys, sorted, c->found, n, 1);
    for (int64_t i = 0; i < n; i++) {
        list->query[i] = sorted[i].query;
        list->column_bitmap[i] = sorted[i].bitmap;
    }
    free(sorted);
    *bytes += (size_t)(queries + keys + 2) * sizeof(int64_t) + (size_t)n * 4 * sizeof(int);
    return HRA_OK;
}

/* Give heads with the same pattern the same list. head_of [patterns] receives a head of each. */
static hra_status find_patterns(struct hra_tiles *t, const hra_mask *mask, int head0, int **head_of)
{
    uint64_t *key = NULL;

    HRA_TRY(hra_alloc((void **)&t->pattern, (int64_t)t->batch * t->heads, sizeof(int), "patterns"));
    HRA_TRY(hra_alloc((void **)&t->uses, t->heads, sizeof(int), "patterns"));
    HRA_TRY(hra_alloc((void **)head_of, t->heads, sizeof(int), "patterns"));
    HRA_TRY(hra_alloc((void **)&key, t->heads, sizeof(*key), "patterns"));
    for (int h = 0; h < t->heads; h++) {
        const uint64_t wanted = hra_mask_key(mask, head0 + h);
        int p = 0;
        while (p < t->patterns && key[p] != wanted)
            p++;
        if (p == t->patterns) {
            (*head_of)[p] = head0 + h;
            key[p] = wanted;
            t->patterns++;
        }
        for (int b = 0; b < t->batch; b++)
            t->pattern[b * t->heads + h] = p;
        t->uses[p] += t->batch;
    }
    free(key);
    return HRA_OK;
}

static hra_status compile(struct hra_tiles *t, struct compiler *c, int head0, int **head_of)
{
    const struct hra_layout *l = c->layout;

    HRA_TRY(find_patterns(t, c->mask, head0, head_of));
    HRA_TRY(hra_alloc((void **)&t->list, t->patterns, sizeof(*t->list), "tile lists"));

    /* Tiles of one rank are in slot order already. */
    int *own = NULL;
    HRA_TRY(hra_alloc((void **)&own, t->queries, sizeof(*own), "tiles"));
    for (int q = 0; q < t->queries; q++)
        own[q] = c->first_query + q;
    hra_status status = make_tree(&c->queries, own, t->queries, c);
    if (status == HRA_OK)
        status = make_tree(&c->keys, l->by_slot, l->tiles, c);
    for (int p = 0; status == HRA_OK && p < t->patterns; p++) {
        c->head = (*head_of)[p];
        c->count = 0;
        if (t->queries > 0)
            status = descend(c, (struct node){0, 0, t->queries}, (struct node){0, 0, l->tiles});
        if (status == HRA_OK)
            status = make_list(&t->list[p], c, t->queries, t->keys, &t->bytes);
    }
    free(own);
    return status;
}

hra_status hra_tiles_compile(struct hra_tiles **out, const struct hra_layout *layout, const hra_order *order,
                             const hra_mask *mask, int rank, int batch, int head0, int heads)
{
    struct hra_tiles *t = NULL;
    int *head_of = NULL;

    HRA_TRY(hra_alloc((void **)&t, 1, sizeof(*t), "tiles"));
    t->rank = rank;
    t->queries = layout->rank_tile[rank + 1] - layout->rank_tile[rank];
    t->keys = layout->tiles;
    t->batch = batch;
    t->heads = heads;

    struct compiler c = {.layout = layout,
                         .order = order,
                         .mask = mask,
                         .first_query = layout->rank_tile[rank],
                         .dictionary = &t->dictionary};
    hra_status status = compile(t, &c, head0, &head_of);
    free(head_of);
    free(c.queries.box);
    free(c.keys.box);
    free(c.found);
    if (status != HRA_OK) {
        hra_tiles_destroy(t);
        return status;
    }
    t->bytes += (size_t)t->dictionary.count * sizeof(hra_bits);
    *out = t;
    return HRA_OK;
}

void hra_tiles_destroy(struct hra_tiles *t)
{
    if (t == NULL)
        return;
    for (int p = 0; t->list != NULL && p < t->patterns; p++) {
        free(t->list[p].row_start);
        free(t->list[p].key);
        free(t->list[p].bitmap);
        free(t->list[p].column_start);
        free(t->list[p].query);
        free(t->list[p].column_bitmap);
    }
    free(t->list);
    free(t->pattern);
    free(t->uses);
    free(t->dictionary.bits);
    free(t->dictionary.live);
    free(t->dictionary.slot);
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

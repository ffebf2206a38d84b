/* blocks.c - see blocks.h. */
#include "kernels/cuda/blocks.h"

#include <stdlib.h>
#include <string.h>

enum { CELL = HRA_EDGE * HRA_EDGE, SIZES = 3 };

/* A block on its way into a slab. */
struct block {
    int query, key;
    int bits[CELL]; /* [edge][edge] */
};

/* Blocks of one size. */
struct pile {
    struct block *block; /* [count] */
    int64_t count, capacity;
};

/* One row of aligned squares of tiles: HRA_EDGE query tiles, all key tiles. */
struct cells {
    int (*bits)[CELL]; /* [cells] HRA_DEAD where no tile is */
    int *live;         /* [cells] */
    int count;
};

/* ---- Growing ---- */

static hra_status grow(void **array, int64_t count, int64_t *capacity, size_t bytes, const char *what)
{
    void *larger = NULL;
    const int64_t wanted = *capacity == 0 ? 64 : 2 * *capacity;

    if (count < *capacity)
        return HRA_OK;
    HRA_TRY(hra_alloc(&larger, wanted, bytes, what));
    if (count > 0)
        memcpy(larger, *array, (size_t)count * bytes);
    free(*array);
    *array = larger;
    *capacity = wanted;
    return HRA_OK;
}

hra_status hra_numbers_add(struct hra_numbers *n, int number)
{
    HRA_TRY(grow((void **)&n->data, n->count, &n->capacity, sizeof(*n->data), "blocks"));
    n->data[n->count++] = number;
    return HRA_OK;
}

void hra_numbers_clear(struct hra_numbers *n)
{
    free(n->data);
    *n = (struct hra_numbers){.data = NULL};
}

void hra_slabs_clear(struct hra_slabs *s)
{
    free(s->slab);
    *s = (struct hra_slabs){.slab = NULL};
}

/* ---- From tiles to blocks ---- */

/* The square of `edge` tiles at (row, column) of a cell as a block. */
static hra_status pile_up(struct pile *pile, const int cell[CELL], int query, int key, int row, int column,
                          int edge)
{
    HRA_TRY(grow((void **)&pile->block, pile->count, &pile->capacity, sizeof(*pile->block), "blocks"));
    struct block *b = &pile->block[pile->count++];

    b->query = query + row;
    b->key = key + column;
    for (int i = 0; i < edge; i++)
        for (int j = 0; j < edge; j++)
            b->bits[i * edge + j] = cell[(row + i) * HRA_EDGE + column + j];
    return HRA_OK;
}

static int count_live(const int cell[CELL], int row, int column, int edge)
{
    int live = 0;

    for (int i = 0; i < edge; i++)
        for (int j = 0; j < edge; j++)
            live += cell[(row + i) * HRA_EDGE + column + j] != HRA_DEAD;
    return live;
}

/* Cut the square at (row, column): taken whole where three quarters of it are live, since a product of twice the side runs
 * at a better rate than the dead tiles cost; else by quarters. piles [SIZES] for edges 1, 2, 4. */
static hra_status cut_square(struct pile *piles, const int cell[CELL], int query, int key, int row,
                             int column, int size)
{
    const int edge = 1 << size, live = count_live(cell, row, column, edge);

    if (live == 0)
        return HRA_OK;
    if (4 * live >= 3 * edge * edge)
        return pile_up(&piles[size], cell, query, key, row, column, edge);
    for (int i = 0; i < edge; i += edge / 2)
        for (int j = 0; j < edge; j += edge / 2)
            HRA_TRY(cut_square(piles, cell, query, key, row + i, column + j, size - 1));
    return HRA_OK;
}

/* Read the `layer`-th of each tile in query tiles first .. last - 1 into the cells; how many there are. */
static int64_t read_tiles(struct cells *c, const struct hra_tile_list *list, int first, int last, int key0,
                          int key1, int layer)
{
    int64_t found = 0;

    for (int q = first; q < last; q++) {
        int before = 0;
        for (int64_t i = list->row_start[q]; i < list->row_start[q + 1]; i++) {
            const int key = list->key[i];

            before = i > list->row_start[q] && list->key[i - 1] == key ? before + 1 : 0;
            if (key < key0 || key >= key1 || before != layer)
                continue;
            const int cell = (key - key0) / HRA_EDGE;
            c->bits[cell][(q - first) * HRA_EDGE + (key - key0) % HRA_EDGE] = list->bitmap[i];
            c->live[cell]++;
            found++;
        }
    }
    return found;
}

static hra_status cut_cells(struct pile *piles, struct cells *c, int query)
{
    for (int i = 0; i < c->count; i++) {
        if (c->live[i] == 0)
            continue;
        HRA_TRY(cut_square(piles, (const int *)c->bits[i], query, i * HRA_EDGE, 0, 0, SIZES - 1));
        for (int t = 0; t < CELL; t++)
            c->bits[i][t] = HRA_DEAD;
        c->live[i] = 0;
    }
    return HRA_OK;
}

static hra_status cut_rows(struct pile *piles, struct cells *c, const struct hra_tile_list *list, int query0,
                           int query1, int key0, int key1)
{
    c->count = (key1 - key0 + HRA_EDGE - 1) / HRA_EDGE;
    HRA_TRY(hra_alloc((void **)&c->bits, c->count, sizeof(*c->bits), "blocks"));
    HRA_TRY(hra_alloc((void **)&c->live, c->count, sizeof(*c->live), "blocks"));
    for (int i = 0; i < c->count; i++)
        for (int t = 0; t < CELL; t++)
            c->bits[i][t] = HRA_DEAD;
    for (int first = query0; first < query1; first += HRA_EDGE) {
        const int last = first + HRA_EDGE < query1 ? first + HRA_EDGE : query1;
        for (int layer = 0; read_tiles(c, list, first, last, key0, key1, layer) > 0; layer++)
            HRA_TRY(cut_cells(piles, c, first - query0));
    }
    return HRA_OK;
}

/* ---- From blocks to slabs ---- */

struct entry {
    int tile, at;
};

static int by_tile(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return x->tile != y->tile ? (x->tile > y->tile) - (x->tile < y->tile) : (x->at > y->at) - (x->at < y->at);
}

/* Write one side of a slab: tiles, bounds, entries. */
static hra_status write_side(struct hra_numbers *n, struct entry *e, int count, int *tiles, int64_t *tile,
                             int64_t *start, int64_t *entry)
{
    qsort(e, (size_t)count, sizeof(*e), by_tile);
    *tile = n->count;
    *tiles = 0;
    for (int i = 0; i < count; i++)
        if (i == 0 || e[i].tile != e[i - 1].tile) {
            HRA_TRY(hra_numbers_add(n, e[i].tile));
            ++*tiles;
        }
    *start = n->count;
    for (int i = 0; i < count; i++)
        if (i == 0 || e[i].tile != e[i - 1].tile)
            HRA_TRY(hra_numbers_add(n, i));
    HRA_TRY(hra_numbers_add(n, count));
    *entry = n->count;
    for (int i = 0; i < count; i++)
        HRA_TRY(hra_numbers_add(n, e[i].at));
    return HRA_OK;
}

/* Append the slab of blocks [count]; e [count * edge] is scratch. */
static hra_status write_slab(struct hra_slab *s, struct hra_numbers *n, const struct block *block, int count,
                             int edge, struct entry *e)
{
    s->edge = edge;
    s->blocks = count;
    s->place = n->count;
    for (int b = 0; b < count; b++) {
        HRA_TRY(hra_numbers_add(n, block[b].query));
        HRA_TRY(hra_numbers_add(n, block[b].key));
    }
    s->bits = n->count;
    for (int b = 0; b < count; b++)
        for (int t = 0; t < edge * edge; t++)
            HRA_TRY(hra_numbers_add(n, block[b].bits[t]));
    for (int i = 0; i < count * edge; i++)
        e[i] = (struct entry){block[i / edge].query + i % edge, i};
    HRA_TRY(write_side(n, e, count * edge, &s->queries, &s->query, &s->query_start, &s->query_entry));
    for (int i = 0; i < count * edge; i++)
        e[i] = (struct entry){block[i / edge].key + i % edge, i};
    return write_side(n, e, count * edge, &s->keys, &s->key, &s->key_start, &s->key_entry);
}

static hra_status fill_slabs(struct hra_slabs *slabs, struct hra_numbers *n, const struct pile *pile,
                             int edge, int tiles, struct entry *e)
{
    const int most = tiles / (edge * edge);

    for (int64_t first = 0; first < pile->count; first += most) {
        int64_t capacity = slabs->capacity;
        const int count = pile->count - first < most ? (int)(pile->count - first) : most;

        HRA_TRY(grow((void **)&slabs->slab, slabs->count, &capacity, sizeof(*slabs->slab), "blocks"));
        slabs->capacity = (int)capacity;
        HRA_TRY(write_slab(&slabs->slab[slabs->count], n, pile->block + first, count, edge, e));
        slabs->count++;
    }
    return HRA_OK;
}

hra_status hra_blocks_cut(struct hra_slabs *slabs, struct hra_numbers *numbers,
                          const struct hra_tile_list *list, int query0, int query1, int key0, int key1,
                          int most)
{
    struct pile piles[SIZES] = {{.block = NULL}};
    struct cells cells = {.bits = NULL};
    struct entry *e = NULL;

    hra_status status = hra_alloc((void **)&e, most, sizeof(*e), "blocks");
    if (status == HRA_OK)
        status = cut_rows(piles, &cells, list, query0, query1, key0, key1);
    for (int size = SIZES - 1; size >= 0; size--) {
        if (status == HRA_OK)
            status = fill_slabs(slabs, numbers, &piles[size], 1 << size, most, e);
        free(piles[size].block);
    }
    free(cells.bits);
    free(cells.live);
    free(e);
    return status;
}

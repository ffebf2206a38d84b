/* blocks.h - tile lists cut into square blocks, which batched matrix products take as they are.
 *
 * A block is an aligned square of 1, 2 or 4 tiles a side, most of them live. Blocks of one size are gathered in slabs,
 * which are computed at once: products, then sums over the blocks that share a query tile or a key tile. */
#ifndef HRA_KERNELS_CUDA_BLOCKS_H
#define HRA_KERNELS_CUDA_BLOCKS_H

#include "kernels/kernels.h"

/* Tiles on a side of the largest block, and tiles of a slab at most: 64 MiB of scores. Half as
 * many would fit an L2 cache better, but then launching takes longer than computing. */
enum { HRA_EDGE = 4, HRA_SLAB = 1024 };

/* In the place of a bitmap: the tile is not live. */
enum { HRA_DEAD = -2 };

/* Numbers that slabs name by where they begin. */
struct hra_numbers {
    int *data; /* [count] */
    int64_t count, capacity;
};

/* `blocks` blocks of edge x edge tiles. Tiles are counted from the first of the range that was cut. All below but the
 * counts are places in hra_numbers. */
struct hra_slab {
    int edge, blocks;
    int queries, keys;   /* different query tiles and key tiles in it */
    int64_t place;       /* [blocks][2] first query tile, first key tile */
    int64_t bits;        /* [blocks][edge][edge] bitmap, HRA_FULL or HRA_DEAD */
    int64_t query;       /* [queries] query tile */
    int64_t query_start; /* [queries + 1] bounds in query_entry */
    int64_t query_entry; /* block * edge + row of tiles in it, ascending */
    int64_t key;         /* [keys] the same by key tile */
    int64_t key_start;
    int64_t key_entry;
};

struct hra_slabs {
    struct hra_slab *slab; /* [count] */
    int count, capacity;
};

/* Append the slabs, of at most `most` tiles (HRA_EDGE^2 to HRA_SLAB), of the tiles of `list` with query tiles query0 ..
 * query1 - 1 and key tiles key0 .. key1 - 1. A tile that the list names several times, as for mixtures, is in several
 * blocks. */
hra_status hra_blocks_cut(struct hra_slabs *slabs, struct hra_numbers *numbers,
                          const struct hra_tile_list *list, int query0, int query1, int key0, int key1,
                          int most);

hra_status hra_numbers_add(struct hra_numbers *numbers, int number);

/* Free what they hold, not the structs. */
void hra_slabs_clear(struct hra_slabs *slabs);
void hra_numbers_clear(struct hra_numbers *numbers);

#endif

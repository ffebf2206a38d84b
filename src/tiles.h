/* tiles.h - a mask compiled: which tiles are live, and the bits of those that are partial. */
#ifndef HRA_SRC_TILES_H
#define HRA_SRC_TILES_H

#include "src/mask.h"
#include "src/shard.h"

/* Distinct bit matrices, each once. */
struct hra_dictionary {
    hra_bits *bits; /* [count] */
    int *live;      /* [count] bits set */
    int count, capacity;
    int *slot; /* [slots] hash table of ids, -1 empty; slots is a power of two */
    int slots;
};

/* The tiles of one rank's queries for every (batch, head). */
struct hra_tiles {
    int rank;
    int queries, keys; /* query tiles of the rank, key tiles of all ranks */
    int batch, heads;
    int *pattern; /* [batch][heads] which list */
    int patterns;
    struct hra_tile_list *list; /* [patterns] */
    int *uses;                  /* [patterns] how many (batch, head) have it */
    struct hra_dictionary dictionary;
    size_t bytes; /* host memory of all this */
};

/* Compile `mask` for the queries of `rank` and heads head0 .. head0 + heads - 1 of the model. A quadtree over tiles
 * descends only where the mask answers SOME, so time and memory follow the tiles that are kept and the border
 * between kept and dropped ones, not all pairs. */
hra_status hra_tiles_compile(struct hra_tiles **out, const struct hra_layout *layout, const hra_order *order,
                             const hra_mask *mask, int rank, int batch, int head0, int heads);

/* Accepts NULL and any half-built tiles. */
void hra_tiles_destroy(struct hra_tiles *tiles);

/* Copies of all bits in a backend's layout, [count][layout->bytes]; *out is NULL where the layout is hra_bits
 * itself. Free with free(). */
hra_status hra_dictionary_pack(void **out, const struct hra_dictionary *dictionary,
                               const struct hra_bit_layout *layout);

/* Pairs that attend in tile `tile` (an index into the row form) of a list. */
int64_t hra_tiles_live(const struct hra_tiles *tiles, const struct hra_tile_list *list, int64_t tile);

#endif

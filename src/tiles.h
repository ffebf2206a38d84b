/* tiles.h - a mask compiled: which tiles are live, and the bits of those that are partial. */
#ifndef HRA_SRC_TILES_H
#define HRA_SRC_TILES_H

#include "src/mask.h"
#include "src/shard.h"

/* Distinct bit matrices, each once. */
struct hra_dictionary {
    hra_bits *bits; /* [count] */
    int *live;      /* [count] bits set */
    uint64_t *hash; /* [count] */
    int count, capacity;
    int *slot; /* [slots] hash table of ids, -1 empty; slots is a power of two */
    int slots;
};

/* A tile that a survey found. */
struct hra_tile_found {
    int query, key; /* query tile of the range, key tile */
    int branch;     /* of the mixture */
    int bitmap;     /* HRA_FULL, or HRA_UNSEEN: live or not, nobody has looked */
};

#define HRA_UNSEEN (-2)

/* What a range of query tiles computes for every (batch, head). */
struct hra_tiles {
    int rank;          /* whose queries they are */
    int first_query;   /* tile of the layout */
    int queries, keys; /* query tiles of the range, key tiles of all ranks */
    int batch, heads, head0;
    int *pattern; /* [batch][heads] which list */
    int patterns;
    int *uses;                        /* [patterns] how many (batch, head) have it */
    int *batch_of, *head_of;          /* [patterns] one that has it, head of the model */
    struct hra_tile_found **found;    /* [patterns][found_count] surveyed, not finished: what there may be */
    int64_t *found_count;             /* [patterns] */
    struct hra_tile_list *list;       /* [patterns] finished */
    struct hra_dictionary dictionary; /* finished */
    int64_t *row_work;    /* [queries] live tiles of a query tile over batch and heads; those unseen
                                           count as live until the tiles are finished */
    int64_t *column_work; /* [keys] the same of a key tile */
    int64_t pairs_live, pairs_counted; /* finished, over batch and heads; hra_plan_info says what they are */
    int64_t pairs_in_tiles;
    int64_t tiles_full, tiles_partial; /* finished, over batch and heads */
    size_t bytes;                      /* host memory of all this, finished */
};

/* First half of the compiler: find the tiles in which pairs of query tiles query0 .. query1 - 1 of `rank` may attend,
 * for heads head0 .. head0 + heads - 1 of the model. A quadtree over tiles descends only where the mask
 * answers SOME, so time and memory follow the tiles that are kept and the border between kept and dropped ones, not
 * all pairs. */
hra_status hra_tiles_survey(struct hra_tiles **out, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask, int rank, int query0, int query1, int batch, int head0,
                            int heads);

/* What hra_tiles_survey says of row_work, [query1 - query0], without the tiles: in time that follows the rows of tiles and
 * the border between what is dropped, kept and unseen. */
hra_status hra_tiles_census(int64_t *row_work, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask, int query0, int query1, int batch, int head0, int heads);

/* Second half: look into the tiles that nobody has seen, drop the empty ones, and make the lists. layout, order and
 * mask are the survey's. On failure the tiles can only be destroyed. */
hra_status hra_tiles_finish(struct hra_tiles *tiles, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask);

/* Both halves, for all queries of `rank`. */
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

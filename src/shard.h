/* shard.h - which rank owns which slots, and where tiles begin. */
#ifndef HRA_SRC_SHARD_H
#define HRA_SRC_SHARD_H

#include "kernels/kernels.h"
#include "src/order.h"

/* The sequence cut into pieces, and the pieces into tiles, for all ranks. */
struct hra_layout {
    int ranks;
    int64_t tokens;
    hra_piece *piece; /* [pieces] in slot order */
    int pieces;
    int64_t *rows;              /* [ranks] */
    int *rank_tile;             /* [ranks + 1] the tiles of rank r are rank_tile[r] .. rank_tile[r + 1] - 1 */
    struct hra_tile_rows *tile; /* [tiles] by rank, then row */
    int64_t *slot0;             /* [tiles] first slot */
    int *by_slot;               /* [tiles] the tiles in slot order */
    int tiles;
};

/* Cut `order` for `ranks` ranks. Pieces differ by at most one slot; tiles have at most HRA_TILE slots, lie in one
 * piece, and end with it or at the order's cuts where one is near enough. shard is not AUTO. */
hra_status hra_layout_create(struct hra_layout **out, const hra_order *order, int ranks, hra_shard shard);

/* Accepts NULL and any half-built layout. */
void hra_layout_destroy(struct hra_layout *layout);

#endif

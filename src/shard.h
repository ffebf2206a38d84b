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

/* Cut `order` for `ranks` ranks, shard CONTIGUOUS or ZIGZAG. Pieces differ by at most one slot; tiles have at most
 * HRA_TILE slots, lie in one piece, and end with it or at the order's cuts where one is near enough. */
hra_status hra_layout_create(struct hra_layout **out, const hra_order *order, int ranks, hra_shard shard);

/* Cut `order` so that work is even. The tiles are those of hra_layout_create(order, 1, HRA_SHARD_CONTIGUOUS), whole,
 * and work [tiles] in slot order is what each costs as a tile of queries: its live tiles, >= 0, in sum at most
 * INT64_MAX / 2.
 *
 * Every rank has floor or ceil of tiles / ranks tiles. None has more work than 1.03 of the mean or, if that is more,
 * than the heaviest tile, wherever so many tiles can weigh so little: ceil(tiles / ranks) equal ones cannot, nor
 * can the heaviest with the lightest beside it. There, and with a handful of tiles a rank, as no search is complete,
 * the most even sharing that was seen is given.
 *
 * The pieces are contiguous where that is even enough; else less than 2 a rank on average, and zigzag for what grows
 * evenly, the work of a causal mask, in 2 ranks equal pieces; more only where single tiles have to be exchanged.
 * Ranks are numbered as their first slots come; those without tiles are the last and have no piece. Integers alone
 * decide: the same on every rank. */
hra_status hra_layout_balanced(struct hra_layout **out, const hra_order *order, int ranks,
                               const int64_t *work);

/* Accepts NULL and any half-built layout. */
void hra_layout_destroy(struct hra_layout *layout);

#endif

/* shard.c - pieces and tiles. */
#include "src/shard.h"

#include <stdlib.h>

/* Pieces of all ranks in slot order. Contiguous: piece i is rank i's. Zigzag: of 2 ranks pieces rank r has
 * pieces r and 2 ranks - 1 - r, an early and a late one. */
static hra_status cut_pieces(struct hra_layout *l, hra_shard shard)
{
    l->pieces = shard == HRA_SHARD_ZIGZAG ? 2 * l->ranks : l->ranks;
    HRA_TRY(hra_alloc((void **)&l->piece, l->pieces, sizeof(*l->piece), "pieces"));
    HRA_TRY(hra_alloc((void **)&l->rows, l->ranks, sizeof(*l->rows), "pieces"));

    const int64_t least = l->tokens / l->pieces, longer = l->tokens % l->pieces;
    int64_t slot = 0;
    for (int i = 0; i < l->pieces; i++) {
        hra_piece *piece = &l->piece[i];
        piece->rank = i < l->ranks ? i : l->pieces - 1 - i;
        piece->slot0 = slot;
        piece->rows = least + (i < longer);
        piece->row0 = l->rows[piece->rank];
        l->rows[piece->rank] += piece->rows;
        slot += piece->rows;
    }
    return HRA_OK;
}

/* Where the tile that begins at `slot` ends: at the end of the piece if that is near enough, else at the last of the
 * order's cuts that is, else HRA_TILE slots on. *cut is the first cut beyond slot; it only moves on. */
static int64_t tile_end(const hra_order *order, int64_t slot, int64_t piece_end, int64_t *cut)
{
    const int64_t end = slot + HRA_TILE;
    int64_t best = end;

    if (piece_end <= end)
        return piece_end;
    while (*cut < order->cuts && order->cut[*cut] <= slot)
        ++*cut;
    for (int64_t c = *cut; c < order->cuts && order->cut[c] <= end; c++)
        best = order->cut[c];
    return best;
}

/* Cut every piece of one rank; counts only where l->tile is NULL. */
static int cut_tiles(struct hra_layout *l, const hra_order *order, int rank, int tile)
{
    int64_t row = 0;

    for (int i = 0; i < l->pieces; i++) {
        const hra_piece *piece = &l->piece[i];
        if (piece->rank != rank)
            continue;
        const int64_t piece_end = piece->slot0 + piece->rows;
        int64_t cut = 0;
        for (int64_t slot = piece->slot0, end; slot < piece_end; slot = end, tile++) {
            end = tile_end(order, slot, piece_end, &cut);
            if (l->tile != NULL) {
                l->tile[tile] = (struct hra_tile_rows){.row0 = row, .rows = (int)(end - slot)};
                l->slot0[tile] = slot;
            }
            row += end - slot;
        }
    }
    return tile;
}

static hra_status build(struct hra_layout *l, const hra_order *order, hra_shard shard)
{
    HRA_TRY(cut_pieces(l, shard));
    HRA_TRY(hra_alloc((void **)&l->rank_tile, l->ranks + 1, sizeof(*l->rank_tile), "tiles"));
    for (int r = 0; r < l->ranks; r++)
        l->rank_tile[r + 1] = cut_tiles(l, order, r, l->rank_tile[r]);
    l->tiles = l->rank_tile[l->ranks];

    HRA_TRY(hra_alloc((void **)&l->slot0, l->tiles, sizeof(*l->slot0), "tiles"));
    HRA_TRY(hra_alloc((void **)&l->by_slot, l->tiles, sizeof(*l->by_slot), "tiles"));
    HRA_TRY(hra_alloc((void **)&l->tile, l->tiles, sizeof(*l->tile), "tiles"));
    for (int r = 0; r < l->ranks; r++)
        cut_tiles(l, order, r, l->rank_tile[r]);

    /* Tiles of a rank are in slot order piece by piece, so the pieces in slot order give all of them. */
    int n = 0;
    for (int i = 0; i < l->pieces; i++) {
        const hra_piece *piece = &l->piece[i];
        for (int t = l->rank_tile[piece->rank]; t < l->rank_tile[piece->rank + 1]; t++)
            if (l->slot0[t] >= piece->slot0 && l->slot0[t] < piece->slot0 + piece->rows)
                l->by_slot[n++] = t;
    }
    return HRA_OK;
}

hra_status hra_layout_create(struct hra_layout **out, const hra_order *order, int ranks, hra_shard shard)
{
    struct hra_layout *l = NULL;

    HRA_TRY(hra_alloc((void **)&l, 1, sizeof(*l), "layout"));
    l->ranks = ranks;
    l->tokens = order->tokens;
    hra_status status = build(l, order, shard);
    if (status != HRA_OK) {
        hra_layout_destroy(l);
        return status;
    }
    *out = l;
    return HRA_OK;
}

void hra_layout_destroy(struct hra_layout *l)
{
    if (l == NULL)
        return;
    free(l->piece);
    free(l->rows);
    free(l->rank_tile);
    free(l->tile);
    free(l->slot0);
    free(l->by_slot);
    free(l);
}

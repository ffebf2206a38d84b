/* count.h - how much each rank of a layout computes, without its tile lists: for plans on models, which ask that of
 * thousands of ranks that do not exist. */
#ifndef HRA_SRC_COUNT_H
#define HRA_SRC_COUNT_H

#include "src/tiles.h"

/* What counting for one rank after another shares. */
struct hra_counter;

/* Can this mask be counted without lists? Of a mixture the pairs that several branches share can not. */
int hra_counter_takes(const hra_mask *mask);

/* For heads head0 .. head0 + heads - 1 of the model. The layout, the order and the mask must stay. */
hra_status hra_counter_open(struct hra_counter **out, const struct hra_layout *layout, const hra_order *order,
                            const hra_mask *mask, int batch, int head0, int heads);

/* The tiles of `rank` with their numbers only: row_work, column_work and, with `finished`, what finished tiles have of
 * pairs_* and tiles_*. Without it tiles that nobody has looked into count as live, as in a survey. Time follows the key
 * tiles, the border between what is dropped and kept, and the tiles that are looked into. The caller's, to be given to
 * hra_tiles_destroy. */
hra_status hra_counter_count(struct hra_tiles **out, struct hra_counter *counter, int rank, int finished);

/* Accepts NULL. */
void hra_counter_close(struct hra_counter *counter);

#endif

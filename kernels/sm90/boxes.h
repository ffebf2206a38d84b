/* boxes.h - rows by token, where the tiles of an order are boxes of a grid of tokens.
 *
 * Orders like boxes:8x16 or residues:S:r keep in a tile tokens t = first + i0 stride0 + i1 stride1 + i2 stride2, so that
 * a tensor map of the caller's own tensor can copy them as one box. Nothing is known of orders here: the grid is found
 * in the tokens. */
#ifndef HRA_KERNELS_SM90_BOXES_H
#define HRA_KERNELS_SM90_BOXES_H

#include "kernels/sm90/forward.h"

/* Tokens as a grid, fastest axis first: token = sum of coordinate x stride. */
struct hra_sm90_boxes {
    int64_t extent[3], stride[3];
    int half[3], tile[3];      /* rows of half a tile by axis; of a tile, where those are boxes too */
    int whole;                 /* 1: tiles are */
    struct hra_sm90_grid grid; /* its axes, and how kernels read `at` */
    uint32_t *at;              /* [key tiles][2] where halves begin */
};

/* The grid in which every half of a tile of the plan is a box, its rows in the order of the axes; ends of the order
 * may be cut short. Its axes are 0 where there is none. HRA_ERR_MEMORY. The plan's rows are all tokens. */
hra_status hra_sm90_find_boxes(struct hra_sm90_boxes *out, const struct hra_kernel_plan *plan);

/* Free what it holds. */
void hra_sm90_boxes_clear(struct hra_sm90_boxes *boxes);

#endif

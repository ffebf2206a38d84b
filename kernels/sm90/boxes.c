/* boxes.c - see boxes.h. */
#include "kernels/sm90/boxes.h"

#include <stdlib.h>
#include <string.h>

enum { HALF = HRA_TILE / 2 };

/* The rows of half a tile: there are none, or its first has token[0]. */
static int rows_of_half(const struct hra_tile_rows *tile, int half)
{
    const int rows = tile->rows - HALF * half;
    return rows < 0 ? 0 : rows < HALF ? rows : HALF;
}

/* Read the axes off the tokens of a whole half. 0: they are no box of at most three. */
static int read_axes(struct hra_sm90_boxes *b, const int64_t *token)
{
    for (int rows = 1; rows < HALF; b->grid.axes++) {
        const int64_t stride = token[rows] - token[0];
        int count = 2;

        if (b->grid.axes == 3 || stride <= 0)
            return 0;
        while (rows * count < HALF && token[(int64_t)rows * count] - token[0] == count * stride)
            count++;
        if (HALF % (rows * count) != 0)
            return 0;
        b->half[b->grid.axes] = count;
        b->stride[b->grid.axes] = stride;
        rows *= count;
    }
    return 1;
}

/* Tokens between those of the fastest axis are an axis of their own. 0: that is one too many. */
static int add_fastest(struct hra_sm90_boxes *b)
{
    if (b->stride[0] == 1)
        return 1;
    if (b->grid.axes == 3)
        return 0;
    memmove(b->stride + 1, b->stride, 2 * sizeof(*b->stride));
    memmove(b->half + 1, b->half, 2 * sizeof(*b->half));
    b->stride[0] = b->half[0] = 1;
    b->grid.axes++;
    return 1;
}

/* The extents that the strides imply, and how many bits each coordinate takes. 0: strides do not divide one another,
 * or coordinates take more than 32 bits. */
static int find_extents(struct hra_sm90_boxes *b, int64_t tokens)
{
    int bits = 0;

    for (int a = 0; a < b->grid.axes; a++) {
        const int64_t around = a + 1 < b->grid.axes ? b->stride[a + 1] : tokens;
        if (around % b->stride[a] != 0)
            return 0;
        b->extent[a] = around / b->stride[a];
    }
    if (b->grid.axes == 1) {
        b->stride[1] = tokens;
        b->extent[1] = b->half[1] = 1;
        b->grid.axes = 2;
    }
    for (int a = 0; a < b->grid.axes; a++) {
        int own = 0;
        while (own < 32 && INT64_C(1) << own < b->extent[a])
            own++;
        if (a + 1 < b->grid.axes) {
            b->grid.mask[a] = (uint32_t)((UINT64_C(1) << own) - 1);
            b->grid.shift[a] = bits + own;
        }
        bits += own;
    }
    return bits <= 32 && b->grid.shift[b->grid.axes - 2] < 32;
}

/* Where a box begins, as kernels read it. */
static uint32_t place(const struct hra_sm90_boxes *b, int64_t token)
{
    uint32_t at = (uint32_t)(token % b->extent[0]);

    for (int a = 1; a < b->grid.axes; a++)
        at |= (uint32_t)(token / b->stride[a] % b->extent[a]) << b->grid.shift[a - 1];
    return at;
}

/* Are these rows the first of a box, whose sides these are? */
static int is_box(const struct hra_sm90_boxes *b, const int side[3], const int64_t *token, int rows)
{
    for (int i = 0; i < rows; i++) {
        int64_t expected = token[0];
        for (int a = 0, rest = i; a < b->grid.axes; rest /= side[a++]) {
            const int64_t step = a + 1 < b->grid.axes ? rest % side[a] : rest;
            if (token[0] / b->stride[a] % b->extent[a] + step >= b->extent[a])
                return 0;
            expected += step * b->stride[a];
        }
        if (token[i] != expected)
            return 0;
    }
    return 1;
}

/* 0: a half of some tile is no box. */
static int place_all(struct hra_sm90_boxes *b, const struct hra_kernel_plan *p)
{
    int top = b->grid.axes - 1;

    while (b->half[top] == 1)
        top--;
    memcpy(b->tile, b->half, sizeof(b->tile));
    b->tile[top] *= 2;
    b->whole = 1;
    for (int k = 0; k < p->keys; k++) {
        const int64_t *token = p->token + p->key[k].row0;
        for (int h = 0; h < 2; h++) {
            const int rows = rows_of_half(&p->key[k], h);
            if (!is_box(b, b->half, token + HALF * h, rows))
                return 0;
            b->at[2 * k + h] = rows > 0 ? place(b, token[HALF * h]) : b->at[2 * k]; /* anything that exists */
        }
        b->whole = b->whole && is_box(b, b->tile, token, p->key[k].rows);
    }
    return 1;
}

hra_status hra_sm90_find_boxes(struct hra_sm90_boxes *out, const struct hra_kernel_plan *plan)
{
    struct hra_sm90_boxes b = {.half = {1, 1, 1}};
    int k = 0;

    memset(out, 0, sizeof(*out));
    while (k < plan->keys && plan->key[k].rows < HALF)
        k++;
    if (k == plan->keys || plan->rows > INT32_MAX || !read_axes(&b, plan->token + plan->key[k].row0) ||
        !add_fastest(&b) || !find_extents(&b, plan->rows) || (b.grid.axes == 3 && plan->batch > 1))
        return HRA_OK;
    HRA_TRY(hra_alloc((void **)&b.at, 2 * (int64_t)plan->keys, sizeof(*b.at), "boxes"));
    if (place_all(&b, plan))
        *out = b;
    else
        free(b.at);
    return HRA_OK;
}

void hra_sm90_boxes_clear(struct hra_sm90_boxes *boxes)
{
    free(boxes->at);
    memset(boxes, 0, sizeof(*boxes));
}

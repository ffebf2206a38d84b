/* backward.h - the backward kernels for sm_90a, launched from C, and the work that they read.
 *
 * An item is one key tile of one (batch, K/V head). It names a range of steps, the pieces of query rows that
 * it is computed against, of all query heads that share the K/V head. One block has an item to itself, and
 * with it the tile's dK and dV. dQ of a piece is a sum over items; each of its steps has a rank, and they add
 * in that order. */
#ifndef HRA_KERNELS_SM90_BACKWARD_H
#define HRA_KERNELS_SM90_BACKWARD_H

#include "kernels/sm90/forward.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Query rows of a step. With fewer channels there is room for more of them. */
static inline int hra_sm90_step_rows(int dim)
{
    return dim == 128 ? 64 : 128;
}

struct hra_sm90_key_item {
    int32_t row0;           /* of the key tile in its chunk */
    int16_t rows, chunk;    /* 1 to HRA_TILE; chunk of the launch */
    int32_t batch, head_kv; /* K/V head of the rank */
    uint32_t piece0;        /* of its first query head */
    uint32_t step0, steps;
    uint32_t summed; /* 1: its dK and dV are left in sums, also where its chunk has outputs */
    uint32_t part;   /* HRA_SM90_WHOLE, or which part of one that is cut in two */
    uint32_t cut;    /* the number of the cut */
};

/* What an item is: a first part leaves its dK and dV where the second one finds them. */
enum { HRA_SM90_WHOLE, HRA_SM90_FIRST, HRA_SM90_SECOND };

enum { HRA_SM90_KEY_CUTS = 128 }; /* of a launch at most */

/* Bytes that a first part leaves. */
static inline size_t hra_sm90_part_bytes(int dim)
{
    return (size_t)dim * sizeof(float) * HRA_SM90_CONSUMERS;
}

/* Query rows against a key tile. Pieces are counted [batch][heads][query tiles][HRA_TILE / step rows]. */
struct hra_sm90_step {
    int32_t row;    /* the first, among the rows of the rank */
    uint32_t piece; /* from the item's piece0 on */
    uint32_t bits;  /* 0: all pairs attend; else 1 + bitmap * (HRA_TILE / step rows) + its part */
    uint32_t rank;  /* steps of the launch that add to the piece before; HRA_SM90_STORES */
};

/* The step is the first of all that add: it overwrites what is there. */
#define HRA_SM90_STORES (UINT32_C(1) << 31)

/* Bits of a tile as threads hold its transposed scores: thread t has keys 16 (t / 32) + (t % 32) / 4 in the
 * lower and 8 further in the upper half of a word, word h queries 64 h to 64 h + 63; bit 2 j + e is query
 * 8 j + 2 (t % 4) + e. */
struct hra_sm90_key_bits {
    uint32_t word[HRA_TILE / 64][HRA_SM90_CONSUMERS];
};

struct hra_sm90_gradient {
    hra_tensor dk, dv, out_dk, out_dv; /* sums and outputs, as in struct hra_chunk */
    int head0;                         /* first K/V head of the chunk */
    int zero;
};

/* One launch. Maps are as in the forward; boxes of q and do_ have the rows of a step. */
struct hra_sm90_backward {
    CUtensorMap q, do_, k[HRA_SM90_CHUNKS], v[HRA_SM90_CHUNKS];
    struct hra_sm90_gradient chunk[HRA_SM90_CHUNKS];
    int heads, group;      /* query heads, and those that share a K/V head */
    uint32_t pieces;       /* of one head */
    const uint32_t *begin; /* [blocks + 1] items of each block */
    const struct hra_sm90_key_item *item;
    const struct hra_sm90_step *step;
    const struct hra_sm90_key_bits *bits;
    float *sums;     /* dQ of each piece, as the kernel's threads have it */
    float *rows;     /* of each piece [2][step rows]: LSE log2(e), +inf without keys; delta */
    uint32_t *added; /* how many steps of the launch have added to each piece; 0 before it */
    uint32_t *told;  /* [HRA_SM90_KEY_CUTS] warps that have left the first part; 0 before it */
    float *part;     /* [HRA_SM90_KEY_CUTS] of hra_sm90_part_bytes */
    float scale;     /* of scores, times log2(e) */
    float factor;    /* of out_dk */
};

/* What is done for all pieces, or for key tiles without queries. */
struct hra_sm90_pieces {
    hra_tensor o, do_, dq;
    const float *lse, *dlse;           /* [batch][heads][rows]; dlse may be NULL */
    const struct hra_tile_rows *query; /* [queries] */
    int batch, heads, queries;
    int64_t rows_of_rank;
    const uint8_t *untouched; /* of each piece: 1: nothing is ever added to it */
    float *sums, *rows;
    float scale;
};

/* Before the first launches on a device; dim is 64 or 128, type bf16 or f16. */
cudaError_t hra_sm90_backward_open(hra_type type, int dim);

/* delta = rowsum(dO O) - dlse of all pieces. */
cudaError_t hra_sm90_backward_delta(const struct hra_sm90_pieces *pieces, hra_type type, int dim,
                                    cudaStream_t stream);

/* LSE of all pieces; 0 for dQ of those that nothing is added to. After delta. */
cudaError_t hra_sm90_backward_begin(const struct hra_sm90_pieces *pieces, int dim, cudaStream_t stream);

/* Compute on `blocks` multiprocessors. All run side by side or none does: steps wait for those of other
 * blocks. */
cudaError_t hra_sm90_backward_launch(const struct hra_sm90_backward *launch, hra_type type, int dim,
                                     int blocks, cudaStream_t stream);

/* dK and dV of `items` items from launch->item on, which no query sees: 0, or what their sums are. */
cudaError_t hra_sm90_backward_unseen(const struct hra_sm90_backward *launch, hra_type type, int dim,
                                     int items, cudaStream_t stream);

/* dQ of all pieces, scaled. After the last launch. */
cudaError_t hra_sm90_backward_end(const struct hra_sm90_pieces *pieces, hra_type type, int dim,
                                  cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif

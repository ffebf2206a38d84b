/* hybrid.h - the small kernels around cuBLAS's batched products, launched from C.
 *
 * Gathered tensors are [batch][heads][tiles][HRA_TILE][dim] with dim padded to 16 bytes and tiles to whole blocks; what no
 * row is, is 0. Scores, probabilities and partial sums are [instances][rows][columns], an instance being one block
 * of a slab for one (batch, head). All calls enqueue on the stream and return what cudaGetLastError says. */
#ifndef HRA_KERNELS_CUDA_HYBRID_H
#define HRA_KERNELS_CUDA_HYBRID_H

#include "kernels/cuda/blocks.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What of a plan is in device memory, and its sizes. */
struct hra_device_plan {
    int batch, heads, heads_kv;
    int dim, dim_v;   /* of the caller's tensors */
    int wide, wide_v; /* padded */
    int64_t rows;     /* of this rank */
    int queries;      /* query tiles */
    int query_tiles;  /* padded */
    int slab;         /* tiles of a slab at most */
    hra_type type;
    const struct hra_tile_rows *query; /* [queries] */
    const struct hra_tile_rows *key;   /* [keys] */
    const hra_bits *bits;              /* dictionary */
    const int *numbers;                /* hra_numbers */
};

/* One slab for `count` (batch, head) pairs, and the tensors of its chunk. */
struct hra_launch {
    struct hra_slab slab;
    int64_t pairs; /* [count] in numbers: batch * heads + head */
    int count;
    int query0;       /* first query tile of the run */
    int head0, heads; /* K/V heads of the chunk */
    int key_tiles;    /* padded, of the gathered K/V */
};

/* Scratch of one slab, and running sums; [..] as said above. */
struct hra_scratch {
    void *q, *k, *v, *do_; /* gathered */
    float *scores, *dp;    /* [instances][128 edge][128 edge]; later P and dS, each row over its own */
    float *part_a, *part_b, *part_c; /* products of p or ds: forward o; backward dv, dk, dq */
    float *part_max, *part_sum;      /* forward [instances][128 edge] */
    float *sums;        /* [batch][heads][query_tiles][128][wide_v or wide] output or dQ so far */
    float *max, *total; /* forward [batch][heads][query_tiles][128] */
    float *delta;       /* backward [batch][heads][rows] */
    void **pointers;    /* [HRA_POINTERS][slab] operands of products */
    void *blas;         /* BLAS_BYTES for cuBLAS */
};

/* The arrays of pointers. */
enum {
    HRA_AT_Q,
    HRA_AT_K,
    HRA_AT_V,
    HRA_AT_DO,
    HRA_AT_S,
    HRA_AT_DP,
    HRA_AT_A,
    HRA_AT_B,
    HRA_AT_C,
    HRA_POINTERS
};

/* out = the rows of tiles tile0 .. tile0 + tiles - 1 (of tile_rows) of `from`, whose row 0 is the first row of tile0. A
 * sequence of the batch has out_heads heads there, of which these are the first. */
cudaError_t hra_hybrid_gather(void *out, int out_heads, const struct hra_device_plan *plan,
                              const struct hra_tile_rows *tile_rows, int tile0, int tiles, int padded,
                              const hra_tensor *from, int64_t row_base, int heads, int dim, int wide,
                              cudaStream_t stream);

/* Fill the arrays of pointers for a launch. */
cudaError_t hra_hybrid_point(const struct hra_device_plan *plan, const struct hra_launch *launch,
                             const struct hra_scratch *scratch, cudaStream_t stream);

/* Scores to probabilities relative to their block's largest score, and that and their sum. */
cudaError_t hra_hybrid_softmax(const struct hra_device_plan *plan, const struct hra_launch *launch,
                               const struct hra_scratch *scratch, cudaStream_t stream);

/* Merge the blocks' outputs into the running ones. */
cudaError_t hra_hybrid_merge(const struct hra_device_plan *plan, const struct hra_launch *launch,
                             const struct hra_scratch *scratch, cudaStream_t stream);

/* Scores and dP to P and dS. */
cudaError_t hra_hybrid_gradient(const struct hra_device_plan *plan, const struct hra_launch *launch,
                                const struct hra_scratch *scratch, const float *lse, cudaStream_t stream);

/* Add the blocks' dQ to the running ones, their dK and dV to the chunk's. */
cudaError_t hra_hybrid_add_dq(const struct hra_device_plan *plan, const struct hra_launch *launch,
                              const struct hra_scratch *scratch, cudaStream_t stream);
cudaError_t hra_hybrid_add_dkv(const struct hra_device_plan *plan, const struct hra_launch *launch,
                               const struct hra_scratch *scratch, const struct hra_chunk *chunk,
                               cudaStream_t stream);

/* Query tiles query0 .. query1 - 1 where ends [heads_kv][queries] is `run`: sums begin at 0, or outputs are written. */
cudaError_t hra_hybrid_begin(const struct hra_device_plan *plan, const struct hra_scratch *scratch,
                             const int *ends, int run, int query0, int query1, int wide, cudaStream_t stream);
cudaError_t hra_hybrid_write(const struct hra_device_plan *plan, const struct hra_scratch *scratch,
                             const int *ends, int run, int query0, int query1, const hra_tensor *o,
                             float *lse, cudaStream_t stream);
cudaError_t hra_hybrid_write_dq(const struct hra_device_plan *plan, const struct hra_scratch *scratch,
                                const int *ends, int run, int query0, int query1, const hra_tensor *dq,
                                double scale, cudaStream_t stream);

/* The rest of the backend's table; see kernels.h. */
cudaError_t hra_hybrid_delta(const struct hra_device_plan *plan, const hra_tensor *o, const hra_tensor *do_,
                             const float *dlse, float *delta, cudaStream_t stream);
/* Where there is nothing to copy either, to becomes 0. */
cudaError_t hra_hybrid_combine(int batch, const struct hra_rows *rows, int count, hra_type to_type,
                               hra_type from_type, cudaStream_t stream);
cudaError_t hra_hybrid_reorder(int batch, hra_direction direction, hra_type type, const hra_tensor *whole,
                               const hra_tensor *rows, const int64_t *token, int64_t count, int heads,
                               int dim, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif

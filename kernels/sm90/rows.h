/* rows.h - what both kernels for sm_90a do with what the threads of a product hold. */
#ifndef HRA_KERNELS_SM90_ROWS_H
#define HRA_KERNELS_SM90_ROWS_H

#include "kernels/sm90/ptx.h"

namespace
{

/* The four threads of a row hold x[i] of thread n as piece n of block i; thread n gets all pieces of block n,
 * in order. */
__device__ __forceinline__ void gather_block(uint32_t (&x)[4], int lane)
{
#pragma unroll
    for (int by = 1; by <= 2; by *= 2) {
        const bool upper = lane & by;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & by)
                continue;
            const uint32_t got = __shfl_xor_sync(~0u, upper ? x[i] : x[i + by], by);
            x[i] = upper ? got : x[i];
            x[i + by] = upper ? x[i + by] : got;
        }
    }
}

/* A thread's sums to memory and back, for another launch or part of an item: a quarter as many float4, THREADS apart, so that
 * threads lie side by side. */
template <int THREADS, int COUNT>
__device__ __forceinline__ void load_sums(float (&c)[COUNT], const float4 *from)
{
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++) {
        const float4 x = from[i * THREADS];
        c[4 * i] = x.x;
        c[4 * i + 1] = x.y;
        c[4 * i + 2] = x.z;
        c[4 * i + 3] = x.w;
    }
}

template <int THREADS, int COUNT>
__device__ __forceinline__ void leave_sums(const float (&c)[COUNT], float4 *to)
{
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++)
        to[i * THREADS] = {c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]};
}

} // namespace

#endif

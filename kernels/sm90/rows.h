/* rows.h - what both kernels for sm_90a do with rows that the threads of a product hold. */
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

} // namespace

#endif

/* cuda.h - for C files of builds with CUDA: the runtime's errors as ours, and host memory written to a device's. */
#ifndef HRA_SRC_CUDA_H
#define HRA_SRC_CUDA_H

#include "src/status.h"

#include <cuda_runtime_api.h>

#define HRA_TRY_CUDA(call)                                                                                   \
    do {                                                                                                     \
        cudaError_t try_ = (call);                                                                           \
        if (try_ != cudaSuccess)                                                                             \
            return HRA_FAIL(HRA_ERR_CUDA, "%s: %s", #call, cudaGetErrorString(try_));                        \
    } while (0)

/* Once this returns, what any stream begins sees the bytes. cudaMemcpy alone may return when it has read them, with the
 * copy to the device still to come, for which streams that do not wait for the default one would not wait. */
static inline hra_status hra_cuda_write(void *to, const void *from, size_t bytes)
{
    HRA_TRY_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
    HRA_TRY_CUDA(cudaStreamSynchronize(cudaStreamLegacy));
    return HRA_OK;
}

#endif

/* emulator.cpp - kernels/sm90/forward.cu on emulator.h, and what it is launched through: the few functions of
 * the CUDA runtime that the sm90 backend calls, on the host's memory; and in the place of the portable CUDA
 * backend, which does the rest for it, the CPU backend. */
#include "kernels/sm90/forward.cu"

#include <algorithm>

/* backward.cpp: does a kernel of backward.cu, if it is one. */
bool emulated_backward(const void *kernel, void **arguments, int blocks, int threads, size_t shared_bytes);

extern "C" {
extern int64_t emulated_launches; /* of kernels that attend; for tests */
int64_t emulated_launches;
extern int emulated_processors, emulated_blocks; /* that a plan found; most of such a launch */
int emulated_processors, emulated_blocks;
}

/* ---- The CUDA runtime ---- */

static CUresult encode(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank, void *data,
                       const cuuint64_t *count, const cuuint64_t *stride, const cuuint32_t *box,
                       const cuuint32_t *step, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill beyond)
{
    emulated::tensor t = {};
    bool ok = rank == 5 && (uintptr_t)data % 16 == 0 && (uintptr_t)out % 64 == 0 &&
              (type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16) &&
              interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
              box[0] == 64 && beyond == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;

    for (int d = 0; ok && d < 5; d++) {
        t.count[d] = count[d];
        t.box[d] = box[d];
        t.stride[d] = d > 0 ? stride[d - 1] : 2;
        ok = count[d] > 0 && count[d] <= UINT64_C(1) << 32 && box[d] > 0 && box[d] <= 256 && step[d] == 1 &&
             (d == 0 || (t.stride[d] % 16 == 0 && t.stride[d] < UINT64_C(1) << 40));
    }
    if (!ok)
        return CUDA_ERROR_INVALID_VALUE;
    t.data = (const char *)data;
    memcpy(out, &t, sizeof(t));
    return CUDA_SUCCESS;
}

extern "C" {

cudaError_t cudaLaunchKernel(const void *kernel, dim3 blocks, dim3 threads, void **arguments,
                             size_t shared_bytes, cudaStream_t)
{
    if (emulated_backward(kernel, arguments, (int)blocks.x, (int)threads.x, shared_bytes))
        return cudaSuccess;
    const hra_sm90_forward &a = *(const hra_sm90_forward *)arguments[0];
    const auto with_dim = [&] { nothing(a, *(const int *)arguments[1]); };
    const auto clears = [&] { clear(*(uint32_t **)arguments[0], *(size_t *)arguments[1]); };
    const auto without = [&] { ((void (*)(hra_sm90_forward))kernel)(a); };

    if (kernel == (const void *)nothing) {
        emulated::launch(with_dim, (int)blocks.x, (int)threads.x, shared_bytes);
    } else if (kernel == (const void *)clear) {
        emulated::launch(clears, (int)blocks.x, (int)threads.x, shared_bytes);
    } else {
        emulated_launches++;
        emulated_blocks = std::max(emulated_blocks, (int)blocks.x);
        emulated::launch(without, (int)blocks.x, (int)threads.x, shared_bytes);
    }
    return cudaSuccess;
}

cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 blocks, dim3 threads, void **arguments,
                                        size_t shared_bytes, cudaStream_t stream)
{
    emulated_blocks = std::max(emulated_blocks, (int)blocks.x);
    return cudaLaunchKernel(kernel, blocks, threads, arguments, shared_bytes, stream);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, const void *)
{
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int shared_bytes)
{
    return shared_bytes <= (int)emulated::SHARED_LIMIT ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    static int asked;

    if (attribute == cudaDevAttrMultiProcessorCount)
        emulated_processors = 1 + asked++ % 4;
    *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
             : attribute == cudaDevAttrComputeCapabilityMinor ? 0
                                                              : emulated_processors;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found)
{
    *function = (void *)encode;
    *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    *out = aligned_alloc(256, (bytes / 256 + 1) * 256);
    return *out != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind)
{
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t)
{
    return "the emulator refuses this";
}

} // extern "C"

/* ---- The portable backend ---- */

static hra_status portable_open(void **out, hra_kernel_plan *plan)
{
    plan->layout[HRA_FORWARD] = plan->layout[HRA_BACKWARD] = hra_backend_cpu.layout[HRA_BACKWARD];
    return hra_backend_cpu.open(out, plan);
}

static hra_backend portable()
{
    hra_backend b = hra_backend_cpu;

    b.name = "cuda";
    b.blocking = 0;
    b.alignment = 256;
    b.open = portable_open;
    b.prepare = [](void *, const hra_shapes *) { return HRA_OK; };
    b.make_mirror = [](void **out, void *, size_t bytes) {
        return cudaMalloc(out, bytes) == cudaSuccess ? HRA_OK : HRA_ERR_MEMORY;
    };
    b.drop_mirror = [](void *mirror, void *) { free(mirror); };
    b.to_mirror = [](void *mirror, const void *host, size_t bytes, void *) {
        memcpy(mirror, host, bytes);
        return HRA_OK;
    };
    b.from_mirror = [](void *host, const void *mirror, size_t bytes, void *) {
        memcpy(host, mirror, bytes);
        return HRA_OK;
    };
    b.wait = [](void *) { return HRA_OK; };
    b.records = [](void *) { return 0; };
    return b;
}

const hra_backend hra_backend_cuda = portable();

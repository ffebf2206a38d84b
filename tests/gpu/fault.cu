/* fault.cu - faults that compute-sanitizer must find, so that its silence over the library means something:
 *
 *     gpu-fault memory | init | sync | race | none
 *
 * Exit status 0 where the program itself noticed nothing. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <string.h>

namespace
{
constexpr int THREADS = 128;

/* Each thread writes a number, waits, and reads the one of its mirror image. */
enum kind { NONE, MEMORY, INIT, SYNC, RACE, KINDS };
const char *const names[KINDS] = {"none", "memory", "init", "sync", "race"};

template <kind KIND> __global__ void mirror(const int *in, int *out)
{
    __shared__ int shared[THREADS];
    const int t = threadIdx.x;

    shared[t] = in[t];
    if (KIND != SYNC || t < 40) /* SYNC: part of a warp goes past the barrier */
        if (KIND != RACE)       /* RACE: nobody waits */
            __syncthreads();
    const int at = KIND == MEMORY ? t + 1 : t; /* MEMORY: the last one writes behind the end */
    out[at] = shared[THREADS - 1 - t];
}

cudaError_t run(kind kind)
{
    const size_t bytes = THREADS * sizeof(int);
    int *in, *out, host[THREADS];
    cudaError_t status = cudaMalloc(&in, bytes);

    if (status == cudaSuccess)
        status = cudaMalloc(&out, bytes);
    if (status == cudaSuccess && kind != INIT) /* INIT: nobody writes what the kernel reads */
        status = cudaMemset(in, 1, bytes);
    if (status != cudaSuccess)
        return status;
    void *arguments[] = {&in, &out};
    const void *const kernels[KINDS] = {(const void *)mirror<NONE>, (const void *)mirror<MEMORY>,
                                        (const void *)mirror<INIT>, (const void *)mirror<SYNC>,
                                        (const void *)mirror<RACE>};
    status = cudaLaunchKernel(kernels[kind], dim3(1), dim3(THREADS), arguments, 0, NULL);
    if (status == cudaSuccess)
        status = cudaMemcpy(host, out, bytes, cudaMemcpyDeviceToHost);
    cudaFree(in);
    cudaFree(out);
    return status;
}
} // namespace

int main(int argc, char **argv)
{
    for (int n = 0; argc > 1 && n < KINDS; n++) {
        if (strcmp(argv[1], names[n]) != 0)
            continue;
        const cudaError_t status = run((kind)n);
        if (status != cudaSuccess)
            fprintf(stderr, "gpu-fault: %s\n", cudaGetErrorString(status));
        return status != cudaSuccess;
    }
    fprintf(stderr, "gpu-fault: no fault '%s'\n", argc > 1 ? argv[1] : "");
    return 2;
}

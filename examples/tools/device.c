/* device.c - memory, waiting and time on the host or on a GPU. */
#include "examples/tools/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef HRA_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

static struct {
    int gpu;                     /* 1: memory is the current GPU's */
    char name[256];              /* of the GPU */
    char error[512];             /* why the last call failed */
    double marked[DEVICE_MARKS]; /* on the host: the clock's seconds */
} device;

#ifdef HRA_HAVE_CUDA
static cudaStream_t stream, beside;
static cudaEvent_t mark[DEVICE_MARKS];

static int done(const char *call, cudaError_t status)
{
    if (status == cudaSuccess)
        return 0;
    snprintf(device.error, sizeof(device.error), "%s: %s", call, cudaGetErrorString(status));
    return -1;
}

/* On a GPU the function returns what the call came to, and all that was enqueued before. */
#define RETURN_ON_GPU(call)                                                                                  \
    do {                                                                                                     \
        if (device.gpu)                                                                                      \
            return done("before " #call, cudaDeviceSynchronize()) != 0 || done(#call, call) != 0 ||          \
                           done(#call, cudaDeviceSynchronize()) != 0                                         \
                       ? -1                                                                                  \
                       : 0;                                                                                  \
    } while (0)

static int open_gpu(int index)
{
    struct cudaDeviceProp properties;
    int count = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0)
        return 0;
    if (done("cudaSetDevice", cudaSetDevice(index % count)) != 0 ||
        done("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, index % count)) != 0 ||
        done("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) != 0 ||
        done("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&beside, cudaStreamNonBlocking)) != 0)
        return -1;
    for (int n = 0; n < DEVICE_MARKS; n++)
        if (done("cudaEventCreate", cudaEventCreate(&mark[n])) != 0)
            return -1;
    snprintf(device.name, sizeof(device.name), "%s", properties.name);
    device.gpu = 1;
    return 0;
}
#else
#define RETURN_ON_GPU(call)                                                                                  \
    do {                                                                                                     \
    } while (0)
#endif

int device_open(hra_backend_kind backend, int index)
{
#ifdef HRA_HAVE_CUDA
    if (backend >= HRA_BACKEND_CUDA)
        return open_gpu(index);
#endif
    (void)backend;
    (void)index;
    return 0;
}

void device_close(void)
{
#ifdef HRA_HAVE_CUDA
    for (int n = 0; device.gpu && n < DEVICE_MARKS; n++)
        cudaEventDestroy(mark[n]);
    if (device.gpu) {
        cudaStreamDestroy(stream);
        cudaStreamDestroy(beside);
    }
#endif
    device.gpu = 0;
}

const char *device_error(void)
{
    return device.error;
}

const char *device_name(void)
{
    return device.name;
}

int device_clock_mhz(void)
{
    int clock = -1;
#ifdef HRA_HAVE_CUDA
    char bus[32], command[160];
    int current;

    if (!device.gpu || cudaGetDevice(&current) != cudaSuccess ||
        cudaDeviceGetPCIBusId(bus, sizeof(bus), current) != cudaSuccess)
        return -1;
    snprintf(command, sizeof(command),
             "nvidia-smi -i %s --query-gpu=clocks.sm --format=csv,noheader,nounits 2>/dev/null", bus);
    FILE *answer = popen(command, "r");
    if (answer == NULL)
        return -1;
    if (fscanf(answer, "%d", &clock) != 1)
        clock = -1;
    pclose(answer);
#endif
    return clock;
}

void *device_stream(void)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu)
        return stream;
#endif
    return NULL;
}

void *device_stream_beside(void)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu)
        return beside;
#endif
    return NULL;
}

void *device_alloc(size_t bytes)
{
    void *memory = NULL;
#ifdef HRA_HAVE_CUDA
    if (device.gpu) {
        /* No byte more than is asked for: what is no multiple of a page, 2 MiB, is copied between GPUs a third slower. */
        const cudaError_t status = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
        snprintf(device.error, sizeof(device.error), "cudaMalloc of %zu bytes: %s", bytes,
                 cudaGetErrorString(status));
        if (status != cudaSuccess)
            cudaGetLastError(); /* the next kernel's check is not to find it */
        return status == cudaSuccess ? memory : NULL;
    }
#endif
    if (bytes <= SIZE_MAX - DEVICE_ALIGNMENT)
        memory = aligned_alloc(DEVICE_ALIGNMENT, (bytes / DEVICE_ALIGNMENT + 1) * DEVICE_ALIGNMENT);
    if (memory == NULL)
        snprintf(device.error, sizeof(device.error), "no memory for %zu bytes", bytes);
    return memory;
}

void device_free(void *memory)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu) {
        cudaFree(memory);
        return;
    }
#endif
    free(memory);
}

int device_read(void *host, const void *memory, size_t bytes)
{
    RETURN_ON_GPU(cudaMemcpy(host, memory, bytes, cudaMemcpyDeviceToHost));
    memcpy(host, memory, bytes);
    return 0;
}

int device_write(void *memory, const void *host, size_t bytes)
{
    RETURN_ON_GPU(cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice));
    memcpy(memory, host, bytes);
    return 0;
}

int device_fill(void *memory, int byte, size_t bytes)
{
    RETURN_ON_GPU(cudaMemset(memory, byte, bytes));
    memset(memory, byte, bytes);
    return 0;
}

int device_copy(void *to, const void *from, size_t bytes)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu)
        return done("cudaMemcpyAsync", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
#endif
    memcpy(to, from, bytes);
    return 0;
}

int device_wait(void)
{
    RETURN_ON_GPU(cudaDeviceSynchronize());
    return 0;
}

int device_mark(int number)
{
    return device_mark_on(number, device_stream());
}

int device_mark_on(int number, void *on)
{
    struct timespec now;
#ifdef HRA_HAVE_CUDA
    if (device.gpu)
        return done("cudaEventRecord", cudaEventRecord(mark[number], on));
#endif
    (void)on;
    clock_gettime(CLOCK_MONOTONIC, &now);
    device.marked[number] = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    return 0;
}

int device_between(double *out_s, int from, int to)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu) {
        float ms = 0;
        const int status = done("cudaEventElapsedTime", cudaEventElapsedTime(&ms, mark[from], mark[to]));
        *out_s = 1e-3 * ms;
        return status;
    }
#endif
    *out_s = device.marked[to] - device.marked[from];
    return 0;
}

int device_follow(void *on, int number)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu)
        return done("cudaStreamWaitEvent", cudaStreamWaitEvent(on, mark[number], 0));
#endif
    (void)on;
    (void)number;
    return 0;
}

static int no_gpu(void)
{
    snprintf(device.error, sizeof(device.error), "there is no GPU");
    return -1;
}

int device_record(void)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu)
        return done("cudaStreamBeginCapture",
                    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
#endif
    return no_gpu();
}

int device_recorded(void **out)
{
#ifdef HRA_HAVE_CUDA
    cudaGraph_t graph;
    cudaGraphExec_t record;

    if (device.gpu) {
        if (done("cudaStreamEndCapture", cudaStreamEndCapture(stream, &graph)) != 0)
            return -1;
        const int status = done("cudaGraphInstantiate", cudaGraphInstantiate(&record, graph, 0));
        cudaGraphDestroy(graph);
        if (status == 0)
            *out = record;
        return status;
    }
#endif
    (void)out;
    return no_gpu();
}

int device_replay(void *record)
{
#ifdef HRA_HAVE_CUDA
    if (device.gpu)
        return done("cudaGraphLaunch", cudaGraphLaunch(record, stream));
#endif
    (void)record;
    return no_gpu();
}

void device_forget(void *record)
{
#ifdef HRA_HAVE_CUDA
    if (record != NULL)
        cudaGraphExecDestroy(record);
#endif
    (void)record;
}

/* bare.c - mapped memory by CUDA IPC, copies, and flags that streams write and wait for. */
#include "examples/tools/bare.h"
#include "examples/tools/device.h"
#include "examples/tools/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef HRA_HAVE_CUDA
#include <cuda.h>
#include <cuda_runtime_api.h>
#endif

static char error[512];

const char *bare_error(void)
{
    return error;
}

#ifdef HRA_HAVE_CUDA
enum {
    PAGE = 2 << 20, /* of a GPU: pieces of whole pages are shared alone, and copied with the fewest pages */
    PIECE = 1 << 20 /* bytes that are filled or compared at once */
};

/* What arrives and its flag, here and, as we address them, of the next rank; NULL: not mapped. */
struct target {
    char *data;     /* [bytes] */
    uint32_t *flag; /* how many hops have arrived */
};

struct bare {
    size_t bytes; /* of a hop */
    char *sent;   /* [bytes] */
    struct target here, there;
    uint32_t hops; /* so far */
    __typeof__(cuStreamWriteValue32) *write;
    __typeof__(cuStreamWaitValue32) *wait;
};

/* What a rank tells the others when one of the steps is done. */
struct word {
    int failed;
    char why[252];
    cudaIpcMemHandle_t data, flag;
};

static int done(const char *call, cudaError_t status)
{
    if (status == cudaSuccess)
        return 0;
    snprintf(error, sizeof(error), "%s: %s", call, cudaGetErrorString(status));
    cudaGetLastError(); /* where ranks cannot map each other's memory the tool goes on without us */
    return -1;
}

static int done_driver(const char *call, CUresult result)
{
    if (result == CUDA_SUCCESS)
        return 0;
    snprintf(error, sizeof(error), "%s gives error %d", call, (int)result);
    return -1;
}

static int find(void *out, const char *name)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *function = NULL;

    if (done("cudaGetDriverEntryPointByVersion",
             cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found)) != 0)
        return -1;
    if (function == NULL || found != cudaDriverEntryPointSuccess) {
        snprintf(error, sizeof(error), "the driver has no %s", name);
        return -1;
    }
    memcpy(out, &function, sizeof(function));
    return 0;
}

/* The byte at `at` of what a rank sends: that of hra_hops, so that both move the same. */
static unsigned char stamp(int rank, size_t at)
{
    return (unsigned char)((size_t)rank * 37 + at % 251);
}

/* Whole pages of zeros. */
static int alloc(void *out, size_t bytes)
{
    bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    void *const memory = device_alloc(bytes);
    memcpy(out, &memory, sizeof(memory));
    return memory == NULL ? -1 : device_fill(memory, 0, bytes);
}

/* The bytes of a hop, piece by piece: what rank `from` sends is written, or compared with what is there. */
static int pass_over(char *memory, size_t bytes, int from, int compare)
{
    unsigned char *piece = malloc(PIECE);
    int status = 0;

    if (piece == NULL)
        world_abort("no memory", "for a bare copy");
    for (size_t at = 0; status == 0 && at < bytes; at += PIECE) {
        const size_t count = bytes - at < PIECE ? bytes - at : PIECE;
        for (size_t i = 0; !compare && i < count; i++)
            piece[i] = stamp(from, at + i);
        status = compare ? device_read(piece, memory + at, count) : device_write(memory + at, piece, count);
        if (status != 0)
            snprintf(error, sizeof(error), "%s", device_error());
        for (size_t i = 0; status == 0 && compare && i < count; i++)
            if (piece[i] != stamp(from, at + i)) {
                snprintf(error, sizeof(error), "byte %zu on rank %d is %d; rank %d sent %d", at + i,
                         world.rank, piece[i], from, stamp(from, at + i));
                status = -1;
            }
    }
    free(piece);
    return status;
}

/* Memory, and its handles for others. */
static int prepare(struct bare *b, struct word *mine)
{
    if (find(&b->write, "cuStreamWriteValue32") != 0 || find(&b->wait, "cuStreamWaitValue32") != 0)
        return -1;
    if (alloc(&b->sent, b->bytes) != 0 || alloc(&b->here.data, b->bytes) != 0 ||
        alloc(&b->here.flag, sizeof(uint32_t)) != 0) {
        snprintf(error, sizeof(error), "%s", device_error());
        return -1;
    }
    if (pass_over(b->sent, b->bytes, world.rank, 0) != 0)
        return -1;
    if (done("cudaIpcGetMemHandle", cudaIpcGetMemHandle(&mine->data, b->here.data)) != 0)
        return -1;
    return done("cudaIpcGetMemHandle", cudaIpcGetMemHandle(&mine->flag, b->here.flag));
}

/* Tell the others how a step went. all [ranks]. -1, alike on all ranks, where it failed on one, with its sentence. */
static int agree(struct word *all, struct word *mine, int status)
{
    mine->failed = status != 0;
    if (mine->failed)
        snprintf(mine->why, sizeof(mine->why), "%.250s", error);
    world_gather(all, mine, (int)sizeof(*mine));
    for (int r = 0; r < world.ranks; r++)
        if (all[r].failed) {
            snprintf(error, sizeof(error), "rank %d: %.250s", r, all[r].why);
            return -1;
        }
    return 0;
}

static int map(void *out, cudaIpcMemHandle_t handle)
{
    void *memory = NULL;
    const int status =
        done("cudaIpcOpenMemHandle", cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess));
    memcpy(out, &memory, sizeof(memory));
    return status;
}

static int open_all(struct bare *b, struct word *all)
{
    struct word mine = {.failed = 0};

    if (agree(all, &mine, prepare(b, &mine)) != 0)
        return -1;
    const int next = (world.rank + 1) % world.ranks;
    int status = map(&b->there.data, all[next].data);
    if (status == 0)
        status = map(&b->there.flag, all[next].flag);
    return agree(all, &mine, status);
}

int bare_open(struct bare **out, size_t bytes)
{
    if (world.local_ranks != world.ranks || world.ranks < 2 || device_name()[0] == '\0') {
        snprintf(error, sizeof(error), "%d ranks, %d of them on this machine, GPU %s", world.ranks,
                 world.local_ranks, device_name()[0] == '\0' ? "none" : device_name());
        return -1;
    }
    struct bare *b = calloc(1, sizeof(*b));
    struct word *all = calloc((size_t)world.ranks, sizeof(*all));
    if (b == NULL || all == NULL)
        world_abort("no memory", "for a bare copy");
    b->bytes = bytes;
    const int status = open_all(b, all);
    free(all);
    if (status != 0)
        bare_close(b);
    else
        *out = b;
    return status;
}

int bare_run(struct bare *b, int count, void *stream)
{
    const CUdeviceptr mine = (CUdeviceptr)(uintptr_t)b->here.flag;
    const CUdeviceptr next = (CUdeviceptr)(uintptr_t)b->there.flag;

    for (int i = 0; i < count; i++) {
        b->hops++;
        if (done("cudaMemcpyAsync",
                 cudaMemcpyAsync(b->there.data, b->sent, b->bytes, cudaMemcpyDeviceToDevice, stream)) != 0 ||
            done_driver("cuStreamWriteValue32",
                        b->write(stream, next, b->hops, CU_STREAM_WRITE_VALUE_DEFAULT)) != 0 ||
            done_driver("cuStreamWaitValue32", b->wait(stream, mine, b->hops, CU_STREAM_WAIT_VALUE_GEQ)) != 0)
            return -1;
    }
    return 0;
}

int bare_check(struct bare *b)
{
    return pass_over(b->here.data, b->bytes, (world.rank + world.ranks - 1) % world.ranks, 1);
}

void bare_close(struct bare *b)
{
    if (b == NULL)
        return;
    if (b->there.data != NULL)
        cudaIpcCloseMemHandle(b->there.data);
    if (b->there.flag != NULL)
        cudaIpcCloseMemHandle(b->there.flag);
    world_meet();
    device_free(b->sent);
    device_free(b->here.data);
    device_free(b->here.flag);
    free(b);
}
#else
int bare_open(struct bare **out, size_t bytes)
{
    (void)out;
    (void)bytes;
    snprintf(error, sizeof(error), "this build has no CUDA");
    return -1;
}

int bare_run(struct bare *b, int count, void *stream)
{
    (void)b;
    (void)count;
    (void)stream;
    return -1;
}

int bare_check(struct bare *b)
{
    (void)b;
    return -1;
}

void bare_close(struct bare *b)
{
    (void)b;
}
#endif

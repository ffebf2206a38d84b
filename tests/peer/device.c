/* device.c - what comm/gpu.c and comm/peer.c use of CUDA, carried out by a thread of the host, for machines without a GPU.
 *
 * A process is a GPU. Its memory is shared memory of files without names, which other processes map as they would by IPC. Streams
 * are lists of operations; the thread takes the next one of a stream that is drawn at random, if it can be done: a wait only
 * when what it waits for is there. One stream is slower than all others. So operations of different streams come in any order
 * that CUDA allows. With
 * HRA_TEST_QUEUES=1 all streams share one list, as under CUDA_DEVICE_MAX_CONNECTIONS=1, and whatever cannot be done
 * keeps back all behind it. HRA_TEST_SEED is what draws begin at.
 *
 * It knows nothing of what a GPU's memory does with writes that are not fenced: here all are seen at once. */
#include "tests/peer/device.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE_32, WRITE_64, WAIT_32, COPY, FILL, CALL, HOST, RECORD, WAIT_EVENT };

struct operation {
    struct operation *next;
    struct CUstream_st *stream; /* whose it is */
    enum kind kind;
    void *to;
    const void *from;
    size_t bytes, count, pitch_to, pitch_from; /* lines */
    uint64_t value;
    void (*call)(void *argument); /* with `to`, `bytes` of it */
    struct CUevent_st *event;
    uint64_t number; /* of the event's record */
    int external;    /* 1: an event from outside of the graph that this is recorded into */
};

enum { PATIENCE = 20 }; /* times that nothing could be done */

struct list {
    struct operation *first, **last;
};

/* A function of the host that a stream waits for, while others get on: what is at `to` of its operation. */
struct host {
    void (*call)(void *argument);
    void *argument;
    int begun, done;
};

struct CUstream_st {
    struct CUstream_st *next;
    struct list list;
    int pending;              /* operations */
    struct CUgraph_st *graph; /* into which it is being recorded; NULL: none */
};

struct CUevent_st {
    uint64_t recorded, done;  /* records put on streams; carried out */
    struct CUgraph_st *graph; /* of its last record, while that is being recorded */
};

/* The operations of all its streams in the order of calls. */
struct CUgraph_st {
    struct list list;
    struct CUstream_st *origin;
};

/* What stands in an instance of a graph for one of its streams or events. */
struct pair {
    void *of, *other;
};

struct pairs {
    struct pair *pair;
    size_t count;
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
    struct pairs streams, events;
};

struct block {
    struct block *next;
    char *base;
    size_t bytes;
    int file;
};

static struct {
    pthread_mutex_t lock;
    struct CUstream_st *streams, legacy; /* the latter is one of the former */
    struct CUstream_st
        *lazy; /* one of them, drawn anew now and then, that gets on only where no other has for a while */
    unsigned idle;
    int count;
    struct list all; /* of all streams, where they share one list */
    int shares;
    struct block *blocks;
    uint64_t draws;
} gpu = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t draw(void)
{
    gpu.draws += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = gpu.draws;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- The thread ---- */

static void *run_host(void *argument)
{
    struct host *host = argument;

    host->call(host->argument);
    __atomic_store_n(&host->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static int is_through(struct host *host)
{
    pthread_t thread;

    if (!host->begun) {
        host->begun = 1;
        if (pthread_create(&thread, NULL, run_host, host) != 0)
            abort();
        pthread_detach(thread);
    }
    return __atomic_load_n(&host->done, __ATOMIC_ACQUIRE);
}

/* Writes, copies and calls always; waits when what they wait for is there. */
static int can_be_done(const struct operation *o)
{
    switch (o->kind) {
    case WAIT_32:
        return __atomic_load_n((const uint32_t *)o->to, __ATOMIC_ACQUIRE) == (uint32_t)o->value;
    case WAIT_EVENT:
        return o->event->done >= o->number;
    case HOST:
        return is_through(o->to);
    default:
        return 1;
    }
}

static void carry_out(const struct operation *o)
{
    switch (o->kind) {
    case WRITE_32:
        __atomic_store_n((uint32_t *)o->to, (uint32_t)o->value, __ATOMIC_RELEASE);
        break;
    case WRITE_64:
        __atomic_store_n((uint64_t *)o->to, o->value, __ATOMIC_RELEASE);
        break;
    case COPY:
        for (size_t i = 0; i < o->count; i++)
            memcpy((char *)o->to + i * o->pitch_to, (const char *)o->from + i * o->pitch_from, o->bytes);
        break;
    case FILL:
        memset(o->to, (int)o->value, o->bytes);
        break;
    case CALL:
        o->call(o->to);
        free(o->to);
        break;
    case RECORD:
        o->event->done = o->number;
        break;
    case HOST:
        free(o->to);
        break;
    case WAIT_32:
    case WAIT_EVENT:
        break;
    }
}

/* Do what is first in a list, if that can be done. */
static int advance(struct list *list)
{
    struct operation *o = list->first;

    if (o == NULL || !can_be_done(o))
        return 0;
    if (o->kind == CALL) /* which may take long, and put nothing on streams */
        pthread_mutex_unlock(&gpu.lock);
    carry_out(o);
    if (o->kind == CALL)
        pthread_mutex_lock(&gpu.lock);
    list->first = o->next;
    if (list->first == NULL)
        list->last = &list->first;
    o->stream->pending--;
    free(o);
    return 1;
}

static int advance_any(void)
{
    struct CUstream_st *s = gpu.streams;

    if (gpu.shares)
        return advance(&gpu.all);
    for (uint64_t skip = draw() % (uint64_t)gpu.count; skip > 0; skip--)
        s = s->next;
    if (draw() % 64 == 0)
        gpu.lazy = s;
    for (int i = 0; i < gpu.count; i++, s = s->next == NULL ? gpu.streams : s->next)
        if (s != gpu.lazy && advance(&s->list))
            return 1;
    return gpu.lazy != NULL && ++gpu.idle % PATIENCE == 0 && advance(&gpu.lazy->list);
}

static void *work(void *unused)
{
    for (;;) {
        pthread_mutex_lock(&gpu.lock);
        const int some = advance_any(), rests = !some || draw() % 8 == 0;
        pthread_mutex_unlock(&gpu.lock);
        if (rests)
            nanosleep(&(struct timespec){0, 20000}, NULL);
    }
    return unused;
}

static void begin(void)
{
    const char *queues = getenv("HRA_TEST_QUEUES"), *seed = getenv("HRA_TEST_SEED");
    pthread_t thread;

    gpu.shares = queues != NULL && atoi(queues) == 1;
    gpu.draws = (seed == NULL ? 1 : strtoull(seed, NULL, 10)) * 1000 + (uint64_t)getpid() % 1000;
    gpu.all.last = &gpu.all.first;
    gpu.legacy.list.last = &gpu.legacy.list.first;
    gpu.streams = &gpu.legacy;
    gpu.count = 1;
    if (pthread_create(&thread, NULL, work, NULL) != 0)
        abort();
    pthread_detach(thread);
}

static void begin_once(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, begin);
}

/* The default stream waits for no other, as for those that do not block. */
static cudaStream_t named(cudaStream_t stream)
{
    return stream == NULL || stream == cudaStreamLegacy ? &gpu.legacy : stream;
}

/* Record the operation, if its stream is being recorded or waits for an event that is. 0: it is to be carried out. */
static int record(struct operation *o, cudaError_t *error)
{
    struct CUgraph_st *of = o->kind == WAIT_EVENT && !o->external ? o->event->graph : NULL;

    if (of != NULL && o->stream->graph == NULL)
        o->stream->graph = of;
    struct CUgraph_st *graph = o->stream->graph;
    if (o->kind == RECORD && !o->external)
        o->event->graph = graph;
    if (graph == NULL)
        return 0;
    *error =
        o->kind == WAIT_EVENT && !o->external && of != graph ? cudaErrorStreamCaptureIsolation : cudaSuccess;
    *graph->list.last = o;
    graph->list.last = &o->next;
    return 1;
}

static cudaError_t put(cudaStream_t given, struct operation operation)
{
    struct operation *o = malloc(sizeof(*o));
    cudaError_t error = cudaSuccess;

    if (o == NULL)
        return cudaErrorMemoryAllocation;
    begin_once();
    *o = operation;
    if (o->kind == CALL) { /* each time that it is carried out with a copy of its own */
        o->to = malloc(o->bytes);
        if (o->to == NULL) {
            free(o);
            return cudaErrorMemoryAllocation;
        }
        memcpy(o->to, operation.to, o->bytes);
    }
    o->stream = named(given);
    o->next = NULL;
    pthread_mutex_lock(&gpu.lock);
    if (!record(o, &error)) {
        struct list *list = gpu.shares ? &gpu.all : &o->stream->list;
        *list->last = o;
        list->last = &o->next;
        o->stream->pending++;
        if (o->kind == RECORD)
            o->number = ++o->event->recorded;
        if (o->kind == WAIT_EVENT)
            o->number = o->event->recorded;
    }
    pthread_mutex_unlock(&gpu.lock);
    return error;
}

int peer_enqueue(void *stream, void (*call)(void *argument), void *argument, size_t bytes)
{
    return put(stream, (struct operation){.kind = CALL, .call = call, .to = argument, .bytes = bytes}) ==
                   cudaSuccess
               ? 0
               : -1;
}

/* ---- The device ---- */

cudaError_t CUDARTAPI cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t CUDARTAPI cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    const long number = getpid();

    (void)device;
    memset(properties, 0, sizeof(*properties));
    memcpy(&properties->uuid, &number, sizeof(number));
    snprintf(properties->name, sizeof(properties->name), "thread");
    return cudaSuccess;
}

const char *CUDARTAPI cudaGetErrorString(cudaError_t error)
{
    static _Thread_local char text[24];

    snprintf(text, sizeof(text), "error %d", (int)error);
    return text;
}

cudaError_t CUDARTAPI cudaGetLastError(void)
{
    return cudaSuccess;
}

/* ---- Streams and events ---- */

cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    if (least != NULL)
        *least = 0;
    if (greatest != NULL)
        *greatest = 0;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority)
{
    struct CUstream_st *s = calloc(1, sizeof(*s));

    (void)flags, (void)priority;
    if (s == NULL)
        return cudaErrorMemoryAllocation;
    begin_once();
    s->list.last = &s->list.first;
    pthread_mutex_lock(&gpu.lock);
    s->next = gpu.streams;
    gpu.streams = s;
    gpu.count++;
    pthread_mutex_unlock(&gpu.lock);
    *out = s;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    return cudaStreamCreateWithPriority(out, flags, 0);
}

/* What it holds is done all the same; so its memory stays. */
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t stream)
{
    (void)stream;
    return cudaSuccess;
}

static int pending(cudaStream_t stream)
{
    pthread_mutex_lock(&gpu.lock);
    const int count = named(stream)->pending;
    pthread_mutex_unlock(&gpu.lock);
    return count;
}

cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t stream)
{
    return pending(stream) > 0 ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t stream)
{
    while (pending(stream) > 0)
        nanosleep(&(struct timespec){0, 20000}, NULL);
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    *status = named(stream)->graph != NULL ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    *out = calloc(1, sizeof(**out));
    return *out == NULL ? cudaErrorMemoryAllocation : cudaSuccess;
}

/* Streams may still come to it; so its memory stays. */
cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t event)
{
    (void)event;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return put(stream, (struct operation){.kind = RECORD, .event = event});
}

cudaError_t CUDARTAPI cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags)
{
    return put(stream, (struct operation){
                           .kind = RECORD, .event = event, .external = flags == cudaEventRecordExternal});
}

cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t event)
{
    pthread_mutex_lock(&gpu.lock);
    const int done = event->done == event->recorded;
    pthread_mutex_unlock(&gpu.lock);
    return done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    return put(stream, (struct operation){
                           .kind = WAIT_EVENT, .event = event, .external = flags == cudaEventWaitExternal});
}

/* ---- Memory ---- */

/* Map a file, ours from here on. */
static cudaError_t add_block(void **out, int file, size_t bytes)
{
    struct block *b = malloc(sizeof(*b));
    void *base = file < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

    if (b == NULL || base == MAP_FAILED) {
        free(b);
        return cudaErrorMemoryAllocation;
    }
    pthread_mutex_lock(&gpu.lock);
    *b = (struct block){gpu.blocks, base, bytes, file};
    gpu.blocks = b;
    pthread_mutex_unlock(&gpu.lock);
    *out = base;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaMalloc(void **out, size_t bytes)
{
    const int file = memfd_create("gpu", MFD_CLOEXEC);

    if (file < 0 || ftruncate(file, (off_t)bytes) != 0)
        return cudaErrorMemoryAllocation;
    return add_block(out, file, bytes);
}

/* Take the block out of the list; NULL: there is none. */
static struct block *take_block(const void *base)
{
    struct block **link = &gpu.blocks;

    pthread_mutex_lock(&gpu.lock);
    while (*link != NULL && (*link)->base != base)
        link = &(*link)->next;
    struct block *b = *link;
    if (b != NULL)
        *link = b->next;
    pthread_mutex_unlock(&gpu.lock);
    return b;
}

cudaError_t CUDARTAPI cudaFree(void *memory)
{
    struct block *b = memory == NULL ? NULL : take_block(memory);

    if (b == NULL)
        return memory == NULL ? cudaSuccess : cudaErrorInvalidValue;
    munmap(b->base, b->bytes);
    close(b->file);
    free(b);
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    (void)flags;
    *out = calloc(1, bytes);
    return *out == NULL ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t CUDARTAPI cudaFreeHost(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    (void)memory, (void)bytes, (void)flags;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaHostUnregister(void *memory)
{
    (void)memory;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaHostGetDevicePointer(void **out, void *memory, unsigned flags)
{
    (void)flags;
    *out = memory;
    return cudaSuccess;
}

/* A handle is a file of a process. */
struct handle {
    pid_t process;
    int file;
    size_t bytes;
};
_Static_assert(sizeof(struct handle) <= sizeof(cudaIpcMemHandle_t), "");

cudaError_t CUDARTAPI cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *memory)
{
    pthread_mutex_lock(&gpu.lock);
    const struct block *b = gpu.blocks;
    while (b != NULL && b->base != memory)
        b = b->next;
    const struct handle handle = {getpid(), b == NULL ? -1 : b->file, b == NULL ? 0 : b->bytes};
    pthread_mutex_unlock(&gpu.lock);
    memcpy(out, &handle, sizeof(handle));
    return handle.file < 0 ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t CUDARTAPI cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t from, unsigned flags)
{
    struct handle handle;
    char path[64];

    (void)flags;
    memcpy(&handle, &from, sizeof(handle));
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)handle.process, handle.file);
    return add_block(out, open(path, O_RDWR | O_CLOEXEC), handle.bytes);
}

cudaError_t CUDARTAPI cudaIpcCloseMemHandle(void *memory)
{
    return cudaFree(memory);
}

/* ---- Copies ---- */

cudaError_t CUDARTAPI cudaMemcpy2DAsync(void *to, size_t pitch_to, const void *from, size_t pitch_from,
                                        size_t width, size_t height, enum cudaMemcpyKind kind,
                                        cudaStream_t stream)
{
    (void)kind;
    return put(stream, (struct operation){.kind = COPY,
                                          .to = to,
                                          .from = from,
                                          .bytes = width,
                                          .count = height,
                                          .pitch_to = pitch_to,
                                          .pitch_from = pitch_from});
}

cudaError_t CUDARTAPI cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                                      cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t CUDARTAPI cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    (void)kind;
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    return put(stream, (struct operation){
                           .kind = FILL, .to = to, .value = (uint64_t)(unsigned)value, .bytes = bytes});
}

/* ---- Of the driver ---- */

static CUresult write_value(CUstream stream, CUdeviceptr at, cuuint32_t value, unsigned flags)
{
    (void)flags;
    return (CUresult)put(stream,
                         (struct operation){.kind = WRITE_32, .to = (void *)(uintptr_t)at, .value = value});
}

static CUresult wait_value(CUstream stream, CUdeviceptr at, cuuint32_t value, unsigned flags)
{
    if (flags != CU_STREAM_WAIT_VALUE_EQ)
        return CUDA_ERROR_NOT_SUPPORTED;
    return (CUresult)put(stream,
                         (struct operation){.kind = WAIT_32, .to = (void *)(uintptr_t)at, .value = value});
}

static CUresult batch(CUstream stream, unsigned count, CUstreamBatchMemOpParams *ops, unsigned flags)
{
    CUresult result = CUDA_SUCCESS;

    (void)flags;
    for (unsigned i = 0; result == CUDA_SUCCESS && i < count; i++)
        switch (ops[i].operation) {
        case CU_STREAM_MEM_OP_WRITE_VALUE_32:
            result = write_value(stream, ops[i].writeValue.address, ops[i].writeValue.value, 0);
            break;
        case CU_STREAM_MEM_OP_WRITE_VALUE_64:
            result =
                (CUresult)put(stream, (struct operation){.kind = WRITE_64,
                                                         .to = (void *)(uintptr_t)ops[i].writeValue.address,
                                                         .value = ops[i].writeValue.value64});
            break;
        case CU_STREAM_MEM_OP_WAIT_VALUE_32:
            result =
                wait_value(stream, ops[i].waitValue.address, ops[i].waitValue.value, ops[i].waitValue.flags);
            break;
        default:
            result = CUDA_ERROR_NOT_SUPPORTED;
        }
    return result;
}

cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                       unsigned long long flags,
                                                       enum cudaDriverEntryPointQueryResult *found)
{
    CUresult (*const batches)(CUstream, unsigned, CUstreamBatchMemOpParams *, unsigned) = batch;
    CUresult (*const writes)(CUstream, CUdeviceptr, cuuint32_t, unsigned) = write_value;
    CUresult (*const waits)(CUstream, CUdeviceptr, cuuint32_t, unsigned) = wait_value;

    (void)version, (void)flags;
    *function = NULL;
    if (strcmp(name, "cuStreamBatchMemOp") == 0)
        memcpy(function, &batches, sizeof(batches));
    if (strcmp(name, "cuStreamWriteValue32") == 0)
        memcpy(function, &writes, sizeof(writes));
    if (strcmp(name, "cuStreamWaitValue32") == 0)
        memcpy(function, &waits, sizeof(waits));
    *found = *function == NULL ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

/* ---- What tools use beside ---- */

cudaError_t CUDARTAPI cudaMemset(void *to, int value, size_t bytes)
{
    memset(to, value, bytes);
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceSynchronize(void)
{
    for (int left = 1; left > 0;) {
        left = 0;
        pthread_mutex_lock(&gpu.lock);
        for (const struct CUstream_st *s = gpu.streams; s != NULL; s = s->next)
            left += s->pending;
        pthread_mutex_unlock(&gpu.lock);
        nanosleep(&(struct timespec){0, 20000}, NULL);
    }
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetPCIBusId(char *out, int bytes, int device)
{
    snprintf(out, (size_t)bytes, "%d", device);
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, 0);
}

cudaError_t CUDARTAPI cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    (void)ms, (void)from, (void)to;
    return cudaErrorNotSupported;
}

cudaError_t CUDARTAPI cudaMemGetInfo(size_t *left, size_t *all)
{
    (void)left, (void)all;
    return cudaErrorNotSupported;
}

cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *argument)
{
    struct host *host = NULL;

    if (named(stream)->graph != NULL) /* each replay would want a state of its own */
        return cudaErrorNotSupported;
    host = malloc(sizeof(*host));
    if (host == NULL)
        return cudaErrorMemoryAllocation;
    *host = (struct host){call, argument, 0, 0};
    return put(stream, (struct operation){.kind = HOST, .to = host});
}

/* ---- Graphs ---- */

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    struct CUgraph_st *graph = calloc(1, sizeof(*graph));

    (void)mode;
    if (graph == NULL)
        return cudaErrorMemoryAllocation;
    graph->list.last = &graph->list.first;
    graph->origin = stream;
    pthread_mutex_lock(&gpu.lock);
    stream->graph = graph;
    pthread_mutex_unlock(&gpu.lock);
    return cudaSuccess;
}

/* Does any stream wait for what this one does last? The origin need not be waited for. */
static int is_joined(const struct CUgraph_st *graph, const struct CUstream_st *stream)
{
    const struct operation *last = NULL;

    for (const struct operation *o = graph->list.first; o != NULL; o = o->next)
        last = o->stream == stream ? o : last;
    if (last == NULL || stream == graph->origin)
        return 1;
    if (last->kind != RECORD || last->external)
        return 0;
    for (const struct operation *o = last->next; o != NULL; o = o->next)
        if (o->kind == WAIT_EVENT && o->event == last->event)
            return 1;
    return 0;
}

cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    cudaError_t error = cudaSuccess;

    pthread_mutex_lock(&gpu.lock);
    struct CUgraph_st *graph = stream->graph;
    for (struct CUstream_st *s = gpu.streams; s != NULL; s = s->next) {
        if (s->graph != graph)
            continue;
        if (!is_joined(graph, s))
            error = cudaErrorStreamCaptureUnjoined;
        s->graph = NULL;
    }
    for (const struct operation *o = graph->list.first; o != NULL; o = o->next)
        if (o->event != NULL)
            o->event->graph = NULL;
    pthread_mutex_unlock(&gpu.lock);
    *out = graph;
    return error;
}

/* NULL: there is none. */
static void *other(const struct pairs *pairs, const void *of)
{
    for (size_t n = 0; n < pairs->count; n++)
        if (pairs->pair[n].of == of)
            return pairs->pair[n].other;
    return NULL;
}

/* An instance has streams and events of its own, which begin with nothing. */
cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags)
{
    struct CUgraphExec_st *exec = calloc(1, sizeof(*exec));
    size_t count = 0;

    (void)flags;
    for (const struct operation *o = graph->list.first; o != NULL; o = o->next)
        count++;
    if (exec == NULL || (exec->streams.pair = calloc(count + 1, sizeof(struct pair))) == NULL ||
        (exec->events.pair = calloc(count + 1, sizeof(struct pair))) == NULL)
        return cudaErrorMemoryAllocation;
    exec->graph = graph;
    for (const struct operation *o = graph->list.first; o != NULL; o = o->next) {
        struct CUstream_st *stream = NULL;
        struct CUevent_st *event = NULL;
        if (other(&exec->streams, o->stream) == NULL) {
            cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
            exec->streams.pair[exec->streams.count++] = (struct pair){o->stream, stream};
        }
        if (o->event != NULL && !o->external && other(&exec->events, o->event) == NULL) {
            cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
            exec->events.pair[exec->events.count++] = (struct pair){o->event, event};
        }
    }
    *out = exec;
    return cudaSuccess;
}

/* What the one stream holds next comes after what the other holds now. */
static void follow(cudaStream_t first, cudaStream_t next)
{
    struct CUevent_st *event = calloc(1, sizeof(*event));

    cudaEventRecord(event, first);
    cudaStreamWaitEvent(next, event, cudaEventWaitDefault);
}

/* All of it comes after what the stream holds, and what the stream holds next after all of it. */
cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    for (size_t n = 0; n < exec->streams.count; n++)
        follow(stream, exec->streams.pair[n].other);
    for (const struct operation *o = exec->graph->list.first; o != NULL; o = o->next) {
        struct operation copy = *o;
        if (o->event != NULL && !o->external)
            copy.event = other(&exec->events, o->event);
        copy.external = 0;
        put(other(&exec->streams, o->stream), copy);
    }
    for (size_t n = 0; n < exec->streams.count; n++)
        follow(exec->streams.pair[n].other, stream);
    return cudaSuccess;
}

/* Its instances still use it, and streams them. */
cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t graph)
{
    (void)graph;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    (void)graph;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                               unsigned long long *id, cudaGraph_t *graph,
                                               const cudaGraphNode_t **dependencies,
                                               const cudaGraphEdgeData **edges, size_t *count)
{
    (void)id, (void)graph, (void)dependencies, (void)edges, (void)count;
    return cudaStreamIsCapturing(stream, status);
}

cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    (void)mode;
    return cudaErrorNotSupported;
}

cudaError_t CUDARTAPI cudaUserObjectCreate(cudaUserObject_t *out, void *data, cudaHostFn_t destroy,
                                           unsigned count, unsigned flags)
{
    (void)out, (void)data, (void)destroy, (void)count, (void)flags;
    return cudaErrorNotSupported;
}

cudaError_t CUDARTAPI cudaUserObjectRelease(cudaUserObject_t object, unsigned count)
{
    (void)object, (void)count;
    return cudaErrorNotSupported;
}

cudaError_t CUDARTAPI cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count,
                                                unsigned flags)
{
    (void)graph, (void)object, (void)count, (void)flags;
    return cudaErrorNotSupported;
}

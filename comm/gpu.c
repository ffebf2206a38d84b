/* gpu.c - the transport between GPUs: which way each pair of ranks takes, the order of executions, and the watchdog.
 *
 * Transfers have streams of their own, two for each rank that is near, one for all that goes over NCCL; events tie them to
 * the caller's. Every wait for another rank is announced in a word of pinned memory, as gpu.h says, and the
 * watchdog reads those words. When it finds that a rank is gone, has started something else or does not come in time, it
 * keeps the failure for the next call, tells the ranks of this node, aborts NCCL, and from then on releases whatever this
 * rank's streams wait for, until the communicator is destroyed: so that streams, and graphs that are replayed, come to their end. */
#include "comm/gpu.h"

#include <cuda.h>
#include <hra/nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    TICK_NS = 1000000,  /* between looks of the watchdog */
    SUSPECT_TICKS = 20, /* looks at one wait before asking whether the other rank still lives */
    SURE_TICKS = 3,     /* times that a mismatch must show: words change while they are read */
    DRAIN_S = 10        /* that destroying a failed communicator waits for its streams */
};

/* A transfer that may be started, under its number; plans add and take away theirs. */
struct listed {
    struct hra_transfer transfer;
    cudaEvent_t done;   /* it, or the group of NCCL that it was in, has been done */
    cudaEvent_t posted; /* of a receipt from a near rank: it has been posted; else NULL */
    uint32_t *tag;      /* pinned: over NCCL the tag that is sent along, or comes; the slot's for ever */
};

/* Pinned memory for the tags of some slots. */
struct tags {
    struct tags *next;
    uint32_t *word;
};

/* What the watchdog remembers of one word. */
struct watched {
    uint32_t id; /* last seen */
    int ticks;   /* looks since it is that */
    int odd;     /* looks in a row at which the other rank had started something else */
    double since_s;
};

struct hra_gpu {
    struct hra_transport table;
    int rank, ranks, device;
    struct hra_limits limit;
    hra_comm *below;         /* over which ranks speak on the host; NULL: NCCL serves for that too */
    struct hra_nccl *nccl;   /* NULL: not needed */
    struct hra_peers *peers; /* NULL: not wanted */

    cudaStream_t group_stream;   /* NCCL's groups */
    cudaEvent_t begun;           /* the transfers of a round may begin */
    cudaEvent_t tail;            /* the last execution has been done */
    struct hra_transfer **group; /* [2 capacity] scratch: the transfers of a group, with those of tags */
    struct hra_transfer *along;  /* [capacity] scratch: those of tags */
    __typeof__(cuStreamWriteValue32) *write;
    __typeof__(cuStreamWaitValue32) *await;

    pthread_mutex_t lock;  /* of the list */
    struct listed *listed; /* [capacity]; number n is at n - 1; free where its tag is 0 */
    int capacity;
    struct tags *tags;

    uint32_t *word; /* pinned: of NCCL's groups */
    uint32_t *device_word;
    struct watched *watched; /* [words_of] those of near transfers, then that of groups */
    pthread_t watchdog;
    int watching;
    atomic_int stop;
    atomic_flag kept;  /* the first failure is kept, or about to be */
    atomic_int failed; /* hra_status; failure is written before */
    char failure[256];
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void rest(long ns)
{
    nanosleep(&(struct timespec){0, ns}, NULL);
}

/* Do we exchange with this rank by mapped memory? */
static int is_near(const struct hra_gpu *g, int peer)
{
    return g->peers != NULL && hra_peers_reach(g->peers, peer);
}

static int any_near(const struct hra_gpu *g)
{
    int any = 0;

    for (int r = 0; r < g->ranks; r++)
        any |= r != g->rank && is_near(g, r);
    return any;
}

/* Over NCCL, which would not notice a rank that executes another plan, a tag comes with the first transfer of a pass from
 * each rank. */
static int has_tag(const struct hra_transfer *t)
{
    return t->number == 0;
}

/* How many words streams show their waits in. */
static int words_of(const struct hra_gpu *g)
{
    return (g->peers == NULL ? 0 : hra_peers_words(g->peers)) + 1;
}

/* What one of them holds; 0: nothing is waited for. */
static uint32_t read_word(const struct hra_gpu *g, int index)
{
    const uint32_t *word = index < words_of(g) - 1 ? hra_peers_word(g->peers, index) : g->word;
    return word == NULL ? 0 : __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* Keep the first failure, and let everyone know. From any thread. */
static void keep(struct hra_gpu *g, hra_status status, const char *sentence)
{
    if (atomic_flag_test_and_set(&g->kept))
        return;
    snprintf(g->failure, sizeof(g->failure), "%s", sentence);
    atomic_store(&g->failed, (int)status);
    hra_log(HRA_LOG_WARN, "%s: %s", hra_status_name(status), g->failure);
    if (g->peers != NULL)
        hra_peers_tell(g->peers, status, g->failure);
    if (g->nccl != NULL)
        hra_nccl_abort(g->nccl);
}

/* A rank that has failed releases its own waits, and then sends what is not computed: so where it shows its failure we fail
 * too, even if all that we have waited for has come. */
static hra_status gpu_status(void *state)
{
    struct hra_gpu *g = state;
    char why[200];

    if (atomic_load(&g->failed) == HRA_OK && g->peers != NULL &&
        hra_peers_fare(g->peers, why, sizeof(why)) != HRA_OK)
        keep(g, HRA_ERR_REMOTE, why);
    const int failed = atomic_load(&g->failed);
    return failed == HRA_OK ? HRA_OK : HRA_FAIL((hra_status)failed, "%s", g->failure);
}

/* What is half enqueued cannot be taken back: its failure is the communicator's. */
static hra_status must(struct hra_gpu *g, hra_status status)
{
    if (status != HRA_OK)
        keep(g, status, hra_last_error());
    return status;
}

/* ---- The watchdog ---- */

static void give_up(struct hra_gpu *g, hra_status status, const struct hra_transfer *t, const char *why)
{
    char sentence[256];

    snprintf(sentence, sizeof(sentence), "%s, round %d: rank %d %s rank %d: %s", t->what, t->round, g->rank,
             t->sends ? "could not send to" : "could not receive from", t->peer, why);
    keep(g, status, sentence);
}

static int is_late(const struct hra_gpu *g, const struct watched *w)
{
    return g->limit.run_s >= 0 && now_s() - w->since_s > g->limit.run_s;
}

/* What is wrong with a wait that has lasted for some looks. */
static void suspect(struct hra_gpu *g, struct watched *w, const struct hra_transfer *t)
{
    hra_status status = HRA_OK;
    char why[200] = "";

    if (is_near(g, t->peer)) {
        status = hra_peers_look(g->peers, t, why, sizeof(why));
    } else {
        const uint32_t tag = __atomic_load_n(g->listed[w->id - 1].tag, __ATOMIC_ACQUIRE);
        status = hra_nccl_status(g->nccl);
        if (status != HRA_OK) {
            snprintf(why, sizeof(why), "%s", hra_last_error());
        } else if (!t->sends && has_tag(t) && tag != 0 && tag != t->tag) {
            status = HRA_ERR_MISMATCH;
            snprintf(why, sizeof(why), "rank %d has started another transfer", t->peer);
        }
    }
    w->odd = status == HRA_ERR_MISMATCH ? w->odd + 1 : 0;
    if (status == HRA_OK && is_late(g, w)) {
        status = HRA_ERR_TIMEOUT;
        snprintf(why, sizeof(why), "waited %.1f s", g->limit.run_s);
    }
    if (status != HRA_OK && (w->odd == 0 || w->odd >= SURE_TICKS))
        give_up(g, status, t, why);
}

/* One look at one word. The lock is held: the list stays as it is. */
static void look(struct hra_gpu *g, int index)
{
    struct watched *w = &g->watched[index];
    const uint32_t id = read_word(g, index);

    if (id != w->id || id == 0) {
        *w = (struct watched){.id = id, .since_s = now_s()};
        return;
    }
    const struct hra_transfer *t = id <= (uint32_t)g->capacity ? &g->listed[id - 1].transfer : NULL;
    if (t == NULL || t->tag == 0)
        return;
    if (atomic_load(&g->failed) != HRA_OK) {
        if (is_near(g, t->peer))
            hra_peers_release(g->peers, t);
        else if (!t->sends && has_tag(t))
            __atomic_store_n(g->listed[id - 1].tag, t->tag, __ATOMIC_RELEASE);
        return;
    }
    if (++w->ticks >= SUSPECT_TICKS || is_late(g, w))
        suspect(g, w, t);
}

static void *watch(void *state)
{
    struct hra_gpu *g = state;

    while (!atomic_load(&g->stop)) {
        pthread_mutex_lock(&g->lock);
        for (int i = 0; i < words_of(g); i++)
            look(g, i);
        pthread_mutex_unlock(&g->lock);
        rest(TICK_NS);
    }
    return NULL;
}

/* ---- Transfers ---- */

static hra_status gpu_allgather(void *state, void *all, const void *mine, size_t bytes)
{
    struct hra_gpu *g = state;

    HRA_TRY(gpu_status(g));
    return g->below != NULL ? hra_comm_allgather(g->below, all, mine, bytes)
                            : hra_nccl_allgather(g->nccl, all, mine, bytes);
}

static hra_status add_tags(struct tags **out, int count)
{
    struct tags *tags = NULL;

    HRA_TRY(hra_alloc((void **)&tags, 1, sizeof(*tags), "transfers"));
    const cudaError_t error = cudaHostAlloc((void **)&tags->word, (size_t)count * sizeof(*tags->word),
                                            cudaHostAllocMapped | cudaHostAllocPortable);
    if (error != cudaSuccess) {
        free(tags);
        return HRA_FAIL(HRA_ERR_CUDA, "cudaHostAlloc for %d transfers: %s", count, cudaGetErrorString(error));
    }
    memset(tags->word, 0, (size_t)count * sizeof(*tags->word));
    *out = tags;
    return HRA_OK;
}

/* Room for `count` more transfers in the list. */
static hra_status grow(struct hra_gpu *g, int count)
{
    struct listed *larger = NULL;
    struct hra_transfer **group = NULL, *along = NULL;
    struct tags *tags = NULL;
    int room = 0;

    for (int i = 0; i < g->capacity; i++)
        room += g->listed[i].transfer.tag == 0;
    if (room >= count)
        return HRA_OK;
    const int more = count > g->capacity ? count : g->capacity, capacity = g->capacity + more;
    hra_status status =
        hra_alloc((void **)&group, 2 * (int64_t)capacity, sizeof(struct hra_transfer *), "transfers");
    if (status == HRA_OK)
        status = hra_alloc((void **)&along, capacity, sizeof(*along), "transfers");
    if (status == HRA_OK)
        status = hra_alloc((void **)&larger, capacity, sizeof(*larger), "transfers");
    if (status == HRA_OK)
        status = add_tags(&tags, more);
    if (status != HRA_OK) {
        free(group);
        free(along);
        free(larger);
        return status;
    }
    for (int i = 0; i < more; i++)
        larger[g->capacity + i].tag = tags->word + i;
    pthread_mutex_lock(&g->lock);
    if (g->capacity > 0)
        memcpy(larger, g->listed, (size_t)g->capacity * sizeof(*larger));
    free(g->listed);
    free(g->group);
    free(g->along);
    tags->next = g->tags;
    g->tags = tags;
    g->along = along;
    g->listed = larger;
    g->group = group;
    g->capacity = capacity;
    pthread_mutex_unlock(&g->lock);
    return HRA_OK;
}

static void gpu_delist(void *state, struct hra_transfer *transfer, int count)
{
    struct hra_gpu *g = state;

    pthread_mutex_lock(&g->lock);
    for (int i = 0; i < count; i++) {
        if (transfer[i].first == 0)
            continue;
        struct listed *l = &g->listed[transfer[i].first - 1];
        cudaEventDestroy(l->done);
        if (l->posted != NULL)
            cudaEventDestroy(l->posted);
        *l = (struct listed){.tag = l->tag};
        transfer[i].first = 0;
    }
    pthread_mutex_unlock(&g->lock);
}

static hra_status gpu_enlist(void *state, struct hra_transfer *transfer, int count)
{
    struct hra_gpu *g = state;
    int next = 0;

    HRA_TRY(grow(g, count));
    for (int i = 0; i < count; i++) {
        cudaEvent_t done = NULL, posted = NULL;
        while (g->listed[next].transfer.tag != 0)
            next++;
        cudaError_t error = cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
        if (error == cudaSuccess && !transfer[i].sends && is_near(g, transfer[i].peer))
            error = cudaEventCreateWithFlags(&posted, cudaEventDisableTiming);
        if (error != cudaSuccess) {
            if (done != NULL)
                cudaEventDestroy(done);
            gpu_delist(g, transfer, i);
            return HRA_FAIL(HRA_ERR_CUDA, "cudaEventCreate: %s", cudaGetErrorString(error));
        }
        pthread_mutex_lock(&g->lock);
        g->listed[next].transfer = transfer[i];
        g->listed[next].done = done;
        g->listed[next].posted = posted;
        pthread_mutex_unlock(&g->lock);
        *g->listed[next].tag = transfer[i].sends ? transfer[i].tag : 0;
        transfer[i].first = transfer[i].count = ++next;
    }
    return HRA_OK;
}

static enum cudaStreamCaptureStatus capture_of(cudaStream_t stream)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream, &status) == cudaSuccess ? status : cudaStreamCaptureStatusActive;
}

/* In a graph, tail is an event from outside of it: looked at, and recorded, each time the graph is replayed. */
static hra_status gpu_begin(void *state, void *stream)
{
    struct hra_gpu *g = state;
    const int records = capture_of(stream) != cudaStreamCaptureStatusNone;
    int device;

    HRA_TRY_CUDA(cudaGetDevice(&device));
    if (device != g->device)
        return HRA_FAIL(HRA_ERR_ARG, "device %d is current; the communicator was made on %d", device,
                        g->device);
    HRA_TRY_CUDA(
        cudaStreamWaitEvent(stream, g->tail, records ? cudaEventWaitExternal : cudaEventWaitDefault));
    return HRA_OK;
}

static hra_status gpu_end(void *state, void *stream)
{
    struct hra_gpu *g = state;
    const int records = capture_of(stream) != cudaStreamCaptureStatusNone;

    HRA_TRY_CUDA(cudaEventRecordWithFlags(g->tail, stream,
                                          records ? cudaEventRecordExternal : cudaEventRecordDefault));
    return HRA_OK;
}

/* The word of groups, and then, unless at is NULL, a wait for a value at `at`, which is written back to 0. */
static hra_status announce(const struct hra_gpu *g, cudaStream_t stream, uint32_t id, uint32_t *at,
                           uint32_t value)
{
    const CUdeviceptr word = (CUdeviceptr)(uintptr_t)g->device_word;
    void *there = NULL;

    CUresult result = g->write(stream, word, id, CU_STREAM_WRITE_VALUE_DEFAULT);
    if (result == CUDA_SUCCESS && at != NULL) {
        HRA_TRY_CUDA(cudaHostGetDevicePointer(&there, at, 0));
        result = g->await(stream, (CUdeviceptr)(uintptr_t)there, value, CU_STREAM_WAIT_VALUE_EQ);
        if (result == CUDA_SUCCESS)
            result = g->write(stream, (CUdeviceptr)(uintptr_t)there, 0, CU_STREAM_WRITE_VALUE_DEFAULT);
    }
    return result == CUDA_SUCCESS ? HRA_OK
                                  : HRA_FAIL(HRA_ERR_CUDA, "a memory operation of a stream: %s",
                                             cudaGetErrorString((cudaError_t)result));
}

/* Put tags beside the transfers of a group that have one; how many it has then. */
static int add_along(struct hra_gpu *g, int count)
{
    int along = 0;

    for (int i = 0; i < count; i++) {
        const struct hra_transfer *t = g->group[i];
        if (!has_tag(t))
            continue;
        g->along[along] = *t;
        g->along[along].data = g->listed[t->first - 1].tag;
        g->along[along].bytes = sizeof(uint32_t);
        g->group[count + along] = &g->along[along];
        along++;
    }
    return count + along;
}

/* The transfers of a round that go by NCCL. All of them are done when the group is: they share the first one's event. */
static hra_status start_group(struct hra_gpu *g, int count)
{
    const struct hra_transfer *first = g->group[0];

    for (int i = 1; i < count; i++)
        g->group[i]->count = first->first;
    HRA_TRY_CUDA(cudaStreamWaitEvent(g->group_stream, g->begun, 0));
    HRA_TRY(announce(g, g->group_stream, (uint32_t)first->first, NULL, 0));
    HRA_TRY(hra_nccl_group(g->nccl, g->group, add_along(g, count), g->group_stream));
    for (int i = 0; i < count; i++)
        if (!g->group[i]->sends && has_tag(g->group[i]))
            HRA_TRY(announce(g, g->group_stream, (uint32_t)g->group[i]->first,
                             g->listed[g->group[i]->first - 1].tag, g->group[i]->tag));
    HRA_TRY(announce(g, g->group_stream, 0, NULL, 0));
    HRA_TRY_CUDA(cudaEventRecord(g->listed[first->first - 1].done, g->group_stream));
    return HRA_OK;
}

/* Is it sent as it came from a near rank, when that has told of it, whatever the stream holds? What came over NCCL goes as what is
 * computed here does: by the time that it is started the stream has finished the receipt. */
static int is_passed_on(const struct hra_gpu *g, const struct hra_transfer *t)
{
    return t->sends && t->ahead && is_near(g, t->from->peer);
}

static hra_status post(struct hra_gpu *g, struct hra_transfer *const *transfer, int count, int after,
                       cudaStream_t stream)
{
    HRA_TRY_CUDA(cudaEventRecord(g->begun, stream));
    for (int i = 0; i < count; i++) {
        const struct hra_transfer *t = transfer[i];
        if (is_passed_on(g, t))
            HRA_TRY(hra_peers_hold(g->peers, t->peer, g->begun)); /* the limit of its wait runs from here */
        if (!is_near(g, t->peer) || t->sends)
            continue;
        for (int a = count; a < count + after; a++)
            HRA_TRY(hra_peers_hold(g->peers, t->peer, g->listed[transfer[a]->count - 1].done));
        HRA_TRY(hra_peers_post(g->peers, t, g->begun, g->listed[t->first - 1].posted));
    }
    return HRA_OK;
}

static hra_status gpu_post(void *state, struct hra_transfer *const *transfer, int count, int after,
                           void *stream)
{
    return must(state, post(state, transfer, count, after, stream));
}

static hra_status send_near(struct hra_gpu *g, const struct hra_transfer *t)
{
    const cudaEvent_t done = g->listed[t->first - 1].done;
    const uint32_t id = (uint32_t)t->first;

    return is_passed_on(g, t) ? hra_peers_pass_on(g->peers, t, g->listed[t->from->first - 1].posted, done, id)
                              : hra_peers_send(g->peers, t, g->begun, done, id);
}

/* Posts go first: where all streams share one queue of the GPU, a send that waits for its post must not keep back our own. */
static hra_status start(struct hra_gpu *g, struct hra_transfer *const *transfer, int count,
                        cudaStream_t stream)
{
    int far = 0;

    HRA_TRY_CUDA(cudaEventRecord(g->begun, stream));
    for (int i = 0; i < count; i++) {
        struct hra_transfer *t = transfer[i];
        if (!is_near(g, t->peer)) {
            t->count = t->first;
            g->group[far++] = t;
        } else if (!t->sends && !t->ahead) {
            HRA_TRY(hra_peers_post(g->peers, t, g->begun, g->listed[t->first - 1].posted));
        }
    }
    for (int i = 0; i < count; i++)
        if (transfer[i]->sends && is_near(g, transfer[i]->peer))
            HRA_TRY(send_near(g, transfer[i]));
    return far == 0 ? HRA_OK : start_group(g, far);
}

static hra_status gpu_start(void *state, struct hra_transfer *const *transfer, int count, void *stream)
{
    return must(state, start(state, transfer, count, stream));
}

static hra_status finish(struct hra_gpu *g, const struct hra_transfer *t, cudaStream_t stream)
{
    const cudaEvent_t done = g->listed[t->count - 1].done;

    if (is_near(g, t->peer) && !t->sends)
        HRA_TRY(hra_peers_arrive(g->peers, t, g->listed[t->first - 1].posted, done, (uint32_t)t->first));
    HRA_TRY_CUDA(cudaStreamWaitEvent(stream, done, 0));
    return HRA_OK;
}

static hra_status gpu_finish(void *state, struct hra_transfer *t, void *stream)
{
    return must(state, finish(state, t, stream));
}

/* Poll until the event is done, or where it is NULL the stream. *done is 0 where time ran out. */
static hra_status wait_for(const struct hra_gpu *g, cudaStream_t stream, cudaEvent_t event, double timeout_s,
                           int *done)
{
    const double begin = now_s();
    long rest_ns = 1000;

    for (*done = 0;;) {
        const cudaError_t error = event != NULL ? cudaEventQuery(event) : cudaStreamQuery(stream);
        if (error != cudaErrorNotReady) {
            *done = error == cudaSuccess;
            HRA_TRY_CUDA(error);
            return HRA_OK;
        }
        if (event == NULL && atomic_load(&g->failed) != HRA_OK)
            return HRA_OK;
        if (timeout_s >= 0 && now_s() - begin > timeout_s)
            return HRA_OK;
        rest(rest_ns);
        rest_ns = rest_ns < 100000 ? 2 * rest_ns : rest_ns;
    }
}

/* Does a stream wait for another rank? Then the watchdog decides when that has taken too long. */
static int is_waiting(const struct hra_gpu *g)
{
    int waiting = 0;

    for (int i = 0; i < words_of(g); i++)
        waiting |= read_word(g, i) != 0;
    return waiting;
}

static hra_status gpu_wait(void *state, void *stream)
{
    struct hra_gpu *g = state;
    int done, waits;

    if (capture_of(stream) != cudaStreamCaptureStatusNone)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_wait: the stream records a graph");
    do {
        HRA_TRY(wait_for(g, stream, NULL, g->limit.run_s, &done));
        waits = is_waiting(g); /* looked at before the status: a wait that ends in a failure is seen as one */
        HRA_TRY(gpu_status(g));
    } while (!done && waits);
    return done ? HRA_OK
                : HRA_FAIL(HRA_ERR_TIMEOUT, "hra_comm_wait: the stream was not done in %.1f s",
                           g->limit.run_s);
}

hra_status hra_gpu_synchronize(void *state, void *stream)
{
    int devices = 0;

    (void)state;
    if (stream == NULL &&
        (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)) /* all work was a CPU's */
        return HRA_OK;
    HRA_TRY_CUDA(cudaStreamSynchronize(stream));
    return HRA_OK;
}

/* ---- Memory ---- */

/* Whole pages of the GPU: what is smaller CUDA shares with other processes together with its neighbours. */
static hra_status gpu_alloc(void *state, void **out, size_t bytes)
{
    const size_t page = 2 << 20;

    (void)state;
    HRA_TRY_CUDA(cudaMalloc(out, (bytes + page - 1) / page * page));
    return HRA_OK;
}

static void gpu_release(void *state, void *memory)
{
    struct hra_gpu *g = state;

    if (g->peers == NULL || !hra_peers_keep(g->peers, memory))
        cudaFree(memory);
}

static hra_status gpu_copy(void *state, void *to, const void *from, size_t bytes)
{
    (void)state;
    HRA_TRY_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
    HRA_TRY_CUDA(cudaStreamSynchronize(cudaStreamLegacy)); /* as in hra_cuda_write */
    return HRA_OK;
}

static hra_status gpu_map(void *state, void *arena, size_t bytes, void **there)
{
    struct hra_gpu *g = state;

    if (g->peers != NULL)
        return hra_peers_map(g->peers, arena, bytes, there);
    memset(there, 0, (size_t)g->ranks * sizeof(*there));
    return HRA_OK;
}

/* ---- Making and closing ---- */

/* The first of several failures, whose sentence is kept: what is closed after it may say something of its own. */
static hra_status first_of(hra_status first, hra_status next, char *why, size_t bytes)
{
    if (first == HRA_OK && next != HRA_OK)
        snprintf(why, bytes, "%s", hra_last_error());
    return first != HRA_OK ? first : next;
}

/* Undo what was done. Waits for what the streams hold, which the watchdog releases where the communicator has failed. */
static hra_status gpu_close(void *state, int failed)
{
    struct hra_gpu *g = state;
    const double limit_s = failed ? DRAIN_S : g->limit.run_s;
    hra_status status = HRA_OK;
    char why[512] = "";
    int done = 1;

    if (g->tail != NULL)
        status = wait_for(g, NULL, g->tail, limit_s, &done);
    if (status == HRA_OK && !done)
        status = HRA_FAIL(HRA_ERR_TIMEOUT, "hra_comm_destroy: the communicator's work was not done in %.1f s",
                          limit_s);
    status = first_of(HRA_OK, status, why, sizeof(why));
    const int alone = failed || status != HRA_OK;
    atomic_store(&g->stop, 1);
    if (g->watching)
        pthread_join(g->watchdog, NULL);
    status = first_of(status, hra_peers_close(g->peers, alone), why, sizeof(why));
    status = first_of(status, hra_nccl_close(g->nccl, alone || status != HRA_OK), why, sizeof(why));
    if (g->below != NULL) {
        if (alone || status != HRA_OK)
            g->below->failed = HRA_ERR_REMOTE; /* the others may not come */
        status = first_of(status, hra_comm_destroy(g->below), why, sizeof(why));
    }
    if (g->group_stream != NULL)
        cudaStreamDestroy(g->group_stream);
    if (g->begun != NULL)
        cudaEventDestroy(g->begun);
    if (g->tail != NULL)
        cudaEventDestroy(g->tail);
    if (done) /* else a stream may still write there */
        cudaFreeHost(g->word);
    for (struct tags *t = g->tags, *after; t != NULL; t = after) {
        after = t->next;
        if (done)
            cudaFreeHost(t->word);
        free(t);
    }
    pthread_mutex_destroy(&g->lock);
    free(g->watched);
    free(g->listed);
    free(g->group);
    free(g->along);
    free(g);
    return failed || status == HRA_OK ? HRA_OK : HRA_FAIL(status, "%s", why);
}

static const struct hra_transport gpu_transport = {
    .device_only = 1,
    .allgather = gpu_allgather,
    .enlist = gpu_enlist,
    .delist = gpu_delist,
    .begin = gpu_begin,
    .end = gpu_end,
    .start = gpu_start,
    .post = gpu_post,
    .finish = gpu_finish,
    .status = gpu_status,
    .wait = gpu_wait,
    .alloc = gpu_alloc,
    .release = gpu_release,
    .copy = gpu_copy,
    .map = gpu_map,
    .close = gpu_close,
};

/* A function of the driver, which is not linked: machines without one load this library too. */
static hra_status find_function(void *out, const char *name)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *function = NULL;

    HRA_TRY_CUDA(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
    if (function == NULL || found != cudaDriverEntryPointSuccess)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "the driver has no %s", name);
    memcpy(out, &function, sizeof(function));
    return HRA_OK;
}

/* Everything that needs no other rank. */
static hra_status prepare(struct hra_gpu *g)
{
    int greatest = 0;

    HRA_TRY_CUDA(cudaGetDevice(&g->device));
    HRA_TRY(find_function(&g->write, "cuStreamWriteValue32"));
    HRA_TRY(find_function(&g->await, "cuStreamWaitValue32"));
    HRA_TRY_CUDA(cudaDeviceGetStreamPriorityRange(NULL, &greatest));
    HRA_TRY_CUDA(cudaStreamCreateWithPriority(&g->group_stream, cudaStreamNonBlocking, greatest));
    HRA_TRY_CUDA(cudaEventCreateWithFlags(&g->begun, cudaEventDisableTiming));
    HRA_TRY_CUDA(cudaEventCreateWithFlags(&g->tail, cudaEventDisableTiming));
    HRA_TRY_CUDA(cudaEventRecord(g->tail, g->group_stream)); /* so that there is something to wait for */
    HRA_TRY_CUDA(
        cudaHostAlloc((void **)&g->word, sizeof(*g->word), cudaHostAllocMapped | cudaHostAllocPortable));
    *g->word = 0;
    HRA_TRY_CUDA(cudaHostGetDevicePointer((void **)&g->device_word, g->word, 0));
    return HRA_OK;
}

/* What ranks tell each other when a communicator is made. */
struct greeting {
    int kind, local; /* hra_transport_kind; 1: reaches every rank */
    char gpu[16];    /* its UUID */
    char node[64];
};

static hra_status greet(struct greeting *mine, const struct hra_gpu *g, hra_transport_kind kind)
{
    struct cudaDeviceProp properties;

    memset(mine, 0, sizeof(*mine));
    HRA_TRY_CUDA(cudaGetDeviceProperties(&properties, g->device));
    mine->kind = (int)kind;
    mine->local = 1;
    for (int r = 0; r < g->ranks; r++)
        mine->local &= r == g->rank || is_near(g, r);
    memcpy(mine->gpu, &properties.uuid, sizeof(mine->gpu));
    gethostname(mine->node, sizeof(mine->node) - 1);
    return HRA_OK;
}

/* The ranks' greetings say whether NCCL is needed, and whether it can be had. Alike on all ranks. */
static hra_status compare(const struct greeting *all, const struct hra_gpu *g, hra_comm *comm, int *needed)
{
    comm->local_ranks = 0;
    *needed = 0;
    for (int r = 0; r < g->ranks; r++) {
        comm->local_ranks += strcmp(all[r].node, all[g->rank].node) == 0;
        if (all[r].kind != all[0].kind)
            return HRA_FAIL(HRA_ERR_MISMATCH, "options.transport is %d on rank %d and %d on rank 0",
                            all[r].kind, r, all[0].kind);
        if (!all[r].local && all[0].kind == HRA_TRANSPORT_PEER)
            return HRA_FAIL(
                HRA_ERR_UNSUPPORTED,
                "options.transport is peer, and rank %d cannot map the memory of every other rank", r);
        *needed |= !all[r].local;
    }
    for (int r = 0; *needed && r < g->ranks; r++)
        for (int s = 0; s < r; s++)
            if (strcmp(all[r].node, all[s].node) == 0 &&
                memcmp(all[r].gpu, all[s].gpu, sizeof(all[r].gpu)) == 0)
                return HRA_FAIL(
                    HRA_ERR_UNSUPPORTED,
                    "ranks %d and %d share a GPU of %s; NCCL wants one for each rank, peer does not", s, r,
                    all[r].node);
    return HRA_OK;
}

/* A communicator of NCCL for ranks that can already speak. Collective. */
static hra_status open_nccl(struct hra_gpu *g, hra_comm *comm)
{
    char id[HRA_UNIQUE_ID_BYTES] = "", *all = NULL;

    hra_status status = hra_nccl_load();
    if (status == HRA_OK && g->rank == 0)
        status = hra_nccl_unique_id(id);
    if (status == HRA_OK)
        status = hra_alloc((void **)&all, g->ranks, sizeof(id), "communicator");
    status = hra_comm_agree(comm, status);
    if (status == HRA_OK)
        status = hra_comm_allgather(comm, all, id, sizeof(id));
    if (status == HRA_OK)
        status = hra_comm_agree(comm, hra_nccl_open(&g->nccl, g->rank, g->ranks, all, NULL, g->limit));
    free(all);
    return status;
}

/* Set up all connections, so that executions find them. */
static hra_status connect(struct hra_gpu *g, hra_comm *comm)
{
    unsigned char *with = NULL;

    hra_status status = hra_comm_agree(comm, hra_alloc((void **)&with, g->ranks, 1, "communicator"));
    for (int r = 0; status == HRA_OK && r < g->ranks; r++)
        with[r] = r != g->rank && !is_near(g, r);
    if (status == HRA_OK)
        status = hra_comm_agree(comm, hra_nccl_connect(g->nccl, with));
    free(with);
    return status;
}

/* Decide which way each pair takes and make what that needs. Every rank goes through the same steps. */
static hra_status meet(struct hra_gpu *g, hra_comm *comm, hra_transport_kind kind)
{
    struct greeting mine, *all = NULL;
    int needed = 0;

    if (kind != HRA_TRANSPORT_NCCL)
        HRA_TRY(hra_comm_agree(
            comm, hra_peers_open(&g->peers, g->rank, g->ranks, (struct hra_gather){gpu_allgather, g})));
    hra_status status = hra_alloc((void **)&all, g->ranks, sizeof(*all), "communicator");
    if (status == HRA_OK)
        status = greet(&mine, g, kind);
    status = hra_comm_agree(comm, status);
    if (status == HRA_OK)
        status = hra_comm_allgather(comm, all, &mine, sizeof(mine));
    if (status == HRA_OK)
        status = compare(all, g, comm, &needed);
    free(all);
    HRA_TRY(status);
    if (needed && g->nccl == NULL)
        HRA_TRY(open_nccl(g, comm));
    if (needed)
        HRA_TRY(connect(g, comm));
    g->table.name = !needed ? "peer" : kind == HRA_TRANSPORT_NCCL ? "nccl" : "peer+nccl";
    g->table.sends_lines = !needed;
    if (!any_near(g)) /* NCCL takes what comes when both have come */
        g->table.post = NULL;
    status = hra_alloc((void **)&g->watched, words_of(g), sizeof(*g->watched), "communicator");
    if (status == HRA_OK && pthread_create(&g->watchdog, NULL, watch, g) != 0)
        status = HRA_FAIL(HRA_ERR_MEMORY, "communicator: no thread for the watchdog");
    g->watching = status == HRA_OK;
    return hra_comm_agree(comm, status);
}

/* Everything up to where this rank can speak to the others. On success *out owns the state. */
static hra_status begin(hra_comm **out, const struct hra_gpu_setup *setup)
{
    struct hra_gpu *g = NULL;

    HRA_TRY(hra_alloc((void **)&g, 1, sizeof(*g), "communicator"));
    *g = (struct hra_gpu){.table = gpu_transport,
                          .rank = setup->rank,
                          .ranks = setup->ranks,
                          .limit = hra_comm_limits(&setup->options),
                          .below = setup->below,
                          .kept = ATOMIC_FLAG_INIT};
    g->table.name = "gpu";
    pthread_mutex_init(&g->lock, NULL);
    hra_status status = prepare(g);
    if (status == HRA_OK && g->below == NULL)
        status = hra_nccl_load();
    if (status == HRA_OK && g->below == NULL)
        status = hra_nccl_open(&g->nccl, g->rank, g->ranks, setup->unique_id, setup->parent, g->limit);
    if (status == HRA_OK)
        status = hra_comm_create(out, &g->table, g, g->rank, g->ranks, SIZE_MAX);
    if (status != HRA_OK) {
        g->below = NULL; /* stays the caller's */
        gpu_close(g, 1);
    }
    return status;
}

hra_status hra_gpu_create(hra_comm **out, const struct hra_gpu_setup *setup)
{
    hra_transport_kind kind = setup->options.transport;
    hra_comm *comm = NULL;

    if (kind == HRA_TRANSPORT_AUTO)
        kind = HRA_TRANSPORT_GPU;
    if (kind < HRA_TRANSPORT_GPU || kind > HRA_TRANSPORT_PEER)
        return HRA_FAIL(HRA_ERR_ARG,
                        "options.transport is %d; between GPUs it must be auto, gpu, nccl or peer",
                        (int)kind);
    hra_status status = begin(&comm, setup);
    if (setup->below != NULL)
        status = hra_comm_agree(setup->below, status);
    if (status == HRA_OK)
        status = meet(comm->state, comm, kind);
    if (status != HRA_OK) {
        char why[512];
        first_of(HRA_OK, status, why, sizeof(why));
        if (comm != NULL)
            ((struct hra_gpu *)comm->state)->below = NULL; /* stays the caller's */
        hra_comm_destroy(comm);
        return HRA_FAIL(status, "%s", why);
    }
    hra_log(HRA_LOG_INFO, "communicator over %s, rank %d of %d, %d on this node", comm->transport->name,
            comm->rank, comm->ranks, comm->local_ranks);
    *out = comm;
    return HRA_OK;
}

hra_status hra_comm_get_unique_id(void *out)
{
    if (out == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_get_unique_id: out is NULL");
    HRA_TRY(hra_nccl_load());
    return hra_nccl_unique_id(out);
}

hra_status hra_comm_create_unique(hra_comm **out, int rank, int ranks, const void *id,
                                  const hra_comm_options *options)
{
    struct hra_gpu_setup setup = {.rank = rank, .ranks = ranks, .unique_id = id};

    if (out == NULL || id == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_unique: %s is NULL", out == NULL ? "out" : "id");
    if (ranks < 1 || rank < 0 || rank >= ranks)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_unique: rank %d of %d", rank, ranks);
    HRA_TRY(hra_copy_sized(&setup.options, sizeof(setup.options), options, "options"));
    return hra_gpu_create(out, &setup);
}

hra_status hra_comm_create_nccl(hra_comm **out, ncclComm_t parent, const hra_comm_options *options)
{
    struct hra_gpu_setup setup = {.parent = parent};
    int device = 0, current = 0;

    if (out == NULL || parent == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_nccl: %s is NULL", out == NULL ? "out" : "parent");
    HRA_TRY(hra_copy_sized(&setup.options, sizeof(setup.options), options, "options"));
    HRA_TRY(hra_nccl_describe(parent, &setup.rank, &setup.ranks, &device));
    HRA_TRY_CUDA(cudaGetDevice(&current));
    if (current != device)
        return HRA_FAIL(HRA_ERR_ARG, "hra_comm_create_nccl: device %d is current; parent's is %d", current,
                        device);
    return hra_gpu_create(out, &setup);
}

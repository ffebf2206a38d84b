/* nccl.c - NCCL between GPUs: its library, a communicator of our own, the transfers over it, and its end.
 *
 * Some calls of NCCL wait without end, for a rank that never comes or for a graph that is still to be
 * destroyed: those that make a communicator, end it, abort it. Each runs in a detached thread, for which the
 * caller waits as long as it may; where time runs out the thread cleans up behind itself, as soon as it can.
 *
 * A communicator takes one call at a time. That holds for ncclCommGetAsyncError too, which joins threads and
 * frees memory of NCCL's (its src/init.cc). So calls on ours are made under a lock; all of them return soon,
 * as it is non-blocking. Who gives it up says so first and then passes through the lock: from there on nobody
 * else touches it. */
#include "comm/gpu.h"

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 18, 0)
#error "this needs nccl.h of NCCL 2.18 or newer"
#endif

_Static_assert(HRA_UNIQUE_ID_BYTES == NCCL_UNIQUE_ID_BYTES, "ids are handed through");

enum {
    STAGE_BYTES = 4 << 20, /* that allgather moves at a time, of all ranks together */
    LEAST_PIECE = 1024,    /* of one rank, bytes; as many go each way where ranks connect */
    ABORT_S = 1,           /* that an abort is waited for */
    GRAPHS_S = 5,          /* that the end is waited for where graphs may hold it up */
    EXIT_S = 5             /* that the end of the process waits for threads that are in NCCL */
};

/* Beside NCCL's codes: it was not asked, since the communicator has been given up. */
#define GIVEN_UP ((ncclResult_t)-1)

/* NCCL is looked for at first use: a machine without it lacks nothing else. Where the host program has loaded
 * a copy under this name that is the one found, as a communicator that is lent to us needs. */
static struct {
    __typeof__(ncclGetVersion) *get_version;
    __typeof__(ncclGetErrorString) *text;
    __typeof__(ncclGetLastError) *last_error;
    __typeof__(ncclGetUniqueId) *unique_id;
    __typeof__(ncclCommInitRankConfig) *init;
    __typeof__(ncclCommSplit) *split; /* NULL before 2.18 */
    __typeof__(ncclCommGetAsyncError) *async_error;
    __typeof__(ncclCommAbort) *abort;
    __typeof__(ncclCommDestroy) *destroy;
    __typeof__(ncclCommCount) *count;
    __typeof__(ncclCommUserRank) *user_rank;
    __typeof__(ncclCommCuDevice) *device;
    __typeof__(ncclGroupStart) *group_start;
    __typeof__(ncclGroupEnd) *group_end;
    __typeof__(ncclSend) *send;
    __typeof__(ncclRecv) *recv;
    __typeof__(ncclAllGather) *all_gather;
    char library[40];  /* its name and version */
    char missing[200]; /* what could not be had; "" */
} nccl;

static void find_nccl(void)
{
    static const struct {
        const char *name;
        void *to;
    } functions[] = {{"ncclGetVersion", &nccl.get_version},
                     {"ncclGetErrorString", &nccl.text},
                     {"ncclGetLastError", &nccl.last_error},
                     {"ncclGetUniqueId", &nccl.unique_id},
                     {"ncclCommInitRankConfig", &nccl.init},
                     {"ncclCommSplit", &nccl.split},
                     {"ncclCommGetAsyncError", &nccl.async_error},
                     {"ncclCommAbort", &nccl.abort},
                     {"ncclCommDestroy", &nccl.destroy},
                     {"ncclCommCount", &nccl.count},
                     {"ncclCommUserRank", &nccl.user_rank},
                     {"ncclCommCuDevice", &nccl.device},
                     {"ncclGroupStart", &nccl.group_start},
                     {"ncclGroupEnd", &nccl.group_end},
                     {"ncclSend", &nccl.send},
                     {"ncclRecv", &nccl.recv},
                     {"ncclAllGather", &nccl.all_gather}};
    static const char name[] = "libnccl.so.2";
    const char *lacking = NULL;
    int v = 0;

    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(nccl.missing, sizeof(nccl.missing), "%s", dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *const found = dlsym(library, functions[i].name);
        memcpy(functions[i].to, &found, sizeof(found));
        if (found == NULL && lacking == NULL && functions[i].to != &nccl.split)
            lacking = functions[i].name;
    }
    if (nccl.get_version == NULL || nccl.get_version(&v) != ncclSuccess)
        v = 0;
    snprintf(nccl.library, sizeof(nccl.library), "%s (%d.%d.%d)", name, v / 10000, v / 100 % 100, v % 100);
    if (lacking != NULL)
        snprintf(nccl.missing, sizeof(nccl.missing), "%s has no %s", nccl.library, lacking);
}

hra_status hra_nccl_load(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, find_nccl);
    return nccl.missing[0] == '\0' ? HRA_OK : HRA_FAIL(HRA_ERR_UNSUPPORTED, "NCCL: %s", nccl.missing);
}

struct hra_nccl {
    ncclComm_t comm; /* NULL until it is made */
    int rank, ranks, device;
    struct hra_limits limit;
    pthread_mutex_t lock;       /* around calls on comm */
    atomic_int given_up;        /* enum given_up */
    atomic_int *users;          /* us, and every graph that holds transfers; the last one frees it */
    unsigned long long capture; /* the last one that was counted */

    ncclComm_t parent; /* the caller's, off which comm is split; NULL: it is made with id */
    ncclUniqueId id;
    atomic_int task;      /* enum task, of the thread that makes comm and later of the one that ends it */
    hra_status result;    /* of that thread, written before it is done */
    char why[256];        /* the sentence of a failure */
    uint64_t old_warning; /* a hash of NCCL's last warning from before, or 0 */

    cudaStream_t stream; /* of what the host waits for */
    char *stage;         /* [ranks][piece] device memory */
    char *mirror;        /* [ranks][piece] pinned memory of the host */
    size_t piece;        /* bytes */
};

enum task {
    RUNNING,
    DONE, /* the result is there; the object is the waiter's */
    LEFT  /* nobody waits any more; the object is the thread's */
};

enum waited { IN_TIME, OUT_OF_TIME, HELD_UP /* by graphs */ };

enum given_up {
    NOT,
    ABORTING, /* a thread may still use comm */
    ABORTED   /* comm is gone */
};

/* ---- What NCCL says ---- */

static int is_fine(ncclResult_t code)
{
    return code == ncclSuccess || code == ncclInProgress;
}

static hra_status status_of(ncclResult_t code)
{
    return code == ncclRemoteError ? HRA_ERR_REMOTE : HRA_ERR_COMM;
}

/* NCCL's last warning, of whatever call; 0 where there is none. */
static uint64_t last_warning(const char **text, int *length)
{
    *text = nccl.last_error(NULL);
    *length = *text == NULL ? 0 : (int)strcspn(*text, "\n");
    return *length == 0 ? 0 : hra_hash(HRA_HASH_BEGIN, *text, (size_t)*length);
}

/* The code in words, with NCCL's last warning, which often has the cause, unless it is older than n, which
 * may be NULL. */
static const char *explain(const struct hra_nccl *n, ncclResult_t code, char *text, size_t bytes)
{
    const char *last;
    int length;

    if (code == GIVEN_UP) {
        snprintf(text, bytes, "NCCL's communicator has been given up");
        return text;
    }
    const uint64_t hash = last_warning(&last, &length);
    if (hash == 0 || (n != NULL && hash == n->old_warning))
        snprintf(text, bytes, "%s", nccl.text(code));
    else
        snprintf(text, bytes, "%s; NCCL's last warning: %.*s", nccl.text(code), length, last);
    return text;
}

static hra_status fail(const struct hra_nccl *n, ncclResult_t code, const char *what)
{
    char text[256];
    return HRA_FAIL(status_of(code), "%s: %s", what, explain(n, code, text, sizeof(text)));
}

#define TRY_NCCL(name, call)                                                                                 \
    do {                                                                                                     \
        ncclResult_t try_ = (call);                                                                          \
        if (try_ != ncclSuccess)                                                                             \
            return fail(NULL, try_, name);                                                                   \
    } while (0)

hra_status hra_nccl_unique_id(void *out)
{
    ncclUniqueId id;

    HRA_TRY(hra_nccl_load());
    TRY_NCCL("ncclGetUniqueId", nccl.unique_id(&id));
    memcpy(out, &id, sizeof(id));
    return HRA_OK;
}

hra_status hra_nccl_describe(void *parent, int *rank, int *ranks, int *device)
{
    HRA_TRY(hra_nccl_load());
    TRY_NCCL("ncclCommUserRank", nccl.user_rank(parent, rank));
    TRY_NCCL("ncclCommCount", nccl.count(parent, ranks));
    TRY_NCCL("ncclCommCuDevice", nccl.device(parent, device));
    return HRA_OK;
}

/* What a communicator is at. Where it is through, the second call joins the thread in which NCCL was at it:
 * some versions keep the task in memory of the thread that gave it, which may end before its next call. */
static ncclResult_t state_of(ncclComm_t comm)
{
    ncclResult_t state = ncclSuccess;
    int ranks;

    const ncclResult_t code = nccl.async_error(comm, &state);
    if (code != ncclSuccess || state != ncclSuccess)
        return code != ncclSuccess ? code : state;
    return nccl.count(comm, &ranks);
}

/* ---- Waiting ---- */

struct wait {
    double begin_s, limit_s; /* a negative limit: none */
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct wait begin_wait(double limit_s)
{
    return (struct wait){now_s(), limit_s};
}

/* Rest until the next look: 0 where time has run out. At first it only yields, since what NCCL does on the
 * host takes some 0.1 ms, later it rests for a fiftieth of the time that has passed, which hardly delays and
 * leaves the core to others. */
static int rest(const struct wait *w)
{
    const double passed_s = now_s() - w->begin_s;
    const double rest_s = passed_s < 0.25 ? passed_s / 50 : 0.005;

    if (w->limit_s >= 0 && passed_s > w->limit_s)
        return 0;
    if (passed_s < 2e-4)
        sched_yield();
    else
        nanosleep(&(struct timespec){0, (long)(1e9 * rest_s)}, NULL);
    return 1;
}

/* Threads of ours that may be in NCCL, which at the end of the process takes away what they use. */
static atomic_int threads;

static void wait_for_threads(void)
{
    const struct wait w = begin_wait(EXIT_S);

    while (atomic_load(&threads) > 0 && rest(&w))
        continue;
}

static void wait_at_exit(void)
{
    atexit(wait_for_threads);
}

struct errand {
    struct hra_nccl *n;
    void (*work)(struct hra_nccl *n); /* may give n back */
};

static void *run_errand(void *state)
{
    const struct errand errand = *(struct errand *)state;

    free(state);
    errand.work(errand.n);
    atomic_fetch_sub(&threads, 1);
    return NULL;
}

/* Start a thread that nobody joins: it says in n->task or n->given_up when it is done. 0: there is none to be
 * had. */
static int run(struct hra_nccl *n, void (*work)(struct hra_nccl *n))
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct errand *errand = malloc(sizeof(*errand));
    pthread_attr_t attributes;
    pthread_t thread;
    int code = errand == NULL || pthread_attr_init(&attributes) != 0;

    if (code == 0) {
        pthread_once(&once, wait_at_exit);
        *errand = (struct errand){n, work};
        atomic_fetch_add(&threads, 1);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        code = pthread_create(&thread, &attributes, run_errand, errand);
        pthread_attr_destroy(&attributes);
        if (code != 0)
            atomic_fetch_sub(&threads, 1);
    }
    if (code != 0)
        free(errand);
    return code == 0;
}

/* Else NCCL's calls in a new thread would make a context on device 0, and spoil graphs that others record. */
static cudaError_t enter(const struct hra_nccl *n)
{
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    const cudaError_t error = cudaSetDevice(n->device);
    return error == cudaSuccess ? cudaThreadExchangeStreamCaptureMode(&mode) : error;
}

/* Wait for the thread, as long as the limit is, but no longer than GRAPHS_S while there are graphs that NCCL's
 * end waits for. Unless it came in time it goes on, and n is its own. */
static enum waited await(struct hra_nccl *n, double limit_s)
{
    const double least_s = limit_s < 0 || limit_s > GRAPHS_S ? GRAPHS_S : limit_s;
    struct wait w = begin_wait(limit_s);
    int task = RUNNING;

    while (atomic_load(&n->task) == RUNNING) {
        const int graphs = atomic_load(n->users) - 1;
        w.limit_s = graphs > 0 ? least_s : limit_s;
        if (!rest(&w) && atomic_compare_exchange_strong(&n->task, &task, LEFT))
            return graphs > 0 ? HELD_UP : OUT_OF_TIME;
    }
    return IN_TIME;
}

/* ---- Graphs ---- */

/* Called by CUDA, too, when a graph is destroyed, from whatever thread. */
static void leave(void *users)
{
    if (atomic_fetch_sub((atomic_int *)users, 1) == 1)
        free(users);
}

/* Count the graph that the stream is being captured into. What is made of a graph keeps it counted. */
static hra_status count_graph(struct hra_nccl *n, cudaStream_t stream)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long capture = 0;
    cudaUserObject_t user;
    cudaGraph_t graph;

#if CUDART_VERSION >= 13000
    HRA_TRY_CUDA(cudaStreamGetCaptureInfo(stream, &status, &capture, &graph, NULL, NULL, NULL));
#else
    HRA_TRY_CUDA(cudaStreamGetCaptureInfo_v2(stream, &status, &capture, &graph, NULL, NULL));
#endif
    if (status == cudaStreamCaptureStatusNone || capture == n->capture)
        return HRA_OK;
    atomic_fetch_add(n->users, 1);
    cudaError_t error = cudaUserObjectCreate(&user, n->users, leave, 1, cudaUserObjectNoDestructorSync);
    if (error != cudaSuccess) {
        leave(n->users);
        return HRA_FAIL(HRA_ERR_CUDA, "cudaUserObjectCreate: %s", cudaGetErrorString(error));
    }
    error = cudaGraphRetainUserObject(graph, user, 1, cudaGraphUserObjectMove);
    if (error != cudaSuccess) {
        cudaUserObjectRelease(user, 1); /* which calls leave */
        return HRA_FAIL(HRA_ERR_CUDA, "cudaGraphRetainUserObject: %s", cudaGetErrorString(error));
    }
    n->capture = capture;
    return HRA_OK;
}

/* The last step of a thread: 1 where somebody waits, whose n is from here on. */
static int hand_over(struct hra_nccl *n)
{
    int task = RUNNING;
    return atomic_compare_exchange_strong(&n->task, &task, DONE);
}

/* What such a thread has come to. */
static void conclude(struct hra_nccl *n, const char *what, ncclResult_t code)
{
    char text[200];

    n->result = is_fine(code) ? HRA_OK : status_of(code);
    snprintf(n->why, sizeof(n->why), "%s: %s", what, explain(n, code, text, sizeof(text)));
}

/* ---- Making ---- */

/* Give back what waits of the host need. Twice does no harm. */
static void discard(struct hra_nccl *n)
{
    if (n->stream != NULL)
        cudaStreamDestroy(n->stream);
    cudaFree(n->stage);
    cudaFreeHost(n->mirror);
    n->stream = NULL;
    n->stage = n->mirror = NULL;
}

static void drop(struct hra_nccl *n)
{
    discard(n);
    leave(n->users);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

static hra_status prepare(struct hra_nccl *n)
{
    const size_t share = STAGE_BYTES / (size_t)n->ranks / LEAST_PIECE * LEAST_PIECE;

    n->piece = share > 0 ? share : LEAST_PIECE;
    HRA_TRY_CUDA(cudaGetDevice(&n->device));
    HRA_TRY_CUDA(cudaStreamCreateWithFlags(&n->stream, cudaStreamNonBlocking));
    HRA_TRY_CUDA(cudaMalloc((void **)&n->stage, (size_t)n->ranks * n->piece));
    HRA_TRY_CUDA(cudaHostAlloc((void **)&n->mirror, (size_t)n->ranks * n->piece, cudaHostAllocDefault));
    return HRA_OK;
}

/* Wait until NCCL is through with what it does for a communicator; where `patient` is 0 no longer than
 * somebody waits for this thread. */
static ncclResult_t settle_in_thread(const struct hra_nccl *n, ncclComm_t comm, int patient)
{
    const struct wait w = begin_wait(-1);
    ncclResult_t code;

    do {
        code = state_of(comm);
    } while (code == ncclInProgress && (patient || atomic_load(&n->task) != LEFT) && rest(&w));
    return code;
}

/* Split off the parent. That blocks if the parent does, until all ranks are there. Else the parent is what is
 * asked, and the new communicator is known only when it is through, however late. */
static ncclResult_t split(const struct hra_nccl *n, ncclComm_t *comm, ncclConfig_t *config)
{
    const ncclResult_t code = nccl.split(n->parent, 0, n->rank, comm, config);

    return is_fine(code) ? settle_in_thread(n, n->parent, 1) : code;
}

static void make(struct hra_nccl *n)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclComm_t comm = NULL;
    ncclResult_t code = ncclUnhandledCudaError;

    config.blocking = 0;
    config.splitShare = 0;
    if (enter(n) == cudaSuccess)
        code = n->parent != NULL ? split(n, &comm, &config)
                                 : nccl.init(&comm, n->ranks, n->id, n->rank, &config);
    if (is_fine(code))
        code = comm == NULL ? ncclInternalError : settle_in_thread(n, comm, 0);
    conclude(n, n->parent != NULL ? "ncclCommSplit" : "ncclCommInitRankConfig", code);
    if (code == ncclInvalidUsage) /* ranks that share a GPU, versions that do not fit */
        n->result = HRA_ERR_UNSUPPORTED;
    n->comm = comm;
    const int wanted = hand_over(n);
    if (comm != NULL && (!wanted || code != ncclSuccess))
        nccl.abort(comm); /* nobody is left to hear of a failure */
    if (!wanted)
        drop(n);
}

hra_status hra_nccl_open(struct hra_nccl **out, int rank, int ranks, const void *id, void *parent,
                         struct hra_limits limit)
{
    struct hra_nccl *n = NULL;
    const char *text;
    int length;

    HRA_TRY(hra_nccl_load());
    if (id == NULL && nccl.split == NULL)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "NCCL: %s has no ncclCommSplit, which came with 2.18",
                        nccl.library);
    HRA_TRY(hra_alloc((void **)&n, 1, sizeof(*n), "communicator of NCCL"));
    *n = (struct hra_nccl){.rank = rank, .ranks = ranks, .limit = limit, .users = malloc(sizeof(*n->users))};
    if (n->users == NULL) {
        free(n);
        return HRA_FAIL(HRA_ERR_MEMORY, "NCCL: no memory for a communicator");
    }
    atomic_init(n->users, 1);
    pthread_mutex_init(&n->lock, NULL);
    if (id != NULL)
        memcpy(&n->id, id, sizeof(n->id));
    else
        n->parent = parent;
    hra_status status = prepare(n);
    if (status == HRA_OK && !run(n, make))
        status = HRA_FAIL(HRA_ERR_MEMORY, "NCCL: no thread to make a communicator in");
    if (status == HRA_OK && await(n, limit.setup_s) != IN_TIME)
        return HRA_FAIL(
            HRA_ERR_TIMEOUT, "NCCL: rank %d waited %.1f s for the other ranks to make a communicator%s", rank,
            limit.setup_s, id != NULL ? "" : "; ncclCommSplit goes on using the parent until they do");
    if (status == HRA_OK && n->result != HRA_OK)
        status = HRA_FAIL(n->result, "%s", n->why);
    if (status != HRA_OK) {
        drop(n);
        return status;
    }
    n->old_warning = last_warning(&text, &length);
    *out = n;
    return HRA_OK;
}

/* ---- Calls on the communicator ---- */

/* Before a call on n->comm, and let_go after it. 0: the communicator has been given up. */
static int hold(struct hra_nccl *n)
{
    pthread_mutex_lock(&n->lock);
    if (atomic_load(&n->given_up) == NOT)
        return 1;
    pthread_mutex_unlock(&n->lock);
    return 0;
}

static void let_go(struct hra_nccl *n)
{
    pthread_mutex_unlock(&n->lock);
}

static ncclResult_t look(struct hra_nccl *n)
{
    if (!hold(n))
        return GIVEN_UP;
    const ncclResult_t state = state_of(n->comm);
    let_go(n);
    return state;
}

/* Wait until what a call with this result has begun lies on its stream. ncclInProgress: time has run out. */
static ncclResult_t settle(struct hra_nccl *n, ncclResult_t code, double limit_s)
{
    const struct wait w = begin_wait(limit_s);

    while (is_fine(code)) {
        code = look(n);
        if (code != ncclInProgress || !rest(&w))
            break;
    }
    return code;
}

static hra_status fail_wait(const struct hra_nccl *n, const char *what)
{
    return HRA_FAIL(HRA_ERR_TIMEOUT, "%s: rank %d waited %.1f s for the other ranks", what, n->rank,
                    n->limit.setup_s);
}

/* Wait for our own stream. What it holds also comes to its end, with nothing done, when the communicator
 * fails or is given up, so that is asked last. */
static hra_status wait_stream(struct hra_nccl *n, const char *what)
{
    const struct wait w = begin_wait(n->limit.setup_s);

    for (;;) {
        const cudaError_t error = cudaStreamQuery(n->stream);
        const ncclResult_t state = look(n);
        if (!is_fine(state))
            return fail(n, state, what);
        if (error == cudaSuccess)
            return HRA_OK;
        if (error != cudaErrorNotReady)
            return HRA_FAIL(HRA_ERR_CUDA, "%s: %s", what, cudaGetErrorString(error));
        if (!rest(&w))
            return fail_wait(n, what);
    }
}

/* Gather `count` bytes of each rank, at most a piece; all [ranks] are `stride` bytes apart. */
static hra_status gather_piece(struct hra_nccl *n, char *all, size_t stride, const char *mine, size_t count)
{
    static const char what[] = "agreement of the ranks";
    const size_t own = (size_t)n->rank * count;
    ncclResult_t code = GIVEN_UP;

    memcpy(n->mirror + own, mine, count);
    HRA_TRY_CUDA(cudaMemcpyAsync(n->stage + own, n->mirror + own, count, cudaMemcpyHostToDevice, n->stream));
    if (hold(n)) {
        code = nccl.all_gather(n->stage + own, n->stage, count, ncclUint8, n->comm, n->stream);
        let_go(n);
    }
    code = settle(n, code, n->limit.setup_s);
    if (code != ncclSuccess)
        return code == ncclInProgress ? fail_wait(n, what) : fail(n, code, what);
    HRA_TRY_CUDA(
        cudaMemcpyAsync(n->mirror, n->stage, (size_t)n->ranks * count, cudaMemcpyDeviceToHost, n->stream));
    HRA_TRY(wait_stream(n, what));
    for (int r = 0; r < n->ranks; r++)
        memcpy(all + (size_t)r * stride, n->mirror + (size_t)r * count, count);
    return HRA_OK;
}

hra_status hra_nccl_allgather(void *state, void *all, const void *mine, size_t bytes)
{
    struct hra_nccl *n = state;

    for (size_t at = 0; at < bytes; at += n->piece) {
        const size_t left = bytes - at;
        HRA_TRY(gather_piece(n, (char *)all + at, bytes, (const char *)mine + at,
                             left < n->piece ? left : n->piece));
    }
    return HRA_OK;
}

/* Enqueue a group; held. *which is the transfer that failed, or the first one. */
static ncclResult_t enqueue(const struct hra_nccl *n, struct hra_transfer *const *transfer, int count,
                            cudaStream_t stream, const struct hra_transfer **which)
{
    ncclResult_t code = nccl.group_start();

    if (code != ncclSuccess)
        return code;
    for (int i = 0; i < count && is_fine(code); i++) {
        const struct hra_transfer *t = *which = transfer[i];
        code = t->sends ? nccl.send(t->data, t->bytes, ncclInt8, t->peer, n->comm, stream)
                        : nccl.recv(t->data, t->bytes, ncclInt8, t->peer, n->comm, stream);
    }
    const ncclResult_t end = nccl.group_end(); /* a group left open would swallow this thread's next call */
    if (!is_fine(code))
        return code;
    *which = transfer[0];
    return end;
}

static hra_status group_within(struct hra_nccl *n, struct hra_transfer *const *transfer, int count,
                               cudaStream_t stream, double limit_s)
{
    ncclResult_t code = GIVEN_UP;
    char text[256];

    if (count == 0)
        return HRA_OK;
    HRA_TRY(count_graph(n, stream));
    const struct hra_transfer *t = transfer[0];
    if (hold(n)) {
        code = enqueue(n, transfer, count, stream, &t);
        let_go(n);
    }
    code = settle(n, code, limit_s); /* until it is through, nothing else may be put on the stream */
    if (code == ncclSuccess)
        return HRA_OK;
    if (code == ncclInProgress)
        return HRA_FAIL(
            HRA_ERR_TIMEOUT,
            "%s, round %d: rank %d waited %.1f s for NCCL to start its transfers, the first with rank %d",
            t->what, t->round, n->rank, limit_s, t->peer);
    return HRA_FAIL(status_of(code), "%s, round %d: rank %d could not %s rank %d: %s", t->what, t->round,
                    n->rank, t->sends ? "send to" : "receive from", t->peer,
                    explain(n, code, text, sizeof(text)));
}

hra_status hra_nccl_group(struct hra_nccl *n, struct hra_transfer *const *transfer, int count,
                          cudaStream_t stream)
{
    return group_within(n, transfer, count, stream, n->limit.run_s);
}

/* The first transfer between two ranks connects all channels that later ones may use, for every protocol,
 * however few its bytes are (p2pTaskAppend in NCCL's src/enqueue.cc does not look at the size), so the least
 * piece serves. It also loads the kernel. All ranks go through the offsets in the same order, so that each of
 * their groups meets its counterparts. */
hra_status hra_nccl_connect(struct hra_nccl *n, const unsigned char *with)
{
    static const char what[] = "connecting the ranks";

    for (int d = 1; d < n->ranks; d++) {
        const int to = (n->rank + d) % n->ranks, from = (n->rank - d + n->ranks) % n->ranks;
        struct hra_transfer out = {
            .data = n->stage, .bytes = LEAST_PIECE, .peer = to, .sends = 1, .what = what, .round = d};
        struct hra_transfer in = {
            .data = n->stage + n->piece, .bytes = LEAST_PIECE, .peer = from, .what = what, .round = d};
        struct hra_transfer *group[2];
        int count = 0;

        if (with[to])
            group[count++] = &out;
        if (with[from])
            group[count++] = &in;
        HRA_TRY(group_within(n, group, count, n->stream, n->limit.setup_s));
    }
    return wait_stream(n, what);
}

hra_status hra_nccl_status(struct hra_nccl *n)
{
    ncclResult_t state = GIVEN_UP;

    if (pthread_mutex_trylock(&n->lock) != 0)
        return HRA_OK; /* a call is under way, which sees by itself what is wrong */
    if (atomic_load(&n->given_up) == NOT)
        state = state_of(n->comm);
    let_go(n);
    return is_fine(state) ? HRA_OK : fail(n, state, "NCCL");
}

/* ---- The end ---- */

/* ncclCommAbort lets kernels go at once; then it waits, not least until graphs that hold transfers are
 * destroyed. */
static void give_up(struct hra_nccl *n)
{
    const struct wait w = begin_wait(ABORT_S);
    char text[256];

    int held = pthread_mutex_trylock(&n->lock) == 0;
    while (!held && rest(&w))
        held = pthread_mutex_trylock(&n->lock) == 0;
    if (held)
        let_go(n); /* else a call hangs, and this is what frees it */
    const cudaError_t error = enter(n);
    const ncclResult_t code = nccl.abort(n->comm);
    if (error != cudaSuccess || code != ncclSuccess)
        hra_log(HRA_LOG_WARN, "ncclCommAbort: %s",
                code != ncclSuccess ? explain(n, code, text, sizeof(text)) : cudaGetErrorString(error));
    atomic_store(&n->given_up, ABORTED);
}

void hra_nccl_abort(struct hra_nccl *n)
{
    const struct wait w = begin_wait(ABORT_S);
    int given_up = NOT;

    if (atomic_compare_exchange_strong(&n->given_up, &given_up, ABORTING) && !run(n, give_up))
        hra_log(HRA_LOG_WARN, "NCCL: no thread for ncclCommAbort: kernels go on waiting for other ranks");
    while (atomic_load(&n->given_up) != ABORTED && rest(&w))
        continue;
}

/* ncclCommDestroy refuses a communicator that has failed. Freeing memory is left to this thread too, since it
 * waits for all that the GPU is at, the host program's work included. */
static void end(struct hra_nccl *n)
{
    const int entered = enter(n) == cudaSuccess;
    ncclResult_t code = ncclSuccess;

    if (atomic_load(&n->given_up) == NOT) {
        code = settle_in_thread(n, n->comm, 0);
        if (code == ncclSuccess)
            code = nccl.destroy(n->comm);
        else
            nccl.abort(n->comm);
    }
    conclude(n, "hra_comm_destroy", is_fine(code) && !entered ? ncclUnhandledCudaError : code);
    discard(n);
    if (!hand_over(n))
        drop(n);
}

hra_status hra_nccl_close(struct hra_nccl *n, int failed)
{
    if (n == NULL)
        return HRA_OK;
    if (failed)
        hra_nccl_abort(n);
    /* The thread in ncclCommAbort, and kernels that still wait, may touch all that is there: it stays. */
    if (atomic_load(&n->given_up) == ABORTING)
        return failed ? HRA_OK : fail(n, GIVEN_UP, "hra_comm_destroy");

    const int rank = n->rank;
    const double limit_s = failed ? ABORT_S : n->limit.setup_s;
    atomic_store(&n->task, RUNNING);
    if (!run(n, end))
        return failed ? HRA_OK : HRA_FAIL(HRA_ERR_MEMORY, "hra_comm_destroy: no thread for ncclCommDestroy");
    const enum waited waited = await(n, limit_s);
    if (waited == OUT_OF_TIME && !failed)
        return HRA_FAIL(HRA_ERR_TIMEOUT, "hra_comm_destroy: rank %d waited %.1f s for NCCL", rank, limit_s);
    if (waited != IN_TIME) {
        hra_log(HRA_LOG_INFO, "hra_comm_destroy: rank %d leaves NCCL to end by itself%s", rank,
                waited == HELD_UP ? " when the graphs that hold its transfers are destroyed" : "");
        return HRA_OK;
    }
    const hra_status status = failed || n->result == HRA_OK ? HRA_OK : HRA_FAIL(n->result, "%s", n->why);
    drop(n);
    return status;
}

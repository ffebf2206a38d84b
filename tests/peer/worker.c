/* worker.c - transfers over peer between processes whose GPUs are those of device.c. Started under mpirun:
 *
 *     mpirun -n RANKS peer-worker TEST [SEED]
 *
 * Exit status: 0 all is right. */
#include "comm/transport.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <hra/mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int rank, ranks, failures;

#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            failures++;                                                                                      \
            fprintf(stderr, "rank %d, line %d: ", rank, __LINE__);                                           \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
        }                                                                                                    \
    } while (0)

#define CHECK_OK(call)                                                                                       \
    do {                                                                                                     \
        const hra_status status_ = (call);                                                                   \
        CHECK(status_ == HRA_OK, "%s: %s: %s", #call, hra_status_name(status_), hra_last_error());           \
    } while (0)

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t draws;

/* 0 .. below - 1, alike on all ranks */
static int draw(int below)
{
    draws = draws * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((draws >> 33) % (uint64_t)below);
}

static hra_comm *open_comm(double timeout_s)
{
    const hra_comm_options options = {.size = sizeof(options),
                                      .timeout_s = timeout_s,
                                      .setup_timeout_s = 30,
                                      .transport = HRA_TRANSPORT_PEER};
    hra_comm *comm = NULL;

    CHECK_OK(hra_comm_create_mpi(&comm, MPI_COMM_WORLD, &options));
    if (comm == NULL)
        MPI_Abort(MPI_COMM_WORLD, 1);
    return comm;
}

static cudaStream_t new_stream(void)
{
    cudaStream_t stream = NULL;

    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess, "no stream");
    return stream;
}

/* ---- Hops ---- */

/* Runs of hops that nobody waits between. */
static void test_hops(void)
{
    static const size_t sizes[] = {1, 1000, 100000};
    hra_comm *comm = open_comm(30);
    cudaStream_t stream = new_stream();

    for (int n = 0; n < 6; n++) {
        hra_hops *hops = NULL;
        CHECK_OK(hra_hops_create(&hops, comm, sizes[n % 3], n < 3 ? 1 : 5));
        for (int i = 0; i < 5; i++)
            CHECK_OK(hra_hops_run(hops, stream));
        CHECK_OK(hra_comm_wait(comm, stream));
        CHECK_OK(hra_hops_check(hops));
        hra_hops_destroy(hops);
    }
    CHECK_OK(hra_comm_destroy(comm));
}

/* ---- Drawn rounds ---- */

enum { BUFFERS = 3, BLOCK = 4096, ROUNDS = 60, EXECUTIONS = 12 };

/* What a rank does in a round: receive into buffer round % BUFFERS, send what it received in the round before. */
struct step {
    int from, to;       /* other ranks; -1: it does not */
    int finishes_early; /* what was sent a round before is finished now, else where its buffer is wanted */
    int ahead;          /* what it receives is posted a round before */
};

/* Rounds of all ranks, alike everywhere: in each a permutation tells who sends to whom. */
static void draw_rounds(struct step step[ROUNDS][64])
{
    for (int r = 0; r < ROUNDS; r++) {
        int to[64];
        for (int i = 0; i < ranks; i++) {
            const int other = draw(i + 1);
            to[i] = to[other];
            to[other] = i;
        }
        for (int i = 0; i < ranks; i++)
            step[r][i] =
                (struct step){.from = -1, .to = -1, .finishes_early = draw(2), .ahead = r > 0 && draw(3) > 0};
        for (int i = 0; i < ranks; i++) {
            if (to[i] == i)
                continue;
            step[r][i].to = to[i];
            step[r][to[i]].from = i;
        }
    }
}

/* One rank's transfers, [round][receipt, send], and its buffers. */
struct rounds {
    hra_comm *comm;
    cudaStream_t stream;
    struct step step[ROUNDS][64];
    struct hra_transfer transfer[ROUNDS][2];
    char *buffer, *filling,
        *log; /* [BUFFERS], [ROUNDS], [ROUNDS] blocks; what came in a round is copied to the log */
    void **there;
};

static const struct step *own(const struct rounds *x, int r)
{
    return &x->step[r][rank];
}

/* What rank `from` sends in a round, where it does not pass on what came. */
static char stamp(int from, int r)
{
    return (char)(1 + from * 31 + r * 7);
}

/* What a rank receives in a round, by following it back. */
static char expected(const struct rounds *x, int to, int r)
{
    for (;;) {
        const int from = x->step[r][to].from;
        if (r == 0 || x->step[r - 1][from].from < 0)
            return stamp(from, r);
        to = from;
        r--;
    }
}

static struct rounds *open_rounds(double timeout_s)
{
    struct rounds *x = calloc(1, sizeof(*x));
    int number[64][2] = {{0}};

    x->comm = open_comm(timeout_s);
    x->stream = new_stream();
    draw_rounds(x->step);
    const struct hra_transport *transport = x->comm->transport;
    x->filling = calloc(ROUNDS, BLOCK);
    x->log = calloc(ROUNDS, BLOCK);
    x->there = calloc((size_t)ranks, sizeof(*x->there));
    CHECK_OK(transport->alloc(x->comm->state, (void **)&x->buffer, BUFFERS * BLOCK));
    CHECK_OK(transport->map(x->comm->state, x->buffer, BUFFERS * BLOCK, x->there));
    for (int r = 0; r < ROUNDS; r++)
        for (int sends = 0; sends < 2; sends++) {
            const struct step *s = own(x, r);
            const int peer = sends ? s->to : s->from, came = (r + BUFFERS - 1) % BUFFERS;
            const int passes = sends && r > 0 && own(x, r - 1)->from >= 0;
            struct hra_transfer *t = &x->transfer[r][sends];
            if (peer < 0)
                continue;
            *t = (struct hra_transfer){.data = x->buffer + (sends ? came : r % BUFFERS) * BLOCK,
                                       .bytes = BLOCK,
                                       .peer = peer,
                                       .sends = sends,
                                       .what = "rounds",
                                       .round = r,
                                       .ahead = x->step[r][sends ? peer : rank].ahead && (!sends || passes),
                                       .number = number[peer][sends]++,
                                       .from = passes ? &x->transfer[r - 1][0] : NULL,
                                       .tag = (uint32_t)(1 + r * 64 + (sends ? rank : peer)),
                                       .there = sends ? (char *)x->there[peer] + r % BUFFERS * BLOCK : NULL};
            CHECK_OK(transport->enlist(x->comm->state, t, 1));
        }
    return x;
}

static void close_rounds(struct rounds *x)
{
    for (int r = 0; r < ROUNDS; r++)
        for (int sends = 0; sends < 2; sends++)
            if (x->transfer[r][sends].tag != 0)
                x->comm->transport->delist(x->comm->state, &x->transfer[r][sends], 1);
    x->comm->transport->release(x->comm->state, x->buffer);
    CHECK_OK(hra_comm_destroy(x->comm));
    free(x->filling);
    free(x->log);
    free(x->there);
    free(x);
}

/* Finish a transfer, if there is one and it is under way. */
static void finish(struct rounds *x, int r, int sends, char *under_way)
{
    if (r < 0 || !under_way[2 * r + sends])
        return;
    under_way[2 * r + sends] = 0;
    CHECK_OK(x->comm->transport->finish(x->comm->state, &x->transfer[r][sends], x->stream));
}

/* What is known of round r while the one before is under way. It receives where round r - 2 sent from, which may go on. */
static void post_round(struct rounds *x, int r, const char *under_way)
{
    struct hra_transfer *list[3];
    int count = 0, after = 0;

    for (int sends = 0; sends < 2; sends++)
        if (x->transfer[r][sends].ahead)
            list[count++] = &x->transfer[r][sends];
    if (r > 1 && under_way[2 * (r - 2) + 1])
        list[count + after++] = &x->transfer[r - 2][1];
    if (count > 0)
        CHECK_OK(x->comm->transport->post(x->comm->state, list, count, after, x->stream));
}

/* As the executor does, in calls or into a graph: what came is used by the stream before its buffer is written anew. */
static void run_rounds(struct rounds *x)
{
    const struct hra_transport *transport = x->comm->transport;
    char under_way[2 * ROUNDS] = "";

    CHECK_OK(transport->begin(x->comm->state, x->stream));
    for (int r = 0; r <= ROUNDS; r++) {
        struct hra_transfer *list[2];
        int count = 0;

        finish(x, r - 1, 0, under_way);
        if (r > 0 && own(x, r - 1)->from >= 0)
            cudaMemcpyAsync(x->log + (r - 1) * BLOCK, x->transfer[r - 1][0].data, BLOCK, cudaMemcpyDefault,
                            x->stream);
        if (r == ROUNDS)
            break;
        if (own(x, r)->finishes_early)
            finish(x, r - 1, 1, under_way);
        finish(x, r - 2, 1, under_way); /* what is received now overwrites it */
        if (own(x, r)->to >= 0 && (r == 0 || own(x, r - 1)->from < 0)) {
            memset(x->filling + r * BLOCK, stamp(rank, r), BLOCK);
            cudaMemcpyAsync(x->transfer[r][1].data, x->filling + r * BLOCK, BLOCK, cudaMemcpyDefault,
                            x->stream);
        }
        for (int sends = 0; sends < 2; sends++)
            if ((sends ? own(x, r)->to : own(x, r)->from) >= 0) {
                list[count++] = &x->transfer[r][sends];
                under_way[2 * r + sends] = 1;
            }
        if (count > 0)
            CHECK_OK(transport->start(x->comm->state, list, count, x->stream));
        if (r + 1 < ROUNDS)
            post_round(x, r + 1, under_way);
    }
    for (int r = 0; r < ROUNDS; r++)
        finish(x, r, 1, under_way);
    CHECK_OK(transport->end(x->comm->state, x->stream));
}

/* `log`: x->log after an execution, or a copy. */
static void check_log(const struct rounds *x, const char *log)
{
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; own(x, r)->from >= 0 && i < BLOCK; i++)
            if (log[r * BLOCK + i] != expected(x, rank, r)) {
                CHECK(0, "round %d, byte %d from rank %d is %d, not %d", r, i, own(x, r)->from,
                      log[r * BLOCK + i], expected(x, rank, r));
                break;
            }
}

static void test_rounds(void)
{
    enum { LOG = ROUNDS * BLOCK };
    struct rounds *x = open_rounds(30);
    char *logs = calloc(EXECUTIONS, LOG);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t replay = NULL;

    CHECK(cudaStreamBeginCapture(x->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess, "no capture");
    run_rounds(x);
    const cudaError_t ended = cudaStreamEndCapture(x->stream, &graph);
    CHECK(ended == cudaSuccess && cudaGraphInstantiate(&replay, graph, 0) == cudaSuccess, "error %d",
          (int)ended);
    /* Executions follow each other; only behind the first two the host waits. */
    for (int i = 0; i < EXECUTIONS; i++) {
        cudaMemsetAsync(x->log, 0, LOG, x->stream);
        if (i % 3 == 1)
            run_rounds(x);
        else
            CHECK(cudaGraphLaunch(replay, x->stream) == cudaSuccess, "no launch");
        cudaMemcpyAsync(logs + i * LOG, x->log, LOG, cudaMemcpyDefault, x->stream);
        if (i < 2)
            CHECK_OK(hra_comm_wait(x->comm, x->stream));
    }
    CHECK_OK(hra_comm_wait(x->comm, x->stream));
    for (int i = 0; i < EXECUTIONS; i++)
        check_log(x, logs + i * LOG);
    close_rounds(x);
    free(logs);
}

/* Streams that are held up by what the caller put there before, for longer than the limit, wait for nobody meanwhile. */
static void test_held(void)
{
    struct rounds *x = open_rounds(1);
    enum cudaDriverEntryPointQueryResult found;
    __typeof__(cuStreamBatchMemOp) *batch = NULL;
    uint32_t *word = NULL, *device_word = NULL;

    CHECK(cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", (void **)&batch, 12000, cudaEnableDefault,
                                           &found) == cudaSuccess &&
              cudaHostAlloc((void **)&word, sizeof(*word), cudaHostAllocMapped) == cudaSuccess &&
              cudaHostGetDevicePointer((void **)&device_word, word, 0) == cudaSuccess,
          "no word to wait for");
    *word = 0;
    CUstreamBatchMemOpParams op = {.waitValue = {.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32,
                                                 .address = (CUdeviceptr)(uintptr_t)device_word,
                                                 .value = 1,
                                                 .flags = CU_STREAM_WAIT_VALUE_EQ}};
    CHECK(batch(x->stream, 1, &op, 0) == CUDA_SUCCESS, "no wait");
    run_rounds(x);
    sleep(2);
    CHECK_OK(hra_comm_get_status(x->comm));
    __atomic_store_n(word, 1, __ATOMIC_RELEASE);
    CHECK_OK(hra_comm_wait(x->comm, x->stream));
    check_log(x, x->log);
    close_rounds(x);
    cudaFreeHost(word);
}

/* ---- Ranks that do not come ---- */

/* Rank 1 is killed, or never calls, after some runs: the others learn of it within the limit, their streams come to their
 * ends, and later calls say the same. */
static void miss(int killed)
{
    const double limit_s = 1.5, margin_s = 2;
    hra_comm *comm = open_comm(limit_s);
    cudaStream_t stream = new_stream();
    hra_hops *hops = NULL;
    hra_status status = HRA_OK;

    CHECK_OK(hra_hops_create(&hops, comm, 5000, 4));
    for (int i = 0; i < 3; i++)
        CHECK_OK(hra_hops_run(hops, stream));
    CHECK_OK(hra_comm_wait(comm, stream));
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 1 && killed)
        raise(SIGKILL);
    if (rank == 1)
        sleep(6);
    const double begin = now_s();
    while (rank != 1 && status == HRA_OK && now_s() - begin < limit_s + margin_s) {
        status = hra_hops_run(hops, stream);
        if (status == HRA_OK)
            status = hra_comm_wait(comm, stream);
    }
    const double took_s = now_s() - begin;
    if (rank != 1) {
        CHECK(status == HRA_ERR_REMOTE || (!killed && status == HRA_ERR_TIMEOUT), "%s: %s",
              hra_status_name(status), hra_last_error());
        CHECK(took_s < limit_s + margin_s, "it took %.1f s", took_s);
        CHECK(strstr(hra_last_error(), "rank ") != NULL, "%s", hra_last_error());
        fprintf(stderr, "rank %d: %s after %.1f s: %s\n", rank, hra_status_name(status), took_s,
                hra_last_error());
        CHECK(cudaStreamSynchronize(stream) == cudaSuccess, "the stream");
        CHECK(hra_hops_run(hops, stream) == status && hra_comm_get_status(comm) == status, "%s",
              hra_last_error());
        hra_hops_destroy(hops);
        CHECK_OK(hra_comm_destroy(comm));
    }
    fflush(stderr);
    if (killed)
        _exit(failures > 0); /* MPI_Finalize would wait for the dead */
}

static void test_killed(void)
{
    miss(1);
}

static void test_absent(void)
{
    miss(0);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {{"hops", test_hops},
                 {"rounds", test_rounds},
                 {"held", test_held},
                 {"killed", test_killed},
                 {"absent", test_absent}};
    int found = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    draws = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (size_t i = 0; argc > 1 && i < sizeof(tests) / sizeof(tests[0]); i++)
        if (strcmp(argv[1], tests[i].name) == 0) {
            found = 1;
            tests[i].run();
        }
    if (!found)
        fprintf(stderr, "usage: peer-worker hops|rounds|held|killed|absent [SEED]\n");
    MPI_Finalize();
    return found ? failures > 0 : 2;
}

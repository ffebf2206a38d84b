/* ring.c - what is tested on GPUs with several ranks, beyond hra-check. Started by run.sh under mpirun:
 *
 *     gpu-ring TEST TRANSPORT      transport: mpi, gpu, nccl or peer
 *
 * Rank r of a node works on GPU r modulo those that are there. Exit status 0: the test passed on this rank.
 * What failed is printed, with rank and line. */
#include "tests/gpu/layer.h"

#include <dlfcn.h>
#include <hra/mpi.h>
#include <hra/nccl.h>
#include <string.h>

enum { LIMIT_S = 60 }; /* where nobody is meant to come late */

static hra_transport_kind transport;

static const struct {
    const char *name;
    hra_transport_kind kind;
} transports[] = {{"mpi", HRA_TRANSPORT_MPI},
                  {"gpu", HRA_TRANSPORT_GPU},
                  {"nccl", HRA_TRANSPORT_NCCL},
                  {"peer", HRA_TRANSPORT_PEER}};

/* A communicator whose ranks wait at most timeout_s for each other in executions. Collective over parent. */
static hra_comm *connect_ranks(MPI_Comm parent, hra_transport_kind kind, double timeout_s)
{
    const hra_comm_options options = {
        .size = sizeof(options), .timeout_s = timeout_s, .transport = kind, .setup_timeout_s = LIMIT_S};
    hra_comm *comm = NULL;

    NEED_HRA(hra_comm_create_mpi(&comm, parent, &options));
    return comm;
}

/* Problems whose blocks differ in size. */
enum { PROBLEMS = 5, LARGEST = 3 };

static struct problem problem_number(int n)
{
    static const struct {
        int64_t tokens;
        const char *order, *mask;
        hra_type type;
    } rows[PROBLEMS] = {{900, "identity", "causal & window(400,0)", HRA_BF16},
                        {1300, "hilbert", "full", HRA_F32},
                        {500, "random:7", "docs(120,380)", HRA_F16},
                        {3100, "identity", "mix(causal; dilated(1000,3,head,both))", HRA_BF16},
                        {100, "morton", "full", HRA_F32}}; /* fewer tokens than a tile */
    struct problem p = problem_of(rows[n].tokens, rows[n].order, rows[n].mask, rows[n].type);

    p.saved = n == 2 ? HRA_SAVED_QKV : HRA_SAVED_NOTHING;
    return p;
}

/* ---- Streams ---- */

/* What is put on `second` next comes after what `first` holds. */
static void follow(cudaStream_t first, cudaStream_t second)
{
    cudaEvent_t event;

    if (first == second)
        return;
    NEED_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    NEED_CUDA(cudaEventRecord(event, first));
    NEED_CUDA(cudaStreamWaitEvent(second, event, 0));
    NEED_CUDA(cudaEventDestroy(event));
}

/* A layer whose calls go to streams in turn, and its right outputs. */
struct turn {
    struct layer layer;
    unsigned char *wanted;
    cudaGraphExec_t graph; /* forward and backward; NULL: none */
    cudaStream_t last;     /* that has its newest call */
};

static void turn_open(struct turn *t, hra_comm *comm, int problem, cudaStream_t stream)
{
    const struct problem p = problem_number(problem);
    size_t bytes;

    *t = (struct turn){.last = stream};
    layer_open(&t->layer, &p, comm);
    t->wanted = layer_step(&t->layer, problem, stream, &bytes);
}

/* Forward on `one` and backward on `two`, or both as the graph on `one`. Waits for nothing. */
static void turn_call(struct turn *t, int graph, cudaStream_t one, cudaStream_t two)
{
    follow(t->last, one);
    if (graph && t->graph != NULL) {
        NEED_CUDA(cudaGraphLaunch(t->graph, one));
        t->last = one;
        return;
    }
    NEED_HRA(layer_forward(&t->layer, one));
    follow(one, two);
    NEED_HRA(layer_backward(&t->layer, two));
    t->last = two;
}

static void turn_expect(struct turn *t, int number)
{
    layer_wait(&t->layer, t->last);
    layer_expect(&t->layer, t->wanted, "turn", number);
    layer_forget_outputs(&t->layer);
}

static void turn_close(struct turn *t)
{
    if (t->graph != NULL)
        NEED_CUDA(cudaGraphExecDestroy(t->graph));
    free(t->wanted);
    layer_close(&t->layer);
}

/* ---- What is computed ---- */

/* Every transport carries the same blocks, so a plan gives the bits that it gives over MPI, whatever was
 * computed before. Catches blocks that are of another rank or round, incomplete, or read too early; and a
 * transport that was not asked for. */
static void test_same(hra_comm *comm)
{
    const char *const only = transport == HRA_TRANSPORT_PEER   ? "peer"
                             : transport == HRA_TRANSPORT_NCCL ? "nccl"
                                                               : ""; /* gpu may be either, or both */
    hra_comm *host = connect_ranks(MPI_COMM_WORLD, HRA_TRANSPORT_MPI, LIMIT_S);

    for (int n = 0; n < PROBLEMS; n++) {
        const struct problem p = problem_number(n);
        struct layer right, l;
        size_t bytes;

        layer_open(&right, &p, host);
        layer_open(&l, &p, comm);
        CHECK(l.info.blocking == 0 && strstr(l.info.transport, only) != NULL, "over %s, blocking %d",
              l.info.transport, l.info.blocking);
        unsigned char *wanted = layer_step(&right, n, device_stream(), &bytes);
        for (int i = 0; i < 4; i++) {
            void *stream = i == 3 ? NULL : device_stream();
            free(layer_step(&l, 100 + i, stream, &bytes));
            layer_forget_outputs(&l);
            free(layer_step(&l, n, stream, &bytes));
            layer_expect(&l, wanted, p.mask, i);
        }
        free(wanted);
        layer_close(&l);
        layer_close(&right);
    }
    NEED_HRA(hra_comm_destroy(host));
}

/* Catches signals between ranks that a replay leaves behind or does not give, since they are part of the
 * graph; and threads that do what a capture forbids. */
static void test_graph(hra_comm *comm)
{
    for (int n = 0; n < PROBLEMS; n++) {
        const struct problem p = problem_number(n);
        if (n != LARGEST)
            layer_replay(comm, &p, 100);
    }
}

/* Layers on one communicator, their calls on two streams in turn, eager and as a graph that was recorded
 * before anything ran, while the largest layer comes and goes. Catches executions that overtake each other
 * or share memory at the same time, and an arena that is given back, or no longer mapped, while a graph
 * still uses it. */
static void test_layers(hra_comm *comm)
{
    enum { SMALL = 3, ROUNDS = 8, COMES = 2, GOES = 5, CALLS = 24 };
    cudaStream_t stream[2] = {device_stream(), device_stream_beside()};
    const struct problem first = problem_number(0);
    struct turn t[SMALL + 1];
    struct layer early;

    layer_open(&early, &first, comm);
    cudaGraphExec_t graph = layer_record(&early, stream[0]);
    for (int n = 0; n < SMALL; n++)
        turn_open(&t[n], comm, n, stream[0]);
    layer_close(&t[0].layer);
    t[0].layer = early;
    t[0].graph = graph;
    layer_set_inputs(&early, 0);
    for (int round = 0; round < ROUNDS; round++) {
        if (round == COMES) {
            turn_call(&t[0], 1, stream[1], stream[0]);
            turn_call(&t[1], 0, stream[0], stream[1]);
            turn_open(&t[SMALL], comm, LARGEST, stream[1]);
        }
        if (round == GOES)
            turn_close(&t[SMALL]);
        const int count = round >= COMES && round < GOES ? SMALL + 1 : SMALL;
        for (int i = 0; i < CALLS; i++) {
            const int s = (i + i / count + round) % 2;
            turn_call(&t[i % count], i / count % 2, stream[s], stream[1 - s]);
        }
        for (int n = 0; n < count; n++)
            turn_expect(&t[n], round);
    }
    for (int n = 0; n < SMALL; n++)
        turn_close(&t[n]);
}

/* Two communicators, whose ranks are numbered the other way round, used in turn without waiting; one of them
 * is made anew from time to time. Catches what communicators of a process share and must not: names, flags,
 * threads, arenas. */
static void test_comms(hra_comm *comm)
{
    enum { ROUNDS = 6, CALLS = 12 };
    cudaStream_t stream[2] = {device_stream(), device_stream_beside()};
    MPI_Comm reversed;
    struct turn t[2];

    MPI_Comm_split(MPI_COMM_WORLD, 0, -own_rank, &reversed);
    turn_open(&t[0], comm, 1, stream[0]);
    for (int round = 0; round < ROUNDS; round++) {
        hra_comm *other = connect_ranks(reversed, transport, LIMIT_S);
        turn_open(&t[1], other, round % 2, stream[1]);
        for (int i = 0; i < CALLS; i++)
            turn_call(&t[i % 2], 0, stream[i / 2 % 2], stream[i / 4 % 2]);
        turn_expect(&t[0], round);
        turn_expect(&t[1], round);
        turn_close(&t[1]);
        turn_call(&t[0], 0, stream[1], stream[0]); /* in flight while the other one goes */
        NEED_HRA(hra_comm_destroy(other));
        turn_expect(&t[0], round);
    }
    turn_close(&t[0]);
    MPI_Comm_free(&reversed);
}

/* A graph that is there when its communicator ends, and is not launched any more, neither fails that nor holds it up
 * for long. Catches an end that waits for as long as ranks may be late. */
static void test_outlived(hra_comm *comm)
{
    const double most_s = 8;
    hra_comm *own = connect_ranks(MPI_COMM_WORLD, transport, LIMIT_S);
    cudaStream_t stream = device_stream();
    struct turn t;

    (void)comm;
    turn_open(&t, own, 0, stream);
    cudaGraphExec_t graph = t.graph = layer_record(&t.layer, stream);
    for (int i = 0; i < 3; i++) {
        turn_call(&t, 1, stream, stream);
        turn_expect(&t, i);
    }
    t.graph = NULL;
    turn_close(&t);
    const double begin = now_s();
    NEED_HRA(hra_comm_destroy(own));
    CHECK(now_s() - begin < most_s, "destroying took %.1f s", now_s() - begin);
    NEED_CUDA(cudaGraphExecDestroy(graph));
    rest(2); /* now NCCL ends, and has its use for a GPU that is about to be reset */
}

/* Hops that must not be made. */
static void refuse_hops(hra_comm *comm)
{
    hra_comm *self = NULL;
    hra_hops *hops = NULL;

    CHECK(hra_hops_create(&hops, comm, 0, 1) == HRA_ERR_ARG, "%s", hra_last_error());
    CHECK(hra_hops_create(&hops, comm, 1, 0) == HRA_ERR_ARG, "%s", hra_last_error());
    CHECK(hra_hops_create(&hops, comm, own_rank == 1 ? 64 : 65, 1) == HRA_ERR_MISMATCH, "%s",
          hra_last_error());
    CHECK(hra_hops_create(&hops, comm, 64, own_rank == 1 ? 1 : 2) == HRA_ERR_MISMATCH, "%s",
          hra_last_error());
    NEED_HRA(hra_comm_create_self(&self));
    CHECK(hra_hops_create(&hops, self, 64, 1) == HRA_ERR_UNSUPPORTED, "%s", hra_last_error());
    CHECK(hops == NULL, "hops were made");
    NEED_HRA(hra_comm_destroy(self));
    NEED_HRA(hra_comm_get_status(comm));
}

/* Hops of many sizes, more of them than may be under way at once, with a plan's calls between. Catches bytes
 * that are left out at the end of a block, or cut wrong, and hops that overtake each other. */
static void test_hops(hra_comm *comm)
{
    static const size_t bytes[] = {1, 255, 4096, 1000003, (size_t)64 << 20};
    static const int counts[] = {1, 2, 7, 100};
    void *stream = transport == HRA_TRANSPORT_MPI ? NULL : device_stream();
    struct turn t;

    refuse_hops(comm);
    turn_open(&t, comm, 0, device_stream());
    for (size_t n = 0; n < 5 * 4; n++) {
        hra_hops *hops = NULL;
        if (n / 4 == 4 && counts[n % 4] > 7)
            continue;
        NEED_HRA(hra_hops_create(&hops, comm, bytes[n / 4], counts[n % 4]));
        for (int i = 0; i < 3; i++) {
            NEED_HRA(hra_hops_run(hops, stream));
            turn_call(&t, 0, device_stream(), device_stream());
        }
        NEED_HRA(hra_comm_wait(comm, stream));
        CHECK(hra_hops_check(hops) == HRA_OK, "%zu bytes, %d hops: %s", bytes[n / 4], counts[n % 4],
              hra_last_error());
        turn_expect(&t, (int)n);
        hra_hops_destroy(hops);
    }
    turn_close(&t);
}

/* Plans over MPI wait on the host, so a capture of them is refused and goes on without them; what then is
 * called outside of a capture succeeds. */
static void test_blocking(hra_comm *comm)
{
    const struct problem p = problem_number(0);
    cudaStream_t stream = device_stream();
    cudaGraph_t graph = NULL;
    struct layer l;
    size_t nodes = 1, bytes;

    layer_open(&l, &p, comm);
    CHECK(hra_comm_ranks(comm) > 1 && l.info.blocking == 1, "%d ranks, blocking %d", hra_comm_ranks(comm),
          l.info.blocking);
    layer_set_inputs(&l, 2);
    NEED_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const hra_status one = layer_forward(&l, stream), two = layer_backward(&l, stream);
    CHECK(one == HRA_ERR_UNSUPPORTED && two == HRA_ERR_UNSUPPORTED, "%s, %s: %s", hra_status_name(one),
          hra_status_name(two), hra_last_error());
    NEED_CUDA(cudaStreamEndCapture(stream, &graph));
    NEED_CUDA(cudaGraphGetNodes(graph, NULL, &nodes));
    CHECK(nodes == 0, "%zu nodes were captured", nodes);
    NEED_CUDA(cudaGraphDestroy(graph));
    free(layer_step(&l, 2, stream, &bytes));
    layer_close(&l);
}

/* ---- Memory ---- */

/* Free bytes of the GPU while no rank takes or gives back any. */
static size_t quiet_memory(void)
{
    MPI_Barrier(MPI_COMM_WORLD);
    const size_t left = free_memory();
    MPI_Barrier(MPI_COMM_WORLD);
    return left;
}

/* Once everything has run, calls take no memory of the GPU. */
static void test_growth(hra_comm *comm)
{
    enum { STEPS = 100, LAYERS = 3 };
    struct turn t[LAYERS];

    for (int n = 0; n < LAYERS; n++)
        turn_open(&t[n], comm, n, device_stream());
    t[0].graph = layer_record(&t[0].layer, device_stream());
    for (int i = 0; i < 2 * LAYERS; i++)
        turn_call(&t[i % LAYERS], i / LAYERS, device_stream(), device_stream());
    for (int n = 0; n < LAYERS; n++)
        turn_expect(&t[n], 0);
    const size_t before = quiet_memory();
    for (int i = 0; i < STEPS * LAYERS; i++) {
        turn_call(&t[i % LAYERS], i / LAYERS % 2, device_stream(), device_stream());
        if (i % 20 == 19)
            layer_wait(&t[i % LAYERS].layer, device_stream());
    }
    for (int n = 0; n < LAYERS; n++)
        turn_expect(&t[n], STEPS);
    const size_t after = quiet_memory();
    CHECK(before == after, "%zu bytes were free, %zu are after %d steps", before, after, STEPS);
    for (int n = 0; n < LAYERS; n++)
        turn_close(&t[n]);
}

/* Communicators come and go, and with them their arenas: were those lost, half of them would show. */
static void test_making(hra_comm *comm)
{
    enum { ROUNDS = 8 };
    size_t before = 0, arena = 0;

    (void)comm;
    for (int i = 0; i <= ROUNDS; i++) {
        hra_comm *own = connect_ranks(MPI_COMM_WORLD, transport, LIMIT_S);
        struct turn t;

        turn_open(&t, own, LARGEST, device_stream());
        arena = t.layer.info.arena_bytes;
        turn_close(&t);
        NEED_HRA(hra_comm_destroy(own));
        if (i == 0)
            before = quiet_memory();
    }
    const size_t after = quiet_memory();
    CHECK(after + ROUNDS * arena / 2 > before,
          "%zu bytes were free, %zu are after %d communicators with arenas of %zu", before, after, ROUNDS,
          arena);
}

/* ---- Time limits ---- */

/* What is slow but right is no failure. Catches a limit that counts from the call and not from where the
 * stream waits for a rank, or on from one wait to the next; and a wait on the host that takes a stream held
 * up by something else for a failure. */
static void test_held(hra_comm *comm)
{
    const double limit_s = 4, margin_s = 1;
    hra_comm *own = connect_ranks(MPI_COMM_WORLD, transport, limit_s);
    cudaStream_t stream = device_stream();
    atomic_int released = 0;
    struct turn t;

    (void)comm;
    turn_open(&t, own, 0, stream);
    layer_forget_outputs(&t.layer);
    hold_stream(stream, &released);
    const double begin = now_s();
    const hra_status status = hra_comm_wait(own, stream);
    CHECK(status == HRA_ERR_TIMEOUT, "%s: %s", hra_status_name(status), hra_last_error());
    CHECK(now_s() - begin >= limit_s && now_s() - begin < limit_s + margin_s, "after %.2f s",
          now_s() - begin);
    NEED_HRA(hra_comm_get_status(own));

    turn_call(&t, 0, stream, stream); /* behind what holds the stream, on all ranks */
    rest(2 * limit_s);
    NEED_HRA(hra_comm_get_status(own));
    MPI_Barrier(MPI_COMM_WORLD);
    atomic_store(&released, 1);
    turn_expect(&t, 0);

    for (int i = 1; i < 5; i++) { /* one rank is late each time, by less than the limit */
        MPI_Barrier(MPI_COMM_WORLD);
        if (own_rank == i % hra_comm_ranks(own))
            rest(0.6 * limit_s);
        turn_call(&t, 0, stream, stream);
        turn_expect(&t, i);
    }
    turn_close(&t);
    NEED_HRA(hra_comm_destroy(own));
}

/* ---- Traces ---- */

/* Steps follow one another without a gap, messages lie within them, and where there are rows some step computes. */
static void expect_spans(hra_trace *trace, hra_pass pass, int has_rows, const char *mask)
{
    int64_t count;
    double at = 0;
    int computes = 0;

    NEED_HRA(hra_trace_spans(trace, pass, NULL, 0, &count));
    hra_span *span = calloc((size_t)count + 1, sizeof(*span));
    NEED(span == NULL, "no memory");
    NEED_HRA(hra_trace_spans(trace, pass, span, count, &count));
    for (int64_t i = 0; i < count; i++) {
        const int message = span[i].kind == HRA_SPAN_SEND || span[i].kind == HRA_SPAN_RECEIVE;
        CHECK(span[i].end_s >= span[i].begin_s && span[i].begin_s >= 0, "%s: span %d", mask, (int)i);
        CHECK(message ? span[i].end_s <= at : span[i].begin_s == at, "%s: span %d, %g to %g after %g", mask,
              (int)i, span[i].begin_s, span[i].end_s, at);
        at = message ? at : span[i].end_s;
        computes |= span[i].kind == HRA_SPAN_COMPUTE && span[i].end_s > span[i].begin_s;
    }
    free(span);
    CHECK(computes == has_rows && at < LIMIT_S, "%s: %g s, and computes %d", mask, at, computes);
}

/* A trace changes no bits, refuses what it cannot see into, and tells nothing before the stream is done. */
static void test_trace(hra_comm *comm)
{
    cudaStream_t stream = device_stream();

    for (int n = 0; n < PROBLEMS; n++) {
        hra_trace *trace;
        atomic_int released = 0;
        cudaGraph_t graph;
        int64_t count;
        struct turn t;

        turn_open(&t, comm, n, stream);
        NEED_HRA(hra_trace_create(&trace, t.layer.plan));
        NEED_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
        CHECK(layer_forward(&t.layer, stream) == HRA_ERR_UNSUPPORTED, "%s", hra_last_error());
        NEED_CUDA(cudaStreamEndCapture(stream, &graph));
        NEED_CUDA(cudaGraphDestroy(graph));
        for (int i = 0; i < 2; i++) {
            layer_forget_outputs(&t.layer);
            const int held = i == 1 && !t.layer.info.blocking;
            if (held)
                hold_stream(stream, &released);
            turn_call(&t, 0, stream, stream);
            CHECK(!held || hra_trace_spans(trace, HRA_BACKWARD, NULL, 0, &count) == HRA_ERR_STATE,
                  "spans of what has not begun");
            atomic_store(&released, 1);
            turn_expect(&t, i);
            for (int pass = 0; pass < 2; pass++)
                expect_spans(trace, (hra_pass)pass, t.layer.rows > 0, t.layer.problem.mask);
        }
        hra_trace_destroy(trace);
        turn_close(&t);
    }
}

/* ---- Beside NCCL of the host program ---- */

static struct {
    __typeof__(ncclGetUniqueId) *get_unique_id;
    __typeof__(ncclCommInitRank) *init_rank;
    __typeof__(ncclAllReduce) *all_reduce;
    __typeof__(ncclCommDestroy) *destroy;
    __typeof__(ncclGetErrorString) *error_string;
} nccl;

#define NEED_NCCL(call)                                                                                      \
    do {                                                                                                     \
        const ncclResult_t result_ = (call);                                                                 \
        NEED(result_ != ncclSuccess, nccl.error_string(result_));                                            \
    } while (0)

static void load_nccl(void)
{
    static const struct {
        const char *name;
        void *at; /* a pointer to a function */
    } functions[] = {{"ncclGetUniqueId", &nccl.get_unique_id},
                     {"ncclCommInitRank", &nccl.init_rank},
                     {"ncclAllReduce", &nccl.all_reduce},
                     {"ncclCommDestroy", &nccl.destroy},
                     {"ncclGetErrorString", &nccl.error_string}};
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);

    NEED(library == NULL, dlerror());
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *function = dlsym(library, functions[i].name);
        NEED(function == NULL, functions[i].name);
        memcpy(functions[i].at, &function, sizeof(function));
    }
}

/* The host program's own communicator, and what it adds up. */
struct host {
    ncclComm_t comm;
    int ranks;
    float *from, *to;
};
enum { ADDED = 1 << 20 };

static void host_reduce(struct host *h, cudaStream_t stream)
{
    NEED_NCCL(nccl.all_reduce(h->from, h->to, ADDED, ncclFloat, ncclSum, h->comm, stream));
}

/* Sums of small whole numbers are exact. */
static void host_expect(struct host *h, int number)
{
    float *sum = take(ADDED, sizeof(*sum));
    int wrong = 0;

    NEED_DEVICE(device_read(sum, h->to, ADDED * sizeof(*sum)));
    for (int i = 0; i < ADDED; i++)
        wrong += sum[i] != (float)(h->ranks * (h->ranks + 1) / 2 * (i % 1000 + 1));
    CHECK(wrong == 0, "%d sums of all-reduce %d", wrong, number);
    NEED_DEVICE(device_fill(h->to, 0xff, ADDED * sizeof(*sum)));
    free(sum);
}

static void host_open(struct host *h)
{
    float *numbers = take(ADDED, sizeof(*numbers));
    ncclUniqueId id;

    load_nccl();
    MPI_Comm_size(MPI_COMM_WORLD, &h->ranks);
    if (own_rank == 0)
        NEED_NCCL(nccl.get_unique_id(&id));
    MPI_Bcast(&id, (int)sizeof(id), MPI_BYTE, 0, MPI_COMM_WORLD);
    NEED_NCCL(nccl.init_rank(&h->comm, h->ranks, id, own_rank));
    h->from = take_there(ADDED * sizeof(*numbers));
    h->to = take_there(ADDED * sizeof(*numbers));
    for (int i = 0; i < ADDED; i++)
        numbers[i] = (float)((own_rank + 1) * (i % 1000 + 1));
    NEED_DEVICE(device_write(h->from, numbers, ADDED * sizeof(*numbers)));
    free(numbers);
    host_reduce(h, device_stream());
    host_expect(h, 0);
}

static void host_close(struct host *h)
{
    device_free(h->from);
    device_free(h->to);
    NEED_NCCL(nccl.destroy(h->comm));
}

/* 1,000 all-reduces of the host program on another stream, in the same order of calls on all ranks, which is
 * what NCCL asks of its users. Catches transfers and sums that wait for each other, and memory that both
 * use. */
static void test_foreign(hra_comm *comm)
{
    enum { REDUCTIONS = 1000 };
    cudaStream_t stream = device_stream(), beside = device_stream_beside();
    struct host h;
    struct turn t[2];

    host_open(&h);
    for (int n = 0; n < 2; n++)
        turn_open(&t[n], comm, n, stream);
    t[0].graph = layer_record(&t[0].layer, stream);
    for (int i = 1; i <= REDUCTIONS; i++) {
        if (i % 2)
            host_reduce(&h, beside);
        turn_call(&t[i % 2], i / 2 % 2, stream, stream);
        if (i % 2 == 0)
            host_reduce(&h, beside);
        if (i % 50 != 0)
            continue;
        turn_expect(&t[0], i);
        turn_expect(&t[1], i);
        host_expect(&h, i);
    }
    turn_close(&t[0]);
    turn_close(&t[1]);
    host_close(&h);
}

/* The same bits as `wanted` over a communicator made in another way, and again as a graph. */
static void expect_over(hra_comm *comm, const unsigned char *wanted, const char *what)
{
    struct turn t;

    turn_open(&t, comm, 1, device_stream());
    layer_expect(&t.layer, wanted, what, 0);
    t.graph = layer_record(&t.layer, device_stream());
    layer_forget_outputs(&t.layer);
    turn_call(&t, 1, device_stream(), device_stream());
    layer_wait(&t.layer, device_stream());
    layer_expect(&t.layer, wanted, what, 1);
    turn_close(&t);
}

/* After a failure of a communicator that was split off the host program's, the latter goes on. The last rank
 * never calls. */
static void fail_borrowed(struct host *h, const hra_comm_options *options)
{
    hra_comm *comm = NULL;
    struct turn t;

    NEED_HRA(hra_comm_create_nccl(&comm, h->comm, options));
    turn_open(&t, comm, 0, device_stream());
    MPI_Barrier(MPI_COMM_WORLD);
    if (own_rank + 1 < h->ranks) {
        NEED_HRA(layer_forward(&t.layer, device_stream()));
        const hra_status status = hra_comm_wait(comm, device_stream());
        CHECK(status == HRA_ERR_TIMEOUT || status == HRA_ERR_REMOTE, "%s: %s", hra_status_name(status),
              hra_last_error());
        NEED_CUDA(cudaStreamSynchronize(device_stream()));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    turn_close(&t);
    const double begin = now_s();
    const hra_status status =
        hra_comm_destroy(comm); /* fails on the last rank, where nobody comes any more */
    CHECK(now_s() - begin < options->setup_timeout_s + 4, "destroying took %.1f s: %s", now_s() - begin,
          hra_status_name(status));
    for (int i = 1; i <= 10; i++) {
        host_reduce(h, device_stream());
        host_expect(h, i);
    }
}

/* Communicators from (rank, ranks, unique id) and from the host program's ncclComm_t compute what one from
 * MPI's does; the host's goes on beside ours and after it, also where ours has failed. Catches ranks in
 * another order, an ncclComm_t that is destroyed or aborted and not ours, and transfers that travel on it. */
static void test_ways(hra_comm *comm)
{
    hra_comm_options options = {.size = sizeof(options), .timeout_s = LIMIT_S, .transport = transport};
    char id[HRA_UNIQUE_ID_BYTES] = "";
    hra_comm *unique = NULL, *borrowed = NULL;
    struct host h;
    struct turn t;

    host_open(&h);
    turn_open(&t, comm, 1, device_stream());
    if (own_rank == 0)
        NEED_HRA(hra_comm_get_unique_id(id));
    MPI_Bcast(id, (int)sizeof(id), MPI_BYTE, 0, MPI_COMM_WORLD);
    NEED_HRA(hra_comm_create_unique(&unique, own_rank, h.ranks, id, &options));
    NEED_HRA(hra_comm_create_nccl(&borrowed, h.comm, &options));
    CHECK(hra_comm_rank(borrowed) == own_rank && hra_comm_ranks(borrowed) == h.ranks, "rank %d of %d",
          hra_comm_rank(borrowed), hra_comm_ranks(borrowed));
    expect_over(unique, t.wanted, "unique id");
    expect_over(borrowed, t.wanted, "borrowed");
    host_reduce(&h, device_stream());
    host_expect(&h, 1);
    NEED_HRA(hra_comm_destroy(unique));
    NEED_HRA(hra_comm_destroy(borrowed));
    host_reduce(&h, device_stream());
    host_expect(&h, 2);
    options.timeout_s = 2;
    options.setup_timeout_s = 10;
    fail_borrowed(&h, &options);
    turn_close(&t);
    host_close(&h);
}

/* ---- Running them ---- */

static int run_test(void (*run)(hra_comm *comm))
{
    MPI_Comm node;
    int local;

    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &local);
    MPI_Comm_free(&node);
    NEED_DEVICE(device_open(HRA_BACKEND_CUDA, local));
    NEED(device_name()[0] == '\0', "there is no GPU");
    hra_comm *comm = connect_ranks(MPI_COMM_WORLD, transport, LIMIT_S);
    run(comm);
    NEED_HRA(hra_comm_destroy(comm));
    device_close();
    NEED_CUDA(cudaDeviceReset());
    MPI_Finalize();
    return failures > 0;
}

static int find_transport(const char *name)
{
    for (size_t i = 0; i < sizeof(transports) / sizeof(transports[0]); i++)
        if (strcmp(name, transports[i].name) == 0) {
            transport = transports[i].kind;
            return 1;
        }
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(hra_comm *comm);
    } tests[] = {
        {"same", test_same},         {"graph", test_graph},       {"layers", test_layers},
        {"comms", test_comms},       {"hops", test_hops},         {"growth", test_growth},
        {"making", test_making},     {"held", test_held},         {"foreign", test_foreign},
        {"ways", test_ways},         {"blocking", test_blocking}, {"trace", test_trace},
        {"outlived", test_outlived},
    };
    const int count = (int)(sizeof(tests) / sizeof(tests[0]));
    int n = 0;

    while (n < count && (argc != 3 || strcmp(argv[1], tests[n].name) != 0))
        n++;
    if (n == count || !find_transport(argv[2])) {
        fprintf(stderr, "usage: gpu-ring TEST mpi|gpu|nccl|peer\n");
        return 2;
    }
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &own_rank);
    return run_test(tests[n].run);
}

/* worker.c - what one rank does in the tests that need several. Started under mpirun by test_mpi.c:
 *
 *     worker TEST [ARGUMENT]
 *
 * Exit status 0: the test passed on this rank. What failed is printed, with the rank. */
#include "examples/tools/oracle.h"
#include "examples/tools/problem.h"
#include "src/plan.h"

#include <hra/mpi.h>
#include <math.h>
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
            fprintf(stderr, "rank %d, line %d: %s: ", rank, __LINE__, #condition);                           \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

#define CHECK_OK(call)                                                                                       \
    do {                                                                                                     \
        hra_status status_ = (call);                                                                         \
        CHECK(status_ == HRA_OK, "%s: %s", hra_status_name(status_), hra_last_error());                      \
    } while (0)

static void *take(int64_t count, size_t bytes)
{
    void *memory = aligned_alloc(64, ((size_t)count * bytes / 64 + 1) * 64);
    if (memory == NULL)
        abort();
    memset(memory, 0xff, ((size_t)count * bytes / 64 + 1) * 64); /* NaN, so that what is not written shows */
    return memory;
}

/* One attention problem in f64: what it is, and the tensors of all tokens, the same on every rank. */
struct job {
    hra_domain domain;
    hra_problem problem;
    hra_options options;
    const char *order_name, *mask_text;
    hra_order *order;
    hra_mask *mask;
    hra_plan *plan;
    int64_t rows;
    double *q, *k, *v, *g, *dlse; /* all tokens */
    double *ref[5];               /* o, dq, dk, dv, lse of the oracle, all tokens */
    hra_tensor own[9];            /* our rows: q k v do o dq dk dv; last: lse [batch][heads][rows] */
    double *own_dlse;
    void *workspace;
};

enum { Q, K, V, DO, O, DQ, DK, DV, LSE };

static int heads_of(const struct job *j, int which)
{
    return which == K || which == V || which == DK || which == DV ? j->problem.heads_kv : j->problem.heads;
}

static int dim_of(const struct job *j, int which)
{
    return which == V || which == DV || which == DO || which == O ? j->problem.dim_v : j->problem.dim;
}

static double *fill(int64_t count, uint64_t series)
{
    double *x = take(count, sizeof(*x));
    for (int64_t i = 0; i < count; i++)
        x[i] = random_normal(series, (uint64_t)i);
    return x;
}

static struct job job_of(int64_t tokens, const char *order, const char *mask)
{
    return (struct job){.domain = {.size = sizeof(hra_domain), .batch = 2, .heads = 4, .tokens = tokens},
                        .problem = {.size = sizeof(hra_problem),
                                    .batch = 2,
                                    .heads = 4,
                                    .heads_kv = 2,
                                    .dim = 5,
                                    .dim_v = 7,
                                    .tokens = tokens,
                                    .type = HRA_F64,
                                    .scale = 0.4},
                        .options = HRA_OPTIONS_INIT,
                        .order_name = order,
                        .mask_text = mask};
}

/* Our rows of a tensor of all tokens, or an uninitialised one where whole is NULL. */
static hra_tensor rows_of(struct job *j, int which, const double *whole)
{
    const int heads = heads_of(j, which), dim = dim_of(j, which);
    hra_tensor t = {.data = take(j->problem.batch * j->rows * heads * dim, sizeof(double)),
                    .stride_batch = j->rows * heads * dim,
                    .stride_row = (int64_t)heads * dim,
                    .stride_head = dim};
    if (whole != NULL) {
        const hra_tensor all = {.data = (void *)(uintptr_t)whole,
                                .stride_batch = j->problem.tokens * heads * dim,
                                .stride_row = (int64_t)heads * dim,
                                .stride_head = dim};
        CHECK_OK(hra_reorder(j->plan, HRA_GATHER, HRA_F64, heads, dim, &all, &t, NULL));
    }
    return t;
}

static void job_open(struct job *j, hra_comm *comm, hra_generator generate)
{
    const hra_problem *p = &j->problem;
    const int64_t n = p->batch * p->tokens;
    hra_plan_info info = {.size = sizeof(info)};

    CHECK_OK(hra_order_create(&j->order, &j->domain, j->order_name));
    CHECK_OK(hra_mask_parse(&j->mask, &j->domain, j->order, j->mask_text));
    CHECK_OK(hra_plan_create_with(&j->plan, comm, p, j->order, j->mask, &j->options, generate));
    if (failures > 0)
        MPI_Abort(MPI_COMM_WORLD, 1);
    CHECK_OK(hra_plan_get_info(j->plan, &info));
    j->rows = hra_plan_rows(j->plan, hra_comm_rank(comm));
    j->workspace = take((int64_t)info.workspace_bytes, 1);

    j->q = fill(n * p->heads * p->dim, 1);
    j->k = fill(n * p->heads_kv * p->dim, 2);
    j->v = fill(n * p->heads_kv * p->dim_v, 3);
    j->g = fill(n * p->heads * p->dim_v, 4);
    j->dlse = fill(n * p->heads, 5);
    const double *whole[8] = {j->q, j->k, j->v, j->g};
    for (int i = 0; i < 8; i++)
        j->own[i] = rows_of(j, i, whole[i]);
    j->own[LSE].data = take(p->batch * p->heads * j->rows, sizeof(double));
    j->own_dlse = take(p->batch * p->heads * j->rows, sizeof(double));
    int64_t *token = take(j->rows, sizeof(*token));
    CHECK_OK(hra_plan_row_index(j->plan, hra_comm_rank(comm), NULL, token));
    for (int bh = 0; bh < p->batch * p->heads; bh++)
        for (int64_t r = 0; r < j->rows; r++)
            j->own_dlse[bh * j->rows + r] = j->dlse[bh * p->tokens + token[r]];
    free(token);
}

static hra_status job_forward(struct job *j)
{
    return hra_forward(j->plan, &j->own[Q], &j->own[K], &j->own[V], &j->own[O], j->own[LSE].data,
                       j->workspace, NULL, NULL);
}

static hra_status job_backward(struct job *j)
{
    return hra_backward(j->plan, &j->own[Q], &j->own[K], &j->own[V], &j->own[O], j->own[LSE].data,
                        &j->own[DO], j->own_dlse, &j->own[DQ], &j->own[DK], &j->own[DV], j->workspace, NULL,
                        NULL);
}

/* |ours - reference| / |reference| of our rows of one tensor. */
static double error_of(struct job *j, int which, const double *whole)
{
    const int heads = heads_of(j, which), dim = dim_of(j, which);
    const hra_tensor reference = rows_of(j, which, whole);
    const double *x = j->own[which].data, *r = reference.data;
    double err = 0, ref = 1e-300;

    for (int64_t i = 0; i < j->problem.batch * j->rows * heads * dim; i++) {
        err += (x[i] - r[i]) * (x[i] - r[i]);
        ref += r[i] * r[i];
    }
    free(reference.data);
    return sqrt(err / ref);
}

/* Compare what forward and backward left with the oracle. */
static void job_compare(struct job *j)
{
    const hra_problem *p = &j->problem;
    const int64_t n = p->batch * p->tokens;
    const int64_t size[5] = {n * p->heads * p->dim_v, n * p->heads * p->dim, n * p->heads_kv * p->dim,
                             n * p->heads_kv * p->dim_v, n * p->heads};

    for (int i = 0; i < 5 && j->ref[i] == NULL; i++)
        j->ref[i] = take(size[i], sizeof(double));
    const struct oracle a = {.mask = j->mask,
                             .batch = p->batch,
                             .tokens = p->tokens,
                             .heads = p->heads,
                             .heads_kv = p->heads_kv,
                             .head0 = p->head0,
                             .dim = p->dim,
                             .dim_v = p->dim_v,
                             .scale = p->scale,
                             .q = j->q,
                             .k = j->k,
                             .v = j->v,
                             .do_ = j->g,
                             .dlse = j->dlse,
                             .o = j->ref[0],
                             .dq = j->ref[1],
                             .dk = j->ref[2],
                             .dv = j->ref[3],
                             .lse = j->ref[4],
                             .step = 1};
    CHECK(oracle_exact(&a) == 0, "no memory");
    static const int which[4] = {O, DQ, DK, DV};
    static const char *const name[4] = {"o", "dq", "dk", "dv"};
    for (int i = 0; i < 4; i++) {
        const double error = error_of(j, which[i], j->ref[i]);
        CHECK(error <= 1e-12, "%s is off by %g", name[i], error);
    }
}

static void job_close(struct job *j)
{
    hra_plan_destroy(j->plan);
    hra_order_destroy(j->order);
    hra_mask_destroy(j->mask);
    for (int i = 0; i < 9; i++)
        free(j->own[i].data);
    for (int i = 0; i < 5; i++)
        free(j->ref[i]);
    free(j->q);
    free(j->k);
    free(j->v);
    free(j->g);
    free(j->dlse);
    free(j->own_dlse);
    free(j->workspace);
}

static hra_comm *open_comm(MPI_Comm mpi, double timeout_s, size_t message_bytes)
{
    const hra_comm_options options = {
        .size = sizeof(options), .timeout_s = timeout_s, .message_bytes = message_bytes};
    hra_comm *comm = NULL;

    CHECK_OK(hra_comm_create_mpi(&comm, mpi, &options));
    if (comm == NULL)
        MPI_Abort(MPI_COMM_WORLD, 1);
    return comm;
}

static void run_and_compare(struct job *j, hra_comm *comm, hra_generator generate)
{
    job_open(j, comm, generate);
    CHECK_OK(job_forward(j));
    CHECK_OK(job_backward(j));
    job_compare(j);
    job_close(j);
}

/* ---- A schedule that is no ring ---- */

/* Every owner's keys in two parts by rows, each in as many by heads as there are K/V heads. All remote parts come
 * straight from their owners; own tiles are computed half by half of the query tiles, before and after; rounds
 * without anything stand between; all remote parts of a run are one run; dK/dV go straight back. Global part number p
 * is buffer p of K/V and of dK/dV; those of visitor r come home in buffer (1 + r) parts + p. */
static hra_status direct(struct hra_schedule *s, const struct hra_work *work, int me, hra_pass pass)
{
    const int queries = work->rank_tile[me + 1] - work->rank_tile[me];

    for (int o = 0; o < work->ranks; o++)
        for (int half = 0; half < HRA_HALVES; half++)
            for (int h = 0; h < work->heads_kv; h++) {
                const struct hra_part part = {.owner = o,
                                              .key_tile0 = hra_work_half(work, o, half),
                                              .key_tile1 = hra_work_half(work, o, half + 1),
                                              .head0 = h,
                                              .head1 = h + 1};
                if (part.key_tile0 < part.key_tile1)
                    HRA_TRY(hra_schedule_part(s, part));
            }
    for (int p = 0; p < s->parts; p++)
        if (s->part[p].owner == me)
            HRA_TRY(hra_schedule_load(s, p, p));

    HRA_TRY(hra_schedule_round(s)); /* nothing */
    HRA_TRY(hra_schedule_round(s)); /* all K/V travel, while half of our own queries see our own keys */
    for (int p = 0; p < s->parts; p++)
        for (int peer = 0; peer < work->ranks; peer++) {
            const int owner = s->part[p].owner;
            if (peer != me && (owner == me || owner == peer))
                HRA_TRY(hra_schedule_move(s, (struct hra_move){.payload = HRA_KV,
                                                               .part = p,
                                                               .from = p,
                                                               .to = p,
                                                               .peer = peer,
                                                               .sends = owner == me}));
        }
    for (int half = 0; half < 2; half++) {
        HRA_TRY(hra_schedule_run(s, half == 0 ? 0 : queries / 2, half == 0 ? queries / 2 : queries));
        for (int p = 0; p < s->parts; p++)
            if (s->part[p].owner == me)
                HRA_TRY(hra_schedule_source(s, (struct hra_source){p, HRA_OWN, HRA_OWN, 0}));
        HRA_TRY(hra_schedule_round(s)); /* nothing the first time, remote keys the second */
    }
    HRA_TRY(hra_schedule_run(s, 0, queries));
    for (int p = 0; p < s->parts; p++)
        if (s->part[p].owner != me)
            HRA_TRY(hra_schedule_source(s, (struct hra_source){p, p, p, 1}));
    if (pass == HRA_FORWARD)
        return HRA_OK;
    HRA_TRY(hra_schedule_round(s));
    for (int p = 0; p < s->parts; p++)
        for (int visitor = 0; visitor < work->ranks; visitor++) {
            const int owner = s->part[p].owner;
            if (visitor != owner && (owner == me || visitor == me))
                HRA_TRY(hra_schedule_move(s, (struct hra_move){.payload = HRA_DKV,
                                                               .part = p,
                                                               .from = p,
                                                               .to = (1 + visitor) * s->parts + p,
                                                               .peer = owner == me ? visitor : owner,
                                                               .sends = visitor == me,
                                                               .add = 1}));
        }
    return HRA_OK;
}

/* Own tiles come last, when dK/dV of other ranks have been added to our sums: these come home one after another into one
 * buffer. Every rank owns keys; part o is owner o's. */
static hra_status late(struct hra_schedule *s, const struct hra_work *work, int me, hra_pass pass)
{
    const int queries = work->rank_tile[me + 1] - work->rank_tile[me], ranks = work->ranks;

    for (int o = 0; o < ranks; o++)
        HRA_TRY(hra_schedule_part(s, (struct hra_part){.owner = o,
                                                       .key_tile0 = work->rank_tile[o],
                                                       .key_tile1 = work->rank_tile[o + 1],
                                                       .head1 = work->heads_kv}));
    HRA_TRY(hra_schedule_load(s, me, me));
    HRA_TRY(hra_schedule_round(s));
    for (int i = 0; i < 2 * ranks; i++) { /* to and from each */
        const int peer = i / 2, part = i % 2 ? me : peer;
        if (peer != me)
            HRA_TRY(hra_schedule_move(s, (struct hra_move){HRA_KV, part, part, part, peer, i % 2, 0, 0}));
    }
    HRA_TRY(hra_schedule_round(s));
    for (int o = 0; o < ranks; o++) {
        if (o == me)
            continue;
        HRA_TRY(hra_schedule_run(s, 0, queries));
        HRA_TRY(hra_schedule_source(s, (struct hra_source){o, o, o, 1}));
    }
    for (int visitor = 0; visitor < ranks && pass == HRA_BACKWARD; visitor++) {
        HRA_TRY(hra_schedule_round(s));
        for (int o = 0; o < ranks; o++)
            if (o != visitor && (o == me || visitor == me))
                HRA_TRY(hra_schedule_move(
                    s, (struct hra_move){HRA_DKV, o, o, ranks, o == me ? visitor : o, visitor == me, 1, 0}));
    }
    HRA_TRY(hra_schedule_round(s));
    HRA_TRY(hra_schedule_run(s, 0, queries));
    return hra_schedule_source(s, (struct hra_source){me, HRA_OWN, HRA_OWN, 0});
}

static void test_direct(const char *argument)
{
    static const char *const masks[] = {"full", "causal", "window(150,-20) | docs(90,210,311)",
                                        "blocks(100; 3:1; 0:5)", "mix(causal; slots(window(99,99)))"};
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);

    (void)argument;
    for (size_t m = 0; m < sizeof(masks) / sizeof(masks[0]); m++)
        for (int shard = HRA_SHARD_CONTIGUOUS; shard <= HRA_SHARD_ZIGZAG; shard++) {
            struct job j = job_of(611, "hilbert", masks[m]);
            j.options.shard = (hra_shard)shard;
            run_and_compare(&j, comm, direct);
            j = job_of(611, "hilbert", masks[m]);
            j.options.shard = (hra_shard)shard;
            run_and_compare(&j, comm, late);
        }
    CHECK_OK(hra_comm_destroy(comm));
}

/* ---- Messages ---- */

/* Two jobs on the same rows have left the same bits. */
static void expect_same_bits(const struct job *a, const struct job *b, const char *what)
{
    for (int i = O; i <= DV; i++)
        CHECK(memcmp(a->own[i].data, b->own[i].data,
                     (size_t)(a->problem.batch * a->rows * heads_of(a, i) * dim_of(a, i)) * sizeof(double)) ==
                  0,
              "%s: tensor %d differs", what, i);
}

/* Messages cut at sizes that divide nothing give the same bits as whole ones. */
static void test_cut(const char *argument)
{
    hra_comm *whole = open_comm(MPI_COMM_WORLD, -1, 0) /* no limit */,
             *cut = open_comm(MPI_COMM_WORLD, 60, 1000);

    (void)argument;
    for (int schedule = HRA_SCHEDULE_RING; schedule <= HRA_SCHEDULE_HEADS; schedule++) {
        struct job a = job_of(500, "identity", "causal");
        a.options.schedule = (hra_schedule_kind)schedule;
        struct job b = a;
        job_open(&a, whole, NULL);
        job_open(&b, cut, NULL);
        CHECK_OK(job_forward(&a));
        CHECK_OK(job_backward(&a));
        CHECK_OK(job_forward(&b));
        CHECK_OK(job_backward(&b));
        job_compare(&b);
        expect_same_bits(&a, &b, "cut messages");
        job_close(&a);
        job_close(&b);
    }
    CHECK_OK(hra_comm_destroy(whole));
    CHECK_OK(hra_comm_destroy(cut));
}

/* The same bits on every number of threads, and every time. */
static void test_threads(const char *argument)
{
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    struct job first = job_of(700, "identity", "window(300,100)");

    (void)argument;
    first.problem.threads = 1;
    job_open(&first, comm, NULL);
    CHECK_OK(job_forward(&first));
    CHECK_OK(job_backward(&first));
    for (int threads = 1; threads <= 5; threads += 2) {
        struct job j = job_of(700, "identity", "window(300,100)");
        j.problem.threads = threads + rank % 2; /* they may differ between ranks */
        job_open(&j, comm, NULL);
        CHECK_OK(job_forward(&j));
        CHECK_OK(job_backward(&j));
        expect_same_bits(&first, &j, "other threads");
        job_close(&j);
    }
    job_close(&first);
    CHECK_OK(hra_comm_destroy(comm));
}

/* Several plans on one communicator in turn, a second communicator on fewer ranks, and messages of the host's own with
 * any tag on the communicator that ours was made from. */
static void test_together(const char *argument)
{
    MPI_Comm some;
    MPI_Request request;
    double token = rank, other = -1;

    (void)argument;
    MPI_Irecv(&other, 1, MPI_DOUBLE, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &request);
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &some);
    hra_comm *half = open_comm(some, 60, 0);

    struct job small = job_of(130, "morton", "full"), large = job_of(900, "identity", "causal");
    struct job apart = job_of(300, "snake", "window(40,40)");
    job_open(&small, comm, NULL);
    job_open(&large, comm, NULL); /* needs a larger arena while small lives */
    job_open(&apart, half, NULL);
    CHECK(hra_comm_destroy(comm) == HRA_ERR_STATE, "destroyed under its plans");
    CHECK_OK(job_forward(&small));
    CHECK_OK(job_forward(&large));
    CHECK_OK(job_forward(&apart));
    CHECK_OK(job_backward(&apart));
    CHECK_OK(job_backward(&small));
    CHECK_OK(job_backward(&large));
    job_compare(&small);
    job_compare(&large);
    job_compare(&apart);
    job_close(&small);
    struct job again = job_of(257, "identity", "docs(1,100,156)");
    run_and_compare(&again, comm, NULL);
    job_close(&large);
    job_close(&apart);
    MPI_Send(&token, 1, MPI_DOUBLE, (rank + 1) % ranks, 1, MPI_COMM_WORLD);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    CHECK(other == (rank + ranks - 1) % ranks, "the host's message came as %g", other);
    CHECK_OK(hra_comm_destroy(half));
    CHECK_OK(hra_comm_destroy(comm));
    MPI_Comm_free(&some);
}

/* A plan on a model of as many ranks says the same of the whole problem. */
static void expect_as_on_a_model(const struct job *j)
{
    hra_plan_info info[2] = {{.size = sizeof(info[0])}, {.size = sizeof(info[0])}};
    const hra_piece *piece[2] = {NULL, NULL};
    int pieces[2] = {0, 0};
    hra_comm *comm = NULL;
    hra_plan *plan = NULL;

    CHECK_OK(hra_comm_create_model(&comm, rank, ranks));
    CHECK_OK(hra_plan_create(&plan, comm, &j->problem, j->order, j->mask, &j->options));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(hra_plan_get_info(i == 0 ? j->plan : plan, &info[i]));
        CHECK_OK(hra_plan_pieces(i == 0 ? j->plan : plan, &piece[i], &pieces[i]));
    }
    CHECK(info[0].shard == info[1].shard && pieces[0] == pieces[1],
          "shard %d in %d pieces, the model's %d in %d", (int)info[0].shard, pieces[0], (int)info[1].shard,
          pieces[1]);
    for (int i = 0; i < pieces[0] && i < pieces[1]; i++)
        CHECK(piece[0][i].slot0 == piece[1][i].slot0 && piece[0][i].rank == piece[1][i].rank, "piece %d", i);
    CHECK(info[0].pairs_live == info[1].pairs_live && info[0].pairs_in_tiles == info[1].pairs_in_tiles &&
              info[0].tiles_full == info[1].tiles_full && info[0].tiles_partial == info[1].tiles_partial,
          "%lld pairs, the model's %lld", (long long)info[0].pairs_live, (long long)info[1].pairs_live);
    CHECK(info[0].bytes_forward == info[1].bytes_forward &&
              info[0].bytes_backward == info[1].bytes_backward &&
              info[0].bytes_least == info[1].bytes_least && info[0].balance == info[1].balance &&
              info[0].balance_bound == info[1].balance_bound,
          "%lld bytes, the model's %lld", (long long)info[0].bytes_forward, (long long)info[1].bytes_forward);
    hra_plan_destroy(plan);
    CHECK_OK(hra_comm_destroy(comm));
}

/* ---- The halo, and streaming of heads ---- */

/* The oracle's answer, the same bits twice, and what a model says of it. */
static void check_direct(struct job *j, hra_comm *comm, hra_schedule_kind schedule)
{
    struct job again = *j;

    j->options.schedule = again.options.schedule = schedule;
    job_open(j, comm, NULL);
    expect_as_on_a_model(j);
    job_open(&again, comm, NULL);
    for (int n = 0; n < 2; n++) {
        struct job *const which = n == 0 ? j : &again;
        CHECK_OK(job_forward(which));
        CHECK_OK(job_backward(which));
    }
    job_compare(j);
    expect_same_bits(j, &again, j->mask_text);
    job_close(&again);
    job_close(j);
}

static void test_halo(const char *argument)
{
    static const char *const masks[] = {"full",
                                        "causal & window(120,0)",
                                        "window(150,-20) | docs(90,210,311)",
                                        "blocks(100; 3:1; 0:5)",
                                        "docs(10,601)",
                                        "!window(99,99)",
                                        "heads(0: causal; 1-2: window(7,200); 3: blocks(50; 0:9; 12:0 6))",
                                        "batches(0: full; 1: docs(300,311))",
                                        "mix(causal; slots(window(99,99)))"};
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);

    (void)argument;
    for (size_t m = 0; m < sizeof(masks) / sizeof(masks[0]); m++) {
        struct job j = job_of(611, m % 2 == 0 ? "identity" : "hilbert", masks[m]);
        j.options.shard = (hra_shard)(HRA_SHARD_CONTIGUOUS + m % 3);
        struct job k = j;
        check_direct(&j, comm, HRA_SCHEDULE_HALO);
        check_direct(&k, comm, HRA_SCHEDULE_HEADS);
    }
    struct job few = job_of(5, "identity", "full"), fewer = few; /* ranks without any token */
    check_direct(&few, comm, HRA_SCHEDULE_HALO);
    check_direct(&fewer, comm, HRA_SCHEDULE_HEADS);
    CHECK_OK(hra_comm_destroy(comm));
}

/* A halo of one head, halves of the tokens side by side. */
static struct job job_of_one_head(int64_t tokens, const char *text)
{
    struct job j = job_of(tokens, "identity", text);

    j.domain.batch = j.problem.batch = j.domain.heads = j.problem.heads = j.problem.heads_kv = 1;
    j.options.shard = HRA_SHARD_CONTIGUOUS;
    j.options.schedule = HRA_SCHEDULE_HALO;
    return j;
}

/* Two ranks of 22 tiles; the second needs all of the first's but one, whose rows travel along and are no keys. */
static void test_gap(const char *argument)
{
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    hra_plan_info info = {.size = sizeof(info)};
    char text[400] = "!blocks(128";

    (void)argument;
    for (int i = 22; i < 44; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "; %d:9", i);
    strcat(text, ")");
    struct job j = job_of_one_head(44 * 128, text);
    job_open(&j, comm, NULL);
    CHECK_OK(hra_plan_get_info(j.plan, &info));
    CHECK(info.bytes_forward > info.bytes_least, "%lld bytes, no gap is joined",
          (long long)info.bytes_forward);
    CHECK_OK(job_forward(&j));
    CHECK_OK(job_backward(&j));
    job_compare(&j);
    job_close(&j);
    CHECK_OK(hra_comm_destroy(comm));
}

/* Two ranks of 40 tiles, each of which needs every second one of the other's: more parts in one message than are copied and added
 * in one call. */
static void test_ranges(const char *argument)
{
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    char text[400] = "blocks(128; 0:";

    (void)argument;
    for (int rank = 0; rank < 2; rank++) {
        strcat(text, rank == 0 ? "" : "; 40:");
        for (int i = 0; i < 20; i++)
            snprintf(text + strlen(text), sizeof(text) - strlen(text), " %d", 40 * !rank + 2 * i + 1);
    }
    strcat(text, ")");
    struct job j = job_of_one_head(80 * 128, text);
    job_open(&j, comm, NULL);
    CHECK_OK(job_forward(&j));
    CHECK_OK(job_backward(&j));
    job_compare(&j);
    job_close(&j);
    CHECK_OK(hra_comm_destroy(comm));
}

/* The transport that sends for the one below, which sends from lines as one between GPUs does, and how many parts there were in
 * its largest message. */
static const struct hra_transport *whole;
static int most_lines;

static hra_status start_lines(void *state, struct hra_transfer *const *transfer, int count, void *stream)
{
    for (int i = 0; i < count; i++) {
        for (int n = 0; n < transfer[i]->lines; n++) {
            const struct hra_lines *l = &transfer[i]->line[n];
            char *to = (char *)transfer[i]->data + l->at;
            for (size_t row = 0; row < l->count; row++)
                memcpy(to + row * l->step, (const char *)l->data + row * l->pitch, l->bytes);
        }
        most_lines = transfer[i]->lines > most_lines ? transfer[i]->lines : most_lines;
    }
    return whole->start(state, transfer, count, stream);
}

/* Lay a tensor of ours out anew, each head behind the one before. */
static void set_apart(struct job *j, int which)
{
    const hra_tensor from = j->own[which];
    const int heads = heads_of(j, which), dim = dim_of(j, which);
    double *to = take(j->problem.batch * j->rows * heads * dim, sizeof(*to));

    for (int batch = 0; batch < j->problem.batch; batch++)
        for (int64_t row = 0; row < j->rows; row++)
            for (int head = 0; head < heads; head++)
                memcpy(to + ((batch * heads + head) * j->rows + row) * dim,
                       (const double *)from.data + batch * from.stride_batch + row * from.stride_row +
                           head * from.stride_head,
                       (size_t)dim * sizeof(*to));
    free(from.data);
    j->own[which] = (hra_tensor){to, j->rows * heads * dim, dim, j->rows * dim};
}

/* Two ranks of 30 tiles, the second of which needs three ranges of the first's: own K and V are sent from where they are. Where
 * their heads lie apart they are copied first, unless heads are large, as 1024 rows of 256 channels are. */
static void test_lines(const char *argument)
{
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    struct hra_transport transport = *comm->transport;
    static const struct {
        hra_schedule_kind schedule;
        int batch, apart, large;
        int lines; /* of rank 0's largest message: of K and of V, of each range and batch, of each head where they lie apart */
    } sent[] = {{HRA_SCHEDULE_RING, 1, 0, 0, 2},
                {HRA_SCHEDULE_HEADS, 1, 0, 0, 6},
                {HRA_SCHEDULE_HALO, 2, 0, 0, 12},
                {HRA_SCHEDULE_HALO, 2, 1, 0, 0},
                {HRA_SCHEDULE_RING, 2, 1, 1, 8}};

    (void)argument;
    whole = comm->transport;
    transport.sends_lines = 1;
    transport.start = start_lines;
    comm->transport = &transport;
    for (size_t n = 0; n < sizeof(sent) / sizeof(sent[0]); n++) {
        struct job j =
            job_of(sent[n].large ? 16 * 128 : 60 * 128, "identity",
                   sent[n].large ? "blocks(128; 8:0 3 6; 15:1; 0:9)" : "blocks(128; 30:0 11 22; 59:1; 0:31)");
        j.domain.batch = j.problem.batch = sent[n].batch;
        j.domain.heads = j.problem.heads = 2;
        if (sent[n].large)
            j.problem.dim = j.problem.dim_v = 256;
        j.options.shard = HRA_SHARD_CONTIGUOUS;
        j.options.schedule = sent[n].schedule;
        job_open(&j, comm, NULL);
        for (int which = K; which <= V; which++)
            if (sent[n].apart)
                set_apart(&j, which);
        most_lines = 0;
        CHECK_OK(job_forward(&j));
        CHECK_OK(job_backward(&j));
        CHECK(rank != 0 || most_lines == sent[n].lines, "job %zu: %d lines, not %d", n, most_lines,
              sent[n].lines);
        job_compare(&j);
        job_close(&j);
    }
    comm->transport = whole;
    CHECK_OK(hra_comm_destroy(comm));
}

/* ---- Receipts that are posted ahead ---- */

enum { MOST_UNDER_WAY = 64 };

static struct hra_transfer *under_way[MOST_UNDER_WAY]; /* NULL: none */
static int posts, waited_for;                          /* receipts; sends that they come after */

static void add_under_way(struct hra_transfer *t)
{
    int n = 0;

    while (n < MOST_UNDER_WAY && under_way[n] != NULL)
        n++;
    CHECK(n < MOST_UNDER_WAY, "%d transfers are under way", n);
    under_way[n % MOST_UNDER_WAY] = t;
}

static int meet(const struct hra_transfer *a, const struct hra_transfer *b)
{
    const char *one = a->data, *other = b->data;
    return one < other + b->bytes && other < one + a->bytes;
}

/* What a receipt that is posted may overwrite is overwritten at once, unless it comes after sends that are over later; those
 * that are under way in its buffer are named. */
static hra_status post_and_spoil(void *state, struct hra_transfer *const *transfer, int count, int after,
                                 void *stream)
{
    for (int i = 0; i < count; i++) {
        CHECK(transfer[i]->ahead && !transfer[i]->sends, "%s, round %d", transfer[i]->what,
              transfer[i]->round);
        for (int n = 0; n < MOST_UNDER_WAY; n++) {
            int named = 0;
            if (under_way[n] == NULL || !meet(transfer[i], under_way[n]))
                continue;
            for (int a = count; a < count + after; a++)
                named |= transfer[a] == under_way[n];
            CHECK(named && under_way[n]->sends, "%s, round %d: posted where %s, round %d, is under way",
                  transfer[i]->what, transfer[i]->round, under_way[n]->what, under_way[n]->round);
        }
        if (after == 0)
            memset(transfer[i]->data, 0xff, transfer[i]->bytes);
        posts++;
    }
    waited_for += after;
    return whole->post(state, transfer, count, after, stream);
}

static hra_status start_and_note(void *state, struct hra_transfer *const *transfer, int count, void *stream)
{
    for (int i = 0; i < count; i++)
        add_under_way(transfer[i]);
    return whole->start(state, transfer, count, stream);
}

static hra_status finish_and_note(void *state, struct hra_transfer *transfer, void *stream)
{
    for (int n = 0; n < MOST_UNDER_WAY; n++)
        if (under_way[n] == transfer)
            under_way[n] = NULL;
    return whole->finish(state, transfer, stream);
}

/* What comes into buffers that are free a round before may come then, and nothing that still has to be read is there. */
static void test_posts(const char *argument)
{
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    struct hra_transport transport = *comm->transport;

    (void)argument;
    whole = comm->transport;
    transport.post = post_and_spoil;
    transport.start = start_and_note;
    transport.finish = finish_and_note;
    comm->transport = &transport;
    for (hra_schedule_kind schedule = HRA_SCHEDULE_RING; schedule <= HRA_SCHEDULE_HEADS; schedule++) {
        struct job j = job_of(1500, "identity", "full");
        j.domain.heads = j.problem.heads = 4;
        j.options.shard = HRA_SHARD_CONTIGUOUS;
        j.options.schedule = schedule;
        posts = waited_for = 0;
        run_and_compare(&j, comm, NULL);
        CHECK(posts > 0 && (schedule != HRA_SCHEDULE_RING || waited_for > 0),
              "schedule %d: %d receipts are posted, after %d sends", (int)schedule, posts, waited_for);
    }
    comm->transport = whole;
    CHECK_OK(hra_comm_destroy(comm));
}

/* Packed documents, others at every step: the communicator takes memory once, however the documents fall and whatever
 * the sharding, a model of the ranks plans alike, and every answer is right. */
static void test_packed(const char *argument)
{
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    struct hra_arena *arena = NULL;
    char text[4096];
    uint64_t draws = 0;

    (void)argument;
    for (int step = 0; step < 40; step++) {
        const int64_t tokens = 1900;
        const int longest = step % 4 == 0 ? 1900 : step % 4 == 1 ? 40 : 700;
        size_t used = (size_t)snprintf(text, sizeof(text), "causal & docs(");
        for (int64_t left = tokens, length; left > 0; left -= length) {
            length = 1 + (int64_t)(random_bits(77, draws++) % (uint64_t)longest);
            length = length < left ? length : left;
            used += (size_t)snprintf(text + used, sizeof(text) - used, left > length ? "%d," : "%d)",
                                     (int)length);
        }
        struct job j = job_of(tokens, "identity", text);
        j.options.shard = (hra_shard)(HRA_SHARD_AUTO + step / 4 % (HRA_SHARD_BALANCED + 1));
        if (step >= 36) {
            run_and_compare(&j, comm, NULL);
        } else {
            job_open(&j, comm, NULL);
            expect_as_on_a_model(&j);
            job_close(&j);
        }
        CHECK(arena == NULL || comm->arena == arena, "step %d took other memory", step);
        arena = comm->arena;
    }
    CHECK(arena != NULL, "no plan needed any");
    CHECK_OK(hra_comm_destroy(comm));
}

/* ---- Disagreement ---- */

static const hra_machine other_machine = {.size = sizeof(hra_machine),
                                          .inside.rate = 1e9,
                                          .full = {1e11, 1e11},
                                          .partial = {1e11, 1e11},
                                          .memory = 1e9};

/* One way in which the last rank plans something else. */
static void differ(struct job *j, int way)
{
    switch (way) {
    case 0:
        j->problem.heads_kv = 4;
        break;
    case 1:
        j->problem.scale = 0.5;
        break;
    case 2:
        j->problem.type = HRA_F32;
        break;
    case 3:
        j->order_name = "snake";
        break;
    case 4:
        j->options.shard = HRA_SHARD_ZIGZAG;
        break;
    case 5:
        j->problem.dim = 6;
        break;
    case 6:
        j->problem.dim = 300; /* wrong on this rank alone */
        break;
    case 7:
        j->problem.softcap = 1;
        break;
    case 8:
        j->options.machine = &other_machine;
        break;
    case 9:
        j->options.schedule = HRA_SCHEDULE_HEADS;
        break;
    }
}

/* All ranks but the last plan `mask`, the last one plans `other`, which the message names. */
static const struct {
    const char *mask, *other;
} masks_that_differ[] = {
    {"causal", "window(3,4)"},
    {"random_blocks(16,2,7)", "random_blocks(16,2,8)"},
    {"slots(hilbert; window(9,9))", "slots(morton; window(9,9))"},
    {"heads(0-1: causal; 2-3: full)", "heads(0-2: causal; 3: full)"},
    {"batches(0: causal; 1: full)", "batches(0: full; 1: causal)"},
    {"mix(causal; full)", "mix(causal; causal)"},
    {"longnet(64:1, 200:4)", "mix(dilated(64,1,head,both); dilated(200,2,head,both))"},
};

/* The status that every rank gets for a job which is another on the last rank, and what the message says. */
static void expect_disagreement(hra_comm *comm, struct job *j, hra_status wanted, const char *says)
{
    CHECK_OK(hra_order_create(&j->order, &j->domain, j->order_name));
    CHECK_OK(hra_mask_parse(&j->mask, &j->domain, j->order, j->mask_text));
    hra_status status = hra_plan_create(&j->plan, comm, &j->problem, j->order, j->mask, &j->options);
    CHECK(status == wanted, "%s: %s: %s", says, hra_status_name(status), hra_last_error());
    CHECK(strstr(hra_last_error(), says) != NULL, "%s: %s", says, hra_last_error());
    CHECK(j->plan == NULL, "%s gave a plan", says);
    hra_order_destroy(j->order);
    hra_mask_destroy(j->mask);
}

static void test_disagree(const char *argument)
{
    static const struct {
        hra_status status;
        const char *says;
    } wanted[] = {
        {HRA_ERR_MISMATCH, "heads_kv"},
        {HRA_ERR_MISMATCH, "scale"},
        {HRA_ERR_MISMATCH, "type"},
        {HRA_ERR_MISMATCH, "snake"},
        {HRA_ERR_MISMATCH, "shard"},
        {HRA_ERR_MISMATCH, "dim"},
        {HRA_ERR_ARG, "problem.dim is 300"},
        {HRA_ERR_UNSUPPORTED, "softcap"},
        {HRA_ERR_MISMATCH, "another machine"},
        {HRA_ERR_MISMATCH, "schedule"},
    };
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    const int last = rank == ranks - 1;

    (void)argument;
    for (int way = 0; way < (int)(sizeof(wanted) / sizeof(wanted[0])); way++) {
        struct job j = job_of(200, "hilbert", "causal");
        if (last)
            differ(&j, way);
        expect_disagreement(comm, &j, wanted[way].status, wanted[way].says);
    }
    for (size_t n = 0; n < sizeof(masks_that_differ) / sizeof(masks_that_differ[0]); n++) {
        const char *mask = masks_that_differ[n].mask, *other = masks_that_differ[n].other;
        struct job j = job_of(200, "snake", last ? other : mask);
        expect_disagreement(comm, &j, HRA_ERR_MISMATCH, other);
    }
    CHECK_OK(hra_comm_get_status(comm));
    struct job after = job_of(200, "hilbert", "causal"); /* none of this has hurt the communicator */
    run_and_compare(&after, comm, NULL);
    CHECK_OK(hra_comm_destroy(comm));

    const hra_comm_options odd = {.size = sizeof(odd), .message_bytes = 100 + (size_t)rank};
    hra_comm *none = NULL;
    hra_status status = hra_comm_create_mpi(&none, MPI_COMM_WORLD, &odd);
    CHECK(status == HRA_ERR_MISMATCH && none == NULL, "%s: %s", hra_status_name(status), hra_last_error());

    const hra_comm_options wrong = {.size = sizeof(wrong), .message_bytes = rank == 0 ? (size_t)1 << 31 : 0};
    status = hra_comm_create_mpi(&none, MPI_COMM_WORLD, &wrong); /* wrong on rank 0 alone */
    CHECK(status == HRA_ERR_ARG && none == NULL, "%s: %s", hra_status_name(status), hra_last_error());
    CHECK(strstr(hra_last_error(), rank == 0 ? "2147483648" : "another rank") != NULL, "%s",
          hra_last_error());
    CHECK(hra_comm_create_mpi(&none, MPI_COMM_NULL, NULL) == HRA_ERR_ARG && none == NULL, "%s",
          hra_last_error());
    CHECK(hra_comm_create_mpi(NULL, MPI_COMM_WORLD, NULL) == HRA_ERR_ARG, "%s", hra_last_error());
}

/* A call refused with ARG on one rank has sent nothing; it calls again, and the others have only waited. */
static void test_refused(const char *argument)
{
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    struct job j = job_of(300, "identity", "causal");

    (void)argument;
    job_open(&j, comm, NULL);
    if (rank == 0) {
        const hra_tensor o = j.own[O];
        j.own[O].data = NULL;
        CHECK(job_forward(&j) == HRA_ERR_ARG, "%s", hra_last_error());
        CHECK(strstr(hra_last_error(), "o.data") != NULL, "%s", hra_last_error());
        j.own[O] = o;
    }
    CHECK_OK(job_forward(&j));
    CHECK_OK(job_backward(&j));
    job_compare(&j);
    job_close(&j);
    CHECK_OK(hra_comm_destroy(comm));
}

/* ---- Ranks that go away ---- */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Rank 1 kills itself ("killed") or sleeps ("absent") before a forward ("forward"), a backward ("backward") or a plan
 * ("plan"): argument is "killed-forward" and so on. The others get REMOTE or TIMEOUT within the limit, and the same
 * again from every later call. */
static void test_gone(const char *argument)
{
    const double limit_s = 2;
    const int killed = strncmp(argument, "killed", 6) == 0;
    const char *when = strchr(argument, '-') + 1;
    hra_comm *comm = open_comm(MPI_COMM_WORLD, limit_s, 0);
    struct job j = job_of(600, "identity", "full");

    if (strcmp(when, "plan") != 0)
        job_open(&j, comm, NULL);
    if (strcmp(when, "backward") == 0)
        CHECK_OK(job_forward(&j));
    if (rank == 1) {
        if (killed)
            raise(SIGKILL);
        sleep(8);
        _exit(0);
    }

    const double begin = now_s();
    hra_status status = HRA_OK;
    if (strcmp(when, "plan") == 0) {
        CHECK_OK(hra_order_create(&j.order, &j.domain, j.order_name));
        CHECK_OK(hra_mask_parse(&j.mask, &j.domain, j.order, j.mask_text));
        status = hra_plan_create(&j.plan, comm, &j.problem, j.order, j.mask, &j.options);
    } else {
        status = strcmp(when, "forward") == 0 ? job_forward(&j) : job_backward(&j);
    }
    const double took = now_s() - begin;
    /* A rank whose own messages were all with living ranks may be done; it notices at its next call. */
    if (status == HRA_OK && j.plan != NULL)
        status = job_forward(&j);
    CHECK(status == HRA_ERR_REMOTE || status == HRA_ERR_TIMEOUT, "%s: %s", hra_status_name(status),
          hra_last_error());
    CHECK(took < limit_s + 2, "it took %.1f s", took);
    if (j.plan != NULL)
        CHECK(strstr(hra_last_error(), "round") != NULL, "%s", hra_last_error());
    fprintf(stderr, "rank %d: %s after %.1f s: %s\n", rank, hra_status_name(status), took, hra_last_error());
    CHECK(hra_comm_get_status(comm) == status, "%s", hra_last_error());
    if (j.plan != NULL)
        CHECK(job_forward(&j) == status && job_backward(&j) == status, "%s", hra_last_error());
    hra_plan_destroy(j.plan);
    hra_comm_destroy(comm);
    fflush(stderr);
    _exit(failures > 0); /* MPI_Finalize would wait for the dead */
}

/* Rank 1 is late, by more than one of the two limits: of passes, or of what makes plans. */
static void test_limits(const char *argument)
{
    const double late_s = 2.5, short_s = 1, long_s = 60;
    const int passes_are_short = strcmp(argument, "pass") == 0;
    const hra_comm_options options = {.size = sizeof(options),
                                      .timeout_s = passes_are_short ? short_s : long_s,
                                      .setup_timeout_s = passes_are_short ? long_s : short_s};
    struct job j = job_of(300, "identity", "full"), second = j;
    hra_comm *comm = NULL;
    hra_status status;

    MPI_Barrier(MPI_COMM_WORLD); /* until here ranks may have come far apart */
    CHECK_OK(hra_comm_create_mpi(&comm, MPI_COMM_WORLD, &options));
    if (rank == 1 && passes_are_short)
        usleep((useconds_t)(1e6 * late_s));
    job_open(&j, comm, NULL);
    if (!passes_are_short) {
        if (rank == 1)
            usleep((useconds_t)(1e6 * late_s));
        CHECK_OK(job_forward(&j));
        CHECK_OK(job_backward(&j));
        job_compare(&j);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 1)
        usleep((useconds_t)(1e6 * late_s));
    const double begin = now_s();
    if (passes_are_short) {
        status = job_forward(&j);
    } else {
        CHECK_OK(hra_order_create(&second.order, &second.domain, second.order_name));
        CHECK_OK(hra_mask_parse(&second.mask, &second.domain, second.order, second.mask_text));
        status =
            hra_plan_create(&second.plan, comm, &second.problem, second.order, second.mask, &second.options);
    }
    const double took = now_s() - begin;
    CHECK(rank != 0 || (status == HRA_ERR_TIMEOUT && took >= short_s && took < late_s), "%s after %.1f s: %s",
          hra_status_name(status), took, hra_last_error());
    hra_mask_destroy(second.mask);
    hra_order_destroy(second.order);
    job_close(&j);
    if (rank == 0)
        hra_comm_destroy(comm); /* rank 1 may not know that it has failed, and would wait */
}

/* ---- A link that may be cut ---- */

enum { LINK_CALLS = 200, LINK_BEGUN = 20 };

/* Leave one line in the file `name` of a folder, whole or not at all. */
static void leave(const char *folder, const char *name, const char *line)
{
    char path[1024], draft[1024];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    snprintf(draft, sizeof(draft), "%s/.%s", folder, name);
    FILE *f = fopen(draft, "w");
    CHECK(f != NULL && fprintf(f, "%s\n", line) > 0 && fclose(f) == 0 && rename(draft, path) == 0, "%s",
          path);
}

/* Forwards and backwards for two seconds or more, over a link that tests/nodes.sh may cut. Every rank leaves one line on
 * how it ended in FOLDER/rank-N, since what it prints may not arrive: that all passes were done and the last one is
 * right, or the failure of a call that came back within the limit, and which all later calls repeat. FOLDER/begun says
 * that passes are under way. */
static void test_link(const char *folder)
{
    const double limit_s = 2;
    hra_comm *comm = open_comm(MPI_COMM_WORLD, limit_s, 0);
    struct job j = job_of(300, "identity", "full");
    hra_status status = HRA_OK;
    double took = 0;
    int call = 0;
    char line[1400], name[32];

    /* Every rank has rows, and needs those behind the cut: of whole tiles there are three for four ranks. */
    j.options.shard = HRA_SHARD_CONTIGUOUS;
    j.options.schedule = HRA_SCHEDULE_RING;

    job_open(&j, comm, NULL);
    for (; call < LINK_CALLS && status == HRA_OK; call++) {
        if (rank == 0 && call == LINK_BEGUN)
            leave(folder, "begun", "");
        nanosleep(&(struct timespec){0, 5000000}, NULL);
        const double begin = now_s();
        status = call % 2 == 0 ? job_forward(&j) : job_backward(&j);
        took = now_s() - begin;
    }
    snprintf(line, sizeof(line), "%s in call %d after %.1f s: %s", hra_status_name(status), call, took,
             status == HRA_OK ? "" : hra_last_error());
    if (status == HRA_OK) {
        job_compare(&j);
        job_close(&j);
        CHECK_OK(hra_comm_destroy(comm));
    } else {
        CHECK(took < limit_s + 1, "it took %.1f s", took);
        CHECK(hra_comm_get_status(comm) == status, "%s", hra_last_error());
        CHECK(job_forward(&j) == status && job_backward(&j) == status, "%s", hra_last_error());
        job_close(&j);
        hra_comm_destroy(comm);
    }
    if (failures > 0)
        snprintf(line, sizeof(line), "%d checks failed on rank %d", failures, rank);
    snprintf(name, sizeof(name), "rank-%d", rank);
    leave(folder, name, line);
    if (status == HRA_OK)
        return;
    sleep(1); /* mpirun ends the others when it sees one of us fail: they are to leave their lines first */
    _exit(1); /* MPI_Finalize would wait for those behind the cut */
}

/* ---- Traces ---- */

/* What the trace says of a pass against what the plan has, and against the time that the call took. */
static void check_trace(hra_trace *trace, struct job *j, hra_pass pass, double took_s)
{
    int64_t count = 0, moves = 0, runs = 0, seen = 0, computed = 0, last_round = -1;
    double at = 0;

    CHECK_OK(hra_plan_moves(j->plan, rank, pass, NULL, 0, &moves));
    CHECK_OK(hra_trace_spans(trace, pass, NULL, 0, &count));
    hra_plan_move *move = take(moves, sizeof(*move));
    hra_span *span = take(count, sizeof(*span));
    CHECK_OK(hra_plan_moves(j->plan, rank, pass, move, moves, &moves));
    CHECK_OK(hra_trace_spans(trace, pass, span, count, &count));
    for (int64_t i = 0; i < count; i++) {
        const hra_span *s = &span[i];
        if (s->kind == HRA_SPAN_SEND || s->kind == HRA_SPAN_RECEIVE) {
            const hra_plan_move *m = &move[seen < moves ? seen++ : 0];
            CHECK(s->begin_s >= 0 && s->begin_s <= s->end_s && s->end_s <= at, "message %d", (int)i);
            CHECK((s->kind == HRA_SPAN_SEND) == m->sends && s->peer == m->peer && s->round == m->round &&
                      s->gradient == m->gradient && s->bytes == m->bytes,
                  "message %d is not the plan's", (int)i);
            continue;
        }
        CHECK(seen == 0, "step %d stands behind messages", (int)i);
        CHECK(s->begin_s == at && s->end_s >= at, "step %d: %g to %g, after %g", (int)i, s->begin_s, s->end_s,
              at);
        at = s->end_s;
        if (s->kind == HRA_SPAN_COMPUTE) {
            CHECK(s->round >= last_round && s->peer >= 0 && s->peer < ranks, "round %d, owner %d", s->round,
                  s->peer);
            last_round = s->round;
            computed++;
        }
    }
    runs = j->plan->pass[pass].schedule.runs;
    CHECK(seen == moves && computed == runs, "%d of %d messages, %d of %d runs", (int)seen, (int)moves,
          (int)computed, (int)runs);
    CHECK(at <= took_s, "steps of %g s in a call of %g s", at, took_s);
    CHECK(j->rows == 0 || at > 0, "nothing took any time");
    free(move);
    free(span);
}

/* Rank 1 comes late: those that receive from it are seen to wait for it, and nobody computes for so long. */
static void check_late(hra_trace *trace, struct job *j)
{
    const double late_s = 0.6;
    int64_t count = 0;
    double waits = 0;
    int receives = 0;

    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 1)
        usleep((useconds_t)(1e6 * late_s));
    CHECK_OK(job_forward(j));
    CHECK_OK(hra_trace_spans(trace, HRA_FORWARD, NULL, 0, &count));
    hra_span *span = take(count, sizeof(*span));
    CHECK_OK(hra_trace_spans(trace, HRA_FORWARD, span, count, &count));
    for (int64_t i = 0; i < count; i++) {
        const double took = span[i].end_s - span[i].begin_s;
        waits += span[i].kind == HRA_SPAN_WAIT && span[i].peer == 1 ? took : 0;
        receives |= span[i].kind == HRA_SPAN_RECEIVE && span[i].peer == 1;
        CHECK(span[i].kind != HRA_SPAN_COMPUTE || took < late_s / 2, "step %d computes %g s", (int)i, took);
    }
    free(span);
    CHECK(!receives || waits > late_s / 2, "waited %g s", waits);
    CHECK(rank != 2 || receives, "nothing comes from rank 1");
}

/* Both passes are recorded, twice, and give the same answer; the sequence has fewer tiles than the last row has ranks. */
static void test_trace(const char *schedule)
{
    struct job j = job_of(strcmp(schedule, "few") == 0 ? 300 : 900, "identity", "causal");
    hra_comm *comm = open_comm(MPI_COMM_WORLD, 60, 0);
    hra_trace *trace = NULL, *second = NULL;
    int64_t count = -5;

    j.options.schedule = strcmp(schedule, "halo") == 0 ? HRA_SCHEDULE_HALO : HRA_SCHEDULE_RING;
    job_open(&j, comm, NULL);
    CHECK_OK(hra_trace_create(&trace, j.plan));
    CHECK(hra_trace_create(&second, j.plan) == HRA_ERR_STATE && second == NULL, "two traces");
    CHECK(hra_trace_spans(trace, HRA_FORWARD, NULL, 0, &count) == HRA_ERR_STATE && count == -5,
          "nothing yet");
    for (int turn = 0; turn < 2; turn++) {
        double then = now_s();
        CHECK_OK(job_forward(&j));
        check_trace(trace, &j, HRA_FORWARD, now_s() - then);
        then = now_s();
        CHECK_OK(job_backward(&j));
        check_trace(trace, &j, HRA_BACKWARD, now_s() - then);
    }
    job_compare(&j);
    if (strcmp(schedule, "ring") == 0)
        check_late(trace, &j);
    CHECK(hra_trace_spans(trace, (hra_pass)2, NULL, 0, &count) == HRA_ERR_ARG, "no such pass");
    CHECK(hra_trace_spans(trace, HRA_FORWARD, NULL, 1, &count) == HRA_ERR_ARG, "no room");
    hra_trace_destroy(trace);
    CHECK_OK(job_forward(&j));
    CHECK_OK(hra_trace_create(&trace, j.plan));
    job_close(&j);
    CHECK(hra_trace_spans(trace, HRA_FORWARD, NULL, 0, &count) == HRA_ERR_STATE, "the plan is gone");
    hra_trace_destroy(trace);
    CHECK_OK(hra_comm_destroy(comm));
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(const char *argument);
    } tests[] = {
        {"direct", test_direct},     {"cut", test_cut},       {"threads", test_threads},
        {"together", test_together}, {"packed", test_packed}, {"disagree", test_disagree},
        {"refused", test_refused},   {"gone", test_gone},     {"limits", test_limits},
        {"posts", test_posts},       {"link", test_link},     {"halo", test_halo},
        {"gap", test_gap},           {"ranges", test_ranges}, {"lines", test_lines},
        {"trace", test_trace},
    };
    int found = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    for (size_t i = 0; argc > 1 && i < sizeof(tests) / sizeof(tests[0]); i++)
        if (strcmp(argv[1], tests[i].name) == 0) {
            tests[i].run(argc > 2 ? argv[2] : "");
            found = 1;
        }
    if (!found)
        fprintf(stderr, "worker: no test '%s'\n", argc > 1 ? argv[1] : "");
    MPI_Finalize();
    return failures > 0 || !found;
}

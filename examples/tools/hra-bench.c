/* hra-bench.c - times forward and backward on one rank, beside a matrix product in the same run: of the same BLAS
 * with the same threads, or of cuBLAS on the same GPU. With --reorder, the way into the plan's order and back beside
 * a copy; with --plan, the making of orders, masks and plans on any number of ranks. */
#include "examples/tools/device.h"
#include "examples/tools/problem.h"

#include <cblas.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef HRA_HAVE_MPI
#include <hra/mpi.h>
#endif
#ifdef HRA_HAVE_CUDA
#include <cublas_v2.h>
#endif

enum { REPEAT_MAX = 1000 };

/* ---- The ranks ----------------------------------------------------------------------------- */

/* Who this process is; does not change after the start. */
static struct {
    int rank, ranks;
    int local; /* number among the ranks of this machine */
} world = {0, 1, 0};

static void world_start(int *argc, char ***argv)
{
#ifdef HRA_HAVE_MPI
    MPI_Comm machine;
    int level;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.ranks);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &world.local);
    MPI_Comm_free(&machine);
#else
    (void)argc;
    (void)argv;
#endif
}

static int world_end(int status)
{
#ifdef HRA_HAVE_MPI
    MPI_Finalize();
#endif
    return status;
}

/* Ends all ranks after a failure that the others may not know of. */
static _Noreturn void world_abort(void)
{
#ifdef HRA_HAVE_MPI
    MPI_Abort(MPI_COMM_WORLD, 1);
#endif
    exit(1);
}

/* Returns when all ranks have come. */
static void world_meet(void)
{
#ifdef HRA_HAVE_MPI
    MPI_Barrier(MPI_COMM_WORLD);
#endif
}

/* Each of x [count] becomes the largest over the ranks, on all of them. */
static void world_max(double *x, int count)
{
    (void)x;
    (void)count;
#ifdef HRA_HAVE_MPI
    MPI_Allreduce(MPI_IN_PLACE, x, count, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
#endif
}

static hra_status connect(hra_comm **out)
{
#ifdef HRA_HAVE_MPI
    if (world.ranks > 1)
        return hra_comm_create_mpi(out, MPI_COMM_WORLD, NULL);
#endif
    return hra_comm_create_self(out);
}

/* ---- Memory, failures, times --------------------------------------------------------------- */

static void *take(int64_t count, size_t bytes)
{
    void *memory = aligned_alloc(64, ((size_t)count * bytes / 64 + 1) * 64);
    if (memory == NULL) {
        fprintf(stderr, "hra-bench: no memory for %lld x %zu bytes\n", (long long)count, bytes);
        world_abort();
    }
    return memory;
}

/* What is asked is the same on every rank, and so is the answer that it cannot be: rank 0 gives it. Of other
 * failures each rank says what it knows. */
static void demand(hra_status status)
{
    const int wrong = status == HRA_ERR_ARG || status == HRA_ERR_UNSUPPORTED;

    if (status == HRA_OK)
        return;
    if (world.rank == 0 || !wrong)
        fprintf(stderr, "hra-bench: %s: %s\n", hra_status_name(status), hra_last_error());
    if (!wrong)
        world_abort();
    exit(world_end(2));
}

/* The same of the backend's memory and of what was enqueued there. */
static void need(int status)
{
    if (status == 0)
        return;
    fprintf(stderr, "hra-bench: %s\n", device_error());
    world_abort();
}

/* `bytes` where the backend computes. */
static void *take_there(size_t bytes)
{
    void *memory = device_alloc(bytes);
    need(memory == NULL ? -1 : 0);
    return memory;
}

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Times of one thing, in the order taken; after sort_times ascending, which median needs. */
struct times {
    double s[REPEAT_MAX];
    int count;
};

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sort_times(struct times *t)
{
    qsort(t->s, (size_t)t->count, sizeof(t->s[0]), by_value);
}

static double median(const struct times *t)
{
    return (t->s[(t->count - 1) / 2] + t->s[t->count / 2]) / 2;
}

/* ---- Forward and backward ------------------------------------------------------------------ */

/* Numbers drawn of a tensor; a longer one repeats them. It is prime, so that no two rows or heads are equal. */
enum { DRAWN = 4194301 };

/* `count` normal random numbers of a type, where the backend computes; series 0: uninitialised. */
static void *numbers(hra_type type, int64_t count, uint64_t series)
{
    const size_t size = hra_type_bytes(type);
    const int64_t drawn = count < DRAWN ? count : DRAWN;
    char *memory = take_there((size_t)count * size);

    if (series == 0)
        return memory;
    double *x = take(drawn, sizeof(*x));
    char *rounded = take(drawn, size);
    for (int64_t i = 0; i < drawn; i++)
        x[i] = random_normal(series, (uint64_t)i);
    demand(hra_convert(rounded, type, x, HRA_F64, drawn));
    for (int64_t i = 0; i < count; i += drawn)
        need(device_write(memory + (size_t)i * size, rounded,
                          (size_t)(count - i < drawn ? count - i : drawn) * size));
    free(x);
    free(rounded);
    return memory;
}

/* A tensor [batch][rows][heads][dim], with strides of whole 16 bytes, as GPUs want them. */
static hra_tensor tensor(const hra_problem *p, int64_t rows, int heads, int dim, uint64_t series)
{
    const int64_t unit = 16 / (int64_t)hra_type_bytes(p->type), head = (dim + unit - 1) / unit * unit;
    return (hra_tensor){.data = numbers(p->type, p->batch * rows * heads * head, series),
                        .stride_batch = rows * heads * head,
                        .stride_row = heads * head,
                        .stride_head = head};
}

/* The matrix product C = A B^T of square matrices, beside which all is timed. */
struct product {
    const char *name;
    int64_t n;
    void *a, *b, *c;
#ifdef HRA_HAVE_CUDA
    cublasHandle_t cublas; /* NULL on the host */
#endif
};

#ifdef HRA_HAVE_CUDA
static void need_cublas(cublasStatus_t status)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return;
    fprintf(stderr, "hra-bench: cuBLAS: %s\n", cublasGetStatusString(status));
    world_abort();
}
#endif

static struct product product_open(int on_gpu, uint64_t seed)
{
    struct product g = {.name = "sgemm 2048^3", .n = 2048};
    hra_type type = HRA_F32;

#ifdef HRA_HAVE_CUDA
    if (on_gpu) {
        g.name = "bf16 8192^3";
        g.n = 8192;
        type = HRA_BF16;
        need_cublas(cublasCreate(&g.cublas));
        need_cublas(cublasSetStream(g.cublas, device_stream()));
    }
#endif
    (void)on_gpu;
    g.a = numbers(type, g.n * g.n, seed + 5);
    g.b = numbers(type, g.n * g.n, seed + 6);
    g.c = numbers(type, g.n * g.n, 0);
    return g;
}

static void product_run(const struct product *g)
{
    const int n = (int)g->n;
#ifdef HRA_HAVE_CUDA
    const float one = 1, zero = 0;
    if (g->cublas != NULL) {
        need_cublas(cublasGemmEx(g->cublas, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, g->a, CUDA_R_16BF, n,
                                 g->b, CUDA_R_16BF, n, &zero, g->c, CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                                 CUBLAS_GEMM_DEFAULT));
        return;
    }
#endif
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, n, n, 1, g->a, n, g->b, n, 0, g->c, n);
}

static void product_close(struct product *g)
{
#ifdef HRA_HAVE_CUDA
    if (g->cublas != NULL)
        cublasDestroy(g->cublas);
#endif
    device_free(g->a);
    device_free(g->b);
    device_free(g->c);
}

/* A plan with everything that its calls read and write. */
struct layer {
    hra_plan *plan;
    hra_plan_info info;
    hra_tensor q, k, v, g, o, dq, dk, dv; /* g: gradient of o */
    void *lse, *workspace, *saved;
};

static void layer_open(struct layer *l, hra_comm *comm, const struct setup *s, uint64_t seed)
{
    const hra_problem *p = &s->problem;

    l->info.size = sizeof(l->info);
    demand(hra_plan_create(&l->plan, comm, p, s->order, s->mask, &s->options));
    demand(hra_plan_get_info(l->plan, &l->info));
    const int64_t rows = hra_plan_rows(l->plan, 0);
    l->q = tensor(p, rows, p->heads, p->dim, seed + 1);
    l->k = tensor(p, rows, p->heads_kv, p->dim, seed + 2);
    l->v = tensor(p, rows, p->heads_kv, p->dim_v, seed + 3);
    l->g = tensor(p, rows, p->heads, p->dim_v, seed + 4);
    l->o = tensor(p, rows, p->heads, p->dim_v, 0);
    l->dq = tensor(p, rows, p->heads, p->dim, 0);
    l->dk = tensor(p, rows, p->heads_kv, p->dim, 0);
    l->dv = tensor(p, rows, p->heads_kv, p->dim_v, 0);
    l->lse = numbers(hra_type_sums(p->type), p->batch * p->heads * rows, 0);
    l->workspace = take_there(l->info.workspace_bytes);
    l->saved = l->info.saved_bytes > 0 ? take_there(l->info.saved_bytes) : NULL;
}

static void layer_forward(struct layer *l)
{
    demand(hra_forward(l->plan, &l->q, &l->k, &l->v, &l->o, l->lse, l->workspace, l->saved, device_stream()));
}

static void layer_backward(struct layer *l)
{
    demand(hra_backward(l->plan, &l->q, &l->k, &l->v, &l->o, l->lse, &l->g, NULL, &l->dq, &l->dk, &l->dv,
                        l->workspace, l->saved, device_stream()));
}

static void layer_close(struct layer *l)
{
    void *const all[] = {l->q.data,  l->k.data,  l->v.data, l->g.data,    l->o.data, l->dq.data,
                         l->dk.data, l->dv.data, l->lse,    l->workspace, l->saved};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        device_free(all[i]);
    hra_plan_destroy(l->plan);
}

enum { PRODUCT, FORWARD, BACKWARD, PASSES };

/* The clock of the GPU while it does what was timed: for about half a second, which nvidia-smi takes to ask. -1: not
 * known. */
static int clock_at_work(struct layer *l, double step_s)
{
    if (device_name()[0] == '\0')
        return -1;
    for (double s = 0; s < 0.5; s += step_s + 1e-5) {
        layer_forward(l);
        layer_backward(l);
    }
    const int clock = device_clock_mhz();
    need(device_wait());
    return clock;
}

/* Everything is timed in turn, so that a drift of the machine falls on all alike. A GPU is not waited for within a
 * turn: the product hides what it costs to enqueue the rest, and leaves none of its tensors in the caches. */
static void measure(struct layer *l, const struct product *g, int repeat, struct times time[PASSES])
{
    const int on_gpu = device_name()[0] != '\0';

    for (int i = on_gpu ? -5 : -1; i < repeat; i++) { /* the first times warm up */
        if (i == 0)
            time[PRODUCT].count = time[FORWARD].count = time[BACKWARD].count = 0;
        need(device_mark(0));
        product_run(g);
        need(device_mark(1));
        /* OpenBLAS's own threads go on spinning for some 20 ms after a product, on cores that ours then lack. */
        if (!on_gpu)
            nanosleep(&(struct timespec){0, 100000000}, NULL);
        need(device_mark(2));
        layer_forward(l);
        need(device_mark(3));
        layer_backward(l);
        need(device_mark(4));
        need(device_wait());
        const int from[PASSES] = {0, 2, 3};
        for (int pass = 0; pass < PASSES; pass++) {
            struct times *t = &time[pass];
            need(device_between(&t->s[t->count], from[pass], from[pass] + 1));
            t->count++;
        }
    }
    for (int pass = 0; pass < PASSES; pass++)
        sort_times(&time[pass]);
}

/* What one pass came to. */
struct rates {
    const char *name;
    double live, tiles;    /* FLOP/s over pairs that attend, and over all pairs of live tiles */
    double us, of_product; /* a live tile; share of the product's rate */
};

static struct rates rate(const struct layer *l, const hra_problem *p, const struct product *g, int pass,
                         const struct times time[PASSES])
{
    static const char *const name[PASSES] = {NULL, "forward", "backward"};
    /* FLOP of a pair: 2 products of dim and dim_v channels forward, 5 backward, 2 FLOP each. */
    const double flop[PASSES] = {0, 2.0 * (p->dim + p->dim_v), 2.0 * (3 * p->dim + 2 * p->dim_v)};
    const double tiles = (double)(l->info.tiles_full + l->info.tiles_partial), n = (double)g->n;
    const double peak = 2 * n * n * n / median(&time[PRODUCT]), s = median(&time[pass]);

    if (pass == PRODUCT)
        return (struct rates){g->name, peak, peak, 0, 1};
    const double live = flop[pass] * (double)l->info.pairs_live / s;
    return (struct rates){name[pass], live, flop[pass] * (double)l->info.pairs_in_tiles / s,
                          tiles > 0 ? s / tiles * 1e6 : 0, live / peak};
}

static void print_json(const struct layer *l, const struct rates *r, const struct times *t, int clock,
                       const char *text)
{
    const hra_plan_info *info = &l->info;

    printf("{\"what\": \"%s\", \"problem\": \"%s\", \"backend\": \"%s\", \"backward\": \"%s\", "
           "\"device\": \"%s\", \"sm_mhz\": %d, \"threads\": %d, \"runs\": %d, \"median_s\": %.6g, "
           "\"min_s\": %.6g, \"max_s\": %.6g, \"gflops_live_pairs\": %.4g, \"gflops_live_tiles\": %.4g, "
           "\"live_tiles\": %" PRId64 ", \"us_per_tile\": %.4g, \"share_of_product\": %.4g, "
           "\"workspace_bytes\": %zu, \"saved_bytes\": %zu, \"arena_bytes\": %zu, \"plan_bytes\": %zu}\n",
           r->name, text, info->backend, info->backward, device_name(), clock, info->threads, t->count,
           median(t), t->s[0], t->s[t->count - 1], r->live * 1e-9, r->tiles * 1e-9,
           r->us > 0 ? info->tiles_full + info->tiles_partial : INT64_C(0), r->us, r->of_product,
           info->workspace_bytes, info->saved_bytes, info->arena_bytes, info->plan_bytes);
}

static void print_head(const struct layer *l, int clock, const char *text)
{
    const hra_plan_info *info = &l->info;
    const int on_gpu = device_name()[0] != '\0';
    char mhz[16] = "?";

    if (clock >= 0)
        snprintf(mhz, sizeof(mhz), "%d", clock);
    printf("%s\n", text);
    if (on_gpu)
        printf("%s, SM clock at work %s MHz, backward %s", device_name(), mhz, info->backward);
    else
        printf("%d thread%s", info->threads, info->threads == 1 ? "" : "s");
    printf(", density %.4f, tiles %" PRId64 " full + %" PRId64 " partial\n",
           (double)info->pairs_live / (double)info->pairs_all, info->tiles_full, info->tiles_partial);
    printf("MiB: workspace %.1f, saved %.1f, arena %.1f, plan on the host %.1f\n\n",
           (double)info->workspace_bytes * 0x1p-20, (double)info->saved_bytes * 0x1p-20,
           (double)info->arena_bytes * 0x1p-20, (double)info->plan_bytes * 0x1p-20);
    printf("%-14s %12s %12s %12s %12s %12s %12s %11s\n", "", "median ms", "least ms", "most ms",
           on_gpu ? "TFLOP/s" : "GFLOP/s", "in tiles", "us/tile", "of product");
}

static void bench_attention(const struct setup *s, uint64_t seed, int repeat, int json, const char *text)
{
    static struct times time[PASSES];
    struct layer l = {.plan = NULL};
    hra_comm *comm;

    demand(connect(&comm));
    layer_open(&l, comm, s, seed);
    const double unit = device_name()[0] != '\0' ? 1e-12 : 1e-9;
    openblas_set_num_threads(l.info.threads);
    struct product g = product_open(device_name()[0] != '\0', seed);
    measure(&l, &g, repeat, time);
    const int clock = clock_at_work(&l, median(&time[FORWARD]) + median(&time[BACKWARD]));
    if (!json)
        print_head(&l, clock, text);
    for (int pass = 0; pass < PASSES; pass++) {
        const struct rates r = rate(&l, &s->problem, &g, pass, time);
        const struct times *t = &time[pass];
        if (json)
            print_json(&l, &r, t, clock, text);
        else
            printf("%-14s %12.3f %12.3f %12.3f %12.1f %12.1f %12.2f %11.3f\n", r.name, median(t) * 1e3,
                   t->s[0] * 1e3, t->s[t->count - 1] * 1e3, r.live * unit, r.tiles * unit, r.us,
                   r.of_product);
    }
    product_close(&g);
    layer_close(&l);
    demand(hra_comm_destroy(comm));
}

/* ---- Reordering ---------------------------------------------------------------------------- */

enum { COPY, GATHER, SCATTER, WAYS };

static void print_ways(const struct times time[WAYS], double bytes, int json, const char *text)
{
    static const char *const name[WAYS] = {"copy", "gather", "scatter"};

    if (!json)
        printf("--reorder %s\n%s: %.1f MiB, read and written once\n\n%-14s %12s %12s %12s %12s %11s\n", text,
               device_name()[0] != '\0' ? device_name() : "host", bytes * 0x1p-20, "", "median ms",
               "least ms", "most ms", "GB/s", "of copy");
    for (int way = 0; way < WAYS; way++) {
        const struct times *t = &time[way];
        const double rate = 2e-9 * bytes / median(t), share = median(&time[COPY]) / median(t);
        if (json)
            printf(
                "{\"what\": \"%s\", \"problem\": \"%s\", \"device\": \"%s\", \"runs\": %d, \"bytes\": %.0f, "
                "\"median_s\": %.6g, \"min_s\": %.6g, \"max_s\": %.6g, \"gbytes_per_s\": %.4g, "
                "\"share_of_copy\": %.4g}\n",
                name[way], text, device_name(), t->count, bytes, median(t), t->s[0], t->s[t->count - 1], rate,
                share);
        else
            printf("%-14s %12.3f %12.3f %12.3f %12.1f %11.3f\n", name[way], median(t) * 1e3, t->s[0] * 1e3,
                   t->s[t->count - 1] * 1e3, rate, share);
    }
}

/* All tokens of q become the plan's rows and come back, in turn with a copy of as many bytes. */
static void bench_reorder(const struct setup *s, uint64_t seed, int repeat, int json, const char *text)
{
    static struct times time[WAYS];
    const hra_problem *p = &s->problem;
    hra_plan *plan;
    hra_comm *comm;

    demand(connect(&comm));
    demand(hra_plan_create(&plan, comm, p, s->order, s->mask, &s->options));
    const hra_tensor whole = tensor(p, p->tokens, p->heads, p->dim, seed + 1);
    const hra_tensor rows = tensor(p, p->tokens, p->heads, p->dim, 0);
    const size_t bytes = (size_t)(p->batch * whole.stride_batch) * hra_type_bytes(p->type);
    for (int i = -1; i < repeat; i++) { /* the first time warms up */
        for (int way = 0; i == 0 && way < WAYS; way++)
            time[way].count = 0;
        need(device_mark(COPY));
        need(device_copy(rows.data, whole.data, bytes));
        need(device_mark(GATHER));
        demand(hra_reorder(plan, HRA_GATHER, p->type, p->heads, p->dim, &whole, &rows, device_stream()));
        need(device_mark(SCATTER));
        demand(hra_reorder(plan, HRA_SCATTER, p->type, p->heads, p->dim, &whole, &rows, device_stream()));
        need(device_mark(WAYS));
        need(device_wait());
        for (int way = 0; way < WAYS; way++) {
            struct times *t = &time[way];
            need(device_between(&t->s[t->count++], way, way + 1));
        }
    }
    for (int way = 0; way < WAYS; way++)
        sort_times(&time[way]);
    print_ways(time, (double)bytes, json, text);
    device_free(whole.data);
    device_free(rows.data);
    hra_plan_destroy(plan);
    demand(hra_comm_destroy(comm));
}

/* ---- Plans --------------------------------------------------------------------------------- */

enum { ORDER, MASK, PLAN, ROWS };
enum { BITMAPS, PLAN_BYTES, ARENA_BYTES, ARENA_GROWN, MOSTS };

/* What is known of the making of plans. Times are the largest over the ranks. */
struct planning {
    struct times wall[ROWS]; /* from the moment that all ranks are ready to the return */
    struct times cpu[ROWS];  /* of all threads of a rank in that time; below wall where it lacks a core */
    struct times tile;       /* wall of a plan / live tiles of its busiest rank; 0 without any */
    double most[MOSTS];      /* largest over the plans, in the end over the ranks too; ARENA_GROWN: plans
                                for which the communicator took memory anew */
    hra_plan_info info;      /* of the last plan */
};

/* The moment at which a call begins. */
struct moment {
    double wall_s, cpu_s;
};

static struct moment begin(void)
{
    world_meet();
    return (struct moment){now_s(CLOCK_MONOTONIC), now_s(CLOCK_PROCESS_CPUTIME_ID)};
}

/* The call of this row that began then has returned `status`. Returns the seconds that it took. */
static double end(struct planning *p, int row, struct moment then, hra_status status)
{
    double took[2] = {now_s(CLOCK_MONOTONIC) - then.wall_s, now_s(CLOCK_PROCESS_CPUTIME_ID) - then.cpu_s};

    demand(status);
    world_max(took, 2);
    p->wall[row].s[p->wall[row].count++] = took[0];
    p->cpu[row].s[p->cpu[row].count++] = took[1];
    return took[0];
}

/* An order like the setup's. Returns the seconds that it took. */
static double time_order(struct planning *p, const struct setup *s, const char *name)
{
    const int drawn = strncmp(name, "random:", 7) == 0;
    hra_order *order = NULL;

    const struct moment then = begin();
    const hra_status status =
        drawn ? hra_order_permutation(&order, &s->domain, hra_order_slot_to_token(s->order))
              : hra_order_create(&order, &s->domain, name);
    const double took = end(p, ORDER, then, status);
    hra_order_destroy(order);
    return took;
}

/* Lengths of documents that fill `tokens`, each of 1 to 2 mean - 1 tokens, all equally likely, and the last
 * cut to fit: into out, which may be NULL. Returns their number. Integers only, so that all machines draw the
 * same. */
static int64_t draw_lengths(int64_t *out, int64_t tokens, int64_t mean, uint64_t series)
{
    int64_t count = 0;

    for (int64_t rest = tokens; rest > 0; count++) {
        const int64_t drawn = 1 + (int64_t)(random_bits(series, (uint64_t)count) % (uint64_t)(2 * mean - 1));
        const int64_t length = drawn < rest ? drawn : rest;
        if (out != NULL)
            out[count] = length;
        rest -= length;
    }
    return count;
}

/* The mask from its text. */
static hra_mask *time_text(struct planning *p, const struct setup *s, const char *text)
{
    hra_mask *mask = NULL;

    const struct moment then = begin();
    const hra_status status = hra_mask_parse(&mask, &s->domain, s->order, text);
    end(p, MASK, then, status);
    return mask;
}

/* docs(...) & the setup's mask, with documents of `mean` tokens drawn from `series`. */
static hra_mask *time_packed(struct planning *p, const struct setup *s, int64_t mean, uint64_t series)
{
    const int64_t count = draw_lengths(NULL, s->domain.tokens, mean, series);
    int64_t *length = take(count, sizeof(*length));
    hra_mask *docs = NULL, *mask = NULL;

    draw_lengths(length, s->domain.tokens, mean, series);
    const struct moment then = begin();
    hra_status status = hra_mask_docs(&docs, &s->domain, length, count);
    if (status == HRA_OK)
        status = hra_mask_and(&mask, docs, s->mask);
    end(p, MASK, then, status);
    hra_mask_destroy(docs);
    free(length);
    return mask;
}

/* Live tiles of the busiest rank. */
static double busiest(const hra_plan_info *info)
{
    return round(info->balance * (double)(info->tiles_full + info->tiles_partial) / world.ranks);
}

static void time_plan(struct planning *p, const struct setup *s, hra_comm *comm, const hra_mask *mask)
{
    hra_plan *plan = NULL;
    hra_plan_info info = {.size = sizeof(info)};

    const struct moment then = begin();
    const hra_status status = hra_plan_create(&plan, comm, &s->problem, s->order, mask, &s->options);
    const double took = end(p, PLAN, then, status);
    demand(hra_plan_get_info(plan, &info));
    hra_plan_destroy(plan);

    const double tiles = busiest(&info);
    p->tile.s[p->tile.count++] = tiles > 0 ? took / tiles : 0;
    p->most[ARENA_GROWN] += (double)info.arena_bytes > p->most[ARENA_BYTES];
    p->most[ARENA_BYTES] = fmax(p->most[ARENA_BYTES], (double)info.arena_bytes);
    p->most[PLAN_BYTES] = fmax(p->most[PLAN_BYTES], (double)info.plan_bytes);
    p->most[BITMAPS] = fmax(p->most[BITMAPS], (double)info.bitmaps);
    p->info = info;
}

/* Forget the warm-up, but for the arena, which the communicator keeps, and for an order that is too slow to
 * make again. */
static void restart(struct planning *p, int keep_order)
{
    for (int row = keep_order ? MASK : ORDER; row < ROWS; row++)
        p->wall[row].count = p->cpu[row].count = 0;
    p->tile.count = 0;
    p->most[ARENA_GROWN] = p->most[PLAN_BYTES] = p->most[BITMAPS] = 0;
}

/* packed: tokens of a document in the mean, 0 without documents. All times are sorted at the end. */
static void measure_plans(struct planning *p, const struct setup *s, const struct problem *problem,
                          int64_t packed, int repeat)
{
    const double slow_s = 1;
    double order_s = 0;
    hra_comm *comm;

    demand(connect(&comm));
    for (int i = -1; i < repeat; i++) { /* the first time warms up */
        if (i == 0)
            restart(p, order_s >= slow_s);
        if (order_s < slow_s)
            order_s = time_order(p, s, problem->order);
        const uint64_t series = random_bits(random_bits(problem->seed, 7), (uint64_t)(i + 1));
        hra_mask *mask = packed > 0 ? time_packed(p, s, packed, series) : time_text(p, s, problem->mask);
        time_plan(p, s, comm, mask);
        hra_mask_destroy(mask);
    }
    demand(hra_comm_destroy(comm));
    world_max(p->most, MOSTS);
    for (int row = 0; row < ROWS; row++) {
        sort_times(&p->wall[row]);
        sort_times(&p->cpu[row]);
    }
    sort_times(&p->tile);
}

static const char *const row_name[ROWS] = {"order", "mask", "plan"};

static void print_plans(const struct planning *p, int64_t packed, const char *text)
{
    const hra_plan_info *info = &p->info;
    const double all = (double)info->pairs_all;
    char documents[40] = "";

    if (packed > 0)
        snprintf(documents, sizeof(documents), " --packed %" PRId64, packed);
    printf("--plan%s %s\n%d rank%s, transport %s; %d pattern%s, density %.4g, %.4g in live tiles\n",
           documents, text, world.ranks, world.ranks == 1 ? "" : "s", info->transport, info->patterns,
           info->patterns == 1 ? "" : "s", (double)info->pairs_live / all,
           (double)info->pairs_in_tiles / all);
    printf("tiles %" PRId64 " full + %" PRId64
           " partial, %.0f on the busiest rank: balance %.3f, bound %.3f\n",
           info->tiles_full, info->tiles_partial, busiest(info), info->balance, info->balance_bound);
    printf("on one rank at most %.0f distinct bitmaps, plan %.0f bytes, arena %.0f bytes; the arena grew for "
           "%.0f of %d plans\n\n%-14s %12s %12s %12s %12s %12s\n",
           p->most[BITMAPS], p->most[PLAN_BYTES], p->most[ARENA_BYTES], p->most[ARENA_GROWN],
           p->wall[PLAN].count, "", "median ms", "least ms", "most ms", "CPU ms", "us/tile");
    for (int row = 0; row < ROWS; row++) {
        const struct times *t = &p->wall[row];
        printf("%-14s %12.3f %12.3f %12.3f %12.3f", row_name[row], median(t) * 1e3, t->s[0] * 1e3,
               t->s[t->count - 1] * 1e3, median(&p->cpu[row]) * 1e3);
        if (row == PLAN)
            printf(" %12.3f", median(&p->tile) * 1e6);
        printf("\n");
    }
}

static void print_plans_json(const struct planning *p, int64_t packed, const char *text)
{
    const hra_plan_info *info = &p->info;
    const double all = (double)info->pairs_all;

    for (int row = 0; row < ROWS; row++) {
        const struct times *t = &p->wall[row];
        printf("{\"what\": \"%s\", \"problem\": \"%s\", \"packed\": %" PRId64
               ", \"ranks\": %d, \"runs\": %d, \"median_s\": %.6g, \"min_s\": %.6g, \"max_s\": %.6g, "
               "\"cpu_median_s\": %.6g",
               row_name[row], text, packed, world.ranks, t->count, median(t), t->s[0], t->s[t->count - 1],
               median(&p->cpu[row]));
        if (row == PLAN)
            printf(", \"us_per_tile\": %.4g, \"tiles_full\": %" PRId64 ", \"tiles_partial\": %" PRId64
                   ", \"tiles_busiest\": %.0f, \"balance\": %.6g, \"balance_bound\": %.6g, \"patterns\": %d, "
                   "\"density\": %.6g, \"density_tiles\": %.6g, \"bitmaps\": %.0f, \"plan_bytes\": %.0f, "
                   "\"arena_bytes\": %.0f, \"arena_grown\": %.0f",
                   median(&p->tile) * 1e6, info->tiles_full, info->tiles_partial, busiest(info),
                   info->balance, info->balance_bound, info->patterns, (double)info->pairs_live / all,
                   (double)info->pairs_in_tiles / all, p->most[BITMAPS], p->most[PLAN_BYTES],
                   p->most[ARENA_BYTES], p->most[ARENA_GROWN]);
        printf("}\n");
    }
}

/* ---- The command line ---------------------------------------------------------------------- */

struct arguments {
    struct problem problem;
    int64_t packed; /* tokens of a document in the mean; 0 without documents */
    int repeat, json, plan, reorder;
};

/* Options beside those of a problem. */
enum { OWN_OPTIONS = 5 };

static int usage(const char *why)
{
    if (world.rank == 0)
        fprintf(stderr, "hra-bench: %s\n", why);
    return 2;
}

static void help(const struct option *options, int count)
{
    printf(
        "usage: hra-bench [OPTION VALUE]...\n"
        "       [mpirun -n RANKS] hra-bench --plan [OPTION VALUE]...\n"
        "Times forward and backward on one rank, beside a product of two 2048 x 2048 f32 matrices, or with\n"
        "--backend cuda of two 8192 x 8192 bf16 matrices by cuBLAS. Rates count the pairs that attend:\n"
        "2 (dim + dim_v) FLOP a pair forward, 2 (3 dim + 2 dim_v) backward; in tiles: all pairs of live "
        "tiles.\n"
        "On a GPU times are those of events on the stream, after five turns that are not counted; the "
        "product\n"
        "before each forward has emptied the caches of its tensors.\n"
        "With --reorder: q from token order to the plan's and back, beside a copy of as many bytes.\n"
        "With --plan: the making of the order (once only where it takes a second), of the mask, and of a\n"
        "plan on a communicator that has had one. Times are those of the slowest rank, CPU of the one that\n"
        "used most. Where heads or sequences share a mask it is compiled once and its tiles count for each:\n"
        "us/tile is of use with --heads 1. What is said of tiles and balance is of the last plan.\n\n");
    options_print(options, count);
}

static void bench(const struct arguments *a)
{
    static struct planning planning;
    struct setup s = {.order = NULL};
    char *text = problem_text(&a->problem);
    const char *shown = text == NULL ? "" : text;

    need(device_open(a->problem.backend, world.local));
    demand(setup_create(&s, &a->problem));
    if (a->reorder)
        bench_reorder(&s, a->problem.seed, a->repeat, a->json, shown);
    else if (!a->plan)
        bench_attention(&s, a->problem.seed, a->repeat, a->json, shown);
    else {
        measure_plans(&planning, &s, &a->problem, a->packed, a->repeat);
        if (world.rank == 0 && a->json)
            print_plans_json(&planning, a->packed, shown);
        else if (world.rank == 0)
            print_plans(&planning, a->packed, shown);
    }
    setup_destroy(&s);
    device_close();
    free(text);
}

/* Everything between MPI's start and end. Returns the exit status. */
static int run(int argc, char **argv, struct arguments *a)
{
    struct option options[PROBLEM_OPTIONS + OWN_OPTIONS];
    const int shared = problem_options(options, &a->problem);
    const struct option own[OWN_OPTIONS] = {
        {"repeat", "N", "times that are counted, after those that warm up (default 7)", OPTION_INT,
         &a->repeat, 1, REPEAT_MAX - 1, NULL, 0},
        {"json", NULL, "one line of JSON for each row instead of the table", OPTION_FLAG, &a->json, 0, 0,
         NULL, 0},
        {"plan", NULL, "time the making of plans, on any number of ranks", OPTION_FLAG, &a->plan, 0, 0, NULL,
         0},
        {"reorder", NULL, "time the gathering and scattering of q instead, beside a copy", OPTION_FLAG,
         &a->reorder, 0, 0, NULL, 0},
        {"packed", "MEAN", "with --plan: other documents of MEAN tokens for each plan, & --mask",
         OPTION_INT64, &a->packed, 1, INT64_C(1) << 40, NULL, 0},
    };
    char why[512];

    memcpy(options + shared, own, sizeof(own));
    const int parsed = options_parse(options, shared + OWN_OPTIONS, argc, argv, why, sizeof(why));
    if (parsed == 1) {
        if (world.rank == 0)
            help(options, shared + OWN_OPTIONS);
        return 0;
    }
    if (parsed != 0 || problem_complete(&a->problem, why, sizeof(why)) != 0)
        return usage(why);
    if (a->packed > 0 && !a->plan)
        return usage("--packed: documents are for --plan, which is not given");
    if (a->reorder && a->plan)
        return usage("--reorder: --plan is given too, and only one of them can be timed");
    if (world.ranks > 1 && !a->plan) {
        snprintf(why, sizeof(why), "here are %d ranks; all but --plan is timed on one", world.ranks);
        return usage(why);
    }
    bench(a);
    return 0;
}

int main(int argc, char **argv)
{
    struct arguments a = {.problem = PROBLEM_DEFAULT, .repeat = 7};

    world_start(&argc, &argv);
    const int result = run(argc, argv, &a);
    problem_free(&a.problem);
    return world_end(result);
}

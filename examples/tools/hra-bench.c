/* hra-bench.c - times forward and backward on one rank, beside a matrix product of the same BLAS with the
 * same threads in the same run; with --plan, the making of orders, masks and plans on any number of ranks. */
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

enum { SGEMM = 2048, REPEAT_MAX = 1000 };

/* ---- The ranks ----------------------------------------------------------------------------- */

/* Who this process is; does not change after the start. */
static struct {
    int rank, ranks;
} world = {0, 1};

static void world_start(int *argc, char ***argv)
{
#ifdef HRA_HAVE_MPI
    int level;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.ranks);
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

/* A tensor [batch][rows][heads][dim] of normal random numbers; series 0: uninitialised. */
static hra_tensor tensor(const hra_problem *p, int64_t rows, int heads, int dim, uint64_t series)
{
    const int64_t count = p->batch * rows * heads * dim;
    hra_tensor t = {.data = take(count, hra_type_bytes(p->type)),
                    .stride_batch = rows * heads * dim,
                    .stride_row = (int64_t)heads * dim,
                    .stride_head = dim};
    for (int64_t i = 0; series != 0 && i < count; i++) {
        const double x = random_normal(series, (uint64_t)i);
        demand(hra_convert((char *)t.data + (size_t)i * hra_type_bytes(p->type), p->type, &x, HRA_F64, 1));
    }
    return t;
}

/* Operands of the matrix product. */
struct product {
    float *a, *b, *c;
};

static void time_product(struct times *t, struct product *g)
{
    const double begin = now_s(CLOCK_MONOTONIC);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SGEMM, SGEMM, SGEMM, 1, g->a, SGEMM, g->b, SGEMM, 0,
                g->c, SGEMM);
    t->s[t->count++] = now_s(CLOCK_MONOTONIC) - begin;
}

/* Everything is timed in turn, so that a drift of the machine falls on all alike. */
static void measure(hra_plan *plan, const hra_plan_info *info, const hra_problem *p, uint64_t seed,
                    int repeat, struct times time[3])
{
    const int64_t rows = hra_plan_rows(plan, 0);
    const hra_tensor q = tensor(p, rows, p->heads, p->dim, seed + 1),
                     k = tensor(p, rows, p->heads_kv, p->dim, seed + 2);
    const hra_tensor v = tensor(p, rows, p->heads_kv, p->dim_v, seed + 3);
    const hra_tensor g = tensor(p, rows, p->heads, p->dim_v, seed + 4),
                     o = tensor(p, rows, p->heads, p->dim_v, 0);
    const hra_tensor dq = tensor(p, rows, p->heads, p->dim, 0), dk = tensor(p, rows, p->heads_kv, p->dim, 0);
    const hra_tensor dv = tensor(p, rows, p->heads_kv, p->dim_v, 0);
    void *lse = take((int64_t)p->batch * p->heads * rows, hra_type_bytes(hra_type_sums(p->type)));
    void *workspace = take((int64_t)info->workspace_bytes, 1);
    struct product product = {take(SGEMM * SGEMM, sizeof(float)), take(SGEMM * SGEMM, sizeof(float)),
                              take(SGEMM * SGEMM, sizeof(float))};

    for (int64_t i = 0; i < SGEMM * SGEMM; i++) {
        product.a[i] = (float)random_normal(seed + 5, (uint64_t)i);
        product.b[i] = (float)random_normal(seed + 6, (uint64_t)i);
    }
    openblas_set_num_threads(info->threads);
    for (int i = -1; i < repeat; i++) { /* the first time warms up */
        if (i == 0)
            time[0].count = time[1].count = time[2].count = 0;
        time_product(&time[0], &product);
        /* OpenBLAS's own threads go on spinning for some 20 ms after a product, on cores that ours then lack. */
        nanosleep(&(struct timespec){0, 100000000}, NULL);
        const double begin = now_s(CLOCK_MONOTONIC);
        demand(hra_forward(plan, &q, &k, &v, &o, lse, workspace, NULL, NULL));
        const double middle = now_s(CLOCK_MONOTONIC);
        demand(hra_backward(plan, &q, &k, &v, &o, lse, &g, NULL, &dq, &dk, &dv, workspace, NULL, NULL));
        time[1].s[time[1].count++] = middle - begin;
        time[2].s[time[2].count++] = now_s(CLOCK_MONOTONIC) - middle;
    }
    void *const all[] = {q.data,  k.data, v.data,    g.data,    o.data,    dq.data,  dk.data,
                         dv.data, lse,    workspace, product.a, product.b, product.c};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

static void report(const hra_plan_info *info, const hra_problem *p, struct times time[3], int json,
                   const char *text)
{
    static const char *const name[3] = {"sgemm 2048^3", "forward", "backward"};
    const double tiles = (double)(info->tiles_full + info->tiles_partial);
    const double pairs[3] = {0, (double)info->pairs_live, (double)info->pairs_live};
    /* FLOP of a pair: 2 products of dim and dim_v channels forward, 5 backward, 2 FLOP each. */
    const double flop[3] = {2.0 * SGEMM * SGEMM * SGEMM, 2.0 * (p->dim + p->dim_v),
                            2.0 * (3 * p->dim + 2 * p->dim_v)};

    for (int i = 0; i < 3; i++)
        sort_times(&time[i]);
    const double peak = flop[0] / median(&time[0]);

    if (!json)
        printf("%s\n%d thread%s, density %.4f, tiles %lld full + %lld partial\n\n%-14s %12s %12s %12s %12s "
               "%12s %8s\n",
               text, info->threads, info->threads == 1 ? "" : "s",
               (double)info->pairs_live / (double)info->pairs_all, (long long)info->tiles_full,
               (long long)info->tiles_partial, "", "median ms", "least ms", "most ms", "GFLOP/s", "us/tile",
               "of sgemm");
    for (int i = 0; i < 3; i++) {
        const double s = median(&time[i]), rate = (i == 0 ? flop[0] : flop[i] * pairs[i]) / s;
        if (json)
            printf(
                "{\"what\": \"%s\", \"problem\": \"%s\", \"threads\": %d, \"runs\": %d, \"median_s\": %.6g, "
                "\"min_s\": %.6g, \"max_s\": %.6g, \"gflops_live_pairs\": %.4g, \"live_tiles\": %.0f, "
                "\"us_per_tile\": %.4g, \"share_of_sgemm\": %.4g}\n",
                name[i], text, info->threads, time[i].count, s, time[i].s[0], time[i].s[time[i].count - 1],
                rate * 1e-9, i == 0 ? 0 : tiles, i == 0 ? 0 : s / tiles * 1e6, rate / peak);
        else if (i == 0)
            printf("%-14s %12.3f %12.3f %12.3f %12.1f %12s %8s\n", name[i], s * 1e3, time[i].s[0] * 1e3,
                   time[i].s[time[i].count - 1] * 1e3, rate * 1e-9, "", "");
        else
            printf("%-14s %12.3f %12.3f %12.3f %12.1f %12.2f %8.3f\n", name[i], s * 1e3, time[i].s[0] * 1e3,
                   time[i].s[time[i].count - 1] * 1e3, rate * 1e-9, tiles > 0 ? s / tiles * 1e6 : 0,
                   rate / peak);
    }
}

static void bench_attention(const struct setup *s, uint64_t seed, int repeat, int json, const char *text)
{
    static struct times time[3];
    hra_comm *comm;
    hra_plan *plan;
    hra_plan_info info = {.size = sizeof(info)};

    demand(connect(&comm));
    demand(hra_plan_create(&plan, comm, &s->problem, s->order, s->mask, &s->options));
    demand(hra_plan_get_info(plan, &info));
    measure(plan, &info, &s->problem, seed, repeat, time);
    report(&info, &s->problem, time, json, text);
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
    int repeat, json, plan;
};

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
        "Times forward and backward on one rank, beside a product of two 2048 x 2048 f32 matrices. Rates\n"
        "count the pairs that attend: 2 (dim + dim_v) FLOP a pair forward, 2 (3 dim + 2 dim_v) backward.\n"
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

    demand(setup_create(&s, &a->problem));
    if (!a->plan)
        bench_attention(&s, a->problem.seed, a->repeat, a->json, shown);
    else {
        measure_plans(&planning, &s, &a->problem, a->packed, a->repeat);
        if (world.rank == 0 && a->json)
            print_plans_json(&planning, a->packed, shown);
        else if (world.rank == 0)
            print_plans(&planning, a->packed, shown);
    }
    setup_destroy(&s);
    free(text);
}

/* Everything between MPI's start and end. Returns the exit status. */
static int run(int argc, char **argv, struct arguments *a)
{
    struct option options[PROBLEM_OPTIONS + 4];
    const int shared = problem_options(options, &a->problem);
    const struct option own[] = {
        {"repeat", "N", "times that are counted, after one that is not (default 7)", OPTION_INT, &a->repeat,
         1, REPEAT_MAX - 1, NULL, 0},
        {"json", NULL, "one line of JSON for each row instead of the table", OPTION_FLAG, &a->json, 0, 0,
         NULL, 0},
        {"plan", NULL, "time the making of plans, on any number of ranks", OPTION_FLAG, &a->plan, 0, 0, NULL,
         0},
        {"packed", "MEAN", "with --plan: other documents of MEAN tokens for each plan, & --mask",
         OPTION_INT64, &a->packed, 1, INT64_C(1) << 40, NULL, 0},
    };
    char why[512];

    memcpy(options + shared, own, sizeof(own));
    const int parsed = options_parse(options, shared + 4, argc, argv, why, sizeof(why));
    if (parsed == 1) {
        if (world.rank == 0)
            help(options, shared + 4);
        return 0;
    }
    if (parsed != 0 || problem_complete(&a->problem, why, sizeof(why)) != 0)
        return usage(why);
    if (a->packed > 0 && !a->plan)
        return usage("--packed: documents are for --plan, which is not given");
    if (world.ranks > 1 && !a->plan) {
        snprintf(why, sizeof(why),
                 "here are %d ranks; forward and backward are timed on one, only --plan on more",
                 world.ranks);
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

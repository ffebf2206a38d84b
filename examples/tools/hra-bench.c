/* hra-bench.c - times forward and backward on one rank, beside a matrix product of the same BLAS with the same
 * threads in the same run. */
#include "examples/tools/problem.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SGEMM = 2048, REPEAT_MAX = 1000 };

static void *take(int64_t count, size_t bytes)
{
    void *memory = aligned_alloc(64, ((size_t)count * bytes / 64 + 1) * 64);
    if (memory == NULL) {
        fprintf(stderr, "hra-bench: no memory for %lld x %zu bytes\n", (long long)count, bytes);
        exit(1);
    }
    return memory;
}

static void demand(hra_status status)
{
    if (status == HRA_OK)
        return;
    fprintf(stderr, "hra-bench: %s: %s\n", hra_status_name(status), hra_last_error());
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
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
    const double begin = now_s();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SGEMM, SGEMM, SGEMM, 1, g->a, SGEMM, g->b, SGEMM, 0,
                g->c, SGEMM);
    t->s[t->count++] = now_s() - begin;
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
        const double begin = now_s();
        demand(hra_forward(plan, &q, &k, &v, &o, lse, workspace, NULL, NULL));
        const double middle = now_s();
        demand(hra_backward(plan, &q, &k, &v, &o, lse, &g, NULL, &dq, &dk, &dv, workspace, NULL, NULL));
        time[1].s[time[1].count++] = middle - begin;
        time[2].s[time[2].count++] = now_s() - middle;
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

int main(int argc, char **argv)
{
    struct problem problem = PROBLEM_DEFAULT;
    struct option option[PROBLEM_OPTIONS + 2];
    struct setup setup = {.order = NULL};
    static struct times time[3];
    int repeat = 7, json = 0, options = problem_options(option, &problem);
    char error[512];
    hra_comm *comm;
    hra_plan *plan;
    hra_plan_info info = {.size = sizeof(info)};

    option[options++] = (struct option){.name = "repeat",
                                        .what = "N",
                                        .help = "times that are counted, after one that is not (default 7)",
                                        .kind = OPTION_INT,
                                        .at = &repeat,
                                        .min = 1,
                                        .max = REPEAT_MAX - 1};
    option[options++] = (struct option){.name = "json",
                                        .help = "one line of JSON for each row instead of the table",
                                        .kind = OPTION_FLAG,
                                        .at = &json};
    const int parsed = options_parse(option, options, argc, argv, error, sizeof(error));
    if (parsed == 1) {
        printf("usage: hra-bench [OPTION VALUE]...\nTimes forward and backward on one rank, beside a product "
               "of two "
               "2048 x 2048 f32 matrices. Rates count the pairs\nthat attend: 2 (dim + dim_v) FLOP a pair "
               "forward, "
               "2 (3 dim + 2 dim_v) backward.\n\n");
        options_print(option, options);
        return 0;
    }
    if (parsed < 0 || problem_complete(&problem, error, sizeof(error)) < 0) {
        fprintf(stderr, "hra-bench: %s\n", error);
        return 2;
    }
    if (setup_create(&setup, &problem) != HRA_OK) {
        fprintf(stderr, "hra-bench: %s\n", hra_last_error());
        return 2;
    }
    demand(hra_comm_create_self(&comm));
    demand(hra_plan_create(&plan, comm, &setup.problem, setup.order, setup.mask, &setup.options));
    demand(hra_plan_get_info(plan, &info));
    char *text = problem_text(&problem);
    measure(plan, &info, &setup.problem, problem.seed, repeat, time);
    report(&info, &setup.problem, time, json, text == NULL ? "" : text);
    free(text);
    hra_plan_destroy(plan);
    demand(hra_comm_destroy(comm));
    setup_destroy(&setup);
    problem_free(&problem);
    return 0;
}

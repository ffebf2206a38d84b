/* bench.c - failures, and the things that hra-bench times. */
#include "examples/tools/bench.h"
#include "examples/tools/device.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef HRA_HAVE_CUDA
#include <cublas_v2.h>
#endif

/* ---- Failures and memory ------------------------------------------------------------------- */

void demand(hra_status status)
{
    const int wrong = status == HRA_ERR_ARG || status == HRA_ERR_UNSUPPORTED;

    if (status == HRA_OK)
        return;
    if (!wrong)
        world_abort(hra_status_name(status), hra_last_error());
    if (world.rank == 0)
        fprintf(stderr, "hra-bench: %s: %s\n", hra_status_name(status), hra_last_error());
    exit(world_end(2));
}

void need_of(int status, const char *what, const char *why)
{
    if (status != 0)
        world_abort(what, why);
}

void need(int status)
{
    need_of(status, "memory or work of the backend", device_error());
}

void *take(int64_t count, size_t bytes)
{
    void *memory = aligned_alloc(64, ((size_t)count * bytes / 64 + 1) * 64);
    char why[64];

    snprintf(why, sizeof(why), "for %lld x %zu bytes", (long long)count, bytes);
    if (memory == NULL)
        world_abort("no memory", why);
    return memory;
}

/* ---- Tensors ------------------------------------------------------------------------------- */

/* Numbers drawn of a tensor; a longer one repeats them. It is prime, so that no two rows or heads are equal. */
enum { DRAWN = 4194301 };

void *numbers(hra_type type, int64_t count, uint64_t series)
{
    const size_t size = hra_type_bytes(type);
    const int64_t drawn = count < DRAWN ? count : DRAWN;
    char *memory = device_alloc((size_t)count * size);

    if (series == 0 || memory == NULL)
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

hra_tensor tensor(const hra_problem *p, int64_t rows, int heads, int dim, uint64_t series)
{
    const int64_t unit = 16 / (int64_t)hra_type_bytes(p->type), head = (dim + unit - 1) / unit * unit;
    return (hra_tensor){.data = numbers(p->type, p->batch * rows * heads * head, series),
                        .stride_batch = rows * heads * head,
                        .stride_row = heads * head,
                        .stride_head = head};
}

/* ---- The product --------------------------------------------------------------------------- */

#ifdef HRA_HAVE_CUDA
static void need_cublas(cublasStatus_t status)
{
    need_of(status == CUBLAS_STATUS_SUCCESS ? 0 : -1, "cuBLAS", cublasGetStatusString(status));
}
#endif

void product_open(struct product *out, int threads, uint64_t seed)
{
    struct product g = {.name = "sgemm 2048^3", .n = 2048};
    hra_type type = HRA_F32;

#ifdef HRA_HAVE_CUDA
    if (device_stream() != NULL) {
        cublasHandle_t cublas;
        g.name = "bf16 8192^3";
        g.n = 8192;
        type = HRA_BF16;
        need_cublas(cublasCreate(&cublas));
        need_cublas(cublasSetStream(cublas, device_stream()));
        g.cublas = cublas;
    }
#endif
    openblas_set_num_threads(threads);
    g.a = numbers(type, g.n * g.n, seed + 5);
    g.b = numbers(type, g.n * g.n, seed + 6);
    g.c = numbers(type, g.n * g.n, 0);
    need(g.a == NULL || g.b == NULL || g.c == NULL ? -1 : 0);
    *out = g;
}

void product_run(const struct product *g)
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

void product_close(struct product *g)
{
#ifdef HRA_HAVE_CUDA
    if (g->cublas != NULL)
        cublasDestroy(g->cublas);
#endif
    device_free(g->a);
    device_free(g->b);
    device_free(g->c);
}

/* ---- Layers -------------------------------------------------------------------------------- */

int layer_open(struct layer *l, hra_comm *comm, const struct setup *s, uint64_t seed)
{
    const hra_problem *p = &s->problem;

    *l = (struct layer){.info.size = sizeof(l->info)};
    demand(hra_plan_create(&l->plan, comm, p, s->order, s->mask, &s->options));
    demand(hra_plan_get_info(l->plan, &l->info));
    const int64_t rows = hra_plan_rows(l->plan, hra_comm_rank(comm));
    const struct {
        hra_tensor *out;
        int heads, dim;
        uint64_t series;
    } all[] = {{&l->q, p->heads, p->dim, seed + 1},      {&l->k, p->heads_kv, p->dim, seed + 2},
               {&l->v, p->heads_kv, p->dim_v, seed + 3}, {&l->g, p->heads, p->dim_v, seed + 4},
               {&l->o, p->heads, p->dim_v, 0},           {&l->dq, p->heads, p->dim, 0},
               {&l->dk, p->heads_kv, p->dim, 0},         {&l->dv, p->heads_kv, p->dim_v, 0}};
    int lacks = 0;

    for (size_t i = 0; !lacks && i < sizeof(all) / sizeof(all[0]); i++) {
        *all[i].out = tensor(p, rows, all[i].heads, all[i].dim, all[i].series);
        lacks = all[i].out->data == NULL;
    }
    if (!lacks)
        lacks = (l->lse = numbers(hra_type_sums(p->type), p->batch * p->heads * rows, 0)) == NULL;
    if (!lacks)
        lacks = (l->workspace = device_alloc(l->info.workspace_bytes)) == NULL;
    if (!lacks && l->info.saved_bytes > 0)
        lacks = (l->saved = device_alloc(l->info.saved_bytes)) == NULL;
    if (lacks)
        layer_close(l);
    return lacks ? -1 : 0;
}

void open_gate(hra_hops **out, hra_comm *comm)
{
    demand(hra_hops_create(out, comm, 1, world.ranks - 1));
}

void fall_in(hra_hops *gate)
{
    if (world.ranks == 1)
        return;
    if (gate != NULL) {
        demand(hra_hops_run(gate, device_stream()));
        return;
    }
    need(device_wait());
    world_meet();
}

void finish(hra_comm *comm)
{
    if (world.ranks > 1)
        demand(hra_comm_wait(comm, device_stream()));
    need(device_wait());
}

void layer_forward(struct layer *l)
{
    demand(hra_forward(l->plan, &l->q, &l->k, &l->v, &l->o, l->lse, l->workspace, l->saved, device_stream()));
}

void layer_backward(struct layer *l)
{
    demand(hra_backward(l->plan, &l->q, &l->k, &l->v, &l->o, l->lse, &l->g, NULL, &l->dq, &l->dk, &l->dv,
                        l->workspace, l->saved, device_stream()));
}

void layer_close(struct layer *l)
{
    void *const all[] = {l->q.data,  l->k.data,  l->v.data, l->g.data,    l->o.data, l->dq.data,
                         l->dk.data, l->dv.data, l->lse,    l->workspace, l->saved};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        device_free(all[i]);
    hra_plan_destroy(l->plan);
    *l = (struct layer){.plan = NULL};
}

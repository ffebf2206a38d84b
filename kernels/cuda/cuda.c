/* cuda.c - the portable CUDA backend: cuBLAS's batched products over blocks of tiles, around the small kernels of
 * hybrid.cu. Right for every mask, head size and type; what it costs is that scores and probabilities pass through memory.
 *
 * Forward, for each slab of blocks (blocks.h), all on the caller's stream:
 *     S = scale Q K^T     P = exp(S - rowmax)     O_b = P V     merge the O_b of each row into the running output
 * Backward:
 *     S, dP = dO V^T      P = exp(S - LSE), dS = P (dP - delta)      dV += P^T dO, dK += dS^T Q, dQ += dS K
 * P and dS are written over S and dP, row by row. Everything that depends on the plan alone (blocks, which rows share
 * them) is laid out when the plan is made, so that a call enqueues and does nothing else. */
#include "src/cuda.h"
#include "kernels/cuda/blocks.h"
#include "kernels/cuda/hybrid.h"

#include <cublas_v2.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HRA_TRY_CUBLAS(call)                                                                                 \
    do {                                                                                                     \
        cublasStatus_t try_ = (call);                                                                        \
        if (try_ != CUBLAS_STATUS_SUCCESS)                                                                   \
            return HRA_FAIL(HRA_ERR_CUDA, "%s: %s", #call, blas.text(try_));                                 \
    } while (0)

/* Scratch for cuBLAS, so that its products allocate nothing; batched ones hardly use any. */
enum { BLAS_BYTES = 4 << 20 };

/* cuBLAS is looked for when the first CUDA plan is made: linked, it costs every process that loads libhra a tenth of a
 * second, and CPU machines that lack it the whole library. */
static struct {
    __typeof__(cublasCreate) *create;
    __typeof__(cublasDestroy) *destroy;
    __typeof__(cublasSetStream) *stream;
    __typeof__(cublasSetWorkspace) *workspace;
    __typeof__(cublasGemmBatchedEx) *multiply;
    __typeof__(cublasGetStatusString) *text;
    char missing[200]; /* what could not be had; "" */
} blas;

static void find_blas(void)
{
    static const struct {
        const char *name;
        void *to;
    } functions[] = {{"cublasCreate_v2", &blas.create},       {"cublasDestroy_v2", &blas.destroy},
                     {"cublasSetStream_v2", &blas.stream},    {"cublasSetWorkspace_v2", &blas.workspace},
                     {"cublasGemmBatchedEx", &blas.multiply}, {"cublasGetStatusString", &blas.text}};
    char name[40];

    snprintf(name, sizeof(name), "libcublas.so.%d", CUBLAS_VER_MAJOR);
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(blas.missing, sizeof(blas.missing), "%s", dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *const found = dlsym(library, functions[i].name);
        if (found == NULL)
            snprintf(blas.missing, sizeof(blas.missing), "%s has no %s", name, functions[i].name);
        memcpy(functions[i].to, &found, sizeof(found));
    }
}

/* What one pattern has in one chunk of one run. */
struct work {
    struct hra_slabs slabs;
    int64_t pairs; /* (batch, head) pairs that have the pattern, in numbers */
    int count;
};

struct cuda {
    struct hra_kernel_plan *plan;
    struct hra_device_plan device;
    cublasHandle_t blas;
    struct hra_numbers numbers; /* until they are in device memory */
    struct work *work[2];       /* by hra_pass: [shapes][patterns] */
    int *run_shape[2];          /* [runs] first shape of a run */
    int shapes[2];
    int *ends[2][2]; /* by hra_pass: first, last; device memory */
    int64_t *token;  /* [rows] device memory */
    void *memory[5]; /* device memory that close gives back */
};

/* ---- Sizes and scratch ---- */

static int padded(int dim, hra_type type)
{
    const int piece = 16 / (int)hra_type_bytes(type);
    return (dim + piece - 1) / piece * piece;
}

static int whole_blocks(int tiles)
{
    return (tiles + HRA_EDGE - 1) / HRA_EDGE * HRA_EDGE;
}

/* Tiles of a slab at most: no more than a small problem has. Those of mixtures, which may have more, come in more slabs. */
static int slab_tiles(const struct hra_kernel_plan *p)
{
    const int64_t all =
        (int64_t)p->batch * p->heads * whole_blocks(p->queries) * whole_blocks(p->chunk_tiles);
    return all < HRA_SLAB ? (int)(all > 0 ? all : HRA_EDGE * HRA_EDGE) : HRA_SLAB;
}

/* Give out `bytes` of memory that begins at base; sizes only where base is NULL. */
static void *carve(char *base, size_t *used, size_t bytes)
{
    void *at = base == NULL ? NULL : base + *used;
    *used += (bytes + 255) / 256 * 256;
    return at;
}

/* The scratch of a pass in `base`; the bytes of it all. */
static size_t lay_out(struct hra_scratch *s, const struct hra_kernel_plan *p, hra_pass pass, char *base)
{
    const size_t bytes = hra_type_bytes(p->type), tile = HRA_TILE;
    const size_t wide = (size_t)padded(p->dim, p->type), wide_v = (size_t)padded(p->dim_v, p->type);
    const size_t most = wide > wide_v ? wide : wide_v;
    const size_t pairs = (size_t)p->batch * (size_t)p->heads;
    const size_t queries = pairs * (size_t)(p->queries + HRA_EDGE) * tile;
    const size_t keys = (size_t)p->batch * (size_t)p->heads_kv * (size_t)whole_blocks(p->chunk_tiles) * tile;
    const size_t slab = (size_t)slab_tiles(p), scores = slab * tile * tile, parts = slab * tile * most;
    size_t used = 0;

    memset(s, 0, sizeof(*s));
    s->sums = carve(base, &used, queries * (pass == HRA_FORWARD ? wide_v : wide) * sizeof(float));
    s->q = carve(base, &used, queries * wide * bytes);
    s->k = carve(base, &used, keys * wide * bytes);
    s->v = carve(base, &used, keys * wide_v * bytes);
    s->scores = carve(base, &used, scores * sizeof(float));
    s->part_a = carve(base, &used, parts * sizeof(float));
    s->pointers = carve(base, &used, HRA_POINTERS * slab * sizeof(void *));
    s->blas = carve(base, &used, BLAS_BYTES);
    if (pass == HRA_FORWARD) {
        s->max = carve(base, &used, queries * sizeof(float));
        s->total = carve(base, &used, queries * sizeof(float));
        s->part_max = carve(base, &used, slab * tile * sizeof(float));
        s->part_sum = carve(base, &used, slab * tile * sizeof(float));
        return used;
    }
    s->do_ = carve(base, &used, queries * wide_v * bytes);
    s->dp = carve(base, &used, scores * sizeof(float));
    s->part_b = carve(base, &used, parts * sizeof(float));
    s->part_c = carve(base, &used, parts * sizeof(float));
    s->delta = carve(base, &used, pairs * (size_t)p->rows * sizeof(float));
    return used;
}

/* What forward keeps: gathered q, k and v of this rank. */
static size_t lay_out_saved(struct hra_scratch *s, const struct hra_kernel_plan *p, char *base)
{
    const size_t bytes = hra_type_bytes(p->type), tile = HRA_TILE;
    const size_t queries = (size_t)p->batch * (size_t)p->heads * (size_t)(p->queries + HRA_EDGE) * tile;
    const size_t keys =
        (size_t)p->batch * (size_t)p->heads_kv * (size_t)whole_blocks(p->own_key1 - p->own_key0) * tile;
    size_t used = 0;

    s->q = carve(base, &used, queries * (size_t)padded(p->dim, p->type) * bytes);
    s->k = carve(base, &used, keys * (size_t)padded(p->dim, p->type) * bytes);
    s->v = carve(base, &used, keys * (size_t)padded(p->dim_v, p->type) * bytes);
    return used;
}

static size_t cuda_saved(const struct hra_kernel_plan *p)
{
    struct hra_scratch s;
    return lay_out_saved(&s, p, NULL);
}

static size_t cuda_workspace(const struct hra_kernel_plan *p, hra_pass pass)
{
    struct hra_scratch s;
    return lay_out(&s, p, pass, NULL);
}

/* ---- Making ---- */

/* A copy of host memory in device memory, which close gives back. */
static hra_status upload(struct cuda *c, int place, void *out, const void *from, size_t bytes)
{
    void *memory;

    HRA_TRY_CUDA(cudaMalloc(&memory, bytes > 0 ? bytes : 1));
    c->memory[place] = memory;
    HRA_TRY(hra_cuda_write(memory, from, bytes));
    memcpy(out, &memory, sizeof(memory));
    return HRA_OK;
}

static void cuda_close(void *state)
{
    struct cuda *c = state;

    if (c == NULL)
        return;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; c->work[pass] != NULL && i < c->shapes[pass] * c->plan->patterns; i++)
            hra_slabs_clear(&c->work[pass][i].slabs);
        free(c->work[pass]);
        free(c->run_shape[pass]);
        cudaFree(c->ends[pass][0]);
        cudaFree(c->ends[pass][1]);
    }
    for (size_t i = 0; i < sizeof(c->memory) / sizeof(c->memory[0]); i++)
        cudaFree(c->memory[i]);
    hra_numbers_clear(&c->numbers);
    if (c->blas != NULL)
        blas.destroy(c->blas);
    free(c);
}

static hra_status check_device(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);

    if (error != cudaSuccess || devices == 0)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "cuda: no device: %s",
                        error != cudaSuccess ? cudaGetErrorString(error) : "the driver finds none");
    pthread_once(&once, find_blas);
    if (blas.missing[0] != '\0')
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "cuda: no cuBLAS: %s", blas.missing);
    return HRA_OK;
}

/* Fills a zeroed state; close undoes whatever was done. */
static hra_status build(struct cuda *c)
{
    const struct hra_kernel_plan *p = c->plan;

    c->device = (struct hra_device_plan){.batch = p->batch,
                                         .heads = p->heads,
                                         .heads_kv = p->heads_kv,
                                         .dim = p->dim,
                                         .dim_v = p->dim_v,
                                         .wide = padded(p->dim, p->type),
                                         .wide_v = padded(p->dim_v, p->type),
                                         .rows = p->rows,
                                         .queries = p->queries,
                                         .query_tiles = p->queries + HRA_EDGE,
                                         .slab = slab_tiles(p),
                                         .type = p->type};
    HRA_TRY(upload(c, 0, &c->device.query, p->query, (size_t)p->queries * sizeof(*p->query)));
    HRA_TRY(upload(c, 1, &c->device.key, p->key, (size_t)p->keys * sizeof(*p->key)));
    HRA_TRY(upload(c, 2, &c->device.bits, p->packed[0], (size_t)p->bitmaps * sizeof(hra_bits)));
    HRA_TRY(upload(c, 3, &c->token, p->token, (size_t)p->rows * sizeof(*p->token)));
    HRA_TRY_CUBLAS(blas.create(&c->blas));
    return HRA_OK;
}

static hra_status cuda_open(void **out, struct hra_kernel_plan *plan)
{
    struct cuda *c = NULL;

    if (plan->type == HRA_F64)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "cuda: problem.type is f64; it computes f32, bf16 and f16");
    HRA_TRY(check_device());
    HRA_TRY(hra_alloc((void **)&c, 1, sizeof(*c), "cuda backend"));
    c->plan = plan;
    hra_status status = build(c);
    if (status != HRA_OK) {
        cuda_close(c);
        return status;
    }
    *out = c;
    return HRA_OK;
}

/* Are these key tiles of our own keys? */
static int is_own(const struct hra_kernel_plan *p, int key_tile0, int key_tile1)
{
    return key_tile0 >= p->own_key0 && key_tile1 <= p->own_key1;
}

/* The (batch, head) pairs that have a pattern and a K/V head of the shape. */
static hra_status list_pairs(struct cuda *c, struct work *w, int pattern, const struct hra_shape *shape)
{
    const struct hra_kernel_plan *p = c->plan;
    const int group = p->heads / p->heads_kv;

    w->pairs = c->numbers.count;
    for (int i = 0; i < p->batch * p->heads; i++) {
        const int kv = i % p->heads / group;
        if (p->pattern[i] != pattern || kv < shape->head0 || kv >= shape->head1)
            continue;
        HRA_TRY(hra_numbers_add(&c->numbers, i));
        w->count++;
    }
    return HRA_OK;
}

static hra_status prepare_pass(struct cuda *c, hra_pass pass, const struct hra_shapes *shapes)
{
    const struct hra_kernel_plan *p = c->plan;
    const size_t ends_bytes = (size_t)p->heads_kv * (size_t)p->queries * sizeof(int);

    c->shapes[pass] = shapes->count;
    HRA_TRY(hra_alloc((void **)&c->work[pass], (int64_t)shapes->count * p->patterns, sizeof(struct work),
                      "cuda backend"));
    HRA_TRY(hra_alloc((void **)&c->run_shape[pass], shapes->runs, sizeof(int), "cuda backend"));
    for (int i = shapes->count - 1; i >= 0; i--)
        c->run_shape[pass][shapes->shape[i].run] = i;
    for (int i = 0; i < shapes->count; i++)
        for (int n = 0; n < p->patterns; n++) {
            const struct hra_shape *s = &shapes->shape[i];
            struct work *w = &c->work[pass][i * p->patterns + n];
            HRA_TRY(list_pairs(c, w, n, s));
            if (w->count > 0)
                HRA_TRY(hra_blocks_cut(&w->slabs, &c->numbers, &p->list[n], s->query0, s->query1,
                                       s->key_tile0, s->key_tile1, c->device.slab));
        }
    for (int end = 0; end < 2; end++) {
        const int *from = end == 0 ? shapes->first : shapes->last;
        HRA_TRY_CUDA(cudaMalloc((void **)&c->ends[pass][end], ends_bytes > 0 ? ends_bytes : 1));
        HRA_TRY(hra_cuda_write(c->ends[pass][end], from, ends_bytes));
    }
    return HRA_OK;
}

static hra_status cuda_prepare(void *state, const struct hra_shapes shapes[2])
{
    struct cuda *c = state;

    /* Own keys may come some heads at a time, but not some tiles: what pads them would lie over others. */
    for (int i = 0; c->plan->saves && i < shapes[HRA_FORWARD].count; i++) {
        const struct hra_shape *s = &shapes[HRA_FORWARD].shape[i];
        if (is_own(c->plan, s->key_tile0, s->key_tile1) &&
            (s->key_tile0 != c->plan->own_key0 || s->key_tile1 != c->plan->own_key1))
            return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                            "cuda: options.saved is qkv, and the schedule takes own keys in parts");
    }
    HRA_TRY(prepare_pass(c, HRA_FORWARD, &shapes[HRA_FORWARD]));
    HRA_TRY(prepare_pass(c, HRA_BACKWARD, &shapes[HRA_BACKWARD]));
    HRA_TRY(upload(c, 4, &c->device.numbers, c->numbers.data, (size_t)c->numbers.count * sizeof(int)));
    hra_numbers_clear(&c->numbers);
    return HRA_OK;
}

/* ---- Computing ---- */

static cudaDataType_t blas_type(hra_type type)
{
    return type == HRA_F32 ? CUDA_R_32F : type == HRA_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

/* A matrix of a product: an array of pointers, elements from row to row, and whether the product wants it transposed. */
struct operand {
    int array, step, transposed;
};

/* C = factor A B for every instance, row by row: C [m][n], A [m][k], B [k][n]. cuBLAS goes column by column, where this is
 * C^T = B^T A^T. */
static hra_status multiply(const struct cuda *c, const struct hra_scratch *s, int instances, int m, int n,
                           int k, double factor, struct operand a, struct operand b, struct operand to)
{
    const cudaDataType_t type = blas_type(c->plan->type);
    const float alpha = (float)factor, beta = 0;
    void **at = s->pointers;

    HRA_TRY_CUBLAS(blas.multiply(c->blas, b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                                 a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k, &alpha,
                                 (const void *const *)(at + b.array * c->device.slab), type, b.step,
                                 (const void *const *)(at + a.array * c->device.slab), type, a.step, &beta,
                                 (void *const *)(at + to.array * c->device.slab), CUDA_R_32F, to.step,
                                 instances, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    return HRA_OK;
}

static hra_status forward_slab(const struct cuda *c, const struct hra_launch *l, const struct hra_scratch *s,
                               cudaStream_t stream)
{
    const int wide = c->device.wide, wide_v = c->device.wide_v, side = HRA_TILE * l->slab.edge;
    const int instances = l->slab.blocks * l->count;
    const int step = side * (int)(sizeof(float) / hra_type_bytes(c->plan->type)); /* of P and dS */

    HRA_TRY_CUDA(hra_hybrid_point(&c->device, l, s, stream));
    HRA_TRY(multiply(c, s, instances, side, side, wide, c->plan->scale, (struct operand){HRA_AT_Q, wide, 0},
                     (struct operand){HRA_AT_K, wide, 1}, (struct operand){HRA_AT_S, side, 0}));
    HRA_TRY_CUDA(hra_hybrid_softmax(&c->device, l, s, stream));
    HRA_TRY(multiply(c, s, instances, side, wide_v, side, 1, (struct operand){HRA_AT_S, step, 0},
                     (struct operand){HRA_AT_V, wide_v, 0}, (struct operand){HRA_AT_A, wide_v, 0}));
    HRA_TRY_CUDA(hra_hybrid_merge(&c->device, l, s, stream));
    return HRA_OK;
}

static hra_status backward_slab(const struct cuda *c, const struct hra_launch *l, const struct hra_scratch *s,
                                const struct hra_chunk *chunk, const float *lse, cudaStream_t stream)
{
    const int wide = c->device.wide, wide_v = c->device.wide_v, side = HRA_TILE * l->slab.edge;
    const int instances = l->slab.blocks * l->count;
    const int step = side * (int)(sizeof(float) / hra_type_bytes(c->plan->type)); /* of P and dS */

    HRA_TRY_CUDA(hra_hybrid_point(&c->device, l, s, stream));
    HRA_TRY(multiply(c, s, instances, side, side, wide, c->plan->scale, (struct operand){HRA_AT_Q, wide, 0},
                     (struct operand){HRA_AT_K, wide, 1}, (struct operand){HRA_AT_S, side, 0}));
    HRA_TRY(multiply(c, s, instances, side, side, wide_v, 1, (struct operand){HRA_AT_DO, wide_v, 0},
                     (struct operand){HRA_AT_V, wide_v, 1}, (struct operand){HRA_AT_DP, side, 0}));
    HRA_TRY_CUDA(hra_hybrid_gradient(&c->device, l, s, lse, stream));
    HRA_TRY(multiply(c, s, instances, side, wide_v, side, 1, (struct operand){HRA_AT_S, step, 1},
                     (struct operand){HRA_AT_DO, wide_v, 0}, (struct operand){HRA_AT_A, wide_v, 0}));
    HRA_TRY(multiply(c, s, instances, side, wide, side, 1, (struct operand){HRA_AT_DP, step, 1},
                     (struct operand){HRA_AT_Q, wide, 0}, (struct operand){HRA_AT_B, wide, 0}));
    HRA_TRY(multiply(c, s, instances, side, wide, side, 1, (struct operand){HRA_AT_DP, step, 0},
                     (struct operand){HRA_AT_K, wide, 0}, (struct operand){HRA_AT_C, wide, 0}));
    HRA_TRY_CUDA(hra_hybrid_add_dq(&c->device, l, s, stream));
    HRA_TRY_CUDA(hra_hybrid_add_dkv(&c->device, l, s, chunk, stream));
    return HRA_OK;
}

/* The query rows of a run, gathered. They lie where their tiles would among all of the rank. */
static hra_status gather_queries(const struct cuda *c, void *out, const hra_tensor *from, int dim, int wide,
                                 cudaStream_t stream)
{
    const struct hra_kernel_plan *p = c->plan;
    HRA_TRY_CUDA(hra_hybrid_gather(out, p->heads, &c->device, c->device.query, 0, p->queries,
                                   c->device.query_tiles, from, 0, p->heads, dim, wide, stream));
    return HRA_OK;
}

/* Gathered K and V of a chunk, in scratch or, of our own keys, where forward has saved them. */
struct operands {
    void *k, *v;
    int tiles, head0, heads; /* padded tiles a head; first K/V head and their number in memory */
};

static hra_status gather_keys(struct operands *out, const struct cuda *c, const struct hra_run_args *run,
                              const struct hra_chunk *chunk, const struct hra_scratch *s, hra_pass pass)
{
    const struct hra_kernel_plan *p = c->plan;
    const int tiles = chunk->key_tile1 - chunk->key_tile0, heads = chunk->head1 - chunk->head0;
    const int64_t base = p->key[chunk->key_tile0].row0;
    const int saved = p->saves && is_own(p, chunk->key_tile0, chunk->key_tile1);
    struct hra_scratch kept;

    *out = (struct operands){s->k, s->v, whole_blocks(tiles), chunk->head0, heads};
    if (saved) {
        const size_t ahead = (size_t)(chunk->key_tile0 - p->own_key0) * HRA_TILE * hra_type_bytes(p->type);
        lay_out_saved(&kept, p, run->saved);
        *out = (struct operands){(char *)kept.k + ahead * (size_t)c->device.wide,
                                 (char *)kept.v + ahead * (size_t)c->device.wide_v,
                                 whole_blocks(p->own_key1 - p->own_key0), 0, p->heads_kv};
    }
    if (saved && pass == HRA_BACKWARD)
        return HRA_OK;
    const size_t other_heads =
        (size_t)(chunk->head0 - out->head0) * (size_t)out->tiles * HRA_TILE * hra_type_bytes(p->type);
    HRA_TRY_CUDA(hra_hybrid_gather((char *)out->k + other_heads * (size_t)c->device.wide, out->heads,
                                   &c->device, c->device.key, chunk->key_tile0, tiles, out->tiles, &chunk->k,
                                   base, heads, p->dim, c->device.wide, run->stream));
    HRA_TRY_CUDA(hra_hybrid_gather((char *)out->v + other_heads * (size_t)c->device.wide_v, out->heads,
                                   &c->device, c->device.key, chunk->key_tile0, tiles, out->tiles, &chunk->v,
                                   base, heads, p->dim_v, c->device.wide_v, run->stream));
    return HRA_OK;
}

/* All slabs of one chunk. lse is NULL in forward. */
static hra_status compute_chunk(const struct cuda *c, const struct hra_run_args *run, int which,
                                struct hra_scratch *s, hra_pass pass, const float *lse)
{
    const struct hra_kernel_plan *p = c->plan;
    const struct hra_chunk *chunk = &run->chunk[which];
    const int heads = chunk->head1 - chunk->head0;
    const int64_t base = p->key[chunk->key_tile0].row0;
    const struct work *work = c->work[pass] + (c->run_shape[pass][run->run] + which) * p->patterns;
    struct hra_scratch with = *s;
    struct operands keys;

    HRA_TRY(gather_keys(&keys, c, run, chunk, s, pass));
    with.k = keys.k;
    with.v = keys.v;
    if (pass == HRA_BACKWARD && chunk->zero) {
        const struct hra_tile_rows *last = &p->key[chunk->key_tile1 - 1];
        const int64_t rows = last->row0 + last->rows - base;
        const struct hra_rows sums[] = {{.to = chunk->dk, .rows = rows, .heads = heads, .dim = p->dim},
                                        {.to = chunk->dv, .rows = rows, .heads = heads, .dim = p->dim_v}};
        HRA_TRY_CUDA(hra_hybrid_combine(p->batch, sums, 2, HRA_F32, HRA_F32, run->stream));
    }
    for (int n = 0; n < p->patterns; n++)
        for (int i = 0; i < work[n].slabs.count; i++) {
            struct hra_launch l = {.slab = work[n].slabs.slab[i],
                                   .query0 = run->query0,
                                   .head0 = keys.head0,
                                   .heads = keys.heads,
                                   .key_tiles = keys.tiles};
            const int at_once = c->device.slab / (l.slab.blocks * l.slab.edge * l.slab.edge);
            for (int first = 0; first < work[n].count; first += l.count) {
                l.pairs = work[n].pairs + first;
                l.count = work[n].count - first < at_once ? work[n].count - first : at_once;
                HRA_TRY(pass == HRA_FORWARD ? forward_slab(c, &l, &with, run->stream)
                                            : backward_slab(c, &l, &with, chunk, lse, run->stream));
            }
        }
    return HRA_OK;
}

static void *saved_queries(const struct cuda *c, const struct hra_run_args *run)
{
    struct hra_scratch kept;

    lay_out_saved(&kept, c->plan, run->saved);
    return kept.q;
}

/* Setting the stream takes cuBLAS's scratch away. */
static hra_status set_stream(const struct cuda *c, const struct hra_scratch *s, cudaStream_t stream)
{
    HRA_TRY_CUBLAS(blas.stream(c->blas, stream));
    HRA_TRY_CUBLAS(blas.workspace(c->blas, s->blas, BLAS_BYTES));
    return HRA_OK;
}

static hra_status cuda_forward(void *state, const struct hra_forward_args *args)
{
    const struct cuda *c = state;
    const struct hra_run_args *run = &args->run;
    struct hra_scratch s;

    if (c->plan->queries == 0)
        return HRA_OK;
    lay_out(&s, c->plan, HRA_FORWARD, run->workspace);
    HRA_TRY(set_stream(c, &s, run->stream));
    HRA_TRY_CUDA(hra_hybrid_begin(&c->device, &s, c->ends[HRA_FORWARD][0], run->run, run->query0, run->query1,
                                  c->device.wide_v, run->stream));
    if (c->plan->saves)
        s.q = saved_queries(c, run);
    HRA_TRY(gather_queries(c, s.q, &args->q, c->plan->dim, c->device.wide, run->stream));
    for (int i = 0; i < run->chunks; i++)
        HRA_TRY(compute_chunk(c, run, i, &s, HRA_FORWARD, NULL));
    HRA_TRY_CUDA(hra_hybrid_write(&c->device, &s, c->ends[HRA_FORWARD][1], run->run, run->query0, run->query1,
                                  &args->o, args->lse, run->stream));
    return HRA_OK;
}

static hra_status cuda_backward(void *state, const struct hra_backward_args *args)
{
    const struct cuda *c = state;
    const struct hra_run_args *run = &args->run;
    struct hra_scratch s;

    if (c->plan->queries == 0)
        return HRA_OK;
    lay_out(&s, c->plan, HRA_BACKWARD, run->workspace);
    HRA_TRY(set_stream(c, &s, run->stream));
    HRA_TRY_CUDA(hra_hybrid_begin(&c->device, &s, c->ends[HRA_BACKWARD][0], run->run, run->query0,
                                  run->query1, c->device.wide, run->stream));
    if (c->plan->saves)
        s.q = saved_queries(c, run);
    else
        HRA_TRY(gather_queries(c, s.q, &args->q, c->plan->dim, c->device.wide, run->stream));
    HRA_TRY(gather_queries(c, s.do_, &args->do_, c->plan->dim_v, c->device.wide_v, run->stream));
    for (int i = 0; i < run->chunks; i++)
        HRA_TRY(compute_chunk(c, run, i, &s, HRA_BACKWARD, args->lse));
    HRA_TRY_CUDA(hra_hybrid_write_dq(&c->device, &s, c->ends[HRA_BACKWARD][1], run->run, run->query0,
                                     run->query1, &args->dq, c->plan->scale, run->stream));
    return HRA_OK;
}

static hra_status cuda_delta(void *state, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                             void *workspace, void *stream)
{
    const struct cuda *c = state;
    struct hra_scratch s;

    lay_out(&s, c->plan, HRA_BACKWARD, workspace);
    HRA_TRY_CUDA(hra_hybrid_delta(&c->device, o, do_, dlse, s.delta, stream));
    return HRA_OK;
}

static hra_status cuda_combine(void *state, const struct hra_rows *rows, int count, hra_type to_type,
                               hra_type from_type, void *stream)
{
    const struct cuda *c = state;

    HRA_TRY_CUDA(hra_hybrid_combine(c->plan->batch, rows, count, to_type, from_type, stream));
    return HRA_OK;
}

static hra_status cuda_clear(void *state, void *data, size_t bytes, void *stream)
{
    (void)state;
    HRA_TRY_CUDA(cudaMemsetAsync(data, 0, bytes, stream));
    return HRA_OK;
}

static hra_status cuda_reorder(void *state, hra_direction direction, hra_type type, const hra_tensor *whole,
                               const hra_tensor *rows, const int64_t *token, int64_t count, int heads,
                               int dim, void *stream)
{
    const struct cuda *c = state;

    (void)token; /* the copy in device memory */
    HRA_TRY_CUDA(hra_hybrid_reorder(c->plan->batch, direction, type, whole, rows, c->token, count, heads, dim,
                                    stream));
    return HRA_OK;
}

/* Pinned, the host's memory is copied at the bus's rate. */
static hra_status cuda_make_mirror(void **out, void *host, size_t bytes)
{
    void *mirror;

    HRA_TRY_CUDA(cudaMalloc(&mirror, bytes));
    const cudaError_t error = cudaHostRegister(host, bytes, cudaHostRegisterDefault);
    if (error != cudaSuccess) {
        cudaFree(mirror);
        return HRA_FAIL(HRA_ERR_CUDA, "cudaHostRegister of %zu bytes: %s", bytes, cudaGetErrorString(error));
    }
    *out = mirror;
    return HRA_OK;
}

static void cuda_drop_mirror(void *mirror, void *host)
{
    cudaHostUnregister(host);
    cudaFree(mirror);
}

static hra_status cuda_to_mirror(void *mirror, const void *host, size_t bytes, void *stream)
{
    HRA_TRY_CUDA(cudaMemcpyAsync(mirror, host, bytes, cudaMemcpyHostToDevice, stream));
    return HRA_OK;
}

static hra_status cuda_from_mirror(void *host, const void *mirror, size_t bytes, void *stream)
{
    HRA_TRY_CUDA(cudaMemcpyAsync(host, mirror, bytes, cudaMemcpyDeviceToHost, stream));
    return HRA_OK;
}

static hra_status cuda_wait(void *stream)
{
    HRA_TRY_CUDA(cudaStreamSynchronize(stream));
    return HRA_OK;
}

static int cuda_records(void *stream)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream, &status) != cudaSuccess || status != cudaStreamCaptureStatusNone;
}

static void cuda_drop_marks(void *marks, int count)
{
    cudaEvent_t *event = marks;

    for (int i = 0; event != NULL && i < count && event[i] != NULL; i++)
        cudaEventDestroy(event[i]);
    free(event);
}

static hra_status cuda_make_marks(void **out, int count)
{
    cudaEvent_t *event = NULL;

    HRA_TRY(hra_alloc((void **)&event, count, sizeof(*event), "marks"));
    for (int i = 0; i < count; i++) {
        const cudaError_t error = cudaEventCreate(&event[i]);
        if (error != cudaSuccess) {
            event[i] = NULL;
            cuda_drop_marks(event, count);
            return HRA_FAIL(HRA_ERR_CUDA, "cudaEventCreate: %s", cudaGetErrorString(error));
        }
    }
    *out = event;
    return HRA_OK;
}

static hra_status cuda_set_mark(void *marks, int n, void *stream)
{
    const cudaEvent_t *event = marks;

    HRA_TRY_CUDA(cudaEventRecord(event[n], stream));
    return HRA_OK;
}

static hra_status cuda_read_marks(const void *marks, int count, double *out_s)
{
    const cudaEvent_t *event = marks;

    if (cudaEventQuery(event[count - 1]) == cudaErrorNotReady) {
        (void)cudaGetLastError(); /* which it counts as, and a later launch would be blamed */
        return HRA_FAIL(HRA_ERR_STATE, "the stream has not come to the last of %d marks", count);
    }
    for (int i = 0; i < count; i++) {
        float ms;
        HRA_TRY_CUDA(cudaEventElapsedTime(&ms, event[0], event[i]));
        out_s[i] = 1e-3 * ms;
    }
    return HRA_OK;
}

static const struct hra_bit_layout rows_of_bits = {.name = "rows", .bytes = sizeof(hra_bits)};

const struct hra_backend hra_backend_cuda = {
    .name = "cuda",
    .method = "cublas",
    .blocking = 0,
    .alignment = 256,
    .tensor_alignment = 16,
    .layout = {&rows_of_bits, &rows_of_bits},
    .open = cuda_open,
    .close = cuda_close,
    .prepare = cuda_prepare,
    .workspace_bytes = cuda_workspace,
    .saved_bytes = cuda_saved,
    .make_mirror = cuda_make_mirror,
    .drop_mirror = cuda_drop_mirror,
    .to_mirror = cuda_to_mirror,
    .from_mirror = cuda_from_mirror,
    .wait = cuda_wait,
    .records = cuda_records,
    .make_marks = cuda_make_marks,
    .drop_marks = cuda_drop_marks,
    .set_mark = cuda_set_mark,
    .read_marks = cuda_read_marks,
    .forward = cuda_forward,
    .backward = cuda_backward,
    .delta = cuda_delta,
    .combine = cuda_combine,
    .clear = cuda_clear,
    .reorder = cuda_reorder,
};

/* twin.cu - attention and its gradients in double on a GPU, as plainly as can be.
 *
 * A (sequence, key head) pair at a time, as in the oracle, and of its query heads a piece of rows at a time: the host
 * asks the mask for the counts of the piece, then two kernels run over it.
 *     rows  a block a query row: scores of all keys, P, dS, and the row of o, lse and dq
 *     keys  a block a key: what the piece adds to its rows of dk and dv
 * P and dS of a piece lie in memory, so that no sum depends on which thread comes first: the same bits every time.
 *
 * Memory per pair     bytes
 *   k v dk dv         16 tokens (dim + dim_v)
 *   q do o dq         16 rows of a piece (dim + dim_v), and 16 for lse and dlse
 *   count P dS        20 rows of a piece x tokens, at most PIECE_BYTES or one row */
#include "tests/gpu/twin.h"

#include <cuda_runtime.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

namespace
{
constexpr int THREADS = 256, HOST_THREADS = 64;
constexpr int64_t PIECE_BYTES = INT64_C(1) << 28;

/* Rows row0 .. row0 + rows - 1 of one query head against all keys of its key head, in memory of the GPU. */
struct piece {
    int64_t rows, tokens;
    int dim, dim_v;
    double scale;
    const double *q, *do_, *dlse; /* [rows][dim], [rows][dim_v], [rows] */
    const double *k, *v;          /* [tokens][dim], [tokens][dim_v] */
    const int *count;             /* [rows][tokens] */
    double *o, *dq, *lse;         /* as do_ q dlse */
    double *dk, *dv;              /* as k v; added to */
    double *p, *ds;               /* [rows][tokens] */
};

/* The sum, or the largest, of x over the threads of a block, for all of them; n: a power of two. */
template <bool SUM> __device__ double reduce(double x)
{
    __shared__ double part[THREADS];

    part[threadIdx.x] = x;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) {
            const double y = part[threadIdx.x + half];
            part[threadIdx.x] = SUM ? part[threadIdx.x] + y : fmax(part[threadIdx.x], y);
        }
    }
    __syncthreads();
    const double all = part[0];
    __syncthreads(); /* before the next one writes */
    return all;
}

__device__ double dot(const double *x, const double *y, int n)
{
    double sum = 0;
    for (int c = 0; c < n; c++)
        sum += x[c] * y[c];
    return sum;
}

__global__ void rows(struct piece a)
{
    const int64_t row = blockIdx.x;
    const int *count = a.count + row * a.tokens;
    double *p = a.p + row * a.tokens, *ds = a.ds + row * a.tokens;
    const double *q = a.q + row * a.dim, *do_ = a.do_ + row * a.dim_v;
    double max = -INFINITY, sum = 0, delta = 0;

    for (int64_t j = threadIdx.x; j < a.tokens; j += blockDim.x) {
        p[j] = -INFINITY;
        if (count[j] > 0)
            p[j] = a.scale * dot(q, a.k + j * a.dim, a.dim) + log((double)count[j]);
        max = fmax(max, p[j]);
    }
    max = reduce<false>(max);
    const bool empty = max == -INFINITY;

    for (int64_t j = threadIdx.x; j < a.tokens; j += blockDim.x) {
        p[j] = count[j] > 0 ? exp(p[j] - max) : 0;
        sum += p[j];
    }
    sum = reduce<true>(sum);
    for (int64_t j = threadIdx.x; j < a.tokens; j += blockDim.x) {
        p[j] = empty ? 0 : p[j] / sum;
        ds[j] = count[j] > 0 ? dot(do_, a.v + j * a.dim_v, a.dim_v) : 0;
        delta += p[j] * ds[j];
    }
    delta = reduce<true>(delta) - a.dlse[row];
    for (int64_t j = threadIdx.x; j < a.tokens; j += blockDim.x)
        ds[j] = a.scale * p[j] * (ds[j] - delta);
    __syncthreads(); /* every thread reads all of p and ds now */

    for (int c = threadIdx.x; c < a.dim_v; c += blockDim.x) {
        double o = 0;
        for (int64_t j = 0; j < a.tokens; j++)
            o += p[j] * a.v[j * a.dim_v + c];
        a.o[row * a.dim_v + c] = o;
    }
    for (int c = threadIdx.x; c < a.dim; c += blockDim.x) {
        double dq = 0;
        for (int64_t j = 0; j < a.tokens; j++)
            dq += ds[j] * a.k[j * a.dim + c];
        a.dq[row * a.dim + c] = dq;
    }
    if (threadIdx.x == 0)
        a.lse[row] = empty ? -INFINITY : max + log(sum);
}

__global__ void keys(struct piece a)
{
    const int64_t key = blockIdx.x;

    for (int c = threadIdx.x; c < a.dim + a.dim_v; c += blockDim.x) {
        const bool value = c >= a.dim;
        const int channel = value ? c - a.dim : c, channels = value ? a.dim_v : a.dim;
        const double *weight = value ? a.p : a.ds, *x = value ? a.do_ : a.q;
        double sum = 0;
        for (int64_t i = 0; i < a.rows; i++)
            sum += weight[i * a.tokens + key] * x[i * channels + channel];
        (value ? a.dv : a.dk)[key * channels + channel] += sum;
    }
}

/* ---- The counts ---------------------------------------------------------------------------- */

/* Rows of a piece for which one thread of the host asks the mask: first, first + step, ... */
struct share {
    const struct oracle *a;
    int64_t batch, head, row0, rows, first, step;
    int *count; /* [rows][tokens] */
};

void *ask(void *argument)
{
    const struct share *s = static_cast<const struct share *>(argument);

    for (int64_t r = s->first; r < s->rows; r += s->step)
        for (int64_t j = 0; j < s->a->tokens; j++)
            s->count[r * s->a->tokens + j] = hra_mask_count(s->a->mask, s->batch, s->head, s->row0 + r, j);
    return NULL;
}

/* All rows of a piece, by as many threads as there are processors; what no thread can be had for, this one does. */
void ask_all(const struct share *whole)
{
    struct share share[HOST_THREADS];
    pthread_t thread[HOST_THREADS];
    bool started[HOST_THREADS];
    const int64_t processors = sysconf(_SC_NPROCESSORS_ONLN);
    const int64_t step = processors < 1 ? 1 : processors > HOST_THREADS ? HOST_THREADS : processors;

    for (int64_t n = 0; n < step; n++) {
        share[n] = *whole;
        share[n].first = n;
        share[n].step = step;
        started[n] = n > 0 && pthread_create(&thread[n], NULL, ask, &share[n]) == 0;
    }
    for (int64_t n = 0; n < step; n++)
        if (!started[n])
            ask(&share[n]);
    for (int64_t n = 0; n < step; n++)
        if (started[n])
            pthread_join(thread[n], NULL);
}

/* ---- The host's side ----------------------------------------------------------------------- */

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        const cudaError_t status_ = (call);                                                                  \
        if (status_ != cudaSuccess) {                                                                        \
            fprintf(stderr, "twin: %s: %s\n", #call, cudaGetErrorString(status_));                           \
            return -1;                                                                                       \
        }                                                                                                    \
    } while (0)

/* One head of a tensor [tokens][heads][channels] of the host, and the same rows without the other heads. */
int copy_head(double *to, const double *from, int64_t rows, int heads, int channels, cudaMemcpyKind way)
{
    const size_t row = (size_t)channels * sizeof(double), step = row * (size_t)heads;
    const bool in = way == cudaMemcpyHostToDevice;

    TRY(cudaMemcpy2D(to, in ? row : step, from, in ? step : row, row, (size_t)rows, way));
    return 0;
}

/* Everything that is allocated. */
struct memory {
    void *device; /* all of a piece */
    int *count;   /* [rows][tokens] on the host */
};

int allocate(struct memory *m, struct piece *x, const struct oracle *a)
{
    const int64_t tokens = a->tokens, row_bytes = 20 * tokens;
    const int64_t fit = PIECE_BYTES / row_bytes < 1 ? 1 : PIECE_BYTES / row_bytes;
    const int64_t most = fit < tokens ? fit : tokens, dims = a->dim + a->dim_v;
    double *next;

    x->tokens = tokens;
    x->rows = most;
    x->dim = a->dim;
    x->dim_v = a->dim_v;
    x->scale = a->scale;
    m->count = static_cast<int *>(malloc((size_t)(most * tokens) * sizeof(int)));
    if (m->count == NULL) {
        fprintf(stderr, "twin: no memory for %lld counts\n", (long long)(most * tokens));
        return -1;
    }
    TRY(cudaMalloc(&m->device,
                   (size_t)(2 * tokens * dims + 2 * most * (dims + 1) + 2 * most * tokens) * sizeof(double) +
                       (size_t)(most * tokens) * sizeof(int)));
    next = static_cast<double *>(m->device);
    x->k = next, next += tokens * a->dim;
    x->v = next, next += tokens * a->dim_v;
    x->dk = next, next += tokens * a->dim;
    x->dv = next, next += tokens * a->dim_v;
    x->q = next, next += most * a->dim;
    x->dq = next, next += most * a->dim;
    x->do_ = next, next += most * a->dim_v;
    x->o = next, next += most * a->dim_v;
    x->lse = next, next += most;
    x->dlse = next, next += most;
    x->p = next, next += most * tokens;
    x->ds = next, next += most * tokens;
    x->count = reinterpret_cast<const int *>(next);
    return 0;
}

/* Query rows row0 .. row0 + x->rows - 1 of head h. */
int run_piece(const struct oracle *a, const struct memory *m, const struct piece *x, int64_t b, int h,
              int64_t row0)
{
    const int64_t q0 = (b * a->tokens + row0) * a->heads + h, l0 = (b * a->heads + h) * a->tokens + row0;
    const size_t sums = (size_t)x->rows * sizeof(double);
    const cudaMemcpyKind in = cudaMemcpyHostToDevice, out = cudaMemcpyDeviceToHost;
    const struct share all = {a, b, a->head0 + h, row0, x->rows, 0, 1, m->count};
    double *q = const_cast<double *>(x->q), *do_ = const_cast<double *>(x->do_);
    double *dlse = const_cast<double *>(x->dlse);

    ask_all(&all);
    TRY(cudaMemcpy(const_cast<int *>(x->count), m->count, (size_t)(x->rows * x->tokens) * sizeof(int), in));
    if (copy_head(q, a->q + q0 * a->dim, x->rows, a->heads, a->dim, in) != 0 ||
        copy_head(do_, a->do_ + q0 * a->dim_v, x->rows, a->heads, a->dim_v, in) != 0)
        return -1;
    TRY(cudaMemset(dlse, 0, sums));
    if (a->dlse != NULL)
        TRY(cudaMemcpy(dlse, a->dlse + l0, sums, in));

    rows<<<(unsigned)x->rows, THREADS>>>(*x);
    TRY(cudaGetLastError());
    keys<<<(unsigned)x->tokens, THREADS>>>(*x);
    TRY(cudaGetLastError());

    TRY(cudaMemcpy(a->lse + l0, x->lse, sums, out));
    if (copy_head(a->o + q0 * a->dim_v, x->o, x->rows, a->heads, a->dim_v, out) != 0 ||
        copy_head(a->dq + q0 * a->dim, x->dq, x->rows, a->heads, a->dim, out) != 0)
        return -1;
    return 0;
}

int run_pair(const struct oracle *a, const struct memory *m, const struct piece *whole, int64_t b, int g)
{
    const int group = a->heads / a->heads_kv, heads = a->heads_kv;
    const int64_t kv0 = b * a->tokens * heads + g;
    double *k = const_cast<double *>(whole->k), *v = const_cast<double *>(whole->v);
    const cudaMemcpyKind in = cudaMemcpyHostToDevice, out = cudaMemcpyDeviceToHost;

    if (copy_head(k, a->k + kv0 * a->dim, a->tokens, heads, a->dim, in) != 0 ||
        copy_head(v, a->v + kv0 * a->dim_v, a->tokens, heads, a->dim_v, in) != 0)
        return -1;
    TRY(cudaMemset(whole->dk, 0,
                   (size_t)(a->tokens * (a->dim + a->dim_v)) * sizeof(double))); /* dv follows */
    for (int h = g * group; h < (g + 1) * group; h++)
        for (int64_t row0 = 0; row0 < a->tokens; row0 += whole->rows) {
            struct piece x = *whole;
            x.rows = a->tokens - row0 < whole->rows ? a->tokens - row0 : whole->rows;
            if (run_piece(a, m, &x, b, h, row0) != 0)
                return -1;
        }
    if (copy_head(a->dk + kv0 * a->dim, whole->dk, a->tokens, heads, a->dim, out) != 0 ||
        copy_head(a->dv + kv0 * a->dim_v, whole->dv, a->tokens, heads, a->dim_v, out) != 0)
        return -1;
    return 0;
}
} // namespace

extern "C" int twin_exact(const struct oracle *a)
{
    struct memory m = {};
    struct piece x = {};
    int status = allocate(&m, &x, a);

    for (int64_t pair = a->first; status == 0 && pair < a->batch * a->heads_kv; pair += a->step)
        status = run_pair(a, &m, &x, pair / a->heads_kv, (int)(pair % a->heads_kv));
    cudaFree(m.device);
    free(m.count);
    return status;
}

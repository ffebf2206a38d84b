/* attend_body.h - attention and its gradients tile by tile, in the arithmetic that the including file names:
 * REAL, REAL_TYPE, NAME(x), GEMM, and the work on one row of scores: exp_one, row_max, row_exp, row_gradient.
 *
 * Forward, per query tile, with running max m, sum l and unnormalised output A (FlashAttention, Dao et al. 2022):
 *     S = scale Q K^T, -inf where the mask says no
 *     m' = max(m, rowmax S), P = exp(S - m'), l = l exp(m - m') + rowsum P, A = A exp(m - m') + P V
 * and after the last tile O = A / l, LSE = m + ln l. A row without any key has m = -inf all the way; its P is set
 * to 0, so that (-inf) - (-inf) is never computed. State between runs is A, m, l: cutting the list into runs
 * changes no bit.
 *
 * Backward, per pair of tiles, from the saved LSE:
 *     P = exp(S - LSE), dP = dO V^T, dS = P * (dP - delta)
 *     dV += P^T dO, dK += dS^T Q, dQ += dS K          (dK and dQ without the factor scale)
 * Whether one task does all of a K/V head or dQ and dK/dV are separate tasks, each sum adds the same products in the
 * same order, so the bits do not depend on the number of threads. */
#include <cblas.h>
#include <limits.h>
#include <string.h>

/* A tile as BLAS takes it: rows `ld` elements apart. */
struct view {
    const REAL *data;
    int ld;
};

/* What one task works with. */
struct task {
    const struct hra_cpu *cpu;
    const struct hra_kernel_plan *plan;
    const struct hra_run_args *run;
    const struct hra_forward_args *forward; /* one of the two */
    const struct hra_backward_args *backward;
    REAL *sums;                    /* forward: A; backward: dQ */
    REAL *max;                     /* forward: m */
    REAL *total;                   /* forward: l */
    REAL *delta;                   /* backward */
    const struct hra_chunk *chunk; /* backward in two passes: the chunk of dK/dV tasks */
};

/* A thread's scratch. */
struct scratch {
    REAL *s, *dp;          /* [HRA_TILE][HRA_TILE] */
    REAL *q, *k, *v, *do_; /* [HRA_TILE][256] */
    REAL *factor;          /* [HRA_TILE] */
};

static struct scratch scratch_of(const struct hra_cpu *cpu, int thread)
{
    REAL *at = (REAL *)cpu->scratch + (size_t)thread * HRA_CPU_SCRATCH;
    const size_t tile = HRA_TILE * HRA_TILE, rows = HRA_TILE * 256;
    return (struct scratch){.s = at,
                            .dp = at + tile,
                            .q = at + 2 * tile,
                            .k = at + 2 * tile + rows,
                            .v = at + 2 * tile + 2 * rows,
                            .do_ = at + 2 * tile + 3 * rows,
                            .factor = at + 2 * tile + 4 * rows};
}

/* ---- Rows in and out ---- */

HRA_CLONES static void read_row(REAL *to, const void *from, hra_type type, int count)
{
    if (type == REAL_TYPE)
        memcpy(to, from, (size_t)count * sizeof(REAL));
    else if (type == HRA_BF16)
        for (int c = 0; c < count; c++)
            to[c] = (REAL)hra_from_bf16(((const uint16_t *)from)[c]);
    else
        for (int c = 0; c < count; c++)
            to[c] = (REAL)hra_from_f16(((const uint16_t *)from)[c]);
}

HRA_CLONES static void write_row(void *to, hra_type type, const REAL *from, REAL factor, int count)
{
    if (type == REAL_TYPE)
        for (int c = 0; c < count; c++)
            ((REAL *)to)[c] = factor * from[c];
    else if (type == HRA_BF16)
        for (int c = 0; c < count; c++)
            ((uint16_t *)to)[c] = hra_to_bf16((float)(factor * from[c]));
    else
        for (int c = 0; c < count; c++)
            ((uint16_t *)to)[c] = hra_to_f16((float)(factor * from[c]));
}

/* Rows row0 .. row0 + rows - 1 of one head: where they lie, if BLAS can take them so, else converted into `to`. */
static struct view read_tile(REAL *to, const hra_tensor *t, hra_type type, int64_t b, int64_t row0, int rows,
                             int64_t h, int dim)
{
    if (type == REAL_TYPE && t->stride_row >= dim && t->stride_row <= INT_MAX)
        return (struct view){(const REAL *)(const void *)hra_cpu_at(t, type, b, row0, h), (int)t->stride_row};
    for (int r = 0; r < rows; r++)
        read_row(to + (size_t)r * (size_t)dim, hra_cpu_at(t, type, b, row0 + r, h), type, dim);
    return (struct view){to, dim};
}

/* Which (batch, head, query tile) of a run is task i; kv is the head's K/V head. */
struct place {
    int64_t b, h;
    int q, kv;
};

/* Query tiles fastest, the last one first: under causal masks it has most to do, and what begins last should be
 * short. */
static struct place place_of(const struct task *t, int64_t i)
{
    const struct hra_kernel_plan *p = t->plan;
    const int span = t->run->query1 - t->run->query0;
    const int64_t h = i / span % p->heads;

    return (struct place){.b = i / span / p->heads,
                          .h = h,
                          .q = t->run->query1 - 1 - (int)(i % span),
                          .kv = (int)h / (p->heads / p->heads_kv)};
}

/* First tile of list[begin .. end) whose number is at least `least`; numbers ascend. */
static int64_t lower_bound(const int *number, int64_t begin, int64_t end, int least)
{
    while (begin < end) {
        const int64_t mid = begin + (end - begin) / 2;
        if (number[mid] < least)
            begin = mid + 1;
        else
            end = mid;
    }
    return begin;
}

/* ---- The work on one tile of products ---- */

/* `blank` in x [rows][HRA_TILE] where a bit is 0. */
HRA_CLONES static void blank_tile(REAL *x, int rows, const hra_bits *bits, REAL blank)
{
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < HRA_TILE / 32; w++) {
            const uint32_t word = (uint32_t)((*bits)[r][w / 2] >> (w % 2 * 32));
            REAL *at = x + r * HRA_TILE + 32 * w;
#pragma omp simd
            for (int c = 0; c < 32; c++) {
                const REAL kept = at[c];
                at[c] = word >> c & 1 ? kept : blank;
            }
        }
}

/* S to P in place; m and l go on, and factor receives exp(m - m'). */
HRA_CLONES static void softmax_tile(REAL *s, int rows, int columns, REAL *max, REAL *sum, REAL *factor)
{
    for (int r = 0; r < rows; r++) {
        REAL *x = s + r * HRA_TILE;
        const REAL high = row_max(x, columns, max[r]);
        if (high == -(REAL)INFINITY) {
            /* No key so far, or scores that are NaN, which comparisons pass over. */
            for (int c = 0; c < columns; c++)
                sum[r] = x[c] != x[c] ? x[c] : sum[r];
            memset(x, 0, (size_t)columns * sizeof(*x));
            factor[r] = 1;
            continue;
        }
        factor[r] = exp_one(max[r] - high);
        sum[r] = sum[r] * factor[r] + row_exp(x, columns, high);
        max[r] = high;
    }
}

/* S to P in place, dP to dS in place. */
HRA_CLONES static void gradient_tile(REAL *s, REAL *dp, int rows, int columns, const REAL *lse,
                                     const REAL *delta)
{
    for (int r = 0; r < rows; r++) {
        REAL *x = s + r * HRA_TILE, *d = dp + r * HRA_TILE;
        if (lse[r] == -(REAL)INFINITY) { /* no key at all */
            memset(x, 0, (size_t)columns * sizeof(*x));
            memset(d, 0, (size_t)columns * sizeof(*d));
            continue;
        }
        row_gradient(x, d, columns, lse[r], delta[r]);
    }
}

static const hra_bits *bits_of(const struct hra_kernel_plan *plan, hra_pass pass, int bitmap)
{
    return bitmap == HRA_FULL ? NULL : (const hra_bits *)plan->packed[pass] + bitmap;
}

/* ---- Forward ---- */

static void write_output(const struct task *t, int64_t b, int64_t h, int q, const REAL *a, const REAL *m,
                         const REAL *l)
{
    const struct hra_kernel_plan *p = t->plan;
    const struct hra_tile_rows *tile = &p->query[q];
    REAL *lse = t->forward->lse;

    for (int r = 0; r < tile->rows; r++) {
        const REAL factor = l[r] > 0 ? 1 / l[r] : l[r]; /* 0 for a row without keys; a NaN goes through */
        write_row(hra_cpu_at(&t->forward->o, p->type, b, tile->row0 + r, h), p->type,
                  a + (size_t)r * (size_t)p->dim_v, factor, p->dim_v);
        if (lse != NULL)
            lse[(b * p->heads + h) * p->rows + tile->row0 + r] = (REAL)((double)m[r] + log((double)l[r]));
    }
}

/* A task that is (batch, head, query tile). */
static void forward_task(void *state, int64_t i, int thread)
{
    const struct task *t = state;
    const struct hra_kernel_plan *p = t->plan;
    const struct scratch x = scratch_of(t->cpu, thread);
    const struct place at = place_of(t, i);
    const int64_t b = at.b, h = at.h;
    const int q = at.q, kv = at.kv;
    const struct hra_tile_rows *rows = &p->query[q];
    const struct hra_tile_list *list = &p->list[p->pattern[b * p->heads + h]];
    const int64_t row = (b * p->heads + h) * p->rows + rows->row0;
    REAL *a = t->sums + row * p->dim_v, *m = t->max + row, *l = t->total + row;

    if (t->run->first[kv * p->queries + q] == t->run->run) {
        memset(a, 0, (size_t)rows->rows * (size_t)p->dim_v * sizeof(*a));
        for (int r = 0; r < rows->rows; r++) {
            m[r] = -(REAL)INFINITY;
            l[r] = 0;
        }
    }
    const struct view qv = read_tile(x.q, &t->forward->q, p->type, b, rows->row0, rows->rows, h, p->dim);
    for (int c = 0; c < t->run->chunks; c++) {
        const struct hra_chunk *chunk = &t->run->chunk[c];
        if (kv < chunk->head0 || kv >= chunk->head1)
            continue;
        const int64_t end = list->row_start[q + 1];
        for (int64_t e = lower_bound(list->key, list->row_start[q], end, chunk->key_tile0);
             e < end && list->key[e] < chunk->key_tile1; e++) {
            const struct hra_tile_rows *keys = &p->key[list->key[e]];
            const int64_t key_row = keys->row0 - p->key[chunk->key_tile0].row0;
            const struct view k =
                read_tile(x.k, &chunk->k, p->type, b, key_row, keys->rows, kv - chunk->head0, p->dim);
            const struct view v =
                read_tile(x.v, &chunk->v, p->type, b, key_row, keys->rows, kv - chunk->head0, p->dim_v);
            const hra_bits *bits = bits_of(p, HRA_FORWARD, list->bitmap[e]);

            GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, rows->rows, keys->rows, p->dim, (REAL)p->scale,
                 qv.data, qv.ld, k.data, k.ld, 0, x.s, HRA_TILE);
            if (bits != NULL)
                blank_tile(x.s, rows->rows, bits, -(REAL)INFINITY);
            softmax_tile(x.s, rows->rows, keys->rows, m, l, x.factor);
            for (int r = 0; r < rows->rows; r++)
                for (int d = 0; x.factor[r] != 1 && d < p->dim_v; d++)
                    a[(size_t)r * (size_t)p->dim_v + (size_t)d] *= x.factor[r];
            GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows->rows, p->dim_v, keys->rows, 1, x.s,
                 HRA_TILE, v.data, v.ld, 1, a, p->dim_v);
        }
    }
    if (t->run->last[kv * p->queries + q] == t->run->run)
        write_output(t, b, h, q, a, m, l);
}

void NAME(hra_cpu_forward)(struct hra_cpu *cpu, const struct hra_forward_args *args)
{
    const struct hra_kernel_plan *p = cpu->plan;
    const size_t rows = (size_t)p->batch * (size_t)p->heads * (size_t)p->rows;
    struct task t = {.cpu = cpu, .plan = p, .run = &args->run, .forward = args, .sums = args->run.workspace};

    t.max = t.sums + rows * (size_t)p->dim_v;
    t.total = t.max + rows;
    hra_pool_run(cpu->pool, (int64_t)p->batch * p->heads * (args->run.query1 - args->run.query0),
                 forward_task, &t, args->run.poll);
}

/* ---- Backward ---- */

enum { WANT_DQ = 1, WANT_DKV = 2 };

/* One key tile of a chunk, for one K/V head. */
struct keys {
    const struct hra_chunk *chunk;
    int rows;
    int64_t row; /* in the chunk */
    int kv;
    struct view k, v;
    REAL *dk, *dv;
};

static struct keys open_keys(const struct task *t, const struct scratch *x, const struct hra_chunk *chunk,
                             int tile, int64_t b, int kv)
{
    const struct hra_kernel_plan *p = t->plan;
    struct keys k = {.chunk = chunk,
                     .rows = p->key[tile].rows,
                     .row = p->key[tile].row0 - p->key[chunk->key_tile0].row0,
                     .kv = kv};
    const int head = kv - chunk->head0;

    k.k = read_tile(x->k, &chunk->k, p->type, b, k.row, k.rows, head, p->dim);
    k.v = read_tile(x->v, &chunk->v, p->type, b, k.row, k.rows, head, p->dim_v);
    k.dk = (REAL *)(void *)hra_cpu_at(&chunk->dk, REAL_TYPE, b, k.row, head);
    k.dv = (REAL *)(void *)hra_cpu_at(&chunk->dv, REAL_TYPE, b, k.row, head);
    return k;
}

/* The gradients of one tile. */
static void backward_tile(const struct task *t, const struct scratch *x, const struct keys *keys, int64_t b,
                          int64_t h, int q, int bitmap, int want)
{
    const struct hra_kernel_plan *p = t->plan;
    const struct hra_tile_rows *rows = &p->query[q];
    const int64_t row = (b * p->heads + h) * p->rows + rows->row0;
    const struct view qv = read_tile(x->q, &t->backward->q, p->type, b, rows->row0, rows->rows, h, p->dim);
    const struct view dov =
        read_tile(x->do_, &t->backward->do_, p->type, b, rows->row0, rows->rows, h, p->dim_v);
    const hra_bits *bits = bits_of(p, HRA_BACKWARD, bitmap);

    GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, rows->rows, keys->rows, p->dim, (REAL)p->scale, qv.data,
         qv.ld, keys->k.data, keys->k.ld, 0, x->s, HRA_TILE);
    GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, rows->rows, keys->rows, p->dim_v, 1, dov.data, dov.ld,
         keys->v.data, keys->v.ld, 0, x->dp, HRA_TILE);
    if (bits != NULL)
        blank_tile(x->s, rows->rows, bits, -(REAL)INFINITY);
    gradient_tile(x->s, x->dp, rows->rows, keys->rows, (const REAL *)t->backward->lse + row, t->delta + row);
    if (bits != NULL) /* forbidden pairs may have dP = inf or NaN, and 0 times that is not 0 */
        blank_tile(x->dp, rows->rows, bits, 0);
    if (want & WANT_DKV) {
        GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, keys->rows, p->dim_v, rows->rows, 1, x->s, HRA_TILE,
             dov.data, dov.ld, 1, keys->dv, (int)keys->chunk->dv.stride_row);
        GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, keys->rows, p->dim, rows->rows, 1, x->dp, HRA_TILE,
             qv.data, qv.ld, 1, keys->dk, (int)keys->chunk->dk.stride_row);
    }
    if (want & WANT_DQ)
        GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows->rows, p->dim, keys->rows, 1, x->dp, HRA_TILE,
             keys->k.data, keys->k.ld, 1, t->sums + row * p->dim, p->dim);
}

static void begin_dq(const struct task *t, int64_t b, int64_t h, int kv, int q)
{
    const struct hra_kernel_plan *p = t->plan;
    const int64_t row = (b * p->heads + h) * p->rows + p->query[q].row0;
    if (t->run->first[kv * p->queries + q] == t->run->run)
        memset(t->sums + row * p->dim, 0, (size_t)p->query[q].rows * (size_t)p->dim * sizeof(REAL));
}

static void end_dq(const struct task *t, int64_t b, int64_t h, int kv, int q)
{
    const struct hra_kernel_plan *p = t->plan;
    const int64_t row = (b * p->heads + h) * p->rows + p->query[q].row0;
    if (t->run->last[kv * p->queries + q] != t->run->run)
        return;
    for (int r = 0; r < p->query[q].rows; r++)
        write_row(hra_cpu_at(&t->backward->dq, p->type, b, p->query[q].row0 + r, h), p->type,
                  t->sums + (row + r) * p->dim, (REAL)p->scale, p->dim);
}

/* All of one key tile and K/V head: every query tile of the run, head by head of its group. */
static void backward_keys(const struct task *t, const struct scratch *x, const struct hra_chunk *chunk,
                          int tile, int64_t b, int kv, int want)
{
    const struct hra_kernel_plan *p = t->plan;
    const int group = p->heads / p->heads_kv;
    const struct keys keys = open_keys(t, x, chunk, tile, b, kv);

    for (int r = 0; chunk->zero && r < keys.rows; r++) {
        memset(keys.dk + r * chunk->dk.stride_row, 0, (size_t)p->dim * sizeof(REAL));
        memset(keys.dv + r * chunk->dv.stride_row, 0, (size_t)p->dim_v * sizeof(REAL));
    }
    for (int h = kv * group; h < (kv + 1) * group; h++) {
        const struct hra_tile_list *list = &p->list[p->pattern[b * p->heads + h]];
        const int64_t end = list->column_start[tile + 1];
        for (int64_t e = lower_bound(list->query, list->column_start[tile], end, t->run->query0);
             e < end && list->query[e] < t->run->query1; e++)
            backward_tile(t, x, &keys, b, h, list->query[e], list->column_bitmap[e], want);
    }
}

/* One pass: task i is (batch, K/V head) and does everything of it. */
static void backward_head_task(void *state, int64_t i, int thread)
{
    const struct task *t = state;
    const struct hra_kernel_plan *p = t->plan;
    const struct scratch x = scratch_of(t->cpu, thread);
    const int group = p->heads / p->heads_kv, kv = (int)(i % p->heads_kv);
    const int64_t b = i / p->heads_kv;

    for (int h = kv * group; h < (kv + 1) * group; h++)
        for (int q = t->run->query0; q < t->run->query1; q++)
            begin_dq(t, b, h, kv, q);
    for (int c = 0; c < t->run->chunks; c++) {
        const struct hra_chunk *chunk = &t->run->chunk[c];
        if (kv < chunk->head0 || kv >= chunk->head1)
            continue;
        for (int tile = chunk->key_tile0; tile < chunk->key_tile1; tile++)
            backward_keys(t, &x, chunk, tile, b, kv, WANT_DQ | WANT_DKV);
    }
    for (int h = kv * group; h < (kv + 1) * group; h++)
        for (int q = t->run->query0; q < t->run->query1; q++)
            end_dq(t, b, h, kv, q);
}

/* Two passes: task i is (batch, head, query tile) and does its dQ. */
static void backward_query_task(void *state, int64_t i, int thread)
{
    const struct task *t = state;
    const struct hra_kernel_plan *p = t->plan;
    const struct scratch x = scratch_of(t->cpu, thread);
    const struct place at = place_of(t, i);
    const int64_t b = at.b, h = at.h;
    const int q = at.q, kv = at.kv;
    const struct hra_tile_list *list = &p->list[p->pattern[b * p->heads + h]];
    const int64_t end = list->row_start[q + 1];

    begin_dq(t, b, h, kv, q);
    for (int c = 0; c < t->run->chunks; c++) {
        const struct hra_chunk *chunk = &t->run->chunk[c];
        if (kv < chunk->head0 || kv >= chunk->head1)
            continue;
        for (int64_t e = lower_bound(list->key, list->row_start[q], end, chunk->key_tile0);
             e < end && list->key[e] < chunk->key_tile1; e++) {
            const struct keys keys = open_keys(t, &x, chunk, list->key[e], b, kv);
            backward_tile(t, &x, &keys, b, h, q, list->bitmap[e], WANT_DQ);
        }
    }
    end_dq(t, b, h, kv, q);
}

/* ... and task i is (batch, K/V head, key tile) of one chunk and does its dK/dV. */
static void backward_keys_task(void *state, int64_t i, int thread)
{
    const struct task *t = state;
    const struct scratch x = scratch_of(t->cpu, thread);
    const int tiles = t->chunk->key_tile1 - t->chunk->key_tile0, heads = t->chunk->head1 - t->chunk->head0;

    backward_keys(t, &x, t->chunk, t->chunk->key_tile0 + (int)(i % tiles), i / tiles / heads,
                  t->chunk->head0 + (int)(i / tiles % heads), WANT_DKV);
}

/* K/V heads that the chunks of a run have. */
static int count_heads(const struct hra_run_args *run)
{
    int head0 = INT_MAX, head1 = 0;

    for (int c = 0; c < run->chunks; c++) {
        head0 = run->chunk[c].head0 < head0 ? run->chunk[c].head0 : head0;
        head1 = run->chunk[c].head1 > head1 ? run->chunk[c].head1 : head1;
    }
    return head0 < head1 ? head1 - head0 : 0;
}

void NAME(hra_cpu_backward)(struct hra_cpu *cpu, const struct hra_backward_args *args)
{
    const struct hra_kernel_plan *p = cpu->plan;
    const struct hra_run_args *run = &args->run;
    struct task t = {.cpu = cpu, .plan = p, .run = run, .backward = args, .sums = run->workspace};

    t.delta = t.sums + (size_t)p->batch * (size_t)p->heads * (size_t)p->rows * (size_t)p->dim;
    /* One pass does 5 products a tile, two passes do 7 but have work for more threads than there are heads. */
    if ((int64_t)p->batch * count_heads(run) >= p->threads) {
        hra_pool_run(cpu->pool, (int64_t)p->batch * p->heads_kv, backward_head_task, &t, run->poll);
        return;
    }
    hra_pool_run(cpu->pool, (int64_t)p->batch * p->heads * (run->query1 - run->query0), backward_query_task,
                 &t, run->poll);
    for (int c = 0; c < run->chunks; c++) {
        t.chunk = &run->chunk[c];
        hra_pool_run(cpu->pool,
                     (int64_t)p->batch * (t.chunk->head1 - t.chunk->head0) *
                         (t.chunk->key_tile1 - t.chunk->key_tile0),
                     backward_keys_task, &t, run->poll);
    }
}

/* ---- Whole rows ---- */

struct delta_task {
    const struct hra_cpu *cpu;
    const hra_tensor *o, *do_;
    const REAL *dlse;
    REAL *delta;
};

/* Task i is (batch, head, query tile). delta is the diagonal of dO O^T, by the product that dP is computed by: a row with
 * one key has O = v to the bit, so that its dP - delta is exactly 0. Sums of our own left gradients of rounding errors
 * there. It costs a fifth of one tile for each query tile. */
static void delta_task(void *state, int64_t i, int thread)
{
    const struct delta_task *t = state;
    const struct hra_kernel_plan *p = t->cpu->plan;
    const struct scratch x = scratch_of(t->cpu, thread);
    const struct hra_tile_rows *tile = &p->query[i % p->queries];
    const int64_t h = i / p->queries % p->heads, b = i / p->queries / p->heads;
    const int64_t row = (b * p->heads + h) * p->rows + tile->row0;
    const struct view o = read_tile(x.v, t->o, p->type, b, tile->row0, tile->rows, h, p->dim_v);
    const struct view g = read_tile(x.do_, t->do_, p->type, b, tile->row0, tile->rows, h, p->dim_v);

    GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, tile->rows, tile->rows, p->dim_v, 1, g.data, g.ld, o.data,
         o.ld, 0, x.dp, HRA_TILE);
    for (int r = 0; r < tile->rows; r++)
        t->delta[row + r] = x.dp[r * HRA_TILE + r] - (t->dlse == NULL ? 0 : t->dlse[row + r]);
}

void NAME(hra_cpu_delta)(struct hra_cpu *cpu, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                         void *workspace)
{
    const struct hra_kernel_plan *p = cpu->plan;
    struct delta_task t = {.cpu = cpu, .o = o, .do_ = do_, .dlse = dlse};

    t.delta = (REAL *)workspace + (size_t)p->batch * (size_t)p->heads * (size_t)p->rows * (size_t)p->dim;
    hra_pool_run(cpu->pool, (int64_t)p->batch * p->heads * p->queries, delta_task, &t,
                 (struct hra_poll){NULL, NULL});
}

void NAME(hra_cpu_add)(struct hra_cpu *cpu, const hra_tensor *to, const hra_tensor *from, int64_t rows,
                       int heads, int dim)
{
    for (int b = 0; b < cpu->plan->batch; b++)
        for (int h = 0; h < heads; h++)
            for (int64_t r = 0; r < rows; r++) {
                REAL *a = (REAL *)(void *)hra_cpu_at(to, REAL_TYPE, b, r, h);
                const REAL *x = (const REAL *)(const void *)hra_cpu_at(from, REAL_TYPE, b, r, h);
                for (int d = 0; d < dim; d++)
                    a[d] += x[d];
            }
}

void NAME(hra_cpu_scale)(struct hra_cpu *cpu, const hra_tensor *to, hra_type to_type, const hra_tensor *from,
                         int64_t rows, int heads, int dim, double factor)
{
    for (int b = 0; b < cpu->plan->batch; b++)
        for (int h = 0; h < heads; h++)
            for (int64_t r = 0; r < rows; r++)
                write_row(hra_cpu_at(to, to_type, b, r, h), to_type,
                          (const REAL *)(const void *)hra_cpu_at(from, REAL_TYPE, b, r, h), (REAL)factor,
                          dim);
}

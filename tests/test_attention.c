/* test_attention.c - forward and backward on one rank against the oracle: shapes, masks, orders, memory
 * layouts, threads, rows without keys, wrong use. */
#include "examples/tools/oracle.h"
#include "examples/tools/problem.h"
#include "kernels/kernels.h"

#include <cblas.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { Q, K, V, DO, DLSE, O, LSE, DQ, DK, DV, TENSORS, INPUTS = O };

static const struct {
    const char *name;
    int kv;    /* 1: has the key heads, 0: the query heads */
    int value; /* 1: has dim_v channels, 0: dim */
    int sums;  /* 1: [batch][heads][tokens] of hra_type_sums(type), 0: [batch][tokens][heads][channels] */
} kinds[TENSORS] = {{"q", 0, 0, 0}, {"k", 1, 0, 0},   {"v", 1, 1, 0},  {"do", 0, 1, 0}, {"dlse", 0, 0, 1},
                    {"o", 0, 1, 0}, {"lse", 0, 0, 1}, {"dq", 0, 0, 0}, {"dk", 1, 0, 0}, {"dv", 1, 1, 0}};

/* How tensors lie in memory. */
enum memory {
    BATCH_FIRST, /* (batch, seq, head, dim) */
    SEQ_FIRST,   /* (seq, batch, head, dim) */
    HEAD_FIRST,  /* (batch, head, seq, dim) */
    PADDED,      /* BATCH_FIRST with gaps after each head, row and sequence */
    BROADCAST    /* inputs: one sequence for all of the batch, stride_batch 0 */
};

/* Values only: Criterion copies rows into another process. */
struct shape {
    int batch, tokens, heads, heads_kv, dim, dim_v;
    hra_type type;
    int dlse, threads, head0;
    enum memory memory;
    double scale; /* 0: 1/sqrt(dim) */
    double size;  /* not 0: scores are large, q and k come times this */
    int64_t grid[3];
    char order[24], mask[72];
};

/* One problem: its numbers in token order, and the library's plan for it. */
struct trial {
    struct shape s;
    hra_comm *comm;
    hra_order *order;
    hra_mask *mask;
    hra_plan *plan;
    hra_plan_info info;
    int64_t *token;     /* [tokens] of each row */
    double *in[INPUTS]; /* numbers of the type; in[DLSE] NULL: none */
    double *exact[TENSORS], *plain[TENSORS];
};

static int heads_of(const struct shape *s, int n)
{
    return kinds[n].kv ? s->heads_kv : s->heads;
}

static int channels_of(const struct shape *s, int n)
{
    return kinds[n].sums ? 1 : kinds[n].value ? s->dim_v : s->dim;
}

static hra_type type_of(const struct shape *s, int n)
{
    return kinds[n].sums ? hra_type_sums(s->type) : s->type;
}

static int64_t count_of(const struct shape *s, int n)
{
    return (int64_t)s->batch * s->tokens * heads_of(s, n) * channels_of(s, n);
}

static void *take(size_t bytes)
{
    void *memory = calloc(1, bytes + 1);
    cr_assert_not_null(memory);
    return memory;
}

/* Index of (batch, token, head) in a whole tensor in token order. */
static int64_t whole_at(const struct shape *s, int n, int64_t b, int64_t token, int64_t h)
{
    return kinds[n].sums ? (b * s->heads + h) * s->tokens + token
                         : ((b * s->tokens + token) * heads_of(s, n) + h) * channels_of(s, n);
}

static void fill(struct trial *t)
{
    const struct shape *s = &t->s;

    for (int n = 0; n < INPUTS; n++) {
        const int64_t count = count_of(s, n), sequence = count / s->batch;
        const double size = n <= K && s->size != 0 ? s->size : 1;
        if (n == DLSE && !s->dlse)
            continue;
        void *rounded = take((size_t)count * sizeof(double));
        t->in[n] = take((size_t)count * sizeof(double));
        for (int64_t i = 0; i < count; i++)
            t->in[n][i] = size * random_normal(random_bits(7, (uint64_t)n),
                                               (uint64_t)(s->memory == BROADCAST ? i % sequence : i));
        cr_assert(eq(int, hra_convert(rounded, type_of(s, n), t->in[n], HRA_F64, count), HRA_OK));
        cr_assert(eq(int, hra_convert(t->in[n], HRA_F64, rounded, type_of(s, n), count), HRA_OK));
        free(rounded);
    }
}

static void solve(struct trial *t)
{
    const struct shape *s = &t->s;

    for (int plain = 0; plain < 2; plain++) {
        double **out = plain ? t->plain : t->exact;
        for (int n = INPUTS; n < TENSORS; n++)
            out[n] = take((size_t)count_of(s, n) * sizeof(double));
        const struct oracle a = {.mask = t->mask,
                                 .batch = s->batch,
                                 .tokens = s->tokens,
                                 .heads = s->heads,
                                 .heads_kv = s->heads_kv,
                                 .head0 = s->head0,
                                 .dim = s->dim,
                                 .dim_v = s->dim_v,
                                 .scale = s->scale != 0 ? s->scale : 1 / sqrt(s->dim),
                                 .q = t->in[Q],
                                 .k = t->in[K],
                                 .v = t->in[V],
                                 .do_ = t->in[DO],
                                 .dlse = t->in[DLSE],
                                 .o = out[O],
                                 .lse = out[LSE],
                                 .dq = out[DQ],
                                 .dk = out[DK],
                                 .dv = out[DV],
                                 .step = 1};
        cr_assert(eq(int, plain ? oracle_plain(&a, s->type) : oracle_exact(&a), 0));
    }
}

static void make_plan_with(struct trial *t, int threads, hra_rows_kind rows, hra_saved_kind saved)
{
    const struct shape *s = &t->s;
    hra_problem p = HRA_PROBLEM_INIT;
    hra_options options = HRA_OPTIONS_INIT;

    p.batch = s->batch;
    p.heads = s->heads;
    p.heads_kv = s->heads_kv;
    p.head0 = s->head0;
    p.dim = s->dim;
    p.dim_v = s->dim_v;
    p.tokens = s->tokens;
    p.type = s->type;
    p.scale = s->scale;
    p.threads = threads;
    options.rows = rows;
    options.saved = saved;
    cr_assert(eq(int, hra_plan_create(&t->plan, t->comm, &p, t->order, t->mask, &options), HRA_OK), "%s",
              hra_last_error());
    t->info = (hra_plan_info){.size = sizeof(t->info)};
    cr_assert(eq(int, hra_plan_get_info(t->plan, &t->info), HRA_OK));
    cr_assert(eq(int, hra_plan_row_index(t->plan, 0, NULL, t->token), HRA_OK));
    for (int64_t i = 0; rows == HRA_ROWS_TOKENS && i < s->tokens; i++)
        t->token[i] = i;
}

static void make_plan(struct trial *t, int threads)
{
    make_plan_with(t, threads, HRA_ROWS_SLOTS, HRA_SAVED_NOTHING);
}

static struct trial begin(const struct shape *s)
{
    struct trial t = {.s = *s};
    hra_domain d = HRA_DOMAIN_INIT;

    d.batch = s->batch;
    d.heads = s->head0 + s->heads;
    d.tokens = s->tokens;
    memcpy(d.grid, s->grid, sizeof(d.grid));
    cr_assert(eq(int, hra_order_create(&t.order, &d, s->order), HRA_OK), "%s", hra_last_error());
    cr_assert(eq(int, hra_mask_parse(&t.mask, &d, t.order, s->mask), HRA_OK), "%s", hra_last_error());
    cr_assert(eq(int, hra_comm_create_self(&t.comm), HRA_OK));
    t.token = take((size_t)s->tokens * sizeof(int64_t));
    make_plan(&t, s->threads);
    fill(&t);
    return t;
}

static void end(struct trial *t)
{
    hra_plan_destroy(t->plan);
    hra_mask_destroy(t->mask);
    hra_order_destroy(t->order);
    cr_expect(eq(int, hra_comm_destroy(t->comm), HRA_OK));
    free(t->token);
    for (int n = 0; n < TENSORS; n++) {
        if (n < INPUTS)
            free(t->in[n]);
        free(t->exact[n]);
        free(t->plain[n]);
    }
}

/* ---- Running the library ---------------------------------------------------------------------- */

enum { GUARD = 64, GUARD_BYTE = 0x5a, UNWRITTEN = 0xff }; /* 0xff.. is NaN in every type */

/* Memory between two guards of GUARD bytes, 64-byte aligned. */
struct fence {
    unsigned char *start;
    size_t bytes; /* between the guards */
};

static struct fence fence(size_t bytes)
{
    struct fence f = {aligned_alloc(64, (bytes + 2 * GUARD + 63) / 64 * 64), bytes};
    cr_assert_not_null(f.start);
    memset(f.start, GUARD_BYTE, GUARD + bytes + GUARD);
    memset(f.start + GUARD, UNWRITTEN, bytes);
    return f;
}

static int guards_hold(const struct fence *f)
{
    for (size_t n = 0; n < GUARD; n++)
        if (f->start[n] != GUARD_BYTE || f->start[GUARD + f->bytes + n] != GUARD_BYTE)
            return 0;
    return 1;
}

/* The memory of one run. */
struct run {
    struct fence memory[TENSORS], work, saved;
    hra_tensor view[TENSORS];
};

static hra_tensor layout(const struct shape *s, int n, void *data)
{
    const int64_t heads = heads_of(s, n), c = channels_of(s, n), rows = s->tokens, row = heads * c;
    const int64_t head = c + 3, wide = heads * head + 5;

    if (kinds[n].sums)
        return (hra_tensor){data, heads * rows, 1, rows};
    switch (s->memory) {
    case SEQ_FIRST:
        return (hra_tensor){data, row, s->batch * row, c};
    case HEAD_FIRST:
        return (hra_tensor){data, rows * row, c, rows * c};
    case PADDED:
        return (hra_tensor){data, rows * wide + 7, wide, head};
    case BROADCAST:
        return (hra_tensor){data, n < INPUTS ? 0 : rows * row, row, c};
    default:
        return (hra_tensor){data, rows * row, row, c};
    }
}

static unsigned char *place(const struct trial *t, const struct run *r, int n, int64_t b, int64_t row,
                            int64_t h)
{
    const hra_tensor *v = &r->view[n];
    const int64_t at = b * v->stride_batch + row * v->stride_row + h * v->stride_head;
    return (unsigned char *)v->data + (size_t)at * hra_type_bytes(type_of(&t->s, n));
}

/* Copy rows of tensor n: into the run where `in`, else out of it. */
static void move(const struct trial *t, const struct run *r, int n, double *whole, int in)
{
    const struct shape *s = &t->s;

    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t row = 0; row < s->tokens; row++)
            for (int64_t h = 0; h < heads_of(s, n); h++) {
                double *there = whole + whole_at(s, n, b, t->token[row], h);
                void *here = place(t, r, n, b, row, h);
                if (in)
                    hra_convert(here, type_of(s, n), there, HRA_F64, channels_of(s, n));
                else
                    hra_convert(there, HRA_F64, here, type_of(s, n), channels_of(s, n));
            }
}

static struct run prepare(const struct trial *t)
{
    const struct shape *s = &t->s;
    struct run r;

    for (int n = 0; n < TENSORS; n++) {
        const hra_tensor v = layout(s, n, NULL);
        const int64_t b = s->memory == BROADCAST && n < INPUTS && !kinds[n].sums ? 1 : s->batch;
        const int64_t elements = (b - 1) * v.stride_batch + (s->tokens - 1) * v.stride_row +
                                 (heads_of(s, n) - 1) * v.stride_head + channels_of(s, n);
        r.memory[n] = fence((size_t)elements * hra_type_bytes(type_of(s, n)));
        r.view[n] = layout(s, n, r.memory[n].start + GUARD);
        if (n < INPUTS && t->in[n] != NULL)
            move(t, &r, n, t->in[n], 1);
    }
    r.work = fence(t->info.workspace_bytes);
    r.saved = fence(t->info.saved_bytes);
    return r;
}

static void *saved_of(const struct trial *t, const struct run *r)
{
    return t->info.saved_bytes > 0 ? r->saved.start + GUARD : NULL;
}

static hra_status forward(const struct trial *t, const struct run *r)
{
    const hra_tensor *v = r->view;
    return hra_forward(t->plan, &v[Q], &v[K], &v[V], &v[O], v[LSE].data, r->work.start + GUARD,
                       saved_of(t, r), NULL);
}

static hra_status backward(const struct trial *t, const struct run *r)
{
    const hra_tensor *v = r->view;
    return hra_backward(t->plan, &v[Q], &v[K], &v[V], &v[O], v[LSE].data, &v[DO],
                        t->in[DLSE] != NULL ? v[DLSE].data : NULL, &v[DQ], &v[DK], &v[DV],
                        r->work.start + GUARD, saved_of(t, r), NULL);
}

/* Every byte of output n that is no element of it is as it was. */
static int gaps_hold(const struct trial *t, const struct run *r, int n)
{
    const struct shape *s = &t->s;
    const size_t row_bytes = (size_t)channels_of(s, n) * hra_type_bytes(type_of(s, n));
    char *covered = take(r->memory[n].bytes);
    int ok = 1;

    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t row = 0; row < s->tokens; row++)
            for (int64_t h = 0; h < heads_of(s, n); h++)
                memset(covered + (place(t, r, n, b, row, h) - r->memory[n].start - GUARD), 1, row_bytes);
    for (size_t i = 0; i < r->memory[n].bytes; i++)
        ok = ok && (covered[i] || r->memory[n].start[GUARD + i] == UNWRITTEN);
    free(covered);
    return ok;
}

/* Forward and backward into fresh memory. */
static struct run execute(const struct trial *t)
{
    struct run r = prepare(t), fresh = prepare(t);

    cr_assert(eq(int, forward(t, &r), HRA_OK), "%s", hra_last_error());
    cr_assert(guards_hold(&r.work) && guards_hold(&r.saved));
    memset(r.work.start + GUARD, UNWRITTEN, r.work.bytes); /* nothing may be kept in it */
    cr_assert(eq(int, backward(t, &r), HRA_OK), "%s", hra_last_error());
    cr_assert(guards_hold(&r.work));
    for (int n = 0; n < TENSORS; n++) {
        cr_assert(guards_hold(&r.memory[n]), "written around %s", kinds[n].name);
        cr_assert(n < INPUTS || gaps_hold(t, &r, n), "written between the rows of %s", kinds[n].name);
        cr_assert(n >= INPUTS || memcmp(fresh.memory[n].start, r.memory[n].start, fresh.memory[n].bytes) == 0,
                  "%s was changed", kinds[n].name);
        free(fresh.memory[n].start);
    }
    free(fresh.work.start);
    free(fresh.saved.start);
    return r;
}

static void drop(struct run *r)
{
    for (int n = 0; n < TENSORS; n++)
        free(r->memory[n].start);
    free(r->work.start);
    free(r->saved.start);
}

static void expect_same_bits(const struct run *a, const struct run *b, const char *why)
{
    for (int n = INPUTS; n < TENSORS; n++)
        cr_expect(memcmp(a->memory[n].start, b->memory[n].start, a->memory[n].bytes) == 0, "%s: %s differs",
                  why, kinds[n].name);
}

/* ---- The verdict ------------------------------------------------------------------------------ */

static double norm(const double *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; x != NULL && i < count; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

/* The largest 2-norm of a head's channels in an input. */
static double longest(const struct trial *t, int n)
{
    const int channels = channels_of(&t->s, n);
    double most = 0;
    for (int64_t at = 0; at < count_of(&t->s, n); at += channels)
        most = fmax(most, norm(t->in[n] + at, channels));
    return most;
}

/* The size that output n can have with these inputs: the unit of errors where the reference is zero. */
static double natural_size(const struct trial *t, int n)
{
    const struct shape *s = &t->s;
    const double rows = sqrt((double)s->batch * s->tokens * s->heads);
    const double scale = s->scale != 0 ? fabs(s->scale) : 1 / sqrt(s->dim);
    const double do_ = norm(t->in[DO], count_of(s, DO));
    const double ds = do_ * longest(t, V) + norm(t->in[DLSE], count_of(s, DLSE));

    return n == O     ? rows * longest(t, V)
           : n == LSE ? rows * scale * longest(t, Q) * longest(t, K)
           : n == DV  ? do_
                      : scale * ds * longest(t, n == DQ ? K : Q);
}

/* 1 where no pair reaches this row: a query without keys, a key without queries. */
static int *find_empty(const struct trial *t, int kv)
{
    const struct shape *s = &t->s;
    const int heads = kv ? s->heads_kv : s->heads, group = s->heads / s->heads_kv;
    int *empty = take((size_t)s->batch * (size_t)s->tokens * (size_t)heads * sizeof(*empty));

    for (int64_t i = 0; i < (int64_t)s->batch * s->tokens * heads; i++)
        empty[i] = 1;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < s->heads; h++)
            for (int64_t i = 0; i < s->tokens; i++)
                for (int64_t j = 0; j < s->tokens; j++)
                    if (hra_mask_count(t->mask, b, s->head0 + h, i, j) > 0)
                        empty[(b * s->tokens + (kv ? j : i)) * heads + (kv ? h / group : h)] = 0;
    return empty;
}

/* |err| / |ref| of output n, within twice the plain error and two roundings; empty rows exact; nothing NaN.
 * Where scores are large, P = exp(s - LSE) has the relative error of the LSE that is kept between the passes,
 * |LSE| times a rounding, whatever evaluates it; the plain evaluation keeps its P instead. */
static void expect_right(const struct trial *t, const struct run *r, int n)
{
    const struct shape *s = &t->s;
    const double unit_of[] = {
        [HRA_F64] = 0x1p-53, [HRA_F32] = 0x1p-24, [HRA_BF16] = 0x1p-8, [HRA_F16] = 0x1p-11};
    const double u = unit_of[type_of(s, n)];
    double *got = take((size_t)count_of(s, n) * sizeof(*got)), error = 0, plain = 0, size = 0;
    int *empty = find_empty(t, kinds[n].kv);

    move(t, r, n, got, 0);
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t token = 0; token < s->tokens; token++)
            for (int64_t h = 0; h < heads_of(s, n); h++)
                for (int c = 0; c < channels_of(s, n); c++) {
                    const int64_t at = whole_at(s, n, b, token, h) + c;
                    const double x = got[at], ref = t->exact[n][at];
                    if (empty[(b * s->tokens + token) * heads_of(s, n) + h]) {
                        cr_assert(x == (n == LSE ? -INFINITY : 0),
                                  "%s of token %ld, which has no pair, is %g", kinds[n].name, (long)token, x);
                        continue;
                    }
                    cr_assert(isfinite(x), "%s of token %ld, head %ld is %g", kinds[n].name, (long)token,
                              (long)h, x);
                    error += (x - ref) * (x - ref);
                    plain += (t->plain[n][at] - ref) * (t->plain[n][at] - ref);
                    size += ref * ref;
                }
    const double unit = sqrt(size) <= u * natural_size(t, n) ? natural_size(t, n) : sqrt(size);
    double lse = 0;
    for (int64_t i = 0; i < count_of(s, LSE) && s->size != 0 && n >= DQ; i++)
        lse = isinf(t->exact[LSE][i]) ? lse : fmax(lse, fabs(t->exact[LSE][i]));
    const double kept = lse * unit_of[hra_type_sums(s->type)];
    const double limit = s->type == HRA_F64 ? 1e-12 : 2 * sqrt(plain) / unit + 2 * u + kept;
    cr_expect(sqrt(error) <= limit * unit, "%s: |err|/|ref| %.3e, limit %.3e", kinds[n].name,
              sqrt(error) / unit, limit);
    free(got);
    free(empty);
}

/* ---- Against the oracle ----------------------------------------------------------------------- */

ParameterizedTestParameters(attention, matches_oracle)
{
    static struct shape rows[] = {
        /* batch, tokens, heads, heads_kv, dim, dim_v, type, dlse, threads, head0, memory, scale, size, ... */
        {3, 1, 12, 12, 3, 3, HRA_F32, 1, 2, 0, BATCH_FIRST, 0, 0, {0}, "identity", "full"},
        {3, 1, 12, 1, 1, 64, HRA_F64, 1, 1, 0, BATCH_FIRST, 0, 0, {0}, "identity", "causal"},
        {1, 127, 4, 4, 64, 64, HRA_F32, 1, 2, 0, BATCH_FIRST, 0, 0, {0}, "identity", "causal"},
        {1, 127, 2, 1, 65, 3, HRA_F64, 0, 1, 0, SEQ_FIRST, 0, 0, {0}, "morton", "causal"},
        {2, 128, 4, 2, 1, 1, HRA_F32, 1, 2, 0, BATCH_FIRST, 0, 0, {0}, "identity", "full"},
        {1, 128, 12, 1, 64, 1, HRA_BF16, 1, 3, 0, HEAD_FIRST, 0, 0, {0}, "snake", "causal"},
        {3, 129, 4, 4, 3, 65, HRA_F64, 1, 2, 0, PADDED, 0, 0, {0}, "identity", "causal | window(0,9)"},
        {1, 129, 1, 1, 256, 256, HRA_F32, 0, 2, 0, SEQ_FIRST, 0, 0, {0}, "hilbert", "causal"},
        {1, 129, 1, 1, 64, 64, HRA_F16, 1, 2, 0, PADDED, 0, 0, {0}, "identity", "full"},
        {2, 300, 4, 1, 65, 64, HRA_BF16, 0, 2, 0, SEQ_FIRST, 0.3, 0, {0}, "hilbert", "causal & window(99,0)"},
        {1, 300, 4, 2, 256, 3, HRA_F16, 1, 1, 0, HEAD_FIRST, 0, 0, {0}, "identity", "docs(1,130,169)"},
        {1, 300, 3, 3, 64, 65, HRA_F32, 1, 2, 0, PADDED, -0.2, 0, {0}, "hilbert", "window(50,-20)"},
        {3, 300, 2, 1, 32, 32, HRA_F32, 1, 2, 0, BROADCAST, 0, 0, {0}, "identity", "causal"},
        {3, 130, 2, 2, 32, 32, HRA_F16, 1, 2, 0, BROADCAST, 0, 0, {0}, "morton", "full"},
        {1,
         300,
         6,
         3,
         16,
         16,
         HRA_F32,
         1,
         2,
         3,
         PADDED,
         0,
         0,
         {0},
         "identity",
         "heads(0-3: full; 4-5: causal; 6-8: window(9,9))"},
        {1, 0, 2, 2, 64, 64, HRA_F32, 1, 2, 0, BATCH_FIRST, 0, 0, {20, 17, 0}, "hilbert", "grid(3,2)"},
        {1,
         0,
         2,
         1,
         64,
         64,
         HRA_F64,
         1,
         2,
         0,
         BATCH_FIRST,
         0,
         0,
         {5, 9, 8},
         "boxes:2x4x4",
         "neighbourhood(3,5,3)"},
        {1,
         0,
         2,
         2,
         8,
         8,
         HRA_F64,
         0,
         2,
         0,
         BATCH_FIRST,
         0,
         0,
         {16, 20, 0},
         "boxes:8x16",
         "blocks(32; 0:1 2; 3:0; 9:9) | grid(1,1)"},
        {2,
         300,
         2,
         1,
         16,
         16,
         HRA_F64,
         1,
         2,
         0,
         PADDED,
         0,
         0,
         {0},
         "snake",
         "batches(0: causal; 1: !causal)"},
        {1, 300, 3, 3, 8, 8, HRA_F32, 1, 2, 2, SEQ_FIRST, 0, 0, {0}, "hilbert", "slots(dilated(90,4,head))"},
        {1,
         0,
         2,
         1,
         8,
         8,
         HRA_F64,
         1,
         1,
         0,
         HEAD_FIRST,
         0,
         0,
         {18, 15, 0},
         "boxes:4x4",
         "neighbourhood(5,4; 3,2)"},
        /* pairs that attend more than once */
        {2, 300, 4, 2, 64, 32, HRA_F32, 1, 2, 0, PADDED, 0, 0, {0}, "hilbert", "mix(full; slots(global(9)))"},
        {1, 200, 3, 1, 16, 16, HRA_F64, 1, 2, 0, PADDED, 0, 0, {0}, "snake", "longnet(32:1, 99:2, 200:4)"},
        {1, 260, 2, 2, 32, 32, HRA_BF16, 0, 2, 0, SEQ_FIRST, 0, 0, {0}, "identity", "mix(full; full)"},
        {1, 150, 5, 5, 7, 7, HRA_F16, 1, 2, 0, PADDED, 0, 0, {0}, "morton", "!causal & mix(full; full)"},
        /* large scores: q and k times 30, scale 1 or -1 */
        {1, 140, 2, 2, 64, 64, HRA_F32, 1, 2, 0, BATCH_FIRST, 1, 30, {0}, "identity", "causal"},
        {1, 140, 2, 2, 64, 64, HRA_F32, 1, 2, 0, BATCH_FIRST, -1, 30, {0}, "identity", "full"},
        {1, 140, 2, 2, 64, 64, HRA_F64, 1, 2, 0, BATCH_FIRST, 1, 30, {0}, "identity", "causal"},
        {1, 140, 2, 2, 64, 64, HRA_BF16, 1, 2, 0, BATCH_FIRST, 1, 30, {0}, "identity", "causal"},
        {1, 140, 2, 2, 64, 64, HRA_F16, 1, 2, 0, BATCH_FIRST, -1, 5, {0}, "identity", "causal"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (int a = 0, n = 1; a < 3 && rows[i].grid[0] > 0; a++)
            rows[i].tokens = n *= rows[i].grid[a] > 0 ? (int)rows[i].grid[a] : 1;
    return cr_make_param_array(struct shape, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct shape *s, attention, matches_oracle, .timeout = 120)
{
    struct trial t = begin(s);
    struct run first = execute(&t), again = execute(&t);

    expect_same_bits(&first, &again, "the second run");
    solve(&t);
    for (int n = INPUTS; n < TENSORS; n++)
        expect_right(&t, &first, n);
    drop(&first);
    drop(&again);
    end(&t);
}

/* All scores far below zero: every exponential underflows unless the row's maximum is taken off first. */
Test(attention, very_negative_scores)
{
    const struct shape s = {.batch = 1,
                            .tokens = 200,
                            .heads = 2,
                            .heads_kv = 2,
                            .dim = 16,
                            .dim_v = 8,
                            .type = HRA_F32,
                            .dlse = 1,
                            .threads = 2,
                            .scale = 1,
                            .size = 1,
                            .order = "identity",
                            .mask = "causal"};
    struct trial t = begin(&s);

    for (int64_t i = 0; i < count_of(&s, Q); i++) {
        t.in[Q][i] = 20 + t.in[Q][i] / 64; /* scores near -6400 that differ by a few */
        t.in[K][i] = -20 + t.in[K][i] / 64;
        t.in[Q][i] = (float)t.in[Q][i];
        t.in[K][i] = (float)t.in[K][i];
    }
    struct run r = execute(&t);
    solve(&t);
    for (int n = INPUTS; n < TENSORS; n++)
        expect_right(&t, &r, n);
    drop(&r);
    end(&t);
}

Test(attention, lse_may_be_left_out)
{
    const struct shape s = {.batch = 2,
                            .tokens = 150,
                            .heads = 2,
                            .heads_kv = 1,
                            .dim = 24,
                            .dim_v = 8,
                            .type = HRA_F32,
                            .threads = 2,
                            .order = "hilbert",
                            .mask = "causal"};
    struct trial t = begin(&s);
    struct run with = prepare(&t), without = prepare(&t);
    const hra_tensor *v = without.view;

    cr_assert(eq(int, forward(&t, &with), HRA_OK));
    cr_assert(
        eq(int, hra_forward(t.plan, &v[Q], &v[K], &v[V], &v[O], NULL, without.work.start + GUARD, NULL, NULL),
           HRA_OK));
    cr_expect(memcmp(with.memory[O].start, without.memory[O].start, with.memory[O].bytes) == 0);
    for (size_t i = 0; i < without.memory[LSE].bytes; i++)
        cr_assert(without.memory[LSE].start[GUARD + i] == UNWRITTEN);
    drop(&with);
    drop(&without);
    end(&t);
}

/* ---- Rows without pairs ----------------------------------------------------------------------- */

struct empty {
    hra_type type;
    int tokens, queries_from,
        keys_below; /* queries from here on see no key, keys below here are seen by none */
    char mask[32];
};

ParameterizedTestParameters(attention, rows_without_pairs_are_zero)
{
    static struct empty rows[] = {
        {HRA_F32, 150, 148, 2, "window(-2,-)"},      /* some rows of a tile */
        {HRA_F64, 300, 100, 200, "window(-200,-)"},  /* tiles in which rows are empty, and whole tiles */
        {HRA_BF16, 384, 256, 128, "window(-128,-)"}, /* whole tiles */
        {HRA_F16, 140, 0, 140, "window(-140,-)"},    /* everything */
    };
    return cr_make_param_array(struct empty, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct empty *e, attention, rows_without_pairs_are_zero)
{
    struct shape s = {.batch = 1,
                      .tokens = e->tokens,
                      .heads = 2,
                      .heads_kv = 2,
                      .dim = 16,
                      .dim_v = 5,
                      .dlse = 1,
                      .type = e->type,
                      .threads = 2,
                      .order = "identity"};
    strcpy(s.mask, e->mask);
    struct trial t = begin(&s);
    struct run r = execute(&t);

    for (int n = INPUTS; n < TENSORS; n++) {
        double *got = take((size_t)count_of(&s, n) * sizeof(*got));
        move(&t, &r, n, got, 0);
        for (int64_t token = 0; token < s.tokens; token++) {
            const int empty = kinds[n].kv ? token < e->keys_below : token >= e->queries_from;
            for (int64_t h = 0; h < 2; h++) {
                double sum = 0;
                for (int c = 0; c < channels_of(&s, n); c++)
                    sum += fabs(got[whole_at(&s, n, 0, token, h) + c]);
                cr_assert(isnan(sum) == 0, "%s of token %ld", kinds[n].name, (long)token);
                /* One key alone has P = 1: dq and dk are zero there but for rounding. */
                cr_assert(empty ? sum == (n == LSE ? INFINITY : 0) : sum > 0 || n == DQ || n == DK,
                          "%s of token %ld: %g", kinds[n].name, (long)token, sum);
            }
        }
        free(got);
    }
    drop(&r);
    end(&t);
}

/* Key tiles that no query attends to, and query tiles that attend to nothing, are not read: what they hold,
 * be it NaN, changes no bit. (Inside a tile that is read, 0 x NaN is NaN; no promise is made there.) */
Test(attention, unused_tiles_are_not_read)
{
    const struct shape s = {.batch = 1,
                            .tokens = 384,
                            .heads = 2,
                            .heads_kv = 1,
                            .dim = 16,
                            .dim_v = 16,
                            .type = HRA_F32,
                            .threads = 2,
                            .order = "identity",
                            .mask = "window(-128,-)"};
    struct trial t = begin(&s);
    struct run clean = execute(&t);

    for (int n = Q; n <= DO; n++) {
        const int64_t row = heads_of(&s, n) * channels_of(&s, n), from = n == K || n == V ? 0 : 256;
        for (int64_t i = from * row; i < (from + 128) * row; i++)
            t.in[n][i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    }
    struct run poisoned = execute(&t);
    expect_same_bits(&clean, &poisoned, "NaN in unused tiles");
    drop(&clean);
    drop(&poisoned);
    end(&t);
}

/* A query that is NaN is no query without keys: its row is NaN, as in a dense softmax, and no other is. */
Test(attention, nan_queries_give_nan)
{
    const struct shape s = {.batch = 1,
                            .tokens = 200,
                            .heads = 2,
                            .heads_kv = 2,
                            .dim = 8,
                            .dim_v = 8,
                            .type = HRA_F32,
                            .threads = 1,
                            .order = "identity",
                            .mask = "window(150,-)"};
    struct trial t = begin(&s);
    double *o = take((size_t)count_of(&s, O) * sizeof(*o)),
           *lse = take((size_t)count_of(&s, LSE) * sizeof(*lse));

    t.in[Q][whole_at(&s, Q, 0, 160, 1)] = NAN;
    struct run r = execute(&t);
    move(&t, &r, O, o, 0);
    move(&t, &r, LSE, lse, 0);
    for (int64_t token = 0; token < s.tokens; token++)
        for (int h = 0; h < 2; h++) {
            const int want = token == 160 && h == 1;
            const double x = o[whole_at(&s, O, 0, token, h)], y = lse[whole_at(&s, LSE, 0, token, h)];
            cr_expect(want ? isnan(x) && isnan(y) : isfinite(x) && isfinite(y),
                      "token %ld, head %d: o %g, lse %g", (long)token, h, x, y);
        }
    free(o);
    free(lse);
    drop(&r);
    end(&t);
}

/* Key 99 is seen by nobody but lies in a tile that is read: its products overflow and stay out of sums. */
Test(attention, forbidden_pairs_may_overflow)
{
    const struct shape s = {.batch = 1,
                            .tokens = 100,
                            .heads = 2,
                            .heads_kv = 1,
                            .dim = 16,
                            .dim_v = 16,
                            .type = HRA_F32,
                            .threads = 2,
                            .dlse = 1,
                            .order = "identity",
                            .mask = "window(-,-1)"};
    struct trial t = begin(&s);
    struct run small = execute(&t);

    for (int n = K; n <= V; n++)
        for (int c = 0; c < 16; c++)
            t.in[n][whole_at(&s, n, 0, 99, 0) + c] = 0x1p127;
    struct run large = execute(&t);
    expect_same_bits(&small, &large, "a huge key that nobody sees");
    drop(&small);
    drop(&large);
    end(&t);
}

/* ---- Threads ---------------------------------------------------------------------------------- */

/* With fewer (sequence, key head) pairs than threads the backward pass takes two passes, else one. */
ParameterizedTestParameters(attention, same_bits_for_any_threads)
{
    static struct shape rows[] = {
        {1, 300, 1, 1, 64, 64, HRA_F32, 1, 1, 0, BATCH_FIRST, 0, 0, {0}, "hilbert", "causal"},
        {1, 513, 4, 1, 65, 3, HRA_F64, 0, 1, 0, BATCH_FIRST, 0, 0, {0}, "identity", "window(200,7)"},
        {1, 300, 4, 2, 64, 32, HRA_BF16, 1, 1, 0, BATCH_FIRST, 0, 0, {0}, "identity", "causal"},
        {2, 300, 6, 3, 64, 64, HRA_F32, 1, 1, 0, BATCH_FIRST, 0, 0, {0}, "identity", "full"},
    };
    return cr_make_param_array(struct shape, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct shape *s, attention, same_bits_for_any_threads, .timeout = 120)
{
    static const int threads[] = {2, 3, 5};
    struct trial t = begin(s);
    struct run one = execute(&t);

    for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++) {
        hra_plan_destroy(t.plan);
        make_plan(&t, threads[i]);
        cr_assert(t.info.threads == threads[i] || openblas_get_parallel() == OPENBLAS_SEQUENTIAL);
        struct run many = execute(&t);
        expect_same_bits(&one, &many, "more threads");
        drop(&many);
    }
    drop(&one);
    end(&t);
}

/* An output in token order. */
static double *whole_of(const struct trial *t, const struct run *r, int n)
{
    double *whole = take((size_t)(t->s.batch * t->s.tokens * heads_of(&t->s, n) * channels_of(&t->s, n)) *
                         sizeof(*whole));
    move(t, r, n, whole, 0);
    return whole;
}

ParameterizedTestParameters(attention, rows_by_token_give_the_same_bits)
{
    static struct shape rows[] = {
        {1, 300, 1, 1, 64, 64, HRA_F32, 1, 1, 0, BATCH_FIRST, 0, 0, {0}, "hilbert", "causal"},
        {2, 320, 4, 2, 64, 32, HRA_BF16, 1, 2, 0, PADDED, 0, 0, {16, 20}, "boxes:4x8", "grid(3,3)"},
        {2,
         300,
         6,
         3,
         16,
         16,
         HRA_F16,
         0,
         1,
         0,
         SEQ_FIRST,
         0,
         0,
         {0},
         "residues:100:4",
         "dilated(100,4,0,both)"},
        {1, 257, 2, 1, 65, 3, HRA_F64, 1, 1, 0, HEAD_FIRST, 0, 0, {0}, "morton", "window(90,20)"},
        {1, 130, 1, 1, 8, 8, HRA_F32, 0, 1, 0, BATCH_FIRST, 0, 0, {0}, "identity", "full"},
    };
    return cr_make_param_array(struct shape, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct shape *s, attention, rows_by_token_give_the_same_bits)
{
    static const hra_saved_kind saved[] = {HRA_SAVED_NOTHING, HRA_SAVED_QKV};
    const int reorders = strcmp(s->order, "identity") != 0;
    struct trial slots = begin(s), tokens = begin(s);
    struct run a = execute(&slots);

    cr_expect(eq(int, slots.info.reorders_forward, 0));
    for (int i = 0; i < 2; i++) {
        hra_plan_destroy(tokens.plan);
        make_plan_with(&tokens, s->threads, HRA_ROWS_TOKENS, saved[i]);
        cr_expect(eq(int, tokens.info.reorders_forward, reorders));
        cr_expect(eq(int, tokens.info.reorders_backward, reorders));
        cr_expect(eq(int, tokens.info.saved_bytes > 0, reorders && saved[i] == HRA_SAVED_QKV));
        struct run b = execute(&tokens);
        for (int n = INPUTS; n < TENSORS; n++) {
            double *one = whole_of(&slots, &a, n), *two = whole_of(&tokens, &b, n);
            const size_t count = (size_t)(s->batch * s->tokens * heads_of(s, n) * channels_of(s, n));
            cr_expect(memcmp(one, two, count * sizeof(*one)) == 0, "%s differs", kinds[n].name);
            free(one);
            free(two);
        }
        drop(&b);
    }
    drop(&a);
    end(&slots);
    end(&tokens);
}

/* The number of OpenBLAS threads belongs to the process. */
Test(attention, blas_threads_are_given_back)
{
    const struct shape s = {.batch = 1,
                            .tokens = 130,
                            .heads = 2,
                            .heads_kv = 2,
                            .dim = 16,
                            .dim_v = 16,
                            .type = HRA_F32,
                            .threads = 2,
                            .order = "identity",
                            .mask = "causal"};
    struct trial t = begin(&s);

    openblas_set_num_threads(2);
    const int before = openblas_get_num_threads();
    struct run r = execute(&t);
    cr_expect(eq(int, openblas_get_num_threads(), before));
    drop(&r);
    end(&t);
}

/* Plans of one communicator, of different sizes, executed in turn with one workspace. */
Test(attention, plans_take_turns)
{
    const struct shape small = {.batch = 1,
                                .tokens = 70,
                                .heads = 1,
                                .heads_kv = 1,
                                .dim = 16,
                                .dim_v = 16,
                                .type = HRA_F32,
                                .threads = 1,
                                .order = "identity",
                                .mask = "causal"};
    struct shape large = small;
    large.tokens = 300;
    large.heads = large.heads_kv = 3;
    struct trial a = begin(&small), b = begin(&large);
    hra_comm *spare = b.comm;

    hra_plan_destroy(b.plan);
    b.comm = a.comm;
    make_plan(&b, 2);
    struct run a1 = execute(&a), b1 = execute(&b), a2 = prepare(&a);
    struct fence own = a2.work;
    a2.work = b1.work;
    cr_assert(eq(int, forward(&a, &a2), HRA_OK));
    cr_assert(eq(int, backward(&a, &a2), HRA_OK));
    expect_same_bits(&a1, &a2, "after another plan");
    solve(&b);
    for (int n = INPUTS; n < TENSORS; n++)
        expect_right(&b, &b1, n);
    a2.work = own;
    drop(&a1);
    drop(&a2);
    drop(&b1);
    hra_plan_destroy(b.plan);
    b.plan = NULL;
    b.comm = spare;
    end(&b);
    end(&a);
}

/* ---- Wrong use -------------------------------------------------------------------------------- */

/* A correct call, one argument of which is made wrong. */
struct call {
    hra_plan *plan;
    hra_tensor view[TENSORS];
    const hra_tensor *at[TENSORS]; /* what is passed */
    void *lse, *work, *stream;
};

static struct call correct(const struct trial *t, const struct run *r)
{
    struct call c = {.plan = t->plan, .lse = r->view[LSE].data, .work = r->work.start + GUARD};
    memcpy(c.view, r->view, sizeof(c.view));
    return c;
}

static hra_status call(const struct call *c, hra_pass pass)
{
    const hra_tensor *v[TENSORS];

    for (int n = 0; n < TENSORS; n++)
        v[n] = c->at[n] == &c->view[n] ? NULL : &c->view[n]; /* at[n] marks what is passed as NULL */
    return pass == HRA_FORWARD
               ? hra_forward(c->plan, v[Q], v[K], v[V], v[O], c->lse, c->work, NULL, c->stream)
               : hra_backward(c->plan, v[Q], v[K], v[V], v[O], c->lse, v[DO], NULL, v[DQ], v[DK], v[DV],
                              c->work, NULL, c->stream);
}

enum harm { NO_PLAN, NO_TENSOR, NO_DATA, ODD_DATA, NEGATIVE, OVERLAP, NO_WORK, ODD_WORK, STREAM, NO_LSE };

struct misuse {
    enum harm harm;
    int tensor, stride; /* stride 0 batch, 1 row, 2 head */
    int64_t value;
    hra_pass pass;
    char says[96];
};

ParameterizedTestParameters(attention, refuses_wrong_calls)
{
    /* [2][130][3][8], 2 of the heads for keys; dim_v 5; f32, dense. */
    static struct misuse rows[] = {
        {NO_PLAN, 0, 0, 0, HRA_FORWARD, "hra_forward: plan is NULL"},
        {NO_PLAN, 0, 0, 0, HRA_BACKWARD, "hra_backward: plan is NULL"},
        {NO_TENSOR, Q, 0, 0, HRA_FORWARD, "q is NULL"},
        {NO_TENSOR, K, 0, 0, HRA_FORWARD, "k is NULL"},
        {NO_TENSOR, V, 0, 0, HRA_FORWARD, "v is NULL"},
        {NO_TENSOR, O, 0, 0, HRA_FORWARD, "o is NULL"},
        {NO_TENSOR, Q, 0, 0, HRA_BACKWARD, "q is NULL"},
        {NO_TENSOR, O, 0, 0, HRA_BACKWARD, "o is NULL"},
        {NO_TENSOR, DO, 0, 0, HRA_BACKWARD, "do is NULL"},
        {NO_TENSOR, DQ, 0, 0, HRA_BACKWARD, "dq is NULL"},
        {NO_TENSOR, DK, 0, 0, HRA_BACKWARD, "dk is NULL"},
        {NO_TENSOR, DV, 0, 0, HRA_BACKWARD, "dv is NULL"},
        {NO_DATA, Q, 0, 0, HRA_FORWARD, "q.data is (nil); it must be 4-byte aligned memory"},
        {NO_DATA, O, 0, 0, HRA_FORWARD, "o.data is (nil)"},
        {NO_DATA, DV, 0, 0, HRA_BACKWARD, "dv.data is (nil)"},
        {ODD_DATA, K, 0, 2, HRA_FORWARD, "; it must be 4-byte aligned memory"},
        {ODD_DATA, V, 0, 1, HRA_BACKWARD, "v.data is 0x"},
        {ODD_DATA, DQ, 0, 3, HRA_BACKWARD, "dq.data is 0x"},
        {NEGATIVE, Q, 0, -7, HRA_FORWARD, "q has strides -7, 24, 8 (batch, row, head); none may be negative"},
        {NEGATIVE, V, 1, -15, HRA_FORWARD, "v has strides 1950, -15, 5"},
        {NEGATIVE, DO, 2, -5, HRA_BACKWARD, "do has strides 1950, 15, -5"},
        {NEGATIVE, DK, 2, -1, HRA_BACKWARD, "dk has strides 3120, 24, -1"},
        {OVERLAP, O, 0, 0, HRA_FORWARD,
         "o overlaps itself: strides 0, 15, 5 (batch, row, head) for [2][130][3][5]"},
        {OVERLAP, O, 1, 14, HRA_FORWARD, "o overlaps itself: strides 1950, 14, 5"},
        {OVERLAP, O, 2, 4, HRA_FORWARD, "o overlaps itself: strides 1950, 15, 4"},
        {OVERLAP, O, 0, 1949, HRA_FORWARD, "o overlaps itself: strides 1949, 15, 5"},
        {OVERLAP, DQ, 1, 0, HRA_BACKWARD, "dq overlaps itself: strides 3120, 0, 8"},
        {OVERLAP, DK, 2, 0, HRA_BACKWARD, "dk overlaps itself: strides 3120, 24, 0"},
        {OVERLAP, DV, 0, 5, HRA_BACKWARD, "dv overlaps itself: strides 5, 15, 5"},
        {NO_WORK, 0, 0, 0, HRA_FORWARD, "hra_forward: workspace is (nil); it must be "},
        {NO_WORK, 0, 0, 0, HRA_BACKWARD, "hra_backward: workspace is (nil); it must be "},
        {ODD_WORK, 0, 0, 32, HRA_FORWARD, " bytes, 64-byte aligned"},
        {ODD_WORK, 0, 0, 4, HRA_BACKWARD, " bytes, 64-byte aligned"},
        {STREAM, 0, 0, 64, HRA_FORWARD, "hra_forward: stream is 0x40; the cpu backend has none: NULL"},
        {STREAM, 0, 0, 64, HRA_BACKWARD, "hra_backward: stream is 0x40"},
        {NO_LSE, 0, 0, 0, HRA_BACKWARD, "hra_backward: lse is NULL"},
    };
    return cr_make_param_array(struct misuse, rows, sizeof(rows) / sizeof(rows[0]));
}

static void harm(struct call *c, const struct misuse *m)
{
    hra_tensor *t = &c->view[m->tensor];

    switch (m->harm) {
    case NO_PLAN:
        c->plan = NULL;
        break;
    case NO_TENSOR:
        c->at[m->tensor] = t;
        break;
    case NO_DATA:
        t->data = NULL;
        break;
    case ODD_DATA:
        t->data = (char *)t->data + m->value;
        break;
    case NEGATIVE:
    case OVERLAP:
        *(m->stride == 0 ? &t->stride_batch : m->stride == 1 ? &t->stride_row : &t->stride_head) = m->value;
        break;
    case NO_WORK:
        c->work = NULL;
        break;
    case ODD_WORK:
        c->work = (char *)c->work + m->value;
        break;
    case STREAM:
        c->stream = (void *)(uintptr_t)m->value;
        break;
    case NO_LSE:
        c->lse = NULL;
        break;
    }
}

ParameterizedTest(struct misuse *m, attention, refuses_wrong_calls)
{
    const struct shape s = {.batch = 2,
                            .tokens = 130,
                            .heads = 3,
                            .heads_kv = 3,
                            .dim = 8,
                            .dim_v = 5,
                            .type = HRA_F32,
                            .threads = 1,
                            .order = "identity",
                            .mask = "causal"};
    struct trial t = begin(&s);
    struct run right = execute(&t), r = prepare(&t);
    struct call c = correct(&t, &r);

    if (m->pass == HRA_BACKWARD)
        cr_assert(eq(int, forward(&t, &r), HRA_OK));
    harm(&c, m);
    cr_expect(eq(int, call(&c, m->pass), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), m->says) != NULL, "'%s' does not say '%s'", hra_last_error(), m->says);
    for (int n = m->pass == HRA_FORWARD ? O : DQ; n < TENSORS; n++)
        for (size_t i = 0; i < r.memory[n].bytes; i++)
            cr_assert(r.memory[n].start[GUARD + i] == UNWRITTEN, "a refused call wrote %s", kinds[n].name);

    cr_assert(eq(int, forward(&t, &r), HRA_OK));
    cr_assert(eq(int, backward(&t, &r), HRA_OK));
    expect_same_bits(&right, &r, "after a refused call");
    drop(&right);
    drop(&r);
    end(&t);
}

/* Inputs may share memory in any way; so may dimensions of one index. */
Test(attention, inputs_may_overlap)
{
    const struct shape s = {.batch = 1,
                            .tokens = 130,
                            .heads = 3,
                            .heads_kv = 1,
                            .dim = 8,
                            .dim_v = 8,
                            .type = HRA_F64,
                            .threads = 2,
                            .order = "identity",
                            .mask = "causal"};
    struct trial t = begin(&s);

    for (int64_t token = 0; token < s.tokens; token++) /* q the same for all heads, v = k */
        for (int64_t h = 0; h < 3; h++)
            memcpy(t.in[Q] + whole_at(&s, Q, 0, token, h), t.in[K] + token * 8, 8 * sizeof(double));
    memcpy(t.in[V], t.in[K], (size_t)count_of(&s, K) * sizeof(double));
    struct run apart = execute(&t), r = prepare(&t);
    r.view[Q] = (hra_tensor){r.view[K].data, 0, 8, 0};
    r.view[V] = r.view[K];
    r.view[O].stride_batch = 0; /* one sequence: its stride says nothing */
    cr_assert(eq(int, forward(&t, &r), HRA_OK), "%s", hra_last_error());
    cr_assert(eq(int, backward(&t, &r), HRA_OK), "%s", hra_last_error());
    expect_same_bits(&apart, &r, "inputs in one place");
    drop(&apart);
    drop(&r);
    end(&t);
}

/* ---- hra_reorder ------------------------------------------------------------------------------ */

struct reordered {
    hra_type type;
    enum memory memory;
};

ParameterizedTestParameters(attention, gather_and_scatter_are_inverse)
{
    static struct reordered rows[] = {{HRA_BF16, BATCH_FIRST},
                                      {HRA_F64, BATCH_FIRST},
                                      {HRA_BF16, SEQ_FIRST},
                                      {HRA_F64, PADDED},
                                      {HRA_F16, HEAD_FIRST}};
    return cr_make_param_array(struct reordered, rows, sizeof(rows) / sizeof(rows[0]));
}

/* The plan computes f32: hra_reorder takes the type, heads and dim of each call. */
ParameterizedTest(struct reordered *p, attention, gather_and_scatter_are_inverse)
{
    const struct shape plan = {.batch = 2,
                               .tokens = 150,
                               .heads = 1,
                               .heads_kv = 1,
                               .dim = 4,
                               .dim_v = 4,
                               .type = HRA_F32,
                               .threads = 1,
                               .order = "hilbert",
                               .mask = "causal"};
    struct trial t = begin(&plan);
    const int64_t bytes = (int64_t)hra_type_bytes(p->type), element = 3 * bytes; /* dim 3 */

    t.s.heads = 2;
    t.s.dim_v = 3;
    t.s.type = p->type;
    t.s.memory = p->memory;
    const hra_tensor v = layout(&t.s, O, NULL);
    const size_t size = (size_t)(v.stride_batch + 149 * v.stride_row + v.stride_head + 3) * (size_t)bytes;
    struct fence whole = fence(size), rows = fence(size), back = fence(size);
    hra_tensor w = layout(&t.s, O, whole.start + GUARD), r = layout(&t.s, O, rows.start + GUARD),
               b = layout(&t.s, O, back.start + GUARD);

    for (size_t i = 0; i < size; i++)
        whole.start[GUARD + i] = (unsigned char)(random_bits(3, i) % 255); /* never UNWRITTEN */
    cr_assert(eq(int, hra_reorder(t.plan, HRA_GATHER, p->type, 2, 3, &w, &r, NULL), HRA_OK));
    cr_assert(eq(int, hra_reorder(t.plan, HRA_SCATTER, p->type, 2, 3, &b, &r, NULL), HRA_OK));
    cr_expect(guards_hold(&rows) && guards_hold(&back));
    char *covered = take(size);
    for (int64_t i = 0; i < 2; i++)
        for (int64_t row = 0; row < 150; row++)
            for (int64_t h = 0; h < 2; h++) {
                const int64_t base = i * v.stride_batch + h * v.stride_head;
                const int64_t here = (base + row * v.stride_row) * bytes,
                              there = (base + t.token[row] * v.stride_row) * bytes;
                cr_assert(memcmp((char *)r.data + here, (char *)w.data + there, (size_t)element) == 0);
                cr_assert(memcmp((char *)b.data + there, (char *)w.data + there, (size_t)element) == 0);
                memset(covered + here, 1, (size_t)element);
            }
    for (size_t i = 0; i < size; i++)
        cr_assert(covered[i] || (rows.start[GUARD + i] == UNWRITTEN && back.start[GUARD + i] == UNWRITTEN));
    free(covered);
    free(whole.start);
    free(rows.start);
    free(back.start);
    end(&t);
}

Test(attention, reorder_refuses_wrong_calls)
{
    const struct shape s = {.batch = 2,
                            .tokens = 150,
                            .heads = 1,
                            .heads_kv = 1,
                            .dim = 4,
                            .dim_v = 4,
                            .type = HRA_F32,
                            .threads = 1,
                            .order = "hilbert",
                            .mask = "causal"};
    struct trial t = begin(&s);
    struct run r = prepare(&t);
    hra_tensor a = r.view[Q], b = r.view[O], none = a, odd = a, back = a, flat = a;
    none.data = NULL;
    odd.data = (char *)odd.data + 2;
    back.stride_row = -4;
    flat.stride_row = 0;
    const struct {
        hra_plan *plan;
        int direction, type, heads, dim;
        const hra_tensor *whole, *rows;
        const char *says;
    } wrong[] = {
        {NULL, HRA_GATHER, HRA_F32, 1, 4, &a, &b, "hra_reorder: plan is NULL"},
        {t.plan, 2, HRA_F32, 1, 4, &a, &b, "direction 2"},
        {t.plan, HRA_GATHER, 0, 1, 4, &a, &b, "type 0"},
        {t.plan, HRA_GATHER, 9, 1, 4, &a, &b, "type 9"},
        {t.plan, HRA_GATHER, HRA_F32, 0, 4, &a, &b, "0 heads"},
        {t.plan, HRA_GATHER, HRA_F32, 1, -4, &a, &b, "dim -4"},
        {t.plan, HRA_GATHER, HRA_F32, 1, 4, NULL, &b, "whole is NULL"},
        {t.plan, HRA_GATHER, HRA_F32, 1, 4, &a, NULL, "rows is NULL"},
        {t.plan, HRA_GATHER, HRA_F32, 1, 4, &none, &b, "whole.data is (nil)"},
        {t.plan, HRA_GATHER, HRA_F32, 1, 4, &a, &odd, "rows.data is 0x"},
        {t.plan, HRA_SCATTER, HRA_F32, 1, 4, &back, &b, "whole has strides 600, -4, 4"},
        {t.plan, HRA_SCATTER, HRA_F32, 1, 4, &flat, &b, "whole overlaps itself: strides 600, 0, 4"},
        {t.plan, HRA_GATHER, HRA_F32, 1, 4, &a, &flat, "rows overlaps itself: strides 600, 0, 4"},
    };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        cr_expect(eq(int,
                     hra_reorder(wrong[i].plan, (hra_direction)wrong[i].direction, (hra_type)wrong[i].type,
                                 wrong[i].heads, wrong[i].dim, wrong[i].whole, wrong[i].rows, NULL),
                     HRA_ERR_ARG),
                  "%s", wrong[i].says);
        cr_expect(strstr(hra_last_error(), wrong[i].says) != NULL, "'%s' does not say '%s'", hra_last_error(),
                  wrong[i].says);
    }
    cr_expect(
        eq(int, hra_reorder(t.plan, HRA_GATHER, HRA_F32, 1, 4, &flat, &b, NULL), HRA_OK)); /* it reads it */
    cr_expect(eq(int, hra_reorder(t.plan, HRA_GATHER, HRA_F32, 1, 4, &a, &b, NULL), HRA_OK));
    drop(&r);
    end(&t);
}

/* ---- The kernels ------------------------------------------------------------------------------ */

/* Bits packed for another kernel would be read as nonsense. */
Test(attention, kernel_refuses_foreign_bits)
{
    const struct hra_bit_layout foreign = {.name = "fragments", .bytes = sizeof(hra_bits)};
    const struct hra_tile_rows tile = {.row0 = 0, .rows = 1};
    int64_t start[2] = {0, 0};
    const int pattern = 0;
    const struct hra_tile_list list = {.row_start = start, .column_start = start};
    struct hra_kernel_plan plan = {.batch = 1,
                                   .heads = 1,
                                   .heads_kv = 1,
                                   .dim = 1,
                                   .dim_v = 1,
                                   .type = HRA_F32,
                                   .scale = 1,
                                   .threads = 1,
                                   .rows = 1,
                                   .queries = 1,
                                   .query = &tile,
                                   .keys = 1,
                                   .key = &tile,
                                   .pattern = &pattern,
                                   .patterns = 1,
                                   .list = &list,
                                   .layout = {hra_backend_cpu.layout[0], hra_backend_cpu.layout[1]}};
    const int run = 0;
    float work[8] = {0}, x = 1, o = 7, lse = 7;
    const hra_tensor in = {&x, 0, 0, 0}, out = {&o, 0, 0, 0};
    struct hra_run_args args = {.query1 = 1, .first = &run, .last = &run, .workspace = work};
    const struct hra_forward_args forward_args = {.run = args, .q = in, .o = out, .lse = &lse};
    const struct hra_backward_args backward_args = {.run = args, .q = in, .do_ = in, .dq = out, .lse = &lse};
    void *state = NULL;

    cr_assert(eq(int, hra_backend_cpu.open(&state, &plan), HRA_OK));
    cr_expect(eq(int, hra_backend_cpu.forward(state, &forward_args), HRA_OK)); /* no tiles: an empty row */
    cr_expect(o == 0 && lse == -INFINITY);
    o = 7;
    plan.layout[HRA_FORWARD] = &foreign;
    cr_expect(eq(int, hra_backend_cpu.forward(state, &forward_args), HRA_ERR_UNSUPPORTED));
    cr_expect(strstr(hra_last_error(), "'fragments'") && strstr(hra_last_error(), "'rows'"), "%s",
              hra_last_error());
    cr_expect(eq(flt, o, 7));
    plan.layout[HRA_FORWARD] = NULL;
    cr_expect(eq(int, hra_backend_cpu.forward(state, &forward_args), HRA_ERR_UNSUPPORTED));
    plan.layout[HRA_BACKWARD] = &foreign;
    cr_expect(eq(int, hra_backend_cpu.backward(state, &backward_args), HRA_ERR_UNSUPPORTED));
    cr_expect(strstr(hra_last_error(), "'fragments'") && strstr(hra_last_error(), "'rows'"), "%s",
              hra_last_error());
    cr_expect(eq(flt, o, 7));
    hra_backend_cpu.close(state);
}

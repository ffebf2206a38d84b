/* hra-check.c - runs the library's forward and backward and compares them with the oracle.
 *
 * Every rank makes all of q k v dO dLSE in token order from the seed, each number a function of the
 * seed, the tensor and its index, so that the problem is the same on any number of ranks. It gives
 * the library its own rows in memory of the backend, computes its share of the oracle and of the plain
 * evaluation, and rank 0 gathers all three and judges. */
#include "examples/tools/device.h"
#include "examples/tools/npy.h"
#include "examples/tools/oracle.h"
#include "examples/tools/problem.h"
#include "examples/tools/world.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- Ranks and memory ---------------------------------------------------------------------- */

/* The largest over the ranks, on all of them. */
static int largest(int mine)
{
    double x = mine;
    world_max(&x, 1);
    return (int)x;
}

static void *take(size_t bytes)
{
    void *memory = calloc(1, bytes + 1);
    char why[64];
    if (memory == NULL) {
        snprintf(why, sizeof(why), "%zu bytes", bytes);
        world_abort("no memory", why);
    }
    return memory;
}

/* ---- Tensors ------------------------------------------------------------------------------- */

enum { Q, K, V, DO, DLSE, O, LSE, DQ, DK, DV, TENSORS, INPUTS = O };

static const struct {
    const char *name;
    int kv;    /* 1: has the key heads, 0: the query heads */
    int value; /* 1: has dim_v channels, 0: dim */
    int sums;  /* 1: [batch][heads][tokens] of hra_type_sums(type), 0: [batch][tokens][heads][channels] */
} kinds[TENSORS] = {{"q", 0, 0, 0}, {"k", 1, 0, 0},   {"v", 1, 1, 0},  {"do", 0, 1, 0}, {"dlse", 0, 0, 1},
                    {"o", 0, 1, 0}, {"lse", 0, 0, 1}, {"dq", 0, 0, 0}, {"dk", 1, 0, 0}, {"dv", 1, 1, 0}};

static int heads_of(const struct problem *p, int n)
{
    return kinds[n].kv ? p->heads_kv : p->heads;
}

static int channels_of(const struct problem *p, int n)
{
    return kinds[n].sums ? 1 : kinds[n].value ? p->dim_v : p->dim;
}

static hra_type type_of(const struct problem *p, int n)
{
    return kinds[n].sums ? hra_type_sums(p->type) : p->type;
}

static int64_t count_of(const struct problem *p, int n, int64_t rows)
{
    return p->batch * rows * heads_of(p, n) * channels_of(p, n);
}

/* How our rows of a tensor lie in memory. */
struct form {
    int seq_first; /* 1: (seq, batch, head, dim) in memory, 0: (batch, seq, head, dim) */
    size_t unit;   /* strides are multiples of this, bytes */
    int gap;       /* units between the heads of a row and what follows */
    size_t shift;  /* bytes from an aligned address to the first number */
};

/* Numbers without gaps, as all tokens are kept. */
static const struct form whole_form = {0, 0, 0, 0};

/* Every form that the backend allows, drawn from the problem's seed: a GPU wants multiples of 16 bytes, and for it
 * tensors now and then lie as parts of a wider one. */
static struct form draw_form(const struct problem *p)
{
    const uint64_t drawn = random_bits(p->seed, TENSORS);
    const int cuda = p->backend >= HRA_BACKEND_CUDA;
    return (struct form){.seq_first = drawn & 1,
                         .unit = cuda ? 16 : 0,
                         .gap = cuda && (drawn >> 1) % 3 == 0 ? 3 : 0,
                         .shift = cuda && (drawn >> 3) % 3 == 0 ? 16 : 0};
}

/* Tensor n with `rows` rows of a sequence. */
static hra_tensor layout(const struct problem *p, int n, int64_t rows, const struct form *f, void *data)
{
    const int64_t heads = heads_of(p, n), channels = channels_of(p, n);
    const int64_t size = (int64_t)hra_type_bytes(type_of(p, n));
    const int64_t unit = (int64_t)f->unit > size ? (int64_t)f->unit / size : 1;
    const int64_t head = (channels + unit - 1) / unit * unit, row = heads * head + f->gap * unit;

    if (kinds[n].sums)
        return (hra_tensor){data, heads * rows, 1, rows};
    if (f->seq_first)
        return (hra_tensor){data, row, p->batch * row, head};
    return (hra_tensor){data, rows * row, row, head};
}

/* Bytes from the first number of such a tensor to behind its last gap. */
static size_t bytes_of(const struct problem *p, int n, int64_t rows, const struct form *f)
{
    const hra_tensor t = layout(p, n, rows, f, NULL);
    const int64_t numbers = !kinds[n].sums && f->seq_first ? rows * t.stride_row : p->batch * t.stride_batch;
    return (size_t)numbers * hra_type_bytes(type_of(p, n));
}

/* One problem's numbers in token order, and its verdict. NULL where there is no dlse. */
struct trial {
    struct problem problem;
    double *in[INPUTS];
    double *got[TENSORS], *exact[TENSORS], *plain[TENSORS]; /* O to DV; complete on rank 0 only */
};

/* Standard normal numbers, rounded to the type before anybody sees them. */
static void trial_fill(struct trial *t)
{
    const struct problem *p = &t->problem;
    for (int n = 0; n < TENSORS; n++) {
        const int64_t count = count_of(p, n, p->tokens);
        const hra_type type = type_of(p, n);
        if (n >= INPUTS) {
            t->got[n] = take((size_t)count * sizeof(double));
            t->exact[n] = take((size_t)count * sizeof(double));
            t->plain[n] = take((size_t)count * sizeof(double));
            continue;
        }
        if (n == DLSE && !p->dlse)
            continue;
        void *rounded = take((size_t)count * hra_type_bytes(type));
        t->in[n] = take((size_t)count * sizeof(double));
        for (int64_t i = 0; i < count; i++)
            t->in[n][i] = random_normal(random_bits(p->seed, (uint64_t)n), (uint64_t)i);
        hra_convert(rounded, type, t->in[n], HRA_F64, count);
        hra_convert(t->in[n], HRA_F64, rounded, type, count);
        free(rounded);
    }
}

static void trial_free(struct trial *t)
{
    problem_free(&t->problem);
    for (int n = 0; n < TENSORS; n++) {
        if (n < INPUTS)
            free(t->in[n]);
        free(t->got[n]);
        free(t->exact[n]);
        free(t->plain[n]);
    }
}

/* ---- The library's answer ------------------------------------------------------------------ */

enum { GUARD = DEVICE_ALIGNMENT, GUARD_BYTE = 0x5a, UNWRITTEN = 0xff }; /* 0xff.. is NaN in every type */

/* Stops where memory of the backend failed. */
static void need(int status)
{
    if (status != 0)
        world_abort("memory of the backend", device_error());
}

/* Memory of the backend between two guards. */
struct fenced {
    unsigned char *start; /* of the first guard */
    unsigned char *data;  /* [bytes] */
    size_t bytes;
};

/* data: `shift` bytes, less than GUARD, behind an address of DEVICE_ALIGNMENT. */
static struct fenced fence(size_t bytes, size_t shift)
{
    struct fenced f = {NULL, NULL, bytes};
    f.start = device_alloc(shift + bytes + (size_t)2 * GUARD);
    need(f.start == NULL ? -1 : 0);
    f.data = f.start + shift + GUARD;
    need(device_fill(f.start, GUARD_BYTE, shift + bytes + (size_t)2 * GUARD));
    need(device_fill(f.data, UNWRITTEN, bytes));
    return f;
}

static int fence_broken(const struct fenced *f)
{
    const size_t before = (size_t)(f->data - f->start);
    unsigned char guard[3 * GUARD];
    int broken = 0;

    need(device_read(guard, f->start, before));
    need(device_read(guard + before, f->data + f->bytes, GUARD));
    for (size_t n = 0; n < before + GUARD; n++)
        broken |= guard[n] != GUARD_BYTE;
    return broken;
}

enum { TO_ROWS, TO_TOKENS };

/* Copy between tensor n of all tokens, in double, and our rows of it, in its type. */
static void move(const struct problem *p, int n, int way, double *whole, const hra_tensor *view,
                 const int64_t *token, int64_t rows)
{
    const hra_tensor all = layout(p, n, p->tokens, &whole_form, whole);
    const hra_type type = type_of(p, n);

    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t h = 0; h < heads_of(p, n); h++) {
                double *there =
                    whole + b * all.stride_batch + token[r] * all.stride_row + h * all.stride_head;
                const int64_t at = b * view->stride_batch + r * view->stride_row + h * view->stride_head;
                unsigned char *here = (unsigned char *)view->data + (size_t)at * hra_type_bytes(type);
                if (way == TO_ROWS)
                    hra_convert(here, type, there, HRA_F64, channels_of(p, n));
                else
                    hra_convert(there, HRA_F64, here, type, channels_of(p, n));
            }
}

/* All numbers of our rows of tensor n become UNWRITTEN, and gaps stay. */
static void erase(const struct problem *p, int n, const hra_tensor *view, int64_t rows)
{
    const size_t size = hra_type_bytes(type_of(p, n));

    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t h = 0; h < heads_of(p, n); h++) {
                const int64_t at = b * view->stride_batch + r * view->stride_row + h * view->stride_head;
                memset((unsigned char *)view->data + (size_t)at * size, UNWRITTEN,
                       (size_t)channels_of(p, n) * size);
            }
}

/* The rows of a plan on this rank, and how their tensors lie. */
struct rows {
    int64_t count;
    int64_t *token; /* [count] */
    struct form form;
};

/* Tensor n as it must be before a run, [bytes_of], the caller's: inputs from all tokens, all else UNWRITTEN. */
static unsigned char *image(const struct trial *t, const struct rows *r, int n)
{
    const struct problem *p = &t->problem;
    const size_t bytes = bytes_of(p, n, r->count, &r->form);
    unsigned char *data = take(bytes);
    const hra_tensor view = layout(p, n, r->count, &r->form, data);

    memset(data, UNWRITTEN, bytes);
    if (n < INPUTS && t->in[n] != NULL)
        move(p, n, TO_ROWS, t->in[n], &view, r->token, r->count);
    return data;
}

/* The first of these faults that a run showed; 0: none. */
static const char *const faults[] = {NULL, "the library wrote outside its outputs or workspace",
                                     "the library changed its inputs",
                                     "the second run gave other bits than the first"};

/* Reads tensor n after a run into out [bytes_of]. Returns the fault that it shows: an input is as it was, and of an
 * output nothing but its numbers was written. */
static int look(const struct trial *t, const struct rows *r, int n, const struct fenced *memory,
                unsigned char *out)
{
    const struct problem *p = &t->problem;
    unsigned char *before = image(t, r, n), *after = take(memory->bytes);
    const hra_tensor view = layout(p, n, r->count, &r->form, after);

    need(device_read(out, memory->data, memory->bytes));
    memcpy(after, out, memory->bytes);
    if (n >= INPUTS)
        erase(p, n, &view, r->count);
    const int changed = memcmp(before, after, memory->bytes) != 0;
    free(before);
    free(after);
    if (fence_broken(memory) || (changed && n >= INPUTS))
        return 1;
    return changed ? 2 : 0;
}

/* Ends all ranks where a call failed, or what it enqueued: on a GPU, waiting for that has the communicator's time
 * limit. */
static void demand(hra_comm *comm, const char *call, hra_status status, void *stream)
{
    if (status == HRA_OK && device_name()[0] != '\0')
        status = hra_comm_wait(comm, stream);
    if (status != HRA_OK)
        world_abort(call, hra_last_error());
}

/* One forward and one backward into fresh memory, on `stream`; out[n], [bytes_of], becomes tensor n. Returns the
 * fault. */
static int execute(hra_comm *comm, const struct trial *t, hra_plan *plan, const struct rows *r,
                   unsigned char **out, void *stream)
{
    const struct problem *p = &t->problem;
    hra_plan_info info = {.size = sizeof(info)};
    struct fenced memory[TENSORS];
    hra_tensor v[TENSORS];
    int fault = 0;

    for (int n = 0; n < TENSORS; n++) {
        out[n] = image(t, r, n);
        memory[n] = fence(bytes_of(p, n, r->count, &r->form), r->form.shift);
        v[n] = layout(p, n, r->count, &r->form, memory[n].data);
        need(device_write(memory[n].data, out[n], memory[n].bytes));
    }
    hra_plan_get_info(plan, &info);
    struct fenced work = fence(info.workspace_bytes, 0), saved = fence(info.saved_bytes, 0);
    void *save = info.saved_bytes > 0 ? saved.data : NULL;

    demand(comm, "hra_forward",
           hra_forward(plan, &v[Q], &v[K], &v[V], &v[O], v[LSE].data, work.data, save, stream), stream);
    need(device_fill(work.data, UNWRITTEN, work.bytes)); /* nothing may be kept in it */
    demand(comm, "hra_backward",
           hra_backward(plan, &v[Q], &v[K], &v[V], &v[O], v[LSE].data, &v[DO], p->dlse ? v[DLSE].data : NULL,
                        &v[DQ], &v[DK], &v[DV], work.data, save, stream),
           stream);

    for (int n = 0; n < TENSORS; n++) {
        const int shown = look(t, r, n, &memory[n], out[n]);
        fault = fault ? fault : shown;
        device_free(memory[n].start);
    }
    if (fence_broken(&work) || fence_broken(&saved))
        fault = fault ? fault : 1;
    device_free(work.start);
    device_free(saved.start);
    return fault;
}

/* Both runs, on a GPU the second on a stream that waits for no other, and the gathering on rank 0. Returns the worst
 * fault over the ranks. */
static int library(hra_comm *comm, struct trial *t, hra_plan *plan)
{
    const struct problem *p = &t->problem;
    struct rows r = {hra_plan_rows(plan, world.rank), NULL, draw_form(p)};
    unsigned char *first[TENSORS], *second[TENSORS];

    r.token = take((size_t)r.count * sizeof(*r.token));
    if (hra_plan_row_index(plan, world.rank, NULL, r.token) != HRA_OK)
        world_abort("hra_plan_row_index", hra_last_error());
    for (int64_t i = 0; p->rows == HRA_ROWS_TOKENS && i < r.count; i++)
        r.token[i] = i;
    int fault = execute(comm, t, plan, &r, first, NULL);
    const int again = execute(comm, t, plan, &r, second, device_stream());
    fault = fault ? fault : again;

    for (int n = 0; n < TENSORS; n++) {
        if (n >= INPUTS) {
            const hra_tensor view = layout(p, n, r.count, &r.form, first[n]);
            if (memcmp(first[n], second[n], bytes_of(p, n, r.count, &r.form)) != 0)
                fault = fault ? fault : 3;
            move(p, n, TO_TOKENS, t->got[n], &view, r.token, r.count);
            world_add(t->got[n], count_of(p, n, p->tokens));
        }
        free(first[n]);
        free(second[n]);
    }
    free(r.token);
    return largest(fault);
}

/* ---- Oracle and verdict -------------------------------------------------------------------- */

/* Rows in a problem, and orders of summation in which such a small one is evaluated plainly: with few
 * numbers, one order is exact by luck now and then, and what it says about rounding is worthless. */
enum { FEW_ROWS = 64, TURNS = 8, ORDERS = 2 * TURNS };

/* out = in with the channels of each head moved on by `by`. */
static void rotate(double *out, const double *in, int64_t count, int channels, int by)
{
    for (int64_t row = 0; row < count; row += channels)
        for (int c = 0; c < channels; c++)
            out[row + (c + by) % channels] = in[row + c];
}

/* |x - ref|, entries left out where ref is infinite. */
static double distance(const double *x, const double *ref, int64_t count)
{
    double sum = 0;
    for (int64_t n = 0; n < count; n++)
        sum += isinf(ref[n]) ? 0 : (x[n] - ref[n]) * (x[n] - ref[n]);
    return sqrt(sum);
}

/* The plain evaluation whose sums begin at channel `order` / TURNS of the channels, and in the second half of the
 * orders at the last token and head, into t->plain where it errs more than what is there. */
static void evaluate_plainly(struct trial *t, struct oracle a, int order)
{
    const struct problem *p = &t->problem;
    double *turned[TENSORS];

    for (int n = 0; n < TENSORS; n++) {
        const int64_t count = count_of(p, n, p->tokens);
        const int channels = channels_of(p, n), by = (int)((int64_t)channels * (order % TURNS) / TURNS);
        turned[n] = take((size_t)count * sizeof(double));
        if (n < INPUTS && t->in[n] != NULL)
            rotate(turned[n], t->in[n], count, channels, by);
    }
    a.backwards = order >= TURNS;
    a.q = turned[Q];
    a.k = turned[K];
    a.v = turned[V];
    a.do_ = turned[DO];
    a.o = turned[O];
    a.lse = turned[LSE];
    a.dq = turned[DQ];
    a.dk = turned[DK];
    a.dv = turned[DV];
    if (oracle_plain(&a, p->type) != 0)
        world_abort("no memory", "for the plain evaluation");

    for (int n = INPUTS; n < TENSORS; n++) {
        const int64_t count = count_of(p, n, p->tokens);
        const int channels = channels_of(p, n), by = (int)((int64_t)channels * (order % TURNS) / TURNS);
        double *back = take((size_t)count * sizeof(double));
        world_add(turned[n], count);
        rotate(back, turned[n], count, channels, channels - by);
        if (order == 0 || distance(back, t->exact[n], count) > distance(t->plain[n], t->exact[n], count)) {
            double *worse = back;
            back = t->plain[n];
            t->plain[n] = worse;
        }
        free(back);
    }
    for (int n = 0; n < TENSORS; n++)
        free(turned[n]);
}

static void references(struct trial *t, const hra_mask *mask)
{
    const struct problem *p = &t->problem;
    const struct oracle a = {.mask = mask,
                             .batch = p->batch,
                             .tokens = p->tokens,
                             .heads = p->heads,
                             .heads_kv = p->heads_kv,
                             .head0 = p->head0,
                             .dim = p->dim,
                             .dim_v = p->dim_v,
                             .scale = p->scale,
                             .q = t->in[Q],
                             .k = t->in[K],
                             .v = t->in[V],
                             .do_ = t->in[DO],
                             .dlse = t->in[DLSE],
                             .o = t->exact[O],
                             .lse = t->exact[LSE],
                             .dq = t->exact[DQ],
                             .dk = t->exact[DK],
                             .dv = t->exact[DV],
                             .first = world.rank,
                             .step = world.ranks};
    if (oracle_exact(&a) != 0)
        world_abort("no memory", "for the oracle");
    for (int n = INPUTS; n < TENSORS; n++)
        world_add(t->exact[n], count_of(p, n, p->tokens));
    const int few = p->batch * p->tokens * p->heads <= FEW_ROWS;
    for (int order = 0; order < (few ? ORDERS : 1); order++)
        evaluate_plainly(t, a, order);
}

/* What the table says of one output. */
struct verdict {
    double largest;  /* absolute error */
    double relative; /* |err| / |ref|, or |err| / the inputs' size where zero is 1 */
    double plain;    /* the same of the plain evaluation */
    double limit;
    int zero;  /* 1: the reference is zero to within a rounding of the inputs' size */
    int exact; /* 1: rows without keys and keys without queries are as they must be, nothing is NaN */
    int ok;
};

/* Half the distance between 1 and the next number. */
static double roundoff(hra_type type)
{
    return type == HRA_F64 ? 0x1p-53 : type == HRA_F32 ? 0x1p-24 : type == HRA_BF16 ? 0x1p-8 : 0x1p-11;
}

/* The largest 2-norm of a head's channels in an input tensor. */
static double longest(const struct trial *t, int n)
{
    const int channels = channels_of(&t->problem, n);
    const int64_t count = count_of(&t->problem, n, t->problem.tokens);
    double max = 0;
    for (int64_t at = 0; at < count; at += channels) {
        double sum = 0;
        for (int c = 0; c < channels; c++)
            sum += t->in[n][at + c] * t->in[n][at + c];
        max = fmax(max, sqrt(sum));
    }
    return max;
}

static double norm(const double *x, int64_t count)
{
    double sum = 0;
    for (int64_t n = 0; x != NULL && n < count; n++)
        sum += x[n] * x[n];
    return sqrt(sum);
}

/* The size that output n can have with inputs of these sizes, as a 2-norm of the whole tensor. */
static double natural_size(const struct trial *t, int n)
{
    const struct problem *p = &t->problem;
    const double rows = (double)p->batch * (double)p->tokens * p->heads, scale = fabs(p->scale);
    const double do_ = norm(t->in[DO], count_of(p, DO, p->tokens));
    const double ds = do_ * longest(t, V) + norm(t->in[DLSE], count_of(p, DLSE, p->tokens));

    switch (n) {
    case O:
        return sqrt(rows) * longest(t, V);
    case LSE:
        return sqrt(rows) * scale * longest(t, Q) * longest(t, K);
    case DV:
        return do_;
    default:
        return scale * ds * longest(t, n == DQ ? K : Q);
    }
}

/* 1 where the reference leaves out this row of output n: a query without keys, for which the library
 * must give nothing but o = 0, dq = 0, lse = -inf, or a key without queries. */
static int empty_row(const struct trial *t, int n, int64_t b, int64_t h, int64_t token)
{
    const struct problem *p = &t->problem;
    if (!kinds[n].kv)
        return t->exact[LSE][(b * p->heads + h) * p->tokens + token] == -INFINITY;
    const int64_t at = (b * p->tokens + token) * p->heads_kv + h;
    for (int c = 0; c < p->dim_v; c++)
        if (t->exact[DV][at * p->dim_v + c] != 0)
            return 0;
    for (int c = 0; c < p->dim; c++)
        if (t->exact[DK][at * p->dim + c] != 0)
            return 0;
    return 1;
}

static struct verdict judge(const struct trial *t, int n)
{
    const struct problem *p = &t->problem;
    const int channels = channels_of(p, n);
    const double size = natural_size(t, n), u = roundoff(type_of(p, n));
    struct verdict v = {.exact = 1};
    double error = 0, plain = 0, reference = 0;

    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < heads_of(p, n); h++)
            for (int64_t token = 0; token < p->tokens; token++) {
                const hra_tensor at = layout(p, n, p->tokens, &whole_form, NULL);
                const int64_t first = b * at.stride_batch + token * at.stride_row + h * at.stride_head;
                const int empty = empty_row(t, n, b, h, token);
                for (int64_t i = first; i < first + channels; i++) {
                    const double got = t->got[n][i], ref = t->exact[n][i];
                    if (empty || isnan(got)) {
                        v.exact = v.exact && got == (n == LSE ? -INFINITY : 0);
                        continue;
                    }
                    v.largest = fmax(v.largest, fabs(got - ref));
                    error += (got - ref) * (got - ref);
                    plain += (t->plain[n][i] - ref) * (t->plain[n][i] - ref);
                    reference += ref * ref;
                }
            }
    v.zero = sqrt(reference) <= u * size;
    const double unit = v.zero ? size : sqrt(reference);
    v.relative = unit > 0 ? sqrt(error) / unit : 0;
    v.plain = unit > 0 ? sqrt(plain) / unit : 0;
    v.limit = p->type == HRA_F64 ? 1e-12 : 2 * v.plain + 2 * u;
    v.ok = v.exact && v.relative <= v.limit;
    return v;
}

/* Judges all outputs on rank 0, prints the table where `loud` or where something failed. */
static int report(const struct trial *t, int fault, int loud)
{
    struct verdict v[TENSORS];
    int ok = fault == 0;
    for (int n = INPUTS; n < TENSORS; n++) {
        v[n] = judge(t, n);
        ok = ok && v[n].ok;
    }
    if (!loud && ok)
        return ok;

    printf("%s%-6s%16s%16s%16s%16s\n", loud ? "" : "\n", "", "largest error", "|err|/|ref|", "plain",
           "limit");
    for (int n = INPUTS; n < TENSORS; n++)
        printf("%-6s%16.3e%16.3e%16.3e%16.3e  %s%s%s\n", kinds[n].name, v[n].largest, v[n].relative,
               v[n].plain, v[n].limit, v[n].ok ? "ok" : "FAIL",
               v[n].zero ? ", the reference is 0: over the inputs' size" : "",
               v[n].exact ? "" : ", NaN or a row that must be exactly 0 (lse: -inf) is not");
    if (fault != 0)
        printf("%s\n", faults[fault]);
    return ok;
}

/* ---- The runs ------------------------------------------------------------------------------ */

/* One number that depends on every bit of every output (FNV-1a: Fowler, Noll and Vo 1991). */
static uint64_t bits_of(const struct trial *t)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (int n = INPUTS; n < TENSORS; n++) {
        const unsigned char *byte = (const unsigned char *)t->got[n];
        const size_t count = (size_t)count_of(&t->problem, n, t->problem.tokens) * sizeof(double);
        for (size_t i = 0; i < count; i++)
            hash = (hash ^ byte[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static int dump(const struct trial *t, const char *folder)
{
    const struct problem *p = &t->problem;
    char why[512];

    if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
        fprintf(stderr, "hra-check: --dump: %s: %s\n", folder, strerror(errno));
        return -1;
    }
    for (int n = 0; n < TENSORS; n++) {
        const int64_t heads = heads_of(p, n);
        const int64_t tensor[4] = {p->batch, p->tokens, heads, channels_of(p, n)};
        const int64_t sums[3] = {p->batch, heads, p->tokens};
        const double *data = n < INPUTS ? t->in[n] : t->got[n];
        if (data != NULL && npy_write(folder, kinds[n].name, type_of(p, n), data, kinds[n].sums ? 3 : 4,
                                      kinds[n].sums ? sums : tensor, why, sizeof(why)) != 0) {
            fprintf(stderr, "hra-check: --dump: %s\n", why);
            return -1;
        }
    }
    return 0;
}

/* A call that every rank makes with the same arguments failed on all of them. Returns the exit
 * status. What others cannot know, every rank says for itself. */
static int refused(const hra_comm *comm, const char *call, hra_status status)
{
    if (world.rank == 0 ||
        (status != HRA_ERR_ARG && status != HRA_ERR_MISMATCH && status != HRA_ERR_UNSUPPORTED))
        fprintf(stderr, "hra-check: %s: %s: %s\n", call, hra_status_name(status), hra_last_error());
    if (comm != NULL && hra_comm_get_status(comm) != HRA_OK)
        world_abort(call, hra_last_error());
    return status == HRA_ERR_ARG || status == HRA_ERR_UNSUPPORTED ? 2 : 1;
}

/* One problem, which is freed, on all ranks. Returns the exit status, the same on every rank. */
static int check(hra_comm *comm, struct problem *p, int loud, const char *folder)
{
    struct trial t = {.problem = *p};
    struct setup s = {.order = NULL};
    hra_plan *plan = NULL;
    hra_plan_info info = {.size = sizeof(info)};

    hra_status status = setup_create(&s, p);
    if (status == HRA_OK) {
        status = hra_plan_create(&plan, comm, &s.problem, s.order, s.mask, &s.options);
        if (status != HRA_OK)
            setup_destroy(&s);
    }
    if (status != HRA_OK) {
        trial_free(&t);
        return refused(comm, "plan", status);
    }
    hra_plan_get_info(plan, &info);
    if (loud && world.rank == 0) {
        const double all = (double)info.pairs_all;
        printf("%d rank%s, transport %s, backend %s%s%s, backward %s, schedule %s, %d thread%s on rank 0\n",
               world.ranks, world.ranks == 1 ? "" : "s", info.transport, info.backend,
               device_name()[0] != '\0' ? " on " : "", device_name(), info.backward, info.schedule,
               info.threads, info.threads == 1 ? "" : "s");
        printf("density %.4f, %.4f as counted, %.4f in live tiles\n", (double)info.pairs_live / all,
               (double)info.pairs_counted / all, (double)info.pairs_in_tiles / all);
        if (p->rows == HRA_ROWS_TOKENS)
            printf("rows are tokens: forward %s, backward %s\n",
                   info.reorders_forward ? "reorders what it reads" : "takes them as they are",
                   info.reorders_backward ? "reorders them" : "takes them as they are");
    }

    trial_fill(&t);
    const int fault = library(comm, &t, plan);
    hra_plan_destroy(plan);
    references(&t, s.mask);
    int failed = 0;
    if (world.rank == 0) {
        failed = !report(&t, fault, loud);
        if (loud)
            printf("bits %016" PRIx64 "\n", bits_of(&t));
        if (folder != NULL && dump(&t, folder) != 0)
            failed = 1;
    }
    setup_destroy(&s);
    trial_free(&t);
    return largest(failed);
}

static int usage(const char *why)
{
    if (world.rank == 0)
        fprintf(stderr, "hra-check: %s\n", why);
    return 2;
}

/* Cut a line in place into the words that a shell would see: between spaces, or in single quotes. How many there are, -1
 * where there are more than `most` or a quote is left open. */
static int cut_words(char *line, char **word, int most)
{
    int words = 0;

    for (char *at = line; *(at += strspn(at, " \t\r\n")) != '\0';) {
        const int quoted = *at == '\'';
        char *const begin = at + quoted;
        at = begin + strcspn(begin, quoted ? "'" : " \t\r\n");
        if (words == most || (quoted && *at == '\0'))
            return -1;
        word[words++] = begin;
        if (*at != '\0')
            *at++ = '\0';
    }
    return words;
}

/* The problem of a line of options, as --random prints them: what it leaves open is as in `wanted`. 0, or -1 and one
 * sentence. */
static int problem_read(struct problem *p, char *line, const struct problem *wanted, char *why, size_t bytes)
{
    struct option options[PROBLEM_OPTIONS];
    char *word[1 + 2 * PROBLEM_OPTIONS] = {"hra-check"};

    *p = (struct problem)PROBLEM_DEFAULT;
    p->backend = wanted->backend;
    p->backward = wanted->backward;
    p->margin = wanted->margin;
    p->schedule = wanted->schedule;
    const int words = cut_words(line, word + 1, 2 * PROBLEM_OPTIONS);
    if (words < 0) {
        snprintf(why, bytes, "more words than there are options, or a quote that does not end");
        return -1;
    }
    if (options_parse(options, problem_options(options, p), 1 + words, word, why, bytes) == 0 &&
        problem_complete(p, why, bytes) == 0) {
        /* The memory of all problems is that of the command's backend; auto would not always choose one of that. */
        const int on_gpu = wanted->backend >= HRA_BACKEND_CUDA;
        if (p->backend == HRA_BACKEND_AUTO)
            p->backend = wanted->backend;
        if ((p->backend >= HRA_BACKEND_CUDA) == on_gpu)
            return 0;
        snprintf(why, bytes, "--backend: memory is %s, as the command's own --backend has it",
                 on_gpu ? "a GPU's" : "the host's");
    }
    problem_free(p);
    return -1;
}

/* Where the problems of a series come from: drawn from the seed of `wanted`, or lines of a file. */
struct series {
    const struct problem *wanted;
    int count;  /* problems that are drawn */
    FILE *file; /* NULL: they are drawn */
    const char *path;
    int line; /* of the file, last read */
};

/* The n-th problem of the series, from 0, for the wanted backend: 1; 0 where there are no more; -1 and one sentence where a
 * line of the file is none. */
static int series_next(struct series *s, int n, struct problem *p, char *sentence, size_t bytes)
{
    char why[256] = "", *line = NULL;
    size_t room = 0;
    int result = 1;

    if (s->file == NULL) {
        if (n == s->count)
            return 0;
        if (problem_draw(p, s->wanted->seed, (uint64_t)n, s->wanted->backend) != 0)
            world_abort("no memory", "for a problem");
        p->backward = s->wanted->backward;
        p->margin = s->wanted->margin;
        p->rows = world.ranks == 1 && n % 2 == 1 ? HRA_ROWS_TOKENS : HRA_ROWS_SLOTS;
        if (p->rows == HRA_ROWS_TOKENS && n % 4 == 1) /* then every backend has it */
            p->saved = HRA_SAVED_QKV;
        if (s->wanted->schedule == HRA_SCHEDULE_HEADS && p->heads_kv == 1)
            p->heads_kv = p->heads;
        if (s->wanted->schedule != HRA_SCHEDULE_AUTO &&
            (s->wanted->schedule != HRA_SCHEDULE_HEADS || p->heads_kv > 1))
            p->schedule = s->wanted->schedule;
        if (problem_complete(p, why, sizeof(why)) != 0)
            world_abort("a drawn problem", why);
        return 1;
    }
    ssize_t length;
    do { /* lines without words, and those that begin with # are passed over */
        length = getline(&line, &room, s->file);
        s->line++;
    } while (length >= 0 && strchr("#\n\r", line[strspn(line, " \t")]) != NULL);
    if (length < 0) {
        result = ferror(s->file) ? -1 : 0;
        snprintf(sentence, bytes, "%s: %s", s->path, strerror(errno));
    } else if (problem_read(p, line, s->wanted, why, sizeof(why)) != 0) {
        result = -1;
        snprintf(sentence, bytes, "%s, line %d: %s", s->path, s->line, why);
    }
    free(line);
    return result;
}

/* The problems of a series, one line each. */
static int check_series(hra_comm *comm, struct series *s, const struct connection *connection)
{
    struct problem p;
    char why[512];
    int failures = 0, n, more;

    for (n = 0; (more = series_next(s, n, &p, why, sizeof(why))) > 0; n++) {
        char *text = problem_text(&p);
        if (text == NULL)
            world_abort("no memory", "for a problem");
        if (world.rank == 0) {
            printf("%4d hra-check --transport %s %s ", n + 1, connection_name(connection),
                   text); /* before it runs, in case it never ends */
            fflush(stdout);
        }
        const int failed = check(comm, &p, 0, NULL) != 0;
        failures += failed;
        if (world.rank == 0)
            printf("%s\n", failed ? "FAIL" : "ok");
        free(text);
    }
    if (world.rank == 0)
        printf("%d problems, %d failed\n", n, failures);
    if (more < 0)
        return usage(why);
    return failures > 0;
}

/* ---- The command line ---------------------------------------------------------------------- */

struct arguments {
    struct problem problem;
    struct connection connection;
    int count;    /* of --random, 0 without */
    char *folder; /* of --dump */
    char *list;   /* of --list */
    FILE *lines;  /* the same, opened */
};

/* Options beside those of a problem. */
enum { OWN_OPTIONS = 3 + CONNECTION_OPTIONS };

static void help(const struct option *options, int count)
{
    printf("usage: [mpirun -n RANKS] hra-check [OPTION VALUE]...\n"
           "Compares libhra's attention and gradients with an oracle in double; last line ok or FAIL.\n"
           "Exit status: 0 ok, 1 FAIL, 2 wrong use.\n\n");
    options_print(options, count);
    printf(
        "\nLimits: f64 1e-12 relative; others twice the error of the plain evaluation plus two roundings.\n"
        "With up to %d query rows the plain error is the largest of %d orders of summation.\n"
        "--dump writes q k v do o lse dq dk dv in token order; bf16, which NumPy lacks, as f32.\n"
        "--random draws whole problems from --seed, for --backend, --backward, --sm-margin and, where it is\n"
        "given, --schedule (heads only where there are two); each line has the options that repeat one; "
        "--list\n"
        "reads such lines. `bits` stands for all outputs: equal where every bit of them is.\n"
        "With --backend cuda the n-th rank of a machine takes its n-th GPU, beginning again after the "
        "last.\n"
        "--transport gpu, nccl and peer choose --backend gpu; a rank that does not come within --timeout "
        "is\n"
        "an error.\n",
        FEW_ROWS, ORDERS);
}

/* 1: an option that says which problems make a series, or where they run. */
static int may_stand_beside(const char *series, const char *name)
{
    static const char *const names[] = {"transport", "timeout",  "backend",
                                        "backward",  "schedule", "sm-margin"};
    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++)
        if (strcmp(name, names[n]) == 0)
            return 1;
    return strcmp(name, series) == 0 || (strcmp(series, "random") == 0 && strcmp(name, "seed") == 0);
}

/* All that was asked for, on a communicator. Returns the exit status. */
static int check_all(hra_comm *comm, struct arguments *a)
{
    struct series series = {.wanted = &a->problem, .count = a->count, .path = a->list, .file = a->lines};
    if (a->count > 0 || a->list != NULL)
        return check_series(comm, &series, &a->connection);
    char *text = problem_text(&a->problem);
    if (world.rank == 0 && text != NULL)
        printf("hra-check --transport %s %s\n", connection_name(&a->connection), text);
    free(text);
    const int result = check(comm, &a->problem, 1, a->folder);
    a->problem.order = a->problem.mask = NULL; /* freed by check */
    return result;
}

/* Everything between MPI's start and end. Returns the exit status. */
static int run(int argc, char **argv, struct arguments *a)
{
    struct option options[PROBLEM_OPTIONS + OWN_OPTIONS];
    const int shared = problem_options(options, &a->problem), all = shared + OWN_OPTIONS;
    const struct option own[] = {
        {"dump", "DIR", "write the tensors there as .npy, in token order", OPTION_TEXT, &a->folder, 0, 0,
         NULL, 0},
        {"random", "COUNT", "check that many random problems", OPTION_INT, &a->count, 1, 1000000, NULL, 0},
        {"list", "FILE", "check the problems of a file, on each line the options of one", OPTION_TEXT,
         &a->list, 0, 0, NULL, 0},
    };
    hra_comm *comm = NULL;
    char why[512];

    connection_options(options + shared, &a->connection);
    memcpy(options + shared + CONNECTION_OPTIONS, own, sizeof(own));
    const int parsed = options_parse(options, all, argc, argv, why, sizeof(why));
    if (parsed == 1) {
        if (world.rank == 0)
            help(options, all);
        return 0;
    }
    if (parsed != 0)
        return usage(why);
    const char *const series = a->count > 0 ? "random" : a->list != NULL ? "list" : NULL;
    for (int n = 0; series != NULL && n < all; n++)
        if (options[n].given && !may_stand_beside(series, options[n].name)) {
            snprintf(why, sizeof(why), "--%s: --%s says the whole problem", options[n].name, series);
            return usage(why);
        }
    if (problem_complete(&a->problem, why, sizeof(why)) != 0 ||
        connection_complete(&a->connection, &a->problem, why, sizeof(why)) != 0)
        return usage(why);
    double error = a->list != NULL && (a->lines = fopen(a->list, "r")) == NULL ? errno : 0;
    world_max(&error, 1); /* a file that is not there may be so on one node only */
    if (error != 0) {
        snprintf(why, sizeof(why), "%s: %s", a->list, strerror((int)error));
        return usage(why);
    }

    if (device_open(a->problem.backend, world.local) != 0)
        world_abort("--backend", device_error());
    hra_status status = connection_open(&comm, &a->connection);
    if (status != HRA_OK)
        return refused(NULL, "communicator", status);
    int result = check_all(comm, a);
    status = hra_comm_destroy(comm);
    if (status != HRA_OK && result == 0)
        result = refused(NULL, "hra_comm_destroy", status);
    device_close();
    if (world.rank == 0 && result < 2)
        printf("%s\n", result == 0 ? "ok" : "FAIL");
    return result;
}

int main(int argc, char **argv)
{
    struct arguments a = {.problem = PROBLEM_DEFAULT};

    world_start("hra-check", &argc, &argv);
    const int result = run(argc, argv, &a);
    problem_free(&a.problem);
    free(a.folder);
    free(a.list);
    if (a.lines != NULL)
        fclose(a.lines);
    return world_end(result);
}

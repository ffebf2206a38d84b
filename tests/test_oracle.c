/* test_oracle.c - the oracle against arithmetic by hand and finite differences, the plain evaluation
 * against the oracle. Everything else is compared with these two. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "examples/tools/oracle.h"

/* Sizes of one problem and its mask's text. */
struct shape {
    int batch, tokens, heads, heads_kv, dim, dim_v, head0, dlse;
    char mask[64];
};

/* A problem whose arrays are its own. */
struct fixture {
    struct oracle a;
    hra_mask *mask;
    double *array[10]; /* q k v dO dlse o lse dq dk dv */
    size_t count[10];
};

enum { Q, K, V, DO, DLSE, O, LSE, DQ, DK, DV, ARRAYS };

/* Numbers between -1 and 1 that repeat nothing. */
static double number(size_t n)
{
    return sin(1.0 + 12.9898 * (double)n + 0.37 * (double)(n % 7));
}

static struct fixture make(const struct shape *s, double scale)
{
    struct fixture f = {.mask = NULL};
    hra_domain domain = HRA_DOMAIN_INIT;
    const size_t q = (size_t)s->batch * (size_t)s->tokens * (size_t)s->heads;
    const size_t kv = (size_t)s->batch * (size_t)s->tokens * (size_t)s->heads_kv;
    const size_t dim = (size_t)s->dim, dim_v = (size_t)s->dim_v;
    const size_t count[ARRAYS] = {q * dim,   kv * dim, kv * dim_v, q * dim_v, q,
                                  q * dim_v, q,        q * dim,    kv * dim,  kv * dim_v};

    domain.batch = s->batch;
    domain.heads = s->head0 + s->heads;
    domain.tokens = s->tokens;
    cr_assert(eq(int, hra_mask_parse(&f.mask, &domain, NULL, s->mask), HRA_OK), "%s: %s", s->mask,
              hra_last_error());
    for (int n = 0; n < ARRAYS; n++) {
        f.count[n] = count[n];
        f.array[n] = malloc(count[n] * sizeof(double));
        cr_assert_not_null(f.array[n]);
        for (size_t i = 0; i < count[n]; i++)
            f.array[n][i] = n < O ? number(1000 * (size_t)n + i) : NAN;
    }
    f.a = (struct oracle){.mask = f.mask,
                          .batch = s->batch,
                          .tokens = s->tokens,
                          .heads = s->heads,
                          .heads_kv = s->heads_kv,
                          .head0 = s->head0,
                          .dim = s->dim,
                          .dim_v = s->dim_v,
                          .scale = scale,
                          .q = f.array[Q],
                          .k = f.array[K],
                          .v = f.array[V],
                          .do_ = f.array[DO],
                          .dlse = s->dlse ? f.array[DLSE] : NULL,
                          .o = f.array[O],
                          .lse = f.array[LSE],
                          .dq = f.array[DQ],
                          .dk = f.array[DK],
                          .dv = f.array[DV],
                          .first = 0,
                          .step = 1};
    return f;
}

static void drop(struct fixture *f)
{
    hra_mask_destroy(f->mask);
    for (int n = 0; n < ARRAYS; n++)
        free(f->array[n]);
}

/* |x - y| / |y|, 2-norms, entries of y that are infinite left out. */
static double distance(const double *x, const double *y, size_t count)
{
    double error = 0, size = 0;
    for (size_t n = 0; n < count; n++) {
        if (isinf(y[n]))
            continue;
        error += (x[n] - y[n]) * (x[n] - y[n]);
        size += y[n] * y[n];
    }
    return sqrt(error / size);
}

/* Two tokens, one channel, causal: k = (0, ln 3), so that token 1 sees its keys as 1 : 3. */
Test(oracle, two_tokens_by_hand)
{
    const struct shape s = {1, 2, 1, 1, 1, 1, 0, 1, "causal"};
    struct fixture f = make(&s, 1.0);
    const double inputs[5][2] = {{1, 1}, {0, log(3)}, {2, 6}, {1, 1}, {0, 1}};
    const double outputs[5][2] = {
        {2, 5}, {0, log(4)}, {0, 1.5 * log(3)}, {-0.5, 1.5}, {1.25, 0.75}}; /* delta 5 - 1 in row 1 */

    for (int n = 0; n < 5; n++)
        memcpy(f.array[n], inputs[n], sizeof(inputs[n]));
    cr_assert(eq(int, oracle_exact(&f.a), 0));
    for (int n = 0; n < 5; n++)
        for (int i = 0; i < 2; i++)
            cr_expect(ieee_ulp_eq(dbl, f.array[O + n][i] + 1, outputs[n][i] + 1, 4), "output %d, token %d", n,
                      i);
    drop(&f);
}

/* The gradients' own definition: loss = sum o dO + sum lse dLSE. */
static double loss(const struct fixture *f)
{
    double sum = 0;
    cr_assert(eq(int, oracle_exact(&f->a), 0));
    for (size_t n = 0; n < f->count[O]; n++)
        sum += f->array[O][n] * f->array[DO][n];
    for (size_t n = 0; f->a.dlse != NULL && n < f->count[LSE]; n++)
        if (!isinf(f->array[LSE][n]))
            sum += f->array[LSE][n] * f->array[DLSE][n];
    return sum;
}

ParameterizedTestParameters(oracle, gradients_are_differences)
{
    static struct shape shapes[] = {
        {1, 1, 1, 1, 1, 1, 0, 1, "full"},         /* the smallest problem */
        {1, 5, 2, 2, 3, 2, 0, 0, "causal"},       /* dim_v is not dim */
        {2, 4, 4, 2, 2, 3, 0, 1, "window(1,1)"},  /* shared keys, two sequences */
        {1, 6, 3, 1, 9, 9, 0, 1, "window(-,-1)"}, /* a row without keys */
        {1, 6, 2, 1, 2, 2, 2, 1, "heads(0-1: full; 2: causal; 3: docs(2,4))"}, /* heads from 2 */
        {1, 6, 2, 1, 3, 2, 0, 1, "mix(causal; full; window(2,-1))"}, /* pairs that attend 1 to 3 times */
    };
    return cr_make_param_array(struct shape, shapes, sizeof(shapes) / sizeof(shapes[0]));
}

ParameterizedTest(struct shape *s, oracle, gradients_are_differences)
{
    struct fixture f = make(s, 0.7);
    const double step = 1e-4;

    for (int n = Q; n <= V; n++) {
        double *gradient = malloc(f.count[n] * sizeof(*gradient));
        cr_assert_not_null(gradient);
        loss(&f);
        memcpy(gradient, f.array[DQ + n], f.count[n] * sizeof(*gradient));
        for (size_t i = 0; i < f.count[n]; i++) {
            const double kept = f.array[n][i];
            f.array[n][i] = kept + step;
            const double above = loss(&f);
            f.array[n][i] = kept - step;
            const double below = loss(&f);
            f.array[n][i] = kept;
            cr_expect(epsilon_eq(dbl, gradient[i], (above - below) / (2 * step), 1e-7),
                      "%s: input %d, element %zu", s->mask, n, i);
        }
        free(gradient);
    }
    drop(&f);
}

/* A softmax over a list of keys in which a key stands as often as it is counted needs no ln(count). What
 * the gradients are follows from o and lse, above. */
Test(oracle, counts_are_repeated_keys)
{
    const struct shape s = {1, 9, 1, 1, 4, 3, 0, 0, "mix(causal; full; window(2,-1); window(-7,-))"};
    struct fixture f = make(&s, 0.6);

    cr_assert(eq(int, oracle_exact(&f.a), 0));
    for (int i = 0; i < s.tokens; i++) {
        double sum = 0, o[3] = {0};
        int keys = 0;
        for (int j = 0; j < s.tokens; j++) {
            const int times = 1 + (j <= i) + (j >= i - 2 && j <= i - 1) + (j >= i + 7);
            double score = 0;
            for (int c = 0; c < s.dim; c++)
                score += 0.6 * f.array[Q][i * s.dim + c] * f.array[K][j * s.dim + c];
            for (int n = 0; n < times; n++, keys++) {
                sum += exp(score);
                for (int c = 0; c < s.dim_v; c++)
                    o[c] += exp(score) * f.array[V][j * s.dim_v + c];
            }
        }
        cr_expect(keys > s.tokens);
        cr_expect(epsilon_eq(dbl, f.array[LSE][i], log(sum), 1e-14), "lse of token %d", i);
        for (int c = 0; c < s.dim_v; c++)
            cr_expect(epsilon_eq(dbl, f.array[O][i * s.dim_v + c], o[c] / sum, 1e-14), "token %d, channel %d",
                      i, c);
    }
    drop(&f);
}

Test(oracle, rows_without_keys_are_zero)
{
    const struct shape s = {1, 7, 2, 1, 5, 4, 0, 1, "window(-,-1)"}; /* row 0 has no key, key 6 no query */
    for (int plain = 0; plain < 2; plain++) {
        struct fixture f = make(&s, 0.5);
        cr_assert(eq(int, plain ? oracle_plain(&f.a, HRA_F32) : oracle_exact(&f.a), 0));
        for (int h = 0; h < 2; h++) {
            cr_expect(eq(dbl, f.array[LSE][h * 7], -INFINITY));
            for (int c = 0; c < 4; c++)
                cr_expect(eq(dbl, f.array[O][h * 4 + c], 0));
            for (int c = 0; c < 5; c++)
                cr_expect(eq(dbl, f.array[DQ][h * 5 + c], 0));
        }
        for (int c = 0; c < 5; c++)
            cr_expect(eq(dbl, f.array[DK][6 * 5 + c], 0));
        for (int c = 0; c < 4; c++)
            cr_expect(eq(dbl, f.array[DV][6 * 4 + c], 0));
        for (int n = O; n < ARRAYS; n++)
            for (size_t i = 0; i < f.count[n]; i++)
                cr_expect(eq(int, !!isnan(f.array[n][i]), 0), "output %d, element %zu", n, i);
        drop(&f);
    }
}

/* Three ranks split five (sequence, key head) pairs: each element is written by exactly one. */
Test(oracle, shares_make_the_whole)
{
    const struct shape s = {5, 9, 4, 1, 6, 6, 0, 1, "causal & window(4,0)"};
    for (int plain = 0; plain < 2; plain++) {
        struct fixture whole = make(&s, 0.4), part[3];
        cr_assert(eq(int, plain ? oracle_plain(&whole.a, HRA_F16) : oracle_exact(&whole.a), 0));
        for (int r = 0; r < 3; r++) {
            part[r] = make(&s, 0.4);
            part[r].a.first = r;
            part[r].a.step = 3;
            cr_assert(eq(int, plain ? oracle_plain(&part[r].a, HRA_F16) : oracle_exact(&part[r].a), 0));
        }
        for (int n = O; n < ARRAYS; n++)
            for (size_t i = 0; i < whole.count[n]; i++) {
                int written = 0;
                for (int r = 0; r < 3; r++)
                    if (!isnan(part[r].array[n][i])) {
                        written++;
                        cr_expect(eq(dbl, part[r].array[n][i], whole.array[n][i]));
                    }
                cr_expect(eq(int, written, 1), "output %d, element %zu", n, i);
            }
        drop(&whole);
        for (int r = 0; r < 3; r++)
            drop(&part[r]);
    }
}

/* The error of each type is a few of its roundings: neither exact nor wrong. */
struct precision {
    int type; /* hra_type */
    double least, most;
    char mask[40];
};

ParameterizedTestParameters(plain, errs_by_roundings)
{
    static struct precision rows[] = {
        {HRA_F64, 0, 1e-12, "causal | window(0,5)"},
        {HRA_F32, 1e-9, 2e-6, "causal | window(0,5)"},
        {HRA_BF16, 4e-4, 3e-2, "causal | window(0,5)"},
        {HRA_F16, 5e-5, 4e-3, "causal | window(0,5)"},
        {HRA_F64, 0, 1e-12, "mix(causal; window(9,5); causal)"}, /* pairs that attend 0 to 3 times */
        {HRA_F32, 1e-9, 2e-6, "mix(causal; window(9,5); causal)"},
        {HRA_BF16, 4e-4, 3e-2, "mix(causal; window(9,5); causal)"},
        {HRA_F16, 5e-5, 4e-3, "mix(causal; window(9,5); causal)"},
    };
    return cr_make_param_array(struct precision, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct precision *t, plain, errs_by_roundings)
{
    struct shape s = {2, 70, 6, 3, 33, 20, 0, 1, ""};
    const hra_type type = (hra_type)t->type;

    memcpy(s.mask, t->mask, sizeof(t->mask));
    struct fixture exact = make(&s, 0.9), plain = make(&s, 0.9);

    for (int n = 0; n < O; n++) {
        const hra_type kept = n == DLSE ? hra_type_sums(type) : type;
        for (struct fixture *f = &exact; f != NULL; f = f == &exact ? &plain : NULL) {
            void *rounded = malloc(f->count[n] * sizeof(double));
            cr_assert_not_null(rounded);
            hra_convert(rounded, kept, f->array[n], HRA_F64, (int64_t)f->count[n]);
            hra_convert(f->array[n], HRA_F64, rounded, kept, (int64_t)f->count[n]);
            free(rounded);
        }
    }
    cr_assert(eq(int, oracle_exact(&exact.a), 0));
    cr_assert(eq(int, oracle_plain(&plain.a, type), 0));
    for (int n = O; n < ARRAYS; n++) {
        const double error = distance(plain.array[n], exact.array[n], exact.count[n]);
        const double least = n == LSE ? t->least / 30 : t->least; /* lse is kept in f32 */
        cr_expect(error >= least && error <= t->most, "%s, output %d: relative error %g", hra_type_name(type),
                  n, error);
    }
    drop(&exact);
    drop(&plain);
}

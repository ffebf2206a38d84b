/* oracle.c - attention and its gradients in double, one query row after another. */
#include "examples/tools/oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The keys that one query row attends to; all arrays are [tokens]. */
struct row {
    int64_t *key; /* their tokens, ascending */
    double *p;    /* scores, then probabilities */
    double *dp;   /* gradient of the probabilities */
    int64_t count;
};

/* Eight sums side by side, because gcc keeps the order of a single one and cannot vectorise it. */
static double dot(const double *restrict x, const double *restrict y, int n)
{
    double lane[8] = {0};
    int c = 0;
    for (; c + 8 <= n; c += 8)
        for (int l = 0; l < 8; l++)
            lane[l] += x[c + l] * y[c + l];
    for (; c < n; c++)
        lane[0] += x[c] * y[c];
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

static void add(double *restrict out, double factor, const double *restrict x, int n)
{
    int c = 0;
    for (; c + 8 <= n; c += 8)
        for (int l = 0; l < 8; l++)
            out[c + l] += factor * x[c + l];
    for (; c < n; c++)
        out[c] += factor * x[c];
}

/* Query token i of head h, which shares key head g: its row of o, lse and dq, and its share of dk
 * and dv. */
static void query(const struct oracle *a, struct row *row, int64_t b, int h, int g, int64_t i)
{
    const size_t qi = (size_t)((b * a->tokens + i) * a->heads + h);
    const size_t li = (size_t)((b * a->heads + h) * a->tokens + i);
    const size_t kv0 = (size_t)(b * a->tokens * a->heads_kv + g), kv_step = (size_t)a->heads_kv;
    const double *q = a->q + qi * (size_t)a->dim, *do_ = a->do_ + qi * (size_t)a->dim_v;
    double *o = a->o + qi * (size_t)a->dim_v, *dq = a->dq + qi * (size_t)a->dim;

    memset(o, 0, (size_t)a->dim_v * sizeof(*o));
    memset(dq, 0, (size_t)a->dim * sizeof(*dq));
    a->lse[li] = -INFINITY;

    double max = -INFINITY, sum = 0, delta = 0;
    row->count = 0;
    for (int64_t j = 0; j < a->tokens; j++) {
        const int count = hra_mask_count(a->mask, b, a->head0 + h, i, j);
        if (count == 0)
            continue;
        const size_t kj = kv0 + (size_t)j * kv_step;
        const double s = a->scale * dot(q, a->k + kj * (size_t)a->dim, a->dim) + (count > 1 ? log(count) : 0);
        row->key[row->count] = j;
        row->p[row->count++] = s;
        max = fmax(max, s);
    }
    if (row->count == 0)
        return;

    for (int64_t n = 0; n < row->count; n++) {
        row->p[n] = exp(row->p[n] - max);
        sum += row->p[n];
    }
    a->lse[li] = max + log(sum);

    /* Delta as the sum of P dP equals dO . O, and is exact where there is one key: dS is 0 there. */
    for (int64_t n = 0; n < row->count; n++) {
        const double *v = a->v + (kv0 + (size_t)row->key[n] * kv_step) * (size_t)a->dim_v;
        row->p[n] /= sum;
        row->dp[n] = dot(do_, v, a->dim_v);
        delta += row->p[n] * row->dp[n];
        add(o, row->p[n], v, a->dim_v);
    }
    if (a->dlse != NULL)
        delta -= a->dlse[li];

    for (int64_t n = 0; n < row->count; n++) {
        const size_t kj = kv0 + (size_t)row->key[n] * kv_step;
        const double ds = a->scale * row->p[n] * (row->dp[n] - delta);
        add(dq, ds, a->k + kj * (size_t)a->dim, a->dim);
        add(a->dk + kj * (size_t)a->dim, ds, q, a->dim);
        add(a->dv + kj * (size_t)a->dim_v, row->p[n], do_, a->dim_v);
    }
}

int oracle_exact(const struct oracle *a)
{
    const int group = a->heads / a->heads_kv;
    const size_t tokens = (size_t)a->tokens;
    struct row row = {malloc(tokens * sizeof(*row.key)), malloc(tokens * sizeof(*row.p)),
                      malloc(tokens * sizeof(*row.dp)), 0};
    const int made = row.key != NULL && row.p != NULL && row.dp != NULL;

    for (int64_t pair = a->first; made && pair < a->batch * a->heads_kv; pair += a->step) {
        const int64_t b = pair / a->heads_kv;
        const int g = (int)(pair % a->heads_kv);
        for (int64_t j = 0; j < a->tokens; j++) {
            const size_t kj = (size_t)((b * a->tokens + j) * a->heads_kv + g);
            memset(a->dk + kj * (size_t)a->dim, 0, (size_t)a->dim * sizeof(*a->dk));
            memset(a->dv + kj * (size_t)a->dim_v, 0, (size_t)a->dim_v * sizeof(*a->dv));
        }
        for (int h = g * group; h < (g + 1) * group; h++)
            for (int64_t i = 0; i < a->tokens; i++)
                query(a, &row, b, h, g, i);
    }
    free(row.key);
    free(row.p);
    free(row.dp);
    return made ? 0 : -1;
}

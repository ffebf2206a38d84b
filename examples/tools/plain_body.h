/* plain_body.h - the plain evaluation for one arithmetic type; plain.c includes it twice, with
 *     REAL      float or double, the type of sums
 *     PLAIN(x)  x with a suffix of its own
 * It has no include guard for that reason. */

/* One (sequence, key head) pair and one query row of it. `panel`s hold LANES rows side by side, so
 * that as many dot products run at once while each sum keeps the order of its index. */
struct PLAIN(pair) {
    hra_type type;
    int64_t tokens;
    int dim, dim_v;
    int backwards;           /* 1: sums over tokens and heads begin at the last */
    REAL *k, *v;             /* [tokens][dim], [tokens][dim_v] */
    REAL *k_panel, *v_panel; /* [panels][dim or dim_v][LANES] */
    REAL *dk, *dv;           /* as k v, sums over the query rows */
    REAL *q, *do_, *o, *dq;  /* one row: [dim], [dim_v], [dim_v], [dim] */
    REAL *s, *dp;            /* one row: [panels * LANES] */
    REAL *bias;              /* ln(count), likewise; -inf where the mask allows no pair */
    void *scratch;           /* as many bytes as the longest of these rows */
};

/* Round to the type and back. */
static void PLAIN(round)(const struct PLAIN(pair) * p, REAL *x, int64_t n)
{
    const hra_type real = sizeof(REAL) == sizeof(double) ? HRA_F64 : HRA_F32;
    if (p->type == real)
        return;
    hra_convert(p->scratch, p->type, x, real, n);
    hra_convert(x, real, p->scratch, p->type, n);
}

static void PLAIN(pack)(REAL *panel, const REAL *x, int64_t tokens, int dim)
{
    for (int64_t j = 0; j < tokens; j++)
        for (int c = 0; c < dim; c++)
            panel[(j / LANES * dim + c) * LANES + j % LANES] = x[j * dim + c];
}

/* out[j] = x . row j, for the panels in which the mask allows something. */
static void PLAIN(products)(const struct PLAIN(pair) * p, REAL *restrict out, const REAL *restrict x,
                            const REAL *restrict panel, int dim)
{
    for (int64_t j = 0; j < p->tokens; j += LANES, panel += dim * LANES) {
        REAL sum[LANES] = {0};
        int live = 0;
        for (int l = 0; l < LANES; l++)
            live |= p->bias[j + l] > -(REAL)INFINITY;
        for (int c = 0; live && c < dim; c++)
            for (int l = 0; l < LANES; l++)
                sum[l] += x[c] * panel[c * LANES + l];
        memcpy(out + j, sum, sizeof(sum));
    }
}

static void PLAIN(add)(REAL *restrict out, REAL factor, const REAL *restrict x, int n)
{
    int c = 0;
    for (; c + LANES <= n; c += LANES)
        for (int l = 0; l < LANES; l++)
            out[c + l] += factor * x[c + l];
    for (; c < n; c++)
        out[c] += factor * x[c];
}

/* The n-th of count indices. */
static int64_t PLAIN(nth)(const struct PLAIN(pair) * p, int64_t n, int64_t count)
{
    return p->backwards ? count - 1 - n : n;
}

/* The row of o, lse and dq of query token i, and its share of dk and dv. q, do_ and bias are set. */
static REAL PLAIN(row)(struct PLAIN(pair) * p, REAL scale, REAL dlse)
{
    const int64_t tokens = p->tokens;
    REAL max = -(REAL)INFINITY, sum = 0, delta = -dlse;

    memset(p->o, 0, (size_t)p->dim_v * sizeof(REAL));
    memset(p->dq, 0, (size_t)p->dim * sizeof(REAL));
    PLAIN(products)(p, p->s, p->q, p->k_panel, p->dim);
    for (int64_t j = 0; j < tokens; j++)
        p->s[j] = scale * p->s[j] + p->bias[j];
    PLAIN(round)(p, p->s, tokens);
    for (int64_t j = 0; j < tokens; j++)
        max = p->s[j] > max ? p->s[j] : max;
    if (max == -(REAL)INFINITY)
        return max;

    for (int64_t n = 0; n < tokens; n++) {
        const int64_t j = PLAIN(nth)(p, n, tokens);
        p->s[j] = p->s[j] == -(REAL)INFINITY ? 0 : EXP(p->s[j] - max);
        sum += p->s[j];
    }
    for (int64_t j = 0; j < tokens; j++)
        p->s[j] /= sum;
    PLAIN(round)(p, p->s, tokens);
    for (int64_t n = 0; n < tokens; n++) {
        const int64_t j = PLAIN(nth)(p, n, tokens);
        if (p->s[j] != 0)
            PLAIN(add)(p->o, p->s[j], p->v + j * p->dim_v, p->dim_v);
    }
    PLAIN(round)(p, p->o, p->dim_v);

    PLAIN(products)(p, p->dp, p->do_, p->v_panel, p->dim_v);
    PLAIN(round)(p, p->dp, tokens);
    /* From the last channel: in the order of dp it would cancel a row's only dp to the last bit, as no two products do. */
    for (int c = p->dim_v - 1; c >= 0; c--)
        delta += p->do_[c] * p->o[c];
    for (int64_t j = 0; j < tokens; j++)
        p->dp[j] = p->s[j] * (p->dp[j] - delta);
    PLAIN(round)(p, p->dp, tokens);
    for (int64_t n = 0; n < tokens; n++) {
        const int64_t j = PLAIN(nth)(p, n, tokens);
        if (p->s[j] == 0)
            continue;
        PLAIN(add)(p->dq, p->dp[j], p->k + j * p->dim, p->dim);
        PLAIN(add)(p->dk + j * p->dim, p->dp[j], p->q, p->dim);
        PLAIN(add)(p->dv + j * p->dim_v, p->s[j], p->do_, p->dim_v);
    }
    for (int c = 0; c < p->dim; c++)
        p->dq[c] *= scale;
    PLAIN(round)(p, p->dq, p->dim);
    return max + LOG(sum);
}

/* Copy n numbers between double and REAL. */
static void PLAIN(load)(REAL *out, const double *in, int n)
{
    for (int c = 0; c < n; c++)
        out[c] = (REAL)in[c];
}

static void PLAIN(store)(double *out, const REAL *in, int n)
{
    for (int c = 0; c < n; c++)
        out[c] = (double)in[c];
}

static void PLAIN(evaluate)(const struct oracle *a, struct PLAIN(pair) * p, int64_t b, int g)
{
    const int group = a->heads / a->heads_kv, dim = a->dim, dim_v = a->dim_v;
    const int64_t tokens = a->tokens;

    memset(p->dk, 0, (size_t)tokens * (size_t)dim * sizeof(REAL));
    memset(p->dv, 0, (size_t)tokens * (size_t)dim_v * sizeof(REAL));
    for (int64_t j = 0; j < tokens; j++) {
        const int64_t kj = (b * tokens + j) * a->heads_kv + g;
        PLAIN(load)(p->k + j * dim, a->k + kj * dim, dim);
        PLAIN(load)(p->v + j * dim_v, a->v + kj * dim_v, dim_v);
    }
    PLAIN(pack)(p->k_panel, p->k, tokens, dim);
    PLAIN(pack)(p->v_panel, p->v, tokens, dim_v);

    for (int n = 0; n < group; n++)
        for (int64_t m = 0; m < tokens; m++) {
            const int h = g * group + (int)PLAIN(nth)(p, n, group);
            const int64_t i = PLAIN(nth)(p, m, tokens);
            const int64_t qi = (b * tokens + i) * a->heads + h, li = (b * a->heads + h) * tokens + i;
            for (int64_t j = 0; j < (tokens + LANES - 1) / LANES * LANES; j++) {
                const int count = j < tokens ? hra_mask_count(a->mask, b, a->head0 + h, i, j) : 0;
                p->bias[j] = count == 1 ? 0 : count == 0 ? -(REAL)INFINITY : LOG((REAL)count);
            }
            PLAIN(load)(p->q, a->q + qi * dim, dim);
            PLAIN(load)(p->do_, a->do_ + qi * dim_v, dim_v);
            a->lse[li] = (double)PLAIN(row)(p, (REAL)a->scale, a->dlse ? (REAL)a->dlse[li] : 0);
            PLAIN(store)(a->o + qi * dim_v, p->o, dim_v);
            PLAIN(store)(a->dq + qi * dim, p->dq, dim);
        }

    for (int64_t c = 0; c < tokens * dim; c++)
        p->dk[c] *= (REAL)a->scale;
    for (int64_t j = 0; j < tokens; j++) {
        const int64_t kj = (b * tokens + j) * a->heads_kv + g;
        PLAIN(round)(p, p->dk + j * dim, dim);
        PLAIN(round)(p, p->dv + j * dim_v, dim_v);
        PLAIN(store)(a->dk + kj * dim, p->dk + j * dim, dim);
        PLAIN(store)(a->dv + kj * dim_v, p->dv + j * dim_v, dim_v);
    }
}

/* All pairs of the share. */
static int PLAIN(share)(const struct oracle *a, hra_type type)
{
    const size_t slots = (size_t)((a->tokens + LANES - 1) / LANES * LANES);
    const size_t dim = (size_t)a->dim, dim_v = (size_t)a->dim_v;
    const size_t longest = slots > dim + dim_v ? slots : dim + dim_v;
    REAL *all = calloc(slots * 3 * (dim + dim_v) + 2 * (dim + dim_v) + 3 * slots + longest, sizeof(REAL));
    if (all == NULL)
        return -1;

    struct PLAIN(pair)
        p = {.type = type, .tokens = a->tokens, .dim = a->dim, .dim_v = a->dim_v, .backwards = a->backwards};
    REAL *next = all;
    struct {
        REAL **at;
        size_t count;
    } cut[] = {{&p.k, slots * dim},
               {&p.v, slots * dim_v},
               {&p.k_panel, slots * dim},
               {&p.v_panel, slots * dim_v},
               {&p.dk, slots * dim},
               {&p.dv, slots * dim_v},
               {&p.q, dim},
               {&p.dq, dim},
               {&p.do_, dim_v},
               {&p.o, dim_v},
               {&p.s, slots},
               {&p.dp, slots},
               {&p.bias, slots}};
    for (size_t n = 0; n < sizeof(cut) / sizeof(cut[0]); next += cut[n++].count)
        *cut[n].at = next;
    p.scratch = next;

    for (int64_t pair = a->first; pair < a->batch * a->heads_kv; pair += a->step)
        PLAIN(evaluate)(a, &p, pair / a->heads_kv, (int)(pair % a->heads_kv));
    free(all);
    return 0;
}

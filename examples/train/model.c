/* model.c - the transformer of hra-train. See model.h.
 *
 * Each backward function is written beside its forward and takes the gradient of the output first.
 * Products go through cblas_sgemm; sums over rows that no product does are kept in double, so that
 * ranks that hold different rows arrive at nearly the same gradient. */
#include "examples/train/model.h"
#include "examples/train/fail.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NORM_EPS 1e-6f
/* Differences of colours below this are counted as squares. */
#define SMOOTH 0.01

/* Where one layer's parameters begin in the array of all. */
struct layer_at {
    int64_t norm1; /* [dim] */
    int64_t wqkv;  /* [dim][qkv] */
    int64_t bqkv;  /* [qkv] */
    int64_t wo;    /* [dim][dim] */
    int64_t norm2; /* [dim] */
    int64_t w1;    /* [dim][ff] */
    int64_t w2;    /* [ff][dim] */
};

/* What one layer's forward keeps for its backward. */
struct layer_kept {
    float *x;      /* [rows][dim] input */
    float *n1;     /* [rows][dim] normed input */
    float *rms1;   /* [rows] 1 / root of the mean square */
    float *qkv;    /* [rows][qkv] after the rotary encoding */
    float *o;      /* [rows][dim] output of attention */
    float *lse;    /* [heads][rows] */
    float *mid;    /* [rows][dim] between attention and the hidden layer */
    float *n2;     /* [rows][dim] */
    float *rms2;   /* [rows] */
    float *hidden; /* [rows][ff] before silu */
    float *active; /* [rows][ff] after silu */
};

struct model {
    struct model_config config;
    hra_plan *plan; /* borrowed */
    int64_t rows;
    int in;       /* 256 bytes or MODEL_PIXEL */
    int out;      /* 256 logits or 3 colours */
    int qkv;      /* channels of q, k and v of all heads */
    int ff;       /* width of the hidden layer */
    int head_dim; /* channels of a head */

    int64_t count;       /* of parameters */
    int64_t embed;       /* [in][dim] */
    int64_t norm;        /* [dim] */
    int64_t head;        /* [dim][out] */
    int64_t bias;        /* [out] */
    struct layer_at *at; /* [layers] */
    float *parameter;    /* [count] */
    float *gradient;     /* [count] */

    struct layer_kept *kept; /* [layers] */
    float *memory;           /* all float arrays of this struct and of kept, one block */
    float *x;                /* [rows][dim] after the last layer */
    float *n;                /* [rows][dim] normed */
    float *rms;              /* [rows] */
    float *output;           /* [rows][out] */
    float *dx;               /* [rows][dim] gradient of the running sum x */
    float *dn;               /* [rows][dim] of a norm's output, also of o */
    float *dqkv;             /* [rows][qkv] */
    float *dhidden;          /* [rows][ff] */
    float (*turn)[2];        /* [rows][head_dim / 2] cosine and sine of the rotary encoding */
    double *sum;             /* [max(dim, qkv, out)] sums over rows */
    void *workspace;         /* of libhra */
};

/* ---- One layer at a time: forward, backward ------------------------------------------------ */

/* y = x w [+ y], x [rows][n], w [n][m]. */
static void times(float *y, const float *x, const float *w, int64_t rows, int n, int m, float add)
{
    if (rows > 0)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, m, n, 1, x, n, w, m, add, y, m);
}

/* dx = dy w^T, dw += x^T dy. dx NULL: not wanted. */
static void times_back(float *dx, float *dw, const float *dy, const float *x, const float *w, int64_t rows,
                       int n, int m)
{
    if (rows == 0)
        return;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, m, (int)rows, 1, x, n, dy, m, 1, dw, m);
    if (dx != NULL)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, n, m, 1, dy, m, w, m, 0, dx, n);
}

static void bias(float *y, const float *b, int64_t rows, int n)
{
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < n; c++)
            y[i * n + c] += b[c];
}

/* db += column sums of dy. */
static void bias_back(double *sum, float *db, const float *dy, int64_t rows, int n)
{
    memset(sum, 0, (size_t)n * sizeof(*sum));
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < n; c++)
            sum[c] += dy[i * n + c];
    for (int c = 0; c < n; c++)
        db[c] += (float)sum[c];
}

static void norm(float *y, float *rms, const float *x, const float *g, int64_t rows, int n)
{
    for (int64_t i = 0; i < rows; i++, x += n, y += n) {
        float square = 0;
        for (int c = 0; c < n; c++)
            square += x[c] * x[c];
        rms[i] = 1 / sqrtf(square / (float)n + NORM_EPS);
        for (int c = 0; c < n; c++)
            y[c] = x[c] * rms[i] * g[c];
    }
}

/* dx = [dx +] gradient of norm's input, dg += that of g. */
static void norm_back(float *dx, double *sum, float *dg, const float *dy, const float *x, const float *rms,
                      const float *g, int64_t rows, int n, int add)
{
    memset(sum, 0, (size_t)n * sizeof(*sum));
    for (int64_t i = 0; i < rows; i++, x += n, dy += n, dx += n) {
        float dot = 0;
        for (int c = 0; c < n; c++)
            dot += dy[c] * g[c] * x[c];
        const float back = dot * rms[i] * rms[i] * rms[i] / (float)n;
        for (int c = 0; c < n; c++) {
            const float d = dy[c] * g[c] * rms[i] - x[c] * back;
            dx[c] = add ? dx[c] + d : d;
            sum[c] += dy[c] * x[c] * rms[i];
        }
    }
    for (int c = 0; c < n; c++)
        dg[c] += (float)sum[c];
}

static void silu(float *y, const float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i] / (1 + expf(-x[i]));
}

/* In place: d is the gradient of silu's output, then of its input. */
static void silu_back(float *d, const float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const float s = 1 / (1 + expf(-x[i]));
        d[i] *= s * (1 + x[i] * (1 - s));
    }
}

/* Turn the channel pairs (2p, 2p + 1) of every query and key head; direction -1 turns back, which is
 * also the gradient. Values stay. */
static void rope(const struct model *m, float *qkv, float direction)
{
    const int heads = m->config.heads + m->config.heads_kv, pairs = m->head_dim / 2;

    for (int64_t i = 0; i < m->rows; i++) {
        const float(*turn)[2] = (const float(*)[2])m->turn + i * pairs;
        for (int h = 0; h < heads; h++) {
            float *c = qkv + i * m->qkv + (int64_t)h * m->head_dim;
            for (int p = 0; p < pairs; p++) {
                const float a = c[2 * p], b = c[2 * p + 1], sine = direction * turn[p][1];
                c[2 * p] = a * turn[p][0] - b * sine;
                c[2 * p + 1] = a * sine + b * turn[p][0];
            }
        }
    }
}

/* q, k, v as libhra sees them inside the rows of qkv: [heads | heads_kv | heads_kv][head_dim]. */
struct views {
    hra_tensor q, k, v;
};

static struct views views(const struct model *m, float *qkv)
{
    const int d = m->head_dim;
    const hra_tensor t = {qkv, m->rows * m->qkv, m->qkv, d};
    struct views w = {t, t, t};

    w.k.data = qkv + (int64_t)m->config.heads * d;
    w.v.data = qkv + (int64_t)(m->config.heads + m->config.heads_kv) * d;
    return w;
}

static hra_tensor rows_of(const struct model *m, float *x)
{
    return (hra_tensor){x, m->rows * m->config.dim, m->config.dim, m->head_dim};
}

/* ---- The whole model ----------------------------------------------------------------------- */

static void embed(struct model *m, float *x, const struct model_batch *b)
{
    const int dim = m->config.dim;
    const float *w = m->parameter + m->embed;

    if (m->config.picture) {
        times(x, (const float *)b->pixel, w, m->rows, m->in, dim, 0);
        return;
    }
    for (int64_t i = 0; i < m->rows; i++)
        memcpy(x + i * dim, w + (int64_t)b->byte[i] * dim, (size_t)dim * sizeof(*x));
}

static void embed_back(struct model *m, const float *dx, const struct model_batch *b)
{
    const int dim = m->config.dim;
    float *dw = m->gradient + m->embed;

    if (m->config.picture) {
        times_back(NULL, dw, dx, (const float *)b->pixel, NULL, m->rows, m->in, dim);
        return;
    }
    for (int64_t i = 0; i < m->rows; i++)
        for (int c = 0; c < dim; c++)
            dw[(int64_t)b->byte[i] * dim + c] += dx[i * dim + c];
}

static hra_status forward(struct model *m, const struct model_batch *b)
{
    const int dim = m->config.dim;
    const int64_t rows = m->rows;
    const float *w = m->parameter;

    embed(m, m->config.layers > 0 ? m->kept[0].x : m->x, b);
    for (int l = 0; l < m->config.layers; l++) {
        const struct layer_at *at = &m->at[l];
        struct layer_kept *k = &m->kept[l];
        float *next = l + 1 < m->config.layers ? m->kept[l + 1].x : m->x;
        const size_t x_bytes = (size_t)(rows * dim) * sizeof(float);

        norm(k->n1, k->rms1, k->x, w + at->norm1, rows, dim);
        times(k->qkv, k->n1, w + at->wqkv, rows, dim, m->qkv, 0);
        bias(k->qkv, w + at->bqkv, rows, m->qkv);
        rope(m, k->qkv, 1);
        const struct views in = views(m, k->qkv);
        const hra_tensor o = rows_of(m, k->o);
        hra_status status = hra_forward(m->plan, &in.q, &in.k, &in.v, &o, k->lse, m->workspace, NULL, NULL);
        if (status != HRA_OK)
            return status;
        memcpy(k->mid, k->x, x_bytes);
        times(k->mid, k->o, w + at->wo, rows, dim, dim, 1);

        norm(k->n2, k->rms2, k->mid, w + at->norm2, rows, dim);
        times(k->hidden, k->n2, w + at->w1, rows, dim, m->ff, 0);
        silu(k->active, k->hidden, rows * m->ff);
        memcpy(next, k->mid, x_bytes);
        times(next, k->active, w + at->w2, rows, m->ff, dim, 1);
    }
    norm(m->n, m->rms, m->x, w + m->norm, rows, dim);
    times(m->output, m->n, w + m->head, rows, dim, m->out, 0);
    bias(m->output, w + m->bias, rows, m->out);
    return HRA_OK;
}

/* From m->output holding its own gradient to m->gradient. */
static hra_status backward(struct model *m, const struct model_batch *b)
{
    const int dim = m->config.dim;
    const int64_t rows = m->rows;
    const float *w = m->parameter;
    float *g = m->gradient;

    memset(g, 0, (size_t)m->count * sizeof(*g));
    bias_back(m->sum, g + m->bias, m->output, rows, m->out);
    times_back(m->dn, g + m->head, m->output, m->n, w + m->head, rows, dim, m->out);
    norm_back(m->dx, m->sum, g + m->norm, m->dn, m->x, m->rms, w + m->norm, rows, dim, 0);

    for (int l = m->config.layers - 1; l >= 0; l--) {
        const struct layer_at *at = &m->at[l];
        struct layer_kept *k = &m->kept[l];

        times_back(m->dhidden, g + at->w2, m->dx, k->active, w + at->w2, rows, m->ff, dim);
        silu_back(m->dhidden, k->hidden, rows * m->ff);
        times_back(m->dn, g + at->w1, m->dhidden, k->n2, w + at->w1, rows, dim, m->ff);
        norm_back(m->dx, m->sum, g + at->norm2, m->dn, k->mid, k->rms2, w + at->norm2, rows, dim, 1);

        times_back(m->dn, g + at->wo, m->dx, k->o, w + at->wo, rows, dim, dim);
        const struct views in = views(m, k->qkv), din = views(m, m->dqkv);
        const hra_tensor o = rows_of(m, k->o), d_o = rows_of(m, m->dn);
        hra_status status = hra_backward(m->plan, &in.q, &in.k, &in.v, &o, k->lse, &d_o, NULL, &din.q, &din.k,
                                         &din.v, m->workspace, NULL, NULL);
        if (status != HRA_OK)
            return status;
        rope(m, m->dqkv, -1);
        bias_back(m->sum, g + at->bqkv, m->dqkv, rows, m->qkv);
        times_back(m->dn, g + at->wqkv, m->dqkv, k->n1, w + at->wqkv, rows, dim, m->qkv);
        norm_back(m->dx, m->sum, g + at->norm1, m->dn, k->x, k->rms1, w + at->norm1, rows, dim, 1);
    }
    embed_back(m, m->dx, b);
    return HRA_OK;
}

double model_distance(double difference)
{
    return sqrt(difference * difference + SMOOTH * SMOOTH) - SMOOTH;
}

/* The loss of row i of an output; the row becomes its gradient where `backward` is set. `share` is
 * what the row counts in the mean. */
static double row_loss(const struct model *m, const struct model_batch *b, int64_t i, double share,
                       int backward_too)
{
    float *y = m->output + i * m->out;
    double loss = 0;

    if (m->config.picture) {
        for (int c = 0; c < 3; c++) {
            const double d = (double)y[c] - (double)b->colour[i][c];
            loss += model_distance(d) / 3;
            if (backward_too)
                y[c] = (float)(share / 3 * d / sqrt(d * d + SMOOTH * SMOOTH));
        }
        return share * loss;
    }

    float most = y[0];
    double sum = 0;
    for (int c = 1; c < m->out; c++)
        most = y[c] > most ? y[c] : most;
    loss = most - y[b->next[i]];
    for (int c = 0; c < m->out; c++) {
        const float e = expf(y[c] - most);
        sum += e;
        if (backward_too)
            y[c] = e;
    }
    if (backward_too) {
        const float scale = (float)(share / sum);
        for (int c = 0; c < m->out; c++)
            y[c] *= scale;
        y[b->next[i]] -= (float)share;
    }
    return share * (loss + log(sum));
}

hra_status model_run(struct model *m, const struct model_batch *batch, int backward_too, double *loss)
{
    double sum = 0;

    hra_status status = forward(m, batch);
    if (status != HRA_OK)
        return status;
    for (int64_t i = 0; i < m->rows; i++) {
        const double weight = batch->weight != NULL ? batch->weight[i] : 1;
        sum += row_loss(m, batch, i, weight / batch->total, backward_too);
    }
    if (backward_too) {
        status = backward(m, batch);
        if (status != HRA_OK)
            return status;
    }
    *loss = sum;
    return HRA_OK;
}

/* ---- Making one ---------------------------------------------------------------------------- */

static int64_t take(int64_t *from, int64_t count)
{
    const int64_t at = *from;
    *from += count;
    return at;
}

/* Normal with standard deviation `deviation`, by Box and Muller (1958). */
static void fill_normal(struct model *m, int64_t at, int64_t count, double deviation)
{
    for (int64_t i = at; i < at + count; i++) {
        const double u = 1 - train_uniform(m->config.seed, STREAM_WEIGHTS, (uint64_t)(2 * i));
        const double v = train_uniform(m->config.seed, STREAM_WEIGHTS, (uint64_t)(2 * i + 1));
        m->parameter[i] = (float)(deviation * sqrt(-2 * log(u)) * cos(2 * acos(-1) * v));
    }
}

static void fill(struct model *m, int64_t at, int64_t count, float value)
{
    for (int64_t i = at; i < at + count; i++)
        m->parameter[i] = value;
}

static void initialise(struct model *m)
{
    const int dim = m->config.dim;
    const double in = 1 / sqrt(dim), into_sum = in / sqrt(2.0 * m->config.layers);
    const int qk = (m->config.heads + m->config.heads_kv) * m->head_dim;

    fill_normal(m, m->embed, (int64_t)m->in * dim, m->config.picture ? 1 : 0.1);
    for (int l = 0; l < m->config.layers; l++) {
        const struct layer_at *at = &m->at[l];
        fill(m, at->norm1, dim, 1);
        fill_normal(m, at->wqkv, (int64_t)dim * m->qkv, in);
        /* Equal biases of q and k make the score a sum of cosines of the distance, so pixels begin by
         * looking at their neighbours instead of at the whole window. */
        fill(m, at->bqkv, m->qkv, 0);
        if (m->config.picture)
            fill(m, at->bqkv, qk, 1);
        fill_normal(m, at->wo, (int64_t)dim * dim, into_sum);
        fill(m, at->norm2, dim, 1);
        fill_normal(m, at->w1, (int64_t)dim * m->ff, in);
        fill_normal(m, at->w2, (int64_t)m->ff * dim, into_sum / sqrt(MODEL_FF));
    }
    fill(m, m->norm, dim, 1);
    fill_normal(m, m->head, (int64_t)dim * m->out, 0.1 * in);
    fill(m, m->bias, m->out, m->config.picture ? 0.5f : 0);
}

/* Text: turn by the token's index, wavelengths from 2 pi to 10000 x 2 pi tokens. Picture: a window is
 * a few pixels wide, so wavelengths go from 2 pi to 100 x 2 pi pixels. */
static void fill_turns(struct model *m, const int64_t *token)
{
    const int pairs = m->head_dim / 2, axes = m->config.picture ? 2 : 1, each = pairs / axes;
    const double longest = m->config.picture ? 100 : 10000;

    for (int64_t i = 0; i < m->rows; i++) {
        for (int p = 0; p < pairs; p++) {
            double at = (double)token[i];
            if (m->config.picture)
                at = (double)(p < each ? token[i] / m->config.grid_columns
                                       : token[i] % m->config.grid_columns);
            const double angle = at * pow(longest, -(double)(p % each) / each);
            m->turn[i * pairs + p][0] = (float)cos(angle);
            m->turn[i * pairs + p][1] = (float)sin(angle);
        }
    }
}

/* Lay all float arrays of activations into one block: with base NULL only counts. */
static int64_t lay(struct model *m, float *base)
{
    const int64_t rows = m->rows, dim = m->config.dim;
    int64_t used = 0;

/* Each array starts at 64 bytes. */
#define PUT(field, floats) ((field) = base == NULL ? NULL : base + used, used += ((floats) + 15) / 16 * 16)
    for (int l = 0; l < m->config.layers; l++) {
        struct layer_kept *k = &m->kept[l];
        PUT(k->x, rows * dim);
        PUT(k->n1, rows * dim);
        PUT(k->rms1, rows);
        PUT(k->qkv, rows * m->qkv);
        PUT(k->o, rows * dim);
        PUT(k->lse, rows * m->config.heads);
        PUT(k->mid, rows * dim);
        PUT(k->n2, rows * dim);
        PUT(k->rms2, rows);
        PUT(k->hidden, rows * m->ff);
        PUT(k->active, rows * m->ff);
    }
    PUT(m->x, rows * dim);
    PUT(m->n, rows * dim);
    PUT(m->rms, rows);
    PUT(m->output, rows * m->out);
    PUT(m->dx, rows * dim);
    PUT(m->dn, rows * dim);
    PUT(m->dqkv, rows * m->qkv);
    PUT(m->dhidden, rows * m->ff);
#undef PUT
    return used;
}

static hra_status build(struct model *m, int rank)
{
    const struct model_config *c = &m->config;
    const int64_t dim = c->dim;
    hra_plan_info info = {.size = sizeof(info)};

    hra_status status = hra_plan_get_info(m->plan, &info);
    if (status != HRA_OK)
        return status;
    m->rows = hra_plan_rows(m->plan, rank);
    m->in = c->picture ? MODEL_PIXEL : 256;
    m->out = c->picture ? 3 : 256;
    m->head_dim = c->dim / c->heads;
    m->qkv = (c->heads + 2 * c->heads_kv) * m->head_dim;
    m->ff = MODEL_FF * c->dim;

    m->at = calloc((size_t)c->layers, sizeof(*m->at));
    m->kept = calloc((size_t)c->layers, sizeof(*m->kept));
    if (m->at == NULL || m->kept == NULL)
        return HRA_ERR_MEMORY;
    m->embed = take(&m->count, m->in * dim);
    for (int l = 0; l < c->layers; l++) {
        struct layer_at *at = &m->at[l];
        at->norm1 = take(&m->count, dim);
        at->wqkv = take(&m->count, dim * m->qkv);
        at->bqkv = take(&m->count, m->qkv);
        at->wo = take(&m->count, dim * dim);
        at->norm2 = take(&m->count, dim);
        at->w1 = take(&m->count, dim * m->ff);
        at->w2 = take(&m->count, dim * m->ff);
    }
    m->norm = take(&m->count, dim);
    m->head = take(&m->count, dim * m->out);
    m->bias = take(&m->count, m->out);

    const size_t rows_or_1 = m->rows > 0 ? (size_t)m->rows : 1;
    int64_t *token = calloc(rows_or_1, sizeof(*token));
    m->parameter = calloc((size_t)m->count, sizeof(*m->parameter));
    m->gradient = calloc((size_t)m->count, sizeof(*m->gradient));
    m->turn = calloc(rows_or_1 * (size_t)(m->head_dim / 2), sizeof(*m->turn));
    m->sum = calloc((size_t)(m->qkv > m->out ? m->qkv : m->out), sizeof(*m->sum)); /* qkv > dim */
    m->memory = aligned_alloc(64, (size_t)(lay(m, NULL) + 16) * sizeof(float));
    m->workspace = aligned_alloc(64, (info.workspace_bytes + 127) / 64 * 64);
    if (token == NULL || m->parameter == NULL || m->gradient == NULL || m->turn == NULL || m->sum == NULL ||
        m->memory == NULL || m->workspace == NULL) {
        free(token);
        return HRA_ERR_MEMORY;
    }
    lay(m, m->memory);
    status = hra_plan_row_index(m->plan, rank, NULL, token);
    if (status == HRA_OK) {
        fill_turns(m, token);
        initialise(m);
    }
    free(token);
    return status;
}

hra_status model_create(struct model **out, const struct model_config *config, hra_plan *plan, int rank)
{
    assert(config->layers > 0 && config->dim % config->heads == 0);
    assert(config->dim / config->heads % (config->picture ? 4 : 2) == 0);

    struct model *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return HRA_ERR_MEMORY;
    m->config = *config;
    m->plan = plan;
    hra_status status = build(m, rank);
    if (status != HRA_OK) {
        model_destroy(m);
        return status;
    }
    *out = m;
    return HRA_OK;
}

int64_t model_count(const struct model *m)
{
    return m->count;
}

float *model_parameters(struct model *m)
{
    return m->parameter;
}

float *model_gradient(struct model *m)
{
    return m->gradient;
}

const float *model_output(const struct model *m)
{
    return m->output;
}

void model_destroy(struct model *m)
{
    if (m == NULL)
        return;
    free(m->at);
    free(m->kept);
    free(m->parameter);
    free(m->gradient);
    free(m->turn);
    free(m->sum);
    free(m->memory);
    free(m->workspace);
    free(m);
}

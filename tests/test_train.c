/* test_train.c - the trainer's gradients against differences of its losses, and its checkpoints. */
#include "examples/train/fail.h"
#include "examples/train/model.h"
#include "examples/train/state.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <hra/hra.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Gradients ----------------------------------------------------------------------------- */

enum { HEIGHT = 5, WIDTH = 7, TOKENS = HEIGHT * WIDTH };

/* A model on one rank and a batch of random input. */
struct setup {
    hra_comm *comm;
    hra_plan *plan;
    struct model *model;
    struct model_batch batch;
    uint8_t byte[TOKENS], next[TOKENS];
    float pixel[TOKENS][MODEL_PIXEL], colour[TOKENS][3], weight[TOKENS];
};

static void set_up(struct setup *s, int picture, int heads, int heads_kv)
{
    hra_domain domain = HRA_DOMAIN_INIT;
    hra_problem problem = HRA_PROBLEM_INIT;
    hra_order *order;
    hra_mask *mask;
    const struct model_config config = {picture, 2, 8 * heads, heads, heads_kv, WIDTH, 7};

    domain.tokens = TOKENS;
    domain.heads = heads;
    domain.grid[0] = HEIGHT;
    domain.grid[1] = WIDTH;
    problem.heads = heads;
    problem.heads_kv = heads_kv;
    problem.dim = 8;
    problem.tokens = TOKENS;
    problem.type = HRA_F32;
    problem.threads = 1;
    cr_assert(eq(int, hra_order_create(&order, &domain, picture ? "hilbert" : "identity"), HRA_OK));
    cr_assert(eq(int, hra_mask_parse(&mask, &domain, order, picture ? "grid(2,1)" : "causal"), HRA_OK));
    cr_assert(eq(int, hra_comm_create_self(&s->comm), HRA_OK));
    cr_assert(eq(int, hra_plan_create(&s->plan, s->comm, &problem, order, mask, NULL), HRA_OK), "%s",
              hra_last_error());
    hra_order_destroy(order);
    hra_mask_destroy(mask);
    cr_assert(eq(int, model_create(&s->model, &config, s->plan, 0), HRA_OK));

    /* Off the initial values, where whole groups of parameters hardly change the loss. */
    for (int64_t i = 0; i < model_count(s->model); i++)
        model_parameters(s->model)[i] += (float)(0.4 * (train_uniform(1, 0, (uint64_t)i) - 0.5));
    double total = 0;
    for (int i = 0; i < TOKENS; i++) {
        s->byte[i] = (uint8_t)(train_random(1, 1, (uint64_t)i) % 8);
        s->next[i] = (uint8_t)(train_random(1, 2, (uint64_t)i) % 256);
        for (int c = 0; c < MODEL_PIXEL; c++)
            s->pixel[i][c] = (float)train_uniform(1, 3, (uint64_t)(MODEL_PIXEL * i + c)) - 0.5f;
        for (int c = 0; c < 3; c++)
            s->colour[i][c] = (float)train_uniform(1, 4, (uint64_t)(3 * i + c));
        total += s->weight[i] = (float)(i % 3 != 0);
    }
    s->batch = (struct model_batch){s->byte,
                                    s->next,
                                    (const float(*)[MODEL_PIXEL])s->pixel,
                                    (const float(*)[3])s->colour,
                                    picture ? s->weight : NULL,
                                    picture ? total : TOKENS};
}

static void tear_down(struct setup *s)
{
    model_destroy(s->model);
    hra_plan_destroy(s->plan);
    hra_comm_destroy(s->comm);
}

/* (loss(p + step d) - loss(p - step d)) / 2 step over the parameters from .. to. */
static double slope(struct setup *s, const double *direction, int64_t from, int64_t to, double step)
{
    float *p = model_parameters(s->model);
    double loss[2];

    for (int side = 0; side < 2; side++) {
        const double signed_step = side == 0 ? step : -step;
        float kept[64];
        cr_assert(le(i64, to - from, 64));
        memcpy(kept, p + from, (size_t)(to - from) * sizeof(*p));
        for (int64_t i = from; i < to; i++)
            p[i] = (float)(p[i] + signed_step * direction[i - from]);
        cr_assert(eq(int, model_run(s->model, &s->batch, 0, &loss[side]), HRA_OK));
        memcpy(p + from, kept, (size_t)(to - from) * sizeof(*p));
    }
    return (loss[0] - loss[1]) / (2 * step);
}

struct kind {
    int picture, heads, heads_kv;
};

ParameterizedTestParameters(train, gradient)
{
    static struct kind kinds[] = {{0, 4, 2}, {1, 2, 2}, {1, 2, 1}};
    return cr_make_param_array(struct kind, kinds, sizeof(kinds) / sizeof(kinds[0]));
}

/* Every run of 64 parameters, along its own gradient and along a random direction. Losses are sums of
 * f32 with rounding of about 2e-7; over a step of 0.004 that makes 5e-5 of a slope. Longer steps feel the
 * curvature of model_distance. */
ParameterizedTest(struct kind *kind, train, gradient, .timeout = 120)
{
    static struct setup s;
    double loss, largest = 0;

    set_up(&s, kind->picture, kind->heads, kind->heads_kv);
    cr_assert(eq(int, model_run(s.model, &s.batch, 1, &loss), HRA_OK));
    const int64_t count = model_count(s.model);
    float *g = malloc((size_t)count * sizeof(*g));
    cr_assert(ne(ptr, g, NULL));
    memcpy(g, model_gradient(s.model), (size_t)count * sizeof(*g));

    for (int64_t from = 0; from < count; from += 64) {
        const int64_t to = from + 64 < count ? from + 64 : count;
        for (int random = 0; random < 2; random++) {
            double d[64], length = 0, expected = 0;
            for (int64_t i = from; i < to; i++) {
                d[i - from] = random ? train_uniform(2, 0, (uint64_t)i) - 0.5 : (double)g[i];
                length += d[i - from] * d[i - from];
            }
            if (length == 0)
                continue; /* bytes that do not occur */
            for (int64_t i = from; i < to; i++) {
                d[i - from] /= sqrt(length);
                expected += d[i - from] * (double)g[i];
            }
            const double found = slope(&s, d, from, to, 0.004);
            cr_expect(le(dbl, fabs(found - expected), 0.01 * fabs(expected) + 1e-4),
                      "parameters %lld to %lld: slope %.6g, gradient %.6g", (long long)from, (long long)to,
                      found, expected);
            largest = fmax(largest, fabs(expected));
        }
    }
    cr_expect(gt(dbl, largest, 0.01), "nothing was tested");
    free(g);
    tear_down(&s);
}

/* ---- Checkpoints --------------------------------------------------------------------------- */

enum { COUNT = 100, STEPS = 10 };

static char file[] = "/tmp/hra-test-train-XXXXXX";

static void remove_file(void)
{
    unlink(file);
}

/* A state after three steps, saved to `file`. */
static void save_three(struct state *s, float *parameter)
{
    float gradient[COUNT];
    char why[WHY_BYTES] = "";

    close(mkstemp(file));
    cr_assert(eq(int, state_create(s, parameter, COUNT, STEPS), 0));
    for (int n = 0; n < 3; n++) {
        for (int i = 0; i < COUNT; i++)
            gradient[i] = (float)(i + n) / COUNT;
        state_advance(s, gradient, 0.01, 5 - n);
    }
    cr_assert(eq(int, state_save(s, "dim 64\nheads 2\n", file, why), 0), "%s", why);
}

Test(checkpoint, comes_back_as_it_was, .fini = remove_file)
{
    static float parameter[COUNT], other[COUNT];
    struct state s, t;
    char why[WHY_BYTES] = "";

    save_three(&s, parameter);
    cr_assert(eq(int, state_create(&t, other, COUNT, STEPS), 0));
    cr_expect(eq(int, state_load(&t, "dim 64\nheads 2\n", file, why), 0), "%s", why);
    cr_expect(eq(i64, t.step, 3));
    cr_expect(eq(int, memcmp(other, parameter, sizeof(other)), 0));
    cr_expect(eq(int, memcmp(t.first, s.first, sizeof(other)), 0));
    cr_expect(eq(int, memcmp(t.second, s.second, sizeof(other)), 0));
    cr_expect(eq(int, memcmp(t.history, s.history, 3 * sizeof(*t.history)), 0));
    state_destroy(&s);
    state_destroy(&t);
}

struct damage {
    long cut;  /* bytes left, -1: all */
    long flip; /* this byte is changed, -1: none */
    char config[32], message[40];
};

ParameterizedTestParameters(checkpoint, refused)
{
    static struct damage rows[] = {
        {-1, -1, "dim 32\nheads 2\n", "made with dim 64, this run has dim 32"},
        {-1, 0, "dim 64\nheads 2\n", "is no checkpoint"},
        {-1, 8, "dim 64\nheads 2\n", "version"},
        {-1, 300, "dim 64\nheads 2\n", "is damaged"},
        {0, -1, "dim 64\nheads 2\n", "is no checkpoint"},
        {20, -1, "dim 64\nheads 2\n", "is cut off"},
        {40, -1, "dim 64\nheads 2\n", "is cut off"},
        {500, -1, "dim 64\nheads 2\n", "is cut off"},
    };
    return cr_make_param_array(struct damage, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct damage *d, checkpoint, refused, .fini = remove_file)
{
    static float parameter[COUNT], other[COUNT];
    struct state s, t;
    char why[WHY_BYTES] = "";

    save_three(&s, parameter);
    if (d->cut >= 0)
        cr_assert(eq(int, truncate(file, d->cut), 0));
    if (d->flip >= 0) {
        FILE *f = fopen(file, "r+b");
        cr_assert(ne(ptr, f, NULL));
        fseek(f, d->flip, SEEK_SET);
        const int old = fgetc(f);
        fseek(f, d->flip, SEEK_SET);
        fputc(old ^ 0x40, f);
        fclose(f);
    }
    cr_assert(eq(int, state_create(&t, other, COUNT, STEPS), 0));
    cr_expect(eq(int, state_load(&t, d->config, file, why), -1));
    cr_expect(ne(ptr, strstr(why, d->message), NULL), "said: %s", why);
    cr_expect(eq(i64, t.step, 0));
    for (int i = 0; i < COUNT; i++)
        cr_expect(eq(flt, other[i], 0));
    state_destroy(&s);
    state_destroy(&t);
}

Test(checkpoint, missing_file)
{
    float parameter[COUNT] = {0};
    struct state s;
    char why[WHY_BYTES] = "";

    cr_assert(eq(int, state_create(&s, parameter, COUNT, STEPS), 0));
    cr_expect(eq(int, state_load(&s, "", "/nowhere/at/all", why), -1));
    cr_expect(eq(str, why, "cannot read the checkpoint /nowhere/at/all: No such file or directory"));
    cr_expect(eq(int, state_save(&s, "", "/nowhere/at/all", why), -1));
    cr_expect(eq(str, why, "cannot write the checkpoint /nowhere/at/all: No such file or directory"));
    state_destroy(&s);
}

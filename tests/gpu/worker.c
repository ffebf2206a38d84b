/* worker.c - what is tested on one GPU beyond hra-check. Started by run.sh:
 *
 *     gpu-worker TEST
 *
 * Exit status 0: the test passed. What failed is printed, with the line. */
#include "tests/gpu/layer.h"
#include "tests/gpu/twin.h"

#include <math.h>
#include <string.h>

/* ---- The twin ------------------------------------------------------------------------------ */

/* A problem in token order, in double, with two sets of outputs. */
struct reference {
    double *in[INPUTS], *out[2][TENSORS];
    struct oracle oracle; /* writes out[0] */
};

static void reference_open(struct reference *r, const struct problem *p, const hra_mask *mask)
{
    *r = (struct reference){.in = {NULL}};
    for (int n = 0; n < TENSORS; n++) {
        const int64_t count = count_of(p, n, p->tokens);
        if (n >= INPUTS) {
            r->out[0][n] = take(count, sizeof(double));
            r->out[1][n] = take(count, sizeof(double));
            continue;
        }
        void *rounded = take(count, hra_type_bytes(type_of(p, n)));
        r->in[n] = take(count, sizeof(double));
        for (int64_t i = 0; i < count; i++)
            r->in[n][i] = random_normal(random_bits(p->seed, (uint64_t)n), (uint64_t)i);
        NEED_HRA(hra_convert(rounded, type_of(p, n), r->in[n], HRA_F64, count));
        NEED_HRA(hra_convert(r->in[n], HRA_F64, rounded, type_of(p, n), count));
        free(rounded);
    }
    r->oracle = (struct oracle){.mask = mask,
                                .batch = p->batch,
                                .tokens = p->tokens,
                                .heads = p->heads,
                                .heads_kv = p->heads_kv,
                                .head0 = p->head0,
                                .dim = p->dim,
                                .dim_v = p->dim_v,
                                .scale = p->scale,
                                .q = r->in[Q],
                                .k = r->in[K],
                                .v = r->in[V],
                                .do_ = r->in[DO],
                                .dlse = p->dlse ? r->in[DLSE] : NULL,
                                .o = r->out[0][O],
                                .lse = r->out[0][LSE],
                                .dq = r->out[0][DQ],
                                .dk = r->out[0][DK],
                                .dv = r->out[0][DV],
                                .step = 1};
}

/* The same problem, written to out[1]. */
static struct oracle other(const struct reference *r)
{
    struct oracle a = r->oracle;
    a.o = r->out[1][O];
    a.lse = r->out[1][LSE];
    a.dq = r->out[1][DQ];
    a.dk = r->out[1][DK];
    a.dv = r->out[1][DV];
    return a;
}

static void reference_close(struct reference *r)
{
    for (int n = 0; n < TENSORS; n++) {
        if (n < INPUTS)
            free(r->in[n]);
        free(r->out[0][n]);
        free(r->out[1][n]);
    }
}

/* 2-norm of x - y, or of x where y is NULL, over the first `heads` heads; infinite numbers, which must be
 * the same, are left out. */
static double distance(const struct problem *p, int n, int heads, const double *x, const double *y)
{
    const int64_t all = heads_of(p, n), channels = channels_of(p, n), count = count_of(p, n, p->tokens);
    double sum = 0;

    for (int64_t i = 0; i < count; i++) {
        const int64_t head = kinds[n].sums ? i / p->tokens % all : i / channels % all;
        if (head >= heads || (isinf(x[i]) && (y == NULL || x[i] == y[i])))
            continue;
        sum += (x[i] - (y == NULL ? 0 : y[i])) * (x[i] - (y == NULL ? 0 : y[i]));
    }
    return sqrt(sum);
}

/* The twin gives what the oracle gives, to 1e-13 of it, and writes nothing of the pairs that it is not asked
 * for. */
static void test_twin(hra_comm *comm)
{
    enum { PROBLEMS = 100 };
    double worst = 0;

    (void)comm;
    for (uint64_t number = 0; number < PROBLEMS; number++) {
        struct problem p;
        struct setup s;
        struct reference r;
        char why[256];

        NEED(problem_draw(&p, 2026, number, HRA_BACKEND_CPU), "no memory");
        NEED(problem_complete(&p, why, sizeof(why)), why);
        p.type = HRA_F64;
        char *text = problem_text(&p);
        NEED_HRA(setup_create(&s, &p));
        reference_open(&r, &p, s.mask);
        struct oracle a = r.oracle, b = other(&r);
        a.step = b.step = 1 + (int64_t)(number % 2);
        a.first = b.first = a.step - 1;
        NEED(oracle_exact(&a), "no memory");
        NEED(twin_exact(&b), text);
        for (int n = INPUTS; n < TENSORS; n++) {
            const double size = distance(&p, n, heads_of(&p, n), r.out[0][n], NULL);
            const double error = distance(&p, n, heads_of(&p, n), r.out[0][n], r.out[1][n]);
            CHECK(error <= 1e-13 * size, "%s of %s: %.3g of %.3g", kinds[n].name, text, error, size);
            worst = fmax(worst, size > 0 ? error / size : 0);
        }
        reference_close(&r);
        setup_destroy(&s);
        problem_free(&p);
        free(text);
    }
    printf("%d problems, largest difference %.3g\n", PROBLEMS, worst);
}

/* ---- Large problems ------------------------------------------------------------------------ */

/* Half the distance between 1 and the next number. */
static double roundoff(hra_type type)
{
    return type == HRA_F32 ? 0x1p-24 : type == HRA_BF16 ? 0x1p-8 : 0x1p-11;
}

/* Move tensor n between all tokens, in double, and the layer's rows. */
static void reorder(struct layer *l, hra_direction direction, int n, double *numbers)
{
    const struct problem *p = &l->problem;
    const int64_t heads = heads_of(p, n), channels = channels_of(p, n), count = count_of(p, n, p->tokens);
    const size_t bytes = (size_t)count * hra_type_bytes(p->type);
    void *rounded = take(count, hra_type_bytes(p->type));
    const hra_tensor whole = {take_there(bytes), p->tokens * heads * channels, heads * channels, channels};

    if (direction == HRA_GATHER) {
        NEED_HRA(hra_convert(rounded, p->type, numbers, HRA_F64, count));
        NEED_DEVICE(device_write(whole.data, rounded, bytes));
    }
    NEED_HRA(hra_reorder(l->plan, direction, p->type, (int)heads, (int)channels, &whole, &l->t[n], NULL));
    NEED_DEVICE(device_wait());
    if (direction == HRA_SCATTER) {
        NEED_DEVICE(device_read(rounded, whole.data, bytes));
        NEED_HRA(hra_convert(numbers, HRA_F64, rounded, p->type, count));
    }
    device_free(whole.data);
    free(rounded);
}

/* The layer's lse, of one sequence, in token order. */
static void read_lse(const struct layer *l, double *out)
{
    const int64_t heads = l->problem.heads, tokens = l->problem.tokens;
    float *lse = take(heads * l->rows, sizeof(*lse));
    int64_t *token = take(l->rows, sizeof(*token));

    NEED_HRA(hra_plan_row_index(l->plan, 0, NULL, token));
    NEED_DEVICE(device_read(lse, l->t[LSE].data, bytes_of(l, LSE)));
    for (int64_t h = 0; h < heads; h++)
        for (int64_t r = 0; r < l->rows; r++)
            out[h * tokens + token[r]] = lse[h * l->rows + r];
    free(lse);
    free(token);
}

/* One sequence of 6,000 tokens against the twin. The plain evaluation, which takes a CPU, is that of the
 * first head, and its error is taken for that of every head. */
static void compare_large(hra_comm *comm, hra_type type)
{
    struct problem p = problem_of(6000, "hilbert", "causal & window(3000,0) | global(7)", type);
    struct reference r;
    struct layer l;
    double plain[TENSORS];

    p.batch = 1;
    p.heads = p.heads_kv = 2;
    p.dlse = 0;
    layer_open(&l, &p, comm);
    reference_open(&r, &p, l.setup.mask);
    NEED(twin_exact(&r.oracle), "the twin failed");
    struct oracle first = other(&r);
    first.step = p.heads;
    NEED(oracle_plain(&first, type), "no memory");
    for (int n = INPUTS; n < TENSORS; n++)
        plain[n] = distance(&p, n, 1, r.out[0][n], r.out[1][n]) / distance(&p, n, 1, r.out[0][n], NULL);

    for (int n = Q; n <= DO; n++)
        reorder(&l, HRA_GATHER, n, r.in[n]);
    l.t[DLSE].data = NULL;
    NEED_HRA(layer_forward(&l, NULL));
    NEED_HRA(layer_backward(&l, NULL));
    NEED_DEVICE(device_wait());
    for (int n = INPUTS; n < TENSORS; n++) {
        if (n == LSE)
            read_lse(&l, r.out[1][n]);
        else
            reorder(&l, HRA_SCATTER, n, r.out[1][n]);
        const double size = distance(&p, n, p.heads, r.out[0][n], NULL);
        const double error = distance(&p, n, p.heads, r.out[0][n], r.out[1][n]) / size;
        printf("%-4s %-4s error %.3e, plain %.3e\n", hra_type_name(type), kinds[n].name, error, plain[n]);
        CHECK(error <= 2 * plain[n] + 2 * roundoff(type_of(&p, n)), "%s: %.3e, plain %.3e", kinds[n].name,
              error, plain[n]);
    }
    reference_close(&r);
    layer_close(&l);
}

static void test_large(hra_comm *comm)
{
    compare_large(comm, HRA_F32);
    compare_large(comm, HRA_BF16);
    compare_large(comm, HRA_F16);
}

/* ---- Steps and graphs ---------------------------------------------------------------------- */

/* Small problems: the same bits twice, whatever was in the workspace; `unset`: nobody has written there. */
static void compute_small(hra_comm *comm, const hra_type *types, int count, int unset)
{
    static const char *const masks[] = {"full", "causal & window(99,0)",
                                        "mix(causal; dilated(130,3,head,both)) & !docs(100,200)"};

    for (int type = 0; type < count; type++)
        for (int mask = 0; mask < 3; mask++) {
            struct problem p = problem_of(300, mask == 1 ? "identity" : "random:7", masks[mask], types[type]);
            struct layer l;
            size_t bytes;

            p.dim_v = mask == 2 ? 40 : p.dim;
            p.saved = mask == 0 ? HRA_SAVED_QKV : HRA_SAVED_NOTHING;
            layer_open(&l, &p, comm);
            if (!unset)
                NEED_DEVICE(device_fill(l.workspace, 0, l.info.workspace_bytes));
            unsigned char *one = layer_step(&l, 1, NULL, &bytes);
            if (!unset)
                NEED_DEVICE(device_fill(l.workspace, 0xff, l.info.workspace_bytes));
            unsigned char *two = layer_step(&l, 1, device_stream(), &bytes);
            CHECK(memcmp(one, two, bytes) == 0, "%s, %s", masks[mask], hra_type_name(p.type));
            free(one);
            free(two);
            layer_close(&l);
        }
}

static void test_steps(hra_comm *comm)
{
    compute_small(comm, (const hra_type[]){HRA_F32, HRA_BF16, HRA_F16}, 3, 0);
}

/* For initcheck, which looks for reads of what nobody has written. It does not see what cuBLAS's kernels for
 * 16-bit types store on sm_90, and takes all of it for unwritten; those are left to `steps`, where the
 * workspace's content would show. */
static void test_unset(hra_comm *comm)
{
    compute_small(comm, (const hra_type[]){HRA_F32}, 1, 1);
}

static void test_graph(hra_comm *comm)
{
    struct problem p = problem_of(1500, "identity", "causal & window(400,0)", HRA_BF16);

    layer_replay(comm, &p, 20);
    p.saved = HRA_SAVED_QKV;
    p.order = (char[]){"morton"};
    layer_replay(comm, &p, 20);
    p.type = HRA_F32;
    p.mask = (char[]){"heads(0: full; 1-3: docs(700,800))"};
    layer_replay(comm, &p, 20);
}

/* For sm90: whatever multiprocessors are left to others, outputs have the same bits. On all of them these items are few,
 * and two warpgroups compute each; on three they are many, and with 64 channels it is three warpgroups. */
static void test_margin(hra_comm *comm)
{
    int processors;

    NEED_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
    const int margins[] = {0, 16, processors - 3};
    for (int dim = 64; dim <= 128; dim += 64) {
        unsigned char *wanted[TENSORS] = {NULL};
        for (int i = 0; i < 3; i++) {
            struct problem p = problem_of(2125, "identity", "causal", HRA_BF16);
            struct layer l;

            p.dim = p.dim_v = dim;
            p.margin = margins[i];
            layer_open(&l, &p, comm);
            layer_set_inputs(&l, 1);
            NEED_HRA(layer_forward(&l, device_stream()));
            layer_wait(&l, device_stream());
            for (int n = O; n <= LSE; n++) {
                unsigned char *const got = take((int64_t)bytes_of(&l, n), 1);
                NEED_DEVICE(device_read(got, l.t[n].data, bytes_of(&l, n)));
                CHECK(i == 0 || memcmp(got, wanted[n], bytes_of(&l, n)) == 0, "%s, dim %d, margin %d",
                      kinds[n].name, dim, margins[i]);
                if (i == 0)
                    wanted[n] = got;
                else
                    free(got);
            }
            layer_close(&l);
        }
        free(wanted[O]);
        free(wanted[LSE]);
    }
}

/* Once a plan has run its calls take no memory of the GPU, on which nobody else may work meanwhile. */
static void test_memory(hra_comm *comm)
{
    enum { STEPS = 100 };
    const struct problem p = problem_of(1500, "hilbert", "causal & window(400,0)", HRA_BF16);
    struct layer l;
    size_t bytes;

    layer_open(&l, &p, comm);
    free(layer_step(&l, 0, device_stream(), &bytes));
    const size_t before = free_memory();
    for (int i = 0; i < STEPS; i++) {
        NEED_HRA(layer_forward(&l, device_stream()));
        NEED_HRA(layer_backward(&l, device_stream()));
    }
    NEED_DEVICE(device_wait());
    CHECK(free_memory() == before, "%zu bytes were free, %zu are after %d steps", before, free_memory(),
          STEPS);
    layer_close(&l);
}

/* ---- What calls refuse --------------------------------------------------------------------- */

/* A plan that must not be made, unless `may` is 1, and what its message must name. */
static void refuse_plan(hra_comm *comm, const struct problem *p, int may, const char *names)
{
    struct setup s;
    hra_plan *plan = NULL;

    NEED_HRA(setup_create(&s, p));
    const hra_status status = hra_plan_create(&plan, comm, &s.problem, s.order, s.mask, &s.options);
    CHECK((may && status == HRA_OK) ||
              (status == HRA_ERR_UNSUPPORTED && plan == NULL && strstr(hra_last_error(), names) != NULL),
          "%s: %s: %s", names, hra_status_name(status), hra_last_error());
    hra_plan_destroy(plan);
    setup_destroy(&s);
}

/* Forward and backward as the layer is now are refused with a message that has the number in it. */
static void refuse_calls(struct layer *l, const char *what, const char *number)
{
    hra_status status = layer_forward(l, NULL);
    CHECK(status == HRA_ERR_ARG && strstr(hra_last_error(), number) != NULL, "forward, %s: %s: %s", what,
          hra_status_name(status), hra_last_error());
    status = layer_backward(l, NULL);
    CHECK(status == HRA_ERR_ARG && strstr(hra_last_error(), number) != NULL, "backward, %s: %s: %s", what,
          hra_status_name(status), hra_last_error());
}

/* What cannot be is refused, with a sentence, and then the right call gives the bits that it gave before. */
static void test_refused(hra_comm *comm)
{
    struct problem p = problem_of(300, "identity", "causal", HRA_F64);
    struct layer l;
    size_t bytes;

    refuse_plan(comm, &p, 0, "f64");
    p.type = HRA_BF16;
    p.backward = HRA_BACKWARD_FUSED;
    refuse_plan(comm, &p, 1, "fused"); /* some GPUs have it */
    p.backward = HRA_BACKWARD_CUBLAS;
    layer_open(&l, &p, comm);
    CHECK(strcmp(l.info.backend, "cuda") == 0 && strcmp(l.info.backward, "cublas") == 0,
          "backend %s, backward %s", l.info.backend, l.info.backward);
    unsigned char *wanted = layer_step(&l, 5, NULL, &bytes);

    for (int n = Q; n <= V; n++) {
        const hra_tensor right = l.t[n];
        l.t[n].data = (char *)right.data + 8;
        refuse_calls(&l, "data", "16");
        l.t[n] = right;
        l.t[n].stride_row += 4;
        refuse_calls(&l, "stride_row", "16");
        l.t[n] = right;
        l.t[n].stride_head += 1;
        refuse_calls(&l, "stride_head", "16");
        l.t[n] = right;
    }
    void *right = l.workspace;
    l.workspace = (char *)right + 16;
    refuse_calls(&l, "workspace", "256");
    l.workspace = right;

    unsigned char *got = layer_step(&l, 5, NULL, &bytes);
    CHECK(memcmp(got, wanted, bytes) == 0, "other bits after refused calls");
    free(got);
    free(wanted);
    layer_close(&l);
}

/* ---- Reordering ---------------------------------------------------------------------------- */

/* Whole tensors in token order become rows and come back, bit by bit, whatever lies between their heads. */
static void reorder_both_ways(hra_comm *comm, hra_type type, int heads, int dim, int gap)
{
    const struct problem p = problem_of(1111, "random:3", "causal", type);
    const size_t size = hra_type_bytes(type), row = (size_t)(heads * dim) * size;
    const int64_t stride = (heads + gap) * dim;
    const size_t bytes = (size_t)(p.batch * p.tokens * stride) * size;
    unsigned char *whole = take((int64_t)bytes, 1), *rows = take((int64_t)bytes, 1),
                  *back = take((int64_t)bytes, 1);
    struct layer l;

    layer_open(&l, &p, comm);
    const hra_tensor a = {take_there(bytes), p.tokens * stride, stride, dim};
    const hra_tensor b = {take_there(bytes), stride, p.batch * stride, dim}; /* (seq, batch, head, dim) */
    int64_t *token = take(l.rows, sizeof(*token));
    NEED_HRA(hra_plan_row_index(l.plan, 0, NULL, token));
    for (size_t i = 0; i < bytes; i++)
        whole[i] = (unsigned char)random_bits(9, i);
    NEED_DEVICE(device_write(a.data, whole, bytes));
    NEED_DEVICE(device_fill(b.data, 0xff, bytes));
    NEED_HRA(hra_reorder(l.plan, HRA_GATHER, type, heads, dim, &a, &b, NULL));
    NEED_DEVICE(device_read(rows, b.data, bytes));
    NEED_DEVICE(device_fill(a.data, 0xff, bytes));
    NEED_HRA(hra_reorder(l.plan, HRA_SCATTER, type, heads, dim, &a, &b, device_stream()));
    NEED_DEVICE(device_read(back, a.data, bytes));

    int wrong = 0;
    for (int64_t s = 0; s < p.batch; s++)
        for (int64_t r = 0; r < l.rows; r++) {
            const size_t there = (size_t)(s * a.stride_batch + token[r] * a.stride_row) * size;
            const size_t here = (size_t)(s * b.stride_batch + r * b.stride_row) * size;
            wrong |=
                memcmp(whole + there, rows + here, row) != 0 || memcmp(whole + there, back + there, row) != 0;
            for (size_t i = row; i < (size_t)stride * size; i++)
                wrong |= rows[here + i] != 0xff || back[there + i] != 0xff;
        }
    CHECK(!wrong, "%s, %d heads of %d, gap of %d", hra_type_name(type), heads, dim, gap);
    device_free(a.data);
    device_free(b.data);
    free(token);
    free(whole);
    free(rows);
    free(back);
    layer_close(&l);
}

static void test_reorder(hra_comm *comm)
{
    reorder_both_ways(comm, HRA_BF16, 3, 40, 0);
    reorder_both_ways(comm, HRA_BF16, 3, 8, 2);
    reorder_both_ways(comm, HRA_F16, 1, 256, 1);
    reorder_both_ways(comm, HRA_F32, 5, 4, 0);
    reorder_both_ways(comm, HRA_F32, 2, 128, 1);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(hra_comm *comm);
    } tests[] = {
        {"twin", test_twin},   {"large", test_large},     {"steps", test_steps},
        {"graph", test_graph}, {"refused", test_refused}, {"reorder", test_reorder},
        {"unset", test_unset}, {"memory", test_memory},   {"margin", test_margin},
    };

    for (size_t i = 0; argc > 1 && i < sizeof(tests) / sizeof(tests[0]); i++) {
        if (strcmp(argv[1], tests[i].name) != 0)
            continue;
        NEED_DEVICE(device_open(HRA_BACKEND_CUDA, 0));
        NEED(device_name()[0] == '\0', "there is no GPU");
        hra_comm *comm = NULL;
        NEED_HRA(hra_comm_create_self(&comm));
        tests[i].run(comm);
        NEED_HRA(hra_comm_destroy(comm));
        device_close();
        NEED_CUDA(cudaDeviceReset()); /* what is left allocated shows in memcheck */
        return failures > 0;
    }
    fprintf(stderr, "gpu-worker: no test '%s'\n", argc > 1 ? argv[1] : "");
    return 2;
}

/* layer.c - problems, plans and graphs for the tests on GPUs. */
#include "tests/gpu/layer.h"

#include <string.h>
#include <time.h>

int failures;
int own_rank;

const struct tensor_kind kinds[TENSORS] = {
    {"q", 0, 0, 0}, {"k", 1, 0, 0},   {"v", 1, 1, 0},  {"do", 0, 1, 0}, {"dlse", 0, 0, 1},
    {"o", 0, 1, 0}, {"lse", 0, 0, 1}, {"dq", 0, 0, 0}, {"dk", 1, 0, 0}, {"dv", 1, 1, 0}};

void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    NEED(memory == NULL, "no memory");
    return memory;
}

void *take_there(size_t bytes)
{
    void *memory = device_alloc(bytes);
    NEED_DEVICE(memory == NULL);
    return memory;
}

double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void rest(double seconds)
{
    const double whole = (double)(time_t)seconds;
    nanosleep(&(struct timespec){(time_t)seconds, (long)(1e9 * (seconds - whole))}, NULL);
}

size_t free_memory(void)
{
    size_t left, all;
    NEED_CUDA(cudaMemGetInfo(&left, &all));
    return left;
}

static void CUDART_CB hold(void *released)
{
    while (!atomic_load((atomic_int *)released))
        rest(0.001);
}

void hold_stream(cudaStream_t stream, atomic_int *released)
{
    NEED_CUDA(cudaLaunchHostFunc(stream, hold, released));
}

/* ---- Tensors of a problem ---- */

int heads_of(const struct problem *p, int n)
{
    return kinds[n].kv ? p->heads_kv : p->heads;
}

int channels_of(const struct problem *p, int n)
{
    return kinds[n].sums ? 1 : kinds[n].value ? p->dim_v : p->dim;
}

hra_type type_of(const struct problem *p, int n)
{
    return kinds[n].sums ? hra_type_sums(p->type) : p->type;
}

int64_t count_of(const struct problem *p, int n, int64_t rows)
{
    return p->batch * rows * heads_of(p, n) * channels_of(p, n);
}

struct problem problem_of(int64_t tokens, const char *order, const char *mask, hra_type type)
{
    struct problem p = PROBLEM_DEFAULT;

    p.tokens = tokens;
    p.order = (char *)(uintptr_t)order;
    p.mask = (char *)(uintptr_t)mask;
    p.type = type;
    p.batch = 2;
    p.heads_kv = 2;
    p.dim_v = p.dim;
    p.scale = 0.125;
    p.backend = HRA_BACKEND_CUDA;
    p.dlse = 1;
    return p;
}

/* ---- Layers ---- */

size_t bytes_of(const struct layer *l, int n)
{
    return (size_t)count_of(&l->problem, n, l->rows) * hra_type_bytes(type_of(&l->problem, n));
}

/* HRA_TEST_BACKEND=sm90 in the environment: what has 16 bits is for that backend, made to fit it, and leaves as many
 * multiprocessors as HRA_TEST_MARGIN says. */
static void choose_backend(struct problem *p)
{
    const char *wanted = getenv("HRA_TEST_BACKEND");

    if (wanted == NULL || strcmp(wanted, "sm90") != 0 || p->type == HRA_F32)
        return;
    p->backend = HRA_BACKEND_SM90;
    p->saved = HRA_SAVED_NOTHING;
    p->dim_v = p->dim;
    if (getenv("HRA_TEST_MARGIN") != NULL)
        p->margin = atoi(getenv("HRA_TEST_MARGIN"));
}

void layer_open(struct layer *l, const struct problem *problem, hra_comm *comm)
{
    struct problem *const p = &l->problem;

    *l = (struct layer){.problem = *problem, .comm = comm, .info = {.size = sizeof(l->info)}};
    choose_backend(p);
    NEED_HRA(setup_create(&l->setup, p));
    NEED_HRA(
        hra_plan_create(&l->plan, comm, &l->setup.problem, l->setup.order, l->setup.mask, &l->setup.options));
    NEED_HRA(hra_plan_get_info(l->plan, &l->info));
    l->rows = hra_plan_rows(l->plan, hra_comm_rank(comm));
    for (int n = 0; n < TENSORS; n++) {
        const int64_t heads = heads_of(p, n), channels = channels_of(p, n);
        l->t[n] =
            (hra_tensor){take_there(bytes_of(l, n)), l->rows * heads * channels, heads * channels, channels};
    }
    l->workspace = take_there(l->info.workspace_bytes);
    l->saved = l->info.saved_bytes > 0 ? take_there(l->info.saved_bytes) : NULL;
}

void layer_close(struct layer *l)
{
    for (int n = 0; n < TENSORS; n++)
        device_free(l->t[n].data);
    device_free(l->workspace);
    device_free(l->saved);
    hra_plan_destroy(l->plan);
    setup_destroy(&l->setup);
}

hra_status layer_forward(struct layer *l, void *stream)
{
    const hra_tensor *t = l->t;
    return hra_forward(l->plan, &t[Q], &t[K], &t[V], &t[O], t[LSE].data, l->workspace, l->saved, stream);
}

hra_status layer_backward(struct layer *l, void *stream)
{
    const hra_tensor *t = l->t;
    return hra_backward(l->plan, &t[Q], &t[K], &t[V], &t[O], t[LSE].data, &t[DO], t[DLSE].data, &t[DQ],
                        &t[DK], &t[DV], l->workspace, l->saved, stream);
}

/* Numbers of input n for our rows. The caller's. */
static void *draw(const struct layer *l, int n, int set)
{
    const struct problem *p = &l->problem;
    const int64_t count = count_of(p, n, l->rows);
    const uint64_t series =
        random_bits((uint64_t)set, (uint64_t)(hra_comm_rank(l->comm) * TENSORS + n)); /* a rank's own */
    double *x = take(count, sizeof(*x));
    void *rounded = take(count, hra_type_bytes(type_of(p, n)));

    for (int64_t i = 0; i < count; i++)
        x[i] = random_normal(series, (uint64_t)i);
    NEED_HRA(hra_convert(rounded, type_of(p, n), x, HRA_F64, count));
    free(x);
    return rounded;
}

void layer_set_inputs(struct layer *l, int set)
{
    for (int n = 0; n < INPUTS; n++) {
        void *numbers = draw(l, n, set);
        NEED_DEVICE(device_write(l->t[n].data, numbers, bytes_of(l, n)));
        free(numbers);
    }
}

unsigned char *layer_outputs(const struct layer *l, size_t *bytes)
{
    *bytes = 0;
    for (int n = INPUTS; n < TENSORS; n++)
        *bytes += bytes_of(l, n);
    unsigned char *all = take((int64_t)*bytes, 1), *next = all;
    for (int n = INPUTS; n < TENSORS; next += bytes_of(l, n++))
        NEED_DEVICE(device_read(next, l->t[n].data, bytes_of(l, n)));
    return all;
}

void layer_forget_outputs(struct layer *l)
{
    for (int n = INPUTS; n < TENSORS; n++)
        NEED_DEVICE(device_fill(l->t[n].data, 0xff, bytes_of(l, n)));
}

void layer_wait(struct layer *l, void *stream)
{
    NEED_HRA(hra_comm_wait(l->comm, stream));
    NEED_DEVICE(device_wait());
}

void layer_expect(const struct layer *l, const unsigned char *wanted, const char *what, int number)
{
    size_t bytes;
    unsigned char *got = layer_outputs(l, &bytes), *next = got;

    for (int n = INPUTS; n < TENSORS; next += bytes_of(l, n++))
        CHECK(memcmp(next, wanted + (next - got), bytes_of(l, n)) == 0, "%s %d: other bits in %s", what,
              number, kinds[n].name);
    free(got);
}

unsigned char *layer_step(struct layer *l, int set, void *stream, size_t *bytes)
{
    layer_set_inputs(l, set);
    NEED_HRA(layer_forward(l, stream));
    NEED_HRA(layer_backward(l, stream));
    layer_wait(l, stream);
    return layer_outputs(l, bytes);
}

/* Threads of the library get time to do what a capture in this mode forbids to all threads. */
cudaGraphExec_t layer_record(struct layer *l, cudaStream_t stream)
{
    cudaGraph_t graph;
    cudaGraphExec_t out;

    NEED_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    NEED_HRA(layer_forward(l, stream));
    NEED_HRA(layer_backward(l, stream));
    rest(0.05);
    NEED_CUDA(cudaStreamEndCapture(stream, &graph));
    NEED_CUDA(cudaGraphInstantiate(&out, graph, 0));
    NEED_CUDA(cudaGraphDestroy(graph));
    return out;
}

/* Recording computes nothing. */
static cudaGraphExec_t record_only(struct layer *l, cudaStream_t stream)
{
    size_t bytes;

    layer_forget_outputs(l);
    cudaGraphExec_t graph = layer_record(l, stream);
    NEED_DEVICE(device_wait());
    unsigned char *nothing = layer_outputs(l, &bytes);
    for (size_t i = 0; i < bytes; i++)
        if (nothing[i] != 0xff) {
            CHECK(0, "recording a graph computed something");
            break;
        }
    free(nothing);
    return graph;
}

/* Of four turns one is eager calls, and one three replays that nobody waits between. */
void layer_replay(hra_comm *comm, const struct problem *p, int replays)
{
    enum { SETS = 3 };
    cudaStream_t stream = device_stream();
    unsigned char *wanted[SETS];
    struct layer l;
    size_t bytes;

    layer_open(&l, p, comm);
    CHECK(l.info.blocking == 0, "the plan is blocking");
    for (int set = 0; set < SETS; set++)
        wanted[set] = layer_step(&l, set, stream, &bytes);
    cudaGraphExec_t graph = record_only(&l, stream);
    for (int turn = 0, replayed = 0; replayed < replays; turn++) {
        layer_set_inputs(&l, turn % SETS);
        layer_forget_outputs(&l);
        if (turn % 4 == 2) {
            NEED_HRA(layer_forward(&l, stream));
            NEED_HRA(layer_backward(&l, stream));
        }
        for (int i = 0; turn % 4 != 2 && i < (turn % 4 == 3 ? 3 : 1); i++, replayed++)
            NEED_CUDA(cudaGraphLaunch(graph, stream));
        layer_wait(&l, stream);
        layer_expect(&l, wanted[turn % SETS], turn % 4 == 2 ? "call" : "replay", turn);
    }
    NEED_CUDA(cudaGraphExecDestroy(graph));
    for (int set = 0; set < SETS; set++)
        free(wanted[set]);
    layer_close(&l);
}

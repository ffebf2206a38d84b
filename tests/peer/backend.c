/* backend.c - the CPU's kernels under the name of the backend for GPUs: calls only enqueue, on the streams of device.c. So
 * tools that ask for `--backend cuda --transport peer` go the way of several GPUs on a machine without one, but for kernels. */
#include "kernels/cpu/cpu.h"
#include "tests/peer/device.h"

#include <stdlib.h>
#include <string.h>

/* A call that has been put off, with copies of what it was given that need not last. */
struct call {
    void (*run)(const struct call *call);
    void *state, *stream;
    union {
        struct hra_forward_args forward;
        struct hra_backward_args backward;
        struct {
            hra_tensor o, do_;
            const void *dlse;
            void *workspace;
        } delta;
        struct {
            hra_type to, from;
            int count;
        } combine;
        struct {
            void *data;
            size_t bytes;
        } clear;
        struct {
            hra_direction direction;
            hra_type type;
            hra_tensor whole, rows;
            const int64_t *token;
            int64_t count;
            int heads, dim;
        } reorder;
    };
    struct hra_chunk *chunk; /* behind the struct, as are the rows */
    struct hra_rows *rows;
};

static void run_call(void *argument)
{
    struct call *c = argument;

    c->chunk = (struct hra_chunk *)(c + 1);
    c->rows = (struct hra_rows *)(c + 1);
    c->run(c);
}

/* Put the call on its stream, with `bytes` of `data`, chunks or rows, behind it. */
static hra_status put_off(const struct call *call, const void *data, size_t bytes)
{
    struct call *c = malloc(sizeof(*c) + bytes);
    int failed = c == NULL;

    if (!failed) {
        *c = *call;
        if (bytes > 0)
            memcpy(c + 1, data, bytes);
        failed = peer_enqueue(call->stream, run_call, c, sizeof(*c) + bytes) != 0;
    }
    free(c);
    return failed ? HRA_FAIL(HRA_ERR_MEMORY, "no memory for a call") : HRA_OK;
}

/* Of a function that cannot fail but for want of memory. */
static void must(hra_status status)
{
    if (status != HRA_OK)
        abort();
}

/* What forward keeps for backward where a plan wants that: that it was there, since backward here takes K and V from where they
 * are. */
static const uint64_t kept = UINT64_C(0x6b65707420717631);

static size_t saved_bytes(const struct hra_kernel_plan *plan)
{
    (void)plan;
    return sizeof(kept);
}

/* The run of a call that was put off: nobody moves messages on meanwhile. */
static void resume(struct hra_run_args *run, const struct call *c)
{
    run->chunk = c->chunk;
    run->poll = (struct hra_poll){NULL, NULL};
}

static hra_status put_off_run(const struct call *call, const struct hra_run_args *run)
{
    return put_off(call, run->chunk, (size_t)run->chunks * sizeof(*run->chunk));
}

static void run_forward(const struct call *c)
{
    struct hra_forward_args args = c->forward;

    if (args.run.saved != NULL)
        memcpy(args.run.saved, &kept, sizeof(kept));
    resume(&args.run, c);
    must(hra_backend_cpu.forward(c->state, &args));
}

static hra_status forward(void *state, const struct hra_forward_args *args)
{
    const struct call call = {run_forward, state, args->run.stream, .forward = *args};
    return put_off_run(&call, &args->run);
}

static void run_backward(const struct call *c)
{
    struct hra_backward_args args = c->backward;

    if (args.run.saved != NULL && memcmp(args.run.saved, &kept, sizeof(kept)) != 0)
        abort();
    resume(&args.run, c);
    must(hra_backend_cpu.backward(c->state, &args));
}

static hra_status backward(void *state, const struct hra_backward_args *args)
{
    const struct call call = {run_backward, state, args->run.stream, .backward = *args};
    return put_off_run(&call, &args->run);
}

static void run_delta(const struct call *c)
{
    must(
        hra_backend_cpu.delta(c->state, &c->delta.o, &c->delta.do_, c->delta.dlse, c->delta.workspace, NULL));
}

static hra_status delta(void *state, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                        void *workspace, void *stream)
{
    const struct call call = {run_delta, state, stream, .delta = {*o, *do_, dlse, workspace}};
    return put_off(&call, NULL, 0);
}

static void run_combine(const struct call *c)
{
    must(hra_backend_cpu.combine(c->state, c->rows, c->combine.count, c->combine.to, c->combine.from, NULL));
}

static hra_status combine(void *state, const struct hra_rows *rows, int count, hra_type to, hra_type from,
                          void *stream)
{
    const struct call call = {run_combine, state, stream, .combine = {to, from, count}};
    return put_off(&call, rows, (size_t)count * sizeof(*rows));
}

static void run_clear(const struct call *c)
{
    must(hra_backend_cpu.clear(c->state, c->clear.data, c->clear.bytes, NULL));
}

static hra_status clear(void *state, void *data, size_t bytes, void *stream)
{
    const struct call call = {run_clear, state, stream, .clear = {data, bytes}};
    return put_off(&call, NULL, 0);
}

static void run_reorder(const struct call *c)
{
    must(hra_backend_cpu.reorder(c->state, c->reorder.direction, c->reorder.type, &c->reorder.whole,
                                 &c->reorder.rows, c->reorder.token, c->reorder.count, c->reorder.heads,
                                 c->reorder.dim, NULL));
}

static hra_status reorder(void *state, hra_direction direction, hra_type type, const hra_tensor *whole,
                          const hra_tensor *rows, const int64_t *token, int64_t count, int heads, int dim,
                          void *stream)
{
    const struct call call = {run_reorder, state, stream,
                              .reorder = {direction, type, *whole, *rows, token, count, heads, dim}};
    return put_off(&call, NULL, 0);
}

/* The CPU's own are not known where this table is made. */
static hra_status open(void **out, struct hra_kernel_plan *plan)
{
    return hra_backend_cpu.open(out, plan);
}

static void close(void *state)
{
    hra_backend_cpu.close(state);
}

static size_t workspace_bytes(const struct hra_kernel_plan *plan, hra_pass pass)
{
    return hra_backend_cpu.workspace_bytes(plan, pass);
}

static hra_status suits_nothing(const struct hra_kernel_plan *plan)
{
    (void)plan;
    return HRA_FAIL(HRA_ERR_UNSUPPORTED, "there is no GPU");
}

const struct hra_backend hra_backend_cuda = {
    .name = "cuda",
    .method = "cpu",
    .alignment = 64,
    .tensor_alignment = 1,
    .layout = {&hra_cpu_bits, &hra_cpu_bits},
    .open = open,
    .close = close,
    .workspace_bytes = workspace_bytes,
    .saved_bytes = saved_bytes,
    .forward = forward,
    .backward = backward,
    .delta = delta,
    .combine = combine,
    .clear = clear,
    .reorder = reorder,
};
const struct hra_backend hra_backend_sm90 = {.name = "sm90", .method = "none", .suits = suits_nothing};
const struct hra_backend hra_backend_sm90_cublas = {.name = "sm90", .method = "none", .suits = suits_nothing};

/* cpu.c - the CPU backend: its table. The kernels are in attend_body.h. */
#include "kernels/cpu/cpu.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const struct hra_bit_layout hra_cpu_bits = {.name = "rows", .bytes = sizeof(hra_bits)};

size_t hra_cpu_workspace(const struct hra_kernel_plan *p, hra_pass pass)
{
    const size_t rows = (size_t)p->batch * (size_t)p->heads * (size_t)p->rows;
    const size_t numbers = pass == HRA_FORWARD ? rows * ((size_t)p->dim_v + 2) : rows * ((size_t)p->dim + 1);
    return numbers * hra_type_bytes(hra_type_sums(p->type));
}

static void cpu_close(void *state)
{
    struct hra_cpu *cpu = state;

    if (cpu == NULL)
        return;
    hra_pool_destroy(cpu->pool);
    free(cpu->scratch);
    free(cpu);
}

/* How many threads of ours may multiply at once. OpenBLAS's serial build hands one buffer to two callers that come
 * within nanoseconds of each other (46 of 40,000 products of 128 x 128 x 64 were wrong with version 0.3.21), so over it
 * we are one thread. Results do not depend on their number. */
static int usable_threads(int wanted)
{
    if (wanted == 1 || openblas_get_parallel() != OPENBLAS_SEQUENTIAL)
        return wanted;
    hra_log(HRA_LOG_WARN,
            "this OpenBLAS is the serial build, which several threads must not call at once: computing "
            "with 1 thread instead of %d",
            wanted);
    return 1;
}

static hra_status cpu_open(void **out, struct hra_kernel_plan *plan)
{
    struct hra_cpu *cpu = NULL;

    plan->threads = usable_threads(plan->threads);
    HRA_TRY(hra_alloc((void **)&cpu, 1, sizeof(*cpu), "cpu backend"));
    cpu->plan = plan;
    hra_status status = hra_alloc(&cpu->scratch, (int64_t)plan->threads * HRA_CPU_SCRATCH,
                                  hra_type_bytes(hra_type_sums(plan->type)), "cpu backend");
    if (status == HRA_OK)
        status = hra_pool_create(&cpu->pool, plan->threads);
    if (status != HRA_OK) {
        cpu_close(cpu);
        return status;
    }
    *out = cpu;
    return HRA_OK;
}

/* Kernels read bits in one layout only: another would be read as nonsense. */
static hra_status check_layout(const struct hra_cpu *cpu, hra_pass pass)
{
    const struct hra_bit_layout *layout = cpu->plan->layout[pass];

    if (layout != &hra_cpu_bits)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "cpu: bitmaps are packed as '%s'; its kernels read '%s'",
                        layout == NULL ? "nothing" : layout->name, hra_cpu_bits.name);
    return HRA_OK;
}

/* Threads are ours, each product is one thread's: threads of OpenBLAS under ours would take cores from each other,
 * and how it cuts a product changes bits. Their number belongs to the process, so the host gets it back. */
static int take_blas(void)
{
    const int threads = openblas_get_num_threads();
    if (threads != 1)
        openblas_set_num_threads(1);
    return threads;
}

static void give_blas_back(int threads)
{
    if (threads != 1)
        openblas_set_num_threads(threads);
}

static hra_status cpu_forward(void *state, const struct hra_forward_args *args)
{
    struct hra_cpu *cpu = state;

    HRA_TRY(check_layout(cpu, HRA_FORWARD));
    const int blas_threads = take_blas();
    (cpu->plan->type == HRA_F64 ? hra_cpu_forward_f64 : hra_cpu_forward_f32)(cpu, args);
    give_blas_back(blas_threads);
    return HRA_OK;
}

static hra_status cpu_backward(void *state, const struct hra_backward_args *args)
{
    struct hra_cpu *cpu = state;

    HRA_TRY(check_layout(cpu, HRA_BACKWARD));
    const int blas_threads = take_blas();
    (cpu->plan->type == HRA_F64 ? hra_cpu_backward_f64 : hra_cpu_backward_f32)(cpu, args);
    give_blas_back(blas_threads);
    return HRA_OK;
}

static hra_status cpu_delta(void *state, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                            void *workspace, void *stream)
{
    struct hra_cpu *cpu = state;

    (void)stream;
    const int blas_threads = take_blas();
    (cpu->plan->type == HRA_F64 ? hra_cpu_delta_f64 : hra_cpu_delta_f32)(cpu, o, do_, dlse, workspace);
    give_blas_back(blas_threads);
    return HRA_OK;
}

static hra_status copy_rows(struct hra_cpu *cpu, const struct hra_rows *x, const hra_tensor *from,
                            hra_type to_type, hra_type from_type)
{
    const size_t bytes = hra_type_bytes(from_type);

    if (x->factor == 1 && to_type == from_type) {
        for (int b = 0; b < cpu->plan->batch; b++)
            for (int h = 0; h < x->heads; h++)
                for (int64_t r = 0; r < x->rows; r++)
                    memcpy(hra_cpu_at(&x->to, to_type, b, r, h), hra_cpu_at(from, from_type, b, r, h),
                           (size_t)x->dim * bytes);
        return HRA_OK;
    }
    if (from_type != hra_type_sums(to_type))
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "cpu: no copy from %s to %s", hra_type_name(from_type),
                        hra_type_name(to_type));
    (from_type == HRA_F64 ? hra_cpu_scale_f64 : hra_cpu_scale_f32)(cpu, &x->to, to_type, from, x->rows,
                                                                   x->heads, x->dim, x->factor);
    return HRA_OK;
}

static hra_status cpu_combine(void *state, const struct hra_rows *rows, int count, hra_type to_type,
                              hra_type from_type, void *stream)
{
    struct hra_cpu *cpu = state;

    (void)stream;
    for (int i = 0; i < count; i++) {
        const struct hra_rows *x = &rows[i];
        const int adds = x->sums.data != NULL;
        if (adds)
            (from_type == HRA_F64 ? hra_cpu_add_f64 : hra_cpu_add_f32)(cpu, &x->sums, &x->from, x->rows,
                                                                       x->heads, x->dim);
        if (x->to.data != x->sums.data)
            HRA_TRY(copy_rows(cpu, x, adds ? &x->sums : &x->from, to_type, from_type));
    }
    return HRA_OK;
}

static hra_status cpu_clear(void *state, void *data, size_t bytes, void *stream)
{
    (void)state;
    (void)stream;
    memset(data, 0, bytes);
    return HRA_OK;
}

static hra_status cpu_reorder(void *state, hra_direction direction, hra_type type, const hra_tensor *whole,
                              const hra_tensor *rows, const int64_t *token, int64_t count, int heads, int dim,
                              void *stream)
{
    struct hra_cpu *cpu = state;
    const size_t bytes = hra_type_bytes(type);

    (void)stream;
    for (int b = 0; b < cpu->plan->batch; b++)
        for (int64_t r = 0; r < count; r++)
            for (int h = 0; h < heads; h++) {
                char *there = hra_cpu_at(whole, type, b, token[r], h),
                     *here = hra_cpu_at(rows, type, b, r, h);
                memcpy(direction == HRA_GATHER ? here : there, direction == HRA_GATHER ? there : here,
                       (size_t)dim * bytes);
            }
    return HRA_OK;
}

static hra_status cpu_make_marks(void **out, int count)
{
    return hra_alloc(out, count, sizeof(struct timespec), "marks");
}

static void cpu_drop_marks(void *marks, int count)
{
    (void)count;
    free(marks);
}

static hra_status cpu_set_mark(void *marks, int n, void *stream)
{
    struct timespec *mark = marks;

    (void)stream;
    clock_gettime(CLOCK_MONOTONIC, &mark[n]);
    return HRA_OK;
}

static hra_status cpu_read_marks(const void *marks, int count, double *out_s)
{
    const struct timespec *mark = marks;

    for (int i = 0; i < count; i++)
        out_s[i] =
            (double)(mark[i].tv_sec - mark[0].tv_sec) + 1e-9 * (double)(mark[i].tv_nsec - mark[0].tv_nsec);
    return HRA_OK;
}

const struct hra_backend hra_backend_cpu = {
    .name = "cpu",
    .method = "cpu",
    .blocking = 1,
    .alignment = 64,
    .tensor_alignment = 1,
    .layout = {&hra_cpu_bits, &hra_cpu_bits},
    .open = cpu_open,
    .close = cpu_close,
    .workspace_bytes = hra_cpu_workspace,
    .make_marks = cpu_make_marks,
    .drop_marks = cpu_drop_marks,
    .set_mark = cpu_set_mark,
    .read_marks = cpu_read_marks,
    .forward = cpu_forward,
    .backward = cpu_backward,
    .delta = cpu_delta,
    .combine = cpu_combine,
    .clear = cpu_clear,
    .reorder = cpu_reorder,
};

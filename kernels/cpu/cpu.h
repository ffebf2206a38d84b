/* cpu.h - the CPU backend from inside. */
#ifndef HRA_KERNELS_CPU_CPU_H
#define HRA_KERNELS_CPU_CPU_H

#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"

/* Elements of scratch that one thread needs: two tiles of products, and tiles of q, k, v and do. */
#define HRA_CPU_SCRATCH (2 * HRA_TILE * HRA_TILE + 4 * HRA_TILE * 256 + HRA_TILE)

struct hra_cpu {
    const struct hra_kernel_plan *plan;
    struct hra_pool *pool;
    void *scratch; /* [threads][HRA_CPU_SCRATCH] sums type */
};

extern const struct hra_bit_layout hra_cpu_bits;

/* The channels of one (batch, row, head). */
static inline char *hra_cpu_at(const hra_tensor *t, hra_type type, int64_t b, int64_t row, int64_t h)
{
    return (char *)t->data +
           (b * t->stride_batch + row * t->stride_row + h * t->stride_head) * (int64_t)hra_type_bytes(type);
}

/* Bytes of one pass: forward running O [batch][heads][rows][dim_v], max and sum [batch][heads][rows]; backward
 * running dQ [batch][heads][rows][dim], delta [batch][heads][rows]. Sums type. */
size_t hra_cpu_workspace(const struct hra_kernel_plan *plan, hra_pass pass);

/* The table's functions in either arithmetic: f32 for f32, bf16 and f16 tensors, f64 for f64. Types have been
 * checked. */
#define HRA_CPU_DECLARE(real)                                                                                \
    void hra_cpu_forward_##real(struct hra_cpu *cpu, const struct hra_forward_args *args);                   \
    void hra_cpu_backward_##real(struct hra_cpu *cpu, const struct hra_backward_args *args);                 \
    void hra_cpu_delta_##real(struct hra_cpu *cpu, const hra_tensor *o, const hra_tensor *do_,               \
                              const void *dlse, void *workspace);                                            \
    void hra_cpu_add_##real(struct hra_cpu *cpu, const hra_tensor *to, const hra_tensor *from, int64_t rows, \
                            int heads, int dim);                                                             \
    void hra_cpu_scale_##real(struct hra_cpu *cpu, const hra_tensor *to, hra_type to_type,                   \
                              const hra_tensor *from, int64_t rows, int heads, int dim, double factor)
HRA_CPU_DECLARE(f32);
HRA_CPU_DECLARE(f64);

#endif

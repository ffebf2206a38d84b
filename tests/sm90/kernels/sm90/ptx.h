/* ptx.h - what kernels/sm90/ptx.h is for the host: the words of CUDA C, and each function that is an
 * instruction as a call of the emulator. What the real header computes in C is taken from there. */
#ifndef HRA_TESTS_SM90_PTX_H
#define HRA_TESTS_SM90_PTX_H

#include "tests/sm90/emulator.h"

#include <cmath>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <type_traits>

#undef __device__
#undef __global__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (dim3((unsigned)emulated::self().index))
#define blockIdx (dim3((unsigned)emulated::self().home->index))
#define blockDim (dim3((unsigned)emulated::chip.threads))
#define gridDim (dim3((unsigned)emulated::chip.blocks))

namespace
{

size_t __cvta_generic_to_shared(const void *pointer)
{
    return (size_t)((const char *)pointer - emulated::self().home->memory.get());
}

/* Its functions that are instructions are never called, so no code is made of them. */
namespace real
{
#include_next "kernels/sm90/ptx.h"
}
using real::fragment_piece;
using real::matrix_by_columns;
using real::matrix_by_rows;
using real::shared_address;
#undef HRA_DYNAMIC_SHARED
#define HRA_DYNAMIC_SHARED(memory) char *const memory = emulated::self().home->dynamic

/* ---- Of CUDA C ---- */

inline int thread_again()
{
    return emulated::self().index;
}

inline void __syncthreads()
{
    emulated::numbered_barrier(0, emulated::chip.threads, true);
}

/* Lanes of a warp wait for each other where they exchange something. */
inline void __syncwarp()
{
    emulated::exchange(0);
}

inline int max(int x, int y)
{
    return x > y ? x : y;
}

inline int __float_as_int(float x)
{
    return (int)hra_bits_of(x);
}

inline float __int_as_float(int x)
{
    return hra_float_of((uint32_t)x);
}

inline int __shfl_xor_sync(unsigned, int x, int by)
{
    return (int)emulated::exchange((uint32_t)x)[(emulated::self().index % emulated::WARP) ^ by];
}

inline bool __any_sync(unsigned, bool x)
{
    const uint32_t *const all = emulated::exchange(x);
    bool any = false;
    for (int lane = 0; lane < emulated::WARP; lane++)
        any = any || all[lane];
    return any;
}

inline uint32_t __shfl_sync(unsigned, uint32_t x, int lane)
{
    return emulated::exchange(x)[lane];
}

inline uint32_t __shfl_xor_sync(unsigned, uint32_t x, int by)
{
    return emulated::exchange(x)[(emulated::self().index % emulated::WARP) ^ by];
}

inline float __shfl_xor_sync(unsigned all, float x, int by)
{
    return hra_float_of(__shfl_xor_sync(all, hra_bits_of(x), by));
}

inline int atomicAdd(int *to, int x)
{
    const int before = *to;
    *to += x;
    return before;
}

inline float __uint_as_float(uint32_t x)
{
    return hra_float_of(x);
}

inline float __fmul_rn(float x, float y)
{
    return x * y;
}

/* ---- Barriers ---- */

inline void barrier_init(uint32_t barrier, int arrivals)
{
    emulated::mbarrier_init(barrier, arrivals);
}

inline void barrier_publish()
{
}

inline void barrier_arrive(uint32_t barrier)
{
    emulated::mbarrier_arrive(barrier, 0);
}

inline void barrier_arrive_after(uint32_t barrier, uint32_t, uint32_t)
{
    barrier_arrive(barrier);
}

inline void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    emulated::mbarrier_arrive(barrier, bytes);
}

inline void barrier_wait(uint32_t barrier, uint32_t parity)
{
    emulated::mbarrier_wait(barrier, parity);
}

inline void barrier_wait_after(uint32_t barrier, uint32_t parity, float)
{
    emulated::mbarrier_wait(barrier, parity);
}

inline void numbered_sync(int number, int threads)
{
    emulated::numbered_barrier(number, threads, true);
}

inline void numbered_arrive(int number, int threads)
{
    emulated::numbered_barrier(number, threads, false);
}

/* ---- Copies of tiles ---- */

inline void prefetch_map(const CUtensorMap *)
{
}

inline void load_box(uint32_t to, const CUtensorMap *map, uint32_t barrier, int row, int head, int batch)
{
    emulated::begin_copy(to, map, barrier, {0, row, 0, head, batch});
}

inline void load_box_at(uint32_t to, const CUtensorMap *map, uint32_t barrier, int x0, int x1, int x2, int x3,
                        int x4)
{
    emulated::begin_copy(to, map, barrier, {x0, x1, x2, x3, x4});
}

inline void load_bytes(uint32_t to, const void *from, uint32_t barrier, uint32_t bytes)
{
    emulated::begin_bytes(to, from, barrier, bytes);
}

inline void store_bytes(void *to, uint32_t from, uint32_t bytes)
{
    emulated::begin_store(to, from, bytes, false);
}

inline void add_bytes(void *to, uint32_t from, uint32_t bytes)
{
    emulated::begin_store(to, from, bytes, true);
}

inline void stores_wait_read()
{
    emulated::wait_stores(false);
}

inline void stores_wait()
{
    emulated::wait_stores(true);
}

inline void publish_shared()
{
    emulated::finish_loads();
}

inline void publish_global()
{
}

/* ---- From block to block ---- */

inline uint32_t load_acquire(const uint32_t *from)
{
    emulated::yield();
    return *from;
}

inline void add_release(uint32_t *to, uint32_t x)
{
    *to += x;
    emulated::chip.progress++;
}

/* ---- Registers and products of a warpgroup ---- */

inline void load_fragment(uint32_t *x, uint32_t from)
{
    emulated::load_matrices(x, from);
}

inline void store_matrices(uint32_t to, const uint32_t *x)
{
    emulated::store_matrices(to, x);
}

template <int COUNT> void take_registers()
{
}

template <int COUNT> void give_registers()
{
}

/* The compiler is to know that others read and write these. */
template <typename X, int COUNT> void pin(X (&x)[COUNT])
{
    asm volatile("" ::"r"(&x) : "memory");
}

inline void products_begin()
{
}

inline void products_commit()
{
    emulated::commit();
}

template <int PENDING> void products_wait()
{
    emulated::wait_products(PENDING);
}

template <typename T, int ADD> void multiply_shared(float (&c)[64], uint64_t a, uint64_t b)
{
    emulated::issue(c, 128, nullptr, a, b, ADD, std::is_same_v<T, __half>);
}

template <typename T, int ADD, int BY_ROWS = 0> void multiply_shared(float (&c)[32], uint64_t a, uint64_t b)
{
    emulated::issue(c, 64, nullptr, a, b, ADD, std::is_same_v<T, __half>, BY_ROWS, BY_ROWS);
}

template <typename T, int ADD> void multiply_transposed(float (&c)[64], const uint32_t *a, uint64_t b)
{
    emulated::issue(c, 128, a, 0, b, ADD, std::is_same_v<T, __half>);
}

template <typename T, int COUNT> void multiply_registers(float (&c)[COUNT], const uint32_t *a, uint64_t b)
{
    emulated::issue(c, 2 * COUNT, a, 0, b, 1, std::is_same_v<T, __half>, false, true);
}

/* ---- Numbers ---- */

inline float exp2_fast(float x)
{
    return exp2f(x);
}

template <typename T> uint32_t pack_pair(float first, float second)
{
    if constexpr (std::is_same_v<T, __half>)
        return hra_to_f16(first) | (uint32_t)hra_to_f16(second) << 16;
    else
        return hra_to_bf16(first) | (uint32_t)hra_to_bf16(second) << 16;
}

} // namespace

#endif

/* ptx.h - the instructions of sm_90a that CUDA C has no names for, one small function each.
 *
 * Addresses of shared memory are 32-bit (`shared_address`). Barriers are mbarriers: 8 bytes of shared memory
 * whose phase flips when the expected arrivals, and the expected bytes of copies, have come. A wait names the
 * parity of the phase whose end it waits for. */
#ifndef HRA_KERNELS_SM90_PTX_H
#define HRA_KERNELS_SM90_PTX_H

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <type_traits>

namespace
{

__device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* threadIdx.x, read anew: what is computed from it does not stay in registers in between. */
__device__ __forceinline__ int thread_again()
{
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

/* Declares char memory[], the shared memory that the launch asked for. */
#define HRA_DYNAMIC_SHARED(memory) extern __shared__ char memory[]

/* ---- Barriers ---- */

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* Makes barriers that were just initialised known to the unit that copies tiles. */
__device__ __forceinline__ void barrier_publish()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrive when x, which was loaded from shared memory, has come, and with it what the warp loaded there before,
 * whose place is to be copied to next. An arrival alone does not wait for loads. zero is 0, which ptxas must
 * not know. */
__device__ __forceinline__ void barrier_arrive_after(uint32_t barrier, uint32_t x, uint32_t zero)
{
    barrier_arrive(barrier + (x & zero));
}

/* Arrive, and expect so many bytes of copies in this phase. */
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* The loop stands in the assembly, so that it separates what is before from what is behind for ptxas too,
 * which moves arithmetic over anything that does not branch. */
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again_%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra go_%=;\n"
                 "bra again_%=;\n"
                 "go_%=:\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* The same, but x is known before the wait begins: without that ptxas looks at the barrier first and leaves
 * the arithmetic for later. The parity would be another if x had bits that no sum has, those of a tiny
 * negative number. */
__device__ __forceinline__ void barrier_wait_after(uint32_t barrier, uint32_t parity, float x)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 ".reg .b32 which;\n"
                 "mov.b32 which, %2;\n"
                 "setp.eq.b32 done, which, 0x80000001;\n"
                 "selp.b32 which, 1, 0, done;\n"
                 "xor.b32 which, which, %1;\n"
                 "again_%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], which;\n"
                 "@done bra go_%=;\n"
                 "bra again_%=;\n"
                 "go_%=:\n"
                 "}" ::"r"(barrier),
                 "r"(parity), "f"(x)
                 : "memory");
}

/* The 16 numbered barriers of a block: `threads` threads in all arrive, those that sync wait for it. */
__device__ __forceinline__ void numbered_sync(int number, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ void numbered_arrive(int number, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/* ---- Copies of tiles ---- */

__device__ __forceinline__ void prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Begin to copy the box of a tensor of five dimensions that begins at (0, row, 0, head, batch). */
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap *map, uint32_t barrier, int row,
                                         int head, int batch)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %3, %5, %6}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(0), "r"(row), "r"(head), "r"(batch)
                 : "memory");
}

/* The same of one that begins at any place, its fastest coordinate first. */
__device__ __forceinline__ void load_box_at(uint32_t to, const CUtensorMap *map, uint32_t barrier, int x0,
                                            int x1, int x2, int x3, int x4)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                 : "memory");
}

/* Begin to copy `bytes`, a multiple of 16, that lie together. */
__device__ __forceinline__ void load_bytes(uint32_t to, const void *from, uint32_t barrier, uint32_t bytes)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

/* Begin to copy `bytes` of shared memory to `to`, or to add the floats that they are to those there. Ends are
 * waited for by the thread that began. */
__device__ __forceinline__ void store_bytes(void *to, uint32_t from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
                 "cp.async.bulk.commit_group;" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void add_bytes(void *to, uint32_t from, uint32_t bytes)
{
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n"
                 "cp.async.bulk.commit_group;" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
}

/* Until all that this thread began to store or to add has been read from shared memory. */
__device__ __forceinline__ void stores_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/* Until it has been written. */
__device__ __forceinline__ void stores_wait()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* What this thread wrote to shared memory may be read by copies and products, and what it has read there
 * written by copies, after a barrier. */
__device__ __forceinline__ void publish_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* What this thread has seen of global memory is there for copies too. */
__device__ __forceinline__ void publish_global()
{
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

/* ---- From block to block ---- */

__device__ __forceinline__ uint32_t load_acquire(const uint32_t *from)
{
    uint32_t x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return x;
}

/* What this thread did before is seen by those who acquire the sum. */
__device__ __forceinline__ void add_release(uint32_t *to, uint32_t x)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

/* ---- Matrices of 8 x 8 ---- */

/* Store four, of which lane l holds, as pairs x[i], row l / 4, columns 2 (l % 4) and the next; lane 8 i + r
 * names where row r of matrix i goes, 16 bytes. */
__device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t *x)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x[0]),
                 "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}

/* ---- Registers of a warpgroup ---- */

template <int COUNT> __device__ __forceinline__ void take_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> __device__ __forceinline__ void give_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/* Neither reads nor writes of these registers are moved from one side of this to the other. */
template <typename X, int COUNT> __device__ __forceinline__ void pin(X (&x)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if constexpr (std::is_same_v<X, float>)
            asm volatile("" : "+f"(x[i])::"memory");
        else
            asm volatile("" : "+r"(x[i])::"memory");
}

/* ---- Products of a warpgroup ----
 *
 * C [64][n] += A [64][16] B [16][n] runs while the warpgroup goes on. Products that were begun since the last
 * commit are one group; groups end in order. A product's registers belong to it until its group was waited
 * for.
 *
 * Of C thread t of the warpgroup (warp w = t / 32, lane l = t % 32) holds, as c[4 j + 2 r + e], row
 * 16 w + l / 4 + 8 r, column 8 j + 2 (l % 4) + e; of A in registers, as halves e of a[2 k + r], row
 * 16 w + l / 4 + 8 r, column 8 k + 2 (l % 4) + e. So numbers of C, packed in pairs, are an A as they are. */

/* Registers that were written by ordinary instructions may go into products. */
__device__ __forceinline__ void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Wait until at most PENDING groups are under way. */
template <int PENDING> __device__ __forceinline__ void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* Matrices in shared memory lie in chunks of 64 columns, [chunk][row][64] numbers of 2 bytes, every row of
 * 128 bytes with its 16-byte pieces permuted by the row (128-byte swizzle), chunks aligned to 1024 bytes.
 * Their descriptors have lengths in units of 16 bytes, so that one for a part of a matrix is the matrix's
 * plus a number. */
constexpr uint64_t MATRIX_SWIZZLE_128 = UINT64_C(1) << 62;
constexpr uint64_t MATRIX_GROUPS = UINT64_C(1024 / 16) << 32; /* from 8 rows to the next 8 */
constexpr int MATRIX_LEADING = 16;                            /* bit where the leading stride begins */

/* A matrix whose product runs over its columns: A as it lies, B transposed. Columns 16 further are 2 units
 * further. */
__device__ __forceinline__ uint64_t matrix_by_columns(uint32_t address)
{
    return MATRIX_SWIZZLE_128 | MATRIX_GROUPS | UINT64_C(1) << MATRIX_LEADING | address / 16;
}

/* A matrix B whose product runs over its rows, of which chunks have `rows`. Rows 16 further are 128 units
 * further. */
__device__ __forceinline__ uint64_t matrix_by_rows(uint32_t address, int rows)
{
    return MATRIX_SWIZZLE_128 | MATRIX_GROUPS | (uint64_t)(rows * 128 / 16) << MATRIX_LEADING | address / 16;
}

/* Where the piece lies that this lane names when rows `row` to row + 15, columns 16 `step` to 16 step + 15 of a
 * matrix with chunks of `rows` are loaded: lane 8 i + r names row r of the i-th 8 x 8 of them, two above one
 * another first. */
__device__ __forceinline__ uint32_t fragment_piece(uint32_t matrix, int rows, int row, int step, int lane)
{
    const int own = row + lane % 16, piece = step % 4 * 2 + lane / 16;

    return matrix + (step / 4 * rows + own) * 128 + (piece ^ own % 8) * 16;
}

/* What lanes name, as an A in registers. */
__device__ __forceinline__ void load_fragment(uint32_t *x, uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(from)
                 : "memory");
}

#define HRA_C8(c, i)                                                                                         \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),              \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define HRA_C32(c, i) HRA_C8(c, i), HRA_C8(c, i + 8), HRA_C8(c, i + 16), HRA_C8(c, i + 24)
#define HRA_NAMES_32                                                                                         \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"     \
    "%27,%28,%29,%30,%31"
#define HRA_NAMES_64                                                                                         \
    HRA_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
                 "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* C (+)= A B^T, both by columns in shared memory, n = 128; ADD 0: C is overwritten. */
#define HRA_MULTIPLY_SHARED(type)                                                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" HRA_NAMES_64 "}, "        \
                 "%64, %65, %66, 1, 1, 0, 0;"                                                                \
                 : HRA_C32(c, 0), HRA_C32(c, 32)                                                             \
                 : "l"(a), "l"(b), "n"(ADD))

template <typename T, int ADD>
__device__ __forceinline__ void multiply_shared(float (&c)[64], uint64_t a, uint64_t b)
{
    if constexpr (std::is_same_v<T, __half>)
        HRA_MULTIPLY_SHARED("f16");
    else
        HRA_MULTIPLY_SHARED("bf16");
}

/* C (+)= A B^T, A in registers, B by columns in shared memory, n = 128; ADD 0: C is overwritten. */
#define HRA_MULTIPLY_TRANSPOSED(type)                                                                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" HRA_NAMES_64 "}, "        \
                 "{%64, %65, %66, %67}, %68, %69, 1, 1, 0;"                                                  \
                 : HRA_C32(c, 0), HRA_C32(c, 32)                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADD))

template <typename T, int ADD>
__device__ __forceinline__ void multiply_transposed(float (&c)[64], const uint32_t *a, uint64_t b)
{
    if constexpr (std::is_same_v<T, __half>)
        HRA_MULTIPLY_TRANSPOSED("f16");
    else
        HRA_MULTIPLY_TRANSPOSED("bf16");
}

#undef HRA_MULTIPLY_TRANSPOSED

/* C += A B, A in registers, B by rows in shared memory; n = 128 or 64. */
#define HRA_MULTIPLY_REGISTERS_128(type)                                                                     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" HRA_NAMES_64 "}, "        \
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                                    \
                 : HRA_C32(c, 0), HRA_C32(c, 32)                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define HRA_MULTIPLY_REGISTERS_64(type)                                                                      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" HRA_NAMES_32 "}, "         \
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                    \
                 : HRA_C32(c, 0)                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <typename T>
__device__ __forceinline__ void multiply_registers(float (&c)[64], const uint32_t *a, uint64_t b)
{
    if constexpr (std::is_same_v<T, __half>)
        HRA_MULTIPLY_REGISTERS_128("f16");
    else
        HRA_MULTIPLY_REGISTERS_128("bf16");
}

template <typename T>
__device__ __forceinline__ void multiply_registers(float (&c)[32], const uint32_t *a, uint64_t b)
{
    if constexpr (std::is_same_v<T, __half>)
        HRA_MULTIPLY_REGISTERS_64("f16");
    else
        HRA_MULTIPLY_REGISTERS_64("bf16");
}

/* The same with n = 64; A and B by columns, or both by rows: C (+)= A^T B. */
#define HRA_MULTIPLY_SHARED_64(type)                                                                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" HRA_NAMES_32 "}, "         \
                 "%32, %33, %34, 1, 1, %35, %35;"                                                            \
                 : HRA_C32(c, 0)                                                                             \
                 : "l"(a), "l"(b), "n"(ADD), "n"(BY_ROWS))

template <typename T, int ADD, int BY_ROWS = 0>
__device__ __forceinline__ void multiply_shared(float (&c)[32], uint64_t a, uint64_t b)
{
    if constexpr (std::is_same_v<T, __half>)
        HRA_MULTIPLY_SHARED_64("f16");
    else
        HRA_MULTIPLY_SHARED_64("bf16");
}

#undef HRA_MULTIPLY_SHARED
#undef HRA_MULTIPLY_SHARED_64
#undef HRA_MULTIPLY_REGISTERS_128
#undef HRA_MULTIPLY_REGISTERS_64
#undef HRA_NAMES_64
#undef HRA_NAMES_32
#undef HRA_C32
#undef HRA_C8

/* ---- Numbers ---- */

/* 2^x within 2 units in the last place; 1 for 0, 0 for -inf. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two numbers rounded to T in one register, the first in the lower half. */
template <typename T> __device__ __forceinline__ uint32_t pack_pair(float first, float second)
{
    uint32_t pair;
    if constexpr (std::is_same_v<T, __half>)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

} // namespace

#endif

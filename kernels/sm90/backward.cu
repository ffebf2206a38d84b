/* backward.cu - see backward.h. Attention backward over lists of query rows, for sm_90a.
 *
 * Scores are in units of log 2 as in the forward kernel: t = scale log2(e) q.k. Everything is transposed, keys
 * by queries, so that what one product gives is what the next one takes from registers:
 *     S^T = K Q^T     P^T = 2^(t - LSE)     dV += P^T dO
 *     dP^T = V dO^T   dS^T = P^T (dP^T - delta)   dK += dS^T Q     dQ += dS K
 * dK is left without the factor scale; dQ gets it at the end. Only dS goes through shared memory, since the
 * keys of dQ's sum are those of both consumers. A row of queries without a key has LSE = +inf here, and so
 * P = 0; so have rows beyond the end of a tile, of which bits say the same.
 *
 * Grid     one block a multiprocessor, all at one time; the plan says which items each computes
 * Block    3 warpgroups
 *   0      thread 0 copies tiles into shared memory; threads 32 and 64 add dQ, each every second step's; the
 *          others leave
 *   1, 2   consumers, 64 keys each, with their dK and dV in registers
 * Step     128 keys, 64 query rows at D = 128, 128 at D = 64. Of its dQ, 64 x 64 at D = 64 (rows) and D = 128
 *          (channels) are of each consumer
 *
 * Shared memory                              D = 128   D = 64
 *   k, v  [D / 64][128][64]                    65536    32768   of an item
 *   q     [2][D / 64][ROWS][64]                32768    32768   of this step and of the next one
 *   out   [2][D / 64][ROWS][64]                32768    32768   dO
 *   slope [ROWS / 64][128][64]                 16384    32768   dS^T
 *   dq    [2][2][8][128][4]                    65536    65536   of this step and of the one before
 *   rows  [2][2][ROWS]                          1024     2048   LSE and delta
 *   bits, barriers                               160      160   limit 232448 with 1023 for alignment
 *
 * Barriers         arrivals                                   waited on by       first wait
 *   full_k, full_v 1, plus the bytes of the tile              256 consumers      parity 0
 *   empty_k,       8, a lane of each consumer warp at the     thread 0           parity 1: passes at once
 *   empty_v        end of an item
 *   full_q[2]      1, plus the bytes of Q and of rows         256 consumers      parity 0
 *   full_out[2]    1, plus the bytes of dO                    256 consumers      parity 0
 *   empty_q[2],    8, when the step's products have read them thread 0           parity 1
 *   empty_out[2]
 *   empty_slope    8, when the step's product has read it     256 consumers      parity 1
 *   full_dq[2]     8, when written                            threads 32, 64     parity 0
 *   empty_dq[2]    1, when read                               256 consumers      parity 1
 *   numbered 1     256: dS is written by both consumers
 *
 * The order of dQ's additions. The plan gives every step a time, such that the times of a block's steps
 * ascend, and ranks the steps of a piece by (time, item). A thread that adds waits until as many steps as its
 * rank have added, adds, waits until its sums are in memory, and counts itself. Nobody waits in a circle: take
 * the first, by (time, item), of all steps that have not been counted. Steps of its piece before it have been
 * counted, and so have those of its block: its tiles are there, its place in dq was left, and the thread that
 * adds it, which adds nothing else in between, waits for nobody. A second part of an item waits for the first, all of
 * whose steps are earlier. This needs all blocks to run at one time, which the launch asks for. */
#include "kernels/sm90/backward.h"

#include "kernels/sm90/ptx.h"
#include "kernels/sm90/rows.h"

#include <cstddef>

namespace
{

constexpr int T = HRA_TILE, THREADS = 128 + HRA_SM90_CONSUMERS, WARPS = HRA_SM90_CONSUMERS / 32;
/* 128 (24 + 2 * 240) = 128 (40 + 2 * 232) = 64512 of 65536 registers. */
template <int D> constexpr int PRODUCER_REGISTERS = 24;
template <int D> constexpr int CONSUMER_REGISTERS = 240;
constexpr int PLACES = 2; /* of dq, and threads that add */
constexpr float NOTHING = -INFINITY;

#ifdef HRA_SM90_UNORDERED /* to measure what the order costs */
constexpr bool ORDERED = false;
#else
constexpr bool ORDERED = true;
#endif

template <int D> struct alignas(1024) shared {
    static constexpr int ROWS = D == 128 ? 64 : 128;
    static constexpr uint32_t KEYS_BYTES = T * D * 2, ROWS_BYTES = ROWS * D * 2, STATS_BYTES = 2 * ROWS * 4;

    uint16_t k[D / 64][T][64], v[D / 64][T][64];
    uint16_t q[2][D / 64][ROWS][64], out[2][D / 64][ROWS][64];
    uint16_t slope[ROWS / 64][T][64];
    float4 dq[PLACES][2][8][128];
    float rows[2][2][ROWS];
    uint32_t bits[2];
    uint64_t full_k, full_v, empty_k, empty_v, full_q[2], full_out[2], empty_q[2], empty_out[2];
    uint64_t empty_slope, full_dq[PLACES], empty_dq[PLACES];
};

/* Of the dQ of one step. */
template <int D> constexpr uint32_t SUMS_BYTES = shared<D>::ROWS *D * 4;

/* The block's dynamic shared memory begins anywhere. */
template <int D> constexpr size_t SHARED_BYTES = sizeof(shared<D>) + 1023;
static_assert(offsetof(shared<128>, rows) == 212992 && SHARED_BYTES<128> <= 232448, "the table is stale");
static_assert(offsetof(shared<64>, rows) == 196608 && SHARED_BYTES<64> <= 232448, "the table is stale");
static_assert(SUMS_BYTES<128> == sizeof(shared<128>::dq) / PLACES && SUMS_BYTES<64> == SUMS_BYTES<128>, "");

/* ---- Threads that load ---- */

/* Q, dO and what belongs to them of every step. */
template <int D> __device__ void load_rows(const hra_sm90_backward &a, shared<D> &s)
{
    const uint32_t end = a.begin[blockIdx.x + 1];
    uint32_t n = 0;

    prefetch_map(&a.q);
    prefetch_map(&a.do_);
    for (uint32_t i = a.begin[blockIdx.x]; i < end; i++) {
        const hra_sm90_key_item item = a.item[i];
        const hra_sm90_step *at = a.step + item.step0;
        const int head0 = item.head_kv * a.group;

#pragma unroll 1
        for (uint32_t left = item.steps; left > 0; left--, n++, at++) {
            const hra_sm90_step step = *at;
            const uint32_t slot = n % 2, parity = n / 2 % 2 ^ 1;
            const int head = head0 + (int)(step.piece / a.pieces);

            barrier_wait(shared_address(&s.empty_q[slot]), parity);
            s.bits[slot] = step.bits;
            barrier_expect(shared_address(&s.full_q[slot]), shared<D>::ROWS_BYTES + shared<D>::STATS_BYTES);
            load_box(shared_address(s.q[slot]), &a.q, shared_address(&s.full_q[slot]), step.row, head,
                     item.batch);
            load_bytes(shared_address(s.rows[slot]),
                       a.rows + ((size_t)item.piece0 + step.piece) * (2 * shared<D>::ROWS),
                       shared_address(&s.full_q[slot]), shared<D>::STATS_BYTES);
            barrier_wait(shared_address(&s.empty_out[slot]), parity);
            barrier_expect(shared_address(&s.full_out[slot]), shared<D>::ROWS_BYTES);
            load_box(shared_address(s.out[slot]), &a.do_, shared_address(&s.full_out[slot]), step.row, head,
                     item.batch);
        }
    }
}

/* K and V of every item. */
template <int D> __device__ void load_keys(const hra_sm90_backward &a, shared<D> &s)
{
    const uint32_t end = a.begin[blockIdx.x + 1];
    uint32_t turn = 0;

    for (uint32_t i = a.begin[blockIdx.x]; i < end; i++, turn++) {
        const hra_sm90_key_item item = a.item[i];
        const int head = item.head_kv - a.chunk[item.chunk].head0;

        barrier_wait(shared_address(&s.empty_v), turn % 2 ^ 1);
        barrier_expect(shared_address(&s.full_v), shared<D>::KEYS_BYTES);
        load_box(shared_address(s.v), &a.v[item.chunk], shared_address(&s.full_v), item.row0, head,
                 item.batch);
        barrier_wait(shared_address(&s.empty_k), turn % 2 ^ 1);
        barrier_expect(shared_address(&s.full_k), shared<D>::KEYS_BYTES);
        load_box(shared_address(s.k), &a.k[item.chunk], shared_address(&s.full_k), item.row0, head,
                 item.batch);
    }
}

/* ---- Threads that add ---- */

/* Add the dQ of every step whose place is `place`. */
template <int D> __device__ void add_all(const hra_sm90_backward &a, shared<D> &s, uint32_t place)
{
    const uint32_t end = a.begin[blockIdx.x + 1];
    uint32_t use = 0, m = place;

    for (uint32_t i = a.begin[blockIdx.x]; i < end; i++) {
        const uint32_t piece0 = a.item[i].piece0, step0 = a.item[i].step0, steps = a.item[i].steps;
        for (; m < steps; m += PLACES, use++) {
            const hra_sm90_step step = a.step[step0 + m];
            const size_t piece = (size_t)piece0 + step.piece;
            float4 *const to = (float4 *)a.sums + piece * (SUMS_BYTES<D> / sizeof(float4));

            barrier_wait(shared_address(&s.full_dq[place]), use % 2);
            if (ORDERED) {
                while (load_acquire(a.added + piece) != (step.rank & ~HRA_SM90_STORES))
                    ;
                publish_global();
            }
            if (ORDERED && (step.rank & HRA_SM90_STORES))
                store_bytes(to, shared_address(s.dq[place]), SUMS_BYTES<D>);
            else
                add_bytes(to, shared_address(s.dq[place]), SUMS_BYTES<D>);
            stores_wait_read();
            barrier_arrive(shared_address(&s.empty_dq[place]));
            stores_wait();
            if (ORDERED)
                add_release(a.added + piece, 1);
        }
        m -= steps;
    }
}

/* ---- The consumers ---- */

/* C = A B^T is under way: A 64 rows of a tile of keys, B 2 COUNT rows of a step, both by columns. */
template <typename X, int D, int COUNT>
__device__ __forceinline__ void begin_scores(float (&c)[COUNT], uint32_t keys_address, uint32_t rows_address)
{
    constexpr int KEYS = T * 128 / 16, ROWS = shared<D>::ROWS * 128 / 16; /* from 64 channels to the next */
    const uint64_t keys = matrix_by_columns(keys_address), rows = matrix_by_columns(rows_address);

    pin(c);
    products_begin();
    multiply_shared<X, 0>(c, keys, rows);
#pragma unroll
    for (int step = 1; step < D / 16; step++)
        multiply_shared<X, 1>(c, keys + step / 4 * KEYS + step % 4 * 2,
                              rows + step / 4 * ROWS + step % 4 * 2);
    products_commit();
}

/* C += A B is under way: A in registers, 64 keys by the rows of a step, B these by channels. */
template <typename X, int D>
__device__ __forceinline__ void begin_gradient(float (&c)[D / 2], uint32_t (&a)[shared<D>::ROWS / 4],
                                               uint32_t rows_address)
{
    const uint64_t rows = matrix_by_rows(rows_address, shared<D>::ROWS);

    pin(c);
    pin(a);
    products_begin();
#pragma unroll
    for (int step = 0; step < shared<D>::ROWS / 16; step++)
        multiply_registers<X>(c, a + 4 * step, rows + step * 128);
    products_commit();
}

/* dQ = dS K is under way, 64 x 64 of it: chunks of 64 queries and of 64 channels, both by rows, which are
 * keys. */
template <typename X>
__device__ __forceinline__ void begin_dq(float (&c)[32], uint32_t slope_address, uint32_t k_address)
{
    const uint64_t slope = matrix_by_rows(slope_address, T), k = matrix_by_rows(k_address, T);

    pin(c);
    products_begin();
    multiply_shared<X, 0, 1>(c, slope, k);
#pragma unroll
    for (int step = 1; step < T / 16; step++)
        multiply_shared<X, 1, 1>(c, slope + step * 128, k + step * 128);
    products_commit();
}

/* -inf where no bit is. */
template <int COUNT>
__device__ __forceinline__ void apply_bits(float (&scores)[COUNT], const uint32_t (&word)[COUNT / 32])
{
#pragma unroll
    for (int h = 0; h < COUNT / 32; h++)
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float &x = scores[32 * h + i % 16 / 2 * 4 + i / 16 * 2 + i % 2];
            x = word[h] >> i & 1 ? x : NOTHING;
        }
}

/* Scores become probabilities; `lse` is of this thread's first column. */
template <typename X, int COUNT>
__device__ __forceinline__ void exponentiate(float (&scores)[COUNT], uint32_t (&p)[COUNT / 2],
                                             const float *lse, float scale)
{
#pragma unroll
    for (int j = 0; j < COUNT / 4; j++) {
        const float2 high = *(const float2 *)(lse + 8 * j);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float *const x = scores + 4 * j + 2 * r;
            x[0] = exp2_fast(fmaf(x[0], scale, -high.x));
            x[1] = exp2_fast(fmaf(x[1], scale, -high.y));
            p[2 * j + r] = pack_pair<X>(x[0], x[1]);
        }
    }
}

/* dS = P (dP - delta), of 64 queries. */
template <typename X>
__device__ __forceinline__ void differentiate(uint32_t *ds, const float *p, const float (&dp)[32],
                                              const float *delta)
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float2 less = *(const float2 *)(delta + 8 * j);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int i = 4 * j + 2 * r;
            ds[2 * j + r] = pack_pair<X>(p[i] * (dp[i] - less.x), p[i + 1] * (dp[i + 1] - less.y));
        }
    }
}

/* Store this warp's 16 keys of dS^T, [chunk][T][64] with the 16-byte pieces of rows permuted. Lane l has key
 * l % 16, and of every two pieces piece l / 16. */
template <int COUNT>
__device__ __forceinline__ void store_slope(uint32_t slope_address, const uint32_t (&ds)[COUNT])
{
    const int thread = thread_again() - 128, lane = thread % 32;
    const uint32_t to = slope_address + (thread / 32 * 16 + lane % 16) * 128 + (lane / 16 ^ lane % 8) * 16;

#pragma unroll
    for (int i = 0; i < COUNT / 4; i++)
        store_matrices((to ^ i % 4 * 32) + i / 4 * (T * 128), ds + 4 * i);
}

/* Store this thread's dQ. */
__device__ __forceinline__ void store_dq(float4 (*to)[2][8][128], const float (&dq)[32])
{
    const int thread = thread_again() - 128;
    float4 *const own = &(*to)[thread / 128][0][thread % 128];

#pragma unroll
    for (int j = 0; j < 8; j++)
        own[j * 128] = {dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]};
}

/* ---- Where items begin and end ---- */

/* Two threads of a row have two columns each of blocks of 8, in x of an even block and in y of the next one;
 * `odd` is the parity of the thread's own pair of columns. They exchange, and have four of one block each: the
 * even one of the even block. Its own inverse. */
__device__ __forceinline__ void exchange_pairs(float (&x)[2], float (&y)[2], bool odd)
{
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const float got = __shfl_xor_sync(~0u, odd ? x[e] : y[e], 1);
        x[e] = odd ? got : x[e];
        y[e] = odd ? y[e] : got;
    }
}

/* The sums of a tensor that this thread has: of row thread / 32 * 16 + thread % 32 / 4, and 8 further. */
struct sums_place {
    float *data;
    int64_t stride_row;
    int row, rows;
};

__device__ __forceinline__ sums_place place_of(const hra_tensor &t, const hra_sm90_key_item &item, int head0,
                                               int thread)
{
    const int row = thread / 32 * 16 + thread % 32 / 4;
    return {(float *)t.data + item.batch * t.stride_batch + (item.row0 + (int64_t)row) * t.stride_row +
                (item.head_kv - head0) * t.stride_head + thread % 2 * 8 + thread % 4 / 2 * 4,
            t.stride_row, row, item.rows};
}

template <int COUNT>
__device__ __forceinline__ void begin_sums(float (&c)[COUNT], const sums_place &from, bool zero, int thread)
{
    if (zero) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            c[i] = 0;
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float4 x = {0, 0, 0, 0};
            if (from.row + 8 * r < from.rows)
                x = *(const float4 *)(from.data + 8 * r * from.stride_row + 16 * i);
            float low[2] = {x.x, x.y}, high[2] = {x.z, x.w};
            exchange_pairs(low, high, thread % 2);
            c[8 * i + 2 * r] = low[0];
            c[8 * i + 2 * r + 1] = low[1];
            c[8 * i + 4 + 2 * r] = high[0];
            c[8 * i + 4 + 2 * r + 1] = high[1];
        }
}

template <int COUNT>
__device__ __forceinline__ void end_sums(const float (&c)[COUNT], const sums_place &to, int thread)
{
#pragma unroll
    for (int i = 0; i < COUNT / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float low[2] = {c[8 * i + 2 * r], c[8 * i + 2 * r + 1]};
            float high[2] = {c[8 * i + 4 + 2 * r], c[8 * i + 4 + 2 * r + 1]};
            exchange_pairs(low, high, thread % 2);
            if (to.row + 8 * r < to.rows)
                *(float4 *)(to.data + 8 * r * to.stride_row + 16 * i) = {low[0], low[1], high[0], high[1]};
        }
}

/* Write the rows that exist, times `factor`, in pieces of 16 bytes. */
template <typename X, int COUNT>
__device__ __forceinline__ void write_rows(const float (&c)[COUNT], const hra_tensor &t,
                                           const hra_sm90_key_item &item, int head0, float factor, int thread)
{
    const int row = thread / 32 * 16 + thread % 32 / 4;
    X *const to = (X *)t.data + item.batch * t.stride_batch + (item.row0 + (int64_t)row) * t.stride_row +
                  (item.head_kv - head0) * t.stride_head + 8 * (thread % 4);

#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int i = 0; i < COUNT / 16; i++) {
            uint32_t x[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *const pair = c + 16 * i + 4 * j + 2 * r;
                x[j] = pack_pair<X>(pair[0] * factor, pair[1] * factor);
            }
            gather_block(x, thread);
            if (row + 8 * r < item.rows)
                *(uint4 *)(to + 8 * r * t.stride_row + 32 * i) = {x[0], x[1], x[2], x[3]};
        }
}

/* dK and dV of a first part: [2][D / 8][256] float4. */
template <int D>
__device__ __forceinline__ float4 *part_of(const hra_sm90_backward &a, const hra_sm90_key_item &item,
                                           int thread)
{
    return (float4 *)a.part + (size_t)item.cut * (D / 4 * HRA_SM90_CONSUMERS) + thread;
}

/* What an item is is read where it begins and again where it ends: in between all registers are in use. */
template <int D>
__device__ __forceinline__ void begin_item(float (&dk)[D / 2], float (&dv)[D / 2], const hra_sm90_backward &a,
                                           uint32_t index)
{
    const int thread = thread_again() - 128;
    const hra_sm90_key_item item = a.item[index];
    const hra_sm90_gradient &chunk = a.chunk[item.chunk];

    if (item.part == HRA_SM90_SECOND) { /* whose first part has earlier times */
        while (load_acquire(&a.told[item.cut]) < WARPS)
            ;
        load_sums<HRA_SM90_CONSUMERS>(dk, part_of<D>(a, item, thread));
        load_sums<HRA_SM90_CONSUMERS>(dv, part_of<D>(a, item, thread) + D / 8 * HRA_SM90_CONSUMERS);
        return;
    }
    begin_sums(dk, place_of(chunk.dk, item, chunk.head0, thread), chunk.zero, thread);
    begin_sums(dv, place_of(chunk.dv, item, chunk.head0, thread), chunk.zero, thread);
}

template <typename X, int D>
__device__ __forceinline__ void end_item(const float (&dk)[D / 2], const float (&dv)[D / 2],
                                         const hra_sm90_backward &a, uint32_t index)
{
    const int thread = thread_again() - 128;
    const hra_sm90_key_item item = a.item[index];
    const hra_sm90_gradient &chunk = a.chunk[item.chunk];

    if (item.part == HRA_SM90_FIRST) {
        leave_sums<HRA_SM90_CONSUMERS>(dk, part_of<D>(a, item, thread));
        leave_sums<HRA_SM90_CONSUMERS>(dv, part_of<D>(a, item, thread) + D / 8 * HRA_SM90_CONSUMERS);
        __syncwarp();
        if (thread % 32 == 0)
            add_release(&a.told[item.cut], 1);
        return;
    }
    if (chunk.out_dk.data != nullptr && !item.summed) {
        write_rows<X>(dk, chunk.out_dk, item, chunk.head0, a.factor, thread);
        write_rows<X>(dv, chunk.out_dv, item, chunk.head0, 1, thread);
        return;
    }
    end_sums(dk, place_of(chunk.dk, item, chunk.head0, thread), thread);
    end_sums(dv, place_of(chunk.dv, item, chunk.head0, thread), thread);
}

/* ---- The pipeline ---- */

template <typename X, int D> __device__ void consume(const hra_sm90_backward &a, shared<D> &s)
{
    constexpr int ROWS = shared<D>::ROWS, COUNT = ROWS / 2;
    const int thread = threadIdx.x - 128, which = thread / 128, lane = thread % 32;
    const bool signals = lane == 0;
    const uint32_t k = shared_address(s.k), v = shared_address(s.v), slope = shared_address(s.slope);
    const uint32_t end = a.begin[blockIdx.x + 1];
    const float scale = a.scale;
    /* Of dQ a consumer has 64 rows or 64 channels. */
    const uint32_t dq_slope = slope + (D == 64 ? which * T * 128 : 0);
    const uint32_t dq_keys = k + (D == 64 ? 0 : which * T * 128);
    uint32_t n = 0, turn = 0;

    for (uint32_t i = a.begin[blockIdx.x]; i < end; i++, turn++) {
        float dk[D / 2], dv[D / 2];

        begin_item<D>(dk, dv, a, i);
        barrier_wait(shared_address(&s.full_k), turn % 2);
        barrier_wait(shared_address(&s.full_v), turn % 2);
        for (uint32_t left = a.item[i].steps; left > 0; left--, n++) {
            const uint32_t slot = n % 2, parity = n / 2 % 2;
            const uint32_t q = shared_address(s.q[slot]), out = shared_address(s.out[slot]);
            const float *const lse = s.rows[slot][0] + lane % 4 * 2, *const delta = lse + ROWS;
            float scores[COUNT], dp[32], dq[32];
            uint32_t p[COUNT / 2], ds[COUNT / 2], word[COUNT / 32];

            barrier_wait(shared_address(&s.full_q[slot]), parity);
            const uint32_t bits = s.bits[slot];
            if (bits != 0)
#pragma unroll
                for (int h = 0; h < COUNT / 32; h++)
                    word[h] =
                        ((const uint32_t *)
                             a.bits)[((size_t)(bits - 1) * (COUNT / 32) + h) * HRA_SM90_CONSUMERS + thread];
            begin_scores<X, D>(scores, k + which * 64 * 128, q);
            barrier_wait(shared_address(&s.full_out[slot]), parity);
            begin_scores<X, D>(dp, v + which * 64 * 128, out);

            products_wait<1>();
            pin(scores);
            if (bits != 0)
                apply_bits(scores, word);
            exponentiate<X>(scores, p, lse, scale);
            begin_gradient<X, D>(dv, p, out);

            products_wait<1>();
            pin(dp);
            differentiate<X>(ds, scores, dp, delta);
            if constexpr (ROWS == 128) { /* all of dP at once would be more registers than there are */
                begin_scores<X, D>(dp, v + which * 64 * 128, out + 64 * 128);
                products_wait<0>();
                pin(dp);
                differentiate<X>(ds + 16, scores + 32, dp, delta + 64);
            }
            barrier_wait(shared_address(&s.empty_slope), n % 2 ^ 1);
            store_slope(slope, ds);
            publish_shared();
            numbered_sync(1, HRA_SM90_CONSUMERS);
            begin_dq<X>(dq, dq_slope, dq_keys);
            begin_gradient<X, D>(dk, ds, q);

            products_wait<2>();
            pin(dv);
            if (signals)
                barrier_arrive(shared_address(&s.empty_out[slot]));
            products_wait<1>();
            pin(dq);
            if (signals)
                barrier_arrive(shared_address(&s.empty_slope));
            barrier_wait(shared_address(&s.empty_dq[slot]), parity ^ 1);
            store_dq(&s.dq[slot], dq);
            publish_shared();
            __syncwarp();
            if (signals)
                barrier_arrive(shared_address(&s.full_dq[slot]));
            products_wait<0>();
            pin(dk);
            if (signals)
                barrier_arrive(shared_address(&s.empty_q[slot]));
        }
        if (signals) {
            barrier_arrive(shared_address(&s.empty_k));
            barrier_arrive(shared_address(&s.empty_v));
        }
        end_item<X, D>(dk, dv, a, i);
    }
}
static_assert(PLACES == 2, "a step's dq has the place of its slot");

template <int D> __device__ void init_barriers(shared<D> &s)
{
    uint64_t *const once[] = {&s.full_k,  &s.full_v,      s.full_q,   s.full_q + 1,
                              s.full_out, s.full_out + 1, s.empty_dq, s.empty_dq + 1};
    uint64_t *const by_warps[] = {&s.empty_k,      &s.empty_v,     s.empty_q, s.empty_q + 1, s.empty_out,
                                  s.empty_out + 1, &s.empty_slope, s.full_dq, s.full_dq + 1};

    for (uint64_t *barrier : once)
        barrier_init(shared_address(barrier), 1);
    for (uint64_t *barrier : by_warps)
        barrier_init(shared_address(barrier), WARPS);
    barrier_publish();
}

template <typename X, int D>
__global__ void __launch_bounds__(THREADS, 1) differentiate_items(const __grid_constant__ hra_sm90_backward a)
{
    HRA_DYNAMIC_SHARED(memory);
    shared<D> &s = *(shared<D> *)(memory + (-shared_address(memory) & 1023));

    if (threadIdx.x == 0)
        init_barriers(s);
    __syncthreads();
    if (threadIdx.x < 128) {
        give_registers<PRODUCER_REGISTERS<D>>();
        if (threadIdx.x == 0)
            load_rows<D>(a, s);
        else if (threadIdx.x == 32)
            load_keys<D>(a, s);
        else if (threadIdx.x % 32 == 0)
            add_all<D>(a, s, threadIdx.x / 32 - 2);
    } else {
        take_registers<CONSUMER_REGISTERS<D>>();
        consume<X, D>(a, s);
    }
}

/* ---- Before and after ---- */

/* A piece: its (batch, head), and its rows among those of the rank. */
struct piece {
    int64_t pair, row0;
    int batch, head, rows;
};

template <int D> __device__ __forceinline__ piece piece_of(const hra_sm90_pieces &a, uint32_t index)
{
    constexpr int ROWS = shared<D>::ROWS, PARTS = T / ROWS;
    const uint32_t pieces = (uint32_t)a.queries * PARTS, pair = index / pieces;
    const hra_tile_rows tile = a.query[index % pieces / PARTS];
    const int first = (int)(index % PARTS) * ROWS, left = tile.rows - first;

    return {pair, tile.row0 + first, (int)(pair / a.heads), (int)(pair % a.heads),
            left < 0      ? 0
            : left < ROWS ? left
                          : ROWS};
}

/* Is nothing ever added to this block's piece? Its sums are not read then. Without order all sums begin as 0. */
__device__ __forceinline__ bool is_unused(const hra_sm90_pieces &a)
{
    return ORDERED && a.untouched[blockIdx.x];
}

template <typename X> __device__ __forceinline__ float2 pair_of(uint32_t x)
{
    if constexpr (std::is_same_v<X, __half>)
        return __half22float2(*(const __half2 *)&x);
    else
        return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
}

constexpr int SIDE_THREADS = 256;

/* A block a piece. D / 8 threads share a row, 16 bytes each. */
template <typename X, int D> __global__ void find_delta(const __grid_constant__ hra_sm90_pieces a)
{
    constexpr int SHARE = D / 8, ROWS = shared<D>::ROWS;
    const piece p = piece_of<D>(a, blockIdx.x);
    const int column = threadIdx.x % SHARE * 8;

    if (is_unused(a)) /* nor is its delta */
        return;
    for (int row = threadIdx.x / SHARE; row < ROWS; row += SIDE_THREADS / SHARE) {
        float sum = 0;
        if (row < p.rows) {
            const uint4 x =
                *(const uint4 *)((const X *)a.o.data + p.batch * a.o.stride_batch +
                                 (p.row0 + row) * a.o.stride_row + p.head * a.o.stride_head + column);
            const uint4 y =
                *(const uint4 *)((const X *)a.do_.data + p.batch * a.do_.stride_batch +
                                 (p.row0 + row) * a.do_.stride_row + p.head * a.do_.stride_head + column);
            const uint32_t o[4] = {x.x, x.y, x.z, x.w}, out[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 f = pair_of<X>(o[i]), g = pair_of<X>(out[i]);
                sum = fmaf(f.x, g.x, fmaf(f.y, g.y, sum));
            }
        }
#pragma unroll
        for (int by = 1; by < SHARE; by *= 2)
            sum += __shfl_xor_sync(~0u, sum, by);
        if (column != 0)
            continue;
        if (row < p.rows && a.dlse != nullptr)
            sum -= a.dlse[p.pair * a.rows_of_rank + p.row0 + row];
        a.rows[(size_t)blockIdx.x * (2 * ROWS) + ROWS + row] = sum;
    }
}

/* A row without keys has no gradient, whatever delta is. */
template <int D> __global__ void begin_pieces(const __grid_constant__ hra_sm90_pieces a)
{
    constexpr int ROWS = shared<D>::ROWS;
    const piece p = piece_of<D>(a, blockIdx.x);
    float *const out = a.rows + (size_t)blockIdx.x * (2 * ROWS);

    if (is_unused(a))
        return;
    for (int row = threadIdx.x; row < ROWS; row += SIDE_THREADS) {
        const float lse = row < p.rows ? a.lse[p.pair * a.rows_of_rank + p.row0 + row] : NOTHING;
        out[row] = lse == NOTHING ? INFINITY : (float)(lse * 1.4426950408889634);
        if (lse == NOTHING)
            out[ROWS + row] = 0;
    }
    if (ORDERED)
        return;
    float4 *const sums = (float4 *)a.sums + (size_t)blockIdx.x * (SUMS_BYTES<D> / sizeof(float4));
    for (int i = threadIdx.x; i < (int)(SUMS_BYTES<D> / sizeof(float4)); i += SIDE_THREADS)
        sums[i] = {0, 0, 0, 0};
}

/* A block a piece; its threads have what those of the consumers had. */
template <typename X, int D> __global__ void write_dq(const __grid_constant__ hra_sm90_pieces a)
{
    const piece p = piece_of<D>(a, blockIdx.x);
    const int thread = threadIdx.x % 128, which = threadIdx.x / 128, quarter = thread % 4;
    const int row0 = (D == 64 ? 64 * which : 0) + thread / 32 * 16 + thread % 32 / 4;
    const int column0 = (D == 64 ? 0 : 64 * which) + 8 * quarter;
    const float4 *const sums = (const float4 *)a.sums +
                               (size_t)blockIdx.x * (SUMS_BYTES<D> / sizeof(float4)) + which * 8 * 128 +
                               thread;
    float4 x[8];

    const bool unused = is_unused(a);
#pragma unroll
    for (int j = 0; j < 8; j++)
        x[j] = unused ? float4{0, 0, 0, 0} : sums[j * 128];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = i / 2, j0 = i % 2 * 4;
        uint32_t pairs[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 y = x[j0 + j];
            pairs[j] = pack_pair<X>((r == 0 ? y.x : y.z) * a.scale, (r == 0 ? y.y : y.w) * a.scale);
        }
        gather_block(pairs, thread);
        if (row0 + 8 * r < p.rows)
            *(uint4 *)((X *)a.dq.data + p.batch * a.dq.stride_batch +
                       (p.row0 + row0 + 8 * r) * a.dq.stride_row + p.head * a.dq.stride_head + column0 +
                       8 * j0) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
}

/* A block an item: a key tile that no query sees. Its dK and dV are 0, or what they begin at. */
template <typename X, int D> __global__ void write_unseen(const __grid_constant__ hra_sm90_backward a)
{
    const hra_sm90_key_item item = a.item[blockIdx.x];
    const hra_sm90_gradient &chunk = a.chunk[item.chunk];
    const bool writes = chunk.out_dk.data != nullptr && !item.summed;

    for (int n = 0; n < 2; n++) {
        const hra_tensor &sums = n == 0 ? chunk.dk : chunk.dv, &out = n == 0 ? chunk.out_dk : chunk.out_dv;
        const float factor = n == 0 ? a.factor : 1;
        for (int i = threadIdx.x; i < item.rows * (D / 8); i += SIDE_THREADS) {
            const int64_t row = item.row0 + i / (D / 8), head = item.head_kv - chunk.head0;
            const int column = i % (D / 8) * 8;
            float4 *const at = (float4 *)((float *)sums.data + item.batch * sums.stride_batch +
                                          row * sums.stride_row + head * sums.stride_head + column);
            float4 x = {0, 0, 0, 0}, y = x;
            if (!chunk.zero) {
                x = at[0];
                y = at[1];
            }
            if (writes)
                *(uint4 *)((X *)out.data + item.batch * out.stride_batch + row * out.stride_row +
                           head * out.stride_head + column) = {
                    pack_pair<X>(x.x * factor, x.y * factor), pack_pair<X>(x.z * factor, x.w * factor),
                    pack_pair<X>(y.x * factor, y.y * factor), pack_pair<X>(y.z * factor, y.w * factor)};
            else
                at[0] = at[1] = x;
        }
    }
}

/* Every kernel that is compiled. */
const struct variant {
    hra_type type;
    int dim;
    const void *kernel, *delta, *begin, *end, *unseen;
    size_t shared_bytes;
} variants[] = {
#define HRA_VARIANT(type, X, D)                                                                              \
    {                                                                                                        \
        type, D, (const void *)differentiate_items<X, D>, (const void *)find_delta<X, D>,                    \
            (const void *)begin_pieces<D>, (const void *)write_dq<X, D>, (const void *)write_unseen<X, D>,   \
            SHARED_BYTES<D>                                                                                  \
    }
    HRA_VARIANT(HRA_BF16, __nv_bfloat16, 64),
    HRA_VARIANT(HRA_BF16, __nv_bfloat16, 128),
    HRA_VARIANT(HRA_F16, __half, 64),
    HRA_VARIANT(HRA_F16, __half, 128),
#undef HRA_VARIANT
};

const variant *find_variant(hra_type type, int dim)
{
    for (const variant &v : variants)
        if (v.type == type && v.dim == dim)
            return &v;
    return nullptr;
}

/* Enqueue a kernel that has one argument. */
template <typename ARGUMENT>
cudaError_t enqueue(const void *kernel, const ARGUMENT *argument, unsigned blocks, cudaStream_t stream)
{
    void *arguments[] = {const_cast<ARGUMENT *>(argument)};
    return cudaLaunchKernel(kernel, dim3(blocks), dim3(SIDE_THREADS), arguments, 0, stream);
}

unsigned count_pieces(const hra_sm90_pieces *a, int dim)
{
    return (unsigned)a->batch * (unsigned)a->heads * (unsigned)a->queries *
           (unsigned)(T / hra_sm90_step_rows(dim));
}

} // namespace

extern "C" cudaError_t hra_sm90_backward_open(hra_type type, int dim)
{
    const variant *v = find_variant(type, dim);
    cudaFuncAttributes attributes;

    if (v == nullptr)
        return cudaErrorInvalidValue;
    /* Asking loads the kernel, which could not be done while a stream records a graph. */
    for (const void *kernel : {v->delta, v->begin, v->end, v->unseen}) {
        const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
        if (error != cudaSuccess)
            return error;
    }
    return cudaFuncSetAttribute(v->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)v->shared_bytes);
}

extern "C" cudaError_t hra_sm90_backward_delta(const hra_sm90_pieces *pieces, hra_type type, int dim,
                                               cudaStream_t stream)
{
    const variant *v = find_variant(type, dim);
    if (v == nullptr)
        return cudaErrorInvalidValue;
    return enqueue(v->delta, pieces, count_pieces(pieces, dim), stream);
}

extern "C" cudaError_t hra_sm90_backward_begin(const hra_sm90_pieces *pieces, int dim, cudaStream_t stream)
{
    return enqueue(find_variant(HRA_BF16, dim)->begin, pieces, count_pieces(pieces, dim), stream);
}

extern "C" cudaError_t hra_sm90_backward_launch(const hra_sm90_backward *launch, hra_type type, int dim,
                                                int blocks, cudaStream_t stream)
{
    const variant *v = find_variant(type, dim);
    if (v == nullptr)
        return cudaErrorInvalidValue;
    void *arguments[] = {const_cast<hra_sm90_backward *>(launch)};
    return cudaLaunchCooperativeKernel(v->kernel, dim3((unsigned)blocks), dim3(THREADS), arguments,
                                       v->shared_bytes, stream);
}

extern "C" cudaError_t hra_sm90_backward_unseen(const hra_sm90_backward *launch, hra_type type, int dim,
                                                int items, cudaStream_t stream)
{
    const variant *v = find_variant(type, dim);
    if (v == nullptr)
        return cudaErrorInvalidValue;
    return enqueue(v->unseen, launch, (unsigned)items, stream);
}

extern "C" cudaError_t hra_sm90_backward_end(const hra_sm90_pieces *pieces, hra_type type, int dim,
                                             cudaStream_t stream)
{
    const variant *v = find_variant(type, dim);
    if (v == nullptr)
        return cudaErrorInvalidValue;
    return enqueue(v->end, pieces, count_pieces(pieces, dim), stream);
}

/* hybrid.cu - see hybrid.h. Every kernel here is bound by memory: a warp takes a row, its lanes neighbouring columns, in
 * pieces of 16 bytes where the type allows it.
 *
 * Forward, per block of tiles: m_b = rowmax S, P = exp(S - m_b), l_b = rowsum P; cuBLAS makes O_b = P V. The running
 * state then merges all blocks of a row at once:
 *     m' = max(m, m_b ...), l' = l exp(m - m') + sum_b l_b exp(m_b - m'), O' likewise
 * A row without a key in a block has m_b = -inf and is passed over, so that (-inf) - (-inf) is never computed.
 *
 * Sums over blocks have a fixed order: entries of a slab ascend, slabs follow one another on the stream. */
#include "kernels/cuda/hybrid.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

namespace
{

constexpr int WARPS = 8, THREADS = 32 * WARPS, T = HRA_TILE;

/* ---- Numbers ---- */

__device__ float to_float(float x)
{
    return x;
}
__device__ float to_float(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ float to_float(__half x)
{
    return __half2float(x);
}

template <typename To> __device__ __forceinline__ To from_float(float x)
{
    if constexpr (std::is_same_v<To, __nv_bfloat16>)
        return __float2bfloat16_rn(x);
    else if constexpr (std::is_same_v<To, __half>)
        return __float2half_rn(x);
    else
        return x;
}

/* Four numbers as one store. */
template <typename To> struct alignas(4 * sizeof(To)) four {
    To x[4];
};

__device__ float warp_max(float x)
{
    for (int s = 16; s > 0; s /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, s));
    return x;
}

__device__ float warp_sum(float x)
{
    for (int s = 16; s > 0; s /= 2)
        x += __shfl_xor_sync(~0u, x, s);
    return x;
}

/* Where the channels of (batch, row, head) begin. */
template <typename X> __device__ X *at(const hra_tensor &t, int64_t b, int64_t row, int64_t h)
{
    return (X *)t.data + b * t.stride_batch + row * t.stride_row + h * t.stride_head;
}

/* ---- Gathering ---- */

template <typename X>
__global__ void gather(X *out, int out_heads, const hra_tile_rows *tile_rows, int tile0, int tiles,
                       int padded, hra_tensor from, int64_t row_base, int dim, int wide)
{
    const int tile = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const hra_tile_rows rows = tile < tiles ? tile_rows[tile0 + tile] : hra_tile_rows{0, 0};
    X *to = out + (((int64_t)b * out_heads + h) * padded + tile) * T * wide;

    constexpr int piece = 16 / sizeof(X);
    if (dim % piece == 0) { /* whole pieces: the padding is none, since wide = dim */
        const int pieces = wide / piece;
        for (int i = threadIdx.x; i < T * pieces; i += THREADS) {
            const int r = i / pieces, c = i % pieces * piece;
            uint4 x = {0, 0, 0, 0};
            if (r < rows.rows)
                x = *(const uint4 *)(at<X>(from, b, rows.row0 - row_base + r, h) + c);
            *(uint4 *)(to + r * wide + c) = x;
        }
        return;
    }
    for (int i = threadIdx.x; i < T * wide; i += THREADS) {
        const int r = i / wide, c = i % wide;
        to[i] = r < rows.rows && c < dim ? at<X>(from, b, rows.row0 - row_base + r, h)[c] : from_float<X>(0);
    }
}

/* ---- Instances ---- */

/* One block of tiles for one (batch, head). */
struct instance {
    int pair, kv; /* batch * heads + head; batch * K/V heads of the chunk + K/V head */
    int query, key;
};

__device__ instance instance_of(const hra_device_plan &p, const hra_launch &l, int index)
{
    const int *place = p.numbers + l.slab.place + 2 * (index % l.slab.blocks);
    const int pair = p.numbers[l.pairs + index / l.slab.blocks];
    const int kv = pair % p.heads / (p.heads / p.heads_kv) - l.head0;
    return {pair, pair / p.heads * l.heads + kv, l.query0 + place[0], place[1]};
}

template <typename X> __global__ void point(hra_device_plan p, hra_launch l, hra_scratch s)
{
    const int index = blockIdx.x * THREADS + threadIdx.x, side = T * l.slab.edge;

    if (index >= l.slab.blocks * l.count)
        return;
    const instance at = instance_of(p, l, index);
    const int64_t q = ((int64_t)at.pair * p.query_tiles + at.query) * T;
    const int64_t k = ((int64_t)at.kv * l.key_tiles + at.key) * T;
    const int64_t scores = (int64_t)index * side * side;
    const int most = p.wide > p.wide_v ? p.wide : p.wide_v;
    const int64_t part = (int64_t)index * side * most;
    void **to = s.pointers + index;

    to[HRA_AT_Q * p.slab] = (X *)s.q + q * p.wide;
    to[HRA_AT_K * p.slab] = (X *)s.k + k * p.wide;
    to[HRA_AT_V * p.slab] = (X *)s.v + k * p.wide_v;
    to[HRA_AT_S * p.slab] = s.scores + scores;
    to[HRA_AT_A * p.slab] = s.part_a + part;
    if (s.do_ == nullptr)
        return;
    to[HRA_AT_DO * p.slab] = (X *)s.do_ + q * p.wide_v;
    to[HRA_AT_DP * p.slab] = s.dp + scores;
    to[HRA_AT_B * p.slab] = s.part_b + part;
    to[HRA_AT_C * p.slab] = s.part_c + part;
}

/* The four bits of columns c .. c + 3 of a tile's row; c a multiple of 4. */
__device__ unsigned bits_of(const hra_device_plan &p, int bitmap, int row, int c)
{
    if (bitmap == HRA_FULL)
        return 15;
    if (bitmap == HRA_DEAD)
        return 0;
    return (unsigned)(p.bits[bitmap][row][c / 64] >> c % 64) & 15;
}

/* ---- Rows of blocks ---- */

template <typename X, int EDGE> __global__ void softmax(hra_device_plan p, hra_launch l, hra_scratch s)
{
    constexpr int SIDE = T * EDGE;
    const int index = blockIdx.x, row = blockIdx.y * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int *bitmap = p.numbers + l.slab.bits + (index % l.slab.blocks) * EDGE * EDGE + row / T * EDGE;
    float *const scores = s.scores + ((int64_t)index * SIDE + row) * SIDE;
    float x[EDGE][4], high = -INFINITY, sum = 0;

    for (int j = 0; j < EDGE; j++) { /* lane's columns 4 lane .. 4 lane + 3 of tile j */
        const float4 v = *(const float4 *)(scores + j * T + 4 * lane);
        const unsigned bits = bits_of(p, bitmap[j], row % T, 4 * lane);
        const float y[4] = {v.x, v.y, v.z, v.w};
        for (int c = 0; c < 4; c++) {
            x[j][c] = bits >> c & 1 ? y[c] : -INFINITY;
            high = fmaxf(high, x[j][c]); /* passes over NaN; the sum does not */
        }
    }
    high = warp_max(high);
    for (int j = 0; j < EDGE; j++) {
        four<X> out;
        for (int c = 0; c < 4; c++) {
            const float e = x[j][c] == -INFINITY ? 0 : expf(x[j][c] - high);
            sum += e;
            out.x[c] = from_float<X>(e);
        }
        *(four<X> *)((X *)scores + j * T + 4 * lane) = out; /* every lane has loaded its own: warp_max */
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        s.part_max[index * SIDE + row] = high;
        s.part_sum[index * SIDE + row] = sum;
    }
}

template <typename X, int EDGE>
__global__ void gradient(hra_device_plan p, hra_launch l, hra_scratch s, const float *lse)
{
    constexpr int SIDE = T * EDGE;
    const int index = blockIdx.x, row = blockIdx.y * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    const instance me = instance_of(p, l, index);
    const int *bitmap = p.numbers + l.slab.bits + (index % l.slab.blocks) * EDGE * EDGE + row / T * EDGE;
    const int64_t first = ((int64_t)index * SIDE + row) * SIDE;
    const int tile = me.query + row / T;
    const hra_tile_rows rows = tile < p.queries ? p.query[tile] : hra_tile_rows{0, 0};
    const bool exists = row % T < rows.rows;
    const int64_t at = (int64_t)me.pair * p.rows + rows.row0 + row % T;
    const float log_sum = exists ? lse[at] : -INFINITY, delta = exists ? s.delta[at] : 0;

    float4 v[EDGE], d[EDGE];
    for (int j = 0; j < EDGE; j++) {
        v[j] = *(const float4 *)(s.scores + first + j * T + 4 * lane);
        d[j] = *(const float4 *)(s.dp + first + j * T + 4 * lane);
    }
    __syncwarp(); /* what follows is written over what other lanes have loaded */
    for (int j = 0; j < EDGE; j++) {
        const unsigned bits = log_sum == -INFINITY ? 0 : bits_of(p, bitmap[j], row % T, 4 * lane);
        const float y[4] = {v[j].x, v[j].y, v[j].z, v[j].w}, g[4] = {d[j].x, d[j].y, d[j].z, d[j].w};
        four<X> out, slope;
        for (int c = 0; c < 4; c++) {
            const float e = bits >> c & 1 ? expf(y[c] - log_sum) : 0;
            out.x[c] = from_float<X>(e);
            slope.x[c] = from_float<X>(bits >> c & 1 ? e * (g[c] - delta) : 0);
        }
        *(four<X> *)((X *)(s.scores + first) + j * T + 4 * lane) = out;
        *(four<X> *)((X *)(s.dp + first) + j * T + 4 * lane) = slope;
    }
}

/* ---- Sums over blocks ---- */

/* A row of a query tile (blockIdx.x = (batch, head) x query tile of the slab) and the blocks that have it. */
struct shared_row {
    int64_t sums;  /* the row among [batch][heads][query_tiles][128] */
    int pair_base; /* first instance of the (batch, head) */
    const int *entry;
    int entries, row;
    bool exists;
};

__device__ shared_row row_of(const hra_device_plan &p, const hra_launch &l)
{
    const int which = blockIdx.x % l.slab.queries, pair = blockIdx.x / l.slab.queries;
    const int tile = l.query0 + p.numbers[l.slab.query + which];
    const int *start = p.numbers + l.slab.query_start + which;
    shared_row r;

    r.row = blockIdx.y * WARPS + threadIdx.x / 32;
    r.exists = tile < p.queries && r.row < p.query[tile].rows;
    r.sums = ((int64_t)p.numbers[l.pairs + pair] * p.query_tiles + tile) * T + r.row;
    r.pair_base = pair * l.slab.blocks;
    r.entry = p.numbers + l.slab.query_entry + start[0];
    r.entries = start[1] - start[0];
    return r;
}

/* Row `row` of the part that an entry names, of matrices [side][wide] that lie side x most numbers apart; an entry is a
 * block and which of its rows or columns of tiles. */
struct part_row {
    int index, row; /* instance, row in its matrix */
};

__device__ part_row part_of(int pair_base, int entry, int edge, int row)
{
    return {pair_base + entry / edge, entry % edge * T + row};
}

__device__ const float4 *part_at(const float *parts, part_row at, int side, int most, int wide)
{
    return (const float4 *)(parts + (int64_t)at.index * side * most + (int64_t)at.row * wide);
}

__device__ void add_scaled(float4 &sum, float factor, float4 x)
{
    sum.x += factor * x.x;
    sum.y += factor * x.y;
    sum.z += factor * x.z;
    sum.w += factor * x.w;
}

/* Lanes take entries to find factors, then four channels each to add them up; what a lane loads does not wait for what it
 * loaded before. */
__global__ void merge(hra_device_plan p, hra_launch l, hra_scratch s)
{
    const shared_row r = row_of(p, l);
    const int lane = threadIdx.x % 32, edge = l.slab.edge, side = T * edge;
    const int most = p.wide > p.wide_v ? p.wide : p.wide_v;

    if (!r.exists)
        return;
    const float before = s.max[r.sums];
    float high = before;
    for (int e = lane; e < r.entries; e += 32) {
        const part_row at = part_of(r.pair_base, r.entry[e], edge, r.row);
        high = fmaxf(high, s.part_max[at.index * side + at.row]);
    }
    high = warp_max(high);
    /* Without a key so far nothing is kept; but scores that are NaN, over which maxima pass, have sums that are NaN. */
    const float keep = before == -INFINITY ? (high == -INFINITY ? 1 : 0) : expf(before - high);
    float total = 0;
    float4 *out = (float4 *)(s.sums + r.sums * p.wide_v), sum[2];
    for (int c = 0; c < 2; c++) {
        const bool mine = 4 * (32 * c + lane) < p.wide_v;
        sum[c] = mine ? out[32 * c + lane] : float4{0, 0, 0, 0};
        sum[c] = {keep * sum[c].x, keep * sum[c].y, keep * sum[c].z, keep * sum[c].w};
    }
    for (int first = 0; first < r.entries; first += 32) {
        const int mine = first + lane, count = r.entries - first < 32 ? r.entries - first : 32;
        part_row at = {0, 0};
        float factor = 0;
        if (mine < r.entries) {
            at = part_of(r.pair_base, r.entry[mine], edge, r.row);
            const float part_high = s.part_max[at.index * side + at.row];
            factor = part_high == -INFINITY ? (high == -INFINITY ? 1 : 0) : expf(part_high - high);
            total += factor * s.part_sum[at.index * side + at.row];
        }
#pragma unroll 4
        for (int e = 0; e < count; e++) {
            const part_row from = {__shfl_sync(~0u, at.index, e), __shfl_sync(~0u, at.row, e)};
            const float by = __shfl_sync(~0u, factor, e);
            const float4 *part = part_at(s.part_a, from, side, most, p.wide_v);
            for (int c = 0; c < 2; c++)
                if (by != 0 && high != -INFINITY && 4 * (32 * c + lane) < p.wide_v)
                    add_scaled(sum[c], by, part[32 * c + lane]);
        }
    }
    total = warp_sum(total) + keep * s.total[r.sums];
    for (int c = 0; c < 2; c++)
        if (4 * (32 * c + lane) < p.wide_v)
            out[32 * c + lane] = sum[c];
    __syncwarp();
    if (lane == 0) {
        s.max[r.sums] = high;
        s.total[r.sums] = total;
    }
}

__global__ void add_dq(hra_device_plan p, hra_launch l, hra_scratch s)
{
    const shared_row r = row_of(p, l);
    const int edge = l.slab.edge, side = T * edge;
    const int most = p.wide > p.wide_v ? p.wide : p.wide_v;

    if (!r.exists)
        return;
    float4 *out = (float4 *)(s.sums + r.sums * p.wide);
    for (int c = threadIdx.x % 32; 4 * c < p.wide; c += 32) {
        float4 sum = out[c];
#pragma unroll 4
        for (int e = 0; e < r.entries; e++)
            add_scaled(
                sum, 1,
                part_at(s.part_c, part_of(r.pair_base, r.entry[e], edge, r.row), side, most, p.wide)[c]);
        out[c] = sum;
    }
}

/* to[c] += sums of a part over the (batch, head) pairs of a launch that share a K/V head, and their entries. Only the first
 * `dim` channels are there; what is beyond them is padding. */
__device__ void add_parts(float *to, const float *parts, const hra_launch &l, const int *pairs, int first,
                          int group, const int *entry, int entries, int row, int most, int wide, int dim)
{
    const int edge = l.slab.edge, side = T * edge, owner = pairs[first] / group;

    for (int c = threadIdx.x % 32; 4 * c < dim; c += 32) {
        float4 sum = {0, 0, 0, 0};
        for (int i = first; i < l.count; i++) {
            if (pairs[i] / group != owner)
                continue;
#pragma unroll 4
            for (int e = 0; e < entries; e++)
                add_scaled(
                    sum, 1,
                    part_at(parts, part_of(i * l.slab.blocks, entry[e], edge, row), side, most, wide)[c]);
        }
        const float x[4] = {sum.x, sum.y, sum.z, sum.w};
        for (int i = 0; i < 4 && 4 * c + i < dim; i++)
            to[4 * c + i] += x[i];
    }
}

/* A block of threads adds for the first (batch, head) of the launch that has its K/V head, over all that share it. */
__global__ void add_dkv(hra_device_plan p, hra_launch l, hra_scratch s, hra_chunk chunk)
{
    const int which = blockIdx.x % l.slab.keys, pair = blockIdx.x / l.slab.keys;
    const int tile = p.numbers[l.slab.key + which], group = p.heads / p.heads_kv;
    const int *start = p.numbers + l.slab.key_start + which;
    const int *pairs = p.numbers + l.pairs, *entry = p.numbers + l.slab.key_entry + start[0];
    const int most = p.wide > p.wide_v ? p.wide : p.wide_v;
    const int row = blockIdx.y * WARPS + threadIdx.x / 32;

    if (chunk.key_tile0 + tile >= chunk.key_tile1 || row >= p.key[chunk.key_tile0 + tile].rows)
        return;
    for (int i = 0; i < pair; i++)
        if (pairs[i] / group == pairs[pair] / group)
            return;
    const int64_t at_row = p.key[chunk.key_tile0 + tile].row0 - p.key[chunk.key_tile0].row0 + row;
    const int b = pairs[pair] / p.heads, h = pairs[pair] % p.heads / group - chunk.head0;
    add_parts(at<float>(chunk.dk, b, at_row, h), s.part_b, l, pairs, pair, group, entry, start[1] - start[0],
              row, most, p.wide, p.dim);
    add_parts(at<float>(chunk.dv, b, at_row, h), s.part_a, l, pairs, pair, group, entry, start[1] - start[0],
              row, most, p.wide_v, p.dim_v);
}

/* ---- Beginning and end of sums ---- */

/* The rows of a query tile (blockIdx.x) of a (batch, head) that `run` begins or ends. */
__device__ bool ends_here(const hra_device_plan &p, const int *ends, int run, int tile, int h)
{
    return ends[h / (p.heads / p.heads_kv) * p.queries + tile] == run;
}

__global__ void begin(hra_device_plan p, hra_scratch s, const int *ends, int run, int query0, int wide)
{
    const int tile = query0 + blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const int64_t first = (((int64_t)b * p.heads + h) * p.query_tiles + tile) * T;

    if (!ends_here(p, ends, run, tile, h))
        return;
    for (int i = threadIdx.x; i < T * wide; i += THREADS)
        s.sums[first * wide + i] = 0;
    for (int r = threadIdx.x; r < T && s.max != nullptr; r += THREADS) {
        s.max[first + r] = -INFINITY;
        s.total[first + r] = 0;
    }
}

template <typename X>
__global__ void write(hra_device_plan p, hra_scratch s, const int *ends, int run, int query0, hra_tensor o,
                      float *lse)
{
    const int tile = query0 + blockIdx.x, h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x % 32;
    const int64_t pair = (int64_t)b * p.heads + h, first = (pair * p.query_tiles + tile) * T;

    if (!ends_here(p, ends, run, tile, h))
        return;
    const hra_tile_rows rows = p.query[tile];
    for (int r = threadIdx.x / 32; r < rows.rows; r += WARPS) {
        const float total = s.total[first + r];
        const float factor = total > 0 ? 1 / total : total; /* 0 without keys; a NaN goes through */
        X *out = at<X>(o, b, rows.row0 + r, h);
        for (int c = lane; c < p.dim_v; c += 32)
            out[c] = from_float<X>(factor * s.sums[(first + r) * p.wide_v + c]);
        if (lane == 0 && lse != nullptr)
            lse[pair * p.rows + rows.row0 + r] = (float)((double)s.max[first + r] + log((double)total));
    }
}

template <typename X>
__global__ void write_dq(hra_device_plan p, hra_scratch s, const int *ends, int run, int query0,
                         hra_tensor dq, float scale)
{
    const int tile = query0 + blockIdx.x, h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x % 32;
    const int64_t first = (((int64_t)b * p.heads + h) * p.query_tiles + tile) * T;

    if (!ends_here(p, ends, run, tile, h))
        return;
    const hra_tile_rows rows = p.query[tile];
    for (int r = threadIdx.x / 32; r < rows.rows; r += WARPS)
        for (int c = lane; c < p.dim; c += 32)
            at<X>(dq, b, rows.row0 + r, h)[c] = from_float<X>(scale * s.sums[(first + r) * p.wide + c]);
}

/* ---- The rest ---- */

/* A warp a row. */
template <typename X>
__global__ void delta(hra_device_plan p, hra_tensor o, hra_tensor do_, const float *dlse, float *out)
{
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x % 32;

    if (row >= p.rows)
        return;
    const X *x = at<X>(o, b, row, h), *g = at<X>(do_, b, row, h);
    const int64_t place = ((int64_t)b * p.heads + h) * p.rows + row;
    float sum = 0;
    for (int c = lane; c < p.dim_v; c += 32)
        sum += to_float(x[c]) * to_float(g[c]);
    sum = warp_sum(sum);
    if (lane == 0)
        out[place] = sum - (dlse != nullptr ? dlse[place] : 0);
}

/* Several rows that are copied or added in one launch; the blocks of the i-th begin at block0 of it. */
struct rows_list {
    struct {
        hra_tensor to, sums, from;
        int64_t rows;
        int heads, dim;
        float factor;
        unsigned block0;
    } part[HRA_ROWS_AT_ONCE];
    int count;
};
static_assert(sizeof(rows_list) <= 4096, "more than a kernel takes");

/* to = factor from, or factor (sums + from) where there are sums, or 0 where there is neither; WIDTH channels at a time. */
template <typename To, typename From, int WIDTH> __global__ void combine(const __grid_constant__ rows_list a)
{
    struct alignas(sizeof(From) * WIDTH) numbers {
        From x[WIDTH];
    };
    struct alignas(sizeof(To) * WIDTH) results {
        To x[WIDTH];
    };
    int i = 0;

    while (i + 1 < a.count && blockIdx.x >= a.part[i + 1].block0)
        i++;
    const auto &p = a.part[i];
    const int64_t row = (int64_t)(blockIdx.x - p.block0) * WARPS + threadIdx.x / 32;
    const int h = blockIdx.y, b = blockIdx.z;

    if (row >= p.rows || h >= p.heads)
        return;
    for (int c = threadIdx.x % 32 * WIDTH; c < p.dim; c += 32 * WIDTH) {
        results out = {};
        if (p.from.data != nullptr) {
            const numbers x = *(const numbers *)(at<From>(p.from, b, row, h) + c);
            if (p.sums.data != nullptr) {
                const numbers y = *(const numbers *)(at<From>(p.sums, b, row, h) + c);
#pragma unroll
                for (int n = 0; n < WIDTH; n++)
                    out.x[n] = from_float<To>(p.factor * (to_float(y.x[n]) + to_float(x.x[n])));
            } else {
#pragma unroll
                for (int n = 0; n < WIDTH; n++)
                    out.x[n] = from_float<To>(p.factor * to_float(x.x[n]));
            }
        }
        *(results *)(at<To>(p.to, b, row, h) + c) = out;
    }
}

/* Rows of `pieces` pieces of 16, or of smaller ones. */
template <typename Piece>
__global__ void reorder(char *whole, const int64_t *token, char *rows, int64_t whole_batch, int64_t whole_row,
                        int64_t whole_head, int64_t rows_batch, int64_t rows_row, int64_t rows_head,
                        int64_t count, int heads, int pieces, int gather_rows)
{
    const int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x, b = blockIdx.z;
    const int64_t row = index / (heads * pieces);
    const int h = (int)(index / pieces % heads), c = (int)(index % pieces);

    if (row >= count)
        return;
    Piece *there = (Piece *)(whole + b * whole_batch + token[row] * whole_row + h * whole_head) + c;
    Piece *here = (Piece *)(rows + b * rows_batch + row * rows_row + h * rows_head) + c;
    if (gather_rows)
        *here = *there;
    else
        *there = *here;
}

dim3 grid_of_rows(int64_t rows, int heads, int batch)
{
    return dim3((unsigned)((rows + WARPS - 1) / WARPS), (unsigned)heads, (unsigned)batch);
}

/* Rows that are to be combined; no more than HRA_ROWS_AT_ONCE. */
template <typename To, typename From>
void launch_rows(int batch, const hra_rows *rows, int count, cudaStream_t stream)
{
    rows_list a = {};
    dim3 grid(0, 0, (unsigned)batch);
    bool wide = true;

    for (int i = 0; i < count; i++) {
        const dim3 own = grid_of_rows(rows[i].rows, rows[i].heads, batch);
        if (rows[i].rows == 0)
            continue;
        a.part[a.count++] = {rows[i].to,    rows[i].sums, rows[i].from,          rows[i].rows,
                             rows[i].heads, rows[i].dim,  (float)rows[i].factor, grid.x};
        grid.x += own.x;
        grid.y = own.y > grid.y ? own.y : grid.y;
        wide = wide && rows[i].dim % 4 == 0;
    }
    if (a.count == 0)
        return;
    if (wide)
        combine<To, From, 4><<<grid, THREADS, 0, stream>>>(a);
    else
        combine<To, From, 1><<<grid, THREADS, 0, stream>>>(a);
}

/* launch<X>(...) for the type of a plan. */
template <typename Run> cudaError_t for_type(hra_type type, Run run)
{
    switch (type) {
    case HRA_F32:
        run(float{});
        break;
    case HRA_BF16:
        run(__nv_bfloat16{});
        break;
    case HRA_F16:
        run(__half{});
        break;
    default:
        return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

} // namespace

extern "C" cudaError_t hra_hybrid_gather(void *out, int out_heads, const hra_device_plan *plan,
                                         const hra_tile_rows *tile_rows, int tile0, int tiles, int padded,
                                         const hra_tensor *from, int64_t row_base, int heads, int dim,
                                         int wide, cudaStream_t stream)
{
    const dim3 grid((unsigned)padded, (unsigned)heads, (unsigned)plan->batch);
    return for_type(plan->type, [&](auto x) {
        using X = decltype(x);
        gather<X><<<grid, THREADS, 0, stream>>>((X *)out, out_heads, tile_rows, tile0, tiles, padded, *from,
                                                row_base, dim, wide);
    });
}

extern "C" cudaError_t hra_hybrid_point(const hra_device_plan *plan, const hra_launch *launch,
                                        const hra_scratch *scratch, cudaStream_t stream)
{
    const int count = launch->slab.blocks * launch->count;
    return for_type(plan->type, [&](auto x) {
        point<decltype(x)><<<(count + THREADS - 1) / THREADS, THREADS, 0, stream>>>(*plan, *launch, *scratch);
    });
}

extern "C" cudaError_t hra_hybrid_softmax(const hra_device_plan *plan, const hra_launch *launch,
                                          const hra_scratch *scratch, cudaStream_t stream)
{
    const int edge = launch->slab.edge;
    const dim3 grid((unsigned)(launch->slab.blocks * launch->count), (unsigned)(T * edge / WARPS));
    return for_type(plan->type, [&](auto x) {
        using X = decltype(x);
        if (edge == 4)
            softmax<X, 4><<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch);
        else if (edge == 2)
            softmax<X, 2><<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch);
        else
            softmax<X, 1><<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch);
    });
}

extern "C" cudaError_t hra_hybrid_gradient(const hra_device_plan *plan, const hra_launch *launch,
                                           const hra_scratch *scratch, const float *lse, cudaStream_t stream)
{
    const int edge = launch->slab.edge;
    const dim3 grid((unsigned)(launch->slab.blocks * launch->count), (unsigned)(T * edge / WARPS));
    return for_type(plan->type, [&](auto x) {
        using X = decltype(x);
        if (edge == 4)
            gradient<X, 4><<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch, lse);
        else if (edge == 2)
            gradient<X, 2><<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch, lse);
        else
            gradient<X, 1><<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch, lse);
    });
}

extern "C" cudaError_t hra_hybrid_merge(const hra_device_plan *plan, const hra_launch *launch,
                                        const hra_scratch *scratch, cudaStream_t stream)
{
    const dim3 grid((unsigned)(launch->slab.queries * launch->count), T / WARPS);
    merge<<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch);
    return cudaGetLastError();
}

extern "C" cudaError_t hra_hybrid_add_dq(const hra_device_plan *plan, const hra_launch *launch,
                                         const hra_scratch *scratch, cudaStream_t stream)
{
    const dim3 grid((unsigned)(launch->slab.queries * launch->count), T / WARPS);
    add_dq<<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch);
    return cudaGetLastError();
}

extern "C" cudaError_t hra_hybrid_add_dkv(const hra_device_plan *plan, const hra_launch *launch,
                                          const hra_scratch *scratch, const hra_chunk *chunk,
                                          cudaStream_t stream)
{
    const dim3 grid((unsigned)(launch->slab.keys * launch->count), T / WARPS);
    add_dkv<<<grid, THREADS, 0, stream>>>(*plan, *launch, *scratch, *chunk);
    return cudaGetLastError();
}

extern "C" cudaError_t hra_hybrid_begin(const hra_device_plan *plan, const hra_scratch *scratch,
                                        const int *ends, int run, int query0, int query1, int wide,
                                        cudaStream_t stream)
{
    if (query0 == query1)
        return cudaSuccess;
    const dim3 grid((unsigned)(query1 - query0), (unsigned)plan->heads, (unsigned)plan->batch);
    begin<<<grid, THREADS, 0, stream>>>(*plan, *scratch, ends, run, query0, wide);
    return cudaGetLastError();
}

extern "C" cudaError_t hra_hybrid_write(const hra_device_plan *plan, const hra_scratch *scratch,
                                        const int *ends, int run, int query0, int query1, const hra_tensor *o,
                                        float *lse, cudaStream_t stream)
{
    if (query0 == query1)
        return cudaSuccess;
    const dim3 grid((unsigned)(query1 - query0), (unsigned)plan->heads, (unsigned)plan->batch);
    return for_type(plan->type, [&](auto x) {
        write<decltype(x)><<<grid, THREADS, 0, stream>>>(*plan, *scratch, ends, run, query0, *o, lse);
    });
}

extern "C" cudaError_t hra_hybrid_write_dq(const hra_device_plan *plan, const hra_scratch *scratch,
                                           const int *ends, int run, int query0, int query1,
                                           const hra_tensor *dq, double scale, cudaStream_t stream)
{
    if (query0 == query1)
        return cudaSuccess;
    const dim3 grid((unsigned)(query1 - query0), (unsigned)plan->heads, (unsigned)plan->batch);
    return for_type(plan->type, [&](auto x) {
        write_dq<decltype(x)>
            <<<grid, THREADS, 0, stream>>>(*plan, *scratch, ends, run, query0, *dq, (float)scale);
    });
}

extern "C" cudaError_t hra_hybrid_delta(const hra_device_plan *plan, const hra_tensor *o,
                                        const hra_tensor *do_, const float *dlse, float *out,
                                        cudaStream_t stream)
{
    return for_type(plan->type, [&](auto x) {
        delta<decltype(x)><<<grid_of_rows(plan->rows, plan->heads, plan->batch), THREADS, 0, stream>>>(
            *plan, *o, *do_, dlse, out);
    });
}

extern "C" cudaError_t hra_hybrid_combine(int batch, const hra_rows *rows, int count, hra_type to_type,
                                          hra_type from_type, cudaStream_t stream)
{
    return for_type(to_type, [&](auto x) {
        using X = decltype(x);
        if (from_type == to_type)
            launch_rows<X, X>(batch, rows, count, stream);
        else
            launch_rows<X, float>(batch, rows, count, stream);
    });
}

extern "C" cudaError_t hra_hybrid_reorder(int batch, hra_direction direction, hra_type type,
                                          const hra_tensor *whole, const hra_tensor *rows,
                                          const int64_t *token, int64_t count, int heads, int dim,
                                          cudaStream_t stream)
{
    const int64_t bytes = (int64_t)hra_type_bytes(type), row = dim * bytes;
    const int piece = row % 16 == 0 ? 16 : row % 4 == 0 ? 4 : 2;
    const int64_t threads = count * heads * (row / piece);
    const dim3 grid((unsigned)((threads + THREADS - 1) / THREADS), 1, (unsigned)batch);
    const hra_tensor w = *whole, r = *rows;
    auto launch = [&](auto x) {
        reorder<decltype(x)><<<grid, THREADS, 0, stream>>>(
            (char *)w.data, token, (char *)r.data, w.stride_batch * bytes, w.stride_row * bytes,
            w.stride_head * bytes, r.stride_batch * bytes, r.stride_row * bytes, r.stride_head * bytes, count,
            heads, (int)(row / piece), direction == HRA_GATHER);
    };

    if (threads == 0)
        return cudaSuccess;
    if (piece == 16)
        launch(uint4{});
    else if (piece == 4)
        launch(uint32_t{});
    else
        launch(uint16_t{});
    return cudaGetLastError();
}

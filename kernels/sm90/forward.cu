/* forward.cu - see forward.h. Attention forward over lists of key tiles, for sm_90a.
 *
 * Scores are kept in units of log 2: t = scale log2(e) q.k. Per row of queries and tile of keys, with the
 * reference m, the largest t so far:
 *     m' = max(m, max t)    p = 2^(t - m')    l = l 2^(m - m') + sum p    O = O 2^(m - m') + p V
 * The first m is -FLT_MAX instead of -inf: no difference below is then one of infinities of the same sign,
 * unless a t is +inf, and nothing is tested. It serves
 *     masked scores, -inf      p = 2^(-inf - m') = 0, also where m' is still -FLT_MAX
 *     a first key              the factor is 2^(-FLT_MAX - m') = 0, of l and O that are 0
 *     rows without keys        m stays, the factor is 1, l and O stay 0; the log-sum is m + log 0 = -inf
 *     items that resume        from the m that was kept, -FLT_MAX where there was no key before
 *     NaN, and q.k of +inf     p is NaN, and so are l and O of that row from then on, whatever its m
 * A t below -FLT_MAX is -inf in f32 anyway. Each thread keeps the sum of its own columns; the four of a row
 * are added when the item ends. So the order of all sums is that of the list.
 *
 * Grid     one block a multiprocessor, each takes items from the list until none is left
 * Block    1 + G warpgroups
 *   0      one thread copies Q and tiles of K and V into shared memory; three warps write the outputs of items
 *          without keys, if the launch has any, which takes memory's time and not that of the consumers
 *   1 .. G consumers, 64 query rows each: G = 2 with their Q in registers, or G = 3 with Q in shared memory,
 *          since they have 160 registers instead of 240
 * Tile     128 key rows, D = 64 or 128 channels
 *
 * With 64 channels no unit is busy half of the time: three groups compute a tenth more than two. Their items
 * are halves of two neighbouring query tiles, whose lists are joined; a tile that only one of the two has is
 * masked for the other, and a group without rows computes with the others and writes nothing.
 *
 * Lists of halves of key tiles have a kernel of their own, attend_packed; what is said here of tiles holds there of
 * steps, but for the ring and for its producer, a warp.
 *
 * The list of all tiles of all items of a block is one pipeline. Its step g issues S(g) = Q K(g)^T and then
 * O += P(g - 1) V(g - 1), and while the second runs computes P(g); at the first tile of an item, the second
 * product is the last one of the item before, whose outputs are written while the other warpgroup's
 * products run. What a consumer computes takes longer than its own products, so all that is not its chain
 * from one S to the next is kept off it: Q is no longer read from shared memory, maxima are taken three at a
 * time in several chains; a tile has a sum of its own, so that the factors may come after its first
 * exponentials; O is scaled and P packed while exponentials still run. O is scaled always: where all factors
 * are 1 that costs less than to find out.
 *
 * Shared memory                         D, G = 128, 2     64, 2     64, 3
 *   ring  [SLOTS][D / 64][128][64]          6 * 32768 13 * 16384 11 * 16384  K(0) K(1) V(0) K(2) V(1) ...
 *   queries  [BUFFERS][G][D / 64][64][64]       32768      16384  2 * 24576
 *   items, barriers, tiles                                                   limit 232448 with 1023 for alignment
 * The first K of an item lies before the last V of the item before. Q in registers is wanted for a moment; Q in
 * shared memory until the item's last S, so the next one has another buffer.
 *
 * Barriers             arrivals                              waited on by      first wait
 *   full[slot]         1, plus the bytes of the tile         all consumers     parity 0
 *   empty[slot]        4 G, a lane of each consumer warp     the producer      parity 1: passes at once
 *                      when its products have read the slot
 *   full_q, empty_q    the same of the buffers for Q
 *
 * Nobody waits in a circle: the producer fills slots and buffers in the order in which consumers wait for them,
 * each when its last use is over, and consumers end that use before they wait for what comes after it; so
 * any number of slots from 2 on will do. */
#include "kernels/sm90/forward.h"

#include "kernels/sm90/ptx.h"
#include "kernels/sm90/rows.h"

#include <cfloat>
#include <cstddef>

namespace
{

constexpr int T = HRA_TILE, HALF = T / 2;
constexpr int ITEMS = 8; /* one is read until the third after it has come */
constexpr float NOTHING = -INFINITY;

/* What stands with a slot of the ring: the bitmap as in hra_sm90_entry, FIRST for the first K of an item, END
 * for the V of the last tile of all. */
constexpr uint32_t TILE_BITMAP = (UINT32_C(1) << HRA_SM90_CHUNK_BIT) - 1;
constexpr uint32_t TILE_FIRST = UINT32_C(1) << 31, TILE_END = UINT32_C(1) << 30;

/* Registers of a block: 128 (40 + 2 * 232) = 64512 of 65536; of three groups 128 (32 + 3 * 160) = 65536. */
template <int G> constexpr int PRODUCER_REGISTERS = G == 2 ? 40 : 32;
template <int G> constexpr int CONSUMER_REGISTERS = G == 2 ? 232 : 160;
template <int G> constexpr int THREADS = 128 * (1 + G);

template <int D, int G> struct alignas(1024) shared {
    static constexpr int SLOTS = D == 128 ? 6 : G == 2 ? 13 : 11;
    static constexpr int BUFFERS = G == 2 ? 1 : 2;
    static constexpr uint32_t TILE_BYTES = T * D * 2, HALF_BYTES = HALF * D * 2;

    uint16_t ring[SLOTS][D / 64][T][64];
    uint16_t queries[BUFFERS][G][D / 64][HALF][64];
    hra_sm90_item item[ITEMS];
    uint64_t full[SLOTS], empty[SLOTS], full_q[BUFFERS], empty_q[BUFFERS];
    uint32_t tile[SLOTS], second[SLOTS];
};

/* The block's dynamic shared memory begins anywhere. */
template <int D, int G> constexpr size_t SHARED_BYTES = sizeof(shared<D, G>) + 1023;
template <int D, int G> constexpr bool is_as_above()
{
    using memory = shared<D, G>;
    return offsetof(memory, item) == 229376 && SHARED_BYTES<D, G> <= 232448;
}
static_assert(is_as_above<128, 2>() && is_as_above<64, 2>() && is_as_above<64, 3>(), "the table is stale");

/* A slot of the ring, and the parity of its present use. */
template <int D, int G> struct cursor {
    int slot = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ cursor next() const
    {
        const bool wraps = slot + 1 == shared<D, G>::SLOTS;
        return {wraps ? 0 : slot + 1, parity ^ (uint32_t)wraps};
    }
};

/* The buffer for the Q of an item, and the parity of its present use. */
template <int D, int G> __device__ __forceinline__ int buffer_of(uint32_t turn)
{
    return turn % shared<D, G>::BUFFERS;
}

template <int D, int G> __device__ __forceinline__ uint32_t parity_of(uint32_t turn)
{
    return turn / shared<D, G>::BUFFERS % 2;
}

/* What a consumer's thread has of an item: a place among the HRA_SM90_CONSUMERS of one of its tiles. */
struct spot {
    int tile, place;
};

/* group is the same for all lanes, and ptxas knows it: what depends on it need not diverge. */
template <int G> __device__ __forceinline__ spot spot_of(const hra_sm90_item &item, int group, int thread)
{
    if (G == 2)
        return {0, thread};
    const int half = item.half0 + group;
    return {half / 2, half % 2 * 128 + thread % 128};
}

/* ---- The producer ---- */

/* Begin to copy 64 channels of a box of rows. at: as in entries. */
template <bool BOXES>
__device__ __forceinline__ void load_piece(const hra_sm90_forward &a, uint32_t to, const CUtensorMap *map,
                                           uint32_t barrier, uint32_t at, int chunk, int head, int batch)
{
    const hra_sm90_grid &g = a.grid;

    if (!BOXES)
        load_box_at(to, map, barrier, 0, (int)at, chunk, head, batch);
    else if (g.axes == 2)
        load_box_at(to, map, barrier, 64 * chunk, (int)(at & g.mask[0]), (int)(at >> g.shift[0]), head,
                    batch);
    else
        load_box_at(to, map, barrier, 64 * chunk, (int)(at & g.mask[0]), (int)(at >> g.shift[0] & g.mask[1]),
                    (int)(at >> g.shift[1]), head);
}

/* Begin to copy half `i` of an item's Q, of whose tile it is a half. */
template <int D, bool BOXES>
__device__ __forceinline__ void load_half(const hra_sm90_forward &a, const uint16_t *to, uint32_t barrier,
                                          const hra_sm90_item &item, int i, int row)
{
    if (!BOXES) {
        load_box(shared_address(to), &a.q, barrier, row, item.head, item.batch);
        return;
    }
#pragma unroll
    for (int chunk = 0; chunk < D / 64; chunk++)
        load_piece<BOXES>(a, shared_address(to) + chunk * HALF * 128, &a.q, barrier, item.at[i], chunk,
                          item.head, item.batch);
}

/* Copy the K or V, whose maps these are, of one of an item's tiles into the next slot of the ring. */
template <int D, int G, bool BOXES>
__device__ __forceinline__ void fill_keys(shared<D, G> &s, cursor<D, G> &at, const hra_sm90_forward &a,
                                          const CUtensorMap *map, const hra_sm90_item &item, uint32_t number,
                                          uint32_t flags)
{
    const hra_sm90_entry entry = a.entry[item.entry0 + number];
    const int chunk = entry.tile >> HRA_SM90_CHUNK_BIT;
    const uint32_t full = shared_address(&s.full[at.slot]);

    barrier_wait(shared_address(&s.empty[at.slot]), at.parity ^ 1);
    s.tile[at.slot] = (entry.tile & TILE_BITMAP) | flags;
    if (G == 3)
        s.second[at.slot] = a.second[item.entry0 + number];
    barrier_expect(full, shared<D, G>::TILE_BYTES);
    if constexpr (!BOXES)
        load_box(shared_address(s.ring[at.slot]), &map[chunk], full, entry.row, item.head_kv - a.head0[chunk],
                 item.batch);
    else
#pragma unroll
        for (int i = 0; i < D / 64; i++)
            load_piece<BOXES>(a, shared_address(s.ring[at.slot][i]), &map[chunk], full, entry.row, i,
                              item.head_kv - a.head0[chunk], item.batch);
    at = at.next();
}

/* Copy the Q of an item, those halves that have rows. */
template <int D, int G, bool BOXES>
__device__ __forceinline__ void fill_queries(shared<D, G> &s, const hra_sm90_forward &a,
                                             const hra_sm90_item &item, uint32_t turn)
{
    const int buffer = buffer_of<D, G>(turn);
    const uint32_t full = shared_address(&s.full_q[buffer]);
    uint32_t halves = 0;

    for (int i = 0; i < G; i++)
        halves += (item.half0 + i) % 2 * HALF < item.rows[(item.half0 + i) / 2];
    barrier_expect(full, halves * shared<D, G>::HALF_BYTES);
    for (int i = 0; i < G; i++) {
        const int tile = (item.half0 + i) / 2, row = (item.half0 + i) % 2 * HALF;
        if (row < item.rows[tile])
            load_half<D, BOXES>(a, &s.queries[buffer][i][0][0][0], full, item, i, item.row0[tile] + row);
    }
}

/* Consumers end an item when they have begun the next one, but one that waits for other items may not begin before what those
 * wait for has ended. So behind a first part it has a tile put before it that nobody has rows of. before: flags of the item
 * before; true: that is what `item` is now. */
__device__ __forceinline__ bool separate(hra_sm90_item &item, uint32_t before)
{
    if (!(before & HRA_SM90_TELLS) || !(item.flags[0] & HRA_SM90_WAITS))
        return false;
    item.rows[0] = item.rows[1] = 0;
    item.flags[0] = item.flags[1] = HRA_SM90_BEGINS | HRA_SM90_ENDS;
    item.entries = 1;
    return true;
}

/* Everything is read where it is needed, from the caches: there are few registers. */
template <int D, int G, bool BOXES> __device__ void produce(const hra_sm90_forward &a, shared<D, G> &s)
{
    cursor<D, G> at;
    uint32_t turn = 0, flags = 0;

    prefetch_map(&a.q);
    prefetch_map(&a.k[0]);
    prefetch_map(&a.v[0]);
    for (int index = blockIdx.x; index < a.items; turn++) {
        hra_sm90_item &item = s.item[turn % ITEMS];

        barrier_wait(shared_address(&s.empty_q[buffer_of<D, G>(turn)]), parity_of<D, G>(turn) ^ 1);
        item = a.item[index];
        const bool separates = separate(item, flags);
        flags = item.flags[0];
        fill_queries<D, G, BOXES>(s, a, item, turn);
        for (uint32_t n = 0; n < item.entries; n++) {
            fill_keys<D, G, BOXES>(s, at, a, a.k, item, n, n == 0 ? TILE_FIRST : 0);
            const hra_sm90_item &of = s.item[(n > 0 ? turn : turn - 1) % ITEMS]; /* the V that is next */
            if (n > 0 || turn > 0)
                fill_keys<D, G, BOXES>(s, at, a, a.v, of, (n > 0 ? n : of.entries) - 1, 0);
        }
        if (!separates)
            index = gridDim.x + atomicAdd(a.next, 1);
    }
    const hra_sm90_item &item = s.item[(turn - 1) % ITEMS];
    fill_keys<D, G, BOXES>(s, at, a, a.v, item, item.entries - 1, TILE_END);
}

/* ---- The consumers ---- */

/* What a thread knows of its two rows. */
struct rows_state {
    float high[2]; /* the reference, log 2; never below -FLT_MAX */
    float sum[2];  /* of this thread's columns */
};

/* The 64 rows of a consumer, which have come. */
template <int D> __device__ __forceinline__ void load_queries(uint32_t (&q)[D / 4], uint32_t half, int thread)
{
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        load_fragment(q + 4 * step, fragment_piece(half, HALF, thread / 32 % 4 * 16, step, thread % 32));
}

/* Of each load's numbers one. */
template <int COUNT> __device__ __forceinline__ uint32_t last_of(const uint32_t (&q)[COUNT])
{
    uint32_t all = 0;

#pragma unroll
    for (int i = 3; i < COUNT; i += 4)
        all |= q[i];
    return all;
}

/* S = Q K^T is under way. ROWS are those of K's chunks of 64 channels in shared memory. */
template <typename X, int D, int ROWS = T>
__device__ __forceinline__ void begin_scores(float (&scores)[64], uint32_t (&q)[D / 4], uint32_t k_address)
{
    constexpr int CHUNK = ROWS * 128 / 16; /* from 64 channels to the next, in units of descriptors */
    const uint64_t k = matrix_by_columns(k_address);

    pin(scores);
    pin(q);
    products_begin();
    multiply_transposed<X, 0>(scores, q, k);
#pragma unroll
    for (int step = 1; step < D / 16; step++)
        multiply_transposed<X, 1>(scores, q + 4 * step, k + step / 4 * CHUNK + step % 4 * 2);
    products_commit();
}

/* The same of a Q in shared memory, of 64 channels. */
template <typename X>
__device__ __forceinline__ void begin_scores(float (&scores)[64], uint64_t q, uint32_t k_address)
{
    const uint64_t k = matrix_by_columns(k_address);

    pin(scores);
    products_begin();
    multiply_shared<X, 0>(scores, q, k);
#pragma unroll
    for (int step = 1; step < 64 / 16; step++)
        multiply_shared<X, 1>(scores, q + step * 2, k + step * 2);
    products_commit();
}

/* O += P V is under way. */
template <typename X, int D, int ROWS = T>
__device__ __forceinline__ void begin_output(float (&out)[D / 2], uint32_t (&p)[32], uint32_t v_address)
{
    const uint64_t v = matrix_by_rows(v_address, ROWS);

    pin(out);
    pin(p);
    products_begin();
#pragma unroll
    for (int step = 0; step < T / 16; step++)
        multiply_registers<X>(out, p + 4 * step, v + step * 128);
    products_commit();
}

/* This thread's bits of a tile that is not full. */
template <int G>
__device__ __forceinline__ uint2 load_bits(const hra_sm90_forward &a, uint32_t tile, int place)
{
    if (G == 3 && (tile & TILE_BITMAP) == HRA_SM90_ABSENT)
        return {0, 0};
    return ((const uint2 *)a.bits[(tile & TILE_BITMAP) - 1].word)[place];
}

/* -inf where no bit is. Word by word, ptxas moves seven bits at once to predicates (R2P); with the words in
 * turns it tests each bit, 132 instructions instead of 80. */
__device__ __forceinline__ void apply_bits(float (&scores)[64], uint2 bits)
{
    const uint32_t word[2] = {bits.x, bits.y};

#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float &x = scores[(16 * h + i % 16) / 2 * 4 + i / 16 * 2 + i % 2];
            x = word[h] >> i & 1 ? x : NOTHING;
        }
}

/* The largest x of the four threads of a row. */
__device__ __forceinline__ float row_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float row_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* The largest score of each of a thread's rows, over all columns of the row. */
__device__ __forceinline__ void row_maxima(float (&high)[2], const float (&scores)[64])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        high[r] = NOTHING;
#pragma unroll
        for (int j = 0; j < 16; j++)
            high[r] = fmaxf(high[r], fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]));
        high[r] = row_max(high[r]);
    }
}

/* The same by integers, of which an instruction takes three, in four chains. The bits of numbers have the
 * numbers' order where one of them is positive. Where none is, the answer is some negative number, or -0,
 * which raises no reference that is 0 or more. */
__device__ __forceinline__ void guess_maxima(float (&high)[2], const float (&scores)[64])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int top[4];
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const int x = __float_as_int(scores[4 * j + 2 * r]),
                      y = __float_as_int(scores[4 * j + 2 * r + 1]);
            top[j % 4] = j < 4 ? max(x, y) : max(max(top[j % 4], x), y);
        }
        int all = max(max(max(top[0], top[1]), top[2]), top[3]);
        all = max(all, __shfl_xor_sync(~0u, all, 1));
        all = max(all, __shfl_xor_sync(~0u, all, 2));
        high[r] = __int_as_float(all);
    }
}

/* Has a row of the warp a reference below 0? Only then need maxima be exact. References do not fall, so that
 * within an item a no is final. */
__device__ __forceinline__ bool find_low(const rows_state &rows)
{
    return __any_sync(~0u, rows.high[0] < 0 || rows.high[1] < 0);
}

/* Raise the references to the largest scores. gap: the old less the new; low: as find_low says, before and
 * after. Maxima pass over NaN; sums do not. */
__device__ __forceinline__ void raise_references(rows_state &rows, float (&gap)[2], bool &low,
                                                 const float (&scores)[64], float scale)
{
    float high[2];

    if (low)
        row_maxima(high, scores);
    else
        guess_maxima(high, scores);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float top = fmaxf(rows.high[r], high[r] * scale);
        gap[r] = rows.high[r] - top;
        rows.high[r] = top;
    }
    if (low)
        low = find_low(rows);
}

/* Scores, from eight columns to others, become probabilities times the row's sum. part: the sums of the tile
 * so far, which begin with column 0. */
template <int FROM, int TO>
__device__ __forceinline__ void exponentiate(float (&scores)[64], float (&part)[2], const rows_state &rows,
                                             float scale)
{
#pragma unroll
    for (int j = FROM; j < TO; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float *const x = scores + 4 * j + 2 * r;
            x[0] = exp2_fast(fmaf(x[0], scale, -rows.high[r]));
            x[1] = exp2_fast(fmaf(x[1], scale, -rows.high[r]));
            part[r] = j == 0 ? x[0] + x[1] : part[r] + (x[0] + x[1]);
        }
}

__device__ __forceinline__ void find_factors(float (&factor)[2], const float (&gap)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++)
        factor[r] = exp2_fast(gap[r]);
}

/* Add a tile's sums. The product is rounded on its own: fused with what is added in one copy of this code and
 * not in the other, it would give other bits. */
__device__ __forceinline__ void add_sums(rows_state &rows, const float (&factor)[2], const float (&part)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++)
        rows.sum[r] = __fmul_rn(rows.sum[r], factor[r]) + part[r];
}

template <typename X>
__device__ __forceinline__ void pack_probabilities(uint32_t (&p)[32], const float (&scores)[64])
{
#pragma unroll
    for (int i = 0; i < 32; i++)
        p[i] = pack_pair<X>(scores[2 * i], scores[2 * i + 1]);
}

template <int COUNT>
__device__ __forceinline__ void multiply_rows(float (&out)[COUNT], const float (&factor)[2])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        out[i] *= factor[i / 2 % 2];
}

/* ---- Where items begin and end ---- */

/* This thread's part of the state of a tile: [D / 8 + 1][256] float4, O and then references and sums. */
template <int D>
__device__ __forceinline__ float4 *state_of(const hra_sm90_forward &a, const hra_sm90_item &item, spot at)
{
    return (float4 *)a.state + (size_t)(item.state + at.tile) * (D / 8 + 1) * HRA_SM90_CONSUMERS + at.place;
}

template <int D, int G>
__device__ __forceinline__ rows_state begin_rows(const hra_sm90_forward &a, const hra_sm90_item &item,
                                                 spot at)
{
    if (item.flags[at.tile] & HRA_SM90_BEGINS)
        return {{-FLT_MAX, -FLT_MAX}, {0, 0}};
    if (item.flags[0] & HRA_SM90_WAITS) /* who takes a first part, which stands before, waits for nobody */
        while (load_acquire(&a.told[item.cut]) < 4 * G)
            ;
    const float4 x = state_of<D>(a, item, at)[D / 8 * HRA_SM90_CONSUMERS];
    return {{x.x, x.y}, {x.z, x.w}};
}

template <int D>
__device__ __forceinline__ void begin_sums(float (&out)[D / 2], const hra_sm90_forward &a,
                                           const hra_sm90_item &item, spot at)
{
    if (item.flags[at.tile] & HRA_SM90_BEGINS) {
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            out[i] = 0;
        return;
    }
    load_sums<HRA_SM90_CONSUMERS>(out, state_of<D>(a, item, at));
}

template <int D>
__device__ __forceinline__ void keep_state(const float (&out)[D / 2], const rows_state &rows,
                                           const hra_sm90_forward &a, const hra_sm90_item &item, spot at)
{
    float4 *state = state_of<D>(a, item, at);

    leave_sums<HRA_SM90_CONSUMERS>(out, state);
    state[D / 8 * HRA_SM90_CONSUMERS] = {rows.high[0], rows.high[1], rows.sum[0], rows.sum[1]};
}

/* Where outputs of a row of the plan go. */
__device__ __forceinline__ int32_t output_row(const hra_sm90_forward &a, int32_t row)
{
    return a.token == nullptr ? row : a.token[row];
}

/* Where this thread's two rows go. To be asked for some time before it is needed. */
struct targets {
    int32_t row[2];
};

__device__ __forceinline__ targets find_targets(const hra_sm90_forward &a, const hra_sm90_item &item, spot at)
{
    targets to;

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = at.place / 32 * 16 + at.place % 32 / 4 + 8 * r;
        to.row[r] = row < item.rows[at.tile] ? output_row(a, item.row0[at.tile] + row) : -1;
    }
    return to;
}

/* Write the rows of an item that exist: O / sum, in pieces of 16 bytes, and the log-sum. */
template <typename X, int D>
__device__ __forceinline__ void write_rows(const float (&out)[D / 2], const rows_state &rows,
                                           const hra_sm90_forward &a, const hra_sm90_item &item, targets to,
                                           spot at)
{
    const int lane = at.place % 32, quarter = lane % 4;

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t own = to.row[r];
        const bool exists = own >= 0;
        const float sum = row_sum(rows.sum[r]);
        const float factor = sum > 0 ? 1 / sum : sum; /* 0 without keys; a NaN goes through */
        X *out_row = (X *)a.o.data + item.batch * a.o.stride_batch + item.head * a.o.stride_head +
                     own * a.o.stride_row + 8 * quarter;

#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            uint32_t x[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *pair = out + 16 * i + 4 * j + 2 * r;
                x[j] = pack_pair<X>(pair[0] * factor, pair[1] * factor);
            }
            gather_block(x, lane);
            if (exists)
                *(uint4 *)(out_row + 32 * i) = {x[0], x[1], x[2], x[3]};
        }
        if (exists && quarter == 0 && a.lse != nullptr)
            a.lse[((int64_t)item.batch * a.heads + item.head) * a.rows + own] =
                (float)fma((double)rows.high[r], 0.69314718055994531, (double)logf(sum));
    }
}

template <typename X, int D>
__device__ __forceinline__ void end_item(const float (&out)[D / 2], const rows_state &rows,
                                         const hra_sm90_forward &a, const hra_sm90_item &item, targets to,
                                         spot at)
{
    if (item.flags[at.tile] & HRA_SM90_ENDS)
        write_rows<X, D>(out, rows, a, item, to, at);
    else
        keep_state<D>(out, rows, a, item, at);
    if (item.flags[0] & HRA_SM90_TELLS) {
        __syncwarp();
        if (at.place % 32 == 0)
            add_release(&a.told[item.cut], 1);
    }
}

/* Outputs of this block's items without keys, by `threads` of its threads, 16 bytes of a row at a time. */
__device__ __forceinline__ void write_nothing(const hra_sm90_forward &a, int dim, int thread, int threads)
{
    const int pieces = dim / 8;

    for (int n = blockIdx.x; n < a.nothings; n += gridDim.x) {
        const hra_sm90_item &item = a.nothing[n];
        uint16_t *const to =
            (uint16_t *)a.o.data + item.batch * a.o.stride_batch + item.head * a.o.stride_head;
        const int64_t first = ((int64_t)item.batch * a.heads + item.head) * a.rows;

#pragma unroll 1
        for (int i = thread; i < item.rows[0] * pieces; i += threads)
            *(uint4 *)(to + output_row(a, item.row0[0] + i / pieces) * a.o.stride_row +
                       i % pieces * 8) = {0, 0, 0, 0};
#pragma unroll 1
        for (int i = thread; i < item.rows[0] && a.lse != nullptr; i += threads)
            a.lse[first + output_row(a, item.row0[0] + i)] = NOTHING;
    }
}

/* ---- The pipeline ---- */

/* What a consumer has of the Q of its item: registers, or where it lies. */
template <int D, int G> struct own_queries {
    uint32_t piece[D / 4];
};

template <int D> struct own_queries<D, 3> {
    uint64_t matrix;
};

template <typename X, int D, int G> __device__ void consume(const hra_sm90_forward &a, shared<D, G> &s)
{
    constexpr uint32_t BYTES = shared<D, G>::TILE_BYTES;
    constexpr int EARLY =
        D == 128 || G == 3 ? 4 : 8; /* of 16: exponentials before the product is waited for */
    const int thread = threadIdx.x - 128, group = __shfl_sync(~0u, thread / 128, 0);
    const bool signals = thread % 32 == 0;
    const uint32_t ring = shared_address(s.ring);
    const float scale = a.scale;
    const uint32_t zero = (uint32_t)a.items >> 31;

    float out[D / 2], scores[64], gap[2], factor[2], part[2];
    uint32_t p[32], turn = 0;
    own_queries<D, G> q;
    rows_state rows;
    cursor<D, G> at;

    /* The Q of item `turn`. In registers it leaves its buffer at once. */
    const auto take_queries = [&] {
        const int buffer = buffer_of<D, G>(turn);
        const uint32_t half = shared_address(s.queries[buffer][group]);

        barrier_wait(shared_address(&s.full_q[buffer]), parity_of<D, G>(turn));
        if constexpr (G == 3) {
            q.matrix = matrix_by_columns(half);
        } else {
            load_queries<D>(q.piece, half, thread);
            publish_shared();
            __syncwarp();
            if (signals)
                barrier_arrive_after(shared_address(&s.empty_q[buffer]), last_of(q.piece), zero);
        }
    };
    /* In shared memory it does when the last S is there: the tile that is next is another item's. */
    const auto leave_queries = [&](uint32_t next) {
        if (G == 3 && next & (TILE_FIRST | TILE_END) && signals)
            barrier_arrive(shared_address(&s.empty_q[buffer_of<D, G>(turn)]));
    };
    const auto scores_of = [&](int slot) {
        if constexpr (G == 3)
            begin_scores<X>(scores, q.matrix, ring + slot * BYTES);
        else
            begin_scores<X, D>(scores, q.piece, ring + slot * BYTES);
    };
    /* What this thread's query tile has in the key tile of a slot. */
    const auto tile_at = [&](int slot, uint32_t tile, spot own) {
        return G == 3 && own.tile > 0 ? s.second[slot] : tile;
    };

    /* The first tile has no product beside it. */
    take_queries();
    spot own = spot_of<G>(s.item[0], group, thread);
    rows = begin_rows<D, G>(a, s.item[0], own);
    begin_sums<D>(out, a, s.item[0], own);
    barrier_wait(shared_address(&s.full[at.slot]), at.parity);
    uint32_t tile = tile_at(at.slot, s.tile[at.slot], own);
    scores_of(at.slot);
    products_wait<0>();
    pin(scores);
    if (signals)
        barrier_arrive(shared_address(&s.empty[at.slot]));
    if (tile & TILE_BITMAP)
        apply_bits(scores, load_bits<G>(a, tile, own.place));
    bool low = find_low(rows);
    raise_references(rows, gap, low, scores, scale);
    find_factors(factor, gap);
    multiply_rows(out, factor);
    exponentiate<0, 16>(scores, part, rows, scale);
    add_sums(rows, factor, part);
    pack_probabilities<X>(p, scores);
    at = at.next();
    barrier_wait(shared_address(&s.full[at.slot]), at.parity);
    tile = s.tile[at.slot];
    leave_queries(tile);

    while (!(tile & TILE_END)) {
        /* P of the tile before is in p; at `at` is K of this one, behind it V of the one before. */
        const bool first = tile & TILE_FIRST;
        const spot own_before = own;
        uint2 bits = {0, 0};
        rows_state before;
        targets to;

        if (first) {
            to = find_targets(a, s.item[turn % ITEMS], own);
            turn++;
            take_queries();
            before = rows;
            own = spot_of<G>(s.item[turn % ITEMS], group, thread);
            rows = begin_rows<D, G>(a, s.item[turn % ITEMS], own);
            low = find_low(rows);
        }
        const cursor<D, G> value = at.next();
        tile = tile_at(at.slot, tile, own);
        const bool partial = tile & TILE_BITMAP;
        if (partial)
            bits = load_bits<G>(a, tile, own.place);

        scores_of(at.slot);
        barrier_wait(shared_address(&s.full[value.slot]), value.parity);
        begin_output<X, D>(out, p, ring + value.slot * BYTES);

        products_wait<1>();
        pin(scores);
        if (signals)
            barrier_arrive(shared_address(&s.empty[at.slot]));
        if (partial)
            apply_bits(scores, bits);
        pin(scores); /* or eight of them are moved in every tile, for the sake of partial ones */
        raise_references(rows, gap, low, scores, scale);
        exponentiate<0, EARLY>(scores, part, rows, scale);
        find_factors(factor, gap);

        /* What is waited for here is needed next anyway; that the wait stands here keeps the exponentials
         * before it, beside the product, where ptxas would else put them behind. */
        at = value.next();
        barrier_wait_after(shared_address(&s.full[at.slot]), at.parity, part[0] + part[1]);
        tile = s.tile[at.slot];
        leave_queries(tile);

        products_wait<0>();
        pin(out);
        if (signals)
            barrier_arrive(shared_address(&s.empty[value.slot]));
        if (first) {
            end_item<X, D>(out, before, a, s.item[(turn - 1) % ITEMS], to, own_before);
            begin_sums<D>(out, a, s.item[turn % ITEMS], own);
        }
        multiply_rows(out, factor);
        exponentiate<EARLY, 16>(scores, part, rows, scale);
        add_sums(rows, factor, part);
        pack_probabilities<X>(p, scores);
    }

    begin_output<X, D>(out, p, ring + at.slot * BYTES);
    products_wait<0>();
    pin(out);
    end_item<X, D>(out, rows, a, s.item[turn % ITEMS], find_targets(a, s.item[turn % ITEMS], own), own);
}

template <typename X, int D, int G, bool BOXES>
__global__ void __launch_bounds__(THREADS<G>, 1) attend(const __grid_constant__ hra_sm90_forward a)
{
    HRA_DYNAMIC_SHARED(memory);
    shared<D, G> &s = *(shared<D, G> *)(memory + (-shared_address(memory) & 1023));

    if (threadIdx.x == 0) {
        for (int i = 0; i < shared<D, G>::SLOTS; i++) {
            barrier_init(shared_address(&s.full[i]), 1);
            barrier_init(shared_address(&s.empty[i]), 4 * G);
        }
        for (int i = 0; i < shared<D, G>::BUFFERS; i++) {
            barrier_init(shared_address(&s.full_q[i]), 1);
            barrier_init(shared_address(&s.empty_q[i]), 4 * G);
        }
        barrier_publish();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        give_registers<PRODUCER_REGISTERS<G>>();
        if (threadIdx.x == 0)
            produce<D, G, BOXES>(a, s);
        else if (threadIdx.x >= 32)
            write_nothing(a, D, threadIdx.x - 32, 96);
    } else {
        take_registers<CONSUMER_REGISTERS<G>>();
        consume<X, D, G>(a, s);
    }
}

/* ---- Packed lists ---- */

/* Halves of key tiles, 64 keys each, in slots of their own: a step has two to four of them, of which each group multiplies
 * two that lie behind one another, so that its products are those of a tile. Parts of the ring, the halves of K or V of a
 * step, do not go round its end. Each part has barriers and words of its own, by its number. */
template <int D> struct alignas(1024) packed {
    static constexpr int SLOTS = D == 128 ? 12 : 26, PARTS = 8;
    static constexpr uint32_t PIECE_BYTES = HALF * 128, HALF_BYTES = HALF * D * 2;

    uint16_t ring[D / 64][SLOTS][HALF][64];
    uint16_t queries[2][D / 64][HALF][64];
    hra_sm90_item item[ITEMS];
    uint64_t full[PARTS], empty[PARTS], full_q, empty_q;
    uint32_t places[PARTS],
        bits[PARTS][2][2]; /* of hra_sm90_packed; in the place of the chunk flags of the part */
};
template <int D> constexpr size_t PACKED_BYTES = sizeof(packed<D>) + 1023;
static_assert(PACKED_BYTES<128> <= 232448 && PACKED_BYTES<64> <= 232448, "too much shared memory");

constexpr uint32_t PLACES = (UINT32_C(1) << HRA_SM90_CHUNK_BIT) - 1;

/* The slot at which a part begins that comes behind `slot`. */
template <int D> __device__ __forceinline__ int begin_of(int slot, uint32_t places)
{
    return slot + (int)(places & 7) > packed<D>::SLOTS ? 0 : slot;
}

/* What the producer knows of the ring: the next part and slot, and the oldest part that is not free again. */
struct filling {
    uint32_t part = 0, oldest = 0, sizes = 0; /* of parts, four bits each */
    int slot = 0, free;
};

/* word: this lane's of the step. */
template <int D, bool BOXES>
__device__ __forceinline__ void fill_part(packed<D> &s, filling &at, const hra_sm90_forward &a,
                                          const CUtensorMap *map, const hra_sm90_item &item, uint32_t word,
                                          uint32_t flags)
{
    constexpr int SLOTS = packed<D>::SLOTS, PARTS = packed<D>::PARTS, PIECES = D / 64;
    static_assert(PARTS == 8, "sizes of parts are four bits of 32");
    const int lane = threadIdx.x;
    const uint32_t places = __shfl_sync(~0u, word, 8), row = __shfl_sync(~0u, word, lane / PIECES % 4);
    const int halves = places & 7, chunk = places >> HRA_SM90_CHUNK_BIT, place = at.part % PARTS;
    const int begin = begin_of<D>(at.slot, places), size = halves + (begin < at.slot ? SLOTS - at.slot : 0);
    const uint32_t full = shared_address(&s.full[place]);

    while (at.free < size || at.part - at.oldest == PARTS) {
        barrier_wait(shared_address(&s.empty[at.oldest % PARTS]), at.oldest / PARTS % 2);
        at.free += at.sizes >> 4 * (at.oldest % PARTS) & 15;
        at.oldest++;
    }
    at.sizes = (at.sizes & ~(15u << 4 * place)) | (uint32_t)size << 4 * place;
    if (lane >= 4 && lane < 8)
        s.bits[place][lane / 2 % 2][lane % 2] = word;
    if (lane == 8)
        s.places[place] = (places & PLACES) | flags;
    __syncwarp();
    if (lane == 0)
        barrier_expect(full, halves * packed<D>::HALF_BYTES);
    __syncwarp();
    if (lane < halves * PIECES)
        load_piece<BOXES>(a, shared_address(s.ring[lane % PIECES][begin + lane / PIECES]), &map[chunk], full,
                          row, lane % PIECES, item.head_kv - a.head0[chunk], item.batch);
    at.free -= size;
    at.slot = begin + halves;
    at.part++;
}

/* By a warp. What is read of a step is asked for a step ahead, and of an item while the steps of the one before it are
 * copied; the item itself is taken when that one begins. */
template <int D, bool BOXES> __device__ void produce_packed(const hra_sm90_forward &a, packed<D> &s)
{
    constexpr int WORDS = sizeof(hra_sm90_item) / 4, ENTRY0 = offsetof(hra_sm90_item, entry0) / 4;
    const int lane = threadIdx.x;
    filling at;
    int index = blockIdx.x, taken = 0; /* the next item; before all lanes know it, the first does */
    uint32_t turn = 0, before = 0, flags = 0, coming = 0; /* this lane's word of it */
    const auto word_of = [&](uint32_t step) {
        return lane < 9 ? ((const uint32_t *)(a.packed + step))[lane] : 0;
    };

    const auto ask_item = [&] {
        if (index < a.items && lane < WORDS)
            coming = ((const uint32_t *)&a.item[index])[lane];
    };

    at.free = packed<D>::SLOTS;
    ask_item();
    uint32_t next = word_of(__shfl_sync(~0u, coming, ENTRY0));
    while (index < a.items) {
        hra_sm90_item &item = s.item[turn % ITEMS];

        barrier_wait(shared_address(&s.empty_q), turn % 2 ^ 1);
        if (lane < WORDS)
            ((uint32_t *)&item)[lane] = coming;
        __syncwarp();
        const bool separates = __shfl_sync(~0u, lane == 0 && separate(item, flags), 0);
        __syncwarp();
        flags = item.flags[0];
        if (lane == 0) {
            if (!separates)
                taken = gridDim.x + atomicAdd(a.next, 1);
            barrier_expect(shared_address(&s.full_q),
                           ((item.rows[0] > 0) + (item.rows[0] > HALF)) * packed<D>::HALF_BYTES);
            for (int i = 0; i < 2; i++)
                if (i * HALF < item.rows[0])
                    load_half<D, BOXES>(a, &s.queries[i][0][0][0], shared_address(&s.full_q), item, i,
                                        item.row0[0] + i * HALF);
        }
        for (uint32_t n = 0; n < item.entries; n++) {
            const uint32_t word = next;
            if (n == (item.entries > 1) && !separates) {
                index = __shfl_sync(~0u, taken, 0);
                ask_item();
            }
            if (n + 1 < item.entries)
                next = word_of(item.entry0 + n + 1);
            else if (index < a.items)
                next = word_of(__shfl_sync(~0u, coming, ENTRY0));
            fill_part<D, BOXES>(s, at, a, a.k, item, word, n == 0 ? TILE_FIRST : 0);
            if (n > 0 || turn > 0) /* the V that is next */
                fill_part<D, BOXES>(s, at, a, a.v, s.item[(n > 0 ? turn : turn - 1) % ITEMS], before, 0);
            before = word;
        }
        turn++;
    }
    fill_part<D, BOXES>(s, at, a, a.v, s.item[(turn - 1) % ITEMS], before, TILE_END);
}

/* This thread's bits of a half. Whoever does anything with them waits for them. */
__device__ __forceinline__ uint32_t load_half_bits(const hra_sm90_forward &a, uint32_t bits, int thread)
{
    const uint32_t number = bits & HRA_SM90_NONE;
    uint32_t word = number == 0 ? ~0u : 0;

    if (number - 1 < HRA_SM90_NONE - 1)
        word = a.bits[number - 1].word[thread][bits & HRA_SM90_RIGHT ? 1 : 0];
    return word;
}

template <typename X, int D> __device__ void consume_packed(const hra_sm90_forward &a, packed<D> &s)
{
    constexpr int PARTS = packed<D>::PARTS, ROWS = packed<D>::SLOTS * HALF;
    constexpr int EARLY = D == 128 ? 4 : 8;
    const int thread = threadIdx.x - 128, group = __shfl_sync(~0u, thread / 128, 0);
    const bool signals = thread % 32 == 0;
    const uint32_t ring = shared_address(s.ring);
    const float scale = a.scale;
    const uint32_t zero = (uint32_t)a.items >> 31;
    const spot own = {0, thread};

    float out[D / 2], scores[64], gap[2], factor[2], part_sum[2];
    uint32_t q[D / 4], p[32], turn = 0, part = 0;
    int slot = 0;
    rows_state rows;

    const auto wait_part = [&](uint32_t n) {
        barrier_wait(shared_address(&s.full[n % PARTS]), n / PARTS % 2);
    };
    const auto free_part = [&](uint32_t n) {
        if (signals)
            barrier_arrive(shared_address(&s.empty[n % PARTS]));
    };
    /* This group's two halves of a part that begins at a slot. */
    const auto pair_at = [&](int begin, uint32_t places) {
        return ring + (begin + (group == 0 ? 0 : (int)(places & 7) - 2)) * packed<D>::PIECE_BYTES;
    };
    const auto take_queries = [&] {
        barrier_wait(shared_address(&s.full_q), turn % 2);
        load_queries<D>(q, shared_address(s.queries[group]), thread);
        publish_shared();
        __syncwarp();
        if (signals)
            barrier_arrive_after(shared_address(&s.empty_q), last_of(q), zero);
    };
    const auto bits_of = [&](uint32_t one, uint32_t two) {
        return uint2{load_half_bits(a, one, thread), load_half_bits(a, two, thread)};
    };

    take_queries();
    rows = begin_rows<D, 2>(a, s.item[0], own);
    begin_sums<D>(out, a, s.item[0], own);
    wait_part(0);
    uint32_t places = s.places[0], before_places = places;
    uint32_t one = s.bits[0][group][0], two = s.bits[0][group][1];
    begin_scores<X, D, ROWS>(scores, q, pair_at(0, places));
    products_wait<0>();
    pin(scores);
    free_part(0);
    if (one | two)
        apply_bits(scores, bits_of(one, two));
    bool low = find_low(rows);
    raise_references(rows, gap, low, scores, scale);
    find_factors(factor, gap);
    multiply_rows(out, factor);
    exponentiate<0, 16>(scores, part_sum, rows, scale);
    add_sums(rows, factor, part_sum);
    pack_probabilities<X>(p, scores);
    slot = (int)(places & 7);
    part = 1;
    wait_part(part);
    places = s.places[part % PARTS];

    while (!(places & TILE_END)) {
        /* P of the step before is in p; behind `slot` is K of this one, behind it V of the one before. */
        const bool first = places & TILE_FIRST;
        uint2 bits = {0, 0};
        rows_state before;
        targets to;

        if (first) {
            to = find_targets(a, s.item[turn % ITEMS], own);
            turn++;
            take_queries();
            before = rows;
            rows = begin_rows<D, 2>(a, s.item[turn % ITEMS], own);
            low = find_low(rows);
        }
        one = s.bits[part % PARTS][group][0];
        two = s.bits[part % PARTS][group][1];
        const bool partial = one | two;
        if (partial)
            bits = bits_of(one, two);

        slot = begin_of<D>(slot, places);
        begin_scores<X, D, ROWS>(scores, q, pair_at(slot, places));
        slot = begin_of<D>(slot + (int)(places & 7), before_places);
        wait_part(part + 1);
        begin_output<X, D, ROWS>(out, p, pair_at(slot, before_places));

        products_wait<1>();
        pin(scores);
        free_part(part);
        if (partial)
            apply_bits(scores, bits);
        pin(scores);
        raise_references(rows, gap, low, scores, scale);
        exponentiate<0, EARLY>(scores, part_sum, rows, scale);
        find_factors(factor, gap);

        slot += (int)(before_places & 7);
        before_places = places;
        part += 2;
        barrier_wait_after(shared_address(&s.full[part % PARTS]), part / PARTS % 2,
                           part_sum[0] + part_sum[1]);
        places = s.places[part % PARTS];

        products_wait<0>();
        pin(out);
        free_part(part - 1);
        if (first) {
            end_item<X, D>(out, before, a, s.item[(turn - 1) % ITEMS], to, own);
            begin_sums<D>(out, a, s.item[turn % ITEMS], own);
        }
        multiply_rows(out, factor);
        exponentiate<EARLY, 16>(scores, part_sum, rows, scale);
        add_sums(rows, factor, part_sum);
        pack_probabilities<X>(p, scores);
    }

    begin_output<X, D, ROWS>(out, p, pair_at(begin_of<D>(slot, before_places), before_places));
    products_wait<0>();
    pin(out);
    end_item<X, D>(out, rows, a, s.item[turn % ITEMS], find_targets(a, s.item[turn % ITEMS], own), own);
}

template <typename X, int D, bool BOXES>
__global__ void __launch_bounds__(THREADS<2>, 1) attend_packed(const __grid_constant__ hra_sm90_forward a)
{
    HRA_DYNAMIC_SHARED(memory);
    packed<D> &s = *(packed<D> *)(memory + (-shared_address(memory) & 1023));

    if (threadIdx.x == 0) {
        for (int i = 0; i < packed<D>::PARTS; i++) {
            barrier_init(shared_address(&s.full[i]), 1);
            barrier_init(shared_address(&s.empty[i]), 8);
        }
        barrier_init(shared_address(&s.full_q), 1);
        barrier_init(shared_address(&s.empty_q), 8);
        barrier_publish();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        give_registers<PRODUCER_REGISTERS<2>>();
        if (threadIdx.x < 32)
            produce_packed<D, BOXES>(a, s);
        else
            write_nothing(a, D, threadIdx.x - 32, 96);
    } else {
        take_registers<CONSUMER_REGISTERS<2>>();
        consume_packed<X, D>(a, s);
    }
}

__global__ void nothing(const __grid_constant__ hra_sm90_forward a, int dim)
{
    write_nothing(a, dim, threadIdx.x, blockDim.x);
}

__global__ void clear(uint32_t *words, size_t count)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;

    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)
        words[i] = 0;
}

/* Every kernel that is compiled. */
const struct variant {
    hra_type type;
    int dim, groups, packed, boxes;
    const void *kernel;
    int threads;
    size_t shared_bytes;
} variants[] = {
#define HRA_WHOLE(name, type, dim, groups, boxes)                                                            \
    {                                                                                                        \
        name, dim, groups, 0, boxes, (const void *)attend<type, dim, groups, boxes>, THREADS<groups>,        \
            SHARED_BYTES<dim, groups>                                                                        \
    }
#define HRA_PACKED(name, type, dim, boxes)                                                                   \
    {                                                                                                        \
        name, dim, 2, 1, boxes, (const void *)attend_packed<type, dim, boxes>, THREADS<2>, PACKED_BYTES<dim> \
    }
#define HRA_VARIANTS(name, type)                                                                             \
    HRA_WHOLE(name, type, 64, 2, false), HRA_WHOLE(name, type, 64, 2, true),                                 \
        HRA_WHOLE(name, type, 64, 3, false), HRA_WHOLE(name, type, 128, 2, false),                           \
        HRA_WHOLE(name, type, 128, 2, true), HRA_PACKED(name, type, 64, false),                              \
        HRA_PACKED(name, type, 64, true), HRA_PACKED(name, type, 128, false),                                \
        HRA_PACKED(name, type, 128, true)
    HRA_VARIANTS(HRA_BF16, __nv_bfloat16),
    HRA_VARIANTS(HRA_F16, __half),
#undef HRA_VARIANTS
#undef HRA_PACKED
#undef HRA_WHOLE
};

} // namespace

extern "C" cudaError_t hra_sm90_forward_open(hra_type type, int dim)
{
    cudaFuncAttributes attributes;
    cudaError_t error = cudaErrorInvalidValue;

    for (const variant &v : variants)
        if (v.type == type && v.dim == dim) {
            error = cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         (int)v.shared_bytes);
            if (error != cudaSuccess)
                return error;
        }
    /* Asking loads the kernel, which could not be done while a stream records a graph. */
    for (const void *const kernel : {(const void *)nothing, (const void *)clear})
        if (error == cudaSuccess)
            error = cudaFuncGetAttributes(&attributes, kernel);
    return error;
}

extern "C" cudaError_t hra_sm90_forward_launch(const hra_sm90_forward *launch, hra_type type, int dim,
                                               int groups, int packed, int blocks, cudaStream_t stream)
{
    void *arguments[] = {const_cast<hra_sm90_forward *>(launch)};

    for (const variant &v : variants)
        if (v.type == type && v.dim == dim && v.groups == groups && v.packed == packed &&
            v.boxes == (launch->grid.axes > 0))
            return cudaLaunchKernel(v.kernel, dim3((unsigned)blocks), dim3((unsigned)v.threads), arguments,
                                    v.shared_bytes, stream);
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t hra_sm90_clear(uint32_t *words, size_t count, cudaStream_t stream)
{
    const size_t threads = 256, wanted = (count + threads - 1) / threads;
    const unsigned blocks = (unsigned)(wanted < 264 ? wanted : 264);
    void *arguments[] = {&words, &count};
    return cudaLaunchKernel((const void *)clear, dim3(blocks), dim3((unsigned)threads), arguments, 0, stream);
}

extern "C" cudaError_t hra_sm90_forward_nothing(const hra_sm90_forward *launch, int dim, cudaStream_t stream)
{
    void *arguments[] = {const_cast<hra_sm90_forward *>(launch), &dim};
    return cudaLaunchKernel((const void *)nothing, dim3((unsigned)launch->nothings), dim3(128), arguments, 0,
                            stream);
}

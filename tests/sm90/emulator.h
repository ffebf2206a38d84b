/* emulator.h - the parts of an sm_90a multiprocessor that the kernels of kernels/sm90 use, on the host.
 *
 * Their own source is compiled by g++ on top of this: run.sh puts tests/sm90 first among the include
 * folders, so that they find the ptx.h of this folder in the place of their own. Each thread of a kernel is a fiber with a stack of its own; a scheduler lets them run in turns, whole warps of them now
 * and then slower than others, until they wait for something. All blocks of a launch run side by side.
 *
 * What is emulated
 *   mbarriers       arrivals, bytes and phases; waits name a parity, so that one who is two phases late waits
 *                   for ever, as on the chip. An arrival too many, or none awaited, is an error
 *   bar.sync, bar.arrive, warp votes and shuffles: those who sync wait for all of
 *                   their number
 *   TMA             boxes of a tensor of five dimensions as the map says, written with the 128-byte
 *                   swizzle at any time between the instruction and the wait for its bytes; 0 beyond the
 *                   last row
 *   bulk copies     into shared memory as boxes; out of it, or as sums, they read at any time until that was
 *                   waited for, and write at any time until that was
 *   stmatrix        rows of 16 bytes
 *   wgmma           descriptors of matrices in swizzled shared memory, fragments of A and C as threads hold
 *                   them. A product may read its matrices, and its registers, and write C at any time between
 *                   its commit and the wait for its group: what touches them in between gives wrong numbers
 *   shared memory   begins anywhere at a multiple of 16, and as NaN
 *   launches        in the order of the stream; every plan finds another number of multiprocessors
 *
 * What is not: time; registers and their number; proxy fences and the order of memory, since only one fiber
 * runs at a time and all see what it wrote; races within what a thread does between two waits. Products are
 * summed in another order than on the chip, exponentials are those of the C library. So this tests the
 * kernel's logic; its numbers and its speed are tested on a GPU.
 *
 * All that is drawn is the same in every run. What the chip would not do, and a kernel in which nobody can go
 * on, end the process with a sentence. */
#ifndef HRA_TESTS_SM90_EMULATOR_H
#define HRA_TESTS_SM90_EMULATOR_H

#include "kernels/cpu/number.h"

#include <array>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

namespace emulated
{

constexpr int WARP = 32, NUMBERED = 16, PRODUCTS = 64;
constexpr size_t STACK_BYTES = 128 * 1024, SHARED_LIMIT = 232448, SHARED_ROOM = 256 * 1024;

[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("emulated sm_90a: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    abort();
}

/* A wgmma of one warp: its 16 rows of C. a_registers is for A in registers, else a is its descriptor. */
struct product {
    float *c[WARP];
    const uint32_t *a_registers[WARP];
    uint64_t a, b;
    int columns, add, f16;
    bool a_by_rows, b_by_rows; /* A, in shared memory, lies by rows; B does */
    int64_t group;             /* how many were committed before */
};

struct warp {
    uint32_t value[2][WARP]; /* of this exchange and of the one before, by number modulo 2 */
    int arrived;
    int64_t exchanges;
    product products[PRODUCTS]; /* by number modulo PRODUCTS */
    int64_t issued[WARP], executed;
    bool slow;
};

/* The 16 barriers that have numbers. */
struct numbered {
    int arrived;
    int64_t phase;
};

struct block {
    int index;
    std::unique_ptr<char, void (*)(void *)> memory = {nullptr, free}; /* shared; addresses count from here */
    char *dynamic;
    numbered barrier[NUMBERED];
    std::vector<warp> warps;
};

/* A register that is loaded from shared memory. */
struct load {
    uint32_t *to, from;
};

struct thread {
    block *home;
    int index;
    bool begun, done;
    int64_t groups;          /* of products committed */
    std::vector<load> loads; /* under way */
    std::unique_ptr<char[]> stack;
    ucontext_t first;
    jmp_buf context;
};

/* A box under way, or `bytes` that lie together. */
struct copy {
    int passes; /* of the scheduler until it is done */
    block *home;
    uint32_t to, barrier;
    CUtensorMap map;
    std::array<int, 5> at;
    const char *from;
    uint32_t bytes;
};

/* A copy out of shared memory. */
struct store {
    int passes[2]; /* until it is read, and until it is written */
    const thread *owner;
    block *home;
    char *to;
    uint32_t from, bytes;
    bool adds, read;
    std::vector<float> data;
};

/* The machine, of which a process has one. */
struct machine {
    std::mt19937_64 random{1};
    std::function<void()> kernel;
    int blocks, threads; /* of this launch, threads of a block */
    std::vector<thread> fibers;
    thread *running;
    jmp_buf scheduler;
    std::deque<copy> copies;
    std::deque<store> stores;
    int64_t progress; /* counts whatever could let somebody go on */
    enum { AT_ONCE, ANY_TIME, AT_WAIT } products;
    bool copies_at_once;
};
inline machine chip;

/* What the driver puts into a map. */
struct tensor {
    const char *data;
    uint64_t count[5], stride[5]; /* strides in bytes */
    uint32_t box[5];
};
static_assert(sizeof(tensor) <= sizeof(CUtensorMap));

inline uint64_t draw(uint64_t below)
{
    return chip.random() % below;
}

/* ---- Fibers ---- */

inline thread &self()
{
    return *chip.running;
}

inline warp &own_warp()
{
    return self().home->warps[(size_t)self().index / WARP];
}

inline void yield()
{
    if (_setjmp(self().context) == 0)
        _longjmp(chip.scheduler, 1);
}

template <typename CONDITION> void wait_until(CONDITION condition)
{
    while (!condition())
        yield();
    chip.progress++;
}

inline void run_fiber()
{
    chip.kernel();
    self().done = true;
    chip.progress++;
    _longjmp(chip.scheduler, 1);
}

/* Returns when the fiber waits or is done. */
[[gnu::noinline]] inline void resume(thread &t)
{
    chip.running = &t;
    if (_setjmp(chip.scheduler) != 0)
        return;
    if (t.begun)
        _longjmp(t.context, 1);
    t.begun = true;
    setcontext(&t.first);
}

/* The values of all lanes of the warp, which meet here. They stay until the exchange after the next. */
inline const uint32_t *exchange(uint32_t mine)
{
    warp &w = own_warp();
    const int64_t number = w.exchanges;
    uint32_t *const value = w.value[number % 2];

    value[self().index % WARP] = mine;
    if (++w.arrived == WARP) {
        w.arrived = 0;
        w.exchanges++;
    }
    wait_until([&] { return w.exchanges != number; });
    return value;
}

/* ---- Barriers ---- */

/* An mbarrier as it lies in shared memory. */
struct mbarrier {
    int32_t bytes;             /* expected, less those that came */
    uint8_t pending, arrivals; /* of this phase, and of each */
    uint8_t phase;             /* parity of the one under way */
    uint8_t mark;              /* MARK, which tells it from other memory */
    static const int MARK = 0xa5;
};
static_assert(sizeof(mbarrier) == 8);

inline mbarrier &mbarrier_at(const block &b, uint32_t address)
{
    mbarrier &m = *(mbarrier *)(b.memory.get() + address);
    if (address % 8 != 0 || m.mark != mbarrier::MARK)
        fail("there is no barrier at %u", address);
    return m;
}

inline void end_phase(mbarrier &m)
{
    if (m.pending != 0 || m.bytes != 0)
        return;
    m.phase ^= 1;
    m.pending = m.arrivals;
    chip.progress++;
}

inline void mbarrier_init(uint32_t address, int arrivals)
{
    if (address % 8 != 0 || arrivals < 1 || arrivals > UINT8_MAX)
        fail("a barrier of %d arrivals at %u", arrivals, address);
    *(mbarrier *)(self().home->memory.get() + address) = {0, (uint8_t)arrivals, (uint8_t)arrivals, 0,
                                                          mbarrier::MARK};
}

inline void mbarrier_arrive(uint32_t address, uint32_t bytes)
{
    mbarrier &m = mbarrier_at(*self().home, address);
    if (m.pending == 0)
        fail("an arrival too many at barrier %u", address);
    m.bytes += (int32_t)bytes;
    m.pending--;
    end_phase(m);
    if (draw(4) == 0)
        yield();
}

inline void mbarrier_wait(uint32_t address, uint32_t parity)
{
    if (parity > 1)
        fail("a wait for parity %u", parity);
    const mbarrier &m = mbarrier_at(*self().home, address);
    wait_until([&] { return m.phase != parity; });
}

inline void numbered_barrier(int number, int threads, bool waits)
{
    numbered &b = self().home->barrier[number];
    const int64_t phase = b.phase;

    if (++b.arrived == threads) {
        b.arrived = 0;
        b.phase++;
        chip.progress++;
    }
    if (waits)
        wait_until([&] { return b.phase != phase; });
}

/* ---- Copies of tiles ---- */

/* Rows of shared memory have 128 bytes; the 16-byte pieces of each are permuted by its number. */
inline uint32_t swizzle(uint32_t address)
{
    return address ^ (address >> 7 & 7) << 4;
}

inline void copy_bytes(const copy &c)
{
    if (c.to % 16 != 0 || c.bytes % 16 != 0 || (uintptr_t)c.from % 16 != 0)
        fail("%u bytes from %p to %u", c.bytes, (const void *)c.from, c.to);
    memcpy(c.home->memory.get() + c.to, c.from, c.bytes);
    mbarrier &m = mbarrier_at(*c.home, c.barrier);
    m.bytes -= (int32_t)c.bytes;
    end_phase(m);
}

inline void copy_box(const copy &c)
{
    if (c.from != nullptr) {
        copy_bytes(c);
        return;
    }
    tensor t;
    memcpy(&t, &c.map, sizeof(t));
    char *const memory = c.home->memory.get();
    uint32_t lines = 1; /* of 128 bytes */

    for (size_t d = 0; d < 5; d++)
        if (c.at[d] < 0 || (uint64_t)c.at[d] >= t.count[d])
            fail("a box at %d, %d, %d, %d, %d lies outside of its tensor", c.at[0], c.at[1], c.at[2], c.at[3],
                 c.at[4]);
    if (c.to % 1024 != 0)
        fail("a box to %u", c.to);
    for (size_t d = 1; d < 5; d++)
        lines *= t.box[d];
    for (uint32_t line = 0; line < lines; line++) {
        const char *from = t.data + (uint64_t)c.at[0] * 2;
        bool inside = true;
        for (uint32_t d = 1, rest = line; d < 5; rest /= t.box[d++]) {
            const uint64_t x = (uint64_t)c.at[d] + rest % t.box[d];
            inside = inside && x < t.count[d];
            from += x * t.stride[d];
        }
        for (uint32_t piece = 0; piece < 8; piece++) {
            char *const to = memory + swizzle(c.to + (line * 8 + piece) * 16);
            if (inside)
                memcpy(to, from + piece * 16, 16);
            else
                memset(to, 0, 16);
        }
    }
    mbarrier &m = mbarrier_at(*c.home, c.barrier);
    m.bytes -= (int32_t)(lines * 128);
    end_phase(m);
}

/* Most come soon, some late enough for everything else to happen before. */
inline int draw_passes()
{
    const uint64_t kind = draw(10);
    return (int)draw(kind < 5 ? 4 : kind < 8 ? 30 : 300);
}

inline void begin(copy c)
{
    c.passes = draw_passes();
    c.home = self().home;
    chip.progress++; /* it will let somebody go on, though it may be the last that anybody did in this pass */
    if (chip.copies_at_once || draw(3) == 0)
        copy_box(c);
    else
        chip.copies.push_back(c);
}

inline void begin_copy(uint32_t to, const CUtensorMap *map, uint32_t barrier, std::array<int, 5> at)
{
    begin({0, nullptr, to, barrier, *map, at, nullptr, 0});
}

inline void begin_bytes(uint32_t to, const void *from, uint32_t barrier, uint32_t bytes)
{
    begin({0, nullptr, to, barrier, {}, {}, (const char *)from, bytes});
}

/* ---- Copies out of shared memory ---- */

inline void read_store(store &s)
{
    const float *const from = (const float *)(s.home->memory.get() + s.from);

    if (!s.read)
        s.data.assign(from, from + s.bytes / sizeof(float));
    s.read = true;
    chip.progress++;
}

inline void write_store(store &s)
{
    float *const to = (float *)s.to;

    read_store(s);
    for (size_t i = 0; i < s.data.size(); i++)
        to[i] = s.adds ? to[i] + s.data[i] : s.data[i];
}

inline void begin_store(void *to, uint32_t from, uint32_t bytes, bool adds)
{
    if (from % 16 != 0 || bytes % 16 != 0 || (uintptr_t)to % 16 != 0)
        fail("%u bytes from %u to %p", bytes, from, to);
    const int read = draw_passes();
    chip.stores.push_back(
        {{read, read + draw_passes()}, &self(), self().home, (char *)to, from, bytes, adds, false, {}});
    chip.progress++;
}

inline bool has_stores(const thread &t, bool written)
{
    for (const store &s : chip.stores)
        if (s.owner == &t && (written || !s.read))
            return true;
    return false;
}

/* Those of the running thread are done with, as far as it waits for it, in their time or at once. */
inline void wait_stores(bool written)
{
    if (draw(2))
        wait_until([&] { return !has_stores(self(), written); });
    for (size_t n = chip.stores.size(); n > 0; n--) {
        store s = chip.stores.front();
        chip.stores.pop_front();
        if (s.owner == &self() && written) {
            write_store(s);
            continue;
        }
        if (s.owner == &self())
            read_store(s);
        chip.stores.push_back(s);
    }
}

inline void pass_stores()
{
    for (size_t n = chip.stores.size(); n > 0; n--) {
        store s = chip.stores.front();
        chip.stores.pop_front();
        if (s.passes[0]-- == 0)
            read_store(s);
        if (s.passes[1]-- == 0)
            write_store(s);
        else
            chip.stores.push_back(s);
    }
}

/* ---- Matrices of 8 x 8 ---- */

inline void store_matrices(uint32_t to, const uint32_t *x)
{
    const uint32_t *const all = exchange(to);
    const int lane = self().index % WARP;

    for (int i = 0; i < 4; i++) {
        const uint32_t row = all[8 * i + lane / 4];
        if (row % 16 != 0)
            fail("a row of a matrix at %u", row);
        memcpy(self().home->memory.get() + row + lane % 4 * 4, x + i, 4);
    }
}

/* What was asked for is read as late as may be: before it is used, or at the fence behind which a copy may take its
 * place. */
inline void finish_loads()
{
    for (const load &l : self().loads)
        memcpy(l.to, self().home->memory.get() + l.from, 4);
    self().loads.clear();
}

inline void load_matrices(uint32_t *x, uint32_t from)
{
    const uint32_t *const all = exchange(from);
    const int lane = self().index % WARP;

    for (int i = 0; i < 4; i++) {
        const uint32_t row = all[8 * i + lane / 4];
        if (row % 16 != 0)
            fail("a row of a matrix at %u", row);
        self().loads.push_back({x + i, row + (uint32_t)lane % 4 * 4});
    }
}

/* ---- Products ---- */

inline float number_of(uint16_t bits, int f16)
{
    return f16 ? hra_from_f16(bits) : hra_from_bf16(bits);
}

/* Fields of a descriptor. */
struct matrix {
    uint32_t start, leading, groups; /* bytes; from 8 rows of 128 bytes to the next 8 */

    explicit matrix(uint64_t descriptor)
        : start((descriptor & 0x3fff) * 16), leading((descriptor >> 16 & 0x3fff) * 16),
          groups((descriptor >> 32 & 0x3fff) * 16)
    {
        if (descriptor >> 62 != 1)
            fail("descriptor %llx is not of the 128-byte swizzle", (unsigned long long)descriptor);
    }

    /* The 8 numbers of a row from `column`, a multiple of 8, on, each `step` behind the one before; chunks of
     * 64 columns are `leading` apart. */
    void read(float *out, int step, const char *memory, int row, int column, int f16) const
    {
        const uint32_t address = start + (uint32_t)(column / 64) * leading + (uint32_t)(row / 8) * groups +
                                 (uint32_t)(row % 8) * 128 + (uint32_t)(column % 64) * 2;
        uint16_t bits[8];

        /* A part of a matrix begins at a whole piece, so that the 8 lie in one. */
        memcpy(bits, memory + swizzle(address), sizeof(bits));
        for (int i = 0; i < 8; i++)
            out[i * step] = number_of(bits[i], f16);
    }
};

/* The 16 rows of A that a warp has. */
inline void read_a(float x[16][16], const product &p, const char *memory, int rows0)
{
    for (int k = 0; k < 16 && p.a_by_rows; k++)
        for (int row = 0; row < 16; row += 8)
            matrix(p.a).read(&x[row][k], 16, memory, k, rows0 + row, p.f16);
    if (p.a_by_rows)
        return;
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++) {
            const uint32_t *const pairs = p.a_registers[row % 8 * 4 + k % 8 / 2];
            if (pairs != nullptr)
                x[row][k] = number_of((uint16_t)(pairs[k / 8 * 2 + row / 8] >> k % 2 * 16), p.f16);
            else if (k % 8 == 0)
                matrix(p.a).read(&x[row][k], 1, memory, rows0 + row, k, p.f16);
        }
}

inline void read_b(float y[16][128], const product &p, const char *memory)
{
    const matrix b(p.b);

    for (int n = 0; n < p.columns && !p.b_by_rows; n++)
        for (int k = 0; k < 16; k += 8)
            b.read(&y[k][n], 128, memory, n, k, p.f16);
    for (int k = 0; k < 16 && p.b_by_rows; k++)
        for (int n = 0; n < p.columns; n += 8)
            b.read(&y[k][n], 1, memory, k, n, p.f16);
}

/* C of the 16 rows of a warp, of which lane l has rows l / 4 and 8 further. */
inline void execute(const product &p, const char *memory, int rows0)
{
    float x[16][16], y[16][128] = {};

    read_a(x, p, memory, rows0);
    read_b(y, p, memory);
    for (int row = 0; row < 16; row++) {
        float sum[128] = {};
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 128; n++)
                sum[n] += x[row][k] * y[k][n];
        for (int n = 0; n < p.columns; n++) {
            float &c = p.c[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
            c = p.add ? c + sum[n] : sum[n];
        }
    }
}

/* A lane's part in the next product of its warp. */
inline void issue(float *c, int columns, const uint32_t *a_registers, uint64_t a, uint64_t b, int add,
                  int f16, bool a_by_rows = false, bool b_by_rows = false)
{
    warp &w = own_warp();
    const int lane = self().index % WARP;
    finish_loads();
    const int64_t number = w.issued[lane]++;
    product &p = w.products[number % PRODUCTS];

    if (number - w.executed >= PRODUCTS)
        fail("more than %d products under way", PRODUCTS);
    p.c[lane] = c;
    p.a_registers[lane] = a_registers;
    p.a = a;
    p.b = b;
    p.columns = columns;
    p.add = add;
    p.f16 = f16;
    p.a_by_rows = a_by_rows;
    p.b_by_rows = b_by_rows;
    p.group = self().groups;
}

/* Execute the products of groups before `group`, of which all lanes have issued their parts. */
inline void execute_before(int64_t group)
{
    warp &w = own_warp();

    if (self().index % WARP == 0)
        for (; w.executed < w.issued[0]; w.executed++) {
            const product &p = w.products[w.executed % PRODUCTS];
            if (p.group >= group)
                break;
            execute(p, self().home->memory.get(), self().index / WARP % 4 * 16);
        }
    exchange(0);
}

inline void commit()
{
    self().groups++;
    /* All do what the first lane drew. */
    if (exchange((uint32_t)(chip.products == machine::AT_ONCE ||
                            (chip.products == machine::ANY_TIME && draw(2))))[0])
        execute_before(self().groups);
}

inline void wait_products(int pending)
{
    exchange(0);
    execute_before(self().groups - pending);
}

/* ---- Launches ---- */

inline void begin_block(block &b, int index, size_t shared_bytes)
{
    const size_t offset = 16 * (1 + draw(63));

    if (shared_bytes > SHARED_LIMIT)
        fail("%zu bytes of shared memory", shared_bytes);
    b.index = index;
    b.memory.reset((char *)aligned_alloc(1024, SHARED_ROOM));
    memset(b.memory.get(), 0xff, SHARED_ROOM);
    b.dynamic = b.memory.get() + offset;
    memset(b.barrier, 0, sizeof(b.barrier));
    b.warps.assign((size_t)chip.threads / WARP, warp{});
}

inline void begin_thread(thread &t, block &home, int index)
{
    t.home = &home;
    t.index = index;
    t.begun = t.done = false;
    t.groups = 0;
    if (t.stack == nullptr)
        t.stack.reset(new char[STACK_BYTES]);
    getcontext(&t.first);
    t.first.uc_stack.ss_sp = t.stack.get();
    t.first.uc_stack.ss_size = STACK_BYTES;
    makecontext(&t.first, run_fiber, 0);
}

/* Let all fibers run that are not slow just now, from one that is drawn on. Returns how many ended. */
inline size_t pass_fibers(size_t count, bool all)
{
    const size_t first = draw(count);
    size_t ended = 0;

    for (size_t i = 0; i < count; i++) {
        thread &t = chip.fibers[(first + i) % count];
        if (t.done || (t.home->warps[(size_t)t.index / WARP].slow && !all))
            continue;
        resume(t);
        ended += t.done;
    }
    return ended;
}

inline void pass_copies()
{
    for (size_t n = chip.copies.size(); n > 0; n--) {
        copy c = chip.copies.front();
        chip.copies.pop_front();
        if (c.passes-- > 0)
            chip.copies.push_back(c);
        else
            copy_box(c);
    }
}

/* Run a kernel to its end. */
inline void launch(std::function<void()> kernel, int blocks, int threads, size_t shared_bytes)
{
    std::vector<block> homes((size_t)blocks);
    const size_t count = (size_t)blocks * (size_t)threads;

    chip.kernel = kernel;
    chip.blocks = blocks;
    chip.threads = threads;
    chip.products = (decltype(chip.products))draw(3);
    chip.copies_at_once = draw(2);
    if (chip.fibers.size() < count)
        chip.fibers.resize(count);
    for (int b = 0; b < blocks; b++) {
        begin_block(homes[(size_t)b], b, shared_bytes);
        for (int t = 0; t < threads; t++)
            begin_thread(chip.fibers[(size_t)(b * threads + t)], homes[(size_t)b], t);
    }

    bool idle = false;
    for (size_t left = count; left > 0;) {
        const int64_t before = chip.progress;
        const bool copies = !chip.copies.empty() || !chip.stores.empty(), all = idle;
        if (draw(8) == 0)
            for (block &b : homes)
                for (warp &w : b.warps)
                    w.slow = draw(4) == 0;
        left -= pass_fibers(count, all);
        pass_copies();
        pass_stores();
        idle = chip.progress == before && !copies;
        if (idle && all)
            fail("nobody can go on, %zu threads are left", left);
    }

    for (const block &b : homes)
        for (int i = 0; i < NUMBERED; i++)
            if (b.barrier[i].arrived != 0)
                fail("barrier %d is left with %d arrivals", i, b.barrier[i].arrived);
    if (!chip.copies.empty() || !chip.stores.empty())
        fail("a copy is under way at the end");
}

} // namespace emulated

#endif

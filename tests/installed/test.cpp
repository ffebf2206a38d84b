/* test.cpp - hra.hpp as a program sees it that has nothing but the installed prefix; on the ranks of mpirun, two or more.
 * Attention is compared with a dense evaluation from hra::mask::count alone; then handles, exceptions and lists. */
#include <hra/hra.hpp>
/* Behind hra.hpp, which looks up the functions of these two where they are used. */
#include <hra/mpi.h>
#if __has_include(<hra/nccl.h>) && __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <hra/nccl.h>
#define WITH_NCCL 1
#endif

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace
{

int rank, ranks, failures;

#define EXPECT(...)                                                                                          \
    do {                                                                                                     \
        if (!(__VA_ARGS__)) {                                                                                \
            failures++;                                                                                      \
            std::fprintf(stderr, "%s:%d: rank %d: not so: %s\n", __FILE__, __LINE__, rank, #__VA_ARGS__);    \
        }                                                                                                    \
    } while (0)

/* The error that `call` throws; HRA_OK where it throws none. */
hra::error thrown(const std::function<void()> &call)
{
    try {
        call();
    } catch (const hra::error &error) {
        return error;
    }
    return hra::error(HRA_OK, "");
}

bool begins(const std::string &text, const std::string &with)
{
    return text.compare(0, with.size(), with) == 0;
}

double seconds_since(std::chrono::steady_clock::time_point began)
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* A number from -0.5 to 0.5 that every rank computes alike. */
double number(int tensor, std::int64_t b, std::int64_t token, std::int64_t head, std::int64_t channel)
{
    std::uint64_t x = 0x9e3779b97f4a7c15u * static_cast<std::uint64_t>(tensor + 1);
    for (const std::int64_t part : {b, token, head, channel})
        x = (x ^ (x >> 29) ^ static_cast<std::uint64_t>(part + 7)) * 0xbf58476d1ce4e5b9u;
    return static_cast<double>(x >> 40) / static_cast<double>(1 << 24) - 0.5;
}

enum { Q, K, V, DO, DLSE };

/* All tokens in double, [batch][tokens][heads][dim] each, as if there were no ranks. */
struct dense {
    std::int64_t batch, tokens, heads, heads_kv, dim, dim_v;
    double scale;
    std::vector<double> o, lse, dq, dk, dv;

    dense(const hra_problem &p, const hra::mask &mask)
        : batch(p.batch), tokens(p.tokens), heads(p.heads), heads_kv(p.heads_kv), dim(p.dim), dim_v(p.dim_v),
          scale(1 / std::sqrt(p.dim)), o(size(heads, dim_v)), lse(size(heads, 1)), dq(size(heads, dim)),
          dk(size(heads_kv, dim)), dv(size(heads_kv, dim_v))
    {
        for (std::int64_t b = 0; b < batch; b++)
            for (std::int64_t h = 0; h < heads; h++)
                for (std::int64_t i = 0; i < tokens; i++)
                    row(mask, b, h, i);
    }

    std::size_t size(std::int64_t all_heads, std::int64_t channels) const
    {
        return static_cast<std::size_t>(batch * tokens * all_heads * channels);
    }

    std::size_t at(std::int64_t b, std::int64_t token, std::int64_t h, std::int64_t all_heads,
                   std::int64_t channels) const
    {
        return static_cast<std::size_t>(((b * tokens + token) * all_heads + h) * channels);
    }

    /* One query: its output, and what it adds to the gradients. */
    void row(const hra::mask &mask, std::int64_t b, std::int64_t h, std::int64_t i)
    {
        const std::int64_t g = h / (heads / heads_kv);
        std::vector<double> p(static_cast<std::size_t>(tokens));
        double sum = 0, delta = -number(DLSE, b, i, h, 0);

        for (std::int64_t j = 0; j < tokens; j++) {
            double score = 0;
            for (std::int64_t c = 0; c < dim; c++)
                score += number(Q, b, i, h, c) * number(K, b, j, g, c);
            p[static_cast<std::size_t>(j)] = mask.count(b, h, i, j) * std::exp(scale * score);
            sum += p[static_cast<std::size_t>(j)];
        }
        lse[at(b, i, h, heads, 1)] = std::log(sum);
        if (sum == 0)
            return;
        double *const out = &o[at(b, i, h, heads, dim_v)];
        for (std::int64_t j = 0; j < tokens; j++)
            for (std::int64_t c = 0; c < dim_v; c++)
                out[c] += (p[static_cast<std::size_t>(j)] /= c == 0 ? sum : 1) * number(V, b, j, g, c);
        for (std::int64_t c = 0; c < dim_v; c++)
            delta += out[c] * number(DO, b, i, h, c);
        for (std::int64_t j = 0; j < tokens; j++) {
            double ds = -delta;
            for (std::int64_t c = 0; c < dim_v; c++) {
                ds += number(DO, b, i, h, c) * number(V, b, j, g, c);
                dv[at(b, j, g, heads_kv, dim_v) + static_cast<std::size_t>(c)] +=
                    p[static_cast<std::size_t>(j)] * number(DO, b, i, h, c);
            }
            ds *= scale * p[static_cast<std::size_t>(j)];
            for (std::int64_t c = 0; c < dim; c++) {
                dq[at(b, i, h, heads, dim) + static_cast<std::size_t>(c)] += ds * number(K, b, j, g, c);
                dk[at(b, j, g, heads_kv, dim) + static_cast<std::size_t>(c)] += ds * number(Q, b, i, h, c);
            }
        }
    }
};

/* Largest difference of our rows from the dense evaluation's. */
template <typename T>
double difference(const hra::view<T> &ours, const std::vector<double> &all,
                  const std::vector<std::int64_t> &token)
{
    const hra::shape &s = ours.shape();
    const auto tokens = static_cast<std::int64_t>(all.size()) / (s.batch * s.heads * s.dim);
    double most = 0;

    for (std::int64_t b = 0; b < s.batch; b++)
        for (std::int64_t r = 0; r < s.rows; r++)
            for (std::int64_t h = 0; h < s.heads; h++)
                for (std::int64_t c = 0; c < s.dim; c++) {
                    const std::int64_t there =
                        ((b * tokens + token[static_cast<std::size_t>(r)]) * s.heads + h) * s.dim + c;
                    const double x = static_cast<double>(ours(b, r, h, c)),
                                 y = all[static_cast<std::size_t>(there)];
                    if (x != y) /* both may be -inf */
                        most = std::fmax(most, std::isfinite(x - y) ? std::fabs(x - y) : 1e300);
                }
    return most;
}

template <typename T> void fill(const hra::view<T> &out, int tensor, const std::vector<std::int64_t> &token)
{
    const hra::shape &s = out.shape();
    for (std::int64_t b = 0; b < s.batch; b++)
        for (std::int64_t r = 0; r < s.rows; r++)
            for (std::int64_t h = 0; h < s.heads; h++)
                for (std::int64_t c = 0; c < s.dim; c++)
                    out(b, r, h, c) =
                        static_cast<T>(number(tensor, b, token[static_cast<std::size_t>(r)], h, c));
}

/* Forward and backward of `plan` beside the dense evaluation. Megatron's order of axes, q, k and v as heads of one tensor
 * where their sizes allow; else sequences first. */
template <typename T>
void compare(hra::plan &plan, const hra_problem &problem, const hra::mask &mask, bool packed, double limit)
{
    const std::vector<std::int64_t> token = plan.row_tokens();
    const hra::shape q_shape = plan.q_shape(), k_shape = plan.k_shape(), v_shape = plan.v_shape(),
                     o_shape = plan.o_shape(), lse_shape = {q_shape.batch, q_shape.rows, q_shape.heads, 1};
    const hra::shape together = {q_shape.batch, q_shape.rows, q_shape.heads + 2 * k_shape.heads, q_shape.dim};
    std::vector<T> memory[8], lse(plan.lse_count()), dlse(plan.lse_count());
    hra::host_memory workspace(plan.info().workspace_bytes);

    const auto tensor = [&](int i, const hra::shape &shape) {
        memory[i].resize(shape.count());
        return packed ? hra::view<T>::rows_first(memory[i].data(), shape)
                      : hra::view<T>::batch_first(memory[i].data(), shape);
    };
    const auto part = [&](int i, int n) {
        return tensor(i, together)
            .heads(n == 0 ? 0 : q_shape.heads + (n - 1) * k_shape.heads,
                   n == 0 ? q_shape.heads : k_shape.heads);
    };
    const hra::view<T> q = packed ? part(0, 0) : tensor(0, q_shape),
                       k = packed ? part(0, 1) : tensor(1, k_shape),
                       v = packed ? part(0, 2) : tensor(2, v_shape), o = tensor(3, o_shape),
                       g = tensor(4, o_shape), dq = packed ? part(5, 0) : tensor(5, q_shape),
                       dk = packed ? part(5, 1) : tensor(6, k_shape),
                       dv = packed ? part(5, 2) : tensor(7, v_shape);
    /* lse is [batch][heads][rows] */
    const hra::view<T> lse_rows(lse.data(), lse_shape, lse_shape.heads * lse_shape.rows, 1, lse_shape.rows),
        dlse_rows(dlse.data(), lse_shape, lse_shape.heads * lse_shape.rows, 1, lse_shape.rows);

    fill(q, Q, token);
    fill(k, K, token);
    fill(v, V, token);
    fill(g, DO, token);
    fill(dlse_rows, DLSE, token);
    plan.forward(q, k, v, o, lse, workspace);
    plan.backward(q, k, v, o, lse, g, dlse, dq, dk, dv, workspace);

    const dense all(problem, mask);
    EXPECT(difference(o, all.o, token) < limit);
    EXPECT(difference(lse_rows, all.lse, token) < 10 * limit);
    EXPECT(difference(dq, all.dq, token) < limit);
    EXPECT(difference(dk, all.dk, token) < 10 * limit);
    EXPECT(difference(dv, all.dv, token) < 10 * limit);

    std::vector<T> again(o_shape.count());
    plan.forward(q, k, v, hra::view<T>::batch_first(again.data(), o_shape), nullptr, workspace);
    EXPECT(difference(hra::view<T>::batch_first(again.data(), o_shape), all.o, token) < limit);
}

void attention()
{
    hra::comm comm = hra::comm::mpi(MPI_COMM_WORLD);
    EXPECT(comm.rank() == rank && comm.ranks() == ranks && comm.status() == HRA_OK);

    hra::problem problem;
    problem.batch = 2;
    problem.heads = 4;
    problem.heads_kv = 2;
    problem.dim = 24;
    problem.dim_v = 16;
    problem.tokens = 301;
    problem.type = HRA_F64;
    const hra::domain domain(problem.tokens, problem.heads, problem.batch);
    {
        const hra::mask mask(domain, "heads(0-1: causal & window(90,0); 2-3: docs(100,1,200) & !causal)");
        hra::plan plan(comm, problem, mask);
        EXPECT(std::string(plan.info().transport) == "mpi" && plan.rank() == rank);
        compare<double>(plan, problem, mask, false, 1e-12);
    }
    {
        problem.dim_v = problem.dim;
        problem.tokens = 12 * 17;
        problem.type = HRA_F32;
        const hra::domain picture({12, 17}, problem.heads, problem.batch);
        const hra::order hilbert(picture, "hilbert");
        const hra::mask mask = hra::mask::mix({hra::mask::grid(picture, {3, 4}), hra::mask::causal(picture)});
        hra::options options;
        options.shard = HRA_SHARD_ZIGZAG;
        hra::plan plan(comm, problem, hilbert, mask, options);
        EXPECT(plan.info().shard == HRA_SHARD_ZIGZAG);
        compare<float>(plan, problem, mask, true, 2e-6);

        /* All tokens to rows and back. */
        const hra::shape whole_shape = {problem.batch, problem.tokens, 3, 5},
                         rows_shape = {problem.batch, plan.rows(), 3, 5};
        std::vector<float> whole(whole_shape.count()), rows(rows_shape.count()), back(whole_shape.count(), 7);
        const auto whole_view = hra::view<float>::rows_first(whole.data(), whole_shape),
                   rows_view = hra::view<float>::batch_first(rows.data(), rows_shape),
                   back_view = hra::view<float>::batch_first(back.data(), whole_shape);
        std::vector<std::int64_t> all(static_cast<std::size_t>(problem.tokens));
        std::iota(all.begin(), all.end(), 0);
        fill(whole_view, Q, all);
        plan.gather(whole_view, rows_view);
        plan.scatter(rows_view, back_view);
        const std::vector<std::int64_t> token = plan.row_tokens(), slot = plan.row_slots();
        const hra::span<const std::int64_t> slot_to_token = hilbert.slot_to_token();
        for (std::size_t r = 0; r < token.size(); r++) {
            EXPECT(token[r] == slot_to_token[static_cast<std::size_t>(slot[r])]);
            const auto right = static_cast<float>(number(Q, 1, token[r], 2, 4));
            EXPECT(rows_view(1, static_cast<std::int64_t>(r), 2, 4) == right);
            EXPECT(back_view(1, token[r], 2, 4) == right && whole_view(1, token[r], 2, 4) == right);
        }
        EXPECT(std::count(back.begin(), back.end(), 7.0f) ==
               static_cast<std::ptrdiff_t>(whole.size() - rows.size()));
        plan.reorder(HRA_SCATTER, HRA_F32, 3, 5, hra::const_tensor(back_view).get(),
                     hra::const_tensor(rows_view).get());
    }
    comm.wait();
    comm.close();
    EXPECT(comm.get() == nullptr && comm.rank() == -1);
}

/* ---- Objects --------------------------------------------------------------------------------- */

/* Equal texts are equal masks: a text parses back to the same mask. */
void same(const hra::mask &made, const hra_domain &domain, const char *text)
{
    const hra::mask parsed(domain, text);
    if (made.text() != parsed.text()) {
        failures++;
        std::fprintf(stderr, "%s is '%s'\n", text, made.text().c_str());
    }
}

void masks_and_orders()
{
    const hra::domain line(60, 4, 2), picture({6, 10}, 4, 2);
    const hra::mask causal = hra::mask::causal(line), near = hra::mask::window(line, 5, -1);

    same(hra::mask::full(line), line, "full");
    same(causal, line, "causal");
    same(near, line, "window(5,-1)");
    same(hra::mask::grid(picture, {1, 2}), picture, "grid(1,2)");
    same(hra::mask::neighbourhood(picture, {3, 5}), picture, "neighbourhood(3,5)");
    same(hra::mask::neighbourhood(picture, {3, 5}, {1, 2}), picture, "neighbourhood(3,5; 1,2)");
    same(hra::mask::docs(line, {10, 50}), line, "docs(10,50)");
    same(hra::mask::dilated(line, 20, 3), line, "dilated(20,3)");
    same(hra::mask::dilated(line, 20, 3, HRA_OFFSET_HEAD, HRA_DILATED_BOTH), line, "dilated(20,3,head,both)");
    same(hra::mask::global(line, 4), line, "global(4)");
    same(hra::mask::blocks(line, 20, {0, 2, 2}, {1, 0, 2}), line, "blocks(20; 0:1; 2:0 2)");
    same(hra::mask::local_blocks(line, 8, 1), line, "local_blocks(8,1)");
    same(hra::mask::strided_blocks(line, 8, 3, 1), line, "strided_blocks(8,3,1)");
    same(hra::mask::global_blocks(line, 8, 2, 1), line, "global_blocks(8,2,1)");
    same(hra::mask::random_blocks(line, 8, 2, 9), line, "random_blocks(8,2,9)");
    same(hra::mask::hierarchical_blocks(line, 8, 1, 2), line, "hierarchical_blocks(8,1,2)");
    same(hra::mask::slots(hra::order(picture, "snake"), hra::mask::window(picture, 3, 3)), picture,
         "slots(snake; window(3,3))");
    same((!causal) | (near & causal), line, "!causal | window(5,-1) & causal");
    same(hra::mask::heads({{0, 0, causal}, {1, 3, near}}), line, "heads(0: causal; 1-3: window(5,-1))");
    same(hra::mask::batches({{0, 0, causal}, {1, 1, near}}), line, "batches(0: causal; 1: window(5,-1))");
    same(hra::mask::mix({causal, near}), line, "mix(causal; window(5,-1))");
    EXPECT(hra::mask::mix({causal, near}).count(0, 0, 9, 7) == 2 && !near.allows(0, 0, 9, 9));

    std::vector<std::int64_t> backwards(60);
    std::iota(backwards.rbegin(), backwards.rend(), 0);
    const hra::order order = hra::order::permutation(line, backwards);
    EXPECT(order.token_to_slot()[1] == 58 && order.slot_to_token().size() == 60);
    EXPECT(std::string(order.info().name) == "permutation" && order.info().unit_steps == 59);
    EXPECT(hra::mask(line, order, "slots(window(0,-1))").allows(0, 0, 3, 4) == false);
    EXPECT(hra::mask(line, order, "slots(window(1,-1))").allows(0, 0, 3, 4));
}

void lists()
{
    hra::comm comm = hra::comm::model(1, 4);
    hra::problem problem;
    problem.heads = 2;
    problem.dim = 8;
    problem.tokens = 128 * 40;
    problem.type = HRA_F32;
    const hra::mask full = hra::mask::full(hra::domain(problem.tokens, problem.heads));
    hra::plan plan(comm, problem, full);

    EXPECT(plan.tiles(1, 0, 1).size() == 10 * 40); /* more than fit at the first guess */
    EXPECT(plan.tiles(2, 0, 0)[399].query_slot0 == 128 * 29);
    EXPECT(plan.moves(1, HRA_FORWARD).size() == 2 * 3 && plan.runs(1, HRA_BACKWARD).size() >= 4);
    EXPECT(plan.pieces().size() == 4 && plan.pieces()[3].rank == 3 && plan.rows(0) == plan.rows());
    EXPECT(plan.row_tokens(2)[0] == 128 * 20 && plan.row_slots(3).size() == 1280);
    EXPECT(thrown([&] { plan.rows(4); }).status() == HRA_ERR_ARG);
    EXPECT(thrown([&] { plan.tiles(1, 0, 2); }).status() == HRA_ERR_ARG);

    std::vector<float> x(plan.q_shape().count());
    const auto view = hra::view<float>::batch_first(x.data(), plan.q_shape());
    hra::host_memory workspace(plan.info().workspace_bytes);
    EXPECT(reinterpret_cast<std::uintptr_t>(workspace.data()) % 64 == 0);
    EXPECT(thrown([&] { plan.forward(view, view, view, view, nullptr, workspace); }).status() ==
           HRA_ERR_STATE);
}

/* A machine, by which a schedule is chosen and on which a pass is played. */
hra::machine slow_links()
{
    hra::machine m;
    m.node_ranks = 2;
    m.inside.rate = m.between.rate = 1e9;
    m.inside.sharing = m.between.sharing = 1;
    for (int pass = 0; pass < 2; pass++)
        m.full[pass] = m.partial[pass] = 1e12;
    m.memory = 1e12;
    return m;
}

void forecasts()
{
    hra::comm comm = hra::comm::model(1, 4);
    const hra::machine machine = slow_links();
    hra::problem problem;
    problem.heads = 4;
    problem.heads_kv = 2;
    problem.dim = 8;
    problem.tokens = 128 * 40;
    problem.type = HRA_F32;
    hra::options options;
    options.machine = &machine;
    const hra::domain domain(problem.tokens, problem.heads);
    const hra::mask full = hra::mask::full(domain);
    const hra::order residues(domain, "residues:1280:5");
    hra::plan chosen(comm, problem, full, options);
    EXPECT(chosen.info().schedule != nullptr);
    options.schedule = HRA_SCHEDULE_HEADS;
    hra::plan plan(comm, problem, residues, hra::mask(domain, "dilated(1280,5,0,residue)"), options);
    EXPECT(std::string(plan.info().schedule) == "heads" && plan.info().tiles_partial == 0);
    hra::plan dense(comm, problem, full, options);

    hra::forecast forecast = dense.forecast(machine, HRA_FORWARD, 2);
    EXPECT(forecast.info().seconds > forecast.info().compute_most_s && forecast.info().messages > 0);
    EXPECT(!forecast.spans(1).empty() && forecast.info(1).received > 0);
    EXPECT(thrown([&] { forecast.spans(2); }).status() == HRA_ERR_ARG);
    EXPECT(thrown([&] { forecast.info(4); }).status() == HRA_ERR_ARG);
    hra::machine none;
    EXPECT(none.size == sizeof(hra_machine));
    EXPECT(thrown([&] { dense.forecast(none, HRA_FORWARD); }).status() == HRA_ERR_ARG);
    options.machine = &none;
    EXPECT(thrown([&] { hra::plan(comm, problem, full, options); }).status() == HRA_ERR_ARG);
    problem.heads_kv = 1;
    options.machine = nullptr;
    EXPECT(thrown([&] { hra::plan(comm, problem, full, options); }).status() == HRA_ERR_UNSUPPORTED);
    hra::forecast adopted = hra::forecast::adopt(forecast.release());
    EXPECT(adopted.info().seconds > 0 && forecast.get() == nullptr);
}

/* Handles have one owner. */
template <typename... Handle> constexpr bool only_move()
{
    return ((!std::is_copy_constructible_v<Handle> && !std::is_copy_assignable_v<Handle> &&
             std::is_nothrow_move_constructible_v<Handle> && std::is_nothrow_move_assignable_v<Handle>)&&...);
}
static_assert(only_move<hra::comm, hra::order, hra::mask, hra::plan, hra::hops, hra::forecast, hra::trace>(),
              "");

void moves()
{
    hra::problem problem;
    problem.heads = 1;
    problem.dim = 8;
    problem.tokens = 50;
    problem.type = HRA_F32;
    const hra::domain domain(50);

    hra::comm first = hra::comm::self(), second = std::move(first);
    EXPECT(first.get() == nullptr && second.ranks() == 1);
    first = std::move(second);
    EXPECT(second.get() == nullptr && first.rank() == 0);

    std::vector<hra::plan> plans;
    for (const char *text : {"causal", "full", "window(3,0)"})
        plans.emplace_back(first, problem, hra::mask(domain, text));
    EXPECT(plans[2].info().pairs_live == 4 * 50 - 6);
    plans[0] = std::move(plans[1]);
    EXPECT(plans[0].info().pairs_live == 2500 && plans[1].get() == nullptr);
    EXPECT(thrown([&] { plans[1].info(); }).status() == HRA_ERR_ARG);

    /* Through C and back. */
    hra_plan *const bare = plans[0].release();
    plans[0] = hra::plan::adopt(bare, first, problem);
    EXPECT(plans[0].get() == bare && plans[0].q_shape() == hra::shape{1, 50, 1, 8});
    first = hra::comm::adopt(first.release());
    hra::mask mask = hra::mask::adopt(hra::mask(domain, "full").release());
    hra::order order = hra::order::adopt(hra::order(domain, "identity").release());
    EXPECT(mask.text() == "full" && order.info().tokens == 50);
    mask.reset();
    EXPECT(mask.get() == nullptr);

    /* A plan that lives keeps its communicator, which says so and goes on. */
    const hra::error refused = thrown([&] { first.close(); });
    EXPECT(refused.status() == HRA_ERR_STATE && first.get() != nullptr);
    EXPECT(refused.sentence() ==
           std::string("the communicator cannot be destroyed while 2 of its plans live"));
    plans.clear();
    first.close();
    first.close(); /* nothing is left to close */
}

void transports()
{
    {
        hra::comm comm = hra::comm::mpi(MPI_COMM_WORLD);
        hra::hops hops(comm, 100000, 3);
        hops.run();
        hops.check();
        hra::hops adopted = hra::hops::adopt(hops.release());
        EXPECT(adopted.get() != nullptr && hops.get() == nullptr);
        EXPECT(thrown([&] { hra::hops(comm, 0, 1); }).status() == HRA_ERR_ARG);
    }
    const hra::error refused = thrown([] { hra::comm::unique(5, 1, hra::unique_id()); });
    EXPECT(refused.status() == HRA_ERR_ARG || refused.status() == HRA_ERR_UNSUPPORTED);
    const hra::error none = thrown([] { hra::get_unique_id(); });
    EXPECT(none.status() == HRA_OK || none.status() == HRA_ERR_UNSUPPORTED);
#ifdef WITH_NCCL
    EXPECT(thrown([] { hra::comm::nccl(ncclComm_t()); }).status() == HRA_ERR_ARG);
#endif
    EXPECT(thrown([] { hra::comm::mpi(MPI_COMM_NULL); }).status() == HRA_ERR_ARG);
}

/* ---- Failures -------------------------------------------------------------------------------- */

void exceptions()
{
    const hra::domain domain(100, 2), picture({10, 10});
    const hra::error parse = thrown([&] { hra::mask(domain, "causal & widnow(3,4)"); });
    EXPECT(parse.status() == HRA_ERR_ARG && parse.sentence() == std::string(hra_last_error()));
    EXPECT(begins(parse.sentence(), "mask: character 10: "));
    EXPECT(parse.what() == "HRA_ERR_ARG: " + std::string(parse.sentence()));
    try { /* as what its base is */
        hra::order(domain, "peano");
        EXPECT(!"reached");
    } catch (const std::runtime_error &error) {
        EXPECT(begins(error.what(), "HRA_ERR_ARG: order: no order is named 'peano'"));
    }

    /* What the header itself must find out, since the library would read past an end. */
    EXPECT(thrown([&] { hra::mask::grid(picture, {1}); }).sentence() ==
           std::string("hra::mask::grid: 1 radii are given, the grid has 2 axes"));
    EXPECT(begins(thrown([&] { hra::mask::grid(domain, {1}); }).sentence(), "grid mask: the domain of 100"));
    EXPECT(thrown([&] { hra::mask::neighbourhood(picture, {1, 2}, {1, 1, 1}); }).status() == HRA_ERR_ARG);
    EXPECT(thrown([&] { hra::mask::blocks(domain, 10, {0, 1}, {0}); }).status() == HRA_ERR_ARG);
    EXPECT(thrown([&] {
               hra::order::permutation(picture, {0, 1, 2});
           }).sentence() ==
           std::string("hra::order::permutation: 3 slots are given, the domain has 100 tokens"));
    EXPECT(thrown([] { hra::domain({1, 2, 3, 4}); }).status() == HRA_ERR_ARG);
    EXPECT(thrown([&] { hra::mask::docs(domain, {}); }).status() == HRA_ERR_ARG);

    hra::comm comm = hra::comm::self();
    hra::problem problem;
    problem.heads = 2;
    problem.dim = 8;
    problem.tokens = 100;
    problem.type = HRA_F32;
    hra::plan plan(comm, problem, hra::mask::full(domain));
    std::vector<float> x(plan.q_shape().count()), few(10);
    std::vector<double> wide(x.size());
    const auto good = hra::view<float>::batch_first(x.data(), plan.q_shape());
    const auto narrow = hra::view<float>::batch_first(x.data(), {1, 50, 2, 16});
    const auto other = hra::view<double>::batch_first(wide.data(), plan.q_shape());
    hra::host_memory workspace(plan.info().workspace_bytes), little(8);
    {
        const hra::trace trace = plan.trace();
        std::vector<float> y(x.size());
        EXPECT(thrown([&] { plan.trace(); }).status() == HRA_ERR_STATE);
        EXPECT(thrown([&] { trace.spans(HRA_FORWARD); }).status() == HRA_ERR_STATE);
        plan.forward(good, good, good, hra::view<float>::batch_first(y.data(), plan.q_shape()), nullptr,
                     workspace);
        const std::vector<hra_span> spans = trace.spans(HRA_FORWARD);
        EXPECT(spans.size() == 1 && spans[0].kind == HRA_SPAN_COMPUTE && spans[0].end_s > 0);
    }
    const hra_tensor bare = {x.data(), 0, 16, 8};
    EXPECT(thrown([&] { plan.forward(good, narrow, good, good, nullptr, workspace); }).sentence() ==
           std::string("hra::plan::forward: k has shape [1][50][2][16]; it must be [1][100][2][8]"));
    EXPECT(thrown([&] { plan.forward(good, good, other, good, nullptr, workspace); }).sentence() ==
           std::string("hra::plan::forward: v has numbers of 8 bytes; it must be f32"));
    EXPECT(thrown([&] { plan.forward(good, good, good, good, few, workspace); }).sentence() ==
           std::string("hra::plan::forward: lse has 40 bytes; it must have 800"));
    EXPECT(thrown([&] { plan.forward(good, good, good, good, wide, workspace); }).status() == HRA_ERR_ARG);
    EXPECT(begins(thrown([&] { plan.forward(good, good, good, good, nullptr, little); }).sentence(),
                  "hra::plan::forward: workspace has 8 bytes; it must have "));
    EXPECT(begins(thrown([&] {
                      plan.forward(good, good, good, hra_tensor{nullptr, 0, 16, 8}, nullptr, workspace);
                  }).sentence(),
                  "o.data is (nil)"));
    EXPECT(thrown([&] { plan.gather(bare, good); }).status() == HRA_ERR_ARG);
    EXPECT(thrown([&] { plan.gather(narrow, good); }).status() == HRA_ERR_ARG);
    EXPECT(thrown([&] {
               plan.backward(good, good, good, good, nullptr, good, nullptr, good, good, good, workspace);
           }).sentence() == std::string("hra_backward: lse is NULL; it needs the forward's"));

    float single = 1.00390625f, back;
    std::uint16_t half;
    hra::convert(&half, HRA_BF16, &single, HRA_F32, 1);
    hra::convert(&back, HRA_F32, &half, HRA_BF16, 1);
    EXPECT(back == 1.0f);
    EXPECT(thrown([&] { hra::convert(&half, HRA_BF16, &single, HRA_F32, -1); }).status() == HRA_ERR_ARG);
}

/* All ranks throw the same, and the communicator goes on. */
void mismatch()
{
    hra::comm comm = hra::comm::mpi(MPI_COMM_WORLD);
    hra::problem problem;
    problem.heads = 1;
    problem.dim = rank == 1 ? 16 : 8;
    problem.tokens = 64;
    problem.type = HRA_F32;
    const hra::mask full = hra::mask::full(hra::domain(64));
    const hra::error error = thrown([&] { hra::plan(comm, problem, full); });
    EXPECT(error.status() == HRA_ERR_MISMATCH);
    EXPECT(error.sentence() == std::string("rank 1 plans dim 16, rank 0 8"));
    problem.dim = 8;
    EXPECT(hra::plan(comm, problem, full).info().pairs_all == 64 * 64);
    comm.close();
}

/* Rank 0 throws where the others know nothing of it: what() is there at once, not after the time limit. */
void unwinding()
{
    hra::comm_options options;
    options.timeout_s = 20;
    const auto began = std::chrono::steady_clock::now();
    try {
        hra::comm comm = hra::comm::mpi(MPI_COMM_WORLD, options);
        if (rank == 0)
            throw hra::error(HRA_ERR_ARG, "planted");
        char word;
        MPI_Bcast(&word, 1, MPI_CHAR, 0,
                  MPI_COMM_WORLD); /* holds this communicator until rank 0 has caught */
        throw hra::error(HRA_ERR_ARG, "planted here too");
    } catch (const hra::error &) {
        char word = 0;
        if (rank == 0)
            MPI_Bcast(&word, 1, MPI_CHAR, 0, MPI_COMM_WORLD);
    }
    EXPECT(seconds_since(began) < 10);

    /* An exception that is caught while the communicator lives changes nothing, nor one that was caught before. */
    try {
        throw 1;
    } catch (int) {
        hra::comm comm = hra::comm::mpi(MPI_COMM_WORLD);
        EXPECT(thrown([] { hra::check(hra_comm_create_self(nullptr)); }).status() == HRA_ERR_ARG);
        comm.close();
    }
}

/* Ranks that do not come: the others throw in time, and what is left goes without them. */
void timeouts()
{
    hra::comm_options options;
    options.timeout_s = 1;
    hra::problem problem;
    problem.heads = 1;
    problem.dim = 8;
    problem.tokens = 600;
    problem.type = HRA_F32;
    MPI_Barrier(MPI_COMM_WORLD); /* until here ranks may have come far apart */
    const auto began = std::chrono::steady_clock::now();
    {
        hra::comm comm = hra::comm::mpi(MPI_COMM_WORLD, options);
        hra::plan plan(comm, problem, hra::mask::full(hra::domain(600)));
        std::vector<float> x(plan.q_shape().count()), y(x.size());
        const auto in = hra::view<float>::batch_first(x.data(), plan.q_shape()),
                   out = hra::view<float>::batch_first(y.data(), plan.q_shape());
        hra::host_memory workspace(plan.info().workspace_bytes);
        if (rank == 0) {
            const hra::error late = thrown([&] { plan.forward(in, in, in, out, nullptr, workspace); });
            EXPECT(late.status() == HRA_ERR_TIMEOUT && comm.status() == HRA_ERR_TIMEOUT);
            EXPECT(begins(thrown([&] { plan.forward(in, in, in, out, nullptr, workspace); }).sentence(),
                          "the communicator failed earlier: forward of plan "));
        }
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank != 0) {
            plan.reset();
            EXPECT(thrown([&] { comm.close(); }).status() == HRA_ERR_TIMEOUT && comm.get() == nullptr);
        }
    }
    EXPECT(seconds_since(began) < 10);
}

/* The mistake that a destructor cannot throw: the assertion, in a process of its own. */
void wrong_order()
{
    const pid_t child = fork();
    if (child == 0) {
        std::freopen("/dev/null", "w", stderr);
        hra::problem problem;
        problem.heads = 1;
        problem.dim = 8;
        problem.tokens = 8;
        problem.type = HRA_F32;
        std::vector<hra::plan> plans;
        {
            hra::comm comm = hra::comm::self();
            plans.emplace_back(comm, problem, hra::mask::full(hra::domain(8)));
        }
        _exit(0);
    }
    int status = 0;
    EXPECT(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

} // namespace

int main(int argc, char **argv)
{
    wrong_order(); /* before MPI, whose processes should not fork */
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    try {
        if (ranks < 2)
            throw std::runtime_error("wants two ranks or more");
        attention();
        masks_and_orders();
        lists();
        forecasts();
        moves();
        transports();
        exceptions();
        mismatch();
        unwinding();
        timeouts();
    } catch (const std::exception &error) {
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Allreduce(MPI_IN_PLACE, &failures, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0)
        std::printf("%s\n", failures == 0 ? "ok" : "FAILED");
    MPI_Finalize();
    return failures == 0 ? 0 : 1;
}

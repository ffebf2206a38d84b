/* check.cpp - see check.hpp. */
#include "check.hpp"
#include "fail.hpp"

#include <cmath>

namespace
{
/* The model on this rank alone, with the same weights and the same data. */
struct one_rank {
    options o;
    std::unique_ptr<device> d;
    grid g;
    attention a;
    model m;
    feed f;

    one_rank(const options &all, const text &t)
        : o(alone(all)), d(open_cpu(HRA_F64, static_cast<int>(o.threads))), g(*d, MPI_COMM_SELF, o.grid),
          a(*d, *g.tensor, *g.context, o), m(*d, g, a, o), f(t, o, a.row_tokens(), 0, 0, o.batch)
    {
        m.parameters.draw(o.seed, all.type);
    }
    double run(bool backward)
    {
        return m.run(f, backward);
    }

  private:
    static options alone(options o)
    {
        o.grid = grid_size();
        o.backend = HRA_BACKEND_CPU;
        o.type = HRA_F64;
        return o;
    }
};

/* count numbers of the device as doubles. */
std::vector<double> fetch(device &d, const void *numbers, int64_t count)
{
    std::vector<double> raw(static_cast<size_t>(count)), value(raw.size());

    d.read(raw.data(), numbers, raw.size() * hra_type_bytes(d.sums));
    try_hra(hra_convert(value.data(), HRA_F64, raw.data(), d.sums, count));
    return value;
}

double length(const std::vector<double> &v)
{
    double square = 0;

    for (double x : v)
        square += x * x;
    return std::sqrt(square);
}

struct worst {
    double error = -1; /* nothing met yet */
    std::string name;

    void meet(double e, const std::string &n)
    {
        if (!(e <= error)) { /* a NaN too */
            error = e;
            name = n;
        }
    }
};

/* Our parts of the gradients beside those of the whole model: |difference| / |whole gradient| of a weight. */
worst compare(device &d, model &m, one_rank &one)
{
    worst all;

    for (size_t n = 0; n < m.parameters.all().size(); n++) {
        const weight &w = m.parameters.all()[n], &whole = one.m.parameters.all()[n];
        const std::vector<double> got = fetch(d, m.parameters.gradient(w.at), w.count());
        const std::vector<double> want = fetch(*one.d, one.m.parameters.gradient(whole.at), whole.count());
        std::vector<double> difference;

        for (int64_t r = w.row0; r < w.row1; r++)
            for (int64_t c = w.column0; c < w.column1; c++)
                difference.push_back(got[difference.size()] - want[static_cast<size_t>(r * w.columns + c)]);
        all.meet(length(difference) / length(want), w.name);
    }
    return all;
}

/* The slope of the loss along a direction of each weight, by the gradient and by two losses. The direction is
 * half the gradient's own, so that the slope is not lost among rounding errors, and half a random one. */
worst compare_slopes(one_rank &one)
{
    constexpr double STEP = 1e-4; /* of a direction of length 1 to 2 */
    worst all;

    for (size_t n = 0; n < one.m.parameters.all().size(); n++) {
        const weight &w = one.m.parameters.all()[n];
        const std::vector<double> gradient = fetch(*one.d, one.m.parameters.gradient(w.at), w.count());
        const std::vector<double> begun = fetch(*one.d, one.m.parameters.master(w.at), w.count());
        const double steep = length(gradient);
        double slope = 0, loss[2];
        std::vector<double> direction(begun.size()), moved(begun.size());

        for (size_t i = 0; i < direction.size(); i++)
            direction[i] = random_uniform(1, n, i) - 0.5;
        const double random = length(direction);
        for (size_t i = 0; i < direction.size(); i++) {
            direction[i] = direction[i] / random + gradient[i] / steep;
            slope += direction[i] * gradient[i];
        }
        for (int side : {0, 1}) {
            for (size_t i = 0; i < moved.size(); i++)
                moved[i] = begun[i] + (side == 0 ? -STEP : STEP) * direction[i];
            one.d->write(one.m.parameters.work(w.at), moved.data(), moved.size() * sizeof(double));
            loss[side] = one.run(false);
        }
        one.d->write(one.m.parameters.work(w.at), begun.data(), begun.size() * sizeof(double));
        all.meet(std::fabs((loss[1] - loss[0]) / (2 * STEP) - slope) / steep, w.name);
    }
    return all;
}

/* The largest of all ranks' errors; rank 0 prints it. Collective. */
bool report(const char *what, const worst &mine, double most, MPI_Comm world)
{
    struct {
        double error;
        int rank;
    } here = {std::isfinite(mine.error) ? mine.error : HUGE_VAL, 0}, there;
    char name[64];

    MPI_Comm_rank(world, &here.rank);
    MPI_Allreduce(&here, &there, 1, MPI_DOUBLE_INT, MPI_MAXLOC, world);
    std::snprintf(name, sizeof(name), "%s", mine.name.c_str());
    MPI_Bcast(name, sizeof(name), MPI_CHAR, there.rank, world);
    if (here.rank == 0)
        std::printf("%-7s %s: %.1e in %s on rank %d, at most %.0e\n", there.error <= most ? "ok" : "FAILED",
                    what, there.error, name, there.rank, most);
    return there.error <= most;
}
} // namespace

bool check_gradients(device &d, grid &g, model &m, const attention &a, const options &o, const text &t,
                     MPI_Comm world)
{
    /* Roundings of one pass; a bf16 number has 8 bits. */
    const double most = o.type == HRA_F64 ? 1e-11 : o.type == HRA_F32 ? 1e-4 : 5e-2;
    int rank;

    MPI_Comm_rank(world, &rank);
    const feed f(t, o, a.row_tokens(), 0, g.data_rank * o.local_batch(), o.local_batch());
    const double loss = m.run(f, true);
    one_rank one(o, t);
    const double wanted = one.run(true);
    worst losses, gradients = compare(d, m, one), slopes;
    losses.meet(std::fabs(loss - wanted) / wanted, "the loss");
    slopes.meet(0, "");
    if (rank == 0)
        slopes = compare_slopes(one);

    bool good = report("loss, one rank in f64", losses, most, world);
    good &= report("gradients, one rank in f64", gradients, most, world);
    good &= report("slopes of one rank, finite differences", slopes, 1e-5, world);
    return good;
}

/* train.cpp - trains a transformer on a grid of ranks, tensor x context x data, in the shape of Megatron.
 *
 *     mpirun -n 8 megatron --grid 2x2x2 --text FILE
 *
 * Everything that is drawn depends on the options and not on the grid, so every grid follows the same path,
 * up to rounding. Rank 0 alone reads and writes files. */
#include "check.hpp"
#include "fail.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sched.h>

namespace
{
/* The user gave something wrong; the job could not be done. */
enum { EXIT_WRONG = 2, EXIT_FAILED = 1 };

/* This rank's number on its node, and how many are there. Collective. */
void find_node(int *rank, int *ranks)
{
    MPI_Comm node;

    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, rank);
    MPI_Comm_size(node, ranks);
    MPI_Comm_free(&node);
}

/* The cores that this process may use, shared out. libhra's own default would count only the ranks of the
 * context group, as it knows no others. */
int64_t default_threads(int local_ranks)
{
    cpu_set_t cores;

    CPU_ZERO(&cores);
    const int count = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
    return std::max(1, count / local_ranks);
}

/* Collective. */
std::unique_ptr<device> open_device(options &o)
{
    int local_rank, local_ranks;

    find_node(&local_rank, &local_ranks);
    if (o.threads == 0)
        o.threads = default_threads(local_ranks);
#ifdef MEGATRON_CUDA
    if (o.backend == HRA_BACKEND_GPU) {
        int lacking = std::max(0, local_ranks - cuda_gpus()), most;
        MPI_Allreduce(&lacking, &most, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
        if (most > 0)
            throw wrong(sentence("NCCL wants a GPU for each rank; on some node there are %d too few", most));
        return open_cuda(o.type, local_rank);
    }
#endif
    return open_cpu(o.type, static_cast<int>(o.threads));
}

/* Lines of JSON, on rank 0. */
class journal
{
  public:
    /* Throws wrong on all ranks where the file cannot be opened. Collective. */
    journal(const std::string &path, int rank) : path(path)
    {
        int error = 0;

        if (rank == 0 && !path.empty() && (file = std::fopen(path.c_str(), "w")) == nullptr)
            error = errno;
        MPI_Bcast(&error, 1, MPI_INT, 0, MPI_COMM_WORLD);
        if (error != 0)
            throw wrong(sentence("cannot write %s: %s", path.c_str(), std::strerror(error)));
    }
    ~journal()
    {
        if (file != nullptr)
            std::fclose(file);
    }
    journal(const journal &) = delete;
    journal &operator=(const journal &) = delete;

    void line(int64_t step, double loss, double rate, double seconds, double tokens)
    {
        if (file == nullptr)
            return;
        std::fprintf(
            file,
            "{\"step\": %lld, \"loss\": %.12g, \"rate\": %.6g, \"seconds\": %.6g, \"tokens_per_s\": %.6g}\n",
            static_cast<long long>(step), loss, rate, seconds, tokens / seconds);
        if (std::fflush(file) != 0)
            fail(sentence("cannot write %s: %s", path.c_str(), std::strerror(errno)));
    }

  private:
    std::string path;
    FILE *file = nullptr;
};

/* Rises over the warm-up, then falls along a cosine to a tenth. */
double rate_of(const options &o, int64_t step)
{
    if (step <= o.warmup)
        return o.rate * static_cast<double>(step) / static_cast<double>(o.warmup);
    const double done = static_cast<double>(step - o.warmup) / static_cast<double>(o.steps - o.warmup);
    return o.rate * (0.55 + 0.45 * std::cos(std::acos(-1.0) * done));
}

void announce(const options &o, const text &t, const model &m, const hra_plan_info &info)
{
    std::printf("%s: %lld bytes; %lld sequences of %lld tokens a step\n", o.text.c_str(),
                static_cast<long long>(t.count()), static_cast<long long>(o.batch),
                static_cast<long long>(o.tokens));
    std::printf("model: %lld layers, %lld channels, %lld heads, %lld parameters, %s\n",
                static_cast<long long>(o.layers), static_cast<long long>(o.channels),
                static_cast<long long>(o.heads), static_cast<long long>(m.parameters.whole_count()),
                hra_type_name(o.type));
    std::printf("grid: %d tensor x %d context x %d data ranks\n", o.grid.tensor, o.grid.context, o.grid.data);
    std::printf("attention: libhra %s, %s, %s over %s, %.1f %% of all pairs\n", hra_version(), info.backend,
                info.schedule, info.transport,
                100 * static_cast<double>(info.pairs_live) / static_cast<double>(info.pairs_all));
    std::fflush(stdout);
}

void train(const options &o, grid &g, const text &t, const attention &a, model &m, journal &j, int rank)
{
    const double tokens = static_cast<double>(o.batch) * static_cast<double>(o.tokens);

    for (int64_t step = 1; step <= o.steps; step++) {
        const double start = MPI_Wtime(), rate = rate_of(o, step);
        const feed f(t, o, a.row_tokens(), step, g.data_rank * o.local_batch(), o.local_batch());
        const double loss = m.run(f, true);
        if (!std::isfinite(loss)) /* on every rank */
            throw wrong(sentence("the loss of step %lld is %g; a lower --lr than %g may help",
                                 static_cast<long long>(step), loss, o.rate));
        const double n = static_cast<double>(step);
        m.parameters.advance({rate, o.decay, 1 / (1 - std::pow(BETA1, n)), 1 / (1 - std::pow(BETA2, n))});
        const double seconds = MPI_Wtime() - start;
        if (rank == 0) {
            std::printf("step %5lld   loss %.5f   %.0f tokens/s\n", static_cast<long long>(step), loss,
                        tokens / seconds);
            std::fflush(stdout);
        }
        j.line(step, loss, rate, seconds, tokens);
    }
}

/* Everything between MPI_Init and MPI_Finalize. The exit status. */
int run(int argc, char **argv, int rank, int ranks)
{
    options o = parse_options(argc, argv, ranks);

    if (o.help) {
        if (rank == 0)
            print_help();
        return 0;
    }
    const text t(o, MPI_COMM_WORLD);
    const std::unique_ptr<device> d = open_device(o);
    grid g(*d, MPI_COMM_WORLD, o.grid);
    attention a(*d, *g.tensor, *g.context, o);
    model m(*d, g, a, o);
    m.parameters.draw(o.seed, o.type);
    if (rank == 0)
        announce(o, t, m, a.plan_info());
    if (o.check)
        return check_gradients(*d, g, m, a, o, t, MPI_COMM_WORLD) ? 0 : EXIT_FAILED;
    journal j(o.json, rank);
    train(o, g, t, a, m, j, rank);
    return 0;
}
} // namespace

void fail(const std::string &why)
{
    int rank;

    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    std::fprintf(stderr, "megatron: rank %d: %s\n", rank, why.c_str());
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILED);
    std::abort(); /* not reached */
}

int main(int argc, char **argv)
{
    int provided, rank, ranks, status;

    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    std::set_new_handler([] { fail("no memory"); });
    try {
        status = run(argc, argv, rank, ranks);
    } catch (const wrong &e) { /* on all ranks alike */
        if (rank == 0)
            std::fprintf(stderr, "megatron: %s\n", e.what());
        status = EXIT_WRONG;
    }
    MPI_Finalize();
    return status;
}

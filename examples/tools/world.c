/* world.c - ranks under MPI, or one rank without it. */
#include "examples/tools/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef HRA_HAVE_MPI
#include <hra/mpi.h>
#endif

struct world world = {"", 0, 1, 0, 1};

/* ---- Ranks --------------------------------------------------------------------------------- */

void world_start(const char *tool, int *argc, char ***argv)
{
    world.tool = tool;
#ifdef HRA_HAVE_MPI
    MPI_Comm machine;
    int level;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.ranks);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &world.local);
    MPI_Comm_size(machine, &world.local_ranks);
    MPI_Comm_free(&machine);
#else
    (void)argc;
    (void)argv;
#endif
}

int world_end(int status)
{
#ifdef HRA_HAVE_MPI
    MPI_Finalize();
#endif
    return status;
}

_Noreturn void world_abort(const char *what, const char *why)
{
    fprintf(stderr, "%s: rank %d: %s: %s\n", world.tool, world.rank, what, why);
#ifdef HRA_HAVE_MPI
    MPI_Abort(MPI_COMM_WORLD, 1);
#endif
    exit(1);
}

void world_meet(void)
{
#ifdef HRA_HAVE_MPI
    MPI_Barrier(MPI_COMM_WORLD);
#endif
}

void world_max(double *x, int count)
{
    (void)x;
    (void)count;
#ifdef HRA_HAVE_MPI
    MPI_Allreduce(MPI_IN_PLACE, x, count, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
#endif
}

void world_add(double *x, int64_t count)
{
    (void)x;
    (void)count;
#ifdef HRA_HAVE_MPI
    const int64_t most = 1 << 24;
    for (int64_t done = 0; done < count; done += most) {
        const int now = (int)(count - done < most ? count - done : most);
        MPI_Reduce(world.rank == 0 ? MPI_IN_PLACE : (const void *)(x + done), x + done, now, MPI_DOUBLE,
                   MPI_SUM, 0, MPI_COMM_WORLD);
    }
#endif
}

void world_gather(void *all, const void *mine, int bytes)
{
#ifdef HRA_HAVE_MPI
    MPI_Allgather(mine, bytes, MPI_BYTE, all, bytes, MPI_BYTE, MPI_COMM_WORLD);
#else
    memcpy(all, mine, (size_t)bytes);
#endif
}

/* ---- Connections --------------------------------------------------------------------------- */

static const struct option_choice transports[] = {{"auto", HRA_TRANSPORT_AUTO}, {"mpi", HRA_TRANSPORT_MPI},
                                                  {"gpu", HRA_TRANSPORT_GPU},   {"nccl", HRA_TRANSPORT_NCCL},
                                                  {"peer", HRA_TRANSPORT_PEER}, {NULL, 0}};

void connection_options(struct option out[CONNECTION_OPTIONS], struct connection *c)
{
    const struct option all[CONNECTION_OPTIONS] = {
        {"transport", NULL,
         "how K/V travel (default auto: mpi); gpu: between GPUs, nccl or peer for each pair of ranks",
         OPTION_CHOICE, &c->transport, 0, 0, transports, 0},
        {"timeout", "S", "seconds that a rank waits for another (default 600); negative: without end",
         OPTION_REAL, &c->timeout_s, 0, 0, NULL, 0},
    };
    memcpy(out, all, sizeof(all));
}

const char *connection_name(const struct connection *c)
{
    const struct option_choice *t = transports;
    while (t->text != NULL && t->value != c->transport)
        t++;
    return t->text != NULL ? t->text : "?";
}

int connection_of_gpus(const struct connection *c)
{
    return c->transport != HRA_TRANSPORT_AUTO && c->transport != HRA_TRANSPORT_MPI;
}

int connection_complete(const struct connection *c, struct problem *p, char *error, size_t error_bytes)
{
#ifndef HRA_HAVE_MPI
    if (c->transport != HRA_TRANSPORT_AUTO) {
        snprintf(error, error_bytes,
                 "--transport: '%s' is not in this build, which was made without MPI and so has one rank",
                 connection_name(c));
        return -1;
    }
#endif
    if (!connection_of_gpus(c))
        return 0;
    if (world.ranks == 1) {
        snprintf(error, error_bytes,
                 "--transport: '%s' is between ranks and here is one; start them with mpirun -n RANKS",
                 connection_name(c));
        return -1;
    }
    if (p->backend == HRA_BACKEND_CPU) {
        snprintf(error, error_bytes, "--transport: '%s' moves memory of GPUs, and --backend is cpu",
                 connection_name(c));
        return -1;
    }
    if (p->backend == HRA_BACKEND_AUTO)
        p->backend = HRA_BACKEND_GPU;
    return 0;
}

hra_status connection_open(hra_comm **out, const struct connection *c)
{
#ifdef HRA_HAVE_MPI
    hra_comm_options options = HRA_COMM_OPTIONS_INIT;

    options.transport = (hra_transport_kind)c->transport;
    options.timeout_s = c->timeout_s;
    if (world.ranks > 1 || c->transport != HRA_TRANSPORT_AUTO)
        return hra_comm_create_mpi(out, MPI_COMM_WORLD, &options);
#endif
    (void)c;
    return hra_comm_create_self(out);
}

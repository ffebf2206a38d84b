/* groups.cpp - see groups.hpp. */
#include "groups.hpp"
#include "fail.hpp"

#include <algorithm>
#include <hra/mpi.h>
#include <vector>
#ifdef MEGATRON_CUDA
#include <cuda_runtime.h>
#include <hra/nccl.h>
#endif

namespace
{
/* ---- CPUs ---------------------------------------------------------------------------------- */

class mpi_group : public group
{
  public:
    mpi_group(MPI_Comm comm, int rank, int ranks) : group(rank, ranks), comm(comm)
    {
    }
    ~mpi_group() override
    {
        MPI_Comm_free(&comm);
    }
    hra_comm *open_hra() override
    {
        hra_comm *out = nullptr;

        try_hra(hra_comm_create_mpi(&out, comm, nullptr));
        return out;
    }

  protected:
    void reduce(void *data, int64_t count, hra_type type, reduction how) override
    {
        const MPI_Op op = how == reduction::sum ? MPI_SUM : MPI_MAX;

        if (type == HRA_BF16) { /* which MPI does not know */
            wide.resize(static_cast<size_t>(count));
            try_hra(hra_convert(wide.data(), HRA_F32, data, HRA_BF16, count));
            reduce(wide.data(), count, HRA_F32, how);
            try_hra(hra_convert(data, HRA_BF16, wide.data(), HRA_F32, count));
            return;
        }
        for (int64_t at = 0; at < count; at += 1 << 28) /* MPI counts in int */
            MPI_Allreduce(MPI_IN_PLACE, number_at(data, at, type),
                          static_cast<int>(std::min<int64_t>(count - at, 1 << 28)),
                          type == HRA_F64 ? MPI_DOUBLE : MPI_FLOAT, op, comm);
    }

  private:
    MPI_Comm comm; /* ours */
    std::vector<float> wide;
};

/* ---- GPUs ---------------------------------------------------------------------------------- */

#ifdef MEGATRON_CUDA
void try_nccl(ncclResult_t result, const char *call)
{
    if (result != ncclSuccess)
        fail(sentence("%s: %s", call, ncclGetErrorString(result)));
}

class nccl_group : public group
{
  public:
    /* The id of a new communicator goes to the other ranks over `comm`, which is not kept. */
    nccl_group(MPI_Comm comm, int rank, int ranks, cudaStream_t stream) : group(rank, ranks), stream(stream)
    {
        ncclUniqueId id;

        if (rank == 0)
            try_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
        MPI_Bcast(&id, sizeof(id), MPI_BYTE, 0, comm);
        try_nccl(ncclCommInitRank(&nccl, ranks, id, rank), "ncclCommInitRank");
        MPI_Comm_free(&comm);
    }
    ~nccl_group() override
    {
        ncclCommDestroy(nccl);
    }
    hra_comm *open_hra() override
    {
        hra_comm *out = nullptr;

        try_hra(hra_comm_create_nccl(&out, nccl, nullptr));
        return out;
    }

  protected:
    void reduce(void *data, int64_t count, hra_type type, reduction how) override
    {
        const ncclDataType_t kind = type == HRA_F64    ? ncclFloat64
                                    : type == HRA_BF16 ? ncclBfloat16
                                                       : ncclFloat32;

        try_nccl(ncclAllReduce(data, data, static_cast<size_t>(count), kind,
                               how == reduction::sum ? ncclSum : ncclMax, nccl, stream),
                 "ncclAllReduce");
    }

  private:
    ncclComm_t nccl;
    cudaStream_t stream; /* the device's */
};
#endif

/* The ranks of world that give the same colour, in the order of world. Collective. */
std::unique_ptr<group> split(device &d, MPI_Comm world, int colour)
{
    MPI_Comm comm;
    int rank, ranks;

    MPI_Comm_split(world, colour, 0, &comm);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &ranks);
#ifdef MEGATRON_CUDA
    if (d.backend == HRA_BACKEND_GPU)
        return std::make_unique<nccl_group>(comm, rank, ranks, static_cast<cudaStream_t>(d.stream));
#endif
    static_cast<void>(d); /* there are CPUs only */
    return std::make_unique<mpi_group>(comm, rank, ranks);
}
} // namespace

grid::grid(device &d, MPI_Comm world, const grid_size &size)
{
    int rank;

    MPI_Comm_rank(world, &rank);
    const int t = rank % size.tensor, c = rank / size.tensor % size.context;
    data_rank = rank / (size.tensor * size.context);
    tensor = split(d, world, c + size.context * data_rank);
    context = split(d, world, t + size.tensor * data_rank);
    replica = split(d, world, t);
}

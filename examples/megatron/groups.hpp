/* groups.hpp - the process grid, and the groups of ranks that add up tensors.
 *
 * rank = tensor + TENSOR (context + CONTEXT data), so that ranks of one tensor group are neighbours, as they
 * talk most:
 *   tensor    ranks that hold parts of each weight;       they add up activations
 *   context   ranks that hold parts of each sequence;     libhra moves K/V between them
 *   replica   ranks that hold the same part of the weights, so context x data; they add up gradients */
#ifndef MEGATRON_GROUPS_HPP
#define MEGATRON_GROUPS_HPP

#include "device.hpp"

#include <mpi.h>

enum class reduction { sum, most };

/* Ranks that reduce tensors of a device, by MPI on CPUs and by NCCL on GPUs. */
class group
{
  public:
    const int rank, ranks;

    virtual ~group() = default;
    group(const group &) = delete;
    group &operator=(const group &) = delete;

    /* In place, over the ranks of the group, behind what the device has been given before. Collective. */
    void all_reduce(void *data, int64_t count, hra_type type, reduction how)
    {
        if (ranks > 1 && count > 0)
            reduce(data, count, type, how);
    }

    /* A communicator of libhra over the same ranks, made from MPI's or NCCL's. The caller's. Collective. */
    virtual hra_comm *open_hra() = 0;

  protected:
    group(int rank, int ranks) : rank(rank), ranks(ranks)
    {
    }
    virtual void reduce(void *data, int64_t count, hra_type type, reduction how) = 0;
};

/* How many ranks each axis of the grid has. */
struct grid_size {
    int tensor = 1, context = 1, data = 1;
};

struct grid {
    std::unique_ptr<group> tensor, context, replica;
    int data_rank;

    /* Collective over world, which has tensor x context x data ranks. */
    grid(device &d, MPI_Comm world, const grid_size &size);
};

#endif

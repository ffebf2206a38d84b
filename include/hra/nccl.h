/* nccl.h - communicators of libhra made from NCCL's. */
#ifndef HRA_NCCL_H
#define HRA_NCCL_H

#include <hra/hra.h>
#include <nccl.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Make a communicator of the ranks of `parent`, which stays the caller's: ours is split off it (ncclCommSplit), so that
 * neither sees the other's transfers, and after a failure only ours is aborted (unless parent was made with splitShare,
 * which makes NCCL abort both). The current device is parent's. options NULL are the defaults; its transport is auto,
 * gpu, nccl or peer. Collective over parent. Only in libraries that were built with CUDA.
 * HRA_ERR_ARG: a NULL pointer, a device that is not parent's. HRA_ERR_UNSUPPORTED: a libnccl that cannot split, peer
 * where a pair of ranks cannot. HRA_ERR_TIMEOUT, HRA_ERR_COMM, HRA_ERR_CUDA. */
HRA_API hra_status hra_comm_create_nccl(hra_comm **out, ncclComm_t parent, const hra_comm_options *options);

#ifdef __cplusplus
}
#endif
#endif

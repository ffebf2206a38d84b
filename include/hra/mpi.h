/* mpi.h - communicators of libhra made from MPI's. Link libhra-mpi. */
#ifndef HRA_MPI_H
#define HRA_MPI_H

#include <hra/hra.h>
#include <mpi.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Make a communicator of the ranks of `parent`, which is duplicated and stays the caller's. The
 * caller has called MPI_Init (MPI_THREAD_FUNNELED is enough; all calls come from the thread that
 * calls libhra) and calls MPI_Finalize after hra_comm_destroy. options NULL are the defaults.
 * Collective over parent; options may differ between ranks but for message_bytes.
 * HRA_ERR_ARG: a NULL pointer, MPI_COMM_NULL, an intercommunicator, MPI not initialised or already
 * finalised, message_bytes above 2^31 - 1. HRA_ERR_MISMATCH: different message_bytes.
 * HRA_ERR_TIMEOUT, HRA_ERR_REMOTE, HRA_ERR_COMM. */
HRA_API hra_status hra_comm_create_mpi(hra_comm **out, MPI_Comm parent, const hra_comm_options *options);

#ifdef __cplusplus
}
#endif
#endif

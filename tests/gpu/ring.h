/* ring.h - communicators of the ranks of mpirun, for ring.c, and what faults.c does. */
#ifndef HRA_TESTS_GPU_RING_H
#define HRA_TESTS_GPU_RING_H

#include "tests/gpu/layer.h"

#include <hra/mpi.h>

/* A communicator whose ranks wait at most timeout_s for each other in executions. Collective over parent. */
hra_comm *ring_connect(MPI_Comm parent, hra_transport_kind transport, double timeout_s);

/* The whole program of one process of faults.c: argument is TRANSPORT, RANKS, FAULTS, SEED. Returns its exit status. */
int faults_run(hra_transport_kind transport, char *const argument[4]);

#endif

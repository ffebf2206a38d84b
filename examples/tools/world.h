/* world.h - the ranks of a tool: who they are, how they meet, and the communicator that they are asked to use. */
#ifndef HRA_TOOLS_WORLD_H
#define HRA_TOOLS_WORLD_H

#include "examples/tools/problem.h"

/* Who this process is. Does not change after world_start. */
struct world {
    const char *tool; /* its name, for messages */
    int rank, ranks;
    int local, local_ranks; /* number among the ranks of this machine, and how many those are */
};
extern struct world world;

/* Around everything else. tool: static storage. world_end returns `status`. */
void world_start(const char *tool, int *argc, char ***argv);
int world_end(int status);

/* Ends all ranks after a failure that the others may not know of. */
_Noreturn void world_abort(const char *what, const char *why);

/* Returns when all ranks have come. */
void world_meet(void);

/* Each of x [count] becomes the largest over the ranks, on all of them. */
void world_max(double *x, int count);

/* On rank 0 x [count] becomes the sum over the ranks. -inf of one rank with zeros of others, as in an lse of which
 * each rank knows its own rows, stays -inf. */
void world_add(double *x, int64_t count);

/* all [ranks][bytes] = every rank's mine [bytes]. */
void world_gather(void *all, const void *mine, int bytes);

/* How the ranks are to be connected. A zeroed one is the default. */
struct connection {
    int transport;    /* hra_transport_kind */
    double timeout_s; /* that a rank waits for another; 0: the library's default; negative: without end */
};

/* Write the options that set c. */
enum { CONNECTION_OPTIONS = 2 };
void connection_options(struct option out[CONNECTION_OPTIONS], struct connection *c);

/* Look for contradictions, and where p leaves the backend open choose the one that the transport needs. 0, or -1 and
 * one sentence in error [error_bytes]. */
int connection_complete(const struct connection *c, struct problem *p, char *error, size_t error_bytes);

/* 1: what travels goes from GPU to GPU; 0: through memory of the host. */
int connection_of_gpus(const struct connection *c);

/* The transport's name as it is written on the command line. */
const char *connection_name(const struct connection *c);

/* Collective; what an hra_comm_create_... returns. */
hra_status connection_open(hra_comm **out, const struct connection *c);

#endif

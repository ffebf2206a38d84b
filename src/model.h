/* model.h - a schedule played out in time: what the ranks of a plan would do when, on a machine that is described by a few
 * numbers. No file is read and no clock asked here.
 *
 * A rank has one stream, which does in order what the executor (ring.c) puts on it: it finishes what is under way on the
 * buffers of a round's moves, starts the moves, and for each run finishes what is under way on its buffers and computes.
 * To finish is to wait. A message may begin when both its ends have started it. */
#ifndef HRA_SRC_MODEL_H
#define HRA_SRC_MODEL_H

#include "src/plan.h"

/* What became of one rank. */
struct hra_model_rank {
    double seconds, compute, other, waiting;
    double alone; /* its work on one rank, without messages */
    int64_t sent, received, between, messages;
};

struct hra_model {
    int ranks;
    struct hra_model_rank *rank; /* [ranks] */
    int watched;
    hra_span **span; /* [watched] */
    int64_t *spans;  /* [watched] */
};

/* Read a machine, whose size the caller has set, fill in its defaults and look at its numbers. */
hra_status hra_machine_read(hra_machine *out, const hra_machine *machine, int ranks);

/* Which link of a kind a rank has, counted over all nodes; links of a node are its own. */
int hra_machine_link(const hra_machine *machine, const hra_link *link, int rank);

/* What things cost a rank in seconds, where its messages are left out. */
struct hra_costs {
    const hra_plan *plan; /* of which problem, layout and stats are read */
    const hra_machine *machine;
    hra_pass pass;
};

/* A live tile of a rank: of its full and its partial ones the mean. */
double hra_cost_tile(const struct hra_costs *c, int rank);

/* A kernel that computes so many live tiles, of tile_s each, of so many query tiles, for so many K/V heads. */
double hra_cost_kernel(const struct hra_costs *c, double tile_s, int64_t tiles, int64_t queries,
                       int heads_kv);

/* So many bytes that kernels read and write, in so many launches. */
double hra_cost_memory(const struct hra_costs *c, double bytes, int64_t launches);

/* Of how many parts messages may be that are sent from where the caller has K and V; 0: none are. */
int hra_cost_straight(const struct hra_costs *c);

/* Launches that copy or add both tensors of so many parts, in one call. */
static inline int64_t hra_cost_launches(int64_t parts)
{
    return (2 * parts + HRA_ROWS_AT_ONCE - 1) / HRA_ROWS_AT_ONCE;
}

/* What backward does before its schedule: sums to zero, unless they begin in the kernels, and delta; behind it: the sums into
 * dk and dv. Forward: 0. */
double hra_cost_before(const struct hra_costs *c, int rank);
double hra_cost_behind(const struct hra_costs *c, int rank);

/* Bytes, not seconds: so many rows of all K/V heads. */
double hra_cost_rows(const struct hra_costs *c, double rows, enum hra_payload payload);

/* Play out a pass of a plan on a machine that has been read. *out is to be cleared, also on failure. */
hra_status hra_model_play(struct hra_model *out, const hra_plan *plan, const hra_machine *machine,
                          hra_pass pass, int watched);

/* Frees what it holds, not the struct. */
void hra_model_clear(struct hra_model *model);

#endif

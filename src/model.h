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

/* Play out a pass of a plan on a machine that has been read. *out is to be cleared, also on failure. */
hra_status hra_model_play(struct hra_model *out, const hra_plan *plan, const hra_machine *machine,
                          hra_pass pass, int watched);

/* Frees what it holds, not the struct. */
void hra_model_clear(struct hra_model *model);

#endif

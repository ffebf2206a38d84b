/* choose.h - the schedule of a plan that is told none: the one that should take least time. */
#ifndef HRA_SRC_CHOOSE_H
#define HRA_SRC_CHOOSE_H

#include "src/model.h"

/* The machine that a plan is made for: the caller's, whose numbers are looked at, or where that is NULL the usual one of the
 * plan's backend, on which all ranks are on one node until somebody knows better. */
hra_status hra_choose_machine(hra_machine *out, const hra_machine *given, const struct hra_backend *backend,
                              int ranks);

/* Estimate ring, halo and heads, forward and backward together, and set schedule and generator. Wants the stats and the work
 * of all ranks, in which all ranks have the same; then all choose the same. */
hra_status hra_choose_schedule(hra_plan *plan);

#endif

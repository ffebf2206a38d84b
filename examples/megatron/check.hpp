/* check.hpp - whether the gradients of a grid are right. */
#ifndef MEGATRON_CHECK_HPP
#define MEGATRON_CHECK_HPP

#include "model.hpp"
#include "text.hpp"

/* Compare loss and gradients of the first step with those of one rank in f64 on a CPU, which every rank
 * computes for itself, and those, on rank 0, with finite differences. Prints what it finds; false where
 * something is off. Collective over world. */
bool check_gradients(device &d, grid &g, model &m, const attention &a, const options &o, const text &t,
                     MPI_Comm world);

#endif

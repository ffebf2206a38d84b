/* pool.h - threads that share out numbered tasks. */
#ifndef HRA_KERNELS_CPU_POOL_H
#define HRA_KERNELS_CPU_POOL_H

#include "kernels/kernels.h"

struct hra_pool;

/* threads >= 1, the caller's included: threads - 1 are started. */
hra_status hra_pool_create(struct hra_pool **out, int threads);

/* Do task(state, i, thread) once for each i of 0 .. tasks - 1, in any order, on any thread 0 .. threads - 1, and
 * return when all are done. The caller works too, as thread 0, and polls between its tasks. One call at a time. */
void hra_pool_run(struct hra_pool *pool, int64_t tasks, void (*task)(void *state, int64_t i, int thread),
                  void *state, struct hra_poll poll);

/* Accepts NULL. */
void hra_pool_destroy(struct hra_pool *pool);

#endif

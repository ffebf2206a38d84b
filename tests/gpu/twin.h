/* twin.h - the oracle on a GPU, for problems that a CPU cannot do. */
#ifndef HRA_TESTS_GPU_TWIN_H
#define HRA_TESTS_GPU_TWIN_H

#include "examples/tools/oracle.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What oracle_exact does, in double on the current GPU, from the mask's counts alone. All of `a` is host memory. 0, or
 * -1 and one sentence to stderr. */
int twin_exact(const struct oracle *a);

#ifdef __cplusplus
}
#endif
#endif

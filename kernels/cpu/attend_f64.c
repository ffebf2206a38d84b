/* attend_f64.c - the CPU kernels in f64 arithmetic. For checking, so exp is libm's. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/number.h"

#include <math.h>

#define REAL double
#define REAL_TYPE HRA_F64
#define NAME(name) name##_f64
#define GEMM cblas_dgemm
#define EXP exp

#include "kernels/cpu/attend_body.h"

/* attend_f64.c - the CPU kernels in f64 arithmetic. For checking, so exp is libm's. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/number.h"

#include <math.h>

#define REAL double
#define REAL_TYPE HRA_F64
#define NAME(name) name##_f64
#define GEMM cblas_dgemm
#define INLINE static inline

INLINE double exp_one(double x)
{
    return exp(x);
}

INLINE double row_max(const double *x, int count, double begin)
{
    for (int c = 0; c < count; c++)
        begin = x[c] > begin ? x[c] : begin;
    return begin;
}

/* x = exp(x - high) in place, and their sum. */
INLINE double row_exp(double *x, int count, double high)
{
    double sum = 0;

    for (int c = 0; c < count; c++) {
        x[c] = exp(x[c] - high);
        sum += x[c];
    }
    return sum;
}

/* x = exp(x - lse), d = x * (d - delta), in place. */
INLINE void row_gradient(double *x, double *d, int count, double lse, double delta)
{
    for (int c = 0; c < count; c++) {
        x[c] = exp(x[c] - lse);
        d[c] = x[c] * (d[c] - delta);
    }
}

#include "kernels/cpu/attend_body.h"

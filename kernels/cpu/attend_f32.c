/* attend_f32.c - the CPU kernels in f32 arithmetic, for f32, bf16 and f16 tensors. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/number.h"

#define REAL float
#define REAL_TYPE HRA_F32
#define NAME(name) name##_f32
#define GEMM cblas_sgemm
#define EXP exp_f32

/* exp(x) to about one unit in the last place, in a form that compilers vectorise, which calls of libm are not.
 * x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7, whose remainder is 5e-9; times 2^n.
 * 0 below the smallest normal number, so exp(-inf) is exactly 0; a NaN stays one. */
static inline __attribute__((always_inline)) float exp_f32(float x)
{
    const float shift = 0x1.8p23f; /* its addition rounds to an integer, in the last bits */
    float y = x > 88.0f ? 88.0f : x;
    y = y < -87.0f ? -87.0f : y;
    const float z = y * 0x1.715476p+0f + shift, n = z - shift;
    const float r =
        (y - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f; /* ln 2 in two parts; n times the first is exact */
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const float power = hra_float_of((hra_bits_of(z) - hra_bits_of(shift) + 127) << 23);
    return x < -87.0f ? 0.0f : p * power;
}

#include "kernels/cpu/attend_body.h"

/* attend_f32.c - the CPU kernels in f32 arithmetic, for f32, bf16 and f16 tensors.
 *
 * Rows of a tile are worked on in vectors of gcc's and clang's, 16 numbers whatever the processor has. Loops left to
 * the compiler cost 5 % of a forward: it adds up the lanes of a row one after another. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/number.h"

#include <math.h>

#define REAL float
#define REAL_TYPE HRA_F32
#define NAME(name) name##_f32
#define GEMM cblas_sgemm
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE floats all(float x)
{
    return x - (floats){0};
}

/* a where `which` is all ones, b where it is 0. */
INLINE floats pick(ints which, floats a, floats b)
{
    return (floats)(((ints)a & which) | ((ints)b & ~which));
}

/* All ones in the first `count` lanes. */
INLINE ints first_lanes(int count)
{
    const ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < count;
}

INLINE floats larger(floats a, floats b)
{
    return pick(a > b, a, b);
}

/* Lane i of the result is lane i + 8, i + 4, i + 2, i + 1 of v, modulo twice that. */
#define HALF(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define QUARTER(v) __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define EIGHTH(v) __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define NEXT(v) __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)

/* exp(x) to about one unit in the last place. x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7,
 * whose remainder is 5e-9; times 2^n. 0 below the smallest normal number, so exp(-inf) is exactly 0; a NaN stays
 * one. */
INLINE floats exp_lanes(floats x)
{
    const float shift = 0x1.8p23f; /* its addition rounds to an integer, in the last bits */
    floats y = pick(x > 88.0f, all(88.0f), x);
    y = pick(y < -87.0f, all(-87.0f), y);
    const floats z = y * 0x1.715476p+0f + shift, n = z - shift;
    const floats r =
        (y - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f; /* ln 2 in two parts; n times the first is exact */
    floats p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const floats power = (floats)(((ints)z - (int32_t)hra_bits_of(shift) + 127) << 23);
    return pick(x < -87.0f, (floats){0}, p * power);
}

INLINE float exp_one(float x)
{
    return exp_lanes(all(x))[0];
}

/* Rows lie HRA_TILE apart, so the lanes beyond `count` of the last vector may be read and written. */
INLINE float row_max(const float *x, int count, float begin)
{
    floats high = all(begin);

    for (int c = 0; c < count; c += LANES) {
        const floats v = *(const floats *)(x + c);
        high = larger(c + LANES <= count ? v : pick(first_lanes(count - c), v, high), high);
    }
    high = larger(high, HALF(high));
    high = larger(high, QUARTER(high));
    high = larger(high, EIGHTH(high));
    return larger(high, NEXT(high))[0];
}

/* x = exp(x - high) in place, and their sum. */
INLINE float row_exp(float *x, int count, float high)
{
    floats sum = {0};

    for (int c = 0; c < count; c += LANES) {
        floats v = exp_lanes(*(const floats *)(x + c) - high);
        *(floats *)(x + c) = v;
        sum += c + LANES <= count ? v : pick(first_lanes(count - c), v, (floats){0});
    }
    sum += HALF(sum);
    sum += QUARTER(sum);
    sum += EIGHTH(sum);
    return (sum + NEXT(sum))[0];
}

/* x = exp(x - lse), d = x * (d - delta), in place. */
INLINE void row_gradient(float *x, float *d, int count, float lse, float delta)
{
    for (int c = 0; c < count; c += LANES) {
        const floats p = exp_lanes(*(const floats *)(x + c) - lse);
        *(floats *)(x + c) = p;
        *(floats *)(d + c) = p * (*(const floats *)(d + c) - delta);
    }
}

#include "kernels/cpu/attend_body.h"

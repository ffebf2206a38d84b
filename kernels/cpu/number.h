/* number.h - the number types on the host: bf16 and f16 to f32 and back, in forms that compilers vectorise. */
#ifndef HRA_KERNELS_CPU_NUMBER_H
#define HRA_KERNELS_CPU_NUMBER_H

#include <stdint.h>
#include <string.h>

/* Functions marked so are compiled for several processors, and the loader picks one. Not under the
 * sanitizers: their runtime is not up yet when the loader asks. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define HRA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HRA_CLONES
#endif

static inline uint32_t hra_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float hra_float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline float hra_from_bf16(uint16_t h)
{
    return hra_float_of((uint32_t)h << 16);
}

/* To nearest, ties to even: add just under half a unit, plus one where the kept part is odd. */
static inline uint16_t hra_to_bf16(float x)
{
    const uint32_t bits = hra_bits_of(x);
    const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const uint32_t quiet = bits | 0x400000; /* a NaN stays one, even if only its lower bits were set */
    return (uint16_t)((x != x ? quiet : rounded) >> 16);
}

/* Exponent and fraction move into place, and a product with 2^112 corrects the exponent's bias, which
 * makes subnormals right as well; an exponent of all ones is put back by hand. */
static inline float hra_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    const uint32_t finite = hra_bits_of(hra_float_of(rest) * 0x1p112f);
    const uint32_t bits = rest >= 0x0f800000 ? rest | 0x7f800000 : finite;
    return hra_float_of(sign | bits);
}

/* To nearest, ties to even. A subnormal result is rounded by the addition of 0.5, whose last place is f16's
 * smallest number; a normal one as in hra_to_bf16, with the bias taken off. */
static inline uint16_t hra_to_f16(float x)
{
    const uint32_t bits = hra_bits_of(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    const uint32_t small = hra_bits_of(hra_float_of(rest) + 0.5f) - 0x3f000000;
    const uint32_t normal = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
    uint32_t h = rest < 0x38800000 ? small : normal;
    h = rest >= 0x477ff000 ? 0x7c00 : h; /* from 65520 on, halfway to 65536 */
    h = rest > 0x7f800000 ? 0x7e00 : h;
    return (uint16_t)(sign | h);
}

#endif

/* test_number.c - number types: every 16-bit pattern, every border between two of them, wrong use. */
#include "kernels/cpu/number.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <float.h>
#include <hra/hra.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERNS = 65536, SIGN = 0x8000 };

/* A 16-bit type: 1 sign bit, then the exponent, then `fraction` bits. */
struct format {
    hra_type type;
    int fraction, bias;
    int infinite; /* the pattern of +inf */
};

static const struct format formats[] = {{HRA_BF16, 7, 127, 0x7f80}, {HRA_F16, 10, 15, 0x7c00}};

/* The value of a pattern without its sign. The pattern of infinity gets the value that would come next. */
static double magnitude(const struct format *f, int pattern)
{
    const int exponent = pattern >> f->fraction, fraction = pattern & ((1 << f->fraction) - 1);

    if (exponent == 0)
        return ldexp(fraction, 1 - f->bias - f->fraction);
    return ldexp(fraction + (1 << f->fraction), exponent - f->bias - f->fraction);
}

static double value(const struct format *f, int pattern)
{
    const int rest = pattern & ~SIGN;
    const double x = rest > f->infinite ? NAN : rest == f->infinite ? INFINITY : magnitude(f, rest);

    return copysign(x, pattern & SIGN ? -1 : 1);
}

static uint16_t from_f64(const struct format *f, double x)
{
    uint16_t out = 0x5555;

    cr_assert(hra_convert(&out, f->type, &x, HRA_F64, 1) == HRA_OK);
    return out;
}

/* Both ways to get there from f32. */
static uint16_t from_f32(const struct format *f, float x)
{
    const uint16_t direct = f->type == HRA_BF16 ? hra_to_bf16(x) : hra_to_f16(x);
    uint16_t out = 0x5555;

    cr_assert(hra_convert(&out, f->type, &x, HRA_F32, 1) == HRA_OK);
    cr_assert(eq(u16, out, direct), "%a to %s", x, hra_type_name(f->type));
    return out;
}

ParameterizedTestParameters(number, every_pattern_is_read_exactly)
{
    return cr_make_param_array(struct format, (struct format *)formats, 2);
}

ParameterizedTest(struct format *f, number, every_pattern_is_read_exactly)
{
    uint16_t *pattern = malloc(PATTERNS * sizeof(*pattern)), *back = malloc(PATTERNS * sizeof(*back));
    double *x = malloc(PATTERNS * sizeof(*x));
    float *y = malloc(PATTERNS * sizeof(*y));

    for (int i = 0; i < PATTERNS; i++)
        pattern[i] = (uint16_t)i;
    cr_assert(eq(int, hra_convert(x, HRA_F64, pattern, f->type, PATTERNS), HRA_OK));
    cr_assert(eq(int, hra_convert(y, HRA_F32, pattern, f->type, PATTERNS), HRA_OK));
    for (int i = 0; i < PATTERNS; i++) {
        const double expected = value(f, i);
        const float direct = f->type == HRA_BF16 ? hra_from_bf16(pattern[i]) : hra_from_f16(pattern[i]);

        if (isnan(expected)) {
            cr_assert(isnan(x[i]) && isnan(y[i]) && isnan(direct), "pattern %04x is a NaN", i);
            continue;
        }
        cr_assert(x[i] == expected && y[i] == expected && direct == expected, "pattern %04x is %a, not %a", i,
                  expected, x[i]);
        cr_assert(eq(int, signbit(x[i]) != 0, (i & SIGN) != 0), "pattern %04x", i);
        cr_assert(eq(int, signbit(y[i]) != 0, (i & SIGN) != 0), "pattern %04x", i);
    }

    for (int from_f32 = 0; from_f32 < 2; from_f32++) {
        const void *numbers = from_f32 ? (const void *)y : (const void *)x;
        cr_assert(
            eq(int, hra_convert(back, f->type, numbers, from_f32 ? HRA_F32 : HRA_F64, PATTERNS), HRA_OK));
        for (int i = 0; i < PATTERNS; i++)
            if (isnan(value(f, i)))
                cr_assert(isnan(value(f, back[i])), "pattern %04x came back as %04x", i, back[i]);
            else
                cr_assert(eq(int, back[i], i), "pattern %04x", i);
    }
    free(pattern);
    free(back);
    free(x);
    free(y);
}

/* Halfway between two neighbours the even one is meant, and one place of an f64 further decides: rounding to f32 on
 * the way would lose that place. The largest number has an upper neighbour too, infinity. */
ParameterizedTestParameters(number, every_border_rounds_to_nearest_even)
{
    return cr_make_param_array(struct format, (struct format *)formats, 2);
}

ParameterizedTest(struct format *f, number, every_border_rounds_to_nearest_even)
{
    for (int low = 0; low < f->infinite; low++) {
        const int high = low + 1, even = low % 2 == 0 ? low : high;
        const double middle = (magnitude(f, low) + magnitude(f, high)) / 2;
        const float single = (float)middle;

        cr_assert(single == middle, "a border takes one bit more, which f32 has");
        for (int sign = 0; sign <= SIGN; sign += SIGN) {
            const double s = sign ? -1 : 1;
            cr_assert(eq(int, from_f64(f, s * middle), sign | even), "%a", s * middle);
            cr_assert(eq(int, from_f64(f, s * nextafter(middle, 0)), sign | low), "below %a", s * middle);
            cr_assert(eq(int, from_f64(f, s * nextafter(middle, INFINITY)), sign | high), "above %a",
                      s * middle);
            cr_assert(eq(int, from_f32(f, (float)s * single), sign | even), "%a", s * middle);
            cr_assert(eq(int, from_f32(f, (float)s * nextafterf(single, 0)), sign | low), "below %a",
                      s * middle);
            cr_assert(eq(int, from_f32(f, (float)s * nextafterf(single, INFINITY)), sign | high), "above %a",
                      s * middle);
        }
    }
}

/* The pattern that x rounds to, by rint at the place of the last bit. */
static int rounded(const struct format *f, double x)
{
    int exponent = 0;
    const int sign = signbit(x) ? SIGN : 0,
              least = 2 - f->bias; /* frexp's exponent of the least normal number */

    if (isinf(x))
        return sign | f->infinite;
    frexp(x, &exponent);
    if (x == 0 || exponent < least)
        exponent = least;
    const int place = exponent - 1 - f->fraction; /* the last bit is worth 2^place */
    const double steps = rint(ldexp(fabs(x), -place));
    const double pattern = steps + ldexp(exponent - least, f->fraction);
    return sign | (pattern > f->infinite ? f->infinite : (int)pattern);
}

ParameterizedTestParameters(number, random_bits_round_to_nearest_even)
{
    return cr_make_param_array(struct format, (struct format *)formats, 2);
}

ParameterizedTest(struct format *f, number, random_bits_round_to_nearest_even)
{
    uint64_t state = 1;

    for (int n = 0; n < 500000; n++) {
        double x;
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        const uint64_t bits = state ^ state >> 29;
        memcpy(&x, &bits, sizeof(x));
        if (n % 2 == 0)
            x = hra_float_of((uint32_t)bits);
        else if (n % 4 == 1 && isfinite(x)) /* into the range of the type */
            x = ldexp(frexp(x, &(int){0}), (int)(bits % 300) - 155);
        if (isnan(x)) {
            cr_assert(isnan(value(f, from_f64(f, x))), "%a", x);
            continue;
        }
        cr_assert(eq(int, from_f64(f, x), rounded(f, x)), "%a", x);
        if ((double)(float)x == x)
            cr_assert(eq(int, from_f32(f, (float)x), rounded(f, x)), "%a", x);
    }
}

ParameterizedTestParameters(number, extremes)
{
    return cr_make_param_array(struct format, (struct format *)formats, 2);
}

ParameterizedTest(struct format *f, number, extremes)
{
    static const double large[] = {DBL_MAX, 1e300, 1e39, 0x1p128, INFINITY},
                        tiny[] = {0, 0x1p-1074, DBL_MIN, 1e-46};
    static const uint32_t nans[] = {0x7f800001, 0x7fc00000, 0x7fffffff, 0x7fa00000, 0x7f801000};

    for (int sign = 0; sign <= SIGN; sign += SIGN) {
        const double s = sign ? -1 : 1;
        for (int i = 0; i < 5; i++)
            cr_expect(eq(int, from_f64(f, s * large[i]), sign | f->infinite), "%a", s * large[i]);
        for (int i = 0; i < 4; i++)
            cr_expect(eq(int, from_f64(f, s * tiny[i]), sign), "%a", s * tiny[i]);
        cr_expect(eq(int, from_f64(f, s * magnitude(f, f->infinite - 1)), sign | (f->infinite - 1)),
                  "largest");
        cr_expect(eq(int, from_f64(f, s * magnitude(f, 1)), sign | 1), "smallest");
        cr_expect(eq(int, from_f32(f, (float)s * FLT_MAX), sign | f->infinite));
        cr_expect(eq(int, from_f32(f, (float)s * INFINITY), sign | f->infinite));
        for (int i = 0; i < 5; i++) {
            const float x = hra_float_of(nans[i] | (uint32_t)sign << 16);
            cr_expect(isnan(value(f, from_f32(f, x))), "f32 %08x", nans[i]);
            cr_expect(isnan(value(f, from_f64(f, x))), "f32 %08x through f64", nans[i]);
        }
    }
    const uint64_t low_bit = UINT64_C(0x7ff0000000000001);
    double x;
    memcpy(&x, &low_bit, sizeof(x));
    cr_expect(isnan(value(f, from_f64(f, x))), "a NaN with its last bit alone");
}

/* Numbers that both types have stay; the others round to nearest even. */
Test(number, f64_and_f32)
{
    uint64_t state = 7;

    for (int n = 0; n < 200000; n++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        const uint32_t bits = (uint32_t)(state >> 33) % 0x7f7fffff, even = bits % 2 == 0 ? bits : bits + 1;
        const float low = hra_float_of(bits), high = hra_float_of(bits + 1);
        const double middle = ((double)low + (double)high) / 2;
        const double x[] = {low, middle, nextafter(middle, 0), nextafter(middle, INFINITY), -middle};
        const uint32_t expected[] = {bits, even, bits, bits + 1, even | 0x80000000};
        float y[5];
        double z[5];

        cr_assert(hra_convert(y, HRA_F32, x, HRA_F64, 5) == HRA_OK);
        for (int i = 0; i < 5; i++)
            cr_assert(hra_bits_of(y[i]) == expected[i], "%a to %a", x[i], (double)y[i]);
        cr_assert(hra_convert(z, HRA_F64, y, HRA_F32, 5) == HRA_OK);
        for (int i = 0; i < 5; i++)
            cr_assert(z[i] == (double)y[i], "%a to %a", (double)y[i], z[i]);
        cr_assert(hra_convert(z, HRA_F64, x, HRA_F64, 5) == HRA_OK && memcmp(z, x, sizeof(x)) == 0);
    }
    const double large[] = {0x1.ffffffp127, 0x1.fffffefffffffp127, -DBL_MAX, NAN};
    float y[4];
    cr_assert(eq(int, hra_convert(y, HRA_F32, large, HRA_F64, 4), HRA_OK));
    cr_expect(y[0] == INFINITY && y[1] == FLT_MAX && y[2] == -INFINITY && isnan(y[3]));
}

/* From one 16-bit type to the other through every pattern. */
Test(number, bf16_and_f16)
{
    for (int way = 0; way < 2; way++)
        for (int i = 0; i < PATTERNS; i++) {
            const struct format *from = &formats[way], *to = &formats[1 - way];
            const uint16_t pattern = (uint16_t)i;
            uint16_t out;

            cr_assert(hra_convert(&out, to->type, &pattern, from->type, 1) == HRA_OK);
            if (isnan(value(from, i)))
                cr_assert(isnan(value(to, out)), "%04x", i);
            else
                cr_assert(eq(int, out, rounded(to, value(from, i))), "%04x", i);
        }
}

Test(number, names_and_sizes)
{
    static const struct {
        hra_type type, sums;
        size_t bytes;
        const char *name;
    } rows[] = {{HRA_F64, HRA_F64, 8, "f64"},
                {HRA_F32, HRA_F32, 4, "f32"},
                {HRA_BF16, HRA_F32, 2, "bf16"},
                {HRA_F16, HRA_F32, 2, "f16"}};

    for (int i = 0; i < 4; i++) {
        cr_expect(eq(sz, hra_type_bytes(rows[i].type), rows[i].bytes), "%s", rows[i].name);
        cr_expect(eq(str, (char *)hra_type_name(rows[i].type), (char *)rows[i].name));
        cr_expect(eq(int, hra_type_sums(rows[i].type), rows[i].sums), "%s", rows[i].name);
    }
    for (int none = -1; none <= 5; none += none == 0 ? 5 : 1) {
        cr_expect(eq(sz, hra_type_bytes((hra_type)none), 0), "%d", none);
        cr_expect(eq(str, (char *)hra_type_name((hra_type)none), "?"), "%d", none);
    }
}

static void expect_refused(void *out, int out_type, const void *in, int in_type, int64_t count,
                           const char *sentence)
{
    cr_expect(eq(int, hra_convert(out, (hra_type)out_type, in, (hra_type)in_type, count), HRA_ERR_ARG), "%s",
              sentence);
    cr_expect(strstr(hra_last_error(), sentence) != NULL, "\"%s\" lacks \"%s\"", hra_last_error(), sentence);
}

Test(number, wrong_use)
{
    const double in[2] = {1, 2};
    double out[2] = {3, 4};

    expect_refused(NULL, HRA_F64, in, HRA_F64, 1, "hra_convert: out ");
    expect_refused(out, HRA_F64, NULL, HRA_F64, 1, ", count 1");
    expect_refused(out, HRA_F64, in, HRA_F64, -1, "count -1");
    expect_refused(out, HRA_F64, in, HRA_F64, INT64_MIN, "count -9223372036854775808");
    expect_refused(out, HRA_F64, in, 0, 1, "hra_convert: types 0 to 1;");
    expect_refused(out, 5, in, HRA_F64, 1, "hra_convert: types 1 to 5; a type is HRA_F64 to HRA_F16");
    expect_refused(out, -1, in, HRA_F64, 0, "hra_convert: types 1 to -1;");
    cr_expect(out[0] == 3 && out[1] == 4, "a refused call writes nothing");
    cr_expect(eq(int, hra_convert(out, HRA_F32, in, HRA_F64, 0), HRA_OK));
    cr_expect(out[0] == 3 && out[1] == 4, "nor does one of no numbers");
    cr_expect(eq(int, hra_convert(out, HRA_F64, in, HRA_F64, 1), HRA_OK));
    cr_expect(out[0] == 1 && out[1] == 4, "nor one number more than count");
}

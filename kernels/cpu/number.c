/* number.c - types and conversions of the public API. */
#include "kernels/cpu/number.h"

#include "src/status.h"

size_t hra_type_bytes(hra_type type)
{
    switch (type) {
    case HRA_F64:
        return 8;
    case HRA_F32:
        return 4;
    case HRA_BF16:
    case HRA_F16:
        return 2;
    }
    return 0;
}

const char *hra_type_name(hra_type type)
{
    switch (type) {
    case HRA_F64:
        return "f64";
    case HRA_F32:
        return "f32";
    case HRA_BF16:
        return "bf16";
    case HRA_F16:
        return "f16";
    }
    return "?";
}

hra_type hra_type_sums(hra_type type)
{
    return type == HRA_F64 ? HRA_F64 : HRA_F32;
}

static double read_number(const void *in, hra_type type, int64_t i)
{
    switch (type) {
    case HRA_F64:
        return ((const double *)in)[i];
    case HRA_F32:
        return ((const float *)in)[i];
    case HRA_BF16:
        return hra_from_bf16(((const uint16_t *)in)[i]);
    case HRA_F16:
        return hra_from_f16(((const uint16_t *)in)[i]);
    }
    return 0;
}

/* f64 to the f32 from which rounding on to 16 bits is right: rounded to odd, that is, toward zero with the
 * last bit set where anything was lost. Rounding to nearest twice would err on ties. */
static float round_to_odd(double x)
{
    float f = (float)x;
    uint32_t bits = hra_bits_of(f);

    if (x != x || (double)f == x)
        return f;
    if ((f < 0 ? -(double)f : (double)f) > (x < 0 ? -x : x))
        bits--; /* one place toward zero; from infinity to the largest number */
    return hra_float_of(bits | 1);
}

static void write_number(void *out, hra_type type, int64_t i, double x)
{
    switch (type) {
    case HRA_F64:
        ((double *)out)[i] = x;
        break;
    case HRA_F32:
        ((float *)out)[i] = (float)x;
        break;
    case HRA_BF16:
        ((uint16_t *)out)[i] = hra_to_bf16(round_to_odd(x));
        break;
    case HRA_F16:
        ((uint16_t *)out)[i] = hra_to_f16(round_to_odd(x));
        break;
    }
}

hra_status hra_convert(void *out, hra_type out_type, const void *in, hra_type in_type, int64_t count)
{
    if (out == NULL || in == NULL || count < 0)
        return HRA_FAIL(HRA_ERR_ARG, "hra_convert: out %p, in %p, count %lld", out, in, (long long)count);
    if (hra_type_bytes(out_type) == 0 || hra_type_bytes(in_type) == 0)
        return HRA_FAIL(HRA_ERR_ARG, "hra_convert: types %d to %d; a type is HRA_F64 to HRA_F16",
                        (int)in_type, (int)out_type);
    for (int64_t i = 0; i < count; i++)
        write_number(out, out_type, i, read_number(in, in_type, i));
    return HRA_OK;
}

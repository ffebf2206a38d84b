/* plain.c - the plain evaluation: every result rounded to the tensors' type, sums in f32 or f64. */
#include "examples/tools/oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8

#define REAL float
#define PLAIN(name) name##_f32
#define EXP expf
#define LOG logf
#include "examples/tools/plain_body.h"
#undef REAL
#undef PLAIN
#undef EXP
#undef LOG

#define REAL double
#define PLAIN(name) name##_f64
#define EXP exp
#define LOG log
#include "examples/tools/plain_body.h"

int oracle_plain(const struct oracle *a, hra_type type)
{
    return type == HRA_F64 ? share_f64(a, type) : share_f32(a, type);
}

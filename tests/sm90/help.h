/* help.h - what the programs beside the emulator share. */
#ifndef HRA_TESTS_SM90_HELP_H
#define HRA_TESTS_SM90_HELP_H

#include "kernels/cpu/number.h"

#include <errno.h>
#include <hra/hra.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void need(hra_status status)
{
    if (status == HRA_OK)
        return;
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, hra_status_name(status), hra_last_error());
    exit(1);
}

/* `bytes` of NaN, aligned as on a GPU; the caller's. */
static inline void *take(size_t bytes)
{
    const size_t room = (bytes / 256 + 1) * 256;
    void *memory = aligned_alloc(256, room);
    if (memory == NULL)
        abort();
    return memset(memory, 0xff, room);
}

/* A tensor [rows][heads][dim] of f16, -1 to 1; seed 0: left as it is. */
static inline hra_tensor make_f16(int64_t rows, int heads, int dim, uint32_t seed)
{
    const int64_t count = rows * heads * dim;
    uint16_t *data = (uint16_t *)take(sizeof(*data) * (size_t)count);

    for (int64_t i = 0; seed != 0 && i < count; i++) {
        seed = seed * 1664525 + 1013904223;
        data[i] = hra_to_f16((float)seed * 0x1p-31f - 1);
    }
    return (hra_tensor){data, count, (int64_t)heads * dim, dim};
}

#endif

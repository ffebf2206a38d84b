/* help.h - what the programs beside the emulator share. */
#ifndef HRA_TESTS_SM90_HELP_H
#define HRA_TESTS_SM90_HELP_H

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

#endif

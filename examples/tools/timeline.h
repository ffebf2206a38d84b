/* timeline.h - a picture of who computes, waits and sends when. */
#ifndef HRA_TOOLS_TIMELINE_H
#define HRA_TOOLS_TIMELINE_H

#include <hra/hra.h>

enum { TIMELINE_RANKS = 64 }; /* rows at most */

/* What is drawn; all of it is the caller's. */
struct timeline {
    const char *title;                 /* the problem, one line */
    const char *source;                /* where the times come from, one line */
    int ranks, rows;                   /* of the plan; of the picture, its first ranks */
    hra_forecast_info info[2];         /* [pass] of all ranks */
    hra_span *span[2][TIMELINE_RANKS]; /* [pass][row] */
    int64_t spans[2][TIMELINE_RANKS];
};

/* Draw and write a .png or .svg. 0, or -1 and one sentence in error [error_bytes]. */
int timeline_write(const char *path, const struct timeline *t, char *error, size_t error_bytes);

#endif

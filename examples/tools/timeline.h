/* timeline.h - a picture of who computes, waits and sends when. */
#ifndef HRA_TOOLS_TIMELINE_H
#define HRA_TOOLS_TIMELINE_H

#include <hra/hra.h>

enum { TIMELINE_RANKS = 64 }; /* rows at most */

/* One way to know the times. */
struct timeline_band {
    const char *name;                  /* "modelled", "measured" */
    hra_forecast_info info[2];         /* [pass] of all ranks; efficiency 0: not known */
    hra_span *span[2][TIMELINE_RANKS]; /* [pass][row] */
    int64_t spans[2][TIMELINE_RANKS];
};

/* What is drawn; all of it is the caller's. */
struct timeline {
    const char *title;            /* the problem, one line */
    const char *source;           /* where the times come from, one line */
    int ranks, rows;              /* of the plan; of the picture, its first ranks */
    struct timeline_band band[2]; /* [bands] the forecast, and below it what was measured */
    int bands;
};

/* Whether it can be written to `path` as far as its name says: 0, or -1 and one sentence in error [error_bytes]. */
int timeline_check(const char *path, char *error, size_t error_bytes);

/* Draw and write a .png or .svg. 0, or -1 and one sentence in error [error_bytes]. */
int timeline_write(const char *path, const struct timeline *t, char *error, size_t error_bytes);

#endif

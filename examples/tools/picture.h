/* picture.h - pictures of masks and plans, as PNG and SVG files: single pairs, live tiles, rounds of messages. */
#ifndef HRA_TOOLS_PICTURE_H
#define HRA_TOOLS_PICTURE_H

#include "examples/tools/problem.h"

#include <stdio.h>

enum picture_kind {
    PICTURE_PAIRS,  /* the pairs of one head of the mask, at most PICTURE_TOKENS tokens; no plan */
    PICTURE_TILES,  /* the live tiles of one head; beside them the tokens, where they have a grid */
    PICTURE_ROUNDS, /* who computes, and who sends how much to whom, at most PICTURE_RANKS ranks */
    PICTURE_KINDS
};

enum { PICTURE_TOKENS = 256, PICTURE_RANKS = 1024 };

/* What one rank does in the rounds of one pass. */
struct picture_steps {
    hra_plan_move *move; /* [moves] */
    hra_plan_run *run;   /* [runs] */
    int64_t moves, runs;
};

/* What is drawn; all of it is the caller's. Pairs need `setup`, `mask`, `sequence` and `head` only. */
struct picture {
    const struct setup *setup;
    const char *mask;   /* its text */
    int sequence, head; /* whose pairs and tiles; the head is one of the problem's */
    int ranks;
    const char *shard; /* its name */
    const hra_plan_info *info;
    const hra_piece *piece; /* [pieces], in slot order */
    int pieces;
    hra_plan_tile *tile; /* [tiles], of `sequence` and `head`, rank by rank; for PICTURE_TILES */
    int64_t tiles;
    struct picture_steps *steps; /* [ranks][2 passes], for PICTURE_ROUNDS */
};

/* Whether a picture can be written to `path` as far as its name says: 0, or -1 and one sentence in
 * error [error_bytes] where it ends in neither .png nor .svg or the build has no cairo. */
int picture_check(const char *path, char *error, size_t error_bytes);

/* Draw and write. 0, or -1 and one sentence in error [error_bytes]; a file that was there is kept unless its
 * writing had begun. */
int picture_write(const char *path, enum picture_kind kind, const struct picture *p, char *error,
                  size_t error_bytes);

/* Bytes as "12.3 MiB", in one of a few static buffers, enough for one printf. */
static inline const char *bytes_text(double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    static char text[8][32];
    static int next;
    char *out = text[next++ % 8];
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(out, sizeof(text[0]), unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return out;
}

#endif

/* fail.h - how the modules of hra-train report what went wrong, and its random numbers.
 *
 * A function that can fail takes `why`, a buffer of WHY_BYTES, and returns 0 or -1; on -1 `why` holds
 * one sentence with the values. */
#ifndef TRAIN_FAIL_H
#define TRAIN_FAIL_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

enum { WHY_BYTES = 1024 };

/* Put the sentence into `why`, return -1. */
__attribute__((format(printf, 2, 3))) static inline int train_fail(char *why, const char *format, ...)
{
    va_list values;

    va_start(values, format);
    vsnprintf(why, WHY_BYTES, format, values);
    va_end(values);
    return -1;
}

/* The random number of (seed, stream, index): a hash, not a generator with a state, so that every
 * rank draws the same numbers whatever rows it owns, and a resumed run needs no state restored.
 * The finaliser is that of SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t train_random(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint64_t x = seed;
    const uint64_t word[2] = {stream, index};
    for (int i = 0; i < 2; i++) {
        x += 0x9E3779B97F4A7C15u * (word[i] + 1);
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
    }
    return x;
}

/* The same, uniform in [0, 1). */
static inline double train_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (double)(train_random(seed, stream, index) >> 11) * 0x1p-53;
}

/* Streams, one for each use, so that no two uses share a number. */
enum {
    STREAM_TEXT,       /* where a step's text starts */
    STREAM_HIDDEN,     /* pixels hidden for good */
    STREAM_WEIGHTS,    /* initial parameters; + parameter index */
    STREAM_DROP = 1000 /* + step: known pixels dropped in that step */
};
#endif

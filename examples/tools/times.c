/* times.c - medians, and the bounds of a median. */
#include "examples/tools/times.h"

#include <math.h>
#include <stdlib.h>

void add_time(struct times *t, double s)
{
    t->s[t->count++] = s;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void sort_times(struct times *t)
{
    qsort(t->s, (size_t)t->count, sizeof(t->s[0]), by_value);
}

double median(const struct times *t)
{
    return (t->s[(t->count - 1) / 2] + t->s[t->count / 2]) / 2;
}

double least(const struct times *t)
{
    return t->s[0];
}

double most(const struct times *t)
{
    return t->s[t->count - 1];
}

/* So many of n draws are below the median as of n tosses of a coin are heads. */
void median_lies(const struct times *t, double *low, double *high)
{
    double tosses = exp2(-t->count); /* the probability of `outer` heads */
    double below = tosses;           /* of as many or fewer */
    int outer = 0;

    while (outer < (t->count - 1) / 2) {
        tosses *= (double)(t->count - outer) / (outer + 1);
        if (below + tosses > 0.025)
            break;
        below += tosses;
        outer++;
    }
    *low = t->s[outer];
    *high = t->s[t->count - 1 - outer];
}

/* times.h - what was measured again and again: its median, its extremes, and how sure the median is. */
#ifndef HRA_TOOLS_TIMES_H
#define HRA_TOOLS_TIMES_H

enum { REPEAT_MAX = 1000 };

/* Times of one thing, or another figure of each turn, in the order taken; after sort_times ascending, which median
 * and those below need. */
struct times {
    double s[REPEAT_MAX];
    int count;
};

void add_time(struct times *t, double s);
void sort_times(struct times *t);
double median(const struct times *t);
double least(const struct times *t);
double most(const struct times *t);

/* The median of what the times are drawn from lies between these two of them, with a probability of 0.95 where there are six
 * or more. */
void median_lies(const struct times *t, double *low, double *high);

#endif

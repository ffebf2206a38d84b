/* test_times.c - medians of hra-bench and the bounds that they lie between, against every way in which draws can fall. */
#include "examples/tools/times.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

/* 0, 1, ... count - 1, in another order. */
static struct times numbers_to(int count)
{
    static struct times t;

    t.count = 0;
    for (int i = 0; i < count; i++)
        add_time(&t, (i + count / 2) % count);
    sort_times(&t);
    return t;
}

/* The share of ways to fall to either side of the true median in which it lies between draws number low and high. */
static double share_between(int count, int low, int high)
{
    int ways = 0;

    for (int way = 0; way < 1 << count; way++) {
        const int below = __builtin_popcount((unsigned)way);
        ways += low < below && below <= high;
    }
    return (double)ways / (1 << count);
}

Test(times, median_and_extremes)
{
    const struct times odd = numbers_to(7), even = numbers_to(8), one = numbers_to(1);

    cr_assert(eq(dbl, median(&odd), 3));
    cr_assert(eq(dbl, median(&even), 3.5));
    cr_assert(eq(dbl, median(&one), 0));
    cr_assert(eq(dbl, least(&even), 0));
    cr_assert(eq(dbl, most(&even), 7));
}

/* They hold the median with a probability of 0.95, and the next ones inwards do not. */
Test(times, bounds_of_the_median)
{
    for (int count = 6; count <= 20; count++) {
        const struct times t = numbers_to(count);
        double low, high;

        median_lies(&t, &low, &high);
        cr_assert(ge(dbl, share_between(count, (int)low, (int)high), 0.95), "%d", count);
        cr_assert(lt(dbl, share_between(count, (int)low + 1, (int)high - 1), 0.95), "%d", count);
    }
}

Test(times, bounds_of_few_are_the_extremes)
{
    for (int count = 1; count < 6; count++) {
        const struct times t = numbers_to(count);
        double low, high;

        median_lies(&t, &low, &high);
        cr_assert(eq(dbl, low, 0));
        cr_assert(eq(dbl, high, count - 1));
    }
}

/* Of so many draws the probabilities at the ends are as small as 1e-301. By the normal distribution it is number 468.5. */
Test(times, bounds_of_very_many)
{
    const struct times t = numbers_to(REPEAT_MAX);
    double low, high;

    median_lies(&t, &low, &high);
    cr_assert(ge(dbl, low, 467));
    cr_assert(le(dbl, low, 470));
    cr_assert(eq(dbl, low + high, REPEAT_MAX - 1));
}

/* cuts.h - items of a launch of forward cut in two, so that its multiprocessors end together.
 *
 * N items of one length take ceil(N / P) of it on P multiprocessors, of which the last is mostly idle: 3 % of 16 heads of
 * 8,192, 16,384 or 32,768 tokens on 132. The first part of a cut item leaves its state where a later launch would find it, and
 * the second goes on from there, so that the sums are the same. */
#ifndef HRA_KERNELS_SM90_CUTS_H
#define HRA_KERNELS_SM90_CUTS_H

#include "kernels/sm90/forward.h"

/* Cut some of `items` items, which are begun in their order, each by the multiprocessor that is free first, and order them anew:
 * first parts begin early, second parts last, as many as *cuts more items than before. item has room for HRA_SM90_CUTS more.
 * HRA_ERR_MEMORY. */
hra_status hra_sm90_cut_items(struct hra_sm90_item *item, int items, int processors, int *cuts);

#endif

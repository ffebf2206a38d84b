/* cuts.h - items of a launch cut in two, so that its multiprocessors end together.
 *
 * N items of one length take ceil(N / P) of it on P multiprocessors, of which the last is mostly idle: 3 % of 16 heads of
 * 8,192, 16,384 or 32,768 tokens on 132. The first part of a cut item leaves its state where a later launch would find it, and
 * the second goes on from there, so that the sums are the same. */
#ifndef HRA_KERNELS_SM90_CUTS_H
#define HRA_KERNELS_SM90_CUTS_H

#include "kernels/sm90/forward.h"

/* Which items are cut: of those that are begun in their order, each by the multiprocessor that is free first, the last
 * `count`. Their first parts are `share` sixteenths of them. */
struct hra_sm90_way {
    int count, share;
    int early; /* multiprocessors that begin with first parts */
};

/* The best way for items with so many tiles or steps each, with at most `most` cuts; without any where none gains anything
 * worth it. HRA_ERR_MEMORY. */
hra_status hra_sm90_choose_cuts(struct hra_sm90_way *out, const uint32_t *length, int items, int processors,
                                int most);

/* What is the first part of an item of that length, and how many whole items begin before the first parts. */
uint32_t hra_sm90_first_part(const struct hra_sm90_way *way, uint32_t length);
int hra_sm90_leading(const struct hra_sm90_way *way, int items, int processors);

/* Cut some of `items` items of forward, which are begun in their order, each by the multiprocessor that is free first, and
 * order them anew: first parts begin early, second parts last, as many as *cuts more items than before. item has room for
 * HRA_SM90_CUTS more. HRA_ERR_MEMORY. */
hra_status hra_sm90_cut_items(struct hra_sm90_item *item, int items, int processors, int *cuts);

#endif

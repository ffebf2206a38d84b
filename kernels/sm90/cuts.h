/* cuts.h - items of a launch cut in two, so that its multiprocessors end together.
 *
 * N items of one length take ceil(N / P) of it on P multiprocessors, of which the last is mostly idle: 3 % of 16 heads of
 * 8,192, 16,384 or 32,768 tokens on 132. The first part of a cut item leaves its state where a later launch would find it, and
 * the second goes on from there, so that the sums are the same. */
#ifndef HRA_KERNELS_SM90_CUTS_H
#define HRA_KERNELS_SM90_CUTS_H

#include "kernels/sm90/backward.h"
#include "kernels/sm90/forward.h"

/* What is begun: an item, or a part of it. */
struct hra_sm90_place {
    int item, part;         /* HRA_SM90_WHOLE, or which part */
    int cut;                /* of a part: the number of the cut */
    uint32_t begin, length; /* its first tile or step among the item's, and how many it has */
};

/* Cut some of `items` items, which are begun in their order, each by the multiprocessor that is free first, and have so many tiles
 * or steps: first parts begin early, second parts last. *out [items + *cuts], the caller's, in the order in which they are to be
 * begun; NULL, and 0 cuts, where none gains anything worth it. HRA_ERR_MEMORY. */
hra_status hra_sm90_cut(struct hra_sm90_place **out, int *cuts, const uint32_t *length, int items,
                        int processors, int most);

/* The same for items of forward, of which there are *cuts more then. item has room for HRA_SM90_CUTS more. HRA_ERR_MEMORY. */
hra_status hra_sm90_cut_items(struct hra_sm90_item *item, int items, int processors, int *cuts);

#endif

/* brute.h - compiled tiles against every pair asked by itself, for tests and the fuzzer. */
#ifndef HRA_TESTS_BRUTE_H
#define HRA_TESTS_BRUTE_H

#include "src/tiles.h"

/* What is compiled, all of it the caller's but `count` and `error`. */
struct brute {
    const hra_order *order;
    const hra_mask *mask;
    const struct hra_layout *layout;
    int batch;            /* sequences 0 .. batch - 1 */
    int head0, heads;     /* heads head0 .. head0 + heads - 1 of the model */
    unsigned char *count; /* [batch][heads][tokens][tokens] of slots, hra_mask_count; NULL: not asked */
    char error[320];      /* what brute_check found wrong */
};

/* Ask for every pair. 0, or -1 where there is no memory. */
int brute_ask(struct brute *b);

/* Frees count. */
void brute_free(struct brute *b);

/* Is everything so that tiles.h and kernels.h say of finished tiles? Whether lists name the pairs that attend, each as
 * often as it does, is looked at only where `count` is there. 0, or -1 and a sentence in error. */
int brute_check(struct brute *b, const struct hra_tiles *t);

/* How often a list says that row `row` of query tile `query` attends to each slot, into out [tokens]. */
void brute_row(unsigned char *out, const struct hra_layout *layout, const struct hra_tiles *t,
               const struct hra_tile_list *list, int query, int row);

#endif

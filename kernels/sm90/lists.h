/* lists.h - the work of the forward kernel, laid out on the host when a plan is made. */
#ifndef HRA_KERNELS_SM90_LISTS_H
#define HRA_KERNELS_SM90_LISTS_H

#include "kernels/sm90/boxes.h"

/* One launch: some chunks of a run. */
struct hra_sm90_launch {
    int run;            /* of the schedule */
    int chunk0, chunks; /* of the run; at most HRA_SM90_CHUNKS */
    int groups, packed; /* of the kernel */
    int64_t item0;
    int items; /* one that is cut (cuts.h) is two */
};

struct hra_sm90_work {
    struct hra_sm90_launch *launch; /* [launches] by run, then by chunk */
    int launches;
    struct hra_sm90_item *item; /* [items] those of each launch, then those without keys in any launch */
    int64_t items, nothing0;
    struct hra_sm90_entry *entry; /* [entries] */
    uint32_t *second;             /* [entries] as the kernel reads it; NULL but for 64 channels */
    int64_t entries, capacity;
    struct hra_sm90_packed *step; /* [steps] of packed launches, in the place of entries */
    int64_t steps, step_capacity;
};

/* Lay out the forward pass of a plan, whose shapes these are, for so many multiprocessors; boxes: NULL, or where rows
 * lie, which is by token. On failure *out is to be cleared too. */
hra_status hra_sm90_lay_out(struct hra_sm90_work *out, const struct hra_kernel_plan *plan,
                            const struct hra_shapes *shapes, const struct hra_sm90_boxes *boxes,
                            int processors);

/* Free what it holds, not the struct. */
void hra_sm90_work_clear(struct hra_sm90_work *work);

/* hra_bit_layout.pack of struct hra_sm90_bits. */
void hra_sm90_pack_bits(void *out, const hra_bits *bits);

#endif

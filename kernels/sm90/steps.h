/* steps.h - the work of the backward kernel, laid out on the host when a plan is made: which block computes
 * which key tiles, in which order each walks through its queries, and in which order dQ is added up. */
#ifndef HRA_KERNELS_SM90_STEPS_H
#define HRA_KERNELS_SM90_STEPS_H

#include "kernels/sm90/backward.h"

/* One launch: some chunks of a run. */
struct hra_sm90_turn {
    int run;                               /* of the schedule */
    int chunk0, chunks;                    /* of the run; at most HRA_SM90_CHUNKS */
    int blocks;                            /* 0: there is nothing to launch */
    int64_t begin0;                        /* [blocks + 1] in begin */
    int64_t nothing0[HRA_SM90_CHUNKS + 1]; /* items without steps of each chunk; bounds in item */
};

struct hra_sm90_steps {
    struct hra_sm90_turn *turn; /* [turns] by run, then by chunk */
    int turns;
    struct hra_sm90_key_item *item; /* [items] */
    int64_t items;
    struct hra_sm90_step *step; /* [steps] */
    int64_t steps, capacity;
    uint32_t *begin; /* [begins] items of each block, counted from 0 */
    int64_t begins;
    uint8_t *untouched; /* [pieces] as in struct hra_sm90_pieces */
    int64_t pieces;
};

/* Lay out the backward pass of a plan for a device of `processors` multiprocessors: shapes are its, bits its bitmaps.
 * On failure *out is to be cleared too. */
hra_status hra_sm90_lay_out_steps(struct hra_sm90_steps *out, const struct hra_kernel_plan *plan,
                                  const struct hra_shapes *shapes, int processors,
                                  const struct hra_sm90_key_bits *bits);

/* Free what it holds, not the struct. */
void hra_sm90_steps_clear(struct hra_sm90_steps *steps);

/* hra_bit_layout.pack of struct hra_sm90_key_bits. */
void hra_sm90_pack_key_bits(void *out, const hra_bits *bits);

#endif

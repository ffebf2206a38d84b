/* mask.h - masks, seen from inside the library: what compiles them into tiles. */
#ifndef HRA_SRC_MASK_H
#define HRA_SRC_MASK_H

#include "src/order.h"

/* The smallest box around a set of tokens: index range, and per grid axis the coordinate range. All
 * bounds inclusive. */
struct hra_box {
    int64_t first, last;     /* tokens */
    int64_t low[3], high[3]; /* coordinates; meaningful for the axes of the mask's grid */
};

enum hra_answer { HRA_NONE, HRA_SOME, HRA_ALL };

/* Do the pairs (query in q, key in k) attend? NONE and ALL are true of every pair of tokens in the
 * boxes; SOME may be said of any. `head` is a head of the model. Time O(nodes of the mask), with a
 * logarithm for documents and blocks; no allocation. */
enum hra_answer hra_mask_classify(const hra_mask *mask, int head, const struct hra_box *q,
                                  const struct hra_box *k);

/* bits[w] bit b = 1 where query attends to key[64 w + b]; count <= HRA_TILE keys; bits beyond count
 * are 0. The same answers as hra_mask_count. */
void hra_mask_row(const hra_mask *mask, int head, int64_t query, const int64_t *key, int count,
                  uint64_t bits[HRA_TILE / 64]);

/* The box of one token, and the smallest box around two. */
struct hra_box hra_box_of(const struct hra_space *space, int64_t token);
struct hra_box hra_box_join(const struct hra_box *a, const struct hra_box *b);

/* The space that the mask was made for. */
const struct hra_space *hra_mask_space(const hra_mask *mask);

/* Two heads with the same key have the same pattern: a hash of the text of the mask with its heads() resolved
 * for `head`. */
uint64_t hra_mask_key(const hra_mask *mask, int head);

/* One more holder of the mask; give back with hra_mask_destroy. */
hra_mask *hra_mask_keep(const hra_mask *mask);

/* ---- Inside masks: mask.c makes and asks them, mask_text.c reads and writes them -------------- */

enum hra_mask_kind {
    HRA_MASK_FULL,
    HRA_MASK_CAUSAL,
    HRA_MASK_WINDOW,
    HRA_MASK_GRID,
    HRA_MASK_NEIGHBOURHOOD,
    HRA_MASK_DOCS,
    HRA_MASK_BLOCKS,
    HRA_MASK_AND,
    HRA_MASK_OR,
    HRA_MASK_HEADS
};

/* Masks inside masks inside masks: recursion over a mask is at most this deep. */
#define HRA_MASK_DEPTH 200

/* Parts that a mask may have, a shared one counted each time: keeps `m = m & m & ...` from growing without
 * end. */
#define HRA_MASK_PARTS (INT64_C(1) << 20)

struct hra_mask {
    int references; /* atomic; hra_mask_destroy takes one off */
    enum hra_mask_kind kind;
    int depth;     /* 1 without children, else 1 + the deepest child's */
    int64_t parts; /* 1 + the children's */
    struct hra_space space;

    int64_t left, right; /* window, tokens */
    int64_t extent[3];   /* grid: radius by axis; neighbourhood: keys by axis, at most the axis */

    int64_t *start; /* docs: [count + 1] first tokens ascending, last the tokens of the domain;
                       blocks: [count + 1] where each query block begins in key */
    int64_t *key;   /* blocks: key blocks of each query block, ascending, each once */
    int64_t count;  /* documents; blocks in the sequence */
    int64_t block;  /* blocks: tokens in one */

    hra_mask **child; /* and, or, heads: [children], a reference held on each */
    int children;
    int *first, *last; /* heads: [children] ascending ranges of heads */
    int *child_of;     /* heads: [space.heads] which child holds for a head */
};

/* A & B & ... or A | B | ... of mask [count], count >= 1; children of the same kind are taken in, one mask
 * alone is kept as it is. */
hra_status hra_mask_combine(hra_mask **out, enum hra_mask_kind kind, const hra_mask *const *mask, int count);

#endif

/* mask.h - masks, seen from inside the library: what compiles them into tiles.
 *
 * A mask is a tree. What it means for one (batch, head) is asked with a question, which says which branch of a
 * mixture is meant: a mask without mixtures has one branch. Masks read *coordinates* of tokens: the token itself, its
 * coordinates in the grid, its slot in each order that a slots() of the mask names. */
#ifndef HRA_SRC_MASK_H
#define HRA_SRC_MASK_H

#include "src/order.h"

/* The coordinates of a token, by index: HRA_TOKEN; HRA_AXIS + a in the grid; HRA_SLOT + n in the n-th order of the
 * mask. */
enum { HRA_TOKEN = 0, HRA_AXIS = 1, HRA_SLOT = 4, HRA_COORDINATES = 8 };

/* Different orders that the slots() of one mask may name. */
enum { HRA_MASK_ORDERS = HRA_COORDINATES - HRA_SLOT };

/* The smallest box around a set of tokens, bounds inclusive. Only coordinates that the mask reads have a meaning.
 * Tokens and slots are low plus multiples of step, which is what dilated masks ask for: a tile of a residue order has
 * every r-th token. 1 says nothing, and where low = high any step is right. Coordinates of the grid have none. */
struct hra_box {
    int64_t low[HRA_COORDINATES], high[HRA_COORDINATES], step[HRA_COORDINATES];
};

struct hra_question {
    const hra_mask *mask;
    int batch, head; /* of the mask's domain: a head of the model */
    int branch;      /* 0 to hra_mask_branches - 1 */
};

/* Branches of the mixture that the mask is for this (batch, head); 1 where it is none. */
int hra_mask_branches(const hra_mask *mask, int batch, int head);

enum hra_answer { HRA_NONE, HRA_SOME, HRA_ALL };

/* Do the pairs (query in q, key in k) attend? NONE and ALL are true of every pair of tokens in the
 * boxes; SOME may be said of any. Time O(nodes of the mask), with a logarithm for documents and blocks and a factor
 * for the levels of hierarchical blocks; no allocation. */
enum hra_answer hra_mask_classify(const struct hra_question *question, const struct hra_box *q,
                                  const struct hra_box *k);

/* A tile's worth of tokens made ready for hra_mask_bits: by coordinate, which values occur and at which rows. */
struct hra_points;

/* Bytes of one, for a mask; 64-byte aligned. */
size_t hra_points_bytes(const hra_mask *mask);

/* slots slot0 .. slot0 + count - 1 of `order`, count 1 to HRA_TILE. */
void hra_points_fill(struct hra_points *points, const hra_mask *mask, const hra_order *order, int64_t slot0,
                     int count);

/* The box around the tokens of slots slot0 .. slot0 + count - 1 of `order`. */
struct hra_box hra_box_of(const hra_mask *mask, const hra_order *order, int64_t slot0, int64_t count);

/* *box = the smallest box around two. */
void hra_box_join(struct hra_box *box, const hra_mask *mask, const struct hra_box *a,
                  const struct hra_box *b);

/* bits[r] bit c = 1 where the r-th query attends to the c-th key; all other bits are 0. Points keep what is found
 * out about them on the way. */
void hra_mask_bits(const struct hra_question *question, struct hra_points *q, struct hra_points *k,
                   uint64_t bits[HRA_TILE][HRA_TILE / 64]);

/* The space that the mask was made for. */
const struct hra_space *hra_mask_space(const hra_mask *mask);

/* Two (batch, head) with the same key have the same pattern: a hash of the mask with its heads() and batches()
 * resolved. hra_mask_hash is one of the whole mask, over all of them. */
uint64_t hra_mask_key(const hra_mask *mask, int batch, int head);
uint64_t hra_mask_hash(const hra_mask *mask);

/* Does the key depend on the sequence, on the head? */
int hra_mask_by_batch(const hra_mask *mask);
int hra_mask_by_head(const hra_mask *mask);

/* One more holder of the mask; give back with hra_mask_destroy. */
hra_mask *hra_mask_keep(const hra_mask *mask);

/* ---- Inside masks: mask.c makes, mask_ask.c asks, mask_text.c reads and writes --------------- */

enum hra_mask_kind {
    HRA_MASK_FULL,
    HRA_MASK_CAUSAL,
    HRA_MASK_WINDOW,
    HRA_MASK_GRID,
    HRA_MASK_NEIGHBOURHOOD,
    HRA_MASK_DOCS,
    HRA_MASK_DILATED,
    HRA_MASK_GLOBAL,
    HRA_MASK_BLOCKS,
    HRA_MASK_LOCAL_BLOCKS,
    HRA_MASK_STRIDED_BLOCKS,
    HRA_MASK_GLOBAL_BLOCKS,
    HRA_MASK_RANDOM_BLOCKS,
    HRA_MASK_HIERARCHICAL_BLOCKS,
    HRA_MASK_SLOTS,
    HRA_MASK_NOT,
    HRA_MASK_AND,
    HRA_MASK_OR,
    HRA_MASK_HEADS,
    HRA_MASK_BATCHES,
    HRA_MASK_MIX
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
    uint64_t hash; /* hra_mask_key where neither by_batch nor by_head; see there */

    /* What is somewhere in the mask, children included. */
    int by_batch, by_head; /* it differs from sequence to sequence, from head to head */
    int mixture;           /* a mix() */
    int on_grid;           /* a mask that reads coordinates of the grid */
    hra_order
        *order[HRA_MASK_ORDERS]; /* [orders] that slots() name, each once, a reference held on each; of a
                                          SLOTS mask order[0] is its own and only one */
    int orders;

    int64_t left, right;          /* window, tokens */
    int64_t extent[3], stride[3]; /* grid: radius by axis; neighbourhood: keys by axis, at most the axis, and
                                     queries that share a window */
    int64_t segment, rate;        /* dilated, tokens */
    int64_t offset;               /* dilated: 0 to rate - 1 or HRA_OFFSET_HEAD */
    hra_dilation mode;            /* dilated */
    int64_t global;               /* global: tokens; global_blocks: blocks */
    int64_t width, step;          /* block rules: blocks; step of strided_blocks */
    int levels;                   /* hierarchical_blocks */
    int64_t drawn;                /* random_blocks: further blocks a row, as given */
    uint64_t seed;                /* random_blocks */

    int64_t *start; /* docs: [count + 1] first tokens ascending, last the tokens of the domain;
                       blocks, random_blocks: [count + 1] where each query block begins in key */
    int64_t *key;   /* blocks, random_blocks: key blocks of each query block, ascending, each once */
    int64_t count;  /* documents; blocks in the sequence, for all kinds of blocks */
    int64_t block;  /* all kinds of blocks: tokens in one */

    hra_mask **child; /* masks of masks: [children], a reference held on each */
    int children;
    int *first, *last; /* heads, batches: [children] ascending ranges */
    int *child_of;     /* heads, batches: [space.heads or space.batch] which child holds */
};

/* A & B & ..., A | B | ... or mix(A; B; ...) of mask [count], count >= 1; of & and | children of the same kind
 * are taken in; one mask alone is kept as it is. */
hra_status hra_mask_combine(hra_mask **out, enum hra_mask_kind kind, const hra_mask *const *mask, int count);

#endif

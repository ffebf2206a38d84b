/* order.h - domains and orders, seen from inside the library. */
#ifndef HRA_SRC_ORDER_H
#define HRA_SRC_ORDER_H

#include "src/status.h"

/* A checked copy of a caller's domain, defaults filled in. */
struct hra_space {
    int batch, heads; /* >= 1 */
    int64_t tokens;   /* >= 1 */
    int64_t grid[3];  /* [axes], slowest first; the rest 1 */
    int axes;         /* 0: no grid; else 2 or 3 */
};

/* Check a caller's domain. HRA_ERR_ARG with the values where numbers do not agree. */
hra_status hra_space_read(struct hra_space *out, const hra_domain *domain);

/* Numbers that are all alike modulo `step` (0: one number) are joined with others that are modulo `other` and lie
 * `apart` from them: the largest step of which that is true of all. */
static inline int64_t hra_step(int64_t step, int64_t other, int64_t apart)
{
    const int64_t more[2] = {other, apart < 0 ? -apart : apart};

    for (int n = 0; n < 2 && step != 1; n++)
        for (int64_t rest = more[n]; rest != 0;) { /* Euclid's algorithm */
            const int64_t left = step % rest;
            step = rest;
            rest = left;
        }
    return step;
}

/* The tokens and their coordinates in HRA_PATCH slots, bounds inclusive. */
struct hra_patch {
    int64_t first, last;     /* tokens */
    int64_t step;            /* of the tokens, see hra_step */
    int64_t low[3], high[3]; /* in the grid that the order runs over */
};

#define HRA_PATCH 32

struct hra_order {
    int references; /* atomic; hra_order_destroy takes one off */
    int64_t tokens;
    int64_t *slot_to_token; /* [tokens] */
    int64_t *token_to_slot; /* [tokens] */
    int64_t *cut; /* [cuts] slots where a tile should begin, ascending from 0; NULL: nowhere in particular */
    int64_t cuts;
    struct hra_patch
        *patch;    /* [ceil(tokens / HRA_PATCH)], so that no plan need look at every token again; NULL for
                                the identity without a grid */
    uint64_t hash; /* of slot_to_token and cut: equal for orders with equal contents, whatever their names */
    int identity;  /* 1: slot = token everywhere, whatever the name */
    int on_grid;   /* 1: the domain had a grid, which `grid` is */
    int64_t grid[3]; /* the grid run over; 1 beyond its axes */
    int axes;        /* 0 for identity and permutation without a grid */
    char name[64];
    char curve[384];
};

/* Does the order belong to this space: made for as many tokens on the same grid? One that was made without
 * a grid also fits where there is one, if its name says the same there. */
int hra_order_fits(const hra_order *order, const struct hra_space *space);

/* One more holder of the order; give back with hra_order_destroy. */
hra_order *hra_order_keep(const hra_order *order);

#endif

/* oracle.h - the right answer, and the error that a plain evaluation makes.
 *
 * Both functions read the mask through hra_mask_count alone: they know no order, tile, rank or ring,
 * so that whatever the library does wrong in those shows as a difference. The work falls into
 * (sequence, key head) pairs, numbered sequence * heads_kv + key head, which touch nothing of each
 * other's; ranks split it by taking every step-th pair. */
#ifndef HRA_TOOLS_ORACLE_H
#define HRA_TOOLS_ORACLE_H

#include <hra/hra.h>

/* One attention problem in token order, everything owned by the caller. */
struct oracle {
    const hra_mask *mask; /* of a domain with these tokens, this batch, head0 + heads heads */
    int64_t batch, tokens;
    int heads, heads_kv; /* query heads, key heads; the first a multiple of the second */
    int head0;           /* the mask's head of head 0 */
    int dim, dim_v;      /* channels of q and k, of v and o */
    double scale;        /* as it is used; 0 is no default here */

    const double *q;    /* [batch][tokens][heads][dim] */
    const double *k;    /* [batch][tokens][heads_kv][dim] */
    const double *v;    /* [batch][tokens][heads_kv][dim_v] */
    const double *do_;  /* [batch][tokens][heads][dim_v], gradient of o */
    const double *dlse; /* [batch][heads][tokens], gradient of lse; NULL: none */

    double *o, *lse;      /* as do_ and dlse */
    double *dq, *dk, *dv; /* as q k v */
    int backwards;        /* 1: sums of oracle_plain over tokens and heads begin at the last */
    int64_t first, step;  /* pairs first, first + step, ... are written, all else is left alone */
};

/* o, lse and the gradients in double. 0, or -1 where there is no memory. */
int oracle_exact(const struct oracle *a);

/* The same by the obvious evaluation in `type`: S = scale Q K^T + ln(count), P = softmax(S), O = P V, then
 * dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dO * O) + dLSE), dQ = scale dS K,
 * dK = scale dS^T Q. Each result is rounded to the type; sums are f32 (f64 for f64) in the order of
 * their index, and lse is rounded to that. The inputs hold numbers of the type. 0, or -1 where there
 * is no memory. */
int oracle_plain(const struct oracle *a, hra_type type);

#endif

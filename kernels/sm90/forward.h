/* forward.h - the forward kernel for sm_90a, launched from C, and the work that it reads.
 *
 * An item is one query tile of one (batch, head). It names a range of entries, the key tiles that it is
 * computed against, in their order. An item whose list goes on in a later launch leaves its state (output not
 * yet divided by its sum, reference, sum) in the workspace, where that launch resumes it, so that a list
 * gives the same bits in one launch or in many. */
#ifndef HRA_KERNELS_SM90_FORWARD_H
#define HRA_KERNELS_SM90_FORWARD_H

#include "kernels/kernels.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Chunks of one launch at most, and threads that compute. */
enum { HRA_SM90_CHUNKS = 8, HRA_SM90_CONSUMERS = 256 }; /* threads that have a tile of queries */

/* What a launch does of an item beside its tiles: its state begins here; its outputs are written here. Of a first tile also: the
 * item is the first part of one that was cut, and says when it has ended; it is the second, and waits for that. */
enum { HRA_SM90_BEGINS = 1, HRA_SM90_ENDS = 2, HRA_SM90_TELLS = 4, HRA_SM90_WAITS = 8 };

/* Cuts of a launch at most. */
enum { HRA_SM90_CUTS = 511 };

/* The query rows of an item are a tile, or three halves of it and of the tile after it. */
struct hra_sm90_item {
    int32_t row0[2];              /* of the two tiles, among the rows of the rank */
    uint8_t rows[2];              /* 1 to HRA_TILE; of the second also 0: the item has none of it */
    uint8_t flags[2];             /* HRA_SM90_BEGINS, HRA_SM90_ENDS; of no second tile both */
    int32_t half0;                /* 1: the first half of the first tile is another item's */
    int32_t batch, head, head_kv; /* head and K/V head of the rank */
    uint32_t entry0, entries;
    uint32_t state; /* the first tile's place in the workspace; the second has the next one */
    uint32_t at[2]; /* rows by token: where its halves begin in the grid */
    uint32_t cut;   /* which of the launch's, where it tells or waits */
};

/* Where rows lie by token, halves of tiles, and tiles of lists that are not packed, are boxes of a grid of two or
 * three axes (boxes.h), and what stands for a first row elsewhere are coordinates, those of the fastest axis in the
 * lowest bits: at & mask[0], at >> shift[0] & mask[1], at >> shift[1]; of two axes at & mask[0], at >> shift[0]. */
struct hra_sm90_grid {
    int axes; /* 0: rows lie as in the plan */
    int shift[2];
    uint32_t mask[2];
};

/* A key tile: its first row in its chunk; the chunk, from bit HRA_SM90_CHUNK_BIT on; below it 0 for a full
 * tile, 1 + its bitmap, or HRA_SM90_ABSENT. The second tile of an item has a number of its own for that. */
struct hra_sm90_entry {
    uint32_t row, tile;
};

enum { HRA_SM90_CHUNK_BIT = 28, HRA_SM90_ABSENT = (1 << HRA_SM90_CHUNK_BIT) - 1 };

/* A step of a packed list: two to four halves of key tiles of one chunk, by their rows there, of which group 0 of the
 * consumers multiplies the first two and group 1 the last two. bits, by group and half: 0 where all of it
 * attends, HRA_SM90_NONE where nothing does, or 1 + a bitmap, and HRA_SM90_RIGHT where it is the bitmap's columns from 64
 * on. places: how many halves; the chunk, from bit HRA_SM90_CHUNK_BIT on. */
struct hra_sm90_packed {
    uint32_t row[4], bits[2][2], places;
};

enum { HRA_SM90_RIGHT = 1 << 27, HRA_SM90_NONE = HRA_SM90_RIGHT - 1 };

/* Bits of a tile as threads hold its scores: thread t of the consumers has rows 16 (t / 32) + (t % 32) / 4
 * and 8 further; word h has columns from 64 h on, bit 16 r + 2 j + e is row r of the two and column
 * 64 h + 8 j + 2 (t % 4) + e. */
struct hra_sm90_bits {
    uint32_t word[HRA_SM90_CONSUMERS][2];
};

/* One launch. Maps are of tensors [batch][head][dim / 64][row][64], boxes of a tile, of q of half a tile,
 * swizzled by 128 bytes; of a grid [batch][head][axes, slowest first][dim], with three axes without batch, boxes of 64
 * channels. */
struct hra_sm90_forward {
    CUtensorMap q, k[HRA_SM90_CHUNKS], v[HRA_SM90_CHUNKS];
    int head0[HRA_SM90_CHUNKS]; /* first K/V head of each chunk */
    int heads;
    int64_t rows;                     /* of this rank */
    const struct hra_sm90_item *item; /* [items] in the order in which they are begun */
    int items;
    const struct hra_sm90_item *nothing; /* [nothings] items without keys, whose outputs are 0 and -inf */
    int nothings;
    const struct hra_sm90_entry *entry;
    const uint32_t
        *second; /* of each entry, what the second tile of its item has there; NULL with two groups */
    const struct hra_sm90_packed *packed; /* in the place of entries where lists are packed */
    const struct hra_sm90_bits *bits;
    struct hra_sm90_grid grid;
    const int32_t *token; /* [rows] where outputs of a row go; NULL: there */
    int *next;            /* counts items that were taken beyond each block's first; 0 before the launch */
    uint32_t *told;       /* [cuts] warps that have ended the first part; 0 before the launch */
    float *state;         /* hra_sm90_state_bytes for each place */
    hra_tensor o;
    float *lse;  /* [batch][heads][rows]; NULL: not wanted */
    float scale; /* of scores, times log2(e) */
};

/* Bytes of the state of one item. */
static inline size_t hra_sm90_state_bytes(int dim)
{
    return ((size_t)dim / 2 + 4) * sizeof(float) * HRA_SM90_CONSUMERS;
}

/* Before the first launches on a device; dim is 64 or 128, type bf16 or f16. */
cudaError_t hra_sm90_forward_open(hra_type type, int dim);

/* Compute on `blocks` multiprocessors, no more than items, by `groups` warpgroups: 2, whose items are tiles, or
 * with dim 64 3. Every item has entries. */
cudaError_t hra_sm90_forward_launch(const struct hra_sm90_forward *launch, hra_type type, int dim, int groups,
                                    int packed, int blocks, cudaStream_t stream);

/* Set `count` words to 0. By a kernel: the driver may give cudaMemsetAsync to the copy engine, where it would wait for
 * whatever the transport copies. */
cudaError_t hra_sm90_clear(uint32_t *words, size_t count, cudaStream_t stream);

/* Only the items without keys, for which a launch would be needed otherwise. */
cudaError_t hra_sm90_forward_nothing(const struct hra_sm90_forward *launch, int dim, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif

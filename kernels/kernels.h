/* kernels.h - what a backend is: attention over lists of tiles, on one rank.
 *
 * No kernel knows of ranks, orders or masks. When a plan is made a backend is given everything that does not
 * change (struct hra_kernel_plan) and prepares: packs bitmaps in its own layouts, starts threads. Execution then
 * hands it pointers. `stream` is the caller's; a backend that is not blocking only enqueues. */
#ifndef HRA_KERNELS_KERNELS_H
#define HRA_KERNELS_KERNELS_H

#include "src/status.h"

/* The bitmap of a tile in which every pair attends. */
#define HRA_FULL (-1)

/* The rows of one tile on the rank that owns them. */
struct hra_tile_rows {
    int64_t row0;
    int rows; /* 1 to HRA_TILE */
};

/* The live tiles of one pattern: queries of this rank, keys of all ranks. Both forms list the same tiles. */
struct hra_tile_list {
    int64_t *row_start;    /* [queries + 1] by query tile: tiles row_start[q] .. row_start[q + 1] - 1 */
    int *key;              /* [tiles] key tile, ascending within a row */
    int *bitmap;           /* [tiles] id of the bits, or HRA_FULL */
    int64_t *column_start; /* [keys + 1] by key tile */
    int *query;            /* [tiles] query tile, ascending within a column */
    int *column_bitmap;    /* [tiles] */
};

/* Bits of one tile: row r, key c is bit c % 64 of word c / 64. 0 where no slot is. */
typedef uint64_t hra_bits[HRA_TILE][HRA_TILE / 64];

/* How a kernel wants the bits of a tile: in the order in which its threads hold products. Ids are the same in every
 * layout. */
struct hra_bit_layout {
    const char *name;
    size_t bytes;                                  /* of one packed tile */
    void (*pack)(void *out, const hra_bits *bits); /* NULL: hra_bits as they are */
};

/* Which of the caller's tensors hold all tokens in natural order, the plan's row r at token[r]: none, o and lse, or all
 * that a pass reads and writes. */
enum hra_by_token { HRA_BY_SLOT = 0, HRA_WRITES_BY_TOKEN, HRA_ALL_BY_TOKEN };

/* Everything about a plan that kernels need and that does not change. Pointers stay valid as long as the plan. */
struct hra_kernel_plan {
    int batch, heads, heads_kv, dim, dim_v;
    hra_type type;
    double scale;
    int threads;                       /* CPU threads that are wanted, >= 1 */
    int margin;                        /* multiprocessors to leave free */
    int64_t rows;                      /* of this rank */
    int queries;                       /* query tiles of this rank */
    const struct hra_tile_rows *query; /* [queries] */
    int keys;                          /* key tiles of all ranks */
    const struct hra_tile_rows *key;   /* [keys] rows on their owner */
    const int *pattern;                /* [batch][heads] which list */
    int patterns;
    const struct hra_tile_list *list; /* [patterns] */
    int chunk_tiles;                  /* key tiles of the largest chunk */
    int own_key0, own_key1;           /* key tiles whose keys are the rows of this rank */
    int saves;                        /* 1: forward keeps q, k and v of this rank for backward */
    const int64_t *token;             /* [rows] token of each row */
    enum hra_by_token by_token[2];    /* by hra_pass; what takes_tokens said, or HRA_BY_SLOT */
    int bitmaps;
    const struct hra_bit_layout
        *layout[2];        /* by hra_pass; what the backend's table asks for, checked at each launch */
    const void *packed[2]; /* [bitmaps][layout bytes] by hra_pass */
};

/* A range of key tiles and of K/V heads and where their tensors lie: [batch][rows of the tiles][head1 - head0]
 * [dim or dim_v]; data points at (batch 0, first row of key_tile0, head0). */
struct hra_chunk {
    int key_tile0, key_tile1;
    int head0, head1; /* K/V heads */
    hra_tensor k, v;
    hra_tensor dk, dv; /* backward: sums, hra_type_sums; dk without the factor scale */
    int zero;          /* backward: dk and dv begin at 0 here; what they held is ignored */
    /* backward: data not NULL: the gradients go here, of the plan's type, dk times scale, and not to dk and dv, from which they
     * begin unless zero is 1, but for tiles that hra_shapes.summed names. writes_gradients backends only */
    hra_tensor out_dk, out_dv;
};

/* Called by the thread that called the kernel, now and then while it computes. */
struct hra_poll {
    void (*poll)(void *state); /* may be NULL */
    void *state;
};

/* What a chunk of a run will be, told when the plan is made, so that a backend can lay out its work beforehand. */
struct hra_shape {
    int run; /* ascending */
    int query0, query1;
    int key_tile0, key_tile1;
    int head0, head1; /* K/V heads */
};

struct hra_shapes {
    const struct hra_shape *shape; /* [count] the chunks of each run in their order */
    int count, runs;
    const int *first, *last; /* as in hra_run_args */
    const uint8_t *
        summed; /* backward: [own key tiles][heads_kv] 1: dK and dV are left in sums where chunks have outputs;
                              NULL: none */
};

/* One run of a schedule: query tiles query0 .. query1 - 1 against the chunks, in their order. first[head][q] and
 * last[head][q] ([heads_kv][queries], K/V heads) are the first and last run that touches a query tile: there its
 * state begins, and its outputs are written. */
struct hra_run_args {
    int run;
    int query0, query1;
    const struct hra_chunk *chunk; /* [chunks] */
    int chunks;
    const int *first, *last;
    void *workspace; /* the backend's, workspace_bytes of this pass */
    void *saved;     /* saved_bytes, the same of a forward and its backward */
    struct hra_poll poll;
    void *stream;
};

struct hra_forward_args {
    struct hra_run_args run;
    hra_tensor q, o;
    void *lse; /* [batch][heads][rows] sums type; NULL: not wanted */
};

struct hra_backward_args {
    struct hra_run_args run;
    hra_tensor q, do_, dq;
    const void *lse; /* [batch][heads][rows] */
};

/* Rows of tensors, [batch][rows][heads][dim]: to becomes factor * from, or factor * (sums + from) where sums.data is not NULL. */
struct hra_rows {
    hra_tensor to, sums, from;
    int64_t rows;
    int heads, dim;
    double factor;
};

/* As many in a call as go into a launch. */
enum { HRA_ROWS_AT_ONCE = 32 };

struct hra_backend {
    const char *name;
    const char *method;                     /* how it computes gradients */
    int blocking;                           /* 1: calls return when done */
    int writes_gradients;                   /* 1: backward can write dk and dv where their sums end */
    int has_margin;                         /* 1: can leave multiprocessors free */
    size_t alignment;                       /* of the workspace, bytes */
    size_t tensor_alignment;                /* of data and strides of tensors, bytes; 1: that of their type */
    const struct hra_bit_layout *layout[2]; /* by hra_pass: how its kernels want bits */

    /* Could it do a plan with this type, dim, dim_v and scale on the current device? Looks at nothing else of it.
     * HRA_ERR_UNSUPPORTED names what is lacking. NULL: open tells. */
    hra_status (*suits)(const struct hra_kernel_plan *plan);

    /* Which tensors of this pass of the plan, whose rows are all tokens, may lie by token? With HRA_ALL_BY_TOKEN chunks are of
     * whole tensors, whatever their key tiles. NULL: none. */
    hra_status (*takes_tokens)(enum hra_by_token *out, const struct hra_kernel_plan *plan, hra_pass pass);

    /* Prepare for a plan; HRA_ERR_UNSUPPORTED names what is lacking. Sets plan->threads to those it uses. close
     * accepts NULL. */
    hra_status (*open)(void **out, struct hra_kernel_plan *plan);
    void (*close)(void *state);

    /* Lay out the work of both passes, by hra_pass. NULL: nothing to lay out. */
    hra_status (*prepare)(void *state, const struct hra_shapes shapes[2]);

    /* Scratch of one pass: running sums between runs, and delta. The same for every call. */
    size_t (*workspace_bytes)(const struct hra_kernel_plan *plan, hra_pass pass);

    /* What forward keeps where the plan wants that. NULL: the backend keeps nothing. */
    size_t (*saved_bytes)(const struct hra_kernel_plan *plan);

    /* For backends whose memory is not the host's; NULL where it is. A copy of `bytes` of the host's memory `host` in the
     * backend's: make and drop the latter, copy one way and the other on the stream, wait for the stream, and tell
     * whether it records a graph, which waiting would spoil. */
    hra_status (*make_mirror)(void **out, void *host, size_t bytes);
    void (*drop_mirror)(void *mirror, void *host);
    hra_status (*to_mirror)(void *mirror, const void *host, size_t bytes, void *stream);
    hra_status (*from_mirror)(void *host, const void *mirror, size_t bytes, void *stream);
    hra_status (*wait)(void *stream);
    int (*records)(void *stream);

    /* Room for `count` marks in what streams do, for those who look on: set number n behind what the stream holds now, and
     * once it is through read how long after mark 0 each of the first `count` was passed; before that HRA_ERR_STATE. Marks
     * keep their times until they are set again. drop_marks accepts NULL. */
    hra_status (*make_marks)(void **out, int count);
    void (*drop_marks)(void *marks, int count);
    hra_status (*set_mark)(void *marks, int n, void *stream);
    hra_status (*read_marks)(const void *marks, int count, double *out_s);

    /* One run. Same inputs, same plan: same bits, whatever the threads and however runs cut the list. */
    hra_status (*forward)(void *state, const struct hra_forward_args *args);
    hra_status (*backward)(void *state, const struct hra_backward_args *args);

    /* delta = rowsum(do * o) - dlse for all rows, into the workspace of the backward pass; before its first run. */
    hra_status (*delta)(void *state, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                        void *workspace, void *stream);

    /* Copy or add up to HRA_ROWS_AT_ONCE rows, none of which touches what another writes, and convert them from one type to the
     * other. Sums are of hra_type_sums, as is what is added to them; `to` may be sums itself, with factor 1, else nobody reads
     * what sums holds after that. */
    hra_status (*combine)(void *state, const struct hra_rows *rows, int count, hra_type to_type,
                          hra_type from_type, void *stream);

    /* bytes of 0, in memory that kernels can reach. */
    hra_status (*clear)(void *state, void *data, size_t bytes, void *stream);

    /* rows[r] = whole[token[r]] (HRA_GATHER) or the other way, [batch][..][heads][dim] of `type`. */
    hra_status (*reorder)(void *state, hra_direction direction, hra_type type, const hra_tensor *whole,
                          const hra_tensor *rows, const int64_t *token, int64_t count, int heads, int dim,
                          void *stream);
};

extern const struct hra_backend hra_backend_cpu;
extern const struct hra_backend hra_backend_cuda;        /* in builds with HRA_CUDA */
extern const struct hra_backend hra_backend_sm90;        /* likewise */
extern const struct hra_backend hra_backend_sm90_cublas; /* the same, with the backward of hra_backend_cuda */

#endif

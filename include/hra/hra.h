/* hra.h - exact attention over a sequence that is split over many ranks.
 *
 * Every rank keeps the queries of its part of the sequence, K/V blocks travel between the ranks,
 * and what each rank gets is one dense softmax over the keys that the mask allows. The calls:
 *
 *     hra_comm    who takes part                     hra_comm_create_self, _model, _mpi (hra/mpi.h)
 *     hra_order   in which order tokens are kept     hra_order_create
 *     hra_mask    which pairs attend                 hra_mask_parse
 *     hra_plan    all of it compiled, once           hra_plan_create
 *     hra_forward, hra_backward                      any number of times
 *
 * Words used throughout. A *token* is named by its natural index: its raster index in a grid, its
 * place in a text. A *slot* is its place in the order in which the sequence is processed. The *rows*
 * of a rank are the slots that it owns, in slot order, counted from 0. A *tile* is a block of at most
 * HRA_TILE x HRA_TILE pairs of slots.
 *
 * Formulas, natural logarithms throughout, for query i and key j that the mask allows c_ij times
 * (c_ij = 1, but in mixtures):
 *     s_ij   = scale * q_i . k_j + ln c_ij
 *     LSE_i  = ln sum_j exp(s_ij)
 *     O_i    = sum_j exp(s_ij - LSE_i) v_j
 * and with P = exp(s - LSE), Delta_i = dO_i . O_i - dLSE_i:
 *     dV = P^T dO,  dS = P * (dO V^T - Delta),  dQ = scale dS K,  dK = scale dS^T Q
 * (FlashAttention-2, Dao 2023, section 3). A row with no allowed key has O = 0, LSE = -inf and
 * gradients 0.
 *
 * Every call that can fail returns a status; on failure nothing is written to its results, and
 * hra_last_error() has one sentence that says what was wrong, with the values. A call is not
 * collective unless its comment says so. Objects that do not change after they are made (orders,
 * masks) may be used from any thread; a communicator and its plans from one thread at a time. */
#ifndef HRA_HRA_H
#define HRA_HRA_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define HRA_API __attribute__((visibility("default")))
#else
#define HRA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define HRA_VERSION "0.1.0"

/* Slots on a side of a tile. */
#define HRA_TILE 128

/* No limit on this side of a window; written `-` in mask texts. */
#define HRA_UNBOUNDED INT64_MAX

typedef enum hra_status {
    HRA_OK = 0,
    HRA_ERR_ARG,         /* an argument cannot be right; nothing was done or sent */
    HRA_ERR_MISMATCH,    /* the ranks were given different things */
    HRA_ERR_UNSUPPORTED, /* right, but not in this build, backend or transport */
    HRA_ERR_MEMORY,      /* no memory */
    HRA_ERR_CUDA,        /* the CUDA runtime failed */
    HRA_ERR_COMM,        /* MPI or NCCL failed on this rank */
    HRA_ERR_REMOTE,      /* another rank failed or went away */
    HRA_ERR_TIMEOUT,     /* another rank did not come within the communicator's time limit */
    HRA_ERR_STATE        /* the object cannot do that now: plans still live, a model executed */
} hra_status;

/* The name of a status, such as "HRA_ERR_ARG". Static storage. */
HRA_API const char *hra_status_name(hra_status status);

/* What last went wrong on this thread, one sentence; "" before the first failure. Owned by the
 * library, valid until this thread's next failure. */
HRA_API const char *hra_last_error(void);

/* The version of the library that was loaded, such as HRA_VERSION. */
HRA_API const char *hra_version(void);

/* ---- Numbers ------------------------------------------------------------------------------- */

typedef enum hra_type {
    HRA_F64 = 1, /* computed in f64 */
    HRA_F32,     /* this and the following are computed in f32 */
    HRA_BF16,    /* the upper half of an f32 */
    HRA_F16      /* IEEE 754 binary16 */
} hra_type;

/* Bytes of one number; 0 for a value that is no type. */
HRA_API size_t hra_type_bytes(hra_type type);

/* "f64", "f32", "bf16", "f16", or "?" for a value that is no type. */
HRA_API const char *hra_type_name(hra_type type);

/* The type in which lse and dlse are kept beside tensors of `type`: f64 for f64, else f32. */
HRA_API hra_type hra_type_sums(hra_type type);

/* Convert `count` numbers, rounding to nearest, ties to even; too large becomes infinite, a NaN
 * stays one. out and in [count] do not overlap. HRA_ERR_ARG: a NULL pointer, a value that is no
 * type, count < 0. */
HRA_API hra_status hra_convert(void *out, hra_type out_type, const void *in, hra_type in_type, int64_t count);

/* ---- Domain, order, mask ------------------------------------------------------------------- */

/* The index space on which orders and masks are made. Set size = sizeof(hra_domain), or start from
 * HRA_DOMAIN_INIT; fields beyond size count as 0. */
typedef struct hra_domain {
    size_t size;     /* bytes of this struct as the caller knows it */
    int batch;       /* sequences; default 1 */
    int heads;       /* query heads of the whole model, over all tensor-parallel ranks; default 1 */
    int64_t tokens;  /* in one sequence; default: the product of grid */
    int64_t grid[3]; /* extents, slowest axis first, product = tokens: {rows, columns, 0} or
                        {frames, rows, columns}; all 0: the tokens have no grid */
} hra_domain;

#define HRA_DOMAIN_INIT                                                                                      \
    {                                                                                                        \
        sizeof(hra_domain), 0, 0, 0,                                                                         \
        {                                                                                                    \
            0, 0, 0                                                                                          \
        }                                                                                                    \
    }

/* A bijection between tokens and slots. Immutable. */
typedef struct hra_order hra_order;

/* How an order runs over its grid. A step is the way from one slot's token to the next slot's. */
typedef struct hra_order_info {
    size_t size;        /* bytes of this struct as the caller knows it */
    int64_t tokens;     /* of the domain */
    int64_t grid[3];    /* the grid that the order runs over, its own where the domain has none */
    int64_t unit_steps; /* steps between grid neighbours: one axis changes, by 1 */
    int64_t longest;    /* longest step, the sum over the axes of |coordinate difference| */
    const char *name;   /* the text it was made from, numbers without leading zeros and residues
                               without `:identity`; "permutation" for the caller's; owned by the
                               order */
    const char *curve;  /* one line in words: which curve on which grid; owned by the order */
} hra_order_info;

/* Make an order from its name:
 *     identity       slot = token
 *     hilbert        the Hilbert curve (Hilbert 1891; computed as by Skilling 2004) of the smallest
 *                    square or cube of side 2^m that holds the grid, cells outside the grid skipped;
 *                    every step is a unit step on 2^m x 2^m and 2^m x 2^m x 2^m
 *     boxes:AxB[xC]  the grid cut into boxes of A x B [x C] tokens (at most HRA_TILE in one), the
 *                    boxes along the Hilbert curve of the grid of boxes, each in raster order; key
 *                    and query tiles then begin where boxes begin
 *     morton         bits of the coordinates interleaved (Morton 1966), cells outside skipped
 *     snake          raster order, every second line backwards; on a grid all steps are unit steps
 *     residues:S:r[:ORDER]  the slots of ORDER, which is another of these names (default identity), in
 *                    segments of S, within a segment those with the index 0, r, 2r, ... first, then
 *                    1, r + 1, ... and so on; the last segment may be shorter. For dilated masks with
 *                    this S and r (or a multiple of r) all pairs of a tile attend or none; tiles then
 *                    begin where residues do, or where segments do if those fit a tile. The whole name
 *                    has at most 63 characters
 * Without a grid in the domain hilbert, boxes, morton and snake lay the tokens row by row on the
 * smallest square of side 2^m that holds them. The order is the caller's, to be given to
 * hra_order_destroy; plans made with it keep what they need.
 * HRA_ERR_ARG: a NULL pointer, a name that is none, a box that does not fit the axes or the tile, S or
 * r below 1, a domain whose numbers do not agree. HRA_ERR_MEMORY. */
HRA_API hra_status hra_order_create(hra_order **out, const hra_domain *domain, const char *name);

/* Make an order from slot_to_token [tokens], which is copied.
 * HRA_ERR_ARG also where slot_to_token is no permutation (the message names the slot). */
HRA_API hra_status hra_order_permutation(hra_order **out, const hra_domain *domain,
                                         const int64_t *slot_to_token);

/* The token of each slot, and the slot of each token: [tokens] each, owned by the order. */
HRA_API const int64_t *hra_order_slot_to_token(const hra_order *order);
HRA_API const int64_t *hra_order_token_to_slot(const hra_order *order);

/* Fill *info, whose size the caller has set. HRA_ERR_ARG: a NULL pointer. */
HRA_API hra_status hra_order_get_info(const hra_order *order, hra_order_info *info);

/* Accepts NULL. */
HRA_API void hra_order_destroy(hra_order *order);

/* Which pairs attend, and how often. Immutable. docs/masks.md has each mask with its formula and a
 * picture. The whole meaning of a mask is hra_mask_count; its indices are tokens, never slots. */
typedef struct hra_mask hra_mask;

/* Make a mask from its text, such as "causal & window(4095,0)":
 *     full                   every pair
 *     causal                 j <= i
 *     window(left,right)     i - left <= j <= i + right; either may be negative, `-` is without end
 *     grid(r0,r1[,r2])       |coordinate difference| <= radius in every axis
 *     neighbourhood(n0,n1[,n2][; s0,s1[,s2]])  per axis of length L the n keys from
 *                            clamp(c - n/2, 0, L - n), c the middle query of i's group of s queries,
 *                            min(s (i/s) + s/2, L - 1); s defaults to 1; n is clipped to L
 *     docs(len,len,...)      i and j in the same document; the lengths add up to the tokens
 *     dilated(S,r[,o[,mode]])  i and j in the same segment of S tokens, and with t = index mod S:
 *                            keys (the default) t_j = o (mod r); both t_i = t_j = o (mod r);
 *                            residue t_i = t_j (mod r). o: 0 (the default) to r - 1, or `head` for
 *                            head mod r
 *     global(n)              i < n or j < n
 *     blocks(size; i:j j j; i:j ...)  query block i attends to the key blocks j listed for it
 *     local_blocks(size,w)   |I - J| <= w, for I and J the blocks of `size` tokens of i and j
 *     strided_blocks(size,stride,w)  |I - J| <= w or I - J a multiple of stride
 *     global_blocks(size,g,w)  |I - J| <= w or I < g or J < g
 *     random_blocks(size,n,seed)  I = J, and n further blocks J for each I, drawn as docs/masks.md says
 *     hierarchical_blocks(size,w,levels)  |I - J| <= w, or for an l of 1 .. levels |I - J| <= w 2^l and
 *                            J a multiple of 2^l
 *     slots([ORDER;] M)      M with slots of ORDER for tokens, except that causal stays with tokens;
 *                            ORDER is a name that hra_order_create knows; without it `order` is taken
 *     heads(0-3: M; 4-7: M)  a mask for each range of query heads; the ranges cover every head once
 *     batches(0: M; 1-2: M)  the same for the sequences of a batch
 *     mix(M; M; ...)         every branch, the counts added: softmax over the multiset union
 *     longnet(S:r, S:r, ...)  mix(dilated(S,r,head,both); ...)
 *     !M, A & B, A | B, (A)  not, and, or; binding tightest first; white space anywhere
 * i and j are query and key token; sizes are in tokens. `order` is what slots(M) reads; NULL where the
 * text has none. The mask is the caller's, to be given to hra_mask_destroy; plans and combinations made
 * with it keep what they need, and it keeps what it needs of `order`.
 * HRA_ERR_ARG: a NULL pointer, a text that does not parse or does not fit the domain (the message
 * says at which character), a grid mask without a grid. HRA_ERR_MEMORY. */
HRA_API hra_status hra_mask_parse(hra_mask **out, const hra_domain *domain, const hra_order *order,
                                  const char *text);

/* The same masks without text. Arrays are copied. */
HRA_API hra_status hra_mask_full(hra_mask **out, const hra_domain *domain);
HRA_API hra_status hra_mask_causal(hra_mask **out, const hra_domain *domain);
/* left, right: tokens, may be negative; HRA_UNBOUNDED: no limit. */
HRA_API hra_status hra_mask_window(hra_mask **out, const hra_domain *domain, int64_t left, int64_t right);
/* radius [axes of the grid], tokens, >= 0. */
HRA_API hra_status hra_mask_grid(hra_mask **out, const hra_domain *domain, const int64_t *radius);
/* extent [axes of the grid], tokens, >= 1; stride [axes], tokens, 1 to extent, or NULL: all 1. */
HRA_API hra_status hra_mask_neighbourhood(hra_mask **out, const hra_domain *domain, const int64_t *extent,
                                          const int64_t *stride);
/* length [count], tokens, >= 1 each, their sum the tokens of the domain. */
HRA_API hra_status hra_mask_docs(hra_mask **out, const hra_domain *domain, const int64_t *length,
                                 int64_t count);

typedef enum hra_dilation {
    HRA_DILATED_KEYS = 0, /* every query attends to every rate-th key of its segment */
    HRA_DILATED_BOTH,     /* every rate-th query to every rate-th key; the other queries to none */
    HRA_DILATED_RESIDUE   /* every query to the keys that are a multiple of rate away */
} hra_dilation;

/* The offset that is head mod rate. */
#define HRA_OFFSET_HEAD (-1)

/* segment, rate >= 1, tokens; offset 0 to rate - 1 or HRA_OFFSET_HEAD, and 0 for HRA_DILATED_RESIDUE. */
HRA_API hra_status hra_mask_dilated(hra_mask **out, const hra_domain *domain, int64_t segment, int64_t rate,
                                    int64_t offset, hra_dilation mode);
/* The first `count` tokens, >= 1, attend to all and all to them. */
HRA_API hra_status hra_mask_global(hra_mask **out, const hra_domain *domain, int64_t count);
/* Blocks of `block_tokens` tokens, the last one perhaps shorter. query_block, key_block [count]: the
 * pairs that attend, in any order; one listed twice counts once. */
HRA_API hra_status hra_mask_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                   const int64_t *query_block, const int64_t *key_block, int64_t count);
/* Blocks by rule. block_tokens, stride >= 1; width, global, count >= 0 blocks; levels 1 to 62. */
HRA_API hra_status hra_mask_local_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                         int64_t width);
HRA_API hra_status hra_mask_strided_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                           int64_t stride, int64_t width);
HRA_API hra_status hra_mask_global_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                          int64_t global, int64_t width);
HRA_API hra_status hra_mask_random_blocks(hra_mask **out, const hra_domain *domain, int64_t block_tokens,
                                          int64_t count, uint64_t seed);
HRA_API hra_status hra_mask_hierarchical_blocks(hra_mask **out, const hra_domain *domain,
                                                int64_t block_tokens, int64_t width, int levels);
/* `mask` reading slots of `order`, which was made for the same tokens and grid. HRA_ERR_ARG where mask
 * has a grid(), neighbourhood() or slots() in it. */
HRA_API hra_status hra_mask_slots(hra_mask **out, const hra_order *order, const hra_mask *mask);
/* HRA_ERR_ARG where a and b were made for different domains, and for mixtures: `not` and `or` take none,
 * `and` at most one (A & mix(B; C) is mix(A & B; A & C)). */
HRA_API hra_status hra_mask_not(hra_mask **out, const hra_mask *a);
HRA_API hra_status hra_mask_and(hra_mask **out, const hra_mask *a, const hra_mask *b);
HRA_API hra_status hra_mask_or(hra_mask **out, const hra_mask *a, const hra_mask *b);
/* mask[n] holds for heads first[n] .. last[n], all [count]; together they cover each head of the
 * domain once. */
HRA_API hra_status hra_mask_heads(hra_mask **out, const int *first, const int *last,
                                  const hra_mask *const *mask, int count);
/* The same for the sequences of a batch: masks that differ from sequence to sequence. */
HRA_API hra_status hra_mask_batches(hra_mask **out, const int *first, const int *last,
                                    const hra_mask *const *mask, int count);
/* All of mask [count], count >= 1, their counts added; none is itself a mixture. */
HRA_API hra_status hra_mask_mix(hra_mask **out, const hra_mask *const *mask, int count);

/* How often `query` attends to `key`: 0, 1, or in a mixture the number of branches in which it does.
 * `head` is a query head of the whole model. Indices outside the domain count 0. */
HRA_API int hra_mask_count(const hra_mask *mask, int64_t batch, int64_t head, int64_t query, int64_t key);

/* hra_mask_count(...) > 0 */
HRA_API int hra_mask_allows(const hra_mask *mask, int64_t batch, int64_t head, int64_t query, int64_t key);

/* Write the mask's text, which parses back to the same mask, into out [bytes], cut to fit and ended
 * by '\0' (out may be NULL where bytes is 0). slots() of a permutation of the caller's is written
 * without its order, which must then be given to the parser. Returns the bytes of the whole text without
 * its '\0'. */
HRA_API size_t hra_mask_print(const hra_mask *mask, char *out, size_t bytes);

/* Accepts NULL. */
HRA_API void hra_mask_destroy(hra_mask *mask);

/* ---- Communicators ------------------------------------------------------------------------- */

/* The ranks that hold one sequence. Owns the memory in which K/V and dK/dV of other ranks arrive. */
typedef struct hra_comm hra_comm;

/* How K/V and dK/dV travel. */
typedef enum hra_transport_kind {
    HRA_TRANSPORT_AUTO = 0, /* mpi for a communicator made from MPI's, else gpu */
    HRA_TRANSPORT_MPI,      /* MPI messages from and to memory of the host */
    HRA_TRANSPORT_GPU,      /* between GPUs: for each pair of ranks peer where that can be, else nccl */
    HRA_TRANSPORT_NCCL,     /* ncclSend and ncclRecv; each rank has a GPU of its own */
    HRA_TRANSPORT_PEER /* the copy engine, into mapped memory of the receiver; all ranks on one node, several
                               may share a GPU */
} hra_transport_kind;

typedef struct hra_comm_options {
    size_t size; /* bytes of this struct as the caller knows it */
    double
        timeout_s; /* seconds that a call, or a stream, waits for another rank; default 600; negative: no limit */
    size_t message_bytes; /* longest single message over MPI; default 2^30, at most 2^31 - 1 */
    hra_transport_kind transport;
    double setup_timeout_s; /* the same where communicators, plans and hops are made and communicators end,
                               for which NCCL may take seconds; default: timeout_s */
} hra_comm_options;

#define HRA_COMM_OPTIONS_INIT                                                                                \
    {                                                                                                        \
        sizeof(hra_comm_options), 0, 0, HRA_TRANSPORT_AUTO, 0                                                \
    }

/* One rank, this process. */
HRA_API hra_status hra_comm_create_self(hra_comm **out);

/* A model of `ranks` ranks seen from `rank`: plans can be made on it and asked, not executed
 * (HRA_ERR_STATE). HRA_ERR_ARG: rank outside 0 .. ranks - 1. */
HRA_API hra_status hra_comm_create_model(hra_comm **out, int rank, int ranks);

/* What the ranks of a communicator without MPI know of each other: made on one of them, handed to all by the caller's
 * own means. out [HRA_UNIQUE_ID_BYTES].
 * HRA_ERR_UNSUPPORTED: a build without CUDA, no libnccl. */
#define HRA_UNIQUE_ID_BYTES 128
HRA_API hra_status hra_comm_get_unique_id(void *out);

/* A communicator of `ranks` ranks, of which this is number `rank`, each with a GPU of its own that is current in the
 * calling thread; id [HRA_UNIQUE_ID_BYTES] is the same on all of them and used once. options NULL are the defaults;
 * its transport is auto, gpu, nccl or peer. Collective over the ranks.
 * HRA_ERR_ARG: a NULL pointer, rank outside 0 .. ranks - 1. HRA_ERR_UNSUPPORTED: a build without CUDA, no GPU, no libnccl,
 * ranks that share a GPU, peer where a pair of ranks cannot. HRA_ERR_TIMEOUT, HRA_ERR_COMM, HRA_ERR_CUDA. */
HRA_API hra_status hra_comm_create_unique(hra_comm **out, int rank, int ranks, const void *id,
                                          const hra_comm_options *options);

/* This rank, from 0, and how many there are; -1 and 0 where comm is NULL. */
HRA_API int hra_comm_rank(const hra_comm *comm);
HRA_API int hra_comm_ranks(const hra_comm *comm);

/* HRA_OK, or the failure after which this communicator can only be destroyed: COMM, REMOTE, TIMEOUT, or between GPUs
 * MISMATCH: ranks that executed different plans. Between GPUs a failure that happens while streams work shows here; what
 * streams hold then comes to its end with undefined outputs. Never blocks. */
HRA_API hra_status hra_comm_get_status(const hra_comm *comm);

/* Wait on the host until the stream has done what it holds, as cudaStreamSynchronize, but not longer than the
 * communicator's time limit, and return the communicator's failure as soon as there is one. HRA_ERR_TIMEOUT without
 * such a failure leaves the communicator as it is: the stream is held up by something else. */
HRA_API hra_status hra_comm_wait(hra_comm *comm, void *stream);

/* Collective over the communicator's ranks. HRA_ERR_STATE while plans made on it live: then nothing
 * is destroyed and nothing sent. After a failure (hra_comm_get_status) it is local. Accepts NULL.
 * Graphs with its transfers are destroyed before, or at least not launched after it. Over NCCL the end of its communicator
 * waits for such graphs, and for ranks that are gone: then this returns after some seconds, and that end follows in a thread
 * of its own, for which the end of the process waits some seconds, but not cudaDeviceReset. */
HRA_API hra_status hra_comm_destroy(hra_comm *comm);

/* ---- Hops ---------------------------------------------------------------------------------- */

/* What a transport does alone, for measuring: every rank sends to the next one, the last to the first. Memory for that
 * belongs to it; like a plan it holds a reference on its communicator. */
typedef struct hra_hops hra_hops;

/* Hops of `bytes` bytes (>= 1) that follow one another at most `count` (>= 1) in one call. Collective; a communicator of
 * two or more ranks. The caller's, to be given to hra_hops_destroy.
 * HRA_ERR_ARG; HRA_ERR_MISMATCH: ranks that give different numbers; HRA_ERR_UNSUPPORTED: one rank, or a model;
 * HRA_ERR_MEMORY, and the failures of the communicator. */
HRA_API hra_status hra_hops_create(hra_hops **out, hra_comm *comm, size_t bytes, int count);

/* Make all `count` hops on the stream (NULL and blocking over MPI), each sending on what the last one has brought; the very
 * first sends bytes of the rank's own. Collective. */
HRA_API hra_status hra_hops_run(hra_hops *hops, void *stream);

/* Once the stream is done: whether every byte is where the hops have brought it. Local; blocks. HRA_ERR_COMM: it is not. */
HRA_API hra_status hra_hops_check(hra_hops *hops);

/* Accepts NULL. Not collective. */
HRA_API void hra_hops_destroy(hra_hops *hops);

/* ---- Plans --------------------------------------------------------------------------------- */

/* One attention problem, the whole of it, equal on every rank. Start from HRA_PROBLEM_INIT; a field
 * whose comment names a default takes it when the field is 0; fields beyond size count as 0. */
typedef struct hra_problem {
    size_t size;       /* bytes of this struct as the caller knows it */
    int batch;         /* sequences per call; default 1 */
    int heads;         /* query heads here; a multiple of heads_kv */
    int heads_kv;      /* key and value heads here; default heads */
    int head0;         /* the mask's head of our head 0: tensor-parallel ranks pass theirs */
    int dim;           /* channels of a head of q and k, 1 to 256 */
    int dim_v;         /* channels of a head of v and o, 1 to 256; default dim */
    int64_t tokens;    /* of one sequence, over all ranks */
    int64_t tokens_kv; /* keys of one sequence; default tokens, the only value supported so far */
    hra_type type;     /* of q k v o and their gradients */
    double scale;      /* factor on q.k; default 1/sqrt(dim) */
    double softcap;    /* not supported so far: 0 */
    double dropout;    /* not supported so far: 0 */
    int sinks;         /* not supported so far: 0 */
    int sm_margin;     /* multiprocessors that attention leaves to others, NCCL's kernels say, on this rank;
                           default 0, which is all that backends know but sm90 with its own backward. The
                           order in which backward adds to dq, and so its last bits, depend on it. */
    int threads;       /* CPU threads of this rank, may differ between ranks; default: cores of the
                           node / its ranks. The results do not depend on it. */
} hra_problem;

#define HRA_PROBLEM_INIT                                                                                     \
    {                                                                                                        \
        sizeof(hra_problem), 0, 0, 0, 0, 0, 0, 0, 0, (hra_type)0, 0, 0, 0, 0, 0, 0                           \
    }

typedef enum hra_shard {
    HRA_SHARD_AUTO = 0,   /* contiguous if its work is even to 3 %; else the one of those below whose
                             busiest rank is estimated to have least to do: products of its live tiles, and
                             K/V rows that it needs of others, as docs/design.md weighs them */
    HRA_SHARD_CONTIGUOUS, /* rank r owns the r-th of `ranks` runs of slots */
    HRA_SHARD_ZIGZAG,     /* rank r owns runs r and 2 ranks - 1 - r of 2 ranks: even work for causal masks */
    HRA_SHARD_BALANCED    /* whole tiles, their number as even as can be, in as few runs a rank as make the
                             work even to max(1.03, hra_plan_info.balance_bound) where that is possible */
} hra_shard;

typedef enum hra_schedule_kind {
    HRA_SCHEDULE_AUTO = 0, /* of these the one that should take least time by an estimate; memory beyond
                              four times the ring's has to save time in proportion */
    HRA_SCHEDULE_RING,     /* K/V move on by one rank a round, dK/dV with them, then home to their owner */
    HRA_SCHEDULE_HALO, /* the key tiles that a rank needs come straight from their owners, all at once, and
                              their dK/dV go straight back: least bytes, in memory for all that arrives */
    HRA_SCHEDULE_HEADS /* the same for one group of K/V heads after another, each computed at once while the
                              next one comes: memory for what arrives of two groups; at least 2 K/V heads */
} hra_schedule_kind;

typedef enum hra_backend_kind {
    HRA_BACKEND_AUTO = 0, /* the CPU; over transports between GPUs, HRA_BACKEND_GPU */
    HRA_BACKEND_CPU,
    HRA_BACKEND_CUDA, /* the device that is current when the plan is made; f32, bf16, f16. Over MPI messages go
                         through memory of the host, and calls return when done */
    HRA_BACKEND_SM90, /* the same on devices of compute capability 9.0, forward and backward in one kernel each:
                         bf16, f16, dim = dim_v = 64 or 128, scale > 0, nothing saved */
    HRA_BACKEND_GPU   /* of these two the faster one that can do the problem on the current device;
                         hra_plan_info.backend tells which */
} hra_backend_kind;

/* How a backend computes gradients. */
typedef enum hra_backward_kind {
    HRA_BACKWARD_AUTO = 0, /* the backend's best */
    HRA_BACKWARD_FUSED,    /* one kernel for dQ, dK and dV: the sm90 backend */
    HRA_BACKWARD_CUBLAS    /* products of cuBLAS around small kernels: the CUDA backends */
} hra_backward_kind;

/* What a forward keeps for its backward in `saved`. */
typedef enum hra_saved_kind {
    HRA_SAVED_NOTHING = 0,
    HRA_SAVED_QKV /* this rank's q, k and v as the backend works on them: the CUDA backend; and on every backend what a
                     forward has brought into slot order (HRA_ROWS_TOKENS), which may be nothing */
} hra_saved_kind;

/* What the rows of q, k, v, o, lse and of their gradients are. */
typedef enum hra_rows_kind {
    HRA_ROWS_SLOTS = 0, /* those of the rank, in slot order */
    HRA_ROWS_TOKENS /* all tokens in natural order, whatever the plan's order; on one rank. Forward of sm90 writes o and
                       lse where they are, and reads q, k and v where they are if halves of tiles are boxes of the grid:
                       orders boxes and residues where sides of boxes divide the axes, but the slowest, and r and S
                       the tokens, and with three axes batch is 1. What is not is brought into slot order and back in
                       the workspace. hra_plan_row_index and others that tell of rows mean those in slot order */
} hra_rows_kind;

/* A link between ranks, each direction by itself. */
typedef struct hra_link {
    double rate;      /* bytes a second in one direction, > 0 */
    double latency_s; /* that a message takes beside its bytes / rate, its flags included, >= 0 */
    double
        slowdown; /* share of a rank's rate of computing that is lost while a message of its own is on such a
                         link, 0 to less than 1 */
    int sharing;  /* consecutive ranks of a node that share one such link; default 1 */
    int grouped; /* 1: the messages of a rank's round on such links begin together, behind those of its rounds
                         before, and are over together, as with NCCL; 0: each by itself, as with the copy engine */
} hra_link;

/* A machine, as far as the time of a plan depends on it. docs/performance.md says how it is measured. Set size =
 * sizeof(hra_machine). Fields [2] are for forward and backward. */
typedef struct hra_machine {
    size_t size;       /* bytes of this struct as the caller knows it */
    int node_ranks;    /* ranks r with the same r / node_ranks are on one node; default: all of them */
    hra_link inside;   /* between ranks of a node */
    hra_link between;  /* between nodes; read only where there are several */
    double full[2];    /* FLOP a second in tiles all of whose pairs attend, > 0 */
    double partial[2]; /* in other live tiles, counted as if all their pairs did, > 0 */
    double item_s[2];  /* for each query tile of a head that a launch works on, beside its tiles, >= 0 */
    double launch_s;   /* for each kernel, >= 0 */
    double memory;     /* bytes a second that kernels which copy and add read and write, > 0 */
    int own_straight; /* 1: ranks that are all on one node send own K and V from where the caller has them, as the copy
                          engine does where heads lie side by side or are large; 0: they are copied into messages first */
} hra_machine;

typedef struct hra_options {
    size_t size; /* bytes of this struct as the caller knows it */
    hra_shard shard;
    hra_schedule_kind schedule;
    hra_backend_kind backend;
    hra_backward_kind backward;
    hra_saved_kind saved;
    const hra_machine *machine; /* whose rates shard and schedule are chosen by; read when the plan is made.
                                   Default: those of two cores, or of nodes of H100s, about */
    hra_rows_kind rows;
} hra_options;

#define HRA_OPTIONS_INIT                                                                                     \
    {                                                                                                        \
        sizeof(hra_options), HRA_SHARD_AUTO, HRA_SCHEDULE_AUTO, HRA_BACKEND_AUTO, HRA_BACKWARD_AUTO,         \
            HRA_SAVED_NOTHING, NULL, HRA_ROWS_SLOTS                                                          \
    }

/* A problem compiled for a communicator: immutable, used by every layer and step. */
typedef struct hra_plan hra_plan;

/* Make a plan. order NULL is the identity; options NULL are the defaults. order and mask are made
 * for domains with the problem's tokens; the mask's has its batch and at least head0 + heads heads.
 * Collective over comm; returns the same status on all ranks. The plan is the caller's, to be given
 * to hra_plan_destroy; it holds a reference on comm and keeps what it needs of order and mask.
 * HRA_ERR_ARG: NULL pointers, sizes out of range, head counts that do not divide, domains that do
 * not fit. HRA_ERR_UNSUPPORTED: a field that the backend lacks. HRA_ERR_MISMATCH: ranks that plan
 * different things (the message names the field and both values). HRA_ERR_MEMORY, and the failures
 * of the communicator. For a GPU it takes memory there and may wait for what that is at. */
HRA_API hra_status hra_plan_create(hra_plan **out, hra_comm *comm, const hra_problem *problem,
                                   const hra_order *order, const hra_mask *mask, const hra_options *options);

/* Accepts NULL. Not collective. On a GPU it waits, as cudaFree does, for whatever that is at, calls of the plan
 * included. */
HRA_API void hra_plan_destroy(hra_plan *plan);

/* What a plan knows about the whole problem. Tiles and pairs are summed over batch and heads. */
typedef struct hra_plan_info {
    size_t size;            /* bytes of this struct as the caller knows it */
    size_t workspace_bytes; /* that hra_forward and hra_backward need on this rank */
    size_t saved_bytes;     /* kept from a forward to its backward, on this rank */
    size_t arena_bytes;     /* for K/V and dK/dV of other ranks, on this rank, in the communicator, which
                               takes it once for all plans of such a problem, whatever their masks; in the
                               halo and heads half as much again as this plan needs */
    size_t plan_bytes;      /* host memory of the tile lists and bitmaps, on this rank */
    int64_t pairs_live;     /* (query, key) pairs that attend, each once */
    int64_t pairs_counted;  /* the same, each as often as hra_mask_count says: more only in a mixture */
    int64_t pairs_in_tiles; /* pairs in live tiles, whether they attend or not; a tile of a mixture
                               once for each branch that it is in */
    int64_t pairs_all;      /* batch x heads x tokens x tokens */
    int64_t tiles_full;     /* tiles of HRA_TILE^2 pairs that all attend; of a mixture, once a branch */
    int64_t tiles_partial;  /* other tiles with a pair that attends */
    int64_t bitmaps;        /* distinct bit matrices of partial tiles, on this rank */
    int patterns;           /* distinct masks over batch and heads */
    int rounds_forward;     /* rounds of the schedule on this rank */
    int rounds_backward;
    int64_t bytes_forward;        /* received, sum over the ranks, one forward */
    int64_t bytes_backward;       /* one backward */
    int64_t bytes_least;          /* least that a forward can move: K/V rows that live tiles need elsewhere */
    int64_t bytes_least_backward; /* the same rows as K/V in and dK/dV sums out */
    double balance;               /* live tiles of the busiest rank / mean over the ranks; 1 is even */
    double balance_bound;         /* live tiles of the heaviest row of tiles x ranks / all: no sharding by
                                     whole tiles is more even than that */
    int pieces;                   /* runs of slots that one rank owns, over all ranks */
    hra_shard shard;              /* the one chosen */
    int blocking;                 /* 1: forward and backward return when done; 0: they enqueue */
    int threads;                  /* CPU threads of this rank */
    const char *backend;          /* "cpu", "cuda" or "sm90" */
    const char *transport;        /* "self", "mpi", "gpu" (peer, nccl or both) or "model" */
    const char *schedule;         /* "ring", "halo" or "heads" */
    const char *backward;         /* how gradients are computed: "cpu", "cublas" or "fused" */
    double inflation;             /* bytes received / least possible, forward and backward together; 1 where
                                     that is 0 */
    int reorders_forward; /* 1: a forward brings rows by token into slot order; 0: they are used as they are */
    int reorders_backward; /* likewise */
} hra_plan_info;

/* Fill *info, whose size the caller has set. HRA_ERR_ARG: a NULL pointer. */
HRA_API hra_status hra_plan_get_info(const hra_plan *plan, hra_plan_info *info);

/* Rows that `rank` owns, 0 perhaps; -1 where there is no such rank or plan. */
HRA_API int64_t hra_plan_rows(const hra_plan *plan, int rank);

/* The slots and the tokens of the rows of `rank`, [hra_plan_rows(plan, rank)] each; either may be
 * NULL. HRA_ERR_ARG: no such rank. */
HRA_API hra_status hra_plan_row_index(const hra_plan *plan, int rank, int64_t *slot, int64_t *token);

/* A run of slots that one rank owns. */
typedef struct hra_piece {
    int64_t slot0; /* first slot */
    int64_t rows;  /* slots, 0 perhaps */
    int64_t row0;  /* row of slot0 on its rank */
    int rank;      /* the owner */
} hra_piece;

/* The pieces of all ranks in slot order; *out points into the plan, [*count]. */
HRA_API hra_status hra_plan_pieces(const hra_plan *plan, const hra_piece **out, int *count);

/* One live tile. */
typedef struct hra_plan_tile {
    int64_t query_slot0; /* first query slot */
    int64_t key_slot0;   /* first key slot */
    int64_t live;        /* pairs that attend */
    int query_rows;      /* at most HRA_TILE */
    int key_rows;
    int key_rank; /* who owns the keys */
    int bitmap;   /* id of its bits on that rank, -1 for a full tile */
} hra_plan_tile;

/* The live tiles of `rank` for one (batch, local head), by query slot, then key rank and slot. Writes the
 * first `capacity` to out (NULL where capacity is 0) and all their number to *count. A rank other
 * than our own is compiled for the call, which takes as long as making the plan.
 * HRA_ERR_ARG: no such rank, batch or head. */
HRA_API hra_status hra_plan_tiles(hra_plan *plan, int rank, int batch, int head, hra_plan_tile *out,
                                  int64_t capacity, int64_t *count);

typedef enum hra_pass { HRA_FORWARD = 0, HRA_BACKWARD } hra_pass;

/* One message of the schedule as `rank` sees it. */
typedef struct hra_plan_move {
    int round;    /* in which it starts, from 0 */
    int peer;     /* the other rank */
    int sends;    /* 1: rank sends to peer; 0: it receives */
    int gradient; /* 1: dK/dV sums; 0: K/V */
    int owner;    /* whose keys */
    int64_t bytes;
} hra_plan_move;

/* The messages of `rank` in schedule order; as hra_plan_tiles. */
HRA_API hra_status hra_plan_moves(const hra_plan *plan, int rank, hra_pass pass, hra_plan_move *out,
                                  int64_t capacity, int64_t *count);

/* Query rows of a rank that are computed against key rows of an owner, in one round. */
typedef struct hra_plan_run {
    int round;                      /* from 0 */
    int owner;                      /* whose keys */
    int64_t query_row0, query_rows; /* rows of the rank */
    int64_t key_row0, key_rows;     /* rows of the owner */
    int head0, head1;               /* key and value heads head0 .. head1 - 1 */
} hra_plan_run;

/* What `rank` computes, in schedule order; as hra_plan_tiles. */
HRA_API hra_status hra_plan_runs(const hra_plan *plan, int rank, hra_pass pass, hra_plan_run *out,
                                 int64_t capacity, int64_t *count);

/* ---- Forecasts ----------------------------------------------------------------------------- */

/* What one pass of a plan would take on a machine. */
typedef struct hra_forecast hra_forecast;

/* Play out one pass of the plan's schedule: the moves and runs of all ranks, what the executor lets wait for what, and the
 * links; docs/design.md tells what is left out. Of ranks 0 .. watched - 1 the spans are kept. Local, whatever the plan's
 * communicator; the forecast is the caller's, to be given to hra_forecast_destroy, and keeps nothing of the plan.
 * HRA_ERR_ARG: a NULL pointer, no such pass, watched < 0, a machine whose numbers are out of range. HRA_ERR_UNSUPPORTED: a
 * halo in which ranks visit each other too often to be listed. HRA_ERR_MEMORY. */
HRA_API hra_status hra_forecast_create(hra_forecast **out, const hra_plan *plan, const hra_machine *machine,
                                       hra_pass pass, int watched);

/* Accepts NULL. */
HRA_API void hra_forecast_destroy(hra_forecast *forecast);

/* The whole pass, or one rank. */
typedef struct hra_forecast_info {
    size_t size;    /* bytes of this struct as the caller knows it */
    double seconds; /* until it is done; of all ranks the last */
    double alone_s; /* that one rank would take for the work of all; of one rank: that its own takes alone */
    double efficiency;      /* alone_s / (ranks x seconds); of one rank alone_s / seconds */
    double compute_s;       /* in the kernels of attention; of all ranks the mean */
    double compute_most_s;  /* of the rank with most */
    double other_s;         /* in kernels that copy, add and clear; the mean */
    double waiting_s;       /* for messages, and so for other ranks; the mean */
    double waiting_most_s;  /* of the rank with most */
    double exposed_s;       /* seconds - compute and other kernels of the rank with most of these */
    int64_t received, sent; /* bytes; of all ranks their sums */
    int64_t received_most;  /* of the rank with most */
    int64_t sent_most;      /* of the rank with most */
    int64_t between_nodes;  /* bytes sent to another node */
    int64_t messages;       /* sent */
} hra_forecast_info;

/* Fill *info, whose size the caller has set: of `rank`, or of all where it is -1. HRA_ERR_ARG: a NULL pointer, no such
 * rank. */
HRA_API hra_status hra_forecast_get_info(const hra_forecast *forecast, int rank, hra_forecast_info *info);

typedef enum hra_span_kind {
    HRA_SPAN_COMPUTE = 0, /* a kernel of attention */
    HRA_SPAN_OTHER,       /* kernels that copy, add or clear */
    HRA_SPAN_WAIT,        /* nothing to do before a message has come or gone */
    HRA_SPAN_SEND,        /* a message on its way to peer */
    HRA_SPAN_RECEIVE      /* from peer */
} hra_span_kind;

/* What a rank, or one of its messages, does for a while. */
typedef struct hra_span {
    hra_span_kind kind; /* of what */
    int round;          /* from 0; -1 before the first and behind the last one */
    int peer; /* of a message the other rank, of a kernel of attention the first owner of keys, of waiting the
                           rank that is waited for; else -1 */
    int gradient;   /* of a message 1: dK/dV sums, 0: K/V */
    double begin_s; /* since the pass began */
    double end_s;
    int64_t bytes; /* of a message */
} hra_span;

/* The spans of a watched rank in the order in which they were found, those of its stream ascending; as hra_plan_tiles. */
HRA_API hra_status hra_forecast_spans(const hra_forecast *forecast, int rank, hra_span *out, int64_t capacity,
                                      int64_t *count);

/* ---- Traces -------------------------------------------------------------------------------- */

/* What executions of a plan did when, on this rank. */
typedef struct hra_trace hra_trace;

/* Record from now on when each step of hra_forward and hra_backward of the plan begins and ends: by the host's clock on CPUs,
 * by events on the caller's stream on CUDA, where the plan's device is current. All that this takes is made here. A plan
 * has one trace at a time; while it has it, a call whose stream is capturing a graph is HRA_ERR_UNSUPPORTED. Not collective.
 * The trace is the caller's, to be given to hra_trace_destroy, before or after the plan.
 * HRA_ERR_ARG: a NULL pointer. HRA_ERR_STATE: the plan has a trace, or was made on a model. HRA_ERR_MEMORY, HRA_ERR_CUDA. */
HRA_API hra_status hra_trace_create(hra_trace **out, hra_plan *plan);

/* Ends the recording. Accepts NULL. */
HRA_API void hra_trace_destroy(hra_trace *trace);

/* What the last execution of `pass` did, in seconds since it began here; as hra_plan_tiles. First the steps of the
 * stream, ascending, each beginning where the one before ends; then the messages in schedule order, each from when it was started
 * to when the stream had waited for it, which is later than it came where nothing needed it. The clocks of ranks are not
 * compared: what ranks did at one time is known as exactly as they began together.
 * HRA_ERR_ARG: a NULL pointer, no such pass. HRA_ERR_STATE: there was none since the trace was made, it failed, the stream
 * is not through with it, or the plan is gone. */
HRA_API hra_status hra_trace_spans(hra_trace *trace, hra_pass pass, hra_span *out, int64_t capacity,
                                   int64_t *count);

/* ---- Execution ----------------------------------------------------------------------------- */

/* A tensor [batch][rows][heads][dim] in any memory order that keeps the channels contiguous:
 * (batch, seq, head, dim) and (seq, batch, head, dim) alike. Strides are in elements. */
typedef struct hra_tensor {
    void *data; /* the caller's; memory of the backend: of the host, or of the plan's device; may be NULL
                   where rows is 0. On CUDA data and strides are multiples of 16 bytes */
    int64_t stride_batch, stride_row, stride_head;
} hra_tensor;

/* o = attention(q, k, v).
 *   q          [batch][rows][heads][dim]       rows = hra_plan_rows(plan, own rank), in slot order, or with
 *                                              HRA_ROWS_TOKENS all tokens in natural order
 *   k          [batch][rows][heads_kv][dim]    of the problem's type; not modified
 *   v          [batch][rows][heads_kv][dim_v]
 *   o          [batch][rows][heads][dim_v]     overwritten; overlaps nothing else
 *   lse        [batch][heads][rows]            hra_type_sums(type); NULL if not wanted
 *   workspace  workspace_bytes, aligned to 64 bytes, on CUDA 256; scratch, undefined after the call,
 *              shareable by all layers, one for each call in flight
 *   saved      saved_bytes, aligned as workspace; belongs to this call until its backward, which only
 *              reads it; NULL where saved_bytes is 0
 *   stream     NULL on the CPU; on CUDA a cudaStream_t, on which everything is enqueued; it may be
 *              capturing a graph
 * Collective over the plan's ranks, in the same order on each. Blocking where the plan says so.
 * HRA_ERR_ARG: nothing was sent, and the call may be repeated correctly. After COMM, REMOTE or
 * TIMEOUT outputs are undefined and every later call on the communicator returns the same status. */
HRA_API hra_status hra_forward(hra_plan *plan, const hra_tensor *q, const hra_tensor *k, const hra_tensor *v,
                               const hra_tensor *o, void *lse, void *workspace, void *saved, void *stream);

/* The gradients of a forward. q k v o lse are that forward's inputs and outputs. What is new:
 *   do_         [batch][rows][heads][dim_v]    gradient of o
 *   dlse        [batch][heads][rows]           gradient of lse, hra_type_sums(type); NULL: none
 *   dq dk dv    as q k v; overwritten, not added to; overlap nothing else
 * dK and dV are summed in hra_type_sums(type) for the whole way round the ranks. Collective, errors
 * and the rest as hra_forward. */
HRA_API hra_status hra_backward(hra_plan *plan, const hra_tensor *q, const hra_tensor *k, const hra_tensor *v,
                                const hra_tensor *o, const void *lse, const hra_tensor *do_, const void *dlse,
                                const hra_tensor *dq, const hra_tensor *dk, const hra_tensor *dv,
                                void *workspace, void *saved, void *stream);

typedef enum hra_direction {
    HRA_GATHER = 0, /* from all tokens to our rows */
    HRA_SCATTER     /* from our rows to all tokens; rows of other ranks are left alone */
} hra_direction;

/* Copy between a tensor that holds all tokens in natural order, `whole` [batch][tokens][heads][dim],
 * and our rows in slot order, `rows` [batch][rows][heads][dim], both of `type`. Local. */
HRA_API hra_status hra_reorder(hra_plan *plan, hra_direction direction, hra_type type, int heads, int dim,
                               const hra_tensor *whole, const hra_tensor *rows, void *stream);

#ifdef __cplusplus
}
#endif
#endif

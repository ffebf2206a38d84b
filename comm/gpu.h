/* gpu.h - communicators between GPUs: what gpu.c (the transport table and the watchdog), nccl.c and peer.c share.
 *
 * A pair of ranks exchanges its transfers in one of two ways, decided once for each pair when the communicator is made:
 *     peer   the sender copies into the receiver's arena, which it has mapped, by the copy engine; arrivals are told by
 *            flags in memory of the host that both share, set and waited for by streams
 *     nccl   ncclSend and ncclRecv, those of a round in one group
 * Nothing here waits on the host during an execution, and everything may be captured in a graph. A stream that is
 * about to wait for another rank first writes into a word of pinned memory for which transfer it waits, and 0 when it is
 * through; a thread of the host, the watchdog, reads these words, makes no CUDA call, and counts the time limit from them. */
#ifndef HRA_COMM_GPU_H
#define HRA_COMM_GPU_H

#include "comm/transport.h"
#include "src/cuda.h"

/* How the ranks speak on the host: all [ranks][bytes] = every rank's mine. Collective, within the time limit. */
struct hra_gather {
    hra_status (*call)(void *state, void *all, const void *mine, size_t bytes);
    void *state;
};

/* ---- nccl.c ---- */

struct hra_nccl;

/* Find libnccl and its functions, once. HRA_ERR_UNSUPPORTED says what is missing. */
hra_status hra_nccl_load(void);

/* out [HRA_UNIQUE_ID_BYTES] */
hra_status hra_nccl_unique_id(void *out);

/* What is known of a caller's ncclComm_t. */
hra_status hra_nccl_describe(void *parent, int *rank, int *ranks, int *device);

/* A communicator of our own: made with `id` [HRA_UNIQUE_ID_BYTES], or where id is NULL split off `parent`, an ncclComm_t
 * of the caller's, which stays the caller's. Non-blocking inside; waits at most limit.setup_s, as all collective calls
 * here do. Collective. On failure nothing is left. */
hra_status hra_nccl_open(struct hra_nccl **out, int rank, int ranks, const void *id, void *parent,
                         struct hra_limits limit);

/* struct hra_gather's call, state being the struct hra_nccl. Blocks the host. */
hra_status hra_nccl_allgather(void *state, void *all, const void *mine, size_t bytes);

/* Connect with the ranks whose `with` [ranks] is 1 (the same on both sides), so that no later transfer sets up
 * anything. Collective; blocks the host. */
hra_status hra_nccl_connect(struct hra_nccl *n, const unsigned char *with);

/* Enqueue the transfers on the stream as one group. */
hra_status hra_nccl_group(struct hra_nccl *n, struct hra_transfer *const *transfer, int count,
                          cudaStream_t stream);

/* HRA_OK, or what NCCL has found out meanwhile: HRA_ERR_REMOTE or HRA_ERR_COMM. From any thread; never blocks. */
hra_status hra_nccl_status(struct hra_nccl *n);

/* Give up: kernels that wait return. From any thread, once or more often; does not block longer than a second. */
void hra_nccl_abort(struct hra_nccl *n);

/* Accepts NULL. failed: local, aborts; else collective. */
hra_status hra_nccl_close(struct hra_nccl *n, int failed);

/* ---- peer.c ---- */

struct hra_peers;

/* Find out which ranks this one can reach and be reached by: on the same node, and their memory can be mapped, which is
 * tried. Collective over `gather`. *out is made even if there is none. Fails alike on all ranks. */
hra_status hra_peers_open(struct hra_peers **out, int rank, int ranks, struct hra_gather gather);

/* 1 if this rank and `peer` (another one) reach each other. The same on both sides. */
int hra_peers_reach(const struct hra_peers *p, int peer);

/* Tell the others of our arena (NULL: none; the one told before may be told again) and learn of theirs: there [ranks], where
 * this process addresses the arena of each rank that it reaches, NULL for others. A mapping lives until close. Collective. */
hra_status hra_peers_map(struct hra_peers *p, void *arena, size_t bytes, void **there);

/* An arena is about to be freed by its owner, us. Where others may have it mapped it is kept until close instead: returns 1. */
int hra_peers_keep(struct hra_peers *p, void *arena);

/* The steps of a transfer, on streams of its pair of ranks; `id` is what is shown to the watchdog where one waits.
 *     hold     what is posted to this rank, or passed on to it, from now on comes after `done`, too
 *     post     receiver: after `begun`, its buffer may be written; record `posted`
 *     send     sender: after `begun`, what is sent is there, and the post, copy, tell of the arrival; record `done`
 *     pass_on  sender, instead of send, where t->from came by peer, too: after `posted`, which is that of t->from, the post, and
 *              the arrival of t->from
 *     arrive   receiver: after `posted`, wait for the arrival; record `done` */
hra_status hra_peers_hold(struct hra_peers *p, int rank, cudaEvent_t done);
hra_status hra_peers_post(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t begun,
                          cudaEvent_t posted);
hra_status hra_peers_send(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t begun,
                          cudaEvent_t done, uint32_t id);
hra_status hra_peers_pass_on(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t posted,
                             cudaEvent_t done, uint32_t id);
hra_status hra_peers_arrive(struct hra_peers *p, const struct hra_transfer *t, cudaEvent_t posted,
                            cudaEvent_t done, uint32_t id);

/* ---- for the watchdog: no CUDA calls, no blocking ---- */

/* The words in which streams show what they wait for, 0 or an id: how many, and each; NULL where there is none. */
int hra_peers_words(const struct hra_peers *p);
const uint32_t *hra_peers_word(const struct hra_peers *p, int index);

/* What is known of a transfer that is being waited for: HRA_OK: nothing; HRA_ERR_REMOTE: the other rank failed or is gone;
 * HRA_ERR_MISMATCH: it has started another transfer. why [bytes] gets a clause ("rank 3 is gone"). */
hra_status hra_peers_look(struct hra_peers *p, const struct hra_transfer *t, char *why, size_t bytes);

/* HRA_ERR_REMOTE where a rank that is reached shows a failure: the first such one, as above. */
hra_status hra_peers_fare(struct hra_peers *p, char *why, size_t bytes);

/* Show ranks on this node that we have failed. */
void hra_peers_tell(struct hra_peers *p, hra_status status, const char *message);

/* Release a wait for t, as if it had been satisfied. Called again and again. */
void hra_peers_release(struct hra_peers *p, const struct hra_transfer *t);

/* Accepts NULL. failed: local, what a peer may still write to stays; else collective. */
hra_status hra_peers_close(struct hra_peers *p, int failed);

#endif

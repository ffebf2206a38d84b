/* transport.h - how bytes get from rank to rank: the communicator and the table that each transport fills.
 *
 * A transport knows ranks and bytes, not attention. The executor starts a round's transfers together, computes
 * while they travel, and finishes each where something needs it. `stream` is the caller's stream; host transports
 * get NULL and block, a stream-ordered one returns at once:
 *     start    the transfers begin after what the stream holds now
 *     finish   what is put on the stream next comes after the transfer
 * The n-th transfer that a rank starts toward a peer meets the n-th that the peer starts from it; sizes agree. */
#ifndef HRA_COMM_TRANSPORT_H
#define HRA_COMM_TRANSPORT_H

#include "src/status.h"

/* Lines of memory that arrive as lines. */
struct hra_lines {
    const void *data;
    size_t bytes, pitch; /* of a line; from one to the next */
    size_t count;
    size_t at, step; /* where the first arrives in the message; from one to the next there */
};

/* One message, or the receipt of one. The buffer stays the caller's and is left alone from start to finish. */
struct hra_transfer {
    void *data;
    struct hra_lines *line; /* sent: where there are lines the message is in these, and not at data */
    int lines;
    size_t bytes;     /* > 0 */
    int peer;         /* the other rank */
    int sends;        /* 1: data goes to peer; 0: it comes from peer */
    const char *what; /* for messages: "forward of plan 3" */
    int round;        /* for messages */
    /* sent: the receipt that brought it as it is, finished before start; NULL: none did */
    const struct hra_transfer *from;
    /* 1: `post` comes before start. Sent: only where it does at the receiver in the same round, and with `there` and `from` */
    int ahead;
    int number; /* how many of its pass go from the sender to the receiver before it: both ends count alike */
    uint32_t tag; /* not 0; the same at both ends of one transfer of one plan, other ones elsewhere */
    void *there;  /* sent: where it arrives, as we address the receiver's arena; NULL: we do not reach that */
    int first, count; /* the transport's own */
};

struct hra_transport {
    const char *name;
    int host_only;   /* 1: data is memory of the host */
    int device_only; /* 1: data is memory of the GPU that was current when the communicator was made */
    int sends_lines; /* 1: what is sent may lie in lines, anywhere in memory of the GPU */

    /* all [ranks][bytes] = every rank's mine [bytes]. Collective; blocks the host within the time limit.
     * NULL: a model, whose ranks do not exist. */
    hra_status (*allgather)(void *state, void *all, const void *mine, size_t bytes);

    /* The transfers of one pass of a plan, at most these in flight at once, so that start allocates nothing; and the end of
     * them. NULL: nothing to prepare. */
    hra_status (*enlist)(void *state, struct hra_transfer *transfer, int count);
    void (*delist)(void *state, struct hra_transfer *transfer, int count);

    /* Around all transfers of an execution: executions follow one another in the order of calls, whatever their streams.
     * NULL: they do so by themselves. */
    hra_status (*begin)(void *state, void *stream);
    hra_status (*end)(void *state, void *stream);
    hra_status (*start)(void *state, struct hra_transfer *const *transfer, int count, void *stream);

    /* What `start` will be given next. Buffers of receipts are free once the stream has done what it holds now and the `after`
     * behind the `count` of them, sends that have been started, are over; what is sent need not be there yet. All that have
     * `ahead` go through here before they are started. NULL: nothing has `ahead`. */
    hra_status (*post)(void *state, struct hra_transfer *const *transfer, int count, int after, void *stream);
    hra_status (*finish)(void *state, struct hra_transfer *transfer, void *stream);

    /* Give transfers in flight a chance to move on while the host computes. NULL: they need none. */
    void (*poll)(void *state);

    /* A failure that was found while nobody called; never blocks. NULL: there are none. */
    hra_status (*status)(void *state);

    /* Wait on the host, within the time limit, for what the stream holds. NULL: nothing to wait for. */
    hra_status (*wait)(void *state, void *stream);

    /* Memory for arriving blocks, 256-byte aligned. */
    hra_status (*alloc)(void *state, void **out, size_t bytes);
    void (*release)(void *state, void *memory);

    /* Between such memory and the host's, either way; blocks. */
    hra_status (*copy)(void *state, void *to, const void *from, size_t bytes);

    /* there [ranks] = where this process addresses the arena that each rank names here, NULL where it does not reach
     * it. Ours may be NULL. Collective. NULL: no rank reaches another's memory. */
    hra_status (*map)(void *state, void *arena, size_t bytes, void **there);

    /* Collective, unless failed: then local, and memory that a peer may still write to is not given back. */
    hra_status (*close)(void *state, int failed);
};

/* Blocks of other ranks lie here. Shared by the plans of a communicator, whose executions follow one another. A
 * larger plan brings a new arena; the old one lives until its plans are gone. */
struct hra_arena {
    void *base; /* memory that the transport reaches */
    size_t bytes;
    int plans;    /* that use it */
    void *mirror; /* as many bytes where a backend computes that the transport does not reach */
    void (*drop_mirror)(struct hra_arena *arena); /* gives the mirror back; NULL: there is none */
};

/* What a rank says of itself when ranks agree. */
struct hra_word {
    int status; /* hra_status */
    char message[252];
};

struct hra_comm {
    const struct hra_transport *transport;
    void *state; /* the transport's own */
    int rank, ranks;
    int local_ranks;         /* ranks on this node, us included */
    size_t message_bytes;    /* a transfer travels in ceil(bytes / message_bytes) messages */
    int plans;               /* that live */
    int made;                /* plans ever made: the number in messages */
    hra_status failed;       /* HRA_OK, or what every later call returns */
    char failure[256];       /* its sentence */
    struct hra_arena *arena; /* the newest; NULL before the first plan that needs one */
    struct hra_word *word;   /* [ranks] what hra_comm_agree gathers into: allocated beforehand, since a rank
                                without memory for it would leave the others waiting */
};

/* How long ranks wait for each other, seconds; negative: without limit. */
struct hra_limits {
    double run_s;   /* in executions */
    double setup_s; /* where communicators, plans and hops are made, and communicators end */
};

/* Those of options, with defaults for what is 0. Exported for libhra-mpi. */
HRA_API struct hra_limits hra_comm_limits(const hra_comm_options *options);

/* Make the handle; on success it owns state. One rank on this node, until the transport knows better. Exported for
 * libhra-mpi, and so is hra_comm_note. */
HRA_API hra_status hra_comm_create(hra_comm **out, const struct hra_transport *transport, void *state,
                                   int rank, int ranks, size_t message_bytes);

/* The status of a communicator that failed earlier, with its sentence; else HRA_OK. */
hra_status hra_comm_check(const hra_comm *comm);

/* Remember a failure of the transport, if status is one, and pass it on. */
HRA_API hra_status hra_comm_note(hra_comm *comm, hra_status status);

/* transport->allgather, remembering failures. */
hra_status hra_comm_allgather(hra_comm *comm, void *all, const void *mine, size_t bytes);

/* Every rank leaves with the same status: OK if all are, else that of the lowest rank that failed, with
 * its sentence. Collective. */
hra_status hra_comm_agree(hra_comm *comm, hra_status mine);

/* A transport's wait without a time limit: cudaStreamSynchronize. In builds with HRA_CUDA. */
hra_status hra_gpu_synchronize(void *state, void *stream);

/* An arena of at least `bytes`, for one more plan; NULL in *out for 0 bytes. Where there is none yet that is large enough
 * one of `reserve` bytes is made, if that is more. Give back with hra_arena_leave. */
hra_status hra_arena_join(struct hra_arena **out, hra_comm *comm, size_t bytes, size_t reserve);
void hra_arena_leave(hra_comm *comm, struct hra_arena *arena);

/* How a communicator between GPUs comes about. */
struct hra_gpu_setup {
    int rank, ranks;
    hra_comm_options options;
    hra_comm *below; /* over which ranks speak on the host, ours on success; NULL: NCCL serves for that too */
    const void *unique_id; /* [HRA_UNIQUE_ID_BYTES]; where below is NULL this or */
    void *parent;          /* the caller's ncclComm_t */
};

/* Collective. The current device is the communicator's. Exported for libhra-mpi. */
HRA_API hra_status hra_gpu_create(hra_comm **out, const struct hra_gpu_setup *setup);

#endif

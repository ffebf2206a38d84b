/* schedule.h - who sends what to whom, and who computes what, round by round.
 *
 * A schedule is data: the executor takes any list of rounds and knows no "next", no number of ranks, no ring. In
 * each round the moves start together, then the runs compute in their order:
 *
 *     ring of 3, forward, rank 0     moves                                  runs
 *     round 0 (load own -> buffer 0) 0: own -> rank 1, rank 2's -> buffer 1  own K/V
 *     round 1                        buffer 1 -> rank 1, rank 1's -> buffer 0  buffer 1
 *     round 2                                                                buffer 0
 *
 * Rules that the executor keeps, and a generator relies on:
 * - What touches one buffer happens in schedule order: a move starts, and a run begins, when earlier moves on its
 *   buffers have finished. So nobody lists what to wait for, and nobody can list it wrong.
 * - A received move with `add` has its dK/dV added to the rank's own sums, at a fixed place in that order.
 * Rules for a generator: the sends of rank a to rank b, in schedule order, are the receives of b from a. Every live
 * tile is in one run, once. In one round, moves that receive have a buffer to themselves. */
#ifndef HRA_SRC_SCHEDULE_H
#define HRA_SRC_SCHEDULE_H

#include "src/status.h"

/* The buffer id of the rank's own tensors: the caller's K and V; in backward the sums of our own dK and dV. */
#define HRA_OWN (-1)

enum hra_payload { HRA_KV, HRA_DKV, HRA_PAYLOADS };

/* A range of key tiles of one owner, and of K/V heads. The same list on every rank. */
struct hra_part {
    int owner;
    int key_tile0, key_tile1;
    int head0, head1;
};

/* One part travels. A buffer holds one part at a time, dense. */
struct hra_move {
    enum hra_payload payload;
    int part;
    int from;  /* buffer at the sender */
    int to;    /* buffer at the receiver */
    int peer;  /* the other rank */
    int sends; /* 1: to peer; 0: from peer */
    int add;   /* DKV, received: added to our own sums when it is there */
};

/* Our own part is copied into a buffer before the first round, for moves to send it from there. */
struct hra_load {
    int part, buffer;
};

/* What a run computes against. */
struct hra_source {
    int part;
    int buffer;   /* of K/V; HRA_OWN for our own parts */
    int gradient; /* backward: buffer of dK/dV, HRA_OWN for our own parts */
    int zero;     /* backward: dK/dV begin at 0 here. Own sums do so by themselves */
};

/* Query tiles query0 .. query1 - 1 of this rank against sources source0 .. source1 - 1. */
struct hra_run {
    int query0, query1;
    int source0, source1;
};

struct hra_round {
    int move0, move1;
    int run0, run1;
};

struct hra_schedule {
    struct hra_part *part;
    struct hra_load *load;
    struct hra_round *round;
    struct hra_move *move;
    struct hra_run *run;
    struct hra_source *source;
    int parts, loads, rounds, moves, runs, sources;
};

/* The buffer of a move on our side. */
static inline int hra_move_buffer(const struct hra_move *move)
{
    return move->sends ? move->from : move->to;
}

/* Each block of keys is counted in two halves, the finest cut that generators here make. */
#define HRA_HALVES 2

/* What generators know: all ranks alike. */
struct hra_work {
    int ranks;
    int heads_kv;
    const int *rank_tile; /* [ranks + 1] key tiles of each rank */
    const int64_t
        *live; /* [ranks][ranks][HRA_HALVES] live tiles of a rank's queries against an owner's keys */
};

/* First key tile of half `half` of an owner's keys; half HRA_HALVES is the end. */
int hra_work_half(const struct hra_work *work, int owner, int half);

/* Live tiles of `rank` against `part`, which is made of whole halves. */
int64_t hra_work_live(const struct hra_work *work, int rank, const struct hra_part *part);

/* A generator fills an empty schedule for one rank. */
typedef hra_status (*hra_generator)(struct hra_schedule *out, const struct hra_work *work, int rank,
                                    hra_pass pass);

/* The ring. docs/design.md tells how rounds and buffers follow one another. */
hra_status hra_schedule_ring(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass);

/* Generators write with these, in order: parts; loads; then for each round its moves and its runs, and for each
 * run its sources. */
hra_status hra_schedule_part(struct hra_schedule *s, struct hra_part part);
hra_status hra_schedule_load(struct hra_schedule *s, int part, int buffer);
hra_status hra_schedule_round(struct hra_schedule *s);
hra_status hra_schedule_move(struct hra_schedule *s, struct hra_move move);
hra_status hra_schedule_run(struct hra_schedule *s, int query0, int query1);
hra_status hra_schedule_source(struct hra_schedule *s, struct hra_source source);

/* Check what one rank alone can see: indices in range, own buffers used for own parts only, one use of a
 * buffer a round. `queries` are the rank's query tiles. HRA_ERR_ARG with the place. */
hra_status hra_schedule_check(const struct hra_schedule *s, const struct hra_work *work, int rank,
                              int queries, hra_pass pass);

/* Frees what the schedule holds, not the struct. */
void hra_schedule_clear(struct hra_schedule *s);

#endif

/* schedule.h - who sends what to whom, and who computes what, round by round.
 *
 * A schedule is data: the executor takes any list of rounds and knows no "next", no number of ranks, no ring. In
 * each round the moves start together, then the runs compute in their order:
 *
 *     ring of 3, forward, rank 0     moves                                  runs
 *     round 0 (load own -> buffer 0) 0: own -> rank 1, rank 2's -> buffer 1  own K/V
 *     round 1                        buffer 1 -> rank 1, rank 1's -> buffer 2  buffer 1
 *     round 2                                                                buffer 2
 *
 * Rules that the executor keeps, and a generator relies on:
 * - What touches one buffer happens in schedule order: a move starts, and a run begins, when earlier moves on its
 *   buffers have finished. So nobody lists what to wait for, and nobody can list it wrong.
 * - A received move with `add` has its dK/dV added to the rank's own sums, at a fixed place in that order.
 * Rules for a generator: the sends of rank a to rank b, in schedule order, are the receives of b from a. Every live
 * tile is in one run, once. In one round, moves that receive have their buffers to themselves. */
#ifndef HRA_SRC_SCHEDULE_H
#define HRA_SRC_SCHEDULE_H

#include "kernels/kernels.h"

/* The buffer id of the rank's own tensors: the caller's K and V; in backward the sums of our own dK and dV. */
#define HRA_OWN (-1)

enum hra_payload { HRA_KV, HRA_DKV, HRA_PAYLOADS };

/* A range of key tiles of one owner, and of K/V heads. The ring lists those of all ranks, the halo those that the rank
 * has to do with. */
struct hra_part {
    int owner;
    int key_tile0, key_tile1;
    int head0, head1;
};

/* One part travels, or several as one message. A buffer holds one part at a time, dense. */
struct hra_move {
    enum hra_payload payload;
    int part;
    int from;  /* buffer at the sender */
    int to;    /* buffer at the receiver */
    int peer;  /* the other rank */
    int sends; /* 1: to peer; 0: from peer */
    int add;   /* DKV, received: added to our own sums when it is there */
    int more; /* so many of the parts that follow `part` travel along, between the buffers that follow, which hold
                  nothing larger at any time: a message is what lies there from the first to the last */
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
    int room[6]; /* of the arrays, in their order */
};

/* The buffer of a move on our side, the first where there are more. */
static inline int hra_move_buffer(const struct hra_move *move)
{
    return move->sends ? move->from : move->to;
}

/* Is this buffer on our side one of a move's? */
static inline int hra_move_touches(const struct hra_move *move, int buffer)
{
    return buffer >= hra_move_buffer(move) && buffer <= hra_move_buffer(move) + move->more;
}

/* Each block of keys is counted in two halves, the finest cut by keys that generators here make. */
#define HRA_HALVES 2

/* Key tiles key_tile0 .. key_tile1 - 1. */
struct hra_range {
    int key_tile0, key_tile1;
};

/* A rank, the visitor, needs keys of an owner: ranges range0 .. range1 - 1 of its own. At the visitor the n-th of its
 * ranges has buffer n of K/V and of dK/dV. */
struct hra_visit {
    int visitor, owner;
    int range0, range1;
    int load; /* at the owner, the first of as many buffers from which its K/V are sent */
    int home; /* and of those in which dK/dV come home */
};

/* What all ranks need of each other's keys. */
struct hra_needs {
    int64_t *start;          /* [ranks + 1] the ranges of rank r are start[r] .. start[r + 1] - 1 */
    struct hra_range *range; /* ascending on each rank, each of one owner, none the rank's own */
    int64_t *visit_start;    /* [ranks + 1] by owner */
    struct hra_visit *visit; /* of each owner by visitor, ascending */
    int64_t *made_start;     /* [ranks + 1] by visitor */
    int64_t *made;           /* which visits it makes, by owner, ascending */
    int *far;                /* [rounds] messages of one round are of ranks at most so far apart; ascending */
    int rounds;
};

/* What generators know: all ranks alike. */
struct hra_work {
    int ranks;
    int heads_kv;
    const int *rank_tile; /* [ranks + 1] key tiles of each rank */
    const int64_t
        *live; /* [ranks][ranks][HRA_HALVES] live tiles of a rank's queries against an owner's keys */
    const struct hra_needs *needs; /* NULL for the ring */
};

/* Who owns a key tile. */
int hra_work_owner(const struct hra_work *work, int key_tile);

/* First key tile of half `half` of an owner's keys; half HRA_HALVES is the end. */
int hra_work_half(const struct hra_work *work, int owner, int half);

/* Live tiles of `rank` against `part`, which is made of whole halves. */
int64_t hra_work_live(const struct hra_work *work, int rank, const struct hra_part *part);

/* A generator fills an empty schedule for one rank. */
typedef hra_status (*hra_generator)(struct hra_schedule *out, const struct hra_work *work, int rank,
                                    hra_pass pass);

/* The ring. docs/design.md tells how rounds and buffers follow one another. */
hra_status hra_schedule_ring(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass);

/* The same for one rank after another, and some rounds of it at a time: what does not depend on the rank is found out once.
 * parts writes the parts, which are the same for all; write appends rounds round0 .. round1 - 1, and before round 0 the
 * loads. The work must stay. */
struct hra_ring;
hra_status hra_ring_open(struct hra_ring **out, const struct hra_work *work, hra_pass pass);
int hra_ring_rounds(const struct hra_ring *ring);
hra_status hra_ring_parts(struct hra_schedule *out, const struct hra_ring *ring);
hra_status hra_ring_write(struct hra_schedule *out, const struct hra_ring *ring, int rank, int round0,
                          int round1);
void hra_ring_close(struct hra_ring *ring); /* accepts NULL */

/* Part p of the block of an owner, of hra_ring_rounds / ranks parts; it may have no tiles. At fewest *first and at most *last
 * steps behind the owner somebody computes it; where nobody does *first is the number of ranks and *last 0. */
const struct hra_part *hra_ring_trip(const struct hra_ring *ring, int owner, int p, int *first, int *last);

/* The halo: what a rank needs comes straight from its owners while it computes its own tiles, then it computes all of
 * that in one run, and dK/dV go straight back. Wants work->needs. */
hra_status hra_schedule_halo(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass);

/* Streaming of heads: the same for one group of K/V heads after another, each computed while the next one comes and dK/dV of
 * the one before go back. Wants work->needs. */
hra_status hra_schedule_heads(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass);

/* The groups of heads that it makes. As many as ranks, so that two groups of all others take the memory of two blocks, but 2
 * at least and, since each group costs launches, 8 at most; more where that does not divide the heads, since what passes
 * through a buffer of a message has to be of one size. With one K/V head there is one, and that is the halo. */
int hra_work_groups(const struct hra_work *work);

/* By hra_schedule_kind. */
struct hra_schedule_entry {
    const char *name;
    hra_generator generate;
};
extern const struct hra_schedule_entry hra_schedules[HRA_SCHEDULE_HEADS + 1];

/* Ranges are joined across gaps of at most so many tiles, where all that a rank needs grows by at most 5 %. A range costs
 * calls of kernels that copy, compute and add it, each of which takes a GPU's host some us; 8 tiles of 8 K/V heads of 128
 * channels in bf16 are 4 MiB, which NVLink moves in 10 us. */
#define HRA_JOIN 8

/* How many ranges a rank has at most, or 2 ranks if that is more: longer gaps are joined, too, where it would have more, so
 * that what ranks tell each other stays in bounds. */
#define HRA_RANGES 8192

/* The ranges of key tiles of others that `rank` needs: those with live > 0, [tiles of all ranks], as is tile. *out is to be
 * freed. */
hra_status hra_needs_find(struct hra_range **out, int64_t *count, const struct hra_work *work, int rank,
                          const int64_t *live, const struct hra_tile_rows *tile);

/* Fill in the visits; start and range are there. */
hra_status hra_needs_link(struct hra_needs *needs, const struct hra_work *work);

/* Frees what it holds, not the struct. */
void hra_needs_clear(struct hra_needs *needs);

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

/* Takes out all but the parts; what follows is written into the same memory. */
void hra_schedule_drop_rounds(struct hra_schedule *s);

/* Frees what the schedule holds, not the struct. */
void hra_schedule_clear(struct hra_schedule *s);

/* Which receipts have buffers that are free a round before their own, when the moves of that round have started: nothing is
 * arriving there, and its runs do not use them. Sends from them may still be under way. Where one of a peer's waits for its own
 * round, so do those behind it in that round. *out, [moves], is to be freed, also on failure. HRA_ERR_MEMORY. */
hra_status hra_schedule_ahead(unsigned char **out, const struct hra_schedule *s, int ranks);

/* Which receipt brought all that a move sends, as it is, K/V that it passes on; -1: none did. *out, [moves], is to be freed, also
 * on failure. HRA_ERR_MEMORY. */
hra_status hra_schedule_passed(int **out, const struct hra_schedule *s);

/* Parts of a message, times the batch, that are sent from the caller's tensors, at most: each is two copies, some microseconds
 * of the engine's, where more parts are put together before by a kernel or two. */
enum { HRA_STRAIGHT_PARTS = 16 };

/* What is sent from where the caller has K and V, so that no load is needed for it. */
struct hra_straight {
    unsigned char *move;   /* [moves] 1: a send that can take all its parts from there */
    unsigned char *wanted; /* [loads] 1: something reads its buffer all the same */
};

/* Sends of at most so many parts; 0: none. *out is to be cleared, also on failure. HRA_ERR_MEMORY. */
hra_status hra_schedule_straight(struct hra_straight *out, const struct hra_schedule *s, int most);
void hra_straight_clear(struct hra_straight *straight);

#endif

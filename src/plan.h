/* plan.h - a plan from inside: what plan.c compiles and ring.c executes. */
#ifndef HRA_SRC_PLAN_H
#define HRA_SRC_PLAN_H

#include "comm/transport.h"
#include "kernels/kernels.h"
#include "src/mask.h"
#include "src/schedule.h"
#include "src/tiles.h"

/* What one rank knows of its own work; ranks exchange it. Followed in memory by live [ranks][HRA_HALVES]. */
struct hra_rank_stats {
    int64_t pairs_live, pairs_counted, pairs_in_tiles; /* as in hra_plan_info */
    int64_t tiles_full, tiles_partial;
    int64_t work;        /* live tiles over batch and heads */
    int64_t heaviest;    /* of them, those of the row of tiles that has most */
    int64_t rows_needed; /* rows of K/V that live tiles need and other ranks own */
    int64_t ranges;      /* of key tiles in which they travel straight from their owners */
    int64_t received[2]; /* bytes, by hra_pass */
};

/* Where the parts of one pass lie, and which runs begin and end each query tile. */
struct hra_pass_plan {
    int begins; /* backward: our own dK/dV begin at 0 in the kernels, since each has one source and nothing is added before */
    /* Backward: where our own dk and dv are written. */
    int writes;         /* 1: by kernels, which begin them, but for those that `summed` names */
    uint8_t *summed;    /* [own tiles][heads_kv] 1: something that comes home is added to them */
    uint8_t *closes;    /* [moves] 1: the last that is added to anything it brings; they are written then */
    uint8_t *continued; /* [moves] 1: kernels go on from what it brings home, and nothing is added */
    int *home;          /* [parts] the buffer of dK/dV that they go on from; -1: none */
    struct hra_part *open; /* [opens] where neither is so: written at the end */
    int opens;
    struct hra_schedule schedule;
    size_t *buffer[HRA_PAYLOADS];  /* offset of each buffer in the arena, bytes */
    int *first, *last;             /* [heads_kv][queries] runs */
    struct hra_transfer *transfer; /* [moves] */
    struct hra_transfer **started; /* [moves] scratch: the transfers of one round */
    struct hra_chunk *chunk;       /* scratch: the sources of one run */
    int buffers[HRA_PAYLOADS];
    int (*busy[HRA_PAYLOADS])[2]; /* [buffers] scratch: moves under way on each that receive, and that send */
    int *next;                    /* [moves] scratch: the one under way that was started after it; -1: none */
    struct hra_straight straight;
    int by_heads; /* 1: also where heads lie apart */
    /* Scratch: the lines of the sends that are straight, of each part K's of each batch, and of each head where they lie apart,
     * then V's. */
    struct hra_lines *line;
    int enlisted;  /* 1: the transport knows the transfers */
    char what[48]; /* "forward of plan 3" */
};

struct hra_plan {
    hra_comm *comm;
    hra_problem problem; /* defaults filled in */
    hra_options options;
    hra_order *order;           /* held */
    hra_mask *mask;             /* held */
    hra_shard shard;            /* chosen */
    hra_schedule_kind schedule; /* chosen */
    hra_generator generate;     /* NULL until it is */
    hra_machine machine;        /* by which they are; options.machine is not kept */
    struct hra_layout *layout;
    struct hra_tiles *tiles; /* of our rank */
    struct hra_tiles *other; /* of the rank that hra_plan_tiles last asked for; NULL: none */
    int64_t *token;          /* [rows] token of each of our rows */
    struct hra_work work;
    int64_t *live;                /* [ranks][ranks][HRA_HALVES], work.live */
    struct hra_needs needs;       /* work.needs; of the ring empty */
    struct hra_rank_stats *stats; /* [ranks] */
    struct hra_pass_plan pass[2]; /* by hra_pass */

    const struct hra_backend *backend;
    struct hra_kernel_plan kernel_plan;
    void *packed[2]; /* by hra_pass; NULL where the dictionary itself serves */
    void *kernels;   /* the backend's state; NULL on a model */
    struct hra_arena *arena;
    size_t arena_bytes;   /* that this plan needs */
    size_t arena_reserve; /* that the communicator takes if it has less than arena_bytes */
    int reorders[2];      /* by hra_pass: 1: rows are brought into slot order, and back, in the workspace */
    int keeps_slots;      /* 1: forward keeps q, k and v in slot order for backward */
    size_t slots_at[2];   /* by hra_pass: where in the workspace they are then */
    size_t kernel_bytes;  /* of the workspace that are the backend's; own dK/dV sums follow */
    size_t workspace_bytes;
    size_t saved_bytes;
    struct hra_trace *trace; /* that records executions, the caller's; NULL: none does */
    int staged; /* 1: the transport does not reach the backend's memory, so that messages go through the host's */
};

/* hra_plan_create with a generator of the caller's: how tests run schedules that are no ring. NULL: the option's. */
hra_status hra_plan_create_with(hra_plan **out, hra_comm *comm, const hra_problem *problem,
                                const hra_order *order, const hra_mask *mask, const hra_options *options,
                                hra_generator generate);

enum { HRA_BUFFER_ALIGNMENT = 256 }; /* bytes */

static inline size_t hra_align(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

/* Rows of a part on its owner: the first, and how many. */
int64_t hra_plan_part_row0(const hra_plan *plan, const struct hra_part *part);
int64_t hra_plan_part_rows(const hra_plan *plan, const struct hra_part *part);

/* Bytes of so many rows of so many K/V heads as a payload: K (or dK), then V from *v_offset on, which may be NULL. */
size_t hra_plan_payload_bytes(const hra_plan *plan, enum hra_payload payload, int64_t rows, int heads,
                              size_t *v_offset);

/* Bytes of a part as a payload: K (or dK) first, then V from *v_offset on, both [batch][rows][head1 - head0][dim].
 * v_offset may be NULL. */
size_t hra_plan_part_bytes(const hra_plan *plan, const struct hra_part *part, enum hra_payload payload,
                           size_t *v_offset);

/* Bytes of a message: its parts as they lie in buffers that follow one another. */
size_t hra_plan_move_bytes(const hra_plan *plan, const struct hra_schedule *s, const struct hra_move *move);

#endif

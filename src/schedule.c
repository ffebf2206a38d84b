/* schedule.c - schedules as data, and the ring that generates one. No rank, message or tensor here is real. */
#include "src/schedule.h"

#include <stdlib.h>
#include <string.h>

/* Append to an array whose capacity is the power of two at or above its count. */
static hra_status append(void **array, int *count, const void *element, size_t bytes)
{
    if ((*count & (*count - 1)) == 0) {
        void *larger = NULL;
        HRA_TRY(hra_alloc(&larger, *count == 0 ? 1 : 2 * (int64_t)*count, bytes, "schedule"));
        if (*count > 0)
            memcpy(larger, *array, (size_t)*count * bytes);
        free(*array);
        *array = larger;
    }
    memcpy((char *)*array + (size_t)*count * bytes, element, bytes);
    ++*count;
    return HRA_OK;
}

hra_status hra_schedule_part(struct hra_schedule *s, struct hra_part part)
{
    return append((void **)&s->part, &s->parts, &part, sizeof(part));
}

hra_status hra_schedule_load(struct hra_schedule *s, int part, int buffer)
{
    const struct hra_load load = {part, buffer};
    return append((void **)&s->load, &s->loads, &load, sizeof(load));
}

hra_status hra_schedule_round(struct hra_schedule *s)
{
    const struct hra_round round = {s->moves, s->moves, s->runs, s->runs};
    return append((void **)&s->round, &s->rounds, &round, sizeof(round));
}

hra_status hra_schedule_move(struct hra_schedule *s, struct hra_move move)
{
    HRA_TRY(append((void **)&s->move, &s->moves, &move, sizeof(move)));
    s->round[s->rounds - 1].move1 = s->moves;
    return HRA_OK;
}

hra_status hra_schedule_run(struct hra_schedule *s, int query0, int query1)
{
    const struct hra_run run = {query0, query1, s->sources, s->sources};
    HRA_TRY(append((void **)&s->run, &s->runs, &run, sizeof(run)));
    s->round[s->rounds - 1].run1 = s->runs;
    return HRA_OK;
}

hra_status hra_schedule_source(struct hra_schedule *s, struct hra_source source)
{
    HRA_TRY(append((void **)&s->source, &s->sources, &source, sizeof(source)));
    s->run[s->runs - 1].source1 = s->sources;
    return HRA_OK;
}

void hra_schedule_clear(struct hra_schedule *s)
{
    free(s->part);
    free(s->load);
    free(s->round);
    free(s->move);
    free(s->run);
    free(s->source);
    memset(s, 0, sizeof(*s));
}

int hra_work_half(const struct hra_work *work, int owner, int half)
{
    const int first = work->rank_tile[owner], tiles = work->rank_tile[owner + 1] - first;
    return first + (tiles * half + HRA_HALVES - 1) / HRA_HALVES;
}

int64_t hra_work_live(const struct hra_work *work, int rank, const struct hra_part *part)
{
    int64_t live = 0;
    for (int h = 0; h < HRA_HALVES; h++)
        if (hra_work_half(work, part->owner, h) >= part->key_tile0 &&
            hra_work_half(work, part->owner, h + 1) <= part->key_tile1)
            live += work->live[((int64_t)rank * work->ranks + part->owner) * HRA_HALVES + h];
    return live;
}

static hra_status check_moves(const struct hra_schedule *s, const struct hra_work *work, int rank,
                              hra_pass pass)
{
    for (int i = 0; i < s->moves; i++) {
        const struct hra_move *move = &s->move[i];
        if (move->part < 0 || move->part >= s->parts || move->from < 0 || move->to < 0 || move->peer < 0 ||
            move->peer >= work->ranks || move->peer == rank ||
            (pass == HRA_FORWARD && move->payload != HRA_KV) ||
            (move->add &&
             (move->payload != HRA_DKV || s->part[move->part].owner != (move->sends ? move->peer : rank))))
            return HRA_FAIL(HRA_ERR_ARG, "schedule: move %d: part %d, buffers %d to %d, peer %d of %d", i,
                            move->part, move->from, move->to, move->peer, work->ranks);
    }
    for (int r = 0; r < s->rounds; r++)
        for (int i = s->round[r].move0; i < s->round[r].move1; i++)
            for (int j = s->round[r].move0; j < i; j++) {
                const struct hra_move *a = &s->move[i], *b = &s->move[j];
                if (a->payload == b->payload && !(a->sends && b->sends) &&
                    hra_move_buffer(a) == hra_move_buffer(b))
                    return HRA_FAIL(HRA_ERR_ARG, "schedule: moves %d and %d of round %d share buffer %d", j,
                                    i, r, hra_move_buffer(a));
            }
    return HRA_OK;
}

static hra_status check_runs(const struct hra_schedule *s, int rank, int queries, hra_pass pass)
{
    for (int i = 0; i < s->runs; i++) {
        const struct hra_run *run = &s->run[i];
        if (run->query0 < 0 || run->query0 > run->query1 || run->query1 > queries)
            return HRA_FAIL(HRA_ERR_ARG, "schedule: run %d: query tiles %d to %d of %d", i, run->query0,
                            run->query1, queries);
        for (int c = run->source0; c < run->source1; c++) {
            const struct hra_source *source = &s->source[c];
            const int known = source->part >= 0 && source->part < s->parts;
            const int own = known && s->part[source->part].owner == rank;
            if (!known || source->buffer < HRA_OWN || source->gradient < HRA_OWN ||
                (source->buffer == HRA_OWN && !own) ||
                (pass == HRA_BACKWARD && (source->gradient == HRA_OWN) != own))
                return HRA_FAIL(HRA_ERR_ARG,
                                "schedule: run %d: part %d from buffer %d, gradient %d, on rank %d", i,
                                source->part, source->buffer, source->gradient, rank);
        }
    }
    return HRA_OK;
}

hra_status hra_schedule_check(const struct hra_schedule *s, const struct hra_work *work, int rank,
                              int queries, hra_pass pass)
{
    for (int p = 0; p < s->parts; p++) {
        const struct hra_part *part = &s->part[p];
        if (part->owner < 0 || part->owner >= work->ranks || part->key_tile0 < work->rank_tile[part->owner] ||
            part->key_tile1 > work->rank_tile[part->owner + 1] || part->key_tile0 >= part->key_tile1 ||
            part->head0 < 0 || part->head0 >= part->head1 || part->head1 > work->heads_kv)
            return HRA_FAIL(HRA_ERR_ARG, "schedule: part %d: key tiles %d to %d, heads %d to %d of rank %d",
                            p, part->key_tile0, part->key_tile1, part->head0, part->head1, part->owner);
    }
    for (int i = 0; i < s->loads; i++)
        if (s->load[i].part < 0 || s->load[i].part >= s->parts || s->load[i].buffer < 0 ||
            s->part[s->load[i].part].owner != rank)
            return HRA_FAIL(HRA_ERR_ARG, "schedule: load %d: part %d into buffer %d on rank %d", i,
                            s->load[i].part, s->load[i].buffer, rank);
    HRA_TRY(check_moves(s, work, rank, pass));
    return check_runs(s, rank, queries, pass);
}

/* ---- The ring --------------------------------------------------------------------------------
 *
 * Step t of rank r is the block of owner (r - t) mod ranks, cut into `parts` parts (1 forward, 2 backward). Round
 * t * parts + p computes part p of step t. Of each part p there are two K/V buffers, 2 p and 2 p + 1, and step t
 * uses the (t & 1)-th of them; of dK/dV three, 3 p + (t & 1), and 3 p + 2 in which our own come home.
 *
 *     round of (t, p)     K/V part p of step t goes on to the next rank, of step t + 1 arrives
 *     the round after     dK/dV of (t, p), t > 0, go on likewise, or home if nobody further on adds to them
 */

/* The ring as rank `rank` sees it. */
struct ring {
    const struct hra_work *work;
    const struct hra_part *part; /* [ranks * parts], part p of owner o is o * parts + p */
    const int *index;            /* [ranks * parts] its index in the schedule, -1: no such part */
    int *first,
        *last; /* [ranks * parts] fewest and most steps after the owner, the owner's own left out, at which
                          somebody computes the part; ranks and 0 where nobody does */
    int rank, ranks, parts;
};

static int wrap(int rank, int ranks)
{
    return (rank % ranks + ranks) % ranks;
}

/* Does the rank that is `steps` after the owner compute part p of the owner's block? */
static int computes(const struct ring *g, int owner, int p, int steps)
{
    return g->index[owner * g->parts + p] >= 0 &&
           hra_work_live(g->work, wrap(owner + steps, g->ranks), &g->part[owner * g->parts + p]) > 0;
}

/* Does anybody compute it from 1 to t steps after the owner? */
static int begun(const struct ring *g, int owner, int p, int t)
{
    return g->first[owner * g->parts + p] <= t;
}

/* Does anybody more than t steps after the owner? */
static int wanted(const struct ring *g, int owner, int p, int t)
{
    return g->last[owner * g->parts + p] > t;
}

static void find_steps(const struct ring *g)
{
    for (int i = 0; i < g->ranks * g->parts; i++) {
        g->first[i] = g->ranks;
        g->last[i] = 0;
        for (int t = g->ranks - 1; t > 0; t--)
            if (computes(g, i / g->parts, i % g->parts, t)) {
                g->first[i] = t;
                g->last[i] = t > g->last[i] ? t : g->last[i];
            }
    }
}

/* Moves of a rank come in pairs, what it sends after step t and what it receives for step t + 1: the same move of
 * two owners, seen from both sides. */
static struct hra_move kv_hop(const struct ring *g, int owner, int p, int t, int sends)
{
    return (struct hra_move){.payload = HRA_KV,
                             .part = g->index[owner * g->parts + p],
                             .from = 2 * p + (t & 1),
                             .to = 2 * p + ((t + 1) & 1),
                             .peer = wrap(sends ? g->rank + 1 : g->rank - 1, g->ranks),
                             .sends = sends};
}

static struct hra_move dkv_hop(const struct ring *g, int owner, int p, int t, int sends)
{
    struct hra_move move = kv_hop(g, owner, p, t, sends);
    move.payload = HRA_DKV;
    move.from = 3 * p + (t & 1);
    move.to = 3 * p + ((t + 1) & 1);
    return move;
}

/* dK/dV of part p go home from the rank t steps after the owner. */
static struct hra_move dkv_home(const struct ring *g, int owner, int p, int t, int sends)
{
    struct hra_move move = dkv_hop(g, owner, p, t, sends);
    move.to = 3 * p + 2;
    move.peer = sends ? owner : wrap(owner + t, g->ranks);
    move.add = 1;
    return move;
}

/* K/V of step t go on to where somebody still needs them. */
static hra_status move_kv(struct hra_schedule *s, const struct ring *g, int t, int p)
{
    const int ours = wrap(g->rank - t, g->ranks), theirs = wrap(g->rank - 1 - t, g->ranks);

    if (wanted(g, ours, p, t))
        HRA_TRY(hra_schedule_move(s, kv_hop(g, ours, p, t, 1)));
    if (wanted(g, theirs, p, t))
        HRA_TRY(hra_schedule_move(s, kv_hop(g, theirs, p, t, 0)));
    return HRA_OK;
}

/* dK/dV of step t go on once somebody has begun them and while somebody further on adds to them; from the last of
 * these straight home. */
static hra_status move_dkv(struct hra_schedule *s, const struct ring *g, int t, int p)
{
    const int ours = wrap(g->rank - t, g->ranks), theirs = wrap(g->rank - 1 - t, g->ranks);

    if (begun(g, ours, p, t) && wanted(g, ours, p, t))
        HRA_TRY(hra_schedule_move(s, dkv_hop(g, ours, p, t, 1)));
    if (begun(g, theirs, p, t) && wanted(g, theirs, p, t))
        HRA_TRY(hra_schedule_move(s, dkv_hop(g, theirs, p, t, 0)));
    if (t > 0 && computes(g, ours, p, t) && !wanted(g, ours, p, t))
        HRA_TRY(hra_schedule_move(s, dkv_home(g, ours, p, t, 1)));
    if (t > 0 && computes(g, g->rank, p, t) && !wanted(g, g->rank, p, t))
        HRA_TRY(hra_schedule_move(s, dkv_home(g, g->rank, p, t, 0)));
    return HRA_OK;
}

/* Compute part p of step t. Own tiles are run even where none is live: rows without any key get their zeros there. */
static hra_status run_part(struct hra_schedule *s, const struct ring *g, int t, int p)
{
    const int owner = wrap(g->rank - t, g->ranks), part = g->index[owner * g->parts + p];
    const int queries = g->work->rank_tile[g->rank + 1] - g->work->rank_tile[g->rank];

    if (part < 0 || (t > 0 && !computes(g, owner, p, t)))
        return HRA_OK;
    HRA_TRY(hra_schedule_run(s, 0, queries));
    return hra_schedule_source(s, (struct hra_source){.part = part,
                                                      .buffer = t == 0 ? HRA_OWN : 2 * p + (t & 1),
                                                      .gradient = t == 0 ? HRA_OWN : 3 * p + (t & 1),
                                                      .zero = t > 0 && !begun(g, owner, p, t - 1)});
}

static hra_status write_rounds(struct hra_schedule *s, const struct ring *g, hra_pass pass)
{
    const int rounds = g->ranks * g->parts;

    for (int p = 0; p < g->parts; p++)
        if (wanted(g, g->rank, p, 0))
            HRA_TRY(hra_schedule_load(s, g->index[g->rank * g->parts + p], 2 * p));
    /* One round more in backward: the last dK/dV go home. */
    for (int k = 0; k < rounds + (pass == HRA_BACKWARD); k++) {
        HRA_TRY(hra_schedule_round(s));
        if (k < rounds)
            HRA_TRY(move_kv(s, g, k / g->parts, k % g->parts));
        if (pass == HRA_BACKWARD && k > 0)
            HRA_TRY(move_dkv(s, g, (k - 1) / g->parts, (k - 1) % g->parts));
        if (k < rounds)
            HRA_TRY(run_part(s, g, k / g->parts, k % g->parts));
    }
    return HRA_OK;
}

hra_status hra_schedule_ring(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass)
{
    const int parts = pass == HRA_BACKWARD ? HRA_HALVES : 1;
    const int64_t all = (int64_t)work->ranks * parts;
    struct hra_part *part = NULL;
    int *index = NULL;

    HRA_TRY(hra_alloc((void **)&part, all, sizeof(*part), "schedule"));
    hra_status status = hra_alloc((void **)&index, 3 * all, sizeof(*index), "schedule");
    for (int i = 0; status == HRA_OK && i < work->ranks * parts; i++) {
        const int owner = i / parts, half = i % parts * (HRA_HALVES / parts);
        part[i] = (struct hra_part){.owner = owner,
                                    .key_tile0 = hra_work_half(work, owner, half),
                                    .key_tile1 = hra_work_half(work, owner, half + HRA_HALVES / parts),
                                    .head1 = work->heads_kv};
        index[i] = part[i].key_tile0 < part[i].key_tile1 ? out->parts : -1;
        if (index[i] >= 0)
            status = hra_schedule_part(out, part[i]);
    }
    if (status == HRA_OK) {
        const struct ring g = {work, part, index, index + all, index + 2 * all, rank, work->ranks, parts};
        find_steps(&g);
        status = write_rounds(out, &g, pass);
    }
    free(part);
    free(index);
    if (status != HRA_OK)
        hra_schedule_clear(out);
    return status;
}

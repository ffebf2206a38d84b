/* schedule.c - schedules as data, and what generates them: the ring, the halo and streaming of heads. No rank, message or
 * tensor here is real. */
#include "src/schedule.h"

#include <stdlib.h>
#include <string.h>

/* Append to an array, which doubles. */
static hra_status append(void **array, int *count, int *room, const void *element, size_t bytes)
{
    if (*count == *room) {
        const int wanted = *room == 0 ? 1 : 2 * *room;
        void *larger = NULL;
        HRA_TRY(hra_alloc(&larger, wanted, bytes, "schedule"));
        if (*count > 0)
            memcpy(larger, *array, (size_t)*count * bytes);
        free(*array);
        *array = larger;
        *room = wanted;
    }
    memcpy((char *)*array + (size_t)*count * bytes, element, bytes);
    ++*count;
    return HRA_OK;
}

hra_status hra_schedule_part(struct hra_schedule *s, struct hra_part part)
{
    return append((void **)&s->part, &s->parts, &s->room[0], &part, sizeof(part));
}

hra_status hra_schedule_load(struct hra_schedule *s, int part, int buffer)
{
    const struct hra_load load = {part, buffer};
    return append((void **)&s->load, &s->loads, &s->room[1], &load, sizeof(load));
}

hra_status hra_schedule_round(struct hra_schedule *s)
{
    const struct hra_round round = {s->moves, s->moves, s->runs, s->runs};
    return append((void **)&s->round, &s->rounds, &s->room[2], &round, sizeof(round));
}

hra_status hra_schedule_move(struct hra_schedule *s, struct hra_move move)
{
    HRA_TRY(append((void **)&s->move, &s->moves, &s->room[3], &move, sizeof(move)));
    s->round[s->rounds - 1].move1 = s->moves;
    return HRA_OK;
}

hra_status hra_schedule_run(struct hra_schedule *s, int query0, int query1)
{
    const struct hra_run run = {query0, query1, s->sources, s->sources};
    HRA_TRY(append((void **)&s->run, &s->runs, &s->room[4], &run, sizeof(run)));
    s->round[s->rounds - 1].run1 = s->runs;
    return HRA_OK;
}

hra_status hra_schedule_source(struct hra_schedule *s, struct hra_source source)
{
    HRA_TRY(append((void **)&s->source, &s->sources, &s->room[5], &source, sizeof(source)));
    s->run[s->runs - 1].source1 = s->sources;
    return HRA_OK;
}

void hra_schedule_drop_rounds(struct hra_schedule *s)
{
    s->loads = s->rounds = s->moves = s->runs = s->sources = 0;
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

/* ---- Own parts that need no copy ---- */

static int count_buffers(const struct hra_schedule *s, enum hra_payload payload)
{
    int count = 0;

    for (int l = 0; l < s->loads && payload == HRA_KV; l++)
        count = s->load[l].buffer >= count ? s->load[l].buffer + 1 : count;
    for (int i = 0; i < s->moves; i++) {
        const int last = s->move[i].payload == payload ? hra_move_buffer(&s->move[i]) + s->move[i].more : -1;
        count = last >= count ? last + 1 : count;
    }
    for (int c = 0; c < s->sources; c++) {
        const int buffer = payload == HRA_KV ? s->source[c].buffer : s->source[c].gradient;
        count = buffer >= count ? buffer + 1 : count;
    }
    return count;
}

/* Do the buffers of a send hold what was loaded? held: which load, or -1. */
static int holds_own(const struct hra_schedule *s, const struct hra_move *m, const int *held)
{
    for (int n = 0; n <= m->more; n++)
        if (held[n] < 0 || s->load[held[n]].part != m->part + n)
            return 0;
    return 1;
}

/* A buffer holds what was loaded until something arrives there. */
static void follow_loads(struct hra_straight *out, const struct hra_schedule *s, int most, int *load)
{
    for (int l = 0; l < s->loads; l++)
        load[s->load[l].buffer] = l;
    for (int r = 0; r < s->rounds; r++) {
        for (int i = s->round[r].move0; i < s->round[r].move1; i++) {
            const struct hra_move *m = &s->move[i];
            if (m->payload != HRA_KV)
                continue;
            int *held = &load[hra_move_buffer(m)];
            out->move[i] = m->sends && m->more < most && holds_own(s, m, held);
            for (int n = 0; n <= m->more; n++)
                if (!m->sends)
                    held[n] = -1;
                else if (!out->move[i] && held[n] >= 0)
                    out->wanted[held[n]] = 1;
        }
        for (int i = s->round[r].run0; i < s->round[r].run1; i++)
            for (int c = s->run[i].source0; c < s->run[i].source1; c++)
                if (s->source[c].buffer != HRA_OWN && load[s->source[c].buffer] >= 0)
                    out->wanted[load[s->source[c].buffer]] = 1;
    }
}

hra_status hra_schedule_straight(struct hra_straight *out, const struct hra_schedule *s, int most)
{
    const int buffers = count_buffers(s, HRA_KV);
    int *load = NULL;

    *out = (struct hra_straight){.move = NULL};
    HRA_TRY(hra_alloc((void **)&out->move, s->moves, 1, "moves"));
    HRA_TRY(hra_alloc((void **)&out->wanted, s->loads, 1, "moves"));
    HRA_TRY(hra_alloc_unset((void **)&load, buffers, sizeof(*load), "moves"));
    for (int b = 0; b < buffers; b++)
        load[b] = -1;
    follow_loads(out, s, most, load);
    free(load);
    return HRA_OK;
}

void hra_straight_clear(struct hra_straight *straight)
{
    free(straight->move);
    free(straight->wanted);
    *straight = (struct hra_straight){.move = NULL};
}

/* ---- Receipts that need not wait for their round ---- */

/* A buffer, as far as a schedule has been followed. */
struct use {
    int arrives; /* 1: something that nothing has waited for yet */
    int used;    /* 1 + the last round whose runs use it; 0: none so far */
};

static void use_buffer(struct use *use, int buffer, int round)
{
    if (buffer != HRA_OWN)
        use[buffer] = (struct use){.used = round + 1};
}

static int is_free(const struct hra_move *m, struct use *const *use, int round)
{
    for (int n = 0; n <= m->more; n++) {
        const struct use *u = &use[m->payload][m->to + n];
        if (u->arrives || u->used == round + 1)
            return 0;
    }
    return 1;
}

/* late [ranks]: 1 + the last round in which a receipt from there has to wait for it. */
static void follow_round(unsigned char *ahead, const struct hra_schedule *s, int r, struct use *const *use,
                         int *late)
{
    const struct hra_round *round = &s->round[r];

    for (int i = round->move0; i < round->move1; i++)
        for (int n = 0; n <= s->move[i].more; n++)
            use[s->move[i].payload][hra_move_buffer(&s->move[i]) + n].arrives = !s->move[i].sends;
    for (int i = round->run0; i < round->run1; i++)
        for (int c = s->run[i].source0; c < s->run[i].source1; c++) {
            use_buffer(use[HRA_KV], s->source[c].buffer, r);
            use_buffer(use[HRA_DKV], s->source[c].gradient, r);
        }
    for (int i = round->move1; r + 1 < s->rounds && i < s->round[r + 1].move1; i++) {
        const struct hra_move *m = &s->move[i];
        if (m->sends)
            continue;
        ahead[i] = late[m->peer] != r + 2 && is_free(m, use, r);
        if (!ahead[i])
            late[m->peer] = r + 2;
    }
}

hra_status hra_schedule_ahead(unsigned char **out, const struct hra_schedule *s, int ranks)
{
    struct use *use[HRA_PAYLOADS] = {NULL, NULL};
    int *late = NULL;

    hra_status status = hra_alloc((void **)out, s->moves, 1, "moves");
    for (int p = 0; status == HRA_OK && p < HRA_PAYLOADS; p++)
        status = hra_alloc((void **)&use[p], count_buffers(s, (enum hra_payload)p), sizeof(*use[p]), "moves");
    if (status == HRA_OK)
        status = hra_alloc((void **)&late, ranks, sizeof(*late), "moves");
    for (int r = 0; status == HRA_OK && r < s->rounds; r++)
        follow_round(*out, s, r, use, late);
    free(use[HRA_KV]);
    free(use[HRA_DKV]);
    free(late);
    return status;
}

/* ---- What is passed on ---- */

/* brought: by buffer of K/V the move that filled it, -1: none. */
static int find_passed(const struct hra_schedule *s, const struct hra_move *m, const int *brought)
{
    const int i = m->sends && m->payload == HRA_KV ? brought[m->from] : -1;
    return i >= 0 && s->move[i].to == m->from && s->move[i].more == m->more ? i : -1;
}

hra_status hra_schedule_passed(int **out, const struct hra_schedule *s)
{
    const int buffers = count_buffers(s, HRA_KV);
    int *brought = NULL;

    HRA_TRY(hra_alloc_unset((void **)out, s->moves, sizeof(**out), "moves"));
    HRA_TRY(hra_alloc_unset((void **)&brought, buffers, sizeof(*brought), "moves"));
    for (int b = 0; b < buffers; b++)
        brought[b] = -1;
    for (int r = 0; r < s->rounds; r++) {
        const struct hra_round *round = &s->round[r];
        for (int i = round->move0; i < round->move1; i++)
            (*out)[i] = find_passed(s, &s->move[i], brought);
        for (int i = round->move0; i < round->move1; i++)
            for (int n = 0; n <= s->move[i].more; n++)
                if (!s->move[i].sends && s->move[i].payload == HRA_KV)
                    brought[s->move[i].to + n] = i;
    }
    free(brought);
    return HRA_OK;
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

int hra_work_owner(const struct hra_work *work, int key_tile)
{
    int low = 0, high = work->ranks - 1;

    while (low < high) {
        const int mid = low + (high - low) / 2;
        if (key_tile < work->rank_tile[mid + 1])
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* Can the parts of a move travel between these ranks in this pass? */
static int makes_sense(const struct hra_schedule *s, const struct hra_move *move, int ranks, int rank,
                       hra_pass pass)
{
    if (move->part < 0 || move->more < 0 || move->part >= s->parts - move->more || move->from < 0 ||
        move->to < 0 || move->peer < 0 || move->peer >= ranks || move->peer == rank ||
        (pass == HRA_FORWARD && move->payload != HRA_KV) || (move->add && move->payload != HRA_DKV))
        return 0;
    for (int p = move->part; p <= move->part + move->more; p++)
        if (move->add && s->part[p].owner != (move->sends ? move->peer : rank))
            return 0;
    return 1;
}

static hra_status check_moves(const struct hra_schedule *s, const struct hra_work *work, int rank,
                              hra_pass pass)
{
    for (int i = 0; i < s->moves; i++) {
        const struct hra_move *move = &s->move[i];
        if (!makes_sense(s, move, work->ranks, rank, pass))
            return HRA_FAIL(HRA_ERR_ARG,
                            "schedule: move %d: part %d and %d more, buffers %d to %d, peer %d of %d", i,
                            move->part, move->more, move->from, move->to, move->peer, work->ranks);
    }
    for (int r = 0; r < s->rounds; r++)
        for (int i = s->round[r].move0; i < s->round[r].move1; i++)
            for (int j = s->round[r].move0; j < i; j++) {
                const struct hra_move *a = &s->move[i], *b = &s->move[j];
                const int first =
                    hra_move_buffer(a) > hra_move_buffer(b) ? hra_move_buffer(a) : hra_move_buffer(b);
                if (a->payload == b->payload && !(a->sends && b->sends) && hra_move_touches(a, first) &&
                    hra_move_touches(b, first))
                    return HRA_FAIL(HRA_ERR_ARG, "schedule: moves %d and %d of round %d share buffer %d", j,
                                    i, r, first);
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
 * Step t of rank r is the block of owner (r - t) mod ranks, cut into `parts` parts: one, or in backward two. Rounds compute
 *
 *     round 0                     own part 0
 *     1 + (t - 1) parts + p       part p of step t
 *     (ranks - 1) parts + p       own part p > 0
 *
 * so that something is computed while the first K/V arrive and while the last dK/dV go home. K/V have buffers as `kv_buffer`
 * says; dK/dV of each part p three, 3 p + (t & 1) for step t, and 3 p + 2 in which our own come home.
 *
 *     round p                     own K/V of part p go to the next rank, for its step 1
 *     round of (t, p)             K/V part p of step t go on to the next rank, of step t + 1 arrive
 *     the round after             dK/dV of (t, p), t > 0, go on likewise, or home if nobody further on adds to them
 */

/* How blocks of keys are cut into parts. */
enum cut {
    WHOLE,
    BY_HEADS, /* the K/V heads in two ranges */
    BY_KEYS   /* the two halves of the keys */
};

/* The ring as rank `rank` sees it. */
struct ring {
    const struct hra_work *work;
    const struct hra_part *part; /* [ranks * parts], part p of owner o is o * parts + p */
    const int *index;            /* [ranks * parts] its index in the schedule, -1: no such part */
    const int *first,
        *last; /* [ranks * parts] fewest and most steps after the owner, the owner's own left out, at which
                          somebody computes the part; ranks and 0 where nobody does */
    int rank, ranks, parts;
    enum cut cut;
};

/* From -ranks .. 2 ranks - 1. */
static int wrap(int rank, int ranks)
{
    return rank < 0 ? rank + ranks : rank >= ranks ? rank - ranks : rank;
}

/* Has the rank that is `steps` after the owner live tiles against half `half` of the owner's keys? A plan that asks for the
 * memory that any mask would need calls all live, also of a half without keys. */
static int is_live(const struct hra_work *work, int owner, int half, int steps)
{
    const int rank = wrap(owner + steps, work->ranks);
    return work->live[((int64_t)rank * work->ranks + owner) * HRA_HALVES + half] > 0 &&
           hra_work_half(work, owner, half) < hra_work_half(work, owner, half + 1);
}

/* Does the rank that is `steps` after the owner compute part p of the owner's block? What is live is not known by heads. */
static int computes(const struct ring *g, int owner, int p, int steps)
{
    return g->cut == BY_KEYS ? is_live(g->work, owner, p, steps)
                             : is_live(g->work, owner, 0, steps) || is_live(g->work, owner, 1, steps);
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

/* Is it computed for the last time t steps after the owner? */
static int ends(const struct ring *g, int owner, int p, int t)
{
    return t > 0 && g->last[owner * g->parts + p] == t;
}

/* Where K/V of step t lie. One buffer is free, so that a message can be on its way there, while another is filled and what
 * lies in a third is computed against: of whole blocks, in forward, by a third; of two parts by the other part's. */
static int kv_buffer(const struct ring *g, int p, int t)
{
    return g->parts == 1 ? t % 3 : 2 * p + (t & 1);
}

/* Moves of a rank come in pairs, what it sends after step t and what it receives for step t + 1: the same move of
 * two owners, seen from both sides. */
static struct hra_move kv_hop(const struct ring *g, int owner, int p, int t, int sends)
{
    return (struct hra_move){.payload = HRA_KV,
                             .part = g->index[owner * g->parts + p],
                             .from = kv_buffer(g, p, t),
                             .to = kv_buffer(g, p, t + 1),
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
    if (ends(g, ours, p, t))
        HRA_TRY(hra_schedule_move(s, dkv_home(g, ours, p, t, 1)));
    if (ends(g, g->rank, p, t))
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
                                                      .buffer = t == 0 ? HRA_OWN : kv_buffer(g, p, t),
                                                      .gradient = t == 0 ? HRA_OWN : 3 * p + (t & 1),
                                                      .zero = t > 0 && !begun(g, owner, p, t - 1)});
}

/* A part of a step. */
struct piece {
    int t, p;
};

/* What round k computes. Of two parts the first is computed last at home: its dK/dV come home while the second is computed
 * elsewhere, so that kernels can go on from them. */
static struct piece piece_of(const struct ring *g, int k)
{
    const int others = (g->ranks - 1) * g->parts;

    if (k == 0 || k > others)
        return (struct piece){0, k == 0 ? g->parts - 1 : k - others - 1};
    return (struct piece){1 + (k - 1) / g->parts, (k - 1) % g->parts};
}

static hra_status write_round(struct hra_schedule *s, const struct ring *g, hra_pass pass, int k)
{
    const struct piece now = piece_of(g, k), before = piece_of(g, k == 0 ? 0 : k - 1);

    HRA_TRY(hra_schedule_round(s));
    if (k < g->parts)
        HRA_TRY(move_kv(s, g, 0, k));
    if (now.t > 0)
        HRA_TRY(move_kv(s, g, now.t, now.p));
    if (pass == HRA_BACKWARD && before.t > 0)
        HRA_TRY(move_dkv(s, g, before.t, before.p));
    return run_part(s, g, now.t, now.p);
}

static hra_status write_loads(struct hra_schedule *s, const struct ring *g)
{
    for (int p = 0; p < g->parts; p++)
        if (wanted(g, g->rank, p, 0))
            HRA_TRY(hra_schedule_load(s, g->index[g->rank * g->parts + p], kv_buffer(g, p, 0)));
    return HRA_OK;
}

struct hra_ring {
    const struct hra_work *work;
    hra_pass pass;
    enum cut cut;
    struct hra_part *part; /* as in struct ring */
    int *index, *first, *last;
    int parts;
};

/* The ring as a rank sees it. */
static struct ring view(const struct hra_ring *r, int rank)
{
    return (struct ring){r->work, r->part,        r->index, r->first, r->last,
                         rank,    r->work->ranks, r->parts, r->cut};
}

/* first and last of each half of each block. */
static void find_steps(const struct hra_ring *r)
{
    const int ranks = r->work->ranks;

    for (int i = 0; i < ranks * HRA_HALVES; i++) {
        int first = 1, last = ranks - 1;
        while (last > 0 && !is_live(r->work, i / HRA_HALVES, i % HRA_HALVES, last))
            last--;
        while (first < last && !is_live(r->work, i / HRA_HALVES, i % HRA_HALVES, first))
            first++;
        r->first[i] = last > 0 ? first : ranks;
        r->last[i] = last;
    }
}

/* Hops of K/V and of dK/dV that a part makes. */
static int count_hops(int first, int last)
{
    return last > 0 ? last + last - first + 1 : 0;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int most(int a, int b)
{
    return a > b ? a : b;
}

/* How to cut the blocks, by the steps of their halves. Whoever computes one of two ranges of heads computes the other, too,
 * and as much; so there is always something to compute while dK/dV of a part travel. Half of the keys may be live for few
 * ranks, and the others wait while its dK/dV pass. But halves that nobody further on needs stay where they are; so by heads
 * half as much again may travel, and between two ranks, where nothing passes anybody, no more. */
static enum cut choose_cut(const struct hra_ring *r)
{
    double by_heads = 0, by_keys = 0; /* tiles times hops */

    if (r->work->ranks == 1 || r->pass == HRA_FORWARD)
        return WHOLE;
    if (r->work->heads_kv == 1)
        return BY_KEYS;
    for (int o = 0; o < r->work->ranks; o++) {
        const int *first = r->first + o * HRA_HALVES, *last = r->last + o * HRA_HALVES;
        for (int h = 0; h < HRA_HALVES; h++)
            by_keys += (double)count_hops(first[h], last[h]) *
                       (hra_work_half(r->work, o, h + 1) - hra_work_half(r->work, o, h));
        by_heads += (double)count_hops(least(first[0], first[1]), most(last[0], last[1])) *
                    (r->work->rank_tile[o + 1] - r->work->rank_tile[o]);
    }
    return by_heads <= (r->work->ranks == 2 ? 1 : 1.5) * by_keys ? BY_HEADS : BY_KEYS;
}

/* Part p of a block. */
static struct hra_part cut_block(const struct hra_ring *r, int owner, int p)
{
    const int heads = r->work->heads_kv;
    struct hra_part part = {.owner = owner,
                            .key_tile0 = r->work->rank_tile[owner],
                            .key_tile1 = r->work->rank_tile[owner + 1],
                            .head1 = heads};

    if (r->cut == BY_KEYS) {
        part.key_tile0 = hra_work_half(r->work, owner, p);
        part.key_tile1 = hra_work_half(r->work, owner, p + 1);
    } else if (r->cut == BY_HEADS) {
        part.head0 = heads * p / r->parts;
        part.head1 = heads * (p + 1) / r->parts;
    }
    return part;
}

static hra_status open_ring(struct hra_ring *r)
{
    const int64_t all = (int64_t)r->work->ranks * HRA_HALVES;
    int count = 0;

    HRA_TRY(hra_alloc((void **)&r->part, all, sizeof(*r->part), "schedule"));
    HRA_TRY(hra_alloc((void **)&r->index, 3 * all, sizeof(*r->index), "schedule"));
    r->first = r->index + all;
    r->last = r->first + all;
    find_steps(r);
    r->cut = choose_cut(r);
    r->parts = r->cut == WHOLE ? 1 : HRA_HALVES;
    for (int o = 0; o < r->work->ranks && r->cut != BY_KEYS;
         o++) { /* all of a block is wanted where a half is */
        const int first = least(r->first[o * HRA_HALVES], r->first[o * HRA_HALVES + 1]);
        const int last = most(r->last[o * HRA_HALVES], r->last[o * HRA_HALVES + 1]);
        for (int p = 0; p < r->parts; p++) {
            r->first[o * r->parts + p] = first;
            r->last[o * r->parts + p] = last;
        }
    }
    for (int i = 0; i < r->work->ranks * r->parts; i++) {
        r->part[i] = cut_block(r, i / r->parts, i % r->parts);
        r->index[i] = r->part[i].key_tile0 < r->part[i].key_tile1 ? count++ : -1;
    }
    return HRA_OK;
}

hra_status hra_ring_open(struct hra_ring **out, const struct hra_work *work, hra_pass pass)
{
    struct hra_ring *r = NULL;

    HRA_TRY(hra_alloc((void **)&r, 1, sizeof(*r), "schedule"));
    *r = (struct hra_ring){.work = work, .pass = pass};
    const hra_status status = open_ring(r);
    if (status != HRA_OK) {
        hra_ring_close(r);
        return status;
    }
    *out = r;
    return HRA_OK;
}

void hra_ring_close(struct hra_ring *r)
{
    if (r == NULL)
        return;
    free(r->part);
    free(r->index);
    free(r);
}

/* As many as there are parts of steps. The last one of backward computes an own part, beside which the last dK/dV go home. */
int hra_ring_rounds(const struct hra_ring *r)
{
    return r->work->ranks * r->parts;
}

const struct hra_part *hra_ring_trip(const struct hra_ring *r, int owner, int p, int *first, int *last)
{
    const int i = owner * r->parts + p;

    *first = r->first[i];
    *last = r->last[i];
    return &r->part[i];
}

hra_status hra_ring_parts(struct hra_schedule *out, const struct hra_ring *r)
{
    for (int i = 0; i < r->work->ranks * r->parts; i++)
        if (r->index[i] >= 0)
            HRA_TRY(hra_schedule_part(out, r->part[i]));
    return HRA_OK;
}

hra_status hra_ring_write(struct hra_schedule *out, const struct hra_ring *r, int rank, int round0,
                          int round1)
{
    const struct ring g = view(r, rank);

    if (round0 == 0)
        HRA_TRY(write_loads(out, &g));
    for (int k = round0; k < round1; k++)
        HRA_TRY(write_round(out, &g, r->pass, k));
    return HRA_OK;
}

hra_status hra_schedule_ring(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass)
{
    struct hra_ring *ring = NULL;

    HRA_TRY(hra_ring_open(&ring, work, pass));
    hra_status status = hra_ring_parts(out, ring);
    if (status == HRA_OK)
        status = hra_ring_write(out, ring, rank, 0, hra_ring_rounds(ring));
    hra_ring_close(ring);
    if (status != HRA_OK)
        hra_schedule_clear(out);
    return status;
}

/* ---- What ranks need of each other -------------------------------------------------------------- */

/* The gaps between the tiles that a rank needs of each owner, by their length. */
struct gaps {
    int64_t *count; /* [longest + 1] */
    int64_t *rows;  /* [longest + 1] that all of them have */
    int longest;
    int64_t owners; /* of whom it needs any */
    int64_t needed; /* rows */
};

static int64_t rows_between(const struct hra_tile_rows *tile, int key_tile0, int key_tile1)
{
    return tile[key_tile1 - 1].row0 + tile[key_tile1 - 1].rows - tile[key_tile0].row0;
}

/* The next tile of an owner from k on that is needed, or its end. */
static int next_needed(const int64_t *live, int k, int end)
{
    while (k < end && live[k] <= 0)
        k++;
    return k;
}

static void find_gaps(struct gaps *g, const struct hra_work *work, int rank, const int64_t *live,
                      const struct hra_tile_rows *tile)
{
    for (int o = 0; o < work->ranks; o++) {
        const int end = work->rank_tile[o + 1];
        int last = -1;
        if (o == rank)
            continue;
        for (int k = next_needed(live, work->rank_tile[o], end); k < end; k = next_needed(live, k + 1, end)) {
            g->needed += tile[k].rows;
            g->owners += last < 0;
            if (last >= 0 && k - last > 1) {
                g->count[k - last - 1]++;
                g->rows[k - last - 1] += rows_between(tile, last + 1, k);
            }
            last = k;
        }
    }
}

/* The longest gap that is joined; *ranges receives how many are left. */
static int choose_gap(const struct gaps *g, int64_t most, int64_t *ranges)
{
    int64_t extra = 0;
    int gap = 0;

    *ranges = g->owners;
    for (int length = 1; length <= g->longest; length++)
        *ranges += g->count[length];
    while (gap < g->longest) {
        extra += g->rows[gap + 1];
        if (*ranges <= most && (gap >= HRA_JOIN || 20 * extra > g->needed))
            break;
        *ranges -= g->count[++gap];
    }
    return gap;
}

/* Write the ranges; how many there are. */
static int64_t write_ranges(struct hra_range *out, const struct hra_work *work, int rank, const int64_t *live,
                            int gap)
{
    int64_t count = 0;

    for (int o = 0; o < work->ranks; o++) {
        const int end = work->rank_tile[o + 1];
        int last = -1;
        if (o == rank)
            continue;
        for (int k = next_needed(live, work->rank_tile[o], end); k < end; k = next_needed(live, k + 1, end)) {
            if (last < 0 || k - last - 1 > gap)
                out[count++] = (struct hra_range){k, k};
            out[count - 1].key_tile1 = k + 1;
            last = k;
        }
    }
    return count;
}

hra_status hra_needs_find(struct hra_range **out, int64_t *count, const struct hra_work *work, int rank,
                          const int64_t *live, const struct hra_tile_rows *tile)
{
    const int64_t most = 2 * (int64_t)work->ranks > HRA_RANGES ? 2 * (int64_t)work->ranks : HRA_RANGES;
    struct gaps gaps = {.longest = 0};
    struct hra_range *range = NULL;
    int64_t *room = NULL, ranges = 0;

    for (int o = 0; o < work->ranks; o++) {
        const int tiles = work->rank_tile[o + 1] - work->rank_tile[o];
        gaps.longest = tiles > gaps.longest ? tiles : gaps.longest;
    }
    HRA_TRY(hra_alloc((void **)&room, 2 * (int64_t)(gaps.longest + 1), sizeof(*room), "ranges of keys"));
    gaps.count = room;
    gaps.rows = room + gaps.longest + 1;
    find_gaps(&gaps, work, rank, live, tile);
    const int gap = choose_gap(&gaps, most, &ranges);
    hra_status status = hra_alloc((void **)&range, ranges, sizeof(*range), "ranges of keys");
    if (status == HRA_OK) {
        *count = write_ranges(range, work, rank, live, gap);
        *out = range;
    }
    free(room);
    return status;
}

/* The end of the ranges from i on that have one owner, in those of a rank. */
static int64_t end_of_owner(const struct hra_needs *needs, const struct hra_work *work, int rank, int64_t i,
                            int *owner)
{
    *owner = hra_work_owner(work, needs->range[i].key_tile0);
    while (i < needs->start[rank + 1] && needs->range[i].key_tile0 < work->rank_tile[*owner + 1])
        i++;
    return i;
}

/* Do two visitors want the same of an owner? */
static int same_ranges(const struct hra_needs *needs, const struct hra_visit *a, const struct hra_visit *b)
{
    const int count = a->range1 - a->range0;

    return count == b->range1 - b->range0 && memcmp(needs->range + needs->start[a->visitor] + a->range0,
                                                    needs->range + needs->start[b->visitor] + b->range0,
                                                    (size_t)count * sizeof(*needs->range)) == 0;
}

/* Visitors that want the same are sent it from the same buffers; only so many before one are looked at. Under masks that
 * let everybody want all of everybody those are neighbours. */
enum { LOOK_BACK = 8 };

/* Number the buffers of an owner, behind those in which it is a visitor itself. */
static void number_buffers(struct hra_needs *needs, int owner)
{
    struct hra_visit *visit = needs->visit + needs->visit_start[owner];
    const int64_t visits = needs->visit_start[owner + 1] - needs->visit_start[owner];
    int load = (int)(needs->start[owner + 1] - needs->start[owner]), home = load;

    for (int64_t i = 0; i < visits; i++) {
        const int count = visit[i].range1 - visit[i].range0;
        visit[i].home = home;
        home += count;
        visit[i].load = load;
        for (int64_t j = i - 1; j >= 0 && j >= i - LOOK_BACK && visit[i].load == load; j--)
            if (same_ranges(needs, &visit[i], &visit[j]))
                visit[i].load = visit[j].load;
        load += visit[i].load == load ? count : 0;
    }
}

/* Visits as the ranges have them, and which of them each rank makes; next [ranks] is scratch. */
static void fill_visits(struct hra_needs *needs, const struct hra_work *work, int64_t *next)
{
    int64_t made = 0;
    int owner;

    memcpy(next, needs->visit_start, (size_t)work->ranks * sizeof(*next));
    for (int r = 0; r < work->ranks; r++)
        for (int64_t i = needs->start[r], end; i < needs->start[r + 1]; i = end) {
            end = end_of_owner(needs, work, r, i, &owner);
            needs->made[made++] = next[owner];
            needs->visit[next[owner]++] = (struct hra_visit){.visitor = r,
                                                             .owner = owner,
                                                             .range0 = (int)(i - needs->start[r]),
                                                             .range1 = (int)(end - needs->start[r])};
        }
}

/* Messages that a rank sends, and receives, in one round at most: NCCL may split a group of more than about 256 operations
 * otherwise on one rank than on another, and each message may bring its tag as another one. */
enum { PEERS = 32 };

/* Visits by the distance from the owner to the visitor: those of distance d are by_distance[start[d - 1] .. start[d] - 1];
 * start [ranks + 1] is 0. */
static void sort_by_distance(const struct hra_needs *needs, int ranks, int64_t *start, int64_t *by_distance)
{
    const int64_t visits = needs->visit_start[ranks];

    for (int64_t i = 0; i < visits; i++)
        start[wrap(needs->visit[i].visitor - needs->visit[i].owner, ranks) + 1]++;
    for (int d = 0; d < ranks; d++)
        start[d + 1] += start[d];
    for (int64_t i = 0; i < visits; i++)
        by_distance[start[wrap(needs->visit[i].visitor - needs->visit[i].owner, ranks)]++] = i;
}

/* Rounds go by the distance between ranks, so they are the same at both ends, and each takes as many distances as it can
 * before a rank would have too many messages; a rank has one visitor at a distance, and visits one. count [ranks][2] is 0. */
static hra_status cut_rounds(struct hra_needs *needs, int ranks, const int64_t *start,
                             const int64_t *by_distance, int (*count)[2])
{
    HRA_TRY(hra_alloc((void **)&needs->far, ranks, sizeof(*needs->far), "visits"));
    for (int d = 1; d < ranks; d++) {
        int fits = 1;
        for (int64_t i = start[d - 1]; i < start[d] && fits; i++) {
            const struct hra_visit *visit = &needs->visit[by_distance[i]];
            fits = count[visit->visitor][0] < PEERS && count[visit->owner][1] < PEERS;
        }
        if (!fits)
            memset(count, 0, (size_t)ranks * sizeof(*count));
        if (!fits || needs->rounds == 0)
            needs->rounds++;
        needs->far[needs->rounds - 1] = d;
        for (int64_t i = start[d - 1]; i < start[d]; i++) {
            count[needs->visit[by_distance[i]].visitor][0]++;
            count[needs->visit[by_distance[i]].owner][1]++;
        }
    }
    return HRA_OK;
}

static hra_status find_rounds(struct hra_needs *needs, int ranks)
{
    int64_t *start = NULL, *by_distance = NULL;
    int(*count)[2] = NULL;

    hra_status status = hra_alloc((void **)&start, ranks + 1, sizeof(*start), "visits");
    if (status == HRA_OK)
        status = hra_alloc((void **)&by_distance, needs->visit_start[ranks], sizeof(*by_distance), "visits");
    if (status == HRA_OK)
        status = hra_alloc((void **)&count, ranks, sizeof(*count), "visits");
    if (status == HRA_OK) {
        sort_by_distance(needs, ranks, start, by_distance);
        status = cut_rounds(needs, ranks, start, by_distance, count);
    }
    free(start);
    free(by_distance);
    free(count);
    return status;
}

hra_status hra_needs_link(struct hra_needs *needs, const struct hra_work *work)
{
    const int ranks = work->ranks;
    int64_t *next = NULL;
    int owner;

    HRA_TRY(hra_alloc((void **)&needs->visit_start, ranks + 1, sizeof(int64_t), "visits"));
    HRA_TRY(hra_alloc((void **)&needs->made_start, ranks + 1, sizeof(int64_t), "visits"));
    for (int r = 0; r < ranks; r++) {
        needs->made_start[r + 1] = needs->made_start[r];
        for (int64_t i = needs->start[r]; i < needs->start[r + 1]; needs->made_start[r + 1]++) {
            i = end_of_owner(needs, work, r, i, &owner);
            needs->visit_start[owner + 1]++;
        }
    }
    for (int o = 0; o < ranks; o++)
        needs->visit_start[o + 1] += needs->visit_start[o];
    HRA_TRY(hra_alloc((void **)&needs->made, needs->made_start[ranks], sizeof(*needs->made), "visits"));
    HRA_TRY(hra_alloc((void **)&needs->visit, needs->visit_start[ranks], sizeof(*needs->visit), "visits"));
    HRA_TRY(hra_alloc((void **)&next, ranks, sizeof(*next), "visits"));
    fill_visits(needs, work, next);
    free(next);
    for (int o = 0; o < ranks; o++)
        number_buffers(needs, o);
    return find_rounds(needs, ranks);
}

void hra_needs_clear(struct hra_needs *needs)
{
    free(needs->start);
    free(needs->range);
    free(needs->visit_start);
    free(needs->visit);
    free(needs->made_start);
    free(needs->made);
    free(needs->far);
    *needs = (struct hra_needs){.start = NULL};
}

/* ---- The halo, and streaming of heads ------------------------------------------------------------
 *
 * What a rank needs of others comes straight from its owners, and goes straight back; all that one rank needs of another, of
 * one group of K/V heads, is one message. The halo has all heads in one group. Streaming has several, and computes each
 * while the next one arrives:
 *
 *     rounds 0 ..     K/V of group 0 travel; in the last of these rounds own part 0 is computed
 *     of each group   K/V of the next group travel, in backward also dK/dV of the group before, back; in the last of these
 *                     rounds all of this group that has arrived is computed, in one run with the own part of these heads if
 *                     that is not another round's
 *     the last ones   backward: dK/dV of the last group travel back; in the last round the last own part is computed
 *
 * dK/dV are added by the order of their moves. Own parts are the heads of a group; only the halo's backward cuts its group
 * into two. There are two sets of buffers for what arrives and for its dK/dV, which groups take in turn; of those for K/V that
 * are sent there is one for each group, as they are filled before the first round; dK/dV of all groups come home into one.
 *
 * A rank's parts are its own, then for each group those that arrive, by the number of their buffers, then those that it
 * sends, likewise. Which buffers these are in a halo hra_needs has for all ranks. */

/* How one rank sees either. */
struct halo {
    const struct hra_work *work;
    const struct hra_needs *needs;
    int rank;
    int groups;             /* of K/V heads */
    int own;                /* parts of its own keys */
    int ranges;             /* that it needs */
    int64_t earlier_owners; /* of those that it visits, with lower ranks than its own */
    int64_t earlier_visitors;
};

int hra_work_groups(const struct hra_work *work)
{
    int groups = least(most(work->ranks, 2), least(8, work->heads_kv));

    while (work->heads_kv % groups != 0)
        groups++;
    return groups;
}

/* The first head of a group; that of the group behind the last one is the number of heads. */
static int group_head(const struct halo *h, int group)
{
    return h->work->heads_kv / h->groups * group;
}

static int ranges_of(const struct halo *h, int rank)
{
    return (int)(h->needs->start[rank + 1] - h->needs->start[rank]);
}

/* The first of the buffers for a group that arrives at a rank. */
static int arrival_buffer(const struct halo *h, int rank, int group)
{
    return group % 2 * ranges_of(h, rank);
}

/* Buffers of a rank for what arrives: those that it sends from, and those in which dK/dV come home, are behind them. */
static int arrival_buffers(const struct halo *h, int rank)
{
    return least(h->groups, 2) * ranges_of(h, rank);
}

/* The first of what an owner sends of a group in a visit, among all that it sends. */
static int sent_index(const struct halo *h, const struct hra_visit *visit, int group)
{
    return (visit->load - ranges_of(h, visit->owner)) * h->groups + group * (visit->range1 - visit->range0);
}

/* A rank's own part; it has no tiles where the keys of the rank do not do for two. */
static struct hra_part own_part(const struct halo *h, int p, int parts)
{
    const int heads = h->work->heads_kv, rank = h->rank;
    struct hra_part part = {.owner = rank,
                            .key_tile0 = h->work->rank_tile[rank],
                            .key_tile1 = h->work->rank_tile[rank + 1],
                            .head1 = heads};

    if (heads > 1) {
        part.head0 = heads * p / parts;
        part.head1 = heads * (p + 1) / parts;
    } else if (parts == HRA_HALVES) {
        part.key_tile0 = hra_work_half(h->work, rank, p);
        part.key_tile1 = hra_work_half(h->work, rank, p + 1);
    }
    return part;
}

/* One part of the rank's own keys a group, or two where dK/dV are awaited beside the second; one where nothing is awaited. */
static hra_status write_own_parts(struct hra_schedule *s, struct halo *h, hra_pass pass)
{
    const struct hra_needs *needs = h->needs;
    const int visited = needs->visit_start[h->rank] < needs->visit_start[h->rank + 1];
    const int waits = h->ranges > 0 || (pass == HRA_BACKWARD && visited);
    const int parts = waits ? most(h->groups, pass == HRA_BACKWARD ? 2 : 1) : 1;

    for (int p = 0; p < parts; p++) {
        const struct hra_part part = own_part(h, p, parts);
        if (part.key_tile0 < part.key_tile1)
            HRA_TRY(hra_schedule_part(s, part));
    }
    h->own = s->parts;
    return HRA_OK;
}

/* Ranges range0 .. range1 - 1 of what `visitor` needs of a group as parts. */
static hra_status add_parts(struct hra_schedule *s, const struct halo *h, int visitor, int range0, int range1,
                            int group)
{
    const struct hra_range *range = h->needs->range + h->needs->start[visitor];

    for (int i = range0; i < range1; i++)
        HRA_TRY(hra_schedule_part(s, (struct hra_part){.owner = hra_work_owner(h->work, range[i].key_tile0),
                                                       .key_tile0 = range[i].key_tile0,
                                                       .key_tile1 = range[i].key_tile1,
                                                       .head0 = group_head(h, group),
                                                       .head1 = group_head(h, group + 1)}));
    return HRA_OK;
}

static hra_status write_parts(struct hra_schedule *s, const struct halo *h)
{
    const struct hra_needs *needs = h->needs;

    for (int g = 0; g < h->groups; g++)
        HRA_TRY(add_parts(s, h, h->rank, 0, h->ranges, g));
    const int sent = s->parts;
    for (int64_t i = needs->visit_start[h->rank]; i < needs->visit_start[h->rank + 1]; i++) {
        const struct hra_visit *visit = &needs->visit[i];
        if (sent + sent_index(h, visit, 0) != s->parts) /* an earlier visitor wants the same */
            continue;
        for (int g = 0; g < h->groups; g++)
            HRA_TRY(add_parts(s, h, visit->visitor, visit->range0, visit->range1, g));
    }
    for (int p = sent; p < s->parts; p++)
        HRA_TRY(hra_schedule_load(s, p, arrival_buffers(h, h->rank) + p - sent));
    return HRA_OK;
}

/* The visit that the i-th nearest of our visitors makes, counted from the next rank on; -1: there is none. */
static int64_t find_hosted(const struct halo *h, int64_t i)
{
    const int64_t begin = h->needs->visit_start[h->rank], count = h->needs->visit_start[h->rank + 1] - begin;

    return i < count ? begin + (h->earlier_visitors + i) % count : -1;
}

/* The visit that we make to the i-th nearest of our owners, counted from the rank before us. */
static int64_t find_made(const struct halo *h, int64_t i)
{
    const int64_t begin = h->needs->made_start[h->rank], count = h->needs->made_start[h->rank + 1] - begin;

    return i < count ? h->needs->made[begin + (h->earlier_owners + count - 1 - i) % count] : -1;
}

/* One message of a visit as we see it: K/V of a group to the visitor, dK/dV back. */
static hra_status move_visit(struct hra_schedule *s, const struct halo *h, enum hra_payload payload,
                             const struct hra_visit *visit, int group)
{
    const int home = payload == HRA_DKV, visits = h->rank == visit->visitor;
    const int sent = sent_index(h, visit, group), behind = arrival_buffers(h, visit->owner);
    const int there = arrival_buffer(h, visit->visitor, group) + visit->range0;

    return hra_schedule_move(
        s, (struct hra_move){
               .payload = payload,
               .part = h->own + (visits ? group * h->ranges + visit->range0 : h->groups * h->ranges + sent),
               .from = home ? there : behind + sent,
               .to = home ? behind + visit->home - ranges_of(h, visit->owner) : there,
               .peer = visits ? visit->owner : visit->visitor,
               .sends = visits == home,
               .add = home,
               .more = visit->range1 - visit->range0 - 1});
}

/* Move what belongs to the visits that come next and are of ranks at most `far` apart. */
static hra_status move_near(struct hra_schedule *s, const struct halo *h, enum hra_payload payload, int group,
                            int far, int64_t *next, int64_t (*find)(const struct halo *h, int64_t i))
{
    for (int64_t i; (i = find(h, *next)) >= 0; ++*next) {
        const struct hra_visit *visit = &h->needs->visit[i];
        if (wrap(visit->visitor - visit->owner, h->work->ranks) > far)
            break;
        HRA_TRY(move_visit(s, h, payload, visit, group));
    }
    return HRA_OK;
}

static hra_status move_group(struct hra_schedule *s, const struct halo *h, enum hra_payload payload,
                             int group)
{
    int64_t made = 0, hosted = 0;

    for (int i = 0; i < h->needs->rounds; i++) {
        HRA_TRY(hra_schedule_round(s));
        HRA_TRY(move_near(s, h, payload, group, h->needs->far[i], &made, find_made));
        HRA_TRY(move_near(s, h, payload, group, h->needs->far[i], &hosted, find_hosted));
    }
    return HRA_OK;
}

/* Compute an own part, if there is one. */
static hra_status run_own(struct hra_schedule *s, const struct halo *h, int part)
{
    if (part >= h->own)
        return HRA_OK;
    HRA_TRY(hra_schedule_run(s, 0, h->work->rank_tile[h->rank + 1] - h->work->rank_tile[h->rank]));
    return hra_schedule_source(s, (struct hra_source){part, HRA_OWN, HRA_OWN, 0});
}

/* Compute what has arrived of a group, and the own part of its heads unless that is computed first or, in backward, last. */
static hra_status run_group(struct hra_schedule *s, const struct halo *h, int group, hra_pass pass)
{
    const int queries = h->work->rank_tile[h->rank + 1] - h->work->rank_tile[h->rank];
    const int own = group > 0 && group < h->own - (pass == HRA_BACKWARD);

    if (own)
        HRA_TRY(run_own(s, h, group));
    else if (h->ranges > 0)
        HRA_TRY(hra_schedule_run(s, 0, queries));
    for (int i = 0; i < h->ranges; i++) {
        const int buffer = arrival_buffer(h, h->rank, group) + i;
        HRA_TRY(hra_schedule_source(
            s, (struct hra_source){
                   .part = h->own + group * h->ranges + i, .buffer = buffer, .gradient = buffer, .zero = 1}));
    }
    return HRA_OK;
}

static hra_status write_halo(struct hra_schedule *s, struct halo *h, hra_pass pass)
{
    HRA_TRY(write_own_parts(s, h, pass));
    HRA_TRY(write_parts(s, h));
    HRA_TRY(move_group(s, h, HRA_KV, 0));
    if (s->rounds == 0) /* there is one rank */
        HRA_TRY(hra_schedule_round(s));
    HRA_TRY(run_own(s, h, 0));
    for (int g = 0; g < h->groups; g++) {
        const int rounds = s->rounds;
        if (g + 1 < h->groups)
            HRA_TRY(move_group(s, h, HRA_KV, g + 1));
        if (g > 0 && pass == HRA_BACKWARD)
            HRA_TRY(move_group(s, h, HRA_DKV, g - 1));
        if (s->rounds == rounds)
            HRA_TRY(hra_schedule_round(s));
        HRA_TRY(run_group(s, h, g, pass));
    }
    if (pass == HRA_FORWARD)
        return HRA_OK;
    HRA_TRY(move_group(s, h, HRA_DKV, h->groups - 1));
    return h->own > 1 ? run_own(s, h, h->own - 1) : HRA_OK;
}

static hra_status generate_halo(struct hra_schedule *out, const struct hra_work *work, int rank,
                                hra_pass pass, int groups)
{
    const struct hra_needs *needs = work->needs;
    struct halo h = {.work = work, .needs = needs, .rank = rank, .groups = groups};

    h.ranges = ranges_of(&h, rank);
    for (int64_t i = needs->made_start[rank]; i < needs->made_start[rank + 1]; i++)
        h.earlier_owners += needs->visit[needs->made[i]].owner < rank;
    for (int64_t i = needs->visit_start[rank]; i < needs->visit_start[rank + 1]; i++)
        h.earlier_visitors += needs->visit[i].visitor < rank;
    hra_status status = write_halo(out, &h, pass);

    if (status != HRA_OK)
        hra_schedule_clear(out);
    return status;
}

hra_status hra_schedule_halo(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass)
{
    return generate_halo(out, work, rank, pass, 1);
}

hra_status hra_schedule_heads(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass)
{
    return generate_halo(out, work, rank, pass, hra_work_groups(work));
}

const struct hra_schedule_entry hra_schedules[] = {[HRA_SCHEDULE_RING] = {"ring", hra_schedule_ring},
                                                   [HRA_SCHEDULE_HALO] = {"halo", hra_schedule_halo},
                                                   [HRA_SCHEDULE_HEADS] = {"heads", hra_schedule_heads}};

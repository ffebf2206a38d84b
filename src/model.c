/* model.c - a schedule played out in time. See model.h for what a rank does.
 *
 * Ranks are advanced by turns, each by one round or until it has to wait for a message whose end is not known yet. A
 * message is known when both its ends have started it; its bytes are then put behind those that its sender's link and its
 * receiver's link have still to carry. So a link never idles while it has something to carry, and what it carries at once
 * arrives when it would if the messages took turns.
 *
 * Memory follows the ranks, not their rounds: of a ring only some rounds of each rank's schedule are there at a time. */
#include "src/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WINDOW = 8,           /* rounds of a ring that are made at a time */
    ROUND_MOVES = 6,      /* that such a round has at most */
    MOST_VISITS = 1 << 22 /* of a halo, or of the groups of heads, whose schedules are there as a whole */
};

/* A message, from when its first end is started until both are finished. Ends: 0 sends, 1 receives. */
struct message {
    int rank[2];     /* -1: that end is not started */
    int peer[2];     /* the other end's rank */
    int far;         /* 1: it goes to another node */
    int distance;    /* from the sender to the receiver, modulo the ranks */
    int group[2];    /* -1: none */
    int waiter[2];   /* 1: the rank waits for it */
    int open[2];     /* 1: its end is started, and its group if it is in one */
    double ready[2]; /* since when */
    double over[2];  /* when the rank may go on; < 0: not known */
    int64_t bytes;
    int round[2], gradient;
    int ends; /* not finished yet */
    int next; /* in the list of its first end's rank, or of those that are free; -1: none */
};

/* The grouped messages of one round of a rank. */
struct group {
    int rank;
    double begun;     /* when its stream came to it */
    double over;      /* when the last of those that are known is over */
    int pending;      /* messages that are not known */
    int first, count; /* in `member` of the rank */
    int next;         /* the group behind it, or of those that are free; -1: none */
};

/* A move that was started and is not finished. */
struct active {
    int payload, buffer, last; /* buffers `buffer` to `last` on our side */
    int message, sends, add;
    int64_t bytes;
};

/* The rounds of a ring that a rank has before it; in one piece of memory, as there are thousands of ranks. */
struct window {
    struct hra_round round[WINDOW];
    struct hra_move move[WINDOW * ROUND_MOVES];
    struct hra_run run[WINDOW];
    struct hra_source source[WINDOW];
    int64_t tiles[WINDOW]; /* live tiles of each run */
};

enum phase { MOVES, RUNS, END, DONE };

struct actor {
    struct hra_schedule s;     /* rounds round0 .. round1 - 1; of a ring in its window */
    int round0, round1, round; /* round: the one that it is in */
    enum phase phase;
    int run;
    int64_t *tiles;        /* [s.runs] live tiles of each run; of a ring in its window */
    double now;            /* how far its stream is, in seconds */
    double beside;         /* seconds of this round's messages that compute has still beside it */
    double slow;           /* share of its rate that it loses then */
    double tile_s;         /* a live tile, on average */
    struct active *active; /* [actives] in schedule order */
    int actives, room;
    int unmatched, unmatched_last;     /* messages that the other end has not started */
    int group, group_last;             /* not over, the first of them open */
    double group_over;                 /* when the last one that is was */
    int *member, members, member_room; /* of groups that are not over: twice the message, and its end */
};

struct play {
    const hra_plan *plan;
    const hra_machine *machine;
    hra_pass pass;
    struct hra_costs costs; /* of these */
    struct hra_model *out;
    struct hra_ring *ring;             /* NULL: schedules are made as a whole */
    struct hra_schedule scratch;       /* its parts, and rounds on their way into a window */
    struct window *window;             /* of a ring, [actors] */
    int rounds;                        /* of a ring */
    int64_t *part_bytes[HRA_PAYLOADS]; /* [scratch.parts] */
    struct actor *actor;               /* [actors] */
    int actors;                        /* ranks that are played; the others do what rank - actors does */
    struct message *message;
    int messages, free_message;
    struct group *group;
    int groups, free_group;
    int *opening; /* groups that may be opened */
    int openings, opening_room;
    double *inside[2],
        *between[2]; /* [ranks], by hra_machine_link: when what a link has to carry is carried: out, in */
    int *turn; /* [ranks] a queue of those that can go on: turns of them from `next` on, then from 0 on */
    int next, turns;
    int64_t *span_room; /* [watched] */
};

/* ---- Machines ---- */

static hra_status want_number(double value, double low, double high, const char *name)
{
    if (!(value >= low && value <= high)) /* a NaN is neither */
        return HRA_FAIL(HRA_ERR_ARG, "machine.%s is %g; it must be %g to %g", name, value, low, high);
    return HRA_OK;
}

static hra_status read_link(hra_link *link, const char *name, int node_ranks)
{
    char field[48];

    if (link->sharing == 0)
        link->sharing = 1;
    snprintf(field, sizeof(field), "%s.rate", name);
    HRA_TRY(want_number(link->rate, 1, 1e18, field));
    snprintf(field, sizeof(field), "%s.latency_s", name);
    HRA_TRY(want_number(link->latency_s, 0, 1e3, field));
    snprintf(field, sizeof(field), "%s.slowdown", name);
    HRA_TRY(want_number(link->slowdown, 0, 0.99, field));
    snprintf(field, sizeof(field), "%s.sharing", name);
    HRA_TRY(want_number(link->sharing, 1, node_ranks, field));
    snprintf(field, sizeof(field), "%s.grouped", name);
    return want_number(link->grouped, 0, 1, field);
}

hra_status hra_machine_read(hra_machine *out, const hra_machine *machine, int ranks)
{
    if (machine == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_forecast_create: machine is NULL");
    HRA_TRY(hra_copy_sized(out, sizeof(*out), machine, "machine"));
    if (out->node_ranks == 0)
        out->node_ranks = ranks;
    HRA_TRY(want_number(out->node_ranks, 1, INT32_MAX, "node_ranks"));
    HRA_TRY(read_link(&out->inside, "inside", out->node_ranks));
    if (out->node_ranks < ranks)
        HRA_TRY(read_link(&out->between, "between", out->node_ranks));
    for (int pass = 0; pass < 2; pass++) {
        HRA_TRY(want_number(out->full[pass], 1, 1e24, pass == 0 ? "full[0]" : "full[1]"));
        HRA_TRY(want_number(out->partial[pass], 1, 1e24, pass == 0 ? "partial[0]" : "partial[1]"));
        HRA_TRY(want_number(out->item_s[pass], 0, 1e3, pass == 0 ? "item_s[0]" : "item_s[1]"));
    }
    HRA_TRY(want_number(out->launch_s, 0, 1e3, "launch_s"));
    HRA_TRY(want_number(out->own_straight, 0, 1, "own_straight"));
    return want_number(out->memory, 1, 1e18, "memory");
}

/* ---- What things cost ---- */

double hra_cost_memory(const struct hra_costs *c, double bytes, int64_t launches)
{
    return (double)launches * c->machine->launch_s + bytes / c->machine->memory;
}

int hra_cost_straight(const struct hra_costs *c)
{
    const int can = c->machine->own_straight && c->machine->node_ranks >= c->plan->comm->ranks;
    return can ? HRA_STRAIGHT_PARTS / c->plan->problem.batch : 0;
}

double hra_cost_tile(const struct hra_costs *c, int rank)
{
    const hra_problem *q = &c->plan->problem;
    const struct hra_rank_stats *s = &c->plan->stats[rank];
    const double flop = 2.0 * HRA_TILE * HRA_TILE *
                        (c->pass == HRA_FORWARD ? q->dim + q->dim_v : 3.0 * q->dim + 2.0 * q->dim_v);
    const double full = (double)s->tiles_full, partial = (double)s->tiles_partial;

    if (full + partial == 0)
        return 0;
    return flop * (full / c->machine->full[c->pass] + partial / c->machine->partial[c->pass]) /
           (full + partial);
}

double hra_cost_kernel(const struct hra_costs *c, double tile_s, int64_t tiles, int64_t queries, int heads_kv)
{
    const hra_problem *q = &c->plan->problem;
    const int64_t all = queries * q->batch * (q->heads / q->heads_kv) * heads_kv;
    const int64_t items = tiles < all ? tiles : all;

    return c->machine->launch_s + (double)items * c->machine->item_s[c->pass] + (double)tiles * tile_s;
}

double hra_cost_rows(const struct hra_costs *c, double rows, enum hra_payload payload)
{
    const hra_problem *q = &c->plan->problem;
    const hra_type type = payload == HRA_KV ? q->type : hra_type_sums(q->type);

    return rows * q->batch * q->heads_kv * (q->dim + q->dim_v) * (double)hra_type_bytes(type);
}

double hra_cost_before(const struct hra_costs *c, int rank)
{
    const hra_problem *q = &c->plan->problem;
    const int clears = !c->plan->pass[HRA_BACKWARD].begins;
    const double rows = (double)c->plan->layout->rows[rank];

    if (c->pass == HRA_FORWARD || rows == 0)
        return 0;
    return hra_cost_memory(c,
                           clears * hra_cost_rows(c, rows, HRA_DKV) +
                               2 * rows * q->batch * q->heads * q->dim_v * (double)hra_type_bytes(q->type),
                           1 + clears);
}

double hra_cost_behind(const struct hra_costs *c, int rank)
{
    const double rows = (double)c->plan->layout->rows[rank];

    if (c->pass == HRA_FORWARD || rows == 0 || c->plan->pass[HRA_BACKWARD].opens == 0)
        return 0;
    return hra_cost_memory(c, hra_cost_rows(c, rows, HRA_DKV) + hra_cost_rows(c, rows, HRA_KV),
                           hra_cost_launches(c->plan->pass[HRA_BACKWARD].opens));
}

/* ---- Memory ---- */

/* Room for one more in an array that doubles. */
static hra_status make_room(void **array, int64_t count, int64_t *room, size_t bytes)
{
    void *larger = NULL;

    if (count < *room)
        return HRA_OK;
    const int64_t wanted = *room == 0 ? 16 : 2 * *room;
    HRA_TRY(hra_alloc_unset(&larger, wanted, bytes, "forecast"));
    if (count > 0)
        memcpy(larger, *array, (size_t)count * bytes);
    free(*array);
    *array = larger;
    *room = wanted;
    return HRA_OK;
}

/* The same where room is an int. */
static hra_status make_int_room(void **array, int count, int *room, size_t bytes)
{
    int64_t wide = *room;
    const hra_status status = make_room(array, count, &wide, bytes);

    *room = (int)wide;
    return status;
}

/* A message from those that are free. Messages may move: pointers to them do not outlive this. */
static hra_status new_message(struct play *p, int *out)
{
    if (p->free_message < 0) {
        int room = p->messages;
        const int before = p->messages;
        HRA_TRY(make_int_room((void **)&p->message, before, &room, sizeof(*p->message)));
        p->messages = room;
        for (int i = room - 1; i >= before; i--) {
            p->message[i].next = p->free_message;
            p->free_message = i;
        }
    }
    *out = p->free_message;
    p->free_message = p->message[*out].next;
    return HRA_OK;
}

static hra_status new_group(struct play *p, int *out)
{
    if (p->free_group < 0) {
        int room = p->groups;
        const int before = p->groups;
        HRA_TRY(make_int_room((void **)&p->group, before, &room, sizeof(*p->group)));
        p->groups = room;
        for (int i = room - 1; i >= before; i--) {
            p->group[i].next = p->free_group;
            p->free_group = i;
        }
    }
    *out = p->free_group;
    p->free_group = p->group[*out].next;
    return HRA_OK;
}

/* ---- The ranks that can go on ---- */

/* A rank waits for its turn; none does twice at a time. */
static void push_rank(struct play *p, int rank)
{
    p->turn[(p->next + p->turns++) % p->actors] = rank;
}

static int pop_rank(struct play *p)
{
    const int rank = p->turn[p->next];

    p->next = p->next + 1 < p->actors ? p->next + 1 : 0;
    p->turns--;
    return rank;
}

/* ---- Spans ---- */

static hra_status keep_span(struct play *p, int rank, hra_span span)
{
    struct hra_model *m = p->out;

    if (rank >= m->watched || span.end_s <= span.begin_s)
        return HRA_OK;
    HRA_TRY(make_room((void **)&m->span[rank], m->spans[rank], &p->span_room[rank], sizeof(span)));
    m->span[rank][m->spans[rank]++] = span;
    return HRA_OK;
}

/* The stream of a rank does something for so long. */
static hra_status spend(struct play *p, int rank, hra_span_kind kind, double seconds, int round, int peer)
{
    struct actor *a = &p->actor[rank];
    struct hra_model_rank *r = &p->out->rank[rank];
    double *const sum = kind == HRA_SPAN_COMPUTE ? &r->compute
                        : kind == HRA_SPAN_OTHER ? &r->other
                                                 : &r->waiting;
    const double begin = a->now;

    *sum += seconds;
    a->now += seconds;
    return keep_span(
        p, rank, (hra_span){.kind = kind, .round = round, .peer = peer, .begin_s = begin, .end_s = a->now});
}

/* ---- Links ---- */

static int same_node(const struct play *p, int a, int b)
{
    return a / p->machine->node_ranks == b / p->machine->node_ranks;
}

static const hra_link *link_of(const struct play *p, int far)
{
    return far ? &p->machine->between : &p->machine->inside;
}

int hra_machine_link(const hra_machine *machine, const hra_link *link, int rank)
{
    const int node = machine->node_ranks, each = (node - 1) / link->sharing + 1;
    return rank / node * each + rank % node / link->sharing;
}

/* Put a message behind what its links have to carry. Returns when it is there. */
static hra_status carry(struct play *p, const struct message *m, double *there)
{
    const hra_link *link = link_of(p, m->far);
    double *const *busy = m->far ? p->between : p->inside;
    const double ready = fmax(m->ready[0], m->ready[1]), seconds = (double)m->bytes / link->rate;
    double last = 0;

    for (int end = 0; end < 2; end++) {
        double *until = &busy[end][hra_machine_link(p->machine, link, m->rank[end])];
        *until = fmax(*until, ready) + seconds;
        last = fmax(last, *until);
    }
    *there = last + link->latency_s;
    for (int end = 0; end < 2; end++)
        HRA_TRY(keep_span(p, m->rank[end],
                          (hra_span){.kind = end == 0 ? HRA_SPAN_SEND : HRA_SPAN_RECEIVE,
                                     .round = m->round[end],
                                     .peer = m->peer[end],
                                     .gradient = m->gradient,
                                     .begin_s = last - seconds,
                                     .end_s = *there,
                                     .bytes = m->bytes}));
    return HRA_OK;
}

/* ---- Messages ---- */

static void end_over(struct play *p, int message, int end, double over)
{
    struct message *m = &p->message[message];

    m->over[end] = over;
    if (m->waiter[end]) {
        m->waiter[end] = 0;
        push_rank(p, m->rank[end]);
    }
}

/* A group may be opened when it is the first of its rank; that is done from a list, not by recursion. */
static hra_status want_open(struct play *p, int group)
{
    HRA_TRY(make_int_room((void **)&p->opening, p->openings, &p->opening_room, sizeof(*p->opening)));
    p->opening[p->openings++] = group;
    return HRA_OK;
}

/* All messages of a rank's first group are known. */
static hra_status close_group(struct play *p, int group)
{
    struct group *g = &p->group[group];
    struct actor *a = &p->actor[g->rank];

    a->group_over = g->over;
    for (int i = g->first; i < g->first + g->count; i++)
        end_over(p, a->member[i] / 2, a->member[i] % 2, g->over);
    a->group = g->next;
    if (a->group >= 0)
        HRA_TRY(want_open(p, a->group));
    g->next = p->free_group;
    p->free_group = group;
    return HRA_OK;
}

/* One end of a message may begin. When both may, it travels. */
static hra_status open_end(struct play *p, int message, int end, double ready)
{
    struct message *m = &p->message[message];
    double there;

    m->open[end] = 1;
    m->ready[end] = ready;
    if (!m->open[1 - end])
        return HRA_OK;
    HRA_TRY(carry(p, m, &there));
    for (int e = 0; e < 2; e++) {
        const int group = m->group[e];
        if (group < 0) {
            end_over(p, message, e, there);
            continue;
        }
        p->group[group].over = fmax(p->group[group].over, there);
        if (--p->group[group].pending == 0)
            HRA_TRY(close_group(p, group));
    }
    return HRA_OK;
}

static hra_status open_groups(struct play *p)
{
    while (p->openings > 0) {
        const int group = p->opening[--p->openings];
        struct group *g = &p->group[group];
        struct actor *a = &p->actor[g->rank];
        const double ready = fmax(g->begun, a->group_over);
        const int first = g->first, count = g->count;

        for (int i = first; i < first + count; i++) /* the last one may close the group */
            HRA_TRY(open_end(p, a->member[i] / 2, a->member[i] % 2, ready));
    }
    return HRA_OK;
}

/* The message whose other end is in the list of actor `other`, taken from it; -1: there is none. */
static int find_other_end(struct play *p, int other, int end, int distance)
{
    struct actor *a = &p->actor[other];

    for (int i = a->unmatched, before = -1; i >= 0; before = i, i = p->message[i].next) {
        if (p->message[i].rank[end] >= 0 || p->message[i].distance != distance)
            continue;
        if (before < 0)
            a->unmatched = p->message[i].next;
        else
            p->message[before].next = p->message[i].next;
        if (a->unmatched_last == i)
            a->unmatched_last = before;
        return i;
    }
    return -1;
}

/* A message for one end of a move: the other end's, or a new one. */
static hra_status meet(struct play *p, int rank, const struct hra_move *move, int64_t bytes, int *out)
{
    struct actor *a = &p->actor[rank];
    const int end = !move->sends, way = move->sends ? move->peer - rank : rank - move->peer;
    const int distance = way < 0 ? way + p->out->ranks : way;

    *out = find_other_end(p, move->peer % p->actors, end, distance);
    if (*out < 0) {
        HRA_TRY(new_message(p, out));
        p->message[*out] = (struct message){.rank = {-1, -1},
                                            .far = !same_node(p, rank, move->peer),
                                            .distance = distance,
                                            .group = {-1, -1},
                                            .over = {-1, -1},
                                            .bytes = bytes,
                                            .gradient = move->payload == HRA_DKV,
                                            .ends = 2,
                                            .next = -1};
        if (a->unmatched < 0)
            a->unmatched = *out;
        else
            p->message[a->unmatched_last].next = *out;
        a->unmatched_last = *out;
    }
    struct message *m = &p->message[*out];
    if (m->bytes != bytes || m->gradient != (move->payload == HRA_DKV))
        return HRA_FAIL(HRA_ERR_ARG,
                        "schedule: rank %d has a message of %lld bytes where rank %d has one of %lld", rank,
                        (long long)bytes, move->peer, (long long)m->bytes);
    m->rank[end] = rank;
    m->peer[end] = move->peer;
    m->round[end] = a->round;
    return HRA_OK;
}

static void finish_end(struct play *p, int message)
{
    struct message *m = &p->message[message];

    if (--m->ends > 0)
        return;
    m->next = p->free_message;
    p->free_message = message;
}

/* ---- What a rank does ---- */

/* What adding dK/dV that came home reads and writes: both sums, and a sum or, where that is the last one, gradients. */
static double add_bytes(const struct hra_costs *c, int64_t bytes)
{
    const hra_type type = c->plan->problem.type;
    const double written = c->plan->pass[HRA_BACKWARD].opens == 0
                               ? (double)hra_type_bytes(type) / (double)hra_type_bytes(hra_type_sums(type))
                               : 1;
    return (2 + written) * (double)bytes;
}

/* Finish what is under way on a buffer, as the executor does. *blocked is 1 where the stream has to wait for something of
 * which nobody knows yet when it ends: then this is asked again. */
static hra_status settle(struct play *p, int rank, int payload, int buffer, int reading, int *blocked)
{
    struct actor *a = &p->actor[rank];

    for (int i = 0; i < a->actives;) {
        const struct active move = a->active[i];
        if (move.payload != payload || buffer < move.buffer || buffer > move.last ||
            (reading && move.sends)) {
            i++;
            continue;
        }
        struct message *m = &p->message[move.message];
        const double over = m->over[!move.sends];
        if (over < 0) {
            m->waiter[!move.sends] = 1;
            *blocked = 1;
            return HRA_OK;
        }
        if (over > a->now)
            HRA_TRY(spend(p, rank, HRA_SPAN_WAIT, over - a->now, a->round, m->peer[!move.sends]));
        finish_end(p, move.message);
        a->actives--;
        memmove(&a->active[i], &a->active[i + 1], (size_t)(a->actives - i) * sizeof(*a->active));
        if (move.add && !move.sends)
            HRA_TRY(spend(p, rank, HRA_SPAN_OTHER,
                          hra_cost_memory(&p->costs, add_bytes(&p->costs, move.bytes),
                                          hra_cost_launches(move.last - move.buffer + 1)),
                          a->round, -1));
    }
    return HRA_OK;
}

/* One move is started: it is under way, and its message known of. */
static hra_status start_move(struct play *p, int rank, const struct hra_move *move, int group,
                             double *seconds)
{
    struct actor *a = &p->actor[rank];
    struct hra_model_rank *r = &p->out->rank[rank];
    const int64_t bytes = p->ring != NULL ? p->part_bytes[move->payload][move->part]
                                          : (int64_t)hra_plan_move_bytes(p->plan, &a->s, move);
    const int end = !move->sends;
    int message;

    HRA_TRY(meet(p, rank, move, bytes, &message));
    HRA_TRY(make_int_room((void **)&a->active, a->actives, &a->room, sizeof(*a->active)));
    a->active[a->actives++] = (struct active){.payload = move->payload,
                                              .buffer = hra_move_buffer(move),
                                              .last = hra_move_buffer(move) + move->more,
                                              .message = message,
                                              .sends = move->sends,
                                              .add = move->add,
                                              .bytes = bytes};
    r->sent += move->sends ? bytes : 0;
    r->received += move->sends ? 0 : bytes;
    r->between += move->sends && p->message[message].far ? bytes : 0;
    r->messages += move->sends;
    const hra_link *link = link_of(p, p->message[message].far);
    *seconds += link->latency_s + (double)bytes / link->rate;
    if (group < 0)
        return open_end(p, message, end, a->now);
    HRA_TRY(make_int_room((void **)&a->member, a->members, &a->member_room, sizeof(*a->member)));
    a->member[a->members++] = 2 * message + end;
    p->message[message].group[end] = group;
    p->group[group].count++;
    p->group[group].pending++;
    return HRA_OK;
}

/* What the messages of a round cost those who compute; seconds [far][sends] is how long they take by themselves. */
static void set_beside(const struct play *p, struct actor *a, double seconds[2][2])
{
    a->beside = a->slow = 0;
    for (int far = 0; far < 2; far++) {
        const double longest = fmax(seconds[far][0], seconds[far][1]);
        const double slow = far ? p->machine->between.slowdown : p->machine->inside.slowdown;
        if (slow * longest > a->slow * a->beside) { /* the kind that costs more */
            a->slow = slow;
            a->beside = longest;
        }
    }
}

/* Give back the room of members whose groups are over. */
static void drop_members(struct play *p, struct actor *a)
{
    const int over = a->group < 0 ? a->members : p->group[a->group].first;

    if (over == 0 || (over < a->members && over < 64))
        return;
    a->members -= over;
    memmove(a->member, a->member + over, (size_t)a->members * sizeof(*a->member));
    for (int g = a->group; g >= 0; g = p->group[g].next)
        p->group[g].first -= over;
}

/* Start the moves of a round. */
static hra_status start_moves(struct play *p, int rank, const struct hra_round *round)
{
    struct actor *a = &p->actor[rank];
    double seconds[2][2] = {{0, 0}, {0, 0}}; /* [far][sends] */
    int group = -1;

    for (int i = round->move0; i < round->move1; i++) {
        const struct hra_move *move = &a->s.move[i];
        const int far = !same_node(p, rank, move->peer);
        const int grouped = link_of(p, far)->grouped;
        if (grouped && group < 0) {
            drop_members(p, a);
            HRA_TRY(new_group(p, &group));
            p->group[group] = (struct group){.rank = rank, .begun = a->now, .first = a->members, .next = -1};
        }
        HRA_TRY(start_move(p, rank, move, grouped ? group : -1, &seconds[far][move->sends]));
    }
    set_beside(p, a, seconds);
    if (group < 0)
        return HRA_OK;
    if (a->group < 0) {
        a->group = group;
        HRA_TRY(want_open(p, group));
    } else
        p->group[a->group_last].next = group;
    a->group_last = group;
    return HRA_OK;
}

/* The live tiles of a run. Own parts, and all of a ring, are made of halves of blocks; what comes straight from an owner is all
 * that the rank needs of it. Heads have about the same. */
static int64_t run_tiles(const struct play *p, int rank, const struct hra_run *run)
{
    const struct actor *a = &p->actor[rank];
    const struct hra_work *work = &p->plan->work;
    int64_t tiles = 0;
    int owner = -1;

    for (int c = run->source0; c < run->source1; c++) {
        const struct hra_part *part = &a->s.part[a->s.source[c].part];
        int64_t live = 0;
        if (work->needs == NULL || part->owner == rank) {
            live = hra_work_live(work, rank, part);
        } else if (part->owner != owner) {
            for (int h = 0; h < HRA_HALVES; h++)
                live += work->live[((int64_t)rank * work->ranks + part->owner) * HRA_HALVES + h];
        }
        tiles += live * part->head1 / work->heads_kv - live * part->head0 / work->heads_kv;
        owner = part->owner;
    }
    return tiles;
}

/* K/V heads that a run is about, from the first to the last. */
static int count_heads(const struct hra_schedule *s, const struct hra_run *run, int heads_kv)
{
    int head0 = heads_kv, head1 = 0;

    for (int c = run->source0; c < run->source1; c++) {
        const struct hra_part *part = &s->part[s->source[c].part];
        head0 = part->head0 < head0 ? part->head0 : head0;
        head1 = part->head1 > head1 ? part->head1 : head1;
    }
    return head0 < head1 ? head1 - head0 : 0;
}

/* Count what the runs of the rounds that are there compute. */
static void count_tiles(const struct play *p, int rank)
{
    const struct actor *a = &p->actor[rank];

    for (int i = 0; i < a->s.runs; i++)
        a->tiles[i] = run_tiles(p, rank, &a->s.run[i]);
}

/* The rounds that come next are there. */
static hra_status fetch(struct play *p, int rank)
{
    struct actor *a = &p->actor[rank];
    struct hra_schedule *s = &p->scratch;

    if (p->ring == NULL || a->round < a->round1)
        return HRA_OK;
    a->round0 = a->round1;
    a->round1 = a->round0 + WINDOW < p->rounds ? a->round0 + WINDOW : p->rounds;
    hra_schedule_drop_rounds(s);
    HRA_TRY(hra_ring_write(s, p->ring, rank, a->round0, a->round1));
    if (s->moves > WINDOW * ROUND_MOVES || s->runs > WINDOW || s->sources > WINDOW)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "%d moves and %d runs in %d rounds of a ring are more than a forecast takes",
                        s->moves, s->runs, s->rounds);
    struct window *w = &p->window[rank];
    memcpy(w->round, s->round, (size_t)s->rounds * sizeof(*s->round));
    if (s->moves > 0)
        memcpy(w->move, s->move, (size_t)s->moves * sizeof(*s->move));
    if (s->runs > 0) {
        memcpy(w->run, s->run, (size_t)s->runs * sizeof(*s->run));
        memcpy(w->source, s->source, (size_t)s->sources * sizeof(*s->source));
    }
    a->s = *s;
    a->s.round = w->round;
    a->s.move = w->move;
    a->s.run = w->run;
    a->s.source = w->source;
    a->tiles = w->tiles;
    count_tiles(p, rank);
    return HRA_OK;
}

/* The whole schedule is there. */
static hra_status fetch_all(struct play *p, int rank)
{
    struct actor *a = &p->actor[rank];

    HRA_TRY(p->plan->generate(&a->s, &p->plan->work, rank, p->pass));
    HRA_TRY(hra_alloc_unset((void **)&a->tiles, a->s.runs, sizeof(*a->tiles), "forecast"));
    count_tiles(p, rank);
    return HRA_OK;
}

static hra_status compute(struct play *p, int rank, const struct hra_run *run)
{
    struct actor *a = &p->actor[rank];
    const int owner = run->source0 < run->source1 ? a->s.part[a->s.source[run->source0].part].owner : -1;
    double seconds =
        hra_cost_kernel(&p->costs, a->tile_s, a->tiles[run - a->s.run], run->query1 - run->query0,
                        count_heads(&a->s, run, p->plan->problem.heads_kv));

    /* While messages are beside it, its rate is less by `slow`. */
    const double shared = fmin(a->beside, seconds / (1 - a->slow));
    seconds += shared * a->slow;
    a->beside -= shared;
    return spend(p, rank, HRA_SPAN_COMPUTE, seconds, a->round, owner);
}

static hra_status settle_moves(struct play *p, int rank, const struct hra_round *round, int *blocked)
{
    const struct hra_schedule *s = &p->actor[rank].s;

    for (int i = round->move0; i < round->move1; i++)
        for (int n = 0; n <= s->move[i].more; n++) {
            HRA_TRY(settle(p, rank, s->move[i].payload, hra_move_buffer(&s->move[i]) + n, s->move[i].sends,
                           blocked));
            if (*blocked)
                return HRA_OK;
        }
    return HRA_OK;
}

static hra_status settle_run(struct play *p, int rank, const struct hra_run *run, int *blocked)
{
    const struct hra_schedule *s = &p->actor[rank].s;

    for (int c = run->source0; c < run->source1; c++) {
        const struct hra_source *source = &s->source[c];
        if (source->buffer != HRA_OWN)
            HRA_TRY(settle(p, rank, HRA_KV, source->buffer, 1, blocked));
        if (!*blocked && p->pass == HRA_BACKWARD && source->gradient != HRA_OWN)
            HRA_TRY(settle(p, rank, HRA_DKV, source->gradient, 0, blocked));
        if (*blocked)
            return HRA_OK;
    }
    return HRA_OK;
}

/* All that is under way, in the order in which it was started. */
static hra_status settle_all(struct play *p, int rank, int *blocked)
{
    struct actor *a = &p->actor[rank];

    while (a->actives > 0 && !*blocked) {
        const struct active move = a->active[0];
        HRA_TRY(settle(p, rank, move.payload, move.buffer, 0, blocked));
    }
    return HRA_OK;
}

/* Own parts into the buffers from which they are sent, but for those that are sent from where they are: K and V, read and
 * written. */
static hra_status load_s(double *out_s, const struct play *p, int rank)
{
    const struct hra_schedule *s = &p->actor[rank].s;
    struct hra_straight straight;
    double bytes = 0;
    int loads = 0;

    HRA_TRY(hra_schedule_straight(&straight, s, hra_cost_straight(&p->costs)));
    for (int i = 0; i < s->loads; i++)
        if (straight.wanted[i]) {
            bytes += 2.0 * (double)hra_plan_part_bytes(p->plan, &s->part[s->load[i].part], HRA_KV, NULL);
            loads++;
        }
    *out_s = hra_cost_memory(&p->costs, bytes, hra_cost_launches(loads));
    hra_straight_clear(&straight);
    return HRA_OK;
}

static int is_last_round(const struct play *p, const struct actor *a)
{
    return a->round == (p->ring != NULL ? p->rounds : a->s.rounds);
}

/* The rank's stream until it has to wait for what nobody knows the end of, or for as long as a round. */
static hra_status advance(struct play *p, int rank, int *blocked)
{
    struct actor *a = &p->actor[rank];

    if (a->phase == END) {
        HRA_TRY(settle_all(p, rank, blocked));
        if (*blocked)
            return HRA_OK;
        a->round = -1;
        HRA_TRY(spend(p, rank, HRA_SPAN_OTHER, hra_cost_behind(&p->costs, rank), -1, -1));
        a->phase = DONE;
        return HRA_OK;
    }
    const struct hra_round *round = &a->s.round[a->round - a->round0];
    if (a->phase == MOVES) {
        HRA_TRY(settle_moves(p, rank, round, blocked));
        if (*blocked)
            return HRA_OK;
        HRA_TRY(start_moves(p, rank, round));
        HRA_TRY(open_groups(p));
        a->phase = RUNS;
        a->run = round->run0;
    }
    for (; a->run < round->run1; a->run++) {
        HRA_TRY(settle_run(p, rank, &a->s.run[a->run], blocked));
        if (*blocked)
            return HRA_OK;
        HRA_TRY(compute(p, rank, &a->s.run[a->run]));
    }
    a->round++;
    a->phase = is_last_round(p, a) ? END : MOVES;
    return a->phase == END ? HRA_OK : fetch(p, rank);
}

/* ---- The whole ---- */

/* One rank with the queries of this rank and all keys. */
static double alone_s(const struct play *p, int rank)
{
    const struct hra_rank_stats *s = &p->plan->stats[rank];
    const struct hra_layout *l = p->plan->layout;

    return hra_cost_kernel(&p->costs, p->actor[rank].tile_s, s->work,
                           l->rank_tile[rank + 1] - l->rank_tile[rank], p->plan->problem.heads_kv) +
           hra_cost_before(&p->costs, rank) + hra_cost_behind(&p->costs, rank);
}

static hra_status open_actor(struct play *p, int rank)
{
    struct actor *a = &p->actor[rank];
    double loads_s;

    *a = (struct actor){.unmatched = -1, .group = -1, .tile_s = hra_cost_tile(&p->costs, rank)};
    HRA_TRY(p->ring != NULL ? fetch(p, rank) : fetch_all(p, rank));
    p->out->rank[rank].alone = alone_s(p, rank);
    HRA_TRY(spend(p, rank, HRA_SPAN_OTHER, hra_cost_before(&p->costs, rank), -1, -1));
    HRA_TRY(load_s(&loads_s, p, rank));
    HRA_TRY(spend(p, rank, HRA_SPAN_OTHER, loads_s, -1, -1));
    a->phase = is_last_round(p, a) ? END : MOVES;
    push_rank(p, rank);
    return HRA_OK;
}

static void close_actor(const struct play *p, struct actor *a)
{
    if (p->ring == NULL) {
        hra_schedule_clear(&a->s);
        free(a->tiles);
    }
    free(a->active);
    free(a->member);
}

static hra_status open_links(struct play *p)
{
    const int ranks = p->out->ranks;

    for (int end = 0; end < 2; end++) {
        HRA_TRY(hra_alloc((void **)&p->inside[end], ranks, sizeof(double), "forecast"));
        HRA_TRY(hra_alloc((void **)&p->between[end], ranks, sizeof(double), "forecast"));
    }
    return HRA_OK;
}

/* What all ranks share of a ring. */
static hra_status open_ring(struct play *p)
{
    HRA_TRY(hra_ring_open(&p->ring, &p->plan->work, p->pass));
    HRA_TRY(hra_ring_parts(&p->scratch, p->ring));
    p->rounds = hra_ring_rounds(p->ring);
    for (int payload = 0; payload < HRA_PAYLOADS; payload++) {
        HRA_TRY(hra_alloc((void **)&p->part_bytes[payload], p->scratch.parts, sizeof(int64_t), "forecast"));
        for (int i = 0; i < p->scratch.parts; i++)
            p->part_bytes[payload][i] =
                (int64_t)hra_plan_part_bytes(p->plan, &p->scratch.part[i], (enum hra_payload)payload, NULL);
    }
    return HRA_OK;
}

/* Live tiles of rank against the block of the rank that is `steps` after it: all, or of half 0. */
static int64_t live_after(const struct hra_work *work, int rank, int steps, int half_only)
{
    const int owner = rank + steps < work->ranks ? rank + steps : rank + steps - work->ranks;
    const int64_t *live = work->live + ((int64_t)rank * work->ranks + owner) * HRA_HALVES;

    return half_only ? live[0] : live[0] + live[1];
}

/* Do two ranks, and those that are as far from them, have the same rows and the same to do? by_halves: with each half of a
 * block; else with the blocks. */
static int same_work(const hra_plan *plan, int a, int b, int by_halves)
{
    const struct hra_work *work = &plan->work;
    const struct hra_rank_stats *x = &plan->stats[a], *y = &plan->stats[b];
    const int tiles = work->rank_tile[a + 1] - work->rank_tile[a];

    if (x->tiles_full != y->tiles_full || x->tiles_partial != y->tiles_partial || x->work != y->work ||
        tiles != work->rank_tile[b + 1] - work->rank_tile[b])
        return 0;
    for (int t = 0; t < tiles; t++)
        if (plan->layout->tile[work->rank_tile[a] + t].rows !=
            plan->layout->tile[work->rank_tile[b] + t].rows)
            return 0;
    for (int steps = 0; steps < work->ranks; steps++)
        if (live_after(work, a, steps, 0) != live_after(work, b, steps, 0) ||
            (by_halves && live_after(work, a, steps, 1) != live_after(work, b, steps, 1)))
            return 0;
    return 1;
}

/* Are blocks cut by keys, and not by heads or not at all? */
static int cuts_keys(const struct play *p)
{
    return p->scratch.parts > p->out->ranks && p->scratch.part[0].head1 == p->plan->problem.heads_kv;
}

/* How many ranks have to be played: of a ring all of whose nodes have the same to do, which full attention of equal shards and
 * causal attention of zigzag ones give, those of one node. Whatever holds of rank r then holds of the rank that is as many
 * further on. */
static int find_period(const struct play *p)
{
    const int ranks = p->out->ranks;
    const int period = p->machine->node_ranks < ranks ? p->machine->node_ranks : p->machine->inside.sharing;

    if (p->ring == NULL || period >= ranks || ranks % period != 0 || p->out->watched > period)
        return ranks;
    for (int r = period; r < ranks; r++)
        if (!same_work(p->plan, r - period, r, cuts_keys(p)))
            return ranks;
    return period;
}

static hra_status open_play(struct play *p)
{
    const int ranks = p->out->ranks, watched = p->out->watched;
    const struct hra_work *work = &p->plan->work;
    const int groups = p->plan->generate == hra_schedule_heads ? hra_work_groups(work) : 1;

    if (work->needs != NULL && work->needs->made_start[ranks] > MOST_VISITS / groups)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "a forecast lists the messages of a halo, at most %d; this one has %lld in %d groups",
                        MOST_VISITS, (long long)work->needs->made_start[ranks], groups);
    HRA_TRY(hra_alloc((void **)&p->out->rank, ranks, sizeof(*p->out->rank), "forecast"));
    HRA_TRY(hra_alloc((void **)&p->out->span, watched, sizeof(*p->out->span), "forecast"));
    HRA_TRY(hra_alloc((void **)&p->out->spans, watched, sizeof(*p->out->spans), "forecast"));
    HRA_TRY(hra_alloc((void **)&p->span_room, watched, sizeof(*p->span_room), "forecast"));
    HRA_TRY(hra_alloc((void **)&p->turn, ranks, sizeof(*p->turn), "forecast"));
    HRA_TRY(open_links(p));
    if (p->plan->generate == hra_schedule_ring)
        HRA_TRY(open_ring(p));
    p->actors = find_period(p);
    if (p->ring != NULL)
        HRA_TRY(hra_alloc_unset((void **)&p->window, p->actors, sizeof(*p->window), "forecast"));
    HRA_TRY(hra_alloc((void **)&p->actor, p->actors, sizeof(*p->actor), "forecast"));
    for (int r = 0; r < p->actors; r++)
        HRA_TRY(open_actor(p, r));
    return HRA_OK;
}

static void close_play(struct play *p)
{
    for (int r = 0; p->actor != NULL && r < p->actors; r++)
        close_actor(p, &p->actor[r]);
    hra_schedule_clear(&p->scratch);
    hra_ring_close(p->ring);
    for (int payload = 0; payload < HRA_PAYLOADS; payload++)
        free(p->part_bytes[payload]);
    for (int end = 0; end < 2; end++) {
        free(p->inside[end]);
        free(p->between[end]);
    }
    free(p->window);
    free(p->actor);
    free(p->message);
    free(p->group);
    free(p->opening);
    free(p->turn);
    free(p->span_room);
}

/* All ranks to their ends. */
static hra_status play_out(struct play *p)
{
    HRA_TRY(open_play(p));
    while (p->turns > 0) {
        const int rank = pop_rank(p);
        int blocked = 0;
        HRA_TRY(advance(p, rank, &blocked));
        if (!blocked && p->actor[rank].phase != DONE)
            push_rank(p, rank);
    }
    for (int r = 0; r < p->actors; r++) {
        if (p->actor[r].phase != DONE)
            return HRA_FAIL(HRA_ERR_ARG, "schedule: rank %d waits for ever in round %d", r,
                            p->actor[r].round);
        p->out->rank[r].seconds = p->actor[r].now;
    }
    for (int r = p->actors; r < p->out->ranks; r++)
        p->out->rank[r] = p->out->rank[r - p->actors];
    return HRA_OK;
}

hra_status hra_model_play(struct hra_model *out, const hra_plan *plan, const hra_machine *machine,
                          hra_pass pass, int watched)
{
    const int ranks = plan->work.ranks;
    struct play p = {.plan = plan,
                     .machine = machine,
                     .pass = pass,
                     .costs = {plan, machine, pass},
                     .out = out,
                     .free_message = -1,
                     .free_group = -1};

    *out = (struct hra_model){.ranks = ranks, .watched = watched < ranks ? watched : ranks};
    const hra_status status = play_out(&p);
    close_play(&p);
    return status;
}

void hra_model_clear(struct hra_model *m)
{
    for (int r = 0; m->span != NULL && r < m->watched; r++)
        free(m->span[r]);
    free(m->span);
    free(m->spans);
    free(m->rank);
    *m = (struct hra_model){.ranks = 0};
}

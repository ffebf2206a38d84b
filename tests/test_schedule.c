/* test_schedule.c - the schedules of all ranks carried out together with sets in place of tensors. */
#include "src/schedule.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { RANKS = 9, PARTS = RANKS * HRA_HALVES, BUFFERS = 3 * HRA_HALVES, MESSAGES = 128 };

static uint64_t random_state;

/* 0 .. below - 1 */
static int draw(int below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((random_state >> 33) % (uint64_t)below);
}

/* ---- Problems: who has live tiles against whom ------------------------------------------------- */

enum pattern {
    NONE,
    ALL,
    CAUSAL,
    BANDED,
    SPARSE,
    DENSE,
    ONE_PAIR,
    OWN_ONLY,
    OTHERS_ONLY,
    SECOND_HALVES,
    PATTERNS
};

struct problem {
    struct hra_work work;
    int rank_tile[RANKS + 1];
    int64_t live[RANKS][RANKS][HRA_HALVES]; /* the first ranks^2 entries are used, dense */
};

static int64_t *live_at(struct problem *p, int rank, int owner, int half)
{
    return &p->live[0][0][0] + ((int64_t)rank * p->work.ranks + owner) * HRA_HALVES + half;
}

static int wanted(enum pattern pattern, int ranks, int rank, int owner, int half)
{
    switch (pattern) {
    case NONE:
    case ONE_PAIR:
    case PATTERNS:
        return 0;
    case ALL:
        return 1;
    case CAUSAL:
        return owner <= rank;
    case BANDED:
        return abs(owner - rank) <= 1;
    case SPARSE:
        return draw(ranks) == 0;
    case DENSE:
        return draw(4) > 0;
    case OWN_ONLY:
        return owner == rank;
    case OTHERS_ONLY:
        return owner != rank;
    case SECOND_HALVES:
        return half == 1 && draw(2) == 0;
    }
    return 0;
}

/* tiles < 0: some ranks have none, some one, the others up to 6. */
static void make_problem(struct problem *p, int ranks, enum pattern pattern, int tiles)
{
    memset(p, 0, sizeof(*p));
    p->work = (struct hra_work){ranks, 1 + draw(3), p->rank_tile, &p->live[0][0][0]};
    for (int r = 0; r < ranks; r++) {
        const int few = draw(5);
        p->rank_tile[r + 1] = p->rank_tile[r] + (tiles >= 0 ? tiles : few < 2 ? few : 1 + draw(6));
    }
    const int one = draw(ranks), other = draw(ranks);
    for (int r = 0; r < ranks; r++)
        for (int o = 0; o < ranks; o++)
            for (int h = 0; h < HRA_HALVES; h++)
                if (p->rank_tile[r] < p->rank_tile[r + 1] &&
                    hra_work_half(&p->work, o, h) < hra_work_half(&p->work, o, h + 1) &&
                    (wanted(pattern, ranks, r, o, h) || (pattern == ONE_PAIR && r == one && o == other)))
                    *live_at(p, r, o, h) = 1 + draw(9);
}

/* Live tiles of a rank against a part, counted from tile ranges: half h of n tiles begins at h n / 2 rounded up. */
static int64_t live_of(struct problem *p, int rank, const struct hra_part *part)
{
    const int first = p->rank_tile[part->owner], tiles = p->rank_tile[part->owner + 1] - first;
    const int middle = first + tiles - tiles / 2;

    for (int end = 0; end < 2; end++) {
        const int tile = end ? part->key_tile1 : part->key_tile0, border = first + (end ? tiles : 0);
        cr_assert(tile == border || tile == middle, "%d is no border of tiles %d to %d", tile, first,
                  first + tiles);
    }
    return (part->key_tile0 == first ? *live_at(p, rank, part->owner, 0) : 0) +
           (part->key_tile1 == first + tiles ? *live_at(p, rank, part->owner, 1) : 0);
}

/* ---- The simulator ----------------------------------------------------------------------------- */

/* What lies in a buffer. */
struct content {
    int part;         /* -1: nobody knows */
    int added[RANKS]; /* dK/dV: how often each rank has added to them since they began at 0 */
};

/* One message from one rank to another. Nothing is kept in between: a send is over when its receive has begun. */
struct message {
    struct hra_move move; /* as the sender describes it */
    struct content content;
    int sent, expected;
};

struct channel {
    struct message message[MESSAGES];
    int sent, expected;
};

struct player {
    struct hra_schedule schedule;
    struct content buffer[HRA_PAYLOADS][BUFFERS];
    struct content own[PARTS]; /* our own sums, by part; added is never begun again */
    int ran[PARTS];
    int number[RANKS * MESSAGES]; /* [moves] which message of its channel a move is */
    char finished[RANKS * MESSAGES];
    int round, run, moved,
        started; /* where we are: the next run of a round, whether its moves have started */
};

struct game {
    struct problem problem;
    hra_pass pass;
    int parts; /* of one block */
    struct player player[RANKS];
    struct channel channel[RANKS][RANKS]; /* from, to */
};

static void receive(struct game *g, int rank, const struct hra_move *move, const struct message *message)
{
    struct player *p = &g->player[rank];
    const struct hra_move *sent = &message->move;

    cr_assert(
        sent->payload == move->payload && sent->part == move->part && sent->from == move->from &&
            sent->to == move->to && sent->add == move->add,
        "rank %d sends part %d, payload %d, %d to %d, add %d; rank %d expects part %d, payload %d, %d to "
        "%d, add %d",
        move->peer, sent->part, sent->payload, sent->from, sent->to, sent->add, rank, move->part,
        move->payload, move->from, move->to, move->add);
    p->buffer[move->payload][move->to] = message->content;
    for (int r = 0; move->add && r < g->problem.work.ranks; r++)
        p->own[move->part].added[r] += message->content.added[r];
}

/* Finish what is under way on a buffer, as the executor does. 0: that takes another rank's doing. */
static int settle(struct game *g, int rank, enum hra_payload payload, int buffer, int reading)
{
    struct player *p = &g->player[rank];

    for (int i = 0; i < p->started; i++) {
        const struct hra_move *move = &p->schedule.move[i];
        if (p->finished[i] || move->payload != payload || hra_move_buffer(move) != buffer ||
            (reading && move->sends))
            continue;
        const struct channel *c = move->sends ? &g->channel[rank][move->peer] : &g->channel[move->peer][rank];
        const struct message *message = &c->message[p->number[i]];
        if (!message->sent || !message->expected)
            return 0;
        if (!move->sends)
            receive(g, rank, move, message);
        p->finished[i] = 1;
    }
    return 1;
}

static void start_move(struct game *g, int rank, int i)
{
    struct player *p = &g->player[rank];
    const struct hra_move *move = &p->schedule.move[i];
    struct content *content = &p->buffer[move->payload][hra_move_buffer(move)];
    struct channel *c = move->sends ? &g->channel[rank][move->peer] : &g->channel[move->peer][rank];

    p->number[i] = move->sends ? c->sent++ : c->expected++;
    cr_assert(p->number[i] < MESSAGES);
    struct message *message = &c->message[p->number[i]];
    if (move->sends) {
        cr_assert(content->part == move->part, "rank %d round %d sends part %d; buffer %d holds part %d",
                  rank, p->round, move->part, move->from, content->part);
        *message = (struct message){*move, *content, 1, message->expected};
    } else {
        cr_assert(move->add == 0 || p->schedule.part[move->part].owner == rank);
        message->expected = 1;
        content->part = -1; /* whatever it held is being overwritten */
    }
}

static void run_source(struct game *g, int rank, const struct hra_source *source)
{
    struct player *p = &g->player[rank];
    const int own = p->schedule.part[source->part].owner == rank;

    p->ran[source->part]++;
    if (source->buffer == HRA_OWN)
        cr_assert(own, "rank %d has no part %d", rank, source->part);
    else
        cr_assert(p->buffer[HRA_KV][source->buffer].part == source->part,
                  "rank %d round %d computes part %d; buffer %d holds part %d", rank, p->round, source->part,
                  source->buffer, p->buffer[HRA_KV][source->buffer].part);
    if (g->pass == HRA_FORWARD)
        return;
    cr_assert(own == (source->gradient == HRA_OWN));
    if (own) {
        p->own[source->part].added[rank]++;
        return;
    }
    struct content *sums = &p->buffer[HRA_DKV][source->gradient];
    if (source->zero)
        *sums = (struct content){.part = source->part};
    cr_assert(sums->part == source->part, "rank %d round %d adds to part %d; buffer %d holds part %d", rank,
              p->round, source->part, source->gradient, sums->part);
    sums->added[rank]++;
}

/* Do what can be done next: start the moves of a round, or one run. 0: we wait for another rank, or are done. */
static int step(struct game *g, int rank)
{
    struct player *p = &g->player[rank];
    const struct hra_schedule *s = &p->schedule;

    if (p->round == s->rounds)
        return 0;
    const struct hra_round *round = &s->round[p->round];
    if (!p->moved) {
        for (int i = round->move0; i < round->move1; i++)
            if (!settle(g, rank, s->move[i].payload, hra_move_buffer(&s->move[i]), s->move[i].sends))
                return 0;
        for (int i = round->move0; i < round->move1; i++)
            start_move(g, rank, i);
        p->started = round->move1;
        p->moved = 1;
        p->run = round->run0;
        return 1;
    }
    if (p->run < round->run1) {
        const struct hra_run *run = &s->run[p->run];
        for (int c = run->source0; c < run->source1; c++)
            if ((s->source[c].buffer != HRA_OWN && !settle(g, rank, HRA_KV, s->source[c].buffer, 1)) ||
                (g->pass == HRA_BACKWARD && s->source[c].gradient != HRA_OWN &&
                 !settle(g, rank, HRA_DKV, s->source[c].gradient, 0)))
                return 0;
        for (int c = run->source0; c < run->source1; c++)
            run_source(g, rank, &s->source[c]);
        p->run++;
        return 1;
    }
    p->round++;
    p->moved = 0;
    return 1;
}

static void begin(struct game *g, hra_pass pass)
{
    const int ranks = g->problem.work.ranks;

    g->pass = pass;
    g->parts = pass == HRA_BACKWARD ? HRA_HALVES : 1;
    memset(g->player, 0, sizeof(g->player));
    memset(g->channel, 0, sizeof(g->channel));
    for (int r = 0; r < ranks; r++) {
        struct player *p = &g->player[r];
        const int queries = g->problem.rank_tile[r + 1] - g->problem.rank_tile[r];
        cr_assert(eq(int, hra_schedule_ring(&p->schedule, &g->problem.work, r, pass), HRA_OK));
        const struct hra_schedule *s = &p->schedule;
        cr_assert(hra_schedule_check(s, &g->problem.work, r, queries, pass) == HRA_OK, "rank %d: %s", r,
                  hra_last_error());
        cr_assert(s->moves <= RANKS * MESSAGES);
        cr_assert(s->parts == g->player[0].schedule.parts && s->parts <= PARTS);
        cr_assert(s->parts == 0 || memcmp(s->part, g->player[0].schedule.part,
                                          (size_t)s->parts * sizeof(struct hra_part)) == 0,
                  "rank %d has other parts than rank 0", r);
        for (int i = 0; i < s->moves; i++) {
            const int limit = s->move[i].payload == HRA_KV ? 2 * g->parts : 3 * g->parts;
            cr_assert(s->move[i].from < limit && s->move[i].to < limit, "rank %d move %d: buffers %d to %d",
                      r, i, s->move[i].from, s->move[i].to);
        }
        for (int i = 0; i < s->runs; i++)
            cr_assert(s->run[i].query0 == 0 && s->run[i].query1 == queries);
        for (int i = 0; i < s->sources; i++)
            cr_assert(s->source[i].buffer < 2 * g->parts &&
                      (pass == HRA_FORWARD || s->source[i].gradient < 3 * g->parts));

        for (int b = 0; b < BUFFERS; b++)
            p->buffer[HRA_KV][b].part = p->buffer[HRA_DKV][b].part = -1;
        for (int i = 0; i < s->loads; i++) {
            cr_assert(s->part[s->load[i].part].owner == r && s->load[i].buffer < 2 * g->parts);
            p->buffer[HRA_KV][s->load[i].buffer].part = s->load[i].part;
        }
    }
}

/* All ranks to their ends, taking turns. `slow` never moves while another can. */
static void play(struct game *g, int slow)
{
    const int ranks = g->problem.work.ranks;

    for (int progress = 1; progress;) {
        progress = 0;
        for (int r = 0; r < ranks; r++)
            if (r != slow)
                progress |= step(g, r);
        if (!progress && slow < ranks)
            progress = step(g, slow);
    }
    for (int r = 0; r < ranks; r++) {
        struct player *p = &g->player[r];
        cr_assert(p->round == p->schedule.rounds, "rank %d of %d waits for ever in round %d of %d", r, ranks,
                  p->round, p->schedule.rounds);
        for (int i = 0; i < p->schedule.moves; i++)
            cr_assert(settle(g, r, p->schedule.move[i].payload, hra_move_buffer(&p->schedule.move[i]), 0),
                      "rank %d of %d: move %d never ends", r, ranks, i);
        for (int to = 0; to < ranks; to++)
            cr_assert(eq(int, g->channel[r][to].sent, g->channel[r][to].expected), "rank %d to %d", r, to);
    }
}

/* Does a rank at least `from` hops after the owner compute the part? */
static int needed(struct game *g, const struct hra_part *part, int from)
{
    const int ranks = g->problem.work.ranks;

    for (int t = from; t < ranks; t++)
        if (live_of(&g->problem, (part->owner + t) % ranks, part) > 0)
            return 1;
    return 0;
}

/* Nothing travels that nobody waits for. */
static void expect_no_useless_move(struct game *g, int rank)
{
    const int ranks = g->problem.work.ranks;
    const struct hra_schedule *s = &g->player[rank].schedule;

    for (int i = 0; i < s->moves; i++) {
        const struct hra_move *move = &s->move[i];
        const struct hra_part *part = &s->part[move->part];
        const int hops = (rank - part->owner + ranks) % ranks; /* of the block, to be here */
        if (move->sends || move->add)
            continue;
        cr_assert(eq(int, move->peer, (rank + ranks - 1) % ranks));
        cr_assert(hops > 0 && needed(g, part, hops), "rank %d of %d receives payload %d, part %d in vain",
                  rank, ranks, move->payload, move->part);
    }
}

static void expect_all_done(struct game *g)
{
    const int ranks = g->problem.work.ranks;
    const struct hra_schedule *s = &g->player[0].schedule;
    int tiles = 0;

    for (int i = 0; i < s->parts; i++)
        tiles += s->part[i].key_tile1 - s->part[i].key_tile0;
    cr_assert(eq(int, tiles, g->problem.rank_tile[ranks]), "parts cover all key tiles once");
    for (int r = 0; r < ranks; r++) {
        expect_no_useless_move(g, r);
        for (int i = 0; i < s->parts; i++) {
            const int owner = s->part[i].owner;
            const int once = r == owner || live_of(&g->problem, r, &s->part[i]) > 0;
            cr_assert(s->part[i].head0 == 0 && s->part[i].head1 == g->problem.work.heads_kv);
            cr_assert(eq(int, g->player[r].ran[i], once), "rank %d of %d, part %d of rank %d", r, ranks, i,
                      owner);
            if (g->pass == HRA_BACKWARD)
                cr_assert(eq(int, g->player[owner].own[i].added[r], once),
                          "dK/dV of part %d of rank %d, from rank %d of %d", i, owner, r, ranks);
        }
    }
}

static void expect_schedule(struct game *g, hra_pass pass, int slow)
{
    begin(g, pass);
    play(g, slow);
    expect_all_done(g);
    for (int r = 0; r < g->problem.work.ranks; r++)
        hra_schedule_clear(&g->player[r].schedule);
}

struct ring {
    int ranks;
    enum pattern pattern;
};

ParameterizedTestParameters(schedule, ring_computes_every_live_tile_once)
{
    static struct ring rings[RANKS * PATTERNS];

    for (int i = 0; i < RANKS * PATTERNS; i++)
        rings[i] = (struct ring){1 + i / PATTERNS, (enum pattern)(i % PATTERNS)};
    return cr_make_param_array(struct ring, rings, RANKS * PATTERNS);
}

ParameterizedTest(struct ring *ring, schedule, ring_computes_every_live_tile_once, .timeout = 120)
{
    struct game *g = malloc(sizeof(*g));

    for (int seed = 0; seed < 12; seed++) {
        random_state = (uint64_t)seed * 7919 + (uint64_t)ring->ranks * 31 + ring->pattern;
        make_problem(&g->problem, ring->ranks, ring->pattern,
                     seed == 0   ? 1
                     : seed == 1 ? 2
                     : seed == 2 ? 7
                                 : -1);
        expect_schedule(g, HRA_FORWARD, draw(ring->ranks + 1));
        expect_schedule(g, HRA_BACKWARD, draw(ring->ranks + 1));
    }
    free(g);
}

/* ---- What a ring costs --------------------------------------------------------------------------- */

/* Messages that a rank receives, and the most in one round. */
static int count_received(const struct hra_schedule *s, enum hra_payload payload, int *busiest)
{
    int all = 0;

    *busiest = 0;
    for (int r = 0; r < s->rounds; r++) {
        int here = 0;
        for (int i = s->round[r].move0; i < s->round[r].move1; i++)
            here += s->move[i].payload == payload && !s->move[i].sends;
        all += here;
        *busiest = here > *busiest ? here : *busiest;
    }
    return all;
}

Test(schedule, full_mask_receives_each_other_block_once)
{
    struct problem p;

    for (int ranks = 1; ranks <= RANKS; ranks++) {
        make_problem(&p, ranks, ALL, 4);
        for (int rank = 0; rank < ranks; rank++) {
            struct hra_schedule s = {0};
            int busiest;

            cr_assert(eq(int, hra_schedule_ring(&s, &p.work, rank, HRA_FORWARD), HRA_OK));
            cr_expect(eq(int, count_received(&s, HRA_KV, &busiest), ranks - 1));
            cr_expect(eq(int, busiest, ranks > 1), "each block in a round of its own");
            cr_expect(eq(int, s.runs, ranks));
            cr_expect(eq(int, s.loads, ranks > 1));
            hra_schedule_clear(&s);

            /* K/V in halves; dK/dV of a block go ranks - 1 hops with the home move, ours and the others' alike. */
            cr_assert(eq(int, hra_schedule_ring(&s, &p.work, rank, HRA_BACKWARD), HRA_OK));
            cr_expect(eq(int, count_received(&s, HRA_KV, &busiest), HRA_HALVES *(ranks - 1)));
            cr_expect(eq(int, count_received(&s, HRA_DKV, &busiest), HRA_HALVES *(ranks - 1)));
            cr_expect(eq(int, s.runs, HRA_HALVES *ranks));
            hra_schedule_clear(&s);
        }
    }
}

Test(schedule, causal_mask_receives_earlier_blocks_only)
{
    struct problem p;

    for (int ranks = 1; ranks <= RANKS; ranks++) {
        make_problem(&p, ranks, CAUSAL, 3);
        for (int rank = 0; rank < ranks; rank++) {
            struct hra_schedule s = {0};
            int busiest;

            cr_assert(eq(int, hra_schedule_ring(&s, &p.work, rank, HRA_FORWARD), HRA_OK));
            cr_expect(eq(int, count_received(&s, HRA_KV, &busiest), rank), "rank %d of %d", rank, ranks);
            cr_expect(eq(int, s.runs, rank + 1));
            hra_schedule_clear(&s);
        }
    }
}

Test(schedule, blocks_without_live_tiles_stay_at_home)
{
    static const enum pattern patterns[] = {NONE, OWN_ONLY};
    struct problem p;

    for (int i = 0; i < 2 * 2 * RANKS; i++) {
        struct hra_schedule s = {0};
        const hra_pass pass = (hra_pass)(i / 2 % 2);

        make_problem(&p, RANKS, patterns[i % 2], 3);
        cr_assert(eq(int, hra_schedule_ring(&s, &p.work, i / 4, pass), HRA_OK));
        cr_expect(eq(int, s.moves, 0));
        cr_expect(eq(int, s.loads, 0));
        cr_expect(eq(int, s.runs, pass == HRA_FORWARD ? 1 : HRA_HALVES), "own rows get their zeros");
        hra_schedule_clear(&s);
    }
}

Test(schedule, halves_cover_a_block)
{
    int rank_tile[] = {0, 5, 5, 6, 10};
    const struct hra_work work = {4, 1, rank_tile, NULL};
    static const int expected[4][HRA_HALVES + 1] = {{0, 3, 5}, {5, 5, 5}, {5, 6, 6}, {6, 8, 10}};

    for (int owner = 0; owner < 4; owner++)
        for (int half = 0; half <= HRA_HALVES; half++)
            cr_expect(eq(int, hra_work_half(&work, owner, half), expected[owner][half]), "%d %d", owner,
                      half);
}

Test(schedule, live_tiles_of_a_part_are_those_of_its_halves)
{
    int rank_tile[] = {0, 4, 7};
    const int64_t live[2][2][HRA_HALVES] = {{{1, 2}, {3, 4}}, {{50, 60}, {700, 800}}};
    const struct hra_work work = {2, 1, rank_tile, &live[0][0][0]};

    cr_expect(eq(i64, hra_work_live(&work, 0, &(struct hra_part){0, 0, 4, 0, 1}), 3));
    cr_expect(eq(i64, hra_work_live(&work, 1, &(struct hra_part){0, 0, 2, 0, 1}), 50));
    cr_expect(eq(i64, hra_work_live(&work, 1, &(struct hra_part){0, 2, 4, 0, 1}), 60));
    cr_expect(eq(i64, hra_work_live(&work, 0, &(struct hra_part){1, 4, 6, 0, 1}), 3));
    cr_expect(eq(i64, hra_work_live(&work, 1, &(struct hra_part){1, 6, 7, 0, 1}), 800));
    cr_expect(eq(i64, hra_work_live(&work, 1, &(struct hra_part){1, 4, 7, 0, 1}), 1500));
}

/* ---- Checking schedules ------------------------------------------------------------------------- */

/* A schedule of rank 0 of 2, each rank with two tiles and one part, 3 K/V heads. Backward ends with dK/dV coming
 * home. */
static void write_example(struct hra_schedule *s, hra_pass pass)
{
    hra_schedule_part(s, (struct hra_part){0, 0, 2, 0, 3});
    hra_schedule_part(s, (struct hra_part){1, 2, 4, 0, 3});
    hra_schedule_load(s, 0, 0);
    hra_schedule_round(s);
    hra_schedule_move(s, (struct hra_move){HRA_KV, 0, 0, 1, 1, 1, 0});
    hra_schedule_move(s, (struct hra_move){HRA_KV, 1, 0, 1, 1, 0, 0});
    hra_schedule_run(s, 0, 2);
    hra_schedule_source(s, (struct hra_source){0, HRA_OWN, HRA_OWN, 0});
    hra_schedule_round(s);
    hra_schedule_run(s, 0, 2);
    hra_schedule_source(s, (struct hra_source){1, 1, 0, 1});
    hra_schedule_round(s);
    if (pass == HRA_FORWARD)
        return;
    hra_schedule_move(s, (struct hra_move){HRA_DKV, 1, 0, 2, 1, 1, 1});
    hra_schedule_move(s, (struct hra_move){HRA_DKV, 0, 0, 2, 1, 0, 1});
}

/* One number of the example is changed. All its structs are made of ints. */
struct damage {
    hra_pass pass;
    enum { PART, LOAD, MOVE, RUN, SOURCE } where;
    int index;
    size_t field; /* offset */
    int value;
    const char *sentence;
};

static int *place(const struct hra_schedule *s, const struct damage *d)
{
    char *const base[] = {(char *)&s->part[d->index], (char *)&s->load[d->index], (char *)&s->move[d->index],
                          (char *)&s->run[d->index], (char *)&s->source[d->index]};
    return (int *)(void *)(base[d->where] + d->field);
}

#define AT(type, field) offsetof(struct hra_##type, field)

static const struct damage damages[] = {
    {HRA_FORWARD, PART, 0, AT(part, owner), 2, "schedule: part 0: key tiles 0 to 2, heads 0 to 3 of rank 2"},
    {HRA_FORWARD, PART, 0, AT(part, owner), -1,
     "schedule: part 0: key tiles 0 to 2, heads 0 to 3 of rank -1"},
    {HRA_FORWARD, PART, 1, AT(part, key_tile0), 1,
     "schedule: part 1: key tiles 1 to 4, heads 0 to 3 of rank 1"},
    {HRA_FORWARD, PART, 0, AT(part, key_tile1), 3,
     "schedule: part 0: key tiles 0 to 3, heads 0 to 3 of rank 0"},
    {HRA_FORWARD, PART, 1, AT(part, key_tile0), 4,
     "schedule: part 1: key tiles 4 to 4, heads 0 to 3 of rank 1"},
    {HRA_FORWARD, PART, 1, AT(part, head0), -1,
     "schedule: part 1: key tiles 2 to 4, heads -1 to 3 of rank 1"},
    {HRA_FORWARD, PART, 1, AT(part, head0), 3, "schedule: part 1: key tiles 2 to 4, heads 3 to 3 of rank 1"},
    {HRA_FORWARD, PART, 1, AT(part, head1), 4, "schedule: part 1: key tiles 2 to 4, heads 0 to 4 of rank 1"},
    {HRA_FORWARD, LOAD, 0, AT(load, part), 2, "schedule: load 0: part 2 into buffer 0 on rank 0"},
    {HRA_FORWARD, LOAD, 0, AT(load, part), -1, "schedule: load 0: part -1 into buffer 0 on rank 0"},
    {HRA_FORWARD, LOAD, 0, AT(load, part), 1, "schedule: load 0: part 1 into buffer 0 on rank 0"},
    {HRA_FORWARD, LOAD, 0, AT(load, buffer), -1, "schedule: load 0: part 0 into buffer -1 on rank 0"},
    {HRA_FORWARD, MOVE, 0, AT(move, part), 2, "schedule: move 0: part 2, buffers 0 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 1, AT(move, part), -1, "schedule: move 1: part -1, buffers 0 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, from), HRA_OWN, "schedule: move 0: part 0, buffers -1 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 1, AT(move, to), HRA_OWN, "schedule: move 1: part 1, buffers 0 to -1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, peer), 2, "schedule: move 0: part 0, buffers 0 to 1, peer 2 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, peer), -1, "schedule: move 0: part 0, buffers 0 to 1, peer -1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, peer), 0, "schedule: move 0: part 0, buffers 0 to 1, peer 0 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, payload), HRA_DKV,
     "schedule: move 0: part 0, buffers 0 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, add), 1, "schedule: move 0: part 0, buffers 0 to 1, peer 1 of 2"},
    {HRA_BACKWARD, MOVE, 3, AT(move, part), 1, "schedule: move 3: part 1, buffers 0 to 2, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 1, AT(move, to), 0, "schedule: moves 0 and 1 of round 0 share buffer 0"},
    {HRA_BACKWARD, MOVE, 2, AT(move, from), 2, "schedule: moves 2 and 3 of round 2 share buffer 2"},
    {HRA_FORWARD, RUN, 0, AT(run, query0), -1, "schedule: run 0: query tiles -1 to 2 of 2"},
    {HRA_FORWARD, RUN, 1, AT(run, query0), 3, "schedule: run 1: query tiles 3 to 2 of 2"},
    {HRA_FORWARD, RUN, 1, AT(run, query1), 3, "schedule: run 1: query tiles 0 to 3 of 2"},
    {HRA_FORWARD, SOURCE, 0, AT(source, part), 2,
     "schedule: run 0: part 2 from buffer -1, gradient -1, on rank 0"},
    {HRA_FORWARD, SOURCE, 0, AT(source, part), -1,
     "schedule: run 0: part -1 from buffer -1, gradient -1, on rank 0"},
    {HRA_FORWARD, SOURCE, 0, AT(source, part), 1,
     "schedule: run 0: part 1 from buffer -1, gradient -1, on rank 0"},
    {HRA_FORWARD, SOURCE, 1, AT(source, buffer), -2,
     "schedule: run 1: part 1 from buffer -2, gradient 0, on rank 0"},
    {HRA_BACKWARD, SOURCE, 1, AT(source, gradient), -2,
     "schedule: run 1: part 1 from buffer 1, gradient -2, on rank 0"},
    {HRA_BACKWARD, SOURCE, 1, AT(source, gradient), HRA_OWN,
     "schedule: run 1: part 1 from buffer 1, gradient -1, on rank 0"},
    {HRA_BACKWARD, SOURCE, 0, AT(source, gradient), 0,
     "schedule: run 0: part 0 from buffer -1, gradient 0, on rank 0"},
};

Test(schedule, check_refuses_what_cannot_be_carried_out)
{
    int rank_tile[] = {0, 2, 4};
    const struct hra_work work = {2, 3, rank_tile, NULL};

    for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
        struct hra_schedule s = {0};
        write_example(&s, (hra_pass)pass);
        cr_assert(hra_schedule_check(&s, &work, 0, 2, (hra_pass)pass) == HRA_OK, "%s", hra_last_error());

        for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
            if ((int)damages[i].pass != pass)
                continue;
            int *number = place(&s, &damages[i]);
            const int good = *number;
            *number = damages[i].value;
            cr_expect(eq(int, hra_schedule_check(&s, &work, 0, 2, (hra_pass)pass), HRA_ERR_ARG), "%s",
                      damages[i].sentence);
            cr_expect(eq(str, (char *)hra_last_error(), (char *)damages[i].sentence));
            *number = good;
        }
        hra_schedule_clear(&s);
    }
}

/* test_schedule.c - the schedules of all ranks carried out together with sets in place of tensors. */
#include "src/schedule.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
    RANKS = 9,
    MOST_TILES = 12, /* of a rank */
    KEYS = RANKS * MOST_TILES,
    HEADS = 6,          /* K/V heads */
    BUFFERS = 8 * KEYS, /* of one payload */
    MESSAGES = 64,      /* from one rank to another */
    CARRIED = MOST_TILES / 2
};

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
    ZIGZAG, /* causal, each rank with an early and a late piece */
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
    case ZIGZAG:
        return half == 0 || owner >= rank;
    }
    return 0;
}

/* tiles < 0: some ranks have none, some one, the others up to 6. */
static void make_problem(struct problem *p, int ranks, enum pattern pattern, int tiles)
{
    memset(p, 0, sizeof(*p));
    p->work = (struct hra_work){
        .ranks = ranks, .heads_kv = 1 + draw(HEADS), .rank_tile = p->rank_tile, .live = &p->live[0][0][0]};
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
    struct hra_part part; /* owner -1: nobody knows */
    int added[RANKS];     /* dK/dV: how often each rank has added to them since they began at 0 */
    int brought;          /* 1 + the move that brought it here; 0: none did */
};

/* One message from one rank to another. Nothing is kept in between: a send is over when its receive has begun. */
struct message {
    struct hra_move move; /* as the sender describes it */
    struct content content[CARRIED];
    int sent, expected;
    int round[2]; /* in which it is received, and sent */
};

struct channel {
    struct message message[MESSAGES];
    int sent, expected;
};

struct player {
    struct hra_schedule schedule;
    struct content buffer[HRA_PAYLOADS][BUFFERS];
    int own[KEYS][HEADS][RANKS]; /* our own sums, by key tile: how often each rank's are in them */
    uint64_t order;              /* a hash of the order in which dK/dV were added to them */
    int ran[KEYS][HEADS], came[KEYS][HEADS];
    int messages[HRA_PAYLOADS];   /* that came */
    int number[RANKS * MESSAGES]; /* [moves] which message of its channel a move is */
    char finished[RANKS * MESSAGES];
    unsigned char *ahead;               /* [moves] receipts that are posted a round before their own */
    int *passed;                        /* [moves] the receipt that brought what a send passes on, -1: none */
    char posted[HRA_PAYLOADS][BUFFERS]; /* 1: a message may come at any time */
    int posts;
    int round, run, moved,
        started; /* where we are: the next run of a round, whether its moves have started */
};

struct game {
    struct problem problem;
    hra_pass pass;
    struct player player[RANKS];
    struct channel channel[RANKS][RANKS]; /* from, to */
};

static const struct hra_part nothing = {.owner = -1};

static int same(const struct hra_part *a, const struct hra_part *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

static void receive(struct game *g, int rank, const struct hra_move *move, const struct message *message)
{
    struct player *p = &g->player[rank];
    const struct hra_move *sent = &message->move;

    cr_assert(
        sent->payload == move->payload && sent->from == move->from && sent->to == move->to &&
            sent->add == move->add && sent->more == move->more,
        "rank %d sends payload %d, %d to %d, add %d, %d more; rank %d expects payload %d, %d to %d, add "
        "%d, %d more",
        move->peer, sent->payload, sent->from, sent->to, sent->add, sent->more, rank, move->payload,
        move->from, move->to, move->add, move->more);
    p->messages[move->payload]++;
    for (int n = 0; n <= move->more; n++) {
        const struct content *content = &message->content[n];
        const struct hra_part *part = &p->schedule.part[move->part + n];
        cr_assert(same(&content->part, part), "rank %d expects key tiles %d to %d, rank %d sends %d to %d",
                  rank, part->key_tile0, part->key_tile1, move->peer, content->part.key_tile0,
                  content->part.key_tile1);
        p->buffer[move->payload][move->to + n] = *content;
        for (int k = part->key_tile0; k < part->key_tile1; k++)
            for (int h = part->head0; h < part->head1; h++) {
                p->came[k][h] += move->payload == HRA_KV;
                for (int r = 0; move->add && r < g->problem.work.ranks; r++)
                    p->own[k][h][r] += content->added[r];
            }
        if (move->add)
            p->order = (p->order * 31 + (uint64_t)move->peer) * 31 +
                       (uint64_t)(part->key_tile0 * HEADS + part->head0) + 1;
    }
}

/* Finish what is under way on a buffer, as the executor does. 0: that takes another rank's doing. */
static int settle(struct game *g, int rank, enum hra_payload payload, int buffer, int reading)
{
    struct player *p = &g->player[rank];

    for (int i = 0; i < p->started; i++) {
        const struct hra_move *move = &p->schedule.move[i];
        if (p->finished[i] || move->payload != payload || !hra_move_touches(move, buffer) ||
            (reading && move->sends))
            continue;
        const struct channel *c = move->sends ? &g->channel[rank][move->peer] : &g->channel[move->peer][rank];
        const struct message *message = &c->message[p->number[i]];
        if (!message->sent || !message->expected)
            return 0;
        cr_assert(eq(int, message->round[0], message->round[1]), "rank %d and rank %d", rank, move->peer);
        if (!move->sends) {
            receive(g, rank, move, message);
            for (int n = 0; n <= move->more; n++)
                p->buffer[move->payload][move->to + n].brought = i + 1;
        }
        p->finished[i] = 1;
    }
    return 1;
}

/* The same of all buffers of a move. */
static int settle_move(struct game *g, int rank, const struct hra_move *move, int reading)
{
    for (int n = 0; n <= move->more; n++)
        if (!settle(g, rank, move->payload, hra_move_buffer(move) + n, reading))
            return 0;
    return 1;
}

/* What is said of a send is what its buffers, from `content` on, have seen. */
static void check_passed(const struct player *p, int i, const struct content *content)
{
    const struct hra_move *move = &p->schedule.move[i];
    int by = move->payload == HRA_KV ? content->brought - 1 : -1;

    if (by >= 0 && (p->schedule.move[by].to != move->from || p->schedule.move[by].more != move->more))
        by = -1;
    for (int n = 0; by >= 0 && n <= move->more; n++)
        cr_assert(eq(int, content[n].brought, by + 1));
    cr_assert(eq(int, p->passed[i], by), "move %d, round %d", i, p->round);
}

static void start_move(struct game *g, int rank, int i)
{
    struct player *p = &g->player[rank];
    const struct hra_move *move = &p->schedule.move[i];
    struct content *content = &p->buffer[move->payload][hra_move_buffer(move)];
    struct channel *c = move->sends ? &g->channel[rank][move->peer] : &g->channel[move->peer][rank];

    p->number[i] = move->sends ? c->sent++ : c->expected++;
    cr_assert(p->number[i] < MESSAGES && move->more < CARRIED);
    struct message *message = &c->message[p->number[i]];
    message->round[move->sends] = p->round;
    if (move->sends) {
        check_passed(p, i, content);
        message->move = *move;
        message->sent = 1;
    } else {
        cr_assert(move->add == 0 || p->schedule.part[move->part].owner == rank);
        message->expected = 1;
    }
    for (int n = 0; n <= move->more; n++) {
        const struct hra_part *part = &p->schedule.part[move->part + n];
        if (move->sends) {
            cr_assert(same(&content[n].part, part),
                      "rank %d round %d sends key tiles %d to %d; buffer %d holds %d to %d", rank, p->round,
                      part->key_tile0, part->key_tile1, move->from + n, content[n].part.key_tile0,
                      content[n].part.key_tile1);
            message->content[n] = content[n];
        } else {
            content[n].part = nothing; /* whatever it held is being overwritten */
            p->posted[move->payload][move->to + n] = 0;
        }
    }
}

/* From here on what comes for the next round may lie in these buffers. */
static void post_moves(struct player *p, const struct hra_round *next)
{
    for (int i = next->move0; i < next->move1; i++) {
        const struct hra_move *move = &p->schedule.move[i];
        if (!p->ahead[i])
            continue;
        cr_assert(move->sends == 0, "a send is posted");
        for (int j = next->move0; j < i; j++)
            cr_assert(p->schedule.move[j].sends || p->schedule.move[j].peer != move->peer || p->ahead[j],
                      "rank %d's messages overtake each other", move->peer);
        for (int j = 0; j < p->started; j++)
            for (int n = 0; n <= move->more; n++)
                cr_assert(p->finished[j] || p->schedule.move[j].sends ||
                              p->schedule.move[j].payload != move->payload ||
                              !hra_move_touches(&p->schedule.move[j], move->to + n),
                          "round %d: what arrives in buffer %d is overwritten", p->round, move->to + n);
        memset(&p->posted[move->payload][move->to], 1, (size_t)move->more + 1);
        p->posts++;
    }
}

static void run_source(struct game *g, int rank, const struct hra_source *source)
{
    struct player *p = &g->player[rank];
    const struct hra_part *part = &p->schedule.part[source->part];
    const int own = part->owner == rank;

    const int kv = source->buffer != HRA_OWN && p->posted[HRA_KV][source->buffer],
              dkv = g->pass == HRA_BACKWARD && source->gradient != HRA_OWN &&
                    p->posted[HRA_DKV][source->gradient];

    cr_assert(kv + dkv == 0, "rank %d round %d computes part %d where another may be arriving", rank,
              p->round, source->part);

    for (int k = part->key_tile0; k < part->key_tile1; k++)
        for (int h = part->head0; h < part->head1; h++) {
            p->ran[k][h]++;
            p->own[k][h][rank] += own;
        }
    if (source->buffer == HRA_OWN)
        cr_assert(own, "rank %d has no part %d", rank, source->part);
    else
        cr_assert(same(&p->buffer[HRA_KV][source->buffer].part, part),
                  "rank %d round %d computes part %d; buffer %d holds another", rank, p->round, source->part,
                  source->buffer);
    if (g->pass == HRA_FORWARD)
        return;
    cr_assert(own == (source->gradient == HRA_OWN));
    if (own)
        return;
    struct content *sums = &p->buffer[HRA_DKV][source->gradient];
    if (source->zero)
        *sums = (struct content){.part = *part};
    cr_assert(same(&sums->part, part), "rank %d round %d adds to part %d; buffer %d holds another", rank,
              p->round, source->part, source->gradient);
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
            if (!settle_move(g, rank, &s->move[i], s->move[i].sends))
                return 0;
        for (int i = round->move0; i < round->move1; i++)
            start_move(g, rank, i);
        p->started = round->move1;
        if (p->round + 1 < s->rounds)
            post_moves(p, round + 1);
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

static void begin(struct game *g, hra_generator generate, hra_pass pass)
{
    const int ranks = g->problem.work.ranks;

    g->pass = pass;
    memset(g->player, 0, sizeof(g->player));
    memset(g->channel, 0, sizeof(g->channel));
    for (int r = 0; r < ranks; r++) {
        struct player *p = &g->player[r];
        const int queries = g->problem.rank_tile[r + 1] - g->problem.rank_tile[r];
        cr_assert(eq(int, generate(&p->schedule, &g->problem.work, r, pass), HRA_OK));
        const struct hra_schedule *s = &p->schedule;
        cr_assert(hra_schedule_check(s, &g->problem.work, r, queries, pass) == HRA_OK, "rank %d: %s", r,
                  hra_last_error());
        cr_assert(s->moves <= RANKS * MESSAGES);
        for (int i = 0; i < s->moves; i++)
            cr_assert(s->move[i].from + s->move[i].more < BUFFERS &&
                      s->move[i].to + s->move[i].more < BUFFERS);
        for (int i = 0; i < s->runs; i++)
            cr_assert(s->run[i].query0 == 0 && s->run[i].query1 == queries);
        for (int i = 0; i < s->sources; i++)
            cr_assert(s->source[i].buffer < BUFFERS && s->source[i].gradient < BUFFERS);

        cr_assert(eq(int, hra_schedule_ahead(&p->ahead, s, ranks), HRA_OK));
        cr_assert(eq(int, hra_schedule_passed(&p->passed, s), HRA_OK));
        for (int b = 0; b < BUFFERS; b++)
            p->buffer[HRA_KV][b].part = p->buffer[HRA_DKV][b].part = nothing;
        for (int i = 0; i < s->loads; i++) {
            cr_assert(s->part[s->load[i].part].owner == r && s->load[i].buffer < BUFFERS);
            p->buffer[HRA_KV][s->load[i].buffer].part = s->part[s->load[i].part];
        }
    }
}

static void end(struct game *g)
{
    for (int r = 0; r < g->problem.work.ranks; r++) {
        hra_schedule_clear(&g->player[r].schedule);
        free(g->player[r].ahead);
        free(g->player[r].passed);
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
            cr_assert(settle_move(g, r, &p->schedule.move[i], 0), "rank %d of %d: move %d never ends", r,
                      ranks, i);
        for (int to = 0; to < ranks; to++)
            cr_assert(eq(int, g->channel[r][to].sent, g->channel[r][to].expected), "rank %d to %d", r, to);
    }
}

/* ---- The ring ----------------------------------------------------------------------------------- */

/* All ranks list the same parts, and the buffers are those that docs/design.md tells of. */
static void expect_ring(struct game *g)
{
    const int parts = g->pass == HRA_BACKWARD && g->problem.work.ranks > 1 ? HRA_HALVES : 1;
    const int kv = parts == 1 ? 3 : 2 * parts;

    for (int r = 0; r < g->problem.work.ranks; r++) {
        const struct hra_schedule *s = &g->player[r].schedule, *first = &g->player[0].schedule;
        cr_assert(eq(int, s->parts, first->parts));
        for (int i = 0; i < s->parts; i++)
            cr_assert(same(&s->part[i], &first->part[i]), "rank %d has other parts than rank 0", r);
        for (int i = 0; i < s->moves; i++) {
            const int limit = s->move[i].payload == HRA_KV ? kv : 3 * parts;
            cr_assert(s->move[i].from < limit && s->move[i].to < limit && s->move[i].more == 0,
                      "rank %d move %d: buffers %d to %d", r, i, s->move[i].from, s->move[i].to);
        }
        for (int i = 0; i < s->sources; i++)
            cr_assert(s->source[i].buffer < kv &&
                      (g->pass == HRA_FORWARD || s->source[i].gradient < 3 * parts));
        for (int i = 0; i < s->loads; i++)
            cr_assert(s->load[i].buffer < kv);
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
    const int heads = g->problem.work.heads_kv;
    int tiles = 0;

    for (int i = 0; i < s->parts; i++)
        tiles += (s->part[i].key_tile1 - s->part[i].key_tile0) * (s->part[i].head1 - s->part[i].head0);
    cr_assert(eq(int, tiles, g->problem.rank_tile[ranks] * heads),
              "parts cover all key tiles of all heads once");
    for (int r = 0; r < ranks; r++) {
        expect_no_useless_move(g, r);
        for (int i = 0; i < s->parts; i++) {
            const int owner = s->part[i].owner;
            const int once = r == owner || live_of(&g->problem, r, &s->part[i]) > 0;
            for (int k = s->part[i].key_tile0; k < s->part[i].key_tile1; k++)
                for (int h = s->part[i].head0; h < s->part[i].head1; h++) {
                    cr_assert(eq(int, g->player[r].ran[k][h], once), "rank %d of %d, part %d of rank %d", r,
                              ranks, i, owner);
                    if (g->pass == HRA_BACKWARD)
                        cr_assert(eq(int, g->player[owner].own[k][h][r], once),
                                  "dK/dV of part %d of rank %d, from rank %d of %d", i, owner, r, ranks);
                }
        }
    }
}

static void expect_schedule(struct game *g, hra_pass pass, int slow)
{
    begin(g, hra_schedule_ring, pass);
    expect_ring(g);
    play(g, slow);
    expect_all_done(g);
    end(g);
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

/* Under a full mask all that arrives is posted a round ahead, but for the first K/V, and all K/V are passed on but for those of the
 * last step. */
Test(schedule, ring_posts_ahead)
{
    enum { STEPS = 4 };
    struct game *g = malloc(sizeof(*g));

    for (int tiles = 1; tiles <= 2; tiles++)
        for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
            random_state = 1;
            make_problem(&g->problem, STEPS + 1, ALL, tiles);
            g->problem.work.heads_kv = tiles;
            begin(g, hra_schedule_ring, (hra_pass)pass);
            play(g, STEPS + 1);
            const struct player *p = &g->player[1];
            cr_assert(eq(int, p->posts, p->messages[HRA_KV] + p->messages[HRA_DKV] - 1));
            int passed = 0;
            for (int i = 0; i < p->schedule.moves; i++)
                passed += p->passed[i] >= 0;
            cr_assert(eq(int, passed *STEPS, p->messages[HRA_KV] * (STEPS - 1)));
            end(g);
        }
    free(g);
}

/* Receipts of a round: from rank 1 into a buffer that is computed against before and into one that is free, from rank 2 into
 * one that is free, and into one where something arrives. What rank 1 sends second cannot be received first. */
Test(schedule, posts_keep_the_order_of_messages)
{
    const struct {
        int peer, buffer, ahead;
    } receipt[] = {{1, 0, 0}, {1, 1, 0}, {2, 2, 1}, {2, 3, 0}};
    struct hra_schedule s = {0};
    unsigned char *ahead = NULL;

    cr_assert(eq(int, hra_schedule_round(&s), HRA_OK));
    cr_assert(eq(int, hra_schedule_move(&s, (struct hra_move){.peer = 3, .to = 3}), HRA_OK));
    cr_assert(eq(int, hra_schedule_run(&s, 0, 1), HRA_OK));
    cr_assert(eq(int, hra_schedule_source(&s, (struct hra_source){.gradient = HRA_OWN}), HRA_OK));
    cr_assert(eq(int, hra_schedule_round(&s), HRA_OK));
    for (int i = 0; i < 4; i++)
        cr_assert(eq(
            int, hra_schedule_move(&s, (struct hra_move){.peer = receipt[i].peer, .to = receipt[i].buffer}),
            HRA_OK));
    cr_assert(eq(int, hra_schedule_ahead(&ahead, &s, 4), HRA_OK));
    for (int i = 0; i < 4; i++)
        cr_expect(eq(int, ahead[1 + i], receipt[i].ahead), "receipt %d", i);
    free(ahead);
    hra_schedule_clear(&s);
}

/* ---- The halo, and streaming of heads ------------------------------------------------------------ */

/* Which tiles ranks need, by brute force. */
struct local {
    struct problem *problem;
    int64_t live[RANKS][KEYS]; /* tiles of a rank's queries against a key tile */
    struct hra_tile_rows tile[KEYS];
    char moved[RANKS][KEYS]; /* 1: this key tile of another rank has to come to this rank */
    struct hra_needs needs;
};

/* Mark the tiles of `rank` that come if gaps of at most `gap` tiles are joined; how many rows these are. */
static int64_t mark_moved(struct local *l, int rank, int gap)
{
    const struct problem *p = l->problem;
    int64_t rows = 0;

    for (int o = 0; o < p->work.ranks; o++)
        for (int k = p->rank_tile[o]; k < p->rank_tile[o + 1]; k++) {
            int before = k, after = k;
            while (before >= p->rank_tile[o] && l->live[rank][before] == 0)
                before--;
            while (after < p->rank_tile[o + 1] && l->live[rank][after] == 0)
                after++;
            l->moved[rank][k] =
                o != rank && (before == after || (before >= p->rank_tile[o] && after < p->rank_tile[o + 1] &&
                                                  after - before - 1 <= gap));
            rows += l->moved[rank][k] ? l->tile[k].rows : 0;
        }
    return rows;
}

/* Needs after the pattern, thinned out: of the tiles of a half that is wanted every one, every other one, or so many of
 * eight as `thin` says. */
static void make_needs(struct local *l, struct problem *p, int thin)
{
    const int ranks = p->work.ranks;

    memset(l, 0, sizeof(*l));
    l->problem = p;
    for (int o = 0; o < ranks; o++)
        for (int k = p->rank_tile[o]; k < p->rank_tile[o + 1]; k++) {
            l->tile[k].rows = thin % 2 == 0 ? HRA_TILE : 1 + draw(HRA_TILE);
            l->tile[k].row0 = k == p->rank_tile[o] ? 0 : l->tile[k - 1].row0 + l->tile[k - 1].rows;
            for (int r = 0; r < ranks; r++) {
                const int half = k >= hra_work_half(&p->work, o, 1);
                const int kept = thin == 0 || (thin == 1 ? k % 2 : draw(8) < thin);
                l->live[r][k] = kept && *live_at(p, r, o, half) > 0 ? 1 + draw(3) : 0;
            }
        }
    for (int r = 0; r < ranks; r++) {
        const int64_t least = mark_moved(l, r, 0);
        int gap = HRA_JOIN;
        while ((double)mark_moved(l, r, gap) > 1.05 * (double)least)
            gap--;
    }
}

/* What the library makes of them. */
static void find_needs(struct local *l)
{
    const int ranks = l->problem->work.ranks;

    l->needs.start = calloc((size_t)ranks + 1, sizeof(*l->needs.start));
    l->needs.range = calloc(RANKS * KEYS, sizeof(*l->needs.range));
    for (int r = 0; r < ranks; r++) {
        struct hra_range *range = NULL;
        int64_t count = -1;
        cr_assert(eq(int, hra_needs_find(&range, &count, &l->problem->work, r, l->live[r], l->tile), HRA_OK));
        memcpy(l->needs.range + l->needs.start[r], range, (size_t)count * sizeof(*range));
        l->needs.start[r + 1] = l->needs.start[r] + count;
        free(range);
    }
    cr_assert(eq(int, hra_needs_link(&l->needs, &l->problem->work), HRA_OK));
    l->problem->work.needs = &l->needs;
}

/* Ranks from whose owners anything comes. */
static int count_owners(const struct local *l, int rank)
{
    const struct problem *p = l->problem;
    int owners = 0;

    for (int o = 0; o < p->work.ranks; o++) {
        int any = 0;
        for (int k = p->rank_tile[o]; k < p->rank_tile[o + 1]; k++)
            any |= l->moved[rank][k];
        owners += any;
    }
    return owners;
}

/* Everything that is needed came once and was computed once, nothing else came, and dK/dV are home, each rank's once; all of
 * it in so many groups of heads. */
static void expect_halo(struct game *g, const struct local *l, int groups)
{
    const int ranks = g->problem.work.ranks;

    for (int r = 0; r < ranks; r++) {
        const struct player *p = &g->player[r];
        int visitors = 0;
        for (int i = 0; i < g->problem.rank_tile[ranks] * g->problem.work.heads_kv; i++) {
            const int k = i / g->problem.work.heads_kv, h = i % g->problem.work.heads_kv;
            const int owner = hra_work_owner(&g->problem.work, k), moved = l->moved[r][k];
            cr_assert(g->problem.rank_tile[owner] <= k && k < g->problem.rank_tile[owner + 1]);
            cr_assert(p->came[k][h] == moved && p->ran[k][h] == (moved || owner == r),
                      "rank %d of %d, key tile %d of rank %d: came %d times, computed %d times, needed: %d",
                      r, ranks, k, owner, p->came[k][h], p->ran[k][h], moved);
            if (g->pass == HRA_BACKWARD)
                cr_assert(eq(int, g->player[owner].own[k][h][r], moved || owner == r),
                          "dK/dV of key tile %d of rank %d, from rank %d of %d", k, owner, r, ranks);
        }
        for (int v = 0; v < ranks; v++)
            visitors += v != r && g->channel[r][v].message[0].sent &&
                        g->channel[r][v].message[0].move.payload == HRA_KV;
        cr_expect(eq(int, p->messages[HRA_KV], groups *count_owners(l, r)), "one message from each owner");
        if (g->pass == HRA_BACKWARD)
            cr_expect(eq(int, p->messages[HRA_DKV], groups *visitors), "one message from each visitor");
        cr_expect(p->schedule.runs <= 1 + groups + (g->pass == HRA_BACKWARD), "all others' tiles in one run");
    }
}

ParameterizedTestParameters(schedule, halo_moves_what_is_needed_and_nothing_else)
{
    static struct ring rings[RANKS * PATTERNS];

    for (int i = 0; i < RANKS * PATTERNS; i++)
        rings[i] = (struct ring){1 + i / PATTERNS, (enum pattern)(i % PATTERNS)};
    return cr_make_param_array(struct ring, rings, RANKS * PATTERNS);
}

/* Whoever is slow, sums are added in the same order. */
static void expect_both_passes(struct game *g, const struct local *l, hra_generator generate, int groups)
{
    const int ranks = g->problem.work.ranks;

    for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
        uint64_t order[RANKS] = {0};
        for (int slow = 0; slow <= ranks; slow += 1 + draw(3)) {
            begin(g, generate, (hra_pass)pass);
            play(g, slow);
            expect_halo(g, l, groups);
            for (int r = 0; r < ranks; r++) {
                cr_expect(slow == 0 || order[r] == g->player[r].order, "rank %d adds in another order", r);
                order[r] = g->player[r].order;
            }
            end(g);
        }
    }
}

ParameterizedTest(struct ring *of, schedule, halo_moves_what_is_needed_and_nothing_else, .timeout = 120)
{
    struct game *g = malloc(sizeof(*g));
    struct local *l = malloc(sizeof(*l));

    for (int seed = 0; seed < 12; seed++) {
        random_state = (uint64_t)seed * 7919 + (uint64_t)of->ranks * 31 + of->pattern;
        make_problem(&g->problem, of->ranks, of->pattern,
                     seed % 4 == 0   ? MOST_TILES
                     : seed % 4 == 1 ? 1
                                     : -1);
        make_needs(l, &g->problem, seed % 8);
        find_needs(l);
        expect_both_passes(g, l, hra_schedule_halo, 1);
        expect_both_passes(g, l, hra_schedule_heads, hra_work_groups(&g->problem.work));
        hra_needs_clear(&l->needs);
    }
    free(l);
    free(g);
}

/* Ten stretches of tiles with gaps between them: joined where that costs at most 5 %, and where they are short. */
Test(schedule, halo_joins_gaps_that_cost_little)
{
    static const struct {
        int gap, period, ranges;
    } rows[] = {{1, 19, 1}, {1, 18, 10}, {8, 152, 1}, {8, 151, 10}, {9, 400, 10}, {0, 20, 1}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const int gap = rows[i].gap, period = rows[i].period, tiles = 10 * period;
        int rank_tile[] = {0, 0, tiles, tiles + 2};
        const struct hra_work work = {.ranks = 3, .heads_kv = 1, .rank_tile = rank_tile};
        struct hra_tile_rows *tile = calloc((size_t)tiles + 2, sizeof(*tile));
        int64_t *live = calloc((size_t)tiles + 2, sizeof(*live)), count = -1;
        struct hra_range *range = NULL;

        for (int k = 0; k < tiles + 2; k++) {
            tile[k] = (struct hra_tile_rows){.row0 = (int64_t)k % tiles * 100, .rows = 100};
            live[k] = k < gap || k % period >= gap;
        }
        cr_assert(eq(int, hra_needs_find(&range, &count, &work, 2, live, tile), HRA_OK));
        cr_expect(count == rows[i].ranges && range[0].key_tile0 == 0 && range[count - 1].key_tile1 == tiles,
                  "gaps of %d tiles, every %d: %ld ranges", gap, period, (long)count);
        free(range);
        free(tile);
        free(live);
    }
}

/* Where ranges would be too many to tell of, longer gaps are joined, the short ones first. */
Test(schedule, halo_bounds_its_ranges)
{
    enum { TILES = 100000, FEWER = 3 };
    int rank_tile[] = {0, TILES, TILES + 1};
    const struct hra_work work = {.ranks = 2, .heads_kv = 1, .rank_tile = rank_tile};
    struct hra_tile_rows *tile = calloc(TILES + 1, sizeof(*tile));
    int64_t *live = calloc(TILES + 1, sizeof(*live)), count = -1, longer = 0;
    struct hra_range *range = NULL;

    /* gaps of 1, 2, ... 20 tiles, again and again: 100000 / 230 of each */
    for (int k = 0, gap = 1; k < TILES; k += 1 + gap, gap = gap % 20 + 1)
        live[k] = 1;
    for (int k = 0; k <= TILES; k++)
        tile[k] = (struct hra_tile_rows){.row0 = (int64_t)k % TILES * HRA_TILE, .rows = HRA_TILE};
    cr_assert(eq(int, hra_needs_find(&range, &count, &work, 1, live, tile), HRA_OK));
    cr_expect(count > HRA_RANGES - 2 * TILES / 230 && count <= HRA_RANGES, "%ld ranges", (long)count);
    for (int64_t i = 1; i < count; i++)
        longer += range[i].key_tile0 - range[i - 1].key_tile1 > 1;
    cr_expect(longer == count - 1, "a gap of one tile is left");
    free(range);
    free(tile);
    free(live);
}

/* Under a full mask everybody sends its keys to everybody from one buffer. */
Test(schedule, halo_sends_what_many_want_from_one_buffer)
{
    struct problem p;
    struct local *l = malloc(sizeof(*l));

    random_state = 1;
    make_problem(&p, RANKS, ALL, 5);
    make_needs(l, &p, 0);
    find_needs(l);
    for (int r = 0; r < RANKS; r++) {
        struct hra_schedule s = {0};
        cr_assert(eq(int, hra_schedule_halo(&s, &p.work, r, HRA_FORWARD), HRA_OK));
        cr_expect(s.loads == 1 && s.moves == 2 * (RANKS - 1) && s.rounds == 2, "%d loads, %d moves", s.loads,
                  s.moves);
        hra_schedule_clear(&s);
    }
    hra_needs_clear(&l->needs);
    free(l);
}

/* Who visits whom among many ranks, and the rounds of messages that this takes one way. */
struct crowd {
    enum { SOME_VISIT_ALL, ALL_VISIT_SOME, NEIGHBOURS } who;
    int rounds;
};

static int visits(const struct crowd *c, int visitor, int owner, int ranks)
{
    const int distance = (visitor - owner + ranks) % ranks;

    if (visitor == owner)
        return 0;
    return c->who == SOME_VISIT_ALL   ? visitor % 3 == 0 || draw(9) == 0
           : c->who == ALL_VISIT_SOME ? owner % 50 == 0
                                      : distance <= 8 || distance >= ranks - 8;
}

/* A message of rank r in a round is in the same round of its peer. */
static void expect_other_end(const struct hra_schedule *s, int r, int round, const struct hra_move *a)
{
    const struct hra_round *there = &s[a->peer].round[round];
    int found = 0;

    for (int j = there->move0; j < there->move1; j++) {
        const struct hra_move *b = &s[a->peer].move[j];
        found += b->peer == r && b->sends != a->sends && b->payload == a->payload && b->from == a->from &&
                 b->to == a->to;
    }
    cr_assert(eq(int, found, 1), "rank %d, round %d, rank %d", r, round, a->peer);
}

ParameterizedTestParameters(schedule, halo_rounds_are_the_same_at_both_ends)
{
    static struct crowd crowds[] = {{SOME_VISIT_ALL, 5}, {ALL_VISIT_SOME, 5}, {NEIGHBOURS, 1}};

    return cr_make_param_array(struct crowd, crowds, sizeof(crowds) / sizeof(crowds[0]));
}

/* More ranks than may exchange in one round: at both ends a message is in the same round, none has too many, and there are no
 * more rounds than that takes. */
ParameterizedTest(struct crowd *c, schedule, halo_rounds_are_the_same_at_both_ends)
{
    enum { MANY = 150, IN_A_ROUND = 32 };
    static struct hra_range range[MANY * MANY];
    int rank_tile[MANY + 1];
    struct hra_needs needs = {.start = calloc(MANY + 1, sizeof(int64_t)), .range = NULL};
    struct hra_work work = {.ranks = MANY, .heads_kv = 1, .rank_tile = rank_tile, .needs = &needs};
    static struct hra_schedule s[MANY];
    int64_t ranges = 0, moves = 0;

    random_state = 5;
    for (int r = 0; r <= MANY; r++)
        rank_tile[r] = r;
    for (int r = 0; r < MANY; r++) {
        for (int o = 0; o < MANY; o++)
            if (visits(c, r, o, MANY))
                range[ranges++] = (struct hra_range){o, o + 1};
        needs.start[r + 1] = ranges;
    }
    needs.range = malloc((size_t)ranges * sizeof(*range));
    memcpy(needs.range, range, (size_t)ranges * sizeof(*range));
    cr_assert(eq(int, hra_needs_link(&needs, &work), HRA_OK));
    for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
        for (int r = 0; r < MANY; r++) {
            cr_assert(eq(int, hra_schedule_halo(&s[r], &work, r, (hra_pass)pass), HRA_OK));
            cr_assert(hra_schedule_check(&s[r], &work, r, 1, (hra_pass)pass) == HRA_OK, "%s",
                      hra_last_error());
            cr_expect(eq(int, s[r].rounds, c->rounds *(pass == HRA_FORWARD ? 1 : 2) + 1));
            moves += s[r].moves;
        }
        for (int r = 0; r < MANY; r++)
            for (int n = 0; n < s[r].rounds; n++) {
                int ways[2] = {0, 0};
                for (int i = s[r].round[n].move0; i < s[r].round[n].move1; i++) {
                    expect_other_end(s, r, n, &s[r].move[i]);
                    ways[s[r].move[i].sends]++;
                }
                cr_assert(ways[0] <= IN_A_ROUND && ways[1] <= IN_A_ROUND, "%d and %d in round %d", ways[0],
                          ways[1], n);
            }
        for (int r = 0; r < MANY; r++)
            hra_schedule_clear(&s[r]);
    }
    cr_expect(moves == 6 * ranges, "%ld ends of messages, %ld ranges", (long)moves, (long)ranges);
    hra_needs_clear(&needs);
}

/* Backward computes own tiles of the first heads while K/V come and of the others while dK/dV go home; who waits for nothing
 * computes them at once. */
Test(schedule, halo_backward_ends_with_own_tiles)
{
    struct problem p;
    struct local *l = malloc(sizeof(*l));

    for (int heads = 1; heads <= HEADS; heads++)
        for (int alone = 0; alone < 2; alone++) {
            random_state = 2;
            make_problem(&p, RANKS, alone ? OWN_ONLY : ALL, 4);
            p.work.heads_kv = heads;
            make_needs(l, &p, 0);
            find_needs(l);
            struct hra_schedule s = {0};
            cr_assert(eq(int, hra_schedule_halo(&s, &p.work, 1, HRA_BACKWARD), HRA_OK));
            cr_expect(eq(int, s.runs, alone ? 1 : 3));
            if (s.runs == 3) {
                const struct hra_part *part = &s.part[s.source[s.run[2].source0].part];
                cr_expect(s.round[s.rounds - 1].run0 == 2 && s.round[0].run1 == 1 && part->owner == 1);
                cr_expect(heads == 1 ? part->key_tile0 == 6
                                     : part->key_tile0 == 4 && part->head0 == heads / 2);
            }
            hra_schedule_clear(&s);
            hra_needs_clear(&l->needs);
        }
    free(l);
}

/* As many groups as ranks, at least two, at most eight, and more where that does not divide the heads. */
Test(schedule, heads_are_cut_into_equal_groups)
{
    static const int rows[][3] = {/* ranks, K/V heads, groups */
                                  {1, 16, 2},  {2, 16, 2}, {2, 2, 2},    {2, 1, 1},  {2, 7, 7},
                                  {3, 8, 4},   {3, 12, 3}, {8, 4, 4},    {8, 16, 8}, {8, 12, 12},
                                  {8, 26, 13}, {5, 6, 6},  {1000, 64, 8}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct hra_work work = {.ranks = rows[i][0], .heads_kv = rows[i][1]};
        cr_expect(eq(int, hra_work_groups(&work), rows[i][2]), "%d ranks, %d heads", rows[i][0], rows[i][1]);
    }
}

/* The heads of a move, or of the last source of a run. */
static int group_of(const struct hra_schedule *s, int part, int groups, int heads)
{
    return s->part[part].head0 * groups / heads;
}

/* Under a full mask: while a group is computed the next one comes, and dK/dV of the one before go back; the first own part
 * stands alone, in backward the last one too; K/V that arrive take two buffers of each owner. */
Test(schedule, heads_come_while_others_are_computed)
{
    struct problem p;
    struct local *l = malloc(sizeof(*l));

    for (int ranks = 2; ranks <= RANKS; ranks++)
        for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
            struct hra_schedule s = {0};
            random_state = 4;
            make_problem(&p, ranks, ALL, 3);
            p.work.heads_kv = HEADS;
            make_needs(l, &p, 0);
            find_needs(l);
            const int groups = hra_work_groups(&p.work), backward = pass == HRA_BACKWARD;
            cr_assert(eq(int, hra_schedule_heads(&s, &p.work, ranks - 1, (hra_pass)pass), HRA_OK));
            cr_assert(s.loads == groups && s.runs == groups + 1 + backward);
            int run = 0, kv = 0, dkv = 0;
            for (int r = 0; r < s.rounds; r++) {
                for (int i = s.round[r].move0; i < s.round[r].move1; i++) {
                    const struct hra_move *m = &s.move[i];
                    const int group = group_of(&s, m->part, groups, HEADS), gradient = m->payload == HRA_DKV;
                    cr_expect(group == (gradient ? dkv : kv) / (2 * (ranks - 1)));
                    cr_expect(gradient ? group == run - 2 : group == run, "payload %d of group %d, run %d",
                              (int)m->payload, group, run);
                    cr_expect(gradient || m->sends || m->to < 2 * (ranks - 1));
                    *(gradient ? &dkv : &kv) += 1;
                }
                run += s.round[r].run1 - s.round[r].run0;
            }
            cr_expect(kv == 2 * (ranks - 1) * groups && dkv == (backward ? kv : 0));
            for (int i = 0; i < s.runs; i++) {
                const int own = i == 0 || (backward && i == groups + 1);
                const int both = i > 1 && i < groups + !backward;
                cr_expect(eq(int, s.run[i].source1 - s.run[i].source0, own ? 1 : ranks - 1 + both));
                for (int c = s.run[i].source0; c < s.run[i].source1; c++)
                    cr_expect(eq(int, group_of(&s, s.source[c].part, groups, HEADS),
                                 i == 0            ? 0
                                 : i == groups + 1 ? groups - 1
                                                   : i - 1));
            }
            hra_schedule_clear(&s);
            hra_needs_clear(&l->needs);
        }
    free(l);
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

            /* K/V in parts; dK/dV of a block go ranks - 1 hops with the home move, ours and the others' alike. */
            cr_assert(eq(int, hra_schedule_ring(&s, &p.work, rank, HRA_BACKWARD), HRA_OK));
            cr_expect(eq(int, count_received(&s, HRA_KV, &busiest), HRA_HALVES *(ranks - 1)));
            cr_expect(eq(int, count_received(&s, HRA_DKV, &busiest), HRA_HALVES *(ranks - 1)));
            cr_expect(eq(int, s.runs, ranks == 1 ? 1 : HRA_HALVES * ranks));
            hra_schedule_clear(&s);
        }
    }
}

/* Backward cuts by heads where there are any to cut, unless halves of the keys make much less travel. Own tiles come first and
 * last, beside the first K/V and the last dK/dV: last those whose dK/dV come home first. */
Test(schedule, backward_in_two_parts)
{
    static const struct {
        int ranks;
        enum pattern pattern;
        int heads, by_heads;
    } rows[] = {{RANKS, ALL, 3, 1},  {RANKS, ALL, 1, 0}, {RANKS, ZIGZAG, 2, 1}, {RANKS, SECOND_HALVES, 3, 0},
                {RANKS, NONE, 2, 1}, {2, ALL, 2, 1},     {2, ZIGZAG, 2, 0}};
    struct problem p;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (int rank = 0; rank < rows[i].ranks; rank++) {
            struct hra_schedule s = {0};
            random_state = 3;
            make_problem(&p, rows[i].ranks, rows[i].pattern, 4);
            p.work.heads_kv = rows[i].heads;
            cr_assert(eq(int, hra_schedule_ring(&s, &p.work, rank, HRA_BACKWARD), HRA_OK));
            const struct hra_part *part = &s.part[2 * rank + 1];
            cr_expect(rows[i].by_heads ? part->head0 == rows[i].heads / 2 && part->key_tile0 == 4 * rank
                                       : part->head0 == 0 && part->key_tile0 == 4 * rank + 2,
                      "case %zu: heads %d to %d of tiles %d to %d", i, part->head0, part->head1,
                      part->key_tile0, part->key_tile1);
            cr_assert(s.round[0].run1 == 1 && s.round[s.rounds - 1].run0 == s.runs - 1);
            cr_expect(s.source[0].part == 2 * rank + 1 && s.source[s.sources - 1].part == 2 * rank);
            hra_schedule_clear(&s);
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
    const struct hra_work work = {.ranks = 4, .heads_kv = 1, .rank_tile = rank_tile};
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
    const struct hra_work work = {.ranks = 2, .heads_kv = 1, .rank_tile = rank_tile, .live = &live[0][0][0]};

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
    hra_schedule_move(s, (struct hra_move){HRA_KV, 0, 0, 1, 1, 1, 0, 0});
    hra_schedule_move(s, (struct hra_move){HRA_KV, 1, 0, 1, 1, 0, 0, 0});
    hra_schedule_run(s, 0, 2);
    hra_schedule_source(s, (struct hra_source){0, HRA_OWN, HRA_OWN, 0});
    hra_schedule_round(s);
    hra_schedule_run(s, 0, 2);
    hra_schedule_source(s, (struct hra_source){1, 1, 0, 1});
    hra_schedule_round(s);
    if (pass == HRA_FORWARD)
        return;
    hra_schedule_move(s, (struct hra_move){HRA_DKV, 1, 0, 2, 1, 1, 1, 0});
    hra_schedule_move(s, (struct hra_move){HRA_DKV, 0, 0, 2, 1, 0, 1, 0});
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
    {HRA_FORWARD, MOVE, 0, AT(move, part), 2,
     "schedule: move 0: part 2 and 0 more, buffers 0 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 1, AT(move, part), -1,
     "schedule: move 1: part -1 and 0 more, buffers 0 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, from), HRA_OWN,
     "schedule: move 0: part 0 and 0 more, buffers -1 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 1, AT(move, to), HRA_OWN,
     "schedule: move 1: part 1 and 0 more, buffers 0 to -1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, peer), 2,
     "schedule: move 0: part 0 and 0 more, buffers 0 to 1, peer 2 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, peer), -1,
     "schedule: move 0: part 0 and 0 more, buffers 0 to 1, peer -1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, peer), 0,
     "schedule: move 0: part 0 and 0 more, buffers 0 to 1, peer 0 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, payload), HRA_DKV,
     "schedule: move 0: part 0 and 0 more, buffers 0 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, add), 1,
     "schedule: move 0: part 0 and 0 more, buffers 0 to 1, peer 1 of 2"},
    {HRA_BACKWARD, MOVE, 3, AT(move, part), 1,
     "schedule: move 3: part 1 and 0 more, buffers 0 to 2, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, more), -1,
     "schedule: move 0: part 0 and -1 more, buffers 0 to 1, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 1, AT(move, more), 1,
     "schedule: move 1: part 1 and 1 more, buffers 0 to 1, peer 1 of 2"},
    {HRA_BACKWARD, MOVE, 3, AT(move, more), 1,
     "schedule: move 3: part 0 and 1 more, buffers 0 to 2, peer 1 of 2"},
    {HRA_FORWARD, MOVE, 0, AT(move, more), 1, "schedule: moves 0 and 1 of round 0 share buffer 1"},
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
    const struct hra_work work = {.ranks = 2, .heads_kv = 3, .rank_tile = rank_tile};

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

/* test_model.c - forecasts: timelines that were computed by hand, bytes against plans, what must hold of any timeline, plans
 * counted without lists against listed ones, files that describe machines. */
#include "examples/tools/model.h"
#include "examples/tools/problem.h"
#include "src/model.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A plan on a model of ranks. */
struct made {
    hra_comm *comm;
    hra_order *order;
    hra_mask *mask;
    hra_plan *plan;
};

enum { DIM = 64, TILE_BYTES = 2 * HRA_TILE * DIM * 4 }; /* K and V of a tile in f32, and dK and dV */

static struct made make(int rank, int ranks, int64_t tokens, const char *mask, hra_shard shard,
                        hra_schedule_kind schedule, hra_generator generate)
{
    struct made m = {.comm = NULL};
    hra_domain d = HRA_DOMAIN_INIT;
    hra_problem p = HRA_PROBLEM_INIT;
    hra_options o = HRA_OPTIONS_INIT;

    d.tokens = p.tokens = tokens;
    p.heads = p.threads = 1;
    p.dim = DIM;
    p.type = HRA_F32;
    o.shard = shard;
    o.schedule = schedule;
    cr_assert(eq(int, hra_comm_create_model(&m.comm, rank, ranks), HRA_OK));
    cr_assert(eq(int, hra_mask_parse(&m.mask, &d, NULL, mask), HRA_OK), "%s", hra_last_error());
    cr_assert(eq(int, hra_plan_create_with(&m.plan, m.comm, &p, NULL, m.mask, &o, generate), HRA_OK), "%s",
              hra_last_error());
    return m;
}

static void drop(struct made *m)
{
    hra_plan_destroy(m->plan);
    hra_mask_destroy(m->mask);
    hra_order_destroy(m->order);
    cr_expect(eq(int, hra_comm_destroy(m->comm), HRA_OK));
}

/* A machine on which a full tile of `make` takes a second in either pass, a partial one half of that, and a message of one
 * tile a second; copies cost nothing that shows. */
static hra_machine seconds_machine(void)
{
    const double pairs = (double)HRA_TILE * HRA_TILE;
    const hra_link link = {.rate = TILE_BYTES, .latency_s = 0};
    hra_machine m = {.size = sizeof(m), .inside = link, .between = link, .memory = 1e18};

    m.full[HRA_FORWARD] = pairs * 4 * DIM;
    m.full[HRA_BACKWARD] = pairs * 10 * DIM;
    m.partial[HRA_FORWARD] = 2 * m.full[HRA_FORWARD];
    m.partial[HRA_BACKWARD] = 2 * m.full[HRA_BACKWARD];
    return m;
}

static hra_forecast_info ask(const hra_plan *plan, const hra_machine *machine, hra_pass pass, int rank,
                             int watched)
{
    hra_forecast_info info = {.size = sizeof(info)};
    hra_forecast *f = NULL;

    cr_assert(eq(int, hra_forecast_create(&f, plan, machine, pass, watched), HRA_OK), "%s", hra_last_error());
    cr_assert(eq(int, hra_forecast_get_info(f, rank, &info), HRA_OK), "%s", hra_last_error());
    hra_forecast_destroy(f);
    return info;
}

#define NEAR(a, b) cr_expect(fabs((a) - (b)) < 1e-6, "%s is %.9g, not %.9g", #a, (double)(a), (double)(b))

/* ---- Timelines by hand ---- */

/* Two ranks of a tile each. The hop is half a second longer than the own tile hides. */
Test(model, forward_ring_of_two)
{
    struct made m = make(0, 2, 2 * HRA_TILE, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
    hra_machine machine = seconds_machine();

    machine.inside.latency_s = 0.5;
    const hra_forecast_info all = ask(m.plan, &machine, HRA_FORWARD, -1, 0);
    NEAR(all.seconds, 2.5);
    NEAR(all.compute_s, 2);
    NEAR(all.waiting_s, 0.5);
    NEAR(all.exposed_s, 0.5);
    NEAR(all.alone_s, 4);
    NEAR(all.efficiency, 0.8);
    cr_expect(all.received == 2 * TILE_BYTES && all.sent_most == TILE_BYTES && all.messages == 2 &&
              all.between_nodes == 0);
    const hra_forecast_info one = ask(m.plan, &machine, HRA_FORWARD, 1, 0);
    NEAR(one.seconds, 2.5);
    NEAR(one.alone_s, 2);
    NEAR(one.efficiency, 0.8);
    cr_expect(one.received == TILE_BYTES && one.sent == TILE_BYTES);
    drop(&m);
}

/* K/V of the other rank come at 1.5, dK/dV of them go home at 2.5 and are there at 4. */
Test(model, backward_ring_of_two)
{
    struct made m = make(0, 2, 2 * HRA_TILE, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
    hra_machine machine = seconds_machine();

    machine.inside.latency_s = 0.5;
    const hra_forecast_info all = ask(m.plan, &machine, HRA_BACKWARD, -1, 0);
    NEAR(all.seconds, 4);
    NEAR(all.waiting_s, 2);
    cr_expect(all.received == 4 * TILE_BYTES);
    drop(&m);
}

/* What copies and launches cost: a launch to load K and V of 2 tiles' bytes; a launch a run; an item a query tile. */
Test(model, launches_items_and_memory)
{
    struct made m = make(0, 2, 2 * HRA_TILE, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
    hra_machine machine = seconds_machine();

    machine.launch_s = 0.01;
    machine.item_s[HRA_FORWARD] = 0.1;
    machine.item_s[HRA_BACKWARD] = 0.2;
    machine.memory = TILE_BYTES;
    const hra_forecast_info forward = ask(m.plan, &machine, HRA_FORWARD, -1, 0);
    NEAR(forward.other_s, 0.01 + 2);
    NEAR(forward.compute_s, 2 * (0.01 + 0.1 + 1));
    machine.own_straight = 1;
    NEAR(ask(m.plan, &machine, HRA_FORWARD, -1, 0).other_s, 0);
    machine.own_straight = 0;
    NEAR(forward.seconds, forward.other_s + forward.compute_s);
    NEAR(forward.alone_s, 2 * (0.01 + 0.1 + 2));
    /* delta of o and do (half a tile's K and V each); load; dk and dv of own sums and of one message */
    const hra_forecast_info backward = ask(m.plan, &machine, HRA_BACKWARD, -1, 0);
    NEAR(backward.other_s, (0.01 + 1) + (0.01 + 2) + (0.01 + 3));
    NEAR(backward.compute_s, 2 * (0.01 + 0.2 + 1));
    drop(&m);
}

/* On one node a machine may send up to 16 parts of a message from where they are; what has more, or goes to another node, is
 * copied: read and written. */
Test(model, own_keys_sent_from_where_they_are)
{
    static const struct {
        const char *mask;
        int node_ranks, straight, tiles; /* tiles that rank 1 copies */
    } rows[] = {
        {"blocks(128; 0:240 252 264 276)", 0, 1, 0},
        {"blocks(128; 0:240 252 264 276)", 0, 0, 4},
        {"blocks(128; 0:240 252 264 276)", 1, 1, 4},
        {"blocks(128; 0:240 252 264 276 288 300 312 324 336 348 360 372 384 396 408 420)", 0, 1, 0},
        {"blocks(128; 0:240 252 264 276 288 300 312 324 336 348 360 372 384 396 408 420 432)", 0, 1, 17},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct made m =
            make(0, 2, 480 * HRA_TILE, rows[i].mask, HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_HALO, NULL);
        hra_machine machine = seconds_machine();
        machine.memory = TILE_BYTES;
        machine.node_ranks = rows[i].node_ranks;
        machine.own_straight = rows[i].straight;
        const hra_forecast_info one = ask(m.plan, &machine, HRA_FORWARD, 1, 0);
        NEAR(one.other_s, 2 * rows[i].tiles);
        drop(&m);
    }
}

/* Half of the rate is lost while the hop of 1.5 s is under way: 0.75 s beside the own tile, none beside the other one. */
Test(model, slowdown_beside_messages)
{
    struct made m = make(0, 2, 2 * HRA_TILE, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
    hra_machine machine = seconds_machine();

    machine.inside.latency_s = 0.5;
    machine.inside.slowdown = 0.5;
    const hra_forecast_info all = ask(m.plan, &machine, HRA_FORWARD, -1, 0);
    NEAR(all.seconds, 2.75);
    NEAR(all.compute_s, 2.75);
    NEAR(all.waiting_s, 0);
    drop(&m);
}

/* Four ranks, two a node, 3 s for a message between nodes. Every rank either receives from the other node or has a buffer
 * from which it sends there, so all rounds begin 3 s after one another; the last tile arrives at 9. */
Test(model, ring_over_two_nodes)
{
    struct made m = make(0, 4, 4 * HRA_TILE, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
    hra_machine machine = seconds_machine();

    machine.node_ranks = 2;
    machine.between.rate /= 3;
    const hra_forecast_info all = ask(m.plan, &machine, HRA_FORWARD, -1, 0);
    NEAR(all.seconds, 10);
    NEAR(all.compute_s, 4);
    cr_expect(all.between_nodes == 6 * TILE_BYTES && all.sent == 12 * TILE_BYTES);
    const hra_forecast_info second = ask(m.plan, &machine, HRA_FORWARD, 1, 0);
    NEAR(second.seconds, 9); /* it computes until 8, and the last that it sent is there at 9 */
    drop(&m);
}

/* Each of four ranks needs all of the others: two tiles come from the other node. A card for each rank brings them in 2 s,
 * one for both in 4. */
Test(model, halo_with_shared_cards)
{
    struct made m = make(0, 4, 4 * HRA_TILE, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_HALO, NULL);
    hra_machine machine = seconds_machine();

    machine.node_ranks = 2;
    NEAR(ask(m.plan, &machine, HRA_FORWARD, -1, 0).seconds, 2 + 3);
    machine.between.sharing = 2;
    NEAR(ask(m.plan, &machine, HRA_FORWARD, -1, 0).seconds, 4 + 3);
    machine.inside.rate = TILE_BYTES / 10.0; /* the neighbour's tile is now the last */
    NEAR(ask(m.plan, &machine, HRA_FORWARD, -1, 0).seconds, 10 + 3);
    drop(&m);
}

/* Partial tiles at their own rate: causal, contiguous, two ranks of a tile: rank 0 has a partial one, rank 1 a full one more;
 * its mean tile takes 0.75 s. */
Test(model, partial_tiles)
{
    struct made m = make(0, 2, 2 * HRA_TILE, "causal", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
    hra_machine machine = seconds_machine();

    machine.inside.rate *= 1000;
    NEAR(ask(m.plan, &machine, HRA_FORWARD, 0, 0).seconds, 0.5);
    NEAR(ask(m.plan, &machine, HRA_FORWARD, 1, 0).seconds, 1.5);
    NEAR(ask(m.plan, &machine, HRA_FORWARD, -1, 0).efficiency, 2 / (2 * 1.5));
    drop(&m);
}

/* Rank 1 gets both halves of rank 0's keys in one round, computes against one after the other, then its own. */
static hra_status two_at_once(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass)
{
    const int last = work->rank_tile[rank + 1] - work->rank_tile[rank];

    HRA_TRY(hra_schedule_part(
        out, (struct hra_part){rank, work->rank_tile[rank], work->rank_tile[rank + 1], 0, 1}));
    for (int h = 0; h < 2; h++)
        HRA_TRY(hra_schedule_part(
            out, (struct hra_part){0, hra_work_half(work, 0, h), hra_work_half(work, 0, h + 1), 0, 1}));
    for (int h = 0; rank == 0 && h < 2; h++)
        HRA_TRY(hra_schedule_load(out, 1 + h, h));
    HRA_TRY(hra_schedule_round(out));
    for (int h = 0; h < 2; h++)
        HRA_TRY(hra_schedule_move(
            out, (struct hra_move){.part = 1 + h, .from = h, .to = h, .peer = 1 - rank, .sends = rank == 0}));
    for (int h = 0; rank == 1 && h < 2; h++) {
        HRA_TRY(hra_schedule_run(out, 0, last));
        HRA_TRY(hra_schedule_source(out, (struct hra_source){1 + h, h, h, 1}));
    }
    HRA_TRY(hra_schedule_run(out, 0, last));
    return hra_schedule_source(out, (struct hra_source){0, HRA_OWN, HRA_OWN, pass == HRA_BACKWARD && 0});
}

/* Each by itself the halves, 2 tiles of work each, come at 1 and 2 s, grouped both at 2; 3 tiles are rank 1's own. */
Test(model, grouped_messages)
{
    struct made m = make(0, 2, 4 * HRA_TILE, "causal", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, two_at_once);
    hra_machine machine = seconds_machine();

    machine.partial[HRA_FORWARD] = machine.full[HRA_FORWARD];
    NEAR(ask(m.plan, &machine, HRA_FORWARD, 1, 0).seconds, 1 + 2 + 2 + 3);
    NEAR(ask(m.plan, &machine, HRA_FORWARD, 0, 0).seconds, 3);
    machine.inside.grouped = 1;
    NEAR(ask(m.plan, &machine, HRA_FORWARD, 1, 0).seconds, 2 + 2 + 2 + 3);
    drop(&m);
}

/* Rank 0 sends its tile to rank 1, which computes its own before it takes it, and then to rank 2, which takes it at once. */
static hra_status one_after_another(struct hra_schedule *out, const struct hra_work *work, int rank,
                                    hra_pass pass)
{
    const struct hra_move move = {.part = 0, .peer = rank == 0 ? 1 : 0, .sends = rank == 0};
    struct hra_move second = move;

    (void)pass;
    second.peer = 2;
    for (int r = 0; r < 2; r++)
        HRA_TRY(
            hra_schedule_part(out, (struct hra_part){r == 0 ? 0 : rank, work->rank_tile[r == 0 ? 0 : rank],
                                                     work->rank_tile[r == 0 ? 1 : rank + 1], 0, 1}));
    if (rank == 0)
        HRA_TRY(hra_schedule_load(out, 0, 0));
    HRA_TRY(hra_schedule_round(out));
    if (rank != 1)
        HRA_TRY(hra_schedule_move(out, move));
    if (rank == 1) {
        HRA_TRY(hra_schedule_run(out, 0, 1));
        HRA_TRY(hra_schedule_source(out, (struct hra_source){1, HRA_OWN, HRA_OWN, 0}));
    }
    HRA_TRY(hra_schedule_round(out));
    if (rank == 0)
        HRA_TRY(hra_schedule_move(out, second));
    if (rank == 1)
        HRA_TRY(hra_schedule_move(out, move));
    HRA_TRY(hra_schedule_run(out, 0, 1));
    return hra_schedule_source(out,
                               (struct hra_source){0, rank == 0 ? HRA_OWN : 0, rank == 0 ? HRA_OWN : 0, 1});
}

/* By themselves the messages are under way from 1 to 2 and from 0 to 1; as groups the second follows the first. */
Test(model, groups_follow_one_another)
{
    struct made m =
        make(0, 3, 3 * HRA_TILE, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, one_after_another);
    hra_machine machine = seconds_machine();

    machine.node_ranks = 2; /* so that the two have links of their own */
    for (int r = 0; r < 3; r++)
        NEAR(ask(m.plan, &machine, HRA_FORWARD, r, 0).seconds, r == 0 ? 2 : r == 1 ? 3 : 2);
    machine.inside.grouped = machine.between.grouped = 1;
    for (int r = 0; r < 3; r++)
        NEAR(ask(m.plan, &machine, HRA_FORWARD, r, 0).seconds, r == 0 ? 3 : r == 1 ? 3 : 4);
    drop(&m);
}

/* A schedule that receives what nobody sends is told of, and not waited for. */
static hra_status nobody_sends(struct hra_schedule *out, const struct hra_work *work, int rank, hra_pass pass)
{
    HRA_TRY(two_at_once(out, work, rank, pass));
    if (rank == 0) {
        out->moves--;
        out->round[0].move1--;
    }
    return HRA_OK;
}

Test(model, schedule_that_stops)
{
    struct made m = make(0, 2, 4 * HRA_TILE, "causal", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, nobody_sends);
    const hra_machine machine = seconds_machine();
    hra_forecast *f = NULL;

    cr_expect(eq(int, hra_forecast_create(&f, m.plan, &machine, HRA_FORWARD, 0), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "rank 1 waits for ever in round 0") != NULL, "%s", hra_last_error());
    cr_expect_null(f);
    drop(&m);
}

/* ---- What must hold of any ---- */

/* machine NULL: with the schedule that was drawn; else with that which is chosen for the machine. */
static void begin_choosing(struct made *m, struct setup *s, struct problem *p, uint64_t number, int rank,
                           int ranks, const hra_machine *machine)
{
    cr_assert(eq(int, problem_draw(p, 8, number, HRA_BACKEND_CPU), 0));
    p->threads = 1;
    p->schedule = machine != NULL ? HRA_SCHEDULE_AUTO : p->schedule;
    cr_assert(eq(int, setup_create(s, p), HRA_OK), "%s", hra_last_error());
    s->problem.threads = 1;
    s->options.machine = machine;
    *m = (struct made){.comm = NULL};
    cr_assert(eq(int, hra_comm_create_model(&m->comm, rank, ranks), HRA_OK));
    cr_assert(
        eq(int, hra_plan_create(&m->plan, m->comm, &s->problem, s->order, s->mask, &s->options), HRA_OK),
        "%s", hra_last_error());
}

static void begin_drawn(struct made *m, struct setup *s, struct problem *p, uint64_t number, int rank,
                        int ranks)
{
    begin_choosing(m, s, p, number, rank, ranks, NULL);
}

static void end_drawn(struct made *m, struct setup *s, struct problem *p)
{
    drop(m);
    setup_destroy(s);
    problem_free(p);
}

/* A machine that no two numbers of are alike. */
static hra_machine odd_machine(uint64_t number)
{
    hra_machine m = {
        .size = sizeof(m),
        .node_ranks = 1 + (int)(number % 5),
        .inside = {.rate = 3e9, .latency_s = 7e-6, .slowdown = 0.02, .grouped = (int)(number / 2 % 2)},
        .between = {.rate = 1e9, .latency_s = 31e-6, .slowdown = 0.05, .grouped = (int)(number % 2)},
        .full = {5e10, 4e10},
        .partial = {4e10, 3e10},
        .item_s = {1e-7, 2e-7},
        .launch_s = 1e-6,
        .memory = 9e9,
        .own_straight = (int)(number / 3 % 2)};

    m.between.sharing = 1 + (int)(number / 5) % m.node_ranks;
    return m;
}

/* The bytes of a rank by its moves. */
static void expect_moves(const hra_plan *plan, int rank, hra_pass pass, const hra_forecast_info *f,
                         uint64_t number)
{
    int64_t count = 0, bytes[2] = {0, 0}, messages = 0;

    cr_assert(eq(int, hra_plan_moves(plan, rank, pass, NULL, 0, &count), HRA_OK));
    hra_plan_move *move = calloc((size_t)count + 1, sizeof(*move));
    cr_assert_not_null(move);
    cr_assert(eq(int, hra_plan_moves(plan, rank, pass, move, count, &count), HRA_OK));
    for (int64_t i = 0; i < count; i++) {
        bytes[move[i].sends] += move[i].bytes;
        messages += move[i].sends;
    }
    free(move);
    cr_expect(f->received == bytes[0] && f->sent == bytes[1] && f->messages == messages,
              "problem %lu, rank %d, pass %d: %ld and %ld bytes, the plan has %ld and %ld",
              (unsigned long)number, rank, (int)pass, (long)f->received, (long)f->sent, (long)bytes[0],
              (long)bytes[1]);
}

static void expect_pass(const hra_plan *plan, hra_pass pass, int ranks, uint64_t number)
{
    const hra_machine machine = odd_machine(number);
    hra_forecast_info all = {.size = sizeof(all)};
    hra_plan_info info = {.size = sizeof(info)};
    hra_forecast *f = NULL;
    double last = 0;

    cr_assert(eq(int, hra_forecast_create(&f, plan, &machine, pass, 0), HRA_OK),
              "problem %lu on %d ranks: %s", (unsigned long)number, ranks, hra_last_error());
    cr_assert(eq(int, hra_forecast_get_info(f, -1, &all), HRA_OK));
    cr_assert(eq(int, hra_plan_get_info(plan, &info), HRA_OK));
    cr_expect(all.received == (pass == HRA_FORWARD ? info.bytes_forward : info.bytes_backward) &&
                  all.sent == all.received,
              "problem %lu on %d ranks, pass %d: %ld bytes received, %ld sent", (unsigned long)number, ranks,
              (int)pass, (long)all.received, (long)all.sent);
    for (int r = 0; r < ranks; r++) {
        hra_forecast_info one = {.size = sizeof(one)};
        cr_assert(eq(int, hra_forecast_get_info(f, r, &one), HRA_OK));
        expect_moves(plan, r, pass, &one, number);
        NEAR(one.seconds, one.compute_s + one.other_s + one.waiting_s);
        last = fmax(last, one.seconds);
    }
    NEAR(all.seconds, last);
    hra_forecast_destroy(f);
}

/* Drawn problems: every mask, order, sharding and schedule, on 2 to 8 ranks. */
Test(model, bytes_of_drawn_problems, .timeout = 300)
{
    for (uint64_t n = 0; n < 120; n++) {
        const int ranks = 2 + (int)(n % 7);
        struct made m;
        struct setup s = {.order = NULL};
        struct problem p;

        begin_drawn(&m, &s, &p, n, (int)(n % (uint64_t)ranks), ranks);
        expect_pass(m.plan, HRA_FORWARD, ranks, n);
        expect_pass(m.plan, HRA_BACKWARD, ranks, n);
        end_drawn(&m, &s, &p);
    }
}

/* Nodes that have the same to do, whatever halves of blocks that is, are played as one, as long as nobody wants to see more ranks
 * than it has: which must not change what comes out, nor be done where nodes differ. */
Test(model, one_node_stands_for_all)
{
    static const struct {
        const char *mask;
        hra_shard shard;
    } rows[] = {{"full", HRA_SHARD_ZIGZAG}, {"causal", HRA_SHARD_ZIGZAG}, {"causal", HRA_SHARD_CONTIGUOUS}};

    for (int i = 0; i < 6; i++) {
        struct made m =
            make(0, 8, 16 * HRA_TILE, rows[i / 2].mask, rows[i / 2].shard, HRA_SCHEDULE_RING, NULL);
        hra_machine machine = seconds_machine();
        const hra_pass pass = i % 2 == 0 ? HRA_FORWARD : HRA_BACKWARD;

        machine.node_ranks = 2;
        machine.between.rate /= 3;
        machine.between.slowdown = 0.2;
        machine.partial[pass] = 0.7 * machine.full[pass];
        for (int rank = -1; rank < 8; rank++) {
            const hra_forecast_info one = ask(m.plan, &machine, pass, rank, 0),
                                    all = ask(m.plan, &machine, pass, rank, 8);
            NEAR(one.seconds, all.seconds);
            NEAR(one.compute_s, all.compute_s);
            NEAR(one.waiting_s, all.waiting_s);
            cr_expect(one.received == all.received && one.between_nodes == all.between_nodes);
        }
        drop(&m);
    }
}

/* The schedule that is chosen and, of each of them and of that, both passes played out. */
static int play_choices(double seconds[HRA_SCHEDULE_HEADS + 1], const struct problem *p,
                        const hra_machine *machine, int rank, int ranks)
{
    int chosen = -1;
    struct setup s = {.order = NULL};

    cr_assert(eq(int, setup_create(&s, p), HRA_OK), "%s", hra_last_error());
    s.options.machine = machine;
    for (int kind = HRA_SCHEDULE_AUTO; kind <= HRA_SCHEDULE_HEADS; kind++) {
        struct made m = {.comm = NULL};
        s.options.schedule = (hra_schedule_kind)kind;
        cr_assert(eq(int, hra_comm_create_model(&m.comm, rank, ranks), HRA_OK));
        cr_assert(eq(int, hra_plan_create(&m.plan, m.comm, &s.problem, s.order, s.mask, &s.options), HRA_OK),
                  "%s", hra_last_error());
        chosen = kind == HRA_SCHEDULE_AUTO ? (int)m.plan->schedule : chosen;
        seconds[kind] = 0;
        for (int pass = 0; pass < 2 && kind != HRA_SCHEDULE_AUTO; pass++)
            seconds[kind] += ask(m.plan, machine, (hra_pass)pass, -1, 0).seconds;
        drop(&m);
    }
    setup_destroy(&s);
    return chosen;
}

/* As examples/models has them: two H100, or nodes of 8. */
static hra_machine h100(void)
{
    return (hra_machine){.size = sizeof(hra_machine),
                         .node_ranks = 8,
                         .inside = {.rate = 392e9, .latency_s = 8e-6},
                         .between = {.rate = 45e9, .latency_s = 20e-6, .slowdown = 0.03, .grouped = 1},
                         .full = {660e12, 560e12},
                         .partial = {560e12, 480e12},
                         .item_s = {0.02e-6, 0.03e-6},
                         .launch_s = 4e-6,
                         .memory = 2500e9,
                         .own_straight = 1};
}

struct choice {
    int64_t tokens, grid[3];
    const char *mask, *order;
};

/* What auto takes is at most 5 % slower than the best. Returns what it takes. */
static int expect_good_choice(const struct choice *c, const hra_machine *machine, int ranks)
{
    struct problem p = PROBLEM_DEFAULT;
    double seconds[HRA_SCHEDULE_HEADS + 1];
    char why[256];

    p.tokens = c->tokens;
    memcpy(p.grid, c->grid, sizeof(p.grid));
    p.heads = 16;
    p.dim = 128;
    p.type = HRA_BF16;
    p.threads = 1;
    p.mask = strdup(c->mask);
    p.order = strdup(c->order);
    cr_assert(eq(int, problem_complete(&p, why, sizeof(why)), 0), "%s", why);
    const int chosen = play_choices(seconds, &p, machine, ranks - 1, ranks);
    const double best =
        fmin(seconds[HRA_SCHEDULE_RING], fmin(seconds[HRA_SCHEDULE_HALO], seconds[HRA_SCHEDULE_HEADS]));
    cr_expect(seconds[chosen] <= 1.05 * best, "%s %s on %d ranks: schedule %d takes %.4g ms, the best %.4g",
              c->mask, c->order, ranks, chosen, 1e3 * seconds[chosen], 1e3 * best);
    problem_free(&p);
    return chosen;
}

/* The cases of docs/performance.md. */
Test(model, auto_takes_about_the_least_time, .timeout = 300)
{
    static const struct choice rows[] = {{16384, {0}, "full", "identity"},
                                         {16384, {0}, "causal", "identity"},
                                         {65536, {0}, "full", "identity"},
                                         {65536, {0}, "causal", "identity"},
                                         {65536, {256, 256}, "grid(16,16)", "identity"},
                                         {65536, {256, 256}, "grid(16,16)", "hilbert"},
                                         {65536, {256, 256}, "grid(16,16)", "boxes:8x16"},
                                         {131072, {32, 64, 64}, "grid(4,8,8)", "identity"},
                                         {131072, {32, 64, 64}, "grid(4,8,8)", "hilbert"},
                                         {131072, {32, 64, 64}, "grid(4,8,8)", "boxes:4x4x8"}};
    const hra_machine machine = h100();
    int taken[HRA_SCHEDULE_HEADS + 1] = {0};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (int ranks = 2; ranks <= (rows[i].grid[0] == 0 ? 2 : 64); ranks *= ranks == 2 ? 4 : 8)
            taken[expect_good_choice(&rows[i], &machine, ranks)]++;
    for (int kind = HRA_SCHEDULE_RING; kind <= HRA_SCHEDULE_HEADS; kind++)
        cr_expect(taken[kind] > 0, "schedule %d is never taken", kind);
}

/* Where memory is slow what halo and heads copy and add decides. */
Test(model, auto_counts_what_is_copied_and_added, .timeout = 300)
{
    static const struct choice rows[] = {{16384, {0}, "full", "identity"},
                                         {65536, {0}, "causal", "identity"}};
    hra_machine machine = h100();

    machine.memory = 250e9;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        cr_expect(expect_good_choice(&rows[i], &machine, 8) == HRA_SCHEDULE_RING, "%s", rows[i].mask);
}

/* All ranks choose the same, on nodes and cards of any kind. */
Test(model, ranks_choose_alike, .timeout = 300)
{
    for (uint64_t n = 400; n < 460; n++) {
        const int ranks = 2 + (int)(n % 7);
        const hra_machine machine = odd_machine(n);
        hra_schedule_kind chosen = HRA_SCHEDULE_AUTO;

        for (int rank = 0; rank < ranks; rank++) {
            struct made m;
            struct setup s = {.order = NULL};
            struct problem p;
            begin_choosing(&m, &s, &p, n, rank, ranks, &machine);
            cr_expect(m.plan->schedule != HRA_SCHEDULE_AUTO && (rank == 0 || m.plan->schedule == chosen),
                      "problem %lu: rank %d of %d chooses %d, rank 0 %d", (unsigned long)n, rank, ranks,
                      (int)m.plan->schedule, (int)chosen);
            chosen = m.plan->schedule;
            end_drawn(&m, &s, &p);
        }
    }
}

/* On a model other ranks' tiles are counted, our own are listed. */
Test(model, counted_as_listed, .timeout = 300)
{
    for (uint64_t n = 200; n < 320; n++) {
        const int ranks = 2 + (int)(n % 7);
        struct made m, other;
        struct setup s = {.order = NULL}, t = {.order = NULL};
        struct problem p, q;

        begin_drawn(&m, &s, &p, n, 0, ranks);
        begin_drawn(&other, &t, &q, n, ranks - 1, ranks);
        cr_expect(m.plan->shard == other.plan->shard && m.plan->layout->pieces == other.plan->layout->pieces);
        for (int r = 0; r < ranks; r++) {
            struct hra_rank_stats a = m.plan->stats[r], b = other.plan->stats[r];
            cr_expect(memcmp(&a, &b, sizeof(a)) == 0, "problem %lu, rank %d of %d", (unsigned long)n, r,
                      ranks);
        }
        cr_expect(memcmp(m.plan->live, other.plan->live,
                         (size_t)ranks * (size_t)ranks * HRA_HALVES * sizeof(int64_t)) == 0,
                  "problem %lu on %d ranks", (unsigned long)n, ranks);
        end_drawn(&m, &s, &p);
        end_drawn(&other, &t, &q);
    }
}

/* Where all nodes have the same to do one is played; watching more ranks than it has plays all. */
Test(model, one_node_for_all)
{
    for (int i = 0; i < 24; i++) {
        const hra_pass pass = (hra_pass)(i % 2);
        hra_machine machine = odd_machine((uint64_t)i);
        machine.node_ranks = i / 4 % 3 == 0 ? 0 : i / 4 % 3 == 1 ? 4 : 2;
        machine.between.sharing = i / 12 + 1;
        machine.inside.sharing = i / 12 + 1;
        struct made m = make(3, 16, 16 * 300, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
        for (int rank = -1; rank < 16; rank++) {
            const hra_forecast_info one = ask(m.plan, &machine, pass, rank, 0),
                                    all = ask(m.plan, &machine, pass, rank, 16);
            cr_expect(memcmp(&one, &all, sizeof(one)) == 0, "case %d, rank %d: %.9g and %.9g s", i, rank,
                      one.seconds, all.seconds);
        }
        drop(&m);
    }
}

/* The stream of a rank does one thing at a time and nothing is left out; messages lie inside. */
static void expect_spans(const hra_forecast *f, int rank)
{
    hra_forecast_info info = {.size = sizeof(info)};
    int64_t count = 0, bytes[2] = {0, 0};
    double now = 0, sum[3] = {0, 0, 0};

    cr_assert(eq(int, hra_forecast_get_info(f, rank, &info), HRA_OK));
    cr_assert(eq(int, hra_forecast_spans(f, rank, NULL, 0, &count), HRA_OK));
    hra_span *span = calloc((size_t)count + 1, sizeof(*span));
    cr_assert_not_null(span);
    cr_assert(eq(int, hra_forecast_spans(f, rank, span, count, &count), HRA_OK));
    for (int64_t i = 0; i < count; i++) {
        cr_expect(span[i].begin_s >= 0 && span[i].end_s > span[i].begin_s &&
                  span[i].end_s <= info.seconds + 1e-9);
        if (span[i].kind >= HRA_SPAN_SEND) {
            bytes[span[i].kind == HRA_SPAN_SEND] += span[i].bytes;
            cr_expect(span[i].peer >= 0 && span[i].peer != rank);
            continue;
        }
        NEAR(span[i].begin_s, now);
        now = span[i].end_s;
        sum[span[i].kind] += span[i].end_s - span[i].begin_s;
    }
    NEAR(now, info.seconds);
    NEAR(sum[HRA_SPAN_COMPUTE], info.compute_s);
    NEAR(sum[HRA_SPAN_OTHER], info.other_s);
    NEAR(sum[HRA_SPAN_WAIT], info.waiting_s);
    cr_expect(bytes[0] == info.received && bytes[1] == info.sent);
    free(span);
}

Test(model, spans)
{
    for (int i = 0; i < 8; i++) {
        const hra_machine machine = odd_machine((uint64_t)i);
        struct made m = make(0, 5, 2500, i < 4 ? "causal" : "window(700,200)", HRA_SHARD_ZIGZAG,
                             i / 2 % 2 == 0 ? HRA_SCHEDULE_RING : HRA_SCHEDULE_HALO, NULL);
        hra_forecast *f = NULL;
        cr_assert(eq(int, hra_forecast_create(&f, m.plan, &machine, (hra_pass)(i % 2), 99), HRA_OK), "%s",
                  hra_last_error());
        for (int r = 0; r < 5; r++)
            expect_spans(f, r);
        hra_forecast_destroy(f);
        drop(&m);
    }
}

/* One rank has nobody to wait for, and more ranks than tokens leave some without any. */
Test(model, few_tokens_and_one_rank)
{
    const hra_machine machine = odd_machine(3);

    for (int ranks = 1; ranks < 10; ranks += 4) {
        struct made m = make(0, ranks, 3, "full", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_AUTO, NULL);
        for (int pass = 0; pass < 2; pass++) {
            const hra_forecast_info all = ask(m.plan, &machine, (hra_pass)pass, -1, 0);
            cr_expect(all.seconds > 0 && all.efficiency > 0 && all.efficiency <= 1);
            if (ranks == 1) {
                NEAR(all.efficiency, 1);
                cr_expect(all.messages == 0 && all.waiting_s == 0);
            }
        }
        drop(&m);
    }
}

/* ---- No memory ---- */

static int until_failure; /* 0: none fails */

void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    if (until_failure > 0 && --until_failure == 0)
        return NULL;
    return __real_aligned_alloc(alignment, bytes);
}

/* Whichever allocation fails, the call says so; what it had is given back, as the sanitizers see. */
Test(model, nth_allocation_fails)
{
    for (int i = 0; i < 4; i++) {
        struct made m =
            make(0, 6, 5000, "causal", HRA_SHARD_ZIGZAG, i < 2 ? HRA_SCHEDULE_RING : HRA_SCHEDULE_HALO, NULL);
        const hra_machine machine = odd_machine(3);
        int failed = 0;

        for (hra_forecast *f = NULL; f == NULL; failed++) {
            until_failure = failed + 1;
            const hra_status status = hra_forecast_create(&f, m.plan, &machine, (hra_pass)(i % 2), 3);
            const int fewer = until_failure > 0;
            until_failure = 0;
            cr_assert(status == (fewer ? HRA_OK : HRA_ERR_MEMORY), "allocation %d: %s", failed + 1,
                      hra_status_name(status));
            cr_assert(fewer == (f != NULL));
            if (fewer) {
                hra_forecast_destroy(f);
                break;
            }
        }
        cr_expect(failed > 20, "only %d allocations", failed);
        drop(&m);
    }
}

/* ---- Wrong use ---- */

static void expect_wrong(const hra_plan *plan, hra_machine machine, const char *what)
{
    hra_forecast *f = NULL;

    cr_expect(eq(int, hra_forecast_create(&f, plan, &machine, HRA_FORWARD, 0), HRA_ERR_ARG), "%s", what);
    cr_expect(strstr(hra_last_error(), what) != NULL, "'%s' lacks '%s'", hra_last_error(), what);
    cr_expect_null(f);
}

Test(model, wrong_use)
{
    struct made m = make(0, 4, 1000, "causal", HRA_SHARD_CONTIGUOUS, HRA_SCHEDULE_RING, NULL);
    const hra_machine good = seconds_machine();
    hra_forecast_info info = {.size = sizeof(info)};
    hra_forecast *f = NULL;
    hra_machine bad;
    hra_span span;
    int64_t count;

    cr_expect(eq(int, hra_forecast_create(NULL, m.plan, &good, HRA_FORWARD, 0), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_create(&f, NULL, &good, HRA_FORWARD, 0), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_create(&f, m.plan, NULL, HRA_FORWARD, 0), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_create(&f, m.plan, &good, (hra_pass)2, 0), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_create(&f, m.plan, &good, HRA_FORWARD, -1), HRA_ERR_ARG));
#define BAD(field, value)                                                                                    \
    bad = good;                                                                                              \
    bad.node_ranks = 2;                                                                                      \
    bad.field = value;                                                                                       \
    expect_wrong(m.plan, bad, "machine." #field)
    BAD(node_ranks, -1);
    BAD(inside.rate, 0);
    BAD(inside.latency_s, -1);
    BAD(inside.slowdown, 1);
    BAD(inside.sharing, 3);
    BAD(inside.grouped, 2);
    BAD(between.rate, NAN);
    BAD(full[1], 0);
    BAD(partial[0], INFINITY);
    BAD(item_s[1], -1e-9);
    BAD(launch_s, -1);
    BAD(memory, 0);
    BAD(own_straight, 2);
    bad = good; /* one node: nobody reads what is between */
    bad.between.rate = 0;
    cr_assert(eq(int, hra_forecast_create(&f, m.plan, &bad, HRA_FORWARD, 2), HRA_OK), "%s", hra_last_error());
    cr_expect(eq(int, hra_forecast_get_info(f, 4, &info), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_get_info(f, -2, &info), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_get_info(f, 0, NULL), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_spans(f, 2, &span, 1, &count), HRA_ERR_ARG)); /* not watched */
    cr_expect(eq(int, hra_forecast_spans(f, 0, NULL, 1, &count), HRA_ERR_ARG));
    cr_expect(eq(int, hra_forecast_spans(f, 0, &span, 1, NULL), HRA_ERR_ARG));
    hra_forecast_destroy(f);
    hra_forecast_destroy(NULL);
    drop(&m);
}

/* ---- Files ---- */

/* Read a file of this text. */
static int read_text(hra_machine *out, const char *text, char *why, size_t why_bytes)
{
    char path[] = "/tmp/hra-model-XXXXXX";
    const int file = mkstemp(path);

    cr_assert(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text) && close(file) == 0);
    const int result = model_read(out, path, HRA_BF16, 128, 16, why, why_bytes);
    unlink(path);
    return result;
}

#define NODE "node ranks 8\n"
#define LINKS                                                                                                \
    "inside each rate 390 GB/s latency 8 us slowdown 1 %\n"                                                  \
    "between grouped  rate 45.5 GB/s\tlatency 20 us sharing 4 # four ranks a card\n"
#define REST "memory rate 2500 GB/s\n\n  launch time 4 us\nown straight\n"
#define COMPUTE                                                                                              \
    "compute f32 any forward full 1 TFLOP/s\n"                                                               \
    "compute bf16 128 forward full 660 TFLOP/s partial 500 TFLOP/s item 0.5 us\n"                            \
    "compute any 64 backward full 2 TFLOP/s\ncompute any any backward full 550 TFLOP/s\n"                    \
    "compute bf16 128 backward full 3 TFLOP/s\n"

Test(model, file)
{
    hra_machine m;
    char why[400] = "";

    cr_assert(eq(int, read_text(&m, "# a machine\n" NODE LINKS REST COMPUTE, why, sizeof(why)), 0), "%s",
              why);
    cr_expect(m.size == sizeof(m) && m.node_ranks == 8 && m.inside.grouped == 0 && m.between.grouped == 1);
    cr_expect(m.inside.sharing == 1 && m.between.sharing == 4);
    cr_expect(fabs(m.inside.rate - 390e9) < 1 && fabs(m.between.rate - 45.5e9) < 1 &&
              fabs(m.memory - 2.5e12) < 1);
    NEAR(m.inside.latency_s * 1e6, 8);
    NEAR(m.inside.slowdown, 0.01);
    NEAR(m.between.slowdown, 0);
    NEAR(m.launch_s * 1e6, 4);
    cr_expect(eq(int, m.own_straight, 1));
    NEAR(m.full[0] * 1e-12, 660);
    NEAR(m.partial[0] * 1e-12, 500);
    NEAR(m.item_s[0] * 1e6, 0.5);
    NEAR(m.full[1] * 1e-12, 550); /* the first line that fits */
    NEAR(m.partial[1] * 1e-12, 550);
}

Test(model, wrong_files)
{
    static const struct {
        const char *text, *what;
    } wrong[] = {
        {NODE LINKS REST "compute bf16 128 forward full 660 TFLOP/s\n",
         ": no line 'compute' is for bf16, 128 channels, backward"},
        {NODE REST COMPUTE, ": there is no line 'inside'"},
        {NODE LINKS COMPUTE "launch time 4 us\n", ": there is no line 'memory'"},
        {NODE "inside each rate 1 GB/s latency 0 us\n" REST COMPUTE, ": 16 ranks need several nodes of 8"},
        {"nodes 8\n", ":1: no line begins with 'nodes'"},
        {NODE "own\n", ":2: 'own' wants 'straight'"},
        {NODE "own straight copied\n", ":2: 'own' wants 'straight'"},
        {NODE REST "own copied\n", ":6: 'own' stands a second time; the first is in line 5"},
        {NODE "\n" NODE, ":3: 'node' stands a second time; the first is in line 1"},
        {NODE "inside rate 1 GB/s latency 1 us\n", ":2: 'inside' begins with 'each'"},
        {NODE "inside each rate 390 latency 8 us\n",
         ":2: 'rate' is in GB/s, which must stand behind the number, not 'latency'"},
        {NODE "inside each rate 390 MB/s latency 8 us\n", ":2: 'rate' is in GB/s"},
        {NODE "inside each rate fast GB/s\n", ":2: 'rate' wants a number and GB/s, not 'fast'"},
        {NODE "inside each rate 390\n", ":2: 'rate' is in GB/s"},
        {NODE "inside each rate\n", ":2: 'rate' lacks its number and GB/s"},
        {NODE "inside each rate 0 GB/s latency 8 us\n", ":2: 'rate' is 0; it must be"},
        {NODE "inside each rate nan GB/s latency 8 us\n", ":2: 'rate' wants a number"},
        {NODE "inside each rate 390 GB/s\n", ":2: 'inside' lacks 'latency NUMBER us'"},
        {NODE "inside each rate 390 GB/s rate 3 GB/s latency 1 us\n", ":2: 'rate' stands twice"},
        {NODE "inside each rate 390 GB/s latency 8 us width 3\n",
         ":2: 'width' is none of what 'inside' can have: rate, latency, slowdown, sharing"},
        {NODE "inside each rate 390 GB/s latency 8 us sharing 1.5\n",
         ":2: 'sharing' is 1.5; it must be a whole number"},
        {NODE "inside each rate 390 GB/s latency 8 us slowdown 100 %\n", ":2: 'slowdown' is 100"},
        {"compute bf16\n", ":1: 'compute' wants a type"},
        {"compute bf17 128 forward full 1 TFLOP/s\n", ":1: 'bf17' is no type"},
        {"compute bf16 500 forward full 1 TFLOP/s\n",
         ":1: 'compute' is 500; it must be a whole number, 1 to 256"},
        {"compute bf16 128 sideways full 1 TFLOP/s\n", ":1: 'sideways' is no pass"},
        {"compute bf16 128 forward item 1 us\n", ":1: 'compute' lacks 'full NUMBER TFLOP/s'"},
        {"node ranks 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8\n",
         ":1: more than 32 words"},
    };
    char why[400], line[3000];
    hra_machine m;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        why[0] = '\0';
        cr_expect(read_text(&m, wrong[i].text, why, sizeof(why)) != 0, "%s", wrong[i].what);
        cr_expect(strstr(why, wrong[i].what) != NULL, "'%s' lacks '%s'", why, wrong[i].what);
    }
    memset(line, 'x', sizeof(line));
    memcpy(line, "# ", 2);
    line[sizeof(line) - 2] = '\n';
    line[sizeof(line) - 1] = '\0';
    cr_expect(read_text(&m, line, why, sizeof(why)) != 0 && strstr(why, ":1: the line is longer") != NULL,
              "%s", why);
    cr_expect(model_read(&m, "/no/such.model", HRA_F32, 64, 1, why, sizeof(why)) != 0 &&
                  strstr(why, "/no/such.model: cannot be opened") != NULL,
              "%s", why);
}

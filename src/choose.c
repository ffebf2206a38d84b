/* choose.c - what ring, halo and heads should take, from what ranks know of each other before any schedule is made.
 *
 * Schedules are not played out (model.c) here: that takes all of every rank's, and of halo and heads first of all the ranges
 * that ranks need. The ring is followed round by round, as its waits are its time; of the others each rank is, which waits
 * for the bytes of its link. docs/design.md has what this leaves out, and what it costs. */
#include "src/choose.h"

#include <math.h>
#include <stdlib.h>

/* ---- Machines that nobody describes ---- */

/* CPUs: a process of 2 cores, f32 (docs/performance.md, "Cost against live tiles"); messages over MPI in memory of the node,
 * and 10 Gb/s between nodes. GPUs: examples/models/h100-nodes.model, 128 channels: kernels and copies between two GPUs as
 * measured there, between nodes a card of 400 Gb/s a GPU, through NCCL. */
static const hra_machine cpu_machine = {
    .size = sizeof(hra_machine),
    .inside = {.rate = 5e9, .latency_s = 10e-6},
    .between = {.rate = 1.2e9, .latency_s = 40e-6, .sharing = 1},
    .full = {100e9, 90e9},
    .partial = {85e9, 75e9},
    .launch_s = 5e-6,
    .memory = 8e9,
};
static const hra_machine gpu_machine = {
    .size = sizeof(hra_machine),
    .inside = {.rate = 392e9, .latency_s = 8e-6},
    .between = {.rate = 45e9, .latency_s = 20e-6, .slowdown = 0.03, .sharing = 1, .grouped = 1},
    .full = {660e12, 560e12},
    .partial = {560e12, 480e12},
    .item_s = {0.02e-6, 0.03e-6},
    .launch_s = 4e-6,
    .memory = 2500e9,
    .own_straight = 1,
};

hra_status hra_choose_machine(hra_machine *out, const hra_machine *given, const struct hra_backend *backend,
                              int ranks)
{
    const hra_machine *usual = backend == &hra_backend_cpu ? &cpu_machine : &gpu_machine;

    return hra_machine_read(out, given != NULL ? given : usual, ranks);
}

/* ---- What estimates share ---- */

/* When a link has carried what it has to, by hra_machine_link: [far][0: out, 1: in][ranks]. */
struct links {
    double *busy[2][2];
};

/* One pass of one schedule. Arrays are [ranks]. */
struct estimate {
    struct hra_costs costs;
    const struct hra_work *work;
    double *tile_s; /* of a live tile of each rank */
    double *now;    /* how far each rank is, in seconds */
    double *begin;  /* when it came to the round that it is in */
    double *beside; /* seconds that compute loses by the messages of this round */
    struct links links;
};

static int is_far(const struct estimate *e, int a, int b)
{
    return a / e->costs.machine->node_ranks != b / e->costs.machine->node_ranks;
}

static const hra_link *link_of(const struct estimate *e, int far)
{
    return far ? &e->costs.machine->between : &e->costs.machine->inside;
}

static int count_queries(const struct estimate *e, int rank)
{
    return e->work->rank_tile[rank + 1] - e->work->rank_tile[rank];
}

/* A rank computes so many of its live tiles, for so many K/V heads. */
static void compute(struct estimate *e, int rank, double tiles, int heads_kv)
{
    const hra_machine *m = e->costs.machine;
    const double slow = fmax(m->inside.slowdown, m->node_ranks < e->work->ranks ? m->between.slowdown : 0);
    const double seconds =
        hra_cost_kernel(&e->costs, e->tile_s[rank], (int64_t)tiles, count_queries(e, rank), heads_kv);

    e->now[rank] += seconds + fmin(e->beside[rank], seconds * slow / (1 - slow));
    e->beside[rank] = 0;
}

static double last_of(const double *seconds, int count)
{
    double last = 0;

    for (int i = 0; i < count; i++)
        last = fmax(last, seconds[i]);
    return last;
}

/* ---- The ring ---- */

/* Arrays are [parts][ranks]: when the last message of K/V, and of dK/dV, of each part is there. */
struct ring_estimate {
    struct estimate *all;
    const struct hra_ring *ring;
    int parts;
    double *came[HRA_PAYLOADS], *went;
    double *bytes[HRA_PAYLOADS]; /* of the part of each owner */
    double *home;                /* [ranks] when the last dK/dV of its own are there */
    double *adds;                /* [ranks] bytes of those */
    int *added;                  /* [ranks] how many */
};

/* Put a message behind what its links have to carry; when it is there. */
static double carry(struct estimate *e, int from, int to, double bytes)
{
    const int far = is_far(e, from, to), end[2] = {from, to};
    const hra_link *link = link_of(e, far);
    const double ready = fmax(e->begin[from], e->begin[to]), seconds = bytes / link->rate;
    double last = 0;

    for (int i = 0; i < 2; i++) {
        double *busy = &e->links.busy[far][i][hra_machine_link(e->costs.machine, link, end[i])];
        *busy = fmax(*busy, ready) + seconds;
        last = fmax(last, *busy);
        e->beside[end[i]] = fmax(e->beside[end[i]], link->slowdown * (seconds + link->latency_s));
    }
    return last + link->latency_s;
}

static int wrap(int rank, int ranks)
{
    return rank < 0 ? rank + ranks : rank >= ranks ? rank - ranks : rank;
}

/* What every rank sends behind step t: K/V of part p, or dK/dV of it on, or home. */
static void send_step(struct ring_estimate *g, enum hra_payload payload, int t, int p)
{
    struct estimate *e = g->all;
    const int ranks = e->work->ranks;

    for (int r = 0; r < ranks; r++) {
        const int owner = wrap(r - t, ranks), next = wrap(r + 1, ranks);
        int first, last;
        hra_ring_trip(g->ring, owner, p, &first, &last);
        if (last > t && (payload == HRA_KV || first <= t)) {
            const double there = carry(e, r, next, g->bytes[payload][p * ranks + owner]);
            g->came[payload][p * ranks + next] = there;
            if (payload == HRA_KV)
                g->went[p * ranks + r] = there;
        } else if (payload == HRA_DKV && last == t) {
            const double bytes = g->bytes[payload][p * ranks + owner];
            g->home[owner] = fmax(g->home[owner], carry(e, r, owner, bytes));
            g->adds[owner] += bytes;
            g->added[owner]++;
        }
    }
}

/* Every rank computes part p of step t. */
static void run_step(struct ring_estimate *g, int t, int p)
{
    struct estimate *e = g->all;
    const int ranks = e->work->ranks;

    for (int r = 0; r < ranks; r++) {
        int first, last;
        const int owner = wrap(r - t, ranks);
        const struct hra_part *part = hra_ring_trip(g->ring, owner, p, &first, &last);
        const int heads = part->head1 - part->head0;
        const double tiles = part->key_tile0 == part->key_tile1
                                 ? 0
                                 : (double)hra_work_live(e->work, r, part) * heads / e->work->heads_kv;
        e->now[r] = e->begin[r];
        if (e->costs.pass == HRA_BACKWARD && t > 0 && first < t)
            e->now[r] = fmax(e->now[r], g->came[HRA_DKV][p * ranks + r]);
        if (tiles > 0)
            compute(e, r, tiles, heads);
    }
}

/* Round by round as schedule.c has them: the waits for what came and for what was sent from where the next comes, then
 * messages, then runs. */
static void follow_ring(struct ring_estimate *g)
{
    struct estimate *e = g->all;
    const int ranks = e->work->ranks, others = (ranks - 1) * g->parts;
    int before_t = 0, before_p = 0;

    for (int k = 0; k < hra_ring_rounds(g->ring); k++) {
        const int own = k == 0 || k > others;
        const int t = own ? 0 : 1 + (k - 1) / g->parts, p = !own     ? (k - 1) % g->parts
                                                            : k == 0 ? g->parts - 1
                                                                     : k - others - 1;
        for (int r = 0; r < ranks; r++) {
            e->begin[r] = e->now[r];
            if (t > 0)
                e->begin[r] = fmax(e->begin[r], fmax(g->came[HRA_KV][p * ranks + r], g->went[p * ranks + r]));
        }
        if (k < g->parts)
            send_step(g, HRA_KV, 0, k);
        if (t > 0)
            send_step(g, HRA_KV, t, p);
        if (e->costs.pass == HRA_BACKWARD && before_t > 0)
            send_step(g, HRA_DKV, before_t, before_p);
        run_step(g, t, p);
        before_t = t;
        before_p = p;
    }
}

/* Own parts are copied, to be sent from there, unless they are sent from where they are. */
static void begin_ring(struct ring_estimate *g)
{
    struct estimate *e = g->all;
    const int ranks = e->work->ranks;

    for (int r = 0; r < ranks; r++) {
        double bytes = 0;
        int loads = 0;
        for (int p = 0; p < g->parts; p++) {
            int first, last;
            const struct hra_part *part = hra_ring_trip(g->ring, r, p, &first, &last);
            for (int payload = 0; payload < HRA_PAYLOADS && part->key_tile0 < part->key_tile1; payload++)
                g->bytes[payload][p * ranks + r] =
                    (double)hra_plan_part_bytes(e->costs.plan, part, (enum hra_payload)payload, NULL);
            const int copied = last > 0 && hra_cost_straight(&e->costs) == 0;
            bytes += copied ? g->bytes[HRA_KV][p * ranks + r] : 0;
            loads += copied;
        }
        e->now[r] =
            hra_cost_before(&e->costs, r) + hra_cost_memory(&e->costs, 2 * bytes, hra_cost_launches(loads));
    }
}

static hra_status estimate_ring(struct estimate *e)
{
    struct ring_estimate g = {.all = e};
    struct hra_ring *ring = NULL;
    const int ranks = e->work->ranks;

    HRA_TRY(hra_ring_open(&ring, e->work, e->costs.pass));
    g.ring = ring;
    g.parts = hra_ring_rounds(ring) / ranks;
    hra_status status =
        hra_alloc((void **)&g.went, (5 * HRA_HALVES + 2) * (int64_t)ranks, sizeof(double), "estimate");
    if (status == HRA_OK)
        status = hra_alloc((void **)&g.added, ranks, sizeof(int), "estimate");
    if (status == HRA_OK) {
        double **const array[] = {&g.came[HRA_KV], &g.came[HRA_DKV], &g.bytes[HRA_KV], &g.bytes[HRA_DKV],
                                  &g.home};
        for (size_t i = 0; i < sizeof(array) / sizeof(array[0]); i++)
            *array[i] = g.went + (i + 1) * HRA_HALVES * (size_t)ranks;
        g.adds = g.home + ranks;
        begin_ring(&g);
        follow_ring(&g);
        for (int r = 0; r < ranks; r++)
            e->now[r] = fmax(e->now[r], g.home[r]) + hra_cost_behind(&e->costs, r) +
                        hra_cost_memory(&e->costs, 3 * g.adds[r], g.added[r]);
    }
    free(g.went);
    free(g.added);
    hra_ring_close(ring);
    return status;
}

/* ---- The halo, and heads ---- */

/* Who needs how many rows of K/V of whom. Arrays are [ranks], those of links by hra_machine_link. */
struct traffic {
    double *link[2][2]; /* [far][0: out, 1: in] rows over each link */
    double *come;       /* that a rank needs of others */
    double *sent;       /* that others need of it */
    double *load;       /* that it has buffers for: what several want alike is there once */
    double *copied;     /* that is copied into them, and not sent from where it is */
    double *copies;     /* in so many ranges */
    double *homes;      /* launches that add what comes home, of a group */
    double *remote;     /* live tiles against others */
    double *half;       /* [ranks][HRA_HALVES] rows of halves of keys */
    double *late;       /* scratch: when a rank's link has carried all so far */
    int *alike;         /* bit s: somebody wants all of the set s of halves */
};

/* Rows of an owner's halves in which a rank has live tiles, and which halves these are, a bit each. */
static double wanted_rows(const struct traffic *t, const struct hra_work *work, int rank, int owner,
                          int *halves)
{
    double rows = 0;

    *halves = 0;
    for (int h = 0; h < HRA_HALVES; h++)
        if (work->live[((int64_t)rank * work->ranks + owner) * HRA_HALVES + h] > 0) {
            rows += t->half[owner * HRA_HALVES + h];
            *halves |= 1 << h;
        }
    return rows;
}

/* What `rank` needs of others. Known is how many rows in all; each owner's part of them is that of its live halves. */
static void count_visits(struct traffic *t, const struct estimate *e, int rank)
{
    const struct hra_work *work = e->work;
    const struct hra_rank_stats *s = &e->costs.plan->stats[rank];
    double all = 0;
    int halves;

    for (int o = 0; o < work->ranks; o++)
        all += o != rank ? wanted_rows(t, work, rank, o, &halves) : 0;
    for (int o = 0; o < work->ranks; o++) {
        const double rows = o != rank ? wanted_rows(t, work, rank, o, &halves) : 0;
        if (rows == 0)
            continue;
        const double part = rows / all, needed = part * (double)s->rows_needed;
        const int far = is_far(e, rank, o), whole = needed > 0.999 * rows;
        const hra_link *link = link_of(e, far);
        t->link[far][0][hra_machine_link(e->costs.machine, link, o)] += needed;
        t->link[far][1][hra_machine_link(e->costs.machine, link, rank)] += needed;
        t->come[rank] += needed;
        t->sent[o] += needed;
        t->homes[o] += fmax(1, 2 * part * (double)s->ranges / HRA_ROWS_AT_ONCE);
        for (int h = 0; h < HRA_HALVES; h++)
            t->remote[rank] += (double)work->live[((int64_t)rank * work->ranks + o) * HRA_HALVES + h];
        if (!whole || !(t->alike[o] & 1 << halves)) {
            const double ranges = part * (double)s->ranges;
            const int straight = ceil(ranges) <= hra_cost_straight(&e->costs);
            t->load[o] += needed;
            t->copied[o] += straight ? 0 : needed;
            t->copies[o] += straight ? 0 : ranges;
        }
        t->alike[o] |= whole ? 1 << halves : 0;
    }
}

static hra_status open_traffic(struct traffic *t, const struct estimate *e)
{
    const hra_plan *plan = e->costs.plan;
    const int ranks = e->work->ranks;
    double *room = NULL;

    HRA_TRY(hra_alloc((void **)&t->alike, ranks, sizeof(*t->alike), "estimate"));
    HRA_TRY(hra_alloc((void **)&room, (12 + HRA_HALVES) * (int64_t)ranks, sizeof(*room), "estimate"));
    double **const array[] = {&t->link[0][0], &t->link[0][1], &t->link[1][0], &t->link[1][1], &t->come,
                              &t->sent,       &t->load,       &t->copied,     &t->copies,     &t->homes,
                              &t->remote,     &t->late,       &t->half};
    for (size_t i = 0; i < sizeof(array) / sizeof(array[0]); i++)
        *array[i] = room + i * (size_t)ranks;
    for (int i = 0; i < ranks * HRA_HALVES; i++) {
        const struct hra_part part = {.key_tile0 = hra_work_half(e->work, i / HRA_HALVES, i % HRA_HALVES),
                                      .key_tile1 =
                                          hra_work_half(e->work, i / HRA_HALVES, i % HRA_HALVES + 1)};
        if (part.key_tile0 < part.key_tile1)
            t->half[i] = (double)hra_plan_part_rows(plan, &part);
    }
    for (int r = 0; r < ranks; r++)
        count_visits(t, e, r);
    return HRA_OK;
}

static void close_traffic(struct traffic *t)
{
    free(t->link[0][0]);
    free(t->alike);
}

/* The messages of a group, as a rank's links have them. */
struct passage {
    double seconds; /* that they take on the busier one */
    double latency; /* behind that */
    double lost;    /* seconds that compute beside them loses */
};

static struct passage pass_rows(const struct traffic *t, const struct estimate *e, int rank,
                                enum hra_payload payload, int groups)
{
    struct passage p = {0, 0, 0};

    for (int far = 0; far < 2; far++) {
        const hra_link *link = link_of(e, far);
        if (far && e->costs.machine->node_ranks >= e->work->ranks)
            break;
        const int i = hra_machine_link(e->costs.machine, link, rank);
        const double rows = fmax(t->link[far][0][i], t->link[far][1][i]) / groups;
        const double seconds = hra_cost_rows(&e->costs, rows, payload) / link->rate;
        if (rows == 0)
            continue;
        /* A group begins when the one before it is over. */
        p.seconds = fmax(p.seconds, seconds + (link->grouped ? link->latency_s : 0));
        p.latency = fmax(p.latency, link->grouped ? 0 : link->latency_s);
        p.lost = fmax(p.lost, link->slowdown * (seconds + link->latency_s));
    }
    return p;
}

/* Own tiles, and in how many parts they are computed. */
static double own_tiles(const struct traffic *t, const struct estimate *e, int rank, int groups, int *parts)
{
    const int backward = e->costs.pass == HRA_BACKWARD;
    const int waits = t->come[rank] > 0 || (backward && t->sent[rank] > 0);

    *parts = !waits ? 1 : groups > 1 ? groups : 1 + backward;
    return (double)e->costs.plan->stats[rank].work - t->remote[rank];
}

/* dK/dV of a group are added at their owner. */
static double add_s(const struct traffic *t, const struct estimate *e, int rank, int groups)
{
    return hra_cost_memory(&e->costs, 3 * hra_cost_rows(&e->costs, t->sent[rank], HRA_DKV) / groups,
                           (int64_t)(t->homes[rank] + 0.5));
}

/* A rank until all but the own tiles that come last are computed. Messages begin when all have copied what they send. */
static void follow_groups(struct traffic *t, struct estimate *e, int rank, int groups, double ready)
{
    const int backward = e->costs.pass == HRA_BACKWARD, heads = e->work->heads_kv;
    const struct passage kv = pass_rows(t, e, rank, HRA_KV, groups),
                         dkv = pass_rows(t, e, rank, HRA_DKV, groups);
    double *now = &e->now[rank], link = ready + kv.seconds, arrives = link + kv.latency, home = 0;
    int parts;
    const double own = own_tiles(t, e, rank, groups, &parts);

    e->beside[rank] = kv.lost;
    compute(e, rank, own / parts, heads / parts);
    for (int g = 0; g < groups; g++) {
        const double here = arrives;
        const int joined = g > 0 && g < parts - backward;
        if (g + 1 < groups) {
            link = fmax(link, *now) + kv.seconds;
            arrives = link + kv.latency;
            e->beside[rank] = kv.lost;
        }
        if (backward && g > 0) {
            *now = g > 1 ? fmax(*now, home) + add_s(t, e, rank, groups) : *now;
            link = fmax(link, *now) + dkv.seconds;
            home = link + dkv.latency;
            e->beside[rank] += dkv.lost;
        }
        if (t->come[rank] > 0)
            *now = fmax(*now, here);
        if (t->come[rank] > 0 || joined)
            compute(e, rank, t->remote[rank] / groups + (joined ? own / parts : 0), heads / groups);
    }
    if (backward && groups > 1)
        *now = fmax(*now, home) + add_s(t, e, rank, groups);
    t->late[rank] = link;
}

/* The last dK/dV go home, when whoever is last has them, beside the last own tiles. */
static void follow_home(struct traffic *t, struct estimate *e, int rank, int groups, double ready)
{
    const struct passage dkv = pass_rows(t, e, rank, HRA_DKV, groups);
    const double begin = fmax(t->late[rank], t->sent[rank] > 0 ? ready : e->now[rank]);
    int parts;
    const double own = own_tiles(t, e, rank, groups, &parts);

    e->beside[rank] = dkv.lost;
    if (parts > 1)
        compute(e, rank, own / parts, e->work->heads_kv / parts);
    if (dkv.seconds > 0)
        e->now[rank] = fmax(e->now[rank], begin + dkv.seconds + dkv.latency);
    e->now[rank] += add_s(t, e, rank, groups) + hra_cost_behind(&e->costs, rank);
}

static void estimate_direct(struct estimate *e, struct traffic *t, int groups)
{
    const int ranks = e->work->ranks;

    for (int r = 0; r < ranks; r++)
        e->now[r] = hra_cost_before(&e->costs, r) +
                    hra_cost_memory(&e->costs, 2 * hra_cost_rows(&e->costs, t->copied[r], HRA_KV),
                                    hra_cost_launches((int64_t)(groups * t->copies[r] + 0.5)));
    const double loaded = last_of(e->now, ranks);
    for (int r = 0; r < ranks; r++)
        follow_groups(t, e, r, groups, loaded);
    if (e->costs.pass == HRA_FORWARD)
        return;
    const double computed = last_of(e->now, ranks);
    for (int r = 0; r < ranks; r++)
        follow_home(t, e, r, groups, computed);
}

/* ---- Choosing ---- */

/* A schedule may hold so many times the ring's memory, and as many times more as it is faster. Dense masks on many ranks would
 * else take the memory of all keys for a few percent. */
enum { MOST_MEMORY = 4 };

/* Of each schedule, by hra_schedule_kind: what both passes take, and bytes of its buffers on the rank with most. */
struct offer {
    double seconds, bytes;
};

/* The ring's buffers hold two blocks of K/V and three of dK/dV; the others' what docs/design.md says. */
static void find_memory(struct offer offer[HRA_SCHEDULE_HEADS + 1], const struct estimate *e,
                        const struct traffic *t, int groups)
{
    const struct hra_costs *c = &e->costs;
    const double sets = 2.0 / groups;

    for (int r = 0; r < e->work->ranks; r++) {
        const double rows = (double)c->plan->layout->rows[r], come = t->come[r], sent = t->sent[r];
        const double load = hra_cost_rows(c, t->load[r], HRA_KV);
        const double bytes[] = {
            [HRA_SCHEDULE_RING] = 2 * hra_cost_rows(c, rows, HRA_KV) + 3 * hra_cost_rows(c, rows, HRA_DKV),
            [HRA_SCHEDULE_HALO] =
                hra_cost_rows(c, come, HRA_KV) + load + hra_cost_rows(c, come + sent, HRA_DKV),
            [HRA_SCHEDULE_HEADS] = sets * hra_cost_rows(c, come, HRA_KV) + load +
                                   hra_cost_rows(c, sets * come + sent / groups, HRA_DKV)};
        for (int kind = HRA_SCHEDULE_RING; kind <= HRA_SCHEDULE_HEADS; kind++)
            offer[kind].bytes = fmax(offer[kind].bytes, bytes[kind]);
    }
}

static void forget(struct estimate *e)
{
    for (int i = 0; i < 7 * e->work->ranks; i++)
        e->now[i] = 0; /* and begin, beside, and the links behind them */
}

static hra_status make_offers(struct offer offer[HRA_SCHEDULE_HEADS + 1], struct estimate *e,
                              struct traffic *t)
{
    const int groups = hra_work_groups(e->work);

    find_memory(offer, e, t, groups);
    for (int pass = 0; pass < 2; pass++) {
        e->costs.pass = (hra_pass)pass;
        for (int r = 0; r < e->work->ranks; r++)
            e->tile_s[r] = hra_cost_tile(&e->costs, r);
        for (int kind = HRA_SCHEDULE_RING; kind <= HRA_SCHEDULE_HEADS; kind++) {
            forget(e);
            if (kind == HRA_SCHEDULE_RING)
                HRA_TRY(estimate_ring(e));
            else
                estimate_direct(e, t, kind == HRA_SCHEDULE_HALO ? 1 : groups);
            offer[kind].seconds += last_of(e->now, e->work->ranks);
        }
    }
    if (groups == 1) /* heads are not for one K/V head */
        offer[HRA_SCHEDULE_HEADS].seconds = INFINITY;
    return HRA_OK;
}

/* Of those whose memory is in bounds the first that takes at most 2 % longer than the best, in the order of their memory. */
static hra_schedule_kind pick(const struct offer offer[HRA_SCHEDULE_HEADS + 1])
{
    static const hra_schedule_kind order[] = {HRA_SCHEDULE_RING, HRA_SCHEDULE_HEADS, HRA_SCHEDULE_HALO};
    const struct offer *ring = &offer[HRA_SCHEDULE_RING];
    double seconds[3], best = INFINITY;
    int i = 0;

    for (int k = 0; k < 3; k++) {
        const struct offer *o = &offer[order[k]];
        seconds[k] = o == ring || o->bytes * o->seconds <= MOST_MEMORY * ring->bytes * ring->seconds
                         ? o->seconds
                         : INFINITY;
        best = fmin(best, seconds[k]);
    }
    while (seconds[i] > 1.02 * best)
        i++;
    return order[i];
}

hra_status hra_choose_schedule(hra_plan *plan)
{
    const int ranks = plan->work.ranks;
    struct estimate e = {.costs = {plan, &plan->machine, HRA_FORWARD}, .work = &plan->work};
    struct traffic traffic = {.alike = NULL};
    struct offer offer[HRA_SCHEDULE_HEADS + 1] = {{0, 0}};

    HRA_TRY(hra_alloc((void **)&e.now, 8 * (int64_t)ranks, sizeof(*e.now), "estimate"));
    e.begin = e.now + ranks;
    e.beside = e.begin + ranks;
    for (int i = 0; i < 4; i++)
        e.links.busy[i / 2][i % 2] = e.beside + (size_t)(i + 1) * (size_t)ranks;
    e.tile_s = e.now + 7 * (size_t)ranks;
    hra_status status = open_traffic(&traffic, &e);
    if (status == HRA_OK)
        status = make_offers(offer, &e, &traffic);
    close_traffic(&traffic);
    free(e.now);
    HRA_TRY(status);
    plan->schedule = pick(offer);
    plan->generate = hra_schedules[plan->schedule].generate;
    hra_log(HRA_LOG_INFO, "schedule %s: ring %.4g ms, halo %.4g, heads %.4g, by estimate",
            hra_schedules[plan->schedule].name, 1e3 * offer[HRA_SCHEDULE_RING].seconds,
            1e3 * offer[HRA_SCHEDULE_HALO].seconds, 1e3 * offer[HRA_SCHEDULE_HEADS].seconds);
    return HRA_OK;
}

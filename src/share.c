/* share.c - what ranks tell each other when a plan is made. Each compiles its own queries only. */
#include "src/share.h"

#include "src/choose.h"
#include "src/count.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- What ranks must agree on ---- */

enum { FIELDS = 15 };

static const char *const field_name[FIELDS] = {"batch",
                                               "heads",
                                               "heads_kv",
                                               "head0",
                                               "dim",
                                               "dim_v",
                                               "tokens",
                                               "type",
                                               "scale",
                                               "options.shard",
                                               "options.schedule",
                                               "options.backend",
                                               "options.backward",
                                               "options.saved",
                                               "a mask for so many heads:"};

/* Everything that all ranks must plan alike. */
struct signature {
    double field[FIELDS];
    uint64_t mask, order, machine;      /* hashes */
    int local_ranks;                    /* may differ */
    char mask_text[80], order_text[64]; /* their beginnings, for the message */
};

/* Of all numbers, not of what is between them. */
static uint64_t hash_machine(const hra_machine *m)
{
    const double number[] = {
        m->node_ranks,      m->inside.rate,  m->inside.latency_s,  m->inside.slowdown,  m->inside.sharing,
        m->inside.grouped,  m->between.rate, m->between.latency_s, m->between.slowdown, m->between.sharing,
        m->between.grouped, m->full[0],      m->full[1],           m->partial[0],       m->partial[1],
        m->item_s[0],       m->item_s[1],    m->launch_s,          m->memory,           m->own_straight};
    return hra_hash(HRA_HASH_BEGIN, number, sizeof(number));
}

static struct signature sign(const hra_plan *plan)
{
    const hra_problem *p = &plan->problem;
    struct signature s;

    memset(&s, 0, sizeof(s)); /* padding is compared too */
    const double field[FIELDS] = {p->batch,
                                  p->heads,
                                  p->heads_kv,
                                  p->head0,
                                  p->dim,
                                  p->dim_v,
                                  (double)p->tokens,
                                  p->type,
                                  p->scale,
                                  plan->options.shard,
                                  plan->options.schedule,
                                  plan->options.backend,
                                  plan->options.backward,
                                  plan->options.saved,
                                  hra_mask_space(plan->mask)->heads};
    memcpy(s.field, field, sizeof(field));
    s.mask = hra_mask_hash(plan->mask);
    s.order = plan->order->hash;
    s.machine = hash_machine(&plan->machine);
    s.local_ranks = plan->comm->local_ranks;
    hra_mask_print(plan->mask, s.mask_text, sizeof(s.mask_text));
    snprintf(s.order_text, sizeof(s.order_text), "%s", plan->order->name);
    return s;
}

/* Compare with rank 0's; all ranks find the same first difference. */
static hra_status compare(const struct signature *all, int ranks)
{
    for (int r = 1; r < ranks; r++) {
        for (int f = 0; f < FIELDS; f++)
            if (all[r].field[f] != all[0].field[f])
                return HRA_FAIL(HRA_ERR_MISMATCH, "rank %d plans %s %.17g, rank 0 %.17g", r, field_name[f],
                                all[r].field[f], all[0].field[f]);
        if (all[r].order != all[0].order)
            return HRA_FAIL(HRA_ERR_MISMATCH, "rank %d plans another order, '%s', than rank 0, '%s'", r,
                            all[r].order_text, all[0].order_text);
        if (all[r].machine != all[0].machine)
            return HRA_FAIL(HRA_ERR_MISMATCH,
                            "rank %d plans for another machine, options.machine, than rank 0", r);
        if (all[r].mask != all[0].mask)
            return HRA_FAIL(HRA_ERR_MISMATCH, "rank %d plans another mask, '%s', than rank 0, '%s'", r,
                            all[r].mask_text, all[0].mask_text);
    }
    return HRA_OK;
}

hra_status hra_share_alike(hra_plan *plan, hra_status status)
{
    hra_comm *comm = plan->comm;
    struct signature *all = NULL;

    if (comm->transport->allgather == NULL)
        return status;
    if (status == HRA_OK)
        status = hra_alloc((void **)&all, comm->ranks, sizeof(*all), "agreement");
    status = hra_comm_agree(comm, status);
    if (status == HRA_OK) {
        const struct signature mine = sign(plan);
        status = hra_comm_allgather(comm, all, &mine, sizeof(mine));
    }
    if (status == HRA_OK)
        status = compare(all, comm->ranks);
    for (int r = 0; status == HRA_OK && plan->options.machine == NULL && r < comm->ranks; r++)
        plan->machine.node_ranks =
            all[r].local_ranks < plan->machine.node_ranks ? all[r].local_ranks : plan->machine.node_ranks;
    free(all);
    return status;
}

/* ---- Compiling ---- */

static size_t record_bytes(int ranks)
{
    return sizeof(struct hra_rank_stats) + (size_t)ranks * HRA_HALVES * sizeof(int64_t);
}

/* What `tiles`, surveyed or finished, say about their rank; live [ranks][HRA_HALVES]. */
static void count_work(struct hra_rank_stats *stats, int64_t *live, const struct hra_tiles *t,
                       const struct hra_layout *l)
{
    const struct hra_work work = {.ranks = l->ranks, .rank_tile = l->rank_tile};

    *stats = (struct hra_rank_stats){.pairs_live = t->pairs_live,
                                     .pairs_counted = t->pairs_counted,
                                     .pairs_in_tiles = t->pairs_in_tiles,
                                     .tiles_full = t->tiles_full,
                                     .tiles_partial = t->tiles_partial};
    memset(live, 0, (size_t)l->ranks * HRA_HALVES * sizeof(*live));
    for (int q = 0; q < t->queries; q++) {
        stats->work += t->row_work[q];
        stats->heaviest = t->row_work[q] > stats->heaviest ? t->row_work[q] : stats->heaviest;
    }
    for (int o = 0; o < l->ranks; o++) {
        const int second = hra_work_half(&work, o, 1);
        for (int k = l->rank_tile[o]; k < l->rank_tile[o + 1]; k++) {
            live[o * HRA_HALVES + (k >= second)] += t->column_work[k];
            stats->rows_needed += o != t->rank && t->column_work[k] > 0 ? l->tile[k].rows : 0;
        }
    }
}

/* One way to shard: layout, our tiles, what every rank computes, and, for the halo and for heads, which
 * keys of others it needs. */
struct candidate {
    hra_shard shard;
    struct hra_layout *layout;
    struct hra_tiles *tiles;
    char *record;             /* [ranks][record_bytes] */
    struct hra_range **range; /* [ranks] stats' ranges; NULL for a rank that is another process */
    int ranks;                /* in range */
};

static struct hra_rank_stats *record_stats(const struct candidate *c, int rank)
{
    return (struct hra_rank_stats *)(void *)(c->record + (size_t)rank * record_bytes(c->layout->ranks));
}

static int64_t *record_live(const struct candidate *c, int rank)
{
    return (int64_t *)(void *)(record_stats(c, rank) + 1);
}

static void drop_candidate(struct candidate *c)
{
    hra_layout_destroy(c->layout);
    hra_tiles_destroy(c->tiles);
    free(c->record);
    for (int r = 0; r < c->ranks; r++)
        free(c->range[r]);
    free(c->range);
    *c = (struct candidate){.layout = NULL};
}

static hra_status survey_rank(struct hra_tiles **out, const hra_plan *plan, const struct hra_layout *layout,
                              int rank)
{
    const hra_problem *p = &plan->problem;
    return hra_tiles_survey(out, layout, plan->order, plan->mask, rank, layout->rank_tile[rank],
                            layout->rank_tile[rank + 1], p->batch, p->head0, p->heads);
}

static hra_status finish_tiles(struct hra_tiles *tiles, const hra_plan *plan, const struct hra_layout *layout)
{
    return hra_tiles_finish(tiles, layout, plan->order, plan->mask);
}

/* Is the schedule made from the ranges of keys that ranks need, or may it be? */
static int uses_needs(const hra_plan *plan)
{
    return plan->generate == NULL || plan->generate == hra_schedule_halo ||
           plan->generate == hra_schedule_heads;
}

/* The record of one rank from its tiles, surveyed or finished; of the latter also what it needs. */
static hra_status write_record(struct candidate *c, const hra_plan *plan, const struct hra_tiles *tiles,
                               int finished)
{
    const struct hra_work work = {.ranks = c->layout->ranks, .rank_tile = c->layout->rank_tile};
    struct hra_rank_stats *stats = record_stats(c, tiles->rank);

    count_work(stats, record_live(c, tiles->rank), tiles, c->layout);
    if (!finished || !uses_needs(plan))
        return HRA_OK;
    return hra_needs_find(&c->range[tiles->rank], &stats->ranges, &work, tiles->rank, tiles->column_work,
                          c->layout->tile);
}

/* The tiles of another rank of a model: their numbers, or all of them where the mask cannot be counted. */
static hra_status model_tiles(struct hra_tiles **out, struct hra_counter *counter, const struct candidate *c,
                              const hra_plan *plan, int rank, int finished)
{
    if (counter != NULL)
        return hra_counter_count(out, counter, rank, finished);
    HRA_TRY(survey_rank(out, plan, c->layout, rank));
    return finished ? finish_tiles(*out, plan, c->layout) : HRA_OK;
}

/* Write the records of all other ranks of a model, one after another. */
static hra_status write_others(struct candidate *c, const hra_plan *plan, int finished)
{
    const hra_problem *p = &plan->problem;
    struct hra_counter *counter = NULL;
    hra_status status = HRA_OK;

    if (plan->comm->ranks > 1 && hra_counter_takes(plan->mask))
        status = hra_counter_open(&counter, c->layout, plan->order, plan->mask, p->batch, p->head0, p->heads);
    for (int r = 0; status == HRA_OK && r < plan->comm->ranks; r++) {
        struct hra_tiles *tiles = NULL;
        if (r == plan->comm->rank)
            continue;
        status = model_tiles(&tiles, counter, c, plan, r, finished);
        if (status == HRA_OK)
            status = write_record(c, plan, tiles, finished);
        hra_tiles_destroy(tiles);
    }
    hra_counter_close(counter);
    return status;
}

/* Write the records of our rank, and of every other rank of a model. Surveyed or finished. Local. */
static hra_status write_records(struct candidate *c, const hra_plan *plan, int finished)
{
    const hra_comm *comm = plan->comm;

    if (c->record == NULL)
        HRA_TRY(hra_alloc((void **)&c->record, comm->ranks, record_bytes(comm->ranks), "plan"));
    if (c->range == NULL) {
        HRA_TRY(hra_alloc((void **)&c->range, comm->ranks, sizeof(*c->range), "plan"));
        c->ranks = comm->ranks;
    }
    if (c->tiles == NULL)
        HRA_TRY(survey_rank(&c->tiles, plan, c->layout, comm->rank));
    if (finished)
        HRA_TRY(finish_tiles(c->tiles, plan, c->layout));
    HRA_TRY(write_record(c, plan, c->tiles, finished));
    return comm->transport->allgather == NULL ? write_others(c, plan, finished) : HRA_OK;
}

/* Every rank learns what the others compute. Collective: `status` is what this rank has come to so far. */
static hra_status share_records(struct candidate *c, hra_comm *comm, hra_status status)
{
    char *mine = NULL;

    if (status == HRA_OK)
        status = hra_alloc((void **)&mine, 1, record_bytes(comm->ranks), "plan");
    status = hra_comm_agree(comm, status);
    if (status == HRA_OK && comm->transport->allgather != NULL) {
        memcpy(mine, record_stats(c, comm->rank), record_bytes(comm->ranks));
        status = hra_comm_allgather(comm, c->record, mine, record_bytes(comm->ranks));
    }
    free(mine);
    return status;
}

/* How many tiles are live in each row of tiles, before anything is shared out. */
struct census {
    struct hra_layout *whole; /* the layout for one rank */
    int64_t *work;            /* [whole->tiles], and room for what the last rank has less than the others */
};

static void drop_census(struct census *c)
{
    hra_layout_destroy(c->whole);
    free(c->work);
}

/* Each rank looks at an equal part of the rows of tiles, then all know all. Collective. */
static hra_status take_census(struct census *c, hra_plan *plan)
{
    hra_comm *comm = plan->comm;
    const int alone = comm->transport->allgather == NULL; /* a model: we look at everything */
    int64_t *mine = NULL;
    int each = 0;

    hra_status status = hra_layout_create(&c->whole, plan->order, 1, HRA_SHARD_CONTIGUOUS);
    if (status == HRA_OK) {
        each = alone ? c->whole->tiles : (c->whole->tiles - 1) / comm->ranks + 1;
        status =
            hra_alloc((void **)&c->work, (int64_t)each * (alone ? 1 : comm->ranks), sizeof(*c->work), "work");
    }
    if (status == HRA_OK)
        status = hra_alloc((void **)&mine, each, sizeof(*mine), "work");
    if (status == HRA_OK) {
        const int64_t begin = alone ? 0 : (int64_t)comm->rank * each;
        const int first = begin < c->whole->tiles ? (int)begin : c->whole->tiles;
        const int last = first + each < c->whole->tiles ? first + each : c->whole->tiles;
        status = hra_tiles_census(alone ? c->work : mine, c->whole, plan->order, plan->mask, first, last,
                                  plan->problem.batch, plan->problem.head0, plan->problem.heads);
    }
    status = hra_comm_agree(comm, status);
    if (status == HRA_OK && !alone)
        status = hra_comm_allgather(comm, c->work, mine, (size_t)each * sizeof(*mine));
    free(mine);
    return status;
}

/* The work of the busiest rank of a layout by the census; a row of tiles that a piece cuts counts by its slots. load
 * [ranks] is scratch. */
static double busiest(const struct hra_layout *l, const struct census *c, double *load)
{
    double most = 0;
    int row = 0;

    memset(load, 0, (size_t)l->ranks * sizeof(*load));
    for (int i = 0; i < l->pieces; i++) {
        const int64_t begin = l->piece[i].slot0, end = begin + l->piece[i].rows;
        for (; row < c->whole->tiles && c->whole->slot0[row] < end; row++) {
            const int64_t first = c->whole->slot0[row], last = first + c->whole->tile[row].rows;
            const int64_t slots = (last < end ? last : end) - (first > begin ? first : begin);
            load[l->piece[i].rank] += (double)c->work[row] * (double)slots / (double)(last - first);
            if (last > end) /* the next piece has the rest of the row */
                break;
        }
    }
    for (int r = 0; r < l->ranks; r++)
        most = load[r] > most ? load[r] : most;
    return most;
}

static hra_status lay_out(struct candidate *c, const hra_plan *plan, const struct census *census)
{
    return c->shard == HRA_SHARD_BALANCED
               ? hra_layout_balanced(&c->layout, plan->order, plan->comm->ranks, census->work)
               : hra_layout_create(&c->layout, plan->order, plan->comm->ranks, c->shard);
}

static int same_pieces(const struct hra_layout *a, const struct hra_layout *b)
{
    int same = a->pieces == b->pieces;

    for (int i = 0; i < a->pieces && same; i++)
        same = a->piece[i].slot0 == b->piece[i].slot0 && a->piece[i].rank == b->piece[i].rank;
    return same;
}

/* FLOP of one live tile, and bytes of one row of K/V of another rank, forward and backward together. */
static double tile_flop(const hra_problem *p)
{
    return (double)HRA_TILE * HRA_TILE * (8.0 * p->dim + 6.0 * p->dim_v);
}

static double row_bytes(const hra_problem *p)
{
    const double numbers = (double)p->batch * p->heads_kv * (p->dim + p->dim_v);
    return numbers * (2.0 * (double)hra_type_bytes(p->type) + (double)hra_type_bytes(hra_type_sums(p->type)));
}

/* What the rank with most to do has to do, in FLOP: its products, and what the rows that it needs of others cost. */
static double estimate(const struct candidate *c, const hra_plan *plan)
{
    const hra_problem *p = &plan->problem;
    const double flop_per_byte = plan->machine.full[HRA_FORWARD] / plan->machine.inside.rate;
    double most = 0;

    for (int r = 0; r < c->layout->ranks; r++) {
        const struct hra_rank_stats *s = record_stats(c, r);
        const double cost =
            (double)s->work * tile_flop(p) + (double)s->rows_needed * row_bytes(p) * flop_per_byte;
        most = cost > most ? cost : most;
    }
    return most;
}

enum { SHARDS = 3 }; /* contiguous, zigzag, balanced */

/* Lay out each way to shard that is worth a look; the others stay without a layout. most [SHARDS] receives the tiles of
 * the busiest rank. Local. */
static hra_status pick(struct candidate c[SHARDS], double most[SHARDS], const hra_plan *plan,
                       const struct census *census)
{
    double *load = NULL, all = 0;

    HRA_TRY(hra_alloc((void **)&load, plan->comm->ranks, sizeof(*load), "work"));
    hra_status status = HRA_OK;
    for (int i = 0; i < SHARDS && status == HRA_OK; i++) {
        status = lay_out(&c[i], plan, census);
        most[i] = status == HRA_OK ? busiest(c[i].layout, census, load) : 0;
    }
    for (int r = 0; r < plan->comm->ranks && status == HRA_OK; r++) /* of the last one: the same for all */
        all += load[r];
    const int even = status == HRA_OK && most[0] * plan->comm->ranks <= 1.03 * all;
    for (int i = 1; i < SHARDS && status == HRA_OK; i++) {
        int drop = even;
        for (int j = 0; j < i && !drop; j++)
            drop = c[j].layout != NULL && same_pieces(c[i].layout, c[j].layout);
        if (drop)
            drop_candidate(&c[i]);
    }
    free(load);
    return status;
}

/* Choose a way to shard by the census and, where several are worth it, by surveys. The last one first: it mostly has the
 * least work, and spares the others a survey if their work alone is more than all that it costs. Collective. */
static hra_status choose_shard(struct candidate *best, hra_plan *plan, const struct census *census)
{
    struct candidate c[SHARDS] = {
        {.shard = HRA_SHARD_CONTIGUOUS}, {.shard = HRA_SHARD_ZIGZAG}, {.shard = HRA_SHARD_BALANCED}};
    double most[SHARDS], least = INFINITY;
    int count = 0, chosen = -1;

    hra_status status = hra_comm_agree(plan->comm, pick(c, most, plan, census));
    for (int i = 0; i < SHARDS; i++)
        count += c[i].layout != NULL;
    for (int i = SHARDS - 1; i >= 0 && status == HRA_OK; i--) {
        if (c[i].layout == NULL || most[i] * tile_flop(&plan->problem) > least)
            continue;
        if (count > 1)
            status = share_records(&c[i], plan->comm, write_records(&c[i], plan, 0));
        const double cost = status == HRA_OK && count > 1 ? estimate(&c[i], plan) : 0;
        if (cost <= least) {
            least = cost;
            chosen = i;
        }
    }
    if (status == HRA_OK) {
        *best = c[chosen];
        c[chosen] = (struct candidate){.layout = NULL};
    }
    for (int i = 0; i < SHARDS; i++)
        drop_candidate(&c[i]);
    return status;
}

/* The sharding that was asked for or chosen, compiled. Collective. */
static hra_status compile(struct candidate *c, hra_plan *plan)
{
    struct census census = {.whole = NULL};
    hra_status status = HRA_OK;

    c->shard = plan->comm->ranks == 1 && plan->options.shard == HRA_SHARD_AUTO ? HRA_SHARD_CONTIGUOUS
                                                                               : plan->options.shard;
    if (c->shard == HRA_SHARD_AUTO || c->shard == HRA_SHARD_BALANCED)
        status = take_census(&census, plan);
    if (status == HRA_OK)
        status = c->shard == HRA_SHARD_AUTO ? choose_shard(c, plan, &census) : lay_out(c, plan, &census);
    drop_census(&census);
    if (status == HRA_OK)
        status = write_records(c, plan, 1);
    return share_records(c, plan->comm, status);
}

/* Move what the chosen candidate holds into the plan. */
static hra_status take_candidate(hra_plan *plan, struct candidate *c)
{
    const int ranks = plan->comm->ranks;

    plan->shard = c->shard;
    plan->layout = c->layout;
    plan->tiles = c->tiles;
    c->layout = NULL;
    c->tiles = NULL;
    HRA_TRY(
        hra_alloc((void **)&plan->live, (int64_t)ranks * ranks * HRA_HALVES, sizeof(*plan->live), "plan"));
    HRA_TRY(hra_alloc((void **)&plan->stats, ranks, sizeof(*plan->stats), "plan"));
    for (int r = 0; r < ranks; r++) {
        const char *record = c->record + (size_t)r * record_bytes(ranks);
        memcpy(&plan->stats[r], record, sizeof(plan->stats[r]));
        memcpy(plan->live + (size_t)r * (size_t)ranks * HRA_HALVES, record + sizeof(plan->stats[r]),
               (size_t)ranks * HRA_HALVES * sizeof(*plan->live));
    }
    plan->work = (struct hra_work){.ranks = ranks,
                                   .heads_kv = plan->problem.heads_kv,
                                   .rank_tile = plan->layout->rank_tile,
                                   .live = plan->live};
    const int64_t rows = plan->layout->rows[plan->comm->rank];
    HRA_TRY(hra_alloc_unset((void **)&plan->token, rows, sizeof(*plan->token), "rows"));
    return hra_plan_row_index(plan, plan->comm->rank, NULL, plan->token);
}

/* Room for the ranges of all ranks; *longest is how many the rank with most has. */
static hra_status open_needs(struct hra_needs *needs, int64_t *longest, const hra_plan *plan)
{
    const int ranks = plan->comm->ranks;

    HRA_TRY(hra_alloc((void **)&needs->start, ranks + 1, sizeof(*needs->start), "ranges of keys"));
    for (int r = 0; r < ranks; r++) {
        const int64_t ranges = plan->stats[r].ranges;
        needs->start[r + 1] = needs->start[r] + ranges;
        *longest = ranges > *longest ? ranges : *longest;
    }
    return hra_alloc((void **)&needs->range, needs->start[ranks], sizeof(*needs->range), "ranges of keys");
}

/* Every rank learns which keys the others need: ranges, as many from each rank as the one with most has. Collective:
 * `status` is what this rank has come to so far. */
static hra_status share_needs(hra_plan *plan, const struct candidate *c, hra_status status)
{
    hra_comm *comm = plan->comm;
    struct hra_needs *needs = &plan->needs;
    const int alone = comm->transport->allgather == NULL; /* a model: the candidate has those of all ranks */
    struct hra_range *all = NULL, *mine = NULL;
    int64_t longest = 0;

    if (status == HRA_OK)
        status = open_needs(needs, &longest, plan);
    if (status == HRA_OK && !alone)
        status = hra_alloc((void **)&all, (comm->ranks + 1) * longest, sizeof(*all), "ranges of keys");
    status = hra_comm_agree(comm, status);
    if (status == HRA_OK && !alone && longest > 0) {
        mine = all + comm->ranks * longest;
        memcpy(mine, c->range[comm->rank], (size_t)plan->stats[comm->rank].ranges * sizeof(*mine));
        status = hra_comm_allgather(comm, all, mine, (size_t)longest * sizeof(*mine));
    }
    for (int r = 0; status == HRA_OK && r < comm->ranks; r++)
        memcpy(needs->range + needs->start[r], alone ? c->range[r] : all + r * longest,
               (size_t)plan->stats[r].ranges * sizeof(*needs->range));
    free(all);
    return status == HRA_OK ? hra_needs_link(needs, &plan->work) : status;
}

hra_status hra_share_work(hra_plan *plan)
{
    struct candidate best = {.layout = NULL};

    hra_status status = compile(&best, plan);
    if (status == HRA_OK)
        status = take_candidate(plan, &best);
    if (plan->generate == NULL) { /* all ranks choose, and choose the same, or none has a schedule */
        status = hra_comm_agree(plan->comm, status == HRA_OK ? hra_choose_schedule(plan) : status);
        if (status != HRA_OK)
            plan->generate = hra_schedule_ring;
    }
    if (uses_needs(plan)) {
        status = share_needs(plan, &best, status);
        plan->work.needs = &plan->needs;
    }
    drop_candidate(&best);
    return status;
}

hra_status hra_share_received(hra_plan *plan, hra_status status)
{
    hra_comm *comm = plan->comm;
    struct hra_rank_stats *all = NULL;

    if (status == HRA_OK)
        status = hra_alloc((void **)&all, comm->ranks, sizeof(*all), "plan");
    status = hra_comm_agree(comm, status);
    if (status == HRA_OK && comm->transport->allgather != NULL) {
        status = hra_comm_allgather(comm, all, &plan->stats[comm->rank], sizeof(*all));
        if (status == HRA_OK)
            memcpy(plan->stats, all, (size_t)comm->ranks * sizeof(*all));
    }
    free(all);
    return status;
}

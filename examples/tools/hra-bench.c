/* hra-bench.c - times forward and backward, beside a matrix product in the same run: of the same BLAS with the
 * same threads, or of cuBLAS on the same GPU; on several ranks also beside the whole problem on each rank alone, and
 * hops of what travels. With --timeline, a picture of both passes as they went (trace.c). With --hops, the transport alone
 * and beside compute (hops.c); with --reorder, the way into the plan's order and back beside a copy; with --plan, the
 * making of orders, masks and plans on any number of ranks. */
#include "examples/tools/bench.h"
#include "examples/tools/device.h"
#include "examples/tools/timeline.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- Forward and backward ------------------------------------------------------------------ */

enum { PRODUCT, FORWARD, BACKWARD, ALONE_FORWARD, ALONE_BACKWARD, HOPS_FORWARD, HOPS_BACKWARD, PASSES };

/* Hops like the messages of a pass. */
struct trip {
    hra_hops *hops; /* NULL: nothing travels */
    double bytes;   /* of one hop: the largest message of the pass over the ranks */
    int count;      /* hops in one run */
};

/* All that is timed in turn. On one rank there are PRODUCT, FORWARD and BACKWARD only. */
struct attention {
    hra_comm *comm, *self;
    struct layer layer;  /* the problem over the ranks */
    struct layer alone;  /* the whole problem on this rank; no plan where a rank lacks memory, or unwanted */
    struct trip trip[2]; /* of forward and backward */
    hra_hops *gate;      /* for fall_in; NULL: between hosts, or one rank */
    struct product product;
    struct times time[PASSES]; /* the largest over the ranks; count 0: not timed */
    struct times
        exposed[2];  /* of each turn: what a pass took longer than the busiest rank's share of it alone */
    double bytes[4]; /* workspace, saved, arena and plan on the rank that has most */
    double nodes;    /* machines, on rank 0 */
};

/* The largest message of a pass over the ranks. */
static double largest_message(hra_plan *plan, hra_pass pass)
{
    int64_t count;
    double bytes = 0;

    demand(hra_plan_moves(plan, world.rank, pass, NULL, 0, &count));
    hra_plan_move *move = take(count, sizeof(*move));
    demand(hra_plan_moves(plan, world.rank, pass, move, count, &count));
    for (int64_t i = 0; i < count; i++)
        bytes = fmax(bytes, (double)move[i].bytes);
    free(move);
    world_max(&bytes, 1);
    return bytes;
}

/* A run of hops moves some 256 MiB, in two hops or more. */
static void open_trip(struct trip *t, struct attention *a, hra_pass pass)
{
    const double run = 0x1p28;

    t->bytes = largest_message(a->layer.plan, pass);
    if (t->bytes == 0)
        return;
    t->count = (int)fmin(fmax(run / t->bytes, 2), 64);
    demand(hra_hops_create(&t->hops, a->comm, (size_t)t->bytes, t->count));
}

/* The whole problem on each rank alone, where all have memory for it. */
static void open_alone(struct attention *a, const struct setup *s, uint64_t seed)
{
    demand(hra_comm_create_self(&a->self));
    double lacks = layer_open(&a->alone, a->self, s, seed) != 0;
    world_max(&lacks, 1);
    if (lacks > 0)
        layer_close(&a->alone);
}

/* What several ranks are compared with. */
static void open_comparison(struct attention *a, const struct setup *s, int alone, int of_gpus, uint64_t seed)
{
    if (alone)
        open_alone(a, s, seed);
    open_trip(&a->trip[0], a, HRA_FORWARD);
    open_trip(&a->trip[1], a, HRA_BACKWARD);
    if (of_gpus)
        open_gate(&a->gate, a->comm);
}

static void open_attention(struct attention *a, const struct setup *s, const struct connection *c, int alone,
                           uint64_t seed)
{
    demand(connection_open(&a->comm, c));
    need(layer_open(&a->layer, a->comm, s, seed));
    if (world.ranks > 1)
        open_comparison(a, s, alone, connection_of_gpus(c), seed);
    product_open(&a->product, a->layer.info.threads, seed);
    const hra_plan_info *info = &a->layer.info;
    a->bytes[0] = (double)info->workspace_bytes;
    a->bytes[1] = (double)info->saved_bytes;
    a->bytes[2] = (double)info->arena_bytes;
    a->bytes[3] = (double)info->plan_bytes;
    world_max(a->bytes, 4);
    a->nodes = world.local == 0;
    world_add(&a->nodes, 1);
}

static void close_attention(struct attention *a)
{
    product_close(&a->product);
    hra_hops_destroy(a->gate);
    hra_hops_destroy(a->trip[0].hops);
    hra_hops_destroy(a->trip[1].hops);
    layer_close(&a->alone);
    layer_close(&a->layer);
    demand(hra_comm_destroy(a->self));
    demand(hra_comm_destroy(a->comm));
}

static int is_timed(const struct attention *a, int pass)
{
    if (pass == ALONE_FORWARD || pass == ALONE_BACKWARD)
        return a->alone.plan != NULL;
    return pass < HOPS_FORWARD || a->trip[pass - HOPS_FORWARD].hops != NULL;
}

static void carry_out(struct attention *a, int pass)
{
    switch (pass) {
    case PRODUCT:
        product_run(&a->product);
        break;
    case FORWARD:
        layer_forward(&a->layer);
        break;
    case BACKWARD:
        layer_backward(&a->layer);
        break;
    case ALONE_FORWARD:
        layer_forward(&a->alone);
        break;
    case ALONE_BACKWARD:
        layer_backward(&a->alone);
        break;
    default:
        demand(hra_hops_run(a->trip[pass - HOPS_FORWARD].hops, a->gate != NULL ? device_stream() : NULL));
    }
}

/* The times of a turn that is done. */
static void keep(struct attention *a)
{
    const double share = a->layer.info.balance / world.ranks;
    double s[PASSES] = {0};

    for (int pass = 0; pass < PASSES; pass++)
        if (is_timed(a, pass))
            need(device_between(&s[pass], 2 * pass, 2 * pass + 1));
    world_max(s, PASSES);
    for (int pass = 0; pass < PASSES; pass++)
        if (is_timed(a, pass))
            add_time(&a->time[pass], s[pass]);
    for (int way = 0; way < 2 && is_timed(a, ALONE_FORWARD); way++)
        add_time(&a->exposed[way], s[FORWARD + way] - share * s[ALONE_FORWARD + way]);
}

/* Everything is timed in turn, so that a drift of the machine falls on all alike. A GPU is not waited for within a
 * turn: the product hides what it costs to enqueue the rest, and leaves none of its tensors in the caches. */
static void measure(struct attention *a, int repeat)
{
    const int on_gpu = device_name()[0] != '\0';

    _Static_assert(2 * PASSES <= DEVICE_MARKS, "DEVICE_MARKS is too small");
    for (int i = on_gpu ? -5 : -1; i < repeat; i++) { /* the first times warm up */
        for (int pass = 0; i == 0 && pass < PASSES; pass++)
            a->time[pass].count = 0;
        if (i == 0)
            a->exposed[0].count = a->exposed[1].count = 0;
        for (int pass = 0; pass < PASSES; pass++) {
            if (!is_timed(a, pass))
                continue;
            fall_in(a->gate);
            need(device_mark(2 * pass));
            carry_out(a, pass);
            need(device_mark(2 * pass + 1));
            /* OpenBLAS's own threads go on spinning for some 20 ms after a product, on cores that ours then lack. */
            if (!on_gpu && pass == PRODUCT)
                nanosleep(&(struct timespec){0, 100000000}, NULL);
        }
        finish(a->comm);
        keep(a);
    }
    for (int pass = 0; pass < PASSES; pass++)
        sort_times(&a->time[pass]);
    sort_times(&a->exposed[0]);
    sort_times(&a->exposed[1]);
}

/* The clock of the GPU while it does what was timed: for about half a second, which nvidia-smi takes to ask. -1: not
 * known. */
static int clock_at_work(struct attention *a)
{
    const double step_s = median(&a->time[FORWARD]) + median(&a->time[BACKWARD]);

    if (device_name()[0] == '\0')
        return -1;
    for (double s = 0; s < 0.5; s += step_s + 1e-5) {
        layer_forward(&a->layer);
        layer_backward(&a->layer);
    }
    const int clock = device_clock_mhz();
    finish(a->comm);
    return clock;
}

/* What one pass came to, on one rank in the mean. */
struct rates {
    const char *name;
    double live, tiles;    /* FLOP/s over pairs that attend, and over all pairs of live tiles */
    double us, of_product; /* a live tile; share of the product's rate */
};

static struct rates rate(const struct attention *a, const hra_problem *p, int pass)
{
    static const char *const name[] = {NULL, "forward", "backward", "alone forward", "alone backward"};
    /* FLOP of a pair: 2 products of dim and dim_v channels forward, 5 backward, 2 FLOP each. */
    const double flop[] = {2.0 * (p->dim + p->dim_v), 2.0 * (3 * p->dim + 2 * p->dim_v)};
    const double n = (double)a->product.n, peak = 2 * n * n * n / median(&a->time[PRODUCT]);

    if (pass == PRODUCT)
        return (struct rates){a->product.name, peak, peak, 0, 1};
    const int together = pass == FORWARD || pass == BACKWARD, way = (pass - FORWARD) % 2;
    const hra_plan_info *info = together ? &a->layer.info : &a->alone.info;
    const double s = median(&a->time[pass]) * (together ? world.ranks : 1); /* of all ranks */
    const double tiles = (double)(info->tiles_full + info->tiles_partial);
    const double live = flop[way] * (double)info->pairs_live / s;
    return (struct rates){name[pass], live, flop[way] * (double)info->pairs_in_tiles / s,
                          tiles > 0 ? s / tiles * 1e6 : 0, live / peak};
}

/* How much of what travels in a pass is hidden behind compute. */
struct overlap {
    double received;   /* bytes, by a rank in the mean */
    double bytes_s;    /* of hops alone, bytes/s in each direction */
    double transfer_s; /* that the received bytes take at that rate */
    double share;      /* 1 - exposed / transfer */
    double efficiency; /* alone / (ranks x together) */
};

static struct overlap overlap_of(const struct attention *a, int way)
{
    const struct trip *t = &a->trip[way];
    const hra_plan_info *info = &a->layer.info;
    struct overlap o = {.received =
                            (double)(way == 0 ? info->bytes_forward : info->bytes_backward) / world.ranks};

    if (t->hops != NULL) {
        o.bytes_s = t->bytes * t->count / median(&a->time[HOPS_FORWARD + way]);
        o.transfer_s = o.received / o.bytes_s;
    }
    if (!is_timed(a, ALONE_FORWARD))
        return o;
    o.efficiency = median(&a->time[ALONE_FORWARD + way]) / (world.ranks * median(&a->time[FORWARD + way]));
    if (o.transfer_s > 0)
        o.share = 1 - median(&a->exposed[way]) / o.transfer_s;
    return o;
}

/* The end of a line of a pass over several ranks. */
static void print_overlap_json(const struct attention *a, int way)
{
    const struct overlap o = overlap_of(a, way);
    const struct times *t = &a->exposed[way];

    printf(
        ", \"bytes_received\": %.0f, \"hop_bytes\": %.0f, \"hop_gbytes_per_s\": %.4g, \"transfer_s\": %.6g",
        o.received, a->trip[way].bytes, o.bytes_s * 1e-9, o.transfer_s);
    if (t->count > 0)
        printf(
            ", \"exposed_s\": %.6g, \"exposed_min_s\": %.6g, \"exposed_max_s\": %.6g, \"efficiency\": %.4g",
            median(t), least(t), most(t), o.efficiency);
    if (t->count > 0 && o.transfer_s > 0)
        printf(", \"overlap\": %.4g", o.share);
}

static void print_json(const struct attention *a, const struct rates *r, int pass, int clock,
                       const char *text)
{
    const hra_plan_info *info = &a->layer.info;
    const struct times *t = &a->time[pass];

    printf("{\"what\": \"%s\", \"problem\": \"%s\", \"backend\": \"%s\", \"backward\": \"%s\", "
           "\"device\": \"%s\", \"sm_mhz\": %d, \"threads\": %d, \"ranks\": %d, \"nodes\": %.0f, "
           "\"transport\": \"%s\", \"schedule\": \"%s\", \"balance\": %.6g, "
           "\"runs\": %d, \"median_s\": %.6g, \"min_s\": %.6g, \"max_s\": %.6g, \"gflops_live_pairs\": %.4g, "
           "\"gflops_live_tiles\": %.4g, \"live_tiles\": %" PRId64
           ", \"us_per_tile\": %.4g, \"share_of_product\": %.4g, \"workspace_bytes\": %.0f, "
           "\"saved_bytes\": %.0f, \"arena_bytes\": %.0f, \"plan_bytes\": %.0f",
           r->name, text, info->backend, info->backward, device_name(), clock, info->threads, world.ranks,
           a->nodes, info->transport, info->schedule, info->balance, t->count, median(t), least(t), most(t),
           r->live * 1e-9, r->tiles * 1e-9, r->us > 0 ? info->tiles_full + info->tiles_partial : INT64_C(0),
           r->us, r->of_product, a->bytes[0], a->bytes[1], a->bytes[2], a->bytes[3]);
    if (world.ranks > 1 && (pass == FORWARD || pass == BACKWARD))
        print_overlap_json(a, pass - FORWARD);
    printf("}\n");
}

static void print_head(const struct attention *a, int clock, const char *text)
{
    const hra_plan_info *info = &a->layer.info;
    const int on_gpu = device_name()[0] != '\0';
    char mhz[16] = "?";

    if (clock >= 0)
        snprintf(mhz, sizeof(mhz), "%d", clock);
    printf("%s\n", text);
    if (world.ranks > 1)
        printf("%d ranks, transport %s, schedule %s, balance %.3f; on each rank ", world.ranks,
               info->transport, info->schedule, info->balance);
    if (on_gpu)
        printf("%s, SM clock at work %s MHz, backward %s", device_name(), mhz, info->backward);
    else
        printf("%d thread%s", info->threads, info->threads == 1 ? "" : "s");
    printf(", density %.4f, tiles %" PRId64 " full + %" PRId64 " partial\n",
           (double)info->pairs_live / (double)info->pairs_all, info->tiles_full, info->tiles_partial);
    printf("MiB%s: workspace %.1f, saved %.1f, arena %.1f, plan on the host %.1f\n\n",
           world.ranks > 1 ? " on the rank that has most" : "", a->bytes[0] * 0x1p-20, a->bytes[1] * 0x1p-20,
           a->bytes[2] * 0x1p-20, a->bytes[3] * 0x1p-20);
    printf("%-14s %12s %12s %12s %12s %12s %12s %11s\n", world.ranks > 1 ? "rates a rank" : "", "median ms",
           "least ms", "most ms", on_gpu ? "TFLOP/s" : "GFLOP/s", "in tiles", "us/tile", "of product");
}

static void print_overlaps(const struct attention *a, int alone)
{
    static const char *const name[] = {"forward", "backward"};

    printf("\n%-14s %12s %12s %12s %12s %12s %12s %11s %11s\n", "transfers", "MiB/rank", "hops GB/s", "ms",
           "exposed ms", "least ms", "most ms", "overlap", "efficiency");
    for (int way = 0; way < 2; way++) {
        const struct overlap o = overlap_of(a, way);
        const struct times *t = &a->exposed[way];
        printf("%-14s %12.1f %12.1f %12.3f", name[way], o.received * 0x1p-20, o.bytes_s * 1e-9,
               o.transfer_s * 1e3);
        if (t->count == 0)
            printf(" %12s %12s %12s %11s %11s", "-", "-", "-", "-", "-");
        else if (o.transfer_s == 0)
            printf(" %12s %12s %12s %11s %11.3f", "-", "-", "-", "-", o.efficiency);
        else
            printf(" %12.3f %12.3f %12.3f %11.3f %11.3f", median(t) * 1e3, least(t) * 1e3, most(t) * 1e3,
                   o.share, o.efficiency);
        printf("\n");
    }
    if (alone && !is_timed(a, ALONE_FORWARD))
        printf("A rank has no memory for the whole problem, so that what is exposed is not known.\n");
}

static void bench_attention(const struct setup *s, const struct connection *c, int alone, uint64_t seed,
                            int repeat, int json, const char *text)
{
    static struct attention a;
    const double unit = device_name()[0] != '\0' ? 1e-12 : 1e-9;

    open_attention(&a, s, c, alone, seed);
    measure(&a, repeat);
    const int clock = clock_at_work(&a);
    if (world.rank == 0 && !json)
        print_head(&a, clock, text);
    for (int pass = 0; world.rank == 0 && pass <= ALONE_BACKWARD; pass++) {
        if (!is_timed(&a, pass))
            continue;
        const struct rates r = rate(&a, &s->problem, pass);
        const struct times *t = &a.time[pass];
        if (json)
            print_json(&a, &r, pass, clock, text);
        else
            printf("%-14s %12.3f %12.3f %12.3f %12.1f %12.1f %12.2f %11.3f\n", r.name, median(t) * 1e3,
                   least(t) * 1e3, most(t) * 1e3, r.live * unit, r.tiles * unit, r.us, r.of_product);
    }
    if (world.ranks > 1 && world.rank == 0 && !json)
        print_overlaps(&a, alone);
    close_attention(&a);
}

/* ---- Reordering ---------------------------------------------------------------------------- */

enum { COPY, GATHER, SCATTER, WAYS };

static void print_ways(const struct times time[WAYS], double bytes, int json, const char *text)
{
    static const char *const name[WAYS] = {"copy", "gather", "scatter"};

    if (!json)
        printf("--reorder %s\n%s: %.1f MiB, read and written once\n\n%-14s %12s %12s %12s %12s %11s\n", text,
               device_name()[0] != '\0' ? device_name() : "host", bytes * 0x1p-20, "", "median ms",
               "least ms", "most ms", "GB/s", "of copy");
    for (int way = 0; way < WAYS; way++) {
        const struct times *t = &time[way];
        const double rate = 2e-9 * bytes / median(t), share = median(&time[COPY]) / median(t);
        if (json)
            printf(
                "{\"what\": \"%s\", \"problem\": \"%s\", \"device\": \"%s\", \"runs\": %d, \"bytes\": %.0f, "
                "\"median_s\": %.6g, \"min_s\": %.6g, \"max_s\": %.6g, \"gbytes_per_s\": %.4g, "
                "\"share_of_copy\": %.4g}\n",
                name[way], text, device_name(), t->count, bytes, median(t), least(t), most(t), rate, share);
        else
            printf("%-14s %12.3f %12.3f %12.3f %12.1f %11.3f\n", name[way], median(t) * 1e3, least(t) * 1e3,
                   most(t) * 1e3, rate, share);
    }
}

/* All tokens of q become the plan's rows and come back, in turn with a copy of as many bytes. */
static void bench_reorder(const struct setup *s, uint64_t seed, int repeat, int json, const char *text)
{
    static struct times time[WAYS];
    const hra_problem *p = &s->problem;
    hra_plan *plan;
    hra_comm *comm;

    demand(hra_comm_create_self(&comm));
    demand(hra_plan_create(&plan, comm, p, s->order, s->mask, &s->options));
    const hra_tensor whole = tensor(p, p->tokens, p->heads, p->dim, seed + 1);
    const hra_tensor rows = tensor(p, p->tokens, p->heads, p->dim, 0);
    need(whole.data == NULL || rows.data == NULL ? -1 : 0);
    const size_t bytes = (size_t)(p->batch * whole.stride_batch) * hra_type_bytes(p->type);
    for (int i = -1; i < repeat; i++) { /* the first time warms up */
        for (int way = 0; i == 0 && way < WAYS; way++)
            time[way].count = 0;
        need(device_mark(COPY));
        need(device_copy(rows.data, whole.data, bytes));
        need(device_mark(GATHER));
        demand(hra_reorder(plan, HRA_GATHER, p->type, p->heads, p->dim, &whole, &rows, device_stream()));
        need(device_mark(SCATTER));
        demand(hra_reorder(plan, HRA_SCATTER, p->type, p->heads, p->dim, &whole, &rows, device_stream()));
        need(device_mark(WAYS));
        need(device_wait());
        for (int way = 0; way < WAYS; way++) {
            struct times *t = &time[way];
            need(device_between(&t->s[t->count++], way, way + 1));
        }
    }
    for (int way = 0; way < WAYS; way++)
        sort_times(&time[way]);
    print_ways(time, (double)bytes, json, text);
    device_free(whole.data);
    device_free(rows.data);
    hra_plan_destroy(plan);
    demand(hra_comm_destroy(comm));
}

/* ---- Plans --------------------------------------------------------------------------------- */

enum { ORDER, MASK, PLAN, ROWS };
enum { BITMAPS, PLAN_BYTES, ARENA_BYTES, ARENA_GROWN, MOSTS };

/* What is known of the making of plans. Times are the largest over the ranks. */
struct planning {
    struct times wall[ROWS]; /* from the moment that all ranks are ready to the return */
    struct times cpu[ROWS];  /* of all threads of a rank in that time; below wall where it lacks a core */
    struct times tile;       /* wall of a plan / live tiles of its busiest rank; 0 without any */
    double most[MOSTS];      /* largest over the plans, in the end over the ranks too; ARENA_GROWN: plans
                                for which the communicator took memory anew */
    hra_plan_info info;      /* of the last plan */
};

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The moment at which a call begins. */
struct moment {
    double wall_s, cpu_s;
};

static struct moment begin(void)
{
    world_meet();
    return (struct moment){now_s(CLOCK_MONOTONIC), now_s(CLOCK_PROCESS_CPUTIME_ID)};
}

/* The call of this row that began then has returned `status`. Returns the seconds that it took. */
static double end(struct planning *p, int row, struct moment then, hra_status status)
{
    double took[2] = {now_s(CLOCK_MONOTONIC) - then.wall_s, now_s(CLOCK_PROCESS_CPUTIME_ID) - then.cpu_s};

    demand(status);
    world_max(took, 2);
    add_time(&p->wall[row], took[0]);
    add_time(&p->cpu[row], took[1]);
    return took[0];
}

/* An order like the setup's. Returns the seconds that it took. */
static double time_order(struct planning *p, const struct setup *s, const char *name)
{
    const int drawn = strncmp(name, "random:", 7) == 0;
    hra_order *order = NULL;

    const struct moment then = begin();
    const hra_status status =
        drawn ? hra_order_permutation(&order, &s->domain, hra_order_slot_to_token(s->order))
              : hra_order_create(&order, &s->domain, name);
    const double took = end(p, ORDER, then, status);
    hra_order_destroy(order);
    return took;
}

/* Lengths of documents that fill `tokens`, each of 1 to 2 mean - 1 tokens, all equally likely, and the last
 * cut to fit: into out, which may be NULL. Returns their number. Integers only, so that all machines draw the
 * same. */
static int64_t draw_lengths(int64_t *out, int64_t tokens, int64_t mean, uint64_t series)
{
    int64_t count = 0;

    for (int64_t rest = tokens; rest > 0; count++) {
        const int64_t drawn = 1 + (int64_t)(random_bits(series, (uint64_t)count) % (uint64_t)(2 * mean - 1));
        const int64_t length = drawn < rest ? drawn : rest;
        if (out != NULL)
            out[count] = length;
        rest -= length;
    }
    return count;
}

/* The mask from its text. */
static hra_mask *time_text(struct planning *p, const struct setup *s, const char *text)
{
    hra_mask *mask = NULL;

    const struct moment then = begin();
    const hra_status status = hra_mask_parse(&mask, &s->domain, s->order, text);
    end(p, MASK, then, status);
    return mask;
}

/* docs(...) & the setup's mask, with documents of `mean` tokens drawn from `series`. */
static hra_mask *time_packed(struct planning *p, const struct setup *s, int64_t mean, uint64_t series)
{
    const int64_t count = draw_lengths(NULL, s->domain.tokens, mean, series);
    int64_t *length = take(count, sizeof(*length));
    hra_mask *docs = NULL, *mask = NULL;

    draw_lengths(length, s->domain.tokens, mean, series);
    const struct moment then = begin();
    hra_status status = hra_mask_docs(&docs, &s->domain, length, count);
    if (status == HRA_OK)
        status = hra_mask_and(&mask, docs, s->mask);
    end(p, MASK, then, status);
    hra_mask_destroy(docs);
    free(length);
    return mask;
}

/* Live tiles of the busiest rank. */
static double busiest(const hra_plan_info *info)
{
    return round(info->balance * (double)(info->tiles_full + info->tiles_partial) / world.ranks);
}

static void time_plan(struct planning *p, const struct setup *s, hra_comm *comm, const hra_mask *mask)
{
    hra_plan *plan = NULL;
    hra_plan_info info = {.size = sizeof(info)};

    const struct moment then = begin();
    const hra_status status = hra_plan_create(&plan, comm, &s->problem, s->order, mask, &s->options);
    const double took = end(p, PLAN, then, status);
    demand(hra_plan_get_info(plan, &info));
    hra_plan_destroy(plan);

    const double tiles = busiest(&info);
    add_time(&p->tile, tiles > 0 ? took / tiles : 0);
    p->most[ARENA_GROWN] += (double)info.arena_bytes > p->most[ARENA_BYTES];
    p->most[ARENA_BYTES] = fmax(p->most[ARENA_BYTES], (double)info.arena_bytes);
    p->most[PLAN_BYTES] = fmax(p->most[PLAN_BYTES], (double)info.plan_bytes);
    p->most[BITMAPS] = fmax(p->most[BITMAPS], (double)info.bitmaps);
    p->info = info;
}

/* Forget the warm-up, but for the arena, which the communicator keeps, and for an order that is too slow to
 * make again. */
static void restart(struct planning *p, int keep_order)
{
    for (int row = keep_order ? MASK : ORDER; row < ROWS; row++)
        p->wall[row].count = p->cpu[row].count = 0;
    p->tile.count = 0;
    p->most[ARENA_GROWN] = p->most[PLAN_BYTES] = p->most[BITMAPS] = 0;
}

/* packed: tokens of a document in the mean, 0 without documents. All times are sorted at the end. */
static void measure_plans(struct planning *p, const struct setup *s, const struct problem *problem,
                          const struct connection *c, int64_t packed, int repeat)
{
    const double slow_s = 1;
    double order_s = 0;
    hra_comm *comm;

    demand(connection_open(&comm, c));
    for (int i = -1; i < repeat; i++) { /* the first time warms up */
        if (i == 0)
            restart(p, order_s >= slow_s);
        if (order_s < slow_s)
            order_s = time_order(p, s, problem->order);
        const uint64_t series = random_bits(random_bits(problem->seed, 7), (uint64_t)(i + 1));
        hra_mask *mask = packed > 0 ? time_packed(p, s, packed, series) : time_text(p, s, problem->mask);
        time_plan(p, s, comm, mask);
        hra_mask_destroy(mask);
    }
    demand(hra_comm_destroy(comm));
    world_max(p->most, MOSTS);
    for (int row = 0; row < ROWS; row++) {
        sort_times(&p->wall[row]);
        sort_times(&p->cpu[row]);
    }
    sort_times(&p->tile);
}

static const char *const row_name[ROWS] = {"order", "mask", "plan"};

static void print_plans(const struct planning *p, int64_t packed, const char *text)
{
    const hra_plan_info *info = &p->info;
    const double all = (double)info->pairs_all;
    char documents[40] = "";

    if (packed > 0)
        snprintf(documents, sizeof(documents), " --packed %" PRId64, packed);
    printf("--plan%s %s\n%d rank%s, transport %s; %d pattern%s, density %.4g, %.4g in live tiles\n",
           documents, text, world.ranks, world.ranks == 1 ? "" : "s", info->transport, info->patterns,
           info->patterns == 1 ? "" : "s", (double)info->pairs_live / all,
           (double)info->pairs_in_tiles / all);
    printf("tiles %" PRId64 " full + %" PRId64
           " partial, %.0f on the busiest rank: balance %.3f, bound %.3f\n",
           info->tiles_full, info->tiles_partial, busiest(info), info->balance, info->balance_bound);
    printf("on one rank at most %.0f distinct bitmaps, plan %.0f bytes, arena %.0f bytes; the arena grew for "
           "%.0f of %d plans\n\n%-14s %12s %12s %12s %12s %12s\n",
           p->most[BITMAPS], p->most[PLAN_BYTES], p->most[ARENA_BYTES], p->most[ARENA_GROWN],
           p->wall[PLAN].count, "", "median ms", "least ms", "most ms", "CPU ms", "us/tile");
    for (int row = 0; row < ROWS; row++) {
        const struct times *t = &p->wall[row];
        printf("%-14s %12.3f %12.3f %12.3f %12.3f", row_name[row], median(t) * 1e3, least(t) * 1e3,
               most(t) * 1e3, median(&p->cpu[row]) * 1e3);
        if (row == PLAN)
            printf(" %12.3f", median(&p->tile) * 1e6);
        printf("\n");
    }
}

static void print_plans_json(const struct planning *p, int64_t packed, const char *text)
{
    const hra_plan_info *info = &p->info;
    const double all = (double)info->pairs_all;

    for (int row = 0; row < ROWS; row++) {
        const struct times *t = &p->wall[row];
        printf("{\"what\": \"%s\", \"problem\": \"%s\", \"packed\": %" PRId64
               ", \"ranks\": %d, \"runs\": %d, \"median_s\": %.6g, \"min_s\": %.6g, \"max_s\": %.6g, "
               "\"cpu_median_s\": %.6g",
               row_name[row], text, packed, world.ranks, t->count, median(t), least(t), most(t),
               median(&p->cpu[row]));
        if (row == PLAN)
            printf(", \"us_per_tile\": %.4g, \"tiles_full\": %" PRId64 ", \"tiles_partial\": %" PRId64
                   ", \"tiles_busiest\": %.0f, \"balance\": %.6g, \"balance_bound\": %.6g, \"patterns\": %d, "
                   "\"density\": %.6g, \"density_tiles\": %.6g, \"bitmaps\": %.0f, \"plan_bytes\": %.0f, "
                   "\"arena_bytes\": %.0f, \"arena_grown\": %.0f",
                   median(&p->tile) * 1e6, info->tiles_full, info->tiles_partial, busiest(info),
                   info->balance, info->balance_bound, info->patterns, (double)info->pairs_live / all,
                   (double)info->pairs_in_tiles / all, p->most[BITMAPS], p->most[PLAN_BYTES],
                   p->most[ARENA_BYTES], p->most[ARENA_GROWN]);
        printf("}\n");
    }
}

/* ---- The command line ---------------------------------------------------------------------- */

struct arguments {
    struct problem problem;
    struct connection connection;
    int64_t packed; /* tokens of a document in the mean; 0 without documents */
    int64_t bytes;  /* of a hop; 0: the usual ones */
    int repeat, json, plan, reorder, hops, no_alone;
    char *timeline; /* where its picture goes; NULL: none is wanted */
    char *model;    /* the machine of its forecast */
};

/* Options beside those of a problem. */
enum { OWN_OPTIONS = 10 + CONNECTION_OPTIONS };

static int usage(const char *why)
{
    if (world.rank == 0)
        fprintf(stderr, "hra-bench: %s\n", why);
    return 2;
}

static void help(const struct option *options, int count)
{
    printf(
        "usage: [mpirun -n RANKS] hra-bench [--hops | --plan] [OPTION VALUE]...\n"
        "       [mpirun -n RANKS] hra-bench --timeline FILE --model FILE [OPTION VALUE]...\n"
        "       hra-bench --reorder [OPTION VALUE]...\n"
        "Times forward and backward, beside a product of two 2048 x 2048 f32 matrices, or with --backend "
        "cuda\n"
        "of two 8192 x 8192 bf16 matrices by cuBLAS. Rates count the pairs that attend: 2 (dim + dim_v) "
        "FLOP\n"
        "a pair forward, 2 (3 dim + 2 dim_v) backward; in tiles: all pairs of live tiles.\n"
        "On a GPU times are those of events on the stream, after five turns that are not counted; the "
        "product\n"
        "before each forward has emptied the caches of its tensors.\n"
        "On several ranks each pass begins when all ranks have come to it, the slowest rank's time counts "
        "in\n"
        "each turn, and rates are those of one rank. In the same turns each rank does the whole problem "
        "alone\n"
        "(`alone`), all at once, and hops like the plan's largest message. What a pass takes longer than "
        "the\n"
        "busiest rank's share of the time alone is called exposed: transfers that were waited for, and\n"
        "whatever else the distribution costs, such as more and smaller launches. Transfer is the time of "
        "the\n"
        "bytes that a rank receives at the rate of the hops; overlap is 1 - exposed / transfer, as sure as "
        "the\n"
        "spread of what is exposed is small against the transfer, and efficiency the time alone / (ranks x\n"
        "time).\n"
        "With --hops: the transport alone; every rank sends to the next one, and each hop sends on what the\n"
        "last one brought. Between GPUs also beside forwards of --tokens (default 4096), full, 16 heads of "
        "128\n"
        "in --dtype (default bf16) on --backend, where `compute slows by` is the time that those lose\n"
        "against as many without hops / the time of the hops; and in turn the same of bare copies into\n"
        "mapped memory with a flag for each, which ask nothing of the receiver; and of nothing, which says\n"
        "how sure that is. In brackets: two turns between which the median of ever more turns lies, at 95 "
        "%%\n"
        "(fewer than six: least and most). A run has 1024 hops or some 80 ms of them: at the limit of their\n"
        "power GPUs lower their clocks with a delay. All bytes are looked at in the end.\n"
        "With --timeline: draws when each rank computes, waits and sends, in the run with the median time "
        "of\n"
        "--repeat, each pass by itself, below the forecast for the machine of --model, for which the plan "
        "is\n"
        "made; and prints a line for each rank. Ranks begin each pass together, as exactly as they leave a\n"
        "barrier or, between GPUs, get a message from one another.\n"
        "With --reorder: q from token order to the plan's and back, beside a copy of as many bytes.\n"
        "With --plan: the making of the order (once only where it takes a second), of the mask, and of a\n"
        "plan on a communicator that has had one. Times are those of the slowest rank, CPU of the one that\n"
        "used most. Where heads or sequences share a mask it is compiled once and its tiles count for each:\n"
        "us/tile is of use with --heads 1. What is said of tiles and balance is of the last plan.\n"
        "--transport gpu, nccl and peer choose --backend gpu; the n-th rank of a machine takes its n-th "
        "GPU,\n"
        "beginning again after the last.\n\n");
    options_print(options, count);
}

static void bench(const struct arguments *a)
{
    static struct planning planning;
    struct setup s = {.order = NULL};
    char *text = problem_text(&a->problem);
    const char *shown = text == NULL ? "" : text;

    demand(setup_create(&s, &a->problem));
    if (a->timeline != NULL)
        bench_timeline(&s, &(struct timeline_wanted){.connection = &a->connection,
                                                     .problem = &a->problem,
                                                     .path = a->timeline,
                                                     .model = a->model,
                                                     .repeat = a->repeat,
                                                     .json = a->json});
    else if (a->reorder)
        bench_reorder(&s, a->problem.seed, a->repeat, a->json, shown);
    else if (!a->plan)
        bench_attention(&s, &a->connection, !a->no_alone, a->problem.seed, a->repeat, a->json, shown);
    else {
        measure_plans(&planning, &s, &a->problem, &a->connection, a->packed, a->repeat);
        if (world.rank == 0 && a->json)
            print_plans_json(&planning, a->packed, shown);
        else if (world.rank == 0)
            print_plans(&planning, a->packed, shown);
    }
    setup_destroy(&s);
    free(text);
}

/* 1: an option that says how hops are timed. */
static int may_stand_beside_hops(const char *name)
{
    static const char *const names[] = {"hops",    "bytes",   "repeat", "json", "transport",
                                        "timeout", "backend", "dtype",  "seed", "tokens"};
    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++)
        if (strcmp(name, names[n]) == 0)
            return 1;
    return 0;
}

/* Look for options that contradict one another. 0, or -1 and one sentence in why [bytes]. */
static int check_modes(const struct arguments *a, const struct option *options, int count, char *why,
                       size_t bytes)
{
    why[0] = '\0';
    if (a->packed > 0 && !a->plan)
        snprintf(why, bytes, "--packed: documents are for --plan, which is not given");
    else if (a->bytes > 0 && !a->hops)
        snprintf(why, bytes, "--bytes: it is for --hops, which is not given");
    else if (a->no_alone && (a->plan || a->reorder))
        snprintf(why, bytes, "--no-alone: it is for forward and backward, which are not timed");
    else if (a->reorder && a->plan)
        snprintf(why, bytes, "--reorder: --plan is given too, and only one of them can be timed");
    else if (a->timeline != NULL && (a->plan || a->reorder))
        snprintf(why, bytes, "--timeline: --%s is given too, and only one of them can be timed",
                 a->plan ? "plan" : "reorder");
    else if (a->timeline != NULL && a->no_alone)
        snprintf(why, bytes, "--no-alone: --timeline times no rank alone");
    else if (a->timeline != NULL && a->model == NULL)
        snprintf(why, bytes, "--timeline: it draws a forecast, too, for which --model names the machine");
    else if (a->model != NULL && a->timeline == NULL)
        snprintf(why, bytes, "--model: it is for --timeline, which is not given");
    else if (a->timeline != NULL)
        (void)timeline_check(a->timeline, why, bytes);
    else if (a->reorder && world.ranks > 1)
        snprintf(why, bytes, "--reorder: here are %d ranks, and it is timed on one", world.ranks);
    else if (a->hops && world.ranks == 1)
        snprintf(why, bytes, "--hops: here is one rank; start two or more with mpirun -n RANKS");
    for (int n = 0; a->hops && n < count; n++)
        if (options[n].given && !may_stand_beside_hops(options[n].name))
            snprintf(why, bytes, "--%s: --hops takes no such option", options[n].name);
    return why[0] == '\0' ? 0 : -1;
}

/* Everything between MPI's start and end. Returns the exit status. */
static int run(int argc, char **argv, struct arguments *a)
{
    struct option options[PROBLEM_OPTIONS + OWN_OPTIONS];
    const int shared = problem_options(options, &a->problem), all = shared + OWN_OPTIONS;
    const struct option own[] = {
        {"repeat", "N", "times that are counted, after those that warm up (default 7)", OPTION_INT,
         &a->repeat, 1, REPEAT_MAX - 1, NULL, 0},
        {"json", NULL, "one line of JSON for each row instead of the table", OPTION_FLAG, &a->json, 0, 0,
         NULL, 0},
        {"no-alone", NULL, "on several ranks leave out the whole problem on each rank alone", OPTION_FLAG,
         &a->no_alone, 0, 0, NULL, 0},
        {"timeline", "FILE", "draw when each rank did what, below a forecast: a .png or .svg", OPTION_TEXT,
         &a->timeline, 0, 0, NULL, 0},
        {"model", "FILE", "with --timeline: the machine of the forecast", OPTION_TEXT, &a->model, 0, 0, NULL,
         0},
        {"hops", NULL, "time the transport alone, on several ranks", OPTION_FLAG, &a->hops, 0, 0, NULL, 0},
        {"bytes", "N", "with --hops: of one hop (default 1, 4, 16, 64 and 256 MiB)", OPTION_INT64, &a->bytes,
         1, INT64_C(1) << 40, NULL, 0},
        {"plan", NULL, "time the making of plans, on any number of ranks", OPTION_FLAG, &a->plan, 0, 0, NULL,
         0},
        {"reorder", NULL, "time the gathering and scattering of q instead, beside a copy", OPTION_FLAG,
         &a->reorder, 0, 0, NULL, 0},
        {"packed", "MEAN", "with --plan: other documents of MEAN tokens for each plan, & --mask",
         OPTION_INT64, &a->packed, 1, INT64_C(1) << 40, NULL, 0},
    };
    struct hops_wanted hops = {.connection = &a->connection, .type = HRA_BF16, .tokens = 4096};
    char why[512];

    connection_options(options + shared, &a->connection);
    memcpy(options + shared + CONNECTION_OPTIONS, own, sizeof(own));
    const int parsed = options_parse(options, all, argc, argv, why, sizeof(why));
    if (parsed == 1) {
        if (world.rank == 0)
            help(options, all);
        return 0;
    }
    if (parsed != 0 || check_modes(a, options, all, why, sizeof(why)) != 0 ||
        problem_complete(&a->problem, why, sizeof(why)) != 0 ||
        connection_complete(&a->connection, &a->problem, why, sizeof(why)) != 0)
        return usage(why);
    for (int n = 0; n < all; n++) { /* hops have defaults of their own */
        if (options[n].given && options[n].at == &a->problem.type)
            hops.type = a->problem.type;
        if (options[n].given && options[n].at == &a->problem.tokens)
            hops.tokens = a->problem.tokens;
    }
    hops.backend = a->problem.backend;
    hops.seed = a->problem.seed;
    hops.bytes = a->bytes;
    hops.repeat = a->repeat;
    hops.json = a->json;

    need(device_open(a->problem.backend, world.local));
    if (a->hops)
        bench_hops(&hops);
    else
        bench(a);
    device_close();
    return 0;
}

int main(int argc, char **argv)
{
    struct arguments a = {.problem = PROBLEM_DEFAULT, .repeat = 7};

    world_start("hra-bench", &argc, &argv);
    const int result = run(argc, argv, &a);
    problem_free(&a.problem);
    free(a.timeline);
    free(a.model);
    return world_end(result);
}

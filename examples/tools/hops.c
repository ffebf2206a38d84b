/* hops.c - times the hops of a transport: alone and, between GPUs, beside compute, in turn with bare copies.
 *
 * On a GPU a run of hops has a stream of its own, and what is computed beside it another one:
 *     stream   products that hide the enqueuing | forwards of a one-rank plan | twice as many | and as many again
 *     beside                                                                  | all ranks come | begin | hops | end
 * The middle outlasts the hops. What it takes longer than both ends is what compute loses: from one run to another clocks
 * differ by more, and what changes evenly within a run cancels. How much does not, runs without hops tell. */
#include "examples/tools/bare.h"
#include "examples/tools/bench.h"
#include "examples/tools/device.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { OURS, BARE, NOTHING, KINDS };

/* What is known of a kind of hops of one size. Times are the largest over the ranks. */
struct hop_times {
    struct times alone, beside; /* of one hop */
    struct times slows; /* time that compute lost / time of the hops beside it; of NOTHING, of ours alone */
    int outlasted;      /* turns in which the hops went on when the middle was done */
};

/* All that a run needs. On the host there is nothing beside the hops. */
struct hopping {
    const struct hops_wanted *wanted;
    hra_comm *comm, *self;
    int on_gpus;
    hra_hops *gate;     /* once a stream has passed it, all ranks have come */
    struct layer layer; /* what is computed */
    void *forward;      /* its forward, recorded, so that much of it is soon enqueued */
    double forward_s;   /* one of those */
    struct product product;
    int products; /* that hide the enqueuing of a run */

    /* of the size at hand */
    double bytes;
    int count; /* hops in a run */
    int ends;  /* forwards before a run and behind it; twice as many beside it */
    hra_hops *hops;
    struct bare *bare; /* NULL: not between these ranks */
    char no_bare[300]; /* why; "" where nothing is NULL */
    struct hop_times kind[KINDS];
};

/* What one run came to, the largest over the ranks. */
struct run {
    double hops_s;           /* all hops; 0 without */
    double middle_s, ends_s; /* forwards; 0 without */
    double outlasted;        /* 1: on some rank the hops */
};

enum { FIRST, MIDDLE, LAST, OVER, BEGIN, END };

static void start_hops(struct hopping *h, int kind, void *stream)
{
    if (kind == OURS)
        demand(hra_hops_run(h->hops, stream));
    else
        need_of(bare_run(h->bare, h->count, stream), "bare copy", bare_error());
}

static void compute(struct hopping *h, int forwards)
{
    for (int i = 0; i < forwards; i++)
        need(device_replay(h->forward));
}

/* A run of hops of a kind, with so many forwards before and behind. */
static struct run run(struct hopping *h, int kind, int ends)
{
    void *const beside = device_stream_beside();
    struct run r = {0};

    world_meet();
    for (int i = 0; i < h->products; i++)
        product_run(&h->product);
    need(device_mark(FIRST));
    compute(h, ends);
    need(device_mark(MIDDLE));
    compute(h, 2 * ends);
    need(device_mark(LAST));
    compute(h, ends);
    need(device_mark(OVER));
    if (kind != NOTHING) {
        need(device_follow(beside, MIDDLE));
        if (h->gate != NULL)
            demand(hra_hops_run(h->gate, beside));
        need(device_mark_on(BEGIN, beside));
        start_hops(h, kind, h->on_gpus ? beside : NULL);
        need(device_mark_on(END, beside));
        demand(hra_comm_wait(h->comm, beside));
    }
    need(device_wait());

    if (ends > 0) {
        double end_s[2];
        need(device_between(&end_s[0], FIRST, MIDDLE));
        need(device_between(&r.middle_s, MIDDLE, LAST));
        need(device_between(&end_s[1], LAST, OVER));
        r.ends_s = end_s[0] + end_s[1];
    }
    if (kind != NOTHING) {
        double until_s;
        need(device_between(&r.hops_s, BEGIN, END));
        need(device_between(&until_s, MIDDLE, END));
        r.outlasted = until_s > r.middle_s;
    }
    double s[4] = {r.hops_s, r.middle_s, r.ends_s, r.outlasted};
    world_max(s, 4);
    return (struct run){s[0], s[1], s[2], s[3]};
}

/* ---- Making ready -------------------------------------------------------------------------- */

/* The compute, and how long it and the products take. */
static void open_compute(struct hopping *h)
{
    const double hidden_s = 8e-3; /* to enqueue a run takes some ms */
    const struct hops_wanted *w = h->wanted;
    struct problem p = PROBLEM_DEFAULT;
    struct setup s = {.order = NULL};
    char why[256];
    double took[2];

    p.tokens = w->tokens;
    p.heads = 16;
    p.dim = 128;
    p.type = w->type;
    p.backend = w->backend;
    p.seed = w->seed;
    p.mask = strdup("full");
    need_of(p.mask == NULL ? -1 : problem_complete(&p, why, sizeof(why)), "compute", why);
    demand(setup_create(&s, &p));
    demand(hra_comm_create_self(&h->self));
    need(layer_open(&h->layer, h->self, &s, w->seed));
    product_open(&h->product, 1, w->seed);
    layer_forward(&h->layer); /* what is done once only is done before the recording */
    need(device_wait());
    need(device_record());
    layer_forward(&h->layer);
    need(device_recorded(&h->forward));
    for (int i = 0; i < 2; i++) { /* the first time warms up */
        need(device_mark(0));
        product_run(&h->product);
        need(device_mark(1));
        need(device_replay(h->forward));
        need(device_mark(2));
        need(device_wait());
    }
    need(device_between(&took[0], 0, 1));
    need(device_between(&took[1], 1, 2));
    world_max(took, 2);
    h->products = (int)ceil(hidden_s / took[0]);
    h->forward_s = took[1];
    setup_destroy(&s);
    problem_free(&p);
}

static void open_hopping(struct hopping *h, const struct hops_wanted *w)
{
    h->wanted = w;
    h->on_gpus = connection_of_gpus(w->connection);
    demand(connection_open(&h->comm, w->connection));
    if (!h->on_gpus)
        return;
    demand(hra_hops_create(&h->gate, h->comm, 1, world.ranks - 1));
    open_compute(h);
}

static void close_hopping(struct hopping *h)
{
    if (h->on_gpus) {
        device_forget(h->forward);
        product_close(&h->product);
        layer_close(&h->layer);
        demand(hra_comm_destroy(h->self));
        hra_hops_destroy(h->gate);
    }
    demand(hra_comm_destroy(h->comm));
}

/* Compute whose middle takes as long as a run that takes this long, and half as much again. */
static int ends_for(const struct hopping *h, double hops_s)
{
    return h->on_gpus ? (int)ceil(0.75 * hops_s / h->forward_s) : 0;
}

/* Hops of a size, as many in a run as take some ms. */
static void open_size(struct hopping *h, double bytes)
{
    const double run_s = 16e-3;
    const int few = 4;

    h->bytes = bytes;
    demand(hra_hops_create(&h->hops, h->comm, (size_t)bytes, few));
    run(h, OURS, 0);
    const double hop_s = run(h, OURS, 0).hops_s / few;
    hra_hops_destroy(h->hops);
    h->count = (int)fmin(fmax(run_s / hop_s, few), 256);
    demand(hra_hops_create(&h->hops, h->comm, (size_t)bytes, h->count));
    h->ends = ends_for(h, 2 * h->count * hop_s);

    h->bare = NULL;
    h->no_bare[0] = '\0';
    if (h->on_gpus && bare_open(&h->bare, (size_t)bytes) != 0)
        snprintf(h->no_bare, sizeof(h->no_bare), "%.290s", bare_error());
}

static void close_size(struct hopping *h)
{
    hra_hops_destroy(h->hops);
    bare_close(h->bare);
}

/* ---- Measuring ----------------------------------------------------------------------------- */

static int is_known(const struct hopping *h, int kind)
{
    return kind != BARE || h->bare != NULL;
}

/* Everything of a size once, what has compute beside it in another order each turn, behind a run that does not count:
 * the GPU comes from hops alone, and how its clocks fall under the first load is no loss to hops. Compute is made longer
 * where hops beside it are slower than was thought. */
static void take_turn(struct hopping *h, int turn, int *ends)
{
    double ours_s = 0;

    for (int kind = OURS; kind < NOTHING; kind++) {
        if (!is_known(h, kind))
            continue;
        const double hops_s = run(h, kind, 0).hops_s;
        add_time(&h->kind[kind].alone, hops_s / h->count);
        ours_s = kind == OURS ? hops_s : ours_s;
    }
    if (!h->on_gpus)
        return;
    run(h, NOTHING, h->ends);
    for (int i = 0; i < KINDS; i++) {
        const int kind = (turn + i) % KINDS;
        struct hop_times *t = &h->kind[kind];
        if (!is_known(h, kind))
            continue;
        const struct run r = run(h, kind, h->ends);
        if (kind != NOTHING)
            add_time(&t->beside, r.hops_s / h->count);
        add_time(&t->slows, (r.middle_s - r.ends_s) / (kind == NOTHING ? ours_s : r.hops_s));
        t->outlasted += r.outlasted > 0;
        *ends = (int)fmax(*ends, ends_for(h, r.hops_s));
    }
}

static void forget_turns(struct hopping *h)
{
    for (int kind = OURS; kind < KINDS; kind++) {
        struct hop_times *t = &h->kind[kind];
        t->alone.count = t->beside.count = t->slows.count = t->outlasted = 0;
    }
}

static void measure(struct hopping *h)
{
    const int warm = h->on_gpus ? 3 : 1;

    for (int i = -warm; i < h->wanted->repeat; i++) {
        int ends = h->ends;
        if (i <= 0)
            forget_turns(h);
        take_turn(h, i + warm, &ends);
        if (i < 0)
            h->ends = ends;
    }
    demand(hra_hops_check(h->hops));
    if (h->bare != NULL)
        need_of(bare_check(h->bare), "bare copy", bare_error());
    for (int kind = OURS; kind < KINDS; kind++) {
        sort_times(&h->kind[kind].alone);
        sort_times(&h->kind[kind].beside);
        sort_times(&h->kind[kind].slows);
    }
}

/* ---- Printing ------------------------------------------------------------------------------ */

static const char *transport_of(const struct hopping *h)
{
    return h->on_gpus ? connection_name(h->wanted->connection) : "mpi";
}

static void print_head(const struct hopping *h)
{
    printf("--hops --transport %s\n%d ranks", transport_of(h), world.ranks);
    if (device_name()[0] != '\0')
        printf(", %s", device_name());
    if (h->on_gpus)
        printf("; compute: forwards of %lld tokens, full, 16 heads of 128, %s, by %s, %.3f ms each",
               (long long)h->wanted->tokens, hra_type_name(h->wanted->type), h->layer.info.backend,
               h->forward_s * 1e3);
    printf("\n\n%-20s %10s %6s %12s %12s %12s %14s %9s\n", "GB/s each direction", "MiB", "hops", "median",
           "least", "most", "compute slows", "of bare");
}

/* One line of the table, or of JSON. t: of a hop; beside: NULL where nothing was computed. */
static void print_line(const struct hopping *h, int kind, const struct times *t,
                       const struct hop_times *beside)
{
    static const char *const name[NOTHING][2] = {{"hops", "hops under compute"},
                                                 {"bare", "bare under compute"}};
    const char *what = name[kind][beside != NULL];
    const struct hop_times *bare = &h->kind[BARE];
    const struct times *same = beside != NULL ? &bare->beside : &bare->alone; /* of bare hops */
    const int compared = kind == OURS && h->bare != NULL;

    if (h->wanted->json) {
        printf(
            "{\"what\": \"%s\", \"transport\": \"%s\", \"ranks\": %d, \"device\": \"%s\", \"bytes\": %.0f, "
            "\"hops\": %d, \"runs\": %d, \"median_s\": %.6g, \"min_s\": %.6g, \"max_s\": %.6g, "
            "\"gbytes_per_s\": %.4g",
            what, transport_of(h), world.ranks, device_name(), h->bytes, h->count, t->count, median(t),
            least(t), most(t), 1e-9 * h->bytes / median(t));
        if (beside != NULL)
            printf(", \"compute_slows\": %.4g, \"compute_slows_min\": %.4g, \"compute_slows_max\": %.4g, "
                   "\"outlasted\": %d",
                   median(&beside->slows), least(&beside->slows), most(&beside->slows), beside->outlasted);
        if (compared)
            printf(", \"of_bare\": %.4g", median(same) / median(t));
        printf("}\n");
        return;
    }
    printf("%-20s %10.3f %6d %12.1f %12.1f %12.1f", what, h->bytes * 0x1p-20, h->count,
           1e-9 * h->bytes / median(t), 1e-9 * h->bytes / most(t), 1e-9 * h->bytes / least(t));
    if (beside != NULL)
        printf(" %12.2f %%", 100 * median(&beside->slows));
    else if (compared)
        printf(" %14s", "");
    if (compared)
        printf(" %9.3f", median(same) / median(t));
    printf("\n");
    if (beside != NULL && beside->outlasted > 0)
        printf("  in %d of %d turns these hops outlasted the compute\n", beside->outlasted, t->count);
}

/* What runs without hops would have been told to lose: how sure the others are. */
static void print_nothing(const struct hopping *h)
{
    const struct times *slows = &h->kind[NOTHING].slows;

    if (slows->count > 0 && h->wanted->json)
        printf(
            "{\"what\": \"nothing under compute\", \"transport\": \"%s\", \"ranks\": %d, \"device\": \"%s\", "
            "\"bytes\": %.0f, \"runs\": %d, \"compute_slows\": %.4g, \"compute_slows_min\": %.4g, "
            "\"compute_slows_max\": %.4g}\n",
            transport_of(h), world.ranks, device_name(), h->bytes, slows->count, median(slows), least(slows),
            most(slows));
    else if (slows->count > 0)
        printf("%-20s %10.3f %46s %11.2f %%\n", "nothing", h->bytes * 0x1p-20, "", 100 * median(slows));
}

static void print_size(const struct hopping *h)
{
    for (int kind = OURS; kind < NOTHING; kind++) {
        const struct hop_times *t = &h->kind[kind];
        if (t->alone.count > 0)
            print_line(h, kind, &t->alone, NULL);
        if (t->beside.count > 0)
            print_line(h, kind, &t->beside, t);
    }
    print_nothing(h);
    if (h->no_bare[0] != '\0')
        fprintf(stderr, "hra-bench: no bare copies of %.0f bytes: %s\n", h->bytes, h->no_bare);
}

void bench_hops(const struct hops_wanted *w)
{
    static const double usual[] = {0x1p20, 0x1p22, 0x1p24, 0x1p26, 0x1p28};
    static struct hopping h;
    const int sizes = w->bytes > 0 ? 1 : (int)(sizeof(usual) / sizeof(usual[0]));

    open_hopping(&h, w);
    if (world.rank == 0 && !w->json)
        print_head(&h);
    for (int i = 0; i < sizes; i++) {
        open_size(&h, w->bytes > 0 ? (double)w->bytes : usual[i]);
        measure(&h);
        if (world.rank == 0)
            print_size(&h);
        fflush(stdout);
        close_size(&h);
    }
    close_hopping(&h);
}

/* hops.c - times the hops of a transport: alone and, between GPUs, beside compute, in turn with bare copies.
 *
 * On a GPU a run of hops has a stream of its own, and what is computed beside it another one:
 *     stream   products that hide the enqueuing | forwards of a one-rank plan | forwards, which outlast the hops
 *     beside                                                                  | all ranks come | begin | hops | end
 * What the last forwards take longer than in runs without hops, compute loses. What hops draw of a GPU's power its clock pays
 * later: so the first forwards bring it to where it stays under compute, and the hops take long enough to be seen to pay. */
#include "examples/tools/bare.h"
#include "examples/tools/bench.h"
#include "examples/tools/device.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Of runs. Two are without hops, of which one shows what the other comes to by chance. */
enum { OURS, BARE, NOTHING, AGAIN, KINDS, HOPS = NOTHING };

/* What is known of a kind of hops of one size. Times are the largest over the ranks. */
struct hop_times {
    struct times alone, beside; /* of one hop */
    struct times slows;         /* what compute lost / the time that the hops took */
    int outlasted;              /* turns in which the hops went on when the compute was done */
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
    int before;   /* forwards before hops that have some beside them */

    /* of the size at hand */
    double bytes;
    int count;    /* hops in a run */
    int forwards; /* beside a run */
    hra_hops *hops;
    struct bare *bare; /* NULL: not between these ranks */
    char no_bare[300]; /* why; "" where nothing is NULL */
    struct hop_times kind[HOPS];
    struct times nothing; /* what runs without hops lost against others without / the time that ours took */
};

/* What one run came to, the largest over the ranks. */
struct run {
    double hops_s;     /* all hops; 0 without */
    double forwards_s; /* those beside them; 0 without */
    double outlasted;  /* 1: on some rank the hops */
};

enum { FIRST, OVER, BEGIN, END };

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

/* A run of hops of a kind, with so many forwards beside. */
static struct run run(struct hopping *h, int kind, int forwards)
{
    void *const beside = device_stream_beside();
    struct run r = {0};

    world_meet();
    for (int i = 0; i < h->products; i++)
        product_run(&h->product);
    compute(h, forwards > 0 ? h->before : 0);
    need(device_mark(FIRST));
    compute(h, forwards);
    need(device_mark(OVER));
    if (kind < HOPS) {
        need(device_follow(beside, FIRST));
        if (h->gate != NULL)
            demand(hra_hops_run(h->gate, beside));
        need(device_mark_on(BEGIN, beside));
        start_hops(h, kind, h->on_gpus ? beside : NULL);
        need(device_mark_on(END, beside));
        demand(hra_comm_wait(h->comm, beside));
    }
    need(device_wait());

    if (forwards > 0)
        need(device_between(&r.forwards_s, FIRST, OVER));
    if (kind < HOPS) {
        double until_s;
        need(device_between(&r.hops_s, BEGIN, END));
        need(device_between(&until_s, FIRST, END));
        r.outlasted = until_s > r.forwards_s;
    }
    double s[3] = {r.hops_s, r.forwards_s, r.outlasted};
    world_max(s, 3);
    return (struct run){s[0], s[1], s[2]};
}

/* ---- Making ready -------------------------------------------------------------------------- */

/* The compute, and how long it and the products take. */
static void open_compute(struct hopping *h)
{
    const double hidden_s = 25e-3, before_s = 60e-3; /* 1024 hops of 1 MiB are no slower behind it than 256 */
    const int timed = 8;
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
        compute(h, timed);
        need(device_mark(2));
        need(device_wait());
    }
    need(device_between(&took[0], 0, 1));
    need(device_between(&took[1], 1, 2));
    world_max(took, 2);
    h->products = (int)ceil(hidden_s / took[0]);
    h->forward_s = took[1] / timed;
    h->before = (int)ceil(before_s / h->forward_s);
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

/* Forwards that take half as long again as hops that take so long. */
static int forwards_for(const struct hopping *h, double hops_s)
{
    return h->on_gpus ? (int)ceil(1.5 * hops_s / h->forward_s) : 0;
}

/* What a hop takes: of a few, alone or, where that is longer, beside compute. */
static double try_hops(struct hopping *h, int count)
{
    demand(hra_hops_create(&h->hops, h->comm, (size_t)h->bytes, count));
    run(h, OURS, 0);
    double hops_s = run(h, OURS, 0).hops_s;
    if (h->on_gpus)
        hops_s = fmax(hops_s, run(h, OURS, 2 * count).hops_s);
    hra_hops_destroy(h->hops);
    return hops_s / count;
}

/* Hops of a size, as many in a run as take some ms, or on GPUs some more. */
static void open_size(struct hopping *h, double bytes)
{
    const double run_s = h->on_gpus ? 80e-3 : 16e-3;
    const int few = 4, many = h->on_gpus ? 1024 : 256;

    h->bytes = bytes;
    const double hop_s = try_hops(h, few);
    h->count = (int)fmin(fmax(run_s / hop_s, few), many);
    demand(hra_hops_create(&h->hops, h->comm, (size_t)bytes, h->count));
    h->forwards = forwards_for(h, h->count * hop_s);

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

static void take_alone(struct hopping *h)
{
    for (int kind = 0; kind < HOPS; kind++)
        if (is_known(h, kind))
            add_time(&h->kind[kind].alone, run(h, kind, 0).hops_s / h->count);
}

/* Each kind with compute beside it, in another order each turn. Nothing else comes between: where a GPU is at the limit of its
 * power, what it did before shows in its clock. */
static void run_beside(struct hopping *h, int turn, struct run r[KINDS])
{
    static const int order[KINDS] = {OURS, NOTHING, BARE, AGAIN};

    for (int i = 0; i < KINDS; i++) {
        const int kind = order[(turn + i) % KINDS];
        r[kind] = is_known(h, kind) ? run(h, kind, h->forwards) : (struct run){0};
    }
}

static void take_beside(struct hopping *h, const struct run r[KINDS])
{
    const double without_s = (r[NOTHING].forwards_s + r[AGAIN].forwards_s) / 2;

    for (int kind = 0; kind < HOPS; kind++) {
        struct hop_times *t = &h->kind[kind];
        if (!is_known(h, kind))
            continue;
        add_time(&t->beside, r[kind].hops_s / h->count);
        add_time(&t->slows, (r[kind].forwards_s - without_s) / r[kind].hops_s);
        t->outlasted += r[kind].outlasted > 0;
    }
    add_time(&h->nothing, (r[AGAIN].forwards_s - r[NOTHING].forwards_s) / r[OURS].hops_s);
}

/* Compute for the next runs, by what the last ones took. */
static void fit(struct hopping *h, const struct run r[KINDS])
{
    h->forward_s = r[NOTHING].forwards_s / h->forwards;
    h->forwards = (int)fmax(h->forwards, forwards_for(h, fmax(r[OURS].hops_s, r[BARE].hops_s)));
}

static void measure(struct hopping *h)
{
    const int warm = 3, repeat = h->wanted->repeat;
    struct run r[KINDS];

    take_alone(h); /* warms up */
    memset(h->kind, 0, sizeof(h->kind));
    h->nothing.count = 0;
    for (int i = 0; i < repeat; i++)
        take_alone(h);
    for (int turn = 0; h->on_gpus && turn < warm + repeat; turn++) {
        run_beside(h, turn, r);
        if (turn < warm)
            fit(h, r);
        else
            take_beside(h, r);
    }
    demand(hra_hops_check(h->hops));
    if (h->bare != NULL)
        need_of(bare_check(h->bare), "bare copy", bare_error());
    for (int kind = 0; kind < HOPS; kind++) {
        sort_times(&h->kind[kind].alone);
        sort_times(&h->kind[kind].beside);
        sort_times(&h->kind[kind].slows);
    }
    sort_times(&h->nothing);
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
    printf("\n\n%-20s %10s %6s %12s %12s %12s %9s   %s\n", "GB/s each direction", "MiB", "hops", "median",
           "least", "most", "of bare", "compute slows by");
}

/* In a line of the table, or of JSON: the median, and the bounds that it lies between. */
static void print_slows(const struct hopping *h, const struct times *slows)
{
    double low, high;

    median_lies(slows, &low, &high);
    if (h->wanted->json)
        printf(", \"compute_slows\": %.4g, \"compute_slows_low\": %.4g, \"compute_slows_high\": %.4g",
               median(slows), low, high);
    else
        printf("   %.2f %% (%.2f to %.2f)", 100 * median(slows), 100 * low, 100 * high);
}

/* One line of the table, or of JSON. t: of a hop; beside: NULL where nothing was computed. */
static void print_line(const struct hopping *h, int kind, const struct times *t,
                       const struct hop_times *beside)
{
    static const char *const name[HOPS][2] = {{"hops", "hops under compute"}, {"bare", "bare under compute"}};
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
        if (beside != NULL) {
            print_slows(h, &beside->slows);
            printf(", \"outlasted\": %d", beside->outlasted);
        }
        if (compared)
            printf(", \"of_bare\": %.4g", median(same) / median(t));
        printf("}\n");
        return;
    }
    printf("%-20s %10.3f %6d %12.1f %12.1f %12.1f", what, h->bytes * 0x1p-20, h->count,
           1e-9 * h->bytes / median(t), 1e-9 * h->bytes / most(t), 1e-9 * h->bytes / least(t));
    if (compared)
        printf(" %9.3f", median(same) / median(t));
    else if (beside != NULL)
        printf(" %9s", "");
    if (beside != NULL)
        print_slows(h, &beside->slows);
    printf("\n");
    if (beside != NULL && beside->outlasted > 0)
        printf("  in %d of %d turns these hops outlasted the compute\n", beside->outlasted, t->count);
}

/* What runs without hops are told to lose against others without: how sure the figures above are. */
static void print_nothing(const struct hopping *h)
{
    if (h->nothing.count == 0)
        return;
    if (h->wanted->json)
        printf("{\"what\": \"nothing under compute\", \"transport\": \"%s\", \"ranks\": %d, "
               "\"device\": \"%s\", \"bytes\": %.0f, \"runs\": %d",
               transport_of(h), world.ranks, device_name(), h->bytes, h->nothing.count);
    else
        printf("%-20s %10.3f %55s", "nothing", h->bytes * 0x1p-20, "");
    print_slows(h, &h->nothing);
    printf(h->wanted->json ? "}\n" : "\n");
}

static void print_size(const struct hopping *h)
{
    for (int kind = 0; kind < HOPS; kind++) {
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

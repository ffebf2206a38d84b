/* trace.c - hra-bench --timeline: when each rank did what in both passes, beside the forecast. */
#include "examples/tools/bench.h"
#include "examples/tools/device.h"
#include "examples/tools/model.h"
#include "examples/tools/timeline.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One pass as it was recorded, and its forecast. */
struct taken {
    hra_span *span; /* [repeat][spans] of this rank */
    int64_t spans;
    double total_s[REPEAT_MAX]; /* [repeat] of the rank that took longest */
    int chosen;                 /* the run with the median of them */
    int64_t *counts;            /* [ranks] spans of each */
    hra_span *all;              /* [ranks][most] those of the chosen run */
    int64_t most;
    hra_forecast *forecast;
};

/* What rank 0 has read of the model. */
struct read {
    int result;
    hra_machine machine;
    char why[512];
};

/* Rank 0 reads it for all. */
static void read_model(hra_machine *out, const struct setup *s, const char *path)
{
    struct read mine = {0}, *all = take(world.ranks, sizeof(*all));

    if (world.rank == 0)
        mine.result = model_read(&mine.machine, path, s->problem.type, s->problem.dim, world.ranks, mine.why,
                                 sizeof(mine.why));
    world_gather(all, &mine, (int)sizeof(mine));
    const struct read first = all[0];
    free(all);
    if (first.result != 0) {
        if (world.rank == 0)
            fprintf(stderr, "hra-bench: %s\n", first.why);
        exit(world_end(2));
    }
    *out = first.machine;
}

/* ---- Recording ---- */

/* The spans of the last execution into the place of a run. */
static void read_spans(struct taken *t, hra_trace *trace, hra_pass pass, int run, int repeat)
{
    int64_t count;

    demand(hra_trace_spans(trace, pass, NULL, 0, &t->spans));
    if (t->span == NULL)
        t->span = take(repeat * t->spans, sizeof(*t->span));
    hra_span *span = t->span + run * t->spans;
    demand(hra_trace_spans(trace, pass, span, t->spans, &count));
    t->total_s[run] = 0;
    for (int64_t i = 0; i < count; i++)
        t->total_s[run] = fmax(t->total_s[run], span[i].end_s);
}

/* On a GPU the product hides what it costs to enqueue a pass, which else would be told of as time of its own. */
static void record(struct taken taken[2], struct layer *l, hra_comm *comm, hra_hops *gate, int repeat)
{
    const int on_gpu = device_name()[0] != '\0';
    struct product product = {0};
    hra_trace *trace;

    if (on_gpu)
        product_open(&product, 1, 0);
    demand(hra_trace_create(&trace, l->plan));
    for (int i = on_gpu ? -5 : -1; i < repeat; i++) { /* the first times warm up */
        for (int pass = 0; pass < 2; pass++) {
            if (on_gpu)
                product_run(&product);
            fall_in(gate);
            (pass == HRA_FORWARD ? layer_forward : layer_backward)(l);
        }
        finish(comm);
        for (int pass = 0; i >= 0 && pass < 2; pass++)
            read_spans(&taken[pass], trace, (hra_pass)pass, i, repeat);
    }
    hra_trace_destroy(trace);
    if (on_gpu)
        product_close(&product);
}

/* The run whose time is the median, the lower one of two. Alike on all ranks. */
static void choose(struct taken *t, int repeat)
{
    static struct times sorted;

    world_max(t->total_s, repeat);
    sorted.count = 0;
    for (int i = 0; i < repeat; i++)
        add_time(&sorted, t->total_s[i]);
    sort_times(&sorted);
    while (t->total_s[t->chosen] != sorted.s[(repeat - 1) / 2])
        t->chosen++;
}

/* The chosen run of all ranks, on all of them. */
static void gather(struct taken *t)
{
    double most = (double)t->spans;

    world_max(&most, 1);
    t->most = (int64_t)most;
    t->counts = take(world.ranks, sizeof(*t->counts));
    world_gather(t->counts, &t->spans, (int)sizeof(t->spans));
    hra_span *mine = take(t->most, sizeof(*mine));
    memset(mine, 0, (size_t)t->most * sizeof(*mine));
    memcpy(mine, t->span + t->chosen * t->spans, (size_t)t->spans * sizeof(*mine));
    t->all = take(world.ranks * t->most, sizeof(*t->all));
    world_gather(t->all, mine, (int)((size_t)t->most * sizeof(*mine)));
    free(mine);
}

/* ---- What it comes to ---- */

/* What was measured of a rank, as a forecast tells it. */
static hra_forecast_info measured_rank(const struct taken *t, int rank)
{
    hra_forecast_info out = {.size = sizeof(out)};

    for (int64_t i = 0; i < t->counts[rank]; i++) {
        const hra_span *s = &t->all[rank * t->most + i];
        const double took = s->end_s - s->begin_s;

        out.seconds = fmax(out.seconds, s->end_s);
        switch (s->kind) {
        case HRA_SPAN_COMPUTE:
            out.compute_s += took;
            break;
        case HRA_SPAN_OTHER:
            out.other_s += took;
            break;
        case HRA_SPAN_WAIT:
            out.waiting_s += took;
            break;
        default:;
        }
    }
    return out;
}

/* Of all ranks. */
static hra_forecast_info measured_all(const struct taken *t)
{
    hra_forecast_info out = {.size = sizeof(out)};
    double busiest = 0;

    for (int rank = 0; rank < world.ranks; rank++) {
        const hra_forecast_info one = measured_rank(t, rank);
        out.seconds = fmax(out.seconds, one.seconds);
        out.compute_s += one.compute_s / world.ranks;
        out.other_s += one.other_s / world.ranks;
        out.waiting_s += one.waiting_s / world.ranks;
        busiest = fmax(busiest, one.compute_s + one.other_s);
    }
    out.exposed_s = out.seconds - busiest;
    return out;
}

static hra_forecast_info modelled(const struct taken *t, int rank)
{
    hra_forecast_info out = {.size = sizeof(out)};
    demand(hra_forecast_get_info(t->forecast, rank, &out));
    return out;
}

static const char *const pass_name[2] = {"forward", "backward"};

static void print_table(const struct taken taken[2])
{
    printf("%-14s", "ms");
    for (int pass = 0; pass < 2; pass++)
        printf("  %-28s  %-28s", pass == 0 ? "forward modelled" : "backward modelled", "measured");
    printf("\n%-14s", "");
    for (int n = 0; n < 4; n++)
        printf("  %8s %9s %9s", "time", "busy", "waiting");
    printf("\n");
    for (int rank = 0; rank < world.ranks; rank++) {
        printf("rank %-9d", rank);
        for (int pass = 0; pass < 2; pass++) {
            const hra_forecast_info both[2] = {modelled(&taken[pass], rank),
                                               measured_rank(&taken[pass], rank)};
            for (int n = 0; n < 2; n++)
                printf("  %8.3f %9.3f %9.3f", 1e3 * both[n].seconds,
                       1e3 * (both[n].compute_s + both[n].other_s), 1e3 * both[n].waiting_s);
        }
        printf("\n");
    }
}

static void print_lines(const struct taken taken[2], const char *problem)
{
    for (int rank = 0; rank < world.ranks; rank++)
        for (int pass = 0; pass < 2; pass++) {
            const hra_forecast_info model = modelled(&taken[pass], rank),
                                    real = measured_rank(&taken[pass], rank);
            printf("{\"what\": \"timeline of %s\", \"problem\": \"%s\", \"rank\": %d, \"ranks\": %d, "
                   "\"modelled_s\": %.6g, \"modelled_busy_s\": %.6g, \"modelled_waiting_s\": %.6g, "
                   "\"measured_s\": %.6g, \"measured_busy_s\": %.6g, \"measured_waiting_s\": %.6g}\n",
                   pass_name[pass], problem, rank, world.ranks, model.seconds,
                   model.compute_s + model.other_s, model.waiting_s, real.seconds,
                   real.compute_s + real.other_s, real.waiting_s);
        }
}

/* ---- The picture ---- */

static void fill_bands(struct timeline *t, const struct taken taken[2])
{
    for (int pass = 0; pass < 2; pass++) {
        t->band[0].info[pass] = modelled(&taken[pass], -1);
        t->band[1].info[pass] = measured_all(&taken[pass]);
        for (int r = 0; r < t->rows; r++) {
            int64_t count;
            demand(hra_forecast_spans(taken[pass].forecast, r, NULL, 0, &count));
            t->band[0].span[pass][r] = take(count, sizeof(*t->band[0].span[pass][r]));
            demand(hra_forecast_spans(taken[pass].forecast, r, t->band[0].span[pass][r], count,
                                      &t->band[0].spans[pass][r]));
            t->band[1].span[pass][r] = taken[pass].all + r * taken[pass].most;
            t->band[1].spans[pass][r] = taken[pass].counts[r];
        }
    }
}

/* 0, or -1 after a sentence. */
static int draw(const struct taken taken[2], const struct timeline_wanted *w, const hra_plan_info *info)
{
    static struct timeline t;
    const struct problem *p = w->problem;
    char source[600], why[512];

    snprintf(source, sizeof(source),
             "modelled on %s, measured on %s: %d ranks, transport %s, schedule %s, %" PRId64
             " tokens, %d heads (%d of keys), %d channels, %s",
             w->model, device_name()[0] != '\0' ? device_name() : "CPUs", world.ranks, info->transport,
             info->schedule, p->tokens, p->heads, p->heads_kv, p->dim, hra_type_name(p->type));
    t = (struct timeline){.title = p->mask,
                          .source = source,
                          .ranks = world.ranks,
                          .rows = world.ranks < TIMELINE_RANKS ? world.ranks : TIMELINE_RANKS,
                          .band = {{.name = "modelled"}, {.name = "measured"}},
                          .bands = 2};
    fill_bands(&t, taken);
    const int result = timeline_write(w->path, &t, why, sizeof(why));
    if (result != 0)
        fprintf(stderr, "hra-bench: %s\n", why);
    for (int pass = 0; pass < 2; pass++)
        for (int r = 0; r < t.rows; r++)
            free(t.band[0].span[pass][r]);
    return result;
}

/* What rank 0 says and draws. */
static int report(const struct taken taken[2], const struct timeline_wanted *w, const hra_plan_info *info)
{
    char *text = problem_text(w->problem);
    const char *shown = text == NULL ? "" : text;

    if (w->json)
        print_lines(taken, shown);
    else {
        printf("--timeline %s --model %s %s\n"
               "%d rank%s, transport %s, schedule %s, balance %.3f; the median of %d runs\n\n",
               w->path, w->model, shown, world.ranks, world.ranks == 1 ? "" : "s", info->transport,
               info->schedule, info->balance, w->repeat);
        print_table(taken);
    }
    free(text);
    return draw(taken, w, info);
}

void bench_timeline(struct setup *s, const struct timeline_wanted *w)
{
    static struct taken taken[2];
    hra_machine machine;
    struct layer layer;
    hra_hops *gate = NULL;
    hra_comm *comm;

    read_model(&machine, s, w->model);
    s->options.machine = &machine;
    demand(connection_open(&comm, w->connection));
    need(layer_open(&layer, comm, s, w->problem->seed));
    if (world.ranks > 1 && connection_of_gpus(w->connection))
        open_gate(&gate, comm);
    for (int pass = 0; pass < 2; pass++)
        demand(
            hra_forecast_create(&taken[pass].forecast, layer.plan, &machine, (hra_pass)pass, TIMELINE_RANKS));
    record(taken, &layer, comm, gate, w->repeat);
    for (int pass = 0; pass < 2; pass++) {
        choose(&taken[pass], w->repeat);
        gather(&taken[pass]);
    }
    const int result = world.rank == 0 ? report(taken, w, &layer.info) : 0;
    for (int pass = 0; pass < 2; pass++) {
        hra_forecast_destroy(taken[pass].forecast);
        free(taken[pass].span);
        free(taken[pass].counts);
        free(taken[pass].all);
    }
    hra_hops_destroy(gate);
    layer_close(&layer);
    demand(hra_comm_destroy(comm));
    s->options.machine = NULL;
    if (result != 0)
        exit(world_end(1));
}

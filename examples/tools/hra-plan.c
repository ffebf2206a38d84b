/* hra-plan.c - prints and draws what a plan knows of a problem, on any number of ranks that need not exist. */
#include "examples/tools/model.h"
#include "examples/tools/picture.h"
#include "examples/tools/timeline.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN_OPTIONS = 9 }; /* beside those of a problem */

/* The command line. */
struct request {
    struct problem problem;
    int ranks;
    char *path[PICTURE_KINDS]; /* where the pictures go, NULL: not wanted */
    int sequence, head;        /* whose pairs and tiles are drawn */
    char *model;               /* the machine of a forecast; NULL: none is wanted */
    char *timeline;            /* where its picture goes */
    int rows;                  /* ranks in that */
};

/* One rank's part of the plan, summed over batch and heads. */
struct part {
    int64_t rows;
    int64_t tiles, tiles_full;
    int64_t bitmaps;                  /* distinct ones */
    int sources;                      /* ranks whose keys it needs, itself included: rounds with work */
    int64_t received[2], messages[2]; /* [pass] */
};

static void *take(size_t bytes)
{
    void *memory = calloc(1, bytes + 1);
    if (memory == NULL) {
        fprintf(stderr, "hra-plan: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return memory;
}

/* Append a rank's tiles to those of the picture. */
static void keep_tiles(struct picture *picture, const hra_plan_tile *tile, int64_t count)
{
    const size_t bytes = (size_t)(picture->tiles + count) * sizeof(*tile);
    hra_plan_tile *all = realloc(picture->tile, bytes + 1);
    if (all == NULL) {
        fprintf(stderr, "hra-plan: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    memcpy(all + picture->tiles, tile, (size_t)count * sizeof(*tile));
    picture->tile = all;
    picture->tiles += count;
}

/* The tiles of `rank` into part, those that are drawn into the picture also. */
static hra_status count_tiles(struct part *part, struct picture *picture, hra_plan *plan,
                              const struct request *q, int rank)
{
    const struct problem *problem = &q->problem;
    char *source = take((size_t)q->ranks);
    hra_status status = HRA_OK;

    for (int64_t n = 0; status == HRA_OK && n < (int64_t)problem->batch * problem->heads; n++) {
        const int b = (int)(n / problem->heads), h = (int)(n % problem->heads);
        int64_t count = 0;
        if ((status = hra_plan_tiles(plan, rank, b, h, NULL, 0, &count)) != HRA_OK)
            break;
        hra_plan_tile *tile = take((size_t)count * sizeof(*tile));
        status = hra_plan_tiles(plan, rank, b, h, tile, count, &count);
        for (int64_t i = 0; status == HRA_OK && i < count; i++) {
            part->tiles++;
            part->tiles_full += tile[i].bitmap < 0;
            part->bitmaps = tile[i].bitmap >= part->bitmaps ? tile[i].bitmap + 1 : part->bitmaps;
            source[tile[i].key_rank] = 1;
        }
        if (status == HRA_OK && q->path[PICTURE_TILES] != NULL && b == q->sequence && h == q->head)
            keep_tiles(picture, tile, count);
        free(tile);
    }
    for (int r = 0; r < q->ranks; r++)
        part->sources += source[r];
    free(source);
    return status;
}

/* The schedule of `rank`; its messages into part, all of it into steps [2 passes]. */
static hra_status list_steps(struct part *part, struct picture_steps *steps, hra_plan *plan, int rank)
{
    hra_status status = HRA_OK;

    for (int pass = 0; status == HRA_OK && pass < 2; pass++) {
        struct picture_steps *s = &steps[pass];
        if ((status = hra_plan_moves(plan, rank, (hra_pass)pass, NULL, 0, &s->moves)) != HRA_OK ||
            (status = hra_plan_runs(plan, rank, (hra_pass)pass, NULL, 0, &s->runs)) != HRA_OK)
            return status;
        s->move = take((size_t)s->moves * sizeof(*s->move));
        s->run = take((size_t)s->runs * sizeof(*s->run));
        status = hra_plan_moves(plan, rank, (hra_pass)pass, s->move, s->moves, &s->moves);
        if (status == HRA_OK)
            status = hra_plan_runs(plan, rank, (hra_pass)pass, s->run, s->runs, &s->runs);
        for (int64_t n = 0; status == HRA_OK && n < s->moves; n++)
            if (!s->move[n].sends) {
                part->messages[pass]++;
                part->received[pass] += s->move[n].bytes;
            }
    }
    return status;
}

static void free_steps(struct picture_steps *steps, int64_t count)
{
    for (int64_t n = 0; n < count; n++) {
        free(steps[n].move);
        free(steps[n].run);
    }
    memset(steps, 0, (size_t)count * sizeof(*steps));
}

static const char *shard_text(hra_shard shard)
{
    switch (shard) {
    case HRA_SHARD_AUTO:
        return "auto";
    case HRA_SHARD_CONTIGUOUS:
        return "contiguous";
    case HRA_SHARD_ZIGZAG:
        return "zigzag";
    case HRA_SHARD_BALANCED:
        return "balanced";
    }
    return "?";
}

/* The lines about the whole problem; part NULL: ranks were not looked at. */
static void print_whole(const struct setup *s, const hra_plan_info *info, const struct part *part, int ranks)
{
    const hra_problem *p = &s->problem;
    const double all = (double)info->pairs_all;
    hra_order_info order = {.size = sizeof(order)};
    const double target = info->balance_bound > 1.03 ? info->balance_bound : 1.03;
    int64_t bitmaps = part == NULL ? info->bitmaps : 0;

    for (int r = 0; part != NULL && r < ranks; r++)
        bitmaps = part[r].bitmaps > bitmaps ? part[r].bitmaps : bitmaps;
    printf("problem    batch %d, %d heads (%d of keys, first %d), %d and %d channels, %s, scale %g\n",
           p->batch, p->heads, p->heads_kv, p->head0, p->dim, p->dim_v, hra_type_name(p->type), p->scale);
    if (hra_order_get_info(s->order, &order) == HRA_OK) {
        printf("order      %s: %s\n", order.name, order.curve);
        printf("           %" PRId64 " of %" PRId64 " steps are unit steps, the longest is %" PRId64 "\n",
               order.unit_steps, order.tokens - 1, order.longest);
    }
    printf("tiles      %" PRId64 " full, %" PRId64 " partial; %s%" PRId64
           " distinct bitmaps on %s, %d pattern%s\n",
           info->tiles_full, info->tiles_partial, part != NULL ? "at most " : "", bitmaps,
           part != NULL ? "a rank" : "rank 0", info->patterns, info->patterns == 1 ? "" : "s");
    printf(
        "density    %.4g of all pairs attend, %.4g lie in live tiles (once for each branch of a mixture)\n",
        (double)info->pairs_live / all, (double)info->pairs_in_tiles / all);
    if (info->pairs_counted > info->pairs_live)
        printf("           %.4g attend if each counts as often as it does in the mixture\n",
               (double)info->pairs_counted / all);
    printf("schedule   %s, %d rounds forward, %d backward, shard %s in %d pieces, backend %s\n",
           info->schedule, info->rounds_forward, info->rounds_backward, shard_text(info->shard), info->pieces,
           info->backend);
    printf("balance    %.3f (live tiles of the busiest rank / mean), target %.3f: the larger of 1.03 and\n"
           "           %.3f (live tiles of the heaviest row of tiles x ranks / all)\n",
           info->balance, target, info->balance_bound);
    printf("moved      forward %s, least possible %s; backward %s, least possible %s: %.4g times the least\n",
           bytes_text((double)info->bytes_forward), bytes_text((double)info->bytes_least),
           bytes_text((double)info->bytes_backward), bytes_text((double)info->bytes_least_backward),
           info->inflation);
    printf("memory     rank 0: workspace %s, arena %s, saved %s, plan %s\n\n",
           bytes_text((double)info->workspace_bytes), bytes_text((double)info->arena_bytes),
           bytes_text((double)info->saved_bytes), bytes_text((double)info->plan_bytes));
}

/* The first of a rank's runs of slots, and how many there are where not all are shown. */
static void print_pieces(const hra_piece *piece, int pieces, int rank)
{
    const int shown = 4;
    int runs = 0;

    for (int n = 0; n < pieces; n++)
        if (piece[n].rank == rank && piece[n].rows > 0 && runs++ < shown)
            printf("%s%" PRId64 "-%" PRId64, runs == 1 ? "   " : ", ", piece[n].slot0,
                   piece[n].slot0 + piece[n].rows - 1);
    if (runs > shown)
        printf(", ... (%d runs)", runs);
    printf("%s\n", runs == 0 ? "   none" : "");
}

/* One line for each rank. */
static void print_ranks(const struct part *part, int ranks, const hra_piece *piece, int pieces)
{
    printf("%4s %9s %9s %9s %7s   %-24s   %-24s   %s\n", "", "", "live", "full", "keys of",
           "received forward", "received backward", "");
    printf("%4s %9s %9s %9s %7s   %8s %15s   %8s %15s   %s\n", "rank", "rows", "tiles", "tiles", "ranks",
           "messages", "bytes", "messages", "bytes", "slots");
    for (int r = 0; r < ranks; r++) {
        const struct part *q = &part[r];
        printf("%4d %9" PRId64 " %9" PRId64 " %9" PRId64 " %7d", r, q->rows, q->tiles, q->tiles_full,
               q->sources);
        for (int pass = 0; pass < 2; pass++)
            printf("   %8" PRId64 " %15s", q->messages[pass], bytes_text((double)q->received[pass]));
        print_pieces(piece, pieces, r);
    }
}

/* The plan, made as rank 0, is asked for every rank. On failure hra_last_error says why. */
static hra_status survey(hra_plan **out, hra_comm **comm, struct part *part, struct picture *picture,
                         const struct request *q)
{
    const struct setup *s = picture->setup;
    struct picture_steps unused[2] = {{0}};

    hra_status status = hra_comm_create_model(comm, 0, q->ranks);
    if (status == HRA_OK)
        status = hra_plan_create(out, *comm, &s->problem, s->order, s->mask, &s->options);
    for (int r = 0; status == HRA_OK && r < q->ranks; r++) {
        part[r].rows = hra_plan_rows(*out, r);
        status = count_tiles(&part[r], picture, *out, q, r);
        if (status == HRA_OK)
            status = list_steps(&part[r], picture->steps != NULL ? &picture->steps[2 * r] : unused, *out, r);
        free_steps(unused, 2);
    }
    return status;
}

/* Draw what was asked for. 0, or -1 after telling why. */
static int draw(const struct request *q, const struct picture *picture)
{
    char why[512];

    for (int kind = 0; kind < PICTURE_KINDS; kind++) {
        if (q->path[kind] == NULL)
            continue;
        if (picture_write(q->path[kind], (enum picture_kind)kind, picture, why, sizeof(why)) != 0) {
            fprintf(stderr, "hra-plan: %s\n", why);
            return -1;
        }
        printf("drawn      %s\n", q->path[kind]);
    }
    return 0;
}

/* Say why a call of the library failed; the exit status for it. */
static int failed(hra_status status)
{
    fprintf(stderr, "hra-plan: %s\n", hra_last_error());
    return status == HRA_ERR_ARG || status == HRA_ERR_UNSUPPORTED ? 2 : 1;
}

/* Draw pairs, for which no plan is made. */
static int pairs(const struct request *q)
{
    struct setup s = {.order = NULL};
    const struct picture picture = {
        .setup = &s, .mask = q->problem.mask, .sequence = q->sequence, .head = q->head};

    const hra_status status = setup_create(&s, &q->problem);
    const int result = status != HRA_OK ? failed(status) : draw(q, &picture) != 0;
    setup_destroy(&s);
    return result;
}

static int plan(const struct request *q)
{
    struct setup s = {.order = NULL};
    struct part *part = take((size_t)q->ranks * sizeof(*part));
    hra_plan_info info = {.size = sizeof(info)};
    struct picture picture = {.setup = &s,
                              .mask = q->problem.mask,
                              .sequence = q->sequence,
                              .head = q->head,
                              .ranks = q->ranks,
                              .info = &info};
    hra_plan *made = NULL;
    hra_comm *comm = NULL;
    int result;

    if (q->path[PICTURE_ROUNDS] != NULL)
        picture.steps = take(2 * (size_t)q->ranks * sizeof(*picture.steps));
    hra_status status = setup_create(&s, &q->problem);
    if (status == HRA_OK)
        status = survey(&made, &comm, part, &picture, q);
    if (status == HRA_OK)
        status = hra_plan_get_info(made, &info);
    if (status == HRA_OK)
        status = hra_plan_pieces(made, &picture.piece, &picture.pieces);
    if (status == HRA_OK) {
        char *text = problem_text(&q->problem);
        printf("hra-plan --ranks %d %s\n\n", q->ranks, text != NULL ? text : "");
        free(text);
        print_whole(&s, &info, part, q->ranks);
        print_ranks(part, q->ranks, picture.piece, picture.pieces);
        picture.shard = shard_text(info.shard);
        result = draw(q, &picture) != 0;
    } else
        result = failed(status);
    hra_plan_destroy(made);
    hra_comm_destroy(comm);
    setup_destroy(&s);
    if (picture.steps != NULL)
        free_steps(picture.steps, 2 * (int64_t)q->ranks);
    free(picture.steps);
    free(picture.tile);
    free(part);
    return result;
}

/* ---- Forecasts ---- */

/* One pass of all ranks, or of one. */
static void print_pass(const hra_forecast_info *f, int pass, int ranks)
{
    printf("%-8s   %10.4g ms, efficiency %.4f: one rank alone takes %.6g ms for all\n",
           pass == HRA_FORWARD ? "forward" : "backward", 1e3 * f->seconds, f->efficiency, 1e3 * f->alone_s);
    printf(
        "           of a rank: computes %.4g ms (most %.4g), copies and adds %.4g, waits %.4g (most %.4g)\n",
        1e3 * f->compute_s, 1e3 * f->compute_most_s, 1e3 * f->other_s, 1e3 * f->waiting_s,
        1e3 * f->waiting_most_s);
    printf("           exposed %.4g ms: by so much it takes longer than the busiest rank is busy\n",
           1e3 * f->exposed_s);
    printf("           a rank receives %s (most %s) and sends %s (most %s), %.4g messages; between nodes go "
           "%s\n",
           bytes_text((double)f->received / ranks), bytes_text((double)f->received_most),
           bytes_text((double)f->sent / ranks), bytes_text((double)f->sent_most), (double)f->messages / ranks,
           bytes_text((double)f->between_nodes));
}

/* One line a rank, of the first ones. */
static hra_status print_rows(hra_forecast *const forecast[2], int ranks)
{
    const int shown = ranks < 16 ? ranks : 16;

    printf("\n%4s   %-60s   %s\n%4s", "", "forward", "backward", "rank");
    for (int pass = 0; pass < 2; pass++)
        printf("   %8s %8s %8s %10s %10s %11s", "computes", "others", "waits, ms", "received", "sent", "");
    printf("\n");
    for (int r = 0; r < shown; r++) {
        printf("%4d", r);
        for (int pass = 0; pass < 2; pass++) {
            hra_forecast_info f = {.size = sizeof(f)};
            const hra_status status = hra_forecast_get_info(forecast[pass], r, &f);
            if (status != HRA_OK)
                return status;
            printf("   %8.4g %8.4g %9.4g %10s %10s %10s", 1e3 * f.compute_s, 1e3 * f.other_s,
                   1e3 * f.waiting_s, bytes_text((double)f.received), bytes_text((double)f.sent), "");
        }
        printf("\n");
    }
    if (shown < ranks)
        printf("...  %d ranks more\n", ranks - shown);
    return HRA_OK;
}

/* The rows of the picture into t. */
static hra_status list_spans(struct timeline *t, hra_forecast *const forecast[2])
{
    struct timeline_band *b = &t->band[0];

    for (int pass = 0; pass < 2; pass++)
        for (int r = 0; r < t->rows; r++) {
            int64_t count = 0;
            hra_status status = hra_forecast_spans(forecast[pass], r, NULL, 0, &count);
            b->span[pass][r] = take((size_t)count * sizeof(*b->span[pass][r]));
            if (status == HRA_OK)
                status = hra_forecast_spans(forecast[pass], r, b->span[pass][r], count, &b->spans[pass][r]);
            if (status != HRA_OK)
                return status;
        }
    return HRA_OK;
}

/* Draw the timeline, if it is wanted. 0, or what main returns. */
static int draw_timeline(const struct request *q, hra_forecast *const forecast[2], const hra_plan_info *plan,
                         const hra_forecast_info info[2])
{
    char source[400], why[512];
    struct timeline t = {.title = q->problem.mask,
                         .source = source,
                         .ranks = q->ranks,
                         .rows = q->rows < q->ranks ? q->rows : q->ranks,
                         .band[0] = {.name = "modelled", .info = {info[0], info[1]}},
                         .bands = 1};

    if (q->timeline == NULL)
        return 0;
    snprintf(source, sizeof(source),
             "modelled on %s: %d ranks, schedule %s, %s shards, %" PRId64
             " tokens, %d heads (%d of keys), %d channels, %s",
             q->model, q->ranks, plan->schedule, shard_text(plan->shard), q->problem.tokens, q->problem.heads,
             q->problem.heads_kv, q->problem.dim, hra_type_name(q->problem.type));
    const hra_status status = list_spans(&t, forecast);
    int result = status != HRA_OK ? failed(status) : 0;
    if (result == 0 && timeline_write(q->timeline, &t, why, sizeof(why)) != 0) {
        fprintf(stderr, "hra-plan: %s\n", why);
        result = 1;
    }
    if (result == 0)
        printf("drawn      %s\n", q->timeline);
    for (int pass = 0; pass < 2; pass++)
        for (int r = 0; r < t.rows; r++)
            free(t.band[0].span[pass][r]);
    return result;
}

/* What is said of a plan on a machine. 0, or what main returns. */
static int tell_forecast(const struct request *q, const struct setup *s, const hra_plan *made,
                         const hra_machine *machine)
{
    hra_forecast *forecast[2] = {NULL, NULL};
    hra_forecast_info info[2] = {{.size = sizeof(info[0])}, {.size = sizeof(info[0])}};
    hra_plan_info plan = {.size = sizeof(plan)};

    hra_status status = hra_plan_get_info(made, &plan);
    for (int pass = 0; pass < 2 && status == HRA_OK; pass++) {
        status = hra_forecast_create(&forecast[pass], made, machine, (hra_pass)pass,
                                     q->timeline != NULL ? q->rows : 0);
        if (status == HRA_OK)
            status = hra_forecast_get_info(forecast[pass], -1, &info[pass]);
    }
    if (status == HRA_OK) {
        char *text = problem_text(&q->problem);
        printf("hra-plan --ranks %d --model %s %s\n\n", q->ranks, q->model, text != NULL ? text : "");
        free(text);
        print_whole(s, &plan, NULL, q->ranks);
        for (int pass = 0; pass < 2; pass++)
            print_pass(&info[pass], pass, q->ranks);
        status = print_rows(forecast, q->ranks);
    }
    const int result = status != HRA_OK ? failed(status) : draw_timeline(q, forecast, &plan, info);
    hra_forecast_destroy(forecast[0]);
    hra_forecast_destroy(forecast[1]);
    return result;
}

/* The plan and how long it takes on the model's machine. */
static int forecast(const struct request *q)
{
    struct setup s = {.order = NULL};
    hra_machine machine;
    hra_plan *made = NULL;
    hra_comm *comm = NULL;
    char why[512];

    if (model_read(&machine, q->model, q->problem.type, q->problem.dim, q->ranks, why, sizeof(why)) != 0) {
        fprintf(stderr, "hra-plan: %s\n", why);
        return 2;
    }
    hra_status status = setup_create(&s, &q->problem);
    s.options.machine = &machine;
    if (status == HRA_OK)
        status = hra_comm_create_model(&comm, 0, q->ranks);
    if (status == HRA_OK)
        status = hra_plan_create(&made, comm, &s.problem, s.order, s.mask, &s.options);
    const int result = status != HRA_OK ? failed(status) : tell_forecast(q, &s, made, &machine);
    hra_plan_destroy(made);
    hra_comm_destroy(comm);
    setup_destroy(&s);
    return result;
}

/* ---- The command line ---- */

/* Whether the pictures that are asked for can be drawn. 0, or -1 and one sentence in why. */
static int check_pictures(const struct request *q, char *why, size_t why_bytes)
{
    for (int kind = 0; kind < PICTURE_KINDS; kind++)
        if (q->path[kind] != NULL && picture_check(q->path[kind], why, why_bytes) != 0)
            return -1;
    if (q->timeline != NULL && timeline_check(q->timeline, why, why_bytes) != 0)
        return -1;
    if (q->timeline != NULL && q->model == NULL) {
        snprintf(why, why_bytes, "--timeline draws a forecast, for which --model names the machine");
        return -1;
    }
    if (q->model != NULL && (q->path[PICTURE_PAIRS] != NULL || q->path[PICTURE_TILES] != NULL ||
                             q->path[PICTURE_ROUNDS] != NULL)) {
        snprintf(
            why, why_bytes,
            "--model lists no tiles and moves, so that --picture, --rounds and --pairs cannot go with it");
        return -1;
    }
    if (q->path[PICTURE_PAIRS] != NULL && (q->path[PICTURE_TILES] != NULL || q->path[PICTURE_ROUNDS] != NULL))
        snprintf(why, why_bytes, "--pairs makes no plan, so that --picture and --rounds cannot go with it");
    else if (q->path[PICTURE_PAIRS] != NULL && q->problem.tokens > PICTURE_TOKENS)
        snprintf(why, why_bytes, "--pairs draws at most %d tokens, not %" PRId64 "; --picture draws tiles",
                 PICTURE_TOKENS, q->problem.tokens);
    else if (q->path[PICTURE_ROUNDS] != NULL && q->ranks > PICTURE_RANKS)
        snprintf(why, why_bytes, "--rounds draws at most %d ranks, not %d", PICTURE_RANKS, q->ranks);
    else if (q->head >= q->problem.heads)
        snprintf(why, why_bytes, "--head: %d is none of the %d of --heads", q->head, q->problem.heads);
    else if (q->sequence >= q->problem.batch)
        snprintf(why, why_bytes, "--sequence: %d is none of the %d of --batch", q->sequence,
                 q->problem.batch);
    else
        return 0;
    return -1;
}

/* Write the options, and return how many. */
static int list_options(struct option *out, struct request *q)
{
    const struct option own[] = {
        {"ranks", "W", "ranks of the plan (default 4)", OPTION_INT, &q->ranks, 1, 65536, NULL, 0},
        {"picture", "FILE", "draw the live tiles of a head, and its grid: a .png or .svg", OPTION_TEXT,
         &q->path[PICTURE_TILES], 0, 0, NULL, 0},
        {"rounds", "FILE", "draw who computes and who sends to whom: a .png or .svg", OPTION_TEXT,
         &q->path[PICTURE_ROUNDS], 0, 0, NULL, 0},
        {"pairs", "FILE", "draw the mask pair by pair, and make no plan: a .png or .svg", OPTION_TEXT,
         &q->path[PICTURE_PAIRS], 0, 0, NULL, 0},
        {"head", "H", "head of --picture and --pairs (default 0)", OPTION_INT, &q->head, 0, 65535, NULL, 0},
        {"model", "FILE", "forecast the time of both passes on the machine that FILE describes", OPTION_TEXT,
         &q->model, 0, 0, NULL, 0},
        {"timeline", "FILE", "draw the forecast: a .png or .svg", OPTION_TEXT, &q->timeline, 0, 0, NULL, 0},
        {"rows", "N", "ranks in --timeline (default 8)", OPTION_INT, &q->rows, 1, TIMELINE_RANKS, NULL, 0},
        {"sequence", "B", "sequence of --picture and --pairs (default 0)", OPTION_INT, &q->sequence, 0, 65535,
         NULL, 0},
    };
    const int shared = problem_options(out, &q->problem);
    _Static_assert(sizeof(own) / sizeof(own[0]) == OWN_OPTIONS, "OWN_OPTIONS is not their number");
    memcpy(out + shared, own, sizeof(own));
    return shared + OWN_OPTIONS;
}

int main(int argc, char **argv)
{
    struct request q = {.problem = PROBLEM_DEFAULT, .ranks = 4, .rows = 8};
    struct option options[PROBLEM_OPTIONS + OWN_OPTIONS];
    int result;
    char why[512];

    const int count = list_options(options, &q);
    const int parsed = options_parse(options, count, argc, argv, why, sizeof(why));
    if (parsed == 1) {
        printf("usage: hra-plan [OPTION VALUE]...\n"
               "Prints and draws what libhra's plan knows of a problem; nothing is computed.\n\n");
        options_print(options, count);
        result = 0;
    } else if (parsed != 0 || problem_complete(&q.problem, why, sizeof(why)) != 0 ||
               check_pictures(&q, why, sizeof(why)) != 0) {
        fprintf(stderr, "hra-plan: %s\n", why);
        result = 2;
    } else
        result = q.path[PICTURE_PAIRS] != NULL ? pairs(&q) : q.model != NULL ? forecast(&q) : plan(&q);
    for (int kind = 0; kind < PICTURE_KINDS; kind++)
        free(q.path[kind]);
    free(q.model);
    free(q.timeline);
    problem_free(&q.problem);
    return result;
}

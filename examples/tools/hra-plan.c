/* hra-plan.c - prints what a plan knows of a problem, on any number of ranks that need not exist. */
#include "examples/tools/problem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One rank's part of the plan, summed over batch and heads. */
struct part {
    int64_t rows;
    int64_t tiles, tiles_full;
    int64_t tile_pairs;               /* pairs in live tiles, those that do not attend included */
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

/* The tiles of `rank` into part. */
static hra_status count_tiles(struct part *part, hra_plan *plan, const hra_problem *problem, int rank,
                              int ranks)
{
    char *source = take((size_t)ranks);
    hra_status status = HRA_OK;

    for (int n = 0; status == HRA_OK && n < problem->batch * problem->heads; n++) {
        const int b = n / problem->heads, h = n % problem->heads;
        int64_t count = 0;
        if ((status = hra_plan_tiles(plan, rank, b, h, NULL, 0, &count)) != HRA_OK)
            break;
        hra_plan_tile *tile = take((size_t)count * sizeof(*tile));
        status = hra_plan_tiles(plan, rank, b, h, tile, count, &count);
        for (int64_t i = 0; status == HRA_OK && i < count; i++) {
            part->tiles++;
            part->tiles_full += tile[i].bitmap < 0;
            part->tile_pairs += (int64_t)tile[i].query_rows * tile[i].key_rows;
            part->bitmaps = tile[i].bitmap >= part->bitmaps ? tile[i].bitmap + 1 : part->bitmaps;
            source[tile[i].key_rank] = 1;
        }
        free(tile);
    }
    for (int r = 0; r < ranks; r++)
        part->sources += source[r];
    free(source);
    return status;
}

/* The messages that `rank` receives into part. */
static hra_status count_moves(struct part *part, hra_plan *plan, int rank)
{
    for (int pass = 0; pass < 2; pass++) {
        int64_t count;
        hra_status status = hra_plan_moves(plan, rank, (hra_pass)pass, NULL, 0, &count);
        if (status != HRA_OK)
            return status;
        hra_plan_move *move = take((size_t)count * sizeof(*move));
        status = hra_plan_moves(plan, rank, (hra_pass)pass, move, count, &count);
        for (int64_t n = 0; status == HRA_OK && n < count; n++)
            if (!move[n].sends) {
                part->messages[pass]++;
                part->received[pass] += move[n].bytes;
            }
        free(move);
        if (status != HRA_OK)
            return status;
    }
    return HRA_OK;
}

/* Bytes as "12.3 MiB" in one of a few static buffers, enough for one printf. */
static const char *bytes_text(double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    static char text[8][32];
    static int next;
    char *out = text[next++ % 8];
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(out, sizeof(text[0]), unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return out;
}

static const char *shard_text(hra_shard shard)
{
    return shard == HRA_SHARD_ZIGZAG ? "zigzag" : shard == HRA_SHARD_CONTIGUOUS ? "contiguous" : "auto";
}

/* The lines about the whole problem. */
static void print_whole(const struct setup *s, const hra_plan_info *info, const struct part *part, int ranks)
{
    const hra_problem *p = &s->problem;
    const double all = (double)info->pairs_all;
    hra_order_info order = {.size = sizeof(order)};
    int64_t tile_pairs = 0, bitmaps = 0;

    for (int r = 0; r < ranks; r++) {
        tile_pairs += part[r].tile_pairs;
        bitmaps = part[r].bitmaps > bitmaps ? part[r].bitmaps : bitmaps;
    }
    printf("problem    batch %d, %d heads (%d of keys, first %d), %d and %d channels, %s, scale %g\n",
           p->batch, p->heads, p->heads_kv, p->head0, p->dim, p->dim_v, hra_type_name(p->type), p->scale);
    if (hra_order_get_info(s->order, &order) == HRA_OK) {
        printf("order      %s: %s\n", order.name, order.curve);
        printf("           %" PRId64 " of %" PRId64 " steps are unit steps, the longest is %" PRId64 "\n",
               order.unit_steps, order.tokens - 1, order.longest);
    }
    printf("tiles      %" PRId64 " full, %" PRId64 " partial; at most %" PRId64
           " distinct bitmaps on a rank, %d pattern%s\n",
           info->tiles_full, info->tiles_partial, bitmaps, info->patterns, info->patterns == 1 ? "" : "s");
    printf("density    %.4f of all pairs attend, %.4f lie in live tiles\n", (double)info->pairs_live / all,
           (double)tile_pairs / all);
    printf("schedule   %s, %d rounds forward, %d backward, shard %s, backend %s\n", info->schedule,
           info->rounds_forward, info->rounds_backward, shard_text(info->shard), info->backend);
    printf("balance    %.3f (live tiles of the busiest rank / mean)\n", info->balance);
    printf("moved      forward %s, least possible %s; backward %s, least possible %s\n",
           bytes_text((double)info->bytes_forward), bytes_text((double)info->bytes_least),
           bytes_text((double)info->bytes_backward), bytes_text((double)info->bytes_least_backward));
    printf("memory     rank 0: workspace %s, arena %s, saved %s, plan %s\n\n",
           bytes_text((double)info->workspace_bytes), bytes_text((double)info->arena_bytes),
           bytes_text((double)info->saved_bytes), bytes_text((double)info->plan_bytes));
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
        const char *before = "   ";
        for (int n = 0; n < pieces; n++)
            if (piece[n].rank == r && piece[n].rows > 0) {
                printf("%s%" PRId64 "-%" PRId64, before, piece[n].slot0, piece[n].slot0 + piece[n].rows - 1);
                before = ", ";
            }
        printf("%s\n", q->rows == 0 ? "   none" : "");
    }
}

/* One plan, made as rank 0, is asked for every rank. On failure hra_last_error says why. */
static hra_status survey(hra_plan **out, hra_comm **comm, struct part *part, const struct setup *s, int ranks)
{
    hra_status status = hra_comm_create_model(comm, 0, ranks);
    if (status == HRA_OK)
        status = hra_plan_create(out, *comm, &s->problem, s->order, s->mask, &s->options);
    for (int r = 0; status == HRA_OK && r < ranks; r++) {
        part[r].rows = hra_plan_rows(*out, r);
        status = count_tiles(&part[r], *out, &s->problem, r, ranks);
        if (status == HRA_OK)
            status = count_moves(&part[r], *out, r);
    }
    return status;
}

static int plan(const struct problem *p, int ranks)
{
    struct setup s = {.order = NULL};
    struct part *part = take((size_t)ranks * sizeof(*part));
    hra_plan_info info = {.size = sizeof(info)};
    hra_plan *made = NULL;
    hra_comm *comm = NULL;
    const hra_piece *piece;
    int pieces;

    hra_status status = setup_create(&s, p);
    if (status == HRA_OK)
        status = survey(&made, &comm, part, &s, ranks);
    if (status == HRA_OK)
        status = hra_plan_get_info(made, &info);
    if (status == HRA_OK)
        status = hra_plan_pieces(made, &piece, &pieces);
    if (status == HRA_OK) {
        char *text = problem_text(p);
        printf("hra-plan --ranks %d %s\n\n", ranks, text != NULL ? text : "");
        free(text);
        print_whole(&s, &info, part, ranks);
        print_ranks(part, ranks, piece, pieces);
    } else
        fprintf(stderr, "hra-plan: %s\n", hra_last_error());
    hra_plan_destroy(made);
    hra_comm_destroy(comm);
    setup_destroy(&s);
    free(part);
    return status == HRA_OK ? 0 : status == HRA_ERR_ARG || status == HRA_ERR_UNSUPPORTED ? 2 : 1;
}

int main(int argc, char **argv)
{
    struct problem p = PROBLEM_DEFAULT;
    struct option options[PROBLEM_OPTIONS + 1];
    int ranks = 4, result;
    char why[512];

    const int shared = problem_options(options, &p);
    options[shared] =
        (struct option){"ranks", "W", "ranks of the plan (default 4)", OPTION_INT, &ranks, 1, 65536, NULL, 0};
    const int parsed = options_parse(options, shared + 1, argc, argv, why, sizeof(why));
    if (parsed == 1) {
        printf("usage: hra-plan [OPTION VALUE]...\n"
               "Prints what libhra's plan knows of a problem; nothing is computed.\n\n");
        options_print(options, shared + 1);
        result = 0;
    } else if (parsed != 0 || problem_complete(&p, why, sizeof(why)) != 0) {
        fprintf(stderr, "hra-plan: %s\n", why);
        result = 2;
    } else
        result = plan(&p, ranks);
    problem_free(&p);
    return result;
}

/* plan_ask.c - what can be asked of a plan. */
#include "src/plan.h"

#include <string.h>

hra_status hra_plan_get_info(const hra_plan *plan, hra_plan_info *info)
{
    if (plan == NULL || info == NULL || info->size < sizeof(info->size))
        return HRA_FAIL(HRA_ERR_ARG, "hra_plan_get_info: %s",
                        plan == NULL   ? "plan is NULL"
                        : info == NULL ? "info is NULL"
                                       : "info.size is not set");
    const hra_problem *p = &plan->problem;
    const double pairs = (double)p->batch * p->heads * (double)p->tokens * (double)p->tokens;
    const int64_t row_bytes = (int64_t)p->batch * p->heads_kv * (p->dim + p->dim_v);
    const int64_t kv_bytes = row_bytes * (int64_t)hra_type_bytes(p->type);
    const int64_t sum_bytes = row_bytes * (int64_t)hra_type_bytes(hra_type_sums(p->type));
    int64_t busy = 0, work = 0, heaviest = 0;
    hra_plan_info full = {
        .size = info->size,
        .workspace_bytes = plan->workspace_bytes,
        .saved_bytes = plan->saved_bytes,
        .arena_bytes = plan->arena != NULL ? plan->arena->bytes : plan->arena_reserve,
        .plan_bytes = plan->tiles->bytes,
        .pairs_all = pairs < 0x1p63 ? (int64_t)pairs : INT64_MAX,
        .bitmaps = plan->tiles->dictionary.count,
        .patterns = plan->tiles->patterns,
        .rounds_forward = plan->pass[HRA_FORWARD].schedule.rounds,
        .rounds_backward = plan->pass[HRA_BACKWARD].schedule.rounds,
        .pieces = plan->layout->pieces,
        .shard = plan->shard,
        .blocking = plan->backend->blocking || plan->staged,
        .threads = plan->kernel_plan.threads,
        .backend = plan->backend->name,
        .transport = plan->comm->transport->name,
        .schedule = hra_schedules[plan->schedule].name,
        .backward = plan->backend->method,
        .reorders_forward = plan->reorders[HRA_FORWARD],
        .reorders_backward = plan->reorders[HRA_BACKWARD],
    };
    for (int r = 0; r < plan->comm->ranks; r++) {
        const struct hra_rank_stats *s = &plan->stats[r];
        full.pairs_live += s->pairs_live;
        full.pairs_counted += s->pairs_counted;
        full.pairs_in_tiles += s->pairs_in_tiles;
        full.tiles_full += s->tiles_full;
        full.tiles_partial += s->tiles_partial;
        full.bytes_forward += s->received[HRA_FORWARD];
        full.bytes_backward += s->received[HRA_BACKWARD];
        full.bytes_least += s->rows_needed * kv_bytes;
        full.bytes_least_backward += s->rows_needed * (kv_bytes + sum_bytes);
        work += s->work;
        busy = s->work > busy ? s->work : busy;
        heaviest = s->heaviest > heaviest ? s->heaviest : heaviest;
    }
    const double least = (double)full.bytes_least + (double)full.bytes_least_backward;
    full.inflation = least > 0 ? ((double)full.bytes_forward + (double)full.bytes_backward) / least : 1;
    full.balance = work == 0 ? 1 : (double)busy * plan->comm->ranks / (double)work;
    full.balance_bound = work == 0 ? 0 : (double)heaviest * plan->comm->ranks / (double)work;
    memcpy(info, &full, info->size < sizeof(full) ? info->size : sizeof(full));
    return HRA_OK;
}

int64_t hra_plan_rows(const hra_plan *plan, int rank)
{
    if (plan == NULL || rank < 0 || rank >= plan->comm->ranks)
        return -1;
    return plan->layout->rows[rank];
}

static hra_status check_rank(const hra_plan *plan, int rank, const char *call)
{
    if (plan == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s: plan is NULL", call);
    if (rank < 0 || rank >= plan->comm->ranks)
        return HRA_FAIL(HRA_ERR_ARG, "%s: rank %d of %d", call, rank, plan->comm->ranks);
    return HRA_OK;
}

hra_status hra_plan_row_index(const hra_plan *plan, int rank, int64_t *slot, int64_t *token)
{
    HRA_TRY(check_rank(plan, rank, "hra_plan_row_index"));
    for (int i = 0; i < plan->layout->pieces; i++) {
        const hra_piece *piece = &plan->layout->piece[i];
        for (int64_t r = 0; piece->rank == rank && r < piece->rows; r++) {
            if (slot != NULL)
                slot[piece->row0 + r] = piece->slot0 + r;
            if (token != NULL)
                token[piece->row0 + r] = plan->order->slot_to_token[piece->slot0 + r];
        }
    }
    return HRA_OK;
}

hra_status hra_plan_pieces(const hra_plan *plan, const hra_piece **out, int *count)
{
    if (plan == NULL || out == NULL || count == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_plan_pieces: plan %p, out %p, count %p", (const void *)plan,
                        (void *)out, (void *)count);
    *out = plan->layout->piece;
    *count = plan->layout->pieces;
    return HRA_OK;
}

hra_status hra_plan_tiles(hra_plan *plan, int rank, int batch, int head, hra_plan_tile *out, int64_t capacity,
                          int64_t *count)
{
    HRA_TRY(check_rank(plan, rank, "hra_plan_tiles"));
    if (batch < 0 || batch >= plan->problem.batch || head < 0 || head >= plan->problem.heads)
        return HRA_FAIL(HRA_ERR_ARG, "hra_plan_tiles: batch %d of %d, head %d of %d", batch,
                        plan->problem.batch, head, plan->problem.heads);
    if (count == NULL || capacity < 0 || (out == NULL && capacity > 0))
        return HRA_FAIL(HRA_ERR_ARG, "hra_plan_tiles: out %p, capacity %lld, count %p", (void *)out,
                        (long long)capacity, (void *)count);

    const struct hra_layout *l = plan->layout;
    const struct hra_tiles *t = plan->tiles;
    if (rank != plan->comm->rank) {
        if (plan->other == NULL || plan->other->rank != rank) {
            struct hra_tiles *other = NULL;
            HRA_TRY(hra_tiles_compile(&other, l, plan->order, plan->mask, rank, plan->problem.batch,
                                      plan->problem.head0, plan->problem.heads));
            hra_tiles_destroy(plan->other);
            plan->other = other;
        }
        t = plan->other;
    }
    const struct hra_tile_list *list = &t->list[t->pattern[batch * t->heads + head]];
    const int first = l->rank_tile[rank];
    for (int q = 0; q < t->queries; q++)
        for (int64_t i = list->row_start[q]; i < list->row_start[q + 1] && i < capacity; i++)
            out[i] = (hra_plan_tile){.query_slot0 = l->slot0[first + q],
                                     .key_slot0 = l->slot0[list->key[i]],
                                     .live = hra_tiles_live(t, list, i),
                                     .query_rows = l->tile[first + q].rows,
                                     .key_rows = l->tile[list->key[i]].rows,
                                     .key_rank = hra_work_owner(&plan->work, list->key[i]),
                                     .bitmap = list->bitmap[i]};
    *count = list->row_start[t->queries];
    return HRA_OK;
}

/* The schedule of a rank, for hra_plan_moves and hra_plan_runs, whose arguments these are. */
static hra_status open_schedule(struct hra_schedule *s, const hra_plan *plan, int rank, hra_pass pass,
                                const void *out, int64_t capacity, const int64_t *count, const char *call)
{
    HRA_TRY(check_rank(plan, rank, call));
    if ((pass != HRA_FORWARD && pass != HRA_BACKWARD) || count == NULL || capacity < 0 ||
        (out == NULL && capacity > 0))
        return HRA_FAIL(HRA_ERR_ARG, "%s: pass %d, out %p, capacity %lld, count %p", call, (int)pass, out,
                        (long long)capacity, (const void *)count);
    return plan->generate(s, &plan->work, rank, pass);
}

hra_status hra_plan_moves(const hra_plan *plan, int rank, hra_pass pass, hra_plan_move *out, int64_t capacity,
                          int64_t *count)
{
    struct hra_schedule s = {0};

    HRA_TRY(open_schedule(&s, plan, rank, pass, out, capacity, count, "hra_plan_moves"));
    for (int r = 0; r < s.rounds; r++)
        for (int i = s.round[r].move0; i < s.round[r].move1 && i < capacity; i++) {
            const struct hra_move *m = &s.move[i];
            out[i] = (hra_plan_move){.round = r,
                                     .peer = m->peer,
                                     .sends = m->sends,
                                     .gradient = m->payload == HRA_DKV,
                                     .owner = s.part[m->part].owner,
                                     .bytes = (int64_t)hra_plan_move_bytes(plan, &s, m)};
        }
    *count = s.moves;
    hra_schedule_clear(&s);
    return HRA_OK;
}

/* First row of a query tile of a rank; of the tile behind the last: all rows. */
static int64_t query_row(const struct hra_layout *l, int rank, int query)
{
    const int tile = l->rank_tile[rank] + query;
    return tile < l->rank_tile[rank + 1] ? l->tile[tile].row0 : l->rows[rank];
}

hra_status hra_plan_runs(const hra_plan *plan, int rank, hra_pass pass, hra_plan_run *out, int64_t capacity,
                         int64_t *count)
{
    struct hra_schedule s = {0};

    HRA_TRY(open_schedule(&s, plan, rank, pass, out, capacity, count, "hra_plan_runs"));
    for (int r = 0; r < s.rounds; r++)
        for (int i = s.round[r].run0; i < s.round[r].run1; i++) {
            const struct hra_run *run = &s.run[i];
            const int64_t row0 = query_row(plan->layout, rank, run->query0);
            for (int c = run->source0; c < run->source1 && c < capacity; c++) {
                const struct hra_part *part = &s.part[s.source[c].part];
                out[c] = (hra_plan_run){.round = r,
                                        .owner = part->owner,
                                        .query_row0 = row0,
                                        .query_rows = query_row(plan->layout, rank, run->query1) - row0,
                                        .key_row0 = hra_plan_part_row0(plan, part),
                                        .key_rows = hra_plan_part_rows(plan, part),
                                        .head0 = part->head0,
                                        .head1 = part->head1};
            }
        }
    *count = s.sources;
    hra_schedule_clear(&s);
    return HRA_OK;
}

/* forecast.c - the public side of model.c: what a pass of a plan would take on a machine. */
#include "src/model.h"

#include <stdlib.h>
#include <string.h>

struct hra_forecast {
    struct hra_model model;
};

hra_status hra_forecast_create(hra_forecast **out, const hra_plan *plan, const hra_machine *machine,
                               hra_pass pass, int watched)
{
    hra_forecast *f = NULL;
    hra_machine read;

    if (out == NULL || plan == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_forecast_create: %s is NULL", out == NULL ? "out" : "plan");
    if ((pass != HRA_FORWARD && pass != HRA_BACKWARD) || watched < 0)
        return HRA_FAIL(HRA_ERR_ARG, "hra_forecast_create: pass %d, %d ranks watched", (int)pass, watched);
    HRA_TRY(hra_machine_read(&read, machine, plan->work.ranks));
    HRA_TRY(hra_alloc((void **)&f, 1, sizeof(*f), "forecast"));
    const hra_status status = hra_model_play(&f->model, plan, &read, pass, watched);
    if (status != HRA_OK) {
        hra_forecast_destroy(f);
        return status;
    }
    *out = f;
    return HRA_OK;
}

void hra_forecast_destroy(hra_forecast *forecast)
{
    if (forecast == NULL)
        return;
    hra_model_clear(&forecast->model);
    free(forecast);
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* Add one rank to what is said of several. */
static void add_rank(hra_forecast_info *info, const struct hra_model_rank *r, double *busiest)
{
    info->seconds = larger(info->seconds, r->seconds);
    info->alone_s += r->alone;
    info->compute_s += r->compute;
    info->compute_most_s = larger(info->compute_most_s, r->compute);
    info->other_s += r->other;
    info->waiting_s += r->waiting;
    info->waiting_most_s = larger(info->waiting_most_s, r->waiting);
    info->received += r->received;
    info->sent += r->sent;
    info->received_most = r->received > info->received_most ? r->received : info->received_most;
    info->sent_most = r->sent > info->sent_most ? r->sent : info->sent_most;
    info->between_nodes += r->between;
    info->messages += r->messages;
    *busiest = larger(*busiest, r->compute + r->other);
}

hra_status hra_forecast_get_info(const hra_forecast *forecast, int rank, hra_forecast_info *info)
{
    if (forecast == NULL || info == NULL || info->size < sizeof(info->size))
        return HRA_FAIL(HRA_ERR_ARG, "hra_forecast_get_info: %s",
                        forecast == NULL ? "forecast is NULL"
                        : info == NULL   ? "info is NULL"
                                         : "info.size is not set");
    const struct hra_model *m = &forecast->model;
    if (rank < -1 || rank >= m->ranks)
        return HRA_FAIL(HRA_ERR_ARG, "hra_forecast_get_info: rank %d of %d", rank, m->ranks);
    const int first = rank < 0 ? 0 : rank, count = rank < 0 ? m->ranks : 1;
    hra_forecast_info full = {.size = info->size};
    double busiest = 0;

    for (int r = first; r < first + count; r++)
        add_rank(&full, &m->rank[r], &busiest);
    full.compute_s /= count;
    full.other_s /= count;
    full.waiting_s /= count;
    full.efficiency = full.seconds > 0 ? full.alone_s / count / full.seconds : 1;
    full.exposed_s = larger(full.seconds - busiest, 0);
    memcpy(info, &full, info->size < sizeof(full) ? info->size : sizeof(full));
    return HRA_OK;
}

hra_status hra_forecast_spans(const hra_forecast *forecast, int rank, hra_span *out, int64_t capacity,
                              int64_t *count)
{
    if (forecast == NULL || count == NULL || capacity < 0 || (out == NULL && capacity > 0))
        return HRA_FAIL(HRA_ERR_ARG, "hra_forecast_spans: forecast %p, out %p, capacity %lld, count %p",
                        (const void *)forecast, (void *)out, (long long)capacity, (void *)count);
    const struct hra_model *m = &forecast->model;
    if (rank < 0 || rank >= m->watched)
        return HRA_FAIL(HRA_ERR_ARG, "hra_forecast_spans: rank %d of %d that are watched", rank, m->watched);
    if (capacity > m->spans[rank])
        capacity = m->spans[rank];
    if (capacity > 0)
        memcpy(out, m->span[rank], (size_t)capacity * sizeof(*out));
    *count = m->spans[rank];
    return HRA_OK;
}

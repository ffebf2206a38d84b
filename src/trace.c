/* trace.c - see trace.h; and its public side. */
#include "src/trace.h"
#include "src/plan.h"

#include <stdlib.h>

/* What the stream did before a mark. */
struct step {
    hra_span_kind kind;
    int round, peer;
};

/* The marks between which a message was under way. */
struct way {
    int from, to;
};

/* One pass. */
struct recording {
    void *marks;       /* the backend's, `room` of them */
    double *s;         /* [room] scratch: when they were passed */
    struct step *step; /* [room]; step 0 is none, since mark 0 is the beginning */
    struct way *way;   /* [moves] */
    int room, count;   /* marks that there are, and that were set */
    int whole;         /* 1: up to the end */
};

struct hra_trace {
    hra_plan *plan; /* NULL: it is gone */
    const struct hra_backend *backend;
    struct recording of[2]; /* by hra_pass */
};

/* ---- Recording ---- */

hra_status hra_trace_begin(struct hra_trace *trace, hra_pass pass, void *stream)
{
    struct recording *r = &trace->of[pass];

    r->whole = 0;
    r->count = 1;
    return trace->backend->set_mark(r->marks, 0, stream);
}

hra_status hra_trace_step(struct hra_trace *trace, hra_pass pass, hra_span_kind kind, int round, int peer,
                          void *stream)
{
    struct recording *r = &trace->of[pass];

    r->step[r->count] = (struct step){kind, round, peer};
    return trace->backend->set_mark(r->marks, r->count++, stream);
}

void hra_trace_move(struct hra_trace *trace, hra_pass pass, int move, int ends)
{
    struct recording *r = &trace->of[pass];

    *(ends ? &r->way[move].to : &r->way[move].from) = r->count - 1;
}

void hra_trace_end(struct hra_trace *trace, hra_pass pass)
{
    trace->of[pass].whole = 1;
}

void hra_trace_forget(struct hra_trace *trace)
{
    trace->plan = NULL;
}

/* ---- Making ---- */

static hra_status open_recording(struct recording *r, const struct hra_backend *backend,
                                 const struct hra_schedule *s)
{
    /* The beginning, what is before the first round (rows brought into slot order, sums cleared, executions before waited
     * for, loads) and behind the last one (gradients written, rows brought back); of a round what is sent staged and started, of a move the waiting and what is done then. */
    r->room = 7 + 2 * s->rounds + 2 * s->moves + s->runs;
    HRA_TRY(hra_alloc((void **)&r->s, r->room, sizeof(*r->s), "trace"));
    HRA_TRY(hra_alloc((void **)&r->step, r->room, sizeof(*r->step), "trace"));
    HRA_TRY(hra_alloc((void **)&r->way, s->moves, sizeof(*r->way), "trace"));
    return backend->make_marks(&r->marks, r->room);
}

hra_status hra_trace_create(hra_trace **out, hra_plan *plan)
{
    hra_status status = HRA_OK;
    hra_trace *t = NULL;

    if (out == NULL || plan == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_trace_create: %s is NULL", out == NULL ? "out" : "plan");
    if (plan->kernels == NULL)
        return HRA_FAIL(HRA_ERR_STATE, "hra_trace_create: the plan was made on a model of %d ranks",
                        plan->comm->ranks);
    if (plan->trace != NULL)
        return HRA_FAIL(HRA_ERR_STATE,
                        "hra_trace_create: the plan has a trace, which must be destroyed first");
    HRA_TRY(hra_alloc((void **)&t, 1, sizeof(*t), "trace"));
    t->backend = plan->backend;
    for (int pass = 0; pass < 2 && status == HRA_OK; pass++)
        status = open_recording(&t->of[pass], plan->backend, &plan->pass[pass].schedule);
    if (status != HRA_OK) {
        hra_trace_destroy(t);
        return status;
    }
    t->plan = plan;
    plan->trace = t;
    *out = t;
    return HRA_OK;
}

void hra_trace_destroy(hra_trace *trace)
{
    if (trace == NULL)
        return;
    if (trace->plan != NULL)
        trace->plan->trace = NULL;
    for (int pass = 0; pass < 2; pass++) {
        struct recording *r = &trace->of[pass];
        trace->backend->drop_marks(r->marks, r->room);
        free(r->s);
        free(r->step);
        free(r->way);
    }
    free(trace);
}

/* ---- Reading ---- */

static hra_span span_of_step(const struct recording *r, int i)
{
    return (hra_span){.kind = r->step[i].kind,
                      .round = r->step[i].round,
                      .peer = r->step[i].peer,
                      .begin_s = r->s[i - 1],
                      .end_s = r->s[i]};
}

static hra_span span_of_move(const struct recording *r, const struct hra_pass_plan *pass, int round, int i)
{
    const struct hra_move *move = &pass->schedule.move[i];

    return (hra_span){.kind = move->sends ? HRA_SPAN_SEND : HRA_SPAN_RECEIVE,
                      .round = round,
                      .peer = move->peer,
                      .gradient = move->payload == HRA_DKV,
                      .begin_s = r->s[r->way[i].from],
                      .end_s = r->s[r->way[i].to],
                      .bytes = (int64_t)pass->transfer[i].bytes};
}

hra_status hra_trace_spans(hra_trace *trace, hra_pass pass, hra_span *out, int64_t capacity, int64_t *count)
{
    if (trace == NULL || count == NULL || capacity < 0 || (out == NULL && capacity > 0) ||
        (pass != HRA_FORWARD && pass != HRA_BACKWARD))
        return HRA_FAIL(HRA_ERR_ARG, "hra_trace_spans: trace %p, pass %d, out %p, capacity %lld, count %p",
                        (void *)trace, (int)pass, (void *)out, (long long)capacity, (void *)count);
    struct recording *r = &trace->of[pass];
    if (trace->plan == NULL || !r->whole)
        return HRA_FAIL(HRA_ERR_STATE, "hra_trace_spans: %s",
                        trace->plan == NULL ? "the plan has been destroyed"
                                            : "no execution of this pass was recorded to its end");
    const struct hra_pass_plan *p = &trace->plan->pass[pass];
    const struct hra_schedule *s = &p->schedule;
    int64_t n = 0;

    HRA_TRY(trace->backend->read_marks(r->marks, r->count, r->s));
    for (int i = 1; i < r->count; i++, n++)
        if (n < capacity)
            out[n] = span_of_step(r, i);
    for (int round = 0; round < s->rounds; round++)
        for (int i = s->round[round].move0; i < s->round[round].move1; i++, n++)
            if (n < capacity)
                out[n] = span_of_move(r, p, round, i);
    *count = n;
    return HRA_OK;
}

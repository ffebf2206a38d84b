/* ring.c - the executor: carries out any schedule, forward or backward.
 *
 * It knows rounds, moves and runs, and no ring. Everything that touches one buffer happens in schedule order: before a
 * move starts or a run begins, earlier moves on its buffers are finished. All messages go to the communicator's arena, so
 * a failure leaves nothing pending that writes to memory of the caller's; own K/V may be read from there (add_lines). */
#include "src/slots.h"
#include "src/trace.h"

#include <string.h>

/* One execution. */
struct execution {
    hra_plan *plan;
    struct hra_pass_plan *pass;
    hra_pass which;
    const hra_tensor *k, *v;   /* the caller's own */
    struct hra_part own;       /* all keys of this rank; key_tile0 == key_tile1: none */
    const hra_tensor *dk, *dv; /* backward: the caller's own */
    char *sums;                /* backward: our own dK/dV, laid out like a part */
    void *stream;
    int round;    /* under way; -1: before the first and behind the last one */
    int straight; /* 1: sends may take our own K/V from where they are */
    int first; /* of the moves under way, -1: none; pass->next has the others, in the order of the schedule */
    int *behind; /* where the index of the next one to be started is put: behind the last one, or in first */
};

/* Since the last step the stream has done this, if anybody wants to know. */
static hra_status record(const struct execution *x, hra_span_kind kind, int peer)
{
    struct hra_trace *trace = x->plan->trace;
    return trace == NULL ? HRA_OK : hra_trace_step(trace, x->which, kind, x->round, peer, x->stream);
}

static void record_move(const struct execution *x, int i, int ends)
{
    if (x->plan->trace != NULL)
        hra_trace_move(x->plan->trace, x->which, i, ends);
}

/* A dense part: [batch][rows][head1 - head0][dim], as callers mostly have theirs, so that lines of theirs are lines here. */
static hra_tensor dense(void *data, int64_t rows, int heads, int dim)
{
    return (hra_tensor){.data = data,
                        .stride_batch = heads * rows * dim,
                        .stride_row = (int64_t)heads * dim,
                        .stride_head = dim};
}

/* The two tensors of a payload that lies at `base`. */
static void open_payload(const hra_plan *plan, const struct hra_part *part, enum hra_payload payload,
                         char *base, hra_tensor *k, hra_tensor *v)
{
    const int64_t rows = hra_plan_part_rows(plan, part);
    size_t v_offset;

    hra_plan_part_bytes(plan, part, payload, &v_offset);
    *k = dense(base, rows, part->head1 - part->head0, plan->problem.dim);
    *v = dense(base + v_offset, rows, part->head1 - part->head0, plan->problem.dim_v);
}

/* A tensor from a row and a head of it on. */
static hra_tensor cut_rows(const hra_tensor *whole, int64_t row0, int head0, hra_type type)
{
    hra_tensor t = *whole;
    t.data = (char *)whole->data +
             (row0 * whole->stride_row + head0 * whole->stride_head) * (int64_t)hra_type_bytes(type);
    return t;
}

/* The part of `whole`, a tensor of all our own rows and K/V heads. */
static hra_tensor cut_own(const hra_plan *plan, const hra_tensor *whole, const struct hra_part *part,
                          hra_type type)
{
    return cut_rows(whole, hra_plan_part_row0(plan, part), part->head0, type);
}

/* A buffer where the backend computes, and where the transport reaches it. */
static char *buffer_at(const struct execution *x, enum hra_payload payload, int buffer)
{
    const struct hra_arena *arena = x->plan->arena;
    return (char *)(x->plan->staged ? arena->mirror : arena->base) + x->pass->buffer[payload][buffer];
}

static char *message_at(const struct execution *x, enum hra_payload payload, int buffer)
{
    return (char *)x->plan->arena->base + x->pass->buffer[payload][buffer];
}

/* Our own dK/dV sums of one part. */
static void open_own_sums(const struct execution *x, const struct hra_part *part, hra_tensor *dk,
                          hra_tensor *dv)
{
    const hra_type sums = hra_type_sums(x->plan->problem.type);
    hra_tensor all_k, all_v;

    open_payload(x->plan, &x->own, HRA_DKV, x->sums, &all_k, &all_v);
    *dk = cut_own(x->plan, &all_k, part, sums);
    *dv = cut_own(x->plan, &all_v, part, sums);
}

/* Rows that are copied or added together, as many as go into a call; the types of `to` and of the rest. */
struct rows_list {
    struct hra_rows rows[HRA_ROWS_AT_ONCE];
    int count;
    hra_type to, from;
};

static hra_status flush(const struct execution *x, struct rows_list *b)
{
    const int count = b->count;

    b->count = 0;
    if (count == 0)
        return HRA_OK;
    return x->plan->backend->combine(x->plan->kernels, b->rows, count, b->to, b->from, x->stream);
}

/* dK or K of a part, n 0, or dV or V, n 1. sums: NULL where nothing is added. */
static hra_status put(const struct execution *x, struct rows_list *b, const struct hra_part *part, int n,
                      const hra_tensor *to, const hra_tensor *sums, const hra_tensor *from, double factor)
{
    const hra_problem *p = &x->plan->problem;

    if (b->count == HRA_ROWS_AT_ONCE)
        HRA_TRY(flush(x, b));
    b->rows[b->count++] = (struct hra_rows){.to = *to,
                                            .sums = sums == NULL ? (hra_tensor){0} : *sums,
                                            .from = *from,
                                            .rows = hra_plan_part_rows(x->plan, part),
                                            .heads = part->head1 - part->head0,
                                            .dim = n == 0 ? p->dim : p->dim_v,
                                            .factor = factor};
    return HRA_OK;
}

/* A move has arrived and is added to our own sums, or is the last that is: then dk = scale dK and dv = dV are written. */
static hra_status add_home(struct execution *x, int i)
{
    const hra_plan *plan = x->plan;
    const hra_problem *p = &plan->problem;
    const hra_type sums = hra_type_sums(p->type);
    const struct hra_move *move = &x->pass->schedule.move[i];
    const int closes = x->pass->closes[i];
    struct rows_list b = {.count = 0, .to = closes ? p->type : sums, .from = sums};

    for (int n = 0; n <= move->more; n++) {
        const struct hra_part *part = &x->pass->schedule.part[move->part + n];
        hra_tensor home[2], own[2], out[2]; /* dK, dV */

        open_payload(plan, part, HRA_DKV, buffer_at(x, HRA_DKV, move->to + n), &home[0], &home[1]);
        open_own_sums(x, part, &own[0], &own[1]);
        for (int t = 0; t < 2; t++) {
            out[t] = closes ? cut_own(plan, t == 0 ? x->dk : x->dv, part, p->type) : own[t];
            HRA_TRY(put(x, &b, part, t, &out[t], &own[t], &home[t], closes && t == 0 ? p->scale : 1));
        }
    }
    return flush(x, &b);
}

/* Nothing is under way. */
static void clear_moves(struct execution *x)
{
    x->first = -1;
    x->behind = &x->first;
    for (int payload = 0; payload < HRA_PAYLOADS; payload++)
        if (x->pass->buffers[payload] > 0)
            memset(x->pass->busy[payload], 0,
                   (size_t)x->pass->buffers[payload] * sizeof(*x->pass->busy[payload]));
}

/* Count a move in or out on the buffers that it touches. */
static void count_busy(struct execution *x, const struct hra_move *move, int by)
{
    for (int n = 0; n <= move->more; n++)
        x->pass->busy[move->payload][hra_move_buffer(move) + n][move->sends] += by;
}

static void put_under_way(struct execution *x, int i)
{
    *x->behind = i;
    x->behind = &x->pass->next[i];
    *x->behind = -1;
    count_busy(x, &x->pass->schedule.move[i], 1);
}

/* Take out the move at *link, which has been finished. */
static void take_out(struct execution *x, int *link)
{
    const int i = *link;

    *link = x->pass->next[i];
    if (x->behind == &x->pass->next[i])
        x->behind = link;
    count_busy(x, &x->pass->schedule.move[i], -1);
}

/* Wait for a move, and do what is done when it has arrived. */
static hra_status finish_move(struct execution *x, int i)
{
    hra_comm *comm = x->plan->comm;
    const struct hra_move *move = &x->pass->schedule.move[i];
    const int first = hra_move_buffer(move), copied = x->plan->staged && !move->sends,
              added = move->add && !move->sends && !x->pass->continued[i];

    HRA_TRY(hra_comm_note(comm, comm->transport->finish(comm->state, &x->pass->transfer[i], x->stream)));
    HRA_TRY(record(x, HRA_SPAN_WAIT, move->peer));
    record_move(x, i, 1);
    if (copied)
        HRA_TRY(x->plan->backend->to_mirror(buffer_at(x, move->payload, first),
                                            message_at(x, move->payload, first), x->pass->transfer[i].bytes,
                                            x->stream));
    if (added)
        HRA_TRY(add_home(x, i));
    return copied || added ? record(x, HRA_SPAN_OTHER, -1) : HRA_OK;
}

/* Finish what is under way on a buffer. Two sends read it side by side, anything else follows one after another. The moves
 * under way are looked through only while any of them is on the buffer: with thousands of ranks they are many. */
static hra_status settle(struct execution *x, enum hra_payload payload, int buffer, int reading)
{
    const int *busy = x->pass->busy[payload][buffer];

    for (int *link = &x->first; busy[0] > 0 || (busy[1] > 0 && !reading);) {
        const int i = *link;
        const struct hra_move *move = &x->pass->schedule.move[i];
        if (move->payload != payload || !hra_move_touches(move, buffer) || (reading && move->sends)) {
            link = &x->pass->next[i];
            continue;
        }
        take_out(x, link);
        HRA_TRY(finish_move(x, i));
    }
    return HRA_OK;
}

/* Do heads lie side by side? Then a row of all of them is one line. */
static int lies_in_lines(const hra_tensor *t, int heads, int dim)
{
    return heads == 1 || t->stride_head == dim;
}

/* The lines of our own K/V that are a part, which begins at `at` in its message: of all its heads, or where they lie apart of
 * each. */
static void add_lines(const struct execution *x, struct hra_transfer *t, const struct hra_part *part,
                      size_t at)
{
    const hra_plan *plan = x->plan;
    const hra_problem *p = &plan->problem;
    const hra_tensor own[2] = {cut_own(plan, x->k, part, p->type), cut_own(plan, x->v, part, p->type)};
    const int64_t bytes = (int64_t)hra_type_bytes(p->type), rows = hra_plan_part_rows(plan, part);
    const int heads = part->head1 - part->head0;
    size_t offset[2] = {0, 0};

    hra_plan_part_bytes(plan, part, HRA_KV, &offset[1]);
    for (int n = 0; n < 2; n++) {
        const int dim = n == 0 ? p->dim : p->dim_v, lines = lies_in_lines(&own[n], heads, dim) ? 1 : heads;
        const int64_t line = heads / lines * dim * bytes, step = heads * dim * bytes;
        for (int i = 0; i < p->batch * lines; i++) {
            const int batch = i / lines, head = i % lines;
            t->line[t->lines++] =
                (struct hra_lines){.data = (char *)own[n].data +
                                           (batch * own[n].stride_batch + head * own[n].stride_head) * bytes,
                                   .bytes = (size_t)line,
                                   .pitch = (size_t)(own[n].stride_row * bytes),
                                   .count = (size_t)rows,
                                   .at = at + offset[n] + (size_t)(batch * rows * step + head * line),
                                   .step = (size_t)step};
        }
    }
}

/* Where a message is taken from: its buffers, or the caller's tensors. */
static void open_message(const struct execution *x, int i)
{
    const struct hra_move *move = &x->pass->schedule.move[i];
    const size_t *at = x->pass->buffer[move->payload] + hra_move_buffer(move);
    struct hra_transfer *t = &x->pass->transfer[i];

    t->data = message_at(x, move->payload, hra_move_buffer(move));
    t->lines = 0;
    if (!x->straight || !x->pass->straight.move[i])
        return;
    for (int n = 0; n <= move->more; n++)
        add_lines(x, t, &x->pass->schedule.part[move->part + n], at[n] - at[0]);
}

/* Start the moves of a round as one group. */
static hra_status start_moves(struct execution *x, const struct hra_round *round)
{
    hra_comm *comm = x->plan->comm;
    const struct hra_schedule *s = &x->pass->schedule;
    int count = 0;

    for (int i = round->move0; i < round->move1; i++)
        for (int n = 0; n <= s->move[i].more; n++)
            HRA_TRY(settle(x, s->move[i].payload, hra_move_buffer(&s->move[i]) + n, s->move[i].sends));
    for (int i = round->move0; i < round->move1; i++) {
        const enum hra_payload payload = s->move[i].payload;
        const int buffer = hra_move_buffer(&s->move[i]);

        open_message(x, i);
        if (x->plan->staged && s->move[i].sends)
            HRA_TRY(x->plan->backend->from_mirror(message_at(x, payload, buffer),
                                                  buffer_at(x, payload, buffer), x->pass->transfer[i].bytes,
                                                  x->stream));
        put_under_way(x, i);
        x->pass->started[count++] = &x->pass->transfer[i];
    }
    if (count == 0)
        return HRA_OK;
    if (x->plan->staged) { /* what is sent is there, and what is overwritten has been copied on */
        HRA_TRY(x->plan->backend->wait(x->stream));
        HRA_TRY(record(x, HRA_SPAN_OTHER, -1));
    }
    for (int i = round->move0; i < round->move1; i++)
        record_move(x, i, 0);
    HRA_TRY(hra_comm_note(comm, comm->transport->start(comm->state, x->pass->started, count, x->stream)));
    return record(x, HRA_SPAN_OTHER, -1);
}

/* Does any move that is posted receive where this one sends from? */
static int meets_posted(const struct hra_schedule *s, const struct hra_transfer *transfer,
                        const struct hra_round *next, const struct hra_move *sent)
{
    for (int i = next->move0; i < next->move1; i++) {
        const struct hra_move *m = &s->move[i];
        if (transfer[i].ahead && !m->sends && m->payload == sent->payload &&
            (hra_move_touches(m, sent->from) || hra_move_touches(sent, m->to)))
            return 1;
    }
    return 0;
}

/* Are buffers of a move that receives being sent from? */
static int is_sent_from(const struct execution *x, const struct hra_move *move)
{
    int sends = 0;

    for (int n = 0; n <= move->more; n++)
        sends |= x->pass->busy[move->payload][move->to + n][1];
    return sends != 0;
}

/* Let go of the buffers in which the next round receives, where they are free already; and tell of what it passes on, where its
 * receivers do so. */
static hra_status post_moves(struct execution *x, const struct hra_round *next)
{
    hra_comm *comm = x->plan->comm;
    const struct hra_schedule *s = &x->pass->schedule;
    struct hra_transfer *const transfer = x->pass->transfer, **post = x->pass->started;
    int count = 0, after = 0, sent = 0;

    for (int i = next->move0; i < next->move1; i++)
        if (transfer[i].ahead) {
            post[count++] = &transfer[i];
            if (s->move[i].sends)
                continue;
            open_message(x, i);
            sent |= is_sent_from(x, &s->move[i]);
        }
    if (count == 0)
        return HRA_OK;
    for (int i = x->first; sent && i >= 0; i = x->pass->next[i])
        if (s->move[i].sends && meets_posted(s, transfer, next, &s->move[i]))
            post[count + after++] = &transfer[i];
    return hra_comm_note(comm, comm->transport->post(comm->state, post, count, after, x->stream));
}

/* What a run computes against, once its buffers are settled. */
static hra_status open_sources(struct execution *x, const struct hra_run *run)
{
    const hra_plan *plan = x->plan;
    const struct hra_schedule *s = &x->pass->schedule;

    for (int c = run->source0; c < run->source1; c++) {
        const struct hra_source *source = &s->source[c];
        const struct hra_part *part = &s->part[source->part];
        struct hra_chunk *chunk = &x->pass->chunk[c - run->source0];
        *chunk = (struct hra_chunk){.key_tile0 = part->key_tile0,
                                    .key_tile1 = part->key_tile1,
                                    .head0 = part->head0,
                                    .head1 = part->head1,
                                    .zero = source->zero};
        if (source->buffer == HRA_OWN) {
            const int all = plan->kernel_plan.by_token[x->which] == HRA_ALL_BY_TOKEN;
            const int64_t row0 = all ? 0 : hra_plan_part_row0(plan, part);
            chunk->k = cut_rows(x->k, row0, part->head0, plan->problem.type);
            chunk->v = cut_rows(x->v, row0, part->head0, plan->problem.type);
        } else {
            HRA_TRY(settle(x, HRA_KV, source->buffer, 1));
            open_payload(plan, part, HRA_KV, buffer_at(x, HRA_KV, source->buffer), &chunk->k, &chunk->v);
        }
        if (x->which == HRA_FORWARD)
            continue;
        if (source->gradient == HRA_OWN) {
            const int home = x->pass->home[source->part];
            if (home >= 0) {
                HRA_TRY(settle(x, HRA_DKV, home, 0));
                open_payload(plan, part, HRA_DKV, buffer_at(x, HRA_DKV, home), &chunk->dk, &chunk->dv);
            } else {
                open_own_sums(x, part, &chunk->dk, &chunk->dv);
                chunk->zero |= x->pass->begins;
            }
            if (x->pass->writes) {
                chunk->out_dk = cut_own(plan, x->dk, part, plan->problem.type);
                chunk->out_dv = cut_own(plan, x->dv, part, plan->problem.type);
            }
        } else {
            HRA_TRY(settle(x, HRA_DKV, source->gradient, 0));
            open_payload(plan, part, HRA_DKV, buffer_at(x, HRA_DKV, source->gradient), &chunk->dk,
                         &chunk->dv);
        }
    }
    return HRA_OK;
}

/* Copy our own parts to where moves send them from. */
static hra_status load(struct execution *x)
{
    const hra_plan *plan = x->plan;
    const hra_problem *p = &plan->problem;
    const struct hra_schedule *s = &x->pass->schedule;
    struct rows_list b = {.count = 0, .to = p->type, .from = p->type};
    int copied = 0;

    for (int i = 0; i < s->loads; i++) {
        const struct hra_part *part = &s->part[s->load[i].part];
        const hra_tensor own_k = cut_own(plan, x->k, part, p->type),
                         own_v = cut_own(plan, x->v, part, p->type);
        hra_tensor k, v;

        if (x->straight && !x->pass->straight.wanted[i])
            continue;
        open_payload(plan, part, HRA_KV, buffer_at(x, HRA_KV, s->load[i].buffer), &k, &v);
        HRA_TRY(put(x, &b, part, 0, &k, NULL, &own_k, 1));
        HRA_TRY(put(x, &b, part, 1, &v, NULL, &own_v, 1));
        copied = 1;
    }
    HRA_TRY(flush(x, &b));
    return copied ? record(x, HRA_SPAN_OTHER, -1) : HRA_OK;
}

/* Whose keys a run computes against first; -1: nobody's. */
static int first_owner(const struct hra_schedule *s, const struct hra_run *run)
{
    return run->source0 == run->source1 ? -1 : s->part[s->source[run->source0].part].owner;
}

/* All rounds. args is one of the backend's two, whose run is filled in here. */
static hra_status execute(struct execution *x, struct hra_run_args *args, struct hra_forward_args *forward,
                          struct hra_backward_args *backward)
{
    const hra_plan *plan = x->plan;
    const struct hra_schedule *s = &x->pass->schedule;
    const struct hra_poll poll = {plan->comm->transport->poll, plan->comm->state};

    clear_moves(x);
    if (plan->comm->transport->begin != NULL) {
        HRA_TRY(plan->comm->transport->begin(plan->comm->state, x->stream));
        HRA_TRY(record(x, HRA_SPAN_WAIT, -1));
    }
    HRA_TRY(load(x));
    for (int r = 0; r < s->rounds; r++) {
        x->round = r;
        HRA_TRY(start_moves(x, &s->round[r]));
        if (r + 1 < s->rounds)
            HRA_TRY(post_moves(x, &s->round[r + 1]));
        for (int i = s->round[r].run0; i < s->round[r].run1; i++) {
            const struct hra_run *run = &s->run[i];
            HRA_TRY(open_sources(x, run));
            *args = (struct hra_run_args){.run = i,
                                          .query0 = run->query0,
                                          .query1 = run->query1,
                                          .chunk = x->pass->chunk,
                                          .chunks = run->source1 - run->source0,
                                          .first = x->pass->first,
                                          .last = x->pass->last,
                                          .workspace = args->workspace,
                                          .saved = args->saved,
                                          .poll = poll,
                                          .stream = x->stream};
            HRA_TRY(forward != NULL ? plan->backend->forward(plan->kernels, forward)
                                    : plan->backend->backward(plan->kernels, backward));
            HRA_TRY(record(x, HRA_SPAN_COMPUTE, first_owner(s, run)));
        }
        hra_log(HRA_LOG_TRACE, "%s: round %d of %d", x->pass->what, r, s->rounds);
    }
    x->round = -1;
    while (x->first >= 0)
        HRA_TRY(settle(x, s->move[x->first].payload, hra_move_buffer(&s->move[x->first]), 0));
    return plan->comm->transport->end == NULL ? HRA_OK
                                              : plan->comm->transport->end(plan->comm->state, x->stream);
}

/* All has been put on the stream. A plan that says that calls return when done keeps its word also where the backend only
 * enqueues. */
static hra_status end(const struct execution *x)
{
    if (x->plan->trace != NULL)
        hra_trace_end(x->plan->trace, x->which);
    return x->plan->staged ? x->plan->backend->wait(x->stream) : HRA_OK;
}

/* ---- Arguments ---- */

/* Strides of dimensions that have more than one index, in the order of their size, must step over what lies inside
 * them; else two elements share memory, which an output may not. */
static int overlaps_itself(const hra_tensor *t, const int64_t count[3], int dim)
{
    int64_t stride[3] = {t->stride_batch, t->stride_row, t->stride_head},
            n[3] = {count[0], count[1], count[2]};
    int64_t inside = dim;

    for (int i = 0; i < 3; i++) {
        int least = i;
        for (int j = i + 1; j < 3; j++)
            if (stride[j] < stride[least])
                least = j;
        const int64_t s = stride[least], m = n[least];
        stride[least] = stride[i];
        n[least] = n[i];
        if (m <= 1)
            continue;
        if (s < inside)
            return 1;
        inside = s * (m - 1) + inside;
    }
    return 0;
}

static hra_status check_tensor(const hra_plan *plan, const hra_tensor *t, const char *name, int64_t rows,
                               int heads, int dim, hra_type type, int output)
{
    const int64_t count[3] = {plan->problem.batch, rows, heads};

    if (t == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s is NULL", name);
    if (rows == 0)
        return HRA_OK;
    const size_t bytes = hra_type_bytes(type), wanted = plan->backend->tensor_alignment;
    const size_t alignment = bytes > wanted ? bytes : wanted;
    if (t->data == NULL || (uintptr_t)t->data % alignment != 0)
        return HRA_FAIL(HRA_ERR_ARG, "%s.data is %p; it must be %zu-byte aligned memory", name, t->data,
                        alignment);
    if (t->stride_batch < 0 || t->stride_row < 0 || t->stride_head < 0)
        return HRA_FAIL(HRA_ERR_ARG,
                        "%s has strides %lld, %lld, %lld (batch, row, head); none may be negative", name,
                        (long long)t->stride_batch, (long long)t->stride_row, (long long)t->stride_head);
    if (((size_t)t->stride_batch | (size_t)t->stride_row | (size_t)t->stride_head) * bytes % wanted != 0)
        return HRA_FAIL(
            HRA_ERR_ARG,
            "%s has strides %lld, %lld, %lld (batch, row, head); the %s backend wants multiples of "
            "%zu bytes, %zu elements",
            name, (long long)t->stride_batch, (long long)t->stride_row, (long long)t->stride_head,
            plan->backend->name, wanted, wanted / bytes);
    if (output && overlaps_itself(t, count, dim))
        return HRA_FAIL(
            HRA_ERR_ARG,
            "%s overlaps itself: strides %lld, %lld, %lld (batch, row, head) for [%d][%lld][%d][%d]", name,
            (long long)t->stride_batch, (long long)t->stride_row, (long long)t->stride_head,
            plan->problem.batch, (long long)rows, heads, dim);
    return HRA_OK;
}

static hra_status check_stream(const hra_plan *plan, const char *call, void *stream)
{
    if (stream != NULL && plan->backend->blocking)
        return HRA_FAIL(HRA_ERR_ARG, "%s: stream is %p; the %s backend has none: NULL", call, stream,
                        plan->backend->name);
    if (plan->staged && plan->backend->records(stream))
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "%s: the stream records a graph; over the %s transport a call waits for other ranks",
                        call, plan->comm->transport->name);
    return HRA_OK;
}

/* lse or dlse; NULL is the caller's affair. */
static hra_status check_rows(const hra_plan *plan, const void *data, const char *name)
{
    const size_t bytes = hra_type_bytes(hra_type_sums(plan->problem.type));

    if ((uintptr_t)data % bytes != 0)
        return HRA_FAIL(HRA_ERR_ARG, "%s is %p; it must be %zu-byte aligned memory", name, data, bytes);
    return HRA_OK;
}

static hra_status check_call(const hra_plan *plan, const char *call, const void *workspace, const void *saved,
                             void *stream)
{
    if (plan == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "%s: plan is NULL", call);
    HRA_TRY(hra_comm_check(plan->comm));
    if (plan->comm->transport->start == NULL)
        return HRA_FAIL(HRA_ERR_STATE, "%s: the plan was made on a model of %d ranks, which cannot compute",
                        call, plan->comm->ranks);
    if ((workspace == NULL && plan->workspace_bytes > 0) ||
        (uintptr_t)workspace % plan->backend->alignment != 0)
        return HRA_FAIL(HRA_ERR_ARG, "%s: workspace is %p; it must be %zu bytes, %zu-byte aligned", call,
                        workspace, plan->workspace_bytes, plan->backend->alignment);
    if (plan->saved_bytes > 0 && (saved == NULL || (uintptr_t)saved % plan->backend->alignment != 0))
        return HRA_FAIL(HRA_ERR_ARG, "%s: saved is %p; it must be %zu bytes, %zu-byte aligned", call, saved,
                        plan->saved_bytes, plan->backend->alignment);
    HRA_TRY(check_stream(plan, call, stream));
    if (plan->trace != NULL && plan->backend->records != NULL && plan->backend->records(stream))
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "%s: the stream records a graph, and the plan has a trace, which cannot see into it",
                        call);
    return HRA_OK;
}

/* q k v o, which both passes read or write. */
static hra_status check_tensors(const hra_plan *plan, const hra_tensor *q, const hra_tensor *k,
                                const hra_tensor *v, const hra_tensor *o, int o_written)
{
    const hra_problem *p = &plan->problem;
    const int64_t rows = plan->kernel_plan.rows;

    HRA_TRY(check_tensor(plan, q, "q", rows, p->heads, p->dim, p->type, 0));
    HRA_TRY(check_tensor(plan, k, "k", rows, p->heads_kv, p->dim, p->type, 0));
    HRA_TRY(check_tensor(plan, v, "v", rows, p->heads_kv, p->dim_v, p->type, 0));
    return check_tensor(plan, o, "o", rows, p->heads, p->dim_v, p->type, o_written);
}

/* Copies of lines want them to lie behind one another. */
static int may_be_sent(const struct hra_pass_plan *pass, const hra_tensor *t, int heads, int dim)
{
    return lies_in_lines(t, heads, dim) ? t->stride_row >= (int64_t)heads * dim
                                        : pass->by_heads && t->stride_row >= dim;
}

static hra_status begin(struct execution *out, hra_plan *plan, hra_pass which, const hra_tensor *k,
                        const hra_tensor *v, void *workspace, void *stream)
{
    const hra_problem *p = &plan->problem;
    const int rank = plan->comm->rank;

    *out = (struct execution){.plan = plan,
                              .pass = &plan->pass[which],
                              .which = which,
                              .k = k,
                              .v = v,
                              .straight = may_be_sent(&plan->pass[which], k, p->heads_kv, p->dim) &&
                                          may_be_sent(&plan->pass[which], v, p->heads_kv, p->dim_v),
                              .own = {.owner = rank,
                                      .key_tile0 = plan->layout->rank_tile[rank],
                                      .key_tile1 = plan->layout->rank_tile[rank + 1],
                                      .head1 = plan->problem.heads_kv},
                              .sums = (char *)workspace + plan->kernel_bytes,
                              .stream = stream,
                              .round = -1};
    return plan->trace == NULL ? HRA_OK : hra_trace_begin(plan->trace, which, stream);
}

/* Where the plan wants that, rows by token become copies in slot order. */
static hra_status take_slots(const struct execution *x, struct hra_operands *operands, void *workspace,
                             void *saved)
{
    const hra_plan *plan = x->plan;

    if (!plan->reorders[x->which])
        return HRA_OK;
    HRA_TRY(hra_slots_take(plan, x->which, operands, (char *)workspace + plan->slots_at[x->which], saved,
                           x->stream));
    return record(x, HRA_SPAN_OTHER, -1);
}

static hra_status give_slots(const struct execution *x, const struct hra_operands *given,
                             const struct hra_operands *copies)
{
    if (!x->plan->reorders[x->which])
        return HRA_OK;
    HRA_TRY(hra_slots_give(x->plan, x->which, given, copies, x->stream));
    return record(x, HRA_SPAN_OTHER, -1);
}

hra_status hra_forward(hra_plan *plan, const hra_tensor *q, const hra_tensor *k, const hra_tensor *v,
                       const hra_tensor *o, void *lse, void *workspace, void *saved, void *stream)
{
    HRA_TRY(check_call(plan, "hra_forward", workspace, saved, stream));
    HRA_TRY(check_tensors(plan, q, k, v, o, 1));
    HRA_TRY(check_rows(plan, lse, "lse"));

    const struct hra_operands given = {
        {[HRA_Q] = *q, [HRA_K] = *k, [HRA_V] = *v, [HRA_O] = *o, [HRA_LSE] = hra_slots_of_rows(plan, lse)}};
    struct hra_operands own = given;
    const hra_tensor *const t = own.tensor;
    struct execution x;
    HRA_TRY(begin(&x, plan, HRA_FORWARD, &t[HRA_K], &t[HRA_V], workspace, stream));
    HRA_TRY(take_slots(&x, &own, workspace, saved));
    struct hra_forward_args args = {
        .run.workspace = workspace, .run.saved = saved, .q = t[HRA_Q], .o = t[HRA_O], .lse = t[HRA_LSE].data};
    HRA_TRY(execute(&x, &args.run, &args, NULL));
    HRA_TRY(give_slots(&x, &given, &own));
    return end(&x);
}

/* Our sums are complete: write dk = scale dK and dv = dV of all that is not yet. */
static hra_status write_open(const struct execution *x)
{
    const hra_plan *plan = x->plan;
    const hra_problem *p = &plan->problem;
    const hra_type sums = hra_type_sums(p->type);
    struct rows_list b = {.count = 0, .to = p->type, .from = sums};

    for (int i = 0; i < x->pass->opens; i++) {
        const struct hra_part *part = &x->pass->open[i];
        const hra_tensor dk = cut_own(plan, x->dk, part, p->type), dv = cut_own(plan, x->dv, part, p->type);
        hra_tensor own_dk, own_dv;

        open_own_sums(x, part, &own_dk, &own_dv);
        HRA_TRY(put(x, &b, part, 0, &dk, NULL, &own_dk, p->scale));
        HRA_TRY(put(x, &b, part, 1, &dv, NULL, &own_dv, 1));
    }
    HRA_TRY(flush(x, &b));
    return x->pass->opens > 0 ? record(x, HRA_SPAN_OTHER, -1) : HRA_OK;
}

hra_status hra_backward(hra_plan *plan, const hra_tensor *q, const hra_tensor *k, const hra_tensor *v,
                        const hra_tensor *o, const void *lse, const hra_tensor *do_, const void *dlse,
                        const hra_tensor *dq, const hra_tensor *dk, const hra_tensor *dv, void *workspace,
                        void *saved, void *stream)
{
    HRA_TRY(check_call(plan, "hra_backward", workspace, saved, stream));
    const hra_problem *p = &plan->problem;
    const int64_t rows = plan->kernel_plan.rows;
    HRA_TRY(check_tensors(plan, q, k, v, o, 0));
    HRA_TRY(check_tensor(plan, do_, "do", rows, p->heads, p->dim_v, p->type, 0));
    HRA_TRY(check_tensor(plan, dq, "dq", rows, p->heads, p->dim, p->type, 1));
    HRA_TRY(check_tensor(plan, dk, "dk", rows, p->heads_kv, p->dim, p->type, 1));
    HRA_TRY(check_tensor(plan, dv, "dv", rows, p->heads_kv, p->dim_v, p->type, 1));
    HRA_TRY(check_rows(plan, lse, "lse"));
    HRA_TRY(check_rows(plan, dlse, "dlse"));
    if (lse == NULL && rows > 0)
        return HRA_FAIL(HRA_ERR_ARG, "hra_backward: lse is NULL; it needs the forward's");

    const struct hra_operands given = {{[HRA_Q] = *q,
                                        [HRA_K] = *k,
                                        [HRA_V] = *v,
                                        [HRA_O] = *o,
                                        [HRA_LSE] = hra_slots_of_rows(plan, lse),
                                        [HRA_DO] = *do_,
                                        [HRA_DLSE] = hra_slots_of_rows(plan, dlse),
                                        [HRA_DQ] = *dq,
                                        [HRA_DK] = *dk,
                                        [HRA_DV] = *dv}};
    struct hra_operands own = given;
    const hra_tensor *const t = own.tensor;
    struct execution x;
    HRA_TRY(begin(&x, plan, HRA_BACKWARD, &t[HRA_K], &t[HRA_V], workspace, stream));
    HRA_TRY(take_slots(&x, &own, workspace, saved));
    x.dk = &t[HRA_DK];
    x.dv = &t[HRA_DV];
    struct hra_backward_args args = {.run.workspace = workspace,
                                     .run.saved = saved,
                                     .q = t[HRA_Q],
                                     .do_ = t[HRA_DO],
                                     .dq = t[HRA_DQ],
                                     .lse = t[HRA_LSE].data};
    if (rows > 0 && !x.pass->begins)
        HRA_TRY(plan->backend->clear(plan->kernels, x.sums, hra_plan_part_bytes(plan, &x.own, HRA_DKV, NULL),
                                     stream));
    if (rows > 0) {
        HRA_TRY(
            plan->backend->delta(plan->kernels, &t[HRA_O], &t[HRA_DO], t[HRA_DLSE].data, workspace, stream));
        HRA_TRY(record(&x, HRA_SPAN_OTHER, -1));
    }
    HRA_TRY(execute(&x, &args.run, NULL, &args));
    HRA_TRY(write_open(&x));
    HRA_TRY(give_slots(&x, &given, &own));
    return end(&x);
}

hra_status hra_reorder(hra_plan *plan, hra_direction direction, hra_type type, int heads, int dim,
                       const hra_tensor *whole, const hra_tensor *rows, void *stream)
{
    if (plan == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_reorder: plan is NULL");
    HRA_TRY(check_stream(plan, "hra_reorder", stream));
    if ((direction != HRA_GATHER && direction != HRA_SCATTER) || hra_type_bytes(type) == 0 || heads < 1 ||
        dim < 1)
        return HRA_FAIL(HRA_ERR_ARG, "hra_reorder: direction %d, type %d, %d heads, dim %d", (int)direction,
                        (int)type, heads, dim);
    const int64_t count = plan->layout->rows[plan->comm->rank];
    HRA_TRY(
        check_tensor(plan, whole, "whole", plan->problem.tokens, heads, dim, type, direction == HRA_SCATTER));
    HRA_TRY(check_tensor(plan, rows, "rows", count, heads, dim, type, direction == HRA_GATHER));
    if (plan->kernels == NULL)
        return HRA_FAIL(HRA_ERR_STATE, "hra_reorder: the plan was made on a model of %d ranks",
                        plan->comm->ranks);
    return plan->backend->reorder(plan->kernels, direction, type, whole, rows, plan->token, count, heads, dim,
                                  stream);
}

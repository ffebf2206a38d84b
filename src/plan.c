/* plan.c - a problem compiled for the ranks of a communicator. */
#include "src/choose.h"
#include "src/share.h"
#include "src/slots.h"
#include "src/trace.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Checking the caller's description ---- */

static hra_status want(int64_t value, int64_t low, int64_t high, const char *name)
{
    if (value < low || value > high)
        return HRA_FAIL(HRA_ERR_ARG, "problem.%s is %lld; it must be %lld to %lld", name, (long long)value,
                        (long long)low, (long long)high);
    return HRA_OK;
}

static hra_status want_unset(double value, const char *name, const char *why)
{
    if (value != 0)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "problem.%s is %g; %s", name, value, why);
    return HRA_OK;
}

/* Cores of this node for each of its ranks, as far as this process may use them. */
static int default_threads(int local_ranks)
{
    cpu_set_t set;
    long cores = sysconf(_SC_NPROCESSORS_ONLN) / local_ranks;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) < cores)
        cores = CPU_COUNT(&set);
    return cores < 1 ? 1 : (int)cores;
}

static hra_status check_problem(hra_problem *p, const hra_comm *comm)
{
    const int64_t most = INT64_C(1) << 36; /* tiles are counted by int */

    if (p->batch == 0)
        p->batch = 1;
    HRA_TRY(want(p->batch, 1, 1 << 20, "batch"));
    HRA_TRY(want(p->heads, 1, 1 << 20, "heads"));
    if (p->heads_kv == 0)
        p->heads_kv = p->heads;
    HRA_TRY(want(p->heads_kv, 1, 1 << 20, "heads_kv"));
    if (p->heads % p->heads_kv != 0)
        return HRA_FAIL(HRA_ERR_ARG, "problem.heads is %d, which problem.heads_kv, %d, does not divide",
                        p->heads, p->heads_kv);
    HRA_TRY(want(p->head0, 0, 1 << 20, "head0"));
    HRA_TRY(want(p->dim, 1, 256, "dim"));
    if (p->dim_v == 0)
        p->dim_v = p->dim;
    HRA_TRY(want(p->dim_v, 1, 256, "dim_v"));
    HRA_TRY(want(p->tokens, 1, most, "tokens"));
    if (p->tokens_kv == 0)
        p->tokens_kv = p->tokens;
    if (p->tokens_kv != p->tokens)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "problem.tokens_kv is %lld and tokens %lld; they must be equal",
                        (long long)p->tokens_kv, (long long)p->tokens);
    if (hra_type_bytes(p->type) == 0)
        return HRA_FAIL(HRA_ERR_ARG, "problem.type is %d; it must be HRA_F64 to HRA_F16", (int)p->type);
    if (p->scale == 0)
        p->scale = 1 / sqrt(p->dim);
    if (!isfinite(p->scale))
        return HRA_FAIL(HRA_ERR_ARG, "problem.scale is %g; it must be finite", p->scale);
    HRA_TRY(want_unset(p->softcap, "softcap", "no backend caps scores"));
    HRA_TRY(want_unset(p->dropout, "dropout", "no backend drops probabilities"));
    HRA_TRY(want_unset(p->sinks, "sinks", "no backend has attention sinks"));
    HRA_TRY(want(p->sm_margin, 0, 1 << 16, "sm_margin"));
    HRA_TRY(want(p->threads, 0, 4096, "threads"));
    if (p->threads == 0)
        p->threads = default_threads(comm->local_ranks);
    if ((double)p->batch * p->heads * (double)p->tokens * 256 * 8 > 0x1p61)
        return HRA_FAIL(HRA_ERR_ARG,
                        "problem: batch %d x heads %d x tokens %lld is more than memory can hold", p->batch,
                        p->heads, (long long)p->tokens);
    return HRA_OK;
}

static hra_status check_options(const hra_options *o)
{
    if (o->shard < HRA_SHARD_AUTO || o->shard > HRA_SHARD_BALANCED)
        return HRA_FAIL(HRA_ERR_ARG, "options.shard is %d, which is no hra_shard", (int)o->shard);
    if (o->schedule < HRA_SCHEDULE_AUTO || o->schedule > HRA_SCHEDULE_HEADS)
        return HRA_FAIL(HRA_ERR_ARG, "options.schedule is %d, which is no hra_schedule_kind",
                        (int)o->schedule);
    if (o->backend < HRA_BACKEND_AUTO || o->backend > HRA_BACKEND_GPU)
        return HRA_FAIL(HRA_ERR_ARG, "options.backend is %d, which is no hra_backend_kind", (int)o->backend);
    if (o->backward < HRA_BACKWARD_AUTO || o->backward > HRA_BACKWARD_CUBLAS)
        return HRA_FAIL(HRA_ERR_ARG, "options.backward is %d, which is no hra_backward_kind",
                        (int)o->backward);
    if (o->saved < HRA_SAVED_NOTHING || o->saved > HRA_SAVED_QKV)
        return HRA_FAIL(HRA_ERR_ARG, "options.saved is %d, which is no hra_saved_kind", (int)o->saved);
    if (o->rows < HRA_ROWS_SLOTS || o->rows > HRA_ROWS_TOKENS)
        return HRA_FAIL(HRA_ERR_ARG, "options.rows is %d, which is no hra_rows_kind", (int)o->rows);
    return HRA_OK;
}

/* Has the backend what the problem and the options ask of it? */
static hra_status check_methods(const hra_plan *plan)
{
    const hra_problem *p = &plan->problem;
    const hra_options *o = &plan->options;
    const char *wanted = o->backward == HRA_BACKWARD_FUSED ? "fused" : "cublas";

    if (o->backward != HRA_BACKWARD_AUTO && strcmp(plan->backend->method, wanted) != 0)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "options.backward is %s; the %s backend has only %s", wanted,
                        plan->backend->name, plan->backend->method);
    if (o->saved == HRA_SAVED_QKV && plan->backend->saved_bytes == NULL && o->rows == HRA_ROWS_SLOTS)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "options.saved is qkv; the %s backend keeps nothing of rows in slot order",
                        plan->backend->name);
    if (o->rows == HRA_ROWS_TOKENS && plan->comm->ranks > 1)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "options.rows is tokens, which needs one rank with all of them; here are %d",
                        plan->comm->ranks);
    if (p->sm_margin != 0 && !plan->backend->has_margin)
        return HRA_FAIL(
            HRA_ERR_UNSUPPORTED,
            "problem.sm_margin is %d; the %s backend with %s backward leaves no multiprocessors free",
            p->sm_margin, plan->backend->name, plan->backend->method);
    return HRA_OK;
}

#ifdef HRA_CUDA
/* Of the backends for GPUs the one that was asked for, or the fastest that can do the problem. */
static const struct hra_backend *choose_gpu(const hra_plan *plan)
{
    const hra_problem *p = &plan->problem;
    const hra_options *o = &plan->options;
    const struct hra_kernel_plan shape = {
        .type = p->type, .dim = p->dim, .dim_v = p->dim_v, .scale = p->scale};
    const int asked = o->backend == HRA_BACKEND_SM90;

    if (o->backend == HRA_BACKEND_CUDA)
        return &hra_backend_cuda;
    if (!asked && (o->saved != HRA_SAVED_NOTHING || hra_backend_sm90.suits(&shape) != HRA_OK))
        return &hra_backend_cuda;
    return o->backward == HRA_BACKWARD_CUBLAS ? &hra_backend_sm90_cublas : &hra_backend_sm90;
}
#endif

/* The table of the backend that was asked for. */
static hra_status find_backend(hra_plan *plan)
{
    const struct hra_transport *transport = plan->comm->transport;

    plan->backend = &hra_backend_cpu;
    if (transport->device_only && plan->options.backend == HRA_BACKEND_CPU)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "options.backend is cpu; over %s K/V travel between GPUs",
                        transport->name);
    if (!transport->device_only && plan->options.backend < HRA_BACKEND_CUDA)
        return HRA_OK;
#ifdef HRA_CUDA
    plan->backend = choose_gpu(plan);
    plan->staged = transport->host_only && plan->comm->ranks > 1;
    return HRA_OK;
#else
    return HRA_FAIL(HRA_ERR_UNSUPPORTED, "options.backend is %s; this library was built without CUDA",
                    plan->options.backend == HRA_BACKEND_SM90  ? "sm90"
                    : plan->options.backend == HRA_BACKEND_GPU ? "gpu"
                                                               : "cuda");
#endif
}

/* Read and check all arguments into the plan. Local: nothing is sent. */
static hra_status read_arguments(hra_plan *plan, const hra_problem *problem, const hra_order *order,
                                 const hra_mask *mask, const hra_options *options)
{
    hra_problem *p = &plan->problem;

    if (problem == NULL || mask == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_plan_create: %s is NULL", problem == NULL ? "problem" : "mask");
    HRA_TRY(hra_copy_sized(p, sizeof(*p), problem, "problem"));
    HRA_TRY(check_problem(p, plan->comm));
    HRA_TRY(hra_copy_sized(&plan->options, sizeof(plan->options), options, "options"));
    HRA_TRY(check_options(&plan->options));
    if (plan->options.schedule == HRA_SCHEDULE_HEADS && p->heads_kv < 2)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "options.schedule is heads, which wants 2 K/V heads at least; problem.heads_kv is %d",
                        p->heads_kv);
    plan->schedule = plan->comm->ranks == 1 && plan->options.schedule == HRA_SCHEDULE_AUTO
                         ? HRA_SCHEDULE_RING
                         : plan->options.schedule;
    if (plan->generate == NULL && plan->schedule != HRA_SCHEDULE_AUTO)
        plan->generate = hra_schedules[plan->schedule].generate;
    HRA_TRY(find_backend(plan));
    HRA_TRY(hra_choose_machine(&plan->machine, plan->options.machine, plan->backend, plan->comm->ranks));
    HRA_TRY(check_methods(plan));

    const struct hra_space *space = hra_mask_space(mask);
    if (space->tokens != p->tokens || space->batch != p->batch || space->heads < p->head0 + p->heads)
        return HRA_FAIL(
            HRA_ERR_ARG,
            "the mask is for batch %d, %d heads, %lld tokens; the problem has batch %d, heads %d to %d, "
            "%lld tokens",
            space->batch, space->heads, (long long)space->tokens, p->batch, p->head0, p->head0 + p->heads - 1,
            (long long)p->tokens);
    plan->mask = hra_mask_keep(mask);
    if (order != NULL && order->tokens != p->tokens)
        return HRA_FAIL(HRA_ERR_ARG, "the order is for %lld tokens, the problem has %lld",
                        (long long)order->tokens, (long long)p->tokens);
    if (order != NULL) {
        plan->order = hra_order_keep(order);
        return HRA_OK;
    }
    hra_domain domain = {.size = sizeof(domain), .tokens = p->tokens};
    memcpy(domain.grid, space->grid, (size_t)space->axes * sizeof(domain.grid[0]));
    return hra_order_create(&plan->order, &domain, "identity");
}

/* ---- Buffers ---- */

/* The buffers of one schedule: their sizes, then their offsets in the arena. */
struct buffers {
    size_t *at[HRA_PAYLOADS]; /* [count] bytes */
    int count[HRA_PAYLOADS], capacity[HRA_PAYLOADS];
    int64_t spare; /* rows that each holds beyond those of the largest part that passes through it */
};

/* Make a buffer hold a part, in a table that grows as needed. Own tensors need none. */
static hra_status widen(struct buffers *b, const hra_plan *plan, enum hra_payload payload, int buffer,
                        const struct hra_part *part)
{
    if (buffer == HRA_OWN)
        return HRA_OK;
    if (buffer >= b->capacity[payload]) {
        const int capacity = 2 * (buffer + 1);
        size_t *larger = NULL;
        HRA_TRY(hra_alloc((void **)&larger, capacity, sizeof(*larger), "buffers"));
        for (int i = 0; i < b->count[payload]; i++)
            larger[i] = b->at[payload][i];
        free(b->at[payload]);
        b->at[payload] = larger;
        b->capacity[payload] = capacity;
    }
    if (buffer >= b->count[payload])
        b->count[payload] = buffer + 1;
    const size_t bytes = hra_plan_payload_bytes(plan, payload, hra_plan_part_rows(plan, part) + b->spare,
                                                part->head1 - part->head0, NULL);
    if (b->at[payload][buffer] < bytes)
        b->at[payload][buffer] = bytes;
    return HRA_OK;
}

/* Size every buffer for the largest part that passes through it, and lay them out one after another; *end is where the
 * last one ends. b->at is to be freed, also on failure. */
static hra_status place_buffers(struct buffers *b, size_t *end, const hra_plan *plan,
                                const struct hra_schedule *s, hra_pass pass)
{
    size_t at = 0;

    for (int i = 0; i < s->loads; i++)
        HRA_TRY(widen(b, plan, HRA_KV, s->load[i].buffer, &s->part[s->load[i].part]));
    for (int i = 0; i < s->moves; i++)
        for (int n = 0; n <= s->move[i].more; n++)
            HRA_TRY(widen(b, plan, s->move[i].payload, hra_move_buffer(&s->move[i]) + n,
                          &s->part[s->move[i].part + n]));
    for (int i = 0; i < s->sources; i++) {
        HRA_TRY(widen(b, plan, HRA_KV, s->source[i].buffer, &s->part[s->source[i].part]));
        if (pass == HRA_BACKWARD)
            HRA_TRY(widen(b, plan, HRA_DKV, s->source[i].gradient, &s->part[s->source[i].part]));
    }
    for (int payload = 0; payload < HRA_PAYLOADS; payload++)
        for (int i = 0; i < b->count[payload]; i++) {
            const size_t bytes = hra_align(b->at[payload][i], HRA_BUFFER_ALIGNMENT);
            b->at[payload][i] = at;
            at += bytes;
        }
    *end = at;
    return HRA_OK;
}

/* Do the parts of each message lie at this end as they do at the other: one behind the other, with nothing between? */
static hra_status check_messages(const hra_plan *plan, const struct hra_schedule *s, const struct buffers *b)
{
    for (int i = 0; i < s->moves; i++) {
        const struct hra_move *move = &s->move[i];
        const size_t *at = b->at[move->payload] + hra_move_buffer(move);
        for (int n = 0; n < move->more; n++)
            if (at[n + 1] - at[n] !=
                hra_align(hra_plan_part_bytes(plan, &s->part[move->part + n], move->payload, NULL),
                          HRA_BUFFER_ALIGNMENT))
                return HRA_FAIL(HRA_ERR_ARG,
                                "schedule: move %d: buffer %d is larger than part %d of a message", i,
                                hra_move_buffer(move) + n, move->part + n);
    }
    return HRA_OK;
}

/* The arena that would do if every pair attended and a rank owned four tiles more. Masks that change at every step, such
 * as those of packed documents, need now more of it and now less; taking this at once means taking memory once. Halo and heads
 * would then hold all keys of all ranks, so they take half as much again as they need, and grow by that if they must. Where the
 * schedule is chosen the next plan's may be the ring. */
static hra_status find_reserve(hra_plan *plan)
{
    const int ranks = plan->comm->ranks;
    const hra_generator generate = plan->work.needs != NULL ? hra_schedule_ring : plan->generate;
    struct hra_work full = plan->work;
    int64_t *live = NULL;

    if (plan->arena_bytes == 0)
        return HRA_OK;
    if (plan->work.needs != NULL) {
        plan->arena_reserve = plan->arena_bytes + plan->arena_bytes / 2;
        if (plan->options.schedule != HRA_SCHEDULE_AUTO)
            return HRA_OK;
    }
    HRA_TRY(hra_alloc((void **)&live, (int64_t)ranks * ranks * HRA_HALVES, sizeof(*live), "plan"));
    for (int64_t i = 0; i < (int64_t)ranks * ranks * HRA_HALVES; i++)
        live[i] = 1;
    full.live = live;
    hra_status status = HRA_OK;
    for (int pass = 0; status == HRA_OK && pass < 2; pass++) {
        struct buffers buffers = {.spare = 4 * HRA_TILE};
        struct hra_schedule schedule = {0};
        size_t end = 0;

        status = generate(&schedule, &full, plan->comm->rank, (hra_pass)pass);
        if (status == HRA_OK)
            status = place_buffers(&buffers, &end, plan, &schedule, (hra_pass)pass);
        plan->arena_reserve = end > plan->arena_reserve ? end : plan->arena_reserve;
        for (int payload = 0; payload < HRA_PAYLOADS; payload++)
            free(buffers.at[payload]);
        hra_schedule_clear(&schedule);
    }
    free(live);
    return status;
}

/* Find the first and the last run of each query tile and head; all must have one. */
static hra_status find_ends(hra_plan *plan, struct hra_pass_plan *pass)
{
    const struct hra_schedule *s = &pass->schedule;
    const int queries = plan->kernel_plan.queries, heads = plan->problem.heads_kv;

    HRA_TRY(hra_alloc((void **)&pass->first, (int64_t)heads * queries, sizeof(int), "runs"));
    HRA_TRY(hra_alloc((void **)&pass->last, (int64_t)heads * queries, sizeof(int), "runs"));
    for (int i = 0; i < heads * queries; i++)
        pass->first[i] = pass->last[i] = -1;
    for (int r = 0; r < s->runs; r++)
        for (int c = s->run[r].source0; c < s->run[r].source1; c++)
            for (int h = s->part[s->source[c].part].head0; h < s->part[s->source[c].part].head1; h++)
                for (int i = h * queries + s->run[r].query0; i < h * queries + s->run[r].query1; i++) {
                    pass->first[i] = pass->first[i] < 0 ? r : pass->first[i];
                    pass->last[i] = r;
                }
    for (int i = 0; i < heads * queries; i++)
        if (pass->first[i] < 0)
            return HRA_FAIL(HRA_ERR_ARG, "schedule: no run computes query tile %d of K/V head %d",
                            i % queries, i / queries);
    return HRA_OK;
}

/* In which round is each key tile and head of ours computed, and each part that is a source of ours, else -1? begun [own tiles]
 * [heads_kv], own [parts]. *once: is each tile and head in one source? */
static void find_sources(const hra_plan *plan, const struct hra_schedule *s, int *begun, int *own, int *once)
{
    const int first = plan->kernel_plan.own_key0, tiles = plan->kernel_plan.own_key1 - first;
    const int heads = plan->problem.heads_kv;

    *once = 1;
    for (int i = 0; i < tiles * heads; i++)
        begun[i] = -1;
    for (int p = 0; p < s->parts; p++)
        own[p] = -1;
    for (int r = 0; r < s->rounds; r++)
        for (int i = s->round[r].run0; i < s->round[r].run1; i++)
            for (int c = s->run[i].source0; c < s->run[i].source1; c++) {
                const struct hra_part *part = &s->part[s->source[c].part];
                if (s->source[c].gradient != HRA_OWN)
                    continue;
                own[s->source[c].part] = r;
                for (int k = part->key_tile0; k < part->key_tile1; k++)
                    for (int h = part->head0; h < part->head1; h++) {
                        *once &= begun[(k - first) * heads + h] < 0;
                        begun[(k - first) * heads + h] = r;
                    }
            }
    for (int i = 0; i < tiles * heads; i++)
        *once &= begun[i] >= 0;
}

/* How many moves are started when each buffer of dK/dV is touched for the last time? */
static void find_touched(const struct hra_schedule *s, int *touched)
{
    for (int r = 0; r < s->rounds; r++) {
        for (int i = s->round[r].move0; i < s->round[r].move1; i++)
            for (int n = 0; n <= s->move[i].more && s->move[i].payload == HRA_DKV; n++)
                touched[hra_move_buffer(&s->move[i]) + n] = i;
        for (int i = s->round[r].run0; i < s->round[r].run1; i++)
            for (int c = s->run[i].source0; c < s->run[i].source1; c++)
                if (s->source[c].gradient != HRA_OWN)
                    touched[s->source[c].gradient] = s->round[r].move1;
    }
}

/* Are dK/dV that come home added when our own of the same keys and heads have begun? They are where a round before has those,
 * and where nothing touches the buffer once the move is under way, as then all rounds are over. */
static int is_added_later(const hra_plan *plan, const struct hra_schedule *s, const int *begun,
                          const int *touched)
{
    const int first = plan->kernel_plan.own_key0, heads = plan->problem.heads_kv;
    int later = 1;

    for (int r = 0; r < s->rounds; r++)
        for (int i = s->round[r].move0; i < s->round[r].move1; i++)
            for (int n = 0; n <= s->move[i].more && s->move[i].add && !s->move[i].sends; n++) {
                const struct hra_part *part = &s->part[s->move[i].part + n];
                if (touched[s->move[i].to + n] == i)
                    continue;
                for (int k = part->key_tile0; k < part->key_tile1; k++)
                    for (int h = part->head0; h < part->head1; h++)
                        later &= begun[(k - first) * heads + h] < r;
            }
    return later;
}

/* For each own key tile and head the last move that brings something of it home, -1: none, and how many do. [own tiles]
 * [heads_kv]. */
static void find_homes(const hra_plan *plan, const struct hra_schedule *s, int *last, int *homes)
{
    const int first = plan->kernel_plan.own_key0, heads = plan->problem.heads_kv;

    for (int i = 0; i < (plan->kernel_plan.own_key1 - first) * heads; i++)
        last[i] = -1;
    for (int i = 0; i < s->moves; i++)
        for (int n = 0; n <= s->move[i].more && s->move[i].add && !s->move[i].sends; n++) {
            const struct hra_part *part = &s->part[s->move[i].part + n];
            for (int k = part->key_tile0; k < part->key_tile1; k++)
                for (int h = part->head0; h < part->head1; h++) {
                    last[(k - first) * heads + h] = i;
                    homes[(k - first) * heads + h]++;
                }
        }
}

/* Is a move that brings something home the last one for all of that, and finished after all rounds? */
static int is_last(const hra_plan *plan, const struct hra_schedule *s, int i, const int *touched,
                   const int *last)
{
    const int first = plan->kernel_plan.own_key0, heads = plan->problem.heads_kv;

    for (int n = 0; n <= s->move[i].more; n++) {
        const struct hra_part *part = &s->part[s->move[i].part + n];
        if (touched[s->move[i].to + n] != i)
            return 0;
        for (int k = part->key_tile0; k < part->key_tile1; k++)
            for (int h = part->head0; h < part->head1; h++)
                if (last[(k - first) * heads + h] != i)
                    return 0;
    }
    return 1;
}

/* Is our own dK/dV of a key tile and a head written neither by kernels nor by the last move that brings of it home? */
static int is_open(const struct hra_pass_plan *pass, int last)
{
    return last < 0 ? !pass->writes : !pass->closes[last];
}

/* The key tiles and heads that are open, as parts: next to each other, heads of a tile are one, and tiles with the same of
 * them. */
static hra_status find_open(const hra_plan *plan, struct hra_pass_plan *pass, const int *last)
{
    const int first = plan->kernel_plan.own_key0, tiles = plan->kernel_plan.own_key1 - first;
    const int heads = plan->problem.heads_kv;

    for (int writing = 0; writing < 2; writing++) {
        if (writing)
            HRA_TRY(hra_alloc((void **)&pass->open, pass->opens, sizeof(*pass->open), "gradients"));
        pass->opens = 0;
        for (int k = 0, end; k < tiles; k = end) {
            int alike = 1;
            for (end = k + 1; end < tiles && alike; end += alike)
                for (int h = 0; h < heads; h++)
                    alike &= is_open(pass, last[end * heads + h]) == is_open(pass, last[k * heads + h]);
            for (int h = 0, h1; h < heads; h = h1) {
                const int open = is_open(pass, last[k * heads + h]);
                for (h1 = h + 1; h1 < heads && is_open(pass, last[k * heads + h1]) == open;)
                    h1++;
                if (!open)
                    continue;
                if (writing)
                    pass->open[pass->opens] =
                        (struct hra_part){plan->comm->rank, first + k, first + end, h, h1};
                pass->opens++;
            }
        }
    }
    return HRA_OK;
}

/* Seconds that we compute in these rounds, by the machine that the plan was made for. Of what comes straight from its owner only
 * the plan's counts know how much that is: it does not count. */
static double rounds_s(const hra_plan *plan, const struct hra_schedule *s, int round0, int round1)
{
    const struct hra_costs costs = {plan, &plan->machine, HRA_BACKWARD};
    const double tile_s = hra_cost_tile(&costs, plan->comm->rank);
    double seconds = 0;

    for (int i = s->round[round0].run0; i < s->round[round1 - 1].run1; i++)
        for (int c = s->run[i].source0; c < s->run[i].source1; c++) {
            const struct hra_part *part = &s->part[s->source[c].part];
            const int heads = part->head1 - part->head0;
            seconds += hra_cost_kernel(&costs, tile_s,
                                       hra_work_live(&plan->work, plan->comm->rank, part) * heads /
                                           plan->problem.heads_kv,
                                       s->run[i].query1 - s->run[i].query0, heads);
        }
    return seconds;
}

/* Will what move i of a round brings home have come when our own source of a later round is computed? Where we compute longer in
 * between than it travels, by half as much again, as forecasts and reality differ; and where the rank that sends it is as far as
 * we are, which cuts by heads make likely. */
static int comes_in_time(const hra_plan *plan, const struct hra_schedule *s, int i, int round, int later)
{
    const struct hra_move *m = &s->move[i];
    const struct hra_part *part = &s->part[m->part];
    const int node = plan->machine.node_ranks, rank = plan->comm->rank;
    const hra_link *link = rank / node == m->peer / node ? &plan->machine.inside : &plan->machine.between;
    const double travels_s = (double)hra_plan_move_bytes(plan, s, m) / link->rate + link->latency_s;

    return later > round && part->key_tile0 == plan->kernel_plan.own_key0 &&
           part->key_tile1 == plan->kernel_plan.own_key1 && rounds_s(plan, s, round, later) > 1.5 * travels_s;
}

/* Can our own kernels go on from what move i of a round brings home? They can where it is all that comes home of these keys and
 * heads, and stays where it is until they want it. */
static int is_continued(const hra_plan *plan, const struct hra_schedule *s, int i, int round, const int *own,
                        const int *touched, const int *last, const int *homes)
{
    const int first = plan->kernel_plan.own_key0, heads = plan->problem.heads_kv;
    const struct hra_move *m = &s->move[i];

    for (int n = 0; n <= m->more; n++) {
        const struct hra_part *part = &s->part[m->part + n];
        if (touched[m->to + n] != i || !comes_in_time(plan, s, i, round, own[m->part + n]))
            return 0;
        for (int k = part->key_tile0; k < part->key_tile1; k++)
            for (int h = part->head0; h < part->head1; h++)
                if (last[(k - first) * heads + h] != i || homes[(k - first) * heads + h] != 1)
                    return 0;
    }
    return 1;
}

static void find_continued(const hra_plan *plan, struct hra_pass_plan *pass, const int *own,
                           const int *touched, const int *last, const int *homes)
{
    const struct hra_schedule *s = &pass->schedule;

    for (int r = 0; r < s->rounds; r++)
        for (int i = s->round[r].move0; i < s->round[r].move1; i++) {
            const struct hra_move *m = &s->move[i];
            pass->continued[i] =
                m->add && !m->sends && is_continued(plan, s, i, r, own, touched, last, homes);
            for (int n = 0; n <= m->more && pass->continued[i]; n++)
                pass->home[m->part + n] = m->to + n;
        }
}

/* What find_own_sums looks at, by own key tile and head unless said otherwise. */
struct own_sums {
    int *begun;        /* the round in which it is computed */
    int *last, *homes; /* the last move that brings something of it home, -1: none; how many do */
    int *touched;      /* [buffers] how many moves are started when each is touched for the last time */
    int *own;          /* [parts] the round in which it is a source of ours, -1: none */
};

static hra_status alloc_own_sums(struct own_sums *o, hra_plan *plan, struct hra_pass_plan *pass)
{
    const struct hra_schedule *s = &pass->schedule;
    const int64_t places =
        (int64_t)(plan->kernel_plan.own_key1 - plan->kernel_plan.own_key0) * plan->problem.heads_kv;

    HRA_TRY(hra_alloc((void **)&pass->summed, places, 1, "gradients"));
    HRA_TRY(hra_alloc((void **)&pass->closes, s->moves, 1, "gradients"));
    HRA_TRY(hra_alloc((void **)&pass->continued, s->moves, 1, "gradients"));
    HRA_TRY(hra_alloc_unset((void **)&pass->home, s->parts, sizeof(*pass->home), "gradients"));
    HRA_TRY(hra_alloc((void **)&o->begun, 3 * places, sizeof(*o->begun), "runs"));
    HRA_TRY(hra_alloc((void **)&o->touched, pass->buffers[HRA_DKV], sizeof(*o->touched), "runs"));
    HRA_TRY(hra_alloc((void **)&o->own, s->parts, sizeof(*o->own), "runs"));
    o->last = o->begun + places;
    o->homes = o->last + places;
    for (int p = 0; p < s->parts; p++)
        pass->home[p] = -1;
    return HRA_OK;
}

/* Find what becomes of our own dK/dV: what kernels do, what is done where something comes home, and what is left. */
static hra_status find_own_sums(hra_plan *plan)
{
    struct hra_pass_plan *pass = &plan->pass[HRA_BACKWARD];
    const struct hra_schedule *s = &pass->schedule;
    const int64_t places =
        (int64_t)(plan->kernel_plan.own_key1 - plan->kernel_plan.own_key0) * plan->problem.heads_kv;
    struct own_sums o = {.begun = NULL};
    int once = 0;

    hra_status status = alloc_own_sums(&o, plan, pass);
    if (status == HRA_OK) {
        find_sources(plan, s, o.begun, o.own, &once);
        find_touched(s, o.touched);
        pass->begins = once && is_added_later(plan, s, o.begun, o.touched);
        pass->writes = pass->begins && plan->backend->writes_gradients;
        find_homes(plan, s, o.last, o.homes);
        if (pass->writes)
            find_continued(plan, pass, o.own, o.touched, o.last, o.homes);
        for (int64_t i = 0; i < places; i++) {
            o.last[i] = o.last[i] >= 0 && pass->continued[o.last[i]] ? -1 : o.last[i];
            pass->summed[i] = o.last[i] >= 0;
        }
        for (int i = 0; i < s->moves; i++)
            pass->closes[i] = s->move[i].add && !s->move[i].sends && !pass->continued[i] &&
                              is_last(plan, s, i, o.touched, o.last);
        status = find_open(plan, pass, o.last);
    }
    free(o.begun);
    free(o.touched);
    free(o.own);
    return status;
}

/* Heads that lie apart are sent one by one, in lines of dim channels. On two H200 such copies run at 290 GB/s with 8192 lines
 * of 256 bytes each, at 80 with 2048, and at 156 with lines of 128 bytes; messages of K and V that were put together before
 * run at 380. */
enum { LEAST_LINE_BYTES = 256, LEAST_HEAD_BYTES = 2 << 20 };

/* Is every part that is sent straight large enough for that? */
static int are_heads_large(const hra_plan *plan, const struct hra_pass_plan *pass)
{
    const hra_problem *p = &plan->problem;
    const struct hra_schedule *s = &pass->schedule;
    const int64_t line = (p->dim < p->dim_v ? p->dim : p->dim_v) * (int64_t)hra_type_bytes(p->type);

    for (int i = 0; i < s->moves; i++)
        for (int n = 0; pass->straight.move[i] && n <= s->move[i].more; n++)
            if (line * hra_plan_part_rows(plan, &s->part[s->move[i].part + n]) < LEAST_HEAD_BYTES)
                return 0;
    return line >= LEAST_LINE_BYTES;
}

/* Groups of lines that a straight send takes at most. */
static int64_t groups_of_lines(const hra_plan *plan, const struct hra_pass_plan *pass,
                               const struct hra_move *move)
{
    int64_t count = 0;

    for (int n = 0; n <= move->more; n++) {
        const struct hra_part *part = &pass->schedule.part[move->part + n];
        count += pass->by_heads ? part->head1 - part->head0 : 1;
    }
    return 2 * plan->problem.batch * count;
}

/* Which of a pass's sends take our own K and V from where the caller has them, and memory for their lines. */
static hra_status prepare_straight(hra_plan *plan, struct hra_pass_plan *pass)
{
    const struct hra_schedule *s = &pass->schedule;
    const int can = plan->comm->transport->sends_lines && !plan->staged;
    int64_t lines = 0;

    HRA_TRY(hra_schedule_straight(&pass->straight, s, can ? HRA_STRAIGHT_PARTS / plan->problem.batch : 0));
    pass->by_heads = are_heads_large(plan, pass);
    for (int i = 0; i < s->moves; i++)
        lines += pass->straight.move[i] ? groups_of_lines(plan, pass, &s->move[i]) : 0;
    return hra_alloc_unset((void **)&pass->line, lines, sizeof(*pass->line), "moves");
}

/* Where messages go through the host's memory, what came before into a buffer is copied on while the next run computes. */
static int can_post(const hra_plan *plan)
{
    return plan->comm->transport->post != NULL && !plan->staged;
}

/* The transfers of a pass, as its schedule has them. */
static hra_status list_transfers(hra_plan *plan, hra_pass which)
{
    struct hra_pass_plan *pass = &plan->pass[which];
    const struct hra_schedule *s = &pass->schedule;
    struct hra_lines *line = pass->line;
    const int rank = plan->comm->rank;
    unsigned char *ahead = NULL;
    int *passed = NULL, (*count)[2] = NULL; /* so far, from and to each rank */

    HRA_TRY(hra_alloc((void **)&pass->transfer, s->moves, sizeof(*pass->transfer), "moves"));
    HRA_TRY(hra_alloc((void **)&count, plan->comm->ranks, sizeof(*count), "moves"));
    hra_status status = hra_schedule_ahead(&ahead, s, plan->comm->ranks);
    if (status == HRA_OK)
        status = hra_schedule_passed(&passed, s);
    for (int r = 0; status == HRA_OK && r < s->rounds; r++)
        for (int i = s->round[r].move0; i < s->round[r].move1; i++) {
            const struct hra_move *m = &s->move[i];
            const size_t bytes = hra_plan_move_bytes(plan, s, m);
            const int number = count[m->peer][m->sends]++;
            const int64_t name[] = {
                plan->comm->made,         which, number, (int64_t)bytes, m->sends ? rank : m->peer,
                m->sends ? m->peer : rank};
            pass->transfer[i] =
                (struct hra_transfer){.line = line,
                                      .bytes = bytes,
                                      .peer = m->peer,
                                      .sends = m->sends,
                                      .what = pass->what,
                                      .round = r,
                                      .ahead = ahead[i] && can_post(plan),
                                      .from = passed[i] < 0 ? NULL : &pass->transfer[passed[i]],
                                      .number = number,
                                      .tag = (uint32_t)hra_hash(HRA_HASH_BEGIN, name, sizeof(name)) | 1};
            line += pass->straight.move[i] ? groups_of_lines(plan, pass, m) : 0;
            plan->stats[rank].received[which] += m->sends ? 0 : (int64_t)bytes;
        }
    free(count);
    free(ahead);
    free(passed);
    return status;
}

static hra_status prepare_pass(hra_plan *plan, hra_pass which)
{
    struct hra_pass_plan *pass = &plan->pass[which];
    struct hra_schedule *s = &pass->schedule;
    int most = 0;

    HRA_TRY(plan->generate(s, &plan->work, plan->comm->rank, which));
    HRA_TRY(hra_schedule_check(s, &plan->work, plan->comm->rank, plan->kernel_plan.queries, which));
    struct buffers buffers = {.spare = 0};
    size_t end = 0;
    hra_status status = place_buffers(&buffers, &end, plan, s, which);
    memcpy(pass->buffer, buffers.at, sizeof(pass->buffer));
    memcpy(pass->buffers, buffers.count, sizeof(pass->buffers));
    HRA_TRY(status);
    HRA_TRY(check_messages(plan, s, &buffers));
    plan->arena_bytes = end > plan->arena_bytes ? end : plan->arena_bytes;
    HRA_TRY(find_ends(plan, pass));

    snprintf(pass->what, sizeof(pass->what), "%s of plan %d", which == HRA_FORWARD ? "forward" : "backward",
             plan->comm->made);
    for (int r = 0; r < s->runs; r++)
        most = s->run[r].source1 - s->run[r].source0 > most ? s->run[r].source1 - s->run[r].source0 : most;
    HRA_TRY(hra_alloc((void **)&pass->chunk, most, sizeof(*pass->chunk), "runs"));
    HRA_TRY(hra_alloc((void **)&pass->started, s->moves, sizeof(struct hra_transfer *), "moves"));
    HRA_TRY(hra_alloc((void **)&pass->next, s->moves, sizeof(*pass->next), "moves"));
    for (int payload = 0; payload < HRA_PAYLOADS; payload++)
        HRA_TRY(hra_alloc((void **)&pass->busy[payload], pass->buffers[payload], sizeof(*pass->busy[payload]),
                          "moves"));
    HRA_TRY(prepare_straight(plan, pass));
    return list_transfers(plan, which);
}

/* Add up what a rank of a model receives in a pass. */
static void add_received(hra_plan *plan, const struct hra_schedule *s, int rank, hra_pass which)
{
    for (int i = 0; i < s->moves; i++)
        if (!s->move[i].sends)
            plan->stats[rank].received[which] += (int64_t)hra_plan_move_bytes(plan, s, &s->move[i]);
}

/* The same for all ranks but our own, whose schedules are rings. */
static hra_status receive_rings(hra_plan *plan, hra_pass which)
{
    struct hra_ring *ring = NULL;
    struct hra_schedule s = {0};

    HRA_TRY(hra_ring_open(&ring, &plan->work, which));
    hra_status status = hra_ring_parts(&s, ring);
    for (int r = 0; r < plan->comm->ranks && status == HRA_OK; r++) {
        if (r == plan->comm->rank)
            continue;
        status = hra_ring_write(&s, ring, r, 0, hra_ring_rounds(ring));
        add_received(plan, &s, r, which);
        hra_schedule_drop_rounds(&s);
    }
    hra_schedule_clear(&s);
    hra_ring_close(ring);
    return status;
}

/* Bytes that the other ranks of a model receive. */
static hra_status model_received(hra_plan *plan, hra_pass which)
{
    if (plan->generate == hra_schedule_ring)
        return receive_rings(plan, which);
    for (int r = 0; r < plan->comm->ranks; r++) {
        struct hra_schedule s = {0};
        if (r == plan->comm->rank)
            continue;
        HRA_TRY(plan->generate(&s, &plan->work, r, which));
        add_received(plan, &s, r, which);
        hra_schedule_clear(&s);
    }
    return HRA_OK;
}

/* Tell the backend what it will be asked to compute. Local. */
static hra_status tell_shapes(hra_plan *plan)
{
    struct hra_shape *shape[2] = {NULL, NULL};
    struct hra_shapes all[2];
    hra_status status = HRA_OK;

    if (plan->backend->prepare == NULL)
        return HRA_OK;
    for (int which = 0; which < 2 && status == HRA_OK; which++) {
        const struct hra_pass_plan *pass = &plan->pass[which];
        const struct hra_schedule *s = &pass->schedule;

        status = hra_alloc((void **)&shape[which], s->sources, sizeof(*shape[which]), "runs");
        for (int r = 0; r < s->runs && status == HRA_OK; r++)
            for (int c = s->run[r].source0; c < s->run[r].source1; c++) {
                const struct hra_part *part = &s->part[s->source[c].part];
                shape[which][c] = (struct hra_shape){.run = r,
                                                     .query0 = s->run[r].query0,
                                                     .query1 = s->run[r].query1,
                                                     .key_tile0 = part->key_tile0,
                                                     .key_tile1 = part->key_tile1,
                                                     .head0 = part->head0,
                                                     .head1 = part->head1};
            }
        all[which] = (struct hra_shapes){.shape = shape[which],
                                         .count = s->sources,
                                         .runs = s->runs,
                                         .first = pass->first,
                                         .last = pass->last,
                                         .summed = pass->summed};
    }
    if (status == HRA_OK)
        status = plan->backend->prepare(plan->kernels, all);
    free(shape[0]);
    free(shape[1]);
    return status;
}

/* Key tiles of the largest part that a run computes against. */
static int largest_chunk(const hra_plan *plan)
{
    int most = 0;

    for (int which = 0; which < 2; which++) {
        const struct hra_schedule *s = &plan->pass[which].schedule;
        for (int c = 0; c < s->sources; c++) {
            const struct hra_part *part = &s->part[s->source[c].part];
            most = part->key_tile1 - part->key_tile0 > most ? part->key_tile1 - part->key_tile0 : most;
        }
    }
    return most;
}

static void drop_mirror(struct hra_arena *arena)
{
#ifdef HRA_CUDA
    hra_backend_cuda.drop_mirror(arena->mirror, arena->base);
#else
    (void)arena;
#endif
}

/* The arena, and where the backend needs it its mirror. */
static hra_status join_arena(hra_plan *plan)
{
    HRA_TRY(hra_arena_join(&plan->arena, plan->comm, plan->arena_bytes, plan->arena_reserve));
    if (!plan->staged || plan->arena == NULL || plan->arena->mirror != NULL)
        return HRA_OK;
    HRA_TRY(plan->backend->make_mirror(&plan->arena->mirror, plan->arena->base, plan->arena->bytes));
    plan->arena->drop_mirror = drop_mirror;
    return HRA_OK;
}

/* Which pass takes rows by token, and which has to bring them into slot order? What forward has brought there it can keep
 * for backward. */
static hra_status find_reorders(hra_plan *plan)
{
    struct hra_kernel_plan *k = &plan->kernel_plan;
    int64_t r = 0;

    while (r < k->rows && k->token[r] == r)
        r++;
    if (plan->options.rows == HRA_ROWS_SLOTS || r == k->rows)
        return HRA_OK;
    for (int i = 0; i < 2; i++) {
        if (plan->backend->takes_tokens != NULL)
            HRA_TRY(plan->backend->takes_tokens(&k->by_token[i], k, (hra_pass)i));
        plan->reorders[i] = k->by_token[i] != HRA_ALL_BY_TOKEN;
    }
    plan->keeps_slots = plan->options.saved == HRA_SAVED_QKV && !k->saves && plan->reorders[HRA_FORWARD] &&
                        plan->reorders[HRA_BACKWARD];
    return HRA_OK;
}

/* Behind what a pass has in the workspace, its copies in slot order. Returns where all that ends. */
static size_t place_slots(hra_plan *plan, hra_pass pass, size_t end)
{
    if (!plan->reorders[pass])
        return end;
    plan->slots_at[pass] = hra_align(end, HRA_BUFFER_ALIGNMENT);
    return plan->slots_at[pass] + hra_slots_bytes(plan, pass);
}

/* Schedules, workspace, arena, and the backend. Local. */
static hra_status prepare(hra_plan *plan)
{
    const hra_problem *p = &plan->problem;
    const struct hra_layout *l = plan->layout;
    hra_comm *comm = plan->comm;
    const int first = l->rank_tile[comm->rank];

    plan->kernel_plan = (struct hra_kernel_plan){.batch = p->batch,
                                                 .heads = p->heads,
                                                 .heads_kv = p->heads_kv,
                                                 .dim = p->dim,
                                                 .dim_v = p->dim_v,
                                                 .type = p->type,
                                                 .scale = p->scale,
                                                 .threads = p->threads,
                                                 .margin = p->sm_margin,
                                                 .rows = l->rows[comm->rank],
                                                 .queries = plan->tiles->queries,
                                                 .query = l->tile + first,
                                                 .keys = l->tiles,
                                                 .key = l->tile,
                                                 .pattern = plan->tiles->pattern,
                                                 .patterns = plan->tiles->patterns,
                                                 .list = plan->tiles->list,
                                                 .token = plan->token,
                                                 .own_key0 = first,
                                                 .own_key1 = l->rank_tile[comm->rank + 1],
                                                 .saves = plan->options.saved == HRA_SAVED_QKV &&
                                                          plan->backend->saved_bytes != NULL,
                                                 .bitmaps = plan->tiles->dictionary.count};
    for (int i = 0; i < 2; i++) {
        const struct hra_bit_layout *layout = plan->backend->layout[i];
        HRA_TRY(hra_dictionary_pack(&plan->packed[i], &plan->tiles->dictionary, layout));
        plan->kernel_plan.layout[i] = layout;
        plan->kernel_plan.packed[i] =
            plan->packed[i] != NULL ? plan->packed[i] : plan->tiles->dictionary.bits;
    }
    HRA_TRY(prepare_pass(plan, HRA_FORWARD));
    HRA_TRY(prepare_pass(plan, HRA_BACKWARD));
    HRA_TRY(find_own_sums(plan));
    HRA_TRY(find_reserve(plan));

    plan->kernel_plan.chunk_tiles = largest_chunk(plan);
    HRA_TRY(find_reorders(plan));
    plan->saved_bytes = plan->kernel_plan.saves ? plan->backend->saved_bytes(&plan->kernel_plan)
                        : plan->keeps_slots     ? hra_slots_kept_bytes(plan)
                                                : 0;
    const size_t forward =
        place_slots(plan, HRA_FORWARD, plan->backend->workspace_bytes(&plan->kernel_plan, HRA_FORWARD));
    plan->kernel_bytes = hra_align(plan->backend->workspace_bytes(&plan->kernel_plan, HRA_BACKWARD), 256);
    const struct hra_part own = {.owner = comm->rank,
                                 .key_tile0 = first,
                                 .key_tile1 = l->rank_tile[comm->rank + 1],
                                 .head1 = p->heads_kv};
    const size_t sums = plan->tiles->queries == 0 ? 0 : hra_plan_part_bytes(plan, &own, HRA_DKV, NULL);
    const size_t backward = place_slots(plan, HRA_BACKWARD, plan->kernel_bytes + sums);
    plan->workspace_bytes = forward > backward ? forward : backward;

    if (comm->transport->start == NULL) {
        HRA_TRY(model_received(plan, HRA_FORWARD));
        return model_received(plan, HRA_BACKWARD);
    }
    HRA_TRY(join_arena(plan));
    HRA_TRY(plan->backend->open(&plan->kernels, &plan->kernel_plan));
    return tell_shapes(plan);
}

/* The first move from `i` on that receives from a rank; s->moves: there is none. */
static int next_receipt(const struct hra_schedule *s, int i, int peer)
{
    while (i < s->moves && (s->move[i].sends || s->move[i].peer != peer))
        i++;
    return i;
}

/* Where what we send arrives at one of the ranks whose arena we address: its schedule says into which buffer, and whether that is
 * posted ahead. The n-th move that it receives from us is the n-th that we send, in the same round. */
static hra_status aim_at(hra_plan *plan, hra_pass which, int peer, char *arena)
{
    struct hra_pass_plan *pass = &plan->pass[which];
    const struct hra_schedule *mine = &pass->schedule;
    struct buffers buffers = {.spare = 0};
    struct hra_schedule s = {0};
    unsigned char *ahead = NULL;
    size_t end = 0;
    int receipt = -1;

    hra_status status = plan->generate(&s, &plan->work, peer, which);
    if (status == HRA_OK)
        status = place_buffers(&buffers, &end, plan, &s, which);
    if (status == HRA_OK)
        status = hra_schedule_ahead(&ahead, &s, plan->comm->ranks);
    for (int i = 0; status == HRA_OK && i < mine->moves; i++) {
        const struct hra_move *m = &mine->move[i];
        if (!m->sends || m->peer != peer)
            continue;
        receipt = next_receipt(&s, receipt + 1, plan->comm->rank);
        if (receipt == s.moves || m->to < 0 || m->to + m->more >= buffers.count[m->payload]) {
            status = HRA_FAIL(HRA_ERR_ARG, "schedule: rank %d has no buffer %d for a move of rank %d", peer,
                              m->to, plan->comm->rank);
            break;
        }
        pass->transfer[i].there = arena + buffers.at[m->payload][m->to];
        pass->transfer[i].ahead = ahead[receipt] && pass->transfer[i].from != NULL && can_post(plan);
    }
    free(ahead);
    for (int payload = 0; payload < HRA_PAYLOADS; payload++)
        free(buffers.at[payload]);
    hra_schedule_clear(&s);
    return status;
}

/* Tell every transfer where it arrives, where this process can address that, and the transport of them all. Local. */
static hra_status aim(hra_plan *plan, void **arena)
{
    hra_comm *comm = plan->comm;

    for (int which = 0; which < 2; which++) {
        struct hra_pass_plan *pass = &plan->pass[which];
        for (int r = 0; r < comm->ranks; r++) {
            int sends = 0;
            for (int i = 0; i < pass->schedule.moves; i++)
                sends |= pass->transfer[i].sends && pass->transfer[i].peer == r;
            if (sends && arena[r] != NULL)
                HRA_TRY(aim_at(plan, (hra_pass)which, r, arena[r]));
        }
        if (comm->transport->enlist != NULL)
            HRA_TRY(comm->transport->enlist(comm->state, pass->transfer, pass->schedule.moves));
        pass->enlisted = 1;
    }
    return HRA_OK;
}

/* The arenas of all ranks, and what becomes of them. Collective: `status` is what this rank has come to so far. */
static hra_status share_arenas(hra_plan *plan, hra_status status)
{
    hra_comm *comm = plan->comm;
    void **arena = NULL;

    if (comm->transport->start == NULL)
        return status;
    if (status == HRA_OK)
        status = hra_alloc((void **)&arena, comm->ranks, sizeof(*arena), "plan");
    if (comm->transport->map != NULL) {
        status = hra_comm_agree(comm, status);
        if (status == HRA_OK)
            status = hra_comm_note(
                comm, comm->transport->map(comm->state, plan->arena == NULL ? NULL : plan->arena->base,
                                           plan->arena == NULL ? 0 : plan->arena->bytes, arena));
    }
    if (status == HRA_OK)
        status = aim(plan, arena);
    free(arena);
    return status;
}

static hra_status build(hra_plan *plan, const hra_problem *problem, const hra_order *order,
                        const hra_mask *mask, const hra_options *options)
{
    HRA_TRY(hra_share_alike(plan, read_arguments(plan, problem, order, mask, options)));
    plan->options.machine = NULL; /* it is the caller's */
    hra_status status = hra_share_work(plan);
    if (status == HRA_OK)
        status = prepare(plan);
    return hra_share_received(plan, share_arenas(plan, status));
}

hra_status hra_plan_create_with(hra_plan **out, hra_comm *comm, const hra_problem *problem,
                                const hra_order *order, const hra_mask *mask, const hra_options *options,
                                hra_generator generate)
{
    hra_plan *plan = NULL;

    if (out == NULL || comm == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "hra_plan_create: %s is NULL", out == NULL ? "out" : "comm");
    HRA_TRY(hra_comm_check(comm));
    hra_status status = hra_alloc((void **)&plan, 1, sizeof(*plan), "plan");
    status = hra_comm_agree(comm, status);
    if (status != HRA_OK) {
        free(plan);
        return status;
    }
    plan->comm = comm;
    plan->generate = generate;
    comm->plans++;
    comm->made++;
    status = build(plan, problem, order, mask, options);
    if (status != HRA_OK) {
        hra_plan_destroy(plan);
        return status;
    }
    hra_log(HRA_LOG_INFO,
            "plan %d: %lld tokens, %d ranks, %lld tiles on rank %d, workspace %zu bytes, arena %zu",
            comm->made, (long long)plan->problem.tokens, comm->ranks,
            (long long)(plan->stats[comm->rank].tiles_full + plan->stats[comm->rank].tiles_partial),
            comm->rank, plan->workspace_bytes, plan->arena_bytes);
    *out = plan;
    return HRA_OK;
}

hra_status hra_plan_create(hra_plan **out, hra_comm *comm, const hra_problem *problem, const hra_order *order,
                           const hra_mask *mask, const hra_options *options)
{
    return hra_plan_create_with(out, comm, problem, order, mask, options, NULL);
}

void hra_plan_destroy(hra_plan *plan)
{
    if (plan == NULL)
        return;
    if (plan->trace != NULL)
        hra_trace_forget(plan->trace);
    if (plan->backend != NULL)
        plan->backend->close(plan->kernels);
    hra_arena_leave(plan->comm, plan->arena);
    for (int i = 0; i < 2; i++) {
        struct hra_pass_plan *pass = &plan->pass[i];
        if (pass->enlisted && plan->comm->transport->delist != NULL)
            plan->comm->transport->delist(plan->comm->state, pass->transfer, pass->schedule.moves);
        hra_schedule_clear(&pass->schedule);
        for (int payload = 0; payload < HRA_PAYLOADS; payload++) {
            free(pass->buffer[payload]);
            free(pass->busy[payload]);
        }
        free(pass->first);
        free(pass->last);
        free(pass->transfer);
        free(pass->started);
        free(pass->chunk);
        free(pass->next);
        hra_straight_clear(&pass->straight);
        free(pass->line);
        free(pass->summed);
        free(pass->closes);
        free(pass->continued);
        free(pass->home);
        free(pass->open);
        free(plan->packed[i]);
    }
    hra_layout_destroy(plan->layout);
    hra_tiles_destroy(plan->tiles);
    hra_tiles_destroy(plan->other);
    hra_needs_clear(&plan->needs);
    hra_order_destroy(plan->order);
    hra_mask_destroy(plan->mask);
    free(plan->token);
    free(plan->live);
    free(plan->stats);
    plan->comm->plans--;
    free(plan);
}

/* test_memory.c - the n-th allocation fails, for every n: the status says so, nothing leaks, and the next
 * try works. The link wraps aligned_alloc, through which all of the library allocates, free, and
 * pthread_create. */
#include "src/plan.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static int until_failure; /* this allocation from now fails; 0: none */
static int until_no_thread;
static int blocks; /* that live */
static hra_schedule_kind schedule;

void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void *memory);
void __wrap_free(void *memory);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg);

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    if (until_failure > 0 && --until_failure == 0)
        return NULL;
    blocks++;
    return __real_aligned_alloc(alignment, bytes);
}

void __wrap_free(void *memory)
{
    blocks -= memory != NULL;
    __real_free(memory);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    if (until_no_thread > 0 && --until_no_thread == 0)
        return EAGAIN;
    return __real_pthread_create(thread, attr, run, arg);
}

enum { TOKENS = 400, HEADS = 3, DIM = 4, ROUTES = 5 };

/* One problem from nothing to a plan. */
struct made {
    hra_order *order;
    hra_mask *mask;
    hra_comm *comm;
    hra_plan *plan;
};

/* ranks 1: this process, else a model. */
static hra_status make(struct made *m, int ranks)
{
    hra_domain d = HRA_DOMAIN_INIT;
    hra_problem p = HRA_PROBLEM_INIT;
    hra_options options = HRA_OPTIONS_INIT;

    options.schedule = schedule;
    d.heads = p.heads = HEADS;
    d.tokens = p.tokens = TOKENS;
    d.grid[0] = d.grid[1] = 20;
    p.dim = DIM;
    p.type = HRA_F32;
    p.threads = 3;
    HRA_TRY(hra_order_create(&m->order, &d, "residues:256:4:boxes:8x8"));
    HRA_TRY(
        hra_mask_parse(&m->mask, &d, m->order,
                       "heads(0: causal & docs(150,250); 1: grid(2,3) | blocks(100; 0:1 2; 3:0); 2: full)"));
    HRA_TRY(ranks == 1 ? hra_comm_create_self(&m->comm) : hra_comm_create_model(&m->comm, 1, ranks));
    return hra_plan_create(&m->plan, m->comm, &p, m->order, m->mask, &options);
}

static void destroy(struct made *m)
{
    hra_plan_destroy(m->plan);
    cr_assert(eq(int, hra_comm_destroy(m->comm), HRA_OK), "%s", hra_last_error());
    hra_mask_destroy(m->mask);
    hra_order_destroy(m->order);
    *m = (struct made){NULL, NULL, NULL, NULL};
}

/* Bring n to the first allocation that does not happen; every earlier one must fail cleanly. */
static void fail_each_allocation(int ranks)
{
    struct made m = {NULL, NULL, NULL, NULL};
    const int before = blocks;
    int n = 0, plans_failed = 0;
    hra_status status;

    do {
        until_failure = ++n;
        status = make(&m, ranks);
        if (status == HRA_OK)
            break;
        cr_assert(eq(int, until_failure, 0));
        cr_assert(eq(int, status, HRA_ERR_MEMORY), "allocation %d: %s", n, hra_last_error());
        cr_assert(strstr(hra_last_error(), "no memory for ") != NULL, "allocation %d: '%s'", n,
                  hra_last_error());
        cr_assert(m.plan == NULL, "allocation %d: a plan from a failure", n);
        plans_failed += m.comm != NULL;
        destroy(&m);
        cr_assert(eq(int, blocks, before), "allocation %d leaks", n);
    } while (n < 100000);
    cr_assert(eq(int, status, HRA_OK));
    cr_expect(n - 1 > 20 && plans_failed > 10, "%d allocations, %d of the plan", n - 1, plans_failed);
    until_failure = 0;
    destroy(&m);
    cr_assert(eq(int, blocks, before), "success leaks");
}

Test(memory, creation_on_one_rank)
{
    fail_each_allocation(1);
}

Test(memory, creation_on_a_model)
{
    fail_each_allocation(3);
}

Test(memory, creation_of_a_halo)
{
    schedule = HRA_SCHEDULE_HALO;
    fail_each_allocation(1);
    fail_each_allocation(3);
}

/* A failed plan leaves its communicator, order and mask as they were. */
Test(memory, a_failed_plan_spoils_nothing)
{
    struct made m = {NULL, NULL, NULL, NULL};
    hra_problem p = HRA_PROBLEM_INIT;

    cr_assert(eq(int, make(&m, 1), HRA_OK));
    p.heads = HEADS;
    p.tokens = TOKENS;
    p.dim = DIM;
    p.type = HRA_F64;
    const int before = blocks;
    for (int n = 1;; n++) {
        hra_plan *more = NULL;
        until_failure = n;
        if (hra_plan_create(&more, m.comm, &p, m.order, m.mask, NULL) == HRA_OK) {
            hra_plan_destroy(more);
            break;
        }
        cr_assert(eq(int, hra_comm_get_status(m.comm), HRA_OK));
        cr_assert(eq(int, blocks, before), "allocation %d leaks", n);
    }
    until_failure = 0;

    hra_plan_info info = {.size = sizeof(info)};
    float q[TOKENS * HEADS * DIM], o[TOKENS * HEADS * DIM];
    for (int i = 0; i < TOKENS * HEADS * DIM; i++)
        q[i] = 1;
    const hra_tensor in = {q, 0, HEADS * DIM, DIM}, out = {o, 0, HEADS * DIM, DIM};
    cr_assert(eq(int, hra_plan_get_info(m.plan, &info), HRA_OK));
    void *work = aligned_alloc(64, (info.workspace_bytes + 63) / 64 * 64);
    cr_assert(eq(int, hra_forward(m.plan, &in, &in, &in, &out, NULL, work, NULL, NULL), HRA_OK));
    for (int i = 0; i < TOKENS * HEADS * DIM; i++)
        cr_assert(o[i] > 0.999f && o[i] < 1.001f); /* a mean of ones; every query sees itself or a block */
    free(work);
    destroy(&m);
}

Test(memory, queries_of_other_ranks)
{
    struct made m = {NULL, NULL, NULL, NULL};

    cr_assert(eq(int, make(&m, 3), HRA_OK));
    for (int route = 0; route < ROUTES; route++) {
        const int before = blocks;
        for (int n = 1;; n++) {
            int64_t count = -5;
            until_failure = n;
            const hra_status status =
                route < 3
                    ? hra_plan_tiles(m.plan, route, 0, 0, NULL, 0, &count)
                    : hra_plan_moves(m.plan, 2, route == 3 ? HRA_FORWARD : HRA_BACKWARD, NULL, 0, &count);
            if (status == HRA_OK) {
                cr_expect(count > 0);
                break;
            }
            cr_assert(eq(int, status, HRA_ERR_MEMORY));
            cr_assert(count == -5 && blocks == before, "query %d, allocation %d", route, n);
        }
    }
    until_failure = 0;
    destroy(&m);
}

Test(memory, traces)
{
    struct made m = {NULL, NULL, NULL, NULL};

    cr_assert(eq(int, make(&m, 1), HRA_OK));
    const int before = blocks;
    for (int n = 1;; n++) {
        hra_trace *trace = NULL;
        until_failure = n;
        const hra_status status = hra_trace_create(&trace, m.plan);
        if (status == HRA_OK) {
            cr_expect(n > 8, "%d allocations", n - 1);
            hra_trace_destroy(trace);
            break;
        }
        cr_assert(eq(int, status, HRA_ERR_MEMORY));
        cr_assert(trace == NULL && m.plan->trace == NULL && blocks == before, "allocation %d", n);
    }
    cr_assert(eq(int, blocks, before));
    until_failure = 0;
    destroy(&m);

    hra_trace *trace = NULL;
    cr_assert(eq(int, make(&m, 3), HRA_OK));
    cr_expect(eq(int, hra_trace_create(&trace, m.plan), HRA_ERR_STATE)); /* a model */
    cr_expect(eq(int, hra_trace_create(NULL, m.plan), HRA_ERR_ARG));
    cr_expect(eq(int, hra_trace_create(&trace, NULL), HRA_ERR_ARG));
    hra_trace_destroy(NULL);
    destroy(&m);
}

/* Threads that cannot be started are memory that is not there; those already running end. */
Test(memory, threads_that_do_not_start)
{
    struct made m = {NULL, NULL, NULL, NULL};
    const int before = blocks;

    for (int n = 1; n <= 2; n++) {
        until_no_thread = n;
        cr_assert(eq(int, make(&m, 1), HRA_ERR_MEMORY));
        cr_expect(strstr(hra_last_error(), n == 1 ? "thread 1 of 3" : "thread 2 of 3") != NULL, "%s",
                  hra_last_error());
        destroy(&m);
        cr_assert(eq(int, blocks, before));
    }
    cr_assert(eq(int, make(&m, 1), HRA_OK));
    destroy(&m);
}

/* slots.c - see slots.h. */
#include "src/slots.h"

/* What a pass does with an operand. */
enum role { NOTHING = 0, READS, WRITES };

static const struct {
    int of_keys;  /* 1: it has the K/V heads */
    int channels; /* 0: one; 1: dim; 2: dim_v */
    enum role role[2];
} operand[HRA_OPERANDS] = {[HRA_Q] = {0, 1, {READS, READS}},      [HRA_K] = {1, 1, {READS, READS}},
                           [HRA_V] = {1, 2, {READS, READS}},      [HRA_O] = {0, 2, {WRITES, READS}},
                           [HRA_LSE] = {0, 0, {WRITES, READS}},   [HRA_DO] = {0, 2, {NOTHING, READS}},
                           [HRA_DLSE] = {0, 0, {NOTHING, READS}}, [HRA_DQ] = {0, 1, {NOTHING, WRITES}},
                           [HRA_DK] = {1, 1, {NOTHING, WRITES}},  [HRA_DV] = {1, 2, {NOTHING, WRITES}}};

static int heads_of(const hra_problem *p, int n)
{
    return operand[n].of_keys ? p->heads_kv : p->heads;
}

static int dim_of(const hra_problem *p, int n)
{
    return operand[n].channels == 0 ? 1 : operand[n].channels == 1 ? p->dim : p->dim_v;
}

static hra_type type_of(const hra_problem *p, int n)
{
    return operand[n].channels == 0 ? hra_type_sums(p->type) : p->type;
}

/* Channels from one head of a copy to the next: as the backend wants its callers' tensors. */
static int64_t head_step(const hra_plan *plan, int n)
{
    const size_t bytes = hra_type_bytes(type_of(&plan->problem, n));
    const size_t wanted = operand[n].channels == 0 ? 1 : plan->backend->tensor_alignment;

    return (int64_t)(hra_align((size_t)dim_of(&plan->problem, n) * bytes, wanted > bytes ? wanted : bytes) /
                     bytes);
}

static size_t bytes_of(const hra_plan *plan, int n)
{
    const hra_problem *p = &plan->problem;
    const size_t numbers = (size_t)p->batch * (size_t)plan->kernel_plan.rows * (size_t)heads_of(p, n) *
                           (size_t)head_step(plan, n);
    return hra_align(numbers * hra_type_bytes(type_of(p, n)), HRA_BUFFER_ALIGNMENT);
}

/* A copy that lies at `memory`. */
static hra_tensor copy_at(const hra_plan *plan, int n, char *memory)
{
    const int64_t step = head_step(plan, n), heads = heads_of(&plan->problem, n);

    if (operand[n].channels == 0)
        return hra_slots_of_rows(plan, memory);
    return (hra_tensor){.data = memory,
                        .stride_batch = plan->kernel_plan.rows * heads * step,
                        .stride_row = heads * step,
                        .stride_head = step};
}

/* Is there a copy of it in this pass? */
static int is_copied(const hra_plan *plan, hra_pass pass, int n)
{
    const enum role role = operand[n].role[pass];
    return role == READS || (role == WRITES && plan->kernel_plan.by_token[pass] == HRA_BY_SLOT);
}

/* Is the copy kept from forward to backward? */
static int is_kept(const hra_plan *plan, int n)
{
    return plan->keeps_slots && operand[n].role[HRA_FORWARD] == READS;
}

hra_tensor hra_slots_of_rows(const hra_plan *plan, const void *data)
{
    const int64_t rows = plan->kernel_plan.rows;
    return (hra_tensor){.data = (void *)(uintptr_t)data,
                        .stride_batch = plan->problem.heads * rows,
                        .stride_row = 1,
                        .stride_head = rows};
}

size_t hra_slots_bytes(const hra_plan *plan, hra_pass pass)
{
    size_t bytes = 0;

    for (int n = 0; n < HRA_OPERANDS; n++)
        bytes += is_copied(plan, pass, n) && !is_kept(plan, n) ? bytes_of(plan, n) : 0;
    return bytes;
}

size_t hra_slots_kept_bytes(const hra_plan *plan)
{
    size_t bytes = 0;

    for (int n = 0; n < HRA_OPERANDS; n++)
        bytes += is_kept(plan, n) ? bytes_of(plan, n) : 0;
    return bytes;
}

hra_status hra_slots_take(const hra_plan *plan, hra_pass pass, struct hra_operands *operands, char *memory,
                          char *saved, void *stream)
{
    const hra_problem *p = &plan->problem;
    const int64_t rows = plan->kernel_plan.rows;

    for (int n = 0; n < HRA_OPERANDS; n++) {
        hra_tensor *const given = &operands->tensor[n];
        const int heads = heads_of(p, n), dim = dim_of(p, n), kept = is_kept(plan, n);
        char **const at = kept ? &saved : &memory;
        if (!is_copied(plan, pass, n) || given->data == NULL)
            continue;
        const hra_tensor copy = copy_at(plan, n, *at);
        if (operand[n].role[pass] == READS && !(kept && pass == HRA_BACKWARD))
            HRA_TRY(plan->backend->reorder(plan->kernels, HRA_GATHER, type_of(p, n), given, &copy,
                                           plan->token, rows, heads, dim, stream));
        *given = copy;
        *at += bytes_of(plan, n);
    }
    return HRA_OK;
}

hra_status hra_slots_give(const hra_plan *plan, hra_pass pass, const struct hra_operands *given,
                          const struct hra_operands *copies, void *stream)
{
    const hra_problem *p = &plan->problem;

    for (int n = 0; n < HRA_OPERANDS; n++)
        if (operand[n].role[pass] == WRITES && is_copied(plan, pass, n) && given->tensor[n].data != NULL)
            HRA_TRY(plan->backend->reorder(plan->kernels, HRA_SCATTER, type_of(p, n), &given->tensor[n],
                                           &copies->tensor[n], plan->token, plan->kernel_plan.rows,
                                           heads_of(p, n), dim_of(p, n), stream));
    return HRA_OK;
}

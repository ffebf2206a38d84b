/* part.c - where a part of a schedule lies on its owner, and what it takes in messages and buffers. */
#include "src/plan.h"

int64_t hra_plan_part_row0(const hra_plan *plan, const struct hra_part *part)
{
    return plan->layout->tile[part->key_tile0].row0;
}

int64_t hra_plan_part_rows(const hra_plan *plan, const struct hra_part *part)
{
    const struct hra_tile_rows *last = &plan->layout->tile[part->key_tile1 - 1];
    return last->row0 + last->rows - hra_plan_part_row0(plan, part);
}

size_t hra_plan_payload_bytes(const hra_plan *plan, enum hra_payload payload, int64_t rows, int heads,
                              size_t *v_offset)
{
    const hra_problem *p = &plan->problem;
    const hra_type type = payload == HRA_KV ? p->type : hra_type_sums(p->type);
    const size_t channel = (size_t)p->batch * (size_t)heads * (size_t)rows * hra_type_bytes(type);
    const size_t k_bytes = hra_align(channel * (size_t)p->dim, 128);

    if (v_offset != NULL)
        *v_offset = k_bytes;
    return k_bytes + hra_align(channel * (size_t)p->dim_v, 128);
}

size_t hra_plan_part_bytes(const hra_plan *plan, const struct hra_part *part, enum hra_payload payload,
                           size_t *v_offset)
{
    return hra_plan_payload_bytes(plan, payload, hra_plan_part_rows(plan, part), part->head1 - part->head0,
                                  v_offset);
}

size_t hra_plan_move_bytes(const hra_plan *plan, const struct hra_schedule *s, const struct hra_move *move)
{
    size_t bytes = 0;

    for (int i = 0; i <= move->more; i++)
        bytes = hra_align(bytes, HRA_BUFFER_ALIGNMENT) +
                hra_plan_part_bytes(plan, &s->part[move->part + i], move->payload, NULL);
    return bytes;
}

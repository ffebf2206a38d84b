/* slots.h - the tensors of a call, brought from the order of tokens into that of slots, and back. */
#ifndef HRA_SRC_SLOTS_H
#define HRA_SRC_SLOTS_H

#include "src/plan.h"

enum hra_operand {
    HRA_Q,
    HRA_K,
    HRA_V,
    HRA_O,
    HRA_LSE,
    HRA_DO,
    HRA_DLSE,
    HRA_DQ,
    HRA_DK,
    HRA_DV,
    HRA_OPERANDS
};

/* What a call was given. lse and dlse are tensors of one channel; data NULL: there is none. */
struct hra_operands {
    hra_tensor tensor[HRA_OPERANDS];
};

/* lse or dlse as a tensor of the plan's own rows. */
hra_tensor hra_slots_of_rows(const hra_plan *plan, const void *data);

/* Bytes of the workspace that copies of a pass take, and of what forward keeps for backward. */
size_t hra_slots_bytes(const hra_plan *plan, hra_pass pass);
size_t hra_slots_kept_bytes(const hra_plan *plan);

/* Copy what the pass reads to `memory`, in slot order, q, k and v to `saved` where the plan keeps them, in which backward
 * finds them; in `operands` copies take the place of tensors that the backend does not take by token. */
hra_status hra_slots_take(const hra_plan *plan, hra_pass pass, struct hra_operands *operands, char *memory,
                          char *saved, void *stream);

/* Copy what the pass has written back to where the caller wants it. */
hra_status hra_slots_give(const hra_plan *plan, hra_pass pass, const struct hra_operands *given,
                          const struct hra_operands *copies, void *stream);

#endif

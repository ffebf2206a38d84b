/* attention.cpp - see attention.hpp. */
#include "attention.hpp"
#include "fail.hpp"

namespace
{
/* What the user wrote. Every rank reads it alike. */
void try_text(hra_status status)
{
    if (status == HRA_ERR_ARG || status == HRA_ERR_UNSUPPORTED)
        throw wrong(hra_last_error());
    try_hra(status);
}

order_handle make_order(const hra_domain &domain, const std::string &name)
{
    hra_order *out = nullptr;

    try_text(hra_order_create(&out, &domain, name.c_str()));
    return order_handle(out);
}

/* The user's mask, and causal: whoever sees the next byte need not learn to foretell it. */
mask_handle make_mask(const hra_domain &domain, const hra_order *order, const std::string &text)
{
    hra_mask *out = nullptr;

    try_text(hra_mask_parse(&out, &domain, order, text.c_str()));
    const mask_handle user(out);
    try_text(hra_mask_causal(&out, &domain));
    const mask_handle causal(out);
    try_text(hra_mask_and(&out, user.get(), causal.get()));
    return mask_handle(out);
}
} // namespace

attention::attention(device &d, group &tensor, group &context, const options &o)
    : dev(d), local_heads(o.heads / tensor.ranks), local_heads_kv(o.heads_kv / tensor.ranks), dim(o.dim()),
      batch(o.local_batch())
{
    hra_domain domain = HRA_DOMAIN_INIT;
    domain.batch = static_cast<int>(batch);
    domain.heads = static_cast<int>(o.heads); /* of the whole model */
    domain.tokens = o.tokens;
    const order_handle order = make_order(domain, o.order);
    const mask_handle mask = make_mask(domain, order.get(), o.mask);

    hra_problem problem = HRA_PROBLEM_INIT;
    problem.batch = static_cast<int>(batch);
    problem.heads = static_cast<int>(local_heads);
    problem.heads_kv = static_cast<int>(local_heads_kv);
    problem.head0 = static_cast<int>(tensor.rank * local_heads);
    problem.dim = static_cast<int>(dim);
    problem.tokens = o.tokens;
    problem.type = d.type;
    problem.threads = static_cast<int>(o.threads);
    hra_options how = HRA_OPTIONS_INIT;
    how.backend = d.backend;

    comm.reset(context.open_hra());
    hra_plan *made = nullptr;
    try_hra(hra_plan_create(&made, comm.get(), &problem, order.get(), mask.get(), &how));
    plan.reset(made);

    info.size = sizeof(info);
    try_hra(hra_plan_get_info(plan.get(), &info));
    tokens.resize(static_cast<size_t>(hra_plan_rows(plan.get(), context.rank)));
    try_hra(hra_plan_row_index(plan.get(), context.rank, nullptr, tokens.data()));
    workspace = buffer(d, static_cast<int64_t>(info.workspace_bytes), 1);
}

/* Heads from `first` on, in rows of row_width channels. */
hra_tensor attention::head_rows(void *first, int64_t row_width) const
{
    return {first, row_width, batch * row_width, dim};
}

void attention::forward(void *qkv, void *o, void *lse)
{
    const hra_tensor q = head_rows(qkv, width());
    const hra_tensor k = head_rows(number_at(qkv, local_heads * dim, dev.type), width());
    const hra_tensor v = head_rows(number_at(k.data, local_heads_kv * dim, dev.type), width());
    const hra_tensor out = head_rows(o, local_heads * dim);

    try_hra(hra_forward(plan.get(), &q, &k, &v, &out, lse, workspace, nullptr, dev.stream));
}

void attention::backward(void *qkv, void *o, void *lse, void *d_o, void *dqkv)
{
    const hra_tensor q = head_rows(qkv, width()), dq = head_rows(dqkv, width());
    const hra_tensor k = head_rows(number_at(qkv, local_heads * dim, dev.type), width());
    const hra_tensor v = head_rows(number_at(k.data, local_heads_kv * dim, dev.type), width());
    const hra_tensor dk = head_rows(number_at(dqkv, local_heads * dim, dev.type), width());
    const hra_tensor dv = head_rows(number_at(dk.data, local_heads_kv * dim, dev.type), width());
    const hra_tensor out = head_rows(o, local_heads * dim), d_out = head_rows(d_o, local_heads * dim);

    try_hra(hra_backward(plan.get(), &q, &k, &v, &out, lse, &d_out, nullptr, &dq, &dk, &dv, workspace,
                         nullptr, dev.stream));
}

void attention::wait()
{
    try_hra(hra_comm_wait(comm.get(), dev.stream));
}

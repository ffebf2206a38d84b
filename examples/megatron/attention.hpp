/* attention.hpp - the one place where this stack meets libhra.
 *
 * The ranks of a context group hold the rows of the same sequences. A tensor rank holds a run of heads, which
 * `head0` tells the plan, so that masks that differ between heads mean the same on every grid. Activations
 * are [row][sequence][channel], Megatron's order; libhra reads and writes them in place, by strides. */
#ifndef MEGATRON_ATTENTION_HPP
#define MEGATRON_ATTENTION_HPP

#include "options.hpp"

#include <vector>

/* Handles of libhra that end with their owner; a communicator on all its ranks together. */
template <auto destroy> struct destroyer {
    template <class T> void operator()(T *handle) const
    {
        static_cast<void>(destroy(handle));
    }
};
using comm_handle = std::unique_ptr<hra_comm, destroyer<hra_comm_destroy>>;
using order_handle = std::unique_ptr<hra_order, destroyer<hra_order_destroy>>;
using mask_handle = std::unique_ptr<hra_mask, destroyer<hra_mask_destroy>>;
using plan_handle = std::unique_ptr<hra_plan, destroyer<hra_plan_destroy>>;

class attention
{
  public:
    /* One plan for all layers and steps. Throws wrong for an order or a mask that is none. Collective over
     * context; so is the end of it. */
    attention(device &d, group &tensor, group &context, const options &o);

    int64_t heads() const /* of this tensor rank; as many as it has parts of queries */
    {
        return local_heads;
    }
    int64_t heads_kv() const
    {
        return local_heads_kv;
    }
    int64_t width() const /* channels of a row of qkv: [heads | heads_kv | heads_kv][dim] */
    {
        return (local_heads + 2 * local_heads_kv) * dim;
    }
    const std::vector<int64_t> &row_tokens() const /* the place in the sequence of each of this rank's rows */
    {
        return tokens;
    }
    const hra_plan_info &plan_info() const
    {
        return info;
    }

    /*  qkv, dqkv [rows][batch][width()]   o, d_o [rows][batch][heads][dim]   lse [batch][heads][rows] of sums
     * Collective over context. */
    void forward(void *qkv, void *o, void *lse);
    void backward(void *qkv, void *o, void *lse, void *d_o, void *dqkv);

    /* Wait for the device's stream; fails where libhra's communicator has failed or its time limit is over.
     * */
    void wait();

  private:
    device &dev;
    int64_t local_heads, local_heads_kv, dim, batch;
    comm_handle comm;
    plan_handle plan;
    hra_plan_info info = {};
    std::vector<int64_t> tokens;
    buffer workspace;

    hra_tensor head_rows(void *first, int64_t row_width) const;
};

#endif

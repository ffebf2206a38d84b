/* model.hpp - a transformer split over tensor and context ranks, and its gradients.
 *
 *     x  = embed(byte)                                          [rows][batch][channels]
 *     x += row . attention(rope(column . norm(x)))              layers times, with
 *     x += row . swiglu(column . norm(x))                       norm(x) = g x / rms(x)
 *     loss = mean of -ln softmax(column . norm(x)) at the next byte
 *
 * `column` is column-parallel: each tensor rank has a part of the outputs. `row` is row-parallel: it has a
 * part of the inputs, and the ranks add up what they get. The vocabulary is split likewise. Context ranks
 * have their own rows, on which everything but attention works alone. */
#ifndef MEGATRON_MODEL_HPP
#define MEGATRON_MODEL_HPP

#include "attention.hpp"
#include "text.hpp"

#include <string>
#include <vector>

constexpr int64_t VOCABULARY = 256;

enum class split { none, rows, columns }; /* which axis of a weight is shared out over the tensor ranks */

/* A weight as it is in the whole model, and the part of it that this rank has. */
struct weight {
    std::string name;
    int64_t rows, columns; /* of the whole weight: outputs and inputs */
    split how;
    double deviation; /* of the normal distribution that it begins with; 0: ones, and it does not decay */
    int64_t row0 = 0, row1 = 0, column0 = 0, column1 = 0; /* our part: row0 <= row < row1 */
    int64_t at = 0;                                       /* where it begins in the arrays of all weights */

    int64_t count() const
    {
        return (row1 - row0) * (column1 - column0);
    }
};

/* All weights of this rank, one behind the other, with what AdamW keeps for each. */
class weights
{
  public:
    weights(device &d, group &tensor, std::vector<weight> all);

    /* Draw the first values. They depend on seed and place in the whole model only, and are rounded to
     * `drawn`. */
    void draw(int64_t seed, hra_type drawn);
    void advance(const adam &a);

    const std::vector<weight> &all() const
    {
        return list;
    }
    void *work(int64_t at) const /* of device.type: what products read */
    {
        return number_at(working, at, dev.type);
    }
    void *gradient(int64_t at) const /* of device.sums */
    {
        return number_at(gradients, at, dev.sums);
    }
    void *master(int64_t at) const /* of device.sums: what training changes */
    {
        return number_at(masters, at, dev.sums);
    }
    int64_t count() const
    {
        return numbers;
    }
    int64_t whole_count() const; /* of the whole model */

  private:
    device &dev;
    std::vector<weight> list;
    int64_t numbers = 0;
    buffer working, masters, gradients, first, second;
};

/* A product with a weight that is split over tensor ranks. `in` and `out` are what this rank has of them. */
struct linear {
    int64_t at, in, out;
    split how; /* rows: column-parallel; columns: row-parallel */
};

struct layer {
    int64_t norm1, norm2; /* where their g is */
    linear qkv, project, up, down;
    /* what forward keeps for backward, [rows * batch][...] */
    buffer x, n1, inverse1, heads, o, lse, mid, n2, inverse2, hidden, active;
};

class model
{
  public:
    weights parameters;

    /* Not collective. */
    model(device &d, grid &g, attention &a, const options &o);

    /* The mean loss of the whole batch over all ranks. The feed is that of attention.row_tokens(). With
     * backward, the gradients of the parameters are those of that loss, added up over all ranks. Collective
     * over the grid; waits. */
    double run(const feed &f, bool backward);

  private:
    device &dev;
    grid &ranks;
    attention &attend;
    int64_t local_rows; /* of this rank, of all its sequences */
    int64_t batch, channels, hidden, dim;
    int64_t first_byte, bytes; /* our part of the vocabulary */
    double share;              /* of a row in the mean loss */
    int64_t embedding, norm3;
    linear head;
    std::vector<layer> layers;
    buffer input, target, turn;
    buffer x, n, inverse, logits, most, sum, loss, mean; /* forward behind the last layer */
    buffer dx, dn, d_o, dheads, dactive, dhidden, y;

    void forward(const linear &l, void *to, void *from);
    void backward(const linear &l, void *dfrom, void *dto, void *from);
    void forward(layer &l, void *next);
    void backward(layer &l);
    void forward_loss();
    void take_buffers();
    void fill_turns();
};

#endif

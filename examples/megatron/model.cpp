/* model.cpp - see model.hpp. */
#include "model.hpp"
#include "fail.hpp"

#include <cmath>

/* ---- Weights ------------------------------------------------------------------------------- */

/* Part `rank` of count things shared out over `ranks`. */
static int64_t part_begin(int64_t count, int rank, int ranks)
{
    return count * rank / ranks;
}

weights::weights(device &d, group &tensor, std::vector<weight> all) : dev(d), list(std::move(all))
{
    for (weight &w : list) {
        const bool by_rows = w.how == split::rows, by_columns = w.how == split::columns;
        w.row0 = by_rows ? part_begin(w.rows, tensor.rank, tensor.ranks) : 0;
        w.row1 = by_rows ? part_begin(w.rows, tensor.rank + 1, tensor.ranks) : w.rows;
        w.column0 = by_columns ? part_begin(w.columns, tensor.rank, tensor.ranks) : 0;
        w.column1 = by_columns ? part_begin(w.columns, tensor.rank + 1, tensor.ranks) : w.columns;
        w.at = numbers;
        numbers += w.count();
    }
    working = buffer(d, numbers, d.type);
    for (buffer *b : {&masters, &gradients, &first, &second})
        *b = buffer(d, numbers, d.sums);
}

int64_t weights::whole_count() const
{
    int64_t sum = 0;

    for (const weight &w : list)
        sum += w.rows * w.columns;
    return sum;
}

/* Normal, by Box and Muller (1958). */
static double draw_normal(int64_t seed, uint64_t stream, int64_t index)
{
    const double u = 1 - random_uniform(seed, stream, static_cast<uint64_t>(2 * index));
    const double v = random_uniform(seed, stream, static_cast<uint64_t>(2 * index + 1));

    return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::acos(-1.0) * v);
}

void weights::draw(int64_t seed, hra_type drawn)
{
    for (size_t n = 0; n < list.size(); n++) {
        const weight &w = list[n];
        const size_t count = static_cast<size_t>(w.count());
        std::vector<double> value, rounded(count); /* rounded: room for any type */
        value.reserve(count);
        for (int64_t r = w.row0; r < w.row1; r++)
            for (int64_t c = w.column0; c < w.column1; c++)
                value.push_back(w.deviation == 0 ? 1 : w.deviation * draw_normal(seed, n, r * w.columns + c));

        try_hra(hra_convert(rounded.data(), drawn, value.data(), HRA_F64, w.count()));
        try_hra(hra_convert(value.data(), HRA_F64, rounded.data(), drawn, w.count()));
        for (const auto &[there, type] :
             {std::pair(master(w.at), dev.sums), std::pair(work(w.at), dev.type)}) {
            try_hra(hra_convert(rounded.data(), type, value.data(), HRA_F64, w.count()));
            dev.write(there, rounded.data(), count * hra_type_bytes(type));
        }
    }
}

void weights::advance(const adam &a)
{
    for (const weight &w : list) {
        adam one = a;
        one.decay = w.deviation == 0 ? 0 : a.decay;
        dev.step(master(w.at), number_at(first, w.at, dev.sums), number_at(second, w.at, dev.sums),
                 work(w.at), gradient(w.at), w.count(), one);
    }
}

/* Every weight of the model. Those of one product follow one another: q, k, v; gate, up. */
static std::vector<weight> list_weights(const options &o)
{
    const double in = 1 / std::sqrt(static_cast<double>(o.channels));
    const double into_sum = 1 / std::sqrt(2.0 * static_cast<double>(o.layers));
    const int64_t c = o.channels, kv = o.heads_kv * o.dim();
    std::vector<weight> all = {{"embedding", VOCABULARY, c, split::rows, 0.1}};

    for (int64_t l = 0; l < o.layers; l++) {
        const std::string name = sentence("layer %lld ", static_cast<long long>(l));
        const double into_hidden = 1 / std::sqrt(static_cast<double>(o.hidden));
        all.push_back({name + "norm1", 1, c, split::none, 0});
        all.push_back({name + "q", c, c, split::rows, in});
        all.push_back({name + "k", kv, c, split::rows, in});
        all.push_back({name + "v", kv, c, split::rows, in});
        all.push_back({name + "project", c, c, split::columns, in * into_sum});
        all.push_back({name + "norm2", 1, c, split::none, 0});
        all.push_back({name + "gate", o.hidden, c, split::rows, in});
        all.push_back({name + "up", o.hidden, c, split::rows, in});
        all.push_back({name + "down", c, o.hidden, split::columns, into_hidden * into_sum});
    }
    all.push_back({"norm", 1, c, split::none, 0});
    all.push_back({"head", VOCABULARY, c, split::rows, 0.1 * in});
    return all;
}

/* ---- Making a model ------------------------------------------------------------------------ */

model::model(device &d, grid &g, attention &a, const options &o)
    : parameters(d, *g.tensor, list_weights(o)), dev(d), ranks(g), attend(a),
      local_rows(static_cast<int64_t>(a.row_tokens().size()) * o.local_batch()), batch(o.local_batch()),
      channels(o.channels), hidden(o.hidden / g.tensor->ranks), dim(o.dim()),
      share(1 / (static_cast<double>(o.tokens) * static_cast<double>(o.batch)))
{
    size_t next = 0;
    const auto take = [&] { return parameters.all()[next++]; };
    const auto column = [&](int parts) { /* outputs of `parts` weights that follow one another */
                                         const weight w = take();
                                         linear l = {w.at, channels, w.row1 - w.row0, split::rows};
                                         for (int i = 1; i < parts; i++) {
                                             const weight more = take();
                                             l.out += more.row1 - more.row0;
                                         }
                                         return l;
    };
    const auto row = [&] {
        const weight w = take();
        return linear{w.at, w.column1 - w.column0, channels, split::columns};
    };

    const weight table = take();
    embedding = table.at;
    first_byte = table.row0;
    bytes = table.row1 - table.row0;
    layers.resize(static_cast<size_t>(o.layers));
    for (layer &l : layers) {
        l.norm1 = take().at;
        l.qkv = column(3);
        l.project = row();
        l.norm2 = take().at;
        l.up = column(2);
        l.down = row();
    }
    norm3 = take().at;
    head = column(1);
    take_buffers();
    fill_turns();
}

void model::take_buffers()
{
    const int64_t o_width = attend.heads() * dim;
    const auto rows_of = [&](int64_t width, hra_type type) { return buffer(dev, local_rows * width, type); };

    for (layer &l : layers) {
        for (buffer *b : {&l.x, &l.n1, &l.mid, &l.n2})
            *b = rows_of(channels, dev.type);
        l.inverse1 = rows_of(1, dev.sums);
        l.inverse2 = rows_of(1, dev.sums);
        l.heads = rows_of(attend.width(), dev.type);
        l.o = rows_of(o_width, dev.type);
        l.lse = rows_of(attend.heads(), dev.sums);
        l.hidden = rows_of(2 * hidden, dev.type);
        l.active = rows_of(hidden, dev.type);
    }
    for (buffer *b : {&x, &n, &dx, &dn, &y})
        *b = rows_of(channels, dev.type);
    for (buffer *b : {&inverse, &most, &loss})
        *b = rows_of(1, dev.sums);
    sum = rows_of(2, dev.sums);
    logits = rows_of(bytes, dev.type);
    d_o = rows_of(o_width, dev.type);
    dheads = rows_of(attend.width(), dev.type);
    dactive = rows_of(hidden, dev.type);
    dhidden = rows_of(2 * hidden, dev.type);
    input = buffer(dev, local_rows, sizeof(int32_t));
    target = buffer(dev, local_rows, sizeof(int32_t));
    mean = buffer(dev, 1, HRA_F64);
}

/* The angles of the rotary encoding (Su et al. 2021) of each row. A row's place in its sequence is the
 * token that the plan names, not its number: rows are spread over the ranks in any order. */
void model::fill_turns()
{
    const std::vector<int64_t> &tokens = attend.row_tokens();
    const int64_t count = static_cast<int64_t>(tokens.size()) * dim;
    std::vector<double> value, rounded(static_cast<size_t>(count));

    for (int64_t token : tokens)
        for (int64_t p = 0; p < dim; p += 2) {
            const double angle = static_cast<double>(token) *
                                 std::pow(10000, -static_cast<double>(p) / static_cast<double>(dim));
            value.push_back(std::cos(angle));
            value.push_back(std::sin(angle));
        }
    turn = buffer(dev, count, dev.sums);
    if (count == 0)
        return;
    try_hra(hra_convert(rounded.data(), dev.sums, value.data(), HRA_F64, count));
    dev.write(turn, rounded.data(), static_cast<size_t>(count) * hra_type_bytes(dev.sums));
}

/* ---- Forward and backward ------------------------------------------------------------------ */

/* Column-parallel: all inputs, our outputs. Row-parallel: our inputs, and a sum over the ranks. */
void model::forward(const linear &l, void *to, void *from)
{
    dev.linear(to, from, parameters.work(l.at), local_rows, l.in, l.out);
    if (l.how == split::columns)
        ranks.tensor->all_reduce(to, local_rows * l.out, dev.type, reduction::sum);
}

/* What the outputs of one rank give to the inputs' gradient is a part of it where the inputs are all
 * ranks'. */
void model::backward(const linear &l, void *dfrom, void *dto, void *from)
{
    dev.linear_weight(parameters.gradient(l.at), dto, from, local_rows, l.in, l.out);
    dev.linear_input(dfrom, dto, parameters.work(l.at), local_rows, l.in, l.out);
    if (l.how == split::rows)
        ranks.tensor->all_reduce(dfrom, local_rows * l.in, dev.type, reduction::sum);
}

void model::forward(layer &l, void *next)
{
    const int64_t tokens = local_rows / batch, turned = attend.heads() + attend.heads_kv();

    dev.norm(l.n1, l.inverse1, l.x, parameters.work(l.norm1), local_rows, channels);
    forward(l.qkv, l.heads, l.n1);
    dev.rope(l.heads, turn, tokens, batch, attend.width(), turned, dim, 1);
    attend.forward(l.heads, l.o, l.lse);
    forward(l.project, y, l.o);
    dev.add(l.mid, l.x, y, local_rows * channels);

    dev.norm(l.n2, l.inverse2, l.mid, parameters.work(l.norm2), local_rows, channels);
    forward(l.up, l.hidden, l.n2);
    dev.swiglu(l.active, l.hidden, local_rows, hidden);
    forward(l.down, y, l.active);
    dev.add(next, l.mid, y, local_rows * channels);
}

/* dx: the gradient of the layer's output, then of its input. */
void model::backward(layer &l)
{
    const int64_t tokens = local_rows / batch, turned = attend.heads() + attend.heads_kv();

    backward(l.down, dactive, dx, l.active);
    dev.swiglu_back(dhidden, dactive, l.hidden, local_rows, hidden);
    backward(l.up, dn, dhidden, l.n2);
    dev.norm_back(dx, parameters.gradient(l.norm2), dn, l.mid, l.inverse2, parameters.work(l.norm2),
                  local_rows, channels);

    backward(l.project, d_o, dx, l.o);
    attend.backward(l.heads, l.o, l.lse, d_o, dheads);
    dev.rope(dheads, turn, tokens, batch, attend.width(), turned, dim, -1);
    backward(l.qkv, dn, dheads, l.n1);
    dev.norm_back(dx, parameters.gradient(l.norm1), dn, l.x, l.inverse1, parameters.work(l.norm1), local_rows,
                  channels);
}

/* logits become their own gradient. Of each row's softmax the ranks exchange three numbers, not the logits.
 * */
void model::forward_loss()
{
    const int32_t first = static_cast<int32_t>(first_byte), *wanted = target.as<int32_t>();

    forward(head, logits, n);
    dev.entropy_most(most, logits, local_rows, bytes);
    ranks.tensor->all_reduce(most, local_rows, dev.sums, reduction::most);
    dev.entropy_sum(sum, logits, most, wanted, local_rows, bytes, first);
    ranks.tensor->all_reduce(sum, 2 * local_rows, dev.sums, reduction::sum);
    dev.entropy_loss(loss, logits, most, sum, wanted, local_rows, bytes, first, share);
    dev.total(mean.as<double>(), loss, local_rows);
    ranks.replica->all_reduce(mean, 1, HRA_F64, reduction::sum);
}

double model::run(const feed &f, bool backward_too)
{
    const size_t id_bytes = static_cast<size_t>(local_rows) * sizeof(int32_t);
    const int32_t first = static_cast<int32_t>(first_byte), count = static_cast<int32_t>(bytes);
    double all = 0;

    dev.write(input, f.input.data(), id_bytes);
    dev.write(target, f.target.data(), id_bytes);
    dev.embed(layers[0].x, parameters.work(embedding), input.as<int32_t>(), local_rows, channels, first,
              count);
    ranks.tensor->all_reduce(layers[0].x, local_rows * channels, dev.type, reduction::sum);
    for (size_t l = 0; l < layers.size(); l++)
        forward(layers[l], l + 1 < layers.size() ? layers[l + 1].x : x);
    dev.norm(n, inverse, x, parameters.work(norm3), local_rows, channels);
    forward_loss();

    if (backward_too) {
        const size_t gradient_bytes = static_cast<size_t>(parameters.count()) * hra_type_bytes(dev.sums);
        dev.zero(parameters.gradient(0), gradient_bytes);
        dev.zero(dx, static_cast<size_t>(local_rows * channels) * hra_type_bytes(dev.type));
        backward(head, dn, logits, n);
        dev.norm_back(dx, parameters.gradient(norm3), dn, x, inverse, parameters.work(norm3), local_rows,
                      channels);
        for (size_t l = layers.size(); l-- > 0;)
            backward(layers[l]);
        dev.embed_back(parameters.gradient(embedding), dx, input.as<int32_t>(), local_rows, channels, first,
                       count);
        ranks.replica->all_reduce(parameters.gradient(0), parameters.count(), dev.sums, reduction::sum);
    }
    attend.wait();
    dev.read(&all, mean, sizeof(all));
    return all * share;
}

/* cpu.cpp - the device that is this machine's processors: OpenBLAS for products, plain loops for the rest.
 *
 * T is what tensors hold, S in what is computed: float and float, double and double, or bf16 and float.
 * Sums over rows are kept in double, so that ranks that hold different rows arrive at nearly the same
 * gradient. */
#include "device.hpp"
#include "fail.hpp"

#include <cblas.h>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

namespace
{
/* The upper half of an f32. */
struct bf16 {
    uint16_t bits;
};

float get(float x)
{
    return x;
}

double get(double x)
{
    return x;
}

float get(bf16 x)
{
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

void put(float &to, float x)
{
    to = x;
}

void put(double &to, double x)
{
    to = x;
}

/* To nearest, ties to even; a NaN stays one. */
void put(bf16 &to, float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    to.bits =
        static_cast<uint16_t>(std::isnan(x) ? bits >> 16 | 0x40 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* c [m][n] = a b + beta c, for a [m][k] and b [k][n], or their transposes where said. */
void product(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int64_t m, int64_t n, int64_t k, const float *a,
             const float *b, float beta, float *c)
{
    cblas_sgemm(CblasRowMajor, ta, tb, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1, a,
                static_cast<int>(ta == CblasTrans ? m : k), b, static_cast<int>(tb == CblasTrans ? k : n),
                beta, c, static_cast<int>(n));
}

void product(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int64_t m, int64_t n, int64_t k, const double *a,
             const double *b, double beta, double *c)
{
    cblas_dgemm(CblasRowMajor, ta, tb, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1, a,
                static_cast<int>(ta == CblasTrans ? m : k), b, static_cast<int>(tb == CblasTrans ? k : n),
                beta, c, static_cast<int>(n));
}

template <class T, class S> class cpu_device : public device
{
  public:
    explicit cpu_device(hra_type type) : device(type, HRA_BACKEND_CPU, nullptr)
    {
    }

    void *take(size_t bytes) override
    {
        void *memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);

        if (memory == nullptr)
            fail(sentence("no memory for %zu bytes", bytes));
        return std::memset(memory, 0, bytes);
    }
    void give(void *memory) noexcept override
    {
        std::free(memory);
    }
    void zero(void *memory, size_t bytes) override
    {
        std::memset(memory, 0, bytes);
    }
    void write(void *there, const void *here, size_t bytes) override
    {
        if (bytes > 0) /* a rank without rows has nothing, at no address */
            std::memcpy(there, here, bytes);
    }
    void read(void *here, const void *there, size_t bytes) override
    {
        std::memcpy(here, there, bytes);
    }

    void linear(void *y, const void *x, const void *w, int64_t rows, int64_t in, int64_t out) override
    {
        if (rows == 0)
            return;
        S *wide = result(y, rows * out);
        product(CblasNoTrans, CblasTrans, rows, out, in, widen(x, rows * in, room[0]),
                widen(w, out * in, room[1]), S(0), wide);
        narrow(y, wide, rows * out);
    }
    void linear_input(void *dx, const void *dy, const void *w, int64_t rows, int64_t in, int64_t out) override
    {
        if (rows == 0)
            return;
        S *wide = result(dx, rows * in);
        product(CblasNoTrans, CblasNoTrans, rows, in, out, widen(dy, rows * out, room[0]),
                widen(w, out * in, room[1]), S(0), wide);
        narrow(dx, wide, rows * in);
    }
    void linear_weight(void *dw, const void *dy, const void *x, int64_t rows, int64_t in,
                       int64_t out) override
    {
        if (rows > 0)
            product(CblasTrans, CblasNoTrans, out, in, rows, widen(dy, rows * out, room[0]),
                    widen(x, rows * in, room[1]), S(1), static_cast<S *>(dw));
    }

    void embed(void *x, const void *table, const int32_t *byte, int64_t rows, int64_t n, int32_t first,
               int32_t count) override
    {
        for (int64_t i = 0; i < rows; i++) {
            T *to = static_cast<T *>(x) + i * n;
            const int64_t b = byte[i] - first;
            if (b >= 0 && b < count)
                std::memcpy(to, static_cast<const T *>(table) + b * n, static_cast<size_t>(n) * sizeof(T));
            else
                std::memset(to, 0, static_cast<size_t>(n) * sizeof(T));
        }
    }
    void embed_back(void *dtable, const void *dx, const int32_t *byte, int64_t rows, int64_t n, int32_t first,
                    int32_t count) override
    {
        for (int64_t i = 0; i < rows; i++) {
            const T *from = static_cast<const T *>(dx) + i * n;
            const int64_t b = byte[i] - first;
            if (b < 0 || b >= count)
                continue;
            for (int64_t c = 0; c < n; c++)
                static_cast<S *>(dtable)[b * n + c] += get(from[c]);
        }
    }

    void norm(void *y_, void *inverse, const void *x_, const void *g_, int64_t rows, int64_t n) override
    {
        const T *x = static_cast<const T *>(x_), *g = static_cast<const T *>(g_);
        T *y = static_cast<T *>(y_);

        for (int64_t i = 0; i < rows; i++, x += n, y += n) {
            S square = 0;
            for (int64_t c = 0; c < n; c++)
                square += get(x[c]) * get(x[c]);
            const S r = 1 / std::sqrt(square / static_cast<S>(n) + static_cast<S>(NORM_EPSILON));
            for (int64_t c = 0; c < n; c++)
                put(y[c], get(x[c]) * r * get(g[c]));
            static_cast<S *>(inverse)[i] = r;
        }
    }
    void norm_back(void *dx_, void *dg, const void *dy_, const void *x_, const void *inverse, const void *g_,
                   int64_t rows, int64_t n) override
    {
        const T *x = static_cast<const T *>(x_), *dy = static_cast<const T *>(dy_),
                *g = static_cast<const T *>(g_);
        T *dx = static_cast<T *>(dx_);
        std::vector<double> sum(static_cast<size_t>(n));

        for (int64_t i = 0; i < rows; i++, x += n, dy += n, dx += n) {
            const S r = static_cast<const S *>(inverse)[i];
            S dot = 0;
            for (int64_t c = 0; c < n; c++)
                dot += get(dy[c]) * get(g[c]) * get(x[c]);
            const S back = dot * r * r * r / static_cast<S>(n);
            for (int64_t c = 0; c < n; c++) {
                put(dx[c], get(dx[c]) + get(dy[c]) * get(g[c]) * r - get(x[c]) * back);
                sum[static_cast<size_t>(c)] += get(dy[c]) * get(x[c]) * r;
            }
        }
        for (int64_t c = 0; c < n; c++)
            static_cast<S *>(dg)[c] += static_cast<S>(sum[static_cast<size_t>(c)]);
    }

    void rope(void *x, const void *turn, int64_t rows, int64_t batch, int64_t width, int64_t heads,
              int64_t dim, int direction) override
    {
        for (int64_t i = 0; i < rows * batch; i++) {
            const S *angle = static_cast<const S *>(turn) + i / batch * dim;
            for (int64_t h = 0; h < heads; h++) {
                T *c = static_cast<T *>(x) + i * width + h * dim;
                for (int64_t p = 0; p < dim; p += 2) {
                    const S a = get(c[p]), b = get(c[p + 1]);
                    const S cosine = angle[p], sine = static_cast<S>(direction) * angle[p + 1];
                    put(c[p], a * cosine - b * sine);
                    put(c[p + 1], a * sine + b * cosine);
                }
            }
        }
    }

    void swiglu(void *y, const void *h, int64_t rows, int64_t n) override
    {
        for (int64_t i = 0; i < rows; i++) {
            const T *gate = static_cast<const T *>(h) + 2 * i * n, *up = gate + n;
            for (int64_t c = 0; c < n; c++)
                put(static_cast<T *>(y)[i * n + c],
                    get(gate[c]) / (1 + std::exp(-get(gate[c]))) * get(up[c]));
        }
    }
    void swiglu_back(void *dh, const void *dy, const void *h, int64_t rows, int64_t n) override
    {
        for (int64_t i = 0; i < rows; i++) {
            const T *gate = static_cast<const T *>(h) + 2 * i * n, *up = gate + n;
            T *dgate = static_cast<T *>(dh) + 2 * i * n, *dup = dgate + n;
            for (int64_t c = 0; c < n; c++) {
                const S d = get(static_cast<const T *>(dy)[i * n + c]), x = get(gate[c]);
                const S s = 1 / (1 + std::exp(-x));
                put(dgate[c], d * get(up[c]) * s * (1 + x * (1 - s)));
                put(dup[c], d * x * s);
            }
        }
    }

    void add(void *out, const void *a, const void *b, int64_t count) override
    {
        for (int64_t i = 0; i < count; i++)
            put(static_cast<T *>(out)[i],
                get(static_cast<const T *>(a)[i]) + get(static_cast<const T *>(b)[i]));
    }

    void entropy_most(void *most, const void *logits, int64_t rows, int64_t n) override
    {
        for (int64_t i = 0; i < rows; i++) {
            const T *y = static_cast<const T *>(logits) + i * n;
            S largest = get(y[0]);
            for (int64_t c = 1; c < n; c++)
                largest = std::fmax(largest, get(y[c]));
            static_cast<S *>(most)[i] = largest;
        }
    }
    void entropy_sum(void *sum, const void *logits, const void *most, const int32_t *target, int64_t rows,
                     int64_t n, int32_t first) override
    {
        for (int64_t i = 0; i < rows; i++) {
            const T *y = static_cast<const T *>(logits) + i * n;
            const int64_t t = target[i] - first;
            S all = 0;
            for (int64_t c = 0; c < n; c++)
                all += std::exp(get(y[c]) - static_cast<const S *>(most)[i]);
            static_cast<S *>(sum)[i] = all;
            static_cast<S *>(sum)[rows + i] = t >= 0 && t < n ? get(y[t]) : 0;
        }
    }
    void entropy_loss(void *loss, void *logits, const void *most_, const void *sum_, const int32_t *target,
                      int64_t rows, int64_t n, int32_t first, double share) override
    {
        const S *most = static_cast<const S *>(most_), *sum = static_cast<const S *>(sum_);

        for (int64_t i = 0; i < rows; i++) {
            T *y = static_cast<T *>(logits) + i * n;
            static_cast<S *>(loss)[i] = std::log(sum[i]) + most[i] - sum[rows + i];
            for (int64_t c = 0; c < n; c++) {
                const S p = std::exp(get(y[c]) - most[i]) / sum[i];
                put(y[c], static_cast<S>(share) * (p - static_cast<S>(c == target[i] - first)));
            }
        }
    }

    void total(double *out, const void *x, int64_t count) override
    {
        *out = 0;
        for (int64_t i = 0; i < count; i++)
            *out += static_cast<const S *>(x)[i];
    }

    void step(void *master_, void *first_, void *second_, void *work, const void *gradient, int64_t count,
              const adam &a) override
    {
        const S rate = static_cast<S>(a.rate), keep = static_cast<S>(1 - a.rate * a.decay);
        const S b1 = static_cast<S>(BETA1), b2 = static_cast<S>(BETA2);
        S *master = static_cast<S *>(master_), *first = static_cast<S *>(first_),
          *second = static_cast<S *>(second_);

        for (int64_t i = 0; i < count; i++) {
            const S g = static_cast<const S *>(gradient)[i];
            first[i] = b1 * first[i] + (1 - b1) * g;
            second[i] = b2 * second[i] + (1 - b2) * g * g;
            const S root = std::sqrt(second[i] * static_cast<S>(a.unbiased_square));
            master[i] = keep * master[i] -
                        rate * first[i] * static_cast<S>(a.unbiased) / (root + static_cast<S>(EPSILON));
            put(static_cast<T *>(work)[i], master[i]);
        }
    }

  private:
    std::vector<S> room[3]; /* bf16 tensors widened for a product: its factors and its result */

    const S *widen(const void *x, int64_t count, std::vector<S> &to)
    {
        if constexpr (std::is_same_v<T, S>)
            return static_cast<const S *>(x);
        to.resize(static_cast<size_t>(count));
        for (size_t i = 0; i < to.size(); i++)
            to[i] = static_cast<S>(get(static_cast<const T *>(x)[i]));
        return to.data();
    }
    /* Where a product is computed whose result goes to y. */
    S *result(void *y, int64_t count)
    {
        if constexpr (std::is_same_v<T, S>)
            return static_cast<S *>(y);
        room[2].resize(static_cast<size_t>(count));
        return room[2].data();
    }
    void narrow(void *y, const S *wide, int64_t count)
    {
        if constexpr (!std::is_same_v<T, S>)
            for (int64_t i = 0; i < count; i++)
                put(static_cast<T *>(y)[i], wide[i]);
    }
};
} // namespace

std::unique_ptr<device> open_cpu(hra_type type, int threads)
{
    openblas_set_num_threads(threads);
    if (type == HRA_F64)
        return std::make_unique<cpu_device<double, double>>(type);
    if (type == HRA_BF16)
        return std::make_unique<cpu_device<bf16, float>>(type);
    return std::make_unique<cpu_device<float, float>>(type);
}

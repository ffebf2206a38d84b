/* device.hpp - what the model asks of the machine that it runs on: memory, products, work on rows.
 *
 * Two classes implement it: cpu.cpp with OpenBLAS, cuda.cu with cuBLAS. A pointer of type void * is memory of
 * the device. Activations and the weights that products read are of `type`; gradients, master weights and
 * statistics of rows are of `sums`: f32, but f64 where type is f64. All matrices are row-major. Work is done
 * in the order of calls; on a GPU it is enqueued on one stream, and only `read` waits. */
#ifndef MEGATRON_DEVICE_HPP
#define MEGATRON_DEVICE_HPP

#include <hra/hra.h>
#include <memory>
#include <utility>

/* What one step of AdamW (Loshchilov and Hutter 2019) takes beside the numbers. */
struct adam {
    double rate;     /* of this step */
    double decay;    /* of the weight, times rate */
    double unbiased; /* 1 / (1 - beta1^step) */
    double unbiased_square;
};

/* beta2 forgets fast, since runs here are short. EPSILON lies above the rounding errors of gradients in
 * f32, which would else be blown up to whole steps where a gradient is 0. */
constexpr double BETA1 = 0.9, BETA2 = 0.95, EPSILON = 1e-6;
constexpr double NORM_EPSILON = 1e-6;

class device
{
  public:
    const hra_type type, sums;
    const hra_backend_kind backend; /* libhra's: HRA_BACKEND_CPU, or _GPU: the best on the GPU */
    void *const stream; /* what libhra and NCCL are given: the device's own cudaStream_t; NULL on CPUs */

    virtual ~device() = default;
    device(const device &) = delete;
    device &operator=(const device &) = delete;

    virtual void *take(size_t bytes) = 0; /* zeros; aligned as libhra wants its workspace */
    virtual void give(void *memory) noexcept = 0;
    virtual void zero(void *memory, size_t bytes) = 0;
    virtual void write(void *there, const void *here, size_t bytes) = 0;
    virtual void read(void *here, const void *there, size_t bytes) = 0;

    /* y = x w^T, and its gradients: dx = dy w, dw += dy^T x.
     *   x [rows][in], y [rows][out], w [out][in] of type; dw [out][in] of sums */
    virtual void linear(void *y, const void *x, const void *w, int64_t rows, int64_t in, int64_t out) = 0;
    virtual void linear_input(void *dx, const void *dy, const void *w, int64_t rows, int64_t in,
                              int64_t out) = 0;
    virtual void linear_weight(void *dw, const void *dy, const void *x, int64_t rows, int64_t in,
                               int64_t out) = 0;

    /* x [rows][n] = table row of byte[i], for the part `first` .. first + count - 1 of the vocabulary that
     * the table [count][n] holds, and 0 for other bytes. dtable (sums) += its gradient. */
    virtual void embed(void *x, const void *table, const int32_t *byte, int64_t rows, int64_t n,
                       int32_t first, int32_t count) = 0;
    virtual void embed_back(void *dtable, const void *dx, const int32_t *byte, int64_t rows, int64_t n,
                            int32_t first, int32_t count) = 0;

    /* y = g x / rms(x) row by row (Zhang and Sennrich 2019); inverse [rows] of sums keeps 1 / rms. dx +=, dg
     * (sums) += the gradients. x, y [rows][n]; g [n] */
    virtual void norm(void *y, void *inverse, const void *x, const void *g, int64_t rows, int64_t n) = 0;
    virtual void norm_back(void *dx, void *dg, const void *dy, const void *x, const void *inverse,
                           const void *g, int64_t rows, int64_t n) = 0;

    /* Turn the channel pairs (2p, 2p + 1) of the first `heads` heads in each row of x [rows * batch][width]
     * by the angle of its token; turn [rows][dim / 2] {cosine, sine} of sums. direction -1 turns back: the
     * gradient. */
    virtual void rope(void *x, const void *turn, int64_t rows, int64_t batch, int64_t width, int64_t heads,
                      int64_t dim, int direction) = 0;

    /* y [rows][n] = silu(gate) up, for h [rows][2][n] = {gate, up} (Shazeer 2020), and dh from dy. */
    virtual void swiglu(void *y, const void *h, int64_t rows, int64_t n) = 0;
    virtual void swiglu_back(void *dh, const void *dy, const void *h, int64_t rows, int64_t n) = 0;

    virtual void add(void *out, const void *a, const void *b, int64_t count) = 0;

    /* Cross-entropy over a vocabulary of which we hold the part first .. first + n - 1, in three steps
     * between which the ranks that hold the other parts are asked. logits [rows][n]; the rest of sums:
     *   most [rows]  largest logit;   sum [2][rows]  sum of exp(logit - most), and the target's logit or 0
     *   loss [rows]  ln sum + most - target's logit;   logits become share x the loss's gradient */
    virtual void entropy_most(void *most, const void *logits, int64_t rows, int64_t n) = 0;
    virtual void entropy_sum(void *sum, const void *logits, const void *most, const int32_t *target,
                             int64_t rows, int64_t n, int32_t first) = 0;
    virtual void entropy_loss(void *loss, void *logits, const void *most, const void *sum,
                              const int32_t *target, int64_t rows, int64_t n, int32_t first,
                              double share) = 0;

    /* *out = the sum of x [count] of sums */
    virtual void total(double *out, const void *x, int64_t count) = 0;

    /* One step: master and the moments change by the gradient; work = master rounded to type. */
    virtual void step(void *master, void *first, void *second, void *work, const void *gradient,
                      int64_t count, const adam &a) = 0;

  protected:
    device(hra_type type, hra_backend_kind backend, void *stream)
        : type(type), sums(hra_type_sums(type)), backend(backend), stream(stream)
    {
    }
};

/* Memory of a device that lasts as long as this object. */
class buffer
{
  public:
    buffer() = default;
    buffer(device &d, int64_t count, size_t each)
        : from(&d), memory(d.take(static_cast<size_t>(count > 0 ? count : 1) * each))
    {
    }
    buffer(device &d, int64_t count, hra_type type) : buffer(d, count, hra_type_bytes(type))
    {
    }
    buffer(buffer &&other) noexcept
        : from(std::exchange(other.from, nullptr)), memory(std::exchange(other.memory, nullptr))
    {
    }
    buffer &operator=(buffer &&other) noexcept
    {
        std::swap(from, other.from);
        std::swap(memory, other.memory);
        return *this;
    }
    ~buffer()
    {
        if (from != nullptr)
            from->give(memory);
    }
    operator void *() const
    {
        return memory;
    }
    template <class N> N *as() const
    {
        return static_cast<N *>(memory);
    }

  private:
    device *from = nullptr;
    void *memory = nullptr;
};

/* The n-th number of an array. */
inline void *number_at(void *array, int64_t n, hra_type type)
{
    return static_cast<char *>(array) + n * static_cast<int64_t>(hra_type_bytes(type));
}

/* f32, f64 or bf16, products by `threads` threads. */
std::unique_ptr<device> open_cpu(hra_type type, int threads);

#ifdef MEGATRON_CUDA
/* f32 or bf16, on the GPU of this number, which becomes the current one. */
std::unique_ptr<device> open_cuda(hra_type type, int gpu);
int cuda_gpus(); /* on this node */
#endif

#endif

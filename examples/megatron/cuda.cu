/* cuda.cu - the device that is an NVIDIA GPU: cuBLAS for products, small kernels for the rest.
 *
 * T is what tensors hold, float or bf16; everything is computed in float. Kernels of rows take a block for
 * each row; the others a thread for each number. No kernel adds atomically, so that the same run gives the
 * same bits. */
#include "device.hpp"
#include "fail.hpp"

#include <algorithm>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <type_traits>

namespace
{
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int SIDE = 32; /* of the squares in which norm_dg works */

/* ---- Kernels ------------------------------------------------------------------------------- */

__device__ float get(float x)
{
    return x;
}

__device__ float get(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

__device__ void put(float &to, float x)
{
    to = x;
}

__device__ void put(__nv_bfloat16 &to, float x)
{
    to = __float2bfloat16_rn(x);
}

/* The sum of all threads' x, for each of them; N is float or double. The block has THREADS threads. */
template <class N> __device__ N block_sum(N x)
{
    __shared__ N part[WARPS];

    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffff, x, step);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < WARPS; w++)
        x += part[w];
    __syncthreads(); /* part may be written again */
    return x;
}

__device__ float block_most(float x)
{
    __shared__ float part[WARPS];

    for (int step = 16; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        x = fmaxf(x, part[w]);
    __syncthreads();
    return x;
}

__device__ int64_t thread_number()
{
    return static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
}

template <class T>
__global__ void embed_kernel(T *x, const T *table, const int32_t *byte, int64_t rows, int64_t n,
                             int32_t first, int32_t count)
{
    const int64_t i = thread_number();

    if (i >= rows * n)
        return;
    const int64_t b = byte[i / n] - first;
    put(x[i], b >= 0 && b < count ? get(table[b * n + i % n]) : 0.0f);
}

/* Block (b, piece of the channels): byte first + b looks for itself in all rows. */
template <class T>
__global__ void embed_back_kernel(float *dtable, const T *dx, const int32_t *byte, int64_t rows, int64_t n,
                                  int32_t first)
{
    const int64_t c = static_cast<int64_t>(blockIdx.y) * THREADS + threadIdx.x;
    const int32_t own = first + static_cast<int32_t>(blockIdx.x);
    float sum = 0;

    if (c >= n)
        return;
    for (int64_t i = 0; i < rows; i++)
        if (byte[i] == own)
            sum += get(dx[i * n + c]);
    dtable[blockIdx.x * n + c] += sum;
}

template <class T> __global__ void norm_kernel(T *y, float *inverse, const T *x, const T *g, int64_t n)
{
    const int64_t row = blockIdx.x;
    float square = 0;

    for (int64_t c = threadIdx.x; c < n; c += THREADS)
        square += get(x[row * n + c]) * get(x[row * n + c]);
    const float r = rsqrtf(block_sum(square) / static_cast<float>(n) + static_cast<float>(NORM_EPSILON));
    for (int64_t c = threadIdx.x; c < n; c += THREADS)
        put(y[row * n + c], get(x[row * n + c]) * r * get(g[c]));
    if (threadIdx.x == 0)
        inverse[row] = r;
}

template <class T>
__global__ void norm_dx_kernel(T *dx, const T *dy, const T *x, const float *inverse, const T *g, int64_t n)
{
    const int64_t row = blockIdx.x;
    const float r = inverse[row];
    float dot = 0;

    for (int64_t c = threadIdx.x; c < n; c += THREADS)
        dot += get(dy[row * n + c]) * get(g[c]) * get(x[row * n + c]);
    const float back = block_sum(dot) * r * r * r / static_cast<float>(n);
    for (int64_t c = threadIdx.x; c < n; c += THREADS) {
        const int64_t i = row * n + c;
        put(dx[i], get(dx[i]) + get(dy[i]) * get(g[c]) * r - get(x[i]) * back);
    }
}

/* A block of SIDE x SIDE threads has SIDE channels; its lines of threads share out the rows. */
template <class T>
__global__ void norm_dg_kernel(float *dg, const T *dy, const T *x, const float *inverse, int64_t rows,
                               int64_t n)
{
    __shared__ float part[SIDE][SIDE];
    const int64_t c = static_cast<int64_t>(blockIdx.x) * SIDE + threadIdx.x;
    float sum = 0;

    for (int64_t i = threadIdx.y; c < n && i < rows; i += SIDE)
        sum += get(dy[i * n + c]) * get(x[i * n + c]) * inverse[i];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || c >= n)
        return;
    for (int line = 1; line < SIDE; line++)
        sum += part[line][threadIdx.x];
    dg[c] += sum;
}

/* A thread turns a pair: `pairs` in a head, `turned` in the heads of a row. */
template <class T>
__global__ void rope_kernel(T *x, const float2 *turn, int64_t rows, int64_t batch, int64_t width,
                            int64_t turned, int64_t pairs, float direction)
{
    const int64_t i = thread_number(), row = i / turned, pair = i % turned;

    if (row >= rows * batch)
        return;
    T *c = x + row * width + 2 * pair;
    const float2 angle = turn[row / batch * pairs + pair % pairs];
    const float a = get(c[0]), b = get(c[1]), sine = direction * angle.y;
    put(c[0], a * angle.x - b * sine);
    put(c[1], a * sine + b * angle.x);
}

template <class T> __global__ void swiglu_kernel(T *y, const T *h, int64_t rows, int64_t n)
{
    const int64_t i = thread_number();

    if (i >= rows * n)
        return;
    const int64_t at = i / n * 2 * n + i % n;
    const float gate = get(h[at]);
    put(y[i], gate / (1 + expf(-gate)) * get(h[at + n]));
}

template <class T> __global__ void swiglu_back_kernel(T *dh, const T *dy, const T *h, int64_t rows, int64_t n)
{
    const int64_t i = thread_number();

    if (i >= rows * n)
        return;
    const int64_t at = i / n * 2 * n + i % n;
    const float d = get(dy[i]), gate = get(h[at]), s = 1 / (1 + expf(-gate));
    put(dh[at], d * get(h[at + n]) * s * (1 + gate * (1 - s)));
    put(dh[at + n], d * gate * s);
}

template <class T> __global__ void add_kernel(T *out, const T *a, const T *b, int64_t count)
{
    const int64_t i = thread_number();

    if (i < count)
        put(out[i], get(a[i]) + get(b[i]));
}

template <class T> __global__ void entropy_most_kernel(float *most, const T *logits, int64_t n)
{
    const int64_t row = blockIdx.x;
    float largest = -INFINITY;

    for (int64_t c = threadIdx.x; c < n; c += THREADS)
        largest = fmaxf(largest, get(logits[row * n + c]));
    largest = block_most(largest);
    if (threadIdx.x == 0)
        most[row] = largest;
}

template <class T>
__global__ void entropy_sum_kernel(float *sum, const T *logits, const float *most, const int32_t *target,
                                   int64_t rows, int64_t n, int32_t first)
{
    const int64_t row = blockIdx.x, t = target[row] - first;
    float all = 0;

    for (int64_t c = threadIdx.x; c < n; c += THREADS)
        all += expf(get(logits[row * n + c]) - most[row]);
    all = block_sum(all);
    if (threadIdx.x > 0)
        return;
    sum[row] = all;
    sum[rows + row] = t >= 0 && t < n ? get(logits[row * n + t]) : 0.0f;
}

template <class T>
__global__ void entropy_loss_kernel(float *loss, T *logits, const float *most, const float *sum,
                                    const int32_t *target, int64_t rows, int64_t n, int32_t first,
                                    float share)
{
    const int64_t row = blockIdx.x, t = target[row] - first;

    if (threadIdx.x == 0)
        loss[row] = logf(sum[row]) + most[row] - sum[rows + row];
    for (int64_t c = threadIdx.x; c < n; c += THREADS) {
        T &y = logits[row * n + c];
        const float p = expf(get(y) - most[row]) / sum[row];
        put(y, share * (p - (c == t ? 1.0f : 0.0f)));
    }
}

/* One block. */
__global__ void total_kernel(double *out, const float *x, int64_t count)
{
    double sum = 0;

    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        sum += static_cast<double>(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *out = sum;
}

struct adam_in_float {
    float rate, keep, unbiased, unbiased_square, beta1, beta2, epsilon;
};

template <class T>
__global__ void step_kernel(float *master, float *first, float *second, T *work, const float *gradient,
                            int64_t count, adam_in_float a)
{
    const int64_t i = thread_number();

    if (i >= count)
        return;
    const float g = gradient[i];
    const float m = a.beta1 * first[i] + (1 - a.beta1) * g;
    const float v = a.beta2 * second[i] + (1 - a.beta2) * g * g;
    first[i] = m;
    second[i] = v;
    master[i] = a.keep * master[i] - a.rate * m * a.unbiased / (sqrtf(v * a.unbiased_square) + a.epsilon);
    put(work[i], master[i]);
}

/* ---- The device ---------------------------------------------------------------------------- */

void try_cuda(cudaError_t result, const char *call)
{
    if (result != cudaSuccess)
        fail(sentence("%s: %s", call, cudaGetErrorString(result)));
}

void try_cublas(cublasStatus_t result, const char *call)
{
    if (result != CUBLAS_STATUS_SUCCESS)
        fail(sentence("%s: %s", call, cublasGetStatusString(result)));
}

cudaStream_t new_stream()
{
    cudaStream_t stream;

    try_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return stream;
}

template <class T> class cuda_device : public device
{
  public:
    explicit cuda_device(hra_type type)
        : device(type, HRA_BACKEND_GPU, new_stream()), queue(static_cast<cudaStream_t>(stream))
    {
        try_cublas(cublasCreate(&cublas), "cublasCreate");
        try_cublas(cublasSetStream(cublas, queue), "cublasSetStream");
        /* Sums of a product stay in f32 wherever cuBLAS cuts it. */
        try_cublas(cublasSetMathMode(cublas, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION),
                   "cublasSetMathMode");
    }
    ~cuda_device() override
    {
        cublasDestroy(cublas);
        cudaStreamDestroy(queue);
    }

    void *take(size_t bytes) override
    {
        void *memory = nullptr;

        if (cudaMalloc(&memory, bytes) != cudaSuccess)
            fail(sentence("no memory for %zu bytes on the GPU", bytes));
        zero(memory, bytes);
        return memory;
    }
    void give(void *memory) noexcept override
    {
        cudaFree(memory);
    }
    void zero(void *memory, size_t bytes) override
    {
        try_cuda(cudaMemsetAsync(memory, 0, bytes, queue), "cudaMemsetAsync");
    }
    void write(void *there, const void *here, size_t bytes) override
    {
        if (bytes > 0) /* a rank without rows has nothing, at no address */
            try_cuda(cudaMemcpyAsync(there, here, bytes, cudaMemcpyHostToDevice, queue), "cudaMemcpyAsync");
    }
    void read(void *here, const void *there, size_t bytes) override
    {
        try_cuda(cudaMemcpyAsync(here, there, bytes, cudaMemcpyDeviceToHost, queue), "cudaMemcpyAsync");
        try_cuda(cudaStreamSynchronize(queue), "cudaStreamSynchronize");
    }

    void linear(void *y, const void *x, const void *w, int64_t rows, int64_t in, int64_t out) override
    {
        product(CUBLAS_OP_N, CUBLAS_OP_T, rows, out, in, x, w, 0, y, kind);
    }
    void linear_input(void *dx, const void *dy, const void *w, int64_t rows, int64_t in, int64_t out) override
    {
        product(CUBLAS_OP_N, CUBLAS_OP_N, rows, in, out, dy, w, 0, dx, kind);
    }
    void linear_weight(void *dw, const void *dy, const void *x, int64_t rows, int64_t in,
                       int64_t out) override
    {
        product(CUBLAS_OP_T, CUBLAS_OP_N, out, in, rows, dy, x, 1, dw, CUDA_R_32F);
    }

    void embed(void *x, const void *table, const int32_t *byte, int64_t rows, int64_t n, int32_t first,
               int32_t count) override
    {
        each(embed_kernel<T>, rows * n, as(x), as(table), byte, rows, n, first, count);
    }
    void embed_back(void *dtable, const void *dx, const int32_t *byte, int64_t rows, int64_t n, int32_t first,
                    int32_t count) override
    {
        const dim3 blocks(static_cast<unsigned>(count), static_cast<unsigned>((n + THREADS - 1) / THREADS));
        launch(embed_back_kernel<T>, blocks, THREADS, sums_of(dtable), as(dx), byte, rows, n, first);
    }

    void norm(void *y, void *inverse, const void *x, const void *g, int64_t rows, int64_t n) override
    {
        by_row(norm_kernel<T>, rows, as(y), sums_of(inverse), as(x), as(g), n);
    }
    void norm_back(void *dx, void *dg, const void *dy, const void *x, const void *inverse, const void *g,
                   int64_t rows, int64_t n) override
    {
        by_row(norm_dx_kernel<T>, rows, as(dx), as(dy), as(x), sums_of(inverse), as(g), n);
        launch(norm_dg_kernel<T>, dim3(static_cast<unsigned>((n + SIDE - 1) / SIDE)), dim3(SIDE, SIDE),
               sums_of(dg), as(dy), as(x), sums_of(inverse), rows, n);
    }

    void rope(void *x, const void *turn, int64_t rows, int64_t batch, int64_t width, int64_t heads,
              int64_t dim, int direction) override
    {
        each(rope_kernel<T>, rows * batch * heads * dim / 2, as(x), static_cast<const float2 *>(turn), rows,
             batch, width, heads * dim / 2, dim / 2, static_cast<float>(direction));
    }

    void swiglu(void *y, const void *h, int64_t rows, int64_t n) override
    {
        each(swiglu_kernel<T>, rows * n, as(y), as(h), rows, n);
    }
    void swiglu_back(void *dh, const void *dy, const void *h, int64_t rows, int64_t n) override
    {
        each(swiglu_back_kernel<T>, rows * n, as(dh), as(dy), as(h), rows, n);
    }

    void add(void *out, const void *a, const void *b, int64_t count) override
    {
        each(add_kernel<T>, count, as(out), as(a), as(b), count);
    }

    void entropy_most(void *most, const void *logits, int64_t rows, int64_t n) override
    {
        by_row(entropy_most_kernel<T>, rows, sums_of(most), as(logits), n);
    }
    void entropy_sum(void *sum, const void *logits, const void *most, const int32_t *target, int64_t rows,
                     int64_t n, int32_t first) override
    {
        by_row(entropy_sum_kernel<T>, rows, sums_of(sum), as(logits), sums_of(most), target, rows, n, first);
    }
    void entropy_loss(void *loss, void *logits, const void *most, const void *sum, const int32_t *target,
                      int64_t rows, int64_t n, int32_t first, double share) override
    {
        by_row(entropy_loss_kernel<T>, rows, sums_of(loss), as(logits), sums_of(most), sums_of(sum), target,
               rows, n, first, static_cast<float>(share));
    }

    void total(double *out, const void *x, int64_t count) override
    {
        launch(total_kernel, dim3(1), dim3(THREADS), out, sums_of(x), count);
    }

    void step(void *master, void *first, void *second, void *work, const void *gradient, int64_t count,
              const adam &a) override
    {
        const adam_in_float f = {static_cast<float>(a.rate),     static_cast<float>(1 - a.rate * a.decay),
                                 static_cast<float>(a.unbiased), static_cast<float>(a.unbiased_square),
                                 static_cast<float>(BETA1),      static_cast<float>(BETA2),
                                 static_cast<float>(EPSILON)};
        each(step_kernel<T>, count, sums_of(master), sums_of(first), sums_of(second), as(work),
             sums_of(gradient), count, f);
    }

  private:
    static constexpr cudaDataType kind = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;
    cudaStream_t queue; /* `stream` by its type */
    cublasHandle_t cublas = nullptr;

    static T *as(void *p)
    {
        return static_cast<T *>(p);
    }
    static const T *as(const void *p)
    {
        return static_cast<const T *>(p);
    }
    static float *sums_of(void *p)
    {
        return static_cast<float *>(p);
    }
    static const float *sums_of(const void *p)
    {
        return static_cast<const float *>(p);
    }

    template <class... P, class... A>
    void launch(void (*kernel)(P...), dim3 blocks, dim3 threads, A... values)
    {
        kernel<<<blocks, threads, 0, queue>>>(values...);
        try_cuda(cudaGetLastError(), "a kernel's launch");
    }
    /* A thread for each of count numbers. */
    template <class... P, class... A> void each(void (*kernel)(P...), int64_t count, A... values)
    {
        by_row(kernel, (count + THREADS - 1) / THREADS, values...);
    }
    /* A block for each row. */
    template <class... P, class... A> void by_row(void (*kernel)(P...), int64_t rows, A... values)
    {
        if (rows > 0)
            launch(kernel, dim3(static_cast<unsigned>(rows)), dim3(THREADS), values...);
    }

    /* c [m][n] = a b + beta c, row-major; to cuBLAS, whose matrices stand column by column, c^T = b^T a^T. */
    void product(cublasOperation_t ta, cublasOperation_t tb, int64_t m, int64_t n, int64_t k, const void *a,
                 const void *b, float beta, void *c, cudaDataType c_kind)
    {
        const float one = 1;
        const int64_t lda = ta == CUBLAS_OP_N ? k : m, ldb = tb == CUBLAS_OP_N ? n : k;

        if (m == 0 || n == 0 || k == 0) /* a rank without rows */
            return;
        try_cublas(cublasGemmEx(cublas, tb, ta, static_cast<int>(n), static_cast<int>(m), static_cast<int>(k),
                                &one, b, kind, static_cast<int>(ldb), a, kind, static_cast<int>(lda), &beta,
                                c, c_kind, static_cast<int>(n), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                   "cublasGemmEx");
    }
};
} // namespace

int cuda_gpus()
{
    int count = 0;

    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::unique_ptr<device> open_cuda(hra_type type, int gpu)
{
    try_cuda(cudaSetDevice(gpu), "cudaSetDevice");
    if (type == HRA_BF16)
        return std::make_unique<cuda_device<__nv_bfloat16>>(type);
    return std::make_unique<cuda_device<float>>(type);
}

/* sm90.c - the Hopper backend: forward by a kernel of our own (forward.cu), the rest by the portable CUDA
 * backend, of which it holds a state.
 *
 * When a plan is made its lists are laid out (lists.c) and uploaded. A call encodes the tensor maps of its
 * tensors, whatever their strides, and enqueues for each launch a memset of the counter of items and the
 * kernel. */
#include "kernels/sm90/forward.h"
#include "kernels/sm90/lists.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HRA_TRY_CUDA(call)                                                                                   \
    do {                                                                                                     \
        cudaError_t try_ = (call);                                                                           \
        if (try_ != cudaSuccess)                                                                             \
            return HRA_FAIL(HRA_ERR_CUDA, "%s: %s", #call, cudaGetErrorString(try_));                        \
    } while (0)

static const struct hra_bit_layout bits_of_threads = {
    .name = "sm90 forward", .bytes = sizeof(struct hra_sm90_bits), .pack = hra_sm90_pack_bits};
static const struct hra_bit_layout rows_of_bits = {.name = "rows", .bytes = sizeof(hra_bits)};

struct sm90 {
    const struct hra_kernel_plan *plan;
    struct hra_kernel_plan portable_plan; /* the same with the portable backend's bits */
    void *portable;
    __typeof__(cuTensorMapEncodeTiled) *encode;
    int processors;
    struct hra_sm90_work work; /* its items and entries in device memory are below */
    int *run_launch;           /* [runs + 1] first launch of a run */
    struct hra_sm90_item *item;
    struct hra_sm90_entry *entry;
    struct hra_sm90_bits *bits;
};

/* The counter of items takes the first bytes of the workspace. */
enum { COUNTER_BYTES = 256 };

static size_t sm90_workspace(const struct hra_kernel_plan *p, hra_pass pass)
{
    if (pass == HRA_BACKWARD)
        return hra_backend_cuda.workspace_bytes(p, pass);
    return COUNTER_BYTES +
           (size_t)p->batch * (size_t)p->heads * (size_t)p->queries * hra_sm90_state_bytes(p->dim);
}

/* ---- Making ---- */

static void sm90_close(void *state)
{
    struct sm90 *c = state;

    if (c == NULL)
        return;
    hra_backend_cuda.close(c->portable);
    hra_sm90_work_clear(&c->work);
    free(c->run_launch);
    cudaFree(c->item);
    cudaFree(c->entry);
    cudaFree(c->bits);
    free(c);
}

/* What the kernel cannot do is left to the portable backend, which the caller chooses. */
static hra_status check_plan(const struct hra_kernel_plan *p)
{
    const double scale = p->scale * M_LOG2E;

    if (p->type != HRA_BF16 && p->type != HRA_F16)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: problem.type is %s; it computes bf16 and f16",
                        hra_type_name(p->type));
    if (p->dim != 64 && p->dim != 128)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: problem.dim is %d; it computes 64 and 128", p->dim);
    if (p->dim_v != p->dim)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: problem.dim_v is %d and dim %d; they must be equal",
                        p->dim_v, p->dim);
    if (!(scale >= FLT_MIN && scale <= FLT_MAX))
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "sm90: problem.scale is %g; it must be positive, and a normal float", p->scale);
    for (int k = 0; k < p->keys; k++)
        if (p->key[k].row0 > INT32_MAX - HRA_TILE)
            return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                            "sm90: a rank has row %lld; copies of tiles count rows to 2^31",
                            (long long)p->key[k].row0);
    return HRA_OK;
}

static hra_status find_device(struct sm90 *c)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *encode = NULL;
    int device, major, minor;

    HRA_TRY_CUDA(cudaGetDevice(&device));
    HRA_TRY_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    HRA_TRY_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    if (major != 9 || minor != 0)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: device %d has compute capability %d.%d; it needs 9.0",
                        device, major, minor);
    HRA_TRY_CUDA(cudaDeviceGetAttribute(&c->processors, cudaDevAttrMultiProcessorCount, device));
    HRA_TRY_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault,
                                                  &found));
    if (encode == NULL || found != cudaDriverEntryPointSuccess)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: the driver has no cuTensorMapEncodeTiled");
    memcpy(&c->encode, &encode, sizeof(encode));
    return HRA_OK;
}

/* A copy of host memory in device memory; *out is close's to free. */
static hra_status upload(void *out, const void *from, int64_t count, size_t bytes)
{
    const size_t all = (size_t)count * bytes;
    void *memory;

    HRA_TRY_CUDA(cudaMalloc(&memory, all > 0 ? all : 1));
    memcpy(out, &memory, sizeof(memory));
    HRA_TRY_CUDA(cudaMemcpy(memory, from, all, cudaMemcpyHostToDevice));
    return HRA_OK;
}

/* Fills a zeroed state; close undoes whatever was done. */
static hra_status build(struct sm90 *c, const struct hra_kernel_plan *plan)
{
    c->plan = plan;
    c->portable_plan = *plan;
    c->portable_plan.layout[HRA_FORWARD] = plan->layout[HRA_BACKWARD];
    c->portable_plan.packed[HRA_FORWARD] = plan->packed[HRA_BACKWARD];
    HRA_TRY(hra_backend_cuda.open(&c->portable, &c->portable_plan));
    HRA_TRY(find_device(c));
    HRA_TRY_CUDA(hra_sm90_forward_open(plan->type, plan->dim));
    return upload(&c->bits, plan->packed[HRA_FORWARD], plan->bitmaps, sizeof(*c->bits));
}

static hra_status sm90_open(void **out, struct hra_kernel_plan *plan)
{
    struct sm90 *c = NULL;

    HRA_TRY(check_plan(plan));
    HRA_TRY(hra_alloc((void **)&c, 1, sizeof(*c), "sm90 backend"));
    const hra_status status = build(c, plan);
    if (status != HRA_OK) {
        sm90_close(c);
        return status;
    }
    *out = c;
    return HRA_OK;
}

static hra_status sm90_prepare(void *state, const struct hra_shapes shapes[2])
{
    struct sm90 *c = state;
    struct hra_shapes portable[2] = {shapes[HRA_FORWARD], shapes[HRA_BACKWARD]};

    portable[HRA_FORWARD].count = portable[HRA_FORWARD].runs = 0;
    HRA_TRY(hra_backend_cuda.prepare(c->portable, portable));

    HRA_TRY(hra_sm90_lay_out(&c->work, c->plan, &shapes[HRA_FORWARD]));
    HRA_TRY(hra_alloc((void **)&c->run_launch, (int64_t)shapes[HRA_FORWARD].runs + 1, sizeof(int),
                      "sm90 backend"));
    for (int run = 0, l = 0; run <= shapes[HRA_FORWARD].runs; run++) {
        while (l < c->work.launches && c->work.launch[l].run < run)
            l++;
        c->run_launch[run] = l;
    }
    HRA_TRY(upload(&c->item, c->work.item, c->work.items, sizeof(*c->item)));
    HRA_TRY(upload(&c->entry, c->work.entry, c->work.entries, sizeof(*c->entry)));
    free(c->work.item);
    free(c->work.entry);
    c->work.item = NULL;
    c->work.entry = NULL;
    return HRA_OK;
}

/* ---- Computing ---- */

/* The map of a tensor [batch][rows][heads][dim] as [batch][head][dim / 64][row][64]. What is beyond the last
 * row is copied as 0. A dimension of one element has no use for its stride, which may be anything. */
static hra_status encode(const struct sm90 *c, CUtensorMap *map, const char *name, const hra_tensor *t,
                         int64_t rows, int heads)
{
    const struct hra_kernel_plan *p = c->plan;
    const CUtensorMapDataType type =
        p->type == HRA_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const cuuint64_t count[5] = {64, (cuuint64_t)rows, (cuuint64_t)p->dim / 64, (cuuint64_t)heads,
                                 (cuuint64_t)p->batch};
    const cuuint64_t stride[4] = {rows == 1 ? 128 : (cuuint64_t)t->stride_row * 2, 128,
                                  heads == 1 ? 128 : (cuuint64_t)t->stride_head * 2,
                                  p->batch == 1 ? 128 : (cuuint64_t)t->stride_batch * 2};
    const cuuint32_t box[5] = {64, HRA_TILE, (cuuint32_t)p->dim / 64, 1, 1}, step[5] = {1, 1, 1, 1, 1};
    const CUresult result = c->encode(map, type, 5, t->data, count, stride, box, step,
                                      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    if (result != CUDA_SUCCESS)
        return HRA_FAIL(
            HRA_ERR_UNSUPPORTED,
            "sm90: the driver makes no map (error %d) of %s at %p, batch %d, rows %lld, heads %d, strides "
            "%lld, %lld, %lld",
            (int)result, name, t->data, p->batch, (long long)rows, heads, (long long)t->stride_batch,
            (long long)t->stride_row, (long long)t->stride_head);
    return HRA_OK;
}

static hra_status encode_chunk(const struct sm90 *c, struct hra_sm90_forward *f, int number,
                               const struct hra_chunk *chunk)
{
    const struct hra_tile_rows *last = &c->plan->key[chunk->key_tile1 - 1];
    const int64_t rows = last->row0 + last->rows - c->plan->key[chunk->key_tile0].row0;
    const int heads = chunk->head1 - chunk->head0;

    f->head0[number] = chunk->head0;
    HRA_TRY(encode(c, &f->k[number], "k", &chunk->k, rows, heads));
    return encode(c, &f->v[number], "v", &chunk->v, rows, heads);
}

static hra_status launch(const struct sm90 *c, struct hra_sm90_forward *f, const struct hra_sm90_launch *l,
                         const struct hra_run_args *run)
{
    if (l->items == 0)
        return HRA_OK;
    for (int i = 0; i < l->chunks; i++)
        HRA_TRY(encode_chunk(c, f, i, &run->chunk[l->chunk0 + i]));
    f->item = c->item + l->item0;
    f->items = l->items;
    HRA_TRY_CUDA(cudaMemsetAsync(f->next, 0, sizeof(*f->next), run->stream));
    HRA_TRY_CUDA(hra_sm90_forward_launch(f, c->plan->type, c->plan->dim,
                                         l->items < c->processors ? l->items : c->processors, run->stream));
    return HRA_OK;
}

/* A kernel reads bits in its own layout only: another would be read as nonsense. */
static hra_status check_layout(const struct sm90 *c)
{
    const struct hra_bit_layout *layout = c->plan->layout[HRA_FORWARD];

    if (layout != &bits_of_threads)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: bitmaps are packed as '%s'; its kernel reads '%s'",
                        layout == NULL ? "nothing" : layout->name, bits_of_threads.name);
    return HRA_OK;
}

static hra_status sm90_forward(void *state, const struct hra_forward_args *args)
{
    const struct sm90 *c = state;
    const struct hra_run_args *run = &args->run;
    struct hra_sm90_forward f;

    HRA_TRY(check_layout(c));
    if (c->plan->queries == 0)
        return HRA_OK;
    memset(&f, 0, sizeof(f));
    f.heads = c->plan->heads;
    f.rows = c->plan->rows;
    f.entry = c->entry;
    f.bits = c->bits;
    f.next = run->workspace;
    f.state = (float *)((char *)run->workspace + COUNTER_BYTES);
    f.o = args->o;
    f.lse = args->lse;
    f.scale = (float)(c->plan->scale * M_LOG2E);
    HRA_TRY(encode(c, &f.q, "q", &args->q, c->plan->rows, c->plan->heads));
    for (int l = c->run_launch[run->run]; l < c->run_launch[run->run + 1]; l++)
        HRA_TRY(launch(c, &f, &c->work.launch[l], run));
    if (run->run == 0 && c->work.items > c->work.nothing0) {
        f.item = c->item + c->work.nothing0;
        f.items = (int)(c->work.items - c->work.nothing0);
        HRA_TRY_CUDA(hra_sm90_forward_nothing(&f, c->plan->dim, run->stream));
    }
    return HRA_OK;
}

/* ---- What the portable backend does ---- */

static hra_status sm90_backward(void *state, const struct hra_backward_args *args)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.backward(c->portable, args);
}

static hra_status sm90_delta(void *state, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                             void *workspace, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.delta(c->portable, o, do_, dlse, workspace, stream);
}

static hra_status sm90_copy(void *state, const hra_tensor *to, hra_type to_type, const hra_tensor *from,
                            hra_type from_type, int64_t rows, int heads, int dim, double factor, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.copy(c->portable, to, to_type, from, from_type, rows, heads, dim, factor, stream);
}

static hra_status sm90_clear(void *state, void *data, size_t bytes, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.clear(c->portable, data, bytes, stream);
}

static hra_status sm90_add(void *state, const hra_tensor *to, const hra_tensor *from, int64_t rows, int heads,
                           int dim, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.add(c->portable, to, from, rows, heads, dim, stream);
}

static hra_status sm90_reorder(void *state, hra_direction direction, hra_type type, const hra_tensor *whole,
                               const hra_tensor *rows, const int64_t *token, int64_t count, int heads,
                               int dim, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.reorder(c->portable, direction, type, whole, rows, token, count, heads, dim,
                                    stream);
}

static hra_status sm90_make_mirror(void **out, void *host, size_t bytes)
{
    return hra_backend_cuda.make_mirror(out, host, bytes);
}

static void sm90_drop_mirror(void *mirror, void *host)
{
    hra_backend_cuda.drop_mirror(mirror, host);
}

static hra_status sm90_to_mirror(void *mirror, const void *host, size_t bytes, void *stream)
{
    return hra_backend_cuda.to_mirror(mirror, host, bytes, stream);
}

static hra_status sm90_from_mirror(void *host, const void *mirror, size_t bytes, void *stream)
{
    return hra_backend_cuda.from_mirror(host, mirror, bytes, stream);
}

static hra_status sm90_wait(void *stream)
{
    return hra_backend_cuda.wait(stream);
}

static int sm90_records(void *stream)
{
    return hra_backend_cuda.records(stream);
}

const struct hra_backend hra_backend_sm90 = {
    .name = "sm90",
    .method = "cublas",
    .blocking = 0,
    .alignment = 256,
    .tensor_alignment = 16,
    .flop_per_byte = 1600, /* 600 TFLOP/s, 370 GB/s */
    .layout = {&bits_of_threads, &rows_of_bits},
    .open = sm90_open,
    .close = sm90_close,
    .prepare = sm90_prepare,
    .workspace_bytes = sm90_workspace,
    .make_mirror = sm90_make_mirror,
    .drop_mirror = sm90_drop_mirror,
    .to_mirror = sm90_to_mirror,
    .from_mirror = sm90_from_mirror,
    .wait = sm90_wait,
    .records = sm90_records,
    .forward = sm90_forward,
    .backward = sm90_backward,
    .delta = sm90_delta,
    .copy = sm90_copy,
    .clear = sm90_clear,
    .add = sm90_add,
    .reorder = sm90_reorder,
};

/* sm90.c - the Hopper backend: forward and backward by kernels of our own (forward.cu, backward.cu), the rest
 * by the portable CUDA backend, of which it holds a state; with hra_backend_sm90_cublas backward too.
 *
 * When a plan is made its lists are laid out (lists.c, steps.c) and uploaded. A call encodes the tensor maps of
 * its tensors, whatever their strides, and enqueues for each launch a memset of its counters and the kernel;
 * before the first launch of backward and after the last one also what is done for all rows. */
#include "kernels/sm90/lists.h"
#include "kernels/sm90/steps.h"
#include "src/cuda.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct hra_bit_layout bits_of_threads = {
    .name = "sm90 forward", .bytes = sizeof(struct hra_sm90_bits), .pack = hra_sm90_pack_bits};
static const struct hra_bit_layout bits_by_key = {
    .name = "sm90 backward", .bytes = sizeof(struct hra_sm90_key_bits), .pack = hra_sm90_pack_key_bits};
static const struct hra_bit_layout rows_of_bits = {.name = "rows", .bytes = sizeof(hra_bits)};

struct sm90 {
    const struct hra_kernel_plan *plan;
    struct hra_kernel_plan portable_plan; /* the same with the portable backend's bits */
    void *portable;
    __typeof__(cuTensorMapEncodeTiled) *encode;
    int processors;              /* that kernels take */
    struct hra_sm90_boxes boxes; /* where forward reads rows by token */
    int32_t *token;              /* where it writes them so; in device memory */
    struct hra_sm90_work work;   /* its items and entries in device memory are below */
    int *run_launch;             /* [runs + 1] first launch of a run */
    struct hra_sm90_item *item;
    struct hra_sm90_entry *entry;
    uint32_t *second;
    struct hra_sm90_packed *packed;
    struct hra_sm90_bits *bits;

    int fused;                   /* 1: backward by our own kernel, and what follows is in use */
    int runs;                    /* of backward */
    struct hra_sm90_steps steps; /* its arrays in device memory are below */
    int *run_turn;               /* [runs + 1] first launch of a run */
    struct hra_sm90_key_item *key_item;
    struct hra_sm90_step *step;
    uint32_t *begin;
    uint8_t *untouched;
    struct hra_tile_rows *query;
    struct hra_sm90_key_bits *key_bits;
};

/* Launches whose counters are cleared at once, so that not every one waits for a kernel before it. */
enum { CLEARED = 4 };

/* The counter of items, and those of cuts, of CLEARED launches take the first bytes of forward's workspace. */
enum { COUNTERS = 1 + HRA_SM90_CUTS, COUNTER_BYTES = 4 * COUNTERS * CLEARED };
_Static_assert(COUNTER_BYTES % 256 == 0, "what follows is aligned");

/* Pieces of query rows of one head. */
static size_t count_pieces(const struct hra_kernel_plan *p)
{
    return (size_t)p->queries * (size_t)(HRA_TILE / hra_sm90_step_rows(p->dim));
}

/* The workspace of backward. */
struct places {
    uint32_t *added; /* [CLEARED][counters]: of each piece, then of each cut */
    size_t pieces, counters;
    float *rows, *sums, *part;
};

/* Places in `base`; the bytes of them all. */
static size_t lay_out(struct places *out, const struct hra_kernel_plan *p, char *base)
{
    const size_t pieces = (size_t)p->batch * (size_t)p->heads * count_pieces(p);
    const size_t rows = (size_t)hra_sm90_step_rows(p->dim), align = 255;
    const size_t keys = (size_t)p->batch * (size_t)p->heads_kv * (size_t)p->keys;
    const size_t cuts = keys < HRA_SM90_KEY_CUTS ? keys : HRA_SM90_KEY_CUTS;

    out->pieces = pieces;
    out->counters = pieces + HRA_SM90_KEY_CUTS;
    const size_t at_rows = (CLEARED * out->counters * sizeof(*out->added) + align) & ~align;
    const size_t at_sums = (at_rows + pieces * 2 * rows * sizeof(float) + align) & ~align;
    const size_t at_part = (at_sums + pieces * rows * (size_t)p->dim * sizeof(float) + align) & ~align;
    out->added = (uint32_t *)base;
    out->rows = base == NULL ? NULL : (float *)(base + at_rows);
    out->sums = base == NULL ? NULL : (float *)(base + at_sums);
    out->part = base == NULL ? NULL : (float *)(base + at_part);
    return at_part + cuts * hra_sm90_part_bytes(p->dim);
}

static size_t sm90_workspace(const struct hra_kernel_plan *p, hra_pass pass)
{
    struct places places;

    if (pass == HRA_BACKWARD)
        return lay_out(&places, p, NULL);
    return COUNTER_BYTES +
           (size_t)p->batch * (size_t)p->heads * (size_t)p->queries * hra_sm90_state_bytes(p->dim);
}

static size_t cublas_workspace(const struct hra_kernel_plan *p, hra_pass pass)
{
    return pass == HRA_BACKWARD ? hra_backend_cuda.workspace_bytes(p, pass) : sm90_workspace(p, pass);
}

/* ---- Making ---- */

static void sm90_close(void *state)
{
    struct sm90 *c = state;

    if (c == NULL)
        return;
    hra_backend_cuda.close(c->portable);
    hra_sm90_boxes_clear(&c->boxes);
    cudaFree(c->token);
    hra_sm90_work_clear(&c->work);
    free(c->run_launch);
    cudaFree(c->item);
    cudaFree(c->entry);
    cudaFree(c->second);
    cudaFree(c->packed);
    cudaFree(c->bits);
    hra_sm90_steps_clear(&c->steps);
    free(c->run_turn);
    cudaFree(c->key_item);
    cudaFree(c->step);
    cudaFree(c->begin);
    cudaFree(c->untouched);
    cudaFree(c->query);
    cudaFree(c->key_bits);
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

/* Forward writes rows wherever they go, and reads them where tiles are boxes. */
static hra_status sm90_takes_tokens(enum hra_by_token *out, const struct hra_kernel_plan *plan, hra_pass pass)
{
    struct hra_sm90_boxes boxes;

    *out = HRA_BY_SLOT;
    if (pass == HRA_BACKWARD)
        return HRA_OK;
    HRA_TRY(hra_sm90_find_boxes(&boxes, plan));
    *out = boxes.grid.axes > 0 ? HRA_ALL_BY_TOKEN : HRA_WRITES_BY_TOKEN;
    hra_sm90_boxes_clear(&boxes);
    return HRA_OK;
}

/* Is the current device one that the kernels run on? */
static hra_status check_device(int *device)
{
    int major, minor;

    HRA_TRY_CUDA(cudaGetDevice(device));
    HRA_TRY_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, *device));
    HRA_TRY_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, *device));
    if (major != 9 || minor != 0)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: device %d has compute capability %d.%d; it needs 9.0",
                        *device, major, minor);
    return HRA_OK;
}

static hra_status sm90_suits(const struct hra_kernel_plan *plan)
{
    int device;

    HRA_TRY(check_plan(plan));
    return check_device(&device);
}

static hra_status find_device(struct sm90 *c)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *encode = NULL;
    int device;

    HRA_TRY(check_device(&device));
    HRA_TRY_CUDA(cudaDeviceGetAttribute(&c->processors, cudaDevAttrMultiProcessorCount, device));
    if (c->plan->margin >= c->processors)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                        "sm90: problem.sm_margin is %d; device %d has %d multiprocessors", c->plan->margin,
                        device, c->processors);
    c->processors -= c->plan->margin;
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
    HRA_TRY(hra_cuda_write(memory, from, all));
    return HRA_OK;
}

/* There are fewer than 2^31, as of rows. */
static hra_status upload_tokens(struct sm90 *c, const struct hra_kernel_plan *plan)
{
    int32_t *token = NULL;

    HRA_TRY(hra_alloc_unset((void **)&token, plan->rows, sizeof(*token), "sm90 backend"));
    for (int64_t i = 0; i < plan->rows; i++)
        token[i] = (int32_t)plan->token[i];
    const hra_status status = upload(&c->token, token, plan->rows, sizeof(*token));
    free(token);
    return status;
}

/* Fills a zeroed state; close undoes whatever was done. */
static hra_status build(struct sm90 *c, const struct hra_kernel_plan *plan)
{
    c->plan = plan;
    c->portable_plan = *plan;
    c->portable_plan.layout[HRA_FORWARD] = c->portable_plan.layout[HRA_BACKWARD] = &rows_of_bits;
    c->portable_plan.packed[HRA_FORWARD] = plan->packed[HRA_BACKWARD];
    if (c->fused) /* it attends to nothing */
        c->portable_plan.bitmaps = 0;
    HRA_TRY(hra_backend_cuda.open(&c->portable, &c->portable_plan));
    HRA_TRY(find_device(c));
    HRA_TRY_CUDA(hra_sm90_forward_open(plan->type, plan->dim));
    HRA_TRY(upload(&c->bits, plan->packed[HRA_FORWARD], plan->bitmaps, sizeof(*c->bits)));
    if (plan->by_token[HRA_FORWARD] == HRA_ALL_BY_TOKEN)
        HRA_TRY(hra_sm90_find_boxes(&c->boxes, plan));
    if (plan->by_token[HRA_FORWARD] != HRA_BY_SLOT)
        HRA_TRY(upload_tokens(c, plan));
    if (!c->fused)
        return HRA_OK;
    HRA_TRY_CUDA(hra_sm90_backward_open(plan->type, plan->dim));
    HRA_TRY(upload(&c->query, plan->query, plan->queries, sizeof(*c->query)));
    return upload(&c->key_bits, plan->packed[HRA_BACKWARD], plan->bitmaps, sizeof(*c->key_bits));
}

static hra_status open_either(void **out, const struct hra_kernel_plan *plan, int fused)
{
    struct sm90 *c = NULL;

    HRA_TRY(check_plan(plan));
    HRA_TRY(hra_alloc((void **)&c, 1, sizeof(*c), "sm90 backend"));
    c->fused = fused;
    const hra_status status = build(c, plan);
    if (status != HRA_OK) {
        sm90_close(c);
        return status;
    }
    *out = c;
    return HRA_OK;
}

static hra_status sm90_open(void **out, struct hra_kernel_plan *plan)
{
    return open_either(out, plan, 1);
}

static hra_status cublas_open(void **out, struct hra_kernel_plan *plan)
{
    return open_either(out, plan, 0);
}

static hra_status prepare_backward(struct sm90 *c, const struct hra_shapes *shapes)
{
    HRA_TRY(hra_sm90_lay_out_steps(&c->steps, c->plan, shapes, c->processors, c->plan->packed[HRA_BACKWARD]));
    c->runs = shapes->runs;
    HRA_TRY(hra_alloc((void **)&c->run_turn, (int64_t)shapes->runs + 1, sizeof(int), "sm90 backend"));
    for (int run = 0, l = 0; run <= shapes->runs; run++) {
        while (l < c->steps.turns && c->steps.turn[l].run < run)
            l++;
        c->run_turn[run] = l;
    }
    HRA_TRY(upload(&c->key_item, c->steps.item, c->steps.items, sizeof(*c->key_item)));
    HRA_TRY(upload(&c->step, c->steps.step, c->steps.steps, sizeof(*c->step)));
    HRA_TRY(upload(&c->begin, c->steps.begin, c->steps.begins, sizeof(*c->begin)));
    HRA_TRY(upload(&c->untouched, c->steps.untouched, c->steps.pieces, sizeof(*c->untouched)));
    free(c->steps.item);
    free(c->steps.step);
    free(c->steps.begin);
    free(c->steps.untouched);
    c->steps.item = NULL;
    c->steps.step = NULL;
    c->steps.begin = NULL;
    c->steps.untouched = NULL;
    return HRA_OK;
}

static hra_status sm90_prepare(void *state, const struct hra_shapes shapes[2])
{
    struct sm90 *c = state;
    struct hra_shapes portable[2] = {shapes[HRA_FORWARD], shapes[HRA_BACKWARD]};

    portable[HRA_FORWARD].count = portable[HRA_FORWARD].runs = 0;
    if (c->fused)
        portable[HRA_BACKWARD].count = portable[HRA_BACKWARD].runs = 0;
    HRA_TRY(hra_backend_cuda.prepare(c->portable, portable));
    if (c->fused)
        HRA_TRY(prepare_backward(c, &shapes[HRA_BACKWARD]));

    HRA_TRY(hra_sm90_lay_out(&c->work, c->plan, &shapes[HRA_FORWARD],
                             c->boxes.grid.axes > 0 ? &c->boxes : NULL, c->processors));
    HRA_TRY(hra_alloc((void **)&c->run_launch, (int64_t)shapes[HRA_FORWARD].runs + 1, sizeof(int),
                      "sm90 backend"));
    for (int run = 0, l = 0; run <= shapes[HRA_FORWARD].runs; run++) {
        while (l < c->work.launches && c->work.launch[l].run < run)
            l++;
        c->run_launch[run] = l;
    }
    HRA_TRY(upload(&c->item, c->work.item, c->work.items, sizeof(*c->item)));
    HRA_TRY(upload(&c->entry, c->work.entry, c->work.entries, sizeof(*c->entry)));
    if (c->work.second != NULL)
        HRA_TRY(upload(&c->second, c->work.second, c->work.entries, sizeof(*c->second)));
    free(c->work.item);
    free(c->work.entry);
    free(c->work.second);
    HRA_TRY(upload(&c->packed, c->work.step, c->work.steps, sizeof(*c->packed)));
    free(c->work.step);
    c->work.step = NULL;
    c->work.item = NULL;
    c->work.entry = NULL;
    c->work.second = NULL;
    return HRA_OK;
}

/* ---- Computing ---- */

/* A map of five dimensions, the fastest first; strides, of all but that, in elements. A dimension of one element has
 * no use for its stride, which may be anything. */
static hra_status encode(const struct sm90 *c, CUtensorMap *map, const char *name, const hra_tensor *t,
                         const int64_t count[5], const int64_t stride[4], const int box[5])
{
    const CUtensorMapDataType type =
        c->plan->type == HRA_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const cuuint32_t step[5] = {1, 1, 1, 1, 1};
    cuuint64_t size[5], bytes[4];
    cuuint32_t side[5];

    for (int d = 0; d < 5; d++) {
        size[d] = (cuuint64_t)count[d];
        side[d] = (cuuint32_t)box[d];
        if (d > 0)
            bytes[d - 1] = count[d] == 1 ? 128 : (cuuint64_t)stride[d - 1] * 2;
    }
    const CUresult result = c->encode(map, type, 5, t->data, size, bytes, side, step,
                                      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return HRA_FAIL(
            HRA_ERR_UNSUPPORTED,
            "sm90: the driver makes no map (error %d) of %s at %p, %lld x %lld x %lld x %lld x %lld, strides "
            "%lld, %lld, %lld (batch, row, head)",
            (int)result, name, t->data, (long long)count[4], (long long)count[3], (long long)count[2],
            (long long)count[1], (long long)count[0], (long long)t->stride_batch, (long long)t->stride_row,
            (long long)t->stride_head);
    return HRA_OK;
}

/* The map of a tensor [batch][rows][heads][dim] as [batch][head][dim / 64][row][64], boxes of `box_rows`. What
 * is beyond the last row is copied as 0. */
static hra_status encode_rows(const struct sm90 *c, CUtensorMap *map, const char *name, const hra_tensor *t,
                              int64_t rows, int heads, int box_rows, int box_dim)
{
    const struct hra_kernel_plan *p = c->plan;
    const int64_t count[5] = {64, rows, p->dim / 64, heads, p->batch};
    const int64_t stride[4] = {t->stride_row, 64, t->stride_head, t->stride_batch};
    const int box[5] = {64, box_rows, box_dim / 64, 1, 1};

    return encode(c, map, name, t, count, stride, box);
}

/* The map of a tensor by token, as the kernel's launch says; boxes of a tile or of half of one. */
static hra_status encode_grid(const struct sm90 *c, CUtensorMap *map, const char *name, const hra_tensor *t,
                              int heads, int whole)
{
    const struct hra_sm90_boxes *b = &c->boxes;
    const int *side = whole ? b->tile : b->half;
    int64_t count[5] = {c->plan->dim}, stride[4];
    int box[5] = {64, side[0], side[1], side[2], 1}, d = 1;

    for (int a = 0; a < b->grid.axes; a++, d++) {
        count[d] = b->extent[a];
        stride[d - 1] = b->stride[a] * t->stride_row;
    }
    count[d] = heads;
    stride[d - 1] = t->stride_head;
    if (++d < 5) {
        count[d] = c->plan->batch;
        stride[d - 1] = t->stride_batch;
        box[3] = 1;
    }
    return encode(c, map, name, t, count, stride, box);
}

static hra_status encode_keys(const struct sm90 *c, CUtensorMap *k, CUtensorMap *v,
                              const struct hra_chunk *chunk, int box_rows, int box_dim)
{
    const struct hra_tile_rows *last = &c->plan->key[chunk->key_tile1 - 1];
    const int64_t rows = last->row0 + last->rows - c->plan->key[chunk->key_tile0].row0;
    const int heads = chunk->head1 - chunk->head0;

    HRA_TRY(encode_rows(c, k, "k", &chunk->k, rows, heads, box_rows, box_dim));
    return encode_rows(c, v, "v", &chunk->v, rows, heads, box_rows, box_dim);
}

/* The maps of the keys of a launch of forward. */
static hra_status encode_chunk(const struct sm90 *c, CUtensorMap *k, CUtensorMap *v,
                               const struct hra_chunk *chunk, int packed)
{
    const int heads = chunk->head1 - chunk->head0;

    if (c->boxes.grid.axes == 0)
        return encode_keys(c, k, v, chunk, packed ? HRA_TILE / 2 : HRA_TILE, packed ? 64 : c->plan->dim);
    HRA_TRY(encode_grid(c, k, "k", &chunk->k, heads, !packed));
    return encode_grid(c, v, "v", &chunk->v, heads, !packed);
}

/* The counters of launch l of a pass, `count` of them, which are 0 when it begins: in [CLEARED][count] at base. */
static hra_status open_counters(uint32_t **out, uint32_t *base, size_t count, int l, int launches,
                                void *stream)
{
    const int at = l % CLEARED, left = launches - l;

    *out = base + (size_t)at * count;
    if (at == 0)
        HRA_TRY_CUDA(hra_sm90_clear(base, count * (size_t)(left < CLEARED ? left : CLEARED), stream));
    return HRA_OK;
}

static hra_status launch(const struct sm90 *c, struct hra_sm90_forward *f, const struct hra_sm90_launch *l,
                         const struct hra_run_args *run)
{
    if (l->items == 0)
        return HRA_OK;
    for (int i = 0; i < l->chunks; i++) {
        const struct hra_chunk *chunk = &run->chunk[l->chunk0 + i];
        f->head0[i] = chunk->head0;
        HRA_TRY(encode_chunk(c, &f->k[i], &f->v[i], chunk, l->packed));
    }
    f->item = c->item + l->item0;
    f->items = l->items;
    HRA_TRY_CUDA(hra_sm90_forward_launch(f, c->plan->type, c->plan->dim, l->groups, l->packed,
                                         l->items < c->processors ? l->items : c->processors, run->stream));
    f->nothings = 0; /* written by now */
    return HRA_OK;
}

/* A kernel reads bits in its own layout only: another would be read as nonsense. */
static hra_status check_layout(const struct sm90 *c, hra_pass pass)
{
    const struct hra_bit_layout *layout = c->plan->layout[pass];
    const struct hra_bit_layout *wanted = pass == HRA_FORWARD ? &bits_of_threads : &bits_by_key;

    if (layout != wanted)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "sm90: bitmaps are packed as '%s'; its kernel reads '%s'",
                        layout == NULL ? "nothing" : layout->name, wanted->name);
    return HRA_OK;
}

static hra_status sm90_forward(void *state, const struct hra_forward_args *args)
{
    const struct sm90 *c = state;
    const struct hra_run_args *run = &args->run;
    struct hra_sm90_forward f;

    HRA_TRY(check_layout(c, HRA_FORWARD));
    if (c->plan->queries == 0)
        return HRA_OK;
    memset(&f, 0, sizeof(f));
    f.heads = c->plan->heads;
    f.rows = c->plan->rows;
    f.entry = c->entry;
    f.second = c->second;
    f.packed = c->packed;
    f.bits = c->bits;
    f.grid = c->boxes.grid;
    f.token = c->token;
    f.state = (float *)((char *)run->workspace + COUNTER_BYTES);
    f.o = args->o;
    f.lse = args->lse;
    f.scale = (float)(c->plan->scale * M_LOG2E);
    if (c->boxes.grid.axes > 0)
        HRA_TRY(encode_grid(c, &f.q, "q", &args->q, c->plan->heads, 0));
    else
        HRA_TRY(
            encode_rows(c, &f.q, "q", &args->q, c->plan->rows, c->plan->heads, HRA_TILE / 2, c->plan->dim));
    f.nothing = c->item + c->work.nothing0;
    f.nothings = run->run == 0 ? (int)(c->work.items - c->work.nothing0) : 0;
    for (int l = c->run_launch[run->run]; l < c->run_launch[run->run + 1]; l++) {
        uint32_t *counter;
        HRA_TRY(open_counters(&counter, run->workspace, COUNTERS, l, c->work.launches, run->stream));
        f.next = (int *)counter;
        f.told = counter + 1;
        HRA_TRY(launch(c, &f, &c->work.launch[l], run));
    }
    if (f.nothings > 0)
        HRA_TRY_CUDA(hra_sm90_forward_nothing(&f, c->plan->dim, run->stream));
    return HRA_OK;
}

/* What is done for all query rows of a backward pass. */
static struct hra_sm90_pieces all_pieces(const struct sm90 *c, void *workspace)
{
    const struct hra_kernel_plan *p = c->plan;
    struct places places;

    lay_out(&places, p, workspace);
    return (struct hra_sm90_pieces){.query = c->query,
                                    .batch = p->batch,
                                    .heads = p->heads,
                                    .queries = p->queries,
                                    .rows_of_rank = p->rows,
                                    .untouched = c->untouched,
                                    .sums = places.sums,
                                    .rows = places.rows,
                                    .scale = (float)p->scale};
}

static hra_status sm90_delta(void *state, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                             void *workspace, void *stream)
{
    const struct sm90 *c = state;

    if (c->plan->queries == 0)
        return HRA_OK;
    struct hra_sm90_pieces pieces = all_pieces(c, workspace);
    pieces.o = *o;
    pieces.do_ = *do_;
    pieces.dlse = dlse;
    HRA_TRY_CUDA(hra_sm90_backward_delta(&pieces, c->plan->type, c->plan->dim, stream));
    return HRA_OK;
}

/* A launch of backward, and what is written of key tiles of its chunks that have no queries. */
static hra_status launch_turn(const struct sm90 *c, struct hra_sm90_backward *f,
                              const struct hra_sm90_turn *l, const struct hra_run_args *run)
{
    for (int i = 0; i < l->chunks; i++) {
        const struct hra_chunk *chunk = &run->chunk[l->chunk0 + i];
        const int nothing = (int)(l->nothing0[i + 1] - l->nothing0[i]);
        f->chunk[i] = (struct hra_sm90_gradient){chunk->dk,     chunk->dv,    chunk->out_dk,
                                                 chunk->out_dv, chunk->head0, chunk->zero};
        HRA_TRY(encode_keys(c, &f->k[i], &f->v[i], chunk, HRA_TILE, c->plan->dim));
        f->item = c->key_item + l->nothing0[i];
        if (nothing > 0 && (chunk->zero || chunk->out_dk.data != NULL))
            HRA_TRY_CUDA(hra_sm90_backward_unseen(f, c->plan->type, c->plan->dim, nothing, run->stream));
    }
    if (l->blocks == 0)
        return HRA_OK;
    f->item = c->key_item;
    f->begin = c->begin + l->begin0;
    HRA_TRY_CUDA(hra_sm90_backward_launch(f, c->plan->type, c->plan->dim, l->blocks, run->stream));
    return HRA_OK;
}

static hra_status sm90_backward(void *state, const struct hra_backward_args *args)
{
    const struct sm90 *c = state;
    const struct hra_kernel_plan *p = c->plan;
    const struct hra_run_args *run = &args->run;
    struct hra_sm90_backward f;
    struct places places;

    HRA_TRY(check_layout(c, HRA_BACKWARD));
    if (p->queries == 0)
        return HRA_OK;
    struct hra_sm90_pieces pieces = all_pieces(c, run->workspace);
    pieces.lse = args->lse;
    pieces.dq = args->dq;
    if (run->run == 0)
        HRA_TRY_CUDA(hra_sm90_backward_begin(&pieces, p->dim, run->stream));

    lay_out(&places, p, run->workspace);
    memset(&f, 0, sizeof(f));
    f.heads = p->heads;
    f.group = p->heads / p->heads_kv;
    f.pieces = (uint32_t)count_pieces(p);
    f.step = c->step;
    f.bits = c->key_bits;
    f.sums = places.sums;
    f.rows = places.rows;
    f.part = places.part;
    f.scale = (float)(p->scale * M_LOG2E);
    f.factor = (float)p->scale;
    HRA_TRY(encode_rows(c, &f.q, "q", &args->q, p->rows, p->heads, hra_sm90_step_rows(p->dim), p->dim));
    HRA_TRY(encode_rows(c, &f.do_, "do", &args->do_, p->rows, p->heads, hra_sm90_step_rows(p->dim), p->dim));
    for (int l = c->run_turn[run->run]; l < c->run_turn[run->run + 1]; l++) {
        HRA_TRY(open_counters(&f.added, places.added, places.counters, l, c->steps.turns, run->stream));
        f.told = f.added + places.pieces;
        HRA_TRY(launch_turn(c, &f, &c->steps.turn[l], run));
    }
    if (run->run == c->runs - 1)
        HRA_TRY_CUDA(hra_sm90_backward_end(&pieces, p->type, p->dim, run->stream));
    return HRA_OK;
}

/* ---- What the portable backend does ---- */

static hra_status cublas_backward(void *state, const struct hra_backward_args *args)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.backward(c->portable, args);
}

static hra_status cublas_delta(void *state, const hra_tensor *o, const hra_tensor *do_, const void *dlse,
                               void *workspace, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.delta(c->portable, o, do_, dlse, workspace, stream);
}

static hra_status sm90_combine(void *state, const struct hra_rows *rows, int count, hra_type to_type,
                               hra_type from_type, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.combine(c->portable, rows, count, to_type, from_type, stream);
}

static hra_status sm90_clear(void *state, void *data, size_t bytes, void *stream)
{
    const struct sm90 *c = state;
    return hra_backend_cuda.clear(c->portable, data, bytes, stream);
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

static hra_status sm90_make_marks(void **out, int count)
{
    return hra_backend_cuda.make_marks(out, count);
}

static void sm90_drop_marks(void *marks, int count)
{
    hra_backend_cuda.drop_marks(marks, count);
}

static hra_status sm90_set_mark(void *marks, int n, void *stream)
{
    return hra_backend_cuda.set_mark(marks, n, stream);
}

static hra_status sm90_read_marks(const void *marks, int count, double *out_s)
{
    return hra_backend_cuda.read_marks(marks, count, out_s);
}

/* The two differ in backward. */
#define HRA_SM90_TABLE(how, writes, bits, prefix)                                                            \
    {                                                                                                        \
        .name = "sm90", .method = how, .writes_gradients = writes, .has_margin = writes,                     \
        .suits = sm90_suits, .takes_tokens = sm90_takes_tokens, .blocking = 0, .alignment = 256,             \
        .tensor_alignment = 16, .layout = {&bits_of_threads, bits}, .open = prefix##_open,                   \
        .close = sm90_close, .prepare = sm90_prepare, .workspace_bytes = prefix##_workspace,                 \
        .make_mirror = sm90_make_mirror, .drop_mirror = sm90_drop_mirror, .to_mirror = sm90_to_mirror,       \
        .from_mirror = sm90_from_mirror, .wait = sm90_wait, .records = sm90_records,                         \
        .make_marks = sm90_make_marks, .drop_marks = sm90_drop_marks, .set_mark = sm90_set_mark,             \
        .read_marks = sm90_read_marks, .forward = sm90_forward, .backward = prefix##_backward,               \
        .delta = prefix##_delta, .combine = sm90_combine, .clear = sm90_clear, .reorder = sm90_reorder,      \
    }

const struct hra_backend hra_backend_sm90 = HRA_SM90_TABLE("fused", 1, &bits_by_key, sm90);
const struct hra_backend hra_backend_sm90_cublas = HRA_SM90_TABLE("cublas", 0, &rows_of_bits, cublas);

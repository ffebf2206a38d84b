/* layer.h - a problem with its plan, as the tests on GPUs run it, and how they say what failed. */
#ifndef HRA_TESTS_GPU_LAYER_H
#define HRA_TESTS_GPU_LAYER_H

#include "examples/tools/device.h"
#include "examples/tools/problem.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

extern int failures; /* checks that did not hold, in this process */
extern int own_rank; /* for messages */

#define SAY(condition, ...)                                                                                  \
    do {                                                                                                     \
        fprintf(stderr, "rank %d, %s:%d: %s: ", own_rank, __FILE__, __LINE__, condition);                    \
        fprintf(stderr, __VA_ARGS__);                                                                        \
        fputc('\n', stderr);                                                                                 \
    } while (0)

#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            SAY(#condition, __VA_ARGS__);                                                                    \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

/* What must succeed for the test to go on. */
#define NEED(status, why)                                                                                    \
    do {                                                                                                     \
        if ((status) != 0) {                                                                                 \
            SAY(#status, "%s", why);                                                                         \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define NEED_HRA(call) NEED(call, hra_last_error())
#define NEED_DEVICE(call) NEED(call, device_error())
#define NEED_CUDA(call) NEED(call, cudaGetErrorString(cudaGetLastError()))

/* Of the host, zeroed, and of the device; the caller's. */
void *take(int64_t count, size_t bytes);
void *take_there(size_t bytes);

double now_s(void);
void rest(double seconds);

/* Free bytes of the GPU. */
size_t free_memory(void);

/* What is put on the stream next waits until *released is 1. */
void hold_stream(cudaStream_t stream, atomic_int *released);

/* ---- Tensors of a problem ---- */

enum { Q, K, V, DO, DLSE, O, LSE, DQ, DK, DV, TENSORS, INPUTS = O };

struct tensor_kind {
    const char *name;
    int kv, value, sums; /* key heads; channels dim_v; [batch][heads][rows] of hra_type_sums */
};
extern const struct tensor_kind kinds[TENSORS];

int heads_of(const struct problem *p, int n);
int channels_of(const struct problem *p, int n);
hra_type type_of(const struct problem *p, int n);
int64_t count_of(const struct problem *p, int n, int64_t rows);

/* Order and mask of `problem` are string literals. */
struct problem problem_of(int64_t tokens, const char *order, const char *mask, hra_type type);

/* ---- Layers ---- */

/* A problem with its plan, and memory of the GPU for everything that its calls touch. */
struct layer {
    struct problem problem;
    struct setup setup;
    hra_comm *comm;
    hra_plan *plan;
    hra_plan_info info;
    int64_t rows;
    hra_tensor t[TENSORS]; /* without gaps, (batch, seq, head, dim) */
    void *workspace, *saved;
};

/* Of tensor n of our rows. */
size_t bytes_of(const struct layer *l, int n);

/* Collective, like all that follows but for what only reads or writes the layer's own memory. */
void layer_open(struct layer *l, const struct problem *p, hra_comm *comm);
void layer_close(struct layer *l);

hra_status layer_forward(struct layer *l, void *stream);
hra_status layer_backward(struct layer *l, void *stream);

/* Numbers of the inputs for our rows; `set` names one of many. Ranks have different ones. */
void layer_set_inputs(struct layer *l, int set);

/* All bytes of the outputs, the caller's. */
unsigned char *layer_outputs(const struct layer *l, size_t *bytes);
void layer_forget_outputs(struct layer *l);

/* Wait for the stream, and then for everything else. */
void layer_wait(struct layer *l, void *stream);

/* The outputs are those bytes. */
void layer_expect(const struct layer *l, const unsigned char *wanted, const char *what, int number);

/* Outputs of inputs `set`, by calls on `stream`; the caller's. */
unsigned char *layer_step(struct layer *l, int set, void *stream, size_t *bytes);

/* Forward and backward as a graph; nothing is computed yet. */
cudaGraphExec_t layer_record(struct layer *l, cudaStream_t stream);

/* A graph that is replayed with changing inputs, among calls that are not recorded, gives the bits of those
 * calls. */
void layer_replay(hra_comm *comm, const struct problem *p, int replays);

#endif

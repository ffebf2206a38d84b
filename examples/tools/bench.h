/* bench.h - what the parts of hra-bench share: how they fail, and the things that are timed. */
#ifndef HRA_TOOLS_BENCH_H
#define HRA_TOOLS_BENCH_H

#include "examples/tools/problem.h"
#include "examples/tools/times.h"
#include "examples/tools/world.h"

/* ---- Failures and memory ---- */

/* Go on where status is HRA_OK. What is asked is the same on every rank, and so is the answer that it cannot be:
 * then rank 0 gives the library's sentence, and all end with exit status 2. Of other failures each rank says what it
 * knows. */
void demand(hra_status status);

/* The same of what returns 0 or -1 and a sentence: the backend's memory and what was enqueued there; others. */
void need(int status);
void need_of(int status, const char *what, const char *why);

/* count x bytes of the host, the caller's. Does not fail. */
void *take(int64_t count, size_t bytes);

/* ---- What is timed ---- */

/* `count` normal random numbers of a type, where the backend computes; series 0: uninitialised. NULL: no memory, and
 * device_error says so. */
void *numbers(hra_type type, int64_t count, uint64_t series);

/* A tensor [batch][rows][heads][dim] of such numbers, with strides of whole 16 bytes, as GPUs want them. data is NULL
 * where there is no memory. */
hra_tensor tensor(const hra_problem *p, int64_t rows, int heads, int dim, uint64_t series);

/* The matrix product C = A B^T of square matrices, beside which all is timed. */
struct product {
    const char *name;
    int64_t n;
    void *a, *b, *c;
    void *cublas; /* NULL on the host */
};

/* threads: of the BLAS, on the host. */
void product_open(struct product *out, int threads, uint64_t seed);
void product_run(const struct product *g);
void product_close(struct product *g);

/* A plan with everything that its calls read and write. */
struct layer {
    hra_plan *plan;
    hra_plan_info info;
    hra_tensor q, k, v, g, o, dq, dk, dv; /* g: gradient of o */
    void *lse, *workspace, *saved;
};

/* Collective over comm. 0; -1 where this rank has no memory for the tensors: then the layer is closed again. */
int layer_open(struct layer *l, hra_comm *comm, const struct setup *s, uint64_t seed);
void layer_forward(struct layer *l);
void layer_backward(struct layer *l);
void layer_close(struct layer *l);

/* Between GPUs: once a stream has passed the gate, all ranks have come. Collective; the caller's, to be given to
 * hra_hops_destroy. */
void open_gate(hra_hops **out, hra_comm *comm);

/* What the stream gets next is done by all ranks at once: else one that is ahead would have its waiting timed. gate NULL:
 * the ranks meet on the host. */
void fall_in(hra_hops *gate);

/* All that was enqueued is done, on every rank or with a failure's sentence. */
void finish(hra_comm *comm);

/* ---- Timelines ---- */

/* What trace.c is asked for. */
struct timeline_wanted {
    const struct connection *connection;
    const struct problem *problem;
    const char *path;  /* of the picture */
    const char *model; /* of the file that describes the machine */
    int repeat, json;
};

/* Records both passes and draws them below their forecast. The setup's machine becomes the model's. */
void bench_timeline(struct setup *s, const struct timeline_wanted *w);

/* ---- Hops ---- */

/* What hops.c is asked for. */
struct hops_wanted {
    const struct connection *connection;
    hra_type type;            /* of what is computed beside them */
    hra_backend_kind backend; /* what computes it */
    int64_t tokens;           /* of it */
    uint64_t seed;
    int64_t bytes; /* of a hop; 0: 1 to 256 MiB */
    int repeat, json;
};

/* Times hops of the transport, alone and beside compute, and prints them. Two ranks or more. */
void bench_hops(const struct hops_wanted *w);

#endif

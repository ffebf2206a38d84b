/* model.h - a small transformer whose attention runs through libhra, and its gradients.
 *
 * Every rank holds all parameters and the rows that the plan gives it. All layers but attention work
 * on each row alone, so they need no other rank; hra_forward and hra_backward see to the rest.
 *
 *     x  = embed(input)                                     [rows][dim]
 *     x += wo . attention(rope(wqkv . norm(x) + bqkv))      layers times, with
 *     x += w2 . silu(w1 . norm(x))                          norm(x) = g x / rms(x)
 *     output = head . norm(x) + bias                        [rows][out]
 *
 * Text: a row is a byte, the output the 256 logits of the next one. Picture: a row is a pixel, the
 * output its colour. The rotary encoding turns by the token's index in a text, and in a picture half
 * of the channel pairs turn by its row and half by its column. */
#ifndef TRAIN_MODEL_H
#define TRAIN_MODEL_H

#include <hra/hra.h>
#include <stdint.h>

enum {
    MODEL_PIXEL = 5, /* numbers that a pixel enters with: r, g, b, each 0 where unknown, known, 1 */
    MODEL_FF = 4     /* the hidden layer between w1 and w2 is this many times as wide as dim */
};

struct model_config {
    int picture; /* 1: pixels in, colours out; 0: bytes in, next byte out */
    int layers;
    int dim;              /* channels of a row */
    int heads;            /* query heads; dim / heads channels each, a multiple of 2, in a picture of 4 */
    int heads_kv;         /* key and value heads; divides heads */
    int64_t grid_columns; /* of the picture; token = row * grid_columns + column */
    uint64_t seed;        /* of the initial parameters */
};

/* One step's rows of this rank, all [rows] in plan order; the caller's. */
struct model_batch {
    const uint8_t *byte;               /* text: the bytes read */
    const uint8_t *next;               /* text: the byte that follows each */
    const float (*pixel)[MODEL_PIXEL]; /* picture: what is read */
    const float (*colour)[3];          /* picture: the true colours, 0 to 1 */
    const float *weight;               /* how much each row counts; NULL: 1 each */
    double total;                      /* the weights' sum over the rows of all ranks */
};

struct model;

/* Make a model for the rows of this rank in plan, with initial parameters. Borrows plan, which must
 * outlive it. HRA_ERR_MEMORY, or what the plan says. Not collective. */
hra_status model_create(struct model **out, const struct model_config *config, hra_plan *plan, int rank);

/* Parameters of all layers in one array [model_count], the same on every rank as long as the caller
 * changes them alike, and their gradient of the last backward on this rank's rows alone. */
int64_t model_count(const struct model *m);
float *model_parameters(struct model *m);
float *model_gradient(struct model *m);

/* The loss of a batch and, where `backward` is set, its gradient. *loss is this rank's share: the
 * shares of all ranks add up to the mean over the batch, and so do the gradients. The loss of a text
 * row is -ln p(next), in nats; of a pixel the mean over r, g, b of model_distance. Collective over
 * the plan's ranks. */
hra_status model_run(struct model *m, const struct model_batch *batch, int backward, double *loss);

/* |difference| made smooth near 0, where the gradient of |difference| would jump by rounding. */
double model_distance(double difference);

/* What the last model_run gave: [rows][3] colours; for a text undefined after backward. */
const float *model_output(const struct model *m);

/* Accepts NULL and a half-built model. */
void model_destroy(struct model *m);
#endif

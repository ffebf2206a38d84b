/* state.h - what a training run is at a step: Adam's moments, the losses so far, and the file that
 * keeps them together with the parameters.
 *
 * A checkpoint, all numbers in this machine's byte order:
 *     magic       8 bytes  "hraTrain"
 *     version     u32      CHECKPOINT_VERSION
 *     text_bytes  u32      length of the configuration
 *     step        i64      steps done
 *     count       i64      parameters
 *     config      text_bytes: lines "name value", without '\0'
 *     parameter, first, second   f32 [count] each
 *     history     f64 [step]
 *     sum         u64      FNV-1a over all bytes before it, taken as u32 words at a time */
#ifndef TRAIN_STATE_H
#define TRAIN_STATE_H

#include <stdint.h>

struct state {
    int64_t step;     /* steps done */
    int64_t steps;    /* of the whole run; the learning rate falls towards its end */
    int64_t count;    /* parameters */
    float *parameter; /* [count] borrowed from the model */
    float *first;     /* [count] Adam's running mean of the gradient */
    float *second;    /* [count] and of its square */
    double *history;  /* [steps] the loss of each step done */
};

/* Zeroed moments. -1: no memory. */
int state_create(struct state *s, float *parameter, int64_t count, int64_t steps);

/* The learning rate of a step: rises over the first steps, then falls along a cosine to a tenth. */
double state_rate(const struct state *s, double highest);

/* One step of Adam (Kingma, Ba 2015): clips gradient [count] to norm 1, changes the parameters,
 * records the loss and counts the step. */
void state_advance(struct state *s, const float *gradient, double highest, double loss);

/* Whether state_save could write there now: asked before the work, not after it. */
int state_try(const char *path, char *why);

/* Write to `path` so that at any time either the old file or the whole new one is there. */
int state_save(const struct state *s, const char *config, const char *path, char *why);

/* Read what state_save wrote; refuses what is no checkpoint, is cut off or damaged, or belongs to
 * another configuration, and then leaves *s as it was. */
int state_load(struct state *s, const char *config, const char *path, char *why);

/* Accepts a zeroed state. */
void state_destroy(struct state *s);
#endif

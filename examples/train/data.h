/* data.h - what hra-train learns from: a text or a photograph, and which part of it a step sees. All
 * choices follow from (seed, step) alone, so they are the same on any number of ranks. */
#ifndef TRAIN_DATA_H
#define TRAIN_DATA_H

#include <stdint.h>

struct text {
    uint8_t *byte; /* [count] owned */
    int64_t count;
    int64_t train; /* the first `train` bytes are trained on, the others only looked at in the end */
};

/* Read a file whose first nine tenths hold more than `tokens` bytes. */
int text_read(struct text *t, const char *path, int64_t tokens, char *why);

/* Where step `step` starts to read; tokens + 1 bytes from there lie in the training part. */
int64_t text_start(const struct text *t, int64_t tokens, uint64_t seed, int64_t step);

/* Nats a byte of guessing each byte by its frequency in the training part: on that part itself, and
 * on the held-out part (each frequency + 1, as there may be bytes that training lacks). */
double text_entropy(const struct text *t, int held_out);

struct photo {
    int width, height;
    float *rgb;      /* [height][width][3], 0 to 1, owned */
    uint8_t *hidden; /* [height][width] 1: never seen by the training, to be filled in; owned */
    int64_t hiddens; /* pixels hidden */
};

enum { PHOTO_LEAST = 16, PHOTO_WINDOW = 6 };

/* Read a PNG of at least PHOTO_LEAST x PHOTO_LEAST pixels and hide about three tenths of it: blocks of
 * 4 x 4 pixels, single pixels, and a line drawn across. */
int photo_read(struct photo *p, const char *path, char *why);
int photo_hide(struct photo *p, uint64_t seed);

/* dropped [height][width]: 1 for the known pixels that step `step` must predict without seeing them,
 * about one in seven, in blocks and single. Returns how many. */
int64_t photo_drop(const struct photo *p, uint64_t seed, int64_t step, uint8_t *dropped);

/* filled [height][width][3]: the photo with each hidden pixel replaced by the mean of the known ones
 * at most PHOTO_WINDOW away in both axes, or by the mean of the nearest ring of pixels that has a
 * known one. What a model must beat. */
void photo_fill_mean(const struct photo *p, float *filled);
void photo_fill_nearest(const struct photo *p, float *filled);

/* Mean of |filled - photo| over the colours of the hidden pixels. */
double photo_error(const struct photo *p, const float *filled);

void text_free(struct text *t);
void photo_free(struct photo *p);
#endif

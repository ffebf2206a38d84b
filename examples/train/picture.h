/* picture.h - PNG files in and out, through cairo: photographs, the three panels, the loss curve. */
#ifndef TRAIN_PICTURE_H
#define TRAIN_PICTURE_H

#include <stdint.h>

/* Read a PNG. *rgb is new, [height][width][3], 0 to 1, the caller's to free. */
int picture_read(float **rgb, int *width, int *height, const char *path, char *why);

/* One panel: a picture of rgb [height][width][3], values outside 0 to 1 cut, and a line below it. */
struct panel {
    const float *rgb;
    const char *caption;
};

/* Write panels side by side, enlarged by a whole factor so that pixels stay visible. */
int picture_write_panels(const char *path, const struct panel *panel, int panels, int width, int height,
                         char *why);

/* A curve over the steps 1 .. count and what to write around it. */
struct curve {
    const double *value; /* [count] */
    int64_t count;
    const char *title, *unit; /* unit: label of the vertical axis */
    double line;              /* a level to compare with, drawn dashed; NAN: none */
    const char *line_name;    /* what the level is */
};

/* Write a PNG with axes, numbers, every value as a thin line and a running mean as a thick one. */
int picture_write_curve(const char *path, const struct curve *curve, char *why);
#endif

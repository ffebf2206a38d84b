/* picture.c - see picture.h. */
#include "examples/train/picture.h"
#include "examples/train/fail.h"

#include <cairo.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double INK[3] = {0.13, 0.15, 0.20}, FAINT[3] = {0.86, 0.87, 0.90}, THIN[3] = {0.66, 0.76, 0.90},
                    THICK[3] = {0.10, 0.35, 0.70}, LEVEL[3] = {0.75, 0.30, 0.10};

static void set(cairo_t *c, const double *colour)
{
    cairo_set_source_rgb(c, colour[0], colour[1], colour[2]);
}

/* Write text with its anchor at (x, y): align 0 starts there, 0.5 is centred, 1 ends there. */
static void text(cairo_t *c, double x, double y, double align, const char *s)
{
    cairo_text_extents_t e;

    cairo_text_extents(c, s, &e);
    cairo_move_to(c, x - align * e.x_advance, y);
    cairo_show_text(c, s);
}

static void font(cairo_t *c, double points, int bold)
{
    cairo_select_font_face(c, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(c, points);
}

int picture_read(float **rgb, int *width, int *height, const char *path, char *why)
{
    cairo_surface_t *file = cairo_image_surface_create_from_png(path);
    cairo_status_t status = cairo_surface_status(file);

    if (status != CAIRO_STATUS_SUCCESS) {
        cairo_surface_destroy(file);
        /* What is no PNG and what is cut off are "out of memory" to cairo as well. */
        return train_fail(why, "cannot read %s as a PNG: %s", path,
                          status == CAIRO_STATUS_NO_MEMORY ? "it is none or damaged, or too large for memory"
                                                           : cairo_status_to_string(status));
    }
    /* Painted onto white, files of every depth and with transparency become one known format. */
    const int w = cairo_image_surface_get_width(file), h = cairo_image_surface_get_height(file);
    cairo_surface_t *plain = cairo_image_surface_create(CAIRO_FORMAT_RGB24, w, h);
    cairo_t *c = cairo_create(plain);
    cairo_set_source_rgb(c, 1, 1, 1);
    cairo_paint(c);
    cairo_set_source_surface(c, file, 0, 0);
    cairo_paint(c);
    status = cairo_status(c);
    cairo_destroy(c);
    cairo_surface_destroy(file);
    cairo_surface_flush(plain);

    float *values = malloc((size_t)w * (size_t)h * 3 * sizeof(*values));
    if (status != CAIRO_STATUS_SUCCESS || values == NULL) {
        free(values);
        cairo_surface_destroy(plain);
        return train_fail(why, "no memory for %s, %d x %d pixels", path, w, h);
    }
    const unsigned char *line = cairo_image_surface_get_data(plain);
    for (int y = 0; y < h; y++, line += cairo_image_surface_get_stride(plain)) {
        for (int x = 0; x < w; x++) {
            uint32_t word; /* 0x00rrggbb in this machine's byte order */
            memcpy(&word, line + 4 * x, sizeof(word));
            float *v = values + 3 * ((int64_t)y * w + x);
            for (int i = 0; i < 3; i++)
                v[i] = (float)(word >> (16 - 8 * i) & 255) / 255;
        }
    }
    cairo_surface_destroy(plain);
    *rgb = values;
    *width = w;
    *height = h;
    return 0;
}

static cairo_surface_t *surface_of(const float *rgb, int width, int height)
{
    cairo_surface_t *s = cairo_image_surface_create(CAIRO_FORMAT_RGB24, width, height);

    if (cairo_surface_status(s) != CAIRO_STATUS_SUCCESS)
        return s;
    unsigned char *line = cairo_image_surface_get_data(s);
    for (int y = 0; y < height; y++, line += cairo_image_surface_get_stride(s)) {
        for (int x = 0; x < width; x++) {
            const float *v = rgb + 3 * ((int64_t)y * width + x);
            uint32_t word = 0;
            for (int i = 0; i < 3; i++)
                word = word << 8 | (uint32_t)lrintf(255 * fminf(1, fmaxf(0, v[i])));
            memcpy(line + 4 * x, &word, sizeof(word));
        }
    }
    cairo_surface_mark_dirty(s);
    return s;
}

/* Write and free both. */
static int finish(cairo_t *c, cairo_surface_t *s, const char *path, char *why)
{
    cairo_status_t status = cairo_status(c);

    cairo_destroy(c);
    if (status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_write_to_png(s, path);
    cairo_surface_destroy(s);
    if (status != CAIRO_STATUS_SUCCESS)
        return train_fail(why, "cannot write %s: %s", path, cairo_status_to_string(status));
    return 0;
}

int picture_write_panels(const char *path, const struct panel *panel, int panels, int width, int height,
                         char *why)
{
    const int larger = width > height ? width : height, scale = larger >= 400 ? 1 : 400 / larger;
    const int gap = 16, below = 30, w = width * scale, h = height * scale;
    cairo_surface_t *s =
        cairo_image_surface_create(CAIRO_FORMAT_RGB24, gap + panels * (w + gap), gap + h + below);
    cairo_t *c = cairo_create(s);

    cairo_set_source_rgb(c, 1, 1, 1);
    cairo_paint(c);
    font(c, 15, 0);
    for (int i = 0; i < panels; i++) {
        const int x = gap + i * (w + gap);
        cairo_surface_t *image = surface_of(panel[i].rgb, width, height);
        cairo_save(c);
        cairo_translate(c, x, gap);
        cairo_scale(c, scale, scale);
        cairo_set_source_surface(c, image, 0, 0);
        cairo_pattern_set_filter(cairo_get_source(c), CAIRO_FILTER_NEAREST);
        cairo_paint(c);
        cairo_restore(c);
        cairo_surface_destroy(image);
        set(c, INK);
        text(c, x + w / 2.0, gap + h + 20, 0.5, panel[i].caption);
    }
    return finish(c, s, path, why);
}

/* The step between axis numbers: 1, 2 or 5 times a power of ten, about `wanted` of them. */
static double tick(double span, int wanted)
{
    const double raw = span / wanted, power = pow(10, floor(log10(raw))), part = raw / power;

    return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

/* Where the plot lies in the picture and what it spans. */
struct axes {
    double left, right, top, bottom; /* pixels */
    double x0, x1, y0, y1;           /* values at the edges */
};

static double px(const struct axes *a, double x)
{
    return a->left + (x - a->x0) / (a->x1 - a->x0) * (a->right - a->left);
}

static double py(const struct axes *a, double y)
{
    return a->bottom - (y - a->y0) / (a->y1 - a->y0) * (a->bottom - a->top);
}

static void draw_axes(cairo_t *c, const struct axes *a, const struct curve *curve)
{
    const double dx = fmax(1, tick(a->x1 - a->x0, 8)), dy = tick(a->y1 - a->y0, 7);
    const int digits = dy >= 1 ? 0 : (int)ceil(-log10(dy) - 1e-9);
    char number[32];

    font(c, 14, 0);
    cairo_set_line_width(c, 1);
    for (double y = ceil(a->y0 / dy - 1e-9) * dy; y <= a->y1 + 1e-9 * dy; y += dy) {
        set(c, FAINT);
        cairo_move_to(c, a->left, floor(py(a, y)) + 0.5);
        cairo_line_to(c, a->right, floor(py(a, y)) + 0.5);
        cairo_stroke(c);
        set(c, INK);
        snprintf(number, sizeof(number), "%.*f", digits, fabs(y) < 1e-9 * dy ? 0 : y);
        text(c, a->left - 9, py(a, y) + 5, 1, number);
    }
    for (double x = 0; x <= a->x1 + 1e-9; x += dx) {
        set(c, FAINT);
        cairo_move_to(c, floor(px(a, x)) + 0.5, a->top);
        cairo_line_to(c, floor(px(a, x)) + 0.5, a->bottom);
        cairo_stroke(c);
        set(c, INK);
        snprintf(number, sizeof(number), "%.0f", x);
        text(c, px(a, x), a->bottom + 21, 0.5, number);
    }
    cairo_rectangle(c, floor(a->left) + 0.5, floor(a->top) + 0.5, a->right - a->left, a->bottom - a->top);
    cairo_stroke(c);
    text(c, (a->left + a->right) / 2, a->bottom + 46, 0.5, "step");
    cairo_save(c);
    cairo_translate(c, 24, (a->top + a->bottom) / 2);
    cairo_rotate(c, -acos(-1) / 2);
    text(c, 0, 0, 0.5, curve->unit);
    cairo_restore(c);
    font(c, 17, 1);
    text(c, a->left, a->top - 18, 0, curve->title);
}

/* Mean of the `width` values up to and with index i. */
static double running(const struct curve *curve, int64_t i, int64_t width)
{
    const int64_t from = i + 1 > width ? i + 1 - width : 0;
    double sum = 0;

    for (int64_t j = from; j <= i; j++)
        sum += curve->value[j];
    return sum / (double)(i + 1 - from);
}

int picture_write_curve(const char *path, const struct curve *curve, char *why)
{
    const int width = 900, height = 560;
    const int64_t mean = curve->count / 40 > 1 ? curve->count / 40 : 1;
    struct axes a = {88, width - 30, 56, height - 70, 0, (double)(curve->count > 1 ? curve->count : 1), 0, 0};
    char label[160];

    double low = isnan(curve->line) ? INFINITY : curve->line,
           high = isnan(curve->line) ? -INFINITY : curve->line;
    for (int64_t i = 0; i < curve->count; i++) {
        low = fmin(low, curve->value[i]);
        high = fmax(high, curve->value[i]);
    }
    if (!isfinite(low) || !isfinite(high))
        return train_fail(why, "cannot draw %s: there are losses that are no numbers", path);
    if (high <= low)
        high = low + (low == 0 ? 1 : fabs(low));
    const double dy = tick(high - low, 7);
    a.y0 = low < 0.35 * high && low >= 0 ? 0 : floor(low / dy) * dy;
    a.y1 = ceil(high / dy + 0.1) * dy;

    cairo_surface_t *s = cairo_image_surface_create(CAIRO_FORMAT_RGB24, width, height);
    cairo_t *c = cairo_create(s);
    cairo_set_source_rgb(c, 1, 1, 1);
    cairo_paint(c);
    draw_axes(c, &a, curve);

    for (int thick = 0; thick < 2; thick++) {
        set(c, thick ? THICK : THIN);
        cairo_set_line_width(c, thick ? 2.5 : 1);
        cairo_set_line_join(c, CAIRO_LINE_JOIN_ROUND);
        cairo_new_path(c); /* text leaves a current point behind */
        for (int64_t i = 0; i < curve->count; i++)
            cairo_line_to(c, px(&a, (double)i + 1),
                          py(&a, thick ? running(curve, i, mean) : curve->value[i]));
        cairo_stroke(c);
    }
    if (!isnan(curve->line)) {
        const double dash[2] = {7, 5};
        set(c, LEVEL);
        cairo_set_line_width(c, 1.5);
        cairo_set_dash(c, dash, 2, 0);
        cairo_move_to(c, a.left, py(&a, curve->line));
        cairo_line_to(c, a.right, py(&a, curve->line));
        cairo_stroke(c);
        font(c, 14, 0);
        snprintf(label, sizeof(label), "%s: %.4g", curve->line_name, curve->line);
        text(c, a.right - 8, py(&a, curve->line) - 7, 1, label);
    }
    font(c, 14, 0);
    set(c, THICK);
    if (mean > 1)
        snprintf(label, sizeof(label), "thick: mean of the last %lld steps, at the end %.4g", (long long)mean,
                 running(curve, curve->count - 1, mean));
    else
        snprintf(label, sizeof(label), "at the end %.4g",
                 curve->count > 0 ? curve->value[curve->count - 1] : 0);
    text(c, a.right - 8, a.top + 20, 1, label);
    return finish(c, s, path, why);
}

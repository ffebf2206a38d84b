/* page.h - what pictures are drawn with: a page that becomes a PNG or SVG file, strokes and text. Everything is drawn with
 * cairo; in a build without it there is page_check only, which refuses every path. Functions are defined here, for the two
 * files that draw. */
#ifndef HRA_TOOLS_PAGE_H
#define HRA_TOOLS_PAGE_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static inline int wrong(char *error, size_t error_bytes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static inline int wrong(char *error, size_t error_bytes, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(error, error_bytes, format, list);
    va_end(list);
    return -1;
}

static inline int ends_in(const char *path, const char *suffix)
{
    const size_t path_bytes = strlen(path), bytes = strlen(suffix);
    return path_bytes > bytes && strcmp(path + path_bytes - bytes, suffix) == 0;
}

/* Whether a picture can be written to `path` as far as its name says: 0, or -1 and one sentence in error [error_bytes]. */
static inline int page_check(const char *path, char *error, size_t error_bytes)
{
#ifndef HRA_HAVE_CAIRO
    return wrong(error, error_bytes, "%s: this build draws no pictures, as it was configured without cairo",
                 path);
#else
    if (!ends_in(path, ".png") && !ends_in(path, ".svg"))
        return wrong(error, error_bytes, "%s: the name of a picture ends in .png or .svg", path);
    return 0;
#endif
}

#ifdef HRA_HAVE_CAIRO

#include <cairo-svg.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* ---- The page ------------------------------------------------------------------------------ */

/* A surface of one of the two formats, and the bytes of its file, which are written when all of it is drawn. */
struct page {
    int svg;
    cairo_t *c;
    cairo_surface_t *surface;
    FILE *store; /* a stream into bytes */
    char *bytes;
    size_t count;
};

struct colour {
    double r, g, b;
};

static const struct colour INK = {0.13, 0.15, 0.20}, FAINT = {0.45, 0.48, 0.54}, PAPER = {1, 1, 1},
                           EMPTY = {0.93, 0.94, 0.95}, FULL = {0.10, 0.24, 0.45}, KV = {0.12, 0.38, 0.72},
                           DKV = {0.78, 0.22, 0.10};

enum { MARGIN = 24, LINE = 20 }; /* pixels around a page, and between its lines of text */

static inline cairo_status_t store(void *stream, const unsigned char *data, unsigned bytes)
{
    return fwrite(data, 1, bytes, stream) == bytes ? CAIRO_STATUS_SUCCESS : CAIRO_STATUS_WRITE_ERROR;
}

/* Make the white page. Once, before anything is drawn; what fails shows when the page is closed. */
static inline cairo_t *open_page(struct page *page, double width, double height)
{
    if (page->svg) {
        page->surface = cairo_svg_surface_create_for_stream(store, page->store, ceil(width), ceil(height));
        if (cairo_surface_status(page->surface) == CAIRO_STATUS_SUCCESS)
            cairo_svg_surface_set_document_unit(page->surface, CAIRO_SVG_UNIT_PX);
    } else
        page->surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, (int)ceil(width), (int)ceil(height));
    page->c = cairo_create(page->surface);
    cairo_font_options_t *options = cairo_font_options_create();
    cairo_font_options_set_antialias(options, CAIRO_ANTIALIAS_GRAY);
    cairo_set_font_options(page->c, options);
    cairo_font_options_destroy(options);
    cairo_set_source_rgb(page->c, PAPER.r, PAPER.g, PAPER.b);
    cairo_paint(page->c);
    return page->c;
}

/* Round the pixels to 16 levels a channel: edges of letters and slanted lines look the same, and the file is smaller
 * by a third. */
static inline void round_pixels(cairo_surface_t *surface)
{
    cairo_surface_flush(surface);
    unsigned char *row = cairo_image_surface_get_data(surface);
    const int height = row != NULL ? cairo_image_surface_get_height(surface) : 0,
              bytes = 4 * cairo_image_surface_get_width(surface);

    for (int y = 0; y < height; y++, row += cairo_image_surface_get_stride(surface))
        for (int i = 0; i < bytes; i++)
            row[i] = (unsigned char)((row[i] + 8) / 17 * 17);
    cairo_surface_mark_dirty(surface);
}

/* Bring what was drawn into page->bytes. */
static inline cairo_status_t close_page(struct page *page)
{
    cairo_status_t status = cairo_status(page->c);

    if (status == CAIRO_STATUS_SUCCESS && !page->svg) {
        round_pixels(page->surface);
        status = cairo_surface_write_to_png_stream(page->surface, store, page->store);
    }
    cairo_destroy(page->c);
    cairo_surface_finish(page->surface);
    if (status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_status(page->surface);
    cairo_surface_destroy(page->surface);
    return status;
}

static inline int write_file(const char *path, const char *bytes, size_t count, char *error,
                             size_t error_bytes)
{
    FILE *file = fopen(path, "wb");

    if (file == NULL)
        return wrong(error, error_bytes, "cannot open %s for writing: %s", path, strerror(errno));
    errno = 0;
    const int whole = fwrite(bytes, 1, count, file) == count;
    if (fclose(file) != 0 || !whole)
        return wrong(error, error_bytes, "cannot write the %zu bytes of %s: %s", count, path,
                     errno != 0 ? strerror(errno) : "cut short");
    return 0;
}

/* ---- Strokes and text ---------------------------------------------------------------------- */

static inline void set(cairo_t *c, struct colour k, double alpha)
{
    if (alpha < 1)
        cairo_set_source_rgba(c, k.r, k.g, k.b, alpha);
    else
        cairo_set_source_rgb(c, k.r, k.g, k.b);
}

static inline struct colour between(struct colour a, struct colour b, double t)
{
    return (struct colour){a.r + t * (b.r - a.r), a.g + t * (b.g - a.g), a.b + t * (b.b - a.b)};
}

/* The colour of a rank: hues a golden angle apart, so that ranks with near numbers look least alike, and five
 * depths, as 8 or 13 ranks on the hue is nearly the same; pale enough for black on top. */
static inline struct colour rank_colour(int rank)
{
    const double hue = fmod(0.58 + 0.6180339887498949 * rank, 1), depth = 0.18 + 0.07 * (2 * rank % 5);
    double part[3];

    for (int i = 0; i < 3; i++) {
        const double away =
            fabs(fmod(hue + 1 - i / 3.0, 1) * 6 - 3); /* 3 at the primary itself, 0 opposite */
        part[i] = 0.96 * (1 - depth * (1 - fmin(1, fmax(0, away - 1))));
    }
    return (struct colour){part[0], part[1], part[2]};
}

static inline void font(cairo_t *c, double size, int bold)
{
    cairo_select_font_face(c, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(c, size);
}

static inline double text_width(cairo_t *c, const char *s)
{
    cairo_text_extents_t e;
    cairo_text_extents(c, s, &e);
    return e.x_advance;
}

/* Write s with its anchor at (x, y): align 0 starts there, 0.5 is centred, 1 ends there. */
static inline void text(cairo_t *c, double x, double y, double align, const char *s)
{
    cairo_move_to(c, x - align * text_width(c, s), y);
    cairo_show_text(c, s);
    cairo_new_path(c);
}

/* Write s from (x, y) on, its end replaced by dots where it is wider than `width`. */
static inline void text_within(cairo_t *c, double x, double y, double width, const char *s)
{
    char cut[400];
    size_t kept = strlen(s) < sizeof(cut) ? strlen(s) : sizeof(cut) - 4;

    snprintf(cut, sizeof(cut), "%.*s%s", (int)kept, s, s[kept] == '\0' ? "" : "...");
    while (kept > 0 && text_width(c, cut) > width)
        snprintf(cut, sizeof(cut), "%.*s...", (int)--kept, s);
    text(c, x, y, 0, cut);
}

/* Lines of text below each other. */
struct lines {
    cairo_t *c;
    double x, y, width;
};

static inline void put_line(struct lines *at, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void put_line(struct lines *at, const char *format, ...)
{
    char line[512];
    va_list list;

    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    text_within(at->c, at->x, at->y, at->width, line);
    at->y += LINE;
}

static inline void line_between(cairo_t *c, double x0, double y0, double x1, double y1)
{
    cairo_move_to(c, x0, y0);
    cairo_line_to(c, x1, y1);
    cairo_stroke(c);
}

/* A frame of one pixel around a rectangle of whole pixels. */
static inline void frame(cairo_t *c, double x, double y, double width, double height)
{
    cairo_rectangle(c, x - 0.5, y - 0.5, width + 1, height + 1);
    cairo_set_line_width(c, 1);
    cairo_stroke(c);
}

static inline void fill(cairo_t *c, double x, double y, double width, double height)
{
    cairo_rectangle(c, x, y, width, height);
    cairo_fill(c);
}

/* ---- Files ---------------------------------------------------------------------------------- */

/* Draw a page, which `draw` opens, and write it. 0, or -1 and one sentence in error [error_bytes]; a file that was there is
 * kept unless its writing had begun. */
static inline int page_write(const char *path, int (*draw)(struct page *page, const void *what),
                             const void *what, char *error, size_t error_bytes)
{
    struct page page = {.svg = ends_in(path, ".svg")};
    cairo_status_t status = CAIRO_STATUS_NO_MEMORY;

    page.store = open_memstream(&page.bytes, &page.count);
    if (page.store == NULL)
        return wrong(error, error_bytes, "no memory to draw %s", path);
    const int drawn = draw(&page, what);
    if (page.c != NULL)
        status = close_page(&page);
    const int stored = fclose(page.store);
    int result;
    if (drawn != 0 || stored != 0 || status != CAIRO_STATUS_SUCCESS)
        result = wrong(error, error_bytes, "cannot draw %s: %s", path,
                       cairo_status_to_string(drawn != 0 || stored != 0 ? CAIRO_STATUS_NO_MEMORY : status));
    else
        result = write_file(path, page.bytes, page.count, error, error_bytes);
    free(page.bytes);
    return result;
}

#endif

#endif

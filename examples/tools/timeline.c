/* timeline.c - see timeline.h. */
#include "examples/tools/timeline.h"
#include "examples/tools/page.h"

int timeline_check(const char *path, char *error, size_t error_bytes)
{
    return page_check(path, error, error_bytes);
}

#ifndef HRA_HAVE_CAIRO

int timeline_write(const char *path, const struct timeline *t, char *error, size_t error_bytes)
{
    (void)t;
    return page_check(path, error, error_bytes);
}

#else

/* A row: the stream of the rank, below it what it receives and what it sends, K/V above dK/dV in each; one below the other
 * for each band. */
enum {
    WIDTH = 1100,
    LEFT = 80,
    BAR = 20,
    STRIP = 4,
    ROW = BAR + 4 * STRIP + 12,
    AXIS = 26,
    HEAD = 40,
    GAP = 34
};

static const struct colour BUSY = {0.55, 0.60, 0.66}, IDLE = {1.00, 0.86, 0.80};

/* One pass on the page. */
struct panel {
    double x, y;  /* of the first row */
    double scale; /* pixels a second */
};

static double row_y(const struct panel *p, int row)
{
    return p->y + row * ROW;
}

/* The height above the rows of a pass. */
static double head_height(const struct timeline *t)
{
    return HEAD + (t->bands - 1) * LINE;
}

/* 1, 2 or 5 times a power of ten, so that there are 5 to 12 of it in `seconds`. */
static double tick(double seconds)
{
    const double power = pow(10, floor(log10(seconds / 5)));
    const double steps[] = {5, 2, 1};

    for (int i = 0; i < 3; i++)
        if (seconds / (steps[i] * power) >= 5)
            return steps[i] * power;
    return power;
}

static void draw_axis(cairo_t *c, const struct panel *p, const struct timeline *t, double seconds)
{
    const double step = tick(seconds), bottom = row_y(p, t->rows * t->bands);
    char number[32];

    font(c, 11, 0);
    cairo_set_line_width(c, 1);
    for (int i = 0; i * step <= seconds * 1.0001; i++) {
        const double x = floor(p->x + i * step * p->scale) + 0.5;
        set(c, EMPTY, 1);
        line_between(c, x, p->y - 4, x, bottom);
        set(c, FAINT, 1);
        snprintf(number, sizeof(number), "%g%s", i * step * 1e3, i == 0 ? " ms" : "");
        text(c, x, bottom + 14, 0.5, number);
    }
}

static void draw_kernel(cairo_t *c, const hra_span *s, double x, double y, double width)
{
    char number[16];

    switch (s->kind) {
    case HRA_SPAN_COMPUTE:
        set(c, rank_colour(s->peer < 0 ? 0 : s->peer), 1);
        break;
    case HRA_SPAN_OTHER:
        set(c, BUSY, 1);
        break;
    default:
        set(c, IDLE, 1);
    }
    fill(c, x, y, width, BAR);
    if (s->kind != HRA_SPAN_COMPUTE || width < 3)
        return;
    set(c, FAINT, 1);
    cairo_set_line_width(c, 0.5);
    cairo_rectangle(c, x, y, width, BAR);
    cairo_stroke(c);
    font(c, 10, 0);
    snprintf(number, sizeof(number), "%d", s->peer);
    set(c, INK, 1);
    if (s->peer >= 0 && text_width(c, number) + 3 <= width)
        text(c, x + width / 2, y + BAR / 2.0 + 4, 0.5, number);
}

static void draw_message(cairo_t *c, const hra_span *s, double x, double y, double width)
{
    const int strip = 2 * (s->kind == HRA_SPAN_SEND) + (s->gradient != 0);

    set(c, s->gradient ? DKV : KV, s->kind == HRA_SPAN_SEND ? 0.55 : 1);
    fill(c, x, y + BAR + 1 + strip * STRIP, width, STRIP - 1);
}

static void draw_row(cairo_t *c, const struct panel *p, const struct timeline *t, int pass, int rank,
                     int number)
{
    const struct timeline_band *band = &t->band[number];
    const double y = row_y(p, rank * t->bands + number);
    char name[32];

    font(c, 12, 0);
    set(c, INK, 1);
    snprintf(name, sizeof(name), "rank %d", rank);
    if (number == 0)
        text(c, p->x - 8, y + BAR / 2.0 + 4, 1, name);
    if (t->bands > 1) {
        font(c, 10, 0);
        set(c, FAINT, 1);
        text(c, p->x - 8, y + BAR / 2.0 + (number == 0 ? 17 : 4), 1, band->name);
    }
    for (int64_t i = 0; i < band->spans[pass][rank]; i++) {
        const hra_span *s = &band->span[pass][rank][i];
        const double x = p->x + s->begin_s * p->scale, width = fmax((s->end_s - s->begin_s) * p->scale, 0.3);
        if (s->kind == HRA_SPAN_SEND || s->kind == HRA_SPAN_RECEIVE)
            draw_message(c, s, x, y, width);
        else
            draw_kernel(c, s, x, y, width);
    }
}

static void draw_head(struct lines *at, const struct timeline *t, int pass, int number)
{
    const hra_forecast_info *info = &t->band[number].info[pass];
    char efficiency[32] = "";

    if (info->efficiency > 0)
        snprintf(efficiency, sizeof(efficiency), ", efficiency %.3f", info->efficiency);
    put_line(at, "%s%s%s: %.4g ms%s, exposed %.4g ms; a rank computes %.4g ms and waits %.4g ms on average",
             pass == HRA_FORWARD ? "forward" : "backward", t->bands > 1 ? " " : "",
             t->bands > 1 ? t->band[number].name : "", 1e3 * info->seconds, efficiency, 1e3 * info->exposed_s,
             1e3 * info->compute_s, 1e3 * info->waiting_s);
}

static void draw_pass(cairo_t *c, double y, const struct timeline *t, int pass)
{
    double seconds = 1e-9;

    for (int number = 0; number < t->bands; number++)
        seconds = fmax(seconds, t->band[number].info[pass].seconds);
    const struct panel p = {.x = MARGIN + LEFT, .y = y + head_height(t), .scale = (WIDTH - LEFT) / seconds};
    struct lines at = {c, MARGIN, y + 14, WIDTH};

    font(c, 13, 1);
    set(c, INK, 1);
    for (int number = 0; number < t->bands; number++)
        draw_head(&at, t, pass, number);
    draw_axis(c, &p, t, seconds);
    for (int rank = 0; rank < t->rows; rank++)
        for (int number = 0; number < t->bands; number++)
            draw_row(c, &p, t, pass, rank, number);
}

static double put_key(cairo_t *c, double x, double y, struct colour k, double alpha, int height,
                      const char *words)
{
    set(c, k, alpha);
    fill(c, x, y - 5 - height / 2.0, 22, height);
    set(c, INK, 1);
    text(c, x + 28, y, 0, words);
    return x + 28 + text_width(c, words) + 22;
}

static void draw_keys(cairo_t *c, double y, const struct timeline *t)
{
    double x = MARGIN;

    font(c, 12, 0);
    x = put_key(c, x, y, rank_colour(0), 1, 13, "computes, the number is the owner of the keys");
    x = put_key(c, x, y, BUSY, 1, 13, "copies, adds, clears");
    put_key(c, x, y, IDLE, 1, 13, "waits");
    x = put_key(c, MARGIN, y + LINE, KV, 1, STRIP, "K/V arrive");
    x = put_key(c, x, y + LINE, DKV, 1, STRIP, "dK/dV arrive");
    x = put_key(c, x, y + LINE, KV, 0.55, STRIP, "K/V leave");
    put_key(c, x, y + LINE, DKV, 0.55, STRIP, "dK/dV leave");
    y += 2 * LINE;
    if (t->bands > 1) {
        text(c, MARGIN, y, 0,
             "measured messages: from when they were started to when the rank had waited for them");
        y += LINE;
    }
    if (t->rows < t->ranks) {
        char words[64];
        snprintf(words, sizeof(words), "the first %d of %d ranks", t->rows, t->ranks);
        text(c, MARGIN, y, 0, words);
    }
}

static int draw(struct page *page, const void *what)
{
    const struct timeline *t = what;
    const double panel = head_height(t) + (double)(t->rows * t->bands) * ROW + AXIS + GAP,
                 top = MARGIN + 2 * LINE + 14;
    cairo_t *c = open_page(page, WIDTH + 2.0 * MARGIN, top + 2 * panel + (2 + t->bands) * LINE + MARGIN);
    struct lines head = {c, MARGIN, MARGIN + 12, WIDTH};

    font(c, 15, 1);
    set(c, INK, 1);
    put_line(&head, "%s", t->title);
    font(c, 12, 0);
    put_line(&head, "%s", t->source);
    for (int pass = 0; pass < 2; pass++)
        draw_pass(c, top + pass * panel, t, pass);
    draw_keys(c, top + 2 * panel, t);
    return 0;
}

int timeline_write(const char *path, const struct timeline *t, char *error, size_t error_bytes)
{
    return page_write(path, draw, t, error, error_bytes);
}

#endif

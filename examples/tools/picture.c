/* picture.c - see picture.h. Everything is drawn with cairo; a build without it refuses every path. */
#include "examples/tools/picture.h"
#include "examples/tools/page.h"

#include <string.h>

int picture_check(const char *path, char *error, size_t error_bytes)
{
    return page_check(path, error, error_bytes);
}

#ifndef HRA_HAVE_CAIRO

int picture_write(const char *path, enum picture_kind kind, const struct picture *p, char *error,
                  size_t error_bytes)
{
    (void)kind;
    (void)p;
    return page_check(path, error, error_bytes);
}

#else

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* ---- Cells --------------------------------------------------------------------------------- */

/* A raster of small numbers that is drawn in colours; what is below 0 is left as it is. */
struct cells {
    int *value; /* [height][width] */
    int width, height;
};

/* Cells of one value. */
struct block {
    int value, x, y, width, height;
};

static int by_value(const void *a, const void *b)
{
    const struct block *p = a, *q = b;
    return p->value != q->value ? (p->value < q->value ? -1 : 1)
           : p->y != q->y       ? (p->y < q->y ? -1 : 1)
                                : (p->x > q->x) - (p->x < q->x);
}

static int make_cells(struct cells *out, int64_t width, int64_t height)
{
    *out = (struct cells){calloc((size_t)(width * height), sizeof(int)), (int)width, (int)height};
    return out->value != NULL ? 0 : -1;
}

/* The largest block of the cell's value to the right of (x, y), then down. */
static struct block grow(const struct cells *s, int x, int y)
{
    const int *row = s->value + (int64_t)y * s->width;
    struct block b = {row[x], x, y, 1, 1};
    int same = 1;

    while (x + b.width < s->width && row[x + b.width] == b.value)
        b.width++;
    while (same && y + b.height < s->height) {
        row += s->width;
        for (int i = x; same && i < x + b.width; i++)
            same = row[i] == b.value;
        b.height += same;
    }
    return b;
}

/* Draw the cells, `size` pixels each, and set them to -1. Equal cells are merged and each colour is one path: an SVG
 * stays small, and viewers show no seams. 0, or -1 where there is no memory. */
static int paint_cells(cairo_t *c, struct cells *s, double x0, double y0, double size,
                       struct colour (*colour)(int value))
{
    struct block *block = NULL;
    int64_t count = 0, room = 0;

    for (int y = 0; y < s->height; y++)
        for (int x = 0; x < s->width; x++) {
            if (s->value[(int64_t)y * s->width + x] < 0)
                continue;
            if (count == room) {
                room = room > 0 ? 2 * room : 1024;
                struct block *more = realloc(block, (size_t)room * sizeof(*block));
                if (more == NULL) {
                    free(block);
                    return -1;
                }
                block = more;
            }
            const struct block b = grow(s, x, y);
            for (int i = 0; i < b.height; i++)
                memset(s->value + (int64_t)(y + i) * s->width + x, -1, (size_t)b.width * sizeof(int));
            block[count++] = b;
        }
    qsort(block, (size_t)count, sizeof(*block), by_value);
    for (int64_t i = 0; i < count; i++) {
        const struct block *b = &block[i];
        cairo_rectangle(c, x0 + b->x * size, y0 + b->y * size, b->width * size, b->height * size);
        if (i + 1 == count || block[i + 1].value != b->value) {
            set(c, colour(b->value), 1);
            cairo_fill(c);
        }
    }
    free(block);
    return 0;
}

/* ---- Pairs --------------------------------------------------------------------------------- */

static struct colour pair_colour(int count)
{
    const struct colour once = {0.38, 0.60, 0.84}, often = {0.07, 0.16, 0.34};
    return count == 0 ? EMPTY : between(once, often, fmin(1, 0.45 * (count - 1)));
}

/* Lines across both ways, every `step` cells. */
static void rule(cairo_t *c, double x0, double y0, int cells, int step, double size)
{
    const double end = cells * size;

    for (int i = step; i < cells; i += step) {
        line_between(c, x0 + i * size - 0.5, y0, x0 + i * size - 0.5, y0 + end);
        line_between(c, x0, y0 + i * size - 0.5, x0 + end, y0 + i * size - 0.5);
    }
}

/* Thin lines between cells, stronger ones with numbers every `step` cells: where a line of the grid, or eight tokens,
 * or a few of these begin. */
static void rule_pairs(cairo_t *c, double x0, double y0, int tokens, int step, double size)
{
    char number[16];

    cairo_set_line_width(c, 1);
    set(c, PAPER, 1);
    if (size >= 6)
        rule(c, x0, y0, tokens, 1, size);
    set(c, FAINT, 1);
    rule(c, x0, y0, tokens, step, size);
    frame(c, x0, y0, tokens * size, tokens * size);
    font(c, 10, 0);
    set(c, INK, 1);
    for (int i = 0; i < tokens && (i == 0 || (tokens - i) * size >= 12); i += step) {
        snprintf(number, sizeof(number), "%d", i);
        text(c, x0 + i * size, y0 - 4, 0, number);
        text(c, x0 - 5, y0 + i * size + 9, 1, number);
    }
}

static int count_of(const struct picture *p, int query, int key)
{
    return hra_mask_count(p->setup->mask, p->sequence, p->setup->problem.head0 + p->head, query, key);
}

/* The counts above 1 as numbers, where cells have room for them. */
static void number_pairs(cairo_t *c, const struct picture *p, double x0, double y0, int tokens, double size)
{
    const double height = fmin(12, 0.8 * size);
    char number[16];

    font(c, height, 1);
    set(c, PAPER, 1);
    for (int i = 0; i < tokens; i++)
        for (int j = 0; j < tokens; j++) {
            const int count = count_of(p, i, j);
            snprintf(number, sizeof(number), "%d", count);
            if (count > 1 && size >= 10 && text_width(c, number) < size)
                text(c, x0 + (j + 0.5) * size, y0 + (i + 0.5) * size + 0.36 * height, 0.5, number);
        }
}

/* What the picture shows, above it. */
static void head_pairs(cairo_t *c, const struct picture *p, double x, double width, double part, int most)
{
    const hra_domain *domain = &p->setup->domain;
    struct lines at = {c, x, MARGIN + 6, width};
    char where[64] = "";

    if (domain->batch > 1 || domain->heads > 1)
        snprintf(where, sizeof(where), ", sequence %d, head %d", p->sequence,
                 p->setup->problem.head0 + p->head);
    font(c, 14, 1);
    set(c, INK, 1);
    put_line(&at, "%s", p->mask);
    at.y -= 3;
    font(c, 11, 0);
    set(c, FAINT, 1);
    put_line(&at, "queries down, keys across: %.1f %% attend%s%s", 100 * part,
             most > 1 ? ", some several times" : "", where);
}

static int draw_pairs(struct page *page, const struct picture *p)
{
    const hra_domain *domain = &p->setup->domain;
    const int64_t columns = domain->grid[2] > 0 ? domain->grid[2] : domain->grid[1];
    const int tokens = (int)domain->tokens, room = tokens <= 64 ? 384 : 768,
              size = room / tokens < 32 ? room / tokens : 32, side = tokens * size;
    const double left = MARGIN + 26, top = MARGIN + 46, width = fmax(side, 340);
    int live = 0, most = 0, step = columns > 0 ? (int)columns : 8;
    struct cells s;

    if (make_cells(&s, tokens, tokens) != 0)
        return -1;
    for (int n = 0; n < tokens * tokens; n++) {
        s.value[n] = count_of(p, n / tokens, n % tokens);
        live += s.value[n] > 0;
        most = s.value[n] > most ? s.value[n] : most;
    }
    while (step * size < 40 && step < tokens)
        step *= 2;

    cairo_t *c = open_page(page, left + width + MARGIN, top + side + MARGIN);
    head_pairs(c, p, left, width, (double)live / tokens / tokens, most);
    const int status = paint_cells(c, &s, left, top, size, pair_colour);
    if (most > 1)
        number_pairs(c, p, left, top, tokens, size);
    rule_pairs(c, left, top, tokens, step, size);
    free(s.value);
    return status;
}

/* ---- Tiles --------------------------------------------------------------------------------- */

enum { SHADES = 5, SIDE_CELLS = 2048 };

/* The square of tiles. Value 0 of a cell is an empty tile, 1 .. SHADES a partial one by the part of its pairs that
 * attend, SHADES + 1 a full one. */
struct map {
    int64_t *start; /* [tiles + 1], first slots, the last entry is the number of slots */
    int64_t tiles;  /* of a side */
    struct cells cells;
    int size; /* pixels of a cell */
    double x, y;
    int64_t full, partial; /* live tiles, each once whatever branches of a mixture it is in */
    double pairs;          /* in these */
};

static struct colour tile_colour(int value)
{
    const struct colour few = {1.0, 0.88, 0.62}, many = {0.88, 0.38, 0.04};
    return value == 0 ? EMPTY : value == SHADES + 1 ? FULL : between(few, many, (value - 1.0) / (SHADES - 1));
}

static int tile_value(const hra_plan_tile *t)
{
    const double part = (double)t->live / ((double)t->query_rows * t->key_rows);
    return t->bitmap < 0 ? SHADES + 1 : part >= 1 ? SHADES : 1 + (int)(part * SHADES);
}

/* The tiles of a side begin where live tiles and pieces begin or end; between these, where nobody attends to anything,
 * they are taken to be as long as they can be. */
static int find_starts(struct map *m, const struct picture *p)
{
    const int64_t tokens = p->setup->problem.tokens;
    char *begins = calloc((size_t)tokens + 1, 1);
    int64_t slot0 = 0;

    if (begins == NULL)
        return -1;
    begins[0] = begins[tokens] = 1;
    for (int i = 0; i < p->pieces; i++)
        begins[p->piece[i].slot0] = 1;
    for (int64_t i = 0; i < p->tiles; i++) {
        const hra_plan_tile *t = &p->tile[i];
        begins[t->query_slot0] = begins[t->query_slot0 + t->query_rows] = 1;
        begins[t->key_slot0] = begins[t->key_slot0 + t->key_rows] = 1;
    }
    for (int64_t slot = 0; slot < tokens; slot++)
        if (begins[slot] || slot - slot0 == HRA_TILE) {
            begins[slot] = 1;
            slot0 = slot;
            m->tiles++;
        }
    m->start = malloc((size_t)(m->tiles + 1) * sizeof(*m->start));
    int64_t n = 0;
    for (int64_t slot = 0; m->start != NULL && slot <= tokens; slot++)
        if (begins[slot])
            m->start[n++] = slot;
    free(begins);
    return m->start != NULL ? 0 : -1;
}

/* The tile that holds a slot; m->tiles for the slot behind the last. */
static int64_t tile_at(const struct map *m, int64_t slot)
{
    int64_t low = 0, high = m->tiles;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (m->start[middle] <= slot)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Where a slot at which a tile begins lies on a side of the map, in pixels. */
static double map_at(const struct map *m, int64_t slot)
{
    return floor((double)tile_at(m, slot) * m->cells.width / (double)m->tiles * m->size);
}

static int make_map(struct map *m, const struct picture *p)
{
    if (find_starts(m, p) != 0)
        return -1;
    const int64_t side = m->tiles < SIDE_CELLS ? m->tiles : SIDE_CELLS;
    if (make_cells(&m->cells, side, side) != 0)
        return -1;
    m->size = side <= 128 ? 640 / (int)side : side < 1024 ? 1024 / (int)side : 1;

    int last = 0;
    for (int64_t i = 0; i < p->tiles; i++) {
        const hra_plan_tile *t = &p->tile[i];
        const int value = tile_value(t);
        int *cell = &m->cells.value[tile_at(m, t->query_slot0) * side / m->tiles * side +
                                    tile_at(m, t->key_slot0) * side / m->tiles];
        /* The branches of a mixture that share a tile stand side by side in the list. */
        const int again = i > 0 && t[-1].query_slot0 == t->query_slot0 && t[-1].key_slot0 == t->key_slot0;
        if (again && value > SHADES && last <= SHADES) {
            m->full++;
            m->partial--;
        } else if (!again) {
            m->full += value > SHADES;
            m->partial += value <= SHADES;
            m->pairs += (double)t->query_rows * t->key_rows;
        }
        last = again && last > value ? last : value;
        *cell = value > *cell ? value : *cell;
    }
    return 0;
}

/* Along the left and the upper edge the ranks that own the slots, and lines across where their pieces end. */
static void draw_shards(cairo_t *c, const struct map *m, const struct picture *p)
{
    const double side = m->cells.width * m->size, strip = 15;
    char number[16];

    font(c, 10, 0);
    for (int i = 0; i < p->pieces; i++) {
        const hra_piece *piece = &p->piece[i];
        const double from = map_at(m, piece->slot0), to = map_at(m, piece->slot0 + piece->rows);
        if (piece->rows == 0)
            continue;
        set(c, rank_colour(piece->rank), 1);
        fill(c, m->x + from, m->y - strip - 2, to - from, strip);
        fill(c, m->x - strip - 2, m->y + from, strip, to - from);
        set(c, INK, 1);
        snprintf(number, sizeof(number), "%d", piece->rank);
        if (to - from >= text_width(c, number) + 3)
            text(c, m->x + (from + to) / 2, m->y - strip / 2 + 2, 0.5, number);
        if (to - from >= 11 && text_width(c, number) <= strip)
            text(c, m->x - strip / 2 - 2, m->y + (from + to) / 2 + 4, 0.5, number);
    }
    cairo_set_line_width(c, 1);
    set(c, FAINT, p->pieces <= 32 ? 0.9 : 0.4);
    double last = 0;
    for (int i = 1; i < p->pieces; i++) {
        const double at = map_at(m, p->piece[i].slot0);
        if (p->piece[i].rows == 0 || at - last < 4)
            continue;
        last = at;
        line_between(c, m->x - strip - 2, m->y + at - 0.5, m->x + side, m->y + at - 0.5);
        line_between(c, m->x + at - 0.5, m->y - strip - 2, m->x + at - 0.5, m->y + side);
    }
    set(c, FAINT, 1);
    frame(c, m->x, m->y, side, side);
}

/* A swatch and its words; returns where they end. */
static double put_key(cairo_t *c, double x, double y, struct colour k, const char *words)
{
    set(c, k, 1);
    fill(c, x, y - 11, 16, 13);
    set(c, FAINT, 1);
    frame(c, x, y - 11, 16, 13);
    set(c, INK, 1);
    text(c, x + 23, y, 0, words);
    return x + 23 + text_width(c, words) + 22;
}

/* ---- Tokens on their grid ------------------------------------------------------------------ */

/* Frames of a grid side by side; a grid of two axes is one frame. */
struct tokens {
    int64_t frames, rows, columns;
    int64_t sample;     /* a cell shows every sample-th token of a row and a column */
    int64_t wide, high; /* cells of a frame */
    int64_t every;      /* every so many frames are shown */
    int shown, across;  /* frames */
    int size;           /* pixels of a cell */
    double x, y, width, height;
    enum { BY_TOKEN, BY_TILE, NO_CURVE } curve;
};

enum {
    FRAME_GAP = 10, /* pixels between frames */
    TOKEN_ROOM = 5  /* least pixels a side of a token or tile for a curve through them */
};

/* How many frames of cells of `size` pixels fit into a square. */
static int64_t frames_that_fit(const struct tokens *g, double side, int64_t size)
{
    return (int64_t)((side + FRAME_GAP) / (double)(g->wide * size + FRAME_GAP)) *
           (int64_t)((side + FRAME_GAP) / (double)(g->high * size + FRAME_GAP));
}

/* Fit the grid into a square of `side` pixels. */
static void lay_tokens(struct tokens *g, const struct picture *p, const struct map *m, double side)
{
    const int64_t *grid = p->setup->domain.grid;
    const int volume = grid[2] > 0;

    *g = (struct tokens){.frames = volume ? grid[0] : 1, .rows = grid[volume], .columns = grid[1 + volume]};
    const int64_t longer = g->rows > g->columns ? g->rows : g->columns;
    g->sample = (longer + (int64_t)side - 1) / (int64_t)side;
    g->wide = (g->columns + g->sample - 1) / g->sample;
    g->high = (g->rows + g->sample - 1) / g->sample;
    g->size = 64;
    while (g->size > 1 && frames_that_fit(g, side, g->size) < g->frames)
        g->size--;

    const int64_t fit = frames_that_fit(g, side, g->size),
                  most = (int64_t)((side + FRAME_GAP) / (double)(g->wide * g->size + FRAME_GAP));
    g->every = (g->frames + fit - 1) / fit;
    g->shown = (int)((g->frames + g->every - 1) / g->every);
    g->across = (int)(most < g->shown ? most : g->shown);
    g->width = (double)(g->across * (g->wide * g->size + FRAME_GAP) - FRAME_GAP);
    g->height =
        (double)((g->shown + g->across - 1) / g->across * (g->high * g->size + FRAME_GAP) - FRAME_GAP);
    g->curve = g->sample == 1 && g->size >= TOKEN_ROOM ? BY_TOKEN
               : g->frames == 1 && g->width * g->height / (double)m->tiles >= TOKEN_ROOM * TOKEN_ROOM
                   ? BY_TILE
                   : NO_CURVE;
}

/* Upper left corner of a frame that is shown. */
static void frame_at(const struct tokens *g, int64_t number, double *x, double *y)
{
    *x = g->x + (double)(number % g->across * (g->wide * g->size + FRAME_GAP));
    *y = g->y + (double)(number / g->across * (g->high * g->size + FRAME_GAP));
}

static int rank_at(const struct picture *p, int64_t slot)
{
    int low = 0, high = p->pieces - 1;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (slot < p->piece[middle].slot0 + p->piece[middle].rows)
            high = middle;
        else
            low = middle + 1;
    }
    return p->piece[low].rank;
}

static int paint_frames(cairo_t *c, const struct tokens *g, const struct picture *p)
{
    const int64_t *slot = hra_order_token_to_slot(p->setup->order);
    struct cells s;
    double x, y;
    int status = 0;

    if (make_cells(&s, g->wide, g->high) != 0)
        return -1;
    for (int n = 0; status == 0 && n < g->shown; n++) {
        const int64_t token0 = n * g->every * g->rows * g->columns;
        for (int64_t i = 0; i < g->wide * g->high; i++)
            s.value[i] = rank_at(p, slot[token0 + (i / g->wide * g->columns + i % g->wide) * g->sample]);
        frame_at(g, n, &x, &y);
        status = paint_cells(c, &s, x, y, g->size, rank_colour);
        set(c, FAINT, 1);
        frame(c, x, y, (double)g->wide * g->size, (double)g->high * g->size);
    }
    free(s.value);
    return status;
}

/* The middle of a token. 0 where its frame is not shown. */
static int token_at(const struct tokens *g, int64_t token, double *x, double *y)
{
    const int64_t in_frame = g->rows * g->columns, number = token / in_frame;

    if (number % g->every != 0)
        return 0;
    frame_at(g, number / g->every, x, y);
    *x += ((double)(token % g->columns) + 0.5) * g->size;
    *y += ((double)(token % in_frame / g->columns) + 0.5) * g->size;
    return 1;
}

/* The order's steps from token to token. Those to a neighbour are strong lines, longer ones weak; a step into
 * another frame is a dot at either end. */
static void draw_steps(cairo_t *c, const struct tokens *g, const struct picture *p, int strong)
{
    const int64_t *token = hra_order_slot_to_token(p->setup->order), in_frame = g->rows * g->columns;
    int drawing = 0;

    for (int64_t slot = 1; slot < p->setup->problem.tokens; slot++) {
        const int64_t a = token[slot - 1], b = token[slot], step = b > a ? b - a : a - b;
        const int near = step == g->columns || (step == 1 && a / g->columns == b / g->columns);
        double xa, ya, xb, yb;
        const int shown = token_at(g, a, &xa, &ya) && token_at(g, b, &xb, &yb);
        if (a / in_frame != b / in_frame || near != strong || !shown) {
            drawing = 0;
            continue;
        }
        if (!drawing)
            cairo_move_to(c, xa, ya);
        drawing = 1;
        /* Of several steps to neighbours in one direction the last draws the line. */
        const int64_t next = slot + 1 < p->setup->problem.tokens ? token[slot + 1] : -1;
        if (!strong || next - b != b - a || next / in_frame != b / in_frame ||
            (step == 1 && next / g->columns != b / g->columns))
            cairo_line_to(c, xb, yb);
    }
    cairo_stroke(c);
}

static void draw_dots(cairo_t *c, const struct tokens *g, const struct picture *p)
{
    const int64_t *token = hra_order_slot_to_token(p->setup->order), in_frame = g->rows * g->columns;
    double x, y;

    for (int64_t slot = 1; slot < p->setup->problem.tokens; slot++)
        for (int end = 0; end < 2 && token[slot - 1] / in_frame != token[slot] / in_frame; end++)
            if (token_at(g, token[slot - end], &x, &y)) {
                const double r = 0.18 * g->size;
                cairo_rectangle(c, x - r, y - r, 2 * r, 2 * r);
            }
    cairo_fill(c);
}

/* The way through the middles of the tiles' tokens. */
static void draw_way(cairo_t *c, const struct tokens *g, const struct picture *p, const struct map *m)
{
    const int64_t *token = hra_order_slot_to_token(p->setup->order);

    for (int64_t i = 0; i < m->tiles; i++) {
        double x = 0, y = 0;
        for (int64_t slot = m->start[i]; slot < m->start[i + 1]; slot++) {
            x += (double)(token[slot] % g->columns) + 0.5;
            y += (double)(token[slot] / g->columns) + 0.5;
        }
        const double scale = g->size / (double)g->sample / (double)(m->start[i + 1] - m->start[i]);
        cairo_line_to(c, round(g->x + x * scale), round(g->y + y * scale));
    }
    cairo_stroke(c);
}

static int draw_tokens(cairo_t *c, const struct tokens *g, const struct picture *p, const struct map *m)
{
    if (paint_frames(c, g, p) != 0)
        return -1;
    cairo_set_line_join(c, CAIRO_LINE_JOIN_ROUND);
    if (g->curve == BY_TOKEN) {
        set(c, INK, 0.3);
        cairo_set_line_width(c, 0.8);
        draw_steps(c, g, p, 0);
        set(c, INK, 0.85);
        cairo_set_line_width(c, fmin(2, 0.16 * g->size));
        draw_steps(c, g, p, 1);
        if (g->frames > 1)
            draw_dots(c, g, p);
    } else if (g->curve == BY_TILE) {
        set(c, INK, 0.8);
        cairo_set_line_width(c, 1.3);
        draw_way(c, g, p, m);
    }
    return 0;
}

/* What the colours and lines of the token grid mean, and what of it is not there. */
static void explain_tokens(struct lines *at, const struct tokens *g, const struct picture *p)
{
    const int64_t *grid = p->setup->domain.grid;
    const int dots = g->curve == BY_TOKEN && g->frames > 1;
    char size[80];

    if (grid[2] > 0)
        snprintf(size, sizeof(size), "%" PRId64 " frames of %" PRId64 " x %" PRId64 " tokens", grid[0],
                 grid[1], grid[2]);
    else
        snprintf(size, sizeof(size), "%" PRId64 " x %" PRId64 " tokens", grid[0], grid[1]);
    put_line(at, "%s, coloured by the rank that owns them", size);
    put_line(at, "%s%s",
             g->curve == BY_TOKEN  ? "line: the order from token to token, thin where it jumps"
             : g->curve == BY_TILE ? "line: the order through the middle of each tile"
                                   : "the order's curve has no room and is left out",
             dots ? "; square: it goes on in another frame" : "");
    if (g->every > 1)
        put_line(at,
                 "one frame in %" PRId64 " has room: 0, %" PRId64 ", ... from left to right; %" PRId64
                 " of %" PRId64 " are left out",
                 g->every, g->every, g->frames - g->shown, g->frames);
    else if (g->frames > 1)
        put_line(at, "frames 0 to %" PRId64 " from left to right, then down", g->frames - 1);
    if (g->sample > 1)
        put_line(at, "one token in %" PRId64 " x %" PRId64 " is shown", g->sample, g->sample);
}

static void explain_tiles(struct lines *at, const struct map *m, const struct picture *p)
{
    const hra_plan_info *info = p->info;
    const double tokens = (double)p->setup->problem.tokens;
    hra_order_info order = {.size = sizeof(order)};
    cairo_t *c = at->c;
    char words[96];
    double x = at->x;

    snprintf(words, sizeof(words), "%" PRId64 " full", m->full);
    x = put_key(c, x, at->y, FULL, words);
    for (int i = SHADES; i > 1; i--, x += 17) {
        set(c, tile_colour(i), 1);
        fill(c, x, at->y - 11, 17, 13);
    }
    snprintf(words, sizeof(words), "%" PRId64 " partial, paler where few pairs attend", m->partial);
    x = put_key(c, x, at->y, tile_colour(1), words);
    snprintf(words, sizeof(words), "%" PRId64 " empty", m->tiles * m->tiles - m->full - m->partial);
    put_key(c, x, at->y, EMPTY, words);
    at->y += LINE + 4;

    hra_order_get_info(p->setup->order, &order);
    put_line(at,
             "%" PRId64 " x %" PRId64
             " tiles of at most %d x %d pairs, queries down, keys across, in the order %s",
             m->tiles, m->tiles, HRA_TILE, HRA_TILE, order.name);
    if (m->tiles > SIDE_CELLS)
        put_line(at, "one pixel stands for about %.1f x %.1f tiles, for the most live of them",
                 (double)m->tiles / SIDE_CELLS, (double)m->tiles / SIDE_CELLS);
    put_line(at, "%d rank%s, %s shards; at the edges: whose slots they are", p->ranks,
             p->ranks == 1 ? "" : "s", p->shard);
    put_line(at, "%.4g of all pairs attend%s, %.4g lie in the live tiles of the map",
             (double)info->pairs_live / (double)info->pairs_all,
             info->patterns > 1 ? " over all sequences and heads" : "", m->pairs / tokens / tokens);
    if (info->patterns > 1)
        put_line(at, "the map shows sequence %d, head %d", p->sequence, p->setup->problem.head0 + p->head);
}

static int draw_tiles(struct page *page, const struct picture *p)
{
    const int grid = p->setup->domain.grid[0] > 0;
    struct map m = {0};
    struct tokens g = {0};

    int status = make_map(&m, p);
    if (status == 0) {
        const double side = m.cells.width * m.size, text_room = fmax(side, 560), strip = 17;
        m.x = MARGIN + strip;
        m.y = MARGIN + 26 + strip;
        if (grid) {
            lay_tokens(&g, p, &m, side);
            g.x = m.x + text_room + 2 * MARGIN;
            g.y = m.y;
        }
        const double right = grid ? g.x + fmax(g.width, 460) : m.x + text_room;
        cairo_t *c =
            open_page(page, right + MARGIN,
                      m.y + side + (5 + (m.tiles > SIDE_CELLS) + (p->info->patterns > 1)) * LINE + MARGIN);
        struct lines head = {c, m.x, MARGIN + 12, right - m.x};
        font(c, 15, 1);
        set(c, INK, 1);
        put_line(&head, "%s", p->mask);
        status = paint_cells(c, &m.cells, m.x, m.y, m.size, tile_colour);
        draw_shards(c, &m, p);
        font(c, 13, 0);
        explain_tiles(&(struct lines){c, m.x, m.y + side + 28, text_room}, &m, p);
        if (grid && status == 0) {
            status = draw_tokens(c, &g, p, &m);
            set(c, INK, 1);
            explain_tokens(&(struct lines){c, g.x, m.y + side + 28, right - g.x}, &g, p);
        }
    }
    free(m.start);
    free(m.cells.value);
    return status;
}

/* ---- Rounds -------------------------------------------------------------------------------- */

/* A schedule summed up. */
struct rounds {
    int count[2];        /* rounds of [pass], on the rank that has most */
    int64_t bytes[2][2]; /* sent, [pass][gradient] */
    int64_t most;        /* longest message */
    int64_t messages[2]; /* [pass] */
};

static const struct picture_steps *steps_of(const struct picture *p, int rank, int pass)
{
    return &p->steps[2 * rank + pass];
}

static void sum_up(struct rounds *r, const struct picture *p)
{
    *r = (struct rounds){.count = {p->info->rounds_forward, p->info->rounds_backward}};
    for (int n = 0; n < 2 * p->ranks; n++) {
        const struct picture_steps *s = &p->steps[n];
        const int pass = n % 2;
        for (int64_t i = 0; i < s->runs; i++)
            r->count[pass] = s->run[i].round >= r->count[pass] ? s->run[i].round + 1 : r->count[pass];
        for (int64_t i = 0; i < s->moves; i++) {
            const hra_plan_move *move = &s->move[i];
            r->count[pass] = move->round >= r->count[pass] ? move->round + 1 : r->count[pass];
            r->most = move->bytes > r->most ? move->bytes : r->most;
            r->messages[pass] += move->sends;
            r->bytes[pass][move->gradient] += move->sends ? move->bytes : 0;
        }
    }
}

enum { BOX = 40, GUTTER = 46, BOX_HEIGHT = 26, ROW = 46, PASS_GAP = 44, ROUND = BOX + GUTTER };

/* Where the rounds of a pass begin. */
static double pass_x(const struct rounds *r, double x0, int pass)
{
    return x0 + (pass == HRA_FORWARD ? 0 : r->count[HRA_FORWARD] * ROUND + PASS_GAP);
}

/* What the ranks compute: in each round a box for each owner of keys, side by side in one place. */
static void draw_boxes(cairo_t *c, const struct picture *p, int rank, int pass, double x0, double y)
{
    const struct picture_steps *s = steps_of(p, rank, pass);
    char number[16];

    font(c, 12, 0);
    for (int64_t i = 0; i < s->runs;) {
        int64_t end = i;
        while (end < s->runs && s->run[end].round == s->run[i].round)
            end++;
        const double width = (double)BOX / (double)(end - i), left = x0 + s->run[i].round * ROUND;
        for (int64_t n = i; n < end; n++) {
            const double x = left + (double)(n - i) * width;
            set(c, rank_colour(s->run[n].owner), 1);
            fill(c, x, y - BOX_HEIGHT / 2.0, width, BOX_HEIGHT);
            set(c, INK, 1);
            snprintf(number, sizeof(number), "%d", s->run[n].owner);
            if (text_width(c, number) <= width)
                text(c, x + width / 2, y + 4, 0.5, number);
        }
        set(c, FAINT, 1);
        frame(c, left, y - BOX_HEIGHT / 2.0, BOX, BOX_HEIGHT);
        i = end;
    }
}

static void draw_arrow(cairo_t *c, double x0, double y0, double x1, double y1, double width)
{
    const double length = hypot(x1 - x0, y1 - y0), ux = (x1 - x0) / length, uy = (y1 - y0) / length;
    const double head = 6 + width, half = 2.5 + 0.6 * width;

    cairo_set_line_width(c, width);
    line_between(c, x0, y0, x1 - ux * head, y1 - uy * head);
    cairo_move_to(c, x1, y1);
    cairo_line_to(c, x1 - ux * head - uy * half, y1 - uy * head + ux * half);
    cairo_line_to(c, x1 - ux * head + uy * half, y1 - uy * head - ux * half);
    cairo_close_path(c);
    cairo_fill(c);
}

static double arrow_width(const struct rounds *r, int64_t bytes)
{
    return 1 + 3 * (double)bytes / (double)(r->most > 0 ? r->most : 1);
}

/* The messages that a rank sends, K/V above dK/dV. */
static void draw_messages(cairo_t *c, const struct picture *p, const struct rounds *r, int rank, int pass,
                          double x0, double y0)
{
    const struct picture_steps *s = steps_of(p, rank, pass);

    for (int64_t i = 0; i < s->moves; i++) {
        const hra_plan_move *move = &s->move[i];
        const double x = x0 + move->round * ROUND + BOX, off = move->gradient ? 6 : -6;
        if (!move->sends)
            continue;
        set(c, move->gradient ? DKV : KV, 0.9);
        draw_arrow(c, x + 3, y0 + rank * ROW + off, x + GUTTER - 3, y0 + move->peer * ROW + off,
                   arrow_width(r, move->bytes));
    }
}

/* The number of each round above it, what is sent in it below. */
static void label_rounds(cairo_t *c, const struct picture *p, const struct rounds *r, int pass, double x0,
                         double top, double bottom)
{
    char number[32];

    for (int round = 0; round < r->count[pass]; round++) {
        int64_t bytes = 0;
        for (int rank = 0; rank < p->ranks; rank++)
            for (int64_t i = 0; i < steps_of(p, rank, pass)->moves; i++) {
                const hra_plan_move *move = &steps_of(p, rank, pass)->move[i];
                bytes += move->sends && move->round == round ? move->bytes : 0;
            }
        set(c, FAINT, 1);
        font(c, 12, 0);
        snprintf(number, sizeof(number), "%d", round);
        text(c, x0 + round * ROUND + BOX / 2.0, top, 0.5, number);
        font(c, 11, 0);
        text(c, x0 + round * ROUND + BOX + GUTTER / 2.0, bottom, 0.5,
             bytes > 0 ? bytes_text((double)bytes) : "-");
    }
}

static void explain_rounds(struct lines *at, const struct picture *p, const struct rounds *r, int arrows)
{
    static const char *const names[2] = {"forward", "backward"};

    for (int pass = 0; pass < 2; pass++)
        put_line(at, "%s: %d round%s, %" PRId64 " messages; K/V %s, dK/dV %s", names[pass], r->count[pass],
                 r->count[pass] == 1 ? "" : "s", r->messages[pass], bytes_text((double)r->bytes[pass][0]),
                 bytes_text((double)r->bytes[pass][1]));
    if (p->ranks == 1)
        put_line(at, "one rank has nobody to send to: the schedule has no messages");
    else if (r->messages[0] + r->messages[1] == 0)
        put_line(at, "no rank needs keys of another: the schedule has no messages");
    put_line(at, "%d rank%s, schedule %s, %s shards, %" PRId64 " tokens", p->ranks, p->ranks == 1 ? "" : "s",
             p->info->schedule, p->shard, p->setup->problem.tokens);
    if (arrows)
        put_line(at, "below the rounds: bytes sent in them, sum over the ranks");
}

/* The two colours of messages, where there are any, and what a box is. */
static void key_rounds(cairo_t *c, double x, double y, const struct rounds *r)
{
    char words[96];

    for (int gradient = 0; gradient < 2 && r->most > 0; gradient++) {
        set(c, gradient ? DKV : KV, 1);
        draw_arrow(c, x, y - 4, x + 34, y - 4, arrow_width(r, r->most));
        set(c, INK, 1);
        snprintf(words, sizeof(words), gradient ? "dK/dV" : "K/V of %s, thinner if less;",
                 bytes_text((double)r->most));
        text(c, x + 42, y, 0, words);
        x += 42 + text_width(c, words) + 18;
    }
    put_key(c, x, y, rank_colour(0),
            "computes with the keys of the rank so numbered and coloured; no box: waits");
}

/* Every message as an arrow. */
static int draw_arrows(struct page *page, const struct picture *p, const struct rounds *r)
{
    static const char *const names[2] = {"forward, rounds", "backward, rounds"};
    const double x0 = MARGIN + 72, y0 = MARGIN + 88;
    const double end = pass_x(r, x0, HRA_BACKWARD) + r->count[HRA_BACKWARD] * ROUND,
                 bottom = y0 + (p->ranks - 1) * ROW + BOX_HEIGHT, right = fmax(end, x0 + 840);
    cairo_t *c = open_page(page, right + MARGIN, bottom + 7 * LINE + MARGIN);
    char name[32];

    struct lines head = {c, MARGIN, MARGIN + 12, right - MARGIN};
    font(c, 15, 1);
    set(c, INK, 1);
    put_line(&head, "%s", p->mask);
    for (int rank = 0; rank < p->ranks; rank++) {
        const double y = y0 + rank * ROW;
        set(c, EMPTY, 1);
        cairo_set_line_width(c, 1);
        for (int pass = 0; pass < 2; pass++)
            line_between(c, pass_x(r, x0, pass), y + 0.5, pass_x(r, x0, pass) + r->count[pass] * ROUND,
                         y + 0.5);
        snprintf(name, sizeof(name), "rank %d", rank);
        font(c, 13, 0);
        put_key(c, MARGIN, y + 5, rank_colour(rank), name);
        for (int pass = 0; pass < 2; pass++)
            draw_boxes(c, p, rank, pass, pass_x(r, x0, pass), y);
    }
    for (int pass = 0; pass < 2; pass++) {
        const double x = pass_x(r, x0, pass);
        for (int rank = 0; rank < p->ranks; rank++)
            draw_messages(c, p, r, rank, pass, x, y0);
        set(c, INK, 1);
        font(c, 13, 1);
        text(c, x, y0 - 48, 0, names[pass]);
        label_rounds(c, p, r, pass, x, y0 - 26, bottom + 12);
    }
    font(c, 13, 0);
    key_rounds(c, MARGIN, bottom + 44, r);
    explain_rounds(&(struct lines){c, MARGIN, bottom + 44 + LINE + 4, right - MARGIN}, p, r, 1);
    return 0;
}

enum { DENSE_SHADES = 8 };

static struct colour kv_colour(int value)
{
    return value == 0 ? EMPTY : between(EMPTY, KV, 0.25 + 0.75 * value / DENSE_SHADES);
}

static struct colour dkv_colour(int value)
{
    return value == 0 ? EMPTY : between(EMPTY, DKV, 0.25 + 0.75 * value / DENSE_SHADES);
}

/* Bytes as shades, in steps of an eighth of the most, under a line that says how much that is. */
static int paint_bytes(cairo_t *c, const int64_t *bytes, int width, int height, double x, double y, int size,
                       int gradient, const char *what)
{
    struct cells s;
    char title[160];
    int64_t most = 0;

    if (make_cells(&s, width, height) != 0)
        return -1;
    for (int64_t i = 0; i < (int64_t)width * height; i++)
        most = bytes[i] > most ? bytes[i] : most;
    for (int64_t i = 0; i < (int64_t)width * height; i++)
        s.value[i] = most == 0 ? 0 : (int)ceil((double)bytes[i] / (double)most * DENSE_SHADES);
    const int status = paint_cells(c, &s, x, y, size, gradient ? dkv_colour : kv_colour);
    free(s.value);
    set(c, FAINT, 1);
    frame(c, x, y, width * size, height * size);
    set(c, INK, 1);
    snprintf(title, sizeof(title), "%s, darkest %s", what, bytes_text((double)most));
    text(c, x, y - 7, 0, title);
    return status;
}

/* What is sent: by [rank][round of both passes], and from [rank] to [rank]. */
static void spread_bytes(int64_t *by_round, int64_t *by_peer, const struct picture *p, const struct rounds *r,
                         int gradient)
{
    const int rounds = r->count[0] + r->count[1];

    memset(by_round, 0, (size_t)p->ranks * (size_t)rounds * sizeof(*by_round));
    memset(by_peer, 0, (size_t)p->ranks * (size_t)p->ranks * sizeof(*by_peer));
    for (int n = 0; n < 2 * p->ranks; n++)
        for (int64_t i = 0; i < p->steps[n].moves; i++) {
            const hra_plan_move *move = &p->steps[n].move[i];
            if (!move->sends || move->gradient != gradient)
                continue;
            by_round[(int64_t)(n / 2) * rounds + (n % 2) * r->count[0] + move->round] += move->bytes;
            by_peer[(int64_t)(n / 2) * p->ranks + move->peer] += move->bytes;
        }
}

/* Whose keys are computed with, [rank][round of both passes]. */
static int paint_owners(cairo_t *c, const struct picture *p, const struct rounds *r, double x, double y,
                        int size)
{
    const int rounds = r->count[0] + r->count[1];
    struct cells s;

    if (make_cells(&s, rounds, p->ranks) != 0)
        return -1;
    memset(s.value, -1, (size_t)p->ranks * (size_t)rounds * sizeof(int));
    for (int n = 0; n < 2 * p->ranks; n++)
        for (int64_t i = 0; i < p->steps[n].runs; i++)
            s.value[(int64_t)(n / 2) * rounds + (n % 2) * r->count[0] + p->steps[n].run[i].round] =
                p->steps[n].run[i].owner;
    const int status = paint_cells(c, &s, x, y, size, rank_colour);
    free(s.value);
    set(c, FAINT, 1);
    frame(c, x, y, rounds * size, p->ranks * size);
    set(c, INK, 1);
    text(c, x, y - 7, 0, "computes, in the colour of the rank whose keys they are; white: waits");
    return status;
}

/* Sums in place of messages, for many ranks. */
static int draw_dense(struct page *page, const struct picture *p, const struct rounds *r)
{
    const int rounds = r->count[0] + r->count[1], fit = 1100 / rounds, size = fit > 6 ? 6 : fit > 1 ? fit : 1;
    const double x0 = MARGIN + 52, y0 = MARGIN + 80, matrix_x = x0 + fmax(rounds * size, 460) + 2 * MARGIN,
                 below = p->ranks * size + 36, right = matrix_x + fmax(p->ranks * size, 300);
    int64_t *by_round = malloc((size_t)p->ranks * (size_t)rounds * sizeof(*by_round));
    int64_t *by_peer = malloc((size_t)p->ranks * (size_t)p->ranks * sizeof(*by_peer));
    char last[32];

    cairo_t *c = open_page(page, right + MARGIN, y0 + 3 * below + 5 * LINE);
    struct lines head = {c, MARGIN, MARGIN + 12, right - MARGIN};
    font(c, 15, 1);
    set(c, INK, 1);
    put_line(&head, "%s", p->mask);
    font(c, 12, 0);
    int status = by_round != NULL && by_peer != NULL ? paint_owners(c, p, r, x0, y0, size) : -1;
    for (int gradient = 0; gradient < 2 && status == 0; gradient++) {
        const double y = y0 + (1 + gradient) * below;
        spread_bytes(by_round, by_peer, p, r, gradient);
        status =
            paint_bytes(c, by_round, rounds, p->ranks, x0, y, size, gradient,
                        gradient ? "dK/dV that a rank sends in a round" : "K/V that a rank sends in a round");
        if (status == 0)
            status = paint_bytes(c, by_peer, p->ranks, p->ranks, matrix_x, y, size, gradient,
                                 gradient ? "dK/dV, down: from, across: to" : "K/V, down: from, across: to");
    }
    snprintf(last, sizeof(last), "rank %d", p->ranks - 1);
    cairo_set_line_width(c, 1);
    for (int n = 0; n < 3; n++) {
        const double y = y0 + n * below, split = x0 + r->count[0] * size - 0.5;
        text(c, x0 - 6, y + 11, 1, "rank 0");
        text(c, x0 - 6, y + p->ranks * size, 1, last);
        line_between(c, split, y, split, y + p->ranks * size);
    }
    text(c, x0, y0 - 26, 0, "forward, then behind the line backward: one column a round");
    font(c, 13, 0);
    explain_rounds(&(struct lines){c, MARGIN, y0 + 3 * below, right - MARGIN}, p, r, 0);
    free(by_round);
    free(by_peer);
    return status;
}

/* Arrows as long as they can be told apart. */
static int draw_rounds(struct page *page, const struct picture *p)
{
    struct rounds r;

    sum_up(&r, p);
    return p->ranks <= 12 && r.count[0] + r.count[1] <= 48 ? draw_arrows(page, p, &r)
                                                           : draw_dense(page, p, &r);
}

/* ---- All of them --------------------------------------------------------------------------- */

/* What page_write hands back. */
struct drawing {
    enum picture_kind kind;
    const struct picture *picture;
};

static int draw(struct page *page, const void *what)
{
    static int (*const all[PICTURE_KINDS])(struct page * page, const struct picture *p) = {
        [PICTURE_PAIRS] = draw_pairs, [PICTURE_TILES] = draw_tiles, [PICTURE_ROUNDS] = draw_rounds};
    const struct drawing *d = what;

    return all[d->kind](page, d->picture);
}

int picture_write(const char *path, enum picture_kind kind, const struct picture *p, char *error,
                  size_t error_bytes)
{
    const struct drawing what = {kind, p};
    return page_write(path, draw, &what, error, error_bytes);
}

#endif

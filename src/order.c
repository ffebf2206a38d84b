/* order.c - domains, and the orders made on them.
 *
 * Every curve here is one number for each token that exists, its place along the curve, and a sort of
 * the tokens by (place, token). Cells that hold no token are never visited, and the tokens of a box,
 * which share the place of their box, come out in raster order because a token is its raster index. */
#include "src/order.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum curve { IDENTITY, HILBERT, BOXES, MORTON, SNAKE };

/* ---- Domains ------------------------------------------------------------------------------- */

hra_status hra_space_read(struct hra_space *out, const hra_domain *domain)
{
    hra_domain d;
    struct hra_space s;
    int64_t product = 1;

    if (domain == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "domain: NULL pointer");
    HRA_TRY(hra_copy_sized(&d, sizeof(d), domain, "hra_domain"));
    if (d.batch < 0)
        return HRA_FAIL(HRA_ERR_ARG, "domain: batch is %d, it must be 1 or more", d.batch);
    if (d.heads < 0)
        return HRA_FAIL(HRA_ERR_ARG, "domain: heads is %d, it must be 1 or more", d.heads);
    if (d.tokens < 0)
        return HRA_FAIL(HRA_ERR_ARG, "domain: tokens is %" PRId64 ", it must be 1 or more", d.tokens);

    memset(&s, 0, sizeof(s));
    s.batch = d.batch == 0 ? 1 : d.batch;
    s.heads = d.heads == 0 ? 1 : d.heads;
    s.axes = d.grid[2] != 0 ? 3 : d.grid[1] != 0 ? 2 : d.grid[0] != 0 ? 1 : 0;
    if (s.axes == 1)
        return HRA_FAIL(HRA_ERR_ARG,
                        "domain: the grid {%" PRId64 ", 0, 0} has one axis, it must have two or three",
                        d.grid[0]);
    for (int a = 0; a < 3; a++) {
        s.grid[a] = a < s.axes ? d.grid[a] : 1;
        if (s.grid[a] < 1)
            return HRA_FAIL(HRA_ERR_ARG,
                            "domain: axis %d of the grid {%" PRId64 ", %" PRId64 ", %" PRId64 "} is %" PRId64
                            ", it must be 1 or more",
                            a, d.grid[0], d.grid[1], d.grid[2], d.grid[a]);
        if (product > INT64_MAX / s.grid[a])
            return HRA_FAIL(HRA_ERR_ARG,
                            "domain: the product of the grid {%" PRId64 ", %" PRId64 ", %" PRId64
                            "} is above 2^63 - 1",
                            d.grid[0], d.grid[1], d.grid[2]);
        product *= s.grid[a];
    }
    s.tokens = d.tokens == 0 && s.axes > 0 ? product : d.tokens;
    if (s.tokens < 1)
        return HRA_FAIL(HRA_ERR_ARG, "domain: tokens is 0 and there is no grid");
    if (s.axes > 0 && s.tokens != product)
        return HRA_FAIL(HRA_ERR_ARG,
                        "domain: the grid {%" PRId64 ", %" PRId64 ", %" PRId64 "} has %" PRId64
                        " cells, but tokens is %" PRId64,
                        d.grid[0], d.grid[1], d.grid[2], product, s.tokens);
    *out = s;
    return HRA_OK;
}

/* ---- Places along curves ------------------------------------------------------------------- */

enum { LEVELS = 31 }; /* a side has at most 2^31 cells, of a cube 2^21: the place has 64 bits */

/* A cube of the curve that is 2^level cells long, on the way from the whole curve down to one cell. */
struct cube {
    uint64_t index; /* its place among the cubes of its size */
    unsigned turn; /* byte a: bits 0, 1: the axis of the grid that runs as axis a; bit 2: it runs backwards */
};

/* A curve on the grid of an order. */
struct path {
    enum curve curve;
    int bits;         /* the curve's side is 2^bits cells; 0 for snake, which has the grid's sides */
    int64_t box[3];   /* [axes] tokens that share a place; 1 but for boxes */
    int64_t cells[3]; /* [axes] places along each axis */
    struct cube cube[LEVELS + 1]; /* [bits + 1] by level, those that hold the cell `last` */
    int64_t last[3];
};

/* The cube of half the side that holds `cell`, by Skilling's transform (AIP Conf. Proc. 707, 381, 2004):
 * the digits along the axes, which are those of a Gray code, become the next bits of the place; then the
 * axes are reflected or exchanged as the curve runs inside that half. The curve starts at the origin and
 * its first half is the half where the first axis is small. Morton's curve takes the digits as they are. */
static struct cube halve(struct cube c, enum curve curve, int axes, const int64_t cell[3], int level)
{
    unsigned turn = c.turn;

    for (int a = 0; a < axes; a++) {
        const unsigned axis = c.turn >> 8 * a, digit = (cell[axis & 3] >> level & 1) ^ (axis >> 2 & 1);
        const unsigned differ = digit ? 0 : (turn ^ turn >> 8 * a) & 7;

        c.index = c.index << 1 | (curve == MORTON ? digit : digit ^ (c.index & 1));
        turn ^= differ | differ << 8 * a | (digit ? 4 : 0); /* exchange with axis 0, or reflect that */
    }
    c.turn = curve == MORTON ? c.turn : turn;
    return c;
}

/* The place of a cell. Cubes that also hold the cell asked for before are kept, which from token to token
 * leaves two levels to go on average: with all levels 1024 x 1024 tokens took 120 ms instead of 47. */
static uint64_t find(struct path *p, const hra_order *o, const int64_t cell[3])
{
    uint64_t before = 0, differ = 0;
    int level = 0;

    if (p->curve == SNAKE) {
        /* A line runs backwards where the number of lines before it is odd. */
        for (int a = 0; a < o->axes; a++)
            before = before * (uint64_t)o->grid[a] +
                     (uint64_t)(before % 2 == 1 ? o->grid[a] - 1 - cell[a] : cell[a]);
        return before;
    }
    for (int a = 0; a < o->axes; a++)
        differ |= (uint64_t)(cell[a] ^ p->last[a]);
    while (level < p->bits && differ >> level > 0)
        level++;
    while (--level >= 0)
        p->cube[level] = halve(p->cube[level + 1], p->curve, o->axes, cell, level);
    memcpy(p->last, cell, sizeof(p->last));
    return p->cube[0].index;
}

/* Sort the tokens by their index [tokens], `largest` the largest of all; tokens of the same index stay in
 * their order. Digit by digit from the least significant, a digit having about as many values as there are
 * tokens: for most grids one digit is all, and as curves are local its counters stay in the cache. (1024 x
 * 1024 tokens along the Hilbert curve: 47 ms in all; with digits of 8 bits 75, with qsort 200.) */
static hra_status sort(hra_order *o, const uint64_t *index, uint64_t largest)
{
    void *memory;
    int bits = 8;

    while (bits < 62 && o->tokens >> bits > 0)
        bits++;
    for (int64_t t = 0; t < o->tokens; t++)
        o->slot_to_token[t] = t;
    for (int shift = 0; shift < 64 && largest >> shift > 0; shift += bits) {
        const uint64_t ones = (UINT64_C(1) << bits) - 1;
        const uint64_t last = largest >> shift >> bits > 0 ? ones : largest >> shift;
        int64_t *const from = o->slot_to_token, *const to = o->token_to_slot;
        int64_t before = 0;

        HRA_TRY(hra_alloc(&memory, (int64_t)last + 1, sizeof(int64_t), "the places of an order"));
        int64_t *begin = memory;
        for (int64_t t = 0; t < o->tokens; t++)
            begin[index[t] >> shift & ones]++;
        for (uint64_t d = 0; d <= last; d++) {
            const int64_t here = begin[d];

            begin[d] = before;
            before += here;
        }
        for (int64_t s = 0; s < o->tokens; s++)
            to[begin[index[from[s]] >> shift & ones]++] = from[s];
        free(begin);
        o->slot_to_token = to;
        o->token_to_slot = from;
    }
    return HRA_OK;
}

static void coordinates(int64_t out[3], const struct hra_order *o, int64_t token)
{
    for (int a = o->axes - 1; a > 0; a--) {
        out[a] = token % o->grid[a];
        token /= o->grid[a];
    }
    out[0] = token;
}

/* "10 x 20" */
static const char *sides(char out[72], const int64_t *side, int axes)
{
    int used = 0;

    for (int a = 0; a < axes; a++)
        used += snprintf(out + used, (size_t)(72 - used), a > 0 ? " x %" PRId64 : "%" PRId64, side[a]);
    return out;
}

/* ---- Making -------------------------------------------------------------------------------- */

/* An order without its arrays' contents; the grid is the domain's. */
static hra_status create(hra_order **out, const struct hra_space *space)
{
    void *memory, *forth, *back;
    hra_order *o;

    HRA_TRY(hra_alloc(&memory, 1, sizeof(*o), "an order"));
    o = memory;
    o->references = 1;
    o->tokens = space->tokens;
    o->axes = space->axes;
    o->on_grid = space->axes > 0;
    memcpy(o->grid, space->grid, sizeof(o->grid));

    hra_status status = hra_alloc(&forth, space->tokens, sizeof(int64_t), "an order");
    if (status == HRA_OK) {
        o->slot_to_token = forth;
        status = hra_alloc(&back, space->tokens, sizeof(int64_t), "an order");
    }
    if (status != HRA_OK) {
        hra_order_destroy(o);
        return status;
    }
    o->token_to_slot = back;
    *out = o;
    return HRA_OK;
}

/* Lay a curve on the grid of an order. */
static hra_status lay(struct path *p, const hra_order *o, enum curve curve, const int64_t box[3])
{
    const int limit = o->axes == 3 ? 21 : LEVELS;
    unsigned axis[3] = {0, 0, 0};

    memset(p, 0, sizeof(*p));
    p->curve = curve;
    memcpy(p->box, box, sizeof(p->box));
    memset(p->last, -1, sizeof(p->last)); /* differs from every cell in every bit that counts */
    for (int a = 0; a < o->axes; a++)
        p->cells[a] = (o->grid[a] - 1) / box[a] + 1;
    for (int a = 0; a < o->axes && curve != SNAKE; a++) {
        while (p->bits < limit && p->cells[a] > INT64_C(1) << p->bits)
            p->bits++;
        if (p->cells[a] > INT64_C(1) << p->bits)
            return HRA_FAIL(HRA_ERR_ARG,
                            "order %s: axis %d of the grid has %" PRId64
                            " %s, a curve in %d axes can have 2^%d",
                            o->name, a, p->cells[a], curve == BOXES ? "boxes" : "cells", o->axes, limit);
    }
    /* The shortest axis first: of a grid with sides 2^m and 2^(m-1) that is a first half or quarter of the
     * curve, all unit steps; with the longest axis first it would fall into pieces. */
    for (int a = 0; a < o->axes; a++) {
        int b = a;

        for (; b > 0 && curve != MORTON && p->cells[a] < p->cells[axis[b - 1]]; b--)
            axis[b] = axis[b - 1];
        axis[b] = (unsigned)a;
    }
    p->cube[p->bits].turn = axis[0] | axis[1] << 8 | axis[2] << 16;
    return HRA_OK;
}

/* The places of all tokens, index [tokens]; returns the largest. Walks over the grid as an odometer
 * does, which costs no division, and asks for a place once for neighbours in the same box. */
static uint64_t find_all(uint64_t *index, struct path *p, const hra_order *o)
{
    int64_t at[3] = {0, 0, 0}, cell[3] = {0, 0, 0}, inside[3] = {0, 0, 0}; /* token = cell x box + inside */
    uint64_t here = find(p, o, cell), largest = here;

    for (int64_t t = 0; t < o->tokens; t++) {
        int moved = 0;

        index[t] = here;
        for (int a = o->axes - 1; a >= 0; a--) {
            if (++at[a] < o->grid[a]) {
                moved |= ++inside[a] == p->box[a];
                cell[a] += inside[a] == p->box[a];
                inside[a] = inside[a] == p->box[a] ? 0 : inside[a];
                break;
            }
            moved |= cell[a] > 0;
            at[a] = cell[a] = inside[a] = 0;
        }
        if (moved && t + 1 < o->tokens) {
            here = find(p, o, cell);
            largest = here > largest ? here : largest;
        }
    }
    return largest;
}

/* Write the curve's description; `used` cells of it hold tokens. */
static void describe(hra_order *o, const struct path *p, uint64_t used)
{
    const char *cells = p->curve == BOXES ? "boxes" : "cells";
    char text[2][72], shape[160], skipped[128] = "";
    int64_t side[3];
    uint64_t all = 1;

    for (int a = 0; a < o->axes; a++) {
        side[a] = p->curve == SNAKE ? o->grid[a] : INT64_C(1) << p->bits;
        all *= (uint64_t)side[a];
    }
    if (all > used && o->on_grid)
        snprintf(skipped, sizeof(skipped), ", %" PRIu64 " %s outside the %s grid skipped", all - used, cells,
                 sides(text[0], o->grid, o->axes));
    else if (all > used)
        snprintf(skipped, sizeof(skipped), ", %" PRIu64 " %s without a token skipped", all - used, cells);
    snprintf(shape, sizeof(shape), "the %s %s", sides(text[0], side, o->axes),
             p->curve == SNAKE && o->on_grid ? "grid"
             : o->axes == 3                  ? "cube"
                                             : "square");
    if (p->curve == SNAKE)
        snprintf(o->curve, sizeof(o->curve), "raster order of %s, every second line backwards%s", shape,
                 skipped);
    else if (p->curve == MORTON)
        snprintf(o->curve, sizeof(o->curve), "Morton curve of %s%s", shape, skipped);
    else if (p->curve == HILBERT)
        snprintf(o->curve, sizeof(o->curve), "Hilbert curve of %s%s", shape, skipped);
    else
        snprintf(o->curve, sizeof(o->curve), "Hilbert curve of %s of boxes of %s tokens in raster order%s",
                 shape, sides(text[1], p->box, o->axes), skipped);
}

/* Note where boxes begin. */
static hra_status cut(hra_order *o, const uint64_t *index)
{
    const int64_t *token = o->slot_to_token;
    void *memory;

    o->cuts = 1;
    for (int64_t s = 1; s < o->tokens; s++)
        o->cuts += index[token[s]] != index[token[s - 1]];
    HRA_TRY(hra_alloc(&memory, o->cuts, sizeof(int64_t), "the boxes of an order"));
    o->cut = memory;
    for (int64_t s = 1, c = 1; s < o->tokens; s++)
        if (index[token[s]] != index[token[s - 1]])
            o->cut[c++] = s;
    return HRA_OK;
}

/* Sort the tokens along the curve. box [axes] is the box of all tokens that share a place. */
static hra_status run_along(hra_order *o, enum curve curve, const int64_t box[3])
{
    struct path path;
    void *index;

    HRA_TRY(lay(&path, o, curve, box));
    HRA_TRY(hra_alloc(&index, o->tokens, sizeof(uint64_t), "the places of an order"));
    const uint64_t largest = find_all(index, &path, o);
    hra_status status = sort(o, index, largest);
    if (status == HRA_OK && curve == BOXES)
        status = cut(o, index);
    if (status == HRA_OK)
        describe(o, &path, (uint64_t)(curve == BOXES ? o->cuts : o->tokens));
    free(index);
    return status;
}

/* The number at *at, which moves behind it; -1 where there is none. What is above 2^63 - 1 is read as that. */
static int64_t read_number(const char **at)
{
    int64_t value = **at >= '0' && **at <= '9' ? 0 : -1;

    for (; **at >= '0' && **at <= '9'; ++*at) {
        const int64_t digit = **at - '0';
        value = value > (INT64_MAX - digit) / 10 ? INT64_MAX : 10 * value + digit;
    }
    return value;
}

/* The sides of "AxB" or "AxBxC"; their number, 0 where the text is no box. */
static int read_box(int64_t box[3], const char *text)
{
    for (int count = 0; count < 3;) {
        box[count] = read_number(&text);
        if (box[count++] < 0)
            return 0;
        if (*text == '\0')
            return count >= 2 ? count : 0;
        if (*text++ != 'x')
            return 0;
    }
    return 0;
}

/* Check the sides of a box against the grid of the order; writes the order's name. */
static hra_status check_box(hra_order *o, const int64_t box[3], int count)
{
    char text[72];
    int64_t tokens = 1;

    if (count != o->axes)
        return HRA_FAIL(HRA_ERR_ARG, "order boxes: a box of %s has %d axes, the grid of %s has %d",
                        sides(text, box, count), count, sides((char[72]){""}, o->grid, o->axes), o->axes);
    for (int a = 0; a < count; a++) {
        if (box[a] < 1 || box[a] > o->grid[a])
            return HRA_FAIL(HRA_ERR_ARG,
                            "order boxes: side %d of the box of %s is %" PRId64 ", it must be 1 to %" PRId64
                            ", the length of that axis of the grid",
                            a, sides(text, box, count), box[a], o->grid[a]);
        tokens = box[a] > HRA_TILE ? HRA_TILE + 1 : tokens * box[a];
        if (tokens > HRA_TILE)
            return HRA_FAIL(HRA_ERR_ARG, "order boxes: a box of %s has more than the %d tokens of a tile",
                            sides(text, box, count), HRA_TILE);
    }
    if (count == 2)
        snprintf(o->name, sizeof(o->name), "boxes:%" PRId64 "x%" PRId64, box[0], box[1]);
    else
        snprintf(o->name, sizeof(o->name), "boxes:%" PRId64 "x%" PRId64 "x%" PRId64, box[0], box[1], box[2]);
    return HRA_OK;
}

/* Sort the slots of a filled order, segment by segment, by their index in the segment modulo `rate`; those of one
 * residue stay in their order and are a run.
 *
 * Tiles should begin where runs do, so that all of a tile has one residue. That leaves them more than half full on
 * average however long runs are: a tile takes as many whole runs as fit (shard.c), and a longer run has one short
 * tile at its end. Segments that fit a tile are kept whole instead, since nothing attends beyond them. */
static hra_status split(hra_order *o, int64_t segment, int64_t rate)
{
    int64_t *const from = o->slot_to_token, *const to = o->token_to_slot;
    int64_t slot = 0, cut = 0;
    void *memory;

    segment = segment < o->tokens ? segment : o->tokens;
    rate = rate < segment ? rate : segment;
    const int whole = segment <= HRA_TILE;
    const int64_t tail = o->tokens % segment, runs = rate < tail ? rate : tail;

    free(o->cut);
    o->cut = NULL;
    o->cuts = o->tokens / segment * (whole ? 1 : rate) + (whole ? tail > 0 : runs);
    HRA_TRY(hra_alloc(&memory, o->cuts, sizeof(int64_t), "the runs of an order"));
    o->cut = memory;
    for (int64_t first = 0, end; first < o->tokens; first = end) {
        end = segment < o->tokens - first ? first + segment : o->tokens;
        for (int64_t residue = 0; residue < rate && residue < end - first; residue++) {
            if (residue == 0 || !whole)
                o->cut[cut++] = slot;
            for (int64_t s = first + residue; s < end; s += rate)
                to[slot++] = from[s];
        }
    }
    o->slot_to_token = to;
    o->token_to_slot = from;
    return HRA_OK;
}

static hra_status fill(hra_order *o, const char *name);

/* Fills a created order as "residues:S:r" or "residues:S:r:ORDER" says, ORDER first. */
static hra_status fill_residues(hra_order *o, const char *name)
{
    const char *at = name + 9;
    char text[2 * sizeof(o->name)], curve[sizeof(o->curve)];

    if (strlen(name) >= sizeof(o->name)) /* which also bounds the recursion */
        return HRA_FAIL(HRA_ERR_ARG, "order: '%.60s...' has %zu characters, it may have %zu", name,
                        strlen(name), sizeof(o->name) - 1);
    const int64_t segment = read_number(&at);
    int64_t rate = -1;
    if (*at == ':') {
        at++;
        rate = read_number(&at);
    }
    if (segment < 0 || rate < 0 || (*at != '\0' && *at != ':'))
        return HRA_FAIL(HRA_ERR_ARG, "order: '%s' is not of the form residues:S:r or residues:S:r:ORDER",
                        name);
    if (segment == 0 || rate == 0)
        return HRA_FAIL(HRA_ERR_ARG,
                        "order residues: the segment is %" PRId64 " and the rate %" PRId64
                        ", both must be 1 or more",
                        segment, rate);
    HRA_TRY(fill(o, *at == ':' ? at + 1 : "identity"));
    HRA_TRY(split(o, segment, rate));

    const int plain = strcmp(o->name, "identity") == 0;
    snprintf(text, sizeof(text), "residues:%" PRId64 ":%" PRId64 "%s%s", segment, rate, plain ? "" : ":",
             plain ? "" : o->name);
    memcpy(o->name, text, sizeof(o->name)); /* no longer than the name given */
    memcpy(curve, o->curve, sizeof(curve));
    snprintf(o->curve, sizeof(o->curve), "%.250s, in segments of %" PRId64 " by index modulo %" PRId64, curve,
             segment, rate);
    return HRA_OK;
}

/* Fills a created order, but not token_to_slot, as its name says; hra_order_destroy undoes whatever was done. */
static hra_status fill(hra_order *o, const char *name)
{
    static const struct {
        const char *name;
        enum curve curve;
    } names[] = {{"identity", IDENTITY}, {"hilbert", HILBERT}, {"morton", MORTON}, {"snake", SNAKE}};
    int64_t box[3] = {1, 1, 1};
    int curve = -1, box_axes = 0;
    char text[72];

    if (strncmp(name, "residues:", 9) == 0)
        return fill_residues(o, name);
    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++)
        if (strcmp(name, names[n].name) == 0)
            curve = names[n].curve;
    if (strncmp(name, "boxes:", 6) == 0) {
        box_axes = read_box(box, name + 6);
        if (box_axes == 0)
            return HRA_FAIL(HRA_ERR_ARG, "order: '%.60s' is not of the form boxes:AxB or boxes:AxBxC", name);
        curve = BOXES;
    }
    if (curve < 0)
        return HRA_FAIL(HRA_ERR_ARG,
                        "order: no order is named '%.60s'; the names are identity, hilbert, boxes:AxB[xC], "
                        "morton, snake and residues:S:r[:ORDER]",
                        name);
    if (!o->on_grid && curve != IDENTITY) {
        int bits = 0;

        while (bits < 31 && o->tokens > INT64_C(1) << 2 * bits)
            bits++;
        if (o->tokens > INT64_C(1) << 2 * bits)
            return HRA_FAIL(HRA_ERR_ARG,
                            "order %.60s: %" PRId64 " tokens do not fit a square of 2^31 x 2^31 cells", name,
                            o->tokens);
        o->axes = 2;
        o->grid[0] = o->grid[1] = INT64_C(1) << bits;
    }
    if (curve == BOXES)
        HRA_TRY(check_box(o, box, box_axes));
    else
        snprintf(o->name, sizeof(o->name), "%s", name);

    if (curve != IDENTITY) {
        HRA_TRY(run_along(o, (enum curve)curve, box));
    } else {
        for (int64_t t = 0; t < o->tokens; t++)
            o->slot_to_token[t] = t;
        if (o->on_grid)
            snprintf(o->curve, sizeof(o->curve), "raster order of the %s grid",
                     sides(text, o->grid, o->axes));
        else
            snprintf(o->curve, sizeof(o->curve), "natural order of %" PRId64 " tokens", o->tokens);
    }
    return HRA_OK;
}

/* Draw the patches of a filled order. */
static hra_status find_patches(hra_order *o)
{
    void *memory;

    if (o->identity && !o->on_grid)
        return HRA_OK;
    HRA_TRY(
        hra_alloc(&memory, (o->tokens - 1) / HRA_PATCH + 1, sizeof(*o->patch), "the patches of an order"));
    o->patch = memory;
    for (int64_t s = 0; s < o->tokens; s++) {
        struct hra_patch *p = &o->patch[s / HRA_PATCH];
        const int64_t token = o->slot_to_token[s];
        int64_t at[3] = {0, 0, 0};

        coordinates(at, o, token);
        if (s % HRA_PATCH == 0) {
            *p = (struct hra_patch){token, token, 0, {at[0], at[1], at[2]}, {at[0], at[1], at[2]}};
            continue;
        }
        p->step = hra_step(p->step, 0, token - p->first);
        p->first = token < p->first ? token : p->first;
        p->last = token > p->last ? token : p->last;
        for (int a = 0; a < 3; a++) {
            p->low[a] = at[a] < p->low[a] ? at[a] : p->low[a];
            p->high[a] = at[a] > p->high[a] ? at[a] : p->high[a];
        }
    }
    return HRA_OK;
}

/* Give a filled order to the caller, or take down one that could not be filled. */
static hra_status finish(hra_order **out, hra_order *o, hra_status status)
{
    o->identity = status == HRA_OK;
    for (int64_t s = 0; s < o->tokens && o->identity; s++)
        o->identity = o->slot_to_token[s] == s;
    if (status == HRA_OK)
        status = find_patches(o);
    if (status != HRA_OK) {
        hra_order_destroy(o);
        return status;
    }
    o->hash = hra_hash_words(HRA_HASH_BEGIN, o->slot_to_token, (size_t)o->tokens * sizeof(int64_t));
    o->hash = hra_hash_words(o->hash, o->cut, (size_t)o->cuts * sizeof(int64_t));
    hra_log(HRA_LOG_INFO, "order %s: %s", o->name, o->curve);
    *out = o;
    return HRA_OK;
}

hra_status hra_order_create(hra_order **out, const hra_domain *domain, const char *name)
{
    struct hra_space space;
    hra_order *o;

    if (out == NULL || name == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "order: %s is a NULL pointer", out == NULL ? "out" : "name");
    HRA_TRY(hra_space_read(&space, domain));
    HRA_TRY(create(&o, &space));
    const hra_status status = fill(o, name);
    for (int64_t s = 0; s < o->tokens && status == HRA_OK; s++)
        o->token_to_slot[o->slot_to_token[s]] = s;
    return finish(out, o, status);
}

/* Fills a created order from the caller's array. */
static hra_status fill_permutation(hra_order *o, const int64_t *slot_to_token)
{
    for (int64_t t = 0; t < o->tokens; t++)
        o->token_to_slot[t] = -1;
    for (int64_t s = 0; s < o->tokens; s++) {
        const int64_t token = slot_to_token[s];

        if (token < 0 || token >= o->tokens)
            return HRA_FAIL(HRA_ERR_ARG,
                            "permutation: slot %" PRId64 " holds token %" PRId64 ", it must be 0 to %" PRId64,
                            s, token, o->tokens - 1);
        if (o->token_to_slot[token] >= 0)
            return HRA_FAIL(HRA_ERR_ARG,
                            "permutation: slot %" PRId64 " holds token %" PRId64 ", which slot %" PRId64
                            " holds already",
                            s, token, o->token_to_slot[token]);
        o->slot_to_token[s] = token;
        o->token_to_slot[token] = s;
    }
    snprintf(o->name, sizeof(o->name), "permutation");
    snprintf(o->curve, sizeof(o->curve), "the caller's permutation of %" PRId64 " tokens", o->tokens);
    return HRA_OK;
}

hra_status hra_order_permutation(hra_order **out, const hra_domain *domain, const int64_t *slot_to_token)
{
    struct hra_space space;
    hra_order *o;

    if (out == NULL || slot_to_token == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "permutation: %s is a NULL pointer",
                        out == NULL ? "out" : "slot_to_token");
    HRA_TRY(hra_space_read(&space, domain));
    HRA_TRY(create(&o, &space));
    return finish(out, o, fill_permutation(o, slot_to_token));
}

/* ---- Asking -------------------------------------------------------------------------------- */

const int64_t *hra_order_slot_to_token(const hra_order *order)
{
    return order == NULL ? NULL : order->slot_to_token;
}

const int64_t *hra_order_token_to_slot(const hra_order *order)
{
    return order == NULL ? NULL : order->token_to_slot;
}

hra_status hra_order_get_info(const hra_order *order, hra_order_info *info)
{
    hra_order_info full;
    int64_t from[3] = {0};

    if (order == NULL || info == NULL)
        return HRA_FAIL(HRA_ERR_ARG, "order info: %s is a NULL pointer", order == NULL ? "order" : "info");
    if (info->size < sizeof(info->size))
        return HRA_FAIL(HRA_ERR_ARG, "order info: size is %zu, it must be sizeof(hra_order_info)",
                        info->size);

    memset(&full, 0, sizeof(full));
    full.size = info->size;
    full.tokens = order->tokens;
    for (int a = 0; a < order->axes; a++)
        full.grid[a] = order->grid[a];
    full.name = order->name;
    full.curve = order->curve;
    coordinates(from, order, order->slot_to_token[0]);
    for (int64_t s = 1; s < order->tokens; s++) {
        int64_t to[3] = {0}, step = 0;

        coordinates(to, order, order->slot_to_token[s]);
        for (int a = 0; a < 3; a++)
            step += from[a] < to[a] ? to[a] - from[a] : from[a] - to[a];
        memcpy(from, to, sizeof(from));
        full.unit_steps += step == 1;
        full.longest = step > full.longest ? step : full.longest;
    }

    const size_t known = info->size < sizeof(full) ? info->size : sizeof(full), bytes = info->size;
    memcpy(info, &full, known);
    memset((char *)info + known, 0, bytes - known); /* fields of a newer header */
    return HRA_OK;
}

int hra_order_fits(const hra_order *order, const struct hra_space *space)
{
    if (order->tokens != space->tokens)
        return 0;
    if (!order->on_grid)
        return space->axes == 0 || order->axes == 0;
    return order->axes == space->axes && memcmp(order->grid, space->grid, sizeof(order->grid)) == 0;
}

hra_order *hra_order_keep(const hra_order *order)
{
    hra_order *o = (hra_order *)order; /* constant for its users but for the count */

    __atomic_add_fetch(&o->references, 1, __ATOMIC_RELAXED);
    return o;
}

void hra_order_destroy(hra_order *order)
{
    if (order == NULL || __atomic_sub_fetch(&order->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    free(order->slot_to_token);
    free(order->token_to_slot);
    free(order->cut);
    free(order->patch);
    free(order);
}

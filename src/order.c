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

/* The place of one token along a curve. */
struct place {
    uint64_t index;
    int64_t token;
};

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

/* Bits of x, most significant first, interleaved: bit `bits` - 1 of x[0], of x[1], ... */
static uint64_t interleave(const uint32_t x[3], int axes, int bits)
{
    uint64_t index = 0;

    for (int b = bits - 1; b >= 0; b--)
        for (int a = 0; a < axes; a++)
            index = index << 1 | (x[a] >> b & 1);
    return index;
}

/* The place of cell x along the Hilbert curve of side 2^bits, by Skilling's transform (AIP Conf. Proc.
 * 707, 381, 2004): from the coarsest bit down, undo the reflection or exchange that the sub-cube which
 * holds the cell has gone through, then turn Gray code into a number. The curve starts at the origin
 * and its first half is the half where x[0] is small. */
static uint64_t hilbert(const uint32_t cell[3], int axes, int bits)
{
    uint32_t x[3] = {cell[0], cell[1], cell[2]}, flips = 0;

    for (uint32_t bit = bits > 0 ? UINT32_C(1) << (bits - 1) : 0; bit > 1; bit >>= 1) {
        const uint32_t below = bit - 1;

        for (int a = 0; a < axes; a++) {
            if (x[a] & bit) {
                x[0] ^= below;
            } else {
                const uint32_t differ = (x[0] ^ x[a]) & below;
                x[0] ^= differ;
                x[a] ^= differ;
            }
        }
    }
    for (int a = 1; a < axes; a++)
        x[a] ^= x[a - 1];
    for (uint32_t bit = bits > 0 ? UINT32_C(1) << (bits - 1) : 0; bit > 1; bit >>= 1)
        if (x[axes - 1] & bit)
            flips ^= bit - 1;
    for (int a = 0; a < axes; a++)
        x[a] ^= flips;
    return interleave(x, axes, bits);
}

static int by_place(const void *a, const void *b)
{
    const struct place *p = a, *q = b;

    if (p->index != q->index)
        return p->index < q->index ? -1 : 1;
    return p->token < q->token ? -1 : p->token > q->token;
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

/* Sort the tokens along the curve; boxes leave their cuts. box [axes] is the box of all tokens that share
 * a place. Writes the curve's description. */
static hra_status run_along(hra_order *o, enum curve curve, const int64_t box[3], int has_grid)
{
    const char *cells = curve == BOXES ? "boxes" : "cells";
    int axis[3] = {0, 1, 2}, bits = 0;
    int64_t cell_grid[3] = {1, 1, 1}, side[3];
    uint64_t all = 1, used = 1;
    char text[2][72], shape[160], skipped[128] = "";
    struct place *place;
    void *memory;

    for (int a = 0; a < o->axes; a++)
        cell_grid[a] = (o->grid[a] - 1) / box[a] + 1;
    if (curve != SNAKE) {
        const int limit = o->axes == 3 ? 21 : 31; /* the place has 64 bits */

        for (int a = 0; a < o->axes; a++)
            while (bits < limit && cell_grid[a] > INT64_C(1) << bits)
                bits++;
        for (int a = 0; a < o->axes; a++)
            if (cell_grid[a] > INT64_C(1) << bits)
                return HRA_FAIL(HRA_ERR_ARG,
                                "order %s: axis %d of the grid has %" PRId64
                                " %s, a curve in %d axes can have 2^%d",
                                o->name, a, cell_grid[a], cells, o->axes, limit);
    }
    /* The shortest axis first: of a grid with sides 2^m and 2^(m-1) that is a first half or quarter of the
     * curve, all unit steps; with the longest axis first it would fall into pieces. */
    if (curve != MORTON && curve != SNAKE)
        for (int a = 1; a < o->axes; a++)
            for (int b = a; b > 0 && cell_grid[axis[b]] < cell_grid[axis[b - 1]]; b--) {
                const int swap = axis[b];
                axis[b] = axis[b - 1];
                axis[b - 1] = swap;
            }

    HRA_TRY(hra_alloc(&memory, o->tokens, sizeof(*place), "the places of an order"));
    place = memory;
    for (int64_t t = 0; t < o->tokens; t++) {
        int64_t at[3];
        uint32_t x[3] = {0, 0, 0};

        coordinates(at, o, t);
        place[t].token = t;
        if (curve == SNAKE) {
            /* A line runs backwards where the number of lines before it is odd. */
            uint64_t before = 0;
            for (int a = 0; a < o->axes; a++)
                before = before * (uint64_t)o->grid[a] +
                         (uint64_t)(before % 2 == 1 ? o->grid[a] - 1 - at[a] : at[a]);
            place[t].index = before;
            continue;
        }
        for (int a = 0; a < o->axes; a++)
            x[a] = (uint32_t)(at[axis[a]] / box[axis[a]]);
        place[t].index = curve == MORTON ? interleave(x, o->axes, bits) : hilbert(x, o->axes, bits);
    }
    qsort(place, (size_t)o->tokens, sizeof(*place), by_place);
    for (int64_t s = 0; s < o->tokens; s++)
        o->slot_to_token[s] = place[s].token;
    for (int64_t s = 1; s < o->tokens; s++)
        used += place[s].index != place[s - 1].index;
    if (curve == BOXES) {
        hra_status status = hra_alloc(&memory, (int64_t)used, sizeof(int64_t), "the boxes of an order");
        if (status != HRA_OK) {
            free(place);
            return status;
        }
        o->cut = memory;
        for (int64_t s = 0; s < o->tokens; s++)
            if (s == 0 || place[s].index != place[s - 1].index)
                o->cut[o->cuts++] = s;
    }
    free(place);

    for (int a = 0; a < o->axes; a++) {
        side[a] = curve == SNAKE ? o->grid[a] : INT64_C(1) << bits;
        all *= (uint64_t)side[a];
    }
    if (all > used && has_grid)
        snprintf(skipped, sizeof(skipped), ", %" PRIu64 " %s outside the %s grid skipped", all - used, cells,
                 sides(text[0], o->grid, o->axes));
    else if (all > used)
        snprintf(skipped, sizeof(skipped), ", %" PRIu64 " %s without a token skipped", all - used, cells);
    snprintf(shape, sizeof(shape), "the %s %s", sides(text[0], side, o->axes),
             curve == SNAKE && has_grid ? "grid"
             : o->axes == 3             ? "cube"
                                        : "square");
    if (curve == SNAKE)
        snprintf(o->curve, sizeof(o->curve), "raster order of %s, every second line backwards%s", shape,
                 skipped);
    else if (curve == MORTON)
        snprintf(o->curve, sizeof(o->curve), "Morton curve of %s%s", shape, skipped);
    else if (curve == HILBERT)
        snprintf(o->curve, sizeof(o->curve), "Hilbert curve of %s%s", shape, skipped);
    else
        snprintf(o->curve, sizeof(o->curve), "Hilbert curve of %s of boxes of %s tokens in raster order%s",
                 shape, sides(text[1], box, o->axes), skipped);
    return HRA_OK;
}

/* The sides of "AxB" or "AxBxC"; their number, 0 where the text is no box. */
static int read_box(int64_t box[3], const char *text)
{
    for (int count = 0; count < 3;) {
        int64_t side = 0;

        if (*text < '0' || *text > '9')
            return 0;
        for (; *text >= '0' && *text <= '9'; text++)
            side = side > INT64_MAX / 100 ? side : 10 * side + (*text - '0');
        box[count++] = side;
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

/* Fills a created order as its name says; hra_order_destroy undoes whatever was done. */
static hra_status fill(hra_order *o, const char *name)
{
    static const struct {
        const char *name;
        enum curve curve;
    } names[] = {{"identity", IDENTITY}, {"hilbert", HILBERT}, {"morton", MORTON}, {"snake", SNAKE}};
    const int has_grid = o->axes > 0;
    int64_t box[3] = {1, 1, 1};
    int curve = -1, box_axes = 0;
    char text[72];

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
                        "morton and snake",
                        name);
    if (!has_grid && curve != IDENTITY) {
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
        HRA_TRY(run_along(o, (enum curve)curve, box, has_grid));
    } else {
        for (int64_t t = 0; t < o->tokens; t++)
            o->slot_to_token[t] = t;
        if (has_grid)
            snprintf(o->curve, sizeof(o->curve), "raster order of the %s grid",
                     sides(text, o->grid, o->axes));
        else
            snprintf(o->curve, sizeof(o->curve), "natural order of %" PRId64 " tokens", o->tokens);
    }
    for (int64_t s = 0; s < o->tokens; s++)
        o->token_to_slot[o->slot_to_token[s]] = s;
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

    hra_status status = fill(o, name);
    if (status != HRA_OK) {
        hra_order_destroy(o);
        return status;
    }
    hra_log(HRA_LOG_INFO, "order %s: %s", o->name, o->curve);
    *out = o;
    return HRA_OK;
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

    hra_status status = fill_permutation(o, slot_to_token);
    if (status != HRA_OK) {
        hra_order_destroy(o);
        return status;
    }
    *out = o;
    return HRA_OK;
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
    for (int64_t s = 1; s < order->tokens; s++) {
        int64_t from[3] = {0}, to[3] = {0}, step = 0;

        coordinates(from, order, order->slot_to_token[s - 1]);
        coordinates(to, order, order->slot_to_token[s]);
        for (int a = 0; a < 3; a++)
            step += from[a] < to[a] ? to[a] - from[a] : from[a] - to[a];
        full.unit_steps += step == 1;
        full.longest = step > full.longest ? step : full.longest;
    }

    const size_t known = info->size < sizeof(full) ? info->size : sizeof(full), bytes = info->size;
    memcpy(info, &full, known);
    memset((char *)info + known, 0, bytes - known); /* fields of a newer header */
    return HRA_OK;
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
    free(order);
}

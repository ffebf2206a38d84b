/* test_order.c - domains and orders: bijections, curves, boxes, residues, measured steps, wrong use. */
#include "src/order.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hra_domain domain_of(int64_t tokens, const int64_t grid[3])
{
    hra_domain d = HRA_DOMAIN_INIT;

    d.tokens = tokens;
    memcpy(d.grid, grid, sizeof(d.grid));
    return d;
}

static hra_order *order_of(int64_t tokens, const int64_t grid[3], const char *name)
{
    const hra_domain d = domain_of(tokens, grid);
    hra_order *o = NULL;

    cr_assert(eq(int, hra_order_create(&o, &d, name), HRA_OK), "%s: %s", name, hra_last_error());
    return o;
}

/* Coordinates of a token in the grid that the order runs over; without one, the token alone. */
static void cell(int64_t out[3], const hra_order_info *info, int64_t token)
{
    const int64_t b = info->grid[1] > 0 ? info->grid[1] : INT64_MAX,
                  c = info->grid[2] > 0 ? info->grid[2] : 1;

    out[0] = info->grid[1] > 0 ? token / (b * c) : 0;
    out[1] = info->grid[1] > 0 ? token / c % b : 0;
    out[2] = info->grid[1] > 0 ? token % c : token;
}

static int64_t distance(const hra_order_info *info, int64_t from, int64_t to)
{
    int64_t a[3], b[3];

    cell(a, info, from);
    cell(b, info, to);
    return llabs(a[0] - b[0]) + llabs(a[1] - b[1]) + llabs(a[2] - b[2]);
}

/* ---- Bijections and measured steps ------------------------------------------------------------ */

struct shape {
    int64_t tokens, grid[3];
};

static struct shape shapes[] = {
    {0, {1, 7, 0}},   {0, {10, 20, 0}},  {0, {33, 17, 0}}, {0, {5, 3, 9}},  {0, {1, 1, 5}},
    {0, {16, 16, 0}}, {0, {8, 16, 0}},   {0, {8, 8, 8}},   {0, {2, 31, 4}}, {0, {64, 1, 0}},
    {1, {0, 0, 0}},   {2, {0, 0, 0}},    {3, {0, 0, 0}},   {5, {0, 0, 0}},  {16, {0, 0, 0}},
    {77, {0, 0, 0}},  {1000, {0, 0, 0}}, {0, {1, 1, 0}},   {0, {7, 6, 5}},
};

ParameterizedTestParameters(order, is_a_bijection)
{
    return cr_make_param_array(struct shape, shapes, sizeof(shapes) / sizeof(shapes[0]));
}

ParameterizedTest(struct shape *s, order, is_a_bijection)
{
    static const char *const names[] = {"identity",
                                        "hilbert",
                                        "morton",
                                        "snake",
                                        "boxes:1x1",
                                        "boxes:1x1x1",
                                        "residues:16:3",
                                        "residues:7:9:snake",
                                        "residues:24:2:residues:6:4:hilbert"};

    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++) {
        const int axes = s->grid[2] > 0 ? 3 : 2;
        if (strncmp(names[n], "boxes", 5) == 0 && (axes == 3) != (strlen(names[n]) > 9))
            continue;
        hra_order *o = order_of(s->tokens, s->grid, names[n]);
        const int64_t *token = hra_order_slot_to_token(o), *slot = hra_order_token_to_slot(o);
        hra_order_info info = {.size = sizeof(info)};
        cr_assert(eq(int, hra_order_get_info(o, &info), HRA_OK));

        int64_t unit = 0, longest = 0;
        char *seen = calloc((size_t)info.tokens, 1);
        for (int64_t i = 0; i < info.tokens; i++) {
            cr_assert(token[i] >= 0 && token[i] < info.tokens && !seen[token[i]], "%s slot %ld", names[n],
                      (long)i);
            seen[token[i]] = 1;
            cr_assert(slot[token[i]] == i && token[slot[i]] == i, "%s slot %ld", names[n], (long)i);
            if (i > 0) {
                const int64_t step = distance(&info, token[i - 1], token[i]);
                unit += step == 1;
                longest = step > longest ? step : longest;
            }
        }
        free(seen);
        cr_expect(eq(i64, info.unit_steps, unit), "%s", names[n]);
        cr_expect(eq(i64, info.longest, longest), "%s", names[n]);
        cr_expect(eq(str, (char *)info.name, (char *)names[n]));
        cr_expect(strlen(info.curve) > 10);
        if (strcmp(names[n], "identity") == 0)
            cr_expect(token[info.tokens - 1] == info.tokens - 1);
        if (strcmp(names[n], "snake") == 0 && s->grid[0] > 0)
            cr_expect(eq(i64, info.unit_steps, info.tokens - 1), "snake takes unit steps on every grid");
        hra_order_destroy(o);
    }
}

/* ---- Curves ------------------------------------------------------------------------------------ */

/* Grids on which the Hilbert curve takes unit steps only: 2^m and its halves. */
ParameterizedTestParameters(order, hilbert_takes_unit_steps)
{
    static struct shape rows[] = {
        {0, {1, 1, 0}},    {0, {2, 2, 0}},   {0, {4, 4, 0}},   {0, {8, 8, 0}},  {0, {16, 16, 0}},
        {0, {32, 32, 0}},  {0, {64, 64, 0}}, {0, {2, 2, 2}},   {0, {4, 4, 4}},  {0, {8, 8, 8}},
        {0, {16, 16, 16}}, {0, {32, 16, 0}}, {0, {16, 32, 0}}, {0, {2, 1, 0}},  {0, {8, 16, 16}},
        {0, {16, 8, 16}},  {0, {16, 16, 8}}, {0, {8, 8, 16}},  {0, {16, 8, 8}}, {1024, {0, 0, 0}},
        {4, {0, 0, 0}},
    };
    return cr_make_param_array(struct shape, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct shape *s, order, hilbert_takes_unit_steps)
{
    hra_order *o = order_of(s->tokens, s->grid, "hilbert");
    hra_order_info info = {.size = sizeof(info)};

    cr_assert(eq(int, hra_order_get_info(o, &info), HRA_OK));
    cr_expect(eq(i64, info.unit_steps, info.tokens - 1), "%s", info.curve);
    hra_order_destroy(o);
}

/* The cells of the Hilbert curve of side 2^m from those of side 2^(m-1): a transposed copy, two plain ones,
 * one transposed about the other diagonal. */
static void build_curve(int m, int64_t (*at)[2])
{
    if (m == 0) {
        at[0][0] = at[0][1] = 0;
        return;
    }
    const int64_t side = INT64_C(1) << (m - 1), cells = side * side;

    build_curve(m - 1, at);
    for (int64_t n = 0; n < cells; n++) {
        const int64_t x = at[n][0], y = at[n][1];

        at[cells + n][0] = x;
        at[cells + n][1] = y + side;
        at[2 * cells + n][0] = x + side;
        at[2 * cells + n][1] = y + side;
        at[3 * cells + n][0] = 2 * side - 1 - y;
        at[3 * cells + n][1] = side - 1 - x;
        at[n][0] = y;
        at[n][1] = x;
    }
}

Test(order, hilbert_is_the_recursive_curve)
{
    for (int m = 0; m <= 6; m++) {
        const int64_t side = INT64_C(1) << m, grid[3] = {side, side, 0};
        int64_t(*at)[2] = malloc(sizeof(*at) * (size_t)(side * side));
        hra_order *o = order_of(0, grid, "hilbert");
        const int64_t *token = hra_order_slot_to_token(o);
        int same = 0;

        build_curve(m, at);
        for (int symmetry = 0; symmetry < 8; symmetry++) {
            int64_t differ = 0;

            for (int64_t n = 0; n < side * side; n++) {
                int64_t x = at[n][symmetry & 1], y = at[n][~symmetry & 1];
                x = symmetry & 2 ? side - 1 - x : x;
                y = symmetry & 4 ? side - 1 - y : y;
                differ += token[n] != x * side + y;
            }
            same += differ == 0;
        }
        cr_expect(m == 0 ? same == 8 : same == 1, "side %ld: %d symmetries agree", (long)side, same);
        hra_order_destroy(o);
        free(at);
    }
}

/* What makes a curve local: every aligned sub-cube is one run of slots. */
Test(order, hilbert_and_morton_fill_each_sub_cube_in_one_run)
{
    static const char *const names[] = {"hilbert", "morton"};
    const int64_t grid[3] = {16, 16, 16};

    for (int n = 0; n < 2; n++) {
        hra_order *o = order_of(0, grid, names[n]);
        const int64_t *token = hra_order_slot_to_token(o);

        for (int side = 2; side <= 8; side *= 2)
            for (int64_t slot = 0; slot < 4096; slot++) {
                const int64_t begin = token[slot - slot % (side * side * side)], t = token[slot];
                cr_assert(t / 256 / side == begin / 256 / side &&
                              t / 16 % 16 / side == begin / 16 % 16 / side &&
                              t % 16 / side == begin % 16 / side,
                          "%s side %d slot %ld", names[n], side, (long)slot);
            }
        hra_order_destroy(o);
    }
}

Test(order, small_orders_as_written_out)
{
    const int64_t square[3] = {4, 4, 0}, cube[3] = {2, 2, 2}, odd[3] = {3, 2, 3}, none[3] = {0, 0, 0};
    const int64_t morton[] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
    const int64_t snake[] = {0, 1, 2, 5, 4, 3, 9, 10, 11, 8, 7, 6, 12, 13, 14, 17, 16, 15};
    const int64_t lines[] = {0, 1, 2, 3, 6, 5, 4};
    const int64_t plain[] = {0, 1, 2, 3, 4, 5, 6, 7};
    const int64_t fives[] = {0, 3, 1, 4, 2, 5, 8, 6, 9, 7, 10};
    const struct {
        int64_t tokens;
        const int64_t *grid;
        const char *name;
        const int64_t *token;
        int count;
    } rows[] = {
        {0, square, "morton", morton, 16},
        {0, cube, "morton", plain, 8},
        {0, odd, "boxes:3x2x3",
         (const int64_t[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}, 18},
        {0, odd, "identity", plain, 8},
        /* frames x rows x columns: frame 1 begins at row 1, where frame 0 ended */
        {0, odd, "snake", snake, 18},
        /* 7 tokens on 4 x 4 cells: a line of 4 forwards, one of 3 backwards */
        {7, none, "snake", lines, 7},
        /* segments of 5 and a last one of 1 */
        {11, none, "residues:5:3", fives, 11},
        {8, none, "residues:3:5", plain, 8},
        {8, none, "residues:8:1", plain, 8},
        {8, none, "residues:9223372036854775807:9223372036854775807", plain, 8},
        /* segments of 4 and 3 of the slots along the lines */
        {7, none, "residues:4:2:snake", (const int64_t[]){0, 2, 1, 3, 6, 4, 5}, 7},
        {8, none, "residues:8:2:residues:4:2", (const int64_t[]){0, 1, 4, 5, 2, 3, 6, 7}, 8},
    };

    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++) {
        hra_order *o = order_of(rows[n].tokens, rows[n].grid, rows[n].name);

        for (int i = 0; i < rows[n].count; i++)
            cr_expect(hra_order_slot_to_token(o)[i] == rows[n].token[i], "%s: slot %d holds %ld, not %ld",
                      rows[n].name, i, (long)hra_order_slot_to_token(o)[i], (long)rows[n].token[i]);
        hra_order_destroy(o);
    }
}

struct sentence {
    int64_t tokens, grid[3];
    char name[24], curve[160];
};

ParameterizedTestParameters(order, says_which_curve)
{
    static struct sentence rows[] = {
        {0, {16, 16, 0}, "hilbert", "Hilbert curve of the 16 x 16 square"},
        {0,
         {10, 20, 0},
         "hilbert",
         "Hilbert curve of the 32 x 32 square, 824 cells outside the 10 x 20 grid skipped"},
        {0,
         {4, 8, 8},
         "hilbert",
         "Hilbert curve of the 8 x 8 x 8 cube, 256 cells outside the 4 x 8 x 8 grid skipped"},
        {77, {0, 0, 0}, "hilbert", "Hilbert curve of the 16 x 16 square, 179 cells without a token skipped"},
        {64, {0, 0, 0}, "morton", "Morton curve of the 8 x 8 square"},
        {0, {10, 20, 0}, "snake", "raster order of the 10 x 20 grid, every second line backwards"},
        {5,
         {0, 0, 0},
         "snake",
         "raster order of the 4 x 4 square, every second line backwards, 11 cells without a token skipped"},
        {0, {10, 20, 0}, "identity", "raster order of the 10 x 20 grid"},
        {77, {0, 0, 0}, "identity", "natural order of 77 tokens"},
        {77, {0, 0, 0}, "residues:32:4", "natural order of 77 tokens, in segments of 32 by index modulo 4"},
        {0,
         {16, 16, 0},
         "residues:64:4:hilbert",
         "Hilbert curve of the 16 x 16 square, in segments of 64 by index modulo 4"},
        {0,
         {10, 20, 0},
         "boxes:4x8",
         "Hilbert curve of the 4 x 4 square of boxes of 4 x 8 tokens in raster order, 7 boxes outside the 10 "
         "x 20 grid "
         "skipped"},
    };
    return cr_make_param_array(struct sentence, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct sentence *s, order, says_which_curve)
{
    hra_order *o = order_of(s->tokens, s->grid, s->name);
    hra_order_info info = {.size = sizeof(info)};

    cr_assert(eq(int, hra_order_get_info(o, &info), HRA_OK));
    cr_expect(eq(str, (char *)info.curve, s->curve));
    hra_order_destroy(o);
}

/* ---- Boxes ------------------------------------------------------------------------------------- */

struct boxes {
    int64_t tokens, grid[3], box[3];
};

ParameterizedTestParameters(order, boxes_tile_the_grid)
{
    static struct boxes rows[] = {
        {0, {10, 20, 0}, {4, 7, 0}},   {0, {16, 16, 0}, {4, 4, 0}},   {0, {1, 7, 0}, {1, 7, 0}},
        {0, {33, 17, 0}, {8, 16, 0}},  {0, {5, 3, 9}, {2, 3, 4}},     {0, {8, 16, 16}, {4, 4, 8}},
        {77, {0, 0, 0}, {3, 5, 0}},    {1000, {0, 0, 0}, {8, 16, 0}}, {1, {0, 0, 0}, {1, 1, 0}},
        {0, {7, 128, 0}, {1, 128, 0}},
    };
    return cr_make_param_array(struct boxes, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct boxes *s, order, boxes_tile_the_grid)
{
    char name[48];
    int64_t box[3] = {s->box[0], s->box[1], s->box[2] > 0 ? s->box[2] : 1};
    hra_order_info info = {.size = sizeof(info)};

    snprintf(name, sizeof(name), s->box[2] > 0 ? "boxes:%dx%dx%d" : "boxes:%dx%d", (int)box[0], (int)box[1],
             (int)box[2]);
    hra_order *o = order_of(s->tokens, s->grid, name);
    cr_assert(eq(int, hra_order_get_info(o, &info), HRA_OK));
    if (s->box[2] == 0) { /* cell() has two axes first */
        box[2] = box[1];
        box[1] = box[0];
        box[0] = 1;
    }
    const int64_t columns = info.grid[2] > 0 ? info.grid[2] : info.grid[1];
    const int64_t lines = info.grid[2] > 0 ? info.grid[1] : info.grid[0];
    int64_t boxes = 0, wide = 1 << 20, *visits = calloc(1 << 20, sizeof(int64_t)), last[3] = {-9, -9, -9},
            far = 0;

    cr_assert(eq(i64, o->cut[0], 0));
    for (int64_t slot = 0; slot < info.tokens; slot++) {
        const int64_t t = o->slot_to_token[slot];
        const int64_t b[3] = {t / columns / lines / box[0], t / columns % lines / box[1],
                              t % columns / box[2]};
        const int64_t id = (b[0] * 64 + b[1]) * 128 + b[2];
        const int starts = boxes < o->cuts && o->cut[boxes] == slot;

        cr_assert(id < wide);
        cr_assert(eq(int, starts, memcmp(b, last, sizeof(b)) != 0), "slot %ld", (long)slot);
        if (starts) {
            const int64_t step = llabs(b[0] - last[0]) + llabs(b[1] - last[1]) + llabs(b[2] - last[2]);
            far += slot > 0 && step != 1;
            boxes++;
            cr_assert(eq(i64, visits[id]++, 0), "box %ld comes once, in one run", (long)id);
        } else {
            cr_assert(o->slot_to_token[slot - 1] < t, "raster order inside a box, slot %ld", (long)slot);
        }
        memcpy(last, b, sizeof(b));
    }
    cr_expect(eq(i64, boxes, o->cuts));
    if (s->grid[0] == 16 || s->grid[0] == 8)
        cr_expect(eq(i64, far, 0), "4 x 4 and 2 x 4 x 2 boxes are visited in unit steps");
    free(visits);
    hra_order_destroy(o);
}

/* ---- Residues ---------------------------------------------------------------------------------- */

struct segments {
    int64_t tokens, grid[3], segment, rate;
    char base[24];
};

ParameterizedTestParameters(order, residues_are_runs_of_their_segment)
{
    static struct segments rows[] = {
        {1, {0, 0, 0}, 1, 1, "identity"},        {1000, {0, 0, 0}, 300, 7, "identity"}, /* nothing divides */
        {1000, {0, 0, 0}, 250, 5, "hilbert"},    {1024, {0, 0, 0}, 512, 4, "hilbert"},
        {901, {0, 0, 0}, 300, 4, "snake"}, /* a last segment of one token */
        {500, {0, 0, 0}, 200, 300, "morton"},    {500, {0, 0, 0}, 600, 3, "identity"},
        {0, {30, 33, 0}, 129, 2, "boxes:5x3"},   /* runs of 65 and 64 */
        {0, {9, 10, 11}, 128, 4, "boxes:2x3x4"}, /* segments that fit a tile */
        {0, {9, 10, 11}, 99, 1, "hilbert"},
    };
    return cr_make_param_array(struct segments, rows, sizeof(rows) / sizeof(rows[0]));
}

/* By (segment, residue, slot of the base) the slots ascend, which leaves one order; cuts are where the first two
 * change, or the first alone where a segment fits a tile. */
ParameterizedTest(struct segments *s, order, residues_are_runs_of_their_segment)
{
    char name[64];

    snprintf(name, sizeof(name), "residues:%d:%d:%s", (int)s->segment, (int)s->rate, s->base);
    hra_order *o = order_of(s->tokens, s->grid, name), *base = order_of(s->tokens, s->grid, s->base);
    int64_t before[3] = {-1, 0, 0}, cuts = 0;

    for (int64_t slot = 0; slot < o->tokens; slot++) {
        const int64_t at = base->token_to_slot[o->slot_to_token[slot]];
        const int64_t here[3] = {at / s->segment, at % s->segment % s->rate, at};
        const int turns = here[0] != before[0], changes = turns || here[1] != before[1];
        const int cut = cuts < o->cuts && o->cut[cuts] == slot;

        cr_assert(eq(i64, o->token_to_slot[o->slot_to_token[slot]], slot));
        cr_assert(turns     ? here[0] == before[0] + 1 && here[1] == 0
                  : changes ? here[1] == before[1] + 1
                            : at == before[2] + s->rate,
                  "slot %ld is slot %ld of the base, after %ld", (long)slot, (long)at, (long)before[2]);
        cr_assert(eq(int, cut, s->segment <= HRA_TILE ? turns : changes), "slot %ld", (long)slot);
        cuts += cut;
        memcpy(before, here, sizeof(before));
    }
    cr_expect(eq(i64, cuts, o->cuts));
    cr_expect(s->rate > 1 ||
                  memcmp(o->slot_to_token, base->slot_to_token, (size_t)o->tokens * sizeof(int64_t)) == 0,
              "a rate of 1 leaves the base as it is");
    hra_order_destroy(base);
    hra_order_destroy(o);
}

Test(order, residues_have_one_name_and_a_hash_of_their_own)
{
    const int64_t none[3] = {0, 0, 0};
    hra_order *a = order_of(512, none, "residues:0256:04:identity"),
              *b = order_of(512, none, "residues:256:4"), *c = order_of(512, none, "residues:512:4");

    cr_expect(eq(str, a->name, "residues:256:4"));
    cr_expect(eq(str, b->name, "residues:256:4"));
    cr_expect(a->hash == b->hash && a->hash != c->hash);
    hra_order_destroy(a);
    hra_order_destroy(b);
    hra_order_destroy(c);
}

/* An order that was made without a grid belongs to one if it lays the tokens on no square of its own. */
Test(order, fits_a_grid_where_it_needs_none)
{
    const int64_t grid[3] = {8, 16, 0}, none[3] = {0, 0, 0};
    const struct {
        const char *name;
        int fits;
    } rows[] = {
        {"identity", 1},
        {"residues:32:4", 1},
        {"snake", 0},
        {"residues:32:4:snake", 0},
    };
    const hra_domain d = domain_of(128, grid);
    struct hra_space space;

    cr_assert(eq(int, hra_space_read(&space, &d), HRA_OK));
    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++) {
        hra_order *o = order_of(128, none, rows[n].name);
        cr_expect(eq(int, hra_order_fits(o, &space), rows[n].fits), "%s", rows[n].name);
        hra_order_destroy(o);
    }
}

/* ---- Permutations, sharing ----------------------------------------------------------------------- */

Test(order, permutation_is_copied_and_inverted)
{
    int64_t token[] = {2, 0, 3, 1}; /* not its own inverse */
    const hra_domain d = domain_of(4, (const int64_t[3]){0, 0, 0});
    hra_order *o = NULL;
    hra_order_info info = {.size = sizeof(info)};

    cr_assert(eq(int, hra_order_permutation(&o, &d, token), HRA_OK));
    token[0] = 99;
    cr_expect(hra_order_slot_to_token(o)[0] == 2 && hra_order_token_to_slot(o)[2] == 0);
    cr_expect(hra_order_token_to_slot(o)[0] == 1 && hra_order_token_to_slot(o)[1] == 3);
    cr_assert(eq(int, hra_order_get_info(o, &info), HRA_OK));
    cr_expect(eq(str, (char *)info.name, "permutation"));
    cr_expect(eq(i64, info.unit_steps, 0));
    cr_expect(eq(i64, info.longest, 3));
    cr_expect(eq(i64, info.grid[0], 0));

    hra_order *held = hra_order_keep(o);
    hra_order_destroy(o);
    cr_expect(eq(i64, hra_order_slot_to_token(held)[3], 1), "a holder keeps it");
    hra_order_destroy(held);
    hra_order_destroy(NULL);
}

Test(order, info_writes_no_more_than_the_caller_knows)
{
    const int64_t grid[3] = {4, 4, 0};
    hra_order *o = order_of(0, grid, "hilbert");
    hra_order_info info;

    memset(&info, 0x55, sizeof(info));
    info.size = offsetof(hra_order_info, unit_steps);
    cr_assert(eq(int, hra_order_get_info(o, &info), HRA_OK));
    cr_expect(eq(i64, info.tokens, 16));
    cr_expect(eq(i64, info.unit_steps, INT64_C(0x5555555555555555)));

    struct {
        hra_order_info known;
        int64_t newer;
    } larger = {.known = {.size = sizeof(larger)}, .newer = 7};
    cr_assert(eq(int, hra_order_get_info(o, &larger.known), HRA_OK));
    cr_expect(eq(i64, larger.known.unit_steps, 15));
    cr_expect(eq(i64, larger.newer, 0));
    cr_expect(eq(sz, larger.known.size, sizeof(larger)));
    hra_order_destroy(o);
}

/* ---- Wrong use ------------------------------------------------------------------------------------ */

struct wrong {
    int batch, heads;
    int64_t tokens, grid[3];
    char name[72], says[96];
};

ParameterizedTestParameters(order, refuses)
{
    static struct wrong rows[] = {
        {0, 0, 0, {0, 0, 0}, "identity", "tokens is 0 and there is no grid"},
        {-2, 0, 4, {0, 0, 0}, "identity", "batch is -2"},
        {0, -3, 4, {0, 0, 0}, "identity", "heads is -3"},
        {0, 0, -4, {0, 0, 0}, "identity", "tokens is -4"},
        {0, 0, 7, {7, 0, 0}, "identity", "{7, 0, 0} has one axis"},
        {0, 0, 7, {0, 7, 0}, "identity", "axis 0 of the grid {0, 7, 0} is 0"},
        {0, 0, 7, {7, 0, 1}, "identity", "axis 1 of the grid {7, 0, 1} is 0"},
        {0, 0, 7, {-7, 1, 0}, "identity", "is -7"},
        {0, 0, 201, {10, 20, 0}, "identity", "{10, 20, 0} has 200 cells, but tokens is 201"},
        {0, 0, 0, {INT64_C(1) << 31, INT64_C(1) << 31, 4}, "identity", "above 2^63 - 1"},
        {0, 0, 4, {0, 0, 0}, "", "no order is named ''"},
        {0, 0, 4, {0, 0, 0}, "Hilbert", "no order is named 'Hilbert'"},
        {0, 0, 4, {0, 0, 0}, "hilbert ", "no order is named 'hilbert '"},
        {0, 0, 4, {0, 0, 0}, "boxes", "no order is named 'boxes'"},
        {0, 0, 0, {10, 20, 0}, "boxes:", "'boxes:' is not of the form"},
        {0, 0, 0, {10, 20, 0}, "boxes:4", "'boxes:4' is not of the form"},
        {0, 0, 0, {10, 20, 0}, "boxes:4x", "'boxes:4x' is not of the form"},
        {0, 0, 0, {10, 20, 0}, "boxes:4x4 ", "'boxes:4x4 ' is not of the form"},
        {0, 0, 0, {10, 20, 0}, "boxes:4x-4", "'boxes:4x-4' is not of the form"},
        {0, 0, 0, {10, 20, 0}, "boxes:4x4x4x4", "is not of the form"},
        {0, 0, 0, {10, 20, 0}, "boxes:2x2x2", "2 x 2 x 2 has 3 axes, the grid of 10 x 20 has 2"},
        {0, 0, 0, {4, 4, 4}, "boxes:2x2", "2 x 2 has 2 axes, the grid of 4 x 4 x 4 has 3"},
        {0, 0, 0, {10, 20, 0}, "boxes:11x1", "side 0 of the box of 11 x 1 is 11, it must be 1 to 10"},
        {0, 0, 0, {10, 20, 0}, "boxes:1x0", "side 1 of the box of 1 x 0 is 0, it must be 1 to 20"},
        {0, 0, 0, {10, 20, 0}, "boxes:1x99999999999999999999", "it must be 1 to 20"},
        {0, 0, 0, {10, 20, 0}, "boxes:10x13", "10 x 13 has more than the 128 tokens of a tile"},
        {0, 0, 9, {0, 0, 0}, "boxes:5x1", "it must be 1 to 4"},
        {0, 0, 9, {0, 0, 0}, "residues", "no order is named 'residues'"},
        {0, 0, 9, {0, 0, 0}, "residues:", "'residues:' is not of the form residues:S:r"},
        {0, 0, 9, {0, 0, 0}, "residues:4", "'residues:4' is not of the form"},
        {0, 0, 9, {0, 0, 0}, "residues:4:", "'residues:4:' is not of the form"},
        {0, 0, 9, {0, 0, 0}, "residues:-4:2", "'residues:-4:2' is not of the form"},
        {0, 0, 9, {0, 0, 0}, "residues:4:2x", "'residues:4:2x' is not of the form"},
        {0, 0, 9, {0, 0, 0}, "residues:0:2", "the segment is 0 and the rate 2, both must be 1 or more"},
        {0, 0, 9, {0, 0, 0}, "residues:4:0:snake", "the segment is 4 and the rate 0"},
        {0, 0, 9, {0, 0, 0}, "residues:4:2:", "no order is named ''"},
        {0, 0, 9, {0, 0, 0}, "residues:4:2:curve", "no order is named 'curve'"},
        {0, 0, 9, {0, 0, 0}, "residues:4:2:boxes:5x1", "it must be 1 to 4"},
        {0,
         0,
         9,
         {0, 0, 0},
         "residues:4:2:residues:4:2:residues:4:2:residues:4:2:residues:4:2",
         "has 64 characters, it may have 63"},
        {0, 0, 0, {1, 1, (INT64_C(1) << 21) + 1}, "hilbert", "a curve in 3 axes can have 2^21"},
        {0, 0, 0, {1, (INT64_C(1) << 21) + 1, 1}, "morton", "axis 1 of the grid has 2097153 cells"},
    };
    return cr_make_param_array(struct wrong, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct wrong *w, order, refuses)
{
    hra_domain d = domain_of(w->tokens, w->grid);
    hra_order *o = NULL;

    d.batch = w->batch;
    d.heads = w->heads;
    cr_expect(eq(int, hra_order_create(&o, &d, w->name), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), w->says) != NULL, "'%s' does not say '%s'", hra_last_error(), w->says);
    cr_expect(o == NULL, "nothing is written on failure");
}

Test(order, refuses_what_is_no_permutation)
{
    const hra_domain d = domain_of(4, (const int64_t[3]){0, 0, 0});
    const struct {
        int64_t token[4];
        const char *says;
    } rows[] = {
        {{0, 1, 4, 2}, "slot 2 holds token 4, it must be 0 to 3"},
        {{0, -1, 3, 2}, "slot 1 holds token -1, it must be 0 to 3"},
        {{3, 1, 0, 1}, "slot 3 holds token 1, which slot 1 holds already"},
    };
    hra_order *o = NULL;

    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++) {
        cr_expect(eq(int, hra_order_permutation(&o, &d, rows[n].token), HRA_ERR_ARG));
        cr_expect(strstr(hra_last_error(), rows[n].says) != NULL, "'%s'", hra_last_error());
    }
    cr_expect(o == NULL);
}

Test(order, refuses_null_pointers)
{
    const int64_t grid[3] = {4, 4, 0};
    const hra_domain d = domain_of(16, grid);
    hra_order *o = order_of(16, grid, "snake"), *none = NULL;
    hra_order_info info = {.size = 0};

    cr_expect(eq(int, hra_order_create(NULL, &d, "snake"), HRA_ERR_ARG));
    cr_expect(eq(int, hra_order_create(&none, NULL, "snake"), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "domain") != NULL);
    cr_expect(eq(int, hra_order_create(&none, &d, NULL), HRA_ERR_ARG));
    cr_expect(eq(int, hra_order_permutation(NULL, &d, grid), HRA_ERR_ARG));
    cr_expect(eq(int, hra_order_permutation(&none, NULL, grid), HRA_ERR_ARG));
    cr_expect(eq(int, hra_order_permutation(&none, &d, NULL), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "slot_to_token") != NULL);
    cr_expect(eq(int, hra_order_get_info(o, NULL), HRA_ERR_ARG));
    cr_expect(eq(int, hra_order_get_info(NULL, &info), HRA_ERR_ARG));
    cr_expect(eq(int, hra_order_get_info(o, &info), HRA_ERR_ARG), "a size of 0");
    cr_expect(none == NULL && hra_order_slot_to_token(NULL) == NULL && hra_order_token_to_slot(NULL) == NULL);
    hra_order_destroy(o);
}

Test(order, domain_defaults)
{
    const int64_t grid[3] = {3, 5, 0};
    hra_domain d = domain_of(0, grid);
    struct hra_space s;

    cr_assert(eq(int, hra_space_read(&s, &d), HRA_OK));
    cr_expect(s.batch == 1 && s.heads == 1 && s.tokens == 15 && s.axes == 2);
    cr_expect(s.grid[0] == 3 && s.grid[1] == 5 && s.grid[2] == 1);
    d.size = offsetof(hra_domain, grid); /* a caller who knows no grid */
    d.tokens = 7;
    cr_assert(eq(int, hra_space_read(&s, &d), HRA_OK));
    cr_expect(s.tokens == 7 && s.axes == 0 && s.grid[0] == 1);
}

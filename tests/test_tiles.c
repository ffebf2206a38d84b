/* test_tiles.c - compiled tiles against every pair asked by itself, and against counts by formula. */
#include "examples/tools/problem.h"
#include "tests/brute.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Drawn problems ---------------------------------------------------------------------------- */

struct drawn {
    uint64_t seed, draws; /* how many numbers were drawn */
    hra_domain domain;
    char *text, order_name[64];
    hra_order *order;
    hra_mask *mask;
    int head0, heads;         /* those that are compiled */
    struct hra_layout *whole; /* for one rank */
    struct hra_layout *layout;
    int ranks;
    hra_shard shard;
};

/* 0 .. below - 1 */
static int draw(struct drawn *p, int64_t below)
{
    return (int)(random_bits(p->seed, p->draws++) % (uint64_t)below);
}

/* Demand something of a problem, which the message then describes. */
static void demand(const struct drawn *p, int holds, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void demand(const struct drawn *p, int holds, const char *format, ...)
{
    const hra_domain *d = &p->domain;
    char what[512];
    va_list args;

    if (holds)
        return;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    cr_fatal("%s\nseed %" PRIu64 ": %" PRId64 " tokens, grid %" PRId64 " %" PRId64 " %" PRId64
             ", %d sequences, %d heads of which %d + %d, order %s, %d ranks, shard %d: %s",
             what, p->seed, d->tokens, d->grid[0], d->grid[1], d->grid[2], d->batch, d->heads, p->head0,
             p->heads, p->order_name, p->ranks, (int)p->shard, p->text);
}

/* Tokens, half of the time on a grid: few, a tile or two, several, and in three of ten whole tiles only. */
static void draw_domain(struct drawn *p)
{
    static const int most[] = {4, 130, 130, 300, 300, 700, 700}; /* tokens */
    const int kind = draw(p, 10), axes = draw(p, 2) ? 2 + draw(p, 2) : 0, tiles = 1 + draw(p, 5);
    hra_domain *d = &p->domain;

    *d = (hra_domain)HRA_DOMAIN_INIT;
    if (kind >= 7) {
        const int64_t side[2][3] = {{16, 8 * tiles, 0}, {8, 8, 2 * tiles}};
        d->tokens = (int64_t)HRA_TILE * tiles;
        if (axes > 0)
            memcpy(d->grid, side[axes - 2], sizeof(d->grid));
    } else if (axes == 0) {
        d->tokens = 1 + draw(p, most[kind]);
    } else {
        d->tokens = 1;
        for (int a = 0; a < axes; a++) {
            const int64_t room = most[kind] / d->tokens, side = axes == 2 ? 26 : 9;
            d->grid[a] = 1 + draw(p, a + 1 < axes && room > side ? side : room);
            d->tokens *= d->grid[a];
        }
    }
    /* As many (batch, head) as leave a problem some hundred thousand pairs to ask for. */
    const int64_t room = 500000 / (d->tokens * d->tokens), all = room < 1 ? 1 : room;
    d->batch = 1 + draw(p, all < 3 ? all : 3);
    d->heads = 1 + draw(p, all / d->batch < 4 ? all / d->batch : 4);
}

/* Boxes of a tile at most; without a grid they are those of the square that the tokens are laid on. */
static void name_boxes(struct drawn *p)
{
    int64_t side[3] = {p->domain.grid[0], p->domain.grid[1], p->domain.grid[2]}, room = HRA_TILE;
    size_t length = 0;

    if (side[0] == 0)
        for (side[0] = side[1] = 1; side[0] * side[1] < p->domain.tokens;)
            side[0] = side[1] *= 2;
    for (int a = 0; a < 3 && side[a] > 0; a++) {
        const int extent = 1 + draw(p, side[a] < room ? side[a] : room);
        length += (size_t)snprintf(p->order_name + length, sizeof(p->order_name) - length,
                                   a == 0 ? "boxes:%d" : "x%d", extent);
        room /= extent;
    }
}

static void name_residues(struct drawn *p)
{
    static const char *const base[] = {"", ":hilbert", ":morton", ":snake"};
    const int segment = 1 + draw(p, p->domain.tokens + 2), rate = 1 + draw(p, 9);

    snprintf(p->order_name, sizeof(p->order_name), "residues:%d:%d%s", segment, rate, base[draw(p, 4)]);
}

static void draw_permutation(struct drawn *p)
{
    int64_t *token = malloc((size_t)p->domain.tokens * sizeof(*token));

    for (int64_t s = 0; s < p->domain.tokens; s++) {
        const int other = draw(p, s + 1);
        token[s] = token[other];
        token[other] = s;
    }
    demand(p, hra_order_permutation(&p->order, &p->domain, token) == HRA_OK, "%s", hra_last_error());
    free(token);
}

static void draw_order(struct drawn *p)
{
    static const char *const names[] = {"identity", "hilbert", "morton", "snake", "permutation"};
    const int kind = draw(p, 9);

    if (kind < 5)
        snprintf(p->order_name, sizeof(p->order_name), "%s", names[kind]);
    else if (kind < 7)
        name_boxes(p);
    else
        name_residues(p);
    if (kind == 4)
        draw_permutation(p);
    else
        demand(p, hra_order_create(&p->order, &p->domain, p->order_name) == HRA_OK, "%s", hra_last_error());
}

static void draw_problem(struct drawn *p, uint64_t seed)
{
    *p = (struct drawn){.seed = seed};
    draw_domain(p);
    draw_order(p);
    p->text = mask_random(&p->domain, seed);
    demand(p, p->text != NULL && hra_mask_parse(&p->mask, &p->domain, p->order, p->text) == HRA_OK, "%s",
           hra_last_error());
    p->head0 = draw(p, p->domain.heads);
    p->heads = 1 + draw(p, p->domain.heads - p->head0);
    p->ranks = 1 + draw(p, draw(p, 5) == 0 ? 9 : 5);
    p->shard = (hra_shard)(HRA_SHARD_CONTIGUOUS + draw(p, 3));
    demand(p, hra_layout_create(&p->whole, p->order, 1, HRA_SHARD_CONTIGUOUS) == HRA_OK, "%s",
           hra_last_error());
}

static void free_problem(struct drawn *p)
{
    hra_layout_destroy(p->layout);
    hra_layout_destroy(p->whole);
    hra_mask_destroy(p->mask);
    hra_order_destroy(p->order);
    free(p->text);
}

/* ---- Drawn problems: what must hold -------------------------------------------------------------- */

/* What the problems of a series had in them. */
struct seen {
    int mixed, by_head, by_batch, several, full, partial, none;
};

static struct hra_tiles *survey(const struct drawn *p, const struct hra_layout *layout, int rank, int query0,
                                int query1)
{
    struct hra_tiles *t = NULL;

    demand(p,
           hra_tiles_survey(&t, layout, p->order, p->mask, rank, query0, query1, p->domain.batch, p->head0,
                            p->heads) == HRA_OK,
           "%s", hra_last_error());
    return t;
}

/* A survey in two parts finds the work that one finds; then cut the order. */
static void cut(struct drawn *p)
{
    const int tiles = p->whole->tiles, middle = draw(p, tiles + 1);
    struct hra_tiles *all = survey(p, p->whole, 0, 0, tiles),
                     *part[] = {survey(p, p->whole, 0, 0, middle), survey(p, p->whole, 0, middle, tiles)};

    for (int q = 0; q < tiles; q++)
        demand(p, all->row_work[q] == (q < middle ? part[0]->row_work[q] : part[1]->row_work[q - middle]),
               "work of query tile %d in a survey of %d and %d", q, middle, tiles - middle);
    for (int k = 0; k < tiles; k++)
        demand(p, all->column_work[k] == part[0]->column_work[k] + part[1]->column_work[k],
               "work of key tile %d in a survey of %d and %d", k, middle, tiles - middle);
    const hra_status status = p->shard == HRA_SHARD_BALANCED
                                  ? hra_layout_balanced(&p->layout, p->order, p->ranks, all->row_work)
                                  : hra_layout_create(&p->layout, p->order, p->ranks, p->shard);
    demand(p, status == HRA_OK, "%s", hra_last_error());
    hra_tiles_destroy(all);
    hra_tiles_destroy(part[0]);
    hra_tiles_destroy(part[1]);
}

static int64_t *copy_of(const int64_t *numbers, int count)
{
    int64_t *copy = malloc((size_t)count * sizeof(*copy) + 1);
    memcpy(copy, numbers, (size_t)count * sizeof(*copy));
    return copy;
}

/* Compile a rank's tiles in two halves: what the survey says of work is no less than what is there. */
static struct hra_tiles *compile_rank(const struct drawn *p, int rank)
{
    const struct hra_layout *l = p->layout;
    struct hra_tiles *t = survey(p, l, rank, l->rank_tile[rank], l->rank_tile[rank + 1]);
    int64_t *row = copy_of(t->row_work, t->queries), *column = copy_of(t->column_work, t->keys);

    demand(p, hra_tiles_finish(t, l, p->order, p->mask) == HRA_OK, "%s", hra_last_error());
    for (int q = 0; q < t->queries; q++)
        demand(p, t->row_work[q] <= row[q], "rank %d: query tile %d has more work than surveyed", rank, q);
    for (int k = 0; k < t->keys; k++)
        demand(p, t->column_work[k] <= column[k], "rank %d: key tile %d has more work than surveyed", rank,
               k);
    free(row);
    free(column);
    return t;
}

/* Every rank's tiles are right, and together they are those of one rank. */
static void expect_tiles(struct drawn *p, struct seen *seen)
{
    struct hra_tiles *whole = NULL;
    struct brute b = {
        .order = p->order, .mask = p->mask, .batch = p->domain.batch, .head0 = p->head0, .heads = p->heads};
    int64_t live = 0, counted = 0, in_tiles = 0, full = 0, partial = 0;

    cut(p);
    b.layout = p->layout;
    demand(p, brute_ask(&b) == 0, "no memory");
    for (int rank = 0; rank < p->ranks; rank++) {
        struct hra_tiles *t = compile_rank(p, rank);

        demand(p, brute_check(&b, t) == 0, "rank %d: %s", rank, b.error);
        live += t->pairs_live;
        counted += t->pairs_counted;
        in_tiles += t->pairs_in_tiles;
        full += t->tiles_full;
        partial += t->tiles_partial;
        seen->several += t->queries > 1;
        hra_tiles_destroy(t);
    }
    demand(p, hra_tiles_compile(&whole, p->whole, p->order, p->mask, 0, b.batch, b.head0, b.heads) == HRA_OK,
           "%s", hra_last_error());
    demand(p, live == whole->pairs_live && counted == whole->pairs_counted, "pairs of all ranks");
    if (p->shard == HRA_SHARD_BALANCED) /* which cuts where one rank's tiles begin */
        demand(p,
               in_tiles == whole->pairs_in_tiles && full == whole->tiles_full &&
                   partial == whole->tiles_partial,
               "tiles of all ranks");
    seen->mixed += counted > live;
    seen->by_head += whole->patterns > 1 && hra_mask_by_head(p->mask);
    seen->by_batch += whole->patterns > 1 && hra_mask_by_batch(p->mask);
    seen->full += full > 0;
    seen->partial += partial > 0;
    seen->none += live == 0;
    hra_tiles_destroy(whole);
    brute_free(&b);
}

struct series {
    int first, count;
};

ParameterizedTestParameters(tiles, compiled_tiles_equal_every_pair_asked)
{
    static struct series series[] = {{0, 800}, {800, 800}, {1600, 800}, {2400, 800}};
    return cr_make_param_array(struct series, series, sizeof(series) / sizeof(series[0]));
}

/* Seeded; and the problems are of all kinds. */
ParameterizedTest(struct series *s, tiles, compiled_tiles_equal_every_pair_asked, .timeout = 300)
{
    struct seen seen = {0};
    struct drawn p;

    for (int seed = s->first; seed < s->first + s->count; seed++) {
        draw_problem(&p, (uint64_t)seed);
        expect_tiles(&p, &seen);
        free_problem(&p);
    }
    cr_expect(seen.mixed > s->count / 20, "%d with pairs that attend more than once", seen.mixed);
    cr_expect(seen.by_head > s->count / 50 && seen.by_batch > s->count / 50,
              "%d with patterns by head, %d by sequence", seen.by_head, seen.by_batch);
    cr_expect(seen.several > s->count / 5, "%d ranks with several query tiles", seen.several);
    cr_expect(seen.full > s->count / 50 && seen.partial > s->count / 2 && seen.none < s->count / 4,
              "%d with full tiles, %d with partial ones, %d without pairs", seen.full, seen.partial,
              seen.none);
}

/* Does query tile q of a list of `a` have tile j of a list of `b`, of the same query tile, with the same pairs? */
static int has_tile(const struct hra_tiles *a, const struct hra_tile_list *list_a, int q,
                    const struct hra_tiles *b, const struct hra_tile_list *list_b, int64_t j)
{
    const int wanted = list_b->bitmap[j];

    for (int64_t i = list_a->row_start[q]; i < list_a->row_start[q + 1]; i++) {
        const int bitmap = list_a->bitmap[i];
        if (list_a->key[i] != list_b->key[j])
            continue;
        if (bitmap == HRA_FULL || wanted == HRA_FULL
                ? bitmap == wanted
                : memcmp(a->dictionary.bits[bitmap], b->dictionary.bits[wanted], sizeof(hra_bits)) == 0)
            return 1;
    }
    return 0;
}

/* For the i-th (batch, head) the lists of t[2], the mixture of t[0] and t[1], have the tiles of both and no others. */
static void expect_union(const struct drawn *p, const char *other, struct hra_tiles *const t[3], int i)
{
    const struct hra_tile_list *list[3];

    for (int n = 0; n < 3; n++)
        list[n] = &t[n]->list[t[n]->pattern[i]];
    for (int q = 0; q < t[2]->queries; q++) {
        int64_t more = list[2]->row_start[q + 1] - list[2]->row_start[q];

        for (int n = 0; n < 2; n++)
            for (int64_t j = list[n]->row_start[q]; j < list[n]->row_start[q + 1]; j++, more--)
                demand(p, has_tile(t[2], list[2], q, t[n], list[n], j),
                       "query tile %d of a mixture with %s lacks key tile %d", q, other, list[n]->key[j]);
        for (int64_t j = list[2]->row_start[q]; j < list[2]->row_start[q + 1]; j++)
            demand(
                p,
                has_tile(t[0], list[0], q, t[2], list[2], j) || has_tile(t[1], list[1], q, t[2], list[2], j),
                "query tile %d of a mixture with %s has a key tile %d of its own", q, other, list[2]->key[j]);
        demand(p, more == 0, "query tile %d of a mixture with %s has %" PRId64 " tiles more", q, other, more);
    }
}

/* A tile of a mixture stands once for each branch, with the pairs of that branch. */
Test(tiles, mixtures_list_the_tiles_of_their_branches, .timeout = 300)
{
    int mixtures = 0;

    for (uint64_t seed = 0; seed < 600; seed++) {
        struct hra_tiles *t[3] = {NULL, NULL, NULL};
        hra_mask *mask[3] = {NULL, NULL, NULL};
        struct drawn p;

        draw_problem(&p, seed);
        char *text = mask_random(&p.domain, seed + 1000000);
        mask[0] = hra_mask_keep(p.mask);
        demand(&p, hra_mask_parse(&mask[1], &p.domain, p.order, text) == HRA_OK, "%s", hra_last_error());
        if (!mask[0]->mixture && !mask[1]->mixture && mask[0]->orders + mask[1]->orders <= HRA_MASK_ORDERS) {
            demand(&p, hra_mask_mix(&mask[2], (const hra_mask *const *)mask, 2) == HRA_OK, "%s: %s", text,
                   hra_last_error());
            for (int n = 0; n < 3; n++)
                demand(&p,
                       hra_tiles_compile(&t[n], p.whole, p.order, mask[n], 0, p.domain.batch, p.head0,
                                         p.heads) == HRA_OK,
                       "%s", hra_last_error());
            for (int i = 0; i < p.domain.batch * p.heads; i++)
                expect_union(&p, text, t, i);
            mixtures++;
        }
        for (int n = 0; n < 3; n++) {
            hra_tiles_destroy(t[n]);
            hra_mask_destroy(mask[n]);
        }
        free(text);
        free_problem(&p);
    }
    cr_expect(mixtures > 200, "%d mixtures", mixtures);
}

/* ---- Counts by formula, at sizes where all pairs would take too long ------------------------------ */

/* One sequence and one head, too many pairs to ask for all. */
struct large {
    hra_domain domain;
    hra_order *order;
    hra_mask *mask;
    struct hra_layout *layout;
};

static struct large make_large(int64_t tokens, const int64_t *grid, const char *order, const char *mask,
                               int ranks, hra_shard shard)
{
    struct large p = {.domain = HRA_DOMAIN_INIT};

    p.domain.tokens = tokens;
    if (grid != NULL)
        memcpy(p.domain.grid, grid, sizeof(p.domain.grid));
    cr_assert(hra_order_create(&p.order, &p.domain, order) == HRA_OK, "%s: %s", order, hra_last_error());
    cr_assert(hra_mask_parse(&p.mask, &p.domain, p.order, mask) == HRA_OK, "%s: %s", mask, hra_last_error());
    cr_assert(hra_layout_create(&p.layout, p.order, ranks, shard) == HRA_OK, "%s", hra_last_error());
    return p;
}

static void free_large(struct large *p)
{
    hra_layout_destroy(p->layout);
    hra_mask_destroy(p->mask);
    hra_order_destroy(p->order);
}

static int64_t asked; /* boxes that the mask was asked about */

enum hra_answer __real_hra_mask_classify(const struct hra_question *question, const struct hra_box *q,
                                         const struct hra_box *k);
enum hra_answer __wrap_hra_mask_classify(const struct hra_question *question, const struct hra_box *q,
                                         const struct hra_box *k);

/* The link puts this before the library's. */
enum hra_answer __wrap_hra_mask_classify(const struct hra_question *question, const struct hra_box *q,
                                         const struct hra_box *k)
{
    asked++;
    return __real_hra_mask_classify(question, q, k);
}

/* Of all ranks. */
struct counts {
    int64_t full, partial, pairs, asked;
    int bitmaps; /* the most that a rank has */
};

/* `rows` rows of each of `tiles` query tiles, drawn, attend to the keys that they should, all keys asked. */
static void expect_sample(const struct large *p, const struct hra_tiles *t, int tiles, int rows)
{
    const struct hra_layout *l = p->layout;
    const int64_t *token = hra_order_slot_to_token(p->order);
    unsigned char *row = malloc((size_t)l->tokens);

    for (int n = 0; n < tiles * rows; n++) {
        const int q = (int)(random_bits(17, (uint64_t)(n / rows)) % (uint64_t)t->queries);
        const int tile = t->first_query + q;
        const int r = (int)((random_bits(18, (uint64_t)(n / rows)) + (uint64_t)(n % rows)) %
                            (uint64_t)l->tile[tile].rows);
        const int64_t query = token[l->slot0[tile] + r];

        brute_row(row, l, t, &t->list[t->pattern[0]], q, r);
        for (int64_t j = 0; j < l->tokens; j++)
            if (row[j] != hra_mask_count(p->mask, 0, 0, query, token[j]))
                cr_fatal("row %d of query tile %d attends to slot %" PRId64 " %d times", r, q, j, row[j]);
    }
    free(row);
}

/* Compile for every rank, check what can be without all pairs, and `rows` rows of each of `tiles` query tiles with all
 * keys. */
static struct counts count(const struct large *p, int tiles, int rows)
{
    struct brute b = {.order = p->order, .mask = p->mask, .layout = p->layout, .batch = 1, .heads = 1};
    struct counts c = {0};

    for (int r = 0; r < p->layout->ranks; r++) {
        struct hra_tiles *t = NULL;

        asked = 0;
        cr_assert(hra_tiles_compile(&t, p->layout, p->order, p->mask, r, 1, 0, 1) == HRA_OK, "%s",
                  hra_last_error());
        c.asked += asked;
        cr_assert(brute_check(&b, t) == 0, "rank %d: %s", r, b.error);
        cr_assert(eq(i64, t->pairs_live, t->pairs_counted));
        if (t->queries > 0)
            expect_sample(p, t, tiles, rows);
        c.full += t->tiles_full;
        c.partial += t->tiles_partial;
        c.pairs += t->pairs_live;
        c.bitmaps = t->dictionary.count > c.bitmaps ? t->dictionary.count : c.bitmaps;
        hra_tiles_destroy(t);
    }
    return c;
}

static struct counts count_line(int64_t tokens, const char *mask, int ranks, hra_shard shard)
{
    struct large p = make_large(tokens, NULL, "identity", mask, ranks, shard);
    const struct counts c = count(&p, 4, 1);

    free_large(&p);
    return c;
}

Test(tiles, causal_over_65536_tokens, .timeout = 60)
{
    const int64_t tokens = 65536, n = tokens / HRA_TILE;

    for (int ranks = 1; ranks <= 4; ranks *= 4) {
        const struct counts c = count_line(tokens, "causal", ranks, HRA_SHARD_ZIGZAG);
        cr_expect(eq(i64, c.full, n * (n - 1) / 2));
        cr_expect(eq(i64, c.partial, n));
        cr_expect(eq(int, c.bitmaps, 1), "the diagonal's");
        cr_expect(eq(i64, c.pairs, tokens * (tokens + 1) / 2));
    }
}

Test(tiles, window_over_a_million_tokens, .timeout = 60)
{
    const int64_t tokens = 1000000, n = (tokens + HRA_TILE - 1) / HRA_TILE, reach = 100;
    const struct counts c = count_line(tokens, "window(100,0)", 1, HRA_SHARD_CONTIGUOUS);

    cr_expect(eq(i64, c.full, 0));
    cr_expect(eq(i64, c.partial, 2 * n - 1));
    cr_expect(eq(int, c.bitmaps, 4), "on the diagonal and before it, and both for the last tile of 64 rows");
    cr_expect(eq(i64, c.pairs, tokens * (reach + 1) - reach * (reach + 1) / 2));
}

/* A window of 32 tiles: before the diagonal's up to 31 full ones, then one that its far edge crosses. */
Test(tiles, causal_window_over_1048576_tokens, .timeout = 120)
{
    const int64_t tokens = 1048576, n = tokens / HRA_TILE, reach = 4096, wide = reach / HRA_TILE;

    for (int ranks = 1; ranks <= 8; ranks *= 8) {
        const struct counts c = count_line(tokens, "causal & window(4095,0)", ranks, HRA_SHARD_CONTIGUOUS);
        cr_expect(eq(i64, c.full, (wide - 1) * (n - wide) + wide * (wide - 1) / 2));
        cr_expect(eq(i64, c.partial, 2 * n - wide));
        cr_expect(eq(int, c.bitmaps, 2), "the diagonal's and the far edge's");
        cr_expect(eq(i64, c.pairs, tokens * reach - reach * (reach - 1) / 2));
    }
}

/* Boxes of 8 x 16 see those at most 2 rows and 1 column of boxes away; only those at most 1 row away in the same column
 * are seen whole. */
Test(tiles, image_of_256x256_in_boxes, .timeout = 120)
{
    const int64_t grid[3] = {256, 256, 0}, rows = 256 / 8, columns = 256 / 16;
    struct large p = make_large(0, grid, "boxes:8x16", "grid(16,16)", 1, HRA_SHARD_CONTIGUOUS);
    const struct counts c = count(&p, 3, HRA_TILE);
    const int64_t all = (5 * rows - 6) * (3 * columns - 2), full = (3 * rows - 2) * columns;
    const int64_t side = 256 * 33 - 16 * 17; /* pairs of coordinates at most 16 apart */

    cr_expect(eq(i64, c.full, full));
    cr_expect(eq(i64, c.partial, all - full));
    cr_expect(eq(int, c.bitmaps, 8), "2 far rows and 2 columns, alone and with each other");
    cr_expect(eq(i64, c.pairs, side * side));
    free_large(&p);
}

Test(tiles, image_of_256x256_along_the_curve, .timeout = 120)
{
    const int64_t grid[3] = {256, 256, 0}, side = 256 * 33 - 16 * 17;
    struct large p = make_large(0, grid, "hilbert", "grid(16,16)", 1, HRA_SHARD_CONTIGUOUS);
    const struct counts c = count(&p, 3, HRA_TILE);

    cr_expect(eq(i64, c.pairs, side * side));
    free_large(&p);
}

/* The window of 8 x 16 x 16 on a video, for which boxes of the window's shape are made. */
struct video {
    char order[16];
    int row, bitmaps; /* tiles of a row, on average and rounded; distinct bit matrices */
};

ParameterizedTestParameters(tiles, video_of_32x64x64)
{
    static struct video rows[] = {{"boxes:4x4x8", 36, 26}, {"hilbert", 44, 8595}, {"identity", 70, 3}};
    return cr_make_param_array(struct video, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct video *v, tiles, video_of_32x64x64, .timeout = 120)
{
    const int64_t grid[3] = {32, 64, 64};
    struct large p = make_large(0, grid, v->order, "neighbourhood(8,16,16)", 1, HRA_SHARD_CONTIGUOUS);
    const struct counts c = count(&p, 2, 16);
    const int64_t tiles = c.full + c.partial;

    cr_expect(eq(i64, (tiles + p.layout->tiles / 2) / p.layout->tiles, v->row), "%" PRId64 " tiles", tiles);
    cr_expect(eq(int, c.bitmaps, v->bitmaps));
    cr_expect(eq(i64, c.pairs, p.layout->tokens * 8 * 16 * 16));
    if (v->order[0] ==
        'b') /* 3, 5 and 3 boxes an axis; at the ends 2, 4 and 2, the second from there 4 for 5 too */
        cr_expect(eq(i64, tiles, (3 * 8 - 2) * (5 * 16 - 4) * (3 * 8 - 2)));
    free_large(&p);
}

/* Dilated segments in an order that puts tokens of one residue together. */
struct dilated {
    int64_t tokens;
    char order[32], mask[48];
    int64_t full, partial;
};

ParameterizedTestParameters(tiles, dilated_segments_by_residue)
{
    static struct dilated rows[] = {
        {65536, "residues:16384:4", "dilated(16384,4,0,both)", 4 * 32 * 32, 0},
        {65536, "residues:16384:4", "dilated(16384,4,3)", 4 * 128 * 32, 0},
        {65536, "residues:16384:4", "dilated(16384,4,0,residue)", 4 * 4 * 32 * 32, 0},
        {32768, "residues:4096:4:hilbert", "slots(hilbert; dilated(4096,4,0,keys))", 8 * 32 * 8, 0},
        /* a run of the order has every 16th token of 4 segments of the mask */
        {65536, "residues:16384:16", "dilated(4096,4,1,both)", 16 * 8 * 8, 0},
        /* 3 segments with runs of 100 and one of 100 tokens, which is a tile */
        {1000, "residues:300:3", "dilated(300,3,0,both)", 0, 4},
        /* runs of 30: four to a tile, which is never cut between them */
        {12000, "residues:600:20", "dilated(600,20,0,residue)", 0, 12000 / 120},
        /* whole segments, two to a tile */
        {6000, "residues:60:7", "dilated(60,7,0,residue)", 0, 6000 / 120},
    };
    return cr_make_param_array(struct dilated, rows, sizeof(rows) / sizeof(rows[0]));
}

/* Squares of full tiles are told at once, and squares without pairs: looking at each tile of a segment asks 4 to 16 times
 * for each full one. */
ParameterizedTest(struct dilated *d, tiles, dilated_segments_by_residue, .timeout = 120)
{
    struct large p = make_large(d->tokens, NULL, d->order, d->mask, 1, HRA_SHARD_CONTIGUOUS);
    const struct counts c = count(&p, 4, 4);

    cr_expect(eq(i64, c.full, d->full));
    cr_expect(eq(i64, c.partial, d->partial));
    cr_expect(c.full == 0 || c.asked < 3 * c.full, "%s %s: %" PRId64 " questions", d->order, d->mask,
              c.asked);
    free_large(&p);
}

Test(tiles, a_full_mask_over_whole_tiles_has_no_bitmap)
{
    const struct counts c = count_line(4 * HRA_TILE, "full", 2, HRA_SHARD_CONTIGUOUS);

    cr_expect(c.full == 16 && c.partial == 0 && c.bitmaps == 0);
}

Test(tiles, ranks_without_rows_have_no_tiles)
{
    const struct counts c = count_line(3, "full", 7, HRA_SHARD_ZIGZAG);

    cr_expect(eq(i64, c.partial, 9));
    cr_expect(eq(i64, c.pairs, 9));
}

/* ---- Questions ----------------------------------------------------------------------------------- */

/* The way down to a live tile is as long as the logarithm of the tiles, so that many questions a live tile, and a few
 * more at the border, are all that may be asked; looking at each tile alone asks 8,000 for each live one here. */
Test(tiles, questions_follow_the_live_tiles, .timeout = 120)
{
    const struct counts c = count_line(1000000, "window(100,0)", 1, HRA_SHARD_CONTIGUOUS);

    cr_expect(c.asked > 0 && c.asked < 8 * c.partial, "%" PRId64 " questions for %" PRId64 " tiles", c.asked,
              c.partial);
}

/* Local masks: tiles grow with the tokens, and so do questions; pairs of tiles grow 16 times as fast. */
struct growth {
    char order[16], mask[32];
    int64_t side; /* of the smallest grid; 0: no grid, 16,384 tokens */
};

ParameterizedTestParameters(tiles, questions_grow_as_tiles)
{
    static struct growth rows[] = {
        {"identity", "causal & window(4095,0)", 0},
        {"hilbert", "grid(16,16)", 128},
        {"boxes:8x16", "grid(16,16)", 128},
        {"identity", "dilated(2048,4)", 0},
        {"hilbert", "slots(dilated(2048,4,0,both))", 128},
        {"residues:2048:4", "dilated(2048,4)", 0},
    };
    return cr_make_param_array(struct growth, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct growth *g, tiles, questions_grow_as_tiles, .timeout = 120)
{
    double first = 0;

    for (int64_t times = 1; times <= 16; times *= 4) {
        const int64_t side = times == 1 ? g->side : times == 4 ? 2 * g->side : 4 * g->side;
        const int64_t grid[3] = {side, side, 0};
        struct large p =
            make_large(16384 * times, g->side > 0 ? grid : NULL, g->order, g->mask, 1, HRA_SHARD_CONTIGUOUS);
        const struct counts c = count(&p, 1, 1);
        const double each = (double)c.asked / (double)(c.full + c.partial);

        first = times == 1 ? each : first;
        cr_expect(c.asked > 0 && each < 1.25 * first,
                  "%.2f questions a tile, %.2f with %" PRId64 " times the tokens", first, each, times);
        free_large(&p);
    }
}

/* ---- Packed layouts ------------------------------------------------------------------------------ */

enum { PADDING = 8 }; /* bytes after each packed tile */

/* Row c, bit r in place of row r, bit c. */
static void transpose(void *out, const hra_bits *bits)
{
    hra_bits turned = {{0}};

    for (int r = 0; r < HRA_TILE; r++)
        for (int c = 0; c < HRA_TILE; c++)
            turned[c][r / 64] |= ((*bits)[r][c / 64] >> c % 64 & 1) << r % 64;
    memcpy(out, turned, sizeof(turned));
    memset((char *)out + sizeof(turned), 0x5a, PADDING);
}

Test(tiles, dictionaries_are_packed_in_a_layout_of_the_backend)
{
    static const struct hra_bit_layout turned = {"transposed", sizeof(hra_bits) + PADDING, transpose},
                                       plain = {"plain", sizeof(hra_bits), NULL};
    hra_domain d = HRA_DOMAIN_INIT;
    hra_order *order = NULL;
    hra_mask *mask = NULL;
    struct hra_layout *l = NULL;
    struct hra_tiles *t = NULL;
    void *packed = &d;
    char back[sizeof(hra_bits) + PADDING];

    d.tokens = 600;
    cr_assert(hra_order_create(&order, &d, "hilbert") == HRA_OK &&
              hra_mask_parse(&mask, &d, order, "window(70,3) & docs(250,350)") == HRA_OK);
    cr_assert(eq(int, hra_layout_create(&l, order, 1, HRA_SHARD_CONTIGUOUS), HRA_OK));
    cr_assert(eq(int, hra_tiles_compile(&t, l, order, mask, 0, 1, 0, 1), HRA_OK));
    cr_assert(t->dictionary.count > 3);

    cr_assert(eq(int, hra_dictionary_pack(&packed, &t->dictionary, &turned), HRA_OK));
    for (int id = 0; id < t->dictionary.count; id++) {
        const char *one = (const char *)packed + (size_t)id * turned.bytes;
        cr_expect(memcmp(one, t->dictionary.bits[id], sizeof(hra_bits)) != 0, "bitmap %d is not symmetric",
                  id);
        transpose(back, (const hra_bits *)(const void *)one);
        cr_expect(memcmp(back, t->dictionary.bits[id], sizeof(hra_bits)) == 0, "bitmap %d", id);
        for (int i = 0; i < PADDING; i++)
            cr_expect(one[sizeof(hra_bits) + (size_t)i] == 0x5a, "bitmap %d", id);
    }
    free(packed);

    packed = &d;
    cr_assert(eq(int, hra_dictionary_pack(&packed, &t->dictionary, &plain), HRA_OK));
    cr_expect(packed == NULL, "hra_bits as they are need no copy");
    hra_tiles_destroy(t);
    hra_tiles_destroy(NULL);
    hra_layout_destroy(l);
    hra_mask_destroy(mask);
    hra_order_destroy(order);
}

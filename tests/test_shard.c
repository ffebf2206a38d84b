/* test_shard.c - pieces and tiles of every rank: owned once, in even shares, cut where the order proposes. */
#include "src/shard.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hra_order *order_of(int64_t tokens, int64_t rows, int64_t columns, int64_t third, const char *name)
{
    hra_domain d = HRA_DOMAIN_INIT;
    hra_order *o = NULL;

    d.tokens = tokens;
    d.grid[0] = rows;
    d.grid[1] = columns;
    d.grid[2] = third;
    cr_assert(hra_order_create(&o, &d, name) == HRA_OK, "%s: %s", name, hra_last_error());
    return o;
}

static struct hra_layout *layout_of(const hra_order *order, int ranks, hra_shard shard)
{
    struct hra_layout *l = NULL;

    cr_assert(hra_layout_create(&l, order, ranks, shard) == HRA_OK, "%s", hra_last_error());
    return l;
}

static void expect_pieces(const struct hra_layout *l, int64_t tokens, int ranks, hra_shard shard)
{
    int64_t slot = 0, shortest = tokens, longest = 0;
    int64_t *rows = calloc((size_t)ranks, sizeof(*rows));

    cr_assert(eq(int, l->ranks, ranks));
    cr_assert(eq(i64, l->tokens, tokens));
    cr_assert(eq(int, l->pieces, shard == HRA_SHARD_ZIGZAG ? 2 * ranks : ranks));
    for (int i = 0; i < l->pieces; i++) {
        const hra_piece *piece = &l->piece[i];

        cr_assert(eq(int, piece->rank, i < ranks ? i : 2 * ranks - 1 - i));
        cr_assert(eq(i64, piece->slot0, slot));
        cr_assert(eq(i64, piece->row0, rows[piece->rank]), "piece %d", i);
        slot += piece->rows;
        rows[piece->rank] += piece->rows;
        shortest = piece->rows < shortest ? piece->rows : shortest;
        longest = piece->rows > longest ? piece->rows : longest;
    }
    cr_assert(eq(i64, slot, tokens));
    cr_assert(longest - shortest <= 1 && shortest >= 0, "pieces of %d to %d slots", (int)shortest,
              (int)longest);
    for (int r = 0; r < ranks; r++)
        cr_assert(eq(i64, l->rows[r], rows[r]), "rank %d", r);
    free(rows);
}

/* The piece that holds a slot. */
static const hra_piece *piece_at(const struct hra_layout *l, int64_t slot)
{
    int i = 0;

    while (slot >= l->piece[i].slot0 + l->piece[i].rows)
        i++;
    return &l->piece[i];
}

/* Every slot lies in one tile, of its owner, at its row. cut [tokens]: 1 where a tile should begin; NULL: nowhere. */
static void expect_tiles(const struct hra_layout *l, const char *cut)
{
    char *seen = calloc((size_t)l->tokens, 1);

    cr_assert(eq(int, l->rank_tile[0], 0));
    cr_assert(eq(int, l->rank_tile[l->ranks], l->tiles));
    for (int r = 0; r < l->ranks; r++) {
        int64_t row = 0;
        for (int t = l->rank_tile[r]; t < l->rank_tile[r + 1]; t++) {
            const struct hra_tile_rows *tile = &l->tile[t];
            const int64_t slot0 = l->slot0[t], end = slot0 + tile->rows;
            cr_assert(tile->rows >= 1 && tile->rows <= HRA_TILE && slot0 >= 0 && end <= l->tokens, "tile %d",
                      t);
            const hra_piece *piece = piece_at(l, slot0);
            const int64_t piece_end = piece->slot0 + piece->rows;
            cr_assert(piece->rank == r && end <= piece_end, "tile %d of rank %d: slots %d to %d", t, r,
                      (int)slot0, (int)end);
            cr_assert(eq(i64, tile->row0, row), "tile %d", t);
            cr_assert(eq(i64, tile->row0, piece->row0 + slot0 - piece->slot0), "tile %d", t);
            row += tile->rows;
            for (int64_t s = slot0; s < end; s++)
                cr_assert(seen[s]++ == 0, "slot %d is in two tiles", (int)s);

            /* It ends with its piece if that is near enough, else at the last cut that is, else as far on as it may. */
            int64_t expected = slot0 + HRA_TILE < piece_end ? slot0 + HRA_TILE : piece_end;
            for (int64_t s = expected; cut != NULL && expected < piece_end && s > slot0; s--)
                if (s < l->tokens && cut[s]) {
                    expected = s;
                    break;
                }
            cr_assert(eq(i64, end, expected), "tile %d begins at slot %d", t, (int)slot0);
        }
        cr_assert(eq(i64, row, l->rows[r]), "rank %d", r);
        cr_assert(l->rank_tile[r + 1] >= l->rank_tile[r]);
    }
    for (int64_t s = 0; s < l->tokens; s++)
        cr_assert(seen[s] == 1, "slot %d is in no tile", (int)s);
    free(seen);
}

static void expect_by_slot(const struct hra_layout *l)
{
    char *seen = calloc((size_t)l->tiles, 1);

    for (int n = 0; n < l->tiles; n++) {
        const int t = l->by_slot[n];
        cr_assert(t >= 0 && t < l->tiles && seen[t]++ == 0, "by_slot[%d] is %d", n, t);
        cr_assert(n == 0 || l->slot0[l->by_slot[n - 1]] < l->slot0[t], "by_slot[%d] is %d", n, t);
    }
    free(seen);
}

static void expect_layout(const hra_order *o, int64_t tokens, int ranks, hra_shard shard, const char *cut)
{
    struct hra_layout *l = layout_of(o, ranks, shard);

    expect_pieces(l, tokens, ranks, shard);
    expect_tiles(l, cut);
    expect_by_slot(l);
    hra_layout_destroy(l);
}

struct size {
    int64_t tokens;
    int ranks;
};

ParameterizedTestParameters(shard, every_slot_is_owned_once)
{
    static const int64_t tokens[] = {1,   2,   3,   5,   7,    64,   127,  128,
                                     129, 255, 256, 257, 1000, 1025, 4096, 10007};
    static const int ranks[] = {1, 2, 3, 4, 5, 8, 9, 16, 33};
    static struct size sizes[16 * 9];

    for (int i = 0; i < 16 * 9; i++)
        sizes[i] = (struct size){tokens[i / 9], ranks[i % 9]};
    return cr_make_param_array(struct size, sizes, 16 * 9);
}

ParameterizedTest(struct size *s, shard, every_slot_is_owned_once)
{
    static const char *const names[] = {"identity", "hilbert"};

    for (int n = 0; n < 2; n++) {
        hra_order *o = order_of(s->tokens, 0, 0, 0, names[n]);
        expect_layout(o, s->tokens, s->ranks, HRA_SHARD_CONTIGUOUS, NULL);
        expect_layout(o, s->tokens, s->ranks, HRA_SHARD_ZIGZAG, NULL);
        hra_order_destroy(o);
    }
}

/* ---- Cuts ---------------------------------------------------------------------------------------- */

struct boxes {
    int64_t grid[3], side[3];
};

/* 1 where the slot's token lies in another box than the slot before. */
static char *cuts_of(const hra_order *o, const struct boxes *b, int64_t tokens)
{
    const int64_t *token = hra_order_slot_to_token(o);
    const int64_t third = b->grid[2] > 0 ? b->grid[2] : 1, side = b->grid[2] > 0 ? b->side[2] : 1;
    char *cut = calloc((size_t)tokens, 1);
    int64_t before[3] = {-1, -1, -1};

    for (int64_t s = 0; s < tokens; s++) {
        const int64_t box[3] = {token[s] / (b->grid[1] * third) / b->side[0],
                                token[s] / third % b->grid[1] / b->side[1], token[s] % third / side};
        cut[s] = memcmp(box, before, sizeof(box)) != 0;
        memcpy(before, box, sizeof(before));
    }
    return cut;
}

ParameterizedTestParameters(shard, tiles_end_where_boxes_do)
{
    static struct boxes rows[] = {
        {{64, 64, 0}, {8, 16, 0}}, {{61, 67, 0}, {8, 16, 0}}, {{40, 24, 0}, {16, 8, 0}},
        {{30, 30, 0}, {4, 4, 0}},  {{17, 33, 0}, {5, 7, 0}},  {{8, 16, 16}, {4, 4, 8}},
        {{9, 10, 11}, {4, 4, 8}},  {{20, 20, 0}, {1, 1, 0}},  {{100, 3, 0}, {100, 1, 0}},
        {{16, 16, 0}, {8, 16, 0}},
    };
    return cr_make_param_array(struct boxes, rows, sizeof(rows) / sizeof(rows[0]));
}

/* A box of HRA_TILE tokens that lies in one piece is a tile. */
static void expect_full_boxes(const struct hra_layout *l, const char *cut)
{
    for (int64_t s = 0, next; s < l->tokens; s = next) {
        for (next = s + 1; next < l->tokens && !cut[next];)
            next++;
        if (next - s != HRA_TILE || piece_at(l, s) != piece_at(l, next - 1))
            continue;
        int found = 0;
        for (int t = 0; t < l->tiles; t++)
            found += l->slot0[t] == s && l->tile[t].rows == HRA_TILE;
        cr_assert(eq(int, found, 1), "the box at slot %d", (int)s);
    }
}

ParameterizedTest(struct boxes *b, shard, tiles_end_where_boxes_do)
{
    const int64_t tokens = b->grid[0] * b->grid[1] * (b->grid[2] > 0 ? b->grid[2] : 1);
    char name[64];

    if (b->grid[2] > 0)
        snprintf(name, sizeof(name), "boxes:%dx%dx%d", (int)b->side[0], (int)b->side[1], (int)b->side[2]);
    else
        snprintf(name, sizeof(name), "boxes:%dx%d", (int)b->side[0], (int)b->side[1]);
    hra_order *o = order_of(0, b->grid[0], b->grid[1], b->grid[2], name);
    char *cut = cuts_of(o, b, tokens);
    for (int ranks = 1; ranks <= 9; ranks++)
        for (int shard = HRA_SHARD_CONTIGUOUS; shard <= HRA_SHARD_ZIGZAG; shard++) {
            struct hra_layout *l = layout_of(o, ranks, (hra_shard)shard);
            expect_full_boxes(l, cut);
            hra_layout_destroy(l);
            expect_layout(o, tokens, ranks, (hra_shard)shard, cut);
        }
    free(cut);
    hra_order_destroy(o);
}

Test(shard, whole_boxes_alone_are_the_tiles)
{
    hra_order *o = order_of(0, 64, 64, 0, "boxes:8x16");
    struct hra_layout *l = layout_of(o, 2, HRA_SHARD_ZIGZAG);

    cr_assert(eq(int, l->tiles, 32));
    for (int t = 0; t < l->tiles; t++)
        cr_expect(l->tile[t].rows == HRA_TILE && l->slot0[t] % HRA_TILE == 0, "tile %d", t);
    hra_layout_destroy(l);
    hra_order_destroy(o);
}

Test(shard, ranks_beyond_the_tokens_own_nothing)
{
    hra_order *o = order_of(3, 0, 0, 0, "identity");
    struct hra_layout *l = layout_of(o, 5, HRA_SHARD_CONTIGUOUS);

    for (int r = 0; r < 5; r++) {
        cr_expect(eq(i64, l->rows[r], r < 3));
        cr_expect(eq(int, l->rank_tile[r + 1] - l->rank_tile[r], r < 3));
    }
    hra_layout_destroy(l);
    hra_layout_destroy(NULL);
    hra_order_destroy(o);
}

Test(shard, more_pieces_than_can_be_counted_are_refused)
{
    hra_order *o = order_of(3, 0, 0, 0, "identity");
    struct hra_layout *l = NULL;

    cr_assert(eq(int, hra_layout_create(&l, o, 1 << 30, HRA_SHARD_ZIGZAG), HRA_ERR_UNSUPPORTED));
    cr_assert(strstr(hra_last_error(), "2147483648 pieces") != NULL, "%s", hra_last_error());
    cr_assert(l == NULL);
    hra_order_destroy(o);
}

/* ---- Even work ----------------------------------------------------------------------------------- */

static uint64_t random_state;

/* 0 .. below - 1 */
static int64_t draw(int64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int64_t)((random_state >> 33) % (uint64_t)below);
}

enum kind { UNIFORM, CAUSAL, LONG_DOCS, SHORT_DOCS, WINDOW, HALF, SMOOTH, RANDOM, SPIKES, KINDS };

static const char *const kind_name[] = {"uniform",         "causal",          "long documents",
                                        "short documents", "causal & window", "half",
                                        "smooth",          "random",          "spikes"};

/* Causal documents of 1 .. longest tiles one after the other. */
static void fill_docs(int64_t *work, int tiles, int64_t longest)
{
    for (int t = 0; t < tiles;)
        for (int64_t i = 0, length = 1 + draw(longest); i < length && t < tiles; i++)
            work[t++] = i + 1;
}

/* The live tiles of each row of tiles, such as masks make them. To be freed. */
static int64_t *work_of(enum kind kind, int tiles)
{
    int64_t *work = calloc((size_t)tiles, sizeof(*work));

    random_state = (uint64_t)tiles;
    if (kind == LONG_DOCS || kind == SHORT_DOCS)
        fill_docs(work, tiles, kind == LONG_DOCS ? tiles / 8 : 12);
    for (int64_t t = 0; t < tiles; t++)
        switch (kind) {
        case UNIFORM:
            work[t] = 7;
            break;
        case CAUSAL:
            work[t] = t + 1;
            break;
        case WINDOW: /* of 32 tiles */
            work[t] = t < 32 ? t + 1 : 33;
            break;
        case HALF:
            work[t] = t < tiles / 2 ? 60 : 1;
            break;
        case SMOOTH: /* two waves, a long one and a short one */
            work[t] = 30 + llabs(t % (tiles / 3) * 120 / tiles - 20) + llabs(t % 61 - 30) / 4;
            break;
        case RANDOM:
            work[t] = draw(10);
            break;
        case SPIKES: /* a window, and one row in 20 that is global */
            work[t] = (t < 40 ? t + 1 : 40) + (draw(20) == 0) * 100;
            break;
        default:
            break;
        }
    return work;
}

static struct hra_layout *balanced(const hra_order *order, int ranks, const int64_t *work)
{
    struct hra_layout *l = NULL;

    cr_assert(hra_layout_balanced(&l, order, ranks, work) == HRA_OK, "%s", hra_last_error());
    return l;
}

/* What holds whatever the work is: `whole` has the same order on one rank. */
static void expect_balanced(const struct hra_layout *l, const struct hra_layout *whole, int ranks)
{
    const int least = whole->tiles / ranks, longer = whole->tiles % ranks;
    int64_t slot = 0;
    int seen = 0, with_more = 0;

    cr_assert(eq(int, l->ranks, ranks));
    cr_assert(eq(i64, l->tokens, whole->tokens));
    for (int i = 0; i < l->pieces; i++) {
        const hra_piece *piece = &l->piece[i];
        cr_assert(eq(i64, piece->slot0, slot), "piece %d", i);
        cr_assert(piece->rows >= 1 && piece->rank >= 0 && piece->rank < ranks, "piece %d", i);
        cr_assert(i == 0 || piece->rank != piece[-1].rank, "pieces %d and %d of rank %d should be one", i - 1,
                  i, piece->rank);
        cr_assert(piece->rank <= seen, "rank %d begins before rank %d", piece->rank, seen);
        seen += piece->rank == seen;
        slot += piece->rows;
    }
    cr_assert(eq(i64, slot, whole->tokens));
    cr_assert(eq(int, seen, whole->tiles < ranks ? whole->tiles : ranks));

    cr_assert(eq(int, l->tiles, whole->tiles));
    for (int n = 0; n < l->tiles; n++) {
        const int t = l->by_slot[n];
        cr_assert(l->slot0[t] == whole->slot0[n] && l->tile[t].rows == whole->tile[n].rows,
                  "tile %d in slot order", n);
    }
    for (int r = 0; r < ranks; r++) {
        const int tiles = l->rank_tile[r + 1] - l->rank_tile[r];
        cr_assert(tiles == least || tiles == least + 1, "rank %d of %d has %d of %d tiles", r, ranks, tiles,
                  l->tiles);
        with_more += tiles > least;
    }
    cr_assert(eq(int, with_more, longer));
}

/* Whose tile it is, in slot order. To be freed. */
static int *owners_of(const struct hra_layout *l)
{
    int *owner = calloc((size_t)l->tiles, sizeof(*owner));

    for (int n = 0, i = 0; n < l->tiles; n++) {
        while (l->slot0[l->by_slot[n]] >= l->piece[i].slot0 + l->piece[i].rows)
            i++;
        owner[n] = l->piece[i].rank;
    }
    return owner;
}

static int64_t busiest_of(const struct hra_layout *l, const int64_t *work)
{
    int64_t *load = calloc((size_t)l->ranks, sizeof(*load)), busiest = 0;
    int *owner = owners_of(l);

    for (int n = 0; n < l->tiles; n++) {
        load[owner[n]] += work[n];
        busiest = load[owner[n]] > busiest ? load[owner[n]] : busiest;
    }
    free(owner);
    free(load);
    return busiest;
}

static int descending(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x < y) - (x > y);
}

/* 1.03 of the mean or the heaviest tile. */
static int64_t bound_of(const int64_t *work, int tiles, int ranks)
{
    int64_t total = 0, heaviest = 0;

    for (int t = 0; t < tiles; t++) {
        total += work[t];
        heaviest = work[t] > heaviest ? work[t] : heaviest;
    }
    return 103 * total / (100 * ranks) > heaviest ? 103 * total / (100 * ranks) : heaviest;
}

/* Less than the busiest rank's work is impossible: of m ranks + 1 tiles some rank has m + 1, of the heaviest ones too;
 * beside them it has others, the lightest at best, up to tiles / ranks in all. */
static int64_t unavoidable(const int64_t *work, int tiles, int ranks)
{
    int64_t *sorted = calloc((size_t)tiles, sizeof(*sorted)), most = 0, total = 0;

    memcpy(sorted, work, (size_t)tiles * sizeof(*sorted));
    qsort(sorted, (size_t)tiles, sizeof(*sorted), descending);
    for (int t = 0; t < tiles; t++)
        total += sorted[t];
    most = (total + ranks - 1) / ranks;
    for (int m = 0; m * ranks < tiles; m++) {
        int64_t least = 0;
        for (int i = 0; i <= m; i++)
            least += sorted[m * ranks - i];
        for (int i = 1; i <= tiles / ranks - m - 1; i++)
            least += sorted[tiles - i];
        most = least > most ? least : most;
    }
    free(sorted);
    return most;
}

static void expect_even(enum kind kind, int tiles, int ranks)
{
    hra_order *o = order_of((int64_t)tiles * HRA_TILE - 5, 0, 0, 0, "identity");
    struct hra_layout *whole = layout_of(o, 1, HRA_SHARD_CONTIGUOUS);
    int64_t *work = work_of(kind, tiles);
    struct hra_layout *l = balanced(o, ranks, work);
    const int64_t busiest = busiest_of(l, work), least = unavoidable(work, tiles, ranks);
    int64_t limit = bound_of(work, tiles, ranks);

    expect_balanced(l, whole, ranks);
    expect_tiles(l, NULL);
    expect_by_slot(l);
    if (tiles / ranks < 32 && least > limit)
        limit = least;
    cr_assert(busiest <= limit, "%s: %d tiles, %d ranks: %d, at most %d", kind_name[kind], tiles, ranks,
              (int)busiest, (int)limit);
    if (tiles / ranks >= 64)
        cr_assert(l->pieces < 2 * ranks, "%s: %d tiles, %d ranks: %d pieces", kind_name[kind], tiles, ranks,
                  l->pieces);
    hra_layout_destroy(l);
    hra_layout_destroy(whole);
    free(work);
    hra_order_destroy(o);
}

struct rows {
    int kind, tiles;
};

ParameterizedTestParameters(shard, work_is_even)
{
    static const int tiles[] = {256, 257, 1000, 1536, 2048};
    static struct rows rows[SPIKES * 5];

    for (int i = 0; i < SPIKES * 5; i++)
        rows[i] = (struct rows){i / 5, tiles[i % 5]};
    return cr_make_param_array(struct rows, rows, SPIKES * 5);
}

ParameterizedTest(struct rows *rows, shard, work_is_even)
{
    static const int ranks[] = {2, 3, 4, 8, 16, 64};

    for (int i = 0; i < 6; i++)
        expect_even((enum kind)rows->kind, rows->tiles, ranks[i]);
}

static int pieces_of(enum kind kind, int tiles, int ranks)
{
    hra_order *o = order_of((int64_t)tiles * HRA_TILE, 0, 0, 0, "identity");
    int64_t *work = work_of(kind, tiles);
    struct hra_layout *l = balanced(o, ranks, work);
    const int pieces = l->pieces;

    hra_layout_destroy(l);
    free(work);
    hra_order_destroy(o);
    return pieces;
}

Test(shard, single_tiles_are_exchanged_where_runs_are_too_coarse)
{
    expect_even(CAUSAL, 300, 64); /* 4 or 5 tiles a rank */
    expect_even(CAUSAL, 256, 100);
    expect_even(SPIKES, 256, 16);
    expect_even(WINDOW, 1050, 64); /* found tile by tile only, the equal ones in runs nevertheless */
    cr_expect(pieces_of(WINDOW, 1050, 64) < 2 * 64);
}

/* 31 pieces are enough for any work. */
Test(shard, what_is_even_enough_has_fewer_pieces)
{
    cr_expect(pieces_of(SHORT_DOCS, 2048, 16) <= 26);
    cr_expect(pieces_of(RANDOM, 2048, 16) <= 22);
}

/* 4 of the 224 tiles that weigh 33 are more than the bound, and some rank must have them. */
Test(shard, nothing_is_cut_where_the_bound_is_out_of_reach)
{
    cr_expect(eq(int, pieces_of(WINDOW, 256, 64), 64));
}

/* The least work of the busiest rank over all ways to share the tiles from `from` on. */
static int64_t try_all(const int64_t *work, int tiles, int ranks, int from, int64_t *load, int *count)
{
    int64_t best = from < tiles ? INT64_MAX : 0;
    int with_more = 0;

    for (int r = 0; r < ranks; r++) {
        with_more += count[r] > tiles / ranks;
        if (from == tiles && load[r] > best)
            best = load[r];
    }
    for (int r = 0; r < ranks && from < tiles; r++) {
        if (count[r] > tiles / ranks || (count[r] == tiles / ranks && with_more == tiles % ranks))
            continue;
        count[r]++;
        load[r] += work[from];
        const int64_t found = try_all(work, tiles, ranks, from + 1, load, count);
        best = found < best ? found : best;
        load[r] -= work[from];
        count[r]--;
    }
    return best;
}

/* The search is not complete: one case in a hundred may miss. */
Test(shard, few_tiles_are_shared_as_evenly_as_can_be)
{
    int64_t work[9];
    int beyond = 0, missed = 0;

    random_state = 3;
    for (int n = 0; n < 400; n++) {
        const int ranks = 2 + (int)draw(2), tiles = ranks + (int)draw(10 - ranks);
        for (int t = 0; t < tiles; t++)
            work[t] = draw(n % 3 == 0 ? 3 : 30);
        hra_order *o = order_of((int64_t)tiles * HRA_TILE, 0, 0, 0, "identity");
        struct hra_layout *l = balanced(o, ranks, work);
        const int64_t least = try_all(work, tiles, ranks, 0, (int64_t[3]){0}, (int[3]){0});
        const int64_t bound = bound_of(work, tiles, ranks);

        cr_assert(unavoidable(work, tiles, ranks) <= least);
        beyond += least > bound;
        missed += busiest_of(l, work) > (least > bound ? least : bound);
        hra_layout_destroy(l);
        hra_order_destroy(o);
    }
    cr_assert(beyond > 100 && beyond < 300, "%d of 400 cannot reach the bound", beyond);
    cr_assert(missed <= 4, "%d of 400 are less even than they could be", missed);
}

/* Every tile has the owner that it has in a layout of another kind, of the same tiles. */
static void expect_same_owners(const struct hra_layout *l, const struct hra_layout *other)
{
    int *owner = owners_of(l), *expected = owners_of(other);

    cr_assert(eq(int, l->tiles, other->tiles));
    for (int n = 0; n < l->tiles; n++)
        cr_assert(owner[n] == expected[n], "tile %d of %d on %d ranks: rank %d, not %d", n, l->tiles,
                  l->ranks, owner[n], expected[n]);
    free(owner);
    free(expected);
}

static void expect_as(hra_shard shard, const hra_order *o, int ranks, const int64_t *work)
{
    struct hra_layout *l = balanced(o, ranks, work), *other = layout_of(o, ranks, shard);

    expect_same_owners(l, other);
    hra_layout_destroy(l);
    hra_layout_destroy(other);
}

Test(shard, even_work_is_contiguous_and_causal_work_zigzag)
{
    static const int64_t factor[] = {1, 12, INT64_C(1) << 42};

    for (int n = 0; n < 16; n++) {
        const int ranks = n < 15 ? n + 2 : 64;
        for (int each = 1; each <= 9; each += 4) {
            const int tiles = 2 * ranks * each;
            hra_order *o = order_of((int64_t)tiles * HRA_TILE, 0, 0, 0, "identity");
            int64_t *uniform = work_of(UNIFORM, tiles), *causal = work_of(CAUSAL, tiles);

            for (int f = 0; f < 3; f++) {
                int64_t scaled[2 * 64 * 9];
                for (int t = 0; t < tiles; t++)
                    scaled[t] = uniform[t] * factor[f];
                expect_as(HRA_SHARD_CONTIGUOUS, o, ranks, scaled);
                for (int t = 0; t < tiles; t++)
                    scaled[t] = causal[t] * factor[f];
                expect_as(HRA_SHARD_ZIGZAG, o, ranks, scaled);
            }
            free(uniform);
            free(causal);
            hra_order_destroy(o);
        }
    }
}

/* Even enough as they come, and so large that 1.03 of the sum is beyond 64 bits if it is not taken with care. */
Test(shard, large_numbers_decide_as_small_ones)
{
    hra_order *o = order_of(2048 * HRA_TILE, 0, 0, 0, "identity");
    int64_t *work = work_of(RANDOM, 2048);

    expect_as(HRA_SHARD_CONTIGUOUS, o, 4, work);
    for (int t = 0; t < 2048; t++)
        work[t] *= INT64_C(1) << 48;
    expect_as(HRA_SHARD_CONTIGUOUS, o, 4, work);
    free(work);
    hra_order_destroy(o);
}

Test(shard, tiles_that_do_not_divide_stay_contiguous_where_all_weigh_the_same)
{
    for (int tiles = 1; tiles <= 40; tiles++)
        for (int ranks = 1; ranks <= 17; ranks++)
            for (int weight = 0; weight <= 3; weight += 3) {
                hra_order *o = order_of((int64_t)tiles * HRA_TILE - 100, 0, 0, 0, "identity");
                struct hra_layout *whole = layout_of(o, 1, HRA_SHARD_CONTIGUOUS);
                int64_t work[40];

                for (int t = 0; t < tiles; t++)
                    work[t] = weight;
                struct hra_layout *l = balanced(o, ranks, work);
                expect_balanced(l, whole, ranks);
                expect_tiles(l, NULL);
                cr_assert(eq(int, l->pieces, tiles < ranks ? tiles : ranks), "%d tiles, %d ranks", tiles,
                          ranks);
                hra_layout_destroy(l);
                hra_layout_destroy(whole);
                hra_order_destroy(o);
            }
}

/* The bound is the heaviest tile, which has the lightest ones beside it. */
Test(shard, one_heavy_tile)
{
    hra_order *o = order_of(256 * HRA_TILE, 0, 0, 0, "identity");

    for (int ranks = 4; ranks <= 64; ranks *= 2)
        for (int lightest = 0; lightest <= 1; lightest++) {
            int64_t work[256];
            for (int t = 0; t < 256; t++)
                work[t] = t == 77 ? 10000 : t < 70 ? 10 : lightest;
            struct hra_layout *l = balanced(o, ranks, work);
            cr_assert(eq(i64, busiest_of(l, work), 10000 + (256 / ranks - 1) * lightest), "%d ranks", ranks);
            hra_layout_destroy(l);
        }
    hra_order_destroy(o);
}

Test(shard, whole_boxes_are_shared_evenly)
{
    static const struct boxes boxes[] = {
        {{61, 67, 0}, {8, 16, 0}}, {{90, 90, 0}, {10, 10, 0}}, {{33, 40, 20}, {4, 4, 8}}};

    for (size_t b = 0; b < sizeof(boxes) / sizeof(boxes[0]); b++) {
        const int64_t *grid = boxes[b].grid, *side = boxes[b].side;
        char name[64];

        snprintf(name, sizeof(name), grid[2] > 0 ? "boxes:%dx%dx%d" : "boxes:%dx%d", (int)side[0],
                 (int)side[1], (int)side[2]);
        hra_order *o = order_of(0, grid[0], grid[1], grid[2], name);
        char *cut = cuts_of(o, &boxes[b], o->tokens);
        struct hra_layout *whole = layout_of(o, 1, HRA_SHARD_CONTIGUOUS);
        for (int ranks = 1; ranks <= 9; ranks++)
            for (int kind = 0; kind < KINDS; kind++) {
                int64_t *work = work_of((enum kind)kind, whole->tiles);
                struct hra_layout *l = balanced(o, ranks, work);
                expect_balanced(l, whole, ranks);
                expect_tiles(l, cut);
                expect_by_slot(l);
                free(work);
                hra_layout_destroy(l);
            }
        free(cut);
        hra_layout_destroy(whole);
        hra_order_destroy(o);
    }
}

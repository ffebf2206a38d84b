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

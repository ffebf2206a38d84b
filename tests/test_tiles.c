/* test_tiles.c - compiled tiles against every pair asked by itself. */
#include "src/tiles.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 700, HEADS = 6 }; /* at most, in random problems */

static uint64_t random_state;

/* 0 .. below - 1 */
static int draw(int64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((random_state >> 33) % (uint64_t)below);
}

/* ---- Random problems --------------------------------------------------------------------------- */

struct problem {
    hra_domain domain; /* defaults filled in */
    char text[1 << 14];
    size_t length;
    int choice[HEADS]; /* heads with the same number have the same text */
    char order_name[64];
    hra_order *order;
    hra_mask *mask;
    struct hra_layout *layout;
    int ranks;
    char *allows[HEADS]; /* [tokens][tokens], of slots */
};

static void put(struct problem *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct problem *p, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    p->length += (size_t)vsnprintf(p->text + p->length, sizeof(p->text) - p->length, format, args);
    va_end(args);
    cr_assert(p->length < sizeof(p->text));
}

/* Reach of a window, its two sides separate and perhaps negative. */
static void put_window(struct problem *p)
{
    const int n = (int)p->domain.tokens;

    put(p, "window(");
    if (draw(5) == 0)
        put(p, "-");
    else
        put(p, "%d", draw(n) - (draw(4) == 0 ? n / 4 : 0));
    if (draw(5) == 0)
        put(p, ",-)");
    else
        put(p, ",%d)", draw(3) == 0 ? 0 : draw(n) - (draw(4) == 0 ? n / 4 : 0));
}

static void put_on_grid(struct problem *p, const char *name, int least)
{
    put(p, "%s(", name);
    for (int a = 0; a < 3 && p->domain.grid[a] > 0; a++)
        put(p, a == 0 ? "%d" : ",%d", least + draw(p->domain.grid[a]));
    put(p, ")");
}

static void put_docs(struct problem *p)
{
    int left = (int)p->domain.tokens;

    put(p, "docs(");
    while (left > 0) {
        const int most = draw(3) == 0 ? left : left < 150 ? left : 150, length = 1 + draw(most);
        left -= length;
        put(p, left > 0 ? "%d," : "%d", length);
    }
    put(p, ")");
}

static void put_blocks(struct problem *p)
{
    const int size = draw(3) == 0 ? HRA_TILE : 16 + draw(200);
    const int blocks = (int)((p->domain.tokens + size - 1) / size);

    put(p, "blocks(%d", size);
    for (int q = 0; q < blocks; q++)
        if (draw(3) > 0) {
            put(p, "; %d:%d", q, draw(blocks));
            for (int more = draw(3); more > 0; more--)
                put(p, " %d", draw(blocks));
        }
    put(p, ")");
}

static void put_mask(struct problem *p, int depth)
{
    const int kinds = p->domain.grid[0] > 0 ? 7 : 5;

    if (depth > 0 && draw(2) == 0) {
        put(p, "(");
        put_mask(p, depth - 1);
        put(p, draw(2) == 0 ? " & " : " | ");
        put_mask(p, depth - 1);
        put(p, ")");
        return;
    }
    switch (draw(kinds)) {
    case 0:
        put(p, "full");
        break;
    case 1:
        put(p, "causal");
        break;
    case 2:
        put_window(p);
        break;
    case 3:
        put_docs(p);
        break;
    case 4:
        put_blocks(p);
        break;
    case 5:
        put_on_grid(p, "grid", 0);
        break;
    default:
        put_on_grid(p, "neighbourhood", 1);
        break;
    }
}

/* One mask for all heads, or a choice from two texts that come back, so that heads apart share a pattern. */
static void put_heads(struct problem *p)
{
    size_t begin[2], length[2];
    char *texts = NULL;

    memset(p->choice, 0, sizeof(p->choice));
    if (p->domain.heads == 1 || draw(3) == 0) {
        put_mask(p, 2);
        return;
    }
    for (int n = 0; n < 2; n++) {
        begin[n] = p->length;
        put_mask(p, 1);
        length[n] = p->length - begin[n];
    }
    texts = strdup(p->text);
    p->length = 0;
    put(p, "heads(");
    for (int h = 0; h < p->domain.heads; h++) {
        p->choice[h] = draw(2);
        put(p, "%d: %.*s%s", h, (int)length[p->choice[h]], texts + begin[p->choice[h]],
            h + 1 < p->domain.heads ? "; " : ")");
    }
    free(texts);
}

static void choose_domain(struct problem *p)
{
    hra_domain *d = &p->domain;

    *d = (hra_domain)HRA_DOMAIN_INIT;
    d->batch = 1 + draw(2);
    d->heads = 1 + draw(HEADS);
    if (draw(2) == 0) {
        d->tokens = draw(4) == 0 ? HRA_TILE * (1 + draw(5)) : 1 + draw(draw(3) == 0 ? TOKENS : 300);
        return;
    }
    const int three = draw(3) == 0;
    d->grid[0] = 1 + draw(three ? 9 : 26);
    d->grid[1] = 1 + draw(three ? 9 : 26);
    d->grid[2] = three ? 1 + draw(8) : 0;
    d->tokens = d->grid[0] * d->grid[1] * (three ? d->grid[2] : 1);
}

static void choose_order(struct problem *p)
{
    static const char *const names[] = {"identity", "hilbert", "morton", "snake"};
    const int n = draw(6);

    if (n < 4)
        snprintf(p->order_name, sizeof(p->order_name), "%s", names[n]);
    else if (n == 4 && p->domain.grid[0] > 0)
        snprintf(p->order_name, sizeof(p->order_name),
                 p->domain.grid[2] > 0 ? "boxes:%dx%dx1" : "boxes:%dx%d",
                 1 + draw(p->domain.grid[0] < 8 ? p->domain.grid[0] : 8),
                 1 + draw(p->domain.grid[1] < 16 ? p->domain.grid[1] : 16));
    else
        p->order_name[0] = '\0';
    if (p->order_name[0] != '\0') {
        cr_assert(hra_order_create(&p->order, &p->domain, p->order_name) == HRA_OK, "%s: %s", p->order_name,
                  hra_last_error());
        return;
    }
    int64_t *token = malloc((size_t)p->domain.tokens * sizeof(*token));
    for (int64_t s = 0; s < p->domain.tokens; s++) {
        const int other = draw(s + 1);
        token[s] = token[other];
        token[other] = s;
    }
    cr_assert(eq(int, hra_order_permutation(&p->order, &p->domain, token), HRA_OK));
    free(token);
}

static void make_problem(struct problem *p, uint64_t seed)
{
    memset(p, 0, sizeof(*p));
    random_state = seed * 6151 + 11;
    choose_domain(p);
    choose_order(p);
    put_heads(p);
    cr_assert(hra_mask_parse(&p->mask, &p->domain, p->text) == HRA_OK, "%s: %s", p->text, hra_last_error());
    p->ranks = 1 + draw(draw(4) == 0 ? 9 : 4);
    cr_assert(hra_layout_create(&p->layout, p->order, p->ranks,
                                draw(2) ? HRA_SHARD_ZIGZAG : HRA_SHARD_CONTIGUOUS) == HRA_OK);

    const int64_t n = p->domain.tokens, *token = hra_order_slot_to_token(p->order);
    for (int h = 0; h < p->domain.heads; h++) {
        p->allows[h] = malloc((size_t)(n * n));
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                p->allows[h][i * n + j] = (char)hra_mask_count(p->mask, 0, h, token[i], token[j]);
    }
}

static void free_problem(struct problem *p)
{
    for (int h = 0; h < HEADS; h++)
        free(p->allows[h]);
    hra_layout_destroy(p->layout);
    hra_mask_destroy(p->mask);
    hra_order_destroy(p->order);
}

/* ---- What must hold ------------------------------------------------------------------------------ */

/* The bits of one tile, and how many are set. */
static int bits_of(hra_bits *bits, const struct problem *p, int head, int query, int key)
{
    const struct hra_layout *l = p->layout;
    int live = 0;

    memset(bits, 0, sizeof(*bits));
    for (int r = 0; r < l->tile[query].rows; r++)
        for (int c = 0; c < l->tile[key].rows; c++)
            if (p->allows[head][(l->slot0[query] + r) * p->domain.tokens + l->slot0[key] + c]) {
                (*bits)[r][c / 64] |= UINT64_C(1) << c % 64;
                live++;
            }
    return live;
}

/* Tile by tile: what is live is listed once with its bits, what is not is not. used [count] is set for bitmaps met. */
static void expect_rows(const struct problem *p, const struct hra_tiles *t, const struct hra_tile_list *list,
                        int head, char *used)
{
    const int first = p->layout->rank_tile[t->rank];
    int64_t at = 0;
    hra_bits bits;

    cr_assert(eq(i64, list->row_start[0], 0));
    for (int q = 0; q < t->queries; q++) {
        cr_assert(eq(i64, list->row_start[q], at));
        for (int k = 0; k < t->keys; k++) {
            const int live = bits_of(&bits, p, head, first + q, k);
            const int listed = at < list->row_start[q + 1] && list->key[at] == k;
            cr_assert(eq(int, listed, live > 0), "head %d, query tile %d, key tile %d: %d live", head, q, k,
                      live);
            if (!listed)
                continue;
            const int id = list->bitmap[at];
            cr_assert(eq(i64, hra_tiles_live(t, list, at), live), "query tile %d, key tile %d", q, k);
            cr_assert(eq(int, id == HRA_FULL, live == HRA_TILE * HRA_TILE), "query tile %d, key tile %d", q,
                      k);
            at++;
            if (id == HRA_FULL)
                continue;
            cr_assert(id >= 0 && id < t->dictionary.count);
            cr_assert(memcmp(t->dictionary.bits[id], bits, sizeof(bits)) == 0,
                      "bits of query tile %d, key tile %d", q, k);
            used[id] = 1;
        }
        cr_assert(eq(i64, list->row_start[q + 1], at), "query tile %d has a tile too many or out of order",
                  q);
    }
}

/* The column form lists the same tiles, which the row form has in order: taken by key, then query. */
static void expect_columns(const struct hra_tiles *t, const struct hra_tile_list *list)
{
    int64_t at = 0;

    cr_assert(eq(i64, list->column_start[0], 0));
    for (int k = 0; k < t->keys; k++) {
        for (int q = 0; q < t->queries; q++)
            for (int64_t i = list->row_start[q]; i < list->row_start[q + 1]; i++)
                if (list->key[i] == k) {
                    cr_assert(at < list->column_start[k + 1], "key tile %d lacks query tile %d", k, q);
                    cr_assert(list->query[at] == q && list->column_bitmap[at] == list->bitmap[i],
                              "key tile %d, query tile %d", k, q);
                    at++;
                }
        cr_assert(eq(i64, list->column_start[k + 1], at), "key tile %d", k);
    }
    cr_assert(eq(i64, at, list->row_start[t->queries]));
}

static void expect_dictionary(const struct hra_dictionary *d, const char *used)
{
    for (int a = 0; a < d->count; a++) {
        int live = 0;
        for (int r = 0; r < HRA_TILE; r++)
            for (int w = 0; w < HRA_TILE / 64; w++)
                live += __builtin_popcountll(d->bits[a][r][w]);
        cr_assert(eq(int, d->live[a], live), "bitmap %d", a);
        cr_assert(used[a] == 1, "no tile has bitmap %d", a);
        for (int b = 0; b < a; b++)
            cr_assert(memcmp(d->bits[a], d->bits[b], sizeof(hra_bits)) != 0, "bitmaps %d and %d are equal", a,
                      b);
    }
}

static void expect_patterns(const struct problem *p, const struct hra_tiles *t, int head0)
{
    int used = 0;

    for (int n = 0; n < t->patterns; n++) {
        int uses = 0;
        for (int i = 0; i < t->batch * t->heads; i++)
            uses += t->pattern[i] == n;
        cr_assert(eq(int, t->uses[n], uses), "pattern %d", n);
        cr_assert(uses > 0);
        used += uses;
    }
    cr_assert(eq(int, used, t->batch * t->heads));
    for (int b = 0; b < t->batch; b++)
        for (int h = 0; h < t->heads; h++)
            for (int g = 0; g < h; g++)
                if (p->choice[head0 + g] == p->choice[head0 + h])
                    cr_assert(eq(int, t->pattern[b * t->heads + g], t->pattern[h]),
                              "heads %d and %d of one text", g, h);
}

static void expect_tiles(const struct problem *p, int rank, int head0, int heads)
{
    struct hra_tiles *t = NULL;

    cr_assert(hra_tiles_compile(&t, p->layout, p->order, p->mask, rank, p->domain.batch, head0, heads) ==
              HRA_OK);
    cr_assert(eq(int, t->rank, rank));
    cr_assert(eq(int, t->queries, p->layout->rank_tile[rank + 1] - p->layout->rank_tile[rank]));
    cr_assert(eq(int, t->keys, p->layout->tiles));
    cr_assert(t->batch == p->domain.batch && t->heads == heads);

    char *used = calloc((size_t)t->dictionary.count + 1, 1);
    expect_patterns(p, t, head0);
    for (int h = 0; h < heads; h++)
        expect_rows(p, t, &t->list[t->pattern[h]], head0 + h, used);
    for (int n = 0; n < t->patterns; n++)
        expect_columns(t, &t->list[n]);
    expect_dictionary(&t->dictionary, used);
    free(used);
    hra_tiles_destroy(t);
}

Test(tiles, compiled_tiles_equal_every_pair_asked, .timeout = 240)
{
    struct problem *p = malloc(sizeof(*p));

    for (int seed = 0; seed < 300; seed++) {
        make_problem(p, (uint64_t)seed);
        const int head0 = draw(p->domain.heads), heads = 1 + draw(p->domain.heads - head0);
        for (int rank = 0; rank < p->ranks; rank++) {
            cr_log_info("seed %d: %d tokens, %s, rank %d of %d, heads %d + %d: %s", seed,
                        (int)p->domain.tokens, p->order_name, rank, p->ranks, head0, heads, p->text);
            expect_tiles(p, rank, head0, heads);
        }
        free_problem(p);
    }
    free(p);
}

/* ---- Counts by formula, at sizes where all pairs would take too long ------------------------------ */

struct counts {
    int64_t tiles, full;
    int bitmaps;
    int64_t pairs;
    int64_t asked; /* rectangles that the mask was asked about */
};

static int64_t asked;

enum hra_answer __real_hra_mask_classify(const hra_mask *mask, int head, const struct hra_box *q,
                                         const struct hra_box *k);
enum hra_answer __wrap_hra_mask_classify(const hra_mask *mask, int head, const struct hra_box *q,
                                         const struct hra_box *k);

/* The link puts this before the library's. */
enum hra_answer __wrap_hra_mask_classify(const hra_mask *mask, int head, const struct hra_box *q,
                                         const struct hra_box *k)
{
    asked++;
    return __real_hra_mask_classify(mask, head, q, k);
}

static struct counts count(int64_t tokens, const char *mask_text, int ranks, hra_shard shard)
{
    hra_domain d = HRA_DOMAIN_INIT;
    hra_order *order = NULL;
    hra_mask *mask = NULL;
    struct hra_layout *l = NULL;
    struct counts all = {0};

    d.tokens = tokens;
    cr_assert(hra_order_create(&order, &d, "identity") == HRA_OK &&
              hra_mask_parse(&mask, &d, mask_text) == HRA_OK);
    cr_assert(eq(int, hra_layout_create(&l, order, ranks, shard), HRA_OK));
    for (int r = 0; r < ranks; r++) {
        struct hra_tiles *t = NULL;
        asked = 0;
        cr_assert(eq(int, hra_tiles_compile(&t, l, order, mask, r, 1, 0, 1), HRA_OK));
        all.asked += asked;
        const int64_t tiles = t->list[0].row_start[t->queries];
        all.tiles += tiles;
        for (int64_t i = 0; i < tiles; i++) {
            all.full += t->list[0].bitmap[i] == HRA_FULL;
            all.pairs += hra_tiles_live(t, &t->list[0], i);
        }
        all.bitmaps = t->dictionary.count > all.bitmaps ? t->dictionary.count : all.bitmaps;
        hra_tiles_destroy(t);
    }
    hra_layout_destroy(l);
    hra_mask_destroy(mask);
    hra_order_destroy(order);
    return all;
}

Test(tiles, causal_over_65536_tokens, .timeout = 60)
{
    const int64_t tokens = 65536, n = tokens / HRA_TILE;

    for (int ranks = 1; ranks <= 4; ranks *= 4) {
        const struct counts c = count(tokens, "causal", ranks, HRA_SHARD_ZIGZAG);
        cr_expect(eq(i64, c.tiles, n * (n + 1) / 2));
        cr_expect(eq(i64, c.full, n * (n - 1) / 2));
        cr_expect(eq(int, c.bitmaps, 1), "the diagonal's");
        cr_expect(eq(i64, c.pairs, tokens * (tokens + 1) / 2));
    }
}

Test(tiles, window_over_a_million_tokens, .timeout = 60)
{
    const int64_t tokens = 1000000, n = (tokens + HRA_TILE - 1) / HRA_TILE, reach = 100;
    const struct counts c = count(tokens, "window(100,0)", 1, HRA_SHARD_CONTIGUOUS);

    cr_expect(eq(i64, c.tiles, 2 * n - 1));
    cr_expect(eq(i64, c.full, 0));
    cr_expect(eq(int, c.bitmaps, 4), "on the diagonal and before it, and both for the last tile of 64 rows");
    cr_expect(eq(i64, c.pairs, tokens * (reach + 1) - reach * (reach + 1) / 2));
}

/* The way down to a live tile is as long as the logarithm of the tiles, so that many questions a live tile, and a few
 * more at the border, are all that may be asked; looking at each tile alone asks 8,000 for each live one here. */
Test(tiles, questions_follow_the_live_tiles, .timeout = 120)
{
    const struct counts c = count(1000000, "window(100,0)", 1, HRA_SHARD_CONTIGUOUS);
    cr_expect(c.asked > 0 && c.asked < 8 * c.tiles, "%lld questions for %lld tiles", (long long)c.asked,
              (long long)c.tiles);
}

Test(tiles, a_full_mask_over_whole_tiles_has_no_bitmap)
{
    const struct counts c = count(4 * HRA_TILE, "full", 2, HRA_SHARD_CONTIGUOUS);

    cr_expect(c.tiles == 16 && c.full == 16 && c.bitmaps == 0);
}

Test(tiles, ranks_without_rows_have_no_tiles)
{
    const struct counts c = count(3, "full", 7, HRA_SHARD_ZIGZAG);

    cr_expect(eq(i64, c.tiles, 9));
    cr_expect(eq(i64, c.pairs, 9));
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
              hra_mask_parse(&mask, &d, "window(70,3) & docs(250,350)") == HRA_OK);
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

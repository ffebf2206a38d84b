/* brute.c - what must hold of compiled tiles, one function for each part of them. */
#include "tests/brute.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = HRA_TILE / 64 };

/* What lists add up to over batch and heads. */
struct sums {
    int64_t live, counted, in_tiles, full, partial; /* live and counted: of the pairs asked */
    int64_t *row, *column;                          /* [queries] and [keys] tiles */
    char *used;                                     /* [bitmaps] 1: some tile has it */
};

static int wrong(struct brute *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int wrong(struct brute *b, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(b->error, sizeof(b->error), format, args);
    va_end(args);
    return -1;
}

/* ---- Pairs ------------------------------------------------------------------------------------- */

int brute_ask(struct brute *b)
{
    const int64_t n = b->layout->tokens, *token = hra_order_slot_to_token(b->order);
    unsigned char *at;

    b->count = at = malloc((size_t)b->batch * (size_t)b->heads * (size_t)n * (size_t)n);
    if (at == NULL)
        return -1;
    for (int s = 0; s < b->batch; s++)
        for (int h = b->head0; h < b->head0 + b->heads; h++)
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = 0; j < n; j++)
                    *at++ = (unsigned char)hra_mask_count(b->mask, s, h, token[i], token[j]);
    return 0;
}

void brute_free(struct brute *b)
{
    free(b->count);
    b->count = NULL;
}

void brute_row(unsigned char *out, const struct hra_layout *layout, const struct hra_tiles *t,
               const struct hra_tile_list *list, int query, int row)
{
    memset(out, 0, (size_t)layout->tokens);
    for (int64_t i = list->row_start[query]; i < list->row_start[query + 1]; i++) {
        const int bitmap = list->bitmap[i], rows = layout->tile[list->key[i]].rows;
        unsigned char *at = out + layout->slot0[list->key[i]];

        for (int c = 0; c < rows; c++)
            at[c] = (unsigned char)(at[c] + (bitmap == HRA_FULL ||
                                             (t->dictionary.bits[bitmap][row][c / 64] >> c % 64 & 1)));
    }
}

/* The pairs that a query tile of sequence `s` and head `h`, counted from head0, attends to. */
static int check_pairs(struct brute *b, const struct hra_tiles *t, int s, int h, int query, struct sums *sums)
{
    const struct hra_layout *l = b->layout;
    const struct hra_tile_list *list = &t->list[t->pattern[s * t->heads + h]];
    const int tile = t->first_query + query;
    const size_t n = (size_t)l->tokens;
    unsigned char *row = malloc(n);
    int status = row == NULL ? wrong(b, "no memory for %zu slots", n) : 0;

    for (int r = 0; r < l->tile[tile].rows && status == 0; r++) {
        const size_t slot = (size_t)(l->slot0[tile] + r);
        const unsigned char *asked = b->count + (((size_t)s * (size_t)b->heads + (size_t)h) * n + slot) * n;

        brute_row(row, l, t, list, query, r);
        for (size_t j = 0; j < n; j++) {
            if (row[j] != asked[j]) {
                status =
                    wrong(b, "sequence %d, head %d, slot %zu attends to slot %zu %d times, the tiles say %d",
                          s, b->head0 + h, slot, j, asked[j], row[j]);
                break;
            }
            sums->live += row[j] > 0;
            sums->counted += row[j];
        }
    }
    free(row);
    return status;
}

/* ---- Lists ------------------------------------------------------------------------------------- */

/* The lowest `count` bits, none where it is negative. */
static uint64_t first_bits(int count)
{
    return count <= 0 ? 0 : count >= 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
}

/* A tile is full only where all slots are, and a bitmap has pairs, not all, and none where no slot is. */
static int check_tile(struct brute *b, const struct hra_tiles *t, int bitmap, const struct hra_tile_rows *q,
                      const struct hra_tile_rows *k)
{
    const struct hra_dictionary *d = &t->dictionary;

    if (bitmap == HRA_FULL)
        return q->rows == HRA_TILE && k->rows == HRA_TILE
                   ? 0
                   : wrong(b, "a tile of %d x %d slots is full", q->rows, k->rows);
    if (bitmap < 0 || bitmap >= d->count)
        return wrong(b, "a tile names bitmap %d of %d", bitmap, d->count);
    if (d->live[bitmap] == 0 || d->live[bitmap] == HRA_TILE * HRA_TILE)
        return wrong(b, "a partial tile has %d pairs", d->live[bitmap]);
    for (int r = 0; r < HRA_TILE; r++)
        for (int w = 0; w < WORDS; w++)
            if (d->bits[bitmap][r][w] & ~(r < q->rows ? first_bits(k->rows - 64 * w) : 0))
                return wrong(b, "row %d has a key outside of a tile of %d x %d slots", r, q->rows, k->rows);
    return 0;
}

/* The tiles of a query tile: ascending keys, each at most once a branch. */
static int check_row(struct brute *b, const struct hra_tiles *t, const struct hra_tile_list *list, int query,
                     int branches, struct sums *sums)
{
    const struct hra_tile_rows *tile = b->layout->tile, *q = &tile[t->first_query + query];
    int same = 0;

    if (list->row_start[query + 1] < list->row_start[query])
        return wrong(b, "the row of query tile %d ends before it begins", query);
    for (int64_t i = list->row_start[query]; i < list->row_start[query + 1]; i++) {
        const int key = list->key[i];

        if (key < 0 || key >= t->keys)
            return wrong(b, "query tile %d has key tile %d of %d", query, key, t->keys);
        if (i > list->row_start[query] && key < list->key[i - 1])
            return wrong(b, "query tile %d has key tile %d after %d", query, key, list->key[i - 1]);
        same = i > list->row_start[query] && key == list->key[i - 1] ? same + 1 : 1;
        if (same > branches)
            return wrong(b, "query tile %d has key tile %d %d times, with %d branches", query, key, same,
                         branches);
        if (check_tile(b, t, list->bitmap[i], q, &tile[key]) != 0)
            return -1;
        *(list->bitmap[i] == HRA_FULL ? &sums->full : &sums->partial) += 1;
        sums->in_tiles += (int64_t)q->rows * tile[key].rows;
        sums->row[query]++;
        sums->column[key]++;
        if (list->bitmap[i] != HRA_FULL)
            sums->used[list->bitmap[i]] = 1;
    }
    return 0;
}

/* The column form lists the tiles of the row form by key, then by query. */
static int check_columns(struct brute *b, const struct hra_tiles *t, const struct hra_tile_list *list)
{
    int64_t *at = calloc((size_t)t->keys + 1, sizeof(*at));
    int status = at == NULL ? wrong(b, "no memory for %d tiles", t->keys) : 0;

    for (int q = 0; q < t->queries; q++)
        for (int64_t i = list->row_start[q]; i < list->row_start[q + 1] && status == 0; i++) {
            const int key = list->key[i];
            const int64_t c = list->column_start[key] + at[key]++;
            if (c >= list->column_start[key + 1] || list->query[c] != q ||
                list->column_bitmap[c] != list->bitmap[i])
                status = wrong(b, "key tile %d does not have query tile %d in its place", key, q);
        }
    for (int k = 0; k < t->keys && status == 0; k++)
        if (list->column_start[k + 1] - list->column_start[k] != at[k])
            status = wrong(b, "key tile %d has %" PRId64 " tiles by key, %" PRId64 " by query", k,
                           list->column_start[k + 1] - list->column_start[k], at[k]);
    if (status == 0 && (list->row_start[0] != 0 || list->column_start[0] != 0))
        status = wrong(b, "a list does not begin at 0");
    free(at);
    return status;
}

/* ---- Everything else ----------------------------------------------------------------------------- */

/* (batch, head) share a list exactly where their keys are equal. */
static int check_patterns(struct brute *b, const struct hra_tiles *t)
{
    const int all = t->batch * t->heads;
    int used = 0;

    for (int i = 0; i < all; i++)
        for (int j = 0; j < i; j++) {
            const int equal = hra_mask_key(b->mask, i / t->heads, t->head0 + i % t->heads) ==
                              hra_mask_key(b->mask, j / t->heads, t->head0 + j % t->heads);
            if ((t->pattern[i] == t->pattern[j]) != equal)
                return wrong(b, "patterns %d and %d of (batch, head) %d and %d, whose keys are %s",
                             t->pattern[i], t->pattern[j], i, j, equal ? "equal" : "different");
        }
    for (int n = 0; n < t->patterns; n++) {
        const int i = t->batch_of[n] * t->heads + t->head_of[n] - t->head0;
        int uses = 0;

        for (int j = 0; j < all; j++)
            uses += t->pattern[j] == n;
        if (uses != t->uses[n] || i < 0 || i >= all || t->pattern[i] != n)
            return wrong(b, "pattern %d is that of %d, said to be %d, and (batch, head) %d", n, uses,
                         t->uses[n], i);
        used += uses;
    }
    return used == all ? 0 : wrong(b, "%d of %d (batch, head) have a pattern", used, all);
}

static int check_dictionary(struct brute *b, const struct hra_tiles *t, const char *used)
{
    const struct hra_dictionary *d = &t->dictionary;

    for (int i = 0; i < d->count; i++) {
        int live = 0;

        for (int r = 0; r < HRA_TILE; r++)
            for (int w = 0; w < WORDS; w++)
                live += __builtin_popcountll(d->bits[i][r][w]);
        if (live != d->live[i])
            return wrong(b, "bitmap %d has %d pairs, said to be %d", i, live, d->live[i]);
        if (!used[i])
            return wrong(b, "no tile has bitmap %d", i);
        for (int j = 0; j < i; j++)
            if (memcmp(d->bits[i], d->bits[j], sizeof(d->bits[i])) == 0)
                return wrong(b, "bitmaps %d and %d are equal", i, j);
    }
    return 0;
}

static int check_sums(struct brute *b, const struct hra_tiles *t, const struct sums *s)
{
    for (int q = 0; q < t->queries; q++)
        if (t->row_work[q] != s->row[q])
            return wrong(b, "query tile %d has %" PRId64 " tiles, said to be %" PRId64, q, s->row[q],
                         t->row_work[q]);
    for (int k = 0; k < t->keys; k++)
        if (t->column_work[k] != s->column[k])
            return wrong(b, "key tile %d has %" PRId64 " tiles, said to be %" PRId64, k, s->column[k],
                         t->column_work[k]);
    if (t->tiles_full != s->full || t->tiles_partial != s->partial || t->pairs_in_tiles != s->in_tiles)
        return wrong(b,
                     "%" PRId64 " full and %" PRId64 " partial tiles of %" PRId64
                     " pairs, said to be %" PRId64 ", %" PRId64 " and %" PRId64,
                     s->full, s->partial, s->in_tiles, t->tiles_full, t->tiles_partial, t->pairs_in_tiles);
    if (b->count != NULL && (t->pairs_live != s->live || t->pairs_counted != s->counted))
        return wrong(b, "%" PRId64 " pairs attend %" PRId64 " times, said to be %" PRId64 " and %" PRId64,
                     s->live, s->counted, t->pairs_live, t->pairs_counted);
    return 0;
}

static int check_shape(struct brute *b, const struct hra_tiles *t)
{
    const struct hra_layout *l = b->layout;

    if (t->rank < 0 || t->rank >= l->ranks || t->first_query < l->rank_tile[t->rank] || t->queries < 0 ||
        t->first_query + t->queries > l->rank_tile[t->rank + 1] || t->keys != l->tiles)
        return wrong(b, "%d query tiles from %d on of rank %d and %d key tiles", t->queries, t->first_query,
                     t->rank, t->keys);
    if (t->batch != b->batch || t->head0 != b->head0 || t->heads != b->heads)
        return wrong(b, "%d sequences, heads %d + %d", t->batch, t->head0, t->heads);
    return 0;
}

static int check(struct brute *b, const struct hra_tiles *t, struct sums *sums)
{
    if (check_shape(b, t) != 0 || check_patterns(b, t) != 0)
        return -1;
    for (int i = 0; i < t->batch * t->heads; i++) {
        const int s = i / t->heads, h = i % t->heads, branches = hra_mask_branches(b->mask, s, t->head0 + h);
        const struct hra_tile_list *list = &t->list[t->pattern[i]];

        for (int q = 0; q < t->queries; q++)
            if (check_row(b, t, list, q, branches, sums) != 0 ||
                (b->count != NULL && check_pairs(b, t, s, h, q, sums) != 0))
                return -1;
    }
    for (int n = 0; n < t->patterns; n++)
        if (check_columns(b, t, &t->list[n]) != 0)
            return -1;
    return check_dictionary(b, t, sums->used) != 0 ? -1 : check_sums(b, t, sums);
}

int brute_check(struct brute *b, const struct hra_tiles *t)
{
    struct sums sums = {0};
    int status;

    sums.row = calloc((size_t)t->queries + 1, sizeof(*sums.row));
    sums.column = calloc((size_t)t->keys + 1, sizeof(*sums.column));
    sums.used = calloc((size_t)t->dictionary.count + 1, 1);
    if (sums.row == NULL || sums.column == NULL || sums.used == NULL)
        status = wrong(b, "no memory for sums over %d tiles", t->queries + t->keys);
    else
        status = check(b, t, &sums);
    free(sums.row);
    free(sums.column);
    free(sums.used);
    return status;
}

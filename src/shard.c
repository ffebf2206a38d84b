/* shard.c - pieces and tiles.
 *
 * Even work, even numbers of tiles, few pieces: bend the sequence of tiles into a circle. All windows of m of its n
 * tiles together weigh m times what the circle weighs, and one step moves a window's weight by the difference of two
 * tiles, so some window weighs what m tiles should, to half such a difference. A window takes two cuts; what is left
 * is closed to a circle again. So the tiles are split between two halves of the ranks, both halves likewise, and
 * 2 (ranks - 1) cuts make the work even, whatever it is: less than 2 pieces a rank. (That so many suffice for two
 * measures is Alon's necklace theorem, 1987; in general no fewer do.) */
#include "src/shard.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ---- Pieces and tiles ------------------------------------------------------------------------- */

/* Contiguous: piece i is rank i's. Zigzag: of 2 ranks pieces rank r has pieces r and 2 ranks - 1 - r, an early and a
 * late one. */
static hra_status cut_pieces(struct hra_layout *l, hra_shard shard)
{
    const int64_t pieces = shard == HRA_SHARD_ZIGZAG ? 2 * (int64_t)l->ranks : l->ranks;

    if (pieces > INT_MAX)
        return HRA_FAIL(HRA_ERR_UNSUPPORTED, "%d ranks make %lld pieces, more than %d", l->ranks,
                        (long long)pieces, INT_MAX);
    l->pieces = (int)pieces;
    HRA_TRY(hra_alloc((void **)&l->piece, l->pieces, sizeof(*l->piece), "pieces"));
    const int64_t least = l->tokens / l->pieces, longer = l->tokens % l->pieces;
    int64_t slot = 0;
    for (int i = 0; i < l->pieces; i++) {
        l->piece[i] = (hra_piece){
            .slot0 = slot, .rows = least + (i < longer), .rank = i < l->ranks ? i : l->pieces - 1 - i};
        slot += l->piece[i].rows;
    }
    return HRA_OK;
}

/* Where the tile that begins at `slot` ends: at the end of the piece if that is near enough, else at the last of the
 * order's cuts that is, else HRA_TILE slots on. *cut is the first cut beyond slot; it only moves on. */
static int64_t tile_end(const hra_order *order, int64_t slot, int64_t piece_end, int64_t *cut)
{
    const int64_t end = slot + HRA_TILE;
    int64_t best = end;

    if (piece_end <= end)
        return piece_end;
    while (*cut < order->cuts && order->cut[*cut] <= slot)
        ++*cut;
    for (int64_t c = *cut; c < order->cuts && order->cut[c] <= end; c++)
        best = order->cut[c];
    return best;
}

/* Cut all pieces into tiles, in slot order; next [ranks] is the number of each rank's next tile. Counts only where
 * l->tile is NULL. */
static int cut_tiles(struct hra_layout *l, const hra_order *order, int *next)
{
    int64_t cut = 0;
    int tiles = 0;

    for (int i = 0; i < l->pieces; i++) {
        const hra_piece *piece = &l->piece[i];
        const int64_t piece_end = piece->slot0 + piece->rows;
        for (int64_t slot = piece->slot0, end; slot < piece_end; slot = end, tiles++) {
            end = tile_end(order, slot, piece_end, &cut);
            const int tile = next[piece->rank]++;
            if (l->tile == NULL)
                continue;
            l->tile[tile] =
                (struct hra_tile_rows){.row0 = piece->row0 + slot - piece->slot0, .rows = (int)(end - slot)};
            l->slot0[tile] = slot;
            l->by_slot[tiles] = tile;
        }
    }
    return tiles;
}

/* All that follows from the pieces' slots and ranks. */
static hra_status build(struct hra_layout *l, const hra_order *order)
{
    HRA_TRY(hra_alloc((void **)&l->rows, l->ranks, sizeof(*l->rows), "pieces"));
    for (int i = 0; i < l->pieces; i++) {
        hra_piece *piece = &l->piece[i];
        piece->row0 = l->rows[piece->rank];
        l->rows[piece->rank] += piece->rows;
    }

    /* Counted two places on, summed, then moved one place down by the second walk, which counts each rank's first
     * tile up to its end. */
    HRA_TRY(hra_alloc((void **)&l->rank_tile, (int64_t)l->ranks + 2, sizeof(*l->rank_tile), "tiles"));
    l->tiles = cut_tiles(l, order, l->rank_tile + 2);
    for (int r = 1; r < l->ranks; r++)
        l->rank_tile[r + 1] += l->rank_tile[r];
    HRA_TRY(hra_alloc((void **)&l->slot0, l->tiles, sizeof(*l->slot0), "tiles"));
    HRA_TRY(hra_alloc((void **)&l->by_slot, l->tiles, sizeof(*l->by_slot), "tiles"));
    HRA_TRY(hra_alloc((void **)&l->tile, l->tiles, sizeof(*l->tile), "tiles"));
    cut_tiles(l, order, l->rank_tile + 1);
    return HRA_OK;
}

static hra_status begin(struct hra_layout **out, const hra_order *order, int ranks)
{
    HRA_TRY(hra_alloc((void **)out, 1, sizeof(**out), "layout"));
    (*out)->ranks = ranks;
    (*out)->tokens = order->tokens;
    return HRA_OK;
}

static hra_status finish(struct hra_layout **out, struct hra_layout *l, hra_status status)
{
    if (status == HRA_OK)
        *out = l;
    else
        hra_layout_destroy(l);
    return status;
}

hra_status hra_layout_create(struct hra_layout **out, const hra_order *order, int ranks, hra_shard shard)
{
    struct hra_layout *l = NULL;

    HRA_TRY(begin(&l, order, ranks));
    hra_status status = cut_pieces(l, shard);
    if (status == HRA_OK)
        status = build(l, order);
    return finish(out, l, status);
}

/* ---- Even work ------------------------------------------------------------------------------ */

/* A tile or a rank, and its work. */
struct weight {
    int64_t work;
    int index;
};

/* A sharing out of tiles, and what making one needs. */
struct sharing {
    const int64_t *work; /* [tiles] */
    int tiles, ranks;
    int most;      /* tiles of a rank: this many, or one fewer */
    int64_t limit; /* work of a rank that is even enough */

    int *owner;    /* [tiles] the rank of each tile, in the sharing at hand */
    int64_t *load; /* [ranks] its work */
    int *best;     /* [tiles] the ranks in the best sharing so far */
    int64_t over;  /* by how much its busiest rank exceeds the limit, at least 0 */
    int pieces;    /* runs of tiles that one rank has in it */

    int *tile;             /* [tiles] the tiles of the circles, ascending in each */
    int *spare;            /* [tiles] */
    int64_t *sum;          /* [tiles + 1] work before the i-th tile */
    struct weight *weight; /* [tiles or ranks, what is more] to be sorted */
    int *held;             /* [ranks][most] the tiles of each rank */
    int *count;            /* [ranks] their number */
};

/* The heaviest first. */
static int compare(const void *a, const void *b)
{
    const struct weight *x = a, *y = b;

    if (x->work != y->work)
        return x->work < y->work ? 1 : -1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static void sort(struct weight *weight, const int64_t *work, int count)
{
    for (int i = 0; i < count; i++)
        weight[i] = (struct weight){.work = work[i], .index = i};
    qsort(weight, (size_t)count, sizeof(*weight), compare);
}

static int64_t max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* 1.03 of the mean or the heaviest tile, what is more. */
static int64_t find_limit(const struct sharing *s)
{
    const int64_t hundred = 100 * (int64_t)s->ranks;
    int64_t total = 0, heaviest = 0;

    for (int t = 0; t < s->tiles; t++) {
        total += s->work[t];
        heaviest = max(heaviest, s->work[t]);
    }
    return max(total / hundred * 103 + total % hundred * 103 / hundred, heaviest);
}

/* ---- Even work: sharings ---------------------------------------------------------------------- */

/* Keep the sharing at hand if it comes nearer to the limit than the best so far, or as near with an eighth fewer
 * pieces: for less, what was found first stays, which is the more even one. */
static void consider(struct sharing *s)
{
    int64_t busiest = 0;
    int pieces = 0;

    memset(s->load, 0, (size_t)s->ranks * sizeof(*s->load));
    for (int t = 0; t < s->tiles; t++) {
        s->load[s->owner[t]] += s->work[t];
        busiest = max(busiest, s->load[s->owner[t]]);
        pieces += t == 0 || s->owner[t] != s->owner[t - 1];
    }
    const int64_t over = max(busiest - s->limit, 0);
    if (s->pieces > 0 && (over != s->over ? over > s->over : pieces > s->pieces - (s->pieces + 7) / 8))
        return;
    memcpy(s->best, s->owner, (size_t)s->tiles * sizeof(*s->best));
    s->over = over;
    s->pieces = pieces;
}

static void share_contiguous(struct sharing *s)
{
    const int least = s->tiles / s->ranks, longer = s->tiles % s->ranks;

    for (int r = 0, t = 0; r < s->ranks && t < s->tiles; r++)
        for (int end = t + least + (r < longer); t < end; t++)
            s->owner[t] = r;
}

/* `count` tiles of a circle from the first-th on. */
struct window {
    int first, count;
    int cuts;      /* new ones: at its ends, where tiles lie that are neighbours in the sequence */
    int64_t off;   /* |its work - what its work should be| */
    int64_t extra; /* how much of that is beyond what may be */
};

static int precedes(const struct window *a, const struct window *b)
{
    if (a->extra != b->extra)
        return a->extra < b->extra;
    if (a->cuts != b->cuts)
        return a->cuts < b->cuts;
    return a->off < b->off;
}

static int is_cut(const int *tile, int count, int at)
{
    return at % count != 0 && tile[at % count] == tile[at % count - 1] + 1;
}

/* The best window for `part` of the `ranks` that share a circle, whose work may be off by `room` if that saves cuts.
 * s->sum is the circle's. */
static struct window find_window(const struct sharing *s, const int *tile, int count, int part, int ranks,
                                 int64_t room)
{
    const int64_t total = s->sum[count], share = total / ranks * part + total % ranks * part / ranks;
    const int length = (int)((int64_t)count * part / ranks), rest = (int64_t)count * part % ranks != 0;
    struct window best = {.extra = INT64_MAX};

    for (int n = length; n <= length + rest; n++)
        for (int i = 0; i < count; i++) {
            const int64_t work =
                i + n <= count ? s->sum[i + n] - s->sum[i] : total - (s->sum[i] - s->sum[i + n - count]);
            struct window w = {.first = i, .count = n, .off = work > share ? work - share : share - work};
            w.extra = max(w.off - room, 0);
            w.cuts = is_cut(tile, count, i) + is_cut(tile, count, i + n);
            if (precedes(&w, &best))
                best = w;
        }
    return best;
}

/* Bring the tiles of a window to the front; those behind it and those in it stay ascending. */
static void take_out(struct sharing *s, int *tile, int count, const struct window *w)
{
    const int beyond = w->first + w->count - count, wrapped = beyond > 0 ? beyond : 0;
    int in = 0, out = w->count;

    memcpy(s->spare, tile, (size_t)count * sizeof(*tile));
    for (int i = 0; i < count; i++)
        if (i < wrapped || (i >= w->first && i < w->first + w->count))
            tile[in++] = s->spare[i];
        else
            tile[out++] = s->spare[i];
}

/* Share the tiles of a circle among the ranks from rank0 on. roomy: each level of splits may take its part of the room
 * between the ranks' mean and the limit. */
static void split(struct sharing *s, int *tile, int count, int rank0, int ranks, int roomy)
{
    int levels = 1;

    if (ranks == 1) {
        for (int i = 0; i < count; i++)
            s->owner[tile[i]] = rank0;
        return;
    }
    s->sum[0] = 0;
    for (int i = 0; i < count; i++)
        s->sum[i + 1] = s->sum[i] + s->work[tile[i]];
    while (((ranks - 1) >> levels) > 0)
        levels++;
    const int part = ranks / 2;
    const int64_t mean = s->sum[count] / ranks, room = roomy ? max(s->limit - mean, 0) / levels : 0;
    const struct window w = find_window(s, tile, count, part, ranks, (room < mean ? room : mean) * part);
    take_out(s, tile, count, &w);
    split(s, tile, w.count, rank0, part, roomy);
    split(s, tile + w.count, count - w.count, rank0 + part, ranks - part, roomy);
}

static void share_windows(struct sharing *s, int roomy)
{
    for (int t = 0; t < s->tiles; t++)
        s->tile[t] = t;
    split(s, s->tile, s->tiles, 0, s->ranks, roomy);
}

/* Of tiles with equal work each rank keeps as many, but in runs: s->tile is in the order of sort. */
static void gather_equals(struct sharing *s)
{
    for (int first = 0, end; first < s->tiles; first = end) {
        for (end = first; end < s->tiles && s->work[s->tile[end]] == s->work[s->tile[first]]; end++)
            s->weight[end] = (struct weight){.work = s->owner[s->tile[end]], .index = end};
        qsort(&s->weight[first], (size_t)(end - first), sizeof(*s->weight), compare);
        for (int i = first; i < end; i++)
            s->owner[s->tile[i]] = (int)s->weight[i].work;
    }
}

/* Tile by tile: the heaviest that are left, one for each rank, the heaviest of them to the rank with the least work so
 * far. */
static void share_singly(struct sharing *s)
{
    sort(s->weight, s->work, s->tiles);
    for (int i = 0; i < s->tiles; i++)
        s->tile[i] = s->weight[i].index;
    memset(s->load, 0, (size_t)s->ranks * sizeof(*s->load));
    for (int first = 0; first < s->tiles; first += s->ranks) {
        sort(s->weight, s->load, s->ranks);
        for (int i = 0; i < s->ranks && first + i < s->tiles; i++) {
            const int tile = s->tile[first + i], rank = s->weight[s->ranks - 1 - i].index;
            s->owner[tile] = rank;
            s->load[rank] += s->work[tile];
        }
    }
    gather_equals(s);
}

/* ---- Even work: exchanges --------------------------------------------------------------------- */

/* Places in held of a tile that a busy rank gives, and of the one that it takes for it. */
struct trade {
    int64_t give, take;
    int64_t top; /* work of the busier of the two afterwards, the limit if that is more */
};

/* The trade between two ranks that leaves neither with as much work as the busy one has now: 1 if it is better than
 * *best, which it replaces. */
static int find_trade(const struct sharing *s, int busy, int idle, struct trade *best)
{
    const int64_t busy0 = (int64_t)busy * s->most, idle0 = (int64_t)idle * s->most;
    int found = 0;

    for (int64_t i = busy0; i < busy0 + s->count[busy]; i++)
        for (int64_t j = idle0; j < idle0 + s->count[idle]; j++) {
            const int64_t less = s->work[s->held[i]] - s->work[s->held[j]];
            const int64_t top = max(max(s->load[busy] - less, s->load[idle] + less), s->limit);
            if (top >= best->top)
                continue;
            *best = (struct trade){.give = i, .take = j, .top = top};
            found = 1;
        }
    return found;
}

static void exchange(struct sharing *s, int busy, int idle, const struct trade *t)
{
    const int give = s->held[t->give], take = s->held[t->take];
    const int64_t less = s->work[give] - s->work[take];

    s->held[t->give] = take;
    s->held[t->take] = give;
    s->owner[give] = idle;
    s->owner[take] = busy;
    s->load[busy] -= less;
    s->load[idle] += less;
}

/* Make a rank less busy: 1 if that can be done. *tries is how many more trades may be looked at. */
static int relieve(struct sharing *s, int busy, int64_t *tries)
{
    struct trade best = {.top = s->load[busy]};
    int partner = -1;

    for (int i = s->ranks - 1; i >= 0 && best.top > s->limit; i--) {
        const int idle = s->weight[i].index;
        if (s->load[idle] >= s->limit)
            continue;
        *tries -= (int64_t)s->most * s->most;
        if (*tries < 0)
            break;
        if (find_trade(s, busy, idle, &best))
            partner = idle;
    }
    if (partner >= 0)
        exchange(s, busy, partner, &best);
    return partner >= 0;
}

static void list_held(struct sharing *s)
{
    memset(s->count, 0, (size_t)s->ranks * sizeof(*s->count));
    memset(s->load, 0, (size_t)s->ranks * sizeof(*s->load));
    for (int t = 0; t < s->tiles; t++) {
        const int rank = s->owner[t];
        s->held[(int64_t)rank * s->most + s->count[rank]++] = t;
        s->load[rank] += s->work[t];
    }
}

/* Exchange single tiles of the sharing at hand between ranks above the limit and ranks below it. After each trade the
 * busier of the two is less busy than before, so that this ends; that few trades are looked at in all keeps it to
 * milliseconds where tiles are many and none is better. */
static void trade_tiles(struct sharing *s)
{
    int64_t tries = INT64_C(1) << 21;
    int trades = 1;

    list_held(s);
    while (trades > 0 && tries > 0) {
        trades = 0;
        sort(s->weight, s->load, s->ranks);
        for (int i = 0; i < s->ranks && s->weight[i].work > s->limit && tries > 0; i++)
            trades += relieve(s, s->weight[i].index, &tries);
    }
}

/* ---- Even work: the whole --------------------------------------------------------------------- */

/* Find the ranks of the tiles, into s->best. */
static void share(struct sharing *s)
{
    s->limit = find_limit(s);
    share_contiguous(s);
    consider(s);
    if (s->over > 0) {
        share_windows(s, 0);
        consider(s);
        share_windows(s, 1); /* measured: 15 to 30 % fewer pieces for short documents and scattered work */
        consider(s);
    }
    if (s->over > 0) {
        memcpy(s->owner, s->best, (size_t)s->tiles * sizeof(*s->owner));
        trade_tiles(s);
        consider(s);
    }
    if (s->over > 0) {
        share_singly(s);
        trade_tiles(s);
        consider(s);
    }
}

static hra_status make_room(struct sharing *s)
{
    const int more = s->tiles > s->ranks ? s->tiles : s->ranks;

    HRA_TRY(hra_alloc((void **)&s->owner, s->tiles, sizeof(*s->owner), "sharing"));
    HRA_TRY(hra_alloc((void **)&s->load, s->ranks, sizeof(*s->load), "sharing"));
    HRA_TRY(hra_alloc((void **)&s->best, s->tiles, sizeof(*s->best), "sharing"));
    HRA_TRY(hra_alloc((void **)&s->tile, s->tiles, sizeof(*s->tile), "sharing"));
    HRA_TRY(hra_alloc((void **)&s->spare, s->tiles, sizeof(*s->spare), "sharing"));
    HRA_TRY(hra_alloc((void **)&s->sum, (int64_t)s->tiles + 1, sizeof(*s->sum), "sharing"));
    HRA_TRY(hra_alloc((void **)&s->held, (int64_t)s->ranks * s->most, sizeof(*s->held), "sharing"));
    HRA_TRY(hra_alloc((void **)&s->count, s->ranks, sizeof(*s->count), "sharing"));
    return hra_alloc((void **)&s->weight, more, sizeof(*s->weight), "sharing");
}

static void free_room(struct sharing *s)
{
    free(s->owner);
    free(s->load);
    free(s->best);
    free(s->tile);
    free(s->spare);
    free(s->sum);
    free(s->held);
    free(s->count);
    free(s->weight);
}

/* Runs of tiles of one rank become pieces; ranks are numbered as they come, in s->count. */
static hra_status join(struct hra_layout *l, const struct hra_layout *whole, struct sharing *s)
{
    int *number = s->count, ranks = 0, n = 0;

    HRA_TRY(hra_alloc((void **)&l->piece, s->pieces, sizeof(*l->piece), "pieces"));
    memset(number, -1, (size_t)l->ranks * sizeof(*number));
    for (int t = 0; t < s->tiles; t++) {
        const int rank = s->best[t];
        if (number[rank] < 0)
            number[rank] = ranks++;
        if (t == 0 || rank != s->best[t - 1])
            l->piece[n++] = (hra_piece){.slot0 = whole->slot0[t], .rank = number[rank]};
        l->piece[n - 1].rows += whole->tile[t].rows;
    }
    l->pieces = n;
    return HRA_OK;
}

static hra_status balance(struct hra_layout *l, const struct hra_layout *whole, const int64_t *work)
{
    struct sharing s = {.work = work,
                        .tiles = whole->tiles,
                        .ranks = l->ranks,
                        .most = whole->tiles / l->ranks + (whole->tiles % l->ranks != 0)};
    hra_status status = make_room(&s);

    if (status == HRA_OK) {
        share(&s);
        status = join(l, whole, &s);
    }
    free_room(&s);
    return status;
}

hra_status hra_layout_balanced(struct hra_layout **out, const hra_order *order, int ranks,
                               const int64_t *work)
{
    struct hra_layout *l = NULL, *whole = NULL;

    HRA_TRY(hra_layout_create(&whole, order, 1, HRA_SHARD_CONTIGUOUS));
    hra_status status = begin(&l, order, ranks);
    if (status == HRA_OK)
        status = balance(l, whole, work);
    if (status == HRA_OK)
        status = build(l, order);
    hra_layout_destroy(whole);
    return finish(out, l, status);
}

void hra_layout_destroy(struct hra_layout *l)
{
    if (l == NULL)
        return;
    free(l->piece);
    free(l->rows);
    free(l->rank_tile);
    free(l->tile);
    free(l->slot0);
    free(l->by_slot);
    free(l);
}

/* test_plan.c - plans as they are asked: sharding, tiles, counts and bytes against brute force, wrong use,
 * and who outlives whom. */
#include "src/plan.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *take(size_t bytes)
{
    void *memory = calloc(1, bytes + 1);
    cr_assert_not_null(memory);
    return memory;
}

/* Values only: Criterion copies rows into another process. */
struct shape {
    int ranks, batch, heads, head0;
    int64_t tokens, grid[3];
    hra_shard shard;
    char order[24], mask[320];
};

/* A plan on a model, and what it was made of. */
struct model {
    struct shape s;
    hra_comm *comm;
    hra_order *order;
    hra_mask *mask;
    hra_plan *plan;
    hra_plan_info info;
};

static hra_problem problem_of(const struct shape *s)
{
    hra_problem p = HRA_PROBLEM_INIT;

    p.batch = s->batch;
    p.heads = s->heads;
    p.head0 = s->head0;
    p.dim = 64;
    p.dim_v = 32;
    p.tokens = s->tokens;
    p.type = HRA_F32;
    p.threads = 1;
    return p;
}

static struct model begin_scheduled(const struct shape *s, int rank, hra_schedule_kind schedule)
{
    struct model m = {.s = *s};
    hra_domain d = HRA_DOMAIN_INIT;
    hra_options options = HRA_OPTIONS_INIT;
    const hra_problem p = problem_of(s);

    d.batch = s->batch;
    d.heads = s->head0 + s->heads;
    d.tokens = s->tokens;
    memcpy(d.grid, s->grid, sizeof(d.grid));
    options.shard = s->shard;
    options.schedule = schedule;
    cr_assert(eq(int, hra_comm_create_model(&m.comm, rank, s->ranks), HRA_OK));
    cr_assert(eq(int, hra_order_create(&m.order, &d, s->order), HRA_OK), "%s", hra_last_error());
    cr_assert(eq(int, hra_mask_parse(&m.mask, &d, m.order, s->mask), HRA_OK), "%s", hra_last_error());
    cr_assert(eq(int, hra_plan_create(&m.plan, m.comm, &p, m.order, m.mask, &options), HRA_OK), "%s",
              hra_last_error());
    m.info.size = sizeof(m.info);
    cr_assert(eq(int, hra_plan_get_info(m.plan, &m.info), HRA_OK));
    return m;
}

static struct model begin(const struct shape *s, int rank)
{
    return begin_scheduled(s, rank, HRA_SCHEDULE_AUTO);
}

static void end(struct model *m)
{
    hra_plan_destroy(m->plan);
    hra_mask_destroy(m->mask);
    hra_order_destroy(m->order);
    cr_expect(eq(int, hra_comm_destroy(m->comm), HRA_OK));
}

static int count(const struct model *m, int b, int h, int64_t query_slot, int64_t key_slot)
{
    const int64_t *token = hra_order_slot_to_token(m->order);
    return hra_mask_count(m->mask, b, m->s.head0 + h, token[query_slot], token[key_slot]);
}

/* Tiles of one rank and head; *n receives their number. The caller's to free. */
static hra_plan_tile *tiles_of(const struct model *m, int rank, int b, int h, int64_t *n)
{
    int64_t again = -1;
    cr_assert(eq(int, hra_plan_tiles(m->plan, rank, b, h, NULL, 0, n), HRA_OK), "%s", hra_last_error());
    hra_plan_tile *tile = take((size_t)*n * sizeof(*tile));
    cr_assert(eq(int, hra_plan_tiles(m->plan, rank, b, h, tile, *n, &again), HRA_OK));
    cr_assert(again == *n);
    return tile;
}

/* ---- Pieces and rows -------------------------------------------------------------------------- */

struct cut {
    int64_t tokens;
    hra_shard shard;
};

ParameterizedTestParameters(plan, ranks_share_all_slots)
{
    static struct cut rows[] = {{1, HRA_SHARD_CONTIGUOUS}, {1, HRA_SHARD_ZIGZAG},
                                {5, HRA_SHARD_CONTIGUOUS}, {5, HRA_SHARD_ZIGZAG},
                                {33, HRA_SHARD_ZIGZAG},    {1001, HRA_SHARD_CONTIGUOUS},
                                {1001, HRA_SHARD_ZIGZAG},  {1024, HRA_SHARD_ZIGZAG}};
    return cr_make_param_array(struct cut, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct cut *c, plan, ranks_share_all_slots)
{
    for (int ranks = 1; ranks <= 17; ranks++) {
        struct shape s = {ranks, 1, 1, 0, c->tokens, {0}, c->shard, "hilbert", "causal"};
        struct model m = begin(&s, ranks / 2);
        const int64_t *token = hra_order_slot_to_token(m.order);
        int *owner = take((size_t)s.tokens * sizeof(*owner)), pieces = 0;
        const hra_piece *piece = NULL;
        int64_t next = 0, least = INT64_MAX, most = 0;

        cr_assert(eq(int, hra_plan_pieces(m.plan, &piece, &pieces), HRA_OK));
        cr_assert(eq(int, pieces, c->shard == HRA_SHARD_ZIGZAG ? 2 * ranks : ranks));
        int64_t *rows = take((size_t)ranks * sizeof(*rows));
        for (int i = 0; i < pieces; i++) {
            cr_assert(piece[i].slot0 == next && piece[i].rank >= 0 && piece[i].rank < ranks);
            cr_assert(eq(int, piece[i].rank, i < ranks ? i : 2 * ranks - 1 - i));
            cr_assert(piece[i].row0 == rows[piece[i].rank]);
            for (int64_t r = 0; r < piece[i].rows; r++)
                owner[next + r] = piece[i].rank;
            rows[piece[i].rank] += piece[i].rows;
            next += piece[i].rows;
            least = piece[i].rows < least ? piece[i].rows : least;
            most = piece[i].rows > most ? piece[i].rows : most;
        }
        cr_assert(next == s.tokens && most - least <= 1, "%d ranks, pieces of %ld to %ld", ranks, (long)least,
                  (long)most);

        int64_t all = 0;
        for (int r = 0; r < ranks; r++) {
            const int64_t n = hra_plan_rows(m.plan, r);
            int64_t *slot = take((size_t)n * sizeof(*slot)), *of = take((size_t)n * sizeof(*of));
            cr_assert(n == rows[r]);
            cr_assert(eq(int, hra_plan_row_index(m.plan, r, slot, of), HRA_OK));
            for (int64_t i = 0; i < n; i++)
                cr_assert(owner[slot[i]] == r && (i == 0 || slot[i - 1] < slot[i]) &&
                          of[i] == token[slot[i]]);
            all += n;
            free(slot);
            free(of);
        }
        cr_assert(all == s.tokens); /* ascending slots of its own, as many as there are: each once */
        cr_expect(hra_plan_rows(m.plan, ranks) == -1 && hra_plan_rows(m.plan, -1) == -1);
        free(owner);
        free(rows);
        end(&m);
    }
}

/* ---- Tiles and counts ------------------------------------------------------------------------- */

/* Each is planned with every shard. */
ParameterizedTestParameters(plan, tiles_equal_brute_force)
{
    static struct shape rows[] = {
        {1, 1, 1, 0, 300, {0}, HRA_SHARD_AUTO, "identity", "causal"},
        {3, 1, 2, 0, 700, {0}, HRA_SHARD_AUTO, "identity", "window(150,-20)"},
        {4, 2, 3, 2, 515, {0}, HRA_SHARD_AUTO, "hilbert", "heads(0-1: full; 2-3: causal; 4: window(9,9))"},
        {2, 1, 1, 0, 1024, {32, 32, 0}, HRA_SHARD_AUTO, "hilbert", "grid(3,5)"},
        {5, 1, 1, 0, 1020, {15, 17, 4}, HRA_SHARD_AUTO, "boxes:4x4x4", "neighbourhood(3,5,3)"},
        {17, 1, 1, 0, 600, {0}, HRA_SHARD_AUTO, "snake", "docs(1,299,300) & causal"},
        {9, 1, 1, 0, 4, {0}, HRA_SHARD_AUTO, "identity", "full"},
        {2, 2, 1, 0, 256, {0}, HRA_SHARD_AUTO, "morton", "blocks(64)"},
        {4, 1, 1, 0, 1024, {0}, HRA_SHARD_AUTO, "identity", "full"},
        {2, 1, 1, 0, 500, {0}, HRA_SHARD_AUTO, "hilbert", "!window(30,200)"},
        {3, 1, 4, 2, 384, {0}, HRA_SHARD_AUTO, "identity", "dilated(96,4,head)"},
        {2, 3, 1, 0, 300, {0}, HRA_SHARD_AUTO, "snake", "batches(0: causal; 1-2: window(40,0))"},
        /* pairs that attend more than once */
        {3, 1, 2, 0, 400, {0}, HRA_SHARD_AUTO, "hilbert", "mix(full; slots(window(60,60)))"},
        {4, 1, 3, 1, 512, {0}, HRA_SHARD_AUTO, "identity", "longnet(64:1, 128:2, 512:4)"},
        {2, 1, 1, 0, 512, {0}, HRA_SHARD_AUTO, "identity", "mix(full; causal; full; window(3,3))"},
        {5, 2, 2, 0, 260, {0}, HRA_SHARD_AUTO, "identity", "heads(0: mix(causal; causal); 1: docs(100,160))"},
        {3,
         2,
         2,
         0,
         333,
         {0},
         HRA_SHARD_AUTO,
         "morton",
         "batches(0: heads(0: full; 1: causal); 1: mix(causal; full))"},
    };
    return cr_make_param_array(struct shape, rows, sizeof(rows) / sizeof(rows[0]));
}

/* What the tiles of all ranks add up to, and what the mask says of all pairs. */
struct sums {
    int64_t in_tiles, full, partial;
    int64_t needed;        /* rows of K/V that the tiles of a rank need of others, over all ranks */
    int64_t *work;         /* [ranks] tiles */
    int64_t *row;          /* [tokens] tiles of the row of tiles that begins at this slot */
    char *wanted;          /* [ranks][tokens] 1: the rank needs the key tile that begins at this slot */
    int *owner;            /* [tokens] rank of each slot */
    int bitmaps;           /* on our rank */
    int64_t live, counted; /* pairs */
    uint64_t *answers;     /* [batch * heads] a hash of all answers of the mask */
};

static struct sums begin_sums(const struct model *m)
{
    const size_t tokens = (size_t)m->s.tokens, ranks = (size_t)m->s.ranks;
    struct sums sums = {.work = take(ranks * sizeof(*sums.work)),
                        .row = take(tokens * sizeof(*sums.row)),
                        .wanted = take(ranks * tokens),
                        .owner = take(tokens * sizeof(*sums.owner)),
                        .answers = take((size_t)(m->s.batch * m->s.heads) * sizeof(*sums.answers))};
    const hra_piece *piece;
    int pieces;

    cr_assert(eq(int, hra_plan_pieces(m->plan, &piece, &pieces), HRA_OK));
    cr_expect(eq(int, m->info.pieces, pieces));
    for (int i = 0; i < pieces; i++)
        for (int64_t r = 0; r < piece[i].rows; r++)
            sums.owner[piece[i].slot0 + r] = piece[i].rank;
    return sums;
}

static void end_sums(struct sums *sums)
{
    free(sums->work);
    free(sums->row);
    free(sums->wanted);
    free(sums->owner);
    free(sums->answers);
}

/* Mark the pairs of a tile, which stands `times` times in the list, once for each branch of a mixture that it is in, and
 * check what it says of itself: all these together have each pair as often as it counts. */
static void check_tile(const struct model *m, const hra_plan_tile *t, int times, int b, int h, char *seen)
{
    int64_t said = 0, counted = 0;

    cr_assert(t->query_rows > 0 && t->query_rows <= HRA_TILE && t->key_rows > 0 && t->key_rows <= HRA_TILE);
    for (int64_t q = t->query_slot0; q < t->query_slot0 + t->query_rows; q++)
        for (int64_t k = t->key_slot0; k < t->key_slot0 + t->key_rows; k++) {
            const int pairs = count(m, b, h, q, k);
            cr_assert(seen[q * m->s.tokens + k]++ == 0, "slots %ld, %ld are in two tiles", (long)q, (long)k);
            cr_assert(pairs <= times, "slots %ld, %ld attend %d times, in %d tiles", (long)q, (long)k, pairs,
                      times);
            counted += pairs;
        }
    for (int n = 0; n < times; n++) {
        cr_assert(t[n].live > 0 && (t[n].live == HRA_TILE * HRA_TILE ? t[n].bitmap == -1 : t[n].bitmap >= 0),
                  "bitmap %d of %ld pairs", t[n].bitmap, (long)t[n].live);
        said += t[n].live;
    }
    cr_assert(said == counted, "tile at %ld, %ld: %ld pairs, brute force %ld", (long)t->query_slot0,
              (long)t->key_slot0, (long)said, (long)counted);
}

/* The order that hra.h promises. */
static int stands_before(const hra_plan_tile *a, const hra_plan_tile *b)
{
    if (a->query_slot0 != b->query_slot0)
        return a->query_slot0 < b->query_slot0;
    return a->key_rank != b->key_rank ? a->key_rank < b->key_rank : a->key_slot0 < b->key_slot0;
}

static void add_tile(const struct model *m, struct sums *sums, int rank, const hra_plan_tile *t)
{
    char *wanted = &sums->wanted[rank * m->s.tokens + t->key_slot0];

    sums->work[rank]++;
    sums->row[t->query_slot0]++;
    sums->in_tiles += (int64_t)t->query_rows * t->key_rows;
    *(t->bitmap == -1 ? &sums->full : &sums->partial) += 1;
    if (rank == hra_comm_rank(m->comm) && t->bitmap >= sums->bitmaps)
        sums->bitmaps = t->bitmap + 1;
    if (t->key_rank != rank && !*wanted)
        sums->needed += t->key_rows;
    *wanted = t->key_rank != rank;
}

/* The tiles of one (batch, head) on one rank. */
static void check_tiles(const struct model *m, struct sums *sums, int rank, int b, int h, char *seen)
{
    const int *owner = sums->owner;
    int64_t n;
    hra_plan_tile *t = tiles_of(m, rank, b, h, &n);

    for (int64_t i = 0, next; i < n; i = next) {
        for (next = i;
             next < n && t[next].query_slot0 == t[i].query_slot0 && t[next].key_slot0 == t[i].key_slot0;)
            add_tile(m, sums, rank, &t[next++]);
        check_tile(m, &t[i], (int)(next - i), b, h, seen);
        cr_assert(i == 0 || stands_before(&t[i - 1], &t[i]), "tile %ld", (long)i);
        cr_assert(owner[t[i].query_slot0] == rank && owner[t[i].query_slot0 + t[i].query_rows - 1] == rank);
        cr_assert(owner[t[i].key_slot0] == t[i].key_rank &&
                  owner[t[i].key_slot0 + t[i].key_rows - 1] == t[i].key_rank);
    }
    free(t);
}

/* All pairs of one (batch, head): those that attend are in a tile. */
static void count_pairs(const struct model *m, struct sums *sums, int b, int h, const char *seen)
{
    uint64_t *answers = &sums->answers[b * m->s.heads + h];

    for (int64_t q = 0; q < m->s.tokens; q++)
        for (int64_t k = 0; k < m->s.tokens; k++, seen++) {
            const int pairs = count(m, b, h, q, k);
            cr_assert(pairs == 0 || *seen, "no tile has slots %ld, %ld", (long)q, (long)k);
            sums->live += pairs > 0;
            sums->counted += pairs;
            *answers = (*answers ^ (unsigned)pairs) * UINT64_C(0x100000001b3) + 1;
        }
}

static void check_info(const struct model *m, const struct sums *sums)
{
    const struct shape *s = &m->s;
    const hra_plan_info *info = &m->info;
    const int64_t row_bytes = s->batch * s->heads * (64 + 32) * 4, tiles = sums->full + sums->partial;
    int64_t busiest = 0, heaviest = 0;
    int patterns = 0;

    cr_expect(info->pairs_live == sums->live && info->pairs_counted == sums->counted,
              "%ld pairs, brute force %ld, counted %ld, brute force %ld", (long)info->pairs_live,
              (long)sums->live, (long)info->pairs_counted, (long)sums->counted);
    cr_expect(info->pairs_in_tiles == sums->in_tiles && sums->in_tiles >= sums->counted,
              "%ld pairs in tiles, brute force %ld", (long)info->pairs_in_tiles, (long)sums->in_tiles);
    cr_expect(info->pairs_all == s->batch * s->heads * s->tokens * s->tokens);
    cr_expect(info->tiles_full == sums->full && info->tiles_partial == sums->partial,
              "%ld full and %ld partial tiles", (long)info->tiles_full, (long)info->tiles_partial);
    cr_expect(eq(i64, info->bitmaps, sums->bitmaps));
    cr_expect(info->bytes_least == sums->needed * row_bytes, "%ld bytes, brute force %ld",
              (long)info->bytes_least, (long)(sums->needed * row_bytes));
    cr_expect(info->bytes_least_backward == 2 * sums->needed * row_bytes); /* sums are f32 as well */
    cr_expect(info->bytes_forward >= info->bytes_least && info->bytes_backward >= info->bytes_least_backward);

    for (int r = 0; r < s->ranks; r++)
        busiest = sums->work[r] > busiest ? sums->work[r] : busiest;
    for (int64_t q = 0; q < s->tokens; q++)
        heaviest = sums->row[q] > heaviest ? sums->row[q] : heaviest;
    const double mean = tiles > 0 ? (double)tiles / s->ranks : 1;
    cr_expect(fabs(info->balance - (tiles > 0 ? (double)busiest / mean : 1)) < 1e-12, "balance %g",
              info->balance);
    cr_expect(fabs(info->balance_bound - (double)heaviest / mean) < 1e-12, "balance bound %g",
              info->balance_bound);

    for (int i = 0; i < s->batch * s->heads; i++) {
        int first = 0;
        while (sums->answers[first] != sums->answers[i])
            first++;
        patterns += first == i;
    }
    cr_expect(eq(int, info->patterns, patterns));
}

ParameterizedTest(struct shape *s, plan, tiles_equal_brute_force, .timeout = 120)
{
    for (int shard = HRA_SHARD_AUTO; shard <= HRA_SHARD_BALANCED; shard++) {
        s->shard = (hra_shard)shard;
        struct model m = begin(s, s->ranks - 1);
        struct sums sums = begin_sums(&m);
        char *seen = take((size_t)(s->tokens * s->tokens));

        cr_expect(shard == HRA_SHARD_AUTO ? m.info.shard != HRA_SHARD_AUTO : (int)m.info.shard == shard);
        for (int b = 0; b < s->batch; b++)
            for (int h = 0; h < s->heads; h++) {
                memset(seen, 0, (size_t)(s->tokens * s->tokens));
                for (int r = 0; r < s->ranks; r++)
                    check_tiles(&m, &sums, r, b, h, seen);
                count_pairs(&m, &sums, b, h, seen);
            }
        check_info(&m, &sums);
        free(seen);
        end_sums(&sums);
        end(&m);
    }
}

/* A mixture's list is that of its branches, put together: each tile once for each branch that it is in, with the pairs
 * that attend there. */
Test(plan, mixtures_list_the_tiles_of_their_branches)
{
    static const char *const branch[] = {"full", "causal & slots(window(90,9))", "dilated(200,2,head,both)"};
    const int branches = (int)(sizeof(branch) / sizeof(branch[0]));
    struct shape s = {3, 1, 2, 1, 700, {0}, HRA_SHARD_CONTIGUOUS, "hilbert", ""};

    snprintf(s.mask, sizeof(s.mask), "mix(%s; %s; %s)", branch[0], branch[1], branch[2]);
    struct model mixture = begin(&s, 1);
    for (int i = 0; i < s.ranks * s.heads; i++) {
        const int rank = i / s.heads, head = i % s.heads;
        int64_t all, parts = 0;
        hra_plan_tile *whole = tiles_of(&mixture, rank, 0, head, &all);

        for (int n = 0; n < branches; n++) {
            int64_t of_branch;
            strcpy(s.mask, branch[n]);
            struct model m = begin(&s, 1);
            hra_plan_tile *t = tiles_of(&m, rank, 0, head, &of_branch);
            for (int64_t k = 0; k < of_branch; k++) {
                int64_t at = 0;
                while (at < all && (whole[at].query_slot0 != t[k].query_slot0 ||
                                    whole[at].key_slot0 != t[k].key_slot0 || whole[at].live != t[k].live))
                    at++;
                cr_assert(at < all, "rank %d, head %d: no tile at %ld, %ld has the %ld pairs of branch %d",
                          rank, head, (long)t[k].query_slot0, (long)t[k].key_slot0, (long)t[k].live, n);
                whole[at].live = -1; /* taken */
            }
            parts += of_branch;
            free(t);
            end(&m);
        }
        cr_expect(parts == all, "rank %d, head %d: %ld tiles, the branches have %ld", rank, head, (long)all,
                  (long)parts);
        free(whole);
    }
    end(&mixture);
}

Test(plan, heads_with_one_mask_share_a_pattern)
{
    const struct shape s = {
        3, 2, 5, 1, 200, {0}, HRA_SHARD_AUTO, "identity", "heads(0: causal; 1-3: full; 4-5: window(5,5))"};
    struct model m = begin_scheduled(&s, 1, HRA_SCHEDULE_RING);

    cr_expect(eq(int, m.info.patterns, 2)); /* head 0 of the model is not ours */
    cr_expect(eq(str, (char *)m.info.backend, "cpu"));
    cr_expect(eq(str, (char *)m.info.transport, "model"));
    cr_expect(eq(str, (char *)m.info.schedule, "ring"));
    cr_expect(eq(int, m.info.blocking, 1));
    end(&m);
}

/* A query cut short by its capacity writes so many and says how many there are. */
Test(plan, queries_respect_capacity)
{
    const struct shape s = {4, 1, 1, 0, 1024, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"};
    struct model m = begin(&s, 0);
    hra_plan_tile tile[3];
    hra_plan_move move[3];
    int64_t n = -1;

    memset(tile, 0x5a, sizeof(tile));
    memset(move, 0x5a, sizeof(move));
    cr_assert(eq(int, hra_plan_tiles(m.plan, 2, 0, 0, tile, 2, &n), HRA_OK));
    cr_expect(n == 16 && tile[1].key_slot0 == 128 && tile[2].bitmap == 0x5a5a5a5a);
    cr_assert(eq(int, hra_plan_moves(m.plan, 2, HRA_FORWARD, move, 2, &n), HRA_OK));
    cr_expect(n == 6 && move[1].round == 0 && move[2].round == 0x5a5a5a5a, "%ld moves", (long)n);
    cr_assert(eq(int, hra_plan_moves(m.plan, 2, HRA_FORWARD, NULL, 0, &n), HRA_OK));
    cr_expect(n == 6);
    end(&m);
}

/* ---- Bytes, balance, memory ------------------------------------------------------------------- */

/* What one rank sends another, in its order, is what that one receives; the sums are what the plan says. */
Test(plan, moves_meet_and_add_up)
{
    static const struct shape shapes[] = {
        {5, 1, 2, 0, 1003, {0}, HRA_SHARD_CONTIGUOUS, "identity", "window(300,0)"},
        {4, 2, 1, 0, 777, {0}, HRA_SHARD_ZIGZAG, "hilbert", "causal"},
        {7, 1, 1, 0, 5, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"},
    };
    enum { MOST = 256 };

    for (size_t i = 0; i < 2 * sizeof(shapes) / sizeof(shapes[0]); i++)
        for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
            const int ranks = shapes[i / 2].ranks;
            struct model m =
                begin_scheduled(&shapes[i / 2], 1, i % 2 == 0 ? HRA_SCHEDULE_RING : HRA_SCHEDULE_HALO);
            hra_plan_move *move = take((size_t)ranks * MOST * sizeof(*move));
            int64_t n[8], bytes = 0;
            for (int r = 0; r < ranks; r++) {
                cr_assert(
                    eq(int, hra_plan_moves(m.plan, r, (hra_pass)pass, move + r * MOST, MOST, &n[r]), HRA_OK));
                cr_assert(n[r] <= MOST);
                for (int64_t k = 0; k < n[r]; k++)
                    bytes += move[r * MOST + k].sends ? 0 : move[r * MOST + k].bytes;
            }
            cr_expect(bytes == (pass == HRA_FORWARD ? m.info.bytes_forward : m.info.bytes_backward),
                      "%ld bytes", (long)bytes);
            for (int a = 0; a < ranks; a++)
                for (int b = 0; b < ranks; b++) {
                    int64_t x = 0, y = 0;
                    for (;; x++, y++) {
                        const hra_plan_move *out = move + a * MOST, *in = move + b * MOST;
                        while (x < n[a] && (!out[x].sends || out[x].peer != b))
                            x++;
                        while (y < n[b] && (in[y].sends || in[y].peer != a))
                            y++;
                        if (x == n[a] || y == n[b])
                            break;
                        cr_assert(out[x].bytes == in[y].bytes && out[x].owner == in[y].owner &&
                                  out[x].gradient == in[y].gradient && out[x].round == in[y].round);
                    }
                    cr_assert(x == n[a] && y == n[b], "a message from %d to %d that nobody %s", a, b,
                              x < n[a] ? "receives" : "sends");
                }
            free(move);
            end(&m);
        }
}

/* Each pair that attends is computed for each head by its query's rank in one run, and a run's keys are computed in a round
 * in which they can be there: other ranks' not before round 1. Own keys come first and last. */
Test(plan, runs_compute_every_live_pair_once)
{
    static const struct shape shapes[] = {
        {5, 1, 2, 0, 403, {0}, HRA_SHARD_CONTIGUOUS, "identity", "window(100,20)"},
        {3, 1, 1, 0, 311, {0}, HRA_SHARD_ZIGZAG, "hilbert", "causal"},
        {7, 1, 1, 0, 5, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"},
    };
    enum { MOST = 64 };

    for (size_t i = 0; i < 2 * sizeof(shapes) / sizeof(shapes[0]); i++)
        for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
            const hra_schedule_kind schedule = i % 2 == 0 ? HRA_SCHEDULE_RING : HRA_SCHEDULE_HALO;
            struct model m = begin_scheduled(&shapes[i / 2], 1, schedule);
            const int64_t tokens = m.s.tokens;
            char *seen = take((size_t)(tokens * tokens));
            int64_t *row[8]; /* token of each row of each rank */
            for (int r = 0; r < m.s.ranks; r++) {
                row[r] = take((size_t)(hra_plan_rows(m.plan, r) + 1) * sizeof(*row[r]));
                cr_assert(eq(int, hra_plan_row_index(m.plan, r, NULL, row[r]), HRA_OK));
            }
            for (int r = 0; r < m.s.ranks; r++) {
                hra_plan_run run[MOST];
                int64_t n = -1, all = -1;
                cr_assert(eq(int, hra_plan_runs(m.plan, r, (hra_pass)pass, run, MOST, &n), HRA_OK));
                cr_assert(eq(int, hra_plan_runs(m.plan, r, (hra_pass)pass, NULL, 0, &all), HRA_OK));
                cr_assert(n == all && n <= MOST);
                for (int64_t k = 0; k < n; k++) {
                    const int rounds = pass == HRA_FORWARD ? m.info.rounds_forward : m.info.rounds_backward;
                    const int ends = run[k].round == 0 || run[k].round == rounds - 1;
                    cr_assert(run[k].head0 >= 0 && run[k].head0 < run[k].head1 && run[k].head1 <= m.s.heads);
                    cr_assert(run[k].owner == r ? ends : run[k].round > 0);
                    for (int64_t q = run[k].query_row0; q < run[k].query_row0 + run[k].query_rows; q++)
                        for (int64_t j = run[k].key_row0; j < run[k].key_row0 + run[k].key_rows; j++)
                            seen[row[r][q] * tokens + row[run[k].owner][j]] += run[k].head1 - run[k].head0;
                }
            }
            for (int64_t q = 0; q < tokens; q++)
                for (int64_t k = 0; k < tokens; k++)
                    cr_assert(seen[q * tokens + k] == m.s.heads ||
                                  (seen[q * tokens + k] == 0 && !hra_mask_allows(m.mask, 0, 0, q, k)),
                              "pair %ld, %ld is in %d runs", (long)q, (long)k, seen[q * tokens + k]);
            for (int r = 0; r < m.s.ranks; r++)
                free(row[r]);
            free(seen);
            end(&m);
        }
}

/* Rows that the tiles of a rank touch of each owner, [ranks]. The caller's to free. */
static int64_t *rows_touched(const struct model *m, int rank)
{
    const struct shape *s = &m->s;
    char *seen = take((size_t)s->tokens);
    int64_t *rows = take((size_t)s->ranks * sizeof(*rows));

    for (int bh = 0; bh < s->batch * s->heads; bh++) {
        int64_t n;
        hra_plan_tile *t = tiles_of(m, rank, bh / s->heads, bh % s->heads, &n);
        for (int64_t i = 0; i < n; i++)
            if (!seen[t[i].key_slot0]++)
                rows[t[i].key_rank] += t[i].key_rows;
        free(t);
    }
    free(seen);
    return rows;
}

/* Shapes in which no gap is short enough to be joined, then some in which there are. */
ParameterizedTestParameters(plan, halo_moves_the_rows_that_tiles_touch)
{
    static struct shape rows[] = {
        {5, 1, 2, 0, 1003, {0}, HRA_SHARD_CONTIGUOUS, "identity", "window(300,0)"},
        {4, 2, 2, 0, 777, {0}, HRA_SHARD_ZIGZAG, "hilbert", "causal"},
        {7, 1, 2, 0, 5, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"},
        {3, 1, 2, 0, 2000, {0}, HRA_SHARD_CONTIGUOUS, "identity", "docs(600,700,700)"},
        {3, 1, 2, 0, 900, {0}, HRA_SHARD_CONTIGUOUS, "identity", "docs(300,300,300)"},
        {17, 1, 2, 0, 600, {0}, HRA_SHARD_AUTO, "snake", "docs(1,299,300) & causal"},
        {4, 2, 2, 1, 3000, {0}, HRA_SHARD_BALANCED, "identity", "heads(0-1: causal; 2: window(9,9))"},
        {4, 2, 2, 0, 2048, {0}, HRA_SHARD_BALANCED, "identity", "batches(0: window(0,99); 1: global(100))"},
        {8, 1, 2, 0, 4096, {64, 64, 0}, HRA_SHARD_AUTO, "hilbert", "grid(5,5)"},
        {6, 1, 2, 0, 4096, {64, 64, 0}, HRA_SHARD_AUTO, "boxes:8x8", "mix(grid(2,9); causal & grid(9,0))"},
        {8, 1, 2, 0, 8192, {0}, HRA_SHARD_BALANCED, "identity", "causal & window(999,0)"},
        {5, 1, 2, 0, 5120, {0}, HRA_SHARD_ZIGZAG, "morton", "blocks(64; 0:79 3 9; 40:1; 79:0 39)"},
    };
    return cr_make_param_array(struct shape, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct shape *s, plan, halo_moves_the_rows_that_tiles_touch)
{
    struct model m = begin_scheduled(s, s->ranks - 1, HRA_SCHEDULE_HALO),
                 ring = begin_scheduled(s, 0, HRA_SCHEDULE_RING);
    const int64_t row_bytes = s->batch * s->heads * (64 + 32) * 4;
    int64_t least = 0, most;

    cr_expect(eq(str, (char *)m.info.schedule, "halo"));
    for (int r = 0; r < s->ranks; r++) {
        int64_t *rows = rows_touched(&m, r);
        for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
            hra_plan_move move[64];
            int64_t n;
            cr_assert(eq(int, hra_plan_moves(m.plan, r, (hra_pass)pass, move, 64, &n), HRA_OK));
            cr_assert(n <= 64);
            for (int o = 0; o < s->ranks; o++) {
                int64_t bytes = 0;
                for (int64_t i = 0; i < n; i++)
                    bytes += !move[i].sends && !move[i].gradient && move[i].peer == o ? move[i].bytes : 0;
                cr_expect(bytes == (o == r ? 0 : rows[o] * row_bytes),
                          "rank %d receives %ld bytes of %d, not %ld", r, (long)bytes, o,
                          (long)(rows[o] * row_bytes));
                least += pass == HRA_FORWARD ? bytes : 0;
            }
        }
        free(rows);
    }
    most = ring.info.bytes_forward;
    cr_expect(m.info.bytes_forward == least && m.info.bytes_least == least && least <= most, "%ld, %ld, %ld",
              (long)least, (long)m.info.bytes_least, (long)most);
    cr_expect(m.info.bytes_backward == m.info.bytes_least_backward && m.info.inflation == 1);
    cr_expect(fabs(ring.info.inflation * 3 * (double)least -
                   (double)(ring.info.bytes_forward + ring.info.bytes_backward)) <= 1e-6 * (double)most);
    cr_expect(m.info.shard == ring.info.shard && m.info.balance == ring.info.balance);
    end(&ring);
    end(&m);
}

/* Of the 25 tiles of rank 0 rank 1 needs all but one, which comes along, or all but two, which would be more than 5 %. */
Test(plan, halo_tells_what_joined_gaps_cost)
{
    for (int without = 1; without <= 2; without++) {
        struct shape s = {2, 1, 2, 0, 6400, {0}, HRA_SHARD_CONTIGUOUS, "identity", "!blocks(128"};
        const int64_t row_bytes = 2 * (64 + 32) * 4;
        for (int i = 25; i < 50; i++) {
            char *end = s.mask + strlen(s.mask);
            snprintf(end, sizeof(s.mask) - (size_t)(end - s.mask), without == 1 ? ";%d:9" : ";%d:9 12", i);
        }
        strcat(s.mask, ")");
        struct model m = begin_scheduled(&s, 0, HRA_SCHEDULE_HALO);
        const int64_t least = (50 - without) * HRA_TILE * row_bytes;
        cr_expect(m.info.bytes_least == least && m.info.bytes_least_backward == 2 * least);
        cr_expect(m.info.bytes_forward == (without == 1 ? 50 * HRA_TILE * row_bytes : least));
        cr_expect(m.info.bytes_backward == 2 * m.info.bytes_forward);
        cr_expect(fabs(m.info.inflation - (without == 1 ? 50.0 / 49 : 1)) < 1e-12, "%g", m.info.inflation);
        end(&m);
    }
}

/* Memory for what arrives, and half as much again for other masks: not for all keys of all ranks. */
Test(plan, halo_takes_memory_for_what_it_needs)
{
    const struct shape s = {
        8, 1, 2, 0, 8192, {0}, HRA_SHARD_CONTIGUOUS, "identity", "causal & window(127,0)"};
    struct model m = begin_scheduled(&s, 3, HRA_SCHEDULE_HALO);
    const size_t tile = 2 * HRA_TILE * (64 + 32) * 4;

    /* K/V that come and that are sent, dK/dV that go back and that come home: one tile each */
    cr_expect(m.info.arena_bytes == 4 * tile * 3 / 2, "%zu bytes", m.info.arena_bytes);
    end(&m);
}

/* Streaming of heads moves the same bytes in more messages. Memory for what arrives of two groups at a time, for all that is
 * sent, and for the dK/dV of one group that come home. */
Test(plan, heads_move_what_the_halo_moves)
{
    static const struct shape shapes[] = {
        {8, 1, 4, 0, 8192, {0}, HRA_SHARD_CONTIGUOUS, "identity", "causal & window(127,0)"},
        {4, 2, 4, 0, 2048, {0}, HRA_SHARD_ZIGZAG, "identity", "causal"},
        {2, 1, 6, 0, 1001, {0}, HRA_SHARD_CONTIGUOUS, "hilbert", "full"},
        {5, 1, 7, 0, 5120, {0}, HRA_SHARD_ZIGZAG, "morton", "blocks(64; 0:79 3 9; 40:1; 79:0 39)"},
        {8, 1, 4, 0, 4096, {64, 64, 0}, HRA_SHARD_AUTO, "boxes:8x8", "grid(5,5)"},
    };

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        const struct shape *s = &shapes[i];
        struct model heads = begin_scheduled(s, s->ranks - 1, HRA_SCHEDULE_HEADS),
                     halo = begin_scheduled(s, s->ranks - 1, HRA_SCHEDULE_HALO);
        const int groups = hra_work_groups(&heads.plan->work);

        cr_expect(eq(str, (char *)heads.info.schedule, "heads"));
        cr_expect(heads.info.bytes_forward == halo.info.bytes_forward &&
                      heads.info.bytes_backward == halo.info.bytes_backward,
                  "%s: %ld and %ld bytes, %ld and %ld", s->mask, (long)heads.info.bytes_forward,
                  (long)heads.info.bytes_backward, (long)halo.info.bytes_forward,
                  (long)halo.info.bytes_backward);
        for (int r = 0; r < s->ranks; r++)
            for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++) {
                int64_t n[2];
                cr_assert(eq(int, hra_plan_moves(heads.plan, r, (hra_pass)pass, NULL, 0, &n[0]), HRA_OK));
                cr_assert(eq(int, hra_plan_moves(halo.plan, r, (hra_pass)pass, NULL, 0, &n[1]), HRA_OK));
                cr_expect(eq(i64, n[0], groups * n[1]));
            }
        end(&halo);
        end(&heads);
    }
    struct model m = begin_scheduled(&shapes[0], 3, HRA_SCHEDULE_HEADS);
    const size_t head = HRA_TILE * (64 + 32) * 4; /* K and V of a tile and head; there are 4 groups of one */
    cr_expect(eq(sz, m.info.arena_bytes, (2 + 4 + 2 + 1) * head * 3 / 2));
    end(&m);
}

/* Does a message of too many parts, or a run, take this part from its buffer? */
static int is_taken_from_buffer(const struct hra_schedule *s, int part, int most)
{
    int taken = 0;

    for (int i = 0; i < s->moves; i++) {
        const struct hra_move *m = &s->move[i];
        taken |= m->payload == HRA_KV && m->sends && m->more >= most && part >= m->part &&
                 part <= m->part + m->more;
    }
    for (int c = 0; c < s->sources; c++)
        taken |= s->source[c].buffer != HRA_OWN && s->source[c].part == part;
    return taken;
}

/* Own K/V go from where the caller has them, in messages of at most so many parts, others' from buffers. Returns how many do the
 * first. */
static int expect_straight(const struct model *m, int rank, hra_pass which, int most)
{
    const struct hra_pass_plan *pass = &m->plan->pass[which];
    const struct hra_schedule *s = &pass->schedule;
    int straight = 0;

    for (int i = 0; i < s->moves; i++) {
        const struct hra_move *move = &s->move[i];
        const int own = move->payload == HRA_KV && move->sends && s->part[move->part].owner == rank;
        const int may = own != 0 ? move->more < most : 0;
        cr_expect(eq(int, pass->straight.move[i], may), "move %d of %d parts", i, move->more + 1);
        straight += pass->straight.move[i];
    }
    for (int l = 0; most > 0 && l < s->loads; l++)
        cr_expect(eq(int, pass->straight.wanted[l], is_taken_from_buffer(s, s->load[l].part, most)),
                  "load %d", l);
    return straight;
}

/* Where the transport can send from the caller's lines, what is our own goes so, up to 16 parts in a message, and only what else
 * wants it is copied; a buffer in which something has arrived since holds it no longer. Each part has lines for each batch, so that
 * there may be fewer of them. */
Test(plan, own_keys_are_sent_from_where_they_are)
{
    static const struct shape shapes[] = {
        {3, 1, 4, 0, 3000, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"},
        {4, 1, 4, 0, 2048, {0}, HRA_SHARD_ZIGZAG, "identity", "causal"},
        {5, 1, 5, 0, 5120, {0}, HRA_SHARD_CONTIGUOUS, "morton", "blocks(64; 0:79 3 9; 40:1; 79:0 39)"},
        {3, 2, 4, 0, 3000, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"},
        {2, 1, 4, 0, 61440, {0}, HRA_SHARD_CONTIGUOUS, "identity", "blocks(128; 0:240 252 264 276)"},
        {2, 4, 2, 0, 61440, {0}, HRA_SHARD_CONTIGUOUS, "identity", "blocks(128; 0:240 252 264 276)"},
        {2, 5, 2, 0, 61440, {0}, HRA_SHARD_CONTIGUOUS, "identity", "blocks(128; 0:240 252 264 276)"},
        {2,
         1,
         4,
         0,
         61440,
         {0},
         HRA_SHARD_CONTIGUOUS,
         "identity",
         "blocks(128; 0:240 252 264 276 288 300 312 324 336 348 360 372 384 396 408 420 432)"},
    };
    int most = 0, least = INT_MAX; /* parts of messages of several parts */

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        for (int schedule = HRA_SCHEDULE_RING; schedule <= HRA_SCHEDULE_HEADS; schedule++)
            for (int lines = 0; lines < 2; lines++) {
                const struct shape *s = &shapes[i];
                struct model m = begin_scheduled(s, 1, (hra_schedule_kind)schedule);
                struct hra_transport transport = *m.comm->transport;
                const hra_problem p = problem_of(s);
                const hra_options options = {
                    .size = sizeof(options), .shard = s->shard, .schedule = (hra_schedule_kind)schedule};
                int straight = 0;

                hra_plan_destroy(m.plan);
                transport.sends_lines = lines;
                m.comm->transport = &transport;
                cr_assert(eq(int, hra_plan_create(&m.plan, m.comm, &p, m.order, m.mask, &options), HRA_OK));
                for (int pass = HRA_FORWARD; pass <= HRA_BACKWARD; pass++)
                    straight += expect_straight(&m, 1, (hra_pass)pass, lines ? 16 / s->batch : 0);
                const int as_told = schedule != HRA_SCHEDULE_RING || (straight > 0) == lines;
                cr_expect(as_told, "%s: %d straight", s->mask, straight);
                for (int n = 0; n < m.plan->pass[HRA_FORWARD].schedule.moves; n++) {
                    const int more = m.plan->pass[HRA_FORWARD].schedule.move[n].more;
                    most = more > most ? more : most;
                    least = more > 0 && more < least ? more : least;
                }
                end(&m);
            }
    cr_expect(most >= 16 && least < 16, "messages have up to %d parts, and as few as %d", most + 1,
              least + 1);
}

/* Two parts in one message, into buffers of which the first is made larger by another part. */
static hra_status write_holes(struct hra_schedule *s, const struct hra_work *work, int rank, hra_pass pass)
{
    const int first = work->rank_tile[1 - rank], own = work->rank_tile[rank];

    (void)pass;
    HRA_TRY(hra_schedule_part(s, (struct hra_part){1 - rank, first, first + 1, 0, work->heads_kv}));
    HRA_TRY(hra_schedule_part(s, (struct hra_part){1 - rank, first + 1, first + 2, 0, work->heads_kv}));
    HRA_TRY(hra_schedule_part(s, (struct hra_part){1 - rank, first, first + 2, 0, work->heads_kv}));
    HRA_TRY(hra_schedule_part(s, (struct hra_part){rank, own, work->rank_tile[rank + 1], 0, work->heads_kv}));
    HRA_TRY(hra_schedule_round(s));
    HRA_TRY(hra_schedule_move(s, (struct hra_move){.peer = 1 - rank, .more = 1}));
    HRA_TRY(hra_schedule_run(s, 0, work->rank_tile[rank + 1] - own));
    HRA_TRY(hra_schedule_source(s, (struct hra_source){3, HRA_OWN, HRA_OWN, 0}));
    HRA_TRY(hra_schedule_round(s));
    return hra_schedule_move(s, (struct hra_move){.part = 2, .peer = 1 - rank});
}

Test(plan, refuses_messages_with_holes)
{
    const struct shape s = {2, 1, 1, 0, 1024, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"};
    struct model m = begin(&s, 0);
    const hra_problem p = problem_of(&s);
    const hra_options options = {.size = sizeof(options), .shard = s.shard};
    hra_plan *plan = NULL;

    cr_expect(eq(int, hra_plan_create_with(&plan, m.comm, &p, m.order, m.mask, &options, write_holes),
                 HRA_ERR_ARG));
    cr_expect(
        eq(str, (char *)hra_last_error(), "schedule: move 0: buffer 0 is larger than part 0 of a message"));
    cr_expect(plan == NULL);
    end(&m);
}

/* A full mask brings every rank all rows but its own: no ring does better. */
Test(plan, bytes_of_the_full_mask_are_exact)
{
    for (int ranks = 1; ranks <= 6; ranks++) {
        const struct shape s = {ranks, 2, 3, 0, 1000, {0}, HRA_SHARD_CONTIGUOUS, "identity", "full"};
        struct model m = begin(&s, 0);
        const int64_t bytes = (ranks - 1) * s.tokens * s.batch * s.heads * (64 + 32) * 4;

        cr_expect(m.info.bytes_forward == bytes, "%d ranks: %ld bytes, not %ld", ranks,
                  (long)m.info.bytes_forward, (long)bytes);
        cr_expect(m.info.bytes_least == bytes && m.info.bytes_backward == 2 * bytes &&
                  m.info.bytes_least_backward == 2 * bytes);
        end(&m);
    }
}

Test(plan, zigzag_balances_causal_masks)
{
    struct shape s = {4, 1, 1, 0, 4096, {0}, HRA_SHARD_CONTIGUOUS, "identity", "causal"};
    struct model even, uneven = begin(&s, 0);

    s.shard = HRA_SHARD_ZIGZAG;
    even = begin(&s, 0);
    cr_expect(uneven.info.balance > 1.5 && even.info.balance < 1.05, "balance %g and %g", uneven.info.balance,
              even.info.balance);
    cr_expect(uneven.info.shard == HRA_SHARD_CONTIGUOUS && even.info.shard == HRA_SHARD_ZIGZAG);
    end(&even);
    end(&uneven);

    s.shard = HRA_SHARD_AUTO;
    even = begin(&s, 0);
    cr_expect(eq(int, even.info.shard, HRA_SHARD_ZIGZAG));
    end(&even);
    strcpy(s.mask, "full");
    even = begin(&s, 0);
    cr_expect(eq(int, even.info.shard, HRA_SHARD_CONTIGUOUS));
    cr_expect(even.info.balance == 1);
    end(&even);
}

/* A mask, and what HRA_SHARD_AUTO makes of it; HRA_SHARD_AUTO: what its rule says, whatever that is. */
struct choice {
    struct shape s;
    hra_shard shard;
};

ParameterizedTestParameters(plan, auto_follows_its_rule)
{
    static struct choice rows[] = {
        {{8, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "full"}, HRA_SHARD_CONTIGUOUS},
        {{8, 1, 2, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "window(400,400)"}, HRA_SHARD_CONTIGUOUS},
        {{4, 1, 1, 0, 4096, {0}, HRA_SHARD_AUTO, "identity", "causal"}, HRA_SHARD_ZIGZAG},
        {{8, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "causal & window(4095,0)"}, HRA_SHARD_AUTO},
        {{8, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "causal & window(1023,0)"}, HRA_SHARD_AUTO},
        {{4, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "causal | window(0,1000)"}, HRA_SHARD_AUTO},
        {{8, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "causal | window(0,1000)"}, HRA_SHARD_AUTO},
        {{4, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "causal & docs(4096,2048,1024,512,512)"},
         HRA_SHARD_AUTO},
        {{4, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "docs(1024,1024,1024,1024,1024,1024,1024,1024)"},
         HRA_SHARD_CONTIGUOUS},
        {{4, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "docs(3072,128,128,128,640,4096)"},
         HRA_SHARD_AUTO},
        {{4, 1, 1, 0, 8192, {0}, HRA_SHARD_AUTO, "identity", "global(1024)"}, HRA_SHARD_AUTO},
        {{4, 1, 1, 0, 16384, {128, 128, 0}, HRA_SHARD_AUTO, "hilbert", "grid(4,4)"}, HRA_SHARD_CONTIGUOUS},
        {{4, 1, 1, 0, 16384, {128, 128, 0}, HRA_SHARD_AUTO, "boxes:8x16", "grid(8,8)"}, HRA_SHARD_AUTO},
    };
    return cr_make_param_array(struct choice, rows, sizeof(rows) / sizeof(rows[0]));
}

static struct model begin_with(struct shape s, hra_shard shard, int rank)
{
    s.shard = shard;
    return begin(&s, rank);
}

static int by_number(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* What docs/design.md says that a rank has to do, in FLOP: its live tiles, forward and backward, and 20 FLOP for each byte
 * of K/V that it needs of others and of dK/dV that go back. */
static double cost_of_rank(const struct model *m, int rank)
{
    const hra_problem problem = problem_of(&m->s), *p = &problem;
    const double bytes =
        (double)p->batch * p->heads * (p->dim + p->dim_v) *
        (2.0 * (double)hra_type_bytes(p->type) + (double)hra_type_bytes(hra_type_sums(p->type)));
    int64_t *first = NULL, tiles = 0, keys = 0, rows = 0;

    for (int n = 0; n < p->batch * p->heads; n++) {
        int64_t count;
        cr_assert(hra_plan_tiles(m->plan, rank, n / p->heads, n % p->heads, NULL, 0, &count) == HRA_OK);
        hra_plan_tile *tile = calloc((size_t)count + 1, sizeof(*tile));
        cr_assert(hra_plan_tiles(m->plan, rank, n / p->heads, n % p->heads, tile, count, &count) == HRA_OK);
        first = realloc(first, (size_t)(keys + count + 1) * sizeof(*first));
        for (int64_t i = 0; i < count; i++)
            if (tile[i].key_rank != rank)
                first[keys++] = tile[i].key_slot0 * 256 + tile[i].key_rows;
        tiles += count;
        free(tile);
    }
    qsort(first, (size_t)keys, sizeof(*first), by_number);
    for (int64_t i = 0; i < keys; i++)
        rows += i == 0 || first[i] != first[i - 1] ? first[i] % 256 : 0;
    free(first);
    return (double)tiles * HRA_TILE * HRA_TILE * (8.0 * p->dim + 6.0 * p->dim_v) + 20 * bytes * (double)rows;
}

/* Contiguous if that is even to 3 %; else the one whose busiest rank has least to do. Pieces end where tiles do, so that
 * every shard has the same tiles. */
ParameterizedTest(struct choice *c, plan, auto_follows_its_rule)
{
    const double near = 1 + 1e-12;
    hra_plan_info info[HRA_SHARD_BALANCED + 1], *chosen;
    double cost[HRA_SHARD_BALANCED + 1] = {0}, least = INFINITY;

    for (int shard = HRA_SHARD_AUTO; shard <= HRA_SHARD_BALANCED; shard++) {
        struct model m = begin_with(c->s, (hra_shard)shard, 0);
        info[shard] = m.info;
        for (int r = 0; r < c->s.ranks; r++)
            cost[shard] = fmax(cost[shard], cost_of_rank(&m, r));
        least = fmin(least, cost[shard]);
        end(&m);
    }
    chosen = &info[info[HRA_SHARD_AUTO].shard];
    cr_expect(c->shard == HRA_SHARD_AUTO || chosen->shard == c->shard, "shard %d, not %d", (int)chosen->shard,
              (int)c->shard);
    if (info[HRA_SHARD_CONTIGUOUS].balance <= 1.03 * near)
        cr_expect(eq(int, chosen->shard, HRA_SHARD_CONTIGUOUS));
    else
        cr_expect(cost[chosen->shard] <= near * least, "%s: shard %d: %g FLOP, the least %g", c->s.mask,
                  (int)chosen->shard, cost[chosen->shard], least);
    cr_expect(info[HRA_SHARD_AUTO].balance == chosen->balance &&
              info[HRA_SHARD_AUTO].pieces == chosen->pieces);

    for (int rank = 1; rank < c->s.ranks; rank++) {
        struct model m = begin_with(c->s, HRA_SHARD_AUTO, rank);
        cr_expect(m.info.shard == chosen->shard && m.info.balance == chosen->balance &&
                      m.info.pieces == chosen->pieces,
                  "rank %d chooses shard %d, rank 0 %d", rank, (int)m.info.shard, (int)chosen->shard);
        end(&m);
    }
}

/* Each of 8 ranks keeps about an eighth of the tiles that one rank keeps, and where the lists of each key tile begin. */
Test(plan, ranks_share_the_memory_of_tiles)
{
    const struct shape s = {
        8, 1, 1, 0, 262144, {0}, HRA_SHARD_CONTIGUOUS, "identity", "causal & window(4095,0)"};
    struct shape one = s;

    one.ranks = 1;
    struct model whole = begin(&one, 0);
    const double share = (double)whole.info.plan_bytes / s.ranks;
    const double keys = (double)(s.tokens / HRA_TILE + 1) * sizeof(int64_t);
    cr_expect(whole.info.tiles_full == 31 * 2016 + 31 * 32 / 2 && whole.info.bitmaps == 2);
    end(&whole);
    for (int rank = 0; rank < s.ranks; rank++) {
        struct model m = begin(&s, rank);
        cr_expect(m.info.plan_bytes <= 1.5 * share + keys, "rank %d: %zu bytes, an eighth is %.0f", rank,
                  m.info.plan_bytes, share);
        end(&m);
    }
}

Test(plan, memory_does_not_grow_with_ranks)
{
    size_t first = 0;

    for (int ranks = 4; ranks <= 16; ranks *= 2)
        for (int rank = 0; rank < ranks; rank += ranks - 1) {
            const struct shape s = {ranks,      1,     2, 0, 300 * ranks, {0}, HRA_SHARD_CONTIGUOUS,
                                    "identity", "full"};
            struct model m = begin(&s, rank);
            first = first == 0 ? m.info.arena_bytes : first;
            cr_expect(m.info.arena_bytes == first && first > 0, "%d ranks: %zu bytes, 4 ranks: %zu", ranks,
                      m.info.arena_bytes, first);
            end(&m);
        }
}

/* All ranks know the same about the whole problem. */
Test(plan, info_is_the_same_from_every_rank)
{
    static const struct shape shapes[] = {
        {5, 2, 2, 0, 1003, {0}, HRA_SHARD_AUTO, "hilbert", "causal & window(400,0)"},
        {4, 2, 3, 1, 611, {0}, HRA_SHARD_BALANCED, "snake", "mix(causal; slots(dilated(99,2,head,both)))"},
    };

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        struct model first = begin(&shapes[i], 0);
        for (int rank = 1; rank < shapes[i].ranks; rank++) {
            struct model m = begin(&shapes[i], rank);
            const hra_plan_info *a = &first.info, *b = &m.info;
            cr_expect(a->pairs_live == b->pairs_live && a->pairs_counted == b->pairs_counted &&
                      a->pairs_in_tiles == b->pairs_in_tiles && a->tiles_full == b->tiles_full &&
                      a->tiles_partial == b->tiles_partial && a->patterns == b->patterns);
            cr_expect(a->bytes_forward == b->bytes_forward && a->bytes_backward == b->bytes_backward &&
                      a->bytes_least == b->bytes_least && a->bytes_least_backward == b->bytes_least_backward);
            cr_expect(a->balance == b->balance && a->balance_bound == b->balance_bound &&
                      a->pieces == b->pieces && a->shard == b->shard);
            end(&m);
        }
        end(&first);
    }
}

/* ---- Wrong use -------------------------------------------------------------------------------- */

/* 300 tokens, batch 2, 4 heads: right but for what a test changes. */
struct args {
    hra_comm *comm;
    hra_domain domain;
    hra_problem problem;
    hra_options options;
    hra_order *order;
    hra_mask *mask;
};

static struct args right(void)
{
    const struct shape s = {1, 2, 4, 0, 300, {0}, HRA_SHARD_AUTO, "hilbert", "causal"};
    struct args a = {.domain = HRA_DOMAIN_INIT, .problem = problem_of(&s), .options = HRA_OPTIONS_INIT};

    a.domain.batch = 2;
    a.domain.heads = 4;
    a.domain.tokens = 300;
    cr_assert(eq(int, hra_comm_create_self(&a.comm), HRA_OK));
    cr_assert(eq(int, hra_order_create(&a.order, &a.domain, "hilbert"), HRA_OK));
    cr_assert(eq(int, hra_mask_causal(&a.mask, &a.domain), HRA_OK));
    return a;
}

static void done(struct args *a)
{
    hra_order_destroy(a->order);
    hra_mask_destroy(a->mask);
    cr_expect(eq(int, hra_comm_destroy(a->comm), HRA_OK), "a plan lives on: %s", hra_last_error());
}

static void expect_error(hra_status got, hra_status status, const char *says)
{
    cr_expect(eq(int, got, status), "%s, not %s: %s", hra_status_name(got), hra_status_name(status), says);
    cr_expect(strstr(hra_last_error(), says) != NULL, "'%s' does not say '%s'", hra_last_error(), says);
}

/* hra_plan_create fails and leaves out alone. */
static void expect_refused(const struct args *a, const void *problem, const void *options, hra_status status,
                           const char *says)
{
    char somewhere;
    hra_plan *plan = (hra_plan *)(void *)&somewhere;

    expect_error(hra_plan_create(&plan, a->comm, problem, a->order, a->mask, options), status, says);
    cr_expect(plan == (hra_plan *)(void *)&somewhere, "out was written: %s", says);
}

static void expect_accepted(const struct args *a, const void *problem, const void *options)
{
    hra_plan *plan = NULL;

    cr_expect(eq(int, hra_plan_create(&plan, a->comm, problem, a->order, a->mask, options), HRA_OK), "%s",
              hra_last_error());
    hra_plan_destroy(plan);
}

enum kind { INT, INT64, REAL, SIZE };

static void set(void *at, enum kind kind, double value)
{
    if (kind == INT)
        *(int *)at = (int)value;
    else if (kind == INT64)
        *(int64_t *)at = (int64_t)value;
    else if (kind == SIZE)
        *(size_t *)at = (size_t)value;
    else
        *(double *)at = value;
}

#define FIELD(name) offsetof(hra_problem, name)

Test(plan, refuses_wrong_problems)
{
    static const struct {
        size_t field;
        enum kind kind;
        double value;
        hra_status status;
        const char *says;
    } rows[] = {
        {FIELD(size), SIZE, 0, HRA_ERR_ARG, "problem.size is 0; it must be sizeof the struct"},
        {FIELD(size), SIZE, 7, HRA_ERR_ARG, "problem.size is 7"},
        {FIELD(batch), INT, -1, HRA_ERR_ARG, "problem.batch is -1; it must be 1 to "},
        {FIELD(batch), INT, 1 << 21, HRA_ERR_ARG, "problem.batch is 2097152"},
        {FIELD(heads), INT, 0, HRA_ERR_ARG, "problem.heads is 0"},
        {FIELD(heads), INT, -3, HRA_ERR_ARG, "problem.heads is -3"},
        {FIELD(heads_kv), INT, -1, HRA_ERR_ARG, "problem.heads_kv is -1"},
        {FIELD(heads_kv), INT, 3, HRA_ERR_ARG,
         "problem.heads is 4, which problem.heads_kv, 3, does not divide"},
        {FIELD(heads_kv), INT, 8, HRA_ERR_ARG,
         "problem.heads is 4, which problem.heads_kv, 8, does not divide"},
        {FIELD(head0), INT, -1, HRA_ERR_ARG, "problem.head0 is -1"},
        {FIELD(head0), INT, 1, HRA_ERR_ARG,
         "the mask is for batch 2, 4 heads, 300 tokens; the problem has batch 2, "
         "heads 1 to 4, 300 tokens"},
        {FIELD(dim), INT, 0, HRA_ERR_ARG, "problem.dim is 0; it must be 1 to 256"},
        {FIELD(dim), INT, 257, HRA_ERR_ARG, "problem.dim is 257"},
        {FIELD(dim_v), INT, -1, HRA_ERR_ARG, "problem.dim_v is -1"},
        {FIELD(dim_v), INT, 257, HRA_ERR_ARG, "problem.dim_v is 257"},
        {FIELD(tokens), INT64, 0, HRA_ERR_ARG, "problem.tokens is 0"},
        {FIELD(tokens), INT64, -300, HRA_ERR_ARG, "problem.tokens is -300"},
        {FIELD(tokens), INT64, 0x1p40, HRA_ERR_ARG, "problem.tokens is 1099511627776"},
        {FIELD(tokens), INT64, 0x1p36, HRA_ERR_ARG, "the mask is for batch 2, 4 heads, 300 tokens"},
        {FIELD(tokens), INT64, 299, HRA_ERR_ARG, "heads 0 to 3, 299 tokens"},
        {FIELD(batch), INT, 1, HRA_ERR_ARG, "the problem has batch 1"},
        {FIELD(heads), INT, 5, HRA_ERR_ARG, "heads 0 to 4, 300 tokens"},
        {FIELD(type), INT, 0, HRA_ERR_ARG, "problem.type is 0; it must be HRA_F64 to HRA_F16"},
        {FIELD(type), INT, 5, HRA_ERR_ARG, "problem.type is 5"},
        {FIELD(scale), REAL, INFINITY, HRA_ERR_ARG, "problem.scale is inf; it must be finite"},
        {FIELD(scale), REAL, NAN, HRA_ERR_ARG, "problem.scale is nan"},
        {FIELD(threads), INT, -1, HRA_ERR_ARG, "problem.threads is -1"},
        {FIELD(threads), INT, 5000, HRA_ERR_ARG, "problem.threads is 5000"},
        {FIELD(tokens_kv), INT64, 301, HRA_ERR_UNSUPPORTED, "problem.tokens_kv is 301 and tokens 300"},
        {FIELD(softcap), REAL, 30, HRA_ERR_UNSUPPORTED, "problem.softcap is 30"},
        {FIELD(softcap), REAL, NAN, HRA_ERR_UNSUPPORTED, "problem.softcap is nan"},
        {FIELD(dropout), REAL, 0.1, HRA_ERR_UNSUPPORTED, "problem.dropout is 0.1"},
        {FIELD(sinks), INT, 4, HRA_ERR_UNSUPPORTED, "problem.sinks is 4"},
        {FIELD(sm_margin), INT, 8, HRA_ERR_UNSUPPORTED, "problem.sm_margin is 8"},
        {FIELD(sm_margin), INT, -1, HRA_ERR_ARG, "problem.sm_margin is -1"},
    };
    struct args a = right();

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        hra_problem p = a.problem;
        set((char *)&p + rows[i].field, rows[i].kind, rows[i].value);
        expect_refused(&a, &p, &a.options, rows[i].status, rows[i].says);
    }
    hra_problem huge = a.problem;
    huge.batch = huge.heads = 1 << 20;
    huge.tokens = INT64_C(1) << 36;
    expect_refused(&a, &huge, NULL, HRA_ERR_ARG, "tokens 68719476736 is more than memory can hold");
    expect_accepted(&a, &a.problem, &a.options);
    done(&a);
}

Test(plan, refuses_wrong_options)
{
    static const struct {
        size_t field;
        enum kind kind;
        double value;
        const char *says;
    } rows[] = {
        {offsetof(hra_options, size), SIZE, 0, "options.size is 0"},
        {offsetof(hra_options, shard), INT, 4, "options.shard is 4, which is no hra_shard"},
        {offsetof(hra_options, shard), INT, -1, "options.shard is -1"},
        {offsetof(hra_options, schedule), INT, 4, "options.schedule is 4, which is no hra_schedule_kind"},
        {offsetof(hra_options, schedule), INT, -5, "options.schedule is -5"},
        {offsetof(hra_options, backend), INT, 5, "options.backend is 5, which is no hra_backend_kind"},
        {offsetof(hra_options, backend), INT, -1, "options.backend is -1"},
        {offsetof(hra_options, backward), INT, 3, "options.backward is 3, which is no hra_backward_kind"},
        {offsetof(hra_options, backward), INT, -1, "options.backward is -1"},
        {offsetof(hra_options, saved), INT, 2, "options.saved is 2, which is no hra_saved_kind"},
        {offsetof(hra_options, saved), INT, -1, "options.saved is -1"},
        {offsetof(hra_options, rows), INT, 2, "options.rows is 2, which is no hra_rows_kind"},
        {offsetof(hra_options, rows), INT, -1, "options.rows is -1"},
    };
    struct args a = right();
    hra_options lacking = a.options;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        hra_options o = a.options;
        set((char *)&o + rows[i].field, rows[i].kind, rows[i].value);
        expect_refused(&a, &a.problem, &o, HRA_ERR_ARG, rows[i].says);
    }
    lacking.backward = HRA_BACKWARD_FUSED;
    expect_refused(&a, &a.problem, &lacking, HRA_ERR_UNSUPPORTED,
                   "options.backward is fused; the cpu backend");
    lacking.backward = HRA_BACKWARD_CUBLAS;
    expect_refused(&a, &a.problem, &lacking, HRA_ERR_UNSUPPORTED,
                   "options.backward is cublas; the cpu backend");
    lacking.backward = HRA_BACKWARD_AUTO;
    lacking.saved = HRA_SAVED_QKV;
    expect_refused(&a, &a.problem, &lacking, HRA_ERR_UNSUPPORTED, "options.saved is qkv; the cpu backend");
    const hra_machine machine = {.size = sizeof(machine), .inside.rate = -1};
    lacking = a.options;
    lacking.machine = &machine;
    expect_refused(&a, &a.problem, &lacking, HRA_ERR_ARG, "machine.inside.rate is -1");
    hra_problem one = a.problem;
    one.heads_kv = 1;
    lacking = a.options;
    lacking.schedule = HRA_SCHEDULE_HEADS;
    expect_refused(&a, &one, &lacking, HRA_ERR_UNSUPPORTED,
                   "options.schedule is heads, which wants 2 K/V heads");
    expect_accepted(&a, &a.problem, NULL);
    done(&a);
}

Test(plan, rows_by_token_want_one_rank)
{
    struct args a = right();
    hra_comm *two = NULL;
    hra_plan *plan = NULL;
    hra_options o = a.options;

    o.rows = HRA_ROWS_TOKENS;
    cr_assert(eq(int, hra_comm_create_model(&two, 0, 2), HRA_OK));
    cr_expect(eq(int, hra_plan_create(&plan, two, &a.problem, a.order, a.mask, &o), HRA_ERR_UNSUPPORTED));
    cr_expect(strstr(hra_last_error(), "options.rows is tokens, which needs one rank") != NULL, "%s",
              hra_last_error());
    cr_expect(eq(int, hra_comm_destroy(two), HRA_OK));
    expect_accepted(&a, &a.problem, &o);
    done(&a);
}

/* A caller compiled against a newer or an older header. */
Test(plan, reads_structs_of_other_sizes)
{
    struct args a = right();
    struct {
        hra_problem known;
        unsigned char more[24];
    } newer = {.known = a.problem};
    hra_problem older = a.problem;
    struct {
        hra_plan_info known;
        char more[8];
    } larger;
    hra_plan_info info;
    hra_plan *plan = NULL;

    newer.known.size = sizeof(newer);
    expect_accepted(&a, &newer, NULL); /* zeros mean nothing */
    newer.more[9] = 1;
    expect_refused(&a, &newer, NULL, HRA_ERR_UNSUPPORTED, "problem has a field at byte ");

    older.size = offsetof(hra_problem, scale);
    older.scale = NAN; /* not the caller's to know: all of this is ignored */
    older.dropout = older.softcap = 1;
    older.threads = -7;
    cr_assert(eq(int, hra_plan_create(&plan, a.comm, &older, a.order, a.mask, NULL), HRA_OK), "%s",
              hra_last_error());

    memset(&info, 0x5a, sizeof(info));
    info.size = offsetof(hra_plan_info, saved_bytes);
    cr_assert(eq(int, hra_plan_get_info(plan, &info), HRA_OK));
    cr_expect(info.size == offsetof(hra_plan_info, saved_bytes) && info.workspace_bytes > 0);
    const unsigned char *byte = (const unsigned char *)&info;
    for (size_t i = info.size; i < sizeof(info); i++)
        cr_assert(byte[i] == 0x5a, "byte %zu beyond info.size was written", i);
    memset(&larger, 0x5a, sizeof(larger));
    larger.known.size = sizeof(larger);
    cr_assert(eq(int, hra_plan_get_info(plan, &larger.known), HRA_OK));
    cr_expect(larger.known.threads >= 1 && larger.more[0] == 0x5a);
    hra_plan_destroy(plan);
    done(&a);
}

Test(plan, refuses_wrong_arguments)
{
    struct args a = right();
    hra_plan *plan = NULL;
    hra_domain other = a.domain;
    hra_order *short_order = NULL;
    hra_mask *wrong = NULL;

    expect_error(hra_plan_create(NULL, a.comm, &a.problem, a.order, a.mask, NULL), HRA_ERR_ARG,
                 "hra_plan_create: out is NULL");
    expect_error(hra_plan_create(&plan, NULL, &a.problem, a.order, a.mask, NULL), HRA_ERR_ARG,
                 "hra_plan_create: comm is NULL");
    expect_error(hra_plan_create(&plan, a.comm, NULL, a.order, a.mask, NULL), HRA_ERR_ARG,
                 "hra_plan_create: problem is NULL");
    expect_error(hra_plan_create(&plan, a.comm, &a.problem, a.order, NULL, NULL), HRA_ERR_ARG,
                 "hra_plan_create: mask is NULL");

    other.tokens = 299;
    cr_assert(eq(int, hra_order_create(&short_order, &other, "snake"), HRA_OK));
    cr_assert(eq(int, hra_mask_full(&wrong, &other), HRA_OK));
    expect_error(hra_plan_create(&plan, a.comm, &a.problem, short_order, a.mask, NULL), HRA_ERR_ARG,
                 "the order is for 299 tokens, the problem has 300");
    expect_error(hra_plan_create(&plan, a.comm, &a.problem, a.order, wrong, NULL), HRA_ERR_ARG,
                 "the mask is for batch 2, 4 heads, 299 tokens");
    hra_order_destroy(short_order);
    hra_mask_destroy(wrong);
    other = a.domain;
    other.batch = 3;
    cr_assert(eq(int, hra_mask_full(&wrong, &other), HRA_OK));
    expect_error(hra_plan_create(&plan, a.comm, &a.problem, a.order, wrong, NULL), HRA_ERR_ARG,
                 "the mask is for batch 3, 4 heads, 300 tokens; the problem has batch 2");
    hra_mask_destroy(wrong);
    other.batch = 2;
    other.heads = 3;
    cr_assert(eq(int, hra_mask_full(&wrong, &other), HRA_OK));
    expect_error(hra_plan_create(&plan, a.comm, &a.problem, a.order, wrong, NULL), HRA_ERR_ARG,
                 "the mask is for batch 2, 3 heads");
    hra_mask_destroy(wrong);
    cr_expect(plan == NULL);

    cr_assert(eq(int, hra_plan_create(&plan, a.comm, &a.problem, NULL, a.mask, NULL), HRA_OK)); /* identity */
    int64_t token[300];
    cr_assert(eq(int, hra_plan_row_index(plan, 0, NULL, token), HRA_OK));
    cr_expect(token[1] == 1 && token[299] == 299);
    hra_plan_destroy(plan);
    done(&a);
}

Test(plan, refuses_wrong_communicators)
{
    hra_comm *comm = NULL;

    expect_error(hra_comm_create_self(NULL), HRA_ERR_ARG, "hra_comm_create_self: out is NULL");
    expect_error(hra_comm_create_model(NULL, 0, 1), HRA_ERR_ARG, "hra_comm_create_model: out is NULL");
    expect_error(hra_comm_create_model(&comm, -1, 4), HRA_ERR_ARG, "hra_comm_create_model: rank -1 of 4");
    expect_error(hra_comm_create_model(&comm, 4, 4), HRA_ERR_ARG, "rank 4 of 4");
    expect_error(hra_comm_create_model(&comm, 0, 0), HRA_ERR_ARG, "rank 0 of 0");
    expect_error(hra_comm_create_model(&comm, 0, -2), HRA_ERR_ARG, "rank 0 of -2");
    expect_error(hra_comm_get_status(NULL), HRA_ERR_ARG, "comm is NULL");
    cr_expect(comm == NULL);
    cr_assert(eq(int, hra_comm_create_model(&comm, 2, 5), HRA_OK));
    cr_expect(hra_comm_rank(comm) == 2 && hra_comm_ranks(comm) == 5);
    cr_expect(eq(int, hra_comm_get_status(comm), HRA_OK));
    cr_expect(eq(int, hra_comm_destroy(comm), HRA_OK));
}

Test(plan, refuses_wrong_queries)
{
    const struct shape s = {4, 2, 3, 0, 300, {0}, HRA_SHARD_AUTO, "identity", "causal"};
    struct model m = begin(&s, 1);
    hra_plan_info info = {.size = 0};
    hra_plan_tile tile;
    hra_plan_move move;
    const hra_piece *piece = NULL;
    int64_t n = -5, slot[300];
    int pieces = -5;

    expect_error(hra_plan_get_info(m.plan, &info), HRA_ERR_ARG, "hra_plan_get_info: info.size is not set");
    expect_error(hra_plan_get_info(m.plan, NULL), HRA_ERR_ARG, "info is NULL");
    expect_error(hra_plan_get_info(NULL, &m.info), HRA_ERR_ARG, "plan is NULL");
    cr_expect(hra_plan_rows(NULL, 0) == -1);
    expect_error(hra_plan_row_index(NULL, 0, slot, NULL), HRA_ERR_ARG, "hra_plan_row_index: plan is NULL");
    expect_error(hra_plan_row_index(m.plan, 4, slot, NULL), HRA_ERR_ARG, "hra_plan_row_index: rank 4 of 4");
    expect_error(hra_plan_row_index(m.plan, -1, slot, NULL), HRA_ERR_ARG, "rank -1 of 4");
    expect_error(hra_plan_pieces(NULL, &piece, &pieces), HRA_ERR_ARG, "hra_plan_pieces: plan (nil)");
    expect_error(hra_plan_pieces(m.plan, NULL, &pieces), HRA_ERR_ARG, "out (nil)");
    expect_error(hra_plan_pieces(m.plan, &piece, NULL), HRA_ERR_ARG, "count (nil)");
    expect_error(hra_plan_tiles(NULL, 0, 0, 0, &tile, 1, &n), HRA_ERR_ARG, "hra_plan_tiles: plan is NULL");
    expect_error(hra_plan_tiles(m.plan, 4, 0, 0, &tile, 1, &n), HRA_ERR_ARG, "hra_plan_tiles: rank 4 of 4");
    expect_error(hra_plan_tiles(m.plan, 0, 2, 0, &tile, 1, &n), HRA_ERR_ARG, "batch 2 of 2, head 0 of 3");
    expect_error(hra_plan_tiles(m.plan, 0, 0, 3, &tile, 1, &n), HRA_ERR_ARG, "batch 0 of 2, head 3 of 3");
    expect_error(hra_plan_tiles(m.plan, 0, -1, 0, &tile, 1, &n), HRA_ERR_ARG, "batch -1 of 2");
    expect_error(hra_plan_tiles(m.plan, 0, 0, -1, &tile, 1, &n), HRA_ERR_ARG, "head -1 of 3");
    expect_error(hra_plan_tiles(m.plan, 0, 0, 0, NULL, 1, &n), HRA_ERR_ARG, "out (nil), capacity 1");
    expect_error(hra_plan_tiles(m.plan, 0, 0, 0, &tile, -1, &n), HRA_ERR_ARG, "capacity -1");
    expect_error(hra_plan_tiles(m.plan, 0, 0, 0, &tile, 1, NULL), HRA_ERR_ARG, "count (nil)");
    expect_error(hra_plan_moves(NULL, 0, HRA_FORWARD, &move, 1, &n), HRA_ERR_ARG,
                 "hra_plan_moves: plan is NULL");
    expect_error(hra_plan_moves(m.plan, -1, HRA_FORWARD, &move, 1, &n), HRA_ERR_ARG, "rank -1 of 4");
    expect_error(hra_plan_moves(m.plan, 0, (hra_pass)2, &move, 1, &n), HRA_ERR_ARG, "hra_plan_moves: pass 2");
    expect_error(hra_plan_moves(m.plan, 0, HRA_FORWARD, NULL, 1, &n), HRA_ERR_ARG, "out (nil), capacity 1");
    expect_error(hra_plan_moves(m.plan, 0, HRA_FORWARD, &move, -2, &n), HRA_ERR_ARG, "capacity -2");
    expect_error(hra_plan_moves(m.plan, 0, HRA_FORWARD, &move, 1, NULL), HRA_ERR_ARG, "count (nil)");
    expect_error(hra_plan_runs(m.plan, 4, HRA_FORWARD, NULL, 0, &n), HRA_ERR_ARG,
                 "hra_plan_runs: rank 4 of 4");
    cr_expect(n == -5 && pieces == -5 && piece == NULL);
    end(&m);
}

Test(plan, models_do_not_compute)
{
    const struct shape s = {4, 1, 1, 0, 300, {0}, HRA_SHARD_AUTO, "identity", "causal"};
    struct model m = begin(&s, 1);
    static float numbers[300];
    const hra_tensor t = {numbers, 300, 1, 1};

    expect_error(hra_forward(m.plan, &t, &t, &t, &t, NULL, NULL, NULL, NULL), HRA_ERR_STATE,
                 "hra_forward: the plan was made on a model of 4 ranks");
    expect_error(hra_backward(m.plan, &t, &t, &t, &t, numbers, &t, NULL, &t, &t, &t, NULL, NULL, NULL),
                 HRA_ERR_STATE, "hra_backward: the plan was made on a model of 4 ranks");
    expect_error(hra_reorder(m.plan, HRA_GATHER, HRA_F32, 1, 1, &t, &t, NULL), HRA_ERR_STATE,
                 "hra_reorder: the plan was made on a model of 4 ranks");
    end(&m);
}

/* ---- Who outlives whom ------------------------------------------------------------------------ */

Test(plan, communicators_outlive_their_plans)
{
    struct args a = right();
    hra_plan *first = NULL, *second = NULL;
    hra_problem small = a.problem;

    small.heads = small.heads_kv = 1;
    cr_assert(eq(int, hra_plan_create(&first, a.comm, &small, a.order, a.mask, NULL), HRA_OK));
    cr_assert(eq(int, hra_plan_create(&second, a.comm, &a.problem, a.order, a.mask, NULL), HRA_OK));
    expect_error(hra_comm_destroy(a.comm), HRA_ERR_STATE,
                 "the communicator cannot be destroyed while 2 of its plans live");
    cr_expect(eq(int, hra_comm_get_status(a.comm), HRA_OK)); /* refused, not broken */
    hra_plan_destroy(first);
    expect_error(hra_comm_destroy(a.comm), HRA_ERR_STATE, "while 1 of its plans live");
    cr_expect(hra_plan_rows(second, 0) == 300);
    hra_plan_destroy(second);
    done(&a);
}

/* The plan keeps what it needs: tiles of another rank are compiled from order and mask when asked for. */
Test(plan, outlives_its_order_and_mask)
{
    const struct shape s = {3, 1, 1, 0, 700, {0}, HRA_SHARD_CONTIGUOUS, "hilbert", "causal | docs(300,400)"};
    struct model m = begin(&s, 0), gone = begin(&s, 0);

    hra_order_destroy(gone.order);
    hra_mask_destroy(gone.mask);
    gone.order = NULL;
    gone.mask = NULL;
    for (int r = 0; r < s.ranks; r++) {
        int64_t n, k, token[700], same[700];
        hra_plan_tile *a = tiles_of(&m, r, 0, 0, &n), *b = tiles_of(&gone, r, 0, 0, &k);
        cr_assert(n == k && n > 0);
        for (int64_t i = 0; i < n; i++)
            cr_assert(a[i].key_slot0 == b[i].key_slot0 && a[i].live == b[i].live);
        cr_assert(eq(int, hra_plan_row_index(m.plan, r, NULL, token), HRA_OK));
        cr_assert(eq(int, hra_plan_row_index(gone.plan, r, NULL, same), HRA_OK));
        cr_assert(memcmp(token, same, (size_t)hra_plan_rows(m.plan, r) * sizeof(*token)) == 0);
        free(a);
        free(b);
    }
    end(&gone);
    end(&m);
}

Test(plan, destroying_nothing_is_fine)
{
    hra_plan_destroy(NULL);
    hra_order_destroy(NULL);
    hra_mask_destroy(NULL);
    cr_expect(eq(int, hra_comm_destroy(NULL), HRA_OK));
}

/* A larger plan brings a new arena, of its reserve or of what it needs; the old one lives until its plans are gone. */
Test(plan, arenas_live_as_long_as_their_plans)
{
    hra_comm *comm = NULL;
    struct hra_arena *none = NULL, *first = NULL, *same = NULL, *larger = NULL, *last = NULL;

    cr_assert(eq(int, hra_comm_create_self(&comm), HRA_OK));
    cr_assert(eq(int, hra_arena_join(&none, comm, 0, 0), HRA_OK));
    cr_expect(none == NULL);
    cr_assert(eq(int, hra_arena_join(&first, comm, 800, 1000), HRA_OK));
    cr_assert(eq(int, hra_arena_join(&same, comm, 1000, 9999), HRA_OK));
    cr_expect(first == same && first->plans == 2 && first->bytes == 1000);
    memset(first->base, 1, 1000);
    cr_assert(eq(int, hra_arena_join(&larger, comm, 5000, 4000), HRA_OK));
    cr_expect(larger != first && larger->bytes == 5000 && first->plans == 2);
    memset(larger->base, 2, 5000);
    hra_arena_leave(comm, first);
    cr_expect(first->plans == 1 && ((char *)first->base)[999] == 1);
    hra_arena_leave(comm, same); /* frees it: the address sanitizer sees it if not */
    hra_arena_leave(comm, larger);
    cr_assert(eq(int, hra_arena_join(&last, comm, 10, 20000), HRA_OK));
    cr_expect(last == larger); /* the newest stays for the next plan */
    hra_arena_leave(comm, last);
    hra_arena_leave(comm, NULL);
    cr_expect(eq(int, hra_comm_destroy(comm), HRA_OK));
}

/* order.c - can the order in which backward adds up dQ be kept? Lists like those of masks are laid out for as many
 * blocks as a GPU has, and launches are played: a block adds its steps one by one, each when its rank has come,
 * which is stricter than the kernel. All must end, every step must be there once, the blocks of a long sequence must
 * begin near each other, and where items are cut in two no block may have much more to do than the others. */
#include "kernels/sm90/steps.h"

#include "tests/sm90/help.h"

#include <inttypes.h>
#include <math.h>

enum { PROCESSORS = 132 };

struct row {
    const char *name;
    int tiles, batch, heads, heads_kv, dim;
    int (*attends)(int query, int key);
    int chunks;  /* of two runs each */
    int spread;  /* the first steps of all first items lie within so many pieces; 0: anywhere */
    double even; /* no block has more than so many times the average, for which items are cut; 0: any */
};

static int full(int query, int key)
{
    return query >= 0 && key >= 0;
}

static int causal(int query, int key)
{
    return key <= query;
}

static int window(int query, int key)
{
    return key <= query && query - key <= 8;
}

static int strided(int query, int key)
{
    return (query - key) % 16 == 0 || abs(query - key) <= 2;
}

static int scattered(int query, int key)
{
    const uint32_t x = ((uint32_t)query * 2654435761u ^ (uint32_t)key * 40503u) * 2246822519u;
    return (x >> 16) % 9 == 0;
}

static const struct row rows[] = {
    {"full, fewer items than blocks", 6, 1, 3, 3, 128, full, 1, 0, 0},
    {"full, two sources and batches", 20, 2, 6, 3, 64, full, 2, 0, 0},
    {"full, long", 1200, 1, 1, 1, 128, full, 1, 4 * PROCESSORS, 1.04},
    {"full, 16 heads of 8,192 tokens", 64, 1, 16, 16, 128, full, 1, 0, 1.02},
    {"full, K/V heads shared by 4", 300, 1, 4, 1, 64, full, 1, 4 * PROCESSORS, 1.06},
    {"causal", 200, 1, 4, 4, 128, causal, 1, 0, 0},
    {"causal, K/V heads shared by 2", 130, 1, 4, 2, 64, causal, 3, 0, 0},
    {"window", 400, 1, 4, 4, 128, window, 2, 0, 0},
    {"strided", 512, 1, 2, 2, 128, strided, 1, 0, 0},
    {"scattered", 150, 1, 3, 3, 128, scattered, 3, 0, 0},
};

static void *zeros(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)(count > 0 ? count : 1), bytes);
    if (memory == NULL)
        abort();
    return memory;
}

/* The columns of a list, which are all that backward reads. */
static void make_list(struct hra_tile_list *list, const struct row *r)
{
    list->column_start = zeros(r->tiles + 1, sizeof(*list->column_start));
    list->query = zeros((int64_t)r->tiles * r->tiles, sizeof(*list->query));
    list->column_bitmap = zeros((int64_t)r->tiles * r->tiles, sizeof(*list->column_bitmap));
    for (int key = 0, n = 0; key < r->tiles; key++) {
        for (int query = 0; query < r->tiles; query++)
            if (r->attends(query, key)) {
                list->column_bitmap[n] = HRA_FULL;
                list->query[n++] = query;
            }
        list->column_start[key + 1] = n;
    }
}

/* Play a launch. Returns how many steps were added. */
static int64_t play(const struct hra_sm90_steps *w, const struct hra_sm90_turn *l, const uint8_t *had)
{
    uint32_t *added = zeros(w->pieces, sizeof(*added)), item[PROCESSORS], step[PROCESSORS] = {0};
    uint8_t left[HRA_SM90_KEY_CUTS] = {0}; /* first parts that have ended */
    int64_t all = 0, before = -1;

    for (int block = 0; block < l->blocks; block++)
        item[block] = w->begin[l->begin0 + block];
    while (before != all) {
        before = all;
        for (int block = 0; block < l->blocks; block++)
            while (item[block] < w->begin[l->begin0 + block + 1]) {
                const struct hra_sm90_key_item *i = &w->item[item[block]];
                const struct hra_sm90_step *s = &w->step[i->step0 + step[block]];
                const uint32_t piece = i->piece0 + s->piece;
                const int stores = (s->rank & HRA_SM90_STORES) != 0;
                if (i->part == HRA_SM90_SECOND && !left[i->cut])
                    break;
                if ((s->rank & ~HRA_SM90_STORES) != added[piece] ||
                    stores != (added[piece] == 0 && !had[piece]))
                    break;
                added[piece]++;
                all++;
                if (++step[block] == i->steps) {
                    if (i->part == HRA_SM90_FIRST)
                        left[i->cut] = 1;
                    step[block] = 0;
                    item[block]++;
                }
            }
    }
    free(added);
    return all;
}

/* Pieces between the first and the last of the first steps of all blocks. */
static int64_t spread_of(const struct hra_sm90_steps *w, const struct hra_sm90_turn *l)
{
    int64_t least = INT64_MAX, most = 0;

    for (int block = 0; block < l->blocks; block++) {
        const struct hra_sm90_key_item *i = &w->item[w->begin[l->begin0 + block]];
        const int64_t piece = (int64_t)i->piece0 + w->step[i->step0].piece;
        least = piece < least ? piece : least;
        most = piece > most ? piece : most;
    }
    return most - least;
}

/* The work of the block that has most, in that of all on average: steps, and two more for beginning and ending an item. */
static double unevenness_of(const struct hra_sm90_steps *w, const struct hra_sm90_turn *l)
{
    double most = 0, all = 0;

    for (int block = 0; block < l->blocks; block++) {
        double work = 0;
        for (uint32_t n = w->begin[l->begin0 + block]; n < w->begin[l->begin0 + block + 1]; n++)
            work += w->item[n].steps + 2;
        most = work > most ? work : most;
        all += work;
    }
    return most * l->blocks / all;
}

/* Every step of every item once: by piece and key tile of all. Returns 1 where one is there twice. */
static int marks(const struct hra_sm90_steps *w, const struct hra_sm90_turn *l, const struct row *r,
                 int chunk0, uint8_t *seen, uint8_t *had)
{
    int twice = 0;

    for (uint32_t n = w->begin[l->begin0]; n < w->begin[l->begin0 + l->blocks]; n++) {
        const struct hra_sm90_key_item *i = &w->item[n];
        const int64_t key = (int64_t)(chunk0 + i->chunk) * (r->tiles / r->chunks) + i->row0 / HRA_TILE;
        for (uint32_t k = 0; k < i->steps; k++) {
            const int64_t piece = (int64_t)i->piece0 + w->step[i->step0 + k].piece;
            twice |= seen[piece * r->tiles + key]++ != 0;
            had[piece] = 1;
        }
    }
    return twice;
}

/* Returns 1 where something is wrong. */
static int check(const struct row *r)
{
    const int parts = HRA_TILE / hra_sm90_step_rows(r->dim), half = r->tiles / 2;
    struct hra_tile_list list = {0};
    struct hra_tile_rows *tile = zeros(r->tiles, sizeof(*tile));
    int *pattern = zeros((int64_t)r->batch * r->heads, sizeof(*pattern));
    struct hra_shape *shape = zeros((int64_t)2 * r->chunks, sizeof(*shape));
    struct hra_sm90_steps w;
    int64_t added = 0, spread = 0;
    double uneven = 0;
    int twice = 0;

    make_list(&list, r);
    for (int i = 0; i < r->tiles; i++)
        tile[i] = (struct hra_tile_rows){(int64_t)i * HRA_TILE, HRA_TILE};
    for (int i = 0; i < 2 * r->chunks; i++) { /* run 0 has the former half of the queries, run 1 the latter */
        const int run = i / r->chunks, c = i % r->chunks, keys = r->tiles / r->chunks;
        shape[i] = (struct hra_shape){.run = run,
                                      .query0 = run * half,
                                      .query1 = run == 0 ? half : r->tiles,
                                      .key_tile0 = c * keys,
                                      .key_tile1 = c + 1 == r->chunks ? r->tiles : (c + 1) * keys,
                                      .head1 = r->heads_kv};
    }
    const struct hra_kernel_plan plan = {.batch = r->batch,
                                         .heads = r->heads,
                                         .heads_kv = r->heads_kv,
                                         .dim = r->dim,
                                         .queries = r->tiles,
                                         .query = tile,
                                         .keys = r->tiles,
                                         .key = tile,
                                         .pattern = pattern,
                                         .patterns = 1,
                                         .list = &list};
    const struct hra_shapes shapes = {.shape = shape, .count = 2 * r->chunks, .runs = 2};
    need(hra_sm90_lay_out_steps(&w, &plan, &shapes, PROCESSORS, NULL));

    const int64_t wanted = list.column_start[r->tiles] * r->batch * r->heads * parts;
    uint8_t *seen = zeros(w.pieces * r->tiles, 1), *had = zeros(w.pieces, 1);
    for (int t = 0; t < w.turns; t++) {
        const int64_t apart = spread_of(&w, &w.turn[t]);
        spread = apart > spread ? apart : spread;
        uneven = fmax(uneven, unevenness_of(&w, &w.turn[t]));
        added += play(&w, &w.turn[t], had);
        twice |= marks(&w, &w.turn[t], r, w.turn[t].chunk0, seen, had);
    }
    const int wrong = twice || added != wanted || w.steps != wanted ||
                      (r->spread > 0 && spread > r->spread) || (r->even > 0 && uneven > r->even);
    printf("%-32s %8" PRId64 " steps  %8" PRId64 " added  first ones within %5" PRId64
           " pieces  most of a block %.3f  %s\n",
           r->name, w.steps, added, spread, uneven, wrong ? "WRONG" : "ok");

    hra_sm90_steps_clear(&w);
    free(seen);
    free(had);
    free(shape);
    free(pattern);
    free(tile);
    free(list.column_start);
    free(list.query);
    free(list.column_bitmap);
    return wrong;
}

int main(void)
{
    int failed = 0;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        failed |= check(&rows[i]);
    return failed;
}

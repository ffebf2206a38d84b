/* cuts.c - do items that are cut in two still do what they did, and does a launch end sooner? Launches like those of masks are
 * cut for as many multiprocessors as a GPU has. Every item must be there once, whole or as two parts of which the first is
 * begun before the second; and played by the tiles of items, each begun by the multiprocessor that is free first, the launch
 * must end as soon as is said there, in parts of the time in which all would end together. */
#include "kernels/sm90/cuts.h"

#include "tests/sm90/help.h"

enum { ITEM_COST = 2 }; /* of beginning and ending one, in tiles */

struct row {
    const char *name;
    int items, processors;
    int length;   /* of all; 0: 16 of each, the longest first, as under a causal mask */
    int tiles;    /* of queries, of an item */
    double least; /* the launch takes so much longer if it is not cut; 1: nothing to gain */
    double most;  /* and no more if it is */
};

static const struct row rows[] = {
    {"16 heads of 8,192 tokens", 1024, 132, 64, 1, 1.03, 1.013},
    {"of 16,384", 2048, 132, 128, 1, 1.03, 1.01},
    {"of 32,768", 4096, 132, 256, 1, 1.03, 1.01},
    {"on 116 multiprocessors", 2048, 116, 128, 1, 1.015, 1.011},
    {"of two query tiles", 1366, 132, 128, 2, 1.06, 1.02},
    {"an image, too many to play out", 8192, 132, 12, 1, 1.01, 1.016},
    {"causal", 1024, 132, 0, 1, 1, 1.011},
    {"a multiple", 1056, 132, 64, 1, 1, 1.001},
    {"fewer than multiprocessors", 100, 132, 64, 1, 1.3, 1.4},
    {"items of one tile", 1024, 132, 1, 1, 1.03, 1.04},
    {"one multiprocessor", 10, 1, 64, 1, 1, 1.001},
    {"two", 5, 2, 12, 1, 1.2, 1.1},
};

static int fail(const struct row *r, const char *what, int item)
{
    printf("%s: %s, item %d\n", r->name, what, item);
    return 1;
}

/* How much longer it takes than if all ended together. */
static double play(const struct hra_sm90_item *item, int count, int processors, double all)
{
    double *const at = take((size_t)processors * sizeof(*at)), end = 0;

    for (int i = 0; i < processors; i++)
        at[i] = 0;
    for (int i = 0; i < count; i++) {
        int first = 0;
        for (int n = 1; n < processors; n++)
            first = at[n] < at[first] ? n : first;
        at[first] += item[i].entries + ITEM_COST;
    }
    for (int i = 0; i < processors; i++)
        end = at[i] > end ? at[i] : end;
    free(at);
    return end / (all / processors);
}

/* Is each item there once? Items are known by where their lists begin. */
static int check_parts(const struct row *r, const struct hra_sm90_item *before,
                       const struct hra_sm90_item *after, int cuts)
{
    const int begins = HRA_SM90_BEGINS | HRA_SM90_ENDS;
    int *const seen = take((size_t)r->items * sizeof(*seen)), *const first =
                                                                  take(HRA_SM90_CUTS * sizeof(*first));
    int failed = 0;

    for (int i = 0; i < r->items; i++)
        seen[i] = 0;
    for (int i = 0; i < HRA_SM90_CUTS; i++)
        first[i] = -1;
    for (int i = 0; i < r->items + cuts && !failed; i++) {
        const struct hra_sm90_item *x = &after[i], *whole = &before[x->state];
        const int flags = x->flags[0], second = flags & HRA_SM90_WAITS,
                  part = flags & (HRA_SM90_TELLS | HRA_SM90_WAITS);
        seen[x->state] += (int)x->entries;
        if (x->rows[0] != whole->rows[0] || x->rows[1] != whole->rows[1] || x->head != whole->head)
            failed |= fail(r, "is another", i);
        if (x->entry0 != whole->entry0 + (second ? whole->entries - x->entries : 0) || x->entries == 0)
            failed |= fail(r, "has another list", i);
        if (part == 0 ? memcmp(x, whole, sizeof(*x)) != 0 : x->cut >= (uint32_t)cuts)
            failed |= fail(r, "is not as it was", i);
        if ((flags & begins) != (part == 0 ? begins : second ? HRA_SM90_ENDS : HRA_SM90_BEGINS))
            failed |= fail(r, "begins or ends where it should not", i);
        if (x->flags[1] != (whole->rows[1] > 0 ? flags & begins : begins))
            failed |= fail(r, "has a second tile that does", i);
        if (part == HRA_SM90_TELLS)
            first[x->cut] = (int)x->state;
        else if (second && first[x->cut] != (int)x->state)
            failed |= fail(r, "comes before its first part", i);
    }
    for (int i = 0; i < r->items && !failed; i++)
        if (seen[i] != (int)before[i].entries)
            failed |= fail(r, "is not there once", i);
    free(seen);
    free(first);
    return failed;
}

static int check_row(const struct row *r)
{
    const size_t bytes = (size_t)(r->items + HRA_SM90_CUTS) * sizeof(struct hra_sm90_item);
    struct hra_sm90_item *before = take(bytes), *after = take(bytes);
    double all = 0;
    uint32_t entry0 = 0;
    int cuts, failed;

    for (int i = 0; i < r->items; i++) {
        struct hra_sm90_item x = {.rows = {HRA_TILE, r->tiles == 2 && i % 5 ? HRA_TILE : 0},
                                  .flags = {HRA_SM90_BEGINS | HRA_SM90_ENDS, HRA_SM90_BEGINS | HRA_SM90_ENDS},
                                  .head = i % 7,
                                  .entry0 = entry0,
                                  .entries = (uint32_t)(r->length > 0 ? r->length : (r->items - i + 15) / 16),
                                  .state = (uint32_t)i};
        entry0 += x.entries;
        all += x.entries + ITEM_COST;
        before[i] = after[i] = x;
    }
    need(hra_sm90_cut_items(after, r->items, r->processors, &cuts));
    failed = check_parts(r, before, after, cuts);
    const double without = play(before, r->items, r->processors, all),
                 with = play(after, r->items + cuts, r->processors, all);
    printf("%-32s %5d items on %3d: %.4f, with %3d cuts %.4f\n", r->name, r->items, r->processors, without,
           cuts, with);
    if (with > without || with > r->most || without < r->least)
        failed |= fail(r, "ends too late, or did not before", 0);
    free(before);
    free(after);
    return failed;
}

int main(void)
{
    int failed = 0;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        failed |= check_row(&rows[i]);
    return failed;
}

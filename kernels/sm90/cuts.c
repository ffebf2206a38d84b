/* cuts.c - see cuts.h.
 *
 * A few hundred ways to cut are played out, by how many tiles each multiprocessor has done, and the one that ends first is
 * taken. Of a way there are three numbers: the last `count` items are cut, so many sixteenths of each are its first part, and
 * `early` multiprocessors begin with first parts, which they take one after another while the others compute their first whole
 * item. */
#include "kernels/sm90/cuts.h"

#include "src/status.h"

#include <stdlib.h>
#include <string.h>

/* What beginning and ending an item takes, in tiles. Of more items for each multiprocessor than MOST the last one does not matter. */
enum { ITEM_COST = 2, MOST = 40, SIXTEENTHS = 16 };

/* What is worth it: parts of the time that all would take if they ended together. */
static const double gain = 0.005;

struct way {
    int count, share, early;
};

/* When each multiprocessor is free, the earliest on top of a heap. */
struct clocks {
    int64_t *at;
    int count;
};

static void play(struct clocks *c, int64_t cost)
{
    const int64_t end = c->at[0] + cost;
    int i = 0;

    for (int child; (child = 2 * i + 1) < c->count; i = child) {
        child += child + 1 < c->count && c->at[child + 1] < c->at[child];
        if (c->at[child] >= end)
            break;
        c->at[i] = c->at[child];
    }
    c->at[i] = end;
}

/* Tiles of the first part. */
static uint32_t first_part(const struct hra_sm90_item *item, const struct way *w)
{
    const uint32_t part = item->entries * (uint32_t)w->share / SIXTEENTHS;
    return part > 0 ? part : 1;
}

/* How many whole items begin before the first parts. */
static int leading(const struct way *w, int items, int processors)
{
    const int before = processors - w->early, whole = items - w->count;
    return before < whole ? before : whole;
}

/* When the last multiprocessor ends. */
static int64_t play_out(struct clocks *c, const struct hra_sm90_item *item, int items, const struct way *w)
{
    const int whole = items - w->count, lead = leading(w, items, c->count);
    int64_t end = 0;

    memset(c->at, 0, (size_t)c->count * sizeof(*c->at));
    for (int i = 0; i < lead; i++)
        play(c, item[i].entries + ITEM_COST);
    for (int i = whole; i < items; i++)
        play(c, first_part(&item[i], w) + ITEM_COST);
    for (int i = lead; i < whole; i++)
        play(c, item[i].entries + ITEM_COST);
    for (int i = whole; i < items; i++)
        play(c, item[i].entries - first_part(&item[i], w) + ITEM_COST);
    for (int i = 0; i < c->count; i++)
        end = c->at[i] > end ? c->at[i] : end;
    return end;
}

/* The best way to cut; without cuts where none gains anything worth it. */
static struct way choose(struct clocks *c, const struct hra_sm90_item *item, int items)
{
    const int left = items % c->count, missing = c->count - left;
    const int counts[] = {left, missing, left + c->count, 2 * missing, left / 2};
    const int earlies[] = {0, left, missing, c->count / 4, c->count / 2};
    struct way best = {0, 0, 0};
    int64_t all = 0, end = play_out(c, item, items, &best);
    int cuttable = 0; /* of the last items */

    for (int i = 0; i < items; i++)
        all += item[i].entries + ITEM_COST;
    while (cuttable < items && cuttable < HRA_SM90_CUTS && item[items - 1 - cuttable].entries >= 2)
        cuttable++;
    const double together = (double)all / c->count;
    const int64_t without = end;
    for (size_t n = 0; n < sizeof(counts) / sizeof(counts[0]); n++)
        for (int share = 1; share < SIXTEENTHS && counts[n] > 0 && counts[n] <= cuttable; share++)
            for (size_t e = 0; e < sizeof(earlies) / sizeof(earlies[0]); e++) {
                if ((double)end < (1 + gain) * together)
                    break;
                const struct way w = {counts[n], share, earlies[e]};
                const int64_t x = play_out(c, item, items, &w);
                if (x < end) {
                    end = x;
                    best = w;
                }
            }
    return (double)(without - end) < gain * together ? (struct way){0, 0, 0} : best;
}

/* The n-th of the items that are cut: its part before or behind the cut. */
static struct hra_sm90_item part_of(const struct hra_sm90_item *whole, const struct way *w, int n, int second)
{
    struct hra_sm90_item part = *whole;
    const uint32_t first = first_part(whole, w);

    part.cut = (uint32_t)n;
    part.entry0 += second ? first : 0;
    part.entries = second ? whole->entries - first : first;
    for (int i = 0; i < 2; i++)
        if (part.rows[i] > 0) /* there is no state of what has none */
            part.flags[i] &= (uint8_t) ~(second ? HRA_SM90_BEGINS : HRA_SM90_ENDS);
    part.flags[0] |= second ? HRA_SM90_WAITS : HRA_SM90_TELLS;
    return part;
}

static void reorder(struct hra_sm90_item *out, const struct hra_sm90_item *item, int items, int processors,
                    const struct way *w)
{
    const int whole = items - w->count, lead = leading(w, items, processors);

    memcpy(out, item, (size_t)lead * sizeof(*out));
    memcpy(out + lead + w->count, item + lead, (size_t)(whole - lead) * sizeof(*out));
    for (int n = 0; n < w->count; n++) {
        out[lead + n] = part_of(&item[whole + n], w, n, 0);
        out[items + n] = part_of(&item[whole + n], w, n, 1);
    }
}

hra_status hra_sm90_cut_items(struct hra_sm90_item *item, int items, int processors, int *cuts)
{
    struct clocks clocks = {.count = processors};
    struct hra_sm90_item *before = NULL;

    *cuts = 0;
    if (items <= processors || items / processors >= MOST)
        return HRA_OK;
    HRA_TRY(hra_alloc_unset((void **)&clocks.at, processors, sizeof(*clocks.at), "items"));
    const struct way way = choose(&clocks, item, items);
    free(clocks.at);
    if (way.count == 0)
        return HRA_OK;
    HRA_TRY(hra_alloc_unset((void **)&before, items, sizeof(*before), "items"));
    memcpy(before, item, (size_t)items * sizeof(*before));
    reorder(item, before, items, processors, &way);
    free(before);
    *cuts = way.count;
    return HRA_OK;
}

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

/* What beginning and ending an item takes, in tiles. Of more items for each multiprocessor than MOST the last one does not matter;
 * and where lengths change more often than RUNS times it would take long to find out. */
enum { ITEM_COST = 2, MOST = 40, RUNS = 512, SIXTEENTHS = 16 };

/* What is worth it: parts of the time that all would take if they ended together. */
static const double gain = 0.005;

/* Multiprocessors that are free at one time. */
struct group {
    int64_t at;
    int count;
};

/* Items that follow one another and have one length. */
struct run {
    uint32_t length;
    int end; /* behind the last */
};

/* When multiprocessors are free, the earliest first; where items have one length there are few groups. And the items. */
struct clocks {
    struct group *group; /* room for all multiprocessors and one */
    int groups, processors;
    struct run *run;
    int runs;
};

static void add_group(struct clocks *c, int64_t at, int count)
{
    int i = c->groups;

    while (i > 0 && c->group[i - 1].at > at)
        i--;
    if (i > 0 && c->group[i - 1].at == at) {
        c->group[i - 1].count += count;
        return;
    }
    memmove(&c->group[i + 1], &c->group[i], (size_t)(c->groups++ - i) * sizeof(*c->group));
    c->group[i] = (struct group){at, count};
}

/* So many items that take `cost` are begun, each by who is free first. */
static void play(struct clocks *c, int64_t cost, int items)
{
    while (items > 0) {
        const struct group first = c->group[0];
        const int taken = first.count < items ? first.count : items;
        if (taken == first.count)
            memmove(c->group, c->group + 1, (size_t)--c->groups * sizeof(*c->group));
        else
            c->group[0].count -= taken;
        add_group(c, first.at + cost, taken);
        items -= taken;
    }
}

uint32_t hra_sm90_first_part(const struct hra_sm90_way *w, uint32_t length)
{
    const uint32_t part = length * (uint32_t)w->share / SIXTEENTHS;
    return part > 0 ? part : 1;
}

int hra_sm90_leading(const struct hra_sm90_way *w, int items, int processors)
{
    const int before = processors - w->early, whole = items - w->count;
    return before < whole ? before : whole;
}

enum what { WHOLE, FIRST, SECOND };

/* What there is of items `from` to `to`. */
static void play_items(struct clocks *c, int from, int to, const struct hra_sm90_way *w, enum what what)
{
    for (int i = 0; i < c->runs && from < to; i++) {
        const uint32_t all = c->run[i].length, first = what == WHOLE ? 0 : hra_sm90_first_part(w, all);
        const int end = c->run[i].end < to ? c->run[i].end : to;
        if (end <= from)
            continue;
        play(c, (what == FIRST ? first : all - first) + ITEM_COST, end - from);
        from = end;
    }
}

/* When the last multiprocessor ends. */
static int64_t play_out(struct clocks *c, int items, const struct hra_sm90_way *w)
{
    const int whole = items - w->count, lead = hra_sm90_leading(w, items, c->processors);

    c->groups = 1;
    c->group[0] = (struct group){0, c->processors};
    play_items(c, 0, lead, w, WHOLE);
    play_items(c, whole, items, w, FIRST);
    play_items(c, lead, whole, w, WHOLE);
    play_items(c, whole, items, w, SECOND);
    return c->group[c->groups - 1].at;
}

/* The best way to cut; without cuts where none gains anything worth it. */
static struct hra_sm90_way choose(struct clocks *c, const uint32_t *length, int items, int most)
{
    const int left = items % c->processors, missing = c->processors - left;
    const int counts[] = {left, missing, left + c->processors, 2 * missing, left / 2};
    const int earlies[] = {0, left, missing, c->processors / 4, c->processors / 2};
    struct hra_sm90_way best = {0, 0, 0};
    int64_t all = 0, end = play_out(c, items, &best);
    int cuttable = 0; /* of the last items */

    for (int i = 0; i < items; i++)
        all += length[i] + ITEM_COST;
    while (cuttable < items && cuttable < most && length[items - 1 - cuttable] >= 2)
        cuttable++;
    const double together = (double)all / c->processors;
    const int64_t without = end;
    for (size_t n = 0; n < sizeof(counts) / sizeof(counts[0]); n++)
        for (int share = 1; share < SIXTEENTHS && counts[n] > 0 && counts[n] <= cuttable; share++)
            for (size_t e = 0; e < sizeof(earlies) / sizeof(earlies[0]); e++) {
                if ((double)end < (1 + gain) * together)
                    break;
                const struct hra_sm90_way w = {counts[n], share, earlies[e]};
                const int64_t x = play_out(c, items, &w);
                if (x < end) {
                    end = x;
                    best = w;
                }
            }
    return (double)(without - end) < gain * together ? (struct hra_sm90_way){0, 0, 0} : best;
}

/* The n-th of the items that are cut: its part before or behind the cut. */
static struct hra_sm90_item part_of(const struct hra_sm90_item *whole, const struct hra_sm90_way *w, int n,
                                    int second)
{
    struct hra_sm90_item part = *whole;
    const uint32_t first = hra_sm90_first_part(w, whole->entries);

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
                    const struct hra_sm90_way *w)
{
    const int whole = items - w->count, lead = hra_sm90_leading(w, items, processors);

    memcpy(out, item, (size_t)lead * sizeof(*out));
    memcpy(out + lead + w->count, item + lead, (size_t)(whole - lead) * sizeof(*out));
    for (int n = 0; n < w->count; n++) {
        out[lead + n] = part_of(&item[whole + n], w, n, 0);
        out[items + n] = part_of(&item[whole + n], w, n, 1);
    }
}

static void find_runs(struct clocks *c, const uint32_t *length, int items)
{
    for (int i = 0; i < items; i++) {
        if (i == 0 || length[i] != length[i - 1])
            c->run[c->runs++].length = length[i];
        c->run[c->runs - 1].end = i + 1;
    }
}

hra_status hra_sm90_choose_cuts(struct hra_sm90_way *out, const uint32_t *length, int items, int processors,
                                int most)
{
    struct clocks clocks = {.processors = processors};

    *out = (struct hra_sm90_way){0, 0, 0};
    if (items <= processors || items / processors >= MOST)
        return HRA_OK;
    HRA_TRY(hra_alloc_unset((void **)&clocks.group, (int64_t)processors + 1, sizeof(*clocks.group), "items"));
    const hra_status status = hra_alloc_unset((void **)&clocks.run, items, sizeof(*clocks.run), "items");
    if (status == HRA_OK) {
        find_runs(&clocks, length, items);
        if (clocks.runs <= RUNS)
            *out = choose(&clocks, length, items, most);
    }
    free(clocks.group);
    free(clocks.run);
    return status;
}

hra_status hra_sm90_cut_items(struct hra_sm90_item *item, int items, int processors, int *cuts)
{
    struct hra_sm90_item *before = NULL;
    struct hra_sm90_way way;
    uint32_t *length = NULL;

    *cuts = 0;
    HRA_TRY(hra_alloc_unset((void **)&length, items, sizeof(*length), "items"));
    for (int i = 0; i < items; i++)
        length[i] = item[i].entries;
    const hra_status status = hra_sm90_choose_cuts(&way, length, items, processors, HRA_SM90_CUTS);
    free(length);
    if (status != HRA_OK || way.count == 0)
        return status;
    HRA_TRY(hra_alloc_unset((void **)&before, items, sizeof(*before), "items"));
    memcpy(before, item, (size_t)items * sizeof(*before));
    reorder(item, before, items, processors, &way);
    free(before);
    *cuts = way.count;
    return HRA_OK;
}

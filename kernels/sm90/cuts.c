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

/* Which items are cut: the last `count`. Their first parts are `share` sixteenths of them, and `early` multiprocessors begin with
 * first parts. */
struct way {
    int count, share, early;
};

static uint32_t first_part(const struct way *w, uint32_t length)
{
    const uint32_t part = length * (uint32_t)w->share / SIXTEENTHS;
    return part > 0 ? part : 1;
}

/* How many whole items begin before the first parts. */
static int leading(const struct way *w, int items, int processors)
{
    const int before = processors - w->early, whole = items - w->count;
    return before < whole ? before : whole;
}

/* What there is of items `from` to `to`. */
static void play_items(struct clocks *c, int from, int to, const struct way *w, int part)
{
    for (int i = 0; i < c->runs && from < to; i++) {
        const uint32_t all = c->run[i].length, first = part == HRA_SM90_WHOLE ? 0 : first_part(w, all);
        const int end = c->run[i].end < to ? c->run[i].end : to;
        if (end <= from)
            continue;
        play(c, (part == HRA_SM90_FIRST ? first : all - first) + ITEM_COST, end - from);
        from = end;
    }
}

/* When the last multiprocessor ends. */
static int64_t play_out(struct clocks *c, int items, const struct way *w)
{
    const int whole = items - w->count, lead = leading(w, items, c->processors);

    c->groups = 1;
    c->group[0] = (struct group){0, c->processors};
    play_items(c, 0, lead, w, HRA_SM90_WHOLE);
    play_items(c, whole, items, w, HRA_SM90_FIRST);
    play_items(c, lead, whole, w, HRA_SM90_WHOLE);
    play_items(c, whole, items, w, HRA_SM90_SECOND);
    return c->group[c->groups - 1].at;
}

/* The best way to cut; without cuts where none gains anything worth it. */
static struct way choose(struct clocks *c, const uint32_t *length, int items, int most)
{
    const int left = items % c->processors, missing = c->processors - left;
    const int counts[] = {left, missing, left + c->processors, 2 * missing, left / 2};
    const int earlies[] = {0, left, missing, c->processors / 4, c->processors / 2};
    struct way best = {0, 0, 0};
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
                const struct way w = {counts[n], share, earlies[e]};
                const int64_t x = play_out(c, items, &w);
                if (x < end) {
                    end = x;
                    best = w;
                }
            }
    return (double)(without - end) < gain * together ? (struct way){0, 0, 0} : best;
}

static void find_runs(struct clocks *c, const uint32_t *length, int items)
{
    for (int i = 0; i < items; i++) {
        if (i == 0 || length[i] != length[i - 1])
            c->run[c->runs++].length = length[i];
        c->run[c->runs - 1].end = i + 1;
    }
}

static hra_status find_way(struct way *out, const uint32_t *length, int items, int processors, int most)
{
    struct clocks clocks = {.processors = processors};

    *out = (struct way){0, 0, 0};
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

/* In the order in which they are played out. */
static void write_places(struct hra_sm90_place *place, const uint32_t *length, int items, int processors,
                         const struct way *w)
{
    const int whole = items - w->count, lead = leading(w, items, processors);

    for (int i = 0; i < whole; i++)
        place[i < lead ? i : i + w->count] =
            (struct hra_sm90_place){.item = i, .part = HRA_SM90_WHOLE, .length = length[i]};
    for (int n = 0; n < w->count; n++) {
        const uint32_t all = length[whole + n], first = first_part(w, all);
        place[lead + n] = (struct hra_sm90_place){whole + n, HRA_SM90_FIRST, n, 0, first};
        place[items + n] = (struct hra_sm90_place){whole + n, HRA_SM90_SECOND, n, first, all - first};
    }
}

hra_status hra_sm90_cut(struct hra_sm90_place **out, int *cuts, const uint32_t *length, int items,
                        int processors, int most)
{
    struct way way;

    *out = NULL;
    HRA_TRY(find_way(&way, length, items, processors, most));
    *cuts = way.count;
    if (way.count == 0)
        return HRA_OK;
    HRA_TRY(hra_alloc_unset((void **)out, (int64_t)items + way.count, sizeof(**out), "items"));
    write_places(*out, length, items, processors, &way);
    return HRA_OK;
}

static struct hra_sm90_item item_at(const struct hra_sm90_item *before, const struct hra_sm90_place *place)
{
    struct hra_sm90_item item = before[place->item];
    const int second = place->part == HRA_SM90_SECOND;

    if (place->part == HRA_SM90_WHOLE)
        return item;
    item.cut = (uint32_t)place->cut;
    item.entry0 += place->begin;
    item.entries = place->length;
    for (int i = 0; i < 2; i++)
        if (item.rows[i] > 0) /* there is no state of what has none */
            item.flags[i] &= (uint8_t) ~(second ? HRA_SM90_BEGINS : HRA_SM90_ENDS);
    item.flags[0] |= second ? HRA_SM90_WAITS : HRA_SM90_TELLS;
    return item;
}

hra_status hra_sm90_cut_items(struct hra_sm90_item *item, int items, int processors, int *cuts)
{
    struct hra_sm90_place *place = NULL;
    struct hra_sm90_item *before = NULL;
    uint32_t *length = NULL;

    *cuts = 0;
    HRA_TRY(hra_alloc_unset((void **)&length, items, sizeof(*length), "items"));
    for (int i = 0; i < items; i++)
        length[i] = item[i].entries;
    hra_status status = hra_sm90_cut(&place, cuts, length, items, processors, HRA_SM90_CUTS);
    if (status == HRA_OK && place != NULL)
        status = hra_alloc_unset((void **)&before, items, sizeof(*before), "items");
    if (before != NULL) {
        memcpy(before, item, (size_t)items * sizeof(*before));
        for (int i = 0; i < items + *cuts; i++)
            item[i] = item_at(before, &place[i]);
    }
    free(before);
    free(place);
    free(length);
    return status;
}

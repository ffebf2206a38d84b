/* mask_ask.c - what masks mean, and the three ways to ask: single pairs, boxes, whole tiles.
 *
 * A mask without children is defined once, for one query: terms() has the keys of masks that read one coordinate, reach()
 * those along each axis of the grid, listed() the blocks of a list. Pairs and tiles are answered from these. Boxes
 * are answered from them where both ends of a range of keys grow with the query, because the ends for the box's first
 * and last query then bound all others; the other masks have a few lines each in classify_leaf().
 *
 * A tile of bits is not looked at pair by pair. Of each coordinate that a mask reads, the tile's keys are sorted
 * once (struct axis), so that a range of coordinates becomes a set of keys by two searches and two operations on 128
 * bits; and queries that share a coordinate, such as those of one line of an image, share the set. */
#include "src/mask.h"

#include <string.h>

/* Coordinates low .. high, both inclusive; none where low > high. */
struct range {
    int64_t low, high;
};

/* Some of low, low + step, ... high, both ends among them; any step where low = high. */
struct values {
    int64_t low, high, step;
};

/* The keys j of a range for which (j - origin) / unit = residue (mod modulus); modulus 1: all of the range. */
struct term {
    struct range keys;
    int64_t origin, unit, modulus, residue;
};

/* Most terms of one query: hierarchical blocks with 62 levels. */
enum { TERMS = 64, WORDS = HRA_TILE / 64 };

/* Who asks, and which coordinate the masks below a slots() read. */
struct asked {
    const struct hra_question *question;
    int coordinate;
};

/* ---- The definitions ----------------------------------------------------------------------- */

static int64_t plus(int64_t a, int64_t b)
{
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? (b < 0 ? INT64_MIN : INT64_MAX) : sum;
}

static int64_t minus(int64_t a, int64_t b)
{
    int64_t difference;
    return __builtin_sub_overflow(a, b, &difference) ? (b < 0 ? INT64_MAX : INT64_MIN) : difference;
}

/* a x b, a and b >= 0. */
static int64_t times(int64_t a, int64_t b)
{
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

/* a / b, a >= 0, b > 0. Most numbers fit 32 bits, where a division takes a third of the time that 64 bits take. */
static int64_t over(int64_t a, int64_t b)
{
    return ((uint64_t)a | (uint64_t)b) >> 32 == 0 ? (int64_t)((uint32_t)a / (uint32_t)b) : a / b;
}

/* The last n with start[n] <= value; start [count] ascends, start[0] <= value. */
static int64_t find(const int64_t *start, int64_t count, int64_t value)
{
    int64_t low = 0, high = count - 1;

    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (start[middle] <= value)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* The keys along `axis` of a mask on the grid, for a query at coordinate i. */
static struct range reach(const hra_mask *m, int axis, int64_t i)
{
    const int64_t n = m->extent[axis], s = m->stride[axis], length = m->space.grid[axis];

    if (m->kind == HRA_MASK_GRID)
        return (struct range){minus(i, n), plus(i, n)};
    /* The window around the middle query of the group, shifted to stay inside. (Formulas take the last query for a
     * middle beyond the end; the shift comes to the same.) */
    const int64_t first = plus(i / s * s, s / 2) - n / 2, latest = length - n;
    const int64_t low = first < 0 ? 0 : first > latest ? latest : first;
    return (struct range){low, low + n - 1};
}

/* The tokens of the blocks from `first` to `last`, as far as there are such. */
static struct range of_blocks(const hra_mask *m, int64_t first, int64_t last)
{
    const int64_t from = first < 0 ? 0 : first, to = last >= m->count ? m->count - 1 : last;
    return (struct range){from * m->block, plus(times(to, m->block), m->block - 1)};
}

/* The keys of query i, for a mask that reads one coordinate and is no list of blocks, into out [TERMS]; their number.
 * A key may be in several. */
static int terms(const hra_mask *m, int head, int64_t i, struct term *out)
{
    const struct range everything = {0, INT64_MAX};
    int count = 1;

    out[0] = (struct term){.keys = everything, .unit = 1, .modulus = 1};
    switch (m->kind) {
    case HRA_MASK_CAUSAL:
        out[0].keys.high = i;
        break;
    case HRA_MASK_WINDOW:
        out[0].keys = (struct range){minus(i, m->left), plus(i, m->right)};
        break;
    case HRA_MASK_DOCS: {
        const int64_t document = find(m->start, m->count, i);
        out[0].keys = (struct range){m->start[document], m->start[document + 1] - 1};
        break;
    }
    case HRA_MASK_DILATED: {
        const int64_t first = over(i, m->segment) * m->segment;
        const int64_t ours = i - first - over(i - first, m->rate) * m->rate;
        const int64_t offset = m->offset == HRA_OFFSET_HEAD ? head % m->rate : m->offset;
        out[0] = (struct term){.keys = {first, plus(first, m->segment - 1)},
                               .origin = first,
                               .unit = 1,
                               .modulus = m->rate,
                               .residue = m->mode == HRA_DILATED_RESIDUE ? ours : offset};
        count = m->mode != HRA_DILATED_BOTH || ours == offset;
        break;
    }
    case HRA_MASK_GLOBAL:
        if (i >= m->global)
            out[0].keys.high = m->global - 1;
        break;
    case HRA_MASK_LOCAL_BLOCKS:
    case HRA_MASK_STRIDED_BLOCKS:
    case HRA_MASK_GLOBAL_BLOCKS:
    case HRA_MASK_HIERARCHICAL_BLOCKS: {
        const int64_t block = over(i, m->block);

        out[0].keys = of_blocks(m, minus(block, m->width), plus(block, m->width));
        if (m->kind == HRA_MASK_STRIDED_BLOCKS)
            out[count++] = (struct term){
                .keys = everything, .unit = m->block, .modulus = m->step, .residue = block % m->step};
        if (m->kind == HRA_MASK_GLOBAL_BLOCKS && block < m->global)
            out[0].keys = everything;
        else if (m->kind == HRA_MASK_GLOBAL_BLOCKS && m->global > 0)
            out[count++] = (struct term){.keys = of_blocks(m, 0, m->global - 1), .unit = 1, .modulus = 1};
        for (int l = 1; m->kind == HRA_MASK_HIERARCHICAL_BLOCKS && l <= m->levels; l++) {
            const int64_t width = times(m->width, INT64_C(1) << l);
            out[count++] = (struct term){.keys = of_blocks(m, minus(block, width), plus(block, width)),
                                         .unit = m->block,
                                         .modulus = INT64_C(1) << l};
        }
        break;
    }
    default: /* full */
        break;
    }
    return count;
}

static int in_term(const struct term *t, int64_t j)
{
    return j >= t->keys.low && j <= t->keys.high &&
           (t->modulus == 1 || (j - t->origin) / t->unit % t->modulus == t->residue);
}

/* How many of the key blocks first .. last are listed for a query block: of lists of blocks, the whole definition. */
static int64_t listed(const hra_mask *m, int64_t query_block, int64_t first, int64_t last)
{
    const int64_t *key = m->key + m->start[query_block];
    const int64_t count = m->start[query_block + 1] - m->start[query_block];

    if (count == 0 || key[0] > last)
        return 0;
    const int64_t up_to_last = find(key, count, last) + 1;
    return up_to_last - (key[0] > first - 1 ? 0 : find(key, count, first - 1) + 1);
}

/* ---- Trees ------------------------------------------------------------------------------------ */

static int is_list(const hra_mask *m)
{
    return m->kind == HRA_MASK_BLOCKS || m->kind == HRA_MASK_RANDOM_BLOCKS;
}

static int is_on_grid(const hra_mask *m)
{
    return m->kind == HRA_MASK_GRID || m->kind == HRA_MASK_NEIGHBOURHOOD;
}

/* What stands for `m` at this (batch, head) and branch: m itself unless it is a choice. */
static const hra_mask *resolve(const hra_mask *m, int batch, int head, int branch)
{
    for (;;) {
        if (m->kind == HRA_MASK_HEADS)
            m = m->child[m->child_of[head]];
        else if (m->kind == HRA_MASK_BATCHES)
            m = m->child[m->child_of[batch]];
        else if (m->kind == HRA_MASK_MIX && branch >= 0)
            m = m->child[branch];
        else
            return m;
    }
}

/* Which coordinate of the asked mask the order of a slots() is. Orders are told apart by what they hold. */
static int coordinate_of(const struct asked *a, const hra_mask *slots)
{
    int n = 0;
    while (a->question->mask->order[n]->hash != slots->order[0]->hash)
        n++;
    return HRA_SLOT + n;
}

/* The coordinate that a mask which reads one reads: causal means tokens wherever it stands. */
static int reads(const struct asked *a, const hra_mask *m)
{
    return m->kind == HRA_MASK_CAUSAL ? HRA_TOKEN : a->coordinate;
}

int hra_mask_branches(const hra_mask *mask, int batch, int head)
{
    const hra_mask *m = mask->mixture ? resolve(mask, batch, head, -1) : mask;

    if (!m->mixture)
        return 1;
    if (m->kind == HRA_MASK_MIX)
        return m->children;
    /* and, of which one mask may be a mixture; or slots */
    int branches = 1;
    for (int n = 0; n < m->children; n++)
        branches *= hra_mask_branches(m->child[n], batch, head);
    return branches;
}

/* ---- Single pairs ------------------------------------------------------------------------------ */

/* Coordinates of a token along the axes of the grid. */
static void coordinates(int64_t out[3], const struct hra_space *space, int64_t token)
{
    for (int a = space->axes - 1; a > 0; a--) {
        const int64_t up = over(token, space->grid[a]);
        out[a] = token - up * space->grid[a];
        token = up;
    }
    out[0] = token;
}

/* Does a mask without children allow query i and key j of the coordinate that it reads? */
static int holds(const hra_mask *m, int head, int64_t i, int64_t j)
{
    if (is_list(m))
        return listed(m, i / m->block, j / m->block, j / m->block) > 0;
    if (is_on_grid(m)) {
        int64_t query[3], key[3];
        int inside = 1;

        coordinates(query, &m->space, i);
        coordinates(key, &m->space, j);
        for (int a = 0; a < m->space.axes; a++) {
            const struct range r = reach(m, a, query[a]);
            inside &= key[a] >= r.low && key[a] <= r.high;
        }
        return inside;
    }
    struct term term[TERMS];
    const int count = terms(m, head, i, term);
    for (int t = 0; t < count; t++)
        if (in_term(&term[t], j))
            return 1;
    return 0;
}

/* i and j are what masks read: tokens, or slots below a slots(). */
static int count_pair(const hra_mask *m, int batch, int head, int64_t i, int64_t j, int64_t query,
                      int64_t key)
{
    int count;

    m = resolve(m, batch, head, -1);
    switch (m->kind) {
    case HRA_MASK_CAUSAL:
        return key <= query;
    case HRA_MASK_SLOTS: {
        const int64_t *slot = m->order[0]->token_to_slot;
        return count_pair(m->child[0], batch, head, slot[i], slot[j], query, key);
    }
    case HRA_MASK_NOT:
        return !count_pair(m->child[0], batch, head, i, j, query, key);
    case HRA_MASK_AND:
        count = 1;
        for (int n = 0; n < m->children && count > 0; n++)
            count *= count_pair(m->child[n], batch, head, i, j, query, key);
        return count;
    case HRA_MASK_OR:
        count = 0;
        for (int n = 0; n < m->children && count == 0; n++)
            count = count_pair(m->child[n], batch, head, i, j, query, key);
        return count;
    case HRA_MASK_MIX:
        count = 0;
        for (int n = 0; n < m->children; n++)
            count += count_pair(m->child[n], batch, head, i, j, query, key);
        return count;
    default:
        return holds(m, head, i, j);
    }
}

int hra_mask_count(const hra_mask *mask, int64_t batch, int64_t head, int64_t query, int64_t key)
{
    if (mask == NULL || batch < 0 || batch >= mask->space.batch || head < 0 || head >= mask->space.heads ||
        query < 0 || query >= mask->space.tokens || key < 0 || key >= mask->space.tokens)
        return 0;
    return count_pair(mask, (int)batch, (int)head, query, key, query, key);
}

int hra_mask_allows(const hra_mask *mask, int64_t batch, int64_t head, int64_t query, int64_t key)
{
    return hra_mask_count(mask, batch, head, query, key) > 0;
}

/* ---- Boxes ------------------------------------------------------------------------------------- */

static void stretch(struct hra_box *box, int coordinate, int64_t low, int64_t high)
{
    box->low[coordinate] = low < box->low[coordinate] ? low : box->low[coordinate];
    box->high[coordinate] = high > box->high[coordinate] ? high : box->high[coordinate];
}

/* The same for a coordinate that has a step. */
static void stretch_steps(struct hra_box *box, int coordinate, struct values v)
{
    if (box->low[coordinate] > box->high[coordinate]) /* empty */
        box->step[coordinate] = v.step;
    else if (box->step[coordinate] != 1)
        box->step[coordinate] = hra_step(box->step[coordinate], v.step, v.low - box->low[coordinate]);
    stretch(box, coordinate, v.low, v.high);
}

/* Can boxes be made of an order's patches: are the grids the same? */
static int fits_patches(const hra_mask *mask, const hra_order *order)
{
    return order->patch != NULL && (!mask->on_grid || (order->on_grid && memcmp(order->grid, mask->space.grid,
                                                                                sizeof(order->grid)) == 0));
}

/* Stretch a box around slots first .. last - 1, token by token. */
static void stretch_tokens(struct hra_box *box, const hra_mask *mask, const hra_order *order, int64_t first,
                           int64_t last)
{
    for (int64_t s = first; s < last; s++) {
        const int64_t token = order->slot_to_token[s];
        int64_t at[3];

        stretch_steps(box, HRA_TOKEN, (struct values){token, token, 0});
        if (!mask->on_grid)
            continue;
        coordinates(at, &mask->space, token);
        for (int a = 0; a < mask->space.axes; a++)
            stretch(box, HRA_AXIS + a, at[a], at[a]);
    }
}

struct hra_box hra_box_of(const hra_mask *mask, const hra_order *order, int64_t slot0, int64_t count)
{
    const int64_t end = slot0 + count;
    int64_t from = (slot0 + HRA_PATCH - 1) / HRA_PATCH, to = end / HRA_PATCH; /* whole patches */
    struct hra_box box;

    for (int c = 0; c < HRA_COORDINATES; c++) {
        box.low[c] = INT64_MAX;
        box.high[c] = INT64_MIN;
    }
    if (order->identity && !mask->on_grid) {
        stretch_steps(&box, HRA_TOKEN, (struct values){slot0, end - 1, count > 1});
    } else if (!fits_patches(mask, order) || from > to) {
        stretch_tokens(&box, mask, order, slot0, end);
    } else {
        stretch_tokens(&box, mask, order, slot0, from * HRA_PATCH);
        for (; from < to; from++) {
            const struct hra_patch *p = &order->patch[from];
            stretch_steps(&box, HRA_TOKEN, (struct values){p->first, p->last, p->step});
            for (int a = 0; a < mask->space.axes; a++)
                stretch(&box, HRA_AXIS + a, p->low[a], p->high[a]);
        }
        stretch_tokens(&box, mask, order, to * HRA_PATCH, end);
    }
    for (int n = 0; n < mask->orders; n++) {
        const int64_t *slot = mask->order[n]->token_to_slot;
        if (mask->order[n]->hash == order->hash)
            stretch_steps(&box, HRA_SLOT + n, (struct values){slot0, end - 1, count > 1});
        else
            for (int64_t s = slot0; s < end; s++) {
                const int64_t other = slot[order->slot_to_token[s]];
                stretch_steps(&box, HRA_SLOT + n, (struct values){other, other, 0});
            }
    }
    return box;
}

void hra_box_join(struct hra_box *box, const hra_mask *mask, const struct hra_box *a, const struct hra_box *b)
{
    for (int c = 0; c < HRA_SLOT + mask->orders; c++) {
        if (c > HRA_TOKEN && c < HRA_SLOT && !mask->on_grid)
            continue;
        box->low[c] = a->low[c] < b->low[c] ? a->low[c] : b->low[c];
        box->high[c] = a->high[c] > b->high[c] ? a->high[c] : b->high[c];
        if (c == HRA_TOKEN || c >= HRA_SLOT)
            box->step[c] = hra_step(a->step[c], b->step[c], a->low[c] - b->low[c]);
    }
}

/* Queries `q` reach from `early` (the keys of the first) to `late` (those of the last), both ends growing. */
static enum hra_answer between(struct range early, struct range late, struct range k)
{
    if (k.high < early.low || k.low > late.high)
        return HRA_NONE;
    return k.low < late.low || k.high > early.high ? HRA_SOME : HRA_ALL;
}

/* Is there a multiple of `step` from low to high? */
static int has_multiple(int64_t low, int64_t high, int64_t step)
{
    /* How far low lies above the multiple before it. */
    const int64_t above = low % step < 0 ? low % step + step : low % step;
    return above == 0 || minus(high, low) >= step - above;
}

/* The values that are in some segments; none, and then low > high, where no step lands there. */
static struct values inside(struct values v, struct range segments)
{
    const int64_t step = v.step > 0 ? v.step : 1;

    if (v.low < segments.low)
        v.low += ((segments.low - v.low - 1) / step + 1) * step;
    if (v.high > segments.high)
        v.high -= ((v.high - segments.high - 1) / step + 1) * step;
    return v;
}

/* Does `rate` divide the values? */
static enum hra_answer divides(int64_t rate, struct values v)
{
    const int64_t common = v.low == v.high ? rate : hra_step(rate, v.step, 0);

    if (v.low % common != 0 || !has_multiple(v.low, v.high, rate))
        return HRA_NONE;
    return common == rate ? HRA_ALL : HRA_SOME;
}

static enum hra_answer classify_dilated(const hra_mask *m, int head, struct values q, struct values k)
{
    const int64_t s = m->segment, rate = m->rate;
    const int64_t offset = m->offset == HRA_OFFSET_HEAD ? head % rate : m->offset;
    const int64_t first = q.low / s > k.low / s ? q.low / s : k.low / s;
    const int64_t last = q.high / s < k.high / s ? q.high / s : k.high / s;
    const int one = q.low / s == q.high / s && k.low / s == k.high / s;
    enum hra_answer answer, queries_answer;

    if (first > last)
        return HRA_NONE;
    if (first < last && s % rate != 0) /* residues differ by segment: there are live pairs but in odd cases */
        return HRA_SOME;

    const struct range shared = {first * s, plus(last * s, s - 1)}; /* segments */
    const int64_t zero = plus(shared.low, offset);
    q = inside(q, shared);
    k = inside(k, shared);
    if (q.low > q.high || k.low > k.high)
        return HRA_NONE;
    if (m->mode == HRA_DILATED_RESIDUE) {
        answer = divides(rate, (struct values){k.low - q.high, k.high - q.low, hra_step(q.step, k.step, 0)});
    } else {
        answer = divides(rate, (struct values){k.low - zero, k.high - zero, k.step});
        queries_answer = m->mode == HRA_DILATED_KEYS
                             ? HRA_ALL
                             : divides(rate, (struct values){q.low - zero, q.high - zero, q.step});
        answer = queries_answer < answer ? queries_answer : answer;
    }
    return answer == HRA_ALL && !one ? HRA_SOME : answer;
}

/* A box of more query blocks than this is cut up anyway before it becomes a tile. */
static enum hra_answer classify_list(const hra_mask *m, struct range q, struct range k)
{
    const int64_t first = q.low / m->block, last = q.high / m->block;
    const int64_t key_first = k.low / m->block, key_last = k.high / m->block;
    int any = 0, all = 1;

    if (m->start[first] == m->start[last + 1])
        return HRA_NONE;
    if (last - first >= HRA_TILE)
        return HRA_SOME;
    for (int64_t row = first; row <= last; row++) {
        const int64_t found = listed(m, row, key_first, key_last);
        any |= found > 0;
        all &= found == key_last - key_first + 1;
        if (any && !all)
            return HRA_SOME;
    }
    return all ? HRA_ALL : HRA_NONE;
}

/* What rules of blocks add to the blocks within `width`, which `near` says. I and J are ranges of blocks. */
static enum hra_answer classify_blocks(const hra_mask *m, enum hra_answer near, struct range I,
                                       struct range J)
{
    const int one = I.low == I.high && J.low == J.high;
    const int64_t least = J.low > I.high ? J.low - I.high : I.low > J.high ? I.low - J.high : 0;
    const int64_t most = I.high - J.low > J.high - I.low ? I.high - J.low : J.high - I.low;
    int any = near != HRA_NONE;

    if (near == HRA_ALL)
        return HRA_ALL;
    if (m->kind == HRA_MASK_STRIDED_BLOCKS && has_multiple(I.low - J.high, I.high - J.low, m->step)) {
        if (one || m->step == 1)
            return HRA_ALL;
        any = 1;
    }
    if (m->kind == HRA_MASK_GLOBAL_BLOCKS) {
        if (I.high < m->global || J.high < m->global)
            return HRA_ALL;
        any |= I.low < m->global || J.low < m->global;
    }
    for (int l = 1; m->kind == HRA_MASK_HIERARCHICAL_BLOCKS && l <= m->levels; l++) {
        const int64_t width = times(m->width, INT64_C(1) << l);
        if (least > width || !has_multiple(J.low, J.high, INT64_C(1) << l))
            continue;
        if (most <= width && J.low == J.high)
            return HRA_ALL;
        any = 1;
    }
    return any ? HRA_SOME : HRA_NONE;
}

/* A mask that reads one coordinate. */
static enum hra_answer classify_line(const hra_mask *m, int head, struct values queries, struct values keys)
{
    const struct range q = {queries.low, queries.high}, k = {keys.low, keys.high};
    struct term early[TERMS], late[TERMS];

    if (is_list(m))
        return classify_list(m, q, k);
    switch (m->kind) {
    case HRA_MASK_DILATED:
        return classify_dilated(m, head, queries, keys);
    case HRA_MASK_GLOBAL:
        if (q.high < m->global || k.high < m->global)
            return HRA_ALL;
        return q.low < m->global || k.low < m->global ? HRA_SOME : HRA_NONE;
    case HRA_MASK_LOCAL_BLOCKS:
    case HRA_MASK_STRIDED_BLOCKS:
    case HRA_MASK_GLOBAL_BLOCKS:
    case HRA_MASK_HIERARCHICAL_BLOCKS: {
        const struct range I = {q.low / m->block, q.high / m->block},
                           J = {k.low / m->block, k.high / m->block};
        const struct range first = {minus(I.low, m->width), plus(I.low, m->width)};
        const struct range last = {minus(I.high, m->width), plus(I.high, m->width)};
        return classify_blocks(m, between(first, last, J), I, J);
    }
    default:
        terms(m, head, q.low, early);
        terms(m, head, q.high, late);
        return between(early[0].keys, late[0].keys, k);
    }
}

static enum hra_answer classify(const struct asked *a, const hra_mask *m, const struct hra_box *q,
                                const struct hra_box *k)
{
    enum hra_answer answer = HRA_ALL;

    m = resolve(m, a->question->batch, a->question->head, a->question->branch);
    switch (m->kind) {
    case HRA_MASK_SLOTS: {
        const struct asked below = {a->question, coordinate_of(a, m)};
        return classify(&below, m->child[0], q, k);
    }
    case HRA_MASK_NOT:
        return (enum hra_answer)(HRA_ALL - classify(a, m->child[0], q, k));
    case HRA_MASK_AND:
        for (int n = 0; n < m->children && answer != HRA_NONE; n++) {
            const enum hra_answer part = classify(a, m->child[n], q, k);
            answer = part < answer ? part : answer;
        }
        return answer;
    case HRA_MASK_OR:
        answer = HRA_NONE;
        for (int n = 0; n < m->children && answer != HRA_ALL; n++) {
            const enum hra_answer part = classify(a, m->child[n], q, k);
            answer = part > answer ? part : answer;
        }
        return answer;
    case HRA_MASK_GRID:
    case HRA_MASK_NEIGHBOURHOOD:
        for (int axis = 0; axis < m->space.axes && answer != HRA_NONE; axis++) {
            const int c = HRA_AXIS + axis;
            const enum hra_answer part = between(reach(m, axis, q->low[c]), reach(m, axis, q->high[c]),
                                                 (struct range){k->low[c], k->high[c]});
            answer = part < answer ? part : answer;
        }
        return answer;
    default: {
        const int c = reads(a, m);
        return classify_line(m, a->question->head, (struct values){q->low[c], q->high[c], q->step[c]},
                             (struct values){k->low[c], k->high[c], k->step[c]});
    }
    }
}

enum hra_answer hra_mask_classify(const struct hra_question *question, const struct hra_box *q,
                                  const struct hra_box *k)
{
    const struct asked asked = {question, HRA_TOKEN};
    return classify(&asked, question->mask, q, k);
}

/* ---- Tiles: rows sorted by coordinate ----------------------------------------------------------- */

typedef uint64_t rows_set[WORDS]; /* bit r of word r / 64: row r */

/* The rows of a tile by one coordinate. */
struct axis {
    int ready;                    /* the rest is filled */
    int values;                   /* different ones */
    int contiguous;               /* value[v] = value[0] + v */
    int64_t step;                 /* value[v] = value[0] + a multiple of it */
    int64_t value[HRA_TILE];      /* [values] ascending */
    unsigned char of[HRA_TILE];   /* [count] which value a row has */
    rows_set below[HRA_TILE + 1]; /* [values + 1] the rows that have one of the first v values */
};

/* Axes are filled when they are first needed. */
struct hra_points {
    const hra_mask *mask;
    const hra_order *order;
    int64_t slot0;
    int count;
    int first_slot; /* the place of HRA_SLOT among axis: coordinates of the grid are left out where none reads them */
    struct axis axis[];
};

size_t hra_points_bytes(const hra_mask *mask)
{
    const int axes = HRA_AXIS + (mask->on_grid ? mask->space.axes : 0) + mask->orders;
    const size_t bytes = sizeof(struct hra_points) + (size_t)axes * sizeof(struct axis);
    return (bytes + 63) / 64 * 64;
}

void hra_points_fill(struct hra_points *points, const hra_mask *mask, const hra_order *order, int64_t slot0,
                     int count)
{
    points->mask = mask;
    points->order = order;
    points->slot0 = slot0;
    points->count = count;
    points->first_slot = HRA_AXIS + (mask->on_grid ? mask->space.axes : 0);
    for (int c = 0; c < points->first_slot + mask->orders; c++)
        points->axis[c].ready = 0;
}

/* The coordinate of every row. */
static void read_coordinate(int64_t *out, const struct hra_points *p, int coordinate)
{
    const int64_t *token = p->order->slot_to_token + p->slot0;

    if (coordinate >= HRA_SLOT) {
        const hra_order *order = p->mask->order[coordinate - HRA_SLOT];
        for (int r = 0; r < p->count; r++)
            out[r] = order->hash == p->order->hash ? p->slot0 + r : order->token_to_slot[token[r]];
        return;
    }
    for (int r = 0; r < p->count; r++) {
        int64_t at[3];
        if (coordinate == HRA_TOKEN) {
            out[r] = token[r];
            continue;
        }
        coordinates(at, &p->mask->space, token[r]);
        out[r] = at[coordinate - HRA_AXIS];
    }
}

/* place [count]: the rows in ascending order of x, equal ones in theirs. */
static void sort_rows(unsigned char *place, const int64_t *x, int count)
{
    static const int gaps[] = {57, 23, 10, 4, 1}; /* Shell's sort with Ciura's gaps (2001) */
    enum { NEAR = 2 * HRA_TILE };
    unsigned char before[NEAR + 1] = {0};
    int64_t low = x[0], high = x[0];
    int sorted = 1;

    for (int r = 0; r < count; r++) {
        place[r] = (unsigned char)r;
        sorted &= r == 0 || x[r - 1] <= x[r];
        low = x[r] < low ? x[r] : low;
        high = x[r] > high ? x[r] : high;
    }
    if (sorted)
        return;
    if (high - low < NEAR) { /* coordinates of a grid: count them */
        for (int r = 0; r < count; r++)
            before[x[r] - low + 1]++;
        for (int v = 0; v < NEAR; v++)
            before[v + 1] = (unsigned char)(before[v + 1] + before[v]);
        for (int r = 0; r < count; r++)
            place[before[x[r] - low]++] = (unsigned char)r;
        return;
    }
    for (size_t g = 0; g < sizeof(gaps) / sizeof(gaps[0]); g++)
        for (int r = gaps[g]; r < count; r++) {
            const unsigned char moved = place[r];
            int at = r;
            for (; at >= gaps[g]; at -= gaps[g]) {
                const unsigned char other = place[at - gaps[g]];
                if (x[other] < x[moved] || (x[other] == x[moved] && other < moved))
                    break;
                place[at] = other;
            }
            place[at] = moved;
        }
}

/* The axis of a coordinate, filled. */
static const struct axis *axis_of(struct hra_points *p, int coordinate)
{
    struct axis *axis = &p->axis[coordinate >= HRA_SLOT ? p->first_slot + coordinate - HRA_SLOT : coordinate];
    unsigned char place[HRA_TILE];
    int64_t x[HRA_TILE];
    rows_set below = {0};

    if (axis->ready)
        return axis;
    read_coordinate(x, p, coordinate);
    sort_rows(place, x, p->count);
    axis->values = 0;
    for (int n = 0; n < p->count; n++) {
        const int r = place[n];
        if (n == 0 || x[r] != x[place[n - 1]]) {
            memcpy(axis->below[axis->values], below, sizeof(below));
            axis->value[axis->values++] = x[r];
        }
        axis->of[r] = (unsigned char)(axis->values - 1);
        below[r / 64] |= UINT64_C(1) << r % 64;
    }
    memcpy(axis->below[axis->values], below, sizeof(below));
    axis->contiguous = axis->value[axis->values - 1] - axis->value[0] == axis->values - 1;
    axis->step = axis->contiguous;
    for (int v = 1; v < axis->values && axis->step != 1; v++)
        axis->step = hra_step(axis->step, 0, axis->value[v] - axis->value[v - 1]);
    axis->ready = 1;
    return axis;
}

/* How many of the values are less than x. */
static int rank_of(const struct axis *axis, int64_t x)
{
    if (axis->contiguous)
        return x <= axis->value[0]                 ? 0
               : x > axis->value[axis->values - 1] ? axis->values
                                                   : (int)(x - axis->value[0]);
    int low = 0;
    for (int left = axis->values; left > 0;) { /* what is looked for is among low .. low + left */
        const int half = left / 2, beyond = axis->value[low + half] < x;
        low = beyond ? low + half + 1 : low;
        left = beyond ? left - half - 1 : half;
    }
    return low;
}

/* out |= the rows whose value is in the range. */
static void add_range(rows_set out, const struct axis *axis, struct range range)
{
    if (range.low > range.high)
        return;
    const int from = rank_of(axis, range.low);
    const int to = range.high == INT64_MAX ? axis->values : rank_of(axis, range.high + 1);
    for (int w = 0; w < WORDS; w++)
        out[w] |= axis->below[to][w] & ~axis->below[from][w];
}

/* ---- Tiles: bits -------------------------------------------------------------------------------- */

/* Which keys have which residue: kept from query to query, since most ask the same again. */
struct residues {
    int64_t origin, unit, modulus;
    int64_t of[HRA_TILE]; /* [values] */
};

/* What terms are made of, for the keys of one tile. */
struct sieve {
    const struct axis *keys;
    struct residues residues;
    struct term term[TERMS]; /* [terms] those of the last query that had any */
    int terms;
    rows_set row;         /* its keys */
    rows_set kept[TERMS]; /* rows that have the residue of the term, for those with a modulus */
};

static int same_residue(const struct term *a, const struct term *b)
{
    return a->origin == b->origin && a->unit == b->unit && a->modulus == b->modulus &&
           a->residue == b->residue;
}

static int same_keys(const struct term *a, const struct term *b)
{
    return a->keys.low == b->keys.low && a->keys.high == b->keys.high && same_residue(a, b);
}

/* out = the rows that have the residue of a term. */
static void find_residue(rows_set out, struct sieve *s, const struct term *t)
{
    const struct axis *keys = s->keys;
    struct residues *known = &s->residues;

    memset(out, 0, sizeof(rows_set));
    if (keys->contiguous && t->unit == 1) { /* every modulus-th of them; no division for each */
        const int64_t at = (keys->value[0] - t->origin) % t->modulus, to = t->residue - at;
        for (int64_t v = to < 0 ? to + t->modulus : to % t->modulus; v < keys->values;
             v = plus(v, t->modulus))
            for (int w = 0; w < WORDS; w++)
                out[w] |= keys->below[v + 1][w] & ~keys->below[v][w];
        return;
    }
    if (known->origin != t->origin || known->unit != t->unit || known->modulus != t->modulus) {
        known->origin = t->origin;
        known->unit = t->unit;
        known->modulus = t->modulus;
        for (int v = 0; v < keys->values; v++) { /* keys before the origin are outside the term's range */
            const int64_t from = keys->value[v] < t->origin ? 0 : keys->value[v] - t->origin;
            const int64_t unit = over(from, t->unit);
            known->of[v] = unit - over(unit, t->modulus) * t->modulus;
        }
    }
    for (int v = 0; v < keys->values; v++)
        if (known->of[v] == t->residue)
            for (int w = 0; w < WORDS; w++)
                out[w] |= keys->below[v + 1][w] & ~keys->below[v][w];
}

/* row = the keys of a mask that reads one coordinate, for a query there, which mostly shares all or much with the query
 * before. */
static void sift(rows_set row, struct sieve *s, const hra_mask *m, int head, int64_t i)
{
    struct term term[TERMS];

    if (m->kind == HRA_MASK_DOCS && s->terms > 0 && i >= s->term[0].keys.low && i <= s->term[0].keys.high) {
        memcpy(row, s->row, sizeof(rows_set)); /* the same document, without a search for it */
        return;
    }
    const int count = terms(m, head, i, term);
    int same = count == s->terms;
    memset(row, 0, sizeof(rows_set));
    if (count == 0)
        return;
    for (int t = 0; t < count && same; t++)
        same = same_keys(&term[t], &s->term[t]);
    for (int t = 0; t < count && !same; t++) {
        rows_set part = {0};

        add_range(part, s->keys, term[t].keys);
        if (term[t].modulus != 1) {
            if (t >= s->terms || !same_residue(&term[t], &s->term[t]))
                find_residue(s->kept[t], s, &term[t]);
            for (int w = 0; w < WORDS; w++)
                part[w] &= s->kept[t][w];
        }
        for (int w = 0; w < WORDS; w++)
            row[w] |= part[w];
        s->term[t] = term[t];
    }
    memcpy(same ? row : s->row, same ? s->row : row, sizeof(rows_set));
    s->terms = count;
}

/* row = the keys of a list of blocks, for a query block. */
static void look_up(rows_set row, const struct axis *keys, const hra_mask *m, int64_t query_block)
{
    const int64_t first = keys->value[0] / m->block, last = keys->value[keys->values - 1] / m->block;
    const int64_t *key = m->key + m->start[query_block];
    const int64_t count = m->start[query_block + 1] - m->start[query_block];
    int64_t n = count == 0 || key[0] >= first ? 0 : find(key, count, first - 1) + 1;

    memset(row, 0, sizeof(rows_set));
    for (; n < count && key[n] <= last; n++)
        add_range(row, keys, of_blocks(m, key[n], key[n]));
}

static void line_bits(const hra_mask *m, int head, const struct axis *q, const struct axis *k, int count,
                      uint64_t bits[HRA_TILE][WORDS])
{
    rows_set row[HRA_TILE];
    struct sieve sieve;

    sieve.keys = k;
    sieve.terms = 0;
    sieve.residues.modulus = 0;
    for (int v = 0; v < q->values; v++) {
        const int64_t i = q->value[v];

        if (!is_list(m))
            sift(row[v], &sieve, m, head, i);
        else if (v > 0 && q->value[v - 1] / m->block == i / m->block)
            memcpy(row[v], row[v - 1], sizeof(rows_set));
        else
            look_up(row[v], k, m, i / m->block);
    }
    for (int r = 0; r < count; r++)
        memcpy(bits[r], row[q->of[r]], sizeof(rows_set));
}

/* bits &= the keys in reach along one axis of the grid. */
static void grid_bits(const hra_mask *m, int axis, const struct axis *q, const struct axis *k, int count,
                      uint64_t bits[HRA_TILE][WORDS])
{
    rows_set row[HRA_TILE];

    for (int v = 0; v < q->values; v++) {
        memset(row[v], 0, sizeof(rows_set));
        add_range(row[v], k, reach(m, axis, q->value[v]));
    }
    for (int r = 0; r < count; r++)
        for (int w = 0; w < WORDS; w++)
            bits[r][w] &= row[q->of[r]][w];
}

static struct range span(const struct axis *axis)
{
    return (struct range){axis->value[0], axis->value[axis->values - 1]};
}

/* Every pair of the tile. */
static void all_bits(const struct hra_points *q, const struct hra_points *k, uint64_t bits[HRA_TILE][WORDS])
{
    rows_set row = {0};

    for (int c = 0; c < k->count; c++)
        row[c / 64] |= UINT64_C(1) << c % 64;
    for (int r = 0; r < q->count; r++)
        memcpy(bits[r], row, sizeof(row));
}

static enum hra_answer grid_tile(const hra_mask *m, struct hra_points *q, struct hra_points *k,
                                 uint64_t bits[HRA_TILE][WORDS])
{
    enum hra_answer answer = HRA_ALL, part[3];

    for (int a = 0; a < m->space.axes; a++) {
        const struct range queries = span(axis_of(q, HRA_AXIS + a));
        part[a] =
            between(reach(m, a, queries.low), reach(m, a, queries.high), span(axis_of(k, HRA_AXIS + a)));
        answer = part[a] < answer ? part[a] : answer;
    }
    if (answer != HRA_SOME)
        return answer;
    all_bits(q, k, bits);
    for (int a = 0; a < m->space.axes; a++)
        if (part[a] == HRA_SOME)
            grid_bits(m, a, axis_of(q, HRA_AXIS + a), axis_of(k, HRA_AXIS + a), q->count, bits);
    return HRA_SOME;
}

/* The answer for a tile; its bits where that is SOME. Parts that turn out to be all or nothing cost no bits. */
static enum hra_answer tile_of(const struct asked *a, const hra_mask *m, struct hra_points *q,
                               struct hra_points *k, uint64_t bits[HRA_TILE][WORDS])
{
    const int head = a->question->head;
    uint64_t part[HRA_TILE][WORDS];

    m = resolve(m, a->question->batch, head, a->question->branch);
    switch (m->kind) {
    case HRA_MASK_SLOTS: {
        const struct asked below = {a->question, coordinate_of(a, m)};
        return tile_of(&below, m->child[0], q, k, bits);
    }
    case HRA_MASK_NOT: {
        const enum hra_answer answer = tile_of(a, m->child[0], q, k, part);

        if (answer != HRA_SOME)
            return (enum hra_answer)(HRA_ALL - answer);
        all_bits(q, k, bits);
        for (int r = 0; r < q->count; r++)
            for (int w = 0; w < WORDS; w++)
                bits[r][w] &= ~part[r][w];
        return HRA_SOME;
    }
    case HRA_MASK_AND:
    case HRA_MASK_OR: {
        /* Children that answer `idle` change nothing, one that answers `rules` decides all. */
        const enum hra_answer idle = m->kind == HRA_MASK_AND ? HRA_ALL : HRA_NONE;
        const enum hra_answer rules = (enum hra_answer)(HRA_ALL - idle);
        int found = 0;

        for (int n = 0; n < m->children; n++) {
            const enum hra_answer answer = tile_of(a, m->child[n], q, k, found > 0 ? part : bits);
            if (answer == rules)
                return rules;
            if (answer == idle || found++ == 0)
                continue;
            for (int r = 0; r < q->count; r++)
                for (int w = 0; w < WORDS; w++)
                    bits[r][w] = m->kind == HRA_MASK_AND ? bits[r][w] & part[r][w] : bits[r][w] | part[r][w];
        }
        return found > 0 ? HRA_SOME : idle;
    }
    case HRA_MASK_GRID:
    case HRA_MASK_NEIGHBOURHOOD:
        return grid_tile(m, q, k, bits);
    default: {
        const struct axis *queries = axis_of(q, reads(a, m)), *keys = axis_of(k, reads(a, m));
        const struct range q_span = span(queries), k_span = span(keys);
        const enum hra_answer answer =
            classify_line(m, head, (struct values){q_span.low, q_span.high, queries->step},
                          (struct values){k_span.low, k_span.high, keys->step});

        if (answer == HRA_SOME)
            line_bits(m, head, queries, keys, q->count, bits);
        return answer;
    }
    }
}

void hra_mask_bits(const struct hra_question *question, struct hra_points *q, struct hra_points *k,
                   uint64_t bits[HRA_TILE][HRA_TILE / 64])
{
    const struct asked asked = {question, HRA_TOKEN};
    const enum hra_answer answer = tile_of(&asked, question->mask, q, k, bits);
    const int rows = answer == HRA_NONE ? 0 : q->count;

    if (answer == HRA_ALL)
        all_bits(q, k, bits);
    memset(bits + rows, 0, (size_t)(HRA_TILE - rows) * sizeof(bits[0]));
}

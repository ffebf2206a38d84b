/* fuzz_mask.c - libFuzzer over mask texts and problems: texts are read, written and read again, and what they mean is
 * compiled and compared with every pair asked by itself.
 *
 * An input is HEAD bytes that choose the problem, then the text of a mask. Any bytes are a valid head, so that inputs
 * can be written by hand: `00000000causal` is one. A part of the mutations puts a drawn mask in the place of the
 * text, since single bytes rarely lead from one mask that parses to another. */
#include "examples/tools/problem.h"
#include "tests/brute.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the head, by what they choose. */
enum { GRID, TOKENS, MORE, HEADS, BATCH, ORDER, RANKS, PICK, HEAD };

struct input {
    const uint8_t *head; /* [HEAD] */
    char text[1 << 14];
    hra_domain domain;
    hra_order *order;
    hra_mask *mask;
};

static int64_t inputs, parsed;

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most); /* libFuzzer's own mutations */

static void report(void)
{
    fprintf(stderr, "fuzz_mask: %" PRId64 " inputs, %" PRId64 " of them masks that parse\n", inputs, parsed);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    atexit(report);
    return 0;
}

/* Demand something of an input, or stop, which libFuzzer reports with the input. */
static void demand(const struct input *in, int holds, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void demand(const struct input *in, int holds, const char *format, ...)
{
    const hra_domain *d = &in->domain;
    va_list args;

    if (holds)
        return;
    va_start(args, format);
    fprintf(stderr, "fuzz_mask: ");
    vfprintf(stderr, format, args);
    fprintf(stderr,
            "\n%" PRId64 " tokens, grid %" PRId64 " %" PRId64 " %" PRId64
            ", %d sequences, %d heads, order %s: %s\n",
            d->tokens, d->grid[0], d->grid[1], d->grid[2], d->batch, d->heads,
            in->order == NULL ? "none" : in->order->name, in->text);
    va_end(args);
    abort();
}

/* ---- The problem --------------------------------------------------------------------------------- */

/* More tokens than any order has, up to as many as there can be: masks of them are asked about single pairs and boxes. */
static const hra_domain vast[] = {
    {.tokens = INT64_C(1) << 40},
    {.tokens = INT64_MAX},
    {.tokens = INT64_C(3037000499) * 3037000499, .grid = {3037000499, 3037000499}},
    {.tokens = INT64_C(2097151) * 2097151 * 2097151, .grid = {2097151, 2097151, 2097151}},
};

static int is_vast(const hra_domain *d)
{
    return d->tokens >= vast[0].tokens;
}

/* Mostly few tokens, which are quick to compare; at most about 300, so that there are several tiles; or vast. */
static void choose_domain(hra_domain *d, const uint8_t *head)
{
    const int large = head[MORE] % 8 == 0;

    *d = (hra_domain)HRA_DOMAIN_INIT;
    switch (head[GRID] % 7) {
    case 0:
        *d = vast[head[TOKENS] % 4];
        d->size = sizeof(*d);
        break;
    case 1:
    case 2:
        d->tokens = large ? 1 + head[TOKENS] + head[MORE] / 5 : 1 + head[TOKENS] % 48;
        break;
    case 3:
    case 4:
        d->grid[0] = 1 + head[TOKENS] % (large ? 17 : 7);
        d->grid[1] = 1 + head[TOKENS] / 17 % (large ? 17 : 7);
        d->tokens = d->grid[0] * d->grid[1];
        break;
    default:
        for (int a = 0; a < 3; a++)
            d->grid[a] = 1 + (head[TOKENS] >> 2 * a) % (large ? 7 : 4);
        d->tokens = d->grid[0] * d->grid[1] * d->grid[2];
    }
    d->batch = 1 + head[BATCH] % 2;
    d->heads = 1 + head[HEADS] % 3;
}

/* One of the names, boxes that fit, either of them perhaps by residues, a permutation, or none, with which slots() must
 * name its own. */
static void choose_order(struct input *in)
{
    static const char *const names[] = {"identity", "hilbert", "morton", "snake", "boxes:1x1"};
    const hra_domain *d = &in->domain;
    const int kind = in->head[ORDER] % 7;
    hra_status status = HRA_OK;
    char name[96] = "";
    int length = 0;

    if (kind == 6 || is_vast(d))
        return;
    if (kind == 5) {
        int64_t token[512];
        for (int64_t s = 0; s < d->tokens; s++) {
            const int64_t other = (int64_t)(random_bits(in->head[ORDER], (uint64_t)s) % (uint64_t)(s + 1));
            token[s] = token[other];
            token[other] = s;
        }
        status = hra_order_permutation(&in->order, d, token);
        demand(in, status == HRA_OK, "no order: %s", hra_last_error());
        return;
    }
    if (in->head[ORDER] / 7 % 3 == 1)
        length = snprintf(name, sizeof(name), "residues:%d:%d:", 1 + in->head[MORE], 1 + in->head[PICK] % 6);
    if (kind == 4 && d->grid[0] > 0) {
        length += snprintf(name + length, sizeof(name) - (size_t)length, "boxes:%" PRId64 "x%" PRId64,
                           (d->grid[0] + 1) / 2, (d->grid[1] + 2) / 3);
        if (d->grid[2] > 0)
            snprintf(name + length, sizeof(name) - (size_t)length, "x%d", 1);
    } else {
        snprintf(name + length, sizeof(name) - (size_t)length, "%s", names[kind]);
    }
    status = hra_order_create(&in->order, d, name);
    demand(in, status == HRA_OK, "no order: %s", hra_last_error());
}

/* ---- Texts --------------------------------------------------------------------------------------- */

/* A text that does not parse gets one sentence that says where. */
static void expect_sentence(const struct input *in, hra_status status)
{
    const char *error = hra_last_error(), *where = strstr(error, "character ");

    demand(in, status == HRA_ERR_ARG, "%s: %s", hra_status_name(status), error);
    demand(in, in->mask == NULL, "a failure gave a mask");
    demand(in, where != NULL, "the message does not say where: %s", error);
    const long at = strtol(where + strlen("character "), NULL, 10);
    demand(in, at >= 1 && at <= (long)strlen(in->text) + 1, "not a place in the text: %s", error);
}

/* The text of a mask; the caller's to free. */
static char *print(const struct input *in, const hra_mask *mask)
{
    const size_t length = hra_mask_print(mask, NULL, 0), cut = length / 2;
    char *text = malloc(length + 1), *begin = malloc(cut + 1);

    demand(in, text != NULL && begin != NULL, "no memory for the text");
    demand(in, hra_mask_print(mask, text, length + 1) == length && strlen(text) == length,
           "prints %zu or %zu bytes", length, strlen(text));
    demand(in,
           hra_mask_print(mask, begin, cut + 1) == length && strlen(begin) == cut &&
               memcmp(begin, text, cut) == 0,
           "prints otherwise into %zu bytes", cut + 1);
    free(begin);
    return text;
}

/* What is printed parses to a mask with the same text and the same keys. */
static void expect_round_trip(const struct input *in)
{
    char *text = print(in, in->mask);
    hra_mask *again = NULL;

    demand(in, hra_mask_parse(&again, &in->domain, in->order, text) == HRA_OK, "%s: %s", text,
           hra_last_error());
    char *same = print(in, again);
    demand(in, strcmp(text, same) == 0, "%s becomes %s", text, same);
    demand(in, hra_mask_hash(in->mask) == hra_mask_hash(again), "%s has another hash", text);
    for (int s = 0; s < in->domain.batch; s++)
        for (int h = 0; h < in->domain.heads; h++)
            demand(in, hra_mask_key(in->mask, s, h) == hra_mask_key(again, s, h), "%s has another key", text);
    free(text);
    free(same);
    hra_mask_destroy(again);
}

/* ---- Meaning ------------------------------------------------------------------------------------- */

/* 0 .. below - 1, the n-th of an input */
static int64_t pick(const struct input *in, uint64_t n, int64_t below)
{
    return (int64_t)(random_bits(in->head[PICK], n) % (uint64_t)below);
}

/* What is answered for a box of drawn ranges of slots is true of each of its pairs. */
static void expect_box(const struct input *in, const struct brute *b, uint64_t n)
{
    const int64_t tokens = in->domain.tokens, q0 = pick(in, n, tokens), k0 = pick(in, n + 1, tokens);
    const int64_t q1 = q0 + 1 + pick(in, n + 2, tokens - q0), k1 = k0 + 1 + pick(in, n + 3, tokens - k0);
    const struct hra_box q = hra_box_of(in->mask, b->order, q0, q1 - q0);
    const struct hra_box k = hra_box_of(in->mask, b->order, k0, k1 - k0);
    const int branches = hra_mask_branches(in->mask, 0, b->head0);
    int least = 0, most = 0;

    for (int branch = 0; branch < branches; branch++) {
        const struct hra_question question = {in->mask, 0, b->head0, branch};
        const enum hra_answer answer = hra_mask_classify(&question, &q, &k);
        least += answer == HRA_ALL;
        most += answer != HRA_NONE;
    }
    for (int64_t i = q0; i < q1; i++)
        for (int64_t j = k0; j < k1; j++) {
            const int count = b->count[i * tokens + j];
            demand(in, count >= least && count <= most,
                   "head %d, slots %" PRId64 " and %" PRId64 ": %d times, of the box %d to %d", b->head0, i,
                   j, count, least, most);
        }
}

/* Any way to shard; balanced by work that is picked. */
static struct hra_layout *cut(const struct input *in, const hra_order *order, int ranks)
{
    const hra_shard shard = (hra_shard)(HRA_SHARD_CONTIGUOUS + in->head[RANKS] % 3);
    struct hra_layout *layout = NULL, *whole = NULL;
    int64_t work[512] = {0};
    hra_status status;

    if (shard == HRA_SHARD_BALANCED) {
        status = hra_layout_create(&whole, order, 1, HRA_SHARD_CONTIGUOUS);
        for (int tile = 0; status == HRA_OK && tile < whole->tiles; tile++)
            work[tile] = pick(in, (uint64_t)tile, 9);
        if (status == HRA_OK)
            status = hra_layout_balanced(&layout, order, ranks, work);
        hra_layout_destroy(whole);
    } else {
        status = hra_layout_create(&layout, order, ranks, shard);
    }
    demand(in, status == HRA_OK, "no layout: %s", hra_last_error());
    return layout;
}

/* The tiles of every rank, and boxes, of one head of the first sequence. */
static void expect_meaning(const struct input *in)
{
    hra_order *order = in->order == NULL ? NULL : hra_order_keep(in->order);
    const int ranks = 1 + in->head[RANKS] / 3 % 4, head = in->head[PICK] % in->domain.heads;

    if (order == NULL)
        demand(in, hra_order_create(&order, &in->domain, "identity") == HRA_OK, "%s", hra_last_error());
    struct hra_layout *layout = cut(in, order, ranks);
    struct brute b = {
        .order = order, .mask = in->mask, .layout = layout, .batch = 1, .head0 = head, .heads = 1};
    demand(in, brute_ask(&b) == 0, "no memory");
    for (int rank = 0; rank < ranks; rank++) {
        struct hra_tiles *t = NULL;
        demand(in, hra_tiles_compile(&t, layout, order, in->mask, rank, 1, head, 1) == HRA_OK, "%s",
               hra_last_error());
        demand(in, brute_check(&b, t) == 0, "rank %d of %d, head %d: %s", rank, ranks, head, b.error);
        hra_tiles_destroy(t);
    }
    for (uint64_t n = 0; n < 8; n++)
        expect_box(in, &b, 4 * n);
    brute_free(&b);
    hra_layout_destroy(layout);
    hra_order_destroy(order);
}

/* ---- Meaning in vast domains --------------------------------------------------------------------- */

/* Do masks of a vast domain need memory that follows its tokens? */
static int is_listed(const char *text)
{
    if (strstr(text, "slots") != NULL || strstr(text, "random_blocks") != NULL)
        return 1;
    for (const char *at = text; (at = strstr(at, "blocks")) != NULL; at++)
        if (at == text || at[-1] != '_')
            return 1;
    return 0;
}

/* 0 .. below - 1, often near an end */
static int64_t pick_far(const struct input *in, uint64_t n, int64_t below)
{
    const uint64_t bits = random_bits(in->head[PICK], n);
    const int64_t value = (int64_t)((random_bits(bits, 0) >> bits % 64) % (uint64_t)below);

    return bits / 64 % 4 == 0 ? below - 1 - value : value;
}

/* Lowest and highest coordinates of some tokens; axis 0 is the line where there is no grid. */
struct corners {
    int64_t low[3], high[3];
};

static struct corners pick_corners(const struct input *in, uint64_t n)
{
    struct corners c;

    for (int a = 0; a < 3; a++) {
        const int64_t side = a == 0 && in->domain.grid[0] == 0 ? in->domain.tokens : in->domain.grid[a];
        const int64_t x = side > 0 ? pick_far(in, n + (uint64_t)a, side) : 0;
        const int64_t y = side > 0 ? pick_far(in, n + 3 + (uint64_t)a, side) : 0;
        c.low[a] = x < y ? x : y;
        c.high[a] = x < y ? y : x;
    }
    return c;
}

static int64_t token_at(const hra_domain *d, const int64_t at[3])
{
    int64_t token = at[0];

    for (int a = 1; a < 3 && d->grid[a] > 0; a++)
        token = token * d->grid[a] + at[a];
    return token;
}

static struct hra_box box_of(const hra_domain *d, const struct corners *c)
{
    struct hra_box box = {.step = {[HRA_TOKEN] = 1}};

    box.low[HRA_TOKEN] = token_at(d, c->low);
    box.high[HRA_TOKEN] = token_at(d, c->high);
    memcpy(&box.low[HRA_AXIS], c->low, sizeof(c->low));
    memcpy(&box.high[HRA_AXIS], c->high, sizeof(c->high));
    return box;
}

/* A token between the corners, or at one. */
static int64_t pick_token(const struct input *in, uint64_t n, const struct corners *c)
{
    int64_t at[3];

    for (int a = 0; a < 3; a++)
        at[a] = c->low[a] + pick_far(in, n + (uint64_t)a, c->high[a] - c->low[a] + 1);
    return token_at(&in->domain, at);
}

/* What is answered for a box is true of pairs in it. */
static void expect_vast_box(const struct input *in, uint64_t n)
{
    const int head = in->head[PICK] % in->domain.heads, branches = hra_mask_branches(in->mask, 0, head);
    const struct corners query = pick_corners(in, n), key = pick_corners(in, n + n % 3 * 6);
    const struct hra_box q = box_of(&in->domain, &query), k = box_of(&in->domain, &key);
    int least = 0, most = 0;

    for (int branch = 0; branch < branches; branch++) {
        const struct hra_question question = {in->mask, 0, head, branch};
        const enum hra_answer answer = hra_mask_classify(&question, &q, &k);
        least += answer == HRA_ALL;
        most += answer != HRA_NONE;
    }
    for (uint64_t pair = n; pair < n + 12 * 6; pair += 6) {
        const int64_t i = pick_token(in, pair, &query), j = pick_token(in, pair + 3, &key);
        const int count = hra_mask_count(in->mask, 0, head, i, j);
        demand(in, count >= least && count <= most,
               "head %d, tokens %" PRId64 " and %" PRId64 ": %d times, of the box %d to %d", head, i, j,
               count, least, most);
    }
}

/* ---- Inputs -------------------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {.head = data};

    inputs++;
    if (size < HEAD || size - HEAD >= sizeof(in.text))
        return 0;
    memcpy(in.text, data + HEAD, size - HEAD);
    choose_domain(&in.domain, in.head);
    if (is_vast(&in.domain) && is_listed(in.text))
        return 0;
    choose_order(&in);
    const hra_status status = hra_mask_parse(&in.mask, &in.domain, in.order, in.text);
    if (status != HRA_OK) {
        expect_sentence(&in, status);
    } else {
        parsed++;
        expect_round_trip(&in);
        if (!is_vast(&in.domain))
            expect_meaning(&in);
        for (uint64_t n = 0; n < 16 && is_vast(&in.domain); n++)
            expect_vast_box(&in, 100 * n);
    }
    hra_mask_destroy(in.mask);
    hra_order_destroy(in.order);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    hra_domain domain;

    if (seed % 4 != 0 || most < HEAD)
        return LLVMFuzzerMutate(data, size, most);
    for (size_t n = size; n < HEAD; n++)
        data[n] = '0';
    data[seed / 4 % HEAD] = (uint8_t)(seed >> 8);
    choose_domain(&domain, data);
    if (is_vast(&domain)) { /* more than masks are drawn for */
        for (int a = 0; a < 3; a++)
            domain.grid[a] = domain.grid[a] > 0 ? 8192 : 0;
        domain.tokens = domain.grid[0] > 0 ? 0 : vast[0].tokens;
    }
    char *text = mask_random(&domain, seed);
    const size_t length = text == NULL ? 0 : strlen(text), kept = length < most - HEAD ? length : most - HEAD;
    if (text != NULL)
        memcpy(data + HEAD, text, kept);
    free(text);
    return HEAD + kept;
}

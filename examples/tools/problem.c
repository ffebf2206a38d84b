/* problem.c - command lines, the library's objects for them, and problems drawn at random. */
#include "examples/tools/problem.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Random numbers ------------------------------------------------------------------------ */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

uint64_t random_bits(uint64_t series, uint64_t n)
{
    const uint64_t step = UINT64_C(0x9e3779b97f4a7c15);
    return mix(mix(series + step) + (n + 1) * step);
}

double random_normal(uint64_t series, uint64_t n)
{
    const double unit = 0x1p-53, turn = 6.283185307179586;
    const double a = (double)((random_bits(series, 2 * n) >> 11) + 1) * unit; /* (0, 1] */
    const double b = (double)(random_bits(series, 2 * n + 1) >> 11) * unit;   /* [0, 1) */
    return sqrt(-2 * log(a)) * cos(turn * b);
}

/* ---- Command lines ------------------------------------------------------------------------- */

static const struct option_choice types[] = {
    {"f64", HRA_F64}, {"f32", HRA_F32}, {"bf16", HRA_BF16}, {"f16", HRA_F16}, {NULL, 0}};
static const struct option_choice shards[] = {{"auto", HRA_SHARD_AUTO},
                                              {"contiguous", HRA_SHARD_CONTIGUOUS},
                                              {"zigzag", HRA_SHARD_ZIGZAG},
                                              {"balanced", HRA_SHARD_BALANCED},
                                              {NULL, 0}};
static const struct option_choice schedules[] = {{"auto", HRA_SCHEDULE_AUTO},
                                                 {"ring", HRA_SCHEDULE_RING},
                                                 {"halo", HRA_SCHEDULE_HALO},
                                                 {"heads", HRA_SCHEDULE_HEADS},
                                                 {NULL, 0}};
static const struct option_choice backends[] = {{"auto", HRA_BACKEND_AUTO}, {"cpu", HRA_BACKEND_CPU},
                                                {"cuda", HRA_BACKEND_CUDA}, {"sm90", HRA_BACKEND_SM90},
                                                {"gpu", HRA_BACKEND_GPU},   {NULL, 0}};
static const struct option_choice backwards[] = {
    {"auto", HRA_BACKWARD_AUTO}, {"fused", HRA_BACKWARD_FUSED}, {"cublas", HRA_BACKWARD_CUBLAS}, {NULL, 0}};
static const struct option_choice saveds[] = {
    {"nothing", HRA_SAVED_NOTHING}, {"qkv", HRA_SAVED_QKV}, {NULL, 0}};
static const struct option_choice rows_kinds[] = {
    {"slots", HRA_ROWS_SLOTS}, {"tokens", HRA_ROWS_TOKENS}, {NULL, 0}};

int problem_options(struct option out[PROBLEM_OPTIONS], struct problem *p)
{
    const int64_t longest = INT64_C(1) << 40;
    const struct option all[] = {
        {"tokens", "N", "tokens of one sequence (default 1000)", OPTION_INT64, &p->tokens, 1, longest, NULL,
         0},
        {"grid", "AxB[xC]", "the tokens lie on this grid, slowest axis first", OPTION_GRID, p->grid, 1,
         longest, NULL, 0},
        {"order", "NAME",
         "identity (default), hilbert, boxes:AxB[xC], morton, snake, residues:S:r[:ORDER], random:SEED",
         OPTION_TEXT, &p->order, 0, 0, NULL, 0},
        {"mask", "TEXT",
         "who attends to whom (default causal), as in docs/masks.md; slots(M) reads slots of --order",
         OPTION_TEXT, &p->mask, 0, 0, NULL, 0},
        {"heads", "H", "query heads (default 4)", OPTION_INT, &p->heads, 1, 65536, NULL, 0},
        {"kv-heads", "K", "key and value heads (default as --heads)", OPTION_INT, &p->heads_kv, 1, 65536,
         NULL, 0},
        {"head0", "H", "the mask's head of head 0 (default 0)", OPTION_INT, &p->head0, 0, 65536, NULL, 0},
        {"dim", "D", "channels of a head of q and k (default 64)", OPTION_INT, &p->dim, 1, 256, NULL, 0},
        {"dim-v", "D", "channels of a head of v and o (default as --dim)", OPTION_INT, &p->dim_v, 1, 256,
         NULL, 0},
        {"batch", "B", "sequences (default 1)", OPTION_INT, &p->batch, 1, 65536, NULL, 0},
        {"dtype", NULL, "type of q k v o (default f32)", OPTION_CHOICE, &p->type, 0, 0, types, 0},
        {"scale", "X", "factor on q.k, not 0 (default 1/sqrt(dim))", OPTION_REAL, &p->scale, 0, 0, NULL, 0},
        {"shard", NULL, "which slots a rank owns (default auto)", OPTION_CHOICE, &p->shard, 0, 0, shards, 0},
        {"schedule", NULL, "how K/V travel (default auto)", OPTION_CHOICE, &p->schedule, 0, 0, schedules, 0},
        {"backend", NULL, "what computes (default auto)", OPTION_CHOICE, &p->backend, 0, 0, backends, 0},
        {"backward", NULL, "how a GPU computes gradients (default auto)", OPTION_CHOICE, &p->backward, 0, 0,
         backwards, 0},
        {"saved", NULL, "what forward keeps for backward on a GPU (default nothing)", OPTION_CHOICE,
         &p->saved, 0, 0, saveds, 0},
        {"rows", NULL, "what the rows of tensors are; tokens: in natural order, on one rank (default slots)",
         OPTION_CHOICE, &p->rows, 0, 0, rows_kinds, 0},
        {"threads", "T", "CPU threads of a rank (default cores / ranks of the node)", OPTION_INT, &p->threads,
         1, 4096, NULL, 0},
        {"sm-margin", "COUNT", "multiprocessors that attention on a GPU leaves free (default 0)", OPTION_INT,
         &p->margin, 0, 4096, NULL, 0},
        {"dlse", NULL, "the loss depends on lse too", OPTION_FLAG, &p->dlse, 0, 0, NULL, 0},
        {"seed", "S", "of the random numbers (default 1)", OPTION_SEED, &p->seed, 0, 0, NULL, 0},
    };
    const int count = (int)(sizeof(all) / sizeof(all[0]));
    _Static_assert(sizeof(all) / sizeof(all[0]) <= PROBLEM_OPTIONS, "PROBLEM_OPTIONS is too small");
    memcpy(out, all, sizeof(all));
    return count;
}

static int wrong(char *error, size_t error_bytes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static int wrong(char *error, size_t error_bytes, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(error, error_bytes, format, list);
    va_end(list);
    return -1;
}

/* The whole number at the start of text; 0 and *end behind it, or -1. */
static int whole(int64_t *out, const char *text, const char **end)
{
    char *stop;
    errno = 0;
    const long long value = strtoll(text, &stop, 10);
    if (stop == text || errno != 0 || text[0] == ' ')
        return -1;
    *out = value;
    *end = stop;
    return 0;
}

/* "AxB" or "AxBxC" into grid. */
static int grid_read(int64_t grid[3], const char *text, int64_t min, int64_t max)
{
    int64_t axis[3] = {0, 0, 0}, product = 1;
    int axes = 0;
    for (const char *at = text; axes < 3; at++) {
        if (whole(&axis[axes], at, &at) != 0 || axis[axes] < min || axis[axes] > max / product)
            return -1;
        product *= axis[axes++];
        if (*at == '\0')
            break;
        if (*at != 'x' || axes == 3)
            return -1;
    }
    if (axes < 2)
        return -1;
    memcpy(grid, axis, sizeof(axis));
    return 0;
}

static int choice_read(const struct option *o, const char *value, char *error, size_t error_bytes)
{
    char list[128] = "";
    for (const struct option_choice *c = o->choices; c->text != NULL; c++) {
        if (strcmp(value, c->text) == 0) {
            *(int *)o->at = c->value;
            return 0;
        }
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", list[0] ? ", " : "", c->text);
    }
    return wrong(error, error_bytes, "--%s: '%s' is none of %s", o->name, value, list);
}

static int value_read(const struct option *o, const char *value, char *error, size_t error_bytes)
{
    const char *end = "";
    char *stop, *copy;
    int64_t number = 0;

    switch (o->kind) {
    case OPTION_INT:
    case OPTION_INT64:
        if (whole(&number, value, &end) != 0 || *end != '\0' || number < o->min || number > o->max)
            return wrong(error, error_bytes, "--%s: '%s' is no whole number from %" PRId64 " to %" PRId64,
                         o->name, value, o->min, o->max);
        if (o->kind == OPTION_INT)
            *(int *)o->at = (int)number;
        else
            *(int64_t *)o->at = number;
        return 0;
    case OPTION_SEED:
        errno = 0;
        *(uint64_t *)o->at = strtoull(value, &stop, 10);
        if (stop == value || *stop != '\0' || errno != 0 || value[0] == '-')
            return wrong(error, error_bytes, "--%s: '%s' is no whole number from 0 to %" PRIu64, o->name,
                         value, UINT64_MAX);
        return 0;
    case OPTION_REAL:
        *(double *)o->at = strtod(value, &stop);
        if (stop == value || *stop != '\0' || !isfinite(*(double *)o->at) || *(double *)o->at == 0)
            return wrong(error, error_bytes, "--%s: '%s' is no finite number other than 0", o->name, value);
        return 0;
    case OPTION_GRID:
        if (grid_read(o->at, value, o->min, o->max) != 0)
            return wrong(error, error_bytes, "--%s: '%s' is not AxB or AxBxC with extents of at least 1",
                         o->name, value);
        return 0;
    case OPTION_TEXT:
        copy = strdup(value);
        if (copy == NULL)
            return wrong(error, error_bytes, "no memory for the value of --%s", o->name);
        free(*(char **)o->at);
        *(char **)o->at = copy;
        return 0;
    case OPTION_CHOICE:
        return choice_read(o, value, error, error_bytes);
    case OPTION_FLAG:
        *(int *)o->at = 1;
        return 0;
    }
    return -1;
}

int options_parse(struct option *options, int count, int argc, char **argv, char *error, size_t error_bytes)
{
    for (int n = 1; n < argc; n++) {
        const char *text = argv[n];
        if (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0)
            return 1;
        if (strncmp(text, "--", 2) != 0 || text[2] == '\0')
            return wrong(error, error_bytes, "'%s' is no option; --help lists them", text);

        const size_t name_bytes = strcspn(text + 2, "=");
        const char *value = text[2 + name_bytes] == '=' ? text + 3 + name_bytes : NULL;
        struct option *o = NULL;
        for (int m = 0; m < count; m++)
            if (strlen(options[m].name) == name_bytes && memcmp(options[m].name, text + 2, name_bytes) == 0)
                o = &options[m];
        if (o == NULL)
            return wrong(error, error_bytes, "'%s' is no option; --help lists them", text);
        if (o->given++ > 0)
            return wrong(error, error_bytes, "--%s is given twice", o->name);
        if (o->kind == OPTION_FLAG && value != NULL)
            return wrong(error, error_bytes, "--%s takes no value, but has '%s'", o->name, value);
        if (o->kind != OPTION_FLAG && value == NULL) {
            if (n + 1 >= argc)
                return wrong(error, error_bytes, "--%s lacks its value", o->name);
            value = argv[++n];
        }
        if (value_read(o, value, error, error_bytes) != 0)
            return -1;
    }
    return 0;
}

void options_print(const struct option *options, int count)
{
    for (int n = 0; n < count; n++) {
        const struct option *o = &options[n];
        char left[96];
        snprintf(left, sizeof(left), "--%s %s", o->name, o->what != NULL ? o->what : "");
        for (const struct option_choice *c = o->choices; c != NULL && c->text != NULL; c++)
            snprintf(left + strlen(left), sizeof(left) - strlen(left), "%s%s", c == o->choices ? "" : "|",
                     c->text);
        printf("  %-40s %s\n", left, o->help);
    }
}

/* ---- Setting up ---------------------------------------------------------------------------- */

int problem_complete(struct problem *p, char *error, size_t error_bytes)
{
    const int64_t cells = p->grid[0] * (p->grid[1] > 0 ? p->grid[1] : 1) * (p->grid[2] > 0 ? p->grid[2] : 1);

    if (p->grid[0] > 0 && p->tokens > 0 && p->tokens != cells)
        return wrong(error, error_bytes, "--tokens: %" PRId64 " is not the %" PRId64 " of --grid", p->tokens,
                     cells);
    if (p->tokens == 0)
        p->tokens = p->grid[0] > 0 ? cells : 1000;
    if (p->heads_kv == 0)
        p->heads_kv = p->heads;
    if (p->heads % p->heads_kv != 0)
        return wrong(error, error_bytes, "--kv-heads: %d does not divide --heads %d", p->heads_kv, p->heads);
    if (p->dim_v == 0)
        p->dim_v = p->dim;
    if (p->scale == 0)
        p->scale = 1 / sqrt(p->dim);
    if (p->order == NULL)
        p->order = strdup("identity");
    if (p->mask == NULL)
        p->mask = strdup("causal");
    if (p->order == NULL || p->mask == NULL)
        return wrong(error, error_bytes, "no memory for the names of order and mask");
    if (strncmp(p->order, "random:", 7) == 0) {
        const struct option seed = {.name = "order random:SEED", .kind = OPTION_SEED, .at = &(uint64_t){0}};
        return value_read(&seed, p->order + 7, error, error_bytes);
    }
    return 0;
}

/* The permutation of `random:SEED` (Fisher and Yates 1938). */
static hra_status order_random(hra_order **out, const hra_domain *domain, uint64_t seed)
{
    int64_t *token = malloc((size_t)domain->tokens * sizeof(*token));
    if (token == NULL)
        return HRA_ERR_MEMORY;
    for (int64_t n = 0; n < domain->tokens; n++)
        token[n] = n;
    for (int64_t n = domain->tokens - 1; n > 0; n--) {
        const int64_t m = (int64_t)(random_bits(seed, (uint64_t)n) % (uint64_t)(n + 1)), kept = token[n];
        token[n] = token[m];
        token[m] = kept;
    }
    const hra_status status = hra_order_permutation(out, domain, token);
    free(token);
    return status;
}

static hra_domain domain_of(const struct problem *p)
{
    hra_domain d = HRA_DOMAIN_INIT;

    d.batch = p->batch;
    d.heads = p->head0 + p->heads;
    d.tokens = p->tokens;
    memcpy(d.grid, p->grid, sizeof(p->grid));
    return d;
}

hra_status setup_create(struct setup *out, const struct problem *p)
{
    struct setup s = {.domain = domain_of(p), .problem = HRA_PROBLEM_INIT, .options = HRA_OPTIONS_INIT};

    s.problem.batch = p->batch;
    s.problem.heads = p->heads;
    s.problem.heads_kv = p->heads_kv;
    s.problem.head0 = p->head0;
    s.problem.dim = p->dim;
    s.problem.dim_v = p->dim_v;
    s.problem.tokens = p->tokens;
    s.problem.type = p->type;
    s.problem.scale = p->scale;
    s.problem.threads = p->threads;
    s.problem.sm_margin = p->margin;

    s.options.shard = p->shard;
    s.options.schedule = p->schedule;
    s.options.backend = p->backend;
    s.options.backward = p->backward;
    s.options.saved = p->saved;
    s.options.rows = p->rows;

    hra_status status = strncmp(p->order, "random:", 7) == 0
                            ? order_random(&s.order, &s.domain, strtoull(p->order + 7, NULL, 10))
                            : hra_order_create(&s.order, &s.domain, p->order);
    if (status == HRA_OK)
        status = hra_mask_parse(&s.mask, &s.domain, s.order, p->mask);
    if (status != HRA_OK) {
        setup_destroy(&s);
        return status;
    }
    *out = s;
    return HRA_OK;
}

void setup_destroy(struct setup *s)
{
    hra_order_destroy(s->order);
    hra_mask_destroy(s->mask);
    s->order = NULL;
    s->mask = NULL;
}

void problem_free(struct problem *p)
{
    free(p->order);
    free(p->mask);
    p->order = NULL;
    p->mask = NULL;
}

/* ---- Drawing ------------------------------------------------------------------------------- */

/* A stream of draws. */
struct draw {
    uint64_t series, next;
};

static int64_t between(struct draw *d, int64_t low, int64_t high)
{
    return low + (int64_t)(random_bits(d->series, d->next++) % (uint64_t)(high - low + 1));
}

/* As between, with as many small numbers as large ones on a logarithmic scale. */
static int64_t between_log(struct draw *d, int64_t low, int64_t high)
{
    const double u = (double)(random_bits(d->series, d->next++) >> 11) * 0x1p-53;
    const int64_t value = (int64_t)((double)low * pow((double)(high + 1) / (double)low, u));
    return value < low ? low : value > high ? high : value;
}

/* What was written to text; NULL, and text freed, where there was no memory for all of it. */
static char *closed(FILE *out, char **text)
{
    const int failed = ferror(out);
    if (fclose(out) == 0 && !failed)
        return *text;
    free(*text);
    return NULL;
}

static int axes_of(const int64_t grid[3])
{
    return grid[0] == 0 ? 0 : grid[2] == 0 ? 2 : 3;
}

/* The name of an order that the library knows. Without a grid it lays the tokens on a square of its own. */
static void draw_name(struct draw *d, const int64_t grid[3], int64_t tokens, FILE *out)
{
    static const char *const names[] = {"identity", "hilbert", "morton", "snake"};
    int64_t side[3] = {grid[0], grid[1], grid[2]}, room = HRA_TILE;
    int axes = axes_of(grid);

    int64_t kind = between(d, 0, 5);
    if (kind == 5) { /* of any of the others */
        const int64_t segment = between_log(d, 1, tokens + 3);
        fprintf(out, "residues:%" PRId64 ":%" PRId64 ":", segment, between(d, 1, 8));
        kind = between(d, 0, 4);
    }
    if (kind < 4) {
        fprintf(out, "%s", names[kind]);
        return;
    }
    if (axes == 0) {
        axes = 2;
        for (side[0] = 1; side[0] * side[0] < tokens;)
            side[0] *= 2;
        side[1] = side[0];
    }
    for (int a = 0; a < axes; a++) {
        const int64_t extent = between(d, 1, side[a] < room ? side[a] : room);
        fprintf(out, "%s%" PRId64, a == 0 ? "boxes:" : "x", extent);
        room /= extent;
    }
}

/* ---- Drawing masks ------------------------------------------------------------------------- */

/* A mask as it is written. */
struct mask_draw {
    struct draw draw;
    uint64_t names; /* series of the orders that slots() name */
    int64_t tokens, grid[3];
    int heads, batch;
    FILE *out;
};

/* Where a mask stands. */
struct place {
    int depth;   /* masks that may still be nested below it */
    int slots;   /* 1: inside a slots(), where grid(), neighbourhood() and slots() may not be */
    int mixture; /* 1: where a mixture may be */
};

/* Different orders that the slots() of one mask name: with the one without a name, what a mask can have. */
enum { NAMES = 3 };

/* Blocks of a mask that is made by a rule: some thousands are enough, and more would take memory. */
enum { BLOCKS = 4096 };

/* Tokens of a segment or block: from one to a few more than there are. */
static int64_t draw_size(struct mask_draw *m)
{
    return between_log(&m->draw, m->tokens / BLOCKS + 1, m->tokens + 3);
}

/* Comma and number. */
static void draw_number(struct mask_draw *m, int64_t low, int64_t high)
{
    fprintf(m->out, ",%" PRId64, between(&m->draw, low, high));
}

static void draw_window(struct mask_draw *m)
{
    struct draw *d = &m->draw;
    const int64_t left = between(d, -3, m->tokens), right = between(d, -(m->tokens / 4), m->tokens / 3);

    switch (between(d, 0, 6)) {
    case 0:
        fprintf(m->out, "window(-,%" PRId64 ")", right);
        break;
    case 1:
        fprintf(m->out, "window(%" PRId64 ",-)", left);
        break;
    default:
        fprintf(m->out, "window(%" PRId64 ",%" PRId64 ")", left, right);
    }
}

/* At most 20 documents, some of few tokens. */
static void draw_docs(struct mask_draw *m)
{
    const char *before = "docs(";
    int documents = 0;

    for (int64_t rest = m->tokens; rest > 0; before = ",") {
        const int64_t length = ++documents < 20 ? between_log(&m->draw, 1, rest) : rest;
        fprintf(m->out, "%s%" PRId64, before, length);
        rest -= length;
    }
    fprintf(m->out, ")");
}

static void draw_dilated(struct mask_draw *m)
{
    static const char *const modes[] = {"keys", "both", "residue"};
    const int64_t rate = between(&m->draw, 1, 8), form = between(&m->draw, 0, 5);

    fprintf(m->out, "dilated(%" PRId64 ",%" PRId64, draw_size(m), rate);
    if (form == 5) /* residue, whose offset is 0 */
        fprintf(m->out, ",0,%s", modes[2]);
    else if (form > 0) {
        if (between(&m->draw, 0, 2) == 0)
            fprintf(m->out, ",head");
        else
            draw_number(m, 0, rate - 1);
        if (form > 1)
            fprintf(m->out, ",%s", modes[form % 2]);
    }
    fprintf(m->out, ")");
}

static void draw_blocks(struct mask_draw *m)
{
    struct draw *d = &m->draw;
    const int64_t size = between(d, (m->tokens + 11) / 12, m->tokens + 2);
    const int64_t blocks = (m->tokens - 1) / size + 1;

    fprintf(m->out, "blocks(%" PRId64, size);
    for (int64_t i = 0; i < blocks; i++) {
        int listed = i == 0; /* query block 0 has key block 0, so that the list is never empty */
        if (listed)
            fprintf(m->out, "; 0:0");
        for (int64_t j = listed; j < blocks; j++) {
            if (between(d, 0, 2) != 0)
                continue;
            if (listed)
                fprintf(m->out, " %" PRId64, j);
            else
                fprintf(m->out, "; %" PRId64 ":%" PRId64, i, j);
            listed = 1;
        }
    }
    fprintf(m->out, ")");
}

/* local_blocks() and its kin. */
static void draw_block_rule(struct mask_draw *m, int64_t kind)
{
    static const char *const names[] = {"local", "strided", "global", "random", "hierarchical"};

    fprintf(m->out, "%s_blocks(%" PRId64, names[kind], draw_size(m));
    if (kind == 1)
        draw_number(m, 1, 6);
    if (kind == 2)
        draw_number(m, 0, 2);
    if (kind == 3) {
        draw_number(m, 0, 4);
        draw_number(m, 0, 999);
    } else
        draw_number(m, 0, 3);
    if (kind == 4)
        draw_number(m, 1, 5);
    fprintf(m->out, ")");
}

/* grid() and neighbourhood(), the latter at times longer than its axis, and with strides. */
static void draw_on_grid(struct mask_draw *m, int near)
{
    const int axes = axes_of(m->grid);
    int64_t extent[3];

    fprintf(m->out, near ? "neighbourhood(" : "grid(");
    for (int a = 0; a < axes; a++) {
        extent[a] = between(&m->draw, near, near ? m->grid[a] + 1 : m->grid[a]);
        fprintf(m->out, "%s%" PRId64, a > 0 ? "," : "", extent[a]);
    }
    if (near && between(&m->draw, 0, 1))
        for (int a = 0; a < axes; a++)
            fprintf(m->out, "%s%" PRId64, a > 0 ? "," : "; ",
                    between(&m->draw, 1, extent[a] < m->grid[a] ? extent[a] : m->grid[a]));
    fprintf(m->out, ")");
}

static void draw_leaf(struct mask_draw *m, const struct place *at)
{
    const int64_t kind = between(&m->draw, 0, axes_of(m->grid) > 0 && !at->slots ? 15 : 11);

    switch (kind) {
    case 0:
        fprintf(m->out, "full");
        break;
    case 1:
        fprintf(m->out, "causal");
        break;
    case 2:
        draw_window(m);
        break;
    case 3:
        draw_docs(m);
        break;
    case 4:
        draw_dilated(m);
        break;
    case 5:
        fprintf(m->out, "global(%" PRId64 ")", between_log(&m->draw, 1, m->tokens + 3));
        break;
    case 6:
        draw_blocks(m);
        break;
    case 7:
    case 8:
    case 9:
    case 10:
    case 11:
        draw_block_rule(m, kind - 7);
        break;
    default:
        draw_on_grid(m, (int)(kind % 2));
    }
}

static void draw_mask(struct mask_draw *m, struct place at);

/* heads() or batches(): `what` holds `count`, each range of them with a mask of its own. */
static void draw_ranges(struct mask_draw *m, struct place at, const char *what, int count)
{
    int first = 0;

    at.depth--;
    fprintf(m->out, "%s(", what);
    for (const char *before = ""; first < count; before = "; ") {
        const int last = (int)between(&m->draw, first, count - 1);
        fprintf(m->out, last > first ? "%s%d-%d: " : "%s%d: ", before, first, last);
        draw_mask(m, at);
        first = last + 1;
    }
    fprintf(m->out, ")");
}

static void draw_slots(struct mask_draw *m, struct place at)
{
    fprintf(m->out, "slots(");
    if (between(&m->draw, 0, 2)) {
        struct draw name = {random_bits(m->names, (uint64_t)between(&m->draw, 1, NAMES)), 0};
        draw_name(&name, m->grid, m->tokens, m->out);
        fprintf(m->out, "; ");
    }
    at.depth--;
    at.slots = 1;
    draw_mask(m, at);
    fprintf(m->out, ")");
}

/* A mask in parentheses, or without where binding may be left to chance. */
static void draw_part(struct mask_draw *m, struct place at, int parentheses)
{
    at.depth--;
    if (parentheses)
        fputc('(', m->out);
    draw_mask(m, at);
    if (parentheses)
        fputc(')', m->out);
}

/* Not, and, or, of masks that are no mixtures. */
static void draw_logic(struct mask_draw *m, struct place at)
{
    const int64_t kind = between(&m->draw, 0, 9);
    const int parentheses = between(&m->draw, 0, 3) > 0;

    at.mixture = 0;
    if (kind < 2)
        fprintf(m->out, "!");
    else {
        draw_part(m, at, parentheses);
        fprintf(m->out, kind < 6 ? " & " : " | ");
    }
    draw_part(m, at, parentheses);
}

static void draw_longnet(struct mask_draw *m)
{
    const int64_t branches = between(&m->draw, 1, 4);

    for (int64_t n = 0; n < branches; n++) {
        const int64_t segment = draw_size(m), rate = between(&m->draw, 1, 8);
        fprintf(m->out, "%s%" PRId64 ":%" PRId64, n == 0 ? "longnet(" : ", ", segment, rate);
    }
    fprintf(m->out, ")");
}

/* mix(), longnet(), and a mixture of which another mask leaves a part. */
static void draw_mixture(struct mask_draw *m, struct place at)
{
    const int64_t kind = between(&m->draw, 0, 5), branches = between(&m->draw, 1, 4);
    struct place plain = at;

    plain.mixture = 0;
    if (kind == 0)
        draw_longnet(m);
    else if (kind < 4) {
        for (int64_t n = 0; n < branches; n++) {
            fprintf(m->out, n == 0 ? "mix(" : "; ");
            draw_part(m, plain, 0);
        }
        fprintf(m->out, ")");
    } else {
        draw_part(m, kind == 4 ? plain : at, 1);
        fprintf(m->out, " & ");
        draw_part(m, kind == 4 ? at : plain, 1);
    }
}

static void draw_mask(struct mask_draw *m, struct place at)
{
    const int64_t kind = between(&m->draw, 0, 19);

    if (at.depth == 0 || kind < 5)
        draw_leaf(m, &at);
    else if (kind == 5)
        draw_ranges(m, at, "heads", m->heads);
    else if (kind == 6 && m->batch > 1)
        draw_ranges(m, at, "batches", m->batch);
    else if (kind < 10 && !at.slots)
        draw_slots(m, at);
    else if (kind < 15 && at.mixture)
        draw_mixture(m, at);
    else
        draw_logic(m, at);
}

char *mask_random(const hra_domain *domain, uint64_t seed)
{
    struct mask_draw m = {.draw = {random_bits(seed, 0), 0},
                          .names = random_bits(seed, 1),
                          .tokens = domain->tokens,
                          .heads = domain->heads > 0 ? domain->heads : 1,
                          .batch = domain->batch};
    const struct place top = {.depth = 3, .mixture = 1};
    char *text = NULL;
    size_t bytes;

    memcpy(m.grid, domain->grid, sizeof(m.grid));
    for (int a = 0; domain->tokens == 0 && a < axes_of(m.grid); a++)
        m.tokens = (a == 0 ? 1 : m.tokens) * m.grid[a];
    m.out = open_memstream(&text, &bytes);
    if (m.out == NULL)
        return NULL;
    draw_mask(&m, top);
    return closed(m.out, &text);
}

/* ---- Drawing problems ---------------------------------------------------------------------- */

/* 1 to 400 tokens, one problem in six with fewer than five; half of the others on a grid. */
static void draw_tokens(struct problem *p, struct draw *d)
{
    const int64_t kind = between(d, 0, 11);
    if (kind < 2)
        p->tokens = between(d, 1, 4);
    else if (kind < 6)
        p->tokens = between_log(d, 5, 400);
    else {
        const int axes = kind < 9 ? 2 : 3;
        for (int a = 0; a < axes; a++)
            p->grid[a] = between(d, 1, axes == 2 ? 20 : 7);
        p->tokens = p->grid[0] * p->grid[1] * (axes == 3 ? p->grid[2] : 1);
    }
}

/* Sizes whose work, of the oracle above all, stays below about 0.1 s on one core. */
static void draw_sizes(struct problem *p, struct draw *d)
{
    static const int usual[] = {1, 2, 3, 7, 8, 16, 32, 64, 128, 256};
    const int64_t pairs = p->tokens * p->tokens, most_pairs = 700000, most_work = 15000000;
    const int64_t dim_max = most_work / pairs < 256 ? most_work / pairs : 256;

    p->dim = between(d, 0, 1) ? usual[between(d, 0, 9)] : (int)between_log(d, 1, 256);
    p->dim_v = between(d, 0, 2) ? p->dim : (int)between_log(d, 1, 256);
    p->dim = p->dim > dim_max ? (int)between(d, 1, dim_max) : p->dim;
    p->dim_v = p->dim_v > dim_max ? (int)between(d, 1, dim_max) : p->dim_v;

    const int64_t dim = p->dim > p->dim_v ? p->dim : p->dim_v;
    int64_t heads =
        most_work / (pairs * dim) < most_pairs / pairs ? most_work / (pairs * dim) : most_pairs / pairs;
    p->heads = (int)between(d, 1, heads < 1 ? 1 : heads > 12 ? 12 : heads);
    heads /= p->heads;
    p->batch = (int)between(d, 1, heads < 1 ? 1 : heads > 3 ? 3 : heads);
    do
        p->heads_kv = (int)between(d, 1, p->heads);
    while (p->heads % p->heads_kv != 0);
    p->head0 = between(d, 0, 3) ? 0 : (int)between(d, 1, 6);
}

/* Scales that leave the softmax soft enough: where one key takes a row's whole weight, gradients are
 * differences of equal numbers, and a relative error says nothing. */
static void draw_scale(struct problem *p, struct draw *d)
{
    const double usual = 1 / sqrt(p->dim);
    const double drawn[] = {usual, 0.01, 1.0, -usual};
    p->scale = drawn[between(d, 0, 3)];
    if (fabs(p->scale) > 4 * usual)
        p->scale = 2 * usual;
}

/* The name of an order, or a permutation in one problem of six. */
static char *draw_order(const struct problem *p, struct draw *d)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    if (out == NULL)
        return NULL;
    if (between(d, 0, 5) == 0)
        fprintf(out, "random:%" PRId64, between(d, 0, 999));
    else
        draw_name(d, p->grid, p->tokens, out);
    return closed(out, &text);
}

int problem_draw(struct problem *out, uint64_t seed, uint64_t number, hra_backend_kind backend)
{
    static const hra_type drawn[] = {HRA_F64, HRA_F32, HRA_BF16, HRA_F16};
    const int cuda = backend >= HRA_BACKEND_CUDA, sm90 = backend == HRA_BACKEND_SM90;
    struct problem p = PROBLEM_DEFAULT;
    struct draw d = {random_bits(seed, number), 0};

    p.backend = backend;
    p.seed = random_bits(d.series, UINT64_MAX) % 1000000;
    p.type = drawn[between(&d, sm90 ? 2 : cuda, 3)]; /* GPUs have no f64 */
    if (cuda && !sm90 && random_bits(d.series, UINT64_MAX - 2) % 2 == 1)
        p.saved = HRA_SAVED_QKV;
    p.schedule = random_bits(d.series, UINT64_MAX - 3) % 2 == 1 ? HRA_SCHEDULE_HALO : HRA_SCHEDULE_RING;
    p.shard = (hra_shard)between(&d, HRA_SHARD_AUTO, HRA_SHARD_BALANCED);
    p.threads = (int)between(&d, 1, 3);
    p.dlse = (int)between(&d, 0, 1);
    draw_tokens(&p, &d);
    draw_sizes(&p, &d);
    if (p.schedule == HRA_SCHEDULE_HALO && p.heads_kv > 1 && random_bits(d.series, UINT64_MAX - 4) % 2 == 1)
        p.schedule = HRA_SCHEDULE_HEADS;
    if (sm90)
        p.dim = p.dim_v = between(&d, 0, 1) ? 64 : 128;
    draw_scale(&p, &d);
    p.scale = sm90 ? fabs(p.scale) : p.scale;

    const hra_domain domain = domain_of(&p);
    p.order = draw_order(&p, &d);
    p.mask = mask_random(&domain, random_bits(d.series, UINT64_MAX - 1));
    if (p.order == NULL || p.mask == NULL) {
        problem_free(&p);
        return -1;
    }
    *out = p;
    return 0;
}

static const char *choice_text(const struct option_choice *c, int value)
{
    while (c->text != NULL && c->value != value)
        c++;
    return c->text != NULL ? c->text : "?";
}

char *problem_text(const struct problem *p)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL)
        return NULL;

    if (axes_of(p->grid) == 0)
        fprintf(out, "--tokens %" PRId64, p->tokens);
    for (int a = 0; a < axes_of(p->grid); a++)
        fprintf(out, "%s%" PRId64, a == 0 ? "--grid " : "x", p->grid[a]);
    fprintf(out, " --order %s --mask '%s' --heads %d --kv-heads %d", p->order, p->mask, p->heads,
            p->heads_kv);
    if (p->head0 != 0)
        fprintf(out, " --head0 %d", p->head0);
    fprintf(out, " --dim %d", p->dim);
    if (p->dim_v != p->dim)
        fprintf(out, " --dim-v %d", p->dim_v);
    fprintf(out, " --batch %d --dtype %s", p->batch, hra_type_name(p->type));
    if (p->scale != 1 / sqrt(p->dim))
        fprintf(out, " --scale %.17g", p->scale);
    fprintf(out, " --shard %s", choice_text(shards, (int)p->shard));
    if (p->schedule != HRA_SCHEDULE_AUTO)
        fprintf(out, " --schedule %s", choice_text(schedules, (int)p->schedule));
    if (p->backend != HRA_BACKEND_AUTO)
        fprintf(out, " --backend %s", choice_text(backends, (int)p->backend));
    if (p->backward != HRA_BACKWARD_AUTO)
        fprintf(out, " --backward %s", choice_text(backwards, (int)p->backward));
    if (p->saved != HRA_SAVED_NOTHING)
        fprintf(out, " --saved %s", choice_text(saveds, (int)p->saved));
    if (p->rows != HRA_ROWS_SLOTS)
        fprintf(out, " --rows %s", choice_text(rows_kinds, (int)p->rows));
    if (p->threads != 0)
        fprintf(out, " --threads %d", p->threads);
    if (p->margin != 0)
        fprintf(out, " --sm-margin %d", p->margin);
    if (p->dlse)
        fprintf(out, " --dlse");
    fprintf(out, " --seed %" PRIu64, p->seed);
    return closed(out, &text);
}

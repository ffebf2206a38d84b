/* model.c - see model.h. A line is a keyword and then pairs of a name and a value, most values with a unit behind. */
#include "examples/tools/model.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 32, LINE_BYTES = 1024 };

/* What is being read. */
struct reader {
    const char *path;
    int line;
    char text[LINE_BYTES];
    char *word[WORDS]; /* [words] of the line */
    int words;
    hra_machine *machine;
    hra_type type;
    int dim, ranks;
    char *error;
    size_t error_bytes;
};

/* A value that a line may have. The number in the file times `scale` is kept. */
struct field {
    const char *name;
    const char *unit; /* NULL: a whole number without one */
    double scale;
    double low, high; /* of the number in the file */
    double *at;
    int wanted; /* 1: the line must have it */
    int given;
};

static int wrong(const struct reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int wrong(const struct reader *r, const char *format, ...)
{
    char what[400];
    va_list list;

    va_start(list, format);
    vsnprintf(what, sizeof(what), format, list);
    va_end(list);
    if (r->line > 0)
        snprintf(r->error, r->error_bytes, "%s:%d: %s", r->path, r->line, what);
    else
        snprintf(r->error, r->error_bytes, "%s: %s", r->path, what);
    return -1;
}

/* ---- Values ---- */

static int read_number(const struct reader *r, const struct field *f, const char *text, double *out)
{
    char *end = NULL;

    *out = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(*out))
        return wrong(r, "'%s' wants a number%s%s, not '%s'", f->name, f->unit != NULL ? " and " : "",
                     f->unit != NULL ? f->unit : "", text);
    if (*out < f->low || *out > f->high || (f->unit == NULL && *out != floor(*out)))
        return wrong(r, "'%s' is %s; it must be %s%g to %g", f->name, text,
                     f->unit == NULL ? "a whole number, " : "", f->low, f->high);
    return 0;
}

/* The pairs of a line from word `at` on. */
static int read_fields(struct reader *r, int at, struct field *field, int fields)
{
    char known[256] = "";

    for (int i = 0; i < fields; i++) {
        const size_t bytes = strlen(known);
        snprintf(known + bytes, sizeof(known) - bytes, "%s%s", i > 0 ? ", " : "", field[i].name);
    }
    while (at < r->words) {
        struct field *f = field;
        double number;

        while (f < field + fields && strcmp(f->name, r->word[at]) != 0)
            f++;
        if (f == field + fields)
            return wrong(r, "'%s' is none of what '%s' can have: %s", r->word[at], r->word[0], known);
        if (f->given)
            return wrong(r, "'%s' stands twice", f->name);
        if (++at == r->words)
            return wrong(r, "'%s' lacks its number%s%s", f->name, f->unit != NULL ? " and " : "",
                         f->unit != NULL ? f->unit : "");
        if (read_number(r, f, r->word[at++], &number) != 0)
            return -1;
        if (f->unit != NULL && (at == r->words || strcmp(r->word[at], f->unit) != 0))
            return wrong(r, "'%s' is in %s, which must stand behind the number%s%s%s", f->name, f->unit,
                         at < r->words ? ", not '" : "", at < r->words ? r->word[at] : "",
                         at < r->words ? "'" : "");
        at += f->unit != NULL;
        *f->at = number * f->scale;
        f->given = 1;
    }
    for (int i = 0; i < fields; i++)
        if (field[i].wanted && !field[i].given)
            return wrong(r, "'%s' lacks '%s NUMBER%s%s'", r->word[0], field[i].name,
                         field[i].unit != NULL ? " " : "", field[i].unit != NULL ? field[i].unit : "");
    return 0;
}

/* ---- Lines ---- */

static int read_link(struct reader *r, hra_link *link)
{
    double sharing = 1;
    struct field field[] = {{"rate", "GB/s", 1e9, 1e-6, 1e9, &link->rate, 1, 0},
                            {"latency", "us", 1e-6, 0, 1e9, &link->latency_s, 1, 0},
                            {"slowdown", "%", 0.01, 0, 99, &link->slowdown, 0, 0},
                            {"sharing", NULL, 1, 1, 65536, &sharing, 0, 0}};

    if (r->words < 2 || (strcmp(r->word[1], "each") != 0 && strcmp(r->word[1], "grouped") != 0))
        return wrong(
            r, "'%s' begins with 'each' (messages by themselves) or 'grouped' (a round's messages as one)",
            r->word[0]);
    link->grouped = strcmp(r->word[1], "grouped") == 0;
    if (read_fields(r, 2, field, (int)(sizeof(field) / sizeof(field[0]))) != 0)
        return -1;
    link->sharing = (int)sharing;
    return 0;
}

static int read_node(struct reader *r)
{
    double ranks = 0;
    struct field field[] = {{"ranks", NULL, 1, 1, 65536, &ranks, 1, 0}};

    if (read_fields(r, 1, field, 1) != 0)
        return -1;
    r->machine->node_ranks = (int)ranks;
    return 0;
}

static int read_inside(struct reader *r)
{
    return read_link(r, &r->machine->inside);
}

static int read_between(struct reader *r)
{
    return read_link(r, &r->machine->between);
}

static int read_memory(struct reader *r)
{
    struct field field[] = {{"rate", "GB/s", 1e9, 1e-6, 1e9, &r->machine->memory, 1, 0}};
    return read_fields(r, 1, field, 1);
}

static int read_launch(struct reader *r)
{
    struct field field[] = {{"time", "us", 1e-6, 0, 1e9, &r->machine->launch_s, 1, 0}};
    return read_fields(r, 1, field, 1);
}

static int read_own(struct reader *r)
{
    if (r->words != 2 || (strcmp(r->word[1], "straight") != 0 && strcmp(r->word[1], "copied") != 0))
        return wrong(r,
                     "'own' wants 'straight' (own K and V are sent from where they are) or 'copied' (first)");
    r->machine->own_straight = strcmp(r->word[1], "straight") == 0;
    return 0;
}

/* compute TYPE DIM PASS ...; the first line that fits counts. */
static int read_compute(struct reader *r)
{
    static const hra_type types[] = {HRA_F64, HRA_F32, HRA_BF16, HRA_F16};
    hra_machine *m = r->machine;
    double full = 0, partial = 0, item = 0;
    struct field field[] = {{"full", "TFLOP/s", 1e12, 1e-9, 1e9, &full, 1, 0},
                            {"partial", "TFLOP/s", 1e12, 1e-9, 1e9, &partial, 0, 0},
                            {"item", "us", 1e-6, 0, 1e9, &item, 0, 0}};
    const struct field dims = {.name = "compute", .low = 1, .high = 256};
    int of_type = 0, known = 0;
    double dim = r->dim;

    if (r->words < 4)
        return wrong(
            r, "'compute' wants a type, channels of a head and a pass, such as 'compute bf16 128 forward'");
    of_type = known = strcmp(r->word[1], "any") == 0;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        const int same = strcmp(r->word[1], hra_type_name(types[i])) == 0;
        known |= same;
        of_type |= same && types[i] == r->type;
    }
    if (!known)
        return wrong(r, "'%s' is no type; it is f64, f32, bf16, f16 or any", r->word[1]);
    if (strcmp(r->word[2], "any") != 0 && read_number(r, &dims, r->word[2], &dim) != 0)
        return -1;
    const int backward = strcmp(r->word[3], "backward") == 0;
    if (!backward && strcmp(r->word[3], "forward") != 0)
        return wrong(r, "'%s' is no pass; it is forward or backward", r->word[3]);
    if (read_fields(r, 4, field, (int)(sizeof(field) / sizeof(field[0]))) != 0)
        return -1;
    if (of_type && (int)dim == r->dim && m->full[backward] == 0) {
        m->full[backward] = full;
        m->partial[backward] = field[1].given ? partial : full;
        m->item_s[backward] = item;
    }
    return 0;
}

/* Keywords; those but the last stand once. */
static const struct keyword {
    const char *name;
    int (*read)(struct reader *r);
    int wanted;
} keywords[] = {{"node", read_node, 0},      {"inside", read_inside, 1}, {"between", read_between, 0},
                {"memory", read_memory, 1},  {"launch", read_launch, 1}, {"own", read_own, 0},
                {"compute", read_compute, 1}};

enum { KEYWORDS = sizeof(keywords) / sizeof(keywords[0]), COMPUTE = KEYWORDS - 1 };

/* Cut the line into words; what stands behind # is a remark. */
static int split(struct reader *r)
{
    char *save = NULL;

    r->text[strcspn(r->text, "#")] = '\0';
    r->words = 0;
    for (char *w = strtok_r(r->text, " \t\r\n", &save); w != NULL; w = strtok_r(NULL, " \t\r\n", &save)) {
        if (r->words == WORDS)
            return wrong(r, "more than %d words", WORDS);
        r->word[r->words++] = w;
    }
    return 0;
}

static int read_line(struct reader *r, int given[KEYWORDS])
{
    int k = 0;

    if (split(r) != 0)
        return -1;
    if (r->words == 0)
        return 0;
    while (k < KEYWORDS && strcmp(keywords[k].name, r->word[0]) != 0)
        k++;
    if (k == KEYWORDS)
        return wrong(
            r, "no line begins with '%s'; the lines are node, inside, between, memory, launch, own, compute",
            r->word[0]);
    if (given[k] > 0 && k != COMPUTE)
        return wrong(r, "'%s' stands a second time; the first is in line %d", r->word[0], given[k]);
    given[k] = r->line;
    return keywords[k].read(r);
}

/* Is all there that this plan needs? */
static int complete(struct reader *r, const int given[KEYWORDS])
{
    static const char *const pass[] = {"forward", "backward"};
    const hra_machine *m = r->machine;

    r->line = 0;
    for (int k = 0; k < COMPUTE; k++)
        if (keywords[k].wanted && given[k] == 0)
            return wrong(r, "there is no line '%s'", keywords[k].name);
    for (int i = 0; i < 2; i++)
        if (m->full[i] == 0)
            return wrong(r, "no line 'compute' is for %s, %d channels, %s", hra_type_name(r->type), r->dim,
                         pass[i]);
    if (m->node_ranks > 0 && m->node_ranks < r->ranks && m->between.rate == 0)
        return wrong(r, "%d ranks need several nodes of %d, and there is no line 'between'", r->ranks,
                     m->node_ranks);
    return 0;
}

static int read_lines(struct reader *r, FILE *file)
{
    int given[KEYWORDS] = {0};

    while (fgets(r->text, sizeof(r->text), file) != NULL) {
        r->line++;
        if (strchr(r->text, '\n') == NULL && strlen(r->text) + 1 == sizeof(r->text))
            return wrong(r, "the line is longer than %d characters", LINE_BYTES - 2);
        if (read_line(r, given) != 0)
            return -1;
    }
    if (ferror(file)) {
        r->line = 0;
        return wrong(r, "cannot be read: %s", strerror(errno));
    }
    return complete(r, given);
}

int model_read(hra_machine *out, const char *path, hra_type type, int dim, int ranks, char *error,
               size_t error_bytes)
{
    hra_machine machine = {.size = sizeof(machine)};
    struct reader r = {.path = path,
                       .machine = &machine,
                       .type = type,
                       .dim = dim,
                       .ranks = ranks,
                       .error = error,
                       .error_bytes = error_bytes};
    FILE *file = fopen(path, "r");

    if (file == NULL)
        return wrong(&r, "cannot be opened: %s", strerror(errno));
    const int result = read_lines(&r, file);
    fclose(file);
    if (result == 0)
        *out = machine;
    return result;
}

/* hra-train.c - trains a small transformer whose attention is spread over MPI ranks by libhra.
 *
 *     mpirun -n 4 hra-train --text FILE      learns to foretell the next byte of a text
 *     mpirun -n 4 hra-train --image FILE     learns to fill in the missing pixels of a photograph
 *
 * One sequence is cut over all ranks: each takes the rows that the plan gives it, attention in every
 * layer goes through hra_forward and hra_backward, the parameters are on every rank, and the gradients
 * are added up by MPI_Allreduce. What is drawn at random depends on the seed and the step only, so any
 * number of ranks follows the same path, up to rounding. Rank 0 alone reads and writes files. */
#include "examples/train/data.h"
#include "examples/train/fail.h"
#include "examples/train/model.h"
#include "examples/train/picture.h"
#include "examples/train/state.h"

#include <cblas.h>
#include <errno.h>
#include <hra/mpi.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The user gave something wrong; the job could not be done. */
enum { EXIT_WRONG = 2, EXIT_FAILED = 1 };

/* ---- Options ------------------------------------------------------------------------------- */

struct options {
    const char *text, *image, *out, *checkpoint, *resume, *order, *mask;
    int64_t steps, stop, tokens, layers, dim, heads, heads_kv, seed, threads, checkpoint_every;
    double rate;
    int quiet, help;
};

enum kind { FILE_NAME, NUMBER, REAL, FLAG };

struct option_row {
    const char *name;
    enum kind kind;
    size_t at;                /* offset in struct options */
    int64_t least, most;      /* of a NUMBER */
    const char *value, *help; /* how --help shows it */
};

#define AT(field) offsetof(struct options, field)
static const struct option_row rows[] = {
    {"--text", FILE_NAME, AT(text), 0, 0, "FILE", "learn the bytes of this text"},
    {"--image", FILE_NAME, AT(image), 0, 0, "FILE", "learn to fill in this PNG, each pixel a token"},
    {"--steps", NUMBER, AT(steps), 1, 100000000, "N", "steps of the whole run (text 300, image 120)"},
    {"--stop", NUMBER, AT(stop), 1, 100000000, "N", "stop after step N, to go on later with --resume"},
    {"--tokens", NUMBER, AT(tokens), 1, 1 << 24, "N", "bytes of text in a sequence (1024)"},
    {"--layers", NUMBER, AT(layers), 1, 1000, "N", "layers (text 4, image 2)"},
    {"--dim", NUMBER, AT(dim), 2, 65536, "N", "channels of a token (text 128, image 32)"},
    {"--heads", NUMBER, AT(heads), 1, 4096, "N", "query heads (text 4, image 1)"},
    {"--kv-heads", NUMBER, AT(heads_kv), 1, 4096, "N", "key and value heads (the query heads)"},
    {"--lr", REAL, AT(rate), 0, 0, "X", "highest learning rate (text 0.003, image 0.01)"},
    {"--seed", NUMBER, AT(seed), 0, INT64_MAX, "N", "of parameters and samples (1)"},
    {"--order", FILE_NAME, AT(order), 0, 0, "NAME", "order of the tokens (text identity, image hilbert)"},
    {"--mask", FILE_NAME, AT(mask), 0, 0, "TEXT",
     "who attends to whom (text causal, always also\n"
     "                        in force; image grid(6,6))"},
    {"--threads", NUMBER, AT(threads), 1, 4096, "N", "threads of attention on a rank (cores / ranks)"},
    {"--out", FILE_NAME, AT(out), 0, 0, "DIR", "where loss.csv, loss.png and picture.png go (.)"},
    {"--checkpoint", FILE_NAME, AT(checkpoint), 0, 0, "FILE", "write the state of the run here in the end"},
    {"--checkpoint-every", NUMBER, AT(checkpoint_every), 1, 100000000, "N", "and after every N steps"},
    {"--resume", FILE_NAME, AT(resume), 0, 0, "FILE", "go on from this checkpoint"},
    {"--quiet", FLAG, AT(quiet), 0, 0, "", "only the result"},
    {"--help", FLAG, AT(help), 0, 0, "", "show this"},
};
enum { ROWS = sizeof(rows) / sizeof(rows[0]) };

static void print_help(void)
{
    printf("usage: mpirun -n RANKS hra-train --text FILE | --image FILE [options]\n"
           "Trains a small transformer on one machine or many, its attention through libhra.\n\n");
    for (int i = 0; i < ROWS; i++) {
        char both[40];
        snprintf(both, sizeof(both), "%s %s", rows[i].name, rows[i].value);
        printf("  %-21s %s\n", both, rows[i].help);
    }
}

static int parse_value(struct options *o, const struct option_row *row, const char *value, char *why)
{
    char *field = (char *)o + row->at, *end;

    errno = 0;
    if (row->kind == FILE_NAME) {
        if (*value == '\0')
            return train_fail(why, "%s must not be empty", row->name);
        *(const char **)(void *)field = value;
        return 0;
    }
    if (row->kind == REAL) {
        const double x = strtod(value, &end);
        if (end == value || *end != '\0' || !(x > 0) || x > 1)
            return train_fail(why, "%s %s: must be a number above 0 and at most 1", row->name, value);
        *(double *)(void *)field = x;
        return 0;
    }
    const long long n = strtoll(value, &end, 10);
    if (end == value || *end != '\0' || errno != 0 || n < row->least || n > row->most)
        return train_fail(why, "%s %s: must be a whole number from %lld to %lld", row->name, value,
                          (long long)row->least, (long long)row->most);
    *(int64_t *)(void *)field = n;
    return 0;
}

static void set_default(int64_t *value, int64_t otherwise)
{
    if (*value == 0)
        *value = otherwise;
}

/* Options that do not fit together, and defaults that hang on others. */
static int check(struct options *o, char *why)
{
    if ((o->text == NULL) == (o->image == NULL))
        return train_fail(why,
                          "give either --text FILE or --image FILE (hra-train --help shows all options)");
    if (o->image != NULL && o->tokens != 0)
        return train_fail(why, "--tokens does not go with --image: every pixel is a token");
    if (o->checkpoint_every != 0 && o->checkpoint == NULL)
        return train_fail(why, "--checkpoint-every needs --checkpoint FILE");
    const int image = o->image != NULL;
    set_default(&o->steps, image ? 120 : 300);
    set_default(&o->stop, o->steps);
    set_default(&o->tokens, 1024);
    set_default(&o->layers, image ? 2 : 4);
    set_default(&o->dim, image ? 32 : 128);
    set_default(&o->heads, image ? 1 : 4);
    set_default(&o->heads_kv, o->heads);
    if (o->rate == 0)
        o->rate = image ? 0.01 : 0.003;
    if (o->order == NULL)
        o->order = image ? "hilbert" : "identity";
    if (o->mask == NULL)
        o->mask = image ? "grid(6,6)" : "causal";
    if (o->out == NULL)
        o->out = ".";
    if (o->stop > o->steps)
        return train_fail(why, "--stop %lld lies behind --steps %lld", (long long)o->stop,
                          (long long)o->steps);
    const int pairs = image ? 4 : 2;
    if (o->dim % (pairs * o->heads) != 0)
        return train_fail(why, "--dim %lld: must be a multiple of %d x --heads %lld", (long long)o->dim,
                          pairs, (long long)o->heads);
    if (o->dim / o->heads > 256)
        return train_fail(why,
                          "--dim %lld and --heads %lld give heads of %lld channels, at most 256 are possible",
                          (long long)o->dim, (long long)o->heads, (long long)(o->dim / o->heads));
    if (o->heads % o->heads_kv != 0)
        return train_fail(why, "--heads %lld: must be a multiple of --kv-heads %lld", (long long)o->heads,
                          (long long)o->heads_kv);
    return 0;
}

static int parse(struct options *o, int argc, char **argv, char *why)
{
    memset(o, 0, sizeof(*o));
    o->seed = 1;
    for (int i = 1; i < argc; i++) {
        const struct option_row *row = NULL;
        for (int n = 0; n < ROWS && row == NULL; n++)
            if (strcmp(argv[i], rows[n].name) == 0)
                row = &rows[n];
        if (row == NULL)
            return train_fail(why, "unknown option %s (hra-train --help shows all)", argv[i]);
        if (row->kind == FLAG) {
            *(int *)(void *)((char *)o + row->at) = 1;
            continue;
        }
        if (i + 1 == argc)
            return train_fail(why, "%s needs %s after it", row->name, row->value);
        if (parse_value(o, row, argv[++i], why) != 0)
            return -1;
    }
    return o->help ? 0 : check(o, why);
}

/* ---- The job ------------------------------------------------------------------------------- */

struct job {
    struct options o;
    int rank, ranks;
    struct text text;   /* with --text; else zero */
    struct photo photo; /* with --image; else zero */
    int64_t tokens;     /* of the sequence */
    hra_comm *comm;
    hra_plan *plan;
    hra_plan_info info;
    struct model *model;
    struct state state;
    char *config; /* what a checkpoint must agree in, lines "name value" */

    int64_t count;               /* rows of this rank */
    int64_t *token;              /* [count] the token of each */
    uint8_t *byte;               /* [count] see struct model_batch */
    uint8_t *next;               /* [count] */
    float (*pixel)[MODEL_PIXEL]; /* [count] */
    float (*colour)[3];          /* [count] */
    float *weight;               /* [count] */
    uint8_t *dropped;            /* [tokens] of a picture */
};

/* End the program together where any rank has `failed`; the first of them says why. Collective. */
static void end_if(int failed, int status, const char *why)
{
    int rank, first;

    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    int mine = failed ? rank : INT_MAX;
    MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (first == INT_MAX)
        return;
    if (rank == first)
        fprintf(stderr, "hra-train: %s\n", why);
    MPI_Finalize();
    exit(status);
}

/* End where a step of the run failed: the other ranks may be waiting inside a call, so this one cannot
 * ask them first. */
static void abort_if(const struct job *j, hra_status status)
{
    if (status == HRA_OK)
        return;
    fprintf(stderr, "hra-train: rank %d, after step %lld: %s (%s)\n", j->rank, (long long)j->state.step,
            hra_last_error(), hra_status_name(status));
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILED);
}

static const char *text_of(hra_status status)
{
    return status == HRA_ERR_MEMORY && hra_last_error()[0] == '\0' ? "no memory" : hra_last_error();
}

static uint64_t hash(const void *data, size_t bytes)
{
    const unsigned char *at = data;
    uint64_t sum = 14695981039346656037u;

    for (size_t i = 0; i < bytes; i++)
        sum = (sum ^ at[i]) * 1099511628211u;
    return sum;
}

/* Rank 0 reads the file, the others get it from there: they may run where the file is not. */
static void load_text(struct job *j)
{
    char why[WHY_BYTES] = "";
    struct text *t = &j->text;

    end_if(j->rank == 0 && text_read(t, j->o.text, j->o.tokens, why) != 0, EXIT_WRONG, why);
    MPI_Bcast(&t->count, 1, MPI_INT64_T, 0, MPI_COMM_WORLD);
    MPI_Bcast(&t->train, 1, MPI_INT64_T, 0, MPI_COMM_WORLD);
    if (j->rank != 0)
        t->byte = malloc((size_t)t->count);
    end_if(t->byte == NULL, EXIT_FAILED, "no memory for the text");
    for (int64_t at = 0; at < t->count; at += 1 << 30)
        MPI_Bcast(t->byte + at, (int)(t->count - at < 1 << 30 ? t->count - at : 1 << 30), MPI_BYTE, 0,
                  MPI_COMM_WORLD);
    j->tokens = j->o.tokens;
}

static void load_photo(struct job *j)
{
    char why[WHY_BYTES] = "";
    struct photo *p = &j->photo;
    int size[2] = {0, 0};

    end_if(j->rank == 0 && photo_read(p, j->o.image, why) != 0, EXIT_WRONG, why);
    size[0] = p->width;
    size[1] = p->height;
    MPI_Bcast(size, 2, MPI_INT, 0, MPI_COMM_WORLD);
    p->width = size[0];
    p->height = size[1];
    j->tokens = (int64_t)p->width * p->height;
    end_if(j->tokens > INT_MAX / 3, EXIT_WRONG, "the picture has more pixels than this program can number");
    if (j->rank != 0)
        p->rgb = malloc((size_t)j->tokens * 3 * sizeof(*p->rgb));
    j->dropped = malloc((size_t)j->tokens);
    end_if(p->rgb == NULL || j->dropped == NULL || photo_hide(p, (uint64_t)j->o.seed) != 0, EXIT_FAILED,
           "no memory for the picture");
    MPI_Bcast(p->rgb, (int)(3 * j->tokens), MPI_FLOAT, 0, MPI_COMM_WORLD);
}

/* Order, mask and plan. Collective; what the user wrote wrong is found alike on all ranks. */
static void make_plan(struct job *j)
{
    const int image = j->o.image != NULL;
    hra_domain domain = HRA_DOMAIN_INIT;
    hra_problem problem = HRA_PROBLEM_INIT;
    hra_order *order = NULL;
    hra_mask *mask = NULL, *causal = NULL, *both = NULL;

    domain.tokens = j->tokens;
    domain.heads = (int)j->o.heads;
    if (image) {
        domain.grid[0] = j->photo.height;
        domain.grid[1] = j->photo.width;
    }
    hra_status status = hra_comm_create_mpi(&j->comm, MPI_COMM_WORLD, NULL);
    end_if(status != HRA_OK, EXIT_FAILED, text_of(status));
    status = hra_order_create(&order, &domain, j->o.order);
    if (status == HRA_OK)
        status = hra_mask_parse(&mask, &domain, order, j->o.mask);
    if (status == HRA_OK && !image) /* whoever sees the next byte need not learn to foretell it */
        status = hra_mask_causal(&causal, &domain);
    if (status == HRA_OK && !image)
        status = hra_mask_and(&both, mask, causal);
    end_if(status != HRA_OK, EXIT_WRONG, text_of(status));

    problem.heads = (int)j->o.heads;
    problem.heads_kv = (int)j->o.heads_kv;
    problem.dim = (int)(j->o.dim / j->o.heads);
    problem.tokens = j->tokens;
    problem.type = HRA_F32;
    problem.threads = (int)j->o.threads;
    status = hra_plan_create(&j->plan, j->comm, &problem, order, image ? mask : both, NULL);
    end_if(status != HRA_OK, EXIT_FAILED, text_of(status));
    hra_order_destroy(order);
    hra_mask_destroy(mask);
    hra_mask_destroy(causal);
    hra_mask_destroy(both);
    j->info.size = sizeof(j->info);
    abort_if(j, hra_plan_get_info(j->plan, &j->info));
}

static void make_model(struct job *j)
{
    const struct options *o = &j->o;
    const int image = o->image != NULL;
    const struct model_config config = {image,
                                        (int)o->layers,
                                        (int)o->dim,
                                        (int)o->heads,
                                        (int)o->heads_kv,
                                        image ? j->photo.width : 0,
                                        (uint64_t)o->seed};

    hra_status status = model_create(&j->model, &config, j->plan, j->rank);
    end_if(status != HRA_OK, EXIT_FAILED, text_of(status));
    end_if(model_count(j->model) > INT_MAX, EXIT_WRONG,
           "the model has more parameters than one message can hold; take a smaller --dim or fewer --layers");

    j->count = hra_plan_rows(j->plan, j->rank);
    const size_t n = j->count > 0 ? (size_t)j->count : 1;
    j->token = calloc(n, sizeof(*j->token));
    j->byte = calloc(n, sizeof(*j->byte));
    j->next = calloc(n, sizeof(*j->next));
    j->pixel = calloc(n, sizeof(*j->pixel));
    j->colour = calloc(n, sizeof(*j->colour));
    j->weight = calloc(n, sizeof(*j->weight));
    const int memory =
        j->token != NULL && j->byte != NULL && j->next != NULL && j->pixel != NULL && j->colour != NULL &&
        j->weight != NULL &&
        state_create(&j->state, model_parameters(j->model), model_count(j->model), o->steps) == 0;
    end_if(!memory, EXIT_FAILED, "no memory for the training");
    abort_if(j, hra_plan_row_index(j->plan, j->rank, NULL, j->token));

    const uint64_t data = image ? hash(j->photo.rgb, (size_t)j->tokens * 3 * sizeof(float))
                                : hash(j->text.byte, (size_t)j->text.count);
    const int bytes =
        asprintf(&j->config,
                 "job %s\ndata %016llx\ntokens %lld\nlayers %lld\ndim %lld\nheads %lld\nkv-heads %lld\n"
                 "steps %lld\nlr %.9g\nseed %lld\norder %s\nmask %s\n",
                 image ? "image" : "text", (unsigned long long)data, (long long)j->tokens,
                 (long long)o->layers, (long long)o->dim, (long long)o->heads, (long long)o->heads_kv,
                 (long long)o->steps, o->rate, (long long)o->seed, o->order, o->mask);
    end_if(bytes < 0, EXIT_FAILED, "no memory for the configuration");
}

/* Rank 0 reads the checkpoint and tells the others. */
static void resume(struct job *j)
{
    char why[WHY_BYTES] = "";
    struct state *s = &j->state;

    end_if(j->rank == 0 && state_load(s, j->config, j->o.resume, why) != 0, EXIT_WRONG, why);
    MPI_Bcast(&s->step, 1, MPI_INT64_T, 0, MPI_COMM_WORLD);
    MPI_Bcast(s->parameter, (int)s->count, MPI_FLOAT, 0, MPI_COMM_WORLD);
    MPI_Bcast(s->first, (int)s->count, MPI_FLOAT, 0, MPI_COMM_WORLD);
    MPI_Bcast(s->second, (int)s->count, MPI_FLOAT, 0, MPI_COMM_WORLD);
    MPI_Bcast(s->history, (int)s->step, MPI_DOUBLE, 0, MPI_COMM_WORLD);
}

/* ---- Batches ------------------------------------------------------------------------------- */

/* The sequence of text that starts at byte `start`; the byte after a row's own may be another rank's
 * row, but every rank has the text. */
static struct model_batch text_batch(struct job *j, int64_t start)
{
    for (int64_t i = 0; i < j->count; i++) {
        j->byte[i] = j->text.byte[start + j->token[i]];
        j->next[i] = j->text.byte[start + j->token[i] + 1];
    }
    return (struct model_batch){.byte = j->byte, .next = j->next, .total = (double)j->tokens};
}

/* The picture without its hidden pixels and without those in j->dropped; `asked` marks the `total`
 * pixels whose colour the model is asked for. */
static struct model_batch photo_batch(struct job *j, const uint8_t *asked, int64_t total)
{
    const struct photo *p = &j->photo;

    for (int64_t i = 0; i < j->count; i++) {
        const int64_t t = j->token[i];
        const float known = !p->hidden[t] && !j->dropped[t];
        for (int c = 0; c < 3; c++) {
            j->colour[i][c] = p->rgb[3 * t + c];
            j->pixel[i][c] = known * (2 * p->rgb[3 * t + c] - 1);
        }
        j->pixel[i][3] = known;
        j->pixel[i][4] = 1;
        j->weight[i] = asked[t];
    }
    return (struct model_batch){.pixel = (const float(*)[MODEL_PIXEL])j->pixel,
                                .colour = (const float(*)[3])j->colour,
                                .weight = j->weight,
                                .total = total > 0 ? (double)total : 1};
}

/* The loss over all ranks. Collective. */
static double run(struct job *j, const struct model_batch *batch, int backward)
{
    double loss = 0;

    abort_if(j, model_run(j->model, batch, backward, &loss));
    MPI_Allreduce(MPI_IN_PLACE, &loss, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    return loss;
}

/* One step of training. Collective. */
static void train_step(struct job *j)
{
    const uint64_t seed = (uint64_t)j->o.seed;
    struct model_batch batch;
    char why[WHY_BYTES];

    if (j->o.image != NULL) {
        const int64_t dropped = photo_drop(&j->photo, seed, j->state.step, j->dropped);
        batch = photo_batch(j, j->dropped, dropped);
    } else {
        batch = text_batch(j, text_start(&j->text, j->tokens, seed, j->state.step));
    }
    const double loss = run(j, &batch, 1);
    if (!isfinite(loss)) { /* the sum is every rank's, so all come here */
        train_fail(why, "the loss of step %lld is %g; a lower --lr than %g may help",
                   (long long)j->state.step + 1, loss, j->o.rate);
        end_if(1, EXIT_FAILED, why);
    }
    float *gradient = model_gradient(j->model);
    MPI_Allreduce(MPI_IN_PLACE, gradient, (int)j->state.count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    state_advance(&j->state, gradient, j->o.rate, loss);
}

/* ---- Results ------------------------------------------------------------------------------- */

/* "out/name"; the caller's options outlive it. */
static const char *in_out(const struct job *j, const char *name)
{
    static char path[4096];

    snprintf(path, sizeof(path), "%s/%s", j->o.out, name);
    return path;
}

static int write_csv(const struct job *j, char *why)
{
    const char *path = in_out(j, "loss.csv");
    FILE *f = fopen(path, "w");

    if (f == NULL)
        return train_fail(why, "cannot write %s: %s", path, strerror(errno));
    fprintf(f, "step,loss\n");
    for (int64_t i = 0; i < j->state.step; i++)
        fprintf(f, "%lld,%.17g\n", (long long)i + 1, j->state.history[i]);
    const int failed = ferror(f);
    if (fclose(f) != 0 || failed)
        return train_fail(why, "cannot write %s: %s", path, strerror(errno));
    return 0;
}

/* The loss of guessing without a model, drawn beside the curve. */
static double plain_guess(const struct job *j)
{
    if (j->o.image == NULL)
        return text_entropy(&j->text, 0);

    float *filled = malloc((size_t)j->tokens * 3 * sizeof(*filled));
    if (filled == NULL)
        return NAN;
    photo_fill_mean(&j->photo, filled);
    const double error = photo_error(&j->photo, filled);
    free(filled);
    return error;
}

static int write_losses(const struct job *j, char *why)
{
    const int image = j->o.image != NULL;
    char title[160];

    snprintf(title, sizeof(title), "hra-train: %s on %d rank%s",
             image ? "filling in a picture" : "next byte of a text", j->ranks, j->ranks > 1 ? "s" : "");
    const struct curve curve = {j->state.history,
                                j->state.step,
                                title,
                                image ? "mean error of a colour (0 to 1)" : "loss (nats a byte)",
                                plain_guess(j),
                                image ? "mean of the window's known pixels" : "frequency of single bytes"};
    return write_csv(j, why) != 0 ? -1 : picture_write_curve(in_out(j, "loss.png"), &curve, why);
}

/* Rank 0 writes the losses and, where one is wanted, the checkpoint. Collective. */
static void save(const struct job *j)
{
    char why[WHY_BYTES] = "";
    int failed = 0;

    if (j->rank == 0) {
        failed = write_losses(j, why) != 0;
        if (!failed && j->o.checkpoint != NULL)
            failed = state_save(&j->state, j->config, j->o.checkpoint, why) != 0;
    }
    end_if(failed, EXIT_FAILED, why);
}

/* How well the model does on text that it never saw. Collective. */
static void report_text(struct job *j)
{
    enum { MOST = 8 }; /* sequences: enough for two digits */
    double sum = 0;
    int n = 0;

    for (; n < MOST && j->text.train + (n + 1) * j->tokens < j->text.count; n++) {
        const struct model_batch batch = text_batch(j, j->text.train + n * j->tokens);
        sum += run(j, &batch, 0);
    }
    if (j->rank != 0)
        return;
    if (n > 0)
        printf("held-out text: %.3f nats a byte (%d sequences); by frequency of single bytes %.3f\n", sum / n,
               n, text_entropy(&j->text, 1));
    else
        printf("held-out text: %lld bytes, too few for a sequence of %lld tokens\n",
               (long long)(j->text.count - j->text.train), (long long)j->tokens);
}

/* Fill the hidden pixels and show them. Collective. */
static void report_photo(struct job *j)
{
    const struct photo *p = &j->photo;
    const size_t bytes = (size_t)j->tokens * 3 * sizeof(float);
    float *filled = calloc(1, bytes), *other = calloc(1, bytes);
    char why[WHY_BYTES] = "", caption[2][96];
    int failed = 0;

    end_if(filled == NULL || other == NULL, EXIT_FAILED, "no memory for the picture");
    memset(j->dropped, 0, (size_t)j->tokens);
    const struct model_batch batch = photo_batch(j, p->hidden, p->hiddens);
    run(j, &batch, 0);
    const float *output = model_output(j->model);
    for (int64_t i = 0; i < j->count; i++)
        memcpy(filled + 3 * j->token[i], output + 3 * i, 3 * sizeof(*filled));
    MPI_Reduce(j->rank == 0 ? MPI_IN_PLACE : filled, filled, (int)(3 * j->tokens), MPI_FLOAT, MPI_SUM, 0,
               MPI_COMM_WORLD);

    if (j->rank == 0) {
        for (int64_t i = 0; i < 3 * j->tokens; i++)
            filled[i] = p->hidden[i / 3] ? fminf(1, fmaxf(0, filled[i])) : p->rgb[i];
        const double error = photo_error(p, filled);
        photo_fill_mean(p, other);
        const double mean = photo_error(p, other);
        photo_fill_nearest(p, other);
        const double nearest = photo_error(p, other);
        printf("hidden pixels: %lld of %lld; mean error of a colour (0 to 1) %.4f; mean of the %d x %d "
               "pixels around "
               "%.4f, nearest known pixels %.4f\n",
               (long long)p->hiddens, (long long)j->tokens, error, 2 * PHOTO_WINDOW + 1, 2 * PHOTO_WINDOW + 1,
               mean, nearest);
        for (int64_t i = 0; i < 3 * j->tokens; i++) /* a green that the eye takes for no part of a photo */
            other[i] = p->hidden[i / 3] ? (float)(i % 3 == 1) : p->rgb[i];
        snprintf(caption[0], sizeof(caption[0]), "given: %.0f %% hidden (green)",
                 100 * (double)p->hiddens / (double)j->tokens);
        snprintf(caption[1], sizeof(caption[1]), "filled in after %lld steps, error %.3f",
                 (long long)j->state.step, error);
        const struct panel panel[3] = {{other, caption[0]}, {filled, caption[1]}, {p->rgb, "truth"}};
        failed = picture_write_panels(in_out(j, "picture.png"), panel, 3, p->width, p->height, why) != 0;
    }
    end_if(failed, EXIT_FAILED, why);
    free(filled);
    free(other);
}

static void announce(const struct job *j)
{
    const char *shard = j->info.shard == HRA_SHARD_ZIGZAG ? "zigzag" : "contiguous";

    if (j->o.text != NULL)
        printf("%s: %lld bytes to train on, %lld held out; sequences of %lld tokens\n", j->o.text,
               (long long)j->text.train, (long long)(j->text.count - j->text.train), (long long)j->tokens);
    else
        printf("%s: %d x %d pixels = %lld tokens, %lld of them hidden\n", j->o.image, j->photo.width,
               j->photo.height, (long long)j->tokens, (long long)j->photo.hiddens);
    printf("model: %lld layers, %lld channels, %lld heads, %lld parameters\n", (long long)j->o.layers,
           (long long)j->o.dim, (long long)j->o.heads, (long long)j->state.count);
    printf("attention: %s, order %s, %s over %d rank%s of %d thread%s, %s over %s, %.1f %% of all pairs\n",
           j->o.mask, j->o.order, shard, j->ranks, j->ranks > 1 ? "s" : "", j->info.threads,
           j->info.threads > 1 ? "s" : "", j->info.schedule, j->info.transport,
           100 * (double)j->info.pairs_live / (double)j->info.pairs_all);
    fflush(stdout);
}

/* A line every four seconds, for the first step and for the last. */
static void progress(const struct job *j, double start, int64_t first, double *last)
{
    const double now = MPI_Wtime(), each = (now - start) / (double)(j->state.step - first);

    if (j->rank != 0 || j->o.quiet ||
        (now - *last < 4 && j->state.step < j->o.stop && j->state.step > first + 1))
        return;
    *last = now;
    printf("step %*lld/%lld   loss %.4f   %.0f tokens/s   %.0f s left\n", j->o.steps < 1000 ? 3 : 6,
           (long long)j->state.step, (long long)j->o.steps, j->state.history[j->state.step - 1],
           (double)j->tokens / each, each * (double)(j->o.stop - j->state.step));
    fflush(stdout);
}

static void train(struct job *j)
{
    const int64_t first = j->state.step;
    const double start = MPI_Wtime();
    double last = start;

    while (j->state.step < j->o.stop) {
        train_step(j);
        progress(j, start, first, &last);
        if (j->o.checkpoint_every > 0 && j->state.step % j->o.checkpoint_every == 0 &&
            j->state.step < j->o.stop)
            save(j);
    }
    if (j->rank == 0)
        printf("%lld steps in %.1f s\n", (long long)(j->state.step - first), MPI_Wtime() - start);
}

static void destroy(struct job *j)
{
    state_destroy(&j->state);
    model_destroy(j->model);
    hra_plan_destroy(j->plan);
    hra_comm_destroy(j->comm);
    text_free(&j->text);
    photo_free(&j->photo);
    free(j->token);
    free(j->byte);
    free(j->next);
    free(j->pixel);
    free(j->colour);
    free(j->weight);
    free(j->dropped);
    free(j->config);
}

int main(int argc, char **argv)
{
    static struct job job; /* zeroed */
    struct job *j = &job;
    char why[WHY_BYTES] = "";
    int provided;

    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &j->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &j->ranks);
    end_if(parse(&j->o, argc, argv, why) != 0, EXIT_WRONG, why);
    if (j->o.help) {
        if (j->rank == 0)
            print_help();
        MPI_Finalize();
        return 0;
    }

    /* Ranks are the threads of the products: an OpenBLAS with threads of its own would take all cores
     * on each rank. */
    openblas_set_num_threads(1);
    if (j->o.text != NULL)
        load_text(j);
    else
        load_photo(j);
    make_plan(j);
    make_model(j);
    if (j->o.resume != NULL)
        resume(j);
    /* Tried before the work, so that a run does not end with nowhere to write. */
    if (j->rank == 0 && mkdir(j->o.out, 0777) != 0 && errno != EEXIST)
        train_fail(why, "cannot make the folder %s: %s", j->o.out, strerror(errno));
    else if (j->rank == 0 && j->o.checkpoint != NULL)
        state_try(j->o.checkpoint, why);
    end_if(why[0] != '\0', EXIT_WRONG, why);
    if (j->rank == 0 && !j->o.quiet)
        announce(j);

    train(j);
    save(j);
    if (j->o.text != NULL)
        report_text(j);
    else
        report_photo(j);
    if (j->rank == 0)
        printf("wrote %s%s\n",
               in_out(j, j->o.text != NULL ? "loss.csv, loss.png" : "loss.csv, loss.png, picture.png"),
               j->o.checkpoint != NULL ? " and the checkpoint" : "");
    destroy(j);
    MPI_Finalize();
    return 0;
}

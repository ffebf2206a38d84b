/* state.c - Adam and checkpoints. See state.h. */
#include "examples/train/state.h"
#include "examples/train/fail.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECKPOINT_VERSION 1
#define MAGIC "hraTrain"

struct header {
    char magic[8];
    uint32_t version;
    uint32_t text_bytes;
    int64_t step;
    int64_t count;
};
_Static_assert(sizeof(struct header) == 32, "the table in state.h is stale");

int state_create(struct state *s, float *parameter, int64_t count, int64_t steps)
{
    memset(s, 0, sizeof(*s));
    s->steps = steps;
    s->count = count;
    s->parameter = parameter;
    s->first = calloc((size_t)count, sizeof(*s->first));
    s->second = calloc((size_t)count, sizeof(*s->second));
    s->history = calloc((size_t)steps, sizeof(*s->history));
    return s->first != NULL && s->second != NULL && s->history != NULL ? 0 : -1;
}

double state_rate(const struct state *s, double highest)
{
    const double warm_up = fmin(20, 1 + 0.1 * (double)s->steps);
    const double done = (double)s->step / (double)s->steps;
    const double rise = fmin(1, ((double)s->step + 1) / warm_up);

    return highest * rise * (0.55 + 0.45 * cos(acos(-1) * done));
}

void state_advance(struct state *s, const float *gradient, double highest, double loss)
{
    /* The second moment forgets fast (0.95): runs here have a few hundred steps. EPS lies above the
     * rounding of the gradients: without it a parameter whose true gradient is 0 would move by the
     * full rate in a direction that rounding chose, and differently on every rank count. */
    const double beta1 = 0.9, beta2 = 0.95, EPS = 1e-6;
    const double t = (double)s->step + 1;
    const double rate = state_rate(s, highest) / (1 - pow(beta1, t));
    const double correct2 = 1 / (1 - pow(beta2, t));
    double square = 0;

    for (int64_t i = 0; i < s->count; i++)
        square += (double)gradient[i] * (double)gradient[i];
    const float clip = (float)(square > 1 ? 1 / sqrt(square) : 1);
    const float b1 = (float)beta1, b2 = (float)beta2, eps = (float)EPS;
    const float step = (float)rate, c2 = (float)correct2;
    for (int64_t i = 0; i < s->count; i++) {
        const float g = clip * gradient[i];
        s->first[i] = b1 * s->first[i] + (1 - b1) * g;
        s->second[i] = b2 * s->second[i] + (1 - b2) * g * g;
        s->parameter[i] -= step * s->first[i] / (sqrtf(c2 * s->second[i]) + eps);
    }
    s->history[s->step++] = loss;
}

void state_destroy(struct state *s)
{
    free(s->first);
    free(s->second);
    free(s->history);
    memset(s, 0, sizeof(*s));
}

/* ---- The file ------------------------------------------------------------------------------ */

/* FNV-1a (Fowler, Noll, Vo) over words: by bytes it took longer than the writing. */
static uint64_t fold(uint64_t sum, const void *data, size_t bytes)
{
    const unsigned char *at = data;

    while (bytes > 0) {
        const size_t n = bytes < sizeof(uint32_t) ? bytes : sizeof(uint32_t);
        uint32_t word = 0;
        memcpy(&word, at, n);
        sum = (sum ^ word) * 1099511628211u;
        at += n;
        bytes -= n;
    }
    return sum;
}

/* The parts of a file after its header, in order. */
struct part {
    void *data;
    size_t bytes;
};
enum { PARTS = 5 };

static void lay_parts(struct part *part, const struct state *s, int64_t step, char *config, size_t text_bytes)
{
    const size_t floats = (size_t)s->count * sizeof(float);

    part[0] = (struct part){config, text_bytes};
    part[1] = (struct part){s->parameter, floats};
    part[2] = (struct part){s->first, floats};
    part[3] = (struct part){s->second, floats};
    part[4] = (struct part){s->history, (size_t)step * sizeof(double)};
}

static int write_all(FILE *f, const struct state *s, const char *config)
{
    struct header h = {.version = CHECKPOINT_VERSION,
                       .text_bytes = (uint32_t)strlen(config),
                       .step = s->step,
                       .count = s->count};
    struct part part[PARTS];
    memcpy(h.magic, MAGIC, sizeof(h.magic));
    lay_parts(part, s, s->step, (char *)(uintptr_t)config, h.text_bytes);

    uint64_t sum = fold(14695981039346656037u, &h, sizeof(h));
    if (fwrite(&h, sizeof(h), 1, f) != 1)
        return -1;
    for (int p = 0; p < PARTS; p++) {
        sum = fold(sum, part[p].data, part[p].bytes);
        if (fwrite(part[p].data, 1, part[p].bytes, f) != part[p].bytes)
            return -1;
    }
    if (fwrite(&sum, sizeof(sum), 1, f) != 1 || fflush(f) != 0)
        return -1;
    return fsync(fileno(f));
}

/* A rename is on the disk only when its folder is. A folder that cannot be synced (some network file
 * systems refuse) has still been renamed in, so that is no failure. */
static void sync_folder(const char *path)
{
    char folder[4096];
    const char *slash = strrchr(path, '/');

    snprintf(folder, sizeof(folder), "%.*s", slash != NULL ? (int)(slash - path) + 1 : 1,
             slash != NULL ? path : ".");
    const int fd = open(folder, O_RDONLY | O_DIRECTORY);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

/* A new file beside `path`, whose name is put into temporary [room]: its descriptor, or -1. */
static int open_beside(const char *path, char *temporary, size_t room, char *why)
{
    if (snprintf(temporary, room, "%s.XXXXXX", path) >= (int)room)
        return train_fail(why, "the name of the checkpoint is too long (%zu bytes)", strlen(path));
    const int fd = mkstemp(temporary);
    return fd >= 0 ? fd : train_fail(why, "cannot write the checkpoint %s: %s", path, strerror(errno));
}

int state_try(const char *path, char *why)
{
    char temporary[4096];

    const int fd = open_beside(path, temporary, sizeof(temporary), why);
    if (fd < 0)
        return -1;
    close(fd);
    unlink(temporary);
    return 0;
}

int state_save(const struct state *s, const char *config, const char *path, char *why)
{
    char temporary[4096];

    const int fd = open_beside(path, temporary, sizeof(temporary), why);
    if (fd < 0)
        return -1;
    FILE *f = fdopen(fd, "wb");
    int failed = f == NULL || fchmod(fd, 0644) != 0 || write_all(f, s, config) != 0;
    int error = errno;
    if (f == NULL)
        close(fd);
    else if (fclose(f) != 0 && !failed) {
        failed = 1;
        error = errno;
    }
    if (!failed && rename(temporary, path) != 0) {
        failed = 1;
        error = errno;
    }
    if (failed) {
        unlink(temporary);
        return train_fail(why, "cannot write the checkpoint %s: %s", path, strerror(error));
    }
    sync_folder(path);
    return 0;
}

/* Name the first line in which two configurations differ. */
static int differ(const char *path, const char *theirs, const char *ours, char *why)
{
    while (*theirs != '\0' && *ours != '\0') {
        const int a = (int)strcspn(theirs, "\n"), b = (int)strcspn(ours, "\n");
        if (a != b || memcmp(theirs, ours, (size_t)a) != 0)
            return train_fail(why, "checkpoint %s was made with %.*s, this run has %.*s", path, a, theirs, b,
                              ours);
        theirs += a + (theirs[a] == '\n');
        ours += b + (ours[b] == '\n');
    }
    return train_fail(why, "checkpoint %s was made with another kind of configuration", path);
}

/* Check the whole file, already in memory; only then take it. */
static int take_file(struct state *s, const char *config, const char *path, char *file, size_t bytes,
                     char *why)
{
    struct header h;
    struct part part[PARTS];

    if (bytes < sizeof(h.magic) || memcmp(file, MAGIC, sizeof(h.magic)) != 0)
        return train_fail(why, "%s is no checkpoint of hra-train", path);
    if (bytes < sizeof(h))
        return train_fail(why, "checkpoint %s is cut off: %zu bytes, its header alone has %zu", path, bytes,
                          sizeof(h));
    memcpy(&h, file, sizeof(h));
    if (h.version != CHECKPOINT_VERSION)
        return train_fail(why, "checkpoint %s has version %u, this program reads version %d", path, h.version,
                          CHECKPOINT_VERSION);
    if (h.text_bytes > bytes - sizeof(h))
        return train_fail(why, "checkpoint %s is cut off inside its configuration: %zu bytes", path, bytes);
    char *theirs = strndup(file + sizeof(h), h.text_bytes);
    if (theirs == NULL)
        return train_fail(why, "no memory for the configuration of checkpoint %s", path);
    const int same = strcmp(theirs, config) == 0;
    if (!same)
        differ(path, theirs, config, why);
    free(theirs);
    if (!same)
        return -1;
    if (h.count != s->count || h.step < 0 || h.step > s->steps)
        return train_fail(
            why,
            "checkpoint %s is damaged: %lld parameters and step %lld, this run has %lld and at most %lld",
            path, (long long)h.count, (long long)h.step, (long long)s->count, (long long)s->steps);

    size_t expected = sizeof(h) + sizeof(uint64_t);
    lay_parts(part, s, h.step, file + sizeof(h), h.text_bytes);
    for (int p = 0; p < PARTS; p++)
        expected += part[p].bytes;
    if (bytes != expected)
        return train_fail(why, "checkpoint %s is cut off: %zu bytes of %zu", path, bytes, expected);

    uint64_t sum = fold(14695981039346656037u, &h, sizeof(h)), stored;
    const char *at = file + sizeof(h);
    for (int p = 0; p < PARTS; at += part[p++].bytes)
        sum = fold(sum, at, part[p].bytes);
    memcpy(&stored, at, sizeof(stored));
    if (sum != stored)
        return train_fail(why, "checkpoint %s is damaged: its bytes sum to %016llx, its end says %016llx",
                          path, (unsigned long long)sum, (unsigned long long)stored);

    at = file + sizeof(h) + h.text_bytes;
    for (int p = 1; p < PARTS; at += part[p++].bytes)
        memcpy(part[p].data, at, part[p].bytes);
    s->step = h.step;
    return 0;
}

int state_load(struct state *s, const char *config, const char *path, char *why)
{
    FILE *f = fopen(path, "rb");
    struct stat info;

    if (f == NULL)
        return train_fail(why, "cannot read the checkpoint %s: %s", path, strerror(errno));
    if (fstat(fileno(f), &info) != 0 || !S_ISREG(info.st_mode)) {
        fclose(f);
        return train_fail(why, "cannot read the checkpoint %s: it is no plain file", path);
    }
    const size_t bytes = (size_t)info.st_size;
    char *file = malloc(bytes + 1);
    int failed;
    if (file == NULL)
        failed = train_fail(why, "no memory for the %zu bytes of checkpoint %s", bytes, path);
    else if (fread(file, 1, bytes, f) != bytes)
        failed = train_fail(why, "cannot read the checkpoint %s: %s", path, strerror(errno));
    else
        failed = take_file(s, config, path, file, bytes, why);
    free(file);
    fclose(f);
    return failed;
}

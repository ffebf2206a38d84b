/* data.c - see data.h. */
#include "examples/train/data.h"
#include "examples/train/fail.h"
#include "examples/train/picture.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Text ---------------------------------------------------------------------------------- */

int text_read(struct text *t, const char *path, int64_t tokens, char *why)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return train_fail(why, "cannot read the text %s: %s", path, strerror(errno));

    uint8_t *byte = NULL;
    int64_t count = 0, room = 0;
    for (;;) {
        if (count == room) {
            uint8_t *larger = realloc(byte, (size_t)(room = room > 0 ? 2 * room : 1 << 18));
            if (larger == NULL) {
                free(byte);
                fclose(f);
                return train_fail(why, "no memory for %lld bytes of the text %s", (long long)room, path);
            }
            byte = larger;
        }
        const size_t got = fread(byte + count, 1, (size_t)(room - count), f);
        if (got == 0)
            break;
        count += (int64_t)got;
    }
    const int failed = ferror(f), error = errno;
    fclose(f);
    const int64_t train = count - count / 10;
    if (failed || train <= tokens) {
        free(byte);
        if (failed)
            return train_fail(why, "cannot read the text %s: %s", path, strerror(error));
        return train_fail(
            why,
            "%s has %lld bytes, %lld of them for training: too few for a sequence of %lld tokens and the "
            "byte after it",
            path, (long long)count, (long long)train, (long long)tokens);
    }
    *t = (struct text){byte, count, train};
    return 0;
}

int64_t text_start(const struct text *t, int64_t tokens, uint64_t seed, int64_t step)
{
    return (int64_t)(train_random(seed, STREAM_TEXT, (uint64_t)step) % (uint64_t)(t->train - tokens));
}

double text_entropy(const struct text *t, int held_out)
{
    double often[256] = {0}, sum = 0, nats = 0;
    const int64_t from = held_out ? t->train : 0, to = held_out ? t->count : t->train;

    for (int64_t i = 0; i < t->train; i++)
        often[t->byte[i]]++;
    for (int b = 0; b < 256; b++)
        sum += often[b] += held_out;
    for (int64_t i = from; i < to; i++)
        nats -= log(often[t->byte[i]] / sum);
    return to > from ? nats / (double)(to - from) : 0;
}

void text_free(struct text *t)
{
    free(t->byte);
    memset(t, 0, sizeof(*t));
}

/* ---- Photograph ---------------------------------------------------------------------------- */

int photo_read(struct photo *p, const char *path, char *why)
{
    struct photo read = {0};

    if (picture_read(&read.rgb, &read.width, &read.height, path, why) != 0)
        return -1;
    if (read.width < PHOTO_LEAST || read.height < PHOTO_LEAST) {
        free(read.rgb);
        return train_fail(why, "%s has %d x %d pixels, fewer than %d x %d", path, read.width, read.height,
                          PHOTO_LEAST, PHOTO_LEAST);
    }
    *p = read;
    return 0;
}

/* Mark blocks of 4 x 4 that cover about `blocks` of the picture, and single pixels, `single` of it. */
static void scatter(const struct photo *p, uint64_t seed, uint64_t stream, double blocks, double single,
                    uint8_t *mark)
{
    const int64_t pixels = (int64_t)p->width * p->height;
    const int64_t count = (int64_t)(blocks * (double)pixels / 16);

    memset(mark, 0, (size_t)pixels);
    for (int64_t n = 0; n < count; n++) {
        const uint64_t r = train_random(seed, stream, (uint64_t)(pixels + n));
        const int x = (int)((r & 0xFFFFFFFFu) % (uint64_t)(p->width - 3));
        const int y = (int)((r >> 32) % (uint64_t)(p->height - 3));
        for (int i = 0; i < 16; i++)
            mark[(int64_t)(y + i / 4) * p->width + x + i % 4] = 1;
    }
    for (int64_t i = 0; i < pixels; i++)
        if (train_uniform(seed, stream, (uint64_t)i) < single)
            mark[i] = 1;
}

/* A wave from the left edge to the right, three pixels thick, as if someone had drawn over it. */
static void scribble(const struct photo *p, uint8_t *mark)
{
    const int points = 8 * p->width;

    for (int n = 0; n < points; n++) {
        const double t = (double)n / points;
        const double cx = t * p->width, cy = p->height * (0.5 + 0.32 * sin(2 * acos(-1) * (2.5 * t + 0.1)));
        for (int y = (int)cy - 1; y <= (int)cy + 1; y++)
            for (int x = (int)cx - 1; x <= (int)cx + 1; x++)
                if (x >= 0 && x < p->width && y >= 0 && y < p->height)
                    mark[(int64_t)y * p->width + x] = 1;
    }
}

int photo_hide(struct photo *p, uint64_t seed)
{
    const int64_t pixels = (int64_t)p->width * p->height;

    p->hidden = malloc((size_t)pixels);
    if (p->hidden == NULL)
        return -1;
    scatter(p, seed, STREAM_HIDDEN, 0.14, 0.08, p->hidden);
    scribble(p, p->hidden);
    p->hiddens = 0;
    for (int64_t i = 0; i < pixels; i++)
        p->hiddens += p->hidden[i];
    return 0;
}

int64_t photo_drop(const struct photo *p, uint64_t seed, int64_t step, uint8_t *dropped)
{
    const int64_t pixels = (int64_t)p->width * p->height;
    int64_t count = 0;

    scatter(p, seed, STREAM_DROP + (uint64_t)step, 0.11, 0.05, dropped);
    for (int64_t i = 0; i < pixels; i++)
        count += dropped[i] &= !p->hidden[i];
    return count;
}

/* Add up the known pixels whose distance in rows or columns, the larger of both, is from .. to. */
static int64_t add_known(const struct photo *p, int row, int column, int from, int to, double *sum)
{
    int64_t count = 0;

    for (int y = row - to; y <= row + to; y++) {
        for (int x = column - to; x <= column + to; x++) {
            if (y < 0 || y >= p->height || x < 0 || x >= p->width ||
                (abs(y - row) < from && abs(x - column) < from))
                continue;
            const int64_t i = (int64_t)y * p->width + x;
            if (p->hidden[i])
                continue;
            for (int c = 0; c < 3; c++)
                sum[c] += (double)p->rgb[3 * i + c];
            count++;
        }
    }
    return count;
}

static void fill(const struct photo *p, int nearest, float *filled)
{
    const int largest = p->width > p->height ? p->width : p->height;

    memcpy(filled, p->rgb, (size_t)p->width * (size_t)p->height * 3 * sizeof(*filled));
    for (int64_t i = 0; i < (int64_t)p->width * p->height; i++) {
        double sum[3] = {0, 0, 0};
        int64_t count = 0;
        if (!p->hidden[i])
            continue;
        for (int to = nearest ? 1 : PHOTO_WINDOW; count == 0 && to <= largest; to++)
            count = add_known(p, (int)(i / p->width), (int)(i % p->width), nearest ? to : 0, to, sum);
        for (int c = 0; c < 3; c++)
            filled[3 * i + c] = count > 0 ? (float)(sum[c] / (double)count) : 0.5f;
    }
}

void photo_fill_mean(const struct photo *p, float *filled)
{
    fill(p, 0, filled);
}

void photo_fill_nearest(const struct photo *p, float *filled)
{
    fill(p, 1, filled);
}

double photo_error(const struct photo *p, const float *filled)
{
    double sum = 0;

    for (int64_t i = 0; i < (int64_t)p->width * p->height; i++)
        for (int c = 0; p->hidden[i] && c < 3; c++)
            sum += fabs((double)filled[3 * i + c] - (double)p->rgb[3 * i + c]) / 3;
    return p->hiddens > 0 ? sum / (double)p->hiddens : 0;
}

void photo_free(struct photo *p)
{
    free(p->rgb);
    free(p->hidden);
    memset(p, 0, sizeof(*p));
}

/* status.c - messages, logging, allocation, and the other things that every module needs. */
#include "src/status.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_error[512];

hra_status hra_fail(hra_status status, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(last_error, sizeof(last_error), fmt, args);
    va_end(args);
    return status;
}

const char *hra_last_error(void)
{
    return last_error;
}

const char *hra_version(void)
{
    return HRA_VERSION;
}

const char *hra_status_name(hra_status status)
{
    static const char *const name[] = {
        [HRA_OK] = "HRA_OK",
        [HRA_ERR_ARG] = "HRA_ERR_ARG",
        [HRA_ERR_MISMATCH] = "HRA_ERR_MISMATCH",
        [HRA_ERR_UNSUPPORTED] = "HRA_ERR_UNSUPPORTED",
        [HRA_ERR_MEMORY] = "HRA_ERR_MEMORY",
        [HRA_ERR_CUDA] = "HRA_ERR_CUDA",
        [HRA_ERR_COMM] = "HRA_ERR_COMM",
        [HRA_ERR_REMOTE] = "HRA_ERR_REMOTE",
        [HRA_ERR_TIMEOUT] = "HRA_ERR_TIMEOUT",
        [HRA_ERR_STATE] = "HRA_ERR_STATE",
    };
    if ((int)status < 0 || (size_t)status >= sizeof(name) / sizeof(name[0]))
        return "no hra_status";
    return name[status];
}

hra_status hra_alloc_unset(void **out, int64_t count, size_t bytes, const char *what)
{
    const size_t line = 64;
    size_t total = 0;

    if (count < 0 || __builtin_mul_overflow((size_t)count, bytes, &total) || total > SIZE_MAX - 2 * line)
        return HRA_FAIL(HRA_ERR_MEMORY, "%s: %lld elements of %zu bytes are more than memory can hold", what,
                        (long long)count, bytes);
    total = (total / line + 1) * line;
    void *memory = aligned_alloc(line, total);
    if (memory == NULL)
        return HRA_FAIL(HRA_ERR_MEMORY, "%s: no memory for %zu bytes", what, total);
    *out = memory;
    return HRA_OK;
}

hra_status hra_alloc(void **out, int64_t count, size_t bytes, const char *what)
{
    HRA_TRY(hra_alloc_unset(out, count, bytes, what));
    memset(*out, 0, (size_t)count * bytes);
    return HRA_OK;
}

static const char *const level_name[] = {"warn", "info", "trace"};

/* The level that HRA_LOG asks for; -1: none. The environment is read once, at the first message, which is that of a
 * communicator being made: execution reads no environment. */
static int wanted_level(void)
{
    static atomic_int level = -2;

    if (atomic_load(&level) == -2) {
        const char *wanted = getenv("HRA_LOG");
        int found = -1;
        for (int i = 0; wanted != NULL && i < 3; i++)
            if (strcmp(wanted, level_name[i]) == 0)
                found = i;
        atomic_store(&level, found);
    }
    return atomic_load(&level);
}

void hra_log(enum hra_log_level level, const char *fmt, ...)
{
    if ((int)level > wanted_level())
        return;

    char line[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    fprintf(stderr, "hra %s: %s\n", level_name[level], line);
}

hra_status hra_copy_sized(void *out, size_t bytes, const void *in, const char *what)
{
    size_t known = 0;

    memset(out, 0, bytes);
    if (in == NULL)
        return HRA_OK;
    memcpy(&known, in, sizeof(known)); /* every such struct begins with its size */
    if (known < sizeof(known))
        return HRA_FAIL(HRA_ERR_ARG, "%s.size is %zu; it must be sizeof the struct", what, known);
    for (size_t i = bytes; i < known; i++)
        if (((const unsigned char *)in)[i] != 0)
            return HRA_FAIL(HRA_ERR_UNSUPPORTED,
                            "%s has a field at byte %zu that version " HRA_VERSION " does not know", what, i);
    memcpy(out, in, known < bytes ? known : bytes);
    memcpy(out, &bytes, sizeof(bytes));
    return HRA_OK;
}

uint64_t hra_hash(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ p[i]) * UINT64_C(1099511628211);
    return hash;
}

/* One word into a hash. For each value of the one this is a bijection of the other, so arrays that differ in
 * one place never meet; the word is mixed first, off the chain from word to word. */
static uint64_t stir(uint64_t hash, uint64_t word)
{
    word *= UINT64_C(0x9e3779b97f4a7c15);
    word ^= word >> 32;
    hash = (hash ^ word) * UINT64_C(0xd6e8feb86659fd93);
    return hash ^ hash >> 29;
}

uint64_t hra_hash_words(uint64_t hash, const void *data, size_t bytes)
{
    enum { LANES = 4 }; /* chains that run side by side: one alone takes three times as long */
    const unsigned char *p = data;
    const size_t words = bytes / sizeof(uint64_t);
    uint64_t lane[LANES] = {hash, hash, hash, hash}, word;
    size_t n = 0;

    for (; n + LANES <= words; n += LANES)
        for (size_t l = 0; l < LANES; l++) {
            memcpy(&word, p + (n + l) * sizeof(word), sizeof(word));
            lane[l] = stir(lane[l], word);
        }
    hash = stir(hash, words);
    for (; n < words; n++) {
        memcpy(&word, p + n * sizeof(word), sizeof(word));
        hash = stir(hash, word);
    }
    for (size_t l = 0; l < LANES; l++)
        hash = stir(hash, lane[l]);
    return hash;
}

/* status.h - how the library fails and what it logs. All the error machinery there is. */
#ifndef HRA_SRC_STATUS_H
#define HRA_SRC_STATUS_H

#include <hra/hra.h>

/* Store this thread's message, return status. Called once per failure, by the function that first
 * knows the cause; its callers pass the status on and add nothing. Exported for libhra-mpi. */
HRA_API hra_status hra_fail(hra_status status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define HRA_FAIL(status, ...) hra_fail((status), __VA_ARGS__)

#define HRA_TRY(call)                                                                                        \
    do {                                                                                                     \
        hra_status try_ = (call);                                                                            \
        if (try_ != HRA_OK)                                                                                  \
            return try_;                                                                                     \
    } while (0)

/* calloc of count elements of `bytes` each for *out, 64-byte aligned and zeroed; a count of 0 gives a pointer that
 * may be freed. `what` names the thing in the message. Fails with HRA_ERR_MEMORY, also where count x bytes
 * overflows. Free with free(). */
hra_status hra_alloc(void **out, int64_t count, size_t bytes, const char *what);

/* The same with undefined contents, for what is large and written before it is read. */
hra_status hra_alloc_unset(void **out, int64_t count, size_t bytes, const char *what);

enum hra_log_level { HRA_LOG_WARN, HRA_LOG_INFO, HRA_LOG_TRACE };

/* To stderr, one line; the environment variable HRA_LOG (warn, info, trace; default none) chooses. A
 * returned error is not logged. Exported for libhra-mpi. */
HRA_API void hra_log(enum hra_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Copy a caller's options struct of *in's own size into out [bytes]: fields that the caller does not know
 * become 0. in NULL gives all 0. Fails where in is larger than out and has bytes there that are not 0: fields
 * of a newer library. `what` names the struct. Exported for libhra-mpi. */
HRA_API hra_status hra_copy_sized(void *out, size_t bytes, const void *in, const char *what);

/* FNV-1a over bytes, continued from `hash`; begin with HRA_HASH_BEGIN. */
#define HRA_HASH_BEGIN UINT64_C(14695981039346656037)
uint64_t hra_hash(uint64_t hash, const void *data, size_t bytes);

/* A hash of 64-bit numbers, continued from `hash`: equal where the numbers are, whatever the machine. `bytes`
 * is a multiple of 8. Made for long arrays: about 7 bytes a nanosecond. */
uint64_t hra_hash_words(uint64_t hash, const void *data, size_t bytes);

#endif

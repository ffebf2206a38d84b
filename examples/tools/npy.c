/* npy.c - NumPy's file format 1.0: a magic number, the length of a header, the header as a Python
 * literal padded to 64 bytes, the numbers in C order. */
#include "examples/tools/npy.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bytes before the numbers, in out [256]; returns how many. */
static size_t header(char *out, hra_type type, int axes, const int64_t *shape)
{
    const char *code = type == HRA_F64 ? "<f8" : type == HRA_F16 ? "<f2" : "<f4";
    char *text = out + 10;
    size_t length = (size_t)sprintf(text, "{'descr': '%s', 'fortran_order': False, 'shape': (", code);

    for (int a = 0; a < axes; a++)
        length += (size_t)sprintf(text + length, "%" PRId64 ",", shape[a]);
    length += (size_t)sprintf(text + length, "), }");
    while ((10 + length + 1) % 64 != 0)
        text[length++] = ' ';
    text[length++] = '\n';
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (char)(length & 255);
    out[9] = (char)(length >> 8);
    return 10 + length;
}

int npy_write(const char *folder, const char *name, hra_type type, const double *data, int axes,
              const int64_t *shape, char *error, size_t error_bytes)
{
    const hra_type stored = type == HRA_BF16 ? HRA_F32 : type;
    char path[PATH_MAX], head[256];
    int64_t count = 1;
    for (int a = 0; a < axes; a++)
        count *= shape[a];

    if (snprintf(path, sizeof(path), "%s/%s.npy", folder, name) >= (int)sizeof(path)) {
        snprintf(error, error_bytes, "%s: the name is longer than %d bytes", folder, PATH_MAX);
        return -1;
    }
    const size_t bytes = (size_t)count * hra_type_bytes(stored);
    void *numbers = malloc(bytes + 1);
    if (numbers == NULL) {
        snprintf(error, error_bytes, "%s: no memory for %zu bytes", path, bytes);
        return -1;
    }
    hra_convert(numbers, stored, data, HRA_F64, count);

    FILE *file = fopen(path, "wb");
    int failed = file == NULL;
    if (file != NULL) {
        const size_t head_bytes = header(head, stored, axes, shape);
        failed = fwrite(head, 1, head_bytes, file) != head_bytes || fwrite(numbers, 1, bytes, file) != bytes;
        failed = fclose(file) != 0 || failed; /* a full disk may show here first */
    }
    if (failed)
        snprintf(error, error_bytes, "%s: %s", path, strerror(errno));
    free(numbers);
    return failed ? -1 : 0;
}

/* npy.h - arrays as NumPy files. */
#ifndef HRA_TOOLS_NPY_H
#define HRA_TOOLS_NPY_H

#include <hra/hra.h>

/* Write data [shape[0]][shape[1]]... as `folder`/`name`.npy, format version 1.0, as numbers of `type`;
 * bf16, which NumPy lacks, as f32. 0, or -1 and one sentence in error [error_bytes]. */
int npy_write(const char *folder, const char *name, hra_type type, const double *data, int axes,
              const int64_t *shape, char *error, size_t error_bytes);

#endif

/* model.h - files that describe a machine for forecasts. docs/models.md has the format. */
#ifndef HRA_TOOLS_MODEL_H
#define HRA_TOOLS_MODEL_H

#include <hra/hra.h>

/* Read the file at `path`: what it says of tensors of `type` with `dim` channels a head, for a plan of `ranks` ranks. 0, or -1
 * and one sentence, with the line's number, in error [error_bytes]. */
int model_read(hra_machine *out, const char *path, hra_type type, int dim, int ranks, char *error,
               size_t error_bytes);

#endif

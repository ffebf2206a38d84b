/* bare.h - hops between GPUs of one machine without the library: a copy into mapped memory of the next rank, and a
 * flag that tells of it. What it reaches is what a transport can be measured by: nothing is asked of the receiver
 * before the copy, and every hop sends the same bytes. A stream waits without end for a rank that stays away, so the
 * host waits for the stream with a limit.
 *
 * Functions that return int return 0, or -1 and a sentence in bare_error. */
#ifndef HRA_TOOLS_BARE_H
#define HRA_TOOLS_BARE_H

#include <stddef.h>

struct bare;

/* Memory for hops of `bytes` bytes on the current GPU, mapped by the rank before. Collective; alike on all ranks. */
int bare_open(struct bare **out, size_t bytes);

/* Enqueue `count` hops, each after the one before it has arrived. Collective. */
int bare_run(struct bare *b, int count, void *stream);

/* Once the stream is done: whether the bytes of the rank before are here. Local; blocks. */
int bare_check(struct bare *b);

/* Collective: nobody frees what another one maps. Accepts NULL. */
void bare_close(struct bare *b);

/* Why the last call failed; static storage. */
const char *bare_error(void);

#endif

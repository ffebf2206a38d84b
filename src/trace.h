/* trace.h - what an execution did when: marks between its steps, which the executor sets and hra_trace_spans reads.
 *
 * Each mark ends a step that began with the mark before it, so that the steps of a stream follow one another without a gap.
 * All memory and all marks are made with the trace; recording allocates nothing. */
#ifndef HRA_SRC_TRACE_H
#define HRA_SRC_TRACE_H

#include "src/status.h"

/* An execution of `pass` begins; what was recorded of the last one is forgotten. */
hra_status hra_trace_begin(struct hra_trace *trace, hra_pass pass, void *stream);

/* Since the last mark the stream has done this. round, peer: as in hra_span. */
hra_status hra_trace_step(struct hra_trace *trace, hra_pass pass, hra_span_kind kind, int round, int peer,
                          void *stream);

/* At the last mark the move of the pass was started, or (ends: 1) was waited for to its end. */
void hra_trace_move(struct hra_trace *trace, hra_pass pass, int move, int ends);

/* All of it has been recorded. */
void hra_trace_end(struct hra_trace *trace, hra_pass pass);

/* The plan is going. */
void hra_trace_forget(struct hra_trace *trace);

#endif

/* device.h - memory where a backend computes, and marks in its work: the host's for the CPU, a GPU's for CUDA.
 *
 * A process has one device. Functions that return int return 0, or -1 and a sentence in device_error. */
#ifndef HRA_TOOLS_DEVICE_H
#define HRA_TOOLS_DEVICE_H

#include <hra/hra.h>

/* Choose where memory lies from now on. For CUDA the current GPU becomes number `index` modulo those that are there,
 * so this comes before communicators and plans are made. In a build without CUDA, and where there is no GPU, memory is
 * the host's: the library says what is missing when a plan is made. */
int device_open(hra_backend_kind backend, int index);

/* Everything that device_alloc gave is freed before. */
void device_close(void);

/* Why the last call failed; owned by the device. */
const char *device_error(void);

/* The GPU's name, "" on the host; owned by the device. */
const char *device_name(void);

/* What the multiprocessors' clock is now, MHz, as nvidia-smi says; -1: not known. */
int device_clock_mhz(void);

/* A stream that waits for no other, for hra_forward and its like, and a second one for what runs beside; NULL on
 * the host. */
void *device_stream(void);
void *device_stream_beside(void);

/* `bytes` aligned to DEVICE_ALIGNMENT, the caller's; NULL: failed. device_free accepts NULL. */
enum { DEVICE_ALIGNMENT = 256 };
void *device_alloc(size_t bytes);
void device_free(void *memory);

/* Copy and fill when all that was enqueued is done, and return when they are. */
int device_read(void *host, const void *memory, size_t bytes);
int device_write(void *memory, const void *host, size_t bytes);
int device_fill(void *memory, int byte, size_t bytes);

/* Enqueue a copy within the backend's memory on device_stream; on the host it is done on return. */
int device_copy(void *to, const void *from, size_t bytes);

/* Wait for all that was enqueued; the failure of any of it is ours. */
int device_wait(void);

/* Set mark `number` behind what device_stream, or a stream of ours, now holds, and after device_wait the seconds from
 * one to another. */
enum { DEVICE_MARKS = 16 };
int device_mark(int number);
int device_mark_on(int number, void *stream);
int device_between(double *out_s, int from, int to);

/* What is put on the stream next comes after a mark that has been set. On the host it does so anyway. */
int device_follow(void *stream, int number);

/* What is put on device_stream between device_record and device_recorded is kept and not done; each device_replay
 * puts it there as one piece. For a GPU only. *out is the caller's, to be given to device_forget, which accepts
 * NULL. */
int device_record(void);
int device_recorded(void **out);
int device_replay(void *record);
void device_forget(void *record);

#endif

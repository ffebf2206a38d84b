/* device.h - what device.c does beside what CUDA has. */
#ifndef HRA_TESTS_PEER_DEVICE_H
#define HRA_TESTS_PEER_DEVICE_H

#include <stddef.h>

/* Put a call of a function on a stream of device.c's, with a copy of its argument; NULL is the default one. 0, or -1: no
 * memory. */
int peer_enqueue(void *stream, void (*call)(void *argument), void *argument, size_t bytes);

#endif

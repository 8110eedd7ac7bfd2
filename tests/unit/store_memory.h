/* The store in memory, for tests that need no Redis. See coordinator/store/store.h for all that it does. */
#ifndef KN_TESTS_UNIT_STORE_MEMORY_H
#define KN_TESTS_UNIT_STORE_MEMORY_H

#include "coordinator/store/store.h"

/* The data of a memory store after its close, as a disk would keep it. */
struct store_disk;
struct store_disk *store_disk_create(void); /* NULL: out of memory */
void store_disk_destroy(struct store_disk *d);
KN_MUST_USE int store_memory_open(struct store_disk *d, uv_loop_t *loop, struct store **out,
                                  struct kn_err *err);

#endif

/* The function that a fuzz target defines, and those that it may use. */
#ifndef KN_TESTS_FUZZ_FUZZ_H
#define KN_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Feeds one input to the code under test. Returns 0; a promise that is broken aborts (FUZZ_CHECK). `data`
 * ends at a page or at a sanitizer's redzone: reading past `size` is seen. */
int kn_fuzz(const uint8_t *data, size_t size);

#define FUZZ_CHECK(cond)                                                                                     \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond);                               \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

#endif

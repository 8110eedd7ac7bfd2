/* Memory that runs out: the linker puts these before the real allocators of sim-farm, and a part of what the
 * core asks for is refused, by the seed. Only inside farm_step, and only in histories that are `starved`. */
#include <stddef.h>
#include <string.h>

#include "tests/sim/world.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);

static struct world *starved;

void memory_starve(struct world *w) {
    starved = w;
}

static bool refuse(void) {
    if (!starved) return false;
    uint64_t z = (starved->memory_rng += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    bool no = (z >> 32) % 100 < 10;
    starved->refused += no;
    return no;
}

void *__wrap_malloc(size_t n) {
    return refuse() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    return refuse() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    return refuse() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *s) {
    return refuse() ? NULL : __real_strdup(s);
}

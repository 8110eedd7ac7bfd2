/* Clocks; the contract is clock.h. */
#include "base/clock.h"

#include <time.h>

static uint64_t clock_us(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts); /* cannot fail for these two clocks */
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

uint64_t kn_clock_us(void) {
    return clock_us(CLOCK_MONOTONIC);
}

uint64_t kn_clock_ms(void) {
    return clock_us(CLOCK_MONOTONIC) / 1000u;
}

uint64_t kn_wall_ms(void) {
    return clock_us(CLOCK_REALTIME) / 1000u;
}

/* How near two arrays are: the golden tests' measure ‖a − b‖/‖b‖. */
#ifndef KILN_TESTS_GOLDEN_NEAR_H
#define KILN_TESTS_GOLDEN_NEAR_H

#include <math.h>
#include <stddef.h>

static inline double relative(const float *got, const float *want, size_t n) {
    double diff = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        diff += d * d;
        size += (double)want[i] * (double)want[i];
    }
    if (!isfinite(diff)) return INFINITY;
    return size > 0 ? sqrt(diff / size) : sqrt(diff);
}

#endif

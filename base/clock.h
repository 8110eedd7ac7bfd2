/* Clocks. The core never calls these: it gets time as an argument. Libc only. */
#ifndef KN_BASE_CLOCK_H
#define KN_BASE_CLOCK_H

#include <stdint.h>

uint64_t kn_clock_ms(void); /* monotonic, for durations and deadlines */
uint64_t kn_clock_us(void); /* monotonic */
uint64_t kn_wall_ms(void);  /* Unix time */

#endif

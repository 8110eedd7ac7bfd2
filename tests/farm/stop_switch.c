/* Linked into kiln-coordinator-stops, which is kiln-coordinator but for this: with KILN_TEST_STOP=CALL:N the
 * process stops (SIGSTOP) right before the N-th system call of that name that changes the folder of objects
 * (objects_switch). Whoever started it lets it go on, or kills it. */
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/objects.h"

static const char *stop_call;
static atomic_long calls_left;

static void on_switch(const char *call) {
    if (strcmp(call, stop_call) == 0 && atomic_fetch_sub(&calls_left, 1) == 1) raise(SIGSTOP);
}

__attribute__((constructor)) static void read_environment(void) {
    static char text[64];
    const char *v = getenv("KILN_TEST_STOP");
    const char *colon = v ? strchr(v, ':') : NULL;
    size_t len = colon ? (size_t)(colon - v) : 0;
    if (!colon || len >= sizeof text) return;
    memcpy(text, v, len);
    stop_call = text;
    atomic_store(&calls_left, atol(colon + 1));
    objects_switch = on_switch;
}

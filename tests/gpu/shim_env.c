/* For programs on the shim: KX_SHIM_FAIL=CALL:N makes the N-th call of that function of the runtime fail, for
 * good, as an illegal address does. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/gpu/shim/shim.h"

__attribute__((constructor)) static void read_environment(void) {
    const char *text = getenv("KX_SHIM_FAIL");
    static char name[64];
    int n;
    if (text && sscanf(text, "%63[A-Za-z_]:%d", name, &n) == 2)
        kx_shim_fail(name, n, cudaErrorIllegalAddress, true);
}

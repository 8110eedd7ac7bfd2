/* Linked into kiln-coordinator-planted, which is kiln-coordinator with the fault of base/planted.h that $KILN_PLANT
 * names: storm.py must see that such a farm breaks its promises. */
#include <stdlib.h>
#include <string.h>

#include "base/planted.h"

enum kn_planted_fault kn_planted;

__attribute__((constructor)) static void read_environment(void) {
#define NAME(name, what) #name,
    static const char *const names[] = {KN_PLANTED_TABLE(NAME)};
#undef NAME
    const char *v = getenv("KILN_PLANT");
    for (size_t i = 0; v && i < sizeof names / sizeof names[0]; i++)
        if (strcmp(v, names[i]) == 0) kn_planted = (enum kn_planted_fault)i;
}

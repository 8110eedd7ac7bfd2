/* See images.h. */
#include "cli/folder/images.h"

#include <stdio.h>

void folder_file_name(uint32_t index, char out[32]) {
    snprintf(out, 32, "images/%06u.png", index);
}

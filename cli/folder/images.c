/* See images.h. */
#include "cli/folder/images.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

#define STRINGS_MAX                                                                                          \
    ((size_t)KN_TASKS_PER_BATCH_MAX * 2) /* every image may have a name, and words of its own */

const char *folder_intern(struct folder *o, const char *text) {
    if (!text || !text[0]) return "";
    size_t len = strlen(text);
    if (!o->strings && !(o->strings = kn_map_create(STRINGS_MAX))) return NULL;
    char *have = kn_map_get(o->strings, text, len);
    if (have) return have;
    have = strdup(text);
    if (have && kn_map_put(o->strings, text, len, have)) {
        free(have);
        have = NULL;
    }
    return have;
}

void folder_forget_strings(struct folder *o) {
    size_t pos = 0;
    char *s;
    while (o->strings && (s = kn_map_next(o->strings, &pos))) free(s);
    kn_map_destroy(o->strings);
    o->strings = NULL;
}

void folder_keys_hex(const kn_digest *keys, size_t count, char out[KN_SHA256_HEX]) {
    kn_digest d;
    kn_sha256(keys, count * sizeof *keys, d);
    kn_hex(d, sizeof d, out);
}

void folder_file_name(uint32_t index, char out[32]) {
    snprintf(out, 32, "images/%06u.png", index);
}

const char *folder_file(const struct folder *o, size_t index, char out[FOLDER_FILE_MAX]) {
    if (o->names)
        snprintf(out, FOLDER_FILE_MAX, "%s", o->names[index]);
    else
        folder_file_name((uint32_t)index, out);
    return out;
}

bool folder_file_is_safe(const char *file) {
    if (strncmp(file, "images/", 7) != 0) return false;
    const char *name = file + 7;
    size_t len = strlen(name);
    if (len < 5 || len > 255 || name[0] == '.' || strcmp(name + len - 4, ".png") != 0) return false;
    if (kn_utf8_span(name, len) != len) return false;
    for (const unsigned char *p = (const unsigned char *)name; *p; p++)
        if (*p < 0x20 || *p == 0x7f || *p == '/' || *p == '\\') return false;
    return true;
}

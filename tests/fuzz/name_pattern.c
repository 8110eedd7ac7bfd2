/* Names of pictures from a pattern: the first line of the input is the pattern, the second a prompt, the rest a column
 * `file`. What must hold whatever they say: a pattern is refused with words, or every name is safe: below
 * images/, one part, no control characters, 255 bytes at most, and no two alike. */
#include <json-c/json.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/folder/names.h"
#include "tests/fuzz/fuzz.h"

enum { TASKS = 3, NAME_BYTES_MAX = 255 };

static void check_name(const char *name) {
    const char *last = strrchr(name, '/');
    FUZZ_CHECK(strncmp(name, "images/", 7) == 0 && last == name + 6);
    size_t len = strlen(last + 1);
    FUZZ_CHECK(len >= 5 && len <= NAME_BYTES_MAX && strcmp(last + 1 + len - 4, ".png") == 0);
    FUZZ_CHECK(last[1] != '.' && last[1] != ' ');
    for (const char *p = last + 1; *p; p++)
        FUZZ_CHECK((unsigned char)*p >= 0x20 && !strchr("\\:*?\"<>|\x7f", *p));
}

int kn_fuzz(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1), *part[3] = {text, (char *)"", NULL};
    if (!text) abort();
    memcpy(text, data, size);
    text[size] = '\0';
    for (size_t i = 1; i < 3; i++) {
        char *end = strchr(part[i - 1], '\n');
        if (!end) break;
        *end = '\0';
        part[i] = end + 1;
    }
    for (size_t i = 0; i < 3; i++) { /* no other text comes in */
        if (!part[i] || kn_utf8_span(part[i], strlen(part[i])) == strlen(part[i])) continue;
        free(text);
        return 0;
    }
    json_object *columns = json_object_new_object();
    json_object_object_add(columns, "place", json_object_new_string("left"));
    if (part[2]) json_object_object_add(columns, "file", json_object_new_string(part[2]));
    struct kn_task tasks[TASKS];
    kn_digest keys[TASKS];
    struct kn_model_info models[TASKS];
    memset(models, 0, sizeof models);
    for (unsigned i = 0; i < TASKS; i++) {
        tasks[i] = (struct kn_task){.prompt = part[1],
                                    .negative = (char *)"",
                                    .seed = i / 2,
                                    .width = 64,
                                    .height = 64,
                                    .steps = 4,
                                    .extra = (char *)json_object_to_json_string(columns),
                                    .sampler = KN_SAMPLER_EULER,
                                    .schedule = KN_SCHEDULE_NORMAL};
        memset(keys[i], (int)i, sizeof keys[i]);
        strcpy(models[i].name, "tiny");
    }
    char **names = NULL;
    struct kn_err err = {0};
    int rc = names_make(part[0][0] ? part[0] : NULL, &(struct kn_tasks){.v = tasks, .count = TASKS}, keys,
                        models, TASKS, &names, &err);
    FUZZ_CHECK(rc <= 0 && (rc == 0 || err.text[0]));
    if (rc == 0 && names) {
        for (size_t i = 0; i < TASKS; i++) {
            check_name(names[i]);
            for (size_t k = 0; k < i; k++) {
                char *a = names_fold(names[i]), *b = names_fold(names[k]);
                FUZZ_CHECK(a && b && strcmp(a, b) != 0);
                free(a);
                free(b);
            }
        }
    }
    names_free(names, TASKS);
    json_object_put(columns);
    free(text);
    return 0;
}

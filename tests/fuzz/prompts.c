/* The prompt readers. The first byte chooses the format and whether it is read strictly, the rest is the
 * file. What must hold whatever it says: a failure names the file and a line and leaves the list alone; a
 * success gives tasks that pass their own check, strings that are UTF-8, `extra` that is a JSON object; and
 * reading is a function of the bytes.
 * */
#include "base/prompts.h"

#include <json-c/json.h>
#include <string.h>

#include "base/utf8.h"
#include "tests/fuzz/fuzz.h"

static void check_text(const char *s) {
    FUZZ_CHECK(s != NULL);
    FUZZ_CHECK(kn_utf8_span(s, strlen(s)) == strlen(s));
}

static void check_task(const struct kn_task *t) {
    struct kn_err err = {0};
    check_text(t->prompt);
    check_text(t->negative);
    FUZZ_CHECK((t->set & KN_SET_MODEL) == 0 || (t->model && t->model[0]));
    FUZZ_CHECK((t->set & ~(uint32_t)(KN_SET_ALL | KN_SET_IMAGES | KN_SET_SEED_EACH)) == 0);
    FUZZ_CHECK(kn_task_check(t, &err) == 0);
    if (t->extra) {
        check_text(t->extra);
        json_object *o = json_tokener_parse(t->extra);
        FUZZ_CHECK(json_object_is_type(o, json_type_object));
        json_object_put(o);
    }
}

int kn_fuzz(const uint8_t *data, size_t size) {
    static const enum kn_input_format formats[] = {KN_INPUT_TXT, KN_INPUT_JSONL, KN_INPUT_CSV, KN_INPUT_TSV,
                                                   KN_INPUT_JSON};
    if (size == 0) return 0;
    enum kn_input_format format = formats[(data[0] & 7) % 5];
    const char *text = (const char *)data + 1;
    struct kn_tasks ts = {0};
    struct kn_err err = {0};
    FUZZ_CHECK(kn_tasks_add(&ts, "before", &err) == 0);

    int rc = kn_prompts_parse("f", format, data[0] & 8, text, size - 1, &ts, &err);
    if (rc) {
        FUZZ_CHECK(ts.count == 1 && strcmp(ts.v[0].prompt, "before") == 0);
        FUZZ_CHECK(err.code == rc && strncmp(err.text, "f:", 2) == 0 && err.text[2] >= '1' &&
                   err.text[2] <= '9');
    } else {
        size_t count = ts.count, some = count < 100 ? count : 100; /* the images of one line are alike */
        for (size_t i = 1; i < some; i++) check_task(&ts.v[i]);
        check_task(&ts.v[count - 1]);
        if (count < 1000 && kn_tasks_expand(&ts, 2, 7, &err) == 0) {
            FUZZ_CHECK(ts.count >= count && ts.count <= 2 * count);
            for (size_t i = 0; i < ts.count; i++)
                FUZZ_CHECK(ts.v[i].set & KN_SET_SEED && !(ts.v[i].set & (KN_SET_IMAGES | KN_SET_SEED_EACH)));
        }
    }
    kn_tasks_fini(&ts);

    /* The parsers of single values read the same bytes as one string. */
    char word[64];
    size_t len = size - 1 < sizeof word - 1 ? size - 1 : sizeof word - 1;
    memcpy(word, text, len);
    word[len] = '\0';
    enum kn_sampler sampler;
    enum kn_schedule schedule;
    uint32_t w, h;
    uint8_t id[KN_UUID_BYTES];
    if (kn_sampler_parse(word, &sampler, &err) == 0) FUZZ_CHECK(kn_sampler_name(sampler)[0] != '?');
    if (kn_schedule_parse(word, &schedule, &err) == 0) FUZZ_CHECK(kn_schedule_name(schedule)[0] != '?');
    if (kn_size_parse(word, &w, &h, &err) == 0) FUZZ_CHECK(w < 1000000 && h < 1000000);
    if (kn_uuid_parse(word, id) == 0) FUZZ_CHECK(strlen(word) == 36);
    return 0;
}

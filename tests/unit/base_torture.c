/* Every allocation of base/ fails in turn (the linker puts these wrappers before the real ones): each time
 * the call must say KN_ENOMEM and leave things as they were; a leak or a double free shows under the address
 * sanitizer. */
#include "base/map.h"
#include "base/prompts.h"
#include "tests/unit/check.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);

static long countdown = -1; /* the allocation that fails; below 0: none */
static bool failed;

static bool fails(void) {
    if (countdown < 0 || countdown-- != 0) return false;
    failed = true;
    return true;
}

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    return fails() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *s) {
    return fails() ? NULL : __real_strdup(s);
}

/* Calls `call` with the first allocation failing, then the second, … until none is left to fail. */
static long sweep(int (*call)(void)) {
    for (long n = 0;; n++) {
        countdown = n;
        failed = false;
        int rc = call();
        countdown = -1;
        if (!failed) {
            CHECK_INT(rc, KN_OK);
            return n;
        }
        CHECK_MSG(rc == KN_ENOMEM, "allocation %ld: %d", n, rc);
        CHECK_MSG(n < 10000, "no end of allocations");
    }
}

static const char *name, *text;

static int read_once(void) {
    struct kn_tasks ts = {0};
    struct kn_err err = {0};
    int rc = kn_prompts_parse(name, KN_INPUT_AUTO, false, text, strlen(text), &ts, &err);
    if (rc) {
        CHECK_INT(ts.count, 0);
        CHECK(strstr(err.text, "out of memory") != NULL);
    }
    kn_tasks_fini(&ts);
    return rc;
}

TEST(reading_prompts_survives_every_failed_allocation) {
    static const char *const inputs[][2] = {
        {"t.txt", "a --negative 'b c' --model m --images 3 --seed 5\r\nd\r\n"},
        {"t.txt", "a\nb\nNegative prompt: c\nSteps: 5, Schedule type: Karras, Model: \"m\", Version: 1\n"},
        {"t.jsonl",
         "{\"prompt\":\"a \\u00e4\",\"negative\":\"n\",\"model\":\"m\",\"extra\":{\"x\":1},\"images\":2}\n"},
        {"t.json", "[\"a\",\n{\"prompt\":\"b\",\"x\":[1],\"extra\":{\"y\":2},\"z\":null}]\n"},
        {"t.csv", "sep=;\nprompt;cfg;x\na;7,5;b\n"},
        {"t.csv", "prompt;cfg;x\na;7,5;b\n"},
        {"t.csv", "id,prompt,negative,model\n7,\"a \"\"b\"\"\",n,m\n8,c,,\n"},
    };
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        name = inputs[i][0];
        text = inputs[i][1];
        long n = sweep(read_once);
        CHECK_MSG(n >= 6, "%s: only %ld allocations were seen: are they wrapped?", name, n);
    }
}

static int expand_once(void) {
    static char negative[] = "n", model[] = "m";
    struct kn_task settings = {
        .negative = negative, .model = model, .set = KN_SET_NEGATIVE | KN_SET_MODEL | KN_SET_SEED_EACH};
    struct kn_tasks ts = {0};
    struct kn_err err = {0};
    int rc = kn_tasks_add(&ts, "a", &err);
    if (rc == KN_OK) rc = kn_tasks_add(&ts, "b", &err);
    if (rc == KN_OK) rc = kn_tasks_apply(&ts, &settings, &err);
    if (rc == KN_OK) {
        rc = kn_tasks_expand(&ts, 20, 0, &err);
        CHECK_INT(ts.count, rc ? 2 : 40);
    }
    kn_tasks_fini(&ts);
    return rc;
}

TEST(settings_and_images_survive_every_failed_allocation) {
    CHECK(sweep(expand_once) > 5);
}

static int map_once(void) {
    static int value;
    struct kn_map *m = kn_map_create(1000);
    if (!m) return KN_ENOMEM;
    int rc = KN_OK;
    size_t there = 0;
    for (int i = 0; rc == KN_OK && i < 100; i++) {
        rc = kn_map_put(m, &i, sizeof i, &value);
        if (rc == KN_OK) there++;
        if (rc == KN_OK && i % 2) there -= kn_map_remove(m, &i, sizeof i) != NULL;
    }
    CHECK_INT(kn_map_count(m), there);
    for (int i = 0; i < (int)there; i++) {
        int key = 2 * i;
        CHECK(kn_map_get(m, &key, sizeof key) == &value);
    }
    kn_map_destroy(m);
    return rc;
}

TEST(a_map_survives_every_failed_allocation) {
    CHECK(sweep(map_once) > 100);
}

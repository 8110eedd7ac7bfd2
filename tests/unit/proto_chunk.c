/* Chunks of tasks: there and back, and what a chunk from a peer may not do. */
#include "tests/unit/check.h"

#include <zlib.h>

#include "proto/codec.h"

static char none[] = "";

static struct kn_task a_task(char *prompt, uint64_t seed) {
    return (struct kn_task){.prompt = prompt,
                            .negative = none,
                            .model_index = 2,
                            .seed = seed,
                            .cfg = 7,
                            .steps = 20,
                            .width = 64,
                            .height = 128,
                            .sampler = KN_SAMPLER_EULER_A,
                            .schedule = KN_SCHEDULE_KARRAS,
                            .set = KN_SET_ALL};
}

TEST(a_full_chunk_comes_back_as_it_went) {
    static struct kn_task t[KN_TASKS_PER_CHUNK_MAX];
    static char text[KN_TASKS_PER_CHUNK_MAX][32];
    struct kn_buf b;
    struct kn_chunk c;
    struct kn_err err = {0};
    kn_buf_init(&b, KN_CHUNK_BYTES_MAX);
    for (size_t i = 0; i < KN_TASKS_PER_CHUNK_MAX; i++) {
        snprintf(text[i], sizeof text[i], "prompt %zu", i);
        t[i] = a_task(text[i], i * i);
    }
    CHECK_INT(kn_chunk_pack(t, KN_TASKS_PER_CHUNK_MAX, &b, &err), 0);
    CHECK_INT(kn_chunk_unpack(b.data, b.len, 3, &c, &err), 0);
    CHECK_U64(c.count, KN_TASKS_PER_CHUNK_MAX);
    for (size_t i = 0; i < c.count; i++) {
        CHECK_STR(c.v[i].prompt, text[i]);
        CHECK_U64(c.v[i].seed, i * i);
        CHECK_INT(c.v[i].model_index, 2);
        CHECK_INT(c.v[i].set, KN_SET_ALL);
        CHECK(c.v[i].extra == NULL);
    }
    kn_chunk_fini(&c);
    kn_buf_fini(&b);
}

TEST(the_largest_tasks_fit_a_chunk) {
    static struct kn_task t[KN_TASKS_PER_CHUNK_MAX];
    static char prompt[KN_PROMPT_BYTES_MAX + 1], extra[KN_EXTRA_BYTES_MAX + 1];
    struct kn_buf b;
    struct kn_chunk c;
    struct kn_err err = {0};
    memset(prompt, 'p', KN_PROMPT_BYTES_MAX);
    memset(extra, ' ', KN_EXTRA_BYTES_MAX);
    extra[0] = '{';
    extra[KN_EXTRA_BYTES_MAX - 1] = '}';
    for (size_t i = 0; i < KN_TASKS_PER_CHUNK_MAX; i++) {
        t[i] = a_task(prompt, i);
        t[i].negative = prompt;
        t[i].extra = extra;
    }
    kn_buf_init(&b, KN_CHUNK_BYTES_MAX);
    CHECK_MSG(kn_chunk_pack(t, KN_TASKS_PER_CHUNK_MAX, &b, &err) == 0, "%s", err.text);
    CHECK_MSG(kn_chunk_unpack(b.data, b.len, 3, &c, &err) == 0, "%s", err.text);
    CHECK_U64(c.count, KN_TASKS_PER_CHUNK_MAX);
    kn_chunk_fini(&c);
    kn_buf_fini(&b);
}

TEST(a_model_out_of_the_batchs_table_is_refused) {
    char prompt[] = "p";
    struct kn_task t = a_task(prompt, 1);
    struct kn_buf b;
    struct kn_chunk c;
    struct kn_err err = {0};
    kn_buf_init(&b, 1 << 16);
    CHECK_INT(kn_chunk_pack(&t, 1, &b, &err), 0);
    CHECK_INT(kn_chunk_unpack(b.data, b.len, 2, &c, &err), KN_EPROTO);
    CHECK(c.v == NULL && c.texts == NULL);
    kn_chunk_fini(&c);
    kn_buf_fini(&b);
}

TEST(a_chunk_cut_anywhere_is_refused) {
    char prompt[] = "a rather short prompt";
    struct kn_task t[3] = {a_task(prompt, 1), a_task(prompt, 2), a_task(prompt, 3)};
    struct kn_buf b;
    struct kn_err err = {0};
    kn_buf_init(&b, 1 << 16);
    CHECK_INT(kn_chunk_pack(t, 3, &b, &err), 0);
    for (size_t cut = 0; cut < b.len; cut++) {
        char *copy = malloc(cut ? cut : 1);
        struct kn_chunk c;
        memcpy(copy, b.data, cut);
        int rc = kn_chunk_unpack(copy, cut, 3, &c, &err);
        free(copy);
        CHECK_MSG(rc == KN_EPROTO, "cut at %zu: %d", cut, rc);
    }
    CHECK_INT(kn_buf_append(&b, "x", 1), 0);
    struct kn_chunk c;
    CHECK_INT(kn_chunk_unpack(b.data, b.len, 3, &c, &err), KN_EPROTO);
    kn_buf_fini(&b);
}

/* `plain` zeros (or a pattern), deflated. */
static int unpack_deflated(const void *plain, size_t len, struct kn_err *err) {
    uLongf room = compressBound(len);
    unsigned char *packed = malloc(room);
    struct kn_chunk c;
    CHECK_INT(compress2(packed, &room, plain, len, 9), Z_OK);
    int rc = kn_chunk_unpack(packed, room, 3, &c, err);
    free(packed);
    kn_chunk_fini(&c);
    return rc;
}

TEST(a_bomb_stops_at_the_limit) {
    size_t len = (size_t)4 * KN_CHUNK_BYTES_MAX;
    char *plain = calloc(1, len);
    struct kn_err err = {0};
    int rc = unpack_deflated(plain, len, &err);
    free(plain);
    CHECK_INT(rc, KN_ELIMIT);
    CHECK(strstr(err.text, "when inflated"));
}

TEST(a_chunk_of_a_million_empty_tasks_is_refused) {
    size_t len = 16u << 20;
    unsigned char *plain = malloc(len);
    struct kn_err err = {0};
    for (size_t i = 0; i < len; i += 2) {
        plain[i] = 1 << 3 | 2;
        plain[i + 1] = 0;
    }
    int rc = unpack_deflated(plain, len, &err);
    free(plain);
    CHECK(rc == KN_ELIMIT || rc == KN_EPROTO);
}

TEST(no_task_and_an_unset_task_are_refused) {
    struct kn_err err = {0};
    CHECK_INT(unpack_deflated("", 0, &err), KN_ELIMIT);
    const unsigned char empty_task[] = {1 << 3 | 2, 0};
    CHECK_INT(unpack_deflated(empty_task, 2, &err), KN_EPROTO);
    struct kn_chunk c;
    CHECK_INT(kn_chunk_unpack("hello", 5, 3, &c, &err), KN_EPROTO);
}

/* Messages and chunks from a peer. The first byte chooses; the rest is a frame, or a chunk as it is before it
 * is deflated (random bytes never inflate). What must hold whatever it says: what is refused leaves nothing
 * behind and says why; what is accepted has text that is UTF-8 and terminated, can be encoded again, and
 * decodes to the same bytes once more. */
#include "proto/codec.h"

#include <string.h>
#include <zlib.h>

#include "base/utf8.h"
#include "tests/fuzz/fuzz.h"

static void check_text(const char *s) {
    FUZZ_CHECK(s != NULL && kn_utf8_span(s, strlen(s)) == strlen(s));
}

static void check_tasks(const struct kn_task *t, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct kn_err err = {0};
        check_text(t[i].prompt);
        check_text(t[i].negative);
        if (t[i].extra) check_text(t[i].extra);
        FUZZ_CHECK(t[i].set == KN_SET_ALL && kn_task_check(&t[i], &err) == 0);
    }
}

static void check_frame(const uint8_t *data, size_t size) {
    struct kn_msg *m = NULL, *again = NULL;
    struct kn_err err = {0};
    struct kn_buf a, b;
    int rc = kn_msg_decode(data, size, &m, &err);
    FUZZ_CHECK((rc == 0) == (m != NULL));
    struct kn_garbled g;
    kn_msg_look(data, size, &g); /* of what could not be decoded, mostly */
    if (rc != 0) {
        FUZZ_CHECK(err.code == rc && err.text[0]);
        return;
    }
    FUZZ_CHECK(g.type == m->type && g.request == m->request);
    if (m->type == KN_MSG_SHARD_GRANT) check_tasks(m->u.shard_grant.tasks, m->u.shard_grant.count);
    if (m->type == KN_MSG_WORKER_HELLO) {
        const struct kn_worker_hello *h = &m->u.worker_hello;
        check_text(h->worker);
        check_text(h->device);
        FUZZ_CHECK(h->feature_count <= KN_FEATURES_MAX && strlen(h->device) <= KN_DEVICE_MAX);
        for (size_t i = 0; i < h->feature_count; i++) check_text(h->features[i]);
    }
    kn_buf_init(&a, KN_FRAME_BYTES_MAX);
    kn_buf_init(&b, KN_FRAME_BYTES_MAX);
    FUZZ_CHECK(kn_msg_encode(m, &a, &err) == 0);
    FUZZ_CHECK(kn_msg_decode(a.data, a.len, &again, &err) == 0);
    FUZZ_CHECK(kn_msg_encode(again, &b, &err) == 0);
    FUZZ_CHECK(a.len == b.len && memcmp(a.data, b.data, a.len) == 0);
    kn_buf_fini(&a);
    kn_buf_fini(&b);
    kn_msg_destroy(m);
    kn_msg_destroy(again);
}

static void check_chunk(const uint8_t *data, size_t size) {
    struct kn_chunk c;
    struct kn_err err = {0};
    int rc = kn_chunk_unpack(data, size, 3, &c, &err);
    if (rc != 0) {
        FUZZ_CHECK(err.code == rc && c.v == NULL && c.texts == NULL);
        return;
    }
    FUZZ_CHECK(c.count >= 1 && c.count <= KN_TASKS_PER_CHUNK_MAX);
    check_tasks(c.v, c.count);
    for (size_t i = 0; i < c.count; i++) FUZZ_CHECK(c.v[i].model_index < 3);
    kn_chunk_fini(&c);
}

int kn_fuzz(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    if (data[0] % 4 != 0) {
        check_frame(data + 1, size - 1);
    } else {
        uint8_t packed[1 << 14];
        uLongf len = sizeof packed;
        check_chunk(data + 1, size - 1);
        if (compress2(packed, &len, data + 1, (uLong)(size - 1), 1) == Z_OK) check_chunk(packed, len);
    }
    return 0;
}

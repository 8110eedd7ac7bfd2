/* Chunks of tasks: zlib around a TaskChunk. See codec.h. */
#include "proto/codec_private.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

int kn_chunk_pack(const struct kn_task *tasks, size_t count, struct kn_buf *out, struct kn_err *err) {
    assert(count <= KN_TASKS_PER_CHUNK_MAX);
    struct arena a;
    arena_init(&a, KN_CHUNK_BYTES_MAX);
    Kiln__Pb__TaskChunk pb = KILN__PB__TASK_CHUNK__INIT;
    unsigned char *plain = NULL;
    int rc = KN_ENOMEM;
    pb.n_tasks = count;
    pb.tasks = codec_tasks_to_pb(&a, tasks, count);
    if (!pb.tasks) goto out;
    size_t plain_len = kiln__pb__task_chunk__get_packed_size(&pb);
    if (plain_len > KN_CHUNK_BYTES_MAX) {
        rc = kn_err_set(err, KN_ELIMIT, "%zu tasks take %zu bytes, more than %u", count, plain_len,
                        KN_CHUNK_BYTES_MAX);
        goto out;
    }
    plain = malloc(plain_len ? plain_len : 1);
    if (!plain) goto out;
    kiln__pb__task_chunk__pack(&pb, plain);
    uLongf room = compressBound((uLong)plain_len);
    void *dst;
    if ((rc = kn_buf_reserve(out, room, &dst)) != 0) {
        kn_err_set(err, rc, "%zu tasks take up to %lu bytes", count, (unsigned long)room);
        goto out;
    }
    if (compress2(dst, &room, plain, (uLong)plain_len, 6) != Z_OK) {
        rc = KN_ENOMEM;
        goto out;
    }
    out->len += room;
    rc = 0;
out:
    if (rc == KN_ENOMEM) kn_err_set(err, rc, "packing %zu tasks: out of memory", count);
    free(plain);
    arena_fini(&a);
    return rc;
}

/* Inflates into memory that grows up to KN_CHUNK_BYTES_MAX: nothing is allocated on the word of the sender. */
static int inflate_bounded(const void *data, size_t len, unsigned char **out, size_t *out_len,
                           struct kn_err *err) {
    z_stream z = {0};
    if (len > KN_CHUNK_BYTES_MAX) return kn_err_set(err, KN_ELIMIT, "chunk: %zu bytes", len);
    if (inflateInit(&z) != Z_OK) return kn_err_set(err, KN_ENOMEM, "inflate");
    size_t cap = len * 4 + 1024;
    if (cap > KN_CHUNK_BYTES_MAX) cap = KN_CHUNK_BYTES_MAX;
    unsigned char *p = malloc(cap);
    int rc = p ? 0 : kn_err_set(err, KN_ENOMEM, "inflate");
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)len;
    size_t used = 0;
    while (rc == 0) {
        z.next_out = p + used;
        z.avail_out = (uInt)(cap - used);
        int zrc = inflate(&z, Z_NO_FLUSH);
        used = cap - z.avail_out;
        if (zrc == Z_STREAM_END) break;
        if (zrc != Z_OK && zrc != Z_BUF_ERROR) {
            rc = kn_err_set(err, KN_EPROTO, "chunk: not a zlib stream");
        } else if (z.avail_out > 0) {
            rc = kn_err_set(err, KN_EPROTO, "chunk: cut short");
        } else if (cap == KN_CHUNK_BYTES_MAX) {
            rc = kn_err_set(err, KN_ELIMIT, "chunk: more than %u bytes when inflated", KN_CHUNK_BYTES_MAX);
        } else {
            cap = cap > KN_CHUNK_BYTES_MAX / 2 ? KN_CHUNK_BYTES_MAX : cap * 2;
            unsigned char *q = realloc(p, cap);
            if (!q)
                rc = kn_err_set(err, KN_ENOMEM, "inflate");
            else
                p = q;
        }
    }
    if (rc == 0 && z.avail_in > 0) rc = kn_err_set(err, KN_EPROTO, "chunk: bytes behind its end");
    inflateEnd(&z);
    if (rc != 0) {
        free(p);
        return rc;
    }
    *out = p;
    *out_len = used;
    return 0;
}

static char *put_text(char **at, const char *text) {
    size_t n = strlen(text) + 1;
    char *here = memcpy(*at, text, n);
    *at += n;
    return here;
}

/* Copies decoded tasks to memory of their own: protobuf's takes twice as much, and a farm's client may keep a million. */
static int keep(const struct kn_task *v, size_t count, struct kn_chunk *out, struct kn_err *err) {
    size_t bytes = 1;
    for (size_t i = 0; i < count; i++)
        bytes += strlen(v[i].prompt) + strlen(v[i].negative) + 2 + (v[i].extra ? strlen(v[i].extra) + 1 : 0);
    char *at = malloc(bytes);
    *out = (struct kn_chunk){.v = malloc(count * sizeof *v), .count = count, .texts = at};
    if (!out->v || !at) {
        kn_chunk_fini(out);
        return kn_err_set(err, KN_ENOMEM, "chunk: out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        struct kn_task *t = &out->v[i];
        *t = v[i];
        t->prompt = put_text(&at, v[i].prompt);
        t->negative = put_text(&at, v[i].negative);
        if (v[i].extra) t->extra = put_text(&at, v[i].extra);
    }
    return 0;
}

int kn_chunk_unpack(const void *data, size_t len, size_t model_count, struct kn_chunk *out,
                    struct kn_err *err) {
    *out = (struct kn_chunk){0};
    unsigned char *plain = NULL;
    size_t plain_len = 0;
    int rc = inflate_bounded(data, len, &plain, &plain_len, err);
    if (rc != 0) return rc;
    struct arena a;
    struct kn_task *v = NULL;
    /* A task takes a few dozen bytes on the wire and up to twenty times that as structs when its strings are
     * short. */
    arena_init(&a, (size_t)KN_CHUNK_BYTES_MAX + KN_TASKS_PER_CHUNK_MAX * 4096ul);
    Kiln__Pb__TaskChunk *pb = kiln__pb__task_chunk__unpack(&a.pb, plain_len, plain);
    free(plain);
    if (!pb)
        rc = kn_err_set(err, KN_EPROTO, "chunk: malformed");
    else if (pb->n_tasks == 0 || pb->n_tasks > KN_TASKS_PER_CHUNK_MAX)
        rc = kn_err_set(err, KN_ELIMIT, "chunk: %zu tasks, not 1 to %d", pb->n_tasks, KN_TASKS_PER_CHUNK_MAX);
    else
        rc = codec_tasks_from_pb(&a, pb->tasks, pb->n_tasks, model_count, &v, err);
    if (rc == 0) rc = keep(v, pb->n_tasks, out, err);
    arena_fini(&a);
    return rc;
}

void kn_chunk_fini(struct kn_chunk *c) {
    free(c->v);
    free(c->texts);
    *c = (struct kn_chunk){0};
}

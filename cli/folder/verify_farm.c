/* See verify_farm.h. */
#include "cli/folder/verify_farm.h"

#include <stdlib.h>
#include <string.h>

#include "base/picture.h"
#include "cli/folder/images.h"
#include "cli/talk/batch.h"

struct farm_audit {
    struct client *c;
    struct verify_report *r;
    const uint8_t *id;
    struct batch_tasks tasks;
    bool *seen; /* an image each: the farm may tell of one again, since it was rendered again */
    const struct kn_result **v; /* of this reply: those that are done */
    struct kn_buf bad; /* struct bad_picture each; reported at the end, or new ones would come meanwhile */
    bool out_of_memory;
};

struct bad_picture {
    uint32_t index;
    kn_digest sha256;
};

static int note(struct farm_audit *a, size_t i, const char *text) {
    struct bad_picture p = {.index = a->v[i]->index};
    char file[32];
    memcpy(p.sha256, a->v[i]->sha256, sizeof p.sha256);
    folder_file_name(p.index, file);
    int rc = verify_fault(a->r, file, 0, "%s", text);
    return rc ? rc : kn_buf_append(&a->bad, &p, sizeof p);
}

static int got(void *ctx, size_t i, const void *data, size_t len, struct kn_err *err) {
    struct farm_audit *a = ctx;
    const struct kn_task *t = kn_tasks_at(&a->tasks.list, a->v[i]->index);
    struct kn_picture want = {.width = t->width, .height = t->height, .decoded = true};
    struct kn_err why = {0};
    memcpy(want.pixels, a->v[i]->pixels_sha256, sizeof want.pixels);
    a->r->bytes += len;
    int rc = kn_picture_check(data, len, &want, &why);
    if (rc == KN_EPARSE) rc = note(a, i, why.text);
    return rc ? kn_err_set(err, rc, "%s", kn_err_words(rc)) : KN_OK;
}

/* The farm is told of that as well: it looks for the object, and renders the image again where it is lost. */
static void missing(void *ctx, size_t i, const char *why) {
    struct farm_audit *a = ctx;
    if (note(a, i, why)) a->out_of_memory = true;
}

static int look_at(struct farm_audit *a, const struct kn_results_reply *reply, struct kn_err *err) {
    kn_digest *digests = calloc(reply->count + 1, sizeof *digests);
    uint32_t *tasks = calloc(reply->count + 1, sizeof *tasks);
    a->v = calloc(reply->count + 1, sizeof *a->v);
    int rc = digests && tasks && a->v ? KN_OK : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    size_t n = 0;
    for (size_t i = 0; rc == KN_OK && i < reply->count; i++) {
        const struct kn_result *v = &reply->v[i];
        if (v->index >= a->r->count) {
            rc = kn_err_set(err, KN_EPROTO, "the farm speaks of an image %u of %llu", v->index,
                            (unsigned long long)a->r->count);
            break;
        }
        if (a->seen[v->index]) continue;
        a->seen[v->index] = true;
        a->r->failed += v->status == KN_RESULT_FAILED;
        a->r->cancelled += v->status == KN_RESULT_CANCELLED;
        if (v->status != KN_RESULT_DONE) continue;
        a->r->done++;
        memcpy(digests[n], v->sha256, sizeof(kn_digest));
        tasks[n] = v->index;
        a->v[n++] = v;
    }
    if (rc == KN_OK && n > 0) {
        struct client_objects objects = {.batch = a->id,
                                         .tasks = tasks,
                                         .digests = (const kn_digest *)digests,
                                         .count = n,
                                         .got = got,
                                         .missing = missing,
                                         .ctx = a};
        rc = client_fetch(a->c, &objects, err);
    }
    if (rc == KN_OK && a->out_of_memory) rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    free(digests);
    free(tasks);
    free(a->v);
    return rc;
}

static int report(struct farm_audit *a, struct kn_err *err) {
    int rc = KN_OK;
    for (size_t at = 0; rc == KN_OK && at < a->bad.len; at += sizeof(struct bad_picture)) {
        struct bad_picture p;
        memcpy(&p, a->bad.data + at, sizeof p);
        rc = batch_report_bad(a->c, a->id, p.index, p.sha256, err);
    }
    return rc;
}

int verify_farm(struct client *c, const kn_id id, struct verify_report *out, struct kn_err *err) {
    struct farm_audit a = {.c = c, .r = out, .id = id};
    struct batch_cursor cur = {0};
    size_t count = 1;
    memset(out, 0, sizeof *out);
    kn_uuid_format(id, out->dir);
    out->on_farm = true;
    memcpy(cur.id, id, sizeof(kn_id));
    int rc = batch_tasks(c, id, &a.tasks, err);
    out->has_count = rc == KN_OK;
    out->count = a.tasks.list.count;
    a.seen = calloc(out->count + 1, sizeof *a.seen);
    if (rc == KN_OK && !a.seen) rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    kn_buf_init(&a.bad, sizeof(struct bad_picture) * KN_TASKS_PER_BATCH_MAX);
    while (rc == KN_OK && count > 0) {
        struct kn_msg *m = NULL;
        rc = batch_results(c, &cur, &m, err);
        if (rc) break;
        count = m->u.results_reply.count;
        rc = look_at(&a, &m->u.results_reply, err);
        kn_msg_destroy(m);
    }
    out->busy = out->done + out->failed + out->cancelled < out->count;
    if (rc == KN_OK) rc = report(&a, err);
    kn_buf_fini(&a.bad);
    free(a.seen);
    batch_tasks_fini(&a.tasks);
    return rc;
}

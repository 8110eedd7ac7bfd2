/* See aside.h. */
#include "coordinator/aside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/send.h"

int aside_add(struct server *s, const kn_id id, bool sealed, const struct kept_batch *b, const char *reason) {
    char text[KN_UUID_TEXT];
    struct aside *a = calloc(1, sizeof *a);
    if (!s->asides) s->asides = kn_map_create(SIZE_MAX); /* as many as the store has */
    int rc = a && s->asides ? kn_map_put(s->asides, id, sizeof(kn_id), a) : KN_ENOMEM;
    if (rc == KN_EEXIST) rc = 0;
    if (rc != 0) {
        free(a);
        return rc;
    }
    memcpy(a->id, id, sizeof a->id);
    a->sealed = sealed;
    snprintf(a->reason, sizeof a->reason, "%.*s", KN_REASON_MAX, reason);
    if (b) {
        snprintf(a->name, sizeof a->name, "%s", b->begin->name);
        a->created_wall_ms = b->created_wall_ms;
    }
    s->aside_sealed += sealed;
    kn_uuid_format(id, text);
    kn_error("batch_set_aside batch=%s accepted=%d reason=\"%s\"", text, sealed, a->reason);
    return 0;
}

struct aside *aside_find(const struct server *s, const kn_id id) {
    return s->asides ? kn_map_get(s->asides, id, sizeof(kn_id)) : NULL;
}

size_t aside_count(const struct server *s) {
    return s->aside_sealed;
}

void aside_status(const struct aside *a, struct kn_batch_status *out) {
    *out = (struct kn_batch_status){.name = a->name,
                                    .request = "",
                                    .state = KN_BATCH_ASIDE,
                                    .eta_ms = -1,
                                    .created_wall_ms = a->created_wall_ms,
                                    .loading = "",
                                    .wait_text = a->reason};
    memcpy(out->batch, a->id, sizeof out->batch);
}

void aside_reply(struct server *s, struct reply_to *to, const kn_id id) {
    const struct aside *a = aside_find(s, id);
    char text[KN_REASON_MAX + 128], short_id[KN_UUID_TEXT];
    if (!a || !a->sealed) {
        send_reply(s, to, KN_ENOENT, "no such batch");
        return;
    }
    kn_uuid_format(id, short_id);
    snprintf(text, sizeof text, "it is set aside, since it cannot be read back: %s (kiln rm %.8s removes it)",
             a->reason, short_id);
    send_reply(s, to, KN_ECORRUPT, text);
}

static void aside_drop(struct server *s, struct aside *a) {
    s->aside_sealed -= a->sealed;
    kn_map_remove(s->asides, a->id, sizeof a->id);
    free(a);
}

struct aside_removal {
    struct server *s;
    kn_id id;
};

static void on_removed(void *ctx, int code, const void *data, size_t len) {
    struct aside_removal *r = ctx;
    struct server *s = r->s;
    struct aside *a = s->closing ? NULL : aside_find(s, r->id);
    (void)data;
    (void)len;
    free(r);
    if (!a) return;
    a->removing = false;
    send_replies(s, a->waiters, &a->waiter_count, code, "");
    if (code == 0) aside_drop(s, a);
}

static void ask_store(struct server *s, struct aside *a) {
    struct aside_removal *r = malloc(sizeof *r);
    if (!r) return; /* the sweep asks again */
    r->s = s;
    memcpy(r->id, a->id, sizeof r->id);
    if (store_remove(s->store, a->id, on_removed, r) == 0)
        a->removing = true;
    else
        free(r);
}

void aside_remove(struct server *s, struct aside *a, struct reply_to *to) {
    reply_to_add(a->waiters, &a->waiter_count, to);
    if (!a->removing) ask_store(s, a);
}

int aside_forget(struct server *s, struct aside *a) {
    int rc = a->sealed ? KN_ESTATE : store_remove(s->store, a->id, NULL, NULL);
    if (rc == 0) aside_drop(s, a);
    return rc;
}

void aside_sweep(struct server *s) {
    size_t pos = 0;
    struct aside *a;
    while (s->asides && (a = kn_map_next(s->asides, &pos)))
        if (!a->removing && (!a->sealed || a->waiter_count > 0)) ask_store(s, a);
}

void aside_fini(struct server *s) {
    size_t pos = 0;
    struct aside *a;
    while (s->asides && (a = kn_map_next(s->asides, &pos))) free(a);
    kn_map_destroy(s->asides);
    s->asides = NULL;
}

/* See statuses.h. */
#include "cli/talk/statuses.h"

#include <stdlib.h>

int statuses_find(struct client *c, const struct cli_options *o, kn_id **out, struct kn_err *err) {
    *out = calloc((size_t)o->arg_count + 1, sizeof **out);
    if (!*out) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (int i = 0; i < o->arg_count; i++) {
        int rc = batch_find(c, o->args[i], (*out)[i], err);
        if (rc) return rc;
    }
    return KN_OK;
}

void statuses_fini(struct statuses *s) {
    for (size_t i = 0; i < s->reply_count; i++) kn_msg_destroy(s->replies[i]);
    free(s->replies);
    free(s->v);
    *s = (struct statuses){0};
}

static int add_reply(struct statuses *s, struct kn_msg *r, struct kn_err *err) {
    const struct kn_batch_list *l = &r->u.batch_list;
    struct kn_batch_status *v = realloc(s->v, (s->count + l->count + 1) * sizeof *v);
    if (v) s->v = v;
    struct kn_msg **replies = realloc(s->replies, (s->reply_count + 1) * sizeof *replies);
    if (replies) s->replies = replies;
    if (!v || !replies) {
        kn_msg_destroy(r);
        return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    }
    s->replies[s->reply_count++] = r;
    for (size_t i = 0; i < l->count; i++) s->v[s->count++] = l->v[i];
    return KN_OK;
}

int statuses_ask(struct client *c, const kn_id *ids, size_t count, struct statuses *out, struct kn_err *err) {
    struct kn_msg *r;
    *out = (struct statuses){0};
    int rc = KN_OK;
    for (size_t i = 0; rc == KN_OK && i < (count ? count : 1); i++) {
        rc = batch_query(c, count ? ids[i] : NULL, &r, err);
        if (rc == KN_OK) rc = add_reply(out, r, err);
    }
    if (rc) statuses_fini(out);
    return rc;
}

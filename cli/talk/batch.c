/* See batch.h. */
#include "cli/talk/batch.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/farm/farmdir.h"
#include "cli/text.h"

#define REPORT_MS 10000

/* Patience for an endpoint that is only a file: nothing says that anybody is alive there; and for one that a
 * person names. */
#define STALE_MS 1500
#define NAMED_MS 5000

int farm_connect(const struct cli_options *o, struct client **out, struct kn_err *err) {
    char farm[KN_PATH_MAX], endpoint[KN_ENDPOINT_MAX + 1];
    bool is_endpoint;
    int rc = farmdir_choose(o->farm, farm, &is_endpoint, err);
    if (rc == KN_OK) rc = farmdir_endpoint(o->farm, CLIENT_PATIENCE_MS, endpoint, err);
    if (rc) return rc;
    bool stale = !is_endpoint && !farmdir_is_locked(farm);
    rc = client_open(endpoint, stale ? STALE_MS : is_endpoint ? NAMED_MS : CLIENT_PATIENCE_MS, out, err);
    if (rc != KN_ETIMEOUT) return rc;
    char why[KN_WAIT_TEXT_MAX];
    snprintf(why, sizeof why, "%s%s", client_silence()[0] ? ": " : "", client_silence());
    if (!is_endpoint && !stale) /* it is there, and whoever asks again later may get an answer */
        return kn_err_set(err, KN_EUNSURE, "the farm at %s is up and does not answer%s", farm, why);
    return kn_err_set(err, rc, "no farm answers at %s%s", endpoint,
                      is_endpoint ? why : " (kiln up starts one)");
}

int farm_steer(const struct cli_options *o, struct client **out, struct kn_err *err) {
    int rc = farm_connect(o, out, err);
    if (rc == KN_OK && o->timeout_s) client_limit(*out, o->timeout_s * 1000);
    return rc;
}

int batch_query(struct client *c, const uint8_t *id, struct kn_msg **reply, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_BATCH_QUERY};
    m.u.batch_query.has_batch = id != NULL;
    if (id) memcpy(m.u.batch_query.batch, id, sizeof(kn_id));
    int rc = client_call(c, &m, KN_MSG_BATCH_LIST, CLIENT_RESTART_MS, reply, err);
    if (rc == KN_OK && id && (*reply)->u.batch_list.count != 1) {
        kn_msg_destroy(*reply);
        rc = KN_ENOENT;
    }
    if (rc == KN_ENOENT && id) {
        char text[KN_UUID_TEXT];
        kn_uuid_format(id, text);
        kn_err_set(err, rc, "%s: no batch has such an id; kiln status lists them", text);
    }
    return rc;
}

int batch_find(struct client *c, const char *text, kn_id out, struct kn_err *err) {
    char want[KN_UUID_TEXT], have[KN_UUID_TEXT], plain[KN_UUID_TEXT];
    size_t n = 0, found = 0;
    for (const char *p = text; *p; p++) { /* with its dashes or without */
        if (*p == '-') continue;
        if (!isxdigit((unsigned char)*p) || n == 32)
            return kn_err_set(err, KN_ENOENT, "%.60s: no batch has such an id; kiln status lists them", text);
        want[n++] = (char)tolower((unsigned char)*p);
    }
    want[n] = '\0';
    if (n == 0) return kn_err_set(err, KN_EINVAL, "\"%.60s\": not an id", text);
    if (n == 32) return kn_unhex(want, out, sizeof(kn_id));
    struct kn_msg *r;
    int rc = batch_query(c, NULL, &r, err);
    if (rc) return rc;
    for (size_t i = 0; i < r->u.batch_list.count; i++) {
        const struct kn_batch_status *s = &r->u.batch_list.v[i];
        kn_hex(s->batch, sizeof(kn_id), plain);
        if (strncmp(plain, want, n) != 0) continue;
        found++;
        memcpy(out, s->batch, sizeof(kn_id));
    }
    kn_msg_destroy(r);
    if (found == 1) return KN_OK;
    if (found == 0)
        return kn_err_set(err, KN_ENOENT, "%.60s: no batch has such an id; kiln status lists them", text);
    kn_uuid_format(out, have);
    return kn_err_set(err, KN_EINVAL, "%.60s: %zu batches have ids that begin so, %s is one; say more of it",
                      text, found, have);
}

int batch_command(struct client *c, const kn_id id, enum kn_batch_verb verb, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND};
    memcpy(m.u.batch_command.batch, id, sizeof(kn_id));
    m.u.batch_command.verb = verb;
    return client_call(c, &m, KN_MSG_REPLY, CLIENT_RESTART_MS, NULL, err);
}

int batch_remove(struct client *c, const kn_id id, bool now, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND};
    memcpy(m.u.batch_command.batch, id, sizeof(kn_id));
    m.u.batch_command.verb = KN_VERB_REMOVE;
    m.u.batch_command.now = now;
    return client_call(c, &m, KN_MSG_REPLY, CLIENT_RESTART_MS, NULL, err);
}

static const char *or_number(const char *known, const char *what, unsigned number, char out[32]) {
    if (known) return known;
    snprintf(out, 32, "%s %u", what, number);
    return out;
}

const char *batch_state_text(const struct kn_batch_status *s, char out[32]) {
    return or_number(kn_batch_state_name(s->state), "state", s->state, out);
}

bool worker_is_held(const struct kn_worker_status *w) {
    return w->hold_reason && w->hold_reason[0];
}

const char *worker_state_text(const struct kn_worker_status *w, char out[32]) {
    return or_number(kn_worker_state_name(w->state), "state", w->state, out);
}

const char *batch_wait_text(const struct kn_batch_status *s, char out[32]) {
    return s->wait ? or_number(kn_wait_name(s->wait), "reason", s->wait, out) : NULL;
}

bool batch_is_over(const struct kn_batch_status *s) {
    return s->done + s->failed + s->cancelled >= s->total;
}

bool batch_is_settled(const struct kn_batch_status *s) {
    return s->held || batch_is_over(s);
}

int batch_results(struct client *c, struct batch_cursor *cur, struct kn_msg **reply, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_RESULTS_QUERY};
    memcpy(m.u.results_query.batch, cur->id, sizeof(kn_id));
    m.u.results_query.epoch = cur->epoch;
    m.u.results_query.cursor = cur->cursor;
    m.u.results_query.max = KN_RESULTS_PER_REPLY_MAX;
    int rc = client_call(c, &m, KN_MSG_RESULTS_REPLY, CLIENT_RESTART_MS, reply, err);
    if (rc) return rc;
    struct kn_results_reply *r = &(*reply)->u.results_reply;
    for (size_t i = 0; i < r->count;
         i++) /* a newer farm may end an image in a way that this program does not know */
        if (!kn_result_status_name(r->v[i].status)) {
            r->v[i].status = KN_RESULT_FAILED;
            if (!r->v[i].error[0]) r->v[i].error = "it ended in a way that this kiln is too old to know";
        }
    cur->epoch = (*reply)->u.results_reply.epoch;
    cur->cursor = (*reply)->u.results_reply.cursor;
    return KN_OK;
}

void batch_tasks_fini(struct batch_tasks *t) {
    kn_tasks_fini(&t->list);
    free(t->keys);
    free(t->models);
    *t = (struct batch_tasks){0};
}

static int no_memory(struct kn_err *err) {
    return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
}

static int take_models(struct batch_tasks *t, const struct kn_tasks_reply *r, struct kn_err *err) {
    t->models = calloc(r->model_count + 1, sizeof *t->models);
    if (!t->models) return no_memory(err);
    for (size_t i = 0; i < r->model_count; i++) t->models[i] = r->models[i];
    t->model_count = r->model_count;
    return KN_OK;
}

/* One part of a chunk, put behind those in `bytes`; the first of all brings how many chunks there are, and the models. */
static int ask_part(struct client *c, const kn_id id, uint32_t chunk, uint32_t part, struct batch_tasks *t,
                    uint32_t *chunks, uint32_t *parts, struct kn_buf *bytes, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_TASKS_QUERY}, *r;
    memcpy(m.u.tasks_query.batch, id, sizeof(kn_id));
    m.u.tasks_query.chunk = chunk;
    m.u.tasks_query.part = part;
    int rc = client_call(c, &m, KN_MSG_TASKS_REPLY, CLIENT_RESTART_MS, &r, err);
    if (rc) return rc;
    const struct kn_tasks_reply *reply = &r->u.tasks_reply;
    if (chunk == 0 && part == 0) {
        *chunks = reply->chunks;
        if (*chunks == 0 || *chunks > KN_TASKS_PER_BATCH_MAX)
            rc = kn_err_set(err, KN_EPROTO, "the farm tells of a batch in %u parts", *chunks);
        if (rc == KN_OK) rc = take_models(t, reply, err);
    }
    if (part == 0) *parts = reply->parts ? reply->parts : 1;
    if (rc == KN_OK) rc = kn_buf_append(bytes, reply->tasks, reply->tasks_len);
    kn_msg_destroy(r);
    return rc;
}

static int take_chunk(struct batch_tasks *t, const struct kn_buf *bytes, struct kn_err *err) {
    struct kn_chunk c;
    int rc = kn_chunk_unpack(bytes->data, bytes->len, t->model_count, &c, err);
    if (rc) return rc;
    for (size_t i = 0; rc == KN_OK && i < c.count; i++) rc = kn_tasks_put(&t->list, &c.v[i], err);
    kn_chunk_fini(&c);
    return rc;
}

int batch_tasks(struct client *c, const kn_id id, struct batch_tasks *out, struct kn_err *err) {
    struct batch_tasks t = {0};
    struct kn_buf bytes;
    uint32_t chunks = 1;
    int rc = KN_OK;
    kn_buf_init(&bytes, KN_CHUNK_BYTES_MAX);
    for (uint32_t k = 0; rc == KN_OK && k < chunks; k++) {
        uint32_t parts = 1;
        kn_buf_clear(&bytes);
        for (uint32_t part = 0; rc == KN_OK && part < parts; part++)
            rc = ask_part(c, id, k, part, &t, &chunks, &parts, &bytes, err);
        if (rc == KN_OK) rc = take_chunk(&t, &bytes, err);
    }
    kn_buf_fini(&bytes);
    if (rc == KN_OK && !(t.keys = calloc(t.list.count + 1, sizeof *t.keys))) rc = no_memory(err);
    for (size_t i = 0; rc == KN_OK && i < t.list.count; i++) {
        const struct kn_task *task = kn_tasks_at(&t.list, i);
        kn_task_key(task, t.models[task->model_index].sha256, t.keys[i]);
    }
    if (rc) {
        batch_tasks_fini(&t);
        return rc;
    }
    *out = t;
    return KN_OK;
}

int batch_report_bad(struct client *c, const kn_id id, uint32_t task, const kn_digest sha256,
                     struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_PICTURE_REPORT, .u.picture_report = {.task = task}}, *reply = NULL;
    struct kn_err why = {0};
    memcpy(m.u.picture_report.batch, id, sizeof(kn_id));
    memcpy(m.u.picture_report.sha256, sha256, sizeof(kn_digest));
    int rc = client_call(c, &m, KN_MSG_REPLY, REPORT_MS, &reply, &why);
    kn_msg_destroy(reply);
    return rc == KN_ECANCELED ? kn_err_set(err, rc, "%s", why.text) : KN_OK;
}

const char *worker_readings(const struct kn_worker_status *w, char out[64]) {
    const struct kn_readings *r = &w->readings;
    const double gib = 1u << 30;
    size_t n = 0;
    out[0] = '\0';
    if (w->state == KN_WORKER_LOST) return out;
    if (r->temperature_c) n += (size_t)snprintf(out, 64, "%u °C", r->temperature_c);
    if (r->power_mw)
        n += (size_t)snprintf(out + n, 64 - n, "%s%u W", n ? " " : "", (r->power_mw + 500) / 1000);
    if (r->memory_total)
        snprintf(out + n, 64 - n, "%s%.1f/%.1f GiB", n ? " " : "", (double)r->memory_used / gib,
                 (double)r->memory_total / gib);
    return out;
}

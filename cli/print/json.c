/* The same as JSON, a line each; the contract is print.h. The fields are an interface: docs name them. */
#include "cli/print/json.h"

#include <stdio.h>
#include <string.h>

#include "cli/print/print.h"
#include "cli/talk/batch.h"
#include "cli/text.h"

#define LINE_BYTES_MAX (1u << 28)

#define ADD(o, name, value)                                                                                  \
    json_object_object_add_ex(o, name, value, JSON_C_OBJECT_ADD_KEY_IS_NEW | JSON_C_OBJECT_KEY_IS_CONSTANT)

json_object *batch_json(const struct kn_batch_status *s) {
    json_object *v = json_object_new_object();
    char id[KN_UUID_TEXT];
    kn_uuid_format(s->batch, id);
    ADD(v, "id", json_object_new_string(id));
    ADD(v, "name", json_object_new_string(s->name));
    char state[32], wait[32];
    ADD(v, "state", json_object_new_string(batch_state_text(s, state)));
    ADD(v, "total", json_object_new_int64(s->total));
    ADD(v, "done", json_object_new_int64(s->done));
    ADD(v, "failed", json_object_new_int64(s->failed));
    ADD(v, "cancelled", json_object_new_int64(s->cancelled));
    ADD(v, "queued", json_object_new_int64(s->queued));
    ADD(v, "running", json_object_new_int64(s->running));
    ADD(v, "images_per_s", text_json_rate((double)s->images_per_s));
    ADD(v, "images_per_s_mean", text_json_rate((double)s->images_per_s_mean));
    ADD(v, "eta_s", s->eta_ms < 0 ? NULL : text_json_rate((double)s->eta_ms / 1000));
    ADD(v, "priority", json_object_new_int(s->priority));
    ADD(v, "created_ms", json_object_new_uint64(s->created_wall_ms));
    ADD(v, "finished_ms", s->finished_wall_ms ? json_object_new_uint64(s->finished_wall_ms) : NULL);
    ADD(v, "progress", text_json_rate((double)s->progress));
    ADD(v, "steps_per_s", text_json_rate((double)s->steps_per_s));
    const char *reason = batch_wait_text(s, wait);
    ADD(v, "reason", reason ? json_object_new_string(reason) : NULL);
    ADD(v, "reason_text", s->wait_text[0] ? json_object_new_string(s->wait_text) : NULL);
    ADD(v, "loading", s->loading[0] ? json_object_new_string(s->loading) : NULL);
    ADD(v, "held", json_object_new_boolean(s->held));
    ADD(v, "loading_bytes", s->loading[0] ? json_object_new_uint64(s->loading_bytes) : NULL);
    return v;
}

json_object *worker_json(const struct kn_worker_status *w) {
    json_object *v = json_object_new_object();
    char id[KN_UUID_TEXT];
    kn_uuid_format(w->batch, id);
    ADD(v, "id", json_object_new_string(w->worker));
    ADD(v, "host", json_object_new_string(w->host));
    ADD(v, "pid", json_object_new_int64(w->pid));
    ADD(v, "device", json_object_new_string(w->device));
    ADD(v, "device_uuid", w->device_uuid[0] ? json_object_new_string(w->device_uuid) : NULL);
    ADD(v, "backend", json_object_new_string(w->backend));
    ADD(v, "engine", json_object_new_string(w->engine));
    char state[32];
    ADD(v, "state", json_object_new_string(worker_state_text(w, state)));
    ADD(v, "model", w->model[0] ? json_object_new_string(w->model) : NULL);
    ADD(v, "batch", w->has_batch ? json_object_new_string(id) : NULL);
    ADD(v, "step", json_object_new_int64(w->step));
    ADD(v, "steps", json_object_new_int64(w->steps));
    ADD(v, "tasks", json_object_new_int64(w->tasks));
    ADD(v, "images_per_s", text_json_rate((double)w->images_per_s));
    ADD(v, "done", json_object_new_int64(w->done));
    ADD(v, "failed", json_object_new_int64(w->failed));
    ADD(v, "last_seen_s", text_json_rate((double)w->last_seen_ms / 1000));
    const struct kn_readings *r = &w->readings;
    ADD(v, "memory_used", r->memory_total ? json_object_new_uint64(r->memory_used) : NULL);
    ADD(v, "memory_total", r->memory_total ? json_object_new_uint64(r->memory_total) : NULL);
    ADD(v, "temperature_c", r->temperature_c ? json_object_new_int64(r->temperature_c) : NULL);
    ADD(v, "power_w", r->power_mw ? text_json_rate((double)r->power_mw / 1000) : NULL);
    ADD(v, "sm_mhz", r->sm_mhz ? json_object_new_int64(r->sm_mhz) : NULL);
    ADD(v, "memory_mhz", r->memory_mhz ? json_object_new_int64(r->memory_mhz) : NULL);
    const char *phase = w->phase ? kn_worker_phase_name(w->phase) : NULL;
    ADD(v, "phase", phase ? json_object_new_string(phase) : NULL);
    ADD(v, "loading", w->loading[0] ? json_object_new_string(w->loading) : NULL);
    ADD(v, "loading_bytes", w->loading[0] ? json_object_new_uint64(w->loading_bytes) : NULL);
    ADD(v, "steps_per_s", text_json_rate((double)w->steps_per_s));
    ADD(v, "held", json_object_new_boolean(worker_is_held(w)));
    ADD(v, "hold_reason", worker_is_held(w) ? json_object_new_string(w->hold_reason) : NULL);
    return v;
}

json_object *farm_json(const struct kn_batch_list *b, const struct kn_worker_list *w) {
    json_object *v = json_object_new_object(), *batches = json_object_new_array(),
                *workers = json_object_new_array();
    for (size_t i = 0; i < b->count; i++) json_object_array_add(batches, batch_json(&b->v[i]));
    for (size_t i = 0; i < w->count; i++) json_object_array_add(workers, worker_json(&w->v[i]));
    json_object_object_add(v, "batches", batches);
    json_object_object_add(v, "workers", workers);
    json_object_object_add(v, "images_per_s", text_json_rate((double)w->images_per_s));
    return v;
}

static void print_line(json_object *v) {
    struct kn_buf b;
    kn_buf_init(&b, LINE_BYTES_MAX);
    if (text_json(v, &b) == KN_OK) puts(b.data);
    kn_buf_fini(&b);
    json_object_put(v);
}

static void batches(const struct kn_batch_status *v, size_t count, bool one) {
    if (one && count > 0) {
        print_line(batch_json(&v[0]));
        return;
    }
    json_object *list = json_object_new_array();
    for (size_t i = 0; i < count; i++) json_object_array_add(list, batch_json(&v[i]));
    print_line(list);
}

static void workers(const struct kn_worker_list *l) {
    json_object *list = json_object_new_array();
    for (size_t i = 0; i < l->count; i++) json_object_array_add(list, worker_json(&l->v[i]));
    print_line(list);
}

static void snapshot(const char *farm, struct kn_batch_list *b, struct kn_worker_list *w) {
    (void)farm;
    print_line(farm_json(b, w));
}

static void add_wall(json_object *v, const char *name, uint64_t wall_ms) {
    json_object_object_add_ex(v, name, wall_ms ? json_object_new_uint64(wall_ms) : NULL,
                              JSON_C_OBJECT_ADD_KEY_IS_NEW);
}

static void add_role(json_object *v, enum kn_role role, const char *name, bool ephemeral) {
    const char *word = kn_role_name(role);
    ADD(v, "role", word ? json_object_new_string(word) : NULL);
    ADD(v, "name", name[0] ? json_object_new_string(name) : NULL);
    ADD(v, "ephemeral", json_object_new_boolean(ephemeral));
}

static void token(const struct kn_token *t, const struct kn_token_new *what) {
    json_object *v = json_object_new_object();
    char text[KN_TOKEN_TEXT], id[2 * KN_TOKEN_ID_BYTES + 1];
    kn_token_format(t, text);
    kn_hex(t->id, sizeof t->id, id);
    ADD(v, "token", json_object_new_string(text));
    ADD(v, "id", json_object_new_string(id));
    add_role(v, what->role, what->name, what->ephemeral);
    ADD(v, "uses", json_object_new_int64(what->uses));
    ADD(v, "ttl_s", what->ttl_ms ? json_object_new_uint64(what->ttl_ms / 1000) : NULL);
    print_line(v);
}

static void tokens(const struct kn_token_list *l) {
    json_object *list = json_object_new_array();
    for (size_t i = 0; i < l->count; i++) {
        const struct kn_token_info *t = &l->v[i];
        json_object *v = json_object_new_object();
        char id[2 * KN_TOKEN_ID_BYTES + 1] = "";
        if (t->id_len == KN_TOKEN_ID_BYTES) kn_hex(t->id, t->id_len, id);
        ADD(v, "id", json_object_new_string(id));
        add_role(v, t->role, t->name, t->ephemeral);
        ADD(v, "uses", json_object_new_int64(t->uses));
        add_wall(v, "made_ms", t->made_wall_ms);
        add_wall(v, "expires_ms", t->expires_wall_ms);
        json_object_array_add(list, v);
    }
    print_line(list);
}

static void keys(const struct kn_key_list *l) {
    json_object *list = json_object_new_array();
    for (size_t i = 0; i < l->count; i++) {
        const struct kn_key_info *k = &l->v[i];
        json_object *v = json_object_new_object();
        struct kn_public_key key;
        char print[KN_FINGERPRINT_TEXT], hex[2 * KN_KEY_BYTES + 1];
        memcpy(key.bytes, k->key, sizeof key.bytes);
        kn_fingerprint(&key, print);
        kn_hex(key.bytes, sizeof key.bytes, hex);
        add_role(v, k->role, k->name, k->ephemeral);
        ADD(v, "fingerprint", json_object_new_string(print));
        ADD(v, "key", json_object_new_string(hex));
        add_wall(v, "made_ms", k->made_wall_ms);
        add_wall(v, "seen_ms", k->seen_wall_ms);
        json_object_array_add(list, v);
    }
    print_line(list);
}

static void up(const struct print_up *u) {
    json_object *v = json_object_new_object();
    ADD(v, "endpoint", json_object_new_string(u->endpoint));
    ADD(v, "dir", json_object_new_string(u->dir));
    ADD(v, "pid", json_object_new_int64(u->pid));
    ADD(v, "workers", json_object_new_int(u->workers));
    print_line(v);
}

/* The folder's images by how they ended. */
static void add_counts(json_object *v, const struct folder *f) {
    ADD(v, "dir", json_object_new_string(f->dir));
    ADD(v, "total", json_object_new_int64((int64_t)f->count));
    ADD(v, "done", json_object_new_int64((int64_t)f->done));
    ADD(v, "failed", json_object_new_int64((int64_t)f->failed));
    ADD(v, "cancelled", json_object_new_int64((int64_t)f->cancelled));
    ADD(v, "kept", json_object_new_int64((int64_t)f->kept));
}

static void rendered(const struct print_render *r) {
    json_object *v = json_object_new_object();
    ADD(v, "state", json_object_new_string(r->state));
    ADD(v, "id", r->folder->id[0] ? json_object_new_string(r->folder->id) : NULL);
    add_counts(v, r->folder);
    ADD(v, "rendered", json_object_new_int64((int64_t)r->rendered));
    ADD(v, "seconds", text_json_rate(r->seconds));
    ADD(v, "images_per_s", text_json_rate(r->images_per_s));
    ADD(v, "seed", json_object_new_uint64(r->seed));
    ADD(v, "seed_drawn", json_object_new_boolean(r->seed_drawn));
    print_line(v);
}

static void fetched(const struct folder *f) {
    json_object *v = json_object_new_object();
    ADD(v, "id", json_object_new_string(f->id));
    add_counts(v, f);
    print_line(v);
}

static void audited(const struct verify_report *r) {
    json_object *v = json_object_new_object(), *faults = json_object_new_array();
    ADD(v, "dir", json_object_new_string(r->dir));
    ADD(v, "ok", json_object_new_boolean(r->fault_count == 0));
    ADD(v, "count", json_object_new_uint64(r->count));
    ADD(v, "done", json_object_new_uint64(r->done));
    ADD(v, "failed", json_object_new_uint64(r->failed));
    ADD(v, "cancelled", json_object_new_uint64(r->cancelled));
    ADD(v, "bytes", json_object_new_uint64(r->bytes));
    for (size_t i = 0; i < r->fault_count; i++) {
        json_object *f = json_object_new_object();
        ADD(f, "file", json_object_new_string(r->faults[i].file));
        ADD(f, "line", r->faults[i].line ? json_object_new_int64(r->faults[i].line) : NULL);
        ADD(f, "text", json_object_new_string(r->faults[i].text));
        json_object_array_add(faults, f);
    }
    ADD(v, "faults", faults);
    print_line(v);
}

static void explained(const struct kn_explain_reply *r, int64_t task) {
    json_object *v = task < 0 ? batch_json(&r->status) : json_object_new_object(),
                *attempts = json_object_new_array();
    if (task >= 0) {
        char id[KN_UUID_TEXT];
        kn_uuid_format(r->status.batch, id);
        ADD(v, "id", json_object_new_string(id));
        ADD(v, "task", json_object_new_int64(task));
        ADD(v, "state", json_object_new_string(r->task_state));
        ADD(v, "text", json_object_new_string(r->text));
        ADD(v, "tried", json_object_new_int64(r->tried));
        ADD(v, "charges", json_object_new_int64(r->charges));
    }
    for (size_t i = 0; i < r->count; i++) {
        const struct kn_attempt *a = &r->v[i];
        json_object *o = json_object_new_object();
        ADD(o, "task", json_object_new_int64(a->task));
        ADD(o, "worker", json_object_new_string(a->worker));
        ADD(o, "backend", json_object_new_string(a->backend));
        ADD(o, "ended_ms", json_object_new_uint64(a->wall_ms));
        ADD(o, "code", json_object_new_int(a->code));
        ADD(o, "reason", json_object_new_string(a->reason));
        ADD(o, "charged", json_object_new_boolean(a->charged));
        json_object_array_add(attempts, o);
    }
    ADD(v, "attempts", attempts);
    ADD(v, "left_out", json_object_new_int64(r->left_out));
    print_line(v);
}

const struct print print_json = {
    .explained = explained,
    .batches = batches,
    .waited = batches,
    .workers = workers,
    .snapshot = snapshot,
    .token = token,
    .tokens = tokens,
    .keys = keys,
    .up = up,
    .rendered = rendered,
    .fetched = fetched,
    .audited = audited,
};

/* The commands that look at a farm that is up, and steer it: each connects, asks, prints, ends. Tables for
 * people, JSON with --json; standard output carries nothing else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/talk/batch.h"
#include "cli/folder/folder.h"
#include "cli/print/progress.h"
#include "cli/text.h"

#define WAIT_POLL_MS 200

static void print_json(json_object *v) {
    struct kn_buf b;
    kn_buf_init(&b, 1u << 28);
    if (text_json(v, &b) == KN_OK) puts(b.data);
    kn_buf_fini(&b);
    json_object_put(v);
}

/* ---- status */

/* The widest of what stands in a column of text, the head's at least and `max` at most. */
static void widen(int *width, const char *text, int max) {
    int columns = 0;
    for (; *text; text++) columns += ((unsigned char)*text & 0xc0) != 0x80;
    if (columns > max) columns = max;
    if (columns > *width) *width = columns;
}

static void print_batches(const struct kn_batch_status *v, size_t count) {
    int name_width = 4;
    for (size_t i = 0; i < count; i++) widen(&name_width, v[i].name, 24);
    printf("%-8s  %-*s  %-9s  %7s  %7s  %6s  %5s  %8s  %s\n", "ID", name_width, "NAME", "STATE", "DONE", "OF",
           "FAILED", "RUNS", "IMAGES/S", "LEFT");
    for (size_t i = 0; i < count; i++) {
        const struct kn_batch_status *s = &v[i];
        char id[KN_UUID_TEXT], name[120], left[CLI_DURATION_MAX], rate[24];
        bool over = batch_is_over(s);
        kn_uuid_format(s->batch, id);
        text_fit(s->name, name_width, 1, name, sizeof name);
        snprintf(rate, sizeof rate, "%.1f", (double)(over ? s->images_per_s_mean : s->images_per_s));
        if (over)
            strcpy(left, "-");
        else
            text_duration(s->eta_ms, left);
        printf("%.8s  %s  %-9s  %7u  %7u  %6u  %5u  %8s  %s\n", id, name, kn_batch_state_name(s->state),
               s->done, s->total, s->failed, s->running, rate, left);
    }
}

/* The batches that the arguments name, or all, into *v (the caller's to free; strings borrowed from *replies,
 * which the caller destroys). */
struct statuses {
    struct kn_batch_status *v;
    size_t count;
    struct kn_msg **replies;
    size_t reply_count;
};

static void statuses_fini(struct statuses *s) {
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

static int ask_statuses(struct client *c, const kn_id *ids, size_t count, bool all, struct statuses *out,
                        struct kn_err *err) {
    struct kn_msg *r;
    *out = (struct statuses){0};
    int rc = KN_OK;
    for (size_t i = 0; rc == KN_OK && i < (all ? 1 : count); i++) {
        rc = batch_query(c, all ? NULL : ids[i], &r, err);
        if (rc == KN_OK) rc = add_reply(out, r, err);
    }
    if (rc) statuses_fini(out);
    return rc;
}

static int find_all(struct client *c, const struct cli_options *o, kn_id **out, struct kn_err *err) {
    *out = calloc((size_t)o->arg_count + 1, sizeof **out);
    if (!*out) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (int i = 0; i < o->arg_count; i++) {
        int rc = batch_find(c, o->args[i], (*out)[i], err);
        if (rc) return rc;
    }
    return KN_OK;
}

/* One batch that was asked for is an object, all else an array of them. */
static void print_statuses(const struct cli_options *o, const struct statuses *s) {
    if (!o->json) {
        print_batches(s->v, s->count);
    } else if (o->arg_count == 1) {
        print_json(batch_json(&s->v[0]));
    } else {
        json_object *list = json_object_new_array();
        for (size_t i = 0; i < s->count; i++) json_object_array_add(list, batch_json(&s->v[i]));
        print_json(list);
    }
}

int cmd_status(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct statuses s = {0};
    kn_id *ids = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = find_all(c, o, &ids, &err);
    if (rc == KN_OK)
        rc = ask_statuses(c, (const kn_id *)ids, (size_t)o->arg_count, o->arg_count == 0, &s, &err);
    if (rc == KN_OK && s.count == 0 && !o->json)
        cli_say("no batches; kiln submit hands one in");
    else if (rc == KN_OK)
        print_statuses(o, &s);
    statuses_fini(&s);
    free(ids);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

/* ---- wait */

static int on_idle(void *ctx, int silent_ms, struct kn_err *err) {
    (void)err;
    progress_silent(ctx, silent_ms);
    return KN_OK;
}

static void add_up(const struct statuses *s, struct progress_state *p) {
    *p = (struct progress_state){.eta_ms = -1};
    for (size_t i = 0; i < s->count; i++) {
        const struct kn_batch_status *b = &s->v[i];
        p->total += b->total;
        p->done += b->done;
        p->failed += b->failed;
        p->cancelled += b->cancelled;
        p->running += b->running;
        p->images_per_s += (double)b->images_per_s;
        p->paused = p->paused || (b->state == KN_BATCH_PAUSED && !batch_is_over(b));
        if (!batch_is_over(b) && b->eta_ms > p->eta_ms) p->eta_ms = b->eta_ms;
    }
}

int cmd_wait(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct statuses s = {0};
    struct progress progress;
    struct progress_state now = {0};
    kn_id *ids = NULL;
    cli_catch_signals();
    uint64_t end = o->timeout_s ? kn_clock_ms() + (uint64_t)o->timeout_s * 1000 : UINT64_MAX;
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = find_all(c, o, &ids, &err);
    progress_begin(&progress);
    if (c) client_on_idle(c, on_idle, &progress);
    bool over = false, late = false;
    while (rc == KN_OK && !over && !late) {
        statuses_fini(&s);
        rc = ask_statuses(c, (const kn_id *)ids, (size_t)o->arg_count, false, &s, &err);
        if (rc) break;
        add_up(&s, &now);
        progress_update(&progress, &now);
        over = true;
        for (size_t i = 0; i < s.count; i++) over = over && batch_is_over(&s.v[i]);
        late = !over && kn_clock_ms() >= end;
        if (!over && !late) rc = client_sleep(c, WAIT_POLL_MS, &err);
    }
    progress_end(&progress);
    int status = rc ? cli_fail(&err) : CLI_DONE;
    if (rc == KN_OK) {
        if (o->json) print_statuses(o, &s);
        if (late)
            cli_say("%zu of %zu images have ended; not waiting any longer",
                    now.done + now.failed + now.cancelled, now.total);
        else if (now.failed + now.cancelled)
            cli_say("%zu done, %zu failed, %zu cancelled", now.done, now.failed, now.cancelled);
        if (now.done < now.total) status = CLI_FAILED;
    }
    statuses_fini(&s);
    free(ids);
    client_close(c);
    return status;
}

/* ---- fetch */

/* Results until there are no more at the moment. */
static int collect(struct client *c, const kn_id id, struct folder *out, struct progress *progress,
                   size_t *lost, struct kn_err *err) {
    struct batch_cursor cur = {0};
    memcpy(cur.id, id, sizeof(kn_id));
    for (;;) {
        struct kn_msg *m;
        int rc = batch_results(c, &cur, &m, err);
        if (rc) return rc;
        const struct kn_results_reply *reply = &m->u.results_reply;
        size_t count = reply->count;
        uint32_t *index = calloc(count + 1, sizeof *index);
        if (!index) rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
        for (size_t i = 0; rc == KN_OK && i < count; i++) index[i] = reply->v[i].index;
        if (rc == KN_OK) rc = folder_take(out, c, reply->v, index, count, lost, err);
        free(index);
        kn_msg_destroy(m);
        struct progress_state p = {.total = out->count,
                                   .done = out->done,
                                   .failed = out->failed,
                                   .cancelled = out->cancelled,
                                   .eta_ms = -1};
        progress_update(progress, &p);
        if (rc == KN_OK) rc = folder_flush(out, false, err);
        if (rc || count == 0) return rc;
    }
}

static void tell_fetched(const struct cli_options *o, const struct folder *out, size_t lost) {
    size_t ended = out->done + out->failed + out->cancelled;
    cli_say("%zu of %zu images are in %s%s", out->done, out->count, out->dir,
            ended + lost < out->count ? "; the batch is still being rendered" : "");
    if (out->failed) cli_say("%zu failed; manifest.jsonl says why", out->failed);
    if (lost) cli_say("%zu images cannot be fetched", lost);
    if (!o->json) return;
    json_object *v = json_object_new_object();
    json_object_object_add(v, "id", json_object_new_string(out->id));
    json_object_object_add(v, "dir", json_object_new_string(out->dir));
    json_object_object_add(v, "total", json_object_new_int64((int64_t)out->count));
    json_object_object_add(v, "done", json_object_new_int64((int64_t)out->done));
    json_object_object_add(v, "failed", json_object_new_int64((int64_t)out->failed));
    json_object_object_add(v, "cancelled", json_object_new_int64((int64_t)out->cancelled));
    json_object_object_add(v, "kept", json_object_new_int64((int64_t)out->kept));
    print_json(v);
}

int cmd_fetch(const struct cli_options *o) {
    static struct folder out;
    struct kn_err err = {0};
    struct client *c = NULL;
    struct batch_tasks tasks = {0};
    struct kn_msg *about = NULL;
    struct progress progress;
    kn_id id;
    size_t lost = 0;
    bool opened = false;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = batch_find(c, o->args[0], id, &err);
    if (rc == KN_OK) rc = batch_query(c, id, &about, &err);
    if (rc == KN_OK) rc = batch_tasks(c, id, &tasks, &err);
    if (rc == KN_OK) {
        rc = folder_open(o->out ? o->out : "kiln-out", &out, &err);
        opened = rc == KN_OK;
        if (rc) err.code = rc = KN_EINVAL; /* a folder that cannot be used is the command line's mistake */
    }
    if (rc == KN_OK) {
        const struct kn_batch_status *s = &about->u.batch_list.v[0];
        kn_uuid_format(id, out.id);
        snprintf(out.name, sizeof out.name, "%s", s->name);
        out.created_wall_ms = s->created_wall_ms;
        out.request = s->request;
        rc =
            folder_begin(&out, tasks.v, (const kn_digest *)tasks.keys, tasks.count, tasks.models, NULL, &err);
    }
    progress_begin(&progress);
    if (c) client_on_idle(c, on_idle, &progress);
    if (rc == KN_OK) rc = folder_describe(&out, &err);
    if (rc == KN_OK) rc = collect(c, id, &out, &progress, &lost, &err);
    progress_end(&progress);
    if (opened && out.entries) {
        struct kn_err last = {0};
        out.finished = out.done + out.failed + out.cancelled == out.count;
        int rc2 = folder_flush(&out, true, &last);
        if (rc2 && rc == KN_OK) {
            rc = rc2;
            err = last;
        }
    }
    int status = rc ? cli_fail(&err) : CLI_DONE;
    if (rc == KN_OK) {
        tell_fetched(o, &out, lost);
        if (out.failed || lost) status = CLI_FAILED;
    }
    if (opened) folder_close(&out);
    kn_msg_destroy(about);
    batch_tasks_fini(&tasks);
    client_close(c);
    return status;
}

/* ---- cancel, pause, resume, retry, rm */

static int steer(const struct cli_options *o, enum kn_batch_verb verb) {
    struct kn_err err = {0};
    struct client *c = NULL;
    kn_id *ids = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = find_all(c, o, &ids, &err); /* all of them, before anything is done */
    for (int i = 0; rc == KN_OK && i < o->arg_count; i++) {
        rc = batch_command(c, ids[i], verb, &err);
        if (rc) kn_err_prefix(&err, "%s", o->args[i]);
    }
    free(ids);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

int cmd_cancel(const struct cli_options *o) {
    return steer(o, KN_VERB_CANCEL);
}
int cmd_pause(const struct cli_options *o) {
    return steer(o, KN_VERB_PAUSE);
}
int cmd_resume(const struct cli_options *o) {
    return steer(o, KN_VERB_RESUME);
}
int cmd_retry(const struct cli_options *o) {
    return steer(o, KN_VERB_RETRY);
}
int cmd_rm(const struct cli_options *o) {
    return steer(o, KN_VERB_REMOVE);
}

/* ---- workers, drain */

static void print_workers(const struct kn_worker_list *l) {
    int name_width = 6, host_width = 4, backend_width = 7, model_width = 5;
    bool readings = false; /* a column that is there only where it has something to say */
    char device[64];
    for (size_t i = 0; i < l->count; i++) {
        widen(&name_width, l->v[i].worker, 24);
        widen(&host_width, l->v[i].host, 16);
        widen(&backend_width, l->v[i].backend, 24);
        widen(&model_width, l->v[i].model, 16);
        readings = readings || worker_readings(&l->v[i], device)[0];
    }
    printf("%-*s  %-*s  %-*s  %-8s  %-*s  %-8s  %7s  %8s  %6s  %6s  %s%s\n", name_width, "WORKER", host_width,
           "HOST", backend_width, "BACKEND", "STATE", model_width, "MODEL", "BATCH", "STEP", "IMAGES/S",
           "DONE", "FAILED", "SEEN", readings ? "      DEVICE" : "");
    for (size_t i = 0; i < l->count; i++) {
        const struct kn_worker_status *w = &l->v[i];
        char id[KN_UUID_TEXT] = "-", name[128], host[96], backend[128], model[96], step[32] = "-",
             seen[CLI_DURATION_MAX];
        if (w->has_batch) kn_uuid_format(w->batch, id);
        if (w->state == KN_WORKER_BUSY) snprintf(step, sizeof step, "%u/%u", w->step, w->steps);
        text_fit(w->worker, name_width, 1, name, sizeof name);
        text_fit(w->host, host_width, 1, host, sizeof host);
        text_fit(w->backend, backend_width, 1, backend, sizeof backend);
        text_fit(w->model[0] ? w->model : "-", model_width, 1, model, sizeof model);
        text_duration(w->last_seen_ms, seen);
        printf("%s  %s  %s  %-8s  %s  %-8.8s  %7s  %8.1f  %6u  %6u  ", name, host, backend,
               kn_worker_state_name(w->state), model, id, step, (double)w->images_per_s, w->done, w->failed);
        if (readings)
            printf("%-8s  %s\n", seen, worker_readings(w, device));
        else
            printf("%s\n", seen);
    }
}

int cmd_workers(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct kn_msg q = {.type = KN_MSG_WORKERS_QUERY}, *r = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = client_call(c, &q, KN_MSG_WORKER_LIST, CLIENT_PATIENCE_MS, &r, &err);
    if (rc == KN_OK) {
        const struct kn_worker_list *l = &r->u.worker_list;
        if (o->json) {
            json_object *list = json_object_new_array();
            for (size_t i = 0; i < l->count; i++) json_object_array_add(list, worker_json(&l->v[i]));
            print_json(list);
        } else if (l->count == 0) {
            cli_say("no workers; kiln-worker --join adds one");
        } else {
            print_workers(l);
        }
    }
    kn_msg_destroy(r);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

int cmd_drain(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    for (int i = 0; rc == KN_OK && i < o->arg_count; i++) {
        struct kn_msg m = {.type = KN_MSG_WORKER_COMMAND};
        if (strlen(o->args[i]) > KN_NAME_MAX) {
            rc = kn_err_set(&err, KN_ENOENT, "%.60s…: no worker has such a name", o->args[i]);
            break;
        }
        m.u.worker_command.worker = o->args[i];
        m.u.worker_command.exit = o->exit_worker;
        rc = client_call(c, &m, KN_MSG_REPLY, CLIENT_PATIENCE_MS, NULL, &err);
        if (rc) kn_err_prefix(&err, "%s", o->args[i]);
    }
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

/* kiln render: prompts in, a folder of pictures out.
 *
 * In order: the input is read; the farm that is up to stay is found, or it is settled that a private one will
 * be started; every task is resolved; the folder says what it has already; only then, and only if something is
 * missing, is anything started. What an earlier run handed in and could not collect is collected first. Then
 * the rest is handed in as one batch and followed to its end, the folder filling meanwhile.
 *
 * Ctrl-C cancels the batch, collects what had ended, and ends a private farm; the same command then goes on
 * where it was. A private farm belongs to this run alone and is found again by the output folder (runs.h): no
 * other render uses it, so that a command's result depends on nothing but what was asked. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/commands/commands.h"
#include "cli/farm/runs.h"
#include "cli/commands/on_done.h"
#include "cli/farm/supervise.h"
#include "cli/folder/earlier.h"
#include "cli/folder/folder.h"
#include "cli/print/print.h"
#include "cli/print/progress.h"
#include "cli/talk/batch.h"
#include "cli/talk/submission.h"
#include "cli/text.h"

#define FARM_WAIT_MS 90000 /* for a farm that another is just starting or ending */
#define NAMED_MS 5000      /* for an endpoint that a person names */
#define HAND_MADE_MS 1000  /* for one that only an endpoint file tells of */
#define WORKERS_WAIT_MS 15000
#define POLL_MS 50
#define ALIVE_EVERY_MS 1000
#define ROUNDS_MAX 4       /* the farm lost bytes of what it had committed: rendered again, so often */
#define DEATHS_START_MAX 4 /* of every worker, in a row, before one has come up: they cannot */
#define DEATHS_MAX 30  /* the same later, with no image ending between; a killer task takes three at most */
#define ENDING_MS 4000 /* after Ctrl-C, for the farm to answer */
#define TOLD_MAX 10    /* failures that are listed; the manifest has them all */
#define NOTES_MAX 6    /* deaths of processes that are told */
#define NOBODY UINT32_MAX
#define PLAN_BYTES_MAX (1u << 18)

struct render {
    const struct cli_options *o;
    char farm_dir[KN_PATH_MAX];
    bool is_endpoint;
    struct submission submission;
    struct models farm_models;
    struct folder out;
    bool out_open, begun;

    struct client *client;
    bool watched; /* the farm has a lock in farm_dir, which tells whether it lives */
    bool own;     /* the farm is this run's */
    bool started; /* and this process started it */
    bool resumes; /* the output folder has a run of its own to go on with */
    struct run run;
    struct supervise_handle farm;
    bool no_farm;
    bool joined; /* a worker has announced the models */
    int workers, deaths[CLI_WORKERS_MAX], notes;
    uint64_t alive_ms;

    bool held; /* no worker is well: the batch is not waited for any more, and this is why */
    char held_text[KN_WAIT_TEXT_MAX + 1];

    bool sent; /* the batch `id` is on the farm and ours to cancel */
    kn_id id;
    char old_id[KN_UUID_TEXT]; /* of the run before, from batch.json */
    struct progress progress;
    size_t lost;
    uint64_t sent_ms, rendered_ms;
};

/* ---- the farm */

/* News of our own farm's processes, and whether the farm is there at all. */
static int watch(struct render *r, struct kn_err *err) {
    const char *line;
    while (r->started && supervise_news(&r->farm, &line)) {
        int count, n = 0, w;
        char process[32];
        if (!line) break;
        if (sscanf(line, "died %d %31s %n", &count, process, &n) == 2 && n > 0) {
            if (sscanf(process, "worker-%d", &w) == 1 && w >= 0 && w < CLI_WORKERS_MAX) r->deaths[w] = count;
            if (++r->notes <= NOTES_MAX)
                progress_note(&r->progress, "%s %s; started again", process, line + n);
            if (r->notes == NOTES_MAX)
                progress_note(&r->progress, "further ends are in %s/log", r->run.dir.dir);
        }
    }
    if (r->started && r->farm.news_fd < 0)
        return kn_err_set(err, KN_EGONE, "the private farm has ended; see %s/log", r->run.dir.dir);
    bool dead = r->started && r->workers > 0;
    for (int w = 0; dead && w < r->workers; w++)
        dead = r->deaths[w] >= (r->joined ? DEATHS_MAX : DEATHS_START_MAX);
    if (dead) {
        char words[512];
        supervise_last_words(&r->run.dir, "worker-0", words, sizeof words);
        return kn_err_set(err, KN_EDEVICE, "no worker stays alive; the last words of worker-0: %s",
                          words[0] ? words : "none");
    }
    uint64_t now = kn_clock_ms();
    if (!r->started && r->watched && now - r->alive_ms >= ALIVE_EVERY_MS) {
        r->alive_ms = now;
        if (!farmdir_is_locked(r->farm_dir))
            return kn_err_set(err, KN_EGONE,
                              "the farm at %s has ended; the same command goes on where this was",
                              r->farm_dir);
    }
    return KN_OK;
}

static int on_idle(void *ctx, int silent_ms, struct kn_err *err) {
    struct render *r = ctx;
    progress_silent(&r->progress, silent_ms);
    return watch(r, err);
}

static int attach(struct render *r, const char *endpoint, int patience_ms, struct kn_err *err) {
    int rc = client_open(endpoint, patience_ms, &r->client, err);
    if (rc == KN_OK) client_on_idle(r->client, on_idle, r);
    return rc;
}

/* Attaches to the farm that was brought up to stay, if one is: the one that --farm names, else that of the
 * default place. r->client stays NULL when none is; waits out one that is starting or ending. */
static int find_farm(struct render *r, struct kn_err *err) {
    char endpoint[KN_ENDPOINT_MAX + 1];
    uint64_t end = kn_clock_ms() + FARM_WAIT_MS;
    if (r->is_endpoint) {
        int rc = attach(r, r->farm_dir, NAMED_MS, err);
        return rc == KN_ETIMEOUT ? kn_err_set(err, rc, "no farm answers at %s", r->farm_dir) : rc;
    }
    if (run_is_at(r->farm_dir))
        return kn_err_set(err, KN_EINVAL, "--farm %s: is the private farm of another run", r->farm_dir);
    for (;;) {
        struct kn_err why = {0};
        bool up = farmdir_is_locked(r->farm_dir);
        int rc = farmdir_endpoint(r->o->farm, 0, endpoint, &why);
        /* a private farm of an earlier kiln, which kept them here: another run's */
        if (up && farmdir_pid(r->farm_dir, "private")) up = false, rc = KN_ENOENT;
        if (!up) {
            /* a coordinator that was started by hand has no lock; a stale file has no coordinator */
            if (rc == KN_OK) rc = attach(r, endpoint, HAND_MADE_MS, &why);
            if (rc == KN_ECANCELED) return kn_err_set(err, rc, "interrupted");
            if (rc && r->o->farm)
                return kn_err_set(err, KN_ENOENT, "no farm is up at %s (kiln up starts one)", r->farm_dir);
            return KN_OK;
        }
        if (rc == KN_OK && attach(r, endpoint, CLIENT_PATIENCE_MS, &why) == KN_OK) {
            r->watched = true;
            return KN_OK;
        }
        if (cli_interrupted) return kn_err_set(err, KN_ECANCELED, "interrupted");
        if (kn_clock_ms() > end)
            return kn_err_set(err, KN_ETIMEOUT, "the farm at %s neither answers nor ends; see %s/log",
                              r->farm_dir, r->farm_dir);
        usleep(POLL_MS * 1000);
    }
}

/* The models that the batch is of are announced by a worker. */
static int await_models(struct render *r, struct kn_err *err) {
    for (;;) {
        struct models m;
        int rc = models_of_farm(r->client, 0, &m, err);
        if (rc) return rc;
        size_t have = 0;
        for (size_t i = 0; i < r->submission.model_count; i++)
            have += models_find_hash(&m, r->submission.models[i].sha256) != NULL;
        models_fini(&m);
        r->joined = have == r->submission.model_count;
        if (r->joined) return KN_OK;
        rc = watch(r, err);
        if (rc == KN_OK) rc = client_sleep(r->client, 20, err);
        if (rc) return rc;
    }
}

/* The models and sizes that the farm's workers will have to hold. Sizes are the tasks', which are resolved. */
static struct farm_load load_of(const struct submission *s) {
    struct farm_load load = {.models = s->models, .model_count = s->model_count};
    for (size_t i = 0; i < s->tasks.count; i++) {
        const struct kn_task *t = kn_tasks_at(&s->tasks, i);
        if ((uint64_t)t->width * t->height <= (uint64_t)load.width * load.height) continue;
        load.width = t->width;
        load.height = t->height;
    }
    return load;
}

/* The plan that the farm was asked for: one of another plan is no use to this command. */
static int describe_plan(const struct cli_options *o, const struct supervise_config *c, struct kn_buf *out) {
    int rc = kn_buf_appendf(out, "kiln %s\nworkers %d\nthreads %d\nengine %s\npictures %s\n", KILN_VERSION,
                            o->workers, o->threads, c->engine ? c->engine : "", c->pictures);
    for (int i = 0; rc == KN_OK && i < c->devices->count; i++)
        rc = kn_buf_appendf(out, "device %s\n", c->devices->v[i]);
    for (size_t i = 0; rc == KN_OK && i < c->model_dir_count; i++)
        rc = kn_buf_appendf(out, "model %s\n", c->models[i]);
    return rc;
}

/* The farm that a killed command left goes on, if it is what this command would start. */
static bool go_on(struct render *r, const char *plan) {
    struct kn_err why = {0};
    if (!run_has_plan(&r->run, plan) || attach(r, r->run.dir.endpoint, CLIENT_PATIENCE_MS, &why))
        return false;
    r->own = r->watched = true;
    snprintf(r->farm_dir, sizeof r->farm_dir, "%s", r->run.dir.dir);
    cli_farm_pid = farmdir_pid(r->run.dir.dir, "supervisor");
    progress_note(&r->progress, "the farm of the run before is up still");
    return true;
}

static int start_supervisor(struct render *r, const struct supervise_config *config, const char *plan,
                            struct kn_err *err) {
    struct supervise_config c = *config;
    struct farmdir again; /* a farm that has just ended has taken the folder of its sockets along */
    int rc = farmdir_lock(r->run.dir.dir, &c.lock_fd, err);
    if (rc) return rc;
    rc = farmdir_create(r->run.dir.dir, &again, err);
    if (rc == KN_OK) rc = run_write_plan(&r->run, plan, err);
    if (rc) close(c.lock_fd);
    if (rc == KN_OK) rc = supervise_start(&c, &r->farm, err);
    if (rc) return rc;
    r->own = r->started = true;
    r->workers = c.size->workers;
    return attach(r, r->run.dir.endpoint, CLIENT_PATIENCE_MS, err);
}

/* Starts this run's own farm, or goes on with the one that it has. What does not fit is refused before there is
 * anything of it; while one is up, its memory does not count. */
static int start_farm(struct render *r, struct kn_err *err) {
    static const char *folders[KN_MODELS_PER_BATCH_MAX];
    static struct worker_devices devices;
    static struct farm_size size;
    const struct cli_options *o = r->o;
    struct farm_load load = load_of(&r->submission);
    struct kn_buf plan;
    bool up = run_find(r->out.dir, &r->run) && farmdir_is_locked(r->run.dir.dir);
    int rc = devices_choose(o, &devices, err);
    if (rc == KN_OK && !up) rc = farm_size(o, &devices, &load, &size, err);
    if (rc == KN_OK) rc = run_open(r->out.dir, &r->run, err);
    if (rc) return rc;
    struct supervise_config c = {.farm = &r->run.dir,
                                 .private_farm = true,
                                 .pictures = r->run.pictures,
                                 .devices = &devices,
                                 .size = &size,
                                 .engine = o->engine};
    for (size_t i = 0; i < r->submission.model_count; i++)
        if (r->submission.paths[i]) folders[c.model_dir_count++] = r->submission.paths[i];
    c.models = folders;
    kn_buf_init(&plan, PLAN_BYTES_MAX);
    rc = describe_plan(o, &c, &plan);
    if (rc) kn_err_set(err, rc, "%s", kn_err_words(rc));
    if (rc == KN_OK && !(up && go_on(r, plan.data))) {
        if (!supervise_stop(r->run.dir.dir))
            rc = kn_err_set(err, KN_ETIMEOUT, "the farm of the run before does not end; see %s/log",
                            r->run.dir.dir);
        if (rc == KN_OK && up) rc = farm_size(o, &devices, &load, &size, err);
        if (rc == KN_OK) rc = start_supervisor(r, &c, plan.data, err);
    }
    kn_buf_fini(&plan);
    if (rc == KN_OK) r->out.placing = FOLDER_MOVE;
    if (rc == KN_OK) rc = await_models(r, err);
    return rc;
}

/* The run's own farm ends. What it was for is in the folder: then nothing of it stays. */
static void end_farm(struct render *r, bool over) {
    bool there = r->own;
    if (r->started)
        supervise_end(&r->farm);
    else if (!r->own && over && r->begun)
        there = run_find(r->out.dir, &r->run); /* one that nobody needs any more */
    cli_farm_pid = 0;
    if (there && (r->started || supervise_stop(r->run.dir.dir)) && over) run_remove(&r->run);
    run_close(&r->run);
}

/* ---- following a batch */

static void show(struct render *r, const struct kn_batch_status *s) {
    const struct folder *out = &r->out;
    struct progress_state p = {.total = out->count,
                               .done = out->done,
                               .failed = out->failed,
                               .cancelled = out->cancelled,
                               .running = s->running,
                               .paused = s->state == KN_BATCH_PAUSED,
                               .images_per_s = (double)s->images_per_s,
                               .steps_per_s = (double)s->steps_per_s,
                               .loading = s->loading,
                               .loading_bytes = s->loading_bytes,
                               .wait = s->wait_text,
                               .eta_ms = s->eta_ms};
    double ended = s->done + s->failed + s->cancelled, under_way = (double)s->progress * s->total - ended;
    if (under_way > 0 && p.total)
        p.progress = ((double)(p.done + p.failed + p.cancelled) + under_way) / (double)p.total;
    progress_update(&r->progress, &p);
}

/* One reply's results into the folder. map: the batch's task -> image; done_only leaves out what failed. */
static int take(struct render *r, const struct kn_results_reply *reply, const uint32_t *map, size_t map_count,
                bool done_only, struct kn_err *err) {
    struct kn_result *v = calloc(reply->count + 1, sizeof *v);
    uint32_t *index = calloc(reply->count + 1, sizeof *index);
    size_t n = 0;
    int rc = v && index ? KN_OK : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (size_t i = 0; rc == KN_OK && i < reply->count; i++) {
        const struct kn_result *result = &reply->v[i];
        if (result->index >= map_count) {
            rc = kn_err_set(err, KN_EPROTO, "the farm tells of task %u of %zu", result->index, map_count);
        } else if (map[result->index] != NOBODY && (result->status == KN_RESULT_DONE || !done_only)) {
            if (done_only && r->o->pin_backend && strcmp(result->backend, r->o->pin_backend) != 0) continue;
            if (done_only && r->o->rerender_old && strcmp(result->engine, "kiln " KN_ENGINE_VERSION) != 0)
                continue;
            v[n] = *result;
            index[n++] = map[result->index];
        }
    }
    if (rc == KN_OK) rc = folder_take(&r->out, r->client, v, index, n, &r->lost, err);
    free(v);
    free(index);
    return rc;
}

/* Collects until the batch is over, or (now_only) until there is nothing more at the moment. */
static int follow(struct render *r, const kn_id id, const uint32_t *map, size_t map_count, bool done_only,
                  bool now_only, struct kn_err *err) {
    struct batch_cursor cur = {0};
    memcpy(cur.id, id, sizeof(kn_id));
    for (;;) {
        struct kn_msg *m;
        size_t before = r->out.done + r->out.failed;
        int rc = batch_results(r->client, &cur, &m, err);
        if (rc) return rc;
        const struct kn_results_reply *reply = &m->u.results_reply;
        size_t count = reply->count;
        bool over = count == 0 && (now_only || batch_is_settled(&reply->status));
        if (over && reply->status.held && !now_only) {
            r->held = true;
            snprintf(r->held_text, sizeof r->held_text, "%s", reply->status.wait_text);
        }
        r->out.images_per_s =
            over ? reply->status.images_per_s_mean : reply->status.images_per_s; /* the gallery's */
        r->out.eta_ms = reply->status.eta_ms;
        rc = take(r, reply, map, map_count, done_only, err);
        if (rc == KN_OK && !now_only) show(r, &reply->status);
        kn_msg_destroy(m);
        if (r->out.done + r->out.failed != before) memset(r->deaths, 0, sizeof r->deaths);
        if (rc == KN_OK && !over) rc = folder_flush(&r->out, false, err);
        if (rc == KN_OK && !now_only) rc = watch(r, err);
        if (rc || over) return rc;
        if (count < KN_RESULTS_PER_REPLY_MAX / 2 && !now_only) {
            rc = client_sleep(r->client, POLL_MS, err);
            if (rc) return rc;
        }
    }
}

/* ---- what an earlier run left on the farm */

struct wanted {
    const kn_digest *key;
    uint32_t index;
};

static int by_key(const void *a, const void *b) {
    const struct wanted *x = a, *y = b;
    int c = memcmp(*x->key, *y->key, sizeof(kn_digest));
    return c ? c : x->index < y->index ? -1 : x->index > y->index;
}

/* map[task of the old batch] = the image that it is, each image once. *strangers: tasks that nobody asks for
 * any more. */
static int match(const struct render *r, const struct batch_tasks *old, uint32_t *map, size_t *strangers,
                 struct kn_err *err) {
    size_t n = r->out.count;
    struct wanted *w = calloc(n + 1, sizeof *w);
    bool *taken = calloc(n + 1, sizeof *taken);
    *strangers = 0;
    if (!w || !taken) {
        free(w);
        free(taken);
        return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    }
    for (size_t i = 0; i < n; i++)
        w[i] = (struct wanted){.key = &r->submission.keys[i], .index = (uint32_t)i};
    qsort(w, n, sizeof *w, by_key);
    for (size_t t = 0; t < old->list.count; t++) {
        size_t lo = 0, hi = n;
        while (lo < hi) {
            size_t mid = lo + (hi - lo) / 2;
            if (memcmp(*w[mid].key, old->keys[t], sizeof(kn_digest)) < 0)
                lo = mid + 1;
            else
                hi = mid;
        }
        map[t] = NOBODY;
        bool known = false;
        for (; lo < n && memcmp(*w[lo].key, old->keys[t], sizeof(kn_digest)) == 0; lo++) {
            known = true;
            if (taken[lo] || r->out.entries[w[lo].index].status) continue;
            taken[lo] = true;
            map[t] = w[lo].index;
            break;
        }
        *strangers += !known;
    }
    free(w);
    free(taken);
    return KN_OK;
}

/* The batch of the run before may still be on the farm: of a run that was killed, or lost its farm. What it
 * has is taken; if it still runs and all of it is wanted, it is followed, else it is cancelled. `ending`: it
 * is cancelled already, and not waited for. */
static int adopt(struct render *r, bool ending, struct kn_err *err) {
    kn_id id;
    struct kn_msg *m;
    if (!r->old_id[0] || kn_uuid_parse(r->old_id, id)) return KN_OK;
    int rc = batch_query(r->client, id, &m, err);
    if (rc == KN_ENOENT) return KN_OK;
    if (rc) return rc;
    bool over = batch_is_over(&m->u.batch_list.v[0]), aside = m->u.batch_list.v[0].state == KN_BATCH_ASIDE;
    kn_msg_destroy(m);
    if (aside) return KN_OK; /* the farm cannot read it back: what the folder lacks is asked for anew */

    struct batch_tasks old = {0};
    size_t strangers = 0;
    rc = batch_tasks(r->client, id, &old, err);
    uint32_t *map = calloc(old.list.count + 1, sizeof *map);
    if (rc == KN_OK && !map) rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    if (rc == KN_OK) rc = match(r, &old, map, &strangers, err);
    if (rc == KN_OK && !ending && !over && strangers == 0 && !r->o->pin_backend) {
        progress_note(&r->progress, "the batch of the run before is on the farm still: going on with it");
        memcpy(r->id, id, sizeof(kn_id));
        snprintf(r->out.id, sizeof r->out.id, "%s", r->old_id);
        r->sent = true;
        rc = follow(r, id, map, old.list.count, false, false, err);
        if (rc == KN_OK) r->sent = false;
    } else if (rc == KN_OK) {
        rc = follow(r, id, map, old.list.count, true, true, err);
        if (rc == KN_OK && !over && !ending) {
            rc = batch_command(r->client, id, KN_VERB_CANCEL, err);
            if (rc == KN_ESTATE || rc == KN_ENOENT) rc = KN_OK; /* it ended meanwhile */
        }
    }
    free(map);
    batch_tasks_fini(&old);
    return rc;
}

/* ---- handing in the rest */

/* One batch of all that has not ended. *count: how much that was. */
static int render_rest(struct render *r, size_t *count, struct kn_err *err) {
    uint32_t *pick = calloc(r->out.count + 1, sizeof *pick);
    size_t n = 0;
    if (!pick) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (size_t i = 0; i < r->out.count; i++)
        if (!r->out.entries[i].status) pick[n++] = (uint32_t)i;
    *count = n;
    int rc = KN_OK;
    if (n > 0) {
        kn_uuid_random(r->id);
        kn_uuid_format(r->id, r->out.id);
        rc = folder_describe(&r->out, err); /* before: a run that is killed now can be picked up by its id */
        r->sent = true;
        if (rc == KN_OK) rc = submission_send(r->client, &r->submission, pick, n, r->id, r->o, err);
        if (rc == KN_OK) rc = follow(r, r->id, pick, n, false, false, err);
        if (rc == KN_OK) r->sent = false;
    }
    free(pick);
    return rc;
}

static int render_all(struct render *r, struct kn_err *err) {
    size_t count = 0;
    int rc = adopt(r, false, err);
    for (int round = 0; rc == KN_OK && !r->held; round++) {
        r->lost = 0;
        rc = render_rest(r, &count, err);
        if (rc || r->lost == 0 || r->held) break;
        if (round + 1 == ROUNDS_MAX)
            return kn_err_set(err, KN_ECORRUPT,
                              "%zu images: the farm committed them and has lost their bytes", r->lost);
    }
    return rc;
}

/* After Ctrl-C: the batch stops, and what it has is not wasted. True when nothing of it is left on the farm. */
static bool call_off(struct render *r) {
    struct kn_err err = {0};
    if (!r->sent || !r->client) return !r->old_id[0];
    client_heed_interrupt(r->client, false);
    client_limit(r->client, ENDING_MS);
    int rc = batch_command(r->client, r->id, KN_VERB_CANCEL, &err);
    if (rc) return false;
    /* the images that it had done since the last look: by their keys, as a next run would find them */
    snprintf(r->old_id, sizeof r->old_id, "%s", r->out.id);
    return adopt(r, true, &err) == KN_OK;
}

/* ---- what the person is told */

static void tell_failures(const struct render *r) {
    const struct folder *out = &r->out;
    size_t told = 0;
    for (size_t i = 0; i < out->count && told < TOLD_MAX; i++) {
        if (out->entries[i].status != KN_RESULT_FAILED) continue;
        char prompt[200];
        text_fit(kn_tasks_at(out->tasks, i)->prompt, 40, 0, prompt, sizeof prompt);
        cli_say("  %06zu  %s  (%s)", i, out->entries[i].error[0] ? out->entries[i].error : "failed", prompt);
        told++;
    }
    if (out->failed > told) cli_say("  and %zu more, in manifest.jsonl", out->failed - told);
}

static void tell(const struct render *r, const char *state) {
    const struct folder *out = &r->out;
    char took[CLI_DURATION_MAX];
    text_duration((int64_t)r->rendered_ms, took);
    if (r->rendered_ms < 9950) snprintf(took, sizeof took, "%.1f s", (double)r->rendered_ms / 1000);
    size_t rendered = out->done - out->kept;
    double seconds = (double)r->rendered_ms / 1000,
           rate = rendered && seconds > 0 ? (double)rendered / seconds : 0;
    size_t left = out->count - out->done - out->failed - out->cancelled;

    if (out->failed) {
        cli_say("%zu image%s failed:", out->failed, out->failed == 1 ? "" : "s");
        tell_failures(r);
    }
    if (out->cancelled)
        cli_say("%zu image%s cancelled", out->cancelled, out->cancelled == 1 ? " was" : "s were");
    if (rendered)
        cli_say("%zu image%s in %s, %.*f images/s", rendered, rendered == 1 ? "" : "s", took,
                rate < 100 ? 2 : 0, rate);
    if (out->kept) cli_say("%zu image%s here already", out->kept, out->kept == 1 ? " was" : "s were");
    if (r->held) cli_say("%s", r->held_text);
    if (left)
        cli_say("%zu of %zu images are still to be rendered; the same command goes on", left, out->count);
    cli_say("%s/index.html", out->dir);

    print_for(r->o)->rendered(&(struct print_render){.state = state,
                                                     .folder = out,
                                                     .rendered = rendered,
                                                     .seconds = seconds,
                                                     .images_per_s = rate,
                                                     .seed = r->submission.seed,
                                                     .seed_drawn = r->submission.seed_drawn});
}

/* ---- the command */

/* True when `old` (a batch.json, or NULL) was asked for by this command: by the same names, or with the same
 * contents. */
static bool same_command(const struct render *r, json_object *old, json_object **request) {
    const struct submission *sub = &r->submission;
    json_object *v;
    if (!old || !json_object_object_get_ex(old, "request", request)) return false;
    if (json_object_object_get_ex(*request, "source", &v) && sub->source[0] &&
        strcmp(json_object_get_string(v), sub->source) == 0)
        return true;
    return json_object_object_get_ex(*request, "contents", &v) && sub->contents[0] &&
           json_object_is_type(v, json_type_string) && strcmp(json_object_get_string(v), sub->contents) == 0;
}

/* The seed that was drawn for this command by an earlier run into `dir`. */
static bool read_old_seed(const struct render *r, const char *dir, uint64_t *seed) {
    json_object *old = earlier_batch(dir), *request, *v;
    bool found = same_command(r, old, &request) && json_object_object_get_ex(request, "seed_drawn", &v) &&
                 json_object_get_boolean(v) && json_object_object_get_ex(request, "seed", &v) &&
                 json_object_is_type(v, json_type_int);
    if (found) *seed = json_object_get_uint64(v);
    json_object_put(old);
    return found;
}

/* Looks into the folder that this command may have been at before, or without -o into those: the drawn seed is
 * found again, and so is a run of its own. */
static void look_back(struct render *r, uint64_t *seed) {
    char dir[KN_PATH_MAX];
    struct run run;
    for (int n = 1; n <= FOLDER_DEFAULTS_MAX; n++) {
        char name[FOLDER_DEFAULT_MAX];
        folder_default(n, name);
        snprintf(dir, sizeof dir, "%s", r->o->out ? r->o->out : name);
        if (!kn_fs_exists(dir)) return;
        json_object *old = earlier_batch(dir), *request;
        bool same = same_command(r, old, &request);
        json_object_put(old);
        if (same) {
            if (!r->o->has_seed) read_old_seed(r, dir, seed);
            r->resumes = run_find(dir, &run);
        }
        if (same || r->o->out) return;
    }
}

static void read_old_id(struct render *r) {
    json_object *old = earlier_batch(r->out.dir), *v;
    if (old && json_object_object_get_ex(old, "id", &v) && json_object_is_type(v, json_type_string))
        snprintf(r->old_id, sizeof r->old_id, "%s", json_object_get_string(v));
    json_object_put(old);
}

static void warn_unused(const struct cli_options *o) {
    const char *what = o->workers >= 0      ? "--workers"
                       : o->threads         ? "--threads"
                       : o->engine          ? "--engine"
                       : o->model_dir_count ? "--models"
                                            : NULL;
    if (what) cli_say("%s is for a private farm, and a farm is up: not used", what);
}

/* All that can be wrong, before anything is started. */
static int prepare(struct render *r, struct kn_err *err) {
    const struct cli_options *o = r->o;
    uint64_t seed = o->has_seed ? o->settings.seed : draw_seed();
    int rc = submission_read(o, &r->submission, err);
    if (rc == KN_OK) rc = farmdir_choose(o->farm, r->farm_dir, &r->is_endpoint, err);
    if (rc == KN_OK) look_back(r, &seed);
    if (rc == KN_OK && (o->farm || r->is_endpoint || !r->resumes)) {
        rc = find_farm(r, err);
        r->no_farm = rc != KN_OK;
    }
    if (rc == KN_OK && r->client) {
        warn_unused(o);
        rc = models_of_farm(r->client, WORKERS_WAIT_MS, &r->farm_models, err);
    }
    if (rc == KN_OK && !r->client && o->workers == 0)
        rc = kn_err_set(err, KN_EINVAL, "--workers: 0, and no farm is up that has any");
    if (rc == KN_OK)
        rc = submission_resolve(&r->submission, o, r->client ? &r->farm_models : NULL, seed, !o->has_seed,
                                err);
    if (rc == KN_OK) rc = submission_keys(&r->submission, err);
    if (rc) return rc;
    const struct submission *sub = &r->submission;
    r->out_open = true;
    rc = folder_choose(o->out,
                       &(struct folder_ask){.tasks = &sub->tasks,
                                            .keys = (const kn_digest *)sub->keys,
                                            .count = sub->tasks.count,
                                            .models = sub->models,
                                            .pin_backend = o->pin_backend,
                                            .name_pattern = o->name_pattern,
                                            .source = sub->source,
                                            .replace = o->replace,
                                            .rerender_old = o->rerender_old},
                       &r->out, err);
    if (rc) return rc;
    r->begun = true;
    read_old_id(r);
    r->out.request = sub->request;
    r->out.created_wall_ms = kn_wall_ms();
    r->out.placing = o->link ? FOLDER_LINK : FOLDER_COPY;
    snprintf(r->out.name, sizeof r->out.name, "%s", sub->name);
    snprintf(r->out.id, sizeof r->out.id, "%s", r->old_id);
    if (sub->default_model[0]) cli_say("model: %s (the farm's default)", sub->default_model);
    return KN_OK;
}

static int run_render(struct render *r, struct kn_err *err) {
    int rc = folder_describe(&r->out, err);
    if (rc || r->out.done == r->out.count) return rc;
    if (r->out.kept_old)
        cli_say(
            "%zu of the images here are of the engine %s, the others will be of kiln " KN_ENGINE_VERSION
            ", which may render the same settings a little differently; --rerender-old renders those again",
            r->out.kept_old, r->out.old_engine);
    if (!r->client) rc = start_farm(r, err);
    if (rc) return rc;
    r->sent_ms = kn_clock_ms();
    rc = render_all(r, err);
    r->rendered_ms = kn_clock_ms() - r->sent_ms;
    return rc;
}

static int run(const struct cli_options *o) {
    static struct render r;
    struct kn_err err = {0}, last = {0};
    r.o = o;
    r.run.users_fd = -1;
    cli_catch_signals();
    int rc = prepare(&r, &err);
    bool prepared = rc == KN_OK, nothing_started = !prepared, over = false;
    if (prepared) {
        progress_begin(&r.progress, o->quiet);
        rc = run_render(&r, &err);
        progress_end(&r.progress);
        nothing_started = (rc == KN_ECONFIG || rc == KN_EPERM) && !r.client;
    }
    if (rc == KN_ECANCELED && prepared) {
        cli_say("interrupted: ending (Ctrl-C again: at once)");
        over = call_off(&r);
    }
    if (prepared) {
        r.out.finished = r.out.done + r.out.failed + r.out.cancelled == r.out.count;
        if (rc == KN_OK) over = r.out.finished;
        int rc2 = folder_flush(&r.out, true, &last);
        if (rc2 && rc == KN_OK) {
            rc = rc2;
            err = last;
        }
    }
    client_close(r.client);
    end_farm(&r, over);

    int status = CLI_DONE;
    if (rc) {
        status = cli_fail(&err);
        /* a farm that is not there is 3; all else that came to light before anything was started is 1 */
        if (nothing_started && !r.no_farm && rc != KN_ECANCELED && rc != KN_EPERM) status = CLI_BAD_INPUT;
    }
    if (prepared && !nothing_started) {
        tell(&r, rc == KN_ECANCELED                ? "interrupted"
                 : rc || r.held                    ? "broken"
                 : r.out.failed || r.out.cancelled ? "failed"
                                                   : "done");
        if (rc == KN_OK && r.out.done < r.out.count) status = CLI_FAILED;
        if (rc == KN_OK && !r.held)
            on_done_run(o, r.out.id, r.out.dir,
                        r.out.done == r.out.count ? "done"
                        : r.out.cancelled         ? "cancelled"
                                                  : "failed");
    }
    if (r.out_open) folder_close(&r.out);
    models_fini(&r.farm_models);
    submission_fini(&r.submission);
    return status;
}

const struct cli_command cmd_render = {
    .name = "render",
    .usage = CLI_USAGE_INPUT,
    .words = "render prompts into a folder",
    .more =
        "Renders every prompt of the files (.txt: a prompt a line, with A1111's --steps 30 "
        "--seed 7 …; .jsonl and .json; .csv and .tsv with a header; - for standard input) and of -p into a "
        "folder: images/, manifest.jsonl, index.html (a gallery), batch.json. Uses the farm that "
        "was brought up to stay (kiln up), else starts one for itself and ends it. What the folder has already is not "
        "rendered again: after an interruption the same command goes on. A folder that holds "
        "another batch or files that are not kiln's is refused.",
    .examples =
        "  kiln render prompts.txt -o pictures\n"
        "  kiln render -p \"a red circle above a blue square\" --images 8 --seed 7\n"
        "  kiln render prompts.csv --model ~/sd15 --steps 30 --sampler \"DPM++ 2M\" --schedule karras --workers 1\n"
        "  head -5 prompts.txt | kiln render - --input-format txt -o try\n",
    .groups = CLI_G_INPUT | CLI_G_SUBMIT | CLI_G_RERENDER | CLI_G_OUT | CLI_G_FARM | CLI_G_START |
              CLI_G_JSON | CLI_G_QUIET | CLI_G_AT_END,
    .args_max = -1,
    .run = run,
};

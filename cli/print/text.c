/* Tables and sentences for people; the contract is print.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "cli/cli.h"
#include "cli/print/print.h"
#include "cli/print/top_screen.h"
#include "cli/talk/batch.h"
#include "cli/text.h"
#include "proto/wire.h"

#define SNAPSHOT_WIDTH 140

/* The widest of what stands in a column of text, the head's at least and `max` at most. */
static void widen(int *width, const char *text, int max) {
    int columns = 0;
    for (; *text; text++) columns += ((unsigned char)*text & 0xc0) != 0x80;
    if (columns > max) columns = max;
    if (columns > *width) *width = columns;
}

/* Why a batch does not go on, or what it is at before its first picture. */
static void held_up(const struct kn_batch_status *s) {
    char id[KN_UUID_TEXT], reason[32];
    kn_uuid_format(s->batch, id);
    if (s->state == KN_BATCH_ASIDE)
        text_print(stdout, "%.8s  cannot be read back: %s; kiln doctor says what can be done\n", id,
                   s->wait_text);
    else if (s->wait && !batch_is_over(s))
        text_print(stdout, "%.8s  %s\n", id, s->wait_text[0] ? s->wait_text : batch_wait_text(s, reason));
    else if (s->loading[0])
        text_print(stdout, "%.8s  loading %s, %.1f GB\n", id, s->loading, (double)s->loading_bytes / 1e9);
}

static void batches(const struct kn_batch_status *v, size_t count, bool one) {
    (void)one;
    if (count == 0) {
        cli_say("no batches; kiln submit hands one in");
        return;
    }
    int name_width = 4;
    for (size_t i = 0; i < count; i++) widen(&name_width, v[i].name, 24);
    printf("%-8s  %-*s  %-9s  %7s  %7s  %6s  %5s  %8s  %s\n", "ID", name_width, "NAME", "STATE", "DONE", "OF",
           "FAILED", "RUNS", "IMAGES/S", "LEFT");
    for (size_t i = 0; i < count; i++) {
        const struct kn_batch_status *s = &v[i];
        char id[KN_UUID_TEXT], name[120], left[CLI_DURATION_MAX], rate[24], state[32];
        bool over = batch_is_over(s);
        kn_uuid_format(s->batch, id);
        text_fit(s->name, name_width, 1, name, sizeof name);
        snprintf(rate, sizeof rate, "%.1f", (double)(over ? s->images_per_s_mean : s->images_per_s));
        if (!over && s->images_per_s <= 0 && s->steps_per_s > 0)
            snprintf(rate, sizeof rate, "%.1f st/s", (double)s->steps_per_s);
        if (over)
            strcpy(left, "-");
        else
            text_duration(s->eta_ms, left);
        printf("%.8s  %s  %-9s  %7u  %7u  %6u  %5u  %8s  %s\n", id, name, batch_state_text(s, state), s->done,
               s->total, s->failed, s->running, rate, left);
    }
    for (size_t i = 0; i < count; i++) held_up(&v[i]);
}

/* Standard error has told how the wait ended. */
static void waited(const struct kn_batch_status *v, size_t count, bool one) {
    (void)v;
    (void)count;
    (void)one;
}

static void workers(const struct kn_worker_list *l) {
    if (l->count == 0) {
        cli_say("no workers; kiln-worker --join adds one");
        return;
    }
    int name_width = 6, host_width = 4, backend_width = 7, model_width = 5;
    bool readings = false; /* a column that is there only where it has something to say */
    char device[64];
    for (size_t i = 0; i < l->count; i++) {
        widen(&name_width, l->v[i].worker, 24);
        widen(&host_width, l->v[i].host, 16);
        widen(&backend_width, l->v[i].backend, 24);
        widen(&model_width, l->v[i].loading[0] ? l->v[i].loading : l->v[i].model, 16);
        readings = readings || worker_readings(&l->v[i], device)[0];
    }
    printf("%-*s  %-*s  %-*s  %-8s  %-*s  %-8s  %7s  %8s  %6s  %6s  %s%s\n", name_width, "WORKER", host_width,
           "HOST", backend_width, "BACKEND", "STATE", model_width, "MODEL", "BATCH", "STEP", "IMAGES/S",
           "DONE", "FAILED", "SEEN", readings ? "      DEVICE" : "");
    for (size_t i = 0; i < l->count; i++) {
        const struct kn_worker_status *w = &l->v[i];
        char id[KN_UUID_TEXT] = "-", name[128], host[96], backend[128], model[96], step[32] = "-",
             seen[CLI_DURATION_MAX], state[32];
        if (w->has_batch) kn_uuid_format(w->batch, id);
        if (w->state == KN_WORKER_BUSY) snprintf(step, sizeof step, "%u/%u", w->step, w->steps);
        text_fit(w->worker, name_width, 1, name, sizeof name);
        text_fit(w->host, host_width, 1, host, sizeof host);
        text_fit(w->backend, backend_width, 1, backend, sizeof backend);
        if (w->loading[0]) snprintf(step, sizeof step, "loads");
        text_fit(w->loading[0] ? w->loading
                 : w->model[0] ? w->model
                               : "-",
                 model_width, 1, model, sizeof model);
        text_duration(w->last_seen_ms, seen);
        printf("%s  %s  %s  %-8s  %s  %-8.8s  %7s  %8.1f  %6u  %6u  ", name, host, backend,
               worker_is_held(w) ? "held" : worker_state_text(w, state), model, id, step,
               (double)w->images_per_s, w->done, w->failed);
        if (readings)
            printf("%-8s  %s\n", seen, worker_readings(w, device));
        else
            printf("%s\n", seen);
    }
    for (size_t i = 0; i < l->count; i++)
        if (worker_is_held(&l->v[i]))
            text_print(stdout, "%s is held: %s\n", l->v[i].worker, l->v[i].hold_reason);
}

/* One look at the screen of kiln top, without its colours. */
static void snapshot(const char *farm, struct kn_batch_list *b, struct kn_worker_list *w) {
    struct top t = {.farm = farm, .batches = b, .workers = w};
    char(*rows)[TOP_ROW_MAX] = calloc(TOP_ROWS_MAX, sizeof *rows);
    if (!rows) abort();
    top_arrange(&t);
    size_t n = top_draw(&t, SNAPSHOT_WIDTH, 0, rows);
    for (size_t i = 0; i < n; i++) {
        char *to = rows[i];
        for (const char *p = rows[i]; *p; p++)
            if (*p < 0 || *p >= TOP_MARK_END) *to++ = *p;
        while (to > rows[i] && to[-1] == ' ') to--;
        *to = '\0';
        puts(rows[i]);
    }
    free(rows);
}

/* The ready file has them as they came to be: with the ports that were free. */
static void listeners(const struct print_up *u) {
    char *rest, *line;
    bool tcp = false;
    struct kn_buf b;
    kn_buf_init(&b, 1u << 16);
    if (kn_fs_read(u->ready_file, &b, NULL) == KN_OK && b.len > 0) {
        for (line = strtok_r(b.data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            if (strcmp(line, u->endpoint) == 0) continue;
            char host[KN_HOST_MAX + 1] = "";
            const char *port = strrchr(line, ':');
            bool any = strncmp(line, "tcp://0.0.0.0:", 14) == 0 || strncmp(line, "tcp://*:", 8) == 0 ||
                       strncmp(line, "tcp://[::]:", 11) == 0;
            if (any && gethostname(host, sizeof host - 1) == 0)
                cli_say("workers join with: kiln-worker --join tcp://%s%s --token @token", host, port);
            else
                cli_say("workers join with: kiln-worker --join %s --token @token", line);
            tcp = tcp || strncmp(line, "tcp://", 6) == 0;
        }
    }
    if (tcp) cli_say("…the first time, where kiln token new --worker > token makes the token");
    kn_buf_fini(&b);
}

static void up(const struct print_up *u) {
    printf("%s\n", u->endpoint);
    fflush(stdout);
    cli_say("a farm is up in %s, with %d worker%s", u->dir, u->workers, u->workers == 1 ? "" : "s");
    if (u->ready_file) listeners(u);
}

static void token(const struct kn_token *t, const struct kn_token_new *what) {
    char text[KN_TOKEN_TEXT], left[CLI_DURATION_MAX];
    kn_token_format(t, text);
    puts(text);
    fflush(stdout);
    cli_say("it lets %u %s%s in, %s%s; nobody will see it again", what->uses, kn_role_name(what->role),
            what->uses == 1 ? "" : "s", what->ttl_ms ? "within " : "whenever",
            what->ttl_ms ? text_duration((int64_t)what->ttl_ms, left) : "");
}

static const char *ago(uint64_t wall_ms, char out[CLI_DURATION_MAX]) {
    uint64_t now = kn_wall_ms();
    return text_duration(now > wall_ms ? (int64_t)(now - wall_ms) : 0, out);
}

static void tokens(const struct kn_token_list *l) {
    if (l->count == 0) {
        cli_say("no tokens; kiln token new makes one");
        return;
    }
    printf("%-16s  %-6s  %8s  %-14s  %s\n", "ID", "ROLE", "USES", "EXPIRES", "NAME");
    for (size_t i = 0; i < l->count; i++) {
        const struct kn_token_info *t = &l->v[i];
        char id[2 * KN_TOKEN_ID_BYTES + 1] = "?", left[CLI_DURATION_MAX];
        uint64_t now = kn_wall_ms();
        const char *role = kn_role_name(t->role);
        if (t->id_len == KN_TOKEN_ID_BYTES) kn_hex(t->id, t->id_len, id);
        text_print(stdout, "%-16s  %-6s  %8u  %-14s  %s%s\n", id, role ? role : "?", t->uses,
                   !t->expires_wall_ms         ? "never"
                   : t->expires_wall_ms <= now ? "expired"
                                               : text_duration((int64_t)(t->expires_wall_ms - now), left),
                   t->name[0] ? t->name : "-", t->ephemeral ? " (ephemeral)" : "");
    }
}

static void keys(const struct kn_key_list *l) {
    if (l->count == 0) {
        cli_say("no keys: nobody has come by a token yet (kiln token new)");
        return;
    }
    int width = 4;
    for (size_t i = 0; i < l->count; i++) widen(&width, l->v[i].name, 32);
    printf("%-*s  %-6s  %-16s  %-14s  %s\n", width, "NAME", "ROLE", "FINGERPRINT", "MADE", "SEEN");
    for (size_t i = 0; i < l->count; i++) {
        const struct kn_key_info *k = &l->v[i];
        struct kn_public_key key;
        char print[KN_FINGERPRINT_TEXT], made[CLI_DURATION_MAX], seen[CLI_DURATION_MAX], name[160];
        const char *role = kn_role_name(k->role);
        memcpy(key.bytes, k->key, sizeof key.bytes);
        kn_fingerprint(&key, print);
        text_fit(k->name, width, 1, name, sizeof name);
        printf("%s  %-6s  %s  %-14s  %s%s\n", name, role ? role : "?", print, ago(k->made_wall_ms, made),
               k->seen_wall_ms ? ago(k->seen_wall_ms, seen) : "-", k->ephemeral ? " (ephemeral)" : "");
    }
}

/* Standard error has told what was rendered, and what was fetched. */
static void rendered(const struct print_render *r) {
    (void)r;
}

static void fetched(const struct folder *f) {
    (void)f;
}

static void audited(const struct verify_report *r) {
    for (size_t i = 0; i < r->fault_count; i++) {
        const struct verify_fault *f = &r->faults[i];
        if (f->line && strcmp(f->file, "manifest.jsonl") == 0)
            text_print(stdout, "%s/%s:%u: %s\n", r->dir, f->file, f->line, f->text);
        else if (f->line)
            text_print(stdout, "%s/%s: %s (manifest.jsonl:%u)\n", r->dir, f->file, f->text, f->line);
        else
            text_print(stdout, "%s/%s: %s\n", r->dir, f->file, f->text);
    }
    text_print(stdout, "%s: %llu images: %llu done, %llu failed, %llu cancelled; ", r->dir,
               (unsigned long long)r->count, (unsigned long long)r->done, (unsigned long long)r->failed,
               (unsigned long long)r->cancelled);
    if (r->fault_count == 0)
        puts(r->on_farm ? "all as the farm says" : "all as the manifest says");
    else
        text_print(stdout, "%zu fault%s\n", r->fault_count, r->fault_count == 1 ? "" : "s");
}

static void attempt(const struct kn_attempt *a, bool with_task) {
    char when[32] = "";
    time_t t = (time_t)(a->wall_ms / 1000);
    struct tm tm;
    if (localtime_r(&t, &tm)) strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
    if (with_task) printf("  %06u", a->task);
    text_print(stdout, "  %s  %s (%s)  %s: %s\n", when, a->worker, a->backend,
               a->charged ? "charged" : "not charged", a->reason);
}

static void explained(const struct kn_explain_reply *r, int64_t task) {
    const struct kn_batch_status *s = &r->status;
    char id[KN_UUID_TEXT], state[32], left[CLI_DURATION_MAX];
    kn_uuid_format(s->batch, id);
    if (task >= 0) {
        text_print(stdout, "%.8s/%lld is %s%s%s\n", id, (long long)task, r->task_state,
                   r->text[0] ? ": " : "", r->text);
        if (r->count) printf("attempts that brought no picture:\n");
        for (size_t i = 0; i < r->count; i++) attempt(&r->v[i], false);
        if (r->left_out) printf("  and %u before these\n", r->left_out);
        if (!r->count && r->charges)
            printf("it was charged %u time%s; an earlier kiln wrote down no more than that\n", r->charges,
                   r->charges == 1 ? "" : "s");
        return;
    }
    text_print(stdout, "%.8s %s is %s: %u of %u images done", id, s->name, batch_state_text(s, state),
               s->done, s->total);
    if (s->failed) printf(", %u failed", s->failed);
    if (s->cancelled) printf(", %u cancelled", s->cancelled);
    if (s->running) printf(", %u running", s->running);
    if (s->queued) printf(", %u queued", s->queued);
    putchar('\n');
    if (!batch_is_over(s)) {
        if (s->wait)
            text_print(stdout, "it waits: %s\n", s->wait_text[0] ? s->wait_text : batch_wait_text(s, state));
        else if (s->loading[0])
            text_print(stdout, "a worker loads %s, %.1f GB\n", s->loading, (double)s->loading_bytes / 1e9);
        if (s->eta_ms >= 0)
            printf("it is through in about %s\n", text_duration(s->eta_ms, left));
        else
            printf("when it will be done cannot be told\n");
    }
    if (r->count) printf("%u image%s needed more than one attempt:\n", r->tried, r->tried == 1 ? "" : "s");
    for (size_t i = 0; i < r->count; i++) attempt(&r->v[i], true);
    if (r->left_out) printf("  and %u more images; kiln explain %.8s/NUMBER tells of one\n", r->left_out, id);
}

const struct print print_text = {
    .explained = explained,
    .batches = batches,
    .waited = waited,
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

/* Tables and sentences for people; the contract is print.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
                cli_say("workers join with: kiln-worker --join tcp://%s%s", host, port);
            else
                cli_say("workers join with: kiln-worker --join %s", line);
            if (!kn_endpoint_is_loopback(line))
                cli_say("there are no keys yet: whoever reaches %s can use this farm and read its prompts",
                        line);
        }
    }
    kn_buf_fini(&b);
}

static void up(const struct print_up *u) {
    printf("%s\n", u->endpoint);
    fflush(stdout);
    cli_say("a farm is up in %s, with %d worker%s", u->dir, u->workers, u->workers == 1 ? "" : "s");
    if (u->ready_file) listeners(u);
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
            printf("%s/%s:%u: %s\n", r->dir, f->file, f->line, f->text);
        else if (f->line)
            printf("%s/%s: %s (manifest.jsonl:%u)\n", r->dir, f->file, f->text, f->line);
        else
            printf("%s/%s: %s\n", r->dir, f->file, f->text);
    }
    printf("%s: %llu images: %llu done, %llu failed, %llu cancelled; ", r->dir, (unsigned long long)r->count,
           (unsigned long long)r->done, (unsigned long long)r->failed, (unsigned long long)r->cancelled);
    if (r->fault_count == 0)
        puts("all as the manifest says");
    else
        printf("%zu fault%s\n", r->fault_count, r->fault_count == 1 ? "" : "s");
}

const struct print print_text = {
    .batches = batches,
    .waited = waited,
    .workers = workers,
    .snapshot = snapshot,
    .up = up,
    .rendered = rendered,
    .fetched = fetched,
    .audited = audited,
};

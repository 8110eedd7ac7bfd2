/* See supervise.h. Keeping processes running is base/supervise.h's; here is which ones, and what is logged. */
#include "worker/supervise.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/log.h"
#include "base/supervise.h"

#define WAIT_MS 1000

struct gpu_workers {
    struct supervise_options opt;
    struct kn_supervisor supervisor;
    struct kn_child v[DEVICES_MAX];
    char **argv[DEVICES_MAX]; /* a child's each; owned, but for the words in it */
    size_t word_count;        /* behind them come four of our own, and maybe died_of_memory */
    bool refused;             /* one could not be started at all */
    bool ending, told;        /* told: that some are killed */
};

static const char *device_of(const struct gpu_workers *w, const struct kn_child *c) {
    return w->opt.uuids[c - w->v];
}

static void on_event(void *ctx, struct kn_child *c, enum kn_child_event e) {
    struct gpu_workers *w = ctx;
    if (e == KN_CHILD_NOT_STARTED)
        kn_error("fork_failed worker=%s error=%s", c->name, strerror(errno));
    else if (e == KN_CHILD_STARTED)
        kn_info("worker_started worker=%s device=%s pid=%d starts=%d", c->name, device_of(w, c), (int)c->pid,
                c->starts);
    else if (e == KN_CHILD_KILLED && !w->told)
        kn_warn("killing reason=\"they do not end\"");
    w->told = w->told || e == KN_CHILD_KILLED;
}

static char died_of_memory[] = "--died-of-memory";

/* Status 0 is a worker that drained; 1 or 127 at its first start, one that can never work as it was told. */
static bool on_end(void *ctx, struct kn_child *c, int status) {
    struct gpu_workers *w = ctx;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    bool refused = (code == 1 || code == 127) && c->starts == 1;
    bool again = code != 0 && !refused && !w->ending;
    w->argv[c - w->v][w->word_count + 4] = c->died_of_memory ? died_of_memory : NULL;
    w->refused = w->refused || refused;
    kn_log(code == 0 ? KN_LOG_INFO : KN_LOG_WARN,
           "worker_ended worker=%s device=%s %s=%d%s deaths=%d again=%d pause_ms=%d", c->name,
           device_of(w, c), code < 0 ? "signal" : "status", code < 0 ? WTERMSIG(status) : code,
           c->died_of_memory ? " reason=\"the kernel killed it for want of memory\"" : "", c->deaths, again,
           again ? c->pause_ms : 0);
    return again;
}

static bool prepare(struct gpu_workers *w) {
    int words = 0;
    while (w->opt.words[words] && strcmp(w->opt.words[words], "--") != 0) words++;
    w->word_count = (size_t)words;
    for (int i = 0; i < w->opt.count; i++) {
        struct kn_child *c = &w->v[i];
        snprintf(c->name, sizeof c->name, "%.*s-gpu%d", KN_NAME_MAX - 6, w->opt.name, i);
        char **argv = calloc((size_t)words + 6, sizeof *argv);
        if (!argv) return false;
        memcpy(argv, w->opt.words, (size_t)words * sizeof *argv);
        const char *const more[] = {"--device", w->opt.uuids[i], w->opt.chosen ? "--name" : "--name-base",
                                    c->name}; /* the last one counts */
        for (size_t k = 0; k < 4; k++) argv[(size_t)words + k] = (char *)(uintptr_t)more[k];
        w->argv[i] = argv;
        c->program = w->opt.program;
        c->argv = argv;
    }
    return true;
}

static bool all_over(const struct gpu_workers *w) {
    for (int i = 0; i < w->opt.count; i++)
        if (!w->v[i].over) return false;
    return true;
}

/* Until all are over. Somebody asks for the end with a signal; the second time the workers leave at once, as
 * one alone does. */
static void watch(struct gpu_workers *w) {
    struct kn_supervisor *s = &w->supervisor;
    for (;;) {
        kn_supervise_start(s, 0, s->count);
        uint64_t signals = kn_supervise_wait(s, NULL, 0, WAIT_MS);
        if (signals) {
            const uint64_t any = KN_SIGNAL_BIT(SIGTERM) | KN_SIGNAL_BIT(SIGINT) | KN_SIGNAL_BIT(SIGHUP);
            struct kn_ending ending = {.patience_ms = w->opt.patience_ms, .pass_on = any};
            kn_info("ending workers=%d", w->opt.count);
            w->ending = true;
            kn_supervise_end(s, 0, s->count, &ending);
            return;
        }
        if (all_over(w)) return;
    }
}

int supervise_run(const struct supervise_options *opt) {
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, 0};
    static struct gpu_workers w; /* large; one a process */
    assert(opt->count > 0 && opt->count <= DEVICES_MAX);
    memset(&w, 0, sizeof w);
    w.opt = *opt;
    if (!w.opt.patience_ms) w.opt.patience_ms = 25000;
    w.supervisor = (struct kn_supervisor){.v = w.v,
                                          .count = (size_t)opt->count,
                                          .pause_ms = opt->pause_ms ? opt->pause_ms : 500,
                                          .pause_max_ms = opt->pause_max_ms ? opt->pause_max_ms : 30000,
                                          .young_ms = opt->young_ms ? opt->young_ms : 60000,
                                          .event = on_event,
                                          .ended = on_end,
                                          .ctx = &w};
    bool begun = prepare(&w) && kn_supervise_begin(&w.supervisor, signals) == 0;
    if (begun) {
        watch(&w);
        kn_supervise_close(&w.supervisor);
    }
    for (int i = 0; i < w.opt.count; i++) free(w.argv[i]);
    return w.refused || !begun;
}

/* kiln doctor: whether this machine has what a farm needs, line by line, with what to do where it has not. */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/commands/commands.h"
#include "cli/farm/runs.h"
#include "cli/farm/size.h"
#include "cli/farm/supervise.h"
#include "cli/talk/batch.h"
#include "cli/talk/model.h"
#include "cli/text.h"
#include "proto/gate.h"

#define REDIS_MAJOR_MIN 7 /* scripts that begin with #!lua */
#define FILES_MIN 1024
#define DISK_MIB_MIN 1024
#define MEMORY_MIB_MIN 1024
#define FARM_STATUS_MS 3000 /* an older coordinator does not know the question */

struct doctor {
    const struct cli_options *o;
    struct kn_machine machine;
    int faults;
    size_t dead; /* runs that killed renders have left */
};

static void line(struct doctor *d, bool good, const char *what, const char *fmt, ...) KN_PRINTF(4, 5);
static void line(struct doctor *d, bool good, const char *what, const char *fmt, ...) {
    va_list ap;
    printf("%-5s %-16s ", good ? "ok" : "FAULT", what);
    va_start(ap, fmt);
    text_vprint(stdout, fmt, ap);
    va_end(ap);
    putchar('\n');
    d->faults += !good;
}

/* The first line that `program --version` prints; false: it cannot be run. */
static bool version_line(const char *program, char *out, size_t out_max) {
    int fds[2], status = 1;
    if (pipe2(fds, O_CLOEXEC)) return false;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int none = open("/dev/null", O_WRONLY);
        if (dup2(fds[1], 1) >= 0 && dup2(none, 2) >= 0) execlp(program, program, "--version", (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    FILE *f = fdopen(fds[0], "r");
    bool got = pid > 0 && f && fgets(out, (int)out_max, f);
    if (f)
        fclose(f);
    else
        close(fds[0]);
    if (pid > 0 && (waitpid(pid, &status, 0) != pid || status != 0)) got = false;
    if (got) out[strcspn(out, "\n")] = '\0';
    return got;
}

static void check_redis(struct doctor *d) {
    char text[256], program[KN_PATH_MAX];
    farmdir_redis(program);
    if (!version_line(program, text, sizeof text)) {
        line(d, false, "redis-server", "not found; install the package redis-server");
        return;
    }
    const char *v = strstr(text, "v=");
    int major = v ? atoi(v + 2) : 0;
    line(d, major >= REDIS_MAJOR_MIN, "redis-server", "%.*s%s", v ? (int)strcspn(v + 2, " ") : 0,
         v ? v + 2 : "", major >= REDIS_MAJOR_MIN ? "" : "; 7 or later is needed");
}

static void check_programs(struct doctor *d) {
    static const char *const names[] = {"kiln-coordinator", "kiln-worker"};
    char path[KN_PATH_MAX];
    struct kn_err err = {0};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        bool there = farmdir_sibling(names[i], path, &err) == KN_OK;
        line(d, there, names[i], "%s", there ? path : err.text);
    }
}

/* How many workers with this model the memory carries, each with a picture of the default size in work. */
static void tell_fit(struct doctor *d, const struct kn_model_info *m) {
    char need[16], weights[16];
    int fits = farm_fits(&d->machine, m, m->defaults.width, m->defaults.height);
    if (!m->memory_weights) return;
    line(d, fits > 0, m->name, "%d worker%s fit in memory at %ux%u: %s each, %s of it weights",
         fits < CLI_WORKERS_MAX ? fits : CLI_WORKERS_MAX, fits == 1 ? "" : "s", m->defaults.width,
         m->defaults.height, kn_bytes_text(kn_model_need(m, m->defaults.width, m->defaults.height, 1), need),
         kn_bytes_text(m->memory_weights, weights));
}

static void check_model(struct doctor *d) {
    char path[KN_PATH_MAX], hex[KN_SHA256_HEX];
    struct kn_model_info m;
    struct kn_err err = {0};
    if (!farmdir_shipped_model(path)) {
        line(d, false, "shipped model", "not found beside the programs; --model DIR names another");
    } else if (model_describe(path, &m, &err)) {
        line(d, false, "shipped model", "%s", err.text);
    } else {
        kn_hex(m.sha256, KN_SHA256_BYTES, hex);
        line(d, true, "shipped model", "%s, %ux%u, %.10s, %s", m.name, m.defaults.width, m.defaults.height,
             hex, path);
        tell_fit(d, &m);
    }
}

/* How many workers of each model of --models and --model this machine's memory carries. */
static void check_models(struct doctor *d) {
    struct model_folders folders;
    struct models all = {0};
    struct kn_err err = {0};
    if (d->o->model_dir_count == 0 && !(d->o->settings.set & KN_SET_MODEL)) return;
    if (model_folders_choose(d->o, &folders, &err) || model_folders_describe(&folders, &all, &err))
        line(d, false, "models", "%s", err.text);
    for (size_t i = 0; i < all.count; i++) tell_fit(d, &all.v[i]);
    models_fini(&all);
}

static void check_machine(struct doctor *d) {
    const struct kn_machine *m = &d->machine;
    struct utsname u = {0};
    char total[16], can[16];
    if (uname(&u)) u.machine[0] = '\0';
    line(d, true, "cores", "%d on %d NUMA node%s, %s", m->cores, m->nodes, m->nodes == 1 ? "" : "s",
         u.machine);
    bool enough = m->memory_total >> 20 >= MEMORY_MIB_MIN;
    line(d, enough, "memory", "%s, %s can be had%s%s", kn_bytes_text(m->memory_total, total),
         kn_bytes_text(m->memory_free, can), m->memory_limited ? " within the control group's limit" : "",
         enough ? "" : "; that is little");
    size_t files = kn_fs_files_max(true);
    line(d, files >= FILES_MIN, "open files",
         "%zu at most: a coordinator started here can have %zu workers%s", files, kn_gate_plan(files).workers,
         files >= FILES_MIN ? "" : "; raise the hard limit (ulimit -Hn, LimitNOFILE=)");
    glob_t g = {0};
    size_t gpus = glob("/dev/nvidia[0-9]*", 0, NULL, &g) == 0 ? g.gl_pathc : 0;
    globfree(&g);
    if (gpus)
        line(d, true, "GPU", "%zu by NVIDIA; kiln-worker --list-devices names them", gpus);
    else
        line(d, true, "GPU", "none; kiln renders on the CPU");
}

/* The nearest folder above path that exists. */
static void existing(const char *path, char out[KN_PATH_MAX]) {
    snprintf(out, KN_PATH_MAX, "%s", path);
    while (out[0] && !kn_fs_exists(out)) {
        char *slash = strrchr(out, '/');
        if (!slash)
            strcpy(out, ".");
        else if (slash == out)
            strcpy(out, "/");
        else
            *slash = '\0';
    }
}

/* Tells what keeps the farm, or a batch of it, from going on. redis: the socket of its Redis, for commands. */
static void check_moving(struct doctor *d, struct client *c, const char *redis) {
    struct kn_err err = {0};
    struct kn_msg q = {.type = KN_MSG_FARM_QUERY}, *r = NULL;
    if (client_call(c, &q, KN_MSG_FARM_STATUS, FARM_STATUS_MS, &r, &err) == KN_OK) {
        const struct kn_farm_status *f = &r->u.farm_status;
        line(d, !f->store_text[0], "farm's store", "%s", f->store_text[0] ? f->store_text : "answers");
        if (f->store_note[0]) line(d, true, "farm's store", "%s", f->store_note);
        line(d, !f->disk_text[0], "farm's disk", "%s", f->disk_text[0] ? f->disk_text : "takes pictures");
        if (f->workers_fit)
            line(
                d, f->workers < f->workers_fit, "farm's connections",
                "%u of %u workers that fit; the limit of open files of the coordinator (ulimit -n, LimitNOFILE=) decides",
                f->workers, f->workers_fit);
    }
    kn_msg_destroy(r);
    if (batch_query(c, NULL, &r, &err) != KN_OK) return;
    for (size_t i = 0; i < r->u.batch_list.count; i++) {
        const struct kn_batch_status *s = &r->u.batch_list.v[i];
        char id[KN_UUID_TEXT];
        kn_uuid_format(s->batch, id);
        id[8] = '\0';
        if (s->state == KN_BATCH_ASIDE) {
            line(
                d, false, "batch",
                "%s is set aside, since it cannot be read back: %s. The farm tries it again at "
                "its next start. redis-cli -s %s --rdb FILE keeps a copy of all that the store has of it (its keys "
                "begin with kiln:b:%s); kiln rm %s removes it",
                id, s->wait_text, redis, id, id);
            continue;
        }
        bool broken = s->wait == KN_WAIT_NO_WORKER || s->wait == KN_WAIT_SILENT || s->wait == KN_WAIT_HELD ||
                      s->wait == KN_WAIT_CLASS || s->wait == KN_WAIT_OTHER;
        if (broken) line(d, false, "batch", "%s: %s", id, s->wait_text);
    }
    kn_msg_destroy(r);
}

/* Asks the farm to remove what nothing needs any more; it does that by itself too, once a day. */
static void repair_farm(struct doctor *d, struct client *c) {
    struct kn_err err = {0};
    struct kn_msg q = {.type = KN_MSG_REPAIR_COMMAND}, *m = NULL;
    char moved[32], deleted[32];
    int rc = client_call(c, &q, KN_MSG_REPAIR_REPLY, CLIENT_RESTART_MS, &m, &err);
    if (rc) {
        line(d, false, "farm's leftovers", "%s",
             rc == KN_EPROTO ? "the farm is older than this program" : err.text);
        return;
    }
    const struct kn_repair_reply *r = &m->u.repair_reply;
    line(d, true, "farm's leftovers",
         "%llu picture%s that nothing names moved to the trash (%s), %llu moved back",
         (unsigned long long)r->moved, r->moved == 1 ? "" : "s", kn_bytes_text(r->moved_bytes, moved),
         (unsigned long long)r->restored);
    line(d, true, "farm's leftovers", "%llu deleted from the trash (%s), %llu unfinished files removed",
         (unsigned long long)r->deleted, kn_bytes_text(r->deleted_bytes, deleted),
         (unsigned long long)r->strays);
    if (r->others)
        line(d, true, "farm's leftovers", "%llu files in the pictures' folder are not kiln's: left alone",
             (unsigned long long)r->others);
    kn_msg_destroy(m);
}

static void check_farm(struct doctor *d) {
    char dir[KN_PATH_MAX], there[KN_PATH_MAX];
    bool is_endpoint;
    struct kn_err err = {0};
    struct client *c = NULL;
    if (farmdir_choose(d->o->farm, dir, &is_endpoint, &err)) {
        line(d, false, "farm", "%s", err.text);
        return;
    }
    if (!is_endpoint) {
        struct statvfs st;
        existing(dir, there);
        if (access(there, W_OK | X_OK))
            line(d, false, "farm's folder", "%s: %s", there, strerror(errno));
        else if (statvfs(there, &st) == 0) {
            unsigned long long mib = (unsigned long long)st.f_bavail * st.f_frsize / (1 << 20);
            line(d, mib >= DISK_MIB_MIN, "farm's folder", "%s, %llu MiB free", dir, mib);
        }
    }
    struct farmdir f;
    bool ours = !is_endpoint && farmdir_find(dir, &f, &err) == KN_OK;
    if (!is_endpoint && !farmdir_is_locked(dir)) {
        size_t n = ours ? supervise_leftovers(&f, false) : 0;
        if (n > 0)
            line(
                d, false, "farm",
                "%zu of its processes run, and nobody watches over them; kiln up starts the farm anew, kiln down ends "
                "it",
                n);
        else
            line(d, true, "farm", "not up; kiln render starts one for itself, kiln up one that stays");
        return;
    }
    int rc = farm_connect(d->o, &c, &err);
    struct kn_msg q = {.type = KN_MSG_WORKERS_QUERY}, *r = NULL;
    if (rc == KN_OK) rc = client_call(c, &q, KN_MSG_WORKER_LIST, CLIENT_PATIENCE_MS, &r, &err);
    if (rc)
        line(d, false, "farm", "%s", err.text);
    else
        line(d, r->u.worker_list.count > 0, "farm", "up at %s, %zu worker%s", client_endpoint(c),
             r->u.worker_list.count, r->u.worker_list.count == 1 ? "" : "s");
    kn_msg_destroy(r);
    if (rc == KN_OK) check_moving(d, c, ours ? f.redis_socket : "SOCKET");
    if (rc == KN_OK && d->o->repair) repair_farm(d, c);
    client_close(c);
}

/* A run's line. What a killed one left is no fault of this machine's: it waits for the same command. */
static void tell_run(void *ctx, const struct run_info *i) {
    struct doctor *d = ctx;
    struct kn_err err = {0};
    char age[CLI_DURATION_MAX], size[32];
    text_duration((int64_t)i->age_ms, age);
    snprintf(size, sizeof size, "%.1f MiB", (double)i->bytes / (1 << 20));
    const char *out = i->out[0] ? i->out : "an unknown folder";
    d->dead += i->state == RUN_DEAD;
    if (i->state == RUN_DEAD && d->o->repair) {
        int rc = runs_remove_dead(i, &err);
        line(d, rc == KN_OK || rc == KN_EAGAIN, "run",
             rc == KN_OK       ? "%s, for %s, %s old, %s: removed"
             : rc == KN_EAGAIN ? "%s, for %s, %s old, %s: is being gone on with"
                               : "%s, for %s, %s old, %s: cannot be removed",
             i->dir, out, age, size);
        if (rc && rc != KN_EAGAIN) cli_say("%s", err.text);
        d->dead -= rc == KN_OK;
        return;
    }
    static const char *const words[] = {[RUN_ALIVE] = "alive",
                                        [RUN_ABANDONED] = "without its command, ends within a minute",
                                        [RUN_DEAD] = "left by a killed one"};
    line(d, true, "run", "%s, for %s, %s old, %s: %s", i->dir, out, age, size, words[i->state]);
}

static void check_runs(struct doctor *d) {
    struct kn_err err = {0};
    if (d->o->farm) return; /* that farm is asked about */
    const char *home = getenv("KILN_HOME");
    if (home && strstr(home, "://")) return; /* then no render starts a farm of its own */
    if (runs_each(tell_run, d, &err)) line(d, false, "runs", "%s", err.text);
    if (d->dead)
        line(
            d, true, "runs",
            "%zu left by killed ones: the same command goes on with its own, kiln doctor --repair removes them",
            d->dead);
}

static int run(const struct cli_options *o) {
    struct doctor d = {.o = o};
    cli_catch_signals();
    line(&d, true, "kiln", KILN_VERSION);
    kn_machine_read("", &d.machine);
    check_programs(&d);
    check_redis(&d);
    check_model(&d);
    check_machine(&d);
    check_models(&d);
    check_farm(&d);
    check_runs(&d);
    return d.faults ? CLI_FAILED : CLI_DONE;
}

const struct cli_command cmd_doctor = {
    .name = "doctor",
    .usage = "[options]",
    .words = "check this machine",
    .more =
        "Says whether this machine has what a farm needs: Redis, the programs, the model, "
        "memory and how many workers with a model fit in it, room on the disk; whether the farm is up; "
        "and which private farms of renders there are, also those that killed ones left (--repair removes "
        "them, and has a farm that is up look for pictures that nothing names). Status 2 when something is missing.",
    .examples =
        "  kiln doctor\n"
        "  kiln doctor --models ~/models\n"
        "  kiln doctor --repair\n",
    .groups = CLI_G_FARM | CLI_G_MODEL | CLI_G_REPAIR,
    .run = run,
};

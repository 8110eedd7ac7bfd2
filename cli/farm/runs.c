/* See runs.h. */
#include "cli/farm/runs.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "cli/cli.h"
#include "cli/farm/supervise.h"

#define PICTURES ".kiln-farm"
#define ENDING_MS 60000 /* a supervisor ends its farm in less */

/* The first line of DIR/name; false: there is none. */
static bool read_line(const char *dir, const char *name, char out[KN_PATH_MAX]) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    kn_buf_init(&b, KN_PATH_MAX + 1);
    out[0] = '\0';
    if (kn_fs_join(path, sizeof path, dir, name) == KN_OK && kn_fs_read(path, &b, NULL) == KN_OK && b.len > 0)
        snprintf(out, KN_PATH_MAX, "%.*s", (int)strcspn(b.data, "\n"), b.data);
    kn_buf_fini(&b);
    return out[0] != '\0';
}

static int write_line(const char *dir, const char *name, const char *text, struct kn_err *err) {
    char path[KN_PATH_MAX], line[KN_PATH_MAX + 1];
    int rc = kn_fs_join(path, sizeof path, dir, name);
    if (rc) return kn_err_set(err, rc, "%.200s: the path is too long", dir);
    int n = snprintf(line, sizeof line, "%s\n", text);
    return kn_fs_replace(path, line, (size_t)n, false, err);
}

static int runs_home(char out[KN_PATH_MAX], struct kn_err *err) {
    char home[KN_PATH_MAX];
    bool is_endpoint;
    int rc = farmdir_choose(NULL, home, &is_endpoint, err);
    if (rc) return rc;
    if (is_endpoint) return kn_err_set(err, KN_EINVAL, "KILN_HOME: %s is not a folder", home);
    rc = kn_fs_join(out, KN_PATH_MAX, home, "runs");
    return rc ? kn_err_set(err, rc, "KILN_HOME: too long") : KN_OK;
}

/* True when the run's folder `dir` is this user's and works for `out`. A folder that was moved takes its run
 * with it; a copy of one does not, since the run still works for the first. */
static bool works_for(const char *dir, const char *out) {
    char recorded[KN_PATH_MAX], named[KN_PATH_MAX], below[KN_PATH_MAX];
    struct stat st;
    if (lstat(dir, &st) || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
        !read_line(dir, "output", recorded))
        return false;
    if (strcmp(recorded, out) == 0) return true;
    return kn_fs_join(below, sizeof below, recorded, PICTURES) || !read_line(below, "run", named) ||
           strcmp(named, dir) != 0;
}

bool run_is_at(const char *dir) {
    char out[KN_PATH_MAX];
    return read_line(dir, "output", out);
}

static int set_out(const char *out, struct run *r, struct kn_err *err) {
    memset(r, 0, sizeof *r);
    r->users_fd = -1;
    if (!realpath(out, r->out)) return kn_err_set(err, KN_EIO, "%s: %s", out, strerror(errno));
    int rc = kn_fs_join(r->pictures, sizeof r->pictures, r->out, PICTURES);
    return rc ? kn_err_set(err, rc, "%.200s: the path is too long", out) : KN_OK;
}

bool run_find(const char *out, struct run *r) {
    char dir[KN_PATH_MAX];
    return set_out(out, r, NULL) == KN_OK && read_line(r->pictures, "run", dir) && works_for(dir, r->out) &&
           farmdir_find(dir, &r->dir, NULL) == KN_OK;
}

static int make(struct run *r, struct kn_err *err) {
    char home[KN_PATH_MAX], dir[KN_PATH_MAX], name[16];
    uint8_t id[6];
    int rc = runs_home(home, err);
    if (rc) return rc;
    if (getrandom(id, sizeof id, 0) != (ssize_t)sizeof id)
        return kn_err_set(err, KN_EIO, "getrandom: %s", strerror(errno));
    kn_hex(id, sizeof id, name);
    rc = kn_fs_join(dir, sizeof dir, home, name);
    if (rc) return kn_err_set(err, rc, "KILN_HOME: too long");
    rc = farmdir_create(dir, &r->dir, err);
    if (rc == KN_OK) rc = write_line(r->dir.dir, "output", r->out, err);
    if (rc == KN_OK) rc = kn_fs_mkdirs(r->pictures, 0777, err);
    if (rc == KN_OK) rc = write_line(r->pictures, "run", r->dir.dir, err);
    return rc;
}

int run_open(const char *out, struct run *r, struct kn_err *err) {
    bool found = run_find(out, r);
    int rc = KN_OK;
    if (found) {
        char dir[KN_PATH_MAX];
        snprintf(dir, sizeof dir, "%s", r->dir.dir);
        rc = farmdir_create(dir, &r->dir, err);
        if (rc == KN_OK) rc = write_line(r->dir.dir, "output", r->out, err); /* it may have been moved */
    } else {
        rc = set_out(out, r, err);
        if (rc == KN_OK) rc = make(r, err);
    }
    if (rc) return rc;
    uint64_t end = kn_clock_ms() + ENDING_MS;
    while ((rc = farmdir_use(r->dir.dir, &r->users_fd, err)) != KN_OK) {
        if (rc == KN_EIO && !kn_fs_exists(r->dir.dir)) { /* removed as one that a killed command left */
            rc = make(r, err);
            if (rc) return rc;
            continue;
        }
        if (rc != KN_EAGAIN) return rc;
        if (cli_interrupted) return kn_err_set(err, KN_ECANCELED, "interrupted");
        if (kn_clock_ms() > end) return rc;
        usleep(50000);
    }
    return rc;
}

bool run_has_plan(const struct run *r, const char *plan) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    kn_buf_init(&b, 1u << 20);
    bool same = kn_fs_join(path, sizeof path, r->dir.dir, "plan") == KN_OK &&
                kn_fs_read(path, &b, NULL) == KN_OK && b.len == strlen(plan) &&
                memcmp(b.data, plan, b.len) == 0;
    kn_buf_fini(&b);
    return same;
}

int run_write_plan(const struct run *r, const char *plan, struct kn_err *err) {
    char path[KN_PATH_MAX];
    int rc = kn_fs_join(path, sizeof path, r->dir.dir, "plan");
    if (rc) return kn_err_set(err, rc, "%.200s: the path is too long", r->dir.dir);
    return kn_fs_replace(path, plan, strlen(plan), false, err);
}

void run_close(struct run *r) {
    if (r->users_fd >= 0) close(r->users_fd);
    r->users_fd = -1;
}

/* A file that cannot be removed stays for `kiln doctor`: that is no reason to call a run that ended well a failure. */
void run_remove(struct run *r) {
    struct kn_err err = {0};
    if (farmdir_remove_tree(r->pictures, &err) || farmdir_remove_tree(r->dir.dir, &err) ||
        farmdir_remove_tree(r->dir.runtime, &err))
        cli_say("%s", err.text);
    run_close(r);
}

/* ---- all of them */

static uint64_t tree_bytes;

static int add_size(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)path;
    (void)type;
    (void)ftw;
    tree_bytes += (uint64_t)st->st_blocks * 512;
    return 0;
}

static void look_at(const char *dir, struct run_info *i) {
    char pictures[KN_PATH_MAX];
    struct stat st;
    *i = (struct run_info){.state = farmdir_is_used(dir)     ? RUN_ALIVE
                                    : farmdir_is_locked(dir) ? RUN_ABANDONED
                                                             : RUN_DEAD};
    snprintf(i->dir, sizeof i->dir, "%s", dir);
    read_line(dir, "output", i->out);
    if (stat(dir, &st) == 0) {
        uint64_t now = kn_wall_ms(), changed = (uint64_t)st.st_mtime * 1000;
        i->age_ms = now > changed ? now - changed : 0;
    }
    tree_bytes = 0;
    if (nftw(dir, add_size, 16, FTW_PHYS)) tree_bytes = 0;
    if (i->out[0] && works_for(dir, i->out) &&
        kn_fs_join(pictures, sizeof pictures, i->out, PICTURES) == KN_OK &&
        nftw(pictures, add_size, 16, FTW_PHYS)) {
        /* the output folder is not there now */
    }
    i->bytes = tree_bytes;
}

int runs_each(void (*each)(void *ctx, const struct run_info *i), void *ctx, struct kn_err *err) {
    char home[KN_PATH_MAX], dir[KN_PATH_MAX];
    struct run_info i;
    int rc = runs_home(home, err);
    if (rc) return rc;
    DIR *d = opendir(home);
    if (!d) return errno == ENOENT ? KN_OK : kn_err_set(err, KN_EIO, "%s: %s", home, strerror(errno));
    struct dirent *e;
    while ((e = readdir(d))) {
        struct stat st;
        if (e->d_name[0] == '.' || kn_fs_join(dir, sizeof dir, home, e->d_name) || lstat(dir, &st) ||
            !S_ISDIR(st.st_mode))
            continue;
        look_at(dir, &i);
        each(ctx, &i);
    }
    closedir(d);
    return KN_OK;
}

int runs_remove_dead(const struct run_info *i, struct kn_err *err) {
    struct run r = {.users_fd = -1};
    char named[KN_PATH_MAX];
    int lock_fd, rc = farmdir_find(i->dir, &r.dir, err);
    if (rc) return rc;
    rc = farmdir_use(i->dir, &r.users_fd, err);
    if (rc) return rc;
    rc = farmdir_lock(i->dir, &lock_fd, err);
    if (rc) {
        run_close(&r);
        return rc == KN_EEXIST ? KN_EAGAIN : rc;
    }
    supervise_leftovers(&r.dir, true);
    if (i->out[0] && kn_fs_join(r.pictures, sizeof r.pictures, i->out, PICTURES) == KN_OK &&
        read_line(r.pictures, "run", named) && strcmp(named, r.dir.dir) == 0)
        rc = farmdir_remove_tree(r.pictures, err);
    if (rc == KN_OK) rc = farmdir_remove_tree(r.dir.dir, err);
    if (rc == KN_OK) rc = farmdir_remove_tree(r.dir.runtime, err);
    close(lock_fd);
    run_close(&r);
    return rc;
}

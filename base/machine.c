/* See machine.h. */
#include "base/machine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fs.h"

#define TEXT_BYTES_MAX (1u << 20)

/* The text of root/path; NULL: it cannot be read. Borrowed until the next call with b. */
static const char *text_of(struct kn_buf *b, const char *root, const char *path) {
    char whole[KN_PATH_MAX];
    int n = snprintf(whole, sizeof whole, "%s%s", root, path);
    kn_buf_clear(b);
    if (n < 0 || n >= (int)sizeof whole || kn_fs_read(whole, b, NULL)) return NULL;
    return b->data ? b->data : "";
}

/* The number behind `name` at the beginning of a line ("MemTotal:", "oom_kill "). */
static bool number_of(const char *text, const char *name, uint64_t *out) {
    size_t len = strlen(name);
    for (const char *p = text; p; p = strchr(p, '\n'), p = p ? p + 1 : NULL)
        if (strncmp(p, name, len) == 0) return sscanf(p + len, "%" SCNu64, out) == 1;
    return false;
}

/* A file that holds one number; false: there is none, or it says "max" or -1. */
static bool number_in(struct kn_buf *b, const char *root, const char *dir, const char *file, uint64_t *out) {
    char path[KN_PATH_MAX];
    const char *text = kn_fs_join(path, sizeof path, dir, file) ? NULL : text_of(b, root, path);
    return text && *text != '-' && sscanf(text, "%" SCNu64, out) == 1;
}

/* ---- cores and nodes */

/* "0-3,8,10-11" */
static void cpus_of(const char *text, cpu_set_t *out) {
    CPU_ZERO(out);
    for (const char *p = text; *p >= '0' && *p <= '9';) {
        char *end;
        unsigned long from = strtoul(p, &end, 10), to = from;
        if (*end == '-') to = strtoul(end + 1, &end, 10);
        for (size_t i = from; i <= to && i < CPU_SETSIZE; i++) CPU_SET(i, out);
        p = *end == ',' ? end + 1 : end;
    }
}

static void read_cpus(struct kn_buf *b, const char *root, struct kn_machine *m) {
    const char *text = text_of(b, root, "/proc/self/status"), *list = NULL;
    if (text && (list = strstr(text, "\nCpus_allowed_list:")) != NULL) {
        list += strlen("\nCpus_allowed_list:");
        cpus_of(list + strspn(list, " \t"), &m->cpus);
    }
    if (CPU_COUNT(&m->cpus) == 0) CPU_SET(0, &m->cpus);
    m->cores = CPU_COUNT(&m->cpus);
}

static void read_nodes(struct kn_buf *b, const char *root, struct kn_machine *m) {
    cpu_set_t online;
    const char *text = text_of(b, root, "/sys/devices/system/node/online");
    cpus_of(text ? text : "", &online); /* numbers of nodes are written as those of cores are */
    for (size_t i = 0; i < CPU_SETSIZE && m->nodes < KN_NODES_MAX; i++) {
        char path[64];
        struct kn_node *n = &m->node[m->nodes];
        if (!CPU_ISSET(i, &online)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/node/node%zu/cpulist", i);
        if (!(text = text_of(b, root, path))) continue;
        cpus_of(text, &n->cpus);
        CPU_AND(&n->cpus, &n->cpus, &m->cpus);
        n->cores = CPU_COUNT(&n->cpus);
        n->number = (int)i;
        m->nodes += n->cores > 0; /* one with memory alone is none to work on */
    }
    if (m->nodes > 0) return;
    m->nodes = 1;
    m->node[0] = (struct kn_node){.cores = m->cores, .cpus = m->cpus};
}

/* ---- control groups */

/* One controller's tree, as seen from here. */
struct tree {
    bool v2;
    char mount[64], group[KN_PATH_MAX]; /* the process's group below the mount: "" or "/…" */
};

/* The line of /proc/self/cgroup for a controller: "4:memory:/a/b", of v2 "0::/a/b". */
static bool group_of(const char *text, const char *controller, char out[KN_PATH_MAX]) {
    for (const char *p = text; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        const char *names = strchr(p, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) return false;
        size_t len = (size_t)(path - names - 1), want = strlen(controller);
        bool found = len == 0 && want == 0;
        for (const char *n = names + 1; want > 0 && n < path; n += strcspn(n, ",:") + 1)
            found |= strcspn(n, ",:") == want && strncmp(n, controller, want) == 0;
        if (!found) continue;
        size_t end = strcspn(path + 1, "\n");
        if (end >= KN_PATH_MAX) return false;
        memcpy(out, path + 1, end);
        out[end] = '\0';
        if (strcmp(out, "/") == 0) out[0] = '\0';
        return true;
    }
    return false;
}

static bool is_there(const char *root, const char *path) {
    char whole[KN_PATH_MAX];
    return kn_fs_join(whole, sizeof whole, root[0] ? root : "/", path[0] == '/' ? path + 1 : path) == 0 &&
           kn_fs_exists(whole);
}

/* A controller is in the first generation's tree of its name, else in the second's. */
static bool find_tree(struct kn_buf *b, const char *root, const char *controller, struct tree *t) {
    const char *text = text_of(b, root, "/proc/self/cgroup");
    char groups[1 << 12];
    snprintf(groups, sizeof groups, "%s", text ? text : "");
    t->v2 = false;
    snprintf(t->mount, sizeof t->mount, "/sys/fs/cgroup/%s", controller);
    if (group_of(groups, controller, t->group) && is_there(root, t->mount)) return true;
    t->v2 = true;
    snprintf(t->mount, sizeof t->mount, "/sys/fs/cgroup");
    return group_of(groups, "", t->group) && is_there(root, "/sys/fs/cgroup/cgroup.controllers");
}

/* The folder of the process's group, then those above it. False: there is none any more. A group's path that is
 * not there (a container's own group is mounted as the root) is passed over on the way up. */
static bool next_group(struct tree *t, char dir[KN_PATH_MAX], bool first) {
    if (!first) {
        char *slash = strrchr(t->group, '/');
        if (!slash) return false;
        *slash = '\0';
    }
    return snprintf(dir, KN_PATH_MAX, "%s%s", t->mount, t->group) < KN_PATH_MAX;
}

static void read_quota(struct kn_buf *b, const char *root, struct kn_machine *m) {
    struct tree t;
    char dir[KN_PATH_MAX], path[KN_PATH_MAX];
    if (!find_tree(b, root, "cpu", &t)) return;
    for (bool first = true; next_group(&t, dir, first); first = false) {
        uint64_t quota = 0, period = 0;
        if (!t.v2) {
            if (!number_in(b, root, dir, "cpu.cfs_quota_us", &quota) ||
                !number_in(b, root, dir, "cpu.cfs_period_us", &period))
                continue;
        } else {
            const char *text = kn_fs_join(path, sizeof path, dir, "cpu.max") ? NULL : text_of(b, root, path);
            if (!text || sscanf(text, "%" SCNu64 " %" SCNu64, &quota, &period) != 2) continue;
        }
        if (quota == 0 || period == 0) continue;
        uint64_t cores = (quota + period - 1) / period;
        if (cores < (uint64_t)m->cores) m->cores = (int)cores;
    }
}

/* The bytes that the kernel gives up first: pages of files. */
static uint64_t cache_of(struct kn_buf *b, const char *root, const struct tree *t, const char *dir) {
    char path[KN_PATH_MAX];
    uint64_t inactive = 0, active = 0;
    const char *text = kn_fs_join(path, sizeof path, dir, "memory.stat") ? NULL : text_of(b, root, path);
    if (!text || !number_of(text, t->v2 ? "inactive_file " : "total_inactive_file ", &inactive) ||
        !number_of(text, t->v2 ? "active_file " : "total_active_file ", &active))
        return 0;
    return inactive + active;
}

static void limit_memory(struct kn_machine *m, uint64_t limit, uint64_t used) {
    uint64_t left = limit > used ? limit - used : 0;
    if (limit < m->memory_total) m->memory_total = limit;
    if (left >= m->memory_free) return;
    m->memory_free = left;
    m->memory_limited = true;
}

static void read_groups_memory(struct kn_buf *b, const char *root, struct kn_machine *m) {
    static const char *const limits[2][3] = {{"memory.limit_in_bytes", NULL},
                                             {"memory.max", "memory.high", NULL}};
    struct tree t;
    char dir[KN_PATH_MAX], path[KN_PATH_MAX];
    bool counted = false;
    if (!find_tree(b, root, "memory", &t)) return;
    for (bool first = true; next_group(&t, dir, first); first = false) {
        uint64_t limit, used;
        const char *text = NULL;
        if (!counted && !kn_fs_join(path, sizeof path, dir, t.v2 ? "memory.events" : "memory.oom_control"))
            text = text_of(b, root, path);
        counted = counted || (text && number_of(text, "oom_kill ", &m->oom_kills));
        if (!number_in(b, root, dir, t.v2 ? "memory.current" : "memory.usage_in_bytes", &used)) continue;
        uint64_t cache = cache_of(b, root, &t, dir);
        used = used > cache ? used - cache : 0;
        for (const char *const *name = limits[t.v2]; *name; name++)
            if (number_in(b, root, dir, *name, &limit)) limit_memory(m, limit, used);
    }
}

static void read_memory(struct kn_buf *b, const char *root, struct kn_machine *m) {
    const char *text = text_of(b, root, "/proc/meminfo");
    uint64_t kib;
    if (text && number_of(text, "MemTotal:", &kib)) m->memory_total = kib << 10;
    if (text && number_of(text, "MemAvailable:", &kib)) m->memory_free = kib << 10;
    if ((text = text_of(b, root, "/proc/vmstat")) != NULL && number_of(text, "oom_kill ", &kib))
        m->oom_kills = kib;
    read_groups_memory(b, root, m);
}

void kn_machine_read(const char *root, struct kn_machine *out) {
    struct kn_buf b;
    kn_buf_init(&b, TEXT_BYTES_MAX);
    memset(out, 0, sizeof *out);
    read_cpus(&b, root, out);
    read_quota(&b, root, out);
    read_nodes(&b, root, out);
    read_memory(&b, root, out);
    kn_buf_fini(&b);
}

const char *kn_bytes_text(uint64_t bytes, char out[16]) {
    if (bytes < 999500000)
        snprintf(out, 16, "%" PRIu64 " MB", (bytes + 500000) / 1000000);
    else
        snprintf(out, 16, "%.1f GB", (double)bytes / 1e9);
    return out;
}

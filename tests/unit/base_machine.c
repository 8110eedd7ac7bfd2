/* What a process may use of its machine, read from trees of files that look like /proc and /sys of machines that
 * are not at hand: a NUMA machine, a container, both generations of control groups. */
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/machine.h"
#include "tests/unit/check.h"

#define GB 1000000000ull
#define KIB_OF_GB 976562ull /* 1 GB in the unit of /proc/meminfo, rounded down */

static char root[64];

/* Writes root/path, with the folders above it. */
static void put(const char *path, const char *text) {
    char whole[512], dir[512];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    snprintf(dir, sizeof dir, "%s", whole);
    *strrchr(dir, '/') = '\0';
    CHECK_INT(kn_fs_mkdirs(dir, 0755, NULL), 0);
    CHECK_INT(kn_fs_replace(whole, text, strlen(text), false, NULL), 0);
}

/* A machine of 64 GB with 40 free, on which the process may use all of `cpus`. */
static void begin(const char *cpus) {
    char text[256];
    memcpy(root, "/tmp/kn-machine-XXXXXX", sizeof "/tmp/kn-machine-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
    snprintf(text, sizeof text, "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t%s\nMems_allowed:\t1\n",
             cpus);
    put("/proc/self/status", text);
    snprintf(text, sizeof text, "MemTotal: %llu kB\nMemFree: 12 kB\nMemAvailable: %llu kB\n", 64 * KIB_OF_GB,
             40 * KIB_OF_GB);
    put("/proc/meminfo", text);
    put("/proc/vmstat", "pgfault 17\noom_kill 3\n");
}

static struct kn_machine end(void) {
    struct kn_machine m;
    char command[128];
    kn_machine_read(root, &m);
    snprintf(command, sizeof command, "rm -r %s", root);
    CHECK(system(command) == 0);
    return m;
}

static unsigned long long tenths(uint64_t bytes) {
    return (bytes + GB / 20) / (GB / 10);
}

TEST(a_plain_machine_has_its_cores_on_one_node_and_the_memory_that_is_available) {
    begin("0-3,8,10-11");
    struct kn_machine m = end();
    CHECK_INT(m.cores, 7);
    CHECK_INT(m.nodes, 1);
    CHECK_INT(m.node[0].cores, 7);
    CHECK(CPU_ISSET(8, &m.cpus) && !CPU_ISSET(9, &m.cpus));
    CHECK_INT(tenths(m.memory_total), 640);
    CHECK_INT(tenths(m.memory_free), 400);
    CHECK(!m.memory_limited);
    CHECK_INT(m.oom_kills, 3);
}

TEST(a_node_counts_with_the_cores_that_the_process_may_use) {
    begin("2-5,9"); /* taskset: two cores of the first node, three of the second, none of the third */
    put("/sys/devices/system/node/online", "0-1,4,7\n");
    put("/sys/devices/system/node/node0/cpulist", "0-3\n");
    put("/sys/devices/system/node/node1/cpulist", "4-7,8-9\n");
    put("/sys/devices/system/node/node4/cpulist", "12-15\n");
    put("/sys/devices/system/node/node7/cpulist", "\n"); /* memory alone */
    struct kn_machine m = end();
    CHECK_INT(m.nodes, 2);
    CHECK_INT(m.node[0].cores, 2);
    CHECK_INT(m.node[1].number, 1);
    CHECK_INT(m.node[1].cores, 3);
    CHECK(CPU_ISSET(9, &m.node[1].cpus) && !CPU_ISSET(6, &m.node[1].cpus));
}

TEST(the_tightest_limit_of_the_second_generation_counts_wherever_it_stands) {
    begin("0-15");
    put("/proc/self/cgroup", "0::/user.slice/kiln.service\n");
    put("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    put("/sys/fs/cgroup/user.slice/memory.max", "30000000000\n");
    put("/sys/fs/cgroup/user.slice/memory.current", "28000000000\n"); /* 20 GB of it are files' pages */
    put("/sys/fs/cgroup/user.slice/memory.stat",
        "anon 1\ninactive_file 15000000000\nactive_file 5000000000\n");
    put("/sys/fs/cgroup/user.slice/cpu.max", "350000 100000\n");
    put("/sys/fs/cgroup/user.slice/kiln.service/memory.max", "max\n");
    put("/sys/fs/cgroup/user.slice/kiln.service/memory.high", "25000000000\n");
    put("/sys/fs/cgroup/user.slice/kiln.service/memory.current", "4000000000\n");
    put("/sys/fs/cgroup/user.slice/kiln.service/memory.events", "low 0\nhigh 9\noom 2\noom_kill 1\n");
    put("/sys/fs/cgroup/user.slice/kiln.service/cpu.max", "max 100000\n");
    struct kn_machine m = end();
    CHECK_INT(m.cores, 4); /* three and a half */
    CHECK_INT(tenths(m.memory_total), 250);
    CHECK_INT(tenths(m.memory_free), 210); /* 25 - 4; above it there would be 30 - 8 */
    CHECK(m.memory_limited);
    CHECK_INT(m.oom_kills, 1); /* the group's own count, not the machine's */
}

TEST(a_container_sees_its_own_group_as_the_root_of_what_is_mounted) {
    begin("0-7");
    put("/proc/self/cgroup", "0::/docker/5a2b\n"); /* a path of the host's: nothing is there */
    put("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    put("/sys/fs/cgroup/memory.max", "8000000000\n");
    put("/sys/fs/cgroup/memory.current", "500000000\n");
    put("/sys/fs/cgroup/cpu.max", "200000 100000\n");
    struct kn_machine m = end();
    CHECK_INT(m.cores, 2);
    CHECK_INT(tenths(m.memory_free), 75);
}

TEST(limits_of_the_first_generation_are_read_too) {
    begin("0-7");
    put("/proc/self/cgroup", "5:memory:/jobs/7\n4:cpuset:/\n3:cpu,cpuacct:/jobs/7\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "24000000000\n");
    put("/sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "10000000000\n");
    put("/sys/fs/cgroup/memory/jobs/7/memory.usage_in_bytes", "6000000000\n");
    put("/sys/fs/cgroup/memory/jobs/7/memory.stat", "total_inactive_file 1000000000\ntotal_active_file 0\n");
    put("/sys/fs/cgroup/memory/jobs/7/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    put("/sys/fs/cgroup/cpu/jobs/7/cpu.cfs_quota_us", "300000\n");
    put("/sys/fs/cgroup/cpu/jobs/7/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    struct kn_machine m = end();
    CHECK_INT(m.cores, 3);
    CHECK_INT(tenths(m.memory_total), 100);
    CHECK_INT(tenths(m.memory_free), 50);
    CHECK_INT(m.oom_kills, 2);
}

TEST(a_limit_that_is_used_up_leaves_nothing) {
    begin("0");
    put("/proc/self/cgroup", "0::/\n");
    put("/sys/fs/cgroup/cgroup.controllers", "memory\n");
    put("/sys/fs/cgroup/memory.max", "1000\n");
    put("/sys/fs/cgroup/memory.current", "2000\n");
    struct kn_machine m = end();
    CHECK_INT(m.memory_free, 0);
    CHECK(m.memory_limited);
}

TEST(without_proc_and_sys_there_is_one_core_and_no_figure_of_memory) {
    memcpy(root, "/tmp/kn-machine-XXXXXX", sizeof "/tmp/kn-machine-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
    struct kn_machine m = end();
    CHECK_INT(m.cores, 1);
    CHECK_INT(m.nodes, 1);
    CHECK_INT(m.memory_total, 0);
}

TEST(this_machine_has_what_the_kernel_says_elsewhere) {
    struct kn_machine m;
    cpu_set_t set;
    kn_machine_read("", &m);
    CHECK_INT(sched_getaffinity(0, sizeof set, &set), 0);
    CHECK(CPU_EQUAL(&set, &m.cpus));
    CHECK(m.cores >= 1 && m.cores <= CPU_COUNT(&set));
    CHECK(m.memory_free > 0 && m.memory_free <= m.memory_total);
    CHECK(m.memory_total <= (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
}

TEST(bytes_are_written_as_people_read_them) {
    char text[16];
    CHECK_STR(kn_bytes_text(14640000000, text), "14.6 GB");
    CHECK_STR(kn_bytes_text(380400000, text), "380 MB");
    CHECK_STR(kn_bytes_text(999500000, text), "1.0 GB");
    CHECK_STR(kn_bytes_text(0, text), "0 MB");
}

/* A farm's folder: who has it, what runs in it, where its endpoint is. */
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/args.h"
#include "cli/farm/farmdir.h"
#include "tests/unit/check.h"

static char dir[KN_PATH_MAX];
static struct kn_err err;
static struct farmdir farm;

static void fresh(void) {
    static const char *const template = "/tmp/kiln-test-XXXXXX";
    strcpy(dir, template);
    CHECK(mkdtemp(dir) != NULL);
    CHECK_INT(farmdir_create(dir, &farm, &err), 0);
}

static void sweep(void) {
    CHECK_INT(farmdir_remove_tree(dir, &err), 0);
    CHECK_INT(farmdir_remove_tree(farm.runtime, &err), 0);
}

TEST(sockets_live_in_a_short_folder_of_this_user_alone) {
    struct stat st;
    fresh();
    CHECK(strlen(farm.redis_socket) < 100 && strlen(farm.endpoint) < 106);
    CHECK_INT(stat(farm.runtime, &st), 0);
    CHECK_INT(st.st_mode & 0777, 0700);
    struct farmdir again;
    CHECK_INT(farmdir_create(dir, &again, &err), 0); /* the same folder has the same sockets */
    CHECK_STR(again.endpoint, farm.endpoint);
    sweep();
}

TEST(a_runtime_folder_that_is_a_link_is_refused) {
    fresh();
    CHECK_INT(farmdir_remove_tree(farm.runtime, &err), 0);
    CHECK_INT(symlink("/tmp", farm.runtime), 0);
    CHECK(farmdir_create(dir, &farm, &err) < 0);
    CHECK(strstr(err.text, "not a directory of this user") != NULL);
    CHECK_INT(unlink(farm.runtime), 0);
    CHECK_INT(farmdir_remove_tree(dir, &err), 0);
}

TEST(the_lock_has_one_holder_and_goes_with_it) {
    int fd, second;
    fresh();
    CHECK(!farmdir_is_locked(dir));
    CHECK_INT(farmdir_lock(dir, &fd, &err), 0);
    CHECK(farmdir_is_locked(dir));
    CHECK_INT(farmdir_lock(dir, &second, &err), KN_EEXIST);
    close(fd);
    CHECK(!farmdir_is_locked(dir));
    CHECK_INT(farmdir_lock(dir, &fd, &err), 0);
    close(fd);
    sweep();
}

TEST(a_private_farm_has_one_user_and_goes_with_it) {
    int a, b;
    fresh();
    CHECK(!farmdir_is_used(dir));
    CHECK_INT(farmdir_use(dir, &a, &err), 0);
    CHECK(farmdir_is_used(dir));
    CHECK_INT(farmdir_use(dir, &b, &err), KN_EAGAIN);
    close(a);
    CHECK(!farmdir_is_used(dir));
    CHECK_INT(farmdir_use(dir, &b, &err), 0);
    close(b);
    sweep();
}

TEST(a_pid_file_counts_while_its_process_lives) {
    fresh();
    CHECK_INT(farmdir_pid(dir, "redis"), 0);
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    CHECK_INT(farmdir_write_pid(&farm, "redis", child, &err), 0);
    CHECK_INT(farmdir_pid(dir, "redis"), child);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK_INT(farmdir_pid(dir, "redis"), 0);
    CHECK_INT(farmdir_write_pid(&farm, "redis", getpid(), &err), 0);
    farmdir_remove_pid(&farm, "redis");
    CHECK_INT(farmdir_pid(dir, "redis"), 0);
    sweep();
}

TEST(the_endpoint_is_read_from_the_folder_or_given) {
    char out[KN_ENDPOINT_MAX + 1], path[KN_PATH_MAX];
    fresh();
    CHECK_INT(farmdir_endpoint(dir, 0, out, &err), KN_ENOENT);
    CHECK(strstr(err.text, "no farm is up at ") != NULL);
    CHECK_INT(farmdir_path(&farm, "endpoint", path), 0);
    CHECK_INT(kn_fs_replace(path, "ipc:///tmp/x\n", 13, false, &err), 0);
    CHECK_INT(farmdir_endpoint(dir, 0, out, &err), 0);
    CHECK_STR(out, "ipc:///tmp/x");
    CHECK_INT(farmdir_endpoint("tcp://host:5600", 0, out, &err), 0);
    CHECK_STR(out, "tcp://host:5600");
    sweep();
}

TEST(the_farm_is_the_option_then_KILN_HOME_then_the_home_folder) {
    char out[KN_PATH_MAX];
    bool endpoint;
    setenv("KILN_HOME", "/k", 1);
    setenv("HOME", "/h", 1);
    CHECK_INT(farmdir_choose("/opt", out, &endpoint, &err), 0);
    CHECK_STR(out, "/opt");
    CHECK_INT(farmdir_choose(NULL, out, &endpoint, &err), 0);
    CHECK_STR(out, "/k");
    unsetenv("KILN_HOME");
    CHECK_INT(farmdir_choose(NULL, out, &endpoint, &err), 0);
    CHECK_STR(out, "/h/.kiln");
    CHECK(!endpoint);
    CHECK_INT(farmdir_choose("tcp://h:1", out, &endpoint, &err), 0);
    CHECK(endpoint);
    unsetenv("HOME");
    CHECK_INT(farmdir_choose(NULL, out, &endpoint, &err), KN_EINVAL);
}

TEST(removing_a_tree_follows_no_link) {
    char inside[KN_PATH_MAX], outside[] = "/tmp/kiln-kept-XXXXXX";
    fresh();
    int fd = mkstemp(outside);
    CHECK(fd >= 0);
    close(fd);
    CHECK_INT(farmdir_path(&farm, "log/link", inside), 0);
    CHECK_INT(symlink(outside, inside), 0);
    sweep();
    CHECK_INT(access(dir, F_OK), -1);
    CHECK_INT(access(outside, F_OK), 0);
    unlink(outside);
}

/* kiln down: the farm of kiln up ends. */
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/commands/commands.h"
#include "cli/farm/supervise.h"

#define DOWN_MS 90000

/* True when a farm was there that nobody watched over, and is no more. */
static bool end_unwatched(const char *dir) {
    struct farmdir f;
    int lock_fd;
    if (farmdir_find(dir, &f, NULL) || farmdir_lock(dir, &lock_fd, NULL)) return false;
    size_t n = supervise_leftovers(&f, true);
    if (n > 0) cli_say("its supervisor had been killed; ended %zu processes that nobody watched over", n);
    close(lock_fd);
    return n > 0;
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    char dir[KN_PATH_MAX];
    bool is_endpoint, told = false;
    cli_catch_signals();
    int rc = farmdir_choose(o->farm, dir, &is_endpoint, &err);
    if (rc == KN_OK && is_endpoint)
        rc = kn_err_set(&err, KN_EINVAL, "--farm: %s is an endpoint; kiln down takes a farm's folder", dir);
    if (rc) return cli_fail(&err);
    pid_t pid = farmdir_pid(dir, "supervisor");
    if (!farmdir_is_locked(dir) && end_unwatched(dir)) return CLI_DONE;
    if (!farmdir_is_locked(dir) || pid == 0) {
        cli_say("no farm is up at %s", dir);
        return CLI_NO_FARM;
    }
    uint64_t start = kn_clock_ms();
    if (kill(pid, o->now ? SIGQUIT : SIGTERM)) {
        cli_say("no farm is up at %s", dir);
        return CLI_NO_FARM;
    }
    while (farmdir_is_locked(dir)) {
        uint64_t waited = kn_clock_ms() - start;
        if (cli_interrupted) {
            cli_say("interrupted; the farm goes on ending");
            return CLI_INTERRUPTED;
        }
        if (waited > 3000 && !told) {
            cli_say("waiting for the workers to finish what they render");
            told = true;
        }
        if (waited > DOWN_MS) {
            cli_say("the farm at %s does not end; see %s/log", dir, dir);
            return CLI_FAILED;
        }
        usleep(20000);
    }
    return CLI_DONE;
}

const struct cli_command cmd_down = {
    .name = "down",
    .usage = "[options]",
    .words = "end that farm",
    .more =
        "Ends the farm: the workers finish or hand back what they render, then the coordinator "
        "and Redis end. Batches stay, and go on with the next kiln up.",
    .examples =
        "  kiln down\n"
        "  kiln down --now\n",
    .groups = CLI_G_FARM | CLI_G_NOW,
    .run = run,
};

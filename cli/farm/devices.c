/* See devices.h. */
#include "cli/farm/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/farm/farmdir.h"

/* Counts the lines that kiln-worker --list-devices prints. Its words when it fails come by the same pipe. */
static int count_all(struct kn_err *err, int *out) {
    char program[KN_PATH_MAX], line[1024], last[1024] = "no answer";
    int fds[2], status = 1, rc = farmdir_sibling("kiln-worker", program, err);
    *out = 0;
    if (rc) return rc;
    if (pipe2(fds, O_CLOEXEC)) return kn_err_set(err, KN_EIO, "pipe: %s", strerror(errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (dup2(fds[1], 1) >= 0 && dup2(fds[1], 2) >= 0)
            execl(program, program, "--list-devices", (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    FILE *f = fdopen(fds[0], "r");
    while (pid > 0 && f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        snprintf(last, sizeof last, "%s", line);
        ++*out;
    }
    if (f)
        fclose(f);
    else
        close(fds[0]);
    if (pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 && *out > 0) return 0;
    if (status == 0) return kn_err_set(err, KN_ECONFIG, "--device all: there is no GPU here");
    const char *words = strncmp(last, "kiln-worker: ", 13) == 0 ? last + 13 : last;
    return kn_err_set(err, KN_ECONFIG, "--device all: %.900s", words);
}

int devices_choose(const struct cli_options *o, struct worker_devices *out, struct kn_err *err) {
    int rc, count;
    out->count = 0;
    if (!o->device || strcmp(o->device, "cpu") == 0) return KN_OK;
    if (o->workers >= 0)
        return kn_err_set(err, KN_EINVAL,
                          "--workers and --device: there is one worker a GPU; leave --workers out");
    if (strcmp(o->device, "all") == 0) {
        if ((rc = count_all(err, &count)) != 0) return rc;
        for (; out->count < count && out->count < CLI_DEVICES_MAX; out->count++)
            snprintf(out->v[out->count], sizeof out->v[0], "%d", out->count);
        return KN_OK;
    }
    for (const char *p = o->device;; p++) {
        size_t len = strcspn(p, ",");
        if (len == 0 || len > KN_DEVICE_MAX || out->count == CLI_DEVICES_MAX)
            return kn_err_set(err, KN_EINVAL, "--device: \"%.80s\" is none of cpu, all, or a list as in 0,1",
                              o->device);
        char *to = out->v[out->count];
        memcpy(to, p, len);
        to[len] = '\0';
        for (int i = 0; i < out->count; i++)
            if (strcmp(out->v[i], to) == 0)
                return kn_err_set(err, KN_EINVAL, "--device: %.80s is named twice", to);
        out->count++;
        p += len;
        if (*p == '\0') return KN_OK;
    }
}

/* An engine in a process of its own (worker/engine_child.c), with the simulated one in it: a task's fate is that of the
 * task alone, so each test knows whom to blame. */
#include "tests/unit/check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "worker/engine.h"

#define TASKS 12
#define KEPT 8

static struct {
    struct engine *engine;
    struct engine_model model;
    struct engine_sim_options sim;
    struct kn_task tasks[TASKS];
    atomic_bool stop;
    int pictures[TASKS], failed[TASKS], code; /* how often each came, or was reported; the last code */
    char reason[KN_REASON_MAX + 1];
    struct {
        void *what; /* NULL: none */
        const uint8_t *rgb;
        int task;
    } kept[KEPT]; /* the last pictures */
    unsigned next;
} t;

static void key_of(int i, kn_digest key) {
    kn_task_key(&t.tasks[i], t.model.info.sha256, key);
}

/* The pixels are those of the task, where they are. */
static void check_kept(unsigned at) {
    static uint8_t want[1024 * 1024 * 3];
    const struct kn_task *task = &t.tasks[t.kept[at].task];
    kn_digest key;
    key_of(t.kept[at].task, key);
    engine_sim_draw(key, task->width, task->height, want);
    CHECK_MEM(t.kept[at].rgb, want, (size_t)task->width * task->height * 3);
}

static void let_go(unsigned at) {
    if (!t.kept[at].what) return;
    check_kept(at);
    t.engine->ops->let_go(t.kept[at].what);
    t.kept[at].what = NULL;
}

static int on_image(void *ctx, const struct kiln_image *image) {
    int first = *(int *)ctx, i = first + image->index;
    CHECK(i >= 0 && i < TASKS && image->task == &t.tasks[i]);
    if (image->status) {
        CHECK_INT(image->status, KN_ENAN);
        t.failed[i]++;
        return 0;
    }
    t.pictures[i]++;
    let_go(t.next % KEPT);
    t.kept[t.next % KEPT].what = t.engine->ops->keep(image);
    t.kept[t.next % KEPT].rgb = image->rgb;
    t.kept[t.next++ % KEPT].task = i;
    return 0;
}

static void on_failed(void *ctx, int index, int code, const char *reason) {
    t.failed[*(int *)ctx + index]++;
    t.code = code;
    snprintf(t.reason, sizeof t.reason, "%s", reason);
}

static int (*kill_with)(pid_t, int);
static const char *place;

static void open_with(const char *spec, uint32_t size) {
    static char prompt[] = "p", none[] = "";
    struct engine_options eo = {.spec = spec,
                                .program = KILN_WORKER,
                                .place = place,
                                .hang_ms = 300,
                                .kill_ms = 300,
                                .kill = kill_with};
    struct kn_err err = {0};
    memset(&t, 0, sizeof t);
    kn_log_level_now = getenv("KILN_TEST_LOG") ? KN_LOG_DEBUG : (enum kn_log_level) - 1;
    CHECK_INT(engine_sim_parse(spec, &t.sim, NULL), 0);
    engine_sim_model(&t.sim, &t.model.info);
    for (int i = 0; i < TASKS; i++)
        t.tasks[i] = (struct kn_task){.prompt = prompt,
                                      .negative = none,
                                      .seed = (uint64_t)i,
                                      .cfg = 7,
                                      .steps = 10,
                                      .width = size,
                                      .height = size,
                                      .sampler = KN_SAMPLER_EULER,
                                      .schedule = KN_SCHEDULE_NORMAL,
                                      .set = KN_SET_ALL};
    CHECK_MSG(engine_open_child(&eo, &t.model, 1, &t.engine, &err) == 0, "%s", err.text);
}

static void done(void) {
    for (unsigned i = 0; i < KEPT; i++) let_go(i);
    engine_close(t.engine);
}

static struct engine_work work_of(int first, int count) {
    return (struct engine_work){.model = &t.model.info,
                                .tasks = t.tasks + first,
                                .count = count,
                                .attempt = 1,
                                .stop = &t.stop,
                                .failed = on_failed};
}

static int render(int first, int count, struct kn_err *err) {
    struct engine_work w = work_of(first, count);
    struct kiln_callbacks cb = {.ctx = &first, .image = on_image};
    return t.engine->ops->render(t.engine, &w, &cb, err);
}

/* How many of these have that fate; each of them was reported, and each other came, once. */
static int check_fates(int first, int count, enum engine_sim_fate fate) {
    int guilty = 0;
    for (int i = first; i < first + count; i++) {
        kn_digest key;
        key_of(i, key);
        bool is = engine_sim_fate(&t.sim, key, 1) == fate;
        CHECK_MSG(t.failed[i] == is && t.pictures[i] == !is, "task %d: %d failed, %d pictures", i,
                  t.failed[i], t.pictures[i]);
        guilty += is;
    }
    return guilty;
}

TEST(the_engine_is_what_it_is_in_one_process) {
    open_with("sim:ms=0,batch=5", 64);
    CHECK_STR(t.engine->backend, "sim-1");
    CHECK_INT(t.engine->batch_max, 5);
    CHECK(t.engine->ops->begin == NULL);
    CHECK_INT(render(0, TASKS, NULL), 0);
    CHECK_INT(check_fates(0, TASKS, SIM_CRASH), 0);
    done();
    struct kn_err err = {0};
    struct engine_options eo = {.spec = "cpuu", .program = KILN_WORKER};
    CHECK_INT(engine_open_child(&eo, &t.model, 1, &t.engine, &err), KN_EINVAL);
    CHECK_MSG(strstr(err.text, "not an engine"), "%s", err.text);
}

TEST(a_crash_is_told_of_its_image_alone_and_finished_pictures_outlive_the_child) {
    open_with("sim:ms=0,crash=0.3,seed=5", 64);
    CHECK_INT(render(0, TASKS, NULL), 0);
    int guilty = check_fates(0, TASKS, SIM_CRASH);
    CHECK(guilty > 1 && guilty < TASKS - 2);
    CHECK_INT(t.code, KN_EGONE);
    CHECK_MSG(strstr(t.reason, "died while it rendered this image: signal 9"), "%s", t.reason);
    done(); /* looks at pixels that several dead children finished */
}

/* More than the ring holds goes through it, while some of it is kept. */
TEST(pictures_that_are_kept_are_not_written_over) {
    open_with("sim:ms=0", 1024);
    for (int round = 0; round < 4; round++) CHECK_INT(render(0, TASKS, NULL), 0);
    for (int i = 0; i < TASKS; i++) CHECK_INT(t.pictures[i], 4);
    for (unsigned i = 0; i < KEPT; i++) check_kept(i);
    done();
}

TEST(a_hang_is_told_from_the_times_of_the_steps) {
    open_with("sim:ms=20,hang=0.3,seed=5", 64);
    CHECK_INT(render(0, TASKS, NULL), 0);
    CHECK(check_fates(0, TASKS, SIM_HANG) > 1);
    CHECK_INT(t.code, KN_ETIMEOUT);
    CHECK_MSG(strstr(t.reason, "no progress for"), "%s", t.reason);
    done();
}

/* A step of 100 ms may take ten times as long as the rest: what counts is the step, not the least of 300 ms. */
TEST(slow_steps_are_no_hang) {
    open_with("sim:ms=4000", 64);
    CHECK_INT(render(0, 1, NULL), 0);
    CHECK_INT(t.pictures[0], 1);
    done();
}

static void *stop_soon(void *arg) {
    (void)arg;
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    atomic_store(&t.stop, true);
    return NULL;
}

TEST(an_engine_that_does_not_stop_is_ended_and_the_next_one_renders) {
    open_with("sim:ms=60000", 64);
    struct kn_err err = {0};
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, stop_soon, NULL), 0);
    CHECK_INT(render(0, 1, &err), KN_ECANCELED);
    pthread_join(thread, NULL);
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD); /* no other is there before one is needed */
    CHECK_INT(t.pictures[0], 0);
    CHECK_INT(t.failed[0], 0);
    done();
}

/* ---- in stages */

struct part {
    struct engine_work work;
    struct kiln_callbacks cb;
    int first, count;
    struct engine_minibatch *b;
};

static void begin(struct part *p, int first, int count) {
    struct kn_err err = {0};
    *p = (struct part){.work = work_of(first, count), .first = first};
    p->cb = (struct kiln_callbacks){.ctx = &p->first, .image = on_image};
    CHECK_MSG(t.engine->ops->begin(t.engine, &p->work, 0, &p->cb, &p->b, &p->count, &err) == 0, "%s",
              err.text);
    CHECK_INT(p->count, count);
}

static void denoise(struct part *p) {
    struct kn_err err = {0};
    CHECK_MSG(t.engine->ops->denoise(p->b, &err) == 0, "%s", err.text);
}

static void finish(struct part *p) {
    struct kn_err err = {0};
    CHECK_MSG(t.engine->ops->finish(p->b, &err) == 0, "%s", err.text);
    t.engine->ops->drop(p->b);
}

TEST(in_stages_the_guilty_of_a_minibatch_is_found_and_what_waited_is_done_too) {
    static const char *const specs[] = {"sim:ms=1,crash=0.3,seed=5,staged=4",
                                        "sim:ms=1,hang=0.3,seed=5,staged=4"};
    for (int k = 0; k < 2; k++) {
        struct part a, b, c;
        open_with(specs[k], 64);
        begin(&a, 0, 4);
        denoise(&a); /* some of these end the child: they are found one at a time */
        begin(&b, 4, 4);
        begin(&c, 8, 4);
        finish(&a);
        denoise(&b);
        denoise(&c); /* its child is dead by now */
        finish(&b);
        finish(&c);
        CHECK(check_fates(0, TASKS, k ? SIM_HANG : SIM_CRASH) > 1);
        done();
    }
}

/* ---- children that do not end */

static pid_t not_killed;

static int kill_nobody(pid_t pid, int number) {
    (void)number;
    not_killed = pid;
    return 0;
}

/* As a driver that hangs: it does not hear that its sockets end, either. */
static int freeze_instead(pid_t pid, int number) {
    (void)number;
    not_killed = pid;
    return kill(pid, SIGSTOP);
}

TEST(a_child_that_does_not_die_is_the_last_one) {
    kill_with = freeze_instead;
    open_with("sim:ms=20,hang=1", 64);
    kill_with = NULL;
    struct kn_err err = {0};
    CHECK_INT(render(0, 2, &err), KN_EDEVICE);
    CHECK_MSG(strstr(err.text, "does not end, though it was killed"), "%s", err.text);
    CHECK_INT(t.failed[0], 1); /* that it hung is known all the same */
    CHECK_INT(t.failed[1] + t.pictures[1], 0);
    CHECK_INT(render(1, 1, &err), KN_EDEVICE);
    CHECK_INT(kill(not_killed, 0), 0); /* it is there, and no other was started beside it */
    CHECK_INT(waitpid(-1, NULL, WNOHANG), 0);
    kill(not_killed, SIGKILL);
    engine_linger(t.engine); /* until it is gone */
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    done();
}

/* Whoever closes the sockets without a word is dead: the child ends too, at whatever it is. */
TEST(a_child_ends_with_its_worker) {
    int fd[2];
    char pid[32] = "";
    CHECK_INT(pipe(fd), 0);
    fflush(NULL);
    pid_t worker = fork();
    if (worker == 0) {
        if (setjmp(check_jump) != 0) _exit(1);
        kill_with = kill_nobody; /* notes the child's number as it hangs */
        open_with("sim:ms=20,hang=1", 64);
        (void)!render(0, 1, NULL);
        dprintf(fd[1], "%d", (int)not_killed);
        kill(getpid(), SIGKILL);
    }
    int status;
    CHECK(waitpid(worker, &status, 0) == worker && WIFSIGNALED(status));
    close(fd[1]);
    CHECK(read(fd[0], pid, sizeof pid - 1) > 0);
    close(fd[0]);
    pid_t child = (pid_t)atoi(pid);
    CHECK(child > 0);
    for (int i = 0; i < 2000 && kill(child, 0) == 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    CHECK(kill(child, 0) != 0);
}

static atomic_bool ended;

static void *end_soon(void *pid) {
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    atomic_store(&ended, true);
    kill(*(pid_t *)pid, SIGKILL);
    return NULL;
}

/* As after a kill -9 of a worker that is started again at once: its child may hold the device a little longer. */
TEST(a_child_waits_for_the_one_of_a_worker_that_was_killed) {
    char name[64];
    int fd[2];
    pid_t child = 0;
    snprintf(name, sizeof name, "test %d", (int)getpid());
    place = name;
    CHECK_INT(pipe(fd), 0);
    fflush(NULL);
    pid_t worker = fork();
    if (worker == 0) {
        if (setjmp(check_jump) != 0) _exit(1);
        kill_with = freeze_instead;
        open_with("sim:ms=20,hang=1", 64);
        (void)!render(0, 1, NULL);
        if (write(fd[1], &not_killed, sizeof not_killed) < 0) _exit(1);
        kill(getpid(), SIGKILL);
    }
    CHECK(read(fd[0], &child, sizeof child) == (ssize_t)sizeof child && child > 0);
    CHECK(waitpid(worker, NULL, 0) == worker);
    close(fd[0]);
    close(fd[1]);
    /* It is there, and does not hear that its worker is dead. */
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, end_soon, &child), 0);
    open_with("sim:ms=0", 64);
    CHECK(atomic_load(&ended));
    pthread_join(thread, NULL);
    CHECK_INT(render(0, 1, NULL), 0);
    done();
    place = NULL;
}

/* Two that live and have one name do not wait for each other: whose it is the farm says. */
TEST(two_workers_of_one_name_have_a_child_each) {
    char name[64];
    snprintf(name, sizeof name, "test two %d", (int)getpid());
    place = name;
    open_with("sim:ms=0", 64);
    struct engine *first = t.engine;
    open_with("sim:ms=0", 64);
    engine_close(first);
    CHECK_INT(render(0, 1, NULL), 0);
    done();
    place = NULL;
}

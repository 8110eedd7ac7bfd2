/* The engine as the worker sees it, with three implementations: the diffusion engine (engine_kiln.c, over
 * kernels/kiln.h), a simulated one that renders small pictures at once (engine_sim.c), so that a farm can
 * be tested fast and without a model, and one that has either of the two run in a process of its own
 * (engine_child.c), which is what kiln-worker uses: a crash or a hang costs that process alone.
 *
 * An engine is opened and closed by the thread that wires the program; between, render() is called by one
 * thread at a time, or else the stages are. The members of `struct engine` but `now` never change while it is
 * open, so that any thread may read them. */
#ifndef KILN_WORKER_ENGINE_H
#define KILN_WORKER_ENGINE_H

#include <stdatomic.h>
#include <sys/types.h>

#include "base/fs.h"
#include "kernels/kiln.h"

struct engine;

struct engine_model {
    struct kn_model_info info;
    char *dir; /* owns; NULL: there is no folder behind it */
};

/* Tasks that can be rendered together: resolved, of one model, size, sampler, schedule and steps. */
struct engine_work {
    const struct kn_model_info *model; /* one of the engine's */
    const struct kn_task *tasks;
    int count;
    uint32_t attempt;
    bool probe; /* of nobody: it tells of the worker, so a simulated task's fate does not strike it */
    /* The rest is for an engine in a process of its own; the others need none of it. */
    const atomic_bool *stop; /* becomes true when the work is not wanted any more; NULL: never */
    /* With the callbacks' ctx: this task, and no other, was what the engine died or hung of, KN_EGONE, KN_ETIMEOUT,
     * KN_EDEVICE or KN_EOOM. The work goes on behind it. */
    void (*failed)(void *ctx, int index, int code, const char *reason);
};

struct engine_minibatch; /* some tasks of a work that go through an engine's stages together */

struct engine_ops {
    /* As kiln_render() (kernels/kiln.h), of which it takes the callbacks and the errors; a model that is not
     * in memory is loaded first. KN_EMODEL: it cannot be. KN_EDEVICE: the engine is of no use any more. */
    int (*render)(struct engine *e, const struct engine_work *w, const struct kiln_callbacks *cb,
                  struct kn_err *err);
    void (*close)(struct engine *e);
    /* The same in three stages, so that they overlap: each is called by one thread at a time, and three
     * minibatches may be in the three of them. All NULL for an engine that gains nothing by it. begin takes
     * as many tasks as go together from `first` on, *count of them, and loads the model if need be; it calls
     * nothing back. denoise calls cb->step; finish calls cb->image, whose index is the place among the
     * *count. drop ends a minibatch, whatever became of it. Work and cb are borrowed until then. Errors as
     * render's. */
    int (*begin)(struct engine *e, const struct engine_work *w, int first, const struct kiln_callbacks *cb,
                 struct engine_minibatch **out, int *count, struct kn_err *err);
    int (*denoise)(struct engine_minibatch *b, struct kn_err *err);
    int (*finish)(struct engine_minibatch *b, struct kn_err *err);
    void (*drop)(struct engine_minibatch *b);
    /* Keeps the pixels of an image that a callback is given until let_go(), without a copy; any thread lets go, before
     * the engine is closed. Both NULL: they last as long as the callback. */
    void *(*keep)(const struct kiln_image *image);
    void (*let_go)(void *kept);
};

/* The state of an engine that changes while it is open. It writes, any thread (and process) may read. */
struct engine_now {
    atomic_uint
        loading; /* the model that it reads into memory, by its place among the models, from 1; 0: none */
    atomic_ullong loading_bytes;
    atomic_uint minibatch; /* images that are denoised together, where there are no stages; 0: not known */
};

struct engine {
    const struct engine_ops *ops;
    const char *backend;         /* the class; never empty */
    const char *device;          /* what a person calls it */
    const char *version;         /* "kiln 0.1.0" */
    uint32_t batch_max;          /* how many tasks it wants at once, at most */
    struct engine_model *models; /* owned by the caller of engine_open; outlives the engine */
    size_t model_count;
    struct engine_now *now; /* `own`, or where the options say */
    struct engine_now own;
};

struct engine_options {
    const char *spec; /* "cpu", "cuda", or "sim[:ms=50,crash=0.01,hang=0.002,nan=0.001,seed=7,…]" */
    int device_index; /* cuda: CUDA's number of the device; what follows is as kiln_engine_options has it */
    enum kiln_precision precision;
    bool fastest;
    int threads;               /* 0: all cores that this process may use */
    uint64_t memory_bytes_max; /* as kiln_engine_options has it */
    uint64_t model_bytes_max;  /* how much of models' weights is kept in memory; at least one model always is.
                               * 0: half of what may be used, or of the GPU's */
    struct engine_now *now;    /* borrowed; NULL: its own */
    /* Of an engine in a process of its own. */
    const char *program; /* that becomes it; NULL: the program that runs */
    const char *place;   /* names the worker here: of its children one at a time has it. NULL: none waits */
    uint32_t hang_ms; /* the least that counts as a hang; 0: 5,000. A work that is to stop has so long, too */
    uint32_t kill_ms; /* a process that was killed has ended by then; 0: 5,000 */
    int (*kill)(pid_t, int); /* NULL: kill(2); tests give one that does not */
};

/* The models that can be rendered are `models` and, for the simulated engine, "sim", which it puts in front:
 * see engine_sim_model. KN_EINVAL with a text for the person. */
KN_MUST_USE int engine_open(const struct engine_options *opt, struct engine_model *models, size_t model_count,
                            struct engine **out, struct kn_err *err);
void engine_close(struct engine *e); /* NULL is fine */
/* NULL: none. */
const struct kn_model_info *engine_model(const struct engine *e, const uint8_t sha256[KN_SHA256_BYTES]);
/* The same engine in a process of its own: a child that is started here, and again whenever it dies, hangs or says
 * that its device failed. Finished pictures are not lost with it. An image that ended it is found by rendering it alone,
 * and reported by work->failed; the rest goes on. KN_EDEVICE comes only when no child can be had any more. To open it
 * waits for a child of the same place from before (its worker was killed, and it has not let go of its device yet);
 * KN_EAGAIN: that one does not end. */
KN_MUST_USE int engine_open_child(const struct engine_options *opt, struct engine_model *models,
                                  size_t model_count, struct engine **out, struct kn_err *err);
/* Waits as long as a child that SIGKILL did not end is there. For whoever leaves its device: another process would be a
 * second context on it. A signal ends the wait with the program. */
void engine_linger(struct engine *e);
/* The child's main(). The word comes first on its command line, and the descriptors behind it. */
#define ENGINE_CHILD_WORD "--engine-child"
int engine_child_main(const char *descriptors);

/* ---- the simulated engine
 *
 * A task's picture depends on the task alone: not on the worker, the shard, the attempt or these options. A
 * task's fate (to crash, to hang, to come out as not-a-number) is a function of its key and the seed, so that
 * the same task meets it everywhere and each time: quarantine is made for such tasks. A sickness is the worker's own. `flaky` depends on the
 * attempt too: the task does well later. */
enum engine_sim_sickness {
    SIM_SOUND,
    SIM_SICK_NAN,   /* every picture comes out as not-a-number */
    SIM_SICK_MODEL, /* the model's files are gone */
    SIM_SICK_ERROR, /* every call fails at once */
    SIM_SICK_CRASH, /* every picture ends the process */
};
struct engine_sim_options {
    double ms;                      /* how long a picture takes */
    double crash, hang, nan, flaky; /* shares of the tasks, 0 to 1 */
    uint64_t seed;
    uint32_t size;  /* the default size of the model "sim", pixels */
    uint32_t batch; /* how many tasks it wants at once; 64, or 256 below 1 ms, when not given */
    uint32_t oom;   /* more tasks at once than these do not fit in its memory; 0: all do */
    double load;    /* how long the model takes to load before the first picture, ms */
    enum engine_sim_sickness sick; /* what is wrong with the worker itself, its probe pictures too */
    uint32_t after;                /* …once it has rendered so many pictures */
    uint32_t staged;               /* not 0: it works in stages, so many tasks at a time, as a GPU does */
};
bool engine_is_sim(const char *spec);
KN_MUST_USE int engine_sim_parse(const char *spec, struct engine_sim_options *out, struct kn_err *err);
void engine_sim_model(const struct engine_sim_options *opt, struct kn_model_info *out);

enum engine_sim_fate { SIM_WELL, SIM_CRASH, SIM_HANG, SIM_NAN };
enum engine_sim_fate engine_sim_fate(const struct engine_sim_options *opt, const uint8_t key[KN_SHA256_BYTES],
                                     uint32_t attempt);
/* rgb: height × width × 3. */
void engine_sim_draw(const uint8_t key[KN_SHA256_BYTES], uint32_t width, uint32_t height, uint8_t *rgb);

/* For engine_open alone. */
KN_MUST_USE int engine_sim_open(const struct engine_options *opt, struct engine **out, struct kn_err *err);
KN_MUST_USE int engine_kiln_open(const struct engine_options *opt, struct engine **out, struct kn_err *err);

/* The model's place, from 1; 0: none of the engine's. */
unsigned engine_place(const struct engine *e, const struct kn_model_info *model);

#endif

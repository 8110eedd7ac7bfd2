/* Between the worker (engine_child.c) and the child that has its engine (engine_serve.c): frames on sockets, and a
 * region of memory that they share. Private to these two. Both are the same program, so that nothing here has a version.
 *
 *     worker                                       child
 *     ──────── control  open, drop, close ───────▶ its first thread
 *     ──────── texts    begin ───────────────────▶ ┐
 *     ──────── loop     denoise, or render ──────▶ ├ a thread each, as the engine's stages have it
 *     ──────── pictures finish ──────────────────▶ ┘
 *     ◀─────── an answer to each, a kick to whoever waits for pictures
 *     ◀─────── region   steps, signs of life, finished pictures
 *
 * A request has one answer, and there is one at a time on a socket. Pictures lie in the region before their request is
 * answered: `slots` is a ring of them, whose pixels are pieces of what is behind it. The region is the worker's, so that
 * finished pictures outlive the child; each child gets a fresh one. The child stops when the control socket ends. */
#ifndef KILN_WORKER_ENGINE_SHARED_H
#define KILN_WORKER_ENGINE_SHARED_H

#include "base/log.h"
#include "proto/codec.h"
#include "worker/engine.h"

enum engine_lane { LANE_TEXTS, LANE_LOOP, LANE_PICTURES, LANES, LANE_CONTROL = LANES, LANE_SOCKETS };

/* ---- frames */

enum engine_frame_type {
    FRAME_OPEN =
        1, /* struct open_head, the engine's words, and for each model its info, its folder's length, the folder */
    FRAME_RENDER,  /* struct work_head, a ShardGrant with the tasks */
    FRAME_BEGIN,   /* the same */
    FRAME_DENOISE, /* struct work_head alone, as the next two */
    FRAME_FINISH,
    FRAME_DROP,
    FRAME_CLOSE,  /* nothing; no answer: the child ends */
    FRAME_READY,  /* struct ready: the answer to FRAME_OPEN */
    FRAME_ANSWER, /* struct answer: to all others */
    FRAME_KICK,   /* nothing: there are pictures */
};

/* Of a frame: a grant's tasks, or KN_MODELS_PER_WORKER_MAX models with their folders. */
#define FRAME_BODY_MAX (KN_FRAME_BYTES_MAX + 4096u)
#define MINIBATCHES_MAX                                                                                      \
    16 /* in the child at a time: three stages, two queues, and those that wait to be dropped */

struct engine_frame {
    uint32_t type, len; /* of what follows */
};

struct open_head {
    int device_index, threads;
    enum kiln_precision precision;
    bool fastest;
    uint64_t memory_bytes_max, model_bytes_max;
    enum kn_log_level level;
    char place[KN_SHA256_HEX]; /* a digest; "": none */
    uint32_t spec_len, model_count;
};

struct ready {
    int code;
    char text[KN_ERR_TEXT_MAX];
    char backend[KN_BACKEND_MAX + 1], device[KN_DEVICE_MAX + 1], version[KN_NAME_MAX + 1];
    uint32_t batch_max;
    bool staged;
};

struct work_head {
    uint32_t model; /* its place among the models */
    uint32_t attempt;
    uint32_t minibatch; /* its number, from 0 to MINIBATCHES_MAX - 1; the worker gives them out */
    bool probe;
};

struct answer {
    int code, count; /* count: FRAME_BEGIN's */
    char text[KN_ERR_TEXT_MAX];
};

/* Both block. KN_EGONE: the other side is not there any more, or says what it must not. */
KN_MUST_USE int frame_send(int fd, enum engine_frame_type type, const void *head, size_t head_len,
                           const void *body, size_t body_len);
/* Into a buffer that is emptied first. */
KN_MUST_USE int frame_receive(int fd, enum engine_frame_type *type, struct kn_buf *body);

/* Takes a name on this machine, of a kind, for as long as the descriptor is open: it is free as soon as whoever has it is
 * gone altogether. It is a socket's in the kernel's own space, so that nothing is left behind. -1: errno, EADDRINUSE:
 * another process of this user has it. */
int place_bind(const char *kind, const char *place);

/* ---- the region */

#define GAPS 256 /* times between two signs of life that are remembered */
#define SLOTS 1024
#define RING_BYTES (64ull << 20) /* of finished pictures that wait; one picture always fits */

enum slot_state {
    SLOT_FREE,  /* the child's */
    SLOT_FULL,  /* finished; it was not looked at yet */
    SLOT_TAKEN, /* the worker's, until it lets go */
};

struct pixel_slot {
    _Atomic(enum slot_state) state;
    int index, status, step;
    bool flat;
    double render_ms;
    uint64_t at, bytes; /* of the pixels; 0 bytes: there are none */
};

/* The signs of life of a thread of the child, and of the work that it is at. */
struct lane_signs {
    atomic_uint step, steps; /* as the last of the callbacks had them */
    atomic_uint signs;       /* counts: a step, a picture, a look for room for one */
    atomic_uint same;        /* those of them since the child is at this kind of work */
    atomic_bool abort;       /* the worker's: the work is not wanted any more */
    /* The times between two signs of the same kind of work, a ring; how many there were. */
    _Atomic(uint32_t) gap_us[GAPS];
    atomic_uint gaps;
    kn_digest kind; /* the child's */
};

struct region {
    struct engine_now now;
    struct lane_signs lane[LANES];
    atomic_bool wanted; /* the worker waits for pictures, and is to be kicked */
    struct pixel_slot slots[SLOTS];
    _Alignas(64) uint8_t pixels[RING_BYTES];
};

_Static_assert((uint64_t)KN_SIZE_MAX *KN_SIZE_MAX * 3 <= RING_BYTES, "one picture always fits");

#endif

/* See scrub.h. */
#include "coordinator/scrub.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/lost.h"

#define BYTES_A_SECOND (4u << 20)
#define OBJECTS_A_TURN 8
#define RECORDS_A_TURN 4096 /* gone through for those */
#define TURN_MS 100         /* at least, from one turn to the next */
#define FIRST_MS 60000
#define DAY_MS (24 * 60 * 60 * 1000ull)
#define VOIDS_MAX 64 /* a round */

struct scrub {
    struct server *s;
    uv_timer_t *timer; /* owns; closed before this struct is freed */
    bool closing;
    kn_id *ids; /* owns: the batches of the round, NULL between two */
    size_t id_count, id_at;
    uint32_t task_at;
    uint64_t begun_ms;
    size_t looked, voided;
};

static void on_time(uv_timer_t *t);

static void end_round(struct scrub *x) {
    uint64_t took = kn_clock_ms() - x->begun_ms;
    kn_info("scrub_ended looked=%zu voided=%zu ms=%llu", x->looked, x->voided, (unsigned long long)took);
    free(x->ids);
    x->ids = NULL;
    uv_timer_start(x->timer, on_time, took < DAY_MS ? DAY_MS - took : TURN_MS, 0);
}

/* From a batch chosen at random on, around. */
static bool begin_round(struct scrub *x) {
    const struct kn_map *all = x->s->batches.by_id;
    const struct kept_batch *b;
    size_t pos = 0, count = kn_map_count(all);
    kn_id random;
    x->ids = calloc(count + 1, sizeof *x->ids);
    x->id_count = x->id_at = x->looked = x->voided = 0;
    x->task_at = 0;
    x->begun_ms = kn_clock_ms();
    if (!x->ids) return false;
    kn_uuid_random(random);
    size_t first = count ? kn_hash64(random, sizeof random, 0) % count : 0;
    while ((b = kn_map_next(all, &pos))) {
        size_t at = (x->id_count++ + count - first) % count;
        memcpy(x->ids[at], b->id, sizeof(kn_id));
    }
    return true;
}

/* The objects of the next records; true: the round is over. */
static bool pick(struct scrub *x, struct collect_look *v, size_t *count) {
    struct store_record r;
    for (uint32_t n = 0; n < RECORDS_A_TURN && *count < OBJECTS_A_TURN; n++) {
        if (x->id_at == x->id_count) return true;
        const struct kept_batch *b = batches_find(&x->s->batches, x->ids[x->id_at]);
        if (!b || b->phase != BATCH_SEALED || !b->records || x->task_at >= b->tasks) {
            if (*count > 0) return false; /* those of a turn are of one batch */
            x->id_at++;
            x->task_at = 0;
            continue;
        }
        if (batch_record(b, x->task_at, &r)) {
            memcpy(v[*count].sha256, r.sha256, sizeof r.sha256);
            v[(*count)++].tag = x->task_at;
        }
        x->task_at++;
    }
    return false;
}

static void on_looked(void *ctx, const struct collect_look *v, size_t count) {
    struct scrub *x = ctx;
    uint64_t bytes = 0;
    if (x->closing) return;
    for (size_t i = 0; i < count; i++) {
        bytes += v[i].len;
        if (v[i].code != KN_ENOENT && v[i].code != KN_ECORRUPT) continue;
        if (x->voided == VOIDS_MAX) {
            kn_error(
                "scrub_stopped looked=%zu voided=%zu reason=\"so many pictures are lost or damaged that it may be "
                "the disk: is it mounted? kiln retry renders those of a batch again\"",
                x->looked, x->voided);
            end_round(x);
            return;
        }
        x->voided++;
        lost_void(x->s, x->ids[x->id_at], v[i].tag, v[i].sha256);
    }
    x->looked += count;
    uint64_t ms = bytes * 1000 / BYTES_A_SECOND;
    uv_timer_start(x->timer, on_time, ms > TURN_MS ? ms : TURN_MS, 0);
}

static void on_time(uv_timer_t *t) {
    struct scrub *x = t->data;
    struct collect_look *v = calloc(OBJECTS_A_TURN, sizeof *v);
    size_t count = 0;
    bool over = false;
    uv_timer_start(t, on_time, TURN_MS, 0);
    if (v && (x->ids || begin_round(x))) over = pick(x, v, &count);
    if (count > 0 && collect_look(x->s->collect, v, count, true, on_looked, x) == 0) {
        uv_timer_stop(t); /* it goes on when they are read */
        return;
    }
    if (count > 0) x->task_at = v[0].tag; /* too many reads wait: once more */
    free(v);
    if (over && count == 0) end_round(x);
}

int scrub_begin(struct server *s, uint64_t first_ms) {
    struct scrub *x = calloc(1, sizeof *x);
    if (x) x->timer = malloc(sizeof *x->timer);
    if (!x || !x->timer) {
        free(x);
        return KN_ENOMEM;
    }
    x->s = s;
    uv_timer_init(s->loop, x->timer);
    x->timer->data = x;
    uv_timer_start(x->timer, on_time, first_ms ? first_ms : FIRST_MS, 0);
    s->scrub = x;
    return 0;
}

static void free_handle(uv_handle_t *h) {
    free(h);
}

void scrub_end(struct server *s) {
    struct scrub *x = s->scrub;
    if (!x || x->closing) return;
    x->closing = true;
    uv_close((uv_handle_t *)x->timer, free_handle);
}

void scrub_fini(struct server *s) {
    if (!s->scrub) return;
    free(s->scrub->ids);
    free(s->scrub);
    s->scrub = NULL;
}

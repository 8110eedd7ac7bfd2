/* Lists of tasks: adding, applying settings, expanding images. The contract is prompts.h; what the readers
 * alone use is in record.h. Invariant: a task in a list owns all its strings. */
#include "base/prompts.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "base/record.h"

void kn_task_fini(struct kn_task *t) {
    free(t->prompt);
    free(t->negative);
    free(t->extra);
    free(t->model);
    *t = (struct kn_task){0};
}

static bool copy_string(char **out, const char *s) {
    *out = s ? strdup(s) : NULL;
    return *out || !s;
}

bool kn_task_copy(struct kn_task *out, const struct kn_task *t) {
    struct kn_task c = *t;
    c.prompt = c.negative = c.extra = c.model = NULL;
    if (copy_string(&c.prompt, t->prompt) && copy_string(&c.negative, t->negative) &&
        copy_string(&c.extra, t->extra) && copy_string(&c.model, t->model)) {
        *out = c;
        return true;
    }
    kn_task_fini(&c);
    return false;
}

int kn_tasks_reserve(struct kn_tasks *ts, size_t more, struct kn_err *err) {
    if (more > KN_TASKS_PER_BATCH_MAX || ts->count > KN_TASKS_PER_BATCH_MAX - more)
        return kn_err_set(err, KN_ELIMIT, "more than %d images in a batch", KN_TASKS_PER_BATCH_MAX);
    size_t need = ts->count + more;
    if (need <= ts->cap) return KN_OK;
    size_t cap = ts->cap ? ts->cap : 16;
    while (cap < need) cap *= 2;
    struct kn_task *v = realloc(ts->v, cap * sizeof *v);
    if (!v) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    ts->v = v;
    ts->cap = cap;
    return KN_OK;
}

void kn_tasks_cut(struct kn_tasks *ts, size_t count) {
    while (ts->count > count) kn_task_fini(&ts->v[--ts->count]);
}

void kn_tasks_fini(struct kn_tasks *ts) {
    kn_tasks_cut(ts, 0);
    free(ts->v);
    *ts = (struct kn_tasks){0};
}

int kn_tasks_add(struct kn_tasks *ts, const char *prompt, struct kn_err *err) {
    int rc = kn_tasks_reserve(ts, 1, err);
    if (rc) return rc;
    struct kn_task t = {.prompt = strdup(prompt), .negative = strdup("")};
    rc = t.prompt && t.negative ? kn_task_check(&t, err)
                                : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    if (rc) {
        kn_task_fini(&t);
        return rc;
    }
    ts->v[ts->count++] = t;
    return KN_OK;
}

int kn_tasks_apply(struct kn_tasks *ts, const struct kn_task *settings, struct kn_err *err) {
    for (size_t i = 0; i < ts->count; i++) {
        struct kn_task *t = &ts->v[i];
        uint32_t missing = settings->set & ~t->set & KN_SET_ALL;
        if (t->set & KN_SET_SEED_EACH) missing &= ~(uint32_t)KN_SET_SEED;
        if (!(t->set & KN_SET_SEED)) t->set |= settings->set & KN_SET_SEED_EACH;
        if (missing == 0) continue;
        if (missing & (KN_SET_NEGATIVE | KN_SET_MODEL)) {
            char *negative = NULL, *model = NULL;
            bool copied = (!(missing & KN_SET_NEGATIVE) || copy_string(&negative, settings->negative)) &&
                          (!(missing & KN_SET_MODEL) || copy_string(&model, settings->model));
            if (!copied) {
                free(negative);
                free(model);
                return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
            }
            if (missing & KN_SET_NEGATIVE) {
                free(t->negative);
                t->negative = negative;
            }
            if (missing & KN_SET_MODEL) {
                free(t->model);
                t->model = model;
                t->model_index = settings->model_index;
            }
        }
        if (missing & KN_SET_SEED) {
            if (settings->seed >
                UINT64_MAX - t->seed) /* an unset seed holds its offset among the line's images */
                return kn_err_set(err, KN_EINVAL, "task %zu: seed: past %llu", i,
                                  (unsigned long long)UINT64_MAX);
            t->seed += settings->seed;
        }
        if (missing & KN_SET_SAMPLER) t->sampler = settings->sampler;
        if (missing & KN_SET_SCHEDULE) t->schedule = settings->schedule;
        if (missing & KN_SET_STEPS) t->steps = settings->steps;
        if (missing & KN_SET_CFG) t->cfg = settings->cfg;
        if (missing & KN_SET_SIZE) {
            if (!t->width) t->width = settings->width;
            if (!t->height) t->height = settings->height;
        }
        t->set |= missing;
        int rc = kn_task_check(t, err);
        if (rc) {
            kn_err_prefix(err, "task %zu", i);
            return rc;
        }
    }
    return KN_OK;
}

/* The seed drawn out of `first` for the prompt, of which `before` equal ones have had theirs. */
static int draw_seed(uint64_t first, uint32_t before, const char *prompt, uint64_t *out) {
    char head[64];
    uint8_t d[KN_SHA256_BYTES];
    struct kn_sha256 *h = kn_sha256_create();
    if (!h) return KN_ENOMEM;
    int n = snprintf(head, sizeof head, "kiln-seed-each=1\n%llu\n%u\n", (unsigned long long)first, before);
    kn_sha256_update(h, head, (size_t)n);
    kn_sha256_update(h, prompt, strlen(prompt));
    kn_sha256_final(h, d);
    *out = (uint64_t)d[0] << 24 | (uint64_t)d[1] << 16 | (uint64_t)d[2] << 8 | d[3];
    return KN_OK;
}

/* (*out)[i]: what is drawn for the task i of those with KN_SET_SEED_EACH. The caller frees; NULL when none
 * has it. */
static int draw_seeds(const struct kn_tasks *ts, uint64_t first, uint64_t **out, struct kn_err *err) {
    size_t from = 0;
    while (from < ts->count && !(ts->v[from].set & KN_SET_SEED_EACH)) from++;
    *out = NULL;
    if (from == ts->count) return KN_OK;
    uint64_t *seeds = calloc(ts->count, sizeof *seeds);
    uint32_t *counts = calloc(ts->count, sizeof *counts); /* of equal prompts, at the first of them */
    struct kn_map *seen = kn_map_create(KN_TASKS_PER_BATCH_MAX);
    int rc = seeds && counts && seen ? KN_OK : KN_ENOMEM;
    for (size_t i = from; rc == KN_OK && i < ts->count; i++) {
        const struct kn_task *t = &ts->v[i];
        if (!(t->set & KN_SET_SEED_EACH)) continue;
        if (t->set & KN_SET_IMAGES &&
            t->seed > 0) { /* the further images of one line count up from its first */
            seeds[i] = seeds[i - 1];
            continue;
        }
        size_t len = strlen(t->prompt);
        uint32_t *count = kn_map_get(seen, t->prompt, len);
        if (!count) rc = kn_map_put(seen, t->prompt, len, count = &counts[i]);
        if (rc == KN_OK) rc = draw_seed(first, (*count)++, t->prompt, &seeds[i]);
    }
    kn_map_destroy(seen);
    free(counts);
    if (rc) {
        free(seeds);
        return kn_err_set(err, rc, "%s", kn_err_words(rc));
    }
    *out = seeds;
    return KN_OK;
}

/* How many images a task becomes, and the seed of the first; drawn as draw_seeds() gives it. */
static int first_of(const struct kn_tasks *ts, size_t i, uint32_t images, uint64_t first_seed,
                    const uint64_t *drawn, uint32_t *n, uint64_t *seed, struct kn_err *err) {
    const struct kn_task *t = &ts->v[i];
    uint64_t offset = t->set & KN_SET_SEED ? 0 : t->set & KN_SET_SEED_EACH ? drawn[i] : first_seed;
    *n = t->set & KN_SET_IMAGES ? 1 : images;
    if (offset > UINT64_MAX - t->seed || *n - 1 > UINT64_MAX - t->seed - offset)
        return kn_err_set(err, KN_EINVAL, "task %zu: seed: %u images go past %llu", i, *n,
                          (unsigned long long)UINT64_MAX);
    *seed = t->seed + offset;
    return KN_OK;
}

static void give_seed(struct kn_task *t, uint64_t seed) {
    t->seed = seed;
    t->set = (t->set | KN_SET_SEED) & ~(uint32_t)(KN_SET_IMAGES | KN_SET_SEED_EACH);
}

/* More images than tasks: copies, and then the list instead of the one that was there. */
static int expand_copies(struct kn_tasks *ts, size_t total, uint32_t images, uint64_t first_seed,
                         const uint64_t *drawn, struct kn_err *err) {
    struct kn_tasks all = {0};
    int rc = kn_tasks_reserve(&all, total, err);
    for (size_t i = 0; rc == KN_OK && i < ts->count; i++) {
        uint32_t n = 0;
        uint64_t seed = 0;
        rc = first_of(ts, i, images, first_seed, drawn, &n, &seed, err);
        for (uint32_t k = 0; rc == KN_OK && k < n; k++) {
            if (kn_task_copy(&all.v[all.count], &ts->v[i]))
                give_seed(&all.v[all.count++], seed + k);
            else
                rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
        }
    }
    kn_tasks_fini(rc == KN_OK ? ts : &all);
    if (rc == KN_OK) *ts = all;
    return rc;
}

int kn_tasks_expand(struct kn_tasks *ts, uint32_t images, uint64_t first_seed, struct kn_err *err) {
    if (images < 1 || images > KN_IMAGES_MAX)
        return kn_err_set(err, KN_EINVAL, "images: %u is not between 1 and %d", images, KN_IMAGES_MAX);
    uint64_t *drawn, seed = 0;
    size_t total = 0;
    uint32_t n = 0;
    int rc = draw_seeds(ts, first_seed, &drawn, err);
    for (size_t i = 0; rc == KN_OK && i < ts->count; i++) {
        rc = first_of(ts, i, images, first_seed, drawn, &n, &seed, err);
        total += n;
    }
    if (rc == KN_OK && total > ts->count) {
        rc = expand_copies(ts, total, images, first_seed, drawn, err);
    } else if (rc == KN_OK) { /* an image a task: nothing is copied, a list may be long */
        for (size_t i = 0; i < ts->count; i++) {
            int same = first_of(ts, i, images, first_seed, drawn, &n, &seed, NULL);
            assert(same == KN_OK);
            give_seed(&ts->v[i], seed);
        }
    }
    free(drawn);
    return rc;
}

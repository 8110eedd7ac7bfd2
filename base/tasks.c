/* Lists of tasks: adding, applying settings, expanding images. The contract is prompts.h; what the readers
 * alone use is in record.h. Invariant: the strings of a list's tasks are in its `texts`, several tasks may share one, and none
 * is changed or freed before the list is. */
#include "base/prompts.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "base/record.h"

#define REST_EVERY 4096 /* tasks that are looked at */

void kn_task_fini(struct kn_task *t) {
    free(t->prompt);
    free(t->negative);
    free(t->extra);
    free(t->model);
    *t = (struct kn_task){0};
}

int kn_tasks_reserve(struct kn_tasks *ts, size_t more, struct kn_err *err) {
    if (more > KN_TASKS_PER_BATCH_MAX || ts->count > KN_TASKS_PER_BATCH_MAX - more)
        return kn_err_set(err, KN_ELIMIT, "more than %d images in a batch", KN_TASKS_PER_BATCH_MAX);
    ts->list.len = ts->count * sizeof *ts->v;
    int rc = kn_spill_reserve(&ts->list, more * sizeof *ts->v);
    if (rc) return kn_err_set(err, rc, "%s", kn_err_words(rc));
    ts->v = (struct kn_task *)(void *)ts->list.data;
    return KN_OK;
}

void kn_tasks_cut(struct kn_tasks *ts, size_t count) {
    assert(count <= ts->count);
    ts->count = count;
}

void kn_tasks_fini(struct kn_tasks *ts) {
    kn_spill_fini(&ts->list);
    kn_texts_fini(&ts->texts);
    *ts = (struct kn_tasks){0};
}

static void rest(const struct kn_tasks *ts, size_t i) {
    if (i % REST_EVERY != REST_EVERY - 1) return;
    kn_spill_rest(&ts->list);
    kn_texts_rest(&ts->texts);
}

const struct kn_task *kn_tasks_at(const struct kn_tasks *ts, size_t i) {
    assert(i < ts->count);
    rest(ts, i);
    return &ts->v[i];
}

struct kn_task *kn_tasks_edit(struct kn_tasks *ts, size_t i) {
    assert(i < ts->count);
    rest(ts, i);
    return &ts->v[i];
}

/* Takes a copy of `text` into *out, or `last` where that is the same; false: out of memory. */
static bool keep(struct kn_tasks *ts, const char *text, const char **last, char **out) {
    if (!*last || strcmp(*last, text) != 0) *last = kn_texts_add(&ts->texts, text);
    *out = (char *)(uintptr_t)*last;
    return *last != NULL;
}

int kn_tasks_put(struct kn_tasks *ts, const struct kn_task *t, struct kn_err *err) {
    int rc = kn_tasks_reserve(ts, 1, err);
    if (rc) return rc;
    struct kn_task c = *t;
    c.prompt = kn_texts_add(&ts->texts, t->prompt);
    bool kept = c.prompt && keep(ts, t->negative, &ts->negative, &c.negative);
    if (kept && t->model) kept = keep(ts, t->model, &ts->model, &c.model);
    if (kept && t->extra) kept = (c.extra = kn_texts_add(&ts->texts, t->extra)) != NULL;
    if (!kept) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    ts->v[ts->count++] = c;
    rest(ts, ts->count);
    return KN_OK;
}

int kn_tasks_add(struct kn_tasks *ts, const char *prompt, struct kn_err *err) {
    struct kn_task t = {.prompt = (char *)(uintptr_t)prompt, .negative = (char[]){""}};
    int rc = kn_task_check(&t, err);
    return rc ? rc : kn_tasks_put(ts, &t, err);
}

int kn_tasks_apply(struct kn_tasks *ts, const struct kn_task *settings, struct kn_err *err) {
    const char *negative = NULL, *model = NULL; /* one copy each */
    for (size_t i = 0; i < ts->count; i++) {
        struct kn_task *t = kn_tasks_edit(ts, i);
        uint32_t missing = settings->set & ~t->set & KN_SET_ALL;
        if (t->set & KN_SET_SEED_EACH) missing &= ~(uint32_t)KN_SET_SEED;
        if (!(t->set & KN_SET_SEED)) t->set |= settings->set & KN_SET_SEED_EACH;
        if (missing == 0) continue;
        if ((missing & KN_SET_NEGATIVE && !keep(ts, settings->negative, &negative, &t->negative)) ||
            (missing & KN_SET_MODEL && !keep(ts, settings->model, &model, &t->model)))
            return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
        if (missing & KN_SET_MODEL) t->model_index = settings->model_index;
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
    while (from < ts->count && !(kn_tasks_at(ts, from)->set & KN_SET_SEED_EACH)) from++;
    *out = NULL;
    if (from == ts->count) return KN_OK;
    uint64_t *seeds = calloc(ts->count, sizeof *seeds);
    uint32_t *counts = calloc(ts->count, sizeof *counts); /* of equal prompts, at the first of them */
    struct kn_map *seen = kn_map_create(KN_TASKS_PER_BATCH_MAX);
    int rc = seeds && counts && seen ? KN_OK : KN_ENOMEM;
    for (size_t i = from; rc == KN_OK && i < ts->count; i++) {
        const struct kn_task *t = kn_tasks_at(ts, i);
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
    const struct kn_task *t = kn_tasks_at(ts, i);
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

/* More images than tasks: a list with several of each, instead of the one that was there. They share its strings. */
static int expand_copies(struct kn_tasks *ts, size_t total, uint32_t images, uint64_t first_seed,
                         const uint64_t *drawn, struct kn_err *err) {
    struct kn_tasks all = {0};
    int rc = kn_tasks_reserve(&all, total, err);
    for (size_t i = 0; rc == KN_OK && i < ts->count; i++) {
        uint32_t n = 0;
        uint64_t seed = 0;
        rc = first_of(ts, i, images, first_seed, drawn, &n, &seed, err);
        for (uint32_t k = 0; rc == KN_OK && k < n; k++) {
            rest(&all, all.count);
            all.v[all.count] = ts->v[i];
            give_seed(&all.v[all.count++], seed + k);
        }
    }
    if (rc) {
        kn_tasks_fini(&all);
        return rc;
    }
    kn_spill_fini(&ts->list);
    ts->list = all.list;
    ts->v = all.v;
    ts->count = all.count;
    return KN_OK;
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

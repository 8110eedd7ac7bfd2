/* See features.h. */
#include "base/features.h"

#include <stdio.h>
#include <string.h>

static const struct feature {
    uint64_t bit;
    const char *name, *words;
} features[] = {
#define SAMPLER(id, value, a1111, comfy, diffusers, karras, automatic)                                       \
    {KN_FEATURE_SAMPLER(value), "sampler." comfy, "sampler " a1111},
    KN_SAMPLER_TABLE(SAMPLER)
#undef SAMPLER
#define SCHEDULE(id, value, name) {KN_FEATURE_SCHEDULE(value), "schedule." name, "schedule " name},
        KN_SCHEDULE_TABLE(SCHEDULE)
#undef SCHEDULE
#define OTHER(id, bit, name, words) {UINT64_C(1) << (bit), name, words},
            KN_FEATURE_TABLE(OTHER)
#undef OTHER
};
#define FEATURE_COUNT (sizeof features / sizeof features[0])
_Static_assert(FEATURE_COUNT <= KN_FEATURES_MAX, "a bit for each feature");

uint64_t kn_features(void) {
    uint64_t all = 0;
    for (size_t i = 0; i < FEATURE_COUNT; i++) all |= features[i].bit;
    return all;
}

uint64_t kn_task_needs(const struct kn_task *t) {
    return KN_FEATURE_SAMPLER(t->sampler) | KN_FEATURE_SCHEDULE(t->schedule);
}

size_t kn_features_list(uint64_t mask, const char *names[KN_FEATURES_MAX]) {
    size_t n = 0;
    for (size_t i = 0; i < FEATURE_COUNT; i++)
        if (mask & features[i].bit) names[n++] = features[i].name;
    return n;
}

uint64_t kn_features_read(const char *const *names, size_t count, const char **unknown) {
    uint64_t mask = 0;
    if (unknown) *unknown = NULL;
    for (size_t i = 0; i < count; i++) {
        size_t k = 0;
        while (k < FEATURE_COUNT && strcmp(features[k].name, names[i]) != 0) k++;
        if (k < FEATURE_COUNT)
            mask |= features[k].bit;
        else if (unknown && !*unknown)
            *unknown = names[i];
    }
    return mask;
}

uint64_t kn_features_of_peer(const char *const *names, size_t count) {
    return count == 0 ? KN_FEATURES_BEFORE : kn_features_read(names, count, NULL);
}

const char *kn_features_words(uint64_t mask, char out[KN_FEATURES_TEXT_MAX]) {
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < FEATURE_COUNT; i++) {
        if (!(mask & features[i].bit)) continue;
        int n =
            snprintf(out + used, KN_FEATURES_TEXT_MAX - used, "%s%s", used ? ", " : "", features[i].words);
        if (n < 0 || (size_t)n >= KN_FEATURES_TEXT_MAX - used) break;
        used += (size_t)n;
    }
    return out;
}

/* See waits.h. */
#include "coordinator/waits.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/clock.h"
#include "coordinator/workers.h"

#define STORE_SILENT_MS 2500 /* a disk may take so long to sync now and then */

uint64_t waits_store(const struct server *s, char out[KN_WAIT_TEXT_MAX]) {
    const char *why;
    uint64_t silent_ms = s->store ? store_silent_ms(s->store, &why) : 0;
    out[0] = '\0';
    if (silent_ms < STORE_SILENT_MS) return 0;
    if (strncmp(why, "OOM ", 4) == 0) {
        snprintf(
            out, KN_WAIT_TEXT_MAX,
            "the store (Redis) has not taken anything for %llu s: it is at its limit of memory. Raise its "
            "maxmemory, or remove batches that have ended (kiln rm); nothing that was accepted is lost, and it goes "
            "on by itself",
            (unsigned long long)(silent_ms / 1000));
        return silent_ms;
    }
    snprintf(
        out, KN_WAIT_TEXT_MAX,
        "the store (Redis) has not taken anything for %llu s%s%.390s: look at its process, its log and its "
        "disk; nothing that was accepted is lost, and it goes on by itself",
        (unsigned long long)(silent_ms / 1000), why[0] ? ": " : "", why);
    return silent_ms;
}

bool waits_disk(const struct server *s, char out[KN_WAIT_TEXT_MAX]) {
    struct statvfs st;
    char room[64] = "";
    out[0] = '\0';
    if (!s->disk_refused_ms) return false;
    if (statvfs(s->objects, &st) == 0)
        snprintf(room, sizeof room, " (%.1f MB are free)", (double)st.f_bavail * (double)st.f_frsize / 1e6);
    snprintf(
        out, KN_WAIT_TEXT_MAX,
        "the disk of the farm's folder takes no pictures: %.300s%s: make room; workers keep what they have "
        "rendered, and it goes on by itself within seconds",
        s->disk_why, room);
    return true;
}

/* "worker gpu3" or "3 workers". */
static const char *who(const struct farm_batch_view *v, char out[KN_NAME_MAX + 16]) {
    if (v->wait_workers > 1)
        snprintf(out, KN_NAME_MAX + 16, "%u workers", v->wait_workers);
    else
        snprintf(out, KN_NAME_MAX + 16, "worker %s", v->wait_worker);
    return out;
}

void waits_unfit(struct server *s, const char *worker, uint64_t lacks, char *out, size_t out_max) {
    const struct known_worker *w = kn_map_get(s->workers, worker, strlen(worker));
    char words[KN_FEATURES_TEXT_MAX];
    if (lacks)
        snprintf(out, out_max, "%s (%s) does not know %s", worker, w ? w->hello->engine : "?",
                 kn_features_words(lacks, words));
    else if (w && w->refused[0])
        snprintf(out, out_max, "%s (%s) handed it back: %s", worker, w->hello->engine, w->refused);
    else
        snprintf(out, out_max, "%s (%s) takes it without a word", worker, w ? w->hello->engine : "?");
}

static void words(struct server *s, const struct farm_batch_view *v, char out[KN_WAIT_TEXT_MAX]) {
    char id[KN_UUID_TEXT], other[KN_UUID_TEXT], hex[KN_SHA256_HEX], some[KN_NAME_MAX + 16],
        lost[160] = "", model[KN_NAME_MAX + 16], unfit[UNFIT_TEXT_MAX];
    const char *name = workers_model_name(s, v->wait_model);
    bool many = v->wait_workers > 1;
    kn_uuid_format(v->id, id);
    kn_uuid_format(v->wait_batch, other);
    kn_hex(v->wait_model, sizeof v->wait_model, hex);
    const struct kept_batch *b = batches_find(&s->batches, v->id);
    for (size_t i = 0; b && !name[0] && i < b->begin->model_count; i++)
        if (memcmp(b->begin->models[i].sha256, v->wait_model, sizeof v->wait_model) == 0)
            name = b->begin->models[i].name;
    snprintf(model, sizeof model, "%s%s%.10s%s", name, name[0] ? " (" : "", hex, name[0] ? ")" : "");
    out[0] = '\0';
    switch (v->wait) {
    case KN_WAIT_NONE:
    case KN_WAIT_STORE:
    case KN_WAIT_DISK:
        break;
    case KN_WAIT_PAUSED:
        snprintf(out, KN_WAIT_TEXT_MAX, "it is paused: kiln resume %.8s lets it go on", id);
        break;
    case KN_WAIT_NO_WORKER:
        if (v->wait_worker[0])
            snprintf(lost, sizeof lost, "; worker %s had it, and was last heard of %llu s ago",
                     v->wait_worker, (unsigned long long)(v->wait_ms / 1000));
        snprintf(out, KN_WAIT_TEXT_MAX,
                 "no worker has the model %s%s: start one that has it (kiln-worker --join … --model DIR)",
                 model, lost);
        break;
    case KN_WAIT_SILENT:
        snprintf(
            out, KN_WAIT_TEXT_MAX,
            "%s, which %s the model %s, %s not been heard of for %llu s: look whether it is stopped, and "
            "whether its machine and the network are there",
            who(v, some), many ? "have" : "has", model, many ? "have" : "has",
            (unsigned long long)(v->wait_ms / 1000));
        break;
    case KN_WAIT_DRAINING:
        snprintf(out, KN_WAIT_TEXT_MAX,
                 "%s, which %s the model %s, %s more work: %s being drained; start another "
                 "(kiln-worker --join … --model DIR)",
                 who(v, some), many ? "have" : "has", model, many ? "get no" : "gets no",
                 many ? "they are" : "it is");
        break;
    case KN_WAIT_HELD:
        snprintf(
            out, KN_WAIT_TEXT_MAX,
            "%s, which %s the model %s, %s held, since %s pictures cannot be trusted (%.400s): see %s log and "
            "mend %s; %s tried again by itself, at once after a restart",
            who(v, some), many ? "have" : "has", model, many ? "are" : "is", many ? "their" : "its",
            v->wait_reason, many ? "their" : "its", many ? "them" : "it", many ? "they are" : "it is");
        break;
    case KN_WAIT_CLASS:
        snprintf(out, KN_WAIT_TEXT_MAX,
                 "it is pinned to the backend class %s, and no worker of that class has the model %s; %s, of "
                 "another class, has it (kiln workers shows the classes)",
                 v->wait_class, model, who(v, some));
        break;
    case KN_WAIT_PRIORITY:
        snprintf(
            out, KN_WAIT_TEXT_MAX,
            "the workers render batch %.8s of a higher priority first (kiln priority %.8s N changes this one's)",
            other, id);
        break;
    case KN_WAIT_TURN:
        snprintf(out, KN_WAIT_TEXT_MAX, "the workers render batch %.8s now; its turn comes then", other);
        break;
    case KN_WAIT_FEATURE:
        waits_unfit(s, v->wait_worker, v->wait_lacks, unfit, sizeof unfit);
        snprintf(out, KN_WAIT_TEXT_MAX,
                 "no worker that is there can render it: %s; it goes to a later kiln-worker", unfit);
        break;
    case KN_WAIT_OTHER:
        snprintf(out, KN_WAIT_TEXT_MAX,
                 "what is left of it failed on worker %s, and another worker is to try it (kiln explain %.8s "
                 "tells of the attempts)",
                 v->wait_worker, id);
        break;
    }
}

enum kn_wait waits_batch(struct server *s, const struct farm_batch_view *v, char out[KN_WAIT_TEXT_MAX]) {
    out[0] = '\0';
    if (v->state == KN_BATCH_DONE || v->state == KN_BATCH_CANCELLED) return KN_WAIT_NONE;
    if (waits_store(s, out)) return KN_WAIT_STORE;
    if (v->state == KN_BATCH_ACTIVE && waits_disk(s, out)) return KN_WAIT_DISK;
    words(s, v, out);
    return v->wait;
}

/* The names of workers. The contract is name.h, the data state.h.
 *
 * A name that a person chose is one worker's: where two want it, the one that is there keeps it. A name that
 * nobody chose is the host's name, or that with the lowest free number from 2 on; the farm remembers which
 * machine had it and gives it back after a restart. Cloned machines and containers may share a machine's
 * number: then the older one is there and answers, and the newcomer gets the next name.
 *
 * That a process is there is shown by its answer to a question that was asked after the newcomer came: what
 * a process that died had sent before may still be on its way. */
#include "coordinator/core/name.h"

#include <stdio.h>

#include "coordinator/core/worker.h"

static struct rival *rival_of(struct farm *f, uint64_t conn) {
    for (uint32_t i = 0; f->rival_count > 0 && i < RIVALS_MAX; i++)
        if (f->rivals[i].conn == conn) return &f->rivals[i];
    return NULL;
}

static void rival_end(struct farm *f, struct rival *r) {
    *r = (struct rival){0};
    f->rival_count--;
}

void name_forget(struct farm *f, uint64_t conn) {
    struct rival *r = rival_of(f, conn);
    if (r) rival_end(f, r);
}

static bool is_kin(const struct worker *w, const char *base, const kn_id machine) {
    return w->has_machine && strcmp(w->base, base) == 0 && memcmp(w->machine, machine, sizeof(kn_id)) == 0;
}

/* The worker may have the name that the newcomer wants. */
static bool is_wanted(const struct worker *w, const struct rival *r) {
    return r->wanted ? w->uid == r->wanted : is_kin(w, r->base, r->machine);
}

static int ask(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, const struct worker *wanted,
               struct farm_effects *fx) {
    struct rival *r = NULL;
    for (uint32_t i = 0; i < RIVALS_MAX && !r; i++)
        if (!f->rivals[i].conn) r = &f->rivals[i];
    if (!r) return KN_ELIMIT;
    int rc = fx_reserve(fx, f->worker_count + 1);
    if (rc) return rc;
    *r = (struct rival){.conn = conn, .question = ++f->question, .since_ms = f->now};
    f->rival_count++;
    if (wanted) {
        r->wanted = wanted->uid;
    } else {
        snprintf(r->base, sizeof r->base, "%s", h->base);
        memcpy(r->machine, h->machine, sizeof r->machine);
    }
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (!w->conn || !is_wanted(w, r)) continue;
        w->asked = r->question;
        struct farm_effect *e = fx_add(fx, FX_ASK);
        e->conn = w->conn;
        e->u.ask.question = r->question;
    }
    return KN_EAGAIN;
}

/* ---- which name */

static int chosen_name(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, const char **out,
                       struct farm_effects *fx) {
    struct worker *w = worker_by_name(f, h->worker);
    *out = h->worker;
    bool other = w && w->conn && w->conn != conn && memcmp(w->instance, h->instance, sizeof w->instance) != 0;
    return other ? ask(f, conn, h, w, fx) : KN_OK;
}

/* The base, or base-2, base-3 …: the first that no worker has, or had and may come back to. */
static int free_name(const struct farm *f, const struct ev_worker_hello *h, char room[KN_NAME_MAX + 1],
                     const char **out) {
    *out = room;
    for (uint32_t n = 1; n <= KN_WORKERS_MAX + 1; n++) {
        char number[12] = "";
        if (n > 1) snprintf(number, sizeof number, "-%u", n);
        snprintf(room, KN_NAME_MAX + 1, "%.*s%s", KN_NAME_MAX - (int)strlen(number), h->base, number);
        if (!worker_by_name(f, room)) return KN_OK;
    }
    return KN_ELIMIT;
}

static int made_name(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, bool others_live,
                     char room[KN_NAME_MAX + 1], const char **out, struct farm_effects *fx) {
    bool kin_there = false;
    struct worker *kin_away = NULL;
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        bool kin = h->has_machine && is_kin(w, h->base, h->machine);
        if ((kin && w->conn == conn) ||
            (!w->lost && memcmp(w->instance, h->instance, sizeof w->instance) == 0)) {
            *out = w->name; /* the same process, or the same connection */
            return KN_OK;
        }
        if (!kin) continue;
        kin_there |= w->conn != 0;
        /* Of several that are away, the name that it had before; else the first. */
        if (!w->conn && (!kin_away || (h->named_by_farm && strcmp(w->name, h->worker) == 0))) kin_away = w;
    }
    if (kin_away) {
        *out = kin_away->name;
        return KN_OK;
    }
    if (kin_there && !others_live) return ask(f, conn, h, NULL, fx);
    if (h->named_by_farm && !worker_by_name(f, h->worker)) { /* an earlier coordinator gave it */
        *out = h->worker;
        return KN_OK;
    }
    return free_name(f, h, room, out);
}

int name_of_hello(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, char room[KN_NAME_MAX + 1],
                  const char **out, struct farm_effects *fx) {
    const char *base = h->base ? h->base : "";
    if (!h->worker || !*h->worker || strlen(h->worker) > KN_NAME_MAX || strlen(base) > KN_NAME_MAX)
        return KN_EINVAL;
    struct rival *r = rival_of(f, conn);
    if (r && !r->settled) return KN_EAGAIN;
    bool others_live = r && r->others_live;
    if (r) rival_end(f, r);
    return *base ? made_name(f, conn, h, others_live, room, out, fx) : chosen_name(f, conn, h, out, fx);
}

void name_keep(struct worker *w, const struct ev_worker_hello *h) {
    bool made = h->base && *h->base;
    snprintf(w->base, sizeof w->base, "%s", made ? h->base : "");
    w->has_machine = made && h->has_machine;
    memcpy(w->machine, h->machine, sizeof w->machine);
    w->answers = h->answers;
    w->asked = w->answered = 0;
}

/* ---- questions and answers */

void name_answer(struct worker *w, uint64_t question) {
    if (!w->answers) question = w->asked; /* of an older kind: it is there, and nothing more is to be had */
    if (question > w->answered && question <= w->asked) w->answered = question;
}

struct worker *name_silent(const struct farm *f, const struct rival *r) {
    for (size_t i = 0; i < f->worker_count; i++) {
        struct worker *w = f->workers[i];
        if (w->conn && is_wanted(w, r) && w->asked >= r->question && w->answered < r->question) return w;
    }
    return NULL;
}

bool name_settle(struct farm *f, struct rival *r, struct farm_effects *fx) {
    if (!r->conn) return false;
    if (r->settled) {
        if (f->now - r->since_ms >= RIVAL_MS) rival_end(f, r);
        return false;
    }
    const struct worker *there = NULL;
    bool away = false;
    for (size_t i = 0; i < f->worker_count; i++) {
        const struct worker *w = f->workers[i];
        if (!is_wanted(w, r)) continue;
        away |= !w->conn;
        if (w->conn) there = w;
    }
    bool all = there && !away;
    if (all && name_silent(f, r)) return f->now - r->since_ms >= f->config.ask_ms;
    if (fx_reserve(fx, 1)) return false; /* the next step tries again */
    struct farm_effect *e = fx_add(fx, all && r->wanted ? FX_REFUSE : FX_HELLO_AGAIN);
    e->conn = r->conn;
    if (all && r->wanted) {
        e->u.refuse.worker = fx_text(fx, there->name);
        rival_end(f, r);
        return false;
    }
    r->settled = true;
    r->others_live = all;
    r->since_ms = f->now;
    return false;
}

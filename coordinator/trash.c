/* See trash.h. */
#include "coordinator/trash.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/aside.h"
#include "coordinator/send.h"

#define ORPHANS_MAX 100000
#define ROUND_MAX 16384     /* candidates of one round */
#define RECORDS_A_TURN 4096 /* looked at before the loop goes on */
#define BEHIND_MAX 256      /* objects looked for at once, behind commits */
#define PARTS_MAX 256       /* of a folder that has too many files for one round */
#define TRASH_MS (60 * 60 * 1000ull)
#define ARRIVING_MS (60 * 60 * 1000ull) /* longer by far than from a picture's arrival to its commit */
#define DAY_MS (24 * 60 * 60 * 1000ull)
#define RACY_MS 2000 /* a folder changed so shortly ago may change again without another date */

struct tomb {
    struct tomb *next;
    kn_id id;
    bool now;
    uint8_t (*records)[STORE_RECORD_BYTES]; /* owns */
    size_t count, at;                       /* at: the next to become candidates */
};

struct candidate {
    uint8_t sha256[KN_SHA256_BYTES];
    char name[OBJECTS_NAME_MAX]; /* in the trash; "": it is an object */
    uint32_t next;               /* another of the same digest: its index + 1; 0: none */
    uint64_t age_ms, bytes;
    bool named; /* a record names it */
    bool due;   /* to be deleted: moved by this round, or old enough */
};

enum round_kind {
    ROUND_NONE,
    ROUND_TOMB,    /* a part of the first tombstone */
    ROUND_ORPHANS, /* all of them */
    ROUND_TRASH,   /* what lies there: to be moved back, or deleted when it is old enough */
    ROUND_SWEEP,   /* the objects themselves */
};

struct tally { /* what rounds have done */
    uint64_t moved, moved_bytes, restored, deleted, deleted_bytes, strays, others;
};

struct place { /* how far a listing of 256 folders has come */
    unsigned folder, part, parts;
};

struct trash {
    struct server *s;
    uv_idle_t *turn;        /* owns; closed before this struct is freed: a look goes on */
    struct kn_map *orphans; /* digest -> its copy */
    struct tomb *tombs, **tombs_end;
    bool tombs_wait; /* until the next sweep: files could not be moved, or the store was busy */
    bool closing;
    uint64_t trash_ms; /* TRASH_MS, but for tests */

    enum round_kind kind; /* of the round under way */
    bool looking;         /* commits must be heard of: their digests are not to go */
    bool meanwhile;       /* something was committed while a thread had the candidates */
    bool deleting;        /* the candidates lie in the trash */
    struct candidate *v;  /* owns; ROUND_MAX */
    size_t count;
    struct kn_map *by_digest; /* -> index + 1 of the first with that digest */
    kn_id *ids;               /* owns: the batches that are gone through */
    size_t id_count, id_at;
    uint32_t task_at;
    struct tally did;      /* by the round's thread */
    bool overflow, failed; /* the listing's */

    struct place trash_at, sweep_at;
    bool trash_due, sweep_due;
    uint64_t trash_seen[OBJECTS_FOLDERS]; /* when the folder was changed last, as it was listed; 0: list it */
    uint64_t trash_due_ms[OBJECTS_FOLDERS]; /* Unix time: something in it is old enough then */
    uint64_t sweep_ms;                      /* when the last began; 0: none has */
    struct tally sum;                       /* since the sweep began */
    bool repair_asked, repairing;           /* by a person: the next sweep, the one under way */
    struct reply_to repair;                 /* who waits for it */
    uint8_t behind[BEHIND_MAX][KN_SHA256_BYTES];
    size_t behind_count;
    size_t restored; /* because somebody missed it, since the last sweep */
};

static void next_round(struct trash *t);

/* ---- candidates */

static void add_candidate(struct trash *t, const uint8_t sha256[KN_SHA256_BYTES]) {
    if (kn_map_get(t->by_digest, sha256, KN_SHA256_BYTES)) return;
    struct candidate *c = &t->v[t->count];
    *c = (struct candidate){0};
    memcpy(c->sha256, sha256, sizeof c->sha256);
    if (kn_map_put(t->by_digest, sha256, KN_SHA256_BYTES, (void *)(uintptr_t)(t->count + 1)) == 0) t->count++;
}

/* Those that a listing found, of which several may have one digest. */
static bool index_candidates(struct trash *t) {
    for (size_t i = 0; i < t->count; i++) {
        struct candidate *c = &t->v[i];
        uintptr_t first = (uintptr_t)kn_map_get(t->by_digest, c->sha256, KN_SHA256_BYTES);
        if (first) {
            c->next = t->v[first - 1].next;
            t->v[first - 1].next = (uint32_t)i + 1;
        } else if (kn_map_put(t->by_digest, c->sha256, KN_SHA256_BYTES, (void *)(uintptr_t)(i + 1)) != 0) {
            return false;
        }
    }
    return true;
}

static void name_candidates(struct trash *t, const uint8_t sha256[KN_SHA256_BYTES]) {
    uintptr_t at = (uintptr_t)kn_map_get(t->by_digest, sha256, KN_SHA256_BYTES);
    while (at) {
        t->v[at - 1].named = true;
        at = t->v[at - 1].next;
    }
}

void trash_named(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]) {
    struct trash *t = s->trash;
    if (t->looking)
        name_candidates(t, sha256);
    else
        t->meanwhile = true;
}

/* ---- list, on a thread */

struct listing {
    struct trash *t;
    const struct place *at;
    bool trash;
    uint64_t due_ms, now_ms;
};

static bool list_one(void *ctx, const struct objects_entry *e) {
    struct listing *l = ctx;
    struct trash *t = l->t;
    if (e->sha256[1] * l->at->parts / 256 != l->at->part) return true;
    if (l->trash) {
        uint64_t due = e->age_ms < t->trash_ms ? l->now_ms + t->trash_ms - e->age_ms : l->now_ms;
        if (due < l->due_ms) l->due_ms = due;
    } else if (e->age_ms < ARRIVING_MS) {
        return true;
    }
    if (t->count == ROUND_MAX) {
        t->overflow = true;
        return false;
    }
    struct candidate *c = &t->v[t->count++];
    *c = (struct candidate){.age_ms = e->age_ms, .bytes = e->bytes};
    memcpy(c->sha256, e->sha256, sizeof c->sha256);
    memcpy(c->name, e->name, sizeof c->name);
    return true;
}

/* The next folder, or part of one. */
static void move_on(struct place *p) {
    if (++p->part < p->parts) return;
    *p = (struct place){.folder = p->folder + 1, .part = 0, .parts = 1};
}

/* False: it would not fit; nothing of it is listed. */
static bool list_part(struct trash *t, struct objects *o, struct place *p, struct listing *l) {
    size_t before = t->count;
    t->overflow = false;
    objects_each(o, p->folder, l->trash, list_one, l, p->part == 0 ? &t->did.others : NULL);
    if (!t->overflow) return true;
    t->count = before;
    if (before > 0) return false;
    t->failed = p->parts == PARTS_MAX; /* millions of files in one folder: it is left out */
    if (t->failed)
        *p = (struct place){.folder = p->folder + 1, .parts = 1};
    else /* too much by itself: in smaller parts, from the first again */
        *p = (struct place){.folder = p->folder, .parts = p->parts * 4};
    return false;
}

static void list_trash(struct objects *o, void *ctx) {
    struct trash *t = ctx;
    struct place *p = &t->trash_at;
    while (p->folder < OBJECTS_FOLDERS && !t->failed) {
        struct listing l = {.t = t, .at = p, .trash = true, .due_ms = UINT64_MAX, .now_ms = kn_wall_ms()};
        uint64_t *seen = &t->trash_seen[p->folder], *due = &t->trash_due_ms[p->folder];
        uint64_t changed = objects_trash_changed(o, p->folder);
        if (p->parts == 1 && *seen && *seen == changed && l.now_ms < *due) {
            move_on(p);
            continue;
        }
        unsigned folder = p->folder;
        if (!list_part(t, o, p, &l)) {
            *seen = 0;
            if (t->count > 0) return;
            continue;
        }
        bool racy = changed / 1000000 + RACY_MS > l.now_ms;
        t->trash_seen[folder] = p->parts == 1 && !racy ? changed : 0;
        t->trash_due_ms[folder] = l.due_ms;
        move_on(p);
    }
}

static void list_objects(struct objects *o, void *ctx) {
    struct trash *t = ctx;
    struct place *p = &t->sweep_at;
    if (p->folder == 0 && p->part == 0) t->did.strays += objects_remove_strays(o);
    while (p->folder < OBJECTS_FOLDERS && !t->failed) {
        struct listing l = {.t = t, .at = p};
        if (list_part(t, o, p, &l))
            move_on(p);
        else if (t->count > 0)
            return;
    }
}

/* ---- act, on a thread */

static void act_move(struct objects *o, void *ctx) {
    struct trash *t = ctx;
    for (size_t i = 0; i < t->count; i++) {
        struct candidate *c = &t->v[i];
        if (c->named) continue;
        int rc = objects_trash(o, c->sha256, c->name);
        if (rc == 0) {
            c->due = true;
            t->did.moved++;
            t->did.moved_bytes += c->bytes;
        } else if (rc != KN_ENOENT) {
            t->failed = true;
        }
    }
}

static bool has_object(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], bool *restored) {
    void *data;
    size_t len;
    int rc = objects_read(o, sha256, &data, &len, restored);
    free(data);
    return rc == 0;
}

static void act_delete(struct objects *o, void *ctx) {
    struct trash *t = ctx;
    for (size_t i = 0; i < t->count; i++) {
        struct candidate *c = &t->v[i];
        if (!c->name[0]) continue;
        bool restored = false;
        /* It is moved back if it is missed. Beside an intact object it is only a second copy. */
        bool needed = c->named && !has_object(o, c->sha256, &restored);
        t->did.restored += restored;
        if (restored || needed || !c->due || objects_delete(o, c->sha256, c->name) != 0) continue;
        t->did.deleted++;
        t->did.deleted_bytes += c->bytes;
    }
}

/* ---- a round */

static void add_up(struct tally *sum, const struct tally *x) {
    sum->moved += x->moved;
    sum->moved_bytes += x->moved_bytes;
    sum->restored += x->restored;
    sum->deleted += x->deleted;
    sum->deleted_bytes += x->deleted_bytes;
    sum->strays += x->strays;
    sum->others += x->others;
}

static void clear_round(struct trash *t) {
    kn_map_destroy(t->by_digest);
    t->by_digest = NULL;
    free(t->v);
    free(t->ids);
    t->v = NULL;
    t->ids = NULL;
    t->kind = ROUND_NONE;
    t->looking = t->deleting = false;
    t->count = t->id_count = 0;
    t->did = (struct tally){0};
    if (!t->closing) uv_idle_stop(t->turn);
}

/* It is tried again at the next sweep. */
static void give_up(struct trash *t, const char *why) {
    kn_debug("trash_round_given_up kind=%d reason=\"%s\"", (int)t->kind, why);
    if (t->kind == ROUND_TRASH) t->trash_due = false;
    if (t->kind == ROUND_TRASH) memset(t->trash_seen, 0, sizeof t->trash_seen);
    clear_round(t);
}

static void on_buried(void *ctx, int code, const void *data, size_t len) {
    (void)ctx;
    (void)data;
    (void)len;
    if (code != 0 && code != KN_ECANCELED) kn_warn("tombstone_stays code=%d", code);
}

static void tomb_free(struct tomb *x) {
    free(x->records);
    free(x);
}

/* The first tombstone's objects are all in the trash. */
static void bury(struct trash *t) {
    struct tomb *x = t->tombs;
    char id[KN_UUID_TEXT];
    kn_uuid_format(x->id, id);
    if (store_bury(t->s->store, x->id, x->count, on_buried, NULL) != 0) {
        t->tombs_wait = true;
        return;
    }
    kn_info("batch_buried batch=%s", id);
    t->tombs = x->next;
    if (!t->tombs) t->tombs_end = &t->tombs;
    tomb_free(x);
}

static void look_at_names(struct trash *t);

static void begin_trash(struct trash *t) {
    t->trash_at = (struct place){.parts = 1};
    t->trash_due = true;
}

static void end_round(struct trash *t) {
    enum round_kind kind = t->kind;
    bool failed = t->failed;
    uint64_t moved = t->did.moved;
    add_up(&t->sum, &t->did);
    if (t->did.moved + t->did.restored + t->did.deleted + t->did.strays > 0)
        kn_info("trash moved=%llu restored=%llu deleted=%llu strays=%llu", (unsigned long long)t->did.moved,
                (unsigned long long)t->did.restored, (unsigned long long)t->did.deleted,
                (unsigned long long)t->did.strays);
    if (failed) kn_warn("trash_incomplete kind=%d reason=\"some files cannot be moved\"", (int)kind);
    if (kind == ROUND_TOMB && !failed) t->tombs->at += ROUND_MAX;
    /* One of what has just been moved may be named by now: a round over the trash moves it back. */
    if (t->meanwhile && moved > 0) begin_trash(t);
    clear_round(t);
    if (kind == ROUND_TOMB && failed) t->tombs_wait = true;
    next_round(t);
}

static void on_acted(void *ctx, bool closed) {
    struct trash *t = ctx;
    if (closed || t->closing) return;
    /* Objects of a batch that is to be deleted at once lie in the trash now: the same once more, for them. */
    bool now = t->kind == ROUND_TOMB && t->tombs->now && !t->deleting;
    if (!now) {
        end_round(t);
        return;
    }
    t->deleting = true;
    for (size_t i = 0; i < t->count; i++) t->v[i].named = false;
    look_at_names(t);
}

static void on_confirmed(void *ctx, int code, const void *data, size_t len) {
    struct trash *t = ctx;
    (void)data;
    (void)len;
    if (t->closing || code == KN_ECANCELED) return;
    t->looking = t->meanwhile = false; /* the thread has the candidates now */
    if (code != 0)
        give_up(t, "the lead was not confirmed");
    else if (collect_work(t->s->collect, t->deleting ? act_delete : act_move, on_acted, t) != 0)
        give_up(t, "too many reads wait");
}

/* The entries that are left after the look: does anything have to be done? */
static void on_looked_at(struct trash *t) {
    size_t count = 0;
    uint64_t bytes = 0;
    char hex[KN_SHA256_HEX] = "";
    for (size_t i = 0; i < t->count; i++) {
        struct candidate *c = &t->v[i];
        if (t->kind == ROUND_TRASH) c->due = c->age_ms >= t->trash_ms;
        bool to_do = t->deleting ? c->named || c->due : !c->named;
        if (!to_do) continue;
        if (count++ == 0) kn_hex(c->sha256, KN_SHA256_BYTES, hex);
        bytes += c->bytes;
    }
    if (count > 0 && t->kind == ROUND_SWEEP)
        kn_info("objects_unnamed count=%zu bytes=%llu first=%s", count, (unsigned long long)bytes, hex);
    if (count == 0)
        end_round(t);
    else if (store_confirm(t->s->store, on_confirmed, t) != 0)
        give_up(t, "the store takes nothing now");
}

static void name_waiting(void *ctx, const kn_digest sha256) {
    name_candidates(ctx, sha256);
}

/* A removal that the store has not acknowledged has not happened: such a batch counts. */
static void on_turn(uv_idle_t *h) {
    struct trash *t = h->data;
    struct server *s = t->s;
    struct store_record r;
    for (uint32_t n = 0; n < RECORDS_A_TURN && t->id_at < t->id_count; n++) {
        const struct kept_batch *b = batches_find(&s->batches, t->ids[t->id_at]);
        if (!b || !b->records || t->task_at >= b->tasks) {
            t->id_at++;
            t->task_at = 0;
            continue;
        }
        if (batch_record(b, t->task_at++, &r)) name_candidates(t, r.sha256);
    }
    if (t->id_at < t->id_count) return;
    /* What is on its way to a record is as good as named: it may have relied on an object that was there. */
    for (const struct commit *c = s->arrivals; c; c = c->next) name_candidates(t, c->sha256);
    for (const struct commit *c = s->commits; c; c = c->next) name_candidates(t, c->sha256);
    farm_each_waiting(s->farm, name_waiting, t);
    uv_idle_stop(h);
    on_looked_at(t);
}

/* Batches that come meanwhile have no records yet, and each commit is heard of. */
static void look_at_names(struct trash *t) {
    size_t pos = 0;
    const struct kept_batch *b;
    free(t->ids);
    t->ids = calloc(kn_map_count(t->s->batches.by_id) + 1, sizeof *t->ids);
    t->id_count = t->id_at = 0;
    t->task_at = 0;
    if (!t->ids) {
        give_up(t, "out of memory");
        return;
    }
    while ((b = kn_map_next(t->s->batches.by_id, &pos))) memcpy(t->ids[t->id_count++], b->id, sizeof(kn_id));
    t->looking = true;
    uv_idle_start(t->turn, on_turn);
}

static void on_listed(void *ctx, bool closed) {
    struct trash *t = ctx;
    if (closed || t->closing) return;
    if (t->failed) kn_warn("trash_listing_incomplete kind=%d", (int)t->kind);
    if (t->count == 0)
        end_round(t);
    else if (index_candidates(t))
        look_at_names(t);
    else
        give_up(t, "out of memory");
}

static bool begin_round(struct trash *t, enum round_kind kind) {
    t->v = malloc(ROUND_MAX * sizeof *t->v);
    t->by_digest = kn_map_create(ROUND_MAX);
    t->kind = kind;
    t->failed = false;
    t->deleting = kind == ROUND_TRASH;
    if (t->v && t->by_digest) return true;
    give_up(t, "out of memory");
    return false;
}

static void begin_listing(struct trash *t, enum round_kind kind) {
    if (!begin_round(t, kind)) return;
    if (collect_work(t->s->collect, kind == ROUND_TRASH ? list_trash : list_objects, on_listed, t) != 0)
        give_up(t, "too many reads wait");
}

static void take_orphans(struct trash *t) {
    struct kn_map *left = kn_map_create(ORPHANS_MAX);
    size_t pos = 0;
    uint8_t *x;
    while (left && (x = kn_map_next(t->orphans, &pos))) {
        if (t->count < ROUND_MAX)
            add_candidate(t, x);
        else if (kn_map_put(left, x, KN_SHA256_BYTES, x) == 0)
            continue;
        free(x);
    }
    if (!left) return;
    kn_map_destroy(t->orphans);
    t->orphans = left;
}

static void answer_repair(struct trash *t) {
    struct kn_msg m = {.type = KN_MSG_REPAIR_REPLY, .request = t->repair.request};
    if (!t->repairing) return;
    t->repairing = false;
    m.u.repair_reply = (struct kn_repair_reply){.moved = t->sum.moved,
                                                .moved_bytes = t->sum.moved_bytes,
                                                .restored = t->sum.restored,
                                                .deleted = t->sum.deleted,
                                                .deleted_bytes = t->sum.deleted_bytes,
                                                .strays = t->sum.strays,
                                                .others = t->sum.others};
    send_to(t->repair.sock, &t->repair.peer, &m);
    t->repair.sock = NULL;
}

static void begin_sweep(struct trash *t) {
    t->sweep_at = (struct place){.parts = 1};
    t->sweep_due = true;
    t->sweep_ms = kn_clock_ms();
    t->sum = (struct tally){0};
}

static void begin_repair(struct trash *t) {
    t->repair_asked = false;
    t->repairing = true;
    memset(t->trash_seen, 0, sizeof t->trash_seen);
    begin_trash(t);
    begin_sweep(t);
}

/* Tombstones first: a person waits for the room. */
static void next_round(struct trash *t) {
    if (t->kind != ROUND_NONE || t->closing) return;
    if (aside_count(t->s) > 0) { /* nobody knows what the records of that batch name: everything stays */
        t->repairing = t->repairing || t->repair_asked;
        t->repair_asked = false;
        answer_repair(t);
        return;
    }
    if (t->repair_asked) begin_repair(t);
    while (t->tombs && !t->tombs_wait && t->tombs->at >= t->tombs->count) bury(t);
    if (t->tombs && !t->tombs_wait) {
        struct tomb *x = t->tombs;
        struct store_record r;
        if (!begin_round(t, ROUND_TOMB)) return;
        for (size_t i = x->at; i < x->count && i < x->at + ROUND_MAX; i++)
            if (store_record_unpack(x->records[i], &r)) add_candidate(t, r.sha256);
        look_at_names(t);
    } else if (t->trash_due && kn_map_count(t->orphans) > 0) {
        if (!begin_round(t, ROUND_ORPHANS)) return;
        take_orphans(t);
        look_at_names(t);
    } else if (t->trash_due) {
        if (t->trash_at.folder >= OBJECTS_FOLDERS) {
            t->trash_due = false;
            next_round(t);
            return;
        }
        begin_listing(t, ROUND_TRASH);
    } else if (t->sweep_due) {
        if (t->sweep_at.folder >= OBJECTS_FOLDERS) {
            t->sweep_due = false;
            answer_repair(t);
            return;
        }
        begin_listing(t, ROUND_SWEEP);
    }
}

/* ---- what there is to do */

void trash_orphan(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]) {
    uint8_t *copy = malloc(KN_SHA256_BYTES);
    if (!copy) return;
    memcpy(copy, sha256, KN_SHA256_BYTES);
    if (kn_map_put(s->trash->orphans, sha256, KN_SHA256_BYTES, copy) != 0) free(copy);
}

static struct tomb *add_tomb(struct trash *t, const kn_id id, bool now) {
    struct tomb *x = calloc(1, sizeof *x);
    if (!x) return NULL;
    memcpy(x->id, id, sizeof x->id);
    x->now = now;
    *t->tombs_end = x;
    t->tombs_end = &x->next;
    return x;
}

int trash_tomb(struct server *s, const kn_id id, bool now, uint8_t (*records)[STORE_RECORD_BYTES],
               size_t count) {
    struct tomb *x = add_tomb(s->trash, id, now);
    if (!x) {
        free(records);
        return KN_ENOMEM;
    }
    x->records = records;
    x->count = count;
    next_round(s->trash);
    return 0;
}

int trash_read_tomb(struct server *s, const kn_id id, bool now, const uint8_t (*records)[STORE_RECORD_BYTES],
                    size_t count) {
    struct trash *t = s->trash;
    struct tomb *x = t->tombs;
    while (x && memcmp(x->id, id, sizeof(kn_id)) != 0) x = x->next;
    if (!x) x = add_tomb(t, id, now);
    if (!x) return KN_ENOMEM;
    if (count == 0) return 0;
    uint8_t(*v)[STORE_RECORD_BYTES] = realloc(x->records, (x->count + count) * sizeof *v);
    if (!v) return KN_ENOMEM;
    memcpy(v + x->count, records, count * sizeof *v);
    x->records = v;
    x->count += count;
    return 0;
}

/* ---- behind commits */

static void on_behind(void *ctx, const struct collect_look *v, size_t count) {
    (void)ctx; /* those that were moved back are told to on_restored() */
    (void)v;
    (void)count;
}

static void look_behind(struct trash *t) {
    size_t n = t->behind_count;
    t->behind_count = 0;
    struct collect_look *v = n ? calloc(n, sizeof *v) : NULL;
    if (!v) return; /* a round over the trash finds them */
    for (size_t i = 0; i < n; i++) memcpy(v[i].sha256, t->behind[i], sizeof v[i].sha256);
    if (collect_look(t->s->collect, v, n, false, on_behind, t) != 0) free(v);
}

void trash_committed(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]) {
    struct trash *t = s->trash;
    trash_named(s, sha256);
    memcpy(t->behind[t->behind_count++], sha256, KN_SHA256_BYTES);
    if (t->behind_count == BEHIND_MAX) look_behind(t);
}

/* Somebody missed it. Does a record name it? If not, it goes back. */
static void on_restored(void *ctx, const uint8_t sha256[KN_SHA256_BYTES]) {
    struct server *s = ctx;
    s->trash->restored++;
    trash_orphan(s, sha256);
}

void trash_tick(struct server *s) {
    look_behind(s->trash);
}

void trash_sweep(struct server *s) {
    struct trash *t = s->trash;
    if (t->restored)
        kn_warn("objects_restored count=%zu reason=\"they were missed, and lay in the trash\"", t->restored);
    t->restored = 0;
    t->tombs_wait = false;
    if (!t->trash_due) begin_trash(t);
    if (!t->sweep_due && (t->sweep_ms == 0 || kn_clock_ms() - t->sweep_ms >= DAY_MS)) begin_sweep(t);
    next_round(t);
}

void trash_repair(struct server *s, const struct reply_to *to) {
    struct trash *t = s->trash;
    t->repair = *to;
    if (t->repairing) return;
    t->repair_asked = true;
    next_round(t);
}

/* ---- life */

int trash_init(struct server *s) {
    struct trash *t = calloc(1, sizeof *t);
    if (!t) return KN_ENOMEM;
    t->s = s;
    t->tombs_end = &t->tombs;
    t->trash_ms = s->opt.trash_ms ? s->opt.trash_ms : TRASH_MS;
    t->orphans = kn_map_create(ORPHANS_MAX);
    t->turn = malloc(sizeof *t->turn);
    if (!t->orphans || !t->turn) {
        kn_map_destroy(t->orphans);
        free(t->turn);
        free(t);
        return KN_ENOMEM;
    }
    uv_idle_init(s->loop, t->turn);
    t->turn->data = t;
    collect_on_restored(s->collect, on_restored, s);
    s->trash = t;
    return 0;
}

static void free_handle(uv_handle_t *h) {
    free(h);
}

void trash_close(struct server *s) {
    struct trash *t = s->trash;
    if (!t || t->closing) return;
    t->closing = true;
    uv_close((uv_handle_t *)t->turn, free_handle);
}

void trash_fini(struct server *s) {
    struct trash *t = s->trash;
    size_t pos = 0;
    uint8_t *x;
    if (!t) return;
    clear_round(t);
    while ((x = kn_map_next(t->orphans, &pos))) free(x);
    kn_map_destroy(t->orphans);
    while (t->tombs) {
        struct tomb *next = t->tombs->next;
        tomb_free(t->tombs);
        t->tombs = next;
    }
    free(t);
    s->trash = NULL;
}

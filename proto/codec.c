/* Between plain structs and protobuf-c, in both directions. See codec.h, and messages.h for the tables of
 * which the functions here are made.
 *
 * For each message and part there is one function that writes it (pb_NAME) and one that reads it
 * (decode_NAME): a row of the table becomes the statement that ENCODE_KIND or DECODE_KIND makes of it. In
 * both, s is the plain struct and p the one of protobuf-c. A message and its arena are one block: the arena
 * holds what protobuf-c unpacked, and the plain struct points into it. While a message is packed, its strings
 * and arrays are borrowed. */
#include "base/utf8.h"
#include "proto/codec_private.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ENCODE_BYTES_MAX (64u << 20) /* what protobuf-c's structs of one message may take */
#define DECODE_BYTES_MAX                                                                                     \
    ((size_t)64 * KN_FRAME_BYTES_MAX) /* an empty nested message takes two bytes on the wire and a
                                                            * hundred unpacked: so much bounds what a frame can cost */
#define NOT_KNOWN "of a later kiln, not known here"
#define NEWER_SCHEDULER "of a later kiln" /* names a model's sampler that this program does not know */

const char *kn_msg_name(enum kn_msg_type type) {
    switch (type) {
#define NAME(number, ID, name, pb)                                                                           \
    case KN_MSG_##ID:                                                                                        \
        return #name;
        KN_MESSAGE_TABLE(NAME, NAME)
#undef NAME
    }
    return "?";
}

/* ---- writing */

/* The state of one encoding. */
struct enc {
    struct arena *a;
    bool full; /* out of memory */
};

static char *text_of(const char *s) {
    return (char *)(uintptr_t)(s ? s : "");
}

static ProtobufCBinaryData bin(const void *p, size_t n) {
    return (ProtobufCBinaryData){.len = n, .data = (uint8_t *)(uintptr_t)p};
}

/* A new message of a type, or NULL. */
static void *new_pb(struct enc *c, const ProtobufCMessageDescriptor *type) {
    void *p = arena_alloc(c->a, type->sizeof_message);
    if (p)
        protobuf_c_message_init(type, p);
    else
        c->full = true;
    return p;
}

static void *new_array(struct enc *c, size_t count) {
    void *p = arena_array(c->a, count, sizeof(void *));
    if (!p) c->full = true;
    return p;
}

static bool all_zero(const void *p, size_t n) {
    const uint8_t *b = p;
    for (size_t i = 0; i < n; i++)
        if (b[i]) return false;
    return true;
}

static Kiln__Pb__ModelInfo *pb_model_info(struct enc *c, const struct kn_model_info *m) {
    Kiln__Pb__ModelInfo *p = new_pb(c, &kiln__pb__model_info__descriptor);
    if (!p) return NULL;
    p->name = text_of(m->name);
    p->sha256 = bin(m->sha256, KN_SHA256_BYTES);
    /* A reader of before knows no unset sampler: it gets the one that it would have chosen itself. */
    p->sampler = (uint32_t)(m->scheduler[0] ? KN_SAMPLER_EULER : m->defaults.sampler);
    p->scheduler = text_of(m->scheduler);
    p->karras = m->defaults.karras;
    p->schedule = (uint32_t)m->defaults.schedule;
    p->steps = m->defaults.steps;
    p->cfg = m->defaults.cfg;
    p->width = m->defaults.width;
    p->height = m->defaults.height;
    p->size_multiple = m->size_multiple;
    p->size_max = m->size_max;
    return p;
}

static Kiln__Pb__Task *pb_task(struct enc *c, const struct kn_task *t) {
    Kiln__Pb__Task *p = new_pb(c, &kiln__pb__task__descriptor);
    if (!p) return NULL;
    p->prompt = text_of(t->prompt);
    p->negative = text_of(t->negative);
    p->extra = text_of(t->extra);
    p->model_index = t->model_index;
    p->seed = t->seed;
    p->cfg = t->cfg;
    p->steps = t->steps;
    p->width = t->width;
    p->height = t->height;
    p->sampler = (uint32_t)t->sampler;
    p->schedule = (uint32_t)t->schedule;
    return p;
}

Kiln__Pb__Task **codec_tasks_to_pb(struct arena *a, const struct kn_task *t, size_t count) {
    struct enc c = {.a = a};
    Kiln__Pb__Task **v = new_array(&c, count);
    for (size_t i = 0; !c.full && i < count; i++) v[i] = pb_task(&c, &t[i]);
    return c.full ? NULL : v;
}

/* The elements of a list, each made by its own function. */
#define ENCODE_EACH(part, n, v, count)                                                                       \
    p->n_##n = s->count;                                                                                     \
    p->n = new_array(c, s->count);                                                                           \
    for (size_t i = 0; !c->full && i < s->count; i++) p->n[i] = pb_##part(c, &s->v[i]);

#define ENCODE(kind, ...) ENCODE_##kind(__VA_ARGS__)
#define ENCODE_U32(n) p->n = s->n;
#define ENCODE_U64(n) p->n = s->n;
#define ENCODE_S32(n) p->n = s->n;
#define ENCODE_S64(n) p->n = s->n;
#define ENCODE_BOOL(n) p->n = s->n;
#define ENCODE_FLOAT(n) p->n = s->n;
#define ENCODE_RANGE(n, min, max) p->n = s->n;
#define ENCODE_RANGE64(n, min, max) p->n = s->n;
#define ENCODE_TASK(n) p->n = s->n;
#define ENCODE_ERROR(n) p->n = s->n;
#define ENCODE_ENUM(n, type, first, last) p->n = (uint32_t)s->n;
#define ENCODE_STATE(n, type, first, last) p->n = (uint32_t)s->n;
#define ENCODE_TEXT(n, max) p->n = text_of(s->n);
#define ENCODE_NAME(n, max) p->n = text_of(s->n);
#define ENCODE_CLAMP(n, min, max) p->n = s->n;
#define ENCODE_CUT(n, max) p->n = text_of(s->n);
#define ENCODE_NAMES(n, count, max)                                                                          \
    p->n_##n = s->count;                                                                                     \
    p->n = (char **)(uintptr_t)s->n;
#define ENCODE_BYTES(n, len) p->n = bin(s->n, s->len);
#define ENCODE_ID(n) p->n = bin(s->n, sizeof s->n);
#define ENCODE_DIGEST(n) p->n = bin(s->n, sizeof s->n);
#define ENCODE_ID_OR_NONE(n, has)                                                                            \
    if (s->has) p->n = bin(s->n, sizeof s->n);
#define ENCODE_DIGEST_OR_NONE(n, has)                                                                        \
    if (s->has) p->n = bin(s->n, sizeof s->n);
#define ENCODE_ID_IF(n, condition)                                                                           \
    if (condition) p->n = bin(s->n, sizeof s->n);
#define ENCODE_DIGEST_IF(n, condition)                                                                       \
    if (condition) p->n = bin(s->n, sizeof s->n);
#define ENCODE_PART(part, n) p->n = pb_##part(c, &s->n);
#define ENCODE_PART_OR_NONE(part, n)                                                                         \
    if (!all_zero(&s->n, sizeof s->n)) p->n = pb_##part(c, &s->n);
#define ENCODE_LIST(part, n, v, count, max) ENCODE_EACH(part, n, v, count)
#define ENCODE_KNOWN(part, n, v, count, max) ENCODE_EACH(part, n, v, count)
#define ENCODE_NUMBERS(n, count, max)                                                                        \
    p->n_##n = s->count;                                                                                     \
    p->n = s->n;
#define ENCODE_MODELS_ASKED(n, count, max) ENCODE_EACH(model_info, n, n, count)
#define ENCODE_TASKS(n, count, max) ENCODE_EACH(task, n, n, count)
#define ENCODE_TASK_NUMBERS(n, tasks, count) ENCODE_NUMBERS(n, count, 0)

/* A field of kiln.proto without a row here would never be sent: the first message that is made says so. */
#define ONE_ROW(...) +1
/* clang-format off */
#define ENCODER(ID, name, pb)                                                                                \
    static Kiln__Pb__##pb *pb_##name(struct enc *c, const struct kn_##name *s) {                             \
        assert(kiln__pb__##name##__descriptor.n_fields == 0 KN_FIELDS_##ID(ONE_ROW));                        \
        Kiln__Pb__##pb *p = new_pb(c, &kiln__pb__##name##__descriptor);                                      \
        if (!p) return NULL;                                                                                 \
        KN_FIELDS_##ID(ENCODE)                                                                               \
        return c->full ? NULL : p;                                                                           \
    }
/* clang-format on */
#define MSG_ENCODER(number, ID, name, pb) ENCODER(ID, name, pb)
#define NO_FUNCTION(number, ID, name, pb)
KN_PART_TABLE(ENCODER)
KN_MESSAGE_TABLE(MSG_ENCODER, NO_FUNCTION)

/* A batch that needs more than the first programs of version 1 knew is of version 2, which they refuse in words. */
static uint32_t version_of(const struct kn_msg *m) {
    bool more = m->type == KN_MSG_SUBMIT_BEGIN && m->u.submit_begin.feature_count > 0;
    return more ? KN_PROTO_VERSION_MAX : KN_PROTO_VERSION;
}

int kn_msg_encode(const struct kn_msg *m, struct kn_buf *out, struct kn_err *err) {
    struct arena a;
    arena_init(&a, ENCODE_BYTES_MAX);
    struct enc c = {.a = &a};
    Kiln__Pb__Envelope e = KILN__PB__ENVELOPE__INIT;
    e.version = version_of(m);
    e.request = m->request;
    e.body_case = (Kiln__Pb__Envelope__BodyCase)m->type;
    int rc = KN_EINVAL;
    switch (m->type) {
#define BODY(number, ID, name, pb)                                                                           \
    case KN_MSG_##ID:                                                                                        \
        e.name = pb_##name(&c, &m->u.name);                                                                  \
        rc = 0;                                                                                              \
        break;
#define EMPTY_BODY(number, ID, name, pb)                                                                     \
    case KN_MSG_##ID:                                                                                        \
        e.name = new_pb(&c, &kiln__pb__##name##__descriptor);                                                \
        rc = 0;                                                                                              \
        break;
        KN_MESSAGE_TABLE(BODY, EMPTY_BODY)
#undef BODY
#undef EMPTY_BODY
    }
    if (c.full) rc = KN_ENOMEM;
    if (rc != 0) {
        kn_err_set(err, rc, "encoding %s: %s", kn_msg_name(m->type), kn_err_words(rc));
        goto out;
    }
    size_t len = kiln__pb__envelope__get_packed_size(&e);
    if (len > KN_FRAME_BYTES_MAX) {
        rc = kn_err_set(err, KN_ELIMIT, "encoding %s: %zu bytes, more than %u", kn_msg_name(m->type), len,
                        KN_FRAME_BYTES_MAX);
        goto out;
    }
    void *dst;
    if ((rc = kn_buf_reserve(out, len, &dst)) != 0) {
        kn_err_set(err, rc, "encoding %s: %zu bytes", kn_msg_name(m->type), len);
        goto out;
    }
    out->len += kiln__pb__envelope__pack(&e, dst);
out:
    arena_fini(&a);
    return rc;
}

/* ---- reading */

/* The state of one decoding: the first mistake stays. */
struct dec {
    struct arena *a;
    struct kn_err *err;
    const char *part; /* the field whose part or list is being read; NULL: the message itself */
    int rc;
};

static void fail(struct dec *d, int code, const char *field, const char *what) {
    if (d->rc == 0)
        d->rc =
            kn_err_set(d->err, code, "%s%s%s: %s", d->part ? d->part : "", d->part ? "." : "", field, what);
}

static const char *text(struct dec *d, const char *field, const char *s, size_t max) {
    size_t len = strlen(s);
    if (len > max)
        fail(d, KN_ELIMIT, field, "too long");
    else if (kn_utf8_span(s, len) != len)
        fail(d, KN_EPROTO, field, "not UTF-8");
    return s;
}

static const char *name(struct dec *d, const char *field, const char *s, size_t max) {
    if (!s[0]) fail(d, KN_EPROTO, field, "empty");
    return text(d, field, s, max);
}

/* The part of a text that can be shown: nothing where it is no UTF-8. Cut in place. */
static const char *cut(char *s, size_t max) {
    size_t len = strlen(s);
    if (kn_utf8_span(s, len) != len) return "";
    if (len > max) s[kn_utf8_cut(s, len, max)] = '\0';
    return s;
}

/* Those names of a list that are names at all. They move to its front. */
static const char **names(struct dec *d, char **v, size_t n, size_t max, size_t *count) {
    size_t kept = 0;
    (void)d;
    for (size_t i = 0; i < n && kept < max; i++) {
        size_t len = strlen(v[i]);
        if (len > 0 && len <= KN_NAME_MAX && kn_utf8_span(v[i], len) == len) v[kept++] = v[i];
    }
    *count = kept;
    return (const char **)(uintptr_t)v;
}

static void fixed(struct dec *d, const char *field, ProtobufCBinaryData b, void *out, size_t len) {
    if (b.len != len)
        fail(d, KN_EPROTO, field, "wrong length");
    else
        memcpy(out, b.data, len);
}

/* The same, where nothing at all is allowed too. */
static bool fixed_or_none(struct dec *d, const char *field, ProtobufCBinaryData b, void *out, size_t len) {
    if (b.len == 0) return false;
    fixed(d, field, b, out, len);
    return true;
}

static uint64_t ranged64(struct dec *d, const char *field, uint64_t v, uint64_t min, uint64_t max) {
    if (v < min || v > max) fail(d, KN_EPROTO, field, "out of range");
    return v;
}

static uint32_t ranged(struct dec *d, const char *field, uint32_t v, uint32_t min, uint32_t max) {
    return (uint32_t)ranged64(d, field, v, min, max);
}

static uint32_t task_number(struct dec *d, const char *field, uint32_t v) {
    return ranged(d, field, v, 0, KN_TASKS_PER_BATCH_MAX - 1);
}

static float finite_only(struct dec *d, const char *field, float v) {
    if (!isfinite(v)) fail(d, KN_EPROTO, field, "not finite");
    return v;
}

static int negative(struct dec *d, const char *field, int v) {
    if (v >= 0) fail(d, KN_EPROTO, field, "not an error");
    return v;
}

static size_t counted(struct dec *d, const char *field, size_t n, size_t max) {
    if (n > max) fail(d, KN_ELIMIT, field, "too many");
    return n;
}

/* Room for a list; NULL after any mistake. */
static void *list(struct dec *d, size_t count, size_t size) {
    if (d->rc != 0) return NULL;
    void *p = arena_array(d->a, count, size);
    if (!p) fail(d, KN_ENOMEM, "message", "out of memory");
    return p;
}

static bool sampler_known(uint32_t v) {
    switch (v) {
#define KNOWN(id, value, a1111, comfy, diffusers, karras, automatic) case value:
        KN_SAMPLER_TABLE(KNOWN)
#undef KNOWN
        return true;
    default:
        return false;
    }
}

static bool schedule_known(uint32_t v) {
    switch (v) {
#define KNOWN(id, value, name) case value:
        KN_SCHEDULE_TABLE(KNOWN)
#undef KNOWN
        return true;
    default:
        return false;
    }
}

/* A model that is asked for may lack the hash and everything behind it. */
static void decode_model_asked(struct dec *d, const Kiln__Pb__ModelInfo *p, struct kn_model_info *m) {
    text(d, "name", p->name, KN_NAME_MAX);
    if (d->rc != 0) return;
    memcpy(m->name, p->name, strlen(p->name) + 1);
    fixed_or_none(d, "sha256", p->sha256, m->sha256, KN_SHA256_BYTES);
    text(d, "scheduler", p->scheduler, KN_NAME_MAX);
    if (d->rc != 0) return;
    memcpy(m->scheduler, p->scheduler, strlen(p->scheduler) + 1);
    m->defaults.sampler = m->scheduler[0] ? KN_SAMPLER_UNSET : (enum kn_sampler)p->sampler;
    m->defaults.karras = p->karras;
    m->defaults.schedule = (enum kn_schedule)p->schedule;
    m->defaults.steps = p->steps;
    m->defaults.cfg = finite_only(d, "cfg", p->cfg);
    m->defaults.width = p->width;
    m->defaults.height = p->height;
    m->size_multiple = p->size_multiple;
    m->size_max = ranged(d, "size_max", p->size_max, 0, KN_SIZE_MAX);
}

/* Defaults of a later program are none to this one: whoever wants such a model's pictures says how. */
static void decode_model_info(struct dec *d, const Kiln__Pb__ModelInfo *p, struct kn_model_info *m) {
    decode_model_asked(d, p, m);
    if (p->sha256.len == 0) fail(d, KN_EPROTO, "sha256", "missing");
    if (!sampler_known(p->sampler) || !schedule_known(p->schedule)) {
        m->defaults.sampler = KN_SAMPLER_UNSET;
        m->defaults.schedule = KN_SCHEDULE_NORMAL;
        if (!m->scheduler[0]) memcpy(m->scheduler, NEWER_SCHEDULER, sizeof NEWER_SCHEDULER);
    }
    ranged(d, "steps", p->steps, KN_STEPS_MIN, KN_STEPS_MAX);
    ranged(d, "width", p->width, KN_SIZE_MIN, KN_SIZE_MAX);
    ranged(d, "height", p->height, KN_SIZE_MIN, KN_SIZE_MAX);
    ranged(d, "size_multiple", p->size_multiple, 1, KN_SIZE_MAX);
}

int codec_tasks_from_pb(struct arena *a, Kiln__Pb__Task *const *v, size_t n, size_t model_count,
                        struct kn_task **out, struct kn_err *err) {
    struct dec d = {.a = a, .err = err, .part = "task"};
    struct kn_task *t = list(&d, n, sizeof *t);
    for (size_t i = 0; d.rc == 0 && i < n; i++) {
        /* What a later program says of a task may move its pixels: not to know it is not to know the task. */
        if (v[i]->base.n_unknown_fields > 0) fail(&d, KN_EUNSUPPORTED, "a field", NOT_KNOWN);
        if (v[i]->sampler == 0) fail(&d, KN_EPROTO, "sampler", "missing");
        if (v[i]->schedule == 0) fail(&d, KN_EPROTO, "schedule", "missing");
        if (!sampler_known(v[i]->sampler)) fail(&d, KN_EUNSUPPORTED, "sampler", NOT_KNOWN);
        if (!schedule_known(v[i]->schedule)) fail(&d, KN_EUNSUPPORTED, "schedule", NOT_KNOWN);
        if (model_count && v[i]->model_index >= model_count)
            fail(&d, KN_EPROTO, "model_index", "out of range");
        t[i] = (struct kn_task){
            .prompt = v[i]->prompt,
            .negative = v[i]->negative,
            .extra = v[i]->extra[0] ? v[i]->extra : NULL,
            .model_index = v[i]->model_index,
            .seed = v[i]->seed,
            .cfg = v[i]->cfg,
            .steps = v[i]->steps,
            .width = v[i]->width,
            .height = v[i]->height,
            .sampler = (enum kn_sampler)v[i]->sampler,
            .schedule = (enum kn_schedule)v[i]->schedule,
            .set = KN_SET_ALL,
        };
        text(&d, "prompt", v[i]->prompt, KN_PROMPT_BYTES_MAX);
        text(&d, "negative", v[i]->negative, KN_PROMPT_BYTES_MAX);
        text(&d, "extra", v[i]->extra, KN_EXTRA_BYTES_MAX);
        struct kn_err why = {0};
        if (d.rc == 0 && kn_task_check(&t[i], &why) != 0)
            d.rc = kn_err_set(err, KN_EPROTO, "task %zu: %s", i, why.text);
    }
    *out = t;
    return d.rc;
}

/* The elements of a list, each read by its own function. */
#define DECODE_EACH(how, n, v, count, max)                                                                   \
    s->count = counted(d, #n, p->n_##n, max);                                                                \
    s->v = list(d, s->count, sizeof *s->v);                                                                  \
    d->part = #n;                                                                                            \
    for (size_t i = 0; s->v && d->rc == 0 && i < s->count; i++) decode_##how(d, p->n[i], &s->v[i]);          \
    d->part = NULL;

#define DECODE(kind, ...) DECODE_##kind(__VA_ARGS__)
#define DECODE_U32(n) s->n = p->n;
#define DECODE_U64(n) s->n = p->n;
#define DECODE_S32(n) s->n = p->n;
#define DECODE_S64(n) s->n = p->n;
#define DECODE_BOOL(n) s->n = p->n;
#define DECODE_FLOAT(n) s->n = finite_only(d, #n, p->n);
#define DECODE_RANGE(n, min, max) s->n = ranged(d, #n, p->n, min, max);
#define DECODE_RANGE64(n, min, max) s->n = ranged64(d, #n, p->n, min, max);
#define DECODE_TASK(n) s->n = task_number(d, #n, p->n);
#define DECODE_ERROR(n) s->n = negative(d, #n, p->n);
#define DECODE_ENUM(n, type, first, last) s->n = (enum type)ranged(d, #n, p->n, first, last);
#define DECODE_STATE(n, type, first, last) s->n = (enum type)p->n;
#define DECODE_TEXT(n, max) s->n = text(d, #n, p->n, max);
#define DECODE_NAME(n, max) s->n = name(d, #n, p->n, max);
#define DECODE_CLAMP(n, min, max) s->n = p->n < (min) ? (min) : p->n > (max) ? (max) : p->n;
#define DECODE_CUT(n, max) s->n = cut(p->n, max);
#define DECODE_NAMES(n, count, max) s->n = names(d, p->n, p->n_##n, max, &s->count);
#define DECODE_BYTES(n, length)                                                                              \
    s->n = p->n.data;                                                                                        \
    s->length = p->n.len;
#define DECODE_ID(n) fixed(d, #n, p->n, s->n, sizeof s->n);
#define DECODE_DIGEST(n) fixed(d, #n, p->n, s->n, sizeof s->n);
#define DECODE_ID_OR_NONE(n, has) s->has = fixed_or_none(d, #n, p->n, s->n, sizeof s->n);
#define DECODE_DIGEST_OR_NONE(n, has) s->has = fixed_or_none(d, #n, p->n, s->n, sizeof s->n);
#define DECODE_ID_IF(n, condition)                                                                           \
    if (!fixed_or_none(d, #n, p->n, s->n, sizeof s->n) && (condition)) fail(d, KN_EPROTO, #n, "missing");
#define DECODE_DIGEST_IF(n, condition)                                                                       \
    if (condition) fixed(d, #n, p->n, s->n, sizeof s->n);
#define DECODE_PART(part_name, n)                                                                            \
    if (!p->n) fail(d, KN_EPROTO, #n, "missing");                                                            \
    DECODE_PART_OR_NONE(part_name, n)
#define DECODE_PART_OR_NONE(part_name, n)                                                                    \
    if (p->n) {                                                                                              \
        const char *outer = d->part;                                                                         \
        d->part = #n;                                                                                        \
        decode_##part_name(d, p->n, &s->n);                                                                  \
        d->part = outer;                                                                                     \
    }
#define DECODE_LIST(part_name, n, v, count, max) DECODE_EACH(part_name, n, v, count, max)
/* The elements of a list of which those that cannot be read are left out. */
#define DECODE_KNOWN(part_name, n, v, count, max)                                                            \
    s->count = 0;                                                                                            \
    s->v = list(d, p->n_##n < (max) ? p->n_##n : (max), sizeof *s->v);                                       \
    for (size_t i = 0; d->rc == 0 && i < p->n_##n && s->count < (max); i++) {                                \
        struct dec one = {.a = d->a};                                                                        \
        memset(&s->v[s->count], 0, sizeof *s->v);                                                            \
        decode_##part_name(&one, p->n[i], &s->v[s->count]);                                                  \
        if (one.rc == KN_ENOMEM) d->rc = kn_err_set(d->err, one.rc, "out of memory");                        \
        if (one.rc == 0) s->count++;                                                                         \
    }
#define DECODE_NUMBERS(n, count, max)                                                                        \
    s->count = counted(d, #n, p->n_##n, max);                                                                \
    s->n = p->n;
#define DECODE_MODELS_ASKED(n, count, max)                                                                   \
    if (p->n_##n == 0) fail(d, KN_EPROTO, #n, "none");                                                       \
    DECODE_EACH(model_asked, n, n, count, max)
#define DECODE_TASKS(n, count, max)                                                                          \
    s->count = counted(d, #n, p->n_##n, max);                                                                \
    if (s->count == 0) fail(d, KN_EPROTO, #n, "none");                                                       \
    if (d->rc == 0) d->rc = codec_tasks_from_pb(d->a, p->n, s->count, 0, &s->n, d->err);
#define DECODE_TASK_NUMBERS(n, tasks, count)                                                                 \
    if (p->n_##n != s->count) fail(d, KN_EPROTO, #n, "not one for each of " #tasks);                         \
    s->n = p->n;                                                                                             \
    for (size_t i = 0; i < p->n_##n; i++) task_number(d, #n, p->n[i]);

#define DECODER(ID, name, pb)                                                                                \
    static void decode_##name(struct dec *d, const Kiln__Pb__##pb *p, struct kn_##name *s) {                 \
        (void)d;                                                                                             \
        KN_FIELDS_##ID(DECODE)                                                                               \
    }
#define MSG_DECODER(number, ID, name, pb) DECODER(ID, name, pb)
KN_PART_TABLE(DECODER)
KN_MESSAGE_TABLE(MSG_DECODER, NO_FUNCTION)

static void decode_body(struct dec *d, const Kiln__Pb__Envelope *e, struct kn_msg *m) {
    switch (m->type) {
#define BODY(number, ID, name, pb)                                                                           \
    case KN_MSG_##ID:                                                                                        \
        decode_##name(d, e->name, &m->u.name);                                                               \
        break;
#define EMPTY_BODY(number, ID, name, pb)                                                                     \
    case KN_MSG_##ID:                                                                                        \
        break;
        KN_MESSAGE_TABLE(BODY, EMPTY_BODY)
#undef BODY
#undef EMPTY_BODY
    }
}

int kn_msg_decode(const void *data, size_t len, struct kn_msg **out, struct kn_err *err) {
    *out = NULL;
    if (len > KN_FRAME_BYTES_MAX)
        return kn_err_set(err, KN_ELIMIT, "frame: %zu bytes, more than %u", len, KN_FRAME_BYTES_MAX);
    struct codec_owned *o = calloc(1, sizeof *o);
    if (!o) return kn_err_set(err, KN_ENOMEM, "frame: out of memory");
    arena_init(&o->arena, DECODE_BYTES_MAX);
    struct dec d = {.a = &o->arena, .err = err};
    Kiln__Pb__Envelope *e = kiln__pb__envelope__unpack(&o->arena.pb, len, data);
    if (!e) {
        d.rc = kn_err_set(err, KN_EPROTO, "frame: malformed");
    } else if (e->version < KN_PROTO_VERSION || e->version > KN_PROTO_VERSION_MAX) {
        d.rc = kn_err_set(err, KN_EVERSION, "frame: protocol version %u, this side speaks %d and %d",
                          e->version, KN_PROTO_VERSION, KN_PROTO_VERSION_MAX);
    } else if (e->body_case == KILN__PB__ENVELOPE__BODY__NOT_SET) {
        d.rc = kn_err_set(err, KN_EPROTO, "frame: a message that this side does not know");
    } else {
        o->msg.type = (enum kn_msg_type)e->body_case;
        o->msg.request = e->request;
        decode_body(&d, e, &o->msg);
        if (d.rc != 0) kn_err_prefix(err, "%s", kn_msg_name(o->msg.type));
    }
    if (d.rc != 0) {
        arena_fini(&o->arena);
        free(o);
        return d.rc;
    }
    *out = &o->msg;
    return 0;
}

void kn_msg_look(const void *data, size_t len, struct kn_garbled *out) {
    struct arena a;
    *out = (struct kn_garbled){0};
    if (len > KN_FRAME_BYTES_MAX) return;
    arena_init(&a, DECODE_BYTES_MAX);
    Kiln__Pb__Envelope *e = kiln__pb__envelope__unpack(&a.pb, len, data);
    if (e) {
        out->type = (enum kn_msg_type)e->body_case;
        out->request = e->request;
        if (e->body_case == KILN__PB__ENVELOPE__BODY_SHARD_GRANT) {
            out->shard = e->shard_grant->shard;
            out->term = e->shard_grant->term;
        }
    }
    arena_fini(&a);
}

void kn_msg_destroy(struct kn_msg *m) {
    if (!m) return;
    struct codec_owned *o = (struct codec_owned *)m;
    arena_fini(&o->arena);
    free(o);
}

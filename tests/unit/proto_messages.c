/* See proto_messages.h. As in proto/codec.c, a row becomes the statement that FILL_KIND or SAME_KIND makes of
 * it; models and tasks, which are base's, are written by hand. */
#include "tests/unit/proto_messages.h"

#include "tests/unit/check.h"

#define TYPE(number, ID, name, pb) KN_MSG_##ID,
const enum kn_msg_type proto_types[] = {KN_MESSAGE_TABLE(TYPE, TYPE)};
const size_t proto_type_count = sizeof proto_types / sizeof proto_types[0];

/* ---- filling */

static uint32_t counter; /* no two fields get the same number */
static size_t element;   /* of the list that is being filled: what is optional is missing in the second */

static uint32_t next_number(void) {
    return ++counter;
}

static void fill_bytes(uint8_t *out, size_t len) {
    for (size_t i = 0; i < len; i++) out[i] = (uint8_t)(next_number() * 7 + i);
}

static void fill_model_info(struct kn_model_info *m) {
    *m = (struct kn_model_info){.name = "model-a",
                                .defaults = {.sampler = KN_SAMPLER_EULER,
                                             .schedule = KN_SCHEDULE_KARRAS,
                                             .steps = next_number(),
                                             .cfg = 7.5f,
                                             .width = 512,
                                             .height = 768,
                                             .karras = true},
                                .size_multiple = 64,
                                .size_max = 2048};
    fill_bytes(m->sha256, sizeof m->sha256);
    if (element != 1) return;
    m->defaults.sampler = KN_SAMPLER_UNSET;
    m->defaults.karras = false;
    snprintf(m->scheduler, sizeof m->scheduler, "DDPMScheduler");
}

static void fill_task(struct kn_task *t) {
    static char prompt[] = "a red circle \xc3\xa4\xe2\x82\xac", negative[] = "blur", extra[] = "{\"k\":1}",
                none[] = "";
    *t = (struct kn_task){.prompt = prompt,
                          .negative = negative,
                          .extra = extra,
                          .model_index = next_number(),
                          .seed = UINT64_MAX - next_number(),
                          .cfg = 7.25f,
                          .steps = next_number(),
                          .width = 512,
                          .height = 640,
                          .sampler = KN_SAMPLER_DPMPP_2M,
                          .schedule = KN_SCHEDULE_KARRAS,
                          .set = KN_SET_ALL};
    if (element != 1) return;
    t->prompt = t->negative = none;
    t->extra = NULL;
    t->sampler = KN_SAMPLER_DDIM;
    t->schedule = KN_SCHEDULE_NORMAL;
}

/* A number from min to max; not min, if there is a choice. */
static uint64_t within(uint64_t min, uint64_t max) {
    return max - next_number() % ((max - min) / 2 + 1);
}

#define ELEMENTS 3
#define FILL_EACH(part, type, v, count)                                                                      \
    {                                                                                                        \
        static struct type elements[ELEMENTS];                                                               \
        for (element = 0; element < ELEMENTS; element++) fill_##part(&elements[element]);                    \
        element = 0;                                                                                         \
        s->v = elements;                                                                                     \
        s->count = ELEMENTS;                                                                                 \
    }
#define FILL(kind, ...) FILL_##kind(__VA_ARGS__)
#define FILL_U32(n) s->n = UINT32_MAX - next_number();
#define FILL_U64(n) s->n = UINT64_MAX - next_number();
#define FILL_S32(n) s->n = -(int)next_number();
#define FILL_S64(n) s->n = INT64_MIN + next_number();
#define FILL_BOOL(n) s->n = true;
#define FILL_FLOAT(n) s->n = (float)next_number() + 0.5f;
#define FILL_RANGE(n, min, max) s->n = (uint32_t)within(min, max);
#define FILL_RANGE64(n, min, max) s->n = within(min, max);
#define FILL_TASK(n) s->n = (uint32_t)within(0, KN_TASKS_PER_BATCH_MAX - 1);
#define FILL_ERROR(n) s->n = -(int)next_number();
#define FILL_ENUM(n, type, first, last) s->n = (enum type)(first + element % (last - first + 1));
#define FILL_STATE(n, type, first, last) FILL_ENUM(n, type, first, last)
#define FILL_TEXT(n, max) s->n = #n " \xc3\xa4\xe2\x82\xac";
#define FILL_NAME(n, max) FILL_TEXT(n, max)
#define FILL_CLAMP(n, min, max) FILL_RANGE(n, min, max)
#define FILL_CUT(n, max) FILL_TEXT(n, max)
#define FILL_NAMES(n, count, max)                                                                            \
    {                                                                                                        \
        static const char *v[] = {#n " a", #n " \xc3\xa4", "sampler.euler"};                                 \
        s->n = v;                                                                                            \
        s->count = element == 1 ? 0 : 3;                                                                     \
    }
#define FILL_BYTES(n, len)                                                                                   \
    {                                                                                                        \
        static uint8_t bytes[5];                                                                             \
        fill_bytes(bytes, sizeof bytes);                                                                     \
        s->n = bytes;                                                                                        \
        s->len = sizeof bytes;                                                                               \
    }
#define FILL_ID(n) fill_bytes(s->n, sizeof s->n);
#define FILL_DIGEST(n) fill_bytes(s->n, sizeof s->n);
#define FILL_ID_OR_NONE(n, has) FILL_ID_IF(n, (s->has = element != 1))
#define FILL_DIGEST_OR_NONE(n, has) FILL_ID_IF(n, (s->has = element != 1))
#define FILL_ID_IF(n, condition)                                                                             \
    if (condition) fill_bytes(s->n, sizeof s->n);
#define FILL_DIGEST_IF(n, condition) FILL_ID_IF(n, condition)
#define FILL_PART(part, n) fill_##part(&s->n);
#define FILL_PART_OR_NONE(part, n)                                                                           \
    if (element != 1) fill_##part(&s->n);
#define FILL_LIST(part, n, v, count, max) FILL_EACH(part, kn_##part, v, count)
#define FILL_KNOWN(part, n, v, count, max) FILL_LIST(part, n, v, count, max)
#define FILL_NUMBERS(n, count, max)                                                                          \
    {                                                                                                        \
        static uint32_t numbers[] = {3, 4, 999999};                                                          \
        s->n = numbers;                                                                                      \
        s->count = element == 1 ? 0 : 3;                                                                     \
    }
#define FILL_MODELS_ASKED(n, count, max) FILL_EACH(model_info, kn_model_info, n, count)
#define FILL_TASKS(n, count, max) FILL_EACH(task, kn_task, n, count)
#define FILL_TASK_NUMBERS(n, tasks, count)                                                                   \
    {                                                                                                        \
        static uint32_t numbers[ELEMENTS] = {17, 0, 999999};                                                 \
        s->n = numbers;                                                                                      \
    }

#define FILLER(ID, name, pb)                                                                                 \
    static void fill_##name(struct kn_##name *s) {                                                           \
        *s = (struct kn_##name){0};                                                                          \
        KN_FIELDS_##ID(FILL)                                                                                 \
    }
#define MSG_FILLER(number, ID, name, pb) FILLER(ID, name, pb)
#define NO_FUNCTION(number, ID, name, pb)
KN_PART_TABLE(FILLER)
KN_MESSAGE_TABLE(MSG_FILLER, NO_FUNCTION)

void proto_example(enum kn_msg_type type, struct kn_msg *out) {
    *out = (struct kn_msg){.type = type, .request = 0x1234567890abcdefull};
    counter = 0;
    switch (type) {
#define BODY(number, ID, name, pb)                                                                           \
    case KN_MSG_##ID:                                                                                        \
        fill_##name(&out->u.name);                                                                           \
        break;
#define EMPTY_BODY(number, ID, name, pb)                                                                     \
    case KN_MSG_##ID:                                                                                        \
        break;
        KN_MESSAGE_TABLE(BODY, EMPTY_BODY)
#undef BODY
    }
}

/* ---- comparing: x and y are the two structs */

static void same_model_info(const struct kn_model_info *x, const struct kn_model_info *y) {
    CHECK_STR(x->name, y->name);
    CHECK_MEM(x->sha256, y->sha256, sizeof x->sha256);
    CHECK_INT(x->defaults.sampler, y->defaults.sampler);
    CHECK_INT(x->defaults.schedule, y->defaults.schedule);
    CHECK_INT(x->defaults.steps, y->defaults.steps);
    CHECK(x->defaults.cfg == y->defaults.cfg);
    CHECK_INT(x->defaults.width, y->defaults.width);
    CHECK_INT(x->defaults.height, y->defaults.height);
    CHECK_INT(x->defaults.karras, y->defaults.karras);
    CHECK_STR(x->scheduler, y->scheduler);
    CHECK_INT(x->size_multiple, y->size_multiple);
    CHECK_INT(x->size_max, y->size_max);
}

static void same_task(const struct kn_task *x, const struct kn_task *y) {
    CHECK_STR(x->prompt, y->prompt);
    CHECK_STR(x->negative, y->negative);
    CHECK_STR(x->extra, y->extra);
    CHECK_INT(x->model_index, y->model_index);
    CHECK_U64(x->seed, y->seed);
    CHECK(x->cfg == y->cfg);
    CHECK_INT(x->steps, y->steps);
    CHECK_INT(x->width, y->width);
    CHECK_INT(x->height, y->height);
    CHECK_INT(x->sampler, y->sampler);
    CHECK_INT(x->schedule, y->schedule);
    CHECK_INT(x->set, y->set);
}

#define SAME_EACH(part, v, count)                                                                            \
    CHECK_U64(x->count, y->count);                                                                           \
    for (size_t i = 0; i < x->count; i++) same_##part(&x->v[i], &y->v[i]);
#define SAME(kind, ...) SAME_##kind(__VA_ARGS__)
#define SAME_NUMBER(n) CHECK_U64((uint64_t)x->n, (uint64_t)y->n);
#define SAME_BLOCK(n) CHECK_MEM(x->n, y->n, sizeof x->n);
#define SAME_U32(n) SAME_NUMBER(n)
#define SAME_U64(n) SAME_NUMBER(n)
#define SAME_S32(n) SAME_NUMBER(n)
#define SAME_S64(n) SAME_NUMBER(n)
#define SAME_BOOL(n) SAME_NUMBER(n)
#define SAME_FLOAT(n) CHECK(x->n == y->n);
#define SAME_RANGE(n, min, max) SAME_NUMBER(n)
#define SAME_RANGE64(n, min, max) SAME_NUMBER(n)
#define SAME_TASK(n) SAME_NUMBER(n)
#define SAME_ERROR(n) SAME_NUMBER(n)
#define SAME_ENUM(n, type, first, last) SAME_NUMBER(n)
#define SAME_STATE(n, type, first, last) SAME_NUMBER(n)
#define SAME_TEXT(n, max) CHECK_STR(x->n, y->n);
#define SAME_NAME(n, max) CHECK_STR(x->n, y->n);
#define SAME_CLAMP(n, min, max) SAME_NUMBER(n)
#define SAME_CUT(n, max) CHECK_STR(x->n, y->n);
#define SAME_NAMES(n, count, max)                                                                            \
    CHECK_U64(x->count, y->count);                                                                           \
    for (size_t i = 0; i < x->count; i++) CHECK_STR(x->n[i], y->n[i]);
#define SAME_BYTES(n, len)                                                                                   \
    CHECK_U64(x->len, y->len);                                                                               \
    CHECK_MEM(x->n, y->n, x->len);
#define SAME_ID(n) SAME_BLOCK(n)
#define SAME_DIGEST(n) SAME_BLOCK(n)
#define SAME_ID_OR_NONE(n, has) SAME_NUMBER(has) SAME_BLOCK(n)
#define SAME_DIGEST_OR_NONE(n, has) SAME_NUMBER(has) SAME_BLOCK(n)
#define SAME_ID_IF(n, condition) SAME_BLOCK(n)
#define SAME_DIGEST_IF(n, condition) SAME_BLOCK(n)
#define SAME_PART(part, n) same_##part(&x->n, &y->n);
#define SAME_PART_OR_NONE(part, n) same_##part(&x->n, &y->n);
#define SAME_LIST(part, n, v, count, max) SAME_EACH(part, v, count)
#define SAME_KNOWN(part, n, v, count, max) SAME_EACH(part, v, count)
#define SAME_NUMBERS(n, count, max)                                                                          \
    CHECK_U64(x->count, y->count);                                                                           \
    CHECK_MEM(x->n, y->n, x->count * sizeof x->n[0]);
#define SAME_MODELS_ASKED(n, count, max) SAME_EACH(model_info, n, count)
#define SAME_TASKS(n, count, max) SAME_EACH(task, n, count)
#define SAME_TASK_NUMBERS(n, tasks, count) CHECK_MEM(x->n, y->n, x->count * sizeof x->n[0]);

#define COMPARER(ID, name, pb)                                                                               \
    static void same_##name(const struct kn_##name *x, const struct kn_##name *y) {                          \
        KN_FIELDS_##ID(SAME)                                                                                 \
    }
#define MSG_COMPARER(number, ID, name, pb) COMPARER(ID, name, pb)
KN_PART_TABLE(COMPARER)
KN_MESSAGE_TABLE(MSG_COMPARER, NO_FUNCTION)

void proto_check_same(const struct kn_msg *a, const struct kn_msg *b) {
    CHECK_INT(a->type, b->type);
    CHECK_U64(a->request, b->request);
    switch (a->type) {
#define BODY(number, ID, name, pb)                                                                           \
    case KN_MSG_##ID:                                                                                        \
        same_##name(&a->u.name, &b->u.name);                                                                 \
        break;
        KN_MESSAGE_TABLE(BODY, EMPTY_BODY)
    }
}

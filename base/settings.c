/* See settings.h. */
#include "base/settings.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/prompts.h"

/* Checks the one field that `bit` stands for, in the words of the reader of prompt files, which begin with
 * the field's name: the option's name says that already. */
static int check(const struct kn_task *t, uint32_t bit, const char *field, struct kn_err *err) {
    struct kn_task one = *t;
    struct kn_err why = {0};
    one.set = bit;
    one.prompt = (char *)"";
    if (!one.negative) one.negative = (char *)"";
    int rc = kn_task_check(&one, &why);
    if (rc == KN_OK) return KN_OK;
    size_t len = strlen(field);
    bool named = strncmp(why.text, field, len) == 0 && strncmp(why.text + len, ": ", 2) == 0;
    return kn_err_set(err, rc, "%s", why.text + (named ? len + 2 : 0));
}

static int set(struct kn_task *t, uint32_t bit, const char *field, struct kn_err *err) {
    int rc = check(t, bit, field, err);
    if (rc == KN_OK) t->set |= bit;
    return rc;
}

int kn_setting_model(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    if (!value[0]) return kn_err_set(err, KN_EINVAL, "empty");
    t->model = value;
    return set(t, KN_SET_MODEL, "model", err);
}

int kn_setting_negative(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    t->negative = value;
    return set(t, KN_SET_NEGATIVE, "negative", err);
}

int kn_setting_steps(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    uint64_t steps;
    int rc = kn_option_number(value, KN_STEPS_MIN, KN_STEPS_MAX, &steps, err);
    if (rc) return rc;
    t->steps = (uint32_t)steps;
    return set(t, KN_SET_STEPS, "steps", err);
}

int kn_setting_sampler(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    int rc = kn_sampler_parse(value, &t->sampler, err);
    return rc ? rc : set(t, KN_SET_SAMPLER, "sampler", err);
}

int kn_setting_schedule(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    int rc = kn_schedule_parse(value, &t->schedule, err);
    return rc ? rc : set(t, KN_SET_SCHEDULE, "schedule", err);
}

int kn_setting_cfg(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    char *end;
    float cfg = strtof(value, &end);
    if (end == value || *end || !isfinite(cfg))
        return kn_err_set(err, KN_EINVAL, "\"%.60s\" is not a number", value);
    t->cfg = cfg;
    return set(t, KN_SET_CFG, "cfg", err);
}

int kn_setting_size(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    int rc = kn_size_parse(value, &t->width, &t->height, err);
    return rc ? rc : set(t, KN_SET_SIZE, "size", err);
}

int kn_setting_input_format(void *format, char *value, struct kn_err *err) {
    return kn_input_format_parse(value, format, err);
}

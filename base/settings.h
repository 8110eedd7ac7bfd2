/* The options that say how to render, as every program that takes prompts reads them from its command line.
 * Each function is the `read` of a KN_OPTION_READ whose member is a struct kn_task: it checks the value, puts
 * it there and sets the field's KN_SET_… bit. Strings are borrowed. */
#ifndef KN_BASE_SETTINGS_H
#define KN_BASE_SETTINGS_H

#include "base/options.h"
#include "base/spec.h"

int kn_setting_model(void *task, char *value, struct kn_err *err); /* a name or a folder; not empty */
int kn_setting_negative(void *task, char *value, struct kn_err *err);
int kn_setting_steps(void *task, char *value, struct kn_err *err);
int kn_setting_sampler(void *task, char *value, struct kn_err *err);
int kn_setting_schedule(void *task, char *value, struct kn_err *err);
int kn_setting_cfg(void *task, char *value, struct kn_err *err);
int kn_setting_size(void *task, char *value, struct kn_err *err);
/* The member is an enum kn_input_format. */
int kn_setting_input_format(void *format, char *value, struct kn_err *err);

#endif

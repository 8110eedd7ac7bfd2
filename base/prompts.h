/* The reader of prompt files: .txt (A1111's prompts-from-file), .jsonl, .csv, .tsv. Every mistake names file,
 * line and field: "prompts.jsonl:17: stesp: unknown, did you mean steps?". Nothing is guessed and nothing is
 * skipped but empty lines and, in .txt, lines that begin with '#'. */
#ifndef KN_BASE_PROMPTS_H
#define KN_BASE_PROMPTS_H

#include "base/spec.h"

enum kn_input_format { KN_INPUT_AUTO, KN_INPUT_TXT, KN_INPUT_JSONL, KN_INPUT_CSV, KN_INPUT_TSV };

struct kn_tasks {
    struct kn_task *v; /* owns, with all strings in them */
    size_t count, cap;
};

KN_MUST_USE int kn_input_format_parse(const char *text, enum kn_input_format *out, struct kn_err *err);

/* Reads path ("-": standard input; AUTO then is an error that names --input-format) and appends its tasks,
 * one a line (a line's `images`/`n_iter`/`batch_size` is expanded), with only the fields set that the line
 * sets. On failure `out` holds what it held before. KN_TASKS_PER_BATCH_MAX bounds it. */
KN_MUST_USE int kn_prompts_read(const char *path, enum kn_input_format format, struct kn_tasks *out,
                                struct kn_err *err);
/* The same from memory; `name` stands for the file in messages. */
KN_MUST_USE int kn_prompts_parse(const char *name, enum kn_input_format format, const char *text, size_t len,
                                 struct kn_tasks *out, struct kn_err *err);
/* Appends one task with this prompt and nothing set. */
KN_MUST_USE int kn_tasks_add(struct kn_tasks *ts, const char *prompt, struct kn_err *err);

/* Command-line settings that apply to every task which does not set the field itself. */
KN_MUST_USE int kn_tasks_apply(struct kn_tasks *ts, const struct kn_task *settings, struct kn_err *err);
/* Makes `images` of each task, prompt by prompt: seeds s, s+1, … where s is the task's own seed, else
 * first_seed
 * (`--images 3 --seed 7` is 7, 8, 9 for each prompt). Afterwards every task has its seed set. */
KN_MUST_USE int kn_tasks_expand(struct kn_tasks *ts, uint32_t images, uint64_t first_seed,
                                struct kn_err *err);
void kn_tasks_fini(struct kn_tasks *ts);

#endif

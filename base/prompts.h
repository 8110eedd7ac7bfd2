/* The reader of prompt files: .txt (A1111's prompts-from-file, or pasted generation data), .jsonl, .json,
 * .csv, .tsv; UTF-8, or UTF-16 with its mark. Every mistake names file, line and field: "prompts.jsonl:17:
 * stesp: unknown, did you mean steps?". Nothing is guessed and nothing is skipped but empty lines, rows
 * without any text and, in .txt, lines that begin with '#'. Columns and keys that kiln does not know go to
 * the task's `extra`. */
#ifndef KN_BASE_PROMPTS_H
#define KN_BASE_PROMPTS_H

#include "base/spec.h"
#include "base/spill.h"

enum kn_input_format {
    KN_INPUT_AUTO,
    KN_INPUT_TXT,
    KN_INPUT_JSONL,
    KN_INPUT_JSON,
    KN_INPUT_CSV,
    KN_INPUT_TSV
};

/* A list of tasks, a million at the most: memory that lies in a file where it is long. */
struct kn_tasks {
    struct kn_task *v; /* list.data; whoever walks a list that may be long takes kn_tasks_at() */
    size_t count;
    struct kn_spill list;
    struct kn_texts texts;        /* all strings of the tasks */
    const char *negative, *model; /* that were put in last: neighbours mostly have the same */
};

/* The task i < count. Every so often what was looked at before is let go from RAM. */
const struct kn_task *kn_tasks_at(const struct kn_tasks *ts, size_t i);
/* The same, for one whose fields are to be set; its strings must be the list's. */
struct kn_task *kn_tasks_edit(struct kn_tasks *ts, size_t i);
/* Appends a task with copies of its strings. */
KN_MUST_USE int kn_tasks_put(struct kn_tasks *ts, const struct kn_task *t, struct kn_err *err);

KN_MUST_USE int kn_input_format_parse(const char *text, enum kn_input_format *out, struct kn_err *err);

/* Reads path ("-": standard input; AUTO then is an error that names --input-format) and appends its tasks,
 * with only the fields set that their line sets. A line that sets `images` (or `n_iter`, `batch_size`:
 * their product) becomes so many tasks, with KN_SET_IMAGES; their seeds go up by one, or, if the line sets
 * no seed, `seed` holds the offset 0, 1, … from the seed that they are yet to get. "each" for a seed is
 * KN_SET_SEED_EACH. A seed of -1 (A1111's "random") counts as none, so do null in .jsonl and an empty
 * cell. On failure `out` holds what it held before. A file without any task is no failure.
 * KN_TASKS_PER_BATCH_MAX bounds `out`. `strict`: a column or a key that kiln does not know is an error. */
KN_MUST_USE int kn_prompts_read(const char *path, enum kn_input_format format, bool strict,
                                struct kn_tasks *out, struct kn_err *err);
/* The same from memory; `name` stands for the file in messages. */
KN_MUST_USE int kn_prompts_parse(const char *name, enum kn_input_format format, bool strict, const char *text,
                                 size_t len, struct kn_tasks *out, struct kn_err *err);
/* Appends one task with this prompt and nothing set. */
KN_MUST_USE int kn_tasks_add(struct kn_tasks *ts, const char *prompt, struct kn_err *err);

/* Command-line settings that apply to every task which does not set the field itself (strings are copied),
 * KN_SET_SEED_EACH among them. On
 * failure err names the task's index, and `ts` may have the settings in part. */
KN_MUST_USE int kn_tasks_apply(struct kn_tasks *ts, const struct kn_task *settings, struct kn_err *err);
/* Makes `images` of each task, prompt by prompt: seeds s, s+1, … where s is the task's own seed, else
 * first_seed (`--images 3 --seed 7` is 7, 8, 9 for each prompt). With KN_SET_SEED_EACH, s is of 32 bits
 * and drawn for the prompt out of first_seed: it depends on first_seed, the prompt, and how many equal
 * prompts of that kind stand before it, so that it stays when other prompts are added or taken out. A task
 * with KN_SET_IMAGES stays one: its line said how many. Afterwards every task has its seed set and none
 * has KN_SET_IMAGES or KN_SET_SEED_EACH. On failure `ts` is as it was. */
KN_MUST_USE int kn_tasks_expand(struct kn_tasks *ts, uint32_t images, uint64_t first_seed,
                                struct kn_err *err);
void kn_tasks_fini(struct kn_tasks *ts);

#endif

/* Between the readers of prompt files (prompts.c) and the list of tasks: one record, its fields and their
 * names, and how a mistake is told. Private to base/. One path serves every format: the reader cuts the input
 * into records and (name, value) pairs; kn_record_set() parses a value strictly; kn_record_finish() checks
 * the task and appends it as often as its images say. Errors leave as "name:line: field: what". */
#ifndef KN_BASE_RECORD_H
#define KN_BASE_RECORD_H

#include "base/prompts.h"

#define KN_SHOWN_MAX 60       /* bytes of a person's own text in a message */
#define KN_FILE_SHOWN_MAX 200 /* bytes of the file's name in a message: its end */
#define KN_STANDARD_INPUT "standard input"

enum kn_record_field {
    KN_IN_PROMPT,
    KN_IN_NEGATIVE,
    KN_IN_SEED,
    KN_IN_SAMPLER,
    KN_IN_SCHEDULE,
    KN_IN_STEPS,
    KN_IN_CFG,
    KN_IN_SIZE,
    KN_IN_WIDTH,
    KN_IN_HEIGHT,
    KN_IN_MODEL,
    KN_IN_IMAGES,
    KN_IN_N_ITER,
    KN_IN_BATCH_SIZE,
    KN_IN_EXTRA, /* .jsonl and .json only */
    KN_IN_UNKNOWN,
    KN_IN_UNSUPPORTED,
};

struct kn_reader {
    const char *name;
    size_t line;                  /* where the record begins */
    size_t element;               /* of a .json array, from 1 on; 0: the format has none */
    bool strict;                  /* every unknown name is an error */
    const struct kn_spill *input; /* that the text is in; NULL: memory of the caller's own */
    struct kn_tasks *out;
    struct kn_err *err;
};
#define KN_READER_REST 4096 /* records after which what was read of a long input is let go from RAM */

struct kn_record {
    struct kn_task t; /* owns its strings */
    uint32_t given;   /* 1u << enum kn_record_field */
    uint64_t images, n_iter, batch_size;
};

/* "name:line: what", with "element 3: " between in a .json. */
KN_PRINTF(3, 4) int kn_record_fail(const struct kn_reader *r, int code, const char *fmt, ...);
/* Puts "name:line: " or "name:line: field: " before what a lower layer said; returns its code. */
int kn_record_fail_in(const struct kn_reader *r, const char *field);
int kn_record_no_memory(const struct kn_reader *r);
int kn_record_fail_unknown(const struct kn_reader *r, const char *name); /* with a suggestion */
int kn_record_fail_unsupported(const struct kn_reader *r, const char *name);
/* For "%.*s": how many bytes of a person's own text a message repeats. */
int kn_record_shown(const char *text);

/* Lower case, ' ' and '-' as '_': how the names of options and columns are compared. False: too long to be
 * known. */
bool kn_record_fold(const char *name, char out[KN_NAME_MAX + 1]);
enum kn_record_field kn_record_field(const char *folded);
/* True if a record may have this name, which kiln does not know, as one of its own: it then goes to
 * `extra`. Not in a strict reading, and not when it is a known name misspelt. That is: one letter more,
 * less or other, or two neighbours swapped, compared with a known name of eight letters or more; with one
 * of five to seven, the same but not at the first or the last letter, for many words are so near (image,
 * mode, weight). Shorter names have no misspellings. KN_EPARSE. */
KN_MUST_USE int kn_record_check_unknown(const struct kn_reader *r, const char *name);
/* How many of the first bytes are a number as JSON writes it. */
size_t kn_number_span(const char *p, size_t len);

KN_MUST_USE int kn_record_init(const struct kn_reader *r, struct kn_record *rec);
/* Notes that the record has the field; the second time is an error, and so are two ways to say one thing. */
KN_MUST_USE int kn_record_give(const struct kn_reader *r, struct kn_record *rec, enum kn_record_field field,
                               const char *name);
/* Gives and parses. `name` is how the file spells the field, for messages. */
KN_MUST_USE int kn_record_set(const struct kn_reader *r, struct kn_record *rec, enum kn_record_field field,
                              const char *name, const char *text);
/* Sets `extra`, whether it was given or not. */
KN_MUST_USE int kn_record_set_extra(const struct kn_reader *r, struct kn_record *rec, const char *text);
/* Checks the record and appends its tasks; the record is empty afterwards, whatever came of it. */
KN_MUST_USE int kn_record_finish(const struct kn_reader *r, struct kn_record *rec);

/* The readers, a format each (prompts_txt.c, prompts_json.c, prompts_csv.c): they append the records of
 * [p, end) to r->out, in part if they fail. The text comes from kn_decode(): each line ends with '\n'
 * alone. */
KN_MUST_USE int kn_txt_read(struct kn_reader *r, const char *p, const char *end);
KN_MUST_USE int kn_jsonl_read(struct kn_reader *r, const char *p, const char *end);
KN_MUST_USE int kn_json_read(struct kn_reader *r, const char *p, const char *end);
KN_MUST_USE int kn_csv_read(struct kn_reader *r, const char *p, const char *end, bool tabs);

/* Pieces of JSON (prompts_json.c). From the opening quote of a string to behind the closing one; NULL and
 * *why when it is none. Stricter than json-c: raw control characters, half surrogates and \u0000 are
 * errors. */
const char *kn_json_string_end(const char *p, const char *end, const char **why);
/* From a bracket to behind the one that closes it. The text between is yet to be checked by json-c; but
 * that takes NaN and Infinity, whose capitals nothing else outside a string begins with: they are refused
 * here. */
const char *kn_json_nest_end(const char *p, const char *end, const char **why);
/* The text of the string [p, end), quotes included, which kn_json_string_end() has accepted. */
KN_MUST_USE int kn_json_text(const struct kn_reader *r, const char *p, const char *end, struct kn_buf *out);

static inline bool kn_is_blank(char c) {
    return c == ' ' || c == '\t';
}

/* Lists (tasks.c). */
void kn_task_fini(struct kn_task *t); /* frees the strings of one that is in no list */
KN_MUST_USE int kn_tasks_reserve(struct kn_tasks *ts, size_t more, struct kn_err *err);
void kn_tasks_cut(struct kn_tasks *ts, size_t count); /* drops what is past count */

#endif

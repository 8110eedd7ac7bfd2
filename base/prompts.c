/* The reader of prompt files; the contract is prompts.h. The format chooses the reader (prompts_txt.c,
 * prompts_json.c, prompts_csv.c), which cuts the input into records and pairs; record.h takes them from
 * there.
 *
 * Invariant: while a record is read, `line` is where it begins. */
#include "base/prompts.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/decode.h"
#include "base/fs.h"
#include "base/record.h"

static const struct {
    const char *name;
    enum kn_input_format format;
} formats[] = {{"txt", KN_INPUT_TXT},   {"jsonl", KN_INPUT_JSONL}, {"ndjson", KN_INPUT_JSONL},
               {"json", KN_INPUT_JSON}, {"csv", KN_INPUT_CSV},     {"tsv", KN_INPUT_TSV}};

static bool format_find(const char *name, enum kn_input_format *out) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (strcasecmp(name, formats[i].name) == 0) {
            *out = formats[i].format;
            return true;
        }
    }
    return false;
}

static const char *format_name(enum kn_input_format format) {
    size_t i = 0;
    while (formats[i].format != format) i++;
    return formats[i].name;
}

int kn_input_format_parse(const char *text, enum kn_input_format *out, struct kn_err *err) {
    if (format_find(text, out)) return KN_OK;
    return kn_err_set(err, KN_EINVAL, "\"%.*s\" is not one of txt, jsonl, json, csv, tsv",
                      kn_record_shown(text), text);
}

/* input: that the text is in; NULL: memory of the caller's own. */
static int parse(const char *name, enum kn_input_format format, bool strict, const struct kn_spill *input,
                 const char *text, size_t len, struct kn_tasks *out, struct kn_err *err) {
    if (format == KN_INPUT_AUTO) {
        const char *slash = strrchr(name, '/');
        const char *dot = strrchr(slash ? slash : name, '.');
        if (!dot || !format_find(dot + 1, &format))
            return kn_err_set(err, KN_EINVAL,
                              "%s: what format is this? --input-format txt, jsonl, json, csv or tsv says it",
                              name);
    }
    size_t name_len = strlen(name);
    if (name_len > KN_FILE_SHOWN_MAX) name += name_len - KN_FILE_SHOWN_MAX;
    struct kn_err unheard = {0};
    struct kn_reader r = {
        .name = name, .line = 1, .strict = strict, .input = input, .out = out, .err = err ? err : &unheard};
    size_t before = out->count;
    struct kn_spill room = {.max = KN_INPUT_BYTES_MAX};
    int rc = kn_decode(&r, text, len, format_name(format), &room, &text, &len);
    if (rc) format = KN_INPUT_AUTO;
    switch (format) {
    case KN_INPUT_TXT:
        rc = kn_txt_read(&r, text, text + len);
        break;
    case KN_INPUT_JSONL:
        rc = kn_jsonl_read(&r, text, text + len);
        break;
    case KN_INPUT_JSON:
        rc = kn_json_read(&r, text, text + len);
        break;
    case KN_INPUT_CSV:
        rc = kn_csv_read(&r, text, text + len, false);
        break;
    case KN_INPUT_TSV:
        rc = kn_csv_read(&r, text, text + len, true);
        break;
    case KN_INPUT_AUTO:
        break; /* resolved above, or not decoded */
    }
    kn_spill_fini(&room);
    if (rc) kn_tasks_cut(out, before);
    return rc;
}

int kn_prompts_parse(const char *name, enum kn_input_format format, bool strict, const char *text, size_t len,
                     struct kn_tasks *out, struct kn_err *err) {
    return parse(name, format, strict, NULL, text, len, out, err);
}

int kn_prompts_read(const char *path, enum kn_input_format format, bool strict, struct kn_tasks *out,
                    struct kn_err *err) {
    bool standard_input = strcmp(path, "-") == 0;
    if (standard_input && format == KN_INPUT_AUTO)
        return kn_err_set(err, KN_EINVAL, "standard input needs --input-format txt, jsonl, json, csv or tsv");
    struct kn_spill text = {.max = KN_INPUT_BYTES_MAX};
    int rc = kn_fs_read_long(path, &text, err);
    if (rc == KN_OK)
        rc = parse(standard_input ? KN_STANDARD_INPUT : path, format, strict, &text,
                   text.data ? text.data : "", text.len, out, err);
    kn_spill_fini(&text);
    return rc;
}

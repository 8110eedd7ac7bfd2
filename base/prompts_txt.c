/* The reader of .txt; the contract is record.h. A file is a list, a prompt a line with A1111's options
 * behind it, or, when it has a line of settings anywhere, blocks of generation data (infotext.h). It is
 * never both: plain prompts before a block could as well be the first lines of the block's prompt, so that
 * is an error. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/decode.h"
#include "base/infotext.h"
#include "base/record.h"

static bool option_begins(const char *p, const char *end) {
    return end - p > 2 && p[0] == '-' && p[1] == '-' && isalpha((unsigned char)p[2]);
}

/* One word as a shell would split it: '…' is literal; in "…" a backslash escapes '"' and '\'; elsewhere it
 * escapes any character. */
static int word_next(const struct kn_reader *r, const char **at, const char *end, struct kn_buf *out) {
    const char *p = *at;
    char in = 0;
    kn_buf_clear(out);
    int rc = kn_buf_append(out, "", 0); /* an empty word is a text too */
    for (; rc == KN_OK && p < end; p++) {
        if (in == 0 && kn_is_blank(*p)) break;
        if (in == 0 && (*p == '"' || *p == '\'')) {
            in = *p;
        } else if (in != 0 && *p == in) {
            in = 0;
        } else if (*p == '\\' && in != '\'' && p + 1 < end && (in == 0 || p[1] == '"' || p[1] == '\\')) {
            rc = kn_buf_append(out, ++p, 1);
        } else {
            rc = kn_buf_append(out, p, 1);
        }
    }
    if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
    if (in != 0) return kn_record_fail(r, KN_EPARSE, "a quote (%c) is not closed", in);
    *at = p;
    return KN_OK;
}

/* The options of a line, from its first "--" on. `word` and `value` are the caller's scratch. */
static int txt_options(const struct kn_reader *r, struct kn_record *rec, const char *p, const char *end,
                       struct kn_buf *word, struct kn_buf *value) {
    int rc = KN_OK;
    for (;;) {
        while (p < end && kn_is_blank(*p)) p++;
        if (p == end) return KN_OK;
        bool option = option_begins(p, end);
        rc = word_next(r, &p, end, word);
        if (rc) return rc;
        if (!option)
            return kn_record_fail(
                r, KN_EPARSE, "\"%.*s\" belongs to no option; put quotes around a value that holds blanks",
                kn_record_shown(word->data), word->data);
        char *name = word->data + 2, folded[KN_NAME_MAX + 1];
        char *equals = strchr(name, '=');
        if (equals) *equals = '\0';
        enum kn_record_field field = kn_record_fold(name, folded) ? kn_record_field(folded) : KN_IN_UNKNOWN;
        if (field == KN_IN_UNKNOWN) return kn_record_fail_unknown(r, name);
        if (field == KN_IN_UNSUPPORTED) return kn_record_fail_unsupported(r, name);

        kn_buf_clear(value);
        rc = kn_buf_appends(value, equals ? equals + 1 : "");
        if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
        bool any = equals != NULL;
        /* A prompt need not be quoted, as in A1111: it goes on to the next option. */
        bool many = field == KN_IN_PROMPT || field == KN_IN_NEGATIVE;
        char kept[KN_NAME_MAX + 1];
        snprintf(kept, sizeof kept, "%s", name); /* word is needed for the values */
        while (!any || many) {
            while (p < end && kn_is_blank(*p)) p++;
            if (p == end || option_begins(p, end)) break;
            rc = word_next(r, &p, end, word);
            if (rc) return rc;
            if (any) rc = kn_buf_appends(value, " ");
            if (rc == KN_OK) rc = kn_buf_append(value, word->data, word->len);
            if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
            any = true;
        }
        if (!any) return kn_record_fail(r, KN_EPARSE, "%s: needs a value", kept);
        rc = kn_record_set(r, rec, field, kept, value->data);
        if (rc) return rc;
    }
}

/* Where the first option of the line begins; its end when there is none. */
static const char *options_find(const char *p, const char *end) {
    const char *options = p;
    while (options < end && !(option_begins(options, end) && (options == p || kn_is_blank(options[-1]))))
        options++;
    return options;
}

static int txt_line(const struct kn_reader *r, const char *p, const char *end, struct kn_buf *word,
                    struct kn_buf *value) {
    struct kn_record rec;
    int rc = kn_record_init(r, &rec);
    if (rc) return rc;
    const char *options = options_find(p, end);
    const char *text_end = options;
    while (text_end > p && kn_is_blank(text_end[-1])) text_end--;
    if (text_end > p) {
        kn_buf_clear(value);
        rc = kn_buf_append(value, p, (size_t)(text_end - p));
        if (rc)
            kn_record_fail(r, rc, "prompt: %s", kn_err_words(rc));
        else
            rc = kn_record_set(r, &rec, KN_IN_PROMPT, "prompt", value->data);
    }
    if (rc == KN_OK) rc = txt_options(r, &rec, options, end, word, value);
    if (rc) {
        kn_task_fini(&rec.t);
        return rc;
    }
    return kn_record_finish(r, &rec);
}

/* Byte order marks at the line's beginning are passed over: files that begin with one were joined. Any other
 * character that may end a line or may not is refused, in comments too, which could swallow a prompt. */
static int txt_check(const struct kn_reader *r, const char **line, const char *end) {
    size_t at;
    while (end - *line >= 3 && memcmp(*line, "\xef\xbb\xbf", 3) == 0) *line += 3;
    const char *stray = kn_stray_break(*line, end, &at);
    if (!stray) return KN_OK;
    return kn_record_fail(r, KN_EPARSE,
                          "%s, at byte %zu of the line, may end it or not: put a line's end or a blank there",
                          stray, at + 1);
}

/* Cuts the next line off [*at, end) and takes the blanks from its ends. */
static int line_next(const struct kn_reader *r, const char **at, const char *end, const char **line,
                     const char **line_end) {
    const char *newline = memchr(*at, '\n', (size_t)(end - *at));
    *line = *at;
    *line_end = newline ? newline : end;
    *at = newline ? newline + 1 : end;
    int rc = txt_check(r, line, *line_end);
    while (*line < *line_end && kn_is_blank(**line)) (*line)++;
    while (*line_end > *line && kn_is_blank((*line_end)[-1])) (*line_end)--;
    return rc;
}

static const char negative_head[] = "Negative prompt:";

static bool is_negative(const char *line, const char *line_end) {
    size_t n = sizeof negative_head - 1;
    return (size_t)(line_end - line) >= n && memcmp(line, negative_head, n) == 0;
}

/* A block of generation data up to its line of settings. */
struct block {
    struct kn_buf prompt, negative;
    bool begun, in_negative, gap; /* gap: an empty line stood behind some of its prompt */
    size_t first_line;
};

/* A line of the block that is not its last. */
static int block_line(const struct kn_reader *r, struct block *b, const char *line, const char *line_end) {
    if (!b->begun) b->first_line = r->line;
    if (is_negative(line, line_end)) {
        if (b->in_negative)
            return kn_record_fail(r, KN_EPARSE, "a second \"%s\" before a line of settings", negative_head);
        line += sizeof negative_head - 1;
        while (line < line_end && kn_is_blank(*line)) line++;
        b->in_negative = true;
    } else if (b->gap && !b->in_negative) {
        return kn_record_fail(
            r, KN_EPARSE,
            "an empty line stands before this one, within a prompt of generation data: take it out if "
            "it is one prompt; plain prompts go into a file of their own");
    }
    b->begun = true;
    if (options_find(line, line_end) < line_end)
        return kn_record_fail(
            r, KN_EPARSE, "options (--…) do not go with generation data: its settings are in its last line");
    struct kn_buf *to = b->in_negative ? &b->negative : &b->prompt;
    int rc = to->len > 0 ? kn_buf_appends(to, b->gap && b->in_negative ? "\n\n" : "\n") : KN_OK;
    if (rc == KN_OK) rc = kn_buf_append(to, line, (size_t)(line_end - line));
    b->gap = false;
    return rc ? kn_record_fail(r, rc, "%s", kn_err_words(rc)) : KN_OK;
}

/* The line of settings ends the block; r->line is its number. */
static int block_end(struct kn_reader *r, struct block *b, const char *line, const char *line_end) {
    struct kn_record rec;
    size_t settings_line = r->line;
    int rc = kn_record_init(r, &rec);
    if (rc) return rc;
    if (b->begun) r->line = b->first_line; /* where the prompt's own mistakes are */
    if (b->prompt.len > 0) rc = kn_record_set(r, &rec, KN_IN_PROMPT, "prompt", b->prompt.data);
    if (rc == KN_OK && b->negative.len > 0)
        rc = kn_record_set(r, &rec, KN_IN_NEGATIVE, negative_head, b->negative.data);
    if (rc == KN_OK && rec.t.prompt) {
        rc = kn_task_check(&rec.t, r->err);
        if (rc) kn_record_fail_in(r, NULL);
    }
    r->line = settings_line;
    if (rc == KN_OK) rc = kn_settings_line_read(r, &rec, line, line_end);
    if (rc) {
        kn_task_fini(&rec.t);
        return rc;
    }
    kn_buf_clear(&b->prompt);
    kn_buf_clear(&b->negative);
    b->begun = b->in_negative = b->gap = false;
    return kn_record_finish(r, &rec);
}

static int blocks_read(struct kn_reader *r, const char *p, const char *end) {
    struct block b = {0};
    kn_buf_init(&b.prompt, KN_INPUT_BYTES_MAX);
    kn_buf_init(&b.negative, KN_INPUT_BYTES_MAX);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *line, *line_end;
        rc = line_next(r, &p, end, &line, &line_end);
        if (rc) break;
        if (line == line_end)
            b.gap = b.begun;
        else if (kn_is_settings_line(line, line_end))
            rc = block_end(r, &b, line, line_end);
        else if (*line != '#')
            rc = block_line(r, &b, line, line_end);
    }
    if (rc == KN_OK && b.begun) {
        r->line = b.first_line;
        rc = kn_record_fail(
            r, KN_EPARSE,
            "no line of settings (Steps: …) ends this, as in the generation data above; plain prompts go "
            "into a file of their own");
    }
    kn_buf_fini(&b.prompt);
    kn_buf_fini(&b.negative);
    return rc;
}

static int list_read(struct kn_reader *r, const char *p, const char *end) {
    struct kn_buf word, value;
    kn_buf_init(&word, KN_INPUT_BYTES_MAX);
    kn_buf_init(&value, KN_INPUT_BYTES_MAX);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *line, *line_end;
        rc = line_next(r, &p, end, &line, &line_end);
        if (rc || line == line_end || *line == '#') continue;
        if (is_negative(line, line_end))
            rc = kn_record_fail(
                r, KN_EPARSE,
                "\"%s\" needs a line of settings below it (Steps: 20, Sampler: …); in a list of prompts "
                "write a cat --negative \"blurry\"",
                negative_head);
        else
            rc = txt_line(r, line, line_end, &word, &value);
    }
    kn_buf_fini(&word);
    kn_buf_fini(&value);
    return rc;
}

int kn_txt_read(struct kn_reader *r, const char *p, const char *end) {
    bool blocks = false;
    size_t lines = 0;
    for (const char *at = p; at < end && !blocks;) {
        const char *line, *line_end;
        if (r->input && ++lines % KN_READER_REST == 0) kn_spill_rest(r->input);
        if (line_next(r, &at, end, &line, &line_end)) break; /* told again, with the line */
        blocks = kn_is_settings_line(line, line_end);
    }
    return blocks ? blocks_read(r, p, end) : list_read(r, p, end);
}

/* The reader of .txt: a prompt a line, with A1111's options behind it; the contract is record.h. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/decode.h"
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

static int txt_line(const struct kn_reader *r, const char *p, const char *end, struct kn_buf *word,
                    struct kn_buf *value) {
    struct kn_record rec;
    int rc = kn_record_init(r, &rec);
    if (rc) return rc;
    const char *options = p;
    while (options < end && !(option_begins(options, end) && (options == p || kn_is_blank(options[-1]))))
        options++;
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

int kn_txt_read(struct kn_reader *r, const char *p, const char *end) {
    struct kn_buf word, value;
    kn_buf_init(&word, KN_INPUT_BYTES_MAX);
    kn_buf_init(&value, KN_INPUT_BYTES_MAX);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end, *next = newline ? newline + 1 : end;
        rc = txt_check(r, &p, stop);
        while (p < stop && kn_is_blank(*p)) p++;
        while (stop > p && kn_is_blank(stop[-1])) stop--;
        if (rc == KN_OK && p < stop && *p != '#') rc = txt_line(r, p, stop, &word, &value);
        p = next;
    }
    kn_buf_fini(&word);
    kn_buf_fini(&value);
    return rc;
}

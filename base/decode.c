/* From bytes to text; the contract is decode.h. */
#include "base/decode.h"

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

#define BOM "\xef\xbb\xbf"
#define PIECE_BYTES ((size_t)4 << 20)
#define GUESS_BYTES 4096 /* of the file are looked at to guess its encoding */

/* "iconv -f WINDOWS-1252 -t UTF-8 'my prompts.csv' > utf8.csv": a command that can be pasted. */
static int fail_convert(const struct kn_reader *r, const char *ending, const char *encoding,
                        const char *what) {
    if (strcmp(r->name, KN_STANDARD_INPUT) == 0)
        return kn_record_fail(r, KN_EPARSE, "%s; to convert it: … | iconv -f %s -t UTF-8 | kiln …", what,
                              encoding);
    /* quotes alone do not make these names safe, and of a long one only the end is here */
    if (r->name[0] == '-' || strchr(r->name, '\'') || strlen(r->name) >= KN_FILE_SHOWN_MAX)
        return kn_record_fail(r, KN_EPARSE, "%s; to convert it: iconv -f %s -t UTF-8 FILE > utf8.%s", what,
                              encoding, ending);
    bool plain = true;
    for (const char *p = r->name; *p; p++)
        plain = plain && (isalnum((unsigned char)*p) || strchr("._/+-", *p));
    const char *quote = plain ? "" : "'";
    return kn_record_fail(r, KN_EPARSE, "%s; to convert it: iconv -f %s -t UTF-8 %s%s%s > utf8.%s", what,
                          encoding, quote, r->name, quote, ending);
}

/* The encoding of a text that has 0 bytes and no byte order mark, by where they stand: UTF-16 and UTF-32 of
 * mostly Latin letters have them in the same places throughout. NULL: something else. */
static const char *guess_wide(const char *bytes, size_t len) {
    static const char *const names[] = {"UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"};
    static const bool zero[][4] = {{0, 1, 1, 1}, {1, 1, 1, 0}, {0, 1, 0, 1}, {1, 0, 1, 0}};
    size_t zeros[4] = {0}, n = (len < GUESS_BYTES ? len : GUESS_BYTES) & ~(size_t)3;
    for (size_t i = 0; i < n; i++) zeros[i % 4] += bytes[i] == '\0';
    for (size_t k = 0; n > 0 && k < sizeof names / sizeof *names; k++) {
        bool fits = true;
        for (size_t i = 0; i < 4; i++) fits = fits && (zero[k][i] ? zeros[i] * 2 > n / 4 : zeros[i] == 0);
        if (fits) return names[k];
    }
    return NULL;
}

/* True when text that is no UTF-8 looks like one byte a character in Latin letters: its bytes above ASCII
 * stand mostly alone ("café", “so”), where other scripts and the encodings of East Asia have runs of them.
 * Five bytes mean nothing in Windows-1252; a file that has whole UTF-8 characters too is damaged, or
 * joined from two. */
static bool looks_latin(const char *bytes, size_t len) {
    size_t alone = 0, runs = 0, n = 0;
    for (size_t i = 0; i < len; i += n ? n : 1) {
        for (n = 0; i + n < len && (unsigned char)bytes[i + n] >= 0x80; n++) {
            if (strchr("\x81\x8d\x8f\x90\x9d", bytes[i + n])) return false;
        }
        if (n > 1 && kn_utf8_span(bytes + i, n) > 0) return false;
        alone += n == 1;
        runs += n > 1;
    }
    return alone > runs;
}

static int fail_bytes(const struct kn_reader *r, const char *bytes, size_t len, size_t bad, size_t column,
                      const char *ending) {
    char what[120];
    if (bytes[bad] == '\0') {
        const char *wide = guess_wide(bytes, len);
        if (!wide)
            return kn_record_fail(r, KN_EPARSE, "a NUL byte (byte %zu of the line): is this a text file?",
                                  column);
        snprintf(what, sizeof what, "a NUL byte (byte %zu of the line): this looks like %s without its mark",
                 column, wide);
        return fail_convert(r, ending, wide, what);
    }
    snprintf(what, sizeof what, "not UTF-8 (byte %zu of the line is 0x%02X)", column,
             (unsigned)(unsigned char)bytes[bad]);
    if (!looks_latin(bytes, len))
        return kn_record_fail(
            r, KN_EPARSE, "%s: damaged, or in another encoding; iconv -f ENCODING -t UTF-8 converts", what);
    size_t n = strlen(what);
    snprintf(what + n, sizeof what - n, ": this looks like Windows-1252");
    return fail_convert(r, ending, "WINDOWS-1252", what);
}

/* NUL bytes and what is not UTF-8, with the line where it stands. *returns: there is a CR. */
static int bytes_check(struct kn_reader *r, const char *bytes, size_t len, const char *ending,
                       bool *returns) {
    size_t good = 0, line = 0;
    *returns = false;
    for (size_t n; good < len; good += n) { /* in pieces, since it may be long */
        n = len - good < PIECE_BYTES ? len - good : PIECE_BYTES;
        const char *nul = memchr(bytes + good, '\0', n);
        *returns = *returns || memchr(bytes + good, '\r', n);
        n = kn_utf8_span(bytes + good, nul ? (size_t)(nul - bytes) - good : n);
        if (n == 0) break;
        if (r->input) kn_spill_rest(r->input);
    }
    if (good == len) return KN_OK;
    for (size_t i = 0; i < good; i++) {
        if (bytes[i] != '\n' && (bytes[i] != '\r' || (i + 1 < len && bytes[i + 1] == '\n'))) continue;
        r->line++;
        line = i + 1;
    }
    return fail_bytes(r, bytes, len, good, good - line + 1, ending);
}

/* A long text need not be in RAM twice. */
static void rest(const struct kn_reader *r, const struct kn_spill *room) {
    kn_spill_rest(room);
    if (r->input) kn_spill_rest(r->input);
}

static int copy_with_line_feeds(const struct kn_reader *r, const char *p, const char *end,
                                struct kn_spill *room) {
    int rc = KN_OK;
    size_t lines = 0;
    while (rc == KN_OK && p < end) {
        const char *cr = memchr(p, '\r', (size_t)(end - p));
        rc = kn_spill_append(room, p, (size_t)((cr ? cr : end) - p));
        if (!cr) break;
        if (++lines % KN_READER_REST == 0) rest(r, room);
        p = cr + 1;
        if (rc == KN_OK && (p == end || *p != '\n')) rc = kn_spill_append(room, "\n", 1);
    }
    return rc ? kn_record_fail(r, rc, "%s", kn_err_words(rc)) : KN_OK;
}

static size_t utf8_put(uint32_t c, char out[4]) {
    if (c < 0x80) return (void)(out[0] = (char)c), 1;
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | c);
    return n;
}

/* The text behind a mark of UTF-16, as UTF-8 with '\n' as every line's end. */
static int from_utf16(struct kn_reader *r, const char *bytes, size_t len, bool big, struct kn_spill *room) {
    const uint8_t *p = (const uint8_t *)bytes;
    size_t column = 0; /* characters of the line so far */
    bool after_return = false;
    for (size_t i = 0; i < len;) {
        if (len - i < 2)
            return kn_record_fail(r, KN_EPARSE, "UTF-16 of an odd number of bytes: the file is cut short");
        uint32_t c = big ? (uint32_t)(p[i] << 8 | p[i + 1]) : (uint32_t)(p[i + 1] << 8 | p[i]);
        i += 2;
        bool second = c == '\n' && after_return; /* the CR before it has ended the line */
        after_return = c == '\r';
        if (second) continue;
        column++;
        if (c >= 0xd800 && c <= 0xdfff) {
            uint32_t low = 0;
            if (c <= 0xdbff && len - i >= 2)
                low = big ? (uint32_t)(p[i] << 8 | p[i + 1]) : (uint32_t)(p[i + 1] << 8 | p[i]);
            if (low < 0xdc00 || low > 0xdfff)
                return kn_record_fail(r, KN_EPARSE,
                                      "half a surrogate pair in UTF-16 (character %zu of the line)", column);
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            i += 2;
        }
        if (c == 0)
            return kn_record_fail(r, KN_EPARSE, "a NUL in UTF-16 (character %zu of the line)", column);
        if (after_return) c = '\n';
        char utf8[4];
        int rc = kn_spill_append(room, utf8, utf8_put(c, utf8));
        if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
        if (c == '\n') {
            if (++r->line % KN_READER_REST == 0) rest(r, room);
            column = 0;
        }
    }
    return KN_OK;
}

static bool begins(const char *bytes, size_t len, const char *with, size_t n) {
    return len >= n && memcmp(bytes, with, n) == 0;
}

int kn_decode(struct kn_reader *r, const char *bytes, size_t len, const char *ending, struct kn_spill *room,
              const char **out, size_t *out_len) {
    bool little = begins(bytes, len, "\xff\xfe", 2), big = begins(bytes, len, "\xfe\xff", 2), copied = false;
    int rc;
    r->line = 1;
    if (begins(bytes, len, "\xff\xfe\0\0", 4) || begins(bytes, len, "\0\0\xfe\xff", 4))
        return fail_convert(r, ending, "UTF-32", "UTF-32 is not read");
    if (little || big) {
        copied = true;
        rc = from_utf16(r, bytes + 2, len - 2, big, room);
    } else {
        rc = bytes_check(r, bytes, len, ending, &copied);
        if (rc == KN_OK && copied) rc = copy_with_line_feeds(r, bytes, bytes + len, room);
    }
    if (rc) return rc;
    if (copied) {
        r->input = room;
        bytes = room->data ? room->data : "";
        len = room->len;
    }
    while (begins(bytes, len, BOM, 3)) { /* a program that adds one has added a second */
        bytes += 3;
        len -= 3;
    }
    *out = bytes;
    *out_len = len;
    r->line = 1;
    return KN_OK;
}

static const struct {
    const char *bytes, *name;
} strays[] = {
    {"\v", "a vertical tab"},
    {"\f", "a form feed"},
    {"\x1c", "U+001C (file separator)"},
    {"\x1d", "U+001D (group separator)"},
    {"\x1e", "U+001E (record separator)"},
    {"\xc2\x85", "U+0085 (next line)"},
    {"\xe2\x80\xa8", "U+2028 (line separator)"},
    {"\xe2\x80\xa9", "U+2029 (paragraph separator)"},
    {BOM, "U+FEFF (byte order mark; two files joined?)"},
};

const char *kn_stray_break(const char *p, const char *end, size_t *at) {
    for (const char *q = p; q < end; q++) {
        unsigned char c = (unsigned char)*q;
        if ((c > 0x1e && c < 0xc2) || c < 0x0b) continue; /* nearly all of a text */
        for (size_t i = 0; i < sizeof strays / sizeof *strays; i++) {
            if (!begins(q, (size_t)(end - q), strays[i].bytes, strlen(strays[i].bytes))) continue;
            *at = (size_t)(q - p);
            return strays[i].name;
        }
    }
    return NULL;
}

/* See token.h. */
#include "base/token.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/buf.h"
#include "base/fs.h"

#define VARIABLE "KILN_TOKEN"
#define READ_BYTES_MAX 1024
#define BLANKS " \t\r\n"

const char kn_insecure_gone[] =
    "is gone: who connects by TCP shows a key now, and these three commands change a farm over:\n"
    "    kiln up --listen tcp://0.0.0.0:5600                        (as before, without --insecure)\n"
    "    kiln token new --worker --uses 100 > token                 (there; --client for people)\n"
    "    kiln-worker --join tcp://HOST:5600 --token @token …        (on each worker, the first time)";

int kn_token_make(const struct kn_public_key *server, struct kn_token *out, struct kn_err *err) {
    out->server = *server;
    if (getrandom(out->id, sizeof out->id, 0) == (ssize_t)sizeof out->id &&
        getrandom(out->secret, sizeof out->secret, 0) == (ssize_t)sizeof out->secret)
        return 0;
    return kn_err_set(err, KN_EIO, "getrandom: %s", strerror(errno));
}

void kn_token_format(const struct kn_token *t, char out[KN_TOKEN_TEXT]) {
    char *p = out + sprintf(out, "%s", KN_TOKEN_HEAD);
    kn_hex(t->server.bytes, KN_KEY_BYTES, p);
    p += 2 * KN_KEY_BYTES;
    *p++ = '.';
    kn_hex(t->id, KN_TOKEN_ID_BYTES, p);
    p += 2 * KN_TOKEN_ID_BYTES;
    *p++ = '.';
    kn_hex(t->secret, KN_TOKEN_SECRET_BYTES, p);
}

/* The next digits of a token, up to its next dot or its end. */
static bool take(char **p, void *out, size_t len) {
    char *word = strsep(p, ".");
    return word && kn_unhex(word, out, len) == 0;
}

int kn_token_parse(const char *text, struct kn_token *out, struct kn_err *err) {
    char copy[KN_TOKEN_TEXT], *p = copy;
    int n = snprintf(copy, sizeof copy, "%s", text);
    bool ok = n >= 0 && (size_t)n < sizeof copy && strncmp(copy, KN_TOKEN_HEAD, strlen(KN_TOKEN_HEAD)) == 0;
    p += ok ? strlen(KN_TOKEN_HEAD) : 0;
    ok = ok && take(&p, out->server.bytes, KN_KEY_BYTES) && take(&p, out->id, KN_TOKEN_ID_BYTES) &&
         take(&p, out->secret, KN_TOKEN_SECRET_BYTES) && !p;
    OPENSSL_cleanse(copy, sizeof copy);
    return ok ? 0
              : kn_err_set(err, KN_EPARSE,
                           "is no token, or not a whole one: they begin with %s and have %d characters",
                           KN_TOKEN_HEAD, (int)KN_TOKEN_TEXT - 1);
}

/* A text with blanks around it, as a file ends in a line's end. */
static int parse_text(char *text, struct kn_token *out, struct kn_err *err) {
    char *first = text + strspn(text, BLANKS);
    first[strcspn(first, BLANKS)] = '\0';
    return kn_token_parse(first, out, err);
}

static int read_variable(struct kn_token *out, struct kn_err *err) {
    char *text = getenv(VARIABLE);
    if (!text || !text[0]) return kn_err_set(err, KN_ENOENT, "$" VARIABLE " is not set");
    size_t len = strlen(text);
    int rc = parse_text(text, out, err);
    OPENSSL_cleanse(text, len);
    unsetenv(VARIABLE);
    return rc == 0 ? 0 : kn_err_prefix(err, "$" VARIABLE);
}

int kn_token_read(const char *where, struct kn_token *out, struct kn_err *err) {
    if (!where) return read_variable(out, err);
    if (where[0] != '@' && strcmp(where, "-") != 0)
        return kn_err_set(err, KN_EINVAL,
                          "everybody on this machine can read a command line: put the token in a file and "
                          "say @FILE, or in the variable " VARIABLE " (or pipe it in, with -)");
    struct kn_buf b;
    const char *path = where[0] == '@' ? where + 1 : where;
    kn_buf_init(&b, READ_BYTES_MAX);
    int rc = kn_fs_read(path, &b, err);
    if (rc == 0 && b.len == 0) rc = kn_err_set(err, KN_EPARSE, "%.200s: is empty", path);
    if (rc == 0 && (rc = parse_text((char *)b.data, out, err)) != 0)
        kn_err_prefix(err, "%.200s", strcmp(where, "-") == 0 ? "standard input" : path);
    if (b.data) OPENSSL_cleanse(b.data, b.len);
    kn_buf_fini(&b);
    return rc;
}

void kn_token_digest(const uint8_t id[KN_TOKEN_ID_BYTES], const uint8_t secret[KN_TOKEN_SECRET_BYTES],
                     kn_digest out) {
    uint8_t both[KN_TOKEN_ID_BYTES + KN_TOKEN_SECRET_BYTES];
    memcpy(both, id, KN_TOKEN_ID_BYTES);
    memcpy(both + KN_TOKEN_ID_BYTES, secret, KN_TOKEN_SECRET_BYTES);
    kn_sha256(both, sizeof both, out);
    OPENSSL_cleanse(both, sizeof both);
}

bool kn_token_fits(const uint8_t id[KN_TOKEN_ID_BYTES], const uint8_t secret[KN_TOKEN_SECRET_BYTES],
                   const kn_digest kept) {
    kn_digest is;
    kn_token_digest(id, secret, is);
    return kn_same_secret(is, kept, sizeof is);
}

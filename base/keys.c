/* See keys.h. */
#include "base/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"

#define HEAD "kiln key pair 1\n"
#define FILE_BYTES (sizeof HEAD - 1 + 2 * KN_KEY_BYTES + 1)
#define NAMES_TRIED 16

static int failed(struct kn_err *err, const char *path, const char *doing) {
    return kn_err_set(err, KN_EIO, "%s: %s: %s", path, doing, strerror(errno));
}

/* The public half follows from the secret one. */
static int complete(struct kn_key_pair *p, struct kn_err *err) {
    size_t len = KN_KEY_BYTES;
    EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, p->secret, KN_KEY_BYTES);
    bool ok = key && EVP_PKEY_get_raw_public_key(key, p->own.bytes, &len) == 1 && len == sizeof p->own.bytes;
    EVP_PKEY_free(key);
    return ok ? 0 : kn_err_set(err, KN_EINTERNAL, "libcrypto makes no X25519 key");
}

/* That nobody but this user may read or change what is there. */
static int check_alone(const struct stat *st, const char *path, struct kn_err *err) {
    if (st->st_uid != geteuid())
        return kn_err_set(err, KN_EPERM, "%s: belongs to user %u, not to the one who uses it (%u)", path,
                          (unsigned)st->st_uid, (unsigned)geteuid());
    if (st->st_mode & 077)
        return kn_err_set(err, KN_EPERM,
                          "%s: has mode %04o, so that others may use the key in it: chmod %s it, and take "
                          "another key if somebody may have read this one",
                          path, (unsigned)st->st_mode & 07777, S_ISDIR(st->st_mode) ? "0700" : "0600");
    return 0;
}

/* KN_ENOENT: there is none. */
static int read_pair(const char *path, struct kn_key_pair *out, struct kn_err *err) {
    char text[FILE_BYTES + 2] = "";
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        if (errno == ENOENT) return kn_err_set(err, KN_ENOENT, "%s: there is none", path);
        return failed(err, path, "open");
    }
    ssize_t got = 0;
    int rc = fstat(fd, &st) != 0 ? failed(err, path, "stat") : check_alone(&st, path, err);
    if (rc == 0 && (got = read(fd, text, sizeof text - 1)) < 0) rc = failed(err, path, "read");
    close(fd);
    if (rc == 0 && got >= 0) {
        text[got] = '\0';
        if ((size_t)got == FILE_BYTES && text[FILE_BYTES - 1] == '\n') text[FILE_BYTES - 1] = '\0';
        if ((size_t)got != FILE_BYTES || strncmp(text, HEAD, sizeof HEAD - 1) != 0 ||
            kn_unhex(text + sizeof HEAD - 1, out->secret, KN_KEY_BYTES) != 0)
            rc = kn_err_set(err, KN_EPARSE, "%s: is not a key pair that kiln made", path);
    }
    OPENSSL_cleanse(text, sizeof text);
    return rc == 0 ? complete(out, err) : rc;
}

/* Writes a new pair beside path and links it there, which never replaces one that somebody else has just made. */
static int make_pair(const char *dir, const char *path, struct kn_err *err) {
    uint8_t secret[KN_KEY_BYTES];
    char text[FILE_BYTES + 1], temp[KN_PATH_MAX];
    uint32_t random;
    int fd = -1;
    for (int i = 0; fd < 0 && i < NAMES_TRIED; i++) {
        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
            return failed(err, path, "getrandom");
        int n = snprintf(temp, sizeof temp, "%s.tmp.%06x", path, random & 0xffffff);
        if (n < 0 || (size_t)n >= sizeof temp) return kn_err_set(err, KN_ELIMIT, "%.200s: too long", path);
        fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd < 0) return failed(err, temp, "create");
    int rc =
        getrandom(secret, sizeof secret, 0) == (ssize_t)sizeof secret ? 0 : failed(err, path, "getrandom");
    memcpy(text, HEAD, sizeof HEAD - 1);
    kn_hex(secret, sizeof secret, text + sizeof HEAD - 1);
    text[FILE_BYTES - 1] = '\n';
    if (rc == 0 && write(fd, text, FILE_BYTES) != (ssize_t)FILE_BYTES) rc = failed(err, temp, "write");
    if (rc == 0 && fsync(fd) != 0) rc = failed(err, temp, "fsync");
    close(fd);
    if (rc == 0 && link(temp, path) != 0 && errno != EEXIST) rc = failed(err, path, "link");
    unlink(temp);
    OPENSSL_cleanse(secret, sizeof secret);
    OPENSSL_cleanse(text, sizeof text);
    return rc == 0 ? kn_fs_sync_dir(dir, err) : rc;
}

int kn_key_pair_keep(const char *dir, const char *name, struct kn_key_pair *out, struct kn_err *err) {
    char path[KN_PATH_MAX];
    struct stat st;
    int rc = kn_fs_join(path, sizeof path, dir, name);
    if (rc != 0) return kn_err_set(err, rc, "%.200s: too long", dir);
    if ((rc = kn_fs_mkdirs(dir, 0700, err)) != 0) return rc;
    if (stat(dir, &st) != 0) return failed(err, dir, "stat");
    if ((rc = check_alone(&st, dir, err)) != 0) return rc;
    rc = read_pair(path, out, err);
    if (rc != KN_ENOENT) return rc;
    rc = make_pair(dir, path, err);
    return rc == 0 ? read_pair(path, out, err) : rc;
}

void kn_key_pair_forget(struct kn_key_pair *p) {
    OPENSSL_cleanse(p, sizeof *p);
}

void kn_fingerprint(const struct kn_public_key *key, char out[KN_FINGERPRINT_TEXT]) {
    uint8_t sum[KN_SHA256_BYTES];
    kn_sha256(key->bytes, sizeof key->bytes, sum);
    kn_hex(sum, (KN_FINGERPRINT_TEXT - 1) / 2, out);
}

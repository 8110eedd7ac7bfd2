/* Digests, hex, UUIDs, and the table hash; the contract is hash.h. */
#include "base/hash.h"

#include <assert.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/limits.h"

/* EVP wants a context of its own making; `struct kn_sha256` never exists, it is the EVP_MD_CTX behind another
 * name. */
struct kn_sha256 *kn_sha256_create(void) {
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(ctx);
        ctx = NULL;
    }
    return (struct kn_sha256 *)ctx;
}

void kn_sha256_update(struct kn_sha256 *h, const void *data, size_t len) {
    int ok = len == 0 || EVP_DigestUpdate((EVP_MD_CTX *)h, data, len) == 1;
    assert(ok); /* memory only: it cannot fail */
}

void kn_sha256_final(struct kn_sha256 *h, uint8_t out[KN_SHA256_BYTES]) {
    unsigned n = 0;
    int ok = EVP_DigestFinal_ex((EVP_MD_CTX *)h, out, &n);
    assert(ok == 1 && n == KN_SHA256_BYTES);
    EVP_MD_CTX_free((EVP_MD_CTX *)h);
}

void kn_sha256(const void *data, size_t len, uint8_t out[KN_SHA256_BYTES]) {
    unsigned n = 0;
    int ok = EVP_Digest(len ? data : "", len, out, &n, EVP_sha256(), NULL);
    assert(ok == 1 && n == KN_SHA256_BYTES);
}

void kn_hmac_sha256(const uint8_t *key, size_t key_len, const void *data, size_t len,
                    uint8_t out[KN_SHA256_BYTES]) {
    unsigned n = 0;
    bool ok = HMAC(EVP_sha256(), key, (int)key_len, data, len, out, &n) != NULL;
    assert(ok && n == KN_SHA256_BYTES);
}

bool kn_same_secret(const void *a, const void *b, size_t len) {
    return CRYPTO_memcmp(a, b, len) == 0;
}

int kn_sha256_file(const char *path, uint8_t out[KN_SHA256_BYTES], struct kn_err *err) {
    int fd, opened = kn_fs_open(path, KN_FILE_BYTES_MAX, &fd, NULL, err);
    if (opened) return opened;
    struct kn_sha256 *h = kn_sha256_create();
    if (!h) {
        close(fd);
        return kn_err_set(err, KN_ENOMEM, "%s: %s", path, kn_err_words(KN_ENOMEM));
    }
    int rc = KN_OK;
    char chunk[65536];
    for (;;) {
        ssize_t got = read(fd, chunk, sizeof chunk);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) rc = kn_err_set(err, KN_EIO, "%s: read: %s", path, strerror(errno));
        if (got <= 0) break;
        kn_sha256_update(h, chunk, (size_t)got);
    }
    uint8_t digest[KN_SHA256_BYTES];
    kn_sha256_final(h, digest);
    close(fd);
    if (rc == KN_OK) memcpy(out, digest, sizeof digest);
    return rc;
}

void kn_hex(const void *data, size_t len, char *out) {
    static const char digits[] = "0123456789abcdef";
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[p[i] >> 4];
        out[2 * i + 1] = digits[p[i] & 15];
    }
    out[2 * len] = '\0';
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

int kn_unhex(const char *text, void *out, size_t len) {
    uint8_t *p = out;
    for (size_t i = 0; i < len; i++) {
        int hi = hex_digit(text[2 * i]);
        int lo = hi < 0 ? -1 : hex_digit(text[2 * i + 1]); /* never looks past the 0 that ends a short text */
        if (lo < 0) return KN_EPARSE;
        p[i] = (uint8_t)(hi << 4 | lo);
    }
    return text[2 * len] == '\0' ? KN_OK : KN_EPARSE;
}

void kn_uuid_random(uint8_t out[KN_UUID_BYTES]) {
    size_t done = 0;
    while (done < KN_UUID_BYTES) { /* blocks only before the kernel's pool is first seeded */
        ssize_t got = getrandom(out + done, KN_UUID_BYTES - done, 0);
        assert(got >= 0 || errno == EINTR);
        if (got > 0) done += (size_t)got;
    }
    out[6] = (uint8_t)((out[6] & 0x0f) | 0x40); /* version 4 (RFC 9562) */
    out[8] = (uint8_t)((out[8] & 0x3f) | 0x80); /* its variant */
}

static const uint8_t uuid_groups[] = {4, 2, 2, 2, 6};

void kn_uuid_format(const uint8_t id[KN_UUID_BYTES], char out[KN_UUID_TEXT]) {
    for (size_t g = 0; g < sizeof uuid_groups; g++) {
        if (g) *out++ = '-';
        kn_hex(id, uuid_groups[g], out);
        id += uuid_groups[g];
        out += 2 * uuid_groups[g];
    }
}

int kn_uuid_parse(const char *text, uint8_t out[KN_UUID_BYTES]) {
    char hex[2 * KN_UUID_BYTES + 1];
    size_t at = 0, from = 0;
    for (size_t g = 0; g < sizeof uuid_groups; g++) {
        if (g && text[from++] != '-') return KN_EPARSE;
        for (size_t i = 0; i < 2u * uuid_groups[g]; i++) {
            if (hex_digit(text[from]) < 0) return KN_EPARSE;
            hex[at++] = text[from++];
        }
    }
    hex[at] = '\0';
    if (text[from] != '\0') return KN_EPARSE;
    return kn_unhex(hex, out, KN_UUID_BYTES);
}

/* The table hash: eight bytes at a time (little-endian by definition, whatever the machine), each folded in
 * by a multiplication with an odd constant and a xor-shift, then a finaliser in which every input bit reaches
 * every output bit. Not for keys that an enemy chooses against a known seed: the map bounds its count and
 * probes linearly. */
static uint64_t hash_mix(uint64_t x) {
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    return x;
}

uint64_t kn_hash64(const void *data, size_t len, uint64_t seed) {
    const uint8_t *p = data;
    uint64_t h = hash_mix(seed + 0x9e3779b97f4a7c15u) ^ (uint64_t)len;
    while (len > 0) {
        size_t n = len < 8 ? len : 8;
        uint64_t word = 0;
        for (size_t i = 0; i < n; i++) word |= (uint64_t)p[i] << (8 * i);
        h = hash_mix(h ^ word) + 0x9e3779b97f4a7c15u;
        p += n;
        len -= n;
    }
    return hash_mix(h);
}

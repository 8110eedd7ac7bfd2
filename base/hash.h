/* SHA-256 (FIPS 180-4) and HMAC by libcrypto, hex, UUIDs and a fast non-cryptographic hash for tables. */
#ifndef KN_BASE_HASH_H
#define KN_BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define KN_SHA256_BYTES 32
#define KN_SHA256_HEX 65 /* with the terminating 0 */
#define KN_UUID_BYTES 16
#define KN_UUID_TEXT 37 /* 8-4-4-4-12 and the terminating 0 */

typedef uint8_t kn_id[KN_UUID_BYTES];       /* a batch, or one run of a worker: a UUID */
typedef uint8_t kn_digest[KN_SHA256_BYTES]; /* SHA-256 of a model, a file or a picture's pixels */

struct kn_sha256;                         /* a running digest */
struct kn_sha256 *kn_sha256_create(void); /* NULL: out of memory */
void kn_sha256_update(struct kn_sha256 *h, const void *data, size_t len);
void kn_sha256_final(struct kn_sha256 *h, uint8_t out[KN_SHA256_BYTES]); /* also destroys h */

void kn_sha256(const void *data, size_t len, uint8_t out[KN_SHA256_BYTES]);
/* Digest of a file's bytes, opened by kn_fs_open. KN_ENOENT, KN_EIO, KN_ELIMIT. */
KN_MUST_USE int kn_sha256_file(const char *path, uint8_t out[KN_SHA256_BYTES], struct kn_err *err);

/* HMAC-SHA-256 (FIPS 198-1). */
void kn_hmac_sha256(const uint8_t *key, size_t key_len, const void *data, size_t len,
                    uint8_t out[KN_SHA256_BYTES]);
/* Compares in a time that does not tell where they differ. */
bool kn_same_secret(const void *a, const void *b, size_t len);

void kn_hex(const void *data, size_t len, char *out); /* writes 2*len lower-case digits and a 0 */
KN_MUST_USE int kn_unhex(const char *text, void *out, size_t len); /* exactly 2*len digits, else KN_EPARSE */

void kn_uuid_random(uint8_t out[KN_UUID_BYTES]); /* version 4, from getrandom(2) */
void kn_uuid_format(const uint8_t id[KN_UUID_BYTES], char out[KN_UUID_TEXT]);
KN_MUST_USE int kn_uuid_parse(const char *text, uint8_t out[KN_UUID_BYTES]);

uint64_t kn_hash64(const void *data, size_t len, uint64_t seed); /* the same on every machine and version */

#endif

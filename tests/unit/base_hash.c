/* Digests, hex, UUIDs, the table hash. */
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"
#include "tests/unit/check.h"

static void check_digest(const void *data, size_t len, const char *want) {
    uint8_t digest[KN_SHA256_BYTES];
    char hex[KN_SHA256_HEX];
    kn_sha256(data, len, digest);
    kn_hex(digest, sizeof digest, hex);
    CHECK_STR(hex, want);
}

TEST(sha256_gives_the_published_digests) { /* FIPS 180-4's examples */
    check_digest("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_digest("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check_digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
                 "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    static char a[1000000];
    memset(a, 'a', sizeof a);
    check_digest(a, sizeof a, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(sha256_in_pieces_is_sha256_at_once) {
    uint8_t data[300], whole[KN_SHA256_BYTES], pieces[KN_SHA256_BYTES];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7);
    for (size_t cut = 0; cut <= sizeof data; cut += 13) {
        kn_sha256(data, sizeof data, whole);
        struct kn_sha256 *h = kn_sha256_create();
        CHECK(h != NULL);
        kn_sha256_update(h, data, cut);
        kn_sha256_update(h, data + cut, sizeof data - cut);
        kn_sha256_final(h, pieces);
        CHECK_MEM(pieces, whole, sizeof whole);
    }
}

TEST(sha256_of_a_file_is_that_of_its_bytes) {
    char path[] = "/tmp/kn-hash-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK(write(fd, "abc", 3) == 3);
    close(fd);
    uint8_t want[KN_SHA256_BYTES], got[KN_SHA256_BYTES];
    struct kn_err err = {0};
    kn_sha256("abc", 3, want);
    CHECK_INT(kn_sha256_file(path, got, &err), 0);
    CHECK_MEM(got, want, sizeof want);
    unlink(path);
    CHECK_INT(kn_sha256_file(path, got, &err), KN_ENOENT);
    CHECK(strstr(err.text, path) != NULL);
    CHECK_INT(kn_sha256_file("/", got, &err), KN_EIO);
}

TEST(hex_goes_there_and_back_and_refuses_the_rest) {
    uint8_t bytes[4] = {0x00, 0x9a, 0xff, 0x10}, back[4];
    char text[9];
    kn_hex(bytes, 4, text);
    CHECK_STR(text, "009aff10");
    CHECK_INT(kn_unhex("009aFF10", back, 4), 0);
    CHECK_MEM(back, bytes, 4);
    static const char *const wrong[] = {"", "009aff1", "009aff100", "009aff1g", "0x9aff10", " 09aff10"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_MSG(kn_unhex(wrong[i], back, 4) == KN_EPARSE, "%s", wrong[i]);
}

TEST(uuid_is_version_4_formats_and_parses) {
    uint8_t a[KN_UUID_BYTES], b[KN_UUID_BYTES];
    char text[KN_UUID_TEXT];
    kn_uuid_random(a);
    kn_uuid_random(b);
    CHECK(memcmp(a, b, sizeof a) != 0);
    kn_uuid_format(a, text);
    CHECK_INT(strlen(text), 36);
    CHECK_INT(text[14], '4');
    CHECK(strchr("89ab", text[19]) != NULL);
    CHECK_INT(kn_uuid_parse(text, b), 0);
    CHECK_MEM(b, a, sizeof a);
}

TEST(uuid_text_that_is_not_one_is_refused) {
    static const char good[] = "123e4567-e89b-42d3-a456-426614174000";
    uint8_t id[KN_UUID_BYTES];
    char text[64];
    CHECK_INT(kn_uuid_parse(good, id), 0);
    CHECK_INT(id[0], 0x12);
    CHECK_INT(id[15], 0x00);
    for (size_t i = 0; i < sizeof good - 1; i++) { /* cut anywhere, a wrong character anywhere */
        memcpy(text, good, sizeof good);
        text[i] = '\0';
        CHECK_MSG(kn_uuid_parse(text, id) == KN_EPARSE, "cut at %zu", i);
        memcpy(text, good, sizeof good);
        text[i] = text[i] == '-' ? '0' : '-';
        CHECK_MSG(kn_uuid_parse(text, id) == KN_EPARSE, "changed at %zu", i);
    }
    CHECK_INT(kn_uuid_parse("123e4567-e89b-42d3-a456-4266141740000", id), KN_EPARSE);
}

TEST(table_hash_is_the_same_for_ever) {
    CHECK_U64(kn_hash64("", 0, 0), 0x3da4588b8c08334fu);
    CHECK_U64(kn_hash64("kiln", 4, 0), 0xf5c19f3b18c9f57du);
    CHECK_U64(kn_hash64("kiln", 4, 1), 0x495cb7038bf9d71fu);
    CHECK_U64(kn_hash64("a longer text, of 32 bytes here.", 32, 7), 0xba55c7f926a51584u);
}

TEST(table_hash_moves_half_the_bits_for_any_one) {
    uint8_t key[24] = {0};
    uint64_t plain = kn_hash64(key, sizeof key, 0);
    long total = 0;
    for (size_t bit = 0; bit < 8 * sizeof key; bit++) {
        key[bit / 8] ^= (uint8_t)(1u << bit % 8);
        int moved = __builtin_popcountll(plain ^ kn_hash64(key, sizeof key, 0));
        key[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK_MSG(moved > 12 && moved < 52, "bit %zu moves %d", bit, moved);
        total += moved;
    }
    CHECK(total > 192 * 29 && total < 192 * 35);
}

TEST(table_hash_tells_lengths_of_zeros_apart) {
    uint8_t zeros[64] = {0};
    for (size_t a = 0; a < 64; a++) {
        for (size_t b = a + 1; b < 64; b++) CHECK(kn_hash64(zeros, a, 0) != kn_hash64(zeros, b, 0));
    }
}

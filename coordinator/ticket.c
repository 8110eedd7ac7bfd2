/* See ticket.h. */
#include "coordinator/ticket.h"

#include <assert.h>
#include <string.h>

#define HOLDER_MAX KN_NAME_MAX

static uint8_t *put(uint8_t *p, uint64_t v, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) *p++ = (uint8_t)(v >> (8 * i));
    return p;
}

static uint32_t get(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* What is signed: every part but the last two has a fixed length, and the holder says its own. */
static void sign(const kn_digest secret, const struct ticket_grant *g, const uint8_t *runs, size_t len,
                 kn_digest out) {
    uint8_t text[16 + KN_UUID_BYTES + 16 + 1 + HOLDER_MAX + 8 * KN_SHARD_TASKS_MAX], *p = text;
    size_t holder = strnlen(g->holder, HOLDER_MAX);
    memcpy(p, "kiln grant    1\n", 16);
    memcpy(p + 16, g->batch, KN_UUID_BYTES);
    p = put(p + 16 + KN_UUID_BYTES, g->term, 8);
    p = put(p, g->shard, 8);
    p = put(p, holder, 1);
    memcpy(p, g->holder, holder);
    memcpy(p + holder, runs, len);
    kn_hmac_sha256(secret, KN_SHA256_BYTES, text, (size_t)(p + holder + len - text), out);
}

size_t ticket_make(const kn_digest secret, const struct ticket_grant *g, const uint32_t *tasks, size_t count,
                   uint8_t out[TICKET_BYTES_MAX]) {
    uint8_t *p = out + KN_SHA256_BYTES;
    assert(count <= KN_SHARD_TASKS_MAX);
    for (size_t i = 0, n; i < count; i += n) {
        for (n = 1; i + n < count && tasks[i + n] == tasks[i] + n;) n++;
        p = put(put(p, tasks[i], 4), n, 4);
    }
    sign(secret, g, out + KN_SHA256_BYTES, (size_t)(p - out) - KN_SHA256_BYTES, out);
    return (size_t)(p - out);
}

bool ticket_is_good(const kn_digest secret, const struct ticket_grant *g, const uint8_t *ticket, size_t len) {
    kn_digest want;
    if (len < KN_SHA256_BYTES || len > TICKET_BYTES_MAX || (len - KN_SHA256_BYTES) % 8 != 0) return false;
    sign(secret, g, ticket + KN_SHA256_BYTES, len - KN_SHA256_BYTES, want);
    return kn_same_secret(want, ticket, sizeof want);
}

bool ticket_names(const uint8_t *ticket, size_t len, uint32_t task) {
    for (size_t at = KN_SHA256_BYTES; at + 8 <= len; at += 8)
        if (task - get(ticket + at) < get(ticket + at + 4)) return true;
    return false;
}

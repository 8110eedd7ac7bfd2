/* The bytes of a record, the same in every store. See store.h. */
#include "coordinator/store/store.h"

#include <string.h>

/* A record, numbers little-endian:
 *
 *     0        32       64      68          72       74        76       78        79      80
 *     | sha256 | pixels | order | render_ms | worker | backend | engine | attempt | flags |
 *
 * flags: 1 there is a record, 2 the picture is flat. */
enum {
    AT_PIXELS = 32,
    AT_ORDER = 64,
    AT_RENDER_MS = 68,
    AT_WORKER = 72,
    AT_BACKEND = 74,
    AT_ENGINE = 76,
    AT_ATTEMPT = 78,
    AT_FLAGS = 79
};
enum { FLAG_THERE = 1, FLAG_FLAT = 2 };

static void put(uint8_t *p, uint32_t v, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(v >> (8 * i));
}
static uint32_t get(const uint8_t *p, int bytes) {
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint32_t)p[i] << (8 * i);
    return v;
}

void store_record_pack(const struct store_record *r, uint8_t out[STORE_RECORD_BYTES]) {
    memcpy(out, r->sha256, KN_SHA256_BYTES);
    memcpy(out + AT_PIXELS, r->pixels, KN_SHA256_BYTES);
    put(out + AT_ORDER, r->order, 4);
    put(out + AT_RENDER_MS, r->render_ms, 4);
    put(out + AT_WORKER, r->worker, 2);
    put(out + AT_BACKEND, r->backend, 2);
    put(out + AT_ENGINE, r->engine, 2);
    out[AT_ATTEMPT] = r->attempt;
    out[AT_FLAGS] = FLAG_THERE | (r->flat ? FLAG_FLAT : 0);
}

bool store_record_unpack(const uint8_t in[STORE_RECORD_BYTES], struct store_record *out) {
    if (!(in[AT_FLAGS] & FLAG_THERE)) return false;
    memcpy(out->sha256, in, KN_SHA256_BYTES);
    memcpy(out->pixels, in + AT_PIXELS, KN_SHA256_BYTES);
    out->order = get(in + AT_ORDER, 4);
    out->render_ms = get(in + AT_RENDER_MS, 4);
    out->worker = (uint16_t)get(in + AT_WORKER, 2);
    out->backend = (uint16_t)get(in + AT_BACKEND, 2);
    out->engine = (uint16_t)get(in + AT_ENGINE, 2);
    out->attempt = in[AT_ATTEMPT];
    out->flat = in[AT_FLAGS] & FLAG_FLAT;
    return true;
}

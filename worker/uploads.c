/* See uploads.h. */
#include "worker/uploads.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define KEY_BYTES (KN_UUID_BYTES + sizeof(uint32_t))

static void make_key(const kn_id batch, uint32_t task, uint8_t out[KEY_BYTES]) {
    memcpy(out, batch, KN_UUID_BYTES);
    memcpy(out + KN_UUID_BYTES, &task, sizeof task);
}

static void key_of(const struct upload *up, uint8_t out[KEY_BYTES]) {
    make_key(up->grant->shard->batch, up->grant->shard->index[up->place], out);
}

int uploads_init(struct uploads *u, size_t count_max, uint64_t window_bytes) {
    *u = (struct uploads){.window_bytes = window_bytes};
    u->by_task = kn_map_create(count_max);
    return u->by_task ? 0 : KN_ENOMEM;
}

void upload_free(struct upload *up) {
    if (!up) return;
    grant_unref(up->grant);
    bytes_unref(up->png);
    free(up);
}

void uploads_fini(struct uploads *u) {
    while (u->first) {
        struct upload *up = u->first;
        u->first = up->next;
        upload_free(up);
    }
    kn_map_destroy(u->by_task);
    *u = (struct uploads){0};
}

int uploads_add(struct uploads *u, struct upload *up) {
    uint8_t key[KEY_BYTES];
    key_of(up, key);
    int rc = kn_map_put(u->by_task, key, sizeof key, up);
    if (rc != 0) return rc;
    up->sent = false;
    up->next = NULL;
    up->prev = u->last;
    if (u->last)
        u->last->next = up;
    else
        u->first = up;
    u->last = up;
    if (!u->unsent) u->unsent = up;
    u->count++;
    u->bytes += up->png->len;
    return 0;
}

struct upload *uploads_next(const struct uploads *u) {
    struct upload *up = u->unsent;
    if (up && u->sent_bytes && u->sent_bytes + up->png->len > u->window_bytes) return NULL;
    return up;
}

void uploads_sent(struct uploads *u, struct upload *up, uint64_t now_ms) {
    assert(up == u->unsent);
    up->sent = true;
    up->sent_ms = now_ms;
    u->unsent = up->next;
    u->sent_bytes += up->png->len;
}

void uploads_again(struct uploads *u) {
    for (struct upload *up = u->first; up && up->sent; up = up->next) up->sent = false;
    u->unsent = u->first;
    u->sent_bytes = 0;
}

size_t uploads_acknowledged(struct uploads *u, const kn_id batch, uint32_t task) {
    uint8_t key[KEY_BYTES];
    make_key(batch, task, key);
    struct upload *up = kn_map_remove(u->by_task, key, sizeof key);
    if (!up) return 0;
    size_t len = up->png->len;
    if (up->sent) u->sent_bytes -= len;
    if (u->unsent == up) u->unsent = up->next;
    if (up->prev)
        up->prev->next = up->next;
    else
        u->first = up->next;
    if (up->next)
        up->next->prev = up->prev;
    else
        u->last = up->prev;
    u->count--;
    u->bytes -= len;
    upload_free(up);
    return len;
}

uint64_t uploads_oldest_ms(const struct uploads *u) {
    return u->first && u->first->sent ? u->first->sent_ms : UINT64_MAX;
}

/* The list of effects. The contract is effects.h.
 *
 * Effects are reserved before anything is changed, so that a step never loses one half way. Texts come from
 * blocks, of which one is kept from step to step. */
#include "coordinator/core/effects.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES 16384

struct farm_strings {
    struct farm_strings *next;
    size_t used, size;
    _Alignas(8) char bytes[];
};

int fx_reserve(struct farm_effects *fx, size_t more) {
    if (fx->cap - fx->count >= more) return KN_OK;
    size_t cap = fx->cap ? fx->cap : 64;
    while (cap - fx->count < more) cap *= 2;
    struct farm_effect *v = realloc(fx->v, cap * sizeof *v);
    if (!v) return KN_ENOMEM;
    fx->v = v;
    fx->cap = cap;
    return KN_OK;
}

struct farm_effect *fx_add(struct farm_effects *fx, enum farm_effect_type type) {
    assert(fx->count < fx->cap);
    struct farm_effect *e = &fx->v[fx->count++];
    memset(e, 0, sizeof *e);
    e->type = type;
    return e;
}

void *fx_bytes(struct farm_effects *fx, size_t size) {
    size = (size + 7) & ~(size_t)7;
    struct farm_strings *b = fx->strings;
    if (!b || b->size - b->used < size) {
        size_t room = size > BLOCK_BYTES ? size : BLOCK_BYTES;
        b = malloc(sizeof *b + room);
        if (!b) return NULL;
        b->next = fx->strings;
        b->used = 0;
        b->size = room;
        fx->strings = b;
    }
    void *p = b->bytes + b->used;
    b->used += size;
    return p;
}

const char *fx_text(struct farm_effects *fx, const char *s) {
    if (!s || !*s) return "";
    size_t len = strlen(s) + 1;
    char *copy = fx_bytes(fx, len);
    if (!copy) return "(no memory for the text)";
    memcpy(copy, s, len);
    return copy;
}

void fx_note(struct farm_effects *fx, enum farm_effect_type type, const kn_id batch, const char *fmt, ...) {
    char text[KN_REASON_MAX + 256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (fx_reserve(fx, 1)) return;
    struct farm_effect *e = fx_add(fx, type);
    if (batch) memcpy(e->batch, batch, sizeof e->batch);
    e->u.note.text = fx_text(fx, text);
}

void farm_effects_clear(struct farm_effects *fx) {
    fx->count = 0;
    while (fx->strings && fx->strings->next) { /* the oldest block stays */
        struct farm_strings *b = fx->strings;
        fx->strings = b->next;
        free(b);
    }
    if (fx->strings) fx->strings->used = 0;
}

void farm_effects_fini(struct farm_effects *fx) {
    farm_effects_clear(fx);
    free(fx->strings);
    free(fx->v);
    *fx = (struct farm_effects){0};
}

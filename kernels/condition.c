/* From a prompt to what the UNet is told of it: tokens, the text encoder's states. Encoded texts are
 * remembered, so that a negative prompt, or a prompt with many seeds, is encoded once; what is new in a batch
 * is encoded together. Stage 1's thread. */
#include <stdlib.h>
#include <string.h>

#include "kernels/engine.h"
#include "kernels/text/tokenizer.h"

#define TEXT_CACHE_BYTES_MAX (256u << 20)

void kx_condition_init(struct kiln_model *m) {
    m->positions = kx_tokenizer_length(m->tokenizer);
    m->width = m->cfg.text.hidden_size;
    size_t bytes = (size_t)m->positions * (size_t)m->width * sizeof(float);
    size_t room = TEXT_CACHE_BYTES_MAX / bytes;
    m->cache_max = room > TEXT_CACHE_MAX ? TEXT_CACHE_MAX : room < 2 ? 2 : (int)room;
}

static void encoded_fini(struct encoded *c) {
    free(c->text);
    free(c->ids);
    free(c->states);
    *c = (struct encoded){0};
}

void kx_condition_fini(struct kiln_model *m) {
    for (int i = 0; i < m->cache_count; i++) encoded_fini(&m->cache[i]);
}

static struct encoded *find(struct kiln_model *m, const char *text) {
    for (int i = 0; i < m->cache_count; i++)
        if (!strcmp(m->cache[i].text, text)) return &m->cache[i];
    return NULL;
}

/* A slot for a new text: a free one, or the least recently used that this batch does not need. */
static struct encoded *slot(struct kiln_model *m) {
    if (m->cache_count < m->cache_max) return &m->cache[m->cache_count++];
    struct encoded *oldest = NULL;
    for (int i = 0; i < m->cache_count; i++) {
        struct encoded *c = &m->cache[i];
        if (c->batch != m->cache_batch && (!oldest || c->used < oldest->used)) oldest = c;
    }
    if (oldest) encoded_fini(oldest);
    return oldest;
}

/* Encodes what is in the cache with its ids alone. */
static int encode(struct kiln_model *m, struct encoded **fresh, int n, struct kn_err *err) {
    size_t positions = (size_t)m->positions, values = positions * (size_t)m->width, count = (size_t)n;
    int32_t *ids = malloc(count * positions * sizeof *ids);
    float *states = malloc(count * values * sizeof *states);
    int rc = ids && states ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory for %d texts", n);
    for (size_t i = 0; i < count && !rc; i++)
        memcpy(ids + i * positions, fresh[i]->ids, positions * sizeof *ids);
    if (!rc) rc = kx_text_encode(m->text, ids, n, m->positions, states, err);
    for (size_t i = 0; i < count && !rc; i++)
        memcpy(fresh[i]->states, states + i * values, values * sizeof *states);
    free(ids);
    free(states);
    return rc;
}

/* Drops the texts that have no states. */
static void forget(struct kiln_model *m, struct encoded **fresh, int n) {
    for (int i = 0; i < n; i++) encoded_fini(fresh[i]);
    int kept = 0;
    for (int i = 0; i < m->cache_count; i++)
        if (m->cache[i].text) m->cache[kept++] = m->cache[i];
    m->cache_count = kept;
}

int kx_condition(struct kiln_model *m, const char *const *texts, int n, const struct encoded **out,
                 struct kn_err *err) {
    struct encoded **fresh = calloc((size_t)n, sizeof(struct encoded *));
    int count = 0, rc = fresh ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    m->cache_batch++;
    for (int i = 0; i < n; i++) { /* what is there already must not make room for what is not */
        struct encoded *c = find(m, texts[i]);
        if (c) c->batch = m->cache_batch;
    }
    for (int i = 0; i < n && !rc; i++) {
        struct encoded *c = find(m, texts[i]);
        if (!c) {
            if (!(c = slot(m))) {
                rc = kn_err_set(err, KN_ELIMIT, "more than %d different texts at once", m->cache_max);
                break;
            }
            fresh[count++] = c;
            size_t values = (size_t)m->positions * (size_t)m->width;
            *c = (struct encoded){.text = strdup(texts[i]),
                                  .ids = malloc((size_t)m->positions * sizeof *c->ids),
                                  .states = malloc(values * sizeof *c->states)};
            if (!c->text || !c->ids || !c->states)
                rc = kn_err_set(err, KN_ENOMEM, "out of memory");
            else
                rc = kx_tokenizer_encode(m->tokenizer, texts[i], c->ids, err);
        }
        c->used = ++m->cache_clock;
        c->batch = m->cache_batch;
        out[i] = c;
    }
    if (!rc && count) rc = encode(m, fresh, count, err);
    if (rc && fresh) forget(m, fresh, count);
    free(fresh);
    return rc;
}

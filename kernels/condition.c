/* Encodes prompts for the UNet: tokens, then the text encoder's states; of SDXL's two encoders the states
 * side by side and the second one's pooled state. Encoded texts are remembered, so that a negative prompt,
 * or a prompt with many seeds, is encoded once; what is new in a minibatch is encoded together. Stage 1's
 * thread. */
#include <stdlib.h>
#include <string.h>

#include "kernels/engine.h"
#include "kernels/text/tokenizer.h"

#define TEXT_CACHE_BYTES_MAX (256u << 20)

static const struct kx_text_config *config_of(const struct kiln_model *m, int encoder) {
    return encoder ? &m->cfg.text2 : &m->cfg.text;
}

static int encoded_init(const struct kiln_model *m, struct encoded *c) {
    size_t values = (size_t)m->positions * (size_t)m->width;
    *c = (struct encoded){.states = calloc(values, sizeof *c->states),
                          .pooled = m->pooled ? calloc((size_t)m->pooled, sizeof *c->pooled) : NULL};
    return c->states && (c->pooled || !m->pooled) ? 0 : KN_ENOMEM;
}

static void encoded_fini(struct encoded *c) {
    free(c->text);
    free(c->ids);
    free(c->states);
    free(c->pooled);
    *c = (struct encoded){0};
}

int kx_condition_init(struct kiln_model *m, struct kn_err *err) {
    m->positions = kx_tokenizer_length(m->tokenizers[0]);
    for (int k = 0; k < m->encoders; k++) m->width += config_of(m, k)->hidden_size;
    m->pooled = m->cfg.unet.pooled_width;
    size_t bytes = ((size_t)m->positions * (size_t)m->width + (size_t)m->pooled) * sizeof(float);
    size_t room = TEXT_CACHE_BYTES_MAX / bytes;
    m->cache_max = room > TEXT_CACHE_MAX ? TEXT_CACHE_MAX : room < 2 ? 2 : (int)room;
    return encoded_init(m, &m->none) ? kn_err_set(err, KN_ENOMEM, "out of memory") : 0;
}

void kx_condition_fini(struct kiln_model *m) {
    for (int i = 0; i < m->cache_count; i++) encoded_fini(&m->cache[i]);
    encoded_fini(&m->none);
}

void kx_condition_forget(struct kiln_model *m) {
    for (int i = 0; i < m->cache_count; i++) encoded_fini(&m->cache[i]);
    m->cache_count = 0;
}

static struct encoded *find(struct kiln_model *m, const char *text) {
    for (int i = 0; i < m->cache_count; i++)
        if (!strcmp(m->cache[i].text, text)) return &m->cache[i];
    return NULL;
}

/* A slot for a new text: a free one, or the least recently used that this minibatch does not need. */
static struct encoded *slot(struct kiln_model *m) {
    if (m->cache_count < m->cache_max) return &m->cache[m->cache_count++];
    struct encoded *oldest = NULL;
    for (int i = 0; i < m->cache_count; i++) {
        struct encoded *c = &m->cache[i];
        if (c->minibatch != m->cache_minibatch && (!oldest || c->used < oldest->used)) oldest = c;
    }
    if (oldest) encoded_fini(oldest);
    return oldest;
}

/* Encodes the n fresh texts, which have ids and no states yet, with one encoder. Its states begin at
 * channel `from`. */
static int encode(struct kiln_model *m, int encoder, int from, struct encoded **fresh, int n,
                  struct kn_err *err) {
    const struct kx_text_config *cfg = config_of(m, encoder);
    size_t positions = (size_t)m->positions, width = (size_t)cfg->hidden_size, count = (size_t)n,
           pooled_width = (size_t)m->pooled;
    int32_t *ids = malloc(count * positions * sizeof *ids);
    float *states = malloc(count * positions * width * sizeof *states);
    float *pooled = cfg->projected ? malloc(count * pooled_width * sizeof *pooled) : NULL;
    int rc = 0;
    if (!ids || !states || (cfg->projected && !pooled))
        rc = kn_err_set(err, KN_ENOMEM, "out of memory for %d texts", n);
    for (size_t i = 0; i < count && !rc; i++)
        memcpy(ids + i * positions, fresh[i]->ids + (size_t)encoder * positions, positions * sizeof *ids);
    if (!rc) {
        kx_busy_from(m->engine, KX_STAGE_TEXT, m->engine->text);
        rc = kx_text_encode(m->texts[encoder], ids, n, m->positions, states, pooled, err);
        kx_busy_to(m->engine, KX_STAGE_TEXT, m->engine->text);
    }
    if (!rc && !(rc = kx_sync(m->engine->text, err))) kx_busy_note(m->engine, KX_STAGE_TEXT, m->engine->text);
    for (size_t i = 0; i < count && !rc; i++) {
        for (size_t p = 0; p < positions; p++)
            memcpy(fresh[i]->states + p * (size_t)m->width + (size_t)from,
                   states + (i * positions + p) * width, width * sizeof *states);
        if (pooled) memcpy(fresh[i]->pooled, pooled + i * pooled_width, pooled_width * sizeof *pooled);
    }
    free(ids);
    free(states);
    free(pooled);
    return rc;
}

/* A new text's tokens, and room for its states. */
static int tokenize(struct kiln_model *m, const char *text, struct encoded *c, struct kn_err *err) {
    size_t positions = (size_t)m->positions;
    int rc = encoded_init(m, c);
    c->text = strdup(text);
    c->ids = malloc((size_t)m->encoders * positions * sizeof *c->ids);
    if (rc || !c->text || !c->ids) return kn_err_set(err, KN_ENOMEM, "out of memory");
    for (int k = 0; k < m->encoders && !rc; k++)
        rc = kx_tokenizer_encode(m->tokenizers[k], text, c->ids + (size_t)k * positions, err);
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
    m->cache_minibatch++;
    for (int i = 0; i < n; i++) { /* what is there already must not make room for what is not */
        struct encoded *c = texts[i] ? find(m, texts[i]) : NULL;
        if (c) c->minibatch = m->cache_minibatch;
    }
    for (int i = 0; i < n && !rc; i++) {
        if (!texts[i]) {
            out[i] = &m->none;
            continue;
        }
        struct encoded *c = find(m, texts[i]);
        if (!c) {
            if (!(c = slot(m))) {
                rc = kn_err_set(err, KN_ELIMIT, "more than %d different texts at once", m->cache_max);
                break;
            }
            fresh[count++] = c;
            rc = tokenize(m, texts[i], c, err);
        }
        c->used = ++m->cache_clock;
        c->minibatch = m->cache_minibatch;
        out[i] = c;
    }
    for (int k = 0, from = 0; k < m->encoders && count && !rc; from += config_of(m, k++)->hidden_size)
        rc = encode(m, k, from, fresh, count, err);
    if (rc && fresh) forget(m, fresh, count);
    free(fresh);
    return rc;
}

/* LoRA: low-rank changes to a model's weights, W + scale · up · down (Hu et al. 2021), applied without
 * loading the model anew: the layers that a file changes get other weights in place, computed from the
 * model's own files, so that taking a LoRA off gives the very bytes back. What is in a file: lora_file.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/lora_file.h"

/* A LoRA and how much of it is asked for. */
struct applied {
    struct kx_lora_file file;
    float times;
};

static bool same_layer(const struct kx_part *a, const struct kx_part *b) {
    return a->conv == b->conv && a->linear == b->linear;
}

/* True if one of the files changes the part. */
static bool is_changed(const struct applied *files, int n, const struct kx_part *part) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < files[i].file.count; k++)
            if (files[i].file.v[k].part == part) return true;
    return false;
}

/* The layer that parts [first, end) are in: the model's weights, and what the files add. */
static int set_layer(struct kx_ctx *ctx, const struct kx_weights *base, struct kx_part *first,
                     const struct kx_part *end, const struct applied *files, int n, struct kn_err *err) {
    size_t columns = (size_t)first->columns, rows = 0;
    for (const struct kx_part *p = first; p < end; p++) rows += (size_t)p->rows;
    float *v = malloc(rows * columns * sizeof *v);
    int rc = v ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    for (struct kx_part *p = first; p < end && !rc; p++) {
        char name[KX_TENSOR_NAME_MAX + 16];
        snprintf(name, sizeof name, "%s.weight", p->name);
        const struct kx_weight *w = kx_weights_find(base, name);
        float *to = v + (size_t)p->from * columns;
        size_t values = 1;
        for (int i = 0; w && i < w->ndim; i++) values *= (size_t)w->shape[i];
        if (!w || values != (size_t)p->rows * columns)
            rc = kn_err_set(err, KN_EPARSE, "%s: it has changed since the model was loaded", name);
        else
            rc = kx_weight_read(w, to, err);
        p->changed = false;
        for (int i = 0; i < n && !rc; i++)
            for (int k = 0; k < files[i].file.count && !rc; k++)
                if (files[i].file.v[k].part == p) {
                    rc = kx_lora_add(&files[i].file.v[k], files[i].times, to, err);
                    p->changed = true;
                }
    }
    if (!rc)
        rc = first->conv ? kx_conv_set(ctx, first->conv, v, err) : kx_linear_set(ctx, first->linear, v, err);
    free(v);
    return rc;
}

/* All layers of a network that are changed, or were. *any: there were some. */
static int set_network(struct kiln_model *m, int network, const struct applied *files, int n, bool *any,
                       struct kn_err *err) {
    struct kx_parts *parts = kx_lora_parts(m, network);
    struct kx_ctx *ctx = network ? m->engine->text : m->engine->unet;
    struct kx_weights *base = NULL;
    char path[KN_PATH_MAX];
    int rc = 0;
    *any = false;
    for (int i = 0, end; parts && i < parts->count && !rc; i = end) {
        bool wanted = false;
        for (end = i; end < parts->count && same_layer(&parts->v[i], &parts->v[end]); end++)
            wanted |= parts->v[end].changed || is_changed(files, n, &parts->v[end]);
        if (!wanted) continue;
        *any = true;
        if (!base) {
            rc = kn_fs_join(path, sizeof path, m->dir, kx_lora_folders[network]);
            rc = rc ? kn_err_set(err, rc, "%s: path too long", m->dir)
                    : kx_weights_open(path, network ? "model" : "diffusion_pytorch_model", &base, err);
        }
        if (!rc) rc = set_layer(ctx, base, &parts->v[i], &parts->v[end], files, n, err);
    }
    kx_weights_close(base);
    return rc;
}

static int set_all(struct kiln_model *m, const struct applied *files, int n, struct kn_err *err) {
    bool any, texts = false;
    int rc = 0;
    for (int network = 0; network < KX_LORA_NETWORKS && !rc; network++) {
        rc = set_network(m, network, files, n, &any, err);
        texts |= any && network;
    }
    if (texts) kx_condition_forget(m);
    return rc;
}

int kiln_model_set_loras(struct kiln_model *m, const struct kiln_lora *loras, int n, struct kn_err *err) {
    if (n < 0 || n > KILN_LORAS_MAX)
        return kn_err_set(err, KN_ELIMIT, "%d LoRAs, not 0 to %d", n, KILN_LORAS_MAX);
    struct applied *files = calloc(KILN_LORAS_MAX, sizeof *files);
    struct kiln_engine *e = m->engine;
    int rc = files ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    for (int i = 0; i < n && !rc; i++) {
        files[i].times = loras[i].scale;
        rc = kx_lora_open(m, loras[i].path, &files[i].file, err);
        if (!rc && files[i].file.unused)
            kn_debug("lora_without_effect file=%s layers=%d of=%d", loras[i].path, files[i].file.unused,
                     files[i].file.count);
    }
    if (!rc) {
        kx_engine_enter_all(e);
        if ((rc = set_all(m, files, n, err))) {
            struct kn_err more;
            if (set_all(m, NULL, 0, &more)) m->spoiled = true;
        } else {
            m->spoiled = false;
        }
        kx_engine_leave_all(e);
    }
    for (int i = 0; files && i < n; i++) kx_lora_close(&files[i].file);
    free(files);
    return rc;
}

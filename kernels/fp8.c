/* The UNet with eight-bit operands (KILN_PRECISION_FP8): which layers, and the scales of their inputs.
 *
 * Calibration renders a list of tasks in the storage type while every layer that may be quantized remembers
 * the largest magnitude of its inputs, and writes those down in the model's folder (kiln-fp8.json: a layer's
 * name and that number). The file is one of those that the model's hash is over, since it moves pixels: two
 * nodes with other scales have other models.
 *
 * Left out, because little work and much error is in them: the first and the last convolution and residual
 * block, what makes the time embedding and time_proj, and the text's keys and values, which are computed
 * once an image. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "kernels/engine.h"
#include "kernels/io/json.h"
#include "kernels/io/safetensors.h"
#include "kernels/models/load.h"

#define FILE_NAME "kiln-fp8.json"
#define FILE_BYTES_MAX (4u << 20)

static void *layer_of(const struct kx_part *p) {
    return p->conv ? (void *)p->conv : (void *)p->linear;
}

/* True if the layer that begins with this part may be quantized. */
static bool eligible(const struct kiln_model *m, const struct kx_part *p) {
    const struct kx_unet_config *u = &m->cfg.unet;
    const char *const begins[] = {"conv_in", "conv_out", "time_embedding.", "add_embedding.",
                                  "down_blocks.0.resnets.0."};
    char last[64];
    snprintf(last, sizeof last, "up_blocks.%d.resnets.%d.", u->levels - 1, u->layers[0]);
    for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
        if (!strncmp(p->name, begins[i], strlen(begins[i]))) return false;
    if (!strncmp(p->name, last, strlen(last)) || strstr(p->name, "time_emb_proj") ||
        strstr(p->name, "attn2.to_k"))
        return false;
    return p->columns / (p->kernel * p->kernel) % 16 == 0;
}

/* The first part of each layer: fn, until it fails. */
static int each_layer(struct kiln_model *m,
                      int (*fn)(struct kiln_model *m, struct kx_part *p, int count, void *arg,
                                struct kn_err *err),
                      void *arg, struct kn_err *err) {
    struct kx_parts *parts = kx_unet_parts(m->unet);
    int rc = 0;
    for (int i = 0, end; i < parts->count && !rc; i = end) {
        for (end = i + 1; end < parts->count && layer_of(&parts->v[end]) == layer_of(&parts->v[i]);) end++;
        if (eligible(m, &parts->v[i])) rc = fn(m, &parts->v[i], end - i, arg, err);
    }
    return rc;
}

static int fp8_path(const struct kiln_model *m, char path[KN_PATH_MAX], struct kn_err *err) {
    int rc = kn_fs_join(path, KN_PATH_MAX, m->dir, FILE_NAME);
    return rc ? kn_err_set(err, rc, "%s: path too long", m->dir) : 0;
}

/* ---- quantizing */

struct quantizing {
    const struct kx_json *inputs;
    struct kx_weights *weights;
    int layers, found;
};

static int quantize(struct kiln_model *m, struct kx_part *p, int count, void *arg, struct kn_err *err) {
    struct quantizing *n = arg;
    double amax = 0;
    int rc = kx_json_double(n->inputs, p->name, 0, 1e30, &amax, err);
    if (rc || !kx_json_get(n->inputs, p->name)) return rc;
    n->found++;
    if (!(amax > 0)) return 0; /* its inputs were nothing but zeros */
    size_t columns = (size_t)p->columns, rows = 0;
    for (int i = 0; i < count; i++) rows += (size_t)p[i].rows;
    float *v = malloc(rows * columns * sizeof *v);
    if (!v) return kn_err_set(err, KN_ENOMEM, "out of memory");
    for (int i = 0; i < count && !rc; i++) {
        char name[KX_TENSOR_NAME_MAX + 16];
        snprintf(name, sizeof name, "%s.weight", p[i].name);
        const struct kx_weight *w = kx_weights_find(n->weights, name);
        if (!w)
            rc = kn_err_set(err, KN_EPARSE, "%s: it has changed since the model was loaded", name);
        else
            rc = kx_weight_read(w, v + (size_t)p[i].from * columns, err);
    }
    if (!rc) rc = kx_quantize(m->engine->unet, layer_of(p), v, (float)amax, err);
    free(v);
    n->layers += !rc;
    return rc;
}

int kx_fp8_load(struct kiln_model *m, struct kn_err *err) {
    char path[KN_PATH_MAX], unet[KN_PATH_MAX];
    struct kx_json file = {0}, inputs = {0};
    struct quantizing n = {.inputs = &inputs};
    int version = 0, rc = fp8_path(m, path, err);
    if (rc) return rc;
    if (!kn_fs_exists(path))
        return kn_err_set(err, KN_ENOENT,
                          "%s: not there: calibrate first, with kiln-render --calibrate PROMPTS", path);
    rc = kx_json_load(path, &file, err);
    if (!rc) rc = kx_json_int(&file, "version", 1, 1, &version, err);
    if (!rc) {
        inputs = (struct kx_json){path, kx_json_get(&file, "inputs")};
        if (!version || !inputs.o || !json_object_is_type(inputs.o, json_type_object))
            rc = kn_err_set(err, KN_EPARSE, "%s: version or inputs are missing", path);
    }
    if (!rc && (rc = kn_fs_join(unet, sizeof unet, m->dir, "unet")))
        kn_err_set(err, rc, "%s: path too long", m->dir);
    if (!rc) rc = kx_weights_open(unet, "diffusion_pytorch_model", &n.weights, err);
    if (!rc) rc = each_layer(m, quantize, &n, err);
    if (!rc && n.found != json_object_object_length(inputs.o))
        rc = kn_err_set(err, KN_EPARSE, "%s: inputs: of its %d layers this model has %d", path,
                        json_object_object_length(inputs.o), n.found);
    if (!rc && !n.layers)
        rc = kn_err_set(err, KN_EUNSUPPORTED, "%s: inputs: no layer can be computed so", path);
    if (!rc) {
        kx_sessions_drop(m);
        kx_unet_forget(m->unet);
    }
    if (n.weights) kx_weights_close(n.weights);
    json_object_put(file.o);
    return rc;
}

/* ---- calibration */

static int record_amax(struct kiln_model *m, struct kx_part *p, int count, void *arg, struct kn_err *err) {
    (void)count;
    return kx_amax_record(m->engine->unet, layer_of(p), *(const bool *)arg, err);
}

static int write_amax(struct kiln_model *m, struct kx_part *p, int count, void *arg, struct kn_err *err) {
    (void)count;
    struct kn_buf *b = arg;
    float amax = kx_amax(m->engine->unet, layer_of(p));
    if (!isfinite(amax)) return kn_err_set(err, KN_ENAN, "%s: its inputs are beyond all numbers", p->name);
    bool first = b->data[b->len - 1] == '{';
    if (kn_buf_appendf(b, "%s\n    \"%s\": %.9g", first ? "" : ",", p->name, (double)amax))
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    return 0;
}

/* Switches recording on or off for all layers, while nothing is rendered. */
static int record_all(struct kiln_model *m, bool on, struct kn_err *err) {
    kx_engine_enter_all(m->engine);
    kx_sessions_drop(m); /* they hold recordings without it */
    int rc = each_layer(m, record_amax, &on, err);
    kx_engine_leave_all(m->engine);
    return rc;
}

int kiln_model_calibrate(struct kiln_model *m, const struct kn_task *tasks, int n,
                         const struct kiln_callbacks *cb, struct kn_err *err) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    struct kn_err ignored;
    if (m->engine->options.precision == KILN_PRECISION_FP8)
        return kn_err_set(err, KN_EINVAL,
                          "a model is calibrated in the precision that it is compared with, not in fp8");
    int rc = fp8_path(m, path, err);
    if (!rc) rc = record_all(m, true, err);
    if (!rc) rc = kiln_render(m, tasks, n, cb, err);
    kn_buf_init(&b, FILE_BYTES_MAX);
    if (!rc && kn_buf_appendf(&b, "{\n  \"version\": 1,\n  \"images\": %d,\n  \"inputs\": {", n))
        rc = kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) {
        kx_engine_enter_all(m->engine);
        rc = each_layer(m, write_amax, &b, err);
        if (!rc) rc = kx_ctx_error(m->engine->unet, err);
        kx_engine_leave_all(m->engine);
    }
    if (record_all(m, false, rc ? &ignored : err) && !rc) rc = err->code;
    if (!rc && kn_buf_appendf(&b, "\n  }\n}\n")) rc = kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) rc = kn_fs_replace(path, b.data, b.len, true, err);
    kn_buf_fini(&b);
    if (rc) return rc;
    kx_engine_enter_all(m->engine);
    rc = kx_fp8_load(m, err);
    kx_engine_leave_all(m->engine);
    return rc;
}

/* See size.h. */
#include "cli/farm/size.h"

#include <limits.h>
#include <stdio.h>

#define DEFAULT_WORKERS_MAX 64

/* The memory that workers may have: a twentieth is left to Redis, the coordinator and everybody else. */
static uint64_t usable(const struct kn_machine *m) {
    return m->memory_free / 20 * 19;
}

int farm_fits(const struct kn_machine *m, const struct kn_model_info *model, uint32_t width,
              uint32_t height) {
    uint64_t need = kn_model_need(model, width, height, 1);
    if (!need || !m->memory_total) return INT_MAX;
    uint64_t n = usable(m) / need;
    return n < INT_MAX ? (int)n : INT_MAX;
}

static uint32_t width_of(const struct farm_load *load, const struct kn_model_info *m) {
    return load->width ? load->width : m->defaults.width;
}

static uint32_t height_of(const struct farm_load *load, const struct kn_model_info *m) {
    return load->height ? load->height : m->defaults.height;
}

/* The largest size of these proportions that fits once, in steps of an eighth; 0: none does. */
static uint32_t fitting_size(const struct kn_machine *m, const struct kn_model_info *model, uint32_t width,
                             uint32_t height, uint32_t *fit_height) {
    uint32_t multiple = model->size_multiple ? model->size_multiple : KN_SIZE_MULTIPLE;
    for (uint32_t part = 7; part > 0; part--) {
        uint32_t w = width * part / 8 / multiple * multiple, h = height * part / 8 / multiple * multiple;
        if (!w || !h || farm_fits(m, model, w, h) == 0) continue;
        *fit_height = h;
        return w;
    }
    return 0;
}

static int refuse(const struct farm_size *s, const struct kn_model_info *model, uint32_t width,
                  uint32_t height, int asked, struct kn_err *err) {
    char need[16], have[16], what[64] = "", fit[160];
    int fits = farm_fits(&s->machine, model, width, height);
    uint32_t h, w;
    if (asked > 1) snprintf(what, sizeof what, "--workers %d: ", asked);
    if (fits > 0)
        snprintf(fit, sizeof fit, "--workers %d fits, and one worker renders an image a thread", fits);
    else if ((w = fitting_size(&s->machine, model, width, height, &h)) != 0)
        snprintf(fit, sizeof fit, "with --size %ux%u%s it would fit", w, h,
                 asked > 1 ? " and --workers 1" : "");
    else
        snprintf(fit, sizeof fit, "no size would fit: a smaller model would, or more memory, or a GPU");
    return kn_err_set(
        err, KN_ECONFIG,
        "%s%s at %ux%u needs %s of memory a worker (weights in f32), and %s can be had%s; %s", what,
        model->name, width, height, kn_bytes_text(kn_model_need(model, width, height, 1), need),
        kn_bytes_text(usable(&s->machine), have),
        s->machine.memory_limited ? " within this control group's limit" : " on this machine", fit);
}

/* The model of which the fewest workers fit; NULL: nothing is known of any. */
static const struct kn_model_info *heaviest(const struct farm_size *s, const struct farm_load *load,
                                            int *fits) {
    const struct kn_model_info *found = NULL;
    *fits = INT_MAX;
    for (size_t i = 0; i < load->model_count; i++) {
        const struct kn_model_info *m = &load->models[i];
        int n = farm_fits(&s->machine, m, width_of(load, m), height_of(load, m));
        if (n >= *fits) continue;
        *fits = n;
        found = m;
    }
    return found;
}

int farm_size_on(const struct cli_options *o, const struct worker_devices *d, const struct farm_load *load,
                 struct farm_size *out, struct kn_err *err) {
    const struct kn_machine *m = &out->machine;
    int fits, all = 0;
    out->nodes = false;
    out->memory_mib = 0;
    const struct kn_model_info *model = heaviest(out, load, &fits);
    if (d->count) {
        out->workers = d->count;
    } else if (o->workers >= 0) {
        out->workers = o->workers < CLI_WORKERS_MAX ? o->workers : CLI_WORKERS_MAX;
        if (out->workers > fits)
            return refuse(out, model, width_of(load, model), height_of(load, model), o->workers, err);
    } else {
        if (fits == 0) return refuse(out, model, width_of(load, model), height_of(load, model), 1, err);
        for (int i = 0; i < m->nodes; i++) all += m->node[i].cores;
        out->workers = m->nodes < DEFAULT_WORKERS_MAX ? m->nodes : DEFAULT_WORKERS_MAX;
        if (out->workers > fits) out->workers = fits;
        if (out->workers > m->cores) out->workers = m->cores; /* a quota */
        /* Where a quota leaves less than all cores, the kernel had better choose which. */
        out->nodes = out->workers > 1 && out->workers == m->nodes && all == m->cores;
    }
    out->threads = out->workers && m->cores / out->workers > 1 ? m->cores / out->workers : 1;
    if (o->threads) {
        out->threads = o->threads;
        out->nodes = false;
    }
    if (!d->count && out->workers && m->memory_total)
        out->memory_mib = usable(m) / (uint64_t)out->workers >> 20;
    return KN_OK;
}

int farm_size(const struct cli_options *o, const struct worker_devices *d, const struct farm_load *load,
              struct farm_size *out, struct kn_err *err) {
    kn_machine_read("", &out->machine);
    return farm_size_on(o, d, load, out, err);
}

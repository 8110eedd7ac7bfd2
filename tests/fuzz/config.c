/* The readers of a model's configs. The first byte chooses which, the rest is its JSON. What must hold: a
 * failure names the file; what is read is within the ranges that the networks rely on, and a schedule made
 * from it is finite. */
#include "kernels/io/config.h"

#include <math.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

static void check_channels(const int *channels, int levels, int groups) {
    FUZZ_CHECK(levels >= 1 && levels <= KX_LEVELS_MAX && groups >= 1);
    for (int i = 0; i < levels; i++) FUZZ_CHECK(channels[i] >= 1 && channels[i] % groups == 0);
}

static void check_unet(const struct kx_unet_config *u) {
    check_channels(u->channels, u->levels, u->norm_groups);
    FUZZ_CHECK(u->in_channels >= 1 && u->in_channels == u->out_channels && u->cross_attention_dim >= 1);
    FUZZ_CHECK(u->channels[0] % 2 == 0 && u->sample_size >= 0 && !u->only_cross_attention);
    FUZZ_CHECK(u->addition_time_width % 2 == 0 && !u->addition_time_width == !u->pooled_width);
    for (int i = 0; i < u->levels; i++) {
        FUZZ_CHECK(u->layers[i] >= 1 && u->heads[i] >= 1 && u->transformer_depth[i] >= 1);
        if (u->down[i] == KX_BLOCK_CROSS_ATTN) FUZZ_CHECK(u->channels[i] % u->heads[i] == 0);
        if (u->up[u->levels - 1 - i] == KX_BLOCK_CROSS_ATTN) FUZZ_CHECK(u->channels[i] % u->heads[i] == 0);
    }
}

static void check_scheduler(const struct kx_scheduler_config *c, uint8_t pick) {
    struct kx_schedule s;
    struct kn_err err = {0};
    enum kn_sampler sampler = (enum kn_sampler)(1 + pick % 5);
    enum kn_schedule schedule = pick & 64 ? KN_SCHEDULE_KARRAS : KN_SCHEDULE_NORMAL;
    int rc = kx_schedule_create(c, sampler, schedule, 1 + pick / 5, &s, &err);
    if (rc) {
        FUZZ_CHECK(err.code == rc && err.text[0]);
        return;
    }
    FUZZ_CHECK(s.count >= 1 && isfinite(s.init_scale) && s.slots <= KX_HISTORY_MAX);
    for (int i = 0; i < s.count; i++) {
        FUZZ_CHECK(isfinite(s.v[i].timestep) && isfinite(s.v[i].cx) && isfinite(s.v[i].cm) &&
                   isfinite(s.v[i].cd));
        FUZZ_CHECK(s.v[i].store < s.slots && (s.v[i].cn == 0 || s.noisy));
        for (int k = s.slots; k < KX_HISTORY_MAX; k++) FUZZ_CHECK(s.v[i].ch[k] == 0);
    }
    kx_schedule_fini(&s);
}

int kn_fuzz(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    struct kx_json j;
    struct kn_err err = {0};
    int rc = kx_json_parse("f", (const char *)data + 2, size - 2, &j, &err);
    if (rc) {
        FUZZ_CHECK(!j.o && err.code == rc && !strncmp(err.text, "f", 1));
        return 0;
    }
    struct kx_index index;
    struct kx_text_config text;
    struct kx_unet_config unet;
    struct kx_vae_config vae;
    struct kx_scheduler_config scheduler;
    struct kn_defaults defaults = {.sampler = KN_SAMPLER_DDIM, .schedule = KN_SCHEDULE_NORMAL, .steps = 20};
    switch (data[0] % 6) {
    case 0:
        rc = kx_config_index(&j, &index, &err);
        if (!rc) FUZZ_CHECK(index.xl || !index.zeros_for_none);
        break;
    case 1:
        rc = kx_config_text(&j, &text, &err);
        if (!rc) FUZZ_CHECK(text.heads >= 1 && text.hidden_size % text.heads == 0 && text.positions_max >= 3);
        break;
    case 2:
        rc = kx_config_unet(&j, &unet, &err);
        if (!rc) check_unet(&unet);
        break;
    case 3:
        rc = kx_config_vae(&j, &vae, &err);
        if (!rc) check_channels(vae.channels, vae.levels, vae.norm_groups);
        if (!rc) FUZZ_CHECK(vae.scaling_factor > 0 && vae.factor == 1 << (vae.levels - 1));
        break;
    case 4:
        rc = kx_config_scheduler(&j, &scheduler, &err);
        if (!rc) check_scheduler(&scheduler, data[1]);
        break;
    default:
        rc = kx_config_defaults(&j, &defaults, &err);
        if (!rc) FUZZ_CHECK(kn_schedule_fits(defaults.sampler, defaults.schedule) && defaults.steps >= 1);
        break;
    }
    FUZZ_CHECK(!rc || (err.code == rc && !strncmp(err.text, "f: ", 3)));
    json_object_put(j.o);
    return 0;
}

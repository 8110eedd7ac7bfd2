/* The reader of PEFT's config. The first byte chooses a prefix, the rest is its JSON. What must hold: a failure
 * names the file; what is read is within its ranges, and a layer's scale is a finite number or refused. */
#include "kernels/lora_config.h"

#include <math.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

int kn_fuzz(const uint8_t *data, size_t size) {
    static const char *const modules[] = {"", "to_q", "down_blocks.0.attentions.0.attn1.to_q", "a1.bbc",
                                          "..."};
    if (size < 2) return 0;
    struct kx_json j;
    struct kx_lora_config c;
    struct kn_err err = {0};
    int rc = kx_json_parse("f", (const char *)data + 1, size - 1, &j, &err);
    if (rc) return 0;
    rc = kx_lora_config_read(&j, data[0] == 'u' ? "unet." : "", &c, &err);
    FUZZ_CHECK(!rc || (err.code == rc && !strncmp(err.text, "f: ", 3)));
    if (!rc) FUZZ_CHECK(c.rank >= 1 && c.rank <= KX_LORA_RANK_MAX && isfinite(c.alpha));
    for (size_t i = 0; i < sizeof modules / sizeof *modules && !rc; i++)
        for (int rank = 1; rank <= 8; rank++) {
            float scale = NAN;
            int bad = kx_lora_config_scale(&c, modules[i], rank, &scale, &err);
            FUZZ_CHECK(bad ? bad == KN_EPARSE && !strncmp(err.text, "f: ", 3) : isfinite(scale));
        }
    json_object_put(j.o);
    return 0;
}

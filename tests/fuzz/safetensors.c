/* The safetensors reader. What must hold whatever the bytes say: a tensor that is shown lies whole inside of
 * the file, its length is what its type and shape say, no name appears twice, and every one converts or says
 * that it does not. */
#include "kernels/io/safetensors.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

int kn_fuzz(const uint8_t *data, size_t size) {
    static const size_t bytes[] = {
        [KX_F32] = 4, [KX_F16] = 2, [KX_BF16] = 2, [KX_I32] = 4, [KX_I64] = 8, [KX_U8] = 1};
    struct kx_weights *w = NULL;
    struct kn_err err = {0};
    int rc = kx_weights_parse(data, size, "f", &w, &err);
    if (rc) {
        FUZZ_CHECK(!w && err.code == rc && !strncmp(err.text, "f: ", 3));
        return 0;
    }
    for (size_t i = 0; i < kx_weights_count(w); i++) {
        const struct kx_weight *t = kx_weights_at(w, i);
        const uint8_t *at = t->data;
        FUZZ_CHECK(at >= data + 8 && t->bytes <= size && at + t->bytes <= data + size);
        FUZZ_CHECK(kx_weights_find(w, t->name) == t);
        size_t n = 1;
        for (int k = 0; k < t->ndim; k++) n *= (size_t)t->shape[k];
        FUZZ_CHECK(t->bytes == n * bytes[t->dtype]);
        float *f = malloc((n ? n : 1) * sizeof *f);
        FUZZ_CHECK(f);
        rc = kx_weight_f32(t, f);
        FUZZ_CHECK(rc == 0 || (rc == KN_EUNSUPPORTED && t->dtype >= KX_I32));
        bool finite = !rc;
        for (size_t k = 0; k < n && finite; k++) finite = isfinite(f[k]);
        int read = kx_weight_read(t, f, &err);
        FUZZ_CHECK(n == 0 || finite == !read);
        FUZZ_CHECK(!read || (err.code == read && !strncmp(err.text, "f: ", 3)));
        free(f);
    }
    const char *text = kx_weights_metadata(w, "format");
    FUZZ_CHECK(!text || strlen(text) <= size);
    kx_weights_close(w);
    return 0;
}

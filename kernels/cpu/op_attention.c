/* Attention on the CPU: softmax(q · kᵀ · scale) · v (Dao et al. 2022, FlashAttention, in its order for a
 * CPU). Built once for each instruction set (simd.h).
 *
 * Each head's keys and values are packed once, so that a vector holds one column of as many keys as it is
 * wide; then blocks of query rows go over them, a block a thread.
 *
 * Keys and values go by in tiles of 128; a tile is used by all of the block's rows while it is in the cache,
 * R rows at a time: R × 128 scores (registers: R × 2 vectors of keys), the running maximum and the sum of
 * each row, then R rows of the result gain the tile's values (registers: R × up to 3 vectors). */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/context.h"
#include "kernels/cpu/simd.h"

#if W == 16
enum { R = 8 };
#else
enum { R = 4 }; /* sixteen registers */
#endif
enum {
    BLOCK_ROWS = 64, /* query rows that an item takes */
    KEYS = 32,       /* keys come in blocks of so many, dim × 32 each, the last filled with zeros */
    TILE = 128,      /* keys whose scores are at hand at once */
};

/* One head of attention, for a block of at most BLOCK_ROWS query rows. */
struct head {
    const float *q;
    size_t q_stride;
    int rows, length, dim;
    const float *keys;   /* packed */
    const float *values; /* packed: length × packed_width(dim) */
    int seen, step;      /* the first row sees so many keys, each next one `step` more; at most length */
    float scale;
    float *out;
    size_t out_stride;
    float *scratch; /* scratch_floats(dim) floats */
};

/* Floats of a packed value: whole vectors of the widest set. */
static size_t packed_width(int dim) {
    return ((size_t)dim + 15) / 16 * 16;
}
static size_t scratch_floats(int dim) {
    return BLOCK_ROWS * ((size_t)dim + packed_width(dim)) + 8 * TILE;
}

/* Up to KEYS rows of keys to a packed block. */
static void pack_keys(const float *k, size_t stride, int rows, int dim, float *block) {
    for (int j = 0; j < rows; j++)
        for (int d = 0; d < dim; d++) block[d * KEYS + j] = k[(size_t)j * stride + (size_t)d];
    for (int j = rows; j < KEYS; j++)
        for (int d = 0; d < dim; d++) block[d * KEYS + j] = 0;
}

static void pack_values(const float *v, size_t stride, int rows, int dim, float *packed) {
    size_t width = packed_width(dim);
    for (int j = 0; j < rows; j++, v += stride, packed += width) {
        memcpy(packed, v, (size_t)dim * sizeof *v);
        for (size_t d = (size_t)dim; d < width; d++) packed[d] = 0;
    }
}

/* score[r][0 … 2·W) = q[r] · keys. q: R × dim. */
KX_INLINE void scores(const float *q, int dim, const float *keys, float *score) {
    vf a[R][2] = {{{0}}};
    for (int d = 0; d < dim; d++) {
        vf k0 = load(keys + d * KEYS), k1 = load(keys + d * KEYS + W);
        for (int r = 0; r < R; r++) {
            vf x = splat(q[r * dim + d]);
            a[r][0] = muladd(x, k0, a[r][0]);
            a[r][1] = muladd(x, k1, a[r][1]);
        }
    }
    for (int r = 0; r < R; r++) {
        store(score + r * TILE, a[r][0]);
        store(score + r * TILE + W, a[r][1]);
    }
}

/* acc[r] = acc[r] · fade[r] + Σ_j p[r][j] · v[j], for n vectors of the columns. */
KX_INLINE void weigh(int n, const float *p, int keys, const float *v, size_t width, const float *fade,
                     float *acc) {
    vf a[R][3];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < n; i++) a[r][i] = load(acc + (size_t)r * width + (size_t)i * W) * splat(fade[r]);
    for (int j = 0; j < keys; j++) {
        vf row[3];
        for (int i = 0; i < n; i++) row[i] = load(v + (size_t)j * width + (size_t)i * W);
        for (int r = 0; r < R; r++) {
            vf x = splat(p[r * TILE + j]);
            for (int i = 0; i < n; i++) a[r][i] = muladd(x, row[i], a[r][i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < n; i++) store(acc + (size_t)r * width + (size_t)i * W, a[r][i]);
}

static void weigh1(const float *p, int keys, const float *v, size_t width, const float *fade, float *acc) {
    weigh(1, p, keys, v, width, fade, acc);
}
static void weigh2(const float *p, int keys, const float *v, size_t width, const float *fade, float *acc) {
    weigh(2, p, keys, v, width, fade, acc);
}
static void weigh3(const float *p, int keys, const float *v, size_t width, const float *fade, float *acc) {
    weigh(3, p, keys, v, width, fade, acc);
}

/* The running softmax of R rows, kept from tile to tile. */
struct state {
    float max[W]; /* the first R: the largest score yet */
    vf sum[R];    /* of the weights, still apart */
};

/* Scores to weights: score[r][0 … full) becomes 2^(score - max), with nothing from limit[r] on. fade[r]: what
 * earlier tiles' weights are to be multiplied with. */
static void soften(float *score, const int *limit, int full, struct state *s, float *fade) {
    float top[W] = {0};
    for (int r = 0; r < R; r++) {
        float *row = score + r * TILE;
        for (int j = limit[r] > 0 ? limit[r] : 0; j < full; j++) row[j] = -INFINITY;
        vf m = load(row);
        for (int j = W; j < full; j += W) m = larger(load(row + j), m);
        float high = largest(m);
        top[r] = high < s->max[r] ? s->max[r] : high;
    }
    vf f = vexp2(load(s->max) - load(top));
    memcpy(s->max, top, sizeof top);
    for (int r = 0; r < R; r++) {
        float *row = score + r * TILE;
        vf add = {0}, high = splat(top[r]);
        for (int j = 0; j < full; j += W) {
            vf e = vexp2(load(row + j) - high);
            store(row + j, e);
            add += e;
        }
        fade[r] = f[r];
        s->sum[r] = muladd(s->sum[r], splat(f[r]), add);
    }
}

/* R of the block's rows, from `row` on, against the keys [at, at + keys). */
static void tile(const struct head *h, int row, int at, int keys, const float *query, float *acc,
                 struct state *s, float *score) {
    int full = (keys + KEYS - 1) / KEYS * KEYS, limit[R];
    size_t width = packed_width(h->dim);
    float fade[R];
    for (int j = 0; j < full; j += KEYS)
        for (int k = 0; k < KEYS; k += 2 * W)
            scores(query, h->dim, h->keys + (size_t)(at + j) * (size_t)h->dim + k, score + j + k);
    for (int r = 0; r < R; r++) {
        int seen = h->seen + (row + r) * h->step - at;
        limit[r] = row + r < h->rows && seen < keys ? seen : keys; /* rows of zeros behind the last see all */
    }
    soften(score, limit, full, s, fade);
    const float *v = h->values + (size_t)at * width;
    for (size_t left = width / W; left;) {
        size_t n = left == 4 || left == 2 ? 2 : left < 3 ? left : 3;
        (n == 3 ? weigh3 : n == 2 ? weigh2 : weigh1)(score, keys, v, width, fade, acc);
        v += n * W;
        acc += n * W;
        left -= n;
    }
}

/* The scores are in powers of two: the scale has log2 e in it. */
static void attend(const struct head *h) {
    size_t dim = (size_t)h->dim, width = packed_width(h->dim);
    int rows = (h->rows + R - 1) / R * R, last = h->seen + (h->rows - 1) * h->step;
    if (last > h->length) last = h->length;
    struct state state[BLOCK_ROWS / R];
    float *acc = h->scratch, *score = acc + (size_t)rows * width, *query = score + R * TILE,
          scale = h->scale * 1.44269504f;
    for (int r = 0; r < rows; r++)
        for (size_t d = 0; d < dim; d++)
            query[(size_t)r * dim + d] = r < h->rows ? h->q[(size_t)r * h->q_stride + d] * scale : 0;
    for (int r = 0; r < rows; r += R) {
        struct state *s = &state[r / R];
        memset(s, 0, sizeof *s);
        for (int k = 0; k < R; k++) s->max[k] = -INFINITY;
    }
    memset(acc, 0, (size_t)rows * width * sizeof *acc);
    for (int at = 0; at < last; at += TILE) {
        int keys = last - at < TILE ? last - at : TILE;
        for (int r = 0; r < rows; r += R)
            tile(h, r, at, keys, query + (size_t)r * dim, acc + (size_t)r * width, &state[r / R], score);
    }
    for (int r = 0; r < h->rows; r++) {
        float inv = 1 / total(state[r / R].sum[r % R]);
        for (size_t d = 0; d < dim; d++)
            h->out[(size_t)r * h->out_stride + d] = acc[(size_t)r * width + d] * inv;
    }
}

/* ---- the op: packs, then attends */

struct attending {
    struct kx_cpu *ctx;
    const struct kx_attention *a;
    const float *q, *k, *v; /* of the image */
    float *out;
    size_t key_blocks, row_blocks, width; /* a head */
    float *keys, *values;                 /* heads × … */
};

/* A head's next KEYS keys and values. */
static void attend_pack(void *arg, int i, const struct kx_seat *seat) {
    (void)seat;
    const struct attending *t = arg;
    const struct kx_attention *a = t->a;
    size_t head = (size_t)i / t->key_blocks, from = (size_t)i % t->key_blocks * KEYS, dim = (size_t)a->dim,
           length = (size_t)a->length;
    int n = (int)kx_least(KEYS, length - from);
    pack_keys(t->k + from * a->k_stride + head * dim, a->k_stride, n, a->dim,
              t->keys + (head * t->key_blocks * KEYS + from) * dim);
    pack_values(t->v + from * a->v_stride + head * dim, a->v_stride, n, a->dim,
                t->values + (head * length + from) * t->width);
}

static void attend_rows(void *arg, int i, const struct kx_seat *seat) {
    const struct attending *t = arg;
    const struct kx_attention *a = t->a;
    size_t head = (size_t)i / t->row_blocks, from = (size_t)i % t->row_blocks * BLOCK_ROWS,
           dim = (size_t)a->dim;
    struct head h = {.q = t->q + from * a->q_stride + head * dim,
                     .q_stride = a->q_stride,
                     .rows = (int)kx_least(BLOCK_ROWS, (size_t)a->rows - from),
                     .length = a->length,
                     .dim = a->dim,
                     .keys = t->keys + head * t->key_blocks * KEYS * dim,
                     .values = t->values + head * (size_t)a->length * t->width,
                     .seen = a->causal ? (int)from + 1 : a->length,
                     .step = a->causal,
                     .scale = a->scale,
                     .out = t->out + from * a->out_stride + head * dim,
                     .out_stride = a->out_stride,
                     .scratch = seat->scratch};
    attend(&h);
}

void KX_GLUE(kx_cpu_attention_, KX_ISA)(struct kx_ctx *ctx, const struct kx_attention *a) {
    assert(a->rows > 0 && a->length > 0 && a->heads > 0 && a->dim > 0);
    struct kx_cpu *cpu = kx_cpu_of(ctx);
    struct attending t = {.ctx = cpu,
                          .a = a,
                          .key_blocks = kx_stretches((size_t)a->length, KEYS),
                          .row_blocks = kx_stretches((size_t)a->rows, BLOCK_ROWS),
                          .width = packed_width(a->dim)};
    size_t heads = (size_t)a->heads, values = heads * (size_t)a->length * t.width,
           keys = heads * t.key_blocks * KEYS * (size_t)a->dim;
    if (ctx->planning) {
        kx_want(cpu, (values + keys) * sizeof(float), scratch_floats(a->dim) * sizeof(float));
        return;
    }
    t.values = cpu->workspace;
    t.keys = t.values + values;
    for (int i = 0; i < a->n; i++) {
        size_t of = (size_t)(a->kv_index ? a->kv_index[i] : i) * a->kv_image,
               rows = (size_t)i * (size_t)a->rows;
        t.q = (const float *)a->q + rows * a->q_stride;
        t.out = (float *)a->out + rows * a->out_stride;
        t.k = (const float *)a->k + of;
        t.v = (const float *)a->v + of;
        kx_parallel(cpu, (int)(heads * t.key_blocks), attend_pack, &t);
        kx_parallel(cpu, (int)(heads * t.row_blocks), attend_rows, &t);
    }
}

/* Schedules and samplers. See the header. Names in comments are those of the papers: α̅ (alpha_bar) the
 * cumulative product, σ = √((1 − α̅)/α̅) the noise level of k-diffusion, T the number of training steps. */
#include "kernels/samplers/schedule.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A sampler's settings: the folder's fields, and the sampler's own defaults for those that the folder does
 * not state. */
struct settings {
    int T;
    double beta_start, beta_end;
    enum kx_beta beta;
    enum kx_prediction prediction;
    enum kx_spacing spacing;
    int offset;
    bool zero_snr, alpha_one, clip, skip_prk, final_sigma_min, heun, lower_order_final, euler_at_final;
    double clip_range, sigma_min, sigma_max; /* NaN: not given */
    double lambda_min_clipped;
    int order;
};

#define STATED_OR(field, fallback) (c->field##_stated ? c->field : (fallback))

static struct settings settle(const struct kx_scheduler_config *c, enum kn_sampler s) {
    bool leading = s == KN_SAMPLER_DDIM || s == KN_SAMPLER_PNDM;
    bool fixes_offset = c->pipeline && (c->steps_offset_stated || s == c->own);
    bool fixes_clip = c->pipeline && (c->clip_sample_stated || s == c->own);
    return (struct settings){
        .T = STATED_OR(num_train_timesteps, 1000),
        .beta_start = STATED_OR(beta_start, 0.0001),
        .beta_end = STATED_OR(beta_end, 0.02),
        .beta = STATED_OR(beta_schedule, KX_BETA_LINEAR),
        .prediction = STATED_OR(prediction_type, KX_PREDICT_EPSILON),
        .spacing = STATED_OR(timestep_spacing, leading ? KX_SPACING_LEADING : KX_SPACING_LINSPACE),
        .offset = fixes_offset ? 1 : STATED_OR(steps_offset, 0),
        .zero_snr = s != KN_SAMPLER_PNDM && STATED_OR(rescale_betas_zero_snr, false),
        .alpha_one = STATED_OR(set_alpha_to_one, s == KN_SAMPLER_DDIM),
        .clip = s == KN_SAMPLER_DDIM && !fixes_clip && STATED_OR(clip_sample, true),
        .clip_range = STATED_OR(clip_sample_range, 1.0),
        .skip_prk = STATED_OR(skip_prk_steps, false),
        .final_sigma_min = s != KN_SAMPLER_EULER_A && STATED_OR(final_sigma_min, false),
        .sigma_min = STATED_OR(sigma_min, (double)NAN),
        .sigma_max = STATED_OR(sigma_max, (double)NAN),
        .order = STATED_OR(solver_order, 2),
        .heun = STATED_OR(solver_heun, false),
        .lower_order_final = STATED_OR(lower_order_final, true),
        .euler_at_final = STATED_OR(euler_at_final, false),
        .lambda_min_clipped = STATED_OR(lambda_min_clipped, -(double)INFINITY),
    };
}

/* torch.linspace in f32: from both ends towards the middle. */
static void linspace_f32(float start, float end, int n, float *out) {
    float step = n > 1 ? (end - start) / (float)(n - 1) : 0;
    for (int i = 0; i < n; i++)
        out[i] = i < n / 2 ? fmaf(step, (float)i, start) : fmaf(-step, (float)(n - i - 1), end);
    if (n == 1) out[0] = start;
}

static double cosine_alpha_bar(double t) {
    double c = cos((t + 0.008) / 1.008 * M_PI / 2);
    return c * c;
}

/* α̅ of every training step, f32. */
static void alphas_cumprod(const struct settings *s, enum kn_sampler sampler, float *ac) {
    int T = s->T;
    switch (s->beta) {
    case KX_BETA_LINEAR:
        linspace_f32((float)s->beta_start, (float)s->beta_end, T, ac);
        break;
    case KX_BETA_SCALED_LINEAR:
        linspace_f32((float)sqrt(s->beta_start), (float)sqrt(s->beta_end), T, ac);
        for (int i = 0; i < T; i++) ac[i] *= ac[i];
        break;
    case KX_BETA_COSINE:
        for (int i = 0; i < T; i++) {
            double b = 1 - cosine_alpha_bar((i + 1) / (double)T) / cosine_alpha_bar(i / (double)T);
            ac[i] = (float)(b < 0.999 ? b : 0.999);
        }
        break;
    }
    double product = 1;
    for (int i = 0; i < T;
         i++) { /* betas in, products out: accumulated in f64, stored in f32, as torch.cumprod does */
        product *= (double)(1.0f - ac[i]);
        ac[i] = (float)product;
    }
    if (!s->zero_snr) return;
    /* arXiv 2305.08891: √α̅ is shifted so that the last is 0 and scaled so that the first stays; then back to
     * betas and forth, as diffusers does, for the same rounding */
    float first = sqrtf(ac[0]), last = sqrtf(ac[T - 1]), previous = 0;
    product = 1;
    for (int i = 0; i < T; i++) {
        float root = (sqrtf(ac[i]) - last) * (first / (first - last));
        float bar = root * root;
        float beta = 1.0f - (i ? bar / previous : bar);
        previous = bar;
        product *= (double)(1.0f - beta);
        ac[i] = (float)product;
    }
    if (sampler != KN_SAMPLER_DDIM) ac[T - 1] = 0x1p-24f;
}

/* numpy.interp(x, 0…n−1, y) */
static double interp(double x, const float *y, int n) {
    if (x <= 0) return (double)y[0];
    if (x >= n - 1) return (double)y[n - 1];
    int i = (int)x;
    return ((double)y[i + 1] - (double)y[i]) * (x - i) + (double)y[i];
}

/* The fractional step whose log σ this is; log_sigmas ascend. */
static double sigma_to_t(double sigma, const float *log_sigmas, int T) {
    double ls = log(fmax(sigma, 1e-10));
    int low = 0;
    for (int i = 0; i < T; i++)
        if (ls - (double)log_sigmas[i] >= 0) low = i;
    if (low > T - 2) low = T - 2;
    double w = ((double)log_sigmas[low] - ls) / (double)(log_sigmas[low] - log_sigmas[low + 1]);
    w = w < 0 ? 0 : w > 1 ? 1 : w;
    return (1 - w) * low + w * (low + 1);
}

static int by_rint(double v) { /* numpy's round: half to even */
    return (int)nearbyint(v);
}

/* Timesteps, descending, before offsets that only one sampler has. n points over `last` training steps. */
static void space(const struct settings *s, int n, int last, bool whole, double *t) {
    switch (s->spacing) {
    case KX_SPACING_LINSPACE:
        for (int i = 0; i < n; i++) {
            double v = n > 1 ? (last - 1) / (double)(n - 1) * i : 0;
            if (i == n - 1 && n > 1) v = last - 1;
            t[n - 1 - i] = whole ? by_rint(v) : (double)(float)v;
        }
        break;
    case KX_SPACING_LEADING:
        for (int i = 0; i < n; i++) t[n - 1 - i] = i * (last / n) + s->offset;
        break;
    case KX_SPACING_TRAILING: {
        double ratio = s->T / (double)n;
        for (int i = 0; i < n; i++) t[i] = by_rint(last - i * ratio) - 1;
        break;
    }
    }
}

static struct kx_step plain_step(double t) {
    return (struct kx_step){.timestep = (float)t, .in_scale = 1, .dm = 1, .store = -1};
}

/* α̅ at a step; before the first one it is what the config says. */
static double bar_at(const struct settings *s, const float *ac, int t) {
    if (t >= 0) return (double)ac[t < s->T ? t : s->T - 1];
    return s->alpha_one ? 1.0 : (double)ac[0];
}

static void build_ddim(const struct settings *s, const float *ac, int n, const double *ts,
                       struct kx_schedule *out) {
    for (int i = 0; i < n; i++) {
        int t = (int)ts[i];
        double at = bar_at(s, ac, t), ap = bar_at(s, ac, t - s->T / n);
        double ra = sqrt(at), rb = sqrt(1 - at), dir = sqrt(1 - ap);
        struct kx_step k = plain_step(t);
        switch (s->prediction) { /* d is x0; the direction is dir·ε with ε of the unclipped prediction */
        case KX_PREDICT_EPSILON:
            k.dx = (float)(1 / ra);
            k.dm = (float)(-rb / ra);
            k.cm = (float)dir;
            break;
        case KX_PREDICT_SAMPLE:
            k.cx = (float)(dir / rb);
            k.cm = (float)(-dir * ra / rb);
            break;
        case KX_PREDICT_V:
            k.dx = (float)ra;
            k.dm = (float)-rb;
            k.cm = (float)(dir * ra);
            k.cx = (float)(dir * rb);
            break;
        }
        k.clip = s->clip ? (float)s->clip_range : 0;
        k.cd = (float)sqrt(ap);
        out->v[out->count++] = k;
    }
}

/* PNDM's transfer from t to p of the combined prediction e, out of base (x, or what was saved):
 * x' = √(ap/at)·base − (ap − at)/(at·√(1−ap) + √(at·(1−at)·ap))·ε. With v-prediction ε = √at·e +
 * √(1−at)·base. */
static void pndm_transfer(const struct settings *s, const float *ac, int t, int p, double *base, double *e) {
    double at = bar_at(s, ac, t), ap = bar_at(s, ac, p);
    double k = (ap - at) / (at * sqrt(1 - ap) + sqrt(at * (1 - at) * ap));
    *base = sqrt(ap / at);
    *e = -k;
    if (s->prediction == KX_PREDICT_V) {
        *base -= k * sqrt(1 - at);
        *e *= sqrt(at);
    }
}

/* Linear multistep (PLMS), started either by one repeated step or, as in the paper, by three Runge–Kutta
 * groups of four evaluations. History slots 0 … 3 are the ring of predictions, 4 and 5 the middle of a
 * group. */
enum { PNDM_RING = 4, PNDM_MIDDLE = 4, PNDM_SLOTS = 6, PRK_GROUP = 4, PRK_STEPS = 12 };

struct pndm {
    const struct settings *s;
    const float *ac;
    const double *up; /* n timesteps, ascending */
    int n, stride;
    int next;            /* the ring's slot that is written next */
    int held;            /* predictions so far */
    int last[PNDM_RING]; /* slots of the predictions held, newest first */
};

/* The step keeps its prediction in the ring. */
static void pndm_store(struct pndm *p, struct kx_step *k) {
    k->store = p->next;
    for (int i = PNDM_RING - 1; i > 0; i--) p->last[i] = p->last[i - 1];
    p->last[0] = p->next;
    p->next = (p->next + 1) % PNDM_RING;
    p->held++;
}

/* Three groups of four evaluations. A group transfers x at its first timestep t by the mean of the
 * predictions at t, twice between t and the next, and at the next, weighted 1, 2, 2, 1. */
static void pndm_runge_kutta(struct pndm *p, struct kx_schedule *out) {
    double prk[8], group[14], ts[PRK_STEPS], base, e;
    for (int i = 0; i < 4; i++) {
        prk[2 * i] = p->up[p->n - 4 + i];
        prk[2 * i + 1] = p->up[p->n - 4 + i] + p->stride / 2;
    }
    for (int i = 0; i < 14; i++) group[i] = prk[i / 2];
    for (int i = 0; i < PRK_STEPS; i++) ts[i] = group[PRK_STEPS - i];
    for (int i = 0; i < PRK_STEPS; i++) {
        int phase = i % PRK_GROUP, first = (int)ts[i - phase];
        pndm_transfer(p->s, p->ac, first, (int)ts[i] - (i % 2 ? 0 : p->stride / 2), &base, &e);
        struct kx_step k = plain_step(ts[i]);
        if (phase == 0) {
            k.cx = (float)base;
            k.cm = (float)e;
            k.save_x = true;
            pndm_store(p, &k);
        } else if (phase < PRK_GROUP - 1) {
            k.cs = (float)base;
            k.cm = (float)e;
            k.store = PNDM_MIDDLE - 1 + phase;
        } else {
            k.cs = (float)base;
            k.cm = (float)(e / 6);
            k.ch[p->last[0]] = (float)(e / 6);
            k.ch[PNDM_MIDDLE] = k.ch[PNDM_MIDDLE + 1] = (float)(e / 3);
        }
        out->v[out->count++] = k;
    }
}

/* Adams–Bashforth of as high an order as there are predictions, up to 4: the last evaluation and the held
 * ones. */
static struct kx_step pndm_adams(struct pndm *p, int t) {
    static const double adams[4][4] = {{1, 0, 0, 0},
                                       {3.0 / 2, -1.0 / 2, 0, 0},
                                       {23.0 / 12, -16.0 / 12, 5.0 / 12, 0},
                                       {55.0 / 24, -59.0 / 24, 37.0 / 24, -9.0 / 24}};
    const double *c = adams[p->held < 3 ? p->held : 3];
    double base, e;
    pndm_transfer(p->s, p->ac, t, t - p->stride, &base, &e);
    struct kx_step k = plain_step(t);
    k.cx = (float)base;
    k.cm = (float)(e * c[0]);
    for (int q = 1; q < 4; q++)
        if (c[q] != 0) k.ch[p->last[q - 1]] = (float)(e * c[q]);
    pndm_store(p, &k);
    return k;
}

/* Repeats the first transfer, from what was saved, with the mean of both predictions. */
static struct kx_step pndm_repeat(const struct pndm *p, int t) {
    double base, e;
    pndm_transfer(p->s, p->ac, t + p->stride, t, &base, &e);
    struct kx_step k = plain_step(t);
    k.cs = (float)base;
    k.cm = (float)(e / 2);
    k.ch[p->last[0]] = (float)(e / 2);
    return k;
}

/* With Runge–Kutta its groups stand for the last three timesteps. Without, the last but one stands twice: …
 * n−1, n−2, n−2, n−3 … */
static void build_pndm(const struct settings *s, const float *ac, int n, const double *up,
                       struct kx_schedule *out) {
    struct pndm p = {.s = s, .ac = ac, .up = up, .n = n, .stride = s->T / n, .last = {-1, -1, -1, -1}};
    out->saves = true;
    out->slots = PNDM_SLOTS;
    if (!s->skip_prk) {
        pndm_runge_kutta(&p, out);
        for (int i = n - 4; i >= 0; i--) out->v[out->count++] = pndm_adams(&p, (int)up[i]);
        return;
    }
    struct kx_step first = pndm_adams(&p, (int)up[n - 1]);
    first.save_x = true;
    out->v[out->count++] = first;
    if (n == 1) return;
    out->v[out->count++] = pndm_repeat(&p, (int)up[n - 2]);
    for (int i = n - 2; i >= 0; i--) out->v[out->count++] = pndm_adams(&p, (int)up[i]);
}

/* x0 = dx·x + dm·m at noise level σ of an x that is not scaled (k-diffusion's). */
static void euler_data(const struct settings *s, double sigma, struct kx_step *k) {
    switch (s->prediction) {
    case KX_PREDICT_EPSILON:
        k->dx = 1;
        k->dm = (float)-sigma;
        break;
    case KX_PREDICT_V:
        k->dx = (float)(1 / (sigma * sigma + 1));
        k->dm = (float)(-sigma / sqrt(sigma * sigma + 1));
        break;
    case KX_PREDICT_SAMPLE:
        k->dx = 0;
        k->dm = 1;
        break;
    }
}

static void build_euler(const struct settings *s, bool ancestral, const float *sigmas, int n,
                        const double *ts, struct kx_schedule *out) {
    double top = 0;
    for (int i = 0; i <= n; i++) top = fmax(top, (double)sigmas[i]);
    out->init_scale = (float)(s->spacing == KX_SPACING_LEADING ? sqrt(top * top + 1) : top);
    out->noisy = ancestral;
    for (int i = 0; i < n; i++) {
        double from = (double)sigmas[i], to = (double)sigmas[i + 1], up = 0, down = to;
        if (ancestral) {
            up = sqrt(to * to * (from * from - to * to) / (from * from));
            down = sqrt(fmax(to * to - up * up, 0));
        }
        struct kx_step k = plain_step(ts[i]);
        k.in_scale = (float)(1 / sqrt(from * from + 1));
        k.cn = (float)up;
        if (s->prediction == KX_PREDICT_EPSILON) { /* the derivative is m itself */
            k.cx = 1;
            k.cm = (float)(down - from);
        } else { /* x + (x − x0)/σ·(down − σ) */
            euler_data(s, from, &k);
            k.cx = (float)(down / from);
            k.cd = (float)(1 - down / from);
        }
        out->v[out->count++] = k;
    }
}

/* DPM-Solver++ (arXiv 2211.01095), multistep, first and second order, on x = α·x0 + σ̂·ε with α =
 * 1/√(σ²+1), σ̂ = σ·α. */
static void build_dpmpp(const struct settings *s, const float *sigmas, int n, const double *ts,
                        struct kx_schedule *out) {
    out->slots = 2;
    for (int i = 0; i < n; i++) {
        bool first =
            s->order == 1 || i == 0 ||
            (i == n - 1 && (s->euler_at_final || (s->lower_order_final && n < 15) || !s->final_sigma_min));
        double sg = (double)sigmas[i], sn = (double)sigmas[i + 1];
        double as = 1 / sqrt(sg * sg + 1), hs = sg * as, an = 1 / sqrt(sn * sn + 1), hn = sn * an;
        struct kx_step k = plain_step(ts[i]);
        switch (s->prediction) {
        case KX_PREDICT_EPSILON:
            k.dx = (float)(1 / as);
            k.dm = (float)(-hs / as);
            break;
        case KX_PREDICT_V:
            k.dx = (float)as;
            k.dm = (float)-hs;
            break;
        case KX_PREDICT_SAMPLE:
            break;
        }
        /* λ = −log σ; h = λ' − λ, infinite at the end, where e^(−h) is 0 */
        double decay = sn / sg, q = an * (decay - 1);
        k.cx = (float)(hn / hs);
        k.cd = (float)-q;
        if (!first) {
            double h = log(sg) - log(sn), r = (log((double)sigmas[i - 1]) - log(sg)) / h;
            double c1 = s->heun ? an * ((decay - 1) / h + 1) : -0.5 * q; /* times D1 = (m0 − m1)/r */
            k.cd += (float)(c1 / r);
            k.ch[(i + 1) % 2] = (float)(-c1 / r);
        }
        k.store = i % 2;
        out->v[out->count++] = k;
    }
}

/* Karras et al. 2022, eq. 5, ρ = 7: n noise levels from σmax down to σmin. */
static void karras(double sigma_min, double sigma_max, int n, double *out) {
    double lo = pow(sigma_min, 1 / 7.0), hi = pow(sigma_max, 1 / 7.0);
    for (int i = 0; i < n; i++) out[i] = pow(hi + (n > 1 ? i / (double)(n - 1) : 0) * (lo - hi), 7);
}

/* The sigma-based samplers: timesteps and n + 1 sigmas. */
static void sigma_schedule(const struct settings *s, enum kn_sampler sampler, bool use_karras,
                           const float *ac, int n, float *work, double *ts, float *sigmas) {
    int T = s->T;
    float *all = work, *logs = work + T;
    for (int i = 0; i < T; i++) {
        all[i] = sqrtf((1.0f - ac[i]) / ac[i]);
        logs[i] = logf(all[i]);
    }
    bool dpm = sampler == KN_SAMPLER_DPMPP_2M;
    if (dpm) {
        int last = T;
        while (last > 1 && (double)-logs[last - 1] < s->lambda_min_clipped) last--;
        double *t1 = ts; /* n + 1 points, the smallest left out; room for it is there */
        if (s->spacing == KX_SPACING_TRAILING)
            space(s, n, last, true, t1);
        else
            space(s, n + 1, last, true, t1);
    } else {
        space(s, n, T, false, ts);
    }
    double *picked = ts + n + 1;
    for (int i = 0; i < n; i++) picked[i] = interp(ts[i], all, T);
    if (use_karras) {
        /* Euler subsamples first, DPM++ takes the whole range; Euler a has no such option in diffusers and
         * takes the whole range, as k-diffusion does */
        bool whole = sampler != KN_SAMPLER_EULER;
        double lo = whole ? (double)all[0] : picked[n - 1], hi = whole ? (double)all[T - 1] : picked[0];
        bool stated = sampler != KN_SAMPLER_EULER_A; /* whose class has no such fields */
        if (stated && !isnan(s->sigma_min)) lo = s->sigma_min;
        if (stated && !isnan(s->sigma_max)) hi = s->sigma_max;
        karras(lo, hi, n, picked);
        for (int i = 0; i < n; i++) {
            ts[i] = sigma_to_t(picked[i], logs, T);
            if (dpm && s->beta != KX_BETA_COSINE) ts[i] = by_rint(ts[i]);
            if (dpm) ts[i] = (double)(int)ts[i]; /* kept as a whole number there */
        }
    }
    for (int i = 0; i < n; i++) sigmas[i] = (float)picked[i];
    sigmas[n] = s->final_sigma_min ? all[0] : 0;
}

int kx_schedule_create(const struct kx_scheduler_config *cfg, enum kn_sampler sampler,
                       enum kn_schedule schedule, int steps, struct kx_schedule *out, struct kn_err *err) {
    *out = (struct kx_schedule){.init_scale = 1};
    struct settings s = settle(cfg, sampler);
    if (sampler == KN_SAMPLER_UNSET || sampler >= 32 || !(KN_SAMPLER_MASK & 1u << sampler))
        return kn_err_set(err, KN_EINVAL, "sampler: not known to the engine");
    if (cfg->unsupported & 1u << sampler)
        return kn_err_set(err, KN_EUNSUPPORTED, "scheduler_config.json: %s is not supported with %s",
                          cfg->unsupported_field[sampler], kn_sampler_name(sampler));
    if (s.T < 2 || s.T > KX_TRAIN_STEPS_MAX)
        return kn_err_set(err, KN_EUNSUPPORTED,
                          "scheduler_config.json: num_train_timesteps: %d is not between 2 and %d", s.T,
                          KX_TRAIN_STEPS_MAX);
    bool pndm = sampler == KN_SAMPLER_PNDM, dpm = sampler == KN_SAMPLER_DPMPP_2M;
    int least = pndm && !s.skip_prk ? 4 : 1, most = dpm ? s.T - 1 : s.T;
    if (steps < least || steps > most)
        return kn_err_set(err, KN_EINVAL,
                          "steps: %d is not between %d and %d, which this model allows with %s", steps, least,
                          most, kn_sampler_name(sampler));
    if (!kn_schedule_fits(sampler, schedule))
        return kn_err_set(err, KN_EINVAL, "schedule: karras means nothing with %s", kn_sampler_name(sampler));
    if (s.prediction == KX_PREDICT_SAMPLE && (pndm || sampler == KN_SAMPLER_EULER_A))
        return kn_err_set(err, KN_EUNSUPPORTED,
                          "scheduler_config.json: prediction_type: sample does not go with %s",
                          kn_sampler_name(sampler));
    if (dpm && s.order != 1 && s.order != 2)
        return kn_err_set(err, KN_EUNSUPPORTED, "scheduler_config.json: solver_order: %d is not 1 or 2",
                          s.order);
    if (s.offset < 0 || s.offset >= s.T)
        return kn_err_set(err, KN_EPARSE, "scheduler_config.json: steps_offset: %d is out of range",
                          s.offset);

    int rc = 0;
    float *ac = malloc(3 * (size_t)s.T * sizeof *ac);
    double *ts = malloc((2 * (size_t)steps + 4) * sizeof *ts);
    float *sigmas = malloc(((size_t)steps + 1) * sizeof *sigmas);
    out->v = calloc((size_t)steps + 16, sizeof *out->v);
    if (!ac || !ts || !sigmas || !out->v) {
        rc = kn_err_set(err, KN_ENOMEM, "out of memory");
        goto out;
    }
    alphas_cumprod(&s, sampler, ac);
    switch (sampler) {
    case KN_SAMPLER_DDIM:
        space(&s, steps, s.T, true, ts);
        build_ddim(&s, ac, steps, ts, out);
        break;
    case KN_SAMPLER_PNDM:
        space(&s, steps, s.T, true, ts);
        for (int i = 0; i < steps / 2; i++) {
            double t = ts[i];
            ts[i] = ts[steps - 1 - i];
            ts[steps - 1 - i] = t;
        }
        build_pndm(&s, ac, steps, ts, out);
        break;
    case KN_SAMPLER_EULER:
    case KN_SAMPLER_EULER_A:
        sigma_schedule(&s, sampler, schedule == KN_SCHEDULE_KARRAS, ac, steps, ac + s.T, ts, sigmas);
        build_euler(&s, sampler == KN_SAMPLER_EULER_A, sigmas, steps, ts, out);
        break;
    case KN_SAMPLER_DPMPP_2M:
        sigma_schedule(&s, sampler, schedule == KN_SCHEDULE_KARRAS, ac, steps, ac + s.T, ts, sigmas);
        build_dpmpp(&s, sigmas, steps, ts, out);
        break;
    case KN_SAMPLER_UNSET:
        break; /* refused above */
    }
    for (int i = 0; i < out->count && !rc; i++) {
        const struct kx_step *k = &out->v[i];
        const float all[] = {k->timestep, k->in_scale, k->dx,    k->dm,    k->cx,    k->cs,    k->cd,   k->cm,
                             k->cn,       k->ch[0],    k->ch[1], k->ch[2], k->ch[3], k->ch[4], k->ch[5]};
        for (size_t q = 0; q < sizeof all / sizeof *all; q++)
            if (!isfinite(all[q]))
                rc = kn_err_set(err, KN_EUNSUPPORTED,
                                "scheduler_config.json: %s has no finite step %d with these betas and this "
                                "prediction type",
                                kn_sampler_name(sampler), i);
    }
out:
    free(ac);
    free(ts);
    free(sigmas);
    if (rc) kx_schedule_fini(out);
    return rc;
}

void kx_schedule_fini(struct kx_schedule *s) {
    free(s->v);
    *s = (struct kx_schedule){0};
}

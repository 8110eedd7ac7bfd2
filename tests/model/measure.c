/* See the header. */
#include "measure.h"

#include <math.h>
#include <string.h>

#define N MEASURE_SIZE
#define PIXELS (N * N)
#define NONE 255

/* ---- pixels ---- */

/* The colour of an object that this pixel could belong to, or NONE. */
static uint8_t pixel_colour(const uint8_t *p, int background) {
    int r = p[0], g = p[1], b = p[2];
    int top = r > g ? (r > b ? r : b) : (g > b ? g : b);
    int low = r < g ? (r < b ? r : b) : (g < b ? g : b);
    int chroma = top - low;
    if (top <= 64 && chroma < 30) return COLOUR_BLACK;
    if (low >= 206 && chroma < 34) return COLOUR_WHITE;
    if (chroma < 66) return NONE;
    float h;
    if (top == r)
        h = (float)(g - b) / (float)chroma;
    else if (top == g)
        h = 2 + (float)(b - r) / (float)chroma;
    else
        h = 4 + (float)(r - g) / (float)chroma;
    h *= 60;
    if (h < 0) h += 360;
    static const struct {
        float below;
        uint8_t colour;
    } hues[] = {{14, COLOUR_RED},    {40, COLOUR_ORANGE}, {72, COLOUR_YELLOW}, {90, NONE},
                {165, COLOUR_GREEN}, {202, COLOUR_CYAN},  {252, COLOUR_BLUE},  {302, COLOUR_PURPLE},
                {346, COLOUR_PINK},  {361, COLOUR_RED}};
    int i = 0;
    while (h >= hues[i].below) i++;
    uint8_t c = hues[i].colour;
    /* these two have colours of their own, but paler */
    if (background == BACKGROUND_SKY && (c == COLOUR_BLUE || c == COLOUR_CYAN) && low > 100) return NONE;
    if (background == BACKGROUND_SUNSET && (c <= COLOUR_YELLOW || c >= COLOUR_PURPLE) && low > 100)
        return NONE;
    return c;
}

/* ---- patches ---- */

/* Lines of two or three pixels (outlines of objects) go; what is left grows back inside of the mask. */
static void open_mask(uint8_t *mask) {
    static uint8_t a[PIXELS], b[PIXELS];
    memset(a, 0, sizeof a);
    for (int y = 1; y < N - 1; y++)
        for (int x = 1; x < N - 1; x++) {
            bool all = true;
            for (int dy = -1; dy <= 1; dy++)
                for (int dx = -1; dx <= 1; dx++) all &= mask[(y + dy) * N + x + dx];
            a[y * N + x] = all;
        }
    for (int round = 0; round < 3; round++) {
        memcpy(b, a, sizeof b);
        for (int y = 0; y < N; y++)
            for (int x = 0; x < N; x++) {
                int i = y * N + x;
                if (!mask[i] || b[i]) continue;
                a[i] =
                    (x && b[i - 1]) || (x < N - 1 && b[i + 1]) || (y && b[i - N]) || (y < N - 1 && b[i + N]);
            }
    }
    memcpy(mask, a, sizeof a);
}

/* Gives the patch of `value` at `from` the mark `to`; returns its pixels. Marks must differ from values. */
static int flood(uint8_t *v, int from, uint8_t value, uint8_t to) {
    static int stack[PIXELS];
    int n = 0, area = 0;
    stack[n++] = from;
    v[from] = to;
    while (n) {
        int i = stack[--n], x = i % N, y = i / N;
        area++;
        const int next[4] = {x ? i - 1 : -1, x < N - 1 ? i + 1 : -1, y ? i - N : -1, y < N - 1 ? i + N : -1};
        for (int k = 0; k < 4; k++)
            if (next[k] >= 0 && v[next[k]] == value) {
                v[next[k]] = to;
                stack[n++] = next[k];
            }
    }
    return area;
}

/* Leaves only the largest patch of the mask, with its small holes filled (highlights, but not a ring's). */
static int largest_patch(uint8_t *mask) {
    static uint8_t marks[PIXELS];
    int best = -1, best_area = 0;
    memcpy(marks, mask, sizeof marks);
    for (int i = 0; i < PIXELS; i++)
        if (marks[i] == 1) {
            int area = flood(marks, i, 1, 2);
            if (area > best_area) best_area = area, best = i;
        }
    if (best < 0) return 0;
    memcpy(marks, mask, sizeof marks);
    flood(marks, best, 1, 2);
    for (int i = 0; i < PIXELS; i++) mask[i] = marks[i] == 2;
    int filled = best_area;
    memcpy(marks, mask, sizeof marks);
    for (int i = 0; i < PIXELS; i++)
        if (marks[i] == 0) {
            int area = flood(marks, i, 0, 3);
            if (area * 100 > best_area * 16) continue;
            flood(marks, i, 3, 4);
            for (int k = 0; k < PIXELS; k++)
                if (marks[k] == 4) mask[k] = 1, marks[k] = 5;
            filled += area;
        }
    return filled;
}

/* ---- outlines, of unit size ---- */

static bool in_polygon(const float (*p)[2], int n, float x, float y) {
    bool in = false;
    for (int i = 0, j = n - 1; i < n; j = i++)
        if ((p[i][1] > y) != (p[j][1] > y) &&
            x < (p[j][0] - p[i][0]) * (y - p[i][1]) / (p[j][1] - p[i][1]) + p[i][0])
            in = !in;
    return in;
}

static bool inside(int shape, float x, float y) {
    static const float triangle[][2] = {{0, -1.0f}, {1.05f, 0.82f}, {-1.05f, 0.82f}};
    const float pi = 3.14159265f;
    float ax = fabsf(x), ay = fabsf(y), r = sqrtf(x * x + y * y);
    switch (shape) {
    case SHAPE_CIRCLE:
        return r < 0.98f;
    case SHAPE_SQUARE:
        return ax < 0.84f && ay < 0.84f;
    case SHAPE_TRIANGLE:
        return in_polygon(triangle, 3, x, y);
    case SHAPE_DIAMOND:
        return ax / 0.74f + ay / 1.12f < 1;
    case SHAPE_CROSS:
        return (ax < 0.34f && ay < 1) || (ay < 0.34f && ax < 1);
    case SHAPE_RING:
        return r < 1 && r > 0.54f;
    case SHAPE_STAR: {
        float p[10][2];
        for (int k = 0; k < 10; k++) {
            float q = k % 2 ? 0.5f : 1.16f, t = (float)k * pi / 5;
            p[k][0] = q * sinf(t);
            p[k][1] = 0.06f - q * cosf(t);
        }
        return in_polygon((const float(*)[2])p, 10, x, y);
    }
    default: { /* heart */
        float p[60][2];
        for (int k = 0; k < 60; k++) {
            float t = 2 * pi * (float)k / 60, s = sinf(t);
            p[k][0] = 16 * s * s * s / 15.5f;
            p[k][1] = -(13 * cosf(t) - 5 * cosf(2 * t) - 2 * cosf(3 * t) - cosf(4 * t)) / 15.5f - 0.1f;
        }
        return in_polygon((const float(*)[2])p, 60, x, y);
    }
    }
}

#define GRID 280
#define REACH 1.4f

static struct {
    uint8_t in[GRID][GRID];
    float area, x, y; /* of unit size */
} outlines[SHAPE_COUNT];

static void make_outlines(void) {
    if (outlines[0].area > 0) return;
    const float step = 2 * REACH / GRID;
    for (int s = SHAPE_COUNT - 1; s >= 0; s--) {
        float n = 0, sx = 0, sy = 0;
        for (int i = 0; i < GRID; i++)
            for (int k = 0; k < GRID; k++) {
                float y = ((float)i + 0.5f) * step - REACH, x = ((float)k + 0.5f) * step - REACH;
                if (!(outlines[s].in[i][k] = inside(s, x, y))) continue;
                n++;
                sx += x;
                sy += y;
            }
        outlines[s].x = sx / n;
        outlines[s].y = sy / n;
        outlines[s].area = n * step * step;
    }
}

/* Intersection over union of the mask and an outline of this centre and radius. */
static float cover(const uint8_t *mask, int area, int shape, float cx, float cy, float r) {
    int both = 0, own = 0;
    int m = (int)(r * REACH) + 1, x0 = (int)cx - m, y0 = (int)cy - m;
    for (int y = y0; y <= y0 + 2 * m; y++)
        for (int x = x0; x <= x0 + 2 * m; x++) {
            int k = (int)floorf((((float)x + 0.5f - cx) / r + REACH) * (GRID / (2 * REACH)));
            int i = (int)floorf((((float)y + 0.5f - cy) / r + REACH) * (GRID / (2 * REACH)));
            if (i < 0 || k < 0 || i >= GRID || k >= GRID || !outlines[shape].in[i][k]) continue;
            own++;
            if (x >= 0 && y >= 0 && x < N && y < N) both += mask[y * N + x];
        }
    return (float)both / (float)(own + area - both);
}

/* The best cover near the place that centre of mass and area suggest. */
static float fit(const uint8_t *mask, int area, float mx, float my, int shape, float *cx, float *cy) {
    float r0 = sqrtf((float)area / outlines[shape].area), best = 0;
    for (int k = -2; k <= 2; k++) {
        float r = r0 * (1 + 0.05f * (float)k);
        for (int dy = -2; dy <= 2; dy++)
            for (int dx = -2; dx <= 2; dx++) {
                float x = mx - outlines[shape].x * r0 + (float)dx,
                      y = my - outlines[shape].y * r0 + (float)dy;
                float c = cover(mask, area, shape, x, y, r);
                if (c > best) best = c, *cx = x, *cy = y;
            }
    }
    return best;
}

void measure_object(const uint8_t *rgb, int background, const struct measure_object *o,
                    struct measure_result *out) {
    static uint8_t colours[PIXELS], mask[PIXELS];
    make_outlines();
    *out = (struct measure_result){.seen = -1};
    for (int i = 0; i < PIXELS; i++) {
        colours[i] = pixel_colour(rgb + 3 * i, background);
        mask[i] = colours[i] == o->colour;
    }
    open_mask(mask);
    int area = out->area = largest_patch(mask);
    if ((float)area < 0.4f * outlines[o->shape].area * o->radius * o->radius) return;

    float mx = 0, my = 0;
    for (int i = 0; i < PIXELS; i++)
        if (mask[i]) mx += (float)(i % N) + 0.5f, my += (float)(i / N) + 0.5f;
    mx /= (float)area;
    my /= (float)area;
    /* no other bright colour may share the place */
    int own = 0, other = 0;
    for (int i = 0; i < PIXELS; i++) {
        float dx = (float)(i % N) + 0.5f - mx, dy = (float)(i / N) + 0.5f - my;
        if (dx * dx + dy * dy > 1.1f * o->radius * o->radius) continue;
        own += mask[i];
        other += colours[i] < COLOUR_WHITE && colours[i] != o->colour &&
                 !(background == BACKGROUND_GRASS && colours[i] == COLOUR_GREEN);
    }
    out->colour = other * 3 < own * 2;

    out->x = mx;
    out->y = my;
    for (int s = 0; s < SHAPE_COUNT; s++) {
        float x = mx, y = my, f = fit(mask, area, mx, my, s, &x, &y);
        if (f <= out->fit) continue;
        out->fit = f;
        out->seen = s;
        out->x = x;
        out->y = y;
    }
    out->shape = out->seen == o->shape && out->fit >= 0.6f;
    out->place = fabsf(out->x - o->x) <= 18 && fabsf(out->y - o->y) <= 18;
}

/* ---- backgrounds ---- */

bool measure_background(const uint8_t *rgb, int background) {
    /* mean of the topmost and the lowest rows, and how much the brightness varies along them */
    static const struct {
        float top[3], low[3];
    } expected[BACKGROUND_COUNT] = {
        [BACKGROUND_GREY] = {{150, 150, 150}, {132, 132, 132}},
        [BACKGROUND_WHITE] = {{239, 239, 241}, {231, 231, 233}},
        [BACKGROUND_DARK] = {{58, 58, 58}, {46, 47, 52}},
        [BACKGROUND_CREAM] = {{230, 216, 184}, {222, 206, 172}},
        [BACKGROUND_STRIPES] = {{161, 158, 168}, {161, 158, 168}},
        [BACKGROUND_CHECKERED] = {{172, 170, 165}, {172, 170, 165}},
        [BACKGROUND_NIGHT] = {{20, 24, 60}, {38, 40, 86}},
        [BACKGROUND_SKY] = {{126, 179, 233}, {204, 226, 244}},
        [BACKGROUND_SUNSET] = {{92, 70, 124}, {238, 185, 136}},
        [BACKGROUND_GRASS] = {{186, 212, 232}, {86, 138, 68}},
    };
    if (background == BACKGROUND_ANY) return true;
    float mean[2][3] = {{0}}, vary = 0;
    const int rows = 6;
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < N; x++)
            for (int c = 0; c < 3; c++) {
                mean[0][c] += (float)rgb[(y * N + x) * 3 + c] / (float)(rows * N);
                mean[1][c] += (float)rgb[((N - 1 - y) * N + x) * 3 + c] / (float)(rows * N);
            }
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < N; x++) {
            float d = (float)rgb[(y * N + x) * 3 + 1] - mean[0][1];
            vary += d * d / (float)(rows * N);
        }
    float away = 0;
    for (int c = 0; c < 3; c++) {
        away = fmaxf(away, fabsf(mean[0][c] - expected[background].top[c]));
        away = fmaxf(away, fabsf(mean[1][c] - expected[background].low[c]));
    }
    bool pattern = background == BACKGROUND_STRIPES || background == BACKGROUND_CHECKERED;
    return away < 20 && (!pattern || vary > 40);
}

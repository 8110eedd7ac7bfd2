/* See top_screen.h. */
#include "cli/print/top_screen.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/talk/batch.h"
#include "cli/text.h"

/* ---- order and selection ---- */

static int compare_u64(uint64_t a, uint64_t b) {
    return a < b ? -1 : a > b;
}

static int by_age(const struct kn_batch_status *x, const struct kn_batch_status *y) {
    return -compare_u64(x->created_wall_ms, y->created_wall_ms); /* the newest first */
}

static int compare_batches(const void *px, const void *py, void *ctx) {
    const struct kn_batch_status *x = px, *y = py;
    enum top_batch_sort sort = *(const enum top_batch_sort *)ctx;
    int c = 0;
    if (sort == TOP_BY_LEFT) /* what ends first; then what nobody can tell; then what has ended */
        c = compare_u64(batch_is_over(x) ? UINT64_MAX
                        : x->eta_ms < 0  ? UINT64_MAX - 1
                                         : (uint64_t)x->eta_ms,
                        batch_is_over(y) ? UINT64_MAX
                        : y->eta_ms < 0  ? UINT64_MAX - 1
                                         : (uint64_t)y->eta_ms);
    else if (sort == TOP_BY_NAME)
        c = strcmp(x->name, y->name);
    else
        c = batch_is_over(x) - batch_is_over(y);
    if (c == 0) c = by_age(x, y);
    return c ? c : memcmp(x->batch, y->batch, sizeof(kn_id));
}

static int compare_workers(const void *px, const void *py, void *ctx) {
    const struct kn_worker_status *x = px, *y = py;
    enum top_worker_sort sort = *(const enum top_worker_sort *)ctx;
    if (sort == TOP_BY_SPEED && x->images_per_s != y->images_per_s)
        return x->images_per_s > y->images_per_s ? -1 : 1;
    if (sort == TOP_BY_SEEN && x->last_seen_ms != y->last_seen_ms)
        return x->last_seen_ms > y->last_seen_ms ? -1 : 1;
    return strverscmp(x->worker, y->worker);
}

static size_t batch_place(const struct top *t) {
    for (size_t i = 0; t->batches && t->has_batch && i < t->batches->count; i++)
        if (memcmp(t->batches->v[i].batch, t->batch, sizeof(kn_id)) == 0) return i;
    return SIZE_MAX;
}

static size_t worker_place(const struct top *t) {
    for (size_t i = 0; t->workers && i < t->workers->count; i++)
        if (strcmp(t->workers->v[i].worker, t->worker) == 0) return i;
    return SIZE_MAX;
}

const struct kn_batch_status *top_selected_batch(const struct top *t) {
    size_t i = batch_place(t);
    return i == SIZE_MAX ? NULL : &t->batches->v[i];
}

const struct kn_worker_status *top_selected_worker(const struct top *t) {
    size_t i = worker_place(t);
    return i == SIZE_MAX ? NULL : &t->workers->v[i];
}

static void select_batch(struct top *t, size_t i) {
    t->has_batch = true;
    memcpy(t->batch, t->batches->v[i].batch, sizeof(kn_id));
}

static void select_worker(struct top *t, size_t i) {
    snprintf(t->worker, sizeof t->worker, "%s", t->workers->v[i].worker);
}

void top_arrange(struct top *t) {
    if (t->batches && t->batches->count > 0) {
        qsort_r(t->batches->v, t->batches->count, sizeof *t->batches->v, compare_batches, &t->batch_sort);
        if (batch_place(t) == SIZE_MAX) select_batch(t, 0);
    }
    if (t->workers && t->workers->count > 0) {
        qsort_r(t->workers->v, t->workers->count, sizeof *t->workers->v, compare_workers, &t->worker_sort);
        if (worker_place(t) == SIZE_MAX) select_worker(t, 0);
    }
}

void top_move(struct top *t, int by) {
    bool workers = t->table == TOP_WORKERS;
    size_t count = workers ? (t->workers ? t->workers->count : 0) : (t->batches ? t->batches->count : 0);
    if (count == 0) return;
    size_t at = workers ? worker_place(t) : batch_place(t);
    int64_t to = (at == SIZE_MAX ? 0 : (int64_t)at) + by;
    if (to < 0) to = 0;
    if (to >= (int64_t)count) to = (int64_t)count - 1;
    if (workers)
        select_worker(t, (size_t)to);
    else
        select_batch(t, (size_t)to);
}

/* ---- rows ---- */

struct row {
    char *text;
    size_t len;
    int columns, width;
};

static void mark(struct row *r, enum top_mark m) {
    if (r->len + 2 < TOP_ROW_MAX) {
        r->text[r->len++] = (char)m;
        r->text[r->len] = '\0';
    }
}

/* A cell of so many columns (negative: to the right) and a blank; a row never gets wider than the screen. */
static void cell(struct row *r, int columns, const char *text) {
    bool right = columns < 0;
    int want = right ? -columns : columns;
    if (want > r->width - r->columns) want = r->width - r->columns;
    if (want <= 0) return;
    char fitted[TOP_ROW_MAX];
    text_fit(text, want, right ? 0 : 1, fitted, sizeof fitted);
    int used = 0;
    for (const char *p = fitted; *p; p++) used += (*p & 0xc0) != 0x80;
    int blanks = right && used < want ? want - used : 0;
    int n = snprintf(r->text + r->len, TOP_ROW_MAX - r->len, "%*s%s", blanks, "", fitted);
    r->len += (size_t)n < TOP_ROW_MAX - r->len ? (size_t)n : TOP_ROW_MAX - r->len - 1;
    r->columns += want;
    if (r->columns < r->width && r->len + 1 < TOP_ROW_MAX) {
        r->text[r->len++] = ' ';
        r->text[r->len] = '\0';
        r->columns++;
    }
}

/* As wide as it is. */
KN_PRINTF(2, 3) static void put(struct row *r, const char *fmt, ...) {
    char text[KN_WAIT_TEXT_MAX + 64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    int columns = 0;
    for (const char *p = text; *p; p++) columns += (*p & 0xc0) != 0x80;
    if (columns > 0) cell(r, columns, text);
}

static struct row row_begin(char *text, int width) {
    text[0] = '\0';
    return (struct row){.text = text, .width = width};
}

static void bar(struct row *r, int columns, double part) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    char text[256] = "";
    if (part < 0) part = 0;
    if (part > 1) part = 1;
    int full = (int)(part * columns * 8 + 0.5), n = 0, used = 0;
    for (; used < full / 8; used++) n += snprintf(text + n, sizeof text - (size_t)n, "█");
    if (full % 8) {
        n += snprintf(text + n, sizeof text - (size_t)n, "%s", eighths[full % 8]);
        used++;
    }
    for (; used < columns; used++) n += snprintf(text + n, sizeof text - (size_t)n, "·");
    cell(r, columns, text);
}

/* 1234567 -> "1,234,567" */
static const char *number(uint64_t v, char out[32]) {
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%llu", (unsigned long long)v), k = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0) out[k++] = ',';
        out[k++] = digits[i];
    }
    out[k] = '\0';
    return out;
}

static const char *rate(double v, char out[32]) {
    snprintf(out, 32, v < 9.995 ? "%.2f" : v < 99.95 ? "%.1f" : "%.0f", v < 0 ? 0 : v);
    return out;
}

/* ---- the parts of the screen ---- */

static void draw_health(const struct top *t, struct row *r) {
    mark(r, TOP_BOLD);
    put(r, "kiln top");
    mark(r, TOP_PLAIN);
    char farm[200];
    text_fit(t->farm, r->width < 100 ? 24 : 60, 0, farm, sizeof farm);
    put(r, " %s ", farm);
    if (t->silent_ms > 0 || !t->batches) {
        mark(r, TOP_BAD);
        put(r, "waiting for the coordinator");
        if (t->silent_ms >= 1000) put(r, "(%d s)", t->silent_ms / 1000);
        if (t->silent_ms >= 1000 && t->trouble[0]) put(r, "%s", t->trouble);
    } else {
        mark(r, TOP_GOOD);
        put(r, "coordinator answers in %d ms", t->answer_ms);
        size_t lost = 0;
        for (size_t i = 0; t->workers && i < t->workers->count; i++)
            lost += t->workers->v[i].state == KN_WORKER_LOST;
        if (lost > 0) {
            mark(r, TOP_BAD);
            put(r, "· %zu worker%s lost", lost, lost == 1 ? "" : "s");
        } else if (t->trouble[0]) {
            mark(r, TOP_BAD);
            put(r, "· %s", t->trouble);
        } else if (t->workers && t->workers->count == 0) {
            mark(r, TOP_WARN);
            put(r, "· no workers");
        }
    }
    mark(r, TOP_PLAIN);
}

/* The counts of images in one row; their speed behind it, or in `second` where the row is too short. */
static void draw_sums(const struct top *t, struct row *r, struct row *second) {
    uint64_t queued = 0, running = 0, done = 0, failed = 0;
    double mean = 0;
    int64_t left = 0;
    bool active = false;
    char text[32];
    for (size_t i = 0; t->batches && i < t->batches->count; i++) {
        const struct kn_batch_status *b = &t->batches->v[i];
        queued += b->queued;
        running += b->running;
        done += b->done;
        failed += b->failed;
        if (batch_is_over(b) || b->state != KN_BATCH_ACTIVE) continue;
        active = true;
        mean += (double)b->images_per_s_mean;
        if (b->eta_ms < 0)
            left = -1;
        else if (left >= 0 && b->eta_ms > left)
            left = b->eta_ms;
    }
    put(r, "queued");
    mark(r, TOP_BOLD);
    put(r, "%s ", number(queued, text));
    mark(r, TOP_PLAIN);
    put(r, "running");
    mark(r, running ? TOP_BUSY : TOP_BOLD);
    put(r, "%s ", number(running, text));
    mark(r, TOP_PLAIN);
    put(r, "done");
    mark(r, TOP_GOOD);
    put(r, "%s ", number(done, text));
    mark(r, TOP_PLAIN);
    put(r, "failed");
    mark(r, failed ? TOP_BAD : TOP_BOLD);
    put(r, second ? "%s" : "%s  ", number(failed, text));
    if (second) {
        mark(r, TOP_PLAIN);
        r = second;
    }
    mark(r, TOP_BOLD);
    put(r, "%s", rate(t->workers ? (double)t->workers->images_per_s : 0, text));
    mark(r, TOP_PLAIN);
    put(r, "images/s now");
    if (active) {
        mark(r, TOP_BOLD);
        put(r, " %s", rate(mean, text));
        mark(r, TOP_PLAIN);
        put(r, "over the batch");
        mark(r, TOP_BOLD);
        put(r, " %s", text_duration(left, text));
        mark(r, TOP_PLAIN);
        put(r, "left");
    }
}

static void title(struct row *r, const char *name, size_t count, const char *sort, bool chosen, size_t from,
                  size_t seen) {
    mark(r, chosen ? TOP_BOLD : TOP_DIM);
    put(r, "%s", name);
    if (seen < count) put(r, "%zu to %zu of %zu", from + 1, from + seen, count);
    if (sort) put(r, "by %s", sort);
    mark(r, TOP_PLAIN);
}

/* Narrow screens leave out what the other columns tell, too. */
static bool is_wide(const struct row *r) {
    return r->width >= 110;
}

static void batch_head(struct row *r) {
    mark(r, TOP_DIM);
    cell(r, 8, "ID");
    cell(r, is_wide(r) ? 28 : 13, "NAME");
    cell(r, 9, "STATE");
    cell(r, is_wide(r) ? 26 : 14, "PROGRESS");
    cell(r, is_wide(r) ? -15 : -13, "DONE / TOTAL");
    cell(r, -6, "FAILED");
    if (is_wide(r)) cell(r, -8, "IMAGES/S");
    cell(r, -11, "LEFT");
}

static void batch_row(struct row *r, const struct kn_batch_status *b, bool selected) {
    char text[96], a[32], c[32];
    bool over = batch_is_over(b);
    uint32_t ended = b->done + b->failed + b->cancelled;
    double part = b->total ? (double)ended / b->total : 1;
    if (!over && (double)b->progress > part) part = (double)b->progress;
    if (selected) mark(r, TOP_SELECTED);
    kn_hex(b->batch, 4, text);
    cell(r, 8, text);
    cell(r, is_wide(r) ? 28 : 13, b->name[0] ? b->name : "-");
    if (!selected)
        mark(r, b->state == KN_BATCH_ACTIVE   ? TOP_BUSY
                : b->state == KN_BATCH_PAUSED ? TOP_WARN
                : b->state == KN_BATCH_DONE   ? TOP_GOOD
                                              : TOP_DIM);
    char state[32];
    cell(r, 9, batch_state_text(b, state));
    bar(r, is_wide(r) ? 20 : 8, part);
    if (!selected) mark(r, TOP_PLAIN);
    snprintf(text, sizeof text, "%.0f %%", part >= 1 ? 100 : part * 100 > 99 ? 99 : part * 100);
    cell(r, -5, text);
    snprintf(text, sizeof text, "%s / %s", number(b->done, a), number(b->total, c));
    cell(r, is_wide(r) ? -15 : -13, text);
    if (b->failed && !selected) mark(r, TOP_BAD);
    cell(r, -6, number(b->failed, a));
    if (b->failed && !selected) mark(r, TOP_PLAIN);
    if (is_wide(r) && !over && b->images_per_s <= 0 && b->steps_per_s > 0)
        snprintf(text, sizeof text, "%.1fst/s", (double)b->steps_per_s);
    else
        rate((double)(over ? b->images_per_s_mean : b->images_per_s), text);
    if (is_wide(r)) cell(r, -8, text);
    if (over)
        cell(r, -11, "-");
    else
        cell(r, -11,
             b->state == KN_BATCH_PAUSED ? "paused"
             : b->wait                   ? "waits"
             : b->loading[0]             ? "loading"
                                         : text_duration(b->eta_ms, text));
}

/* Why the batch that is selected (or, on paper, the first that waits) does not go on. */
static void draw_wait(const struct top *t, struct row *r, bool live) {
    const struct kn_batch_status *b = live ? top_selected_batch(t) : NULL;
    for (size_t i = 0; !live && t->batches && i < t->batches->count && !b; i++)
        if (t->batches->v[i].wait) b = &t->batches->v[i];
    if (!b || !b->wait || batch_is_over(b)) return;
    char id[16], reason[32];
    kn_hex(b->batch, 4, id);
    mark(r, TOP_WARN);
    put(r, "%s waits: %s", id, b->wait_text[0] ? b->wait_text : batch_wait_text(b, reason));
    mark(r, TOP_PLAIN);
}

static void worker_head(struct row *r) {
    mark(r, TOP_DIM);
    cell(r, is_wide(r) ? 18 : 13, "WORKER");
    cell(r, 8, "STATE");
    cell(r, 8, "BATCH");
    if (is_wide(r)) cell(r, 12, "MODEL");
    cell(r, is_wide(r) ? 17 : 13, "STEP");
    if (is_wide(r)) cell(r, -6, "IMAGES");
    cell(r, -8, "IMAGES/S");
    cell(r, is_wide(r) ? -8 : -6, "DONE");
    cell(r, -6, "FAILED");
    cell(r, -6, "SEEN");
    cell(r, r->width, "DEVICE");
}

static void worker_row(struct row *r, const struct kn_worker_status *w, bool selected) {
    char text[512];
    if (selected) mark(r, TOP_SELECTED);
    cell(r, is_wide(r) ? 18 : 13, w->worker);
    if (!selected)
        mark(r, w->state == KN_WORKER_BUSY       ? TOP_BUSY
                : w->state == KN_WORKER_IDLE     ? TOP_GOOD
                : w->state == KN_WORKER_DRAINING ? TOP_WARN
                                                 : TOP_BAD);
    char state[32];
    cell(r, 8, worker_is_held(w) ? "held" : worker_state_text(w, state));
    if (!selected) mark(r, TOP_PLAIN);
    bool loads = w->loading[0] && w->state != KN_WORKER_LOST;
    bool renders = !loads && w->has_batch && w->steps > 0 && w->state != KN_WORKER_LOST;
    kn_hex(w->batch, 4, text);
    cell(r, 8, w->has_batch ? text : "-");
    if (is_wide(r)) cell(r, 12, loads ? w->loading : w->model[0] ? w->model : "-");
    if (renders) {
        if (!selected) mark(r, TOP_BUSY);
        bar(r, is_wide(r) ? 8 : 5, (double)w->step / w->steps);
        if (!selected) mark(r, TOP_PLAIN);
        snprintf(text, sizeof text, "%u/%u", w->step, w->steps);
        cell(r, is_wide(r) ? 8 : 7, text);
    } else if (loads) {
        snprintf(text, sizeof text, "loading %.1f GB", (double)w->loading_bytes / 1e9);
        cell(r, is_wide(r) ? 17 : 13, text);
    } else {
        cell(r, is_wide(r) ? 17 : 13, "-");
    }
    snprintf(text, sizeof text, "%u", w->tasks);
    if (is_wide(r)) cell(r, -6, renders ? text : "-");
    cell(r, -8, rate((double)w->images_per_s, text));
    cell(r, is_wide(r) ? -8 : -6, number(w->done, text));
    cell(r, -6, number(w->failed, text));
    snprintf(text, sizeof text, "%.1f s", w->last_seen_ms / 1000.0);
    if (w->last_seen_ms > 5000 && !selected) mark(r, TOP_WARN);
    cell(r, -6, w->last_seen_ms > 99000 ? text_duration(w->last_seen_ms, text) : text);
    if (w->last_seen_ms > 5000 && !selected) mark(r, TOP_PLAIN);
    char device[64];
    worker_readings(w, device);
    snprintf(text, sizeof text, "%s%s%s%s%s", device, device[0] ? "  " : "", w->host,
             w->host[0] && w->device[0] ? ": " : "", w->device);
    cell(r, r->width, text);
}

/* So that row `at` of `count` is among the `seen` from *top on. */
static void scroll(size_t *top, size_t at, size_t count, size_t seen) {
    if (at != SIZE_MAX && at < *top) *top = at;
    if (at != SIZE_MAX && at >= *top + seen) *top = at - seen + 1;
    if (*top + seen > count) *top = count > seen ? count - seen : 0;
}

size_t top_draw(struct top *t, int width, int height, char (*rows)[TOP_ROW_MAX]) {
    static const char *const batch_sorts[] = {"age", "time left", "name"};
    static const char *const worker_sorts[] = {"name", "images/s", "last seen"};
    size_t batches = t->batches ? t->batches->count : 0, workers = t->workers ? t->workers->count : 0, n = 0;
    size_t batch_rows = batches, worker_rows = workers;
    bool live = height > 0;
    if (!live && batches + workers > TOP_ROWS_MAX - 12) {
        batch_rows = batches < 190 ? batches : 190;
        worker_rows = workers < 190 ? workers : 190;
    }
    if (live) { /* two lines above, a blank, title and head, a blank, title and head, the last line */
        size_t room = height > 10 ? (size_t)height - 9 : 1;
        size_t half = room / 2;
        if (batches + workers > room) {
            worker_rows = workers < half ? workers : batches < room - half ? room - batches : half;
            batch_rows = room - worker_rows < batches ? room - worker_rows : batches;
        }
    }
    scroll(&t->batch_top, live ? batch_place(t) : 0, batches, batch_rows);
    scroll(&t->worker_top, live ? worker_place(t) : 0, workers, worker_rows);
    struct row r = row_begin(rows[n++], width);
    draw_health(t, &r);
    r = row_begin(rows[n++], width);
    struct row second = row_begin(rows[n++], width); /* empty where one row is wide enough */
    draw_sums(t, &r, width < 110 ? &second : NULL);
    r = row_begin(rows[n++], width);
    title(&r, "BATCHES", batches, live ? batch_sorts[t->batch_sort] : NULL, live && t->table == TOP_BATCHES,
          t->batch_top, batch_rows);
    r = row_begin(rows[n++], width);
    if (batches > 0)
        batch_head(&r);
    else
        put(&r, t->batches ? "none: kiln submit FILE hands one in" : "");
    for (size_t i = t->batch_top; i < t->batch_top + batch_rows; i++) {
        const struct kn_batch_status *b = &t->batches->v[i];
        r = row_begin(rows[n++], width);
        batch_row(&r, b, live && t->table == TOP_BATCHES && b == top_selected_batch(t));
    }
    r = row_begin(rows[n++], width);
    draw_wait(t, &r, live);
    r = row_begin(rows[n++], width);
    title(&r, "WORKERS", workers, live ? worker_sorts[t->worker_sort] : NULL, live && t->table == TOP_WORKERS,
          t->worker_top, worker_rows);
    r = row_begin(rows[n++], width);
    if (workers > 0)
        worker_head(&r);
    else
        put(&r, t->workers ? "none: kiln-worker --join adds one" : "");
    for (size_t i = t->worker_top; i < t->worker_top + worker_rows; i++) {
        const struct kn_worker_status *w = &t->workers->v[i];
        r = row_begin(rows[n++], width);
        worker_row(&r, w, live && t->table == TOP_WORKERS && w == top_selected_worker(t));
    }
    if (!live) return n;
    while (n + 1 < (size_t)height && n + 1 < TOP_ROWS_MAX) rows[n++][0] = '\0';
    r = row_begin(rows[n++], width);
    if (t->message[0]) {
        mark(&r, TOP_WARN);
        put(&r, "%s", t->message);
    } else {
        mark(&r, TOP_DIM);
        put(&r, "q quit  Tab other table  ↑ ↓ select  s sort  c cancel  p pause, go on  d drain");
    }
    return n;
}

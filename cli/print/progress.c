/* See progress.h. */
#include "cli/print/progress.h"

#include <langinfo.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/talk/client.h"
#include "cli/text.h"

#define DRAW_EVERY_MS 150
#define FIRST_LINE_MS 5000
#define LINE_EVERY_MAX_MS 60000
#define BAR_MAX 30
#define SILENT_SHOWN_MS 3000
#define WAIT_TOLD_MS 2000 /* a worker that is just starting holds nothing up for so long */

static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};

static void bar(double share, int width, bool blocks, char *out, size_t out_max) {
    size_t n = 0;
    int parts = (int)(share * width * 8);
    for (int i = 0; i < width && n + 4 < out_max; i++, parts -= 8) {
        const char *cell = !blocks      ? (parts >= 8 ? "#" : ".")
                           : parts >= 8 ? "█"
                           : parts > 0  ? eighths[parts]
                                        : " ";
        n += (size_t)snprintf(out + n, out_max - n, "%s", cell);
    }
}

void progress_line(const struct progress_state *s, int columns, bool blocks, char *out, size_t out_max) {
    char tail[600], left[CLI_DURATION_MAX], cells[BAR_MAX * 4 + 1] = "";
    size_t ended = s->done + s->failed + s->cancelled, n = 0;
    double share = s->total ? (double)ended / (double)s->total : 1;
    if (s->progress > share && s->progress < 1) share = s->progress;
    n += (size_t)snprintf(tail + n, sizeof tail - n, "%zu/%zu", ended, s->total);
    if (s->images_per_s > 0)
        n += (size_t)snprintf(tail + n, sizeof tail - n, "  %.*f images/s", s->images_per_s < 100 ? 1 : 0,
                              s->images_per_s);
    else if (s->steps_per_s > 0)
        n += (size_t)snprintf(tail + n, sizeof tail - n, "  %.1f steps/s", s->steps_per_s);
    if (s->loading && s->loading[0] && s->images_per_s <= 0 && s->steps_per_s <= 0) {
        char name[100];
        text_fit(s->loading, 24, 0, name, sizeof name);
        n += (size_t)snprintf(tail + n, sizeof tail - n, "  loading %s, %.1f GB", name,
                              (double)s->loading_bytes / 1e9);
    }
    if (s->wait && s->wait[0] && !s->paused && columns > 0) {
        char why[200];
        text_fit(s->wait, columns > 60 ? columns - 40 : 20, 0, why, sizeof why);
        n += (size_t)snprintf(tail + n, sizeof tail - n, "  waits: %s", why);
    }
    if (s->paused)
        n += (size_t)snprintf(tail + n, sizeof tail - n, "  paused");
    else if (s->eta_ms >= 0 && ended < s->total)
        n += (size_t)snprintf(tail + n, sizeof tail - n, "  %s left", text_duration(s->eta_ms, left));
    if (s->failed) n += (size_t)snprintf(tail + n, sizeof tail - n, "  %zu failed", s->failed);
    if (s->cancelled) n += (size_t)snprintf(tail + n, sizeof tail - n, "  %zu cancelled", s->cancelled);
    if (s->silent_ms >= SILENT_SHOWN_MS)
        snprintf(tail + n, sizeof tail - n, "  no answer from the farm for %d s", s->silent_ms / 1000);
    int percent = (int)(share * 100), room = columns - (int)strlen(tail) - 8;
    if (columns == 0 || room < 8) {
        snprintf(out, out_max, "%3d%%  %s", percent, tail);
        return;
    }
    bar(share, room < BAR_MAX ? room : BAR_MAX, blocks, cells, sizeof cells);
    snprintf(out, out_max, "%3d%% %s%s%s %s", percent, blocks ? "▕" : "[", cells, blocks ? "▏" : "]", tail);
}

static int columns_now(void) {
    struct winsize ws;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0 ? ws.ws_col : 80;
}

static void draw(struct progress *p) {
    char line[512];
    int columns = columns_now();
    progress_line(&p->now, columns - 1, p->blocks, line, sizeof line);
    if ((int)strlen(line) > columns - 1 && !p->blocks) line[columns > 1 ? columns - 1 : 0] = '\0';
    fprintf(stderr, "\r%s\033[K", line);
    p->drawn = true;
    p->drawn_ms = kn_clock_ms();
}

void progress_begin(struct progress *p, bool quiet) {
    *p = (struct progress){
        .interval_ms = FIRST_LINE_MS, .start_ms = kn_clock_ms(), .now = {.eta_ms = -1}, .quiet = quiet};
    p->terminal = isatty(STDERR_FILENO);
    p->next_line_ms = p->start_ms + FIRST_LINE_MS;
    if (p->terminal) {
        setlocale(LC_CTYPE, "");
        p->blocks = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    }
}

/* Keeps what the state points to, and since when something holds it up. */
static void keep_texts(struct progress *p, uint64_t now) {
    if (p->now.wait != p->wait) snprintf(p->wait, sizeof p->wait, "%s", p->now.wait ? p->now.wait : "");
    if (p->now.loading != p->loading)
        snprintf(p->loading, sizeof p->loading, "%s", p->now.loading ? p->now.loading : "");
    p->now.wait = p->wait;
    p->now.loading = p->loading;
    if (!p->wait[0]) {
        p->wait_ms = 0;
        p->wait_told = false;
    } else if (!p->wait_ms) {
        p->wait_ms = now;
    }
    if (!p->now.silent_ms) p->silence_told = false;
}

/* Says once what holds everything up; on a terminal too, where the bar has no room for what to do. */
static void tell_what_holds(struct progress *p, uint64_t now) {
    if (p->wait_ms && !p->wait_told && now - p->wait_ms >= WAIT_TOLD_MS) {
        p->wait_told = true;
        progress_note(p, "waiting: %s", p->wait);
    }
    if (p->now.silent_ms >= SILENT_SHOWN_MS && !p->silence_told) {
        p->silence_told = true;
        progress_note(p, "no answer from the farm for %d s%s%s", p->now.silent_ms / 1000,
                      client_silence()[0] ? ": " : "", client_silence());
    }
    if (p->loading[0] && !p->loading_told && !p->terminal && !p->quiet && now - p->start_ms >= WAIT_TOLD_MS) {
        p->loading_told = true;
        progress_note(p, "loading %s, %.1f GB", p->loading, (double)p->now.loading_bytes / 1e9);
    }
}

void progress_update(struct progress *p, const struct progress_state *s) {
    uint64_t now = kn_clock_ms();
    p->now = *s;
    keep_texts(p, now);
    tell_what_holds(p, now);
    if (p->quiet) return;
    if (p->terminal) {
        if (now - p->drawn_ms >= DRAW_EVERY_MS) draw(p);
    } else if (now >= p->next_line_ms) {
        char line[512];
        progress_line(s, 0, false, line, sizeof line);
        fprintf(stderr, "kiln: %s\n", line);
        p->next_line_ms = now + p->interval_ms;
        if (p->interval_ms < LINE_EVERY_MAX_MS) p->interval_ms *= 2;
        if (p->interval_ms > LINE_EVERY_MAX_MS) p->interval_ms = LINE_EVERY_MAX_MS;
    }
}

void progress_silent(struct progress *p, int silent_ms) {
    struct progress_state s = p->now;
    if (silent_ms < SILENT_SHOWN_MS) return;
    s.silent_ms = silent_ms;
    s.images_per_s = s.steps_per_s = 0; /* what it does now is not known */
    s.eta_ms = -1;
    progress_update(p, &s);
}

void progress_note(struct progress *p, const char *fmt, ...) {
    va_list ap;
    if (p->drawn) fputs("\r\033[K", stderr);
    fputs("kiln: ", stderr);
    va_start(ap, fmt);
    text_vprint(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    if (p->drawn) draw(p);
}

void progress_end(struct progress *p) {
    if (p->drawn) fputs("\r\033[K", stderr);
    p->drawn = false;
}

/* The progress of a batch, on standard error: one line that is drawn over and over on a terminal; without
 * one, plain lines, after 5 seconds and then at doubling intervals of a minute at most. Whatever holds everything up
 * (a model that no worker has, a store that hangs, a farm that does not answer) is told once in a line of its
 * own, after two seconds. Nothing of it goes to standard output. */
#ifndef KILN_CLI_PRINT_PROGRESS_H
#define KILN_CLI_PRINT_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/limits.h"

struct progress_state {
    size_t total, done, failed, cancelled, running;
    bool paused;
    double images_per_s, steps_per_s;
    double
        progress; /* 0 to 1, with the steps of what runs; below the share of ended images it does not count */
    int64_t eta_ms;      /* -1: unknown */
    int silent_ms;       /* the farm has not answered for so long */
    const char *loading; /* the model that is being loaded, borrowed; NULL or "": none */
    uint64_t loading_bytes;
    const char *wait; /* why nothing of it runs, borrowed; NULL or "": something does */
};

struct progress {
    bool terminal, blocks, drawn, quiet;
    uint64_t start_ms, drawn_ms, next_line_ms;
    unsigned interval_ms;
    struct progress_state now;
    char wait[KN_WAIT_TEXT_MAX], loading[KN_NAME_MAX + 1]; /* what `now` points to */
    uint64_t wait_ms;                                      /* since when that holds it up; 0: nothing does */
    bool wait_told;                                        /* in a line of its own */
    bool silence_told, loading_told;
};

/* quiet: nothing is shown but notes. */
void progress_begin(struct progress *p, bool quiet);
void progress_update(struct progress *p, const struct progress_state *s);
/* The farm is silent: shows the last state again, with that. */
void progress_silent(struct progress *p, int silent_ms);
/* A line of its own, above the bar. */
void progress_note(struct progress *p, const char *fmt, ...) KN_PRINTF(2, 3);
/* Takes the bar away. */
void progress_end(struct progress *p);
/* The state as one line of at most `columns` (0: a plain line for a log). */
void progress_line(const struct progress_state *s, int columns, bool blocks, char *out, size_t out_max);

#endif

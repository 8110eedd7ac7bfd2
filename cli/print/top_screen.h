/* kiln top's screen as a pure function: what the farm says and what the person has chosen -> rows of text
 * with marks for colours. top.c paints them with ncurses; without a terminal they are printed plain. */
#ifndef KILN_CLI_PRINT_TOP_SCREEN_H
#define KILN_CLI_PRINT_TOP_SCREEN_H

#include <stdbool.h>

#include "proto/codec.h"

/* A row's marks: one byte each, of no width; what follows has that look. Text of the farm never holds them.
 */
enum top_mark {
    TOP_PLAIN = 1,
    TOP_BOLD,
    TOP_DIM,
    TOP_GOOD,
    TOP_BUSY,
    TOP_WARN,
    TOP_BAD,
    TOP_SELECTED, /* the whole row; at its beginning */
    TOP_MARK_END,
};

#define TOP_ROW_MAX 1600
#define TOP_ROWS_MAX 400

enum top_table { TOP_BATCHES, TOP_WORKERS };
enum top_batch_sort { TOP_BY_AGE, TOP_BY_LEFT, TOP_BY_NAME, TOP_BATCH_SORTS };
enum top_worker_sort { TOP_BY_WORKER, TOP_BY_SPEED, TOP_BY_SEEN, TOP_WORKER_SORTS };

struct top {
    const char *farm; /* where it is */
    /* borrowed from the last answers; NULL: none yet */
    struct kn_batch_list *batches; /* sorted in place */
    struct kn_worker_list *workers;
    int answer_ms;                  /* how long the last answer took */
    int silent_ms;                  /* since when the coordinator says nothing; 0: it answers */
    char trouble[KN_WAIT_TEXT_MAX]; /* what keeps the whole farm from going on; "": nothing */
    /* the person's choice */
    enum top_table table;
    enum top_batch_sort batch_sort;
    enum top_worker_sort worker_sort;
    bool has_batch; /* what is selected is kept by id, not by place */
    kn_id batch;
    char worker[KN_NAME_MAX + 1];
    size_t batch_top, worker_top; /* the first rows that are seen */
    char message[256];            /* the last line, instead of the keys */
};

/* Sorts the lists and makes sure that something of them is selected. */
void top_arrange(struct top *t);
/* Moves the selection in the chosen table. */
void top_move(struct top *t, int by);
/* NULL: none. */
const struct kn_batch_status *top_selected_batch(const struct top *t);
const struct kn_worker_status *top_selected_worker(const struct top *t);
/* Draws width × height; height 0: as many rows as there are, nothing selected (not a live screen). Returns
 * the number of rows. */
size_t top_draw(struct top *t, int width, int height, char (*rows)[TOP_ROW_MAX]);

#endif

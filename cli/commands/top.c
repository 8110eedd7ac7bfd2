/* kiln top: the live screen. One thread: asks the farm once a second, paints what top_screen.c draws, reads
 * keys. While the coordinator is away the call waits inside client.c, which calls back twice a second, so
 * that the screen and its keys live on. The terminal is given back however the program ends: on the way out,
 * by signal, and when it crashes. */
#include <curses.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/commands/commands.h"
#include "cli/print/print.h"
#include "cli/print/top_screen.h"
#include "cli/talk/batch.h"
#include "cli/text.h"

#define ASK_EVERY_MS 1000
#define KEY_WAIT_MS 100
#define MESSAGE_MS 6000

struct live {
    struct top t;
    struct client *c;
    struct kn_msg *batches, *workers; /* own what t borrows */
    uint64_t asked_ms, message_ms;
    bool quit;
    /* what waits for a y */
    char question[128];
    enum kn_batch_verb verb; /* 0: drain */
    kn_id batch;
    char worker[KN_NAME_MAX + 1];
    char rows[TOP_ROWS_MAX][TOP_ROW_MAX];
};

/* ---- the terminal ---- */

static struct termios terminal_before;
static bool terminal_taken;

/* Async-signal-safe: what endwin() would send on common terminals. */
static void on_crash(int sig) {
    static const char back[] = "\033[0m\033[?25h\033[?1l\033>\033[?1049l\r\n";
    if (terminal_taken) {
        ssize_t n = write(STDOUT_FILENO, back, sizeof back - 1);
        (void)n;
        tcsetattr(STDOUT_FILENO, TCSANOW, &terminal_before);
    }
    raise(sig); /* SA_RESETHAND: for good now */
}

static void on_end(int sig) {
    (void)sig;
    cli_interrupted = 1;
}

static int take_terminal(void) {
    struct sigaction end = {.sa_handler = on_end},
                     crash = {.sa_handler = on_crash, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&end.sa_mask);
    sigemptyset(&crash.sa_mask);
    tcgetattr(STDOUT_FILENO, &terminal_before);
    SCREEN *screen = newterm(NULL, stdout, stdin);
    if (!screen) return -1;
    set_term(screen);
    terminal_taken = true;
    sigaction(SIGINT, &end, NULL); /* a screen ends cleanly, however often it is told */
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGHUP, &end, NULL);
    sigaction(SIGSEGV, &crash, NULL);
    sigaction(SIGBUS, &crash, NULL);
    sigaction(SIGABRT, &crash, NULL);
    sigaction(SIGFPE, &crash, NULL);
    sigaction(SIGQUIT, &crash, NULL);
    cbreak();
    noecho();
    nonl();
    keypad(stdscr, TRUE);
    curs_set(0);
    set_escdelay(50);
    if (has_colors()) {
        start_color();
        use_default_colors();
        init_pair(TOP_GOOD, COLOR_GREEN, -1);
        init_pair(TOP_BUSY, COLOR_CYAN, -1);
        init_pair(TOP_WARN, COLOR_YELLOW, -1);
        init_pair(TOP_BAD, COLOR_RED, -1);
    }
    return 0;
}

static void give_back_terminal(void) {
    if (!terminal_taken) return;
    endwin();
    terminal_taken = false;
}

static attr_t look(enum top_mark m) {
    switch (m) {
    case TOP_BOLD:
        return A_BOLD;
    case TOP_DIM:
        return A_DIM;
    case TOP_GOOD:
    case TOP_BUSY:
    case TOP_WARN:
        return COLOR_PAIR(m);
    case TOP_BAD:
        return COLOR_PAIR(m) | A_BOLD;
    case TOP_SELECTED:
        return A_REVERSE;
    case TOP_PLAIN:
    case TOP_MARK_END:
        break;
    }
    return A_NORMAL;
}

static void paint_row(int y, const char *row) {
    bool selected = row[0] == TOP_SELECTED;
    move(y, 0);
    for (const char *p = row; *p;) {
        if (*p<TOP_MARK_END && * p> 0) {
            enum top_mark m = (enum top_mark)p[0];
            attrset((int)look(m));
            p++;
            continue;
        }
        size_t n = 0;
        while (p[n] && !(p[n] > 0 && p[n] < TOP_MARK_END)) n++;
        addnstr(p, (int)n);
        p += n;
    }
    int x = getcurx(stdscr);
    if (selected && getcury(stdscr) == y)
        for (; x < COLS; x++) addch(' ');
    else if (getcury(stdscr) == y && x < COLS)
        clrtoeol();
    attrset(A_NORMAL);
}

static void paint(struct live *l) {
    struct top *t = &l->t;
    if (l->question[0])
        snprintf(t->message, sizeof t->message, "%s   y or n", l->question);
    else if (t->message[0] && kn_clock_ms() - l->message_ms > MESSAGE_MS)
        t->message[0] = '\0';
    erase();
    int height = LINES < TOP_ROWS_MAX ? LINES : TOP_ROWS_MAX;
    size_t n = top_draw(t, COLS, height, l->rows);
    for (size_t i = 0; i < n && (int)i < LINES; i++) paint_row((int)i, l->rows[i]);
    refresh();
}

/* ---- keys ---- */

KN_PRINTF(2, 3) static void say(struct live *l, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(l->t.message, sizeof l->t.message, fmt, ap);
    va_end(ap);
    l->message_ms = kn_clock_ms();
}

/* Does what was asked for; only between calls. */
static void act(struct live *l) {
    struct kn_err err = {0};
    int rc;
    if (l->verb) {
        rc = batch_command(l->c, l->batch, l->verb, &err);
    } else {
        struct kn_msg m = {.type = KN_MSG_WORKER_COMMAND};
        m.u.worker_command.worker = l->worker;
        rc = client_call(l->c, &m, KN_MSG_REPLY, CLIENT_PATIENCE_MS, NULL, &err);
    }
    if (rc == KN_ECANCELED) return;
    if (rc)
        say(l, "%s", err.text);
    else
        say(l, "%s: the farm has it",
            l->verb == KN_VERB_CANCEL   ? "cancel"
            : l->verb == KN_VERB_PAUSE  ? "pause"
            : l->verb == KN_VERB_RESUME ? "go on"
                                        : "drain");
    l->asked_ms = 0; /* look at once */
}

static void ask_batch(struct live *l, enum kn_batch_verb verb) {
    const struct kn_batch_status *b = top_selected_batch(&l->t);
    char hex[16], name[64];
    if (!b) return say(l, "no batch is selected");
    if (batch_is_over(b)) return say(l, "that batch has ended");
    memcpy(l->batch, b->batch, sizeof(kn_id));
    l->verb = verb;
    kn_hex(b->batch, 4, hex);
    text_fit(b->name, 24, 0, name, sizeof name);
    snprintf(l->question, sizeof l->question, "cancel batch %s %s?", hex, name);
}

static void ask_drain(struct live *l) {
    const struct kn_worker_status *w = top_selected_worker(&l->t);
    if (!w) return say(l, "no worker is selected");
    if (w->state == KN_WORKER_LOST) return say(l, "that worker is lost");
    snprintf(l->worker, sizeof l->worker, "%s", w->worker);
    l->verb = 0;
    snprintf(l->question, sizeof l->question, "drain worker %s?", w->worker);
}

/* `waiting`: inside a call; then only what needs no call is done. */
static void on_key(struct live *l, int key, bool waiting) {
    struct top *t = &l->t;
    if (l->question[0]) {
        if (key == KEY_RESIZE || (waiting && key != 'q' && key != 'n')) return;
        l->question[0] = t->message[0] = '\0';
        if (key == 'y' || key == 'Y') act(l);
        return;
    }
    switch (key) {
    case 'q':
    case 'Q':
        l->quit = true;
        break;
    case '\t':
    case KEY_BTAB:
    case KEY_LEFT:
    case KEY_RIGHT:
        t->table = t->table == TOP_BATCHES ? TOP_WORKERS : TOP_BATCHES;
        break;
    case KEY_UP:
    case 'k':
        top_move(t, -1);
        break;
    case KEY_DOWN:
    case 'j':
        top_move(t, 1);
        break;
    case KEY_PPAGE:
        top_move(t, -10);
        break;
    case KEY_NPAGE:
        top_move(t, 10);
        break;
    case KEY_HOME:
        top_move(t, -KN_BATCHES_MAX);
        break;
    case KEY_END:
        top_move(t, KN_BATCHES_MAX);
        break;
    case 's':
        if (t->table == TOP_BATCHES)
            t->batch_sort = (enum top_batch_sort)((t->batch_sort + 1) % TOP_BATCH_SORTS);
        else
            t->worker_sort = (enum top_worker_sort)((t->worker_sort + 1) % TOP_WORKER_SORTS);
        top_arrange(t);
        break;
    case 'c':
        if (!waiting) ask_batch(l, KN_VERB_CANCEL);
        break;
    case 'p':
        if (!waiting) {
            const struct kn_batch_status *b = top_selected_batch(t);
            if (!b || batch_is_over(b)) {
                say(l, b ? "that batch has ended" : "no batch is selected");
                break;
            }
            memcpy(l->batch, b->batch, sizeof(kn_id));
            l->verb = b->state == KN_BATCH_PAUSED ? KN_VERB_RESUME : KN_VERB_PAUSE;
            act(l);
        }
        break;
    case 'd':
        if (!waiting) ask_drain(l);
        break;
    default:
        break;
    }
}

static int on_idle(void *ctx, int silent_ms, struct kn_err *err) {
    struct live *l = ctx;
    l->t.silent_ms = silent_ms;
    snprintf(l->t.trouble, sizeof l->t.trouble, "%s", client_silence());
    timeout(0);
    int key;
    while ((key = getch()) != ERR) on_key(l, key, true);
    paint(l);
    return l->quit ? kn_err_set(err, KN_ECANCELED, "ended") : KN_OK;
}

/* ---- asking ---- */

static int ask(struct client *c, struct kn_msg **batches, struct kn_msg **workers, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_WORKERS_QUERY};
    struct kn_msg *b = NULL, *w = NULL;
    int rc = batch_query(c, NULL, &b, err);
    if (rc == KN_OK) rc = client_call(c, &m, KN_MSG_WORKER_LIST, CLIENT_RESTART_MS, &w, err);
    if (rc) {
        kn_msg_destroy(b);
        return rc;
    }
    *batches = b;
    *workers = w;
    return KN_OK;
}

static int refresh_farm(struct live *l, struct kn_err *err) {
    struct kn_msg *b, *w;
    uint64_t start = kn_clock_ms();
    int rc = ask(l->c, &b, &w, err);
    if (rc) return rc;
    kn_msg_destroy(l->batches);
    kn_msg_destroy(l->workers);
    l->batches = b;
    l->workers = w;
    l->t.batches = &b->u.batch_list;
    l->t.workers = &w->u.worker_list;
    l->asked_ms = kn_clock_ms();
    l->t.answer_ms = (int)(l->asked_ms - start);
    l->t.silent_ms = 0;
    l->t.trouble[0] = '\0';
    top_arrange(&l->t);
    return KN_OK;
}

static int watch(struct live *l, struct kn_err *err) {
    int rc = KN_OK;
    while (!l->quit && !cli_interrupted) {
        if (l->asked_ms == 0 || kn_clock_ms() - l->asked_ms >= ASK_EVERY_MS) {
            rc = refresh_farm(l, err);
            if (rc == KN_EUNSURE) { /* it has been away for long, but a person still looks */
                l->t.silent_ms = CLIENT_RESTART_MS;
                rc = KN_OK;
            }
            if (rc) break;
        }
        paint(l);
        timeout(KEY_WAIT_MS);
        int key = getch();
        if (key != ERR) on_key(l, key, false);
    }
    return rc == KN_ECANCELED ? KN_OK : rc;
}

static int snapshot(struct client *c, const struct cli_options *o, struct kn_err *err) {
    struct kn_msg *b, *w;
    int rc = ask(c, &b, &w, err);
    if (rc) return rc;
    print_for(o)->snapshot(client_endpoint(c), &b->u.batch_list, &w->u.worker_list);
    kn_msg_destroy(b);
    kn_msg_destroy(w);
    return KN_OK;
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c;
    setlocale(LC_CTYPE, "");
    int rc = farm_connect(o, &c, &err);
    if (rc) return cli_fail(&err);
    const char *term = getenv("TERM");
    if (o->json || !isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO) || !term || strcmp(term, "dumb") == 0) {
        rc = snapshot(c, o, &err);
        client_close(c);
        return rc ? cli_fail(&err) : CLI_DONE;
    }
    struct live *l = calloc(1, sizeof *l);
    if (!l || take_terminal()) {
        cli_say("top: this terminal cannot be used (TERM=%s)", term);
        free(l);
        client_close(c);
        return CLI_BAD_INPUT;
    }
    l->c = c;
    l->t.farm = client_endpoint(c);
    client_on_idle(c, on_idle, l);
    rc = watch(l, &err);
    give_back_terminal();
    kn_msg_destroy(l->batches);
    kn_msg_destroy(l->workers);
    free(l);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_top = {
    .name = "top",
    .usage = "[options]",
    .words = "watch the farm",
    .more =
        "A live screen: batches with their progress, workers with what they render. q ends it. "
        "With --json, or without a terminal: one snapshot.",
    .examples =
        "  kiln top\n"
        "  kiln top --json\n",
    .groups = CLI_G_FARM | CLI_G_JSON,
    .run = run,
};

/* See history.h. */
#include "coordinator/history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text of len bytes at *p, terminated in place where the blank behind it was; *p goes behind that. NULL:
 * there is no such text. */
static const char *take(char **p, size_t len) {
    char *text = *p;
    if (strnlen(text, len) < len || (text[len] && text[len] != ' ')) return NULL;
    *p = text[len] ? text + len + 1 : text + len;
    text[len] = '\0';
    return text;
}

static int read_attempt(char **p, struct kn_attempt *a) {
    unsigned long long wall_ms;
    unsigned charged, worker, backend, reason;
    int n = 0;
    if (sscanf(*p, "%llu %d %u %u %u %u%n", &wall_ms, &a->code, &charged, &worker, &backend, &reason, &n) !=
            6 ||
        (*p)[n] != ' ' || worker > KN_NAME_MAX || backend > KN_BACKEND_MAX || reason > KN_ATTEMPT_REASON_MAX)
        return KN_ECORRUPT;
    *p += n + 1;
    a->wall_ms = wall_ms;
    a->charged = charged != 0;
    a->worker = take(p, worker);
    a->backend = a->worker ? take(p, backend) : NULL;
    a->reason = a->backend ? take(p, reason) : NULL;
    return a->reason ? 0 : KN_ECORRUPT;
}

int history_read(const char *text, struct history *out) {
    int n = 0, rc = 0;
    *out = (struct history){0};
    if (!text[0]) return 0;
    out->text = strdup(text);
    if (!out->text) return KN_ENOMEM;
    char *p = out->text;
    if (sscanf(p, "%u%n", &out->total, &n) != 1 || (p[n] && p[n] != ' ')) return KN_ECORRUPT;
    p += p[n] ? n + 1 : n;
    while (rc == 0 && *p) {
        if (out->count == KN_ATTEMPTS_PER_TASK_MAX) return KN_ECORRUPT;
        rc = read_attempt(&p, &out->v[out->count]);
        if (rc == 0) out->count++;
    }
    return rc;
}

void history_fini(struct history *h) {
    free(h->text);
    *h = (struct history){0};
}

void history_add(struct history *h, const struct kn_attempt *a) {
    if (h->count == KN_ATTEMPTS_PER_TASK_MAX) memmove(h->v, h->v + 1, --h->count * sizeof *h->v);
    h->v[h->count++] = *a;
    if (h->total < UINT32_MAX) h->total++;
}

void history_refund(struct history *h, const char *worker) {
    for (size_t i = 0; i < h->count; i++)
        if (strcmp(h->v[i].worker, worker) == 0) h->v[i].charged = false;
}

/* Bytes of a text that fit into max, without a part of a character at the end. */
static size_t cut(const char *text, size_t max) {
    size_t len = strlen(text);
    if (len <= max) return len;
    while (max > 0 && ((unsigned char)text[max] & 0xc0) == 0x80) max--;
    return max;
}

int history_write(const struct history *h, struct kn_buf *out) {
    int rc = kn_buf_appendf(out, "%u", h->total);
    for (size_t i = 0; rc == 0 && i < h->count; i++) {
        const struct kn_attempt *a = &h->v[i];
        int worker = (int)cut(a->worker, KN_NAME_MAX), backend = (int)cut(a->backend, KN_BACKEND_MAX),
            reason = (int)cut(a->reason, KN_ATTEMPT_REASON_MAX);
        rc = kn_buf_appendf(out, " %llu %d %d %d %d %d %.*s %.*s %.*s", (unsigned long long)a->wall_ms,
                            a->code, a->charged, worker, backend, reason, worker, a->worker, backend,
                            a->backend, reason, a->reason);
    }
    return rc;
}

/* See the header. `state` holds everything that threads agree on: how many work on the job, whether newcomers
 * may join, and the job's number, so that a sleeper sees that there is a new one. A job's fields are written
 * while it is closed and nobody works on it. */
#include "kernels/cpu/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WORKERS 0x7fffu /* those at work */
#define OPEN 0x8000u    /* newcomers may join */
#define JOB 0x10000u    /* one job further */

#define SPINS 2000 /* some 30 µs: two regions that follow each other meet awake */

struct thread {
    struct kx_pool *pool;
    int index;
    pthread_t id;
};

struct kx_pool {
    int threads, started;
    struct thread *workers; /* started of them; owns */
    void (*fn)(void *arg, int i, int t);
    void *arg;
    int n;
    _Atomic uint32_t state;
    atomic_int next, sleepers;
    atomic_bool caller_sleeps, stopping;
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void work(struct kx_pool *p, int t) {
    for (int i; (i = atomic_fetch_add(&p->next, 1)) < p->n;) p->fn(p->arg, i, t);
}

static void *worker(void *arg) {
    struct thread *me = arg;
    struct kx_pool *p = me->pool;
    uint32_t done = 0; /* the number of the last job that it worked on */
    for (int spins = 0;;) {
        uint32_t s = atomic_load(&p->state);
        if ((s & OPEN) && s / JOB != done) {
            if (!atomic_compare_exchange_weak(&p->state, &s, s + 1)) continue;
            done = s / JOB;
            work(p, me->index);
            s = atomic_fetch_sub(&p->state, 1) - 1;
            if (!(s & WORKERS) && atomic_load(&p->caller_sleeps)) wake(&p->state, INT32_MAX);
            spins = 0;
        } else if (atomic_load(&p->stopping)) {
            return NULL;
        } else if (spins++ < SPINS) {
            pause_briefly();
        } else {
            atomic_fetch_add(&p->sleepers, 1);
            if (!atomic_load(&p->stopping)) sleep_while(&p->state, s);
            atomic_fetch_sub(&p->sleepers, 1);
        }
    }
}

int kx_pool_create(int threads, struct kx_pool **out, struct kn_err *err) {
    *out = NULL;
    struct kx_pool *p = calloc(1, sizeof *p);
    if (p) p->workers = calloc((size_t)threads, sizeof *p->workers);
    if (!p || !p->workers) {
        free(p);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    p->threads = threads;
    for (int i = 1; i < threads; i++) {
        struct thread *t = &p->workers[p->started];
        *t = (struct thread){p, i, 0};
        int e = pthread_create(&t->id, NULL, worker, t);
        if (e) {
            kx_pool_destroy(p);
            return kn_err_set(err, KN_EAGAIN, "thread %d of %d: %s", i + 1, threads, strerror(e));
        }
        p->started++;
    }
    *out = p;
    return 0;
}

void kx_pool_destroy(struct kx_pool *p) {
    if (!p) return;
    atomic_store(&p->stopping, true);
    atomic_fetch_add(&p->state, JOB); /* whoever is about to sleep sees another value */
    wake(&p->state, INT32_MAX);
    for (int i = 0; i < p->started; i++) pthread_join(p->workers[i].id, NULL);
    free(p->workers);
    free(p);
}

void kx_pool_run(struct kx_pool *p, int n, void (*fn)(void *arg, int i, int t), void *arg) {
    if (p->threads == 1 || n < 2) {
        for (int i = 0; i < n; i++) fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n = n;
    atomic_store(&p->next, 0);
    atomic_store(&p->state, ((atomic_load(&p->state) + JOB) & ~(WORKERS | OPEN)) | OPEN);
    if (atomic_load(&p->sleepers)) wake(&p->state, n - 1);
    work(p, 0);
    uint32_t s = atomic_fetch_and(&p->state, ~OPEN) & ~OPEN;
    for (int spins = 0; s & WORKERS; s = atomic_load(&p->state)) {
        if (spins++ < SPINS) {
            pause_briefly();
            continue;
        }
        atomic_store(&p->caller_sleeps, true);
        s = atomic_load(&p->state);
        if (s & WORKERS) sleep_while(&p->state, s);
        atomic_store(&p->caller_sleeps, false);
    }
}

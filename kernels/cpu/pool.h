/* The CPU backend's threads: one job at a time, its items handed out one by one.
 *
 * Why not OpenMP: its threads spin between regions (libgomp reads the policy from the environment before main
 * begins), and a region ends only when each of them came, so that a core that another process uses holds all
 * up. Here a thread that has nothing to do spins for some microseconds and then sleeps, and the caller waits
 * only for threads that took an item. */
#ifndef KILN_KERNELS_CPU_POOL_H
#define KILN_KERNELS_CPU_POOL_H

#include "base/err.h"

struct kx_pool;

/* threads ≥ 1, the caller among them. KN_ENOMEM, KN_EAGAIN (no more threads from the system). */
KN_MUST_USE int kx_pool_create(int threads, struct kx_pool **out, struct kn_err *err);
void kx_pool_destroy(struct kx_pool *p); /* NULL is fine */
/* fn(arg, i, t) for i < n, each once, on thread t < threads; returns when all are done. fn must not call it
 * again. */
void kx_pool_run(struct kx_pool *p, int n, void (*fn)(void *arg, int i, int t), void *arg);

#endif

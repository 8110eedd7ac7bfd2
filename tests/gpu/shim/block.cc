/* Runs a block: its threads as fibers of one host thread, switched only where they wait (barriers, warp
 * collectives), so that a run is the same each time.
 *
 * The order in which threads run changes from block to block (lanes and warps forwards or backwards), and
 * asynchronous copies land at once in some blocks and as late as allowed in others: a missing barrier or wait
 * shows as a wrong result. Shared memory starts as NaN, dynamic shared memory ends at a page that cannot be
 * touched, and what lies before it is looked at after each block. */
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <map>
#include <vector>

#include <kx_shim_device.h>

#include "tests/gpu/shim/shim.h"

#if defined(__SANITIZE_ADDRESS__)
#define KX_SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KX_SHIM_ASAN 1
#endif
#endif
#ifdef KX_SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { threads_max = 1024, warps_max = threads_max / 32, barriers_max = 16 };
static const size_t stack_bytes = 128 << 10, shared_room = 256 << 10, page = 4096;
static const unsigned char guard_byte = 0xa5;

enum state { ready, at_barrier, at_collective, done };

struct copy {
    void *to;
    const void *from;
    size_t bytes, valid;
    long group;
};

struct fiber {
    kx_shim_lane lane; /* what threadIdx and the like read */
    unsigned char *stack;
#ifdef __x86_64__
    void *sp;
#else
    ucontext_t context;
#endif
    int index;
    enum state state;
    int barrier;
    const void *in; /* of the collective that it waits in */
    void *out;
    long groups; /* of asynchronous copies, committed */
    std::vector<copy> *copies;
};

struct collective {
    unsigned mask, arrived; /* arrived 0: free */
    kx_shim_compute compute;
    const char *name;
};

struct barrier {
    int arrived, expected, kind, value;
    const char *file;
    int line;
};

/* A device thread: runs one block at a time. */
struct runner {
    unsigned char *signals; /* the stack of signal handlers */
    fiber fibers[threads_max];
    int threads, finished;
    fiber *now;
    unsigned warps_ready, lanes_ready[warps_max];
    bool lanes_backwards, warps_backwards, copies_at_once;
    collective collectives[warps_max][8];
    barrier barriers[barriers_max];
    int barrier_result;
#ifdef __x86_64__
    void *main_sp;
#else
    ucontext_t main_context;
#endif
#ifdef KX_SHIM_ASAN
    const void *main_bottom;
    size_t main_size;
#endif
    const kx_shim_call *call;
    unsigned char *shared_end, *shared; /* shared: where the block's dynamic shared memory starts */
    size_t shared_bytes;
    unsigned char *statics; /* the program's thread-local storage: __shared__ variables live there */
    size_t statics_bytes;
    cudaError_t error;
    char fault[768];
    uintptr_t fault_at, fault_pc;
    int fault_signal;
};

__thread kx_shim_lane *kx_shim_lane_now;
static __thread runner *me;

/* ---- switching */

#ifdef __x86_64__
extern "C" void kx_shim_switch(void **save, void *to);
__asm__(
    ".text\n"
    ".type kx_shim_switch,@function\n"
    "kx_shim_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size kx_shim_switch,.-kx_shim_switch\n");
#endif

static void fiber_main(void);

static void fiber_prepare(fiber *f) {
#ifdef KX_SHIM_ASAN
    ASAN_UNPOISON_MEMORY_REGION(f->stack, stack_bytes); /* the last one on it never returned */
#endif
#ifdef __x86_64__
    void **sp = (void **)(f->stack + stack_bytes);
    *--sp = nullptr; /* a function starts with its stack 8 past a multiple of 16 */
    *--sp = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f->sp = sp;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = stack_bytes;
    f->context.uc_link = nullptr;
    makecontext(&f->context, fiber_main, 0);
#endif
}

/* From the fiber that runs (or the runner itself, from NULL) to another (or the runner itself, to NULL). */
static void switch_to(fiber *from, fiber *to) {
    runner *r = me;
    r->now = to;
    if (to) kx_shim_lane_now = &to->lane;
#ifdef KX_SHIM_ASAN
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(from && from->state == done ? nullptr : &fake,
                                   to ? to->stack : r->main_bottom, to ? stack_bytes : r->main_size);
#endif
#ifdef __x86_64__
    kx_shim_switch(from ? &from->sp : &r->main_sp, to ? to->sp : r->main_sp);
#else
    swapcontext(from ? &from->context : &r->main_context, to ? &to->context : &r->main_context);
#endif
#ifdef KX_SHIM_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

static void set_ready(runner *r, fiber *f) {
    f->state = ready;
    r->lanes_ready[f->index / 32] |= 1u << (f->index % 32);
    r->warps_ready |= 1u << (f->index / 32);
}
static void set_waiting(runner *r, fiber *f, enum state s) {
    f->state = s;
    unsigned w = (unsigned)f->index / 32;
    r->lanes_ready[w] &= ~(1u << (f->index % 32));
    if (!r->lanes_ready[w]) r->warps_ready &= ~(1u << w);
}

static int one_of(unsigned bits, bool backwards) {
    return backwards ? 31 - __builtin_clz(bits) : __builtin_ctz(bits);
}

/* The next to run: one of the same warp if there is one. */
static fiber *next_ready(runner *r, int warp) {
    if (!r->warps_ready) return nullptr;
    if (!r->lanes_ready[warp]) {
        unsigned after =
            r->warps_backwards ? r->warps_ready & ((1u << warp) - 1u) : r->warps_ready & ~((2u << warp) - 1u);
        warp = one_of(after ? after : r->warps_ready, r->warps_backwards);
    }
    return &r->fibers[warp * 32 + one_of(r->lanes_ready[warp], r->lanes_backwards)];
}

/* ---- faults */

static void describe(runner *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void describe(runner *r, const char *format, ...) {
    size_t n = strlen(r->fault);
    va_list args;
    va_start(args, format);
    vsnprintf(r->fault + n, sizeof r->fault - n, format, args);
    va_end(args);
}

/* Where the running thread stands, at the fault's beginning. */
static void describe_place(runner *r) {
    r->fault[0] = 0;
    describe(r, "kernel %s", kx_shim_name(r->call->kernel, false));
    if (r->now) {
        const kx_shim_lane *l = &r->now->lane;
        describe(r, ", block %u %u %u, thread %u %u %u", l->block.x, l->block.y, l->block.z, l->thread.x,
                 l->thread.y, l->thread.z);
    }
    describe(r, ": ");
}

/* Gives the block up: back to run_block. Never returns to a fiber. */
static void give_up(runner *r, cudaError_t e) {
    r->error = e;
    switch_to(r->now, nullptr);
    abort();
}

static const char *state_name(enum state s) {
    return s == done            ? "left the kernel"
           : s == at_barrier    ? "wait at a barrier"
           : s == at_collective ? "wait in a warp collective"
                                : "run";
}

/* Nobody can go on, and not all have left. */
static void deadlock(runner *r) {
    describe_place(r);
    describe(r, "divergence:");
    for (int s = ready; s <= done; s++) {
        int n = 0, first = -1;
        for (int i = 0; i < r->threads; i++) {
            if (r->fibers[i].state == s && n++ == 0) first = i;
        }
        if (n) describe(r, " %d threads (from %d on) %s;", n, first, state_name((enum state)s));
    }
    for (int i = 0; i < barriers_max; i++) {
        const barrier *b = &r->barriers[i];
        if (b->arrived) {
            describe(r, " barrier %d at %s:%d has %d of %d;", i, b->file, b->line, b->arrived, b->expected);
        }
    }
    for (int w = 0; w < (r->threads + 31) / 32; w++) {
        for (const collective &c : r->collectives[w]) {
            if (c.arrived) {
                describe(r, " warp %d's %s has lanes %08x of %08x;", w, c.name, c.arrived, c.mask);
                w = warps_max;
                break;
            }
        }
    }
    give_up(r, cudaErrorLaunchFailure);
}

/* The running fiber waits, or is done: another runs. */
static void let_others_run(runner *r) {
    fiber *f = r->now, *next = next_ready(r, f->index / 32);
    if (!next) {
        if (r->finished < r->threads) deadlock(r);
        switch_to(f, nullptr);
    } else if (next != f) {
        switch_to(f, next);
    }
}

static void fiber_main(void) {
#ifdef KX_SHIM_ASAN
    {
        const void *bottom;
        size_t size;
        __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
        if (bottom < (const void *)me->fibers[0].stack ||
            bottom >= (const void *)(me->fibers[0].stack + threads_max * (stack_bytes + page))) {
            me->main_bottom = bottom;
            me->main_size = size;
        }
    }
#endif
    me->call->run(me->call);
    set_waiting(me, me->now, done);
    me->finished++;
    let_others_run(me);
    abort();
}

extern "C" void kx_shim_trap(const char *what) {
    describe_place(me);
    describe(me, "%s", what);
    give_up(me, cudaErrorLaunchFailure);
}

static void after_signal(void) {
    runner *r = me;
    describe_place(r);
    const char *where = kx_shim_name((const void *)r->fault_pc, false);
    cudaError_t e = cudaErrorIllegalAddress;
    if (r->fault_signal == SIGSEGV || r->fault_signal == SIGBUS) {
        uintptr_t at = r->fault_at, stack = (uintptr_t)r->now->stack;
        if (at >= (uintptr_t)r->shared_end && at < (uintptr_t)r->shared_end + page) {
            describe(r, "touches dynamic shared memory %zu bytes after its start, and there are %zu",
                     (size_t)(at - (uintptr_t)r->shared), r->shared_bytes);
        } else if (at < stack && at >= stack - page) {
            describe(r, "the thread's stack is full");
        } else {
            describe(r, "touches address %#lx, which is no memory of the device (or a misaligned vector)",
                     (unsigned long)at);
        }
    } else {
        describe(r, "a misaligned access, or an index outside of its array");
        e = cudaErrorMisalignedAddress;
    }
    describe(r, " (in %s, pc %#lx)", where, (unsigned long)r->fault_pc);
    give_up(r, e);
}

/* A fault of the fiber that runs: it goes on in after_signal, on its own stack, from the top. */
static void on_signal(int number, siginfo_t *info, void *context) {
    runner *r = me;
    if (!r || !r->now) {
        signal(number, SIG_DFL);
        return;
    }
    r->fault_signal = number;
    r->fault_at = (uintptr_t)info->si_addr;
    ucontext_t *c = (ucontext_t *)context;
#if defined(__x86_64__)
    r->fault_pc = (uintptr_t)c->uc_mcontext.gregs[REG_RIP];
    c->uc_mcontext.gregs[REG_RSP] = (greg_t)(uintptr_t)(r->now->stack + stack_bytes - 8);
    c->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)after_signal;
#elif defined(__aarch64__)
    r->fault_pc = (uintptr_t)c->uc_mcontext.pc;
    c->uc_mcontext.sp = (uintptr_t)(r->now->stack + stack_bytes);
    c->uc_mcontext.pc = (uintptr_t)after_signal;
#else
    (void)c;
    signal(number, SIG_DFL);
#endif
}

/* ---- what a thread waits for */

static int barrier_wait(int id, int expected, int kind, int value, const char *file, int line) {
    runner *r = me;
    fiber *f = r->now;
    barrier *b = &r->barriers[id];
    if (b->arrived == 0) {
        b->expected = expected;
        b->kind = kind;
        b->value = kind == 2;
        b->file = file;
        b->line = line;
    } else if (b->expected != expected || b->kind != kind || b->line != line || strcmp(b->file, file) != 0) {
        describe_place(r);
        describe(r, "divergence: waits at the barrier of %s:%d while %d threads wait at that of %s:%d", file,
                 line, b->arrived, b->file, b->line);
        give_up(r, cudaErrorLaunchFailure);
    }
    if (kind == 1) b->value += value != 0;
    if (kind == 2) b->value = b->value && value;
    if (kind == 3) b->value = b->value || value;
    if (++b->arrived < expected) {
        f->barrier = id;
        set_waiting(r, f, at_barrier);
        let_others_run(r);
        return r->barrier_result;
    }
    b->arrived = 0;
    r->barrier_result = b->value;
    int result = b->value;
    for (int i = 0; i < r->threads; i++) {
        if (r->fibers[i].state == at_barrier && r->fibers[i].barrier == id) set_ready(r, &r->fibers[i]);
    }
    /* All are ready: begin with the warp that is first in this block's order. */
    int first = one_of(r->warps_ready, r->warps_backwards);
    fiber *next = next_ready(r, first);
    if (next != f) switch_to(f, next);
    return result;
}

extern "C" void kx_shim_yield(void) {
    runner *r = me;
    for (int i = 1; i < r->threads; i++) {
        fiber *f = &r->fibers[(r->now->index + i) % r->threads];
        if (f->state == ready) {
            switch_to(r->now, f);
            return;
        }
    }
}

extern "C" int kx_shim_barrier(int kind, int value, const char *file, int line) {
    return barrier_wait(0, me->threads, kind, value, file, line);
}

extern "C" void kx_shim_named_barrier(int id, int threads, const char *file, int line) {
    if (id < 1 || id >= barriers_max || threads < 32 || threads % 32 || threads > me->threads) {
        kx_shim_trap("a named barrier wants an id of 1 to 15 and whole warps of the block");
    }
    /* Whoever takes part may come from different places (a producer, a consumer). */
    (void)file, (void)line;
    barrier_wait(id, threads, 0, 0, "", id);
}

extern "C" void kx_shim_collective(unsigned mask, kx_shim_compute compute, const char *name, const void *in,
                                   void *out) {
    runner *r = me;
    fiber *f = r->now;
    int warp = f->index / 32, lane = f->index % 32;
    int lanes = r->threads - warp * 32 < 32 ? r->threads - warp * 32 : 32;
    unsigned exist = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1u;
    if (!(mask >> lane & 1u) || mask & ~exist) {
        describe_place(r);
        describe(r, "%s with mask %08x, called by lane %d of a warp of %d lanes", name, mask, lane, lanes);
        give_up(r, cudaErrorLaunchFailure);
    }
    f->in = in;
    f->out = out;
    collective *c = nullptr, *empty = nullptr;
    for (collective &i : r->collectives[warp]) {
        if (!i.arrived) {
            if (!empty) empty = &i;
        } else if (i.mask == mask && i.compute == compute) {
            c = &i;
        } else if (i.mask & mask) {
            describe_place(r);
            describe(r,
                     "divergence: %s with mask %08x, while lanes %08x of the warp wait in %s with mask %08x",
                     name, mask, i.arrived, i.name, i.mask);
            give_up(r, cudaErrorLaunchFailure);
        }
    }
    if (!c) {
        if (!empty) kx_shim_trap("more warp collectives at once than the shim has room for");
        c = empty;
        *c = {mask, 0, compute, name};
    }
    c->arrived |= 1u << lane;
    if (c->arrived != mask) {
        set_waiting(r, f, at_collective);
        let_others_run(r);
        return;
    }
    const void *ins[32];
    void *outs[32];
    for (int i = 0; i < lanes; i++) {
        ins[i] = r->fibers[warp * 32 + i].in;
        outs[i] = r->fibers[warp * 32 + i].out;
    }
    c->arrived = 0;
    compute(mask, ins, outs);
    for (int i = 0; i < lanes; i++) {
        if (i != lane && mask >> i & 1u) set_ready(r, &r->fibers[warp * 32 + i]);
    }
}

/* ---- shared memory, asynchronous copies */

extern "C" void *kx_shim_dynamic_shared(void) {
    return me->shared;
}

static bool is_shared(const runner *r, const void *p, size_t bytes) {
    const unsigned char *b = (const unsigned char *)p;
    return (b >= r->shared && b + bytes <= r->shared + r->shared_bytes) ||
           (b >= r->statics && b + bytes <= r->statics + r->statics_bytes);
}

extern "C" int kx_shim_is_shared(const void *p, size_t bytes) {
    return is_shared(me, p, bytes);
}

static void copy_now(const copy *c) {
    memcpy(c->to, c->from, c->valid);
    memset((char *)c->to + c->valid, 0, c->bytes - c->valid);
}

extern "C" void kx_shim_cp_async(void *shared, const void *global, size_t bytes, size_t valid) {
    runner *r = me;
    if ((uintptr_t)shared % bytes || (valid && (uintptr_t)global % bytes)) {
        kx_shim_trap("cp.async on an address that is not aligned to its size");
    }
    if (!is_shared(r, shared, bytes)) kx_shim_trap("cp.async to what is not the block's shared memory");
    if (valid && is_shared(r, global, bytes)) kx_shim_trap("cp.async from shared memory");
    copy c = {shared, global, bytes, valid, r->now->groups};
    if (r->copies_at_once) {
        copy_now(&c);
    } else {
        if (!r->now->copies) r->now->copies = new std::vector<copy>;
        r->now->copies->push_back(c);
    }
}

extern "C" void kx_shim_cp_commit(void) {
    me->now->groups++;
}

extern "C" void kx_shim_cp_wait(int pending) {
    fiber *f = me->now;
    if (!f->copies) return;
    size_t left = 0;
    for (const copy &c : *f->copies) {
        if (c.group < f->groups - pending) {
            copy_now(&c);
        } else {
            (*f->copies)[left++] = c;
        }
    }
    f->copies->resize(left);
}

/* ---- the runner */

/* The static shared memory that a kernel was seen to write, so that the next block starts with NaNs again. */
struct extent {
    size_t from, to;
    int looked;
};
static std::map<const void *, extent> extents;

static void poison_statics(runner *r, size_t from, size_t to) {
#ifdef KX_SHIM_ASAN
    (void)r, (void)from, (void)to; /* sanitizers keep variables of their own there */
#else
    kx_shim_lane *lane = kx_shim_lane_now;
    runner *keep = r;
    memset(r->statics + from, 0xff, to - from);
    me = keep;
    kx_shim_lane_now = lane;
#endif
}

static void clean_statics(runner *r, bool last) {
#ifndef KX_SHIM_ASAN
    extent *x = &extents[r->call->kernel];
    if (x->to > x->from) poison_statics(r, x->from, x->to);
    if (x->looked >= 4 && !last) return;
    x->looked++;
    size_t own[2] = {(size_t)((unsigned char *)&me - r->statics),
                     (size_t)((unsigned char *)&kx_shim_lane_now - r->statics)};
    size_t from = r->statics_bytes, to = 0;
    for (size_t i = 0; i < r->statics_bytes; i++) {
        if (r->statics[i] == 0xff) continue;
        if ((i >= own[0] && i < own[0] + 8) || (i >= own[1] && i < own[1] + 8)) continue;
        if (i < from) from = i;
        to = i + 1;
    }
    if (to > from) {
        poison_statics(r, from, to);
        x->from = x->to > x->from && x->from < from ? x->from : from;
        x->to = x->to > to ? x->to : to;
    }
#else
    (void)r, (void)last;
#endif
}

static bool check_shared(runner *r) {
    size_t slack = (size_t)(r->shared_end - r->shared);
    for (size_t i = r->shared_bytes; i < slack; i++) {
        if (r->shared[i] != guard_byte) {
            describe_place(r);
            describe(r, "wrote dynamic shared memory %zu bytes after its start, and there are %zu", i,
                     r->shared_bytes);
            return false;
        }
    }
    for (size_t i = 1; i <= page; i++) {
        if (r->shared[-(ptrdiff_t)i] != guard_byte) {
            describe_place(r);
            describe(r, "wrote dynamic shared memory %zu bytes before its start", i);
            return false;
        }
    }
    return true;
}

static cudaError_t run_block(runner *r, uint3 at, dim3 grid, dim3 block, unsigned order) {
    r->threads = (int)(block.x * block.y * block.z);
    r->finished = 0;
    r->error = cudaSuccess;
    r->lanes_backwards = order & 1u;
    r->warps_backwards = order & 2u;
    r->copies_at_once = order & 4u;
    memset(r->collectives, 0, sizeof r->collectives);
    memset(r->barriers, 0, sizeof r->barriers);
    memset(r->lanes_ready, 0, sizeof r->lanes_ready);
    r->warps_ready = 0;
    if (r->shared_bytes) memset(r->shared, 0xff, r->shared_bytes);
    int i = 0;
    for (unsigned z = 0; z < block.z; z++) {
        for (unsigned y = 0; y < block.y; y++) {
            for (unsigned x = 0; x < block.x; x++, i++) {
                fiber *f = &r->fibers[i];
                f->lane = {{x, y, z}, at, block, grid};
                f->index = i;
                f->groups = 0;
                if (f->copies) f->copies->clear();
                fiber_prepare(f);
                set_ready(r, f);
            }
        }
    }
    switch_to(nullptr, next_ready(r, one_of(r->warps_ready, r->warps_backwards)));
    kx_shim_lane_now = nullptr;
    if (r->error == cudaSuccess && !check_shared(r)) r->error = cudaErrorIllegalAddress;
    return r->error;
}

static int find_statics(struct dl_phdr_info *info, size_t, void *arg) {
    runner *r = (runner *)arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_TLS) {
            r->statics = (unsigned char *)info->dlpi_tls_data;
            r->statics_bytes = info->dlpi_phdr[i].p_memsz;
        }
    }
    return 1; /* the first is the program itself */
}

static runner *runner_create(void) {
    runner *r = (runner *)calloc(1, sizeof *r);
    size_t all = threads_max * (stack_bytes + page) + page;
    unsigned char *stacks = (unsigned char *)mmap(nullptr, all, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned char *shared = (unsigned char *)mmap(nullptr, shared_room + 2 * page, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!r || stacks == MAP_FAILED || shared == MAP_FAILED) abort();
    r->signals = (unsigned char *)malloc(64 << 10);
    if (!r->signals) abort();
    for (int i = 0; i < threads_max; i++) {
        mprotect(stacks + (size_t)i * (stack_bytes + page), page, PROT_NONE);
        r->fibers[i].stack = stacks + (size_t)i * (stack_bytes + page) + page;
    }
    r->shared_end = shared + shared_room + page;
    memset(shared, guard_byte, shared_room + page);
    mprotect(r->shared_end, page, PROT_NONE);
    stack_t alternative = {};
    alternative.ss_sp = r->signals;
    alternative.ss_size = 64 << 10;
    sigaltstack(&alternative, nullptr);
    me = r;
    dl_iterate_phdr(find_statics, r);
    if ((unsigned char *)&me < r->statics || (unsigned char *)&me >= r->statics + r->statics_bytes) {
        r->statics = nullptr; /* a shared library: its variables are elsewhere, and stay as they are */
        r->statics_bytes = 0;
    }
    poison_statics(r, 0, r->statics_bytes);
    return r;
}

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started, wanted, finished;
    const kx_shim_call *call;
    dim3 grid, block;
    size_t shared;
    char *fault;
    size_t fault_size;
    cudaError_t error;
    unsigned launches;
} job = {PTHREAD_MUTEX_INITIALIZER,
         PTHREAD_COND_INITIALIZER,
         false,
         false,
         false,
         nullptr,
         1,
         1,
         0,
         nullptr,
         0,
         cudaSuccess,
         0};

static cudaError_t run_grid(runner *r) {
    dim3 g = job.grid;
    r->call = job.call;
    r->shared_bytes = job.shared;
    r->shared = r->shared_end - (job.shared + 127) / 128 * 128;
    memset(r->shared - page, guard_byte, page);
    memset(r->shared, guard_byte, (size_t)(r->shared_end - r->shared));
    unsigned order = job.launches++;
    cudaError_t e = cudaSuccess;
    for (unsigned z = 0; z < g.z && e == cudaSuccess; z++) {
        for (unsigned y = 0; y < g.y && e == cudaSuccess; y++) {
            for (unsigned x = 0; x < g.x && e == cudaSuccess; x++) {
                e = run_block(r, {x, y, z}, g, job.block, order++);
                clean_statics(r, e != cudaSuccess || (x + 1 == g.x && y + 1 == g.y && z + 1 == g.z));
            }
        }
    }
    memset(r->shared - page, guard_byte, (size_t)(r->shared_end - r->shared) + page);
    if (e != cudaSuccess) snprintf(job.fault, job.fault_size, "%s", r->fault);
    return e;
}

static void *runner_main(void *) {
    runner *r = runner_create();
    pthread_mutex_lock(&job.lock);
    for (;;) {
        while (!job.wanted) pthread_cond_wait(&job.changed, &job.lock);
        job.wanted = false;
        pthread_mutex_unlock(&job.lock);
        cudaError_t e = run_grid(r);
        pthread_mutex_lock(&job.lock);
        job.error = e;
        job.finished = true;
        pthread_cond_broadcast(&job.changed);
    }
    return nullptr;
}

/* The caller sees to it that one launch runs at a time. */
extern "C" cudaError_t kx_shim_run(const kx_shim_call *call, dim3 grid, dim3 block, size_t shared,
                                   char *fault, size_t fault_size) {
    pthread_mutex_lock(&job.lock);
    if (!job.started) {
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int s : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP}) sigaction(s, &action, nullptr);
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        if (pthread_create(&thread, &attributes, runner_main, nullptr) != 0) abort();
        pthread_attr_destroy(&attributes);
        job.started = true;
    }
    job.call = call;
    job.grid = grid;
    job.block = block;
    job.shared = shared;
    job.fault = fault;
    job.fault_size = fault_size;
    job.finished = false;
    job.wanted = true;
    pthread_cond_broadcast(&job.changed);
    while (!job.finished) pthread_cond_wait(&job.changed, &job.lock);
    cudaError_t e = job.error;
    pthread_mutex_unlock(&job.lock);
    return e;
}

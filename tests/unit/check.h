/* The test helper: named promises, one program a file (or a few files), a closing line.
 *
 *     TEST(buffer_refuses_to_grow_past_its_maximum) { CHECK_INT(kn_buf_append(&b, "xx", 2), KN_ELIMIT); }
 *
 * A failed check prints file, line and both values, ends its test (longjmp) and the next one runs. The
 * program takes an optional word: only tests whose name holds it run. It ends with "N passed, N failed" and
 * exits 0, 1, or 77 when nothing ran but skipped tests (ctest's SKIP_RETURN_CODE). All symbols are weak so
 * that several files of one program may include this header. One thread: checks belong on the thread that
 * runs the test. A program may define check_before and check_after, which run before the first test and after
 * the last: another result than 0 of the former is the program's, and of the latter counts as a failure. C++
 * may use it too. */
#ifndef KN_TESTS_UNIT_CHECK_H
#define KN_TESTS_UNIT_CHECK_H

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check_case {
    const char *name;
    void (*run)(void);
    struct check_case *next;
};

#define CHECK_WEAK __attribute__((weak))

#ifdef __cplusplus
#define CHECK_NORETURN [[noreturn]]
extern "C" {
#else
#define CHECK_NORETURN _Noreturn
#endif

extern struct check_case *check_first, *check_last;
extern jmp_buf check_jump;
void check_register(struct check_case *c);
CHECK_NORETURN void check_stop(int why); /* 1: failed, 2: skipped */
void check_int(const char *file, int line, const char *words, long long got, long long want);
void check_u64(const char *file, int line, const char *words, uint64_t got, uint64_t want);
void check_str(const char *file, int line, const char *words, const char *got, const char *want);
void check_mem(const char *file, int line, const char *words, const void *got, const void *want, size_t n);
CHECK_WEAK int check_before(void);
CHECK_WEAK int check_after(void);
#ifndef __cplusplus
int main(int argc, char **argv);
#endif

CHECK_WEAK struct check_case *check_first = NULL, *check_last = NULL;
CHECK_WEAK jmp_buf check_jump;

#define TEST(title)                                                                                          \
    static void title(void);                                                                                 \
    __attribute__((constructor)) static void title##_register(void) {                                        \
        static struct check_case check_this = {#title, title, NULL};                                         \
        check_register(&check_this);                                                                         \
    }                                                                                                        \
    static void title(void)

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond);                               \
            check_stop(1);                                                                                   \
        }                                                                                                    \
    } while (0)
/* Like CHECK, with words of one's own: CHECK_MSG(n < 3, "case %s: %d", name, n). */
#define CHECK_MSG(cond, ...)                                                                                 \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "%s:%d: not so: %s: ", __FILE__, __LINE__, #cond);                               \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
            check_stop(1);                                                                                   \
        }                                                                                                    \
    } while (0)
/* The value that was got comes first, the one that is wanted second. */
#define CHECK_INT(got, want) check_int(__FILE__, __LINE__, #got, (long long)(got), (long long)(want))
#define CHECK_U64(got, want) check_u64(__FILE__, __LINE__, #got, (uint64_t)(got), (uint64_t)(want))
#define CHECK_STR(got, want) check_str(__FILE__, __LINE__, #got, (got), (want))
#define CHECK_MEM(got, want, n) check_mem(__FILE__, __LINE__, #got, (got), (want), (n))
#define SKIP(...)                                                                                            \
    do {                                                                                                     \
        fprintf(stderr, "skipped: ");                                                                        \
        fprintf(stderr, __VA_ARGS__);                                                                        \
        fputc('\n', stderr);                                                                                 \
        check_stop(2);                                                                                       \
    } while (0)

CHECK_WEAK void check_register(struct check_case *c) {
    if (check_last)
        check_last->next = c;
    else
        check_first = c;
    check_last = c;
}

CHECK_NORETURN CHECK_WEAK void check_stop(int why) {
    longjmp(check_jump, why);
}

CHECK_WEAK void check_int(const char *file, int line, const char *words, long long got, long long want) {
    if (got == want) return;
    fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, words, got, want);
    check_stop(1);
}

CHECK_WEAK void check_u64(const char *file, int line, const char *words, uint64_t got, uint64_t want) {
    if (got == want) return;
    fprintf(stderr, "%s:%d: %s is %llu, not %llu\n", file, line, words, (unsigned long long)got,
            (unsigned long long)want);
    check_stop(1);
}

CHECK_WEAK void check_str(const char *file, int line, const char *words, const char *got, const char *want) {
    if (got == want || (got && want && strcmp(got, want) == 0)) return;
    fprintf(stderr, "%s:%d: %s is\n  [%s], not\n  [%s]\n", file, line, words, got ? got : "(null)",
            want ? want : "(null)");
    check_stop(1);
}

CHECK_WEAK void check_mem(const char *file, int line, const char *words, const void *got, const void *want,
                          size_t n) {
    const unsigned char *g = (const unsigned char *)got, *w = (const unsigned char *)want;
    for (size_t i = 0; i < n; i++) {
        if (g[i] == w[i]) continue;
        fprintf(stderr, "%s:%d: %s: byte %zu of %zu is 0x%02x, not 0x%02x\n", file, line, words, i, n, g[i],
                w[i]);
        check_stop(1);
    }
}

#ifdef __cplusplus
}
#endif

CHECK_WEAK int main(int argc, char **argv) {
    static int passed, failed, skipped; /* static: they outlive the longjmp */
    static struct check_case *c;
    int before = check_before ? check_before() : 0;
    if (before != 0) return before;
    for (c = check_first; c; c = c->next) {
        if (argc > 1 && !strstr(c->name, argv[1])) continue;
        int why = setjmp(check_jump);
        if (why == 0) {
            c->run();
            passed++;
        } else if (why == 2) {
            fprintf(stderr, "skipped: %s\n", c->name);
            skipped++;
        } else {
            fprintf(stderr, "FAILED: %s\n", c->name);
            failed++;
        }
    }
    if (check_after && check_after() != 0) failed++;
    printf("%d passed, %d failed", passed, failed);
    if (skipped) printf(", %d skipped", skipped);
    printf("\n");
    if (passed + failed + skipped == 0) {
        fprintf(stderr, "no test has that name\n");
        return 1;
    }
    if (failed) return 1;
    return passed == 0 ? 77 : 0;
}

#endif

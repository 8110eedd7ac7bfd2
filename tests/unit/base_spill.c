/* Memory that lies in a file where it is long. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/spill.h"
#include "tests/unit/check.h"

static struct kn_spill s;

static void fill(size_t bytes) {
    for (uint32_t i = 0; s.len < bytes; i++) CHECK_INT(kn_spill_append(&s, &i, sizeof i), KN_OK);
}

static void check_filled(void) {
    for (size_t at = 0; at < s.len; at += sizeof(uint32_t)) {
        uint32_t v;
        memcpy(&v, s.data + at, sizeof v);
        CHECK_U64(v, at / sizeof v);
    }
}

static size_t resident(void) {
    size_t pages = (s.cap + 4095) / 4096, n = 0;
    unsigned char *in = calloc(pages, 1);
    FILE *f =
        fopen("/proc/self/pagemap", "re"); /* mincore() tells of the file's cache, this of our own pages */
    CHECK(in && f);
    for (size_t i = 0; i < pages; i++) {
        uint64_t entry = 0;
        CHECK_INT(fseek(f, (long)(((uintptr_t)s.data / 4096 + i) * sizeof entry), SEEK_SET), 0);
        CHECK_INT(fread(&entry, sizeof entry, 1, f), 1);
        n += entry >> 63;
    }
    fclose(f);
    free(in);
    return n;
}

TEST(what_rests_takes_no_memory_and_is_whole_when_it_is_looked_at) {
    fill(100);
    CHECK(!s.mapped);
    kn_spill_rest(&s);
    check_filled();
    kn_spill_fini(&s);
    fill(8 * KN_SPILL_HEAP);
    CHECK(s.mapped);
    CHECK(resident() > KN_SPILL_HEAP / 4096);
    kn_spill_rest(&s);
    CHECK_U64(resident(), 0);
    check_filled();
    kn_spill_fini(&s);
}

TEST(without_a_file_it_goes_on_in_memory) {
    struct rlimit was, none = {0};
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &was), 0);
    none.rlim_max = was.rlim_max;
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &none), 0);
    fill(4 * KN_SPILL_HEAP);
    CHECK(!s.mapped);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &was), 0);
    check_filled();
    kn_spill_fini(&s);
    fill(2 * KN_SPILL_HEAP); /* and a disk that fills up meanwhile */
    CHECK(s.mapped);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &none), 0);
    size_t at = s.len;
    for (uint32_t i = (uint32_t)(at / sizeof i); s.len < 4 * KN_SPILL_HEAP + 4; i++)
        CHECK_INT(kn_spill_append(&s, &i, sizeof i), KN_OK);
    CHECK(!s.mapped);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &was), 0);
    check_filled();
    kn_spill_fini(&s);
}

TEST(a_bound_is_kept) {
    s.max = 10;
    CHECK_INT(kn_spill_append(&s, "0123456789", 10), KN_OK);
    CHECK_INT(kn_spill_append(&s, "x", 1), KN_ELIMIT);
    CHECK_U64(s.len, 10);
    kn_spill_fini(&s);
    s.max = 0;
}

TEST(texts_stay_where_they_are) {
    enum { COUNT = 20000 };
    static char *where[COUNT];
    struct kn_texts t = {0};
    char text[300];
    for (int i = 0; i < COUNT; i++) {
        snprintf(text, sizeof text, "%0*d", 1 + i % 299, i);
        where[i] = kn_texts_add(&t, text);
        CHECK(where[i] != NULL);
        if (i % 1000 == 0) kn_texts_rest(&t);
    }
    char *large = malloc(9u << 20);
    CHECK(large != NULL);
    memset(large, 'a', (9u << 20) - 1);
    large[(9u << 20) - 1] = '\0';
    CHECK_STR(kn_texts_add(&t, large), large);
    kn_texts_rest(&t);
    for (int i = 0; i < COUNT; i++) {
        snprintf(text, sizeof text, "%0*d", 1 + i % 299, i);
        CHECK_STR(where[i], text);
    }
    free(large);
    kn_texts_fini(&t);
}

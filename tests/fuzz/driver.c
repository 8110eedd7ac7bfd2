/* The driver of a fuzz target without libFuzzer: runs the corpus as it is, then a bounded number of mutations
 * of it, the same ones for the same seed. It has no coverage feedback; what it has is a corpus, a list of
 * words and many runs. Every input lies at the very end of a mapped page, with nothing behind it, so that a
 * read past the end dies without a sanitizer too. When the target dies, the input is written to ./fuzz-crash
 * and the run can be repeated: PROGRAM fuzz-crash. */
#include "tests/fuzz/fuzz.h"

#ifdef KILN_LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    return kn_fuzz(data, size);
}

#else

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define INPUTS_MAX 512
#define WORDS_MAX 512
#define SIZE_LIMIT (1u << 20)

struct bytes {
    uint8_t *data; /* owns */
    size_t len;
};

static struct bytes inputs[INPUTS_MAX], words[WORDS_MAX];
static size_t input_count, word_count;
static uint64_t state;

/* The input that is being run, for the signal handler. */
static const uint8_t *current;
static size_t current_len;

static void die(const char *what, const char *which) {
    fprintf(stderr, "%s: %s\n", which, what);
    exit(2);
}

static uint64_t draw(void) { /* splitmix64: the state counts, the output mixes */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(size_t n) {
    return n ? (size_t)(draw() % n) : 0;
}

static struct bytes read_file(const char *path) {
    struct bytes b = {malloc(SIZE_LIMIT), 0};
    FILE *f = fopen(path, "rb");
    if (!b.data || !f) die("cannot read", path);
    b.len = fread(b.data, 1, SIZE_LIMIT, f);
    fclose(f);
    return b;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A folder's files in order of name (readdir's order differs between machines), or one file. */
static void read_corpus(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) die("not there", path);
    if (!S_ISDIR(st.st_mode)) {
        inputs[input_count++] = read_file(path);
        return;
    }
    char *names[INPUTS_MAX];
    size_t count = 0;
    DIR *dir = opendir(path);
    if (!dir) die("cannot open", path);
    for (struct dirent *e; (e = readdir(dir)) && count < INPUTS_MAX;) {
        if (e->d_name[0] != '.') names[count++] = strdup(e->d_name);
    }
    closedir(dir);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        inputs[input_count++] = read_file(file);
        free(names[i]);
    }
    if (input_count == 0) die("no input in it", path);
}

/* A word a line, as it is. */
static void read_words(const char *path) {
    struct bytes all = read_file(path);
    for (size_t at = 0; at < all.len && word_count < WORDS_MAX;) {
        const uint8_t *end = memchr(all.data + at, '\n', all.len - at);
        size_t len = end ? (size_t)(end - all.data) - at : all.len - at;
        if (len > 0) words[word_count++] = (struct bytes){all.data + at, len};
        at += len + 1;
    }
}

static void save_crash(void) {
    static const char said[] = "the input is in ./fuzz-crash\n";
    int fd = open("fuzz-crash", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, current, current_len) < 0 || write(STDERR_FILENO, said, sizeof said - 1) < 0)
        return;
    close(fd);
}

static void on_signal(int sig) {
    save_crash();
    signal(sig, SIG_DFL);
    raise(sig);
}

/* Defined by the sanitizers' runtime, where there is one. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

/* Replaces buf[at, at + gone) by the `len` bytes of p, as far as it fits. */
static size_t exchange(uint8_t *buf, size_t size, size_t max, size_t at, size_t gone, const uint8_t *p,
                       size_t len) {
    if (gone > size - at) gone = size - at;
    if (len > max - (size - gone)) len = max - (size - gone);
    memmove(buf + at + len, buf + at + gone, size - at - gone);
    if (len) memcpy(buf + at, p, len);
    return size - gone + len;
}

static size_t mutate(uint8_t *buf, size_t size, size_t max, uint8_t *scratch) {
    static const uint8_t edges[] = {0,    1,    0x0a, 0x0d, 0x20, 0x22, 0x27, 0x2c,
                                    0x2d, 0x30, 0x5c, 0x7f, 0x80, 0xc0, 0xed, 0xff};
    for (size_t times = 1 + below(6); times > 0; times--) {
        size_t at = below(size + 1), len = 1 + below(8);
        switch (below(9)) {
        case 0: /* one bit */
            if (at < size) buf[at] ^= (uint8_t)(1u << below(8));
            break;
        case 1: /* a byte that matters to parsers */
            if (at < size) buf[at] = edges[below(sizeof edges)];
            break;
        case 2: /* a random byte more */
            scratch[0] = (uint8_t)draw();
            size = exchange(buf, size, max, at, 0, scratch, 1);
            break;
        case 3:
            size = exchange(buf, size, max, at, len, NULL, 0);
            break; /* some bytes less */
        case 4:    /* a piece of the input again, elsewhere */
            len = below(size - at < 256 ? size - at + 1 : 256);
            memcpy(scratch, buf + at, len);
            size = exchange(buf, size, max, below(size + 1), 0, scratch, len);
            break;
        case 5: /* a piece of another input */
            if (input_count > 0) {
                const struct bytes *other = &inputs[below(input_count)];
                size_t from = below(other->len + 1);
                size =
                    exchange(buf, size, max, at, below(16), other->data + from, below(other->len - from + 1));
            }
            break;
        case 6: /* a word */
        case 7:
            if (word_count > 0) {
                const struct bytes *word = &words[below(word_count)];
                size = exchange(buf, size, max, at, below(2) ? word->len : 0, word->data, word->len);
            }
            break;
        default:
            size = at; /* cut */
        }
    }
    return size;
}

int main(int argc, char **argv) {
    size_t runs = 0, max = 4096;
    uint64_t seed = 1;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-')
            read_corpus(argv[i]);
        else if (i + 1 == argc)
            die("needs a value", argv[i]);
        else if (strcmp(argv[i], "-runs") == 0)
            runs = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "-seed") == 0)
            seed = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "-size") == 0)
            max = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "-words") == 0)
            read_words(argv[++i]);
        else
            die("unknown option; usage: [-runs N] [-seed N] [-size BYTES] [-words FILE] CORPUS…", argv[i]);
    }
    if (input_count == 0) die("no corpus", argv[0]);
    if (max < 1 || max > SIZE_LIMIT) die("not between 1 and 1048576", "-size");

    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (SIZE_LIMIT + page - 1) / page * page;
    uint8_t *map = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *buf = malloc(SIZE_LIMIT), *scratch = malloc(SIZE_LIMIT);
    if (map == MAP_FAILED || !buf || !scratch || mprotect(map + room, page, PROT_NONE) != 0)
        die("no memory", argv[0]);
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], on_signal);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(save_crash);

    state = seed;
    for (size_t run = 0; run < input_count + runs; run++) {
        const struct bytes *from = &inputs[run < input_count ? run : below(input_count)];
        size_t size = from->len;
        memcpy(buf, from->data, size);
        if (run >= input_count) {
            if (size > max) size = max;
            size = mutate(buf, size, max, scratch);
        }
        current_len = size;
        current = memcpy(map + room - size, buf, size);
        kn_fuzz(current, size);
    }
    printf("%zu inputs and %zu mutations of them, seed %llu: passed\n", input_count, runs,
           (unsigned long long)seed);
    for (size_t i = 0; i < input_count; i++) free(inputs[i].data);
    if (word_count) free(words[0].data);
    free(buf);
    free(scratch);
    munmap(map, room + page);
    return 0;
}

#endif

/* See spill.h. A shared mapping of a file keeps what was written to it when its pages are given back (MADV_DONTNEED): they
 * are the file's. Of a private mapping or of the heap they would be lost, so only `mapped` memory ever rests. */
#include "base/spill.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fs.h"

#define BLOCK_SMALL ((size_t)64 << 10) /* blocks of texts, as long as there are few */
#define BLOCK_LARGE ((size_t)4 << 20)

/* A file in a folder that has no name there. */
static int file_in(const char *dir) {
    char path[KN_PATH_MAX];
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || kn_fs_join(path, sizeof path, dir, "kiln-XXXXXX")) return fd;
    fd = mkostemp(path, O_CLOEXEC); /* a file system without O_TMPFILE */
    if (fd >= 0) unlink(path);
    return fd;
}

static int file_make(void) {
    const char *own = getenv("TMPDIR");
    int fd = own && own[0] == '/' ? file_in(own) : -1;
    if (fd < 0) fd = file_in("/var/tmp");
    return fd >= 0 ? fd : file_in("/tmp");
}

/* cap bytes of a file in place of what there is; false: as it was. The room is taken now, since a disk that is full when
 * a page is written would end the process. */
static bool grow_mapped(struct kn_spill *s, size_t cap) {
    int fd = s->mapped ? s->fd : file_make();
    void *data = MAP_FAILED;
    if (fd >= 0 && posix_fallocate(fd, 0, (off_t)cap) == 0)
        data = s->mapped ? mremap(s->data, s->cap, cap, MREMAP_MAYMOVE)
                         : mmap(NULL, cap, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        if (!s->mapped && fd >= 0) close(fd);
        return false;
    }
    if (!s->mapped) {
        if (s->len > 0) memcpy(data, s->data, s->len);
        free(s->data);
    }
    s->data = data;
    s->cap = cap;
    s->fd = fd;
    s->mapped = true;
    return true;
}

static bool grow_heap(struct kn_spill *s, size_t cap) {
    char *data = s->mapped ? malloc(cap) : realloc(s->data, cap);
    if (!data) return false;
    if (s->mapped) {
        size_t len = s->len, max = s->max;
        memcpy(data, s->data, len);
        kn_spill_fini(s);
        *s = (struct kn_spill){.len = len, .max = max};
    }
    s->data = data;
    s->cap = cap;
    return true;
}

int kn_spill_reserve(struct kn_spill *s, size_t more) {
    size_t need = s->len + more, cap = s->cap ? s->cap : 4096;
    if (need < more || (s->max && need > s->max)) return KN_ELIMIT;
    if (need <= s->cap) return KN_OK;
    while (cap < need) {
        if (cap > SIZE_MAX / 2) return KN_ENOMEM;
        cap *= 2;
    }
    return (cap > KN_SPILL_HEAP && grow_mapped(s, cap)) || grow_heap(s, cap) ? KN_OK : KN_ENOMEM;
}

int kn_spill_append(struct kn_spill *s, const void *data, size_t len) {
    int rc = kn_spill_reserve(s, len);
    if (rc) return rc;
    if (len > 0) memcpy(s->data + s->len, data, len);
    s->len += len;
    return KN_OK;
}

void kn_spill_rest(const struct kn_spill *s) {
    if (s->mapped) madvise(s->data, s->cap, MADV_DONTNEED);
}

void kn_spill_fini(struct kn_spill *s) {
    if (s->mapped) {
        munmap(s->data, s->cap);
        if (!s->fixed) close(s->fd);
    } else {
        free(s->data);
    }
    *s = (struct kn_spill){.max = s->max};
}

/* One more block, with room for len bytes. Blocks do not grow: their files need not stay open. */
static struct kn_spill *block_add(struct kn_texts *t, size_t len) {
    struct kn_spill *blocks = realloc(t->blocks, (t->count + 1) * sizeof *blocks), *b;
    if (!blocks) return NULL;
    t->blocks = blocks;
    b = &blocks[t->count];
    *b = (struct kn_spill){0};
    size_t size = t->count * BLOCK_SMALL < KN_SPILL_HEAP ? BLOCK_SMALL : BLOCK_LARGE;
    if (kn_spill_reserve(b, len > size ? len : size)) return NULL;
    if (b->mapped) {
        close(b->fd);
        b->fixed = true;
    }
    t->count++;
    return b;
}

char *kn_texts_add(struct kn_texts *t, const char *text) {
    size_t len = strlen(text) + 1;
    struct kn_spill *b = t->count > 0 ? &t->blocks[t->count - 1] : NULL;
    if (!b || b->cap - b->len < len) b = block_add(t, len);
    if (!b) return NULL;
    char *out = memcpy(b->data + b->len, text, len);
    b->len += len;
    return out;
}

void kn_texts_rest(const struct kn_texts *t) {
    for (size_t i = 0; i < t->count; i++) kn_spill_rest(&t->blocks[i]);
}

void kn_texts_fini(struct kn_texts *t) {
    for (size_t i = 0; i < t->count; i++) kn_spill_fini(&t->blocks[i]);
    free(t->blocks);
    *t = (struct kn_texts){0};
}

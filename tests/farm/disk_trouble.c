/* A disk in trouble, for storm.py: preloaded (LD_PRELOAD) into a coordinator or a Redis, it lets every n-th call of a
 * kind fail. $KILN_TROUBLE names a file of a pair of 32-bit numbers for each kind, "every" (0: none) and the errno
 * (0: the call says that it succeeded, and does nothing), which whoever made the trouble writes while the program
 * runs. Sockets, pipes, /proc and the like are left alone. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* In the order of storm.py's DISK_CALLS. */
enum call { CALL_CREATE, CALL_OPEN, CALL_WRITE, CALL_SYNC, CALL_RENAME, CALL_COUNT };

struct trouble {
    uint32_t every;
    int32_t error;
};

static const volatile struct trouble *troubles;
static atomic_uint calls[CALL_COUNT];

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("KILN_TROUBLE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *p = mmap(NULL, sizeof *troubles * CALL_COUNT, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (p != MAP_FAILED) troubles = p;
}

/* -1 and 0: the call is not to be made, and this is its result. 1: it is. */
static int strikes(enum call c) {
    if (!troubles) return 1;
    uint32_t every = troubles[c].every;
    if (every == 0 || (atomic_fetch_add(&calls[c], 1) + 1) % every != 0) return 1;
    errno = troubles[c].error;
    return errno ? -1 : 0;
}

/* True for what lies on a disk; errno stays. */
static int is_file(int fd) {
    struct stat st;
    int before = errno, file = fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
    errno = before;
    return file;
}

static int is_path(const char *path) {
    static const char *const others[] = {"/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (strncmp(path, others[i], strlen(others[i])) == 0) return 0;
    return 1;
}

#define REAL(name, type, ...)                                                                                \
    static type (*real)(__VA_ARGS__);                                                                        \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    static int (*real)(int, const char *, int, ...);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "openat64");
    if (is_path(path) && strikes(flags & O_CREAT ? CALL_CREATE : CALL_OPEN) == -1) return -1;
    return real(dir, path, flags, mode);
}

#define OPENS(name)                                                                                          \
    int name(const char *path, int flags, ...) {                                                             \
        va_list ap;                                                                                          \
        va_start(ap, flags);                                                                                 \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;                              \
        va_end(ap);                                                                                          \
        return open_at(AT_FDCWD, path, flags, mode);                                                         \
    }
OPENS(open)
OPENS(open64)
#define OPENS_AT(name)                                                                                       \
    int name(int dir, const char *path, int flags, ...) {                                                    \
        va_list ap;                                                                                          \
        va_start(ap, flags);                                                                                 \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;                              \
        va_end(ap);                                                                                          \
        return open_at(dir, path, flags, mode);                                                              \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t write(int fd, const void *data, size_t len) {
    REAL("write", ssize_t, int, const void *, size_t);
    int s = troubles && troubles[CALL_WRITE].every && is_file(fd) ? strikes(CALL_WRITE) : 1;
    return s == 1 ? real(fd, data, len) : s == 0 ? (ssize_t)len : -1;
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t at) {
    REAL("pwrite", ssize_t, int, const void *, size_t, off_t);
    int s = troubles && troubles[CALL_WRITE].every && is_file(fd) ? strikes(CALL_WRITE) : 1;
    return s == 1 ? real(fd, data, len, at) : s == 0 ? (ssize_t)len : -1;
}

int fsync(int fd) {
    REAL("fsync", int, int);
    int s = strikes(CALL_SYNC);
    return s == 1 ? real(fd) : s;
}

int fdatasync(int fd) {
    REAL("fdatasync", int, int);
    int s = strikes(CALL_SYNC);
    return s == 1 ? real(fd) : s;
}

int syncfs(int fd) {
    REAL("syncfs", int, int);
    int s = strikes(CALL_SYNC);
    return s == 1 ? real(fd) : s;
}

int rename(const char *from, const char *to) {
    REAL("rename", int, const char *, const char *);
    int s = strikes(CALL_RENAME);
    return s == 1 ? real(from, to) : s;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    REAL("renameat", int, int, const char *, int, const char *);
    int s = strikes(CALL_RENAME);
    return s == 1 ? real(from_dir, from, to_dir, to) : s;
}

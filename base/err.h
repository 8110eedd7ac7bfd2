/* Errors: one table of codes for the whole project, and a context that carries the text a person reads.
 *
 * A function that can fail returns 0 or a negative KN_E… and, when it takes a `struct kn_err *`, leaves there
 * what happened. The lowest layer calls kn_err_set(); each layer above may prefix what it was doing, so that
 * the text ends up as "prompts.jsonl:17: steps: 0 is not between 1 and 1000". Libc only; any thread (a
 * context is not shared). */
#ifndef KN_BASE_ERR_H
#define KN_BASE_ERR_H

#include <stddef.h>

#define KN_ERR_TEXT_MAX 1024

/* X(name, value, words). Values travel on the wire (proto/PROTOCOL.md): never renumber. */
#define KN_ERR_TABLE(X)                                                                                      \
    X(KN_OK, 0, "ok")                                                                                        \
    X(KN_EINVAL, -1, "invalid argument")                                                                     \
    X(KN_ENOMEM, -2, "out of memory")                                                                        \
    X(KN_ELIMIT, -3, "over a declared limit")                                                                \
    X(KN_EIO, -4, "input/output error")                                                                      \
    X(KN_ENOENT, -5, "not found")                                                                            \
    X(KN_EEXIST, -6, "exists already")                                                                       \
    X(KN_EPARSE, -7, "malformed input")                                                                      \
    X(KN_EPROTO, -8, "protocol violation")                                                                   \
    X(KN_EVERSION, -9, "version mismatch")                                                                   \
    X(KN_EAGAIN, -10, "try again later")                                                                     \
    X(KN_EGONE, -11, "peer is gone")                                                                         \
    X(KN_ETIMEOUT, -12, "timed out")                                                                         \
    X(KN_ESTATE, -13, "not possible in this state")                                                          \
    X(KN_ETERM, -14, "another coordinator took the lead")                                                    \
    X(KN_EMODEL, -15, "no such model on this farm")                                                          \
    X(KN_EUNSUPPORTED, -16, "not supported")                                                                 \
    X(KN_EOOM, -17, "out of device memory")                                                                  \
    X(KN_ENAN, -18, "not a number in the picture")                                                           \
    X(KN_EDEVICE, -19, "device failed")                                                                      \
    X(KN_ECORRUPT, -20, "content does not match its digest")                                                 \
    X(KN_ECANCELED, -21, "cancelled")                                                                        \
    X(KN_ECONFIG, -22, "wrong configuration")                                                                \
    X(KN_EINTERNAL, -23, "internal error")                                                                   \
    X(KN_EPERM, -24, "not allowed")                                                                          \
    X(KN_EUNSURE, -25, "not known whether it was done")

enum kn_errcode {
#define KN_ERR_ENUM(name, value, words) name = (value),
    KN_ERR_TABLE(KN_ERR_ENUM)
#undef KN_ERR_ENUM
};

#define KN_MUST_USE __attribute__((warn_unused_result))
#define KN_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

struct kn_err {
    int code;                   /* 0 or the KN_E… of the last failure */
    char text[KN_ERR_TEXT_MAX]; /* what a person reads; cut when too long, always terminated */
};

/* Sets code and text; returns code, so that `return kn_err_set(err, KN_EINVAL, …);` works. err may be NULL.
 */
int kn_err_set(struct kn_err *err, int code, const char *fmt, ...) KN_PRINTF(3, 4);
/* Puts "fmt: " in front of the text that is there; returns err->code (KN_EINTERNAL if none was set). err may
 * be NULL. */
int kn_err_prefix(struct kn_err *err, const char *fmt, ...) KN_PRINTF(2, 3);
/* For the static analyzer, which does not see into another file: what these return is a failure. */
#ifdef __clang_analyzer__
#define KN_ERR_FAILURE(call)                                                                                 \
    __extension__({                                                                                          \
        int kn_err_code = (call);                                                                            \
        if (kn_err_code >= 0) __builtin_unreachable();                                                       \
        kn_err_code;                                                                                         \
    })
#define kn_err_set(...) KN_ERR_FAILURE(kn_err_set(__VA_ARGS__))
#define kn_err_prefix(...) KN_ERR_FAILURE(kn_err_prefix(__VA_ARGS__))
#endif
/* Words for a code ("not found"); never NULL. */
const char *kn_err_words(int code);

#endif

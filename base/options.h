/* A program's command line. One table says which options there are, what each takes, where its value goes and
 * what help says of it; parsing, suggestions and help read the same table, so that they cannot differ.
 *
 *     static const struct kn_option table[] = {
 *         {"output", 'o', "DIR", OUT, "the folder for the pictures", KN_OPTION_INTO(struct options, out)},
 *         {"threads", 0, "N", START, "threads of a worker", KN_OPTION_INTO(struct options, threads),
 *          .min = 1, .max = 1024},
 *     };
 *
 * It accepts --name VALUE, --name=VALUE, any beginning of a name that only one option has, -o VALUE and
 * -oVALUE, letters that take no value in one word (-qv), options between and behind what is no option (an
 * operand), and "--", behind which nothing is an option. "-" alone is an operand. An option given twice: the
 * last one counts, but for lists. The parser allocates nothing; values are borrowed from argv. Libc only. */
#ifndef KN_BASE_OPTIONS_H
#define KN_BASE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

#define KN_OPTIONS_MAX 64 /* in one table */

enum kn_option_kind {
    KN_OPTION_FLAG = 1, /* bool: becomes true; takes no value */
    KN_OPTION_STOP,     /* the same, and nothing behind it is read: --help, --version */
    KN_OPTION_TEXT,     /* const char *: the value */
    KN_OPTION_INT,      /* int, uint32_t, uint64_t: a whole number from min to max */
    KN_OPTION_U32,
    KN_OPTION_U64,
    KN_OPTION_LIST,   /* const char *[] with a size_t beside it: every value, `max` of them at most */
    KN_OPTION_CHOICE, /* an enum: the place of the value in `choices` */
    KN_OPTION_OWN,    /* what `read` makes of the value */
};

struct kn_option {
    const char *name;  /* without its dashes */
    char letter;       /* 0: none */
    const char *arg;   /* what help calls its value; NULL: it takes none */
    unsigned groups;   /* bits; see struct kn_options */
    const char *words; /* what help says; lines are broken by kn_options_help() */
    enum kn_option_kind kind;
    size_t offset;                                              /* of its target in the program's struct */
    size_t count_offset;                                        /* KN_OPTION_LIST: of its count */
    int64_t min;                                                /* of a number */
    uint64_t max;                                               /* of a number, of a list's length */
    const char *const *choices;                                 /* ends with NULL */
    int (*check)(const char *value, struct kn_err *err);        /* of a text or a list; may be NULL */
    int (*read)(void *target, char *value, struct kn_err *err); /* KN_OPTION_OWN */
};

/* clang-format off */
#define KN_OPTION_KIND(member)                                                                               \
    _Generic((member),                                                                                       \
        bool: KN_OPTION_FLAG,                                                                                \
        const char *: KN_OPTION_TEXT,                                                                        \
        int: KN_OPTION_INT,                                                                                  \
        uint32_t: KN_OPTION_U32,                                                                             \
        uint64_t: KN_OPTION_U64)
#define KN_OPTION_STOP_KIND(member) _Generic((member), bool: KN_OPTION_STOP)
#define KN_OPTION_LIST_KIND(array, number)                                                                   \
    _Generic(&(array)[0], const char **: _Generic(&(number), size_t *: KN_OPTION_LIST))
/* clang-format on */

/* The target of an option; its type says the option's kind. */
#define KN_OPTION_INTO(type, member)                                                                         \
    .kind = KN_OPTION_KIND(((type *)0)->member), .offset = offsetof(type, member)
/* A flag that ends the parsing. */
#define KN_OPTION_STOP_INTO(type, member)                                                                    \
    .kind = KN_OPTION_STOP_KIND(((type *)0)->member), .offset = offsetof(type, member)
/* An array of const char * and its count, a size_t. */
#define KN_OPTION_LIST_INTO(type, array, number)                                                             \
    .kind = KN_OPTION_LIST_KIND(((type *)0)->array, ((type *)0)->number), .offset = offsetof(type, array),   \
    .count_offset = offsetof(type, number), .max = sizeof((type *)0)->array / sizeof(const char *)
/* An enum whose values 0, 1, … are called as `names` says. */
#define KN_OPTION_CHOICE_INTO(type, member, names)                                                           \
    .kind = KN_OPTION_CHOICE, .offset = offsetof(type, member), .choices = (names)
/* A function that is given the member's address. Its error says what is wrong with the value, without the
 * option's name. */
#define KN_OPTION_READ(type, member, function)                                                               \
    .kind = KN_OPTION_OWN, .offset = offsetof(type, member), .read = (function)

/* The command line of a program, or of one of its commands. */
struct kn_options {
    const char *program; /* "kiln-worker", "kiln render": its --help is named in messages */
    const struct kn_option *v;
    size_t count;
    unsigned groups; /* it accepts the options that share a bit with this */
};

/* Parses argv[1…argc) into the struct `into`. KN_OK: the operands are then argv[1…1 + *operands), in their
 * order. 1: an option that stops was met; what stands behind it was not looked at. Negative: `err` names the
 * option and says what is wrong. `into` keeps what was read before a mistake. */
KN_MUST_USE int kn_options_parse(const struct kn_options *os, int argc, char **argv, void *into,
                                 int *operands, struct kn_err *err);

/* A line or more for each option that is accepted, in the table's order. */
void kn_options_help(const struct kn_options *os, FILE *out);
/* Words broken at KN_HELP_COLUMNS and indented; the cursor stands in `column`. Ends with a newline. */
void kn_help_wrap(FILE *out, const char *text, int indent, int column);

#define KN_HELP_COLUMNS 78

/* For the functions behind KN_OPTION_READ: a whole number from min to max, in the words of every other one; a
 * negative one as its two's complement. */
KN_MUST_USE int kn_option_number(const char *value, int64_t min, uint64_t max, uint64_t *out,
                                 struct kn_err *err);

#endif

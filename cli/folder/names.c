/* See names.h. */
#include "cli/folder/names.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#include "base/map.h"
#include "base/utf8.h"
#include "cli/folder/images.h"

#define STEM_BYTES_MAX 251 /* with ".png" 255, which is what file systems take */
#define WIDTH_MAX 255
#define NAME_BYTES_MAX (64u << 10) /* before it is cut */

struct named_image { /* what a name is made of */
    size_t index;
    const struct kn_task *task;
    const uint8_t *key;
    const struct kn_model_info *model;
    json_object *extra; /* or NULL */
};

/* ---- fields ---- */

#define NUMBER_MAX 64

enum name_field {
    INDEX,
    PROMPT,
    NEGATIVE,
    SEED,
    SAMPLER,
    SCHEDULE,
    STEPS,
    CFG,
    WIDTH,
    HEIGHT,
    MODEL,
    MODEL_SHA256,
    KEY,
    FIELD_COUNT, /* from here on: known only when the image has been rendered */
};

static const char *const field_names[] = {"index",    "prompt",       "negative", "seed",  "sampler",
                                          "schedule", "steps",        "cfg",      "width", "height",
                                          "model",    "model_sha256", "key",      NULL};
static const char *const later_names[] = {"status",        "backend", "engine",  "sha256",
                                          "pixels_sha256", "worker",  "attempt", "render_ms",
                                          "error",         "flat",    NULL};

static int find(const char *const *names, const char *name) {
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], name) == 0) return i;
    return -1;
}

/* A field's text; `scratch` is for those that are not text. *number: digits, which are padded. */
static const char *field_text(enum name_field f, const struct named_image *im, char scratch[KN_SHA256_HEX],
                              bool *number) {
    const struct kn_task *t = im->task;
    *number = true;
    switch (f) {
    case INDEX:
        snprintf(scratch, NUMBER_MAX, "%zu", im->index);
        return scratch;
    case SEED:
        snprintf(scratch, NUMBER_MAX, "%llu", (unsigned long long)t->seed);
        return scratch;
    case STEPS:
        snprintf(scratch, NUMBER_MAX, "%u", t->steps);
        return scratch;
    case CFG:
        snprintf(scratch, NUMBER_MAX, "%g", (double)t->cfg);
        return scratch;
    case WIDTH:
        snprintf(scratch, NUMBER_MAX, "%u", t->width);
        return scratch;
    case HEIGHT:
        snprintf(scratch, NUMBER_MAX, "%u", t->height);
        return scratch;
    default:
        break;
    }
    *number = false;
    switch (f) {
    case PROMPT:
        return t->prompt;
    case NEGATIVE:
        return t->negative;
    case SAMPLER:
        return kn_sampler_name(t->sampler);
    case SCHEDULE:
        return kn_schedule_name(t->schedule);
    case MODEL:
        return im->model->name;
    case MODEL_SHA256:
        kn_hex(im->model->sha256, KN_SHA256_BYTES, scratch);
        return scratch;
    case KEY:
        kn_hex(im->key, sizeof(kn_digest), scratch);
        return scratch;
    default:
        return "";
    }
}

/* A column of the input, whatever its case; NULL: this image has none of that name. */
static json_object *column(json_object *extra, const char *name, bool *there) {
    *there = false;
    if (!extra) return NULL;
    json_object_object_foreach(extra, key, value) {
        if (strcasecmp(key, name) != 0) continue;
        *there = true;
        return value;
    }
    return NULL;
}

/* ---- the pattern ---- */

struct name_piece {
    enum { LITERAL, FIELD, COLUMN } kind;
    char *text; /* owns: a literal, or a column's name */
    enum name_field field;
    int width; /* 0: none */
    bool seen; /* a column that some image has */
};

struct pattern {
    struct name_piece v[64];
    size_t count;
};

static void pattern_free(struct pattern *p) {
    for (size_t i = 0; i < p->count; i++) free(p->v[i].text);
    p->count = 0;
}

static int add_piece(struct pattern *p, const struct name_piece *piece, const char *text, size_t len,
                     struct kn_err *err) {
    if (p->count == sizeof p->v / sizeof p->v[0])
        return kn_err_set(err, KN_ELIMIT, "--name-pattern: more than %zu pieces",
                          sizeof p->v / sizeof p->v[0]);
    p->v[p->count] = *piece;
    p->v[p->count].text = strndup(text, len);
    if (!p->v[p->count].text) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    p->count++;
    return KN_OK;
}

/* `text` stands between braces. */
static int add_field(struct pattern *p, const char *text, size_t len, struct kn_err *err) {
    char name[256];
    const char *colon = memchr(text, ':', len);
    size_t name_len = colon ? (size_t)(colon - text) : len;
    struct name_piece piece = {.kind = FIELD};
    if (name_len == 0 || name_len >= sizeof name)
        return kn_err_set(err, KN_EINVAL, "--name-pattern: {%.*s} names no field", (int)(len > 60 ? 60 : len),
                          text);
    snprintf(name, sizeof name, "%.*s", (int)name_len, text);
    if (colon) {
        const char *digits = colon + 1;
        size_t n = len - name_len - 1;
        if (n == 0 || n > 3 || strspn(digits, "0123456789") < n || (piece.width = atoi(digits)) == 0 ||
            piece.width > WIDTH_MAX)
            return kn_err_set(err, KN_EINVAL,
                              "--name-pattern: {%s:%.*s}: behind the colon stands a number from 1 to %d",
                              name, (int)(n > 20 ? 20 : n), digits, WIDTH_MAX);
    }
    int f = find(field_names, name);
    if (f >= 0) {
        piece.field = (enum name_field)f;
        return add_piece(p, &piece, "", 0, err);
    }
    if (find(later_names, name) >= 0)
        return kn_err_set(
            err, KN_EINVAL,
            "--name-pattern: {%s} is known only when an image has been rendered, and its name before", name);
    piece.kind = COLUMN;
    const char *bare = strncmp(name, "extra.", 6) == 0 ? name + 6 : name;
    return add_piece(p, &piece, bare, strlen(bare), err);
}

static int parse(const char *text, struct pattern *p, struct kn_err *err) {
    const struct name_piece literal = {.kind = LITERAL};
    int rc = KN_OK;
    p->count = 0;
    if (kn_utf8_span(text, strlen(text)) != strlen(text))
        return kn_err_set(err, KN_EINVAL, "--name-pattern: is not UTF-8");
    while (rc == KN_OK && *text) {
        size_t n = strcspn(text, "{}");
        if (n > 0) {
            rc = add_piece(p, &literal, text, n, err);
        } else if (text[0] == text[1]) {
            rc = add_piece(p, &literal, text, 1, err);
            n = 2;
        } else {
            const char *end = text[0] == '{' ? strchr(text, '}') : NULL;
            if (!end)
                return kn_err_set(
                    err, KN_EINVAL,
                    "--name-pattern: \"%.60s\": a brace without its other; {{ and }} are braces", text);
            n = (size_t)(end - text) + 1;
            rc = add_field(p, text + 1, n - 2, err);
        }
        text += n;
    }
    return rc;
}

/* ---- one name ---- */

static char *nfc(const char *text) {
    utf8proc_uint8_t *out = NULL;
    if (utf8proc_map((const utf8proc_uint8_t *)text, 0, &out,
                     UTF8PROC_NULLTERM | UTF8PROC_STABLE | UTF8PROC_COMPOSE) < 0)
        return NULL;
    return (char *)out;
}

char *names_fold(const char *name) {
    utf8proc_uint8_t *out = NULL;
    if (utf8proc_map((const utf8proc_uint8_t *)name, 0, &out,
                     UTF8PROC_NULLTERM | UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_CASEFOLD) < 0)
        return strdup(name); /* not UTF-8: none of kiln's */
    return (char *)out;
}

static bool is_invisible(utf8proc_int32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x2069) || c == 0xfeff;
}

/* Appends text as it may stand in a file's name, `width` characters at most (0: all): characters as a person
 * counts them, so that none loses its accents. */
static int append_clean(struct kn_buf *out, const char *text, int width) {
    char *whole = nfc(text);
    if (!whole) return KN_ENOMEM;
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)whole;
    utf8proc_int32_t before = -1, state = 0, c;
    int rc = KN_OK, characters = 0;
    while (rc == KN_OK && *p) {
        utf8proc_ssize_t n = utf8proc_iterate(p, -1, &c);
        if (n <= 0) break;
        if (before < 0 || utf8proc_grapheme_break_stateful(before, c, &state)) characters++;
        if (width && characters > width) break;
        before = c;
        if (is_invisible(c))
            rc = kn_buf_append(out, " ", 1);
        else if (c < 0x80 && strchr("/\\:*?\"<>|", (int)c))
            rc = kn_buf_append(out, "_", 1);
        else
            rc = kn_buf_append(out, p, (size_t)n);
        p += n;
        if (out->len > NAME_BYTES_MAX / 2) break;
    }
    free(whole);
    return rc;
}

static int append_number(struct kn_buf *out, const char *text, int width) {
    int digits = (int)strspn(text, "0123456789"), rc = KN_OK;
    for (int i = digits; rc == KN_OK && i < width; i++) rc = kn_buf_append(out, "0", 1);
    return rc ? rc : append_clean(out, text, 0);
}

static int append_column(struct kn_buf *out, struct name_piece *piece, const struct named_image *im) {
    bool there;
    json_object *v = column(im->extra, piece->text, &there);
    if (there) piece->seen = true;
    if (!v) return KN_OK;
    const char *text =
        json_object_is_type(v, json_type_string) ? json_object_get_string(v) : json_object_to_json_string(v);
    if (json_object_is_type(v, json_type_int)) return append_number(out, text, piece->width);
    return append_clean(out, text, piece->width);
}

static bool is_reserved(const char *stem) {
    static const char *const names[] = {"con",  "prn",  "aux",  "nul",  "conin$", "conout$",
                                        "com¹", "com²", "com³", "lpt¹", "lpt²",   "lpt³"};
    size_t len = strcspn(stem, ".");
    while (len > 0 && stem[len - 1] == ' ') len--;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == len && strncasecmp(names[i], stem, len) == 0) return true;
    return len == 4 && (strncasecmp(stem, "com", 3) == 0 || strncasecmp(stem, "lpt", 3) == 0) &&
           stem[3] >= '0' && stem[3] <= '9';
}

static size_t trimmed(const char *stem, size_t len) {
    while (len > 0 && (stem[len - 1] == ' ' || stem[len - 1] == '.')) len--;
    return len;
}

/* From what the pattern gave to "images/NAME.png"; the caller frees. NULL: no memory. */
static char *finish(const char *text) {
    const char *stem = text + strspn(text, " ");
    size_t len = strlen(stem);
    if (len >= 4 && strcasecmp(stem + len - 4, ".png") == 0) len -= 4;
    len = trimmed(stem, len);
    char *own = strndup(stem, len), *out = NULL;
    if (!own) return NULL;
    const char *front = is_reserved(own) ? "_" : "";
    size_t room = STEM_BYTES_MAX - strlen(front);
    if (len > room) len = trimmed(own, kn_utf8_cut(own, len, room));
    own[len] = '\0';
    if (own[0] == '.') own[0] = '_'; /* kiln's own temporary files begin with a dot */
    if (asprintf(&out, "images/%s%s.png", front, len ? own : "_") < 0) out = NULL;
    free(own);
    return out;
}

/* An image's name from the pattern, or else from its column `file`. *own: it has such a column. */
static int make(struct pattern *p, const struct named_image *im, struct kn_buf *text, bool *own, char **out) {
    int rc = KN_OK;
    *own = false;
    kn_buf_clear(text);
    for (size_t i = 0; rc == KN_OK && p && i < p->count; i++) {
        struct name_piece *piece = &p->v[i];
        char scratch[KN_SHA256_HEX];
        bool number;
        if (piece->kind == LITERAL) {
            rc = append_clean(text, piece->text, 0);
        } else if (piece->kind == COLUMN) {
            rc = append_column(text, piece, im);
        } else {
            const char *value = field_text(piece->field, im, scratch, &number);
            rc = number ? append_number(text, value, piece->width) : append_clean(text, value, piece->width);
        }
    }
    if (rc == KN_OK && !p) {
        static char file[] = "file";
        struct name_piece piece = {.kind = COLUMN, .text = file};
        rc = append_column(text, &piece, im);
        *own = rc == KN_OK && text->len > 0;
        char number[32];
        if (rc == KN_OK && !*own) {
            snprintf(number, sizeof number, "%06zu", im->index);
            rc = kn_buf_appends(text, number);
        }
    }
    if (rc) return rc;
    *out = finish(text->data ? text->data : "");
    return *out ? KN_OK : KN_ENOMEM;
}

/* ---- all of them ---- */

void names_free(char **names, size_t count) {
    for (size_t i = 0; names && i < count; i++) free(names[i]);
    free(names);
}

static int clash(const struct kn_tasks *tasks, size_t a, size_t b, char *const *names, struct kn_err *err) {
    char lines[80] = "";
    uint32_t of_a = kn_tasks_at(tasks, a)->line, of_b = kn_tasks_at(tasks, b)->line;
    if (of_a && of_b) snprintf(lines, sizeof lines, " (lines %u and %u)", of_a, of_b);
    if (strcmp(names[a], names[b]) == 0)
        return kn_err_set(
            err, KN_EINVAL,
            "images %zu and %zu%s would have the same name: %s; {index} or {seed} tells them apart", a, b,
            lines, names[a]);
    return kn_err_set(
        err, KN_EINVAL,
        "images %zu and %zu%s: %s and %s differ in case alone, and are one file on some file systems", a, b,
        lines, names[a], names[b]);
}

static int check_clashes(const struct kn_tasks *tasks, char *const *names, size_t count, struct kn_err *err) {
    struct kn_map *m = kn_map_create(count + 1);
    int rc = m ? KN_OK : KN_ENOMEM;
    for (size_t i = 0; rc == KN_OK && i < count; i++) {
        char *fold = names_fold(names[i]);
        rc = fold ? kn_map_put(m, fold, strlen(fold), (void *)(uintptr_t)&names[i]) : KN_ENOMEM;
        if (rc == KN_EEXIST) {
            char *const *other = kn_map_get(m, fold, strlen(fold));
            rc = clash(tasks, (size_t)(other - names), i, names, err);
        }
        free(fold);
    }
    kn_map_destroy(m);
    return rc == KN_ENOMEM ? kn_err_set(err, rc, "%s", kn_err_words(rc)) : rc;
}

int names_make(const char *pattern, const struct kn_tasks *tasks, const kn_digest *keys,
               const struct kn_model_info *models, size_t count, char ***out, struct kn_err *err) {
    static struct pattern p;
    struct kn_buf text;
    bool any = pattern != NULL;
    *out = NULL;
    char **v = calloc(count + 1, sizeof *v);
    int rc = v ? KN_OK : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    kn_buf_init(&text, NAME_BYTES_MAX);
    if (rc == KN_OK && pattern) rc = parse(pattern, &p, err);
    for (size_t i = 0; rc == KN_OK && i < count; i++) {
        const struct kn_task *t = kn_tasks_at(tasks, i);
        struct named_image im = {.index = i, .task = t, .key = keys[i], .model = &models[t->model_index]};
        struct json_tokener *tok = t->extra ? json_tokener_new_ex(32) : NULL;
        if (tok) im.extra = json_tokener_parse_ex(tok, t->extra, (int)strlen(t->extra));
        if (tok) json_tokener_free(tok);
        bool own;
        rc = make(pattern ? &p : NULL, &im, &text, &own, &v[i]);
        if (rc) kn_err_set(err, rc, "the name of image %zu: %s", i, kn_err_words(rc));
        any = any || own;
        json_object_put(im.extra);
    }
    for (size_t i = 0; rc == KN_OK && pattern && count && i < p.count; i++)
        if (p.v[i].kind == COLUMN && !p.v[i].seen)
            rc = kn_err_set(
                err, KN_EINVAL,
                "--name-pattern: {%.60s} is neither a field of the manifest nor a column of the input",
                p.v[i].text);
    if (rc == KN_OK && any) rc = check_clashes(tasks, v, count, err);
    pattern_free(&p);
    kn_buf_fini(&text);
    if (rc == KN_OK && any) {
        *out = v;
        return KN_OK;
    }
    names_free(v, count);
    return rc;
}

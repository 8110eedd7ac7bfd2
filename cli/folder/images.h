/* An output folder and what is known of its images: the data that folder.h fills and writes, and that the
 * gallery shows. */
#ifndef KILN_CLI_FOLDER_IMAGES_H
#define KILN_CLI_FOLDER_IMAGES_H

#include "base/fs.h"
#include "base/map.h"
#include "base/prompts.h"
#include "proto/codec.h"

#define FOLDER_FILE_MAX 272 /* "images/", a name of 255 bytes, its end */
#define GALLERY_PART 1000   /* images in one script of the gallery's data */

struct gallery {
    uint32_t *changes; /* owns; a part each: how often one of its images has changed */
    uint32_t *written; /* its value when the part was last written */
    size_t count;      /* parts */
    uint64_t run;      /* tells the page that versions begin anew */
};

struct folder_image { /* an image */
    uint8_t status;   /* 0: not ended yet; enum kn_result_status */
    bool flat;
    bool
        loose; /* not ended, but a picture of kiln's lies at its name: a killed run did not get to write it down */
    uint32_t attempt, render_ms;
    kn_digest sha256, pixels_sha256;
    const char *worker, *backend, *engine, *error; /* interned */
};

/* The images that a folder is to hold, and how; all of it borrowed. */
struct folder_ask {
    const struct kn_tasks *tasks;
    const kn_digest *keys;
    size_t count;
    const struct kn_model_info *models;
    const char *pin_backend;  /* only pictures of this class are kept; NULL: of any */
    const char *name_pattern; /* see names.h; NULL: numbers, or the input's column `file` */
    const char *source;       /* digest of the command's inputs, see submission.h; NULL: none */
    bool replace;             /* an earlier batch may go */
    bool rerender_old;        /* pictures of another version of the engine are not kept */
};

/* How a picture comes from the farm's object to the folder, where both are on this machine. */
enum folder_placing {
    FOLDER_COPY, /* a copy, of the same blocks where the file system can */
    FOLDER_LINK, /* a hard link: whoever edits the picture edits the farm's object */
    FOLDER_MOVE, /* out of the private farm that works for this folder alone */
};

struct folder {
    char dir[KN_PATH_MAX], images[KN_PATH_MAX];
    int lock_fd;
    bool dir_made, lock_made; /* the folder, .lock: not there before */
    enum folder_placing placing;
    unsigned mode; /* of a picture: what the umask leaves of 0666 */
    /* what is asked for; borrowed */
    const struct kn_tasks *tasks;
    const kn_digest *keys;
    const struct kn_model_info *models;
    size_t count;
    const char *request;      /* JSON, borrowed; may be NULL */
    const char *name_pattern; /* borrowed; NULL: none */
    char **names;             /* owns: "images/NAME.png" each; NULL: they are called by their numbers */
    char name[KN_NAME_MAX + 1], id[KN_UUID_TEXT];
    uint64_t created_wall_ms;
    struct folder_image *entries;
    size_t done, failed, cancelled, kept;
    uint32_t *twins;        /* owns; a hash table by sha256: 1 + one of the entries that are done; 0: none */
    size_t twin_slots;      /* a power of two, at least twice `count` */
    struct kn_map *strings; /* text -> its one copy */
    size_t kept_old;        /* of those kept: rendered by another version of the engine */
    char old_engine[KN_NAME_MAX + 1]; /* one of them */
    struct gallery gallery;
    /* writing */
    uint64_t flushed_ms, flush_cost_ms, changes;
    bool finished, described;
    float images_per_s;
    int64_t eta_ms;
};

/* A copy that lives as long as the folder, the same for the same text: thousands of images name the same worker,
 * backend and engine. NULL: no memory. */
const char *folder_intern(struct folder *o, const char *text);
void folder_forget_strings(struct folder *o);

/* SHA-256 over the keys, as batch.json has it. */
void folder_keys_hex(const kn_digest *keys, size_t count, char out[KN_SHA256_HEX]);

/* images/000017.png */
void folder_file_name(uint32_t index, char out[32]);
/* Where image `index` lies or will lie, below the folder. */
const char *folder_file(const struct folder *o, size_t index, char out[FOLDER_FILE_MAX]);
/* True when `file` is a picture's place as kiln makes them: images/ and one name that every file system takes. */
bool folder_file_is_safe(const char *file);

#endif

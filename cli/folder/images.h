/* An output folder and what is known of its images: the data that folder.h fills and writes, and that the
 * gallery shows. */
#ifndef KILN_CLI_FOLDER_IMAGES_H
#define KILN_CLI_FOLDER_IMAGES_H

#include "base/fs.h"
#include "proto/codec.h"

#define GALLERY_PART 1000 /* images in one script of the gallery's data */

struct gallery {
    uint32_t *changes; /* owns; a part each: how often one of its images has changed */
    uint32_t *written; /* its value when the part was last written */
    size_t count;      /* parts */
    uint64_t run;      /* tells the page that versions begin anew */
};

struct folder_image { /* an image */
    uint8_t status;   /* 0: not ended yet; enum kn_result_status */
    bool flat;
    uint32_t attempt, render_ms;
    kn_digest sha256, pixels_sha256;
    const char *worker, *backend, *engine, *error; /* interned */
};

struct folder {
    char dir[KN_PATH_MAX], images[KN_PATH_MAX];
    int lock_fd;
    /* what is asked for; borrowed */
    const struct kn_task *tasks;
    const kn_digest *keys;
    const struct kn_model_info *models;
    size_t count;
    const char *request; /* JSON, borrowed; may be NULL */
    char name[KN_NAME_MAX + 1], id[KN_UUID_TEXT];
    uint64_t created_wall_ms;
    struct folder_image *entries;
    size_t done, failed, cancelled, kept;
    struct folder_strings *strings;
    struct gallery gallery;
    /* writing */
    uint64_t flushed_ms, flush_cost_ms, changes;
    bool finished;
    float images_per_s;
    int64_t eta_ms;
};

/* images/000017.png */
void folder_file_name(uint32_t index, char out[32]);

#endif

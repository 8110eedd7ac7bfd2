/* index.html, the gallery of an output folder. It opens from disk: no server, no network, nothing outside
 * DIR.
 *
 *   DIR/index.html          the page, the same for every batch (cli/folder/gallery.html, built into the program)
 *   DIR/gallery/status.js   counts, speed, time left, and a version for each part
 *   DIR/gallery/0000.js …   parts: what is known of GALLERY_PART images each, in order of index
 *
 * A page that was opened from disk may not fetch() a file, but it may load a script. So the data are scripts
 * that call kiln.status(…) and kiln.part(…); while the batch runs, the page loads status.js again every other
 * second and then those parts whose version has changed. A part is written again only when one of its images
 * has ended since, so that a batch of 100,000 costs no more at its end than at its beginning.
 *
 * Everything a person wrote reaches the page as JSON strings with '<', '>', '&', U+2028 and U+2029 escaped,
 * and is shown as text, never as HTML. */
#ifndef KILN_CLI_FOLDER_GALLERY_H
#define KILN_CLI_FOLDER_GALLERY_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct folder;

/* For o->count images. */
KN_MUST_USE int gallery_init(struct folder *o, struct kn_err *err);
void gallery_fini(struct folder *o);
void gallery_note(struct folder *o, size_t index); /* image `index` has changed */
/* True for a name of a part. */
bool gallery_is_part(const char *name);
/* Writes index.html and removes parts of an older run. */
KN_MUST_USE int gallery_write_page(struct folder *o, struct kn_err *err);
/* Writes the parts that have changed, then status.js. */
KN_MUST_USE int gallery_write_data(struct folder *o, struct kn_err *err);
/* status.js alone: a sign of life. */
KN_MUST_USE int gallery_write_status(struct folder *o, struct kn_err *err);

#endif

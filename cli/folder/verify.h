/* The audit of an output folder, from its files alone: batch.json, manifest.jsonl, images/.
 *
 * It checks that batch.json says how many images N and which models; the manifest has a line for each of
 * them, in order of index, with every field; keys are those of the settings on the line; a `done` line has
 * one regular file with its SHA-256, that decodes as 8-bit RGB of its size to pixels with its pixels_sha256
 * (SHA-256 over the RGB bytes, row by row from the top); a `failed` line has a reason; images/ holds nothing
 * else. The files of images are read by several threads. */
#ifndef KILN_CLI_FOLDER_VERIFY_H
#define KILN_CLI_FOLDER_VERIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/fs.h"

struct verify_fault {
    char *file;    /* "manifest.jsonl", "images/000017.png" …; owned by the report */
    uint32_t line; /* of the manifest; 0: none */
    char *text;
};

struct verify_report {
    char dir[KN_PATH_MAX];
    bool busy;    /* a run is at work in the folder */
    bool on_farm; /* no folder, but a batch on a farm */
    bool has_count;
    uint64_t count;                   /* as batch.json says */
    uint64_t done, failed, cancelled; /* lines */
    uint64_t bytes;                   /* of pictures */
    struct verify_fault *faults;
    size_t fault_count, fault_cap;
};

/* Audits DIR with that many threads (0: two a core, since they wait for the
 * disk, too). Returns 0 when it could, faults or not; KN_EINVAL: not a
 * folder; KN_ECANCELED on Ctrl-C. The report is the caller's to fini in any case. */
KN_MUST_USE int verify_folder(const char *dir, int threads, struct verify_report *out, struct kn_err *err);
void verify_report_fini(struct verify_report *r);
/* Adds a fault to it. KN_ENOMEM. */
KN_MUST_USE KN_PRINTF(4, 5) int verify_fault(struct verify_report *r, const char *file, uint32_t line,
                                             const char *fmt, ...);

#endif

/* The audit of a batch on the farm: each picture that is done is fetched and decoded, its bytes and its pixels compared with the
 * record. One that is bad is reported to the farm, which renders it again. */
#ifndef KILN_CLI_FOLDER_VERIFY_FARM_H
#define KILN_CLI_FOLDER_VERIFY_FARM_H

#include "cli/folder/verify.h"
#include "cli/talk/client.h"

/* out->dir is the batch's id; a fault's `file` is images/NNNNNN.png, as the picture is called in a folder. The report is the
 * caller's to fini in any case. */
KN_MUST_USE int verify_farm(struct client *c, const kn_id id, struct verify_report *out, struct kn_err *err);

#endif

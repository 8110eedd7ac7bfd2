/* Batches, workers and a whole farm as JSON objects; each is the caller's to put. */
#ifndef KILN_CLI_PRINT_JSON_H
#define KILN_CLI_PRINT_JSON_H

#include <json-c/json.h>

#include "proto/codec.h"

json_object *batch_json(const struct kn_batch_status *s);   /* of `kiln status --json` */
json_object *worker_json(const struct kn_worker_status *w); /* of `kiln workers --json` */
/* {"batches":[…],"workers":[…],"images_per_s":…}, of `kiln top --json`. */
json_object *farm_json(const struct kn_batch_list *b, const struct kn_worker_list *w);

#endif

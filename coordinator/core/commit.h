/* Results and failures on their way to the store. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_COMMIT_H
#define KILN_COORDINATOR_CORE_COMMIT_H

#include "coordinator/core/state.h"

/* EV_RESULT. */
int commit_result(struct farm *f, uint64_t conn, const struct ev_result *r, struct farm_effects *fx);
/* EV_STORED of a commit or a failure. */
int commit_stored(struct farm *f, const struct ev_stored *s, struct farm_effects *fx);

#endif

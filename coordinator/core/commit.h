/* Results as they come, and answers of the store to what is on its way there. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_COMMIT_H
#define KILN_COORDINATOR_CORE_COMMIT_H

#include "coordinator/core/state.h"

/* EV_RESULT: the first result of a task is committed, another one is compared with it. */
int commit_result(struct farm *f, uint64_t conn, const struct ev_result *r, struct farm_effects *fx);
/* EV_STORED of an FX_COMMIT or FX_FAIL. */
int commit_stored(struct farm *f, const struct ev_stored *s, struct farm_effects *fx);

#endif

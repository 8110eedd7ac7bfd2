/* What a person may do with a batch. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_CONTROL_H
#define KILN_COORDINATOR_CORE_CONTROL_H

#include "coordinator/core/state.h"

int control_cancel(struct farm *f, struct batch *b, struct farm_effects *fx);
int control_pause(struct farm *f, struct batch *b, struct farm_effects *fx);
int control_resume(struct farm *f, struct batch *b, struct farm_effects *fx);
int control_retry(struct farm *f, struct batch *b, struct farm_effects *fx);
int control_priority(struct farm *f, struct batch *b, int priority, struct farm_effects *fx);
int control_remove(struct farm *f, struct batch *b, struct farm_effects *fx);

#endif

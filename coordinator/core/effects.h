/* The list of effects that a step fills. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_EFFECTS_H
#define KILN_COORDINATOR_CORE_EFFECTS_H

#include "coordinator/core/farm.h"

/* Afterwards `more` calls of fx_add succeed. KN_ENOMEM. */
KN_MUST_USE int fx_reserve(struct farm_effects *fx, size_t more);
/* A zeroed effect; asserts that there is room. */
struct farm_effect *fx_add(struct farm_effects *fx, enum farm_effect_type type);
/* Room for bytes that live as long as the list; NULL: out of memory. */
void *fx_bytes(struct farm_effects *fx, size_t size);
/* A copy that lives as long as the list; without memory a text that says so. Never NULL. */
const char *fx_text(struct farm_effects *fx, const char *s);
/* A line for the log or an alarm; dropped when there is no memory for it. */
void fx_note(struct farm_effects *fx, enum farm_effect_type type, const kn_id batch, const char *fmt, ...)
    KN_PRINTF(4, 5);

#endif

/* The list of effects that a step fills. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_EFFECTS_H
#define KILN_COORDINATOR_CORE_EFFECTS_H

#include "coordinator/core/farm.h"

/* Makes room for `more` calls of fx_add. KN_ENOMEM. */
KN_MUST_USE int fx_reserve(struct farm_effects *fx, size_t more);
/* Appends an effect, zeroed but for its type; asserts that there is room. */
struct farm_effect *fx_add(struct farm_effects *fx, enum farm_effect_type type);
/* Bytes that live until the list is cleared. NULL: out of memory. */
void *fx_bytes(struct farm_effects *fx, size_t size);
/* A copy that lives until the list is cleared; when there is no memory, a text that says so. Never NULL. */
const char *fx_text(struct farm_effects *fx, const char *s);
/* Appends an FX_NOTE or FX_ALARM with this text; dropped when there is no memory for it. */
void fx_note(struct farm_effects *fx, enum farm_effect_type type, const kn_id batch, const char *fmt, ...)
    KN_PRINTF(4, 5);

#endif

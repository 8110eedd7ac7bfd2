/* See roles.h. */
#include "coordinator/roles.h"

#include <stdio.h>
#include <string.h>

#define BIT(role) (1u << KN_ROLE_##role)
#define W BIT(WORKER)
#define C BIT(CLIENT)
#define A BIT(ADMIN)
#define R BIT(READ)

/* A client's requests about a batch are about its own besides, see roles_batch_of(). What is not here, a coordinator sends
 * and hears from nobody. Enrol is also for keys that are not on the list: it is the only one. */
static const struct {
    enum kn_msg_type type;
    unsigned who;
    bool changes;
} table[] = {
    {KN_MSG_ENROL, W | C | A | R, false},

    {KN_MSG_WORKER_HELLO, W | A, false},
    {KN_MSG_HEARTBEAT, W | A, false},
    {KN_MSG_SHARD_STARTED, W | A, false},
    {KN_MSG_SHARD_RETURNED, W | A, false},
    {KN_MSG_SHARD_DONE, W | A, false},
    {KN_MSG_TASK_FAILED, W | A, false},
    {KN_MSG_PROBED, W | A, false},
    {KN_MSG_WORKER_BYE, W | A, false},
    {KN_MSG_DATA_HELLO, W | A, false},
    {KN_MSG_IMAGE_RESULT, W | A, false},

    {KN_MSG_CLIENT_HELLO, C | A | R, false},
    {KN_MSG_BATCH_QUERY, C | A | R, false},
    {KN_MSG_WORKERS_QUERY, C | A | R, false},
    {KN_MSG_MODELS_QUERY, C | A | R, false},
    {KN_MSG_FARM_QUERY, C | A | R, false},
    {KN_MSG_EXPLAIN_QUERY, C | A | R, false},
    {KN_MSG_RESULTS_QUERY, C | A | R, false},
    {KN_MSG_TASKS_QUERY, C | A | R, false},
    {KN_MSG_OBJECT_GET, C | A | R, false},

    {KN_MSG_SUBMIT_BEGIN, C | A, true},
    {KN_MSG_SUBMIT_CHUNK, C | A, true},
    {KN_MSG_SUBMIT_SEAL, C | A, true},
    {KN_MSG_BATCH_COMMAND, C | A, true},
    {KN_MSG_PICTURE_REPORT, C | A, true},

    {KN_MSG_WORKER_COMMAND, A, true},
    {KN_MSG_REPAIR_COMMAND, A, true},
    {KN_MSG_TOKEN_NEW, A, true},
    {KN_MSG_TOKEN_REMOVE, A, true},
    {KN_MSG_TOKENS_QUERY, A, false},
    {KN_MSG_KEYS_QUERY, A, false},
    {KN_MSG_KEY_REMOVE, A, true},
};
#define COUNT (sizeof table / sizeof table[0])

static unsigned who_may(enum kn_msg_type type) {
    for (size_t i = 0; i < COUNT; i++)
        if (table[i].type == type) return table[i].who;
    return 0;
}

bool role_may(enum kn_role role, enum kn_msg_type type) {
    return role >= KN_ROLE_WORKER && role <= KN_ROLE_READ && (who_may(type) >> role & 1u);
}

bool roles_changes(enum kn_msg_type type) {
    for (size_t i = 0; i < COUNT; i++)
        if (table[i].type == type) return table[i].changes;
    return true;
}

const char *roles_of(enum kn_msg_type type, char out[ROLES_TEXT_MAX]) {
    size_t used = 0;
    snprintf(out, ROLES_TEXT_MAX, "nobody");
    for (enum kn_role r = KN_ROLE_WORKER; r <= KN_ROLE_READ; r++)
        if (role_may(r, type))
            used += (size_t)snprintf(out + used, ROLES_TEXT_MAX - used, "%s%s", used ? ", " : "",
                                     kn_role_name(r));
    return out;
}

const uint8_t *roles_batch_of(const struct kn_msg *m) {
    switch ((int)m->type) {
    case KN_MSG_SUBMIT_BEGIN:
        return m->u.submit_begin.batch;
    case KN_MSG_SUBMIT_CHUNK:
        return m->u.submit_chunk.batch;
    case KN_MSG_SUBMIT_SEAL:
        return m->u.submit_seal.batch;
    case KN_MSG_BATCH_QUERY:
        return m->u.batch_query.has_batch ? m->u.batch_query.batch : NULL;
    case KN_MSG_BATCH_COMMAND:
        return m->u.batch_command.batch;
    case KN_MSG_RESULTS_QUERY:
        return m->u.results_query.batch;
    case KN_MSG_TASKS_QUERY:
        return m->u.tasks_query.batch;
    case KN_MSG_EXPLAIN_QUERY:
        return m->u.explain_query.batch;
    case KN_MSG_PICTURE_REPORT:
        return m->u.picture_report.batch;
    default:
        return NULL;
    }
}

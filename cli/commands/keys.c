/* kiln keys: which machines and people may use a farm over the network. */
#include <string.h>

#include "base/keys.h"
#include "cli/commands/commands.h"
#include "cli/print/print.h"
#include "cli/talk/batch.h"

/* By its name, or the beginning of its fingerprint. */
static int find(const struct kn_key_list *l, const char *text, const struct kn_key_info **out,
                struct kn_err *err) {
    char print[KN_FINGERPRINT_TEXT];
    size_t found = 0, len = strlen(text);
    for (size_t i = 0; i < l->count; i++) {
        struct kn_public_key key;
        memcpy(key.bytes, l->v[i].key, sizeof key.bytes);
        kn_fingerprint(&key, print);
        if (strcmp(l->v[i].name, text) == 0) { /* no two keys have one name */
            *out = &l->v[i];
            return KN_OK;
        }
        if (len < 4 || strncmp(print, text, len) != 0) continue;
        *out = &l->v[i];
        found++;
    }
    if (found == 1) return KN_OK;
    return kn_err_set(err, KN_ENOENT, "%.60s: %s; kiln keys lists them", text,
                      found ? "several keys begin so" : "no key has that name or fingerprint");
}

static int ask(struct client *c, struct kn_msg **out, struct kn_err *err) {
    struct kn_msg q = {.type = KN_MSG_KEYS_QUERY};
    return client_call(c, &q, KN_MSG_KEY_LIST, CLIENT_PATIENCE_MS, out, err);
}

static int take_away(struct client *c, const char *text, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_KEY_REMOVE}, *r = NULL;
    const struct kn_key_info *k = NULL;
    int rc = ask(c, &r, err);
    if (rc == KN_OK) rc = find(&r->u.key_list, text, &k, err);
    if (rc == KN_OK) memcpy(m.u.key_remove.key, k->key, sizeof m.u.key_remove.key);
    kn_msg_destroy(r);
    return rc == KN_OK ? client_call(c, &m, KN_MSG_REPLY, CLIENT_PATIENCE_MS, NULL, err) : rc;
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct kn_msg *r = NULL;
    const char *verb = o->arg_count ? o->args[0] : "ls";
    bool lists = strcmp(verb, "ls") == 0, removes = strcmp(verb, "rm") == 0;
    cli_catch_signals();
    int rc = KN_OK;
    if (!lists && !removes)
        rc = kn_err_set(&err, KN_EINVAL, "keys %.40s: expected ls or rm", verb);
    else if (removes ? o->arg_count < 2 : o->arg_count > 1)
        rc = kn_err_set(&err, KN_EINVAL, "usage: kiln keys [ls], kiln keys rm NAME|FINGERPRINT…");
    if (rc == KN_OK) rc = farm_steer(o, &c, &err);
    if (rc == KN_OK && lists && (rc = ask(c, &r, &err)) == KN_OK) print_for(o)->keys(&r->u.key_list);
    for (int i = 1; rc == KN_OK && removes && i < o->arg_count; i++) rc = take_away(c, o->args[i], &err);
    kn_msg_destroy(r);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_keys = {
    .name = "keys",
    .usage = "[ls|rm NAME|FINGERPRINT…] [options]",
    .words = "who may use the farm over the network",
    .more =
        "Each machine and person that came by a token (kiln token) has a key of its own on the farm's list. rm takes it "
        "off: it is out at once, and what its worker held is rendered by others. A new token lets it in again.",
    .examples =
        "  kiln keys\n"
        "  kiln keys rm gpu3\n"
        "  kiln keys ls --json\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT | CLI_G_JSON,
    .args_min = 0,
    .args_max = -1,
    .run = run,
};

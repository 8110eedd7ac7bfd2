/* kiln token: the strings by which machines and people come on a farm's list of keys. */
#include <stdio.h>
#include <string.h>

#include "base/token.h"
#include "cli/commands/commands.h"
#include "cli/print/print.h"
#include "cli/talk/batch.h"

#define TTL_MS (60 * 60 * 1000ull) /* where no --ttl says otherwise */

static int make(const struct cli_options *o, struct client *c, struct kn_err *err) {
    const struct kn_welcome *w = client_welcome(c);
    struct kn_public_key server;
    struct kn_token t;
    kn_digest digest;
    struct kn_msg m = {.type = KN_MSG_TOKEN_NEW};
    struct kn_token_new *n = &m.u.token_new;
    int roles = o->role_worker + o->role_client + o->role_admin + o->role_read;
    if (roles > 1) return kn_err_set(err, KN_EINVAL, "--worker, --client, --admin and --read: one of them");
    if (w->farm_key_len != sizeof server.bytes)
        return kn_err_set(
            err, KN_ESTATE,
            "this farm listens on Unix sockets alone, where nobody needs a key; kiln up --listen "
            "tcp://0.0.0.0:5600 makes it a farm for other machines");
    memcpy(server.bytes, w->farm_key, sizeof server.bytes);
    int rc = kn_token_make(&server, &t, err);
    if (rc) return rc;
    kn_token_digest(t.id, t.secret, digest);
    n->id = t.id;
    n->id_len = sizeof t.id;
    memcpy(n->digest, digest, sizeof n->digest);
    n->role = o->role_client  ? KN_ROLE_CLIENT
              : o->role_admin ? KN_ROLE_ADMIN
              : o->role_read  ? KN_ROLE_READ
                              : KN_ROLE_WORKER;
    n->name = o->name ? o->name : "";
    n->ephemeral = o->ephemeral;
    n->ttl_ms = o->has_ttl ? o->ttl_ms : TTL_MS;
    n->uses = o->uses ? o->uses : 1;
    rc = client_call(c, &m, KN_MSG_REPLY, CLIENT_PATIENCE_MS, NULL, err);
    if (rc == KN_OK) print_for(o)->token(&t, n);
    return rc;
}

static int list(const struct cli_options *o, struct client *c, struct kn_err *err) {
    struct kn_msg q = {.type = KN_MSG_TOKENS_QUERY}, *r = NULL;
    int rc = client_call(c, &q, KN_MSG_TOKEN_LIST, CLIENT_PATIENCE_MS, &r, err);
    if (rc == KN_OK) print_for(o)->tokens(&r->u.token_list);
    kn_msg_destroy(r);
    return rc;
}

static int take_away(struct client *c, const char *text, struct kn_err *err) {
    struct kn_msg q = {.type = KN_MSG_TOKENS_QUERY}, m = {.type = KN_MSG_TOKEN_REMOVE}, *r = NULL;
    uint8_t id[KN_TOKEN_ID_BYTES];
    char hex[2 * KN_TOKEN_ID_BYTES + 1];
    size_t found = 0, len = strlen(text);
    int rc = client_call(c, &q, KN_MSG_TOKEN_LIST, CLIENT_PATIENCE_MS, &r, err);
    for (size_t i = 0; rc == KN_OK && i < r->u.token_list.count; i++) {
        const struct kn_token_info *t = &r->u.token_list.v[i];
        if (t->id_len != sizeof id) continue;
        kn_hex(t->id, sizeof id, hex);
        if (len < 4 || strncmp(hex, text, len) != 0) continue;
        memcpy(id, t->id, sizeof id);
        found++;
    }
    kn_msg_destroy(r);
    if (rc) return rc;
    if (found != 1)
        return kn_err_set(err, KN_ENOENT, "%.40s: %s; kiln token ls lists them", text,
                          found ? "several tokens begin so" : "no token has such an id");
    m.u.token_remove.id = id;
    m.u.token_remove.id_len = sizeof id;
    return client_call(c, &m, KN_MSG_REPLY, CLIENT_PATIENCE_MS, NULL, err);
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    const char *verb = o->args[0];
    bool makes = strcmp(verb, "new") == 0, lists = strcmp(verb, "ls") == 0, removes = strcmp(verb, "rm") == 0;
    cli_catch_signals();
    int rc = KN_OK;
    if (!makes && !lists && !removes)
        rc = kn_err_set(&err, KN_EINVAL, "token %.40s: expected new, ls or rm", verb);
    else if (removes ? o->arg_count < 2 : o->arg_count > 1)
        rc = kn_err_set(&err, KN_EINVAL, "usage: kiln token new [options], kiln token ls, kiln token rm ID…");
    if (rc == KN_OK) rc = farm_steer(o, &c, &err);
    if (rc == KN_OK && makes) rc = make(o, c, &err);
    if (rc == KN_OK && lists) rc = list(o, c, &err);
    for (int i = 1; rc == KN_OK && removes && i < o->arg_count; i++) rc = take_away(c, o->args[i], &err);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_token = {
    .name = "token",
    .usage = "new|ls|rm [ID…] [options]",
    .words = "let machines and people onto the farm",
    .more =
        "A token is a string that a worker or a command shows once, to have its own key put on the farm's list: "
        "kiln-worker --join tcp://HOST:5600 --token @FILE. It is printed here and kept nowhere; the farm keeps a digest "
        "of it. ls shows those that are open, rm takes them back. Keys that have come on the list by them stay "
        "(kiln keys).",
    .examples =
        "  kiln token new --name gpu3 > token          one worker, within an hour\n"
        "  kiln token new --uses 50 --ttl 1d --ephemeral > token\n"
        "  kiln token new --client --name ann\n"
        "  kiln token ls\n"
        "  kiln token rm 3f9a\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT | CLI_G_TOKEN | CLI_G_JSON,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};

/* Who may say what to a coordinator that listens by TCP: keys of each role, and keys that are not on its list. The whole
 * shell, with the store in memory; the peers are this test's. */
#include "tests/unit/check.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/enrol.h"
#include "coordinator/keys.h"
#include "coordinator/recover.h"
#include "coordinator/roles.h"
#include "coordinator/ticket.h"
#include "proto/gate.h"
#include "tests/unit/proto_messages.h"
#include "tests/unit/store_memory.h"

#define PATIENCE_MS 20000
#define ROLES 4
#define SAID 5000 /* messages that are drawn; about a third may be said by whoever is drawn */

struct peer {
    struct kn_wire *wire;
    struct kn_sock *sock;
    struct kn_key_pair keys;
    struct kn_msg *last; /* owns: what came last */
    int heard, ended;
    bool room;
};

static uv_loop_t loop;
static char dir[64], tcp[KN_ENDPOINT_MAX + 1];
static struct store_disk *disk;
static struct server *server;
static struct peer known[ROLES + 1]; /* one of each role, and another worker */

static void on_message(struct kn_sock *s, void *ctx, const struct kn_peer *from, struct kn_msg *m,
                       struct kn_blob *blob) {
    struct peer *p = ctx;
    (void)s;
    (void)from;
    (void)blob;
    kn_msg_destroy(p->last);
    p->last = m;
    p->heard++;
}

static void on_room(struct kn_sock *s, void *ctx) {
    (void)s;
    ((struct peer *)ctx)->room = true;
}

static void on_broken(struct kn_sock *s, void *ctx) {
    (void)s;
    ((struct peer *)ctx)->ended++;
}

static void on_tick(uv_timer_t *t) {
    (void)t;
}

static void turn(void) {
    uv_timer_t tick;
    uv_timer_init(&loop, &tick);
    uv_timer_start(&tick, on_tick, 5, 5);
    uv_run(&loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&tick, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
}

static void make_keys(const char *name, struct kn_key_pair *out) {
    struct kn_err err = {0};
    CHECK_MSG(kn_key_pair_keep(dir, name, out, &err) == 0, "%s", err.text);
}

static void connect_to(struct peer *p, bool data) {
    struct kn_sock_options opt = {
        .blobs = data, .recv = on_message, .writable = on_room, .broken = on_broken, .ctx = p};
    const struct kn_welcome w = {.data_port = server->data_port};
    char endpoint[KN_ENDPOINT_MAX + 1];
    struct kn_err err = {0};
    CHECK_INT(kn_wire_create(&loop, &p->wire, &err), 0);
    kn_wire_use_keys(p->wire, &p->keys, &server->pair.own);
    CHECK_INT(kn_sock_create(p->wire, &opt, &p->sock, &err), 0);
    snprintf(endpoint, sizeof endpoint, "%s", tcp);
    if (data) CHECK_INT(kn_endpoint_data(tcp, &w, endpoint, &err), 0);
    CHECK_MSG(kn_sock_connect(p->sock, endpoint, &err) == 0, "%s", err.text);
    for (uint64_t end = kn_clock_ms() + PATIENCE_MS; !p->room && kn_clock_ms() < end;) turn();
    CHECK(p->room);
}

static void connect_peer(struct peer *p) {
    connect_to(p, false);
}

static void say(struct peer *p, enum kn_msg_type type) {
    struct kn_msg m;
    struct kn_err err = {0};
    proto_example(type, &m);
    m.request = 7;
    CHECK_MSG(kn_sock_send(p->sock, NULL, &m, NULL, &err) == 0, "%s: %s", kn_msg_name(type), err.text);
}

static const struct kn_msg *answer(struct peer *p, int before) {
    for (uint64_t end = kn_clock_ms() + PATIENCE_MS; p->heard == before && kn_clock_ms() < end;) turn();
    CHECK_INT(p->heard, before + 1);
    return p->last;
}

static void leave(struct peer *p) {
    kn_sock_destroy(p->sock);
    for (int i = 0; i < 20; i++) turn();
    kn_wire_destroy(p->wire);
    kn_msg_destroy(p->last);
}

static void begin(void) {
    struct kn_err err = {0};
    struct store *store;
    char name[16], hex[2 * KN_KEY_BYTES + 1], text[32];
    kn_log_init("test", KN_LOG_ERROR);
    strcpy(dir, "/tmp/kn-strangers-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    struct server_options o = {
        .dir = dir, .listen = {"tcp://127.0.0.1:0"}, .listen_count = 1, .no_scrub = true};
    struct kn_gate_plan plan = kn_gate_plan(1024);
    CHECK_INT(kn_gate_set(&plan), 0);
    CHECK_INT(uv_loop_init(&loop), 0);
    disk = store_disk_create();
    CHECK_INT(store_memory_open(disk, &loop, &store, &err), 0);
    for (int i = 0; i <= ROLES; i++) { /* as an earlier coordinator left them */
        known[i] = (struct peer){0};
        snprintf(name, sizeof name, "key-%d", i + 1);
        make_keys(name, &known[i].keys);
        kn_hex(known[i].keys.own.bytes, KN_KEY_BYTES, hex);
        snprintf(text, sizeof text, "%d 0 5 %s", i % ROLES + 1, name);
        CHECK_INT(store_put(store, STORE_KEYS, hex, text, NULL, NULL), 0);
    }
    CHECK_MSG(server_create(&loop, &o, store, &server, &err) == 0, "%s", err.text);
    CHECK_MSG(server_recover(server, &err) == 0, "%s", err.text);
    CHECK_MSG(server_listen(server, &err) == 0, "%s", err.text);
    snprintf(tcp, sizeof tcp, "%s", server->listeners[0].endpoint);
}

static void end(void) {
    char command[128];
    server_close(server);
    for (int i = 0; i < 500 && uv_run(&loop, UV_RUN_NOWAIT); i++) usleep(1000);
    server_destroy(server);
    CHECK_INT(uv_loop_close(&loop), 0);
    store_disk_destroy(disk);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK_INT(system(command), 0);
}

TEST(each_role_may_send_what_the_table_says_and_nobody_what_a_coordinator_sends) {
    static const enum kn_msg_type own[] = {KN_MSG_WELCOME, KN_MSG_SHARD_GRANT, KN_MSG_REPLY, KN_MSG_ENROLLED,
                                           KN_MSG_PROBE};
    char text[ROLES_TEXT_MAX];
    for (size_t i = 0; i < proto_type_count; i++) {
        enum kn_msg_type t = proto_types[i];
        bool somebody = false;
        for (enum kn_role r = KN_ROLE_WORKER; r <= KN_ROLE_READ; r++) somebody |= role_may(r, t);
        CHECK_INT(role_may(KN_ROLE_ADMIN, t), somebody); /* everything that anybody may */
        if (role_may(KN_ROLE_READ, t) && t != KN_MSG_ENROL) CHECK(!roles_changes(t));
        if (role_may(KN_ROLE_WORKER, t) && t != KN_MSG_ENROL) CHECK(!role_may(KN_ROLE_CLIENT, t));
        CHECK(!role_may((enum kn_role)0, t) && !role_may((enum kn_role)9, t));
    }
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) CHECK_STR(roles_of(own[i], text), "nobody");
    CHECK_STR(roles_of(KN_MSG_SUBMIT_BEGIN, text), "client, admin");
    CHECK_STR(roles_of(KN_MSG_KEYS_QUERY, text), "admin");
}

/* Each message from each role, and behind them one that is answered: the coordinator is there, and the connection too. */
TEST(what_a_role_may_not_say_is_refused_in_words) {
    begin();
    for (int i = 0; i < ROLES; i++) {
        struct peer *p = &known[i];
        connect_peer(p);
        for (size_t k = 0; k < proto_type_count; k++) {
            enum kn_msg_type t = proto_types[k];
            int before = p->heard;
            if (role_may((enum kn_role)(i + 1), t)) continue;
            say(p, t);
            const struct kn_msg *m = answer(p, before);
            CHECK_U64(m->request, 7);
            int code = m->type == KN_MSG_OBJECT_REPLY ? m->u.object_reply.code : m->u.reply.code;
            CHECK_MSG(code == KN_EPERM, "%s as %s: %d", kn_msg_name(t), kn_role_name((enum kn_role)(i + 1)),
                      code);
        }
        say(p, KN_MSG_ENROL); /* of a key that is on the list: it is told its name again */
        CHECK_INT(answer(p, p->heard)->type, KN_MSG_ENROLLED);
        CHECK_INT(p->ended, 0);
        leave(p);
    }
    end();
}

/* Everything that each may say, in any order and on either socket: what it means is somebody else's test; here the
 * coordinator is there afterwards, and so are the connections. */
TEST(each_role_may_say_all_it_may_in_any_order) {
    uint64_t seed = 21;
    struct peer data[ROLES] = {0};
    begin();
    for (int i = 0; i < ROLES; i++) {
        connect_peer(&known[i]);
        data[i].keys = known[i].keys;
        connect_to(&data[i], true);
    }
    for (int n = 0; n < SAID; n++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        int who = (int)(seed >> 33) % ROLES;
        enum kn_msg_type t = proto_types[(seed >> 40) % proto_type_count];
        struct kn_msg m;
        if (!role_may((enum kn_role)(who + 1), t)) continue;
        proto_example(t, &m);
        m.request = seed >> 60 ? seed >> 50 : 0;
        struct kn_sock *sock = seed >> 20 & 1 ? known[who].sock : data[who].sock;
        (void)!kn_sock_send(sock, NULL, &m, NULL, NULL);
        if (n % 16 == 0) turn();
    }
    for (int i = 0; i < 50; i++) turn();
    for (int i = 0; i < ROLES; i++) {
        CHECK_INT(known[i].ended + data[i].ended, 0);
        say(&known[i], KN_MSG_ENROL);
        for (uint64_t until = kn_clock_ms() + PATIENCE_MS;
             (!known[i].last || known[i].last->type != KN_MSG_ENROLLED || known[i].last->request != 7) &&
             kn_clock_ms() < until;)
            turn();
        CHECK_INT(known[i].last->type, KN_MSG_ENROLLED);
        leave(&known[i]);
        leave(&data[i]);
    }
    end();
}

TEST(a_client_sees_no_batch_but_its_own) {
    static const enum kn_msg_type about[] = {KN_MSG_SUBMIT_CHUNK,  KN_MSG_SUBMIT_SEAL,   KN_MSG_BATCH_QUERY,
                                             KN_MSG_BATCH_COMMAND, KN_MSG_RESULTS_QUERY, KN_MSG_TASKS_QUERY,
                                             KN_MSG_EXPLAIN_QUERY, KN_MSG_PICTURE_REPORT};
    struct peer *p = &known[KN_ROLE_CLIENT - 1];
    begin();
    connect_peer(p);
    for (size_t i = 0; i < sizeof about / sizeof about[0]; i++) {
        struct kn_msg m;
        proto_example(about[i], &m);
        CHECK(roles_batch_of(&m) != NULL);
        int before = p->heard;
        say(p, about[i]);
        const struct kn_msg *r = answer(p, before);
        CHECK_INT(r->type, KN_MSG_REPLY);
        CHECK_INT(r->u.reply.code, KN_ENOENT);
        CHECK_STR(r->u.reply.text, "no such batch");
    }
    leave(p);
    end();
}

TEST(a_stranger_may_say_one_thing_and_is_ended_at_the_second) {
    struct peer p = {0};
    begin();
    make_keys("stranger", &p.keys);
    connect_peer(&p);
    say(&p, KN_MSG_CLIENT_HELLO);
    const struct kn_msg *m = answer(&p, 0);
    CHECK_INT(m->type, KN_MSG_REPLY);
    CHECK_INT(m->u.reply.code, KN_EPERM);
    CHECK(strstr(m->u.reply.text, "kiln token new"));
    CHECK_INT(p.ended, 0);
    say(&p, KN_MSG_ENROL);
    /* …and not only when it has been a stranger for too long */
    for (uint64_t until = kn_clock_ms() + STRANGER_MS / 2; !p.ended && kn_clock_ms() < until;) turn();
    CHECK_INT(p.ended, 1);
    CHECK_INT(p.heard, 1);
    leave(&p);
    end();
}

TEST(a_client_gets_no_object_that_no_batch_of_its_own_names) {
    begin();
    for (int i = KN_ROLE_CLIENT - 1; i < ROLES; i++) {
        struct peer *p = &known[i];
        connect_to(p, true);
        say(p, KN_MSG_OBJECT_GET);
        const struct kn_msg *m = answer(p, 0);
        CHECK_INT(m->type, KN_MSG_OBJECT_REPLY);
        CHECK_INT(m->u.object_reply.code, i + 1 == KN_ROLE_CLIENT ? KN_EPERM : KN_ENOENT);
        leave(p);
    }
    end();
}

/* ---- a worker's own */

static const kn_id batch = {0xb, 1};

static int ask(struct peer *p, struct kn_msg *m) {
    int before = p->heard;
    m->request = 7;
    CHECK_INT(kn_sock_send(p->sock, NULL, m, NULL, NULL), 0);
    const struct kn_msg *r = answer(p, before);
    CHECK_INT(r->type, KN_MSG_REPLY);
    return r->u.reply.code;
}

/* Of one task, by the admin. */
static void submit(struct peer *admin) {
    struct kn_model_info model = {.name = "m", .size_multiple = 8, .sha256 = {7}};
    struct kn_task task = {
        .prompt = "p", .negative = "", .cfg = 7, .steps = 2, .width = 64, .height = 64, .set = KN_SET_ALL};
    struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN};
    struct kn_buf b;
    model.defaults = (struct kn_defaults){KN_SAMPLER_EULER, KN_SCHEDULE_NORMAL, 20, 7, 64, 64, false};
    task.sampler = KN_SAMPLER_EULER;
    task.schedule = KN_SCHEDULE_NORMAL;
    m.u.submit_begin = (struct kn_submit_begin){.name = "n",
                                                .pin_backend = "",
                                                .request = "{}",
                                                .tasks = 1,
                                                .chunks = 1,
                                                .models = &model,
                                                .model_count = 1};
    memcpy(m.u.submit_begin.batch, batch, sizeof batch);
    CHECK_INT(ask(admin, &m), 0);
    kn_buf_init(&b, 1u << 20);
    CHECK_INT(kn_chunk_pack(&task, 1, &b, NULL), 0);
    m = (struct kn_msg){.type = KN_MSG_SUBMIT_CHUNK};
    m.u.submit_chunk.count = 1;
    m.u.submit_chunk.tasks = (const uint8_t *)b.data;
    m.u.submit_chunk.tasks_len = b.len;
    memcpy(m.u.submit_chunk.batch, batch, sizeof batch);
    CHECK_INT(ask(admin, &m), 0);
    kn_buf_fini(&b);
    m = (struct kn_msg){.type = KN_MSG_SUBMIT_SEAL};
    memcpy(m.u.submit_seal.batch, batch, sizeof batch);
    CHECK_INT(ask(admin, &m), 0);
}

/* Brings no bytes: who is believed to have been granted the task is told that they lack. */
static int bring(struct peer *p, const char *name, const uint8_t *ticket, size_t len) {
    struct kn_msg m = {.type = KN_MSG_IMAGE_RESULT};
    int before = p->heard;
    m.u.image_result = (struct kn_image_result){.shard = 5,
                                                .term = server->store->term,
                                                .worker = name,
                                                .backend = "class-1",
                                                .engine = "",
                                                .ticket = ticket,
                                                .ticket_len = len};
    memcpy(m.u.image_result.batch, batch, sizeof batch);
    CHECK_INT(kn_sock_send(p->sock, NULL, &m, NULL, NULL), 0);
    const struct kn_msg *r = answer(p, before);
    CHECK_INT(r->type, KN_MSG_IMAGE_ACK);
    return r->u.image_ack.code;
}

TEST(a_worker_brings_what_its_own_key_was_granted_under_its_own_name) {
    struct peer *admin = &known[KN_ROLE_ADMIN - 1], *one = &known[0], *two = &known[ROLES];
    uint8_t ticket[TICKET_BYTES_MAX];
    char hex[KEYS_HOLDER_MAX];
    const uint32_t task = 0;
    begin();
    connect_peer(admin);
    submit(admin);
    connect_to(one, true);
    connect_to(two, true);
    struct ticket_grant g = {batch, 5, server->store->term, keys_holder(&one->keys.own, "", hex)};
    size_t len = ticket_make(server->store->secret, &g, &task, 1, ticket);
    CHECK_INT(bring(two, "key-5", ticket, len), KN_EPERM); /* another's grant */
    CHECK_INT(bring(two, "key-1", ticket, len), KN_EPERM); /* …and another's name */
    CHECK_INT(bring(one, "key-5", ticket, len), KN_EPERM);
    CHECK_INT(bring(one, "key-1", ticket, 0), KN_EPERM);
    CHECK_INT(bring(one, "key-1-2", ticket, len), KN_EPROTO);
    CHECK_INT(bring(one, "key-1", ticket, len), KN_EPROTO);
    leave(one);
    leave(two);
    leave(admin);
    end();
}

/* ---- tokens */

static const uint8_t secret[KN_TOKEN_SECRET_BYTES] = {9};

/* A token as an earlier coordinator left it. */
static void have_token(uint8_t id, uint32_t uses, int64_t made_ago_ms, int64_t expired_ago_ms) {
    struct known_token t = {.id = {id}, .role = KN_ROLE_WORKER, .uses = uses};
    char field[2 * KN_TOKEN_ID_BYTES + 1], text[KEYS_TEXT_MAX];
    t.made_wall_ms = kn_wall_ms() - (uint64_t)made_ago_ms;
    t.expires_wall_ms = expired_ago_ms ? kn_wall_ms() - (uint64_t)expired_ago_ms : 0;
    kn_token_digest(t.id, secret, t.digest);
    kn_hex(t.id, sizeof t.id, field);
    keys_token_text(&t, text);
    CHECK_INT(keys_read(server, STORE_TOKENS, field, text), 0);
}

TEST(a_token_that_lets_nobody_in_is_refused_with_its_reason) {
    static const struct {
        uint8_t id;
        const char *said;
    } cases[] = {{1, "used up"},
                 {2, "the clock of the coordinator's machine is wrong"},
                 {3, "expired 5 s ago"},
                 {4, "no such token"}};
    begin();
    have_token(1, 0, 1000, 0);
    have_token(2, 1, -3600000, 0);
    have_token(3, 1, 10000, 5500);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct peer p = {0};
        struct kn_msg m = {.type = KN_MSG_ENROL};
        uint8_t id[KN_TOKEN_ID_BYTES] = {cases[i].id};
        make_keys("newcomer", &p.keys);
        connect_peer(&p);
        m.u.enrol = (struct kn_enrol){
            .id = id, .id_len = sizeof id, .secret = secret, .secret_len = sizeof secret, .name = "n"};
        CHECK_INT(ask(&p, &m), KN_EPERM);
        CHECK_MSG(strstr(p.last->u.reply.text, cases[i].said), "%s", p.last->u.reply.text);
        CHECK(keys_find(server, &p.keys.own) == NULL);
        leave(&p);
    }
    end();
}

TEST(an_ephemeral_key_leaves_when_it_was_not_heard_of_for_long_and_others_stay) {
    size_t pos = 0;
    struct known_key *k;
    begin();
    while ((k = keys_next(server, &pos))) {
        k->ephemeral = k->role != KN_ROLE_ADMIN;
        k->seen_ms =
            kn_clock_ms() - (k->role == KN_ROLE_WORKER || k->role == KN_ROLE_ADMIN ? 11u : 9u) * 60000ull;
    }
    enrol_sweep(server);
    for (int i = 0; i <= ROLES; i++)
        CHECK_INT(keys_find(server, &known[i].keys.own) != NULL, i % ROLES + 1 != KN_ROLE_WORKER);
    end();
}

/* ---- many at once */

static int highest_open(void) {
    DIR *d = opendir("/proc/self/fd");
    int highest = 0;
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d));)
        if (atoi(e->d_name) > highest && atoi(e->d_name) != dirfd(d)) highest = atoi(e->d_name);
    closedir(d);
    return highest;
}

/* A process that connects again and again, up to `count` at once, and says nothing. */
static pid_t silent_strangers(int count) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)atoi(strrchr(tcp, ':') + 1)),
                            .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int held[1024] = {0};
    close_range(3, ~0U, 0);
    for (int i = 0;; i = (i + 1) % count) {
        if (held[i]) close(held[i]);
        held[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (held[i] < 0 || connect(held[i], (struct sockaddr *)&a, sizeof a) != 0) _exit(1);
        usleep(2000);
    }
}

TEST(a_storm_of_silent_strangers_keeps_no_known_key_out_and_puts_none_out) {
    struct peer *there = &known[0], *late = &known[KN_ROLE_ADMIN - 1];
    CHECK_INT(close_range(3, ~0U, 0), 0); /* what was inherited would leave holes in the numbers */
    begin();
    struct kn_gate_plan plan = {.strangers_at = (size_t)highest_open() + 300};
    plan.descriptors_max = plan.strangers_at + 40;
    CHECK_INT(kn_gate_set(&plan), 0);
    connect_peer(there);
    say(there, KN_MSG_ENROL);
    answer(there, 0);
    struct kn_gate_counts before = kn_gate_counts();
    pid_t pid = silent_strangers(600);
    for (uint64_t end_ms = kn_clock_ms() + PATIENCE_MS;
         kn_gate_counts().put_out + kn_gate_counts().refused < before.put_out + before.refused + 100 &&
         kn_clock_ms() < end_ms;)
        turn();
    CHECK(kn_gate_counts().put_out + kn_gate_counts().refused >= before.put_out + before.refused + 100);
    connect_peer(late);
    say(late, KN_MSG_KEYS_QUERY);
    CHECK_INT(answer(late, 0)->type, KN_MSG_KEY_LIST);
    say(there, KN_MSG_ENROL);
    answer(there, 1);
    CHECK_INT(there->ended, 0);
    kill(pid, SIGKILL);
    leave(there);
    leave(late);
    end();
}

TEST(ten_strangers_a_second_are_let_in_and_known_keys_always) {
    int in = 0;
    begin();
    uint64_t begun = kn_clock_ms();
    for (int i = 0; i < 1000; i++) {
        struct kn_public_key key;
        kn_uuid_random(key.bytes);
        kn_uuid_random(key.bytes + KN_UUID_BYTES);
        in += keys_admit(server, &key, "127.0.0.1");
        CHECK(keys_admit(server, &known[i % ROLES].keys.own, "127.0.0.1"));
    }
    int seconds = (int)((kn_clock_ms() - begun) / 1000);
    CHECK_MSG(in >= 10 && in <= 10 * (seconds + 2), "%d in %d s", in, seconds);
    end();
}

/* What the coordinator says to workers and clients: submissions, grants, answers, and programs of other versions. */
#include "tests/unit/coordinator_trial.h"

/* ---- the promises */

TEST(a_submission_may_be_repeated_at_every_step) {
    struct fixture f;
    setup(&f);
    hello(&f);
    CHECK_INT(seal(&f, batch_a), KN_ENOENT);
    CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), KN_ENOENT);
    for (int i = 0; i < 2; i++) CHECK_INT(begin(&f, batch_a, 1500, "m"), 0);
    CHECK_INT(begin(&f, batch_a, 1600, "m"), KN_ESTATE); /* that is another batch */
    CHECK_INT(seal(&f, batch_a), KN_ESTATE);             /* chunks are missing */
    for (int i = 0; i < 2; i++) CHECK_INT(chunk(&f, batch_a, 1, 500, 64), 0);
    CHECK_INT(chunk(&f, batch_a, 1, 500, 128), KN_ESTATE); /* other tasks than before */
    for (int i = 0; i < 2; i++) CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), 0);
    for (int i = 0; i < 2; i++) CHECK_INT(seal(&f, batch_a), 0);
    CHECK_INT(begin(&f, batch_a, 1500, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 1000, 64), 0);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    const struct kn_batch_list *l = &ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list;
    CHECK_INT((int)l->count, 1);
    CHECK_INT((int)l->v[0].total, 1500);
    teardown(&f);
}

TEST(a_wrong_submission_is_refused_with_its_reason) {
    struct fixture f;
    setup(&f);
    CHECK_INT(begin(&f, batch_a, 10, "m"), KN_EMODEL); /* no worker yet */
    hello(&f);
    struct kn_model_info models[1] = {{.name = "other"}};
    struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN};
    m.u.submit_begin = (struct kn_submit_begin){.name = "n",
                                                .pin_backend = "",
                                                .request = "{}",
                                                .tasks = 10,
                                                .chunks = 1,
                                                .models = models,
                                                .model_count = 1};
    const struct kn_reply *r = &ask(&f, &m, KN_MSG_REPLY)->u.reply;
    CHECK_INT(r->code, KN_EMODEL);
    CHECK_MSG(strstr(r->text, "other is not on this farm; there is: m (07") != NULL, "%s", r->text);
    m.u.submit_begin.chunks = 2;
    CHECK_INT(ask_code(&f, &m), KN_EINVAL);
    CHECK_INT(begin(&f, batch_a, 1500, "m"), 0);
    CHECK_INT(chunk(&f, batch_a, 0, 999, 64), KN_EINVAL);
    CHECK_INT(chunk(&f, batch_a, 2, 500, 64), KN_EINVAL);
    CHECK(chunk(&f, batch_a, 0, 1000, 68) != 0); /* not a size of that model */
    CHECK_INT(seal(&f, batch_a), KN_ESTATE);
    teardown(&f);
}

/* ---- programs of other versions */

static void hello_as(struct fixture *f, const char *const *features, size_t count) {
    struct kn_model_info models[] = {model()};
    struct kn_msg m = {.type = KN_MSG_WORKER_HELLO};
    m.u.worker_hello = (struct kn_worker_hello){.worker = "w",
                                                .backend = "class-1",
                                                .engine = "kiln 0",
                                                .credit = 1,
                                                .batch_max = 8,
                                                .models = models,
                                                .model_count = 1,
                                                .features = (const char **)(uintptr_t)features,
                                                .feature_count = count};
    m.u.worker_hello.instance[0] = 1;
    tell(f, &f->worker, &m, NULL);
}

TEST(promise_versions_a_worker_is_granted_what_its_hello_lists_and_the_wait_says_so) {
    struct fixture f;
    const char *const some[] = {"sampler.ddim", "schedule.normal", "sampler.of_tomorrow"};
    setup(&f);
    hello_as(&f, some, 3);
    const struct kn_welcome *w = &await(&f, &f.worker, KN_MSG_WELCOME)->u.welcome;
    CHECK_U64(kn_features_of_peer(w->features, w->feature_count), kn_features());
    submit(&f, batch_a, 3); /* Euler */
    run_ms(&f, 300);
    for (int i = 0; i < f.worker.count; i++) CHECK(f.worker.inbox[i]->type != KN_MSG_SHARD_GRANT);
    struct kn_msg q = {.type = KN_MSG_EXPLAIN_QUERY};
    q.u.explain_query.has_task = true;
    memcpy(q.u.explain_query.batch, batch_a, sizeof(kn_id));
    const struct kn_explain_reply *r = &ask(&f, &q, KN_MSG_EXPLAIN_REPLY)->u.explain_reply;
    CHECK_INT(r->status.wait, KN_WAIT_FEATURE);
    CHECK_MSG(strstr(r->status.wait_text, "w (kiln 0) does not know sampler Euler"), "%s",
              r->status.wait_text);
    CHECK_MSG(strstr(r->text, "does not know sampler Euler"), "%s", r->text);
    hello_as(&f, NULL, 0); /* a program of before: it has what those had */
    await(&f, &f.worker, KN_MSG_SHARD_GRANT);
    teardown(&f);
}

TEST(promise_versions_a_shard_that_its_worker_cannot_read_is_not_granted_to_it_again) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    const struct kn_shard_grant *g = &await(&f, &f.worker, KN_MSG_SHARD_GRANT)->u.shard_grant;
    struct kn_msg m = {.type = KN_MSG_SHARD_RETURNED};
    m.u.shard_returned = (struct kn_shard_returned){
        .shard = g->shard, .term = g->term, .code = KN_EUNSUPPORTED, .reason = "too new for me"};
    tell(&f, &f.worker, &m, NULL);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    q.u.batch_query.has_batch = true;
    memcpy(q.u.batch_query.batch, batch_a, sizeof(kn_id));
    const struct kn_batch_status *s = NULL;
    for (int i = 0; i < 200 && !(s && s->wait == KN_WAIT_FEATURE); i++) {
        if (i) run_ms(&f, 10);
        s = &ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list.v[0];
    }
    CHECK_INT(s->wait, KN_WAIT_FEATURE);
    CHECK_MSG(strstr(s->wait_text, "handed it back: too new for me"), "%s", s->wait_text);
    CHECK_INT(s->queued, 1);
    teardown(&f);
}

/* Whoever asks something that cannot be read is told so; it was dropped, and asked again for ever. */
TEST(promise_versions_a_request_that_cannot_be_read_is_answered_in_words) {
    struct fixture f;
    setup(&f);
    struct kn_msg m = {.type = KN_MSG_BATCH_COMMAND};
    m.u.batch_command.verb = (enum kn_batch_verb)99;
    const struct kn_reply *r = &ask(&f, &m, KN_MSG_REPLY)->u.reply;
    CHECK_INT(r->code, KN_EPROTO);
    CHECK_MSG(strstr(r->text, "cannot read this: batch_command: verb"), "%s", r->text);
    struct kn_msg h = {.type = KN_MSG_WORKER_HELLO};
    h.u.worker_hello = (struct kn_worker_hello){.worker = "w", .backend = "", .credit = 1, .batch_max = 1};
    tell(&f, &f.worker, &h, NULL);
    r = &await(&f, &f.worker, KN_MSG_REPLY)->u.reply;
    CHECK_MSG(strstr(r->text, "cannot read this worker's hello: worker_hello: backend"), "%s", r->text);
    teardown(&f);
}

TEST(promise_versions_a_batch_that_needs_what_is_not_known_here_is_refused_by_name) {
    struct fixture f;
    const char *const features[] = {"sampler.of_tomorrow"};
    setup(&f);
    hello(&f);
    struct kn_model_info models[1] = {{.name = "m"}};
    struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN};
    m.u.submit_begin = (struct kn_submit_begin){.name = "n",
                                                .pin_backend = "",
                                                .request = "{}",
                                                .tasks = 1,
                                                .chunks = 1,
                                                .models = models,
                                                .model_count = 1,
                                                .features = (const char **)(uintptr_t)features,
                                                .feature_count = 1};
    memcpy(m.u.submit_begin.batch, batch_a, sizeof(kn_id));
    const struct kn_reply *r = &ask(&f, &m, KN_MSG_REPLY)->u.reply;
    CHECK_INT(r->code, KN_EUNSUPPORTED);
    CHECK_MSG(strstr(r->text, "needs sampler.of_tomorrow"), "%s", r->text);
    teardown(&f);
}

/* ---- bounds */

/* A thousand tasks with the longest prompts, of letters that do not compress well; free() the texts. */
static char *long_tasks(struct kn_task *tasks, uint32_t count) {
    size_t each = 2 * (KN_PROMPT_BYTES_MAX + 1);
    char *texts = malloc(each * count);
    uint64_t x = 88172645463325252u;
    CHECK(texts != NULL);
    for (size_t i = 0; i < each * count; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        texts[i] = (i + 1) % (KN_PROMPT_BYTES_MAX + 1) == 0 ? '\0' : (char)(' ' + x % 90);
    }
    for (uint32_t i = 0; i < count; i++)
        tasks[i] = (struct kn_task){.prompt = texts + i * each,
                                    .negative = texts + i * each + each / 2,
                                    .seed = i,
                                    .cfg = 7,
                                    .steps = 2,
                                    .width = 64,
                                    .height = 64,
                                    .sampler = KN_SAMPLER_EULER,
                                    .schedule = KN_SCHEDULE_NORMAL,
                                    .set = KN_SET_ALL};
    return texts;
}

static int send_part(struct fixture *f, const struct kn_buf *b, uint32_t part, uint32_t parts) {
    struct kn_msg m = {.type = KN_MSG_SUBMIT_CHUNK};
    size_t from = (size_t)part * KN_CHUNK_PART_BYTES, left = b->len - from;
    m.u.submit_chunk.count = 1000;
    m.u.submit_chunk.part = part;
    m.u.submit_chunk.parts = parts;
    m.u.submit_chunk.tasks = (const uint8_t *)b->data + from;
    m.u.submit_chunk.tasks_len = left < KN_CHUNK_PART_BYTES ? left : KN_CHUNK_PART_BYTES;
    memcpy(m.u.submit_chunk.batch, batch_a, sizeof(kn_id));
    return ask_code(f, &m);
}

/* 2,000 legal prompts of 16 KB were refused. */
TEST(promise_bounds_a_chunk_over_a_frame_comes_in_parts_and_is_kept_whole) {
    static struct kn_task tasks[1000];
    struct fixture f;
    struct kn_buf b, back;
    setup(&f);
    hello(&f);
    char *texts = long_tasks(tasks, 1000);
    kn_buf_init(&b, KN_CHUNK_BYTES_MAX);
    kn_buf_init(&back, KN_CHUNK_BYTES_MAX);
    CHECK_INT(kn_chunk_pack(tasks, 1000, &b, NULL), 0);
    uint32_t parts = (uint32_t)((b.len + KN_CHUNK_PART_BYTES - 1) / KN_CHUNK_PART_BYTES);
    CHECK(parts > 2 && parts <= KN_CHUNK_PARTS_MAX);
    CHECK_INT(begin(&f, batch_a, 1000, "m"), 0);
    CHECK_INT(send_part(&f, &b, 1, parts), KN_ESTATE); /* the first is not there */
    CHECK_INT(send_part(&f, &b, 0, parts), 0);
    CHECK_INT(send_part(&f, &b, 2, parts), KN_ESTATE); /* nor the second */
    for (uint32_t i = 0; i < 2; i++) CHECK_INT(send_part(&f, &b, 1, parts), 0);
    CHECK_INT(seal(&f, batch_a), KN_ESTATE);
    for (uint32_t i = 0; i < parts; i++)
        CHECK_INT(send_part(&f, &b, i, parts), 0); /* from the first once more */
    for (uint32_t i = 0; i < parts; i++)
        CHECK_INT(send_part(&f, &b, i, parts), 0); /* it is there, the same */
    for (uint32_t i = 0; i < 2; i++) CHECK_INT(seal(&f, batch_a), 0);
    stop(&f);
    start(&f); /* what is read back is whole */
    struct kn_msg q = {.type = KN_MSG_TASKS_QUERY};
    memcpy(q.u.tasks_query.batch, batch_a, sizeof(kn_id));
    for (uint32_t i = 0; i < parts; i++) {
        q.u.tasks_query.part = i;
        const struct kn_tasks_reply *r = &ask(&f, &q, KN_MSG_TASKS_REPLY)->u.tasks_reply;
        CHECK_INT(r->parts, parts);
        CHECK_INT(kn_buf_append(&back, r->tasks, r->tasks_len), 0);
    }
    CHECK_U64(back.len, b.len);
    CHECK_MEM(back.data, b.data, b.len);
    q.u.tasks_query.part = parts;
    CHECK_INT(ask_code(&f, &q), KN_EINVAL);
    /* As many of these tasks as the core may put in a grant fit in a frame, and one more would be too many. */
    struct kept_batch *kept = batches_find(&f.s->batches, batch_a);
    uint32_t most = batch_shard_tasks(kept), index[KN_SHARD_TASKS_MAX] = {0};
    CHECK(most > 100 && most < KN_SHARD_TASKS_MAX);
    struct kn_msg g = {.type = KN_MSG_SHARD_GRANT,
                       .u.shard_grant = {.shard = 1, .index = index, .tasks = tasks, .count = most}};
    kn_buf_clear(&back);
    CHECK_INT(kn_msg_encode(&g, &back, NULL), 0);
    g.u.shard_grant.count = KN_SHARD_TASKS_MAX;
    CHECK_INT(kn_msg_encode(&g, &back, NULL), KN_ELIMIT);
    kn_buf_fini(&b);
    kn_buf_fini(&back);
    free(texts);
    teardown(&f);
}

TEST(who_did_not_say_hello_is_asked_to) {
    struct fixture f;
    setup(&f);
    struct kn_msg m = {.type = KN_MSG_HEARTBEAT};
    tell(&f, &f.worker, &m, NULL);
    await(&f, &f.worker, KN_MSG_HELLO_AGAIN);
    teardown(&f);
}

TEST(a_grant_carries_the_tasks_as_they_were_submitted) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1001);
    const struct kn_shard_grant *g = &await(&f, &f.worker, KN_MSG_SHARD_GRANT)->u.shard_grant;
    CHECK(g->count >= 1 && g->count <= 8);
    CHECK_MEM(g->batch, batch_a, sizeof(kn_id));
    CHECK_INT(g->model_sha256[0], 7);
    for (size_t i = 0; i < g->count; i++) {
        CHECK_STR(g->tasks[i].prompt, "p");
        CHECK_U64(g->tasks[i].seed, g->index[i] % 1000);
    }
    teardown(&f);
}

TEST(pictures_are_acknowledged_by_what_they_are) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 3);
    CHECK_INT(picture(&f, batch_b, 0, "p0", false), KN_EGONE);
    CHECK_INT(picture(&f, batch_a, 0, "p0", true), KN_ECORRUPT);
    CHECK(!object_there(&f, "p0"));
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK(object_there(&f, "p0"));
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0); /* again */
    CHECK_U64(f.s->alarms, 0);
    CHECK_INT(picture(&f, batch_a, 0, "q0", false), 0); /* of one class, with other pixels */
    CHECK_U64(f.s->alarms, 1);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    const struct kn_results_reply *r = results(&f, batch_a, 0, 0);
    CHECK_INT((int)r->count, 2);
    CHECK_INT((int)r->v[0].index, 0);
    CHECK_STR(r->v[0].worker, "w");
    CHECK_STR(r->v[0].backend, "class-1");
    CHECK_STR(r->v[0].engine, "kiln 0");
    teardown(&f);
}

TEST(an_object_is_fetched_by_its_digest) {
    struct fixture f;
    struct kn_msg m = {.type = KN_MSG_OBJECT_GET, .request = 5};
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 1);
    CHECK_INT(picture(&f, batch_a, 0, "picture", false), 0);
    digest_of("picture", m.u.object_get.sha256);
    tell(&f, &f.data, &m, NULL);
    const struct kn_msg *r = await(&f, &f.data, KN_MSG_OBJECT_REPLY);
    CHECK_INT(r->u.object_reply.code, 0);
    CHECK_U64(r->request, 5);
    struct png_of png;
    png_of("picture", 64, 64, &png);
    CHECK_INT((int)f.data.blob_len, (int)png.len);
    m.u.object_get.sha256[3] ^= 1;
    tell(&f, &f.data, &m, NULL);
    CHECK_INT(await(&f, &f.data, KN_MSG_OBJECT_REPLY)->u.object_reply.code, KN_ENOENT);
    teardown(&f);
}

TEST(what_was_done_is_done_after_a_restart_in_the_same_order) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 5);
    CHECK_INT(begin(&f, batch_b, 2000, "m"), 0);
    CHECK_INT(chunk(&f, batch_b, 1, 1000, 64), 0);
    CHECK_INT(picture(&f, batch_a, 3, "p3", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    uint64_t epoch = results(&f, batch_a, 0, 0)->epoch;
    stop(&f);
    start(&f);
    const struct kn_results_reply *r = results(&f, batch_a, epoch, 2); /* of the old list: it begins anew */
    CHECK(r->epoch != epoch);
    CHECK_INT((int)r->count, 2);
    CHECK_INT((int)r->v[0].index, 3);
    CHECK_INT((int)r->v[1].index, 1);
    CHECK_STR(r->v[1].backend, "class-1");
    CHECK_INT((int)r->status.queued, 3);
    hello(&f);
    CHECK_INT(chunk(&f, batch_b, 0, 1000, 64), 0); /* the submission goes on where it was */
    CHECK_INT(seal(&f, batch_b), 0);
    await(&f, &f.worker, KN_MSG_SHARD_GRANT);
    teardown(&f);
}

TEST(a_removed_batch_takes_the_pictures_that_nobody_else_names) {
    struct fixture f;
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 2);
    submit(&f, batch_b, 1);
    CHECK_INT(picture(&f, batch_a, 0, "shared", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "own", false), 0);
    CHECK_INT(picture(&f, batch_b, 0, "shared", false), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), 0);
    CHECK_INT(command(&f, batch_a, KN_VERB_REMOVE), KN_ENOENT);
    for (int i = 0; i < 100 && object_there(&f, "own"); i++) run_ms(&f, 10);
    CHECK(!object_there(&f, "own"));
    CHECK(object_there(&f, "shared"));
    stop(&f);
    start(&f);
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY};
    CHECK_INT((int)ask(&f, &q, KN_MSG_BATCH_LIST)->u.batch_list.count, 1);
    teardown(&f);
}

TEST(a_retry_has_lost_and_damaged_pictures_rendered_again_and_no_others) {
    struct fixture f;
    char path[KN_PATH_MAX];
    setup(&f);
    hello(&f);
    submit(&f, batch_a, 3);
    const char *const text[] = {"p0", "p1", "p2"};
    for (uint32_t i = 0; i < 3; i++) CHECK_INT(picture(&f, batch_a, i, text[i], false), 0);
    uint64_t epoch = results(&f, batch_a, 0, 0)->epoch;
    /* Nothing is lost: a retry changes nothing. */
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0);
    CHECK_INT((int)results(&f, batch_a, epoch, 3)->status.state, KN_BATCH_DONE);
    CHECK_INT(results(&f, batch_a, epoch, 3)->epoch == epoch, true);

    object_path(&f, "p0", path);
    CHECK_INT(unlink(path), 0);
    object_path(&f, "p1", path);
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fputs("edited", x);
    fclose(x);
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0);
    const struct kn_results_reply *r = results(&f, batch_a, epoch, 3);
    CHECK(r->epoch != epoch);
    CHECK_INT((int)r->count, 1);
    CHECK_INT((int)r->v[0].index, 2);
    CHECK_INT((int)r->status.state, KN_BATCH_ACTIVE);

    /* The coordinator is killed between the void and the render: the next one knows of both. */
    stop(&f);
    start(&f);
    hello(&f);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 1);
    CHECK_INT(picture(&f, batch_a, 0, "p0", false), 0);
    CHECK_INT(picture(&f, batch_a, 1, "p1", false), 0);
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.state, KN_BATCH_DONE);
    CHECK(object_there(&f, "p0"));
    CHECK_INT(command(&f, batch_a, KN_VERB_RETRY), 0); /* and all is well: p1 has its bytes again */
    CHECK_INT((int)results(&f, batch_a, 0, 0)->status.done, 3);
    CHECK_INT(command(&f, batch_b, KN_VERB_RETRY), KN_ENOENT);
    teardown(&f);
}

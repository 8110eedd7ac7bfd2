/* Models in folders, and the diffusion engine behind the worker's interface: loading when it is needed, and
 * dropping. The models are those of tests/golden/pipelines. */
#include "tests/unit/check.h"

#include <json-c/json.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "worker/models.h"

static const char pipelines[] = KILN_SOURCE "/tests/golden/pipelines";

TEST(a_folder_of_models_is_read_in_order_and_each_model_once) {
    struct model_list l = {0};
    struct kn_err err = {0};
    CHECK_MSG(models_add_tree(&l, pipelines, &err) == 0, "%s", err.text);
    static const char *const names[] = {"sd1", "sd2", "sdxl", "v8", "wide"};
    CHECK_U64(l.count, sizeof names / sizeof *names);
    for (size_t i = 0; i < l.count; i++) CHECK_STR(l.v[i].info.name, names[i]);
    CHECK_MSG(models_add_folder(&l, KILN_SOURCE "/tests/golden/pipelines/v8", &err) == 0, "%s", err.text);
    CHECK_MSG(models_add_tree(&l, KILN_SOURCE "/tests/golden/pipelines/v8/", &err) == 0, "%s", err.text);
    CHECK_U64(l.count, sizeof names / sizeof *names);
    models_fini(&l);
}

TEST(a_folder_without_a_model_and_one_that_is_none_are_told) {
    struct model_list l = {0};
    struct kn_err err = {0};
    CHECK_INT(models_add_tree(&l, KILN_SOURCE "/tests/golden", &err), KN_ENOENT);
    CHECK(strstr(err.text, "no model is in it"));
    CHECK_INT(models_add_tree(&l, "/nowhere", &err), KN_ENOENT);
    CHECK_INT(models_add_folder(&l, "/nowhere", &err), KN_ENOENT);
    CHECK_U64(l.count, 0);
    models_fini(&l);
}

/* One broken model among others does not keep a worker from starting; asked for by itself it does. */
TEST(a_broken_model_is_left_out_of_a_folder) {
    char dir[] = "/tmp/kn-models-XXXXXX", path[128];
    struct model_list l = {0};
    struct kn_err err = {0};
    kn_log_level_now = KN_LOG_ERROR;
    CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/broken", dir);
    CHECK_INT(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/broken/model_index.json", dir);
    CHECK_INT(kn_fs_replace(path, "{", 1, false, &err), 0);
    snprintf(path, sizeof path, "%s/good", dir);
    CHECK_INT(symlink(KILN_SOURCE "/tests/golden/pipelines/v8", path), 0);
    CHECK_MSG(models_add_tree(&l, dir, &err) == 0, "%s", err.text);
    CHECK_U64(l.count, 1);
    CHECK_STR(l.v[0].info.name, "v8");
    snprintf(path, sizeof path, "%s/broken", dir);
    CHECK(models_add_folder(&l, path, &err) != 0);
    models_fini(&l);
    snprintf(path, sizeof path, "%s/good", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/broken/model_index.json", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/broken", dir);
    rmdir(path);
    CHECK_INT(rmdir(dir), 0);
}

TEST(a_description_is_json_with_every_default) {
    struct kn_model_info m = {.name = "a \"model\"",
                              .defaults = {KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_KARRAS, 25, 7.1f, 512, 768},
                              .size_multiple = 64,
                              .size_max = 2048};
    struct kn_buf b;
    json_object *o, *d, *v;
    kn_buf_init(&b, 1 << 16);
    memset(m.sha256, 0xab, sizeof m.sha256);
    CHECK_INT(models_describe(&m, &b), 0);
    CHECK(strchr(b.data, '\n') == b.data + b.len - 1);
    o = json_tokener_parse(b.data);
    CHECK(json_object_object_get_ex(o, "name", &v));
    CHECK_STR(json_object_get_string(v), "a \"model\"");
    CHECK(json_object_object_get_ex(o, "sha256", &v));
    CHECK(strncmp(json_object_get_string(v), "abababab", 8) == 0 && json_object_get_string_len(v) == 64);
    CHECK(json_object_object_get_ex(o, "size_multiple", &v) && json_object_get_int(v) == 64);
    CHECK(json_object_object_get_ex(o, "defaults", &d));
    CHECK(json_object_object_get_ex(d, "sampler", &v));
    CHECK_STR(json_object_get_string(v), "DPM++ 2M");
    CHECK(json_object_object_get_ex(d, "schedule", &v));
    CHECK_STR(json_object_get_string(v), "karras");
    CHECK(json_object_object_get_ex(d, "steps", &v) && json_object_get_int(v) == 25);
    CHECK(json_object_object_get_ex(d, "cfg", &v) && (float)json_object_get_double(v) == 7.1f);
    CHECK(json_object_object_get_ex(d, "size", &v));
    CHECK_STR(json_object_get_string(v), "512x768");
    CHECK(json_object_object_get_ex(d, "karras", &v) && !json_object_get_boolean(v));
    CHECK(!json_object_object_get_ex(o, "scheduler", &v));
    json_object_put(o);
    kn_buf_fini(&b);
}

TEST(a_description_names_a_scheduler_that_kiln_has_not_and_no_sampler) {
    struct kn_model_info m = {.name = "m",
                              .defaults = {.schedule = KN_SCHEDULE_NORMAL, .karras = true},
                              .scheduler = "DDPMScheduler"};
    struct kn_buf b;
    json_object *o, *d, *v;
    kn_buf_init(&b, 1 << 16);
    CHECK_INT(models_describe(&m, &b), 0);
    o = json_tokener_parse(b.data);
    CHECK(json_object_object_get_ex(o, "scheduler", &v));
    CHECK_STR(json_object_get_string(v), "DDPMScheduler");
    CHECK(json_object_object_get_ex(o, "defaults", &d));
    CHECK(json_object_object_get_ex(d, "sampler", &v) && !v);
    CHECK(json_object_object_get_ex(d, "karras", &v) && json_object_get_boolean(v));
    json_object_put(o);
    kn_buf_fini(&b);
}

/* ---- the engine */

struct picture {
    uint8_t sha256[KN_SHA256_BYTES];
    int count;
};

static int on_image(void *ctx, const struct kiln_image *image) {
    struct picture *p = ctx;
    CHECK(image->rgb != NULL);
    kn_sha256(image->rgb, (size_t)image->task->width * image->task->height * 3, p->sha256);
    p->count++;
    return 0;
}

static void render(struct engine *e, const struct engine_model *m, struct picture *out) {
    static char prompt[] = "a red circle", none[] = "";
    struct kn_task t = {.prompt = prompt,
                        .negative = none,
                        .seed = 5,
                        .cfg = 7,
                        .steps = 2,
                        .width = m->info.defaults.width,
                        .height = m->info.defaults.height,
                        .sampler = KN_SAMPLER_EULER,
                        .schedule = KN_SCHEDULE_NORMAL,
                        .set = KN_SET_ALL};
    struct engine_work w = {.model = &m->info, .tasks = &t, .count = 1, .attempt = 1};
    struct kiln_callbacks cb = {.ctx = out, .image = on_image};
    struct kn_err err = {0};
    *out = (struct picture){0};
    CHECK_MSG(e->ops->render(e, &w, &cb, &err) == 0, "%s", err.text);
    CHECK_INT(out->count, 1);
}

TEST(models_are_loaded_when_they_are_needed_and_dropped_when_memory_is_short) {
    struct model_list l = {0};
    struct kn_err err = {0};
    struct picture first[8], again;
    kn_log_level_now = KN_LOG_ERROR;
    CHECK_INT(models_add_tree(&l, pipelines, &err), 0);
    CHECK(l.count <= sizeof first / sizeof *first);
    static const uint64_t room[] = {1, 1ull << 32}; /* for one model, for all of them */
    for (size_t r = 0; r < 2; r++) {
        struct engine_options eo = {.spec = "cpu", .threads = 1, .model_bytes_max = room[r]};
        struct engine *e = NULL;
        CHECK_MSG(engine_open(&eo, l.v, l.count, &e, &err) == 0, "%s", err.text);
        CHECK(strncmp(e->backend, "cpu-", 4) == 0 && e->device[0] && e->batch_max >= 1);
        for (size_t i = 0; i < l.count; i++) {
            render(e, &l.v[i], &again);
            if (r == 0)
                first[i] = again;
            else
                CHECK_MEM(again.sha256, first[i].sha256, KN_SHA256_BYTES);
        }
        for (size_t i = l.count; i-- > 0;) {
            render(e, &l.v[i], &again);
            CHECK_MEM(again.sha256, first[i].sha256, KN_SHA256_BYTES);
        }
        engine_close(e);
    }
    models_fini(&l);
}

TEST(a_model_whose_folder_went_away_is_an_error_with_its_name) {
    struct model_list l = {0};
    struct kn_err err = {0};
    struct engine_options eo = {.spec = "cpu", .threads = 1, .model_bytes_max = 1 << 20};
    struct engine *e = NULL;
    struct kiln_callbacks cb = {0};
    CHECK_INT(models_add_folder(&l, KILN_SOURCE "/tests/golden/pipelines/v8", &err), 0);
    free(l.v[0].dir);
    l.v[0].dir = strdup("/nowhere");
    CHECK_INT(engine_open(&eo, l.v, l.count, &e, &err), 0);
    struct engine_work w = {.model = &l.v[0].info, .count = 1};
    CHECK(e->ops->render(e, &w, &cb, &err) != 0);
    CHECK_MSG(strncmp(err.text, "loading v8: ", 12) == 0, "%s", err.text);
    engine_close(e);
    models_fini(&l);
}

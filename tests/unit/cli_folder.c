/* The output folder: what is in it, what a second run keeps, what is left alone. */
#include "tests/unit/cli_folder.h"

#include "base/clock.h"

static struct folder o;

static json_object *line_of(const char *manifest, size_t number) {
    for (; number > 1; number--) manifest = strchr(manifest, '\n') + 1;
    char *line = strndup(manifest, strcspn(manifest, "\n"));
    json_object *v = json_tokener_parse(line);
    free(line);
    CHECK(v != NULL);
    return v;
}

static bool has(const char *name) {
    char path[512];
    struct stat st;
    trial_path(name, path);
    return lstat(path, &st) == 0;
}

TEST(a_manifest_line_has_every_field_in_its_order) {
    static const char *const names[] = {
        "index", "status", "prompt",        "negative", "seed",         "sampler",   "schedule", "steps",
        "cfg",   "width",  "height",        "model",    "model_sha256", "backend",   "engine",   "key",
        "file",  "sha256", "pixels_sha256", "worker",   "attempt",      "render_ms", "error",    "extra"};
    trial_finished(2, true);
    char *m = trial_read("manifest.jsonl");
    for (size_t number = 1; number <= 2; number++) {
        json_object *v = line_of(m, number);
        size_t k = 0;
        json_object_object_foreach(v, key, value) {
            (void)value;
            CHECK_STR(key, names[k]);
            k++;
        }
        CHECK_INT(k, sizeof names / sizeof *names);
        json_object_put(v);
    }
    free(m);
}

TEST(lines_stand_in_order_of_index_whatever_the_order_of_their_ends) {
    trial_begin();
    trial_ask(4, 7);
    trial_open(&o, 4, NULL);
    trial_take(&o, 3, KN_RESULT_DONE, "");
    trial_take(&o, 0, KN_RESULT_DONE, "");
    trial_take(&o, 2, KN_RESULT_CANCELLED, "");
    struct kn_err err = {0};
    CHECK_INT(folder_flush(&o, true, &err), KN_OK);
    char *m = trial_read("manifest.jsonl"); /* image 1 has not ended: no line yet */
    static const int want[] = {0, 2, 3};
    for (size_t k = 0; k < 3; k++) {
        json_object *v = line_of(m, k + 1);
        CHECK_INT(json_object_get_int(json_object_object_get(v, "index")), want[k]);
        json_object_put(v);
    }
    free(m);
    folder_close(&o);
}

TEST(a_failed_line_has_its_reason_and_no_file) {
    trial_finished(2, true);
    char *m = trial_read("manifest.jsonl");
    json_object *v = line_of(m, 2);
    CHECK_STR(json_object_get_string(json_object_object_get(v, "error")), "out of luck");
    CHECK(json_object_object_get(v, "file") == NULL);
    CHECK(json_object_object_get(v, "sha256") == NULL);
    json_object_put(v);
    free(m);
    CHECK(!has("images/000001.png"));
}

static void object_of_line(size_t number, char out[512]) {
    kn_digest sha256;
    char *m = trial_read("manifest.jsonl");
    json_object *v = line_of(m, number);
    CHECK_INT(kn_unhex(json_object_get_string(json_object_object_get(v, "sha256")), sha256, 32), KN_OK);
    trial_object_path(sha256, out);
    json_object_put(v);
    free(m);
}

TEST(a_picture_is_a_copy_and_never_a_writable_link_to_the_object) {
    char path[512], object[512];
    struct stat a, b;
    trial_finished(1, false);
    trial_path("images/000000.png", path);
    object_of_line(1, object);
    CHECK_INT(stat(path, &a), 0);
    CHECK_INT(stat(object, &b), 0);
    CHECK_INT(a.st_nlink, 1);
    CHECK(a.st_ino != b.st_ino);
    CHECK_INT(a.st_size, b.st_size);
}

TEST(with_link_a_picture_is_a_hard_link) {
    char path[512], object[512];
    struct stat a, b;
    trial_begin();
    trial_ask(1, 7);
    trial_open(&o, 1, NULL);
    o.placing = FOLDER_LINK;
    trial_take(&o, 0, KN_RESULT_DONE, "");
    trial_close(&o);
    trial_path("images/000000.png", path);
    object_of_line(1, object);
    CHECK_INT(stat(path, &a), 0);
    CHECK_INT(stat(object, &b), 0);
    CHECK(a.st_ino == b.st_ino);
}

TEST(a_private_farms_object_is_moved_and_two_images_may_share_it) {
    char path[512], object[512];
    struct kn_err err = {0};
    struct kn_result r[2];
    uint32_t index[2] = {0, 1};
    struct stat st;
    size_t lost = 0;
    trial_begin();
    trial_ask(2, 7);
    trial_tasks[1].seed = trial_tasks[0].seed; /* the same prompt twice: the same bytes */
    memcpy(trial_keys[1], trial_keys[0], sizeof(kn_digest));
    mode_t before = umask(027);
    trial_open(&o, 2, NULL);
    o.placing = FOLDER_MOVE;
    trial_render(0, &r[0]);
    trial_render(1, &r[1]);
    trial_object_path(r[0].sha256, object);
    CHECK_INT(chmod(object, 0444), 0);
    CHECK_INT(folder_take(&o, NULL, r, index, 2, &lost, &err), KN_OK);
    umask(before);
    CHECK_INT(lost, 0);
    CHECK(stat(object, &st) != 0);
    for (size_t i = 0; i < 2; i++) {
        trial_path(i ? "images/000001.png" : "images/000000.png", path);
        CHECK_INT(stat(path, &st), 0);
        CHECK_INT(st.st_mode & 0777, 0640); /* what the umask leaves, and writable */
        CHECK_INT(st.st_nlink, 1);
    }
    trial_close(&o);
}

TEST(a_picture_out_of_reach_is_fetched) {
    char path[512];
    struct stat st;
    trial_begin();
    trial_far = true;
    trial_ask(1, 7);
    trial_open(&o, 1, NULL);
    trial_take(&o, 0, KN_RESULT_DONE, "");
    trial_close(&o);
    CHECK_INT(trial_fetches, 1);
    trial_path("images/000000.png", path);
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_nlink, 1);
}

TEST(an_object_that_the_farm_has_lost_leaves_its_image_unended) {
    struct kn_err err = {0};
    struct kn_result r[2];
    uint32_t index[2] = {0, 1};
    size_t lost = 0;
    char object[512];
    trial_begin();
    trial_ask(2, 7);
    trial_open(&o, 2, NULL);
    trial_render(0, &r[0]);
    trial_render(1, &r[1]);
    trial_object_path(r[0].sha256, object);
    CHECK_INT(unlink(object), 0);
    CHECK_INT(folder_take(&o, NULL, r, index, 2, &lost, &err), KN_OK);
    CHECK_INT(lost, 1);
    CHECK_INT(o.entries[0].status, 0);
    CHECK_INT(o.entries[1].status, KN_RESULT_DONE);
    folder_close(&o);
}

TEST(an_object_that_was_damaged_is_neither_linked_nor_copied) {
    struct kn_err err = {0};
    struct kn_result r;
    uint32_t index = 0;
    size_t lost = 0;
    char object[512];
    trial_begin();
    trial_ask(1, 7);
    trial_open(&o, 1, NULL);
    trial_render(0, &r);
    trial_object_path(r.sha256, object);
    trial_write(object, "damaged", 7);
    CHECK_INT(folder_take(&o, NULL, &r, &index, 1, &lost, &err), KN_OK);
    CHECK_INT(lost, 1);
    CHECK_INT(o.entries[0].status, 0);
    CHECK(!has("images/000000.png"));
    folder_close(&o);
}

TEST(a_second_run_keeps_what_is_intact) {
    trial_finished(3, true);
    trial_open(&o, 3, NULL);
    CHECK_INT(o.kept, 2);
    CHECK_INT(o.entries[0].status, KN_RESULT_DONE);
    CHECK_INT(o.entries[2].status, 0); /* what failed is asked for again */
    CHECK_STR(o.entries[0].worker, "worker-0");
    folder_close(&o);
}

TEST(a_changed_picture_is_put_aside_and_rendered_again) {
    char path[512];
    trial_finished(3, false);
    trial_path("images/000000.png", path);
    CHECK_INT(unlink(path), 0);
    trial_path("images/000001.png", path);
    trial_write(path, "not a picture", 13);
    trial_open(&o, 3, NULL);
    CHECK_INT(o.kept, 1);
    CHECK_INT(o.entries[2].status, KN_RESULT_DONE);
    CHECK(!has("images/000001.png"));
    char *kept = trial_read("changed/000001.png");
    CHECK_STR(kept, "not a picture");
    free(kept);
    trial_take(&o, 1, KN_RESULT_DONE, "");
    trial_close(&o);
    CHECK(has("images/000001.png"));
    trial_write(path, "again", 5); /* a second one does not take the first one's place */
    trial_open(&o, 3, NULL);
    CHECK(has("changed/000001.png"));
    CHECK(has("changed/2-000001.png"));
    folder_close(&o);
}

TEST(pictures_keep_their_bytes_when_their_numbers_move) {
    trial_finished(4, false); /* seeds 7, 8, 9, 10 */
    trial_ask(6, 5);          /* seeds 5, 6, 7, 8, 9, 10 */
    trial_open(&o, 6, NULL);
    CHECK_INT(o.kept, 4);
    for (uint32_t i = 2; i < 6; i++) {
        char name[32], path[512];
        kn_digest now;
        folder_file_name(i, name);
        trial_path(name, path);
        CHECK_INT(kn_sha256_file(path, now, NULL), KN_OK);
        CHECK_MEM(now, o.entries[i].sha256, sizeof now);
    }
    CHECK(!has("images/000000.png")); /* the numbers of what is to be rendered are free */
    CHECK(!has("images/000001.png"));
    folder_close(&o);
}

TEST(pictures_that_changed_places_are_both_kept) {
    trial_finished(2, false);
    struct kn_task t = trial_tasks[0];
    trial_tasks[0] = trial_tasks[1];
    trial_tasks[1] = t;
    for (size_t i = 0; i < 2; i++) kn_task_key(&trial_tasks[i], trial_model.sha256, trial_keys[i]);
    trial_open(&o, 2, NULL);
    CHECK_INT(o.kept, 2);
    trial_close(&o);
    CHECK(has("images/000000.png"));
    CHECK(has("images/000001.png"));
}

/* The folder is refused with these words in the message, and no file of it has changed. */
static void expect_refused(size_t count, const char *words, const char *more) {
    struct kn_err err = {0};
    char *manifest = has("manifest.jsonl") ? trial_read("manifest.jsonl") : NULL;
    CHECK_INT(trial_begin_folder(&o, count, NULL, &err), KN_EEXIST);
    CHECK_MSG(strstr(err.text, words) != NULL, "%s", err.text);
    CHECK_MSG(strstr(err.text, more) != NULL, "%s", err.text);
    folder_close(&o);
    char *after = has("manifest.jsonl") ? trial_read("manifest.jsonl") : NULL;
    CHECK(!manifest == !after);
    if (manifest) CHECK_STR(after, manifest);
    free(manifest);
    free(after);
}

TEST(a_run_that_asks_for_less_is_refused) {
    trial_finished(3, false);
    trial_ask(2, 7);
    expect_refused(2, "1 of its 3 images of prompts.txt are not asked for", "--replace");
    CHECK(has("images/000002.png"));
}

TEST(a_run_that_asks_for_something_else_is_refused) {
    trial_finished(3, false);
    trial_ask(3, 100);
    expect_refused(3, "holds another batch", "-o names another folder");
    CHECK(has("images/000000.png"));
}

TEST(a_batch_that_has_begun_is_another_one_too) {
    struct kn_err err = {0};
    trial_begin();
    trial_ask(3, 7);
    CHECK_INT(trial_begin_folder(&o, 3, NULL, &err), KN_OK);
    strcpy(o.id, "104251eb-0a40-4778-a52b-77fda3b1dc20");
    CHECK_INT(folder_describe(&o, &err), KN_OK);
    folder_close(&o);                                        /* killed before an image ended */
    CHECK_INT(trial_begin_folder(&o, 3, NULL, &err), KN_OK); /* the same */
    folder_close(&o);
    trial_ask(3, 100);
    expect_refused(3, "manifest.jsonl tells nothing yet", "--replace");
}

TEST(of_equal_images_every_one_must_be_asked_for) {
    trial_begin();
    trial_ask(2, 7);
    memcpy(trial_keys[1], trial_keys[0], sizeof(kn_digest));
    trial_open(&o, 2, NULL);
    trial_take(&o, 0, KN_RESULT_DONE, "");
    trial_take(&o, 1, KN_RESULT_DONE, "");
    trial_close(&o);
    expect_refused(1, "1 of its 2 images", "--replace");
    trial_open(&o, 2, NULL);
    CHECK_INT(o.kept, 2);
    folder_close(&o);
}

TEST(replace_removes_what_the_manifest_lists_and_nothing_else) {
    char path[512];
    trial_finished(3, false);
    trial_path("images/holiday.png", path);
    trial_write(path, "mine", 4);
    trial_path("notes.txt", path);
    trial_write(path, "mine", 4);
    trial_path("images/000009.png", path); /* a name like ours that no manifest lists */
    trial_write(path, "mine", 4);
    trial_path("images/000002.png", path); /* edited by hand */
    trial_write(path, "mine", 4);
    trial_ask(1, 7);
    trial_replace = true;
    trial_open(&o, 1, NULL);
    CHECK_INT(o.kept, 1);
    trial_close(&o);
    CHECK(has("images/000000.png"));
    CHECK(!has("images/000001.png"));
    CHECK(!has("images/000002.png"));
    CHECK(has("changed/000002.png"));
    CHECK(has("images/holiday.png"));
    CHECK(has("images/000009.png"));
    CHECK(has("notes.txt"));
}

TEST(what_is_not_kilns_is_never_replaced) {
    static const char *const names[] = {"index.html",        "manifest.jsonl",    "batch.json",
                                        "images/000000.png", "gallery/status.js", "gallery/0000.js"};
    for (int replace = 0; replace < 2; replace++) {
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            char path[512];
            trial_begin();
            trial_ask(2, 7);
            trial_replace = replace;
            CHECK_INT(kn_fs_mkdirs(trial_out, 0777, NULL), KN_OK);
            trial_path("images", path);
            CHECK_INT(kn_fs_mkdirs(path, 0777, NULL), KN_OK);
            trial_path("gallery", path);
            CHECK_INT(kn_fs_mkdirs(path, 0777, NULL), KN_OK);
            trial_path(names[i], path);
            trial_write(path, "mine", 4);
            expect_refused(2, names[i], "nothing was changed");
            char *still = trial_read(names[i]);
            CHECK_STR(still, "mine");
            free(still);
            CHECK(!has(".lock")); /* nor is anything of kiln's left behind */
        }
    }
}

TEST(a_file_that_comes_to_lie_in_a_pictures_place_is_not_replaced) {
    char path[512];
    struct kn_err err = {0};
    struct kn_result r;
    uint32_t index = 0;
    size_t lost = 0;
    trial_begin();
    trial_ask(1, 7);
    trial_open(&o, 1, NULL);
    trial_path("images/000000.png", path);
    trial_write(path, "mine", 4);
    trial_render(0, &r);
    CHECK_INT(folder_take(&o, NULL, &r, &index, 1, &lost, &err), KN_ESTATE);
    CHECK_MSG(strstr(err.text, "is not kiln's") != NULL, "%s", err.text);
    char *still = trial_read("images/000000.png");
    CHECK_STR(still, "mine");
    free(still);
    folder_close(&o);
}

TEST(pictures_get_the_names_that_are_asked_for_now) {
    trial_finished(2, false); /* seeds 7 and 8 */
    trial_ask(3, 6);
    static char pattern[] = "s{seed:04}";
    trial_pattern = pattern;
    trial_open(&o, 3, NULL);
    CHECK_INT(o.kept, 2);
    trial_take(&o, 0, KN_RESULT_DONE, "");
    trial_close(&o);
    static const char *const files[] = {"images/s0006.png", "images/s0007.png", "images/s0008.png"};
    char *m = trial_read("manifest.jsonl"), *about = trial_read("batch.json"),
         *part = trial_read("gallery/0000.js");
    for (size_t i = 0; i < 3; i++) {
        json_object *v = line_of(m, i + 1);
        CHECK_STR(json_object_get_string(json_object_object_get(v, "file")), files[i]);
        json_object_put(v);
        CHECK(has(files[i]));
        CHECK(strstr(part, files[i] + strlen("images/")) != NULL);
    }
    CHECK(!has("images/000000.png"));
    CHECK(strstr(about, "\"name_pattern\": \"s{seed:04}\"") != NULL);
    free(m);
    free(about);
    free(part);
    trial_open(&o, 3, NULL);
    CHECK_INT(o.kept, 3);
    folder_close(&o);
}

TEST(a_picture_that_was_being_renamed_goes_back_to_its_name) {
    char from[512], to[512];
    trial_finished(2, false);
    trial_path("images/000001.png", from);
    trial_path("images/.kept-000000", to);
    CHECK_INT(rename(from, to), 0);
    trial_open(&o, 2, NULL);
    CHECK_INT(o.kept, 2);
    CHECK(has("images/000001.png"));
    CHECK(!has("images/.kept-000000"));
    folder_close(&o);
}

TEST(a_pinned_backend_keeps_its_own_class_only) {
    trial_finished(2, false);
    trial_open(&o, 2, "cuda-sm90-9b07e4");
    CHECK_INT(o.kept, 0);
    folder_close(&o);
}

TEST(a_second_kiln_is_kept_out) {
    static struct folder second;
    struct kn_err err = {0};
    trial_begin();
    trial_ask(1, 7);
    trial_open(&o, 1, NULL);
    CHECK_INT(folder_open(trial_out, &second, &err), KN_ESTATE);
    CHECK(strstr(err.text, "another kiln is at work in it") != NULL);
    folder_close(&second);
    folder_close(&o);
    CHECK_INT(folder_open(trial_out, &second, &err), KN_OK);
    folder_close(&second);
}

TEST(what_a_killed_run_left_is_swept) {
    char path[512];
    trial_finished(1, false);
    trial_path("images/.new-000003", path);
    trial_write(path, "half", 4);
    trial_path("images/.new-holiday", path);
    trial_write(path, "mine", 4);
    trial_open(&o, 1, NULL);
    CHECK(!has("images/.new-000003"));
    CHECK(has("images/.new-holiday"));
    folder_close(&o);
}

TEST(a_retried_image_is_counted_once) {
    trial_begin();
    trial_ask(1, 7);
    trial_open(&o, 1, NULL);
    trial_take(&o, 0, KN_RESULT_FAILED, "out of luck");
    CHECK_INT(o.failed, 1);
    trial_take(&o, 0, KN_RESULT_DONE, "");
    trial_take(&o, 0, KN_RESULT_DONE, "");
    CHECK_INT(o.failed, 0);
    CHECK_INT(o.done, 1);
    folder_close(&o);
}

TEST(a_seed_of_64_bits_and_a_float_come_back_from_the_manifest) {
    trial_begin();
    trial_ask(1, UINT64_MAX);
    trial_tasks[0].cfg = 1.1f;
    kn_task_key(&trial_tasks[0], trial_model.sha256, trial_keys[0]);
    trial_open(&o, 1, NULL);
    trial_take(&o, 0, KN_RESULT_DONE, "");
    trial_close(&o);
    char *m = trial_read("manifest.jsonl");
    CHECK(strstr(m, "\"seed\":18446744073709551615,") != NULL);
    CHECK(strstr(m, "\"cfg\":1.1,") != NULL);
    free(m);
}

TEST(batch_json_counts_and_names_the_models) {
    trial_finished(3, false);
    char *text = trial_read("batch.json");
    json_object *v = json_tokener_parse(text);
    CHECK_INT(json_object_get_int(json_object_object_get(v, "count")), 3);
    json_object *m = json_object_array_get_idx(json_object_object_get(v, "models"), 0);
    CHECK_STR(json_object_get_string(json_object_object_get(m, "name")), "tiny");
    json_object_put(v);
    free(text);
}

/* ---- the gallery's data ---- */

static char hostile[] =
    "</script><script>alert(1)</script> \"a\" 'b' & \\ \xe2\x80\xa8 \xe2\x80\xa9 \n\t\x01 ü";

TEST(the_gallery_data_hold_no_byte_that_could_end_a_script) {
    trial_begin();
    trial_ask(1, 7);
    trial_tasks[0].prompt = trial_tasks[0].negative = hostile;
    trial_tasks[0].extra = (char[]){"{\"</script>\":\"<!--\"}"};
    trial_open(&o, 1, NULL);
    snprintf(o.name, sizeof o.name, "</script>");
    trial_take(&o, 0, KN_RESULT_FAILED, "</script>");
    trial_close(&o);
    static const char *const files[] = {"gallery/0000.js", "gallery/status.js"};
    for (size_t k = 0; k < 2; k++) {
        char *text = trial_read(files[k]);
        CHECK_MSG(!strpbrk(text, "<>&"), "%s", files[k]);
        CHECK(!strstr(text, "\xe2\x80\xa8") && !strstr(text, "\xe2\x80\xa9"));
        free(text);
    }
    /* and it is still what it was */
    char *text = trial_read("gallery/0000.js");
    char *from = strstr(text, ",[\n[") + 3, *end = strstr(from, "\n]);");
    CHECK(from && end);
    *end = '\0';
    json_object *row = json_tokener_parse(from);
    CHECK_STR(json_object_get_string(json_object_array_get_idx(row, 2)), hostile);
    json_object_put(row);
    free(text);
}

TEST(a_part_is_written_again_only_when_it_has_changed) {
    enum { COUNT = 2500 };
    static struct kn_task tasks[COUNT];
    static kn_digest keys[COUNT];
    struct kn_err err = {0};
    char path[512];
    trial_begin();
    trial_ask(1, 7);
    for (size_t i = 0; i < COUNT; i++) {
        tasks[i] = trial_tasks[0];
        tasks[i].seed = i;
        kn_task_key(&tasks[i], trial_model.sha256, keys[i]);
    }
    CHECK_INT(folder_open(trial_out, &o, &err), KN_OK);
    CHECK_INT(folder_begin(&o,
                           &(struct folder_ask){.tasks = &(struct kn_tasks){.v = tasks, .count = COUNT},
                                                .keys = (const kn_digest *)keys,
                                                .count = COUNT,
                                                .models = &trial_model},
                           &err),
              KN_OK);
    CHECK_INT(folder_describe(&o, &err), KN_OK);
    struct kn_result r = {
        .attempt = 3, .status = KN_RESULT_FAILED, .worker = "", .backend = "", .engine = ""};
    r.error = "out of luck";
    CHECK_INT(folder_note(&o, 0, &r), KN_OK);
    CHECK_INT(folder_note(&o, 2400, &r), KN_OK);
    CHECK_INT(folder_flush(&o, true, &err), KN_OK);
    CHECK(has("gallery/0000.js"));
    CHECK(!has("gallery/0001.js")); /* none of its images has ended */
    trial_path("gallery/0000.js", path);
    CHECK_INT(unlink(path), 0);
    CHECK_INT(folder_note(&o, 2401, &r), KN_OK);
    CHECK_INT(folder_flush(&o, true, &err), KN_OK);
    CHECK(!has("gallery/0000.js")); /* was not written again */
    char *status = trial_read("gallery/status.js");
    CHECK(strstr(status, "\"parts\":[1,0,2]") != NULL);
    free(status);
    folder_close(&o);
}

TEST(parts_of_a_larger_run_go_away) {
    char path[512];
    trial_finished(1, false);
    trial_path("gallery/0007.js", path);
    trial_write(path, "kiln.part(", 10);
    trial_path("gallery/mine.js", path);
    trial_write(path, "mine", 4);
    trial_open(&o, 1, NULL);
    CHECK(!has("gallery/0007.js"));
    CHECK(has("gallery/mine.js"));
    folder_close(&o);
}

TEST(flushes_take_a_small_share_of_the_time) {
    enum { COUNT = 20000 };
    struct kn_task *tasks = calloc(COUNT, sizeof *tasks);
    kn_digest *keys = calloc(COUNT, sizeof *keys);
    struct kn_err err = {0};
    CHECK(tasks && keys);
    trial_begin();
    trial_ask(1, 7);
    for (size_t i = 0; i < COUNT; i++) tasks[i] = trial_tasks[0];
    CHECK_INT(folder_open(trial_out, &o, &err), KN_OK);
    CHECK_INT(folder_begin(&o,
                           &(struct folder_ask){.tasks = &(struct kn_tasks){.v = tasks, .count = COUNT},
                                                .keys = (const kn_digest *)keys,
                                                .count = COUNT,
                                                .models = &trial_model},
                           &err),
              KN_OK);
    CHECK_INT(folder_describe(&o, &err), KN_OK);
    struct kn_result r = {
        .attempt = 3, .status = KN_RESULT_FAILED, .worker = "", .backend = "", .engine = ""};
    r.error = "out of luck";
    /* However slow the disk and busy the machine: what a flush took is waited for many times before the next.
     */
    uint64_t until = kn_clock_ms() + 4000;
    int flushes = 0;
    for (uint32_t i = 0; kn_clock_ms() < until; i++) {
        if (i < COUNT) CHECK_INT(folder_note(&o, i, &r), KN_OK);
        o.changes++;
        uint64_t begun = kn_clock_ms(), last = o.flushed_ms, cost = o.flush_cost_ms;
        CHECK_INT(folder_flush(&o, false, &err), KN_OK);
        usleep(50);
        if (o.changes) continue; /* not due */
        if (flushes++ > 0)
            CHECK_MSG(begun + 1 >= last + 10 * cost, "%d ms after one of %d ms", (int)(begun - last),
                      (int)cost);
        CHECK(o.flush_cost_ms <= kn_clock_ms() - begun);
        o.flush_cost_ms = 200; /* as if the disk were slow */
    }
    CHECK(flushes > 1);
    folder_close(&o);
    free(tasks);
    free(keys);
}

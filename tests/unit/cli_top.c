/* kiln top's screen, as text. */
#include "tests/unit/check.h"

#include "cli/talk/batch.h"
#include "cli/print/json.h"
#include "cli/print/top_screen.h"

static char rows[TOP_ROWS_MAX][TOP_ROW_MAX];
static struct kn_batch_status batches[60];
static struct kn_worker_status workers[60];
static struct kn_batch_list batch_list;
static struct kn_worker_list worker_list;
static struct top top;

static void farm(size_t batch_count, size_t worker_count) {
    static char names[60][16], ids[60][16];
    memset(batches, 0, sizeof batches);
    memset(workers, 0, sizeof workers);
    for (size_t i = 0; i < 60; i++) {
        snprintf(names[i], sizeof names[i], "batch-%zu", i);
        snprintf(ids[i], sizeof ids[i], "worker-%zu", i);
        batches[i] = (struct kn_batch_status){.name = names[i],
                                              .request = "",
                                              .loading = "",
                                              .wait_text = "",
                                              .state = KN_BATCH_ACTIVE,
                                              .total = 1000,
                                              .done = 250,
                                              .queued = 740,
                                              .running = 10,
                                              .images_per_s = 2.5f,
                                              .images_per_s_mean = 2,
                                              .eta_ms = 300000,
                                              .created_wall_ms = 1000 + i};
        memset(batches[i].batch, (int)i + 1, sizeof(kn_id));
        workers[i] = (struct kn_worker_status){.worker = ids[i],
                                               .host = "host",
                                               .device = "8 threads",
                                               .device_uuid = "",
                                               .loading = "",
                                               .backend = "cpu",
                                               .model = "tiny",
                                               .engine = "",
                                               .state = KN_WORKER_BUSY,
                                               .has_batch = true,
                                               .step = 12,
                                               .steps = 20,
                                               .tasks = 8,
                                               .done = 40,
                                               .last_seen_ms = 300,
                                               .images_per_s = (float)i};
    }
    batch_list = (struct kn_batch_list){batches, batch_count};
    worker_list = (struct kn_worker_list){workers, worker_count, 2.5f};
    top = (struct top){.farm = "ipc:///farm", .batches = &batch_list, .workers = &worker_list};
    top_arrange(&top);
}

/* True when the screen of so many rows shows `text`; the marks are taken out. */
static bool shows(int width, int height, const char *text) {
    size_t n = top_draw(&top, width, height, rows);
    bool found = false;
    for (size_t i = 0; i < n; i++) {
        char *to = rows[i];
        for (const char *p = rows[i]; *p; p++)
            if (*p < 0 || *p >= TOP_MARK_END) *to++ = *p;
        *to = '\0';
        found = found || strstr(rows[i], text);
    }
    return found;
}

static int columns(const char *row) {
    int n = 0;
    for (; *row; row++) n += (*row & 0xc0) != 0x80 && (*row < 0 || *row >= TOP_MARK_END);
    return n;
}

TEST(the_header_sums_up_the_farm) {
    farm(2, 3);
    batches[1].failed = 4;
    CHECK(shows(120, 40, "queued 1,480  running 20  done 500  failed 4"));
    CHECK(shows(120, 40, "2.50 images/s now"));
    CHECK(shows(120, 40, "4.00 over the batch"));
    CHECK(shows(120, 40, "5 min 0 s left"));
}

TEST(a_worker_shows_its_step) {
    farm(1, 1);
    CHECK(shows(140, 40, "12/20"));
    workers[0].state = KN_WORKER_LOST;
    CHECK(!shows(140, 40, "12/20"));
    CHECK(shows(140, 40, "1 worker lost"));
}

TEST(a_batch_that_has_ended_stands_behind_one_that_runs) {
    farm(2, 0); /* the newest first: batch-1 */
    CHECK_STR(batches[0].name, "batch-1");
    for (size_t i = 0; i < 2; i++)
        if (strcmp(batches[i].name, "batch-1") == 0) {
            batches[i].state = KN_BATCH_DONE;
            batches[i].done = 1000;
            batches[i].queued = batches[i].running = 0;
        }
    top_arrange(&top);
    CHECK_STR(batches[0].name, "batch-0");
    CHECK(shows(120, 40, "100 %"));
}

TEST(what_is_not_all_done_is_never_100_percent) {
    farm(1, 0);
    batches[0].done = 999;
    CHECK(shows(120, 40, "99 %"));
    CHECK(!shows(120, 40, "100 %"));
}

TEST(the_selection_follows_its_batch_when_the_order_changes) {
    farm(5, 0);
    top_move(&top, 2);
    kn_id was;
    memcpy(was, top_selected_batch(&top)->batch, sizeof was);
    top.batch_sort = TOP_BY_NAME;
    top_arrange(&top);
    CHECK_MEM(top_selected_batch(&top)->batch, was, sizeof was);
}

TEST(the_selection_stays_on_the_screen) {
    farm(60, 60);
    for (int i = 0; i < 59; i++) {
        top_move(&top, 1);
        CHECK(shows(100, 24, top_selected_batch(&top)->name));
    }
    top.table = TOP_WORKERS;
    top_move(&top, 59);
    CHECK(shows(100, 24, "worker-59"));
    top_move(&top, -100);
    CHECK(shows(100, 24, "worker-0 "));
}

TEST(workers_are_sorted_by_number_and_by_speed) {
    farm(0, 12);
    CHECK_STR(workers[2].worker, "worker-2"); /* not worker-10 */
    top.worker_sort = TOP_BY_SPEED;
    top_arrange(&top);
    CHECK_STR(workers[0].worker, "worker-11");
}

TEST(no_row_is_wider_than_the_screen_and_none_is_too_many) {
    static const int sizes[][2] = {{20, 5}, {40, 10}, {80, 24}, {110, 30}, {200, 60}, {400, 399}, {1, 1}};
    farm(60, 60);
    workers[3].device =
        "Ünïcödé 漢字 and a name that is longer than anything that fits into a cell of a table";
    batches[3].name = "\xf0\x9f\x8c\x88 rainbow\n\tand a line";
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        size_t n = top_draw(&top, sizes[k][0], sizes[k][1], rows);
        CHECK(n <= TOP_ROWS_MAX);
        for (size_t i = 0; i < n; i++)
            CHECK_MSG(columns(rows[i]) <= sizes[k][0], "%dx%d row %zu: [%s]", sizes[k][0], sizes[k][1], i,
                      rows[i]);
    }
}

TEST(a_farm_with_more_than_fits_a_page_is_cut_without_a_terminal) {
    static struct kn_worker_status many[2000];
    farm(3, 3);
    for (size_t i = 0; i < 2000; i++) many[i] = workers[0];
    worker_list = (struct kn_worker_list){many, 2000, 0};
    CHECK(top_draw(&top, 140, 0, rows) <= TOP_ROWS_MAX);
}

TEST(a_device_shows_what_it_says_of_itself_until_it_is_lost) {
    char text[64];
    farm(1, 2);
    CHECK_STR(worker_readings(&workers[0], text), "");
    workers[0].readings = (struct kn_readings){.memory_used = 3ull << 29, .memory_total = 80ull << 30};
    CHECK_STR(worker_readings(&workers[0], text), "1.5/80.0 GiB");
    workers[0].readings.temperature_c = 64;
    workers[0].readings.power_mw = 349600;
    CHECK_STR(worker_readings(&workers[0], text), "64 °C 350 W 1.5/80.0 GiB");
    CHECK(shows(180, 40, "64 °C 350 W 1.5/80.0 GiB  host: 8 threads"));
    workers[0].state = KN_WORKER_LOST;
    CHECK_STR(worker_readings(&workers[0], text), "");
    /* the most that the codec lets through fits */
    workers[0].state = KN_WORKER_IDLE;
    workers[0].readings =
        (struct kn_readings){KN_DEVICE_BYTES_MAX, KN_DEVICE_BYTES_MAX, 1000, 1000000000, 1, 1};
    CHECK_STR(worker_readings(&workers[0], text), "1000 °C 1000000 W 1048576.0/1048576.0 GiB");
}

TEST(a_silent_coordinator_is_said_to_be) {
    farm(1, 1);
    top.silent_ms = 12000;
    CHECK(shows(120, 40, "waiting for the coordinator (12 s)"));
    top.batches = NULL;
    top.workers = NULL;
    CHECK(shows(120, 40, "waiting for the coordinator"));
}

TEST(the_snapshot_has_three_members) {
    farm(2, 3);
    json_object *v = farm_json(&batch_list, &worker_list);
    CHECK_INT(json_object_object_length(v), 3);
    CHECK_INT(json_object_array_length(json_object_object_get(v, "batches")), 2);
    CHECK_INT(json_object_array_length(json_object_object_get(v, "workers")), 3);
    CHECK_STR(json_object_to_json_string(json_object_object_get(v, "images_per_s")), "2.500");
    json_object *w = json_object_array_get_idx(json_object_object_get(v, "workers"), 0);
    CHECK_STR(json_object_get_string(json_object_object_get(w, "id")), "worker-0");
    json_object_put(v);
}

TEST(a_batch_that_waits_shows_why_and_no_time_left) {
    farm(2, 1);
    batches[0].wait = KN_WAIT_NO_WORKER;
    batches[0].wait_text = "no worker has the model sd15";
    batches[0].eta_ms = -1;
    top.has_batch = false;
    top_arrange(&top);
    CHECK(shows(120, 0, "waits: no worker has the model sd15"));
    CHECK(shows(120, 0, "    waits"));
}

TEST(a_state_that_only_a_newer_farm_has_is_shown_as_its_number) {
    farm(1, 1);
    batches[0].state = (enum kn_batch_state)9;
    workers[0].state = (enum kn_worker_state)8;
    CHECK(shows(120, 40, "state 9"));
    CHECK(shows(120, 40, "state 8"));
}

TEST(a_worker_that_loads_a_model_shows_its_name_and_size) {
    farm(1, 1);
    workers[0].loading = "sd15";
    workers[0].loading_bytes = 4300000000;
    CHECK(shows(140, 40, "loading 4.3 GB"));
    CHECK(shows(140, 40, "sd15"));
}

TEST(nothing_of_the_farm_reaches_the_terminal_as_a_command) {
    farm(1, 1);
    batches[0].name =
        "\x1b[2J\x02"
        "evil\u202e";
    workers[0].worker = "gpu\x1b]0;title\x07";
    CHECK(shows(140, 40, "\\x1b[2J\\x02evil\\u202e"));
    CHECK(shows(140, 40, "gpu\\x1b]0;"));
    CHECK(!shows(140, 40, "\x1b"));
}

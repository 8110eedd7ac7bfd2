/* How many workers a farm starts, on machines that are not at hand. */
#include <limits.h>

#include "cli/farm/size.h"
#include "tests/unit/check.h"

#define GB 1000000000ull

static struct farm_size size;
static struct kn_err err;

/* A model of so many GB of weights, whose pictures of 1024×1024 take `image` GB each. */
static struct kn_model_info model(const char *name, double weights, double image) {
    struct kn_model_info m = {.defaults = {.width = 1024, .height = 1024},
                              .size_multiple = 64,
                              .memory_weights = (uint64_t)(weights * 1e9),
                              .memory_image = (uint64_t)(image * 1e9)};
    snprintf(m.name, sizeof m.name, "%s", name);
    return m;
}

/* A machine of so many NUMA nodes with so many cores each, and so much memory that can be had. */
static void machine(int nodes, int cores, double free_gb) {
    struct kn_machine *m = &size.machine;
    memset(&size, 0, sizeof size);
    m->cores = nodes * cores;
    m->nodes = nodes;
    for (int i = 0; i < nodes; i++) m->node[i] = (struct kn_node){.number = i, .cores = cores};
    m->memory_free = (uint64_t)(free_gb * 1e9);
    m->memory_total = 2 * m->memory_free;
}

static int choose(int workers, int threads, const struct kn_model_info *m, uint32_t width, uint32_t height) {
    static struct worker_devices none;
    static struct cli_options o;
    struct farm_load load = {.models = m, .model_count = 1, .width = width, .height = height};
    o.workers = workers;
    o.threads = threads;
    err = (struct kn_err){0};
    return farm_size_on(&o, &none, &load, &size, &err);
}

TEST(one_worker_with_all_cores_is_the_default_whatever_the_number_of_cores) {
    struct kn_model_info m = model("sdxl", 13.7, 0.8);
    machine(1, 16, 64);
    CHECK_INT(choose(-1, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 1);
    CHECK_INT(size.threads, 16);
    CHECK(!size.nodes);
    CHECK(size.memory_mib << 20 > 59 * GB && size.memory_mib << 20 < 64 * GB);
}

TEST(a_numa_machine_has_a_worker_a_node_with_its_share_of_the_memory) {
    struct kn_model_info m = model("sdxl", 13.7, 0.8);
    machine(2, 24, 128);
    CHECK_INT(choose(-1, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 2);
    CHECK_INT(size.threads, 24);
    CHECK(size.nodes);
    CHECK(size.memory_mib << 20 < 64 * GB);
}

TEST(where_memory_carries_fewer_workers_than_nodes_there_are_fewer_with_more_threads) {
    struct kn_model_info m = model("sdxl", 13.7, 0.8);
    machine(4, 8, 36);
    CHECK_INT(choose(-1, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 2);
    CHECK_INT(size.threads, 16);
    CHECK(!size.nodes);
}

TEST(a_quota_leaves_the_choice_of_cores_to_the_kernel) {
    struct kn_model_info m = model("tiny", 0.03, 0.01);
    machine(2, 8, 8);
    size.machine.cores = 6;
    CHECK_INT(choose(-1, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 2);
    CHECK_INT(size.threads, 3);
    CHECK(!size.nodes);
    machine(4, 8, 8);
    size.machine.cores = 1;
    CHECK_INT(choose(-1, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 1);
    CHECK_INT(size.threads, 1);
}

TEST(a_model_that_does_not_fit_is_refused_with_the_size_that_would) {
    struct kn_model_info m = model("sdxl", 3.0, 6.0);
    machine(1, 8, 8.5); /* 8.1 without what is left to others */
    CHECK_INT(choose(-1, 0, &m, 0, 0), KN_ECONFIG);
    CHECK_STR(err.text,
              "sdxl at 1024x1024 needs 9.1 GB of memory a worker (weights in f32), and 8.1 GB can be had on "
              "this machine; with --size 896x896 it would fit");
    CHECK_INT(choose(-1, 0, &m, 896, 896), 0); /* and that is so */
    CHECK_INT(size.workers, 1);
    CHECK_INT(choose(-1, 0, &m, 1152, 896), KN_ECONFIG); /* proportions stay */
    CHECK(strstr(err.text, "with --size 960x768 it would fit") != NULL);
}

TEST(weights_that_no_size_would_help_are_told_as_that) {
    struct kn_model_info m = model("sdxl", 13.7, 0.8);
    machine(1, 8, 8);
    size.machine.memory_limited = true;
    CHECK_INT(choose(-1, 0, &m, 512, 512), KN_ECONFIG);
    CHECK(strstr(err.text, "within this control group's limit; no size would fit") != NULL);
}

TEST(workers_that_a_person_asks_for_are_held_against_memory_too) {
    struct kn_model_info m = model("sdxl", 13.7, 0.8);
    machine(1, 16, 48);
    CHECK_INT(choose(8, 0, &m, 0, 0), KN_ECONFIG);
    CHECK(strncmp(err.text, "--workers 8: sdxl at 1024x1024 needs 14.6 GB", 44) == 0);
    CHECK(strstr(err.text, "; --workers 3 fits") != NULL);
    CHECK_INT(choose(3, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 3);
    CHECK_INT(size.threads, 5);
    CHECK_INT(choose(0, 0, &m, 0, 0), 0); /* none on this machine: nothing to hold */
    CHECK_INT(size.workers, 0);
    CHECK_INT(size.memory_mib, 0);
}

TEST(threads_that_a_person_asks_for_stay) {
    struct kn_model_info m = model("tiny", 0.03, 0.01);
    machine(2, 8, 8);
    CHECK_INT(choose(-1, 3, &m, 0, 0), 0);
    CHECK_INT(size.workers, 2);
    CHECK_INT(size.threads, 3);
    CHECK(!size.nodes);
}

TEST(the_heaviest_of_several_models_counts) {
    static struct worker_devices none;
    static struct cli_options o = {.workers = 4};
    struct kn_model_info m[] = {model("tiny", 0.03, 0.01), model("sdxl", 13.7, 0.8), model("sd15", 4.1, 0.3)};
    struct farm_load load = {.models = m, .model_count = 3};
    machine(1, 16, 48);
    CHECK_INT(farm_size_on(&o, &none, &load, &size, &err), KN_ECONFIG);
    CHECK(strstr(err.text, "sdxl") && strstr(err.text, "--workers 3 fits"));
}

TEST(what_is_not_known_refuses_nobody) {
    struct kn_model_info m = model("sim", 0, 0);
    machine(1, 16, 1);
    CHECK_INT(choose(64, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 64);
    m = model("sdxl", 13.7, 0.8);
    machine(1, 16, 0);
    size.machine.memory_total = 0; /* /proc is not there */
    CHECK_INT(choose(-1, 0, &m, 0, 0), 0);
    CHECK_INT(size.workers, 1);
    CHECK_INT(size.memory_mib, 0);
}

TEST(gpus_have_a_worker_each_and_memory_of_their_own) {
    static struct worker_devices gpus = {.count = 8};
    static struct cli_options o = {.workers = -1};
    struct kn_model_info m = model("sdxl", 13.7, 0.8);
    struct farm_load load = {.models = &m, .model_count = 1};
    machine(2, 32, 20);
    CHECK_INT(farm_size_on(&o, &gpus, &load, &size, &err), 0);
    CHECK_INT(size.workers, 8);
    CHECK_INT(size.threads, 8);
    CHECK_INT(size.memory_mib, 0);
    CHECK(!size.nodes);
}

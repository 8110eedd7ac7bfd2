/* GPUs as NVML tells of them, with a shared object in NVML's place (nvml_fake.c). */
#include "tests/unit/check.h"

#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "worker/device.h"

static struct kn_err err;

/* With so many GPUs, and CUDA_VISIBLE_DEVICES as it is given. */
static struct devices *opened(const char *gpus, const char *visible) {
    struct devices *d = NULL;
    setenv("FAKE_GPUS", gpus, 1);
    int rc = devices_open(KILN_FAKE_NVML, visible, &d, &err);
    CHECK_MSG(rc == 0, "%s", err.text);
    return d;
}

TEST(a_machine_without_a_driver_says_so) {
    struct devices *d;
    CHECK_INT(devices_open("/nowhere/libnvidia-ml.so.1", NULL, &d, &err), KN_ENOENT);
    CHECK(strstr(err.text, "no NVIDIA driver: /nowhere/libnvidia-ml.so.1"));
    CHECK_INT(devices_open("libm.so.6", NULL, &d, &err), KN_ENOENT);
    CHECK(strstr(err.text, "has no nvmlInit_v2"));
    setenv("FAKE_NVML_FAIL", "Init", 1);
    CHECK_INT(devices_open(KILN_FAKE_NVML, NULL, &d, &err), KN_ENOENT);
    CHECK(strstr(err.text, "a fault that was asked for"));
    setenv("FAKE_NVML_FAIL", "DeviceGetCount", 1);
    CHECK_INT(devices_open(KILN_FAKE_NVML, NULL, &d, &err), KN_EDEVICE);
    unsetenv("FAKE_NVML_FAIL");
    CHECK(d == NULL);
}

TEST(gpus_come_in_order_with_uuid_and_name) {
    struct devices *d = opened("3", NULL);
    CHECK_INT(devices_count(d), 3);
    CHECK_STR(devices_at(d, 2)->uuid, "GPU-00000002-1111-2222-3333-444444444444");
    CHECK_STR(devices_at(d, 2)->name, "Fake 2");
    devices_close(d);
    d = opened("0", NULL);
    CHECK_INT(devices_count(d), 0);
    devices_close(d);
}

TEST(cuda_visible_devices_leaves_over_what_it_names_in_its_order) {
    static const struct {
        const char *visible;
        int count;
        int first;
    } table[] = {
        {"0", 1, 0},         {"2,0", 2, 2},         {" 1 , 3 ", 2, 1}, {"GPU-00000003", 1, 3},
        {"", 0, 0},          {"-1", 0, 0},          {"1,x,2", 1, 1},   {"3,4,0", 1, 3},
        {"2,2,1", 1, 2},     {"GPU-0000000", 0, 0}, {"1,", 1, 1},      {"MIG-slice,1", 2, -1},
        {"MIG-other", 0, 0}, {"00000000001", 1, 1}, {"1x", 0, 0},      {"NoDevFiles", 0, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct devices *d = opened("4", table[i].visible);
        char want[64] = "MIG-slice";
        if (table[i].first >= 0)
            snprintf(want, sizeof want, "GPU-%08x-1111-2222-3333-444444444444", table[i].first);
        CHECK_MSG(devices_count(d) == table[i].count, "[%s]: %d", table[i].visible, devices_count(d));
        if (table[i].count) CHECK_STR(devices_at(d, 0)->uuid, want);
        devices_close(d);
    }
    char long_word[400];
    memset(long_word, '7', sizeof long_word);
    long_word[sizeof long_word - 1] = '\0';
    struct devices *d = opened("4", long_word);
    CHECK_INT(devices_count(d), 0);
    devices_close(d);
}

TEST(a_gpu_is_found_by_number_and_by_the_beginning_of_its_uuid) {
    struct devices *d = opened("3", "2,1");
    const struct device *v;
    CHECK_INT(devices_find(d, "0", &v, &err), 0);
    CHECK_STR(v->name, "Fake 2");
    CHECK_INT(devices_find(d, "GPU-00000001", &v, &err), 0);
    CHECK_STR(v->name, "Fake 1");
    CHECK_INT(devices_find(d, "GPU-0000", &v, &err), KN_EINVAL);
    CHECK(strstr(err.text, "more than one GPU is named so"));
    static const char *const none[] = {"2",   "GPU-00000000",        "GPU-", "x", "0x", "",
                                       "all", "99999999999999999999"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        CHECK_MSG(devices_find(d, none[i], &v, &err) == KN_ENOENT && v == NULL, "[%s]", none[i]);
        CHECK(strstr(err.text, "0 GPU-00000002-1111-2222-3333-444444444444 (Fake 2), 1 GPU-00000001"));
    }
    devices_close(d);
    d = opened("0", NULL);
    CHECK_INT(devices_find(d, "0", &v, &err), KN_ENOENT);
    CHECK_STR(err.text, "0: there is no GPU here");
    devices_close(d);
}

TEST(readings_are_what_the_device_tells_and_0_what_it_does_not) {
    struct devices *d = opened("2", NULL);
    struct kn_readings r;
    device_read(d, devices_at(d, 1), &r);
    CHECK_U64(r.memory_total, 80ull << 30);
    CHECK_U64(r.memory_used, 10ull << 30);
    CHECK(r.temperature_c >= 41 && r.temperature_c < 200);
    CHECK_U64(r.power_mw, 350001);
    CHECK_U64(r.sm_mhz, 1980);
    CHECK_U64(r.memory_mhz, 2619);
    setenv("FAKE_NVML_FAIL", "DeviceGetPowerUsage", 1);
    device_read(d, devices_at(d, 1), &r);
    CHECK(r.power_mw == 0 && r.sm_mhz == 1980);
    unsetenv("FAKE_NVML_FAIL");
    setenv("FAKE_NVML_ALL_BITS", "1", 1); /* what the codec would refuse, and the heartbeat with it */
    device_read(d, devices_at(d, 1), &r);
    CHECK(r.memory_total == 0 && r.memory_used == 0 && r.temperature_c == 0 && r.power_mw == 0);
    CHECK(r.sm_mhz == 0 && r.memory_mhz == 0);
    unsetenv("FAKE_NVML_ALL_BITS");
    devices_close(d);
}

TEST(a_bound_device_is_the_only_one_left_visible) {
    CHECK_INT(device_bind("GPU-1", &err), 0);
    CHECK_STR(getenv("CUDA_VISIBLE_DEVICES"), "GPU-1");
}

TEST(the_watch_has_readings_at_once_and_newer_ones_later) {
    struct devices *d = opened("1", NULL);
    struct device_watch *w;
    struct kn_readings first, later;
    CHECK_INT(device_watch_start(d, devices_at(d, 0), 5, &w, &err), 0);
    device_watch_get(w, &first);
    CHECK(first.temperature_c >= 40);
    uint64_t end = kn_clock_ms() + 10000;
    do {
        usleep(5000);
        device_watch_get(w, &later);
    } while (later.temperature_c < first.temperature_c + 3 && kn_clock_ms() < end);
    CHECK(later.temperature_c >= first.temperature_c + 3);
    device_watch_stop(w);
    CHECK_INT(device_watch_start(d, devices_at(d, 0), 3600000, &w, &err), 0);
    uint64_t begun = kn_clock_ms();
    device_watch_stop(w); /* does not wait for the next reading */
    CHECK(kn_clock_ms() - begun < 5000);
    devices_close(d);
}

/* A shared object that plays NVML (libnvidia-ml.so.1) for tests. FAKE_GPUS says how many GPUs it has (2);
 * FAKE_NVML_FAIL names a function that fails, without its prefix ("DeviceGetPowerUsage"); FAKE_NVML_ALL_BITS
 * makes readings that a device does not tell come as all bits set, as some drivers do. GPU i is
 * "GPU-0000000i-…"; its temperature is 40 + i and grows by one with each reading. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct memory {
    unsigned long long total, free, used;
};

int nvmlInit_v2(void);
int nvmlShutdown(void);
const char *nvmlErrorString(int rc);
int nvmlDeviceGetCount_v2(unsigned *out);
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out);
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out);
int nvmlDeviceGetUUID(void *device, char *out, unsigned max);
int nvmlDeviceGetName(void *device, char *out, unsigned max);
int nvmlDeviceGetMemoryInfo(void *device, struct memory *out);
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out);
int nvmlDeviceGetPowerUsage(void *device, unsigned *out);
int nvmlDeviceGetClockInfo(void *device, int which, unsigned *out);

static int gpus[64];
static unsigned warmer;

static int fails(const char *function) {
    const char *which = getenv("FAKE_NVML_FAIL");
    return which && strcmp(which, function) == 0 ? 999 : 0;
}

static int all_bits(void) {
    return getenv("FAKE_NVML_ALL_BITS") != NULL;
}

static unsigned number_of(const void *device) {
    return (unsigned)((const int *)device - gpus);
}

int nvmlInit_v2(void) {
    return fails("Init");
}

int nvmlShutdown(void) {
    return 0;
}

const char *nvmlErrorString(int rc) {
    return rc == 999 ? "a fault that was asked for" : "?";
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    const char *count = getenv("FAKE_GPUS");
    *out = count ? (unsigned)atoi(count) : 2;
    return fails("DeviceGetCount");
}

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out) {
    *out = &gpus[i];
    return fails("DeviceGetHandleByIndex");
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    *out = &gpus[63];
    return strcmp(uuid, "MIG-slice") == 0 ? 0 : 999;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned max) {
    unsigned i = number_of(device);
    if (i == 63)
        snprintf(out, max, "MIG-slice");
    else
        snprintf(out, max, "GPU-%08x-1111-2222-3333-444444444444", i);
    return fails("DeviceGetUUID");
}

int nvmlDeviceGetName(void *device, char *out, unsigned max) {
    snprintf(out, max, "Fake %u", number_of(device));
    return fails("DeviceGetName");
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *out) {
    (void)device;
    *out = (struct memory){.total = 80ull << 30, .free = 70ull << 30, .used = 10ull << 30};
    if (all_bits()) memset(out, 0xff, sizeof *out);
    return fails("DeviceGetMemoryInfo");
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) {
    *out = all_bits() ? ~0u : 40 + number_of(device) + warmer++;
    return sensor == 0 ? fails("DeviceGetTemperature") : 999;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *out) {
    *out = all_bits() ? ~0u : 350000 + number_of(device);
    return fails("DeviceGetPowerUsage");
}

int nvmlDeviceGetClockInfo(void *device, int which, unsigned *out) {
    (void)device;
    *out = all_bits() ? ~0u : which == 1 ? 1980 : which == 2 ? 2619 : 1;
    return fails("DeviceGetClockInfo");
}

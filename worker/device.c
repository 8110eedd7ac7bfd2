/* See device.h. NVML's functions, structs and numbers are declared here, as its documentation has them (they
 * are a stable ABI), because its header comes with CUDA's toolkit, which no machine needs to build a farm. */
#include "worker/device.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NVML_LIBRARY "libnvidia-ml.so.1"

enum { NVML_TEMPERATURE_GPU = 0, NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 };

struct nvml_memory {
    unsigned long long total, free, used;
};

struct nvml { /* each returns 0, or an error */
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error)(int);
    int (*count)(unsigned *);
    int (*by_index)(unsigned, void **);
    int (*by_uuid)(const char *, void **);
    int (*uuid)(void *, char *, unsigned);
    int (*name)(void *, char *, unsigned);
    int (*memory)(void *, struct nvml_memory *);
    int (*temperature)(void *, int, unsigned *);
    int (*power)(void *, unsigned *);
    int (*clock)(void *, int, unsigned *);
};

struct devices {
    void *library;
    struct nvml nvml;
    bool begun; /* nvmlInit succeeded */
    int count;
    struct device v[DEVICES_MAX];
};

static int load(struct devices *d, const char *library, struct kn_err *err) {
    struct {
        const char *name;
        void *to;
    } table[] = {
        {"nvmlInit_v2", &d->nvml.init},
        {"nvmlShutdown", &d->nvml.shutdown},
        {"nvmlErrorString", &d->nvml.error},
        {"nvmlDeviceGetCount_v2", &d->nvml.count},
        {"nvmlDeviceGetHandleByIndex_v2", &d->nvml.by_index},
        {"nvmlDeviceGetHandleByUUID", &d->nvml.by_uuid},
        {"nvmlDeviceGetUUID", &d->nvml.uuid},
        {"nvmlDeviceGetName", &d->nvml.name},
        {"nvmlDeviceGetMemoryInfo", &d->nvml.memory},
        {"nvmlDeviceGetTemperature", &d->nvml.temperature},
        {"nvmlDeviceGetPowerUsage", &d->nvml.power},
        {"nvmlDeviceGetClockInfo", &d->nvml.clock},
    };
    d->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!d->library) return kn_err_set(err, KN_ENOENT, "no NVIDIA driver: %s", dlerror());
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        void *f = dlsym(d->library, table[i].name);
        if (!f) return kn_err_set(err, KN_ENOENT, "%s: has no %s: an old driver", library, table[i].name);
        memcpy(table[i].to, &f, sizeof f); /* ISO C has no cast from an object's pointer to a function's */
    }
    int rc = d->nvml.init();
    if (rc != 0)
        return kn_err_set(err, KN_ENOENT, "the NVIDIA driver does not answer: %s", d->nvml.error(rc));
    d->begun = true;
    return 0;
}

/* Takes a device into the list; one that cannot be asked is left out. */
static bool add(struct devices *d, void *handle) {
    struct device *v = &d->v[d->count];
    *v = (struct device){.handle = handle};
    if (d->nvml.uuid(handle, v->uuid, sizeof v->uuid) != 0) return false;
    if (d->nvml.name(handle, v->name, sizeof v->name) != 0) snprintf(v->name, sizeof v->name, "a GPU");
    for (int i = 0; i < d->count; i++)
        if (strcmp(d->v[i].uuid, v->uuid) == 0) return false;
    d->count++;
    return true;
}

/* The one that `word` of CUDA_VISIBLE_DEVICES means: a number in PCI order, or the beginning of a UUID. NULL:
 * none, or more than one. */
static void *meant(struct devices *d, const char *word, void *const *all, unsigned count) {
    char *end, uuid[KN_DEVICE_MAX + 1];
    void *found = NULL;
    if (word[0] >= '0' && word[0] <= '9') {
        unsigned long n = strtoul(word, &end, 10);
        return *end == '\0' && n < count ? all[n] : NULL;
    }
    if (strncmp(word, "MIG-", 4) == 0) return d->nvml.by_uuid(word, &found) == 0 ? found : NULL;
    if (strncmp(word, "GPU-", 4) != 0) return NULL;
    for (unsigned i = 0; i < count; i++) {
        if (d->nvml.uuid(all[i], uuid, sizeof uuid) != 0 || strncmp(uuid, word, strlen(word)) != 0) continue;
        if (found) return NULL;
        found = all[i];
    }
    return found;
}

static int list(struct devices *d, const char *visible, struct kn_err *err) {
    void *all[DEVICES_MAX];
    unsigned n = 0, count = 0;
    int rc = d->nvml.count(&n);
    if (rc != 0) return kn_err_set(err, KN_EDEVICE, "counting the GPUs: %s", d->nvml.error(rc));
    for (unsigned i = 0; i < n && count < DEVICES_MAX;
         i++) /* one that has fallen off the bus keeps its number */
        if (d->nvml.by_index(i, &all[count]) == 0) count++;
    if (!visible) {
        for (unsigned i = 0; i < count; i++) add(d, all[i]);
        return 0;
    }
    /* CUDA stops at the first entry that means nothing; so does this. */
    for (const char *p = visible; *p && d->count < DEVICES_MAX;) {
        char word[KN_DEVICE_MAX + 1];
        size_t len = strcspn(p, ","), from = strspn(p, " \t"), to = len;
        if (from > len) from = len;
        while (to > from && (p[to - 1] == ' ' || p[to - 1] == '\t')) to--;
        if (to - from >= sizeof word) break;
        memcpy(word, p + from, to - from);
        word[to - from] = '\0';
        void *handle = meant(d, word, all, count);
        if (!handle || !add(d, handle)) break;
        p += len + (p[len] == ',');
    }
    return 0;
}

int devices_open(const char *library, const char *visible, struct devices **out, struct kn_err *err) {
    struct devices *d = calloc(1, sizeof *d);
    *out = NULL;
    if (!d) return kn_err_set(err, KN_ENOMEM, "out of memory");
    int rc = load(d, library ? library : NVML_LIBRARY, err);
    if (rc == 0) rc = list(d, visible, err);
    if (rc != 0) {
        devices_close(d);
        return rc;
    }
    *out = d;
    return 0;
}

void devices_close(struct devices *d) {
    if (!d) return;
    if (d->begun) d->nvml.shutdown();
    if (d->library) dlclose(d->library);
    free(d);
}

int devices_count(const struct devices *d) {
    return d->count;
}

const struct device *devices_at(const struct devices *d, int i) {
    return &d->v[i];
}

int devices_find(const struct devices *d, const char *which, const struct device **out, struct kn_err *err) {
    const struct device *found = NULL;
    char *end = NULL;
    if (which[0] >= '0' && which[0] <= '9') {
        unsigned long n = strtoul(which, &end, 10);
        if (*end == '\0' && n < (unsigned long)d->count) found = &d->v[n];
    } else if (strlen(which) > 4) { /* more than "GPU-" */
        for (int i = 0; i < d->count; i++) {
            if (strncmp(d->v[i].uuid, which, strlen(which)) != 0) continue;
            if (found) return kn_err_set(err, KN_EINVAL, "%.64s: more than one GPU is named so", which);
            found = &d->v[i];
        }
    }
    *out = found;
    if (found) return 0;
    if (d->count == 0) return kn_err_set(err, KN_ENOENT, "%.64s: there is no GPU here", which);
    char text[KN_ERR_TEXT_MAX - 128] = "";
    for (int i = 0; i < d->count && i < 8; i++) {
        size_t n = strlen(text);
        snprintf(text + n, sizeof text - n, "%s%d %.40s (%.40s)", i ? ", " : "", i, d->v[i].uuid,
                 d->v[i].name);
    }
    return kn_err_set(err, KN_ENOENT, "%.64s: not one of the GPUs here: %s%s", which, text,
                      d->count > 8 ? ", …" : "");
}

/* A reading, or 0 if it is out of range: some drivers set all bits for a reading that a device does not have,
 * and a heartbeat with such a number would be refused. */
static unsigned sane(int rc, const unsigned *v, unsigned max) {
    return rc == 0 && *v <= max ? *v : 0;
}

void device_read(const struct devices *d, const struct device *device, struct kn_readings *out) {
    const struct nvml *n = &d->nvml;
    struct nvml_memory m = {0};
    unsigned v = 0;
    *out = (struct kn_readings){0};
    if (n->memory(device->handle, &m) == 0 && m.total <= KN_DEVICE_BYTES_MAX && m.used <= m.total) {
        out->memory_total = m.total;
        out->memory_used = m.used;
    }
    out->temperature_c = sane(n->temperature(device->handle, NVML_TEMPERATURE_GPU, &v), &v, KN_DEVICE_C_MAX);
    out->power_mw = sane(n->power(device->handle, &v), &v, KN_DEVICE_MW_MAX);
    out->sm_mhz = sane(n->clock(device->handle, NVML_CLOCK_SM, &v), &v, KN_DEVICE_MHZ_MAX);
    out->memory_mhz = sane(n->clock(device->handle, NVML_CLOCK_MEM, &v), &v, KN_DEVICE_MHZ_MAX);
}

int device_bind(const char *uuid, struct kn_err *err) {
    if (setenv("CUDA_VISIBLE_DEVICES", uuid, 1) != 0) return kn_err_set(err, KN_ENOMEM, "out of memory");
    return 0;
}

/* ---- the thread that reads */

struct device_watch {
    const struct devices *devices;
    const struct device *device;
    int interval_ms;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool end;
    struct kn_readings last;
};

static void *watch(void *arg) {
    struct device_watch *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->end) {
        struct kn_readings r;
        struct timespec at;
        pthread_mutex_unlock(&w->lock);
        device_read(w->devices, w->device, &r);
        pthread_mutex_lock(&w->lock);
        w->last = r;
        clock_gettime(CLOCK_MONOTONIC, &at);
        int64_t ns = at.tv_nsec + (int64_t)w->interval_ms * 1000000;
        at.tv_sec += (time_t)(ns / 1000000000);
        at.tv_nsec = (long)(ns % 1000000000);
        while (!w->end && pthread_cond_timedwait(&w->changed, &w->lock, &at) == 0) {
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int device_watch_start(const struct devices *d, const struct device *device, int interval_ms,
                       struct device_watch **out, struct kn_err *err) {
    struct device_watch *w = calloc(1, sizeof *w);
    pthread_condattr_t attr;
    *out = NULL;
    if (!w) return kn_err_set(err, KN_ENOMEM, "out of memory");
    w->devices = d;
    w->device = device;
    w->interval_ms = interval_ms;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    device_read(d, device, &w->last); /* there is something to say from the start */
    int rc = pthread_create(&w->thread, NULL, watch, w);
    if (rc != 0) {
        pthread_cond_destroy(&w->changed);
        pthread_mutex_destroy(&w->lock);
        free(w);
        return kn_err_set(err, KN_ENOMEM, "a thread for the GPU's readings: %s", strerror(rc));
    }
    *out = w;
    return 0;
}

void device_watch_get(struct device_watch *w, struct kn_readings *out) {
    pthread_mutex_lock(&w->lock);
    *out = w->last;
    pthread_mutex_unlock(&w->lock);
}

void device_watch_stop(struct device_watch *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->end = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

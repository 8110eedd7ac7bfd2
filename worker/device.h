/* The GPUs of this machine as NVIDIA's management library (NVML) tells of them: which there are, which of
 * them this process may use, and what each says of itself (memory, temperature, power, clocks).
 *
 * NVML comes with the driver. It is loaded when a list is opened; a machine without it is no error of ours,
 * the list says KN_ENOENT. It needs no CUDA and makes no context on a device, so that whoever only looks
 * takes nothing from it.
 *
 * Devices are numbered as nvidia-smi numbers them (by PCI bus), among those that CUDA_VISIBLE_DEVICES leaves
 * over. A worker uses one: device_bind() leaves that one alone visible to CUDA, as its device 0. */
#ifndef KILN_WORKER_DEVICE_H
#define KILN_WORKER_DEVICE_H

#include "base/err.h"
#include "base/limits.h"
#include "proto/codec.h"

#define DEVICES_MAX 64

struct device {
    char uuid[KN_DEVICE_MAX + 1]; /* "GPU-8f0b…": the same after a restart, whatever slot it is in */
    char name[KN_DEVICE_MAX + 1];
    void *handle; /* NVML's */
};

struct devices; /* the library, loaded, and the devices that this process may use */

/* library: NULL for the driver's. visible: what CUDA_VISIBLE_DEVICES says; NULL when it is not set.
 * KN_ENOENT: no NVML, or no driver that answers it; KN_EDEVICE: it is there and fails. */
KN_MUST_USE int devices_open(const char *library, const char *visible, struct devices **out,
                             struct kn_err *err);
void devices_close(struct devices *d); /* NULL is fine */
int devices_count(const struct devices *d);
const struct device *devices_at(const struct devices *d, int i); /* borrowed from d */
/* By number, or by the beginning of a UUID that no other has ("GPU-8f0b"). KN_ENOENT names those there are.
 */
KN_MUST_USE int devices_find(const struct devices *d, const char *which, const struct device **out,
                             struct kn_err *err);
/* Reads what the device says of itself now: 0 for a reading that it does not give. May take milliseconds. */
void device_read(const struct devices *d, const struct device *device, struct kn_readings *out);
/* Leaves this one alone visible to CUDA, in this process and those that it starts; before CUDA is first used.
 */
KN_MUST_USE int device_bind(const char *uuid, struct kn_err *err);

/* A thread that reads a device every so often, so that who asks never waits. d and device are borrowed until
 * device_watch_stop(). */
struct device_watch;
KN_MUST_USE int device_watch_start(const struct devices *d, const struct device *device, int interval_ms,
                                   struct device_watch **out, struct kn_err *err);
void device_watch_get(struct device_watch *w, struct kn_readings *out); /* any thread */
void device_watch_stop(struct device_watch *w);                         /* NULL is fine */

#endif

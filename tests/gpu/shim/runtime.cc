/* CUDA's runtime API on the host: memory with guards, streams, events, graphs, errors.
 *
 * Work of a stream is kept in its queue and done when somebody waits for it (or asks whether it is done), so
 * that a result read too early, or a pinned buffer written again too early, shows. KX_SHIM_EAGER=1 in the
 * environment does it at once. All calls hold one lock. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <kx_shim_device.h>

#include "tests/gpu/shim/shim.h"

namespace {

const size_t page = 4096;
const size_t shared_most = 227 << 10;
const unsigned char guard_byte = 0xa5;

struct allocation {
    enum cudaMemoryType type;
    size_t bytes;
    unsigned char *map; /* page guard, guard bytes, memory, guard bytes, page guard; NULL: not ours */
    size_t map_bytes;
};

struct capture {
    cudaStream_t origin;
    enum cudaStreamCaptureMode mode;
    pthread_t thread;
    bool invalid;
    std::vector<std::function<void()>> nodes;
    std::vector<cudaStream_t> streams; /* joined by events */
};

} // namespace

struct CUevent_st {
    unsigned flags;
    bool recorded;
    long pending; /* records that are queued */
    struct timespec at;
    cudaStream_t stream;               /* of the last record */
    std::shared_ptr<capture> captured; /* recorded in a capture */
    long captured_at;                  /* the stream's work then */
};

struct CUstream_st {
    unsigned flags;
    int priority;
    bool dead;
    std::deque<std::function<void()>> queue;
    std::shared_ptr<capture> capturing;
    long work, joined; /* captured nodes of this stream, and how many of them the origin waits for */
};

struct CUgraph_st {
    std::vector<std::function<void()>> nodes;
};

struct CUgraphExec_st {
    std::vector<std::function<void()>> nodes;
};

namespace {

struct injection {
    std::string name;
    int n; /* 0: not set */
    cudaError_t error;
    bool sticky;
};

struct device {
    std::recursive_mutex lock;
    std::map<uintptr_t, allocation> memory;
    size_t total = (size_t)2 << 30, used = 0;
    int major = 9, minor = 0;
    cudaError_t sticky = cudaSuccess;
    injection inject = {};
    bool quiet = false, eager = getenv("KX_SHIM_EAGER") != nullptr;
    char fault[1024] = "";
    long launches = 0;
    CUstream_st null_stream = {};
    std::vector<cudaStream_t> streams;
    std::vector<std::shared_ptr<capture>> captures;
    std::map<std::string, std::pair<unsigned, size_t>>
        geometry; /* by symbol: threads, dynamic shared bytes */
};

device &the() {
    static device *d = new device; /* never destroyed: threads may outlive main */
    return *d;
}
thread_local cudaError_t last_error = cudaSuccess;
thread_local enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

cudaError_t note(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}

bool sticks(cudaError_t e) {
    return (e >= cudaErrorIllegalAddress && e <= cudaErrorLaunchFailure &&
            e != cudaErrorLaunchOutOfResources && e != cudaErrorHostMemoryAlreadyRegistered &&
            e != cudaErrorHostMemoryNotRegistered) ||
           e == cudaErrorECCUncorrectable || e == cudaErrorUnknown;
}

void set_fault(const char *text) {
    device &d = the();
    snprintf(d.fault, sizeof d.fault, "%s", text);
    if (!d.quiet) fprintf(stderr, "shim: %s\n", text);
}

cudaError_t enter(const char *name) {
    device &d = the();
    injection &i = d.inject;
    if (i.n > 0 && (i.name.empty() || i.name == name)) {
        if (i.n > 1) {
            i.n--;
        } else {
            if (i.sticky && sticks(i.error)) d.sticky = i.error;
            if (!i.sticky) i.n = 0;
            return i.error;
        }
    }
    return d.sticky;
}

#define ENTER(name)                                                                                          \
    std::lock_guard<std::recursive_mutex> hold(the().lock);                                                  \
    do {                                                                                                     \
        cudaError_t entered = enter(name);                                                                   \
        if (entered != cudaSuccess) return note(entered);                                                    \
    } while (0)

/* ---- memory */

std::map<uintptr_t, allocation>::iterator find(const void *p) {
    auto &m = the().memory;
    auto i = m.upper_bound((uintptr_t)p);
    if (i == m.begin()) return m.end();
    --i;
    return (uintptr_t)p < i->first + (i->second.bytes ? i->second.bytes : 1) ? i : m.end();
}

bool is_device(const void *p) {
    auto i = find(p);
    return i != the().memory.end() && i->second.type == cudaMemoryTypeDevice;
}

/* True if a copy may touch those bytes: on the device all of them within one allocation. */
bool in_bounds(const void *p, size_t bytes) {
    auto i = find(p);
    return i == the().memory.end() || (uintptr_t)p + bytes <= i->first + i->second.bytes;
}

void *allocate(size_t bytes, enum cudaMemoryType type) {
    size_t rounded = (bytes + 255) / 256 * 256, body = (rounded + page - 1) / page * page + page;
    unsigned char *map = (unsigned char *)mmap(nullptr, body + 2 * page, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    mprotect(map, page, PROT_NONE);
    mprotect(map + page + body, page, PROT_NONE);
    unsigned char *p = map + page + body - rounded;
    memset(map + page, guard_byte, (size_t)(p - (map + page)));
    memset(p, 0xff, bytes);
    memset(p + bytes, guard_byte, rounded - bytes);
    the().memory[(uintptr_t)p] = {type, bytes, map, body + 2 * page};
    return p;
}

bool guards_intact(uintptr_t at, const allocation &a) {
    const unsigned char *p = (const unsigned char *)at, *end = a.map + a.map_bytes - page;
    char text[256];
    for (const unsigned char *q = p + a.bytes; q < end; q++) {
        if (*q != guard_byte) {
            snprintf(text, sizeof text, "device memory of %zu bytes was written %zu bytes after its start",
                     a.bytes, (size_t)(q - p));
            set_fault(text);
            return false;
        }
    }
    for (const unsigned char *q = a.map + page; q < p; q++) {
        if (*q != guard_byte) {
            snprintf(text, sizeof text, "device memory of %zu bytes was written %zu bytes before its start",
                     a.bytes, (size_t)(p - q));
            set_fault(text);
            return false;
        }
    }
    return true;
}

cudaError_t release(void *p, enum cudaMemoryType type) {
    device &d = the();
    auto i = d.memory.find((uintptr_t)p);
    if (i == d.memory.end() || i->second.type != type || !i->second.map) return cudaErrorInvalidValue;
    bool intact = guards_intact(i->first, i->second);
    if (type == cudaMemoryTypeDevice) d.used -= i->second.bytes;
    munmap(i->second.map, i->second.map_bytes);
    d.memory.erase(i);
    if (!intact) d.sticky = cudaErrorIllegalAddress;
    return d.sticky;
}

/* ---- streams: queue and capture */

cudaStream_t real(cudaStream_t s) {
    return s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread ? &the().null_stream : s;
}

bool known(cudaStream_t s) {
    device &d = the();
    if (s == &d.null_stream) return true;
    for (cudaStream_t i : d.streams) {
        if (i == s) return !i->dead;
    }
    return false;
}

void drain(cudaStream_t s) {
    while (!s->queue.empty()) {
        std::function<void()> op = std::move(s->queue.front());
        s->queue.pop_front();
        op();
    }
}

void drain_all(void) {
    device &d = the();
    drain(&d.null_stream);
    for (size_t i = 0; i < d.streams.size(); i++) drain(d.streams[i]);
}

/* The legacy stream and those that block wait for one another. */
void before(cudaStream_t s) {
    device &d = the();
    if (s == &d.null_stream) {
        for (size_t i = 0; i < d.streams.size(); i++) {
            if (!(d.streams[i]->flags & cudaStreamNonBlocking)) drain(d.streams[i]);
        }
    } else if (!(s->flags & cudaStreamNonBlocking)) {
        drain(&d.null_stream);
    }
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> op) {
    device &d = the();
    cudaStream_t s = real(stream);
    if (!known(s)) return cudaErrorInvalidResourceHandle;
    if (s->capturing) {
        if (s->capturing->invalid) return cudaErrorStreamCaptureInvalidated;
        s->capturing->nodes.push_back(std::move(op));
        s->work++;
        return cudaSuccess;
    }
    if (s == &d.null_stream && !d.captures.empty()) {
        for (auto &c : d.captures) {
            if (!(c->origin->flags & cudaStreamNonBlocking)) {
                c->invalid = true;
                return cudaErrorStreamCaptureImplicit;
            }
        }
    }
    before(s);
    s->queue.push_back(std::move(op));
    if (d.eager) drain(s);
    return cudaSuccess;
}

/* Calls that a capture forbids (they wait, or allocate): whoever calls one spoils it. */
cudaError_t not_while_capturing(void) {
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    for (auto &c : the().captures) {
        bool mine = pthread_equal(c->thread, pthread_self());
        if ((c->mode == cudaStreamCaptureModeGlobal &&
             (mine || thread_mode == cudaStreamCaptureModeGlobal)) ||
            (c->mode == cudaStreamCaptureModeThreadLocal && mine)) {
            c->invalid = true;
            return cudaErrorStreamCaptureUnsupported;
        }
    }
    return cudaSuccess;
}

#define NOT_WHILE_CAPTURING()                                                                                \
    do {                                                                                                     \
        cudaError_t captured = not_while_capturing();                                                        \
        if (captured != cudaSuccess) return note(captured);                                                  \
    } while (0)

/* ---- launches */

struct kept_call {
    kx_shim_call *call;
    explicit kept_call(kx_shim_call *c) : call(c) {
    }
    ~kept_call() {
        call->destroy(call);
    }
    kept_call(const kept_call &) = delete;
    kept_call &operator=(const kept_call &) = delete;
};

void run_launch(const kx_shim_call *call, dim3 grid, dim3 block, size_t shared) {
    device &d = the();
    if (d.sticky != cudaSuccess) return;
    char text[900];
    for (int i = 0; i < call->pointers; i++) {
        auto a = find(call->pointer[i]);
        if (call->pointer[i] && a == d.memory.end()) {
            snprintf(text, sizeof text,
                     "kernel %s: argument %p (pointer %d) is no memory of the device, or it was freed",
                     kx_shim_name(call->kernel, false), call->pointer[i], i + 1);
            set_fault(text);
            d.sticky = cudaErrorIllegalAddress;
            return;
        }
    }
    text[0] = 0;
    cudaError_t e = kx_shim_run(call, grid, block, shared, text, sizeof text);
    d.launches++;
    if (e != cudaSuccess) {
        set_fault(text);
        d.sticky = e;
    }
}

void write_geometry(void) {
    const char *path = getenv("KX_SHIM_LAUNCHES");
    FILE *f = path ? fopen(path, "w") : nullptr;
    if (!f) return;
    for (auto &g : the().geometry)
        fprintf(f, "%s %u %zu\n", g.first.c_str(), g.second.first, g.second.second);
    fclose(f);
}

} // namespace

extern "C" {

cudaError_t kx_shim_launch(kx_shim_call *call, dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    std::shared_ptr<kept_call> kept(new kept_call(call));
    ENTER("kx_launch");
    device &d = the();
    unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || !threads || threads > 1024 || block.x > 1024 || block.y > 1024 ||
        block.z > 64 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        return note(cudaErrorInvalidConfiguration);
    }
    if (shared > shared_most || call->argument_bytes > 4096) return note(cudaErrorInvalidValue);
    if (getenv("KX_SHIM_LAUNCHES")) {
        if (d.geometry.empty()) atexit(write_geometry);
        auto &g = d.geometry[kx_shim_name(call->kernel, true)];
        if (g.first < threads) g.first = (unsigned)threads;
        if (g.second < shared) g.second = shared;
    }
    return note(enqueue(stream, [=] { run_launch(kept->call, grid, block, shared); }));
}

/* ---- errors */

cudaError_t cudaGetLastError(void) {
    cudaError_t e = the().sticky != cudaSuccess ? the().sticky : last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void) {
    return the().sticky != cudaSuccess ? the().sticky : last_error;
}

#define KX_SHIM_ERRORS(X)                                                                                    \
    X(cudaSuccess, "no error")                                                                               \
    X(cudaErrorInvalidValue, "invalid argument")                                                             \
    X(cudaErrorMemoryAllocation, "out of memory")                                                            \
    X(cudaErrorInitializationError, "initialization error")                                                  \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                                       \
    X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                                  \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")           \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")                                             \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                               \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                                      \
    X(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device")           \
    X(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                                      \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                             \
    X(cudaErrorNotReady, "device not ready")                                                                 \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                                   \
    X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                              \
    X(cudaErrorLaunchTimeout, "the launch timed out and was terminated")                                     \
    X(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped")   \
    X(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region")         \
    X(cudaErrorIllegalInstruction, "an illegal instruction was encountered")                                 \
    X(cudaErrorMisalignedAddress, "misaligned address")                                                      \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                                                  \
    X(cudaErrorNotPermitted, "operation not permitted")                                                      \
    X(cudaErrorNotSupported, "operation not supported")                                                      \
    X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")                 \
    X(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")          \
    X(cudaErrorStreamCaptureUnmatched, "capture was not initiated in this stream")                           \
    X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                                  \
    X(cudaErrorStreamCaptureImplicit, "dependency created on uncaptured work in another stream")             \
    X(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream")     \
    X(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture from another thread")  \
    X(cudaErrorUnknown, "unknown error")

const char *cudaGetErrorName(cudaError_t e) {
#define X(name, text)                                                                                        \
    if (e == name) return #name;
    KX_SHIM_ERRORS(X)
#undef X
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e) {
#define X(name, text)                                                                                        \
    if (e == name) return text;
    KX_SHIM_ERRORS(X)
#undef X
    return "unrecognized error code";
}

/* ---- the device */

cudaError_t cudaGetDeviceCount(int *count) {
    ENTER("cudaGetDeviceCount");
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    ENTER("cudaGetDevice");
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    ENTER("cudaSetDevice");
    return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaSetDeviceFlags(unsigned) {
    ENTER("cudaSetDeviceFlags");
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    ENTER("cudaGetDeviceProperties");
    if (device != 0) return note(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "kiln shim (a GPU emulated on the host)");
    memcpy(p->uuid.bytes, "kiln shim device", 16);
    p->totalGlobalMem = the().total;
    p->sharedMemPerBlock = 48 << 10;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 64 << 10;
    p->major = the().major;
    p->minor = the().minor;
    p->multiProcessorCount = 4;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->asyncEngineCount = 1;
    p->streamPrioritiesSupported = 1;
    p->memoryBusWidth = 64;
    p->l2CacheSize = 1 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->sharedMemPerBlockOptin = shared_most;
    p->maxBlocksPerMultiProcessor = 32;
    p->reservedSharedMemPerBlock = 1 << 10;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr a, int device) {
    ENTER("cudaDeviceGetAttribute");
    if (device != 0) return note(cudaErrorInvalidDevice);
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, 0);
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        break;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
        *value = p.regsPerMultiprocessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        break;
    case cudaDevAttrPciBusId:
    case cudaDevAttrPciDeviceId:
    case cudaDevAttrPciDomainId:
        *value = 0;
        break;
    default:
        return note(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) {
    ENTER("cudaDeviceGetPCIBusId");
    if (device != 0) return note(cudaErrorInvalidDevice);
    snprintf(id, (size_t)size, "0000:00:00.0");
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    ENTER("cudaDeviceGetStreamPriorityRange");
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    ENTER("cudaDeviceSynchronize");
    NOT_WHILE_CAPTURING();
    drain_all();
    return note(the().sticky);
}
cudaError_t cudaDeviceReset(void) {
    ENTER("cudaDeviceReset");
    drain_all();
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    ENTER("cudaDriverGetVersion");
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    ENTER("cudaRuntimeGetVersion");
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* ---- memory */

cudaError_t cudaMalloc(void **p, size_t bytes) {
    ENTER("cudaMalloc");
    NOT_WHILE_CAPTURING();
    device &d = the();
    if (!p) return note(cudaErrorInvalidValue);
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (bytes > d.total - d.used) return note(cudaErrorMemoryAllocation);
    *p = allocate(bytes, cudaMemoryTypeDevice);
    if (!*p) return note(cudaErrorMemoryAllocation);
    d.used += bytes;
    return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
    ENTER("cudaFree");
    if (!p) return cudaSuccess;
    NOT_WHILE_CAPTURING();
    drain_all();
    return note(release(p, cudaMemoryTypeDevice));
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
    ENTER("cudaHostAlloc");
    NOT_WHILE_CAPTURING();
    if (!p) return note(cudaErrorInvalidValue);
    *p = bytes ? allocate(bytes, cudaMemoryTypeHost) : nullptr;
    return note(bytes && !*p ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    return cudaHostAlloc(p, bytes, 0);
}
cudaError_t cudaFreeHost(void *p) {
    ENTER("cudaFreeHost");
    if (!p) return cudaSuccess;
    NOT_WHILE_CAPTURING();
    drain_all();
    return note(release(p, cudaMemoryTypeHost));
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    ENTER("cudaHostRegister");
    if (!p || !bytes) return note(cudaErrorInvalidValue);
    if (find(p) != the().memory.end()) return note(cudaErrorHostMemoryAlreadyRegistered);
    the().memory[(uintptr_t)p] = {cudaMemoryTypeHost, bytes, nullptr, 0};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    ENTER("cudaHostUnregister");
    drain_all();
    auto i = the().memory.find((uintptr_t)p);
    if (i == the().memory.end() || i->second.map) return note(cudaErrorHostMemoryNotRegistered);
    the().memory.erase(i);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    ENTER("cudaMemGetInfo");
    if (free_bytes) *free_bytes = the().total - the().used;
    if (total_bytes) *total_bytes = the().total;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    ENTER("cudaPointerGetAttributes");
    auto i = find(p);
    *a = {};
    if (i == the().memory.end()) return cudaSuccess;
    a->type = i->second.type;
    a->devicePointer = const_cast<void *>(p);
    if (a->type == cudaMemoryTypeHost) a->hostPointer = const_cast<void *>(p);
    return cudaSuccess;
}

static cudaError_t copy_legal(const void *to, size_t to_bytes, const void *from, size_t from_bytes,
                              enum cudaMemcpyKind kind) {
    bool to_device = is_device(to), from_device = is_device(from);
    if ((unsigned)kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    if (!to || !from || !in_bounds(to, to_bytes) || !in_bounds(from, from_bytes))
        return cudaErrorInvalidValue;
    if (kind == cudaMemcpyDefault) return cudaSuccess;
    bool want_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool want_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    return to_device == want_to && from_device == want_from ? cudaSuccess : cudaErrorInvalidValue;
}

static void copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                      size_t height) {
    if (the().sticky != cudaSuccess) return;
    for (size_t i = 0; i < height; i++) {
        memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    }
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    ENTER("cudaMemcpyAsync");
    if (width == 0 || height == 0) return cudaSuccess;
    if (height > 1 && (width > to_pitch || width > from_pitch)) return note(cudaErrorInvalidValue);
    cudaError_t e =
        copy_legal(to, to_pitch * (height - 1) + width, from, from_pitch * (height - 1) + width, kind);
    if (e != cudaSuccess) return note(e);
    cudaStream_t s = real(stream);
    bool pageable = find(from) == the().memory.end();
    if (pageable && known(s) && !s->capturing) { /* read now, as a driver does into buffers of its own */
        std::shared_ptr<std::vector<char>> staged(new std::vector<char>(width * height));
        copy_rows(staged->data(), width, from, from_pitch, width, height);
        return note(enqueue(stream, [=] { copy_rows(to, to_pitch, staged->data(), width, width, height); }));
    }
    e = enqueue(stream, [=] { copy_rows(to, to_pitch, from, from_pitch, width, height); });
    /* To pageable memory a driver waits. */
    if (e == cudaSuccess && find(to) == the().memory.end() && !s->capturing) {
        drain(s);
        e = the().sticky;
    }
    return note(e);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                         size_t height, enum cudaMemcpyKind kind) {
    ENTER("cudaMemcpy");
    NOT_WHILE_CAPTURING();
    cudaError_t e = cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
    drain(&the().null_stream);
    return note(e != cudaSuccess ? e : the().sticky);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    return cudaMemcpy2D(to, bytes, from, bytes, bytes, 1, kind);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    ENTER("cudaMemsetAsync");
    if (bytes == 0) return cudaSuccess;
    if (find(p) == the().memory.end() || !in_bounds(p, bytes)) return note(cudaErrorInvalidValue);
    return note(enqueue(stream, [=] {
        if (the().sticky == cudaSuccess) memset(p, value, bytes);
    }));
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    ENTER("cudaMemset");
    NOT_WHILE_CAPTURING();
    return cudaMemsetAsync(p, value, bytes, nullptr);
}

/* ---- streams */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
    ENTER("cudaStreamCreate");
    if (!s) return note(cudaErrorInvalidValue);
    CUstream_st *n = new CUstream_st();
    n->flags = flags;
    n->priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
    the().streams.push_back(n);
    *s = n;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *s) {
    return cudaStreamCreateWithPriority(s, 0, 0);
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) {
    ENTER("cudaStreamGetPriority");
    if (!known(real(s))) return note(cudaErrorInvalidResourceHandle);
    *priority = real(s)->priority;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    ENTER("cudaStreamDestroy");
    if (s == nullptr || !known(s)) return note(cudaErrorInvalidResourceHandle);
    drain(s);
    s->dead = true; /* an event may still speak of it: kept */
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    ENTER("cudaStreamSynchronize");
    cudaStream_t s = real(stream);
    if (!known(s)) return note(cudaErrorInvalidResourceHandle);
    if (s->capturing) {
        s->capturing->invalid = true;
        return note(cudaErrorStreamCaptureUnsupported);
    }
    before(s);
    drain(s);
    return note(the().sticky);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    ENTER("cudaStreamQuery");
    cudaStream_t s = real(stream);
    if (!known(s)) return note(cudaErrorInvalidResourceHandle);
    if (s->capturing) {
        s->capturing->invalid = true;
        return note(cudaErrorStreamCaptureUnsupported);
    }
    if (s->queue.empty()) return cudaSuccess;
    drain(s); /* done by the next time that somebody asks */
    return note(the().sticky != cudaSuccess ? the().sticky : cudaErrorNotReady);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *arg) {
    ENTER("cudaLaunchHostFunc");
    return note(enqueue(s, [=] {
        if (the().sticky == cudaSuccess) fn(arg);
    }));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned) {
    ENTER("cudaStreamWaitEvent");
    cudaStream_t s = real(stream);
    if (!known(s) || !e) return note(cudaErrorInvalidResourceHandle);
    if (e->captured) {
        if (e->captured->invalid) return note(cudaErrorStreamCaptureInvalidated);
        if (s->capturing && s->capturing != e->captured) return note(cudaErrorStreamCaptureMerge);
        if (!s->capturing) {
            if (s == &the().null_stream) return note(cudaErrorStreamCaptureImplicit);
            s->capturing = e->captured;
            s->work = s->joined = 0;
            e->captured->streams.push_back(s);
        }
        if (e->stream->joined < e->captured_at) e->stream->joined = e->captured_at;
        if (s != e->captured->origin && s != e->stream) s->work++; /* itself to be joined */
        return cudaSuccess;
    }
    if (s->capturing) {
        if (!e->recorded && !e->pending) return cudaSuccess;
        s->capturing->invalid = true;
        return note(cudaErrorStreamCaptureIsolation);
    }
    if (e->pending && e->stream != s) {
        cudaStream_t other = e->stream;
        return note(enqueue(stream, [=] {
            while (e->pending && !other->queue.empty()) {
                std::function<void()> op = std::move(other->queue.front());
                other->queue.pop_front();
                op();
            }
        }));
    }
    return cudaSuccess;
}

/* ---- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    ENTER("cudaEventCreate");
    if (!e) return note(cudaErrorInvalidValue);
    *e = new CUevent_st();
    (*e)->flags = flags;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) {
    return cudaEventCreateWithFlags(e, 0);
}
static void finish_event(cudaEvent_t e) {
    while (e->pending && !e->stream->queue.empty()) {
        std::function<void()> op = std::move(e->stream->queue.front());
        e->stream->queue.pop_front();
        op();
    }
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    ENTER("cudaEventDestroy");
    if (!e) return note(cudaErrorInvalidResourceHandle);
    drain_all(); /* queued work may speak of it */
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream) {
    ENTER("cudaEventRecord");
    cudaStream_t s = real(stream);
    if (!known(s) || !e) return note(cudaErrorInvalidResourceHandle);
    if (s->capturing) {
        if (s->capturing->invalid) return note(cudaErrorStreamCaptureInvalidated);
        e->captured = s->capturing;
        e->captured_at = s->work;
        e->stream = s;
        return cudaSuccess;
    }
    e->captured = nullptr;
    e->stream = s;
    e->pending++;
    return note(enqueue(stream, [=] {
        e->pending--;
        e->recorded = true;
        clock_gettime(CLOCK_MONOTONIC, &e->at);
    }));
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    ENTER("cudaEventQuery");
    if (!e) return note(cudaErrorInvalidResourceHandle);
    if (e->captured) return note(cudaErrorCapturedEvent);
    if (!e->pending) return cudaSuccess;
    finish_event(e);
    return note(the().sticky != cudaSuccess ? the().sticky : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    ENTER("cudaEventSynchronize");
    if (!e) return note(cudaErrorInvalidResourceHandle);
    if (e->captured) return note(cudaErrorCapturedEvent);
    finish_event(e);
    return note(the().sticky);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    ENTER("cudaEventElapsedTime");
    if (!start || !end || (start->flags | end->flags) & cudaEventDisableTiming) {
        return note(cudaErrorInvalidResourceHandle);
    }
    if (start->pending || end->pending) return note(cudaErrorNotReady);
    if (!start->recorded || !end->recorded) return note(cudaErrorInvalidResourceHandle);
    *ms = (float)((double)(end->at.tv_sec - start->at.tv_sec) * 1e3 +
                  (double)(end->at.tv_nsec - start->at.tv_nsec) * 1e-6);
    return cudaSuccess;
}

/* ---- graphs */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    ENTER("cudaStreamBeginCapture");
    if (real(s) == &the().null_stream) return note(cudaErrorStreamCaptureUnsupported);
    if (!known(s)) return note(cudaErrorInvalidResourceHandle);
    if (s->capturing) return note(cudaErrorIllegalState);
    std::shared_ptr<capture> c(new capture());
    c->origin = s;
    c->mode = mode;
    c->thread = pthread_self();
    s->capturing = c;
    the().captures.push_back(c);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    ENTER("cudaStreamEndCapture");
    *g = nullptr;
    if (!known(real(s)) || !s) return note(cudaErrorInvalidResourceHandle);
    std::shared_ptr<capture> c = s->capturing;
    if (!c || c->origin != s) return note(cudaErrorStreamCaptureUnmatched);
    if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->thread, pthread_self())) {
        return note(cudaErrorStreamCaptureWrongThread);
    }
    cudaError_t e = c->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    for (cudaStream_t i : c->streams) {
        if (e == cudaSuccess && i->joined < i->work) e = cudaErrorStreamCaptureUnjoined;
        i->capturing = nullptr;
    }
    s->capturing = nullptr;
    device &d = the();
    for (size_t i = 0; i < d.captures.size(); i++) {
        if (d.captures[i] == c) d.captures.erase(d.captures.begin() + (ptrdiff_t)i--);
    }
    if (e != cudaSuccess) return note(e);
    *g = new CUgraph_st();
    (*g)->nodes = c->nodes;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    ENTER("cudaStreamIsCapturing");
    if (!known(real(s))) return note(cudaErrorInvalidResourceHandle);
    *status = !real(s)->capturing           ? cudaStreamCaptureStatusNone
              : real(s)->capturing->invalid ? cudaStreamCaptureStatusInvalidated
                                            : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode old = thread_mode;
    thread_mode = *mode;
    *mode = old;
    return cudaSuccess;
}
cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned) {
    ENTER("cudaGraphCreate");
    *g = new CUgraph_st();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    ENTER("cudaGraphDestroy");
    if (!g) return note(cudaErrorInvalidValue);
    delete g;
    return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) {
    ENTER("cudaGraphGetNodes");
    if (!g || nodes) return note(cudaErrorInvalidValue); /* only their number is known here */
    *count = g->nodes.size();
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) {
    ENTER("cudaGraphInstantiate");
    if (!x || !g) return note(cudaErrorInvalidValue);
    *x = new CUgraphExec_st();
    (*x)->nodes = g->nodes;
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t x, cudaStream_t) {
    ENTER("cudaGraphUpload");
    return note(x ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) {
    ENTER("cudaGraphLaunch");
    if (!x) return note(cudaErrorInvalidValue);
    std::vector<std::function<void()>> nodes = x->nodes; /* may be destroyed before it has run */
    return note(enqueue(s, [nodes] {
        for (const auto &node : nodes) node();
    }));
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
    ENTER("cudaGraphExecDestroy");
    if (!x) return note(cudaErrorInvalidValue);
    delete x;
    return cudaSuccess;
}

/* ---- kernels */

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute a, int value) {
    ENTER("cudaFuncSetAttribute");
    if (!kernel) return note(cudaErrorInvalidDeviceFunction);
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize && (value < 0 || (size_t)value > shared_most)) {
        return note(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads,
                                                          size_t shared) {
    ENTER("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    if (!kernel || threads < 1 || threads > 1024) return note(cudaErrorInvalidValue);
    size_t by_shared = shared > shared_most ? 0 : ((size_t)228 << 10) / (shared + 1024);
    *blocks = (int)(by_shared < (size_t)(2048 / threads) ? by_shared : (size_t)(2048 / threads));
    return cudaSuccess;
}

/* ---- what tests ask for */

void kx_shim_reset(void) {
    std::lock_guard<std::recursive_mutex> hold(the().lock);
    device &d = the();
    d.sticky = cudaSuccess;
    d.inject = {};
    for (auto &c : d.captures) {
        for (cudaStream_t i : c->streams) i->capturing = nullptr;
        c->origin->capturing = nullptr;
    }
    d.captures.clear();
    d.quiet = false;
    d.fault[0] = 0;
    d.total = (size_t)2 << 30;
    d.major = 9;
    d.minor = 0;
    last_error = cudaSuccess;
}
void kx_shim_memory(size_t bytes) {
    std::lock_guard<std::recursive_mutex> hold(the().lock);
    the().total = bytes < the().used ? the().used : bytes;
}
void kx_shim_capability(int major, int minor) {
    std::lock_guard<std::recursive_mutex> hold(the().lock);
    the().major = major;
    the().minor = minor;
}
void kx_shim_fail(const char *name, int n, cudaError_t e, bool sticky) {
    std::lock_guard<std::recursive_mutex> hold(the().lock);
    the().inject = {name ? name : "", n, e, sticky};
}
const char *kx_shim_fault(void) {
    return the().fault;
}
void kx_shim_quiet(bool quiet) {
    the().quiet = quiet;
}
long kx_shim_launches(void) {
    std::lock_guard<std::recursive_mutex> hold(the().lock);
    return the().launches;
}
size_t kx_shim_alive(size_t *bytes) {
    std::lock_guard<std::recursive_mutex> hold(the().lock);
    size_t n = 0;
    for (auto &i : the().memory) n += i.second.map != nullptr;
    if (bytes) *bytes = the().used;
    return n;
}
bool kx_shim_guards_intact(void) {
    std::lock_guard<std::recursive_mutex> hold(the().lock);
    drain_all();
    for (auto &i : the().memory) {
        if (i.second.map && !guards_intact(i.first, i.second)) return false;
    }
    return true;
}
}

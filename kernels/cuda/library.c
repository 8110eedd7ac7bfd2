/* dlopen of cuBLASLt and cuDNN, and their entry points. See library.h. */
#include "kernels/cuda/library.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* An older one lacks what we ask of it, or was not looked at. */
#define LT_VERSION_MIN 120000
#define DNN_VERSION_MIN 90000

struct entry {
    const char *name;
    size_t at; /* of the pointer in the table */
};

#define LT(name)                                                                                             \
    { "cublasLt" #name, offsetof(struct kx_lt_abi, name) }
static const struct entry lt_entries[] = {
    LT(GetVersion),
    LT(GetStatusString),
    LT(Create),
    LT(Destroy),
    LT(Matmul),
    LT(MatmulDescCreate),
    LT(MatmulDescDestroy),
    LT(MatmulDescSetAttribute),
    LT(MatrixLayoutCreate),
    LT(MatrixLayoutDestroy),
    LT(MatrixLayoutSetAttribute),
    LT(MatmulPreferenceCreate),
    LT(MatmulPreferenceDestroy),
    LT(MatmulPreferenceSetAttribute),
    LT(MatmulAlgoGetHeuristic),
    LT(MatmulAlgoCheck),
    LT(MatmulAlgoConfigGetAttribute),
};
#undef LT

#define DNN(name)                                                                                            \
    { "cudnn" #name, offsetof(struct kx_dnn_abi, name) }
static const struct entry dnn_entries[] = {
    DNN(GetVersion),
    DNN(GetErrorString),
    DNN(GetLastErrorString),
    DNN(Create),
    DNN(Destroy),
    DNN(SetStream),
    DNN(BackendCreateDescriptor),
    DNN(BackendDestroyDescriptor),
    DNN(BackendFinalize),
    DNN(BackendSetAttribute),
    DNN(BackendGetAttribute),
    DNN(BackendExecute),
};
#undef DNN

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
_Static_assert(offsetof(struct kx_lt_abi, GetVersion) == 0 && offsetof(struct kx_dnn_abi, GetVersion) == 0,
               "use() asks the first for the version");
_Static_assert(COUNT(lt_entries) == sizeof(struct kx_lt_abi) / sizeof(void *), "an entry point is missing");
_Static_assert(COUNT(dnn_entries) == sizeof(struct kx_dnn_abi) / sizeof(void *), "an entry point is missing");

/* Fills a table of function pointers; all or nothing. The name of what is missing, or NULL. */
static const char *bind_all(void *module, const struct entry *entries, size_t n, void *table,
                            size_t table_bytes) {
    for (size_t i = 0; i < n; i++) {
        void *f = dlsym(module, entries[i].name);
        if (!f) {
            memset(table, 0, table_bytes);
            return entries[i].name;
        }
        memcpy((char *)table + entries[i].at, &f, sizeof(f));
    }
    return NULL;
}

/* The executable's folder, without a slash at its end; false where /proc cannot say. */
static bool executable_folder(char *out, size_t size) {
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    if (n <= 0 || (size_t)n >= size - 1) return false;
    out[n] = 0;
    char *slash = strrchr(out, '/');
    if (!slash) return false;
    *slash = 0;
    return true;
}

/* names: NULL-terminated, best first. only: $KILN_CUDA_LIBS, or NULL. Returns the module or NULL; where a
 * file in `only` cannot be opened, fault says why. */
static void *open_first(const char *const *names, const char *only, char *fault, size_t fault_size) {
    char folder[PATH_MAX], path[PATH_MAX + 64];
    if (only) {
        for (; *names; names++) {
            int n = snprintf(path, sizeof(path), "%s/%s", only, *names);
            if (n < 0 || (size_t)n >= sizeof(path) || access(path, F_OK) != 0) continue;
            void *m = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (!m) snprintf(fault, fault_size, "%s", dlerror());
            return m;
        }
        return NULL;
    }
    if (executable_folder(folder, sizeof(folder))) {
        static const char *const places[] = {"", "/../lib"};
        for (size_t p = 0; p < COUNT(places); p++)
            for (const char *const *name = names; *name; name++) {
                int n = snprintf(path, sizeof(path), "%s%s/%s", folder, places[p], *name);
                if (n < 0 || (size_t)n >= sizeof(path)) continue;
                void *m = dlopen(path, RTLD_NOW | RTLD_LOCAL);
                if (m) return m;
            }
    }
    for (; *names; names++) {
        void *m = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
        if (m) return m;
    }
    return NULL;
}

/* Binds a module that was opened (or not: NULL) and asks its version, which every table has first. Closes it
 * again, with the reason in fault, where it is of no use. Returns the version, 0 for none. */
static size_t use(void **module, const char *name, const struct entry *entries, size_t n, void *table,
                  size_t table_bytes, size_t version_min, char *fault, size_t fault_size) {
    if (!*module) return 0;
    const char *missing = bind_all(*module, entries, n, table, table_bytes);
    if (missing) {
        snprintf(fault, fault_size, "%s has no %s", name, missing);
    } else {
        size_t (*get_version)(void);
        memcpy(&get_version, table, sizeof(get_version));
        size_t version = get_version();
        if (version >= version_min) return version;
        snprintf(fault, fault_size, "%s is of version %zu, and %zu is wanted", name, version, version_min);
    }
    dlclose(*module);
    *module = NULL;
    memset(table, 0, table_bytes);
    return 0;
}

int kx_library_open(struct kx_library **out, struct kn_err *err) {
    static const char *const lt_names[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
    static const char *const dnn_names[] = {"libcudnn.so.9", NULL};
    const char *only = getenv("KILN_CUDA_LIBS");
    if (only && !*only) only = NULL;
#ifdef KX_SHIM
    if (!only) only = "/nowhere"; /* those of this machine know nothing of an emulated device */
#endif
    char fault[512] = "";

    struct kx_library *l = calloc(1, sizeof(*l));
    if (!l) return kn_err_set(err, KN_ENOMEM, "out of memory");

    l->lt_module = open_first(lt_names, only, fault, sizeof(fault));
    l->lt_version = use(&l->lt_module, "cuBLASLt", lt_entries, COUNT(lt_entries), &l->lt, sizeof(l->lt),
                        LT_VERSION_MIN, fault, sizeof(fault));
    l->dnn_module = open_first(dnn_names, only, fault, sizeof(fault));
    l->dnn_version = use(&l->dnn_module, "cuDNN", dnn_entries, COUNT(dnn_entries), &l->dnn, sizeof(l->dnn),
                         DNN_VERSION_MIN, fault, sizeof(fault));
    if (only && fault[0]) {
        kx_library_close(l);
        return kn_err_set(err, KN_ECONFIG, "KILN_CUDA_LIBS=%s: %s", only, fault);
    }
    *out = l;
    return 0;
}

void kx_library_close(struct kx_library *l) {
    if (!l) return;
    if (l->lt_module) dlclose(l->lt_module);
    if (l->dnn_module) dlclose(l->dnn_module);
    free(l);
}

static void version_text(size_t v, char *out, size_t size) {
    if (v)
        snprintf(out, size, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    else
        snprintf(out, size, "none");
}

void kx_library_facts(const struct kx_library *l, char *out, size_t size) {
    char lt[64], dnn[64];
    version_text(l->lt_version, lt, sizeof(lt));
    version_text(l->dnn_version, dnn, sizeof(dnn));
    snprintf(out, size, "cublaslt %s, cudnn %s", lt, dnn);
}

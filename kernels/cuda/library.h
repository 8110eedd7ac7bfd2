/* The libraries that may stand behind an op: cuBLASLt and cuDNN, found with dlopen when the program runs.
 *
 * Neither is needed, to build or to run: an absent one is a fact (version 0), not an error, and ops use our
 * own kernels then. The parts of their C interfaces that we use are declared in library_abi.h, so that no
 * header of theirs is needed either; tests/gpu/library_abi.c compares it with the headers where they are.
 *
 * Where they are looked for, first found: the folder $KILN_CUDA_LIBS (and then only there); beside the
 * executable; in the folder lib beside the executable's folder (an install tree that runs from anywhere);
 * where the dynamic loader looks. cuDNN opens its sub-libraries by itself, from where it was opened. */
#ifndef KILN_KERNELS_CUDA_LIBRARY_H
#define KILN_KERNELS_CUDA_LIBRARY_H

#include <stddef.h>

#include "base/err.h"
#include "kernels/cuda/library_abi.h"

struct kx_library {
    void *lt_module, *dnn_module; /* dlopen's; NULL: absent */
    size_t lt_version;            /* 130100 is 13.1.0; 0: absent */
    size_t dnn_version;           /* 91900 is 9.19.0; 0: absent */
    struct kx_lt_abi lt;          /* all NULL where absent */
    struct kx_dnn_abi dnn;
};

/* Looks for both. KN_ENOMEM; KN_ECONFIG when $KILN_CUDA_LIBS names a folder in which a library is there but
 * cannot be used (what was asked for must not be left out in silence). A library that is too old or lacks a
 * function counts as absent elsewhere. */
KN_MUST_USE int kx_library_open(struct kx_library **out, struct kn_err *err);
/* After everything that was made with it. NULL is fine. */
void kx_library_close(struct kx_library *l);
/* "cublaslt 13.1.0, cudnn none": part of a backend's facts (kx_ctx_facts), since either can move a bit. */
void kx_library_facts(const struct kx_library *l, char *out, size_t size);

#endif

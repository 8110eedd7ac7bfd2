/* The parts of the C interfaces of cuBLASLt (12 and 13) and cuDNN 9 that we use: types, values and entry
 * points by their documented names, declared here so that the engine builds on a machine without their
 * headers and so that a test can put libraries of its own in their place. Values never change within a
 * major version; tests/gpu/library_abi.c compares all of them with the vendors' headers where these are
 * installed.
 *
 * Sources: cublasLt.h of CUDA 13.0, cudnn_graph.h of cuDNN 9.19. */
#ifndef KILN_KERNELS_CUDA_LIBRARY_ABI_H
#define KILN_KERNELS_CUDA_LIBRARY_ABI_H

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

/* ---- cuBLASLt. All enums are int. */

enum { KX_LT_SUCCESS = 0, KX_LT_ALLOC_FAILED = 3, KX_LT_NOT_SUPPORTED = 15 };       /* cublasStatus_t */
enum { KX_LT_R_32F = 0, KX_LT_R_16F = 2, KX_LT_R_16BF = 14, KX_LT_R_8F_E4M3 = 28 }; /* cudaDataType_t */
enum { KX_LT_COMPUTE_32F = 68 };
enum { KX_LT_OP_N = 0, KX_LT_OP_T = 1 };
enum { KX_LT_EPILOGUE_DEFAULT = 1, KX_LT_EPILOGUE_BIAS = 4 };
enum { KX_LT_SCALE_SCALAR_32F = 0, KX_LT_SCALE_OUTER_VEC_32F = 3 };
enum { KX_LT_LAYOUT_COLS = 3 }; /* cublasLtMatrixLayoutAttribute_t; uint64_t */
enum {                          /* cublasLtMatmulDescAttributes_t */
       KX_LT_DESC_TRANSA = 3,
       KX_LT_DESC_TRANSB = 4,
       KX_LT_DESC_EPILOGUE = 7,
       KX_LT_DESC_BIAS_POINTER = 8,
       KX_LT_DESC_A_SCALE_POINTER = 17,
       KX_LT_DESC_B_SCALE_POINTER = 18,
       KX_LT_DESC_BIAS_DATA_TYPE = 26,
       KX_LT_DESC_A_SCALE_MODE = 31,
       KX_LT_DESC_B_SCALE_MODE = 32
};
enum { /* cublasLtMatmulPreferenceAttributes_t */
       KX_LT_PREF_WORKSPACE_BYTES = 1,
       KX_LT_PREF_REDUCTION_MASK = 3,
       KX_LT_PREF_ALIGNMENT_A = 5, /* … B 6, C 7, D 8 */
};
enum { KX_LT_REDUCTION_NONE = 0, KX_LT_REDUCTION_ANY = 7 };
enum { /* cublasLtMatmulAlgoConfigAttributes_t */
       KX_LT_ALGO_ID = 0,
       KX_LT_ALGO_TILE = 1,
       KX_LT_ALGO_SPLITK = 2,
       KX_LT_ALGO_REDUCTION = 3,
       KX_LT_ALGO_SWIZZLE = 4,
       KX_LT_ALGO_CUSTOM = 5,
       KX_LT_ALGO_STAGES = 6,
       KX_LT_ALGO_INNER = 7,  /* uint16_t */
       KX_LT_ALGO_CLUSTER = 8 /* uint16_t */
};

struct kx_lt_algo { /* cublasLtMatmulAlgo_t */
    uint64_t data[8];
};
struct kx_lt_result { /* cublasLtMatmulHeuristicResult_t */
    struct kx_lt_algo algo;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};
typedef void *kx_lt_ptr; /* cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, … */

struct kx_lt_abi {
    size_t (*GetVersion)(void);
    const char *(*GetStatusString)(int);
    int (*Create)(kx_lt_ptr *);
    int (*Destroy)(kx_lt_ptr);
    int (*Matmul)(kx_lt_ptr, kx_lt_ptr desc, const void *alpha, const void *a, kx_lt_ptr a_layout,
                  const void *b, kx_lt_ptr b_layout, const void *beta, const void *c, kx_lt_ptr c_layout,
                  void *d, kx_lt_ptr d_layout, const struct kx_lt_algo *, void *workspace, size_t,
                  cudaStream_t);
    int (*MatmulDescCreate)(kx_lt_ptr *, int compute, int scale);
    int (*MatmulDescDestroy)(kx_lt_ptr);
    int (*MatmulDescSetAttribute)(kx_lt_ptr, int, const void *, size_t);
    int (*MatrixLayoutCreate)(kx_lt_ptr *, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*MatrixLayoutDestroy)(kx_lt_ptr);
    int (*MatrixLayoutSetAttribute)(kx_lt_ptr, int, const void *, size_t);
    int (*MatmulPreferenceCreate)(kx_lt_ptr *);
    int (*MatmulPreferenceDestroy)(kx_lt_ptr);
    int (*MatmulPreferenceSetAttribute)(kx_lt_ptr, int, const void *, size_t);
    int (*MatmulAlgoGetHeuristic)(kx_lt_ptr, kx_lt_ptr desc, kx_lt_ptr a, kx_lt_ptr b, kx_lt_ptr c,
                                  kx_lt_ptr d, kx_lt_ptr preference, int wanted, struct kx_lt_result *,
                                  int *found);
    int (*MatmulAlgoCheck)(kx_lt_ptr, kx_lt_ptr desc, kx_lt_ptr a, kx_lt_ptr b, kx_lt_ptr c, kx_lt_ptr d,
                           const struct kx_lt_algo *, struct kx_lt_result *);
    int (*MatmulAlgoConfigGetAttribute)(const struct kx_lt_algo *, int, void *, size_t, size_t *written);
};

/* ---- cuDNN's backend (graph) interface */

enum { /* cudnnStatus_t; thousands: 2 bad parameter, 3 not supported, 4 internal, 5 execution failed */
       KX_DNN_SUCCESS = 0,
       KX_DNN_SUBLIBRARY_VERSION_MISMATCH = 1002,
       KX_DNN_SUBLIBRARY_LOADING_FAILED = 1008,
       KX_DNN_COMPILATION_FAILED = 4001,
       KX_DNN_HOST_ALLOCATION_FAILED = 4003,
       KX_DNN_DEVICE_ALLOCATION_FAILED = 4004
};
enum { /* cudnnDataType_t */ KX_DNN_FLOAT = 0, KX_DNN_HALF = 2, KX_DNN_BFLOAT16 = 9 };
enum { KX_DNN_CROSS_CORRELATION = 1 }; /* cudnnConvolutionMode_t */
enum { KX_DNN_POINTWISE_ADD = 0 };
enum { /* cudnnBackendHeurMode_t */ KX_DNN_HEUR_FALLBACK = 2, KX_DNN_HEUR_A = 3 };
enum { /* cudnnBackendDescriptorType_t */
       KX_DNN_POINTWISE = 0,
       KX_DNN_CONVOLUTION = 1,
       KX_DNN_ENGINE = 2,
       KX_DNN_ENGINECFG = 3,
       KX_DNN_ENGINEHEUR = 4,
       KX_DNN_EXECUTION_PLAN = 5,
       KX_DNN_KNOB_CHOICE = 7,
       KX_DNN_OPERATION_CONVOLUTION = 10,
       KX_DNN_OPERATION_POINTWISE = 13,
       KX_DNN_OPERATIONGRAPH = 15,
       KX_DNN_VARIANT_PACK = 16,
       KX_DNN_TENSOR = 17
};
enum { /* cudnnBackendAttributeType_t */
       KX_DNN_TYPE_HANDLE = 0,
       KX_DNN_TYPE_DATA_TYPE = 1,
       KX_DNN_TYPE_BOOLEAN = 2,
       KX_DNN_TYPE_INT64 = 3,
       KX_DNN_TYPE_FLOAT = 4,
       KX_DNN_TYPE_VOID_PTR = 6,
       KX_DNN_TYPE_CONVOLUTION_MODE = 7,
       KX_DNN_TYPE_HEUR_MODE = 8,
       KX_DNN_TYPE_KNOB_TYPE = 9,
       KX_DNN_TYPE_NUMERICAL_NOTE = 11,
       KX_DNN_TYPE_POINTWISE_MODE = 14,
       KX_DNN_TYPE_DESCRIPTOR = 15
};
enum { /* cudnnBackendAttributeName_t */
       KX_DNN_A_POINTWISE_MODE = 0,
       KX_DNN_A_POINTWISE_MATH_PREC = 1,
       KX_DNN_A_CONV_COMP_TYPE = 100,
       KX_DNN_A_CONV_MODE = 101,
       KX_DNN_A_CONV_DILATIONS = 102,
       KX_DNN_A_CONV_STRIDES = 103,
       KX_DNN_A_CONV_POST_PADDINGS = 104,
       KX_DNN_A_CONV_PRE_PADDINGS = 105,
       KX_DNN_A_CONV_SPATIAL_DIMS = 106,
       KX_DNN_A_HEUR_MODE = 200,
       KX_DNN_A_HEUR_GRAPH = 201,
       KX_DNN_A_HEUR_RESULTS = 202,
       KX_DNN_A_CFG_ENGINE = 300,
       KX_DNN_A_CFG_KNOB_CHOICES = 302,
       KX_DNN_A_PLAN_HANDLE = 400,
       KX_DNN_A_PLAN_CFG = 401,
       KX_DNN_A_PLAN_WORKSPACE = 402,
       KX_DNN_A_KNOB_TYPE = 600,
       KX_DNN_A_KNOB_VALUE = 601,
       KX_DNN_A_OPCONV_ALPHA = 700,
       KX_DNN_A_OPCONV_BETA = 701,
       KX_DNN_A_OPCONV_CONV = 702,
       KX_DNN_A_OPCONV_W = 703,
       KX_DNN_A_OPCONV_X = 704,
       KX_DNN_A_OPCONV_Y = 705,
       KX_DNN_A_OPPW_POINTWISE = 750,
       KX_DNN_A_OPPW_X = 751,
       KX_DNN_A_OPPW_B = 752,
       KX_DNN_A_OPPW_Y = 753,
       KX_DNN_A_GRAPH_HANDLE = 800,
       KX_DNN_A_GRAPH_OPS = 801,
       KX_DNN_A_TENSOR_ALIGNMENT = 900,
       KX_DNN_A_TENSOR_TYPE = 901,
       KX_DNN_A_TENSOR_DIMS = 902,
       KX_DNN_A_TENSOR_STRIDES = 903,
       KX_DNN_A_TENSOR_UID = 906,
       KX_DNN_A_TENSOR_VIRTUAL = 907,
       KX_DNN_A_PACK_UIDS = 1000,
       KX_DNN_A_PACK_POINTERS = 1001,
       KX_DNN_A_PACK_WORKSPACE = 1003,
       KX_DNN_A_ENGINE_GRAPH = 1300,
       KX_DNN_A_ENGINE_INDEX = 1301,
       KX_DNN_A_ENGINE_NOTES = 1303
};
enum { /* cudnnBackendNumericalNote_t */
       KX_DNN_NOTE_DOWN_CONVERT = 1,
       KX_DNN_NOTE_REDUCED_PRECISION = 2,
       KX_DNN_NOTE_FFT = 3,
       KX_DNN_NOTE_NONDETERMINISTIC = 4,
       KX_DNN_NOTE_WINOGRAD = 5,
       KX_DNN_NOTE_WINOGRAD_4 = 6,
       KX_DNN_NOTE_WINOGRAD_6 = 7,
       KX_DNN_NOTE_WINOGRAD_13 = 8,
       KX_DNN_NOTES_MAX = 64
};
enum { /* cudnnBackendKnobType_t: those that split a sum */
       KX_DNN_KNOB_SPLIT_K = 0,
       KX_DNN_KNOB_SPLIT_K_BUF = 12,
       KX_DNN_KNOB_CTA_SPLIT_K = 16,
       KX_DNN_KNOB_SPLIT_K_SLC = 17,
       KX_DNN_KNOB_SPLIT_RS = 20,
       KX_DNN_KNOB_STREAM_K = 38,
       KX_DNN_KNOB_SPLIT_P_SLC = 39,
       KX_DNN_KNOBS_MAX = 64
};

typedef void *kx_dnn_ptr; /* cudnnHandle_t, cudnnBackendDescriptor_t */

struct kx_dnn_abi {
    size_t (*GetVersion)(void);
    const char *(*GetErrorString)(int);
    void (*GetLastErrorString)(char *, size_t);
    int (*Create)(kx_dnn_ptr *);
    int (*Destroy)(kx_dnn_ptr);
    int (*SetStream)(kx_dnn_ptr, cudaStream_t);
    int (*BackendCreateDescriptor)(int type, kx_dnn_ptr *);
    int (*BackendDestroyDescriptor)(kx_dnn_ptr);
    int (*BackendFinalize)(kx_dnn_ptr);
    int (*BackendSetAttribute)(kx_dnn_ptr, int name, int type, int64_t count, const void *);
    int (*BackendGetAttribute)(kx_dnn_ptr, int name, int type, int64_t wanted, int64_t *count, void *);
    int (*BackendExecute)(kx_dnn_ptr, kx_dnn_ptr plan, kx_dnn_ptr pack);
};

#endif

/* A libcudart.so, CUDA's runtime API, on top of the driver API of the stand-in libcuda.

NVIDIA's libcudart talks to NVIDIA's libcuda by tables of functions that no document describes, one of which proves that
the driver is NVIDIA's. So the stand-in has a runtime of its own, for programs that link the shared runtime. RUNTIME is
its major version. Functions that it lacks are in runtime_missing.c. Codes of errors have the same numbers in both APIs.
As in stand_in.c, arguments are passed on as words. */

#include <ctype.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t word;
typedef struct { unsigned x, y, z; } dim3;
enum { INVALID_VALUE = 1, INVALID_SYMBOL = 13, INVALID_FUNCTION = 98, NO_DEVICE = 100, NOT_SUPPORTED = 801 };
enum { TO_HOST_FROM_HOST, TO_DEVICE, TO_HOST, IN_DEVICES, BY_ADDRESS }; /* cudaMemcpyKind */
#define API __attribute__((visibility("default")))

static __thread int last;       /* the thread's last error */
static __thread int device = 0; /* the thread's device */

static int done(int code) {
    if (code) last = code;
    return code;
}

/* ---- the driver API ---- */
#define DRIVER(name) extern int name(word, ...)
DRIVER(cuInit); DRIVER(cuDeviceGet); DRIVER(cuDeviceGetCount); DRIVER(cuDevicePrimaryCtxRetain); DRIVER(cuCtxSetCurrent);
DRIVER(cuCtxGetCurrent); DRIVER(cuCtxGetDevice); DRIVER(cuModuleLoadData); DRIVER(cuModuleGetFunction);
DRIVER(cuModuleGetGlobal_v2); DRIVER(cuLaunchKernel); DRIVER(cuLaunchCooperativeKernel); DRIVER(cuLaunchKernelEx);
DRIVER(cuMemcpy); DRIVER(cuMemcpyAsync); DRIVER(cuMemcpyHtoD_v2); DRIVER(cuMemcpyHtoDAsync_v2); DRIVER(cuMemcpyDtoH_v2);
DRIVER(cuMemcpyDtoHAsync_v2); DRIVER(cuMemcpyDtoD_v2); DRIVER(cuMemcpyDtoDAsync_v2); DRIVER(cuMemcpy2D_v2);
DRIVER(cuMemcpy2DAsync_v2); DRIVER(cuMemAllocPitch_v2); DRIVER(cuFuncGetAttribute); DRIVER(cuFuncSetAttribute);
DRIVER(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags); DRIVER(cuDeviceGetAttribute); DRIVER(cuDeviceGetName);
DRIVER(cuDeviceTotalMem_v2); DRIVER(cuDeviceGetUuid); DRIVER(cuGetErrorName); DRIVER(cuGetErrorString);
DRIVER(cuDriverGetVersion); DRIVER(cuCtxEnablePeerAccess); DRIVER(cuCtxDisablePeerAccess); DRIVER(cuEventCreate);
DRIVER(cuStreamCreate); DRIVER(cuGraphAddKernelNode_v2); DRIVER(cuGraphAddMemcpyNode);
DRIVER(cuPointerGetAttribute); DRIVER(cuDevicePrimaryCtxReset_v2); DRIVER(cuMemAllocManaged);
#define W(value) ((word)(uintptr_t)(value))

/* Start the driver API, and give the thread the context of its device if it has none. Returns a code. */
static int ready(void) {
    word context = 0;
    int code = cuInit(0);
    if (!code) code = cuCtxGetCurrent(W(&context));
    if (!code && !context) {
        code = cuDevicePrimaryCtxRetain(W(&context), (word)device);
        if (!code) code = cuCtxSetCurrent(context);
    }
    return code;
}

/* Functions that are functions of the driver API with the same arguments. */
#define PASS(name, driver)                                                              \
    DRIVER(driver);                                                                     \
    API int name(word a, word b, word c, word d, word e, word f) {                      \
        int code = ready();                                                             \
        return done(code ? code : driver(a, b, c, d, e, f));                            \
    }
PASS(cudaMalloc, cuMemAlloc_v2) PASS(cudaFree, cuMemFree_v2) PASS(cudaMallocHost, cuMemAllocHost_v2)
PASS(cudaHostAlloc, cuMemHostAlloc) PASS(cudaFreeHost, cuMemFreeHost) PASS(cudaMallocManaged, cuMemAllocManaged)
PASS(cudaMallocAsync, cuMemAllocAsync) PASS(cudaMallocFromPoolAsync, cuMemAllocFromPoolAsync)
PASS(cudaFreeAsync, cuMemFreeAsync) PASS(cudaHostRegister, cuMemHostRegister_v2)
PASS(cudaHostUnregister, cuMemHostUnregister) PASS(cudaHostGetDevicePointer, cuMemHostGetDevicePointer_v2)
PASS(cudaMemGetInfo, cuMemGetInfo_v2) PASS(cudaMemset, cuMemsetD8_v2) PASS(cudaMemsetAsync, cuMemsetD8Async)
PASS(cudaMemset2D, cuMemsetD2D8_v2) PASS(cudaMemset2DAsync, cuMemsetD2D8Async)
PASS(cudaDeviceGetAttribute, cuDeviceGetAttribute) PASS(cudaDeviceCanAccessPeer, cuDeviceCanAccessPeer)
PASS(cudaDeviceGetP2PAttribute, cuDeviceGetP2PAttribute) PASS(cudaDeviceGetPCIBusId, cuDeviceGetPCIBusId)
PASS(cudaDeviceGetStreamPriorityRange, cuCtxGetStreamPriorityRange) PASS(cudaDeviceSynchronize, cuCtxSynchronize)
PASS(cudaDeviceSetLimit, cuCtxSetLimit) PASS(cudaDeviceGetLimit, cuCtxGetLimit)
PASS(cudaDeviceSetCacheConfig, cuCtxSetCacheConfig) PASS(cudaDeviceGetCacheConfig, cuCtxGetCacheConfig)
PASS(cudaDeviceGetDefaultMemPool, cuDeviceGetDefaultMemPool) PASS(cudaDeviceGetMemPool, cuDeviceGetMemPool)
PASS(cudaDeviceSetMemPool, cuDeviceSetMemPool) PASS(cudaMemPoolCreate, cuMemPoolCreate)
PASS(cudaMemPoolDestroy, cuMemPoolDestroy) PASS(cudaMemPoolTrimTo, cuMemPoolTrimTo)
PASS(cudaMemPoolSetAttribute, cuMemPoolSetAttribute) PASS(cudaMemPoolGetAttribute, cuMemPoolGetAttribute)
PASS(cudaStreamCreateWithFlags, cuStreamCreate) PASS(cudaStreamCreateWithPriority, cuStreamCreateWithPriority)
PASS(cudaStreamDestroy, cuStreamDestroy_v2) PASS(cudaStreamSynchronize, cuStreamSynchronize)
PASS(cudaStreamQuery, cuStreamQuery) PASS(cudaStreamWaitEvent, cuStreamWaitEvent)
PASS(cudaStreamAddCallback, cuStreamAddCallback) PASS(cudaStreamGetFlags, cuStreamGetFlags)
PASS(cudaStreamGetPriority, cuStreamGetPriority) PASS(cudaStreamGetId, cuStreamGetId)
PASS(cudaStreamGetDevice, cuStreamGetDevice) PASS(cudaLaunchHostFunc, cuLaunchHostFunc)
PASS(cudaStreamBeginCapture, cuStreamBeginCapture_v2) PASS(cudaStreamEndCapture, cuStreamEndCapture)
PASS(cudaStreamIsCapturing, cuStreamIsCapturing)
PASS(cudaThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode)
PASS(cudaEventCreateWithFlags, cuEventCreate) PASS(cudaEventRecord, cuEventRecord)
PASS(cudaEventRecordWithFlags, cuEventRecordWithFlags) PASS(cudaEventSynchronize, cuEventSynchronize)
PASS(cudaEventQuery, cuEventQuery) PASS(cudaEventElapsedTime, cuEventElapsedTime)
PASS(cudaEventDestroy, cuEventDestroy_v2) PASS(cudaGraphCreate, cuGraphCreate) PASS(cudaGraphDestroy, cuGraphDestroy)
PASS(cudaGraphInstantiateWithFlags, cuGraphInstantiateWithFlags) PASS(cudaGraphLaunch, cuGraphLaunch)
PASS(cudaGraphExecDestroy, cuGraphExecDestroy) PASS(cudaGraphUpload, cuGraphUpload)
PASS(cudaGraphGetNodes, cuGraphGetNodes) PASS(cudaGraphAddEmptyNode, cuGraphAddEmptyNode)
PASS(cudaGraphAddHostNode, cuGraphAddHostNode) PASS(cudaGraphAddChildGraphNode, cuGraphAddChildGraphNode)
PASS(cudaGraphAddMemsetNode, cuGraphAddMemsetNode) PASS(cudaGraphAddDependencies, cuGraphAddDependencies)
PASS(cudaGraphNodeGetType, cuGraphNodeGetType) PASS(cudaGraphClone, cuGraphClone)
PASS(cudaGraphGetRootNodes, cuGraphGetRootNodes) PASS(cudaGraphDebugDotPrint, cuGraphDebugDotPrint) PASS(cudaProfilerStart, cuProfilerStart)
PASS(cudaProfilerStop, cuProfilerStop) PASS(cudaGraphInstantiate, cuGraphInstantiateWithFlags)

API int cudaStreamCreate(word stream) { return cudaStreamCreateWithFlags(stream, 0, 0, 0, 0, 0); }
API int cudaEventCreate(word event) { return cudaEventCreateWithFlags(event, 0, 0, 0, 0, 0); }

/* ---- devices ---- */
API int cudaGetDeviceCount(int *count) {
    int code = cuInit(0);
    return done(code ? code : cuDeviceGetCount(W(count)));
}

API int cudaSetDevice(int wanted) {
    int count = 0, code = cudaGetDeviceCount(&count);
    if (code) return code;
    if (wanted < 0 || wanted >= count) return done(101);
    device = wanted;
    word context = 0;
    code = cuDevicePrimaryCtxRetain(W(&context), (word)wanted);
    return done(code ? code : cuCtxSetCurrent(context));
}

API int cudaGetDevice(int *found) {
    if (!found) return done(INVALID_VALUE);
    int code = ready();
    return done(code ? code : cuCtxGetDevice(W(found)));
}

API int cudaDeviceReset(void) {
    int code = ready();
    return done(code ? code : cuDevicePrimaryCtxReset_v2((word)device));
}

API int cudaInitDevice(int wanted, unsigned device_flags, unsigned flags) { return cudaSetDevice(wanted); }
API int cudaSetDeviceFlags(unsigned flags) { return done(cuInit(0)); }
API int cudaDriverGetVersion(int *version) { return done(cuDriverGetVersion(W(version))); }

API int cudaRuntimeGetVersion(int *version) {
    if (!version) return done(INVALID_VALUE);
    *version = RUNTIME == 12 ? 12090 : 13000;
    return 0;
}

static int peer(int other, int (*call)(word, ...)) {
    word context = 0;
    int code = ready();
    if (!code) code = cuDevicePrimaryCtxRetain(W(&context), (word)other);
    return done(code ? code : call(context, (word)0));
}

API int cudaDeviceEnablePeerAccess(int other, unsigned flags) { return peer(other, cuCtxEnablePeerAccess); }
API int cudaDeviceDisablePeerAccess(int other) { return peer(other, cuCtxDisablePeerAccess); }

/* The fields of cudaDeviceProp that are attributes: where they are in versions 12 and 13, whether they have 8 bytes, and
the attribute's number. All other fields are 0. */
static const struct { short at[2], wide, attribute; } fields[] = {
    {{296, 296}, 1, 8},   {{304, 304}, 0, 12},  {{308, 308}, 0, 10},  {{312, 312}, 1, 11},  {{320, 320}, 0, 1},
    {{324, 324}, 0, 2},   {{328, 328}, 0, 3},   {{332, 332}, 0, 4},   {{336, 336}, 0, 5},   {{340, 340}, 0, 6},
    {{344, 344}, 0, 7},   {{352, 352}, 1, 9},   {{360, 360}, 0, 75},  {{364, 364}, 0, 76},  {{388, 384}, 0, 16},
    {{400, 392}, 0, 19},  {{576, 560}, 0, 31},  {{600, 584}, 0, 40},  {{604, 588}, 0, 41},  {{612, 592}, 0, 37},
    {{616, 596}, 0, 38},  {{624, 604}, 0, 39},  {{640, 624}, 1, 81},  {{648, 632}, 0, 82},  {{652, 636}, 0, 83},
    {{676, 656}, 0, 89},  {{688, 668}, 0, 95},  {{696, 672}, 1, 97},  {{712, 688}, 0, 106}, {{720, 696}, 1, 111},
};

API int cudaGetDeviceProperties(char *made, int of) {
    if (!made) return done(INVALID_VALUE);
    memset(made, 0, RUNTIME == 12 ? 1032 : 1008);
    int code = cuInit(0);
    if (!code) code = cuDeviceGetName(W(made), (word)256, (word)of);
    if (!code) code = cuDeviceGetUuid(W(made + 256), (word)of);
    if (!code) code = cuDeviceTotalMem_v2(W(made + 288), (word)of);
    for (unsigned i = 0; !code && i < sizeof fields / sizeof *fields; i++) {
        int value = 0;
        code = cuDeviceGetAttribute(W(&value), (word)fields[i].attribute, (word)of);
        char *at = made + fields[i].at[RUNTIME - 12];
        if (fields[i].wide) *(size_t *)at = (size_t)value;
        else *(int *)at = value;
    }
    return done(code);
}

API int cudaGetDeviceProperties_v2(char *made, int of) { return cudaGetDeviceProperties(made, of); }

/* ---- errors ---- */
API int cudaGetLastError(void) {
    int code = last;
    last = 0;
    return code;
}

API int cudaPeekAtLastError(void) { return last; }

API const char *cudaGetErrorString(int code) {
    const char *text = NULL;
    if (code == INVALID_FUNCTION) return "invalid device function";
    if (code == INVALID_SYMBOL) return "invalid device symbol";
    cuGetErrorString((word)code, W(&text));
    return text ? text : "unrecognized error code";
}

/* CUDA_ERROR_INVALID_VALUE is cudaErrorInvalidValue. */
API const char *cudaGetErrorName(int code) {
    static __thread char made[128];
    const char *name = NULL;
    if (code == INVALID_FUNCTION) return "cudaErrorInvalidDeviceFunction";
    if (code == INVALID_SYMBOL) return "cudaErrorInvalidSymbol";
    if (code == 2) return "cudaErrorMemoryAllocation";
    cuGetErrorName((word)code, W(&name));
    if (!name) return "unrecognized error code";
    char *to = made + sprintf(made, "cuda");
    int upper = 1;
    for (name += 4; *name && to < made + sizeof made - 1; name++) {
        if (*name != '_') *to++ = upper ? *name : (char)tolower(*name);
        upper = *name == '_';
    }
    *to = 0;
    return made;
}

/* ---- what the program's compiled code registers ---- */
typedef struct { void *image; word module; } binary;
typedef struct entry { const void *host; const char *name; binary *from; word function; struct entry *next; } entry;
static entry *kernels, *variables;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed[16];
static __thread int depth;

API void **__cudaRegisterFatBinary(void *image) {
    binary *made = calloc(1, sizeof *made);
    made->image = image;
    return (void **)made;
}

API void __cudaRegisterFatBinaryEnd(void **handle) {}
API void __cudaUnregisterFatBinary(void **handle) {}

static void note(entry **list, void **handle, const void *host, const char *name) {
    entry *made = calloc(1, sizeof *made);
    made->host = host, made->name = name, made->from = (binary *)handle;
    pthread_mutex_lock(&lock);
    made->next = *list, *list = made;
    pthread_mutex_unlock(&lock);
}

API void __cudaRegisterFunction(void **handle, const char *host, char *unused, const char *name, int limit, void *tid,
                                void *bid, void *block, void *grid, int *size) {
    note(&kernels, handle, host, name);
}

API void __cudaRegisterVar(void **handle, char *host, char *address, const char *name, int ext, size_t size, int constant,
                           int global) {
    note(&variables, handle, host, name);
}

/* Load the module of a fat binary at its first use. Returns a code. */
static int loaded(binary *from) {
    int code = ready();
    pthread_mutex_lock(&lock);
    if (!code && !from->module) code = cuModuleLoadData(W(&from->module), W(from->image));
    pthread_mutex_unlock(&lock);
    return code;
}

/* A managed variable's place is known once its module is loaded, which __cudaInitModule does before its first use. */
API void __cudaRegisterManagedVar(void **handle, void **host, char *address, const char *name, int ext, size_t size,
                                  int constant, int global) {
    note(&variables, handle, host, name);
    word place = 0;
    if (!loaded((binary *)handle) && !cuModuleGetGlobal_v2(W(&place), (word)0, ((binary *)handle)->module, W(name)))
        *host = (void *)(uintptr_t)place;
}

API char __cudaInitModule(void **handle) { return !loaded((binary *)handle); }

static entry *found_in(entry *list, const void *host) {
    while (list && list->host != host) list = list->next;
    return list;
}

/* The driver's kernel of a function that the program registered. Returns a code. */
static int kernel_of(const void *host, word *function) {
    entry *found = found_in(kernels, host);
    if (!found) return INVALID_FUNCTION;
    int code = loaded(found->from);
    if (!code && !found->function) code = cuModuleGetFunction(W(&found->function), found->from->module, W(found->name));
    *function = found->function;
    return code == 500 ? INVALID_FUNCTION : code;
}

static int symbol_of(const void *host, word *address, size_t *size) {
    entry *found = found_in(variables, host);
    if (!found) return INVALID_SYMBOL;
    int code = loaded(found->from);
    return code ? code : cuModuleGetGlobal_v2(W(address), W(size), found->from->module, W(found->name));
}

/* ---- launches ---- */
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    if (depth == 16) return 1;
    pushed[depth].grid = grid, pushed[depth].block = block, pushed[depth].shared = shared, pushed[depth].stream = stream;
    depth++;
    return 0;
}

API int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    if (!depth) return done(52);
    depth--;
    *grid = pushed[depth].grid, *block = pushed[depth].block, *shared = pushed[depth].shared;
    *(void **)stream = pushed[depth].stream;
    return 0;
}

static int launch(int (*how)(word, ...), word function, dim3 g, dim3 b, void **values, size_t shared, void *stream) {
    return how(function, (word)g.x, (word)g.y, (word)g.z, (word)b.x, (word)b.y, (word)b.z, (word)shared, W(stream),
               W(values), (word)0);
}

API int cudaLaunchKernel(const void *host, dim3 grid, dim3 block, void **values, size_t shared, void *stream) {
    word function = 0;
    int code = kernel_of(host, &function);
    return done(code ? code : launch(cuLaunchKernel, function, grid, block, values, shared, stream));
}

API int cudaLaunchCooperativeKernel(const void *host, dim3 grid, dim3 block, void **values, size_t shared, void *stream) {
    word function = 0;
    int code = kernel_of(host, &function);
    return done(code ? code : launch(cuLaunchCooperativeKernel, function, grid, block, values, shared, stream));
}

API int __cudaGetKernel(word *kernel, const void *host) { return done(kernel_of(host, kernel)); }
API int cudaGetKernel(word *kernel, const void *host) { return done(kernel_of(host, kernel)); }
API int cudaGetFuncBySymbol(word *kernel, const void *host) { return done(kernel_of(host, kernel)); }

API int __cudaLaunchKernel(word kernel, dim3 grid, dim3 block, void **values, size_t shared, void *stream) {
    int code = ready();
    return done(code ? code : launch(cuLaunchKernel, kernel, grid, block, values, shared, stream));
}

typedef struct { dim3 grid, block; size_t shared; void *stream, *attributes; unsigned count; } configuration;

API int cudaLaunchKernelExC(const configuration *asked, const void *host, void **values) {
    struct { dim3 grid, block; unsigned shared; void *stream, *attributes; unsigned count; } made;
    word function = 0;
    int code = kernel_of(host, &function);
    if (code) return done(code);
    made.grid = asked->grid, made.block = asked->block, made.shared = (unsigned)asked->shared;
    made.stream = asked->stream, made.attributes = asked->attributes, made.count = asked->count;
    return done(cuLaunchKernelEx(W(&made), function, W(values), (word)0));
}

API int cudaFuncSetAttribute(const void *host, int attribute, int value) {
    word function = 0;
    int code = kernel_of(host, &function);
    return done(code ? code : cuFuncSetAttribute(function, (word)attribute, (word)value));
}

API int cudaFuncSetCacheConfig(const void *host, int config) { return 0; }

API int cudaFuncGetAttributes(char *made, const void *host) {
    static const struct { short at, wide, attribute; } of[] = {
        {0, 1, 1}, {8, 1, 2}, {16, 1, 3}, {24, 0, 0}, {28, 0, 4}, {32, 0, 5}, {36, 0, 6}, {40, 0, 7}, {44, 0, 8}, {48, 0, 9},
    };
    word function = 0;
    int code = kernel_of(host, &function);
    if (!made) return done(INVALID_VALUE);
    memset(made, 0, 144);
    for (unsigned i = 0; !code && i < sizeof of / sizeof *of; i++) {
        int value = 0;
        code = cuFuncGetAttribute(W(&value), (word)of[i].attribute, function);
        if (of[i].wide) *(size_t *)(made + of[i].at) = (size_t)value;
        else *(int *)(made + of[i].at) = value;
    }
    return done(code);
}

API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *host, int threads, size_t shared,
                                                               unsigned flags) {
    word function = 0;
    int code = kernel_of(host, &function);
    if (code) return done(code);
    return done(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(W(count), function, (word)threads, (word)shared,
                                                                    (word)flags));
}

API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *host, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count, host, threads, shared, 0);
}

/* ---- copies ---- */
static int copy(word to, word from, size_t size, int kind, int queued, word stream) {
    int code = ready();
    if (code) return code;
    switch (kind) {
    case TO_DEVICE: return queued ? cuMemcpyHtoDAsync_v2(to, from, size, stream) : cuMemcpyHtoD_v2(to, from, size);
    case TO_HOST: return queued ? cuMemcpyDtoHAsync_v2(to, from, size, stream) : cuMemcpyDtoH_v2(to, from, size);
    case IN_DEVICES: return queued ? cuMemcpyDtoDAsync_v2(to, from, size, stream) : cuMemcpyDtoD_v2(to, from, size);
    case TO_HOST_FROM_HOST:
    case BY_ADDRESS: return queued ? cuMemcpyAsync(to, from, size, stream) : cuMemcpy(to, from, size);
    }
    return 21; /* cudaErrorInvalidMemcpyDirection */
}

API int cudaMemcpy(word to, word from, size_t size, int kind) { return done(copy(to, from, size, kind, 0, 0)); }

API int cudaMemcpyAsync(word to, word from, size_t size, int kind, word stream) {
    return done(copy(to, from, size, kind, 1, stream));
}

API int cudaMemcpyPeer(word to, int target, word from, int source, size_t size) {
    return done(copy(to, from, size, IN_DEVICES, 0, 0));
}

API int cudaMemcpyPeerAsync(word to, int target, word from, int source, size_t size, word stream) {
    return done(copy(to, from, size, IN_DEVICES, 1, stream));
}

static int copy_symbol(const void *host, word other, size_t size, size_t offset, int kind, int back, int queued, word stream) {
    word address = 0;
    size_t whole = 0;
    int code = symbol_of(host, &address, &whole);
    if (code) return done(code);
    if (offset + size > whole) return done(INVALID_VALUE);
    address += offset;
    return done(back ? copy(other, address, size, kind, queued, stream) : copy(address, other, size, kind, queued, stream));
}

API int cudaMemcpyToSymbol(const void *to, word from, size_t size, size_t offset, int kind) {
    return copy_symbol(to, from, size, offset, kind, 0, 0, 0);
}

API int cudaMemcpyFromSymbol(word to, const void *from, size_t size, size_t offset, int kind) {
    return copy_symbol(from, to, size, offset, kind, 1, 0, 0);
}

API int cudaMemcpyToSymbolAsync(const void *to, word from, size_t size, size_t offset, int kind, word stream) {
    return copy_symbol(to, from, size, offset, kind, 0, 1, stream);
}

API int cudaMemcpyFromSymbolAsync(word to, const void *from, size_t size, size_t offset, int kind, word stream) {
    return copy_symbol(from, to, size, offset, kind, 1, 1, stream);
}

API int cudaGetSymbolAddress(word *address, const void *host) {
    size_t size;
    return done(symbol_of(host, address, &size));
}

API int cudaGetSymbolSize(size_t *size, const void *host) {
    word address;
    return done(symbol_of(host, &address, size));
}

/* CUDA_MEMCPY2D; types of memory: 1 host, 2 device, 4 by address. */
typedef struct { size_t x, y; unsigned type; word host, device, array; size_t pitch; } side;

static int copy_2d(word to, size_t to_pitch, word from, size_t pitch, size_t width, size_t height, int kind, int queued,
                   word stream) {
    struct { side from, to; size_t width, height; } how;
    int code = ready();
    if (code) return done(code);
    memset(&how, 0, sizeof how);
    how.from.type = kind == TO_DEVICE ? 1 : kind == TO_HOST || kind == IN_DEVICES ? 2 : 4;
    how.to.type = kind == TO_HOST ? 1 : kind == TO_DEVICE || kind == IN_DEVICES ? 2 : 4;
    how.from.host = how.from.device = from, how.to.host = how.to.device = to;
    how.from.pitch = pitch, how.to.pitch = to_pitch, how.width = width, how.height = height;
    return done(queued ? cuMemcpy2DAsync_v2(W(&how), stream) : cuMemcpy2D_v2(W(&how)));
}

API int cudaMemcpy2D(word to, size_t to_pitch, word from, size_t pitch, size_t width, size_t height, int kind) {
    return copy_2d(to, to_pitch, from, pitch, width, height, kind, 0, 0);
}

API int cudaMemcpy2DAsync(word to, size_t to_pitch, word from, size_t pitch, size_t width, size_t height, int kind,
                          word stream) {
    return copy_2d(to, to_pitch, from, pitch, width, height, kind, 1, stream);
}

API int cudaMallocPitch(word pointer, word pitch, size_t width, size_t height) {
    int code = ready();
    return done(code ? code : cuMemAllocPitch_v2(pointer, pitch, (word)width, (word)height, (word)4));
}

API int cudaPointerGetAttributes(char *made, word pointer) {
    int type = 0, on = 0, code = ready();
    if (code || !made) return done(code ? code : INVALID_VALUE);
    memset(made, 0, RUNTIME == 12 ? 24 : 88);
    if (!cuPointerGetAttribute(W(&type), (word)2, pointer)) {
        cuPointerGetAttribute(W(&on), (word)9, pointer);
        cuPointerGetAttribute(W(made + 8), (word)3, pointer);
        if (type == 1) cuPointerGetAttribute(W(made + 16), (word)4, pointer);
    } else *(word *)(made + 16) = pointer;
    *(int *)made = type, *(int *)(made + 4) = type ? on : -2;
    return 0;
}

/* ---- nodes of explicit graphs ---- */
typedef struct { const void *function; dim3 grid, block; unsigned shared; void **values, **extra; } kernel_node;

API int cudaGraphAddKernelNode(word node, word graph, word needs, size_t count, const kernel_node *asked) {
    struct { word function; dim3 grid, block; unsigned shared; void **values, **extra; word kernel, context; } made;
    if (!asked) return done(INVALID_VALUE);
    memset(&made, 0, sizeof made);
    int code = kernel_of(asked->function, &made.function);
    made.grid = asked->grid, made.block = asked->block, made.shared = asked->shared;
    made.values = asked->values, made.extra = asked->extra;
    return done(code ? code : cuGraphAddKernelNode_v2(node, graph, needs, (word)count, W(&made)));
}

typedef struct { size_t x, y, z, lod; unsigned type; word host, device, array, reserved; size_t pitch, height; } side_3d;
typedef struct { word array; size_t x, y, z; word pointer; size_t pitch, width, height; } place_3d; /* of cudaMemcpy3DParms */
typedef struct { place_3d from, to; size_t width, height, depth; int kind; } copy_node;

static void fill_side(side_3d *made, const place_3d *asked, int host, int by_address) {
    made->x = asked->x, made->y = asked->y, made->z = asked->z;
    made->type = asked->array ? 3 : by_address ? 4 : host ? 1 : 2;
    made->host = made->device = asked->pointer, made->array = asked->array;
    made->pitch = asked->pitch, made->height = asked->height;
}

API int cudaGraphAddMemcpyNode(word node, word graph, word needs, size_t count, const copy_node *asked) {
    struct { side_3d from, to; size_t width, height, depth; } made;
    if (!asked) return done(INVALID_VALUE);
    memset(&made, 0, sizeof made);
    int kind = asked->kind, code = ready();
    fill_side(&made.from, &asked->from, kind == TO_DEVICE, kind == BY_ADDRESS);
    fill_side(&made.to, &asked->to, kind == TO_HOST, kind == BY_ADDRESS);
    made.width = asked->width, made.height = asked->height, made.depth = asked->depth;
    return done(code ? code : cuGraphAddMemcpyNode(node, graph, needs, (word)count, W(&made), (word)0));
}

API int cudaGraphAddMemcpyNode1D(word node, word graph, word needs, size_t count, word to, word from, size_t size, int kind) {
    copy_node how;
    memset(&how, 0, sizeof how);
    how.from.pointer = from, how.to.pointer = to, how.from.pitch = how.to.pitch = size;
    how.width = size, how.height = how.depth = 1, how.kind = kind;
    return cudaGraphAddMemcpyNode(node, graph, needs, count, &how);
}

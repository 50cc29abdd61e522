/* A libnvrtc.so that passes all calls on to NVRTC, and lets it write line information, which reports need. REAL is the
name of the variable with the path of NVRTC's own library. */

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t word;
typedef word (*function)(word, word, word, word, word, word, word, word);
enum { INTERNAL_ERROR = 11 };
#define API __attribute__((visibility("default")))

/* A function of NVRTC, or NULL. */
static function found(const char *name) {
    static void *library;
    if (!library) {
        const char *path = getenv(REAL);
        library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
        if (!library) {
            fprintf(stderr, "ptxsim: cannot load NVRTC: %s\n", path ? dlerror() : REAL " is not set");
            return NULL;
        }
    }
    return (function)dlsym(library, name);
}

#define PASS(name)                                                              \
    API word name(word a, word b, word c, word d, word e, word f, word g, word h) { \
        function called = found(#name);                                         \
        return called ? called(a, b, c, d, e, f, g, h) : INTERNAL_ERROR;         \
    }
PASS(nvrtcVersion) PASS(nvrtcGetNumSupportedArchs) PASS(nvrtcGetSupportedArchs)
PASS(nvrtcCreateProgram) PASS(nvrtcDestroyProgram) PASS(nvrtcGetPTXSize) PASS(nvrtcGetPTX) PASS(nvrtcGetCUBINSize)
PASS(nvrtcGetCUBIN) PASS(nvrtcGetNVVMSize) PASS(nvrtcGetNVVM) PASS(nvrtcGetLTOIRSize) PASS(nvrtcGetLTOIR)
PASS(nvrtcGetOptiXIRSize) PASS(nvrtcGetOptiXIR) PASS(nvrtcGetProgramLogSize) PASS(nvrtcGetProgramLog)
PASS(nvrtcAddNameExpression) PASS(nvrtcGetLoweredName) PASS(nvrtcGetPCHHeapSize) PASS(nvrtcSetPCHHeapSize)
PASS(nvrtcGetPCHCreateStatus) PASS(nvrtcGetPCHHeapSizeRequired) PASS(nvrtcSetFlowCallback)
PASS(nvrtcGetBundledHeadersInfo) PASS(nvrtcInstallBundledHeaders) PASS(nvrtcRemoveBundledHeaders)
PASS(nvrtcGetTileIR) PASS(nvrtcGetTileIRSize)

API const char *nvrtcGetErrorString(word code) {
    function called = found("nvrtcGetErrorString");
    return called ? (const char *)(uintptr_t)called(code, 0, 0, 0, 0, 0, 0, 0) : "NVRTC cannot be loaded";
}

API word nvrtcCompileProgram(word program, int count, const char **options) {
    static const char *const given[] = {"--generate-line-info", "-lineinfo", "--device-debug", "-G"};
    function called = found("nvrtcCompileProgram");
    if (!called) return INTERNAL_ERROR;
    int more = 1;
    for (int i = 0; i < count; i++)
        for (unsigned k = 0; k < sizeof given / sizeof *given; k++)
            if (!strcmp(options[i], given[k])) more = 0;
    const char **all = calloc((size_t)count + 1, sizeof *all);
    if (count) memcpy(all, options, (size_t)count * sizeof *all);
    all[count] = given[0];
    word result = called(program, (word)(count + more), (word)(uintptr_t)all, 0, 0, 0, 0, 0);
    free(all);
    return result;
}

/* The functions of CUDA's runtime that runtime.c lacks, each of which says so once. MISSING is a list X(name) of all that
NVIDIA's runtimes export; runtime.c's definitions are the stronger ones. */

#include <stdio.h>

#define X(name)                                                                                                          \
    __attribute__((weak, visibility("default"))) int name(void) {                                                        \
        static int said;                                                                                                 \
        if (!said)                                                                                                       \
            fprintf(stderr, "ptxsim: the program calls %s, which the stand-in libcudart lacks, and gets"                  \
                            " cudaErrorNotSupported: see docs/ptxsim-run.md for what there is\n", #name);                 \
        said = 1;                                                                                                        \
        return 801;                                                                                                      \
    }
MISSING

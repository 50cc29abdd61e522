/* A library of NVIDIA's, such as cuBLAS, for programs that link it and can do without it. Each of its functions says
once that the library is not there. LIBRARY is its name in words, CODE what its functions return, and FUNCTIONS a list
X(name) of those that programs link. */

#include <stdio.h>

#define X(name)                                                                                                          \
    __attribute__((visibility("default"))) int name(void) {                                                              \
        static int said;                                                                                                 \
        if (!said)                                                                                                       \
            fprintf(stderr, "ptxsim: the program calls %s, and there is no " LIBRARY ", whose machine code ptxsim could"  \
                            " not run: see docs/ptxsim-run.md for what there is\n", #name);                              \
        said = 1;                                                                                                        \
        return CODE;                                                                                                     \
    }
FUNCTIONS

/* A libcuda.so.1 whose functions are a table of pointers, which ptxsim.libcuda fills with its own functions.

The first call starts ptxsim: in the Python interpreter of this process, or in one that this library loads if the
process has none. FUNCTIONS is a list X(name) of all exported functions, which build.py makes. Each passes on twelve
words, as many as the longest function has: in the calling conventions of Linux a narrower argument takes a word too,
and words that the caller has not passed are read and not used. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NOT_INITIALIZED = 3, DEINITIALIZED = 4, SYSTEM_NOT_READY = 802, NOT_SUPPORTED = 801 };
enum { NEW, STARTING, READY, FAILED, ENDED };
enum {
#define X(name) AT_##name,
    FUNCTIONS
#undef X
        COUNT
};
typedef uint64_t word;
typedef int (*function)(word, word, word, word, word, word, word, word, word, word, word, word);

static const char *const names[COUNT] = {
#define X(name) #name,
    FUNCTIONS
#undef X
};

static struct {
    volatile int state;
    function made[COUNT]; /* ptxsim's functions; 0 where it has none */
    function own[COUNT];  /* the exported ones, for cuGetProcAddress */
    unsigned char said[COUNT];
} table;
static pid_t owner;
static pthread_t starter;
static word threads; /* how many threads have asked for their number */
static __thread word number;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*is_initialized)(void);
static int (*gil_ensure)(void);
static void (*gil_release)(int);
static void *(*save_thread)(void);
static void (*restore_thread)(void *);
static int (*run_text)(const char *, void *);

/* Find Python's functions in this process, or load a shared Python and start it. Returns whether it worked. */
static int find_python(void) {
    void *where = RTLD_DEFAULT;
    const char *library = getenv("PTXSIM_LIBPYTHON"), *home = getenv("PTXSIM_PYTHONHOME");
    is_initialized = (int (*)(void))dlsym(where, "Py_IsInitialized");
    int fresh = !is_initialized;
    if (fresh) {
        if (!library || !*library) {
            fprintf(stderr, "ptxsim: a program without Python needs a shared libpython, which this Python lacks: use one"
                            " that was built with --enable-shared\n");
            return 0;
        }
        where = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
        if (!where) {
            fprintf(stderr, "ptxsim: cannot load %s: %s\n", library, dlerror());
            return 0;
        }
        is_initialized = (int (*)(void))dlsym(where, "Py_IsInitialized");
    }
    gil_ensure = (int (*)(void))dlsym(where, "PyGILState_Ensure");
    gil_release = (void (*)(int))dlsym(where, "PyGILState_Release");
    save_thread = (void *(*)(void))dlsym(where, "PyEval_SaveThread");
    restore_thread = (void (*)(void *))dlsym(where, "PyEval_RestoreThread");
    run_text = (int (*)(const char *, void *))dlsym(where, "PyRun_SimpleStringFlags");
    void (*start)(int) = (void (*)(int))dlsym(where, "Py_InitializeEx");
    if (!is_initialized || !gil_ensure || !gil_release || !save_thread || !restore_thread || !run_text || !start) {
        fprintf(stderr, "ptxsim: this process has a Python without the functions that ptxsim needs\n");
        return 0;
    }
    if (!is_initialized()) {
        char *old = getenv("PYTHONHOME");
        old = old ? strdup(old) : NULL;
        if (home && *home) setenv("PYTHONHOME", home, 1);
        start(0); /* without Python's handlers of signals: those of the program stay */
        if (old) setenv("PYTHONHOME", old, 1);
        else unsetenv("PYTHONHOME");
        free(old);
        save_thread();
    }
    return 1;
}

static const char *const START =
    "def _ptxsim_start():\n"
    "    import os, sys\n"
    "    for place in os.environ['PTXSIM_PATH'].split(os.pathsep):\n"
    "        if place not in sys.path: sys.path.append(place)\n"
    "    from ptxsim.libcuda import session\n"
    "    session.start(%llu, %llu, %llu, %llu)\n"
    "try:\n"
    "    _ptxsim_start()\n"
    "finally:\n"
    "    del _ptxsim_start\n";

/* Called at the program's end: run what is queued, then answer nothing more. */
static void end(void) {
    if (table.state != READY || getpid() != owner || !is_initialized()) return;
    int held = gil_ensure();
    run_text("from ptxsim.libcuda import session as _ptxsim_session; _ptxsim_session.end(); del _ptxsim_session", NULL);
    gil_release(held);
    table.state = ENDED;
}

/* The number of the calling thread, from 1 on. Python forgets what it knows of a thread of C between two calls. */
static word thread_number(void) {
    if (!number) number = __sync_add_and_fetch(&threads, 1);
    return number;
}

static int start(void) {
    if (!getenv("PTXSIM_PATH")) {
        fprintf(stderr, "ptxsim: this libcuda runs programs that `ptxsim run` starts: ptxsim run PROGRAM\n");
        return FAILED;
    }
    pthread_mutex_lock(&lock);
    int found = is_initialized || find_python();
    pthread_mutex_unlock(&lock);
    if (!found) return FAILED;
    int held = gil_ensure();
    if (table.state == NEW) {
        char text[1024];
        table.state = STARTING;
        owner = getpid();
        starter = pthread_self();
        snprintf(text, sizeof text, START, (unsigned long long)(uintptr_t)&table.state,
                 (unsigned long long)(uintptr_t)table.made, (unsigned long long)(uintptr_t)table.own,
                 (unsigned long long)(uintptr_t)thread_number);
        int failed = run_text(text, NULL);
        if (failed)
            fprintf(stderr, "ptxsim: the stand-in libcuda could not start ptxsim (see above). Run the program with the"
                            " version of Python that ptxsim is installed for\n");
        else atexit(end);
        table.state = failed ? FAILED : READY;
    }
    while (table.state == STARTING && !pthread_equal(starter, pthread_self())) { /* another thread starts ptxsim and needs Python's lock */
        void *mine = save_thread();
        usleep(1000);
        restore_thread(mine);
    }
    gil_release(held);
    return table.state;
}

/* Whether a function gives something back. Libraries such as CuPy do that as Python ends, after ptxsim's end. */
static int releases(const char *name) { return strstr(name, "Destroy") || strstr(name, "Free") || strstr(name, "Unload"); }

/* The function to call, or NULL and in *result what to return. */
static function ready(int at, int *result) {
    int state = table.state;
    if (state == STARTING || state == NEW) state = start();
    if (state != READY) {
        *result = state == ENDED ? releases(names[at]) ? 0 : DEINITIALIZED : state == STARTING ? NOT_INITIALIZED : SYSTEM_NOT_READY;
        return NULL;
    }
    if (getpid() != owner) { /* CUDA does not work in a process that was forked later either */
        *result = NOT_INITIALIZED;
        return NULL;
    }
    if (!table.made[at]) {
        *result = NOT_SUPPORTED;
        if (!table.said[at]) {
            table.said[at] = 1;
            fprintf(stderr, "ptxsim: the program calls %s, which the stand-in libcuda lacks, and gets"
                            " CUDA_ERROR_NOT_SUPPORTED: see docs/ptxsim-run.md for what there is\n", names[at]);
        }
        return NULL;
    }
    return table.made[at];
}

#define X(name)                                                                                                     \
    __attribute__((visibility("default"))) int name(word a, word b, word c, word d, word e, word f, word g, word h, \
                                                    word i, word j, word k, word l) {                               \
        int result = 0;                                                                                             \
        function called = ready(AT_##name, &result);                                                                \
        return called ? called(a, b, c, d, e, f, g, h, i, j, k, l) : result;                                        \
    }
FUNCTIONS
#undef X

__attribute__((constructor)) static void fill(void) {
#define X(name) table.own[AT_##name] = name;
    FUNCTIONS
#undef X
}

"""The tables of the compiled interpreter, and the fields of their rows.

Compiled functions reach the whole state from one address, that of the table `x`, so that they take only a few integers.
`x` holds int64: numbers, and the addresses of the other tables. core.py owns the arrays at these addresses.
"""

from __future__ import annotations

# ---- x: the machine ----
(
    CODE, OPERANDS, REGS, WARPS, THREADS, BLOCKS, LAUNCHES, KNOWN, CLOCKS, CLOCKS_TOP, CLOCKS_CAP, COUNTS, SCRATCH,
    READY, READY_COUNT, RNG, STEP, CHECK, STRICT, PROGRESS, MEMORY, MEMORY_TOP, INIT, PAGES, ALLOCS, SHADOW, HISTORY,
    SYNC, SYNC_CAP, SYNC_USED, REPORTS, REPORTS_COUNT, SEEN, PRINTS, PRINTS_COUNT, PRINTS_CAP, RUN_FLOOR, SEQUENCE,
    SC_SYSTEM, LAUNCH_COUNT, WARP_SLOTS, BLOCK_SLOTS, DEVICES, STOP, REGISTERS_PER_WARP, LOCAL_BYTES, LOCAL,
    SHARED_MEMORY, SHARED_INIT, SHARED_SHADOW, STACK_BYTES, STACKS, DEPTH, SAVE_ROWS, SUSPECT, SPINNING, WEAK_MEMORY,
    MAX_CLOCKS, DEVICE_COUNT, BURST, PATIENCE, DEAD, BARRIERS, COPIES, START_TIME, FUNCTIONS, AGENT, PENDING,
    PENDING_COUNT, MBARRIERS, FLIGHT, TIMED_AT, TIMES, CLOCK_SPACE, PARAMETERS, TENSOR_MEMORY, STREAMS, OPEN, HELD,
    CHOSEN, CLOCK_READ, SKIPPED, SKIPS, SKIPPED_AT, LACKS, HINTED, CLUSTERS, CLUSTERED, SLOW, SLOW_UNTIL, TURNS,
    TURNS_COUNT, TURNS_CAP, PLAN, PLAN_COUNT, PLAN_AT, TEXTURES, TEXTURE_COUNT, ASKED_VC, ASKED_BLOCK, ANSWER,
) = range(101)  # fmt: skip
X_FIELDS = 101  # from this index on x has the addresses of the compiled units (units.py)
UNITS = 96

# ---- a turn: the slot of a warp, how many instructions it ran in succession, its block's number, its next instruction
(U_SLOT, U_COUNT, U_GID, U_PC) = range(4)
U_FIELDS = 4

# ---- a warp ----
# ARRIVED: its lanes that have arrived at the cluster's barrier in the present phase. PASSED: its lanes that arrived in
# a phase that has ended, and have not waited yet. STORED: when it last waited for its stores to tensor memory. BEFORE:
# when it last ran tcgen05.fence::before_thread_sync. SLOT: the number of its slot. THREADS: the address of its first
# thread's table. SLOT and THREADS never change. The start of a block clears the fields before SLOT
(W_LIVE, W_WAIT, W_PC, W_MASK, W_BLOCK, W_INDEX, W_REGS, W_DIVERGED, W_AGE, W_STICK, W_HASH, W_HASH_AGE,
 W_SAME, W_EXISTS, W_READY, W_SPINS, W_FLIGHT, W_GROUP, W_ARRIVED, W_PASSED, W_STORED, W_BEFORE,
 W_SLOT, W_THREADS) = range(24)  # fmt: skip
W_FIELDS = 24

# ---- a thread (lane of a warp slot) ----
# RELEASE0 to 2: the clocks that its fences of at least scope cta, gpu, sys released. PENDING0 to 2: the clocks that its
# relaxed reads found for its block, its device, the system; the next fence takes them.
# OWN_AT, OWN_VC, OWN_SCOPE: location + 1, clock and scope of its last release operation. READ_AT, READ_MAP: location +
# 1 and clocks of its last relaxed read that found clocks. FENCED: the tensor products that its last
# tcgen05.fence::after_thread_sync covers. FENCE_AT: when it ran that fence. LOOSE to SEEN: its vector clocks by weaker
# rules (missing.py)
(T_PC, T_GID, T_CLOCK, T_VC, T_SV, T_FENCED, T_RELEASE0, T_RELEASE1, T_RELEASE2, T_PENDING0, T_PENDING1, T_PENDING2,
 T_DEPTH, T_WAIT, T_BARRIER, T_GROUP, T_COPIES, T_SAVED, T_TID, T_RESULT, T_EXPECT, T_PASSED, T_BULK, T_OWN_AT,
 T_OWN_VC, T_OWN_SCOPE, T_READ_AT, T_READ_MAP, T_TENSOR, T_LOOSE, T_WIDE, T_SEEN, T_WIDE_OF,
 T_FENCE_AT) = range(34)  # fmt: skip
T_FIELDS = 34
# what a thread waits for. RUNS: nothing
RUNS, AT_BARRIER, AT_WARP, AT_GRID, AT_MBARRIER, AT_LAUNCH, AT_CLUSTER, AT_PAIR = range(8)

# ---- a block ----
# CLUSTER: the row of its cluster. RANK: its rank there. REACHED: whether another block has accessed its shared memory.
# VC_OUT: what its threads that have ended knew. READY: one more than the number of the launch whose special registers
# its warps have. ALLOCATES: one more than the slot of its warp that waits in tcgen05.alloc.cta_group::2, or 0
(B_LAUNCH, B_CTA, B_THREADS, B_WARPS, B_FIRST_WARP, B_LIVE, B_GID, B_FLOOR, B_SHARED, B_SHARED_SIZE, B_DEVICE, B_SM,
 B_MAX_CLOCK, B_SC, B_INIT, B_SHADOW, B_AT_GRID, B_VALID, B_SLOT, B_MBARRIERS, B_TRIGGERED, B_CLUSTER, B_RANK,
 B_REACHED, B_VC_OUT, B_READY, B_ALLOCATES) = range(27)  # fmt: skip
B_FIELDS = 27
# a barrier of a block
(Q_ARRIVED, Q_EXPECTED, Q_VC, Q_POPC, Q_PARTIAL) = range(5)
Q_FIELDS = 5
BARRIERS_PER_BLOCK = 16
# a cluster. The table has a row for each slot of a block; a cluster uses the row of its first block's slot. SIZE: its
# number of blocks. OPEN: whether a thread has arrived at its barrier in the present phase. PHASE: how many phases have
# ended. VC: the clocks that arrivals have published in the present phase. DONE: the clocks of the last phase. From
# BLOCKS on: the rows of its blocks
(K_SIZE, K_PHASE, K_VC, K_DONE, K_OPEN, K_BLOCKS) = range(6)
MOST_CLUSTER = 16
K_FIELDS = K_BLOCKS + MOST_CLUSTER
# an mbarrier: PLACE in shared memory, number of the PHASE, counts. VC: the clocks that its arrivals published so far.
# DONE: those that they published up to the end of the last phase. GID, CLOCK: thread and moment of its initialisation.
# FENCED: whether a fence has made the initialisation visible to asynchronous copies. OLD, NEW: the clock of the last
# thread that waited, before and after the wait
(MB_PLACE, MB_LIVE, MB_PHASE, MB_EXPECTED, MB_PENDING, MB_TX, MB_VC, MB_DONE, MB_GID, MB_CLOCK, MB_FENCED, MB_OLD,
 MB_NEW) = range(13)  # fmt: skip
MB_FIELDS, MB_MOST = 13, 128

# ---- a launch ----
# NEEDS: the address of pairs (stream, number of its first launches that must end before this launch begins). A
# PROGRAMMATIC launch already begins when all blocks of the launch before it in its stream have TRIGGERED or ended; the
# last pair names that launch. CX to CZ: the sizes of a cluster in blocks. CLUSTER: its number of blocks. EXPLICIT:
# whether the kernel or its launch gave these sizes. SHARE: what a block takes of an SM. HELD: whether the launch is
# held back. WORKSPACE: the address of the grid's barrier, or 0
(
    L_DEVICE, L_BLOCKS, L_NEXT, L_DONE, L_FIRST_GID, L_GX, L_GY, L_GZ, L_BX, L_BY, L_BZ, L_THREADS, L_WARPS, L_ENTRY,
    L_PARAMS, L_ROWS, L_SHARED, L_CONSTANTS, L_CONSTANT_COUNT, L_PER_SM, L_STATE, L_VC, L_AT_GRID, L_DYNAMIC,
    L_LOCAL, L_NUMBER, L_GRANULE, L_VALID, L_STOPPED, L_VC_OUT, L_WARPGROUP, L_PARAM_BYTES, L_STREAM, L_ORDER, L_NEEDS,
    L_NEED_COUNT, L_PROGRAMMATIC, L_TRIGGERED, L_SHARE, L_HELD, L_WORKSPACE, L_CX, L_CY, L_CZ, L_CLUSTER, L_EXPLICIT,
) = range(46)  # fmt: skip
L_FIELDS = 48
QUEUED, ACTIVE, FINISHED = range(3)

# ---- a device ----
(D_SMS, D_SC, D_NEXT_SM) = range(3)  # followed by the shares of each SM that resident blocks take
D_FIELDS = 8
MAX_SMS = 256
WHOLE_SM = 1 << 40  # the shares of an SM

# ---- a stream ----
# DONE: how many of its launches have ended, counted up to the first that has not. LIST: the numbers of its launches
(ST_DONE, ST_COUNT, ST_LIST) = range(3)
ST_FIELDS = 4

# ---- an allocation ----
# SHADOW, WIDE: the numbers of its first cell and its first wide cell (wide.py). SHIFT: log2 of a wide cell's bytes, or
# UNDECIDED or NARROW
(A_START, A_SIZE, A_STATE, A_GRANULE, A_SHADOW, A_SHIFT, A_WIDE) = range(7)
A_FIELDS = 7
UNDECIDED, NARROW = -1, 0
LIVE_MEMORY, FREED, CONSTANT = 1, 2, 3
PAGE_SHIFT = 8

# ---- a texture or a surface ----
# MODE: how coordinates outside the array are read (CLAMP to MIRROR). NORMALIZED: whether coordinates are normalised.
# FLOATS: whether integers are read as floats of at most 1. LINEAR: whether values are interpolated. SIZES: elements
# along x, y and z. STRIDES: bytes between neighbours along x, y and z. If LAYERED, the last size and the last
# stride are those of layers
(
    X_KIND, X_ADDRESS, X_TYPE, X_CHANNELS, X_DIMENSIONS, X_LAYERED, X_MODE, X_NORMALIZED, X_FLOATS, X_LINEAR, X_SIZES,
) = range(11)  # fmt: skip
X_STRIDES, X_COUNT = X_SIZES + 3, X_SIZES + 6
TEXTURE, SURFACE = range(2)
CLAMP, BORDER, WRAP, MIRROR = range(4)

# ---- a cell of the checker: a write and two reads, each in two words: (instruction, thread), (kind, bytes, clock) ----
CELL_WORDS = 6
GID_BITS = 42

# ---- reports ----
(
    RACE,
    OUT_OF_BOUNDS,
    MISALIGNED,
    UNINITIALISED,
    USE_AFTER_FREE,
    BARRIER_DIVERGENCE,
    MISSING_WAIT,
    DEADLOCK,
    TRAPPED,
    MISSING_FENCE,
    MISUSE,
    NOT_COHERENT,
) = range(12)
KINDS = (
    "race",
    "out_of_bounds",
    "misaligned",
    "uninitialised",
    "use_after_free",
    "barrier_divergence",
    "missing_wait",
    "deadlock",
    "trap",
    "missing_fence",
    "misuse",
    "not_coherent",
)
(R_KIND, R_PC, R_BLOCK, R_TID, R_ADDRESS, R_SPACE, R_SIZE, R_OTHER_PC, R_OTHER_GID, R_DETAIL, R_WRITE) = range(11)
R_FIELDS = 11
MAX_REPORTS = 4096

# ---- counters of an instruction ----
(
    N_WARPS,
    N_LANES,
    N_REQUESTS,
    N_SECTORS,
    N_BYTES,
    N_IDEAL,
    N_SHARED,
    N_WAVES,
    N_SPLITS,
    N_WIDTH,
    N_IDEAL_WAVES,
) = range(11)
N_FIELDS = 11

# ---- the history of a location: recent writes that a thread may not have seen yet ----
# MAP: the clocks that a write publishes (published.py). SCOPE, GID: the scope and the thread of the write
(H_ADDRESS, H_SIZE, H_COUNT, H_BASE, H_BASE_MAP, H_BASE_SCOPE, H_BASE_GID) = range(7)
H_MESSAGES = 8  # the first word of the messages, one for each write, with these fields:
(M_VALUE, M_GID, M_CLOCK, M_MAP, M_SCOPE, M_SEQUENCE, M_ATOMIC) = range(7)
M_FIELDS, M_MOST = 7, 4
H_FIELDS = H_MESSAGES + M_FIELDS * M_MOST
HISTORY_SLOTS = 4096

# ---- the clocks that the last write of a location publishes ----
(S_KEY, S_MAP, S_SCOPE, S_GID) = range(4)
S_FIELDS = 4

# ---- a pending asynchronous copy ----
# TWIN: whether another thread's pending copy had the same target, source and size when this or the other one started
(C_TO, C_FROM, C_SIZE, C_READ, C_GROUP, C_PC, C_TWIN) = range(7)
C_FIELDS, C_MOST = 7, 32
# flags of bytes that the checker knows: whether a write has landed there, and whether a copy is still pending. A twin's
# copy leaves LANDED | COPYING until the other one lands: the bytes may be read, but not written
LANDED, COPYING = 1, 2

# ---- pending work of the asynchronous proxy: bulk copies, and arrivals that wait for cp.async or tcgen05 ----
# FROM: the source; for a box that is copied to shared memory, the row of the block that has its mbarrier. FLAGS: the
# flags of the instruction; for st.async and red.async the type and the reduction. MAP: a tensor map of 16 words, or the
# values that st.async or red.async stores. AT: five coordinates
(P_KIND, P_BLOCK, P_THREAD, P_TO, P_FROM, P_SIZE, P_BARRIER, P_GROUP, P_PC, P_FLAGS, P_MAP) = range(11)
P_AT, P_FIELDS, P_MOST = 27, 32, 4096
P_ARRIVE, P_COMMIT, P_LOAD, P_BOX_LOAD, P_PUT, P_ADD, P_STORE, P_BOX_STORE, P_REDUCE = range(
    9
)  # kinds from P_STORE on write to global memory; P_PUT: st.async, P_ADD: red.async

# ---- a register that wgmma may use ----
# 0: touched since the last wgmma.fence. 1: not touched since. Another number describes the wgmma that uses the register
CLEAN, ACCUMULATOR, FRAGMENT = 1, 2, 3
F_SHAPE, F_GROUP = 2, 8  # the first bits of a use's shape and group
LOADING = 1 << 60  # tcgen05.ld writes the register until tcgen05.wait::ld

# ---- reasons for the interpreter to stop ----
BUDGET, ALL_DONE, STUCK, CLOCKS_FULL, STOPPED, LIVELOCK, PRINTS_FULL, SYNC_FULL = range(8)

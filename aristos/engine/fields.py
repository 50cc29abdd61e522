"""Names of the words of a job and of a rank's state.

A *job* is the int64 array of all that is constant during one call: shapes, addresses, and where each table of the state
starts. The *state* is one int64 array a rank, shared by its workers and guarded by the rank's lock: the engine's
counters, which live from call to call, and the tables of the open call. Two arrays, so that a compiled step takes the
same few arguments on every substrate.
"""

# ---- the job: shapes and choices
(
    RANK, WORLD, WORKERS, LOCAL, MAX_LOCAL, EXPERTS, TOP_K, HIDDEN, FFN, TOKENS, EPOCH, OBJECT, LAYER, ROW_BYTES,
    STATUS_IN, ROUTED, SCORE, RENORMALIZE, SCALE, ACTIVATION, MODE, EVENTS_MAX, SPINS, YIELDS,
    STRIDE, RETURN_STRIDE, RING_ROWS, SLOTS, TILE, BATCH, RUN_ROWS, MERGE_ROWS, PATIENCE, PAUSE_NS, FAR, FAR_BLOCK,
    PACKED, TIMEOUT_NS,
    RUNS, TEAM_ROWS, UP_SHARES, DOWN_SHARES,  # runs that workers share: how many at once, rows, shares of each half
    ALL_SHARED,  # are all runs, or only those that are too small for all workers?
) = range(43)  # fmt: skip

# ---- the job: addresses
(
    X, X_STRIDE, Y, IDS, WEIGHTS, ROUTER, ROUTER_PANELS, UP, GATE, DOWN, UP_BIAS, GATE_BIAS, DOWN_BIAS,
    UP_STEP, DOWN_STEP, UP_BIAS_STEP, DOWN_BIAS_STEP, SCRATCH, SCRATCH_STEP, ALL_WORKERS, LOCK, EVENTS, OUT_ROWS, WIRE,
    STATE, RUN_STEP, RUN_PITCH,  # bytes between the hidden activations of two shared runs, and of two of their rows
) = range(43, 70)  # fmt: skip

# ---- the job: offsets in a pair's region (see layout.py)
P_ANNOUNCE, P_ANNOUNCE_STEP, P_RECORDS, P_RETURN_RECORDS, P_RING, P_INDEX, P_CODED = range(70, 77)

# ---- the job: where a table of the state starts
(
    T_TO, T_FROM, T_WORDS, T_RETURNS, T_BACK, T_FAR, T_AT, T_RETURNS_AT, T_STAGE,
    T_OUT_RING,  # of a far peer: where the rows of its ring wait here to be put, as its outputs do at T_STAGE
    T_CODED, T_SENT_ROWS, T_SENT_TILES, T_SEEN_TILES, T_EXTRA, T_READ_TILES, T_READ_ROWS, T_FREE_TILES,
    T_FREED_ROWS, T_PUT_ROWS, T_PUT_TILES, T_PUT_RETURNED, T_PUT_CREDIT, T_PUT_TIME, T_OPEN, T_OPEN_EPOCH, T_OPEN_ROWS,
    T_OPEN_TILES, T_OPEN_RETURNED, T_OPEN_CREDIT, T_OPEN_BYTES, T_RETURNED, T_RECORD, T_COUNT, T_SLOT_FROM,
    T_SLOT_TO, T_SLOT_PAIR, T_OFFSET, T_TOKEN, T_POSITION, T_CURSOR, T_BUSY, T_ANNOUNCED, T_LEFT, T_FIRST,
    T_EXCHANGES, T_STATUS, T_NEXT, T_LATEST, T_TAKEN, T_PENDING, T_SOURCE_END, T_TARGET, T_EXPERT_PENDING,
    T_EXPERT_REMOTE, T_EXPERT_COMING, T_BLOCK_LEFT, T_READY, T_RUN, T_COMMAND, T_COMMAND_STEP, T_COUNTERS,
    T_PEER_WAIT,
    T_ROWS_TO, T_TILES_TO, T_ROWS_FROM, T_MOVED_TO, SLOT_OF, SLOT_START, JOB_WORDS,
) = range(77, 147)  # fmt: skip

# ---- the state: single words
(
    PHASE, ROUTE_NEXT, ROUTE_DONE, STATUS, UNREAD, OWED, BLOCKS_LEFT, READY_NEXT, NEXT_DEST, NEXT_EXPERT,
    PROGRESS, FAILED, IDLE_SWEEPS, HEARTBEAT, UNSENT, TARGETS_SET, RUNS_TAKEN,
    READY_COUNT,  # atomic: blocks of tokens that have been queued in T_READY
    RUNS_OPENED,  # atomic: halves of shared runs that have been opened, as long as the engine lives
    CALLS, ORIGIN,  # calls begun, and whose failure ended them, where the host does not count
    KEPT_STATUS, KEPT_RANK,  # the first refusal that the host has not seen yet, and whose it was
    WAIT_SINCE, WAIT_DONE, WAIT_PEER, WAIT_EPOCH, WAIT_PHASE,  # see patience.py
    STATE_WORDS,
) = range(29)  # fmt: skip

# ---- a run that workers share: see team.py. NEXT, LIMIT and DONE are atomic, each on a line of its own
RUN_WORDS = 32
RUN_NEXT, RUN_LIMIT, RUN_BASE, RUN_DONE, RUN_TAKEN = 0, 8, 9, 16, 24
STAGE_UP, STAGE_DOWN = range(2)

# ---- phases of a call
PHASE_ROUTE, PHASE_PACKING, PHASE_RUN, PHASE_DONE = range(4)

# ---- a worker's command: kind, arguments, rows, number of parts, whom it waits for when idle, the shared run it works
# at, shares it has taken, what RUNS_OPENED was when it last found none; own packed rows that are back and not counted:
# how many pieces, then {first, rows} of each; then its lists and its parts
C_KIND, C_A, C_B, C_C, C_ROWS, C_PARTS, C_PEER, C_RUN, C_SHARES, C_OPENED, C_BACK = range(11)
BACK_MOST = 16  # pieces: a command adds one at most, a decision as many as there is room for
C_LISTS = C_BACK + 1 + 2 * BACK_MOST
IDLE, ROUTE, PACK, DISPATCH, EXPERT, COMBINE, FINISH, FAIL, SIZED, TEAM, BLOCK, POST, SETTLE, LIST = range(14)
LISTS = 3  # lists of BATCH addresses: rows, outputs, hidden activations of a shared run
# a part of a run: source, its tile's number or the first packed row, rows, the first one's number in the stream of the
# source (own rows: packed row), where the first output goes
PART_WORDS = 5

# ---- a record as the owner keeps it
RECORD_WORDS = 6
R_ROW, R_ROWS, R_PACKED, R_LEFT, R_LAST, R_NEXT = range(6)

# ---- the words that a rank writes for a peer, on one line
(
    POISON,  # 0, or why this engine is dead: see `steps.poison`
    AT_EPOCH, AT_PHASE,  # where the rank is, for its peers' timeouts; phase -1 is outside a call
    ANNOUNCED,  # the last epoch announced
    TAIL,  # tiles put into the peer's ring
    CREDIT,  # rows freed of what the peer put here
    RETURN_TAIL,  # tiles returned to the peer
) = range(7)  # fmt: skip
WORDS = 7
# behind those that have arrived from a far peer: what it was put, all added up; written by this rank's caller of MPI
POSTED = WORDS

# ---- the words of an announcement
ANNOUNCE_WORDS = 8
A_OBJECT, A_LAYER, A_ROW_BYTES, A_TOP_K, A_STATUS, A_ROWS, A_FIRST = range(7)
EXCHANGE = -1  # the layer that an exchange announces
UNSTAGED = -(1 << 63)  # in a return record: its rows are not in staging rows; counters may be small negative numbers

# ---- what a source's announcement made of it
UNANNOUNCED, SERVE, SKIP = range(3)

# ---- counters of a worker: nanoseconds, then {count, bytes, nanoseconds} of its puts by size class (256 B, 1 KiB, 4
# KiB ...): those of shared memory, then those of the wire
N_ROUTE, N_DISPATCH, N_EXPERT, N_COMBINE, N_IDLE, N_PACK, N_EVENTS, N_WIRE, N_MESSAGES = range(9)
SIZE_CLASSES = 10
N_FAR_MESSAGES = N_MESSAGES + 3 * SIZE_CLASSES
COUNTER_WORDS = 72

# ---- an event of the timeline
EVENT_WORDS = 5  # kind, start, end, peer or expert, rows

# ---- modes
MODE_LAYER, MODE_DISPATCH, MODE_COMBINE = range(3)  # a layer, or the two halves of an exchange

# ---- what a rank announces instead of rows
OK, REFUSED, NOT_FINITE, BAD_IDS, MISMATCH = range(5)

# ---- causes of poison: never 0, which is a word without poison
CAUSE_TIMEOUT, CAUSE_INTERRUPT, CAUSE_ERROR = range(1, 4)
ORIGIN_BITS, CAUSE_BITS = 20, 4  # in the poison word; the epoch lies above

# ---- results of the compiled loop
RAN, PAUSED, POISONED, ALL_ANNOUNCED = range(4)

TOKEN_BLOCK = 32  # tokens that one route or combine command takes

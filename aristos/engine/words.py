"""Words by name. Written by `python -m aristos.engine.generate` from `schema.py`: do not edit.

Constants number the words of a job, of the state and of a line. A function gives the index of a word in the state, or
its address in a record. Bind an index once and use it twice: the compiler does not merge them across stores.
"""

from kernel_cache.compile import inlined

# ---- the job
RANK = 0
WORLD = 1
WORKERS = 2
HELD = 3
COMPUTED = 4
STAY_ROWS = 5
READING_ROWS = 6
BALANCED = 7
MAX_COMPUTED = 8
MAX_ROWS = 9
EXPERTS = 10
TOP_K = 11
CHOICES = 12
SHARED = 13
SHARED_FFN = 14
IDENTITY = 15
HIDDEN = 16
FFN = 17
TOKENS = 18
EPOCH = 19
OBJECT = 20
PLACEMENT = 21
LAYER = 22
ROW_BYTES = 23
RETURN_BYTES = 24
STATUS_IN = 25
ROUTED = 26
KERNELS = 27
SCORE = 28
RENORMALIZE = 29
SCALE = 30
ON_INPUT = 31
SCALARS = 32
ACTIVATION = 33
MODE = 34
EVENTS_MAX = 35
SPINS = 36
YIELDS = 37
STRIDE = 38
RETURN_STRIDE = 39
RING_ROWS = 40
SLOTS = 41
TILE = 42
BATCH = 43
RUN_ROWS = 44
MERGE_ROWS = 45
MERGE_POLLS = 46
PAUSE_NS = 47
REMOTE = 48
BLOCK_PAIRS = 49
ONCE_ROWS = 50
ONCE_SHARE = 51
TIMEOUT_NS = 52
ABSENT_NS = 53
RUNS = 54
SPLIT_ROWS = 55
UP_SHARES = 56
DOWN_SHARES = 57
SHARED_SHARES = 58
ALL_SPLIT = 59
X = 60
X_STRIDE = 61
INPUT = 62
INPUT_STRIDE = 63
ROUTER_X = 64
ROUTER_X_STRIDE = 65
CAPACITY = 66
LOGITS = 67
KEPT_WEIGHTS = 68
SCALARS_OUT = 69
SCALARS_BACK = 70
Y = 71
IDS = 72
WEIGHTS = 73
TAPE = 74
STORE = 75
STORE_STEP = 76
STORE_ROWS = 77
TAPED = 78
SAVE = 79
TAPE_AT = 80
TAPE_END = 81
TAPE_X = 82
TAPE_HIDDEN = 83
BACKWARD_WEIGHTS = 84
ROUTER = 85
ROUTER_BIAS = 86
SELECT_BIAS = 87
SHARED_UP = 88
SHARED_GATE = 89
SHARED_DOWN = 90
SHARED_UP_BIAS = 91
SHARED_GATE_BIAS = 92
SHARED_DOWN_BIAS = 93
SHARED_SIGMOID = 94
LOADED = 95
VERSION = 96
UP = 97
GATE = 98
DOWN = 99
UP_BIAS = 100
GATE_BIAS = 101
GATED = 102
DOWN_BIAS = 103
UP_STEP = 104
DOWN_STEP = 105
UP_BIAS_STEP = 106
DOWN_BIAS_STEP = 107
SCRATCH = 108
SCRATCH_STEP = 109
ALL_WORKERS = 110
LOCK = 111
EVENTS = 112
OUT_ROWS = 113
WIRE = 114
STATE = 115
ABORT = 116
MIRROR = 117
MIRROR_BYTES = 118
RUN_STEP = 119
RUN_PITCH = 120
P_ANNOUNCE = 121
P_ANNOUNCE_STEP = 122
P_RECORDS = 123
P_RETURN_RECORDS = 124
P_RING = 125
P_INDEX = 126
P_CODED = 127
T_REGION_TO = 128
T_REGION_FROM = 129
T_LINE_FROM = 130
T_RETURN_ROWS = 131
T_ROWS_BACK = 132
T_REMOTE = 133
T_PUT_REGION = 134
T_PUT_RETURN_ROWS = 135
T_STAGED = 136
T_OUT_RING = 137
T_CODED = 138
T_SENT_ROWS = 139
T_SENT_TILES = 140
T_SEEN_TILES = 141
T_EXTRA = 142
T_READ_TILES = 143
T_READ_ROWS = 144
T_FREE_TILES = 145
T_FREED_ROWS = 146
T_PUT_ROWS = 147
T_PUT_TILES = 148
T_PUT_RETURNED = 149
T_PUT_CREDIT = 150
T_PUT_TIME = 151
T_OPEN = 152
T_OPEN_EPOCH = 153
T_OPEN_ROWS = 154
T_OPEN_TILES = 155
T_OPEN_RETURNED = 156
T_OPEN_CREDIT = 157
T_OPEN_BYTES = 158
T_RETURNED = 159
T_LANDED = 160
T_COUNT = 161
T_SLOT_FROM = 162
T_SLOT_TO = 163
T_SLOT_PAIR = 164
T_OFFSET = 165
T_TOKEN = 166
T_POSITION = 167
T_CURSOR = 168
T_BUSY = 169
T_ONCE_TO = 170
T_ONCE_FROM = 171
T_VERDICT = 172
T_ROWS_LEFT = 173
T_FIRST_PACKED = 174
T_TOKENS_OF = 175
T_VERSION_OF = 176
T_EXCHANGES = 177
T_STORE_AT = 178
T_PEER_STATUS = 179
T_FRONT = 180
T_LATEST = 181
T_TAKEN = 182
T_PENDING = 183
T_ROWS_FOR = 184
T_SOURCE_END = 185
T_TARGET = 186
T_EXPERT_PENDING = 187
T_EXPERT_REMOTE = 188
T_EXPERT_COMING = 189
T_STAYING = 190
T_IN_PLACE = 191
T_WORK = 192
T_BLOCK_LEFT = 193
T_READY = 194
T_RUN = 195
T_COMMAND = 196
T_COMMAND_STEP = 197
T_COUNTERS = 198
T_PEER_WAIT = 199
T_ROWS_TO = 200
T_TILES_TO = 201
T_ROWS_FROM = 202
T_MOVED_TO = 203
SLOT_OF = 204
SLOT_START = 205
FOREIGN = 206
FILLED = 207
LAYOUT = 208
JOB_WORDS = 209

# ---- the state
PHASE = 0
ROUTE_NEXT = 1
ROUTE_DONE = 2
STATUS = 3
UNREAD = 4
OWED = 5
BLOCKS_LEFT = 6
READY_NEXT = 7
NEXT_DEST = 8
NEXT_EXPERT = 9
PROGRESS = 10
FAILED = 11
BAD_WORD = 12
BAD_PEER = 13
BAD_VALUE = 14
BAD_LEAST = 15
BAD_MOST = 16
IDLE_SWEEPS = 17
HEARTBEAT = 18
UNSENT = 19
TARGETS_SET = 20
STORE_NEXT = 21
TAPE_NEXT = 22
RUNS_TAKEN = 23
READY_COUNT = 24
RUNS_OPENED = 25
CALLS = 26
ORIGIN = 27
KEPT_STATUS = 28
KEPT_RANK = 29
WAIT_SINCE = 30
WAIT_OWN_PROGRESS = 31
WAIT_PEER = 32
WAIT_EPOCH = 33
WAIT_PROGRESS = 34
IN_FLIGHT = 35
UNBEGUN = 36
BEGAN = 37
LEFT = 38
STATE_WORDS = 39

# ---- a line of words for a peer, and words behind it
POISON = 0
AT_EPOCH = 1
AT_PROGRESS = 2
ANNOUNCED = 3
TAIL = 4
CREDIT = 5
RETURN_TAIL = 6
LINE_WORDS = 7
POSTED = 7
ENDED = 8

# ---- counters of a worker
N_ROUTE = 0
N_DISPATCH = 1
N_EXPERT = 2
N_COMBINE = 3
N_IDLE = 4
N_PACK = 5
N_EVENTS = 6
N_WIRE = 7
N_PUBLISH = 8
N_LOCK = 9
N_POLLS = 10
N_LOCAL_PUTS = 11
N_REMOTE_PUTS = 41

# ---- sizes
ANNOUNCED_WORDS = 14
RECORD_WORDS = 4
RETURNED_WORDS = 5
TAPED_WORDS = 3
LANDED_WORDS = 6
FOREIGN_WORDS = 8
PIECE_WORDS = 2
PART_WORDS = 5
RUN_WORDS = 32
EVENT_WORDS = 5
CODED_WORDS = 2
PUTS_WORDS = 3
COMMAND_HEAD = 11
COMMAND_LISTS = 43
COUNTER_WORDS = 72
TOKEN_BLOCK = 32
BACK_MOST = 16
LISTS = 5
SIZE_CLASSES = 10


@inlined
def slot_of(job, expert):
    """Word of the job: the slot that gets an expert's rows."""
    return job[SLOT_OF] + expert


@inlined
def foreign(job, expert):
    """Record, in the job, of an expert that a local peer holds; the first is number HELD."""
    return job[FOREIGN] + FOREIGN_WORDS * (expert - job[HELD])


@inlined
def slot_start(job, rank):
    """Word of the job: first slot of a rank."""
    return job[SLOT_START] + rank


@inlined
def source_expert(job, source, expert):
    """Number of a source and an expert."""
    return source * job[MAX_COMPUTED] + expert


@inlined
def landed(job, source, tile):
    """Record of a source's tile that has landed."""
    return job[T_LANDED] + LANDED_WORDS * (source * job[SLOTS] + tile % job[SLOTS])


@inlined
def run(job, slot):
    """Column-split run of a slot."""
    return job[T_RUN] + RUN_WORDS * slot


@inlined
def command(job, worker):
    """Command of a worker."""
    return job[T_COMMAND] + job[T_COMMAND_STEP] * worker


@inlined
def run_command(job, slot):
    """Command of a column-split run."""
    return job[T_COMMAND] + job[T_COMMAND_STEP] * (job[ALL_WORKERS] + slot)


@inlined
def piece(command, i):
    """Piece i of a command."""
    return command + COMMAND_HEAD + PIECE_WORDS * i


@inlined
def row_list(command):
    """List of a command: addresses of its rows."""
    return command + COMMAND_LISTS


@inlined
def output_list(job, command):
    """List of a command: addresses of its output rows."""
    return command + COMMAND_LISTS + job[BATCH]


@inlined
def hidden_list(job, command):
    """List of a command: addresses of rows of hidden activations."""
    return command + COMMAND_LISTS + 2 * job[BATCH]


@inlined
def place_list(job, command):
    """List of a command with a store: addresses of its rows there."""
    return command + COMMAND_LISTS + 2 * job[BATCH]


@inlined
def scalar_list(job, command):
    """List of a command: scalars that came with its rows, then those that go back."""
    return command + COMMAND_LISTS + 3 * job[BATCH]


@inlined
def tape_list(job, command):
    """List of a command with a tape: places of its rows there, see primitives/taped.py."""
    return command + COMMAND_LISTS + 4 * job[BATCH]


@inlined
def taped(job, peer):
    """A tape's record of a rank."""
    return job[TAPED] + 8 * TAPED_WORDS * peer


@inlined
def part(job, command, i):
    """Part i of a command."""
    return command + COMMAND_LISTS + LISTS * job[BATCH] + PART_WORDS * i


@inlined
def counter(job, worker, name):
    """Counter of a worker."""
    return job[T_COUNTERS] + COUNTER_WORDS * worker + name


@inlined
def puts(counter, size):
    """Puts of a size class, from the first."""
    return counter + PUTS_WORDS * size


@inlined
def announced_count(a, expert):
    """Address in an announcement: rows of an expert."""
    return a + 8 * (ANNOUNCED_WORDS + expert)


@inlined
def event(job, worker, n):
    """Address of event n of a worker."""
    return job[EVENTS] + 8 * EVENT_WORDS * (worker * job[EVENTS_MAX] + n)


@inlined
def coded_word(a, word):
    """Address of a coded word, from that of the first."""
    return a + 8 * CODED_WORDS * word


@inlined
def fill_start(job, epoch):
    """Fill the part `start` in compiled code."""
    job[EPOCH] = epoch


@inlined
def fill_call(job, tokens, status_in, x, x_stride, input_, input_stride, y, ids, weights):
    """Fill the part `call` in compiled code."""
    job[TOKENS] = tokens
    job[STATUS_IN] = status_in
    job[X] = x
    job[X_STRIDE] = x_stride
    job[INPUT] = input_
    job[INPUT_STRIDE] = input_stride
    job[Y] = y
    job[IDS] = ids
    job[WEIGHTS] = weights


@inlined
def region_to(job, peer):
    """What this rank writes for a peer."""
    return job[T_REGION_TO] + peer


@inlined
def region_from(job, peer):
    """What a peer writes for this rank."""
    return job[T_REGION_FROM] + peer


@inlined
def line_from(job, peer):
    """A peer's line of words, as workers read it."""
    return job[T_LINE_FROM] + peer


@inlined
def return_rows(job, peer):
    """Where outputs for a local peer go."""
    return job[T_RETURN_ROWS] + peer


@inlined
def rows_back(job, peer):
    """Where an owner's outputs come back to."""
    return job[T_ROWS_BACK] + peer


@inlined
def remote(job, peer):
    """The peer is on another node."""
    return job[T_REMOTE] + peer


@inlined
def put_region(job, peer):
    """Of a remote peer's window: what this rank writes."""
    return job[T_PUT_REGION] + peer


@inlined
def put_return_rows(job, peer):
    """Of a remote peer's window: its return rows."""
    return job[T_PUT_RETURN_ROWS] + peer


@inlined
def staged(job, peer):
    """Output rows that wait to be put to a remote source."""
    return job[T_STAGED] + peer


@inlined
def out_ring(job, peer):
    """Ring rows of a block: at a local owner, or waiting to be put."""
    return job[T_OUT_RING] + peer


@inlined
def coded(job, peer):
    """Words that are put to a remote peer, coded; on CUDA's proxy words for the GPU."""
    return job[T_CODED] + peer


@inlined
def sent_rows(job, peer):
    """Ring rows used at an owner."""
    return job[T_SENT_ROWS] + peer


@inlined
def sent_tiles(job, peer):
    """Tiles sent to an owner."""
    return job[T_SENT_TILES] + peer


@inlined
def seen_tiles(job, peer):
    """Return records read from an owner."""
    return job[T_SEEN_TILES] + peer


@inlined
def extra(job, peer):
    """Return records an owner owes beside those of tiles."""
    return job[T_EXTRA] + peer


@inlined
def read_tiles(job, peer):
    """Tile records read from a source."""
    return job[T_READ_TILES] + peer


@inlined
def read_rows(job, peer):
    """Ring rows of the tiles read."""
    return job[T_READ_ROWS] + peer


@inlined
def free_tiles(job, peer):
    """Tiles of a source whose rows are free again."""
    return job[T_FREE_TILES] + peer


@inlined
def freed_rows(job, peer):
    """Ring rows freed: the credit given."""
    return job[T_FREED_ROWS] + peer


@inlined
def put_rows(job, peer):
    """Ring rows that were put and flushed."""
    return job[T_PUT_ROWS] + peer


@inlined
def put_tiles(job, peer):
    """Tiles that were put and flushed."""
    return job[T_PUT_TILES] + peer


@inlined
def put_returned(job, peer):
    """Return records that were put and flushed."""
    return job[T_PUT_RETURNED] + peer


@inlined
def put_credit(job, peer):
    """Credit that was put."""
    return job[T_PUT_CREDIT] + peer


@inlined
def put_time(job, peer):
    """When the last batch was opened."""
    return job[T_PUT_TIME] + peer


@inlined
def open(job, peer):
    """A batch is put and not flushed."""
    return job[T_OPEN] + peer


@inlined
def open_epoch(job, peer):
    """Epoch whose announcement was put."""
    return job[T_OPEN_EPOCH] + peer


@inlined
def open_rows(job, peer):
    """Sent_rows of the open batch."""
    return job[T_OPEN_ROWS] + peer


@inlined
def open_tiles(job, peer):
    """Sent_tiles of the open batch."""
    return job[T_OPEN_TILES] + peer


@inlined
def open_returned(job, peer):
    """Returned of the open batch."""
    return job[T_OPEN_RETURNED] + peer


@inlined
def open_credit(job, peer):
    """Freed_rows of the open batch."""
    return job[T_OPEN_CREDIT] + peer


@inlined
def open_bytes(job, peer):
    """Bytes of the open batch."""
    return job[T_OPEN_BYTES] + peer


@inlined
def returned(job, peer):
    """Tiles returned to a source."""
    return job[T_RETURNED] + peer


@inlined
def count(job, slot):
    """Pairs of each slot; while they are sorted, where its next pair goes."""
    return job[T_COUNT] + slot


@inlined
def slot_from(job, slot):
    """First packed row of a slot that is in no block yet."""
    return job[T_SLOT_FROM] + slot


@inlined
def slot_to(job, slot):
    """End of its packed rows in the claimed block."""
    return job[T_SLOT_TO] + slot


@inlined
def slot_pair(job, slot):
    """Number of its first pair in the block."""
    return job[T_SLOT_PAIR] + slot


@inlined
def offset(job, slot):
    """First packed row of each slot; then their number."""
    return job[T_OFFSET] + slot


@inlined
def token(job, i):
    """Token of a packed row."""
    return job[T_TOKEN] + i


@inlined
def position(job, i):
    """Packed row of a (token, choice) pair, -1: none."""
    return job[T_POSITION] + i


@inlined
def cursor(job, peer):
    """First packed row for an owner that is not sent."""
    return job[T_CURSOR] + peer


@inlined
def busy(job, peer):
    """A worker writes for this owner."""
    return job[T_BUSY] + peer


@inlined
def once_to(job, peer):
    """Tokens of this call cross once to an owner, in blocks."""
    return job[T_ONCE_TO] + peer


@inlined
def once_from(job, peer):
    """Tokens of this call cross once from a source."""
    return job[T_ONCE_FROM] + peer


@inlined
def verdict(job, peer):
    """What a source's announcement led to, see codes.py."""
    return job[T_VERDICT] + peer


@inlined
def rows_left(job, peer):
    """Announced rows of a source whose records are not read."""
    return job[T_ROWS_LEFT] + peer


@inlined
def first_packed(job, peer):
    """First packed row of a source's rows for this rank."""
    return job[T_FIRST_PACKED] + peer


@inlined
def tokens_of(job, peer):
    """1 + tokens of a rank in the last call that it announced, 0: none."""
    return job[T_TOKENS_OF] + peer


@inlined
def version_of(job, peer):
    """Version of a rank's weights of this call's layer; they need not agree."""
    return job[T_VERSION_OF] + peer


@inlined
def exchanges(job, peer):
    """The source announced an exchange."""
    return job[T_EXCHANGES] + peer


@inlined
def store_at(job, peer):
    """Place in the store of a source's first row."""
    return job[T_STORE_AT] + peer


@inlined
def peer_status(job, peer):
    """Status that a peer announced or returned."""
    return job[T_PEER_STATUS] + peer


@inlined
def front(job, source, expert):
    """First tile with pending rows; of own rows the first packed row."""
    return job[T_FRONT] + source * job[MAX_COMPUTED] + expert


@inlined
def front_at(job, source_expert):
    """The same, by `source_expert`."""
    return job[T_FRONT] + source_expert


@inlined
def latest(job, source, expert):
    """Last tile that was read."""
    return job[T_LATEST] + source * job[MAX_COMPUTED] + expert


@inlined
def latest_at(job, source_expert):
    """The same, by `source_expert`."""
    return job[T_LATEST] + source_expert


@inlined
def taken(job, source, expert):
    """Rows of the front tile that are claimed."""
    return job[T_TAKEN] + source * job[MAX_COMPUTED] + expert


@inlined
def taken_at(job, source_expert):
    """The same, by `source_expert`."""
    return job[T_TAKEN] + source_expert


@inlined
def pending(job, source, expert):
    """Landed rows that are not claimed."""
    return job[T_PENDING] + source * job[MAX_COMPUTED] + expert


@inlined
def pending_at(job, source_expert):
    """The same, by `source_expert`."""
    return job[T_PENDING] + source_expert


@inlined
def rows_for(job, source, expert):
    """Rows that a source announced for a held expert."""
    return job[T_ROWS_FOR] + source * job[MAX_COMPUTED] + expert


@inlined
def rows_for_at(job, source_expert):
    """The same, by `source_expert`."""
    return job[T_ROWS_FOR] + source_expert


@inlined
def source_end(job, source, expert):
    """Read_rows when all announced rows have landed."""
    return job[T_SOURCE_END] + source * job[MAX_COMPUTED] + expert


@inlined
def source_end_at(job, source_expert):
    """The same, by `source_expert`."""
    return job[T_SOURCE_END] + source_expert


@inlined
def target(job, source, expert):
    """Next row of an exchange's output."""
    return job[T_TARGET] + source * job[MAX_COMPUTED] + expert


@inlined
def target_at(job, source_expert):
    """The same, by `source_expert`."""
    return job[T_TARGET] + source_expert


@inlined
def expert_pending(job, expert):
    """Landed rows of all sources that are not claimed."""
    return job[T_EXPERT_PENDING] + expert


@inlined
def expert_remote(job, expert):
    """Those of them that are not own rows."""
    return job[T_EXPERT_REMOTE] + expert


@inlined
def expert_coming(job, expert):
    """Announced rows that have not landed."""
    return job[T_EXPERT_COMING] + expert


@inlined
def staying(job, expert):
    """Own rows for an expert of a local peer that are computed here."""
    return job[T_STAYING] + expert


@inlined
def in_place(job, slot):
    """Rows for the slot are computed where they are."""
    return job[T_IN_PLACE] + slot


@inlined
def work(job, peer):
    """Work that a local rank is expected to have, see staying.py."""
    return job[T_WORK] + peer


@inlined
def block_left(job, block):
    """Rows that a block of tokens waits for."""
    return job[T_BLOCK_LEFT] + block


@inlined
def ready(job, block):
    """Queue of blocks to combine: 1 + block."""
    return job[T_READY] + block


@inlined
def peer_wait(job, peer):
    """Idle time charged to a peer."""
    return job[T_PEER_WAIT] + peer


@inlined
def rows_to(job, peer):
    """Rows for an owner."""
    return job[T_ROWS_TO] + peer


@inlined
def tiles_to(job, peer):
    """Tiles sent to an owner in this call."""
    return job[T_TILES_TO] + peer


@inlined
def rows_from(job, peer):
    """Rows announced by a source."""
    return job[T_ROWS_FROM] + peer


@inlined
def moved_to(job, peer):
    """Rows moved to an owner in this call."""
    return job[T_MOVED_TO] + peer


@inlined
def announced_object(a):
    """Number of the layer or exchange."""
    return a


@inlined
def announced_mode(a):
    """Kind of call, see codes.py."""
    return a + 8


@inlined
def announced_layer(a):
    """Layer, 0 for an exchange."""
    return a + 16


@inlined
def announced_row_bytes(a):
    """Bytes of a row."""
    return a + 24


@inlined
def announced_top_k(a):
    """Choices of a token."""
    return a + 32


@inlined
def announced_scalars(a):
    """Scalars travel beside rows."""
    return a + 40


@inlined
def announced_placement(a):
    """Version of the source's placement."""
    return a + 48


@inlined
def announced_status(a):
    """OK, or why the source refuses."""
    return a + 56


@inlined
def announced_rows(a):
    """Rows for this rank."""
    return a + 64


@inlined
def announced_first(a):
    """First packed row of them."""
    return a + 72


@inlined
def announced_tokens(a):
    """Tokens of the source."""
    return a + 80


@inlined
def announced_version(a):
    """Version of the source's weights of the layer."""
    return a + 88


@inlined
def announced_tape(a):
    """Of a backward call: number of the tape, and of its pieces."""
    return a + 96


@inlined
def announced_once(a):
    """Tokens cross once: rows are in blocks, with an index."""
    return a + 104


@inlined
def record_expert(a):
    """Expert among those of the owner."""
    return a


@inlined
def record_rows(a):
    """Rows of the tile."""
    return a + 8


@inlined
def record_packed(a):
    """First packed row."""
    return a + 16


@inlined
def record_block(a):
    """Rows in the ring of the block that ends here, 0: it goes on."""
    return a + 24


@inlined
def returned_packed(a):
    """First packed row."""
    return a


@inlined
def returned_rows(a):
    """Rows that came back."""
    return a + 8


@inlined
def returned_status(a):
    """OK, or why there are none."""
    return a + 16


@inlined
def returned_staged(a):
    """Pair whose staged row is the first, or `codes.UNSTAGED`."""
    return a + 24


@inlined
def returned_kept(a):
    """What the owner keeps of the source's rows, see primitives/taped.py."""
    return a + 32


@inlined
def taped_at(a):
    """Place of its first row here."""
    return a


@inlined
def taped_kept(a):
    """What is kept here of its rows."""
    return a + 8


@inlined
def taped_there(a):
    """What it keeps of this rank's rows."""
    return a + 16


@inlined
def landed_row(landed):
    """Number of its first ring row."""
    return landed


@inlined
def landed_rows(landed):
    """Rows of the tile."""
    return landed + 1


@inlined
def landed_packed(landed):
    """First packed row."""
    return landed + 2


@inlined
def landed_left(landed):
    """Rows that are not computed."""
    return landed + 3


@inlined
def landed_last(landed):
    """Ring rows of the block that ends here, 0: it goes on."""
    return landed + 4


@inlined
def landed_next(landed):
    """Next tile of the same expert."""
    return landed + 5


@inlined
def foreign_slot(foreign):
    """Its slot."""
    return foreign


@inlined
def foreign_owner(foreign):
    """Rank that holds it."""
    return foreign + 1


@inlined
def foreign_up(foreign):
    """Up projection."""
    return foreign + 2


@inlined
def foreign_gate(foreign):
    """Gate projection, 0: none."""
    return foreign + 3


@inlined
def foreign_down(foreign):
    """Down projection."""
    return foreign + 4


@inlined
def foreign_up_bias(foreign):
    """0: none."""
    return foreign + 5


@inlined
def foreign_gate_bias(foreign):
    """0: none."""
    return foreign + 6


@inlined
def foreign_down_bias(foreign):
    """0: none."""
    return foreign + 7


@inlined
def command_kind(command):
    """What the worker does, see codes.py."""
    return command


@inlined
def command_subject(command):
    """First argument, whichever it is (all)."""
    return command + 1


@inlined
def command_first(command):
    """First token (ROUTE, COMBINE)."""
    return command + 1


@inlined
def command_owner(command):
    """Rank the rows go to (DISPATCH, BLOCK)."""
    return command + 1


@inlined
def command_expert(command):
    """Held expert (EXPERT, LIST, SHARE)."""
    return command + 1


@inlined
def command_packed(command):
    """First packed row (DISPATCH)."""
    return command + 2


@inlined
def command_token(command):
    """First token, until it is written (BLOCK)."""
    return command + 2


@inlined
def command_crossing(command):
    """Rows that cross, once it is written (BLOCK)."""
    return command + 2


@inlined
def command_share(command):
    """Number of the share in its phase (SHARE)."""
    return command + 2


@inlined
def command_status(command):
    """Worst status of the tokens (ROUTE)."""
    return command + 3


@inlined
def command_slot(command):
    """Expert among those of the owner (DISPATCH)."""
    return command + 3


@inlined
def command_end(command):
    """First token after the block (BLOCK)."""
    return command + 3


@inlined
def command_phase(command):
    """Of the run, see codes.py (SHARE)."""
    return command + 3


@inlined
def command_rows(command):
    """Rows, tokens or pairs."""
    return command + 4


@inlined
def command_parts(command):
    """Number of parts (EXPERT)."""
    return command + 5


@inlined
def command_tiles(command):
    """Number of tiles, once it is written (BLOCK)."""
    return command + 5


@inlined
def command_peer(command):
    """Rank that the idle time is charged to."""
    return command + 6


@inlined
def command_run(command):
    """Column-split run the worker is at."""
    return command + 7


@inlined
def command_shares(command):
    """Shares that the worker has taken."""
    return command + 8


@inlined
def command_opened(command):
    """RUNS_OPENED when it last found no share."""
    return command + 9


@inlined
def command_back(command):
    """Pieces of own rows that came back and are not counted; the pieces follow."""
    return command + 10


@inlined
def piece_packed(piece):
    """First packed row."""
    return piece


@inlined
def piece_rows(piece):
    """Rows."""
    return piece + 1


@inlined
def part_source(part):
    """Rank the rows come from."""
    return part


@inlined
def part_where(part):
    """Number of their tile; of own rows the first packed row."""
    return part + 1


@inlined
def part_rows(part):
    """Rows."""
    return part + 2


@inlined
def part_first(part):
    """Number of the first in the source's stream; of own rows packed row."""
    return part + 3


@inlined
def part_output(part):
    """Where the first output goes."""
    return part + 4


@inlined
def run_next(run):
    """Next share to take, as long as the engine lives."""
    return run


@inlined
def run_limit(run):
    """Shares that may be taken."""
    return run + 8


@inlined
def run_base(run):
    """First share of this run."""
    return run + 9


@inlined
def run_done(run):
    """Shares that are done."""
    return run + 16


@inlined
def run_taken(run):
    """The slot has a run."""
    return run + 24


@inlined
def event_kind(a):
    """Of the command."""
    return a


@inlined
def event_start(a):
    """When it began."""
    return a + 8


@inlined
def event_end(a):
    """When it ended."""
    return a + 16


@inlined
def event_subject(a):
    """Token, owner, expert or awaited rank."""
    return a + 24


@inlined
def event_rows(a):
    """Rows."""
    return a + 32


@inlined
def coded_value(a):
    """The word."""
    return a


@inlined
def coded_complement(a):
    """Its complement."""
    return a + 8


@inlined
def puts_count(puts):
    """Puts."""
    return puts


@inlined
def puts_bytes(puts):
    """Bytes."""
    return puts + 1


@inlined
def puts_time(puts):
    """Nanoseconds."""
    return puts + 2

"""Every word that parts of the engine share: its name, meaning, unit, shape, single writer and substrate.

A *job* is an int64 array of values that are constant during a call: shapes, addresses, and where each table of the
state starts. The *state* is an int64 array of a rank, which its workers share. It has counters that last from call to
call, and the tables of the open call. A *region* is the part of a window that one peer writes. `words.py` makes names
and functions from this file, and `python -m aristos.engine.generate` makes the tables of docs/protocol.md. Nothing is
compiled here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ALL, CPU, CUDA = "all", "cpu", "cuda"
# parts of a job, see job.py. Each is filled as a whole. LASTING: kept for later calls. OF_CALL: filled by each call
ENGINE, TILE, OBJECT, WEIGHTS, KIND, EVENTS, TAPE, BACKWARD, LANDING = LASTING = (
    "engine",
    "tile",
    "object",
    "weights",
    "kind",
    "events",
    "tape",
    "backward",
    "landing",
)
START, CALL = OF_CALL = "start", "call"
PARTS = *LASTING, *OF_CALL
LOCK = "a worker, under the rank's lock"
ATOMIC = "any worker, by atomics"
FAILS = "a worker that fails"
OWN = "the worker"
WIRE = "the holder of the wire's lock"
HOST = "the host"
PACK = "the worker that packs"


@dataclass(frozen=True)
class Word:
    """One word. part: the part of a job that has it, see above. substrate: where the word is used.

    calls: names, separated by spaces, of the kernels' calls that get the word as an argument. The argument has the
    word's name in lower case, unless another name follows the call's name after a dot.
    """

    name: str
    meaning: str
    unit: str = ""
    writer: str = HOST
    part: str = ""
    substrate: str = ALL
    calls: str = ""

    @property
    def arguments(self) -> list[tuple[str, str]]:
        """(call, name of the argument) of each of `calls`."""
        return [(call, name or self.name.lower()) for call, _, name in (c.partition(".") for c in self.calls.split())]


@dataclass(frozen=True)
class StateTable:
    """A table of the state. shape: names of `sizes`. The job's word `T_` + its name says where it starts."""

    name: str
    shape: tuple[str, ...]
    meaning: str
    unit: str = ""
    writer: str = LOCK
    substrate: str = ALL

    @property
    def start(self) -> str:
        """The job's word that holds where the table starts."""
        return f"T_{self.name.upper()}"


@dataclass(frozen=True)
class Field:
    """A word of a record. kinds: if several words share a place, the kinds of commands that use this word."""

    name: str
    offset: int
    meaning: str
    unit: str = ""
    kinds: str = ""


@dataclass(frozen=True)
class Record:
    """A record of words. step: the distance of neighbouring words, 8 for a record at an address, 1 in the state."""

    name: str
    words: int
    step: int
    meaning: str
    writer: str
    fields: tuple[Field, ...]


def _words(rows: str) -> list[Word]:
    """Words of a job, one on each line: name | part | unit | meaning | substrate | calls.

    The last two may be left out.
    """
    found = []
    for row in rows.strip().splitlines():
        name, part, unit, meaning, *more = (cell.strip() for cell in row.split("|"))
        found.append(Word(name, meaning, unit, HOST, part, *more))
    return found


# ---- the job, in order: scalars, where the state's tables start, the job's own tables, words of the host

JOB_SCALARS = _words("""
    RANK | engine | rank | this rank
    WORLD | engine | ranks | ranks of the group
    WORKERS | tile | workers | workers that take part
    HELD | object | experts | experts that this rank holds
    COMPUTED | object | experts | experts that this rank may compute: first held ones, then readable ones of local peers
    STAY_ROWS | object | rows | rows for a foreign expert stay if they are at least as many, see staying.py | cpu
    READING_ROWS | object | rows | rows whose arithmetic takes as long as reading their expert's weights | cpu
    BUSIEST_DECIDES | object | flag | the busiest rank's work also decides whether rows stay | cpu
    MAX_COMPUTED | engine | experts | most experts that a rank may compute
    MAX_ROWS | engine | rows | most packed rows of a rank
    EXPERTS | object | experts | experts that ids may name: the layer's experts and its identity experts
    TOP_K | object | choices | experts that compute a token: the chosen ones and the shared expert
    CHOICES | object | choices | experts that are chosen for a token | all | route_block.k
    SHARED | object | experts | 1 + the shared expert's place among the held experts, 0: no shared expert
    SHARED_FFN | object | columns | width of the shared expert's hidden activations
    IDENTITY | object | experts | identity experts, whose ids have no slot
    HIDDEN | object | columns | width of a row | all | \
        route_block expert_rows up_columns combine_token weigh_shared backward_rows weigh_row
    FFN | object | columns | width of the hidden activations | all | backward_rows
    TOKENS | call | tokens | tokens of this call
    EPOCH | start | call | serial number of this call
    OBJECT | object | | number of the layer object or exchange on its communicator
    PLACEMENT | object | | version of the placement: a fingerprint of which ranks hold which expert
    LAYER | kind | | number of the layer in the object, 0 for an exchange
    ROW_BYTES | object | bytes | size of a row that travels
    RETURN_BYTES | object | bytes | size of a row that comes back
    STATUS_IN | call | status | OK, or why this rank refuses its input
    ROUTED | call | flag | ids and weights come from the user | cpu
    KERNELS | object | handle | the element type's kernels, see kernels/cpu/entries.py | cpu
    SCORE | object | | the score and the groups of experts, see `rule` in kernels/common/scores.py | cpu | route_block
    RENORMALIZE | object | flag | the k weights of a token are divided by their sum | cpu | route_block
    SCALE | object | float32 bits | factor by which weights are multiplied | cpu | route_block
    ON_INPUT | object | flag | tokens are weighted instead of outputs, so X is the engine's own buffer | cpu
    SUMS | object | flag | a node's outputs for a token come back as one row, see sums.py | cpu
    SCALARS | object | flag | 32 bits travel beside the row of each pair, out and back, see scalars.py | cpu
    ACTIVATION | object | | the activation and its limit | all | expert_rows up_columns backward_rows
    MODE | kind | mode | the kind of call, see codes.py
    EVENTS_MAX | events | events | most events of a worker, 0: no timeline | cpu
    SPINS | engine | polls | idle polls before a worker yields its core | cpu
    YIELDS | engine | polls | idle polls before a worker sleeps | cpu
    STRIDE | engine | bytes | distance between rows of a ring
    RETURN_STRIDE | engine | bytes | distance between return rows
    RING_ROWS | engine | rows | rows in the ring of a stream: of an ordered pair of ranks, or of a rank and a node
    LOCAL_ROWS | engine | rows | rows in the ring between two ranks of a node, at most RING_ROWS
    RING_RECORDS | engine | records | records in the ring of an ordered pair of ranks
    TILE | tile | rows | most rows of a tile
    BATCH | tile | rows | most rows of a run, and the length of a command's lists
    RUN_ROWS | tile | rows | more rows of an expert than this are cut into several runs
    MERGE_ROWS | tile | rows | a run with fewer rows than this waits for announced rows
    MERGE_POLLS | engine | polls | idle polls for which a run of fewer than MERGE_ROWS rows waits
    PAUSE_NS | engine | ns | time after which compiled code returns to Python | cpu
    REMOTE | engine | ranks | peers on other nodes
    NODE_FIRST | engine | rank | first of the ranks that read the same streams of remote sources; at one level this rank
    NODE_END | engine | rank | end of the ranks that read these streams
    BUNDLE_PAIRS | engine | pairs | most (token, choice) pairs of a bundle, for each owner of the stream
    ONCE_ROWS | engine | rows \
        | tokens cross once to a local owner of at least so many rows, see packing.py; 0: never | cpu
    ONCE_SHARE | engine | percent | the same limit in percent of the call's tokens; both limits must be reached | cpu
    TIMEOUT_NS | object | ns | longest wait for a rank that is in the call | cuda
    ABSENT_NS | object | ns | longest wait for a rank that is in user code | cuda
    RUNS | tile | runs | most column-split runs at the same time
    SPLIT_ROWS | tile | rows | most rows of a column-split run
    UP_SHARES | tile | shares | shares in the first phase of a column-split run
    DOWN_SHARES | tile | shares | shares in the second phase of a column-split run
    SHARED_SHARES | tile | shares | shares in the first phase of a run of the shared expert
    ALL_SPLIT | tile | flag | every run is column-split, not only those with few rows
    X | call | address | rows that travel: the rows of INPUT, or those rows times their weights
    X_STRIDE | call | bytes | distance between rows of X
    INPUT | call | address | rows of the tokens, as the user gave them
    INPUT_STRIDE | call | bytes | distance between rows of INPUT | all | weigh_shared.x_stride
    ROUTER_X | call | address | rows that the router reads | cpu
    ROUTER_X_STRIDE | call | bytes | distance between rows of ROUTER_X | cpu | route_block.x_stride
    CAPACITY | call | choices | most choices of an expert by this rank's tokens, 0: no limit | cpu
    LOGITS | call | address | where router scores are kept, [tokens, experts] float32, 0: nowhere | cpu
    KEPT_WEIGHTS | call | address | where weights of tokens are kept, [tokens, top_k] float32, 0: nowhere | cpu
    SCALARS_OUT | backward | address | [tokens, top_k] words whose lower halves travel with the rows | cpu
    SCALARS_BACK | backward | address | [tokens, top_k] words for the scalars that come back | cpu
    Y | call | address | rows of the output
    IDS | call | address | [tokens, k] int64 chosen experts; -1: no expert; -2 - id: a choice beyond the capacity
    WEIGHTS | call | address | [tokens, k] float32 combine weights
    TAPE | backward | | in a backward call the number of the tape and the number of pieces; 0 in other calls
    STORE | backward | address | where this rank keeps the rows that it computes, see store.py; 0: nowhere
    STORE_STEP | backward | bytes | distance between places of the store
    STORE_ROWS | backward | rows | rows for which the store has places
    TAPED | tape | address | a record `taped` for each rank, see tape.py; 0: the call has no tape
    SAVE | tape | | in a forward call what is kept of a row if it fits, see primitives/taped.py
    TAPE_AT | tape | address | start of the memory where this rank may keep rows
    TAPE_END | tape | address | end of that memory
    TAPE_X | tape | bytes | size of a kept row
    TAPE_HIDDEN | tape | bytes | size of the hidden activations that are kept of a row
    BACKWARD_WEIGHTS | backward | address \
        | for each held expert the addresses that `backward_rows` gets as weights | cpu
    ROUTER | weights | address | packed router weights, float32, 0: none | cpu | route_block
    ROUTER_BIAS | weights | address | [experts] float32, added to scores, 0: none | cpu | route_block
    SELECT_BIAS | weights | address | [experts] float32, added to weights only to choose experts, 0: none | cpu \
        | route_block
    SHARED_UP | weights | address | the shared expert's up projection
    SHARED_GATE | weights | address | the shared expert's gate projection, 0: none | cpu
    SHARED_DOWN | weights | address | the shared expert's down projection
    SHARED_UP_BIAS | weights | address | bias of the up projection, 0: none
    SHARED_GATE_BIAS | weights | address | bias of the gate projection, 0: none | cpu
    SHARED_DOWN_BIAS | weights | address | bias of the down projection, 0: none
    SHARED_SIGMOID | weights | address \
        | packed column w: the shared output is weighted by sigmoid(x w). 0: the weight is 1 | cpu | weigh_shared.column
    LOADED | weights | flag | weights are loaded
    VERSION | weights | changes | changes of this rank's weights of the layer so far
    UP | weights | address | up projection of this rank's first expert
    GATE | weights | address | gate projection of this rank's first expert, 0: none | cpu
    DOWN | weights | address | down projection of this rank's first expert
    UP_BIAS | weights | address | bias of UP. Without a bias: 0 on CPUs, an array of zeros on CUDA
    GATE_BIAS | weights | address | bias of GATE, 0: none | cpu
    GATED | weights | flag | experts have a gate projection, packed with the up projection | cuda
    DOWN_BIAS | weights | address | bias of DOWN. Without a bias: 0 on CPUs, an array of zeros on CUDA
    UP_STEP | weights | bytes | distance between the up projections of two experts
    DOWN_STEP | weights | bytes | distance between the down projections of two experts
    UP_BIAS_STEP | weights | bytes | distance between the biases of two experts' up projections
    DOWN_BIAS_STEP | weights | bytes | distance between the biases of two experts' down projections
    SCRATCH | engine | address | hidden activations of each worker, then of column-split runs
    SCRATCH_STEP | tile | bytes | size of a worker's part of SCRATCH, 0 on CUDA
    ALL_WORKERS | engine | workers | workers for which the state has commands
    LOCK | engine | address | the rank's lock: 0, 1 + the worker that holds it, or OUTSIDE of lock.py
    EVENTS | events | address | events of the timeline | cpu
    OUT_ROWS | landing | address | rows that an exchange has received | cpu
    WIRE | engine | address | the wire to remote peers, 0: none; see primitives/wire.py | all | \
        expert_rows up_columns down_columns backward_rows
    STATE | engine | address | the state
    ABORT | engine | address | a word in host memory: 0, or the cause for which the host ends the call | cuda
    MIRROR | engine | address | what remote peers have put, in host memory that kernels read | cuda
    MIRROR_BYTES | engine | bytes | size of the mirror, 0 without remote peers | cuda
    RUN_STEP | tile | bytes | distance between the hidden activations of two column-split runs
    RUN_PITCH | tile | bytes | distance between rows of a run's hidden activations
    P_RETURN_RECORDS | engine | bytes | distance from a region's start to its return records
    P_ANNOUNCE | engine | bytes | distance from a region's start to its announcements
    P_ANNOUNCE_STEP | engine | bytes | distance between the two announcements
    P_RECORDS | engine | bytes | distance from a region's start to its tile records
    P_INDEX | engine | bytes | distance from a region's start to its index
    P_LINKS | engine | bytes | distance from a region's start to its links, see sums.py
    P_RING | engine | bytes | distance from a region's start to its ring
    P_MARKS | engine | bytes | distance from the start of a local peer's region to its words about sources, see sums.py
""")
JOB_TABLES = [
    Word("SLOT_OF", "for each expert the slot that this rank sends to", "slot", HOST, OBJECT),
    Word("SLOT_START", "for each rank its first slot, then the number of slots", "slot", HOST, OBJECT),
    Word("FOREIGN", "a record `foreign` for each expert of a local peer that this rank may compute", "", HOST, OBJECT),
]
# words that the host alone uses, see job.py
JOB_CHECKS = [
    Word("FILLED", "a bit for each part that is filled"),
    Word("LAYOUT", "version of the runtime's windows and tables that the part `engine` describes", "", HOST, ENGINE),
]
COMMAND_STEP = Word("T_COMMAND_STEP", "words of a command", "words", HOST, ENGINE)

# ---- the state

STATE_WORDS = [
    Word("PHASE", "phase of the call, see codes.py", "phase", LOCK),
    Word("ROUTE_NEXT", "first token that no worker has claimed to route", "token", LOCK),
    Word("ROUTE_DONE", "tokens that are routed", "tokens", LOCK),
    Word("STATUS", "worst status of this rank's input", "status", LOCK),
    Word("UNREAD", "announcements of this epoch that are not read", "ranks", LOCK),
    Word("OWED", "announced rows that are not computed and returned", "rows", LOCK),
    Word("BLOCKS_LEFT", "blocks of tokens that are not combined", "blocks", LOCK),
    Word("READY_NEXT", "first entry of `ready` that no worker has claimed", "entry", LOCK),
    Word("NEXT_DEST", "owner that is tried first for the next tile", "rank", LOCK),
    Word("NEXT_EXPERT", "expert, of those that this rank may compute, that is examined first for rows", "expert", LOCK),
    Word("PROGRESS", "commands published since the engine was made", "commands", LOCK),
    Word("FAILED", "0, or the cause of the failure", "cause", FAILS),
    Word("BAD_WORD", "0, or which word of a peer is out of its bounds, see bounds.py", "", FAILS),
    Word("BAD_PEER", "the peer that wrote that word", "rank", FAILS),
    Word("BAD_VALUE", "value of that word", "", FAILS),
    Word("BAD_LEAST", "the least value that the word may have", "", FAILS),
    Word("BAD_MOST", "the largest value that the word may have", "", FAILS),
    Word("IDLE_SWEEPS", "consecutive decisions that found nothing", "polls", LOCK),
    Word("HEARTBEAT", "when the last heartbeat was sent", "ns", "worker 0"),
    Word("UNSENT", "rows for peers that are not sent", "rows", LOCK),
    Word("TARGETS_SET", "an exchange's rows have places", "flag", "worker 0"),
    Word("STORE_NEXT", "places of the store that are given to sources", "rows", LOCK),
    Word("TAPE_NEXT", "first byte of the tape that is given to no source", "address", LOCK),
    Word("RUNS_TAKEN", "column-split runs in use", "runs", LOCK),
    Word("UNSUMMED", "computed tiles whose tokens' sums are not computed, see sums.py", "tiles", LOCK),
    Word("LATE_OWNER", "a local peer for whose outputs sums wait, or this rank", "rank", LOCK),
    Word("BELLS", "bells of remote peers for this rank, see bells.py; 0: all words are read", "address", substrate=CPU),
    Word("BELL_WORDS", "words with these bells", "words", substrate=CPU),
    Word("STREAM_BELL_WORDS", "words with bells of streams at each rank of this node", "words", substrate=CPU),
    Word("ANSWERED", "for each bell that this rank reads, the digest of the accepted words", "address", substrate=CPU),
    Word("TURN", "distance to the remote peer whose words were read last in turn", "ranks", WIRE, substrate=CPU),
    Word("READY_COUNT", "entries of `ready`", "entries", ATOMIC),
    Word("RUNS_OPENED", "phases of column-split runs opened since the engine was made", "phases", ATOMIC),
    Word("CALLS", "calls begun", "calls", "the kernel `begin`", substrate=CUDA),
    Word("ORIGIN", "the rank that failed first", "rank", LOCK, substrate=CUDA),
    Word("KEPT_STATUS", "first refusal that the host has not read", "status", "the kernel `begin`", substrate=CUDA),
    Word("KEPT_RANK", "the rank that refused", "rank", "the kernel `begin`", substrate=CUDA),
    Word(
        "WAIT_SINCE", "when the awaited rank last made progress, see timeout_check.py", "ns", "worker 0", substrate=CUDA
    ),
    Word("WAIT_OWN_PROGRESS", "this rank's PROGRESS at WAIT_SINCE", "commands", "worker 0", substrate=CUDA),
    Word("WAIT_PEER", "the awaited rank", "rank", "worker 0", substrate=CUDA),
    Word("WAIT_EPOCH", "the AT_EPOCH of the awaited rank at WAIT_SINCE", "call", "worker 0", substrate=CUDA),
    Word("WAIT_PROGRESS", "the AT_PROGRESS of the awaited rank at WAIT_SINCE", "commands", "worker 0", substrate=CUDA),
    Word("IN_FLIGHT", "a call has begun and not all of its workers have left", "flag", "by atomics", substrate=CUDA),
    Word(
        "UNBEGUN",
        "`begin` gave up its wait for the call in flight, so no kernel of the new call may touch anything",
        "flag",
        "the kernel `begin`",
        substrate=CUDA,
    ),
    Word("BEGAN", "when the call in flight began", "ns", "the kernel `begin`", substrate=CUDA),
    Word("LEFT", "workers that have left the call in flight", "workers", ATOMIC, substrate=CUDA),
]

TOKEN_BLOCK = 32  # tokens that one route or combine command takes
BACK_MOST = 16  # most records `back` in a command: a decision adds as many as fit, and the command's end adds one
# the number of lists of BATCH words in a command. The lists are: rows; outputs; hidden activations of a column-split
# run, or places in the store; scalars; places on the tape
LISTS = 5
SIZE_CLASSES = 10  # classes of puts by size: 256 bytes, 1 KiB, 4 KiB ...

PEER, SOURCE_EXPERT, COMPUTED, SLOT = ("world",), ("world", "max_computed"), ("max_computed",), ("copies",)

TABLES = [
    StateTable("region_to", PEER, "what this rank writes for a peer", "address", HOST),
    StateTable("region_from", PEER, "what a peer writes for this rank", "address", HOST),
    StateTable("stream_from", PEER, "region with the stream of a source, here or at a local rank", "address", HOST),
    StateTable("stream_first", PEER, "first rank whose rows go into the stream at a peer", "rank", HOST),
    StateTable("stream_end", PEER, "end of the ranks whose rows go into the stream at a peer", "rank", HOST),
    StateTable("line_from", PEER, "a peer's line of words, as workers read it", "address", HOST),
    StateTable("return_rows", PEER, "where outputs for a local peer go", "address", HOST),
    StateTable("rows_back", PEER, "where an owner's outputs for this rank arrive", "address", HOST),
    StateTable("remote", PEER, "the peer is on another node", "flag", HOST),
    StateTable("put_region", PEER, "where this rank's region lies in a remote peer's window", "bytes", HOST),
    StateTable("put_return_rows", PEER, "where the return rows lie in a remote peer's window", "bytes", HOST),
    StateTable("staged", PEER, "output rows that wait to be put to a remote source", "address", HOST),
    StateTable("out_ring", PEER, "ring rows of a bundle: at a local owner, or waiting to be put", "address", HOST),
    StateTable(
        "coded", PEER, "coded words put to a remote peer; for CUDA's proxy those that the GPU reads", "address", HOST
    ),
    StateTable("stream_bells", PEER, "bells of the streams at a rank of this node", "address", HOST, CPU),
    StateTable("stream_bell", PEER, "bell of a remote source's stream, here or at a local rank", "address", HOST, CPU),
    StateTable(
        "stream_answered", PEER, "digest of the accepted words of a remote source's stream", "address", HOST, CPU
    ),
    StateTable("put_bell", PEER, "where this rank's bell lies in a remote peer's window, 0: none", "bytes", HOST, CPU),
    StateTable("put_stream_bell", PEER, "where the bell of this rank's stream lies in that window", "bytes", HOST, CPU),
    StateTable("sent_rows", PEER, "ring rows used in the stream at a peer", "rows"),
    StateTable("sent_tiles", PEER, "tiles sent into the stream at a peer", "tiles"),
    StateTable("due_tiles", PEER, "tiles sent that an owner must return", "tiles"),
    StateTable("seen_credit", PEER, "credit last read from an owner", "rows"),
    StateTable("seen_tiles", PEER, "return records read from an owner", "tiles"),
    StateTable("extra", PEER, "return records that an owner owes beside those of tiles", "records"),
    StateTable("read_tiles", PEER, "tile records read from a source", "tiles"),
    StateTable("read_rows", PEER, "ring rows of the tiles read", "rows"),
    StateTable("free_tiles", PEER, "tiles of a source whose rows are free again", "tiles"),
    StateTable("freed_rows", PEER, "ring rows freed: the credit given", "rows"),
    StateTable("staged_tiles", PEER, "tiles up to which this rank has no output left to stage", "tiles"),
    StateTable("staged_rows", PEER, "ring rows of the tiles that staged_tiles counts", "rows"),
    StateTable("unsummed", PEER, "computed tiles of a source whose tokens' sums are not computed", "tiles"),
    StateTable("summing", PEER, "a worker adds up outputs for the source", "flag"),
    StateTable("put_rows", PEER, "ring rows that were put and flushed", "rows", WIRE),
    StateTable("put_tiles", PEER, "tiles that were put and flushed", "tiles", WIRE),
    StateTable("put_returned", PEER, "return records that were put and flushed", "tiles", WIRE),
    StateTable("put_credit", PEER, "credit that was put", "rows", WIRE),
    StateTable("put_time", PEER, "when the last batch was opened", "ns", WIRE),
    StateTable("open", PEER, "a batch is put and not flushed", "flag", WIRE),
    StateTable("open_epoch", PEER, "epoch whose announcement was put", "call", WIRE),
    StateTable("open_rows", PEER, "sent_rows of the open batch", "rows", WIRE),
    StateTable("open_tiles", PEER, "sent_tiles of the open batch", "tiles", WIRE),
    StateTable("open_returned", PEER, "returned of the open batch", "tiles", WIRE),
    StateTable("open_credit", PEER, "freed_rows of the open batch", "rows", WIRE),
    StateTable("open_bytes", PEER, "bytes of the open batch", "bytes", WIRE),
    StateTable("returned", PEER, "tiles returned to a source", "tiles"),
    StateTable("landed", ("world", "records", "landed_words"), "tiles that have landed and were read"),
    StateTable("count", SLOT, "pairs of each slot; during the sort, where the slot's next pair goes", "rows", PACK),
    StateTable("slot_from", SLOT, "first of a slot's packed rows that is in no bundle yet", "packed row"),
    StateTable("slot_to", SLOT, "end of a slot's packed rows in the claimed bundle", "packed row"),
    StateTable("slot_pair", SLOT, "number of a slot's first pair in the claimed bundle", "pair"),
    StateTable("offset", ("copies_and_end",), "first packed row of each slot; then how many rows", "packed row", PACK),
    StateTable("token", ("rows",), "token of a packed row; ~token if its output comes back in a sum", "token", PACK),
    StateTable("position", ("rows",), "packed row of a (token, choice) pair, -1: none", "packed row", PACK),
    StateTable("cursor", PEER, "first unsent packed row for the stream at a peer", "packed row"),
    StateTable("busy", PEER, "a worker writes into the stream at this peer", "flag"),
    StateTable("once_to", PEER, "tokens of this call cross once to an owner, in bundles", "flag", PACK),
    StateTable("once_from", PEER, "tokens of this call cross once from a source", "flag"),
    StateTable("verdict", PEER, "what a source's announcement led to, see codes.py", "verdict"),
    StateTable("rows_left", PEER, "announced rows of a source whose records are not read", "rows"),
    StateTable("first_packed", PEER, "first packed row of a source's rows for this rank", "packed row"),
    StateTable("tokens_of", PEER, "1 + tokens of a rank in the last call that it announced, 0: none", "tokens"),
    StateTable("version_of", PEER, "version of a rank's weights of this call's layer; ranks may differ", "changes"),
    StateTable("exchanges", PEER, "the source announced an exchange", "flag"),
    StateTable("store_at", PEER, "place in the store of a source's first row", "row"),
    StateTable("peer_status", PEER, "status that a peer announced or returned", "status"),
    StateTable("front", SOURCE_EXPERT, "first tile with pending rows; for own rows the first packed row", "tile"),
    StateTable("latest", SOURCE_EXPERT, "last tile that was read", "tile"),
    StateTable("taken", SOURCE_EXPERT, "rows of the front tile that are claimed", "rows"),
    StateTable("pending", SOURCE_EXPERT, "landed rows that are not claimed", "rows"),
    StateTable("rows_for", SOURCE_EXPERT, "rows that a source announced for a held expert", "rows"),
    StateTable("source_end", SOURCE_EXPERT, "value of read_rows when all announced rows have landed", "rows"),
    StateTable("target", SOURCE_EXPERT, "next row of an exchange's output", "row"),
    StateTable("expert_pending", COMPUTED, "landed rows of all sources that are not claimed", "rows"),
    StateTable("expert_remote", COMPUTED, "landed rows that are not claimed, without own rows", "rows"),
    StateTable("expert_coming", COMPUTED, "announced rows that have not landed", "rows"),
    StateTable("staying", COMPUTED, "own rows for an expert of a local peer that are computed here", "rows", PACK),
    StateTable("in_place", SLOT, "rows for the slot are computed in place", "flag", PACK),
    StateTable("work", PEER, "work that a local rank is expected to have, see staying.py", "", PACK),
    StateTable("block_left", ("blocks",), "rows that a block of tokens waits for", "rows", ATOMIC),
    StateTable("ready", ("blocks",), "queue of blocks to combine: 1 + block", "block", ATOMIC),
    StateTable("run", ("runs", "run_words"), "column-split runs"),
    StateTable("command", ("commands", "command_words"), "commands of workers, then of column-split runs", "", OWN),
    StateTable("counters", ("workers", "counter_words"), "counters of a call", "", OWN),
    StateTable("peer_wait", PEER, "idle time charged to a peer", "ns", ATOMIC),
    StateTable("rows_to", PEER, "rows for an owner", "rows", PACK),
    StateTable("tiles_to", PEER, "tiles sent to an owner in this call", "tiles"),
    StateTable("rows_from", PEER, "rows that a source announced for this rank", "rows"),
    StateTable("moved_to", PEER, "rows moved to an owner in this call", "rows"),
]

# ---- the words that a rank writes for a peer, on one line

LINE_WORDS = [
    Word("POISON", "0, or the failure: epoch, origin, cause; see poison.py", "", "the source"),
    Word("AT_EPOCH", "epoch that the rank is in, for its peers' timeouts", "call", "the source"),
    Word("AT_PROGRESS", "the rank's PROGRESS in that epoch; -1: outside a call", "commands", "the source"),
    Word("CREDIT", "rows freed of what the peer put here", "rows", "the source"),
    Word("RETURN_TAIL", "tiles returned to the peer", "tiles", "the source"),
    # words of a stream, from here on
    Word("ANNOUNCED", "last epoch announced", "call", "the source"),
    Word("TAIL", "tiles put into the peer's ring", "tiles", "the source"),
]
POSTED = Word("POSTED", "after the words for a remote peer: a sum of what was put to that peer", "", WIRE)
ENDED = Word("ENDED", "first word of the next line, for a local peer: last epoch that has ended", "call", "the source")

# ---- records


def _fields(*rows: tuple[Any, ...]) -> tuple[Field, ...]:
    """Fields at offsets 0, 1, ..., one for each row (name, meaning, unit)."""
    return tuple(Field(name, i, *rest) for i, (name, *rest) in enumerate(rows))


ANNOUNCE_WORDS = 14
_ARGUMENTS = (
    Field("kind", 0, "what the worker does, see codes.py", "kind"),
    Field("subject", 1, "first argument of every kind of command", "", "all"),
    Field("first", 1, "first token", "token", "ROUTE, COMBINE"),
    Field("owner", 1, "rank to which the rows go", "rank", "DISPATCH, BUNDLE"),
    Field("source", 1, "rank from which the rows came", "rank", "SUM"),
    Field("expert", 1, "expert, of those that this rank may compute", "expert", "EXPERT, LIST, SHARE"),
    Field("packed", 2, "first packed row", "packed row", "DISPATCH"),
    Field("token", 2, "first token, until the bundle is written", "token", "BUNDLE"),
    Field("crossing", 2, "rows that cross, after the bundle is written", "rows", "BUNDLE"),
    Field("tile", 2, "first tile of the bundle", "tile", "SUM"),
    Field("share", 2, "number of the share in its phase", "share", "SHARE"),
    Field("status", 3, "worst status of the tokens", "status", "ROUTE"),
    Field("owner_expert", 3, "expert among those of the owner", "expert", "DISPATCH"),
    Field("end", 3, "first token after the bundle", "token", "BUNDLE"),
    Field("phase", 3, "phase of the run, see codes.py", "phase", "SHARE"),
    Field("rows", 4, "number of rows, tokens or pairs", "rows"),
    Field("parts", 5, "number of parts", "parts", "EXPERT"),
    Field("tiles", 5, "number of tiles; of a bundle it is known after the bundle is written", "tiles", "BUNDLE, SUM"),
    Field("peer", 6, "rank that the idle time is charged to", "rank"),
    Field("run", 7, "column-split run at which the worker is", "run"),
    Field("shares", 8, "shares that the worker has taken", "shares"),
    Field("opened", 9, "RUNS_OPENED when the worker last found no share", "phases"),
    Field("backs", 10, "records `back` that are not counted yet; they follow", "records"),
)
COMMAND_HEAD = 11  # words of a command before its records `back`

RECORDS = [
    Record("announced", ANNOUNCE_WORDS, 8, "an announcement; rows of each expert follow", "the source", _fields(
        ("object", "number of the layer or exchange"), ("mode", "kind of call, see codes.py", "mode"),
        ("layer", "layer, 0 for an exchange"), ("row_bytes", "bytes of a row", "bytes"),
        ("top_k", "choices of a token", "choices"), ("scalars", "scalars travel beside rows", "flag"),
        ("placement", "version of the source's placement"),
        ("status", "OK, or why the source refuses", "status"), ("rows", "rows of the stream", "rows"),
        ("first", "first packed row of these rows", "packed row"), ("tokens", "tokens of the source", "tokens"),
        ("version", "version of the source's weights of the layer", "changes"),
        ("tape", "in a backward call the number of the tape and the number of pieces"),
        ("once", "tokens cross once: rows are in bundles, with an index", "flag"))),
    Record("record", 5, 8, "a tile record", "the source", _fields(
        ("expert", "expert among those of the owner", "expert"), ("rows", "rows of the tile", "rows"),
        ("packed", "first packed row", "packed row"),
        ("bundle", "ring rows of the bundle that this tile ends, 0: the bundle goes on", "rows"),
        ("owner", "rank that the tile is for", "rank"))),
    Record("returned", 5, 8, "a return record", "the owner", _fields(
        ("packed", "first packed row", "packed row"), ("rows", "rows that came back", "rows"),
        ("status", "OK, or why no rows came back", "status"),
        ("staged", "pair whose staged row comes first, or `codes.UNSTAGED`", "pair"),
        ("kept", "what the owner keeps of the source's rows, see primitives/taped.py"))),
    Record("taped", 3, 8, "a tape's part for one rank", LOCK, _fields(
        ("at", "where that rank's first row lies here", "address"), ("kept", "what is kept here of that rank's rows"),
        ("there", "what that rank keeps of this rank's rows"))),
    Record("landed", 6, 1, "a tile that has landed and was read, as its owner records it", LOCK, _fields(
        ("row", "number of the tile's first ring row", "row"), ("rows", "rows of the tile", "rows"),
        ("packed", "first packed row", "packed row"), ("left", "rows that are not computed", "rows"),
        ("last", "ring rows of the bundle that this tile ends, 0: the bundle goes on", "rows"),
        ("next", "next tile of the same expert", "tile"))),
    Record("foreign", 8, 1, "an expert of a local peer that this rank may compute", HOST, _fields(
        ("slot", "the expert's slot", "slot"), ("owner", "rank that holds it", "rank"),
        ("up", "up projection", "address"), ("gate", "gate projection, 0: none", "address"),
        ("down", "down projection", "address"), ("up_bias", "bias of `up`, 0: none", "address"),
        ("gate_bias", "bias of `gate`, 0: none", "address"), ("down_bias", "bias of `down`, 0: none", "address"))),
    Record("command", COMMAND_HEAD, 1, "a command; its records `back`, lists and parts follow", OWN, _ARGUMENTS),
    Record("back", 2, 1, "own rows that came back, one after another", OWN, _fields(
        ("packed", "first packed row", "packed row"), ("rows", "number of rows", "rows"))),
    Record("part", 5, 1, "a part of a run: rows of one source", OWN, _fields(
        ("source", "rank from which the rows come", "rank"),
        ("where", "number of the rows' tile; for own rows the first packed row", "tile"),
        ("rows", "number of rows", "rows"),
        ("first", "number of the first row in the source's stream; for own rows the packed row", "row"),
        ("output", "where the first output goes", "address"))),
    Record("run", 32, 1, "a column-split run; three of its words are atomic, each on a line of its own", ATOMIC, (
        Field("next", 0, "next share to take, counted since the engine was made", "shares"),
        Field("limit", 8, "shares that may be taken", "shares"),
        Field("base", 9, "first share of this run", "shares"),
        Field("done", 16, "shares that are done", "shares"),
        Field("taken", 24, "a run has this number", "flag"))),
    Record("event", 5, 8, "an event of the timeline", OWN, _fields(
        ("kind", "kind of the command", "kind"), ("start", "when it began", "ns"), ("end", "when it ended", "ns"),
        ("subject", "token, owner, expert or awaited rank"), ("rows", "number of rows", "rows"))),
    Record("coded", 2, 8, "a word as MPI puts it", "the source", _fields(
        ("value", "the word"), ("complement", "its complement"))),
    Record("puts", 3, 1, "puts of one size class", OWN, _fields(
        ("count", "number of puts", "puts"), ("bytes", "bytes put", "bytes"), ("time", "time of the puts", "ns"))),
]  # fmt: skip


def record(name: str) -> Record:
    """A record by name."""
    return next(r for r in RECORDS if r.name == name)


# ---- a region: what one rank, its only writer, writes for a peer. See layout.py


@dataclass(frozen=True)
class RegionPart:
    """A part of a region. entries: how many entries it has. entry: what an entry is.

    layout.py has the functions `{address}_to` and `{address}_from`.
    """

    address: str
    entries: str
    entry: str
    meaning: str


REGION = [
    RegionPart("word", "line words", "8 bytes", "the line of words; then ENDED on a line of its own"),
    RegionPart("return_record", "records", "returned", "return records"),
    RegionPart("announcement", "2", "announcement", "announcements, by the parity of the epoch"),
    RegionPart("record", "records", "record", "tile records"),
    RegionPart("index", "ring rows", "8 bytes", "for each pair the place of its row in the ring, and its scalar"),
    RegionPart(
        "link", "links", "8 bytes", "as many as ring rows with two levels, else none: the pair before each pair"
    ),
    RegionPart("ring_row", "ring rows", "stride", "rows; a local peer's ring may have fewer"),
    RegionPart(
        "mark", "sources", "8 bytes", "for each remote source, at a local peer, the pair up to which outputs are staged"
    ),
]


# ---- counters of a worker: nanoseconds, then {count, bytes, nanoseconds} of its puts by size class

COUNTERS = [
    Word("N_ROUTE", "routing", "ns", OWN),
    Word("N_DISPATCH", "dispatching", "ns", OWN),
    Word("N_EXPERT", "running experts", "ns", OWN),
    Word("N_COMBINE", "combining", "ns", OWN),
    Word("N_IDLE", "idle", "ns", OWN),
    Word("N_PACK", "packing, and all else", "ns", OWN),
    Word("N_EVENTS", "events kept", "events", OWN),
    Word("N_WIRE", "at the wire", "ns", OWN),
    Word("N_PUBLISH", "publishing, waits for the lock included, if kernels count it", "ns", OWN, substrate=CUDA),
    Word("N_LOCK", "waiting for the lock to publish, if kernels count it", "ns", OWN, substrate=CUDA),
    Word("N_POLLS", "idle polls, if kernels count them", "polls", OWN, substrate=CUDA),
    Word("N_LOCAL_PUTS", "puts in shared memory, by size class", "", OWN),
]
N_REMOTE_PUTS = len(COUNTERS) - 1 + record("puts").words * SIZE_CLASSES  # puts by MPI follow, by size class
COUNTER_WORDS = -(-(N_REMOTE_PUTS + record("puts").words * SIZE_CLASSES) // 8) * 8  # whole lines

# ---- indices that do not follow from the fields of a record or the shape of a table


@dataclass(frozen=True)
class Index:
    """A generated function: its arguments, and the expression that it returns, which uses the names of words.py."""

    name: str
    arguments: str
    value: str
    meaning: str


INDICES = [
    Index("slot_of", "job, expert", "job[SLOT_OF] + expert", "Word of the job: the slot that gets an expert's rows."),
    Index("foreign", "job, expert", "job[FOREIGN] + FOREIGN_WORDS * (expert - job[HELD])",
          "Record of an expert that a local peer holds. In the job the first such expert is number HELD."),
    Index("slot_start", "job, rank", "job[SLOT_START] + rank", "Word of the job: first slot of a rank."),
    Index(
        "source_expert",
        "job, source, expert",
        "source * job[MAX_COMPUTED] + expert",
        "Number of a source's expert in tables by source and expert.",
    ),
    Index("landed", "job, source, tile",
          "job[T_LANDED] + LANDED_WORDS * (source * job[RING_RECORDS] + tile % job[RING_RECORDS])",
          "Record of a source's tile that has landed."),
    Index("run", "job, number", "job[T_RUN] + RUN_WORDS * number", "The column-split run that has this number."),
    Index("command", "job, worker", "job[T_COMMAND] + job[T_COMMAND_STEP] * worker", "Command of a worker."),
    Index("run_command", "job, number", "job[T_COMMAND] + job[T_COMMAND_STEP] * (job[ALL_WORKERS] + number)",
          "Command of a column-split run."),
    Index("back", "command, i", "command + COMMAND_HEAD + BACK_WORDS * i", "Record `back` i of a command."),
    Index("row_list", "command", "command + COMMAND_LISTS", "List of a command: addresses of its rows."),
    Index("output_list", "job, command", "command + COMMAND_LISTS + job[BATCH]",
          "List of a command: addresses of its output rows."),
    Index("hidden_list", "job, command", "command + COMMAND_LISTS + 2 * job[BATCH]",
          "List of a command: addresses of rows of hidden activations."),
    Index("place_list", "job, command", "command + COMMAND_LISTS + 2 * job[BATCH]",
          "List of a command with a store: addresses of its rows in the store."),
    Index("scalar_list", "job, command", "command + COMMAND_LISTS + 3 * job[BATCH]",
          "List of a command: scalars that came with its rows; later those that go back."),
    Index("tape_list", "job, command", "command + COMMAND_LISTS + 4 * job[BATCH]",
          "List of a command with a tape: places of its rows on the tape, see primitives/taped.py."),
    Index("taped", "job, peer", "job[TAPED] + 8 * TAPED_WORDS * peer", "Record of a rank in the table of a tape."),
    Index("part", "job, command, i", "command + COMMAND_LISTS + LISTS * job[BATCH] + PART_WORDS * i",
          "Part i of a command."),
    Index("counter", "job, worker, name", "job[T_COUNTERS] + COUNTER_WORDS * worker + name", "Counter of a worker."),
    Index("puts", "counter, size", "counter + PUTS_WORDS * size", "Puts of class `size`; `counter`: those of class 0."),
    Index("announced_count", "a, expert", "a + 8 * (ANNOUNCED_WORDS + expert)",
          "Address in an announcement: rows of an expert."),
    Index("event", "job, worker, n", "job[EVENTS] + 8 * EVENT_WORDS * (worker * job[EVENTS_MAX] + n)",
          "Address of event n of a worker."),
    Index("coded_word", "a, word", "a + 8 * CODED_WORDS * word", "Address of a coded word; `a`: of the first one."),
]  # fmt: skip


def job_words() -> list[Word]:
    """All words of a job in order: scalars, starts of the state's tables, the job's own tables, words for checks."""
    starts = []
    for table in TABLES:
        starts.append(Word(table.start, f"where table `{table.name}` starts in the state", "word", HOST, ENGINE))
        if table.name == "command":
            starts.append(COMMAND_STEP)
    return [*JOB_SCALARS, *starts, *JOB_TABLES, *JOB_CHECKS]


def sizes(*, tokens: int, top_k: int, batch: int, **given: int) -> dict[str, int]:
    """The sizes of tables in a configuration.

    given: sizes that do not follow from others. world: ranks of the group. max_computed: most experts that a rank may
    compute. copies: slots, that is copies of experts on all ranks. records: records of an ordered pair of ranks, ring
    rows + 1. rows: return rows, tokens * k at most. workers: workers of the rank. runs: column-split runs at once.
    """
    # a combine command lists the rows of its tokens' choices
    lists = max(batch * (LISTS + record("part").words), min(TOKEN_BLOCK, tokens) * top_k)
    command = COMMAND_HEAD + record("back").words * BACK_MOST + lists
    return given | {
        "copies_and_end": given["copies"] + 1,
        "blocks": -(-tokens // TOKEN_BLOCK) + 1,  # blocks of TOKEN_BLOCK tokens, and the end of their queue
        "commands": given["workers"] + given["runs"],
        "landed_words": record("landed").words,
        "run_words": record("run").words,
        "command_words": -(-command // 8) * 8,  # whole lines
        "counter_words": COUNTER_WORDS,
    }

"""Where everything lies: the windows a rank exposes, and the tables of its state. Sizes by formula, nothing grows.

A peer is *near* where it can store into this rank's memory (transport shm), *far* where MPI must put (transport rma). A
rank has a window for the near and one for the far. Each holds return rows, then a region for each peer that may write
there:

    return_rows[N]                     own rows come back here, as wide as the call's rows; written by their owners
    pair[p]                            written by p alone

A pair's region, R ring rows (everything on lines of 64 bytes of its own, so that no two writers share one):

    words                              one line: see fields.py
    announcement[epoch parity]         8 words + a word per local expert, in whole lines
    records[R + 1]                     {local expert, rows, first packed row, rows of the ring that its block ends}
    return_records[R + 1]              {first packed row, rows, status, first staged row or -1}
    ring[R]                            rows, `stride` bytes each
    index[R], far regions only         for each row of a tile the ring row it is: a token crosses once
    coded[7], far regions only         the words once more as MPI puts them, {value, complement}

Beside its windows a rank keeps, for each far peer, an *outbox* laid out like a region, which MPI puts from, words that
have arrived, and R staged output rows. A card may keep the rows of both in its own memory (T_OUT_RING, T_STAGE).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..host.nodes import Nodes
from ..primitives.compile import jit
from . import fields as f

LINE = 64
WORD = 8
RECORD_BYTES = 32
RETURN_RECORD_BYTES = 32
CODED_BYTES = 128  # 16 for each word
RING_BUDGET = 64 << 20  # default bytes of ring a rank exposes, over all its sources


def lines(nbytes: int) -> int:
    """`nbytes` rounded up to whole lines."""
    return -(-nbytes // LINE) * LINE


@dataclass(frozen=True)
class Shape:
    """What sizes an engine: the largest of what its users need."""

    world: int
    ring_rows: int
    stride: int  # bytes of a row slot, a multiple of 64
    return_rows: int
    max_local: int  # most experts any rank holds
    top_k: int = 1
    experts: int = 1
    max_tokens: int = 1
    return_bytes: int = 0  # room for return rows; 0: return_rows * stride

    def union(self, other: Shape) -> Shape:
        """The smallest shape that serves both."""
        both = Shape(
            self.world,
            *(
                max(getattr(self, n), getattr(other, n))
                for n in ("ring_rows", "stride", "return_rows", "max_local", "top_k", "experts", "max_tokens")
            ),
        )
        room = max(self.returns, other.returns)  # not the most rows times the widest: nobody needs that
        rows = min(both.ring_rows, ring_rows(both.world, both.stride, both.ring_rows))  # wider rows: fewer
        plain = room == both.return_rows * both.stride  # equal shapes compare equal: nothing is allocated anew
        return replace(both, ring_rows=rows, return_bytes=0 if plain else room)

    @property
    def returns(self) -> int:
        """Bytes of return rows."""
        return self.return_bytes or self.return_rows * self.stride

    @property
    def slots(self) -> int:
        """Record slots a pair: tiles sent and not seen returned, and one more for an exchange's last record."""
        return self.ring_rows + 1


@dataclass(frozen=True)
class PairLayout:
    """Byte offsets in the region that one rank writes at another; the words come first."""

    announce: int
    announce_step: int
    records: int
    return_records: int
    ring: int
    index: int
    coded: int
    far_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of a near region."""
        return self.index

    @classmethod
    def of(cls, s: Shape) -> PairLayout:
        announce = LINE
        step = lines(WORD * (f.ANNOUNCE_WORDS + s.max_local))
        records = announce + 2 * step
        return_records = records + lines(s.slots * RECORD_BYTES)
        ring = return_records + lines(s.slots * RETURN_RECORD_BYTES)
        index = ring + s.ring_rows * s.stride
        coded = index + lines(WORD * s.ring_rows)
        return cls(announce, step, records, return_records, ring, index, coded, coded + CODED_BYTES)

    def fill(self, job) -> None:
        """Write the offsets into a job."""
        job[f.P_ANNOUNCE : f.P_CODED + 1] = (
            self.announce,
            self.announce_step,
            self.records,
            self.return_records,
            self.ring,
            self.index,
            self.coded,
        )


def near_region(s: Shape, nodes: Nodes, rank: int, source: int) -> int:
    """Byte offset, in the near window of `rank`, of what its near peer `source` writes there."""
    return lines(s.returns) + PairLayout.of(s).nbytes * nodes.local(rank).index(source)


def far_region(s: Shape, nodes: Nodes, rank: int, source: int) -> int:
    """Byte offset, in the far window of `rank`, of what its far peer `source` puts there."""
    return lines(s.returns) + PairLayout.of(s).far_bytes * nodes.remote(rank).index(source)


def near_bytes(s: Shape, nodes: Nodes, rank: int) -> int:
    """Bytes of the near window of `rank`."""
    return lines(s.returns) + PairLayout.of(s).nbytes * len(nodes.local(rank))


def far_bytes(s: Shape, nodes: Nodes, rank: int) -> int:
    """Bytes of the far window of `rank`; none without far peers."""
    far = len(nodes.remote(rank))
    return far and lines(s.returns) + PairLayout.of(s).far_bytes * far


def outbox_bytes(s: Shape) -> int:
    """Bytes a rank keeps beside its windows for one far peer: outbox, arrived words, staged output rows."""
    return PairLayout.of(s).far_bytes + LINE + CODED_BYTES + s.ring_rows * s.stride


def rank_bytes(s: Shape, nodes: Nodes, rank: int = 0) -> int:
    """All of it: near window, far window, outboxes."""
    return near_bytes(s, nodes, rank) + far_bytes(s, nodes, rank) + outbox_bytes(s) * len(nodes.remote(rank))


def ring_rows(world: int, stride: int, most: int) -> int:
    """Default ring rows: all that one source can send in a call, within a budget of bytes for all sources."""
    affordable = max(64, RING_BUDGET // (max(1, world - 1) * stride))
    return max(1, min(most, affordable))


class StateLayout:
    """Where each table of the state starts, and how long the state is. runs: that workers may share at once."""

    def __init__(self, s: Shape, workers: int, batch: int, runs: int = 1) -> None:
        rows = s.return_rows
        blocks = -(-s.max_tokens // f.TOKEN_BLOCK) + 1
        pairs = s.world * s.max_local
        # a combine command lists the rows of its tokens' choices
        lists = max(batch * (f.LISTS + f.PART_WORDS), min(f.TOKEN_BLOCK, s.max_tokens) * s.top_k)
        self.command_words = -(-(f.C_LISTS + lists) // 8) * 8
        self.sizes = {
            **dict.fromkeys(range(f.T_TO, f.T_RETURNED + 1), s.world),
            **dict.fromkeys(range(f.T_SLOT_FROM, f.T_SLOT_PAIR + 1), s.experts),
            f.T_RECORD: s.world * s.slots * f.RECORD_WORDS,
            f.T_COUNT: s.experts,
            f.T_OFFSET: s.experts + 1,
            f.T_TOKEN: rows,
            f.T_POSITION: rows,
            **dict.fromkeys(range(f.T_CURSOR, f.T_STATUS + 1), s.world),
            **dict.fromkeys(range(f.T_NEXT, f.T_TARGET + 1), pairs),
            **dict.fromkeys(range(f.T_EXPERT_PENDING, f.T_EXPERT_COMING + 1), s.max_local),
            f.T_BLOCK_LEFT: blocks,
            f.T_READY: blocks,
            f.T_RUN: runs * f.RUN_WORDS,
            f.T_COMMAND: (workers + runs) * self.command_words,
            f.T_COUNTERS: workers * f.COUNTER_WORDS,
            **dict.fromkeys(range(f.T_PEER_WAIT, f.T_MOVED_TO + 1), s.world),
        }
        self.starts = {}
        at = lines(f.STATE_WORDS * WORD) // WORD
        for name, size in self.sizes.items():
            self.starts[name] = at
            at += -(-size // 8) * 8
        self.words = at

    def fill(self, job) -> None:
        """Write the starts into a job."""
        for name, start in self.starts.items():
            job[name] = start
        job[f.T_COMMAND_STEP] = self.command_words


# ---------------------------------------------------------------- addresses, for the steps


@jit
def word_to(job, st, peer, word):
    """Address of a word that this rank writes for `peer`."""
    return st[job[f.T_TO] + peer] + WORD * word


@jit
def word_from(job, st, peer, word):
    """Address of a word that `peer` writes for this rank."""
    return st[job[f.T_WORDS] + peer] + WORD * word


@jit
def announcement_to(job, st, peer, epoch):
    """Address of this rank's announcement of `epoch` at `peer`."""
    return st[job[f.T_TO] + peer] + job[f.P_ANNOUNCE] + job[f.P_ANNOUNCE_STEP] * (epoch % 2)


@jit
def announcement_from(job, st, peer, epoch):
    """Address of `peer`'s announcement of `epoch` here."""
    return st[job[f.T_FROM] + peer] + job[f.P_ANNOUNCE] + job[f.P_ANNOUNCE_STEP] * (epoch % 2)


@jit
def record_to(job, st, owner, tile):
    """Address of the record of this rank's tile number `tile` at `owner`."""
    return st[job[f.T_TO] + owner] + job[f.P_RECORDS] + RECORD_BYTES * (tile % job[f.SLOTS])


@jit
def record_from(job, st, source, tile):
    """Address of the record of `source`'s tile number `tile` here."""
    return st[job[f.T_FROM] + source] + job[f.P_RECORDS] + RECORD_BYTES * (tile % job[f.SLOTS])


@jit
def return_record_to(job, st, source, tile):
    """Address of the record of the tile number `tile` that this rank returns to `source`."""
    return st[job[f.T_TO] + source] + job[f.P_RETURN_RECORDS] + RETURN_RECORD_BYTES * (tile % job[f.SLOTS])


@jit
def return_record_from(job, st, owner, tile):
    """Address of the record of the tile number `tile` that `owner` has returned."""
    return st[job[f.T_FROM] + owner] + job[f.P_RETURN_RECORDS] + RETURN_RECORD_BYTES * (tile % job[f.SLOTS])


@jit
def ring_row_to(job, st, owner, row):
    """Address of row number `row`, counted since the engine began, of this rank's ring at `owner`."""
    return st[job[f.T_TO] + owner] + job[f.P_RING] + job[f.STRIDE] * (row % job[f.RING_ROWS])


@jit
def outbox_row_to(job, st, owner, row):
    """Address of the same row, of a far owner's ring, where it waits to be put."""
    return st[job[f.T_OUT_RING] + owner] + job[f.STRIDE] * (row % job[f.RING_ROWS])


@jit
def ring_row_from(job, st, source, row):
    """Address of row number `row`, counted since the engine began, of `source`'s ring here."""
    return st[job[f.T_FROM] + source] + job[f.P_RING] + job[f.STRIDE] * (row % job[f.RING_ROWS])


@jit
def return_row(job, st, source, packed):
    """Address where the output for `source`'s packed row `packed` goes."""
    return st[job[f.T_RETURNS] + source] + job[f.RETURN_STRIDE] * packed


@jit
def index_to(job, st, owner, pair):
    """Address of the index entry of this rank's pair number `pair`, counted since the engine began, for a far owner."""
    return st[job[f.T_TO] + owner] + job[f.P_INDEX] + WORD * (pair % job[f.RING_ROWS])


@jit
def index_from(job, st, source, pair):
    """Address of the index entry of pair number `pair` of a far source."""
    return st[job[f.T_FROM] + source] + job[f.P_INDEX] + WORD * (pair % job[f.RING_ROWS])


@jit
def staged_row(job, st, source, pair):
    """Address where the output for pair number `pair` of a far source waits to be put."""
    return st[job[f.T_STAGE] + source] + job[f.RETURN_STRIDE] * (pair % job[f.RING_ROWS])


@jit
def row_back(job, st, packed):
    """Address where the output of this rank's packed row comes back to: near and far owners write different windows."""
    owner = job[f.RANK]
    if job[f.FAR] != 0:
        low, high = 0, job[f.WORLD]
        while high - low > 1:
            middle = (low + high) // 2
            if st[job[f.T_OFFSET] + job[job[f.SLOT_START] + middle]] <= packed:
                low = middle
            else:
                high = middle
        owner = low
    return st[job[f.T_BACK] + owner] + job[f.RETURN_STRIDE] * packed

"""Where everything lies: the window a rank exposes, and the tables of its state. Sizes by formula, nothing grows.

A rank's window, p a peer, R ring rows, N return rows (lines are 64 bytes, so that no two writers share one):

    poison[p], progress[p]             one line each     written by p
    announcement[p][epoch parity]      8 words + a word per local expert, in whole lines     written by p
    tail[p]                            tiles p has put here
    credit[p]                          rows p has freed of what this rank put there
    return_tail[p]                     tiles p has returned
    records[p][R + 1]                  {local expert, rows, first packed row, -}
    return_records[p][R + 1]           {first packed row, rows, status, -}
    ring[p != rank][R]                 rows from p, `stride` bytes each
    return_rows[N]                     this rank's own rows come back here, as wide as the call's rows
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..compile import jit
from . import fields as f

LINE = 64
WORD = 8
RECORD_BYTES = 32
RETURN_RECORD_BYTES = 32
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
class WindowLayout:
    """Byte offsets in every rank's window."""

    poison: int
    progress: int
    announce: int
    announce_step: int
    tail: int
    credit: int
    return_tail: int
    records: int
    return_records: int
    ring: int
    return_rows: int
    nbytes: int

    @classmethod
    def of(cls, s: Shape) -> WindowLayout:
        step = lines(WORD * (f.ANNOUNCE_WORDS + s.max_local))
        sizes = (
            s.world * LINE,
            s.world * LINE,
            2 * s.world * step,
            s.world * LINE,
            s.world * LINE,
            s.world * LINE,
            lines(s.world * s.slots * RECORD_BYTES),
            lines(s.world * s.slots * RETURN_RECORD_BYTES),
            (s.world - 1) * s.ring_rows * s.stride,
            s.returns,
        )
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + size)
        poison, progress, announce, tail, credit, rtail, records, rrecords, ring, returns, end = starts
        return cls(poison, progress, announce, step, tail, credit, rtail, records, rrecords, ring, returns, lines(end))

    def fill(self, job) -> None:
        """Write the offsets into a job."""
        job[f.W_POISON : f.W_RETURN_ROWS + 1] = (
            self.poison,
            self.progress,
            self.announce,
            self.announce_step,
            self.tail,
            self.credit,
            self.return_tail,
            self.records,
            self.return_records,
            self.ring,
            self.return_rows,
        )


def ring_rows(world: int, stride: int, most: int) -> int:
    """Default ring rows: all that one source can send in a call, within a budget of bytes for all sources."""
    affordable = max(64, RING_BUDGET // (max(1, world - 1) * stride))
    return max(1, min(most, affordable))


class StateLayout:
    """Where each table of the state starts, and how long the state is."""

    def __init__(self, s: Shape, workers: int, batch: int) -> None:
        rows = s.return_rows
        blocks = -(-s.max_tokens // f.TOKEN_BLOCK) + 1
        pairs = s.world * s.max_local
        self.command_words = -(-(f.C_LISTS + batch * (2 + f.PART_WORDS)) // 8) * 8
        self.sizes = {
            **dict.fromkeys(range(f.T_BASE, f.T_RETURNED + 1), s.world),
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
            f.T_COMMAND: (workers + 1) * self.command_words,
            f.T_COUNTERS: workers * f.COUNTER_WORDS,
            **dict.fromkeys(range(f.T_PEER_WAIT, f.T_ROWS_FROM + 1), s.world),
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
def tail_word(job, st, owner, source):
    """Address of: tiles `source` has put into `owner`'s ring."""
    return st[job[f.T_BASE] + owner] + job[f.W_TAIL] + LINE * source


@jit
def credit_word(job, st, source, owner):
    """Address of: rows `owner` has freed of what `source` put there; lies with the source."""
    return st[job[f.T_BASE] + source] + job[f.W_CREDIT] + LINE * owner


@jit
def return_tail_word(job, st, source, owner):
    """Address of: tiles `owner` has returned to `source`."""
    return st[job[f.T_BASE] + source] + job[f.W_RETURN_TAIL] + LINE * owner


@jit
def announcement(job, st, target, source, epoch):
    """Address of `source`'s announcement for `epoch` at `target`."""
    return st[job[f.T_BASE] + target] + job[f.W_ANNOUNCE] + job[f.W_ANNOUNCE_STEP] * (2 * source + epoch % 2)


@jit
def record(job, st, owner, source, tile):
    """Address of the record of `source`'s tile number `tile` at `owner`."""
    return st[job[f.T_BASE] + owner] + job[f.W_RECORDS] + RECORD_BYTES * (source * job[f.SLOTS] + tile % job[f.SLOTS])


@jit
def return_record(job, st, source, owner, tile):
    """Address of the record of the tile number `tile` that `owner` returned to `source`."""
    slot = owner * job[f.SLOTS] + tile % job[f.SLOTS]
    return st[job[f.T_BASE] + source] + job[f.W_RETURN_RECORDS] + RETURN_RECORD_BYTES * slot


@jit
def ring_row(job, st, owner, source, row):
    """Address of row number `row`, counted since the engine began, of `source`'s ring at `owner`; none of its own."""
    ring = source - 1 if source > owner else source
    return (
        st[job[f.T_BASE] + owner] + job[f.W_RING] + job[f.STRIDE] * (ring * job[f.RING_ROWS] + row % job[f.RING_ROWS])
    )


@jit
def return_row(job, st, source, packed):
    """Address where the output for `source`'s packed row `packed` goes."""
    return st[job[f.T_BASE] + source] + job[f.W_RETURN_ROWS] + job[f.RETURN_STRIDE] * packed


@jit
def poison_word(job, st, target, source):
    """Address of the poison {epoch, origin, cause} that `source` writes at `target`."""
    return st[job[f.T_BASE] + target] + job[f.W_POISON] + LINE * source


@jit
def progress_word(job, st, target, source):
    """Address of the {epoch, phase} that `source` publishes at `target`; phase -1 is outside a call."""
    return st[job[f.T_BASE] + target] + job[f.W_PROGRESS] + LINE * source

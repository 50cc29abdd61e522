"""Where everything lies in the windows that a rank exposes, and in its state. Formulas give all sizes; nothing grows.

A peer is *local* if it can store into this rank's memory (transport shm or ipc), and *remote* if MPI must put for it. A
rank has one window for its local peers and one for its remote peers. With one level each holds return rows, then a
region for each peer. With two levels only the window for remote peers has return rows, where local peers store too:

    return_rows[N]                     outputs of own tokens, as wide as the call's rows; written by the experts' owners
    region[p]                          written by p alone, except staged rows

A region whose stream has a ring of R rows has these parts. Each begins on a line of 64 bytes, so that no two writers
share a line:

    words                              two lines, see schema.LINE_WORDS and ENDED. In a remote region their place is
                                       taken by the words in the form that MPI puts, {value, complement}
    return_records[R + 1]              return records
    announcement[epoch parity]         record `announced` + a word per named expert, in whole lines
    records[R + 1]                     tile records
    index[R]                           for each pair the place of its row, and its scalar, see scalars.py
    links[R], two levels only          for each pair the pair before it of the same token, see sums.py
    ring[R]                            rows, `stride` bytes each; a local peer's ring may have fewer, see `local_rows`
    staged[R], two levels only         output rows that wait to be put to the source, `stride` bytes each

With two levels the region of a local peer ends with a word for each source, `marks`, see sums.py. All of a remote
region but words and return records is a *stream*: what its writer puts for all ranks of this node, which they all read
here. Ranks of the node stage their outputs beside it. A remote peer whose rows lie at another rank of this node has a
short region here, which ends before the announcements (`Nodes.stream`). Behind the regions of remote peers lie bells, a
byte each: one from each rank, then one for each stream that lies here, see bells.py.

For each remote peer a rank also keeps an *outbox*, which is laid out like a region, and from which MPI puts. Beside it
the rank keeps the words that have arrived, and at one level R staged output rows. A GPU may keep the outbox's ring and
the staged rows in its own memory (tables `out_ring`, `staged`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from kernel_cache.compile import jit

from ..host.nodes import Nodes
from ..primitives.buffers import LINE as LINE
from . import schema, words

WORD = 8
RECORD_BYTES = WORD * words.RECORD_WORDS
RETURN_RECORD_BYTES = WORD * words.RETURNED_WORDS
CODED_BYTES = 2 * LINE  # the words of a line in the form that MPI puts
assert WORD * words.CODED_WORDS * (words.LINE_WORDS + 1) <= CODED_BYTES  # bells are put from one more word
RING_BUDGET = 192 << 20  # default bytes of all places for rows: rings, their copies in outboxes, staged outputs
ALONE = 1 << 40  # in the table `token`, added to the token of a packed row that is alone in a call with sums
PLACES_EACH = 3  # places for each row of a remote peer's ring: in the ring, in the outbox, and for the staged output
LEAST_RING = 64  # least rows of a ring, even beyond RING_BUDGET; a ring is smaller only if calls have fewer rows


def lines(nbytes: int) -> int:
    """`nbytes` rounded up to whole lines."""
    return -(-nbytes // LINE) * LINE


@dataclass(frozen=True)
class EngineShape:
    """The sizes of an engine. Each is the largest size that any user of the engine needs."""

    world: int
    ring_rows: int
    stride: int  # bytes of a row slot, a multiple of 64
    return_rows: int
    max_held: int  # most experts any rank holds
    top_k: int = 1
    experts: int = 1
    max_tokens: int = 1
    foreign: int = 0  # most experts of local peers that a rank may compute
    return_bytes: int = 0  # size of the return rows; 0: return_rows * stride
    announced: int = 0  # most experts that an announcement names; 0: max_held
    places: int = 0  # most places for rows that a rank has for each row of a ring, see `places`; 0: as with one level
    local_rows: int = 0  # rows in the ring of a local peer; 0: ring_rows
    local_peers: int = 0  # most local peers of a rank, if their rings have local_rows rows

    def union(self, other: EngineShape) -> EngineShape:
        """The smallest shape that is large enough for both."""
        names = ("ring_rows", "stride", "return_rows", "max_held", "top_k", "experts", "max_tokens", "foreign")
        added = ("announced", "places", "local_peers")
        both = EngineShape(self.world, **{n: max(getattr(self, n), getattr(other, n)) for n in (*names, *added)})
        nbytes = max(self.returns, other.returns)  # one user may need more rows, and the other wider rows
        # fewer wide rows fit RING_BUDGET. But a ring must hold all rows of a token, because a bundle may have them all
        local = max(self.local_ring, other.local_ring) if self.local_rows or other.local_rows else 0
        if local:
            local = min(local, max(both.top_k, ring_rows(PLACES_EACH * (self.world - 1), both.stride, local)))
        affordable = ring_rows(both.most_places, both.stride, both.ring_rows, both.local_peers * local)
        rows = min(both.ring_rows, max(both.top_k, affordable))
        plain = nbytes == both.return_rows * both.stride  # stored as 0, so that equal shapes compare equal
        return replace(both, ring_rows=rows, local_rows=local, return_bytes=0 if plain else nbytes)

    @property
    def returns(self) -> int:
        """Bytes of return rows."""
        return self.return_bytes or self.return_rows * self.stride

    @property
    def most_places(self) -> int:
        """The most places for rows that a rank has for each row of a ring."""
        return self.places or PLACES_EACH * (self.world - 1)

    @property
    def local_ring(self) -> int:
        """Rows in the ring of a local peer, never more than in other rings."""
        return min(self.local_rows or self.ring_rows, self.ring_rows)

    @property
    def ring_records(self) -> int:
        """How many records a ring has: one for each tile sent and not seen returned, and one for an exchange."""
        return self.ring_rows + 1


@dataclass(frozen=True)
class PairLayout:
    """Byte offsets in the region that one rank writes in another's window. The words come first.

    The fields up to `marks` are words of a job, in the job's order.
    """

    return_records: int
    announce: int
    announce_step: int
    records: int
    index: int
    links: int
    ring: int
    marks: int  # where a local peer's words about sources begin, behind its ring
    staged: int
    staged_bytes: int
    local_bytes: int  # bytes of the region of a local peer

    @property
    def nbytes(self) -> int:
        """Bytes of the region of a remote peer, without staged rows."""
        return self.staged

    @classmethod
    def from_shape(cls, s: EngineShape) -> PairLayout:
        return_records = 2 * LINE
        announce = return_records + lines(s.ring_records * RETURN_RECORD_BYTES)
        step = lines(WORD * (words.ANNOUNCED_WORDS + max(s.announced, s.max_held)))
        records = announce + 2 * step
        index = records + lines(s.ring_records * RECORD_BYTES)
        links = index + lines(WORD * s.ring_rows)
        ring = links + (lines(WORD * s.ring_rows) if s.places else 0)
        rows, local = s.ring_rows * s.stride, s.local_ring * s.stride
        marks = ring + local
        end = marks + (lines(WORD * s.world) if s.local_peers else 0)
        return cls(return_records, announce, step, records, index, links, ring, marks, ring + rows, rows, end)

    def remote_bytes(self, nodes: Nodes, rank: int, source: int) -> int:
        """Bytes of the region of a remote source in the window of `rank`."""
        if nodes.levels == 1:
            return self.nbytes
        return self.nbytes + self.staged_bytes if nodes.stream(source, rank) else self.announce

    def outbox_bytes(self, nodes: Nodes, rank: int, peer: int) -> int:
        """Bytes that a rank keeps outside its windows for a remote peer: outbox, words, staged output rows."""
        region = self.nbytes if nodes.stream(rank, peer) else self.announce
        return region + LINE + CODED_BYTES + (self.staged_bytes if nodes.levels == 1 else 0)

    def fill(self, job) -> None:
        """Write the offsets into a job."""
        first, end = words.P_RETURN_RECORDS, words.P_MARKS + 1
        job[first:end] = astuple(self)[: end - first]


def return_stride(row_bytes: int, scalars: int) -> int:
    """Bytes from one return row of `row_bytes` bytes to the next. scalars: whether each row has a scalar beside it."""
    return lines(row_bytes + WORD * scalars)


def shared_returns(nodes: Nodes) -> bool:
    """Whether local peers store outputs where remote peers put them: with two levels they can write there."""
    return nodes.levels == 2 and not nodes.single


def _local_returns(s: EngineShape, nodes: Nodes) -> int:
    """Bytes of return rows in the window for local peers."""
    return 0 if shared_returns(nodes) else lines(s.returns)


def local_region(s: EngineShape, nodes: Nodes, rank: int, source: int) -> int:
    """Byte offset, in the window for local peers of `rank`, of the region of `source`."""
    return _local_returns(s, nodes) + PairLayout.from_shape(s).local_bytes * nodes.local(rank).index(source)


def remote_region(s: EngineShape, nodes: Nodes, rank: int, source: int) -> int:
    """Byte offset, in the window for remote peers of `rank`, of the region of `source`."""
    layout, before = PairLayout.from_shape(s), (p for p in nodes.remote(rank) if p < source)
    return lines(s.returns) + sum(layout.remote_bytes(nodes, rank, p) for p in before)


def has_bells(nodes: Nodes, rank: int) -> bool:
    """Whether a rank reads bells, see bells.py. With one remote peer bells would save nothing."""
    return nodes.levels == 2 and len(nodes.node_of) - nodes.node_of.count(nodes.node_of[rank]) > 1


def bell_words(nodes: Nodes) -> int:
    """How many words hold the bells of all ranks for one rank. A rank's number is the place of its bell."""
    return -(-len(nodes.node_of) // WORD)


def stream_bell_words(nodes: Nodes, rank: int) -> int:
    """How many words hold the bells of the streams at a rank. All ranks of a node have the same number."""
    members, sizes = nodes.members(rank), Counter(nodes.node_of)
    most = sum(-(-size // len(members)) for node, size in sizes.items() if node != nodes.node_of[rank])
    return -(-most // WORD)


def stream_sources(nodes: Nodes, rank: int) -> list[int]:
    """The remote sources whose streams lie at a rank, in the order of their bells there."""
    return [p for p in nodes.remote(rank) if nodes.stream(p, rank)]


def bell_bytes(nodes: Nodes, rank: int) -> int:
    """Bytes of the bells in a rank's window for remote peers: bells for the rank, then bells of streams."""
    if not has_bells(nodes, rank):
        return 0
    return lines(WORD * bell_words(nodes)) + lines(WORD * stream_bell_words(nodes, rank))


def answered_bytes(nodes: Nodes, rank: int) -> int:
    """Bytes of the digests that a rank keeps for all bells that it reads."""
    if not has_bells(nodes, rank):
        return 0
    return lines(WORD * (bell_words(nodes) + stream_bell_words(nodes, rank) * len(nodes.members(rank))))


def local_bytes(s: EngineShape, nodes: Nodes, rank: int) -> int:
    """Bytes of the window for local peers of `rank`."""
    return _local_returns(s, nodes) + PairLayout.from_shape(s).local_bytes * len(nodes.local(rank))


def remote_bytes(s: EngineShape, nodes: Nodes, rank: int) -> int:
    """Bytes of the window for remote peers of `rank`; 0 without any."""
    layout, peers = PairLayout.from_shape(s), nodes.remote(rank)
    if not peers:
        return 0
    return lines(s.returns) + sum(layout.remote_bytes(nodes, rank, p) for p in peers) + bell_bytes(nodes, rank)


def outbox_bytes(s: EngineShape, nodes: Nodes, rank: int) -> int:
    """Bytes that a rank keeps outside its windows for its remote peers."""
    layout = PairLayout.from_shape(s)
    return sum(layout.outbox_bytes(nodes, rank, p) for p in nodes.remote(rank)) + answered_bytes(nodes, rank)


def rank_bytes(s: EngineShape, nodes: Nodes, rank: int = 0) -> int:
    """Bytes of both windows and of the outboxes."""
    return local_bytes(s, nodes, rank) + remote_bytes(s, nodes, rank) + outbox_bytes(s, nodes, rank)


def most_announced(held: Sequence[int], nodes: Nodes) -> int:
    """The most experts that an announcement names, if rank p holds held[p] experts; 0: as many as one rank holds."""
    if nodes.levels == 1:
        return 0
    return max(sum(held[p] for p in nodes.members(rank)) for rank in range(len(held)))


def places(nodes: Nodes) -> int:
    """The most places for rows that a rank of these nodes has for each row of a ring.

    With one level they are counted as if all peers were remote, so that rings do not depend on nodes. With two levels a
    rank has a ring and staged outputs for each stream that lies at it, and in its outboxes the ring of its own stream
    to each node. Most streams lie at the first rank of a node: the stream of a source with place i in its node lies at
    the rank with place i modulo the size of the node, see `Nodes.rail`. Rings of local peers are not counted, see
    `local_rows`.
    """
    if nodes.levels == 1 or nodes.single:
        return PLACES_EACH * (len(nodes.node_of) - 1)
    sizes = Counter(nodes.node_of)
    return max(
        2 * sum(-(-other // size) for there, other in sizes.items() if there != node) + nodes.count - 1
        for node, size in sizes.items()
    )


def local_peers(nodes: Nodes) -> int:
    """The most local peers that a rank of these nodes has, if their rings are shorter than others; else 0."""
    return 0 if nodes.levels == 1 or nodes.single else max(Counter(nodes.node_of).values()) - 1


def local_rows(nodes: Nodes, stride: int, most: int) -> int:
    """The default number of rows in the ring of a local peer: with two levels as many as with one; else 0: `ring_rows`.

    A ring between two ranks of a node carries the rows of one pair of ranks, and credit comes back at once. A stream
    carries the rows for a whole node.
    """
    return ring_rows(PLACES_EACH * (len(nodes.node_of) - 1), stride, most) if local_peers(nodes) else 0


def ring_rows(places: int, stride: int, most: int, others: int = 0) -> int:
    """The default number of rows in a ring: `most`, or the rows that RING_BUDGET allows, if those are fewer.

    places: how many places for rows a rank has for each row of a ring. most: how many rows one source can send in a
    call. others: how many other places for rows the rank has; they use RING_BUDGET too. LEAST_RING is always allowed.
    """
    affordable = max(LEAST_RING, (RING_BUDGET - others * stride) // (max(1, places) * stride))
    return max(1, min(most, affordable))


class StateLayout:
    """Where each table of the state starts, and the length of the state, in words.

    runs: the most column-split runs at once.
    """

    def __init__(self, s: EngineShape, workers: int, batch: int, runs: int = 1) -> None:
        dimensions = schema.sizes(
            world=s.world,
            max_computed=s.max_held + s.foreign,
            copies=s.experts,
            records=s.ring_records,
            rows=s.return_rows,
            tokens=s.max_tokens,
            top_k=s.top_k,
            workers=workers,
            runs=runs,
            batch=batch,
        )
        self.command_words = dimensions["command_words"]
        self.sizes: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        at = lines(words.STATE_WORDS * WORD) // WORD
        for table in schema.TABLES:
            start = getattr(words, table.start)
            self.sizes[start] = math.prod(dimensions[name] for name in table.shape)
            self.starts[start] = at
            at += -(-self.sizes[start] // 8) * 8
        self.words = at

    def fill(self, job) -> None:
        """Write the starts into a job."""
        for name, start in self.starts.items():
            job[name] = start
        job[words.T_COMMAND_STEP] = self.command_words


# ---------------------------------------------------------------- addresses, for the steps


@jit
def state_word(job, i):
    """Address of a word of the state.

    Words that are shared without the rank's lock are accessed atomically, by address.
    """
    return job[words.STATE] + WORD * i


@jit
def word_to(job, st, peer, word):
    """Address of a word that this rank writes for `peer`."""
    return st[words.region_to(job, peer)] + WORD * word


@jit
def word_from(job, st, peer, word):
    """Address of a word that `peer` writes for this rank."""
    return st[words.line_from(job, peer)] + WORD * word


@jit
def announcement_to(job, st, peer, epoch):
    """Address of this rank's announcement of `epoch` at `peer`."""
    return st[words.region_to(job, peer)] + job[words.P_ANNOUNCE] + job[words.P_ANNOUNCE_STEP] * (epoch % 2)


@jit
def announcement_from(job, st, peer, epoch):
    """Address of `peer`'s announcement of `epoch` here."""
    return st[words.stream_from(job, peer)] + job[words.P_ANNOUNCE] + job[words.P_ANNOUNCE_STEP] * (epoch % 2)


@jit
def record_to(job, st, owner, tile):
    """Address of the record of this rank's tile number `tile` at `owner`."""
    return st[words.region_to(job, owner)] + job[words.P_RECORDS] + RECORD_BYTES * (tile % job[words.RING_RECORDS])


@jit
def record_from(job, st, source, tile):
    """Address of the record of `source`'s tile number `tile` here."""
    return st[words.stream_from(job, source)] + job[words.P_RECORDS] + RECORD_BYTES * (tile % job[words.RING_RECORDS])


@jit
def return_record_to(job, st, source, tile):
    """Address of the record of the tile number `tile` that this rank returns to `source`."""
    return (
        st[words.region_to(job, source)]
        + job[words.P_RETURN_RECORDS]
        + RETURN_RECORD_BYTES * (tile % job[words.RING_RECORDS])
    )


@jit
def return_record_from(job, st, owner, tile):
    """Address of the record of the tile number `tile` that `owner` has returned."""
    return (
        st[words.region_from(job, owner)]
        + job[words.P_RETURN_RECORDS]
        + RETURN_RECORD_BYTES * (tile % job[words.RING_RECORDS])
    )


@jit
def lines_of(nbytes):
    """`nbytes` rounded up to whole lines."""
    return (nbytes + LINE - 1) // LINE * LINE


@jit
def mark_to(job, st, peer, source):
    """Address, at a local peer, of the word that says which outputs for a remote source this rank has staged."""
    return st[words.region_to(job, peer)] + job[words.P_MARKS] + WORD * source


@jit
def mark_from(job, st, peer, source):
    """Address of the word that says which outputs for a remote source a local peer has staged."""
    return st[words.region_from(job, peer)] + job[words.P_MARKS] + WORD * source


@jit
def ring_of(job, st, peer):
    """How many rows a ring between this rank and a peer has, in either direction."""
    return job[words.RING_ROWS] if st[words.remote(job, peer)] != 0 else job[words.LOCAL_ROWS]


@jit
def ring_row_to(job, st, owner, row):
    """Address of row number `row`, counted since the engine began, in this rank's ring at `owner`."""
    return st[words.region_to(job, owner)] + job[words.P_RING] + job[words.STRIDE] * (row % ring_of(job, st, owner))


@jit
def bundle_row_to(job, st, owner, row):
    """Address of row number `row` of a bundle: in a local owner's ring, or in the outbox, from which the row is put."""
    return st[words.out_ring(job, owner)] + job[words.STRIDE] * (row % ring_of(job, st, owner))


@jit
def ring_row_from(job, st, source, row):
    """Address of row number `row`, counted since the engine began, in `source`'s ring here."""
    return st[words.stream_from(job, source)] + job[words.P_RING] + job[words.STRIDE] * (row % ring_of(job, st, source))


@jit
def return_row(job, st, source, packed):
    """Address where the output for `source`'s packed row `packed` goes."""
    return st[words.return_rows(job, source)] + job[words.RETURN_STRIDE] * packed


@jit
def index_to(job, st, owner, pair):
    """Address, in an owner's index, of the entry of pair number `pair`, counted since the engine began."""
    return st[words.region_to(job, owner)] + job[words.P_INDEX] + WORD * (pair % job[words.RING_ROWS])


@jit
def index_from(job, st, source, pair):
    """Address of the index entry of pair number `pair` of a source."""
    return st[words.stream_from(job, source)] + job[words.P_INDEX] + WORD * (pair % job[words.RING_ROWS])


@jit
def link_to(job, st, owner, pair):
    """Address, in a stream's links, of the link of pair number `pair`."""
    return st[words.region_to(job, owner)] + job[words.P_LINKS] + WORD * (pair % job[words.RING_ROWS])


@jit
def link_from(job, st, source, pair):
    """Address of the link of pair number `pair` of a source: the number of the pair before it of the same token."""
    return st[words.stream_from(job, source)] + job[words.P_LINKS] + WORD * (pair % job[words.RING_ROWS])


@jit
def staged_row(job, st, source, pair):
    """Address where the output for pair number `pair` of a remote source waits to be put."""
    return st[words.staged(job, source)] + job[words.RETURN_STRIDE] * (pair % job[words.RING_ROWS])


@jit
def alone(job, st, packed):
    """Whether the output for an own packed row comes back as it is: the owner's node has no other one of its token."""
    return st[words.token(job, packed)] >= ALONE


@jit
def in_a_sum(job, st, packed):
    """Whether an own packed row does not come back, because its output is in the sum of another row's pair."""
    return st[words.token(job, packed)] < 0


@jit
def token_of(job, st, packed):
    """The token of an own packed row."""
    token = st[words.token(job, packed)]
    return (token if token >= 0 else ~token) & ALONE - 1


@jit
def owner_back(job, st, packed):
    """The owner of a packed row, if there are remote peers and the row does not stay; else this rank."""
    owner = job[words.RANK]
    if job[words.REMOTE] != 0 and packed < st[words.offset(job, job[words.slot_start(job, job[words.WORLD])])]:
        low, high = 0, job[words.WORLD]
        while high - low > 1:
            middle = (low + high) // 2
            if st[words.offset(job, job[words.slot_start(job, middle)])] <= packed:
                low = middle
            else:
                high = middle
        owner = low
    return owner


@jit
def row_back(job, st, packed):
    """Address where the output of a packed row arrives.

    With one level local and remote owners write different windows.
    """
    return st[words.rows_back(job, owner_back(job, st, packed))] + job[words.RETURN_STRIDE] * packed

"""Names of addresses, and the few places that have rules of their own."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from ..engine import schema, words
from ..engine.layout import (
    CODED_BYTES,
    LINE,
    EngineShape,
    PairLayout,
    answered_bytes,
    bell_bytes,
    bell_words,
    lines,
    shared_returns,
    stream_sources,
)
from ..host.nodes import Nodes
from .places import ACCEPTED, AREA, HOME, LOCAL, MIRROR, OUTBOX, PRIVATE, REMOTE, address, where

WORD = 8
WORDS = tuple(word.name for word in (*schema.LINE_WORDS, schema.POSTED, schema.ENDED))
AREAS = ("state", "lock", "wire", "x", "y", "ids", "weights", "activations", "landed rows", "rows to return", "gate",
         "scalars", "scalars that came back", "store", "tape", "records of the tape")  # fmt: skip
RETURNS, RING, PLAIN, CODED, BELL, OUT_OF_BOUNDS = range(6)
SIZES = {"records": words.RECORD_WORDS, "return_records": words.RETURNED_WORDS}
STREAM = ("announce", "records", "ring", "index", "links", "staged")  # the parts that local ranks of a rail use


@dataclass(frozen=True)
class Place:
    """Where an address lies. kind: which rules it has, from RETURNS to OUT_OF_BOUNDS. writer: the rank that may write
    there, -1 if that rank changes between calls."""

    kind: int
    rank: int  # the rank that owns the memory
    part: int
    region: str
    writer: int
    offset: int  # bytes from the region's beginning
    peer: int = -1  # the rank for which an outbox's data is, or whose data a region has


class Regions:
    """The windows, outboxes and mirrors of all ranks of one shape."""

    def __init__(self, shape: EngineShape, nodes: Nodes) -> None:
        self.shape, self.nodes, self.layout = shape, nodes, PairLayout.from_shape(shape)
        self.returns = lines(shape.returns)
        self._parts: dict[tuple[int, int], tuple[int, list[int], list[int]]] = {}
        self._known: dict[int, Place] = {}
        starts = {"words": 0, **vars(self.layout)}
        del starts["announce_step"], starts["staged_bytes"], starts["local_bytes"], starts["marks"]
        self._starts = sorted(starts.items(), key=lambda item: item[1])

    @staticmethod
    @lru_cache(maxsize=64)
    def from_shape(shape: EngineShape, nodes: Nodes) -> Regions:
        return Regions(shape, nodes)

    def place(self, at: int) -> Place:
        found = self._known.get(at)
        if found is None:
            found = self._known[at] = self._find(at)
        return found

    def _find(self, at: int) -> Place:
        rank, part, offset = where(at)
        if not self._exists(rank, part, offset):
            return Place(OUT_OF_BOUNDS, rank, part, "outside", -1, offset)
        if part == PRIVATE:
            return Place(PLAIN, rank, part, AREAS[offset // AREA], rank, offset % AREA)
        if part == HOME:
            return Place(PLAIN, rank, part, "experts", rank, offset)
        if part == ACCEPTED:
            return Place(PLAIN, rank, part, "accepted words", rank, offset % LINE, offset // LINE)
        begin, peers, ends = self._part(rank, part)
        if ends and offset >= ends[-1] and part in (REMOTE, OUTBOX):
            return self._behind(rank, part, offset - ends[-1])
        if at % WORD or not 0 <= offset < (ends[-1] if ends else begin):
            return Place(OUT_OF_BOUNDS, rank, part, "outside", -1, offset)
        if offset < begin:
            return Place(RETURNS, rank, part, "return rows", -1, offset)
        number = bisect(ends, offset)
        offset -= ends[number - 1] if number else begin
        writer = rank if part in (OUTBOX, MIRROR) else peers[number]
        region, start = self._region(rank, part, peers[number], offset)
        kind = PLAIN
        if part != OUTBOX:
            kind = {"ring": RING, "coded": CODED}.get(region, PLAIN)
        return Place(kind, rank, part, region, -1 if region == "staged" else writer, offset - start, peers[number])

    def _behind(self, rank: int, part: int, offset: int) -> Place:
        """The place of a bell in a window for remote peers, or of an `answered` word beside the outboxes.

        A place of a bell that no rank puts belongs to the rank of the window.
        """
        if part == OUTBOX:
            kind = PLAIN if offset < answered_bytes(self.nodes, rank) and offset % WORD == 0 else OUT_OF_BOUNDS
            return Place(kind, rank, part, "answered", rank, offset)
        if offset >= bell_bytes(self.nodes, rank):
            return Place(OUT_OF_BOUNDS, rank, part, "outside", -1, offset)
        region, sources = "bells", self.nodes.remote(rank)
        if offset >= (first := lines(WORD * bell_words(self.nodes))):
            region, offset = "bells of streams", offset - first
            streams = stream_sources(self.nodes, rank)
            sources = streams[offset : offset + 1]
        elif offset not in sources:
            sources = []
        writer = rank if not sources else offset if region == "bells" else sources[0]
        return Place(BELL, rank, part, region, writer, offset)

    def _region(self, rank: int, part: int, peer: int, offset: int) -> tuple[str, int]:
        """The name and the start of the part of a region, or of an outbox and what lies beside it, at an offset."""
        region, start = "coded" if part == REMOTE else "words", 0
        beside = self.layout.outbox_bytes(self.nodes, rank, peer) - CODED_BYTES - LINE if part == OUTBOX else -1
        if part == OUTBOX and self.nodes.levels == 1:
            beside -= self.layout.staged_bytes
        if part == OUTBOX and offset >= beside:
            return self._beside(offset, beside)
        if part == LOCAL and offset >= self.layout.marks:
            return "marks", self.layout.marks
        for name, first in self._starts:
            if 0 < first <= offset:
                region, start = name, first
        return region, start

    def _exists(self, rank: int, part: int, offset: int) -> bool:
        """Whether the part or private area exists."""
        if not 0 <= rank < self.shape.world:
            return False
        if part == HOME:
            return offset < WORD * self.shape.experts
        return part <= ACCEPTED or (part == PRIVATE and offset < AREA * len(AREAS))

    def _part(self, rank: int, part: int) -> tuple[int, list[int], list[int]]:
        """(where a part's regions begin, the ranks they are for, where each region ends)."""
        if (rank, part) not in self._parts:
            nodes, layout = self.nodes, self.layout
            local, remote = nodes.local(rank), nodes.remote(rank)
            for each, begin, peers, sizes in (
                (LOCAL, 0 if shared_returns(nodes) else self.returns, local, [layout.local_bytes for _ in local]),
                (REMOTE, self.returns * bool(remote), remote, [layout.remote_bytes(nodes, rank, p) for p in remote]),
                (OUTBOX, 0, remote, [layout.outbox_bytes(nodes, rank, p) for p in remote]),
            ):
                self._parts[rank, each] = begin, peers, list(accumulate(sizes, initial=begin))[1:]
            self._parts[rank, MIRROR] = self._parts[rank, REMOTE]
        return self._parts[rank, part]

    def _beside(self, offset: int, at: int) -> tuple[str, int]:
        """The name and offset of memory beside an outbox: arrived words, coded words to put, or staged rows."""
        if offset < at + LINE:
            return "arrived words", at
        if offset < at + LINE + CODED_BYTES:
            return "coded words to put", at + LINE
        return "staged rows", at + LINE + CODED_BYTES

    def region(self, rank: int, source: int) -> int:
        """The address of the region that `source` writes at `rank`."""
        part = LOCAL if source in self.nodes.local(rank) else REMOTE
        begin, peers, ends = self._part(rank, part)
        return address(rank, part, [begin, *ends][peers.index(source)])

    def ring_slot(self, owner: int, source: int, slot: int) -> range:
        """The addresses of a ring row that `owner` reads."""
        at = self.region(self.nodes.rail(source, owner), source) + self.layout.ring + self.shape.stride * slot
        return range(at, at + self.shape.stride, WORD)

    def mapped(self, at: int, rank: int) -> bool:
        """Whether `rank` may use an address of a window for remote peers.

        The rank may use all of its own window. In a local peer's window it may use streams to their node, and return
        rows, in which it stores outputs.
        """
        p = self.place(at)
        if p.part != REMOTE or p.rank == rank or p.kind == OUT_OF_BOUNDS:
            return True
        words_of_stream = p.region == "coded" and p.offset // (2 * WORD) >= words.ANNOUNCED
        return rank in self.nodes.readers(p.rank) and (
            p.kind == RETURNS or p.region in (*STREAM, "bells of streams") or words_of_stream
        )

    def mirrored(self, at: int) -> int:
        """The address, in the GPU's mirror, of a byte of the rank's remote window."""
        return at + address(0, MIRROR) - address(0, REMOTE)

    def name(self, at: int) -> str:
        """The name of an address, for messages."""
        p = self.place(at)
        if p.kind == OUT_OF_BOUNDS:
            return f"address {at:#x}, where nothing lies"
        number = p.offset // WORD
        if p.kind == BELL:
            return f"{p.region} {p.offset} at rank {p.rank}"
        if p.region.endswith("words"):
            word = WORDS[number] if number <= words.ENDED else f"word {number}"
            if p.part == ACCEPTED:
                return f"{word} accepted from rank {p.peer} at rank {p.rank}"
            if p.part != OUTBOX:
                return f"{word} of rank {p.writer} at rank {p.rank}"
            way = "for" if p.region == "words" else "from"
            return f"{word} {way} rank {p.peer} at rank {p.rank}"
        if p.region.startswith("coded"):
            half = "value" if number % 2 == 0 else "complement"
            if number // 2 == words.LINE_WORDS:
                return f"{'bell of a stream' if number % 2 else 'bell'} to put at rank {p.rank}"
            return f"{WORDS[number // 2 % words.LINE_WORDS]} ({half}) of rank {p.writer} at rank {p.rank}"
        detail = f"word {number}"
        if p.region == "ring":
            slot, rest = divmod(p.offset, self.shape.stride)
            detail = f"row {slot} word {rest // WORD}"
        elif p.region in SIZES:
            detail = f"{number // SIZES[p.region]} word {number % SIZES[p.region]}"
        elif p.region == "announce":
            buffer, rest = divmod(p.offset, self.layout.announce_step)
            detail = f"buffer {buffer} word {rest // WORD}"
        whose = f" of rank {p.writer}" if p.writer >= 0 and p.part in (LOCAL, REMOTE) else ""
        kind = {LOCAL: "", REMOTE: "remote ", OUTBOX: "outbox ", MIRROR: "mirror of ", HOME: "", PRIVATE: ""}[p.part]
        return f"{kind}{p.region} {detail}{whose} at rank {p.rank}"

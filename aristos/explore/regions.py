"""Names of addresses, and the few places that have rules of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..engine import schema, words
from ..engine.layout import LINE, EngineShape, PairLayout, lines, local_bytes, outbox_bytes, remote_bytes
from ..host.nodes import Nodes
from .places import ACCEPTED, AREA, HOME, LOCAL, MIRROR, OUTBOX, PRIVATE, REMOTE, address, where

WORD = 8
WORDS = tuple(word.name for word in (*schema.LINE_WORDS, schema.POSTED, schema.ENDED))
AREAS = ("state", "lock", "wire", "x", "y", "ids", "weights", "activations", "landed rows", "rows to return", "gate",
         "scalars", "scalars that came back", "store", "tape", "records of the tape")  # fmt: skip
RETURNS, RING, PLAIN, CODED, OUT_OF_BOUNDS = range(5)


@dataclass(frozen=True)
class Place:
    """Where an address lies. kind: its rules. writer: the rank that may write there, -1 if it changes between calls."""

    kind: int
    rank: int  # the rank that owns the memory
    part: int
    region: str
    writer: int
    offset: int  # bytes from the region's beginning
    peer: int = -1  # of an outbox: the rank for which its data is


class Regions:
    """The windows, outboxes and mirrors of all ranks of one shape."""

    def __init__(self, shape: EngineShape, nodes: Nodes) -> None:
        self.shape, self.nodes, self.layout = shape, nodes, PairLayout.of(shape)
        self.returns = lines(shape.returns)
        self._parts: dict[tuple[int, int], tuple[int, list[int], int, int]] = {}
        self._known: dict[int, Place] = {}
        starts = {"words": 0, **vars(self.layout)}
        del starts["announce_step"], starts["remote_bytes"]
        self._starts = sorted(starts.items(), key=lambda item: item[1])

    @staticmethod
    @lru_cache(maxsize=64)
    def of(shape: EngineShape, nodes: Nodes) -> Regions:
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
        begin, peers, step, nbytes = self._part(rank, part)
        if at % WORD or not 0 <= offset < nbytes:
            return Place(OUT_OF_BOUNDS, rank, part, "outside", -1, offset)
        if offset < begin:
            return Place(RETURNS, rank, part, "return rows", -1, offset)
        number, offset = divmod(offset - begin, step)
        writer = rank if part in (OUTBOX, MIRROR) else peers[number]
        region, start = "words", 0
        for name, first in self._starts:
            if first <= offset:
                region, start = name, first
        if part == OUTBOX and offset >= self.layout.remote_bytes:
            region, start = self._beside(offset)
        kind = PLAIN
        if part != OUTBOX:
            kind = {"ring": RING, "coded": CODED if part == REMOTE else PLAIN}.get(region, PLAIN)
        return Place(kind, rank, part, region, writer, offset - start, peers[number])

    def _exists(self, rank: int, part: int, offset: int) -> bool:
        """Whether the part or private area exists."""
        if not 0 <= rank < self.shape.world:
            return False
        if part == HOME:
            return offset < WORD * self.shape.experts
        return part <= ACCEPTED or (part == PRIVATE and offset < AREA * len(AREAS))

    def _part(self, rank: int, part: int) -> tuple[int, list[int], int, int]:
        """(where a part's regions begin, the ranks they are for, the bytes of one region, the bytes of all)."""
        if (rank, part) not in self._parts:
            local, remote = self.nodes.local(rank), self.nodes.remote(rank)
            self._parts |= {
                (rank, LOCAL): (self.returns, local, self.layout.nbytes, local_bytes(self.shape, self.nodes, rank)),
                (rank, REMOTE): (
                    self.returns,
                    remote,
                    self.layout.remote_bytes,
                    remote_bytes(self.shape, self.nodes, rank),
                ),
                (rank, OUTBOX): (0, remote, outbox_bytes(self.shape), outbox_bytes(self.shape) * len(remote)),
            }
            self._parts[rank, MIRROR] = self._parts[rank, REMOTE]
        return self._parts[rank, part]

    def _beside(self, offset: int) -> tuple[str, int]:
        """The name and offset of memory beside an outbox: arrived words, coded words to put, or staged rows."""
        at = self.layout.remote_bytes
        if offset < at + 64:
            return "arrived words", at
        if offset < at + 64 + 128:
            return "coded words to put", at + 64
        return "staged rows", at + 64 + 128

    def ring_slot(self, owner: int, source: int, slot: int) -> range:
        """The addresses of a ring row at `owner`."""
        is_local = source in self.nodes.local(owner)
        peers = self.nodes.local(owner) if is_local else self.nodes.remote(owner)
        size = self.layout.nbytes if is_local else self.layout.remote_bytes
        at = address(owner, LOCAL if is_local else REMOTE, self.returns + size * peers.index(source) + self.layout.ring)
        at += self.shape.stride * slot
        return range(at, at + self.shape.stride, WORD)

    def mirrored(self, at: int) -> int:
        """The address, in the GPU's mirror, of a byte of the rank's remote window."""
        return at + address(0, MIRROR) - address(0, REMOTE)

    def name(self, at: int) -> str:
        """The name of an address, for messages."""
        p = self.place(at)
        if p.kind == OUT_OF_BOUNDS:
            return f"address {at:#x}, where nothing lies"
        number = p.offset // WORD
        if p.region.endswith("words"):
            word = WORDS[number] if number <= words.ENDED else f"word {number}"
            if p.part == ACCEPTED:
                return f"{word} accepted from rank {p.peer} at rank {p.rank}"
            if p.part != OUTBOX:
                return f"{word} of rank {p.writer} at rank {p.rank}"
            return (
                f"{word} for rank {p.peer} at rank {p.rank}"
                if p.region == "words"
                else f"{word} from rank {p.peer} at rank {p.rank}"
            )
        if p.region.startswith("coded"):
            half = "value" if number % 2 == 0 else "complement"
            return f"{WORDS[number // 2 % words.LINE_WORDS]} ({half}) of rank {p.writer} at rank {p.rank}"
        detail = f"word {number}"
        if p.region == "ring":
            slot, rest = divmod(p.offset, self.shape.stride)
            detail = f"row {slot} word {rest // WORD}"
        elif p.region in ("records", "return_records"):
            detail = f"{p.offset // 32} word {number % 4}"
        elif p.region == "announce":
            buffer, rest = divmod(p.offset, self.layout.announce_step)
            detail = f"buffer {buffer} word {rest // WORD}"
        whose = f" of rank {p.writer}" if p.writer >= 0 and p.part in (LOCAL, REMOTE) else ""
        kind = {LOCAL: "", REMOTE: "remote ", OUTBOX: "outbox ", MIRROR: "mirror of ", HOME: "", PRIVATE: ""}[p.part]
        return f"{kind}{p.region} {detail}{whose} at rank {p.rank}"

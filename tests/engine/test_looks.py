"""What an idle worker reads in one look at the words of remote peers, and that it misses nothing.

Without bells a look reads each coded word of each remote rank once. With bells, which two levels have, it reads bells
and the words of one peer in turn, and the words of those peers whose bells ring.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aristos.engine import bells, outbox, words
from aristos.engine import job as jobs
from aristos.engine.layout import EngineShape, StateLayout, has_bells, local_peers
from aristos.explore.places import OUTBOX, fill, where
from aristos.explore.places import REMOTE as WINDOW
from aristos.explore.regions import BELL, CODED, WORD, Regions
from aristos.host.nodes import Nodes
from aristos.substrate.windows import readers

pytestmark = pytest.mark.uncompiled

ROOT = Path(__file__).parents[2]
NODES = [(2, 2), (2, 3), (3, 2), (8, 8)]  # (nodes, ranks of a node)
MORE = [(3, 1), (2, 8), (4, 8), (32, 8), (8, 16)]
UNEVEN = [(0, 1, 1), (0, 0, 0, 1, 1), (0, 1, 1, 1, 1, 1, 2, 2)]


def words_read(nodes: Nodes, rank: int) -> int:
    """The words of windows that a rank with bells reads in a look in which no bell rings."""
    members, node = nodes.members(rank), nodes.node_of[rank]
    sizes = [nodes.node_of.count(other) for other in set(nodes.node_of) - {node}]
    streams = sum(-(-size // len(members)) for size in sizes)  # the most that lie at one rank
    return -(-len(nodes.node_of) // 8) + len(members) * -(-streams // 8) + words.LINE_WORDS


class Reader:
    """A rank whose looks are counted. Its memory has zeros; no coded word has landed at first."""

    def __init__(self, monkeypatch: Any, nodes: Nodes, rank: int) -> None:
        world = len(nodes.node_of)
        shape = EngineShape(world, 4, 64, 4, 1, places=int(nodes.levels == 2), local_peers=local_peers(nodes))
        tables = StateLayout(shape, 1, 4)
        self.nodes, self.rank, self.regions = nodes, rank, Regions.from_shape(shape, nodes)
        self.job, self.st = np.zeros(jobs.size(world, world), np.int64), np.zeros(tables.words, np.int64)
        jobs.fill_layout(self.job, shape, tables)
        jobs.update(self.job, rank=rank, world=world, **readers(nodes, rank))
        fill(shape, nodes, rank, self.st, tables.starts)
        self.value: dict[int, int] = {}
        self.coded: Counter[tuple[int, int, int]] = Counter()
        self.bells = 0
        fake = {"load": self.load, "store": self.store, "store_release": self.store}
        for module in (outbox, bells):
            for name, function in fake.items():
                monkeypatch.setattr(module.mem, name, function)
            for name in ("progress", "sync"):
                monkeypatch.setattr(module.mpi, name, lambda wire: None)

    def load(self, at: int) -> int:
        at = int(at)
        place = self.regions.place(at)
        assert at % WORD == 0
        assert self.regions.mapped(at, self.rank)
        if place.kind == BELL:
            self.bells += 1
        elif place.kind == CODED and place.offset % (2 * WORD) == 0:
            self.coded[place.rank, place.writer, place.offset // (2 * WORD)] += 1
        return self.value.get(at, 0)

    def store(self, at: int, value: int) -> None:
        assert where(int(at))[1] == OUTBOX, "a reader writes only its own memory"
        self.value[int(at)] = int(value)

    def look(self) -> tuple[bool, Counter[tuple[int, int, int]], int]:
        """(whether a word has come, the coded words that were read, how many words of bells were read).

        A coded word is named by the rank in whose window it lies, its writer, and its number.
        """
        self.coded, self.bells = Counter(), 0
        came = outbox.look(self.job, self.st)
        return bool(came), self.coded, self.bells

    def lands(self, source: int, word: int, value: int) -> None:
        """Let a word of a source land."""
        stream = word >= words.ANNOUNCED
        region = self.st[(words.stream_from if stream else words.region_from)(self.job, source)]
        self.value[int(region) + 16 * word] = value
        self.value[int(region) + 16 * word + 8] = ~value

    def rings(self, source: int, bell: int, stream: bool = False) -> None:
        """Let a bell of a source land."""
        at = int(self.st[words.stream_bell(self.job, source)] if stream else self.st[words.BELLS] + source)
        place = self.regions.place(at)
        assert (place.kind, place.writer) == (BELL, source)
        assert where(at)[:2] == (self.nodes.rail(source, self.rank) if stream else self.rank, WINDOW)
        shift = 8 * (at % 8)
        word = self.value.get(at - at % 8, 0) & ~(255 << shift) | bell << shift
        self.value[at - at % 8] = (word + (1 << 63)) % (1 << 64) - (1 << 63)  # words are signed

    def accepted(self, source: int, word: int) -> int:
        return self.value.get(int(self.st[words.line_from(self.job, source)]) + 8 * word, 0)


def even(count: int, size: int, levels: int = 2) -> Nodes:
    return Nodes(Nodes.split(count * size, size).node_of, levels)


@pytest.mark.parametrize(("count", "size"), NODES)
def test_with_one_level_a_look_reads_each_coded_word_of_each_remote_rank_once(monkeypatch, count, size):
    for rank in (0, count * size - 1):
        reader = Reader(monkeypatch, even(count, size, levels=1), rank)
        came, read, rung = reader.look()
        assert not came
        assert rung == 0
        assert set(read.values()) == {1}
        assert len(read) == words.LINE_WORDS * (count - 1) * size
        assert {at for at, _, _ in read} == {rank}


def test_a_rank_with_one_remote_peer_has_no_bells(monkeypatch):
    for nodes, rank in ((even(2, 1), 0), (Nodes((0, 1, 1), 2), 1)):
        came, read, rung = Reader(monkeypatch, nodes, rank).look()
        assert not came
        assert (len(read), rung) == (words.LINE_WORDS, 0)
    assert has_bells(Nodes((0, 1, 1), 2), 0)


@pytest.mark.parametrize(("count", "size"), [*NODES, *MORE])
def test_a_look_reads_at_most_2n_and_3l_words(monkeypatch, count, size):
    """Bells count as words too."""
    nodes = even(count, size)
    for rank in {0, size - 1, count * size - 1}:
        came, read, rung = Reader(monkeypatch, nodes, rank).look()
        assert not came
        assert set(read.values()) == {1}
        assert len(read) + rung == words_read(nodes, rank) <= 2 * count + 3 * size


def test_the_limit_holds_for_any_number_of_nodes_of_up_to_8_ranks():
    for size in range(1, 9):
        for count in range(2 + (size == 1), 200):
            most = -(-count * size // 8) + size * -(-(count - 1) // 8) + words.LINE_WORDS
            assert most <= 2 * count + 3 * size
            if count < 12:
                assert words_read(even(count, size), 0) == most


@pytest.mark.parametrize("node_of", [*UNEVEN, Nodes.split(8, 2).node_of])
def test_looks_read_all_words_in_turn(monkeypatch, node_of):
    """After as many looks as there are remote peers, each coded word was read once, whether bells ring or not."""
    nodes = Nodes(node_of, 2)
    for rank in range(len(node_of)):
        if not has_bells(nodes, rank):
            continue
        reader, remote = Reader(monkeypatch, nodes, rank), nodes.remote(rank)
        total: Counter[tuple[int, int, int]] = Counter()
        for _ in remote:
            came, read, rung = reader.look()
            assert not came
            assert len(read) + rung == words_read(nodes, rank)
            total += read
        assert set(total.values()) == {1}
        wanted = {
            (nodes.rail(p, rank) if word >= words.ANNOUNCED else rank, p, word)
            for p in remote
            for word in range(words.LINE_WORDS)
        }
        assert set(total) == wanted


@pytest.mark.parametrize("node_of", [*UNEVEN, Nodes.split(8, 2).node_of])
def test_a_bell_rings_until_its_words_have_landed(monkeypatch, node_of):
    """A bell that lands first is not forgotten, and no other peer's words are read for it."""
    monkeypatch.setattr(outbox, "TURN_RANKS", 0)
    nodes = Nodes(node_of, 2)
    for rank in (r for r in range(len(node_of)) if has_bells(nodes, r)):
        for source in nodes.remote(rank):
            for stream, word in ((False, words.CREDIT), (True, words.TAIL)):
                reader = Reader(monkeypatch, nodes, rank)
                reader.rings(source, 7, stream)
                for _ in range(2):
                    came, read, _ = reader.look()
                    assert not came
                    assert {p for _, p, _ in read} == {source}
                reader.lands(source, word, 7)
                assert reader.look()[0]
                assert reader.accepted(source, word) == 7
                came, read, _ = reader.look()
                assert not came
                assert not read


def test_words_are_found_in_turn_if_a_bell_does_not_ring(monkeypatch):
    """The bell may be late, or the sum of the words may have changed by a multiple of the modulus. Poison has none."""
    nodes = even(4, 2)
    for word, value in ((words.POISON, 99), (words.RETURN_TAIL, 3), (words.TAIL, bells.MODULUS)):
        for source in nodes.remote(5):
            reader = Reader(monkeypatch, nodes, 5)
            reader.lands(source, word, value)
            assert [reader.look()[0] for _ in nodes.remote(5)].count(True) == 1
            assert reader.accepted(source, word) == value
            if word == words.RETURN_TAIL:  # the bell comes late, and says what this rank has answered
                with monkeypatch.context() as turns:
                    turns.setattr(outbox, "TURN_RANKS", 0)
                    assert {p for _, p, _ in reader.look()[1]} == {source}
                    reader.rings(source, value)
                    assert not reader.look()[1]


def test_bells_of_one_word_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(outbox, "TURN_RANKS", 0)
    reader = Reader(monkeypatch, even(8, 2), 3)
    remote = reader.nodes.remote(3)
    for n, source in enumerate(remote):
        for word in (words.CREDIT, words.TAIL):
            reader.lands(source, word, 250 - n)
            reader.rings(source, 250 - n, word == words.TAIL)
    came, read, _ = reader.look()
    assert came
    assert {p for _, p, _ in read} == set(remote)
    assert not reader.look()[1]
    reader.rings(remote[4], 1)
    assert {p for _, p, _ in reader.look()[1]} == {remote[4]}


def test_the_page_states_the_number_of_words():
    page = " ".join((ROOT / "docs" / "two_levels.md").read_text().split())
    *first, last = (
        f"{words_read(even(n, size), 0)} instead of {words.LINE_WORDS * (n - 1) * size} on {n} nodes of {size}"
        for n, size in NODES
    )
    assert f"{', '.join(first)} and {last}" in page

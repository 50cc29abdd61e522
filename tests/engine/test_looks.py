"""How many coded words an idle worker reads in one look, and at which ranks they lie.

A look reads each coded word of each remote rank once, whatever the levels. Nothing has arrived in these tests, so no
word is read again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aristos.engine import job as jobs
from aristos.engine import outbox, words
from aristos.engine.layout import EngineShape, StateLayout, local_peers
from aristos.explore.places import fill
from aristos.explore.regions import CODED, WORD, Regions
from aristos.host.nodes import Nodes

pytestmark = pytest.mark.uncompiled

ROOT = Path(__file__).parents[2]
NODES = [(2, 2), (2, 3), (3, 2), (8, 8)]  # (nodes, ranks of a node)


def look(monkeypatch, nodes: Nodes, rank: int) -> Counter[tuple[int, int, int]]:
    """The coded words that `rank` reads in one look, as (rank in whose window the word lies, writer, word)."""
    world = len(nodes.node_of)
    places = int(nodes.levels == 2)
    shape = EngineShape(world, 4, 64, 4, 1, places=places, local_peers=local_peers(nodes))
    regions, tables = Regions.of(shape, nodes), StateLayout(shape, 1, 4)
    job, st = np.zeros(jobs.size(world, world), np.int64), np.zeros(tables.words, np.int64)
    jobs.fill_layout(job, shape, tables)
    jobs.update(job, rank=rank, world=world)
    fill(shape, nodes, rank, st, tables.starts)
    read: Counter[tuple[int, int, int]] = Counter()

    def load(at: int) -> int:
        place = regions.place(int(at))
        if place.kind == CODED and place.offset % (2 * WORD) == 0:
            assert regions.mapped(int(at), rank)
            read[place.rank, place.writer, place.offset // (2 * WORD)] += 1
        return 0  # no value: then value and complement differ, and the word is refused

    monkeypatch.setattr(outbox.mem, "load", load)
    monkeypatch.setattr(outbox.mpi, "progress", lambda wire: None)
    assert not outbox.receive(job, st)
    return read


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("count", "size"), NODES)
def test_an_idle_look_reads_each_coded_word_of_each_remote_rank_once(monkeypatch, count, size, levels):
    nodes = Nodes(Nodes.of(count * size, size).node_of, levels)
    for rank in (0, count * size - 1):
        read = look(monkeypatch, nodes, rank)
        assert set(read.values()) == {1}
        assert len(read) == words.LINE_WORDS * (count - 1) * size
        for at, writer, word in read:  # words of a stream lie at the writer's rail, all others at the reader
            assert at == (nodes.rail(writer, rank) if word >= words.ANNOUNCED else rank)


def test_the_page_states_the_number_of_words():
    page = " ".join((ROOT / "docs" / "two_levels.md").read_text().split())
    *first, last = (f"{words.LINE_WORDS * (n - 1) * size} on {n} nodes of {size}" for n, size in NODES)
    assert f"{words.LINE_WORDS} coded words of each remote rank: {', '.join(first)} and {last}" in page

"""Which sources a run of an expert takes rows from first, and which expert comes next: with sums, the same on a node.

Every rank holds two experts. Each of the other ranks has put 4 rows for each of them, and a run takes 8.
"""

from __future__ import annotations

import numpy as np
import pytest

from aristos.engine import experts, words
from aristos.engine import job as jobs
from aristos.engine.layout import EngineShape, StateLayout
from aristos.placement import Placement
from aristos.primitives.buffers import aligned

pytestmark = pytest.mark.uncompiled

WORLD, NODE, HELD, ROWS, RUN = 6, 2, 2, 4, 8


def runs(rank: int, sums: bool) -> list[tuple[int, list[int]]]:
    """The runs of a rank in order: (expert, sources) of each."""
    placement = Placement(None, WORLD * HELD, WORLD)
    shape = EngineShape(WORLD, 8, 64, 16, HELD, 1, WORLD * HELD, 16)
    tables = StateLayout(shape, 1, RUN)
    job, st = np.zeros(jobs.size(WORLD * HELD, WORLD), np.int64), aligned((tables.words,), np.int64)
    st[:] = 0
    jobs.fill_placement(job, placement.slot_of.tolist(), placement.start.tolist())
    jobs.fill_layout(job, shape, tables)
    first = rank // NODE * NODE
    jobs.update(
        job,
        rank=rank,
        world=WORLD,
        held=HELD,
        computed=HELD,
        batch=RUN,
        run_rows=RUN,
        workers=1,
        row_bytes=64,
        state=st.ctypes.data,
        return_stride=64,
        node_first=first,
        node_end=first + NODE,
        sums=int(sums),
    )
    for source in set(range(WORLD)) - {rank}:
        for expert in range(HELD):
            i = words.source_expert(job, source, expert)
            st[words.front_at(job, i)], st[words.pending_at(job, i)] = expert, ROWS
            st[words.landed_rows(words.landed(job, source, expert))] = ROWS
            st[words.expert_pending(job, expert)] += ROWS
            st[words.expert_remote(job, expert)] += ROWS
    found, c = [], words.command(job, 0)
    while any(st[words.expert_pending(job, expert)] for expert in range(HELD)):
        expert, _ = experts.choose(job, st)
        experts.gather(job, st, c, expert, RUN)
        parts = [words.part(job, c, n) for n in range(st[words.command_parts(c)])]
        found.append((expert, [int(st[words.part_source(part)]) for part in parts]))
    return found


def test_without_sums_an_expert_runs_to_its_end_and_each_rank_begins_with_its_neighbour():
    assert runs(2, sums=False) == [(e, sources) for e in range(HELD) for sources in ([3, 4], [5, 0], [1])]
    assert runs(3, sums=False) == [(e, sources) for e in range(HELD) for sources in ([4, 5], [0, 1], [2])]


def test_with_sums_all_ranks_of_a_node_finish_one_source_after_another():
    """Sources of the next node come first, on both ranks; rows of the own node, which nobody adds up, come last."""
    for rank, neighbour in ((2, 3), (3, 2)):
        order = [sources for sources in ([4, 5], [0, 1], [neighbour]) for _ in range(HELD)]
        assert [sources for _, sources in runs(rank, sums=True)] == order
        assert [expert for expert, _ in runs(rank, sums=True)] == [0, 1] * 3

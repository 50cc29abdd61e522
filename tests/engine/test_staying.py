"""The rule that decides which rows stay on their rank, as plain Python.

A rank estimates the work of each rank of its node, and then decides which of its rows stay.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from aristos.engine import job as jobs
from aristos.engine import staying, words
from aristos.engine.layout import EngineShape, StateLayout
from aristos.placement import Placement

pytestmark = pytest.mark.uncompiled

MANY = 10**9


def chosen(
    counts,
    *,
    ranks=2,
    rank=1,
    stay=MANY,
    reading=10,
    busiest_decides=1,
    tokens=100,
    announced=None,
    remote=(),
    shared=0,
):
    """What rank `rank` decides. counts: its rows for each expert. Each rank holds a contiguous part of the experts.

    announced: tokens of each rank's last call, None: no call yet. shared: 1 + the shared expert's place among those
    held. Returns kept: the rows that stay, by expert; work: the expected work of each rank, in rows; and travel:
    the rows that travel, by expert.
    """
    experts = len(counts)
    placement = Placement([e * ranks // experts for e in range(experts)], experts, ranks)
    shape = EngineShape(ranks, 8, 64, 8, max(placement.held), 1, experts, 8, experts)
    foreign = [
        (slot, owner)
        for owner in range(ranks)
        if owner != rank and owner not in remote
        for slot in range(placement.start[owner], placement.start[owner + 1])
    ]
    job = np.zeros(jobs.size(experts, ranks, len(foreign)), np.int64)
    tables = StateLayout(shape, 1, 1)
    state = np.zeros(tables.words, np.int64)
    jobs.fill_placement(job, placement.slot_of.tolist(), placement.start.tolist(), foreign)
    jobs.fill_layout(job, shape, tables)
    held = placement.held[rank]
    jobs.update(job, rank=rank, world=ranks, held=held, computed=held + len(foreign))
    jobs.update(job, stay_rows=stay, reading_rows=reading, busiest_decides=busiest_decides, shared=shared)
    for p in range(ranks):
        state[words.remote(job, p)] = p in remote
        state[words.tokens_of(job, p)] = 0 if announced is None else 1 + announced[p]
    for slot, rows in enumerate(counts):
        state[words.count(job, slot)] = rows
    staying.choose(job, state, tokens)
    kept = {slot: int(state[words.staying(job, held + i)]) for i, (slot, _) in enumerate(foreign)}
    return SimpleNamespace(
        kept={slot: rows for slot, rows in kept.items() if rows},
        work=[int(state[words.work(job, p)]) // (2 * stay) for p in range(ranks)],
        travel=[int(state[words.count(job, slot)]) for slot in range(experts)],
    )


def test_even_rows_travel_unless_copies_cost_more_than_weights():
    assert chosen([50, 50, 50, 50]).kept == {}
    assert chosen([50, 50, 50, 50], stay=50).kept == {0: 50, 1: 50}
    found = chosen([50, 60, 60, 50], stay=60)
    assert (found.kept, found.travel) == ({1: 60}, [50, 0, 60, 50])


def test_rows_of_a_hot_rank_stay_until_ranks_are_even():
    """One of rank 0's experts has nearly all rows. Half of these are rank 1's, and stay there."""
    found = chosen([300, 40, 30, 30], reading=20)
    assert found.kept == {0: 300}
    assert found.work == [380, 440]  # rank 1's work includes reading the weights


def test_the_hot_rank_expects_others_to_keep_their_rows():
    found = chosen([300, 40, 30, 30], rank=0, reading=20)
    assert (found.kept, found.work) == ({}, [380, 440])


def test_copies_saved_are_not_worth_more_work_of_the_busiest_rank():
    """Both ranks have 1200 rows. If rows for the first expert stayed, the busiest rank would have more work."""
    assert chosen([300, 300, 300, 300], stay=200).kept == {0: 300, 1: 300}
    assert chosen([300, 300, 450, 150], stay=200).kept == {}
    assert chosen([300, 300, 450, 150], stay=200, busiest_decides=0).kept == {0: 300, 1: 300}


def test_copies_are_work_of_both_ranks():
    """Copying a row takes as long as a fifth of its arithmetic. Each of the two ranks does half of that work."""
    assert chosen([50, 50, 50, 50], stay=100, reading=20).work == [220, 220]
    assert chosen([50, 50, 50, 50], ranks=4, remote=(2, 3), stay=100, reading=20).work == [220, 220, 0, 0]


def test_a_gain_of_less_than_one_reading_keeps_nothing():
    assert chosen([110, 100, 100, 100], reading=30).kept == {}
    assert chosen([20, 20, 1, 1], reading=100).kept == {}


def test_what_chance_explains_is_not_balanced():
    """72 of 128 rows for rank 0's experts are within three standard deviations of half; 720 of 1280 rows are not."""
    few = [9] * 8 + [7] * 8
    assert chosen(few, reading=2).kept == {}
    assert chosen([10 * rows for rows in few], reading=2).kept == {0: 90, 1: 90}


def test_a_rank_with_all_tokens_is_helped():
    """All rows would stay if only copies counted. But rank 0 has announced no tokens: rank 1 would do all the work."""
    even = [100, 100, 100, 100]
    assert chosen(even, stay=50, announced=[0, 100]).kept == {}
    assert chosen(even, stay=50, announced=[100, 100]).kept == {0: 100, 1: 100}
    assert chosen(even, stay=50, announced=[90, 100]).kept == {}
    assert chosen(even, stay=40, announced=[90, 100]).kept == {0: 100, 1: 100}


def test_a_rank_with_all_tokens_keeps_only_rows_that_relieve_the_busiest_rank():
    """Rank 0 holds the hot experts and has no tokens. Rank 1 keeps so many rows that both have about equal work."""
    found = chosen([100, 100, 100, 100, 10, 10, 10, 10], announced=[0, 100])
    assert sum(found.kept.values()) == 200
    assert found.work == [200, 260]


def test_without_a_limit_all_rows_stay():
    assert chosen([1, 0, 5, 5], stay=1, busiest_decides=0, reading=0, announced=[0, 100]).kept == {0: 1}


def test_rows_for_other_nodes_always_travel():
    """Ranks 0 and 1 are a node, 2 and 3 another. The expected work includes the other node's rows for experts here."""
    found = chosen([300, 10, 300, 10], ranks=4, remote=(2, 3), stay=200)
    assert found.kept == {0: 300}
    assert found.travel == [0, 10, 300, 10]
    assert found.work == [915, 350, 0, 0]


def test_every_rank_computes_the_shared_expert_for_its_own_tokens():
    """Expert 3 is this rank's shared expert. Rank 0 has its own shared rows, and ranks of other nodes send none."""
    found = chosen([100, 100, 200, 100], shared=2)
    assert (found.kept, found.work) == ({}, [500, 500])
    assert chosen([100, 100, 200, 100], shared=2, announced=[50, 100]).work == [350, 400]
    assert chosen([100, 100, 100, 100], ranks=4, remote=(2, 3), shared=1, reading=1).work == [400, 201, 0, 0]


def test_a_rank_without_tokens_keeps_nothing():
    assert chosen([0, 0, 0, 0], stay=1, tokens=0, announced=[100, 0]).kept == {}

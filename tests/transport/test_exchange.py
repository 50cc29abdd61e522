"""`Group.exchange` sends a few words of every rank to all ranks, without pickling."""

from __future__ import annotations

import time

import numpy as np
import pytest
from cases import PATIENCE

from aristos.errors import MismatchError, PoisonedError
from aristos.transport.group import Group
from aristos.transport.limits import Limits


def test_a_rank_alone_has_its_own_words():
    assert Group().exchange(np.array([3, 4]), "nothing").tolist() == [[3, 4]]


@pytest.mark.ranks(3)
def test_every_rank_gets_the_words_of_all_however_late_one_is(comm):
    group = Group(comm, Limits.from_seconds(PATIENCE))
    for turn in range(3):
        if turn == group.rank:
            time.sleep(0.05)
        assert group.exchange(np.array([group.rank, turn]), "words").tolist() == [[rank, turn] for rank in range(3)]
    group.free()


@pytest.mark.ranks(2)
def test_ranks_that_wait_for_different_things(comm):
    """MPI would let both pass, because its barrier and its allgather send the same messages."""
    group = Group(comm, Limits.from_seconds(PATIENCE))
    ways = [lambda: group.exchange(np.array([7]), "the number of calls"), lambda: group.meet("the end")]
    for mine in (group.rank, 1 - group.rank):
        with pytest.raises(MismatchError) as caught:
            ways[mine]()
        both = ["the number of calls", "the end"]
        wanted = f"rank {group.rank} waits for {both[mine]}, and rank {1 - group.rank} waits for {both[1 - mine]}: "
        assert str(caught.value).startswith(wanted)
    group.free()


@pytest.mark.ranks(2, isolated=True)
def test_a_rank_that_fails_ends_the_wait_of_the_others(comm):
    group = Group(comm, Limits.from_seconds(PATIENCE))
    if group.rank == 1:
        group.fail(ValueError("no words"))
    else:
        with pytest.raises(PoisonedError, match=r"rank 1 gave up .*ValueError: no words"):
            group.exchange(np.array([0]), "words")
    comm.Barrier()

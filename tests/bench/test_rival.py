"""`aristos/bench/gpu/rival.py`: how a rival on GPUs chooses its way to multiply.

Two threads stand for two ranks, and made-up chains for those of a GPU.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from aristos.bench.context import WRONG_RIVAL
from aristos.bench.gpu import rival
from aristos.errors import EnvironmentProblem

pytestmark = pytest.mark.parallel


class Threads:
    """A world of two ranks, which are threads. Both must call its collectives in the same order."""

    size = 2

    def __init__(self):
        self.barrier, self.values, self.rank = threading.Barrier(2), [None, None], threading.local()

    def gathered(self, name, value):
        self.values[self.rank.me] = name, value
        self.barrier.wait(10)
        names, values = zip(*self.values)
        self.barrier.wait(10)
        assert len(set(names)) == 1, f"one rank calls {names[0]}, the other {names[1]}"
        return values

    def every(self, value):
        return all(self.gathered("every", value))

    def largest(self, value):
        return max(self.gathered("largest", value))


class Ways(rival.Rival):
    """A rival whose chains behave as `made` says: way -> an exception that rank 1 raises, or (seconds, error)."""

    def __init__(self, world, made):
        gpu = SimpleNamespace(seconds=lambda call: call()[0])
        self.gpu, self.made, self.notes, self.exchanges = gpu, made, [], {rival.CHAIN_MPI: None}
        self.work = SimpleNamespace(world=world, cfg=None, passes=lambda error: error < 0.1)
        self.place = SimpleNamespace(ways=lambda cfg: tuple(made), here=contextlib.nullcontext, uncompiled="")
        self.place.torch = SimpleNamespace(__version__="2.11")

    def _prepared(self, played, exchange):
        return None, None

    def _graphs(self, played, way, out, exchange):
        def capture():
            if isinstance(self.made[way], Exception) and self.work.world.rank.me == 1:
                raise self.made[way]
            return lambda: self.made[way]

        return self._together(capture), way


def chosen(made):
    """For each rank (the way that is kept or None, the notes)."""
    world = Threads()

    def rank(me):
        world.rank.me = me
        found = Ways(world, made)
        error = lambda call, out: world.largest(call()[1])  # noqa: E731
        chains = found.chains(SimpleNamespace(count=6, error=error))
        return chains[rival.CHAIN_MPI].used.rsplit(", ", 1)[1] if chains else None, found.notes

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(rank, range(2)))


FAILS = [RuntimeError("capture\nmore"), EnvironmentProblem("ncclSend failed")]


def test_the_faster_way_is_kept():
    assert chosen({"grouped": (1.0, 0.0), "loop": (2.0, 0.0)}) == [("grouped", [])] * 2
    assert chosen({"grouped": (2.0, 0.0), "loop": (1.0, 0.0)}) == [("loop", [])] * 2


@pytest.mark.parametrize("failure", FAILS)
def test_a_way_that_fails_on_one_rank_leaves_the_other_way(failure):
    first, second = chosen({"grouped": failure, "loop": (2.0, 0.0)})
    start = f"{rival.CHAIN_MPI}, grouped: calls of 6 tokens are not timed: "
    assert first == ("loop", [f"{start}PyTorch failed on another rank"])
    assert second == ("loop", [start + rival.said(failure)])


def test_without_a_way_there_is_no_chain():
    first, second = chosen(dict(zip(("grouped", "loop"), FAILS)))
    assert first[0] is second[0] is None
    assert len(first[1]) == len(second[1]) == 2


def test_a_wrong_way_is_not_kept_though_it_is_faster():
    """If both ways are wrong, the faster one is kept, and the suite reports the chain as wrong."""
    note = f"{rival.CHAIN_MPI}, grouped: {WRONG_RIVAL}, error 5.0e-01 for 6 tokens"
    assert chosen({"grouped": (1.0, 0.5), "loop": (2.0, 0.0)}) == [("loop", [note])] * 2
    assert [way for way, _ in chosen({"grouped": (1.0, 0.5), "loop": (2.0, 0.5)})] == ["grouped"] * 2

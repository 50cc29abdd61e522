"""The engine as plain Python, in a process that compiles nothing.

Kernels and a layer in one process are compared with the reference. The protocol runs under the schedule explorer.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import SKEWS, alone, check, routing, tokens

import aristos
from aristos import reference
from aristos.cli.explore import options as explore_options
from aristos.config import ACTIVATIONS, SCORES
from aristos.engine import codes, dispatch, outbox, steps, words
from aristos.engine.layout import local_region
from aristos.explore import main as explorer
from aristos.explore import shrink, step_limit, strategies
from aristos.explore.cases import Call, Case, RankFault
from aristos.explore.cluster import Cluster
from aristos.explore.places import COPIES, HOME, LOCAL, PART, STATE, WIRE, address, private
from aristos.explore.violation import OutOfBounds, Race, SecondWriter, TooLong, WrongSide
from aristos.primitives import wire
from aristos.substrate.cpu import loop
from kernel_cache import compile as compiling

pytestmark = pytest.mark.uncompiled


EVERY = [(score, "gelu") for score in SCORES] + [("softmax", name) for name in ACTIVATIONS if name != "gelu"]


@pytest.mark.parametrize(("score", "activation"), EVERY)
def test_a_layer_in_plain_python(score, activation):
    for gated in (False, True)[ACTIVATIONS[activation].gate_only :]:
        cfg = aristos.MoEConfig(
            hidden=6,
            ffn=10,
            experts=4,
            top_k=2,
            activation=activation,
            gated=gated,
            bias=gated,
            max_tokens=40,
            limit=0.5 if gated else None,
            router=aristos.Router(score=score, renormalize=gated, scale=1.5),
        )
        w = reference.weights(cfg)
        with alone(cfg, w, threads=1) as moe:
            for count in (0, 1, 40):
                for skew in SKEWS:
                    x = tokens(cfg, count, seed=count)
                    call = routing(cfg, count, skew, seed=1)
                    check(cfg, w, x, call, moe(x, **call))
    assert compiling.compiled_here() == 0


def test_refusals_in_plain_python():
    cfg = aristos.MoEConfig(hidden=6, ffn=10, experts=4, top_k=2, max_tokens=40)
    with alone(cfg, reference.weights(cfg), threads=1) as moe:
        x = tokens(cfg, 3, seed=0)
        y = moe(x)
        with pytest.raises(aristos.errors.InputError, match="finite"):
            moe(x * np.nan)
        with pytest.raises(aristos.errors.InputError, match="each expert once at most"):
            moe(x, ids=np.zeros((3, 2), int), weights=np.ones((3, 2), "f4"))
        assert np.array_equal(moe(x), y)


def test_ctrl_c_prints_how_many_schedules_ran(monkeypatch, capsys):
    seeds = itertools.count()

    def draw(seed: int, asked: Any) -> Case:
        if next(seeds) == 2:
            raise KeyboardInterrupt
        return Case(calls=((Call(()),),) * 2)

    monkeypatch.setattr(explorer.cases, "draw", draw)
    asked = explore_options(["--schedules", "9", "--json"])
    assert explorer.run_explorer(asked) == 130
    assert json.loads(capsys.readouterr().out)["schedules"] == 2


def test_a_step_that_never_ends_is_a_livelock(monkeypatch, capsys):
    """Such a step has no visible operations, so no bound on steps ends it."""
    monkeypatch.setattr(step_limit, "SECONDS", 0.2)
    monkeypatch.setattr(shrink, "SECONDS", 0.0)

    def claim(*_: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(dispatch, "claim", claim)
    for options in ([], ["--strategy", "exhaustive"]):
        assert explorer.run_explorer(explore_options(["--json", *options])) == 1
        found = json.loads(capsys.readouterr().out)["found"]
        assert found["what"] == "Livelock"
        assert "does not return from a step" in found["message"]


def test_a_story_ends_with_what_was_violated(capsys):
    """A reader reads a long story from its end."""
    assert explorer.run_explorer(explore_options(["--mutation", "zero-not-announced"])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "shortened in" in lines[1]
    end = next(i for i, line in enumerate(lines) if line.startswith("Deadlock: "))
    assert "release" in lines[end - 1] or "store" in lines[end - 1]
    assert all(line.startswith(("rank ", "  ")) for line in lines[end + 1 :])


def test_shortening_stops_after_enough_trials_that_find_nothing(monkeypatch):
    trials = []

    def attempt(case, decisions, most, with_story=False):
        trials.append(most)
        return Race("") if sum(decisions) == 500 else None, ""

    monkeypatch.setattr(shrink, "attempt", attempt)
    shorter = shrink.shrink(Case(calls=((Call(()),),) * 2), [1] * 500, Race(""), 70)
    assert sum(shorter.decisions) == 500
    assert trials == [70] * (shrink.IN_VAIN + 1)


def test_a_trial_of_too_many_steps_ends():
    case = Case(calls=((Call(((0,),)),),) * 2)
    assert shrink.attempt(case, [], 10_000) == (None, "")
    found, _ = shrink.attempt(case, [], 10)
    assert isinstance(found, TooLong)


# ---- the protocol under the explorer: cases that once showed a bug, and the checks themselves ------------------------


def play(case: Case, seeds: int = 20) -> None:
    """Run some schedules of a case. Raises the first Violation."""
    for seed in range(seeds):
        for strategy in ("pct", "random"):
            Cluster(case, strategies.make(strategy, seed, strategies.length(case))).run_schedule()


def test_an_exchange_that_ends_early_leaves_nothing_in_the_outbox():
    """One rank makes an exchange where the other calls a layer. It gets no rows back, but must put its own rows."""
    first = Call(((1, 0),) * 4, broken=True, ends_early=True)
    calls = ((first,), (replace(first, exchange=True),))
    play(Case(placement=(0, 0), top_k=2, max_tokens=9, rows=3, tile=3, words=2, node_of=(0, 1), bundle=4, calls=calls))


def test_tokens_without_choices_among_those_of_a_bundle():
    """Such tokens are combined before the bundle is built. By then their table entries no longer name packed rows."""
    ids = tuple((1, -1) if t in (0, 4, 8) else (-1, -1) for t in range(9))
    calls = ((Call(()),) * 2, (Call(ids),) * 2)
    sizes = Case(placement=(0, 0), top_k=2, max_tokens=9, rows=9, tile=3, words=2, node_of=(0, 1), bundle=4)
    play(replace(sizes, workers=2, calls=calls))


@pytest.mark.slow
@pytest.mark.parametrize("node_of", [(0, 0, 0), (0, 1, 2), (0, 1, 0)], ids=["one node", "three nodes", "two nodes"])
def test_busy_calls(node_of):
    """First many rows pass through tiny rings, with two workers a rank. Then some ranks have no rows in some calls."""
    rng = np.random.default_rng(3)
    for least, rows in ((9, 2), (0, 30)):
        counts = rng.integers(least, 10, (3, 3))
        calls = tuple(
            tuple(Call(tuple(tuple(rng.permutation(4)[:2].tolist()) for _ in range(n))) for n in mine)
            for mine in counts
        )
        sizes = Case(ranks=3, placement=(0, 1, 1, 2), top_k=2, max_tokens=9, rows=rows, workers=2, words=2, bundle=40)
        play(replace(sizes, node_of=node_of, calls=calls), seeds=4)


def test_a_rank_that_reads_poison_keeps_its_cause(monkeypatch):
    """FAILED holds the cause as soon as a worker sees the poison, whichever rank the poison came from."""
    causes: set[int] = set()
    real = steps.next_command

    def noted(job: Any, st: Any, worker: int) -> int:
        kind = real(job, st, worker)
        if kind == codes.FAIL:
            causes.add(st[words.FAILED])
        return kind

    monkeypatch.setattr(steps, "next_command", noted)
    calls = ((Call(((1,), (2,))),),) * 3
    play(Case(ranks=3, placement=(0, 1, 2), node_of=(0, 0, 0), fault=RankFault(0, 1, 0), calls=calls), seeds=4)
    assert causes == {codes.CAUSE_INTERRUPT}


@pytest.mark.parametrize("nodes", [(0, 0), (0, 1)])
def test_backward_calls_with_a_full_ring_and_mixed_experts(nodes):
    """Rows of two experts take turns in a ring of two rows, and each run prefers to wait for more rows."""
    ids = tuple(((2 + t) % 4, (1 + t) % 4) for t in range(6))
    calls = ((Call(ids), Call(ids), Call(ids[:2]), Call(ids[::-1])), (Call(()), Call(()), Call(ids), Call(ids)))
    sizes = Case(placement=(0, 0, 1, 1), top_k=2, max_tokens=6, rows=2, merge=8, backward=True, words=2, calls=calls)
    for workers in (1, 2):
        play(replace(sizes, node_of=nodes, workers=workers), seeds=2)


def test_a_second_writer_is_seen():
    cluster = Cluster(Case(calls=((Call(()),),) * 2), strategies.Replay([]))
    word = address(0, LOCAL, local_region(cluster.case.shape, cluster.case.nodes, 0, 1))
    with cluster.patched():
        cluster.sched.current = cluster.sched.actors[1]
        aristos.primitives.memory.store(word, 1)
        cluster.sched.current = cluster.sched.actors[0]
        with pytest.raises(SecondWriter, match="rank 0 writes POISON of rank 1 at rank 0, whose writer is rank 1"):
            aristos.primitives.memory.store(word, 2)


@pytest.mark.parametrize("access", ["load", "store", "load_acquire", "store_release", "fetch_add", "compare_exchange"])
@pytest.mark.parametrize(
    "at",
    [
        0,
        -8,
        address(2, LOCAL),
        address(0, HOME + 1),
        address(0, HOME, 1 << 20),
        address(0, LOCAL, PART - 8),
        private(0, 16),
        private(2, STATE),
        private(-1, WIRE),
    ],
)
def test_an_access_where_nothing_lies_is_seen(at, access):
    """The address was never written, or is past its area. On a real machine such an access may cause no fault."""
    cluster = Cluster(Case(calls=((Call(()),),) * 2), strategies.Replay([]))
    with cluster.patched():
        cluster.sched.current = cluster.sched.actors[1]
        cluster.memory.local.add(at)  # so that no other actor has to run first
        with pytest.raises(OutOfBounds, match=f"address {at:#x}, where nothing lies"):
            getattr(aristos.primitives.memory, access)(
                at, *{"load": [], "load_acquire": [], "compare_exchange": [0, 1]}.get(access, [1])
            )


def test_a_wait_with_a_busy_wire_is_bounded(monkeypatch):
    """Heartbeats of many remote peers must not keep a worker from returning to Python, which counts the seconds."""
    turns = itertools.count()

    def tend_wire(*_: Any) -> bool:
        assert next(turns) < 10_000, "the worker does not return"
        return True

    monkeypatch.setattr(loop, "tend_wire", tend_wire)
    monkeypatch.setattr(loop, "publish_progress", lambda *_: None)
    monkeypatch.setattr(steps, "decide", lambda *_: codes.IDLE)
    job, state = np.zeros(words.JOB_WORDS, np.int64), np.zeros(1000, np.int64)
    job[words.REMOTE] = 1
    assert loop.work(job, state, 0) == codes.PAUSED


def test_a_waiting_worker_sends_heartbeats(monkeypatch):
    """The explorer does not notice missing heartbeats, so they are checked here."""
    shown: list[int] = []
    monkeypatch.setattr(steps, "heartbeat", lambda job, st, progress: shown.append(int(progress)))
    monkeypatch.setattr(steps, "decide", lambda *_: codes.IDLE)
    job, state, lock = np.zeros(words.JOB_WORDS, np.int64), np.zeros(1000, np.int64), np.zeros(1, np.int64)
    job[words.PAUSE_NS], job[words.LOCK], state[words.PROGRESS] = 3 * outbox.HEARTBEAT_NS, lock.ctypes.data, 7
    job[words.T_COMMAND] = words.STATE_WORDS
    assert loop.work(job, state, 0) == codes.PAUSED
    assert 1 <= len(shown) <= 4
    assert set(shown) == {7}


# ---- ranks on GPUs, each with a proxy


def on_gpus(**sizes: Any) -> Case:
    """Two ranks on two nodes that send each other rows in two calls; one bundle each by default."""
    calls = (tuple(Call(tuple((token % 2,) for token in range(count))) for count in (3, 2)),) * 2
    return Case(node_of=(0, 1), proxy=True, attention=True, calls=calls, **sizes)


@pytest.mark.parametrize(("workers", "rows"), [(1, 1), (2, 2), (4, 3)])
def test_ranks_on_gpus(workers, rows):
    """Grids of several sizes and rings of few rows: the results equal the reference."""
    play(on_gpus(workers=workers, rows=rows, runs=2, all_split=True), seeds=3)


@pytest.mark.parametrize("how", ["gpu", "host", "copy"])
def test_a_rank_on_a_gpu_that_fails(how):
    """Whichever side fails, the other side and all remote ranks are notified. No rank keeps waiting."""
    play(on_gpus(workers=2, fault=RankFault(0, 1, 0, how=how)), seeds=8)


def test_what_a_side_cannot_reach():
    """Blocks can reach neither MPI nor its window. The proxy writes the mirror by copies, and no words of blocks."""
    cluster = Cluster(on_gpus(), strategies.Replay([]))
    block, proxy = (next(a for a in cluster.sched.actors if a.name == name) for name in ("rank 0", "rank 0 proxy"))
    rank, mem = cluster.ranks[0], aristos.primitives.memory
    window = rank.sides[3][rank.sides[2][words.T_REGION_TO] + 1]
    mirror, outbox = rank.table(words.T_REGION_FROM, 1), rank.table(words.T_REGION_TO, 1)
    wrong = [
        (block, lambda: mem.load(window + rank.job[words.P_RETURN_RECORDS]), "cannot reach"),
        (block, lambda: wire.put(private(0, WIRE), 1, 0, outbox, 8), "calls MPI, which only the host may call"),
        (proxy, lambda: mem.load(mirror), "cannot reach"),
        (proxy, lambda: mem.store(mirror, 1), "which it may not write itself"),
        (proxy, lambda: mem.store_release(outbox + 8 * words.TAIL, 1), "which it may not write itself"),
        (
            block,
            lambda: mem.store_release(rank.table(words.T_LINE_FROM, 1) + 8 * words.TAIL, 1),
            "which it may not write itself",
        ),
        (proxy, lambda: wire.put(private(0, WIRE, COPIES), 1, mirror + 64, window, 8), "which is not its mirror"),
    ]
    with cluster.patched():
        for actor, access, message in wrong:
            cluster.sched.current = actor
            with pytest.raises(WrongSide, match=message):
                access()


def test_a_copy_under_way_is_not_read():
    """Copied words may be read only after the proxy has waited for the copy and passed them on."""
    cluster = Cluster(on_gpus(), strategies.Replay([]))
    cluster.sched.switch = lambda *_: None  # type: ignore[method-assign]
    block, proxy = (next(a for a in cluster.sched.actors if a.name == name) for name in ("rank 0", "rank 0 proxy"))
    rank, mem, copies = cluster.ranks[0], aristos.primitives.memory, private(0, WIRE, COPIES)
    window = rank.sides[3][rank.sides[2][words.T_REGION_TO] + 1] + rank.job[words.P_RECORDS]
    mirror, word = (
        rank.table(words.T_REGION_FROM, 1) + rank.job[words.P_RECORDS],
        rank.table(words.T_LINE_FROM, 1) + 8 * words.TAIL,
    )
    with cluster.patched():
        cluster.memory.value[window] = 7
        cluster.sched.current = proxy
        wire.put(copies, 1, mirror, window, 8)
        cluster.sched.current = block
        with pytest.raises(Race, match="has not flushed"):
            mem.load(mirror)
        cluster.copies.land(cluster.copies.moving[mirror])
        with pytest.raises(Race, match="has not flushed"):
            mem.load(mirror)
        cluster.sched.current = proxy
        wire.flush(copies, 1)
        cluster.sched.current = block
        with pytest.raises(Race, match="may be writing it"):
            mem.load(mirror)
        cluster.sched.current = proxy
        mem.store_release(word, 1)
        cluster.sched.current = block
        assert mem.load_acquire(word) == 1
        assert mem.load(mirror) == 7

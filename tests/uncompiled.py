"""Tests for a process with NUMBA_DISABLE_JIT=1; test_uncompiled.py starts them. Here the engine is plain Python.

The kernels and a layer in one process against the reference, and the protocol on watched memory (see actors.py).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import actors
import numpy as np
import pytest
from actors import Call, Deadlock, Machine, Sizes, play, shape_of
from cases import SKEWS, alone, check, routing, tokens
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from network import Race
from numba.core import config
from places import FAR, FIRST, NEAR, address, where

import aristos
from aristos import compile as compiling
from aristos import reference, wire
from aristos.engine import arrivals, blocks, dispatch, experts, layout, lock, outbox, packing, returns, steps, team
from aristos.engine import fields as f

pytestmark = pytest.mark.skipif(
    not getattr(config, "DISABLE_JIT", False), reason="for a process with NUMBA_DISABLE_JIT=1"
)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("score", ["softmax", "softmax_topk"])
def test_a_layer_in_plain_python(activation, score):
    for gated in (False, True):
        cfg = aristos.MoEConfig(
            hidden=6,
            ffn=10,
            experts=4,
            top_k=2,
            activation=activation,
            gated=gated,
            bias=gated,
            max_tokens=40,
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
        with pytest.raises(aristos.errors.InputError, match="twice"):
            moe(x, ids=np.zeros((3, 2), int), weights=np.ones((3, 2), "f4"))
        assert np.array_equal(moe(x), y)


# ---- the protocol on watched memory -------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> tuple[Sizes, list[list[Call]], int]:
    world = draw(st.integers(1, 5))
    e = draw(st.integers(1, 6))
    sizes = Sizes(
        placement=tuple(draw(st.lists(st.integers(0, world - 1), min_size=e, max_size=e))),
        world=world,
        top_k=draw(st.integers(1, min(3, e))),
        max_tokens=draw(st.sampled_from((1, 4, 9))),
        ring=draw(st.sampled_from((1, 2, 3, 4, 30))),
        workers=draw(st.integers(1, 3)),
        tile=draw(st.integers(1, 5)),
        run=draw(st.integers(2, 8)),
        merge=draw(st.sampled_from((0, 3, 8))),
        words=draw(st.integers(1, 2)),
        node_of=draw(st.none() | st.tuples(*[st.integers(0, 2)] * world)),
        block=draw(st.sampled_from((1, 3, 40))),
    )
    count = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    calls: list[list[Call]] = [[] for _ in range(world)]
    for _ in range(count):
        kind = draw(st.sampled_from(("fine", "fine", "fine", "refused", "layer", "object", "combine")))
        odd, exchange = int(rng.integers(world)), bool(rng.random() < 0.3)
        differ = kind == "object" or (kind == "layer" and not exchange)
        early = kind == "refused" or (differ and world > 1)
        late = kind == "combine" and exchange
        for r in range(world):
            it = r == odd
            call = Call(
                ids=draw_ids(rng, sizes),
                layer=int(kind == "layer" and it),
                refuses=kind == "refused" and it,
                exchange=exchange != (kind == "object" and it),  # one rank in a layer, the others in an exchange
                refuses_combine=late and it,
                broken=early or late,
                ends_early=early,
            )
            calls[r].append(call)
    return sizes, calls, draw(st.integers(0, 10**6))


def draw_ids(rng: np.random.Generator, s: Sizes) -> np.ndarray:
    """[S, k] ids of one rank's call: none, all of one expert, or random with choices not taken."""
    e, count = len(s.placement), int(rng.integers(0, s.max_tokens + 1))
    ids = np.argsort(rng.random((count, e)), axis=1)[:, : s.top_k].reshape(count, s.top_k)
    style = rng.integers(4)
    if style == 0:
        ids[:] = -1
        ids[:, 0] = rng.integers(e)
    elif style == 1:
        ids[rng.random(ids.shape) < 0.5] = -1
    return ids


@settings(max_examples=90, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking would take many minutes
@given(runs())
def test_no_race_no_deadlock_nothing_lost(run):
    """Whatever the order of the actors: each access follows what it must, every call ends, every row comes once."""
    play(*run)


BUSY = Sizes(
    placement=(0, 1, 1, 2),
    world=3,
    top_k=2,
    max_tokens=9,
    ring=2,
    workers=2,
    tile=2,
    run=4,
    merge=0,
    words=2,
)


def busy_calls(exchange: bool = False, least: int = 9) -> list[list[Call]]:
    """Eight calls of many rows through tiny rings; with `least` 0, some ranks of some calls have none."""
    rng = np.random.default_rng(3)
    counts = rng.integers(least, 10, (3, 8))
    some = [[np.argsort(rng.random((n, 4)), axis=1)[:, :2].reshape(n, 2) for n in mine] for mine in counts]
    return [[Call(ids, exchange=exchange) for ids in mine] for mine in some]


def refused_halves() -> list[list[Call]]:
    """Exchanges, in every second one of which a rank refuses the second half."""
    calls = busy_calls(exchange=True, least=0)
    for n in range(0, 8, 2):
        for r, mine in enumerate(calls):
            mine[n] = replace(mine[n], refuses_combine=r == n % 3, broken=True)
    return calls


def play_all(calls: list[list[Call]], **changes: Any) -> None:
    """Several orders of one set of calls; between nodes, where each takes far more steps, of the first three."""
    sizes = replace(BUSY, **changes)
    for seed in range(6 if sizes.nodes.single else 2):
        play(sizes, calls if sizes.nodes.single else [mine[:3] for mine in calls], seed)


def play_busy(**changes: Any) -> None:
    """Rows enough to fill rings again and again, then calls in which many ranks have none."""
    play_all(busy_calls(), **changes)
    play_all(busy_calls(least=0), **{"ring": 30, **changes})


@pytest.mark.parametrize("node_of", [None, (0, 1, 2), (0, 1, 0)], ids=["one node", "three nodes", "two nodes"])
def test_busy_calls(node_of):
    play_busy(node_of=node_of)
    play_all(busy_calls(exchange=True), node_of=node_of)
    play_all(refused_halves(), ring=30, node_of=node_of)


BETWEEN = Sizes(
    placement=(0, 0),
    world=2,
    top_k=2,
    max_tokens=9,
    ring=3,
    workers=1,
    tile=3,
    run=2,
    merge=0,
    words=2,
    node_of=(0, 1),
    block=4,
)


def test_a_half_exchange_leaves_nothing_in_the_outbox():
    """A rank in an exchange beside one in a layer gets no rows back, and must put its own all the same."""
    ids = np.tile([1, 0], (4, 1))
    for seed in range(20):
        first = Call(ids, broken=True, ends_early=True)
        play(BETWEEN, [[first], [replace(first, exchange=True)]], seed)


def test_tokens_without_choices_among_those_of_a_block():
    """They are combined before the block is made: what their tables hold by then is no packed row."""
    ids = np.full((9, 2), -1)
    ids[[0, 4, 8], 1] = 1
    for seed in range(20):
        play(replace(BETWEEN, workers=2, ring=9), [[Call(ids[:0])] * 2, [Call(ids)] * 2], seed)


# ---- the watch itself: with an invariant taken away, it must speak up -----------------------------------------------


def no_credit_check(monkeypatch):
    """A source that overwrites ring rows their owner has not freed."""

    class Generous:
        """`memory` with every credit word full."""

        def __getattr__(self, name: str) -> Any:
            return getattr(aristos.memory, name)

        def load_acquire(self, address: int) -> int:
            return 1 << 40

    monkeypatch.setattr(dispatch, "mem", Generous())


def tail_before_record(monkeypatch):
    """The tail is moved on before the record is put."""

    class Hasty:
        """`memory` whose releases overtake the stores before them."""

        def __init__(self) -> None:
            self.late: list[tuple[int, int]] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(aristos.memory, name)

        def store(self, address: int, value: int) -> None:
            self.late.append((address, value))

        def store_release(self, address: int, value: int) -> None:
            aristos.memory.store_release(address, value)
            while self.late:
                aristos.memory.store(*self.late.pop())

    monkeypatch.setattr(dispatch, "mem", Hasty())


def one_announcement_buffer(monkeypatch):
    """Announcements of all epochs in one place."""
    for module, name in ((packing, "announcement_to"), (arrivals, "announcement_from")):
        real = getattr(layout, name)
        monkeypatch.setattr(module, name, lambda job, st, peer, epoch, real=real: real(job, st, peer, 0))


def leave_with_rows_owed(monkeypatch):
    """A call that ends when the rank's own tokens are combined."""
    monkeypatch.setattr(steps, "finished", lambda job, st: st[f.BLOCKS_LEFT] == 0 and st[f.UNSENT] == 0)


def rows_freed_before_they_are_read(monkeypatch):
    """Credit for a tile as soon as its record is read."""
    real = arrivals.read_record

    def eager(job, st, source):
        real(job, st, source)
        word = layout.word_to(job, st, source, f.CREDIT)
        aristos.memory.store_release(word, st[job[f.T_READ_ROWS] + source])

    monkeypatch.setattr(arrivals, "read_record", eager)


def returned_before_computed(monkeypatch):
    """Rows announced as returned while the expert has not run."""
    real = arrivals.read_record

    def eager(job, st, source):
        tile = st[job[f.T_READ_TILES] + source]
        real(job, st, source)
        r = job[f.T_RECORD] + f.RECORD_WORDS * (source * job[f.SLOTS] + tile % job[f.SLOTS])
        returns.post_return(job, st, source, st[r + f.R_PACKED], st[r + f.R_ROWS], f.OK, -1)
        st[job[f.T_RETURNED] + source] -= 1

    monkeypatch.setattr(arrivals, "read_record", eager)


def the_same_return_row_for_two(monkeypatch):
    """An off-by-one in where outputs go."""
    real = layout.return_row
    monkeypatch.setattr(
        experts, "return_row", lambda job, st, source, packed: real(job, st, source, max(0, packed - 1))
    )


def no_lock(monkeypatch):
    """Workers of a rank that decide side by side."""
    for module in (steps, lock):
        monkeypatch.setattr(module, "lock", lambda job: True)
        monkeypatch.setattr(module, "unlock", lambda job: None)


def tokens_combined_early(monkeypatch):
    """Blocks counted as complete one row too early."""
    real = packing.set_blocks

    def hasty(job, st, tokens):
        real(job, st, tokens)
        for b in range(st[f.BLOCKS_LEFT]):
            left = job[f.T_BLOCK_LEFT] + b
            st[left] -= st[left] > 1

    monkeypatch.setattr(packing, "set_blocks", hasty)


def no_word_to_ranks_without_rows(monkeypatch):
    """Ranks that get no rows are not told so."""
    real = packing.word_to

    def some(job, st, target, word):
        if st[job[f.T_ROWS_TO] + target] == 0:
            return NOWHERE.ctypes.data
        return real(job, st, target, word)

    monkeypatch.setattr(packing, "word_to", some)


NOWHERE = np.zeros(64, np.int64)


def output_begun_before_all_activations(monkeypatch):
    """A run that workers share by columns goes to its second stage a share too early."""
    real = team.share_done

    def early(job, st):
        if st[f.TEAM_STAGE] == f.STAGE_UP and st[f.TEAM_DONE] == 0:
            st[f.TEAM_DONE] += 1
        return real(job, st)

    monkeypatch.setattr(team, "share_done", early)


# ---- the same between nodes


def words_before_the_flush(monkeypatch):
    """A batch's words are put, and only then what they tell of is flushed."""
    flush, put_words = wire.flush, outbox.put_words

    def hasty(job, st, peer, first, end):
        put_words(job, st, peer, first, end)
        flush(job[f.WIRE], peer)

    monkeypatch.setattr(outbox, "put_words", hasty)
    monkeypatch.setattr(wire, "flush", lambda address, peer: None)


def no_flush(monkeypatch):
    """Puts are taken to arrive in the order they are made in."""
    monkeypatch.setattr(wire, "flush", lambda address, peer: None)


def words_believed_without_a_sync(monkeypatch):
    """What a word tells of is taken to be visible as soon as the word is."""
    monkeypatch.setattr(wire, "sync", lambda address: None)


def halves_not_compared(monkeypatch):
    """A word is believed as soon as one half of it has come."""

    class Trusting:
        """`memory` in which the second half always agrees with the first."""

        def __getattr__(self, name: str) -> Any:
            return getattr(aristos.memory, name)

        def load(self, address: int) -> int:
            if address >= FIRST and where(address)[1] == FAR and address % 16 == 8:
                return ~aristos.memory.load(address - 8)
            return aristos.memory.load(address)

    monkeypatch.setattr(outbox, "mem", Trusting())


def far_credit_for_more_than_the_ring(monkeypatch):
    """A source that overwrites rows of a far ring before their owner has freed them."""

    class Generous:
        """`memory` with every credit word full."""

        def __getattr__(self, name: str) -> Any:
            return getattr(aristos.memory, name)

        def load_acquire(self, address: int) -> int:
            return 1 << 40

    monkeypatch.setattr(blocks, "mem", Generous())
    monkeypatch.setattr(
        blocks, "end_token", lambda job, st, owner, first, room, end=blocks.end_token: end(job, st, owner, first, 4)
    )


def a_batch_nobody_holds_the_wire_for(monkeypatch):
    """Workers that call MPI side by side."""
    monkeypatch.setattr(wire, "take", lambda address: True)


FAR_BREAKS: dict[Any, Any] = {
    words_before_the_flush: Race,
    no_flush: Race,
    words_believed_without_a_sync: Race,
    halves_not_compared: (Race, Deadlock, AssertionError, IndexError),
    far_credit_for_more_than_the_ring: Race,
    a_batch_nobody_holds_the_wire_for: Race,
}


@pytest.mark.parametrize("take_away", FAR_BREAKS, ids=lambda b: b.__name__)
def test_the_watch_sees_between_nodes(monkeypatch, take_away):
    machines = []

    class Watched(Machine):
        """A machine under which the break is made once the network is in place."""

        @contextmanager
        def memory_functions(self):
            machines.append(self)
            with super().memory_functions(), pytest.MonkeyPatch.context() as patch:
                take_away(patch)
                yield

    monkeypatch.setattr(actors, "Machine", Watched)
    with pytest.raises(FAR_BREAKS[take_away]):
        play_busy(node_of=(0, 1, 0), block=4)
    assert machines


BREAKS: dict[Any, Any] = {
    no_credit_check: Race,
    tail_before_record: Race,
    one_announcement_buffer: (Race, Deadlock),
    leave_with_rows_owed: (Race, Deadlock, AssertionError),
    rows_freed_before_they_are_read: Race,
    returned_before_computed: (Race, Deadlock, AssertionError),
    the_same_return_row_for_two: Race,
    no_lock: (Race, AssertionError),
    tokens_combined_early: Race,
    no_word_to_ranks_without_rows: Deadlock,
    output_begun_before_all_activations: (Race, AssertionError),
}


@pytest.mark.parametrize("take_away", BREAKS, ids=lambda b: b.__name__)
def test_the_watch_sees(monkeypatch, take_away):
    take_away(monkeypatch)
    with pytest.raises(BREAKS[take_away]):
        play_busy()


def test_a_second_writer_is_seen():
    machine = Machine(shape_of(BUSY), BUSY.nodes, 1)
    word = address(0, NEAR, layout.near_region(shape_of(BUSY), BUSY.nodes, 0, 1))
    with machine.memory_functions():
        aristos.memory.store(word, 1)
        machine.actor = 1
        with pytest.raises(Race, match="which rank 0 has written"):
            aristos.memory.store(word, 2)

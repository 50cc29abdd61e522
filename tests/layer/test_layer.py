"""The layer as a user calls it: every option of a call, on one rank and on several.

Outputs are compared with float64, and with each other bit by bit.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import SKEWS, MoE, alone, check, rings_of, routing, run_job, same, tokens
from mpi import find_mpiexec, ranks_each

import aristos
from aristos import reference
from aristos.config import ACTIVATIONS, SCORES
from aristos.engine import words
from aristos.errors import InputError, PeerInputError, ResultsError
from aristos.primitives.wire import try_lock, unlock

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=70)
W = reference.weights(CFG)
needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def make(comm: Any = None, cfg: aristos.MoEConfig = CFG, w: dict[str, Any] | None = None, **options: Any) -> Any:
    """A layer with its weights loaded."""
    moe = MoE(cfg, comm, **options)
    for layer in range(moe.layers):
        moe.load(layer, **(reference.weights(cfg) if w is None else w))
    return moe


# ---- one process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_arithmetic_of_every_configuration(activation):
    both = (False, True)
    for gated, bias, score, renormalize in itertools.product(both, both, SCORES, both):
        if ACTIVATIONS[activation].gate_only and not gated:
            continue
        router = aristos.Router(score=score, renormalize=renormalize, scale=1.7)
        cfg = replace(CFG, activation=activation, gated=gated, bias=bias, router=router, top_k=3)
        w = reference.weights(cfg, seed=1)
        with make(cfg=cfg, w=w) as moe:
            x = tokens(cfg, 45, seed=2)
            check(cfg, w, x, {}, moe(x))
            call = routing(cfg, 45, "some", seed=3)
            check(cfg, w, x, call, moe(x, **call))


@pytest.mark.parametrize(("activation", "limit"), [("swiglu_oai", None), ("swiglu_oai", 0.5), ("silu", 0.5)])
def test_gates_with_limits(activation, limit):
    cfg = replace(CFG, activation=activation, gated=True, limit=limit, bias=True)
    w, x = reference.weights(cfg, seed=1), tokens(cfg, 45, seed=2)
    with make(cfg=cfg, w=w) as moe:
        check(cfg, w, x, {}, moe(x))


def test_any_leading_shape():
    with make() as moe:
        x = tokens(CFG, 60, seed=0)
        y = moe(x)
        call = routing(CFG, 60, "some", seed=1)
        routed = moe(x, **call)
        for lead in ((60,), (5, 12), (3, 4, 5), (1, 60, 1)):
            shaped = x.reshape(*lead, CFG.hidden)
            assert same(moe(shaped), y.reshape(shaped.shape))
            mine = {name: v.reshape(*lead, CFG.top_k) for name, v in call.items()}
            assert same(moe(shaped, **mine), routed.reshape(shaped.shape))
        one = moe(x[7])
        assert same(one, y[7])
        assert same(moe(x[7], ids=call["ids"][7], weights=call["weights"][7]), routed[7])
        for empty in ((0, CFG.hidden), (2, 0, CFG.hidden), (0, 3, CFG.hidden)):
            assert moe(np.zeros(empty, np.float32)).shape == empty
        assert same(moe(x), y)


class Interface:
    """An object with NumPy's array interface alone."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.__array_interface__ = array, array.__array_interface__


class Capsule:
    """An object with DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def strided_views(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same rows as arrays of all kinds."""
    rows, width = x.shape
    wide = np.zeros((rows, 2 * width + 3), np.float32)
    wide[:, 5 : 5 + width] = x
    every_second = np.zeros((rows, 2 * width), np.float32)
    every_second[:, ::2] = x
    odd = np.zeros(x.nbytes + 4, np.uint8)[2 : 2 + x.nbytes].view(np.float32).reshape(x.shape)
    odd[:] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "rows apart": wide[:, 5 : 5 + width],
        "rows backwards": x[::-1].copy()[::-1],
        "columns apart": every_second[:, ::2],
        "Fortran order": np.asfortranarray(x),
        "off a word": odd,
        "read-only": frozen,
        "bytes apart": np.lib.stride_tricks.as_strided(_apart(x, 4 * width + 2), x.shape, (4 * width + 2, 4)),
    }


def _apart(x: np.ndarray, step: int) -> np.ndarray:
    """Memory in which row r of x begins at byte r * step."""
    raw = np.zeros(len(x) * step + 4, np.uint8)
    for r, row in enumerate(x):
        raw[r * step : r * step + row.nbytes] = row.view(np.uint8)
    return raw[: len(raw) // 4 * 4].view(np.float32)


def test_arrays_of_every_kind():
    x = tokens(CFG, 33, seed=0)
    call = routing(CFG, 33, "uniform", seed=1)
    with make() as moe:
        y, routed = moe(x), moe(x, **call)
        for name, view in strided_views(x).items():
            assert np.array_equal(view, x), name
            assert same(moe(view), y), name
        broadcast = np.broadcast_to(x[3], (9, CFG.hidden))
        assert same(moe(broadcast), np.ascontiguousarray(np.broadcast_to(y[3], broadcast.shape)))
        for kind in (Interface, Capsule):
            assert same(moe(kind(x)), y)
            assert same(moe(kind(x), ids=kind(call["ids"]), weights=kind(call["weights"])), routed)
            other = make(w={name: kind(v) for name, v in W.items()})
            assert same(other(x), y)
            other.close()
        for dtype in ("i1", "u1", "i4", "u8"):
            assert same(moe(x, ids=call["ids"].astype(dtype), weights=call["weights"]), routed)
        for wide in ("f8", "f4"):
            assert same(moe(x, ids=call["ids"][:, ::-1][:, ::-1], weights=call["weights"].astype(wide)), routed)


def test_out_is_written_and_returned():
    x = tokens(CFG, 33, seed=0)
    with make() as moe:
        y = moe(x)
        out = np.full_like(x, np.nan)
        assert moe(x, out=out) is out
        assert same(out, y)
        out = np.full((3, 11, CFG.hidden), np.nan, np.float32)
        assert moe(x.reshape(out.shape), out=out) is out
        assert same(out.reshape(x.shape), y)
        both = np.full((66, CFG.hidden), np.nan, np.float32)
        both[:33] = x
        moe(both[:33], out=both[33:])
        assert same(both[33:], y)
        call = routing(CFG, 33, "none", seed=0)
        assert not moe(x, **call, out=np.full_like(x, np.nan)).any()


def test_weights_in_both_layouts_are_copied():
    cfg = replace(CFG, gated=True, bias=True)
    w = reference.weights(cfg)
    turned = {n: np.ascontiguousarray(v.swapaxes(-1, -2)) if "bias" not in n else v for n, v in w.items()}
    x = tokens(cfg, 20, seed=0)
    with make(cfg=cfg, w=w) as moe:
        y = moe(x)
        moe.load(**turned, layout="out_in")
        assert same(moe(x), y)
        moe.load(**{n: v.swapaxes(-1, -2) if "bias" not in n else v for n, v in turned.items()})  # strided weights
        assert same(moe(x), y)
        moe.load(**w, local=True)  # the only rank owns all experts
        assert same(moe(x), y)
        mine = {n: v.copy() for n, v in w.items()}
        moe.load(**mine)
        for v in mine.values():
            v[:] = 7.0
        assert same(moe(x), y)  # the layer has packed copies: later changes do not reach it
        moe.load(**reference.weights(cfg, seed=9))
        assert not same(moe(x), y)
        moe.load(**{n: v for n, v in w.items() if n != "router"})
        call = routing(cfg, 20, "uniform", seed=1)
        check(cfg, w, x, call, moe(x, **call))


def test_ties_go_to_the_lowest_expert():
    cfg = replace(CFG, top_k=3)
    w = reference.weights(cfg)
    w["router"] = np.zeros_like(w["router"])
    x = tokens(cfg, 10, seed=0)
    third = np.full((10, 3), np.float32(1) / np.float32(3))
    with make(cfg=cfg, w=w) as moe:
        assert same(moe(x), moe(x, ids=np.tile([0, 1, 2], (10, 1)), weights=third))
        w["router"][:, 1] = 1.0
        x = np.abs(x)
        moe.load(**w)
        check(cfg, w, x, {}, moe(x))


def test_scores_far_apart_stay_finite():
    w = dict(W, router=W["router"] * np.float32(1e4))
    x = tokens(CFG, 40, seed=0)
    for score in SCORES:
        cfg = replace(CFG, router=aristos.Router(score=score))
        with make(cfg=cfg, w=w) as moe:
            check(cfg, w, x, {}, moe(x))


def test_comm_none_under_a_launcher_warns(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "2")
    with make():  # in a batch script, before srun
        pass
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.warns(UserWarning, match=r"comm is None in one of 4 tasks that srun started"), make() as moe:
        assert (moe.rank, moe.world, moe.comm) == (0, 1, None)


# ---- several ranks ------------------------------------------------------------------------------------------------


def placements(world: int, experts: int) -> dict[str, list[int] | None]:
    """Named placements: even and uneven, some with ranks that hold no expert."""
    return {
        "contiguous": None,
        "round robin": [e % world for e in range(experts)],
        "all on the last": [world - 1] * experts,
        "backwards": [world - 1 - e * world // experts for e in range(experts)],
        "one elsewhere": [0] * (experts - 1) + [world - 1],
    }


@ranks_each(1, 2, 3, 4)
def test_result_and_bits_for_every_placement_thread_count_and_skew(comm, world):
    count = (17, 0, 70, 33)[comm.rank]
    x = tokens(CFG, count, seed=comm.rank)
    calls = {skew: routing(CFG, count, skew, seed=10 + comm.rank) for skew in SKEWS}
    with alone(CFG, W, threads=1) as one:
        wanted = {skew: one(x, **call) for skew, call in calls.items()}
    for skew, y in wanted.items():
        check(CFG, W, x, calls[skew], y)
    ways = placements(world, CFG.experts)
    for threads, name in [*zip(itertools.cycle((2, 3, 1)), ways), (1, "contiguous"), (3, "contiguous")]:
        with make(comm, threads=threads, placement=ways[name]) as moe:
            assert moe.threads == threads
            for skew, call in calls.items():
                assert same(moe(x, **call), wanted[skew]), (threads, name, skew)


@ranks_each(2, 5)
def test_fewer_experts_than_ranks(comm, world):
    cfg = replace(CFG, experts=1, top_k=1)
    w = reference.weights(cfg)
    x = tokens(cfg, 20 * (comm.rank % 3), seed=comm.rank)
    with make(comm, cfg, w) as moe, alone(cfg, w) as one:
        assert same(moe(x), one(x))
        check(cfg, w, x, {}, moe(x))


@pytest.mark.core
@pytest.mark.ranks(3)
def test_every_rank_may_load_only_its_own_experts(comm):
    cfg = replace(CFG, gated=True, bias=True)
    w = reference.weights(cfg)
    x = tokens(cfg, 30, seed=comm.rank)
    for placement in placements(3, cfg.experts).values():
        with make(comm, cfg, w, placement=placement) as moe:
            y = moe(x)
            mine = moe.placement.mine(comm.rank)
            moe.load(**{n: v if n == "router" else v[mine] for n, v in w.items()}, local=True)
            assert same(moe(x), y)


@pytest.mark.core
@pytest.mark.ranks(2)
def test_a_row_has_the_same_bits_alone_and_among_others(comm):
    """Batch invariance: a row has the same bits whatever rows it shares a call with."""
    cfg = replace(CFG, hidden=100, ffn=600, gated=True, max_tokens=300)  # longer than a chunk of F and a tile of rows
    w = reference.weights(cfg)
    x = tokens(cfg, 300, seed=comm.rank)
    with make(comm, cfg, w, threads=2) as moe:
        y = moe(x)
        for first, count in ((0, 1), (5, 2), (7, 13), (40, 97), (3, 192), (100, 200)):
            assert same(moe(x[first : first + count]), y[first : first + count])
        shuffled = np.random.default_rng(comm.rank).permutation(300)
        assert same(moe(x[shuffled]), y[shuffled])
        other = x.copy()
        other[1:] *= np.float32(3)
        assert same(moe(other)[0], y[0])
        lonely = moe(x[:1] if comm.rank == 0 else x[:0])
        assert same(lonely, y[: len(lonely)])


def hundred_calls(comm: Any, calls: int, **options: Any) -> None:
    """Make consecutive calls with changing tokens, layers and routings. Check each by bits, some also in float64."""
    layers = [reference.weights(CFG, seed=s) for s in range(3)]
    plan = np.random.default_rng(5)
    with MoE(CFG, comm, layers=3, **options) as moe, alone(CFG, *layers) as one:
        for layer, w in enumerate(layers):
            moe.load(layer, **w)
        for n in range(calls):
            layer, skew = int(plan.integers(3)), SKEWS[plan.integers(len(SKEWS))]
            counts = plan.integers(0, CFG.max_tokens + 1, comm.size) * plan.integers(0, 2, comm.size)
            x = tokens(CFG, int(counts[comm.rank]), seed=n)
            call = routing(CFG, len(x), skew, seed=n)
            y = moe(x, layer=layer, **call)
            assert same(y, one(x, layer=layer, **call)), (n, layer, skew, counts)
            if n % 10 == 0:
                check(CFG, layers[layer], x, call, y)


@ranks_each(1, 2, 4)
def test_hundred_consecutive_calls(comm, world):
    hundred_calls(comm, 100, threads=2)


@pytest.mark.core
@ranks_each(2, 3)
def test_hundred_consecutive_calls_through_tiny_rings(comm, world):
    for rows in (1, 2, 3, 4):
        with rings_of(rows):
            hundred_calls(comm, 25, threads=2)


BITS = """
cfg = aristos.MoEConfig(hidden=64, ffn=96, experts=7, top_k=3, gated=True, bias=True, max_tokens=120)
x = tokens(cfg, 120, seed=0)
part = np.array_split(np.arange(120), world)[rank]
threads = int(os.environ["THREADS"])
for skew in ("router", "zipf"):
    call = {n: v[part] for n, v in routing(cfg, 120, skew, seed=1).items()}
    with aristos.MoE(cfg, comm, threads=threads) as moe:
        moe.load(**reference.weights(cfg))
        y = comm.allgather(moe(x[part], **call))
    say(digest(np.concatenate(y)))
"""


@pytest.mark.slow
@needs_mpiexec
def test_equal_bits_in_every_run(tmp_path):
    """Separate jobs split the same tokens over 1, 2 and 4 ranks. The job of one rank and one thread runs twice."""
    said: dict[int, set[tuple[str, ...]]] = {}
    for ranks, threads in ((1, 1), (1, 1), (1, 3), (2, 2), (4, 1)):
        job = run_job(tmp_path / str(len(said)), ranks, BITS, THREADS=str(threads))
        assert job.code == 0, job.out
        said[len(said)] = {tuple(job.lines(r)) for r in range(ranks)}
    assert len(set.union(*said.values())) == 1, said


@pytest.mark.core
@pytest.mark.ranks(2)
def test_fused_and_bulk_give_equal_bits(comm):
    for gated, placement in ((False, None), (True, [1, 1, 0, 1, 1])):
        cfg = replace(CFG, gated=gated, bias=gated)
        w = reference.weights(cfg)
        options: dict[str, Any] = {"placement": placement, "threads": 2}
        with make(comm, cfg, w, **options) as fused, make(comm, cfg, w, schedule="bulk", **options) as bulk:
            for n, skew in enumerate(SKEWS * 2):
                x = tokens(cfg, (33, 0, 70)[(n + comm.rank) % 3], seed=n)
                call = routing(cfg, len(x), skew, seed=n)
                y = bulk(x, **call)
                assert same(y, fused(x, **call)), skew
                check(cfg, w, x, call, y)


def test_fused_and_bulk_in_one_process():
    x = tokens(CFG, 50, seed=0)
    with make() as fused, make(schedule="bulk") as bulk:
        for skew in SKEWS:
            call = routing(CFG, 50, skew, seed=1)
            assert same(bulk(x, **call), fused(x, **call))
        assert bulk(x[:0]).shape == (0, CFG.hidden)


@pytest.mark.core
@pytest.mark.ranks(2)
def test_objects_of_one_communicator_in_turn(comm):
    """Objects of different widths, experts and threads share an engine, which grows with them. No bits change."""
    small = replace(CFG, hidden=24, max_tokens=9, top_k=1)
    large = replace(CFG, hidden=200, experts=11, top_k=4, max_tokens=150, router=aristos.Router(score="softmax_topk"))
    cfgs = [CFG, small, large]
    ws = [reference.weights(cfg) for cfg in cfgs]
    with alone(CFG, ws[0]) as a, alone(small, ws[1]) as b, alone(large, ws[2]) as c:
        xs = [tokens(cfg, min(cfg.max_tokens, 60) // (1 + comm.rank), seed=3) for cfg in cfgs]
        wanted = [one(x) for one, x in zip((a, b, c), xs)]
    moes = [make(comm, CFG, ws[0], threads=1)]
    assert same(moes[0](xs[0]), wanted[0])
    moes.append(make(comm, small, ws[1], threads=3))
    moes.append(make(comm, large, ws[2], threads=2, placement=[1] * 11))
    assert [moe.threads for moe in moes] == [1, 3, 2]
    for i in (0, 1, 2, 1, 0, 2, 2, 0):
        assert same(moes[i](xs[i]), wanted[i])
    moes.pop(1).close()
    for moe, i in ((moes[0], 0), (moes[1], 2)):
        assert same(moe(xs[i]), wanted[i])
    moes.pop(0).close()
    assert same(moes[0](xs[2]), wanted[2])
    moes[0].close()
    with make(comm, CFG, ws[0]) as again:
        assert same(again(xs[0]), wanted[0])


@pytest.mark.ranks(4)
def test_communicators_do_not_share_engines(comm):
    x = tokens(CFG, 20, seed=comm.rank)
    with alone(CFG, W) as one:
        wanted = one(x)
    with make(comm) as first:
        assert same(first(x), wanted)
    half = comm.Split(comm.rank % 2, comm.rank)
    with make(half) as part:
        assert part.world == 2
        with make(comm) as whole:
            assert whole.world == 4
            for moe in (part, whole, part, whole):
                assert same(moe(x), wanted)
        with make(comm.Split(0, -comm.rank)) as turned:
            assert turned.rank == 3 - comm.rank
            assert same(turned(x), wanted)
        assert same(part(x), wanted)


# ---- two halves, stats, life --------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.ranks(2)
def test_start_and_wait(comm):
    x = tokens(CFG, 60, seed=comm.rank)
    for threads in (1, 2):
        with make(comm, threads=threads) as moe:
            y = moe(x)
            call = moe.start(x)
            assert same(call.wait(), y)
            out = np.empty_like(x)
            call = moe.start(x, out=out, return_stats=True)
            got, stats = call.wait()
            assert got is out
            assert same(out, y)
            assert stats.tokens == 60
            assert "np." not in repr(stats)
            with pytest.raises(aristos.AristosError, match=r"wait\(\) may be called once"):
                call.wait()
            for n in range(5):
                routed = routing(CFG, 60, "some", seed=n)
                assert same(moe.start(x, **routed).wait(), moe(x, **routed))


@pytest.mark.ranks(2)
def test_start_computes_while_the_caller_does_something_else(comm):
    """Rank 1 waits late for its call; its background worker serves rank 0 meanwhile."""
    x = tokens(CFG, 60, seed=comm.rank)
    with make(comm, threads=1, placement=[1] * CFG.experts) as moe:
        y = moe(x)
        call = moe.start(x)
        if comm.rank == 0:
            assert same(call.wait(), y)
            comm.send(None, 1)
        else:
            comm.recv(source=0)
            assert same(call.wait(), y)


def check_stats(stats: Any, comm: Any, moe: MoE, ids: np.ndarray) -> None:
    """Counts are exact; seconds are plausible."""
    experts = np.asarray(moe.placement.ranks)
    taken = ids[ids >= 0]
    rows = np.bincount(experts[taken], minlength=comm.size)
    row_bytes = 4 * CFG.hidden
    assert (stats.rank, stats.world, stats.workers) == (comm.rank, comm.size, moe.threads)
    assert stats.rows_to_peer == tuple(rows)
    assert stats.logical_bytes_to_peer == tuple(rows * row_bytes)
    moved = rows * row_bytes
    moved[comm.rank] = 0
    assert stats.moved_bytes_to_peer == tuple(moved)
    everyone = np.array(comm.allgather(rows))
    assert stats.rows_from_peer == tuple(everyone[:, comm.rank])
    for peer, tiles in enumerate(stats.tiles_to_peer):
        if peer != comm.rank:
            assert (tiles > 0) == (rows[peer] > 0)
            assert tiles <= rows[peer]
    assert stats.dropped_rows == 0
    seconds = [v for name, v in vars(stats).items() if name.endswith("_seconds")]
    assert all(0 <= s <= moe.threads * stats.call_seconds * 1.05 + 1e-4 for s in seconds), stats
    assert stats.wait_seconds == pytest.approx(sum(stats.wait_seconds_by_peer))
    assert stats.wait_seconds <= stats.idle_seconds * 1.01 + 1e-6
    assert stats.wire_seconds == 0  # all ranks are on one node


@pytest.mark.core
@ranks_each(1, 3)
def test_stats_count_rows_bytes_and_time_of_a_call(comm, world):
    x = tokens(CFG, 50, seed=comm.rank)
    options = {"moves": "tokens", "threads": 2, "placement": [world - 1, 0, 0, 0, 0]}
    with make(comm, **options) as many, make(comm, moves="tokens", threads=1) as moe:
        for n, skew in enumerate(("uniform", "some", "one", "none") * 5):
            call = routing(CFG, 50, skew, seed=n)
            one = moe if n % 3 else many
            _, stats = one(x, **call, return_stats=True)
            check_stats(stats, comm, one, call["ids"])
        with pytest.raises(FrozenInstanceError):
            stats.tokens = 1
        routed, _ = reference.route(CFG, x, W["router"])
        _, stats = moe(x, return_stats=True)
        check_stats(stats, comm, moe, routed)


@pytest.mark.ranks(2)
def test_the_summary_adds_up_calls_of_all_ranks(comm):
    with make(comm, threads=2, moves="tokens") as moe:
        x = tokens(CFG, 50, seed=comm.rank)
        total = np.zeros(2, np.int64)
        for n in range(4):
            if comm.rank == 1:
                time.sleep(0.05)
            call = routing(CFG, 50, "uniform", seed=n)
            _, stats = moe(x, **call, return_stats=True)
            total += [sum(stats.rows_to_peer), sum(stats.moved_bytes_to_peer)]
        summary = moe.summary()
        everyone = np.sum(comm.allgather(total), axis=0)
        assert summary.calls == 4
        assert summary.rows == everyone[0]
        assert sum(m.bytes for m in summary.messages) == everyone[1]
        assert {m.transport for m in summary.messages} == {"shm"}
        assert all(m.count > 0 and m.seconds > 0 and m.straggler_seconds >= 0 for m in summary.messages)
        assert summary.wait_seconds.shape == (2, 2)
        assert summary.wait_seconds[0, 1] > 0.1  # rank 0 waited for rank 1, which entered late
        assert not summary.wait_seconds.diagonal().any()
        assert "waited" in str(summary)
        assert summary.wait_seconds.tolist() == comm.bcast(summary.wait_seconds.tolist())


@pytest.mark.ranks(2)
def test_a_timeline_has_the_steps_of_every_worker(comm):
    with make(comm, threads=2, moves="tokens") as moe:
        x = tokens(CFG, 64, seed=comm.rank)
        assert moe.events() == []
        moe.timeline(True)
        before = time.monotonic()
        moe(x)
        after = time.monotonic()
        events = moe.events()
        assert {"route", "pack", "dispatch", "expert", "combine"} <= {e[1] for e in events}
        assert all(before <= start <= end <= after for _, _, start, end, _, _ in events)
        assert {e[0] for e in events} <= {0, 1}
        assert sum(e[5] for e in events if e[1] == "combine") == 64
        rows = sum(e[5] for e in events if e[1] == "expert")
        assert sum(comm.allgather(rows)) == 2 * 64 * CFG.top_k
        for worker in (0, 1):  # the events of a worker do not overlap
            mine = sorted((start, end) for w, _, start, end, _, _ in events if w == worker)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(mine))
        moe.timeline(False)
        moe(x)
        assert moe.events() == []
        with pytest.raises(InputError, match=r"timeline\(True\) before"):
            moe.write_timeline("nowhere.json")


def test_events_are_those_of_the_object_s_own_last_call():
    """Objects of one process share a runtime, which counts the events of its last call."""
    cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=300)
    with MoE(cfg, threads=1) as one, MoE(cfg, threads=1) as other:
        for moe in (one, other):
            moe.load(**reference.weights(cfg))
            moe.timeline(True)
        one(np.ones((3, 40), np.float32))
        few = one.events()
        other(np.ones((300, 40), np.float32))
        assert len(other.events()) > len(few) > 0
        assert one.events() == few


@pytest.mark.ranks(2)
def test_a_timeline_of_all_ranks_is_one_file(comm, tmp_path_factory):
    path = comm.bcast(str(tmp_path_factory.mktemp("timeline") / "t.json") if comm.rank == 0 else None)
    with make(comm, threads=1, moves="tokens") as moe:
        moe.timeline(True)
        moe(tokens(CFG, 64, seed=comm.rank))
        moe.write_timeline(path, {"layer": "small"})
        document = json.loads(Path(path).read_text())
        assert document["otherData"] == {"schedule": "fused", "moves": "tokens", "layer": "small"}
        assert {e["pid"] for e in document["traceEvents"] if e["ph"] == "X"} == {0, 1}
        with pytest.raises(ResultsError if comm.rank == 0 else PeerInputError, match="cannot be written"):
            moe.write_timeline(f"{path}/t.json")
        with pytest.raises(ResultsError if comm.rank == 0 else PeerInputError, match="not JSON serializable"):
            moe.write_timeline(path, {"layer": object()})
        assert json.loads(Path(path).read_text()) == document


@pytest.mark.ranks(2)
def test_timeline_and_stats_count_the_wire_between_nodes(comm):
    """A "dispatch" event is the sending of a block. A "wire" event is time in MPI, in a wait or between two commands.

    Stats count only "wire" events between two commands. A call has none of them if the progress thread lost its core
    in MPI: see the next test.
    """
    with make(comm, threads=1, ranks_per_node=1) as moe:
        x = tokens(CFG, 64, seed=comm.rank)
        moe.timeline(True)
        wire, calls = 0.0, 0
        while calls < 3 or comm.allreduce(wire > 0) < comm.size:
            calls += 1
            assert calls < 200, "no call sends between two commands"
            _, stats = moe(x, return_stats=True)
            events = moe.events()
            assert {"route", "pack", "dispatch", "wire", "expert", "combine"} <= {e[1] for e in events}
            sent = [(e[4], e[5]) for e in events if e[1] == "dispatch"]
            assert sum(rows for peer, rows in sent if peer == 1 - comm.rank) == stats.rows_to_peer[1 - comm.rank]
            waits = [e[2:4] for e in events if e[1] == "wait"]
            wires = [e[2:4] for e in events if e[1] == "wire"]
            between = [(a, b) for a, b in wires if not any(s <= a and b <= e for s, e in waits)]
            alone = sorted([e[2:4] for e in events if e[1] != "wire"] + between)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(alone))
            wire += stats.wire_seconds
            assert stats.wire_seconds == pytest.approx(sum(b - a for a, b in between), abs=1e-6)
            inside = stats.route_seconds + stats.dispatch_seconds + stats.compute_seconds + stats.combine_seconds
            rest = stats.call_seconds - inside - stats.wire_seconds - stats.idle_seconds
            assert stats.other_seconds == pytest.approx(rest)
        summary = moe.summary()
        assert summary.wire_seconds == pytest.approx(comm.allreduce(wire))
        assert f"{summary.wire_seconds:.4f} s at the wire" in str(summary)


@pytest.mark.ranks(2)
def test_while_another_thread_is_in_mpi_workers_go_on_and_send_later(comm):
    """After the thread has left MPI, workers serve the wire within a wait, which counts as idle time."""
    with make(comm, threads=1, ranks_per_node=1) as moe:
        x = tokens(CFG, 64, seed=comm.rank)
        y = moe(x)
        moe.timeline(True)
        state, at, since = moe.runtime.state, moe.runtime.wire, time.monotonic()
        state[words.IDLE_SWEEPS] = 0
        while not try_lock(at):
            assert time.monotonic() - since < 60

        def leave_once_idle():
            while state[words.IDLE_SWEEPS] < 100 and time.monotonic() - since < 60:
                time.sleep(1e-4)
            unlock(at)

        other = threading.Thread(target=leave_once_idle)
        other.start()
        again, stats = moe(x, return_stats=True)
        other.join()
        assert same(again, y)
        events = {kind: [e[2:4] for e in moe.events() if e[1] == kind] for kind in ("dispatch", "wait", "wire")}
        first, last = events["wire"][0], events["dispatch"][-1]
        assert last[1] <= first[0]
        assert any(start <= first[0] and first[1] <= end for start, end in events["wait"])
        assert stats.idle_seconds >= first[1] - first[0]


@pytest.mark.core
@ranks_each(1, 2)
def test_a_closed_layer_refuses_every_use(comm, world):
    moe = make(comm)
    x = tokens(CFG, 5, seed=0)
    y = moe(x)
    moe.close()
    moe.close()
    for use in (
        lambda: moe(x),
        lambda: moe.start(x),
        lambda: moe.load(**W),
        lambda: moe.summary(),
        lambda: moe.timeline(True),
        lambda: moe.events(),
    ):
        with pytest.raises(aristos.errors.ClosedError, match="closed"):
            use()
    with make(comm) as again:
        assert same(again(x), y)
    with pytest.raises(aristos.errors.ClosedError):
        again(x)

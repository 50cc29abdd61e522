"""A refusal is a clear error on every rank at once and never a hang. The next call works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import MoE, alone, routing, run_job, same, tokens
from mpi import find_mpiexec, ranks_each

import aristos
from aristos import errors, reference
from aristos.engine import words as engine_words
from aristos.engine.layout import rank_bytes
from aristos.errors import InputError, MemoryProblem, MismatchError, OpenCallError, PeerInputError
from aristos.host.nodes import Nodes
from aristos.layer.collective import shape_of, widths
from aristos.placement import Placement

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=30)
W: dict[str, Any] = dict(reference.weights(CFG))
AT_ONCE = 5.0  # seconds; a hang would last for the timeout of 120
needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")

Call = dict[str, Any]


def good(rank: int) -> Call:
    """Arguments of a valid call."""
    return {"x": tokens(CFG, 20, seed=rank), **routing(CFG, 20, "some", seed=rank)}


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Call], Call]:
    """A function that changes one argument of a call."""
    return lambda call: {**call, name: change(call[name])}


def put(value: Any, *at: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function that copies an array and replaces one entry."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[at] = value
        return array

    return change


def routed_here(call: Call) -> Call:
    """The same tokens, for which the layer's router chooses the experts."""
    return {"x": call["x"]}


class Unreadable:
    """A DLPack array of some device that NumPy cannot read."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("not on the CPU")


REFUSED: dict[str, tuple[Callable[[Call], Call], str]] = {
    "NaN token": (lambda c: {"x": put(np.nan, 7, 3)(c["x"])}, "x must be finite, got nan in token 7, column 3"),
    "infinite token": (lambda c: {"x": put(-np.inf, 0, 0)(c["x"])}, "x must be finite, got -inf in token 0, column 0"),
    "scores overflow": (lambda c: {"x": np.full_like(c["x"], 3e38)}, "scores must be finite"),
    "NaN weight": (changed("weights", put(np.nan, 18, 0)), r"weights must be finite, got \[nan.*\] at token 18"),
    "infinite weight": (changed("weights", put(-np.inf, 16, 0)), "weights must be finite.*at token 16"),
    "width": (changed("x", lambda x: x[:, :-1]), r"x must have shape \[\.\.\., 40\], got \[20, 39\]"),
    "no width": (changed("x", lambda x: x[0, 0]), r"x must have shape \[\.\.\., 40\], got \[\]"),
    "float64": (changed("x", lambda x: x.astype("f8")), "x must have dtype float32, got float64"),
    "other byte order": (changed("x", lambda x: x.astype(">f4")), "x must have dtype float32, got >f4"),
    "a list": (changed("x", lambda x: x.tolist()), "x must be an array .*got list"),
    "masked": (
        changed("x", lambda x: np.ma.masked_less(x, 0)),
        r"x must be a plain array, got a masked one: pass x\.filled",
    ),
    "masked ids": (changed("ids", np.ma.MaskedArray), r"ids must be a plain array, got a masked one"),
    "nothing": (changed("x", lambda x: None), "x must be an array .*got NoneType"),
    "device array": (changed("x", lambda x: Unreadable()), "the DLPack array x cannot be read on the CPU"),
    "too many tokens": (
        lambda c: {"x": np.zeros((31, 40), np.float32)},
        "x has 31 tokens, more than max_tokens=30",
    ),
    "id too large": (changed("ids", put(5, 4, 0)), r"ids of token 4 must be in -1\.\.4, got \[5, "),
    "id too small": (changed("ids", put(-2, 19, 1)), r"ids of token 19 must be in -1\.\.4, got \[.*-2\]"),
    "id far off": (changed("ids", put(2**62, 0, 0)), r"ids of token 0 must be in -1\.\.4"),
    "unsigned id": (
        changed("ids", lambda ids: np.full(ids.shape, 2**64 - 1, np.uint64)),
        r"ids .*-1.*, got .*18446744073709551615",
    ),
    "id twice": (
        changed("ids", put(3, 11, slice(None))),
        r"ids of token 11 must name each expert once at most, got \[3, 3\]",
    ),
    "ids of floats": (changed("ids", lambda ids: ids.astype("f4")), r"ids must be integers of shape \[20, 2\]"),
    "ids of bools": (changed("ids", lambda ids: ids > 0), r"ids must be integers of shape \[20, 2\], got bool"),
    "ids of another k": (changed("ids", lambda ids: ids[:, :1]), r"ids must be integers .*got int64 \[20, 1\]"),
    "fewer ids": (changed("ids", lambda ids: ids[1:]), r"ids must be integers .*got int64 \[19, 2\]"),
    "weights of ints": (changed("weights", lambda w: w.astype("i4")), r"weights must be floats of shape \[20, 2\]"),
    "flat weights": (changed("weights", lambda w: w.ravel()), r"weights must be floats .*got float32 \[40\]"),
    "ids alone": (lambda c: {"x": c["x"], "ids": c["ids"]}, "ids and weights must be given together"),
    "weights alone": (lambda c: {"x": c["x"], "weights": c["weights"]}, "ids and weights must be given together"),
    "no such layer": (lambda c: {**c, "layer": 2}, r"layer must be an int in 0\.\.1, got 2"),
    "negative layer": (lambda c: {**c, "layer": -1}, r"layer must be an int in 0\.\.1, got -1"),
    "layer by flag": (lambda c: {**c, "layer": True}, r"layer must be an int in 0\.\.1, got True"),
    "layer by name": (lambda c: {**c, "layer": "0"}, r"layer must be an int in 0\.\.1, got '0'"),
    "empty layer": (lambda c: {**c, "layer": 1}, "layer 1 has no weights"),
    "small out": (lambda c: {**c, "out": np.empty((19, 40), np.float32)}, r"out must .*\[20, 40\], got float32 \[19"),
    "out of float64": (lambda c: {**c, "out": np.empty((20, 40))}, "out must be a float32 array .*got float64"),
    "list as out": (lambda c: {**c, "out": [0.0]}, "out must be a float32 array .*got list"),
    "strided out": (lambda c: {**c, "out": np.empty((40, 40), np.float32)[::2]}, "out must be contiguous"),
    "read-only out": (
        lambda c: {**c, "out": np.frombuffer(bytes(3200), np.float32).reshape(20, 40)},
        "out must be contiguous, aligned and writable",
    ),
    "out between float32s": (
        lambda c: {**c, "out": np.ndarray((20, 40), np.float32, bytearray(3208), offset=2)},
        "out must be contiguous, aligned and writable",
    ),
    "x as out": (lambda c: {**c, "out": c["x"]}, "out must not overlap an input"),
    "out over x": (
        lambda c: (lambda both: {**c, "x": both[:20], "out": both[10:]})(np.zeros((30, 40), np.float32)),
        "out must not overlap an input",
    ),
}


@contextmanager
def at_once() -> Iterator[None]:
    """Check that the block inside ends long before a timeout."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < AT_ONCE


@contextmanager
def raises(what: str, kind: Any, words: str) -> Iterator[Any]:
    """`pytest.raises` that names the failing case of a loop."""
    try:
        with pytest.raises(kind, match=words) as caught:
            yield caught
    except (AssertionError, pytest.fail.Exception) as error:
        pytest.fail(f"{what}: {error}")


def made(comm: Any = None, **options: Any) -> MoE:
    """An object with two layers; only layer 0 is loaded."""
    moe = MoE(CFG, comm, layers=2, **options)
    moe.load(0, **W)
    return moe


@pytest.mark.parametrize("schedule", ["fused", "bulk"])
def test_refused_in_one_process(schedule):
    with made(schedule=schedule) as moe:
        call = good(0)
        wanted = moe(**call)
        for name, (change, words) in REFUSED.items():
            for begin in (moe, lambda **c: moe.start(**c).wait()):
                with raises(name, InputError, words):
                    begin(**change(call))
                assert same(moe(**call), wanted), name


@pytest.mark.core
@pytest.mark.parametrize("schedule", ["fused", "bulk"])
@ranks_each(2, 3, timeout=200)
def test_refused_by_one_rank(comm, world, schedule):
    """The refusing rank gets its own error, the others get one that names it; the next call is right on all."""
    mine = good(comm.rank)
    with alone(CFG, W) as one:
        wanted = one(**mine)
    with made(comm, schedule=schedule) as moe:
        for n, (name, (change, words)) in enumerate(REFUSED.items()):
            refusing = n % world
            with at_once():
                if comm.rank == refusing:
                    with raises(name, InputError, words):
                        moe(**change(mine))
                else:
                    # a call of another layer is a mismatch as well as a refusal
                    kinds = (PeerInputError, MismatchError) if "layer" in name else PeerInputError
                    with raises(name, kinds, rf"\brank {refusing}\b"):
                        moe(**mine)
            assert same(moe(**mine), wanted), name


@pytest.mark.ranks(3)
def test_refused_by_several_ranks_or_all(comm):
    mine = good(comm.rank)
    bad = {**mine, "ids": mine["ids"] + 9}
    with made(comm) as moe:
        wanted = moe(**mine)
        for refusing in ((0, 1), (1, 2), (0, 1, 2)):
            kind = InputError if comm.rank in refusing else PeerInputError
            with at_once(), pytest.raises(kind):
                moe(**bad if comm.rank in refusing else mine)
            assert same(moe(**mine), wanted)
        for n in range(40):  # one after the other, with even and odd epochs
            kind = InputError if comm.rank == n % 3 else PeerInputError
            with pytest.raises(kind):
                moe(**bad if comm.rank == n % 3 else mine)
        assert same(moe(**mine), wanted)


@pytest.mark.ranks(2)
def test_a_refusing_rank_serves_the_others_with_tiny_rings(comm, monkeypatch):
    """The refusing rank still computes the other rank's rows, through rings of two rows."""
    monkeypatch.setattr("aristos.layer.collective.ring_rows", lambda *_: 2)
    mine = good(comm.rank)
    with made(comm, placement=[0, 1, 0, 1, 1]) as moe:
        wanted = moe(**mine)
        for refusing in (0, 1, 0):
            if comm.rank == refusing:
                with pytest.raises(InputError):
                    moe(mine["x"][:, :3])
            else:
                with pytest.raises(PeerInputError):
                    moe(**mine)
            assert same(moe(**mine), wanted)


@pytest.mark.ranks(2)
def test_refused_in_a_started_call(comm):
    """Errors come from `wait`, on both ranks."""
    mine = good(comm.rank)
    with made(comm) as moe:
        wanted = moe(**mine)
        pending = moe.start(**(mine if comm.rank else {"x": mine["x"] * np.nan}))
        with pytest.raises(PeerInputError if comm.rank else InputError):
            pending.wait()
        assert same(moe.start(**mine).wait(), wanted)


@pytest.mark.core
@pytest.mark.ranks(3)
def test_ranks_in_different_calls(comm):
    """One rank calls with another layer, object, top_k or width. All ranks raise a mismatch. The next call works."""
    mine = good(comm.rank)
    other_cfg = replace(CFG, hidden=24, top_k=3, experts=11)
    other_w = reference.weights(other_cfg)
    other_call = {"x": tokens(other_cfg, 11, seed=comm.rank)}
    with made(comm) as moe, made(comm) as twin, MoE(other_cfg, comm) as other:
        moe.load(1, **W)
        other.load(**other_w)
        wanted, other_wanted = moe(**mine), other(**other_call)
        odd: dict[str, Callable[[], Any]] = {
            "layer": lambda: moe(**mine, layer=1),
            "object": lambda: twin(**mine),
            "shape": lambda: other(**other_call),
            "started": lambda: twin.start(**mine).wait(),
        }
        for n, (name, call) in enumerate(list(odd.items()) * 3):
            with at_once(), raises(name, MismatchError, "made a different call from rank") as caught:
                call() if comm.rank == n % 3 else moe(**mine)
            if comm.rank != n % 3:
                assert f"rank {n % 3} made a different call" in str(caught.value), name
            assert same(moe(**mine), wanted), name
            assert same(twin(**mine), wanted), name
            assert same(other(**other_call), other_wanted), name


@pytest.mark.ranks(2)
def test_ranks_with_different_placements(comm):
    """Each rank's mismatch names both placements. Versions of weights may differ, and each rank knows all of them."""
    for schedule in ("fused", "bulk"):
        with MoE(CFG, comm, schedule=schedule, moves="tokens") as moe:
            for _ in range(1 + comm.rank):
                moe.load(**W)
            wanted = moe(**good(comm.rank))
            job = moe._backend._jobs.open(0)
            assert moe.runtime.state[job[engine_words.T_VERSION_OF] :][:2].tolist() == [1, 2]
            job[engine_words.PLACEMENT] += comm.rank
            with at_once(), pytest.raises(MismatchError) as caught:
                moe(**good(comm.rank))
            assert f"rank {1 - comm.rank} has a different placement from rank {comm.rank}" in str(caught.value)
            job[engine_words.PLACEMENT] -= comm.rank
            assert same(moe(**good(comm.rank)), wanted)
            moe.load_router(0, router=W["router"])
            moe(**good(comm.rank))
            assert moe.runtime.state[job[engine_words.T_VERSION_OF] :][:2].tolist() == [2, 3]


def test_a_placement_has_a_version():
    versions = {
        Placement(ranks, 3, world).version
        for ranks, world in (([0, 1, 1], 2), ([0, 1, 1], 3), ([1, 1, 0], 2), ([[0, 1], 1, 1], 2), ([[1, 0], 1, 1], 2))
    }
    assert len(versions) == 5
    assert all(0 < version < 2**63 for version in versions)
    same_ranks = None, [0, 0, 1], [[0], [0], [1]]
    assert len({Placement(ranks, 3, 2).version for ranks in same_ranks}) == 1


@pytest.mark.ranks(3)
def test_ranks_configured_differently(comm):
    odd = comm.rank == 1
    w = reference.weights(CFG)
    different: list[tuple[aristos.MoEConfig, dict[str, Any]]] = [
        (replace(CFG, hidden=48), {}),
        (replace(CFG, experts=6), {}),
        (replace(CFG, activation="silu"), {}),
        (replace(CFG, max_tokens=31), {}),
        (replace(CFG, router=aristos.Router(scale=2.0)), {}),
        (CFG, {"layers": 2}),
        (CFG, {"ranks_per_node": 2}),
        (CFG, {"schedule": "bulk"}),
        (CFG, {"placement": [0, 0, 1, 1, 1]}),
    ]
    for cfg, options in different:
        with at_once(), pytest.raises(MismatchError, match="ranks are configured differently") as caught:
            MoE(cfg if odd else CFG, comm, **(options if odd else {}))
        assert "rank 0 has" in str(caught.value)
        assert len(str(caught.value)) < 140  # options that are equal are not named
    # threads and timeout may differ from rank to rank
    with MoE(CFG, comm, threads=1 + comm.rank, timeout=60.0 + comm.rank) as moe, alone(CFG, w) as one:
        moe.load(**w)
        assert same(moe(**good(comm.rank)), one(**good(comm.rank)))


BAD_OPTIONS: dict[str, tuple[Any, str]] = {
    "cfg": ("hidden=8", "cfg must be an aristos.MoEConfig, got str"),
    "layers": (0, "layers must be an int in 1..1048576, got 0"),
    "schedule": ("eager", "schedule must be 'fused' or 'bulk', got 'eager'"),
    "threads": (0, "threads must be None or an int in 1..4096, got 0"),
    "timeout": (-1.0, r"timeout must be a positive number of seconds below 1e9, got -1\.0"),
    "placement": ([0, 0, 0, 0, 7], r"placement\[4\] must be a rank in 0\.\.\d, got 7 for expert 4"),
}


def test_wrong_options_in_one_process():
    more: list[tuple[str, Any, str]] = [
        ("layers", 1.5, "layers must be an int in 1..1048576, got 1.5"),
        ("layers", True, "layers must be an int in 1..1048576, got True"),
        ("layers", np.float64(1), r"layers must be an int in 1..1048576, got np.float64\(1.0\)"),
        ("schedule", np.array(["fused", "bulk"]), r"schedule must be 'fused' or 'bulk', got array"),
        ("backend", np.array(["cpu", "cuda"]), r"backend must be None or one of cpu, cuda, got array"),
        ("threads", np.array([1, 1]), r"threads must be None or an int in 1..4096, got array"),
        ("threads", True, "threads must be None or an int in 1..4096, got True"),
        ("timeout", float("nan"), "timeout must be"),
        ("timeout", float("inf"), "timeout must be"),
        ("timeout", True, "timeout must be"),
        ("timeout", "1", "timeout must be"),
        ("placement", [0, 0], r"placement must be 5 integers .*got shape \[2\]"),
        ("placement", [0.0] * 5, "placement must be 5 integers"),
        ("placement", [-1, 0, 0, 0, 0], r"placement\[0\] must be a rank in 0\.\.0, got -1"),
        ("placement", "abcde", "placement must be"),
        ("placement", [[0], [0, 1]], "placement must have 5 entries, one for each expert, got 2"),
        ("placement", [0, [0, 1], 0, 0, 0], r"placement\[1\] must be a rank in 0\.\.0 or a list of them, got \[0, 1\]"),
    ]
    for name, value, words in [*((n, v, m) for n, (v, m) in BAD_OPTIONS.items()), *more]:
        with raises(f"{name}={value!r}", InputError, words):
            MoE(**{"cfg": CFG, name: value})
    with made() as moe:
        assert moe(**good(0)).shape == (20, 40)


@pytest.mark.ranks(3)
def test_wrong_options_on_one_rank(comm):
    for n, (name, (value, words)) in enumerate(BAD_OPTIONS.items()):
        refusing = n % 3
        if comm.rank == refusing:
            with at_once(), pytest.raises(InputError, match=words):
                MoE(**{"cfg": CFG, "comm": comm, name: value})
        else:
            with at_once(), pytest.raises(PeerInputError, match=f"rank {refusing} refused its arguments: {words}"):
                MoE(CFG, comm)
    with made(comm) as moe:
        assert moe(**good(comm.rank)).shape == (20, 40)


def test_wrong_weights_are_refused_and_change_nothing():
    cfg = replace(CFG, gated=True, bias=True)
    w = reference.weights(cfg)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"up": w["up"][:4]}, r"up must have shape \[5, 40, 72\], got \[4, 40, 72\]"),
        ({"up": w["up"].swapaxes(1, 2)}, r"up must have shape \[5, 40, 72\], got \[5, 72, 40\]"),
        ({"down": w["up"]}, r"down must have shape \[5, 72, 40\], got \[5, 40, 72\]"),
        ({"gate": w["gate"].astype("f8")}, "gate must have dtype float32, bfloat16 or float16, got float64"),
        ({"router": w["router"].T}, r"router must have shape \[40, 5\], got \[5, 40\]"),
        ({"up_bias": w["up_bias"][0]}, r"up_bias must have shape \[5, 72\], got \[72\]"),
        ({"down_bias": w["up_bias"]}, r"down_bias must have shape \[5, 40\], got \[5, 72\]"),
        ({"up": None}, "load needs up="),
        ({"gate": None}, "load needs gate="),
        ({"down": 3.0}, "down must be an array .*got float"),
        ({"layout": "hwio"}, "layout must be 'in_out' or 'out_in', got 'hwio'"),
        ({"layout": ["in_out"]}, r"layout must be 'in_out' or 'out_in', got \['in_out'\]"),
        ({"local": "no"}, "local must be True or False, got 'no'"),
        ({"up": np.ma.MaskedArray(w["up"])}, "up must be a plain array, got a masked one"),
        ({"layer": 1}, r"layer must be an int in 0\.\.0, got 1"),
    ]
    with MoE(cfg) as moe:
        moe.load(**w)
        y = moe(tokens(cfg, 9, seed=0))
        for changes, words in refused:
            with raises(words, InputError, words):
                moe.load(**{**w, **changes})
            assert same(moe(tokens(cfg, 9, seed=0)), y)  # a refused load changes nothing
    with MoE(CFG) as moe:
        for name in ("gate", "up_bias", "down_bias"):
            with pytest.raises(InputError, match=f"load got {name}=, but the configuration has gated=False"):
                moe.load(**{**W, name: w[name]})
        moe.load(**{n: v for n, v in W.items() if n != "router"})
        with pytest.raises(InputError, match="layer 0 was loaded without a router: give ids and weights"):
            moe(tokens(CFG, 3, seed=0))


@pytest.mark.ranks(2)
def test_work_that_fails_on_one_rank_fails_on_all(comm):
    work = "the reading of a file"

    def read(moe: MoE, refusing: int | None) -> Call:
        with moe.together(work):
            if comm.rank == refusing:
                raise OSError("no file")
            return good(comm.rank)

    with made(comm) as moe:
        mine = read(moe, None)
        error, words = (OSError, "^no file") if comm.rank == 1 else (PeerInputError, f"rank 1 refused {work}: no file")
        with at_once(), pytest.raises(error, match=words):
            read(moe, 1)
        pending = moe.start(**mine)
        with pytest.raises(OpenCallError, match="open"):
            read(moe, None)
        pending.wait()
        assert moe(**mine).shape == (20, 40)
    with pytest.raises(errors.ClosedError, match="this MoE is closed"):
        read(moe, None)


@ranks_each(1, 2)
def test_a_second_open_call_is_refused(comm, world):
    mine = good(comm.rank)
    with made(comm) as moe, made(comm) as twin:
        wanted = moe(**mine)
        for linger in (0.0, 0.3):  # a call is open until wait(), even if it has ended in the background
            pending = moe.start(**mine)
            time.sleep(linger)
            for name, again in {"start": moe.start, "call": moe, "twin": twin.start, "twin's call": twin}.items():
                with raises(f"{name} after {linger} s", OpenCallError, "open"):
                    again(**mine)
            with raises(f"a new layer after {linger} s", OpenCallError, "open"):
                MoE(replace(CFG, hidden=64), comm)
            assert same(pending.wait(), wanted)
            assert same(twin(**mine), wanted)


@ranks_each(1, 2)
def test_a_started_call_whose_handle_is_dropped(comm, world):
    """The next call, load, constructor or close waits until the started call has ended."""
    mine = good(comm.rank)
    with made(comm) as moe, made(comm) as twin:
        wanted = twin(**mine)
        for again in (moe, twin, lambda **call: moe.start(**call).wait()):
            moe.start(**mine)
            assert same(again(**mine), wanted)
        moe.start(**mine)
        moe.load(**W)
        moe.start(**mine)
        with made(comm) as third:
            assert same(third(**mine), wanted)
        moe.start(**mine)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("ranks_per_node", [None, 1], ids=["one node", "two nodes"])
def test_windows_that_do_not_fit(comm, monkeypatch, ranks_per_node):
    """One rank sees too small a /dev/shm. All ranks raise before anything is allocated, and the next layer works."""
    shape = shape_of(2, Placement(None, CFG.experts, 2), **widths(CFG))
    need = rank_bytes(shape, Nodes.split(2, ranks_per_node), 1)
    if comm.rank == 1:
        monkeypatch.setattr("aristos.transport.capacity.free_shared_memory", lambda: need)  # room for one of two ranks
    with pytest.raises(
        MemoryProblem, match=r"windows of the 2 ranks on .* need [\d.]+ MiB .* only [\d.]+ MiB are free"
    ) as caught:
        MoE(CFG, comm, ranks_per_node=ranks_per_node)
    assert isinstance(caught.value, MemoryError)
    monkeypatch.setattr("aristos.transport.capacity.free_shared_memory", lambda: None)  # the free memory is not known
    with made(comm, ranks_per_node=ranks_per_node) as moe:
        wanted = moe(**good(comm.rank))
    if comm.rank == 0:
        monkeypatch.setattr("aristos.transport.capacity.free_shared_memory", lambda: 4 * need)
    with made(comm, ranks_per_node=ranks_per_node) as moe:
        assert same(moe(**good(comm.rank)), wanted)


@pytest.mark.ranks(2)
def test_comm_that_is_not_a_communicator_is_refused(comm):
    from mpi4py import MPI

    for bad, named in ((5, "got 5"), (MPI.COMM_NULL, "MPI_COMM_NULL"), (MPI.COMM_SELF.group, "Group")):
        for make in (
            lambda bad=bad: MoE(CFG, bad),
            lambda bad=bad: aristos.Exchange(bad, hidden=4, experts=2, top_k=1, max_tokens=2),
        ):
            with pytest.raises(InputError, match=f"comm must be an mpi4py intracommunicator or None, .*{named}"):
                make()


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_memory_refuses_invalid_ranks_per_node(bad):
    with pytest.raises(InputError, match="ranks_per_node must be None or a positive int"):
        MoE.memory(CFG, 4, ranks_per_node=bad)


GROWTH = """
cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=30)
x = tokens(cfg, 20, seed=rank)
moe = aristos.MoE(cfg, comm)
moe.load(**reference.weights(cfg))
y = moe(x)
import aristos.transport.capacity as room
real, room.free_shared_memory = room.free_shared_memory, lambda: 1000
try:
    aristos.MoE(aristos.MoEConfig(hidden=400, ffn=72, experts=5, max_tokens=300), comm)
except errors.MemoryProblem:
    say("refused")
room.free_shared_memory = real
say("equal" if same(moe(x), y) else "different")
"""


@pytest.mark.slow
@needs_mpiexec
def test_a_layer_survives_a_larger_one_that_does_not_fit(tmp_path):
    job = run_job(tmp_path, 2, GROWTH)
    assert job.code == 0, job.out
    assert [job.lines(r) for r in range(2)] == [["refused", "equal"]] * 2


def test_all_errors_derive_from_aristos_error():
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    assert len(classes) > 5
    for c in classes:
        assert issubclass(c, aristos.AristosError)
        assert c.__doc__
    assert issubclass(InputError, ValueError)


@pytest.mark.ranks(2)
def test_a_started_call_that_one_rank_holds_open_refuses_a_new_layer_on_both(comm):
    """Rank 1, which has waited for its call, must not wait for rank 0 in the constructor."""
    x = tokens(CFG, 5, seed=comm.rank)
    with MoE(CFG, comm) as moe:
        moe.load(**W)
        started = moe.start(x)
        if comm.rank == 1:
            started.wait()
        error = PeerInputError if comm.rank else OpenCallError
        with pytest.raises(error, match="a call is open on this communicator"):
            MoE(CFG, comm)
        if comm.rank == 0:
            started.wait()
        with MoE(CFG, comm) as other:
            other.load(**W)
            assert same(other(x), moe(x))

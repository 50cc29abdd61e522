"""Layers of 16-bit rows on CPUs: results against float64, equal bits everywhere, memory, and refusals."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import sweeps
from cases import MoE, clean_environment, routing, same, tokens
from group_plans import plan_of
from mpi import find_mpiexec
from rounded import DTYPES, numpy_dtype

import aristos
from aristos import reference
from aristos.errors import InputError, MismatchError
from aristos.layer.weights import packed_bytes
from aristos.primitives import isa
from kernel_cache import compile

CFG = aristos.MoEConfig(hidden=70, ffn=200, experts=5, top_k=2, activation="silu", gated=True, bias=True, max_tokens=70)
STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half the relative distance between neighbouring numbers


def configuration(dtype: str, **changes: object) -> tuple[aristos.MoEConfig, dict[str, np.ndarray]]:
    """A layer's configuration, and weights that its dtype holds exactly."""
    cfg = replace(CFG, dtype=dtype, **changes)  # type: ignore[arg-type]
    w = reference.weights(replace(cfg, dtype="float32"))
    return cfg, {n: v.astype(numpy_dtype(dtype)) if n in ("up", "gate", "down") else v for n, v in w.items()}


@pytest.fixture
def pretend(monkeypatch):
    """`monkeypatch`, for ranks that pretend to have other instruction sets.

    The folder of compiled code is chosen before that, by the sets that the ranks really have.
    """
    compile.cache_folder()
    return monkeypatch


def rows(cfg: aristos.MoEConfig, count: int, seed: int) -> np.ndarray:
    return tokens(cfg, count, seed).astype(numpy_dtype(cfg.dtype))


def check(cfg: aristos.MoEConfig, w: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, **call: np.ndarray) -> None:
    """y is within a few roundings of float64, and has the dtype of x."""
    assert y.dtype == x.dtype
    wide = {name: value.astype("f8") for name, value in w.items()}
    want = reference.moe(replace(cfg, dtype="float32"), x.astype("f8"), **wide, **call)
    assert np.abs(y.astype("f8") - want).max() <= 8 * STEP[cfg.dtype] * np.abs(want).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_alone(dtype):
    cfg, w = configuration(dtype)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        x = rows(cfg, 60, 0)
        y = moe(x)
        check(cfg, w, x, y)
        call = routing(cfg, 60, "some", seed=1)
        check(cfg, w, x, moe(x, **call), **call)
        out = np.empty_like(x)
        assert moe(x, out=out) is out
        assert same(out, y)
        moe.load(0, **{name: v.astype("f4") for name, v in w.items()})  # the same values as float32
        assert same(moe(x), y)
    for threads, schedule in ((3, "fused"), (1, "bulk")):  # few rows for few experts: runs are split by columns
        with MoE(cfg, backend="cpu", threads=threads, schedule=schedule) as moe:
            moe.load(0, **w)
            assert same(moe(x), y)
            assert same(moe(x[:3]), y[:3])


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_on_ranks_nodes_and_placements(comm, dtype):
    cfg, w = configuration(dtype)
    x = rows(cfg, 50 + 9 * comm.rank, seed=comm.rank)
    call = routing(cfg, len(x), "zipf", seed=comm.rank)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        routed, given = moe(x), moe(x, **call)
    for options in (
        {},
        {"schedule": "bulk"},
        {"threads": 2},
        {"ranks_per_node": 1},
        {"placement": [1, 0, 1, 1, 0]},
        {"placement": [0, 0, 0, 0, 0]},
        {"placement": [[0, 1], 0, 1, [1, 0], 0]},
    ):
        with MoE(cfg, comm, backend="cpu", **options) as moe:
            moe.load(0, **w)
            assert same(moe(x), routed), options
            assert same(moe(x, **call), given), options


def test_rows_and_weights_take_half_the_bytes():
    wide = replace(CFG, hidden=128, ffn=256, bias=False)
    half = replace(wide, dtype="bfloat16")
    assert packed_bytes(half, 4) - packed_bytes(half, 3) == (packed_bytes(wide, 4) - packed_bytes(wide, 3)) / 2
    assert aristos.MoE.memory(half, 2) < 0.55 * aristos.MoE.memory(wide, 2)


def test_other_dtypes_are_refused():
    cfg, w = configuration("bfloat16")
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        x = rows(cfg, 4, 0)
        y = moe(x)
        with pytest.raises(InputError, match=r"got uint16: .* pass x.view\(ml_dtypes.bfloat16\)$"):
            moe(x.view(np.uint16))
        with pytest.raises(InputError, match="x must have dtype bfloat16, got float32"):
            moe(x.astype("f4"))
        with pytest.raises(InputError, match="out must be a bfloat16 array"):
            moe(x, out=np.empty(x.shape, np.float32))
        with pytest.raises(InputError, match="up must have dtype float32, bfloat16 or float16, got int16"):
            moe.load(0, **w | {"up": w["up"].astype(np.int16)})
        assert same(moe(x), y)


def test_high_precision_of_float32():
    """AMX computes three products of bfloat16, within 2e-5 of float64. Other sets compute as for "highest"."""
    cfg = replace(CFG, hidden=300, ffn=700, precision="high")
    w, x = reference.weights(cfg), tokens(cfg, 60, 0)
    with MoE(replace(cfg, precision="highest"), backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        exact = moe(x)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        y, used = moe(x), moe.isa
        call = routing(cfg, 60, "some", seed=1)
        given = moe(x, **call)
    assert y.dtype == np.float32
    want = reference.moe(cfg, x, **call, **{name: v for name, v in w.items() if name != "router"})
    assert np.abs(given - want).max() < 2e-5 * np.abs(want).max()
    assert np.abs(y - exact).max() < 2e-5 * np.abs(exact).max()
    assert same(y, exact) == (used != "amx")
    for options in ({"threads": 3}, {"schedule": "bulk"}):
        with MoE(cfg, backend="cpu", **options) as moe:
            moe.load(0, **w)
            assert same(moe(x), y)
            assert same(moe(x[:3]), y[:3])


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.ranks(2)
def test_high_precision_on_ranks(comm, pretend):
    cfg = replace(CFG, precision="high")
    w, x = reference.weights(cfg), tokens(cfg, 50 + comm.rank, seed=comm.rank)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        y = moe(x)
    with MoE(replace(cfg, precision="highest"), backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        exact = moe(x)
    for options in ({}, {"ranks_per_node": 1}, {"placement": [[0, 1], 0, 1, [1, 0], 0]}):
        with MoE(cfg, comm, backend="cpu", **options) as moe:
            moe.load(0, **w)
            assert same(moe(x), y), options
    with pytest.raises(MismatchError, match="precision: rank 0 has 'high', rank 1 has 'highest'"):
        MoE(replace(cfg, precision=("high", "highest")[comm.rank]), comm, backend="cpu")
    own = isa.usable()
    pretend.setattr(isa, "usable", lambda: (own, (LESS,))[comm.rank])
    with MoE(cfg, comm, backend="cpu") as moe:  # rank 1 has no AMX, so no rank uses it
        moe.load(0, **w)
        assert moe.isa == LESS
        assert same(moe(x), exact)


def test_weights_of_high_precision_take_the_bytes_of_float32():
    wide = replace(CFG, hidden=128, ffn=256, bias=False)
    high = replace(wide, precision="high")
    assert abs(aristos.MoE.memory(high, 2) / aristos.MoE.memory(wide, 2) - 1) < 0.01
    for cfg in (wide, high, replace(high, hidden=70)):
        with MoE(cfg, backend="cpu", threads=1) as moe:
            moe.load(0, **reference.weights(cfg))
            assert moe.packed_weights(0).nbytes == packed_bytes(cfg, cfg.experts)


def test_high_precision_is_for_float32():
    with pytest.raises(InputError, match="precision='high' requires dtype='float32', got dtype='bfloat16'"):
        replace(CFG, dtype="bfloat16", precision="high")
    with pytest.raises(InputError, match="precision must be one of highest, high, got 'low'"):
        replace(CFG, precision="low")


# An instruction set besides the best one: that of the plain part of tests/kernels/test_isas.py, which compiles kernels.
OTHERS = isa.usable()[1:] or ("generic",)
LESS = next(name for name in (*sweeps.turn(isa.usable()), OTHERS[-1]) if name in OTHERS)


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
def test_outputs_beyond_float16_are_counted(dtype):
    """The hidden activations of expert 2, which has three tokens, become infinite in float16. Other types hold them."""
    cfg = replace(CFG, dtype=dtype, top_k=1, bias=False, activation="relu2", gated=False)
    w = reference.weights(cfg)
    w["up"][2] *= 300
    x = (10 * tokens(cfg, 9, seed=0)).astype(numpy_dtype(dtype))
    ids, ones = np.array([[0], [1], [2], [2], [-1], [3], [4], [2], [0]]), np.ones((9, 1), np.float32)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        moe.load(0, **w)
        y, stats = moe(x.reshape(3, 3, -1), ids.reshape(3, 3, 1), ones.reshape(3, 3, 1), return_stats=True)
        assert stats.not_finite == (3 if dtype == "float16" else None)
        finite = np.isfinite(y.astype("f4")).all(axis=2).ravel()
        assert finite.tolist() == [dtype != "float16" or e != 2 for e in ids.ravel()]
        none = moe(x[:0], ids[:0], ones[:0], return_stats=True)[1]
        assert none.not_finite == (0 if dtype == "float16" else None)


@pytest.mark.slow
@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_agree_on_an_instruction_set(comm, dtype, pretend, capfd):
    """The 16-bit layers have the bits that one rank computes with the common set. float32 needs no common set."""
    best, own = isa.chosen(), isa.usable()
    cfg, w = configuration(dtype)
    x = rows(cfg, 50, seed=comm.rank)
    with pretend.context() as only:
        only.setattr(isa, "usable", lambda: (LESS,))
        with MoE(cfg, backend="cpu", threads=1) as moe:
            moe.load(0, **w)
            assert moe.isa == LESS
            want = moe(x)
    pretend.setattr(isa, "usable", lambda: (own, (LESS,))[comm.rank])
    with MoE(replace(CFG, dtype="float32"), comm, backend="cpu") as moe:
        assert moe.isa == (best, LESS)[comm.rank]  # float32 has equal bits on all sets: each rank uses its best
    assert "aristos: kernels use" not in capfd.readouterr().err
    with MoE(cfg, comm, backend="cpu") as moe, MoE(cfg, comm, backend="cpu") as again:
        moe.load(0, **w)
        again.load(0, **w)
        y, stats = moe(x, return_stats=True)
        assert moe.isa == again.isa == stats.isa == LESS
        assert same(y, want)
        assert same(again(x), want)
    said = f"aristos: kernels use {LESS}, the best instruction set that all ranks have, instead of {best} on rank 0\n"
    lines = capfd.readouterr().err.splitlines(keepends=True)
    shown = "".join(line for line in lines if not line.startswith("aristos: compiling kernels"))
    assert shown == (said if comm.rank == 0 and best != LESS else "")


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.ranks(2)
@pytest.mark.parametrize("schedule", ["fused", "bulk"])
def test_ranks_that_train_agree_on_an_instruction_set(comm, schedule, pretend):
    """Rows of gradients are padded to whole vectors: rows of 36 and of 6 numbers get other lengths with another set."""
    own, cfg = isa.usable(), replace(CFG, hidden=36, experts=6, dtype="float32")
    w, x, dy = reference.weights(cfg), rows(cfg, 20, seed=comm.rank), rows(cfg, 20, seed=comm.rank + 5)
    with pretend.context() as only:
        only.setattr(isa, "usable", lambda: (LESS,))
        with MoE(cfg, backend="cpu", threads=1, train=True, schedule=schedule) as moe:  # compile before ranks wait
            moe.load(**w)
            moe.backward(dy, moe.forward(x)[1])
    pretend.setattr(isa, "usable", lambda: (own, (LESS,))[comm.rank])
    with MoE(cfg, comm, backend="cpu", train=True, schedule=schedule, placement=[[0, 1], 0, 1, 0, 1, 0]) as moe:
        moe.load(**w)
        assert moe.isa == LESS
        moe.backward(dy, moe.forward(x)[1])
        moe.reduce_grads()
        found = {name: array.copy() for name, array in moe.grads().items()}
        mine = moe.placement.mine(comm.rank)
    right = reference.backward(cfg, *(np.concatenate(comm.allgather(each)) for each in (x, dy)), **w)
    for name, array in found.items():
        assert reference.error(array, right[name] if name == "router" else right[name][mine]) < 1e-5, name
    assert len(set(comm.allgather(found["router"].tobytes()))) == 1


@pytest.mark.slow
@pytest.mark.skipif(isa.chosen() == LESS, reason="needs two instruction sets")
@pytest.mark.ranks(4)
def test_groups_of_a_plan_train_with_one_instruction_set(comm, pretend):
    best, own = isa.chosen(), isa.usable()
    pretend.setattr(isa, "usable", lambda: (LESS,) if comm.rank > 1 else own)
    with pytest.raises(MismatchError, match=f"{best}, {best}, {LESS}, {LESS} on ranks 0, 1 and so on: set ARISTOS_ISA"):
        MoE(replace(CFG, experts=4, dtype="float32"), comm, plan=plan_of([3, 1, 2, 2]), backend="cpu", train=True)


RANKS = """
import os, sys
rank = int(next(os.environ[v] for v in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK") if v in os.environ))
os.environ["ARISTOS_ISA"] = sys.argv[1 + rank]
from mpi4py import MPI
comm = MPI.COMM_WORLD
"""
ALONE = """
import os, sys
os.environ["ARISTOS_ISA"] = sys.argv[1]
comm = None
"""
LAYER = """
import hashlib
import numpy as np
import aristos
from aristos import reference
cfg = aristos.MoEConfig(hidden=70, ffn=200, experts=5, dtype="float16", max_tokens=70)
x = np.random.default_rng(0).standard_normal((50, 70)).astype("f2")
with aristos.MoE(cfg, comm, threads=1, backend="cpu") as moe:
    moe.load(**reference.weights(cfg))
    mine = f"> {moe.isa} {hashlib.sha256(moe(x).tobytes()).hexdigest()}"
    for line in (comm.gather(mine) or []) if comm else [mine]:
        print(line, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_processes_with_two_values_of_aristos_isa():
    def run(*command: str) -> list[str]:
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith(">")]

    (alone,) = run(sys.executable, "-c", ALONE + LAYER, LESS)
    assert alone.split()[1] == LESS
    for sets in ((isa.chosen(), LESS), (LESS, isa.chosen())):
        assert run(*find_mpiexec(), "-n", "2", sys.executable, "-c", RANKS + LAYER, *sets) == [alone, alone]


class Bfloat16Tensor:
    """A bfloat16 array with the protocols of PyTorch's tensors (name: torch.bfloat16) or JAX's arrays (bfloat16)."""

    def __init__(self, array: np.ndarray, name: str) -> None:
        self._array, self.dtype = array, name

    def __dlpack__(self, **options: object) -> object:
        raise RuntimeError("Unsupported dtype in DLTensor.")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        if self.dtype != "bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._array

    def view(self, dtype: str) -> np.ndarray:
        return self._array.view(dtype)


def test_bfloat16_tensors_of_other_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(int16="int16"))
    cfg, w = configuration("bfloat16")
    x = rows(cfg, 9, 0)
    with MoE(cfg, backend="cpu", threads=1) as moe:
        for name in ("torch.bfloat16", "bfloat16"):
            moe.load(0, **{n: Bfloat16Tensor(v, name) if v.dtype == x.dtype else v for n, v in w.items()})
            assert same(moe(Bfloat16Tensor(x, name)), moe(x))

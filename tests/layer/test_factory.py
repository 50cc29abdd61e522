"""Making a layer: keyword-only options, the choice of a backend, and one public class for every backend."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import MoE, tokens
from mpi import LAUNCHER_VARIABLES, ranks_each

import aristos
from aristos import reference
from aristos.errors import InputError

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=30)
W = reference.weights(CFG)


CUDA = (1, "fused", None, None, 9.0, None, None, "cuda")  # all options in order, as positional arguments


@pytest.mark.parametrize("arguments", [(1,), (1, "bulk"), (1, "bulk", 2), CUDA])
def test_options_after_comm_are_keywords_only(arguments):
    """The code that chooses the backend reads keyword arguments alone."""
    with pytest.raises(TypeError, match="positional argument"):
        aristos.MoE(CFG, None, *arguments)
    with pytest.raises(TypeError, match="positional argument"):
        aristos.Exchange(None, 40, 5)  # type: ignore[misc]


def test_cuda_is_never_the_default(monkeypatch):
    """The CUDA backend has not run on a GPU. So a layer runs on CPUs even where CuPy and numba-cuda see a GPU."""
    cupy: Any = types.ModuleType("cupy")
    cupy.is_available = lambda: True
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with MoE(CFG) as moe:
        assert moe.backend == "cpu"
        moe.load(**W)
        x = tokens(CFG, 7, seed=1)
        assert reference.error(moe(x), reference.moe(CFG, x, **W)) < 1e-5
    with pytest.raises(InputError, match="pass backend='cuda'"):
        aristos.MoE.memory(replace(CFG, dtype="tf32"), 1)


@pytest.mark.parametrize("backend", ["tpu", 3, ["cpu"]])
def test_an_unknown_backend_is_refused(backend):
    with pytest.raises(InputError, match="backend must be None or one of cpu, cuda, got"):
        aristos.MoE(CFG, backend=backend)


def test_a_layer_is_an_instance_of_the_public_class():
    assert "__new__" not in vars(aristos.MoE)
    with MoE(CFG) as moe:
        assert isinstance(moe, aristos.MoE)
        assert moe.device is None
        moe.load(**W)
        moe.synchronize()  # nothing to wait for


# ---- memory


def real_bytes(moe: aristos.MoE) -> int:
    """Bytes of windows, outboxes and packed weights that this rank has allocated."""
    windows = moe._member.runtime._memory.nbytes
    return windows + sum(moe.packed_weights(layer).nbytes for layer in range(moe.layers))


@ranks_each(1, 2)
@pytest.mark.parametrize("layers", [1, 3])
def test_memory_is_what_a_rank_allocates(comm, world, layers):
    """`memory` is what the rank that allocates most allocates: windows and packed weights, with biases and router."""
    plain = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=30)
    for cfg in (plain, replace(plain, bias=True), replace(plain, gated=True, bias=True, activation="silu", hidden=33)):
        w = reference.weights(cfg)
        for placement in (None, [world - 1] * 5):
            for ranks_per_node in (None, 1):
                options: dict[str, Any] = {"placement": placement, "ranks_per_node": ranks_per_node, "layers": layers}
                with MoE(cfg, comm, threads=1, **options) as moe:
                    for layer in range(layers):
                        moe.load(layer, **w)
                    mine = real_bytes(moe)
                everyone = comm.allgather(mine) if comm is not None else [mine]
                assert max(everyone) == aristos.MoE.memory(cfg, world, **options)


def test_memory_counts_the_weights_of_every_layer():
    wide = replace(CFG, ffn=4096)
    weights = 4 * 2 * 5 * 40 * 4096  # bytes of up and down
    assert aristos.MoE.memory(wide, 1) > weights
    assert aristos.MoE.memory(wide, 1, layers=4) > 4 * weights
    assert aristos.MoE.memory(wide, 5) < weights  # each rank has one expert
    with pytest.raises(InputError, match="layers must be an int in 1"):
        aristos.MoE.memory(CFG, 2, layers=0)


# ---- weights that do not fit


@ranks_each(2)
def test_a_wrong_shape_names_the_argument_that_would_fit(comm, world):
    """The error names layout= for arrays in nn.Linear's order, local= for one rank's experts, or both."""
    cfg = replace(CFG, experts=6, gated=True, activation="silu")
    w = reference.weights(cfg)
    turned = {name: np.ascontiguousarray(a.swapaxes(-1, -2)) for name, a in w.items()}
    mine = slice(3 * comm.rank, 3 * comm.rank + 3)
    own = {name: a if name == "router" else a[mine] for name, a in w.items()}
    both = {name: a if name == "router" else a[mine] for name, a in turned.items()}
    linear, inputs_first = r"layout='out_in' \(nn.Linear's order\)", r"layout='in_out' \(inputs before outputs\)"
    alone, whole = r"local=True \(this rank's experts alone\)", r"local=False \(all experts\)"
    with MoE(cfg, comm, threads=1) as moe:
        for given, options, hint in (
            (turned, {}, linear),
            (own, {}, alone),
            (both, {}, f"{alone} and {linear}"),
            (w, {"local": True}, whole),
            (w, {"layout": "out_in"}, inputs_first),
            (turned, {"local": True}, f"{whole} and {linear}"),
            ({**w, "router": turned["router"]}, {}, linear),
        ):
            with pytest.raises(InputError, match=f"must have shape .*, got .*: this shape is right with {hint}$"):
                moe.load(**given, **options)
        with pytest.raises(InputError, match=r"up must have shape \[6, 40, 72\], got \[6, 40, 71\]$"):
            moe.load(**{**w, "up": w["up"][:, :, :71]})
        moe.load(**w)
        moe.load(**own, local=True)
        moe.load(**both, local=True, layout="out_in")


def test_bits_of_bfloat16_are_refused_with_the_conversion():
    bits = {name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in W.items()}
    with MoE(CFG) as moe:
        advice = r"up must have dtype float32, bfloat16 or float16, got uint16: .*up\.view\(ml_dtypes\.bfloat16\)"
        with pytest.raises(InputError, match=advice):
            moe.load(**{**W, "up": bits["up"]})
        moe.load(**W)
        with pytest.raises(InputError, match=r"x\.view\(ml_dtypes\.bfloat16\)\.astype\('float32'\)"):
            moe(np.zeros((3, 40), np.uint16))
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        moe.load(**{name: a.view(bfloat16).astype("float32") for name, a in bits.items()})


def test_load_clears_the_summary_but_load_expert_and_load_router_do_not():
    experts, router = {name: a for name, a in W.items() if name != "router"}, W["router"]
    with MoE(CFG, layers=2) as moe:
        moe.load(0, **W)
        moe(tokens(CFG, 9, seed=0))
        moe.load_expert(1, 0, **{name: a[0] for name, a in experts.items()})
        moe.load_router(0, router=router)
        assert moe.summary().calls == 1
        moe.load(1, **W)
        assert moe.summary().calls == 0
        moe(tokens(CFG, 9, seed=0), layer=1)
        summary = moe.summary()
        assert (summary.calls, summary.rows) == (1, 18)


ALONE = """
import os, sys
from mpi4py import MPI
import aristos
from aristos.errors import EnvironmentProblem

cfg = aristos.MoEConfig(hidden=8, ffn=8, experts=2, top_k=1, max_tokens=4)
makers = {
    "MoE": lambda: aristos.MoE(cfg, MPI.COMM_WORLD, backend="cpu"),
    "Exchange": lambda: aristos.Exchange(MPI.COMM_WORLD.Dup(), hidden=8, experts=2),
}
for tasks, task in (("2", "0"), ("2", "1"), ("1", "0")):
    os.environ.update(OMPI_COMM_WORLD_SIZE=tasks, OMPI_COMM_WORLD_RANK=task)
    for name, make in makers.items():
        try:
            make().close()
            print(name, tasks, "made")
        except EnvironmentProblem as why:
            print(name, tasks, why)
"""


def test_tasks_that_are_each_a_world_of_one_are_refused():
    """Another library's mpirun, or srun without the right --mpi, starts such tasks. Each would compute everything."""
    env = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_"))}
    done = subprocess.run([sys.executable, "-c", ALONE], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[4:] == ["MoE 1 made", "Exchange 1 made"]
    for line, name in zip(said, ("MoE", "Exchange") * 2):
        assert line.startswith(
            f"{name} 2 Open MPI's mpirun started 2 tasks, but the size of MPI_COMM_WORLD is 1: use the mpirun that "
        )

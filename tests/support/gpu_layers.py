"""Bodies of tests about the layer on GPUs, for a real GPU (tests/gpu) and for the PTX machine.

A body takes the communicator (None for one rank) and the rank. Shapes are small. ARISTOS_TEST_TIMEOUT sets TIMEOUT,
the seconds after which a wait ends: ranks that share a GPU are time-sliced, so each poll of a peer may take a slice.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import routing, tokens
from ml_dtypes import bfloat16

import aristos
from aristos import reference
from aristos.bench.gpu.clock import BenchGpu, GpuArray
from aristos.bench.world import World
from aristos.errors import InputError, PeerInputError
from aristos.kernels.cuda.pack import widen
from aristos.row_types import KINDS

TIMEOUT = float(os.environ.get("ARISTOS_TEST_TIMEOUT", "60"))
CFG = aristos.MoEConfig(hidden=64, ffn=40, experts=5, top_k=2, activation="silu", gated=True, bias=True, max_tokens=24)
WEIGHTS = reference.weights(CFG)
TYPES = {"float32": np.float32, "tf32": np.float32, "float16": np.float16, "bfloat16": bfloat16}
BOUNDS = {"float32": 1e-5, "tf32": 4e-3, "float16": 4e-3, "bfloat16": 3e-2}
TOKENS = 22


def made(comm: Any, cfg: aristos.MoEConfig = CFG) -> Any:
    moe = aristos.MoE(cfg, comm, backend="cuda", timeout=TIMEOUT, absent_timeout=TIMEOUT)
    moe.load(**WEIGHTS)
    return moe


def share(rank: int, world: int) -> slice:
    """This rank's tokens of TOKENS: parts of different sizes."""
    ends = [TOKENS * r * (r + 1) // (world * (world + 1)) for r in range(world + 1)]
    return slice(ends[rank], ends[rank + 1])


def right(y: Any, x: Any, dtype: str = "float32", **call: Any) -> None:
    """Compare y, the layer's output for x, with the float64 reference. x may have any type."""
    given = {name: value for name, value in WEIGHTS.items() if name != "router" or not call}
    want = reference.moe(CFG, np.asarray(x, np.float32), **given, **call)
    assert reference.error(np.asarray(y, np.float32), want) < BOUNDS[dtype]


def every_dtype(comm: Any, rank: int, world: int, dtype: str) -> None:
    """Four calls with host arrays are right.

    Three use the router, one of them without tokens on rank 0. The last gets ids.
    """
    with made(comm, replace(CFG, dtype=dtype)) as moe:
        for count, seed in ((11, 1), (0 if rank == 0 else 5, 2), (24, 3)):
            x = tokens(CFG, count, seed=10 * seed + rank).astype(TYPES[dtype])
            right(moe(x), x, dtype)
        call = routing(CFG, 9, "some", seed=rank)
        x = tokens(CFG, 9, seed=rank).astype(TYPES[dtype])
        right(moe(x, **call), x, dtype, **call)


def bits(comm: Any, rank: int, world: int) -> np.ndarray:
    """The bits of this rank's outputs for its share of the tokens. One rank that has all tokens gives the same bits."""
    with made(comm) as moe:
        return moe(tokens(CFG, TOKENS, seed=7)[share(rank, world)]).view(np.uint32)


def device_arrays(comm: Any, rank: int, world: int, dtype: str) -> None:
    """Arrays of the GPU are used in place, without a copy; the call is asynchronous, and `synchronize` waits for it."""
    kind, gpu = KINDS[dtype], BenchGpu(World())
    with made(comm, replace(CFG, dtype=dtype)) as moe:
        x = tokens(CFG, 13, seed=rank).astype(TYPES[dtype])
        bits = x.view(np.uint16) if dtype == "bfloat16" else x
        given, out = gpu.array(bits, kind), GpuArray(gpu, x.shape, kind)
        with gpu.here():
            assert moe(given, out=out) is out
        moe.synchronize()
        right(widen(out.get(), kind), x, dtype)
    gpu.close()


def captured(comm: Any, rank: int, world: int) -> None:
    """A call captured in a CUDA graph is right when it is replayed on other tokens in the same memory."""
    gpu = BenchGpu(World())
    with made(comm) as moe:
        first = tokens(CFG, 6 + rank, seed=1)
        x, y = gpu.array(first, "f32"), GpuArray(gpu, first.shape, "f32")
        with gpu.here():
            moe(x, out=y)  # a first call allocates, which cannot be captured
            moe.synchronize()
            graph = gpu.device.graph(gpu.stream, lambda: moe(x, out=y))
            for seed in (2, 3, 4):
                now = tokens(CFG, 6 + rank, seed=10 * seed + rank)
                x.put(now)
                gpu.device.clear(y.at, y.nbytes, gpu.stream)
                gpu.device.replay(graph, gpu.stream)
                moe.synchronize()
                right(y.get(), now)
        again = moe(first)  # a call without the graph still works
        right(again, first)
    gpu.close()


def refusals(comm: Any, rank: int, world: int) -> None:
    """An input that is wrong on one rank is an error on all ranks, and the next call works."""
    with made(comm) as moe:
        x = tokens(CFG, 4, seed=rank)
        mine, theirs = (InputError, r"width|shape"), (PeerInputError if world > 1 else InputError, "refused")
        kind, words = mine if rank == 0 else theirs
        with pytest.raises(kind, match=words):
            moe(x[:, :8].copy() if rank == 0 else x)
        ids = np.tile([0, 1], (4, 1))
        kind, words = (InputError, "once at most") if rank == world - 1 else theirs
        with pytest.raises(kind, match=words):
            moe(x, ids=np.full((4, 2), 3) if rank == world - 1 else ids, weights=np.ones((4, 2), np.float32))
        bad = x.copy()
        bad[2, 3] = np.nan
        with pytest.raises(InputError if rank == 0 else PeerInputError, match="finite"):
            moe(bad if rank == 0 else x)
        right(moe(x), x)

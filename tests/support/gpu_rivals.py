"""Stand-ins for cuBLAS, NCCL and PyTorch on the PTX machine, which cannot run NVIDIA's libraries."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simt_gpu import MachineGpu

from aristos.bench.gpu import alltoall, clock, rival, torch_layer
from aristos.bench.workload import Call
from aristos.kernels.cuda.pack import narrow, widen
from ptxsim import isa


def torch_or_skip() -> Any:
    """Import PyTorch from this environment or from that of the comparison's peers; skip if neither has it."""
    for folder in (Path(sys.prefix) / "peers/torch/lib").glob("python*/site-packages"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return pytest.importorskip("torch", reason="no PyTorch: `python bench/environments.py torch` installs it")


def bytes_anywhere(gpu: Any, at: int, count: int, own: Any = MachineGpu._bytes) -> np.ndarray:
    """`MachineGpu._bytes`, extended to this process's memory, where PyTorch's tensors lie."""
    if 0 <= at - isa.GLOBAL_START < len(gpu.machine.memory.data):
        found: np.ndarray = own(gpu, at, count)
        return found
    return np.frombuffer((ctypes.c_uint8 * count).from_address(at), np.uint8)


class FakeCublas:
    """cuBLAS's product by NumPy, on the PTX machine's memory. wrong: added to every output."""

    used, wrong = "cuBLAS of the tests", 0.0

    def __init__(self, gpu: Any) -> None:
        self.device = gpu.device

    def product(self, kind: str, m: int, n: int, k: int, a: int, lda: int, b: int, ldb: int, c: int, ldc: int) -> None:
        size = {"bf16": 2, "f16": 2}.get(kind, 4)
        dtype = clock.TYPES[kind]
        self.device.synchronize()

        def rows(at: int, count: int, width: int, pitch: int) -> np.ndarray:
            whole = self.device._bytes(at, size * (pitch * (count - 1) + width))
            step = (size * pitch, size)
            return np.lib.stride_tricks.as_strided(whole.view(dtype), (count, width), step)

        left, right = widen(rows(a, m, k, lda), kind), widen(rows(b, n, k, ldb), kind)
        rows(c, m, n, ldc)[:] = narrow(left @ right.T + np.float32(self.wrong), kind)


GPUS: dict[int, Any] = {}  # thread -> its GPU
CAPTURES: dict[int, list[Callable[[], object]]] = {}  # thread -> operations of the graph that it captures


class FakeNccl:
    """NCCL's functions between two threads, in place of its library: `ncclGroupEnd` moves the bytes of the group."""

    path = "libnccl of the tests"

    def __init__(self) -> None:
        self.local = threading.local()
        self.key: Any = None

    def number(self, name: str) -> int:
        assert name == "ncclGetVersion"
        return 22803

    def call(self, name: str, *arguments: Any) -> None:
        getattr(self, name)(*(getattr(each, "value", each) for each in arguments))

    def ncclGetUniqueId(self, key: Any) -> None:
        key._obj.internal = b"a key"
        self.key = {"barrier": threading.Barrier(2), "sent": {}}

    def ncclCommInitRank(self, comm: Any, size: int, key: alltoall.UniqueId, rank: int) -> None:
        assert (size, key.internal) == (self.key["barrier"].parties, b"a key")
        comm._obj.value = 1 + rank  # not 0, which would be a null pointer

    def ncclGroupStart(self) -> None:
        self.local.sends, self.local.gets, self.local.rank = [], [], None

    def ncclSend(self, at: int, count: int, kind: int, peer: int, comm: int, stream: int) -> None:
        assert kind == alltoall.INT8
        self.local.rank = comm - 1
        self.local.sends.append((at, count, peer))

    def ncclRecv(self, at: int, count: int, kind: int, peer: int, comm: int, stream: int) -> None:
        self.local.rank = comm - 1
        self.local.gets.append((at, count, peer))

    def ncclGroupEnd(self) -> None:
        move = partial(self._move, self.local.sends, self.local.gets)
        move()
        if threading.get_ident() in CAPTURES:
            CAPTURES[threading.get_ident()].append(move)

    def _move(self, sends: list[Any], gets: list[Any]) -> None:
        gpu, key, rank = GPUS[threading.get_ident()], self.key, self.local.rank
        gpu.synchronize()
        for at, n, peer in sends:
            key["sent"][rank, peer] = gpu._bytes(at, n).copy()
        key["barrier"].wait(60)
        for at, n, peer in gets:
            gpu._bytes(at, n)[:] = key["sent"][peer, rank]
        key["barrier"].wait(60)

    def ncclCommDestroy(self, comm: int) -> None:
        pass


def captured(torch: Any, call: Callable[[], object]) -> list[Callable[[], object]]:
    """The steps that a CUDA graph of the call would have: its operations on tensors and NCCL's, with its addresses.

    `call` runs once, here. A step repeats an operation, and writes the result to the tensors that it had in the
    capture.
    """
    from torch.utils import _python_dispatch, _pytree

    def tensors(found: Any) -> list[Any]:
        return [each for each in _pytree.tree_leaves(found) if isinstance(each, torch.Tensor)]

    steps: list[Callable[[], object]] = []

    class Capture(_python_dispatch.TorchDispatchMode):  # type: ignore[misc, unused-ignore]
        def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            repeated = partial(operation, *given, **(named or {}))
            found = repeated()

            def step() -> None:
                for old, new in zip(tensors(found), tensors(repeated())):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

            steps.append(step)
            return found

    CAPTURES[threading.get_ident()] = steps
    try:
        with Capture():
            call()
    finally:
        del CAPTURES[threading.get_ident()]
    return steps


def unfused(function: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """A `torch_layer.Fuse` that compiles nothing."""
    return otherwise


class MachineTorch:
    """`rival.TorchGpu` for PyTorch on CPUs, with tensors in the machine's memory."""

    used, uncompiled = "PyTorch of the tests", "the tests compile nothing"

    def __init__(self, gpu: Any) -> None:
        self.gpu, self.torch = gpu, torch_or_skip()
        self.torch.set_num_threads(1)
        self.device = self.torch.device("cpu")

    def ways(self, cfg: Any) -> tuple[str, ...]:
        return torch_layer.WAYS

    def why_ungrouped(self, cfg: Any) -> str:
        return ""

    def here(self) -> Any:
        return contextlib.nullcontext()

    def tensor(self, array: Any) -> Any:
        whole = self.gpu.device._bytes(array.at, array.nbytes)
        found = self.torch.from_numpy(whole.view("<i2" if array.kind == "bf16" else array.dtype).reshape(array.shape))
        return found.view(self.torch.bfloat16) if array.kind == "bf16" else found

    fuse = staticmethod(unfused)

    def graph(self, call: Callable[[], object]) -> Callable[[], object]:
        steps = captured(self.torch, call)

        def run() -> None:
            self.gpu.device.synchronize()
            for step in steps:
                step()

        return run


class OracleRival:
    """A rival whose outputs are the float64 reference's, times `factor`; for tests without PyTorch."""

    notes, factor = ("a rival of the tests",), 1.0

    def __init__(self, gpu: Any, work: Any, weights: Any) -> None:
        self.gpu, self.work = gpu, work

    def chains(self, played: Any) -> dict[str, rival.Chain]:
        x, routing = widen(played.x.get(), played.kind), [each.get() for each in played.routing.values()]
        y = narrow((self.work.oracle(Call(x, *routing)) * self.factor).astype(np.float32), played.kind)
        out = clock.GpuArray(self.gpu, y.shape, played.kind)
        names = (rival.CHAIN,) if self.work.world.size == 1 else (rival.CHAIN_NCCL, rival.CHAIN_MPI)
        return {name: rival.Chain(lambda: out.put(y), out, "by the tests") for name in names}

    def close(self) -> None:
        pass


def of_tests(**changed: Any) -> Callable[..., Any]:
    """A replacement for `rival.rival_or_why`: it makes an `OracleRival` with these attributes."""

    def made(gpu: Any, work: Any, weights: Any) -> Any:
        found = OracleRival(gpu, work, weights)
        vars(found).update(changed)
        return found, list(found.notes)

    return made

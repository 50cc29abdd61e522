"""The rival of `layer` and `replay` on a GPU: `torch_layer.py` on the benchmark's stream, in CUDA graphs.

On one rank, the rival is a chain in one graph. On several ranks there are two chains: with NCCL's all-to-all in one
graph, and with MPI's all-to-all between three graphs. If the products can be computed both by a grouped product and in
a loop, both ways are captured, and the fastest way with right outputs is kept; the row names it. `torch.compile`
compiles activation and combine; if it fails, PyTorch's own kernels run. The rival runs no kernel of this package. A
step that fails on one rank is left out on all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ...config import MoEConfig
from ...errors import EnvironmentProblem
from ..context import WRONG_RIVAL, counted
from ..workload import Workload
from . import torch_layer
from .alltoall import Nccl, Staged
from .calls import Played
from .clock import BenchGpu, GpuArray
from .cublas import described, library
from .libraries import or_why

CHAINS = CHAIN, CHAIN_NCCL, CHAIN_MPI = "chain graph", "chain, NCCL", "chain, MPI"
TRIES = 3  # measurements of each way to multiply, to find the faster one

# errors that PyTorch (without memory, or in another version), NCCL and the GPU raise
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, EnvironmentProblem)

Call = Callable[[], object]
T = TypeVar("T")


def said(error: Exception) -> str:
    """PyTorch's error in one line, or the text of an EnvironmentProblem."""
    if isinstance(error, EnvironmentProblem):
        return str(error)
    return " ".join([f"PyTorch failed with {type(error).__name__}:", *str(error).splitlines()[:1]])


@dataclass(frozen=True)
class Chain:
    """A rival's call. out: the array that it writes. used: a text that says how it computes."""

    call: Call
    out: GpuArray
    used: str


class _Memory:
    """An array of the GPU for PyTorch to read. A bfloat16 array is shown as int16; `TorchGpu.tensor` views it back."""

    def __init__(self, array: GpuArray) -> None:
        typestr = "<i2" if array.kind == "bf16" else array.dtype.str
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | {"typestr": typestr}


class TorchGpu:
    """PyTorch on the GPU and the stream of a benchmark. Raises EnvironmentProblem if it cannot use them.

    used: the versions of PyTorch and cuBLAS. uncompiled: why functions are not compiled, or ''.
    """

    def __init__(self, gpu: BenchGpu) -> None:
        self.gpu, self.uncompiled = gpu, ""
        try:
            self.torch = torch = torch_layer.imported()
        except (ImportError, OSError) as error:
            raise EnvironmentProblem(
                f"PyTorch is not compared, because it cannot be imported ({error}): pip install torch"
            ) from error
        if torch.version.cuda is None or not torch.cuda.is_available():
            raise EnvironmentProblem(
                f"PyTorch {torch.__version__} is not compared, because it finds no GPU that it can use"
            )
        self.device = torch.device("cuda", gpu.device.ordinal)
        self.stream = torch.cuda.ExternalStream(gpu.stream, device=self.device)
        self._pool = torch.cuda.graph_pool_handle()
        try:
            with self.here():
                one = torch.ones((64, 64), device=self.device)
                torch.mm(one, one)
                torch.cuda.synchronize(self.device)
        except FAILURES as error:
            raise EnvironmentProblem(f"PyTorch {torch.__version__} is not compared: {said(error)}") from error
        blas = "its cuBLAS was not found as a file"
        with contextlib.suppress(EnvironmentProblem):
            blas = described(library(gpu.device.driver))
        self.used = f"PyTorch {torch.__version__} ({torch.__path__[0]}), {blas}"

    def ways(self, cfg: MoEConfig) -> tuple[str, ...]:
        """The ways in which a layer's products can be computed."""
        return torch_layer.ways(self.torch, cfg, self._capability())

    def why_ungrouped(self, cfg: MoEConfig) -> str:
        """See `torch_layer.why_ungrouped`."""
        return torch_layer.why_ungrouped(self.torch, cfg, self._capability())

    def _capability(self) -> tuple[int, int]:
        return self.torch.cuda.get_device_capability(self.device)

    def here(self) -> Any:
        """A block in which PyTorch queues on the stream."""
        return self.torch.cuda.stream(self.stream)

    def tensor(self, array: GpuArray) -> Any:
        """The array's memory as a tensor."""
        found = self.torch.as_tensor(_Memory(array), device=self.device)
        return found.view(self.torch.bfloat16) if array.kind == "bf16" else found

    def fuse(self, function: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
        """A function that runs `function` compiled into one kernel, or `otherwise` once compilation has failed."""
        compiled, works = self.torch.compile(function, fullgraph=True), True

        def run(*arguments: Any) -> Any:
            nonlocal works
            if works:
                try:
                    return compiled(*arguments)
                except Exception as error:  # the compiler raises errors of many kinds
                    works, self.uncompiled = False, said(error)
            return otherwise(*arguments)

        return run

    def graph(self, call: Call) -> Call:
        """Capture a call, which must have run before, in a CUDA graph. Returns a function that replays the graph."""
        cuda = self.torch.cuda
        graph, pool = cuda.CUDAGraph(), self._pool
        self._pool = cuda.graph_pool_handle()  # a new one, because a failed capture may leave the pool unusable
        with cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            call()
        self._pool = pool

        def replay() -> None:
            with self.here():
                graph.replay()

        return replay


class Rival:
    """A maker of a layer's unfused chains. part: router, experts and sums that this rank's chains share. Collective.

    notes: sentences that say what the chains use, and why a chain is missing.
    """

    def __init__(self, gpu: BenchGpu, work: Workload, place: TorchGpu, part: torch_layer.Part) -> None:
        self.gpu, self.work, self.place, self._part = gpu, work, place, part
        self.exchanges: dict[str, Nccl | None] = {CHAIN: None}
        self.notes, self._staged = [place.used], list[Staged]()
        if why := place.why_ungrouped(work.cfg):
            self.notes.append(f"PyTorch multiplies expert by expert: {why}")
        if work.world.size > 1:
            nccl, note = or_why(Nccl, gpu)
            self.exchanges = ({CHAIN_NCCL: nccl} if nccl is not None else {}) | {CHAIN_MPI: None}
            self.notes.append(note)

    def chains(self, played: Played) -> dict[str, Chain]:
        """The chains of a call by name. A chain that fails is left out, and `notes` says why. Collective."""
        found = {}
        for name, exchange in self.exchanges.items():
            made = self._chain(name, played, exchange)
            if made is not None:
                found[name] = made
        return found

    def _chain(self, name: str, played: Played, exchange: Nccl | None) -> Chain | None:
        """The chain with the fastest right way to multiply; the fastest of all if none is right; None if all fail.

        Collective.
        """
        gpu, work, place = self.gpu, self.work, self.place
        found: list[tuple[bool, float, Chain]] = []  # whether the chain is wrong, its seconds, the chain
        untimed = f"calls of {counted(played.count, 'token')} are not timed"
        try:
            out, via = self._together(partial(self._prepared, played, exchange))
        except EnvironmentProblem as failed:
            self._note(f"{name}: {untimed}: {failed}")
            return None
        for way in place.ways(work.cfg):
            try:
                with place.here():
                    call, graphs = self._graphs(played, way, out, via)
                    mine = self._together(lambda: min(gpu.seconds(call) for _ in range(TRIES)))  # noqa: B023
            except EnvironmentProblem as failed:
                self._note(f"{name}, {way}: {untimed}: {failed}")
                continue
            seconds, error = work.world.largest(mine), played.error(call, out)
            if place.uncompiled:
                self._note(f"torch.compile failed, so the chain is not compiled: {place.uncompiled}")
            fused = "not compiled" if place.uncompiled else "compiled"
            chain = Chain(call, out, f"PyTorch {place.torch.__version__}, {way}, {fused}, {graphs}")
            found.append((not work.passes(error), seconds, chain))
            if not work.passes(error):
                self._note(f"{name}, {way}: {WRONG_RIVAL}, error {error:.1e} for {counted(played.count, 'token')}")
        return min(found, key=lambda each: each[:2])[2] if found else None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _prepared(self, played: Played, exchange: Nccl | None) -> tuple[GpuArray, Nccl | Staged | None]:
        """(the array that a chain writes, the all-to-all that moves its rows between ranks)."""
        work, out = self.work, GpuArray(self.gpu, played.y.shape, played.kind)
        if work.world.size == 1 or exchange is not None:
            return out, exchange
        row, gets = played.x.dtype.itemsize * work.cfg.hidden, np.bincount(work.placement, played.rows)
        self._staged.append(staged := Staged(self.gpu, row * int(max(1, played.counts.sum(axis=1).max(), gets.max()))))
        return out, staged

    def _together(self, step: Callable[[], T]) -> T:
        """The result of a step. Raises EnvironmentProblem on every rank if the step fails on one. Collective."""
        done: list[T] = []
        why = "PyTorch failed on another rank"
        try:
            done.append(step())
        except FAILURES as error:
            why = said(error)  # only the text is kept, because the error's frames hold tensors
        if self.work.world.every(bool(done)):
            return done[0]
        raise EnvironmentProblem(why)

    def _graphs(self, played: Played, way: str, out: GpuArray, exchange: Nccl | Staged | None) -> tuple[Call, str]:
        """(a function that runs the chain, a text that says how the chain is captured)."""
        gpu, work, place = self.gpu, self.work, self.place

        def made() -> torch_layer.Chain:
            x, y = place.tensor(played.x), place.tensor(out)
            given = tuple(place.tensor(array) for array in played.routing.values())
            if exchange is None:
                return torch_layer.Chain(self._part, way, x, y, played.rows, given)
            of = played.counts, work.world.rank, work.placement, exchange
            return torch_layer.RankChain(self._part, way, x, y, *of, given)

        chain = self._together(made)
        for step in chain.steps:  # this loads and compiles kernels, and lets NCCL connect ranks
            self._together(step)
        self._together(lambda: gpu.device.synchronize(gpu.stream))
        if exchange is None or exchange.captured:
            return self._together(lambda: place.graph(chain)), "one graph"
        captured = chain.pack, chain.compute, chain.combine
        graphs = dict(zip(captured, self._together(lambda: [place.graph(part) for part in captured])))
        steps = [graphs.get(step, step) for step in chain.steps]

        def run() -> None:
            for step in steps:
                step()

        return run, "three graphs"

    def close(self) -> None:
        """Free the all-to-alls between ranks, after which the chains cannot run again. Collective."""
        for each in (*self.exchanges.values(), *self._staged):
            if each is not None:
                each.close()


def rival_or_why(gpu: BenchGpu, work: Workload, weights: dict[str, Any]) -> tuple[Rival | None, list[str]]:
    """(a maker of chains, notes on it), or (None, why there is none). Collective. weights: this rank's, on the host."""
    place, part, why = None, None, "PyTorch is not compared, because another rank cannot use it"
    try:
        place = TorchGpu(gpu)
        with place.here():
            part = torch_layer.Part(place.torch, work.cfg, work.router, weights, place.device, place.fuse)
    except EnvironmentProblem as missing:
        why = str(missing)
    except FAILURES as error:
        why = f"PyTorch is not compared: {said(error)}"
    if not work.world.every(part is not None) or place is None or part is None:
        return None, [why]
    made = Rival(gpu, work, place, part)
    return made, made.notes

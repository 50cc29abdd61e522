"""A benchmark's GPU: a stream, events, arrays, facts, and calls that take turns.

Before each timed call a buffer larger than any L2 cache is cleared on the same stream. So caches are cold. The host
queues the call while the GPU still clears, so events measure the GPU's time and not the host's.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ...row_types import BY_KIND
from ..measure import Seconds, no_gc, rotated
from ..world import World

FLUSH = 256 << 20  # bytes; more than the L2 cache of any GPU
FEWEST, MOST = 5, 200  # limits on the number of timed turns
# types of arrays, by kind; for a type that NumPy does not have, unsigned integers that hold its bits
TYPES = {
    kind: np.dtype(row.array if np.dtype(row.array).kind == "f" else f"u{row.nbytes}").str
    for kind, row in BY_KIND.items()
}


class GpuArray:
    """An array on a GPU. kind: the kind of arithmetic, or a NumPy type string. at: the array's address."""

    def __init__(self, gpu: BenchGpu, shape: tuple[int, ...], kind: str) -> None:
        self.gpu, self.shape, self.kind, self.dtype = gpu, shape, kind, np.dtype(TYPES.get(kind, kind))
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.at = gpu.allocate(max(1, self.nbytes))

    def put(self, values: np.ndarray) -> GpuArray:
        """Copy values of the host into the array. Returns the array."""
        self.gpu.device.copy_in(self.at, np.ascontiguousarray(values, self.dtype), self.gpu.stream)
        return self

    def get(self) -> np.ndarray:
        """A copy on the host."""
        values = np.empty(self.shape, self.dtype)
        self.gpu.device.copy_out(values, self.at, self.gpu.stream)
        return values

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.at, False),
            "version": 3,
            "stream": self.gpu.stream,
        }


class BenchGpu:
    """This rank's GPU. `close` frees the memory that was allocated through it."""

    def __init__(self, world: World) -> None:
        from ...substrate.cuda.device import CudaDevice

        self.world = world
        self.device: Any = CudaDevice.find(sum(p < world.rank for p in world.nodes.local(world.rank)))
        self.stream = self.device.new_stream()
        self.events = self.device.event(), self.device.event()
        self._held: list[int] = []
        self._flush = self.allocate(FLUSH)

    def allocate(self, nbytes: int) -> int:
        """Address of `nbytes` on the GPU."""
        self._held.append(self.device.allocate(nbytes))
        return self._held[-1]

    def free(self, at: int) -> None:
        """Free memory from `allocate` before `close`."""
        self._held.remove(at)
        self.device.free(at)

    def array(self, values: np.ndarray, kind: str = "") -> GpuArray:
        """A copy of a host array on the GPU."""
        return GpuArray(self, values.shape, kind or values.dtype.str).put(values)

    def launch(self, kernel: Any, grid: Any, shared_bytes: int, *args: int) -> None:
        """Queue a kernel on the stream."""
        self.device.launch(self.device.load(kernel), grid, shared_bytes, *args, stream=self.stream)

    def graph(self, call: Callable[[], object]) -> Callable[[], None]:
        """A function that replays a call, captured in a CUDA graph.

        The call runs once before the capture: a capture forbids the loading of kernels, and NCCL to connect ranks.
        """
        call()
        self.device.synchronize(self.stream)
        return partial(self.device.replay, self.device.graph(self.stream, call), self.stream)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """A block in which the stream is also CuPy's current one, if CuPy is in use."""
        cupy: Any = sys.modules.get("cupy")
        with cupy.cuda.ExternalStream(self.stream) if cupy is not None else contextlib.nullcontext():
            yield

    def seconds(self, call: Callable[[], object], cold: bool = True) -> float:
        """Seconds of one call, by events. cold: whether to clear the caches before the call."""
        before, after = self.events
        if cold:
            self.device.clear(self._flush, FLUSH, self.stream)
        self.device.record(before, self.stream)
        call()
        self.device.record(after, self.stream)
        return float(self.device.elapsed(before, after))

    def in_turns(
        self,
        calls: dict[Any, Callable[[], object]],
        seconds: float,
        warmup: int,
        asked: int | None,
        after: Callable[[str, int], None] | None = None,
        clock: Callable[[Callable[[], object]], Any] | None = None,
    ) -> dict[Any, Seconds]:
        """Seconds of every call, name -> [turns], in `asked` turns or as many as fit `seconds`. Collective.

        after(name, turn): runs after each call and is not timed. turn is -1 during warm-up. clock: times one call, by
        default by `seconds`; if it returns several times, [times, turns].
        """
        world, clock = self.world, clock or self.seconds
        start = time.perf_counter()
        with no_gc(), self.here():
            for _ in range(max(1, warmup)):
                began = time.perf_counter()
                for name, call in calls.items():
                    world.barrier()
                    clock(call)
                    if after is not None:
                        after(name, -1)
                one = world.largest(time.perf_counter() - began)
            left = seconds - world.largest(time.perf_counter() - start)
            count = asked or int(min(MOST, max(FEWEST, left / max(one, 1e-6))))
            times: dict[Any, list[Any]] = {name: [] for name in calls}
            for i in range(count):
                for name in rotated(list(calls), i):
                    world.barrier()
                    times[name].append(clock(calls[name]))
                    if after is not None:
                        after(name, i)
        return {name: np.array(each).T for name, each in times.items()}

    def facts(self) -> dict[str, Any]:
        """Attributes of a run: the GPU, the driver, and the present and maximal clocks."""
        from ...topology import nvml

        device, library = self.device, nvml.load()
        found = {
            "gpu": device.name,
            "gpu_uuid": device.uuid,
            "gpu_arch": device.arch,
            "gpu_sms": device.sms,
            "cuda_driver": device.driver,
            "clock": "CUDA events",
        }
        return found | (nvml.state(library, device.uuid) if library is not None else {})

    def close(self) -> None:
        """Wait for the stream and free the memory."""
        self.device.synchronize(self.stream)
        for at in self._held:
            self.device.free(at)
        self._held = []


def ratios(ours: Seconds, theirs: Seconds) -> tuple[float, float, float]:
    """(median, 5 %, 95 %) of theirs / ours, turn by turn. ours, theirs: [turns] seconds."""
    low, middle, high = np.quantile(theirs / ours, [0.05, 0.5, 0.95])
    return float(middle), float(low), float(high)


def ratio_values(key: str, ours: Seconds, theirs: Seconds) -> dict[str, float]:
    """The values of the columns `ratio_columns(key)`: theirs / ours, turn by turn."""
    return dict(zip((key, f"{key}_low", f"{key}_high"), ratios(ours, theirs)))

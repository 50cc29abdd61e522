"""A card as a benchmark uses it: a stream, events, arrays, what it is, and calls that take turns.

Before each timed call a buffer larger than any second-level cache is cleared on the same stream: caches are cold, and
the host queues the call while the card is busy, so that what events measure is the card's time and not the host's.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..measure import Seconds, no_gc
from ..world import World

FLUSH = 256 << 20  # bytes: no card's second-level cache has as many
FEWEST, MOST = 5, 200  # timed turns
TYPES = {"f32": "<f4", "tf32": "<f4", "f16": "<f2", "bf16": "<u2"}  # of arrays, by kind; bfloat16 as its bits


class OnCard:
    """An array on a card. shape; kind: of the arithmetic, or a type as NumPy writes it."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], kind: str) -> None:
        self.gpu, self.shape, self.dtype = gpu, shape, np.dtype(TYPES.get(kind, kind))
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.at = gpu.allocate(max(1, self.nbytes))

    def put(self, values: np.ndarray) -> OnCard:
        """Copy in; returns the array."""
        self.gpu.card.copy_in(self.at, np.ascontiguousarray(values, self.dtype), self.gpu.stream)
        return self

    def get(self) -> np.ndarray:
        values = np.empty(self.shape, self.dtype)
        self.gpu.card.copy_out(values, self.at, self.gpu.stream)
        return values

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.at, False), "version": 3,
                "stream": self.gpu.stream}  # fmt: skip


class Gpu:
    """This rank's card. Its memory is given back by `close`."""

    def __init__(self, world: World) -> None:
        from ...substrate.cuda.device import Device

        self.world = world
        self.card: Any = Device.find(sum(p < world.rank for p in world.nodes.local(world.rank)))
        self.stream = self.card.new_stream()
        self.events = self.card.event(), self.card.event()
        self._held: list[int] = []
        self._flush = self.allocate(FLUSH)

    def allocate(self, nbytes: int) -> int:
        self._held.append(self.card.allocate(nbytes))
        return self._held[-1]

    def free(self, at: int) -> None:
        """Give back what `allocate` gave, before the end."""
        self._held.remove(at)
        self.card.free(at)

    def array(self, values: np.ndarray, kind: str = "") -> OnCard:
        """A copy of an array of the host."""
        return OnCard(self, values.shape, kind or values.dtype.str).put(values)

    def launch(self, kernel: Any, grid: Any, shared_bytes: int, *args: int) -> None:
        self.card.launch(self.card.load(kernel), grid, shared_bytes, *args, stream=self.stream)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """While inside, the stream is the current one for CuPy too, if CuPy is in use."""
        cupy: Any = sys.modules.get("cupy")
        with cupy.cuda.ExternalStream(self.stream) if cupy is not None else contextlib.nullcontext():
            yield

    def seconds(self, call: Callable[[], object], cold: bool = True) -> float:
        """Of one call, by events."""
        before, after = self.events
        if cold:
            self.card.clear(self._flush, FLUSH, self.stream)
        self.card.record(before, self.stream)
        call()
        self.card.record(after, self.stream)
        return float(self.card.elapsed(before, after))

    def in_turns(
        self,
        calls: dict[str, Callable[[], object]],
        seconds: float,
        warmup: int,
        asked: int | None,
        after: Callable[[str, int], None] | None = None,
    ) -> dict[str, Seconds]:
        """Seconds of every call, [turns], as many as fit `seconds`, or `asked`; the same number on every rank.

        after(name, turn): runs untimed when a call has ended; turn is -1 while it warms up.
        """
        world, names = self.world, list(calls)
        start = time.perf_counter()
        with no_gc(), self.here():
            for _ in range(max(1, warmup)):
                began = time.perf_counter()
                for name, call in calls.items():
                    world.barrier()
                    self.seconds(call)
                    if after is not None:
                        after(name, -1)
                one = world.largest(time.perf_counter() - began)
            left = seconds - world.largest(time.perf_counter() - start)
            count = asked or int(min(MOST, max(FEWEST, left / max(one, 1e-6))))
            times = {name: np.empty(count) for name in names}
            for i in range(count):
                turn = i % len(names)
                for name in names[turn:] + names[:turn]:
                    world.barrier()
                    times[name][i] = self.seconds(calls[name])
                    if after is not None:
                        after(name, i)
        return times

    def facts(self) -> dict[str, Any]:
        """Attributes of a run: the card, the driver, clocks now and at most."""
        from ...topology import nvml

        card, library = self.card, nvml.load()
        found = {"card": card.name, "card_uuid": card.uuid, "card_arch": card.arch, "card_sms": card.sms,
                 "cuda_driver": card.driver, "clock": "CUDA events"}  # fmt: skip
        return found | (nvml.state(library, card.uuid) if library is not None else {})

    def close(self) -> None:
        self.card.synchronize(self.stream)
        for at in self._held:
            self.card.free(at)
        self._held = []


def ratios(ours: Seconds, theirs: Seconds) -> tuple[float, float, float]:
    """How many times faster ours is, turn by turn: (median, 5 %, 95 %). ours, theirs: [turns]."""
    low, middle, high = np.quantile(theirs / ours, [0.05, 0.5, 0.95])
    return float(middle), float(low), float(high)

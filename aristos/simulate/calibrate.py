"""Measures a core of this machine for a simulation: the expert kernel by number of rows, copies of rows, combining.

Other work on the machine only slows a run down. So each time is a low percentile of many runs, and the measured
functions take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kernel_cache.compile import jit, warm_up

from ..config import MoEConfig
from ..kernels import cpu as _lowerings  # noqa: F401  what the primitives compile to
from ..kernels.by_isa import module
from ..kernels.common.activations import word
from ..kernels.cpu.call_blocks import BLOCK_BYTES, COMBINE_TOKEN, EXPERT_ROWS, HEAD_WORDS, flat
from ..kernels.cpu.lowering import SIGNATURE
from ..kernels.cpu.tokens import combine_bytes
from ..layer.weights import expert_bytes
from ..primitives import isa
from ..primitives import memory as mem
from ..primitives.arithmetic import CombineToken, ExpertRows, ExpertWeights
from ..primitives.buffers import aligned
from ..row_types import ROW_TYPES
from .machine import Costs, Kernel

# A kernel multiplies tiles of rows, so one row more than a multiple of 16 takes as long as a whole tile. The longest
# runs lie halfway between two multiples.
ROWS = (1, 2, 4, 8, 12, *(n + more for n in range(16, 129, 16) for more in (0, 1)), 200, 264, 392)
COLD = 192 << 20  # bytes of all weights that take turns: more than a cache holds, as in a model with many layers
SECONDS, PASSES = 0.1, 8  # seconds spent on each measured function, and the number of parts in which they are spent
UNDISTURBED = 10  # the percentile of the runs' times that counts
WINDOWS = 16  # parts of the rows, which take turns; together they are more than the nearest cache holds
COPIED = 16 << 20  # bytes of the rows copied, and of the rows combined: about as many as in a call with many tokens
PATTERN = 1 << 20  # bytes of random numbers, which are repeated
KIB = 1024


def undisturbed(calls: Sequence[Callable[[], float]]) -> list[float]:
    """Seconds that each call takes undisturbed. A call returns the seconds that it took. The calls take turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(PASSES):
        for call, seconds in zip(calls, taken):
            call()
            end = time.perf_counter() + SECONDS / PASSES
            seconds.append(call())
            while time.perf_counter() < end:
                seconds.append(call())
    return [float(np.percentile(seconds, UNDISTURBED)) for seconds in taken]


class KernelRuns:
    """Runs of one kernel with prepared arguments, which take turns.

    entries: the module that has the kernels of an element type, which has the number `code`. kernel: see call_blocks.
    arrays: what the arguments point to.
    """

    def __init__(
        self, entries: Any, code: int, kernel: int, records: Sequence[tuple[Any, ...]], arrays: tuple[np.ndarray, ...]
    ) -> None:
        self._arrays = arrays
        self._run, self._kernel, self._next = entries.KERNELS[code], kernel, 0
        warm_up([(self._run, SIGNATURE)])
        self._blocks = aligned((len(records), BLOCK_BYTES // 8), np.int64)
        for block, record in zip(self._blocks, records):
            words = flat(record)
            block[HEAD_WORDS : HEAD_WORDS + len(words)] = words
        self._at = [block.ctypes.data for block in self._blocks]

    def __call__(self) -> float:
        """Run the kernel with the next arguments. Returns seconds."""
        self._next = (self._next + 1) % len(self._at)
        start = time.perf_counter()
        self._run(self._kernel, self._at[self._next])
        return time.perf_counter() - start


class ExpertRuns:
    """Runs of the expert kernel of a layer on this core. operations: of a row; a multiply-add counts as two.

    experts: how many experts take turns. With None their weights exceed every cache, so that they come from memory.
    """

    def __init__(self, cfg: MoEConfig, experts: int | None = None) -> None:
        self._element, self._entries = _kernels(cfg)
        sizes = expert_bytes(self._element, cfg)
        self.experts = max(2, min(256, COLD // sum(sizes.values()))) if experts is None else experts
        self._weights = {name: _written(self.experts, nbytes) for name, nbytes in sizes.items()}
        most, width = max(ROWS), self._element.nbytes * cfg.hidden
        self._x, self._y = _written(WINDOWS * most, width), _written(WINDOWS * most, width)
        nbytes = self._entries.run_bytes(self._element.code, most, 0, cfg.hidden, cfg.ffn, cfg.gated)[0]
        self._scratch = _written(1, nbytes)
        self._rows = [each.ctypes.data + width * np.arange(len(each)) for each in (self._x, self._y)]
        self._cfg = cfg
        self.operations = 2 * (3 if cfg.gated else 2) * cfg.hidden * cfg.ffn

    def runs_of(self, rows: int) -> KernelRuns:
        """Runs of `rows` rows each. The experts take turns, and so do WINDOWS parts of the rows, as in a real call."""
        cfg = self._cfg
        common = {
            "rows": rows,
            "activation": word(cfg.activation, cfg.limit, cfg.limit_after),
            "hidden": cfg.hidden,
            "ffn": cfg.ffn,
            "scratch": self._scratch.ctypes.data,
            "wire": 0,
            "kept": 0,
        }
        arrays = (*self._weights.values(), self._x, self._y, self._scratch, *self._rows)
        records = []
        for i in range(max(self.experts, WINDOWS)):
            x, y = (each[max(ROWS) * (i % WINDOWS) :].ctypes.data for each in self._rows)
            records.append(ExpertRows(x=x, y=y, weights=self._of(i % self.experts), **common))
        return KernelRuns(self._entries, self._element.code, EXPERT_ROWS, records, arrays)

    def _of(self, expert: int) -> ExpertWeights:
        at = {name: array[expert].ctypes.data for name, array in self._weights.items()}
        return ExpertWeights(**{name: at.get(name, 0) for name in ExpertWeights._fields})


def kernel(cfg: MoEConfig, experts: int | None = None) -> Kernel:
    """The rates of the expert kernel of a layer on this core. experts: see `ExpertRuns`."""
    return kernels([ExpertRuns(cfg, experts)])[0]


def kernels(layers: Sequence[ExpertRuns]) -> list[Kernel]:
    """The rates of the expert kernels of several layers, which take turns, so that their rates can be compared."""
    seconds = undisturbed([layer.runs_of(rows) for rows in ROWS for layer in layers])
    return [
        Kernel(
            call=0.0,
            rates={rows: 1e-9 * runs.operations * rows / each for rows, each in zip(ROWS, seconds[i :: len(layers)])},
        )
        for i, runs in enumerate(layers)
    ]


def rows_costs(cfg: MoEConfig, costs: Costs) -> Costs:
    """Costs with the measured costs of copying rows of a layer and of combining them, on this core."""
    width, k = ROW_TYPES[cfg.dtype].nbytes * cfg.hidden, cfg.top_k
    copied, once, twice = undisturbed([_copies(width), _combined(cfg, k), _combined(cfg, 2 * k)])
    return replace(
        costs,
        copy_kib=max(0.0, 1e9 * copied - costs.copy_row) / (width / KIB),
        combine_kib=max(0.0, 1e9 * (twice - once)) / (k * width / KIB),
    )


def _copies(width: int) -> Callable[[], float]:
    """A call that copies rows of `width` bytes one after another, and returns the seconds that one row takes."""
    from numba import int64

    warm_up([(copies, (int64,) * 4)])
    rows = max(1, COPIED // width)
    source, target = _written(rows, width), _written(rows, width)

    def call() -> float:
        return 1e-9 * float(copies(target.ctypes.data, source.ctypes.data, rows, width)) / rows

    return call


@jit
def copies(target, source, rows, nbytes):
    """Copy rows one after another; returns the ns that this took."""
    begun = mem.clock()
    for i in range(rows):
        mem.copy_row(target + nbytes * i, source + nbytes * i, nbytes)
    return mem.clock() - begun


def _combined(cfg: MoEConfig, k: int) -> Callable[[], float]:
    """A call that combines k rows of one token, and returns the seconds that this took."""
    element, entries = _kernels(cfg)
    width = element.nbytes * cfg.hidden
    tokens = max(1, COPIED // (k * width))
    rows, y = _written(tokens * k, width), _written(tokens, width)
    order = np.random.default_rng(0).permutation(tokens * k)  # rows lie sorted by expert
    at, weights = rows.ctypes.data + width * order, np.ones(k, np.float32)
    scratch = _written(1, combine_bytes(k))
    records = [
        CombineToken(
            y=y[t].ctypes.data,
            k=k,
            weights=weights.ctypes.data,
            rows=at[t * k :].ctypes.data,
            hidden=cfg.hidden,
            scratch=scratch.ctypes.data,
        )
        for t in range(tokens)
    ]
    return KernelRuns(entries, element.code, COMBINE_TOKEN, records, (rows, y, at, weights, scratch))


def _kernels(cfg: MoEConfig) -> tuple[Any, Any]:
    """(element type, module `entries`) of a layer, for the instruction set that this process may use."""
    element = module("elements", isa.chosen()).element_type(cfg.dtype, cfg.precision, cfg.packed)
    return element, module("entries", isa.chosen(), element.format)


def _written(count: int, nbytes: int) -> np.ndarray:
    """[count, nbytes] uint8, filled with numbers of about 0.01 (float16: 1) in every row type, and with any codes.

    A core multiplies zeros faster: AMX by a fifth. And pages that nobody has written would all be one page of zeros.
    """
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, PATTERN, np.uint8)
    some[1::2] = some[1::2] & 0x80 | 0x3C  # the byte with the sign and the exponent, or a part of it
    made = aligned((count, nbytes), np.uint8)
    every = made.reshape(-1)
    for start in range(0, every.size, PATTERN):
        part = every[start : start + PATTERN]
        part[:] = some[: part.size]
    return made

"""Measures a core of this machine for a simulation: the expert kernel by number of rows, and the copy of a row."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from kernel_cache.compile import jit, warm_up

from ..config import MoEConfig
from ..kernels import cpu as _lowerings  # noqa: F401  what the primitives compile to
from ..kernels.by_isa import module
from ..kernels.common.activations import word
from ..kernels.cpu.call_blocks import EXPERT_ROWS
from ..kernels.cpu.kernel_call import KernelCall
from ..layer.weights import expert_bytes
from ..primitives import isa
from ..primitives import memory as mem
from ..primitives.arithmetic import ExpertRows, ExpertWeights
from ..primitives.buffers import aligned
from .machine import Kernel

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
COLD = 192 << 20  # bytes of all weights that take turns: more than a cache holds, as in a layer
SECONDS = 0.15  # spent on each number of rows
COPIED = 64 << 20  # bytes of the rows that are copied


def kernel(cfg: MoEConfig) -> Kernel:
    """The rates of the expert kernel of a layer on this core, with weights from memory."""
    elements = module("elements", isa.chosen())
    element = elements.element_type(cfg.dtype, cfg.precision, cfg.packed)
    entries = module("entries", isa.chosen(), element.format)
    sizes = expert_bytes(element, cfg)
    count = max(2, min(256, COLD // sum(sizes.values())))
    arrays = {name: aligned((count, nbytes), np.uint8) for name, nbytes in sizes.items()}
    most = max(ROWS)
    x, y = (aligned((most, element.nbytes * cfg.hidden), np.uint8) for _ in range(2))
    scratch = aligned((entries.run_bytes(element.code, most, 0, cfg.hidden, cfg.ffn, cfg.gated)[0],), np.uint8)
    for array in (*arrays.values(), x, y, scratch):
        array[:] = 0  # pages that nobody has written all map to one page of zeros, which stays in the cache
    xs, ys = (each.ctypes.data + each.strides[0] * np.arange(most) for each in (x, y))
    run = KernelCall(entries, element, EXPERT_ROWS)
    names = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")

    def call(rows: int, expert: int) -> None:
        at = {name: arrays[name][expert].ctypes.data if name in arrays else 0 for name in names}
        run(
            ExpertRows(
                rows=rows,
                x=xs.ctypes.data,
                y=ys.ctypes.data,
                weights=ExpertWeights(**at),
                activation=word(cfg.activation, cfg.limit, cfg.limit_after),
                hidden=cfg.hidden,
                ffn=cfg.ffn,
                scratch=scratch.ctypes.data,
                wire=0,
                kept=0,
            )
        )

    operations = 2e-9 * (3 if cfg.gated else 2) * cfg.hidden * cfg.ffn
    rates = {rows: operations * rows / _median(partial(call, rows), count) for rows in ROWS}
    return Kernel(call=0.0, rates=rates)


def _median(call: Callable[[int], None], experts: int) -> float:
    """The median time of a call in seconds. The experts take turns. The first call is not counted."""
    taken: list[float] = []
    call(0)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < 3:
        start = time.perf_counter()
        call((1 + len(taken)) % experts)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


@jit
def copies(target, source, rows, nbytes):
    """Copy rows one after another; returns the ns that this took."""
    begun = mem.clock()
    for i in range(rows):
        mem.copy_row(target + nbytes * i, source + nbytes * i, nbytes)
    return mem.clock() - begun


def copy_kib(row_bytes: int) -> float:
    """ns for each KiB of rows of `row_bytes` bytes that are copied from memory to memory."""
    from numba import int64

    warm_up([(copies, (int64,) * 4)])
    source, target = (aligned((COPIED,), np.uint8) for _ in range(2))
    source[:], target[:] = 1, 0
    rows = COPIED // row_bytes
    taken = [copies(target.ctypes.data, source.ctypes.data, rows, row_bytes) for _ in range(5)]
    return float(np.median(taken)) / (rows * row_bytes / 1024)

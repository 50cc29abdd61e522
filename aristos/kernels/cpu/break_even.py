"""Measures how many rows of an expert take as long to compute as its weights take to read."""

from __future__ import annotations

import timeit
from functools import cache
from typing import Any

import numpy as np

from ...primitives.arithmetic import ExpertRows, ExpertWeights
from ...primitives.buffers import aligned
from ..common.activations import word
from .call_blocks import EXPERT_ROWS
from .elements import ElementType
from .kernel_call import KernelCall

HIDDEN, FFN = 512, 1024
EXPERTS = 8  # enough that their weights together do not fit a core's own caches
MOST = 192


@cache
def rows(element: ElementType, entries: Any) -> int:
    """How many rows of an expert take as long to compute as its weights take to read. Each process measures this once.

    entries: the module `entries` that has the element type's kernels. A run of one row takes as long as reading the
    weights. In a long run, each row takes as long as its arithmetic.
    """
    up, down = element.packed_bytes(HIDDEN, FFN), element.packed_bytes(FFN, HIDDEN)
    weights = aligned((EXPERTS, up + down), np.uint8)
    x, y = (aligned((MOST, HIDDEN * element.nbytes), np.uint8) for _ in range(2))
    scratch = aligned((entries.run_bytes(element.code, MOST, 0, HIDDEN, FFN, False)[0],), np.uint8)
    weights[:, :up] = element.pack(np.zeros((HIDDEN, FFN), np.float32))
    weights[:, up:] = element.pack(np.zeros((FFN, HIDDEN), np.float32))
    x[:] = 0  # without this write, all pages would be Linux's page of zeros
    xs, ys = (each.ctypes.data + each.strides[0] * np.arange(MOST) for each in (x, y))
    call = KernelCall(entries, element, EXPERT_ROWS)

    def run(count: int, expert: int) -> None:
        at = weights[expert].ctypes.data
        expert_weights = ExpertWeights(up=at, gate=0, down=at + up, up_bias=0, gate_bias=0, down_bias=0)
        call(
            ExpertRows(
                rows=count,
                x=xs.ctypes.data,
                y=ys.ctypes.data,
                weights=expert_weights,
                activation=word("relu", None),
                hidden=HIDDEN,
                ffn=FFN,
                scratch=scratch.ctypes.data,
                wire=0,
                kept=0,
            )
        )

    def run_all() -> None:
        for expert in range(EXPERTS):
            run(1, expert)

    reading = min(timeit.repeat(run_all, number=1, repeat=3)) / EXPERTS
    row = min(timeit.repeat(lambda: run(MOST, 0), number=1, repeat=3)) / MOST
    return max(1, round(reading / row))

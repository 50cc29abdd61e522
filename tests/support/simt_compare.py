"""Compares a program on two executors: on the machine and a GPU, or on two machines.

A program takes an executor (a `ptxsim.Machine`, or gpu_executor.py's `GpuExecutor` with its interface), launches on
its device 0, runs it and returns its arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Program = Callable[[Any], list[np.ndarray]]


def agree(program: Program, one: Any, other: Any, rtol: float = 0.0) -> None:
    """Run a program on both; raises AssertionError, with the first elements that differ, unless the results agree.

    rtol: how far floats may differ, relative to the array's largest number (0: not at all). A NaN agrees with any NaN.
    """
    ours, theirs = program(one), program(other)
    assert len(ours) == len(theirs), f"{len(ours)} and {len(theirs)} arrays"
    for number, (a, b) in enumerate(zip(ours, theirs)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"array {number}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        same = equal(a, b, rtol)
        if not same.all():
            where = np.argwhere(~same)[:4]
            shown = ", ".join(f"{tuple(map(int, at))}: {a[tuple(at)]} and {b[tuple(at)]}" for at in where)
            raise AssertionError(f"array {number}: {int((~same).sum())} of {a.size} elements differ: {shown}")


def equal(a: np.ndarray, b: np.ndarray, rtol: float) -> np.ndarray:
    """For each element: whether a and b are equal (zeros in sign too), or within rtol of the largest finite number."""
    if a.dtype.kind not in "fc":
        return a == b
    same = ((a == b) & (np.signbit(a.real) == np.signbit(b.real))) | (np.isnan(a) & np.isnan(b))
    if rtol:
        finite = np.abs(a[np.isfinite(a)])
        same |= np.abs(a - b) <= rtol * finite.max(initial=0)
    return same

"""The cases: calls of FlashInfer's functions on the device with small inputs, and what NumPy computes for them.

Each case is a function that takes the module to which FlashInfer's files were compiled, calls one of its functions, and
returns a dict from the name of a result to (the result, what is right, by how much it may be off).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Results = dict[str, tuple[Any, np.ndarray, float]]


@dataclass(frozen=True)
class Case:
    """A call, and the files of FlashInfer's csrc whose functions it needs."""

    files: tuple[str, ...]
    call: Callable[[Any], Results]


CASES: dict[str, Case] = {}


def case(*files: str) -> Callable[[Callable[[Any], Results]], Callable[[Any], Results]]:
    """Add the decorated function to the cases, under its own name."""

    def added(call: Callable[[Any], Results]) -> Callable[[Any], Results]:
        CASES[call.__name__] = Case(files, call)
        return call

    return added


def half(*shape: int, seed: int = 1) -> np.ndarray:
    """Random numbers of half precision in [-1, 1)."""
    return (2 * np.random.default_rng(seed).random(shape) - 1).astype(np.float16)

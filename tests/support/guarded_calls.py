"""What all kernel calls on `guarded.Arrays` share: an expert's weights in such arrays, and kernels by their numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from guarded import Arrays
from packed_codes import random_codes

from aristos.kernels.api import entries_of
from aristos.kernels.common import activations
from aristos.kernels.cpu import elements as cpu_elements
from aristos.kernels.cpu.kernel_call import KernelCall
from aristos.kernels.cpu.panels import padded
from aristos.primitives.arithmetic import ExpertWeights, TransposedWeights

ElementType = cpu_elements.ElementType
Case = tuple[str, Callable[[Arrays], list[np.ndarray]]]
SHAPES = [(1, 1, 1), (3, 33, 5), (5, 100, 530), (13, 1030, 40)]  # rows, hidden, ffn
FLOAT32 = cpu_elements.ELEMENTS["float32"]
NAMES = ExpertWeights._fields


def drawn(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


@cache
def _kernel(element: ElementType, kernel: int, entries: Any) -> KernelCall:
    return KernelCall(entries, element, kernel)


def call(element: ElementType, kernel: int, record: tuple, entries: Any = None) -> int:
    return _kernel(element, kernel, entries or entries_of(element))(record)


def width(element: ElementType, columns: int) -> int:
    """Elements of a row of outputs: `columns` for float32 by panels of 32 columns, else a multiple of 32."""
    exact = element.name == "float32" and element != FLOAT32
    return columns if exact else element.padded(columns)


class Weights:
    """An expert's packed arrays, and those of the backward call."""

    def __init__(self, element: ElementType, hidden: int, ffn: int, gated: bool, bias: bool) -> None:
        self.element, self.hidden, self.ffn, self.gated = element, hidden, ffn, gated
        self.code = activations.word("silu")
        rng = np.random.default_rng(hidden + ffn)
        self.plain: dict[str, Any] = {}
        for name, shape in (("up", (hidden, ffn)), ("gate", (hidden, ffn)), ("down", (ffn, hidden))):
            if gated or name != "gate":
                if element.format:
                    self.plain[name] = random_codes(rng, element.weight, *shape)
                else:
                    self.plain[name] = rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
                if bias:
                    self.plain[f"{name}_bias"] = rng.standard_normal(shape[1], np.float32)
        pack, pack_bias = element.pack, element.pack_bias
        self.packed = {n: pack_bias(a) if "bias" in n else pack(a) for n, a in self.plain.items()}

    def on(self, arrays: Arrays) -> ExpertWeights:
        return ExpertWeights(*(arrays.at(n, self.packed[n]) if n in self.packed else 0 for n in NAMES))

    def transposed(self, arrays: Arrays) -> TransposedWeights:
        every = (self.element.pack(self.plain[n], True) if n in self.plain else None for n in TransposedWeights._fields)
        return TransposedWeights(*(0 if a is None else arrays.at("transposed weights", a) for a in every))

    def gradients(self, arrays: Arrays) -> list[np.ndarray]:
        """Arrays of zeros for gradients, in the order of ExpertWeights. Absent ones have size 0."""
        made = []
        for name in NAMES:
            shape = np.shape(self.plain.get(name, ()))
            if name not in self.plain:
                made.append(np.empty(0, np.float32))
                continue
            rows = (*shape[:-1], padded(shape[-1])) if len(shape) == 2 else shape
            made.append(arrays.copy(f"gradients of {name}", np.zeros(rows, np.float32)))
        return made


def addresses(made: list[np.ndarray]) -> tuple[int, ...]:
    return tuple(array.ctypes.data if array.size else 0 for array in made)

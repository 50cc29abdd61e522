"""What an optimizer of `aristos.train` needs of the layer object that it trains; `MoE(..., train=True)` has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from .placement import Placement


class Everyone(Protocol):
    """The ranks that train together."""

    def allgather(self, value: Any, what: str) -> list[Any]:
        """Every rank's `value`, in rank order. what: the subject, for messages."""
        ...


class Steps(Protocol):
    """Compiled steps on float32 arrays."""

    def adam(
        self, master: np.ndarray, gradient: np.ndarray, mean: np.ndarray, square: np.ndarray, scales: list[float]
    ) -> None: ...

    def momentum(self, master: np.ndarray, gradient: np.ndarray, velocity: np.ndarray, scales: list[float]) -> None: ...

    def square_sum(self, array: np.ndarray) -> float: ...


class Trainable(Protocol):
    """A layer object with masters and gradients; the methods are those of `MoE`."""

    @property
    def layers(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def placement(self) -> Placement: ...

    @property
    def open_tapes(self) -> int: ...

    @property
    def everyone(self) -> Everyone: ...

    @property
    def updates(self) -> Steps: ...

    def agree(self, problem: Exception | None, what: str) -> None: ...

    def refuse_half_changed(self) -> None: ...

    def changing(self) -> AbstractContextManager[None]: ...

    def everywhere(self, run: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]: ...

    def params(self, layer: int = 0) -> dict[str, np.ndarray]: ...

    def grads(self, layer: int = 0) -> dict[str, np.ndarray]: ...

    def reduce_grads(self) -> None: ...

    def update(self, layer: int = 0) -> None: ...

"""What an optimizer of `aristos.train` needs of the layer object that it trains; `MoE(..., train=True)` has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np


class Everyone(Protocol):
    """The ranks that train together."""

    def allgather(self, value: Any, what: str) -> list[Any]:
        """Every rank's `value`, in rank order. what: the subject, for messages."""


class AdamScales(NamedTuple):
    """The numbers of step t of AdamW, in the order in which `kernels/cpu/optimizer.py` reads them."""

    by: float  # gradients are multiplied by it
    keep: float  # weights are multiplied by it
    first: float  # b1
    new: float  # 1 - b1
    second: float  # b2
    fresh: float  # 1 - b2
    past: float  # 1 - b2^t
    eps: float
    rate: float  # lr / (1 - b1^t)


class MomentumScales(NamedTuple):
    """The numbers of a step with momentum, in the order in which `kernels/cpu/optimizer.py` reads them."""

    by: float  # gradients are multiplied by it
    keep: float  # weights are multiplied by it
    momentum: float
    rate: float  # lr


class Steps(Protocol):
    """Compiled steps on float32 arrays."""

    def adam(
        self, master: np.ndarray, gradient: np.ndarray, mean: np.ndarray, square: np.ndarray, scales: AdamScales
    ) -> None: ...

    def momentum(
        self, master: np.ndarray, gradient: np.ndarray, velocity: np.ndarray, scales: MomentumScales
    ) -> None: ...

    def square_sum(self, array: np.ndarray) -> float: ...


class Trainable(Protocol):
    """The interface by which an optimizer changes weights: `MoE.training`. Methods without a text here are as in `MoE`.

    Attributes
    ----------
    layers : int
        Layers of the object.
    mine : list of int
        Ids of this rank's experts, in the order of their arrays.
    """

    layers: int
    mine: list[int]

    @property
    def open_tapes(self) -> int: ...

    @property
    def everyone(self) -> Everyone: ...

    @property
    def updates(self) -> Steps: ...

    def agree(self, problem: Exception | None, what: str) -> None:
        """Raise an error here, and PeerInputError on the other ranks. Collective.

        Parameters
        ----------
        problem : Exception or None
            This rank's error; None: it has none.
        what : str
            The subject of the error, for messages.

        Raises
        ------
        Exception
            `problem`.
        PeerInputError
            Another rank passed an error.
        """

    def refuse_half_changed(self) -> None:
        """Refuse weights that a step or a restore has changed only in part.

        Raises
        ------
        InputError
            This rank's weights are half changed.
        """

    def changing(self) -> AbstractContextManager[None]:
        """A block in which weights change. If the block is interrupted, this rank refuses calls until `restore`."""

    def everywhere(self, run: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Run a function for every item, on all workers.

        Parameters
        ----------
        run : callable
            A function of one item.
        items : sequence
            The items.

        Returns
        -------
        list
            What the function returned, in the order of the items.
        """

    def params(self, layer: int = 0) -> dict[str, np.ndarray]: ...

    def grads(self, layer: int = 0) -> dict[str, np.ndarray]: ...

    def reduce_grads(self) -> None: ...

    def update(self, layer: int = 0) -> None: ...


class TrainedLayer(Protocol):
    """A layer object with masters and gradients: an `MoE` made with train=True."""

    @property
    def training(self) -> Trainable: ...

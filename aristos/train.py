"""Optimizers of `MoE(..., train=True)`: AdamW, and SGD with momentum. States of a rank's own experts, router and shared
expert alone; the latter are the same on all ranks, and stay so.

All arithmetic on an entry is float32, element by element, so that weights have the same bits on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .config import real
from .errors import InputError, OpenCallError

if TYPE_CHECKING:
    from .layer.moe import MoE

EXPERTS = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")  # arrays with this rank's experts in front
Arrays = dict[str, np.ndarray]


class Optimizer:
    """Base of the optimizers. moe: all its layers are loaded. steps: so many have been taken. lr may change between."""

    def __init__(self, moe: MoE, lr: float, weight_decay: float, clip: float | None) -> None:
        _number("lr", lr)
        _number("weight_decay", weight_decay)
        if clip is not None and not real(clip) > 0:
            raise InputError(f"clip must be None or a positive number, got {clip!r}")
        self.moe, self.lr, self.weight_decay, self.clip, self.steps = moe, lr, weight_decay, clip, 0
        self.states: list[dict[str, Arrays]] = [
            {name: self.new_state(master) for name, master in _trained(moe, layer).items()}
            for layer in range(moe.layers)
        ]

    def new_state(self, master: np.ndarray) -> Arrays:
        """What is kept for one array."""
        raise NotImplementedError

    def change(self, master: np.ndarray, gradient: np.ndarray, state: Arrays) -> None:
        """Write new values into `master` and its state; float32 arrays of one shape."""
        raise NotImplementedError

    def step(self) -> float:
        """Reduce the gradients, change the weights and pack them. Collective. Returns the gradients' global norm.

        With `clip`, gradients are scaled so that their norm is at most that. Raises InputError on every rank, and
        changes no weight, if a gradient is not finite; OpenCallError while a tape is open.
        """
        self.moe.reduce_grads()
        if self.moe.open_tapes:
            raise OpenCallError(f"{self.moe.open_tapes} tapes are open: give them to backward(), or discard() them")
        norm = self.norm()
        factor = np.float32(1.0 if self.clip is None or norm <= self.clip else self.clip / norm)
        self.steps += 1
        for layer, states in enumerate(self.states):
            gradients, masters = self.moe.grads(layer), self.moe.params(layer)
            for name, state in states.items():
                for i in range(len(masters[name]) if name in EXPERTS else 1):
                    at: int | slice = i if name in EXPERTS else slice(None)
                    one = {key: array[at] for key, array in state.items()}
                    gradient = gradients[name][at] if factor == 1 else factor * gradients[name][at]
                    self.change(masters[name][at], gradient, one)
            self.moe.update(layer)
        return norm

    def norm(self) -> float:
        """The square root of the sum of all squares of all ranks' gradients, after `reduce_grads`. Collective.

        Squares are added in float64 per layer, array and expert, then these sums by layer, name and id, so that it has
        the same bits on any number of ranks. Raises InputError that names an array which is not finite.
        """
        mine = dict(self._squares())
        everyone = self.moe.runtime.group.allgather(mine, "squares of gradients")
        squares = {key: value for each in everyone for key, value in each.items()}
        total = 0.0
        for layer, name, expert in sorted(squares):
            value = squares[layer, name, expert]
            if not math.isfinite(value):
                where = f" of expert {expert}" if expert >= 0 else ""
                raise InputError(f"the gradient of {name}{where} in layer {layer} is not finite: no weight has changed")
            total += value
        return math.sqrt(total)

    def _squares(self) -> Iterator[tuple[tuple[int, str, int], float]]:
        """((layer, name, expert or -1), sum of squares) of every array on this rank."""
        held = self.moe.placement.mine(self.moe.rank)
        for layer in range(self.moe.layers):
            for name, gradient in self.moe.grads(layer).items():
                parts = zip(held, gradient) if name in EXPERTS else [(-1, gradient)]
                for expert, part in parts:
                    yield (layer, name, expert), float(np.square(part, dtype=np.float64).sum())

    def decay(self, master: np.ndarray) -> None:
        """Shrink a matrix by lr * weight_decay; vectors stay."""
        if self.weight_decay and master.ndim > 1:
            master *= np.float32(1.0 - self.lr * self.weight_decay)


class Adam(Optimizer):
    """AdamW (arXiv:1711.05101, algorithm 2): Adam, and matrices shrink by lr * weight_decay a step.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(
        self,
        moe: MoE,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        if len(betas) != 2 or not all(0 <= real(beta) < 1 for beta in betas):
            raise InputError(f"betas must be two numbers in 0..1, got {betas!r}")
        _number("eps", eps)
        self.betas, self.eps = betas, eps
        super().__init__(moe, lr, weight_decay, clip)

    def new_state(self, master: np.ndarray) -> Arrays:
        return {"mean": np.zeros_like(master), "square": np.zeros_like(master)}

    def change(self, master: np.ndarray, gradient: np.ndarray, state: Arrays) -> None:
        """See `Optimizer.change`."""
        mean, square, (first, second) = state["mean"], state["square"], self.betas
        self.decay(master)
        mean *= np.float32(first)
        mean += np.float32(1 - first) * gradient
        square *= np.float32(second)
        square += np.float32(1 - second) * (gradient * gradient)
        root = np.sqrt(square / np.float32(1 - second**self.steps))
        root += np.float32(self.eps)
        master -= np.float32(self.lr / (1 - first**self.steps)) * (mean / root)


class SGD(Optimizer):
    """Gradient descent: v = momentum v + g, w -= lr v; matrices shrink by lr * weight_decay a step."""

    def __init__(
        self, moe: MoE, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0, clip: float | None = None
    ) -> None:
        _number("momentum", momentum)
        self.momentum = momentum
        super().__init__(moe, lr, weight_decay, clip)

    def new_state(self, master: np.ndarray) -> Arrays:
        return {"velocity": np.zeros_like(master)} if self.momentum else {}

    def change(self, master: np.ndarray, gradient: np.ndarray, state: Arrays) -> None:
        """See `Optimizer.change`."""
        self.decay(master)
        if self.momentum:
            velocity = state["velocity"]
            velocity *= np.float32(self.momentum)
            velocity += gradient
            gradient = velocity
        master -= np.float32(self.lr) * gradient


def _trained(moe: MoE, layer: int) -> Arrays:
    """The masters of a layer that have a gradient."""
    masters = moe.params(layer)
    return {name: masters[name] for name in moe.grads(layer)}


def _number(name: str, value: object) -> None:
    if not 0 <= real(value) < math.inf:
        raise InputError(f"{name} must be a number of at least 0, got {value!r}")

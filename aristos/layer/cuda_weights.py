"""A layer's weights on a card: this rank's experts as the CUDA kernels read them, and the router in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import words
from ..kernels.cuda import router
from ..kernels.cuda.pack import interleaved, outputs, pack, pack_bias
from .weights import Given


class DeviceWeights:
    """Packed on the host, expert by expert, and copied once.

    card: see substrate/device.py. kind: of the arithmetic, to which weights are rounded. Biases stay float32.
    """

    def __init__(self, card: Any, kind: str, given: Given) -> None:
        self.card = card
        self._at: dict[str, int] = {}
        self.gated = "gate" in given.weights
        self.count = len(given.experts)
        self._steps: dict[str, int] = {}
        self.router: int | None = None  # an address
        try:
            self._take(kind, given)
        except BaseException:
            self.free()
            raise

    def _take(self, kind: str, given: Given) -> None:
        for side in ("up", "down"):
            for i, e in enumerate(given.experts):
                packed = pack(self._side(given, side, e), kind)
                bias = pack_bias(self._bias(given, side, e), outputs(packed))
                self._keep(side, i, packed)
                self._keep(f"{side}_bias", i, bias)
        if given.router is not None:
            packed = router.pack_router(np.ascontiguousarray(given.router))
            self._keep("router", 0, packed, 1)
            self.router = self._at["router"]

    def _side(self, given: Given, side: str, e: int) -> np.ndarray:
        """[K, N] of a product: the gate's columns lie between those of `up`."""
        weight = given.expert(side, e)
        return interleaved(weight, given.expert("gate", e)) if side == "up" and self.gated else weight

    def _bias(self, given: Given, side: str, e: int) -> np.ndarray | None:
        names = [f"{side}_bias", *(["gate_bias"] if side == "up" and self.gated else [])]
        biases = [given.biases[name][e] if name in given.biases else None for name in names]
        if all(bias is None for bias in biases):
            return None
        width = next(len(bias) for bias in biases if bias is not None)
        rows = [np.zeros((1, width), np.float32) if bias is None else bias[None] for bias in biases]
        return interleaved(*rows)[0] if len(rows) == 2 else rows[0][0]

    def _keep(self, name: str, i: int, values: np.ndarray, count: int = 0) -> None:
        """Copy number i of `count` equal parts to the card."""
        if name not in self._at:
            self._at[name] = self.card.allocate(values.nbytes * (count or self.count))
            self._steps[name] = values.nbytes
        self.card.copy_in(self._at[name] + values.nbytes * i, values)

    def fill(self, job: np.ndarray) -> None:
        """Write the addresses into a job; a rank without experts has none, and nobody asks."""
        for name, at, step in (("up", words.UP, words.UP_STEP), ("down", words.DOWN, words.DOWN_STEP),
                               ("up_bias", words.UP_BIAS, words.UP_BIAS_STEP),
                               ("down_bias", words.DOWN_BIAS, words.DOWN_BIAS_STEP)):  # fmt: skip
            job[at], job[step] = self._at.get(name, -1), self._steps.get(name, 0)
        job[words.GATE] = self.gated

    def free(self) -> None:
        """Give the card's memory back."""
        for at in self._at.values():
            self.card.free(at)
        self._at = {}

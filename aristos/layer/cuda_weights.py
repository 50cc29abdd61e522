"""A layer's weights in GPU memory: this rank's experts as the CUDA kernels read them, and the router in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import words
from ..kernels.cuda import router
from ..kernels.cuda.pack import COLUMNS, INTERLEAVE, interleaved, outputs, pack, pack_bias
from ..kernels.cuda.tile import BYTES, CHUNK
from .device_arrays import KINDS
from .weights import CheckedWeights


class DeviceWeights:
    """A layer's weights on a GPU: packed on the host, expert by expert, and copied once.

    gpu: see substrate/cuda/device.py. kind: the arithmetic that weights are rounded to; biases stay float32.
    router: its address, or None. nbytes: bytes of GPU memory.
    """

    def __init__(self, gpu: Any, kind: str, given: CheckedWeights) -> None:
        self.gpu = gpu
        self._at: dict[str, int] = {}
        self.gated = "gate" in given.weights
        self.count = len(given.experts)
        self._steps: dict[str, int] = {}
        self.router: int | None = None
        self.nbytes = 0
        try:
            self._take(kind, given)
        except BaseException:
            self.free()
            raise

    def _take(self, kind: str, given: CheckedWeights) -> None:
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

    def _side(self, given: CheckedWeights, side: str, e: int) -> np.ndarray:
        """[K, N] of a product; the gate's columns are interleaved with those of `up`."""
        weight = given.expert(side, e).astype(np.float32, copy=False)
        if side != "up" or not self.gated:
            return weight
        return interleaved(weight, given.expert("gate", e).astype(np.float32, copy=False))

    def _bias(self, given: CheckedWeights, side: str, e: int) -> np.ndarray | None:
        names = [f"{side}_bias", *(["gate_bias"] if side == "up" and self.gated else [])]
        biases = [given.biases[name][e] if name in given.biases else None for name in names]
        if all(bias is None for bias in biases):
            return None
        width = next(len(bias) for bias in biases if bias is not None)
        rows = [np.zeros((1, width), np.float32) if bias is None else bias[None] for bias in biases]
        return interleaved(*rows)[0] if len(rows) == 2 else rows[0][0]

    def _keep(self, name: str, i: int, values: np.ndarray, count: int = 0) -> None:
        """Copy part number i of `count` equal parts to the GPU."""
        if name not in self._at:
            nbytes = values.nbytes * (count or self.count)
            self._at[name] = self.gpu.allocate(nbytes)
            self.nbytes += nbytes
            self._steps[name] = values.nbytes
        self.gpu.copy_in(self._at[name] + values.nbytes * i, values)

    def fill(self, job: np.ndarray) -> None:
        """Write the addresses into a job. A rank with no experts has none: they are 0 and never read."""
        for name, at, step in (("up", words.UP, words.UP_STEP), ("down", words.DOWN, words.DOWN_STEP),
                               ("up_bias", words.UP_BIAS, words.UP_BIAS_STEP),
                               ("down_bias", words.DOWN_BIAS, words.DOWN_BIAS_STEP)):  # fmt: skip
            job[at], job[step] = self._at.get(name, 0), self._steps.get(name, 0)
        job[words.LOADED], job[words.GATED] = 1, self.gated

    def free(self) -> None:
        """Free the GPU memory."""
        for at in self._at.values():
            self.gpu.free(at)
        self._at = {}


def packed_bytes(cfg: MoEConfig, count: int) -> int:
    """Bytes of `DeviceWeights` with `count` experts and a router. Biases take memory in every configuration."""
    wide = 2 * _up(cfg.ffn, INTERLEAVE) if cfg.gated else cfg.ffn
    kind = KINDS[cfg.dtype]
    expert = _product_bytes(cfg.hidden, wide, kind) + _product_bytes(cfg.ffn, cfg.hidden, kind)
    return count * expert + _product_bytes(cfg.hidden, cfg.experts, "f32")


def _product_bytes(k: int, n: int, kind: str) -> int:
    """Bytes of a packed [K, N] and its bias of float32."""
    return _up(n, COLUMNS) * (_up(k * BYTES[kind], CHUNK) + 4)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step

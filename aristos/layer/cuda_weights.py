"""A layer's weights in GPU memory: this rank's experts as the CUDA kernels read them, and the router in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import BIASED, MoEConfig
from ..engine import job as jobs
from ..engine import schema
from ..kernels.cuda import router
from ..kernels.cuda.pack import COLUMNS, INTERLEAVE, interleaved, outputs, pack, pack_bias
from ..kernels.cuda.tile import CHUNK
from ..primitives.buffers import FLOAT
from ..row_types import BY_KIND, KINDS
from ..weight_types import WEIGHT_TYPES
from .given import Arrays
from .weights import PackedLayer


class DeviceWeights(PackedLayer):
    """A layer's weights on a GPU: packed on the host, expert by expert, and copied there.

    gpu: see substrate/cuda/device.py. kind: the type to which weights are rounded; biases stay float32. router: its
    address, or None. select_bias, shared_sigmoid: their addresses, or 0. nbytes: the bytes of GPU memory.
    """

    def __init__(self, gpu: Any, kind: str, cfg: MoEConfig, mine: list[int]) -> None:
        super().__init__(cfg, mine)
        self.gpu, self.gated, self._kind = gpu, cfg.gated, kind
        self._at: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self.router: int | None = None
        self.select_bias = self.shared_sigmoid = 0
        self._routers: Arrays = {}  # the router's arrays on the host: a bias may be loaded after the matrix
        self.nbytes = 0

    def _pack_expert(self, i: int, arrays: Arrays) -> None:
        self._pack_sides("", i, arrays)

    def _pack_sides(self, prefix: str, i: int, arrays: Arrays, count: int = 0) -> None:
        """Pack an expert's products. prefix: the beginning of their names here. i, count: see `_keep`."""
        for side in ("up", "down"):
            packed = pack(self._side(arrays, side), self._kind)
            self._keep(f"{prefix}{side}", i, packed, count)
            self._keep(f"{prefix}{side}_bias", i, pack_bias(self._bias(arrays, side), outputs(packed)), count)

    def _pack_shared(self, arrays: Arrays) -> None:
        mine = {name.removeprefix("shared_"): array for name, array in arrays.items()}
        self._pack_sides("shared_", 0, mine, 1)
        if "sigmoid" in mine:
            self._keep("shared_sigmoid", 0, router.pack_router(mine["sigmoid"].astype(np.float32)[:, None]), 1)
            self.shared_sigmoid = self._at["shared_sigmoid"]

    def _forget_router(self) -> None:
        self.router, self.select_bias, self._routers = None, 0, {}

    def take_router(self, arrays: Arrays) -> None:
        self._routers |= {name: np.array(array, np.float32) for name, array in arrays.items()}
        if "router" in self._routers:
            packed = router.pack_router(self._routers["router"], self._routers.get("router_bias"))
            self._keep("router", 0, packed, 1)
            self.router = self._at["router"]
        if "select_bias" in arrays:
            self._keep("select_bias", 0, self._routers["select_bias"], 1)
            self.select_bias = self._at["select_bias"]

    def _side(self, arrays: Arrays, side: str) -> np.ndarray:
        """The matrix [K, N] of a product. If gated, the columns of gate and `up` are interleaved."""
        weight = arrays[side].astype(np.float32, copy=False)
        if side != "up" or not self.gated:
            return weight
        return interleaved(weight, arrays["gate"].astype(np.float32, copy=False))

    def _bias(self, arrays: Arrays, side: str) -> np.ndarray | None:
        names = [f"{side}_bias", *(["gate_bias"] if side == "up" and self.gated else [])]
        biases = [arrays.get(name) for name in names]
        if all(bias is None for bias in biases):
            return None
        width = next(len(bias) for bias in biases if bias is not None)
        rows = [np.zeros((1, width), np.float32) if bias is None else bias[None] for bias in biases]
        return interleaved(*rows)[0] if len(rows) == 2 else rows[0][0]

    def _keep(self, name: str, i: int, values: np.ndarray, count: int = 0) -> None:
        """Copy part i of an array of `count` equal parts to the GPU. count: 0 for one part for each own expert."""
        if name not in self._at:
            nbytes = values.nbytes * (count or len(self.mine))
            self._at[name] = self.gpu.allocate(nbytes)
            self.nbytes += nbytes
            self._steps[name] = values.nbytes
        self.gpu.copy_in(self._at[name] + values.nbytes * i, values)

    def fill(self, job: np.ndarray) -> None:
        """Write the part `weights` of a job. On a rank without experts the addresses are 0; no kernel reads them."""
        names = ("up", "down", "up_bias", "down_bias")
        found = {name: self._at.get(name, 0) for name in (*names, *(f"shared_{name}" for name in names))}
        found |= {f"{name}_step": self._steps.get(name, 0) for name in names}
        jobs.fill(
            job, schema.WEIGHTS, schema.CUDA, loaded=self.complete, version=self.version, gated=self.gated, **found
        )

    def free(self) -> None:
        """Free the GPU memory."""
        for at in self._at.values():
            self.gpu.free(at)
        self._at = {}


def packed_bytes(cfg: MoEConfig, count: int) -> int:
    """Bytes of `DeviceWeights` with `count` experts, the shared expert, and a router with all biases it may have.

    Experts have memory for biases even without cfg.bias.
    """
    shared = _expert_bytes(cfg, cfg.shared_ffn) if cfg.shared_ffn else 0
    shared += _product_bytes(cfg.hidden, 1, "f32") if cfg.shared_sigmoid else 0
    select_bias = FLOAT * cfg.columns if cfg.router.score in BIASED else 0
    return count * _expert_bytes(cfg, cfg.ffn) + shared + _product_bytes(cfg.hidden, cfg.columns, "f32") + select_bias


def _expert_bytes(cfg: MoEConfig, ffn: int) -> int:
    """Bytes of one packed expert of this width."""
    wide, kind = 2 * _up(ffn, INTERLEAVE) if cfg.gated else ffn, KINDS[cfg.dtype]
    return _product_bytes(cfg.hidden, wide, kind) + _product_bytes(ffn, cfg.hidden, kind)


def _product_bytes(k: int, n: int, kind: str) -> int:
    """Bytes of a packed matrix [K, N] and its float32 bias."""
    return _up(n, COLUMNS) * (_up(WEIGHT_TYPES[BY_KIND[kind].name].nbytes(k, 1), CHUNK) + FLOAT)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step

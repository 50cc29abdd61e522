"""A layer's weights as the kernels read them: this rank's experts, packed once, and the router."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arrays
from .config import MoEConfig
from .engine import fields as f
from .errors import InputError
from .kernels.cpu.gemm import FLOAT, aligned, pack, padded
from .kernels.cpu.llvm import LANES


def _pack_all(weights: np.ndarray, experts: Any, transpose: bool) -> np.ndarray:
    """weights: [n, K, N] (or [n, N, K] when `transpose`) -> [len(experts), panels, K, NR]."""
    packed: np.ndarray | None = None
    for i, e in enumerate(experts):
        one = pack(weights[e].T if transpose else weights[e])
        if packed is None:
            packed = aligned((len(experts), *one.shape))
        packed[i] = one
    return packed if packed is not None else aligned((0,))


def _pack_bias(bias: np.ndarray, experts: Any) -> np.ndarray:
    """bias: [n, N] -> [len(experts), N padded to whole panels]."""
    out = aligned((len(experts), padded(bias.shape[1])))
    out[:] = 0
    for i, e in enumerate(experts):
        out[i, : bias.shape[1]] = bias[e]
    return out


class LayerWeights:
    """Packed weights of the experts `mine` (ids, in slot order) of one layer.

    Arguments as of `MoE.load`; raises `InputError` naming the array that does not fit.
    """

    def __init__(self, cfg: MoEConfig, mine: list[int], *, local: bool, layout: str, arrays_in: dict[str, Any]) -> None:
        if layout not in ("in_out", "out_in"):
            raise InputError(f"layout must be 'in_out' or 'out_in', got {layout!r}")
        turned = layout == "out_in"
        n = len(mine) if local else cfg.experts
        h, width = cfg.hidden, cfg.ffn
        dtype = np.dtype(cfg.dtype)
        experts = range(n) if local else mine
        wide = (n, width, h) if turned else (n, h, width)
        narrow = (n, h, width) if turned else (n, width, h)
        shapes = {"up": wide, "down": narrow, "gate": wide}
        bias_shapes = {"up_bias": (n, width), "gate_bias": (n, width), "down_bias": (n, h)}
        wanted = {"up", "down"} | ({"gate"} if cfg.gated else set())
        biases = ({"up_bias", "down_bias"} | ({"gate_bias"} if cfg.gated else set())) if cfg.bias else set()
        self._check_present(arrays_in, wanted, biases, cfg)
        self.packed: dict[str, np.ndarray] = {}
        for name in wanted:
            self.packed[name] = _pack_all(arrays.weight(name, arrays_in[name], shapes[name], dtype), experts, turned)
        for name in biases:
            if arrays_in[name] is not None:
                self.packed[name] = _pack_bias(arrays.weight(name, arrays_in[name], bias_shapes[name], dtype), experts)
        self.router: np.ndarray | None = None
        if arrays_in["router"] is not None:
            shape = (cfg.experts, h) if turned else (h, cfg.experts)
            router = arrays.weight("router", arrays_in["router"], shape, dtype)
            self.router = pack(router.T if turned else router, LANES)

    @staticmethod
    def _check_present(given: dict[str, Any], wanted: set[str], biases: set[str], cfg: MoEConfig) -> None:
        for name in sorted(wanted):
            if given[name] is None:
                raise InputError(f"load needs {name}= for gated={cfg.gated}, bias={cfg.bias}")
        for name in ("gate", "up_bias", "gate_bias", "down_bias"):
            if given[name] is not None and name not in wanted | biases:
                raise InputError(f"load got {name}=, but the configuration has gated={cfg.gated}, bias={cfg.bias}")

    def fill(self, job: np.ndarray) -> None:
        """Write the addresses into a job."""
        names = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")
        slots = (f.UP, f.GATE, f.DOWN, f.UP_BIAS, f.GATE_BIAS, f.DOWN_BIAS)
        for name, slot in zip(names, slots):
            array = self.packed.get(name)
            job[slot] = array.ctypes.data if array is not None else 0
        for name, slot in (
            ("up", f.UP_STEP),
            ("down", f.DOWN_STEP),
            ("up_bias", f.UP_BIAS_STEP),
            ("down_bias", f.DOWN_BIAS_STEP),
        ):
            array = self.packed.get(name)
            job[slot] = FLOAT * (array.size // max(1, len(array))) if array is not None else 0
        if "up_bias" not in self.packed and "gate_bias" in self.packed:
            job[f.UP_BIAS_STEP] = FLOAT * self.packed["gate_bias"].shape[1]
        job[f.ROUTER] = self.router.ctypes.data if self.router is not None else 0
        job[f.ROUTER_PANELS] = len(self.router) if self.router is not None else 0

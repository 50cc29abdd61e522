"""A layer's weights as the kernels read them: this rank's experts, packed once, and the router."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import words
from ..errors import InputError
from ..kernels.cpu.panels import LANES, pack, padded
from ..primitives import arrays
from ..primitives.buffers import FLOAT, aligned

FLOAT32 = np.dtype(np.float32)


def _pack_all(weights: list[np.ndarray]) -> np.ndarray:
    """weights: n of [K, N] -> [n, panels, K, NR]."""
    packed: np.ndarray | None = None
    for i, weight in enumerate(weights):
        one = pack(weight)
        if packed is None:
            packed = aligned((len(weights), *one.shape))
        packed[i] = one
    return packed if packed is not None else aligned((0,))


def _pack_bias(bias: np.ndarray, experts: Any) -> np.ndarray:
    """bias: [n, N] -> [len(experts), N padded to whole panels]."""
    out = aligned((len(experts), padded(bias.shape[1])))
    out[:] = 0
    for i, e in enumerate(experts):
        out[i, : bias.shape[1]] = bias[e]
    return out


class Given:
    """Weights as a user gave them, checked: whole arrays by name, and which of their entries are this rank's experts.

    Arguments as of `MoE.load`; raises `InputError` naming the array that does not fit.
    """

    def __init__(self, cfg: MoEConfig, mine: list[int], *, local: bool, layout: str, arrays_in: dict[str, Any]) -> None:
        if layout not in ("in_out", "out_in"):
            raise InputError(f"layout must be 'in_out' or 'out_in', got {layout!r}")
        self.turned = layout == "out_in"
        n = len(mine) if local else cfg.experts
        h, width = cfg.hidden, cfg.ffn
        self.experts = list(range(n)) if local else mine
        wide = (n, width, h) if self.turned else (n, h, width)
        narrow = (n, h, width) if self.turned else (n, width, h)
        wanted = {"up", "down"} | ({"gate"} if cfg.gated else set())
        biases = ({"up_bias", "down_bias"} | ({"gate_bias"} if cfg.gated else set())) if cfg.bias else set()
        check_present(arrays_in, wanted, biases, cfg)
        shapes = {
            "up": wide, "down": narrow, "gate": wide, "up_bias": (n, width), "gate_bias": (n, width),
            "down_bias": (n, h), "router": (cfg.experts, h) if self.turned else (h, cfg.experts),
        }  # fmt: skip
        self.weights = {name: arrays.weight(name, arrays_in[name], shapes[name], FLOAT32) for name in sorted(wanted)}
        self.biases = {
            name: arrays.weight(name, arrays_in[name], shapes[name], FLOAT32)
            for name in sorted(biases)
            if arrays_in[name] is not None
        }
        self.router: np.ndarray | None = None  # [H, E]
        if arrays_in["router"] is not None:
            router = arrays.weight("router", arrays_in["router"], shapes["router"], FLOAT32)
            self.router = router.T if self.turned else router

    def expert(self, name: str, e: int) -> np.ndarray:
        """[K, N] of one expert, its number in the arrays."""
        whole = self.weights[name][e]
        return whole.T if self.turned else whole


def check_present(given: dict[str, Any], wanted: set[str], biases: set[str], cfg: MoEConfig) -> None:
    """Raise InputError for an array that is missing, or that the configuration does not have."""
    for name in sorted(wanted):
        if given[name] is None:
            raise InputError(f"load needs {name}= for gated={cfg.gated}, bias={cfg.bias}")
    for name in ("gate", "up_bias", "gate_bias", "down_bias"):
        if given[name] is not None and name not in wanted | biases:
            raise InputError(f"load got {name}=, but the configuration has gated={cfg.gated}, bias={cfg.bias}")


class LayerWeights:
    """Packed weights of the experts `mine` (ids, in slot order) of one layer, for the CPU's kernels."""

    def __init__(self, given: Given) -> None:
        self.packed: dict[str, np.ndarray] = {}
        for name in given.weights:
            self.packed[name] = _pack_all([given.expert(name, e) for e in given.experts])
        for name, bias in given.biases.items():
            self.packed[name] = _pack_bias(bias, given.experts)
        self.router = None if given.router is None else pack(given.router, LANES)

    def fill(self, job: np.ndarray) -> None:
        """Write the addresses into a job."""
        names = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")
        slots = (words.UP, words.GATE, words.DOWN, words.UP_BIAS, words.GATE_BIAS, words.DOWN_BIAS)
        for name, slot in zip(names, slots):
            array = self.packed.get(name)
            job[slot] = array.ctypes.data if array is not None else 0
        for name, slot in (
            ("up", words.UP_STEP),
            ("down", words.DOWN_STEP),
            ("up_bias", words.UP_BIAS_STEP),
            ("down_bias", words.DOWN_BIAS_STEP),
        ):
            array = self.packed.get(name)
            job[slot] = FLOAT * (array.size // max(1, len(array))) if array is not None else 0
        if "up_bias" not in self.packed and "gate_bias" in self.packed:
            job[words.UP_BIAS_STEP] = FLOAT * self.packed["gate_bias"].shape[1]
        job[words.ROUTER] = self.router.ctypes.data if self.router is not None else 0
        job[words.ROUTER_PANELS] = len(self.router) if self.router is not None else 0

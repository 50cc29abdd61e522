"""A layer's weights as the kernels read them: this rank's experts, packed once, and the router."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import NARROW, MoEConfig, boolean
from ..engine import words
from ..errors import InputError
from ..kernels.cpu.elements import ElementType, element_type
from ..primitives import arrays
from ..primitives.buffers import FLOAT, aligned

WEIGHTS = ("up", "gate", "down")  # may have the dtype of the layer
LAYOUTS = ("in_out", "out_in")


def _pack_all(element: ElementType, weights: list[np.ndarray]) -> np.ndarray:
    """weights: n of [K, N] -> [n, `packed_bytes(K, N)`] bytes."""
    packed: np.ndarray | None = None
    for i, weight in enumerate(weights):
        one = element.pack(weight)
        if packed is None:
            packed = aligned((len(weights), one.size), np.uint8)
        packed[i] = one
    return packed if packed is not None else aligned((0, 0), np.uint8)


def _pack_bias(element: ElementType, bias: np.ndarray, experts: Any) -> np.ndarray:
    """bias: [n, N] -> [len(experts), padded(N)] float32."""
    out = aligned((len(experts), element.padded(bias.shape[1])))
    for row, e in zip(out, experts):
        row[:] = element.pack_bias(bias[e])
    return out


def shapes(cfg: MoEConfig, count: int, layout: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that `MoE.load` takes, by name. count: experts in each array."""
    h, width, turned = cfg.hidden, cfg.ffn, layout == "out_in"
    wide, narrow = ((count, width, h), (count, h, width)) if turned else ((count, h, width), (count, width, h))
    return {
        "up": wide, "down": narrow, "gate": wide, "up_bias": (count, width), "gate_bias": (count, width),
        "down_bias": (count, h), "router": (cfg.experts, h) if turned else (h, cfg.experts),
    }  # fmt: skip


class CheckedWeights:
    """Weights as a user passed them, checked: whole arrays by name, and the indices of this rank's experts in them.

    Arguments as of `MoE.load`; mine: ids of this rank's experts. Raises `InputError` naming the array that does not
    fit, and the layout= or local= that it would fit.
    """

    def __init__(self, cfg: MoEConfig, mine: list[int], *, local: bool, layout: str, arrays_in: dict[str, Any]) -> None:
        local = boolean("local", local)
        if not isinstance(layout, str) or layout not in LAYOUTS:
            raise InputError(f"layout must be 'in_out' or 'out_in', got {layout!r}")
        self.turned = layout == "out_in"
        self.experts = list(range(len(mine))) if local else mine
        self._cfg, self._count, self._given = cfg, len(mine), (local, layout)
        wanted = {"up", "down"} | ({"gate"} if cfg.gated else set())
        biases = ({"up_bias", "down_bias"} | ({"gate_bias"} if cfg.gated else set())) if cfg.bias else set()
        check_present(arrays_in, wanted, biases, cfg)
        self.weights = {name: self._array(name, arrays_in[name]) for name in sorted(wanted)}
        self.biases = {
            name: self._array(name, arrays_in[name]) for name in sorted(biases) if arrays_in[name] is not None
        }
        self.router: np.ndarray | None = None  # [H, E]
        if arrays_in["router"] is not None:
            router = self._array("router", arrays_in["router"])
            self.router = router.T if self.turned else router

    def _array(self, name: str, value: Any) -> np.ndarray:
        array = arrays.view(name, value)
        shape = self._shape(name, *self._given)
        if array.shape != shape and (hint := self._hint(name, array.shape)):
            raise InputError(f"{name} must have shape {list(shape)}, got {list(array.shape)}: {hint}")
        own = [self._cfg.dtype] if name in WEIGHTS and self._cfg.dtype in NARROW else []
        return arrays.weight(name, array, shape, "float32", *own)

    def _shape(self, name: str, local: bool, layout: str) -> tuple[int, ...]:
        return shapes(self._cfg, self._count if local else self._cfg.experts, layout)[name]

    def _hint(self, name: str, got: tuple[int, ...]) -> str:
        """The arguments of `load` that an array of shape `got` would fit; empty if there are none."""
        local, layout = self._given
        for wanted in ((local, _other(layout)), (not local, layout), (not local, _other(layout))):
            if got == self._shape(name, *wanted):
                changed = []
                if wanted[0] != local:
                    held = "this rank's experts alone" if wanted[0] else "all experts"
                    changed.append(f"local={wanted[0]} ({held})")
                if wanted[1] != layout:
                    order = "nn.Linear's order" if wanted[1] == "out_in" else "inputs before outputs"
                    changed.append(f"layout={wanted[1]!r} ({order})")
                return "that is its shape with " + " and ".join(changed)
        return ""

    def expert(self, name: str, e: int) -> np.ndarray:
        """[K, N] of one expert. e: its index in the arrays."""
        whole = self.weights[name][e]
        return whole.T if self.turned else whole


def _other(layout: str) -> str:
    return LAYOUTS[1 - LAYOUTS.index(layout)]


def check_present(given: dict[str, Any], wanted: set[str], biases: set[str], cfg: MoEConfig) -> None:
    """Raise InputError for an array that is missing, or for one that the configuration does not have."""
    for name in sorted(wanted):
        if given[name] is None:
            raise InputError(f"load needs {name}= for gated={cfg.gated}, bias={cfg.bias}")
    for name in ("gate", "up_bias", "gate_bias", "down_bias"):
        if given[name] is not None and name not in wanted | biases:
            raise InputError(f"load got {name}=, but the configuration has gated={cfg.gated}, bias={cfg.bias}")


class LayerWeights:
    """One layer's weights for the CPU kernels: this rank's experts in slot order, and the router. router: or None.

    float32: the element type of routers, for the instruction set that `element` is for.
    """

    def __init__(self, element: ElementType, float32: ElementType, given: CheckedWeights) -> None:
        self.packed: dict[str, np.ndarray] = {}
        for name in given.weights:
            self.packed[name] = _pack_all(element, [given.expert(name, e) for e in given.experts])
        for name, bias in given.biases.items():
            self.packed[name] = _pack_bias(element, bias, given.experts)
        self.router = None if given.router is None else float32.pack(given.router)

    @property
    def nbytes(self) -> int:
        """Bytes of all packed arrays."""
        router = 0 if self.router is None else self.router.nbytes
        return sum(array.nbytes for array in self.packed.values()) + router

    def fill(self, job: np.ndarray) -> None:
        """Write the addresses into a job; 0 for absent arrays."""
        job[words.LOADED] = 1
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
            job[slot] = array.strides[0] if array is not None else 0
        if "up_bias" not in self.packed and "gate_bias" in self.packed:
            job[words.UP_BIAS_STEP] = self.packed["gate_bias"].strides[0]
        job[words.ROUTER] = self.router.ctypes.data if self.router is not None else 0


def packed_bytes(cfg: MoEConfig, count: int) -> int:
    """Bytes of `LayerWeights` with `count` experts, all biases of the configuration, and a router."""
    element = element_type(cfg.dtype, cfg.precision)
    wide = 2 if cfg.gated else 1  # products of width F
    expert = wide * element.packed_bytes(cfg.hidden, cfg.ffn) + element.packed_bytes(cfg.ffn, cfg.hidden)
    if cfg.bias:
        expert += FLOAT * (wide * element.padded(cfg.ffn) + element.padded(cfg.hidden))
    return count * expert + element_type("float32").packed_bytes(cfg.hidden, cfg.experts)

"""Checks a layer's weights as a user passes them: whole arrays, or one array for each expert. Nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import BIASED, MoEConfig, boolean
from ..errors import InputError
from ..primitives import arrays, finite
from ..quantised import Quantised
from ..row_types import ON_CPUS, ROUNDED

PROJECTIONS = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")
SHARED = (*(f"shared_{name}" for name in PROJECTIONS), "shared_sigmoid")  # arrays of a shared expert
ROUTERS = ("router", "router_bias", "select_bias")  # arrays of a router
LAYOUTS = ("in_out", "out_in")
STORED = tuple(ON_CPUS)  # types of weights
Arrays = dict[str, Any]  # arrays, or `Quantised` matrices


def expert_names(cfg: MoEConfig) -> tuple[set[str], set[str]]:
    """(names of the arrays that an expert of `cfg` must have, names of those that it may have)."""
    wanted = {"up", "down"} | ({"gate"} if cfg.gated else set())
    return wanted, {f"{name}_bias" for name in wanted} if cfg.bias else set()


def shapes(cfg: MoEConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the arrays of one expert, of the router and of the shared expert."""
    h, columns, out_in = cfg.hidden, cfg.columns, layout == "out_in"
    found: dict[str, tuple[int, ...]] = {
        "router": (columns, h) if out_in else (h, columns),
        "router_bias": (columns,),
        "select_bias": (columns,),
        "shared_sigmoid": (h,),
    }
    for prefix, width in (("shared_", cfg.shared_ffn), ("", cfg.ffn)):
        wide = (width, h) if out_in else (h, width)
        found |= {
            f"{prefix}up": wide,
            f"{prefix}down": wide[::-1],
            f"{prefix}gate": wide,
            f"{prefix}up_bias": (width,),
            f"{prefix}gate_bias": (width,),
            f"{prefix}down_bias": (h,),
        }
    return found


def checked_array(name: str, value: Any, bits: str | None) -> np.ndarray:
    """`value` as an array of a type that weights may have. bits: the type whose bits uint16 holds, or None."""
    array = arrays.view(name, value)
    if array.dtype == np.uint16 and bits is not None:
        array = array.view(ROUNDED[bits].array)
    if not any(arrays.is_type(array, dtype) for dtype in STORED):
        raise arrays.wrong_dtype(name, array.dtype, ", ".join(STORED[:-1]) + f" or {STORED[-1]}")
    return array


class Given:
    """The checks that all calls that load weights share, for a configuration and a layout.

    call: the method's name, for messages. bits: the type whose bits arrays of uint16 hold, or None. Raises InputError
    for an unknown layout or type.
    """

    def __init__(self, call: str, cfg: MoEConfig, layout: Any, bits: Any) -> None:
        if not isinstance(layout, str) or layout not in LAYOUTS:
            raise InputError(f"layout must be 'in_out' or 'out_in', got {layout!r}")
        if bits is not None and not (isinstance(bits, str) and bits in ROUNDED):
            raise InputError(f"bits must be one of None, {', '.join(map(repr, ROUNDED))}, got {bits!r}")
        self.call, self.cfg, self.layout, self.bits = call, cfg, layout, bits
        self.out_in = layout == "out_in"

    def present(self, given: dict[str, Any], prefix: str = "") -> list[str]:
        """Names of the given arrays of an expert. Raises InputError for a missing or a superfluous one.

        prefix: a text that comes before names in messages.
        """
        cfg, (wanted, biases) = self.cfg, expert_names(self.cfg)
        for name in sorted(wanted):
            if given[name] is None:
                raise InputError(f"{self.call} needs {prefix}{name}= for gated={cfg.gated}, bias={cfg.bias}")
        for name in ("gate", "up_bias", "gate_bias", "down_bias"):
            if given[name] is not None and name not in wanted | biases:
                raise InputError(
                    f"{self.call} got {prefix}{name}=, but the configuration has gated={cfg.gated}, bias={cfg.bias}:"
                    " leave it out"
                )
        return [name for name in sorted(wanted | biases) if given[name] is not None]

    def one(self, name: str, value: Any, shape: tuple[int, ...]) -> Any:
        """`value` as an array with inputs before outputs; raises InputError unless it has this shape."""
        if isinstance(value, Quantised):
            return self.codes(name, value)
        array = checked_array(name, value, self.bits)
        if array.shape != shape:
            hint = f": this shape is right with {self.other}" if array.shape == shape[::-1] and array.ndim == 2 else ""
            raise InputError(f"{name} must have shape {list(shape)}, got {list(array.shape)}{hint}")
        self.check_values(name, name.removeprefix("shared_"), array)
        return self.inputs_first(array)

    def codes(self, name: str, value: Quantised) -> Quantised:
        """`value`, packed weights, with inputs before outputs whatever the layout.

        Raises InputError unless they have the type and the shape that the configuration asks for.
        """
        wanted = shapes(self.cfg, "in_out")[name.partition("[")[0]]
        if value.type != self.cfg.packed or value.shape != wanted:
            asked = self.cfg.packed or f"plain {self.cfg.dtype}"
            raise InputError(
                f"{name} must have shape {list(wanted)} and type {asked}, as the configuration says, got"
                f" {list(value.shape)} and {value.type}"
            )
        return value

    def check_values(self, name: str, kind: str, array: Any) -> None:
        """Raise InputError for NaN, infinity, or a value that rounding to the array's type would make infinite.

        name: the array's name in the message. kind: which array it is, such as "up".
        """
        if isinstance(array, Quantised):
            return
        rounded = kind in ("up", "gate", "down") and self.cfg.dtype in ROUNDED
        problem = finite.problem(name, array, self.cfg.dtype if rounded else "float32")
        if problem is not None:
            raise InputError(problem)

    def inputs_first(self, array: Any) -> Any:
        """The array with inputs before outputs, whatever the layout."""
        if isinstance(array, Quantised):
            return array
        return array.swapaxes(-1, -2) if self.out_in and array.ndim > 1 else array

    @property
    def other(self) -> str:
        """The layout that was not given, for messages."""
        return _in_words(LAYOUTS[1 - LAYOUTS.index(self.layout)])

    def expert(self, given: dict[str, Any]) -> Arrays:
        """The checked arrays of one expert, by name."""
        wanted = shapes(self.cfg, self.layout)
        return {name: self.one(name, given[name], wanted[name]) for name in self.present(given)}

    def shared(self, given: dict[str, Any]) -> Arrays:
        """The checked arrays of a layer's shared expert.

        given: an entry for each of SHARED, None for an absent array.
        """
        cfg = self.cfg
        if not cfg.shared_ffn:
            for name in SHARED:
                if given[name] is not None:
                    raise InputError(f"{self.call} got {name}=, but the configuration has shared_ffn=0: leave it out")
            return {}
        found = self.present({name: given[f"shared_{name}"] for name in PROJECTIONS}, "shared_")
        if cfg.shared_sigmoid != (given["shared_sigmoid"] is not None):
            wanted_array, came = ("an array", "None") if cfg.shared_sigmoid else ("None", "an array")
            raise InputError(
                f"{self.call}: shared_sigmoid= must be {wanted_array}, because cfg has"
                f" shared_sigmoid={cfg.shared_sigmoid}, got {came}"
            )
        names = [*(f"shared_{name}" for name in found), *(["shared_sigmoid"] if cfg.shared_sigmoid else [])]
        wanted = shapes(cfg, self.layout)
        return {name: self.one(name, given[name], wanted[name]) for name in names}

    def router(self, given: dict[str, Any]) -> Arrays:
        """The checked arrays of a layer's router. given: an entry for each of ROUTERS, None for an absent array."""
        wanted = shapes(self.cfg, self.layout)
        found = {name: self.one(name, given[name], wanted[name]) for name in ROUTERS if given[name] is not None}
        score = self.cfg.router.score
        if "select_bias" in found and score not in BIASED:
            raise InputError(f"select_bias requires one of the scores {', '.join(BIASED)}, got score={score!r}")
        return found


class GivenLayer(Given):
    """The checked weights of a whole layer, as `MoE.load` takes them. mine: ids of this rank's experts.

    Raises InputError, which names an array that does not fit, and the layout= or local= with which it would fit.
    """

    def __init__(
        self, cfg: MoEConfig, mine: list[int], local: Any, layout: Any, bits: Any, given: dict[str, Any]
    ) -> None:
        self.local = boolean("local", local)
        super().__init__("load", cfg, layout, bits)
        self.experts = list(range(len(mine))) if self.local else mine
        self._count = len(mine)
        self._arrays = {name: self._stack(name, given[name]) for name in self.present(given)}
        self.routers = self.router(given)
        self.shared_expert = self.shared(given)
        if self.routers and "router" not in self.routers:
            raise InputError(f"load got {next(iter(self.routers))}= without router=: pass router= too")
        for name, stack in self._arrays.items():
            for e in self.experts:
                self.check_values(f"{name}[{e}]", name, stack[e])

    def held(self, i: int) -> Arrays:
        """The arrays of this rank's expert number i."""
        e = self.experts[i]
        return {name: self.inputs_first(stack[e]) for name, stack in self._arrays.items()}

    def _stack(self, name: str, value: Any) -> Any:
        """A checked array [E, ...], or list of E arrays, where experts that this rank does not hold may be None."""
        shape = self._shape(name, self.local, self.layout)
        if isinstance(value, list | tuple):
            return self._parts(name, value, shape)
        array = checked_array(name, value, self.bits)
        if array.shape != shape:
            hint = self._hint(name, array.shape)
            raise InputError(f"{name} must have shape {list(shape)}, got {list(array.shape)}{hint}")
        return array

    def _parts(self, name: str, value: Any, shape: tuple[int, ...]) -> list[np.ndarray | None]:
        if len(value) != shape[0]:
            held = "of this rank" if self.local else "of the layer"
            raise InputError(f"{name} must have an array for each of the {shape[0]} experts {held}, got {len(value)}")
        parts: list[Any] = [None if v is None else self._part(f"{name}[{e}]", v) for e, v in enumerate(value)]
        for e, part in enumerate(parts):
            if part is None and e in self.experts:
                raise InputError(f"{name}[{e}] must be an array, because this rank holds that expert, got None")
            if part is not None and not isinstance(part, Quantised) and part.shape != shape[1:]:
                hint = self._hint(name, (shape[0], *part.shape))
                raise InputError(f"{name}[{e}] must have shape {list(shape[1:])}, got {list(part.shape)}{hint}")
        return parts

    def _part(self, name: str, value: Any) -> Any:
        return self.codes(name, value) if isinstance(value, Quantised) else checked_array(name, value, self.bits)

    def _shape(self, name: str, local: bool, layout: str) -> tuple[int, ...]:
        return (self._count if local else self.cfg.experts, *shapes(self.cfg, layout)[name])

    def _hint(self, name: str, got: tuple[int, ...]) -> str:
        """The end of a message: the arguments of `load` with which shape `got` would fit; empty if there are none."""
        local, layout = self.local, LAYOUTS[1 - LAYOUTS.index(self.layout)]
        for wanted in ((local, layout), (not local, self.layout), (not local, layout)):
            if got == self._shape(name, *wanted):
                changed = []
                if wanted[0] != local:
                    held = "this rank's experts alone" if wanted[0] else "all experts"
                    changed.append(f"local={wanted[0]} ({held})")
                if wanted[1] != self.layout:
                    changed.append(_in_words(wanted[1]))
                return ": this shape is right with " + " and ".join(changed)
        return ""


def _in_words(layout: str) -> str:
    order = "nn.Linear's order" if layout == "out_in" else "inputs before outputs"
    return f"layout={layout!r} ({order})"

"""Views of gate and up in arrays that hold both. Model files and other engines store such arrays."""

from __future__ import annotations

from typing import Any

from ..config import boolean
from ..errors import InputError
from ..primitives import arrays
from ..quantised import Quantised

NAMES = ("gate_up", "gate_up_bias", "w13", "w2")


def separated(given: dict[str, Any], fused: dict[str, Any], interleaved: Any, layout: Any) -> dict[str, Any]:
    """`given`, to which gate, up and their biases are added as views of the arrays in `fused`.

    fused: a value or None for each of NAMES. w13 and w2 are vLLM's names of gate_up and down in layout "out_in".
    interleaved: whether gate and up alternate, the gate first; if not, the first half is the gate. Raises InputError
    for arrays that are given twice or cannot be split.
    """
    alternate = boolean("interleaved", interleaved)
    found = {name: value for name, value in fused.items() if value is not None}
    if not found:
        if alternate:
            raise InputError("interleaved=True applies only to gate_up= and w13=, and load got neither: leave it out")
        return given
    if layout != "out_in" and {"w13", "w2"} & set(found):
        raise InputError(
            f"w13= and w2= need layout='out_in', because they hold outputs before inputs, got layout={layout!r}"
        )
    result = dict(given)

    def put(name: str, value: Any, source: str) -> None:
        if result[name] is not None:
            raise InputError(f"load got {name}= and also {source}=, which contains {name}: pass one of them")
        result[name] = value

    if "w2" in found:
        put("down", found["w2"], "w2")
    for source, suffix, dim in (("gate_up", "", 2), ("w13", "", 2), ("gate_up_bias", "_bias", 1)):
        if source in found:
            outputs = 1 if layout == "out_in" else dim
            gate, up = _parts(source, found[source], dim, outputs, alternate)
            put(f"gate{suffix}", gate, source)
            put(f"up{suffix}", up, source)
    return result


def _parts(name: str, value: Any, dims: int, outputs: int, alternate: bool) -> tuple[Any, Any]:
    """(gate, up) of an array that also has a dimension of experts, or of a list with an array for each expert.

    dims: how many dimensions an expert's array has. outputs: the index of the dimension to split, in the array that
    also has the dimension of experts.
    """
    if isinstance(value, list | tuple):
        each = [(None, None) if one is None else _part(name, one, dims, outputs - 1, alternate) for one in value]
        return [gate for gate, _ in each], [up for _, up in each]
    return _part(name, value, dims + 1, outputs, alternate)


def _part(name: str, value: Any, dims: int, outputs: int, alternate: bool) -> tuple[Any, Any]:
    if isinstance(value, Quantised):
        raise InputError(f"{name} must be an array, got packed weights: pass gate= and up= instead")
    array = arrays.view(name, value)
    if array.ndim != dims or array.shape[outputs] % 2:
        raise InputError(
            f"{name} must have {dims} dimensions, and dimension {outputs} must be 2 * ffn, got {list(array.shape)}"
        )
    whole: list[Any] = [slice(None)] * array.ndim
    half = array.shape[outputs] // 2
    cuts = (slice(0, None, 2), slice(1, None, 2)) if alternate else (slice(half), slice(half, None))
    gate, up = (array[(*whole[:outputs], cut, *whole[outputs + 1 :])] for cut in cuts)
    return gate, up

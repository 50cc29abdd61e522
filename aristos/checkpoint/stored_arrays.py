"""Where a layer's weights lie in a model's tensors, and how one expert's weights are read from slices and halves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..quantised import Quantised
from ..weight_types import WeightType
from . import packed, quantised
from .directory import Directory
from .matrix import Matrix, named
from .methods import Options

WEIGHTS = ("up", "gate", "down")  # the matrices of an expert
SHARED = ("shared_up", "shared_gate", "shared_down", "shared_sigmoid")
TABLE = "table"
LATE = "late_"  # the beginning of names of arrays of the last experts, which have separate tensors


@dataclass(frozen=True)
class StoredArray:
    """One array of a layer, as the model stores it.

    name: the tensor's name without the layer's prefix; with {e} if every expert has its own tensor. stacked: whether
    the first axis counts experts. outputs: which of the tensor's outputs are the array's: "all", the "first" or
    "second" half, or the "even" or "odd" ones. in_out: whether the tensor is stored [in, out]. flat: whether all
    experts' rows follow each other, [E F, H]. form: the form of the tensors that replace this tensor, which are
    [out, in] whatever `in_out` says: see `packed.FORMS`. row: whether a vector is stored as [1, n].
    """

    name: str
    stacked: bool = False
    outputs: str = "all"
    in_out: bool = False
    flat: bool = False
    form: str = ""
    row: bool = False

    def tensors(self, experts: int) -> Iterator[str]:
        """Names of the tensors, without the layer's prefix."""
        ends = packed.FORMS[self.form].tensors
        for name in (self.name.format(e=e) for e in range(experts)) if "{e}" in self.name else (self.name,):
            yield from (named(name, end) for end in ends)

    @property
    def probe(self) -> str:
        """The name of a tensor: if the directory has it, the model stores the array in this way."""
        return next(self.tensors(1))

    def shape(self, wanted: tuple[int, ...], experts: int) -> tuple[int, ...]:
        """The stored tensor's shape. wanted: the shape of one expert's array, [out, in] or [out]."""
        out, *rest = wanted
        out *= 2 if self.outputs != "all" else 1
        one = (out, *rest)
        if self.in_out and not self.form:
            one = one[::-1]
        if self.flat:
            return (experts * one[0], *one[1:])
        if self.row:
            one = (1, *one)
        return (experts, *one) if self.stacked else one

    def own(self, half: int) -> slice:
        """Which of the tensor's outputs are the array's. half: half the number of the tensor's outputs."""
        return {
            "first": slice(0, half),
            "second": slice(half, None),
            "even": slice(0, None, 2),
            "odd": slice(1, None, 2),
        }.get(self.outputs, slice(None))


Part = tuple[
    dict[str, StoredArray], ...
]  # alternatives, each {array of the layer: how it is stored}; the first that the model has is used


def packed_ways(part: Part, form: str) -> Part:
    """A part with further alternatives, in which linear layers are stored in a form of packed weights."""
    found = list(part)
    for way in part:
        linear = {
            array: replace(stored, form=form)
            for array, stored in way.items()
            if array.removeprefix("shared_") in WEIGHTS and stored.name.endswith(".weight")
        }
        if linear and not any(stored.stacked or stored.in_out or stored.flat for stored in linear.values()):
            found.append(way | linear)
    return tuple(found)


@dataclass(eq=False)
class LayerReader:
    """Reads the arrays of one layer. prefix: the beginning of the layer's tensor names.

    shapes: the shape of each array, of one expert or of the layer. late: how many of the last experts are stored
    separately. experts: how many are not. stored_arrays: how each array is stored, by the array's name.
    `check` compares all names and shapes with the headers, before any values are read.
    """

    directory: Directory
    prefix: str
    stored_arrays: dict[str, StoredArray]
    shapes: dict[str, tuple[int, ...]]
    experts: int
    late: int
    options: Options

    def check(self) -> set[str]:
        """The names of all tensors that hold the layer's arrays. Raises CheckpointError for a wrong shape."""
        used: set[str] = set()
        for array, stored in self.stored_arrays.items():
            if array == TABLE:  # the table has a row for each token id: see `tables`
                used.add(self.prefix + stored.name)
                continue
            wanted = stored.shape(self.shapes[array], self.late if array.startswith(LATE) else self.experts)
            if stored.form == "mxfp4":
                used |= self._check_mxfp4(stored, wanted)
                continue
            if stored.form:
                for e in range(self.experts if "{e}" in stored.name else 1):
                    used |= packed.check(self._matrix(array, e))
                continue
            for below in stored.tensors(self.experts):
                used |= self._check(self.prefix + below, wanted)
        return used

    def _check(self, name: str, wanted: tuple[int, ...]) -> set[str]:
        entry = self.directory.entry(name)
        if entry.shape != wanted:
            self._refuse_shape(name, wanted, entry.shape)
        if entry.dtype in quantised.ELEMENTS:
            return {name}
        return {name, *quantised.check_scales(self.directory, name, self.options)}

    def _check_mxfp4(self, stored: StoredArray, wanted: tuple[int, ...]) -> set[str]:
        blocks, scales = (self.prefix + below for below in stored.tensors(self.experts))
        *lead, width = wanted
        if width % quantised.MX_BLOCK:
            raise CheckpointError(
                f"{self.directory.file(blocks).path}: widths must be multiples of 32 for mxfp4, got {width}"
            )
        of_scales = (*lead, width // quantised.MX_BLOCK)
        for name, shape in ((blocks, (*of_scales, quantised.MX_BLOCK // 2)), (scales, of_scales)):
            entry = self.directory.entry(name)
            if entry.shape != shape:
                self._refuse_shape(name, shape, entry.shape)
            if entry.dtype not in ("U8", "F8_E8M0"):
                self.directory.refuse(name, f" of mxfp4 must have dtype U8 or F8_E8M0, got {entry.dtype}")
        return {blocks, scales}

    def _refuse_shape(self, name: str, wanted: tuple[int, ...], got: tuple[int, ...]) -> None:
        what = f"must have shape {list(wanted)}, as config.json says, got {list(got)}"
        self.directory.refuse(name, f" {what}: config.json and the tensors are of different models")

    def read(self, array: str, expert: int = 0) -> np.ndarray:
        """One expert's array, or the layer's: [out, in] or [out], float32 or as stored. A view if possible."""
        found = self._tensor(array, expert)
        return found[self.stored_arrays[array].own(len(found) // 2)]

    def expert(self, names: Iterable[str], expert: int) -> dict[str, np.ndarray]:
        """Arrays of one expert by name. A tensor that holds several of the arrays is read and dequantised once."""
        tensors: dict[StoredArray, np.ndarray] = {}
        found = {}
        for name in names:
            array, number = self._stored(name, expert)
            whole = replace(self.stored_arrays[array], outputs="all")
            if whole not in tensors:
                tensors[whole] = self._tensor(array, number)
            found[name] = tensors[whole][self.stored_arrays[array].own(len(tensors[whole]) // 2)]
        if "expert_scale" in self.stored_arrays:
            scales = self.read_finite("expert_scale")
            scale = np.float32(scales[expert if len(scales) > 1 else 0])
            found |= {name: found[name].astype(np.float32) * scale for name in ("down", "down_bias") if name in found}
        return found

    def router(self, factor: float) -> np.ndarray:
        """The router [E, H], multiplied by "router_scale" and `factor` and divided by "router_norm", if these exist."""
        found = self.read("router")
        if "router_scale" not in self.stored_arrays:
            return found
        norm = self.read_finite("router_norm").astype(np.float64)
        if not norm.all():
            name, at = self.prefix + self.stored_arrays["router_norm"].name, int(np.argmin(norm != 0))
            remedy = "load the layer yourself and pass router_x= to its calls"
            self.directory.refuse(
                name, f" has 0 at {at}: the router cannot be computed from the experts' input; {remedy}"
            )
        columns = factor * self.read_finite("router_scale").astype(np.float64) / norm
        return (found * columns).astype(np.float32)

    @cached_property
    def weight_type(self) -> WeightType | None:
        """The weight type of the experts, read from headers; None if their weights are not packed."""
        late = [LATE + name for name in WEIGHTS if LATE + name in self.stored_arrays]
        arrays = [*(name for name in WEIGHTS if name in self.stored_arrays), *late]
        kinds = {array: packed.kind_of(self._matrix(array, 0)) for array in arrays}
        found = set(kinds.values())
        if len(found) > 1:
            each = ", ".join(f"{array} {kind or 'plain'}" for array, kind in kinds.items())
            raise CheckpointError(
                f"{self.directory.path}: experts of one layer have weights of several types ({each}): {packed.EXPAND}"
            )
        kind = found.pop()
        if kind is not None and "expert_scale" in self.stored_arrays:
            raise CheckpointError(
                f"{self.directory.path}: experts have scales of their own, which packed weights cannot have:"
                f" {packed.EXPAND}"
            )
        return kind

    def as_stored(self, names: Iterable[str], expert: int) -> dict[str, Quantised | np.ndarray]:
        """Arrays as `expert` returns them, but weights as stored, [in, out].

        Raises CheckpointError if the weights are not packed.
        """
        names, kind = list(names), self.weight_type
        if kind is None:
            raise CheckpointError(
                f"{self.directory.path}: the experts' weights must be packed, got plain weights: pass packed=False"
            )
        found: dict[str, Quantised | np.ndarray] = {}
        for name in WEIGHTS:
            if name in names:
                found[name] = packed.read(self._matrix(*self._stored(name, expert)), kind)
        return found | self.expert([name for name in names if name not in WEIGHTS], expert)

    def shared(self, kind: WeightType | None, factor: float) -> dict[str, Any]:
        """Arrays of the shared expert: [out, in], or [in, out] if they are stored as `kind`.

        factor: a power of two by which the shared expert's output is multiplied.
        """
        found: dict[str, Any] = {}
        for name in (name for name in SHARED if name in self.stored_arrays):
            one = self._matrix(name, 0) if kind is not None and name.removeprefix("shared_") in WEIGHTS else None
            if one is not None and kind is not None and packed.kind_of(one) == kind:
                found[name] = packed.read(one, kind)
            else:
                found[name] = self.read(name)
        if factor != 1.0 and (down := found.get("shared_down")) is not None:
            scaled = down.scales if isinstance(down, Quantised) else down
            scaled = (scaled * np.float32(factor)).astype(scaled.dtype)
            found["shared_down"] = replace(down, scales=scaled) if isinstance(down, Quantised) else scaled
        return found

    def _stored(self, name: str, expert: int) -> tuple[str, int]:
        """The name of one expert's array in `stored_arrays`, and the expert's number in its tensors."""
        return (name, expert) if expert < self.experts else (LATE + name, expert - self.experts)

    def _matrix(self, array: str, expert: int) -> Matrix:
        """Where a matrix, which may be packed, lies."""
        stored, (out, depth) = self.stored_arrays[array], self.shapes[array]
        name = self.prefix + stored.name.format(e=expert)
        if stored.flat and self.directory.entry(name).dtype not in quantised.ELEMENTS:
            self.directory.refuse(name, quantised.FLAT)
        return Matrix(
            self.directory,
            name,
            (out if stored.outputs == "all" else 2 * out, depth),
            self.options,
            stored.form,
            expert if stored.stacked else None,
            stored.in_out and not stored.form,
            stored.own(out),
        )

    def _tensor(self, array: str, expert: int) -> np.ndarray:
        """The part of an array's tensor for one expert, or the layer's: [out, in] or [out], with all outputs."""
        directory, stored = self.directory, self.stored_arrays[array]
        if stored.form == "mxfp4":
            blocks, scales = (self.prefix + below for below in stored.tensors(self.experts))
            return quantised.mxfp4(directory, blocks, scales, expert)
        name = self.prefix + stored.name.format(e=expert)
        if stored.form or packed.in_groups(directory, name):
            one = replace(self._matrix(array, expert), outputs=slice(None))
            return packed.expanded(one).T
        whole = directory.array(name)
        rows: slice | int = slice(None)
        if stored.stacked:
            rows = expert
        elif stored.flat:
            each = len(whole) // self.experts
            rows = slice(expert * each, (expert + 1) * each)
        elif stored.row:
            rows = 0
        found = quantised.values(directory, name, whole, rows, self.options)
        return found.T if stored.in_out else found

    def read_finite(self, array: str) -> np.ndarray:
        """A vector of the layer. Raises CheckpointError if a value is NaN or infinite."""
        found = self.read(array)
        good = np.isfinite(found.astype(np.float32))
        if not good.all():
            name, at = self.prefix + self.stored_arrays[array].name, int(np.argmin(good))
            self.directory.refuse(name, f" must be finite, got {found[at]} at {at}: download this file again")
        return found

    def release(self, array: str, expert: int = 0) -> None:
        """Drop from this process the pages that `expert` has read. The file stays in the system's cache."""
        array, expert = self._stored(array, expert)
        stored = self.stored_arrays[array]
        of_all = stored.stacked or stored.flat
        own = stored if of_all else replace(stored, name=stored.name.format(e=expert))
        for name in (self.prefix + below for below in own.tensors(self.experts)):
            whole = self.directory.array(name)
            self.directory.release(name, whole[expert] if stored.stacked else whole)

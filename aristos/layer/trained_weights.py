"""A layer's weights for training: float32 masters, the packed copies that kernels read, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ..config import MoEConfig
from ..errors import InputError
from ..kernels.cpu.convert import BFLOAT16, narrow
from ..kernels.cpu.elements import ElementType, element_type
from ..primitives.arithmetic import ExpertWeights, TransposedWeights
from ..primitives.buffers import FLOAT, LINE, aligned, zeros
from ..reproducible import Node
from .given import ROUTERS, SHARED, Arrays, expert_names, shapes
from .weights import LayerWeights

PROJECTIONS = ("up", "gate", "down")
FLOATS = LINE // FLOAT
Addresses = tuple[ExpertWeights, TransposedWeights, tuple[int, ...]]  # the last are gradients, ordered as ExpertWeights


class TrainedWeights(LayerWeights):
    """Weights of a layer that is trained: masters, packed copies for forward and backward calls, and gradients.

    masters: float32 arrays by `load`'s names; arrays of experts are [this rank's experts, ...]. transposed: projections
    that are transposed and then packed, in the element type of rows. sums: gradients of this rank's experts, with rows
    padded to vectors. common: gradients of router and shared expert in one array, one after the other. pending: for
    each backward call since the last `reduce_grads`, sums of common gradients over this rank's pieces. pieces: how many
    pieces each of these calls had. copied: ids of experts that other ranks hold too. partial: gradients of these
    experts from the rows that came to this rank, until `reduce_grads` adds them over all holders. cleared: for each
    expert, whether its gradients count as zero although `sums` holds old values, which the next backward call
    overwrites. half_changed: whether a backward call is adding to the gradients now, or was interrupted while it added.
    """

    def __init__(
        self, element: ElementType, float32: ElementType, cfg: MoEConfig, mine: list[int], copied: Collection[int] = ()
    ) -> None:
        super().__init__(element, float32, cfg, mine)
        every = shapes(cfg, "in_out")
        wanted, biases = expert_names(cfg)
        self._own = [name for name in every if name in wanted | biases]
        self.masters: Arrays = {name: np.zeros((len(mine), *every[name]), np.float32) for name in self._own}
        self.transposed: dict[str, np.ndarray] = {}
        for name in (each for each in PROJECTIONS if each in wanted):
            rows, columns = every[name]
            self.transposed[name] = aligned((len(mine), element.packed_bytes(columns, rows)), np.uint8)
        self.sums: Arrays = {name: self._zeros((len(mine), *every[name])) for name in self._own}
        self.cleared = np.zeros(len(mine), bool)
        several = [expert for expert in mine if expert in copied]
        self._copied_at = {expert: i for i, expert in enumerate(several)}
        self.partial: Arrays = {name: self._zeros((len(several), *every[name])) for name in self._own if several}
        self.router_transposed: np.ndarray | None = None
        self.shared_transposed: dict[str, np.ndarray] = {}
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}  # first entry and shape of each common gradient
        self.common = aligned((0,))
        self.pending: list[list[Node]] = []
        self.pieces: list[int] = []
        self.half_changed = False
        self._columns = {name: each[-1] for name, each in every.items()}

    def _zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        """Zeros of this shape, but with rows padded to vectors."""
        return zeros((*shape[:-1], self._float32.padded(shape[-1])), np.float32)

    # ------------------------------------------------------------ weights

    def _pack_expert(self, i: int, arrays: Arrays) -> None:
        for name in self._own:
            self.masters[name][i] = arrays.get(name, 0.0)
        self._pack_own(i)

    def _pack_own(self, i: int) -> None:
        super()._pack_expert(i, {name: master[i] for name, master in self.masters.items() if name in self._own})
        for name, transposed in self.transposed.items():
            transposed[i] = self._element.pack(self.masters[name][i], True)

    def _pack_shared(self, arrays: Arrays) -> None:
        every = shapes(self.cfg, "in_out")
        wanted, biases = expert_names(self.cfg)
        for name in SHARED:
            plain = name.removeprefix("shared_")
            if name in arrays or plain in wanted | biases:
                self.masters[name] = np.zeros(every[name], np.float32)
                self.masters[name][:] = arrays.get(name, 0.0)
        self._pack_common()

    def take_router(self, arrays: Arrays) -> None:
        for name in ROUTERS:
            if name in arrays:
                self.masters[name] = np.array(arrays[name], np.float32)
        self._pack_common()

    def _pack_common(self) -> None:
        """Pack router and shared expert, if they are loaded, and make space for their gradients."""
        super().take_router({name: self.masters[name] for name in ROUTERS if name in self.masters})
        if "router" in self.masters:
            self.router_transposed = self._float32.pack(self.masters["router"], True)
        shared = {name: self.masters[name] for name in SHARED if name in self.masters}
        if shared:
            super()._pack_shared(shared)
            names = [name for name in shared if name.removeprefix("shared_") in PROJECTIONS]
            self.shared_transposed = {name: self._element.pack(shared[name], True) for name in names}
        names = [name for name in (*ROUTERS[:2], *SHARED) if name in self.masters]
        if list(self.places) != names:
            self._place(names)

    def _place(self, names: list[str]) -> None:
        self.places, end = {}, 0
        for name in names:
            shape = self.masters[name].shape
            shape = (*shape, 1) if name == "shared_sigmoid" else shape
            padded = (*shape[:-1], self._float32.padded(shape[-1]))
            self.places[name] = (end, padded)
            end += -(-int(np.prod(padded)) // FLOATS) * FLOATS
        self.common = self.new_common(end)
        self.pending = []

    def new_common(self, size: int | None = None) -> np.ndarray:
        """Zeros for the common gradients of one piece."""
        return zeros((self.common.size if size is None else size,), np.float32)

    def part(self, common: np.ndarray, name: str) -> np.ndarray | None:
        """One gradient, with padded rows, in an array of common gradients; None if the layer has no such gradient."""
        if name not in self.places:
            return None
        first, shape = self.places[name]
        return common[first : first + int(np.prod(shape))].reshape(shape)

    def change(self, arrays: dict[str, Any], everywhere: Callable[[Callable[[int], None], Sequence[int]], Any]) -> None:
        """Write arrays over masters of the same shape, then pack all masters again. Raises InputError.

        everywhere: a function that calls a function for every item, on all workers.
        """
        for name, array in arrays.items():
            if name not in self.masters:
                raise InputError(f"update takes the layer's arrays {', '.join(self.masters)} by name, got {name}=")
            new, wanted = np.asarray(array), list(self.masters[name].shape)
            if new.dtype != np.float32 or list(new.shape) != wanted:
                raise InputError(f"{name} must be float32 of shape {wanted}, got {new.dtype} {list(new.shape)}")
        for name, array in arrays.items():
            self.masters[name][:] = array
        everywhere(self._pack_own, range(len(self.mine)))
        self._pack_common()

    # ------------------------------------------------------------ gradients

    def gradients(self) -> Arrays:
        """Views of the gradients by name, in the masters' shapes.

        Raises InputError if a backward call was interrupted while it added to the gradients.
        """
        if self.half_changed:
            raise InputError(
                "the gradients are half changed, because a backward call was interrupted while it added to them:"
                " zero_grads() sets them to zero"
            )
        self.write_zeros()
        found = {name: total[..., : self._columns[name]] for name, total in self.sums.items()}
        for name in self.places:
            whole = self.part(self.common, name)
            assert whole is not None
            shape = self.masters[name].shape
            found[name] = whole[:, 0] if name == "shared_sigmoid" else whole[..., : shape[-1]]
        return found

    def clear_gradients(self) -> None:
        """Set all gradients to zero, also unreduced ones. For experts the zeros are written later."""
        self.cleared[:] = True
        for total in self.partial.values():
            total[:] = 0
        self.common[:] = 0
        self.pending, self.pieces, self.half_changed = [], [], False

    def write_zeros(self) -> None:
        """Write the zeros of cleared gradients."""
        for i in np.flatnonzero(self.cleared):
            for total in self.sums.values():
                total[i] = 0
        self.cleared[:] = False

    def adds(self, i: int) -> bool:
        """Whether a backward call adds to the gradients of this rank's expert number i; if not, it overwrites them."""
        return self.mine[i] in self._copied_at or not self.cleared[i]

    def added(self, rows: np.ndarray) -> None:
        """After a backward call, write the zeros of experts that had no rows. rows: how many each expert had."""
        alone = np.array([expert not in self._copied_at for expert in self.mine], bool)
        self.cleared[alone & (rows > 0)] = False
        self.write_zeros()

    def partial_of(self, experts: Sequence[int]) -> list[np.ndarray]:
        """The partial gradients of these experts with copies, in an order that is the same on all ranks."""
        return [self.partial[name][self._copied_at[expert]] for expert in experts for name in self._own]

    def add_whole(self, experts: Sequence[int], whole: np.ndarray) -> None:
        """Add sums over all holders, ordered as `partial_of` returns them, to the gradients. Clear the partial ones."""
        self.write_zeros()
        at = 0
        for expert in experts:
            i, part = self.mine.index(expert), self._copied_at[expert]
            for name in self._own:
                into = self.sums[name][i]
                into += whole[at : at + into.size].reshape(into.shape)
                self.partial[name][part] = 0
                at += into.size

    def expert(self, i: int) -> Addresses:
        """Addresses of an expert's packed arrays, transposed packed arrays and gradients; 0 for absent arrays."""
        names, part = ExpertWeights._fields, self._copied_at.get(self.mine[i])
        sums, to = (self.sums, i) if part is None else (self.partial, part)
        packed, added = _addresses(self.packed, names, i), _addresses(sums, names, to)
        transposed = _addresses(self.transposed, TransposedWeights._fields, i)
        return ExpertWeights(*packed), TransposedWeights(*transposed), added

    def shared(self, common: np.ndarray) -> Addresses:
        """The same addresses for the shared expert, whose gradients lie in `common`."""
        names, projections = (
            [f"shared_{name}" for name in record._fields] for record in (ExpertWeights, TransposedWeights)
        )
        packed, transposed = _addresses(self._shared, names), _addresses(self.shared_transposed, projections)
        added = _addresses({name: self.part(common, name) for name in self.places}, names)
        return ExpertWeights(*packed), TransposedWeights(*transposed), added


def _addresses(arrays: Mapping[str, Any], names: Iterable[str], at: Any = ...) -> tuple[int, ...]:
    """Addresses of arrays, or of their parts with index `at`, by name; 0 for absent ones."""
    return tuple(arrays[name][at].ctypes.data if name in arrays else 0 for name in names)


def narrowed(array: np.ndarray, cfg: MoEConfig) -> np.ndarray:
    """`array` as contiguous rows of the layer's dtype, rounded."""
    return array if cfg.dtype == "float32" else narrow(BFLOAT16, array).view(ml_dtypes.bfloat16)


def widened(array: np.ndarray) -> np.ndarray:
    """Rows of a layer's dtype as contiguous float32."""
    return np.ascontiguousarray(array, np.float32)


def training_bytes(cfg: MoEConfig, count: int, copied: int) -> int:
    """Bytes of `TrainedWeights` that `weights.packed_bytes` leaves out: for `count` experts, `copied` with copies.

    These are the bytes of the masters (without select_bias), of the projections packed for the backward call, and of
    the gradients. Common gradients that wait for `reduce_grads` are not included.
    """
    float32, every = element_type("float32"), shapes(cfg, "in_out")
    wanted, biases = expert_names(cfg)
    own = wanted | biases
    shared = {f"shared_{name}" for name in own} if cfg.shared_ffn else set()
    common = {*ROUTERS[:2], *shared, *(["shared_sigmoid"] if cfg.shared_sigmoid else [])}

    def each(name: str) -> int:
        shape = every[name] if name != "shared_sigmoid" else (cfg.hidden, 1)
        whole = FLOAT * (int(np.prod(shape)) + int(np.prod(shape[:-1])) * float32.padded(shape[-1]))
        if name.removeprefix("shared_") not in (*PROJECTIONS, "router"):
            return whole
        element = float32 if name == "router" else element_type(cfg.dtype)
        return whole + element.packed_bytes(*shape[::-1])

    partial = sum(FLOAT * int(np.prod(every[name][:-1])) * float32.padded(every[name][-1]) for name in own)
    return count * sum(map(each, own)) + sum(map(each, common)) + copied * partial

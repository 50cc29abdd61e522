"""A layer's weights in the form that the CPU kernels read: the router and this rank's experts, packed at loading."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import job as jobs
from ..engine import schema
from ..errors import NotLoaded
from ..kernels.cpu.elements import ElementType, PackedElement, element_type
from ..primitives.arithmetic import ExpertWeights
from ..primitives.buffers import FLOAT, aligned
from ..quantised import Quantised, quantise
from .given import ROUTERS, Arrays, GivenLayer, expert_names
from .given import SHARED as SHARED_ARRAYS
from .node_weights import NodeWeights

# parts of a layer, for messages: any part, the router, the shared expert; EXPERTS + e stands for expert e
WEIGHTS, ROUTER, SHARED, EXPERTS = range(4)


def part_name(part: int) -> str:
    """The name of a part of a layer, for messages."""
    if part >= EXPERTS:
        return f"expert {part - EXPERTS}"
    return ("any weights", "a router", "the shared expert")[part]


class PackedLayer:
    """What both backends' weights have in common: the record of loaded parts. mine: ids of this rank's experts."""

    router: object = None  # None before it is loaded
    version = 0  # how often this rank's weights of the layer have changed

    def __init__(self, cfg: MoEConfig, mine: list[int]) -> None:
        self.cfg, self.mine = cfg, mine
        self._has = np.zeros(len(mine), bool)
        self._has_shared = cfg.shared_ffn == 0

    @property
    def squares(self) -> np.ndarray:
        """[2] sums of squares: of the packed weights' errors, and of the plain weights; see `Quantised.squares`."""
        return np.zeros(2)

    @property
    def complete(self) -> bool:
        """Whether every expert of this rank, and the shared expert, is loaded."""
        return bool(self._has.all()) and self._has_shared

    def take_expert(self, i: int, arrays: Arrays) -> None:
        """Pack this rank's expert number i over its earlier weights. If that fails, the expert is missing."""
        self._has[i] = False
        self._pack_expert(i, arrays)
        self._has[i] = True

    def take_shared(self, arrays: Arrays) -> None:
        """Pack the shared expert. If that fails, it is missing."""
        self._has_shared = False
        self._pack_shared(arrays)
        self._has_shared = True

    def take_router(self, arrays: Arrays) -> None:
        """Pack the given arrays of the router; the others stay."""
        raise NotImplementedError

    def forget(self) -> None:
        """Count every part as missing. Memory for the experts stays allocated."""
        self._has[:] = False
        self._has_shared = self.cfg.shared_ffn == 0
        self._forget_router()

    def _pack_expert(self, i: int, arrays: Arrays) -> None:
        raise NotImplementedError

    def _pack_shared(self, arrays: Arrays) -> None:
        raise NotImplementedError

    def _forget_router(self) -> None:
        raise NotImplementedError

    def take_layer(self, given: GivenLayer) -> None:
        """Pack everything that `load` was given, expert by expert."""
        for i in range(len(self.mine)):
            self.take_expert(i, given.held(i))
        if given.routers:
            self.take_router(given.routers)
        if given.shared_expert:
            self.take_shared(given.shared_expert)

    def free(self) -> None:
        """Free memory that is not Python's."""

    def check(self, layer: int) -> None:
        """Raise NotLoaded if an expert of this rank, or the shared expert, is missing."""
        missing = [e for e, has in zip(self.mine, self._has) if not has]
        if missing:
            named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            experts = "experts" if len(missing) > 1 else "expert"
            raise NotLoaded(f"layer {layer} lacks {experts} {named}: call load_expert() first", EXPERTS + missing[0])
        if not self._has_shared:
            raise NotLoaded(f"layer {layer} lacks its shared expert: call load_shared() first", SHARED)


def expert_bytes(element: ElementType, cfg: MoEConfig, ffn: int | None = None) -> dict[str, int]:
    """Bytes of each packed array of one expert, by name, in the order in which they lie in memory.

    ffn: the expert's width, cfg.ffn by default.
    """
    wanted, biases = expert_names(cfg)
    width = cfg.ffn if ffn is None else ffn
    shape = {"up": (cfg.hidden, width), "gate": (cfg.hidden, width), "down": (width, cfg.hidden)}
    matrices = {name: element.packed_bytes(*shape[name]) for name in sorted(wanted)}
    columns = {name: element.padded(shape[name.removesuffix("_bias")][1]) for name in sorted(biases)}
    return matrices | {name: FLOAT * count for name, count in columns.items()}


class LayerWeights(PackedLayer):
    """One layer's weights for the CPU kernels: this rank's experts in slot order, and the router.

    Memory for all experts is reserved at once; each expert is packed into it, array by array, when it is loaded. This
    rank is the first to write the pages, so Linux takes them from the rank's NUMA domain. float32: the element type of
    routers, for the instruction set of `element`. home: memory for experts that local peers may read, and the layer's
    number there.
    """

    def __init__(
        self,
        element: ElementType,
        float32: ElementType,
        cfg: MoEConfig,
        mine: list[int],
        home: tuple[NodeWeights, int] | None = None,
    ) -> None:
        super().__init__(cfg, mine)
        self._element, self._float32, self._home = element, float32, home
        self.packed = {}
        if home is not None:
            home[0].prepare(home[1])
        for name, nbytes in expert_bytes(element, cfg).items():
            if home is not None:
                memory = home[0].own(home[1], name)
            else:
                memory = aligned((len(mine), nbytes), np.uint8)
            self.packed[name] = memory.view(np.float32) if name.endswith("_bias") else memory
        self.router: np.ndarray | None = None
        self._lost: dict[tuple[int, str], np.ndarray] = {}  # `squares` by expert and matrix; -1: the shared expert
        self._biases: dict[str, np.ndarray] = {}
        self._shared: dict[str, np.ndarray] = {}

    def _pack_shared(self, arrays: Arrays) -> None:
        packed = {}
        for name, array in arrays.items():
            if name == "shared_sigmoid":
                packed[name] = self._float32.pack(array[:, None])
            else:
                packed[name] = self._element.pack_bias(array) if "bias" in name else self._pack(-1, name, array)
        self._shared = packed

    def _pack_expert(self, i: int, arrays: Arrays) -> None:
        for name, packed in self.packed.items():
            if not name.endswith("_bias"):
                packed[i] = self._pack(i, name, arrays[name])
            elif name in arrays:
                packed[i] = self._element.pack_bias(arrays[name])
            else:
                packed[i] = 0

    def _pack(self, i: int, name: str, matrix: Any) -> np.ndarray:
        """Pack a matrix of expert i."""
        self._lost.pop((i, name), None)
        if isinstance(self._element, PackedElement) and not isinstance(matrix, Quantised):
            plain, matrix = matrix, quantise(matrix, self._element.weight)
            self._lost[i, name] = matrix.squares(plain)
        return self._element.pack(matrix)

    @property
    def squares(self) -> np.ndarray:
        return sum(self._lost.values(), np.zeros(2))

    def _forget_router(self) -> None:
        self.router, self._biases = None, {}

    def take_router(self, arrays: Arrays) -> None:
        if "router" in arrays:
            self.router = self._float32.pack(arrays["router"])
        for name in ROUTERS[1:]:
            if name in arrays:
                self._biases[name] = np.array(arrays[name], np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all packed arrays, without the router's biases."""
        router = 0 if self.router is None else self.router.nbytes
        return sum(array.nbytes for part in (self.packed, self._shared) for array in part.values()) + router

    def fill(self, job: np.ndarray) -> None:
        """Write the part `weights` of a job: the addresses of arrays, 0 for absent ones."""
        arrays = dict.fromkeys((*ExpertWeights._fields, *ROUTERS, *SHARED_ARRAYS)) | self.packed | self._shared
        arrays |= self._biases | {"router": self.router}
        found = {name: 0 if array is None else array.ctypes.data for name, array in arrays.items()}
        for name in ("up", "down", "up_bias", "down_bias"):
            packed = self.packed.get(name)
            found[f"{name}_step"] = 0 if packed is None else packed.strides[0]
        jobs.fill(job, schema.WEIGHTS, schema.CPU, loaded=self.complete, version=self.version, **found)
        if self._home is not None:
            self._home[0].fill(job, self._home[1])


def packed_bytes(cfg: MoEConfig, count: int) -> int:
    """Bytes of `LayerWeights` with `count` experts and the shared expert, all their biases, and a router."""
    float32, element = element_type("float32"), element_type(cfg.dtype, cfg.precision, cfg.packed)
    shared = sum(expert_bytes(element, cfg, cfg.shared_ffn).values()) if cfg.shared_ffn else 0
    shared += float32.packed_bytes(cfg.hidden, 1) if cfg.shared_sigmoid else 0
    own = count * sum(expert_bytes(element, cfg).values())
    return own + shared + float32.packed_bytes(cfg.hidden, cfg.columns)

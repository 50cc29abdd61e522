"""The options of a layer object, checked before the object is made: its backend, and a configuration of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..config import BACKENDS, MOVES, MoEConfig, whole
from ..errors import InputError
from ..placement import Plan
from ..row_types import ROW_TYPES
from ..transport.limits import Limits
from .arguments import DEFAULT_TIMEOUT, usable_limits, usable_nodes
from .backend import COMMON, Backend
from .cpu import CpuBackend

MOST_LAYERS = 1 << 20
Schedule = Literal["fused", "bulk"]


@dataclass(frozen=True)
class Options:
    """Options of a layer object as the caller passed them, unchecked; see `MoE`."""

    cfg: Any
    layers: Any
    threads: Any
    placement: Any
    ranks_per_node: Any
    backend: Any
    train: Any
    tape_bytes: Any
    schedule: Any = "fused"
    timeout: Any = DEFAULT_TIMEOUT
    absent_timeout: Any = None
    plan: Plan | None = None
    sms: Any = None
    moves: Any = "auto"

    # ------------------------------------------------------------ used before the ranks have compared their options

    @property
    def limits(self) -> Limits:
        """See `usable_limits`."""
        return usable_limits(self.timeout, self.absent_timeout)

    @property
    def nodes(self) -> int | None:
        """See `usable_nodes`."""
        return usable_nodes(self.ranks_per_node)

    @property
    def backend_name(self) -> str:
        """The name of the backend; "cpu" in place of a name that `checked_options` refuses."""
        name = "cpu" if self.backend is None else str(self.backend)
        return name if name in BACKENDS else "cpu"

    @property
    def experts(self) -> int | None:
        """The number of experts of the first configuration; None if `cfg` does not hold one."""
        first = self.cfg[0] if isinstance(self.cfg, list | tuple) and self.cfg else self.cfg
        return getattr(first, "experts", None)


def backend_class(name: str) -> type[Backend]:
    """The class of a backend. CudaBackend is imported only here, because it needs numba-cuda."""
    if name != "cuda":
        return CpuBackend
    from .cuda import CudaBackend

    return CudaBackend


def check_moves(moves: Any, kind: type[Backend], schedule: Any) -> None:
    """Raise InputError unless this backend and schedule can do `moves`."""
    if not isinstance(moves, str) or moves not in MOVES:
        raise InputError(f"moves must be one of {', '.join(MOVES)}, got {moves!r}")
    if moves == "experts" and (not kind.reads_peers or schedule == "bulk"):
        what = "schedule='bulk'" if kind.reads_peers else f"backend={kind.name!r}"
        raise InputError(f"moves='experts' needs backend='cpu' and schedule='fused', got {what}: leave moves out")


def check_training(cfg: MoEConfig, kind: type[Backend], moves: str) -> None:
    """Raise InputError for a layer that cannot be trained."""
    if not kind.trains:
        raise InputError(f"train=True requires backend='cpu', got {kind.name!r}")
    for name, value, wanted in (
        ("dtype", cfg.dtype, tuple(name for name, each in ROW_TYPES.items() if each.trained)),
        ("precision", cfg.precision, ("highest",)),
    ):
        if value not in wanted:
            raise InputError(f"train=True requires {name}={' or '.join(map(repr, wanted))}, got {value!r}")
    if cfg.packed is not None:
        raise InputError(f"train=True requires plain weights, got weight_dtype={cfg.packed.name!r}: leave it out")
    if cfg.combine == "sums":
        raise InputError("train=True requires combine='rows', got combine='sums': leave combine out")
    if moves == "experts":
        raise InputError("train=True requires moves='tokens' or 'auto', got moves='experts': leave moves out")


def checked_options(cfg: Any, layers: Any, schedule: Any, backend: Any) -> tuple[MoEConfig, ...]:
    """The configuration of each layer. Raises InputError if an argument is wrong for every backend."""
    if backend is not None and not (isinstance(backend, str) and backend in BACKENDS):
        raise InputError(f"backend must be None or one of {', '.join(BACKENDS)}, got {backend!r}")
    listed = isinstance(cfg, list | tuple)
    cfgs = tuple(cfg) if listed else (cfg,)
    if not cfgs:
        raise InputError("cfg must be an aristos.MoEConfig or a list of them, got an empty list")
    for number, each in enumerate(cfgs):
        if not isinstance(each, MoEConfig):
            name = f"cfg[{number}]" if listed else "cfg"
            raise InputError(f"{name} must be an aristos.MoEConfig, got {type(each).__name__}")
        for name in COMMON:
            if getattr(each, name) != getattr(cfgs[0], name):
                raise InputError(
                    f"all layers of one object must have the same {name}, got {getattr(cfgs[0], name)!r} in layer 0 and"
                    f" {getattr(each, name)!r} in layer {number}: make an object for each of the two layers"
                )
    if not isinstance(schedule, str) or schedule not in ("fused", "bulk"):
        raise InputError(f"schedule must be 'fused' or 'bulk', got {schedule!r}")
    count = whole("layers", layers, MOST_LAYERS, f"an int in 1..{MOST_LAYERS}")
    if not listed:
        return cfgs * count
    if count != 1:
        raise InputError(f"layers must be left out where cfg is a list, got {layers!r}")
    return cfgs

"""Options of a layer before it exists: its backend, and a configuration for each layer."""

from __future__ import annotations

from typing import Any, Literal

from ..config import BACKENDS, MOVES, MoEConfig, whole
from ..errors import InputError
from .backend import COMMON, Backend
from .cpu import CpuBackend

MOST_LAYERS = 1 << 20
Schedule = Literal["fused", "bulk"]


def backend_class(name: str) -> type[Backend]:
    """The class of a backend, imported only if it is used: cuda needs numba-cuda."""
    if name != "cuda":
        return CpuBackend
    from .cuda import CudaBackend

    return CudaBackend


def check_moves(moves: Any, backend: str, schedule: Any) -> None:
    """Raise InputError unless `moves` can be had with this backend and schedule."""
    if not isinstance(moves, str) or moves not in MOVES:
        raise InputError(f"moves must be one of {', '.join(MOVES)}, got {moves!r}")
    if moves == "experts" and (backend == "cuda" or schedule == "bulk"):
        what = "backend='cuda'" if backend == "cuda" else "schedule='bulk'"
        raise InputError(f"moves='experts' is for CPUs and the fused schedule: with {what} tokens always travel")


def checked_options(cfg: Any, layers: Any, schedule: Any, backend: Any) -> tuple[MoEConfig, ...]:
    """The configuration of each layer. Raises InputError for an option that no backend has."""
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
                    f"layers of one object must have equal {', '.join(COMMON)}, got {name}={getattr(each, name)!r} in"
                    f" layer {number} and {getattr(cfgs[0], name)!r} in layer 0: make an object for each"
                )
    if not isinstance(schedule, str) or schedule not in ("fused", "bulk"):
        raise InputError(f"schedule must be 'fused' or 'bulk', got {schedule!r}")
    count = whole("layers", layers, MOST_LAYERS, f"an int in 1..{MOST_LAYERS}")
    if not listed:
        return cfgs * count
    if count != 1:
        raise InputError(f"layers must be left out where cfg is a list, got {layers!r}")
    return cfgs

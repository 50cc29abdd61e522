"""The suites that exist: one file each under `suites/`, found by being there.

A suite is a function of a `Context` that returns a `Result`, marked with `@suite`. It refuses to know what any
suite measures.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .context import Context, Result
    from .gpu.clock import Gpu

    Run = Callable[[Context], Result]
    CudaRun = Callable[[Context, Gpu], Result]

ORDER = ("put", "signal", "exchange", "progress", "gemm", "layer", "idle", "replay", "plan")

_suites: dict[str, Suite] = {}
_on_cuda: dict[str, CudaRun] = {}


@dataclass(frozen=True)
class Suite:
    """ranks, cards: fewest ranks it makes sense on, on CPUs and on cards. share: part of the time of a run of all
    suites. default: whether such a run holds it without being asked. kernels: whether it needs the layer's compiled
    code."""

    name: str
    summary: str
    run: Run
    ranks: int
    share: float
    default: bool
    kernels: bool
    cards: int = 1


def suite(
    name: str,
    summary: str,
    *,
    ranks: int = 1,
    share: float = 1.0,
    default: bool = True,
    kernels: bool = True,
    cards: int = 1,
) -> Callable[[Run], Run]:
    """Register the decorated function as a suite."""

    def register(run: Run) -> Run:
        _suites[name] = Suite(name, summary, run, ranks, share, default, kernels, cards)
        return run

    return register


def on_cuda(name: str) -> Callable[[CudaRun], CudaRun]:
    """Register the decorated function as what a suite does on cards."""

    def register(run: CudaRun) -> CudaRun:
        _on_cuda[name] = run
        return run

    return register


def cuda_suites() -> dict[str, CudaRun]:
    """What the suites that exist for cards do there, in the order a run takes them."""
    from . import gpu as package

    _import_all(package, ORDER)  # others hold kernels, and need a compiler
    return {name: _on_cuda[name] for name in ORDER if name in _on_cuda}


def _import_all(package: ModuleType, names: tuple[str, ...] = ()) -> None:
    """Import a package's modules, or those of them that have these names."""
    for module in pkgutil.iter_modules(package.__path__):
        if not names or module.name in names:
            importlib.import_module(f"{package.__name__}.{module.name}")


def suites() -> dict[str, Suite]:
    """All suites by name, in the order a run takes them."""
    from . import suites as package

    _import_all(package)
    place = {name: i for i, name in enumerate(ORDER)}
    return dict(sorted(_suites.items(), key=lambda item: place.get(item[0], len(place))))

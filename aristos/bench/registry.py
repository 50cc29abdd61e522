"""The declarations of suites: a decorator for each backend, and all suites declared so far.

A suite is a function marked with `@suite` (run on CPUs) or `@gpu_suite` (run on GPUs). `suites.known` imports every
module in the folder `suites/`, so no list of names is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .world import World

Backend = Literal["cpu", "cuda"]
Run = Callable[..., Any]  # (Context) -> Result on CPUs, (Context, BenchGpu) -> Result on GPUs


@dataclass(frozen=True)
class Suite:
    """The declaration of a suite.

    order: suites run by ascending order. ranks: the fewest ranks that the suite needs. share: its weight when several
    suites divide the time of a run. default: whether a run that names no suite includes it. kernels: whether on CPUs
    it needs the layer's compiled kernels. prepare: a function called with the ranks before the clock starts, which
    compiles the code that only this suite needs.
    """

    name: str
    summary: str
    run: Run
    order: int
    ranks: int = 1
    share: float = 1.0
    default: bool = True
    kernels: bool = True
    prepare: Callable[[World], None] | None = None


_declared: dict[Backend, dict[str, Suite]] = {"cpu": {}, "cuda": {}}


def declared(backend: Backend) -> dict[str, Suite]:
    """Suites of the modules imported so far, by name, in the order in which they run."""
    return {each.name: each for each in sorted(_declared[backend].values(), key=lambda s: (s.order, s.name))}


def suite(name: str, summary: str, backend: Backend = "cpu", **rest: Any) -> Callable[[Run], Run]:
    """Declare the decorated function, (Context) -> Result, as a suite. rest: `order` and other fields of `Suite`."""

    def declare(run: Run) -> Run:
        _declared[backend][name] = Suite(name, summary, run, **rest)
        return run

    return declare


def gpu_suite(name: str, summary: str, **rest: Any) -> Callable[[Run], Run]:
    """Declare the decorated function, (Context, BenchGpu) -> Result, as a suite on GPUs.

    Its module must import neither a CUDA compiler nor a driver at its top: `--help` imports it on every machine.
    """
    return suite(name, summary, "cuda", **rest)

"""The options of a run as plain values, and facts that follow from the options alone. The module parses nothing."""

from __future__ import annotations

from dataclasses import dataclass

from . import world
from .registry import Backend

ALL_SECONDS = 110.0  # seconds for the default suites; with start-up and oracle a run takes two minutes
SUITE_SECONDS = 25.0  # seconds of each suite named on the command line


class UsageError(Exception):
    """The error for a command line that cannot be run; exit code 2."""


@dataclass(frozen=True)
class Options:
    """The user's options. Where an option is None, the preset or the machine decides."""

    suites: tuple[str, ...] = ()
    preset: str | None = None
    scale: int | None = None
    tokens: tuple[int, ...] | None = None
    hidden: int | None = None
    ffn: int | None = None
    experts: int | None = None
    top_k: int | None = None
    activation: str | None = None
    dtype: str | None = None
    precision: str = "highest"
    threads: int | None = None
    ranks_per_node: int | None = None
    levels: int = 1
    iters: int | None = None
    warmup: int = 2
    seconds: float | None = None
    timeout: float | None = None  # seconds
    seed: int = 0
    routing: str | None = None
    schedule: str = "both"
    moves: str = "auto"
    backend: Backend = "cpu"
    json: bool = False
    watch: bool = False
    out: str = "aristos-results.h5"
    timeline: str | None = None
    alpha: tuple[float, ...] = (2.0, 50.0, 1000.0)  # us
    rate: tuple[float, ...] = (100.0, 25.0, 10.0, 1.0)  # GB/s

    @property
    def schedules(self) -> tuple[str, ...]:
        return ("bulk", "fused") if self.schedule == "both" else (self.schedule,)

    @property
    def budget(self) -> float:
        """Seconds for all suites together."""
        if self.seconds is not None:
            return self.seconds
        return SUITE_SECONDS * len(self.suites) if self.suites else ALL_SECONDS

    @property
    def limit(self) -> float:
        """Seconds that a rank may wait for other ranks: far more than their measurements can take."""
        return max(world.LIMIT, 10.0 * max(self.budget, float(self.iters or 0)))


def is_file(routing: str | None) -> bool:
    """Whether `--routing` names a trace instead of a generator."""
    return routing is not None and routing not in ("router", "uniform", "zipf", "one")

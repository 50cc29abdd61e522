"""The parts of a cluster that its ranks use, as protocols. R: the class of ranks."""

from __future__ import annotations

from typing import Protocol, TypeVar

from .cases import Case
from .copies import Copies
from .memory_model import Memory
from .scheduler import Scheduler

R = TypeVar("R")
Checked = TypeVar("Checked", contravariant=True)


class Checker(Protocol[Checked]):
    """The methods of `checks.Checks` that a rank calls."""

    def count(self, weights: int, row: list[int], share: int) -> None: ...

    def epoch(self, opening: Checked) -> None: ...

    def closed(self, rank: Checked) -> None: ...

    def poison_read(self, rank: Checked, forwarder: int, epoch: int, origin: int, cause: int) -> None: ...


class Surroundings(Protocol[R]):
    """The attributes and methods of `cluster.Cluster` that ranks and checks use."""

    case: Case
    pause_ns: int
    sched: Scheduler
    memory: Memory
    ranks: list[R]
    copies: Copies

    @property
    def checks(self) -> Checker[R]: ...

    def describe(self) -> str: ...

    def doom(self, rank: int, steps: int) -> None: ...

    def look(self, rank: R) -> int: ...

    def rest(self) -> None: ...

"""A pytest plugin: which combinations of a sweep over kernels, types and instruction sets a run takes.

All combinations would take an hour, so runs take turns. Each run has a number, which changes from hour to hour and from
day to day. It takes one combination in PARTS, and every value of each axis but packed formats beside guard pages. The
end of a run that failed says the number. `KERNELS=17` takes the combinations of number 17 again, and `KERNELS=all`
takes all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest

PARTS = 4
NUMBERS = 120  # PARTS, and twice each number of instruction sets, divide it
HOUR, DAY = 3600, 86400  # seconds
T = TypeVar("T")


def everything() -> bool:
    """Whether the run takes all combinations."""
    return os.environ.get("KERNELS") == "all"


def number() -> int:
    """The number of a run; 0 if it takes everything."""
    return 0 if everything() else int(os.environ["KERNELS"])


def share(combinations: Sequence[T]) -> Sequence[T]:
    """The combinations that this run takes: every PARTS-th of them."""
    return combinations if everything() else combinations[number() % PARTS :: PARTS]


def turn(values: Sequence[T], place: int = 0) -> Sequence[T]:
    """One of the values, the next one in each run. place: how many values a sweep is ahead of others."""
    if everything() or not values:
        return values
    at = (number() + place) % len(values)
    return values[at : at + 1]


def pytest_configure() -> None:
    """Set the number, for workers and other processes too. A run at the same time of the next day has another one."""
    now = time.time()
    os.environ.setdefault("KERNELS", str(int(now // HOUR + 7 * (now // DAY)) % NUMBERS))
    if not everything() and not os.environ["KERNELS"].isdecimal():
        raise pytest.UsageError(f"KERNELS must be a number or all, got {os.environ['KERNELS']}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if terminalreporter.stats.get("failed") and not everything():
        terminalreporter.write_line(f"KERNELS={number()} repeats the combinations that this run took")

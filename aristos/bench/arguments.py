"""Number types for argparse, shared by the commands."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

MOST_SECONDS = 1e6
MOST_AMOUNT = 1e6
MOST_LATENCY = 1e6  # us
LEAST_BANDWIDTH = 1e-3  # GB/s


T = TypeVar("T", int, float)


def number(convert: Callable[[str], T], fits: Callable[[T], bool], must: str) -> Callable[[str], T]:
    """A type for argparse: `convert`, then an error unless the value fits. must: what a value must be, in words."""

    def converted(text: str) -> T:
        value = convert(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"must be {must}, got {text}")
        return value

    converted.__name__ = convert.__name__  # argparse's message has this name if it cannot convert a text
    return converted


positive = number(int, lambda value: value >= 1, "at least 1")
not_negative = number(int, lambda value: value >= 0, "at least 0")
seconds = number(
    float, lambda value: 0 < value < MOST_SECONDS, f"a positive number of seconds, less than {MOST_SECONDS:.0f}"
)
amount = number(float, lambda value: 0 < value < MOST_AMOUNT, f"a positive number, less than {MOST_AMOUNT:g}")


def nonempty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a name, got '': check that the shell's variable is set")
    return text


def counts(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def latencies(text: str) -> tuple[float, ...]:
    """`2us,1ms` -> microseconds."""
    found = tuple(_with_unit(part, MICROSECONDS) for part in _units_of_all(text))
    if max(found) > MOST_LATENCY:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_LATENCY / 1e6:g} s, got {text!r}")
    return found


def bandwidths(text: str) -> tuple[float, ...]:
    """`25,1GB/s` -> GB/s."""
    found = tuple(_with_unit(part, {"GB/s": 1.0, "MB/s": 1e-3}) for part in _units_of_all(text))
    if min(found) < LEAST_BANDWIDTH:
        raise argparse.ArgumentTypeError(f"must be at least {LEAST_BANDWIDTH * 1e3:g} MB/s, got {text!r}")
    return found


def _units_of_all(text: str) -> list[str]:
    """The parts of a list. A part without a unit gets the unit of the next part that has one."""
    parts: list[str] = []
    unit = ""
    for part in reversed(text.split(",")):
        unit = part.lstrip("0123456789.") or unit
        parts.insert(0, part if part.endswith(unit) else part + unit)
    return parts


def _with_unit(text: str, units: dict[str, float]) -> float:
    unit = text.lstrip("0123456789.")
    if unit not in units:
        raise argparse.ArgumentTypeError(f"must be numbers with one of the units {', '.join(units)}, got {text!r}")
    value = float(text.removesuffix(unit)) * units[unit]
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text!r}")
    return value


latencies.__name__ = "list of times"
bandwidths.__name__ = "list of rates"
counts.__name__ = "list of int"

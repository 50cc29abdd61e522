"""Checks of the numbers that describe a machine. Each error names the field."""

from __future__ import annotations

from typing import Any

from ..errors import InputError

LARGEST = 1e15
MOST_LINKS = 1 << 19  # most links of a network; the two directions count as two
MOST_LEVELS = 16  # levels of a fat tree, axes of a torus


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def check_number(field: str, value: Any, *, positive: bool = False) -> None:
    """Raise InputError unless a value is a number of at least 0, or with `positive` of more than 0."""
    if not is_number(value) or value < 0 or (positive and value == 0):
        least = "positive" if positive else "not negative"
        raise InputError(f"{field} must be a {least} number, got {value!r}")


def check_count(field: str, value: Any) -> None:
    """Raise InputError unless a value is a whole number of at least 1."""
    if type(value) is not int or not 1 <= value <= MOST_LINKS:
        raise InputError(f"{field} must be a whole number from 1 to {MOST_LINKS}, got {value!r}"[:300])


def check_counts(field: str, values: Any, number: int | None = None) -> None:
    """Raise InputError unless values are whole numbers of at least 1; `number` of them, if it is given."""
    if not isinstance(values, tuple) or not values or (number is not None and len(values) != number):
        how_many = "a list of" if number is None else f"{number}"
        shown = list(values) if isinstance(values, tuple) else values
        raise InputError(f"{field} must be {how_many} whole numbers, got {shown!r}"[:300])
    if len(values) > MOST_LEVELS:
        raise InputError(f"{field} must have at most {MOST_LEVELS} numbers, got {len(values)}")
    for each in values:
        check_count(f"each of {field}", each)


def by_level(field: str, values: Any, levels: int) -> tuple[float, ...]:
    """A number for each level, from at most as many numbers; the last one is that of all further levels."""
    if not isinstance(values, tuple) or not 1 <= len(values) <= levels:
        shown = list(values) if isinstance(values, tuple) else values
        raise InputError(f"{field} must be a number, or a list of at most {levels}, one a level, got {shown!r}"[:300])
    for each in values:
        check_number(field, each, positive=True)
    return (*values, *[values[-1]] * (levels - len(values)))

"""Checks of a problem's fields: numbers and counts. Each error names the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kernel_cache import regular
from kernel_cache.errors import quoted

from ..errors import InputError

T = TypeVar("T")
LARGEST, SMALLEST = 1e30, 1e-30  # limits of numbers and of positive numbers; products of a few numbers stay finite
# a device whose memory holds no expert computes nothing: its rate is this share of the slowest rate
IDLE = 1e-12


class ProblemError(InputError):
    """The error if a problem's field has the wrong value or shape.

    Attributes
    ----------
    field : str
        The field's name.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field} {text}"[:400])
        self.field = field


def read_json(path: str | Path, what: str) -> Any:
    """Read a file's JSON. what: what the file should contain, for the message. Raises ProblemError if the text is no
    JSON, OSError if the file cannot be read."""
    text = b""
    try:
        text = regular.read(path)
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as why:
        raise ProblemError(what, f"is not JSON: {why if text.strip() else 'the file is empty'}") from why


def parse_file(path: str | Path, what: str, parse: Callable[[Any], T]) -> T:
    """The result of `parse` for a file's JSON. Raises as `read_json` and `parse` do, with the file's name in messages.

    what: see `read_json`."""
    try:
        return parse(read_json(path, what))
    except ProblemError as why:
        why.args = (f"{path}: {why}",)
        raise


def require(data: Mapping[str, Any], *keys: str, where: str = "", hint: str = "") -> None:
    """Raise ProblemError for the first key that `data` lacks. where: the field that holds `data`, and a dot."""
    for key in keys:
        if key not in data:
            raise ProblemError(f"{where}{key}", f"is missing{hint}")


def number(where: str, value: Any, *, positive: bool = False) -> float:
    """The value as a number from 0 (if `positive`: from SMALLEST) to LARGEST. Raises ProblemError for other values."""
    want = f"a number from {SMALLEST:g} to {LARGEST:g}" if positive else f"a number from 0 to {LARGEST:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProblemError(where, f"must be {want}, got {quoted(value)}")
    if isinstance(value, int) and value.bit_length() > 128:
        raise ProblemError(where, f"must be {want}, got an integer of {value.bit_length()} bits")
    if not (SMALLEST if positive else 0) <= value <= LARGEST:
        raise ProblemError(where, f"must be {want}, got {quoted(value)}")
    return float(value)


def count(where: str, value: Any, least: int = 0) -> int:
    """The value as an integer of at least `least` and under 2**48. Raises ProblemError for other values."""
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole) or not least <= value < 1 << 48:
        raise ProblemError(where, f"must be an integer of at least {least} and under 2**48, got {quoted(value)}")
    return int(value)

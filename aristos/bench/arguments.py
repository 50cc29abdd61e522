"""Number types for argparse, shared by the commands."""

from __future__ import annotations

import argparse

MOST_SECONDS = 1e6


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"must be a positive number of seconds, less than {MOST_SECONDS:.0f}, got {text}"
        )
    return value


def counts(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


positive.__name__ = "int"  # argparse names the type of what it cannot convert
not_negative.__name__ = "int"
seconds.__name__ = "float"
counts.__name__ = "list of int"

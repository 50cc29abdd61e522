"""Lists of CPUs as the kernel and nvidia-smi print them: 0-3,8,10-11."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def parse(text: str) -> frozenset[int]:
    """'0-3,8' -> {0, 1, 2, 3, 8}; '' -> empty. Raises ValueError."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < 1 << 20:
            raise ValueError(f"a list of CPUs is like 0-3,8, got {text!r}")
        found.update(range(low, high + 1))
    return frozenset(found)


def show(cpus: Iterable[int]) -> str:
    """{0, 1, 2, 3, 8} -> '0-3,8'."""
    return ",".join(f"{low}-{high}" if low < high else str(low) for low, high in runs(sorted(cpus)))


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """[0, 1, 2, 8] -> [(0, 2), (8, 8)]; numbers in ascending order."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found

"""Lists of CPUs as the kernel and nvidia-smi print them: 0-3,8,10-11."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kernel_cache.texts import whole

MOST = 1 << 16  # CPUs of a list; Linux itself ends at 8192


def parse(text: str) -> frozenset[int]:
    """'0-3,8' -> {0, 1, 2, 3, 8}; '' -> empty. Raises ValueError."""
    found: set[int] = set()
    left = MOST
    for part in text.strip().split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        low, high = whole(first.strip()), whole((last if dash else first).strip())
        if low is None or high is None or low > high or (left := left - (high - low + 1)) < 0:
            raise ValueError(f"a list of CPUs is like 0-3,8, and not above {MOST} CPUs, got {text[:200]!r}")
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

"""Lists of CPUs as the kernel and nvidia-smi print them: 0-3,8,10-11."""

from __future__ import annotations

from collections.abc import Iterable

from kernel_cache.texts import ranges, whole

MOST = 1 << 16  # the most CPUs of a list; Linux itself allows 8192


def parse(text: str) -> frozenset[int]:
    """'0-3,8' -> {0, 1, 2, 3, 8}; '' -> empty. Raises ValueError."""
    found: set[int] = set()
    left = MOST
    for part in text.strip().split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        low, high = whole(first.strip()), whole((last if dash else first).strip())
        if low is None or high is None or low > high or (left := left - (high - low + 1)) < 0:
            raise ValueError(f"a list of CPUs must look like 0-3,8 and name at most {MOST} CPUs, got {text[:200]!r}")
        found.update(range(low, high + 1))
    return frozenset(found)


def show(cpus: Iterable[int]) -> str:
    """{0, 1, 2, 3, 8} -> '0-3,8'."""
    return ranges(cpus)

"""Arrays on huge pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aristos.primitives.huge_pages import HUGE, on_huge_pages


def flags_at(address: int) -> list[str]:
    """The flags of the mapping that holds an address, as /proc/self/smaps shows them."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(span[1], 16) <= address < int(span[2], 16)
        elif here and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no mapping holds the address")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="Linux without huge pages")
def test_linux_is_asked_for_the_huge_pages_that_an_array_fills():
    made = on_huge_pages(2 * HUGE + 100)
    assert made.shape == (2 * HUGE + 100,)
    assert made.ctypes.data % HUGE == 0
    assert not made.any()
    asked = ["hg" in flags_at(made.ctypes.data + at) for at in (0, 2 * HUGE - 1, 2 * HUGE)]
    assert asked == [True, True, False]
    assert "hg" not in flags_at(on_huge_pages(HUGE - 1).ctypes.data)

"""Arrays beside pages that nothing may touch: a process that touches such a page dies.

`test_isas.py` calls every CPU kernel with such arrays.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SUPPORT = Path(__file__).resolve().parents[1] / "support"
TOUCH = """
import ctypes, sys
from guarded import Arrays
made = Arrays(sys.argv[1]).empty("x", (100,))
print("made", flush=True)
ctypes.string_at(made.ctypes.data + int(sys.argv[2]), 1)
"""


@pytest.mark.parametrize(
    ("side", "byte", "dies"),
    [
        ("end", 399, False),
        ("end", 400, True),
        ("start", 0, False),
        ("start", -1, True),
        ("far", 400, False),
    ],
)
def test_a_byte_beyond_an_array_ends_the_process(side, byte, dies):
    words = [sys.executable, "-c", TOUCH, side, str(byte)]
    done = subprocess.run(words, cwd=SUPPORT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "made\n"
    assert done.returncode == (-signal.SIGSEGV if dies else 0), done.stderr

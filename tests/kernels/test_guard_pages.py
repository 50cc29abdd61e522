"""No CPU kernel reads or writes beyond an array that it is given: arrays lie beside pages that nothing may touch.

`guarded_kernels` has the calls; a process that touches such a page dies, and its last line names the call.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aristos.primitives import isa
from aristos.weight_types import FORMATS

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


@pytest.mark.parametrize("name", isa.usable())
@pytest.mark.parametrize("part", ["plain", "backward", *FORMATS])
def test_kernels_touch_nothing_beyond_their_arrays(part, name):
    env = os.environ | {"ARISTOS_ISA": name}
    words = [sys.executable, str(SUPPORT / "guarded_kernels.py"), part]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=900)
    said = done.stdout.splitlines()
    assert done.returncode == 0, f"{said[-1:]}, after {len(said)} calls\n{done.stderr[-4000:]}"
    assert len(said) > 30

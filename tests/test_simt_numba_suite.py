"""Kernels nobody here wrote: numba-cuda's own tests, run from the installed package on the machine.

A test counts if it launches kernels that need no library beyond libdevice; what asks for compiled objects, C++
linked in (float16 arithmetic), a heap or a second process is refused, and says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
pytest.importorskip("filecheck", reason="numba-cuda's tests need filecheck")

NAMES = ("sync", "sm", "warp_ops", "idiv", "slicing", "constmem", "powi", "recursion", "blackscholes", "record_dtype")
MODULES = [*(f"cudapy.test_{name}" for name in NAMES), "doc_examples.test_reduction", "doc_examples.test_cg"]
BEYOND = ("is neither in the module nor built in", "has no attribute", "not found in", "CalledProcessError")


def test_numba_cudas_own_kernels():
    script = Path(__file__).with_name("simt_numba_suite.py")
    done = subprocess.run([sys.executable, script, *MODULES], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    counted, agreed, others = 0, 0, []
    for line in done.stdout.splitlines():
        if not line.startswith("{"):
            continue
        for name, (state, why) in json.loads(line)["tests"].items():
            if state == "skipped" or any(word in why for word in BEYOND):
                continue
            counted += 1
            agreed += state == "agrees"
            if state != "agrees":
                others.append((name, why))
    assert counted >= 100
    assert agreed >= 0.8 * counted, others

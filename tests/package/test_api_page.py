"""docs/api.md, the reference of the Python API, is what docs/api.py makes of the docstrings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(DOCS / "api.py"), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"run python docs/api.py\n{done.stdout}{done.stderr}"


def test_the_page_has_what_a_program_calls():
    page = (DOCS / "api.md").read_text()
    for name in ("MoE.call", "MoE.backward", "Exchange.dispatch", "Handle", "CallStats", "solve", "discover", "Adam"):
        assert f"{name}`" in page, name


def test_classes_with_an_example_show_it():
    page = (DOCS / "api.md").read_text()
    for loop in ("for expert, counts in zip(h.experts, h.counts):", "y, stats = moe(x, return_stats=True)"):
        assert loop in page

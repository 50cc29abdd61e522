"""The PTX machine's speed in CPU time, by bench/simt.py. The best of a few runs counts: the computer may be busy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")

BENCH = Path(__file__).parents[2] / "bench"
LEAST = {False: 1.0e6, True: 0.2e6}  # warp instructions a CPU second, by check
MOST_SECONDS = {"vector add, 1,000 blocks": 10.0, "64x64x64 by mma.sync": 2.0}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    sys.modules.pop("simt", None)
    import simt

    yield simt
    sys.modules.pop("simt")


@pytest.mark.parametrize("check", [False, True])
def test_instructions_a_second(bench, check):
    for name in ("vector add, 1,000 blocks", "Collatz"):
        rates = []
        while len(rates) < 5 and max(rates, default=0.0) < LEAST[check]:
            rates.append(bench.measure(bench.KERNELS[name], check)["rate"])
        assert max(rates) >= LEAST[check], (name, rates)


@pytest.mark.parametrize("name", MOST_SECONDS)
def test_seconds_of_whole_kernels(bench, name):
    """The checker is on. `measure` also checks the result, and that there are no reports."""
    assert bench.measure(bench.KERNELS[name], True)["cpu_seconds"] < MOST_SECONDS[name]

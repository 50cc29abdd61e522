"""The PTX machine's speed in CPU time, by bench/simt.py. The best of a few runs counts: the computer may be busy."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")

import ptxsim

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


def test_many_launches_of_one_run(bench):
    """The checker's time for an access does not grow with the number of launches before it."""

    def seconds(launches):
        machine = ptxsim.Machine()
        device = machine.device(0)
        a, b = (device.array(np.ones((64, 64), np.uint16)) for _ in range(2))
        out = device.array(np.zeros((64, 64), np.float32))
        for _ in range(launches):
            device.launch(bench.GEMM, 1, 256, a, b, out)
        start = time.process_time()
        assert machine.run() == []
        return time.process_time() - start

    few = min(seconds(25) for _ in range(3))
    assert any(seconds(400) < 28 * few for _ in range(3))

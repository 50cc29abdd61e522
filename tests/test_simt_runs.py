"""What one run of a machine must not leave to the next, and runs in which somebody waits for ever."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda

from aristos import simt


@cuda.jit
def too_far(a):
    a[cuda.threadIdx.x + 1] = 1


def test_each_run_tells_its_findings():
    machine = simt.Machine()
    a = machine.device(0).array(np.zeros(32))
    for _ in range(2):
        machine.device(0).launch(too_far, 1, 32, a)
        assert [r.kind for r in machine.run()] == ["out_of_bounds"]
    for _ in range(2):
        machine.device(0).launch(too_far, 1, 32, a)
        with pytest.raises(simt.KernelFault):
            machine.run(strict=True)

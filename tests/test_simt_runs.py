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


PTX = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
.reg .b32 %r<9>;
.reg .b64 %rd<9>;
ld.param.u64 %rd1, [p];

st.global.u32 [%rd1+4000], %r1;
bar.sync 1;
trap;
ret;
}
"""


def test_reports_of_ptx_text_name_its_lines():
    machine = simt.Machine()
    machine.device(0).launch(PTX, 1, 32, machine.device(0).array(np.zeros(4, np.int32), name="a"))
    lines = PTX.splitlines()
    reports = machine.run()
    assert [(r.kind, r.file, lines[r.line - 1].split()[0]) for r in reports] == [
        ("out_of_bounds", "", "st.global.u32"), ("trap", "", "trap;")]  # fmt: skip
    assert "line 10" in str(reports[0])
    assert machine.profile().line(10)["instructions"] == 1

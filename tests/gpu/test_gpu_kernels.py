"""The same kernels on a GPU and on the PTX machine: equal bits, except where docs/ptxsim.md says otherwise."""

from __future__ import annotations

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from gpu_executor import missing

if missing():
    pytest.skip(missing(), allow_module_level=True)
from simt_compare import agree
from simt_kernels import PROGRAMS

import ptxsim


@pytest.mark.parametrize(("name", "program", "rtol"), PROGRAMS, ids=[row[0] for row in PROGRAMS])
def test_gpu_and_machine_agree(gpu, name, program, rtol):
    agree(program, ptxsim.Machine(arch=gpu.arch), gpu, rtol)

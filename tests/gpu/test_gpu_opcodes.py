"""The cases of tests/ptxsim/test_opcodes_*.py on a GPU, to check the values that they expect."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from gpu_executor import missing

if missing():
    pytest.skip(missing(), allow_module_level=True)
import simt_ptx
import test_opcodes_approximate
import test_opcodes_convert
import test_opcodes_float
import test_opcodes_integer

for _module in (test_opcodes_integer, test_opcodes_float, test_opcodes_convert, test_opcodes_approximate):
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and _name not in ("test_rejected_at_load", "test_the_oracle_agrees_with_numpy"):
            globals()[f"{_name}_{_module.__name__.rpartition('_')[2]}"] = _test


@pytest.fixture(autouse=True)
def on_the_gpu(gpu, monkeypatch):
    """Launches of the cases go to the GPU, which needs sm_90's instructions."""
    if int(gpu.arch[3:]) < 90:
        pytest.skip(f"the cases need sm_90, the GPU is {gpu.arch}")
    monkeypatch.setattr(simt_ptx, "simt", SimpleNamespace(Machine=type(gpu)))

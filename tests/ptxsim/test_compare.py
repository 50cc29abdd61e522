"""tests/gpu compares the machine with a GPU. Between two machines, that comparison can pass and can fail."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from simt_compare import agree
from simt_kernels import PROGRAMS

import ptxsim


@pytest.mark.parametrize(("name", "program", "rtol"), PROGRAMS, ids=[row[0] for row in PROGRAMS])
def test_two_machines_agree(name, program, rtol):
    """Schedule, architecture and checker do not change a bit of the results."""
    agree(program, ptxsim.Machine(seed=1), ptxsim.Machine(seed=2, arch="sm_80", check=False))


def answers(*results):
    """A program with a different result on each executor."""
    left = list(results)
    return lambda executor: [np.asarray(left.pop(0))]


@pytest.mark.parametrize(
    ("one", "other", "rtol", "words"),
    [
        ([1, 2, 3], [1, 5, 3], 0.0, r"1 of 3 elements differ: \(1,\): 2 and 5"),
        ([1.0, 2.0], [1.0, 2.0000001], 0.0, "1 of 2"),
        ([1.0, 100.0], [1.01, 100.0], 1e-5, "1 of 2"),
        ([0.0], [-0.0], 0.0, "1 of 1"),
        ([np.nan], [1.0], 1.0, "1 of 1"),
        ([np.inf], [-np.inf], 1.0, "1 of 1"),
        ([1, 2], [1, 2, 3], 0.0, "int64"),
        (np.float32([1]), np.float64([1]), 0.0, "float32"),
    ],
)
def test_differences_are_found(one, other, rtol, words):
    with pytest.raises(AssertionError, match=words):
        agree(answers(one, other), None, None, rtol)


def test_results_that_agree():
    agree(answers([1.0, np.nan, np.inf, -0.0], [1.0, np.nan, np.inf, -0.0]), None, None)
    agree(answers([1.0, 100.0], [1.0005, 100.0]), None, None, 1e-5)


def test_a_wrong_executor_is_found(monkeypatch):
    """A machine that rounds floats down does not agree with one that rounds to nearest."""
    from ptxsim import isa

    program = next(row[1] for row in PROGRAMS if row[0] == "vector_add")
    cut = ptxsim.Machine()
    load = cut.loader.program

    def broken(text):
        found = load(text)
        floats = found.code[:, isa.OP] == isa.FADD
        assert floats.any()
        base = cut.loader.base(found)
        cut.loader.code[base : base + len(found.code)][floats, isa.FLAGS] |= isa.RM
        return found

    monkeypatch.setattr(cut.loader, "program", broken)
    with pytest.raises(AssertionError, match="elements differ"):
        agree(program, ptxsim.Machine(), cut)

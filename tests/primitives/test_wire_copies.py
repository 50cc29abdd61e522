"""The explorer's recorded steps and the simulator replace each function of the wire that calls MPI."""

from __future__ import annotations

import inspect

import pytest

from aristos.explore.compiled import recorded
from aristos.primitives import wire
from aristos.simulate import lowering

THREAD = "run_progress_thread"  # neither of them has a progress thread


@pytest.mark.parametrize("replaced", [recorded.WIRE, lowering.WIRE], ids=["recorded", "simulated"])
def test_each_function_that_calls_mpi_is_replaced(replaced):
    functions = {name: getattr(value, "py_func", value) for name, value in vars(wire).items() if callable(value)}
    calling = {name for name, function in functions.items() if "mem.call(" in inspect.getsource(function)}
    assert {"put", "flush"} < calling
    assert calling - {THREAD} <= set(replaced)

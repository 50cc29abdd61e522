"""What a run reports of findings that it makes again and again, in one slice of the run and in several."""

from __future__ import annotations

import numpy as np
import pytest

import ptxsim
from ptxsim import state as s
from ptxsim.missing import SAME_VALUE
from ptxsim.units import python_function

# One warp runs `body` three times, r1 = 0, 1, 2, with a loop between that lasts several slices if an actor takes part.
KERNEL = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a)
{{
.reg .u64 %a; .reg .u32 %t, %r<8>; .reg .pred %p, %first;
ld.param.u64 %a, [a]; mov.u32 %t, %tid.x; mov.u32 %r1, 0;
AGAIN: setp.eq.u32 %first, %r1, 0;
{}
mov.u32 %r2, 0;
DELAY: add.u32 %r2, %r2, 1; setp.lt.u32 %p, %r2, {}; @%p bra DELAY;
add.u32 %r1, %r1, 1; setp.lt.u32 %p, %r1, 3; @%p bra AGAIN;
exit;
}}
"""
LATER = """@!%first st.global.u32 [%a+4], 5;
st.global.u32 [%a], %t;"""
CHANGES = """selp.u32 %r3, 5, %t, %first;
st.global.u32 [%a], %r3;"""
BOTH = """st.global.u32 [%a], 5;
st.global.u32 [%a+4], %t;"""


def found(body: str, delay: int, slices: bool = True) -> list[tuple[str, str, str]]:
    """(kind, address, verdict) of the reports, in their order. Every element of the array `a` is 5 before the run."""

    def idle():
        for _ in range(400):
            yield

    machine = ptxsim.Machine()
    array = machine.device(0).array(np.full(4, 5, np.uint32), "a")
    machine.device(0).launch(KERNEL.format(body, delay), 1, 32, array)
    if slices:
        machine.actor(idle)
    reports = machine.run()
    assert machine.reports == reports
    return [(report.kind, report.address, report.verdict) for report in reports]


@pytest.mark.parametrize(("delay", "slices"), [(1, False), (1000, True)])
def test_a_repeated_race_does_not_take_the_place_of_another(delay, slices):
    """The race at a[1] is recorded first in its slice, as the one at a[0] was in an earlier slice."""
    assert sorted(found(LATER, delay, slices)) == [("race", "a[0]", "wrong"), ("race", "a[1]", "same value")]


@pytest.mark.parametrize(("delay", "slices"), [(1, False), (1000, True)])
def test_a_race_that_writes_the_same_value_first_becomes_wrong(delay, slices):
    assert found(CHANGES, delay, slices) == [("race", "a[0]", "wrong")]


@pytest.mark.parametrize(("delay", "slices"), [(1, False), (1000, True)])
def test_each_race_is_reported_once(delay, slices):
    assert sorted(found(BOTH, delay, slices)) == [("race", "a[0]", "same value"), ("race", "a[1]", "wrong")]


def test_findings_beyond_the_table_wait_for_the_next_slice():
    """A slice keeps MAX_REPORTS findings. More of them write nothing, whether they are new or repeated."""
    count = s.MAX_REPORTS + 2
    x = np.zeros(s.X_FIELDS + s.UNITS, np.int64)
    seen, table = np.zeros(count * len(s.KINDS), np.int64), np.zeros((count, s.R_FIELDS), np.int64)
    x[s.SEEN], x[s.REPORTS] = seen.ctypes.data, table.ctypes.data

    def report(pc: int, detail: int) -> None:
        python_function("report")(x.ctypes.data, s.RACE, pc, 1 << 10, 64, 0, 4, 0, 0, detail, 1)

    for detail in (SAME_VALUE, SAME_VALUE, 0):
        for pc in range(count):
            report(pc, detail)
        assert x[s.REPORTS_COUNT] == s.MAX_REPORTS
        kept = table[: s.MAX_REPORTS]
        assert (kept[:, s.R_PC] == np.arange(s.MAX_REPORTS)).all()
        assert (kept[:, s.R_DETAIL] == detail).all()
        assert not table[s.MAX_REPORTS :].any()
    x[s.REPORTS_COUNT] = 0
    for pc in range(count):
        report(pc, 0)
    assert x[s.REPORTS_COUNT] == 2
    assert (table[:2, s.R_PC] == [count - 2, count - 1]).all()

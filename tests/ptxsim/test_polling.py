"""Threads that poll: vectors are read whole, clocks hide no deadlock, and time passes for those that wait for it."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim

pytestmark = pytest.mark.slow
HEAD = """.version 8.6
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a, .param .u64 o)
{
.reg .u64 %a, %o, %t<4>; .reg .u32 %w, %n, %r<8>; .reg .pred %p, %q; .reg .b64 %x<4>;
ld.param.u64 %a, [a]; ld.param.u64 %o, [o]; mov.u32 %w, %ctaid.x; setp.ne.u32 %q, %w, 0;
"""


@pytest.mark.parametrize("form", ["v2.b64", "v2.b32", "v4.b32"])
@pytest.mark.parametrize("order", ["relaxed.gpu", "volatile"])
def test_a_vector_is_read_whole(form, order):
    """A writer stores vectors of equal numbers; a reader never sees parts of two of them."""
    count, kind = int(form[1]), "x" if form.endswith("64") else "r"
    values = "{" + ", ".join(f"%{kind}{i + (0 if kind == 'x' else 1)}" for i in range(count)) + "}"
    first = f"%{kind}{0 if kind == 'x' else 1}"
    size = 64 if kind == "x" else 32
    same = "".join(
        f"setp.ne.b{size} %p, {name}, {first}; @%p st.global.u32 [%o], 1;\n"
        for name in values.strip("{}").split(", ")[1:]
    )
    copies = "".join(f"mov.b{size} {name}, {first};\n" for name in values.strip("{}").split(", ")[1:])
    add = f"add.u{size} {first}, {first}, 1;"
    text = f"""{HEAD}mov.b{size} {first}, 0; mov.u32 %n, 0;
@%q bra READ;
W: {add} {copies} st.{order}.global.{form} [%a], {values}; add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 12; @%p bra W;
exit;
READ: ld.{order}.global.{form} {values}, [%a]; {same}
st.global.b{size} [%o+8], {first};
add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 12; @%p bra READ;
exit;
}}"""
    seen = set()
    for seed in range(12):
        machine = ptxsim.Machine(seed=seed, sm_count=2)
        a, o = machine.device(0).array(np.zeros(4, np.uint64), "a"), machine.device(0).array(np.zeros(4, np.uint64))
        machine.device(0).launch(text, 2, 1, a, o)
        assert machine.run() == []
        torn, last = o.copy_to_host()[:2]
        assert torn == 0
        seen.add(int(last))
    assert len(seen) > 1


TIMEOUT = "mov.u64 %t0, %clock64;\nL: {read}\n{check}@%p bra L;\nexit;\n}}"
POLL = "ld.acquire.sys.global.u32 %r1, [%a]; setp.ne.u32 %p, %r1, 0; @%p bra D;"
CLOCK = "mov.u64 %t1, %clock64; sub.u64 %t2, %t1, %t0; setp.lt.u64 %p, %t2, {cycles};"


def run(body, **options):
    """Run a kernel of one block of 64 threads. Returns (the kinds of its reports, seconds, instructions)."""
    machine = ptxsim.Machine(**options)
    d = machine.device(0)
    a, o = d.array(np.zeros(4, np.uint64), "a"), d.array(np.zeros(4, np.uint64), "o")
    d.launch(HEAD + body, 1, 64, a, o)
    start = time.process_time()
    reports = machine.run()
    return [r.kind for r in reports], time.process_time() - start, machine.profile().total["instructions"]


def test_a_timeout_does_not_hide_that_threads_spin():
    body = TIMEOUT.format(read=POLL, check=CLOCK.format(cycles=200_000_000_000)).replace(
        "exit;\n}", "trap;\nD: exit;\n}"
    )
    kinds, _, instructions = run(body)
    assert set(kinds) == {"deadlock"}
    assert instructions < 1_000_000  # without it, the patience of 50 million


def test_threads_that_wait_for_time_go_on():
    body = TIMEOUT.format(read="", check=CLOCK.format(cycles=20_000_000)).replace(
        "exit;\n}", "st.global.u32 [%o], 1; exit;\n}"
    )
    kinds, _, instructions = run(body)
    assert set(kinds) <= {"race"}
    assert instructions < 2_000_000


def test_counting_is_not_spinning():
    body = "mov.u32 %n, 0;\nL: add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 200000; @%p bra L;\nexit;\n}"
    assert run(body)[0] == []


def test_a_counter_in_local_memory_is_not_spinning():
    body = """{ .local .u32 c; st.local.u32 [c], 0;
L: ld.local.u32 %n, [c]; add.u32 %n, %n, 1; st.local.u32 [c], %n; setp.lt.u32 %p, %n, 60000; @%p bra L;
}
exit;\n}"""
    assert run(body)[0] == []


def test_patience_can_be_chosen():
    body = "mov.u32 %n, 0;\nL: add.u32 %n, %n, 1; ld.volatile.global.u32 %r1, [%a];\n"
    body += "setp.eq.u32 %p, %r1, 0; @%p bra L;\nexit;\n}"
    kinds, _, instructions = run(body, patience=200_000)
    assert set(kinds) == {"deadlock"}
    assert 200_000 <= instructions < 1_000_000

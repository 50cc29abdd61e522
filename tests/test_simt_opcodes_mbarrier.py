"""mbarriers of the PTX machine: counts and phases as the PTX ISA states them, what they order, and what is misuse."""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import execute, launched

CHECKED = pytest.mark.parametrize("check", [True, False])
BARS = ".shared .align 8 .b64 bars[8];\n.shared .align 16 .b8 tile[4096];"
INIT = """mov.u32 r30, bars;
setp.ne.u32 p30, t, 0;
@p30 bra INITIALISED;
mbarrier.init.shared::cta.b64 [r30], {count};
fence.mbarrier_init.release.cluster;
INITIALISED: bar.sync 0;
"""


class Model:
    """One mbarrier by the ISA's text."""

    def __init__(self, count):
        self.phase, self.expected, self.pending, self.bytes = 0, count, count, 0

    def arrive(self, count=1, size=0):
        before = self.phase, self.pending
        self.bytes += size
        self.pending -= count
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase + 1, self.expected
        return before

    def complete(self, parity):
        return self.phase % 2 != parity


@CHECKED
def test_phases_of_one_thread(check):
    """A random sequence of arrivals and tests of one thread, each answer against the model's."""
    rng = np.random.default_rng(1)
    model, lines, want = Model(5), [INIT.format(count=5)], []
    for step in range(60):
        count = int(rng.integers(1, model.pending + 1))
        form = step % 4
        text = ("arrive.shared::cta.b64 d1, [r30]", "arrive.shared.b64 d1, [r30], {}",
                "arrive.release.cta.shared::cta.b64 d1, [r30], {}",
                "arrive.relaxed.cta.b64 d1, [d30], {}")[form]  # fmt: skip
        count = 1 if form == 0 else count
        phase, pending = model.arrive(count)
        lines += [f"mbarrier.{text.format(count)};", "mbarrier.pending_count.b64 r1, d1;"]
        want.append(pending)
        lines += ["mbarrier.test_wait.shared::cta.b64 p1, [r30], d1;", "selp.u32 r2, 1, 0, p1;"]
        want.append(int(model.phase != phase))
        for parity, form in ((0, "test_wait.parity.shared"), (1, "test_wait.parity.acquire.cta.shared::cta")):
            lines += [f"mbarrier.{form}.b64 p1, [r30], {parity};", f"selp.u32 r{3 + parity}, 1, 0, p1;"]
            want.append(int(model.complete(parity)))
        lines.append(f"st.global.v4.b32 [a0+{16 * step}], {{r1, r2, r3, r4}};")
    body = "mov.u64 d30, bars; cvta.shared.u64 d30, d30;\n" + "\n".join(lines)
    out = execute(body, np.zeros(240, np.uint32), threads=1, module=BARS, check=check)[0]
    assert out.tolist() == want
    assert model.phase > 3


@CHECKED
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["try_wait", "test_wait", "state", "hint"])
def test_phases_of_a_block(form, seed, check):
    """Sums of what all threads wrote, behind a barrier of their arrivals, over several phases."""
    ask = {
        "try_wait": "mbarrier.try_wait.parity.shared::cta.b64 p1, [r30], {parity};",
        "test_wait": "mbarrier.test_wait.parity.shared::cta.b64 p1, [r30], {parity};",
        "state": "mbarrier.try_wait.shared::cta.b64 p1, [r30], d9;",
        "hint": "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p1, [r30], {parity}, 0x989680;",
    }[form]
    lines = [INIT.format(count=64), "mov.u64 d1, tile; mad.wide.u32 d2, t, 4, d1; xor.b32 r9, t, 63;",
             "mad.wide.u32 d3, r9, 4, d1; mov.u32 r5, 0;"]  # fmt: skip
    for phase in range(6):
        at = 256 * (phase % 2)
        lines += [f"add.u32 r1, t, {phase * 100}; st.shared.u32 [d2+{at}], r1;",
                  "mbarrier.arrive.shared::cta.b64 d9, [r30];", f"L{phase}: {ask.format(parity=phase % 2)}",
                  f"@!p1 bra L{phase};", f"ld.shared.u32 r2, [d3+{at}]; add.u32 r5, r5, r2;"]  # fmt: skip
    lines.append("mad.wide.u32 d4, t, 4, a0; st.global.u32 [d4], r5;")
    out = execute("\n".join(lines), np.zeros(64, np.uint32), threads=64, module=BARS, check=check, seed=seed)[0]
    assert out.tolist() == [sum(100 * p + (t ^ 63) for p in range(6)) for t in range(64)]


SEND = """setp.ge.u32 p1, t, 32;
@p1 bra SECOND;
setp.ne.u32 p2, t, 0;
@p2 bra DONE;
st.shared.u32 [tile], 7;
mbarrier.arrive.shared::cta.b64 _, [r30];
bra DONE;
SECOND:
W: mbarrier.try_wait.parity.shared::cta.b64 p31, [r30], 0;
@!p31 bra W;
ld.shared.u32 r1, [tile];
setp.eq.u32 p3, t, 32;
@p3 st.global.u32 [a0], r1;
DONE:"""


def found_in(body, seeds=range(24), threads=64):
    """The kinds that any of some seeds reports."""
    return {r.kind for seed in seeds for r in launched(body, np.zeros(1, np.uint32), threads=threads, module=BARS,
                                                       seed=seed)[1]}  # fmt: skip


def test_an_arrival_releases_and_a_wait_acquires():
    body = INIT.format(count=1) + SEND
    for seed in range(6):
        out, found = launched(body, np.zeros(1, np.uint32), threads=64, module=BARS, seed=seed)
        assert (found, out[0][0]) == ([], 7)


@pytest.mark.parametrize(("old", "new", "kinds"), [
    ("arrive.shared", "arrive.relaxed.cta.shared", {"race"}),
    ("parity.shared", "parity.relaxed.cta.shared", {"race"}),
    ("mbarrier.arrive.shared", "fence.acq_rel.cta;\nmbarrier.arrive.relaxed.cta.shared", set()),
    ("@!p31 bra W;", "", {"race"}),
    ("st.shared.u32 [tile], 7;\nmbarrier.arrive.shared::cta.b64 _, [r30];",
     "mbarrier.arrive.shared::cta.b64 _, [r30];\nst.shared.u32 [tile], 7;", {"race"}),
])  # fmt: skip
def test_what_does_not_order(old, new, kinds):
    assert old in SEND
    assert found_in(INIT.format(count=1) + SEND.replace(old, new)) - {"uninitialised"} == kinds

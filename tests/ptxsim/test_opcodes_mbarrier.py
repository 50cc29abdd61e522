"""mbarriers on the PTX machine: counts and phases of the PTX ISA, the order they give, and reports of misuse."""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import execute, launched, rejection

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
    """A model of one mbarrier, written from the ISA's text."""

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
    """A random sequence of arrivals and tests of one thread; every result agrees with the model."""
    rng = np.random.default_rng(1)
    model, lines, want = Model(5), [INIT.format(count=5)], []
    for step in range(60):
        count = int(rng.integers(1, model.pending + 1))
        form = step % 4
        text = (
            "arrive.shared::cta.b64 d1, [r30]",
            "arrive.shared.b64 d1, [r30], {}",
            "arrive.release.cta.shared::cta.b64 d1, [r30], {}",
            "arrive.relaxed.cta.b64 d1, [d30], {}",
        )[form]
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
    """Each thread sums all threads' values after a barrier, over several phases."""
    ask = {
        "try_wait": "mbarrier.try_wait.parity.shared::cta.b64 p1, [r30], {parity};",
        "test_wait": "mbarrier.test_wait.parity.shared::cta.b64 p1, [r30], {parity};",
        "state": "mbarrier.try_wait.shared::cta.b64 p1, [r30], d9;",
        "hint": "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p1, [r30], {parity}, 0x989680;",
    }[form]
    lines = [
        INIT.format(count=64),
        "mov.u64 d1, tile; mad.wide.u32 d2, t, 4, d1; xor.b32 r9, t, 63;",
        "mad.wide.u32 d3, r9, 4, d1; mov.u32 r5, 0;",
    ]
    for phase in range(6):
        at = 256 * (phase % 2)
        lines += [
            f"add.u32 r1, t, {phase * 100}; st.shared.u32 [d2+{at}], r1;",
            "mbarrier.arrive.shared::cta.b64 d9, [r30];",
            f"L{phase}: {ask.format(parity=phase % 2)}",
            f"@!p1 bra L{phase};",
            f"ld.shared.u32 r2, [d3+{at}]; add.u32 r5, r5, r2;",
        ]
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
    """The kinds of reports over some seeds."""
    return {
        r.kind
        for seed in seeds
        for r in launched(body, np.zeros(1, np.uint32), threads=threads, module=BARS, seed=seed)[1]
    }


def test_an_arrival_releases_and_a_wait_acquires():
    body = INIT.format(count=1) + SEND
    for seed in range(6):
        out, found = launched(body, np.zeros(1, np.uint32), threads=64, module=BARS, seed=seed)
        assert (found, out[0][0]) == ([], 7)


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("arrive.shared", "arrive.relaxed.cta.shared", {"race"}),
        ("parity.shared", "parity.relaxed.cta.shared", {"race"}),
        ("mbarrier.arrive.shared", "fence.acq_rel.cta;\nmbarrier.arrive.relaxed.cta.shared", set()),
        ("@!p31 bra W;", "", {"race"}),
        (
            "st.shared.u32 [tile], 7;\nmbarrier.arrive.shared::cta.b64 _, [r30];",
            "mbarrier.arrive.shared::cta.b64 _, [r30];\nst.shared.u32 [tile], 7;",
            {"race"},
        ),
    ],
)
def test_wrong_arrivals_and_waits_do_not_order(old, new, kinds):
    assert old in SEND
    assert found_in(INIT.format(count=1) + SEND.replace(old, new)) - {"uninitialised"} == kinds


QUIET = """mbarrier.arrive.noComplete.release.cta.shared::cta.b64 d1, [r30], {count};
mbarrier.pending_count.b64 r1, d1;
mbarrier.{drop}.noComplete.b64 d2, [d30], 1;
mbarrier.pending_count.b64 r2, d2;
mbarrier.test_wait.shared::cta.b64 p1, [r30], d2;
selp.u32 r3, 1, 0, p1;
mbarrier.arrive.shared::cta.b64 d3, [r30];
mbarrier.test_wait.shared::cta.b64 p2, [r30], d1;
selp.u32 r4, 1, 0, p2;
st.global.v4.b32 [a0], {{r1, r2, r3, r4}};
mbarrier.arrive.shared::cta.b64 d4, [r30];
mbarrier.pending_count.b64 r5, d4;
st.global.b32 [a0+16], r5;
"""


@CHECKED
@pytest.mark.parametrize(("drop", "next_phase"), [("arrive", 5), ("arrive_drop", 4)])
def test_arrivals_that_end_no_phase(check, drop, next_phase):
    """.noComplete counts like any arrival; the last arrival of the phase is another one."""
    body = INIT.format(count=5) + "mov.u64 d30, bars; cvta.shared.u64 d30, d30;\n" + QUIET.format(count=3, drop=drop)
    out = execute(body, np.zeros(5, np.uint32), threads=1, module=BARS, check=check)[0]
    assert out.tolist() == [5, 2, 0, 1, next_phase]


def test_an_arrival_that_must_not_end_its_phase():
    """An arrival with .noComplete that ends its phase is reported. No arrival ends a phase that awaits bytes."""
    form = "{}mbarrier.arrive.noComplete.shared::cta.b64 d1, [r30], 2;\n{}"
    for before, after, ends in (
        ("", "", True),
        (
            "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [r30], 16;\n",
            "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [r30], 16;",
            False,
        ),
    ):
        _, found = launched(INIT.format(count=2) + form.format(before, after), threads=1, module=BARS)
        assert [report.kind for report in found] == ["misuse"] * ends
        assert all(".noComplete must not be the last" in report.message for report in found)


# ---- waits ----
@pytest.mark.parametrize("check", [True, False])
def test_a_wait_that_never_ends_is_reported(check):
    """The report names the line of the wait, for try_wait and for a loop of test_wait."""
    for form, words in (
        ("try_wait", "wait here for a phase of an mbarrier that never ends"),
        ("test_wait", "spin here"),
    ):
        body = (
            INIT.format(count=65)
            + "mbarrier.arrive.shared::cta.b64 _, [r30];\n"
            + f"W: mbarrier.{form}.parity.shared::cta.b64 p1, [r30], 0;\n@!p1 bra W;"
        )
        _, found = launched(body, threads=64, module=BARS, check=check)
        assert [(r.kind, words in r.message) for r in found][:1] == [("deadlock", True)]
        assert all(r.kind == "deadlock" for r in found)
        if form == "try_wait":
            assert len(found) == 1
            assert "mbarrier.try_wait" in found[0].message


def test_try_wait_returns_false_when_no_lane_can_run():
    """A thread waits for a barrier that nothing completes. When no lane can run, its try_wait returns false."""
    body = (
        INIT.format(count=1)
        + """setp.eq.u32 p1, t, 0;
@p1 mbarrier.init.shared::cta.b64 [r30+8], 1;
bar.sync 0;
setp.eq.u32 p2, t, 32;
@p2 bra LOOK;
@!p1 bra DONE;
W: mbarrier.try_wait.parity.shared::cta.b64 p3, [r30], 0;
@!p3 bra W;
bra DONE;
LOOK: mbarrier.try_wait.parity.shared::cta.b64 p4, [r30+8], 0, 100;
@!p4 mbarrier.arrive.shared::cta.b64 _, [r30];
DONE: """
    )
    for check in (True, False):
        assert launched(body, threads=64, module=BARS, check=check)[1] == []


def test_lanes_of_a_warp_wait_separately():
    """Lane 0 waits for lane 1's arrival while the others go on."""
    body = (
        INIT.format(count=1)
        + """setp.eq.u32 p1, t, 0;
@!p1 bra OTHERS;
W: mbarrier.try_wait.parity.shared::cta.b64 p2, [r30], 0;
@!p2 bra W;
ld.shared.u32 r1, [tile];
st.global.u32 [a0], r1;
bra DONE;
OTHERS: setp.ne.u32 p3, t, 1;
@p3 bra DONE;
st.shared.u32 [tile], 9;
mbarrier.arrive.shared::cta.b64 _, [r30];
DONE: bar.warp.sync -1;"""
    )
    for seed in range(8):
        out, found = launched(body, np.zeros(1, np.uint32), module=BARS, seed=seed)
        assert (found, out[0].tolist()) == ([], [9])


# ---- bytes ----
@CHECKED
def test_expected_bytes_keep_a_phase_open(check):
    """After expect_tx the phase does not end with the last arrival, and tests of its parity return false."""
    body = (
        INIT.format(count=2)
        + """mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [r30], 16;
mbarrier.arrive.shared::cta.b64 _, [r30];
mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [r30], 16;
mbarrier.test_wait.parity.shared::cta.b64 p1, [r30], 0;
selp.u32 r1, 1, 0, p1;
mov.u32 r3, tile;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r3], [a1], 32, [r30];
W: mbarrier.try_wait.parity.shared::cta.b64 p1, [r30], 0;
@!p1 bra W;
ld.shared.u32 r2, [tile+28];
st.global.v2.u32 [a0], {r1, r2};"""
    )
    out, found = launched(
        body, np.ones(2, np.uint32), np.arange(8, dtype=np.uint32), threads=1, module=BARS, check=check
    )
    assert found == []
    assert out[0].tolist() == [0, 7]


# ---- cp.async ----
ARRIVE = """mov.u64 d1, tile; mad.wide.u32 d2, t, 16, d1; mad.wide.u32 d3, t, 16, a0;
cp.async.cg.shared.global [d2], [d3], 16;
cp.async.mbarrier.arrive.noinc.shared::cta.b64 [r30];
W: mbarrier.try_wait.parity.shared::cta.b64 p31, [r30], 0;
@!p31 bra W;
xor.b32 r1, t, 63; mad.wide.u32 d4, r1, 16, d1; ld.shared.v4.u32 {r2, r3, r4, r5}, [d4];
mad.wide.u32 d5, t, 16, a1; st.global.v4.u32 [d5], {r2, r3, r4, r5};"""


@CHECKED
@pytest.mark.parametrize("seed", range(4))
def test_arrivals_of_copies(seed, check):
    """The arrival of cp.async.mbarrier.arrive.noinc is one of those that `init` counted.

    Without .noinc the instruction adds an arrival.
    """
    data = np.random.default_rng(3).integers(0, 1 << 32, (64, 4), np.uint32)
    own = ARRIVE.replace(".noinc", "").replace("W: ", "mbarrier.arrive.shared::cta.b64 _, [r30];\nW: ")
    for body in (ARRIVE, own):
        out, found = launched(
            INIT.format(count=64) + body,
            data,
            np.zeros((64, 4), np.uint32),
            threads=64,
            module=BARS,
            check=check,
            seed=seed,
        )
        assert found == []
        assert np.array_equal(out[1], data[::-1])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [r30];", "mbarrier.arrive.shared::cta.b64 _, [r30];"),
        ("@!p31 bra W;", ""),
    ],
)
def test_copies_that_are_not_waited_for_are_reported(old, new):
    data, body = np.ones((64, 4), np.uint32), INIT.format(count=64) + ARRIVE.replace(old, new)
    found = set()
    for seed in range(32):
        found |= {
            r.kind for r in launched(body, data, np.zeros((64, 4), np.uint32), threads=64, module=BARS, seed=seed)[1]
        }
    assert "missing_wait" in found
    assert found <= {"missing_wait", "race", "uninitialised"}


# ---- misuse ----
INITIALISED = INIT.format(count=2)
DROP = "mbarrier.arrive_drop.shared.b64 _, [r30], 2;\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (INITIALISED + "mbarrier.arrive.shared.b64 _, [r30+8];", "no mbarrier was initialised here"),
        (INITIALISED + "mbarrier.test_wait.parity.shared.b64 p1, [r30+8], 0;", "no mbarrier was initialised here"),
        (INITIALISED + "mbarrier.inval.shared.b64 [r30];\nmbarrier.arrive.shared.b64 _, [r30];", "invalidated"),
        (INITIALISED + "mbarrier.arrive.shared.b64 _, [r30], 3;", "more arrivals than the phase"),
        (INITIALISED + "mbarrier.arrive.shared.b64 _, [r30], 0;", "a count must be 1 to"),
        (INITIALISED + "mbarrier.expect_tx.relaxed.cta.shared.b64 [r30], 1048576;", "within 1048575 of zero"),
        (INITIALISED + "mbarrier.init.shared.b64 [r30], 2;", "a second time"),
        (INITIALISED + "st.shared.b64 [r30], 0;\nmbarrier.arrive.shared.b64 _, [r30];", "written over the mbarrier"),
        (INITIALISED + "mbarrier.arrive.b64 _, [a0];", "must lie in shared memory"),
        (INITIALISED + DROP + "mbarrier.expect_tx.relaxed.cta.shared.b64 [r30], 16;", "have dropped out"),
        (
            INITIALISED + DROP + "mbarrier.complete_tx.relaxed.cta.shared.b64 [r30], 16;",
            "have dropped out",
        ),
        (INITIALISED + DROP + "mbarrier.arrive.shared.b64 _, [r30];", "have dropped out"),
        (INITIALISED + DROP + "cp.async.mbarrier.arrive.shared.b64 [r30];", "have dropped out"),
        ("mov.u32 r30, bars;\nmbarrier.init.shared.b64 [r30], 0;", "a count must be 1 to"),
        ("mov.u32 r30, bars;\nmbarrier.init.shared.b64 [r30], 1048576;", "a count must be 1 to"),
    ],
)
def test_misuse(body, words):
    """Misuse gives one report, which names the last line."""
    _, found = launched(body, np.zeros(1, np.uint64), threads=1, module=BARS)
    assert [(r.kind, words in r.message) for r in found] == [("misuse", True)], found
    text = body.strip().splitlines()[-1]
    assert text.split()[0] in found[0].message
    _, unchecked = launched(body, np.zeros(1, np.uint64), threads=1, module=BARS, check=False)
    assert [r.kind for r in unchecked] == ["misuse"]


@CHECKED
def test_the_last_phase_of_an_mbarrier_that_all_threads_leave(check):
    """The last phase may wait for bytes. A copy that begins after this phase is reported.

    No phase can follow to count its bytes, because a phase expects at least one arrival.
    """
    copy = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r3], [a0], 16, [r30];\n"
    body = f"""{INIT.format(count=1)}mov.u32 r3, tile;
mbarrier.arrive_drop.expect_tx.shared::cta.b64 _, [r30], 16;
{copy}W: mbarrier.try_wait.parity.shared::cta.b64 p1, [r30], 0;
@!p1 bra W;
"""
    arrays = (np.zeros(2, np.uint64),)
    assert launched(body, *arrays, threads=1, module=BARS, check=check)[1] == []
    found = launched(body + copy, *arrays, threads=1, module=BARS, check=check)[1]
    assert [("cp.async.bulk" in r.message, "have dropped out" in r.message) for r in found] == [(True, True)], found


def test_more_barriers_than_a_block_can_have():
    body = (
        "mov.u32 r1, bars;\nmov.u32 r2, 0;\nL: mbarrier.init.shared.b64 [r1], 1;\nadd.u32 r1, r1, 8;\n"
        "add.u32 r2, r2, 1;\nsetp.lt.u32 p1, r2, {};\n@p1 bra L;"
    )
    module = ".shared .align 8 .b64 bars[200];"
    assert launched(body.format(128), threads=1, module=module)[1] == []
    found = launched(body.format(129), threads=1, module=module)[1]
    assert {(r.kind, "128 mbarriers" in r.message or "no mbarrier" in r.message) for r in found} == {("misuse", True)}


def test_an_mbarrier_initialised_again():
    """An mbarrier that is initialised again after inval starts with its first phase."""
    body = (
        INIT.format(count=1)
        + """mov.u32 r5, 0;
AGAIN: mbarrier.arrive.shared::cta.b64 d1, [r30];
W: mbarrier.try_wait.parity.shared::cta.b64 p1, [r30], 0;
@!p1 bra W;
mbarrier.inval.shared::cta.b64 [r30];
mbarrier.init.shared::cta.b64 [r30], 1;
add.u32 r5, r5, 1;
setp.lt.u32 p2, r5, 3;
@p2 bra AGAIN;
mbarrier.test_wait.parity.shared::cta.b64 p1, [r30], 0;
selp.u32 r1, 1, 0, p1;
st.global.u32 [a0], r1;"""
    )
    out, found = launched(body, np.ones(1, np.uint32), threads=1, module=BARS)
    assert (found, out[0].tolist()) == ([], [0])


def test_an_unordered_initialisation_is_reported():
    body = INIT.format(count=33).replace("bar.sync 0;", "") + "mbarrier.arrive.shared.b64 _, [r30];"
    kinds = {r.kind for seed in range(8) for r in launched(body, threads=33, module=BARS, seed=seed)[1]}
    assert kinds == {"race", "misuse"}  # with some seeds the arrival comes before the initialisation


def test_counters():
    from simt_ptx import HEADER

    import ptxsim

    text = (
        HEADER
        + BARS
        + """.visible .entry k()
{
.reg .b32 r<9>; .reg .pred p;
mov.u32 r1, bars;
mbarrier.init.shared.b64 [r1], 1;
mbarrier.arrive.shared.b64 _, [r1];
mbarrier.test_wait.parity.shared.b64 p, [r1], 0;
ret;
}"""
    )
    machine = ptxsim.Machine()
    machine.device(0).launch(text, 1, 1)
    assert machine.run() == []
    assert machine.profile().opcodes["mbarrier"]["instructions"] == 3


@pytest.mark.parametrize(
    "text",
    [
        "mbarrier.init [r1], 1;",
        "mbarrier.init.b64 [p1], 1;",
        "mbarrier.init.b64 [f1], 1;",
        "mbarrier.arrive.release.gpu.b64 _, [r1];",
        "mbarrier.try_wait.parity.acquire.sys.b64 p1, [r1], 0;",
        "mbarrier.arrive.b64 r1, [r1];",
        "mbarrier.arrive.expect_tx.b64 _, [r1];",
        "mbarrier.test_wait.b64 p1, [r1], r1;",
        "mbarrier.arrive.noComplete.b64 d1, [r1];",
        "mbarrier.arrive.noComplete.relaxed.cta.b64 d1, [r1], 1;",
        "mbarrier.arrive.noComplete.release.cluster.b64 d1, [r1], 1;",
        "mbarrier.arrive.noComplete.shared::cluster.b64 _, [r1], 1;",
        "mbarrier.arrive.noComplete.expect_tx.b64 d1, [r1], 1;",
        "mbarrier.test_wait.noComplete.b64 p1, [r1], d1;",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0] in message
    assert "PTX line" in message

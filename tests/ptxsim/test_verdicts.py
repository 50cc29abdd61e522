"""What reports say of the order that is missing, and how much a report matters."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim

pytestmark = pytest.mark.slow
HEAD = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a, .param .u64 f, .param .u64 o, .param .u32 rank)
{
.reg .u64 %a, %f, %o, %i; .reg .u32 %t, %c, %rank, %r<8>; .reg .pred %p, %first, %q;
ld.param.u64 %a, [a]; ld.param.u64 %f, [f]; ld.param.u64 %o, [o]; ld.param.u32 %rank, [rank];
mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x; add.u32 %rank, %rank, %c; setp.ne.u32 %first, %t, 0;
mul.wide.u32 %i, %t, 4; add.u64 %a, %a, %i; add.u64 %o, %o, %i; setp.ne.u32 %q, %rank, 0;
"""
SEND = "add.u32 %t, %t, 9; st.global.u32 [%a], %t; {barrier} {fence} @!%first {store}; exit;"
RECEIVE = "{wait} bar.sync 0; ld.global.u32 %r2, [%a]; st.global.u32 [%o], %r2; exit;"
WAIT = "@%first bra M; L: {load}; setp.ne.u32 %p, %r1, 1; @%p bra L; {after} M:"
RELEASE, RELAXED = "st.release.{}.global.u32 [%f], 1", "st.relaxed.{}.global.u32 [%f], 1"
ACQUIRE, LOOK = "ld.acquire.{}.global.u32 %r1, [%f]", "ld.relaxed.{}.global.u32 %r1, [%f]"


def found(send, receive, devices, seeds=6, stale=True):
    """The reports of a hand-over from block 0 (or device 0) to block 1 (or device 1), about the data, as a set."""
    text = f"{HEAD}@%q bra R;\n{send}\nR: {receive}\n}}\n"
    seen = set()
    for seed in range(seeds):
        machine = ptxsim.Machine(devices=devices, seed=seed, sm_count=2, stale=stale)
        a, f, o = (machine.device(0).array(np.zeros(64, np.uint32), name) for name in "afo")
        for device in range(devices):
            machine.device(device).launch(text, 3 - devices, 64, a, f, o, device)
        for report in machine.run():
            seen.add((report.kind, report.address[0], report.missing, report.verdict))
    return seen


def sent(store, barrier="bar.sync 0;", fence=""):
    return SEND.format(store=store, barrier=barrier, fence=fence)


def received(load, after=""):
    return RECEIVE.format(wait=WAIT.format(load=load, after=after))


@pytest.mark.parametrize(("devices", "scope"), [(1, "gpu"), (2, "sys")])
@pytest.mark.parametrize("stale", [True, False])
def test_a_race_names_the_missing_order(devices, scope, stale):
    release, relaxed = RELEASE.format(scope), RELAXED.format(scope)
    acquire, look = ACQUIRE.format(scope), LOOK.format(scope)
    fence = f"fence.acq_rel.{scope};"
    cases = {
        "nothing": (sent(release), received(acquire), set()),
        "fences": (sent(relaxed, fence=fence), received(look, fence), set()),
        "fence before": (sent(relaxed, f"{fence} bar.sync 0;"), received(acquire), {("fence", "formal")}),
        "acquire": (sent(release), received(look), {("acquire", "formal")}),
        "fence": (sent(relaxed), received(acquire), {("fence", "wrong")}),
        "barrier": (sent(release, barrier=""), received(acquire), {("barrier", "wrong")}),
    }
    for name, (send, receive, want) in cases.items():
        seen = {(lack, verdict) for _, _, lack, verdict in found(send, receive, devices, stale=stale)}
        # without the barrier a read may also come before the write that it should follow
        early = {(f"order of {what}", "wrong") for what in ("blocks", "devices") if name == "barrier"}
        assert seen <= want | early, name
        assert bool(seen) == bool(want), name


def test_a_race_names_the_missing_scope():
    seen = found(sent(RELEASE.format("gpu")), received(ACQUIRE.format("sys")), 2)
    assert ("race", "f", "scope", "wrong") in seen
    assert ("race", "a", "scope", "wrong") in seen
    assert {lack for _, _, lack, _ in seen} == {"scope"}
    seen = found(sent(RELEASE.format("cta")), received(ACQUIRE.format("gpu")), 1)
    assert {lack for _, _, lack, _ in seen} == {"scope"}


BLOCK = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a)
{{
.reg .u64 %a, %b; .reg .u32 %t, %r<8>; .reg .pred %p;
ld.param.u64 %a, [a]; mov.u32 %t, %tid.x;
{}
exit;
}}
"""
FIRST_LANES = "and.b32 %r1, %t, 31; setp.eq.u32 %p, %r1, 0; @%p st.global.u32 [%a], %t;"


@pytest.mark.parametrize(
    ("threads", "body", "want"),
    [
        (32, "st.global.u32 [%a], %t;", {("barrier", "wrong", "__syncwarp")}),
        (64, FIRST_LANES, {("barrier", "wrong", "__syncthreads")}),
        (64, "st.global.u32 [%a], 5;", {("barrier", "same value", "__sync"), ("barrier", "wrong", "__sync")}),
    ],
)
def test_races_within_a_block(threads, body, want):
    machine = ptxsim.Machine()
    array = machine.device(0).array(np.full(4, 5, np.uint32), "a")
    machine.device(0).launch(BLOCK.format(body), 1, threads, array)
    reports = machine.run()
    assert reports
    for report in reports:
        assert any(
            report.missing == lack and report.verdict == verdict and repair in report.repair
            for lack, verdict, repair in want
        )


def test_a_shuffle_from_an_absent_lane_needs_that_lane():
    machine = ptxsim.Machine()
    array = machine.device(0).array(np.zeros(4, np.uint32), "a")
    body = "setp.lt.u32 %p, %t, 4; @!%p exit; shfl.sync.down.b32 %r1, %t, 16, 31, 15;"
    machine.device(0).launch(BLOCK.format(body), 1, 32, array)
    reports = machine.run()
    assert {(report.kind, report.missing) for report in reports} == {("uninitialised", "lane")}
    assert "let every lane that is read run this shuffle" in reports[0].repair


def test_the_same_value_twice_is_said():
    machine = ptxsim.Machine()
    array = machine.device(0).array(np.full(4, 5, np.uint32), "a")
    machine.device(0).launch(BLOCK.format("st.global.u32 [%a], 5;"), 1, 64, array)
    reports = machine.run()
    assert {report.verdict for report in reports} == {"same value"}
    assert "[same value]" in str(reports[0])
    assert "[missing barrier: " in str(reports[0])


@pytest.mark.parametrize(("value", "verdict"), [("mov.u32 %t, %t;", "wrong"), ("mov.u32 %t, 0;", "same value")])
def test_a_thread_that_writes_what_is_there_does_not_hide_the_others(value, verdict):
    """Thread 0 writes the 0 that is there in both forms, and its race is found first."""
    send = sent(RELEASE.format("gpu")).replace("add.u32 %t, %t, 9;", value)
    verdicts = found(send, received("mov.u32 %r1, 1"), 1, seeds=3, stale=False)
    assert {one[3] for one in verdicts if one[1] == "a"} == {verdict}


TWINS = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a, .param .u64 o)
{
.reg .u64 %a, %o, %i, %j; .reg .u32 %t, %s, %r<4>; .reg .pred %p, %q;
.shared .align 16 .b8 tile[1024];
ld.param.u64 %a, [a]; ld.param.u64 %o, [o]; mov.u32 %t, %tid.x; setp.ge.u32 %q, %t, FIRST; setp.eq.u32 %p, %t, 0;
rem.u32 %r0, %t, FIRST; shl.b32 %r0, %r0, 4; cvt.u64.u32 %i, %r0; add.u64 %i, %a, %i;
mov.u32 %s, tile; add.u32 %s, %s, %r0; shl.b32 %r1, %t, 2; cvt.u64.u32 %j, %r1; add.u64 %o, %o, %j;
BODY
}
"""
COPY = "cp.async.cg.shared.global [%s], [%i], 16; cp.async.commit_group;"
READ = "ld.shared.u32 %r2, [%s]; st.global.u32 [%o], %r2;"
WAITED = "cp.async.wait_group 0; bar.sync 0;"
FURTHER = "@%q add.u64 %i, %i, 512;"


def twins(body, first=16, threads=32, other=None, seed=0):
    """(reports, a, o) of a kernel whose thread t copies 16 bytes to the place of thread t - first."""
    machine = ptxsim.Machine(seed=seed)
    data = np.arange(256, dtype=np.uint32) + 1
    data[128:] = data[:128] if other is None else other
    a = machine.device(0).array(data, "a")
    o = machine.device(0).array(np.zeros(threads, np.uint32), "o")
    machine.device(0).launch(TWINS.replace("BODY", body).replace("FIRST", str(first)), 1, threads, a, o)
    return machine.run(), data, o.copy_to_host()


@pytest.mark.parametrize(("first", "threads"), [(16, 32), (8, 32), (32, 64)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_copies_of_the_same_bytes_are_the_same_value(first, threads, seed):
    """Also of three or more lanes, and of two warps."""
    reports, a, o = twins(f"{COPY} {WAITED} {READ}", first, threads, seed=seed)
    assert {(report.kind, report.verdict) for report in reports} == {("race", "same value")}
    assert (o == a[np.arange(threads) % first * 4]).all()


@pytest.mark.parametrize("wait", ["@!%q", "@%q"])
def test_a_thread_that_waits_for_one_of_two_equal_copies_may_read(wait):
    reports, a, o = twins(f"{COPY} {wait} cp.async.wait_group 0; bar.sync 0; {READ}")
    assert {(report.kind, report.verdict) for report in reports} == {("race", "same value")}
    assert (o == a[np.arange(32) % 16 * 4]).all()


def test_a_write_before_the_second_of_two_equal_copies_lands_is_reported():
    store = "@%p st.shared.u32 [%s], 5; bar.sync 0;"
    reports, _, _ = twins(f"{COPY} @!%q cp.async.wait_group 0; bar.sync 0; {store} {READ}")
    assert ("missing_wait", "wrong") in {(report.kind, report.verdict) for report in reports}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("first", "other"), [(16, 7), (16, None), (32, 7)])
def test_copies_from_two_sources_stay_wrong(seed, first, other):
    """None: the second source holds the same bytes."""
    reports, _, _ = twins(f"{FURTHER} {COPY} {WAITED} {READ}", first, 2 * first, other, seed)
    assert "wrong" in {report.verdict for report in reports}
    assert first == 32 or "missing_wait" in {report.kind for report in reports}


@pytest.mark.parametrize("other", [7, None])
@pytest.mark.parametrize(("between", "want"), [("", {("race", "wrong")}), ("bar.sync 0;", set())])
def test_a_second_copy_without_a_barrier_is_a_wrong_race(other, between, want):
    """The first copy has landed when the second starts."""
    first = f"@%q bra N; {COPY} cp.async.wait_group 0; {READ} N: {between}"
    reports, _, _ = twins(f"{first} {FURTHER} @!%q bra M; {COPY} M: {WAITED} {READ}", other=other)
    assert {(report.kind, report.verdict) for report in reports} == want

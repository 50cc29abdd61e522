"""Bulk copies on the PTX machine: their results, the order that waits give, and the reports of misuse."""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import launched, rejection

CHECKED = pytest.mark.parametrize("check", [True, False])
MODULE = ".shared .align 8 .b64 bars[8];\n.shared .align 128 .b8 tile[8192];"
LOAD = """mov.u32 r30, bars;
mov.u32 r29, tile;
setp.ne.u32 p30, t, 0;
@p30 bra READY;
mbarrier.init.shared::cta.b64 [r30], 1;
fence.mbarrier_init.release.cluster;
READY: bar.sync 0;
@p30 bra ISSUED;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [r30], 4096;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r29], [a0], 1024, [r30];
cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [r29+1024], [a0+1024], 2048, [r30];
mov.u64 d9, 0;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [r29+3072], [a0+3072], 1024, [r30], d9;
ISSUED:
WAIT: mbarrier.try_wait.parity.shared::cta.b64 p31, [r30], 0;
@!p31 bra WAIT;
mov.u64 d1, tile;
mad.wide.u32 d2, t, 32, d1;
mad.wide.u32 d3, t, 32, a1;
ld.shared.v4.b32 {r1, r2, r3, r4}, [d2];
st.global.v4.b32 [d3], {r1, r2, r3, r4};
ld.shared.v4.b32 {r1, r2, r3, r4}, [d2+16];
st.global.v4.b32 [d3+16], {r1, r2, r3, r4};
"""
DATA = np.random.default_rng(1).integers(0, 1 << 32, 1024, np.uint32)


def run(body, *arrays, threads=128, **options):
    return launched(body, *(arrays or (DATA, np.zeros(1024, np.uint32))), threads=threads, module=MODULE, **options)


@CHECKED
@pytest.mark.parametrize("seed", range(4))
def test_loads_with_and_without_a_wait(seed, check):
    out, found = run(LOAD, seed=seed, check=check)
    assert found == []
    assert np.array_equal(out[1], DATA)


def kinds_of(body, *arrays, seeds=range(8), **options):
    return {r.kind for seed in seeds for r in run(body, *arrays, seed=seed, **options)[1]}


READ = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 p31, [r30], 0;\n@!p31 bra WAIT;"


LATE = {"race", "missing_wait"}  # if a wait is missing, the schedule decides which of these are reported
MORE = {"uninitialised", "misuse", "deadlock"}  # reports that may follow those of LATE


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        (READ, "", LATE),
        ("fence.mbarrier_init.release.cluster;", "", {"missing_fence"}),
        ("fence.mbarrier_init.release.cluster;", "fence.proxy.async;", set()),
        ("expect_tx.shared::cta.b64 _, [r30], 4096", "expect_tx.shared::cta.b64 _, [r30], 3072", LATE),
        ("ISSUED:", "st.shared.u32 [tile+4096], 1;\nISSUED:", set()),
        ("ISSUED:", "st.shared.u32 [tile+1020], 1;\nISSUED:", LATE),
        ("mbarrier.arrive.expect_tx", "st.shared.u32 [tile+64], 1;\nmbarrier.arrive.expect_tx", {"missing_fence"}),
        (
            "mbarrier.arrive.expect_tx",
            "st.shared.u32 [tile+64], 1;\nfence.proxy.async;\nmbarrier.arrive.expect_tx",
            set(),
        ),
        ("mbarrier.arrive.expect_tx", "st.shared.u32 [tile+4096], 1;\nmbarrier.arrive.expect_tx", set()),
        ("mbarrier.arrive.expect_tx", "st.global.u32 [a0+64], 1;\nmbarrier.arrive.expect_tx", {"missing_fence"}),
        ("READY: bar", "@!p30 st.global.u32 [a0+64], 1;\nfence.proxy.async.global;\nREADY: bar", set()),
        (
            "READY: bar",
            "@!p30 st.global.u32 [a0+64], 1;\nfence.proxy.async.shared::cta;\nREADY: bar",
            {"missing_fence"},
        ),
        ("READY: bar.sync 0;", "READY: bar.sync 0;\nst.shared.u32 [tile+64], t;\n", LATE),
    ],
)
def test_what_orders_loads(old, new, kinds):
    assert old in LOAD
    found = kinds_of(LOAD.replace(old, new))
    assert (found & LATE and found <= LATE | MORE) if kinds == LATE else found == kinds


@pytest.mark.parametrize(("fence", "kinds"), [("", {"missing_fence"}), ("fence.proxy.async.shared::cta;", set())])
def test_a_reused_buffer_needs_a_fence(fence, kinds):
    """Only after a fence may a load overwrite what other threads have read through the generic proxy."""
    body = (
        LOAD
        + f"""{fence}
bar.sync 0;
@p30 bra OVER;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [r30], 16;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r29], [a0+512], 16, [r30];
OVER: mbarrier.try_wait.parity.shared::cta.b64 p31, [r30], 1;
@!p31 bra OVER;
ld.shared.v4.b32 {{r1, r2, r3, r4}}, [tile];
setp.eq.u32 p1, t, 5;
@p1 st.global.v4.b32 [d3], {{r1, r2, r3, r4}};"""
    )
    assert kinds_of(body) == kinds
    out = run(body)[0][1]
    want = DATA.copy()
    want[40:44] = DATA[128:132]
    assert np.array_equal(out, want)


def test_a_wait_on_one_barrier_does_not_order_copies_of_another():
    """A thread that waits on one barrier is not ordered after the copies that another barrier counts."""
    second = "mbarrier.init.shared::cta.b64 [r30+8], 1;\nfence.mbarrier_init"
    body = (
        LOAD.replace("fence.mbarrier_init", second).replace(
            "ISSUED:",
            """mbarrier.arrive.expect_tx.shared::cta.b64 _, [r30+8], 16;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r29+4096], [a0], 16, [r30+8];
ISSUED:""",
        )
        + "ld.shared.b32 r5, [tile+4096];\n"
    )
    found = kinds_of(body)
    assert found & LATE
    assert found <= LATE | MORE
    wait = READ.replace("WAIT", "V").replace("[r30]", "[r30+8]")
    assert kinds_of(body.replace("ld.shared.b32 r5", f"{wait}\nld.shared.b32 r5")) == set()


def test_a_wait_for_a_phase_does_not_order_copies_of_a_later_one():
    """A second copy on the same barrier has landed, but only the first phase was waited for.

    This wait does not order the copy.
    """
    seen = "mbarrier.test_wait.parity.relaxed.cta.shared::cta.b64 p31, [r30], 1;"  # a relaxed wait does not acquire
    body = (
        LOAD
        + f"""bar.sync 0;
@p30 bra LATER;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [r30], 16;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r29+4096], [a0], 16, [r30];
LATER: {seen}
@!p31 bra LATER;
ld.shared.b32 r5, [tile+4096];"""
    )
    assert kinds_of(body) == {"race"}
    assert kinds_of(body.replace(".relaxed.cta", "")) == set()


ONE = """mov.u32 r30, bars;
mov.u32 r29, tile;
mbarrier.init.shared::cta.b64 [r30], 1;
fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [r30], 64;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{to}], [{source}], {size}, [{bar}];
WAIT: mbarrier.try_wait.parity.shared::cta.b64 p31, [r30], 0;
@!p31 bra WAIT;"""


@CHECKED
@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, None),
        ({"size": 60}, "misuse"),
        ({"size": 0}, "misuse"),
        ({"to": "r29+8"}, "misaligned"),
        ({"source": "a0+8"}, "misaligned"),
        ({"to": "r29+8176"}, "out_of_bounds"),
        ({"bar": "r30+8"}, "misuse"),
        ({"bar": "r30+4"}, "misaligned"),
        ({"source": "a0+4064"}, "out_of_bounds"),
    ],
)
def test_wrong_addresses_and_sizes_are_reported(changed, kind, check):
    """A copy that is rejected at run time does not start, so the wait for it is a deadlock."""
    body = ONE.format(**{"to": "r29", "source": "a0", "size": 64, "bar": "r30"} | changed)
    found = [r.kind for r in run(body, DATA, threads=1, check=check)[1]]
    if kind == "out_of_bounds" and "source" in changed and not check:
        return  # reads near an array are checked by the checker only
    assert found == ([] if kind is None else [kind, "deadlock"])


def test_a_block_that_ends_before_its_copies_is_reported():
    body = ONE.format(to="r29", source="a0", size=64, bar="r30").split("WAIT:")[0]
    found = run(body, DATA, threads=1)[1]
    assert [(r.kind, "the block ended before" in r.message) for r in found] == [("misuse", True)]


# ---- stores ----
STORE = """mov.u32 r29, tile;
mov.u64 d1, tile;
mad.wide.u32 d2, t, 16, d1;
mad.wide.u32 d3, t, 16, a0;
ld.global.v4.b32 {r1, r2, r3, r4}, [d3];
st.shared.v4.b32 [d2], {r1, r2, r3, r4};
fence.proxy.async.shared::cta;
bar.sync 0;
setp.ne.u32 p1, t, 0;
@p1 bra STORED;
cp.async.bulk.global.shared::cta.bulk_group [a1+64], [r29], 1024;
cp.async.bulk.commit_group;
cp.async.bulk.global.shared::cta.bulk_group [a1+1088], [r29+1024], 1024;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
ld.global.b32 r5, [a1+64];
st.global.b32 [a1], r5;
STORED:
"""


def stored(body=STORE, **options):
    return run(body, DATA, np.zeros(600, np.uint32), **options)


@CHECKED
@pytest.mark.parametrize("seed", range(4))
def test_stores(seed, check):
    out, found = stored(seed=seed, check=check)
    assert found == []
    assert np.array_equal(out[1][16:528], DATA[:512])
    assert out[1][0] == DATA[0]


FREE = "cp.async.bulk.wait_group 0;"


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("fence.proxy.async.shared::cta;", "", {"missing_fence"}),
        ("fence.proxy.async.shared::cta;\nbar.sync 0;", "bar.sync 0;\nfence.proxy.async;", set()),
        ("bar.sync 0;", "", {"race", "uninitialised"}),
        (FREE, f"{FREE}\nst.shared.u32 [tile], 1;\nst.shared.u32 [tile+1024], 1;", set()),
        (FREE, f"st.shared.u32 [tile], 1;\n{FREE}", {"race"}),
        (FREE, f"cp.async.bulk.wait_group 1;\nst.shared.u32 [tile], 1;\n{FREE}", set()),
        (FREE, f"cp.async.bulk.wait_group 1;\nst.shared.u32 [tile+1024], 1;\n{FREE}", {"race"}),
        (FREE, f"cp.async.bulk.wait_group.read 0;\nst.shared.u32 [tile], 1;\n{FREE}", set()),
        (
            FREE,
            "cp.async.bulk.wait_group.read 0;",
            {"race"},
        ),  # after this wait the sources may be reused, but the targets may be incomplete
        (FREE, f"ld.global.b32 r6, [a1+1088];\n{FREE}", {"missing_wait", "race"}),
        (FREE, "", {"missing_wait", "race", "misuse"}),
        ("st.shared.v4.b32 [d2], {r1, r2, r3, r4};", "", {"uninitialised"}),
    ],
)
def test_what_orders_stores(old, new, kinds):
    assert old in STORE
    found = {r.kind for seed in range(8) for r in stored(STORE.replace(old, new), seed=seed)[1]}
    assert found == kinds


def test_the_next_kernel_reads_a_store():
    from simt_ptx import HEADER

    import ptxsim

    write = (
        HEADER
        + MODULE
        + """.visible .entry k(.param .u64 x)
{
.reg .b32 r<9>; .reg .b64 a; .reg .pred p;
ld.param.u64 a, [x];
mov.u32 r1, tile;
st.shared.u32 [tile], 5; st.shared.u32 [tile+4], 6; st.shared.u64 [tile+8], 7;
fence.proxy.async;
cp.async.bulk.global.shared::cta.bulk_group [a], [r1], 16;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0;
ret;
}"""
    )
    read = (
        HEADER
        + """.visible .entry k(.param .u64 x)
{
.reg .b32 r<9>; .reg .b64 a;
ld.param.u64 a, [x];
ld.global.u32 r1, [a]; st.global.u32 [a+4], r1;
ret;
}"""
    )
    machine = ptxsim.Machine()
    device = machine.device(0)
    out = device.array(np.zeros(4, np.uint32))
    device.launch(write, 1, 1, out)
    device.launch(read, 1, 1, out)
    assert machine.run() == []
    assert out.copy_to_host().tolist() == [5, 5, 7, 0]
    profile = machine.profile().opcodes["cp.async.bulk"]
    assert (profile["instructions"], profile["sectors"], profile["stores"]) == (3, 1, 1)


def test_prefetches_have_no_effect():
    body = "cp.async.bulk.prefetch.L2.global [a0], 1024;\nld.global.b32 r1, [a0];\nst.global.b32 [a1], r1;"
    out, found = run(body, threads=1)
    assert (found, out[1][0]) == ([], DATA[0])


def test_more_pending_copies_than_the_table_holds():
    """All lanes keep storing: some copies land early, so that the table never overflows."""
    body = """mov.u32 r29, tile;
shl.b64 d1, t64, 4;
add.u64 d1, d1, a0;
st.shared.v4.b32 [tile], {t, t, t, t};
mov.u32 r5, 0;
AGAIN: cp.async.bulk.global.shared::cta.bulk_group [d1], [r29], 16;
add.u32 r5, r5, 1;
setp.lt.u32 p1, r5, 500;
@p1 bra AGAIN;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;"""
    out, found = run(body, np.full(128, 99, np.uint32), threads=32, check=False)
    assert found == []
    assert set(out[0].tolist()) <= set(range(32))


@pytest.mark.parametrize(
    "text",
    [
        "cp.async.bulk.shared::cluster.global [r1], [d1], r2, [r3];",
        "cp.async.bulk.shared::cta.shared::cta.mbarrier::complete_tx::bytes [r1], [r2], r3, [r4];",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [r1], [d1], r2, [r3];",
        "cp.async.bulk.global.shared::cta [d1], [r1], 16;",
        "cp.async.bulk.wait_group r1;",
        "fence.mbarrier_init.acquire.cluster;",
        "fence.proxy.async.local;",
        "cp.async.bulk.wait_group -1;",
        "cp.async.bulk.wait_group 1.5;",
        "cp.async.bulk.wait_group 99999999999999999999;",
        "cp.async.wait_group -1;",
        "fence.proxy;",
        "fence.proxy.nonsense;",
        "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [d1], [r1], 16;",
        "cp.async.bulk.prefetch.L2.global.L2::cache_hint [d1], 16;",
        "cp.async.bulk.global.shared::cta.bulk_group [p1], [r1], 16;",
        "cp.async.bulk.global.shared::cta.bulk_group [d1+99999999999999999999], [r1], 16;",
        "cp.async.bulk.global.shared::cta.bulk_group [d1], [r1+99999999999999999999], 16;",
        "cp.async.mbarrier.arrive.noinc.shared [r1];",
    ],
)
def test_rejected_at_load(text):
    message = rejection(text)
    assert text.split()[0].rstrip(";") in message
    assert "PTX line" in message

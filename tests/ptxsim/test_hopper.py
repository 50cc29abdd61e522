"""A pipeline like those of Hopper kernels: one warp copies tiles in bulk, a warpgroup multiplies them by wgmma.

Shared memory holds two stages, each with a barrier for "full" and one for "empty". The unchanged kernel computes the
right product without a report. If one of its waits or arrivals is broken, the machine reports something.
"""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import launched
from simt_wgmma import chained, descriptor, fragments, narrow

import ptxsim

STEPS, N, STAGE = 5, 64, 16384
MODULE = ".shared .align 1024 .b8 tile[32768];\n.shared .align 8 .b64 bars[4];"
NAMES = ", ".join(f"c{i}" for i in range(N // 2))


def product(stage, step):
    a, b = (descriptor(stage * STAGE + at + 32 * step, 1, 16, 1024) for at in (0, 8192))
    return f"wgmma.mma_async.sync.aligned.m64n{N}k16.f32.bf16.bf16 {{{NAMES}}}, {a:#x}, {b:#x}, p2, 1, 1, 0, 0;"


def consumed(stage):
    return "\n".join(f"{product(stage, step)}\nsetp.eq.u32 p2, t, t;" for step in range(4))


BODY = f"""mov.u32 r30, bars;
setp.ne.u32 p30, t, 0;
@p30 bra START;
mbarrier.init.shared::cta.b64 [r30], 1; mbarrier.init.shared::cta.b64 [r30+8], 1;
mbarrier.init.shared::cta.b64 [r30+16], 4; mbarrier.init.shared::cta.b64 [r30+24], 4;
fence.mbarrier_init.release.cluster;
START: bar.sync 0;
mov.u32 r1, 0;
mov.u32 r2, 0;
setp.ge.u32 p1, t, 128;
@p1 bra PRODUCER;
setmaxnreg.inc.sync.aligned.u32 232;
setp.ne.u32 p2, t, t;
and.b32 r9, t, 31;
setp.eq.u32 p9, r9, 0;
CONSUME: and.b32 r3, r1, 1;
shl.b32 r4, r3, 3;
add.u32 r4, r4, r30;
shr.u32 r2, r1, 1;
and.b32 r2, r2, 1;
FULL: mbarrier.try_wait.parity.shared::cta.b64 p3, [r4], r2;
@!p3 bra FULL;
wgmma.fence.sync.aligned;
setp.eq.u32 p4, r3, 1;
@p4 bra ODD;
{consumed(0)}
bra BOTH;
ODD: {consumed(1)}
BOTH: wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
@p9 mbarrier.arrive.shared::cta.b64 _, [r4+16];
add.u32 r1, r1, 1;
setp.lt.u32 p5, r1, {STEPS};
@p5 bra CONSUME;
mad.wide.u32 d10, t, {2 * N}, a1;
{" ".join(f"st.global.b32 [d10+{4 * i}], c{i};" for i in range(N // 2))}
bra END;
PRODUCER: setmaxnreg.dec.sync.aligned.u32 40;
elect.sync r9|p9, -1;
@!p9 bra END;
PRODUCE: and.b32 r3, r1, 1;
shl.b32 r4, r3, 3;
add.u32 r4, r4, r30;
shr.u32 r2, r1, 1;
and.b32 r2, r2, 1;
xor.b32 r2, r2, 1;
EMPTY: mbarrier.try_wait.parity.shared::cta.b64 p3, [r4+16], r2;
@!p3 bra EMPTY;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [r4], {STAGE};
mov.u32 r5, tile;
mad.lo.u32 r5, r3, {STAGE}, r5;
mad.wide.u32 d1, r1, {STAGE}, a0;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r5], [d1], 8192, [r4];
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r5+8192], [d1+8192], 8192, [r4];
add.u32 r1, r1, 1;
setp.lt.u32 p5, r1, {STEPS};
@p5 bra PRODUCE;
END:"""


def tiles():
    """(tiles, A, B).

    The tiles lie in the order in which they are copied, A before B in each step. Their rows are swizzled.
    """
    rng = np.random.default_rng(6)
    parts, sides = np.zeros((STEPS, 2, 64, 8, 8), np.uint16), []
    for side in range(2):
        bits, values = narrow(rng.standard_normal((64, 64 * STEPS)), "bf16")
        sides.append(values)
        for step, row, part in np.ndindex(STEPS, 64, 8):
            first = 64 * step + 8 * part
            parts[step, side, row, part ^ (row & 7)] = bits[row, first : first + 8]
    return parts, *sides


TILES, A, B = tiles()


def run(body, **options):
    return launched(
        body,
        TILES,
        np.zeros((128, N // 2), np.float32),
        threads=160,
        module=MODULE,
        head=f".reg .b32 c<{N // 2}>;",
        **options,
    )


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_pipeline(seed, check):
    out, found = run(BODY, seed=seed, check=check)
    assert found == []
    want = chained(np.zeros((64, N), np.float32), A, B)
    for thread in range(128):
        for i, (row, column) in enumerate(fragments(thread % 32, N)):
            assert out[1][thread, i] == want[thread // 32 * 16 + row, column]


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("@!p3 bra EMPTY;", "", "race"),
        ("@!p3 bra FULL;", "", "late"),
        (
            "wgmma.wait_group.sync.aligned 0;\n@p9 mbarrier.arrive.shared::cta.b64 _, [r4+16];",
            "@p9 mbarrier.arrive.shared::cta.b64 _, [r4+16];\nwgmma.wait_group.sync.aligned 0;",
            "race",
        ),
        ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;", "missing_wait"),
        ("[r30+16], 4;", "[r30+16], 1;", "race"),
        ("@p9 mbarrier", "mbarrier", "race"),
        ("xor.b32 r2, r2, 1;", "", "deadlock"),
        (f"_, [r4], {STAGE};", f"_, [r4], {STAGE + 16};", "deadlock"),
        (f"_, [r4], {STAGE};", "_, [r4], 8192;", "late"),
        ("wgmma.fence.sync.aligned;", "", "missing_fence"),
        ("fence.mbarrier_init.release.cluster;", "", "missing_fence"),
        ("START: bar.sync 0;", "START:", "race"),
        ("shr.u32 r2, r1, 1;\nand.b32 r2, r2, 1;\nFULL", "FULL", "late"),
    ],
)
def test_a_broken_pipeline(old, new, kind):
    assert old in BODY
    found = {r.kind for seed in range(8) for r in run(BODY.replace(old, new, 1), seed=seed)[1]}
    assert kind in found or (kind == "late" and found & {"missing_wait", "race"})


def test_counters_of_a_pipeline():
    machine = ptxsim.Machine(check=False)
    assert run(BODY, machine=machine)[1] == []
    counted = machine.profile().opcodes
    assert counted["wgmma"]["instructions"] == 4 * 4 * STEPS
    assert counted["wgmma"]["shared_requests"] == 0
    copies = counted["cp.async.bulk"]
    assert (copies["instructions"], copies["loads"]) == (2 * STEPS, 2 * STEPS)
    assert copies["bytes_used"] == STEPS * STAGE
    assert copies["bytes_efficiency"] == 1
    assert counted["mbarrier"]["instructions"] >= 4 + STEPS * (2 + 4 * 2)

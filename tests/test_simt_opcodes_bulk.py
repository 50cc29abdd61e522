"""Bulk copies of the PTX machine: what they copy, when it is there, what orders them, and what is a finding."""

from __future__ import annotations

import numpy as np
import pytest
from simt_ptx import launched

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
def test_loads_and_what_waits_for_them(seed, check):
    out, found = run(LOAD, seed=seed, check=check)
    assert found == []
    assert np.array_equal(out[1], DATA)

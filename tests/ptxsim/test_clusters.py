"""Clusters of several blocks: their barrier, distributed shared memory, remote mbarriers and copies to other blocks."""

from __future__ import annotations

import numpy as np
import pytest
from needs_nvrtc import compiles
from simt_ptx import HEADER

import ptxsim
from ptxsim import nvrtc

SOURCE = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

// each block writes a tile, and reads that of the next block of its cluster
template <bool Before, bool After> __global__ void __cluster_dims__(4, 1, 1) shift(const float *in, float *out) {
    __shared__ float tile[32];
    auto cluster = cg::this_cluster();
    int i = blockIdx.x * 32 + threadIdx.x;
    tile[threadIdx.x] = in[i];
    if (Before) cluster.sync();
    float *other = cluster.map_shared_rank(tile, (cluster.block_rank() + 1) % cluster.num_blocks());
    out[i] = other[threadIdx.x];
    if (After) cluster.sync();
}

// the blocks of a cluster add into the histogram of the block that owns a bin; the cluster comes from the launch
__global__ void histogram(const int *in, int *out, int n) {
    extern __shared__ int bins[];
    auto cluster = cg::this_cluster();
    int ranks = cluster.num_blocks(), each = 64 / ranks;
    for (int k = threadIdx.x; k < each; k += blockDim.x) bins[k] = 0;
    cluster.sync();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        int *owner = cluster.map_shared_rank(bins, in[i] / each);
        atomicAdd(&owner[in[i] % each], 1);
    }
    cluster.sync();
    for (int k = threadIdx.x; k < each; k += blockDim.x)
        atomicAdd(&out[cluster.block_rank() * each + k], bins[k]);
}

__global__ void __cluster_dims__(2, 3, 1) numbers(int *out) {
    auto cluster = cg::this_cluster();
    dim3 at = cluster.block_index();
    int block = blockIdx.y * gridDim.x + blockIdx.x;
    int *row = out + 6 * block;
    if (threadIdx.x == 0) {
        row[0] = cluster.block_rank(); row[1] = cluster.num_blocks(); row[2] = at.x; row[3] = at.y;
        unsigned x, y;
        asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(x));
        asm volatile("mov.u32 %0, %%nclusterid.y;" : "=r"(y));
        row[4] = x; row[5] = y;
    }
}
"""


def compiled(kernel):
    ptx, names = nvrtc.compiled_kernels(SOURCE, "clusters.cu", (9, 0), (kernel,))
    return ptx, names[kernel]


def shifted(before, after, seed=0, **options):
    ptx, entry = compiled(f"shift<{str(before).lower()}, {str(after).lower()}>")
    machine = ptxsim.Machine(seed=seed, **options)
    device = machine.device(0)
    values = np.random.default_rng(1).random(256).astype(np.float32)
    out = device.array(np.zeros(256, np.float32))
    device.launch(ptx, 8, 32, device.array(values), out, entry=entry)
    return values, out, machine.run()


@compiles
@pytest.mark.parametrize("check", [True, False])
def test_blocks_read_each_others_shared_memory(check):
    for seed in range(4):
        values, out, found = shifted(True, True, seed, check=check)
        assert found == []
        wanted = np.roll(values.reshape(2, 4, 32), -1, axis=1).reshape(-1)
        assert np.array_equal(out.copy_to_host(), wanted)


@compiles
def test_a_missing_barrier_of_the_cluster_is_reported():
    """Without the first barrier the blocks may not have started, and what they write is not there yet.

    Without the last one a block may have ended. Both are found whatever the order of the blocks is.
    """
    for seed in range(4):
        _, _, found = shifted(False, True, seed)
        started = next(report for report in found if report.kind == "misuse")
        assert "may not have started" in started.message
        assert started.missing == "barrier of the cluster"
        assert any(report.kind in ("race", "uninitialised") for report in found)
        _, _, found = shifted(True, False, seed)
        assert [report.kind for report in found] == ["use_after_free"]
        assert "of the cluster's block" in found[0].message
        assert "cluster.sync() after" in found[0].repair


@compiles
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_histogram_over_a_cluster_of_any_size(size):
    ptx, entry = compiled("histogram")
    machine = ptxsim.Machine(sm_count=8)
    device = machine.device(0)
    values = np.random.default_rng(2).integers(0, 64, 700).astype(np.int32)
    out = device.array(np.zeros(64, np.int32))
    device.launch(ptx, 16, 64, device.array(values), out, 700, shared=256, entry=entry, cluster=size)
    assert machine.run() == []
    assert np.array_equal(out.copy_to_host(), np.bincount(values, minlength=64))


@compiles
def test_numbers_of_blocks_in_clusters_of_two_dimensions():
    ptx, entry = compiled("numbers")
    machine = ptxsim.Machine(sm_count=8)
    out = machine.device(0).array(np.full((6, 4, 6), -1, np.int32))
    machine.device(0).launch(ptx, (4, 6), 32, out, entry=entry)
    assert machine.run() == []
    y, x = np.meshgrid(np.arange(6), np.arange(4), indexing="ij")
    wanted = np.stack([x % 2 + 2 * (y % 3), 0 * x + 6, x % 2, y % 3, x // 2, 0 * x + 2], axis=-1)
    assert np.array_equal(out.copy_to_host(), wanted)


@compiles
def test_launches_that_cannot_be():
    ptx, entry = compiled("numbers")
    device = ptxsim.Machine(sm_count=1).device(0)
    for grid, options, message in (
        ((4, 6), {"cluster": (2, 1, 1)}, "compiled for clusters of"),
        ((4, 4), {}, "whole clusters"),
    ):
        with pytest.raises(ptxsim.InputError, match=message):
            device.launch(ptx, grid, 32, 0, entry=entry, **options)
    shift, name = compiled("histogram")
    with pytest.raises(ptxsim.InputError, match=r"resident at once: 1 fit.*sm_count"):
        device.launch(shift, 16, 1024, 0, 0, 0, entry=name, cluster=8)
    with pytest.raises(ptxsim.InputError, match="at most 16 blocks"):
        device.launch(shift, (64, 8), 32, 0, 0, 0, entry=name, cluster=(8, 4))
    text = f"{HEADER}.visible .entry k()\n.explicitcluster\n{{\nret;\n}}"
    with pytest.raises(ptxsim.InputError, match="needs clusters"):
        device.launch(text, 4, 32)


# ---- PTX by hand ----
def in_cluster(body, *arrays, module="", blocks=2, threads=32, seed=0, check=True):
    """Run PTX in one cluster. Registers as in simt_ptx.launched; rank and peer are ranks, of it and of the next one."""
    params = ", ".join(f".param .u64 x{i}" for i in range(len(arrays)))
    lines = [
        *(f".reg .{kind} {name}<40>;" for kind, name in (("b16", "h"), ("b32", "r"), ("b64", "d"), ("pred", "p"))),
        ".reg .b32 t, rank, peer; .reg .b64 t64;",
        "mov.u32 t, %tid.x; cvt.u64.u32 t64, t; mov.u32 rank, %cluster_ctarank; add.u32 peer, rank, 1;",
        f"rem.u32 peer, peer, {blocks};",
        *(f".reg .b64 a{i}; ld.param.u64 a{i}, [x{i}];" for i in range(len(arrays))),
    ]
    text = f"{HEADER}{module}\n.visible .entry k({params})\n{{\n" + "\n".join([*lines, body, "ret;", "}"])
    machine = ptxsim.Machine(check=check, seed=seed, arch="sm_90a")
    held = [machine.device(0).array(array) for array in arrays]
    machine.device(0).launch(text, blocks, threads, *held, cluster=blocks)
    found = machine.run()
    return [array.copy_to_host() for array in held], found


SYNC = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
# thread 0 initialises an mbarrier, and a relaxed arrival is enough for the others to know of it
INIT = """mov.u32 r30, bar;
setp.ne.u32 p30, t, 0;
@p30 bra READY;
mbarrier.init.shared::cta.b64 [r30], 1;
fence.mbarrier_init.release.cluster;
READY: barrier.cluster.arrive.relaxed.aligned;
barrier.cluster.wait.acquire.aligned;
"""
WAIT = "WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p1, [r30], 0;\n@!p1 bra WAIT;"
MODULE = ".shared .align 8 .b64 bar;\n.shared .align 128 .b8 tile[1024];"
REMOTE = f"""{INIT}
mov.u32 r1, tile;
mapa.shared::cluster.u32 r2, r1, peer;
mapa.shared::cluster.u32 r3, r30, peer;
mad.lo.u32 r4, t, 4, r2;
mad.lo.u32 r6, rank, 100, t;
st.shared::cluster.b32 [r4], r6;
bar.warp.sync -1;
@p30 bra SENT;
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r3];
SENT: {WAIT}
mad.lo.u32 r4, t, 4, r1;
ld.shared.b32 r5, [r4];
mad.lo.u32 r7, rank, 32, t;
mul.wide.u32 d1, r7, 4;
add.u64 d1, d1, a0;
st.global.b32 [d1], r5;
{SYNC}"""


@pytest.mark.parametrize("check", [True, False])
def test_a_remote_arrival_hands_over_what_was_stored(check):
    for seed in range(3):
        (out,), found = in_cluster(REMOTE, np.zeros(64, np.uint32), module=MODULE, seed=seed, check=check)
        assert found == []
        assert np.array_equal(out, np.concatenate([100 + np.arange(32), np.arange(32)]))


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("arrive.release.cluster.shared", "arrive.relaxed.cluster.shared", "race"),
        ("bar.warp.sync -1;", "", "race"),
        (SYNC, "", ""),  # the block's own wait for its peer's last access is enough
        ("fence.mbarrier_init.release.cluster;", "", "race"),
        ("barrier.cluster.wait.acquire.aligned;\n", "", "misuse"),
        ("mov.u32 r30, bar;", "mov.u32 r30, bar; barrier.cluster.wait.aligned;", "misuse"),
        ("@!p1 bra WAIT;", "@!p1 bra WAIT; barrier.cluster.arrive.aligned;", "misuse"),
    ],
)
def test_faults_with_remote_barriers(old, new, kind):
    assert old in REMOTE
    kinds = set()
    for seed in range(3):
        _, found = in_cluster(REMOTE.replace(old, new, 1), np.zeros(64, np.uint32), module=MODULE, seed=seed)
        kinds |= {report.kind for report in found}
    assert kind in kinds if kind else not kinds


COPY = """@p30 bra WAIT;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [r30], 256;
setp.ne.u32 p2, rank, 0;
@p2 bra WAIT;
mov.u32 r1, tile;
mov.u16 h1, 3;
{copy}
"""
READ = f"""{WAIT}
mov.u32 r1, tile;
mad.lo.u32 r4, t, 8, r1;
ld.shared.b64 d5, [r4];
mad.lo.u32 r7, rank, 32, t;
mul.wide.u32 d1, r7, 8;
add.u64 d1, d1, a1;
st.global.b64 [d1], d5;
{SYNC}"""
BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "copy",
    [
        BULK + ".multicast::cluster [r1], [a0], 256, [r30], h1;",
        BULK + ".multicast::cluster.L2::cache_hint [r1], [a0], 256, [r30], h1, d9;",
        # one copy to each block, by a remote address and a remote mbarrier
        BULK
        + " [r1], [a0], 256, [r30];\nmapa.shared::cluster.u32 r2, r1, 1;\nmapa.shared::cluster.u32 r3, r30, 1;\n"
        + BULK
        + " [r2], [a0], 256, [r3];",
        # one copy to the own block, which sends it on from its shared memory
        BULK + " [r1], [a0], 256, [r30];\nPOLL: mbarrier.try_wait.parity.shared::cta.b64 p1, [r30], 0;\n"
        "@!p1 bra POLL;\nmapa.shared::cluster.u32 r2, r1, 1;\nmapa.shared::cluster.u32 r3, r30, 1;\n"
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [r2], [r1], 256, [r3];",
    ],
)
def test_copies_to_the_blocks_of_a_cluster(copy, check):
    values = np.random.default_rng(3).integers(0, 1 << 62, 32).astype(np.uint64)
    body = INIT + COPY.format(copy=copy) + READ
    (_, out), found = in_cluster(body, values, np.zeros(64, np.uint64), module=MODULE, check=check)
    assert found == []
    assert np.array_equal(out, np.tile(values, 2))


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (
            "mapa.shared::cluster.u32 r2, r1, 1; " + BULK + " [r2], [a0], 256, [r30];",
            "the block to which the copy goes",
        ),
        ("mov.u16 h1, 7; " + BULK + ".multicast::cluster [r1], [a0], 256, [r30], h1;", "outside what is allocated"),
        ("mapa.shared::cluster.u32 r3, r30, 1; mbarrier.try_wait.shared::cta.b64 p1, [r3], d1;", "can only arrive"),
    ],
)
def test_wrong_copies_are_reported(copy, message):
    values = np.ones(32, np.uint64)
    body = INIT + COPY.format(copy=copy) + SYNC.join(("WAIT:", ""))
    _, found = in_cluster(body, values, np.zeros(64, np.uint64), module=MODULE)
    assert any(message in report.message for report in found)


FLAG = """mov.u32 r1, tile;
setp.ne.u32 p1, t, 0;
mapa.shared::cluster.u32 r2, r1, peer;
mov.u32 r5, 1;
st.shared.b32 [r1+16], r5;
st.relaxed.{scope}.shared.b32 [r1], r5;
barrier.cluster.arrive.relaxed;
barrier.cluster.wait;
@p1 bra OUT;
{fence}
st.relaxed.{scope}.shared::cluster.b32 [r2+4], r5;
SPIN: ld.relaxed.{scope}.shared.b32 r6, [r1+4];
setp.eq.u32 p2, r6, 0;
@p2 bra SPIN;
{fence}
ld.shared::cluster.b32 r7, [r2+16];
OUT: barrier.cluster.arrive;
barrier.cluster.wait;"""


@pytest.mark.parametrize(
    ("scope", "fence", "kinds"),
    [
        ("cluster", "fence.acq_rel.cluster;", set()),
        ("cluster", "fence.sc.cluster;", set()),
        ("gpu", "fence.acq_rel.gpu;", set()),
        ("cta", "fence.acq_rel.cluster;", {"race"}),
        ("cluster", "", {"race"}),
    ],
)
def test_scopes_of_a_cluster(scope, fence, kinds):
    body = "mov.u32 r9, tile; mov.u32 r8, 0; st.shared.b32 [r9+4], r8; barrier.cluster.arrive; barrier.cluster.wait;"
    _, found = in_cluster(body + FLAG.format(scope=scope, fence=fence), module=MODULE, threads=1)
    assert {report.kind for report in found} == kinds
    if scope == "cta":
        assert {report.missing for report in found if "4" in report.address} == {"scope"}


def test_a_barrier_that_a_thread_never_reaches_is_a_deadlock():
    body = "mov.u64 d1, a0;\nsetp.eq.u32 p1, rank, 1;\n@p1 bra SPIN;\nbarrier.cluster.arrive;\n"
    body += "barrier.cluster.wait;\nret;\n"
    body += "SPIN: ld.relaxed.gpu.global.b32 r1, [d1];\nsetp.eq.u32 p2, r1, 0;\n@p2 bra SPIN;"
    _, found = in_cluster(body, np.zeros(1, np.uint32))
    assert {report.kind for report in found} == {"deadlock"}
    assert any("at the cluster's barrier" in report.message for report in found)
    # threads that have ended count as arrived
    _, found = in_cluster("setp.eq.u32 p1, rank, 1;\n@p1 bra END;\n" + SYNC + "\nEND:")
    assert found == []


def test_ranks_and_spaces_of_addresses():
    body = f"""{SYNC}
mov.u64 d1, tile;
cvta.shared.u64 d2, d1;
mapa.u64 d3, d2, peer;
getctarank.u64 r1, d3;
getctarank.u64 r2, d2;
isspacep.shared::cta p1, d3;
isspacep.shared::cluster p2, d3;
isspacep.shared::cta p3, d2;
mapa.u64 d4, d3, rank;
setp.eq.u64 p4, d4, d2;
selp.u32 r3, 1, 0, p1;
selp.u32 r4, 2, 0, p2;
selp.u32 r5, 4, 0, p3;
selp.u32 r6, 8, 0, p4;
add.u32 r3, r3, r4;
add.u32 r5, r5, r6;
add.u32 r3, r3, r5;
mul.wide.u32 d5, rank, 16;
add.u64 d5, d5, a0;
st.global.v4.b32 [d5], {{r1, r2, r3, peer}};"""
    (out,), found = in_cluster(body, np.zeros((2, 4), np.uint32), module=MODULE, threads=1)
    assert found == []
    assert out.tolist() == [[1, 0, 14, 1], [0, 1, 14, 0]]

"""Multicast in a cluster: boxes of tensors for several blocks, and commits of products that several wait for."""

from __future__ import annotations

import numpy as np
import pytest
from needs_nvrtc import compiles
from simt_wgmma import descriptor, image, strides

import ptxsim
from ptxsim import nvrtc

pytestmark = compiles
SOURCE = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
using u64 = unsigned long long;
struct alignas(64) Map { char bytes[128]; };

__device__ unsigned local(const void *p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
__device__ void init(u64 *bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(local(bar)), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ void expect(u64 *bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(local(bar)), "r"(bytes) : "memory");
}
__device__ void wait(u64 *bar) {
    asm volatile("{ .reg .pred p; L: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], 0; @!p bra L; }"
                 :: "r"(local(bar)) : "memory");
}
__device__ void fetch(void *to, const Map &map, int x, int y, u64 *bar, int mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;"
                 :: "r"(local(to)), "l"(&map), "r"(x), "r"(y), "r"(local(bar)), "h"((short)mask) : "memory");
}

// Block 0 fetches a box of 8 rows of 32 numbers for the blocks of Mask.
template <int Mask, int Waiting, bool Reads> __global__ void __cluster_dims__(4, 1, 1)
one_fetches(const __grid_constant__ Map map, int *out) {
    __shared__ alignas(128) int tile[256];
    __shared__ u64 bar;
    auto cluster = cg::this_cluster();
    int rank = cluster.block_rank(), t = threadIdx.x;
    if (t == 0) { init(&bar, 1); expect(&bar, (Waiting >> rank & 1) * 1024); }
    cluster.sync();
    if (rank == 0 && t == 0) fetch(tile, map, 16, 3, &bar, Mask);
    if (Waiting >> rank & 1) {
        if (Reads) wait(&bar);
        for (int k = 0; k < 8; k++) out[rank * 256 + k * 32 + t] = tile[k * 32 + t];
    }
    cluster.sync();
}

// Each block fetches two rows for all, which is how tiles of operands are shared.
template <bool Fits> __global__ void __cluster_dims__(4, 1, 1)
all_fetch(const __grid_constant__ Map map, int *out) {
    __shared__ alignas(128) int tile[256];
    __shared__ u64 bar;
    auto cluster = cg::this_cluster();
    int rank = cluster.block_rank(), t = threadIdx.x;
    if (t == 0) { init(&bar, 1); expect(&bar, Fits ? 1024 : 768); }
    cluster.sync();
    if (t == 0) fetch(tile + 64 * rank, map, 0, 2 * rank, &bar, 15);
    wait(&bar);
    for (int k = 0; k < 8; k++) out[rank * 256 + k * 32 + t] = tile[k * 32 + t];
    cluster.sync();
}

#if __CUDA_ARCH__ >= 1000
// Block 0 computes a product of 128 x 16 x 16, and its commit notifies the blocks of Mask. Then block 1 may change B.
template <int Mask, bool Waits> __global__ void __cluster_dims__(2, 1, 1)
commits(const uint4 *bytes, u64 a, u64 b, unsigned shape, unsigned *out) {
    __shared__ alignas(1024) uint4 tile[1024];
    __shared__ u64 bar;
    __shared__ unsigned place;
    auto cluster = cg::this_cluster();
    int rank = cluster.block_rank(), t = threadIdx.x, warp = t / 32;
    for (int k = t; k < 1024; k += 128) tile[k] = bytes[k];
    if (t == 0) init(&bar, 1);
    if (rank == 0 && warp == 0) {
        asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 32;"
                     :: "r"(local(&place)) : "memory");
        asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
    }
    asm volatile("fence.proxy.async;" ::: "memory");
    cluster.sync();
    if (rank == 0 && t == 0) {
        u64 at = local(tile) >> 4;
        asm volatile("{ .reg .pred p; setp.ne.u32 p, 0, 0;\n"
                     "tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, p; }"
                     :: "r"(place), "l"(a + at), "l"(b + at + 512), "r"(shape) : "memory");
        asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 "
                     "[%0], %1;"
                     :: "r"(local(&bar)), "h"((short)Mask) : "memory");
    }
    if (rank == 0 || Waits) wait(&bar);
    if (rank == 0) {
        unsigned r[16];
        asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
        asm volatile("tcgen05.ld.sync.aligned.32x32b.x16.b32 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
                     "%10, %11, %12, %13, %14, %15}, [%16];\ntcgen05.wait::ld.sync.aligned;"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7]),
                       "=r"(r[8]), "=r"(r[9]), "=r"(r[10]), "=r"(r[11]), "=r"(r[12]), "=r"(r[13]), "=r"(r[14]),
                       "=r"(r[15])
                     : "r"(place + (warp << 21)));
        for (int k = 0; k < 16; k++) out[t * 16 + k] = r[k];
        __syncthreads();
        if (warp == 0) asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 32;" :: "r"(place));
    } else if (t < 32) {
        cluster.map_shared_rank(tile, 0)[512 + t] = uint4();
    }
    cluster.sync();
}
#endif
"""


def made(kernel, cc):
    ptx, names = nvrtc.compiled_kernels(SOURCE, "multicast.cu", cc, (kernel,))
    return ptx, names[kernel]


def fetched(kernel, box, seed=0, check=True):
    """([4, 8, 32] what the blocks of a cluster got, the array, the reports)."""
    ptx, entry = made(kernel, (9, 0))
    machine = ptxsim.Machine(seed=seed, check=check)
    values = np.random.default_rng(seed).integers(0, 1 << 30, (20, 64), np.int32)
    map_ = ptxsim.tensor_map(machine.device(0).array(values), box)
    out = machine.device(0).array(np.zeros((4, 8, 32), np.int32))
    machine.device(0).launch(ptx, 4, 32, map_, out, entry=entry)
    found = machine.run()
    return out.copy_to_host(), values, found


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("mask", [0b1111, 0b1011, 0b0110])
def test_a_box_reaches_the_blocks_of_the_mask(mask, check):
    for seed in range(3):
        got, values, found = fetched(f"one_fetches<{mask}, {mask}, true>", (8, 32), seed, check)
        assert found == []
        for rank in range(4):
            assert np.array_equal(got[rank], values[3:11, 16:48] * (mask >> rank & 1))


def test_each_block_fetches_a_part_for_all():
    for seed in range(3):
        got, values, found = fetched("all_fetch<true>", (2, 32), seed)
        assert found == []
        assert all(np.array_equal(one, values[:8, :32]) for one in got)


@pytest.mark.parametrize(
    ("kernel", "box", "kinds"),
    [
        ("one_fetches<11, 15, true>", (8, 32), {"deadlock"}),  # block 2 waits, and the mask leaves it out
        ("one_fetches<15, 15, false>", (8, 32), {"missing_wait", "race", "uninitialised"}),  # nobody waits
        ("one_fetches<15, 7, true>", (8, 32), {"misuse"}),  # block 3 expects no bytes, and ends without a wait
        ("all_fetch<false>", (2, 32), {"missing_wait", "race", "uninitialised"}),  # three of four parts are awaited
    ],
)
def test_wrong_multicasts_of_boxes_are_reported(kernel, box, kinds):
    got = set()
    for seed in range(4):
        got |= {report.kind for report in fetched(kernel, box, seed)[2]}
    assert got & kinds, got


def committed(mask, waits, seed=0):
    """(D, its wanted values, the reports)."""
    ptx, entry = made(f"commits<{mask}, {str(waits).lower()}>", (10, 0, "a"))
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-4, 5, (rows, 16)).astype(np.float16) for rows in (128, 16))
    shared = np.zeros(16384, np.uint8)
    laid = [strides(0, False, rows, 16, 2) for rows in (128, 16)]
    for part, operand, steps in zip((shared[:8192], shared[8192:]), (a, b), laid):
        found = image(operand, 0, False, *steps)
        part[:] = np.resize(found, 8192) if len(found) < 8192 else found[:8192]
    described = [descriptor(0, 0, *steps) | 1 << 46 for steps in laid]
    machine = ptxsim.Machine(arch="sm_100a", seed=seed)
    out = machine.device(0).array(np.zeros((128, 16), np.uint32))
    shape = 128 >> 4 << 24 | 16 >> 3 << 17 | 1 << 4
    machine.device(0).launch(ptx, 2, 128, machine.device(0).array(shared), *described, shape, out, entry=entry)
    reports = machine.run()
    return out.copy_to_host().view(np.float32), a.astype(np.float32) @ b.astype(np.float32).T, reports


def test_a_commit_notifies_both_blocks():
    for seed in range(3):
        got, wanted, found = committed(0b11, True, seed)
        assert found == []
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("mask", "waits", "kinds"),
    [
        (0b01, True, {"deadlock"}),  # block 1 is not notified
        (0b11, False, {"race"}),  # block 1 changes B without a wait
    ],
)
def test_wrong_commits_are_reported(mask, waits, kinds):
    got = set()
    for seed in range(3):
        got |= {report.kind for report in committed(mask, waits, seed)[2]}
    assert kinds <= got, got

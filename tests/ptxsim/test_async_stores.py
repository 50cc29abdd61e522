"""st.async and red.async, and transactions of mbarriers by hand, within clusters."""

from __future__ import annotations

import numpy as np
import pytest
from needs_nvrtc import compiles

import ptxsim
from ptxsim import nvrtc

pytestmark = compiles
SOURCE = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
using u64 = unsigned long long;

__device__ unsigned local(void *p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
__device__ unsigned remote(void *p, int rank) {
    unsigned at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(local(p)), "r"(rank));
    return at;
}
__device__ void init(u64 *bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(local(bar)), "r"(count) : "memory");
}
__device__ void arrive_at(u64 *bar, int rank) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" :: "r"(remote(bar, rank)) : "memory");
}
__device__ void expect(u64 *bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(local(bar)), "r"(bytes) : "memory");
}
__device__ void wait(u64 *bar, int parity) {
    asm volatile("{ .reg .pred p; L: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1; @!p bra L; }"
                 :: "r"(local(bar)), "r"(parity) : "memory");
}

// Each block sends 16 bytes a thread to the other block, in ROUNDS rounds. The values differ from round to round.
template <int Rounds, bool Waits, bool Orders, int Extra, bool Far>
__global__ void __cluster_dims__(2, 1, 1) swap(int4 *out) {
    __shared__ int4 slots[32];
    __shared__ u64 full, empty;
    auto cluster = cg::this_cluster();
    int rank = cluster.block_rank(), peer = 1 - rank, t = threadIdx.x;
    if (t == 0) { init(&full, 1); init(&empty, 32); }
    cluster.sync();
    for (int round = 0; round < Rounds; round++) {
        if (t == 0) expect(&full, 32 * 16 + Extra);
        if (round && Orders) wait(&empty, (round - 1) & 1);
        int a = 1000 * round + 100 * rank + t;
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                     :: "r"(remote(&slots[t], peer)), "r"(a), "r"(a + 1), "r"(a + 2), "r"(-a),
                        "r"(Far ? remote(&full, peer) : local(&full)) : "memory");
        if (Waits) wait(&full, round & 1);
        out[(blockIdx.x * Rounds + round) * 32 + t] = slots[t];
        if (Waits) arrive_at(&empty, peer);
    }
    cluster.sync();
}

// Every thread of the cluster combines a number into each cell of block 0.
template <bool Waits, bool Fills> __global__ void __cluster_dims__(4, 1, 1) combine(unsigned *out, u64 *wide) {
    __shared__ unsigned cells[8];
    __shared__ u64 sum, bar;
    auto cluster = cg::this_cluster();
    unsigned n = cluster.block_rank() * 32 + threadIdx.x;
    if (n == 0) {
        init(&bar, 1);
        if (Fills) for (int k = 0; k < 8; k++) cells[k] = k == 3 ? ~0u : 8 * k;
        sum = 1ull << 40;
        expect(&bar, 128 * (8 * 4 + 8));
    }
    cluster.sync();
    unsigned at = remote(cells, 0), to = remote(&bar, 0);
#define RED(op, k, v) asm volatile( \
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes." op " [%0], %1, [%2];" \
        :: "r"(at + 4 * k), "r"(v), "r"(to) : "memory")
    RED("add.u32", 0, n); RED("add.s32", 1, -(int)n); RED("max.s32", 2, (int)n - 50);
    RED("and.b32", 3, ~(1u << n % 32)); RED("or.b32", 4, 1u << n % 32); RED("xor.b32", 5, n);
    RED("inc.u32", 6, 1000); RED("min.u32", 7, n + 3);
    asm volatile("red.async.relaxed.cluster.mbarrier::complete_tx::bytes.add.u64 [%0], %1, [%2];"
                 :: "l"(cluster.map_shared_rank(&sum, 0)), "l"((u64)n << 33), "l"(cluster.map_shared_rank(&bar, 0))
                 : "memory");
    if (n < 32 && Waits) wait(&bar, 0);
    if (n < 8) out[n] = cells[n];
    if (n == 0) *wide = sum;
    cluster.sync();
}

// Block 1 hands a word to block 0. The bytes are counted by hand.
template <bool Arrives> __global__ void __cluster_dims__(2, 1, 1) by_hand(int *out) {
    __shared__ int word;
    __shared__ u64 bar;
    auto cluster = cg::this_cluster();
    int rank = cluster.block_rank();
    if (rank == 0) {
        init(&bar, Arrives ? 2 : 1);
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 96;" :: "r"(local(&bar)) : "memory");
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(local(&bar)) : "memory");
    }
    cluster.sync();
    if (rank == 1) {
        *cluster.map_shared_rank(&word, 0) = 7;
        for (int k = 0; k < 3; k++)
            asm volatile("mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%0], 32;"
                         :: "r"(remote(&bar, 0)) : "memory");
        if (Arrives) arrive_at(&bar, 0);
    } else {
        wait(&bar, 0);
        out[0] = word;
    }
    cluster.sync();
}

// Block 0 reads its slots, then block 1 stores to them: later in time, ordered only by a barrier that releases.
template <bool Releases> __global__ void __cluster_dims__(2, 1, 1) late(int *out) {
    __shared__ int slots[32];
    __shared__ u64 bar;
    auto cluster = cg::this_cluster();
    int rank = cluster.block_rank(), t = threadIdx.x;
    slots[t] = t;
    if (t == 0) { init(&bar, 1); expect(&bar, rank ? 0 : 128); }
    cluster.sync();
    int before = slots[t];
    if (Releases) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    else asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    if (rank == 1)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
                     :: "r"(remote(&slots[t], 0)), "r"(100 + t), "r"(remote(&bar, 0)) : "memory");
    else {
        wait(&bar, 0);
        out[t] = 1000 * before + slots[t];
    }
    cluster.sync();
}

// Of 64 threads the odd ones leave after the first phase.
template <bool Drops> __global__ void leave(int *out) {
    __shared__ u64 bar;
    if (threadIdx.x == 0) init(&bar, 64);
    __syncthreads();
    if (threadIdx.x % 2) {
        if (Drops) asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0];" :: "r"(local(&bar)) : "memory");
        else asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(local(&bar)) : "memory");
        return;
    }
    for (int phase = 0; phase < 3; phase++) {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(local(&bar)) : "memory");
        wait(&bar, phase & 1);
    }
    out[threadIdx.x / 2] = 1;
}
"""


def launched(kernel, blocks, threads, *arrays, seed=0, check=True):
    """Run a kernel. Returns (the reports, the arrays after it)."""
    ptx, names = nvrtc.compiled_kernels(SOURCE, "async_stores.cu", (9, 0), (kernel,))
    machine = ptxsim.Machine(seed=seed, check=check)
    device = machine.device(0)
    made = [device.array(array) for array in arrays]
    device.launch(ptx, blocks, threads, *made, entry=names[kernel])
    return machine.run(), [array.copy_to_host() for array in made]


def swapped(rounds=3, waits=True, orders=True, extra=0, far=True, seed=0, check=True):
    words = ", ".join(str(one).lower() for one in (rounds, waits, orders, extra, far))
    found, (out,) = launched(f"swap<{words}>", 4, 32, np.zeros((4, rounds, 32, 4), np.int32), seed=seed, check=check)
    return found, out


@pytest.mark.parametrize("check", [True, False])
def test_stores_arrive_before_the_phase_ends(check):
    for seed in range(4):
        found, out = swapped(seed=seed, check=check)
        assert found == []
        for block in range(4):
            for number in range(3):
                a = 1000 * number + 100 * (1 - block % 2) + np.arange(32)
                assert np.array_equal(out[block, number], np.stack([a, a + 1, a + 2, -a], 1))


@pytest.mark.parametrize(
    ("broken", "kinds"),
    [
        ({"waits": False, "rounds": 1}, {"missing_wait", "race"}),  # the slots are read too early
        ({"orders": False}, {"race"}),  # the next round's stores do not wait for the reads
        ({"extra": 16}, {"deadlock"}),  # the phase waits for more bytes than come
        ({"far": False, "rounds": 1}, {"misuse"}),  # the mbarrier is in another block than the slots
    ],
)
def test_what_is_wrong_with_stores_is_reported(broken, kinds):
    seen = set()
    for seed in range(4):
        found, _ = swapped(seed=seed, **broken)
        seen |= {report.kind for report in found}
        if "far" in broken:
            assert any("in the block to which the copy goes" in report.message for report in found)
    assert kinds <= seen


@pytest.mark.parametrize("check", [True, False])
def test_reductions_of_many_threads(check):
    for seed in range(3):
        found, (out, wide) = launched(
            "combine<true, true>", 4, 32, np.zeros(8, np.uint32), np.zeros(1, np.uint64), seed=seed, check=check
        )
        assert found == []
        total = sum(range(128))
        xored = np.bitwise_xor.reduce(np.arange(128))
        wanted = [total, 8 - total, 77, 0, 32 | 0xFFFFFFFF, 40 ^ xored, 48 + 128, 3]
        assert out.tolist() == [number % (1 << 32) for number in wanted]
        assert int(wide[0]) == (1 << 40) + (total << 33)


def test_what_is_wrong_with_reductions_is_reported():
    out, wide = np.zeros(8, np.uint32), np.zeros(1, np.uint64)
    for seed in range(4):
        found, _ = launched("combine<false, true>", 4, 32, out, wide, seed=seed)
        kinds = {report.kind for report in found}  # misuse: the block may end before its reductions are done
        assert kinds in ({"race"}, {"race", "misuse"})
        found, _ = launched("combine<true, false>", 4, 32, out, wide, seed=seed)
        assert {"uninitialised"} == {report.kind for report in found}


def test_bytes_that_are_completed_by_hand():
    """mbarrier.complete_tx ends the phase, but it is relaxed: only an arrival hands over what was written before."""
    for seed in range(4):
        found, (out,) = launched("by_hand<true>", 2, 1, np.zeros(1, np.int32), seed=seed)
        assert found == []
        assert out[0] == 7
        found, _ = launched("by_hand<false>", 2, 1, np.zeros(1, np.int32), seed=seed)
        assert "race" in {report.kind for report in found}


def test_a_store_after_a_read_needs_an_order():
    for seed in range(3):
        found, (out,) = launched("late<true>", 2, 32, np.zeros(32, np.int32), seed=seed)
        assert found == []
        assert np.array_equal(out, 1001 * np.arange(32) + 100)
        found, _ = launched("late<false>", 2, 32, np.zeros(32, np.int32), seed=seed)
        assert {report.kind for report in found} == {"race"}


def test_a_thread_leaves_an_mbarrier():
    for seed in range(3):
        found, (out,) = launched("leave<true>", 1, 64, np.zeros(32, np.int32), seed=seed)
        assert found == []
        assert out.all()
        found, _ = launched("leave<false>", 1, 64, np.zeros(32, np.int32), seed=seed)
        assert {"deadlock"} == {report.kind for report in found}


HEAD = """.version 8.7
.target sm_100
.address_size 64
.visible .entry k(.param .u64 p)
{
.reg .b32 %r<9>; .reg .b64 %d<9>;
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b64 [%r1], {%d1, %d2, %d3, %d4}, [%r2];", "16"),
        ("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r1], %r3, [%r2];", "2 registers"),
        ("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b16 [%r1], %r3, [%r2];", "this type"),
        ("red.async.relaxed.cluster.mbarrier::complete_tx::bytes.exch.b32 [%d1], %r3, [%d2];", "one of .inc"),
        ("red.async.relaxed.gpu.mbarrier::complete_tx::bytes.add.u32 [%d1], %r3, [%d2];", "needs .relaxed.cluster"),
        ("red.async.relaxed.cluster.mbarrier::complete_tx::bytes.add.f32 [%d1], %r3, [%d2];", "this type"),
    ],
)
def test_forms_that_do_not_exist(line, message):
    device = ptxsim.Machine(arch="sm_100").device(0)
    with pytest.raises(ptxsim.PTXError, match=message):
        device.launch(f"{HEAD}{line}\nret;\n}}\n", 1, 1, 0)


def test_an_asynchronous_release_without_an_mbarrier():
    """st.async.release.global and red.async.release.global of sm_100 are done at once: one of the times allowed."""
    machine = ptxsim.Machine(arch="sm_100")
    out = machine.device(0).array(np.zeros(2, np.uint32))
    text = (
        f"{HEAD}ld.param.u64 %d1, [p]; mov.u32 %r1, 5; st.async.release.gpu.global.u32 [%d1], %r1;\n"
        "red.async.release.gpu.global.add.u32 [%d1+4], %r1;\nret;\n}\n"
    )
    machine.device(0).launch(text, 1, 1, out)
    assert machine.run() == []
    assert out.copy_to_host().tolist() == [5, 5]

"""Memory-model litmus tests: over many seeds, outcomes that PTX permits appear and outcomes that it forbids do not.

The threads of a test are blocks, threads of different warps or threads of different devices.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda
from simt_primitives import load, statement, store

import ptxsim

SEEDS = 120
FENCES = {
    name: statement(f"fence.{name};")
    for name in ("acq_rel.cta", "acq_rel.gpu", "acq_rel.sys", "sc.cta", "sc.gpu", "sc.sys")
}
NONE = statement("")
LOADS = {
    mods: load(mods)
    for mods in (
        "relaxed.cta.global",
        "relaxed.gpu.global",
        "relaxed.sys.global",
        "acquire.cta.global",
        "acquire.gpu.global",
        "acquire.sys.global",
        "volatile.global",
        "weak.global",
    )
}
STORES = {
    mods: store(mods)
    for mods in (
        "relaxed.cta.global",
        "relaxed.gpu.global",
        "relaxed.sys.global",
        "release.cta.global",
        "release.gpu.global",
        "release.sys.global",
        "volatile.global",
        "weak.global",
    )
}


def kernel_mp(put, fence_put, get, fence_get, weak=STORES["weak.global"], weak_get=LOADS["weak.global"]):
    @cuda.jit
    def mp(x, out, device, first):
        t = cuda.blockIdx.x + device if first < 0 else cuda.threadIdx.x // 32
        if cuda.threadIdx.x % 32 == 0:
            if t == 0:
                weak(x, 0, 1)
                fence_put()
                put(x, 64, 1)
            elif t == 1:
                a = get(x, 64)
                fence_get()
                out[0] = a
                out[1] = weak_get(x, 0)

    return mp


def kernel_sb(put, fence, get):
    @cuda.jit
    def sb(x, out, device, first):
        t = cuda.blockIdx.x + device if first < 0 else cuda.threadIdx.x // 32
        if cuda.threadIdx.x % 32 == 0 and t < 2:
            put(x, 64 * t, 1)
            fence()
            out[t] = get(x, 64 * (1 - t))

    return sb


def kernel_iriw(put, fence, get):
    @cuda.jit
    def iriw(x, out, device, first):
        t = cuda.blockIdx.x + device if first < 0 else cuda.threadIdx.x // 32
        if cuda.threadIdx.x % 32 == 0:
            if t < 2:
                put(x, 64 * t, 1)
            elif t < 4:
                a = get(x, 64 * (t - 2))
                fence()
                out[2 * (t - 2)] = a
                out[2 * (t - 2) + 1] = get(x, 64 * (3 - t))

    return iriw


def outcomes(kernel, where, threads, seeds=SEEDS):
    """(the set of outcomes over seeds, the set of kinds of reports)."""
    seen, kinds = set(), set()
    for seed in range(seeds):
        machine = ptxsim.Machine(devices=threads if where == "devices" else 1, seed=seed)
        d = machine.device(0)
        x, out = d.array(np.zeros(256, np.uint32)), d.array(np.zeros(4, np.uint32))
        if where == "blocks":
            d.launch(kernel, threads, 32, x, out, 0, -1)
        elif where == "warps":
            d.launch(kernel, 1, 32 * threads, x, out, 0, 0)
        else:
            for number in range(threads):
                machine.device(number).launch(kernel, 1, 32, x, out, number, -1)
        kinds |= {r.kind for r in machine.run() if not (r.address.startswith("out"))}
        seen.add(tuple(int(v) for v in out.copy_to_host()))
    return seen, kinds


WEAK_MP = (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("put", "fence_put", "get", "fence_get", "where", "weak"),
    [
        ("relaxed.sys.global", "", "relaxed.sys.global", "", "blocks", True),
        ("release.gpu.global", "", "relaxed.gpu.global", "", "blocks", True),
        ("relaxed.gpu.global", "", "acquire.gpu.global", "", "blocks", True),
        ("release.gpu.global", "", "acquire.gpu.global", "", "blocks", False),
        ("release.cta.global", "", "acquire.cta.global", "", "blocks", True),
        ("release.cta.global", "", "acquire.cta.global", "", "warps", False),
        ("release.gpu.global", "", "acquire.gpu.global", "", "devices", True),
        ("release.sys.global", "", "acquire.sys.global", "", "devices", False),
        ("relaxed.gpu.global", "acq_rel.gpu", "relaxed.gpu.global", "acq_rel.gpu", "blocks", False),
        ("relaxed.gpu.global", "acq_rel.cta", "relaxed.gpu.global", "acq_rel.gpu", "blocks", True),
        ("relaxed.sys.global", "acq_rel.sys", "relaxed.sys.global", "acq_rel.sys", "devices", False),
        ("relaxed.sys.global", "acq_rel.gpu", "relaxed.sys.global", "acq_rel.sys", "devices", True),
        ("volatile.global", "sc.gpu", "volatile.global", "sc.gpu", "blocks", False),
    ],
)
def test_message_passing(put, fence_put, get, fence_get, where, weak):
    kernel = kernel_mp(STORES[put], FENCES.get(fence_put, NONE), LOADS[get], FENCES.get(fence_get, NONE))
    seen, kinds = outcomes(kernel, where, 2)
    assert (WEAK_MP in seen) == weak
    assert {(0, 0, 0, 0), (1, 1, 0, 0)} <= seen
    assert "race" in kinds  # in every variant, a thread that reads 0 from the flag races on x


@pytest.mark.parametrize(
    ("put", "fence", "get", "where", "weak"),
    [
        ("weak.global", "", "weak.global", "blocks", True),
        ("relaxed.gpu.global", "", "relaxed.gpu.global", "blocks", True),
        ("release.gpu.global", "", "acquire.gpu.global", "blocks", True),
        ("relaxed.gpu.global", "acq_rel.gpu", "relaxed.gpu.global", "blocks", True),
        ("relaxed.gpu.global", "sc.gpu", "relaxed.gpu.global", "blocks", False),
        ("relaxed.gpu.global", "sc.cta", "relaxed.gpu.global", "blocks", True),
        ("relaxed.cta.global", "sc.cta", "relaxed.cta.global", "warps", False),
        ("relaxed.cta.global", "", "relaxed.cta.global", "warps", True),
        ("relaxed.sys.global", "sc.sys", "relaxed.sys.global", "devices", False),
        ("relaxed.sys.global", "sc.gpu", "relaxed.sys.global", "devices", True),
    ],
)
def test_store_buffering(put, fence, get, where, weak):
    seen, _ = outcomes(kernel_sb(STORES[put], FENCES.get(fence, NONE), LOADS[get]), where, 2)
    assert ((0, 0, 0, 0) in seen) == weak
    assert len(seen) >= 2


@pytest.mark.parametrize(
    ("put", "fence", "get", "where", "weak"),
    [
        ("relaxed.gpu.global", "", "relaxed.gpu.global", "blocks", True),
        ("release.gpu.global", "", "acquire.gpu.global", "blocks", True),
        ("relaxed.gpu.global", "sc.gpu", "relaxed.gpu.global", "blocks", False),
        ("relaxed.cta.global", "", "relaxed.cta.global", "warps", True),
        ("relaxed.sys.global", "sc.sys", "relaxed.sys.global", "devices", False),
        ("release.sys.global", "", "acquire.sys.global", "devices", True),
    ],
)
def test_independent_reads(put, fence, get, where, weak):
    seen, _ = outcomes(kernel_iriw(STORES[put], FENCES.get(fence, NONE), LOADS[get]), where, 4, 2 * SEEDS)
    assert ((1, 0, 1, 0) in seen) == weak
    assert len(seen) >= 3


@pytest.mark.parametrize("mods", ["weak.global", "relaxed.gpu.global"])
def test_a_location_never_goes_back(mods):
    get, put = LOADS[mods], STORES[mods]

    @cuda.jit
    def corr(x, out, device, first):
        if cuda.threadIdx.x == 0:
            if cuda.blockIdx.x == 0:
                put(x, 0, 1)
                put(x, 0, 2)
            else:
                a = get(x, 0)
                b = get(x, 0)
                out[0] = a
                out[1] = b

    seen, _ = outcomes(corr, "blocks", 2)
    assert all(b >= a for a, b, *_ in seen)
    assert (0, 2, 0, 0) in seen


def kernel_two_writes(put, fence):
    @cuda.jit
    def two(x, out, device, first):
        t = cuda.blockIdx.x + device if first < 0 else cuda.threadIdx.x // 32
        if cuda.threadIdx.x % 32 == 0 and t < 2:
            put(x, 64 * t, 1)
            fence()
            put(x, 64 * (1 - t), 2)

    return two


def kernel_r(put, fence, get):
    @cuda.jit
    def r(x, out, device, first):
        t = cuda.blockIdx.x + device if first < 0 else cuda.threadIdx.x // 32
        if cuda.threadIdx.x % 32 == 0:
            if t == 0:
                put(x, 64, 1)
                fence()
                put(x, 0, 1)
            elif t == 1:
                put(x, 0, 2)
                fence()
                out[0] = get(x, 64)

    return r


def kernel_s(put, get):
    @cuda.jit
    def s(x, out, device, first):
        t = cuda.blockIdx.x + device if first < 0 else cuda.threadIdx.x // 32
        if cuda.threadIdx.x % 32 == 0:
            if t == 0:
                STORE(x, 0, 2)
                put(x, 64, 1)
            elif t == 1:
                a = get(x, 64)
                put(x, 0, 1)
                out[0] = a

    return s


def kernel_read_then_write(put, get):
    @cuda.jit
    def corw(x, out, device, first):
        t = cuda.blockIdx.x + device if first < 0 else cuda.threadIdx.x // 32
        if cuda.threadIdx.x % 32 == 0:
            if t == 0:
                put(x, 0, 2)
            elif t == 1:
                a = get(x, 0)
                put(x, 0, 1)
                out[0] = a

    return corw


STORE, LOAD = STORES["relaxed.gpu.global"], LOADS["relaxed.gpu.global"]


@pytest.mark.parametrize(
    ("put", "fence", "where", "weak"),
    [
        ("relaxed.gpu.global", "", "blocks", True),
        ("release.gpu.global", "", "blocks", True),
        ("relaxed.gpu.global", "acq_rel.gpu", "blocks", True),
        ("relaxed.gpu.global", "sc.gpu", "blocks", False),
        ("relaxed.gpu.global", "sc.cta", "blocks", True),
        ("relaxed.cta.global", "sc.cta", "warps", False),
        ("relaxed.sys.global", "sc.sys", "devices", False),
        ("relaxed.sys.global", "", "devices", True),
    ],
)
def test_two_writes_each(put, fence, where, weak):
    """The test 2+2W: may both locations end with the first write of a thread?"""
    seen = finals(kernel_two_writes(STORES[put], FENCES.get(fence, NONE)), where)
    assert ((1, 1) in {end for end, _ in seen}) == weak
    assert {(2, 1), (1, 2)} <= {end for end, _ in seen}


@pytest.mark.parametrize(("fence", "weak"), [("", True), ("acq_rel.gpu", True), ("sc.gpu", False)])
def test_write_order_and_reads(fence, weak):
    """The test R: may x[0] end as 2 while x[64] is read as 0?"""
    seen = finals(kernel_r(STORE, FENCES.get(fence, NONE), LOAD), "blocks")
    assert any(end[0] == 2 and out[0] == 0 for end, out in seen) == weak
    assert len(seen) >= 3


@pytest.mark.parametrize(
    ("put", "get", "weak"),
    [
        ("relaxed.gpu.global", "relaxed.gpu.global", True),
        ("release.gpu.global", "acquire.gpu.global", False),
        ("release.gpu.global", "relaxed.gpu.global", True),
    ],
)
def test_earlier_writes_stay_before_a_write(put, get, weak):
    """The test S: the flag is read as 1. May x[0] still end as 2, which was written before the flag?"""
    seen = finals(kernel_s(STORES[put], LOADS[get]), "blocks")
    assert any(end[0] == 2 and out[0] == 1 for end, out in seen) == weak
    assert any(out[0] == 1 for _, out in seen)


def test_a_write_stays_after_a_write_that_its_thread_read():
    seen = finals(kernel_read_then_write(STORE, LOAD), "blocks")
    assert {(end[0], out[0]) for end, out in seen} == {(1, 2), (1, 0), (2, 0)}


def test_a_write_stays_after_a_write_that_a_failed_cas_read():
    @cuda.jit
    def failed(x, out, device, first):
        if cuda.threadIdx.x == 0:
            if cuda.blockIdx.x == 0:
                STORE(x, 0, 2)
            else:
                a = cuda.atomic.cas(x, 0, 7, 9)
                b = LOAD(x, 0)
                STORE(x, 0, 1)
                out[0] = a
                out[1] = b

    seen = finals(failed, "blocks")
    assert any(out[0] == 2 for _, out in seen)
    assert all(end[0] == 1 and out[1] == 2 for end, out in seen if out[0] == 2)


def test_an_atomic_operation_directly_follows_the_write_it_read():
    """An atomic add and a store to the same location: the store never falls between the add's read and write."""

    @cuda.jit
    def add(x, out, device, first):
        if cuda.threadIdx.x == 0:
            if cuda.blockIdx.x == 0:
                out[0] = cuda.atomic.add(x, 0, 1)
            else:
                STORE(x, 0, 16)

    ends = {(end[0], out[0]) for end, out in finals(add, "blocks")}
    assert ends == {(17, 16), (16, 0)}  # (1, 0): the store came between read and write


def finals(kernel, where, seeds=SEEDS):
    """The set of ((x[0], x[64]) at the end, out) over seeds."""
    seen = set()
    for seed in range(seeds):
        machine = ptxsim.Machine(devices=2 if where == "devices" else 1, seed=seed)
        d = machine.device(0)
        x, out = d.array(np.zeros(256, np.uint32)), d.array(np.zeros(4, np.uint32))
        if where == "blocks":
            d.launch(kernel, 2, 32, x, out, 0, -1)
        elif where == "warps":
            d.launch(kernel, 1, 64, x, out, 0, 0)
        else:
            for number in range(2):
                machine.device(number).launch(kernel, 1, 32, x, out, number, -1)
        machine.run()
        end, read = x.copy_to_host(), out.copy_to_host()
        seen.add(((int(end[0]), int(end[64])), tuple(int(v) for v in read)))
    return seen

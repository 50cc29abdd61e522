"""The machine's memory: reuse after free, limits, the heap of kernels, and writes of the host between runs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda

import ptxsim
from ptxsim.address_space import QUARANTINE_BYTES, FreeRuns, span
from ptxsim.errors import MemoryProblem

MIB = 1 << 20


@cuda.jit
def copy(a, out):
    i = cuda.grid(1)
    if i < a.size:
        out[i] = a[i]


@cuda.jit
def fill(a, value):
    a[cuda.grid(1)] = value


@pytest.mark.parametrize("check", [True, False])
def test_many_arrays_one_after_another(check):
    """1000 arrays, about 64 GiB in all, are freed one by one: the quarantine holds no more than its limit."""
    machine = ptxsim.Machine(check=check)
    device, kept = machine.device(0), None
    for number in range(1000):
        array = device.empty((64 + number % 5) * MIB // 8, np.float64)
        array._view()[:4] = number
        if number % 200 == 0:
            kept = device.array(np.full(4, float(number)))
        array.free()
        places = [a.start for a in machine.memory.allocations.values()]
        assert len(places) == len(set(places)) < 16
    assert machine.memory.quarantined <= QUARANTINE_BYTES
    assert (kept.copy_to_host() == 800).all()
    assert max(a.start for a in machine.memory.allocations.values()) < 1 << 30


def test_reused_memory_keeps_no_trace_of_its_past():
    """Contents, accesses and initialised bytes of an earlier array are gone."""
    machine = ptxsim.Machine()
    device = machine.device(0)
    old = device.empty(MIB, np.float32)
    device.launch(fill, 1, 32, old, 3.0)
    assert machine.run() == []
    start = old.allocation.start
    old.free()
    device.empty(QUARANTINE_BYTES, np.uint8).free()  # the quarantine is full: the oldest array leaves it
    new = device.empty(MIB, np.float32)
    assert new.allocation.start == start
    assert (new.copy_to_host() == 0).all()
    out = device.array(np.zeros(32, np.float32))
    device.launch(copy, 1, 32, new[:32], out)
    assert [r.kind for r in machine.run()] == ["uninitialised"]
    device.launch(fill, 1, 32, new, 4.0)
    assert machine.run() == []


def test_accesses_to_quarantined_memory_are_reported():
    machine = ptxsim.Machine()
    device = machine.device(0)
    a, out = device.array(np.ones(32)), device.array(np.zeros(32))
    device.launch(copy, 1, 32, a, out)
    a.free()
    device.array(np.ones(32))  # at another place
    assert [r.kind for r in machine.run()] == ["use_after_free"]
    with pytest.raises(ValueError, match="was freed"):
        a.copy_to_host()
    with pytest.raises(ValueError, match="was freed before"):
        a.free()


@pytest.mark.parametrize(
    ("check", "dtype", "shape", "words"),
    [
        (True, np.float32, 1 << 38, "48 bytes for each item.*use check=False|Use check=False"),
        (False, np.uint8, 1 << 40, "does not fit the machine's"),
        (False, np.float64, (1 << 20, 1 << 20), "does not fit"),
    ],
)
def test_arrays_too_large_are_rejected(check, dtype, shape, words):
    machine = ptxsim.Machine(check=check)
    with pytest.raises(MemoryProblem, match=words):
        machine.device(0).empty(shape, dtype)
    assert machine.device(0).array(np.ones(3)).copy_to_host().tolist() == [1, 1, 1]  # the machine still works


def test_kernels_read_what_the_host_wrote_between_runs():
    machine = ptxsim.Machine()
    device = machine.device(0)
    a, out = device.array(np.zeros(32)), device.array(np.zeros(32))
    device.launch(fill, 1, 32, a, 5.0)
    assert machine.run() == []
    for value in (7.0, 8.0):
        a.copy_to_device(np.full(32, value))
        a[3] = 1.0
        device.launch(copy, 1, 32, a, out)
        assert machine.run() == []
        assert out.copy_to_host().tolist() == [value, value, value, 1.0, *[value] * 28]


def test_only_elements_that_the_host_writes_are_initialised():
    machine = ptxsim.Machine()
    device = machine.device(0)
    a, out = device.empty((8, 8), np.float32), device.array(np.zeros(32, np.float32))
    a[2:4, 1] = 5.0
    a[..., 6] = 5.0
    a[5, np.array([0, 2])] = 5.0
    a[7][3:5].copy_to_device(np.array([6, 7], np.float32))
    init = machine.memory.init[a.allocation.start : a.allocation.start + 256].reshape(8, 8, 4)
    want = np.zeros((8, 8, 4), np.uint8)
    want[2:4, 1], want[:, 6], want[5, [0, 2]], want[7, 3:5] = 1, 1, 1, 1
    assert (init == want).all()
    device.launch(copy, 1, 32, a[7][3:5], out)
    assert machine.run() == []
    device.launch(copy, 1, 32, a[7][3:6], out)
    assert [r.kind for r in machine.run()] == ["uninitialised"]


def test_launches_leave_nothing_in_memory():
    """Kernel parameters do not lie in the memory of arrays."""
    machine = ptxsim.Machine()
    device, out = machine.device(0), machine.device(0).array(np.zeros(32))
    for _ in range(20):
        device.launch(fill, 1, 32, out, 1.0)
        machine.run()
    assert len(machine.memory.allocations) == 1  # `out`


def test_adjacent_free_memory_is_merged():
    runs = FreeRuns(0, 100)
    a, b, c = runs.take(10), runs.take(20), runs.take(30)
    assert (a, b, c) == (0, 10, 30)
    assert runs.take(50) == -1
    runs.give(a, 10)
    runs.give(c, 30)
    assert runs.free == [(0, 10), (30, 100)]
    assert runs.take(11) == 30
    runs.give(b, 20)
    assert runs.free == [(0, 30), (41, 100)]
    runs.give(30, 11)
    assert runs.free == [(0, 100)]
    assert span(0) == span(1) == 1024
    assert span(513) == 1536


# ---- what only looks like free memory -----------------------------------------------------------------------------
PTX = ".version 8.0\n.target sm_90\n.address_size 64\n"
POKE = (
    PTX
    + """
.visible .entry k(.param .u64 a, .param .u32 offset)
{
.reg .u64 %a, %o; .reg .u32 %i;
ld.param.u64 %a, [a]; ld.param.u32 %i, [offset];
mul.wide.s32 %o, %i, 4; add.u64 %a, %a, %o;
st.global.u32 [%a], 123;
exit;
}
"""
)


@pytest.mark.parametrize("launches", [1, 3])
def test_no_store_beyond_the_only_array_goes_unreported(launches):
    """Parameters of launches do not lie in the memory that addresses of arrays can reach."""
    for offset in [*range(16, 2048, 8), 5000, 100_000, -1, -64, -300]:
        machine = ptxsim.Machine()
        device = machine.device(0)
        a = device.array(np.zeros(16, np.int32), "a")
        for number in range(launches):
            device.launch(POKE, 1, 1, a, offset if number == launches - 1 else 0)
        reports = machine.run()
        assert [(r.kind, r.address) for r in reports] == [("out_of_bounds", f"a[{offset}]")], offset


@pytest.mark.parametrize(("index", "name"), [(-1, "a[-1]"), (-40, "a[-40]"), (16, "a[16]"), (60, "a[60]")])
def test_an_access_between_two_arrays_is_named_by_the_nearer_one(index, name):
    machine = ptxsim.Machine()
    device = machine.device(0)
    device.array(np.zeros(100, np.int32), "before")
    a = device.array(np.zeros(16, np.int32), "a")
    device.array(np.zeros(100, np.int32), "after")
    device.launch(POKE, 1, 1, a, index)
    (report,) = machine.run()
    assert report.address == name
    assert f"at {name}, outside what is allocated" in report.message


GENERIC = (
    PTX
    + """
.const .align 4 .u32 c[4] = {5, 6, 7, 8};
.visible .entry k(.param .u64 a, .param .u32 number)
{
.reg .u64 %a, %p; .reg .u32 %i;
ld.param.u64 %a, [a];
mov.u64 %p, number; cvta.param.u64 %p, %p; ld.u32 %i, [%p]; st.u32 [%a], %i;
mov.u64 %p, c; cvta.const.u64 %p, %p; ld.u32 %i, [%p+4]; st.u32 [%a+4], %i;
WRITE
exit;
}
"""
)


@pytest.mark.parametrize("check", [True, False])
def test_parameters_and_constants_are_read_through_generic_addresses(check):
    machine = ptxsim.Machine(check=check)
    a = machine.device(0).array(np.zeros(4, np.uint32))
    machine.device(0).launch(GENERIC.replace("WRITE", ""), 1, 1, a, 41)
    assert machine.run() == []
    assert a.copy_to_host().tolist() == [41, 6, 0, 0]


@pytest.mark.parametrize(
    ("write", "address", "why"),
    [
        (
            "mov.u64 %p, number; cvta.param.u64 %p, %p; st.u32 [%p], 1;",
            "the launch's parameters[byte 8]",
            "cannot write",
        ),
        (
            "mov.u64 %p, a; cvta.param.u64 %p, %p; ld.u32 %i, [%p+12];",
            "the launch's parameters[byte 12]",
            "outside what",
        ),
        ("mov.u64 %p, c; cvta.const.u64 %p, %p; st.u32 [%p+4], 1;", "c[1]", "cannot write"),
        ("atom.global.add.u32 %i, [c+8], 1;", "c[2]", "cannot write"),
    ],
)
def test_parameters_and_constants_cannot_be_written(write, address, why):
    machine = ptxsim.Machine()
    a = machine.device(0).array(np.zeros(4, np.uint32))
    machine.device(0).launch(GENERIC.replace("WRITE", write), 1, 1, a, 41)
    (report,) = machine.run()
    assert (report.kind, report.address) == ("out_of_bounds", address)
    assert why in report.message


HEAP = """.version 8.6
.target sm_90
.address_size 64
.extern .func (.param .b64 result) malloc (.param .b64 size);
.extern .func free (.param .b64 address);
.visible .entry k(.param .u64 out)
{
.reg .b64 %o, %n, %at;
.reg .b32 %i;
mov.u64 %n, 12;
{
.param .b64 size;
.param .b64 result;
st.param.b64 [size], %n;
call.uni (result), malloc, (size);
ld.param.b64 %at, [result];
}
mov.u32 %i, %tid.x;
st.u32 [%at+8], %i;
mul.wide.u32 %n, %i, 8;
ld.param.u64 %o, [out];
add.u64 %o, %o, %n;
st.global.u64 [%o], %at;
ld.u32 %i, [%at+8];
{
.param .b64 address;
st.param.b64 [address], %at;
call.uni free, (address);
}
ret;
}
"""


def test_ptx_that_declares_malloc_has_a_heap():
    """The text is nvcc's: it declares malloc and free, which the CUDA runtime's device code has."""
    machine = ptxsim.Machine()
    out = machine.device(0).array(np.zeros(64, np.uint64))
    machine.device(0).launch(HEAP, 1, 64, out)
    assert machine.run() == []
    places = np.sort(out.copy_to_host())
    assert places[0] > 0
    assert np.diff(places).min() >= 12

"""The machine's memory: reuse after free, limits, and writes of the host between runs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda

from aristos import simt
from aristos.errors import MemoryProblem
from aristos.simt.address_space import QUARANTINE_BYTES, FreeRuns, span

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
    """64 GiB of arrays, freed one by one, take no more places than the quarantine holds."""
    machine = simt.Machine(check=check)
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
    machine = simt.Machine()
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
    machine = simt.Machine()
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


@pytest.mark.parametrize(("check", "dtype", "shape", "words"), [
    (True, np.float32, 1 << 38, "48 bytes for each item.*use check=False|Use check=False"),
    (False, np.uint8, 1 << 40, "does not fit the machine's"), (False, np.float64, (1 << 20, 1 << 20), "does not fit"),
])  # fmt: skip
def test_arrays_too_large_are_rejected(check, dtype, shape, words):
    machine = simt.Machine(check=check)
    with pytest.raises(MemoryProblem, match=words):
        machine.device(0).empty(shape, dtype)
    assert machine.device(0).array(np.ones(3)).copy_to_host().tolist() == [1, 1, 1]  # the machine still works


def test_kernels_read_what_the_host_wrote_between_runs():
    machine = simt.Machine()
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
    machine = simt.Machine()
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


def test_launches_free_their_parameters():
    """Memory of kernel parameters does not accumulate over runs."""
    machine = simt.Machine()
    device, out = machine.device(0), machine.device(0).array(np.zeros(32))
    for _ in range(20):
        device.launch(fill, 1, 32, out, 1.0)
        machine.run()
    assert sum(not a.freed for a in machine.memory.allocations.values()) == 2  # `out` and the last run's parameters


def test_free_runs_merge():
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

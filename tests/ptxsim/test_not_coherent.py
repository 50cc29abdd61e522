"""Loads by ld.global.nc and ldu: a load is reported only if its memory is written while the load's kernel runs.

The PTX ISA on ld.global.nc and ldu: the memory is read-only for as long as the kernel runs, whatever orders the load
and the store. The report has the line of the load, and names the store.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda
from simt_primitives import load, store

import ptxsim

N = 64
READ, PLAIN = load("global.nc"), load("global")
ACQUIRE, RELEASE = load("acquire.sys.global"), store("release.sys.global")


def line_of(kernel, mark):
    lines, first = inspect.getsourcelines(kernel.py_func)
    (found,) = [first + i for i, line in enumerate(lines) if mark in line]
    return found


def run(*launches, seed=0, devices=1):
    """Reports of one run. launches: (kernel, device). Every kernel gets the words `a`, `out` and `flag`."""
    machine = ptxsim.Machine(devices=devices, seed=seed)
    words = [machine.device(0).array(np.zeros(N, np.uint32), name) for name in ("a", "out", "flag")]
    for kernel, device in launches:
        machine.device(device).launch(kernel, 1, N, *words)
    return machine.run()


@cuda.jit
def writes_first(a, out, flag):
    t = cuda.threadIdx.x
    a[t] = t  # STORE
    cuda.syncthreads()
    out[t] = READ(a, N - 1 - t)  # LOAD


@cuda.jit
def writes_afterwards(a, out, flag):
    t = cuda.threadIdx.x
    out[t] = READ(a, t)  # LOAD
    for i in range(3):
        # The checker keeps two readers of a cell; these loads must not displace the one above.
        out[t] += PLAIN(a, (t + i) % N)
    cuda.syncthreads()
    a[N - 1 - t] = t  # STORE


@cuda.jit
def adds_afterwards(a, out, flag):
    t = cuda.threadIdx.x
    out[t] = READ(a, t)  # LOAD
    cuda.syncthreads()
    cuda.atomic.add(a, t, 1)  # STORE


@cuda.jit
def reads(a, out, flag):
    t = cuda.threadIdx.x
    out[t] = READ(a, t)  # LOAD


@cuda.jit
def fills(a, out, flag):
    t = cuda.threadIdx.x
    a[t] = t  # STORE
    cuda.syncthreads()
    if t == 0:
        RELEASE(flag, 0, 1)


@cuda.jit
def reads_on_flag(a, out, flag):
    t = cuda.threadIdx.x
    if t == 0:
        while ACQUIRE(flag, 0) == 0:
            pass
    cuda.syncthreads()
    out[t] = READ(a, t)  # LOAD


@cuda.jit
def waits(a, out, flag):
    while cuda.threadIdx.x == 0 and ACQUIRE(flag, 0) == 0:
        pass


@cuda.jit
def reads_and_goes_on(a, out, flag):
    t = cuda.threadIdx.x
    out[t] = READ(a, t)  # LOAD
    cuda.syncthreads()
    if t == 0:
        RELEASE(flag, 0, 1)
        while ACQUIRE(flag, 1) == 0:
            pass


@cuda.jit
def fills_on_flag(a, out, flag):
    t = cuda.threadIdx.x
    if t == 0:
        while ACQUIRE(flag, 0) == 0:
            pass
    cuda.syncthreads()
    a[t] = t  # STORE
    cuda.syncthreads()
    if t == 0:
        RELEASE(flag, 1, 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bad", [writes_first, writes_afterwards, adds_afterwards])
def test_a_store_of_the_same_kernel(bad, seed):
    """A store of the same kernel is reported, before or after the load, ordered or not."""
    (report,) = run((bad, 0), seed=seed)
    assert (report.kind, report.line) == ("not_coherent", line_of(bad, "# LOAD"))
    assert report.other_line == line_of(bad, "# STORE")
    assert report.address.startswith("a[")
    assert "ld.global.nc.u32 reads 4 bytes at a[" in report.message
    assert f"which line {report.other_line} (" in report.message
    assert ") of the same kernel writes" in report.message


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("writer", "reader"), [(fills, reads_on_flag), (fills_on_flag, reads_and_goes_on)])
def test_a_store_of_another_device_while_the_kernel_runs(writer, reader, seed):
    (report,) = run((writer, 0), (reader, 1), seed=seed, devices=2)
    assert (report.kind, report.line, report.device) == ("not_coherent", line_of(reader, "# LOAD"), 1)
    assert report.other_line == line_of(writer, "# STORE")
    assert "of a kernel of device 0 writes" in report.message


@pytest.mark.parametrize("seed", range(3))
def test_stores_before_and_after_the_kernel(seed):
    """Stores of earlier and later launches on the same device are not reported.

    Nor are those of another device's launch for which an earlier launch on the reader's device has waited.
    """
    assert run((fills, 0), (reads, 0), (fills, 0), (reads, 0), seed=seed) == []
    assert run((fills, 0), (waits, 1), (reads, 1), seed=seed, devices=2) == []


def test_stores_of_other_runs_are_not_reported():
    machine = ptxsim.Machine(devices=2)
    words = [machine.device(0).array(np.zeros(N, np.uint32), name) for name in ("a", "out", "flag")]
    for kernel, device in ((reads, 1), (fills, 0), (reads, 1), (fills, 0)):
        machine.device(device).launch(kernel, 1, N, *words)
        assert machine.run() == []

    def host(a):
        a.store(5, 7, order="weak")
        yield

    machine.actor(host, words[0])
    assert machine.run() == []
    machine.device(0).launch(reads, 1, N, *words)
    assert machine.run() == []


def test_a_store_of_an_actor():
    machine = ptxsim.Machine()
    words = [machine.device(0).array(np.zeros(N, np.uint32), name) for name in ("a", "out", "flag")]

    def host(a, out, flag):
        a.store(5, 7)
        flag.store(0, 1)
        yield

    machine.actor(host, *words)
    machine.device(0).launch(reads_on_flag, 1, N, *words)
    (report,) = machine.run()
    assert (report.kind, report.address, report.other_line) == ("not_coherent", "a[5]", 0)
    assert "which the host writes" in report.message


MODULE = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a)
{{
.reg .u64 %a; .reg .u32 %r<3>; .reg .b16 %h;
ld.param.u64 %a, [a];
st.global.u16 [%a{at}], 7;
{load}
st.global.u32 [%a+64], %r0;
exit;
}}
"""


@pytest.mark.parametrize(
    ("load", "at", "kinds"),
    [
        ("ldu.global.u32 %r0, [%a];", "+2", ["not_coherent"]),
        ("ld.global.nc.L1::no_allocate.v2.u32 {%r0, %r1}, [%a];", "+6", ["not_coherent"]),
        ("ld.global.nc.u16 %h, [%a]; cvt.u32.u16 %r0, %h;", "+2", []),  # the store writes the bytes beside it
        ("ld.global.L1::no_allocate.u32 %r0, [%a];", "", []),
    ],
)
def test_forms(load, at, kinds):
    machine = ptxsim.Machine()
    machine.device(0).launch(MODULE.format(at=at, load=load), 1, 1, machine.device(0).array(np.zeros(32, np.uint32)))
    assert [report.kind for report in machine.run()] == kinds


@pytest.mark.parametrize("mods", ["nc.u32", "relaxed.gpu.global.nc.u32", "shared.nc.u32"])
def test_nc_is_for_weak_loads_of_global_memory(mods):
    machine = ptxsim.Machine()
    text = MODULE.format(at="", load=f"ld.{mods} %r0, [%a];")
    with pytest.raises(ptxsim.PTXError, match=r"modifier \.nc needs a weak load of \.global"):
        machine.device(0).launch(text, 1, 1, machine.device(0).array(np.zeros(32, np.uint32)))

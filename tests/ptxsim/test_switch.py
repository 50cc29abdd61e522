"""Kernels launched as k[grid, block](...) run on the machine: by a context, a fixture or the environment."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda, int64, typeof
from numba.cuda.cudadrv import nvvm

import ptxsim
from ptxsim.errors import InputError


@cuda.jit
def scale(a, factor):
    i = cuda.grid(1)
    if i < a.size:
        a[i] *= factor


def test_launches_go_to_the_machine():
    with ptxsim.use(ptxsim.Machine()) as machine:
        host = np.arange(100.0)
        scale[4, 32](host, 3.0)
        assert np.array_equal(host, 3 * np.arange(100.0))
        there = cuda.to_device(np.arange(100.0))
        scale[4, 32](there, 2.0)
        scale.forall(100)(there, 2.0)
        cuda.synchronize()
        assert np.array_equal(there.copy_to_host(), 4 * np.arange(100.0))
        empty = cuda.device_array_like(there)
        assert empty.shape == (100,)
        assert machine.reports == []
    assert "aristos" not in cuda.to_device.__module__


@cuda.jit
def copy(a, b):
    i = cuda.grid(1)
    if i < b.size:
        b[i] = a[i]


def test_arrays_of_another_machine():
    """Addresses are the same on every machine, so another machine's array must be rejected."""
    with ptxsim.use(ptxsim.Machine()) as first:
        array = cuda.to_device(np.arange(64.0))
        out = cuda.device_array(64)
        copy[1, 64](array, out)
        assert out.copy_to_host()[3] == 3
        part = array[8:40]
        empty = cuda.to_device(np.zeros(0))
    with ptxsim.use(ptxsim.Machine()) as second:
        mine, out = cuda.to_device(np.full(64, 7.0)), cuda.to_device(np.zeros(64))
        for theirs in (array, part):
            with pytest.raises(InputError, match="belongs to another machine"):
                copy[1, 32](theirs, out)
            for action in (
                theirs.copy_to_host,
                lambda a=theirs: a.copy_to_device(np.ones(a.size)),
                lambda a=theirs: mine[: a.size].copy_to_device(a),
            ):
                with pytest.raises(InputError, match="belongs to another machine"):
                    action()
        copy[1, 32](mine[8:40], out)
        copy[1, 32](empty, out[:0])
        assert (out.copy_to_host() == np.where(np.arange(64) < 32, 7.0, 0.0)).all()
        with ptxsim.use(first):
            assert (array.copy_to_host() == np.arange(64.0)).all()
        assert second.reports == []


@cuda.jit
def scan(a, val, ctr, o):
    s = cuda.shared.array(64, int64)
    sh = cuda.shared.array(2, int64)
    t = cuda.threadIdx.x
    if t == 0:
        sh[0] = cuda.atomic.add(ctr, 0, 1)
    cuda.syncthreads()
    b = sh[0]
    s[t] = a[b * 64 + t]
    cuda.syncthreads()
    d = 1
    while d < 64:
        v = s[t - d] if t >= d else 0
        cuda.syncthreads()
        s[t] += v
        cuda.syncthreads()
        d *= 2
    if t == 0:
        p = 0
        if b > 0:
            p = val[b - 1]
        val[b] = p + s[63]
        sh[1] = p
    cuda.syncthreads()
    o[t] = s[t] + sh[1]


@pytest.mark.parametrize("ordinary", [True, False])
def test_a_kernel_that_nvvm_rejects_with_line_information_still_runs(ordinary):
    args = [np.ones(64, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int32), np.zeros(64, np.int64)]
    types = tuple(typeof(a) for a in args)
    with pytest.raises(nvvm.nvvmError):
        cuda.compile_ptx(scan.py_func, types, cc=(9, 0), lineinfo=True)
    machine = ptxsim.Machine()
    if ordinary:
        with ptxsim.use(machine):
            scan[1, 64](*args)
    else:
        machine.device(0).launch(scan, 1, 64, *args)
        machine.run()
    assert machine.reports == []
    assert (args[3] == np.arange(1, 65)).all()

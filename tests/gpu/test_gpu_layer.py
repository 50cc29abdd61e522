"""The layer on a real GPU with 1, 2 and 4 ranks. Ranks that share a GPU are time-sliced: only correctness counts."""

from __future__ import annotations

import _thread
import threading
import time
from unittest import mock

import leftovers
import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[cuda12]'")
from aristos.substrate.cuda.device import count

if not count():
    pytest.skip("no GPU: the driver is missing or shows none", allow_module_level=True)
import gpu_layers
from cases import tokens
from mpi import ranks_each

from aristos.errors import PoisonedError

SECONDS = 300.0  # limit of an mpiexec, in which the first test compiles


def ranks(comm, world):
    return (comm, 0, 1) if world == 1 else (comm, comm.rank, world)


@pytest.mark.parametrize("dtype", gpu_layers.TYPES)
@ranks_each(1, 2, 4, timeout=SECONDS)
def test_every_dtype(comm, world, dtype):
    gpu_layers.every_dtype(*ranks(comm, world), dtype)


@ranks_each(1, 2, 4, timeout=SECONDS)
def test_same_bits(comm, world):
    _, rank, _ = given = ranks(comm, world)
    whole = gpu_layers.bits(None, 0, 1)
    np.testing.assert_array_equal(gpu_layers.bits(*given), whole[gpu_layers.share(rank, world)])


@pytest.mark.parametrize("dtype", gpu_layers.TYPES)
@ranks_each(1, 2, timeout=SECONDS)
def test_device_arrays(comm, world, dtype):
    gpu_layers.device_arrays(*ranks(comm, world), dtype)


@ranks_each(1, 2, 4, timeout=SECONDS)
def test_captured_in_a_graph(comm, world):
    gpu_layers.captured(*ranks(comm, world))


@ranks_each(1, 2, 4, timeout=SECONDS)
def test_refusals(comm, world):
    gpu_layers.refusals(*ranks(comm, world))


@pytest.mark.ranks(1, timeout=SECONDS)
def test_cupy_arrays(comm):
    """CuPy arrays are used on CuPy's current stream. The result is a new CuPy array."""
    cupy = pytest.importorskip("cupy", reason="no CuPy: pip install 'aristos[cuda12]'")
    x = tokens(gpu_layers.CFG, 17, seed=1)
    with gpu_layers.made(comm) as moe, cupy.cuda.Stream(non_blocking=True):
        y = moe(cupy.asarray(x))
        assert isinstance(y, cupy.ndarray)
        moe.synchronize()
        gpu_layers.right(cupy.asnumpy(y), x)
        half = cupy.asarray(np.repeat(x, 2, axis=0))[::2]  # rows with a gap
        out = cupy.empty_like(y)
        moe(half, out=out)
        moe.synchronize()
        gpu_layers.right(cupy.asnumpy(out), x)


@pytest.mark.ranks(2, timeout=SECONDS, isolated=True)
def test_ctrl_c_ends_a_kernel_that_waits_for_a_peer(comm):
    """Rank 0's kernel waits for rank 1, which makes no call. 100 of the 500 ms are for the kernel, 400 for the host."""
    hooks = leftovers.registered()
    with mock.patch("aristos.transport.group.Group.abort_at_exit"):  # the ranks end together
        moe = gpu_layers.made(comm)
        x = tokens(gpu_layers.CFG, 5, seed=comm.rank)
        moe(x)
        comm.Barrier()
        if comm.rank == 0:
            asked = []
            threading.Timer(0.5, lambda: (asked.append(time.monotonic()), _thread.interrupt_main())).start()
            with pytest.raises(KeyboardInterrupt):
                moe(x)
            assert time.monotonic() - asked[0] < 0.5
        comm.Barrier()
        if comm.rank == 1:
            with pytest.raises(PoisonedError, match="rank 0 gave up in epoch 2"):
                moe(x)
        comm.Barrier()
    leftovers.run_since(hooks)  # a rank that failed cannot close its layer

"""The engine's functions run as plain Python on two MPI ranks. The memory functions are tested alone.

tests/explore/test_plain_python.py runs the engine's functions in one process and under the explorer.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases import run_job
from mpi import find_mpiexec

from aristos.primitives import memory

RANKS = """
from cases import check
from kernel_cache import compile as compiling
cfg = aristos.MoEConfig(hidden=6, ffn=10, experts=5, top_k=2, gated=True, bias=True, max_tokens=6)
w = reference.weights(cfg)
options = {"threads": 1, "timeout": 20}  # moves="auto" is left out: for it the layer measures arithmetic
for ring, placement, moves in ((2, [1, 0, 1, 1, 0], "tokens"), (1, [1] * 5, "tokens"), (2, [1, 0, 1, 1, 0], "experts")):
    with rings_of(ring), aristos.MoE(cfg, comm, placement=placement, moves=moves, **options) as moe:
        moe.load(**w)
        for n, skew in enumerate(("router", "uniform", "one", "none", "some", "router")):
            x = tokens(cfg, (6, 0, 3)[(n + rank) % 3], seed=n)
            call = routing(cfg, len(x), skew, seed=n)
            check(cfg, w, x, call, moe(x, **call))
        try:
            moe(x if rank else x[:, :2])
        except aristos.AristosError as e:
            say(type(e).__name__)
        check(cfg, w, x, {}, moe(x))
say(compiling.compiled_here())
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_two_ranks_in_plain_python(tmp_path):
    job = run_job(tmp_path, 2, RANKS, timeout=120, NUMBA_DISABLE_JIT="1")
    assert job.code == 0, job.out
    assert job.lines(0) == [*["InputError"] * 3, "0"]
    assert job.lines(1) == [*["PeerInputError"] * 3, "0"]


def test_memory_functions_in_plain_python():
    """The Python bodies in memory.py do what their docstrings say. Compiled functions are compared in the next test."""
    words = np.array([5, -7, 0, 1 << 40], np.int64)
    at = [words.ctypes.data + 8 * i for i in range(4)]
    assert [memory.load(a) for a in at] == words.tolist()
    assert [memory.load_acquire(a) for a in np.array(at)] == words.tolist()
    memory.store(at[0], -1)
    memory.store_release(np.int64(at[1]), np.int64(9))
    assert words[:2].tolist() == [-1, 9]
    assert memory.fetch_add(at[1], -3) == 9
    assert memory.compare_exchange(at[1], 9, 0) is False
    assert memory.compare_exchange(at[1], 6, 2) is True
    memory.copy_row(at[2], at[0], 16)
    assert words.tolist() == [-1, 2, -1, 2]
    view = memory.words(at[1], 2)
    view[0] = 77
    assert words[1] == 77
    assert memory.words(at[0], 0).shape == (0,)
    assert memory.floats(np.array([1.5, 2], np.float32).ctypes.data, 0).shape == (0,)
    assert memory.float_of_bits(np.float32(-1.25).view(np.int32)) == np.float32(-1.25)
    before = memory.clock()
    memory.pause()
    memory.yield_core()
    assert memory.clock() >= before


@pytest.mark.compiled
def test_compiled_memory_functions_equal_plain_python():
    """Each compiled memory function equals its Python body on a copy."""
    from aristos.kernels.cpu import llvm  # noqa: F401  registers the lowerings
    from kernel_cache.compile import jit

    mem = memory

    @jit
    def through_all(at):
        mem.store(at, mem.load(at + 8) + 1)
        mem.store_release(at + 8, mem.load_acquire(at) * 2)
        old = mem.fetch_add(at + 16, 5)
        mem.store(at + 24, old)
        first = mem.compare_exchange(at + 32, 4, 40)
        second = mem.compare_exchange(at + 32, 4, 44)
        mem.store(at + 40, 10 * first + second)
        mem.copy_row(at + 48, at, 16)
        view = mem.words(at + 64, 2)
        view[0], view[1] = view[1], view[0]
        mem.pause()
        mem.yield_core()
        return mem.clock()

    body = through_all.py_func
    words = np.array([3, 6, 7, 0, 4, 0, 0, 0, 1, 2], np.int64)
    copy = words.copy()
    started = memory.clock()
    compiled = through_all(words.ctypes.data)
    ended = body(copy.ctypes.data)
    assert words.tolist() == copy.tolist() == [7, 14, 12, 7, 40, 10, 7, 14, 2, 1]
    assert started <= compiled <= ended

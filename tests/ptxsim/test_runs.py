"""Runs of a machine: independent of each other, and ended when a thread or an actor waits for ever."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda

import ptxsim


@cuda.jit
def too_far(a):
    a[cuda.threadIdx.x + 1] = 1


def test_each_run_reports_its_findings():
    machine = ptxsim.Machine()
    a = machine.device(0).array(np.zeros(32))
    for _ in range(2):
        machine.device(0).launch(too_far, 1, 32, a)
        assert [r.kind for r in machine.run()] == ["out_of_bounds"]
    for _ in range(2):
        machine.device(0).launch(too_far, 1, 32, a)
        with pytest.raises(ptxsim.KernelFault):
            machine.run(strict=True)


def test_each_run_reports_races_of_the_host():
    machine = ptxsim.Machine()
    flag = machine.host_array(np.zeros(2, np.int32), name="flag")

    def write():
        for i in range(20):
            flag.store(1, i, order="weak")
            yield

    for _ in range(2):
        machine.actor(write)
        machine.device(0).launch(set_second, 1, 1, flag)
        assert ("race", "flag[1]") in {(r.kind, r.address) for r in machine.run() if r.kernel == "host"}


PTX = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
.reg .b32 %r<9>;
.reg .b64 %rd<9>;
ld.param.u64 %rd1, [p];

st.global.u32 [%rd1+4000], %r1;
bar.sync 1;
trap;
ret;
}
"""


def test_reports_name_lines_of_ptx_text():
    machine = ptxsim.Machine()
    machine.device(0).launch(PTX, 1, 32, machine.device(0).array(np.zeros(4, np.int32), name="a"))
    lines = PTX.splitlines()
    reports = machine.run()
    assert [(r.kind, r.file, lines[r.line - 1].split()[0]) for r in reports] == [
        ("out_of_bounds", "", "st.global.u32"),
        ("trap", "", "trap;"),
    ]
    assert "line 10" in str(reports[0])
    assert machine.profile().line(10)["instructions"] == 1


@cuda.jit
def set_second(a):
    a[1] = 1


@cuda.jit
def wait_for(flag):
    while cuda.atomic.add(flag, 0, 0) == 0:
        pass


@pytest.mark.parametrize(("kernel", "hung"), [(None, []), (set_second, []), (wait_for, ["wait_for"])])
def test_an_actor_that_waits_for_ever_is_reported(kernel, hung):
    machine = ptxsim.Machine()
    flag = machine.host_array(np.zeros(2, np.int32))

    def wait():
        while flag.load(0) == 0:
            yield

    machine.actor(wait)
    if kernel is not None:
        machine.device(0).launch(kernel, 1, 1, np.zeros(2, np.int32))
    reports = machine.run()
    assert [(r.kind, r.kernel) for r in reports] == [("deadlock", name) for name in [*hung, "host"]]
    assert reports[-1].file == __file__
    assert wait.__code__.co_firstlineno < reports[-1].line <= wait.__code__.co_firstlineno + 2
    assert "wait" in reports[-1].message
    assert machine.run() == []


def test_an_actor_may_outlive_the_kernels():
    machine = ptxsim.Machine()
    flag = machine.host_array(np.zeros(1, np.int32))

    def count():
        for i in range(6000):
            flag.store(0, i)
            yield

    machine.actor(count)
    assert machine.run() == []
    assert flag.copy_to_host()[0] == 5999


@pytest.mark.parametrize("fails", [False, True])
def test_arguments_are_released_when_a_run_ends(fails):
    machine = ptxsim.Machine()
    array = np.zeros(4)
    machine.device(0).launch(set_second, 1, 1, array)

    def broken():
        yield
        raise ValueError("broken")

    if fails:
        machine.actor(broken)
        with pytest.raises(ValueError, match="broken"):
            machine.run()
    else:
        assert machine.run() == []
        assert array[1] == 1
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is None
    assert all(a.freed for a in machine.memory.allocations.values())


@cuda.jit
def some_blocks(a, b, n):
    if cuda.blockIdx.x < n:
        cuda.cg.this_grid().sync()
    b[cuda.grid(1)] = a[cuda.grid(1)]


@cuda.jit
def early_return(a, b, n):
    i = cuda.grid(1)
    if i >= n:
        return
    cuda.cg.this_grid().sync()
    b[i] = a[i]


@cuda.jit
def second_time(a, b, n):
    grid, i = cuda.cg.this_grid(), cuda.grid(1)
    b[i] = a[i]
    grid.sync()
    if i < n:
        grid.sync()


@cuda.jit
def first_leaves(a, b, n):
    i = cuda.grid(1)
    if i == n:
        return
    cuda.cg.this_grid().sync()
    b[i] = a[i]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("kernel", "few", "many", "waiting", "blocks"),
    [
        (some_blocks, 2, 4, 64, 2),
        (early_return, 96, 97, 96, 1),
        (second_time, 32, 128, 32, 3),
        (first_leaves, 32, 33, 127, 1),
    ],
)
def test_a_grid_barrier_that_some_blocks_never_reach_is_reported(kernel, few, many, waiting, blocks, check):
    """CUDA's runtime counts blocks. If a block never arrives, the others wait for ever, in any order of blocks.

    A block arrives when its thread 0 does, even if its other threads have ended: in numba-cuda's own examples threads
    return early.
    """
    for seed in range(6):
        for n, found in ((few, ["deadlock"]), (many, [])):
            machine = ptxsim.Machine(seed=seed, check=check)
            d = machine.device(0)
            d.launch(kernel, 4, 32, d.array(np.zeros(128)), d.array(np.zeros(128)), n)
            reports = machine.run()
            assert [r.kind for r in reports] == found
            if found:
                assert f"{waiting} threads wait" in reports[0].message
                assert f"in {blocks} block{'s'[: blocks != 1]} all threads, or thread 0, ended" in reports[0].message
                first = kernel.py_func.__code__.co_firstlineno
                assert reports[0].file == __file__
                assert first < reports[0].line <= first + 7


def test_actors_keep_their_numbers_when_one_ends():
    """Two actors exchange a flag after a third has ended.

    The checker must not take one actor's writes for another's.
    """
    machine = ptxsim.Machine()
    data, flag = machine.host_array(np.zeros(1, np.int64)), machine.host_array(np.zeros(1, np.int64))
    seen = []

    def ends():
        yield

    def writes():
        for _ in range(3):
            yield
        data.store(0, 7, order="weak")
        flag.store(0, 1)
        yield

    def reads():
        while flag.load(0) == 0:
            yield
        seen.append(data.load(0, order="weak"))

    for actor in (ends, writes, reads):
        machine.actor(actor)
    assert machine.run() == []
    assert seen == [7]


def test_an_actor_may_access_much_in_one_turn():
    """The checker's tables grow within a turn."""
    machine = ptxsim.Machine()
    words = machine.host_array(np.zeros(20_000, np.int64))

    def fill():
        for i in range(len(words)):
            words.store(i, i)
        yield

    def read():
        while words.load(len(words) - 1) == 0:
            yield
        assert [int(words.load(i)) for i in range(0, len(words), 99)] == list(range(0, len(words), 99))

    machine.actor(fill)
    machine.actor(read)
    assert machine.run() == []

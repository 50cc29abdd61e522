"""The machine reports deliberate bugs with the right line, and reports nothing about their fixed versions.

The wrong line of a kernel has the comment `# BUG`.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from numba import cuda
from simt_primitives import copy_async, load, statement, store

import ptxsim

N = 128
RELAXED, ACQUIRE_GPU, ACQUIRE = load("relaxed.sys.global"), load("acquire.gpu.global"), load("acquire.sys.global")
PUT_RELAXED, PUT_RELEASE_GPU, PUT_RELEASE = (
    store(f"{m}.global") for m in ("relaxed.sys", "release.gpu", "release.sys")
)
READ_ONLY = load("global.nc")
COMMIT, WAIT = statement("cp.async.commit_group;"), statement("cp.async.wait_group 0;")


def marked(kernel):
    """The lines of a kernel with `# BUG`."""
    lines, first = inspect.getsourcelines(kernel.py_func)
    return {first + i for i, line in enumerate(lines) if "# BUG" in line}


def run(kernel, grid=1, block=N, devices=1, seed=0, extra=(), shared=0, dtype=np.float32, launches=None, sm_count=4):
    machine = ptxsim.Machine(devices=devices, seed=seed, sm_count=sm_count)
    d = machine.device(0)
    a = d.array(np.arange(1024).astype(dtype), name="a")
    out = d.array(np.zeros(1024, dtype), name="out")
    for number in range(devices):
        machine.device(number).launch(
            kernel, grid, block, a, out, *extra, *([number] if devices > 1 else []), shared=shared
        )
    return machine.run(), machine


def found(kernel, kind, **options):
    reports, _ = run(kernel, **options)
    lines = {r.line for r in reports if r.kind == kind}
    assert lines & marked(kernel), f"{kind} at {marked(kernel)} not found in {[str(r) for r in reports]}"
    return reports


def silent(kernel, **options):
    reports, _ = run(kernel, **options)
    assert not reports, [str(r) for r in reports]


def test_missing_syncthreads():
    @cuda.jit
    def bad(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        s[t] = a[t]
        out[t] = s[N - 1 - t]  # BUG

    @cuda.jit
    def good(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        s[t] = a[t]
        cuda.syncthreads()
        out[t] = s[N - 1 - t]

    found(bad, "race")
    silent(good)


def test_missing_syncwarp():
    @cuda.jit
    def bad(a, out):
        s = cuda.shared.array(32, np.float32)
        t = cuda.threadIdx.x
        s[t] = a[t]
        out[t] = s[31 - t]  # BUG

    @cuda.jit
    def good(a, out):
        s = cuda.shared.array(32, np.float32)
        t = cuda.threadIdx.x
        s[t] = a[t]
        cuda.syncwarp()
        out[t] = s[31 - t]

    assert {r.kind for r in found(bad, "race", block=32)} <= {"race", "uninitialised"}
    silent(good, block=32)


def test_missing_second_syncthreads_in_a_loop():
    @cuda.jit
    def bad(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        for k in range(4):
            s[t] = a[t + k]  # BUG
            cuda.syncthreads()
            out[t] += s[N - 1 - t]

    @cuda.jit
    def good(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        for k in range(4):
            s[t] = a[t + k]
            cuda.syncthreads()
            out[t] += s[N - 1 - t]
            cuda.syncthreads()

    found(bad, "race")
    silent(good)


def test_off_by_one_in_global_memory():
    @cuda.jit
    def bad(a, out):
        i = cuda.grid(1)
        if i <= out.size:
            out[i] = 1.0  # BUG

    reports = found(bad, "out_of_bounds", grid=9)
    (report,) = [r for r in reports if r.kind == "out_of_bounds"]
    assert report.address == "out[1024]"
    assert (report.block, report.thread) == ((8, 0, 0), (0, 0, 0))


def test_off_by_one_in_shared_memory():
    @cuda.jit
    def bad(a, out):
        s = cuda.shared.array(N, np.float32)
        z = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        s[t + 1] = a[t]  # BUG
        z[t] = a[t]
        cuda.syncthreads()
        out[t] = z[t] + s[max(t, 1)]

    found(bad, "out_of_bounds")


def test_uninitialised_shared_memory():
    @cuda.jit
    def bad(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        if t > 0:
            s[t] = a[t]
        cuda.syncthreads()
        out[t] = s[t]  # BUG

    found(bad, "uninitialised")


def test_uninitialised_global_memory():
    @cuda.jit
    def bad(a, out):
        out[cuda.threadIdx.x] = a[cuda.threadIdx.x]  # BUG

    machine = ptxsim.Machine()
    d = machine.device(0)
    d.launch(bad, 1, 32, d.empty(32, np.float32), d.empty(32, np.float32))
    (report,) = machine.run()
    assert report.kind == "uninitialised"
    assert report.line in marked(bad)


def test_use_after_free():
    @cuda.jit
    def bad(a, out):
        out[cuda.threadIdx.x] = a[cuda.threadIdx.x]  # BUG

    machine = ptxsim.Machine()
    d = machine.device(0)
    a, out = d.array(np.ones(32)), d.array(np.ones(32))
    d.launch(bad, 1, 32, a, out)
    a.free()
    assert [(r.kind, r.line in marked(bad)) for r in machine.run()] == [("use_after_free", True)]


def test_misaligned_access():
    ptx = """
    .version 8.0
    .target sm_90
    .address_size 64
    .visible .entry k(.param .u64 p)
    {
        .reg .b64 %rd<3>;
        .reg .b32 %r<2>;
        .loc 1 7 0
        ld.param.u64 %rd1, [p];
        ld.global.u32 %r1, [%rd1+2];
        st.global.u32 [%rd1], %r1;
        ret;
    }
    .file 1 "k.py"
    """
    machine = ptxsim.Machine()
    d = machine.device(0)
    d.launch(ptx, 1, 1, d.array(np.zeros(4, np.uint32)), entry="k")
    assert [(r.kind, r.line, r.file) for r in machine.run()] == [("misaligned", 7, "k.py")]


def test_threads_that_ended_do_not_hold_up_a_barrier():
    """PTX: a full barrier waits only for threads that have not ended. Whole warps and single lanes may end early."""

    @cuda.jit
    def good(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        if t >= 44 or t < 3:
            return
        s[t] = a[t]
        cuda.syncthreads()
        if t > 3:
            out[t] = s[t - 1]

    for seed in range(4):
        silent(good, seed=seed)


def test_barrier_in_a_branch():
    """Lanes that pass by a barrier at which other lanes of their warp wait are reported.

    A warp that has ended is not.
    """

    @cuda.jit
    def bad(a, out):
        t = cuda.threadIdx.x
        if t != 40:
            cuda.syncthreads()  # BUG
        out[t] = a[t]

    @cuda.jit
    def good(a, out):
        t = cuda.threadIdx.x
        if t < 32:
            cuda.syncthreads()
        out[t] = a[t]

    found(bad, "barrier_divergence")
    silent(good)


def test_two_barriers_in_one_branch():
    @cuda.jit
    def bad(a, out):
        t = cuda.threadIdx.x
        if t % 2 == 0:
            out[t] = a[t]
            cuda.syncthreads()  # BUG
        else:
            cuda.syncthreads()
            out[t] = 2 * a[t]
        cuda.syncthreads()

    reports, _ = run(bad)
    assert "barrier_divergence" in {r.kind for r in reports}


def test_wrong_mask():
    @cuda.jit
    def bad(a, out):
        t = cuda.threadIdx.x
        v = cuda.shfl_down_sync(0x0000FFFF, a[t], 1)  # BUG
        out[t] = v

    @cuda.jit
    def good(a, out):
        t = cuda.threadIdx.x
        v = cuda.shfl_down_sync(0xFFFFFFFF, a[t], 1)
        out[t] = v

    found(bad, "barrier_divergence", block=32)
    silent(good, block=32)


def test_lanes_of_a_mask_that_never_arrive():
    @cuda.jit
    def bad(a, out):
        t = cuda.threadIdx.x
        if t < 16:
            out[t] = cuda.shfl_sync(0xFFFFFFFF, a[t], 0)  # BUG
        cuda.syncthreads()

    found(bad, "barrier_divergence", block=32)


def test_flag_without_release():
    @cuda.jit
    def bad(a, out, flag):
        if cuda.threadIdx.x == 0:
            if cuda.blockIdx.x == 0:
                out[0] = a[5]  # BUG
                PUT_RELAXED(flag, 0, 1)
            else:
                while RELAXED(flag, 0) == 0:
                    pass
                out[1] = out[0]

    @cuda.jit
    def good(a, out, flag):
        if cuda.threadIdx.x == 0:
            if cuda.blockIdx.x == 0:
                out[0] = a[5]
                PUT_RELEASE(flag, 0, 1)
            else:
                while ACQUIRE(flag, 0) == 0:
                    pass
                out[1] = out[0]

    found(bad, "race", grid=2, extra=(np.zeros(1, np.uint32),))
    silent(good, grid=2, extra=(np.zeros(1, np.uint32),))


def test_only_one_thread_of_a_block_waits():
    @cuda.jit
    def bad(a, out, flag):
        t = cuda.threadIdx.x
        if cuda.blockIdx.x == 0:
            out[t] = a[t]
            cuda.syncthreads()
            if t == 0:
                PUT_RELEASE(flag, 0, 1)
        else:
            if t == 0:
                while ACQUIRE(flag, 0) == 0:
                    pass
            out[t + N] = out[t]  # BUG

    @cuda.jit
    def good(a, out, flag):
        t = cuda.threadIdx.x
        if cuda.blockIdx.x == 0:
            out[t] = a[t]
            cuda.syncthreads()
            if t == 0:
                PUT_RELEASE(flag, 0, 1)
        else:
            if t == 0:
                while ACQUIRE(flag, 0) == 0:
                    pass
            cuda.syncthreads()
            out[t + N] = out[t]

    found(bad, "race", grid=2, extra=(np.zeros(1, np.uint32),))
    silent(good, grid=2, extra=(np.zeros(1, np.uint32),))


@pytest.mark.parametrize("seed", range(3))
def test_gpu_scope_between_devices(seed):
    @cuda.jit
    def bad(a, out, flag, number):
        if number == 0:
            out[0] = a[5]
            PUT_RELEASE_GPU(flag, 0, 1)  # BUG
        else:
            while ACQUIRE_GPU(flag, 0) == 0:
                pass
            out[1] = out[0]

    @cuda.jit
    def good(a, out, flag, number):
        if number == 0:
            out[0] = a[5]
            PUT_RELEASE(flag, 0, 1)
        else:
            while ACQUIRE(flag, 0) == 0:
                pass
            out[1] = out[0]

    for kernel, bug in ((bad, True), (good, False)):
        machine = ptxsim.Machine(devices=2, seed=seed)
        d = machine.device(0)
        a, out, flag = d.array(np.ones(8)), d.array(np.zeros(8)), d.array(np.zeros(1, np.uint32))
        for number in range(2):
            machine.device(number).launch(kernel, 1, 1, a, out, flag, number)
        reports = machine.run()
        assert bool(reports) == bug
        if bug:
            assert marked(kernel) & {r.line for r in reports if r.kind == "race"}
        else:
            assert out.copy_to_host()[1] == 1.0


def test_copy_without_wait():
    @cuda.jit
    def bad(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        if t < 32:
            copy_async(s, 4 * t, a, 4 * t)
            COMMIT()
        cuda.syncthreads()
        out[t] = s[t]  # BUG

    @cuda.jit
    def good(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        if t < 32:
            copy_async(s, 4 * t, a, 4 * t)
            COMMIT()
            WAIT()
        cuda.syncthreads()
        out[t] = s[t]

    found(bad, "missing_wait")
    silent(good)
    _, machine = run(good)
    assert np.array_equal(machine.memory.bytes_of(machine.memory.allocations[2]).view(np.float32)[:N], np.arange(N))


def test_copy_waited_for_but_not_synchronised():
    @cuda.jit
    def bad(a, out):
        s = cuda.shared.array(N, np.float32)
        t = cuda.threadIdx.x
        if t < 32:
            copy_async(s, 4 * t, a, 4 * t)
            COMMIT()
            WAIT()
        out[t] = s[t]  # BUG

    reports, _ = run(bad)
    assert {r.kind for r in reports if r.line in marked(bad)} & {"race", "missing_wait"}


def test_read_only_load_of_what_the_kernel_writes():
    @cuda.jit
    def bad(a, out):
        t = cuda.threadIdx.x
        a[t] += 1
        out[t] = READ_ONLY(a, t)  # BUG

    @cuda.jit
    def good(a, out):
        t = cuda.threadIdx.x
        a[t] += 1
        out[t] = a[t] + READ_ONLY(a, N + t)

    found(bad, "not_coherent", dtype=np.uint32)
    silent(good, dtype=np.uint32)


def test_counter_without_atomics():
    @cuda.jit
    def bad(a, out):
        out[0] += a[cuda.threadIdx.x]  # BUG

    @cuda.jit
    def good(a, out):
        cuda.atomic.add(out, 0, a[cuda.threadIdx.x])

    found(bad, "race")
    silent(good, grid=3)


def test_blocks_that_wait_for_blocks_that_cannot_be_resident():
    @cuda.jit
    def bad(a, out, flag):
        if cuda.threadIdx.x == 0:
            cuda.atomic.add(flag, 0, 1)
            while ACQUIRE(flag, 0) < cuda.gridDim.x:  # BUG
                pass

    reports = found(bad, "deadlock", grid=9, block=1024, extra=(np.zeros(1, np.uint32),))
    assert "waits for an SM" in reports[0].message
    silent(bad, grid=8, block=1024, extra=(np.zeros(1, np.uint32),))


def test_blocks_that_wait_for_each_other():
    @cuda.jit
    def bad(a, out, flag):
        me = cuda.blockIdx.x
        if cuda.threadIdx.x == 0:
            while ACQUIRE(flag, 1 - me) == 0:  # BUG
                pass
            PUT_RELEASE(flag, me, 1)

    found(bad, "deadlock", grid=2, block=32, extra=(np.zeros(2, np.uint32),))


def test_a_lock_that_is_never_released():
    @cuda.jit
    def bad(a, out, lock):
        while cuda.atomic.cas(lock, 0, 0, 1) != 0:  # BUG
            pass
        out[0] += 1

    found(bad, "deadlock", block=2, extra=(np.zeros(1, np.int32),))


def test_a_lock_between_lanes_of_a_warp():
    """A lane that spins must not starve the lane that holds the lock."""

    @cuda.jit
    def good(a, out, lock):
        done = False
        while not done:
            if cuda.atomic.cas(lock, 0, 0, 1) == 0:
                cuda.threadfence()
                out[0] += 1
                cuda.threadfence()
                cuda.atomic.exch(lock, 0, 0)
                done = True

    reports, machine = run(good, grid=2, block=64, extra=(np.zeros(1, np.int32),))
    assert not reports, [str(r) for r in reports]
    out = machine.memory.bytes_of(machine.memory.allocations[2]).view(np.float32)
    assert out[0] == 128


def test_bank_conflicts_and_uncoalesced_loads_are_only_counted():
    @cuda.jit
    def kernel(a, out):
        s = cuda.shared.array((32, 32), np.float32)
        t = cuda.threadIdx.x
        s[t, 0] = a[t]
        s[0, t] = a[t]
        cuda.syncwarp()
        out[t] = a[t * 32]

    @cuda.jit
    def strided(a, out):
        s = cuda.shared.array((32, 33), np.float32)
        t = cuda.threadIdx.x
        s[t, 0] = a[t]
        out[t] = a[t * 31]
        out[t + 64] = s[t, 0]

    reports, machine = run(strided, block=32)
    assert not reports
    first = inspect.getsourcelines(strided.py_func)[1]
    profile = machine.profile()
    padded, uncoalesced = profile.line(first + 4), profile.line(first + 5)
    assert padded["bank_conflicts"] == 0
    assert padded["coalesced"]
    assert uncoalesced["sectors"] >= 32
    assert not uncoalesced["coalesced"]
    reports, machine = run(kernel, block=32)
    first = inspect.getsourcelines(kernel.py_func)[1]
    assert machine.profile().line(first + 4)["bank_conflicts"] == 31


@pytest.mark.parametrize(("step", "conflicts"), [(1, 0), (8, 28)])
def test_copies_into_shared_memory_are_counted(step, conflicts):
    """With 16 bytes a lane, a quarter of a warp copies at a time.

    Lanes 128 bytes apart conflict, adjacent ones do not.
    """

    @cuda.jit
    def kernel(a, out):
        s = cuda.shared.array(1024, np.float32)
        t = cuda.threadIdx.x
        copy_async(s, 4 * step * t, a, 4 * t)
        COMMIT()
        WAIT()
        out[t] = s[4 * step * t]

    reports, machine = run(kernel, block=32)
    assert not reports
    copies = machine.profile().opcodes["cp.async"]
    assert (copies["global_requests"], copies["shared_requests"], copies["sectors"]) == (1, 1, 16)
    assert copies["bank_conflicts"] == conflicts
    assert copies["coalesced"]
    assert "sect/req" in str(machine.profile())
    assert machine.profile().json()["total"]["instructions"] > 0


def test_strict_raises_at_the_first_report():
    @cuda.jit
    def bad(a, out):
        out[5000] = 1.0  # BUG

    machine = ptxsim.Machine(strict=True)
    d = machine.device(0)
    d.launch(bad, 1, 1, d.array(np.zeros(4)), d.array(np.zeros(4)))
    with pytest.raises(ptxsim.KernelFault, match="out_of_bounds"):
        machine.run()


def test_trap():
    ptx = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\ntrap;\n}\n"
    machine = ptxsim.Machine()
    machine.device(0).launch(ptx, 1, 32)
    assert [r.kind for r in machine.run()] == ["trap"]


@pytest.mark.parametrize("check", [True, False])
def test_a_python_actor_takes_part(check):
    @cuda.jit
    def serve(a, out, box):
        while ACQUIRE(box, 0) == 0:
            pass
        out[0] = a[0] + 1
        PUT_RELEASE(box, 1, 1)

    def proxy(a, out, box, seen):
        a.store(0, 41.0, order="weak")
        box.store(0, 1)
        while box.load(1) == 0:
            yield
        seen.append(out.load(0, order="weak"))

    machine = ptxsim.Machine(check=check)
    d = machine.device(0)
    a, out, box = machine.host_array(np.zeros(4)), d.array(np.zeros(4)), machine.host_array(np.zeros(2, np.uint32))
    seen: list[float] = []
    machine.actor(proxy, a, out, box, seen)
    d.launch(serve, 1, 1, a, out, box)
    assert machine.run() == []
    assert seen == [42.0]


def test_equal_seeds_repeat_a_run_and_others_differ():
    @cuda.jit
    def order(a, out):
        if cuda.threadIdx.x == 0:
            out[cuda.blockIdx.x] = cuda.atomic.add(a, 0, 1)

    def once(seed):
        _, machine = run(order, grid=32, block=32, seed=seed)
        return machine.memory.bytes_of(machine.memory.allocations[2]).view(np.float32)[:32].tolist()

    assert once(1) == once(1)
    assert len({tuple(once(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("size", [1, 3, 63, 64, 65])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("offset", [-1, 0])
def test_one_before_and_one_past_an_array(size, dtype, offset):
    """Only the items beside an array are out of bounds, wherever in a page the array ends."""

    @cuda.jit
    def read(a, out, at):
        out[0] = a[at]

    for at, wrong in ((0, False), (size - 1, False), (size if offset == 0 else -1 - size, True)):
        machine = ptxsim.Machine()
        d = machine.device(0)
        a, out = d.array(np.ones(size, dtype), name="a"), d.array(np.zeros(1, dtype))
        d.launch(read, 1, 1, a, out, at)
        reports = machine.run()
        assert [r.kind for r in reports] == ["out_of_bounds"] * wrong
        if at == size:
            assert reports[0].address == f"a[{size}]"


def test_a_copy_replaces_an_earlier_store():
    """After a copy into shared memory, reads return the copy, not an earlier store."""

    @cuda.jit
    def kernel(a, out):
        s = cuda.shared.array(512, np.float32)
        t = cuda.threadIdx.x
        for i in range(4):
            s[4 * t + i] = -1
        cuda.syncthreads()
        copy_async(s, 4 * t, a, 4 * t)
        COMMIT()
        WAIT()
        cuda.syncthreads()
        other = (t + 37) % N
        for i in range(4):
            out[4 * t + i] = s[4 * other + i]

    machine = ptxsim.Machine()
    d = machine.device(0)
    a, out = d.array(np.arange(4 * N).astype(np.float32)), d.array(np.zeros(4 * N, np.float32))
    d.launch(kernel, 1, N, a, out)
    assert not machine.run()
    expected = np.roll(np.arange(4 * N).reshape(N, 4), -37, axis=0).ravel()
    np.testing.assert_array_equal(out.copy_to_host(), expected)

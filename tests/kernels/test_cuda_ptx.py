"""Every PTX primitive on the PTX machine is compared with its plain Python body, in functions that run both ways."""

from __future__ import annotations

import inspect
import re
import types as python_types

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numba import njit

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from scopes import fence_gpu, fence_sys, load_acquire_gpu, load_relaxed_sys, store_relaxed_sys, store_release_gpu

import ptxsim
from aristos.kernels.cuda import fragments, ptx
from aristos.kernels.cuda.compiler import cuda, types
from aristos.kernels.cuda.primitive import I64
from aristos.kernels.cuda.ptx import (
    add_gpu,
    barrier_end,
    barrier_expect,
    barrier_init,
    barrier_passed,
    bits_of_float,
    compare_exchange_gpu,
    copy_async16,
    copy_async_commit,
    copy_async_wait,
    copy_bulk,
    fence_async,
    float_of_bits,
    float_of_register,
    fma,
    globaltimer,
    load8,
    load8_once,
    load16_once,
    load_acquire_sys,
    load_float,
    load_floats2,
    load_matrices,
    load_shared4,
    load_shared16,
    multiply_group_commit,
    multiply_group_fence,
    multiply_group_wait,
    nanosleep,
    pair_bf16,
    pair_f16,
    round_tf32,
    store8,
    store8_once,
    store16_once,
    store_release_sys,
    store_shared4,
    store_shared8,
    thread,
    widen_bf16,
    widen_f16,
)
from aristos.kernels.cuda.tile import generated, shared_address
from aristos.primitives import memory as mem

pytestmark = pytest.mark.slow

WAIT, PRODUCTS_DONE = copy_async_wait(0), multiply_group_wait(0)
SCOPES = {
    "sys": (store_release_sys, load_acquire_sys, fence_sys),
    "gpu": (store_release_gpu, load_acquire_gpu, fence_gpu),
}
PRIMITIVES = {name: value for name, value in vars(ptx).items() if hasattr(value, "plain")}


def on_the_machine(function, *arrays, threads=1):
    """The arrays after `threads` threads ran function(address of the first array, arrays...) without a report."""
    machine = ptxsim.Machine()
    device = machine.device(0)
    held = [device.array(array) for array in arrays]
    device.launch(cuda.jit(function), 1, threads, held[0].ptr, *held)
    reports = machine.run()
    assert not reports, [str(report) for report in reports]
    return [array.copy_to_host() for array in held]


def in_python(function, *arrays, buffer=None):
    """The arrays after the function ran in Python, where plain bodies replace the primitives.

    buffer: replaces the array in shared memory.
    """
    plain = {name: getattr(value, "plain", value) for name, value in function.__globals__.items()}
    if buffer is not None:
        plain["shared_address"] = lambda array: buffer.ctypes.data
        shared = python_types.SimpleNamespace(array=lambda *a: None)
        plain["cuda"] = python_types.SimpleNamespace(shared=shared, syncthreads=lambda: None)
    held = [array.copy() for array in arrays]
    python_types.FunctionType(function.__code__, plain, "plain")(held[0].ctypes.data, *held)
    return held


def check(function, *arrays):
    machine, plain = on_the_machine(function, *arrays), in_python(function, *arrays)
    for ours, theirs in zip(machine, plain):
        np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8))
    return machine


def test_words():
    def words(at, data, out):
        out[0] = load_relaxed_sys(at)
        out[1] = load_acquire_gpu(at + 8)
        out[2] = load_acquire_sys(at + 16)
        out[3] = load8(at + 24)
        store_relaxed_sys(at, 101)
        fence_gpu()
        store_release_gpu(at + 8, -102)
        fence_sys()
        store_release_sys(at + 16, 1 << 40)
        store8(at + 24, -1)
        out[4] = add_gpu(at + 32, 7)
        out[5] = compare_exchange_gpu(at + 40, data[5], 20)
        out[6] = compare_exchange_gpu(at + 40, 5, 30)

    data, out = check(words, np.arange(-3, 9) * (1 << 35) + 5, np.zeros(7, np.int64))
    assert data[:6].tolist() == [101, -102, 1 << 40, -1, (1 << 35) + 12, 20]
    assert out[5:].tolist() == [2 * (1 << 35) + 5, 20]


def test_accesses_of_16_bytes_and_floats():
    def vectors(at, data, out):
        a, b, c, d = load16_once(at + 16)
        store16_once(at + 80, b, a, d, c)
        p, q = load8_once(at + 48)
        store8_once(at + 96, q, p)
        x, y = load_floats2(at + 32)
        out[0] = load_float(at + 40)
        out[1] = x
        out[2] = y

    data = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    after, out = check(vectors, data, np.zeros(3, np.float32))
    np.testing.assert_array_equal(after[20:24], data[[5, 4, 7, 6]])
    np.testing.assert_array_equal(after[24:26], data[[13, 12]])
    np.testing.assert_array_equal(out, data[[10, 8, 9]])


def test_conversions_and_rounding():
    """Rounding of many float32: ties, subnormals, the largest finite values."""

    def numbers(at, x, y, z, bits, sums):
        for i in range(x.size):
            bits[i, 0] = round_tf32(x[i])
            bits[i, 1] = pair_bf16(x[i], y[i])
            bits[i, 2] = pair_f16(x[i], y[i])
            bits[i, 3] = bits_of_float(x[i])
            sums[i, 0] = fma(x[i], y[i], z[i])
            sums[i, 1] = float_of_bits(bits[i, 3])
            sums[i, 2] = float_of_register(bits[i, 3])
            sums[i, 3], sums[i, 4] = widen_bf16(bits[i, 1])
            sums[i, 5], sums[i, 6] = widen_f16(bits[i, 2])

    rng = np.random.default_rng(2)
    n = 200
    raw = rng.integers(0, 1 << 32, (3, n), np.uint32)
    raw[:, ::4] = raw[:, ::4] & 0xFFFFE000 | rng.choice([0x0FFF, 0x1000, 0x1001, 0x8000], (3, n // 4))
    raw = (raw & 0x803FFFFF) | (rng.integers(110, 140, (3, n), np.uint32) << 23)  # exponents that float16 has too
    x, y, z = raw.view(np.float32)
    z[::3] = -(x * y)[::3]  # the difference after cancellation shows whether the product was rounded
    _, _, _, bits, sums = check(numbers, x, y, z, np.zeros((n, 4), np.int32), np.zeros((n, 7), np.float32))
    np.testing.assert_array_equal(sums[:, 3], x.astype(bfloat16).astype(np.float32))
    np.testing.assert_array_equal(sums[:, 6], y.astype(np.float16).astype(np.float32))
    assert (bits[:, 1] >> 16 != 0).any()


def test_shared_memory_and_copies():
    def copies(at, data, counts, out):
        tile = shared_address(cuda.shared.array(256, np.float32))
        for i in range(counts.size):
            copy_async16(tile + 16 * i, at + 16 * i, counts[i])
        copy_async_commit()
        WAIT()
        store_shared8(tile + 512, data[0], data[1])
        store_shared4(tile + 520, data[2])
        store_shared4(tile + 524, load_shared4(tile + 12))
        for i in range(counts.size):
            a, b, c, d = load_shared16(tile + 16 * i)
            out[i, 0], out[i, 1], out[i, 2], out[i, 3] = a, b, c, d
        a, b, c, d = load_shared16(tile + 512)
        out[i + 1, 0], out[i + 1, 1], out[i + 1, 2], out[i + 1, 3] = a, b, c, d

    counts = np.array([16, 12, 8, 4, 0], np.int32)
    data = np.random.default_rng(3).standard_normal(20).astype(np.float32)
    arrays = data, counts, np.zeros((6, 4), np.float32)
    machine = on_the_machine(copies, *arrays)
    held = in_python(copies, *arrays, buffer=np.zeros(256, np.float32))
    np.testing.assert_array_equal(machine[2], held[2])
    assert (machine[2][4] == 0).all()
    assert (machine[2][1] == [*data[4:7], 0]).all()


def test_matrices_are_loaded_from_shared_memory():
    def matrices(at, data, order, out):
        tile = shared_address(cuda.shared.array(1024, np.int32))
        lane = cuda.threadIdx.x
        for i in range(8):
            copy_async16(tile + 16 * (32 * i + lane), at + 16 * (32 * i + lane), 16)
        copy_async_commit()
        WAIT()
        cuda.syncthreads()
        a, b, c, d = load_matrices(tile + order[lane])
        out[lane, 0], out[lane, 1], out[lane, 2], out[lane, 3] = a, b, c, d

    rng = np.random.default_rng(4)
    data, order = rng.integers(0, 1 << 31, 1024).astype(np.int32), (rng.permutation(256)[:32] * 16).astype(np.int32)
    got = on_the_machine(matrices, data, order, np.zeros((32, 4), np.int32), threads=32)[2]
    np.testing.assert_array_equal(got, load_matrices.plain(data.ctypes.data + order.astype(np.int64)))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_products_of_warps(kind, exact):
    """Small integers give exact sums in any order; other numbers agree to a few roundings."""
    product = getattr(ptx, f"multiply_{kind}")

    def multiply(at, a, b, c, out):
        lane = cuda.threadIdx.x
        w, x, y, z = product(
            a[lane, 0],
            a[lane, 1],
            a[lane, 2],
            a[lane, 3],
            b[lane, 0],
            b[lane, 1],
            c[lane, 0],
            c[lane, 1],
            c[lane, 2],
            c[lane, 3],
        )
        out[lane, 0], out[lane, 1], out[lane, 2], out[lane, 3] = w, x, y, z

    rng = np.random.default_rng(5)

    def registers(count):
        shape = (32, count, 32 // fragments.WIDTH[kind])
        values = rng.integers(-8, 9, shape) if exact else rng.standard_normal(shape)
        if kind == "tf32":
            return np.ascontiguousarray(values[:, :, 0].astype(np.float32)).view(np.int32)
        bits = [[fragments.pair(*pair, kind) for pair in row] for row in values]
        return np.array(bits, np.int32)

    a, b = registers(4), registers(2)
    c = (rng.integers(-99, 99, (32, 4)) if exact else rng.standard_normal((32, 4))).astype(np.float32)
    got = on_the_machine(multiply, a, b, c, np.zeros((32, 4), np.float32), threads=32)[3]
    np.testing.assert_allclose(got, product.plain(a, b, c), rtol=0, atol=0 if exact else 1e-5)


def test_bulk_copies_and_their_barriers():
    """A barrier has two copies in its first phase and one in each later phase. Then its memory is used for data."""

    def copies(at, data, out):
        buffer = shared_address(cuda.shared.array(256, np.float32))
        barrier = buffer + 512
        if thread() == 0:
            barrier_init(barrier, 1)
        fence_async()
        cuda.syncthreads()
        if thread() == 0:
            out[0] = barrier_passed(barrier, 0)
            barrier_expect(barrier, 96)
            copy_bulk(buffer, at, 64, barrier)
            copy_bulk(buffer + 64, at + 128, 32, barrier)
        while barrier_passed(barrier, 0) == 0:
            pass
        for phase in range(1, 3):
            if thread() == 0:
                barrier_expect(barrier, 16)
                copy_bulk(buffer + 80 + 16 * phase, at + 16 * phase, 16, barrier)
            while barrier_passed(barrier, phase & 1) == 0:
                pass
        cuda.syncthreads()
        if thread() == 0:
            out[1] = barrier_passed(barrier, 0)
            barrier_end(barrier)
            store_shared8(barrier, data[0], data[1])
            for i in range(32):
                out[2 + i] = load_shared4(buffer + 4 * i)
            out[34] = load_shared4(barrier)

    data = np.random.default_rng(6).standard_normal(48).astype(np.float32)
    machine = on_the_machine(copies, data, np.zeros(35, np.float32), threads=64)[1]
    plain = in_python(copies, data, np.zeros(35, np.float32), buffer=np.zeros(256, np.float32))[1]
    np.testing.assert_array_equal(machine, plain)
    assert machine[:2].tolist() == [0, 1]
    np.testing.assert_array_equal(machine[2:34], data[[*range(16), *range(32, 40), *range(4, 12)]])
    assert machine[34] == data[0]


SUMS = types.UniTuple(types.float32, 64)


def _load_sums(builder, at):
    return [ptx.load_float.emit(builder, [builder.add(at, I64(4 * i))])[0] for i in range(64)]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_products_of_warpgroups(kind, exact):
    """For each k step of a line of swizzled rows the machine equals the plain body, which equals NumPy's product."""
    product, sums_at = getattr(ptx, f"multiply_group_{kind}"), generated(lambda: SUMS, [types.int64], _load_sums)
    rows, form = 64 + 128, fragments.DESCRIPTOR

    def multiply(at, data, step, out):
        buffer = shared_address(cuda.shared.array(26 * 1024, np.uint8)) + 1023 & -1024
        me = cuda.threadIdx.x
        for i in range(me, rows * 8, 128):
            copy_async16(buffer + 16 * i, at + 16 * i, 16)
        copy_async_commit()
        WAIT()
        fence_async()
        cuda.syncthreads()
        a = np.int64(buffer >> 4) + 2 * step[0] | form
        b = np.int64(buffer + 64 * 128 >> 4) + 2 * step[0] | form
        sums = sums_at(at + rows * 128 + 256 * me)
        multiply_group_fence()
        sums = product(a, b, sums)
        multiply_group_commit()
        PRODUCTS_DONE()
        for i in range(64):
            out[me, i] = sums[i]

    rng = np.random.default_rng(7)
    values = rng.integers(-8, 9, (rows, 64)) if exact else rng.standard_normal((rows, 64))
    held = values.astype(bfloat16 if kind == "bf16" else np.float16)
    lines = np.zeros((rows, 8, 16), np.uint8)  # 16-byte part p of row r lies at p ^ (r & 7)
    lines[np.arange(rows)[:, None], np.arange(8) ^ np.arange(rows)[:, None] % 8] = held.view(np.uint8).reshape(
        lines.shape
    )
    c = (rng.integers(-99, 99, (128, 64)) if exact else rng.standard_normal((128, 64))).astype(np.float32)
    for step in range(4):
        data = np.concatenate([lines.ravel(), c.ravel().view(np.uint8)]).view(np.int32)
        got = on_the_machine(multiply, data, np.array([step]), np.zeros((128, 64), np.float32), threads=128)[2]
        a, b = (fragments.descriptor(at) + 2 * step for at in (0, 64 * 128))
        plain = product.plain(lines.ravel(), a, b, c)
        np.testing.assert_allclose(got, plain, rtol=0, atol=0 if exact else 1e-5)
        part = held[:, 16 * step : 16 * step + 16].astype(np.float64)
        me, register = np.arange(128)[:, None], np.arange(64)
        row = me // 32 * 16 + me % 32 // 4 + register // 2 % 2 * 8
        column = register // 4 * 8 + me % 4 * 2 + register % 2
        want = (part[:64] @ part[64:].T)[row, column] + c
        np.testing.assert_allclose(plain, want, rtol=0, atol=0 if exact else 1e-6)


def test_clock_and_sleep():
    def times(at, out):  # nanoseconds
        out[0] = globaltimer()
        nanosleep(2000)
        out[1] = globaltimer()

    out = on_the_machine(times, np.zeros(2, np.int64))[0]
    assert out[1] > out[0]
    plain = in_python(times, np.zeros(2, np.int64))[0]
    assert plain[1] - plain[0] >= 2000


def test_thread_numbers():
    def number(at, out):
        out[thread()] = thread()

    got = on_the_machine(number, np.full(70, -1, np.int32), threads=70)[0]
    np.testing.assert_array_equal(got, np.arange(70))


@pytest.mark.parametrize("by", ["words", "fences"])
@pytest.mark.parametrize("scope", ["sys", "gpu"])
def test_device_scope_between_devices_is_a_race(scope, by):
    """A message between two devices is ordered at system scope; at device scope it is a race."""
    publish, read, fence = SCOPES[scope]

    def by_words(data, flag, out, device):
        if device == 0:
            store8(data, 42)
            publish(flag, 1)
        else:
            while read(flag) == 0:
                nanosleep(100)
            out[0] = load8(data)

    def by_fences(data, flag, out, device):
        if device == 0:
            store8(data, 42)
            fence()
            store_relaxed_sys(flag, 1)
        else:
            while load_relaxed_sys(flag) == 0:
                nanosleep(100)
            fence()
            out[0] = load8(data)

    send = by_words if by == "words" else by_fences
    kinds = set()
    for seed in range(4):
        machine = ptxsim.Machine(devices=2, seed=seed)
        words = machine.device(0).array(np.zeros(2, np.int64))
        out = machine.device(1).array(np.zeros(1, np.int64))
        for number in range(2):
            machine.device(number).launch(cuda.jit(send), 1, 1, words.ptr, words.ptr + 8, out, number)
        kinds |= {report.kind for report in machine.run()}
        if scope == "sys":
            assert out.copy_to_host()[0] == 42
    assert kinds == (set() if scope == "sys" else {"race"})


def test_memory_operations_compile_to_these_primitives():
    """Functions of `primitives.memory` compile to these primitives and keep their meaning in Python."""

    def steps(at, data, out):
        out[0] = mem.load(at)
        mem.store(at, 5)
        out[1] = mem.load_acquire(at + 8)
        mem.store_release(at + 8, 6)
        out[2] = mem.fetch_add(at + 16, 10)
        out[3] = mem.compare_exchange(at + 24, 4, 8)
        out[4] = mem.compare_exchange(at + 24, 4, 9)
        mem.pause()
        mem.nap()

    data, _ = check(steps, np.arange(1, 5), np.zeros(5, np.int64))
    assert data.tolist() == [5, 6, 13, 8]


def test_a_warp_copies_a_row():
    """Two warps copy whole rows, 16 bytes per lane, and report their thread, warp and lane numbers."""

    def rows(at, data, out):
        for i in range(mem.warp(), 5, mem.warps()):
            mem.copy_row(at + 2048 + 400 * i, at + 400 * i, 400)
        mem.block_barrier()
        if mem.thread() == 0:
            out[0], out[1] = mem.threads(), mem.warps()
        if mem.thread() == 37:
            out[2], out[3], out[4] = mem.thread(), mem.warp(), mem.lane()

    data = np.random.default_rng(9).integers(-9, 9, 1024).astype(np.int32)
    after, out = on_the_machine(rows, data, np.zeros(5, np.int64), threads=64)
    np.testing.assert_array_equal(after[512 : 512 + 500], data[:500])
    assert out.tolist() == [64, 2, 37, 1, 5]


def test_overloads_compiled_for_the_cpu_are_not_used():
    """Numba-CUDA would inline an overload that was first compiled for the CPU; NVVM rejects its atomics."""

    @njit
    def on_the_cpu(at):
        mem.store_release(at, mem.load_acquire(at) + 1)
        return mem.words(at, 1)[0]

    word = np.zeros(1, np.int64)
    assert on_the_cpu(word.ctypes.data) == 1

    def on_the_gpu(at, data):
        mem.store_release(at, mem.load_acquire(at) + 1)
        data[0] += mem.words(at, 1)[0]

    assert on_the_machine(on_the_gpu, np.zeros(1, np.int64))[0].tolist() == [2]


def test_each_primitive_is_tested_and_names_its_section():
    here = inspect.getsource(inspect.getmodule(test_words))
    for name, primitive in PRIMITIVES.items():
        assert len(re.findall(rf"\b{name}\b", here)) >= 2 or name.startswith("multiply_"), f"{name} is not tested here"
        assert "PTX ISA: " in primitive.plain.__doc__, name

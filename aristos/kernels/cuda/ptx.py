"""Every PTX string of the CUDA substrate, and nothing else. Each primitive is an intrinsic with its meaning in Python.

The decorator holds the PTX text that a primitive compiles to. The body is its meaning in plain Python, on this
process's memory (`primitive.plain`). If all lanes of a warp act together, the plain function takes the registers of all
32 lanes. Addresses are int64; addresses in shared memory are int32 (`shared_address`). A docstring ends with the title
of the instruction's section in the PTX ISA. Importing this module compiles nothing.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...primitives import memory as mem
from . import fragments
from .primitive import primitive

# ---------------------------------------------------------------- shared words


@primitive("ld.acquire.sys.global.s64 $0, [$1];", "l", "l")
def load_acquire_sys(address):
    """Read a word; afterwards all that its writer, on any device or the host, released with it is visible
    (PTX ISA: ld)."""
    return mem.load_acquire(address)


@primitive("st.release.sys.global.s64 [$0], $1;", "", "ll")
def store_release_sys(address, value):
    """Publish a word to every device and the host, after all that this thread wrote or acquired before
    (PTX ISA: st)."""
    mem.store_release(address, value)


@primitive("atom.acq_rel.gpu.global.add.u64 $0, [$1], $2;", "l", "ll")
def add_gpu(address, value):
    """Add to a word; returns its old value (PTX ISA: atom)."""
    return mem.fetch_add(address, value)


@primitive("atom.acq_rel.gpu.global.cas.b64 $0, [$1], $2, $3;", "l", "lll")
def compare_exchange_gpu(address, expected, value):
    """Write `value` if the word holds `expected`; returns the word's old value (PTX ISA: atom)."""
    old = mem.load(address)
    if old == expected:
        mem.store(address, value)
    return old


# ---------------------------------------------------------------- plain loads, and 16 bytes at a time


@primitive("ld.global.s64 $0, [$1];", "l", "l")
def load8(address):
    """Read a word that no thread writes now (PTX ISA: ld)."""
    return mem.load(address)


@primitive("st.global.s64 [$0], $1;", "", "ll")
def store8(address, value):
    """Write a word; a later release publishes it (PTX ISA: st)."""
    mem.store(address, value)


@primitive("ld.global.f32 $0, [$1];", "f", "l")
def load_float(address):
    """Read a float32 (PTX ISA: ld). ld.nc would be undefined for data that the same kernel has written."""
    return np.float32(ctypes.c_float.from_address(int(address)).value)


@primitive("ld.global.v2.f32 {$0, $1}, [$2];", "ff", "l")
def load_floats2(address):
    """Read two float32, aligned to 8 bytes (PTX ISA: ld)."""
    return tuple((ctypes.c_float * 2).from_address(int(address)))


def _four(address: int) -> tuple[int, ...]:
    return tuple((ctypes.c_int32 * 4).from_address(int(address)))


def _put_four(address: int, values: Sequence[int]) -> None:
    (ctypes.c_int32 * 4).from_address(int(address))[:] = [int(np.int32(value)) for value in values]


@primitive("ld.global.L1::no_allocate.L2::128B.v4.b32 {$0, $1, $2, $3}, [$4];", "rrrr", "l")
def load16_once(address):
    """Read 16 bytes that are read only once. L1 does not keep them; L2 fetches lines of 128 bytes (PTX ISA: ld)."""
    return _four(address)


@primitive("ld.global.L1::no_allocate.L2::128B.v2.b32 {$0, $1}, [$2];", "rr", "l")
def load8_once(address):
    """Read 8 bytes that are read only once (PTX ISA: ld)."""
    return tuple((ctypes.c_int32 * 2).from_address(int(address)))


@primitive("st.global.L1::no_allocate.v2.b32 [$0], {$1, $2};", "", "lrr")
def store8_once(address, a, b):
    """Write 8 bytes that this device will not read again (PTX ISA: st)."""
    (ctypes.c_int32 * 2).from_address(int(address))[:] = [int(np.int32(a)), int(np.int32(b))]


@primitive("st.global.L1::no_allocate.v4.b32 [$0], {$1, $2, $3, $4};", "", "lrrrr")
def store16_once(address, a, b, c, d):
    """Write 16 bytes that this device will not read again, such as a row for a peer (PTX ISA: st)."""
    _put_four(address, (a, b, c, d))


# ---------------------------------------------------------------- shared memory


@primitive("ld.shared.v4.f32 {$0, $1, $2, $3}, [$4];", "ffff", "r")
def load_shared16(address):
    """Read four float32 (PTX ISA: ld)."""
    return tuple((ctypes.c_float * 4).from_address(int(address)))


@primitive("ld.shared.f32 $0, [$1];", "f", "r")
def load_shared4(address):
    """Read one float32 (PTX ISA: ld)."""
    return ctypes.c_float.from_address(int(address)).value


@primitive("st.shared.v2.f32 [$0], {$1, $2};", "", "rff")
def store_shared8(address, a, b):
    """Write two float32 (PTX ISA: st)."""
    (ctypes.c_float * 2).from_address(int(address))[:] = [a, b]


@primitive("st.shared.f32 [$0], $1;", "", "rf")
def store_shared4(address, a):
    """Write one float32 (PTX ISA: st)."""
    ctypes.c_float.from_address(int(address)).value = a


@primitive("cp.async.cg.shared.global.L2::128B [$0], [$1], 16, $2;", "", "rlr")
def copy_async16(to, source, count):
    """Start to copy `count` bytes from `source` to shared memory, padded with zeros to 16 (PTX ISA: cp.async)."""
    ctypes.memmove(int(to), int(source), int(count))
    ctypes.memset(int(to) + int(count), 0, 16 - int(count))


@primitive("cp.async.commit_group;")
def copy_async_commit():
    """Make the copies since the last commit a group (PTX ISA: cp.async.commit_group)."""


def copy_async_wait(groups: int) -> Any:
    """f(): wait until at most `groups` groups of this thread's copies are unfinished (PTX ISA: cp.async.wait_group)."""

    @primitive(f"cp.async.wait_group {groups};")
    def copy_async_wait_():
        """Nothing to wait for: a plain copy is complete when it returns."""

    return copy_async_wait_


# ---------------------------------------------------------------- bulk copies and their barriers


class _Barrier(ctypes.Structure):
    """The state of an mbarrier in its 8 bytes, as the plain functions keep it; the hardware's format is opaque."""

    _fields_ = [
        ("phase", ctypes.c_uint8),
        ("count", ctypes.c_uint8),
        ("pending", ctypes.c_int16),
        ("bytes", ctypes.c_int32),
    ]
    phase: int
    pending: int
    bytes: int

    def settle(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase ^ 1, self.count


@primitive("mbarrier.init.shared::cta.b64 [$0], $1;", "", "rr")
def barrier_init(barrier, count):
    """Make 8 bytes of shared memory a barrier in phase 0. A phase ends after `count` arrivals and all expected bytes
    (PTX ISA: mbarrier.init)."""
    ctypes.memmove(int(barrier), bytes(_Barrier(0, int(count), int(count), 0)), 8)


@primitive("mbarrier.inval.shared::cta.b64 [$0];", "", "r")
def barrier_end(barrier):
    """End a barrier; its 8 bytes may be used for other data again (PTX ISA: mbarrier.inval)."""


@primitive("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", "", "rr")
def barrier_expect(barrier, nbytes):
    """Arrive, and add `nbytes` to the bytes that the phase expects (PTX ISA: mbarrier.arrive, .expect_tx)."""
    it = _Barrier.from_address(int(barrier))
    it.bytes += int(nbytes)
    it.pending -= 1
    it.settle()


@primitive(
    "{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [$1], $2; selp.b32 $0, 1, 0, done; }", "r", "rr"
)
def barrier_passed(barrier, parity):
    """1 if the phase of that parity has ended (the copied bytes are then visible), 0 after a bounded wait
    (PTX ISA: mbarrier.try_wait)."""
    return int(_Barrier.from_address(int(barrier)).phase != parity)


@primitive("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];", "", "rlrr")
def copy_bulk(to, source, nbytes, barrier):
    """Start to copy to shared memory, in aligned units of 16 bytes. The barrier counts the bytes that have arrived
    (PTX ISA: cp.async.bulk)."""
    ctypes.memmove(int(to), int(source), int(nbytes))
    it = _Barrier.from_address(int(barrier))
    it.bytes -= int(nbytes)
    it.settle()


@primitive("fence.proxy.async.shared::cta;")
def fence_async():
    """Order accesses to shared memory: loads, stores and cp.async that this thread has seen come before later bulk
    copies and wgmma (PTX ISA: membar/fence, .proxy.async)."""


@primitive("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];", "rrrr", "r")
def load_matrices(addresses):
    """Load four 8x8 matrices of 16-bit elements, or 8x4 of 32-bit. Lane 8 m + r passes the address of row r of matrix
    m. From each matrix, lane l gets 4 bytes of row l / 4, which start at byte 4 (l % 4) (PTX ISA: ldmatrix).

    plain: addresses [32] -> [32, 4] int32.
    """
    rows = np.array([_four(address) for address in addresses], np.int32).reshape(4, 8, 4)
    return rows.reshape(4, 32).T


# ---------------------------------------------------------------- tensor cores


def _multiply(shape: str, kind: str) -> str:
    """The text of a warp's product; $0 to $3 are the results, then come the registers of A, B and C."""
    operands = "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13}"
    return f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {operands};"


@primitive(_multiply("m16n8k16", "bf16"), "ffff", "rrrrrrffff", memory=False)
def multiply_bf16(a, b, c):
    """D = A B + C, A [16, 16], B [16, 8] bfloat16, C and D float32 (PTX ISA: mma.m16n8k16).

    plain: registers a [32, 4] and b [32, 2] int32, c [32, 4] float32 -> [32, 4] float32, exact sums rounded once.
    """
    return fragments.product(a, b, c, "bf16")


@primitive(_multiply("m16n8k16", "f16"), "ffff", "rrrrrrffff", memory=False)
def multiply_f16(a, b, c):
    """`multiply_bf16` with A and B in float16 (PTX ISA: mma.m16n8k16)."""
    return fragments.product(a, b, c, "f16")


@primitive(_multiply("m16n8k8", "tf32"), "ffff", "rrrrrrffff", memory=False)
def multiply_tf32(a, b, c):
    """D = A B + C, A [16, 8], B [8, 8] float32 truncated to 10 fraction bits (PTX ISA: mma.m16n8k8)."""
    return fragments.product(a, b, c, "tf32")


def _multiply_group(kind: str) -> str:
    """The text of a warpgroup's product; $0 to $63 are the sums, $64 and $65 the descriptors of A and B."""
    sums = ", ".join(f"${i}" for i in range(64))
    return (
        f"{{ .reg .pred add; setp.eq.b32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.{kind}.{kind}"
        f" {{{sums}}}, $64, $65, add, 1, 1, 0, 0; }}"
    )


@primitive(_multiply_group("bf16"), "f" * 64, "ll", carried=True)
def multiply_group_bf16(shared, a, b, c):
    """Start D = A B^T + C of a warpgroup's 128 threads: A [64, 16], B [128, 16] bfloat16 in shared memory, named by the
    descriptors `a` and `b` (`fragments.descriptor`); D float32, in the registers of C
    (PTX ISA: wgmma.mma_async, Register Fragments for wgmma.mma_async.m64nNk16).

    plain: shared memory as [n] uint8, c [128, 64] float32 -> [128, 64] float32, exact sums rounded once.
    """
    return fragments.group_product(shared, a, b, c, "bf16")


@primitive(_multiply_group("f16"), "f" * 64, "ll", carried=True)
def multiply_group_f16(shared, a, b, c):
    """`multiply_group_bf16` with A and B in float16 (PTX ISA: wgmma.mma_async)."""
    return fragments.group_product(shared, a, b, c, "f16")


@primitive("wgmma.fence.sync.aligned;")
def multiply_group_fence():
    """Order earlier writes to the registers of the sums before the products that follow (PTX ISA: wgmma.fence)."""


@primitive("wgmma.commit_group.sync.aligned;")
def multiply_group_commit():
    """Make the products since the last commit a group (PTX ISA: wgmma.commit_group)."""


def multiply_group_wait(groups: int) -> Any:
    """f(): wait until at most `groups` groups of products are unfinished (PTX ISA: wgmma.wait_group)."""

    @primitive(f"wgmma.wait_group.sync.aligned {groups};")
    def multiply_group_wait_():
        """Nothing to wait for: a plain product is complete when it returns."""

    return multiply_group_wait_


@primitive("cvt.rna.tf32.f32 $0, $1;", "r", "f", memory=False)
def round_tf32(x):
    """Round a float32 to the 10 fraction bits of tf32, ties away from zero (PTX ISA: cvt)."""
    return int(np.int32((int(np.float32(x).view(np.int32)) + 0x1000) & ~0x1FFF))


@primitive("cvt.rn.bf16x2.f32 $0, $2, $1;", "r", "ff", memory=False)
def pair_bf16(low, high):
    """Two float32 rounded to bfloat16 in one register, ties to even (PTX ISA: cvt)."""
    return fragments.pair(low, high, "bf16")


@primitive("cvt.rn.f16x2.f32 $0, $2, $1;", "r", "ff", memory=False)
def pair_f16(low, high):
    """Two float32 rounded to float16 in one register, ties to even (PTX ISA: cvt)."""
    return fragments.pair(low, high, "f16")


@primitive(
    "{ .reg .b32 part; shl.b32 part, $2, 16; mov.b32 $0, part; and.b32 part, $2, 0xffff0000; mov.b32 $1, part; }",
    "ff",
    "r",
    memory=False,
)
def widen_bf16(pair):
    """Two bfloat16 of a register as float32, the low half first (PTX ISA: shl, and)."""
    return fragments.both(pair, "bf16")


@primitive(
    "{ .reg .b16 low, high; mov.b32 {low, high}, $2; cvt.f32.f16 $0, low; cvt.f32.f16 $1, high; }",
    "ff",
    "r",
    memory=False,
)
def widen_f16(pair):
    """Two float16 of a register as float32, the low half first (PTX ISA: cvt)."""
    return fragments.both(pair, "f16")


@primitive("mov.b32 $0, $1;", "f", "r", memory=False)
def float_of_register(bits):
    """The float32 with a register's bits (PTX ISA: mov)."""
    return np.int32(bits).view(np.float32)


@primitive("mov.b32 $0, $1;", "r", "f", memory=False)
def bits_of_float(x):
    """The bits of a float32 (PTX ISA: mov)."""
    return int(np.float32(x).view(np.int32))


@primitive("{ .reg .b32 half; cvt.u32.u64 half, $1; mov.b32 $0, half; }", "f", "l", memory=False)
def float_of_bits(bits):
    """The float32 whose bits are the low half of an int64 (PTX ISA: mov)."""
    return mem.float_of_bits(np.int64(bits).astype(np.int32))


@primitive("fma.rn.f32 $0, $1, $2, $3;", "f", "fff", memory=False)
def fma(a, b, c):
    """a b + c, rounded once (PTX ISA: fma)."""
    return fragments.fma(a, b, c)


@primitive("mov.u32 $0, %tid.x;", "r")
def thread():
    """This thread's number in its block. Reading it again is cheaper than keeping it in a register (PTX ISA: %tid).

    plain: 0, the only thread.
    """
    return 0


# ---------------------------------------------------------------- time


@primitive("nanosleep.u32 $0;", "", "r")
def nanosleep(nanoseconds):
    """Suspend the thread for at most twice the given time; 1 ms is the maximum (PTX ISA: nanosleep)."""
    time.sleep(nanoseconds * 1e-9)


@primitive("mov.u64 $0, %globaltimer;", "l")
def globaltimer():
    """Nanoseconds on a clock that all threads of a device share (PTX ISA: %globaltimer)."""
    return time.monotonic_ns()

"""PTX primitives of other scopes and orders than those of the kernels, for tests that must see the difference."""

from __future__ import annotations

from aristos.kernels.cuda.primitive import primitive
from aristos.primitives import memory as mem


@primitive("ld.relaxed.sys.global.s64 $0, [$1];", "l", "l")
def load_relaxed_sys(address):
    """Read a word that another device or the host writes, without ordering other accesses (PTX ISA: ld)."""
    return mem.load(address)


@primitive("ld.acquire.gpu.global.s64 $0, [$1];", "l", "l")
def load_acquire_gpu(address):
    """Read a word; afterwards all that its writer on this device released with it is visible (PTX ISA: ld)."""
    return mem.load_acquire(address)


@primitive("st.relaxed.sys.global.s64 [$0], $1;", "", "ll")
def store_relaxed_sys(address, value):
    """Write a word that another device or the host reads, without ordering other accesses (PTX ISA: st)."""
    mem.store(address, value)


@primitive("st.release.gpu.global.s64 [$0], $1;", "", "ll")
def store_release_gpu(address, value):
    """Publish a word to this device, after all that this thread wrote or acquired before (PTX ISA: st)."""
    mem.store_release(address, value)


@primitive("fence.acq_rel.gpu;")
def fence_gpu():
    """Order this thread's earlier and later accesses, as seen by this device's threads (PTX ISA: membar/fence)."""


@primitive("fence.acq_rel.sys;")
def fence_sys():
    """Order this thread's earlier and later accesses, as seen by every device and the host (PTX ISA: membar/fence)."""

"""tcgen05.fence: orders a thread's work on tensor memory with its synchronisation with other threads.

After a thread has waited for other work on tensor memory, by an mbarrier or a barrier, fence::after_thread_sync is
needed before it uses the same columns. Before it notifies others of its own work, fence::before_thread_sync is needed;
tcgen05.commit implies it. For the checker, after_thread_sync notes which products the thread knows, even from a relaxed
wait, and before_thread_sync passes this on, even by a relaxed arrival. Source: the PTX ISA, "Memory Consistency Model
for 5th generation of TensorCore operations".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import thread_of
from .agents import OF_TENSOR
from .bits import get, put
from .clocks import AGENT_SHIFT, SUB_BITS, closed, join, lookup
from .units import unit
from .watch import report

AFTER, BEFORE = 3, 4  # details of MISSING_FENCE reports


@unit
def tensor_fence(x, warp, after, mask):
    """Run tcgen05.fence::after_thread_sync, or with after = 0 before_thread_sync, for the lanes of mask."""
    now = get(x, s.STEP) + 1
    if not after:
        put(warp, s.W_BEFORE, now)
    for lane in range(32):
        if (mask >> lane) & 1:
            thread = thread_of(x, warp, lane)
            products = products_in(x, join(x, get(thread, s.T_VC), get(thread, s.T_PENDING0)))
            if after:
                put(thread, s.T_FENCED, products)
                put(thread, s.T_FENCE_AT, now)
            else:
                put(thread, s.T_RELEASE0, join(x, get(thread, s.T_RELEASE0), products))
    return 0


@jit
def products_in(x, vc):
    """The part of a vector clock that is about products of tcgen05."""
    pool, top = get(x, s.CLOCKS), get(x, s.CLOCKS_TOP)
    n = np.int64(0)
    for i in range(get(pool, 2 * vc) if vc else 0):
        key = get(pool, 2 * (vc + 1 + i))
        if key >> SUB_BITS >> (AGENT_SHIFT - 10) == OF_TENSOR:
            put(pool, 2 * (top + 1 + n), key)
            put(pool, 2 * (top + 1 + n) + 1, get(pool, 2 * (vc + 1 + i) + 1))
            n += 1
    return closed(x, top, n) if n else np.int64(0)


@jit
def knows_product(x, thread, key, clock):
    """Whether a thread has waited for a product, with or without a fence after it."""
    return lookup(x, get(thread, s.T_VC), key) >= clock or lookup(x, get(thread, s.T_PENDING0), key) >= clock


@jit
def unfenced(x, thread, pc, column, other, what):
    """Report the use of a column without a fence. other: the product, or 0 for a store. what: AFTER or BEFORE."""
    gid = get(thread, s.T_GID)
    report(x, s.MISSING_FENCE, pc, gid, column, isa.LOCAL, 4, other, gid, what, 0)

"""Clusters: blocks of a launch that run at the same time and reach each other's shared memory.

The address of a place in another block's shared memory has that block's rank in its high bits (isa.RANK_SHIFT), and so
has the `place` that `locate` returns for it. All slots of a cluster are free again when its last block has ended.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import get, put
from .clocks import AGENTS, SUB_BITS, in_clock, next_key
from .units import unit
from .watch import GID_MASK, report

LOW = (1 << isa.RANK_SHIFT) - 1  # the bits of an address in one block's shared memory
# details of MISUSE reports, after those of tensor_memory.py
NOT_STARTED, ARRIVES_AGAIN, NEVER_ARRIVED, OTHER_BLOCK = range(20, 24)
NOT_ORDERED = 1  # detail of a USE_AFTER_FREE report


@unit
def block_at(x, block, place):
    """The row of the block in whose shared memory a place lies, or 0 if the cluster has no block of this rank."""
    rank = (place >> isa.RANK_SHIFT) - isa.FIRST_RANK
    cluster = get(block, s.B_CLUSTER)
    if rank < 0 or rank >= get(cluster, s.K_SIZE):
        return np.int64(0)
    return get(cluster, s.K_BLOCKS + rank)


@jit
def holder(x, block, place):
    """The row of the block in whose shared memory `place` lies. place: what `locate` has returned for an address."""
    return block if place >> isa.RANK_SHIFT == 0 else block_at(x, block, place)


@jit
def partner(block):
    """The row of the other block of a pair: its rank in the cluster differs in the last bit. 0 if there is none."""
    cluster, rank = get(block, s.B_CLUSTER), get(block, s.B_RANK) ^ 1
    return get(cluster, s.K_BLOCKS + rank) if rank < get(cluster, s.K_SIZE) else np.int64(0)


@unit
def reached(x, thread, block, address, size, write, pc):
    """The row of the block that an address with a rank names, for an access.

    Returns 0 if there is no such block, or if it has ended; both are reported. An access by a thread that does not know
    that the block has started is reported too.
    """
    other = block_at(x, block, address)
    if other == 0:
        limit = get(block, s.B_SHARED_SIZE)
        report(x, s.OUT_OF_BOUNDS, pc, get(thread, s.T_GID), address, isa.SHARED, size, 0, 0, limit, write)
        return other
    if other == block:
        return other
    if get(other, s.B_LIVE) == 0:
        report(x, s.USE_AFTER_FREE, pc, get(thread, s.T_GID), address, isa.SHARED, size, 0, 0, 0, write)
        return np.int64(0)
    put(other, s.B_REACHED, 1)
    if get(x, s.CHECK) and get(get(block, s.B_CLUSTER), s.K_PHASE) == 0 and not knows(x, thread, other):
        report(x, s.MISUSE, pc, get(thread, s.T_GID), address, isa.SHARED, size, 0, 0, NOT_STARTED, write)
    return other


@jit
def knows(x, thread, other):
    """Whether a thread knows that a block has started, because anything that the block did happened before now."""
    vc = get(thread, s.T_VC)
    if vc == 0:
        return False
    key = next_key(x, vc, get(other, s.B_GID) << SUB_BITS)
    return key >= 0 and key >> SUB_BITS == get(other, s.B_GID)


@unit
def left_behind(x, block):
    """Report other blocks' accesses to the shared memory of a block that ends, unless they happened before its end."""
    launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
    grain = get(launch, s.L_GRANULE)
    for k in range(get(block, s.B_SHARED_SIZE) // grain):
        cell = get(block, s.B_SHADOW) + k * s.CELL_WORDS * 8
        for word in range(0, s.CELL_WORDS, 2):
            gid = get(cell, word) & GID_MASK
            if get(cell, word) == 0 or gid >> 10 == get(block, s.B_GID) or gid & AGENTS:
                continue
            if not in_clock(x, get(block, s.B_VC_OUT), gid, get(cell, word + 1) & 0xFFFFFFFF):
                address = k * grain | (get(block, s.B_RANK) + isa.FIRST_RANK) << isa.RANK_SHIFT
                pc, writes = (get(cell, word) >> s.GID_BITS) & 0x3FFFFF, word == 0
                report(x, s.USE_AFTER_FREE, pc, gid, address, isa.SHARED, grain, 0, 0, NOT_ORDERED, writes)
    return 0


@jit
def cluster_over(block):
    """Whether all blocks of a block's cluster have ended."""
    cluster = get(block, s.B_CLUSTER)
    live = np.int64(0)
    for rank in range(get(cluster, s.K_SIZE)):
        live += get(get(cluster, s.K_BLOCKS + rank), s.B_LIVE)
    return live == 0


# ---- numbers of blocks ----
@jit
def cta_of(launch, number):
    """The linear index in the grid of the block that starts as number `number`. Blocks start cluster by cluster."""
    cx, cy, cz = get(launch, s.L_CX), get(launch, s.L_CY), get(launch, s.L_CZ)
    gx, gy = get(launch, s.L_GX), get(launch, s.L_GY)
    rank, cluster = number % get(launch, s.L_CLUSTER), number // get(launch, s.L_CLUSTER)
    column = cluster % (gx // cx) * cx + rank % cx
    row = cluster // (gx // cx) % (gy // cy) * cy + rank // cx % cy
    layer = cluster // (gx // cx) // (gy // cy) * cz + rank // (cx * cy)
    return column + gx * (row + gy * layer)


@unit
def cluster_register(x, block, number):
    """The value of a special register of clusters. number: its place in rows.CLUSTER_REGISTERS."""
    launch = get(x, s.LAUNCHES) + get(block, s.B_LAUNCH) * s.L_FIELDS * 8
    if number == 12:
        return get(block, s.B_RANK)
    if number == 13:
        return get(launch, s.L_CLUSTER)
    if number == 14:
        return get(launch, s.L_EXPLICIT)
    if number == 15:
        return (get(block, s.B_RANK) + isa.FIRST_RANK) << isa.RANK_SHIFT if get(launch, s.L_CLUSTER) > 1 else 0
    axis = number % 3
    most, sizes = get(launch, s.L_GX + axis), get(launch, s.L_CX + axis)
    at = get(block, s.B_CTA)
    for before in range(axis):
        at //= get(launch, s.L_GX + before)
    at %= most
    if number < 3:
        return at // sizes
    if number < 6:
        return most // sizes
    return at % sizes if number < 9 else sizes

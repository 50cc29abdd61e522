"""Counts memory requests: the 32-byte sectors of global memory, and the wavefronts of shared memory's 32 banks."""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import get, put
from .units import unit


@unit
def count_access(x, warp, line, pc, mask, space, width, write):
    """Count a request. The scratch table holds the lanes' addresses, or -1 for a lane without one.

    width: bytes that a lane accesses.
    """
    where = get(x, s.SCRATCH)
    counts = get(x, s.COUNTS) + pc * s.N_FIELDS * 8
    if space == isa.GLOBAL:
        put(counts, s.N_WIDTH, width)
        sectors, lanes = distinct(x, mask, width, 5)
        put(counts, s.N_REQUESTS, get(counts, s.N_REQUESTS) + 1)
        put(counts, s.N_SECTORS, get(counts, s.N_SECTORS) + sectors)
        put(counts, s.N_BYTES, get(counts, s.N_BYTES) + lanes * width)
        put(counts, s.N_IDEAL, get(counts, s.N_IDEAL) + (lanes * width + 31) // 32)
    elif space == isa.SHARED:
        put(counts, s.N_WIDTH, width)
        waves, ideal = wavefronts(where, mask, width)
        put(counts, s.N_SHARED, get(counts, s.N_SHARED) + 1)
        put(counts, s.N_WAVES, get(counts, s.N_WAVES) + waves)
        put(counts, s.N_IDEAL_WAVES, get(counts, s.N_IDEAL_WAVES) + ideal)
    return 0


@jit
def distinct(x, mask, width, shift):
    """Count the addresses in the scratch table. Returns (the number of different sectors, the number of lanes)."""
    where = get(x, s.SCRATCH)
    found = where + 64 * 8
    n, lanes, highest = np.int64(0), np.int64(0), np.int64(-1)
    for lane in range(32):
        if not (mask >> lane) & 1 or get(where, lane) == -1:
            continue
        lanes += 1
        first, last = get(where, lane) >> shift, (get(where, lane) + width - 1) >> shift
        for sector in range(first, last + 1):
            known = n > 0 and get(found, n - 1) == sector
            if not known and sector <= highest:
                for k in range(n):
                    if get(found, k) == sector:
                        known = True
                        break
            if not known:
                put(found, n, sector)
                n += 1
                highest = max(highest, sector)
    return n, lanes


@jit
def wavefronts(where, mask, width):
    """Count the wavefronts of a request of shared memory. Returns (wavefronts, the fewest possible).

    A wavefront moves at most one word of 4 bytes from each of the 32 banks. Lanes that access the same word share it.
    If lanes access 8 bytes each, half a warp is served at a time; if 16 bytes, a quarter.
    """
    step = 32 if width <= 4 else (16 if width == 8 else 8)
    words = np.int64(max(width // 4, 1))
    firsts, depths, others = where + 64 * 8, where + 96 * 8, where + 128 * 8
    total, ideal = np.int64(0), np.int64(0)
    for start in range(0, 32, step):
        if (mask >> start) & ((1 << step) - 1) == 0:
            continue
        for bank in range(32):
            put(depths, bank, 0)
        worst, more = np.int64(1), np.int64(0)
        for lane in range(start, start + step):
            if not (mask >> lane) & 1 or get(where, lane) == -1:
                continue
            for word in range(get(where, lane) >> 2, (get(where, lane) >> 2) + words):
                bank = word & 31
                depth = get(depths, bank)
                if depth == 0:
                    put(firsts, bank, word)
                    put(depths, bank, 1)
                    continue
                known = get(firsts, bank) == word
                for k in range(more):
                    if known:
                        break
                    known = get(others, k) == word
                if not known:
                    put(others, more, word)
                    more += 1
                    put(depths, bank, depth + 1)
                    worst = max(worst, depth + 1)
        total += worst
        ideal += 1
    return total, ideal

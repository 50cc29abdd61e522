"""The descriptor ring, compiled, with real threads; `aristos explore --transport ring` explores its schedules."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from aristos.engine import descriptors
from aristos.engine.descriptors import BYTES, SEQUENCE, TAKEN, TOLD, VALUE
from aristos.kernels.cpu.gemm import aligned
from aristos.primitives import memory as mem
from aristos.primitives.compile import jit


@jit
def post_many(ring, slots, block, count, deadline):
    """Post `count` descriptors; how many were, by the deadline."""
    n = 0
    while n < count and mem.clock() < deadline:
        if descriptors.post(ring, slots, block, 0, 0, 8 * n, block, n) < 0:
            mem.yield_core()
        else:
            n += 1
    return n


@jit
def take_many(ring, slots, seen, count, deadline):
    """Take `count` descriptors: each block's come in order, whole. seen: [blocks] int64; how many were taken."""
    ticket = 0
    while ticket < count and mem.clock() < deadline:
        a = descriptors.slot(ring, slots, ticket)
        if mem.load_acquire(a + SEQUENCE) != ticket + 1:
            mem.yield_core()
            continue
        block, n = mem.load(a + TOLD), mem.load(a + VALUE)
        if mem.load(a + BYTES) != 8 * n or seen[block] != n:
            return -1 - ticket
        seen[block] += 1
        ticket += 1
        mem.store_release(ring + TAKEN, ticket)
    return ticket


@pytest.mark.parametrize(("blocks", "slots"), [(1, 1), (2, 1), (3, 4), (4, 64)])
def test_every_descriptor_comes_once_whole_and_in_its_blocks_order(blocks, slots):
    count = 20_000 // blocks
    ring = aligned((descriptors.ring_bytes(slots),), np.uint8)
    ring[:] = 0
    at, seen, posted = ring.ctypes.data, np.zeros(blocks, np.int64), [0] * blocks
    deadline = mem.clock() + 60 * 10**9

    def post(block: int) -> None:
        posted[block] = post_many(at, slots, block, count, deadline)

    threads = [threading.Thread(target=post, args=(block,)) for block in range(blocks)]
    for thread in threads:
        thread.start()
    taken = take_many(at, slots, seen, blocks * count, deadline)
    for thread in threads:
        thread.join()
    assert posted == [count] * blocks
    assert taken == blocks * count
    assert seen.tolist() == posted


def test_a_full_ring_asks_for_nothing():
    ring = np.zeros(descriptors.ring_bytes(2) // 8, np.int64)
    at = ring.ctypes.data
    assert [descriptors.post(at, 2, 0, 0, 0, 0, -1, 0) for _ in range(3)] == [0, 1, -1]
    before = ring.copy()
    assert descriptors.post(at, 2, 5, 5, 5, 5, 5, 5) == -1
    assert np.array_equal(ring, before)
    assert not descriptors.landed(at, 0)


def test_the_caller_finds_nothing_in_an_empty_ring():
    ring, job, state = (
        np.zeros(descriptors.ring_bytes(2) // 8, np.int64),
        np.zeros(200, np.int64),
        np.zeros(8, np.int64),
    )
    assert descriptors.serve(job, state, ring.ctypes.data, 2, 0) == 0
    assert not ring.any()

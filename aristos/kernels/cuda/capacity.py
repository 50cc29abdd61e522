"""The capacity of experts on a GPU. Choices beyond it are marked before rows get their packed order.

First choices count before second ones; choices with the same number count in the order of their tokens. (`drop` in
engine/packing.py does the same on CPUs.) The place of a token's choice j among all choices of its expert is a sum of
three counts: how often any token names the expert in choices 0..j-1, how often tokens of earlier blocks name it in
choice j, and how often earlier tokens of this block name it in choice j. The shared expert has no limit.
"""

from __future__ import annotations

import numpy as np

from ...primitives import memory as mem
from . import router as r
from . import router_job as words
from .compiler import cuda
from .tile import CHUNK


def drop_shared(slots: int, k: int) -> int:
    """Bytes of dynamic shared memory that `drop` needs. k: TOP_K of the job."""
    return r.WORD * k * (slots + r.BLOCK)


@cuda.jit
def drop(job_address):
    """Set ids of choices beyond the capacity to -2 - id, and count the remaining choices. Grid: blocks(tokens)."""
    job = mem.words(job_address, words.JOB_WORDS)
    if r.unbegun(job):
        return
    shared = cuda.shared.array(0, np.int64, CHUNK)
    thread, block, first = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.x * r.BLOCK
    tokens, k, slots = job[words.TOKENS], job[words.TOP_K], job[words.SLOTS]
    parts = (tokens + r.BLOCK - 1) // r.BLOCK
    counts = mem.words(r.counts_by_choice(job), parts * k * slots)
    left, slot_of_choice = shared[: k * slots], shared[k * slots :]  # left: how many choices this block may keep
    good = mem.load(job[words.STATUS]) == r.OK
    for slot in range(thread, slots if good else 0, r.THREADS):
        taken, kept = 0, 0
        for j in range(k):
            all_blocks, earlier = 0, 0
            for b in range(parts):
                count = counts[(b * k + j) * slots + slot]
                all_blocks += count
                earlier += count if b < block else 0
            most = job[words.CAPACITY] - taken - earlier if j < job[words.CHOICES] else r.BLOCK
            left[j * slots + slot] = most
            kept += max(0, min(most, counts[(block * k + j) * slots + slot]))
            taken += all_blocks
        mem.store(r.counts_of(job) + r.WORD * (block * slots + slot), kept)
    choices = min(tokens - first, r.BLOCK) * k if good else 0
    ids = mem.words(job[words.IDS] + r.WORD * k * first, choices)
    slot_of = mem.words(job[words.SLOT_OF], job[words.EXPERTS] + 1)
    for i in range(thread, choices, r.THREADS):
        slot_of_choice[i] = slot_of[ids[i]] if ids[i] >= 0 else -1
    cuda.syncthreads()
    for i in range(thread, choices, r.THREADS):
        slot = slot_of_choice[i]
        if slot >= 0:
            place = 0
            for other in range(i % k, i, k):
                place += slot_of_choice[other] == slot
            if place >= left[i % k * slots + slot]:
                ids[i] = -2 - ids[i]

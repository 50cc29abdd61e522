"""Routing on a GPU: scores, the best k experts and their weights, rows by expert, and the packed order.

Two launches. First `route`: a block takes 64 tokens, computes their scores in float32 (each score is one chain of fused
multiply-adds in k order, as on the CPU), chooses experts with the CPU's own function, and counts the choices by slot.
`check` replaces it for a call with ids and weights from outside. Then `place`: each block adds up the counts of the
blocks before it and assigns packed rows to its tokens' choices. This is a stable counting sort by slot without atomics,
so the order does not depend on the grid.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from ...primitives import memory as mem
from ..common.scores import choose
from .compiler import cuda
from .epilogue import NONE
from .gemm import TILES, tile_product
from .pack import COLUMNS, outputs, pack, pack_bias
from .tile import CHUNK, Tile, tile_memory

# ---- the words of a router job, in device memory
(
    X, X_STRIDE, TOKENS, HIDDEN,  # rows of the kernel's kind, `X_STRIDE` bytes apart, all on 16 bytes
    ROUTER, EXPERTS, TOP_K,  # address of `pack_router`
    SCORE, RENORMALIZE, SCALE,  # arguments of `scores.choose`: its rule; the scale as the bits of a float32
    IDS, WEIGHTS,  # [tokens, k] int64, float32: `route` writes them, `check` reads them; -1 is a choice not taken
    SLOT_OF, SLOTS,  # [experts] int64: the place of an expert in the packed order; -1: it has none, nor rows (identity)
    OFFSET, TOKEN, POSITION,  # [slots + 1], [tokens * k], [tokens, k] int64: see engine/packing.py
    LOGITS,  # where `route` keeps the scores, [tokens, experts] float32, or 0
    SELECT_BIAS,  # [experts] float32, added to the weights when experts are compared, or 0
    STATUS,  # a word: OK at first, then the largest status of any token; unless OK, `place` assigns no rows
    SCRATCH,  # `scratch_bytes` bytes
    JOB_WORDS,
) = range(22)  # fmt: skip

OK, NOT_FINITE, BAD_IDS = 0, 2, 3  # in STATUS: the engine's codes, which this room may not import; a test compares them
KINDS = ("f32", "bf16", "f16")  # of tokens
TILE = TILES["f32"][1]
BLOCK, THREADS = TILE.m, TILE.threads
FLOAT, WORD = 4, 8  # bytes


def _tile(kind: str) -> Tile:
    return TILE if kind == "f32" else replace(TILE, rows=kind)


def blocks(tokens: int) -> int:
    """Blocks of each launch; a block has THREADS threads."""
    return -(-tokens // BLOCK)


def padded(experts: int) -> int:
    """The number of scores stored per token, padding included."""
    return -(-experts // COLUMNS) * COLUMNS


def scratch_bytes(tokens: int, experts: int, slots: int) -> int:
    """Bytes of SCRATCH: row addresses, scores, and counts of every block."""
    return tokens * (2 * WORD + FLOAT * padded(experts)) + blocks(tokens) * slots * WORD


def route_shared(slots: int, kind: str = "f32") -> int:
    """Bytes of dynamic shared memory that `route(kind)` needs."""
    return max(_tile(kind).shared_bytes, WORD * slots)


def check_shared(slots: int) -> int:
    """Bytes of dynamic shared memory that `check` needs."""
    return WORD * slots


def place_shared(slots: int, k: int) -> int:
    """Bytes of dynamic shared memory that `place` needs."""
    return WORD * (2 * slots + THREADS) + WORD * BLOCK * k


def pack_router(router: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """router: [H, E], bias: [E] float32 -> the array that ROUTER points to: both packed; a bias of None is zero."""
    packed = pack(router, "f32")
    return np.concatenate([packed.ravel(), pack_bias(bias, outputs(packed))])


@cuda.jit(device=True)
def _report(job, status):
    """Raise STATUS to at least `status`."""
    cuda.atomic.max(mem.words(job[STATUS], 1), 0, status)


@cuda.jit(device=True)
def _clear(counts, slots):
    """Zero the block's counts in shared memory. All threads call it together."""
    for slot in range(cuda.threadIdx.x, slots, THREADS):
        counts[slot] = 0
    cuda.syncthreads()


@cuda.jit(device=True)
def _keep(job, counts):
    """Write the block's counts to SCRATCH, for `place`. All threads call it together."""
    cuda.syncthreads()
    slots = job[SLOTS]
    width = (job[EXPERTS] + COLUMNS - 1) // COLUMNS * COLUMNS
    total = job[SCRATCH] + job[TOKENS] * (2 * WORD + FLOAT * width) + WORD * slots * cuda.blockIdx.x
    for slot in range(cuda.threadIdx.x, slots, THREADS):
        mem.store(total + WORD * slot, counts[slot])


@cache
def route(kind: str) -> Any:
    """The kernel for tokens of a kind (f32, bf16 or f16): computes scores, ids, weights, and counts per block.

    Grid: blocks(tokens). 16-bit tokens are widened exactly, so results equal those of the same values in float32.
    """
    product, memory, tile_n = tile_product(_tile(kind)), tile_memory(_tile(kind)), TILE.n

    def kernel(job_address):
        job = mem.words(job_address, JOB_WORDS)
        shared = memory()
        thread, first = cuda.threadIdx.x, cuda.blockIdx.x * BLOCK
        tokens, k, slots, experts = job[TOKENS], job[TOP_K], job[SLOTS], job[EXPERTS]
        m = min(tokens - first, BLOCK)
        width = (experts + COLUMNS - 1) // COLUMNS * COLUMNS
        depth = FLOAT * job[HIDDEN]
        pitch = (depth + CHUNK - 1) // CHUNK * CHUNK
        a_rows = job[SCRATCH] + WORD * first
        c_rows = a_rows + WORD * tokens
        scores = job[SCRATCH] + 2 * WORD * tokens + FLOAT * width * first
        if thread < m:
            mem.store(a_rows + WORD * thread, job[X] + job[X_STRIDE] * (first + thread))
            mem.store(c_rows + WORD * thread, scores + FLOAT * width * thread)
        cuda.syncthreads()
        bias = job[ROUTER] + pitch * width
        for n0 in range(0, width, tile_n):
            product(shared, a_rows, c_rows, m, job[ROUTER], pitch, bias, width, depth, n0, NONE, 0)
        counts = cuda.shared.array(0, np.int64, CHUNK)
        _clear(counts, slots)
        if thread < m:
            token = first + thread
            row = mem.floats(scores + FLOAT * width * thread, experts)
            ids, weights = mem.words(job[IDS] + WORD * k * token, k), mem.floats(job[WEIGHTS] + FLOAT * k * token, k)
            if job[LOGITS] != 0:
                kept = mem.floats(job[LOGITS] + FLOAT * experts * token, experts)
                for e in range(experts):
                    kept[e] = row[e]
            for j in range(k):
                weights[j] = 0  # compiled code may read them speculatively
            scale, bias = mem.float_of_bits(job[SCALE]), job[SELECT_BIAS]
            if choose(row, experts, k, job[SCORE], job[RENORMALIZE], scale, bias, ids, weights):
                slot_of = mem.words(job[SLOT_OF], experts)
                for j in range(k):
                    if slot_of[ids[j]] >= 0:
                        cuda.atomic.add(counts, slot_of[ids[j]], 1)
            else:
                _report(job, NOT_FINITE)
        _keep(job, counts)

    kernel.__name__ = "route" if kind == "f32" else f"route_{kind}"
    return cuda.jit(kernel)


@cuda.jit
def check(job_address):
    """Replaces `route` for ids and weights from outside: sets STATUS and counts per block. Grid: blocks(tokens).

    Ids must be in -1..E-1, none but -1 twice in a token; weights of choices taken must be finite.
    """
    job = mem.words(job_address, JOB_WORDS)
    counts = cuda.shared.array(0, np.int64, CHUNK)
    first, k, experts = cuda.blockIdx.x * BLOCK, job[TOP_K], job[EXPERTS]
    choices = min(job[TOKENS] - first, BLOCK) * k
    ids, weights = (
        mem.words(job[IDS] + WORD * k * first, choices),
        mem.floats(job[WEIGHTS] + FLOAT * k * first, choices),
    )
    slot_of = mem.words(job[SLOT_OF], experts)
    _clear(counts, job[SLOTS])
    worst = OK
    for i in range(cuda.threadIdx.x, choices, THREADS):
        e = ids[i]
        good = -1 <= e < experts
        if good and e >= 0:
            for j in range(i - i % k, i):
                good = good and ids[j] != e
            if weights[i] - weights[i] != 0:
                worst = max(worst, NOT_FINITE)
            if slot_of[e] >= 0:
                cuda.atomic.add(counts, slot_of[e], 1)
        if not good:
            worst = BAD_IDS
    if worst != OK:
        _report(job, worst)
    _keep(job, counts)


@cuda.jit(device=True)
def _before(partial, thread):
    """Exclusive sums of `partial` [THREADS] over threads, in place; returns this thread's sum."""
    mine = partial[thread]
    step = 1
    while step < THREADS:
        cuda.syncthreads()
        other = partial[thread - step] if thread >= step else 0
        cuda.syncthreads()
        partial[thread] += other
        step *= 2
    return partial[thread] - mine


@cuda.jit
def place(job_address):
    """Compute OFFSET, TOKEN and POSITION from ids and counts. Grid: blocks(tokens), at least one."""
    job = mem.words(job_address, JOB_WORDS)
    shared = cuda.shared.array(0, np.int64, CHUNK)
    thread, block, first = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.x * BLOCK
    tokens, k, slots, experts = job[TOKENS], job[TOP_K], job[SLOTS], job[EXPERTS]
    width = (experts + COLUMNS - 1) // COLUMNS * COLUMNS
    before, base, partial = shared[:slots], shared[slots : 2 * slots], shared[2 * slots : 2 * slots + THREADS]
    slot_of_choice = shared[2 * slots + THREADS :]
    parts = (tokens + BLOCK - 1) // BLOCK  # without tokens: 0 parts, but one block
    counts = mem.words(job[SCRATCH] + tokens * (2 * WORD + FLOAT * width), parts * slots)
    good = mem.load(job[STATUS]) == OK
    for slot in range(thread, slots, THREADS):
        all_blocks, earlier = 0, 0
        if good:
            for b in range(parts):
                count = counts[b * slots + slot]
                all_blocks += count
                earlier += count if b < block else 0
        before[slot] = earlier
        base[slot] = all_blocks
    cuda.syncthreads()
    share = (slots + THREADS - 1) // THREADS
    start, end = min(thread * share, slots), min((thread + 1) * share, slots)
    own = 0
    for slot in range(start, end):
        own += base[slot]
    partial[thread] = own
    offset = _before(partial, thread)
    for slot in range(start, end):
        count = base[slot]
        base[slot] = offset + before[slot]
        if block == 0:
            mem.store(job[OFFSET] + WORD * slot, offset)
        offset += count
    if block == 0 and thread == THREADS - 1:
        mem.store(job[OFFSET] + WORD * slots, offset)
    choices = min(tokens - first, BLOCK) * k if good else 0
    ids = mem.words(job[IDS] + WORD * k * first, choices)
    slot_of = mem.words(job[SLOT_OF], experts)
    for i in range(thread, choices, THREADS):
        slot_of_choice[i] = slot_of[ids[i]] if ids[i] >= 0 else -1
    cuda.syncthreads()
    for i in range(thread, choices, THREADS):
        slot, row = slot_of_choice[i], -1
        if slot >= 0:
            row = base[slot]
            for j in range(i):
                row += slot_of_choice[j] == slot
            mem.store(job[TOKEN] + WORD * row, first + i // k)
        mem.store(job[POSITION] + WORD * (k * first + i), row)

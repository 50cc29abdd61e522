"""Routing on a GPU: scores, the best k experts and their weights, rows by expert, and the packed order.

Two launches. `route`: a block takes 64 tokens, multiplies them with the router in float32 (one chain of fused
multiply-adds in k order a score, as on the CPU), chooses, and counts what goes to each slot. `place`: every block adds
up the counts before its own and gives its tokens' choices their packed rows: a stable counting sort by slot, without
atomics, so that the order is the same whatever the grid. What is chosen is the CPU's own function.
"""

from __future__ import annotations

import numpy as np

from ... import memory as mem
from ..cpu.tokens import choose
from . import memory as memory
from . import ptx
from .compiler import cuda
from .gemm import NONE, TILES, tile_product
from .pack import COLUMNS, pack
from .tile import CHUNK, shared_address

# ---- the words of a job, in device memory
(
    X, X_STRIDE, TOKENS, HIDDEN,  # float32 rows, `X_STRIDE` bytes apart, all on 16 bytes
    ROUTER, EXPERTS, TOP_K,  # address of `pack_router`
    SCORE, RENORMALIZE, SCALE,  # as `tokens.choose` takes them; the scale as the bits of a float32
    IDS, WEIGHTS,  # [tokens, k] int64, float32: what `route` writes and `place` reads; -1 is a choice not taken
    SLOT_OF, SLOTS,  # [experts] int64: the place of an expert in the packed order
    OFFSET, TOKEN, POSITION,  # [slots + 1], [tokens * k], [tokens, k] int64: see engine/packing.py
    STATUS,  # a word: becomes 1 if a score is not finite; then `place` gives nothing a row
    SCRATCH,  # `scratch_bytes` bytes
    JOB_WORDS,
) = range(20)  # fmt: skip

TILE = TILES["f32"][1]
BLOCK, THREADS = TILE.m, TILE.threads
FLOAT, WORD = 4, 8  # bytes
_product, _TILE_N = tile_product(TILE), TILE.n


def blocks(tokens: int) -> int:
    """Blocks of either launch; each has THREADS threads."""
    return -(-tokens // BLOCK)


def padded(experts: int) -> int:
    """Scores a token has room for."""
    return -(-experts // COLUMNS) * COLUMNS


def scratch_bytes(tokens: int, experts: int, slots: int) -> int:
    """Row addresses, scores, and counts of every block."""
    return tokens * (2 * WORD + FLOAT * padded(experts)) + blocks(tokens) * slots * WORD


def route_shared(slots: int) -> int:
    """Bytes of dynamic shared memory that `route` needs."""
    return max(TILE.shared_bytes, WORD * slots)


def place_shared(slots: int, k: int) -> int:
    """Bytes of dynamic shared memory that `place` needs."""
    return WORD * (2 * slots + THREADS) + WORD * BLOCK * k


def pack_router(router: np.ndarray) -> np.ndarray:
    """router: [H, E] float32 -> what ROUTER points to: its packed panels, then zeros in the place of a bias."""
    packed = pack(router, "f32")
    return np.concatenate([packed.ravel(), np.zeros(len(packed), np.float32)])


@cuda.jit
def route(job_address):
    """Scores, ids, weights, and counts by block; grid: blocks(tokens)."""
    job = mem.words(job_address, JOB_WORDS)
    shared = shared_address(cuda.shared.array(0, np.int64, CHUNK))
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
    for n0 in range(0, width, _TILE_N):
        _product(shared, a_rows, c_rows, m, job[ROUTER], pitch, job[ROUTER] + pitch * width, width, depth, n0, NONE, 0)
    counts = cuda.shared.array(0, np.int64, CHUNK)
    for slot in range(thread, slots, THREADS):
        counts[slot] = 0
    cuda.syncthreads()
    if thread < m:
        token = first + thread
        row = mem.floats(scores + FLOAT * width * thread, experts)
        ids, weights = mem.words(job[IDS] + WORD * k * token, k), mem.floats(job[WEIGHTS] + FLOAT * k * token, k)
        for j in range(k):
            weights[j] = 0  # compiled code reads them before it knows that it need not
        if choose(row, experts, k, job[SCORE], job[RENORMALIZE], mem.float_of_bits(job[SCALE]), ids, weights):
            slot_of = mem.words(job[SLOT_OF], experts)
            for j in range(k):
                cuda.atomic.add(counts, slot_of[ids[j]], 1)
        else:
            ptx.exchange_gpu(job[STATUS], 1)
    cuda.syncthreads()
    total = job[SCRATCH] + tokens * (2 * WORD + FLOAT * width) + WORD * slots * cuda.blockIdx.x
    for slot in range(thread, slots, THREADS):
        mem.store(total + WORD * slot, counts[slot])


@cuda.jit(device=True)
def _before(partial, thread):
    """Exclusive sums of `partial` [THREADS] over threads, in place; gives this thread's."""
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
    """OFFSET, TOKEN and POSITION from ids and counts; grid: blocks(tokens)."""
    job = mem.words(job_address, JOB_WORDS)
    room = cuda.shared.array(0, np.int64, CHUNK)
    thread, block, first = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.x * BLOCK
    tokens, k, slots, experts = job[TOKENS], job[TOP_K], job[SLOTS], job[EXPERTS]
    width = (experts + COLUMNS - 1) // COLUMNS * COLUMNS
    before, base, partial = room[:slots], room[slots : 2 * slots], room[2 * slots : 2 * slots + THREADS]
    slot_of_choice = room[2 * slots + THREADS :]
    counts = mem.words(job[SCRATCH] + tokens * (2 * WORD + FLOAT * width), cuda.gridDim.x * slots)
    good = mem.load(job[STATUS]) == 0
    for slot in range(thread, slots, THREADS):
        all_blocks, earlier = 0, 0
        if good:
            for b in range(cuda.gridDim.x):
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

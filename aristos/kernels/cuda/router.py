"""Routing on a GPU: scores, the best k experts and their weights, rows by expert, and the packed order.

`route` runs first. A block takes 64 tokens, computes their scores in float32 (each score is one chain of fused
multiply-adds in k order, as on the CPU), chooses experts with the CPU's own function, and counts the choices by slot.
If the caller brought ids and weights, the block checks these instead. The block also adds the choice of the shared
expert, and multiplies tokens by weights if weights are applied to the input. Then, if there is a capacity, `drop`
(capacity.py) marks the choices beyond it. `place` runs last. Each of its blocks adds up the counts of the blocks before
it, and assigns packed rows to its tokens' choices. This is a stable counting sort by slot without atomics, so the order
does not depend on the grid.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from ...primitives import memory as mem
from ...row_types import BY_KIND, ROW_TYPES
from ..common.activations import logistic
from ..common.scores import choose
from . import router_job as words
from .combine import combine_tokens
from .compiler import cuda
from .epilogue import NONE
from .gemm import TILES, tile_product
from .pack import COLUMNS, outputs, pack, pack_bias
from .tile import BYTES, CHUNK, Tile, tile_memory

# values of STATUS: the engine's codes, which kernels may not import (a test compares them)
OK, NOT_FINITE, BAD_IDS = 0, 2, 3
KINDS = tuple(row.kind for row in BY_KIND.values() if row.name == row.stored)  # types of tokens
TILE = TILES["f32"][1]
BLOCK, THREADS = TILE.m, TILE.threads
FLOAT, WORD = 4, 8  # bytes of a float32 and of a word
GATE = 16  # bytes of SCRATCH for each token's product with SHARED_SIGMOID: products store whole 16 bytes
ONE = np.float32(1)


def kind_of_rows(kind: str) -> str:
    """The kind of tokens, one of KINDS, in a layer of this kind."""
    return ROW_TYPES[BY_KIND[kind].stored].kind


def _tile(kind: str) -> Tile:
    return TILE if kind == "f32" else replace(TILE, rows=kind)


def blocks(tokens: int) -> int:
    """How many blocks of THREADS threads a launch has; `place` has at least one."""
    return -(-tokens // BLOCK)


def padded(experts: int) -> int:
    """The number of scores stored per token, padding included."""
    return -(-experts // COLUMNS) * COLUMNS


def scratch_bytes(tokens: int, experts: int, slots: int, limited: int = 0) -> int:
    """Bytes of SCRATCH: row addresses, scores, counts of blocks. limited: TOP_K if there is a capacity, else 0."""
    return tokens * (2 * WORD + FLOAT * padded(experts) + GATE) + blocks(tokens) * slots * WORD * (1 + limited)


def route_shared(slots: int, kind: str = "f32", limited: int = 0) -> int:
    """Bytes of dynamic shared memory that `route(kind)` needs. limited: see `scratch_bytes`."""
    return max(_tile(kind).shared_bytes, WORD * slots * max(1, limited))


def place_shared(slots: int, k: int) -> int:
    """Bytes of dynamic shared memory that `place` needs."""
    return WORD * (2 * slots + THREADS) + WORD * BLOCK * k


def pack_router(router: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The array that ROUTER points to, with router [H, E] and bias [E] float32, packed. bias: None for zeros."""
    packed = pack(router, "f32")
    return np.concatenate([packed.ravel(), pack_bias(bias, outputs(packed))])


@cuda.jit(device=True)
def _report(job, status):
    """Raise STATUS to at least `status`."""
    cuda.atomic.max(mem.words(job[words.STATUS], 1), 0, status)


@cuda.jit(device=True)
def unbegun(job):
    """Whether the kernels must touch nothing, because the job belongs to an earlier call, whose arrays may be gone."""
    return job[words.UNBEGUN] != 0 and mem.load(job[words.UNBEGUN]) != 0


@cuda.jit(device=True)
def width_of(job):
    """How many scores are stored for each token, padding included."""
    return (job[words.EXPERTS] + COLUMNS - 1) // COLUMNS * COLUMNS


@cuda.jit(device=True)
def _scores(job, token):
    """Address of a token's scores."""
    return job[words.SCRATCH] + 2 * WORD * job[words.TOKENS] + FLOAT * width_of(job) * token


@cuda.jit(device=True)
def _gate(job, token):
    """Address of a token's product with SHARED_SIGMOID."""
    return _scores(job, job[words.TOKENS]) + GATE * token


@cuda.jit(device=True)
def counts_of(job):
    """Address of the counts of every block, [blocks, slots]. Counts by choice, [blocks, TOP_K, slots], follow them."""
    return _gate(job, job[words.TOKENS])


@cuda.jit(device=True)
def counts_by_choice(job):
    """Address of the counts by choice, which `route` writes if there is a capacity."""
    return counts_of(job) + WORD * job[words.SLOTS] * ((job[words.TOKENS] + BLOCK - 1) // BLOCK)


@cuda.jit(device=True)
def _checked(job, token, ids, weights):
    """Read a token's routing as the caller brought it, into ids [CHOICES] and weights [CHOICES]. Returns its status.

    Ids must be in -1..E-1, and only -1 may occur twice. The weight of a choice must be finite, unless its id is -1.
    """
    k, experts, status = job[words.CHOICES], job[words.EXPERTS], OK
    given_ids = mem.words(job[words.GIVEN_IDS] + WORD * k * token, k)
    given_weights = mem.floats(job[words.GIVEN_WEIGHTS] + FLOAT * k * token, k)
    apart = job[words.GIVEN_IDS] != job[words.IDS]
    for j in range(k):
        e = given_ids[j]
        good = -1 <= e < experts
        if good and e >= 0:
            for i in range(j):
                good = good and given_ids[i] != e
            if given_weights[j] - given_weights[j] != 0:
                status = max(status, NOT_FINITE)
        if not good:
            status = BAD_IDS
        if apart:
            ids[j] = e
            weights[j] = given_weights[j]
    return status


@cuda.jit(device=True)
def _chosen(job, token, row, ids, weights):
    """Choose a token's experts by its scores `row` [EXPERTS]: ids [CHOICES], weights [CHOICES]. Returns its status."""
    k, experts = job[words.CHOICES], job[words.EXPERTS]
    if job[words.LOGITS] != 0:
        kept = mem.floats(job[words.LOGITS] + FLOAT * experts * token, experts)
        for e in range(experts):
            kept[e] = row[e]
    for j in range(k):
        weights[j] = 0  # compiled code may read weights speculatively
    scale, bias = mem.float_of_bits(job[words.SCALE]), job[words.SELECT_BIAS]
    found = choose(row, experts, k, job[words.SCORE], job[words.RENORMALIZE], scale, bias, ids, weights)
    return OK if found else NOT_FINITE


@cuda.jit(device=True)
def _shared_weight(job, token):
    """(weight of the shared expert for a token, its status)."""
    if job[words.SHARED_SIGMOID] == 0:
        return ONE, OK
    gate = mem.floats(_gate(job, token), 1)[0]
    return logistic(gate), OK if gate - gate == 0 else NOT_FINITE


@cache
def route(kind: str) -> Any:
    """The kernel for tokens of a kind (f32, bf16 or f16): computes scores, ids, weights, and counts per block.

    Grid: blocks(tokens). 16-bit tokens are widened exactly, so results equal those of the same values in float32. If
    the caller brought ids and weights, the kernel checks these.
    """
    product, memory, tile_n, weigh = tile_product(_tile(kind)), tile_memory(_tile(kind)), TILE.n, combine_tokens(kind)
    size = BYTES[kind]

    def kernel(job_address):
        job = mem.words(job_address, words.JOB_WORDS)
        if unbegun(job):
            return
        shared = memory()
        # First come the router's columns, then SHARED_SIGMOID's column as one more tile. Each tile reads the job again,
        # because registers cannot hold its words during a product.
        n0 = width_of(job) if job[words.GIVEN_IDS] != 0 else 0
        while n0 < width_of(job) + (tile_n if job[words.SHARED_SIGMOID] != 0 else 0):
            thread, first = cuda.threadIdx.x, cuda.blockIdx.x * BLOCK
            m, width, depth = min(job[words.TOKENS] - first, BLOCK), width_of(job), FLOAT * job[words.HIDDEN]
            pitch = (depth + CHUNK - 1) // CHUNK * CHUNK
            a_rows = job[words.SCRATCH] + WORD * first
            c_rows = a_rows + WORD * job[words.TOKENS]
            weight, columns, stored, at = job[words.ROUTER], width, width, n0
            if n0 == width:
                weight, columns, stored, at = job[words.SHARED_SIGMOID], COLUMNS, 1, 0
            if thread < m and (n0 == 0 or n0 == width):
                token = first + thread
                if n0 == 0:
                    row = job[words.X] + job[words.X_STRIDE] * token
                else:
                    row = job[words.INPUT] + job[words.INPUT_STRIDE] * token
                mem.store(a_rows + WORD * thread, row)
                mem.store(c_rows + WORD * thread, _scores(job, token) if n0 == 0 else _gate(job, token))
            cuda.syncthreads()
            product(shared, a_rows, c_rows, m, weight, pitch, weight + pitch * columns, stored, depth, at, NONE, 0)
            n0 += tile_n
        thread, first = cuda.threadIdx.x, cuda.blockIdx.x * BLOCK
        m, a_rows = min(job[words.TOKENS] - first, BLOCK), job[words.SCRATCH] + WORD * first
        counts = cuda.shared.array(0, np.int64, CHUNK)
        slots, limited = job[words.SLOTS], job[words.CAPACITY] > 0
        counted = slots * job[words.TOP_K] if limited else slots
        for i in range(thread, counted, THREADS):
            counts[i] = 0
        cuda.syncthreads()
        if thread < m:
            token, k, chosen = first + thread, job[words.TOP_K], job[words.CHOICES]
            ids = mem.words(job[words.IDS] + WORD * k * token, k)
            weights = mem.floats(job[words.WEIGHTS] + FLOAT * k * token, k)
            if job[words.GIVEN_IDS] != 0:
                status = _checked(job, token, ids, weights)
            else:
                row = mem.floats(_scores(job, token), job[words.EXPERTS])
                status = _chosen(job, token, row, ids, weights)
            if k > chosen:
                ids[chosen] = job[words.EXPERTS]
                weights[chosen], fine = _shared_weight(job, token)
                status = max(status, fine)
            if status == OK:
                slot_of = mem.words(job[words.SLOT_OF], job[words.EXPERTS] + 1)
                for j in range(k):
                    if ids[j] >= 0 and slot_of[ids[j]] >= 0:
                        cuda.atomic.add(counts, slot_of[ids[j]] + (slots * j if limited else 0), 1)
            else:
                _report(job, status)
            if job[words.WEIGHTED] != 0:
                mem.floats(job[words.KEPT_WEIGHTS] + FLOAT * token, 1)[0] = weights[0]
                weights[0] = ONE
                mem.store(a_rows + WORD * thread, job[words.INPUT] + job[words.INPUT_STRIDE] * token)
        cuda.syncthreads()
        total = (counts_by_choice(job) if limited else counts_of(job)) + WORD * counted * cuda.blockIdx.x
        for i in range(thread, counted, THREADS):
            mem.store(total + WORD * i, counts[i])
        if job[words.WEIGHTED] != 0:
            row_bytes = size * job[words.HIDDEN]
            y, factors = job[words.WEIGHTED] + row_bytes * first, job[words.KEPT_WEIGHTS] + FLOAT * first
            weigh(y, m, 1, factors, a_rows, row_bytes)

    kernel.__name__ = "route" if kind == "f32" else f"route_{kind}"
    return cuda.jit(kernel)


@cuda.jit(device=True)
def _before(partial, thread):
    """Replace `partial` [THREADS] by inclusive sums over threads. Returns the sum of the threads before this one."""
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
    job = mem.words(job_address, words.JOB_WORDS)
    if unbegun(job):
        return
    shared = cuda.shared.array(0, np.int64, CHUNK)
    thread, block, first = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.x * BLOCK
    tokens, k, slots = job[words.TOKENS], job[words.TOP_K], job[words.SLOTS]
    before, base, partial = shared[:slots], shared[slots : 2 * slots], shared[2 * slots : 2 * slots + THREADS]
    slot_of_choice = shared[2 * slots + THREADS :]
    parts = (tokens + BLOCK - 1) // BLOCK  # without tokens: 0 parts, but one block
    counts = mem.words(counts_of(job), parts * slots)
    good = mem.load(job[words.STATUS]) == OK
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
            mem.store(job[words.OFFSET] + WORD * slot, offset)
        offset += count
    if block == 0 and thread == THREADS - 1:
        mem.store(job[words.OFFSET] + WORD * slots, offset)
    choices = min(tokens - first, BLOCK) * k if good else 0
    ids = mem.words(job[words.IDS] + WORD * k * first, choices)
    slot_of = mem.words(job[words.SLOT_OF], job[words.EXPERTS] + 1)
    for i in range(thread, choices, THREADS):
        slot_of_choice[i] = slot_of[ids[i]] if ids[i] >= 0 else -1
    cuda.syncthreads()
    for i in range(thread, choices, THREADS):
        slot, row = slot_of_choice[i], -1
        if slot >= 0:
            row = base[slot]
            for j in range(i):
                row += slot_of_choice[j] == slot
            mem.store(job[words.TOKEN] + WORD * row, first + i // k)
        mem.store(job[words.POSITION] + WORD * (k * first + i), row)

"""The CUDA substrate: a worker is a block of the persistent kernel, which runs steps until the call ends.

Thread 0 decides and publishes, all threads execute. What a step copies and counts is the engine's own code, compiled
for CUDA; the arithmetic is that of `kernels/cuda`. Importing this module needs numba-cuda and compiles nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .. import memory as mem
from ..engine import blocks, combine, dispatch, experts, packing, returns, steps
from ..engine import fields as f
from ..kernels.cuda import memory as memory
from ..kernels.cuda.combine import combine_tokens
from ..kernels.cuda.compiler import cuda
from ..kernels.cuda.gemm import NONE, tile_product
from ..kernels.cuda.pack import COLUMNS, INTERLEAVE
from ..kernels.cuda.tile import BYTES, CHUNK, Tile, shared_address

JOB_MOST, STATE_MOST = 1 << 20, 1 << 40  # words: bounds that nothing reaches
WORD = 8


def padded(n: int, step: int) -> int:
    """n rounded up to a multiple of step."""
    return -(-n // step) * step


def hidden_pitch(ffn: int, kind: str) -> int:
    """Bytes between rows of hidden activations."""
    return padded(BYTES[kind] * ffn, CHUNK)


def scratch_bytes(tile: Tile, ffn: int) -> int:
    """Bytes of scratch of a worker: row addresses and hidden activations of a run."""
    return padded(WORD * tile.m, CHUNK) + tile.m * hidden_pitch(ffn, tile.kind)


@cuda.jit
def begin(job_address, state_address):
    """Open a call whose router kernels have run: one thread, between them and the layer. Counts the epoch."""
    job, st = mem.words(job_address, JOB_MOST), mem.words(state_address, STATE_MOST)
    job[f.EPOCH] += 1
    packing.begin(job, st)
    st[f.ROUTE_NEXT] = job[f.TOKENS]
    st[f.ROUTE_DONE] = job[f.TOKENS]


@cuda.jit(device=True)
def wait_for_work(job, st, worker):
    """Decide until there is something to do."""
    while True:
        kind = steps.decide(job, st, worker)
        if kind != f.IDLE:
            return kind
        mem.nap()


def _expert(tile: Tile) -> Any:
    """f(shared, job, st, worker): run the expert on the claimed rows: both products, all columns."""
    product, size = tile_product(tile), BYTES[tile.kind]
    table_bytes, tile_n = padded(WORD * tile.m, CHUNK), tile.n

    @cuda.jit(device=True)
    def run(shared, job, st, worker):
        c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
        lists, m, expert = job[f.STATE] + WORD * (c + f.C_LISTS), st[c + f.C_ROWS], st[c + f.C_A]
        hidden, ffn = job[f.HIDDEN], job[f.FFN]
        pitch = (size * ffn + CHUNK - 1) // CHUNK * CHUNK
        h = job[f.SCRATCH] + job[f.SCRATCH_STEP] * worker
        experts.list_rows(job, st, c)
        for i in range(mem.thread(), m, mem.threads()):
            mem.store(h + WORD * i, h + table_bytes + pitch * i)
        mem.together()
        gated = 1 if job[f.GATE] != 0 else 0
        for stage in range(2):
            if stage == 0:
                a, out, weight, bias = lists, h, job[f.UP], job[f.UP_BIAS]
                weight, bias = weight + job[f.UP_STEP] * expert, bias + job[f.UP_BIAS_STEP] * expert
                columns = 2 * ((ffn + INTERLEAVE - 1) // INTERLEAVE * INTERLEAVE) if gated != 0 else ffn
                width, depth, code, doubled = ffn, size * hidden, job[f.ACTIVATION], gated
            else:
                a, out, weight, bias = h, lists + WORD * job[f.BATCH], job[f.DOWN], job[f.DOWN_BIAS]
                weight, bias = weight + job[f.DOWN_STEP] * expert, bias + job[f.DOWN_BIAS_STEP] * expert
                columns, width, depth, code, doubled = hidden, hidden, size * ffn, NONE, 0
            step = (depth + CHUNK - 1) // CHUNK * CHUNK
            for n0 in range(0, (columns + COLUMNS - 1) // COLUMNS * COLUMNS, tile_n):
                product(shared, a, out, m, weight, step, bias, width, depth, n0, code, doubled)

    return run


@cache
def layer(tile: Tile) -> Any:
    """The persistent kernel for a tile: layer(job, state), addresses of the arrays of `engine.fields`.

    Grid: as many blocks of tile.threads threads as the job has workers, all of them resident at once; dynamic shared
    memory: `shared_bytes(tile)`.
    """
    expert, combine_rows = _expert(tile), combine_tokens(tile.kind)

    def kernel(job_address, state_address):
        job, st = mem.words(job_address, JOB_MOST), mem.words(state_address, STATE_MOST)
        shared = shared_address(cuda.shared.array(0, np.int64, CHUNK))
        told = cuda.shared.array(1, np.int64)
        worker = np.int64(cuda.blockIdx.x)
        while True:
            if mem.thread() == 0:
                told[0] = wait_for_work(job, st, worker)
            mem.together()
            kind = told[0]
            returns.settle(job, st, worker)
            if kind == f.EXPERT:
                expert(shared, job, st, worker)
            elif kind == f.DISPATCH:
                dispatch.execute(job, st, worker)
            elif kind == f.BLOCK:
                blocks.execute(job, st, worker)
            elif kind == f.COMBINE:
                combine.list_rows(job, st, worker)
                mem.together()
                c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
                k, first = job[f.TOP_K], st[c + f.C_A]
                combine_rows(
                    job[f.Y] + job[f.ROW_BYTES] * first, st[c + f.C_ROWS], k, job[f.WEIGHTS] + 4 * k * first,
                    job[f.STATE] + WORD * (c + f.C_LISTS), job[f.ROW_BYTES],
                )  # fmt: skip
            elif kind == f.PACK:
                packing.execute(job, st)
            elif kind != f.SETTLE:
                break
            mem.together()
            if mem.thread() == 0 and kind != f.SETTLE:
                steps.publish(job, st, worker, kind)
            mem.together()
            returns.settle(job, st, worker)
        if mem.thread() == 0 and worker == 0:
            steps.heartbeat(job, st, -1)

    kernel.__name__ = f"layer_{tile.name}"
    return cuda.jit(kernel, launch_bounds=(tile.threads, tile.blocks))

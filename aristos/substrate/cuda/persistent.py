"""The persistent kernel. Each of its blocks is a worker, which runs steps until the call ends.

Thread 0 of a block decides and publishes; all threads execute. Steps are the engine's own code, compiled for CUDA; the
arithmetic is in `kernels/cuda`. Importing this module needs numba-cuda and compiles nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from inspect import signature
from typing import Any

import numpy as np

from ...engine import (
    arrivals,
    bundles,
    codes,
    column_runs,
    combine,
    dispatch,
    experts,
    packing,
    returns,
    steps,
    timeout_check,
    words,
)
from ...engine.lock import OUTSIDE, acquire, lock, unlock
from ...kernels.cuda import router_job
from ...kernels.cuda.catalogue import Kernel
from ...kernels.cuda.combine import combine_tokens
from ...kernels.cuda.compiler import cuda, types
from ...kernels.cuda.epilogue import NONE
from ...kernels.cuda.gemm import tile_product
from ...kernels.cuda.gemm import tiles as tiles_of
from ...kernels.cuda.pack import COLUMNS, INTERLEAVE
from ...kernels.cuda.target import Target
from ...kernels.cuda.tile import BYTES, CHUNK, Tile, tile_memory
from ...primitives import memory as mem
from ..heartbeat import publish_progress

JOB_MOST, STATE_MOST = 1 << 20, 1 << 40  # sizes of array types in words, larger than any job or state
WORD = 8
POLLS = 64  # idle polls between two clock reads
GAVE_UP = -1  # value of WAIT_SINCE after this rank has given up a wait
SHARES_A_WORKER = 2  # shares of each phase of a run for each worker, if there are enough tiles
MOST_RUNS = 16


def padded(n: int, step: int) -> int:
    """n rounded up to a multiple of step."""
    return -(-n // step) * step


def hidden_pitch(ffn: int, kind: str) -> int:
    """Bytes between rows of hidden activations."""
    return padded(BYTES[kind] * ffn, CHUNK)


def tiles(columns: int, tile: Tile) -> int:
    """How many tiles a product with `columns` columns has."""
    return padded(columns, COLUMNS) // tile.n


def column_split_runs(tile: Tile, hidden: int, ffn: int, shared_ffn: int, gated: bool, grid: int) -> dict[str, int]:
    """The words of a job that say how `grid` workers share runs. shared_ffn: width of the shared expert, 0: none.

    A share is one tile, or several if each worker then still gets SHARES_A_WORKER shares of a phase. There are enough
    runs that all workers have a share of the smaller phase, plus one run that starts while others end. The rank needs
    `run_scratch` bytes.
    """
    found = {"all_split": 1, "split_rows": tile.m, "scratch_step": 0}
    for word, columns in (
        ("up_shares", padded(ffn, INTERLEAVE) * 2 if gated else ffn),
        ("shared_shares", padded(shared_ffn, INTERLEAVE) * 2 if gated else shared_ffn),
        ("down_shares", hidden),
    ):
        count = tiles(columns, tile)
        each = max(1, -(-count // (SHARES_A_WORKER * grid)))
        found[word] = -(-count // each)
    least = min(found[word] for word in ("up_shares", "shared_shares", "down_shares") if found[word])
    found["runs"] = min(MOST_RUNS, 1 + -(-grid // least))
    found["run_pitch"] = hidden_pitch(max(ffn, shared_ffn), tile.kind)
    found["run_step"] = tile.m * found["run_pitch"]
    return found


def run_scratch(runs: dict[str, int], tile: Tile, row_bytes: int) -> int:
    """Bytes of scratch memory for `column_split_runs`: hidden activations, then copies of rows from other nodes."""
    return runs["runs"] * (runs["run_step"] + tile.m * row_bytes)


@cuda.jit(device=True)
def keep_refusal(job, st):
    """Keep the first refusal for the host, because the host may read the state only after several calls."""
    for p in range(job[words.WORLD]):
        status = st[words.STATUS] if p == job[words.RANK] else st[words.peer_status(job, p)]
        if st[words.KEPT_STATUS] == codes.OK and status != codes.OK:
            st[words.KEPT_STATUS] = status
            st[words.KEPT_RANK] = p


@cuda.jit(device=True)
def enter(job, st):
    """Wait until no call is in flight, then begin one. Sets UNBEGUN on an abort, or if the call in flight is stuck.

    The call in flight gives up its own waits after at most TIMEOUT_NS + ABSENT_NS without progress. After that it
    counts as stuck. The stuck call may hold the lock, so the peers are notified without taking the lock. Later calls do
    not wait again.
    """
    polls, since, seen, cause = 0, mem.clock(), -1, 0
    while not mem.compare_exchange(job[words.STATE] + WORD * words.IN_FLIGHT, 0, 1):
        mem.nap()
        polls += 1
        if polls % POLLS != 0:
            continue
        now = mem.clock()
        if lock(job, OUTSIDE):
            progress = st[words.PROGRESS]
            unlock(job)
            if progress != seen:
                seen, since = progress, now
        cause = mem.load_acquire(job[words.ABORT])
        if cause == 0 and now - since > job[words.TIMEOUT_NS] + job[words.ABSENT_NS]:
            cause = codes.CAUSE_TIMEOUT
        if cause != 0:
            st[words.UNBEGUN] = 1
            st[words.ORIGIN] = job[words.RANK]
            steps.poison(job, st, job[words.RANK], cause)
            return


@cuda.jit
def begin(
    job_address, state_address, routing_address, x, x_stride, tokens, y, ids, weights, status, router_x,
    router_x_stride, given_ids, given_weights, most,
):  # fmt: skip
    """Open a call, before its router kernels. Runs as one block. Its arguments change from call to call.

    x, y, router_x: addresses of the tokens, the outputs, and the rows that the router reads. ids, weights: what the
    engine reads. given_ids, given_weights: the caller's routing, or 0. status: OK, or why this rank refuses its input.
    most: the capacity, or 0. The kernel counts calls, so that a call captured in a graph can be replayed.

    The host orders calls by events. If it cannot, as between branches of a graph, this kernel waits for the call in
    flight, which already has all SMs that it needs. If the wait fails, this rank's engine fails.
    """
    job, st = mem.words(job_address, JOB_MOST), mem.words(state_address, STATE_MOST)
    if mem.thread() == 0 and st[words.UNBEGUN] == 0:
        enter(job, st)
    mem.block_barrier()
    if st[words.UNBEGUN] != 0:
        return
    if mem.thread() == 0:
        st[words.LEFT] = 0
        st[words.BEGAN] = mem.clock()
        keep_refusal(job, st)
        st[words.CALLS] += 1
        st[words.WAIT_SINCE] = 0
        words.fill_start(job, epoch=st[words.CALLS])
        routing = mem.words(routing_address, router_job.JOB_WORDS)
        weighted = routing[router_job.WEIGHTED]
        words.fill_call(
            job,
            tokens=tokens,
            status_in=status,
            x=weighted if weighted != 0 else x,
            x_stride=job[words.ROW_BYTES] if weighted != 0 else x_stride,
            input_=x,
            input_stride=x_stride,
            y=y,
            ids=ids,
            weights=weights,
        )
        router_job.fill_routing(
            routing,
            x=router_x,
            x_stride=router_x_stride,
            tokens=tokens,
            input_=x,
            input_stride=x_stride,
            ids=ids,
            weights=weights,
            given_ids=given_ids,
            given_weights=given_weights,
            capacity=most,
        )
    mem.block_barrier()
    packing.begin(job, st)
    mem.block_barrier()
    if mem.thread() == 0:
        st[words.ROUTE_NEXT] = tokens
        st[words.ROUTE_DONE] = tokens


@cuda.jit(device=True)
def give_up(job, st, origin, cause):
    """Notify this rank's workers and its peers that its engine has failed."""
    acquire(job, OUTSIDE)
    st[words.ORIGIN] = origin
    steps.poison(job, st, origin, cause)
    unlock(job)


@cuda.jit(device=True)
def fetch_run(job, st, worker):
    """Copy the rows of a listed run that lie in host memory to the GPU, and list the copies. A whole block does this.

    Every share of the run reads all its rows; with copies each row crosses the bus only once.
    """
    number = st[words.command_run(words.command(job, worker))]
    c = words.run_command(job, number)
    rows, size = st[words.command_rows(c)], job[words.ROW_BYTES]
    start, end = job[words.MIRROR], job[words.MIRROR] + job[words.MIRROR_BYTES]
    copies = job[words.SCRATCH] + job[words.RUNS] * job[words.RUN_STEP] + number * job[words.BATCH] * size
    mem.block_barrier()  # wait until the run is listed
    for i in range(mem.warp(), rows, mem.warps()):
        row = st[words.row_list(c) + i]
        if start <= row < end:
            mem.copy_row(copies + size * i, row, size)
    mem.block_barrier()  # wait until the list is read
    for i in range(mem.thread(), rows, mem.threads()):
        if start <= st[words.row_list(c) + i] < end:
            st[words.row_list(c) + i] = copies + size * i


@cuda.jit(device=True)
def read_abort(job, st):
    """End the call if the host asks for it. Worker 0 does this; it polls the word even while it has work."""
    cause = mem.load_acquire(job[words.ABORT])
    if cause != 0 and st[words.WAIT_SINCE] != GAVE_UP:
        st[words.WAIT_SINCE] = GAVE_UP
        give_up(job, st, job[words.RANK], cause)


@cache
def _waiting(counted: bool) -> Any:
    """A function f(job, st, worker) that returns the kind of the worker's next command.

    counted: whether that function counts idle polls.
    """

    @cuda.jit(device=True)
    def wait_for_work(job, st, worker):
        """Decide until there is a command. Worker 0 checks the timeout.

        The clock is read only when a wait begins and ends, so a worker that finds a command at once does not read it.
        """
        polls, since = 0, 0
        while True:
            kind = steps.decide(job, st, worker)
            if kind != codes.IDLE:
                if polls != 0:
                    st[words.counter(job, worker, words.N_IDLE)] += mem.clock() - since
                    if counted:
                        st[words.counter(job, worker, words.N_POLLS)] += polls
                return kind
            if polls == 0:
                since = mem.clock()
            mem.nap()
            polls += 1
            if worker == 0 and polls % POLLS == 0:
                now = mem.clock()
                publish_progress(job, st, now)
                read_abort(job, st)
                if timeout_check.overdue(job, st, now):
                    st[words.WAIT_SINCE] = GAVE_UP
                    give_up(job, st, job[words.RANK], codes.CAUSE_TIMEOUT)

    return wait_for_work


@cuda.jit(device=True)
def charge(job, st, worker, kind, since):
    """Add the time since `since` to the worker's counter of a kind of command. Returns the time now."""
    n, now = words.counter(job, worker, 0), mem.clock()
    if kind in (codes.SHARE, codes.LIST):
        n += words.N_EXPERT
    elif kind in (codes.DISPATCH, codes.BUNDLE):
        n += words.N_DISPATCH
    elif kind == codes.COMBINE:
        n += words.N_COMBINE
    else:
        n += words.N_PACK
    st[n] += now - since
    return now


@cuda.jit(device=True)
def leave(job, st, kind):
    """Notify the peers that the call has ended, or failed. Worker 0 does this."""
    if kind == codes.FINISH:
        steps.heartbeat(job, st, -1)
        return
    peer = arrivals.poisoned(job, st)
    if st[words.WAIT_SINCE] == GAVE_UP:  # `wait_for_work` has notified the peers
        return
    if st[words.BAD_WORD] != 0:
        give_up(job, st, job[words.RANK], codes.CAUSE_OUT_OF_BOUNDS)
    elif peer >= 0:
        _, origin, cause = arrivals.read_poison(job, st, peer)
        give_up(job, st, origin, cause)


def _share(tile: Tile) -> Any:
    """A function f(shared, job, st, worker) that computes the worker's share: some columns of a product, for all rows.

    For each tile it reads the job and the command again, because registers cannot hold their words during a product.
    """
    product, size, tile_n = tile_product(tile), BYTES[tile.kind], tile.n

    @cuda.jit(device=True)
    def bounds(job, st, worker):
        c = words.command(job, worker)
        if st[words.command_phase(c)] == codes.RUN_UP:
            expert = st[words.command_expert(c)]
            ffn, shares = column_runs.ffn_of(job, expert), column_runs.up_shares(job, expert)
            columns = 2 * ((ffn + INTERLEAVE - 1) // INTERLEAVE * INTERLEAVE) if job[words.GATED] != 0 else ffn
        else:
            columns, shares = job[words.HIDDEN], job[words.DOWN_SHARES]
        count = (columns + COLUMNS - 1) // COLUMNS * (COLUMNS // tile_n)
        each = (count + shares - 1) // shares
        share = st[words.command_share(c)]
        return each * share, min(each * (share + 1), count)

    @cuda.jit(device=True)
    def one(shared, job, st, worker, n0):
        c = words.command(job, worker)
        expert, rows = st[words.command_expert(c)], st[words.command_rows(c)]
        lists = job[words.STATE] + WORD * words.row_list(words.run_command(job, st[words.command_run(c)]))
        outputs, activations = lists + WORD * job[words.BATCH], lists + 2 * WORD * job[words.BATCH]
        hidden, ffn, of_shared = job[words.HIDDEN], column_runs.ffn_of(job, expert), expert + 1 == job[words.SHARED]
        if st[words.command_phase(c)] == codes.RUN_UP:
            a, out, gated = lists, activations, 1 if job[words.GATED] != 0 else 0
            weight, bias = job[words.SHARED_UP], job[words.SHARED_UP_BIAS]
            if not of_shared:
                weight = job[words.UP] + job[words.UP_STEP] * expert
                bias = job[words.UP_BIAS] + job[words.UP_BIAS_STEP] * expert
            width, depth, code = ffn, size * hidden, job[words.ACTIVATION]
        else:
            a, out, gated = activations, outputs, 0
            weight, bias = job[words.SHARED_DOWN], job[words.SHARED_DOWN_BIAS]
            if not of_shared:
                weight = job[words.DOWN] + job[words.DOWN_STEP] * expert
                bias = job[words.DOWN_BIAS] + job[words.DOWN_BIAS_STEP] * expert
            width, depth, code = hidden, size * ffn, NONE
        step = (depth + CHUNK - 1) // CHUNK * CHUNK
        product(shared, a, out, rows, weight, step, bias, width, depth, n0, code, gated)

    @cuda.jit(device=True)
    def run(shared, job, st, worker):
        first, end = bounds(job, st, worker)
        for at in range(first, end):
            one(shared, job, st, worker, tile_n * at)

    return run


@cache
def layer(tile: Tile, counted: bool = False) -> Any:
    """The persistent kernel for a tile: layer(job, state). Both arguments are addresses of arrays of `engine.words`.

    counted: whether the kernel keeps its workers' counters, which costs some reads of the clock for each command.

    The grid has as many blocks of tile.threads threads as the job has workers. All of them must be resident at once.
    Each block has `tile.shared_bytes` of dynamic shared memory.
    """
    share, memory, combine_rows = _share(tile), tile_memory(tile), combine_tokens(tile.kind)
    wait_for_work = _waiting(counted)

    def kernel(job_address, state_address):
        job, st = mem.words(job_address, JOB_MOST), mem.words(state_address, STATE_MOST)
        shared = memory()
        command = cuda.shared.array(1, np.int64)
        worker, since = np.int64(cuda.blockIdx.x), 0
        if mem.thread() == 0:  # one thread reads the word for all threads, because it may change
            command[0] = mem.load(state_address + WORD * words.UNBEGUN)
        mem.block_barrier()
        unbegun = command[0] != 0
        mem.block_barrier()
        if unbegun:  # the state belongs to another call
            return
        if counted and mem.thread() == 0 and worker == 0:  # router kernels ran since `begin`
            st[words.counter(job, worker, words.N_ROUTE)] += mem.clock() - st[words.BEGAN]
        while True:
            if mem.thread() == 0:
                command[0] = wait_for_work(job, st, worker)
                if counted:
                    since = mem.clock()
            mem.block_barrier()
            kind = command[0]
            returns.settle(job, st, worker)
            if kind == codes.SHARE:
                share(shared, job, st, worker)
            elif kind == codes.LIST:
                experts.list_run(job, st, worker)
                if job[words.MIRROR_BYTES] != 0:
                    fetch_run(job, st, worker)
            elif kind == codes.DISPATCH:
                dispatch.execute(job, st, worker)
            elif kind == codes.BUNDLE:
                bundles.execute(job, st, worker)
            elif kind == codes.COMBINE:
                combine.list_rows(job, st, worker)
                mem.block_barrier()
                c = words.command(job, worker)
                k, first = job[words.TOP_K], st[words.command_first(c)]
                combine_rows(
                    job[words.Y] + job[words.ROW_BYTES] * first,
                    st[words.command_rows(c)],
                    k,
                    job[words.WEIGHTS] + 4 * k * first,
                    job[words.STATE] + WORD * words.row_list(c),
                    job[words.ROW_BYTES],
                )
            elif kind == codes.PACK:
                packing.open_streams(job, st, job[words.TOKENS] if st[words.STATUS] == codes.OK else 0)
            elif kind != codes.SETTLE:
                break
            mem.block_barrier()
            if mem.thread() == 0 and kind != codes.SETTLE:
                if counted:
                    since = charge(job, st, worker, kind, since)
                steps.publish(job, st, worker, kind, counted)
                if counted:
                    st[words.counter(job, worker, words.N_PUBLISH)] += mem.clock() - since
                if worker == 0:
                    publish_progress(job, st, mem.clock())
                    read_abort(job, st)
            mem.block_barrier()
            returns.settle(job, st, worker)
        if mem.thread() == 0:
            if worker == 0:
                leave(job, st, kind)
            if mem.fetch_add(state_address + WORD * words.LEFT, 1) == job[words.WORKERS] - 1:
                mem.store_release(state_address + WORD * words.IN_FLIGHT, 0)

    kernel.__name__ = _name(tile, counted)
    return cuda.jit(kernel, launch_bounds=(tile.threads, tile.blocks))


@cuda.jit
def fail(job_address, state_address, origin, cause):
    """Notify peers that this rank's engine has failed. Runs as one thread, while no layer runs here."""
    give_up(mem.words(job_address, JOB_MOST), mem.words(state_address, STATE_MOST), origin, cause)


# rows of the tiles for which the persistent kernel is compiled; tiles of warpgroups are always compiled
ROWS = {"bf16": (16, 64, 128), "f16": (16, 64, 128), "tf32": (16, 64, 128), "f32": (16, 64)}
STATIC = 128  # bytes of the persistent kernel's own shared memory, which holds the command, aligned
# Blocks on an SM of sm_100 and later: with one more, the registers of steps and product together would spill
FEWER_FROM, FEWER_BLOCKS = 10, {("f32", 16): 3, ("f32", 64): 2}
OPENING = tuple(signature(begin.py_func).parameters)  # names of the arguments of the kernel `begin`
BEGIN = Kernel("begin", begin, (types.int64,) * len(OPENING), 128, 0, 1)
FAIL = Kernel("fail", fail, (types.int64,) * 4, 1, 0, 1)


def opening(**values: int) -> list[int]:
    """The arguments of the kernel `begin`, in order. Raises TypeError unless `values` names exactly these."""
    if values.keys() != set(OPENING):
        raise TypeError(f"the kernel begin takes {', '.join(OPENING)}, got {', '.join(values)}")
    return [values[name] for name in OPENING]


def _name(tile: Tile, counted: bool) -> str:
    return f"layer_{tile.name}" + "_counted" * counted


@cache
def layer_kernel(tile: Tile, counted: bool = False) -> Kernel:
    """The persistent kernel of a tile, as it is compiled and launched. counted: see `layer`."""
    types_of, shared = (types.int64,) * 2, tile.shared_bytes
    return Kernel(_name(tile, counted), layer(tile, counted), types_of, tile.threads, shared, tile.blocks)


def layer_tiles(kind: str, gpu: Target) -> list[Tile]:
    """The tiles of the persistent kernels of a kind on a GPU, by rows."""
    most = FEWER_BLOCKS if gpu.generation >= FEWER_FROM else {}
    found = [tile for tile in tiles_of(kind, gpu, STATIC) if tile.groups or tile.m in ROWS[kind]]
    return [replace(tile, blocks=min(tile.blocks, most.get((kind, tile.m), tile.blocks))) for tile in found]


def layer_tile(kind: str, rows: float, gpu: Target) -> Tile:
    """The smallest tile that holds `rows` rows of an expert. The choice does not change any bit of a result."""
    found = layer_tiles(kind, gpu)
    return next((tile for tile in found if tile.m >= rows), found[-1])


def kernels(arch: str) -> list[Kernel]:
    """All kernels of this file for an architecture."""
    return [BEGIN, FAIL, *(layer_kernel(tile) for kind in ROWS for tile in layer_tiles(kind, Target.named(arch)))]

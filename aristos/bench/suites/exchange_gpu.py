"""Suite `exchange` on GPUs: the time of dispatch and return within a layer's call, against plain copies and MPI.

GPUs have no separate exchange, so the suite times a call whose experts do almost nothing: F is 16, without gate and
bias. The rest is the layer's work on rows: checking the routing, packing, rows out, outputs back, weighted sums. The
call takes turns with moves of the same rows without that work:

    aristos graph   the call, captured in a CUDA graph
    copy            a cuMemcpyDtoDAsync to each peer and one back, without waits or signals; on one node only
    MPI, staged     from the GPU to pinned memory, MPI_Alltoallv, to the GPU, and back the same way; several ranks only
    NCCL            its all-to-all there and another back, captured in a CUDA graph; several ranks, a GPU each

The call is given its routing: uniform and zipf, or the routing of --routing. A rank's own rows do not move. With one
rank the layer reads its rows in place, and the copies move all rows within the GPU's memory. GB/s: bytes that the
busiest rank sends and receives back, over the time of the slowest rank. Outputs are checked against the float64 oracle,
and moved bytes against the bytes sent.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...results import Table
from ...transport.ipc import IpcWindow
from ..context import TURNS_TO_CHECK, Column, Context, Result, Sheet, counted, ratio_columns
from ..gpu.alltoall import Nccl, Staged, starts
from ..gpu.calls import Played
from ..gpu.clock import BenchGpu, ratio_values, ratios
from ..gpu.libraries import or_why
from ..measure import Statistics, gathered, padded
from ..registry import gpu_suite
from ..workload import Workload, routed_call
from ..world import World

GRAPH, COPY, STAGED, NCCL = "aristos graph", "copy", "MPI, staged", "NCCL"
FFN = 16  # the smallest width without padding for every kind of arithmetic
PATTERNS = ("uniform", "zipf")

COLUMNS = (
    Column("pattern", "routing"),
    Column("tokens", "tokens\n/rank", "d"),
    Column("mb", "MB\none way", ".2f"),
    Column("median_us", "aristos\nus", ".1f"),
    Column("p95_us", "p95\nus", ".1f"),
    Column("gbs", "GB/s", ".1f"),
    Column("copy_gbs", "copy\nGB/s", ".1f"),
    *ratio_columns("share", "of the\ncopy", ".0%"),
    Column("mpi_us", "MPI, staged\nus", ".1f"),
    Column("speedup", "against\nMPI", ".2f"),
    Column("nccl_us", "NCCL\nus", ".1f"),
    Column("nccl_speedup", "against\nNCCL", ".2f"),
    *TURNS_TO_CHECK,
)


class Moves:
    """Ways to move a call's rows out and back without a layer. counts: [W, W] rows from rank to rank. Collective."""

    def __init__(self, gpu: BenchGpu, counts: NDArray[np.int64], row_bytes: int, nccl: Nccl | None = None) -> None:
        self.gpu, self.world, me = gpu, gpu.world, gpu.world.rank
        self.nbytes = counts * row_bytes
        self.sends, self.gets = self.nbytes[me], self.nbytes[:, me]
        self.send_at, self.get_at = starts(self.sends), starts(self.gets)
        self.land_at = np.cumsum(self.nbytes, axis=0) - self.nbytes  # [from, to]: offset at the target
        self.home_at = np.cumsum(self.nbytes, axis=1) - self.nbytes  # [from, to]: offset at the source, on return
        self.source = gpu.array(self._bytes_of(me))
        most = max(8, int(self.nbytes.sum(axis=0).max()), int(self.nbytes.sum(axis=1).max()))
        self.window, self.base = self._window(2 * most)
        self.landed, self.back, self._half = self.base[me], self.base[me] + most, most
        self.calls: dict[str, Any] = {}
        if self.world.size == 1 or self.window is not None:
            self.calls[COPY] = self.copy
        self.through_hosts = Staged(gpu, most) if self.world.size > 1 else None
        if self.through_hosts is not None:
            self.calls[STAGED] = partial(self.there_and_back, self.through_hosts)
        if nccl is not None:
            self.calls[NCCL] = gpu.graph(partial(self.there_and_back, nccl))

    def _window(self, nbytes: int) -> tuple[Any, list[int]]:
        """(the window that peers open, or None; each rank's window's address on this GPU, 0 if it is out of reach)."""
        world = self.world
        if world.size > 1 and world.nodes.single:
            window = IpcWindow(world.comm, self.gpu.device, nbytes)
            return window, window.base
        at = self.gpu.allocate(nbytes)
        return None, [at if rank == world.rank else 0 for rank in range(world.size)]

    def _bytes_of(self, sender: int) -> NDArray[np.uint8]:
        """All bytes that `sender` sends, in rank order; every rank can compute them."""
        total = max(8, int(self.nbytes[sender].sum()))
        return np.random.default_rng([sender, total]).integers(0, 256, total, np.uint8)

    def copy(self) -> None:
        """Copy rows to each peer from the next rank on, then the peers' rows back."""
        gpu, me, size = self.gpu, self.world.rank, self.world.size
        peers = [(me + 1 + i) % size for i in range(size)]
        out = self.sends, 0, self.land_at[me], self.source.at, self.send_at
        back = self.gets, self._half, self.home_at[:, me], self.landed, self.get_at
        for nbytes, half, there, source, here in (out, back):
            for p in peers:
                if nbytes[p]:
                    target = self.base[p] + half + int(there[p])
                    gpu.device.copy(target, source + int(here[p]), int(nbytes[p]), gpu.stream)

    def there_and_back(self, exchange: Nccl | Staged) -> None:
        """Move the rows out by one all-to-all and back by another."""
        exchange(self.landed, self.source.at, self.sends, self.gets)
        exchange(self.back, self.landed, self.gets, self.sends)

    def right(self, name: str) -> bool:
        """Move the rows on cleared memory. Returns whether all bytes landed and came back, on every rank.

        Collective.
        """
        gpu, me = self.gpu, self.world.rank
        for at, nbytes in ((self.landed, self.gets.sum()), (self.back, self.sends.sum())):
            gpu.device.clear(at, max(8, int(nbytes)), gpu.stream)
        gpu.device.synchronize(gpu.stream)
        for _ in range(2):  # a copy back does not wait for the peers' rows, so the first one may copy cleared memory
            self.world.barrier()
            self.calls[name]()
            gpu.device.synchronize(gpu.stream)
        self.world.barrier()
        want = np.concatenate(
            [self._bytes_of(p)[self.home_at[p, me] :][: self.gets[p]] for p in range(self.world.size)]
        )
        fine = True
        for at, wanted in ((self.landed, want), (self.back, self._bytes_of(me)[: self.sends.sum()])):
            got = np.empty(len(wanted), np.uint8)
            if len(wanted):
                gpu.device.copy_out(got, at, gpu.stream)
            fine &= np.array_equal(got, wanted)
        return self.world.every(fine)

    def close(self) -> None:
        """Free the memory. Collective."""
        self.gpu.device.synchronize(self.gpu.stream)
        self.world.barrier()
        if self.window is not None:
            self.window.close()
        else:
            self.gpu.free(self.landed)
        self.gpu.free(self.source.at)
        if self.through_hosts is not None:
            self.through_hosts.close()


def moved(world: World, placement: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[W, W] numbers of rows from rank to rank; a rank's own rows count only if there is one rank. Collective."""
    mine = np.bincount(placement[ids[ids >= 0]], minlength=world.size).astype(np.int64)
    counts = np.array(world.allgather(mine))
    if world.size > 1:
        np.fill_diagonal(counts, 0)
    return counts


@gpu_suite(
    "exchange",
    "a call whose experts do next to nothing; against copies, and against MPI through the hosts",
    order=30,
    share=1.5,
)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    shape = ctx.shape()
    cfg = replace(shape.cfg, ffn=FFN, gated=False, bias=False, activation="relu", limit=None)
    work = Workload(ctx.world, cfg, ctx.options.seed)
    moe = work.layer("fused", None, backend="cuda")
    title = f"exchange on {gpu.device.name}: H {cfg.hidden} E {cfg.experts} k {cfg.top_k}"
    sheet = Sheet(f"{title}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    patterns = PATTERNS if ctx.options.routing is None else (ctx.options.routing,)
    plan = [(pattern, tokens) for pattern in patterns for tokens in shape.tokens]
    nccl, rival = or_why(Nccl, gpu) if ctx.world.size > 1 else (None, "")
    done = []
    for i, (pattern, tokens) in enumerate(plan):
        ctx.report(f"{pattern}, {tokens} tokens", i / len(plan))
        call = routed_call(ctx, work, tokens, pattern)
        played = Played(gpu, work, moe, call)
        counts = moved(ctx.world, work.placement, work.routed(call)[0])
        moves = Moves(gpu, counts, played.x.nbytes // max(1, tokens), nccl)
        calls = {GRAPH: played.graph(), **moves.calls}
        errors, right = [played.error(calls[GRAPH])], [moves.right(name) for name in moves.calls]
        found = gpu.in_turns(calls, ctx.left() / (len(plan) - i), ctx.options.warmup, ctx.options.iters)
        errors += [played.now(), played.error(calls[GRAPH])]
        right += [moves.right(name) for name in moves.calls]
        moves.close()
        times = {name: gathered(ctx.world, t) for name, t in found.items()}
        done.append((pattern, tokens, times))
        record = _record(moves, times) | {"pattern": pattern, "tokens": tokens}
        sheet.records.append(record | work.verdict(max(errors), all(right)))
    if nccl is not None:
        nccl.close()
    moe.close()
    sheet.notes += [rival] if rival else []
    sheet.notes.append(f"aristos: a whole call with experts of F {FFN}: routing checked, rows out, outputs back, sums")
    if not ctx.world.nodes.single:
        sheet.notes.append("ranks of several nodes: there is no copy from GPU to GPU to compare with")
    if ctx.world.size == 1:
        sheet.notes.append("one rank: the layer reads its rows in place; the copies stay within the GPU's memory")
    return Result(sheet.ok, [sheet], [_table(ctx, done, rival)], [played.ran])


def _record(moves: Moves, times: dict[str, np.ndarray]) -> dict[str, Any]:
    slowest = {name: t.max(axis=0) for name, t in times.items()}
    most = float((moves.nbytes.sum(axis=1)).max())
    ours = Statistics.from_times(slowest[GRAPH])
    record: dict[str, Any] = {
        "mb": most / 1e6,
        **ours.values_in("us"),
        "gbs": 2 * most / ours.median / 1e9,
        "turns": len(slowest[GRAPH]),
    }
    if COPY in slowest:
        copy = Statistics.from_times(slowest[COPY]).median
        record |= {"copy_us": copy * 1e6, "copy_gbs": 2 * most / copy / 1e9}
        record |= ratio_values("share", slowest[GRAPH], slowest[COPY])
    for name, us, speedup in ((STAGED, "mpi_us", "speedup"), (NCCL, "nccl_us", "nccl_speedup")):
        if name in slowest:
            record[us] = Statistics.from_times(slowest[name]).median * 1e6
            record[speedup], *_ = ratios(slowest[GRAPH], slowest[name])
    return record


def _table(ctx: Context, done: list[tuple[str, int, dict[str, np.ndarray]]], rival: str) -> Table:
    """Raw times of every rank."""
    names = list(done[0][2])
    patterns = list(dict.fromkeys(pattern for pattern, *_ in done))
    tokens = list(dict.fromkeys(count for _, count, _ in done))
    found = {(pattern, count): times for pattern, count, times in done}
    seconds = padded([[[found[p, n][name] for name in names] for n in tokens] for p in patterns])
    table = Table("exchange", "exchange_cuda", attributes={"shape": str(ctx.shape()), "ffn": FFN, "rival": rival})
    table.dim("pattern", patterns).dim("tokens", tokens, "1", "tokens per rank and call").dim("what", names)
    table.dim("rank", np.arange(ctx.world.size)).dim("turn", np.arange(seconds.shape[-1]))
    over = ("pattern", "tokens", "what", "rank", "turn")
    return table.add("call_time", over, seconds, "s", "rows out and back, on one rank, by events")

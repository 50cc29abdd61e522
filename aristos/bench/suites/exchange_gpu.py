"""Suite `exchange` on cards: what dispatch and return take within a layer's call, against plain copies and against MPI.

There is no exchange of its own on cards, so a call is timed whose experts do next to nothing: F is 16, no gate, no
bias. What is left is all that the layer does with rows: the check of the routing, the packed order, rows out, outputs
back, and their weighted sums. In turns with it, the same rows move without any of that:

    aristos graph   the call, captured in a CUDA graph
    copy            a cuMemcpyDtoDAsync to each peer, and one back; they wait for nobody, and nothing says that they
                    have landed; on one node alone
    MPI, staged     from the card to pinned memory, MPI_Alltoallv, to the card; and all of it back. Several ranks alone

uniform and zipf routing, from outside (or that of --routing). A rank's own rows do not move, unless it is the only
one: then the layer reads its rows in place, and the copies move all of them within its memory. GB/s: bytes that the
busiest rank sends and gets back, over the time of the slowest one. It refuses to time an output that the float64 oracle
did not pass, or bytes that are not where they belong.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...results import Table
from ...transport.ipc import IpcWindow
from ..context import CHECK, ERROR, VERDICTS, Column, Context, Result, Sheet, counted
from ..gpu.calls import Played, routed_call
from ..gpu.clock import Gpu, ratios
from ..measure import Summary, gathered, padded
from ..registry import gpu_suite
from ..workload import Workload
from ..world import World

GRAPH, COPY, STAGED = "aristos graph", "copy", "MPI, staged"
FFN = 16  # the narrowest that every kind of arithmetic takes whole
PATTERNS = ("uniform", "zipf")

COLUMNS = (
    Column("pattern", "routing"),
    Column("tokens", "tokens\n/rank", "d"),
    Column("mb", "MB\none way", ".2f"),
    Column("median_us", "aristos\nus", ".1f"),
    Column("p95_us", "p95\nus", ".1f"),
    Column("gbs", "GB/s", ".1f"),
    Column("copy_gbs", "copy\nGB/s", ".1f"),
    Column("share", "of the\ncopy", ".0%"),
    Column("share_low", "5 %", ".0%"),
    Column("share_high", "95 %", ".0%"),
    Column("mpi_us", "MPI, staged\nus", ".1f"),
    Column("speedup", "against\nMPI", ".2f"),
    Column("turns", "turns", "d"),
    ERROR,
    CHECK,
)


class Moves:
    """The rows of a call, moved out and back without a layer. counts: [W, W] rows from rank to rank."""

    def __init__(self, gpu: Gpu, counts: NDArray[np.int64], row_bytes: int) -> None:
        self.gpu, self.world, me = gpu, gpu.world, gpu.world.rank
        self.nbytes = counts * row_bytes
        self.sends, self.gets = self.nbytes[me], self.nbytes[:, me]
        self.send_at, self.get_at = _starts(self.sends), _starts(self.gets)
        self.land_at = np.cumsum(self.nbytes, axis=0) - self.nbytes  # [from, to]: where a rank's rows land
        self.home_at = np.cumsum(self.nbytes, axis=1) - self.nbytes  # [from, to]: where they come back to
        self.source = gpu.array(self._made(me))
        most = max(8, int(self.nbytes.sum(axis=0).max()), int(self.nbytes.sum(axis=1).max()))
        self.window, self.base = self._window(2 * most)
        self.landed, self.back, self._half = self.base[me], self.base[me] + most, most
        self.calls: dict[str, Any] = {}
        if self.world.size == 1 or self.window is not None:
            self.calls[COPY] = self.copy
        self.host: list[Any] = []
        if self.world.size > 1:
            self.calls[STAGED] = self.staged
            self.host = [gpu.card.host(most)[0] for _ in range(2)]

    def _window(self, nbytes: int) -> tuple[Any, list[int]]:
        """(memory that peers open, if they are of one node; where each rank's part is for this card)."""
        world = self.world
        if world.size > 1 and world.nodes.single:
            window = IpcWindow(world.comm, self.gpu.card, nbytes)
            return window, window.base
        at = self.gpu.allocate(nbytes)
        return None, [at if rank == world.rank else 0 for rank in range(world.size)]

    def _made(self, sender: int) -> NDArray[np.uint8]:
        """All that `sender` sends, in rank order; every rank can make it."""
        total = max(8, int(self.nbytes[sender].sum()))
        return np.random.default_rng([sender, total]).integers(0, 256, total, np.uint8)

    def copy(self) -> None:
        """To each peer from the next rank on, and what peers have put here, back."""
        gpu, me, size = self.gpu, self.world.rank, self.world.size
        peers = [(me + 1 + i) % size for i in range(size)]
        for p in peers:
            if self.sends[p]:
                gpu.card.copy(self.base[p] + int(self.land_at[me, p]), self.source.at + int(self.send_at[p]),
                              int(self.sends[p]), gpu.stream)  # fmt: skip
        for p in peers:
            if self.gets[p]:
                gpu.card.copy(self.base[p] + self._half + int(self.home_at[p, me]), self.landed + int(self.get_at[p]),
                              int(self.gets[p]), gpu.stream)  # fmt: skip

    def staged(self) -> None:
        """Through the hosts; the stream is waited for before and after MPI."""
        out, into = (self.host[0], self.sends, self.send_at), (self.host[1], self.gets, self.get_at)
        self._through(self.source.at, out, into, self.landed)
        self._through(self.landed, into, out, self.back)

    def _through(self, source: int, out: Any, into: Any, to: int) -> None:
        from mpi4py import MPI

        card, stream = self.gpu.card, self.gpu.stream
        sends, gets = ((array[: int(n.sum())], (n, at)) for array, n, at in (out, into))
        card.copy_out(sends[0], source, stream)
        card.synchronize(stream)
        self.world.comm.Alltoallv([*sends, MPI.BYTE], [*gets, MPI.BYTE])
        card.copy_in(to, gets[0], stream)
        card.synchronize(stream)

    def right(self, name: str) -> bool:
        """Move on cleared memory, and compare what landed and what came back; collective."""
        gpu, me = self.gpu, self.world.rank
        for at, nbytes in ((self.landed, self.gets.sum()), (self.back, self.sends.sum())):
            gpu.card.clear(at, max(8, int(nbytes)), gpu.stream)
        gpu.card.synchronize(gpu.stream)
        for _ in range(2):  # a copy back waits for nobody: the second time there is something to bring
            self.world.barrier()
            self.calls[name]()
            gpu.card.synchronize(gpu.stream)
        self.world.barrier()
        want = np.concatenate([self._made(p)[self.home_at[p, me] :][: self.gets[p]] for p in range(self.world.size)])
        fine = True
        for at, wanted in ((self.landed, want), (self.back, self._made(me)[: self.sends.sum()])):
            got = np.empty(len(wanted), np.uint8)
            if len(wanted):
                gpu.card.copy_out(got, at, gpu.stream)
            fine &= np.array_equal(got, wanted)
        return self.world.every(fine)

    def close(self) -> None:
        """Give the memory back; collective."""
        self.gpu.card.synchronize(self.gpu.stream)
        self.world.barrier()
        if self.window is not None:
            self.window.close()
        else:
            self.gpu.free(self.landed)
        self.gpu.free(self.source.at)
        for array in self.host:
            self.gpu.card.free_host(array)


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(counts) - counts


def moved(world: World, placement: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[W, W] rows from rank to rank; a rank's own only where it is alone. Collective."""
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
def run(ctx: Context, gpu: Gpu) -> Result:
    shape = ctx.shape()
    cfg = replace(shape.cfg, ffn=FFN, gated=False, bias=False, activation="relu", limit=None)
    work = Workload(ctx.world, cfg, ctx.options.seed)
    moe = work.layer("fused", None, backend="cuda")
    title = f"exchange on {gpu.card.name}: H {cfg.hidden} E {cfg.experts} k {cfg.top_k} {cfg.dtype}"
    sheet = Sheet(f"{title}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    patterns = PATTERNS if ctx.options.routing is None else (ctx.options.routing,)
    plan = [(pattern, tokens) for pattern in patterns for tokens in shape.tokens]
    done = []
    for i, (pattern, tokens) in enumerate(plan):
        ctx.tell(f"{pattern}, {tokens} tokens", i / len(plan))
        call = routed_call(ctx, work, tokens, pattern)
        played = Played(gpu, work, moe, call)
        moves = Moves(gpu, moved(ctx.world, work.placement, work.routed(call)[0]), played.x.nbytes // max(1, tokens))
        calls = {GRAPH: played.graph(), **moves.calls}
        errors, right = [played.error(calls[GRAPH])], [moves.right(name) for name in moves.calls]
        found = gpu.in_turns(calls, ctx.left() / (len(plan) - i), ctx.options.warmup, ctx.options.iters)
        errors += [played.now(), played.error(calls[GRAPH])]
        right += [moves.right(name) for name in moves.calls]
        moves.close()
        times = {name: gathered(ctx.world, t) for name, t in found.items()}
        done.append((pattern, tokens, times))
        record = _record(moves, times) | {"pattern": pattern, "tokens": tokens, "error": max(errors)}
        sheet.records.append(record | {"check": VERDICTS[all(right) and work.passes(max(errors))]})
    moe.close()
    sheet.notes.append(f"aristos: a whole call with experts of F {FFN}: routing checked, rows out, outputs back, sums")
    if not ctx.world.nodes.single:
        sheet.notes.append("ranks of several nodes: there is no copy from card to card to compare with")
    if ctx.world.size == 1:
        sheet.notes.append("one rank: the layer reads its rows in place; the copies are within the card's memory")
    return Result(sheet.ok, [sheet], [_table(ctx, done)])


def _record(moves: Moves, times: dict[str, np.ndarray]) -> dict[str, Any]:
    slowest = {name: t.max(axis=0) for name, t in times.items()}
    most = float((moves.nbytes.sum(axis=1)).max())
    ours = Summary.of(slowest[GRAPH])
    record: dict[str, Any] = {
        "mb": most / 1e6, "median_us": ours.median * 1e6, "p95_us": ours.p95 * 1e6,
        "gbs": 2 * most / ours.median / 1e9, "turns": len(slowest[GRAPH]),
    }  # fmt: skip
    if COPY in slowest:
        copy = Summary.of(slowest[COPY]).median
        record |= {"copy_us": copy * 1e6, "copy_gbs": 2 * most / copy / 1e9}
        record["share"], record["share_low"], record["share_high"] = ratios(slowest[GRAPH], slowest[COPY])
    if STAGED in slowest:
        record |= {"mpi_us": Summary.of(slowest[STAGED]).median * 1e6}
        record["speedup"], *_ = ratios(slowest[GRAPH], slowest[STAGED])
    return record


def _table(ctx: Context, done: list[tuple[str, int, dict[str, np.ndarray]]]) -> Table:
    """Raw times of every rank."""
    names = list(done[0][2])
    patterns = list(dict.fromkeys(pattern for pattern, *_ in done))
    tokens = list(dict.fromkeys(count for _, count, _ in done))
    found = {(pattern, count): times for pattern, count, times in done}
    seconds = padded([[[found[p, n][name] for name in names] for n in tokens] for p in patterns])
    table = Table("exchange", "exchange_cuda", attributes={"shape": str(ctx.shape()), "ffn": FFN})
    table.dim("pattern", patterns).dim("tokens", tokens, "1", "tokens per rank and call").dim("what", names)
    table.dim("rank", np.arange(ctx.world.size)).dim("turn", np.arange(seconds.shape[-1]))
    over = ("pattern", "tokens", "what", "rank", "turn")
    return table.add("call_time", over, seconds, "s", "rows out and back, on one rank, by events")

"""The engine's steps on a machine of plain Python: ranks and workers are actors, memory is a table that watches.

For a process with NUMBA_DISABLE_JIT=1 (see uncompiled.py): the functions of `aristos.memory` are replaced, so that
every access of the steps to a window is seen. A window word knows who wrote it and who read it, and when, in vector
clocks: an access that nothing orders after the access it must follow is a race, found in any order of the actors.
Between nodes the functions of `aristos.wire` are replaced too (see network.py). It refuses to run kernels: an expert
here is a few integer sums, exact and unlike any other's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from network import Network, Race
from places import FAR, FIRST, NEAR, OUTBOX, PRIVATE, address, fill, where

from aristos import memory, wire
from aristos.engine import arrivals, combine, experts, outbox, packing, steps, team
from aristos.engine import exchange as halves
from aristos.engine import fields as f
from aristos.engine.layout import LINE, PairLayout, Shape, StateLayout, far_bytes, lines, near_bytes, outbox_bytes
from aristos.nodes import Nodes
from aristos.placement import Placement

SHARES = 3  # of F, in a run that workers share by columns
WORD = 8
PATIENT = 30_000  # steps without anything done that count as a deadlock


class Deadlock(AssertionError):
    """No actor has anything to do, and calls are open."""


@dataclass
class Cell:
    """What is known of a window word."""

    value: int = 0
    writer: tuple[int, int] | None = None  # actor, its clock at the last write
    rank: int | None = None  # the only rank that ever writes it (return rows: in this call)
    readers: dict[int, int] = field(default_factory=dict)  # actor -> its clock, since the last write


class Machine:
    """Windows, clocks, and the actor that runs now. `memory_functions` puts it under the steps.

    Numbers from FIRST on are windows and what else a rank's workers share; all others are this process's own memory.
    """

    def __init__(self, shape: Shape, nodes: Nodes, workers: int) -> None:
        self.shape, self.nodes, self.layout, self.workers = shape, nodes, PairLayout.of(shape), workers
        self.returns = lines(shape.returns)
        self.cells: dict[int, Cell] = {}
        self.released: dict[int, list[int]] = {}
        actors = len(nodes.node_of) * workers
        self.clocks = [[int(a == b) for b in range(actors)] for a in range(actors)]
        self.actor = 0
        self.now = 0
        self.network = Network(self)

    @property
    def rank(self) -> int:
        return self.actor // self.workers

    def parts(self, rank: int) -> dict[int, tuple[str, int, list[int], int, int]]:
        """By part of a rank's memory: its name, where its regions begin, whose they are, bytes of a region, bytes."""
        near, far = self.nodes.near(rank), self.nodes.far(rank)
        box = outbox_bytes(self.shape)
        return {
            NEAR: ("near", self.returns, near, self.layout.nbytes, near_bytes(self.shape, self.nodes, rank)),
            FAR: ("far", self.returns, far, self.layout.far_bytes, far_bytes(self.shape, self.nodes, rank)),
            OUTBOX: ("outbox", 0, far, box, box * len(far)),
        }

    def where(self, at: int) -> str:
        """An address in words, for messages."""
        rank, part, offset = where(at)
        if part == PRIVATE:
            return f"activations+{offset} of rank {rank}"
        name, begin, peers, size, _ = self.parts(rank)[part]
        if offset < begin:
            return f"{name} return rows+{offset} of rank {rank}"
        number, offset = divmod(offset - begin, size)
        starts = {"words": 0, **vars(self.layout)}
        del starts["announce_step"]
        what = max((n for n in starts if starts[n] <= offset), key=starts.__getitem__)
        return f"{name} {what}+{offset - starts[what]} of rank {rank} and peer {peers[number]}"

    def cell(self, at: int) -> Cell:
        if at not in self.cells:
            assert at % WORD == 0
            rank, part, offset = where(at)
            assert part == PRIVATE or offset < self.parts(rank)[part][-1], f"{at} is outside the windows"
            self.cells[at] = Cell()
        return self.cells[at]

    def is_return_row(self, at: int) -> bool:
        _, part, offset = where(at)
        return part in (NEAR, FAR) and offset < self.returns

    def ordered(self, actor: int, clock: int) -> bool:
        """Whether what `actor` did at `clock` is known to have happened before now."""
        return actor == self.actor or self.clocks[self.actor][actor] >= clock

    def read(self, address: int) -> int:
        cell = self.cell(address)
        self.network.check_read(address)
        if cell.writer is not None and not self.ordered(*cell.writer):
            raise Race(f"rank {self.rank} reads {self.where(address)} while actor {cell.writer[0]} writes it")
        cell.readers[self.actor] = self.clocks[self.actor][self.actor]
        return cell.value

    def write(self, address: int, value: int) -> None:
        cell = self.cell(address)
        self.check_write(cell, address)
        cell.value, cell.readers = value, {}
        cell.writer = self.actor, self.clocks[self.actor][self.actor]

    def check_write(self, cell: Cell, address: int) -> None:
        """Whether this actor may write here now, by a store or a put."""
        self.own(cell, address)
        self.network.check_write(address)
        if cell.writer is not None and not self.ordered(*cell.writer):
            raise Race(f"rank {self.rank} writes {self.where(address)} while actor {cell.writer[0]} writes it")
        for actor, clock in cell.readers.items():
            if not self.ordered(actor, clock):
                raise Race(f"rank {self.rank} writes {self.where(address)} while actor {actor} reads it")

    def own(self, cell: Cell, address: int) -> None:
        """Each word has one writing rank; each return row one in a call."""
        if cell.rank is None:
            cell.rank = self.rank
        elif cell.rank != self.rank or self.is_return_row(address):
            raise Race(f"rank {self.rank} writes {self.where(address)}, which rank {cell.rank} has written")

    def forget_returns(self, rank: int) -> None:
        """A new call of `rank` begins: its return rows may have other writers, and must be written again."""
        for part in (NEAR, FAR):
            for offset in range(0, self.returns, WORD):
                cell = self.cells.get(address(rank, part, offset))
                if cell is not None:
                    cell.rank = None

    def fresh_return(self, address: int) -> int:
        """Read a return row's word, which must have been written in this call."""
        if self.cell(address).rank is None:
            raise Race(f"rank {self.rank} combines {self.where(address)}, which nobody has written in this call")
        return self.read(address)

    def acquire(self, address: int) -> None:
        mine = self.clocks[self.actor]
        mine[:] = map(max, mine, self.released.get(address, mine))

    def release(self, address: int) -> None:
        mine = self.clocks[self.actor]
        self.released[address] = list(map(max, mine, self.released.get(address, mine)))
        mine[self.actor] += 1

    # ---- what the steps call

    def load(self, address: int) -> int:
        if address < FIRST:
            return REAL["load"](address)
        return self.network.read_coded(address) if self.network.is_coded(address) else self.read(address)

    def store(self, address: int, value: int) -> None:
        if address >= FIRST:
            self.write(address, int(value))
        else:
            REAL["store"](address, value)

    def load_acquire(self, address: int) -> int:
        self.acquire(address)
        return self.cell(address).value if address >= FIRST else REAL["load"](address)

    def store_release(self, address: int, value: int) -> None:
        if address >= FIRST:
            cell = self.cell(address)
            self.own(cell, address)
            self.network.check_write(address)
            cell.value = int(value)
        else:
            REAL["store"](address, value)
        self.release(address)

    def compare_exchange(self, address: int, expected: int, value: int) -> bool:
        done = REAL["compare_exchange"](address, expected, value)
        if done:
            self.acquire(address)
        return done

    def copy_row(self, dst: int, src: int, nbytes: int) -> None:
        assert nbytes % WORD == 0
        for at in range(0, nbytes, WORD):
            self.store(dst + at, self.load(src + at))

    def clock(self) -> int:
        """Time goes on by steps of very different length, so that all that waits for some time may and may not."""
        self.now += self.network.random.choice((1_000, 1_000, 100_000, 5_000_000))
        return self.now

    @contextmanager
    def memory_functions(self) -> Iterator[None]:
        """The steps use this machine inside."""
        names = ("load", "store", "load_acquire", "store_release", "compare_exchange", "copy_row", "clock")
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(mock.patch.object(memory, name, getattr(self, name)))
            for name in ("put", "flush", "sync", "progress"):
                stack.enter_context(mock.patch.object(wire, name, getattr(self.network, name)))
            yield


REAL = {name: getattr(memory, name) for name in ("load", "store", "compare_exchange")}


@dataclass(frozen=True)
class Call:
    """One call of one rank: ids [S, k]; `layer` and `refuses` may differ between ranks; `exchange`: in two halves."""

    ids: np.ndarray
    layer: int = 0
    refuses: bool = False
    exchange: bool = False
    refuses_combine: bool = False  # in the second half of an exchange
    broken: bool = False  # some rank refuses or makes another call: outputs mean nothing
    ends_early: bool = False  # an exchange that is broken in its first half has no second


@dataclass(frozen=True)
class Sizes:
    """What a run is made with."""

    placement: tuple[int, ...]
    world: int
    top_k: int
    max_tokens: int
    ring: int
    workers: int
    tile: int
    run: int
    merge: int
    words: int  # of a row
    node_of: tuple[int, ...] | None = None  # a node number for each rank; None: one node
    block: int = 9  # most pairs of a block for a far owner

    @property
    def nodes(self) -> Nodes:
        return Nodes(self.node_of or (0,) * self.world)


BATCH = team.MOST_ROWS  # most rows of a run, as far as tables go


def activation_of(slot: int, row: list[int], share: int) -> int:
    """A share of what an expert's first half makes of a row."""
    return (sum((i + 3) * word for i, word in enumerate(row)) * (share + 2) + slot * 7919) % (1 << 40)


def output_of(activations: list[int], word: int) -> int:
    """A word of what its second half makes of them."""
    return (sum((i + 2) * a for i, a in enumerate(activations)) + word) % (1 << 40)


def computed(slot: int, row: list[int]) -> list[int]:
    """What the expert in `slot` makes of a row."""
    activations = [activation_of(slot, row, share) for share in range(SHARES)]
    return [output_of(activations, word) for word in range(len(row))]


class Rank:
    """One rank: its job and state, its calls, and the outputs they gave."""

    def __init__(self, machine: Machine, sizes: Sizes, me: int, calls: list[Call]) -> None:
        self.machine, self.sizes, self.me, self.calls = machine, sizes, me, calls
        self.placement = Placement(sizes.placement, len(sizes.placement), sizes.world)
        shape = shape_of(sizes)
        tables = StateLayout(shape, sizes.workers, BATCH)
        e = len(sizes.placement)
        self.job, self.st = np.zeros(f.JOB_WORDS + e + sizes.world + 1, np.int64), np.zeros(tables.words, np.int64)
        self.lock = np.zeros(1, np.int64)
        self.wire = np.zeros(wire.words(sizes.world), np.int64)
        machine.network.wires.append(self.wire)
        fill(shape, sizes.nodes, me, self.st, tables.starts)
        self.fill(tables, shape)
        self.outputs: list[dict[int, list[tuple[float, list[int]]]]] = []

    def fill(self, tables: StateLayout, shape: Shape) -> None:
        """As `Runtime.fill` and `Collective._new_job` do."""
        job, s, e = self.job, self.sizes, len(self.sizes.placement)
        self.machine.layout.fill(job)
        tables.fill(job)
        job[f.SLOT_OF], job[f.SLOT_START] = f.JOB_WORDS, f.JOB_WORDS + e
        job[f.JOB_WORDS : f.JOB_WORDS + e] = self.placement.slot_of
        job[f.JOB_WORDS + e :] = self.placement.start
        job[f.RANK], job[f.WORLD], job[f.WORKERS], job[f.LOCAL] = (
            self.me,
            s.world,
            s.workers,
            self.placement.held[self.me],
        )
        job[f.MAX_LOCAL], job[f.EXPERTS], job[f.TOP_K] = shape.max_local, e, s.top_k
        job[f.HIDDEN], job[f.FFN] = team.COLUMNS * s.words, team.COLUMNS * SHARES  # a word a share
        job[f.ROW_BYTES], job[f.STRIDE], job[f.RING_ROWS] = WORD * s.words, shape.stride, shape.ring_rows
        job[f.RETURN_STRIDE], job[f.ALL_WORKERS] = shape.stride, s.workers
        job[f.FAR], job[f.FAR_BLOCK] = len(s.nodes.far(self.me)), s.block
        job[f.WIRE] = self.wire.ctypes.data if job[f.FAR] else 0
        job[f.SLOTS], job[f.TILE], job[f.BATCH], job[f.RUN_ROWS] = shape.slots, s.tile, BATCH, s.run
        job[f.MERGE_ROWS], job[f.PATIENCE], job[f.ROUTED], job[f.OBJECT] = s.merge, 3, 1, 1
        job[f.UP], job[f.UP_STEP] = 1 + self.placement.start[self.me], 1  # a weight's address here: 1 + its slot
        job[f.LOCK], job[f.SCRATCH] = self.lock.ctypes.data, address(self.me, PRIVATE)

    def row(self, epoch: int, token: int) -> list[int]:
        """x of a token: a row unlike any other of the run."""
        return [((epoch * 64 + self.me) * 4096 + token) * 16 + i for i in range(self.sizes.words)]

    def prepare(self, epoch: int, call: Call) -> None:
        """Fill the job for a call, as `MoE._prepare` does."""
        job, count = self.job, len(call.ids)
        self.x = np.array([self.row(epoch, t) for t in range(count)] or [[0]], np.int64)
        self.ids = np.ascontiguousarray(call.ids.reshape(-1) if count else np.zeros(1), np.int64)
        self.weights = np.arange(1, count * self.sizes.top_k + 2, dtype=np.float32)
        job[f.EPOCH], job[f.TOKENS] = epoch, 0 if call.refuses else count
        job[f.LAYER] = f.EXCHANGE if call.exchange else call.layer
        job[f.STATUS_IN] = f.REFUSED if call.refuses else f.OK
        job[f.X], job[f.X_STRIDE], job[f.Y] = self.x.ctypes.data, WORD * self.sizes.words, 0
        job[f.IDS], job[f.WEIGHTS] = self.ids.ctypes.data, self.weights.ctypes.data
        job[f.MODE] = f.MODE_DISPATCH if call.exchange else f.MODE_LAYER
        job[f.WORKERS] = 1 if call.exchange else self.sizes.workers
        self.call = call
        self.output: dict[int, list[tuple[float, list[int]]]] = {}

    # ---- in the place of kernels

    def run_expert(self, rows: int, x: int, y: int, slot: int) -> None:
        for i in range(rows):
            target = memory.load(y + 8 * i)
            for w, word in enumerate(computed(slot, self.read_row(x + 8 * i))):
                memory.store(target + WORD * w, word)

    def read_row(self, pointer: int) -> list[int]:
        source = memory.load(pointer)
        return [memory.load(source + WORD * w) for w in range(self.sizes.words)]

    def run_up(self, rows: int, x: int, activations: int, slot: int, share: int) -> None:
        for i in range(rows):
            value = activation_of(slot, self.read_row(x + 8 * i), share)
            memory.store(activations + WORD * (SHARES * i + share), value)

    def run_down(self, rows: int, activations: int, y: int, share: int) -> None:
        for i in range(rows):
            made = [memory.load(activations + WORD * (SHARES * i + s)) for s in range(SHARES)]
            memory.store(memory.load(y + 8 * i) + WORD * share, output_of(made, share))

    def run_combine(self, y: int, k: int, weights: np.ndarray, rows: np.ndarray) -> None:
        if self.call.broken:
            return
        token = y // (4 * team.COLUMNS * self.sizes.words)
        assert token not in self.output, f"rank {self.me} combines token {token} twice"
        read = self.machine.fresh_return
        self.output[token] = [
            (float(weights[j]), [read(int(rows[j]) + WORD * w) for w in range(self.sizes.words)])
            for j in range(k)
            if rows[j] != 0
        ]

    # ---- the calls, one step at a time

    def worker(self, number: int) -> Iterator[bool]:
        """Steps of one worker until the call ends on it, as `cpu.work` has them; yields whether something was done."""
        job, st = self.job, self.st
        far = job[f.FAR] != 0
        while True:
            kind = steps.decide(job, st, number)
            if kind in (f.FINISH, f.SIZED):
                return
            assert kind != f.FAIL, f"rank {self.me} was poisoned"
            if kind == f.IDLE:
                if far:
                    outbox.turn(job, st, number, True)
                yield False  # a batch that only says that this rank lives gets nobody on
                continue
            yield True
            steps.execute(job, st, number, kind)
            yield True
            steps.publish(job, st, number, kind)
            yield True
            if far:
                outbox.turn(job, st, number, False)
                yield True

    def run(self, random: random.Random) -> Iterator[bool]:
        """All calls; yields after each step of one of the workers."""
        for epoch, call in enumerate(self.calls, 1):
            self.prepare(epoch, call)
            self.machine.forget_returns(self.me)
            packing.begin(self.job, self.st)
            yield from self.exchange() if call.exchange else self.all_workers(random)
            steps.heartbeat(self.job, self.st, -1)
            self.outputs.append(self.output)
            yield True

    def all_workers(self, random: random.Random) -> Iterator[bool]:
        open_ = {n: self.worker(n) for n in range(self.sizes.workers)}
        while open_:
            number = random.choice(list(open_))
            self.machine.actor = self.me * self.sizes.workers + number
            done = next(open_[number], None)
            if done is None:
                del open_[number]
            yield bool(done)
            self.machine.actor = self.me * self.sizes.workers

    def exchange(self) -> Iterator[bool]:
        """As `Exchange.dispatch` and `Exchange.combine` do, with `computed` for the user's experts between them."""
        job, st, words = self.job, self.st, self.sizes.words
        yield from self.worker(0)
        counts = np.zeros((max(1, job[f.LOCAL]), self.sizes.world), np.int64)
        rows = halves.set_targets(job, st, counts)
        landed = np.zeros((rows + 1, words), np.int64)
        job[f.OUT_ROWS] = landed.ctypes.data
        yield from self.worker(0)
        self.check_statuses(self.call.ends_early)
        if self.call.ends_early:
            return
        assert rows == counts.sum()
        slots = np.repeat(np.arange(len(counts)), counts.sum(1)) + self.placement.start[self.me]
        out = np.array([computed(int(s), row) for s, row in zip(slots, landed.tolist())] or [[0] * words], np.int64)
        yield True
        job[f.MODE] = f.MODE_COMBINE
        halves.expect_back(job, st)
        address, status = (0, f.REFUSED) if self.call.refuses_combine else (out.ctypes.data, f.OK)
        for source in range(self.sizes.world):
            halves.give_back(job, st, counts, source, address, status)
        yield True
        yield from self.worker(0)
        self.check_statuses(self.call.broken)

    def check_statuses(self, broken: bool) -> None:
        """What the other ranks said instead of rows is known by now, and nothing is that they have yet to say."""
        statuses = self.st[self.job[f.T_STATUS] :][: self.sizes.world]
        mine = self.call.refuses or self.call.refuses_combine
        assert mine or bool(statuses.any()) == broken, f"rank {self.me} in call {self.job[f.EPOCH]}: {statuses}"

    def check(self) -> None:
        """Every token of a call that came to a result is the sum of its experts' outputs, in the order of choices."""
        assert len(self.outputs) == len(self.calls)
        for epoch, (call, output) in enumerate(zip(self.calls, self.outputs), 1):
            if call.broken:
                continue
            k = self.sizes.top_k
            assert sorted(output) == list(range(len(call.ids)))
            for t, row in enumerate(call.ids.tolist()):
                wanted = [
                    (float(k * t + j + 1), computed(int(self.placement.slot_of[e]), self.row(epoch, t)))
                    for j, e in enumerate(row)
                    if e >= 0
                ]
                assert output[t] == wanted, f"rank {self.me}, call {epoch}, token {t}"


def shape_of(s: Sizes) -> Shape:
    """The shape of the engine of a run."""
    held = Placement(s.placement, len(s.placement), s.world).held
    return Shape(
        world=s.world,
        ring_rows=s.ring if s.nodes.single else max(s.ring, s.top_k),  # all that one token may need at a far owner
        stride=-(-WORD * s.words // LINE) * LINE,
        return_rows=s.max_tokens * s.top_k,
        max_local=max(1, *held),
        experts=len(s.placement),
        max_tokens=s.max_tokens,
    )


def play(sizes: Sizes, calls: list[list[Call]], seed: int) -> Machine:
    """Run every rank's calls in an order drawn from `seed`, some ranks much slower than others; check all outputs.

    Raises Race, Deadlock, or AssertionError for a wrong output.
    """
    chance = random.Random(seed)
    machine = Machine(shape_of(sizes), sizes.nodes, sizes.workers)
    machine.network.random = chance
    ranks: list[Rank] = []

    def expert_rows(rows: int, x: int, y: int, weights: Any, *_: Any) -> None:
        ranks[machine.rank].run_expert(rows, x, y, int(weights[0]) - 1)

    def up_columns(rows: int, x: int, activations: int, weights: Any, *rest: int) -> None:
        first = rest[3]
        ranks[machine.rank].run_up(rows, x, activations, int(weights[0]) - 1, first // team.COLUMNS)

    def down_columns(rows: int, activations: int, y: int, weights: Any, ffn: int, first: int, *_: int) -> None:
        ranks[machine.rank].run_down(rows, activations, y, first // team.COLUMNS)

    def combine_token(y: int, k: int, weights: Any, rows: Any, hidden: int) -> None:
        ranks[machine.rank].run_combine(int(y), k, weights, rows)

    def patched(module: Any, name: str, value: Any) -> Any:
        return mock.patch.object(module, name, value)

    with (
        machine.memory_functions(),
        patched(experts, "expert_rows", expert_rows),
        patched(team, "up_columns", up_columns),
        patched(team, "down_columns", down_columns),
        patched(combine, "combine_token", combine_token),
        patched(f, "TOKEN_BLOCK", 2),
    ):
        ranks += [Rank(machine, sizes, r, mine) for r, mine in enumerate(calls)]
        running = {r: rank.run(chance) for r, rank in enumerate(ranks)}
        weights = {r: chance.choice((1.0, 1.0, 0.1, 0.01)) for r in running}
        idle = 0
        while running:
            if chance.random() < 0.002:
                weights = {r: chance.choice((1.0, 1.0, 0.1, 0.01)) for r in running}
            r = chance.choices(list(running), [weights[q] for q in running])[0]
            machine.actor = r * sizes.workers
            machine.network.move(0.05)
            done = next(running[r], None)
            if done is None:
                del running[r]
            idle = 0 if done or done is None else idle + 1
            if idle > PATIENT:
                raise Deadlock(describe(ranks, running))
    for rank in ranks:
        rank.check()
    return machine


def describe(ranks: list[Rank], running: dict[int, Any]) -> str:
    """What the ranks that have not ended wait for."""
    names = ("PHASE", "UNREAD", "OWED", "UNSENT", "BLOCKS_LEFT")
    lines = []
    for r in running:
        st, job = ranks[r].st, ranks[r].job
        words = ", ".join(f"{n} {st[getattr(f, n)]}" for n in names)
        lines.append(f"rank {r} in call {job[f.EPOCH]} waits for rank {arrivals.awaited(job, st)}: {words}")
    return "\n".join(lines)

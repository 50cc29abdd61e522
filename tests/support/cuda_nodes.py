"""Layers over several nodes on the PTX machine: local ranks store into each other's memory, proxies serve remote peers.

A proxy is an actor that runs the engine's own functions in plain Python. The machine orders and checks the proxy's
accesses to its memory. The MPI windows are host memory that only actors use. Until a flush the network delivers words
late, one by one, in any order. Where MPI may give wrong results, an assertion fails: on a read of a word that was put
and is not flushed, and on a write to a word that is still being put.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda_layers import Layers, Rank
from plain_engine import plain

from aristos.engine import words
from aristos.engine.layout import CODED_BYTES, PairLayout, lines
from aristos.host.nodes import Nodes
from aristos.substrate.cuda.outboxes import DeviceMemory

HOST = 1 << 58  # first address of host memory; no real memory lies there
SPAN = 1 << 40  # bytes of a rank's part of host memory
MACHINE_END = 1 << 52
WORD = 8
WINDOW, BUFFERS = 0, SPAN // 2
GAP = 24  # the most turns of the machine between two turns of a proxy
LONG = 2_000  # a proxy that is idle for more turns in a row than this hangs


class Host:
    """The memory that actors use, and the wires between them."""

    def __init__(self, machine: Any, seed: int) -> None:
        self.machine, self.rng = machine, np.random.default_rng(seed)
        self.arrays: list[Any] = []  # arrays of the machine that actors may use
        self.on_devices: list[Any] = []  # arrays that only copies and puts reach
        self.values: dict[int, int] = {}
        self.flying: dict[int, tuple[int, int, bool]] = {}  # target -> (source, origin's wire, landed)
        self.sources: dict[int, int] = {}
        self.coded: list[range] = []
        self.ticks = 0
        self.puts = 0
        self.from_devices: set[tuple[int, int]] = set()  # puts from device memory: (array, address)
        mem, wire = plain("primitives.memory"), plain("primitives.wire")
        mem.load, mem.store = self.load, self.store
        mem.load_acquire = lambda at: self.load(at, "acquire")
        mem.store_release = lambda at, value: self.store(at, value, "release")
        mem.compare_exchange, mem.clock = self.compare_exchange, self.clock
        wire.put, wire.flush, wire.sync, wire.progress = self.put, self.flush, lambda wire: None, self.land

    # ---- memory
    def _on_machine(self, at: int) -> tuple[Any, int] | None:
        if at >= MACHINE_END:
            return None
        array = next(a for a in self.arrays if a.ptr <= at < a.ptr + a.nbytes)
        return array, (at - array.ptr) // WORD

    def _is_coded(self, at: int) -> bool:
        return any(at in part for part in self.coded)

    def load(self, at: int, order: str = "weak") -> int:
        at = int(at)
        assert at % WORD == 0
        found = self._on_machine(at)
        if found is not None:
            assert found[0] not in self.on_devices, f"the host reads {at:#x}, which lies on a device"
            return int(found[0].load(found[1], order=order))
        assert at not in self.flying or self._is_coded(at), f"reads {at:#x}, which was put and is not flushed"
        return self.values.get(at, 0)

    def store(self, at: int, value: int, order: str = "weak") -> None:
        at, value = int(at), int(value)
        assert at not in self.sources, f"writes {at:#x}, which is still being put"
        found = self._on_machine(at)
        if found is not None:
            assert found[0] not in self.on_devices, f"the host writes {at:#x}, which lies on a device"
            found[0].store(found[1], value, order=order)
        else:
            self.values[at] = value

    def compare_exchange(self, at: int, expected: int, value: int) -> bool:
        if self.load(at) != expected:
            return False
        self.store(at, value)
        return True

    def clock(self) -> int:
        self.ticks += 1
        return self.ticks

    # ---- puts: to a remote peer if the target is a byte of a window, to the device if it is an address on the machine
    def put(self, wire: int, peer: int, at: int, source: int, nbytes: int) -> None:
        assert nbytes > 0
        self.puts += 1
        at, source = int(at), int(source)
        start = at if at >= MACHINE_END or self._has(at) else HOST + SPAN * int(peer) + WINDOW + at
        for offset in range(0, int(nbytes), WORD):
            target = start + offset
            assert target not in self.flying, f"puts {target:#x} twice between flushes"
            self.flying[target] = (source + offset, wire, False)
            self.sources[source + offset] = self.sources.get(source + offset, 0) + 1

    def _has(self, at: int) -> bool:
        return any(a.ptr <= at < a.ptr + a.nbytes for a in self.arrays)

    def _move(self, target: int) -> None:
        source, wire, landed = self.flying[target]
        if landed:
            return
        self.flying[target] = (source, wire, True)
        here = self._on_machine(source)
        if here is not None:
            value = int(here[0].load(here[1], order="weak"))
            if here[0] in self.on_devices:
                self.from_devices.add((here[0].ptr, source))
        else:
            value = self.load(source)
        found = self._on_machine(target)
        if found is not None:
            found[0].store(found[1], value, order="weak")
        else:
            self.values[target] = value

    def land(self, wire: int) -> None:
        """Deliver some of the words that this wire has under way."""
        mine = [target for target, (_, which, landed) in self.flying.items() if which == wire and not landed]
        for i in self.rng.permutation(len(mine))[: self.rng.integers(0, len(mine) + 1)]:
            self._move(mine[i])

    def under_way(self, wire: int) -> bool:
        """Whether this wire has words that are not delivered yet."""
        return any(which == wire and not landed for _, which, landed in self.flying.values())

    def flush(self, wire: int, peer: int) -> None:
        mine = [target for target, (_, which, _) in self.flying.items() if which == wire]
        for i in self.rng.permutation(len(mine)):
            self._move(mine[i])
        for target in mine:
            source = self.flying.pop(target)[0]
            self.sources[source] -= 1
            if not self.sources[source]:
                del self.sources[source]


class NodeRank(Rank):
    """A rank with remote peers: outboxes and mirror in the machine's mapped memory."""

    layers: NodeLayers

    def _state(self) -> Any:
        layers, me = self.layers, self.me
        ranks = sorted([me, *layers.nodes.local(me)])
        self.base = HOST + SPAN * me
        window = SimpleNamespace(base=[layers.windows[p].ptr for p in ranks])
        base, shift = self.base + WINDOW, [0] * len(layers.tokens)
        remote = SimpleNamespace(base=base, bases={me: base}, shift=shift, wire=self.base + BUFFERS)
        group: Any = SimpleNamespace(
            rank=me, nodes=layers.nodes, world=len(layers.tokens), remote_window=lambda nbytes: remote
        )
        layout = PairLayout.from_shape(layers.shape)
        for number in range(len(layers.nodes.remote(me))):
            first = self.base + lines(layers.shape.returns) + layout.nbytes * number
            layers.host.coded.append(range(first, first + CODED_BYTES))
        self.memory = DeviceMemory(group, layers.shape, lambda n: window, self, layers.rows_on_device)
        self.memory._accepted = SimpleNamespace(ctypes=SimpleNamespace(data=self.base + BUFFERS + (1 << 20)))
        self.memory._locks = SimpleNamespace(ctypes=SimpleNamespace(data=self.base + BUFFERS + (2 << 20)))
        self.sides = self.memory.sides(self.base + BUFFERS + (3 << 20), (0, 0))
        state = np.zeros(layers.tables.words, np.int64)
        self.memory.fill(state, layers.tables.starts)
        return self.device.array(state)

    # ---- the methods of a CudaDevice
    def host(self, nbytes: int) -> tuple[Any, int]:
        array = self.layers.machine.host_array(np.zeros(nbytes // WORD, np.int64), f"outboxes of rank {self.me}")
        self.layers.host.arrays.append(array)
        self.kept.append(array)
        return SimpleNamespace(ctypes=SimpleNamespace(data=array.ptr)), array.ptr

    def pin(self, address: int, nbytes: int) -> int:
        return 0

    def allocate(self, nbytes: int) -> int:
        array = self.device.array(np.zeros(nbytes // WORD, np.int64), f"rows to put of rank {self.me}")
        self.layers.host.arrays.append(array)
        self.layers.host.on_devices.append(array)
        self.kept.append(array)
        return array.ptr

    def _remote(self) -> dict[str, int]:
        layers, memory = self.layers, self.memory
        return {
            "remote": len(layers.nodes.remote(self.me)),
            "bundle_pairs": layers.bundle,
            "mirror": memory.mirror,
            "mirror_bytes": memory.mirror_bytes,
        }

    def proxy(self, epoch: int) -> Iterator[None]:
        """The proxy as an actor. It ends when this rank's call `epoch` has ended and everything is put."""
        engine = plain("engine.proxy")
        sides = self.sides
        idle = 0
        while True:
            moved = engine.serve_both(sides.job, sides.st, sides.device_job, sides.device_st)
            over = moved < 0
            idle = 0 if moved else idle + 1
            assert idle < LONG, f"the proxy of rank {self.me} waits for ever"
            if over and self.layers.fails:
                while not engine.put_poison(sides.job, sides.st):
                    yield
                break
            assert not over
            for _ in range(self.layers.host.rng.integers(1, GAP)):
                yield
            left = sides.job[words.EPOCH] == epoch and sides.st[words.PROGRESS] < 0
            if left and engine.between_calls(sides.job, sides.st):
                at = [self.layers.host.load(at, "acquire") for at in self._epochs()]
                if min(at) == epoch:
                    break
        while self.layers.host.under_way(self.memory.wire):  # the last words are delivered without the proxy
            self.layers.host.land(self.memory.wire)
            yield

    def _epochs(self) -> list[int]:
        sides = self.sides
        return [int(sides.st[sides.job[words.T_REGION_TO] + p]) + WORD * words.AT_EPOCH for p in self.memory.remote]


@dataclass
class NodeLayers(Layers):
    """Layers on nodes of `per_node` ranks each.

    bundle: the most pairs of a bundle for a remote owner. rows_on_device: whether MPI puts from device memory.
    """

    per_node: int = 2
    bundle: int = 512
    rows_on_device: bool = False
    fails: bool = False
    host: Any = None
    made: int = 0

    def _places(self) -> None:
        world = len(self.tokens)
        self.nodes = Nodes.split(world, self.per_node)
        self.host = Host(self.machine, self.seed)

    def make_rank(self, me: int) -> Rank:
        return NodeRank(self, me)

    def run(self, calls: int = 1, ranks: Any = None) -> list[np.ndarray]:
        self.made += calls
        for rank in self.ranks if ranks is None else ranks:
            self.machine.actor(rank.proxy, self.made)
        return super().run(calls, ranks)

"""The proxy thread with real MPI. Host memory stands for the device, and the CPU's workers stand for its kernel.

The workers cannot call MPI: the lock of their wire is never free. So all traffic with other nodes passes through the
proxy and its copies, whose code is compiled as in the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import leftovers
import numpy as np
import pytest
from cases import MoE, alone, routing, same, tokens
from mpi import ranks_each

import aristos
from aristos import reference
from aristos.engine import words
from aristos.errors import AristosError
from aristos.primitives import wire
from aristos.primitives.buffers import aligned
from aristos.substrate.cpu.runtime import CpuRuntime
from aristos.substrate.cuda.outboxes import DeviceMemory
from aristos.substrate.cuda.proxy_thread import DeviceWire, ProxyThread
from aristos.substrate.idle import ALONE

# hidden=96: whole panels are whole cache lines, so that return rows are as wide as rows, as on a GPU
CFG = aristos.MoEConfig(hidden=96, ffn=72, experts=5, top_k=2, max_tokens=70)
W = reference.weights(CFG)


class HostDevice:
    """A device whose memory is the host's.

    takes: whether MPI puts from its memory. maps: whether kernels can use MPI's memory. allocated: its device memory.
    """

    def __init__(self, takes: bool = False, maps: bool = False) -> None:
        self.takes, self.maps = takes, maps
        self.allocated: list[np.ndarray] = []
        self.kept: list[Any] = []
        self.pinned = (0, 0)

    def host(self, nbytes: int) -> tuple[np.ndarray, int]:
        array = aligned((nbytes,), np.uint8)
        array[:] = 0
        self.kept.append(array)
        return array, array.ctypes.data

    def allocate(self, nbytes: int) -> int:
        array, address = self.host(nbytes)
        self.allocated.append(array)
        return address

    def free(self, address: int) -> None:
        pass

    def free_host(self, array: np.ndarray) -> None:
        pass

    def pin(self, address: int, nbytes: int) -> int:
        self.pinned = (address, nbytes) if self.maps else (0, 0)
        return self.pinned[0]

    def unpin(self, address: int) -> None:
        assert self.pinned[0] == address
        self.pinned = (0, 0)

    def current(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@contextlib.contextmanager
def on_devices(device: HostDevice) -> Iterator[list[ProxyThread]]:
    """In the block, engines on CPUs have the memory and the proxy of engines on GPUs."""
    proxies: list[ProxyThread] = []
    taken = aligned((wire.words(64),), np.int64)
    taken[:] = 0
    taken[wire.LOCK] = 1
    allocate, fill = CpuRuntime._allocate, CpuRuntime.fill

    def memory(group: Any, shape: Any) -> DeviceMemory:
        return DeviceMemory(group, shape, group.local_window, device, device.takes)

    def allocated(self: CpuRuntime, *args: Any) -> None:
        allocate(self, *args)
        device_wire = DeviceWire(self.group.world)
        found: Any = self._memory
        sides = found.sides(device_wire.address, (ALONE[0] // 100, ALONE[1] // 100))
        proxies.append(ProxyThread(sides, device, self.group.rank))
        found.start(proxies[-1].run)
        self.group.meet("the other ranks to start proxies")

    def filled(self: CpuRuntime, job: np.ndarray, *tile: int) -> None:
        fill(self, job, *tile)
        job[words.WIRE] = taken.ctypes.data

    with contextlib.ExitStack() as stack:
        for name, value in (("EngineMemory", memory), ("CpuRuntime._allocate", allocated), ("CpuRuntime.fill", filled)):
            stack.enter_context(mock.patch(f"aristos.substrate.cpu.runtime.{name}", value))
        yield proxies


@pytest.mark.parametrize(
    ("takes", "maps"),
    [(False, False), (False, True), (True, True)],
    ids=["staged", "mapped", "mapped and from the device"],
)
@ranks_each(2, 3, 4, timeout=240)  # the first test may have to compile kernels
def test_equal_bits_through_the_proxy(comm, world, takes, maps):
    """Nodes have one rank or two, rings are tiny, and calls have several sizes."""
    calls = []
    for n, count in enumerate((17, 0, 70, 33)):
        x = tokens(CFG, (count + 5 * comm.rank) % 71, seed=10 * n + comm.rank)
        calls.append((x, routing(CFG, len(x), "some", seed=n + comm.rank)))
    with alone(CFG, W, threads=1) as one:
        wanted = [one(x, **call) for x, call in calls]
    for per_node in (1, 2) if world > 2 else (1,):
        device = HostDevice(takes=takes, maps=maps)
        with on_devices(device), MoE(CFG, comm, ranks_per_node=per_node, threads=2) as moe:
            moe.load(**W)
            for (x, call), want in zip(calls, wanted):
                assert same(moe(x, **call), want)
        assert len(device.allocated) == takes
        for rows in device.allocated:  # ring rows and outputs for each remote peer, which lie nowhere else
            remote = sum(p // per_node != comm.rank // per_node for p in range(world))
            assert rows.reshape(2 * remote, -1).any(axis=1).all()
        assert device.pinned == (0, 0)


@pytest.mark.ranks(2, timeout=240, isolated=True)
def test_a_proxy_that_fails_ends_the_call_on_all_ranks(comm):
    """The failing rank and its remote peer both raise."""
    hooks = leftovers.registered()
    module = "aristos.substrate.cuda.proxy_thread"
    with contextlib.ExitStack() as stack:
        proxies = stack.enter_context(on_devices(HostDevice()))
        stack.enter_context(mock.patch("aristos.transport.group.Group.abort_at_exit"))  # the ranks end together
        if comm.rank == 0:
            stack.enter_context(mock.patch(f"{module}.serve", side_effect=OSError("out of order")))
            stack.enter_context(mock.patch(f"{module}.warm_up"))
        moe = MoE(CFG, comm, ranks_per_node=1, threads=1, timeout=20)
        moe.load(**W)

        def calls() -> None:
            for n in range(20):
                moe(tokens(CFG, 60, seed=n))

        with pytest.raises(AristosError, match="rank 0"):
            calls()
        if comm.rank == 0:
            assert proxies[-1].error == "OSError: out of order"
    leftovers.run_since(hooks)  # a rank that failed cannot close its layer

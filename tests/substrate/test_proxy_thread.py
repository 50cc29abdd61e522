"""The proxy thread over real MPI: the device is host memory, the CPU's workers stand for its kernel.

The workers cannot call MPI: the lock of their wire is never free. So all traffic with other nodes passes the proxy and
its copies, compiled as they ship.
"""

from __future__ import annotations

import contextlib
import ctypes
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

# as on a GPU, a return row is as wide as a row: here where whole panels are whole lines
CFG = aristos.MoEConfig(hidden=96, ffn=72, experts=5, top_k=2, max_tokens=70)
W = reference.weights(CFG)
DRIVER = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 4)


class HostDevice:
    """A device whose memory is the host's. Copies are made when the stream is waited for, the last one first.

    fails: after so many copies. takes: whether MPI puts from its memory. allocated: its device memory.
    """

    def __init__(self, fails: int = 1 << 60, takes: bool = False) -> None:
        self.takes = takes
        self.allocated: list[np.ndarray] = []
        self.kept: list[Any] = []
        self.waiting: list[tuple[int, int, int]] = []
        self.copies, self.fails = 0, fails
        self.pinned = (0, 0)
        self.functions = DRIVER(self._copy), DRIVER(self._wait)

    def _copy(self, at: int, source: int, nbytes: int, stream: int) -> int:
        self.waiting.append((at, source, nbytes))
        self.copies += 1
        return 719 if self.copies > self.fails else 0

    def _wait(self, stream: int, *_: int) -> int:
        for at, source, nbytes in reversed(self.waiting):
            ctypes.memmove(at, source, nbytes)
        self.waiting.clear()
        return 0

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

    def pin(self, address: int, nbytes: int) -> bool:
        self.pinned = (address, nbytes)
        return True

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
        copy, wait = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in device.functions)
        device_wire = DeviceWire(copy, wait, 0, self.group.world)
        found: Any = self._memory
        sides = found.sides(device_wire.address)
        sides.job[words.SPINS], sides.job[words.YIELDS] = ALONE[0] // 100, ALONE[1] // 100
        proxies.append(ProxyThread(sides, device, device_wire, self.group.rank))
        found.start(proxies[-1].run)
        self.group.meet("the other ranks to start proxies")

    def filled(self: CpuRuntime, job: np.ndarray) -> None:
        fill(self, job)
        job[words.WIRE] = taken.ctypes.data

    with contextlib.ExitStack() as stack:
        for name, value in (("EngineMemory", memory), ("CpuRuntime._allocate", allocated), ("CpuRuntime.fill", filled)):
            stack.enter_context(mock.patch(f"aristos.substrate.cpu.runtime.{name}", value))
        yield proxies


@pytest.mark.parametrize("takes", [False, True], ids=["staged", "from the device"])
@ranks_each(2, 3, 4, timeout=240)  # the first one may have to compile
def test_equal_bits_through_the_proxy(comm, world, takes):
    """Nodes of one and of two ranks, tiny rings, several calls of every size."""
    calls = []
    for n, count in enumerate((17, 0, 70, 33)):
        x = tokens(CFG, (count + 5 * comm.rank) % 71, seed=10 * n + comm.rank)
        calls.append((x, routing(CFG, len(x), "some", seed=n + comm.rank)))
    with alone(CFG, W, threads=1) as one:
        wanted = [one(x, **call) for x, call in calls]
    for per_node in (1, 2) if world > 2 else (1,):
        device = HostDevice(takes=takes)
        with on_devices(device), MoE(CFG, comm, ranks_per_node=per_node, threads=2) as moe:
            moe.load(**W)
            for (x, call), want in zip(calls, wanted):
                assert same(moe(x, **call), want)
        assert device.copies > 0
        assert len(device.allocated) == 1 + takes
        assert device.allocated[0].any()  # the mirror
        for rows in device.allocated[1:]:  # what is put, which is nowhere else: ring rows and outputs, peer by peer
            remote = sum(p // per_node != comm.rank // per_node for p in range(world))
            assert rows.reshape(2 * remote, -1).any(axis=1).all()
        assert device.pinned == (0, 0)


@pytest.mark.ranks(2, timeout=240, isolated=True)
def test_a_copy_that_fails_ends_the_call_on_all_ranks(comm):
    """Words of data that was not copied are not passed on; the failing rank and its remote peer both learn it."""
    hooks = leftovers.registered()
    device = HostDevice(fails=8 if comm.rank == 0 else 1 << 60)
    with (
        on_devices(device) as proxies,
        mock.patch("aristos.transport.group.Group.abort_at_exit"),
    ):  # the ranks end together
        moe = MoE(CFG, comm, ranks_per_node=1, threads=1, timeout=20)
        moe.load(**W)

        def calls() -> None:
            for n in range(20):
                moe(tokens(CFG, 60, seed=n))

        with pytest.raises(AristosError, match="rank 0"):
            calls()
        if comm.rank == 0:
            assert proxies[-1].error is not None
            assert "CUDA error 719" in proxies[-1].error
    leftovers.run_since(hooks)  # a rank that failed cannot close its layer

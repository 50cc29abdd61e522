"""The shared memory of an engine on a GPU with remote peers. Outboxes, window and forwarded words are in host memory.

Kernels can read all of this memory. So a remote rank's put reaches the kernel that waits for it without a call of the
driver. Such a call could wait for a lock that another thread holds until the kernel ends. If the driver cannot map the
MPI window, kernels read a copy of it, into which the proxy copies what has arrived. If MPI can put from GPU memory
(device_puts.py), rows wait on the GPU to be put. This module starts no thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine import codes, schema, words
from ...engine import job as jobs
from ...engine.layout import LINE, WORD, EngineShape, StateLayout, lines
from ...errors import MemoryProblem
from ...host.nodes import Nodes
from ...primitives.buffers import zeros
from ...transport.group import Group
from ...transport.window import Window
from ..windows import EngineMemory, readers, window_bytes


def device_rows_bytes(shape: EngineShape, nodes: Nodes, rank: int) -> int:
    """Bytes of the rows that wait on a rank's GPU to be put: per remote peer a ring, and as many output rows."""
    return 2 * shape.ring_rows * shape.stride * len(nodes.remote(rank))


@dataclass(frozen=True)
class Sides:
    """The arguments of `engine.proxy`: a job and a state for remote peers (job, st), and another pair for the GPU."""

    job: np.ndarray
    st: np.ndarray
    device_job: np.ndarray
    device_st: np.ndarray


class DeviceMemory(EngineMemory):
    """`EngineMemory` for a rank with remote peers whose workers are on a GPU; collective.

    mirror, mirror_bytes: memory where kernels read what remote peers put. device: a `CudaDevice`. rows_on_device:
    whether rows for remote peers lie on the GPU until MPI puts them.
    """

    def __init__(
        self,
        group: Group,
        shape: EngineShape,
        window: Callable[[int], Window],
        device: Any,
        rows_on_device: bool = False,
    ) -> None:
        self.device = device
        super().__init__(group, shape, window, self._mapped)
        assert self._remote is not None
        nbytes = window_bytes(shape, group.nodes, group.rank)[1]
        self.mirror, self.mirror_bytes = device.pin(self._remote.base, nbytes), nbytes
        self._copy: np.ndarray | None = None  # the mirror, if the window is not mapped
        self._at_host = self._remote.base
        if not self.mirror:
            self._copy, self.mirror = device.host(nbytes)
            self._at_host = self._copy.ctypes.data
        self._rows = 0
        if rows_on_device:
            with contextlib.suppress(MemoryProblem):  # then the rows wait in host memory
                self._rows = device.allocate(device_rows_bytes(shape, group.nodes, group.rank))
        self._accepted = zeros((LINE // WORD * group.world,))
        self._locks = zeros((2 * LINE // WORD,))

    def _mapped(self, nbytes: int) -> np.ndarray:
        array, address = self.device.host(nbytes)
        self._outbox_shift = address - array.ctypes.data
        return array

    def fill(self, state: np.ndarray, starts: dict[int, int]) -> None:
        """Write all addresses, as kernels use them, into a state for the GPU."""
        super().fill(state, starts)
        assert self._remote is not None
        for tables, shift in (
            ((words.T_REGION_TO, words.T_LINE_FROM, words.T_STAGED, words.T_OUT_RING), self._outbox_shift),
            ((words.T_REGION_FROM, words.T_STREAM_FROM, words.T_ROWS_BACK), self.mirror - self._remote.base),
        ):
            for table in tables:
                state[[starts[table] + p for p in self.remote]] += shift
        self._place_rows(state, starts)

    def _place_rows(self, state: np.ndarray, starts: dict[int, int]) -> None:
        """Write the addresses of rings and staged outputs on the GPU, from which MPI puts to each remote peer."""
        for number, p in enumerate(self.remote if self._rows else ()):
            ring = self.shape.ring_rows * self.shape.stride
            at = self._rows + 2 * ring * number
            state[starts[words.T_OUT_RING] + p], state[starts[words.T_STAGED] + p] = at, at + ring

    def sides(self, wire_to_device: int, idle: tuple[int, int]) -> Sides:
        """New jobs and states for the proxy.

        wire_to_device: the address of the words of the wire to the GPU. idle: after how many idle polls the proxy
        yields its core, and after how many it sleeps.
        """
        small = EngineShape(self.group.world, 1, LINE, 1, 1)
        tables = StateLayout(small, 1, 1)
        st, device_st = np.zeros(tables.words, np.int64), np.zeros(tables.words, np.int64)
        super().fill(st, tables.starts)
        self._place_rows(st, tables.starts)
        st[words.PHASE] = codes.PHASE_RUN  # constant, because the proxy sees an epoch only when it is announced
        assert self._remote is not None
        for p in self.remote:
            line = self._accepted.ctypes.data + LINE * p
            here = {name: st[tables.starts[name] + p] for name in (words.T_LINE_FROM, words.T_REGION_FROM)}
            st[tables.starts[words.T_LINE_FROM] + p] = line
            for table, value in (
                (words.T_REMOTE, 1),
                (words.T_LINE_FROM, line),
                (words.T_CODED, here[words.T_LINE_FROM]),
                (words.T_REGION_TO, here[words.T_REGION_FROM]),
                (words.T_OUT_RING, here[words.T_REGION_FROM] + self.layout.ring),
                (words.T_PUT_REGION, here[words.T_REGION_FROM] + self._at_host - self._remote.base),
                (words.T_STAGED, self._remote.base),
                (words.T_PUT_RETURN_ROWS, self._at_host),
            ):
                device_st[tables.starts[table] + p] = value
        locks = self._locks.ctypes.data
        to_peers = self._job(tables, self.wire, locks, idle)
        return Sides(to_peers, st, self._job(tables, wire_to_device, locks + LINE, idle), device_st)

    def _job(self, tables: StateLayout, wire: int, lock: int, idle: tuple[int, int]) -> np.ndarray:
        """A job of the proxy. It has only the part `engine`, filled as for CPUs, because the proxy is a host thread."""
        job = np.zeros(jobs.size(0, self.group.world), np.int64)
        jobs.fill_placement(job, [], [0] * (self.group.world + 1))
        jobs.fill_engine(
            job, schema.CPU, self.shape, tables, rank=self.group.rank, world=self.group.world, remote=len(self.remote),
            wire=wire, lock=lock, spins=idle[0], yields=idle[1], return_stride=lines(self.shape.stride), all_workers=1,
            layout=0, state=0, scratch=0, merge_polls=0, pause_ns=0, bundle_pairs=0, once_rows=0, once_share=0,
            **readers(self.group.nodes, self.group.rank),
        )  # fmt: skip
        return job

    def start(self, run: Callable[[], None]) -> None:
        """Start the proxy thread, which ends with the window."""
        assert self._remote is not None
        self._remote.in_call(True)  # the proxy lets MPI make progress; if it is held up, the progress thread does
        self._remote.start("aristos-proxy", run)

    def close(self) -> None:
        """Free windows, outboxes and mirror; collective."""
        if self._copy is None and self._remote is not None:
            self._remote.stop()
            self.device.unpin(self._remote.base)
        super().close()
        self.device.free_host(self._outbox)
        if self._copy is not None:
            self.device.free_host(self._copy)
        if self._rows:
            self.device.free(self._rows)

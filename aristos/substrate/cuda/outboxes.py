"""The memory of an engine on a card with far peers: outboxes in mapped host memory, far peers' regions once more there.

The MPI window lies in the host's memory. The card has a place for each of its bytes (the mirror), which the proxy
copies what has arrived to; the outboxes, what is staged in them and the words that were handed on lie in pinned memory
that kernels reach too. Where MPI takes the card's memory (device_puts.py), rows wait there to be put. It starts no
thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine import codes, words
from ...engine.layout import LINE, WORD, Shape, StateLayout, lines
from ...errors import MemoryProblem
from ...primitives.buffers import aligned
from ...transport.group import Group
from ...transport.window import Window
from ..windows import Memory, card_rows_bytes, window_bytes


@dataclass(frozen=True)
class Sides:
    """What the proxy works with, see `engine.proxy`: a job and a state towards far peers, and towards the card."""

    job: np.ndarray
    st: np.ndarray
    card: np.ndarray
    cs: np.ndarray


class CardMemory(Memory):
    """What `Shape` needs on this rank, whose workers are on `card`, and which has far peers; collective.

    card: a substrate.device.Card. rows_on_card: whether rows for far peers lie on the card until MPI puts them.
    """

    def __init__(
        self, group: Group, shape: Shape, window: Callable[[int], Window], card: Any, rows_on_card: bool = False
    ) -> None:
        self.device = card
        super().__init__(group, shape, window, self._mapped)
        assert self._far is not None
        nbytes = window_bytes(shape, group.nodes, group.rank)[1]
        self._pinned = card.pin(self._far.base, nbytes)
        self._mirror = card.allocate(nbytes)
        self._rows = 0
        if rows_on_card:
            with contextlib.suppress(MemoryProblem):  # they can wait with the host as well
                self._rows = card.allocate(card_rows_bytes(shape, group.nodes, group.rank))
        self._window_shift = self._mirror - self._far.base
        self._believed = aligned((LINE // WORD * group.world,), np.int64)
        self._believed[:] = 0
        self._locks = aligned((2 * LINE // WORD,), np.int64)
        self._locks[:] = 0

    def _mapped(self, nbytes: int) -> np.ndarray:
        array, address = self.device.host(nbytes)
        self._outbox_shift = address - array.ctypes.data
        return array

    def fill(self, state: np.ndarray, starts: dict[int, int]) -> None:
        """Write into a state on the card where everything is, as kernels reach it."""
        super().fill(state, starts)
        for tables, shift in (
            ((words.T_REGION_TO, words.T_LINE_FROM, words.T_STAGED, words.T_OUT_RING), self._outbox_shift),
            ((words.T_REGION_FROM, words.T_ROWS_BACK), self._window_shift),
        ):
            for table in tables:
                state[[starts[table] + p for p in self.far]] += shift
        self._place_rows(state, starts)

    def _place_rows(self, state: np.ndarray, starts: dict[int, int]) -> None:
        """Where rows wait on the card, a far peer's ring and its staged outputs: MPI has the same addresses."""
        for number, p in enumerate(self.far if self._rows else ()):
            ring = self.shape.ring_rows * self.shape.stride
            at = self._rows + 2 * ring * number
            state[words.out_ring(starts, p)], state[words.staged(starts, p)] = at, at + ring

    def sides(self, wire_to_card: int) -> Sides:
        """Jobs and states for the proxy, new; wire_to_card: the address of its words."""
        small = Shape(self.group.world, 1, LINE, 1, 1)
        tables = StateLayout(small, 1, 1)
        st, cs = np.zeros(tables.words, np.int64), np.zeros(tables.words, np.int64)
        super().fill(st, tables.starts)
        self._place_rows(st, tables.starts)
        st[words.PHASE] = codes.PHASE_RUN  # an epoch that the proxy knows of is announced
        assert self._far is not None
        for p in self.far:
            line = self._believed.ctypes.data + LINE * p
            here = {name: st[tables.starts[name] + p] for name in (words.T_LINE_FROM, words.T_REGION_FROM)}
            st[words.line_from(tables.starts, p)] = line
            for table, value in (
                (words.T_REMOTE, 1), (words.T_LINE_FROM, line), (words.T_CODED, here[words.T_LINE_FROM]),
                (words.T_REGION_TO, here[words.T_REGION_FROM]),
                (words.T_OUT_RING, here[words.T_REGION_FROM] + self.layout.ring),
                (words.T_PUT_REGION, here[words.T_REGION_FROM] + self._window_shift), (words.T_STAGED, self._far.base),
                (words.T_PUT_RETURN_ROWS, self._mirror),
            ):  # fmt: skip
                cs[tables.starts[table] + p] = value
        jobs = [self._job(tables, wire) for wire in (self.wire, wire_to_card)]
        for number, job in enumerate(jobs):
            job[words.LOCK] = self._locks.ctypes.data + LINE * number
        return Sides(jobs[0], st, jobs[1], cs)

    def _job(self, tables: StateLayout, wire: int) -> np.ndarray:
        job = np.zeros(words.JOB_WORDS + self.group.world + 1, np.int64)
        self.layout.fill(job)
        tables.fill(job)
        job[words.RANK], job[words.WORLD], job[words.REMOTE], job[words.WIRE] = (
            self.group.rank,
            self.group.world,
            len(self.far),
            wire,
        )
        job[words.STRIDE], job[words.RING_ROWS], job[words.SLOTS] = (
            self.shape.stride,
            self.shape.ring_rows,
            self.shape.slots,
        )
        job[words.RETURN_STRIDE], job[words.SLOT_START] = lines(self.shape.stride), words.JOB_WORDS
        return job

    def start(self, run: Callable[[], None]) -> None:
        """Start the proxy; it ends with the window."""
        assert self._far is not None
        self._far.in_call(True)  # it looks after MPI's progress; where it is held up, the pacing thread does
        self._far.start("aristos-proxy", run)

    def close(self) -> None:
        """Give it all back; collective."""
        if self._pinned and self._far is not None:
            self._far.stop()
            self.device.unpin(self._far.base)
        super().close()
        self.device.free_host(self._outbox)
        self.device.free(self._mirror)
        if self._rows:
            self.device.free(self._rows)

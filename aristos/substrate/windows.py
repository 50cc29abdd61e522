"""The shared memory of one rank's engine: windows for local and remote peers, outboxes, and the tables of addresses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import int64

from kernel_cache.compile import warm_up

from ..engine import words
from ..engine.layout import (
    CODED_BYTES,
    LINE,
    WORD,
    EngineShape,
    PairLayout,
    bell_bytes,
    bell_words,
    has_bells,
    lines,
    local_bytes,
    local_region,
    outbox_bytes,
    remote_bytes,
    remote_region,
    shared_returns,
    stream_bell_words,
    stream_sources,
)
from ..host.nodes import Nodes
from ..primitives import wire
from ..primitives.buffers import zeros
from ..transport.group import Group
from ..transport.node_window import NodeWindow
from ..transport.rma import RmaWindow
from ..transport.watchdog import Calling
from ..transport.window import Window


def window_bytes(shape: EngineShape, nodes: Nodes, rank: int) -> tuple[int, int, int]:
    """Bytes of a rank's window for local peers, of its window for remote peers, and of its outboxes."""
    return local_bytes(shape, nodes, rank), remote_bytes(shape, nodes, rank), outbox_bytes(shape, nodes, rank)


def readers(nodes: Nodes, rank: int) -> dict[str, int]:
    """The words of a job's part `engine` that say which ranks read the streams that a rank reads."""
    ranks = nodes.readers(rank)
    return {"node_first": ranks.start, "node_end": ranks.stop}


def remote_window(group: Group, nbytes: int) -> RmaWindow:
    """A window for remote peers, which with two levels lies in memory that all ranks of this node map; collective."""
    return NodeWindow(group, nbytes) if group.nodes.levels == 2 else group.remote_window(nbytes)


def fill_bells(
    state: np.ndarray,
    starts: dict[int, int],
    nodes: Nodes,
    me: int,
    answered: int,
    here: Callable[[int], int],
    there: Callable[[int], int],
) -> None:
    """Write the addresses of bells into the state of rank `me`.

    answered: address of the digests of accepted words. here: address of the bells at a rank of its node.
    there: where bells lie at a remote peer, as `wire.put` takes it.
    """
    own = WORD * bell_words(nodes)
    if has_bells(nodes, me):
        of_streams = stream_bell_words(nodes, me)
        state[words.BELLS], state[words.ANSWERED] = here(me), answered
        state[words.BELL_WORDS], state[words.STREAM_BELL_WORDS] = bell_words(nodes), of_streams
        for number, rail in enumerate(nodes.members(me)):
            bells = here(rail) + lines(own)
            state[starts[words.T_STREAM_BELLS] + rail] = bells
            for i, source in enumerate(stream_sources(nodes, rail)):
                state[starts[words.T_STREAM_BELL] + source] = bells + i
                state[starts[words.T_STREAM_ANSWERED] + source] = answered + own + WORD * of_streams * number + i
    for p in nodes.remote(me):
        if has_bells(nodes, p):
            state[starts[words.T_PUT_BELL] + p] = there(p) + me
            if nodes.stream(me, p):
                state[starts[words.T_PUT_STREAM_BELL] + p] = there(p) + lines(own) + stream_sources(nodes, p).index(me)


class EngineMemory:
    """The windows and outboxes that an `EngineShape` needs on this rank; collective.

    window: a function of a number of bytes that makes the window for local peers; by default the CPU backend's.
    outboxes: a function of a number of bytes that makes memory for the outboxes, uint8 zeros. The argument `remote`: a
    function of a number of bytes that makes the window for remote peers. The attribute `remote`: the remote peers.
    wire: address of the wire to them, 0 if there are none.
    """

    def __init__(
        self,
        group: Group,
        shape: EngineShape,
        window: Callable[[int], Window] | None = None,
        outboxes: Callable[[int], np.ndarray] | None = None,
        remote: Callable[[int], RmaWindow] | None = None,
    ) -> None:
        self.shape, self.group = shape, group
        self.layout = PairLayout.from_shape(shape)
        self.remote = group.nodes.remote(group.rank)
        for_local, for_remote, for_outboxes = window_bytes(shape, group.nodes, group.rank)
        self._local = (window or group.local_window)(for_local)
        self._remote: RmaWindow | None = None
        self.wire = 0
        self._outbox: Any = outboxes(for_outboxes) if outboxes else zeros((for_outboxes,), np.uint8)
        warm_up([(wire.run_progress_thread, (int64,)), (wire.try_lock, (int64,)), (wire.unlock, (int64,))])
        if not group.nodes.single:
            self._remote = (remote or partial(remote_window, group))(for_remote)
            self.wire = self._remote.wire

    def fill(self, state: np.ndarray, starts: dict[int, int]) -> None:
        """Write the addresses of all peers' regions into a state."""
        me, nodes, shape = self.group.rank, self.group.nodes, self.shape

        def put(table: int, peer: int, value: int) -> None:
            state[starts[table] + peer] = value

        for p in range(self.group.world):
            stream = nodes.stream(me, p)
            put(words.T_STREAM_FIRST, p, stream.start)
            put(words.T_STREAM_END, p, stream.stop)
        local = dict(zip(sorted([me, *nodes.local(me)]), self._local.base))
        returns = local
        if shared_returns(nodes):
            assert self._remote is not None
            returns = self._remote.bases
        for p, base in local.items():
            put(words.T_RETURN_ROWS, p, returns[p])
            put(words.T_ROWS_BACK, p, returns[me])
            if p != me:
                region = base + local_region(shape, nodes, p, me)
                put(words.T_REGION_TO, p, region)
                put(words.T_OUT_RING, p, region + self.layout.ring)
                for table in (words.T_REGION_FROM, words.T_STREAM_FROM, words.T_LINE_FROM):
                    put(table, p, local[me] + local_region(shape, nodes, me, p))
        at = self._outbox.ctypes.data
        for p in self.remote:
            assert self._remote is not None
            put(words.T_REMOTE, p, 1)
            put(words.T_ROWS_BACK, p, self._remote.base)
            stream_from = region = self._remote.base + remote_region(shape, nodes, me, p)
            if (rail := nodes.rail(p, me)) != me:
                stream_from = self._remote.bases[rail] + remote_region(shape, nodes, rail, p)
            put(words.T_REGION_FROM, p, region)
            put(words.T_STREAM_FROM, p, stream_from)
            put(words.T_PUT_REGION, p, self._remote.shift[p] + remote_region(shape, nodes, p, me))
            put(words.T_PUT_RETURN_ROWS, p, self._remote.shift[p])
            put(words.T_REGION_TO, p, at)
            put(words.T_OUT_RING, p, at + self.layout.ring)
            end = at + self.layout.outbox_bytes(nodes, me, p)
            staged = end - self.layout.staged_bytes if nodes.levels == 1 else stream_from + self.layout.staged
            line = (end if nodes.levels == 2 else staged) - CODED_BYTES - LINE
            put(words.T_LINE_FROM, p, line)
            put(words.T_CODED, p, line + LINE)
            put(words.T_STAGED, p, staged)
            at = end
        if (window := self._remote) is not None:

            def bells(rank: int) -> int:  # bytes from the start of a rank's window to its bells
                return remote_bytes(shape, nodes, rank) - bell_bytes(nodes, rank)

            fill_bells(
                state, starts, nodes, me, at, lambda p: window.bases[p] + bells(p), lambda p: window.shift[p] + bells(p)
            )

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's windows and outboxes."""
        remote = 0 if self._remote is None else self._remote.nbytes
        return self._local.nbytes + remote + int(self._outbox.size)

    @property
    def calling(self) -> Calling | None:
        """The function that says for which peer MPI is called now; None without remote peers."""
        return None if self._remote is None else self._remote.calling

    def in_call(self, yes: bool) -> None:
        """Set whether the workers themselves let MPI make progress."""
        if self._remote is not None:
            self._remote.in_call(yes)

    def close(self) -> None:
        """Free windows and outboxes; collective."""
        self._local.close()
        if self._remote is not None:
            self._remote.close()

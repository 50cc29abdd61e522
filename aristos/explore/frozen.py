"""A cluster's state saved and restored, for the search over states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import landing
from .private_state import Host, Private
from .stretches import Stretches

DICTS = ("value", "writes", "reads", "released", "returned", "full", "holders")  # fields changed in place


@dataclass(frozen=True)
class Frozen:
    """A saved cluster, with its actors at their next operations."""

    dicts: tuple[Any, ...]
    network: tuple[Any, ...]
    clocks: tuple[Any, ...]
    runs: Any
    credit: dict[tuple[int, int], int]
    ranks: tuple[Private, ...]
    hosts: tuple[Host, ...]
    actors: tuple[tuple[Any, ...], ...]
    stretches: tuple[tuple[Private | Host, bytes, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, cluster: Stretches) -> Frozen:
        memory = cluster.memory
        return cls(
            tuple(getattr(memory, name).copy() for name in DICTS),
            tuple(getattr(cluster.network, name).copy() for name in landing.DICTS),
            tuple(memory.clocks),
            cluster.checks.runs.copy(),
            cluster.checks.credit.copy(),
            tuple(Private.of(rank) for rank in cluster.ranks),
            tuple(Host.of(rank) for rank in cluster.ranks),
            tuple((a.enabled, a.done, a.op, a.at, dict(a.seen), a.fresh, a.flushing) for a in cluster.sched.actors),
            tuple((start, digest, tuple(log)) for start, digest, log in cluster.stretches),
        )

    def restore(self, cluster: Stretches) -> None:
        """Restore the cluster, whose actors must be rebuilt afterwards."""
        memory = cluster.memory
        for name, kept in zip(DICTS, self.dicts):
            setattr(memory, name, kept.copy())
        for name, kept in zip(landing.DICTS, self.network):
            setattr(cluster.network, name, kept.copy())
        memory.clocks = list(self.clocks)
        cluster.checks.runs, cluster.checks.credit = self.runs.copy(), self.credit.copy()
        cluster.share_network()
        for rank, private, host in zip(cluster.ranks, self.ranks, self.hosts):
            private.restore(rank)
            host.restore(rank)
        cluster.sched.current = None
        cluster.sched.kill()
        for actor, (enabled, done, op, at, seen, fresh, flushing) in zip(cluster.sched.actors, self.actors):
            actor.enabled, actor.done, actor.op, actor.at = enabled, done, op, at
            actor.seen, actor.fresh, actor.flushing, actor.greenlet = dict(seen), fresh, flushing, None
        cluster.stretches = [(start, digest, list(log)) for start, digest, log in self.stretches]

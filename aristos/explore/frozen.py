"""A cluster's state saved and restored, for the search over states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import landing
from .private_state import Host, Private
from .rank import Rank
from .stretches import Log, Stretches

MEMORY = ("value", "writes", "reads", "released", "returned", "full", "holders", "clocks")
CHECKS = ("runs", "credit")
CHANGING = dict, list, set  # types of values that are changed in place
ACTOR = ("enabled", "done", "op", "at", "seen", "fresh", "flushing")


@dataclass(frozen=True)
class Frozen:
    """A saved cluster, with its actors at their next operations. fields: (object, name of its field, value)."""

    fields: list[tuple[Any, str, Any]]
    ranks: list[tuple[Rank, Private | Host]]
    stretches: list[tuple[Private | Host, bytes, Log]]

    @classmethod
    def from_cluster(cls, cluster: Stretches) -> Frozen:
        owners: list[tuple[Any, Iterable[str]]] = [
            (cluster.memory, MEMORY),
            (cluster.network, landing.DICTS),
            (cluster.checks, CHECKS),
            *((actor, ACTOR) for actor in cluster.sched.actors),
        ]
        return cls(
            [(owner, name, _copied(getattr(owner, name))) for owner, names in owners for name in names],
            [(rank, kind.from_rank(rank)) for rank in cluster.ranks for kind in (Private, Host)],
            [(start, digest, log[:]) for start, digest, log in cluster.stretches],
        )

    def restore(self, cluster: Stretches) -> None:
        """Restore the cluster, whose actors must be rebuilt afterwards."""
        cluster.sched.current = None
        cluster.sched.kill()
        for actor in cluster.sched.actors:
            actor.greenlet = None
        for owner, name, kept in self.fields:
            setattr(owner, name, _copied(kept))
        cluster.share_network()
        for rank, state in self.ranks:
            state.restore(rank)
        cluster.stretches = [(start, digest, log[:]) for start, digest, log in self.stretches]


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, CHANGING) else value

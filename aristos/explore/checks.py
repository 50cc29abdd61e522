"""Checks of a run, other than for races: no row is lost, doubled or early, and nothing grows without bound."""

from __future__ import annotations

from collections import Counter

from ..engine import words
from ..engine.layout import ring_of
from . import experts
from .rank import Rank
from .regions import WORDS
from .surroundings import Surroundings
from .violation import Deadlock, Unbounded, WrongResult


class Checks:
    """The checks of one cluster, called as it runs."""

    def __init__(self, cluster: Surroundings[Rank]) -> None:
        self.cluster = cluster
        self.credit: dict[tuple[int, int], int] = {}  # (owner, source): the credit that the owner has given
        self.runs: Counter[tuple[int, tuple[int, ...], int]] = Counter()  # (weights, row, share): how often computed

    # ---- while it runs

    def word(self, me: int, peer: int, word: int, old: int, new: int) -> None:
        """Check a word that rank `me` has released for `peer`."""
        cluster = self.cluster
        mine = cluster.ranks[me]
        if new < old and word not in (words.AT_PROGRESS, words.POISON):
            raise Unbounded(f"rank {me} moves its word {WORDS[word]} for rank {peer} back from {old} to {new}")
        if word == words.CREDIT:
            if new > mine.table(words.T_READ_ROWS, peer):
                raise Unbounded(f"rank {me} gives rank {peer} credit for rows that it has not read")
            before, ring = self.least_credit(me, peer), int(ring_of(mine.job, mine.st, peer))
            self.credit[me, peer] = new
            cluster.memory.free_rows(me, peer, before, self.least_credit(me, peer), ring)
        elif word == words.TAIL:
            ring = int(ring_of(mine.job, mine.st, peer))
            for owner in cluster.case.nodes.stream(me, peer):
                under_way = mine.table(words.T_SENT_ROWS, peer) - cluster.ranks[owner].table(words.T_FREED_ROWS, me)
                if under_way > ring:
                    raise Unbounded(f"rank {me} has {under_way} rows in its ring of {ring} that rank {owner} reads")
                due = mine.table(words.T_DUE_TILES, owner) - mine.table(words.T_SEEN_TILES, owner)
                if due > ring + mine.call.exchange:
                    raise Unbounded(f"rank {owner} owes rank {me} {due} tiles, more than there are ring rows")

    def least_credit(self, owner: int, source: int) -> int:
        """The least credit that the ranks which read a stream together with `owner` have given its source."""
        nodes, start = self.cluster.case.nodes, self.cluster.case.start
        together = nodes.readers(owner) if source in nodes.remote(owner) else (owner,)
        return min(self.credit.get((rank, source), start) for rank in together)

    def count(self, weights: int, row: list[int], share: int) -> None:
        """Count that an expert computed a row (share -1), or one share of the row."""
        key = weights, tuple(row), share
        self.runs[key] += 1
        if self.runs[key] > 1:
            raise WrongResult(f"rank {self.cluster.memory.rank} computes row {row} twice for one expert")

    def epoch(self, opening: Rank) -> None:
        """Check that no rank is more than one call ahead of another."""
        least = min(r.epoch for r in self.cluster.ranks if r.stage != "gone")
        if opening.epoch > least + 1:
            raise WrongResult(f"rank {opening.me} opens call {opening.epoch} while a rank is still in call {least}")

    def closed(self, rank: Rank) -> None:
        """Check that a call which ended on `rank` computed all rows for its experts and combined all its tokens."""
        call = rank.call
        if call.broken:
            return
        if sorted(rank.output) != list(range(len(call.ids))):
            done = f"only tokens {sorted(rank.output)} of {len(call.ids)} combined"
            raise WrongResult(f"call {rank.epoch} ends on rank {rank.me} with {done}")
        if call.exchange:
            return
        for source in self.cluster.ranks:
            theirs = source.calls[rank.epoch - 1]
            rows = Counter(expert for ids in theirs.ids for expert in ids)
            for token, ids in enumerate(theirs.ids):
                row = tuple(source.row(rank.epoch, token))
                for expert in ids:
                    owner = int(rank.placement.ranks[expert])
                    if expert >= 0 and self.cluster.case.computes(source.me, owner, rows[expert]) == rank.me:
                        weights = rank.weights_of(expert, call.layer)
                        if not self.runs[weights, row, -1] and not self.runs[weights, row, case_share(row)]:
                            raise WrongResult(
                                f"call {rank.epoch} ends on rank {rank.me} before token {token} of rank {source.me}"
                                " is computed"
                            )

    # ---- checks when no actor can go on, and at the end

    def after_a_failure(self, held: set[int]) -> None:
        """Check that no rank keeps waiting after a rank has failed and poisoned its peers.

        held: ranks inside a call of MPI.
        """
        ranks = self.cluster.ranks
        failed = [r for r in ranks if r.stage in ("failed", "notified")]
        waiting = [r for r in ranks if r.stage == "notified" or (r.stage == "work" and r.me not in held)]
        if failed and waiting:
            raise Deadlock(
                f"rank {waiting[0].me} waits although rank {failed[0].me} has failed\n{self.cluster.describe()}"
            )

    def poison_read(self, rank: Rank, forwarder: int, epoch: int, origin: int, cause: int) -> None:
        """Check that poison which `rank` read from `forwarder` names a failed rank, its cause and the right call."""
        ranks = self.cluster.ranks
        known = 0 <= origin < len(ranks) and ranks[origin].lost
        if not known or (epoch, origin) not in ranks[forwarder].poisons:
            raise WrongResult(
                f"rank {rank.me} in call {rank.epoch} reads from rank {forwarder} in call {ranks[forwarder].epoch}"
                f" that rank {origin} failed in call {epoch}, which is wrong poison"
            )
        if cause not in ranks[origin].causes:
            why = sorted(ranks[origin].causes)
            raise WrongResult(
                f"rank {rank.me} reads that rank {origin} failed for cause {cause}, but the causes were {why}"
            )

    def at_end(self) -> None:
        """Check that the result of every call that ended normally equals the reference."""
        for rank in self.cluster.ranks:
            if self.cluster.case.fault is None and len(rank.outputs) != len(rank.calls):
                raise WrongResult(f"rank {rank.me} ends after {len(rank.outputs)} of {len(rank.calls)} calls")
            for epoch, (call, output) in enumerate(zip(rank.calls, rank.outputs), 1):
                if not call.broken and output != rank.reference(epoch, call):
                    raise WrongResult(
                        f"call {epoch} of rank {rank.me} has the outputs {output}, not {rank.reference(epoch, call)}"
                    )


def case_share(row: tuple[int, ...]) -> int:
    """The number of the last share of a row in a column-split run."""
    return experts.SHARES + len(row) - 1

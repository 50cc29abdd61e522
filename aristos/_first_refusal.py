"""One rank refuses its input: every rank raises, and the others say which rank it was."""

from __future__ import annotations

from .errors import AristosError, PeerInputError


def raise_first(problem: Exception | None, reported: list[str | None], did: str) -> None:
    """Raise this rank's problem, else PeerInputError for the first rank that has reported one.

    did: what a rank with a problem did, for the message.
    """
    if isinstance(problem, AristosError):
        problem.on_all_ranks = True
    if problem is not None:
        raise problem
    for rank, error in enumerate(reported):
        if error is not None:
            raise PeerInputError(f"rank {rank} {did}: {error}")

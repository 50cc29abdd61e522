"""What the router of a call has decided, for the caller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Routing:
    """The routing of one call on one rank. Its arrays belong to the caller: later calls neither change nor read them.

    Columns are the router's: experts, then identity experts.

    Attributes
    ----------
    ids : array [..., k], int64
        The chosen experts, best first. -1: a choice not taken, or one beyond the capacity.
    weights : array [..., k], float32
        The factors of the experts' outputs, or of the tokens with weight_on="input".
    logits : array [..., columns], float32, or None
        Router scores, with the router's bias. None if the call brought its ids.
    counts : array [columns], int64
        Choices of each expert by this rank's tokens, those beyond the capacity included.
    dropped : int
        How many choices were beyond the capacity.
    chosen : array [..., k], int64
        `ids` with the choices beyond the capacity.
    """

    ids: np.ndarray
    weights: np.ndarray
    logits: np.ndarray | None
    counts: np.ndarray
    dropped: int
    chosen: np.ndarray

    def copy(self) -> Routing:
        """A copy with new arrays."""
        logits = None if self.logits is None else self.logits.copy()
        arrays = (self.ids.copy(), self.weights.copy(), logits, self.counts.copy())
        return Routing(*arrays, self.dropped, self.chosen.copy())


def routing_of(ids: np.ndarray, weights: np.ndarray, logits: np.ndarray | None, columns: int) -> Routing:
    """A `Routing` from the engine's arrays. ids: [..., k], -2 - id for a choice of `id` beyond the capacity."""
    beyond = ids < -1
    chosen = np.where(beyond, -2 - ids, ids)
    return Routing(
        ids=np.where(beyond, -1, ids),
        weights=np.array(weights),
        logits=logits,
        counts=np.bincount(chosen[chosen >= 0], minlength=columns),
        dropped=int(beyond.sum()),
        chosen=chosen,
    )

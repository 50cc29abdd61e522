"""The counters in a rank's state: counters of workers, and tables with an entry for each peer."""

from __future__ import annotations

import numpy as np

from ..engine import words


class Tables:
    """Finds counters in a copy of a state's words from T_COUNTERS on. The counters count one call, or several."""

    def __init__(self, starts: dict[int, int], workers: int, world: int) -> None:
        self.first = starts[words.T_COUNTERS]
        self._starts = {name: start - self.first for name, start in starts.items() if start >= self.first}
        self.workers, self.world = workers, world

    def counters(self, counted: np.ndarray) -> np.ndarray:
        """[COUNTER_WORDS] summed over workers."""
        return counted[: self.workers * words.COUNTER_WORDS].reshape(self.workers, -1).sum(0)

    def peers(self, counted: np.ndarray, name: int) -> np.ndarray:
        """[W] the table with this name, which has an entry for each peer."""
        return counted[self._starts[name] :][: self.world]

    def wait(self, counted: np.ndarray, rank: int) -> np.ndarray:
        """[W] seconds waited for each peer; zero for the rank itself, whose idle time is not a wait."""
        seconds = self.peers(counted, words.T_PEER_WAIT) * 1e-9
        seconds[rank] = 0.0
        return seconds

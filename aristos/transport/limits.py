"""The two limits of waits, and the names of the parameters that set them."""

from __future__ import annotations

from typing import NamedTuple

from ..config import OVERDUE

TIMEOUT, ABSENT = "timeout", "absent_timeout"


class Limits(NamedTuple):
    """Limits of waits in seconds.

    timeout: for a rank in the same call that makes no progress, and for MPI calls that all ranks have reached. absent:
    for a rank that is still in user code, or compiles.
    """

    timeout: float = 120.0
    absent: float = 120.0 * OVERDUE

    @classmethod
    def from_seconds(cls, timeout: float, absent: float | None = None) -> Limits:
        """Limits from the values of a user. absent: None for OVERDUE times the timeout."""
        return cls(timeout, OVERDUE * timeout if absent is None else absent)

    def union(self, other: Limits) -> Limits:
        """For each limit the larger value of this object and `other`."""
        return Limits(max(self.timeout, other.timeout), max(self.absent, other.absent))


DEFAULT = Limits()

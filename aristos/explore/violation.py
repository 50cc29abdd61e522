"""The findings of an exploration."""

from __future__ import annotations


class Violation(Exception):
    """An invariant of the protocol does not hold in this schedule."""


class Race(Violation):
    """Two accesses to one word that nothing orders."""


class SecondWriter(Violation):
    """A word has a second writing rank, or a return row is written twice in a call."""


class WrongSide(Violation):
    """A GPU's block touches memory that only the host reaches, or a host thread memory that only the GPU reaches."""


class OutOfBounds(Violation):
    """An access where nothing lies: by an address that was never written, or past the end of a window."""


class RingError(Violation):
    """A ring row is rewritten before its credit, or read after its free."""


class Deadlock(Violation):
    """No actor can go on, and calls are open."""


class Livelock(Violation):
    """The actors keep running, and calls do not end."""


class TooLong(Violation):
    """A schedule takes more steps than the one that it should shorten: it ends here and shows nothing."""


class WrongResult(Violation):
    """A row is computed or combined twice, never, or wrongly; a call ends early."""


class Unbounded(Violation):
    """More rows or tiles are under way than the rings hold."""


class Aborted(Exception):
    """The watchdog has ended the job, as it should."""


class Crash(Violation):
    """A step raised an exception."""

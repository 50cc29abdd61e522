"""What an exploration can find."""

from __future__ import annotations


class Violation(Exception):
    """An invariant of the protocol does not hold in this schedule."""


class Race(Violation):
    """Two accesses to one word that nothing orders."""


class SecondWriter(Violation):
    """A word has a second writing rank, or a return row is written twice in a call."""


class WrongSide(Violation):
    """A card's block touches what only the host reaches, or the host's thread what only the card does."""


class OutOfBounds(Violation):
    """An access where nothing lies: by an address that was never written, or past the end of a window."""


class RingError(Violation):
    """A ring row is rewritten before its credit, or read after its free."""


class Deadlock(Violation):
    """No actor can go on, and calls are open."""


class Livelock(Violation):
    """The actors go on and on, and calls do not end."""


class WrongResult(Violation):
    """A row is computed or combined twice, never, or wrongly; a call ends early."""


class Unbounded(Violation):
    """More is under way than the rings hold."""


class Aborted(Exception):
    """The watchdog has ended the job, as it should."""


class Crash(Violation):
    """A step raised an exception."""

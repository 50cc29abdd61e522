"""The errors that an exploration can find."""

from __future__ import annotations


class Violation(Exception):
    """An invariant of the protocol does not hold in this schedule."""


class Race(Violation):
    """Two accesses to one word have no order."""


class SecondWriter(Violation):
    """A second rank writes a word, or a return row is written twice in a call."""


class WrongSide(Violation):
    """A GPU's block touches memory that only the host reaches, or a host thread touches the GPU's memory."""


class OutOfBounds(Violation):
    """An access is outside all memory: the steps got an address that was never filled in, or one past the end of a
    window."""


class RingError(Violation):
    """A ring row is rewritten before its credit, or read after its free."""


class Deadlock(Violation):
    """No actor can go on although calls are open."""


class Livelock(Violation):
    """The actors keep running, but calls do not end."""


class TooLong(Violation):
    """A schedule takes more steps than the schedule that it should shorten. It is ended and shows nothing."""


class WrongResult(Violation):
    """A row is computed or combined twice, never, or wrongly; a call ends early."""


class Unbounded(Violation):
    """More rows or tiles are under way than the rings hold."""


class Aborted(Exception):
    """The watchdog has ended the job. That is the right behaviour, not a violation."""


class Crash(Violation):
    """A step raised an exception."""

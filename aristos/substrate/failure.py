"""How an engine fails: limits of waits, errors and their messages, and the one path that notifies every rank.

The first error of a rank is the reason why the engine is unusable. Peers are notified of it once, and the job ends when
the process exits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine import arrivals, bounds, codes, words
from ..engine.layout import word_from
from ..errors import CorruptionError, PoisonedError, WaitTimeout
from ..primitives.memory import load_acquire
from ..transport.group import Group
from ..transport.limits import ABSENT, TIMEOUT, Limits
from ..transport.warning import warn
from ..transport.watchdog import ENDED_SECONDS

CAUSES = {
    codes.CAUSE_TIMEOUT: "a wait took longer than its limit",
    codes.CAUSE_INTERRUPT: "it was interrupted",
    codes.CAUSE_ERROR: "it failed",
    codes.CAUSE_OUT_OF_BOUNDS: "a word that it read was damaged",
}


def cause_of(error: BaseException) -> int:
    """The cause that peers read in the poison word. A PoisonedError keeps the cause of the rank that failed first."""
    if isinstance(error, WaitTimeout):
        return codes.CAUSE_TIMEOUT
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return codes.CAUSE_INTERRUPT
    if isinstance(error, CorruptionError):
        return codes.CAUSE_OUT_OF_BOUNDS
    return getattr(error, "cause", codes.CAUSE_ERROR)


def _also(known: str) -> str:
    """The end of a message: the clause `known`, which says what else is known, or nothing if `known` is empty."""
    return f"; {known}" if known else ""


def poisoned(
    rank: int, origin: int, epoch: int, cause: int, reporter: int | None = None, known: str = ""
) -> PoisonedError:
    """The error of a rank that has read poison.

    reporter: the peer that the poison came from, if known. known: which ranks have ended or are stopped (Group.lost).
    """
    via = "" if reporter is None else f" (reported by rank {reporter})"
    error = PoisonedError(
        f"rank {rank}: rank {origin} gave up in epoch {epoch} because {CAUSES.get(cause, cause)}{via};"
        f" see the message of rank {origin}{_also(known)}"
    )
    error.origin, error.cause = origin, cause  # type: ignore[attr-defined]
    return error


def out_of_bounds(rank: int, epoch: int, peer: int, word: int, value: int, least: int, most: int) -> CorruptionError:
    """The error of a rank that has read, in a word of `peer`, a value that no rank writes. word: see `bounds.NAMES`."""
    wanted = f"{least} to {most}" if least < most else f"{least}"
    return CorruptionError(
        f"rank {rank} in epoch {epoch} expected {wanted} from rank {peer} as {bounds.NAMES[word]}, got {value}: a stray"
        " write or the hardware has damaged memory that the ranks share. Find out what else writes there, start again"
        " from the last checkpoint, and see docs/reliability.md"
    )


def damaged_poison(rank: int, world: int, epoch: int, peer: int, origin: int, cause: int) -> CorruptionError | None:
    """The error for poison with a cause or an origin that no rank writes; None if both are possible.

    This is the rule of `bounds.poison`, for poison that the host reads.
    """
    least, most, last = bounds.poison_limits(world)
    if not least <= cause <= most:
        return out_of_bounds(rank, epoch, peer, bounds.POISON_CAUSE, cause, least, most)
    if not 0 <= origin <= last:
        return out_of_bounds(rank, epoch, peer, bounds.POISON_ORIGIN, origin, 0, last)
    return None


def bad_word(rank: int, epoch: int, state: np.ndarray) -> CorruptionError:
    """The error of `out_of_bounds` for the word that a step has found out of bounds, see `bounds.within`."""
    found = (words.BAD_PEER, words.BAD_WORD, words.BAD_VALUE, words.BAD_LEAST, words.BAD_MOST)
    return out_of_bounds(rank, epoch, *(int(state[word]) for word in found))


def wait_message(
    rank: int,
    peer: int,
    epoch: int,
    *,
    waited: str,
    name: str,
    owed: tuple[Any, ...],
    seen: tuple[int, int],
    gone: bool = False,
    rail: int,
) -> str:
    """The message of a wait that was given up.

    waited: a text that says how long the wait lasted, and its limit. name: the parameter that sets the limit. owed:
    what the peer still owes, see `arrivals.standing`. seen: the (epoch, progress) that the peer published last. gone:
    whether the peer's process has ended. rail: the rank at which the peer's rows for this rank lie, see `Nodes.rail`.
    """
    if peer == rank:
        return f"rank {rank}: none of this rank's workers made progress for {waited} in epoch {epoch}"
    announced, left, read, returned, sent = map(int, owed)
    at = "" if rail == rank else f", which rank {peer} puts at rank {rail}"
    if announced == codes.UNANNOUNCED:
        what = f"its announcement of epoch {epoch}{at}"
    elif left > 0:
        what = f"{left} row{'s'[: left != 1]} that rank {peer} announced, from tile {read} on{at}"
    elif returned == sent:
        what = f"the staged outputs of rank {peer}, from which sums are computed"
    else:
        what = f"the outputs of tile {returned} (tiles 0 to {sent - 1} were sent)"
    where = "outside a call" if seen[1] < 0 else f"after {seen[1]} command{'s'[: seen[1] != 1]}"
    remedy = f"see the output of rank {peer}{'' if gone else f', or raise {name}='}"
    return (
        f"rank {rank} waited {waited} for rank {peer} in epoch {epoch} and still needs {what}; rank {peer} was last"
        f" seen in epoch {seen[0]}, {where}; {remedy}"
    )


class Failure:
    """Whether and why one engine has failed. reason: why it is unusable, or None."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._lock = threading.Lock()
        self.reason: str | None = None

    def record(self, error: BaseException, why: str, notify: Callable[[int, int], None], shared: bool = False) -> None:
        """Keep the first error and notify peers of it, once.

        why: what happened, for the message that is printed if the job ends for this reason. notify: called with
        (origin, cause) of the poison. shared: whether the other ranks have the error too, so that the job need not end.
        The user's thread and the thread of `start` may both call this; the second one waits until peers have been
        notified.
        """
        with self._lock:
            if self.reason is not None:
                return
            self.reason = f"{type(error).__name__}: {error}"
            if not shared:
                self._group.abort_at_exit(f"{why} ({self.reason})")
            notify(getattr(error, "origin", self._group.rank), cause_of(error))

    def cannot_make(self, error: BaseException, part: bool = False) -> None:
        """Leave a collective that makes an object, because of an error. Ranks that wait in the collective raise too.

        If every rank has this error, no rank waits, and none is notified. part: whether this group is one of several
        groups of a plan. If it is, ranks of the other groups may wait even if every rank of this group has the error.
        """
        shared = getattr(error, "on_all_ranks", False)
        if part or not shared:
            self.record(error, "it could not make a layer", lambda origin, cause: self._group.fail(error), shared)


class Patience:
    """Bounds the waits in a call whose steps the host runs: raises WaitTimeout if the awaited rank makes no progress.

    A peer inside the call must make progress within `timeout` seconds. A peer in user code causes a warning after that
    time, and the error after `absent_timeout`. `engine.timeout_check` has the same rule for a kernel. A peer whose
    process has ended is given up after ENDED_SECONDS.
    """

    def __init__(
        self,
        rank: int,
        epoch: int,
        job: np.ndarray,
        state: np.ndarray,
        limits: Limits,
        known: Callable[[], str] = str,
        ended: Callable[[int], bool] = lambda peer: False,
        rail: Callable[[int, int], int] = lambda source, rank: rank,
    ) -> None:
        """known, ended: functions like Group.lost and Group.has_ended. rail: see `Nodes.rail`."""
        self.known, self.ended, self.rail, self.gone = known, ended, rail, False
        self.rank, self.epoch, self.job, self.state, self.limits = rank, epoch, job, state, limits
        self.seen: Any = None
        self.since = time.monotonic()
        self.warned = False

    def check(self) -> None:
        """Check the wait after each slice of compiled code in which the call did not end."""
        peer, done, owed = arrivals.standing(self.job, self.state)
        peer, done = int(peer), int(done)
        epoch, progress = self._published(peer)
        now = time.monotonic()
        seen = (done, peer, epoch, progress)
        if seen != self.seen:
            self.seen, self.since, self.warned, self.gone = seen, now, False, False
            return
        waited = now - self.since
        # a peer that has ended counts as gone one slice later: that slice still reads what the peer wrote before
        gone, self.gone = self.gone, waited >= ENDED_SECONDS and self.ended(peer)
        if waited < min(self.limits) and not gone:
            return
        combining = self.job[words.MODE] == codes.MODE_COMBINE
        # between the phases of an exchange a remote peer cannot publish that it has left the call
        silent = combining and self.state[words.remote(self.job, peer)] != 0
        inside = progress >= 0 and epoch == self.epoch and not silent
        within = inside or peer == self.rank
        name, limit = (TIMEOUT, self.limits.timeout) if within else (ABSENT, self.limits.absent)
        if gone or waited >= limit:
            raise WaitTimeout(
                wait_message(
                    self.rank,
                    peer,
                    self.epoch,
                    waited=f"{waited:.1f} s ({name} {limit:g} s)",
                    name=name,
                    owed=owed,
                    seen=(epoch, progress),
                    gone=gone,
                    rail=self.rail(peer, self.rank),
                )
                + _also(self.known())
            )
        if not within and not self.warned and waited >= self.limits.timeout:
            self.warned = True
            warn(
                f"rank {self.rank} has waited {waited:.3g} s for rank {peer}, which has not"
                f" {'combined' if combining else 'made its call'} in epoch {self.epoch} yet;"
                f" rank {self.rank} gives up after {self.limits.absent:g} s ({ABSENT})"
            )

    def _published(self, peer: int) -> tuple[int, int]:
        """The (epoch, progress) that a peer published last."""
        if peer == self.rank:
            return self.epoch, 0
        progress = load_acquire(int(word_from(self.job, self.state, peer, words.AT_PROGRESS)))
        return load_acquire(int(word_from(self.job, self.state, peer, words.AT_EPOCH))), progress

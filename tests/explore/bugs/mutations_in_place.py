"""Deliberate bugs in experts in place: rows that stay, weights that peers read, loads. The explorer must find each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aristos.engine import arrivals, column_runs, layout, packing, steps, words
from aristos.explore import rank
from aristos.explore.mutation import Put, mutation
from aristos.primitives import memory

STAY = (("stay", 1), ("placement", (0, 1)), ("workers", 1))
TWO = (("stay", 1), ("placement", (0, 0, 1, 1)), ("workers", 1), ("max_tokens", 6))


WITHIN: dict[str, Any] = {"fixed": STAY, "calls": 5, "plain": False, "kind": "fine"}  # with exchanges


def admit_all(job: Any, st: Any) -> None:
    """Admit the rows that stay, for every local peer."""
    for peer in range(job[words.WORLD]):
        arrivals.admit_staying(job, st, peer)


@mutation("stay-before-announcement", fixed=STAY, calls=3)
def stay_before_announcement(put: Put) -> None:
    """Rows that stay may run before the holder of their expert has announced the call."""
    real = packing.set_streams

    def set_streams(job: Any, st: Any) -> None:
        real(job, st)
        admit_all(job, st)

    put(packing, "set_streams", set_streams)
    put(arrivals, "admit_staying", lambda job, st, owner: None)


@mutation(
    "stay-after-any-announcement", ranks=3, fixed=(("stay", 1), ("placement", (0, 1, 2)), ("workers", 1)), calls=3
)
def stay_after_any_announcement(put: Put) -> None:
    """The announcement of one local peer admits the rows that stay for all local peers."""
    real = arrivals.admit_staying
    put(arrivals, "admit_staying", lambda job, st, owner: [real(job, st, p) for p in range(job[words.WORLD])])


@mutation("load-without-wait", fixed=STAY, calls=3)
def load_without_wait(put: Put) -> None:
    """A rank loads weights while its local peers may read them."""
    put(rank.Rank, "await_readers", lambda self: None)


@mutation("load-after-the-call-before", fixed=STAY, calls=4)
def load_after_the_call_before(put: Put) -> None:
    """A rank that loads waits only for the call before the last one."""

    def await_readers(self: Any) -> None:
        self.epoch -= 1
        real(self)
        self.epoch += 1

    real = rank.Rank.await_readers
    put(rank.Rank, "await_readers", await_readers)


@mutation("load-in-a-call-too-early", **WITHIN)
def load_in_a_call_too_early(put: Put) -> None:
    """A rank that loads while another object's call is open does not wait for the last call before the open one."""
    put(rank.Rank, "await_readers", waiting_for(-1))


@mutation("load-in-a-call-waits-for-it", **WITHIN)
def load_in_a_call_waits_for_it(put: Put) -> None:
    """A rank that loads while another object's call is open waits until its local peers have ended that call."""
    put(rank.Rank, "await_readers", waiting_for(1))


def waiting_for(more: int) -> Callable[[Any], None]:
    """An `await_readers` that waits for `more` further calls (fewer if negative) while a call is open."""
    real = rank.Rank.await_readers

    def await_readers(self: Any) -> None:
        wrong = more if self.stage == "load" else 0
        self.epoch += wrong
        real(self)
        self.epoch -= wrong

    return await_readers


@mutation("ended-at-the-start", fixed=STAY, calls=3)
def ended_at_the_start(put: Put) -> None:
    """A rank publishes that a call has ended when it announces it."""
    real = packing.announce

    def announce(job: Any, st: Any) -> None:
        real(job, st)
        steps.end(job, st)

    put(packing, "announce", announce)


@mutation("ended-by-plain-store", fixed=STAY, calls=3)
def ended_by_plain_store(put: Put) -> None:
    """The word ENDED is written by a plain store."""

    def end(job: Any, st: Any) -> None:
        for p in range(job[words.WORLD]):
            if p != job[words.RANK]:
                memory.store(layout.word_to(job, st, p, words.ENDED), job[words.EPOCH])

    put(steps, "end", end)


@mutation("stay-and-travel", fixed=STAY)
def stay_and_travel(put: Put) -> None:
    """Rows that stay are announced and sent too."""
    real = packing.write_announcement

    def write_announcement(job: Any, st: Any, p: int) -> None:
        real(job, st, p)
        a = layout.announcement_to(job, st, p, job[words.EPOCH])
        memory.store(words.announced_rows(a), st[words.rows_to(job, p)])

    put(packing, "write_announcement", write_announcement)


@mutation("stay-not-owed", fixed=STAY)
def stay_not_owed(put: Put) -> None:
    """A call does not wait for the rows that stay."""
    real = packing.set_streams

    def set_streams(job: Any, st: Any) -> None:
        real(job, st)
        for expert in range(job[words.HELD], job[words.COMPUTED]):
            st[words.OWED] -= st[words.staying(job, expert)]

    put(packing, "set_streams", set_streams)


@mutation("stay-with-the-next-expert", fixed=TWO)
def stay_with_the_next_expert(put: Put) -> None:
    """Rows that stay are computed with the next expert's weights."""
    real = column_runs.weights_of

    def weights_of(job: Any, expert: int) -> Any:
        return real(job, expert + (job[words.HELD] <= expert < job[words.COMPUTED] - 1))

    put(column_runs, "weights_of", weights_of)


@mutation("stay-over-other-rows", fixed=TWO)
def stay_over_other_rows(put: Put) -> None:
    """Outputs of rows that stay overwrite places of rows that travel, or of own rows."""
    real = packing.sort

    def sort(job: Any, st: Any, tokens: int) -> None:
        real(job, st, tokens)
        for expert in range(job[words.HELD], job[words.COMPUTED]):
            if st[words.staying(job, expert)] and st[words.front(job, job[words.RANK], expert)]:
                st[words.front(job, job[words.RANK], expert)] -= 1

    put(packing, "sort", sort)


@mutation("stay-of-the-last-call", fixed=STAY, calls=3)
def stay_of_the_last_call(put: Put) -> None:
    """An announcement admits as many rows as stayed in the previous call."""
    real = arrivals.admit_staying
    before: dict[int, dict[int, int]] = {}

    def admit_staying(job: Any, st: Any, owner: int) -> None:
        now = {e: st[words.staying(job, e)] for e in range(job[words.HELD], job[words.COMPUTED])}
        for expert, rows in before.get(job[words.RANK], {}).items():
            st[words.staying(job, expert)] = rows
        real(job, st, owner)
        before[job[words.RANK]] = now

    put(arrivals, "admit_staying", admit_staying)


@mutation("end-with-unread-announcements", calls=4)
def end_with_unread_announcements(put: Put) -> None:
    """A call ends although an announcement is unread, so that its buffer may be written again too early."""

    def finished(job: Any, st: Any) -> bool:
        unread, st[words.UNREAD] = st[words.UNREAD], 0
        try:
            return real(job, st)
        finally:
            st[words.UNREAD] = unread

    real = steps.finished
    put(steps, "finished", finished)

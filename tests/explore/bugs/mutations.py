"""Deliberate bugs in the protocol, most of them for all transports. The explorer must find each.

The docstring of each is its description in `aristos explore --mutation ?`.
"""

from __future__ import annotations

from typing import Any

from aristos.engine import arrivals, codes, column_runs, dispatch, experts, layout, lock, packing, returns, steps, words
from aristos.explore import places, rank
from aristos.explore.cases import RankFault
from aristos.explore.mutation import NOWHERE, ONE_BY_ONE, Instead, Put, mutation
from aristos.primitives import memory


def releases_first() -> Instead:
    """A stand-in for `aristos.primitives.memory` that delays an actor's stores until after the actor's next release."""
    late: dict[int, list[tuple[int, int]]] = {}

    def mine() -> list[tuple[int, int]]:
        return late.setdefault(memory.store.__self__.me, [])  # type: ignore[attr-defined]  # a Memory's method

    def release(at: int, value: int) -> None:
        memory.store_release(at, value)
        while mine():
            memory.store(*mine().pop())

    return Instead(
        store=lambda at, value: mine().append((at, value)), notify=lambda at, value, nbytes: release(at, value)
    )


# ---- order within a source


@mutation("release-dropped")
def release_dropped(put: Put) -> None:
    """The tail is written by a plain store."""
    put(dispatch, "mem", Instead(notify=lambda at, value, nbytes: memory.store(at, value)))


@mutation("acquire-dropped")
def acquire_dropped(put: Put) -> None:
    """Announcements of peers are read by plain loads."""
    put(arrivals, "mem", Instead(arrived=lambda at: memory.load(at)))


@mutation("tail-before-record")
def tail_before_record(put: Put) -> None:
    """The tail is released before the record is put."""
    put(dispatch, "mem", releases_first())


@mutation("one-announcement-buffer")
def one_announcement_buffer(put: Put) -> None:
    """Announcements of all epochs share one buffer."""
    for module, name in ((packing, "announcement_to"), (arrivals, "announcement_from")):
        real = getattr(layout, name)
        put(module, name, lambda job, st, peer, epoch, real=real: real(job, st, peer, 0))


@mutation("count-in-first-record")
def count_in_first_record(put: Put) -> None:
    """A record that has landed counts as the announcement of this call."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        tail = memory.load_acquire(layout.word_from(job, st, source, words.TAIL))
        if tail <= st[words.read_tiles(job, source)]:
            return real(job, st, source)
        theirs = list(job)
        theirs[words.EPOCH] = memory.load_acquire(layout.word_from(job, st, source, words.ANNOUNCED))
        return real(theirs, st, source)

    put(arrivals, "read_announcement", read_announcement)


@mutation("zero-not-announced")
def zero_not_announced(put: Put) -> None:
    """No announcement goes to ranks that get no rows."""

    def word_to(job: Any, st: Any, peer: int, word: int) -> int:
        return layout.word_to(job, st, peer, word) if st[words.rows_to(job, peer)] else NOWHERE

    put(packing, "word_to", word_to)


@mutation("epoch-not-compared")
def epoch_not_compared(put: Put) -> None:
    """An announcement of any epoch counts as this call's."""

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        announced = memory.load_acquire(layout.word_from(job, st, source, words.ANNOUNCED))
        if announced == 0:
            return False
        theirs = list(job)
        theirs[words.EPOCH] = announced
        return real(theirs, st, source)

    real = arrivals.read_announcement
    put(arrivals, "read_announcement", read_announcement)


# ---- credit and rings


@mutation("credit-not-checked", fixed=(("rows", 2),))
def credit_not_checked(put: Put) -> None:
    """A source treats every ring row as freed."""
    put(dispatch, "freed", lambda job, st, peer: st[words.sent_rows(job, peer)])


@mutation("tiles-not-bounded", fixed=(("rows", 1), ("tile", 1), ("max_tokens", 6)))
def tiles_not_bounded(put: Put) -> None:
    """A source with credit sends although every record slot holds a tile whose return it has not seen."""
    put(dispatch, "returns_due", lambda job, st, owner: 0)


@mutation("credit-before-last-reader")
def credit_before_last_reader(put: Put) -> None:
    """Credit for a tile is given when its record is read."""
    real = arrivals.read_record

    def read_record(job: Any, st: Any, source: int) -> bool:
        fits = real(job, st, source)
        memory.store_release(layout.word_to(job, st, source, words.CREDIT), st[words.read_rows(job, source)])
        return fits

    put(arrivals, "read_record", read_record)


@mutation("freed-out-of-order", fixed=(*ONE_BY_ONE, ("workers", 2), ("merge", 0), ("placement", (0, 1, 1))))
def freed_out_of_order(put: Put) -> None:
    """A finished tile gives credit while an earlier one is still being read."""

    def free_rows(job: Any, st: Any, source: int) -> None:
        done = 0
        for tile in range(st[words.free_tiles(job, source)], st[words.read_tiles(job, source)]):
            r = words.landed(job, source, tile)
            done += st[words.landed_rows(r)] * (st[words.landed_left(r)] == 0)
        gone = st[words.free_tiles(job, source)]
        while gone < st[words.read_tiles(job, source)]:
            r = words.landed(job, source, gone)
            if st[words.landed_left(r)] != 0:
                break
            gone += 1
            done -= st[words.landed_rows(r)]
            st[words.freed_rows(job, source)] += st[words.landed_rows(r)]
        st[words.free_tiles(job, source)] = gone
        word = layout.word_to(job, st, source, words.CREDIT)
        memory.store_release(word, st[words.freed_rows(job, source)] + done)

    put(returns, "free_rows", free_rows)


@mutation("ring-wrap-off-by-one")
def ring_wrap_off_by_one(put: Put) -> None:
    """A ring of R rows wraps after R + 1 rows."""

    def ring_row_to(job: Any, st: Any, owner: int, row: int) -> int:
        return (
            st[words.region_to(job, owner)] + job[words.P_RING] + job[words.STRIDE] * (row % (job[words.RING_ROWS] + 1))
        )

    put(dispatch, "ring_row_to", ring_row_to)


@mutation("merge-wait-beyond-credit", fixed=(("merge", 8), ("rows", 2), ("tile", 1)))
def merge_wait_beyond_credit(put: Put) -> None:
    """A run of few rows waits for announced rows, even for those that no source has credit to send."""

    def choose(job: Any, st: Any) -> tuple[int, int]:
        chosen, active = -1, 0
        for expert in range(job[words.HELD]):
            rows, coming = st[words.expert_pending(job, expert)], st[words.expert_coming(job, expert)]
            active += rows > 0
            if rows and (rows >= job[words.MERGE_ROWS] or coming == 0):
                chosen = expert
        return chosen, active

    put(experts, "choose", choose)


# ---- what is computed, returned, combined, and when a call ends


@mutation("ends-without-owners-part")
def ends_without_owners_part(put: Put) -> None:
    """A call ends when the rank's own tokens are combined."""
    put(steps, "finished", lambda job, st: st[words.BLOCKS_LEFT] == 0 and st[words.UNSENT] == 0)


@mutation("first-phase-unsent", plain=False, fixed=(("meets", True), ("rows", 1), ("max_tokens", 6)))
def first_phase_unsent(put: Put) -> None:
    """An exchange's first phase ends while rows wait for credit: between the phases no worker sends them."""

    def finished(job: Any, st: Any) -> bool:
        return real(job, st) or (
            job[words.MODE] == codes.MODE_DISPATCH and st[words.UNREAD] == 0 and st[words.OWED] == 0
        )

    real = steps.finished
    put(steps, "finished", finished)


@mutation("rows-of-the-next-call")
def rows_of_the_next_call(put: Put) -> None:
    """Records are read up to the tail, not up to what this call's announcement covers."""

    def absorb(job: Any, st: Any, worker: int) -> bool:
        anything = False
        for p in range(job[words.WORLD]):
            if p == job[words.RANK]:
                continue
            if st[words.verdict(job, p)] == codes.UNANNOUNCED and arrivals.read_announcement(job, st, p):
                anything = True
            tail = memory.load_acquire(layout.word_from(job, st, p, words.TAIL))
            while st[words.read_tiles(job, p)] < tail and arrivals.read_record(job, st, p):
                anything = True
            if returns.returns_due(job, st, p) > 0 and arrivals.read_returns(job, st, worker, p):
                anything = True
        return anything

    put(arrivals, "absorb", absorb)


@mutation("returned-before-computed")
def returned_before_computed(put: Put) -> None:
    """A tile is returned when its record is read."""
    real = arrivals.read_record

    def read_record(job: Any, st: Any, source: int) -> bool:
        tile = st[words.read_tiles(job, source)]
        fits = real(job, st, source)
        r = words.landed(job, source, tile)
        returns.post_return(job, st, source, st[words.landed_packed(r)], st[words.landed_rows(r)], codes.OK, -1)
        st[words.returned(job, source)] -= 1
        return fits

    put(arrivals, "read_record", read_record)


@mutation("return-row-off-by-one")
def return_row_off_by_one(put: Put) -> None:
    """Outputs go one row before their place."""
    put(experts, "return_row", lambda job, st, source, row: layout.return_row(job, st, source, max(0, row - 1)))


@mutation("combined-early")
def combined_early(put: Put) -> None:
    """A block of tokens counts as complete one row too early."""
    real = packing.set_blocks

    def set_blocks(job: Any, st: Any, tokens: int) -> None:
        real(job, st, tokens)
        for b in range(st[words.BLOCKS_LEFT]):
            left = words.block_left(job, b)
            st[left] -= st[left] > 1

    put(packing, "set_blocks", set_blocks)


@mutation("ready-without-release", fixed=(("workers", 2),))
def ready_without_release(put: Put) -> None:
    """A block of tokens that is ready to combine is queued by a plain store."""

    def release(at: int, value: int) -> None:
        _, part, offset = places.where(at)
        own = part == places.PRIVATE and offset < places.AREA
        (memory.store if own else memory.store_release)(at, value)

    put(returns, "mem", Instead(store_release=release))


# ---- column-split runs

SPLIT = (("workers", 3), ("placement", (0, 1)))


def early(phase: int) -> Any:
    """A `column_runs.share_done` that ends a phase of a run one share too early."""

    def share_done(job: Any, st: Any, number: int) -> bool:
        run = words.run(job, number)
        base, up, down = st[words.run_base(run)], job[words.UP_SHARES], job[words.DOWN_SHARES]
        done = memory.fetch_add(layout.state_word(job, words.run_done(run)), 1) + 1 - base
        if done == up - (phase == codes.RUN_UP):
            column_runs.open_phase(job, run, base + up + down)
        return bool(done == up + down - (phase == codes.RUN_DOWN))

    return share_done


@mutation("second-phase-early", fixed=SPLIT)
def second_phase_early(put: Put) -> None:
    """A column-split run enters its second phase one share too early."""
    put(column_runs, "share_done", early(codes.RUN_UP))


@mutation("number-freed-early", fixed=(*SPLIT, ("words", 2)))
def number_freed_early(put: Put) -> None:
    """A column-split run ends, and its number is freed, before its last share is done."""
    put(column_runs, "share_done", early(codes.RUN_DOWN))


@mutation("share-taken-plainly", fixed=SPLIT)
def share_taken_plainly(put: Put) -> None:
    """A worker takes a share by a load and a store, not by compare-exchange."""

    def take(at: int, expected: int, value: int) -> bool:
        if memory.load(at) != expected:
            return False
        memory.store(at, value)
        return True

    put(column_runs, "mem", Instead(compare_exchange=take))


@mutation("opened-before-it-is-listed", fixed=SPLIT)
def opened_before_it_is_listed(put: Put) -> None:
    """Shares of a run can be taken before its rows are listed."""
    claim, open_run = column_runs.claim, column_runs.open_run

    def claim_open(job: Any, st: Any, worker: int, number: int) -> None:
        claim(job, st, worker, number)
        open_run(job, st, number)

    put(column_runs, "claim", claim_open)
    put(column_runs, "open_run", lambda job, st, number: None)


# ---- a rank's workers


@mutation("no-lock", fixed=(("workers", 2),))
def no_lock(put: Put) -> None:
    """Workers of a rank decide without the lock."""
    for module in (steps, lock):
        put(module, "lock", lambda job, holder: bool(memory.load_acquire(job[words.LOCK]) + 1))


@mutation("returned-in-part", fixed=(("group", 1), ("run", 2), ("tile", 3)))
def returned_in_part(put: Put) -> None:
    """A tile is returned with one row still to be computed."""

    def finish_record(job: Any, st: Any, source: int, tile: int, rows: int) -> None:
        left = words.landed_left(words.landed(job, source, tile))
        before = st[left]
        if before - rows == 1 and st[words.verdict(job, source)] == codes.SERVE:
            st[left], st[words.OWED] = rows, st[words.OWED] + 1
            real(job, st, source, tile, rows)
            st[words.OWED] -= 1
        elif before > 0:
            real(job, st, source, tile, rows)

    real = returns.finish_record
    put(experts, "finish_record", finish_record)


# ---- failures


@mutation("poison-not-forwarded", ranks=3, fixed=(("fault", RankFault(0, 1, 0, dies=0)),))
def poison_not_forwarded(put: Put) -> None:
    """A rank that reads poison fails and forwards nothing."""
    real = steps.poison

    def poison(job: Any, st: Any, origin: int, cause: int) -> None:
        if origin == job[words.RANK]:
            real(job, st, origin, cause)

    put(steps, "poison", poison)


@mutation("poison-not-read", faults=True)
def poison_not_read(put: Put) -> None:
    """A waiting rank does not check for poison."""
    put(arrivals, "poisoned", lambda job, st: -1)
    put(rank.Rank, "looked_everywhere", lambda self, actor: self.st[words.IDLE_SWEEPS] > rank.MERGE_POLLS)


@mutation("poison-checked-once")
def poison_checked_once(put: Put) -> None:
    """A waiting rank checks for poison only once."""
    real = arrivals.poisoned
    put(arrivals, "poisoned", lambda job, st: real(job, st) if st[words.IDLE_SWEEPS] == 32 else -1)


@mutation("poison-of-another-call", faults=True)
def poison_of_another_call(put: Put) -> None:
    """Poison names the call after the failed one."""
    real = steps.poison

    def poison(job: Any, st: Any, origin: int, cause: int) -> None:
        later = list(job)
        later[words.EPOCH] += 1
        real(later, st, origin, cause)

    put(steps, "poison", poison)


@mutation("poison-names-the-forwarder", ranks=3, faults=True)
def poison_names_the_forwarder(put: Put) -> None:
    """A rank that forwards poison names itself as the origin."""
    real = steps.poison
    put(steps, "poison", lambda job, st, origin, cause: real(job, st, job[words.RANK], cause))


@mutation("workers-not-notified", faults=True, fixed=(("workers", 2),))
def workers_not_notified(put: Put) -> None:
    """A rank that fails notifies its peers but not its own workers, which continue."""
    real = steps.poison

    def poison(job: Any, st: Any, origin: int, cause: int) -> None:
        before = st[words.FAILED]
        real(job, st, origin, cause)
        st[words.FAILED] = before

    put(steps, "poison", poison)

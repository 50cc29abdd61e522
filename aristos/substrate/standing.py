"""A text about an engine's state: where a call stands on this rank, and what it waits for.

The text is part of the error of a wait that was given up, and of reports of hangs. `attach.standing()` describes every
engine of the process; any thread may call it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernel_cache.texts import ranges

from ..engine import codes, words
from ..engine.layout import ring_of
from ..engine.lock import OUTSIDE
from ..engine.poison import failure_of
from ..engine.returns import returns_due
from ..engine.streams import end_slot
from .failure import CAUSES

PHASES = {
    codes.PHASE_ROUTE: "routing",
    codes.PHASE_PACKING: "packing",
    codes.PHASE_RUN: "running",
    codes.PHASE_DONE: "done",
}
STREAM = words.stream_first, words.stream_end
PRODUCTS = {codes.RUN_UP: "first product", codes.RUN_DOWN: "second product"}

Line = Callable[[int, int], int]  # (peer, word) -> the value that the peer last wrote into the word of its line


def describe(job: np.ndarray, state: np.ndarray, lock: int, line: Line) -> str:
    """The lines of the text. job: has the engine's part and EPOCH. lock: the value of the rank's lock."""
    me, world, epoch = (int(job[word]) for word in (words.RANK, words.WORLD, words.EPOCH))
    phase = PHASES.get(int(state[words.PHASE]), f"unknown phase {state[words.PHASE]}")
    found = [f"rank {me} of {world}, epoch {epoch}: {phase}, {state[words.PROGRESS]} commands published; {_held(lock)}"]
    if state[words.FAILED] != 0:
        found.append(f"  gave up because {CAUSES.get(int(state[words.FAILED]), state[words.FAILED])}")
    if phase == PHASES[codes.PHASE_RUN]:
        found.append(
            f"  left: {state[words.UNREAD]} announcements to read, {state[words.OWED]} announced rows to compute and"
            f" return, {state[words.UNSENT]} rows to send, {state[words.BLOCKS_LEFT]} blocks of tokens to combine"
        )
    for peer in range(world):
        if peer != me:
            found += [f"  rank {peer}: {each}" for each in _peer(job, state, line, peer)]
    found += [f"  {each}" for each in _workers(job, state)]
    found += [f"  {each}" for each in _runs(job, state)]
    return "\n".join(found)


def _held(lock: int) -> str:
    if lock == 0:
        return "the lock is free"
    return "the lock is held outside of a step" if lock == OUTSIDE else f"worker {lock - 1} holds the lock"


def _peer(job: np.ndarray, state: np.ndarray, line: Line, peer: int) -> list[str]:
    """Lines about a peer: what is expected of it, what it has written, and what it still gets."""

    def of(table: Callable[..., int]) -> int:
        return int(state[table(job, peer)])

    epoch, progress = line(peer, words.AT_EPOCH), line(peer, words.AT_PROGRESS)
    where = "outside of a call" if progress < 0 else f"{progress} commands published"
    found = [f"last seen at epoch {epoch}, {where}"]
    if poison := line(peer, words.POISON):
        at, origin, cause = failure_of(poison)
        found.append(f"poison: rank {origin} gave up in epoch {at} because {CAUSES.get(cause, cause)}")
    if state[words.PHASE] != codes.PHASE_RUN:
        return found
    if of(words.verdict) == codes.UNANNOUNCED:
        last = line(peer, words.ANNOUNCED)
        landed = last == job[words.EPOCH]
        where = "has landed and is not read" if landed else f"is missing: the last one is of epoch {last}"
        found.append(f"its announcement {where}")
    else:
        found.append(
            f"announced {of(words.rows_from)} rows for this rank; {of(words.rows_left)} rows' records are not read yet,"
            f" {of(words.read_tiles)} tiles are read of {line(peer, words.TAIL)} that have landed"
        )
    at = next(p for p in range(job[words.WORLD]) if peer in range(*(state[t(job, p)] for t in STREAM)))
    first, end = int(state[words.cursor(job, at)]), int(state[words.offset(job, end_slot(job, state, at))])
    sent, freed = int(state[words.sent_rows(job, at)]), line(peer, words.CREDIT)
    back, due = line(peer, words.RETURN_TAIL) - of(words.seen_tiles), int(returns_due(job, state, peer))
    found.append(
        f"{max(0, end - first)} rows must still be sent, {sent - freed} of {ring_of(job, state, at)} ring rows are in"
        f" use; {due} sent tiles must come back, {back} of them have landed"
    )
    return found


def _workers(job: np.ndarray, state: np.ndarray) -> list[str]:
    """Lines about what workers do. Workers that do the same share a line."""
    doing: dict[str, list[int]] = {}
    for worker in range(job[words.WORKERS]):
        doing.setdefault(_command(job, state, worker), []).append(worker)
    return [f"worker{'s' * (len(who) > 1)} {ranges(who, ', ')}: {what}" for what, who in doing.items()]


def _command(job: np.ndarray, state: np.ndarray, worker: int) -> str:
    c = words.command(job, worker)
    kind, rows, peer = (int(state[at(c)]) for at in (words.command_kind, words.command_rows, words.command_peer))
    subject, slot = int(state[words.command_subject(c)]), int(state[words.command_run(c)])
    if kind == codes.IDLE:
        return "idle" if peer == job[words.RANK] else f"idle, waits for rank {peer}"
    if kind == codes.DISPATCH:
        return f"sends {rows} rows to rank {subject}, from packed row {state[words.command_packed(c)]} on"
    if kind == codes.SHARE:
        phase = PRODUCTS.get(int(state[words.command_phase(c)]), "product")
        return f"computes share {state[words.command_share(c)]} of the {phase} of run {slot}"
    return {
        codes.ROUTE: f"routes tokens from {subject} on",
        codes.PACK: "packs",
        codes.BUNDLE: f"sends a bundle of tiles to rank {subject}",
        codes.EXPERT: f"computes {rows} rows of held expert {subject}",
        codes.LIST: f"lists {rows} rows of held expert {subject} for run {slot}",
        codes.COMBINE: f"combines {rows} tokens from {subject} on",
        codes.SUM: f"adds up outputs for {rows} pairs of rank {subject}",
        codes.FINISH: "has ended the call",
        codes.FAIL: "has left the failed call",
        codes.SETTLE: "counts rows that came back",
        codes.SIZED: "has all announcements",
    }.get(kind, f"unknown command {kind}")


def _runs(job: np.ndarray, state: np.ndarray) -> list[str]:
    """Lines about column-split runs that are not done."""
    found = []
    for slot in range(job[words.RUNS]):
        run, c = words.run(job, slot), words.run_command(job, slot)
        base, limit, done = (int(state[at(run)]) for at in (words.run_base, words.run_limit, words.run_done))
        if state[words.run_taken(run)]:
            found.append(
                f"run {slot}: {state[words.command_rows(c)]} rows of held expert {state[words.command_expert(c)]};"
                f" {limit - base} shares are open, {int(state[words.run_next(run)]) - base} taken, {done - base} done"
            )
    return found

"""Deliberate bugs in the compiled steps, which the checker must find in a real run. Each bug replaces a statement.

The bugs are compiled into the recorded copies of the steps, behind a word that switches one of them on (0: none). The
ordinary steps have no such word. The bugs are races. So calls end even if a bug is on, and most results are right.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    """A bug. function: `module.name` of a step. old: the beginning of one of its statements. new: its replacement.

    wants: the case in which the bug shows, see `run.py`.
    """

    name: str
    what: str
    function: str
    old: str
    new: str
    wants: str = "shm"


BUGS = (
    Planted(
        "tail-stored", "The tail is a plain store.", "dispatch.publish",
        "mem.notify(word_to(job, st, owner, words.TAIL)",
        "mem.store(word_to(job, st, owner, words.TAIL), tile + 1)",
    ),
    Planted(
        "table-unlocked", "A worker reads the rank's progress without the rank's lock.", "loop.work",
        "kind = steps.decide(job, st, worker)",
        "st[words.PROGRESS]\nkind = steps.decide(job, st, worker)",
    ),
    Planted(
        "combined-early", "A block of tokens counts as complete one row too early.", "packing.set_blocks",
        "st[words.block_left(job, b)] = left",
        "st[words.block_left(job, b)] = left - (left > 1)",
    ),
    Planted(
        "ended-early", "A rank publishes that a call has ended before it computes rows that stay.",
        "experts.gather",
        "st[words.command_kind(c)] = codes.EXPERT",
        "st[words.command_kind(c)] = codes.EXPERT\n"
        "if expert >= job[words.HELD]:\n"
        "    for p in range(world):\n"
        "        if p != me and st[words.remote(job, p)] == 0:\n"
        "            mem.store_release(st[words.region_to(job, p)] + 8 * words.ENDED, job[words.EPOCH])\n"
        "    for _ in range(1000):\n"
        "        mem.nap()",  # time for the peer to load before this rank reads
        "shm-in-place",
    ),
    Planted(
        "words-before-flush", "Words are put before their data is flushed.", "outbox.close_batch",
        "mpi.flush(job[words.WIRE], peer)", "pass", "rma",
    ),
    Planted(
        "sync-skipped", "An arrived word is passed on without a sync: its data may not be visible.",
        "outbox.read_words", "mpi.sync(job[words.WIRE])", "pass", "rma",
    ),
    Planted(
        "credit-before-output", "Credit covers rows whose staged outputs are not put yet.",
        "outbox.close_batch", "progress = st[words.PROGRESS]",
        "progress = st[words.PROGRESS]\ncredit = st[words.freed_rows(job, peer)]", "levels",
    ),
    Planted(
        "neighbour-read", "A rank reads its neighbour's heartbeat, which a remote rank puts at that neighbour.",
        "outbox.read_words", "anything = False",
        "anything = False\nmem.load(words.coded_word(st[words.stream_from(job, peer)], words.AT_EPOCH))", "levels",
    ),
    Planted(
        "staged-word-loaded", "A rank reads with a plain load which outputs a neighbour has staged.",
        "sums.all_staged", "staged = mem.arrived(", "staged = mem.load(mark_from(job, st, p, source))", "levels-sums",
    ),
)  # fmt: skip
LOAD = Planted(  # a bug of the host: `run.py` leaves the wait out
    "load-without-wait", "A rank loads weights while its local peers may read them.", "", "", "", "shm-in-place"
)
ALL = (*BUGS, LOAD)
NUMBERS = {bug.name: 1 + i for i, bug in enumerate(ALL)}

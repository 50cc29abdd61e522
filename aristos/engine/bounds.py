"""Checks of what peers write, before a step uses it as an index, an address or a number of rows.

A value that the protocol never writes means that shared memory was damaged: by a stray write of the program, by another
program, or by hardware. The rank that reads such a value fails and names the word, instead of reading or writing
outside of its tables. A wrong value within the bounds cannot be distinguished from a right one.

The bounds follow from the protocol. A rank is at most one call ahead of another. A sender never has more rows or tiles
under way than the ring has rows. So the sender's count of rows, or of tiles, exceeds this rank's count of freed ones by
at most the number of rows in the ring.
"""

from kernel_cache.compile import inlined, jit

from ..primitives import taped
from . import codes, words
from .layout import ring_of

NAMES = ["nothing"]  # the names of the checked words in messages, by their codes; code 0: none


def _word(name: str) -> int:
    """Give a word the next code, and this name in messages. Returns the code."""
    NAMES.append(name)
    return len(NAMES) - 1


NOTHING = 0
ANNOUNCED = _word("the epoch of its announcement")
ANNOUNCED_STATUS = _word("the status in its announcement")
ANNOUNCED_ROWS = _word("the rows in its announcement")
ANNOUNCED_COUNT = _word("the rows for one expert in its announcement")
ANNOUNCED_SUM = _word("the rows for all experts in its announcement")
ANNOUNCED_FIRST = _word("the first packed row in its announcement")
ANNOUNCED_TOKENS = _word("the tokens in its announcement")
ANNOUNCED_ONCE = _word("whether tokens cross once, in its announcement")
TAIL = _word("its count of tiles")
RECORD_EXPERT = _word("the expert in a tile record")
RECORD_ROWS = _word("the rows in a tile record")
RECORD_PACKED = _word("the first packed row in a tile record")
RECORD_BUNDLE = _word("the rows of a bundle in a tile record")
RECORD_OWNER = _word("the rank that a tile record names")
PLACE = _word("the place of a row in its index")
CREDIT = _word("its credit")
RETURN_TAIL = _word("its count of returned tiles")
RETURNED_ROWS = _word("the rows in a return record")
RETURNED_PACKED = _word("the first packed row in a return record")
RETURNED_STATUS = _word("the status in a return record")
RETURNED_KEPT = _word("what it keeps, in a return record")
ENDED = _word("the epoch of the call that it has ended")
POISON_CAUSE = _word("the cause in its poison word")
POISON_ORIGIN = _word("the failed rank in its poison word")
STAGED = _word("its count of staged outputs")
LINK = _word("the number of the pair before a pair, in its links")

STATUS_MOST = 1 << 32  # a status can contain the id of an expert, see NOT_LOADED in codes.py
KEPT_MOST = taped.X | taped.HIDDEN


@jit
def within(st, peer, word, value, least, most):
    """Whether `value`, which `peer` wrote as `word`, is from `least` to `most`. If not, this rank fails.

    Several workers may fail at once, outside the lock. Then the words BAD_... may hold values from different workers.
    """
    if least <= value <= most:
        return True
    if st[words.BAD_WORD] == NOTHING:
        st[words.BAD_WORD] = word
        st[words.BAD_PEER] = peer
        st[words.BAD_VALUE] = value
        st[words.BAD_LEAST] = least
        st[words.BAD_MOST] = most
    st[words.FAILED] = codes.CAUSE_OUT_OF_BOUNDS
    return False


@jit
def announcement(job, st, source, rows, status, first, tokens, once):
    """Whether these values are possible in an announcement of `source`."""
    most = job[words.MAX_ROWS]
    return (
        within(st, source, ANNOUNCED_STATUS, status, 0, STATUS_MOST)
        and within(st, source, ANNOUNCED_ROWS, rows, 0, most)
        and within(st, source, ANNOUNCED_FIRST, first, 0, most - rows)
        and within(st, source, ANNOUNCED_TOKENS, tokens, 0, most)
        and within(st, source, ANNOUNCED_ONCE, once, 0, 1)
    )


@jit
def tail(job, st, source, tiles):
    """Whether `source` can have sent `tiles` tiles. A tile takes at least one row of the ring until it is freed."""
    most = st[words.free_tiles(job, source)] + ring_of(job, st, source)
    return within(st, source, TAIL, tiles, st[words.read_tiles(job, source)], most)


@jit
def record(job, st, source, expert, rows, packed, bundle, owner):
    """Whether these values are possible in the next tile record of `source`.

    The tile's rows must be announced, and the ring must have space for them. If the tile is for another rank, this rank
    does not use the tile's expert and packed row, so they may have any value.
    """
    ring, announced = ring_of(job, st, source), st[words.rows_from(job, source)]
    space = ring - st[words.read_rows(job, source)] + st[words.freed_rows(job, source)]
    first = st[words.first_packed(job, source)]
    me, remote = job[words.RANK], st[words.remote(job, source)] != 0
    least, most = (job[words.NODE_FIRST], job[words.NODE_END] - 1) if remote else (me, me)
    if not (
        within(st, source, RECORD_ROWS, rows, 1, min(space, st[words.rows_left(job, source)]))
        and within(st, source, RECORD_BUNDLE, bundle, 0, ring)
        and within(st, source, RECORD_OWNER, owner, least, most)
    ):
        return False
    if owner != me:
        return True
    if not within(st, source, RECORD_PACKED, packed, first, first + announced - rows):
        return False
    if st[words.verdict(job, source)] == codes.SKIP:  # the record belongs to another call, with other experts
        return True
    if not within(st, source, RECORD_EXPERT, expert, 0, job[words.HELD] - 1):
        return False
    return within(st, source, RECORD_ROWS, rows, 1, st[words.expert_coming(job, expert)])


@jit
def credit(job, st, peer, owner, rows):
    """Whether `owner` can have freed `rows` rows of the stream that this rank writes at `peer`."""
    sent = st[words.sent_rows(job, peer)]
    return within(st, owner, CREDIT, rows, sent - ring_of(job, st, peer), sent)


@jit
def returned(job, st, owner, rows, packed, status, kept):
    """Whether these values are possible in a return record of `owner` for rows that this rank sent to `owner`."""
    first, end = job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]
    low, high = st[words.offset(job, first)], st[words.offset(job, end)]
    return (
        within(st, owner, RETURNED_STATUS, status, 0, STATUS_MOST)
        and within(st, owner, RETURNED_ROWS, rows, 0, job[words.MAX_ROWS])
        # a record without rows belongs to an exchange, perhaps an earlier one, so this call's bounds do not apply to it
        and (rows == 0 or within(st, owner, RETURNED_PACKED, packed, low, high - rows))
        and within(st, owner, RETURNED_KEPT, kept, 0, KEPT_MOST)
    )


@inlined
def poison_limits(world):
    """(least cause, greatest cause, last rank) that a poison word may name in a group of `world` ranks."""
    return codes.CAUSE_TIMEOUT, codes.CAUSE_OUT_OF_BOUNDS, world - 1


@jit
def poison(job, st, peer, origin, cause):
    """Whether a poison word from `peer` may name the rank `origin` and this cause."""
    least, most, last = poison_limits(job[words.WORLD])
    return within(st, peer, POISON_CAUSE, cause, least, most) and within(st, peer, POISON_ORIGIN, origin, 0, last)

"""The poison word: the epoch, origin and cause of a failure in one word, so that no reader sees a part of it."""

from kernel_cache.compile import inlined

ORIGIN_BITS, CAUSE_BITS = 20, 4  # the epoch lies above


@inlined
def poison_word(epoch, origin, cause):
    """The poison word of a failure. origin: the rank that failed first; cause: see codes.py. Never 0."""
    return (((epoch << ORIGIN_BITS) + origin) << CAUSE_BITS) + cause


@inlined
def failure_of(word):
    """(epoch, origin, cause) of a poison word."""
    failed = word >> CAUSE_BITS
    return failed >> ORIGIN_BITS, failed & (1 << ORIGIN_BITS) - 1, word & (1 << CAUSE_BITS) - 1

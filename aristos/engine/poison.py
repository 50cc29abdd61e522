"""The poison word. It holds a failure's epoch, origin and cause in one word, so no reader can see only some of them."""

from kernel_cache.compile import inlined

ORIGIN_BITS, CAUSE_BITS = 20, 4  # the epoch has the bits above these


@inlined
def poison_word(epoch, origin, cause):
    """The poison word of a failure. origin: the rank that failed first; cause: see codes.py. Never 0."""
    return (((epoch << ORIGIN_BITS) + origin) << CAUSE_BITS) + cause


@inlined
def failure_of(word):
    """(epoch, origin, cause) of a poison word."""
    failed = word >> CAUSE_BITS
    return failed >> ORIGIN_BITS, failed & (1 << ORIGIN_BITS) - 1, word & (1 << CAUSE_BITS) - 1

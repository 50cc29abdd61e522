"""An entry of a command's list of places on the tape: where a row's place is, and what is kept there.

A place starts on a cache line, so the lower bits of its address are free: they say what is kept there.
"""

from kernel_cache.compile import jit

X, HIDDEN = 1, 2  # bits: the row itself; its products with the up and the gate projection
BITS = 7  # bits of an entry below its address: the low ones say what is kept


@jit
def entry(place, kept):
    """An entry: the address of a row's place, and what is kept there."""
    return place | kept


@jit
def place_of(entry):
    """The address of the place: first what HIDDEN stands for, then the row."""
    return entry & ~BITS


@jit
def kept_of(entry):
    """What is kept there."""
    return entry & BITS

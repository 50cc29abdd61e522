"""Entries of a command's list of places on the tape. An entry says where a row's place is, and what is kept there.

A place starts on a cache line, so the lower bits of its address are free to say what is kept there.
"""

from kernel_cache.compile import jit

X, HIDDEN = 1, 2  # bits of what is kept: the row itself; its products with the up and the gate projection
BITS = 7  # mask of the bits of an entry that are not its address


@jit
def entry(place, kept):
    """The entry for the address of a row's place, and what is kept there."""
    return place | kept


@jit
def place_of(entry):
    """The address of an entry's place. The data of HIDDEN comes first there, then the row."""
    return entry & ~BITS


@jit
def kept_of(entry):
    """What is kept at an entry's place: bits X, HIDDEN."""
    return entry & BITS

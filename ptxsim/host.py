"""Compiled code for accesses by Python actors, which are threads of the host and have vector clocks like the others."""

from __future__ import annotations

import numpy as np

from . import isa
from . import state as s
from .bits import get, load, put, store
from .units import unit
from .watch import ALONE, ANY, SIZE_SHIFT, STRONG, coherent, log2, race, read, sync_entry, wrote
from .wide import narrow_at


@unit
def host_access(x, thread, warp, place, size, cell, order, scope, write, value):
    """Make one access as a thread of the host. Returns the old value.

    Afterwards the first word of the scratch table is 1 if the access races, else 0.
    """
    host = get(x, s.MEMORY) + place
    scratch = get(x, s.SCRATCH)
    put(scratch, 0, 0)
    checked = get(x, s.CHECK) != 0
    if checked:
        narrow_at(x, place, size)
        how = (STRONG if order != isa.WEAK else 0) | scope << 1 | log2(size) << SIZE_SHIFT
        if write:
            coherent(x, get(thread, s.T_GID), cell, (1 << size) - 1, True, 0, place + isa.GLOBAL_START, 0)
        found = race(x, thread, 0, warp, cell, (1 << size) - 1, how, write, 0)
        put(scratch, 0, np.int64(found != 0))
        if not write:
            return read(x, thread, 0, warp, place, host, size, order, scope, ANY)
    old = np.int64(load(host, size))
    if write:
        hidden = np.int64(0)
        if checked:
            hidden = wrote(x, thread, 0, warp, place, size, old, value, order, scope, 0, ALONE)
        if not hidden:
            store(host, size, np.uint64(value))
        if old != value:
            put(x, s.PROGRESS, get(x, s.STEP))
    return old


@unit
def host_entry(x, location):
    """The row of a location in the sync table. The row is made if it is missing."""
    return sync_entry(x, location, True)

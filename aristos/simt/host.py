"""Loads and stores of Python actors: threads of the host, on the same clocks as the devices' threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from . import isa
from . import state as s
from .bits import get, load, put, store
from .units import python_function, unit
from .watch import STRONG, race, read, sync_entry, wrote

if TYPE_CHECKING:
    from .arrays import DeviceArray
    from .machine import Machine

ORDERS = {"weak": isa.WEAK, "relaxed": isa.RELAXED, "acquire": isa.ACQUIRE, "release": isa.RELEASE}


@unit
def host_access(x, thread, warp, place, size, cell, order, scope, write, value):
    """One access of the host; returns the value read, and leaves 1 in the scratch table's first word if it races."""
    host = get(x, s.MEMORY) + place
    scratch = get(x, s.SCRATCH)
    put(scratch, 0, 0)
    checked = get(x, s.CHECK) != 0
    if checked:
        how = (STRONG if order != isa.WEAK else 0) | scope << 1
        found = race(x, thread, 0, warp, cell, (1 << size) - 1, how, write, 0)
        put(scratch, 0, np.int64(found != 0))
        if not write:
            return read(x, thread, 0, warp, place, host, size, order, scope)
    old = np.int64(load(host, size))
    if write:
        hidden = np.int64(0)
        if checked:
            hidden = wrote(x, thread, 0, warp, place, size, old, value, order, scope, 0)
        if not hidden:
            store(host, size, np.uint64(value))
        if old != value:
            put(x, s.PROGRESS, get(x, s.STEP))
    return old


@unit
def host_entry(x, location):
    """The row of a location in the table of what is published; made if it is not there."""
    return sync_entry(x, location, True)


def element(machine: Machine, array: DeviceArray, index: Any) -> tuple[int, int, int]:
    """(offset in the machine's memory, bytes, address of the checker's cell) of one element."""
    view = array._view()
    item = view[index if isinstance(index, tuple) else (index,)]
    if np.ndim(item) != 0 or view.dtype.itemsize not in (1, 2, 4, 8):
        raise InputError(f"an actor reads and writes single numbers, got index {index!r} of dtype {view.dtype}")
    flat = np.ravel_multi_index(np.atleast_1d(index) % np.array(view.shape), view.shape)
    at = np.unravel_index(flat, view.shape)
    offset = array.offset + sum(int(i) * step for i, step in zip(at, array.strides))
    row = machine.memory.table[array.allocation.number]
    cell = machine.x[s.SHADOW] + (row[s.A_SHADOW] + offset // row[s.A_GRANULE]) * s.CELL_WORDS * 8
    return array.allocation.start + offset, view.dtype.itemsize, int(cell)


def perform(machine: Machine, array: DeviceArray, index: Any, order: str, scope: str, write: bool, bits: int) -> int:
    if machine.acting < 0:
        raise InputError("load and store are for actors; outside a run use copy_to_host and copy_to_device")
    if order not in ORDERS or scope not in ("sys", "gpu", "cta"):
        raise InputError(
            f"order must be one of {', '.join(ORDERS)} and scope sys, gpu or cta; got {order!r}, {scope!r}"
        )
    place, size, cell = element(machine, array, index)
    slot = int(machine.x[s.WARP_SLOTS]) - 1
    thread = int(machine.x[s.THREADS]) + (slot * 32 + machine.acting) * s.T_FIELDS * 8
    number = {"cta": isa.CTA, "gpu": isa.GPU, "sys": isa.SYS}[scope]
    signed = bits - (1 << 64) if bits >= 1 << 63 else bits
    value = python_function("host_access")(
        int(machine.x.ctypes.data), thread, slot, place, size, cell, ORDERS[order], number, int(write), signed
    )
    machine.changed |= write and (int(value) ^ bits) & ((1 << 8 * size) - 1) != 0
    if machine.tables["scratch"][0]:
        machine.host_race(array, index, write)
    return int(value) & 0xFFFFFFFFFFFFFFFF


def host_load(machine: Machine, array: DeviceArray, index: Any, order: str, scope: str) -> Any:
    bits = perform(machine, array, index, order, scope, False, 0)
    return np.array([bits], np.uint64).view(np.uint8)[: array.dtype.itemsize].view(array.dtype)[0]


def host_store(machine: Machine, array: DeviceArray, index: Any, value: Any, order: str, scope: str) -> None:
    raw = np.array([value], array.dtype).tobytes()
    perform(machine, array, index, order, scope, True, int.from_bytes(raw, "little"))

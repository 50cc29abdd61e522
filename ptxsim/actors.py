"""Loads and stores of Python actors, which take part in a run as threads of the host."""

from __future__ import annotations

from . import isa
from . import state as s
from .core import Core
from .errors import InputError
from .units import python_function

ORDERS = {"weak": isa.WEAK, "relaxed": isa.RELAXED, "acquire": isa.ACQUIRE, "release": isa.RELEASE}
SCOPES = {"cta": isa.CTA, "gpu": isa.GPU, "sys": isa.SYS}


def check_order(core: Core, order: str, scope: str) -> None:
    """Raise InputError if it is no actor's turn, or if order or scope is unknown."""
    if core.acting < 0:
        raise InputError("load and store are for actors; outside a run use copy_to_host and copy_to_device")
    if order not in ORDERS or scope not in SCOPES:
        raise InputError(
            f"order must be one of {', '.join(ORDERS)} and scope sys, gpu or cta; got {order!r}, {scope!r}"
        )


def access(
    core: Core, place: int, size: int, cell: int, order: str, scope: str, write: bool, bits: int
) -> tuple[int, bool]:
    """Make one access of the acting actor. Returns (the old bits, whether the access races with a device's access).

    place: offset in the machine's memory. size: bytes. cell: address of the checker's cell. bits: the value to write.
    """
    core.reserve()
    slot = int(core.x[s.WARP_SLOTS]) - 1
    thread = int(core.x[s.THREADS]) + (slot * 32 + core.acting) * s.T_FIELDS * 8
    signed = bits - (1 << 64) if bits >= 1 << 63 else bits
    value = int(
        python_function("host_access")(
            int(core.x.ctypes.data), thread, slot, place, size, cell, ORDERS[order], SCOPES[scope], int(write), signed
        )
    )
    core.changed |= write and (value ^ bits) & ((1 << 8 * size) - 1) != 0
    return value & 0xFFFFFFFFFFFFFFFF, bool(core.tables["scratch"][0])

"""Lowers instructions on clusters. The machine's clusters have one block, as kernels have if nothing asks for more."""

from __future__ import annotations

from .. import isa
from ..lowering import Lowering
from .mods import Mods

CLUSTER_BARRIER = 16  # its number among the barriers of a block, after those of bar
OF_CLUSTER = 2  # bit in FLAGS of BAR
RANK_SHIFT = 24  # an address in the shared memory of the cluster's block n has n in the bits from this one on


def cluster_barrier(low: Lowering, m: Mods) -> None:
    """Lower barrier.cluster. A thread's arrival counts when it waits, as every thread that arrives must."""
    m.take_one("cluster")
    kind = m.take_one("arrive", "wait")
    if kind is None:
        raise m.fail("needs .arrive or .wait")
    m.take_one(*(("release", "relaxed") if kind == "arrive" else ("acquire",)))
    aligned = m.take_one("aligned") is not None
    m.done(0)
    if kind == "arrive":
        low.emit(isa.NOP)
    else:
        low.emit(isa.BAR, a=low.constant(CLUSTER_BARRIER), b=low.constant(0), flags=OF_CLUSTER | int(aligned))


def map_address(low: Lowering, m: Mods) -> None:
    """Lower mapa. The address in another block than 0 lies outside of shared memory, so that its use is reported."""
    m.take_one("shared::cluster")
    (type_,) = m.types()
    m.done(3)
    row = low.new_row()
    low.emit(isa.SHL, isa.B64, d=row, a=m.row(2, isa.B32), b=low.constant(RANK_SHIFT))
    low.emit(isa.ADD, type_, d=m.dest(type_), a=m.row(1), b=row)


def rank_of(low: Lowering, m: Mods) -> None:
    """Lower getctarank."""
    m.take_one("shared::cluster")
    m.types()
    m.done(2)
    low.emit(isa.MOV, isa.B32, d=m.dest(isa.B32), a=low.constant(0))

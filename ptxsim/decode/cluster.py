"""Lowers instructions on clusters."""

from __future__ import annotations

from .. import isa
from ..lowering import Lowering
from ..syntax import Name
from .mods import Mods

RANKS = 0xFFFF << isa.RANK_SHIFT  # the bits of an address that have a rank


def cluster_barrier(low: Lowering, m: Mods) -> None:
    """Lower barrier.cluster."""
    m.take_one("cluster")
    kind = m.take_one("arrive", "wait")
    if kind is None:
        raise m.fail("needs .arrive or .wait")
    order = m.take_one(*(("release", "relaxed") if kind == "arrive" else ("acquire",)))
    m.take_one("aligned")
    m.done(0)
    if kind == "arrive":
        low.emit(isa.CLUSTERARRIVE, flags=isa.RELAXED if order == "relaxed" else isa.RELEASE)
    else:
        low.emit(isa.CLUSTERWAIT)


def map_address(low: Lowering, m: Mods) -> None:
    """Lower mapa. An address in another block gets that block's rank. An address in the thread's own block gets none.

    With .cta_group::2 in the module, the latter gets the own block's rank too (Lowering.shared_address).
    """
    m.take_one("shared::cluster")
    (type_,) = m.types()
    m.done(3)
    rank, mine = m.row(2, isa.B32), low.row(Name("%cluster_ctarank"))
    plain, up, far, own = (low.new_row() for _ in range(4))
    low.emit(isa.AND, isa.B64, d=plain, a=m.row(1), b=low.constant(~RANKS))
    low.emit(isa.ADD, isa.U64, d=up, a=rank, b=low.constant(isa.FIRST_RANK))
    low.emit(isa.SHL, isa.B64, d=up, a=up, b=low.constant(isa.RANK_SHIFT))
    low.emit(isa.ADD, isa.U64, d=far, a=plain, b=up)
    if low.paired:
        low.emit(isa.MOV, type_, d=m.dest(type_), a=far)
        return
    low.emit(isa.SETP, isa.U32, d=own, a=rank, b=mine, imm=isa.COMPARE["eq"])
    low.emit(isa.SELP, type_, d=m.dest(type_), a=plain, b=far, c=own)


def rank_of(low: Lowering, m: Mods) -> None:
    """Lower getctarank."""
    m.take_one("shared::cluster")
    m.types()
    m.done(2)
    mine, rank, own = low.row(Name("%cluster_ctarank")), low.new_row(), low.new_row()
    low.emit(isa.SHR, isa.U64, d=rank, a=m.row(1), b=low.constant(isa.RANK_SHIFT))
    low.emit(isa.AND, isa.B64, d=rank, a=rank, b=low.constant(0xFFFF))
    low.emit(isa.SETP, isa.U64, d=own, a=rank, b=low.constant(0), imm=isa.COMPARE["eq"])
    low.emit(isa.SUB, isa.U64, d=rank, a=rank, b=low.constant(isa.FIRST_RANK))
    low.emit(isa.SELP, isa.B32, d=m.dest(isa.B32), a=mine, b=rank, c=own)

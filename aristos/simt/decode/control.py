"""Branches, calls, ends, and hints that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import isa
from ..ptx import Group, Name
from .mods import Mods

if TYPE_CHECKING:
    from ..lower import Lowering


def branch(low: Lowering, m: Mods) -> None:
    m.take("uni")
    m.done(1)
    low.branch(isa.BRA, m.operands[0])


def branch_indexed(low: Lowering, m: Mods) -> None:
    m.take("idx")
    m.take("uni")
    m.done(2)
    low.branch_table(m.row(0), m.operands[1].text)


def leave(op: int) -> Callable:
    def handler(low: Lowering, m: Mods) -> None:
        m.take("uni")
        m.done(0)
        low.emit(op)

    return handler


def call(low: Lowering, m: Mods) -> None:
    m.take("uni")
    m.done(1, 4)
    operands = list(m.operands)
    returns: tuple = ()
    if isinstance(operands[0], Group):
        returns = operands.pop(0).items
    target = operands.pop(0)
    arguments: tuple = ()
    if operands and isinstance(operands[0], Group):
        arguments = operands.pop(0).items
    if not isinstance(target, Name):
        raise m.fail("the target must be a name")
    low.call(returns, target, arguments)


def nothing(low: Lowering, m: Mods) -> None:
    """Hints that change no result: prefetch, discard of clean lines, pmevent, grid dependency control."""
    low.emit(isa.NOP)


def stack(low: Lowering, m: Mods) -> None:
    raise m.fail("variable-sized local memory is not supported")

"""Lowers branches, calls, ends, and hints without an effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import isa
from ..builtin import lower_builtin
from ..lowering import Lowering
from ..program import layout
from ..syntax import Arguments, Name, Number, Variable
from .mods import Mods


def branch(low: Lowering, m: Mods) -> None:
    """Lower bra."""
    m.take_one("uni")
    m.done(1)
    low.branch(isa.BRA, m.operands[0])


def branch_indexed(low: Lowering, m: Mods) -> None:
    """Lower brx.idx."""
    m.take_one("idx")
    m.take_one("uni")
    m.done(2)
    low.branch_table(m.row(0), m.operands[1].text)


def leave(op: int) -> Callable[..., Any]:
    """Make the handler of ret, exit, trap or brkpt."""

    def handler(low: Lowering, m: Mods) -> None:
        m.take_one("uni")
        m.done(0)
        low.emit(op)

    return handler


def call(low: Lowering, m: Mods) -> None:
    """Lower a call, by a name or through a register."""
    m.take_one("uni")
    m.done(1, 4)
    operands = list(m.operands)
    returns: tuple[Any, ...] = ()
    if isinstance(operands[0], Arguments):
        returns = operands.pop(0).items
    target = operands.pop(0)
    arguments: tuple[Any, ...] = ()
    if operands and isinstance(operands[0], Arguments):
        arguments = operands.pop(0).items
    if not isinstance(target, Name):
        raise m.fail("the target must be a name")
    call_function(low, returns, target, arguments)


def call_function(low: Lowering, returns: tuple[Any, ...], target: Name, arguments: tuple[Any, ...]) -> None:
    """Append a call, with the places of arguments and results in the frames of caller and callee."""
    assert low.instruction is not None
    assert low.current is not None
    mine = []
    for operand in (*returns, *arguments):
        found = low.find(operand.text) if isinstance(operand, Name) else None
        if not isinstance(found, tuple) or found[0] != "local":
            raise low.fail("arguments of calls must be variables in .param space")
        mine.append((found[1], found[2]))
    theirs, _ = layout([Variable("", "param", "b8", 1, size) for _, size in mine], len(returns))
    items = [len(returns), len(arguments)]
    for (here, size), (there, _) in zip(mine, theirs):
        items += [here, there, size]
    name = low.module.aliases.get(target.text, target.text)
    if low.find(target.text) is not None:  # a call through a register
        low.indirect = True
        low.current.calls.add("*")
        low.emit(isa.CALLI, a=low.row(target), items=items, imm=-1)
        return
    function = low.module.functions.get(name)
    if function is None or function.body is None:
        lower_builtin(low, name, [offset for offset, _ in mine], len(returns))
        return
    low.current.calls.add(name)
    at = low.emit(isa.CALL, items=items)
    low.call_fixups.append((at, name, low.instruction.line))


def nothing(low: Lowering, m: Mods) -> None:
    """Lower hints that do not change results: prefetch, discard, pmevent."""
    low.emit(isa.NOP)


def dependency(low: Lowering, m: Mods) -> None:
    """Lower griddepcontrol."""
    op = isa.GRIDWAIT if m.take_one("wait") else isa.GRIDTRIGGER
    if op == isa.GRIDTRIGGER and not m.take_one("launch_dependents"):
        raise m.fail("needs .wait or .launch_dependents")
    m.done(0)
    low.emit(op)


def set_registers(low: Lowering, m: Mods) -> None:
    """Lower setmaxnreg, which changes no result: a warp here always has the registers that its code names."""
    if m.take_one("inc", "dec") is None or m.take_one("sync") is None or m.take_one("aligned") is None:
        raise m.fail("needs .inc or .dec, and .sync.aligned")
    m.take_one("u32")
    m.done(1)
    count = m.operands[0]
    if not isinstance(count, Number) or not 24 <= count.value <= 256 or count.value % 8:
        raise m.fail("the number of registers must be a multiple of 8 from 24 to 256")
    low.emit(isa.NOP)


def stack(low: Lowering, m: Mods) -> None:
    """Raise PTXError for alloca, stacksave and stackrestore, which the machine lacks."""
    raise m.fail("variable-sized local memory is not supported")

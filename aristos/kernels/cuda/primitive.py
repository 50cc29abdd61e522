"""Makes an intrinsic of Numba-CUDA from a PTX text. The texts themselves are in `ptx.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from ...primitives.intrinsics import positional
from .compiler import intrinsic, types

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
LLVM = {"r": I32, "l": I64, "f": F32}  # by constraint letter of inline assembly
NUMBA = {"r": types.int32, "l": types.int64, "f": types.float32}


def primitive(
    text: str, gives: str = "", takes: str = "", memory: bool = True, carried: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator for an intrinsic of `text`. gives, takes: constraint letters of results and arguments, from $0 on.

    memory: whether the text accesses memory, so that the compiler must not move other accesses across it. carried:
    whether the result registers are also inputs; then the intrinsic takes one more argument, a tuple of their values,
    and the text names a register by its result's number. The intrinsic has `.plain`, the Python function, `.text`, the
    PTX, and for generated code `.emit(builder, arguments)`, which emits the PTX and returns the results.
    """
    ties = [str(i) for i in range(len(gives))] if carried else []
    letters = [f"={letter}" for letter in gives] + list(takes) + ties + (["~{memory}"] if memory else [])
    results = [LLVM[letter] for letter in gives]
    returned = results[0] if len(results) == 1 else ir.LiteralStructType(results) if results else ir.VoidType()
    function = ir.FunctionType(returned, [LLVM[letter] for letter in takes] + results[: len(ties)])
    kinds = [NUMBA[letter] for letter in gives]
    kind = kinds[0] if len(kinds) == 1 else types.UniTuple(kinds[0], len(kinds)) if kinds else types.void

    def emit(builder: Any, arguments: Sequence[Any]) -> list[Any]:
        asm = ir.InlineAsm(function, text, ",".join(letters), side_effect=True)
        value = builder.call(asm, list(arguments))
        return [value] if len(results) == 1 else [builder.extract_value(value, i) for i in range(len(results))]

    def wrap(plain: Callable[..., Any]) -> Any:
        def typed(typing: Any, *arguments: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                given = list(values[: len(takes)])
                given += [builder.extract_value(values[-1], i) for i in range(len(ties))]
                found = emit(builder, given)
                if len(found) > 1:
                    return context.make_tuple(builder, kind, found)
                return found[0] if found else context.get_dummy_value()

            return kind(*[NUMBA[letter] for letter in takes], *([kind] if carried else [])), codegen

        made = named(typed, plain.__name__, len(takes) + carried)
        made.plain, made.text, made.emit, made.__doc__ = plain, text, emit, plain.__doc__
        return made

    return wrap


def named(typed: Callable[..., Any], name: str, count: int) -> Any:
    """An intrinsic with a name and `count` positional arguments, in the form that Numba requires."""
    return intrinsic(positional(typed, name, count))

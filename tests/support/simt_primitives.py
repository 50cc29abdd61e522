"""Inline PTX for the machine's tests: loads, stores, fences and copies. A test chooses their memory order."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from llvmlite import ir
from numba import cuda, types
from numba.cuda.extending import intrinsic

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    from numba.cuda.np.arrayobj import make_array

    data = make_array(kind)(context, builder, array).data
    return builder.ptrtoint(builder.gep(data, [index]), _I64)


def load(mods: str) -> Any:
    """A function f(a, i): `ld.MODS.u32` of a[i], where a is an array of uint32."""

    @intrinsic
    def load_(typing, a, i):
        def codegen(context, builder, signature, args):
            index = context.cast(builder, args[1], signature.args[1], types.int64)
            kind = ir.FunctionType(_I32, [_I64])
            asm = ir.InlineAsm(kind, f"ld.{mods}.u32 $0, [$1];", "=r,l,~{memory}", side_effect=True)
            return builder.call(asm, [_pointer(context, builder, signature.args[0], args[0], index)])

        return types.uint32(a, i), codegen

    return load_


def store(mods: str) -> Any:
    """A function f(a, i, v): `st.MODS.u32` of v to a[i]."""

    @intrinsic
    def store_(typing, a, i, v):
        def codegen(context, builder, signature, args):
            index = context.cast(builder, args[1], signature.args[1], types.int64)
            value = context.cast(builder, args[2], signature.args[2], types.uint32)
            kind = ir.FunctionType(ir.VoidType(), [_I64, _I32])
            asm = ir.InlineAsm(kind, f"st.{mods}.u32 [$0], $1;", "l,r,~{memory}", side_effect=True)
            builder.call(asm, [_pointer(context, builder, signature.args[0], args[0], index), value])
            return context.get_dummy_value()

        return types.void(a, i, v), codegen

    return store_


def statement(text: str) -> Any:
    """A function f(): one statement without operands, for example a fence."""

    @intrinsic
    def statement_(typing):
        def codegen(context, builder, signature, args):
            asm = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), text, "~{memory}", side_effect=True)
            builder.call(asm, [])
            return context.get_dummy_value()

        return types.void(), codegen

    return statement_


@intrinsic
def copy_async(typing, to, i, source, k):
    """cp.async of 16 bytes from source[k] (global) to to[i] (shared)."""

    def codegen(context, builder, signature, args):
        i = context.cast(builder, args[1], signature.args[1], types.int64)
        k = context.cast(builder, args[3], signature.args[3], types.int64)
        target = _pointer(context, builder, signature.args[0], args[0], i)
        source = _pointer(context, builder, signature.args[2], args[2], k)
        text = (
            "{ .reg .u64 t; .reg .u32 s; cvta.to.shared.u64 t, $0; cvt.u32.u64 s, t;"
            " cp.async.cg.shared.global [s], [$1], 16; }"
        )
        asm = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [_I64, _I64]), text, "l,l,~{memory}", side_effect=True)
        builder.call(asm, [target, source])
        return context.get_dummy_value()

    return types.void(to, i, source, k), codegen


__all__ = ["copy_async", "cuda", "load", "statement", "store"]

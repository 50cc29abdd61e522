"""Makes Numba intrinsics from functions that emit LLVM code, and lowers calls of other functions to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from numba.extending import intrinsic


def positional(typed: Callable[..., Any], name: str, count: int) -> Callable[..., Any]:
    """Give a function of any arguments a name, and a signature with Numba's first argument and `count` others."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["typing", *(f"a{i}" for i in range(count))]
    typed.__name__ = name
    typed.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    return typed


def emitted(result: Any, *arguments: Any, name: str = "") -> Callable[[Callable[..., Any]], Any]:
    """A decorator that makes an intrinsic of emit(builder, *values), which emits LLVM code.

    result, arguments: Numba's types. `emit` returns the result's value, or None if there is no result. name: the
    intrinsic's name; by default that of `emit`.
    """

    def make(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        def typed(typing: Any, *_: Any) -> Any:
            return result(*arguments), codegen

        return intrinsic(positional(typed, name or emit.__name__, len(arguments)))

    return make


def forward(function: Callable[..., Any], lowered: Any) -> Any:
    """An implementation for `overload(function)`, by which compiled calls of `function` become calls of `lowered`."""
    names = ", ".join(inspect.signature(function).parameters)
    scope = {"lowered": lowered, "__name__": function.__module__}
    exec(f"def {function.__name__}({names}):\n    return lambda {names}: lowered({names})", scope)
    return scope[function.__name__]

"""Remembers, while a kernel is compiled, how Numba resolves operators for types of operands.

For every addition and every index in a kernel's source, Numba tries the templates of the operator one after another.
A layer's kernel has ten thousand such operations, and the result depends only on the types.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """A block in which Numba resolves each function once for each combination of types of numbers and arrays.

    Overloads are left out: for a call of an overload, Numba compiles its implementation too.
    """
    types: Any = import_module("numba.core.types")
    base = types.functions.BaseFunction
    resolve, found = base.get_call_type, dict[tuple[Any, ...], Any]()

    def plain(each: Any) -> bool:
        element = each.dtype if isinstance(each, types.Array) else each
        return isinstance(element, (types.Number, types.Boolean))

    def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
        if kws or not all(map(plain, args)):
            return resolve(self, context, args, kws)
        key = self, context, *args
        signature = found.get(key)
        if signature is None:
            signature = resolve(self, context, args, kws)
            if self.get_impl_key(signature) is self.typing_key:  # not an overload
                found[key] = signature
        return signature

    base.get_call_type = get_call_type
    try:
        yield
    finally:
        base.get_call_type = resolve

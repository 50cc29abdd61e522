"""Words of this process that compiled code finds by a symbol.

The address itself must not be in compiled code: another process may read this code from the kernel cache, and has its
words elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types

from .intrinsics import emitted


def address_of(symbol: str, words: np.ndarray) -> Any:
    """A function for compiled code, without arguments, that returns the address of `words` in the process that runs it.

    symbol: a name that no other words of a process have. words: an array that lives as long as the process.
    """
    binding.add_symbol(symbol, words.ctypes.data)
    kind = ir.ArrayType(ir.IntType(64), words.size)  # LLVM assumes that no access goes beyond a variable

    @emitted(types.int64)
    def address(builder: Any) -> Any:
        name = builder.module.globals.get(symbol) or ir.GlobalVariable(builder.module, kind, symbol)
        return builder.ptrtoint(name, ir.IntType(64))

    return address

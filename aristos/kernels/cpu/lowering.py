"""The CPU lowerings of `aristos.primitives.arithmetic`: calls of an element type's compiled kernels by address.

With NUMBA_DISABLE_JIT=1 the calls and the kernels run as plain Python. A call's block of arguments (`call_blocks.py`)
is the first part of the worker's scratch.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import overload

from kernel_cache.compile import config, jit, warm_up

from ...primitives import arithmetic
from ...primitives import memory as mem
from ...primitives.arithmetic import CombineToken
from .call_blocks import COMBINE_TOKEN, SPARE, STEPS, put_combine_token

SIGNATURE = types.int64, types.int64  # what functions in `entries.py` take: a kernel's number, its block's address
_plain: list[Callable[[int, int], int]] = []  # the functions by handle, if they run as plain Python


def handle(kernels) -> int:
    """The job's word KERNELS for a function of kernels: its address if it is compiled, in plain Python a number."""
    if config.DISABLE_JIT:
        _plain.append(kernels)
        return len(_plain) - 1
    warm_up([(kernels, SIGNATURE)])
    found = kernels.overloads[SIGNATURE]
    return int(found.library.get_pointer_to_function(found.fndesc.llvm_func_name))


@jit
def invoke_compiled(kernels, kernel, block):
    """Run kernel number `kernel` of the compiled function at address `kernels`. Returns the kernel's result."""
    mem.call(kernels, block, block + 8, kernel, block, 0, 0, 0, 0)
    return mem.load(block)


def _invoke_plain(kernels, kernel, block):
    return _plain[kernels](kernel, block)


invoke = _invoke_plain if config.DISABLE_JIT else invoke_compiled


def _register(name: str, typed: Callable[..., Any]) -> None:
    """Set the function that `arithmetic.<name>` compiles to; in plain Python, replace `arithmetic.<name>` itself."""
    if config.DISABLE_JIT:
        setattr(arithmetic, name, typed(None, None))
    else:
        overload(getattr(arithmetic, name))(typed)


def _call_of(number: int, put: Callable[..., Any], result: bool) -> Callable[..., Any]:
    """An implementation for `overload`, by which calls run kernel `number`.

    put: a function that writes the kernel's arguments. result: whether the kernel returns a bool.
    """

    def typed(kernels, call):
        def run(kernels, call):
            put(call)
            invoke(kernels, number, call.scratch)

        def test(kernels, call):
            put(call)
            return invoke(kernels, number, call.scratch) != 0

        return test if result else run

    return typed


def _weigh_row(kernels, call):
    """The function that `arithmetic.weigh_row` compiles to: it combines a token with a single choice."""

    def run(kernels, call):
        table = call.scratch + SPARE
        mem.store(table, call.x)
        put_combine_token(
            CombineToken(y=call.y, k=1, weights=call.weight, rows=table, hidden=call.hidden, scratch=call.scratch)
        )
        invoke(kernels, COMBINE_TOKEN, call.scratch)

    return run


for _name, _number, _put, _result in STEPS:
    _register(_name, _call_of(_number, _put, _result))
_register("weigh_row", _weigh_row)

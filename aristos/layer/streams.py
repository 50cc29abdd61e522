"""CUDA streams of a call: the one it is queued on, and those of the libraries whose arrays it uses.

A library queues work on a current stream of its own. A call is ordered there like the library's own functions: it reads
what was queued before it, and what is queued after it sees the result.
"""

from __future__ import annotations

import sys
from typing import Any

from ..errors import InputError

LEGACY = 1  # the legacy default stream, as both array protocols number it: 0 would be ambiguous there


def handle(stream: Any) -> int:
    """CUDA's number of a stream: an int, or an object of CuPy, PyTorch, Numba or cuda.core. Raises InputError."""
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba
        stream = getattr(stream, name, stream)
    stream = getattr(stream, "value", stream)  # ctypes has the number in `value`
    if stream is None:
        return 0
    try:
        number = int(stream)
    except (TypeError, ValueError):
        number = -1
    if isinstance(stream, bool) or number < 0:
        raise InputError(
            "stream must be None, CUDA's number of a stream, or one of CuPy, PyTorch, Numba or cuda.core,"
            f" got {stream!r}"
        )
    return 0 if number == LEGACY else number


def current(value: Any) -> int | None:
    """The current stream of the library that an array belongs to.

    PyTorch's and CuPy's; for an array with `__cuda_array_interface__`, such as Numba's, the stream that it names; else
    CuPy's if CuPy is in use, else the legacy default, 0. None for a host array, and for JAX, whose streams are its own:
    DLPack orders its arrays, and `out` is another library's.
    """
    library = type(value).__module__.partition(".")[0]
    module = sys.modules.get(library)
    if library in ("jax", "jaxlib"):
        return None
    if library == "torch" and module is not None:
        found = getattr(value, "device", None)
        if getattr(found, "type", "cuda") != "cuda":
            return None
        return int(module.cuda.current_stream(found).cuda_stream)
    if library == "cupy" and module is not None:
        with value.device:  # else the stream would be of the thread's current GPU, which may be another one
            return int(module.cuda.get_current_stream().ptr)
    interface = getattr(value, "__cuda_array_interface__", None)
    if not isinstance(interface, dict):
        return None
    if interface.get("stream") is not None:
        return handle(interface["stream"])
    cupy = sys.modules.get("cupy")
    return int(cupy.cuda.get_current_stream().ptr) if cupy is not None else 0


def choose(given: Any, arrays: tuple[Any, ...], own: int) -> tuple[int, list[int]]:
    """(the stream of a call, the other current streams of its arrays).

    given: the caller's choice, or None: then it is the first array's. own: for a call without any.
    """
    found = [stream for stream in map(current, arrays) if stream is not None]
    chosen = handle(given) if given is not None else found[0] if found else own
    return chosen, [stream for stream in dict.fromkeys(found) if stream != chosen]


def unordered(given: Any, arrays: tuple[Any, ...]) -> bool:
    """Whether a library might give away an array's memory while a call still uses it.

    A library orders the next use of its memory on its current stream alone, and JAX on streams of its own.
    """
    if given is not None:
        return True
    return any(type(each).__module__.partition(".")[0] in ("jax", "jaxlib") for each in arrays)

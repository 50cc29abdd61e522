"""The CUDA streams of a call: the stream on which the call is queued, and those of the libraries whose arrays it uses.

Each library queues work on its current stream. A call is ordered on that stream like the library's own functions: it
sees the results of work queued before it, and work queued after it sees its result.
"""

from __future__ import annotations

import sys
from typing import Any

from ..errors import InputError

LEGACY = 1  # the legacy default stream's number in both array protocols, where 0 would be ambiguous


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
            "stream must be None, the number of a CUDA stream, or a stream of CuPy, PyTorch, Numba or"
            f" cuda.core, got {stream!r}"
        )
    return 0 if number == LEGACY else number


def current(value: Any) -> int | None:
    """The current stream of the library that an array belongs to.

    For an array of PyTorch or CuPy, this is the library's current stream. For an array with `__cuda_array_interface__`,
    such as Numba's, it is the stream that the array names. For other arrays it is CuPy's current stream if CuPy is
    imported, else the legacy default, 0. None for a host array. None also for an array of JAX, which hides its streams:
    DLPack makes the call wait for JAX's work, and the call's `out` is an array of another library.
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
        with value.device:  # otherwise CuPy would return the stream of the thread's current GPU
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

    given: the stream that the caller gave; None: the first array's stream is used. own: the stream of a call whose
    arrays have no stream.
    """
    found = [stream for stream in map(current, arrays) if stream is not None]
    chosen = handle(given) if given is not None else found[0] if found else own
    return chosen, [stream for stream in dict.fromkeys(found) if stream != chosen]


def unordered(given: Any, arrays: tuple[Any, ...]) -> bool:
    """Whether a library might reuse an array's memory while a call still uses it.

    A library orders the next use of memory only on its current stream, and JAX only on its hidden streams.
    """
    if given is not None:
        return True
    return any(type(each).__module__.partition(".")[0] in ("jax", "jaxlib") for each in arrays)

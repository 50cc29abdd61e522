"""Names of results, and the addresses of functions by name and version."""

from __future__ import annotations

import ctypes

from .build import per_thread, symbol, symbols, versions
from .calls import INT, LONG, POINTER, call, put, text_at
from .results import TEXTS, Refused
from .state import State

NAMES = {code: ctypes.create_string_buffer(f"CUDA_{name}".encode()) for name, (code, _) in TEXTS.items()}
SENTENCES = {code: ctypes.create_string_buffer(text.encode()) for code, text in TEXTS.values()}
FOUND, NOT_FOUND, TOO_NEW = 0, 1, 2  # CUdriverProcAddressQueryResult
OF_THREAD = 2  # CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM
RUNTIME = bytes.fromhex("6bd5fb6c5bf4e74a8987d93912fd9df9")  # the first table that NVIDIA's runtime asks for
OWN_RUNTIME = (
    "the program brings NVIDIA's CUDA runtime with it, which needs NVIDIA's libcuda: link the shared runtime "
    "(nvcc -cudart shared), in whose place ptxsim has one of its own"
)
EXPORTED: dict[str, int] = {}  # the library's functions: name -> address


def fill(own: int) -> None:
    """Read the library's table of its own functions, at an address."""
    EXPORTED.update(zip(symbols(), (LONG * len(symbols())).from_address(own)))


@call(INT, POINTER)
def cuGetErrorName(now: State, code: int, text: int) -> None:
    put(text, POINTER, ctypes.addressof(NAMES[code]) if code in NAMES else 0)
    if code not in NAMES:
        raise Refused("ERROR_INVALID_VALUE")


@call(INT, POINTER)
def cuGetErrorString(now: State, code: int, text: int) -> None:
    put(text, POINTER, ctypes.addressof(SENTENCES[code]) if code in SENTENCES else 0)
    if code not in SENTENCES:
        raise Refused("ERROR_INVALID_VALUE")


@call(POINTER, POINTER, INT, LONG, POINTER)
def cuGetProcAddress_v2(now: State, name: int, function: int, version: int, flags: int, status: int) -> None:
    """The newest form of a function that a version of CUDA has, for per-thread default streams if the flags say so.

    Functions that the stand-in lacks are found too: a line on stderr says so if the program calls one.
    """
    text = text_at(name)
    forms = [form for form, first in enumerate(versions().get(text, [])) if first <= version]
    exported = symbol(text, forms[-1]) if forms else text if "_v" in text else ""
    if flags & OF_THREAD:
        exported = next((one for one, ordinary in per_thread().items() if ordinary == exported), exported)
    address = EXPORTED.get(exported, 0)
    put(function, POINTER, address)
    if status:
        put(status, INT, FOUND if address else TOO_NEW if text in versions() else NOT_FOUND)
    if not address:
        raise Refused("ERROR_NOT_FOUND")


@call(POINTER, POINTER)
def cuGetExportTable(now: State, table: int, number: int) -> None:
    """Refuse: NVRTC and others can do without such tables. NVIDIA's runtime cannot, so a line on stderr says why."""
    asked = ctypes.string_at(number, 16) if number else b""
    raise Refused("ERROR_NOT_SUPPORTED", OWN_RUNTIME if asked == RUNTIME else "")


@call(POINTER, POINTER, INT, LONG)
def cuGetProcAddress(now: State, name: int, function: int, version: int, flags: int) -> None:
    cuGetProcAddress_v2(now, name, function, version, flags, 0)

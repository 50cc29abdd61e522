"""`layer.device_arrays` with made-up objects: valid and invalid CUDA array interfaces and DLPack capsules.

Capsules are made by ctypes, as a library in C would make them; the memory they name is never touched.
"""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aristos.errors import InputError
from aristos.layer import device_arrays, streams
from aristos.layer.device_arrays import contiguous, on_device, rows, whole

AT = 0x7F0000000000
INT, UINT, FLOAT, BFLOAT, BOOL = 0, 1, 2, 4, 6


class Interface:
    """An object with `__cuda_array_interface__` alone."""

    def __init__(self, shape, typestr, at=AT, **more):
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": (at, False), "version": 3} | more


class Tensor(ctypes.Structure):
    """DLManagedTensor, as dlpack.h defines it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Dlpack:
    """An object with DLPack alone. strides: in elements. streams: the streams that consumers passed."""

    def __init__(self, shape, code=FLOAT, bits=32, strides=None, offset=0, lanes=1, at=AT, device=2, name=b"dltensor"):
        self._shape = (ctypes.c_int64 * max(1, len(shape)))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * max(1, len(shape)))(*strides)
        self._device, self._name, self.streams = device, name, []
        self._tensor = Tensor(
            at,
            (device, 0),
            len(shape),
            code,
            bits,
            lanes,
            ctypes.addressof(self._shape),
            None if self._strides is None else ctypes.addressof(self._strides),
            offset,
            None,
            None,
        )

    def __dlpack_device__(self):
        return self._device, 0

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self._tensor), self._name, None)


def taken(value, width=32, dtype="float32"):
    """(address, leading shape, bytes between rows)."""
    found = on_device("x", value)
    assert found is not None
    return (found.address, *rows("x", found, width, dtype))


# ---- what can be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "typestr", "code", "bits"),
    [
        ("float32", "<f4", FLOAT, 32),
        ("tf32", "<f4", FLOAT, 32),
        ("float16", "<f2", FLOAT, 16),
        ("bfloat16", "<u2", BFLOAT, 16),
        ("bfloat16", "<V2", UINT, 16),
    ],
)
def test_every_type_is_read_from_both_protocols(dtype, typestr, code, bits):
    """NumPy has no bfloat16: its bits are accepted as uint16 from both protocols."""
    want = (AT, (5,), 32 * bits // 8)
    assert taken(Interface((5, 32), typestr), dtype=dtype) == want
    assert taken(Dlpack((5, 32), code, bits), dtype=dtype) == want


def test_host_arrays_are_not_on_a_device():
    assert on_device("x", np.zeros(3)) is None
    assert on_device("x", [1.0]) is None
    assert on_device("x", Dlpack((2, 32), device=1)) is None  # kDLCPU


def test_rows_may_lie_apart():
    assert taken(Interface((5, 32), "<f4", strides=(256, 4))) == (AT, (5,), 256)
    assert taken(Dlpack((5, 32), strides=(64, 1))) == (AT, (5,), 256)
    assert taken(Dlpack((5, 32), strides=(64, 1), offset=1024)) == (AT + 1024, (5,), 256)


def test_leading_dimensions_are_kept():
    assert taken(Interface((2, 3, 32), "<f4")) == (AT, (2, 3), 128)
    assert taken(Dlpack((2, 3, 32), strides=(96, 32, 1))) == (AT, (2, 3), 128)
    assert taken(Interface((32,), "<f4")) == (AT, (), 128)


def test_strides_of_dimensions_of_length_one_are_ignored():
    """The stride of a dimension of length one has no meaning; exporters write any value (NumPy and PyTorch: 1)."""
    assert taken(Interface((1, 32), "<f4", strides=(4, 4))) == (AT, (1,), 128)
    assert taken(Dlpack((1, 3, 32), strides=(1, 32, 1))) == (AT, (1, 3), 128)
    assert taken(Dlpack((3, 1, 32), strides=(32, 7, 1))) == (AT, (3, 1), 128)
    found = on_device("ids", Dlpack((1, 2), INT, 64, strides=(1, 1)))
    assert whole("ids", found, (1, 2), "int64") == AT
    assert taken(Dlpack((4, 4), strides=(4, 1)), width=4) == (AT, (4,), 16)


def test_empty_arrays_are_accepted():
    """Exporters give an array without elements no address, and any strides."""
    assert taken(Interface((0, 32), "<f4", at=0)) == (0, (0,), 128)
    assert taken(Dlpack((0, 32), at=None)) == (0, (0,), 128)
    assert taken(Dlpack((0, 32), at=None, strides=(1, 1))) == (0, (0,), 128)
    assert taken(Interface((2, 0, 32), "<f4", at=0, strides=(4, 4, 4))) == (0, (2, 0), 128)


class Stream:
    """A library's stream. name: the attribute that has the stream's number; libraries use different names."""

    def __init__(self, name, number):
        setattr(self, name, number)


class Gpu:
    """A GPU of CuPy. Inside a `with` it is the current GPU. stream: the number of its current stream."""

    current: ClassVar[list[Gpu]] = []

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        self.current.append(self)

    def __exit__(self, *error):
        self.current.pop()


def library(monkeypatch, name, number):
    """Install a module that has a current stream. Returns the class of its arrays, which lie on its only GPU."""
    stream, gpu = Stream("cuda_stream" if name == "torch" else "ptr", number), Gpu(number)
    cuda = SimpleNamespace(
        current_stream=lambda device=None: stream,
        get_current_stream=lambda: Stream("ptr", Gpu.current[-1].stream) if Gpu.current else stream,
    )
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(cuda=cuda))
    return type("Array", (Interface,), {"__module__": f"{name}.deep", "device": gpu})


def test_the_current_stream_of_an_arrays_library(monkeypatch):
    """PyTorch and CuPy are asked for their current streams; JAX has none.

    Other arrays name a stream in their interface, where 1 is the legacy default stream.
    """
    assert streams.current(np.zeros(3)) is None
    for given_, want in ((None, 0), (1, 0), (2, 2), (0x5555, 0x5555)):
        assert streams.current(Interface((1, 32), "<f4", stream=given_)) == want
    torch, cupy = library(monkeypatch, "torch", 11), library(monkeypatch, "cupy", 12)
    assert streams.current(torch((1, 32), "<f4")) == 11
    assert streams.current(cupy((1, 32), "<f4", stream=5)) == 12
    assert streams.current(Interface((1, 32), "<f4")) == 12, "CuPy's stream, if CuPy is in use"
    assert streams.current(library(monkeypatch, "jax", 13)((1, 32), "<f4")) is None


def test_cupys_stream_is_that_of_the_arrays_gpu(monkeypatch):
    """The thread's current GPU may be another GPU, and each GPU has its own current stream."""
    cupy = library(monkeypatch, "cupy", 12)
    there = cupy((1, 32), "<f4")
    there.device = Gpu(13)
    assert streams.current(there) == 13
    assert streams.current(cupy((1, 32), "<f4")) == 12
    assert Gpu.current == []


def test_the_stream_of_a_call(monkeypatch):
    """A call runs on the stream that is passed, else on that of the first array. It waits for all other streams."""
    torch, cupy = library(monkeypatch, "torch", 11), library(monkeypatch, "cupy", 12)
    arrays = (np.zeros(3), torch((1, 32), "<f4"), None, cupy((1, 32), "<f4"), torch((1, 32), "<f4"))
    assert streams.choose(None, arrays, 7) == (11, [12])
    assert streams.choose(Stream("ptr", 12), arrays, 7) == (12, [11])
    assert streams.choose(99, arrays, 7) == (99, [11, 12])
    assert streams.choose(None, (np.zeros(3), None), 7) == (7, [])


def test_streams_of_every_library_are_taken():
    for name in ("cuda_stream", "ptr", "handle"):
        assert streams.handle(Stream(name, 0x5555)) == 0x5555
    assert streams.handle(Stream("handle", ctypes.c_void_p(0x5555))) == 0x5555
    assert streams.handle(Stream("handle", ctypes.c_void_p(0))) == 0
    assert streams.handle(Stream("__cuda_stream__", lambda: (0, 0x5555))) == 0x5555
    assert streams.handle(1) == streams.handle(0) == 0, "0 in CUDA and 1 in the protocols are the legacy default stream"
    for wrong in ("now", -1, True, 1.5 + 2j):
        with pytest.raises(InputError, match=r"stream must be None, the number of a CUDA stream, or a stream of CuPy"):
            streams.handle(wrong)


def test_the_stream_passed_to_an_exporter():
    """The exporter gets the stream on which the call is queued, and makes it wait for the exporter's own stream."""
    value = Dlpack((5, 32))
    for stream in (0, 0x5555):
        on_device("x", value, stream)
    assert value.streams == [1, 0x5555]


def test_dlpack_is_preferred():
    """CuPy and PyTorch have both protocols: DLPack is used, because it has bfloat16."""
    both = Dlpack((5, 32), BFLOAT, 16)
    both.__cuda_array_interface__ = Interface((5, 32), "<f2").__cuda_array_interface__
    assert on_device("x", both).dtype == "bfloat16"


def test_the_exporter_is_kept_alive():
    """The exporter lives as long as the DeviceRows."""
    value = Dlpack((5, 32))
    assert value in on_device("x", value).owner
    assert on_device("x", Interface((5, 32), "<f4")).owner is not None


# ---- what cannot be used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Interface((5, 32), "<f8"), "must have dtype float32, got float64"),
        (Interface((5, 32), "<f2"), "must have dtype float32, got float16"),
        (Interface((5, 32), "<i4"), "must have dtype float32, got int32"),
        (Interface((5, 32), "|b1"), "must have dtype float32, got bool"),
        (Interface((5, 32), "<c8"), "must have dtype float32, got complex64"),
        (Interface((5, 32), ">f4"), "byte order"),
        (Interface((5, 32), "nonsense"), "typestr"),
        (Interface((5, 32), "<f4", mask=object()), "mask"),
        (Interface((5, 32), "<f4", strides=(128,)), "strides"),
        (Interface((5, 32), "<f4", stream=0), "stream"),
        (Interface((5, -32), "<f4"), "negative"),
        (Dlpack((5, 32), BOOL, 8), "got code 6, 8 bits"),
        (Dlpack((5, 32), FLOAT, 8), "got code 2, 8 bits"),
        (Dlpack((5, 32), 5, 64), "got code 5, 64 bits"),
        (Dlpack((5, 32), UINT, 4), "got code 1, 4 bits"),
        (Dlpack((5, 8), lanes=4), "lanes"),
        (Dlpack((5, 32), INT, 32), "must have dtype float32, got int32"),
        (Dlpack((5, 32), UINT, 16), "must have dtype float32, got uint16"),
        (Dlpack((5, 32), name=b"used_dltensor"), "cannot be read"),
        (Dlpack((5, -1)), "negative"),
        (Dlpack((5, 31)), r"shape \[..., 32\], got \[5, 31\]"),
        (Dlpack(()), r"shape \[..., 32\], got \[\]"),
        (Dlpack((32, 5), strides=(1, 32)), r"shape \[..., 32\]"),
        (Dlpack((32, 32), strides=(1, 32)), "contiguous rows that start at"),
        (Dlpack((5, 32), strides=(0, 1)), "contiguous rows that start at"),
        (Dlpack((5, 32), strides=(16, 1)), "contiguous rows that start at"),
        (Dlpack((5, 32), strides=(-32, 1), offset=512), "contiguous rows that start at"),
        (Dlpack((5, 32), strides=(33, 1)), "start at multiples of 16 bytes"),
        (Dlpack((5, 32), offset=4), "start at multiples of 16 bytes"),
        (Interface((5, 32), "<f4", at=AT + 8), "start at multiples of 16 bytes"),
        (Dlpack((2, 3, 32), strides=(192, 64, 1)), "contiguous rows that start at"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_arrays_that_cannot_be_read_in_place_are_refused(value, words):
    with pytest.raises(InputError, match=f"x.*{words}"):
        taken(value)


def test_memory_of_another_kind_of_device():
    """Arrays of ROCm and other devices are not on a CUDA device."""
    assert on_device("x", Dlpack((5, 32), device=10)) is None


def test_an_exporter_that_fails():
    """PyTorch refuses arrays that require gradients; its message reaches the user."""

    class Leaf(Dlpack):
        def __dlpack__(self, *, stream=None):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(InputError, match=r"capsule of x .*tensor.detach"):
        on_device("x", Leaf((5, 32)))

    class Meta:
        @property
        def __cuda_array_interface__(self):
            raise AttributeError("not on a GPU")

    assert on_device("x", Meta()) is None


def test_an_incomplete_interface_is_refused():
    for interface in ({"shape": (1, 32), "typestr": "<f4"}, {"data": (AT, False), "typestr": "<f4"}, None):
        with pytest.raises(InputError, match=r"__cuda_array_interface__ of x"):
            on_device("x", SimpleNamespace(__cuda_array_interface__=interface))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Dlpack((4, 2), INT, 32), "int64 array .* got int32"),
        (Dlpack((4, 3), INT, 64), r"shape \[4, 2\], got int64 \[4, 3\]"),
        (Dlpack((4, 2), INT, 64, strides=(1, 4)), "contiguous int64"),
        (Dlpack((4, 2), INT, 64, offset=4), "start at a multiple of 8 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_whole_arrays_that_are_refused(value, words):
    with pytest.raises(InputError, match=words):
        whole("ids", on_device("ids", value), (4, 2), "int64")


def test_a_read_only_array_cannot_be_written():
    value = Interface((5, 32), "<f4")
    value.__cuda_array_interface__["data"] = (AT, True)
    found = on_device("out", value)
    assert taken(value) == (AT, (5,), 128)
    with pytest.raises(InputError, match=r"out .*read-only"):
        device_arrays.writable("out", found)


@pytest.mark.parametrize("typestr", ["<f4", "<u2", "<V2"])
def test_overlaps_are_found_for_every_type(typestr):
    """An array's end is found also if NumPy has no name for its type. (It has none for "<V2", void16.)"""
    nbytes = 5 * 32 * int(typestr[-1])
    first, inside, behind = (
        on_device("x", Interface((5, 32), typestr, at=AT + offset)) for offset in (0, nbytes - 16, nbytes)
    )
    assert first is not None
    assert inside is not None
    assert behind is not None
    assert first.end == AT + nbytes
    assert device_arrays.overlap(first, inside)
    assert not device_arrays.overlap(first, behind)


# ---- any strides, against NumPy's own view of them ------------------------------------------------------------------


@given(st.data())
def test_a_view_is_accepted_where_its_rows_can_be_read_in_place(data):
    """Rows of an accepted view are found where NumPy has them. A refused view has rows that cannot be read in place."""
    base = np.zeros((6, 4, 64), np.float32)
    view = base
    for axis in range(3):
        start, step = data.draw(st.integers(0, 3)), data.draw(st.sampled_from((1, 1, 2, -1)))
        view = view[(slice(None),) * axis + (slice(start, None, step),)]
    if data.draw(st.booleans()):
        view = view[data.draw(st.integers(0, view.shape[0] - 1))] if view.shape[0] else view
    shift = view.ctypes.data - base.ctypes.data
    value = Interface(view.shape, "<f4", at=AT + shift, strides=view.strides)
    try:
        address, lead, step = taken(value, width=view.shape[-1])
    except InputError:
        flat = AT + shift
        plain = view.strides[-1] == 4 and flat % 16 == 0 and (view.ndim < 3 or view.flags.c_contiguous)
        good = view.ndim == 2 and plain and view.strides[0] > 0 and view.strides[0] % 16 == 0
        assert not good
        assert not (view.flags.c_contiguous and flat % 16 == 0 and view.shape[-1] % 4 == 0 and view.size)
        return
    assert lead == view.shape[:-1]
    for row, at in enumerate(np.ndindex(*lead)):
        element = sum(i * s for i, s in zip((*at, 0), view.strides))
        assert address + row * step == AT + shift + element


def test_contiguous_strides_are_those_of_numpy():
    for shape in ((), (3,), (2, 3), (4, 1, 5)):
        assert contiguous(shape, 4) == np.zeros(shape, np.float32).strides

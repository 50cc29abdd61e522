"""Reads one safetensors file. Its header is checked against the file's size before any tensor is read.

A file is a u64 header length (little-endian), a JSON header, and data. The header gives for each tensor its dtype, its
shape, and the offsets of its bytes from the header's end. `__metadata__` is no tensor. The file is memory-mapped, so
values are read from disk when they are used.
Source: https://github.com/huggingface/safetensors, README.md, "Format".
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from kernel_cache import regular

from ..errors import CheckpointError

LENGTH = 8  # bytes that hold the header's length
MOST_HEADER = 100_000_000  # most bytes of a header: the format's own limit
MOST_AXES = 32
MOST_SIZE = 1 << 48  # the largest axis; products with a count of bytes are Python's ints
METADATA = "__metadata__"
COPY = "download or copy this file again"

# by the dtype in a header, the type with which NumPy reads the values
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F32": np.float32, "F64": np.float64, "C64": np.complex64, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # types that share bytes: sizes are checked, values are not read


def shown(name: Any) -> str:
    """A name from a file, quoted for a message, without control characters, and of at most 120 characters."""
    text = ascii(name)
    return text if len(text) <= 120 else text[:100] + "...'"


@dataclass(frozen=True)
class Entry:
    """A tensor's line of the header. start, end: the range of its bytes, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """A memory-mapped safetensors file. entries: each tensor's entry, by name.

    Raises CheckpointError with file, tensor and remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with regular.opened(path) as file:
                size = os.fstat(file.fileno()).st_size
                self.entries, self._data = self._header(file, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._address = np.frombuffer(self._map, np.uint8).__array_interface__["data"][0]
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error

    def array(self, name: str) -> np.ndarray:
        """A read-only view of a tensor's values in the file. Nothing is read until the values are used."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {shown(name)} has dtype {entry.dtype}, which Aristos cannot read"
            )
        dtype = np.dtype(DTYPES[entry.dtype])
        count = (entry.end - entry.start) // dtype.itemsize
        if not count:
            return np.zeros(entry.shape, dtype)
        # as bytes first, because the format does not promise that a tensor is aligned to its items
        raw = np.frombuffer(self._map, np.uint8, entry.end - entry.start, self._data + entry.start)
        return raw.view(dtype).reshape(entry.shape)

    def release(self, array: np.ndarray) -> None:
        """Drop the pages of a contiguous view from this process. If the view is used again, they are mapped again."""
        start = array.__array_interface__["data"][0] - self._address
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        if array.nbytes:
            self._map.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)

    # ------------------------------------------------------------ the header

    def _wrong(self, why: str, name: Any = None, remedy: str = COPY) -> NoReturn:
        tensor = "" if name is None else f" tensor {shown(name)}"
        raise CheckpointError(f"{self.path}:{tensor} {why}: {remedy}")

    def _header(self, file: Any, size: int) -> tuple[dict[str, Entry], int]:
        """(the entries of the header, the position of the data)."""
        if size < LENGTH:
            self._wrong(f"the file has {size} bytes, too few for a safetensors file")
        length = struct.unpack("<Q", file.read(LENGTH))[0]
        if length > min(MOST_HEADER, size - LENGTH):
            self._wrong(
                f"the header should have {length} bytes, but the file has {size}: the file is truncated, or is no"
                " safetensors file"
            )
        text = file.read(length)
        if len(text) != length:
            self._wrong("the file became shorter while it was read")
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=self._once, parse_constant=self._constant)
        except CheckpointError:
            raise
        except (ValueError, RecursionError) as error:
            self._wrong(f"the header is not JSON ({str(error)[:80]})")
        if not isinstance(header, dict):
            self._wrong(f"the header must be a JSON object, got {type(header).__name__}")
        metadata = header.pop(METADATA, {})
        if not isinstance(metadata, dict):
            self._wrong("must be a JSON object", METADATA)
        entries = {name: self._entry(name, line, size - LENGTH - length) for name, line in header.items()}
        self._check_order(entries, size - LENGTH - length)
        return entries, LENGTH + length

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A dict of a JSON object's pairs. Raises if a name comes twice."""
        found = dict(pairs)
        if len(found) < len(pairs):
            self._wrong("is named twice in the header", named_twice(pairs))
        return found

    def _constant(self, word: str) -> NoReturn:
        self._wrong(f"the header holds {word}, which is not JSON")

    def _entry(self, name: str, line: Any, data: int) -> Entry:
        if not isinstance(line, dict) or set(line) != {"dtype", "shape", "data_offsets"}:
            self._wrong(f"must have dtype, shape and data_offsets in the header, got {shown(line)}", name)
        dtype, shape, offsets = line["dtype"], line["shape"], line["data_offsets"]
        if not isinstance(dtype, str) or (dtype not in DTYPES and dtype not in PACKED_BITS):
            self._wrong(f"has dtype {shown(dtype)}, which Aristos does not know", name, "convert the tensor")
        if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(_is_size(n) for n in shape):
            self._wrong(f"must have a shape of at most {MOST_AXES} sizes, got {shown(shape)}", name)
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
            self._wrong(f"must have two data_offsets, got {shown(offsets)}", name)
        start, end = offsets
        if not start <= end <= data:
            self._wrong(f"claims bytes {start} to {end} of the data, which has only {data} bytes", name)
        bits = PACKED_BITS.get(dtype) or 8 * np.dtype(DTYPES[dtype]).itemsize
        for n in shape:
            bits *= n
        if bits != 8 * (end - start):
            self._wrong(f"of shape {shown(shape)} and {dtype} cannot have the {end - start} bytes that it claims", name)
        return Entry(dtype, tuple(shape), start, end)

    def _check_order(self, entries: dict[str, Entry], data: int) -> None:
        """Raise CheckpointError unless the tensors cover the data without holes or overlaps, as the format demands."""
        at, before = 0, None
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start < at:
                self._wrong(f"overlaps {shown(before)}", name)
            if entry.start > at:
                self._wrong(f"begins at byte {entry.start}, but the tensor before it ends at {at}", name)
            at, before = entry.end, name
        if at != data:
            self._wrong(f"the tensors have {at} bytes, but the file holds {data} after its header")


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file with these tensors. Raises CheckpointError for a dtype that the format does not have."""
    words = {np.dtype(dtype): word for word, dtype in DTYPES.items()}
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        if array.dtype not in words:
            raise CheckpointError(
                f"{path}: tensor {shown(name)} has dtype {array.dtype}, which the format does not have"
            )
        end = at + array.nbytes
        header[name] = {"dtype": words[array.dtype], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH)  # aligns the data
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)


def named_twice(pairs: Iterable[tuple[str, Any]]) -> str:
    """The first name that comes twice."""
    seen: set[str] = set()
    return next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_SIZE

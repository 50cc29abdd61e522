"""Files of saved arrays: NumPy's npz with float32. The manifest of a save records a digest of each of its files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from kernel_cache import regular

from ..errors import CheckpointError
from ..primitives import atomic_file, npz
from .differences import differences
from .given import Arrays

COMMON, DENSE = -1, "dense.npz"  # COMMON stands in place of an expert's id for router and shared expert
_BYTES = 32  # bytes of a digest
_TOO_MANY = {errno.EMFILE, errno.ENFILE}


class Recorded(NamedTuple):
    """What a manifest records of a file: its size, and its BLAKE2b digest of 256 bits in hexadecimal."""

    size: int
    digest: str


def name_of(layer: int, expert: int) -> str:
    """The name of the file that has an expert's arrays, or with COMMON those of router and shared expert."""
    return f"layer-{layer}-{'common' if expert == COMMON else f'expert-{expert}'}.npz"


def digest_of(content: bytes) -> str:
    """The digest of bytes."""
    return hashlib.blake2b(content, digest_size=_BYTES).hexdigest()


def cannot(path: Path, what: str, error: OSError) -> CheckpointError:
    """The error for a file that the system does not let this process read or write. The file need not be damaged."""
    advice = ": close files, or allow more (ulimit -n)" if error.errno in _TOO_MANY else ""
    return CheckpointError(f"{path} cannot be {what}: {error.strerror or error}{advice}")


class _Recording:
    """A file that is written from beginning to end, and the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash, self.size = file, hashlib.blake2b(digest_size=_BYTES), 0

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.size += self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def write_arrays(path: Path, arrays: Arrays) -> Recorded:
    """Write and sync a file of arrays. If this raises CheckpointError, it leaves no file."""
    try:
        with open(path, "wb") as file:
            recording = _Recording(file)
            with zipfile.ZipFile(recording, "w") as archive:  # type: ignore[call-overload]
                for name, array in arrays.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        npy.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if error.errno in _TOO_MANY:
            raise cannot(path, "written", error) from error
        advice = "save elsewhere"
        if error.errno in atomic_file.FULL:
            needed = sum(array.nbytes for array in arrays.values())
            advice = f"{atomic_file.space(path.parent, needed)}: free some space, or save elsewhere"
        raise CheckpointError(f"{path} cannot be written: {os.strerror(error.errno or 0)}: {advice}") from error
    return Recorded(recording.size, recording.hash.hexdigest())


def read_arrays(path: Path, wanted: dict[str, tuple[int, ...]], rest: bool, recorded: Recorded | None) -> Arrays:
    """Read a file's float32 arrays of the wanted names and shapes. Raises CheckpointError.

    rest: whether the file may have other arrays, which are ignored. recorded: what the manifest says of the file; None
    for a save that has no digests.
    """
    try:
        with regular.opened(path) as file:
            if recorded is not None:
                _check(path, file, recorded)
            arrays = npz.read(file)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise cannot(path, "read", error) from error
    except MemoryError:
        raise CheckpointError(
            f"{path} cannot be read, because it does not fit into memory: free some memory, or use more ranks"
        ) from None
    except npz.BROKEN as error:
        raise CheckpointError(f"{path} is damaged: {str(error)[:400] or type(error).__name__}") from error
    found = {name: array for name, array in arrays.items() if name in wanted or not rest}
    got = {name: f"{array.dtype} {list(array.shape)}" for name, array in found.items()}
    need = {name: f"{np.dtype(np.float32)} {list(shape)}" for name, shape in wanted.items()}
    if got != need:
        raise CheckpointError(f"{path} holds other arrays: {differences(got, need, 'the file', 'this object')}")
    return found


def _check(path: Path, file: Any, recorded: Recorded) -> None:
    """Raise CheckpointError unless the file has the size and the digest that were recorded."""
    size, found = os.fstat(file.fileno()).st_size, ""
    if size == recorded.size:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_BYTES)).hexdigest()
    if found != recorded.digest:
        what = "other content than was saved" if size == recorded.size else f"{size} bytes, not {recorded.size}"
        raise CheckpointError(f"{path} is damaged, or belongs to another save: the file has {what}")

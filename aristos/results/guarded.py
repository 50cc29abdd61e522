"""Reads the parts of an HDF5 file that may come from anywhere, and refuses what a results file never holds.

The module refuses links that lead elsewhere, data kept in other files or assembled from them, names that cannot be
shown, files larger than MOST_FILE, and data of more bytes than MOST_DATA, or than SHARE times the file's size plus
SPARE. Sizes are checked before memory is allocated. Every function raises ValueError, or what h5py raises. `trial`
reads a file in another process first, because a damaged file can make the HDF5 library crash or loop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kernel_cache.texts import plain

SHARE, SPARE = 64, 64 << 20  # data may have SHARE times the bytes of the compressed file, plus SPARE bytes
MOST_FILE, MOST_DATA = 1 << 30, 4 << 30  # most bytes of a file, and of its data, whatever the other limits allow
SECONDS = 10.0  # processor time that a trial may take, plus one second for each 16 MiB of the file
WALL = 6  # a trial may last this many times its limit of processor time: a slow disk does not mean a damaged file
CODE = """
import math, resource, sys, time
from aristos.results import hdf5
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + float(sys.argv[3])), resource.RLIM_INFINITY))
try:
    hdf5.read(sys.argv[1])
except Exception as error:
    print(str(error) or "out of memory")
    sys.exit(1)
"""


@dataclass
class Budget:
    """Bytes that may still be read."""

    left: int

    @classmethod
    def for_file(cls, path: Path) -> Budget:
        return cls(_most(path.stat().st_size))

    def take(self, name: str, nbytes: int) -> None:
        """Take `nbytes` from the bytes left. Raises ValueError if fewer are left.

        name: the data's name, for the message.
        """
        if nbytes > self.left:
            raise ValueError(f"{name} declares {nbytes} bytes, far more than the file holds")
        self.left -= nbytes


def _most(size: int) -> int:
    """The most bytes of data in a file of `size` bytes."""
    return min(SHARE * size + SPARE, MOST_DATA)


def trial(path: Path) -> str:
    """Read the file in another process first, in bounded time and memory. Returns its error, or an empty text."""
    size = path.stat().st_size
    seconds = SECONDS + size / (16 << 20)
    package = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))}
    env |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    # -P: the trial does not import a file of the current folder, such as h5py.py.
    words = [sys.executable, "-P", "-c", CODE, os.fspath(path), str(2 * _most(size)), str(seconds)]
    wrong = f"{path}: cannot be read: HDF5"
    try:
        done = subprocess.run(words, env=env, timeout=WALL * seconds, capture_output=True, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        return f"{wrong} took more than {WALL * seconds:.0f} s: the file is damaged, or its disk does not answer"
    if done.returncode == -signal.SIGXCPU:
        return f"{wrong} took more than {seconds:.0f} s of processor time: the file is damaged"
    if done.returncode < 0:
        return f"{wrong} crashed (signal {-done.returncode}): the file is damaged"
    return done.stdout.strip() or wrong if done.returncode else ""


def members(group: h5py.Group) -> Iterator[tuple[str, Any]]:
    """The groups and datasets that lie in a group. Raises ValueError for links."""
    for name in group:
        if not plain(name):
            raise ValueError(f"the name {name!r} has characters that cannot be shown")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link, which may lead to another file")
        yield name, group[name]


def values(data: h5py.Dataset, budget: Budget) -> np.ndarray:
    """The array of a dataset: numbers, or text of NumPy's type."""
    name = data.name or "?"
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{name} must be a dataset")
    if data.is_virtual or data.external:
        raise ValueError(f"{name} lies in another file")
    if data.chunks:
        budget.take(name, int(np.prod(data.chunks, dtype=object)) * data.dtype.itemsize)
    _declared(name, data.shape, data.dtype, budget)
    if h5py.check_string_dtype(data.dtype) is None:
        found = np.asarray(data[()])
        return found.astype(np.float64) if found.dtype.itemsize > 8 else found  # long double has no JSON form
    return texts(name, np.asarray(data.asstr()[()], dtype=object), budget)


def texts(name: str, found: np.ndarray, budget: Budget) -> np.ndarray:
    """An array of Python strings as an array of NumPy's text, in which every element is as long as the longest text."""
    budget.take(name, 4 * found.size * max((len(text) for text in found.flat), default=0))
    return found.astype(str)


def attributes(place: h5py.Group | h5py.Dataset, budget: Budget) -> dict[str, Any]:
    """Attributes as plain Python values. References, which tie dimensions to variables, are left out."""
    found = {}
    for key in place.attrs:
        if not plain(key):
            raise ValueError(f"the attribute {key!r} has characters that cannot be shown")
        kept = place.attrs.get_id(key)
        if key in ("DIMENSION_LIST", "REFERENCE_LIST"):
            continue
        _declared(key, kept.shape, kept.dtype, budget)
        value = place.attrs[key]
        if isinstance(value, h5py.Empty):
            raise ValueError(f"the attribute {key} is empty")
        found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """An attribute's value without NumPy's types; bytes become text."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain((value.astype(np.float64) if value.dtype == np.longdouble else value).tolist())
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def named(found: dict[str, Any], key: str, of: str) -> str:
    """The text that the attribute `key` of `of` holds; '' if there is no such attribute."""
    value = found.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"the attribute {key} of {of} must be a text, got {value!r:.80}")
    return value


def dimensions(data: h5py.Dataset) -> tuple[str, ...]:
    """For each axis, the name of its first dimension scale."""
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{data.name} must be a dataset")
    if not data.ndim:
        return ()
    kept = data.attrs.get_id("DIMENSION_LIST") if "DIMENSION_LIST" in data.attrs else None
    if kept is None or kept.shape != (data.ndim,) or h5py.check_vlen_dtype(kept.dtype) != h5py.ref_dtype:
        raise ValueError(f"{data.name}: its dimensions must be a list of references for each of {data.ndim} axes")
    scales = [axis[0] if len(axis) else None for axis in data.attrs["DIMENSION_LIST"]]
    if not all(scales):
        raise ValueError(f"{data.name} has an axis without a dimension")
    return tuple(str(data.file[scale].name).rsplit("/", 1)[1] for scale in scales)


def _declared(name: str, shape: tuple[int, ...] | None, dtype: np.dtype, budget: Budget) -> None:
    """Take the bytes that an array needs. Raises ValueError for elements that are neither numbers nor text."""
    if shape is None:
        raise ValueError(f"{name} is empty")
    text = h5py.check_string_dtype(dtype)
    if text is None and dtype.kind not in "iufb":
        raise ValueError(f"{name} must hold numbers or text, got {dtype}")
    each = dtype.itemsize if text is None else 64 + 5 * dtype.itemsize  # text is stored twice: by Python and NumPy
    budget.take(name, int(np.prod(shape, dtype=object)) * each)

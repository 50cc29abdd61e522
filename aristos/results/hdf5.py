"""The results file. Each run of a benchmark is an HDF5 group; runs are appended, and never rewritten.

A run is the group `runs/<utc>-<id>`. When a suite ends, its tables are added to the run. Each table is a group in it,
laid out as in netCDF-4 (dimension scales, `units`, `long_name`), so that xarray, h5dump and HDFView can read it. Times
are raw: seconds, float64, for each rank and iteration, not averaged. The run's attributes have what is needed to repeat
it.

`append` holds a lock file, adds the run to the content in memory, writes it all to a new file, syncs that file and
renames it over the original. So a crash in mid-write loses no earlier run, readers never see half a file, and two
writers lose nothing.
HDF5 itself never writes to a disk, which may be full. HDF5 also never opens the file by its path, because it would lock
the file: parallel file systems refuse locks, and a lock may conflict with another reader in this process, for example
xarray.

The file is not a database: there are no updates, deletions or queries. This module knows no MPI: one rank gathers the
data and writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kernel_cache import regular
from kernel_cache.texts import shown

from ..errors import InputError, ResultsError
from ..primitives.atomic_file import locked, rewrite, try_writing
from . import guarded
from .tables import Results, Run, Table, Variable

SCHEMA = "aristos-bench/1"
LOCK_SECONDS = 60.0
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSIONS = ("v108", "v110")  # new enough for attributes above 64 KB, old enough for every reader in use


def append(path: str | os.PathLike[str], run: Run, lock_seconds: float = LOCK_SECONDS, *, more: bool = False) -> Path:
    """Add a run to a file. The file and its folder are made if they do not exist.

    Parameters
    ----------
    path : path
        The results file.
    run : Run
        What to add.
    lock_seconds : float, default 60.0
        How long to wait for another writer.
    more : bool, default False
        If the file has the run, add these tables to it, and set these attributes.

    Returns
    -------
    Path
        The file's real path.

    Raises
    ------
    ResultsError
        The file cannot be read or written, is not a results file, has a run of that name (with `more`: such a table),
        or another writer holds its lock for longer than `lock_seconds`. The file is unchanged.
    InputError
        An attribute cannot be stored. The file is unchanged.

    Examples
    --------
    >>> from aristos import results
    >>> table = results.Table("demo").dim("tokens", [16, 32]).add("seconds", "tokens", [0.1, 0.2], units="s")
    >>> file = results.append("runs.h5", results.Run("first", {"command": "demo"}, [table]))
    >>> results.load(file)["first"]["tables"]["demo"]["variables"]["seconds"]["units"]
    's'
    """
    target = Path(os.path.realpath(path))  # a symbolic link is followed, because a new file would replace the link
    if target.exists():
        with _opened(target):
            pass
    with _described(target, "cannot be written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, lock_seconds):
            rewrite(target, lambda content: _add(target, content, run, more))
    return target


def check(path: str | os.PathLike[str]) -> None:
    """Check that `append` can write a file. Call this before a long measurement.

    Parameters
    ----------
    path : path
        The results file.

    Raises
    ------
    ResultsError
        `append` would fail.
    """
    if not os.fspath(path):
        raise ResultsError("a results file needs a name, got an empty path")
    target = Path(os.path.realpath(path))
    folder = target.parent
    with _described(target, "cannot be written"):
        while not folder.exists():
            folder = folder.parent
    try_writing(target, folder)
    if target.exists():
        with _opened(target):
            pass


def load(path: str | os.PathLike[str]) -> Results:
    """Read all runs of a file.

    The file may come from anywhere: another process reads it first, so that a damaged file cannot end or block this
    one.

    Parameters
    ----------
    path : path
        The results file.

    Returns
    -------
    Results
        Its runs.

    Raises
    ------
    ResultsError
        The file cannot be read, or is not a results file.
    """
    target = Path(path)
    _check_signature(target)
    if wrong := guarded.trial(target):
        raise ResultsError(wrong)
    return read(target)


def read(path: str | os.PathLike[str]) -> Results:
    """Read all runs in this process. Use it only for files that this package wrote, and `load` for all others."""
    target = Path(path)
    with _opened(target) as file, _described(target, "cannot be read"):
        budget = guarded.Budget.for_file(target)
        runs = sorted(guarded.members(file["runs"]))
        return Results([_read_run(name, group, budget) for name, group in runs])


@contextlib.contextmanager
def _described(path: Path, what: str) -> Iterator[None]:
    """A block that turns errors of the system, HDF5 and h5py into a ResultsError with the file's name."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, MemoryError) as error:
        if isinstance(error, InputError | ResultsError):
            raise
        cause = shown(str(error)) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
        raise ResultsError(f"{path}: {what}: {cause}") from error


def _check_signature(path: Path) -> None:
    """Raise ResultsError unless the file exists and begins as an HDF5 file."""
    with _described(path, "cannot be read"):
        # h5py's own messages do not distinguish a missing file from an unreadable one
        try:
            with regular.opened(path, guarded.MOST_FILE) as file:
                first = file.read(len(_SIGNATURE))
        except FileNotFoundError:
            made = f"`python -m aristos.bench --out {path}` writes one"
            raise ResultsError(f"{path}: No such file or directory; {made}") from None
        if first != _SIGNATURE:
            raise ResultsError(f"{path}: not an HDF5 file; move it away or choose another file")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading, after a check that it is a results file."""
    _check_signature(path)
    with contextlib.ExitStack() as stack:
        with _described(path, "cannot be read"):
            content = stack.enter_context(open(path, "rb"))
            opened = stack.enter_context(h5py.File(content, "r"))
        with _described(path, "cannot be read"):
            _check_schema(path, opened)
        yield opened


def _check_schema(path: Path, file: h5py.File) -> None:
    """Raise ResultsError unless an open file is a results file in the format of this version."""
    schema = guarded.attributes(file, guarded.Budget(guarded.SPARE)).get("schema")
    if not isinstance(schema, str) or schema != SCHEMA:
        if isinstance(schema, str) and schema.startswith(SCHEMA.split("/")[0] + "/"):
            raise ResultsError(
                f"{path}: the results are of another version of Aristos, in the format {schema!r}; this version reads"
                f" {SCHEMA!r}: use the version that wrote the file, or measure again"
            )
        got = "no schema" if schema is None else f"the schema {schema!r}"
        raise ResultsError(f"{path}: an HDF5 file with {got}, where {SCHEMA!r} is needed; choose another file")
    if "runs" not in dict(guarded.members(file)) or not isinstance(file["runs"], h5py.Group):
        raise ResultsError(f"{path}: a results file without its group 'runs', so it is damaged; choose another file")


def _add(target: Path, content: bytes | None, run: Run, more: bool) -> bytes:
    """The content of the file with the run added. content: None if there is no file yet."""
    memory = io.BytesIO(content or b"")
    with h5py.File(memory, "r+" if content is not None else "w", libver=_VERSIONS) as file:
        if content is not None:
            _check_schema(target, file)
        else:
            file.attrs["schema"] = SCHEMA
            file.create_group("runs")
        _write_run(target, file["runs"], run, more)
    size = memory.getbuffer().nbytes
    if size > guarded.MOST_FILE:
        raise ResultsError(
            f"{target}: the file would have {size} bytes with this run, but may have at most {guarded.MOST_FILE}:"
            " choose another file"
        )
    return memory.getvalue()


def _write_run(target: Path, runs: h5py.Group, run: Run, more: bool) -> None:
    if run.name in runs and not more:
        raise ResultsError(
            f"{target}: has a run {run.name!r} already, and runs are never replaced: give the run another name"
        )
    group = runs.require_group(run.name)
    _write_attributes(group, {"schema": SCHEMA, **run.attributes})
    for table in run.tables:
        if table.name in group:
            raise ResultsError(
                f"{target}: run {run.name!r} has a table {table.name!r} already: give the table another name"
            )
        part = group.create_group(table.name)
        _write_attributes(part, {"suite": table.suite, **table.attributes})
        part.attrs["dims"] = list(table.dims) or [""]
        for name, dim in table.dims.items():
            _write_array(part, name, dim).make_scale(name)
        for name, variable in table.variables.items():
            data = _write_array(part, name, variable)
            for axis, dim_name in enumerate(variable.dims):
                data.dims[axis].attach_scale(part[dim_name])


def _write_array(group: h5py.Group, name: str, variable: Variable) -> h5py.Dataset:
    values = variable.values
    dtype = h5py.string_dtype() if values.dtype.kind == "U" else values.dtype
    small = values.ndim == 0 or values.nbytes < 4096 or values.dtype.kind == "U"
    filters: dict[str, Any] = {} if small else {"compression": "gzip", "shuffle": True, "fletcher32": True}
    data = group.create_dataset(
        name, data=values.astype(object) if values.dtype.kind == "U" else values, dtype=dtype, **filters
    )
    for key in ("units", "long_name"):
        if text := getattr(variable, key):
            data.attrs[key] = text
    return data


def _write_attributes(place: h5py.Group, attributes: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in attributes.items():
        if isinstance(value, Mapping):
            _write_attributes(place, value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and not value:
            place.attrs[prefix + key] = np.empty(0)
        elif value is not None:
            place.attrs[prefix + key] = _attribute(prefix + key, value)


def _attribute(name: str, value: Any) -> Any:
    """A value as HDF5 can hold it in an attribute: lists of one kind unchanged, mixed or ragged lists as JSON."""
    kinds = {type(v) for v in value} if isinstance(value, list | tuple) else {type(value)}
    if len(kinds) == 1 and issubclass(next(iter(kinds)), str | int | float | np.generic | np.ndarray):
        return value
    try:
        return json.dumps(value)
    except TypeError as error:
        raise InputError(
            f"attribute {name!r} cannot be stored: it must be text, a number, or a list or dict of these, got {value!r}"
            f" ({error})"
        ) from None


def _read_run(name: str, group: h5py.Group, budget: guarded.Budget) -> Run:
    if not isinstance(group, h5py.Group):
        raise ValueError(f"runs/{name} must be a run, which is a group, but it is a dataset")
    tables = [_read_table(*part, budget) for part in guarded.members(group)]
    return Run(name, guarded.attributes(group, budget), tables)


def _read_table(name: str, group: h5py.Group, budget: guarded.Budget) -> Table:
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{name} must be a table, which is a group, but it is a dataset")
    attributes = guarded.attributes(group, budget)
    suite = guarded.named(attributes, "suite", name)
    dims = attributes.get("dims")
    if not suite or not isinstance(dims, list) or not all(isinstance(each, str) for each in dims):
        raise ValueError(f"{name} is no table: it must have the attributes suite, a text, and dims, a list of texts")
    table = Table(suite, name, attributes={key: v for key, v in attributes.items() if key not in ("suite", "dims")})
    parts = dict(guarded.members(group))
    for key in filter(None, dims):
        if key not in parts:
            raise ValueError(f"the table {name} has no dimension {key!r:.80}, or has it twice")
        table.dims[key] = _read_array(parts.pop(key), (key,), budget)
    for key, data in parts.items():
        table.variables[key] = _read_array(data, guarded.dimensions(data), budget)
    return table


def _read_array(data: h5py.Dataset, dims: tuple[str, ...], budget: guarded.Budget) -> Variable:
    attributes = guarded.attributes(data, budget)
    units, long_name = (guarded.named(attributes, key, str(data.name)) for key in ("units", "long_name"))
    return Variable(dims, guarded.values(data, budget), units, long_name)

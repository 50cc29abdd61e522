"""The results file. Each run of a benchmark is an HDF5 group; runs are appended, and never rewritten.

A run is `runs/<utc>-<id>`. It grows by a suite's tables when the suite ends. Each table is a group in it, laid out as
in netCDF-4 (dimension scales, `units`, `long_name`), so that xarray, h5dump and HDFView can read it. Times are raw:
seconds, float64, for each rank and iteration, not averaged. The run's attributes have what is needed to repeat it.

Appending adds to the content in memory, writes it to a new file, syncs that and renames it over the original, under a
lock file. So a crash in mid-write loses no earlier run, readers never see half a file, and two writers lose nothing.
HDF5 itself never writes to a disk, which may be full. It also never opens the file by its path, because it would lock
it: parallel file systems refuse that, and it may conflict with another reader in this process, such as xarray.

It is not a database: there are no updates, deletions or queries. It knows no MPI: one rank gathers and writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from kernel_cache import regular
from kernel_cache.texts import shown

from ..errors import EnvironmentProblem, InputError, ResultsError
from ..primitives.atomic_file import locked, rewrite, try_writing
from . import guarded

if TYPE_CHECKING:
    import pandas

SCHEMA = "aristos-bench/1"
LOCK_SECONDS = 60.0
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSIONS = ("v108", "v110")  # new enough for attributes above 64 KB, old enough for every reader in use


@dataclass
class Variable:
    """An array over named dimensions.

    Attributes
    ----------
    dims : tuple of str
        The dimensions' names.
    values : array [len(dim) for dim in dims]
        Numbers, booleans or text.
    units : str
        Such as "s"; may be empty.
    long_name : str
        What is measured; may be empty.
    """

    dims: tuple[str, ...]
    values: np.ndarray
    units: str = ""
    long_name: str = ""


@dataclass
class Table:
    """One suite's measurements: coordinates of the dimensions, and variables over some of them.

    Attributes
    ----------
    suite : str
        The suite's name.
    name : str
        The table's name in the run, by default the suite's.
    dims : dict of str to Variable
        Name -> its coordinates, one-dimensional.
    variables : dict of str to Variable
        Name -> what was measured.
    attributes : dict
        Settings of this table.

    Examples
    --------
    >>> from aristos.results import Table
    >>> table = Table("demo").dim("tokens", [16, 32]).add("seconds", "tokens", [0.1, 0.2], units="s")
    >>> table.variables["seconds"].values
    array([0.1, 0.2])
    """

    suite: str
    name: str = ""
    dims: dict[str, Variable] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.name or self.suite

    def dim(self, name: str, values: Any, units: str = "", long_name: str = "") -> Table:
        """Add a dimension and its coordinates.

        Parameters
        ----------
        name : str
            Its name, without "/".
        values : array [n]
            Its coordinates: numbers, booleans or text.
        units : str, default ""
            Their unit; of "s" they become float64.
        long_name : str, default ""
            What they are.

        Returns
        -------
        Table
            This table.

        Raises
        ------
        InputError
            Coordinates that are not one-dimensional or of another type, or a name that is taken.
        """
        array = _array(name, values, units)
        if array.ndim != 1:
            raise InputError(f"dimension {name!r} needs one-dimensional coordinates, got shape {array.shape}")
        self._free(name)
        self.dims[name] = Variable((name,), array, units, long_name)
        return self

    def add(self, name: str, dims: tuple[str, ...] | str, values: Any, units: str = "", long_name: str = "") -> Table:
        """Add a variable over dimensions added before.

        Parameters
        ----------
        name : str
            Its name, without "/".
        dims : tuple of str, or str
            Names of dimensions, or of the only one.
        values : array [len(dim) for dim in dims]
            Numbers, booleans or text.
        units : str, default ""
            Their unit; of "s" they become float64.
        long_name : str, default ""
            What is measured.

        Returns
        -------
        Table
            This table.

        Raises
        ------
        InputError
            An unknown dimension, values of another shape or type, or a name that is taken.
        """
        dims = (dims,) if isinstance(dims, str) else tuple(dims)
        array = _array(name, values, units)
        missing = [d for d in dims if d not in self.dims]
        if missing:
            raise InputError(f"variable {name!r} uses the dimension {missing[0]!r}: add it first, with its coordinates")
        shape = tuple(len(self.dims[d].values) for d in dims)
        if array.shape != shape:
            raise InputError(f"variable {name!r} over {dims} must have shape {shape}, got {array.shape}")
        self._free(name)
        self.variables[name] = Variable(dims, array, units, long_name)
        return self

    def _free(self, name: str) -> None:
        if not name or "/" in name:
            raise InputError(f"a name in a table must be non-empty and without '/', got {name!r}")
        if name in self.dims or name in self.variables:
            raise InputError(f"table {self.name!r} has {name!r} already")

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and arrays."""
        parts = {"dims": self.dims, "variables": self.variables}
        plain = {kind: {name: vars(v).copy() for name, v in part.items()} for kind, part in parts.items()}
        return {"suite": self.suite, "attributes": dict(self.attributes), **plain}

    def to_pandas(self) -> dict[tuple[str, ...], pandas.DataFrame]:
        """Frames of the variables, one for all that have the same dimensions.

        A frame has a column for each dimension, then for each variable, and a row for each point. No value is repeated.

        Returns
        -------
        dict of tuple of str to DataFrame
            Dimensions -> the frame of the variables over just these.

        Raises
        ------
        EnvironmentProblem
            pandas is not installed.
        """
        pd = _pandas()
        frames = {}
        for dims in dict.fromkeys(variable.dims for variable in self.variables.values()):
            shape = tuple(len(self.dims[d].values) for d in dims)
            grid = np.indices(shape).reshape(len(shape), int(np.prod(shape)))  # [dims, points]; one point without dims
            columns = {name: self.dims[name].values[at] for name, at in zip(dims, grid)}
            over = {name: v.values.ravel() for name, v in self.variables.items() if v.dims == dims}
            frames[dims] = pd.DataFrame(columns | over)
        return frames


@dataclass
class Run:
    """One run of a command: its attributes and its tables.

    Attributes
    ----------
    name : str
        `<utc>-<id>` by default; the time is `started_utc` of the attributes (2026-01-31T12:00:00Z), else now.
    attributes : dict
        Everything needed to repeat the run: text, numbers, booleans and lists of them. Nested mappings are stored flat,
        `{"versions": {"numpy": ...}}` as `versions.numpy`; None is left out.
    tables : list of Table
        What was measured.
    """

    name: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        began = str(self.attributes.get("started_utc", "")) or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        compact = "".join(c for c in began if c.isalnum())
        self.name = self.name or f"{compact}-{secrets.token_hex(3)}"

    def to_dict(self) -> dict[str, Any]:
        return {"attributes": dict(self.attributes), "tables": {t.name: t.to_dict() for t in self.tables}}


class Results(dict[str, dict[str, Any]]):
    """A file's content: run name -> plain dicts, oldest run first; `.runs` has the same as `Run` objects.

    Parameters
    ----------
    runs : list of Run
        The runs, oldest first.
    """

    def __init__(self, runs: list[Run]) -> None:
        super().__init__({run.name: run.to_dict() for run in runs})
        self.runs = runs

    def __repr__(self) -> str:
        """One line for each run: its name, its tables, its command."""
        lines = [f"<{len(self.runs)} run{'s' * (len(self.runs) != 1)} of a results file>"]
        for run in self.runs:
            command = shown(str(run.attributes.get("command", "?")))
            lines.append(f"{run.name}: {', '.join(t.name for t in run.tables)} ({command})")
        return "\n".join(lines)

    def to_pandas(self) -> dict[str, dict[tuple[str, ...], pandas.DataFrame]]:
        """Frames with the rows of all runs, with a first column `run`.

        Such as `frames["layer"]["tokens", "schedule", "rank", "iteration"]`.

        Returns
        -------
        dict of str to dict
            Table name -> dimensions -> one frame.

        Raises
        ------
        EnvironmentProblem
            pandas is not installed.
        """
        pd = _pandas()
        found: dict[str, dict[tuple[str, ...], list[pandas.DataFrame]]] = {}
        for run in self.runs:
            for table in run.tables:
                for dims, frame in table.to_pandas().items():
                    frame.insert(0, "run", run.name)
                    found.setdefault(table.name, {}).setdefault(dims, []).append(frame)
        return {
            name: {dims: pd.concat(parts, ignore_index=True) for dims, parts in frames.items()}
            for name, frames in found.items()
        }


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise EnvironmentProblem("pandas is not installed: pip install 'aristos[plot]', or pandas alone") from None
    return pandas


def _array(name: str, values: Any, units: str) -> np.ndarray:
    array = np.asarray(values)
    if units == "s":
        return array.astype(np.float64)
    if array.dtype == bool:
        return array.astype(np.uint8)  # netCDF has no booleans
    if array.dtype.kind == "O" and all(isinstance(v, str) for v in array.flat):
        return array.astype(str)
    if array.dtype.kind not in "iufU":
        raise InputError(f"{name!r} must hold numbers or text, got {array.dtype}")
    return array


def append(path: str | os.PathLike[str], run: Run, lock_seconds: float = LOCK_SECONDS, *, more: bool = False) -> Path:
    """Add a run to a file. It and its folder are made if they do not exist.

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
        An attribute that cannot be stored. The file is unchanged.

    Examples
    --------
    >>> from aristos import results
    >>> table = results.Table("demo").dim("tokens", [16, 32]).add("seconds", "tokens", [0.1, 0.2], units="s")
    >>> file = results.append("runs.h5", results.Run("first", {"command": "demo"}, [table]))
    >>> results.load(file)["first"]["tables"]["demo"]["variables"]["seconds"]["units"]
    's'
    """
    target = Path(os.path.realpath(path))  # a link is followed, so that it stays a link
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
    """Read all runs in this process. Only for files that this package wrote; otherwise use `load`."""
    target = Path(path)
    with _opened(target) as file, _described(target, "cannot be read"):
        budget = guarded.Budget.of(target)
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
        raise ResultsError(f"{path}: {what}: {shown(str(error)) or 'out of memory'}") from error


def _check_signature(path: Path) -> None:
    with _described(path, "cannot be read"):
        # h5py's own messages do not distinguish missing from unreadable
        with regular.opened(path, guarded.MOST_FILE) as file:
            first = file.read(len(_SIGNATURE))
        if first != _SIGNATURE:
            raise ResultsError(f"{path}: not an HDF5 file; move it away or choose another file")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; checked to be a results file."""
    _check_signature(path)
    with contextlib.ExitStack() as stack:
        with _described(path, "cannot be read"):
            content = stack.enter_context(open(path, "rb"))
            opened = stack.enter_context(h5py.File(content, "r"))
        with _described(path, "cannot be read"):
            _check_schema(path, opened)
        yield opened


def _check_schema(path: Path, file: h5py.File) -> None:
    schema = guarded.attributes(file, guarded.Budget(guarded.SPARE)).get("schema")
    if not isinstance(schema, str) or schema != SCHEMA:
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
            f"{target}: would have {size} bytes with this run, and may have {guarded.MOST_FILE}: choose another file"
        )
    return memory.getvalue()


def _write_run(target: Path, runs: h5py.Group, run: Run, more: bool) -> None:
    if run.name in runs and not more:
        raise ResultsError(f"{target}: has a run {run.name!r} already; runs are never replaced")
    group = runs.require_group(run.name)
    _write_attributes(group, {"schema": SCHEMA, **run.attributes})
    for table in run.tables:
        if table.name in group:
            raise ResultsError(f"{target}: run {run.name!r} has a table {table.name!r} already")
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
        raise InputError(f"attribute {name!r} cannot be stored: {value!r} ({error})") from None


def _read_run(name: str, group: h5py.Group, budget: guarded.Budget) -> Run:
    tables = [_read_table(*part, budget) for part in guarded.members(group)]
    return Run(name, guarded.attributes(group, budget), tables)


def _read_table(name: str, group: h5py.Group, budget: guarded.Budget) -> Table:
    attributes = guarded.attributes(group, budget)
    table = Table(attributes.pop("suite"), name, attributes=attributes)
    dims = [d for d in attributes.pop("dims") if d]
    parts = dict(guarded.members(group))
    for key in dims:
        table.dims[key] = _read_array(parts.pop(key), (key,), budget)
    for key, data in parts.items():
        table.variables[key] = _read_array(data, guarded.dimensions(data), budget)
    return table


def _read_array(data: h5py.Dataset, dims: tuple[str, ...], budget: guarded.Budget) -> Variable:
    attributes = guarded.attributes(data, budget)
    return Variable(dims, guarded.values(data, budget), attributes.get("units", ""), attributes.get("long_name", ""))

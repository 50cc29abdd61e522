"""The data of a results file: runs have tables, and tables have variables. They can become dicts or data frames.

This module reads and writes no file.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kernel_cache.texts import shown

from ..errors import EnvironmentProblem, InputError

if TYPE_CHECKING:
    import pandas


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
            Their unit. Coordinates in "s" become float64.
        long_name : str, default ""
            What they are.

        Returns
        -------
        Table
            This table.

        Raises
        ------
        InputError
            The coordinates are not one-dimensional, or not numbers, booleans or text; or the name is taken, or not
            allowed.
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
            The names of the dimensions; a str if there is only one.
        values : array [len(dim) for dim in dims]
            Numbers, booleans or text.
        units : str, default ""
            Their unit. Values in "s" become float64.
        long_name : str, default ""
            What is measured.

        Returns
        -------
        Table
            This table.

        Raises
        ------
        InputError
            A dimension is unknown; the values have another shape, or are not numbers, booleans or text; or the name is
            taken, or not allowed.
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
            raise InputError(f"table {self.name!r} has {name!r} already: choose another name")

    def to_dict(self) -> dict[str, Any]:
        """The table as plain dicts and arrays."""
        parts = {"dims": self.dims, "variables": self.variables}
        plain = {kind: {name: vars(v).copy() for name, v in part.items()} for kind, part in parts.items()}
        return {"suite": self.suite, "attributes": dict(self.attributes), **plain}

    def to_pandas(self) -> dict[tuple[str, ...], pandas.DataFrame]:
        """The variables as data frames. Variables with the same dimensions share a frame.

        A frame has a column for each dimension, then for each variable, and a row for each point. No value is repeated.

        Returns
        -------
        dict of tuple of str to DataFrame
            Dimensions -> the frame of the variables that have exactly these dimensions.

        Raises
        ------
        EnvironmentProblem
            pandas is not installed.
        """
        pd = _pandas()
        frames = {}
        for dims in dict.fromkeys(variable.dims for variable in self.variables.values()):
            shape = tuple(len(self.dims[d].values) for d in dims)
            grid = np.indices(shape).reshape(len(shape), int(np.prod(shape)))  # [dims, points]; without dims one point
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
        By default `<utc>-<id>`. The time is the attribute `started_utc` (2026-01-31T12:00:00Z), or now if there is
        none.
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
        """Data frames with the rows of all runs. The first column, `run`, names the run.

        For example, `frames["layer"]["tokens", "schedule", "rank", "iteration"]` is one frame.

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

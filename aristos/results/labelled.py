"""A results file as xarray's labelled arrays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kernel_cache.texts import shown

from ..errors import EnvironmentProblem, ResultsError
from .hdf5 import load
from .tables import Table, Variable

if TYPE_CHECKING:
    import xarray


def open(path: str | os.PathLike[str]) -> xarray.DataTree:
    """Read all runs of a file as labelled arrays: `open(path)["RUN/TABLE"]`.

    The tree has a node for each run, oldest first, with the run's attributes. Below it is a node for each table: a
    Dataset with the table's attributes, whose dimensions (tokens, rank, iteration, ...) have coordinates. Arrays have
    `attrs["units"]` and `attrs["long_name"]`, where the file has them.

    Parameters
    ----------
    path : path
        The results file. It may come from anywhere, as for `load`.

    Returns
    -------
    xarray.DataTree
        Its runs. `.to_dataset()` of a table's node is the Dataset.

    Raises
    ------
    ResultsError
        The file cannot be read, is not a results file, or has a table that cannot become a Dataset.
    EnvironmentProblem
        xarray is not installed.

    Examples
    --------
    >>> from aristos import results
    >>> table = results.Table("demo").dim("tokens", [16, 32]).add("seconds", "tokens", [0.1, 0.2], units="s")
    >>> _ = results.append("labelled.h5", results.Run("first", {"command": "demo"}, [table]))
    >>> seconds = results.open("labelled.h5")["first/demo"]["seconds"]
    >>> float(seconds.sel(tokens=32)), seconds.attrs["units"]
    (0.2, 's')
    """
    xr = _xarray()
    runs = load(path).runs
    found = {}
    for run in runs:
        try:
            tables = {table.name: xr.DataTree(_dataset(xr, table)) for table in run.tables}
            found[run.name] = xr.DataTree(xr.Dataset(attrs=run.attributes), children=tables)
        except (ValueError, TypeError, KeyError) as why:
            raise ResultsError(
                f"{path}: run {run.name} cannot become a tree of Datasets: {shown(str(why)[:200])}"
            ) from why
    return xr.DataTree(children=found)


def _dataset(xr: Any, table: Table) -> xarray.Dataset:
    return xr.Dataset(
        {name: _array(each) for name, each in table.variables.items()},
        {name: _array(each) for name, each in table.dims.items()},
        {"suite": table.suite, **table.attributes},
    )


def _array(variable: Variable) -> tuple[tuple[str, ...], Any, dict[str, str]]:
    named = {"units": variable.units, "long_name": variable.long_name}
    return variable.dims, variable.values, {key: text for key, text in named.items() if text}


def _xarray() -> Any:
    try:
        import xarray
    except ImportError:
        raise EnvironmentProblem("xarray is not installed: pip install 'aristos[xarray]', or xarray alone") from None
    if not hasattr(xarray, "DataTree"):
        raise EnvironmentProblem(f"xarray {xarray.__version__} is too old: pip install 'xarray>=2024.10'")
    return xarray

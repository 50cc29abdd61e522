"""`results.open`: a file as labelled arrays, and the notebook that shows it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from result_files import layer, put, write

from aristos import results
from aristos.errors import EnvironmentProblem, ResultsError
from aristos.results import Table, Variable

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "results.ipynb"
needs_xarray = pytest.mark.skipif(not importlib.util.find_spec("xarray"), reason="needs xarray: pip install xarray")


@needs_xarray
def test_a_file_is_a_tree_of_runs_and_tables(tmp_path):
    path = tmp_path / "r.h5"
    for name in ("b", "a"):
        write(path, name, layer(), put(), started_utc=name)
    tree = results.open(path)
    assert list(tree.children) == ["a", "b"]
    assert list(tree["a"].children) == ["layer", "put"]
    assert tree["a"].attrs["mpi_library"] == "MPICH Version: 5.0.2"
    found = tree["a/layer"].to_dataset()
    assert dict(found.sizes) == {"tokens": 3, "schedule": 2, "rank": 2, "iteration": 40}
    assert (found.attrs["suite"], found.attrs["dtype"]) == ("layer", "bfloat16")
    times = found["call_time"]
    assert times.dims == ("tokens", "schedule", "rank", "iteration")
    assert times.attrs == {"units": "s", "long_name": "one layer call on one rank"}
    assert found["tokens"].attrs["long_name"] == "tokens per rank and call"
    assert tree["a/put/size"].attrs["units"] == "B"
    one = times.sel(tokens=128, schedule="fused", rank=1)
    np.testing.assert_array_equal(one, layer().variables["call_time"].values[1, 1, 1])
    assert results.open(write(tmp_path / "e.h5", "empty"))["empty"].children == {}


@needs_xarray
def test_what_is_no_results_file_is_refused_as_by_load(tmp_path):
    with pytest.raises(ResultsError, match="No such file"):
        results.open(tmp_path / "none.h5")
    damaged = Table("t").dim("x", [1, 2])
    damaged.variables["v"] = Variable(("x",), np.ones(3))
    write(tmp_path / "r.h5", "a", damaged)
    with pytest.raises(ResultsError, match="run a cannot become a tree of Datasets"):
        results.open(tmp_path / "r.h5")


@pytest.mark.parametrize(
    ("module", "said"), [(None, r"pip install 'aristos\[xarray\]'"), (Any, "is too old: pip install 'xarray>=2024.10'")]
)
def test_without_xarray_the_extra_is_named(monkeypatch, module, said):
    if module is not None:
        module = type(sys)("xarray")
        module.__version__ = "2023.1"
    monkeypatch.setitem(sys.modules, "xarray", module)
    with pytest.raises(EnvironmentProblem, match=said):
        results.open("r.h5")


def test_importing_the_package_imports_no_xarray():
    code = (
        "import sys, aristos, aristos.results, aristos.bench.main\nassert not {'xarray', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def cells() -> list[str]:
    document = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs():
    assert all(cell.get("outputs", []) == [] for cell in json.loads(NOTEBOOK.read_text())["cells"])


@needs_xarray
@pytest.mark.slow
def test_the_notebooks_cells_run_in_order(capsys):
    names: dict[str, Any] = {}
    for cell in cells():
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    assert names["median"].attrs["units"] == "s"
    assert (names["median"] > 0).all()
    assert (names["speedup"] > 0).all()
    assert "layer: medians of two runs" in capsys.readouterr().out


@needs_xarray
@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    done = nbclient.NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=300).execute()
    last = done.cells[-1]["outputs"]
    assert "layer: medians of two runs" in last[0]["text"]

"""docs/compatibility.md has rows of the packages that pyproject.toml admits; .ci/compatibility.py keeps them."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUNDS = {each.name: each.specifier for each in map(Requirement, PROJECT["dependencies"])}


@pytest.fixture
def script() -> ModuleType:
    """.ci/compatibility.py as a module."""
    spec = importlib.util.spec_from_file_location("compatibility", ROOT / ".ci" / "compatibility.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_of_packages_that_the_project_admits(script):
    rows = script.kept()
    assert set(script.OLDEST) & set(rows)
    for name, cells in rows.items():
        found = dict(zip(script.HEAD, cells, strict=True))
        python, age, mpi = name.split("-")
        assert found["Python"].startswith(f"{python}.")
        assert found["MPI"].startswith(f"{script.MPI_WHEELS[mpi]} ")
        for package in script.NAMES:
            assert found[package] in BOUNDS[package], f"{name}: run its row again: python .ci/compatibility.py {name}"
            if age == "oldest":
                (lowest,) = (each.version for each in BOUNDS[package] if each.operator == ">=")
                assert f"{found[package]}.".startswith(f"{lowest}."), f"{name}: run its row again"
    assert any(name.startswith("3.14") for name in rows) != ("none of Python 3.14 yet" in script.PAGE.read_text())


def test_versions_of_python_in_the_metadata_have_a_row(script):
    named = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: Python ::" in each}
    assert named == {name.partition("-")[0] for name in script.kept()}


def test_the_oldest_packages_are_the_lower_bounds(script):
    wanted = script.requirements("oldest")
    assert "numpy==2.0.*" in wanted
    assert not [each for each in wanted if ">=" in each and not each.startswith(("pytest", "hypothesis"))]
    assert set(PROJECT["dependencies"]) <= set(script.requirements("newest"))


def test_rows_that_are_not_run_stay_as_they_are(script, tmp_path, monkeypatch):
    before = script.PAGE.read_text()
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    script.PAGE.write_text(before)
    rows = script.kept()
    script.write(rows)
    assert script.PAGE.read_text() == before
    script.write(rows | {"3.14-newest-impi": ["3.14.1"] * len(script.HEAD)})
    assert script.kept() == rows | {"3.14-newest-impi": ["3.14.1"] * len(script.HEAD)}

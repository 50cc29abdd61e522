"""Units of the interpreter: registered by name, and compiled again when a file that they are made of changes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
from aristos import simt
from aristos.primitives import sources
from aristos.simt import units

FOLDER = Path(simt.__file__).parent


def stamp(file: str) -> str:
    return units.Locator(stamp, str(FOLDER / file)).get_source_stamp()


def test_a_second_unit_of_a_name_is_rejected():
    def run(x):
        return x

    with pytest.raises(ValueError, match=r"unit run of .* has the name of one in aristos\.simt\.interpreter"):
        units.unit(run)


def test_a_unit_after_the_first_compilation_is_rejected():
    def late(x):
        return x

    units.addresses()
    with pytest.raises(ValueError, match=r"unit late of .* comes after units were compiled"):
        units.unit(late)
    assert "late" not in units.names()


def test_places_follow_the_names():
    assert units.names() == sorted(units.names())
    assert len(units.addresses()) == len(units.names()) == len(set(units.addresses()))


def test_a_change_of_the_names_compiles_units_again(monkeypatch):
    before = stamp("rounding.py")
    monkeypatch.setitem(units._units, "one_more", None)
    assert stamp("rounding.py") != before


def test_units_depend_on_what_they_are_compiled_from():
    """The interpreter's files are in, lowering and reports are not."""
    files = {path.name for path in sources.files(FOLDER / "interpreter.py")}
    assert {"interpreter.py", "blocks.py", "rows.py", "state.py", "rounding.py", "units.py"} <= files
    assert not {"lowering.py", "explain.py", "machine.py", "arrays.py"} & files
    assert stamp("rounding.py") != stamp("interpreter.py")

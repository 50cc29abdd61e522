"""The order of the rooms: imports go downwards, in no circle, and the pictures in docs/ show the code as it is."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    """docs/draw.py as a module."""
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_room_has_a_floor(draw):
    rooms = {draw.room(name) for name in draw.modules() if name != "aristos"}
    assert rooms == set(draw.HOLDS) == {name for floor in draw.FLOORS for name in floor}


def test_imports_go_downwards(draw):
    assert draw.upward() == []


def test_no_modules_import_each_other_in_a_circle(draw):
    assert draw.circles() == []


def test_an_upward_import_and_a_circle_are_found(draw, tmp_path, monkeypatch):
    package = tmp_path / "aristos"
    for name, text in {
        "__init__.py": "",
        "errors.py": "def f():\n    from .layer import moe\n",
        "layer/__init__.py": "",
        "layer/moe.py": "from .. import errors\n",
        "host/__init__.py": "from __future__ import annotations\nif TYPE_CHECKING:\n    from ..layer import moe\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(draw, "ROOT", tmp_path)
    monkeypatch.setattr(draw, "PACKAGE", package)
    assert draw.upward() == ["aristos.errors imports aristos.layer.moe: layer is not below loose"]
    assert draw.circles() == [["aristos.errors", "aristos.layer.moe"]]


def test_the_pictures_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "draw.py"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_module_names_say_which_module_is_meant(draw):
    """These names stood for up to six modules and four classes each."""
    files = [file for file in draw.modules().values() if file.parent.name != "decode"]  # by family of opcodes
    for stem in ("memory", "report", "launch"):
        assert len([file for file in files if file.stem == stem]) <= 1, stem
    machines = [
        file
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Machine"
    ]
    assert len(machines) <= 1, machines

"""Imports between rooms go downwards without cycles, the core needs no tool, and pictures in docs/ show the code."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest

from aristos.engine import generate

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "kernel_cache",
    "numpy",
    "numba",
    "llvmlite",
    "mpi4py",
    "ml_dtypes",
    "filelock",
}  # the packages that the core needs


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


def test_every_room_is_worth_its_lines(draw):
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Why each room is worth its lines")[1].split("\n## ")[0]
    reasons = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE))
    assert reasons.keys() == draw.HOLDS.keys()


def test_imports_go_downwards(draw):
    assert draw.upward() == []


def test_imports_between_modules_have_no_cycle(draw):
    assert draw.circles() == []


def test_the_core_imports_no_tool(draw):
    imports, core = draw.imports(), draw.core()
    assert len(core) > 100
    assert [f"{name} imports {other}" for name in core for other in sorted(imports[name] - core.keys())] == []


def test_the_core_needs_few_packages(draw):
    beside = {name: draw.outsiders(file) - PACKAGES for name, file in draw.core().items()}
    gpu = ("aristos.kernels.cuda", "aristos.substrate.cuda")  # numba-cuda, and CUDA's own bindings
    assert {name: found for name, found in beside.items() if found and not name.startswith(gpu)} == {}
    assert set().union(*beside.values()) <= {"cuda", "numba_cuda"}


def test_imports_by_a_computed_name_are_known(draw):
    """Cycles through such imports would not be found, so all of them are listed here.

    The front door and copies of modules import what their callers name. The catalogue imports the files of a folder.
    """
    assert draw.computed() == {
        "aristos",
        "aristos.bench.delay.steps",
        "aristos.explore.catalogue",
        "aristos.explore.compiled.copies",
        "aristos.simulate.copied",
    }


def test_imports_that_break_the_rules_are_found(draw, tmp_path, monkeypatch):
    package = tmp_path / "aristos"
    for name, text in {
        "__init__.py": "",
        "errors.py": "def f():\n    from .layer import moe\n",
        "layer/__init__.py": "",
        "layer/moe.py": "from .. import errors\n",
        "host/__init__.py": "from __future__ import annotations\nif TYPE_CHECKING:\n    from ..layer import types\n",
        "layer/types.py": "PACKAGE = f'{__package__}.x'\nimport_module(f'{PACKAGE}.{name}')\n",
        "layer/x/__init__.py": "import h5py\n",
        "layer/x/y.py": "import importlib\nimportlib.import_module('..types', __package__)\nimport_module(f(x))\n",
        "layer/z.py": "import_module('yaml.reader')\nfrom ..cli import main\n",
        "cli/main.py": "",
        "kernels/by.py": "from .cpu.target import ISA\n",
        "kernels/cpu/__init__.py": "from . import lowering\n",
        "kernels/cpu/lowering.py": "from ..by import module\n",
        "kernels/cpu/target.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(draw, "ROOT", tmp_path)
    monkeypatch.setattr(draw, "PACKAGE", package)
    assert draw.upward() == [
        "aristos.errors imports aristos.layer.moe: layer is not below loose",
        "aristos.host imports aristos.layer.types: layer is not below host",
        "aristos.layer.z imports aristos.cli.main: cli is not below layer",
    ]
    assert sorted(draw.circles()) == [
        ["aristos.errors", "aristos.layer.moe"],
        ["aristos.kernels.by", "aristos.kernels.cpu", "aristos.kernels.cpu.lowering"],  # through a package
        ["aristos.layer.types", "aristos.layer.x.y"],
    ]
    assert draw.computed() == {"aristos.layer.x.y"}
    assert draw.imports()["aristos.layer.z"] - draw.core().keys() == {"aristos.cli.main"}
    assert draw.outsiders(package / "layer" / "z.py") == {"yaml"}
    assert draw.outsiders(package / "layer" / "x" / "__init__.py") == {"h5py"}


def test_the_pictures_are_up_to_date(draw, capsys):
    assert draw.main(["--check"]) == 0, capsys.readouterr().err


def test_module_names_say_which_module_is_meant(draw):
    """At most one module has each of these names, and one class is named Machine.

    Up to six modules once had the same name.
    """
    # The folder decode/ has a module for each family of opcodes, cli/ one for each command.
    files = [file for file in draw.modules().values() if file.parent.name not in ("decode", "cli")]
    for stem in ("memory", "report", "launch"):
        assert len([file for file in files if file.stem == stem]) <= 1, stem
    machines = [
        file for file in files if re.search(r"^class Machine\b", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(machines) <= 1, machines


def test_lines_of_code():
    """The lines of all rooms together have a limit. docs/architecture.md says what is counted."""
    counted = runpy.run_path(str(ROOT / "docs" / "code_lines.py"), run_name="__main__")
    text = '"""Two\nlines."""\n\nx = 1  # one\n\n\ndef f():\n    """No."""\n    return """not\na docstring"""\n# no\n'
    assert counted["code_lines"](text) == 4
    deep = 'try:\n    x = 2\nexcept OSError:\n\n    class C:\n        """No."""\n\n        y = 1\n'
    assert counted["code_lines"](deep) == 5
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "aristos").rglob("*.py")}
    assert {path for path, text in texts.items() if counted["is_generated"](text)} == {
        generate.ARITHMETIC,
        generate.BLOCKS,
        generate.RECORDS,
        generate.ROUTER_JOB,
    }
    assert counted["generated"] > 0
    assert counted["rooms"].total() < 55_000

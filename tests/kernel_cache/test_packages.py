"""Keys of compiled code across packages: packages register, and imports are followed from one into another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_keys import forget
from cases import ROOT, clean_environment

from aristos.kernels.cpu import target
from aristos.primitives import isa
from kernel_cache import compile as compiling
from kernel_cache import packages

TEXTS = {  # `house` reads `yard`, and `yard` has a lowering and a part of the key; `far` is not registered
    "house/__init__.py": "",
    "house/room.py": "from yard.tree import grown\nfrom .door import WIDTH\nimport far\n\n\ndef size(n):\n"
    "    return grown(n) + WIDTH\n",
    "house/door.py": "WIDTH = 1\n",
    "yard/__init__.py": "",
    "yard/tree.py": "from .seed import seed\n\n\ndef grown(n):\n    return seed(n) + 10\n",
    "yard/seed.py": "def seed(n):\n    raise NotImplementedError\n",
    "yard/lowered.py": "from numba.extending import overload\nfrom . import seed\n\n\n@overload(seed.seed)\n"
    "def _seed(n):\n    return lambda n: n\n",
    "yard/stone.py": "from numba.extending import overload\n\n\ndef heavy():\n    pass\n\n\n@overload(heavy)\n"
    "def _heavy():\n    return lambda: None\n",
    "far/__init__.py": "",
}


@pytest.fixture
def places(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def registered(places, monkeypatch) -> Iterator[dict[str, str]]:
    """Register house and yard. Returns the part of the key that yard adds, which a test may change."""
    part = {"yard": "one"}
    monkeypatch.setattr(packages, "_registered", {})
    monkeypatch.setattr(packages, "passed_over", set())
    packages.register("house", places / "house")
    packages.register("yard", places / "yard", lambda: part["yard"])
    forget()
    yield part
    forget()


def keys(places: Path) -> tuple[str, str]:
    """The keys of house/room.py and yard/tree.py as a new process would compute them."""
    forget()
    room, tree = (compiling.code_key(places / name) for name in ("house/room.py", "yard/tree.py"))
    return room, tree


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# edited\n")
    os.utime(path, (1e9, 1e9))


def test_keys_follow_imports_into_another_registered_package(places, registered):
    room, tree = keys(places)
    edit(places / "far" / "__init__.py")
    assert keys(places) == (room, tree), "far has registered nothing"
    edit(places / "house" / "door.py")
    after, same = keys(places)
    assert (after != room, same) == (True, tree), "house reads its own file, yard does not"
    for name in ("tree.py", "seed.py", "lowered.py"):
        before = keys(places)
        edit(places / "yard" / name)
        assert not set(before) & set(keys(places)), f"{name}: yard reads it, and house reads yard"
    before = keys(places)
    edit(places / "yard" / "stone.py")
    assert keys(places) == before, "neither reads the function that stone.py lowers"


def test_keys_hold_what_the_packages_that_are_read_have_registered(places, registered):
    before, source = keys(places), compiling.source_key(places / "house" / "room.py")
    registered["yard"] = "two"
    assert not set(before) & set(keys(places))
    assert compiling.source_key(places / "house" / "room.py") == source
    after = keys(places)
    packages.register("shed", places / "far", lambda: "three")
    assert keys(places) == after, "neither reads a file of shed"


def test_a_registered_part_counts_only_for_code_that_imports_its_reader(places, registered):
    packages.register("yard", places / "yard", lambda: registered["yard"], places / "yard" / "seed.py")
    before = keys(places)
    registered["yard"] = "two"
    assert not set(before) & set(keys(places)), "tree.py imports seed.py, and room.py imports tree.py"
    packages.register("yard", places / "yard", lambda: registered["yard"], places / "yard" / "stone.py")
    before = keys(places)
    registered["yard"] = "three"
    assert keys(places) == before, "neither imports stone.py"


def test_a_package_that_keys_have_passed_over_cannot_be_registered_any_more(places, registered):
    keys(places)
    with pytest.raises(ValueError, match="package far must be registered before functions that import it are compiled"):
        packages.register("far", places / "far")
    packages.register("yard", places / "yard")


@pytest.mark.parametrize("name", ["aristos", "ptxsim"])
def test_the_import_of_a_package_registers_it_and_the_cache(name):
    code = f"import {name}; from kernel_cache import packages; print(*(each.name for each in packages.every()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == sorted([name, "kernel_cache"]), done.stderr


def test_aristos_is_registered_with_the_isa_that_its_kernels_are_made_for(monkeypatch):
    """A test that pretends to have another ISA must not store this ISA's code under the other's key."""
    mine = {package.name: package for package in packages.every()}["aristos"]
    assert mine.root == ROOT / "aristos"
    monkeypatch.setattr(isa, "usable", lambda: ("another",))
    assert mine.parts() == target.ISA != isa.chosen()
    assert mine.reader == Path(target.__file__)


PROGRAM = """
from pathlib import Path
from kernel_cache import packages
from kernel_cache.compile import compiled_here, jit
for name in ("house", "yard"):
    packages.register(name, Path(name).resolve())
import yard.tree, yard.lowered
yard.tree.grown = jit(yard.tree.grown)
import house.room
print(jit(house.room.size)(5), compiled_here())
"""


@pytest.mark.slow
def test_edits_in_one_package_compile_the_callers_of_the_other_again(places):
    """Processes run one after the other, with one cache."""

    def run() -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=places,
            env={**clean_environment(), "ARISTOS_CACHE": str(places / "cache"), "PYTHONPATH": f"{ROOT}:{places}"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return [int(each) for each in done.stdout.split()]

    def replace(name: str, old: str, new: str) -> None:
        text = (places / name).read_text()
        assert old in text
        (places / name).write_text(text.replace(old, new))

    for name in TEXTS:
        os.utime(places / name, (1e9, 1e9))
    assert run() == [16, 2]
    assert run() == [16, 0]
    replace("house/door.py", "1", "2")
    assert run() == [17, 1], "house reads door.py, yard does not"
    replace("yard/tree.py", "10", "20")
    assert run() == [27, 2], "both read tree.py"
    replace("yard/lowered.py", "lambda n: n", "lambda n: 2 * n")
    assert run() == [32, 2], "the lowering decides what seed() is"
    assert run() == [32, 0]

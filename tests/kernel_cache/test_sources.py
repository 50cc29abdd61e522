"""The sources of compiled code are found by following imports within registered packages."""

from __future__ import annotations

import ast
import os
import shutil
from functools import cache
from pathlib import Path

import pytest
from cache_keys import forget
from cases import ROOT

from kernel_cache import compile as compiling
from kernel_cache import import_lists, sources


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package house: a.py reads b.py and low/c.py, and does not depend on d.py."""
    root = tmp_path / "house"
    texts = {
        "__init__.py": ["from . import d"],
        "a.py": ["import os", "from .b import ONE", "from house.low import c as third"],
        "b.py": ["from typing import TYPE_CHECKING", "if TYPE_CHECKING: from . import d", "else: from .low import A"],
        "d.py": ["from . import a"],
        "low/__init__.py": ["A = 2"],
        "low/c.py": ["from .. import a", "import house.low.e"],
        "low/e.py": ["def lazy():", "    from .. import d"],
        "low/f.py": ["def factory():", "    from ..b import ONE", "    return lambda: ONE"],
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(text))
    return root


def names(package: Path, module: str) -> set[str]:
    return {path.relative_to(package).as_posix() for path in sources.files(package / module)}


def test_imports_are_followed_transitively_and_in_cycles(package):
    assert names(package, "a.py") == {"a.py", "b.py", "low/__init__.py", "low/c.py", "low/e.py"}
    assert names(package, "low/__init__.py") == {"low/__init__.py"}


def test_an_import_inside_a_function_counts_if_the_function_defines_another(package):
    assert names(package, "low/e.py") == {"low/e.py"}
    assert names(package, "low/f.py") == {"low/f.py", "b.py", "low/__init__.py"}


def test_of_other_packages_only_registered_ones_are_followed(tmp_path):
    (tmp_path / "alone.py").write_text("import numpy\nfrom house import a\nfrom aristos import errors\n")
    assert sources.files(tmp_path / "alone.py") == {
        tmp_path / "alone.py",
        ROOT / "aristos" / "errors.py",
        ROOT / "kernel_cache" / "errors.py",
    }


def test_importers_of_a_name_are_found(package):
    assert sources.importers(package, "typing", "TYPE_CHECKING") == {package / "b.py"}
    assert not sources.importers(package, "b", "ONE"), "relative imports are of another module"


LOWERED = {  # a lowering -> the files whose functions it lowers
    "from .b import ONE\noverload(ONE)(None)": {"b.py", "low/__init__.py"},
    "from . import b as other\n@overload(other.ONE, inline='always')\ndef f():\n    pass": {"b.py", "low/__init__.py"},
    "from .low import c\nfor name in ('a', 'b'):\n    overload(\n        getattr(c, name)\n    )(None)": {
        "a.py",
        "b.py",
        "low/__init__.py",
        "low/c.py",
        "low/e.py",
    },
    "def f():\n    pass\noverload(f)(None)": {"lowering.py"},
    "f = g = None\n@overload(g)\ndef h():\n    pass": None,
    "def lower(f):\n    overload(f)(None)": None,
    'from .b import ONE\n"""For `overload(f)`."""\noverload(ONE)(None)': {"b.py", "low/__init__.py"},
    "import house.b\noverload(house.b.ONE)(None)": None,
    "from . import low\noverload(low.c.third)(None)": None,
    "import numpy as np\noverload(np.clip)(None)": None,
    "from .b import ONE\noverload(  # why\n    ONE\n)(None)": None,
    "from numba.extending import overload as lower\nfrom .b import ONE\nlower(ONE)(None)": None,
}


@pytest.mark.parametrize(("text", "found"), LOWERED.items(), ids=[str(n) for n in range(len(LOWERED))])
def test_a_lowering_counts_for_the_modules_whose_functions_it_lowers(package, text, found):
    """None: for all modules, because the text does not say which function it lowers."""
    path = package / "lowering.py"
    path.write_text("from numba.extending import overload\n" + text)
    lowered = sources.lowered(path)
    assert lowered == (None if found is None else {package / name for name in found})


def test_the_digest_follows_contents_and_names_and_not_where_the_package_lies(package, tmp_path):
    before = sources.digest(sources.files(package / "a.py"))
    copy = tmp_path / "elsewhere" / "house"
    shutil.copytree(package, copy)
    os.utime(copy / "a.py", (1e9, 1e9))
    assert sources.digest(sources.files(copy / "a.py")) == before
    (copy / "d.py").write_text("changed = 1\n")
    assert fresh(copy / "a.py") == before, "an edit to a file that is not read changed the digest"
    (copy / "low" / "e.py").write_text("changed = 1\n")
    assert fresh(copy / "a.py") != before


def fresh(source: Path) -> str:
    """The digest as a new process would find it."""
    forget()
    return sources.digest(sources.files(source))


def test_a_later_process_parses_only_files_that_were_edited(package, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o700)
    monkeypatch.setattr(compiling, "cache_folder", cache(lambda: kept))
    compiling.cache_folder()
    parsed: list[str] = []
    parse = ast.parse

    def noted(text, name, *more):
        parsed.append(Path(name).name)
        return parse(text, name, *more)

    monkeypatch.setattr(ast, "parse", noted)
    source = ROOT / "kernel_cache" / "import_lists.py"
    forget()
    key = compiling.code_key(source)
    assert {"import_lists.py", "private.py", "sources.py"} <= set(parsed)
    forget()
    del parsed[:]
    assert compiling.code_key(source) == key
    assert not parsed
    found = names(package, "a.py")
    import_lists.save(kept)
    (package / "b.py").write_text("from . import d")
    forget()
    import_lists.load(kept)
    del parsed[:]
    assert names(package, "a.py") == found - {"low/__init__.py"} | {"d.py"}
    assert parsed == ["b.py", "d.py"]


def test_damaged_lists_of_imports_are_not_used(package, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o700)
    forget()
    found = names(package, "a.py")
    import_lists.save(kept)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    forget()
    with pytest.warns(UserWarning, match="is damaged"):
        assert not import_lists.load(kept)
    assert names(package, "a.py") == found

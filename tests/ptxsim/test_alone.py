"""simt alone: it imports only the compile cache, readers and the error classes; it runs without the rest."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "aristos"
# The compile cache with what it needs; bounded files and numbers are beside it
CACHE = ("compile", "code_files", "isa", "linked_code", "offline", "private", "sm_limits", "sources")
BASE = ("errors", *(f"primitives.{name}" for name in (*CACHE, "regular", "texts")))
KERNEL = """
import numpy as np
import aristos
import ptxsim

PTX = '''.version 8.0
.target sm_90
.address_size 64
.visible .entry twice(.param .u64 a)
{
.reg .b64 %d<3>;
.reg .b32 %r<3>;
mov.u32 %r1, %tid.x;
ld.param.u64 %d1, [a];
mad.wide.u32 %d2, %r1, 4, %d1;
ld.global.u32 %r2, [%d2];
add.u32 %r2, %r2, %r2;
st.global.u32 [%d2], %r2;
ret;
}
'''
machine = ptxsim.Machine()
a = machine.device().array(np.arange(32, dtype=np.uint32))
machine.device().launch(PTX, 1, 32, a)
assert machine.run() == []
print(aristos.__path__[0], a.copy_to_host().sum())
"""


def name(path: Path) -> str:
    """A file of simt as a module name below simt; '' for simt itself."""
    parts = path.relative_to(PACKAGE / "simt").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name(path): path for path in sorted((PACKAGE / "simt").rglob("*.py"))}


def imported(module: str) -> set[str]:
    """The modules of the package that a module of simt imports, anywhere in it, as names below aristos."""
    folder = ["simt", *module.split(".")] if module else ["simt"]
    if FILES[module].name != "__init__.py":
        folder.pop()
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                inside = (PACKAGE / whole.replace(".", "/")).with_suffix(".py").is_file()
                package = (PACKAGE / whole.replace(".", "/")).is_dir()
                found.add(whole if inside or package else base)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(text.split(".")[0] == "aristos" for text in names), FILES[module]
    return found - {".".join(["simt", module]).rstrip(".")}


def test_it_imports_only_the_base():
    for module in FILES:
        others = {text for text in imported(module) if text.split(".")[0] != "simt"}
        assert others <= set(BASE), (module, others)


def test_it_has_no_import_circle():
    graph = {module: {text.removeprefix("simt").lstrip(".") for text in imported(module) if text.startswith("simt")}
             for module in FILES}  # fmt: skip
    while leaves := {module for module, others in graph.items() if not others & set(graph)}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    assert not graph, f"these modules import each other, or one that does: {sorted(graph)}"


def test_it_runs_without_the_rest_of_the_package(tmp_path):
    pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
    copy = tmp_path / "aristos"
    shutil.copytree(PACKAGE / "simt", copy / "simt", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "primitives").mkdir()
    for folder in (copy, copy / "primitives"):
        (folder / "__init__.py").touch()
    for module in BASE:
        path = Path(module.replace(".", "/")).with_suffix(".py")
        shutil.copyfile(PACKAGE / path, copy / path)
    done = subprocess.run([sys.executable, "-c", KERNEL], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.stdout.split() == [str(copy), "992"], done.stderr

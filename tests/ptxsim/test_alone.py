"""ptxsim uses only the kernel cache of the packages here, and runs where Aristos and MPI cannot be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kernel_cache", "ptxsim")
KERNEL = """
import sys
from importlib.abc import MetaPathFinder


class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("aristos", "mpi4py", "h5py", "rich", "ml_dtypes"):
            raise ModuleNotFoundError(f"refused: {name}", name=name)


sys.meta_path.insert(0, Refuse())
import numpy as np
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
try:
    ptxsim.Machine(arch="none")
except ptxsim.InputError as error:
    print(a.copy_to_host().sum(), error)
"""


def modules(package: str) -> dict[str, Path]:
    """The modules of a package by name, and their files."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = {name: path for package in PACKAGES for name, path in modules(package).items()}


def imported(module: str) -> set[str]:
    """What a module imports, also inside functions: modules of FILES, and first names of other packages."""
    folder = module.split(".")
    if FILES[module].name != "__init__.py":
        folder.pop()
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & FILES.keys() or {base if base in FILES else base.partition(".")[0]}
        elif isinstance(node, ast.Import):
            found |= {alias.name if alias.name in FILES else alias.name.partition(".")[0] for alias in node.names}
    return found - {module}


def test_ptxsim_and_the_cache_do_not_import_aristos_nor_the_cache_ptxsim():
    assert len(FILES) > 80
    for module in FILES:
        firsts = {name.partition(".")[0] for name in imported(module)}
        assert not firsts & {"aristos", "mpi4py"}, module
        assert module.startswith("ptxsim") or "ptxsim" not in firsts, module


def test_ptxsim_and_the_cache_have_no_import_cycle():
    graph = {module: imported(module) & FILES.keys() for module in FILES}
    while leaves := {module for module, others in graph.items() if not others & graph.keys()}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    assert not graph, f"these modules are in an import cycle, or import one that is: {sorted(graph)}"


def test_a_kernel_runs_where_aristos_and_mpi_cannot_be_imported(tmp_path):
    pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
    done = subprocess.run([sys.executable, "-c", KERNEL], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout == "992 arch must look like 'sm_90', got 'none'\n", done.stderr

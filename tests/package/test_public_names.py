"""The package's own list of public names, and what importing the package costs."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import types
from importlib import metadata

import pytest

import aristos
from aristos import errors
from aristos.host.versions import versions

PRIVATE = {
    "cli",
    "doctor",
    "engine",
    "explore",
    "host",
    "launcher",
    "layer",
    "primitives",
    "report",
    "simulate",
    "substrate",
}
PRIVATE |= {
    "config",
    "quantised",
    "routing",
    "row_types",
    "trainable",
    "transport",
    "weight_types",
}  # `aristos` itself has the public classes of these modules


def test_dir_lists_every_public_module():
    found = {module.name for module in pkgutil.iter_modules(aristos.__path__) if not module.name.startswith("_")}
    listed = {name for name in dir(aristos) if isinstance(getattr(aristos, name), types.ModuleType)}
    assert listed == found - PRIVATE
    assert "planner" in listed


LOAD = """
import os, sys, traceback
import numba
for name in sys.argv[1:]:
    child = os.fork()  # of a process that has never imported aristos
    if child == 0:
        try:
            import aristos
            os._exit(getattr(aristos, name) is None)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


def test_every_listed_name_loads_in_a_fresh_process():
    words = [sys.executable, "-c", LOAD, *dir(aristos)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.split() == [], ran.stderr


def test_every_error_class_is_a_name_of_the_package():
    classes = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, Exception)}
    assert classes <= set(aristos.__all__)
    assert all(getattr(aristos, name) is getattr(errors, name) for name in classes)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'aristos' has no attribute 'nothing'"):
        aristos.nothing  # noqa: B018


def test_importing_the_package_loads_no_heavy_module():
    code = "import sys, aristos; print([m for m in ('numpy', 'numba', 'mpi4py', 'h5py') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_host_versions_do_not_import_the_package_itself():
    """`aristos.host` may not import the package's `__init__`. A clone without an installation has a version too."""
    assert versions()["aristos"] == aristos.__version__
    source = importlib.import_module("aristos.host.versions").__file__
    assert source is not None
    with open(source) as file:
        assert "from .. import" not in file.read()


def test_the_version_is_that_of_the_distribution():
    try:
        installed = metadata.version("aristos")
    except metadata.PackageNotFoundError:
        pytest.skip("aristos is not installed")
    assert installed == aristos.__version__

"""`pip install -e` puts the clone's path on sys.path, so that a folder named aristos beside a script is no obstacle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.setuptools_version import skip_without_setuptools

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"


@pytest.mark.slow
def test_an_editable_install_beside_a_folder_of_its_name(tmp_path):
    skip_without_setuptools()
    clone, installed, home = (tmp_path / name for name in ("clone", "installed", "home"))
    clone.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("aristos", "ptxsim", "kernel_cache"):
        (clone / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", BUILD, installed], cwd=clone, check=True, capture_output=True, timeout=120)
    (wheel,) = installed.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    (home / "aristos").mkdir(parents=True)
    (home / "script.py").write_text("import aristos\nprint(aristos.MoEConfig.__name__)\n")
    start = f"import site, runpy; site.addsitedir({str(installed)!r}); runpy.run_path('script.py')"
    bare = [sys.executable, "-S", "-c", start]
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    done = subprocess.run(bare, cwd=home, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "MoEConfig\n", done.stderr

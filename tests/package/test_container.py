"""launch/apptainer.def copies into the image what an install needs: packages, and files that pyproject.toml names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_container_has_every_package_and_file_of_an_install():
    text = (ROOT / "launch" / "apptainer.def").read_text()
    section = re.search(r"^%files\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    copied = dict(line.split() for line in section[1].splitlines() if not line.strip().startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {path.parent.name for pattern in patterns for path in ROOT.glob(f"{pattern}/__init__.py")}
    needed = packages | {"pyproject.toml", "setup.py", project["project"]["readme"], "LICENSE"}
    assert set(copied) == needed
    assert all((ROOT / name).exists() and to == f"/opt/aristos/{name}" for name, to in copied.items())

"""Checks which copy of Aristos is loaded, for each way to start a program. A clone and an installed copy may differ."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from .finding import Finding, ok, warn

FIND = "import importlib.util as u; found = u.find_spec('aristos'); print(found and found.origin or '')"
COMMAND, MODULE, SCRIPT = "the command aristos", "python -m aristos", "a script, such as examples/layer.py"
SECONDS = 30


def here() -> Finding:
    """The finding for this folder and the commands on PATH."""
    command = interpreter(shutil.which("aristos"))
    ways = {MODULE: folder(sys.executable), SCRIPT: folder(sys.executable, "-P")}  # -P: not the current folder
    if command is not None:
        ways[COMMAND] = folder(command, "-P")
    return loaded(ways)


def interpreter(script: str | None) -> str | None:
    """The Python in the first line of a console script; None if there is no such script."""
    if script is None:
        return None
    with open(script, "rb") as file:
        first = file.readline(4096)
    python = first[2:].decode(errors="replace").strip() if first.startswith(b"#!") else ""
    return python if Path(python).name.startswith("python") and Path(python).is_file() else sys.executable


def folder(python: str, *options: str) -> str:
    """The folder of the package that `python OPTIONS` finds in the current folder; empty if it finds none."""
    words = [python, *options, "-c", FIND]
    found = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False).stdout.strip()
    return str(Path(found).resolve().parent) if found else ""


def loaded(ways: dict[str, str]) -> Finding:
    """Whether every way to start a program loads the same folder. ways: name of a way -> its folder; empty for none."""
    name = "package"
    places = dict.fromkeys(ways.values())
    if len(places) == 1:
        return ok(name, f"every way to start a program loads {next(iter(places)) or 'no copy'}", **ways)
    parts = [f"{', '.join(way for way, its in ways.items() if its == place)}: {place or 'none'}" for place in places]
    clone = Path(ways[MODULE]).parent
    remedy = "start programs in another folder, or install the copy that they should load"
    if (clone / "pyproject.toml").exists():
        remedy = f"let all of them load this clone: {sys.executable} -m pip install -e {clone}"
    return warn(name, f"the ways to start a program load different copies: {'; '.join(parts)}", remedy, **ways)

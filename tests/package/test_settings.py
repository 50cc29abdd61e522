"""docs/settings.md names every variable that the packages read, and every exit code that a command's docstring has."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from aristos.cli import __main__ as command

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "settings.md").read_text()
ROWS = [
    [cell.strip() for cell in line[1:-1].split("|")] for line in PAGE.splitlines() if line.startswith("| `aristos ")
]
ELSEWHERE = {"bench": "aristos.bench.main", "simt": "ptxsim.command"}  # modules that document the exit codes


def test_every_variable_is_named():
    files = [path for room in ("aristos", "kernel_cache", "ptxsim") for path in (ROOT / room).rglob("*.py")]
    read = {name for path in files for name in re.findall(r"\bARISTOS_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert read == set(re.findall(r"\bARISTOS_[A-Z_]+", PAGE))


@pytest.mark.parametrize("name", command.commands())
def test_every_exit_code_is_named(name):
    said = importlib.import_module(ELSEWHERE.get(name, f"aristos.cli.{name}")).__doc__ or ""
    codes = set(re.findall(r"\b(1|3|130|141)\b", said[said.index("xit codes") :]))
    row = next(row for row in ROWS if f"`aristos {name}`" in row[0])
    if name == "models":  # for a directory it has the exit codes of `inspect`
        return
    named = {code for code, cell in zip(("1", "3"), row[1:3], strict=True) if cell}
    assert codes == named | set(re.findall(r"\b(130|141)\b", row[3]))

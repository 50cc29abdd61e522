"""Follow a page of the documentation as a reader does: save its programs, type its commands, compare what they print.

A Python block that begins with `# NAME.py` is a program of that name. A console block has commands, each after `$ `,
and what they print. In printed text `...` stands for any text, and a line of `...` alone for any lines. Ranks print at
the same time, so the order of lines does not count. `# exit code N` after a command announces its exit code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cases import clean_environment

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OURS = {
    "python": [sys.executable],
    "aristos": [sys.executable, "-m", "aristos"],
    "ptxsim": [sys.executable, "-m", "ptxsim"],
}
INSTALLS = ("pip", "python3")


@dataclass(frozen=True)
class Typed:
    """A command and what the page says that it prints."""

    command: str
    printed: tuple[str, ...]


def programs(text: str) -> dict[str, str]:
    """The programs of a page, by name; the last one of a name counts."""
    blocks = [block for language, block in BLOCK.findall(text) if language == "python" and block.startswith("# ")]
    return {block.split()[1]: block for block in blocks if block.split()[1].endswith(".py")}


def steps(text: str) -> Iterator[tuple[str, str] | Typed]:
    """What a reader does, in order: (name, text) of a file to save, or a command to type."""
    for language, block in BLOCK.findall(text):
        first = block.split("\n", 1)[0].split()
        if first[:1] in (["#"], ["//"]) and len(first) == 2 and "." in first[1]:
            yield first[1], block
        elif language == "console":
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, *printed = part.replace("\\\n", " ").splitlines()
                yield Typed(command, tuple(line for line in printed if line.strip()))


def type_in(folder: Path, typed: Typed) -> str:
    """What a command prints on stdout; an exit code that the page does not announce is an error."""
    expected = re.search(r"# exit code (\d+)", typed.command)
    command = typed.command.split("  #")[0]
    for name, words in OURS.items():
        command = re.sub(rf"(?<![\w./-]){name}(?= )", " ".join(words), command)
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "120"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment.pop("PYTHONUNBUFFERED", None)  # with it, a line of two ranks could be one
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    said = f"$ {typed.command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == (int(expected[1]) if expected else 0), f"exit code {done.returncode}: {said}"
    return done.stdout


def compare(typed: Typed, printed: str) -> None:
    """Raise unless each line of the page is a line that was printed, and the other way round."""
    rest = [re.sub(r"\s+", " ", line).strip() for line in printed.splitlines() if line.strip()]
    anything = "..." in (line.strip() for line in typed.printed)
    for line in typed.printed:
        if line.strip() == "...":
            continue
        pattern = ".*".join(re.escape(part) for part in re.sub(r"\s+", " ", line).strip().split("..."))
        found = next((each for each in rest if re.fullmatch(pattern, each)), None)
        assert found is not None, f"$ {typed.command}\nthe page has: {line}\nprinted was:\n{printed}"
        rest.remove(found)
    assert anything or not typed.printed or not rest, f"$ {typed.command}\nthe page lacks:\n" + "\n".join(rest)


def follow(page: Path, folder: Path) -> int:
    """Do in `folder` what the page says; returns how many commands were run."""
    for name in ("examples", "bench", "aristos", "tests"):
        (folder / name).symlink_to(ROOT / name)
    run = 0
    for step in steps(page.read_text()):
        if isinstance(step, tuple):
            (folder / step[0]).write_text(step[1])
        elif step.command.split()[0] not in INSTALLS:
            compare(step, type_in(folder, step))
            run += 1
    return run

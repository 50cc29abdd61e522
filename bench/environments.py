"""The Python environments of the comparison: `python bench/environments.py` makes those that are missing.

Every outside peer has an environment of its own in the folder peers/ of this Python's environment. The environment has
the pinned packages of bench/environments/NAME.txt. So no peer's requirements conflict with those of another peer or of
the project. If the packages cannot be installed, the reason is kept in a file, and the comparison shows it;
`python bench/environments.py NAME` tries again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = Path(sys.prefix) / "peers"
NAMES = tuple(sorted(path.stem for path in (HERE / "environments").glob("*.txt")))
OWN = ("aristos", "numpy")  # these peers use this Python's packages
APART = ("cupy", "flashinfer", "transformers", "triton")  # for tests, ptx_*.py; made only if they are named
ALONE = "# without their dependencies:"  # packages listed after this line are installed by --no-deps


class NoEnvironment(Exception):
    """The environment is missing or could not be made; the message says why."""


def python(name: str, folder: Path = FOLDER) -> Path:
    """The Python of an environment. Raises NoEnvironment if the environment is missing or could not be made."""
    if name in OWN:
        return Path(sys.executable)
    here = folder / name
    if (here / "failed").exists():
        raise NoEnvironment((here / "failed").read_text().strip())
    if not (here / "ready").exists():
        raise NoEnvironment(f"no environment {name}: `python bench/environments.py {name}` makes it")
    return here / "bin" / "python"


def make(name: str, folder: Path = FOLDER) -> str:
    """Make an environment; it replaces an existing one. Returns the reason if this fails, else ''."""
    here, wanted = folder / name, HERE / "environments" / f"{name}.txt"
    shutil.rmtree(here, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(here)], check=True)
    first, _, alone = wanted.read_text().partition(ALONE)
    for flags, text in (([], first), (["--no-deps"], alone)):
        if not text.strip():
            continue
        listed = here / "requirements.txt"
        listed.write_text(text)
        pip = [str(here / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *flags, "-r", str(listed)], capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            why = f"pip cannot install {wanted.name}: {said[-1].removeprefix('ERROR: ')}"
            (here / "failed").write_text(why + "\n")
            return why
    (here / "ready").write_text(_stamp(name))
    return ""


def current(name: str, folder: Path = FOLDER) -> bool:
    """Whether an environment is ready and made from the present list of packages, or has failed."""
    here = folder / name
    return (here / "failed").exists() or ((here / "ready").exists() and (here / "ready").read_text() == _stamp(name))


def _stamp(name: str) -> str:
    return hashlib.sha256((HERE / "environments" / f"{name}.txt").read_bytes()).hexdigest()


def main(argv: list[str]) -> int:
    """Make the named environments, or those of peers that are missing. Returns the exit code."""
    unknown = [name for name in argv if name not in NAMES]
    if unknown:
        print(f"environments must be among {', '.join(NAMES)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    for name in argv or [name for name in NAMES if not current(name) and name not in APART]:
        print(f"{name}: making {FOLDER / name}", file=sys.stderr, flush=True)
        why = make(name)
        print(f"{name}: {why or 'ready'}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

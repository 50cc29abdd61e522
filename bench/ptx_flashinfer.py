"""Run functions of FlashInfer 0.7.4 on the PTX machine, and compare their results with NumPy's.

    python bench/ptx_flashinfer.py [CASE ...] [--folder FOLDER] [--schedules N]

nvcc compiles files of FlashInfer's csrc as they are, with the functions of the host that launch the kernels. Each case
of flashinfer_kernels/ calls one of these functions under `ptxsim run`. `python bench/environments.py flashinfer` makes
the environment; nvcc of CUDA 13 must be on PATH. A library that FOLDER has from an earlier run is used again. A row for
each case has the number of reports of each verdict. `right with --no-stale`: an access that is reported reads an old
value, so the results are right only without such values. The exit code is 1 if results are wrong even so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import environments

HERE = Path(__file__).parent / "flashinfer_kernels"
ARCH = "90"
REPORT = re.compile(r"^[a-z_]+: .*: [\w:]+(?:<.*?>)?, block \([\d, ]+\), thread \([\d, ]+\): ")
PLACE = re.compile(r"\S*/flashinfer/data/")
LIST = "import cases; [print(name, *one.files) for name, one in cases.CASES.items()]"


def files_of_cases(python: Path) -> dict[str, tuple[str, ...]]:
    """A dict from the name of each case to the files of csrc that it needs."""
    done = subprocess.run([python, "-c", LIST], cwd=HERE, check=True, capture_output=True, text=True)
    return {name: tuple(files) for name, *files in map(str.split, done.stdout.splitlines())}


def library(python: Path, files: tuple[str, ...], folder: Path) -> Path:
    """Compile files of csrc, unless the folder has their library."""
    made = folder / f"{Path(files[0]).stem}.so"
    if not made.exists():
        begun = time.perf_counter()
        subprocess.run([python, HERE / "build.py", made, ARCH, *files], check=True)
        print(f"{made.name}: compiled in {time.perf_counter() - begun:.0f} s", flush=True)
    return made


def tried(python: Path, made: Path, case: str, *options: str) -> tuple[str, list[str], float]:
    """(`right`, or what is wrong; the reports; the seconds of processor time) of a case. options: of ptxsim run."""
    begun = os.times()
    words = ["ptxsim", "run", "--arch", f"sm_{ARCH}", *options, python, HERE / "call.py", made, case]
    done = subprocess.run(words, capture_output=True, text=True)
    ended = os.times()
    said = done.stdout.splitlines()
    result = next((line for line in said if line.startswith(("right", "wrong"))), "failed")
    if result == "failed":
        print(done.stdout, done.stderr)
    took = ended.children_user + ended.children_system - begun.children_user - begun.children_system
    return result, [PLACE.sub("", line) for line in said if REPORT.match(line)], took


def verdict(report: str) -> str:
    """The verdict of a report's line."""
    return next((word for word in ("formal", "same value") if f"[{word}]" in report), "wrong")


def main() -> int:
    """Print a row for each case, and the reports. Returns the exit code."""
    options = argparse.ArgumentParser(description="Run functions of FlashInfer on the PTX machine.")
    options.add_argument("cases", nargs="*", metavar="CASE")
    options.add_argument("--folder", type=Path, help="where libraries are kept; by default they are not")
    options.add_argument("--schedules", type=int, default=1)
    given = options.parse_args()
    python = environments.python("flashinfer")
    files = files_of_cases(python)
    unknown = [name for name in given.cases if name not in files]
    if unknown:
        options.error(f"CASE must be among {', '.join(files)}, got {unknown[0]!r}")
    rights = 0
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for case in given.cases or files:
            built = library(python, files[case], folder)
            results, reports, took = [], [], 0.0
            for seed in range(given.schedules):
                result, found, seconds = tried(python, built, case, "--seed", str(seed))
                if result.startswith("wrong") and tried(python, built, case, "--no-stale")[0] == "right":
                    result = "right with --no-stale"
                results.append(result)
                reports += found
                took += seconds
            counted = Counter(map(verdict, reports))
            counts = " | ".join(str(counted[word]) for word in ("wrong", "formal", "same value"))
            worst = next((result for result in results if result != "right"), "right")
            rights += worst.startswith("right")
            rows.append(f"| {case} | {worst} | {counts} | {took:.0f} |")
            print(rows[-1], *reports, sep="\n", flush=True)
    print(f"\n| case ({rights} of {len(rows)} right) | result | reports: wrong | formal | same value | seconds |")
    print("|---|---|---:|---:|---:|---:|", *rows, sep="\n")
    return int(rights < len(rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except environments.NoEnvironment as error:
        sys.exit(str(error))

"""How many of Triton's kernels the machine loads, and how many of them are right.

    python bench/ptx_triton.py KERNELS [ARCH ...] [--seed N]

KERNELS is a Python file with some of the kernels that triton_kernels/compiled.py names, or a folder that compiled.py
has filled. Aristos has only triton_kernels/scaled.py: most other kernels are those of Triton's tutorials. Triton
compiles a file in an environment of its own, which `python bench/environments.py triton` makes. ARCH: 80, 90, 100; by
default all. A kernel is right if its results agree with NumPy's in a run with the checker. The last columns count
reports by what they mean. docs/ptxsim.md has the results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import environments
from triton_kernels import arguments

import ptxsim
from ptxsim.errors import InputError

HERE = Path(__file__).parent / "triton_kernels"


def tried(ptx: str, made: dict[str, Any], name: str, arch: str, seed: int) -> tuple[str, Counter[str]]:
    """('right', 'wrong', 'refused' and why, ...; how many reports have each verdict) of a kernel."""
    machine = ptxsim.Machine(arch=f"sm_{arch}", seed=seed)
    device = machine.device(0)
    try:
        grid, given, right = getattr(arguments, name)(device)
        scratch = device.empty(max(4 * made["scratch"], 128), "uint8", name="scratch")
        device.launch(ptx, grid, 128, *given, scratch, 0, shared=made["shared"], entry=made["entry"])
        reports = machine.run()
    except InputError as error:
        return f"refused: {error}", Counter()
    try:
        right()
    except AssertionError:
        return "wrong", Counter(report.verdict for report in reports)
    return "right", Counter(report.verdict for report in reports)


def main() -> None:
    """Print a line for each kernel, and the table's row for each architecture."""
    options = argparse.ArgumentParser(description="Run Triton's kernels on the machine.")
    options.add_argument("kernels", type=Path, metavar="KERNELS")
    options.add_argument("archs", nargs="*", choices=["80", "90", "100", []], metavar="ARCH")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    archs = given.archs or ["80", "90", "100"]
    with tempfile.TemporaryDirectory() as made:
        folder = given.kernels
        if not folder.exists():
            options.error(f"KERNELS must be a Python file or a folder that compiled.py has filled, got {folder}")
        if not folder.is_dir():
            folder, python = Path(made), environments.python("triton")
            subprocess.run([python, HERE / "compiled.py", given.kernels, folder, *archs], check=True)
        index = json.loads((folder / "index.json").read_text())
        rows = []
        for arch in archs:
            outcomes: Counter[str] = Counter()
            meant: Counter[str] = Counter()
            for key, one in index.items():
                name, _, its_arch = key.partition(".sm")
                if its_arch != arch or "error" in one:
                    continue
                outcome, verdicts = tried((folder / f"{key}.ptx").read_text(), one, name, arch, given.seed)
                print(f"{key:22} {outcome:10} {dict(verdicts) or ''}", flush=True)
                outcomes[outcome.partition(":")[0]] += 1
                meant.update(list(verdicts))
            total = sum(outcomes.values())
            of_meaning = " | ".join(str(meant[verdict]) for verdict in ("wrong", "formal", "same value"))
            loads = total - outcomes["refused"]
            rows.append(f"| sm_{arch} | {total} | {loads} | {outcomes['right']} of {total} | {of_meaning} |")
    print("\n| architecture | files | load | right | with reports: wrong | formal | same value |")
    print("|---|---:|---:|---:|---:|---:|---:|", *rows, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except environments.NoEnvironment as error:
        sys.exit(str(error))

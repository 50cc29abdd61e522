"""`python -m ptxsim.suite [--out FOLDER] [module ...]` runs numba-cuda's installed tests on the machine.

It writes FOLDER/results.jsonl (one line for each test) and FOLDER/table.md, and prints the counts. A module is a name
such as cudapy.test_atomics. Without modules, all of cudapy, doc_examples, cudadrv and nrt run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .. import kernels
from ..errors import EnvironmentProblem, InputError
from .table import load, rate, table

FOLDERS = ("cudapy", "doc_examples", "cudadrv", "nrt")
MODULE_SECONDS = 1500  # the most seconds of a process that runs tests
IN_CHILDREN = """
import os
if os.environ.get("PTXSIM_SUITE_CHILD"):
    import ptxsim
    ptxsim.enable()
"""  # tests start Python processes, which get a machine too by this code
TOGETHER = 10  # modules in one process, because the start of a process takes some seconds


def installed() -> Path:
    """The folder of numba-cuda's tests."""
    kernels.numba_cuda()
    for needed in ("cffi", "filecheck", "pytest"):
        if importlib.util.find_spec(needed) is None:
            raise EnvironmentProblem(f"numba-cuda's tests need {needed}: pip install {needed}")
    import numba.cuda.tests

    return Path(numba.cuda.tests.__file__).parent


def modules() -> list[str]:
    """All test modules, as folder.name."""
    return [f"{f}.{path.stem}" for f in FOLDERS for path in sorted((installed() / f).glob("test_*.py"))]


def run_modules(names: list[str], output: Path, seconds: float, limit: float, select: str = "") -> str:
    """Run modules in one process, which appends outcomes to `output`. Returns why the process failed, or ''."""
    environment = {
        **os.environ,
        "PTXSIM_SUITE_OUTPUT": str(output),
        "PTXSIM_SUITE_SECONDS": str(limit),
        "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS": "0",
    }
    ours = str(Path(__file__).resolve().parents[3])
    paths = [installed() / (name.replace(".", "/") + ".py") for name in names]
    for name, path in zip(names, paths):
        if not path.is_file():
            raise InputError(f"numba-cuda has no test module {name}; it has, for example, {modules()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(IN_CHILDREN)
        environment["PYTHONPATH"] = os.pathsep.join([folder, ours, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "ptxsim.suite.record", "-p", "no:cacheprovider",
            "-c", os.devnull, "--rootdir", folder, "-W", "ignore", "--tb=no", *map(str, paths),
            *(["-k", select] if select else []),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=folder, env=environment, timeout=seconds, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
    if done.returncode in (0, 1, 5):  # passed, some failed, no tests
        return ""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {done.returncode}"


def main(arguments: list[str] | None = None) -> int:
    """Run the modules and write the table. Returns 0 if at least 80 % of the tests that count agree."""
    parser = argparse.ArgumentParser(prog="python -m ptxsim.suite", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as cudapy.test_atomics; all, if none is named")
    parser.add_argument("--out", type=Path, default=Path("results/ptxsim-suite"), help="folder for the results")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time of one test, at most")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    output = (given.out / "results.jsonl").resolve()
    output.write_text("")
    broken: dict[str, str] = {}
    names = given.modules or modules()
    start = time.perf_counter()
    for at in range(0, len(names), TOGETHER):
        group = names[at : at + TOGETHER]
        if run_modules(
            group, output, MODULE_SECONDS, given.seconds
        ):  # run each module again alone, because a crash ends the whole process
            for name in group:
                wrong = run_modules([name], output, MODULE_SECONDS, given.seconds)
                if wrong:
                    broken[name] = wrong
        done = min(at + TOGETHER, len(names))
        print(f"[{done}/{len(names)}, {time.perf_counter() - start:.0f} s] {' '.join(group)}", flush=True)
    rows = load(output)
    text = table(rows, broken)
    (given.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    agreeing, counted = rate(rows)
    return 0 if counted and agreeing >= 0.8 * counted else 1


if __name__ == "__main__":
    sys.exit(main())

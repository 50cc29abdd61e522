"""Prints SentryWard's verdicts on the cases of ptxsim/cases beside the machine's: docs/ptxsim-cases.md.

python bench/ptx_sentryward.py --sentryward PATH/TO/sentryward [--schedules 4]

SentryWard (`pip install sentryward`, in an environment of its own) verifies one launch of one kernel, so only the cases
of one launch are given to it: as reported and as repaired, compiled for sm_100.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ptxsim.cases.run import Case, Setting, compiled
from ptxsim.cases.table import CASES

CC = (10, 0)
SECONDS = 120  # for one verdict


def numbers(setting: Setting) -> list[dict[str, Any]]:
    """The numbers among the arguments of a case's only launch; SentryWard lets the arrays be anywhere."""
    launch = setting.machine.queue[0]
    found, at = [], 0
    for param in launch.info.params:
        at = -(-at // param.align) * param.align
        if param.size < 8:
            value = int.from_bytes(launch.params[at : at + param.size], "little")
            found.append({"parameter": param.name, "type": param.type, "value": value})
        at += param.size
    return found


def verdict(program: str, case: Case, repaired: bool) -> str:
    """What SentryWard says of a case: its result, and the first diagnostic if it stopped."""
    setting = Setting(case, repaired, 0)
    case.launch(setting)
    launch = setting.machine.queue[0]
    names = tuple(f"{name}<{str(repaired).lower()}>" for name in case.kernels) + case.plain
    ptx, _ = compiled(case.source, names, CC)
    wanted = {
        "schema": "spverify.kernel-input/v1",
        "entry": launch.info.name,
        "launch": {"grid_dim": launch.grid, "block_dim": launch.block, "dynamic_shared_bytes": launch.dynamic},
        "arguments": numbers(setting),
    }
    with tempfile.TemporaryDirectory() as folder:
        source, described = Path(folder, "kernel.ptx"), Path(folder, "input.json")
        source.write_text(ptx, encoding="utf-8")
        described.write_text(json.dumps(wanted), encoding="utf-8")
        command = [program, str(source), "--input", str(described), "--timeout", str(SECONDS)]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    reasons = [each.get("code", "") for each in said.get("diagnostics", [])]
    return said["result"] + (f" ({reasons[0]})" if reasons and reasons[0] != said["result"] else "")


def reported(case: Case, repaired: bool, schedules: int) -> str:
    """In how many schedules the machine reports a case."""
    count = 0
    for seed in range(schedules):
        setting = Setting(case, repaired, seed)
        case.launch(setting)
        count += bool(setting.machine.run())
    return f"{count} of {schedules}"


def main() -> None:
    parser = argparse.ArgumentParser(description="SentryWard's verdicts beside the PTX machine's.")
    parser.add_argument("--sentryward", required=True, help="the program")
    parser.add_argument("--schedules", type=int, default=4, help="schedules of the machine (%(default)s)")
    asked = parser.parse_args()
    print("| case | ptxsim, as reported | repaired | SentryWard, as reported | repaired |\n|---|---:|---:|---|---|")
    for case in CASES:
        setting = Setting(case, False, 0)
        case.launch(setting)
        if len(setting.machine.queue) > 1:
            continue
        ours = [reported(case, repaired, asked.schedules) for repaired in (False, True)]
        theirs = [verdict(asked.sentryward, case, repaired) for repaired in (False, True)]
        print(f"| {' | '.join([case.name, *ours, *theirs])} |", flush=True)


if __name__ == "__main__":
    main()

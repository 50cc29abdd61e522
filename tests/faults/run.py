"""Faults in real jobs: draws jobs from seeds, runs and judges them.

python tests/faults/run.py --injections 200 --seed 1           # also prints everything that was wrong
python tests/faults/run.py --seed 17 --mpi mpich --keep DIR     # one job again; if it is bad, its output stays in DIR
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

import driver
import judge
import machine
import table
from draw import DAMAGED, KINDS, SEVERAL, STREAM, SUMMED, draw, warm_up

from aristos.row_types import ON_CPUS

MOST_EARLY = 10  # jobs that may end before their fault is made, besides one for each fault that was made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--injections", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first job")
    parser.add_argument("--mpi", nargs="+", default=["mpich"], choices=("mpich", "openmpi", "impi"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--several", type=int, default=SEVERAL, help="most faults in a job that should survive them")
    parser.add_argument("--levels", type=int, default=1, choices=(1, 2), help="levels of the wire between nodes")
    parser.add_argument("--combine", default="rows", choices=("rows", "sums"), help="sums needs --levels 2")
    parser.add_argument("--dtype", default="float32", choices=[n for n, row in ON_CPUS.items() if row.trained])
    parser.add_argument(
        "--damaged", nargs="+", default=[], choices=(*DAMAGED, *STREAM, *SUMMED), help="words of `word`"
    )
    parser.add_argument("--out", type=Path, help="file to which a line for each injection is added")
    parser.add_argument("--keep", type=Path, help="folder for what a bad job leaves")
    asked = parser.parse_args()
    if asked.combine == "sums" and asked.levels == 1:
        parser.error("--combine sums needs --levels 2")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the running job is ended
    if not machine.own_machine():
        print("faults: jobs need mounts and a network of their own: run this as root", file=sys.stderr)
        return 3
    with driver.workplace() as folder:
        ended = driver.run(warm_up(asked.dtype), folder)
    if ended.code:
        print(f"a job without faults fails: {ended}")
        return 3
    made, bad, seed, early = 0, 0, asked.seed, 0
    started = time.monotonic()
    while made < asked.injections:
        mpi = asked.mpi[seed % len(asked.mpi)]
        job = draw(
            seed, mpi, asked.kinds, asked.several, asked.levels, asked.combine, asked.dtype, tuple(asked.damaged)
        )
        seed += 1
        with driver.workplace() as folder:
            ended = driver.run(job, folder)
            problems = judge.judge(job, ended)
            if asked.keep and problems:
                shutil.copytree(folder, asked.keep / f"{job.seed}-{mpi}", dirs_exist_ok=True)
        if not ended.made and ended.code is not None:
            last = [out.splitlines()[-1:] for out in ended.out]
            print(f"not counted, it ended before its fault with code {ended.code}: {job}\n    {last}", flush=True)
            early += 1
            if early > MOST_EARLY + made:
                print(f"{early} jobs have ended before their fault: see their last lines above")
                return 1
            continue
        made += ended.made
        if asked.out:
            table.add(asked.out, job, ended, problems)
        bad += bool(problems)
        print(
            f"{'BAD ' if problems else 'right'} {ended.wall:.1f} s, code {ended.code}, ranks {ended.seconds}: {job}",
            flush=True,
        )
        for rank, out in enumerate(ended.out if ended.code else []):
            for message in judge.own_messages(out)[-1:]:
                print(f"    rank {rank}: {message}", flush=True)
        for problem in problems:
            print(f"    {problem}", flush=True)
    print(f"{made} injections in {time.monotonic() - started:.0f} s, {bad} jobs ended wrongly")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

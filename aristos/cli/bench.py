"""`aristos bench`: the same as `python -m aristos.bench`."""

from __future__ import annotations

SUMMARY = "measure on the ranks of this job: mpirun -n 2 aristos bench [SUITE ...]"


def main(argv: list[str]) -> int:
    from ..bench.main import main as run

    return run(argv, prog="aristos bench")

"""`aristos simt ...`: the command `ptxsim`, a package of its own beside this one."""

from __future__ import annotations

SUMMARY = "run CUDA kernels without a GPU, checked: ptxsim check FILE.cu, FILE.ptx or SCRIPT.py"


def main(argv: list[str]) -> int:
    from ptxsim import command

    return command.main(argv, "aristos simt")

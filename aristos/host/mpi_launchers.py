"""Asks the programs that start ranks: the version of an mpirun, and the types that this srun has for --mpi=."""

from __future__ import annotations

import re
from pathlib import Path

from .mpi_library import Library
from .programs import run_program


def mpirun_version(path: str) -> str:
    """The output of `mpirun --version`; '' if it cannot be run."""
    done = run_program([path, "--version"])
    return "" if done is None else done.stdout


def own_program(library: Library | None, name: str) -> str:
    """The path of a launcher in the `bin` folder beside the library; '' if there is none."""
    own = Path(library.path).parent.parent / "bin" / name if library is not None and library.path else None
    return str(own) if own is not None and own.is_file() else ""


def srun(*words: str) -> str | None:
    """The output of `srun WORDS`, both streams; None if there is no srun or it fails."""
    done = run_program(["srun", *words])
    return done.stdout + done.stderr if done is not None and done.returncode == 0 else None


def pmi_types(listing: str | None) -> list[str]:
    """The types in the output of `srun --mpi=list`; [] for None."""
    return re.findall(r"^\s+(\w+)\s*$", listing or "", re.MULTILINE)

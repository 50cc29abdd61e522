"""The templates in launch/: bash parses them, Slurm reads their options, and mpirun.sh starts ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, find_mpiexec

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_parses_a_script(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = script.read_text().splitlines()
    if "set -euo pipefail" not in lines:
        assert "set -eo pipefail" in lines
        strict = next(i for i, line in enumerate(lines) if line.startswith("set -u"))
        # the scripts of modules and environments, which may be commented out, read variables that are not set
        others = [i for i, line in enumerate(lines) if re.match(r"#?\s*(module load|source) ", line)]
        assert others
        assert max(others) < strict


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm_options_precede_the_first_command(script):
    """Slurm reads #SBATCH lines only down to the first command."""
    lines = script.read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert options
    assert max(options) < min(commands)
    assert not any(" #" in lines[i] for i in options)  # Slurm would take the comment for a value


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("perlmutter-*.sbatch")), ids=lambda path: path.name)
def test_gpu_support_of_cray_mpich_is_off(script):
    """Cray MPICH would end a job that is built without GPU support, as in docs/install.md. Aristos does not need it."""
    asked = re.findall(r"^export MPICH_GPU_SUPPORT_ENABLED=(.)$", script.read_text(), re.MULTILINE)
    assert asked == ["0"]
    assert "craype-accel" not in "".join(re.findall(r"^module load .*$", script.read_text(), re.MULTILINE))


@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
@pytest.mark.parametrize("ranks", [2, 3])
def test_mpirun_sh_starts_ranks(tmp_path, ranks):
    """Two cases: there is a core for each rank, and there may be more ranks than cores."""
    program = tmp_path / "ranks.py"
    program.write_text(
        "import os, sys; from mpi4py import MPI\n"
        "os.write(1, f'rank {MPI.COMM_WORLD.rank} {sys.argv[1:]}\\n'.encode())\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES) and k != FLAG}
    done = subprocess.run(
        [LAUNCH / "mpirun.sh", str(ranks), "two words"],
        env=clean | {"PYTHON": sys.executable, "PROGRAM": str(program)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {r} ['two words']" for r in range(ranks)]

"""bench/gpu_report.py refuses a GPU whose figures would say nothing, with one sentence and exit code 3.

nvidia-smi is a script of the tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
try:
    from first_run import command, machine, parts, processes, together
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.parallel

ROOT = Path(__file__).parents[2]
FACTS = {"gpu": "NVIDIA H100", "gpu_arch": "sm_90", "gpu_uuid": "GPU-1", "cuda_driver": "13.0"}
GPU = {
    "index": "0",
    "uuid": "GPU-1",
    "name": "NVIDIA H100",
    "driver_version": "580.95.05",
    "mig.mode.current": "Disabled",
    "memory.used": "3",
}
ANOTHER = "GPU-2, 77, python"  # a process on another GPU


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """A function that starts a report: (exit code, sentence).

    used: the process that nvidia-smi lists. script: commands for nvidia-smi to run instead. smi: whether there is an
    nvidia-smi. facts: other answers of the driver. changes: other values for columns of GPU.
    """
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(machine, "_cuda_of_packages", lambda: 13)
    answers = dict(FACTS)

    def answered(part, limit, show, options=()):
        return parts.Ran(part, 0, 0.1, [], {"facts": answers} if part.name == parts.DRIVER else {})

    monkeypatch.setattr(processes, "run_part", answered)
    monkeypatch.setattr(command.Report, "finish", lambda report: 0)

    def report(used=ANOTHER, script="", facts=(), smi=True, **changes):
        answers.update(facts)
        line = ", ".join({**GPU, **changes}.values())
        text = script or f'case "$1" in *compute-apps*) echo "{used}" ;; *) echo "{line}" ;; esac'
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        if not smi:
            monkeypatch.setattr(machine.shutil, "which", lambda name: None)
        code = command.main(["--out", str(tmp_path / "r"), "--parts", "driver"], "doc", together.report)
        said = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in said if not line.startswith("[")]) == (code == 3), "one sentence"
        return code, said[-1]

    return report


def test_a_free_gpu_is_reported_on(refused):
    code, said = refused()
    assert code == 0, said


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"facts": {"gpu_arch": "sm_70"}}, "NVIDIA H100 has compute capability 7.0, and the kernels are for 8.x, 9.x,"
     " 10.x, 12.x: use another GPU, or a newer release"),
    ({"facts": {"gpu_arch": "sm_130"}, "smi": False},
     "has compute capability 13.0, and the kernels are for 8.x, 9.x, 10.x, 12.x"),
    ({"driver_version": "550.54.15"},
     "the driver 550.54.15 is too old for the packages of CUDA 13: update the driver to 580"),
    ({"facts": {"cuda_driver": "12.4"}, "smi": False},
     "the driver, which has CUDA 12.4, is too old for the packages of CUDA 13: update the driver to 580 or later"),
    ({"mig.mode.current": "Enabled"}, "is in MIG mode, and figures of a slice say nothing of the GPU: nvidia-smi -mig"
     " 0 -i 0 (as root), or choose another GPU by CUDA_VISIBLE_DEVICES"),
    ({"used": "GPU-1, 4242, python train.py"}, "is in use by process 4242 (python train.py), which would disturb"),
    ({"memory.used": "20480"}, "has 20480 MiB in use by a program that is not seen from here"),
    ({"script": "echo 'No devices were found'"}, "nvidia-smi: No devices were found"),
    ({"script": "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9"},
     "nvidia-smi: NVIDIA-SMI has failed because it could not communicate with the driver"),
    ({"script": "sleep 20"}, "nvidia-smi did not answer within 1 s: the GPU or its driver hangs"),
], ids=["older", "newer", "driver", "silent driver", "mig", "used", "memory", "none", "broken", "slow"])  # fmt: skip
def test_a_gpu_that_cannot_be_reported_on_is_refused_in_one_sentence(refused, monkeypatch, changes, sentence):
    monkeypatch.setattr(machine, "SECONDS", 1.0 if "sleep" in changes.get("script", "") else 10.0)
    code, said = refused(**changes)
    assert code == 3
    assert said.startswith("no GPU to report on: ")
    assert sentence in said


def test_mps_is_refused(refused, tmp_path):
    (tmp_path / "control").touch()
    code, said = refused()
    assert code == 3
    assert f"MPS listens in {tmp_path}" in said
    assert said.endswith("if MPS is another user's or has ended, avoid it by: CUDA_MPS_PIPE_DIRECTORY=/an/empty/folder")


@pytest.mark.parametrize("said", [[], ["ran out of time: no call hangs"]], ids=["silent", "stacks"])
def test_a_driver_that_hangs_is_named(refused, monkeypatch, said):
    monkeypatch.setattr(processes, "run_part", lambda part, *rest: parts.Ran(part, None, 15.0, said))
    code, said = refused()
    assert (code, said) == (3, "no GPU to report on: the driver did not answer within 15 s")


def test_a_ptx_machine_that_takes_too_long_is_not_called_a_hung_driver(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(processes, "run_part", lambda part, *rest: parts.Ran(part, None, 15.0, []))
    assert command.main(["--out", str(tmp_path / "r"), "--rehearse"], "doc", together.report) == 3
    said = "the PTX machine was not ready within 15 s: --minutes 120 gives it more"
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_gpu_the_command_says_so(tmp_path):
    """The command runs on this computer as it is."""
    from aristos.substrate.cuda.device import count

    if count():
        pytest.skip("there is a GPU")
    words = [sys.executable, str(ROOT / "bench" / "gpu_report.py"), "--out", str(tmp_path / "r")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "no GPU to report on: cuInit: NVIDIA's driver (libcuda.so.1) is missing" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())

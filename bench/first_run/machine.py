"""The facts of the report's GPU, and the reasons why no report on it may be made, each in one sentence."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import time
from typing import Any

from aristos.errors import EnvironmentProblem

SECONDS = 10.0  # seconds that nvidia-smi may take
FIELDS = ("index", "uuid", "name", "driver_version", "mig.mode.current", "memory.used")
PROBE_SECONDS = 5.0
IN_USE = 1024  # MiB; an idle GPU has less in use
LEAST_DRIVER = {12: 525, 13: 580}  # CUDA version of the packages -> the oldest driver that runs it
PACKAGES = ("numba-cuda", "cuda-bindings", "nvidia-cuda-nvcc", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton")
GENERATIONS = (8, 9, 10, 12)  # major numbers of compute capabilities that the kernels are compiled for


def facts() -> dict[str, Any]:
    """The GPU, its driver and clocks, versions. Raises EnvironmentProblem if there is no GPU."""
    from aristos.host import launch_environment
    from aristos.substrate.cuda import device_puts
    from aristos.substrate.cuda.device import CudaDevice
    from aristos.topology import nvml

    device, library = CudaDevice.find(local_rank()), nvml.load()
    limits = device.target.limits
    found = {
        "gpu": device.name,
        "gpu_uuid": device.uuid,
        "gpu_arch": device.arch,
        "gpu_sms": device.sms,
        "cuda_driver": device.driver,
        "shared_bytes_a_block": limits.shared_block,
        "registers_an_sm": limits.registers,
    }
    if launch_environment.started_as() is None:  # the probe starts MPI in a child process
        puts = device_puts.probe(device.ordinal, PROBE_SECONDS)
        found["puts_from_gpu"] = "yes" if puts.supported else f"no: {puts.why}"
    found |= nvml.state(library, device.uuid) if library is not None else {}
    return found | {"utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | software()


def software() -> dict[str, str]:
    """The commit, and the versions of the installed packages."""
    from aristos.bench.environment import commit
    from aristos.host.versions import version, versions

    found = {name: version(name) for name in PACKAGES}
    return {"commit": commit() or "unknown"} | versions() | {name: each for name, each in found.items() if each}


def local_rank() -> int:
    """This process's number on its node; 0 without a launcher."""
    from aristos.substrate.cuda.runtime import LOCAL_RANK

    return next((int(os.environ[name]) for name in LOCAL_RANK if os.environ.get(name, "").isdecimal()), 0)


def check_before() -> None:
    """Check what can be known before the driver is asked.

    Raises EnvironmentProblem for MPS, no GPU, or an old driver.
    """
    from aristos.doctor import gpu_facts

    if pipes := gpu_facts.of_rank(os.environ, None).pipes:
        raise EnvironmentProblem(
            f"MPS listens in {pipes}, and kernels of other programs would share the GPU: end MPS by"
            " `echo quit | nvidia-cuda-mps-control`, or, if MPS is another user's or has ended, avoid it by:"
            f" {gpu_facts.PIPES}=/an/empty/folder"
        )
    for gpu in listed()[:1]:
        driver, cuda = _leading(gpu["driver_version"]), _cuda_of_packages()
        if 0 < driver < LEAST_DRIVER[cuda]:
            raise _too_old(f"the driver {gpu['driver_version']}", cuda)


def _too_old(driver: str, cuda: int) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{driver} is too old for the packages of CUDA {cuda}: update the driver to {LEAST_DRIVER[cuda]} or later"
    )


def check(facts: dict[str, Any], ours: bool = False) -> None:
    """Raise EnvironmentProblem for an old driver, for a GPU without kernels here, for a slice, or for a GPU in use.

    facts: what `facts` returns. Under MIG they have the UUID of a slice, which nvidia-smi does not list as a GPU: then
    all GPUs are checked. Without nvidia-smi only the driver and the kind of GPU are known. ours: whether this job
    itself uses the GPU, so that a GPU in use is allowed.
    """
    cuda, speaks, arch = _cuda_of_packages(), facts["cuda_driver"], facts["gpu_arch"].removeprefix("sm_")
    if _leading(speaks) < cuda:
        raise _too_old(f"the driver, which has CUDA {speaks},", cuda)
    if int(arch[:-1]) not in GENERATIONS:
        known = ", ".join(f"{each}.x" for each in GENERATIONS)
        raise EnvironmentProblem(
            f"{facts['gpu']} has compute capability {arch[:-1]}.{arch[-1]}, and the kernels are for {known}: use"
            " another GPU, or a newer release"
        )
    gpus = listed()
    for gpu in [each for each in gpus if each["uuid"] == facts["gpu_uuid"]] or gpus:
        _check(gpu, ours)


def listed() -> list[dict[str, str]]:
    """The GPUs as nvidia-smi lists them; [] where there is no such program. Raises EnvironmentProblem if it fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    rows = _ask("--query-gpu=" + ",".join(FIELDS))
    return [dict(zip(FIELDS, row)) for row in rows if len(row) == len(FIELDS)]


def _ask(query: str) -> list[list[str]]:
    words = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(
            f"nvidia-smi did not answer within {SECONDS:g} s: the GPU or its driver hangs"
        ) from None
    except OSError as why:
        raise EnvironmentProblem(f"nvidia-smi cannot be started: {why.strerror}") from why
    said = (done.stdout + done.stderr).strip()
    if done.returncode or "No devices were found" in said:
        raise EnvironmentProblem(f"nvidia-smi: {said.splitlines()[0] if said else f'exit code {done.returncode}'}")
    return [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]


def _check(gpu: dict[str, str], ours: bool) -> None:
    name = f"GPU {gpu['index']} ({gpu['name']})"
    if gpu["mig.mode.current"] == "Enabled":
        raise EnvironmentProblem(
            f"{name} is in MIG mode, and figures of a slice say nothing of the GPU: nvidia-smi -mig 0 -i {gpu['index']}"
            " (as root), or choose another GPU by CUDA_VISIBLE_DEVICES"
        )
    if ours:
        return
    users = [row for row in _ask("--query-compute-apps=gpu_uuid,pid,process_name") if row[0] == gpu["uuid"]]
    if users:
        raise EnvironmentProblem(
            f"{name} is in use by process {users[0][1]} ({users[0][2]}), which would disturb every figure: end it, or"
            " choose another GPU by CUDA_VISIBLE_DEVICES"
        )
    if _leading(gpu["memory.used"]) > IN_USE:
        raise EnvironmentProblem(
            f"{name} has {gpu['memory.used']} MiB in use by a program that is not seen from here: end it, or choose"
            " another GPU by CUDA_VISIBLE_DEVICES"
        )


def _leading(text: str) -> int:
    """The number that a text begins with; 0 if there is none."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _cuda_of_packages() -> int:
    """The CUDA version that the installed cuda-bindings are for.

    Without cuda-bindings it is the oldest supported one.
    """
    from aristos.host.versions import version

    return max(12, min(13, _leading(version("cuda-bindings") or "")))

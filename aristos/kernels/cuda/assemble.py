"""Assemble PTX and disassemble cubins, with ptxas and nvdisasm from the wheels of the cuda extras or from PATH."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernel_cache.offline import capability
from kernel_cache.sm_limits import ARCHITECTURES

from ...errors import EnvironmentProblem
from .target import OLDEST

TARGETS = {"sm_80": "sm_80", "sm_90": "sm_90a", "sm_100": "sm_100"}  # instructions that only Hopper has need sm_90a
ARCHS = tuple(f"sm_{major}{minor}" for major, minor in ARCHITECTURES if (major, minor) >= capability(OLDEST))
SECONDS = 300  # time limit of one kernel, which normally takes a second
WHEELS = {"ptxas": "nvidia-cuda-nvcc-cu12 (CUDA 12) or nvidia-cuda-nvcc (CUDA 13)", "nvdisasm": "nvidia-cuda-nvdisasm"}


@dataclass(frozen=True)
class Assembled:
    """What ptxas reports: registers of a thread, bytes of spill stores and loads, bytes of static shared memory.

    advice: ptxas's messages about wgmma, for example that ptxas serialises products that the PTX lets overlap.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    advice: tuple[str, ...] = ()


@cache
def tool(name: str) -> Path:
    """The path of a tool of the CUDA toolkit: from the newest wheel that has it, else from PATH."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    found = [path for root in roots for path in root.glob(f"*/bin/{name}")]
    found.sort(key=lambda path: path.parent.parent.name.startswith("cu1"), reverse=True)
    on_path = shutil.which(name)
    if found or on_path:
        return found[0] if found else Path(str(on_path))
    raise EnvironmentProblem(f"{name} was found neither in a wheel nor on PATH: pip install {WHEELS[name]}")


@cache
def tool_version(name: str) -> str:
    """The version that a tool prints, for example V12.9.86."""
    printed = _run([str(tool(name)), "--version"])
    found = re.search(r"\bV[\d.]+", printed)
    return found[0] if found else printed.strip()


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(f"{' '.join(command)} did not end within {SECONDS} s") from None
    if done.returncode != 0:
        raise EnvironmentProblem(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[:2000]}")
    return done.stdout + done.stderr if command[0].endswith("ptxas") else done.stdout


def assemble(ptx: Path, cubin: Path, arch: str) -> Assembled:
    """Assemble one kernel's PTX file into the file `cubin`. arch: ptxas's name of the architecture, such as sm_90a."""
    try:
        printed = _run([str(tool("ptxas")), "-v", f"-arch={arch}", str(ptx), "-o", str(cubin)])
    except EnvironmentProblem as failed:
        if "gpu-name" in str(failed):
            newer = f"install a newer one: pip install {WHEELS['ptxas']}"
            raise EnvironmentProblem(f"ptxas {tool_version('ptxas')} does not know {arch}: {newer}") from None
        raise

    def number(pattern: str) -> int:
        return sum(int(value) for value in re.findall(pattern, printed))

    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    advice = tuple(re.findall(r"\(C75\d\d\) .*", printed))
    return Assembled(number(r"Used (\d+) registers"), spilled, number(r"(\d+) bytes smem"), advice)


def disassemble(cubin: Path) -> str:
    """A cubin's machine code as text."""
    return _run([str(tool("nvdisasm")), "-c", str(cubin)])

"""GPUs: how many are seen, is what drives them installed, and can ranks open each other's memory (CUDA IPC)?"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping

from ..topology.slurm_job import hides_gpus
from .finding import Finding, ok, warn

IPC = "srun --gpus-per-node=N --gpu-bind=none ..., and each rank takes the GPU of its SLURM_LOCALID"


def listing() -> list[str] | None:
    """Names of the GPUs that nvidia-smi lists; None without nvidia-smi or without an answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", done.stdout, re.MULTILINE) if done.returncode == 0 else None


def peers() -> tuple[int, int] | None:
    """(ordered pairs of visible GPUs that reach each other's memory, all pairs); the driver knows without a context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return None
    reached = 0
    for a in range(count.value):
        for b in range(count.value):
            yes = ctypes.c_int()
            if a != b and not driver.cuDeviceCanAccessPeer(ctypes.byref(yes), a, b):
                reached += yes.value
    return reached, count.value * (count.value - 1)


def gpus(names: list[str] | None, env: Mapping[str, str], ranks: int, reach: tuple[int, int] | None) -> Finding:
    """names: of the GPUs; ranks: how many share this node; reach: as `peers` gives it."""
    name = "GPUs"
    if not names:
        return ok(name, "no GPU: ranks compute on their cores" + ("" if names is None else " (nvidia-smi lists none)"))
    visible = env.get("CUDA_VISIBLE_DEVICES")
    text = f"{len(names)} x {names[0]}" + (f", CUDA_VISIBLE_DEVICES={visible}" if visible is not None else "")
    values = {"names": names, "visible": visible, "peers": reach}
    option = hides_gpus(env)
    if option and ranks > 1:
        why = f"{text}; {option} hides each task's GPU from its peers, so CUDA IPC between them fails"
        return warn(name, why, IPC, **values)
    if reach is not None and reach[0] < reach[1]:
        why = f"{text}; {reach[1] - reach[0]} of {reach[1]} ordered pairs cannot reach each other's memory"
        return warn(
            name,
            why,
            "nvidia-smi topo -p2p r shows which; keep ranks on GPUs that NVLink or one PCIe root joins",
            **values,
        )
    if reach is not None and reach[1]:
        text += f", all {reach[1]} ordered pairs reach each other"
    return ok(name, text, **values)


def driver_packages(numba_cuda: str | None, numpy: str, names: list[str] | None) -> Finding:
    """Is numba-cuda there for the GPUs, and does it go with this NumPy?"""
    name = "GPU packages"
    if not names:
        return ok(name, "not needed")
    if numba_cuda is None:
        return warn(
            name,
            "numba-cuda is not installed: ranks compute on their cores",
            "pip install 'aristos[cuda13]' or 'aristos[cuda12]'",
        )
    if tuple(int(part) for part in re.findall(r"\d+", numpy)[:2]) >= (2, 5):
        return warn(name, f"numba-cuda {numba_cuda} does not go with NumPy {numpy}", "pip install 'numpy<2.5'")
    return ok(name, f"numba-cuda {numba_cuda}, NumPy {numpy}")

"""The GPUs that a process sees through Linux, through NVML or nvidia-smi, and through libcuda. `gpus.py` judges them.

The driver is called by ctypes. So no package is needed, and no context is created on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..substrate.cuda.driver import uuid_text
from ..topology import commands, nvml, pci
from ..topology.commands import Ask
from ..topology.discover import node_here
from ..topology.model import Gpu

PIPES = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_PIPES = "/tmp/nvidia-mps"
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class DriverAnswer:
    """libcuda's answers. error: the name of its error, or ''. version: the CUDA version that it supports.

    uuids: UUIDs of the visible GPUs, in CUDA's order. blocked: ordered pairs of these GPUs without peer access, by
    ordinal. archs: the architectures of these GPUs, such as sm_90.
    """

    error: str = ""
    version: tuple[int, int] = (0, 0)
    uuids: tuple[str, ...] = ()
    blocked: tuple[tuple[int, int], ...] = ()
    archs: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeGpus:
    """The GPUs of a node as its first rank sees them. driver: None without libcuda. devices: from NVML or nvidia-smi.

    bus: PCI addresses of all GPUs of the machine, even hidden ones. files: how many files /dev/nvidia0, 1, ... there
    are. caps: whether /dev/nvidia-caps has entries, which MIG slices need.
    """

    driver: DriverAnswer | None
    devices: tuple[Gpu, ...] = ()
    bus: tuple[str, ...] = ()
    files: int = 0
    caps: bool = True


@dataclass(frozen=True)
class RankGpus:
    """The GPUs as one rank sees them. space: the rank's PID namespace. pipes: the folder of its MPS daemon, or ''.

    visible: CUDA_VISIBLE_DEVICES.
    """

    driver: DriverAnswer | None
    space: str = ""
    pipes: str = ""
    visible: str | None = None


def load_driver() -> Any | None:
    """libcuda; None if it cannot be loaded."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def of_node(
    root: Path = Path("/"), ask: Ask = commands.ask, load: Callable[[], Any] = nvml.load, cuda: Any | None = None
) -> NodeGpus:
    """This machine's GPUs. root, ask, load, cuda: the sources of files, of commands' output, of NVML and of libcuda."""
    node, _ = node_here("", root, ask, load)
    files = sum(path.name[6:].isdigit() for path in (root / "dev").glob("nvidia*"))
    caps = any((root / "dev/nvidia-caps").glob("*"))
    return NodeGpus(ask_driver(cuda), node.devices, pci.gpus(root), files, caps)


def of_rank(env: Mapping[str, str], cuda: Any | None, root: Path = Path("/")) -> RankGpus:
    """This rank's view. env: its environment."""
    try:
        space = os.readlink(root / "proc/self/ns/pid")
    except OSError:
        space = ""
    pipes = env.get(PIPES, DEFAULT_PIPES)
    listens = os.path.exists(os.path.join(pipes, "control"))
    return RankGpus(ask_driver(cuda), space, pipes if listens else "", env.get("CUDA_VISIBLE_DEVICES"))


def ask_driver(cuda: Any | None) -> DriverAnswer | None:
    """Ask a loaded libcuda. Returns None without one."""
    if cuda is None:
        return None
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))  # works before cuInit
    version = number.value // 1000, number.value % 1000 // 10
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return DriverAnswer(_name(cuda, code), version)
    devices = [ctypes.c_int() for _ in range(count.value)]
    for ordinal, device in enumerate(devices):
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    pairs = [(a, b) for a in range(count.value) for b in range(count.value) if a != b]
    blocked = [(a, b) for a, b in pairs if not _reach(cuda, devices[a], devices[b])]
    uuids, archs = (tuple(ask(cuda, device) for device in devices) for ask in (_uuid, _arch))
    return DriverAnswer("", version, uuids, tuple(blocked), archs)


def _name(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    known = cuda.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
    return text.value.decode() if known and text.value else f"error {code}"


def _reach(cuda: Any, one: ctypes.c_int, other: ctypes.c_int) -> bool:
    yes = ctypes.c_int()
    return cuda.cuDeviceCanAccessPeer(ctypes.byref(yes), one, other) == 0 and bool(yes.value)


def _arch(cuda: Any, device: ctypes.c_int) -> str:
    part = ctypes.c_int()
    found = []
    for attribute in CAPABILITY:
        cuda.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        found.append(str(part.value))
    return f"sm_{''.join(found)}"


def _uuid(cuda: Any, device: ctypes.c_int) -> str:
    uuid = (ctypes.c_ubyte * 16)()
    ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
    ask(ctypes.byref(uuid), device)
    return uuid_text(bytes(uuid))

"""What a process sees of GPUs, asked of the kernel, of NVML or nvidia-smi, and of the driver; gpus.py judges it.

The driver is asked through ctypes, so that it works without any package, and no context is made on a card.
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
from ..topology.discover import machine_here
from ..topology.model import Device

PIPES = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_PIPES = "/tmp/nvidia-mps"


@dataclass(frozen=True)
class Driver:
    """What libcuda answers. error: the driver's name of why it does not, or ''. version: the CUDA that it speaks.

    uuids: of visible cards in CUDA's order. blocked: ordered pairs of their ordinals without access to memory.
    """

    error: str = ""
    version: tuple[int, int] = (0, 0)
    uuids: tuple[str, ...] = ()
    blocked: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sight:
    """Of the first rank of a node. driver: None without libcuda. devices: what NVML or nvidia-smi lists.

    bus: PCI addresses of the machine's GPUs, hidden ones too. files: how many /dev/nvidia0, 1, ... are here. caps: is
    /dev/nvidia-caps, which MIG slices need?
    """

    driver: Driver | None
    devices: tuple[Device, ...] = ()
    bus: tuple[str, ...] = ()
    files: int = 0
    caps: bool = True


@dataclass(frozen=True)
class Facts:
    """Of every rank. space: its PID namespace. pipes: where an MPS daemon listens to it, '' without one."""

    driver: Driver | None
    space: str = ""
    pipes: str = ""
    visible: str | None = None


def library() -> Any | None:
    """libcuda; None where it does not load."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def look(
    root: Path = Path("/"), ask: Ask = commands.ask, load: Callable[[], Any] = nvml.load, cuda: Any | None = None
) -> Sight:
    """This machine's GPUs; root, ask, load, cuda: where files, commands' answers, NVML and libcuda come from."""
    node, _ = machine_here("", root, ask, load)
    files = sum(path.name[6:].isdigit() for path in (root / "dev").glob("nvidia*"))
    caps = any((root / "dev/nvidia-caps").glob("*"))
    return Sight(driver(cuda), node.devices, pci.gpus(root), files, caps)


def facts(env: Mapping[str, str], cuda: Any | None, root: Path = Path("/")) -> Facts:
    """What this rank adds to what its node's first one sees."""
    try:
        space = os.readlink(root / "proc/self/ns/pid")
    except OSError:
        space = ""
    pipes = env.get(PIPES, DEFAULT_PIPES)
    listens = os.path.exists(os.path.join(pipes, "control"))
    return Facts(driver(cuda), space, pipes if listens else "", env.get("CUDA_VISIBLE_DEVICES"))


def driver(cuda: Any | None) -> Driver | None:
    """What a loaded libcuda says; None without one."""
    if cuda is None:
        return None
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))  # answers before it is started
    version = number.value // 1000, number.value % 1000 // 10
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return Driver(_name(cuda, code), version)
    devices = [ctypes.c_int() for _ in range(count.value)]
    for ordinal, device in enumerate(devices):
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    pairs = [(a, b) for a in range(count.value) for b in range(count.value) if a != b]
    blocked = [(a, b) for a, b in pairs if not _reach(cuda, devices[a], devices[b])]
    return Driver("", version, tuple(_uuid(cuda, device) for device in devices), tuple(blocked))


def _name(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    known = cuda.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
    return text.value.decode() if known and text.value else f"error {code}"


def _reach(cuda: Any, one: ctypes.c_int, other: ctypes.c_int) -> bool:
    yes = ctypes.c_int()
    return cuda.cuDeviceCanAccessPeer(ctypes.byref(yes), one, other) == 0 and bool(yes.value)


def _uuid(cuda: Any, device: ctypes.c_int) -> str:
    uuid = (ctypes.c_ubyte * 16)()
    ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
    ask(ctypes.byref(uuid), device)
    return uuid_text(bytes(uuid))

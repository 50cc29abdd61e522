"""Which transport carries the puts between two ranks: one table, and the functions that read it.

A new transport needs a file with a window class, and a row in this table, before the row that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..host.nodes import Nodes
from .ipc import IpcWindow
from .rma import RmaWindow
from .shm import ShmWindow
from .window import SelfDeviceWindow, SelfWindow

SELF, LOCAL, REMOTE = "a rank without local peers", "ranks of one node", "ranks of different nodes"
HOST, DEVICE = "host", "device"


@dataclass(frozen=True)
class Transport:
    """A transport. between: SELF, LOCAL or REMOTE. memory: where the window lies, HOST or DEVICE.

    open: a function of (comm, bytes, device) that makes a window; collective in comm. device is None for HOST.
    """

    name: str
    between: str
    memory: str
    open: Callable[[Any, int, Any], Any]


TRANSPORTS = (
    Transport("self", SELF, HOST, lambda comm, nbytes, device: SelfWindow(nbytes)),
    Transport("self", SELF, DEVICE, lambda comm, nbytes, device: SelfDeviceWindow(device, nbytes)),
    Transport("shm", LOCAL, HOST, lambda comm, nbytes, device: ShmWindow(comm, nbytes)),
    Transport("ipc", LOCAL, DEVICE, lambda comm, nbytes, device: IpcWindow(comm, device, nbytes)),
    Transport("rma", REMOTE, HOST, lambda comm, nbytes, device: RmaWindow(comm, nbytes)),
)


def choose(between: str, memory: str = HOST) -> Transport:
    """The first transport in the table with these values of `between` and `memory`."""
    return next(t for t in TRANSPORTS if (t.between, t.memory) == (between, memory))


def masks(nodes: Nodes, memory: str = HOST) -> dict[str, np.ndarray]:
    """For each transport in use, name -> [W, W] bool: the ordered pairs of different ranks that it serves.

    memory: where windows for local peers lie. Windows for remote peers lie in host memory.
    """
    node = np.array(nodes.node_of)
    same = node[:, None] == node[None, :]
    found = {
        choose(LOCAL, memory).name: same & ~np.eye(len(node), dtype=bool),
        choose(REMOTE).name: ~same,
    }
    return {name: pairs for name, pairs in found.items() if pairs.any()}


def names(nodes: Nodes, memory: str = HOST) -> tuple[str, ...]:
    """The transports in use between different ranks; `self` if there is only one rank."""
    return tuple(masks(nodes, memory)) or (choose(SELF, memory).name,)

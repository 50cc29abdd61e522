"""`nvidia-smi -L`: the GPUs and their MIG slices with their UUIDs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kernel_cache.texts import plain

from ..errors import TopologyError
from .matrix import clean, complaint
from .model import Mig

_GPU = re.compile(r"\s*GPU\s+([0-9]{1,6}):\s*(.*?)(?:\s*\(UUID:\s*([^()\s]+)\s*\))?\s*$")
_MIG = re.compile(r"\s*MIG\s+(\S+)\s+Device\s+([0-9]{1,6}):\s*\(UUID:\s*(MIG-[^()\s]+)\s*\)\s*$")


@dataclass(frozen=True)
class Listed:
    """A GPU of the list. uuid: None if it is missing or cut."""

    index: int
    name: str
    uuid: str | None
    mig: tuple[Mig, ...] = ()


def heading(line: str) -> Listed | None:
    """The GPU in a line `GPU 0: NAME (UUID: ...)`; None for other lines."""
    found = _GPU.fullmatch(line)
    if not found or not found[2] or not plain(found[2]):
        return None
    uuid = found[3] if found[3] and found[3].startswith("GPU-") else None
    return Listed(int(found[1]), found[2], uuid)


def parse(text: str) -> tuple[Listed, ...]:
    """Every GPU of the list, in order. Raises TopologyError for a line that is neither a GPU nor a MIG slice."""
    found: list[Listed] = []
    for line in clean(text):
        gpu, slice_ = heading(line), _MIG.fullmatch(line)
        if gpu is not None and gpu.uuid is not None:
            found.append(gpu)
        elif slice_ and found and plain(line):
            last = found[-1]
            mig = Mig(int(slice_[2]), slice_[3], slice_[1])
            found[-1] = Listed(last.index, last.name, last.uuid, (*last.mig, mig))
        elif line.strip():
            raise TopologyError(
                f"expected lines of `nvidia-smi -L` (GPU 0: NAME (UUID: GPU-...)), got {line.strip()[:200]!r}"
            )
    if not found:
        raise complaint("nvidia-smi -L", text)
    if len({gpu.index for gpu in found}) < len(found):
        raise TopologyError(f"a GPU's number appears twice in `nvidia-smi -L`: {[gpu.index for gpu in found]}")
    return tuple(found)

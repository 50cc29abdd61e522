"""`nvidia-smi nvlink -s`: the NVLinks of each GPU, and which are inactive.

Speeds are of the wire, GB/s in one direction; about 94 % of it is payload.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import TopologyError
from .listing import heading
from .matrix import clean, complaint

_SPEED = r"[0-9]{1,6}(?:\.[0-9]{0,6})?"
_LINK = re.compile(rf"\s*Link\s+([0-9]{{1,6}}):\s*(?:(<inactive>|inactive|N/A)|({_SPEED})\s*GB/s)\s*", re.IGNORECASE)
_ALL = re.compile(r".*all links are inactive.*", re.IGNORECASE)


@dataclass(frozen=True)
class Wires:
    """The links of a GPU. index, name: None if the text has no line for the GPU; speeds: by link, None if inactive.

    dark: the driver reports that all links are inactive, without listing them.
    """

    index: int | None
    name: str | None
    uuid: str | None
    speeds: dict[int, float | None]
    dark: bool = False

    @property
    def active(self) -> int:
        return sum(speed is not None for speed in self.speeds.values())

    @property
    def inactive(self) -> list[int]:
        return sorted(link for link, speed in self.speeds.items() if speed is None)


def parse(text: str) -> tuple[Wires, ...]:
    """One entry for each GPU. Raises TopologyError for any other line, and if links are missing in between."""
    found: list[Wires] = []
    for line in clean(text):
        gpu, link = heading(line), _LINK.fullmatch(line)
        if gpu is not None:
            found.append(Wires(gpu.index, gpu.name, gpu.uuid, {}))
        elif link:
            if not found:
                found.append(Wires(None, None, None, {}))
            if int(link[1]) in found[-1].speeds:
                raise TopologyError(f"a link appears twice in `nvidia-smi nvlink -s`: {line.strip()!r}")
            found[-1].speeds[int(link[1])] = None if link[2] else float(link[3])
        elif _ALL.fullmatch(line) and found:
            last = found.pop()
            found.append(Wires(last.index, last.name, last.uuid, last.speeds, dark=True))
        elif line.strip():
            raise TopologyError(
                f"expected lines of `nvidia-smi nvlink -s` (Link 0: 25 GB/s), got {line.strip()[:200]!r}"
            )
    if not found:
        raise complaint("nvidia-smi nvlink -s", text)
    for wires in found:
        if sorted(wires.speeds) != list(range(len(wires.speeds))):
            raise TopologyError(f"links {sorted(wires.speeds)} of GPU {wires.index}: some lines are missing")
    return tuple(found)

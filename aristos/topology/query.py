"""`nvidia-smi --query-gpu=... --format=csv`: a line for each GPU, with or without a heading and units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kernel_cache.texts import plain, whole

from ..errors import TopologyError
from .matrix import clean, complaint

FIELDS = ("index", "name", "uuid", "pci.bus_id", "memory.total")  # queried by `discover`
MIB = 1 << 20
_BUS = re.compile(r"(?:([0-9A-Fa-f]{1,8}):)?([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.([0-7])")
_UUID = re.compile(r"GPU-[0-9A-Za-z-]+")
_MEMORY = re.compile(r"([0-9]{1,12})(?: MiB)?")
_ALIASES = {"gpu_name": "name", "gpu_uuid": "uuid", "gpu_bus_id": "pci.bus_id"}


@dataclass(frozen=True)
class Queried:
    """A line of the output. memory: bytes; pci: as in sysfs; None: not queried, or no value."""

    index: int | None = None
    name: str | None = None
    uuid: str | None = None
    pci: str | None = None
    memory: int | None = None


def bus_id(text: str) -> str | None:
    """'00000000:41:00.0' -> '0000:41:00.0', as sysfs names the device; else None."""
    found = _BUS.fullmatch(text.strip())
    if not found:
        return None
    return f"{int(found[1] or '0', 16):04x}:{found[2]}:{found[3]}.{found[4]}".lower()


def parse(text: str, fields: Sequence[str] | None = None) -> tuple[Queried, ...]:
    """One entry for each line. fields: the queried fields, if there is no heading. Raises TopologyError.

    Without fields and heading, numbers, bus ids, UUIDs and `... MiB` are recognised by their form.
    """
    lines = [line for line in clean(text) if line.strip()]
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    if not rows:
        raise complaint("nvidia-smi --query-gpu", text)
    if _is_heading(rows[0]):
        fields = [_ALIASES.get(name, name) for name in (re.sub(r" *\[\w+\]", "", cell) for cell in rows[0])]
        rows, lines = rows[1:], lines[1:]
    names = [_ALIASES.get(name, name) for name in fields] if fields is not None else _guessed(rows[0])
    known = {"uuid", "pci.bus_id"} if fields is None else {"index", "uuid", "pci.bus_id"}
    if not known & set(names):
        raise complaint("nvidia-smi --query-gpu", text)
    return tuple(_entry(dict(zip(names, row)), line, len(row) == len(names)) for row, line in zip(rows, lines))


def _is_heading(cells: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[a-z_][\w.]*(?: \[\w+\])?", cell) for cell in cells)


def _guessed(cells: Sequence[str]) -> list[str]:
    """Names for the cells of a line without a heading."""
    names = []
    for at, cell in enumerate(cells):
        if bus_id(cell):
            names.append("pci.bus_id")
        elif _UUID.fullmatch(cell):
            names.append("uuid")
        elif cell.endswith("MiB") and "memory.total" not in names:
            names.append("memory.total")
        elif at == 0 and whole(cell) is not None:
            names.append("index")
        elif re.match(r"(NVIDIA|Tesla|Quadro|GeForce|GRID)\b", cell):
            names.append("name")
        else:
            names.append(f"column {at}")
    return names


def _entry(cells: dict[str, str], line: str, complete: bool) -> Queried:
    cells = {name: "" if re.fullmatch(r"\[.*\]|N/A", cell) else cell for name, cell in cells.items()}
    index, memory, pci = cells.get("index", ""), cells.get("memory.total", ""), cells.get("pci.bus_id", "")
    sized, uuid = _MEMORY.fullmatch(memory), cells.get("uuid") or None
    wrong = not plain(line) or (index and whole(index) is None) or (memory and not sized) or (pci and not bus_id(pci))
    if not complete or wrong or (uuid and not _UUID.fullmatch(uuid)):
        raise TopologyError(
            f"expected a line of `nvidia-smi --query-gpu`, with the cells of its heading, got {line[:200]!r}"
        )
    return Queried(
        whole(index),
        cells.get("name") or None,
        uuid,
        bus_id(pci) if pci else None,
        int(sized[1]) * MIB if sized else None,
    )


def fabric_states(text: str) -> dict[str, tuple[str, str]]:
    """GPU's label -> (state, status) of its NVLink fabric, from a query of index, fabric.state, fabric.status."""
    rows = [[cell.strip() for cell in line.split(",")] for line in clean(text) if line.strip()]
    return {f"GPU{row[0]}": (row[1], row[2]) for row in rows if len(row) == 3 and whole(row[0]) is not None}

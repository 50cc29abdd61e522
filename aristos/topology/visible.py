"""CUDA_VISIBLE_DEVICES: which GPUs, or slices of one, a program sees, and in which order.

Its entries may be numbers, the start of a UUID, or MIG names. They are resolved to UUIDs and PCI addresses, which the
driver keeps, because NVML and nvidia-smi go on counting all GPUs: CUDA's device 0 may be their GPU3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .model import Device, Fault, Mig

VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
COUNT = "numbers count the GPUs that this process may use, from 0, so after a cgroup has hidden some"


@dataclass(frozen=True)
class Seen:
    """What CUDA counts as one device: a GPU, or a MIG slice of it."""

    device: Device
    mig: Mig | None = None


def visible(env: Mapping[str, str], devices: Sequence[Device]) -> tuple[tuple[Seen, ...], list[Fault]]:
    """(CUDA's devices in its order, faults of the variable). As in CUDA, the first entry that is none ends the list."""
    text = env.get(VARIABLE)
    faults = _order(env, devices)
    if text is None:
        return tuple(Seen(d, d.mig[0] if d.mig else None) for d in devices), faults
    seen: list[Seen] = []
    for entry in (part.strip() for part in text.split(",")):
        found = _resolve(entry, devices)
        if isinstance(found, str):
            if text.strip() not in ("", "-1", "NoDevFiles", "none", "void"):  # ways to say: no GPU
                faults.append(Fault(f"{VARIABLE}={text}: {entry!r} {found}, it and what follows is not seen", COUNT))
            break
        if found in seen:
            faults.append(Fault(f"{VARIABLE}={text} names {entry} twice, so CUDA sees no device", "name each once"))
            return (), faults
        seen.append(found)
    return tuple(seen), faults


def _order(env: Mapping[str, str], devices: Sequence[Device]) -> list[Fault]:
    """CUDA counts the fastest GPU first, NVML in PCI order; only among equal GPUs the two agree."""
    names = {d.name for d in devices}
    numbers = re.fullmatch(r"[\d, ]*", env.get(VARIABLE, ""))
    if len(names) < 2 or env.get(ORDER) == "PCI_BUS_ID" or not numbers:
        return []
    text = f"GPUs differ ({', '.join(sorted(str(name) for name in names))}), and CUDA counts the fastest first"
    return [Fault(text, f"export {ORDER}=PCI_BUS_ID, or name GPUs by UUID in {VARIABLE}")]


def _resolve(entry: str, devices: Sequence[Device]) -> Seen | str:
    """The device an entry names, or why it names none."""
    if re.fullmatch(r"[0-9]{1,9}", entry):
        by_number = {d.index: d for d in devices}
        if int(entry) not in by_number:
            return f"is none of the {len(devices)} GPUs here"
        device = by_number[int(entry)]
        return Seen(device, device.mig[0] if device.mig else None)
    if entry.startswith("MIG-"):
        return _slice(entry, devices)
    if entry.startswith("GPU-"):
        starts = [d for d in devices if d.uuid and d.uuid.lower().startswith(entry.lower())]
        if len(starts) == 1:
            return Seen(starts[0], starts[0].mig[0] if starts[0].mig else None)
        return "is the start of several UUIDs here" if starts else "is no UUID of a GPU here"
    return "is neither a number nor a UUID"


def _slice(entry: str, devices: Sequence[Device]) -> Seen | str:
    """By the slice's UUID, or in the way of drivers before 470: MIG-GPU-<uuid>/<gpu instance>/<compute instance>."""
    for device in devices:
        for mig in device.mig:
            if mig.uuid.lower() == entry.lower():
                return Seen(device, mig)
    starts = [Seen(d, mig) for d in devices for mig in d.mig if mig.uuid.lower().startswith(entry.lower())]
    if len(starts) == 1:
        return starts[0]
    return "is the start of several MIG slices here" if starts else "is no MIG slice here"

"""Reads CUDA_VISIBLE_DEVICES: the GPUs or MIG slices that a program sees, and their order.

The variable's entries may be numbers, the start of a UUID, or MIG names. This module finds, for each entry, the device
as NVML and nvidia-smi number it. NVML and nvidia-smi always count all GPUs, so CUDA's device 0 may be GPU3 for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .model import Fault, Gpu, Mig

VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
COUNT = "numbers count the GPUs that this process may use, from 0, without those that a cgroup hides"


@dataclass(frozen=True)
class VisibleDevice:
    """A device of CUDA: a GPU, or a MIG slice of one."""

    device: Gpu
    mig: Mig | None = None


def visible(env: Mapping[str, str], devices: Sequence[Gpu]) -> tuple[tuple[VisibleDevice, ...], list[Fault]]:
    """(CUDA's devices in order, faults of the variable). The first invalid entry ends the list, as in CUDA."""
    text = env.get(VARIABLE)
    faults = _order(env, devices)
    if text is None:
        return tuple(VisibleDevice(d, d.mig[0] if d.mig else None) for d in devices), faults
    seen: list[VisibleDevice] = []
    for entry in (part.strip() for part in text.split(",")):
        found = _resolve(entry, devices)
        if isinstance(found, str):
            if text.strip() not in ("", "-1", "NoDevFiles", "none", "void"):  # these usual values mean no GPU
                faults.append(
                    Fault(f"{VARIABLE}={text}: {entry!r} {found}; CUDA ignores it and all entries after it", COUNT)
                )
            break
        if found in seen:
            faults.append(
                Fault(f"{VARIABLE}={text} names {entry} twice, so CUDA sees no device", "name each device once")
            )
            return (), faults
        seen.append(found)
    return tuple(seen), faults


def _order(env: Mapping[str, str], devices: Sequence[Gpu]) -> list[Fault]:
    """Return a fault if GPUs differ: CUDA then counts the fastest first, but NVML counts in PCI order."""
    names = {d.name for d in devices}
    numbers = re.fullmatch(r"[\d, ]*", env.get(VARIABLE, ""))
    if len(names) < 2 or env.get(ORDER) == "PCI_BUS_ID" or not numbers:
        return []
    text = f"GPUs differ ({', '.join(sorted(str(name) for name in names))}), and CUDA counts the fastest first"
    return [Fault(text, f"export {ORDER}=PCI_BUS_ID, or name GPUs by UUID in {VARIABLE}")]


def _resolve(entry: str, devices: Sequence[Gpu]) -> VisibleDevice | str:
    """The device of an entry, or a text that says why there is none."""
    if re.fullmatch(r"[0-9]{1,9}", entry):
        by_number = {d.index: d for d in devices}
        if int(entry) not in by_number:
            return f"is none of the {len(devices)} GPUs here"
        device = by_number[int(entry)]
        return VisibleDevice(device, device.mig[0] if device.mig else None)
    if entry.startswith("MIG-"):
        return _slice(entry, devices)
    if entry.startswith("GPU-"):
        starts = [d for d in devices if d.uuid and d.uuid.lower().startswith(entry.lower())]
        if len(starts) == 1:
            return VisibleDevice(starts[0], starts[0].mig[0] if starts[0].mig else None)
        return "is the start of several UUIDs here" if starts else "is no UUID of a GPU here"
    return "is neither a number nor a UUID"


def _slice(entry: str, devices: Sequence[Gpu]) -> VisibleDevice | str:
    """The slice that an entry names, or a text that says why there is none.

    The entry is a UUID, or for drivers before 470 MIG-GPU-<uuid>/<gpu instance>/<compute instance>.
    """
    for device in devices:
        for mig in device.mig:
            if mig.uuid.lower() == entry.lower():
                return VisibleDevice(device, mig)
    starts = [VisibleDevice(d, mig) for d in devices for mig in d.mig if mig.uuid.lower().startswith(entry.lower())]
    if len(starts) == 1:
        return starts[0]
    return "is the start of several MIG slices here" if starts else "is no MIG slice here"

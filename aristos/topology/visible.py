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
        return tuple(map(_seen, devices)), faults
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
        found = next((d for d in devices if d.index == int(entry)), None)
        return f"is none of the {len(devices)} GPU{'s'[: len(devices) != 1]} here" if found is None else _seen(found)
    if entry.startswith("MIG-"):  # a UUID, or for drivers before 470 MIG-GPU-<uuid>/<gpu instance>/<compute instance>
        slices = [(mig.uuid, VisibleDevice(d, mig)) for d in devices for mig in d.mig]
        return _named(entry, slices, "MIG slices", "MIG slice")
    if entry.startswith("GPU-"):
        return _named(entry, [(d.uuid, _seen(d)) for d in devices if d.uuid], "UUIDs", "UUID of a GPU")
    return "is neither a number nor a UUID"


def _seen(device: Gpu) -> VisibleDevice:
    """The GPU as CUDA shows it: under MIG its first slice."""
    return VisibleDevice(device, device.mig[0] if device.mig else None)


def _named(entry: str, known: list[tuple[str, VisibleDevice]], several: str, one: str) -> VisibleDevice | str:
    """The device whose name is the entry, or alone begins with it; or a text that says why there is none."""
    starts = [(name, device) for name, device in known if name.lower().startswith(entry.lower())]
    found = [device for name, device in starts if len(name) == len(entry)] or [device for _, device in starts]
    if len(found) == 1:
        return found[0]
    return f"is the start of several {several} here" if found else f"is no {one} here"

"""A run of a case: its kernels compiled as reported or as repaired, its machine, and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import DeviceArray
from ..findings import Report
from ..machine import Machine
from ..nvrtc import compiled_kernels
from ..streams import Stream

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A published bug. bug: repository and number. link: where it was reported. what: what was wrong, and the repair.

    source, kernels: the file and the templates of kernels. launch: queues the launches of a Setting, and returns a
    function that says whether the results are right. plain: kernels that are no templates.
    """

    name: str
    bug: str
    link: str
    what: str
    source: str
    kernels: tuple[str, ...]
    launch: Callable[[Setting], Callable[[], bool]]
    plain: tuple[str, ...] = ()


@cache
def compiled(source: str, wanted: tuple[str, ...], cc: tuple[int, int]) -> tuple[str, dict[str, str]]:
    """The PTX of a file and the names of its kernels there."""
    path = FOLDER / source
    return compiled_kernels(path.read_text(encoding="utf-8"), str(path), cc, wanted)


class Setting:
    """A machine with two devices of `sm_count` SMs, and a case's kernels for it."""

    def __init__(self, case: Case, repaired: bool, seed: int, sm_count: int = 2):
        self.repaired, self.case = repaired, case
        self.machine = Machine(devices=2, sm_count=sm_count, seed=seed)
        self.a, self.b = self.machine.device(0), self.machine.device(1)
        names = {name: f"{name}<{str(repaired).lower()}>" for name in case.kernels} | {
            name: name for name in case.plain
        }
        self.ptx, entries = compiled(case.source, tuple(names.values()), self.machine.cc[:2])
        self.entries = {name: entries[full] for name, full in names.items()}

    def launch(self, kernel: str, grid: int, block: int, *args: Any, device: int = 0, **options: Any) -> None:
        """Queue a kernel of the case."""
        self.machine.device(device).launch(self.ptx, grid, block, *args, entry=self.entries[kernel], **options)

    def zeros(self, count: int, name: str, dtype: Any = np.float32, device: int = 0) -> DeviceArray:
        """An array of zeros on a device."""
        return self.machine.device(device).array(np.zeros(count, dtype), name)

    def fresh(self, count: int, name: str, dtype: Any = np.float32, device: int = 0) -> DeviceArray:
        """An uninitialised array on a device."""
        return self.machine.device(device).empty(count, dtype, name)

    def stream(self) -> Stream:
        """A stream of the first device that does not wait for the default stream."""
        return self.a.stream(blocking=False)


@dataclass(frozen=True)
class Outcome:
    """What a run of a case showed. right: whether the results were right; False after a deadlock too."""

    reports: list[Report]
    right: bool

    @property
    def found(self) -> bool:
        """Whether the run showed a bug."""
        return bool(self.reports) or not self.right


def run(case: Case, repaired: bool, seed: int) -> Outcome:
    """Run a case once."""
    setting = Setting(case, repaired, seed)
    right = case.launch(setting)
    reports = setting.machine.run()
    return Outcome(reports, right())
